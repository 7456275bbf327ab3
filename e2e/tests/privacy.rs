//! What a prompt says and what a model answers is nowhere but on its way: a real gateway and a real usage service on loopback, both logging all that they can,
//! and a collector's edge that keeps what it is told. A canary goes through every kind of failure, the kill of the gateway among them, and then
//! logs, metrics, traces, the log's files and the store are searched for it, and for the secret of the key.

#![allow(clippy::indexing_slicing, reason = "a field that a JSON value lacks reads as null")]

use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use futures::StreamExt as _;
use http_body_util::{BodyExt as _, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::client::legacy::{Client, connect::HttpConnector};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use serde_json::{Value, json};
use spillway_lab::process::ProcessSpec;
use spillway_lab::spillway::{Binaries, CatalogueOptions, write_catalogue};
use spillway_lab::{free_port, wait_for};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

const CANARY: &str = "canary7f3a9b";
const BOUND: Duration = Duration::from_secs(30);

type Answer = Response<UnsyncBoxBody<Bytes, std::io::Error>>;

/// An engine that does what the request's `user` says and repeats what it was asked wherever it can, and a collector beside it.
#[derive(Clone, Default)]
struct Edge {
    /// What the collector was told.
    told: Arc<Mutex<Vec<u8>>>,
}

fn full(status: u16, text: String) -> Result<Answer> {
    let body = Full::new(Bytes::from(text)).map_err(|never: Infallible| match never {}).boxed_unsync();
    Ok(Response::builder().status(status).header("content-type", "application/json").body(body)?)
}

fn usage(prompt: &Value) -> Value {
    json!({"prompt_tokens": prompt, "completion_tokens": 2, "total_tokens": 9})
}

/// A stream of pieces with the canary, which ends as it should, breaks off, or never ends.
fn stream(how: &str) -> Result<Answer> {
    let choice = json!({"index": 0, "delta": {"content": CANARY}});
    let end = json!({"index": 0, "delta": {}, "finish_reason": CANARY});
    let used = if how == "absurd" { usage(&json!(CANARY)) } else { usage(&json!(7)) };
    let chunk = |value: Value| Ok(Frame::data(Bytes::from(format!("data: {value}\n\n"))));
    let mut pieces = vec![chunk(json!({"choices": [choice]})), chunk(json!({"choices": [choice]}))];
    match how {
        "breaks" => pieces.push(Err(std::io::Error::other(CANARY))),
        "fails" => pieces.push(chunk(json!({"error": {"message": CANARY}}))),
        "hangs" => {}
        _ => {
            pieces.push(chunk(json!({"choices": [end]})));
            pieces.push(chunk(json!({"choices": [], "usage": used})));
            pieces.push(Ok(Frame::data(Bytes::from_static(b"data: [DONE]\n\n"))));
        }
    }
    let rest =
        if how == "hangs" { futures::stream::pending().left_stream() } else { futures::stream::empty().right_stream() };
    let pieces = futures::stream::iter(pieces).then(|piece| async {
        // What was written before goes before the connection does.
        let pause = if piece.is_err() { Duration::from_millis(100) } else { Duration::ZERO };
        tokio::time::sleep(pause).await;
        piece
    });
    let body = StreamBody::new(pieces.chain(rest)).boxed_unsync();
    Ok(Response::builder().header("content-type", "text/event-stream").body(body)?)
}

impl Edge {
    async fn start(self) -> Result<SocketAddr> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let edge = self.clone();
                tokio::spawn(async move {
                    let service = service_fn(move |request| {
                        let edge = edge.clone();
                        async move { edge.answer(request).await.map_err(std::io::Error::other) }
                    });
                    let builder = auto::Builder::new(TokioExecutor::new());
                    let _ = builder.serve_connection(TokioIo::new(stream), service).await;
                });
            }
        });
        Ok(address)
    }

    async fn answer(self, request: Request<Incoming>) -> Result<Answer> {
        let (head, body) = request.into_parts();
        let body = body.collect().await?.to_bytes();
        if matches!(head.uri.path(), "/v1/traces" | "/v1/metrics") {
            let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
            told.extend_from_slice(format!("{head:?}").as_bytes());
            told.extend_from_slice(&body);
            return full(200, String::new());
        }
        let asked: Value = serde_json::from_slice(&body)?;
        let text = String::from_utf8_lossy(&body);
        let error = json!({"error": {"message": text, "type": CANARY, "code": CANARY}}).to_string();
        match asked["user"].as_str().unwrap_or_default() {
            "refuses" => full(400, error),
            "unfit" => full(422, error),
            "breaks down" => full(500, error),
            "is busy" => full(503, error),
            "goes away" => anyhow::bail!("{text}"),
            "answers nonsense" => full(200, format!("<html>{text}")),
            how if asked["stream"] == json!(true) => stream(how),
            _ => {
                let choice =
                    json!({"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": CANARY});
                full(
                    200,
                    json!({"id": CANARY, "model": CANARY, "choices": [choice], "usage": usage(&json!(7))}).to_string(),
                )
            }
        }
    }
}

fn free() -> Result<SocketAddr> {
    Ok(SocketAddr::from((Ipv4Addr::LOCALHOST, free_port(Ipv4Addr::LOCALHOST)?)))
}

/// The canary wherever a request of OpenAI's has text.
fn asked(model: &str, how: &str, stream: bool) -> Value {
    json!({
        "model": model, "user": how, "stream": stream, CANARY: CANARY,
        "messages": [{"role": "system", "content": CANARY}, {"role": "user", "content": [{"type": "text", "text": CANARY}]}],
        "tools": [{"type": "function", "function": {"name": CANARY, "description": CANARY}}],
        "metadata": {"canary": CANARY}, "stop": [CANARY],
    })
}

struct Stage {
    dir: PathBuf,
    gateway: PathBuf,
    args: Vec<String>,
    collector: SocketAddr,
    listen: SocketAddr,
    admin: SocketAddr,
    key: String,
    http: reqwest::Client,
}

impl Stage {
    async fn start_gateway(&self) -> Result<std::process::Child> {
        let child = ProcessSpec::new("gateway", &self.gateway, self.args.clone())
            .env("RUST_LOG", "trace")
            .env("OTEL_EXPORTER_OTLP_ENDPOINT", format!("http://{}", self.collector))
            .env("OTEL_BSP_SCHEDULE_DELAY", "100")
            .env("OTEL_METRIC_EXPORT_INTERVAL", "200")
            .start_child(&self.dir.join("gateway.log"), false)?;
        self.ready(self.admin).await?;
        Ok(child)
    }

    async fn ready(&self, admin: SocketAddr) -> Result<()> {
        let is_ready = || async {
            let asking = self.http.get(format!("http://{admin}/readyz")).send();
            Ok(asking.await.is_ok_and(|answer| answer.status().is_success()))
        };
        wait_for("a process to be ready", BOUND, is_ready).await
    }

    fn post(&self, body: impl Into<reqwest::Body>) -> reqwest::RequestBuilder {
        let request = self.http.post(format!("http://{}/v1/chat/completions", self.listen)).bearer_auth(&self.key);
        request.header("content-type", "application/json").body(body)
    }

    /// The status and the text of an answer; 0, and why, where it broke off.
    async fn send(&self, request: reqwest::RequestBuilder) -> (u16, String) {
        let answer = match request.send().await {
            Ok(answer) => answer,
            Err(error) => return (0, format!("{:#}", anyhow::Error::from(error))),
        };
        let status = answer.status().as_u16();
        (status, answer.text().await.unwrap_or_default())
    }

    /// Bytes as they are, on a connection of their own.
    async fn raw(&self, bytes: &str) -> Result<()> {
        let mut connection = TcpStream::connect(self.listen).await?;
        // The gateway may have answered and closed in the middle.
        let _ = connection.write_all(bytes.as_bytes()).await;
        let _ = connection.shutdown().await;
        let mut answer = Vec::new();
        let _ = tokio::time::timeout(BOUND, connection.read_to_end(&mut answer)).await.context("no end")?;
        Ok(())
    }

    /// A request that is good but for its key.
    fn keyed(&self, key: &str) -> reqwest::RequestBuilder {
        let request = self.http.post(format!("http://{}/v1/chat/completions", self.listen)).bearer_auth(key);
        request.json(&asked("chat", "answers", false))
    }

    async fn get(&self, url: String) -> Result<String> {
        Ok(self.http.get(url).send().await?.text().await?)
    }
}

/// A text as it may have been written: as it is, and as bytes are shown.
fn forms(text: &str) -> Vec<String> {
    let hex: String = text.bytes().map(|byte| format!("{byte:02x}")).collect();
    let decimal: Vec<String> = text.bytes().map(|byte| byte.to_string()).collect();
    vec![text.to_owned(), hex, decimal.join(", "), decimal.join(",")]
}

fn has(bytes: &[u8], text: &str) -> bool {
    bytes.windows(text.len()).any(|window| window.eq_ignore_ascii_case(text.as_bytes()))
}

/// All files below a folder.
fn files(folder: &Path) -> Result<Vec<(PathBuf, Vec<u8>)>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            found.extend(files(&path)?);
        } else {
            let bytes = std::fs::read(&path)?;
            found.push((path, bytes));
        }
    }
    Ok(found)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_asked_and_answered_is_written_nowhere() -> Result<()> {
    let binaries = tokio::task::spawn_blocking(Binaries::find).await??;
    let folder = tempfile::tempdir()?;
    let dir = folder.path().to_owned();
    let edge = Edge::default();
    let address = edge.clone().start().await?;
    let options = CatalogueOptions {
        endpoint: "chat",
        engine: address,
        key_limits: "{requestsPerMinute: 300}",
        tenant_limits: "{}",
    };
    let (key, catalogue) = write_catalogue(&binaries.gateway, &dir, options).await?;
    // One that nobody reaches, and one that has no replica.
    let nobody = free()?;
    let more = format!(
        "{{namespace: acme, name: away, tenant: acme, model: away, version: one, capabilities: [Chat], contextLength: 4096, replicas: [{{name: one, address: \"{nobody}\"}}]}}, {{namespace: acme, name: none, tenant: acme, model: none, version: one, capabilities: [Chat], contextLength: 4096, replicas: []}}, "
    );
    let text = std::fs::read_to_string(&catalogue)?.replace("endpoints: [", &format!("endpoints: [{more}"));
    std::fs::write(&catalogue, text)?;

    let (store_listen, store_reports, store_admin) = (free()?, free()?, free()?);
    let (listen, admin) = (free()?, free()?);
    let args = [
        "--name=gateway-0".to_owned(),
        format!("--catalogue={}", catalogue.display()),
        format!("--log-directory={}", dir.join("log").display()),
        format!("--listen={listen}"),
        format!("--admin={admin}"),
        format!("--usage=http://{store_listen}"),
        "--hold-seconds=1".to_owned(),
    ];
    let http = reqwest::Client::builder().timeout(BOUND).pool_max_idle_per_host(0).build()?;
    let stage = Stage {
        dir: dir.clone(),
        gateway: binaries.gateway.clone(),
        args: args.into(),
        collector: address,
        listen,
        admin,
        key: key.clone(),
        http,
    };
    let service = binaries.gateway.with_file_name("spillway-usage");
    let store = [
        format!("--sqlite={}", dir.join("usage.sqlite").display()),
        format!("--listen={store_listen}"),
        format!("--reports={store_reports}"),
        format!("--admin={store_admin}"),
    ];
    let service = ProcessSpec::new("usage", &service, store).env("RUST_LOG", "trace");
    let mut service = service.start_child(&dir.join("usage.log"), false)?;
    stage.ready(store_admin).await?;
    let mut gateway = stage.start_gateway().await?;

    // What is good, by HTTP/1.1 and HTTP/2, with the canary in headers and query as well.
    for stream in [true, false] {
        let request = stage.post(asked("chat", "answers", stream).to_string()).header("x-canary", CANARY);
        let (status, text) = stage.send(request.header("baggage", CANARY).header("traceparent", CANARY)).await;
        ensure!(status == 200 && text.contains(CANARY), "{status}: {text}");
    }
    let h2: Client<_, Full<Bytes>> = Client::builder(TokioExecutor::new()).http2_only(true).build(HttpConnector::new());
    let request = Request::post(format!("http://{listen}/v1/chat/completions?{CANARY}"))
        .header("authorization", format!("Bearer {key}"))
        .header("x-canary", CANARY)
        .body(Full::from(asked("chat", "answers", true).to_string()))?;
    let answer = h2.request(request).await?.into_body().collect().await?.to_bytes();
    ensure!(has(&answer, CANARY), "{answer:?}");

    // Engines that refuse, fail, break off, and say what they were asked.
    for (how, stream, expected) in [
        ("refuses", false, 400),
        ("unfit", true, 422),
        ("breaks down", false, 502),
        ("is busy", false, 503),
        ("goes away", false, 502),
        ("answers nonsense", false, 200),
        ("absurd", true, 200),
        ("fails", true, 200),
        ("breaks", true, 200),
    ] {
        let (status, text) = stage.send(stage.post(asked("chat", how, stream).to_string())).await;
        ensure!(status == expected, "{how}: {status} {text}");
        // One that is busy is left alone for a moment.
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    for (model, expected) in [("away", 503), ("none", 503), (CANARY, 404), ("acme/canary7f3a9b", 404)] {
        let (status, text) = stage.send(stage.post(asked(model, "answers", true).to_string())).await;
        ensure!(status == expected, "{model}: {status} {text}");
    }
    // A client that goes away.
    let mut leaves = stage.post(asked("chat", "hangs", true).to_string()).send().await?;
    ensure!(leaves.chunk().await?.is_some(), "nothing came");
    drop(leaves);

    // Bodies and heads that are refused.
    let good = asked("chat", "answers", false).to_string();
    let half = good.get(..good.len() - 1).context("a body")?.to_owned();
    let deep = format!("{}\"{CANARY}\"{}", "[".repeat(5_000), "]".repeat(5_000));
    let twice = good.replacen('{', &format!("{{\"model\": \"{CANARY}\", "), 1);
    let wrong = good.replace("\"stream\":false", &format!("\"stream\":\"{CANARY}\""));
    for body in [half, format!("{CANARY}{good}"), deep, twice, wrong] {
        let (status, text) = stage.send(stage.post(body)).await;
        ensure!(status == 400, "{status}: {text}");
    }
    let (status, _) = stage.send(stage.post(CANARY.repeat(3 << 20))).await;
    ensure!(matches!(status, 0 | 413 | 400), "too large a body: {status}");
    let other = stage.http.post(format!("http://{listen}/v1/chat/completions")).bearer_auth(&key).body(good.clone());
    let (status, _) = stage.send(other.header("content-type", format!("text/{CANARY}"))).await;
    ensure!(status == 415, "another type: {status}");
    let (status, _) = stage.send(stage.post(good.clone()).header("x-canary", CANARY.repeat(5_000))).await;
    ensure!(status == 431, "too large a head: {status}");
    let authorization = format!("authorization: Bearer {key}\r\ncontent-type: application/json");
    for raw in [
        format!("{CANARY}\r\n\r\n"),
        format!("{CANARY} /{CANARY} HTTP/1.1\r\n\r\n"),
        format!(
            "POST /v1/chat/completions HTTP/1.1\r\nhost: a\r\n{authorization}\r\ncontent-length: 999999999999\r\n\r\n{CANARY}"
        ),
        format!(
            "POST /v1/chat/completions HTTP/1.1\r\nhost: a\r\n{authorization}\r\ncontent-length: 999\r\n\r\n{CANARY}"
        ),
        format!(
            "POST /v1/chat/completions HTTP/1.1\r\nhost: a\r\n{authorization}\r\ntransfer-encoding: chunked\r\n\r\n{CANARY}\r\n{CANARY}"
        ),
        format!("GET /v1/{CANARY}?{CANARY} HTTP/1.1\r\nhost: {CANARY}\r\n\r\n"),
    ] {
        stage.raw(&raw).await?;
    }

    // Keys: forged, with another secret, and cut short. And the real one where it does not belong.
    // Its secret is all behind the third dash.
    let secret = key.splitn(4, '-').nth(3).context("a key")?;
    let id = key.strip_suffix(secret).context("a key")?;
    let other = format!("{id}{}", secret.chars().rev().collect::<String>());
    let short = key.get(..key.len() - 3).context("a key")?;
    for wrong in [CANARY, &format!("sk-spw-{CANARY}"), &other, short] {
        let (status, text) = stage.send(stage.keyed(wrong)).await;
        ensure!(status == 401, "{wrong}: {status} {text}");
    }
    stage.send(stage.post(asked(&key, "answers", false).to_string())).await;
    stage.get(format!("http://{listen}/v1/models/{key}")).await?;

    // Killed in the middle of an answer; what it had begun is billed at its start.
    let mut cut = stage.post(asked("chat", "hangs", true).to_string()).send().await?;
    ensure!(cut.chunk().await?.is_some(), "nothing came");
    gateway.kill()?;
    gateway.wait()?;
    let mut gateway = stage.start_gateway().await?;
    let (status, text) = stage.send(stage.post(asked("chat", "answers", false).to_string())).await;
    ensure!(status == 200, "{status}: {text}");

    // A store that is away, and does not understand.
    let stored = || async {
        let metrics = stage.get(format!("http://{admin}/metrics")).await?;
        Ok(metrics.lines().any(|line| line == "spillway_gateway_log_unshipped 0"))
    };
    wait_for("all to be stored", BOUND, stored).await?;
    stage.http.post(format!("http://{store_listen}/v1/records")).body(CANARY).send().await?;
    stage.get(format!("http://{store_reports}/v1/usage?tenant={CANARY}&by={CANARY}")).await?;
    let told = || async {
        let told = edge.told.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(has(&told, "chat acme/chat") && has(&told, "gen_ai.server.request.duration"))
    };
    wait_for("the collector to be told", BOUND, told).await?;

    let mut seen: Vec<(String, Vec<u8>)> = Vec::new();
    for (what, url) in [
        ("the gateway's metrics", format!("http://{admin}/metrics")),
        ("its load", format!("http://{admin}/load?after=99")),
        ("the service's metrics", format!("http://{store_admin}/metrics")),
        ("what it says of usage", format!("http://{store_reports}/v1/usage?by=tenant,model,key")),
    ] {
        seen.push((what.to_owned(), stage.get(url).await?.into_bytes()));
    }
    // Also what is told and written last.
    for child in [&mut gateway, &mut service] {
        let pid = nix::unistd::Pid::from_raw(i32::try_from(child.id())?);
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM)?;
        let ended = tokio::task::block_in_place(|| child.wait())?;
        ensure!(ended.success(), "a process ended by {ended}");
    }
    seen.push((
        "traces and metrics that were told".to_owned(),
        edge.told.lock().unwrap_or_else(PoisonError::into_inner).clone(),
    ));
    for (path, bytes) in files(&dir)? {
        seen.push((path.strip_prefix(&dir)?.display().to_string(), bytes));
    }
    // What is searched is there.
    for (what, text) in [
        ("gateway.log", "TRACE"),
        ("gateway.log", "an engine went away before it answered"),
        ("usage.log", "asked to end"),
        ("usage.sqlite", "acme"),
        ("log/", "acme"),
        ("its load", "chat"),
        ("the gateway's metrics", "gen_ai_client_token_usage_count"),
        ("traces and metrics", "engine_refused"),
        ("what it says of usage", "acme"),
    ] {
        let found = seen.iter().any(|(name, bytes)| name.starts_with(what) && has(bytes, text));
        ensure!(
            found,
            "{text} is not in {what}: this test searches elsewhere. There is {:?}",
            seen.iter().map(|one| &one.0).collect::<Vec<_>>()
        );
    }
    let mut found = Vec::new();
    for (what, bytes) in &seen {
        for form in [forms(CANARY), forms(secret)].concat() {
            if has(bytes, &form) {
                let text = String::from_utf8_lossy(bytes);
                let line = text.lines().find(|line| line.contains(&form)).unwrap_or_default();
                found.push(format!("{what}: {}", line.chars().take(400).collect::<String>()));
            }
        }
    }
    ensure!(found.is_empty(), "{}", found.join("\n"));
    Ok(())
}
