//! Requests that find no replica: held, called for, let go, and refused with the reason.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::BodyExt as _;
use hyper::StatusCode;
use rstest::rstest;
use serde_json::json;
use spillway_gateway::catalogue::Absence;
use spillway_gateway::keys::Keyring;
use spillway_gateway::load::Bounds;
use spillway_gateway::proxy::Limits;
use spillway_metering::load::EndpointLoad;

use crate::engine::{Engine, Script};
use crate::stage::{BOUND, Setting, Stage, catalogue, events, text, until, value};

/// A gateway whose endpoint sleeps.
async fn asleep(limits: Limits) -> Arc<Stage> {
    let stage = Stage::with(Setting { limits, ..Setting::default() }, &[]).await;
    publish(&stage, &[], 0, Absence::Starts);
    Arc::new(stage)
}

fn limits() -> Limits {
    Limits { hold: BOUND, heartbeat: Duration::from_secs(60), ..Limits::default() }
}

/// The cluster says that so many replicas are wanted, and that these engines serve.
fn publish(stage: &Stage, engines: &[SocketAddr], wanted: u32, absence: Absence) {
    let mut now = catalogue(Default::default(), engines);
    for served in now.endpoints.values_mut() {
        let served = Arc::make_mut(served);
        (served.wanted, served.absence) = (wanted, absence);
    }
    stage.catalogue.send_replace(Arc::new(now));
}

/// What the operator is told of the endpoint.
async fn load(stage: &Stage) -> Option<EndpointLoad> {
    // Another number than there were calls: answered at once.
    let report = stage.gateway.load(u64::MAX).await;
    report.endpoints.into_iter().find(|one| one.endpoint.as_str() == "chat")
}

async fn until_held(stage: &Stage, count: u64) {
    let begun = std::time::Instant::now();
    while load(stage).await.map_or(0, |load| load.held) != count {
        assert!(begun.elapsed() < BOUND, "never are {count} requests held");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

#[tokio::test]
async fn a_request_waits_for_a_replica_and_calls_for_it_once() {
    let engine = Engine::start(Script::default()).await;
    let stage = asleep(limits()).await;
    // Who watches is answered by the call, and not only after its patience.
    let gateway = Arc::clone(&stage.gateway);
    let watching = tokio::spawn(async move { gateway.load(0).await });
    let ask = |more: serde_json::Value| {
        let stage = Arc::clone(&stage);
        tokio::spawn(async move { stage.chat(more).await })
    };
    let whole: Vec<_> = (0..3).map(|_| ask(json!({}))).collect();
    let stream = ask(json!({"stream": true}));
    until_held(&stage, 4).await;
    let told = watching.await.unwrap();
    assert_eq!(told.calls, 1, "{told:?}");
    assert!(told.endpoints.iter().any(|one| one.held > 0), "{told:?}");
    let load_now = load(&stage).await.unwrap();
    assert_eq!((load_now.in_flight, load_now.queued, load_now.held, load_now.idle_ms), (4, 4, 4, 0));
    assert!(stage.gateway.metrics().contains("spillway_gateway_held 4"));

    // One is wanted now; it is there a little later.
    publish(&stage, &[], 1, Absence::Starts);
    publish(&stage, &[engine.address], 1, Absence::Starts);
    for one in whole {
        let answer = one.await.unwrap();
        assert_eq!(answer.status(), StatusCode::OK, "{}", text(answer).await);
    }
    let answer = stream.await.unwrap();
    let text = text(answer).await;
    assert!(text.starts_with("data: ") && text.ends_with("data: [DONE]\n\n"), "{text}");
    stage.bills(4).await;
    stage.at_rest().await;
    let load_now = load(&stage).await.unwrap();
    assert_eq!((load_now.in_flight, load_now.queued, load_now.held, load_now.tokens), (0, 0, 0, 20));
    assert_eq!(stage.gateway.load(u64::MAX).await.calls, 1);
    let metrics = stage.gateway.metrics();
    assert!(metrics.contains("spillway_gateway_wake_seconds_count 1"), "{metrics}");
    assert!(metrics.contains("spillway_gateway_hold_seconds_count{outcome=\"served\"} 4"), "{metrics}");
}

#[tokio::test]
async fn who_streams_sees_signs_of_life() {
    let engine = Engine::start(Script::default()).await;
    let stage = asleep(Limits { heartbeat: Duration::from_millis(20), ..limits() }).await;
    let mut response = stage.chat(json!({"stream": true})).await;
    assert_eq!(response.headers()["content-type"], "text/event-stream; charset=utf-8");
    for _ in 0..3 {
        let beat = response.body_mut().frame().await.unwrap().unwrap().into_data().unwrap();
        assert_eq!(beat, ": the model is starting\n\n");
    }
    publish(&stage, &[engine.address], 1, Absence::Starts);
    let text = text(response).await;
    let answer: Vec<&str> = events(&text);
    assert_eq!((answer.len(), answer.last()), (7, Some(&"[DONE]")), "{text}");
    stage.bills(1).await;
    stage.at_rest().await;
}

#[tokio::test]
async fn a_stream_that_has_begun_is_told_of_an_error_by_an_event() {
    let heartbeat = Duration::from_millis(20);
    let stage = asleep(Limits { heartbeat, hold: Duration::from_millis(100), ..limits() }).await;
    let late = text(stage.chat(json!({"stream": true})).await).await;
    let error: serde_json::Value = serde_json::from_str(events(&late).last().unwrap()).unwrap();
    assert_eq!(error["error"]["code"], "model_starting", "{late}");

    // And what an engine refuses.
    let script = Script { refuses: Some((400, r#"{"error": {"message": "too long"}}"#)), ..Script::default() };
    let engine = Engine::start(script).await;
    let stage = asleep(Limits { heartbeat, ..limits() }).await;
    let response = stage.chat(json!({"stream": true})).await;
    publish(&stage, &[engine.address], 1, Absence::Starts);
    let refused = text(response).await;
    let error: serde_json::Value = serde_json::from_str(events(&refused).last().unwrap()).unwrap();
    assert_eq!(error["error"]["message"], "too long", "{refused}");
    stage.at_rest().await;
}

#[tokio::test]
async fn waiting_ends() {
    let stage = asleep(Limits { hold: Duration::from_millis(50), ..limits() }).await;
    let response = stage.chat(json!({})).await;
    assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(response.headers()["retry-after"], "10");
    assert_eq!(value(response).await["error"]["code"], "model_starting");
    stage.at_rest().await;
    // Nothing was used, and nothing is billed.
    assert_eq!(stage.gateway.wal().stats().unacknowledged, 0);
}

#[rstest]
#[case::stopped(Absence::Stopped, "model_stopped")]
#[case::no_capacity(Absence::NoCapacity, "model_without_capacity")]
#[case::stalled(Absence::Stalled, "model_stalled")]
#[tokio::test]
async fn what_does_not_come_is_not_waited_for(#[case] absence: Absence, #[case] code: &str) {
    let stage = asleep(limits()).await;
    // Also by who waits already.
    let waiting = tokio::spawn({
        let stage = Arc::clone(&stage);
        async move { stage.chat(json!({})).await }
    });
    until_held(&stage, 1).await;
    publish(&stage, &[], 0, absence);
    for response in [waiting.await.unwrap(), stage.chat(json!({})).await] {
        assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(response.headers()["retry-after"], "30");
        assert_eq!(response.headers()["x-should-retry"], "false");
        assert_eq!(value(response).await["error"]["code"], code);
    }
    assert_eq!(stage.gateway.load(u64::MAX).await.calls, 1, "a request that is refused calls for nothing");
    stage.at_rest().await;
}

#[tokio::test]
async fn no_more_wait_than_may() {
    let stage = asleep(Limits { held: Bounds { of_endpoint: 2, of_tenant: 100, total: 100 }, ..limits() }).await;
    let ask = || {
        let stage = Arc::clone(&stage);
        tokio::spawn(async move { stage.chat(json!({})).await })
    };
    let waiting = [ask(), ask()];
    until_held(&stage, 2).await;
    let response = stage.chat(json!({})).await;
    assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
    let error = value(response).await;
    assert!(error["error"]["message"].as_str().unwrap().contains("too many requests wait"), "{error}");
    // Who goes away makes room. Who was refused still calls: as if one waited.
    waiting.into_iter().for_each(|one| one.abort());
    until_held(&stage, 1).await;
    let again = [ask(), ask()];
    until_held(&stage, 2).await;
    assert_eq!(stage.gateway.load(u64::MAX).await.calls, 1);
    again.into_iter().for_each(|one| one.abort());
    stage.at_rest().await;
}

#[tokio::test]
async fn a_key_that_is_revoked_while_it_waits_is_not_served() {
    let engine = Engine::start(Script::default()).await;
    let stage = asleep(limits()).await;
    let waiting = tokio::spawn({
        let stage = Arc::clone(&stage);
        async move { stage.chat(json!({})).await }
    });
    until_held(&stage, 1).await;
    let mut now = catalogue(Default::default(), &[engine.address]);
    now.keys = Keyring::default();
    stage.catalogue.send_replace(Arc::new(now));
    assert_eq!(waiting.await.unwrap().status(), StatusCode::UNAUTHORIZED);
    assert!(engine.seen().bodies.is_empty(), "the engine was asked");
    stage.at_rest().await;
}

/// The first replica that comes refuses what it has no room for, and those who waited try it again.
#[tokio::test]
async fn who_waited_is_not_turned_away_by_a_replica_that_is_busy() {
    let engine = Engine::start(Script { refuses: Some((503, "{}")), ..Script::default() }).await;
    let stage = asleep(limits()).await;
    let waiting = tokio::spawn({
        let stage = Arc::clone(&stage);
        async move { stage.chat(json!({})).await }
    });
    until_held(&stage, 1).await;
    publish(&stage, &[engine.address], 1, Absence::Starts);
    until("the engine to be asked twice", || engine.seen().bodies.len() >= 2).await;
    engine.set(Script::default());
    assert_eq!(waiting.await.unwrap().status(), StatusCode::OK);
    stage.bills(1).await;
    stage.at_rest().await;
}
