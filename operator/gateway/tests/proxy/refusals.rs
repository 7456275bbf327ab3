//! Who is not let in, and what they are told.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::{Request, StatusCode};
use rstest::rstest;
use serde_json::{Value, json};
use spillway_gateway::admission::Limits;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::engine::{Engine, Script};
use crate::stage::{BOUND, Setting, Stage, chat, key, text, value};

#[rstest]
#[case::no_key("POST", "/v1/chat/completions", None, None, 401, "missing_api_key")]
#[case::no_bearer("POST", "/v1/chat/completions", Some("Basic abc"), None, 401, "missing_api_key")]
#[case::truncated("POST", "/v1/chat/completions", Some("Bearer sk-spw-00000000-abc"), None, 401, "invalid_api_key")]
#[case::forged("POST", "/v1/chat/completions", Some("forged"), None, 401, "invalid_api_key")]
#[case::forged_list("GET", "/v1/models", Some("forged"), None, 401, "invalid_api_key")]
#[case::path("POST", "/v1/nothing", Some("good"), None, 404, "unknown_url")]
#[case::method("GET", "/v1/chat/completions", Some("good"), None, 405, "method_not_allowed")]
#[case::no_json("POST", "/v1/chat/completions", Some("good"), Some("{"), 400, "invalid_json")]
#[case::no_model(
    "POST",
    "/v1/chat/completions",
    Some("good"),
    Some(r#"{"messages":[]}"#),
    400,
    "missing_required_parameter"
)]
#[case::twice(
    "POST",
    "/v1/chat/completions",
    Some("good"),
    Some(r#"{"model":"chat","model":"house/large","messages":[]}"#),
    400,
    "duplicate_parameter"
)]
#[case::another_model(
    "POST",
    "/v1/chat/completions",
    Some("good"),
    Some(r#"{"model":"beta/chat","messages":[{"role":"user","content":"x"}]}"#),
    404,
    "model_not_found"
)]
#[case::not_capable(
    "POST",
    "/v1/chat/completions",
    Some("good"),
    Some(r#"{"model":"embed","messages":[{"role":"user","content":"x"}]}"#),
    400,
    "model_not_capable"
)]
#[tokio::test]
async fn who_is_refused(
    #[case] method: &str,
    #[case] path: &str,
    #[case] authorization: Option<&str>,
    #[case] body: Option<&str>,
    #[case] status: u16,
    #[case] code: &str,
) {
    let engine = Engine::start(Script::default()).await;
    let stage = Stage::new(&[&engine]).await;
    let mut request = Request::builder().method(method).uri(format!("http://{}{path}", stage.address));
    request = match authorization {
        Some("good") => request.header("authorization", format!("Bearer {}", key())),
        Some("forged") => request.header("authorization", format!("Bearer {}A", &key()[..key().len() - 1])),
        Some(other) => request.header("authorization", other),
        None => request,
    };
    let body = body.map_or_else(|| chat(json!({})).to_string(), str::to_owned);
    let answer = stage.send(request.body(Full::new(Bytes::from(body))).unwrap()).await;
    assert_eq!(answer.status().as_u16(), status);
    assert!(answer.headers().contains_key("x-request-id"));
    let answer = value(answer).await;
    assert_eq!(answer["error"]["code"], code, "{answer}");
    assert!(answer["error"]["message"].as_str().is_some_and(|message| !message.is_empty()));
    assert!(engine.seen().bodies.is_empty());
    assert_eq!(stage.gateway.wal().stats().durable.get(), 0, "something was logged");
    stage.at_rest().await;
}

#[tokio::test]
async fn what_a_key_may_call_is_listed() {
    let engine = Engine::start(Script::default()).await;
    let stage = Stage::new(&[&engine]).await;
    let get = |path: &str| {
        let uri = format!("http://{}{path}", stage.address);
        let request = Request::get(uri).header("authorization", format!("Bearer {}", key()));
        request.body(Full::new(Bytes::new())).unwrap()
    };
    let list = value(stage.send(get("/v1/models")).await).await;
    let ids: Vec<&Value> = list["data"].as_array().unwrap().iter().map(|model| &model["id"]).collect();
    assert_eq!(ids, [&json!("chat"), &json!("embed")]);
    assert_eq!(value(stage.send(get("/v1/models/embed")).await).await["id"], "embed");
    assert_eq!(stage.send(get("/v1/models/house%2Flarge")).await.status(), StatusCode::NOT_FOUND);
}

/// What is over a limit is refused with what would help, and what ended makes room.
#[tokio::test]
async fn limits_hold_and_are_told() {
    let engine = Engine::start(Script::default()).await;
    let key = Limits { requests_per_minute: Some(3), ..Limits::default() };
    let stage = Stage::with(Setting { key, ..Setting::default() }, &[&engine]).await;
    for left in (0..3).rev() {
        let answer = stage.chat(json!({})).await;
        assert_eq!(answer.status(), StatusCode::OK);
        assert_eq!(answer.headers()["x-ratelimit-limit-requests"], "3");
        assert_eq!(answer.headers()["x-ratelimit-remaining-requests"], left.to_string().as_str());
    }
    let answer = stage.chat(json!({})).await;
    assert_eq!(answer.status(), StatusCode::TOO_MANY_REQUESTS);
    let wait: u64 = answer.headers()["retry-after-ms"].to_str().unwrap().parse().unwrap();
    assert!((1..=20_000).contains(&wait), "{wait} ms");
    assert_eq!(value(answer).await["error"]["type"], "requests");
    assert_eq!(engine.seen().bodies.len(), 3);
    stage.at_rest().await;
}

/// Who always hangs up has limits nevertheless.
#[tokio::test]
async fn who_hangs_up_is_counted() {
    let engine = Engine::start(Script { pause: Duration::from_secs(60), ..Script::default() }).await;
    let key = Limits { requests_per_minute: Some(3), ..Limits::default() };
    let stage = Stage::with(Setting { key, ..Setting::default() }, &[&engine]).await;
    for count in 1..=3 {
        let request = stage.request("/v1/chat/completions", chat(json!({})).to_string());
        assert!(tokio::time::timeout(Duration::from_millis(200), stage.send(request)).await.is_err());
        stage.bills(count).await;
    }
    stage.at_rest().await;
    assert_eq!(stage.chat(json!({})).await.status(), StatusCode::TOO_MANY_REQUESTS);
}

/// Connections on which nothing comes, or half a greeting, are ended; and so are those that idle.
#[tokio::test]
async fn silent_connections_are_ended() {
    let engine = Engine::start(Script::default()).await;
    let mut setting = Setting::default();
    setting.server.head = Duration::from_millis(200);
    setting.server.idle = Duration::from_millis(200);
    let stage = Stage::with(setting, &[&engine]).await;
    let begun = std::time::Instant::now();
    for silent in ["", "PRI * HT", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"] {
        let mut stream = tokio::net::TcpStream::connect(stage.address).await.unwrap();
        stream.write_all(silent.as_bytes()).await.unwrap();
        let mut rest = Vec::new();
        let ended = tokio::time::timeout(BOUND, stream.read_to_end(&mut rest)).await;
        assert!(ended.is_ok(), "{silent:?} is held open");
    }
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    assert_eq!(stage.chat(json!({})).await.status(), StatusCode::OK);
}

/// One key takes no more room for bodies than its part.
#[tokio::test]
async fn bodies_of_one_key_are_bounded_together() {
    let engine = Engine::start(Script { pause: Duration::from_secs(60), ..Script::default() }).await;
    let mut setting = Setting::default();
    setting.limits.bodies_of_key = 1_000;
    let stage = Stage::with(setting, &[&engine]).await;
    let large = json!({"messages": [{"role": "user", "content": "x".repeat(2_000)}]});
    let answer = stage.chat(large).await;
    assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert!(answer.headers().contains_key("retry-after"));
    stage.at_rest().await;
}

/// A thousand at once against a concurrency of ten: never more than ten at the engine, and each is answered or told to come again.
#[tokio::test]
async fn a_thousand_at_once_against_a_concurrency_of_ten() {
    let engine = Engine::start(Script { pause: Duration::from_millis(20), ..Script::default() }).await;
    let key = Limits { concurrency: Some(10), ..Limits::default() };
    let stage = std::sync::Arc::new(Stage::with(Setting { key, ..Setting::default() }, &[&engine]).await);
    let mut all = tokio::task::JoinSet::new();
    for _ in 0..1000 {
        let stage = std::sync::Arc::clone(&stage);
        all.spawn(async move {
            let answer = stage.chat(json!({})).await;
            let in_flight = stage.admission.in_flight("acme");
            assert!(in_flight <= 10, "{in_flight} at once");
            answer.status().as_u16()
        });
    }
    let statuses = all.join_all().await;
    let good = statuses.iter().filter(|status| **status == 200).count();
    assert!(statuses.iter().all(|status| [200, 429].contains(status)), "{statuses:?}");
    assert!(good >= 10, "{good} were let in");
    let bills = stage.bills(good).await;
    assert_eq!(
        bills.iter().map(|bill| bill.ending.tokens.completion()).sum::<u64>(),
        engine.seen().produced.values().sum::<u64>()
    );
    stage.at_rest().await;
}

/// Where nothing can be recorded, nothing is served, and what runs has room for its bill.
#[tokio::test]
async fn a_log_that_is_full_refuses() {
    let engine = Engine::start(Script::default()).await;
    let stage = Stage::with(Setting { log_bytes: 20 << 10, ..Setting::default() }, &[&engine]).await;
    let mut served = 0;
    let refused = loop {
        let answer = stage.chat(json!({})).await;
        if answer.status() != StatusCode::OK {
            break answer;
        }
        served += 1;
        assert!(served < 1000, "the log has room without end");
    };
    assert_eq!(refused.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(value(refused).await["error"]["code"], "gateway_unavailable");
    assert_eq!(engine.seen().bodies.len(), served, "what could not be recorded was sent");
    assert_eq!(stage.bills(served).await.len(), served);
    stage.at_rest().await;
}

#[tokio::test]
async fn bodies_are_bounded_in_size_and_time() {
    let engine = Engine::start(Script::default()).await;
    let mut setting = Setting::default();
    setting.limits.body.bytes = 1_000;
    setting.limits.receive = Duration::from_millis(300);
    let stage = Stage::with(setting, &[&engine]).await;
    let large = json!({"messages": [{"role": "user", "content": "x".repeat(2_000)}]});
    let answer = stage.chat(large).await;
    assert_eq!(answer.status(), StatusCode::PAYLOAD_TOO_LARGE);
    assert_eq!(value(answer).await["error"]["code"], "request_too_large");
    // Announced by nobody, and cut off while it comes.
    let chunk = format!("3e8\r\n{}\r\n", "y".repeat(1_000));
    let head = |more: &str| {
        format!("POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {}\r\n{more}\r\n\r\n", key())
    };
    let answer = raw(&stage, &format!("{}{chunk}{chunk}", head("transfer-encoding: chunked"))).await;
    assert!(answer.starts_with("HTTP/1.1 413 "), "{answer}");
    // One that comes too slowly.
    let answer = raw(&stage, &format!("{}{{", head("content-length: 900"))).await;
    assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
    assert!(answer.contains("request_timeout"), "{answer}");
    // Two lengths, and two ways to say where a body ends: what is smuggled by that never gets here.
    for smuggled in ["content-length: 5\r\ncontent-length: 6", "content-length: 5\r\ntransfer-encoding: chunked"] {
        let answer =
            raw(&stage, &format!("{}0\r\n\r\nGET /v1/models HTTP/1.1\r\nhost: x\r\n\r\n", head(smuggled))).await;
        assert!(answer.starts_with("HTTP/1.1 400 "), "{smuggled}: {answer}");
        assert_eq!(answer.matches("HTTP/1.1").count(), 1, "{smuggled}: {answer}");
    }
    // Two keys: which of them counts is not for us to guess.
    let answer = raw(&stage, &format!("{}{{}}", head("authorization: Bearer x\r\ncontent-length: 2"))).await;
    assert!(answer.starts_with("HTTP/1.1 401 "), "{answer}");
    assert!(engine.seen().bodies.is_empty());
    stage.at_rest().await;
}

#[tokio::test]
async fn heads_are_bounded_in_size_and_time() {
    let engine = Engine::start(Script::default()).await;
    let mut setting = Setting::default();
    setting.server.head = Duration::from_millis(300);
    setting.server.head_bytes = 8 << 10;
    let stage = Stage::with(setting, &[&engine]).await;
    let answer = raw(&stage, &format!("GET /v1/models HTTP/1.1\r\nhost: x\r\nx: {}\r\n\r\n", "y".repeat(20_000))).await;
    assert!(answer.starts_with("HTTP/1.1 431 "), "{answer}");
    assert_eq!(raw(&stage, "GET /v1/models HTTP/1.1\r\n").await, "", "who never ends its head is cut off");
    let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    let nested = stage.request("/v1/chat/completions", format!(r#"{{"model":"chat","messages":{deep}}}"#));
    assert_eq!(stage.send(nested).await.status(), StatusCode::BAD_REQUEST);
    assert!(text(stage.chat(json!({})).await).await.contains("usage"), "others are served");
}

/// Sends bytes as they are, and reads until the connection ends.
async fn raw(stage: &Stage, bytes: &str) -> String {
    let mut stream = tokio::net::TcpStream::connect(stage.address).await.unwrap();
    stream.write_all(bytes.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    let _ = tokio::time::timeout(BOUND, async {
        let mut buffer = [0; 4096];
        loop {
            match stream.read(&mut buffer).await {
                Ok(0) | Err(_) => break,
                Ok(count) => answer.extend_from_slice(&buffer[..count]),
            }
            // A whole answer is enough: not every one ends its connection.
            let text = String::from_utf8_lossy(&answer);
            if text.contains("\r\n\r\n") && text.contains("\"}}") {
                break;
            }
        }
    })
    .await;
    String::from_utf8(answer).unwrap()
}
