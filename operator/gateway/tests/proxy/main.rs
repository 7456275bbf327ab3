//! The whole gateway on loopback: a client, real sockets, a real log, and engines that do what their scripts say.

#![allow(
    clippy::indexing_slicing,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test may fail loudly"
)]

mod collector;
mod elsewhere;
mod engine;
mod hold;
mod kv_cache;
mod privacy;
mod refusals;
mod stage;
mod telemetry;
mod tls;
mod usage;

use std::time::Duration;

use http_body_util::BodyExt as _;
use hyper::StatusCode;
use rstest::rstest;
use serde_json::{Value, json};
use spillway_gateway::proxy::Stage as Phase;
use spillway_metering::tokens::{Adjustment, Cause, Outcome};

use engine::{Engine, Script, usage};
use stage::{BOUND, Setting, Stage, events, text, until, value};

#[tokio::test]
async fn a_stream_comes_through_and_is_billed_as_the_engine_says() {
    let engine = Engine::start(Script::default()).await;
    let stage = Stage::new(&[&engine]).await;
    let tools = json!([{"type": "function", "function": {"name": "look_up", "parameters": {"type": "object"}}}]);
    let more = json!({"stream": true, "temperature": 0.5, "unknown": {"a": [1, 2]}, "tools": tools});
    let response = stage.chat(more).await;
    assert_eq!(response.status(), StatusCode::OK);
    assert_eq!(response.headers()["content-type"], "text/event-stream");
    let id = response.headers()["x-request-id"].to_str().unwrap().to_owned();
    let text = text(response).await;
    let events = events(&text);
    assert_eq!(events.len(), 7, "five tokens and two ends, and no usage that was not asked for: {text}");
    assert_eq!(serde_json::from_str::<Value>(events[0]).unwrap()["choices"][0]["delta"]["content"], "t0 ");
    assert_eq!(events[6], "[DONE]");

    let seen = engine.seen();
    let body = &seen.bodies[0];
    assert_eq!(body["model"], "engine/tiny");
    assert_eq!(body["stream_options"], json!({"include_usage": true}));
    assert_eq!((&body["temperature"], &body["unknown"]), (&json!(0.5), &json!({"a": [1, 2]})));
    assert_eq!(body["tools"], tools);

    let bill = stage.bills(1).await.remove(0);
    assert_eq!(bill.opening.id.to_string(), id);
    assert_eq!(seen.produced[&id], bill.ending.tokens.completion());
    assert_eq!((bill.ending.tokens.prompt(), bill.ending.outcome), (7, Outcome::Complete));
    let names = (bill.opening.tenant.as_str(), bill.opening.endpoint.as_str(), bill.opening.replica.as_str());
    assert_eq!(names, ("acme", "chat", "chat-0"));
    assert!(bill.opening.stream && bill.ending.adjusted.is_empty());
    stage.at_rest().await;
}

/// While one version takes the place of another, each replica is asked for the model by its own name, and billed as its own version.
#[tokio::test]
async fn a_replica_of_another_version_is_asked_and_billed_as_such() {
    let engine = Engine::start(Script::default()).await;
    let stage = Stage::new(&[&engine]).await;
    let mut now = stage::catalogue(Default::default(), &[engine.address]);
    for served in now.endpoints.values_mut() {
        let replica = &mut std::sync::Arc::make_mut(served).replicas[0];
        (replica.version, replica.served_name) = ("v0".into(), "engine/old".to_owned());
    }
    stage.catalogue.send_replace(std::sync::Arc::new(now));
    // What the fleet knows follows at once, but not in the same moment.
    tokio::time::sleep(Duration::from_millis(50)).await;
    let answer = value(stage.chat(json!({"temperature": 0.5})).await).await;
    assert_eq!(answer["usage"], usage(7, 5));
    assert_eq!(engine.seen().bodies[0]["model"], "engine/old");
    assert_eq!(engine.seen().bodies[0]["temperature"], 0.5);
    assert_eq!(stage.bills(1).await[0].opening.version.as_str(), "v0");
    stage.at_rest().await;
}

#[tokio::test]
async fn who_asks_for_usage_gets_it() {
    let engine = Engine::start(Script::default()).await;
    let stage = Stage::new(&[&engine]).await;
    let text = text(stage.chat(json!({"stream": true, "stream_options": {"include_usage": true}})).await).await;
    let events = events(&text);
    assert_eq!(events.len(), 8);
    assert_eq!(serde_json::from_str::<Value>(events[6]).unwrap()["usage"], usage(7, 5));
}

#[tokio::test]
async fn answers_in_one_piece() {
    let engine = Engine::start(Script::default()).await;
    let stage = Stage::new(&[&engine]).await;
    let answer = value(stage.chat(json!({})).await).await;
    assert_eq!(answer["usage"], usage(7, 5));
    let input = json!({"model": "embed", "input": "Hello"}).to_string();
    let answer = value(stage.send(stage.request("/v1/embeddings", input)).await).await;
    assert_eq!(answer["data"][0]["embedding"], json!([0.5]));
    let prompt = json!({"model": "chat", "prompt": "Hello", "stream": true}).to_string();
    let answer = text(stage.send(stage.request("/v1/completions", prompt)).await).await;
    assert!(answer.ends_with("data: [DONE]\n\n"));
    let bills = stage.bills(3).await;
    let tokens: Vec<_> =
        bills.iter().map(|bill| (bill.ending.tokens.prompt(), bill.ending.tokens.completion())).collect();
    assert_eq!(tokens, [(7, 5), (3, 0), (7, 5)]);
    assert!(bills.iter().all(|bill| bill.ending.outcome == Outcome::Complete));
    stage.at_rest().await;
}

/// The client goes away in mid-stream: the engine is told, and what it produced until then is billed.
#[tokio::test]
async fn a_client_that_goes_away_pays_for_what_was_produced() {
    let script = Script { tokens: 10_000, pause: Duration::from_millis(5), ..Script::default() };
    let engine = Engine::start(script).await;
    let stage = Stage::new(&[&engine]).await;
    let mut response = stage.chat(json!({"stream": true})).await;
    let id = response.headers()["x-request-id"].to_str().unwrap().to_owned();
    for _ in 0..10 {
        response.body_mut().frame().await.unwrap().unwrap();
    }
    drop(response);
    let bill = stage.bills(1).await.remove(0);
    until("the engine to be told", || engine.seen().cancelled == 1).await;
    assert_eq!(bill.ending.outcome, Outcome::Partial(Cause::ClientGone));
    let (billed, produced) = (bill.ending.tokens.completion(), engine.seen().produced[&id]);
    assert!(billed >= 10, "ten tokens were received, and {billed} are billed");
    assert!(billed <= produced, "{billed} tokens are billed, and {produced} were produced");
    assert!(bill.ending.tokens.prompt() > 0);
    stage.at_rest().await;
}

/// Before anything was produced, nothing is billed.
#[tokio::test]
async fn a_client_that_goes_away_before_the_answer_pays_nothing() {
    let engine = Engine::start(Script { pause: Duration::from_secs(60), ..Script::default() }).await;
    let stage = Stage::new(&[&engine]).await;
    let request = stage.request("/v1/chat/completions", stage::chat(json!({})).to_string());
    let waiting = tokio::time::timeout(Duration::from_millis(300), stage.send(request)).await;
    assert!(waiting.is_err(), "it answered");
    let bill = stage.bills(1).await.remove(0);
    assert_eq!(bill.ending.outcome, Outcome::Partial(Cause::ClientGone));
    assert_eq!((bill.ending.tokens.prompt(), bill.ending.tokens.completion()), (0, 0));
    stage.at_rest().await;
}

#[tokio::test]
async fn an_engine_that_dies_in_mid_stream_is_told_of_and_billed_in_part() {
    let engine = Engine::start(Script { breaks_after: Some(3), ..Script::default() }).await;
    let stage = Stage::new(&[&engine]).await;
    let text = text(stage.chat(json!({"stream": true})).await).await;
    let events = events(&text);
    assert_eq!(events.len(), 4, "{text}");
    assert_eq!(serde_json::from_str::<Value>(events[3]).unwrap()["error"]["code"], "upstream_error");
    let bill = stage.bills(1).await.remove(0);
    assert_eq!(bill.ending.outcome, Outcome::Partial(Cause::EngineFailed));
    assert_eq!(bill.ending.tokens.completion(), 3);
    stage.at_rest().await;
}

/// An engine may close an idle connection just when something is sent on it: that is tried again. One that closes a new connection may have been
/// killed by the request itself, which is not sent elsewhere.
#[tokio::test]
async fn a_connection_that_was_closed_meanwhile_costs_nobody_a_request() {
    let engine = Engine::start(Script { answers: Some(1), ..Script::default() }).await;
    let stage = Stage::new(&[&engine]).await;
    for _ in 0..4 {
        assert_eq!(stage.chat(json!({})).await.status(), StatusCode::OK);
    }
    assert!(engine.seen().bodies.len() > 4, "no connection was used twice");
    let bills = stage.bills(4).await;
    assert!(bills.iter().all(|bill| bill.ending.outcome == Outcome::Complete), "{bills:?}");

    engine.set(Script { answers: Some(0), ..Script::default() });
    let before = engine.seen().bodies.len();
    let other = Stage::new(&[&engine]).await;
    assert_eq!(other.chat(json!({})).await.status(), StatusCode::BAD_GATEWAY);
    assert_eq!(engine.seen().bodies.len(), before + 1, "it was sent twice");
    stage.at_rest().await;
}

#[rstest]
#[case::nothing(None, Outcome::Partial(Cause::NoUsage), 5, Some(Adjustment::CompletionMissing))]
#[case::not_whole(Some(json!({"prompt_tokens": 7})), Outcome::Partial(Cause::NoUsage), 5, Some(Adjustment::CompletionMissing))]
#[case::more_than_can_be(Some(usage(7, 1 << 50)), Outcome::Complete, 4_096, Some(Adjustment::CompletionAboveBound))]
#[case::more_than_was_asked_for(Some(usage(7, 50)), Outcome::Complete, 50, None)]
#[case::as_it_is(Some(usage(7, 5)), Outcome::Complete, 5, None)]
#[tokio::test]
async fn what_an_engine_says_of_usage(
    #[case] says: Option<Value>,
    #[case] outcome: Outcome,
    #[case] completion: u64,
    #[case] adjustment: Option<Adjustment>,
) {
    let engine = Engine::start(Script { usage: says, ..Script::default() }).await;
    let stage = Stage::new(&[&engine]).await;
    // Engines read a bound in different ways: what was produced was produced.
    let text = text(stage.chat(json!({"stream": true, "max_tokens": 1})).await).await;
    assert!(text.ends_with("data: [DONE]\n\n"), "{text}");
    let bill = stage.bills(1).await.remove(0);
    assert_eq!((bill.ending.outcome, bill.ending.tokens.completion()), (outcome, completion));
    assert!(adjustment.is_none_or(|adjustment| bill.ending.adjusted.contains(adjustment)));
    assert!(bill.ending.tokens.prompt() > 0);
}

#[tokio::test]
async fn an_engine_that_ends_without_a_word() {
    let engine = Engine::start(Script { says_done: false, ..Script::default() }).await;
    let stage = Stage::new(&[&engine]).await;
    // It told its usage, and so all.
    assert_eq!(events(&text(stage.chat(json!({"stream": true})).await).await).len(), 6);
    engine.set(Script { says_done: false, usage: None, ..Script::default() });
    let cut = text(stage.chat(json!({"stream": true})).await).await;
    assert!(events(&cut).last().unwrap().contains("upstream_error"), "{cut}");
    let bills = stage.bills(2).await;
    assert_eq!(bills[0].ending.outcome, Outcome::Complete);
    assert_eq!(bills[1].ending.outcome, Outcome::Partial(Cause::EngineFailed));
    assert_eq!(bills[1].ending.tokens.completion(), 5);
}

/// A stop lets what runs go on, refuses what is new, and at the end cuts and bills.
#[tokio::test]
async fn a_stop_drains_and_then_cuts() {
    let script = Script { tokens: 100_000, pause: Duration::from_millis(5), ..Script::default() };
    let engine = Engine::start(script).await;
    let stage = Stage::new(&[&engine]).await;
    let mut long = stage.chat(json!({"stream": true})).await;
    long.body_mut().frame().await.unwrap().unwrap();
    stage.phase.send_replace(Phase::Draining);
    let frame = tokio::time::timeout(BOUND, long.body_mut().frame()).await.unwrap();
    assert!(frame.is_some_and(|frame| frame.is_ok()), "what runs goes on");
    stage.phase.send_replace(Phase::Cutting);
    let rest = text(long).await;
    assert!(events(&rest).last().unwrap().contains("gateway_unavailable"), "{rest}");
    let bill = stage.bills(1).await.remove(0);
    assert_eq!(bill.ending.outcome, Outcome::Partial(Cause::Shutdown));
    assert!(bill.ending.tokens.completion() >= 2);
    stage.at_rest().await;
    tokio::time::timeout(BOUND, stage.server).await.expect("the server does not end").unwrap();
}

/// Engines that cannot be reached or have no room are passed over; the request is one, and so is its bill.
#[tokio::test]
async fn another_engine_takes_it() {
    let gone = Engine::start(Script::default()).await;
    let dead = gone.address;
    drop(gone);
    let full = Engine::start(Script { refuses: Some((503, "{}")), ..Script::default() }).await;
    let good = Engine::start(Script::default()).await;
    let stage = Stage::new(&[&good]).await;
    let all = stage::catalogue(Default::default(), &[dead, full.address, good.address]);
    stage.catalogue.send_replace(std::sync::Arc::new(all));
    for round in 1..=20 {
        let answer = stage.chat(json!({})).await;
        assert_eq!(answer.status(), StatusCode::OK);
        let bills = stage.bills(round).await;
        assert_eq!(bills[round - 1].opening.replica.as_str(), "chat-2");
    }
    assert!(full.seen().bodies.len() <= 10, "it is asked again and again");
    // With none left, it is said so, and when to come again.
    let none = stage::catalogue(Default::default(), &[dead]);
    stage.catalogue.send_replace(std::sync::Arc::new(none));
    until("the engines to be gone", || true).await;
    let answer = stage.chat(json!({})).await;
    assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert!(answer.headers().contains_key("retry-after"));
    stage.at_rest().await;
}

#[tokio::test]
async fn what_an_engine_refuses_is_passed_on_in_openais_form() {
    let refusal = r#"{"object":"error","message":"too many tokens","type":"BadRequestError","code":400}"#;
    let engine = Engine::start(Script { refuses: Some((400, refusal)), ..Script::default() }).await;
    let stage = Stage::new(&[&engine]).await;
    let answer = stage.chat(json!({"stream": true})).await;
    assert_eq!(answer.status(), StatusCode::BAD_REQUEST);
    let answer = value(answer).await;
    assert_eq!(
        (&answer["error"]["message"], &answer["error"]["type"]),
        (&json!("too many tokens"), &json!("invalid_request_error"))
    );
    engine.set(Script { refuses: Some((500, "Traceback: secret")), ..Script::default() });
    let answer = stage.chat(json!({"stream": true})).await;
    assert_eq!(answer.status(), StatusCode::BAD_GATEWAY);
    assert!(!text(answer).await.contains("secret"));
    let bills = stage.bills(2).await;
    assert!(bills.iter().all(|bill| bill.ending.tokens == Default::default()));
    // What the request itself was refused for counts against its limits; what was the engine's fault does not.
    let counts = stage.admission.counts();
    assert_eq!((counts.settled, counts.refunded), (1, 1));
    stage.at_rest().await;
}

/// A client that does not read is not waited for without end.
#[tokio::test]
async fn a_client_that_does_not_read_is_let_go() {
    let engine = Engine::start(Script { tokens: 1_000_000, ..Script::default() }).await;
    let mut setting = Setting::default();
    setting.limits.slow_client = Duration::from_millis(300);
    let stage = Stage::with(setting, &[&engine]).await;
    let response = stage.chat(json!({"stream": true})).await;
    let bill = stage.bills(1).await.remove(0);
    assert_eq!(bill.ending.outcome, Outcome::Partial(Cause::ClientGone));
    drop(response);
    stage.at_rest().await;
}

/// The chunk in which the answer ends is not given out before the engine has said what it used, and that is recorded: or who hangs up there would be
/// billed by our count of events.
#[tokio::test]
async fn the_end_waits_for_the_bill() {
    let script = Script { pause_at_end: Duration::from_millis(500), usage: Some(usage(7, 500)), ..Script::default() };
    let engine = Engine::start(script).await;
    let stage = Stage::new(&[&engine]).await;
    let mut response = stage.chat(json!({"stream": true})).await;
    let mut seen = String::new();
    while !seen.contains("finish_reason\":\"stop") {
        let frame = tokio::time::timeout(BOUND, response.body_mut().frame()).await.unwrap().expect("the end").unwrap();
        seen.push_str(std::str::from_utf8(frame.data_ref().unwrap()).unwrap());
    }
    drop(response);
    let bill = stage.bills(1).await.remove(0);
    assert_eq!((bill.ending.outcome, bill.ending.tokens.completion()), (Outcome::Complete, 500));
}

/// One slot, and one request after the other: who has seen the end of one may begin the next.
#[tokio::test]
async fn the_slot_is_free_when_the_client_sees_the_end() {
    let engine = Engine::start(Script::default()).await;
    let key = spillway_gateway::admission::Limits { concurrency: Some(1), ..Default::default() };
    let stage = Stage::with(Setting { key, ..Setting::default() }, &[&engine]).await;
    for stream in [true, false].repeat(20) {
        let response = stage.chat(json!({"stream": stream})).await;
        assert_eq!(response.status(), StatusCode::OK);
        text(response).await;
    }
}

/// Answers that a request makes an engine give are no reason to leave the engine alone.
#[tokio::test]
async fn a_poisoned_request_takes_the_model_from_nobody() {
    let engine = Engine::start(Script { refuses: Some((500, "{}")), ..Script::default() }).await;
    let stage = Stage::new(&[&engine]).await;
    for _ in 0..10 {
        assert_eq!(stage.chat(json!({})).await.status(), StatusCode::BAD_GATEWAY);
    }
    engine.set(Script::default());
    assert_eq!(stage.chat(json!({})).await.status(), StatusCode::OK);
}

#[tokio::test]
async fn a_large_answer_comes_whole() {
    let engine = Engine::start(Script { tokens: 200_000, usage: Some(usage(7, 200)), ..Script::default() }).await;
    let stage = Stage::new(&[&engine]).await;
    let response = stage.chat(json!({})).await;
    let length: usize = response.headers()["content-length"].to_str().unwrap().parse().unwrap();
    let text = text(response).await;
    assert_eq!((text.len(), text.len() > 1_000_000), (length, true));
    assert_eq!(stage.bills(1).await[0].ending.tokens.completion(), 200);
    // One that is larger than allowed is no fault of the engine's, and not for nothing.
    let mut setting = Setting::default();
    setting.limits.answer_bytes = 100_000;
    let stage = Stage::with(setting, &[&engine]).await;
    let response = stage.chat(json!({})).await;
    assert_eq!(
        (response.status(), response.headers()["x-should-retry"].to_str().unwrap()),
        (StatusCode::BAD_REQUEST, "false")
    );
    let bill = stage.bills(1).await.remove(0);
    assert_eq!(bill.ending.outcome, Outcome::Partial(Cause::Bound));
    assert!(bill.ending.tokens.completion() > 0 || bill.ending.tokens.prompt() > 0);
    assert_eq!(stage.admission.counts().refunded, 0);
}
