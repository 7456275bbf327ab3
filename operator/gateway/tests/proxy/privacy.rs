//! What a prompt says and what a model answers is in no log, no metric, no trace, no record and no file. The same is shown of processes, of a kill and of the
//! usage service's store in e2e/tests/privacy.rs; here are the ways that only a catalogue of a cluster has.

use std::io::Write;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use http_body_util::BodyExt as _;
use hyper::StatusCode;
use serde_json::{Value, json};
use spillway_gateway::admission::Limits;
use spillway_gateway::catalogue::Absence;
use spillway_gateway::proxy::Stage as Phase;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tracing::Level;

use crate::collector::{Collector, otlp};
use crate::engine::{Engine, Script};
use crate::stage::{Setting, Stage, chat, text, until};

const CANARY: &str = "canary7f3a";

/// What is logged, at every level.
#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Lines {
    fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }
}

/// The canary as a prompt, as a tool, as the name of the user, and as something unknown.
fn asked(more: &Value) -> String {
    let mut body = chat(json!({
        "messages": [{"role": "system", "content": CANARY}, {"role": "user", "content": [{"type": "text", "text": CANARY}]}],
        "tools": [{"type": "function", "function": {"name": CANARY}}],
        "user": CANARY,
        CANARY: CANARY,
    }));
    let members = body.as_object_mut().unwrap();
    members.extend(more.as_object().unwrap().clone());
    body.to_string()
}

fn files_with(folder: &Path, canary: &str) -> Vec<std::path::PathBuf> {
    let paths = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let has = |path: &std::path::PathBuf| {
        std::fs::read(path).unwrap().windows(canary.len()).any(|bytes| bytes == canary.as_bytes())
    };
    paths.filter(has).collect()
}

/// All that is logged on this thread, at every level, until the guard is dropped.
fn log() -> (Lines, tracing::subscriber::DefaultGuard) {
    let lines = Lines::default();
    let subscriber = tracing_subscriber::fmt().with_max_level(Level::TRACE).with_writer({
        let lines = lines.clone();
        move || lines.clone()
    });
    (lines, tracing::subscriber::set_default(subscriber.finish()))
}

/// What a collector is told, as bytes.
async fn told(collector: &Collector, stage: &Stage) -> Vec<u8> {
    stage.at_rest().await;
    let telemetry = Arc::clone(&stage.telemetry);
    tokio::task::spawn_blocking(move || telemetry.end(Duration::from_secs(10))).await.unwrap();
    collector.told().bytes
}

fn has(bytes: &[u8], text: &str) -> bool {
    bytes.windows(text.len()).any(|window| window == text.as_bytes())
}

/// Requests that wait for a replica: until the time is over, until no more may, until their key or their model goes, until the gateway ends; and what is told of
/// them meanwhile.
#[tokio::test]
async fn what_waits_is_written_nowhere() {
    let (lines, _guard) = log();
    let collector = Collector::start().await;
    let mut setting = Setting { otlp: Some(otlp(collector.address)), ..Setting::default() };
    setting.limits.hold = Duration::from_millis(300);
    setting.limits.heartbeat = Duration::from_millis(20);
    setting.limits.held.of_endpoint = 2;
    let stage = Arc::new(Stage::with(setting, &[]).await);
    let asleep = |absence| {
        let mut now = crate::stage::catalogue(Limits::default(), &[]);
        for served in now.endpoints.values_mut() {
            let served = Arc::make_mut(served);
            (served.wanted, served.absence) = (0, absence);
        }
        now
    };
    stage.catalogue.send_replace(Arc::new(asleep(Absence::Starts)));
    let ask = |stream: bool| {
        let stage = Arc::clone(&stage);
        let body = asked(&json!({"stream": stream}));
        tokio::spawn(async move {
            let answer = stage.send(stage.request("/v1/chat/completions", body)).await;
            (answer.status().as_u16(), text(answer).await)
        })
    };
    let mut loads = Vec::new();
    let held = async |count: u64, loads: &mut Vec<String>| {
        let line = format!("spillway_gateway_held {count}\n");
        until("requests to be held", || stage.gateway.metrics().contains(&line)).await;
        loads.push(serde_json::to_string(&stage.gateway.load(u64::MAX).await).unwrap());
    };
    // For too long, and too many.
    let waiting = [ask(true), ask(false)];
    held(2, &mut loads).await;
    assert_eq!(ask(false).await.unwrap().0, 503);
    for one in waiting {
        assert!(one.await.unwrap().1.contains("model_starting"));
    }
    // Its client goes away; its model does, or cannot start any more; its key is revoked.
    let gone = ask(true);
    held(1, &mut loads).await;
    gone.abort();
    let mut unshared = asleep(Absence::Starts);
    unshared.endpoints.clear();
    let mut revoked = asleep(Absence::Starts);
    revoked.keys = Default::default();
    for (now, status) in [(unshared, 404), (asleep(Absence::NoCapacity), 503), (asleep(Absence::Stalled), 503)] {
        stage.catalogue.send_replace(Arc::new(asleep(Absence::Starts)));
        held(0, &mut loads).await;
        let waiting = ask(false);
        held(1, &mut loads).await;
        stage.catalogue.send_replace(Arc::new(now));
        assert_eq!(waiting.await.unwrap().0, status);
    }
    stage.catalogue.send_replace(Arc::new(asleep(Absence::Starts)));
    let waiting = ask(false);
    held(1, &mut loads).await;
    // A replica comes, and the key is gone by then.
    let engine = Engine::start(Script { says: CANARY, ..Script::default() }).await;
    let mut served = crate::stage::catalogue(Limits::default(), &[engine.address]);
    served.keys = revoked.keys;
    stage.catalogue.send_replace(Arc::new(served));
    assert_eq!(waiting.await.unwrap().0, 401);
    // The gateway ends.
    stage.catalogue.send_replace(Arc::new(asleep(Absence::Starts)));
    held(0, &mut loads).await;
    let waiting = ask(true);
    held(1, &mut loads).await;
    stage.phase.send_replace(Phase::Cutting);
    // Its connection may end before it is told.
    let _ = waiting.await;

    let told = told(&collector, &stage).await;
    for kind in ["model_starting", "client_gone", "model_not_found", "model_without_capacity", "invalid_api_key"] {
        assert!(has(&told, kind), "{kind} is not told");
    }
    assert!(!has(&told, CANARY));
    let (lines, loads) = (lines.text(), loads.concat());
    assert!(!lines.is_empty() && !lines.contains(CANARY), "{lines}");
    assert!(loads.contains("\"held\":2") && !loads.contains(CANARY), "{loads}");
    assert!(!stage.gateway.metrics().contains(CANARY));
    assert_eq!(files_with(stage.log.path(), CANARY), Vec::<std::path::PathBuf>::new());
}

#[tokio::test]
async fn what_is_asked_and_answered_is_written_nowhere() {
    let (lines, _guard) = log();
    let collector = Collector::start().await;
    let says = Script { says: CANARY, ..Script::default() };
    let engine = Engine::start(says.clone()).await;
    let limits = Limits { requests_per_minute: Some(100), ..Limits::default() };
    let stage = {
        let otlp = Some(otlp(collector.address));
        Stage::with(Setting { key: limits, otlp, ..Setting::default() }, &[&engine]).await
    };
    let send = |more: Value| stage.send(stage.request("/v1/chat/completions", asked(&more)));

    // It comes through.
    for stream in [true, false] {
        let answer = text(send(json!({"stream": stream})).await).await;
        assert!(answer.contains(CANARY), "{answer}");
    }
    assert!(engine.seen().bodies.iter().all(|body| body["user"] == CANARY));

    // The engine says no, and says to what; fails; breaks off; answers nothing, in old connections and new ones.
    let body = r#"{"error":{"message":"canary7f3a is no prompt","type":"canary7f3a"}}"#;
    for status in [400, 422, 500, 503] {
        engine.set(Script { refuses: Some((status, body)), ..says.clone() });
        text(send(json!({})).await).await;
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    engine.set(Script { breaks_after: Some(2), ..says.clone() });
    text(send(json!({"stream": true})).await).await;
    engine.set(Script { answers: Some(0), ..says.clone() });
    text(send(json!({})).await).await;
    // It says nothing of what it used, and something absurd.
    engine.set(Script { usage: None, ..says.clone() });
    text(send(json!({"stream": true})).await).await;
    engine.set(Script { usage: Some(json!({"prompt_tokens": CANARY})), ..says.clone() });
    text(send(json!({"stream": true})).await).await;

    // The client goes away.
    engine.set(Script { pause: Duration::from_millis(20), tokens: 500, ..says.clone() });
    let mut leaves = send(json!({"stream": true})).await.into_body();
    leaves.frame().await.unwrap().unwrap();
    drop(leaves);

    // What is no request, and not this key's.
    let whole = asked(&json!({}));
    for wrong in [&whole[..whole.len() - 1], &format!("{CANARY}{whole}"), &whole.replacen("chat", CANARY, 1)] {
        let answer = stage.send(stage.request("/v1/chat/completions", wrong.to_owned())).await;
        assert!(answer.status().is_client_error(), "{}", answer.status());
    }
    for path in ["/v1/canary7f3a", "/v1/models/canary7f3a", "/v1/chat/completions?canary7f3a"] {
        text(stage.send(stage.request(path, whole.clone())).await).await;
    }
    let mut forged = stage.request("/v1/chat/completions", whole.clone());
    forged.headers_mut().insert("authorization", "Bearer sk-spw-canary7f3a".parse().unwrap());
    forged.headers_mut().insert("traceparent", CANARY.parse().unwrap());
    assert_eq!(stage.send(forged).await.status(), StatusCode::UNAUTHORIZED);
    // It is no HTTP at all, or ends in the middle.
    for raw in [
        format!("{CANARY}\r\n\r\n"),
        format!("POST /v1/chat/completions HTTP/1.1\r\ncontent-length: 999\r\n\r\n{CANARY}"),
    ] {
        let mut connection = tokio::net::TcpStream::connect(stage.address).await.unwrap();
        connection.write_all(raw.as_bytes()).await.unwrap();
        connection.shutdown().await.unwrap();
        let _ = connection.read_to_end(&mut Vec::new()).await;
    }
    // A limit.
    stage.catalogue.send_replace(Arc::new(crate::stage::catalogue(
        Limits { requests_per_minute: Some(1), ..Limits::default() },
        &[engine.address],
    )));
    engine.set(says.clone());
    for _ in 0..3 {
        text(send(json!({"stream": true})).await).await;
    }
    assert_eq!(send(json!({})).await.status(), StatusCode::TOO_MANY_REQUESTS);

    let told = told(&collector, &stage).await;
    assert!(has(&told, "rate_limit_exceeded") && !has(&told, CANARY));
    let lines = lines.text();
    assert!(lines.contains("an engine went away before it answered"), "nothing was logged: {lines}");
    assert!(!lines.contains(CANARY), "{lines}");
    let metrics = stage.gateway.metrics();
    assert!(metrics.contains("spillway_gateway_tokens_total") && !metrics.contains(CANARY), "{metrics}");
    let bills = stage.gateway.wal().reader().next(1_000).unwrap().unwrap().records;
    assert!(bills.len() > 8 && !format!("{bills:?}").contains(CANARY), "{bills:?}");
    assert!(!files_with(stage.log.path(), "acme").is_empty(), "the log's files are elsewhere");
    assert_eq!(files_with(stage.log.path(), CANARY), Vec::<std::path::PathBuf>::new());
}
