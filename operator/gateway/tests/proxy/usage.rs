//! What goes to the usage service, and what comes from it: the service's edge is played here, with failures. The real one is tried on a real cluster.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use serde_json::json;
use spillway_gateway::admission::{Limits, Mode};
use spillway_gateway::leasing::lease;
use spillway_gateway::ship::{UsageService, ship};
use spillway_metering::lease::{Answer, Answers, Block, Grant, Questions};
use spillway_metering::shipping::{Receipt, Shipment};
use spillway_tls::Caller;

use crate::engine::{Engine, Script};
use crate::stage::{Setting, Stage, text, until};

/// What was asked of the service, and how it is to answer.
#[derive(Debug, Default)]
struct State {
    /// How many answers more are failures.
    failing: u32,
    /// Whose record is never taken.
    refuses: Option<String>,
    /// How often each record came.
    records: BTreeMap<String, u32>,
    /// Requests that may be granted still.
    grants: u64,
    questions: u32,
}

async fn start(state: Arc<Mutex<State>>) -> UsageService {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let state = Arc::clone(&state);
            let service = service_fn(move |request| answer(Arc::clone(&state), request));
            tokio::spawn(async move {
                let _ = auto::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), service).await;
            });
        }
    });
    UsageService::new(format!("http://{address}").parse().unwrap(), Caller::plain().unwrap())
}

async fn answer(
    state: Arc<Mutex<State>>,
    request: Request<Incoming>,
) -> Result<Response<Full<Bytes>>, std::convert::Infallible> {
    let path = request.uri().path().to_owned();
    let body = request.into_body().collect().await.unwrap().to_bytes();
    let mut state = state.lock().unwrap();
    let answer = if path == "/v1/records" {
        let shipment: Shipment = serde_json::from_slice(&body).unwrap();
        if shipment.records.iter().any(|record| Some(record.opening.id.to_string()) == state.refuses) {
            let mut response = Response::new(Full::new(Bytes::from_static(b"{\"error\": \"its name is too long\"}")));
            *response.status_mut() = StatusCode::UNPROCESSABLE_ENTITY;
            return Ok(response);
        }
        // Those that fail have been stored nevertheless: who ships does not know.
        for record in &shipment.records {
            *state.records.entry(record.opening.id.to_string()).or_default() += 1;
        }
        serde_json::to_vec(&Receipt { stored: shipment.records.len() as u64, ..Receipt::default() })
    } else {
        let questions: Questions = serde_json::from_slice(&body).unwrap();
        state.questions += 1;
        let grants = questions.needs.into_iter().map(|question| {
            let requests = question.need.want.requests.min(state.grants);
            state.grants -= requests;
            let block = Block { requests, tokens: 0 };
            let retry_after_ms = if requests < question.need.least.requests { 30_000 } else { 0 };
            let sequence = question.need.sequence;
            let grant = Grant { sequence, block, slots: question.need.slots, valid_ms: 10_000, retry_after_ms };
            Answer { scope: question.scope, grant }
        });
        serde_json::to_vec(&Answers { grants: grants.collect() })
    };
    let mut response = Response::new(Full::new(Bytes::from(answer.unwrap())));
    if state.failing > 0 {
        state.failing -= 1;
        *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
    }
    Ok(response)
}

/// Records come at least once, whatever the service says, and the log forgets them when it has said yes.
#[tokio::test]
async fn every_bill_is_shipped() {
    let engine = Engine::start(Script::default()).await;
    let stage = Stage::new(&[&engine]).await;
    for _ in 0..5 {
        text(stage.chat(json!({})).await).await;
    }
    let ids: Vec<String> = stage.bills(5).await.iter().map(|bill| bill.opening.id.to_string()).collect();
    let state = Arc::new(Mutex::new(State { failing: 2, ..State::default() }));
    let service = start(Arc::clone(&state)).await;
    tokio::spawn(ship(Arc::clone(&stage.gateway), service, "gateway-0".into()));
    let shipped = || stage.gateway.metrics().lines().any(|line| line == "spillway_gateway_log_unshipped 0");
    assert!(!shipped(), "nothing is shipped yet");
    until("the log to be shipped", shipped).await;
    let seen = state.lock().unwrap().records.clone();
    assert!(ids.iter().all(|id| seen.get(id) == Some(&3)), "twice in vain, and then once more: {seen:?}");
    // What comes later is shipped as well.
    text(stage.chat(json!({"stream": true})).await).await;
    until("the next to be shipped", || state.lock().unwrap().records.len() == 6).await;
}

/// A bill that the service never takes stops none behind it: it is set aside, and shown.
#[tokio::test]
async fn a_bill_that_is_never_taken_is_set_aside() {
    let engine = Engine::start(Script::default()).await;
    let stage = Stage::new(&[&engine]).await;
    for _ in 0..5 {
        text(stage.chat(json!({})).await).await;
    }
    let ids: Vec<String> = stage.bills(5).await.iter().map(|bill| bill.opening.id.to_string()).collect();
    let state = Arc::new(Mutex::new(State { refuses: Some(ids[1].clone()), ..State::default() }));
    let service = start(Arc::clone(&state)).await;
    tokio::spawn(ship(Arc::clone(&stage.gateway), service, "gateway-0".into()));
    let shows = |line: &str| stage.gateway.metrics().lines().any(|shown| shown == line);
    until("the log to be shipped", || shows("spillway_gateway_log_unshipped 0")).await;
    let seen = state.lock().unwrap().records.clone();
    assert_eq!(seen.len(), 4, "all but one: {seen:?}");
    assert!(seen.values().all(|times| *times == 1) && !seen.contains_key(&ids[1]), "{seen:?}");
    assert!(shows("spillway_gateway_log_set_aside 1"), "{}", stage.gateway.metrics());
    // What comes later is shipped as well.
    text(stage.chat(json!({})).await).await;
    until("the next to be shipped", || state.lock().unwrap().records.len() == 5).await;
}

/// With several gateways a request is let in by what is granted, and told when there will be more.
#[tokio::test]
async fn limits_are_leased() {
    let engine = Engine::start(Script::default()).await;
    let key = Limits { requests_per_minute: Some(100), ..Limits::default() };
    let stage = Stage::with(Setting { key, mode: Mode::Leased, ..Setting::default() }, &[&engine]).await;
    // Nobody answers for the limits yet.
    assert_eq!(stage.chat(json!({})).await.status(), StatusCode::SERVICE_UNAVAILABLE);
    let state = Arc::new(Mutex::new(State { grants: 20, ..State::default() }));
    let service = start(Arc::clone(&state)).await;
    tokio::spawn(lease(Arc::clone(&stage.gateway), service, "gateway-0/1".into()));
    let mut statuses = Vec::new();
    for _ in 0..30 {
        statuses.push(stage.chat(json!({})).await.status().as_u16());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let good = statuses.iter().filter(|status| **status == 200).count();
    assert_eq!(good, 20, "as many as were granted: {statuses:?}");
    assert!(statuses.iter().all(|status| [200, 429].contains(status)), "{statuses:?}");
    assert!(state.lock().unwrap().questions > 1);
    stage.at_rest().await;
}
