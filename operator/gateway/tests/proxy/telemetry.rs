//! What is told of requests: to a collector's edge that decodes it, and at `/metrics`.

use std::sync::Arc;
use std::time::Duration;

use hyper::StatusCode;
use opentelemetry_proto::tonic::metrics::v1::metric::Data;
use opentelemetry_proto::tonic::trace::v1::Span;
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use opentelemetry_proto::tonic::trace::v1::status::StatusCode as SpanStatus;
use rstest::rstest;
use serde_json::{Value, json};
use spillway_crds::key::PresentedKey;
use spillway_gateway::admission::Limits;

use crate::collector::{Collector, Told, attribute, otlp};
use crate::engine::{Engine, Script, usage};
use crate::stage::{BOUND, Setting, Stage, chat, text};

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const PARENT: &str = "00f067aa0ba902b7";

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

async fn observed(collector: &Collector, engine: &Engine, key: Limits) -> Stage {
    Stage::with(Setting { otlp: Some(otlp(collector.address)), key, ..Setting::default() }, &[engine]).await
}

/// What the collector was told until the gateway ended.
async fn all(collector: &Collector, stage: &Stage) -> Told {
    stage.at_rest().await;
    let telemetry = Arc::clone(&stage.telemetry);
    tokio::task::spawn_blocking(move || telemetry.end(Duration::from_secs(10))).await.unwrap();
    collector.told()
}

fn of<'a>(span: &'a Span, keys: &[&'a str]) -> Vec<Option<String>> {
    keys.iter().map(|key| attribute(&span.attributes, key)).collect()
}

fn some(values: &[&str]) -> Vec<Option<String>> {
    values.iter().map(|value| Some((*value).to_owned())).collect()
}

#[tokio::test]
async fn a_request_is_a_span_between_its_client_and_its_engine() {
    let used = json!({"prompt_tokens": 70, "completion_tokens": 5, "total_tokens": 75, "prompt_tokens_details": {"cached_tokens": 64}});
    let engine = Engine::start(Script { usage: Some(used), ..Script::default() }).await;
    let collector = Collector::start().await;
    let stage = observed(&collector, &engine, Limits::default()).await;
    let mut request = stage.request("/v1/chat/completions", chat(json!({"stream": true})).to_string());
    request.headers_mut().insert("traceparent", format!("00-{TRACE}-{PARENT}-01").parse().unwrap());
    request.headers_mut().insert("tracestate", "vendor=1".parse().unwrap());
    text(stage.send(request).await).await;
    // And one that is in no trace yet.
    text(stage.chat(json!({})).await).await;

    let told = all(&collector, &stage).await;
    let [first, second] = &told.spans[..] else { panic!("{:?}", told.spans) };
    assert_eq!((first.name.as_str(), first.kind()), ("chat acme/chat", SpanKind::Client));
    assert_eq!((hex(&first.trace_id), hex(&first.parent_span_id)), (TRACE.to_owned(), PARENT.to_owned()));
    assert_eq!(first.trace_state, "vendor=1");
    // The engine's is a child of ours.
    let seen = engine.seen().traces;
    assert_eq!(seen[0], Some(format!("00-{TRACE}-{}-01", hex(&first.span_id))));
    assert_eq!(seen[1], Some(format!("00-{}-{}-01", hex(&second.trace_id), hex(&second.span_id))));
    assert_eq!(engine.seen().trace_states, [Some("vendor=1".to_owned()), None]);
    assert!(second.parent_span_id.is_empty() && hex(&second.trace_id) != TRACE);
    assert!(first.end_time_unix_nano > first.start_time_unix_nano);

    let keys = [
        "gen_ai.operation.name",
        "gen_ai.provider.name",
        "gen_ai.request.model",
        "gen_ai.response.model",
        "gen_ai.request.stream",
        "gen_ai.usage.input_tokens",
        "gen_ai.usage.output_tokens",
        "gen_ai.usage.cache_read.input_tokens",
        "gen_ai.response.finish_reasons",
        "server.address",
        "server.port",
    ];
    let port = engine.address.port().to_string();
    let good = ["chat", "spillway", "acme/chat", "tiny:v1", "true", "70", "5", "64", "stop", "127.0.0.1", &port];
    assert_eq!(of(first, &keys), some(&good));
    let whole = ["chat", "spillway", "acme/chat", "tiny:v1", "false", "70", "5", "64", "stop", "127.0.0.1", &port];
    assert_eq!(of(second, &keys), some(&whole));
    let times = ["error.type", "gen_ai.response.time_to_first_chunk"];
    assert!(matches!(&of(first, &times)[..], [None, Some(_)]) && of(second, &times) == [None, None]);
    let known: Vec<&str> = keys.into_iter().chain(times).collect();
    for span in &told.spans {
        let other = span.attributes.iter().map(|one| one.key.as_str()).find(|key| !known.contains(key));
        assert_eq!((other, span.events.len(), span.links.len()), (None, 0, 0));
    }
    for resource in &told.resources {
        assert_eq!(attribute(&resource.attributes, "service.name").as_deref(), Some("spillway-gateway"));
        assert_eq!(attribute(&resource.attributes, "service.instance.id").as_deref(), Some("gateway-0"));
    }

    let count = |name: &str| {
        let metric = told.metrics.iter().find(|metric| metric.name == name).unwrap_or_else(|| panic!("no {name}"));
        let Some(Data::Histogram(histogram)) = &metric.data else { panic!("{name} is no histogram") };
        let point = |key: &str, value: &str| {
            let is = |point: &&opentelemetry_proto::tonic::metrics::v1::HistogramDataPoint| {
                value.is_empty() || attribute(&point.attributes, key).as_deref() == Some(value)
            };
            histogram.data_points.iter().filter(is).map(|point| (point.count, point.sum)).collect::<Vec<_>>()
        };
        (point("gen_ai.token.type", "input"), point("", ""), histogram.data_points[0].explicit_bounds.len())
    };
    assert_eq!(count("gen_ai.client.token.usage").0, [(2, Some(140.0))]);
    let duration = count("gen_ai.server.request.duration");
    assert_eq!((duration.1[0].0, duration.2), (2, 14));
    for (name, bounds) in [("gen_ai.server.time_to_first_token", 16), ("gen_ai.server.time_per_output_token", 13)] {
        let metric = count(name);
        assert_eq!((metric.1.len(), metric.1[0].0, metric.2), (1, 1, bounds), "{name}");
    }
}

#[rstest]
#[case::refused(Script { refuses: Some((400, "{}")), ..Script::default() }, "engine_refused")]
#[case::failed(Script { refuses: Some((500, "{}")), ..Script::default() }, "engine_failed")]
#[case::went_away(Script { answers: Some(0), ..Script::default() }, "upstream_error")]
#[case::broke_off(Script { breaks_after: Some(2), ..Script::default() }, "engine_failed")]
#[tokio::test]
async fn what_failed_is_told_with_its_kind(#[case] script: Script, #[case] kind: &str) {
    let engine = Engine::start(script).await;
    let collector = Collector::start().await;
    let stage = observed(&collector, &engine, Limits::default()).await;
    text(stage.chat(json!({"stream": true})).await).await;
    let told = all(&collector, &stage).await;
    assert_eq!(told.spans.len(), 1);
    assert_eq!(attribute(&told.spans[0].attributes, "error.type").as_deref(), Some(kind));
    assert_eq!(told.spans[0].status.as_ref().map(|status| status.code()), Some(SpanStatus::Error));
    assert!(stage.gateway.metrics().contains(&format!("error_type=\"{kind}\"}} 1")));
}

/// One that no engine was asked for is told too, once it is known whose model it is.
#[tokio::test]
async fn what_a_limit_refuses_is_told_and_what_strangers_ask_is_not() {
    let engine = Engine::start(Script::default()).await;
    let collector = Collector::start().await;
    let key = Limits { requests_per_minute: Some(1), ..Limits::default() };
    let stage = observed(&collector, &engine, key).await;
    let status = async |more: Value| stage.chat(more).await.status();
    assert_eq!(status(json!({})).await, StatusCode::OK);
    assert_eq!(status(json!({})).await, StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(status(json!({"model": "mine"})).await, StatusCode::NOT_FOUND);
    let mut forged = stage.request("/v1/chat/completions", chat(json!({})).to_string());
    forged.headers_mut().insert("authorization", "Bearer sk-spw-mine".parse().unwrap());
    assert_eq!(stage.send(forged).await.status(), StatusCode::UNAUTHORIZED);
    let told = all(&collector, &stage).await;
    let kinds: Vec<_> = told.spans.iter().map(|span| attribute(&span.attributes, "error.type")).collect();
    assert_eq!(kinds, [None, Some("rate_limit_exceeded".to_owned())]);
    assert_eq!(attribute(&told.spans[1].attributes, "gen_ai.response.model"), None);
}

/// A client that is not sampled is passed on as such, and a trace that is none is not continued.
#[rstest]
#[case::not_sampled(&format!("00-{TRACE}-{PARENT}-00"), true)]
#[case::no_trace("00-nonsense", false)]
#[case::zero(&format!("00-{}-{PARENT}-01", "0".repeat(32)), false)]
#[tokio::test]
async fn traces_are_continued_as_they_say(#[case] sent: &str, #[case] continued: bool) {
    let engine = Engine::start(Script::default()).await;
    let collector = Collector::start().await;
    let stage = observed(&collector, &engine, Limits::default()).await;
    let mut request = stage.request("/v1/chat/completions", chat(json!({})).to_string());
    request.headers_mut().insert("traceparent", sent.parse().unwrap());
    text(stage.send(request).await).await;
    let told = all(&collector, &stage).await;
    let seen = engine.seen().traces.remove(0).unwrap();
    assert_ne!(seen, sent);
    assert_eq!(seen.contains(TRACE), continued, "{seen}");
    assert_eq!((seen.ends_with("-00"), told.spans.is_empty()), (continued, continued), "{seen}");
}

/// Without a collector what the client sent goes on as it came.
#[tokio::test]
async fn without_a_collector_the_clients_trace_goes_on() {
    let engine = Engine::start(Script::default()).await;
    let stage = Stage::new(&[&engine]).await;
    let mut request = stage.request("/v1/chat/completions", chat(json!({})).to_string());
    let sent = format!("00-{TRACE}-{PARENT}-01");
    request.headers_mut().insert("traceparent", sent.parse().unwrap());
    text(stage.send(request).await).await;
    text(stage.chat(json!({})).await).await;
    assert_eq!(engine.seen().traces, [Some(sent), None]);
}

/// The process itself, as its environment says; what it has not told yet it tells when it ends.
#[tokio::test]
async fn a_process_tells_the_collector_that_its_environment_names() {
    let engine = Engine::start(Script::default()).await;
    let collector = Collector::start().await;
    let folder = tempfile::TempDir::new().unwrap();
    let key = crate::stage::key();
    let presented = PresentedKey::parse(&key).unwrap();
    let catalogue = json!({
        "keys": [{"id": presented.id().as_str(), "sha256": presented.hash().to_hex(), "tenant": "acme", "namespace": "acme"}],
        "endpoints": [{"namespace": "acme", "name": "chat", "tenant": "acme", "model": "tiny", "version": "v1",
            "capabilities": ["Chat"], "contextLength": 4096, "replicas": [{"name": "chat-0", "address": engine.address}]}],
    });
    let file = folder.path().join("catalogue.yaml");
    std::fs::write(&file, catalogue.to_string()).unwrap();
    let free = || std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let (listen, admin) = (free(), free());
    let mut process = tokio::process::Command::new(env!("CARGO_BIN_EXE_spillway-gateway"))
        .args(["--name", "gateway-0", "--durability", "process", "--log-limit", "256"])
        .args([format!("--listen={listen}"), format!("--admin={admin}")])
        .args([std::path::Path::new("--catalogue"), &file])
        .args([std::path::Path::new("--log-directory"), &folder.path().join("log")])
        .env("OTEL_EXPORTER_OTLP_ENDPOINT", format!("http://{}", collector.address))
        .env("OTEL_RESOURCE_ATTRIBUTES", "service.name=front,deployment.environment.name=test")
        .stderr(std::process::Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let begun = std::time::Instant::now();
    while tokio::net::TcpStream::connect(listen).await.is_err() {
        assert!(begun.elapsed() < BOUND, "the gateway does not serve");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let stage = Stage::new(&[&engine]).await;
    let mut request = stage.request("/v1/chat/completions", chat(json!({})).to_string());
    *request.uri_mut() = format!("http://{listen}/v1/chat/completions").parse().unwrap();
    assert_eq!(stage.send(request).await.status(), StatusCode::OK);
    // SIGTERM, by the shell: no test may call the C library.
    let pid = process.id().unwrap();
    assert!(std::process::Command::new("kill").arg(pid.to_string()).status().unwrap().success());
    assert!(tokio::time::timeout(BOUND, process.wait()).await.unwrap().unwrap().success());
    let told = collector.told();
    let names: Vec<&str> = told.spans.iter().map(|span| span.name.as_str()).collect();
    assert_eq!(names, ["chat acme/chat"]);
    assert!(told.metrics.iter().any(|metric| metric.name == "gen_ai.server.request.duration"));
    for resource in &told.resources {
        assert_eq!(attribute(&resource.attributes, "service.name").as_deref(), Some("front"));
        assert_eq!(attribute(&resource.attributes, "deployment.environment.name").as_deref(), Some("test"));
    }
}

/// More requests than the queue has places, and a collector that takes connections and never answers, or is not there: every request is answered and billed.
#[rstest]
#[case::hangs(true)]
#[case::is_not_there(false)]
#[tokio::test]
async fn a_dead_collector_costs_requests_nothing(#[case] hangs: bool) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let kept = if hangs { Some(listener) } else { None };
    let script = Script { tokens: 1, usage: Some(usage(7, 1)), ..Script::default() };
    let engine = Engine::start(script).await;
    let stage = Stage::with(Setting { otlp: Some(otlp(address)), ..Setting::default() }, &[&engine]).await;
    const REQUESTS: usize = 2_200;
    let one = async || assert_eq!(stage.chat(json!({})).await.status(), StatusCode::OK);
    for _ in 0..REQUESTS / 20 {
        futures::future::join_all((0..20).map(|_| one())).await;
    }
    stage.at_rest().await;
    // Nothing of it waits for the collector, which has not answered once.
    let text = stage.gateway.metrics();
    let count = text.lines().find(|line| line.starts_with("gen_ai_server_request_duration_seconds_count"));
    assert!(count.is_some_and(|line| line.ends_with(&format!(" {REQUESTS}"))), "{count:?}");
    drop(kept);
}
