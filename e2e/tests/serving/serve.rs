//! A real model in real pods, on devices that a reservation holds, behind a real gateway: asked, answered, scaled and billed.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::core::v1::{Pod, Secret, Service};
use kube::ResourceExt as _;
use kube::api::{Api, DeleteParams, ListParams};
use serde_json::{Value, json};
use spillway_crds::{ApiKey, Model, ModelEndpoint, Phase, names::POOL_LABEL};
use spillway_lab::image::engine::WEIGHTS;
use spillway_lab::pip;
use spillway_lab::spillway::{Binaries, NAMESPACE, Spillway};
use spillway_lab::{Lab, LabOptions, Size, wait_for, wait_for_value};

use crate::{TENANT, canary, create, scale};

/// Longest time until a pod serves that loads a model, on a machine that does other things as well.
pub(crate) const START: Duration = Duration::from_secs(120);
const POOL: &str = "real";

/// A gateway, as its clients see it.
pub(crate) struct Client {
    http: reqwest::Client,
    address: SocketAddr,
    key: String,
}

impl Client {
    async fn chat(&self, more: Value) -> Result<reqwest::Response> {
        let mut body = json!({"model": "chat", "messages": [{"role": "user", "content": "Say hello."}], "max_tokens": 16, "seed": 1});
        for (name, value) in more.as_object().into_iter().flatten() {
            body[name] = value.clone();
        }
        let url = format!("http://{}/v1/chat/completions", self.address);
        self.http.post(url).bearer_auth(&self.key).json(&body).send().await.context("asking the gateway")
    }

    /// Asks a model; gives the status of the answer.
    pub(crate) async fn status(&self, model: &str) -> Result<u16> {
        Ok(self.chat(json!({"model": model})).await?.status().as_u16())
    }

    /// Whether it lists a model.
    pub(crate) async fn lists(&self, model: &str) -> Result<bool> {
        let url = format!("http://{}/v1/models/{model}", self.address);
        Ok(self.http.get(url).bearer_auth(&self.key).send().await?.status().is_success())
    }

    /// Asks a model, and finds the answer whole.
    pub(crate) async fn ask(&self, model: &str, stream: bool) -> Result<()> {
        // So short that two that wait for one another are over within a drain, on a machine that does other things as well.
        let answer = self.chat(json!({"model": model, "stream": stream, "max_tokens": 12})).await?;
        let status = answer.status();
        let text = answer.text().await.context("reading an answer")?;
        ensure!(status.is_success(), "an answer is {status}: {text}");
        let whole = if stream { text.ends_with("data: [DONE]\n\n") } else { text.contains("\"usage\"") };
        ensure!(whole && !text.contains("\"error\""), "an answer is cut: {text}");
        Ok(())
    }
}

#[tokio::test]
async fn a_real_model_is_served_on_what_is_held() -> Result<()> {
    let mut options = LabOptions::new(Size::Node).node_label(POOL_LABEL, POOL);
    // As often as a test has patience for; 15 s are the default.
    options.controller_manager_args.push("--horizontal-pod-autoscaler-sync-period=1s".to_owned());
    let lab = Lab::start(options).await?;
    let told = Box::pin(tell(&lab)).await;
    if told.is_err() {
        for args in [
            &["get", "all,me,apikeys,gpures", "-A"][..],
            &["describe", "pods", "-n", TENANT],
            &["get", "events", "-A"],
            &["logs", "-n", NAMESPACE, "-l", "app.kubernetes.io/component=gateway", "--tail=-1"],
            &["logs", "-n", TENANT, "-l", "spillway.dev/endpoint=chat", "--tail=200"],
        ] {
            eprintln!("{}", lab.kubectl(args).await.unwrap_or_default());
        }
    }
    told?;
    lab.stop()
}

async fn tell(lab: &Lab) -> Result<()> {
    let binaries = tokio::task::spawn_blocking(Binaries::find).await.context("looking for the binaries")??;
    lab.load_product_images(binaries.cli.parent().context("the folder of the binaries")?).await?;
    let image = lab.load_engine_image().await?;
    let values = [
        "image.operator.tag=dev",
        "image.agent.tag=dev",
        "image.gateway.tag=dev",
        "operator.replicas=1",
        "gateway.enabled=true",
        "gateway.replicas=2",
        "gateway.storage.kind=Scratch",
        "gateway.service.type=NodePort",
        // The lab's pods have no DNS.
        "usage.enabled=true",
        "image.usage.tag=dev",
        "usage.storage.kind=Scratch",
        "usage.clusterIP=10.96.0.90",
    ];
    let spillway = Spillway::install_with(lab, &values).await?;
    spillway.create_pool(POOL, json!({"sku": "lab-gpu", "nodeCheck": "Agent"})).await?;
    spillway.create_tenant(TENANT, &[TENANT], json!({})).await?;
    spillway.wait_holder(TENANT, START).await?;
    spillway.wait_unsold(POOL, 1, START).await?;
    // Parts of the one node: for those that serve all the time, and for the first replica of one that sleeps.
    for (name, count) in [("base", 4), ("nap", 2)] {
        let part = json!({"pool": POOL, "devices": {"count": count}, "exclusiveNodes": false});
        spillway.reserve(TENANT, name, part).await?;
        spillway.wait_phase(TENANT, name, Phase::Active, START).await?;
    }

    // The model, an endpoint and a key.
    let client = spillway.client();
    let version = |name: &str| {
        json!({
            "name": name, "contextLength": 2048, "source": {"path": WEIGHTS},
            "runtime": {"preset": "LlamaCpp", "image": image},
            // With a part of a node goes so much of its processors.
            "needs": {"devices": 2, "cpu": "500m", "memory": "1Gi", "startup": "2m"},
        })
    };
    // One that asks for a key that gateways do not have: it starts, says that it is well, and fails each request.
    let mut mute = version("mute");
    mute["runtime"]["args"] = json!(["--api-key", "nobody-has-it"]);
    let versions = [version("q4"), version("q4b"), mute];
    let model = json!({"metadata": {"name": "smollm2"}, "spec": {"capabilities": ["Chat", "Completions"], "versions": versions}});
    create::<Model>(&Api::all(client.clone()), model).await?;
    let endpoints: Api<ModelEndpoint> = Api::namespaced(client.clone(), TENANT);
    let spec =
        json!({"model": {"name": "smollm2", "version": "q4"}, "capacity": {"reservation": "base"}, "drain": "5s"});
    let begun = Instant::now();
    create(&endpoints, json!({"metadata": {"name": "chat"}, "spec": spec})).await?;
    let keys: Api<ApiKey> = Api::namespaced(client.clone(), TENANT);
    create(&keys, json!({"metadata": {"name": "ci"}, "spec": {"secretName": "ci-key"}})).await?;
    let limits = json!({"concurrency": 1});
    create(&keys, json!({"metadata": {"name": "strict"}, "spec": {"secretName": "strict-key", "limits": limits}}))
        .await?;
    lab.kubectl(&["wait", "--for=condition=Ready", "me/chat", "-n", TENANT, "--timeout=120s"]).await?;
    eprintln!("the model answers {:.1?} after its endpoint was made", begun.elapsed());
    lab.kubectl(&["rollout", "status", "statefulset/spillway-gateway", "-n", NAMESPACE, "--timeout=90s"]).await?;
    let gateway = Arc::new(find_gateway(&spillway).await?);

    // Asked in one piece, and as a stream.
    wait_for("the gateway to know the replica", START, || async {
        Ok(gateway.chat(json!({})).await?.status().as_u16() == 200)
    })
    .await?;
    let answer: Value = gateway.chat(json!({})).await?.json().await.context("an answer")?;
    let content = answer.pointer("/choices/0/message/content").and_then(Value::as_str).unwrap_or_default();
    ensure!(!content.is_empty(), "it says nothing: {answer}");
    eprintln!("it says: {content}");
    let stream = gateway.chat(json!({"stream": true})).await?;
    ensure!(
        stream.headers().get("content-type").is_some_and(|kind| kind == "text/event-stream"),
        "no stream: {stream:?}"
    );
    let text = stream.text().await.context("a stream")?;
    ensure!(text.ends_with("data: [DONE]\n\n") && !text.contains("\"usage\":{"), "the stream is {text}");
    // What the client knows, the engine does not, and the other way round.
    let refused = gateway.chat(json!({"max_tokens": "many"})).await?;
    ensure!(refused.status().as_u16() == 400, "nonsense is {}", refused.status());
    billed(&spillway, 3).await?;

    // The official client, unmodified, and embeddings beside.
    embed(&spillway, image).await?;
    sdk(&spillway, &gateway).await?;
    endpoints.delete("embed", &DeleteParams::default()).await.context("deleting an endpoint")?;

    // Two replicas, each on a device of its own, and one again without a request that is cut.
    lab.kubectl(&["scale", "me", "chat", "-n", TENANT, "--replicas=2"]).await?;
    lab.kubectl(&["wait", "--for=jsonpath={.status.readyReplicas}=2", "me/chat", "-n", TENANT, "--timeout=120s"])
        .await?;
    let params = ListParams::default().labels("spillway.dev/endpoint=chat");
    let pods = Api::<Pod>::namespaced(client, TENANT).list(&params).await?.items.len();
    ensure!(pods == 2, "{pods} pods serve");
    let long = gateway.chat(json!({"stream": true, "max_tokens": 200})).await?;
    lab.kubectl(&["scale", "me", "chat", "-n", TENANT, "--replicas=1"]).await?;
    let text = long.text().await.context("a stream over a scale-down")?;
    ensure!(text.ends_with("data: [DONE]\n\n"), "a stream was cut by a scale-down: {text}");
    let answer = gateway.chat(json!({})).await?;
    ensure!(answer.status().as_u16() == 200, "after the scale-down: {}", answer.status());

    scale::rolled_out(&spillway, &gateway).await?;
    canary::is_rolled_back(&spillway, &gateway).await?;

    // To none, and it says so.
    lab.kubectl(&["scale", "me", "chat", "-n", TENANT, "--replicas=0"]).await?;
    wait_for("nobody to serve", START, || async { Ok(gateway.chat(json!({})).await?.status().as_u16() == 503) })
        .await?;
    scale::cycles(&spillway, &gateway).await?;
    scale::lifted(&spillway).await?;
    stored(&spillway).await?;
    // Burst reservations have ended: their GPU time is with the usage service, posted by the operator's pod.
    wait_for("GPU time of what ended to be stored", START, || async {
        Ok(spillway.ledger().await?.stored.values().any(|stored| stored.bookings > 0))
    })
    .await?;
    let status = endpoints.get("chat").await?.status.unwrap_or_default();
    ensure!(
        status.conditions.iter().any(|one| one.reason == "ScaledToZero"),
        "its conditions: {:?}",
        status.conditions
    );
    scale::leaves_nothing_behind(&spillway).await
}

/// Another model of the same weights, which makes vectors of texts.
async fn embed(spillway: &Spillway<'_>, image: &str) -> Result<()> {
    let version = json!({
        "name": "q4", "contextLength": 2048, "source": {"path": WEIGHTS},
        "runtime": {"preset": "LlamaCpp", "image": image, "args": ["--embeddings", "--pooling", "mean"]},
        "needs": {"devices": 1, "cpu": "250m", "memory": "1Gi", "startup": "2m"},
    });
    let model =
        json!({"metadata": {"name": "vectors"}, "spec": {"capabilities": ["Embeddings"], "versions": [version]}});
    create::<Model>(&Api::all(spillway.client()), model).await?;
    let spec =
        json!({"model": {"name": "vectors", "version": "q4"}, "capacity": {"reservation": "base"}, "drain": "5s"});
    let endpoints: Api<ModelEndpoint> = Api::namespaced(spillway.client(), TENANT);
    create(&endpoints, json!({"metadata": {"name": "embed"}, "spec": spec})).await?;
    let wait = ["wait", "--for=condition=Ready", "me/embed", "-n", TENANT, "--timeout=120s"];
    spillway.lab().kubectl(&wait).await.map(drop)
}

/// Runs the script of the official client.
async fn sdk(spillway: &Spillway<'_>, gateway: &Client) -> Result<()> {
    let site = tokio::task::spawn_blocking(pip::openai).await.context("looking for OpenAI's client")??;
    let strict = read_key(spillway, "strict-key").await?;
    let output = tokio::process::Command::new("python3")
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/serving/sdk.py"))
        .env("PYTHONPATH", site)
        .env("GATEWAY", format!("http://{}", gateway.address))
        .env("OPENAI_API_KEY", &gateway.key)
        .env("STRICT_KEY", strict)
        .output()
        .await
        .context("running the script of the official client")?;
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    eprintln!("{out}");
    ensure!(output.status.success(), "the official client is not content:\n{out}\n{err}");
    Ok(())
}

/// The key in a Secret, once it is there.
async fn read_key(spillway: &Spillway<'_>, secret: &str) -> Result<String> {
    let secrets = Api::<Secret>::namespaced(spillway.client(), TENANT);
    wait_for_value("the key", START, || async {
        let data = secrets.get_opt(secret).await?.and_then(|secret| secret.data).unwrap_or_default();
        data.get("OPENAI_API_KEY").map(|key| String::from_utf8(key.0.clone()).context("a key")).transpose()
    })
    .await
}

/// What the gateway has billed is stored by the usage service, every token of it, and told by `spillway usage`.
async fn stored(spillway: &Spillway<'_>) -> Result<()> {
    let cli = spillway.binaries().cli.clone();
    let kubeconfig = spillway.lab().kubeconfig();
    wait_for("every record to be stored", START, || async {
        Ok(metric(spillway, "spillway_gateway_log_unshipped", "").await? == 0)
    })
    .await?;
    let billed = metric(spillway, "spillway_gateway_tokens_total", "kind=\"completion\"").await?;
    let requests = metric(spillway, "spillway_gateway_requests_total", "").await?;
    let output = tokio::process::Command::new(cli)
        .args(["usage", "--from", "1h", "--by", "reservation", "-o", "json"])
        .env("KUBECONFIG", kubeconfig)
        .output()
        .await
        .context("running spillway usage")?;
    ensure!(output.status.success(), "spillway usage: {}", String::from_utf8_lossy(&output.stderr));
    let usage: Value = serde_json::from_slice(&output.stdout).context("the JSON of spillway usage")?;
    let rows = usage["tokens"]["rows"].as_array().with_context(|| format!("no tokens in {usage}"))?;
    let sum = |field: &str| rows.iter().filter_map(|row| row[field].as_u64()).sum::<u64>();
    ensure!(sum("completionTokens") == billed, "{billed} tokens are billed, and stored are {usage}");
    ensure!(sum("requests") == requests, "{requests} requests are billed, and stored are {usage}");
    ensure!(usage["rows"].as_array().is_some_and(|rows| !rows.is_empty()), "no GPU time in {usage}");
    eprintln!("{}", usage["tokens"]);
    // A copy of the store is whole while the service runs on.
    let store = |more: &[&'static str]| {
        let program = ["exec", "-n", NAMESPACE, "spillway-usage-0", "--", "spillway-usage", "--sqlite"];
        [&program[..], more].concat()
    };
    let copy = "/var/lib/spillway-usage/copy.sqlite";
    spillway.lab().kubectl(&store(&["/var/lib/spillway-usage/usage.sqlite", "backup", "--to", copy])).await?;
    let checked = spillway.lab().kubectl(&store(&[copy, "check"])).await?;
    ensure!(checked.contains(&requests.to_string()), "{requests} requests are stored, and the copy has {checked}");
    Ok(())
}

/// The sum of a metric over the gateways and all its labels but those that lack a text.
pub(crate) async fn metric(spillway: &Spillway<'_>, name: &str, label: &str) -> Result<u64> {
    let texts = metrics(spillway).await?;
    let lines = texts.iter().flat_map(|text| text.lines());
    let lines = lines.filter(|line| line.starts_with(name) && line.contains(label));
    Ok(lines.filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok()).sum())
}

/// The metrics of each gateway.
pub(crate) async fn metrics(spillway: &Spillway<'_>) -> Result<Vec<String>> {
    let pods = Api::<Pod>::namespaced(spillway.client(), NAMESPACE);
    let params = ListParams::default().labels("app.kubernetes.io/component=gateway");
    Box::pin(wait_for_value("the metrics of gateways", START, || async {
        let mut texts = Vec::new();
        for pod in pods.list(&params).await?.items {
            let path = format!("/api/v1/namespaces/{NAMESPACE}/pods/{}:8080/proxy/metrics", pod.name_any());
            texts.push(spillway.lab().kubectl(&["get", "--raw", &path]).await?);
        }
        Ok(Some(texts))
    }))
    .await
}

/// The gateway's address, and the key.
async fn find_gateway(spillway: &Spillway<'_>) -> Result<Client> {
    let services = Api::<Service>::namespaced(spillway.client(), NAMESPACE);
    let spec = services.get("spillway-gateway").await.context("the gateway's Service")?.spec;
    let ports = spec.and_then(|spec| spec.ports).unwrap_or_default();
    let port = ports.first().and_then(|port| port.node_port).context("no NodePort")?;
    let address = SocketAddr::from((spillway.lab().node_address(0), u16::try_from(port).context("a port")?));
    let key = read_key(spillway, "ci-key").await?;
    // Longer than a gateway holds a request.
    let http = reqwest::Client::builder().timeout(START * 3).build().context("an HTTP client")?;
    Ok(Client { http, address, key })
}

/// That the gateway has billed at least so many requests, as complete, and as many tokens as an engine can have made.
async fn billed(spillway: &Spillway<'_>, least: u64) -> Result<()> {
    let complete = metric(spillway, "spillway_gateway_requests_total", "outcome=\"complete\"").await?;
    let prompt = metric(spillway, "spillway_gateway_tokens_total", "kind=\"prompt\"").await?;
    let completion = metric(spillway, "spillway_gateway_tokens_total", "kind=\"completion\"").await?;
    ensure!(complete >= least, "{complete} requests are billed as complete");
    ensure!(prompt >= complete && (1..=16 * complete).contains(&completion), "{prompt} and {completion} tokens");
    Ok(())
}
