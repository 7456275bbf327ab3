//! A gateway is killed under load and does not come back: its log is replayed by the subcommand. The usage service's edge is played here, with failures;
//! the real one takes a replay in `e2e/tests/limits`.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use serde_json::Value;
use spillway_metering::shipping::{Receipt, Shipment};
use spillway_metering::tokens::UsageRecord;

use crate::engine::{Engine, Script, usage};
use crate::{CLIENTS, Seen, TOKENS, ask, check, free_port, start};

/// What the service has, and how it is to answer.
#[derive(Default)]
struct State {
    stored: BTreeMap<String, UsageRecord>,
    /// How many answers more are failures, of what is stored nevertheless.
    failing: u32,
    /// A request whose record it never takes.
    refuses: Option<String>,
}

async fn serve(state: Arc<Mutex<State>>) -> SocketAddr {
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
    address
}

async fn answer(
    state: Arc<Mutex<State>>,
    request: Request<Incoming>,
) -> Result<Response<Full<Bytes>>, std::convert::Infallible> {
    let body = request.into_body().collect().await.unwrap().to_bytes();
    let shipment: Shipment = serde_json::from_slice(&body).unwrap();
    let mut state = state.lock().unwrap();
    let mut receipt = Receipt::default();
    let mut status = StatusCode::OK;
    if shipment.records.iter().any(|record| Some(record.opening.id.to_string()) == state.refuses) {
        status = StatusCode::UNPROCESSABLE_ENTITY;
    } else {
        for record in shipment.records {
            // The same record each time, or it was billed otherwise.
            match state.stored.insert(record.opening.id.to_string(), record.clone()) {
                Some(before) if before == record => receipt.known += 1,
                Some(_) => receipt.differing += 1,
                None => receipt.stored += 1,
            }
        }
        assert_eq!(receipt.differing, 0, "a request was billed in two ways");
        if state.failing > 0 {
            state.failing -= 1;
            status = StatusCode::SERVICE_UNAVAILABLE;
        }
    }
    let mut response = Response::new(Full::new(Bytes::from(serde_json::to_vec(&receipt).unwrap())));
    *response.status_mut() = status;
    Ok(response)
}

/// Runs the subcommand: its status, what it printed, and what it said.
async fn replay(log: &Path, more: &[&str]) -> (i32, Value, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_spillway-gateway"));
    command.args(["--log-format", "text", "replay", "--log-directory"]).arg(log).args(more).stdin(Stdio::null());
    let output: Output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
    let report = serde_json::from_slice(&output.stdout).unwrap_or(Value::Null);
    (output.status.code().unwrap(), report, String::from_utf8_lossy(&output.stderr).into_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_whose_gateway_is_gone_is_replayed() {
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("log");
    let nowhere = free_port();
    let (code, _, said) = replay(&log, &["--dry-run"]).await;
    assert!(code == 1 && said.contains("there is no log in") && !log.exists(), "{said}");

    let script =
        Script { tokens: TOKENS, pause: Duration::from_millis(1), usage: Some(usage(7, TOKENS)), ..Script::default() };
    let engine = Engine::start(script).await;
    let (process, gateway) = start(folder.path(), engine.address).await;
    let seen: Seen = Arc::default();
    let mut clients = tokio::task::JoinSet::new();
    for _ in 0..CLIENTS {
        clients.spawn(ask(gateway, Arc::clone(&seen)));
    }
    tokio::time::sleep(Duration::from_millis(900)).await;
    // While it is written nobody else may have it.
    for more in [vec!["--dry-run"], vec!["--usage", "http://127.0.0.1:9"]] {
        let (code, _, said) = replay(&log, &more).await;
        assert!(code == 1 && said.contains("is being written by another process"), "{said}");
    }
    drop(process);
    clients.join_all().await;
    let segments = || std::fs::read_dir(&log).unwrap().map(|file| file.unwrap().path());
    let last = segments().filter(|path| path.extension().is_some_and(|one| one == "log")).max().unwrap();
    let bytes = std::fs::read(&last).unwrap();
    std::fs::write(&last, [bytes.as_slice(), b"torn"].concat()).unwrap();

    // Looking changes nothing, and a service that is away loses nothing.
    let (code, looked, said) = replay(&log, &["--dry-run"]).await;
    assert_eq!((code, &replay(&log, &["--dry-run"]).await.1), (3, &looked), "{said}");
    let count =
        |report: &Value, field: &str| report[field].as_u64().unwrap_or_else(|| panic!("no {field} in {report}"));
    assert!(count(&looked, "crashed") > 0 && count(&looked, "tornBytes") == 4, "{looked}");
    assert!(count(&looked, "unshipped") > count(&looked, "crashed"), "{looked}");
    let (code, away, said) = replay(&log, &["--usage", &format!("http://{nowhere}"), "--patience", "0"]).await;
    assert_eq!((code, count(&away, "left")), (3, count(&looked, "unshipped")), "{said}");
    assert!(away["why"].as_str().unwrap().contains("no answer"), "{away}");

    // Two answers fail of what was stored: it comes again.
    let state = Arc::new(Mutex::new(State { failing: 2, ..State::default() }));
    let service = format!("http://{}", serve(Arc::clone(&state)).await);
    let (code, done, said) = replay(&log, &["--usage", &service]).await;
    assert_eq!((code, count(&done, "left"), count(&done, "crashed")), (0, 0, 0), "{done} {said}");
    assert_eq!(count(&done, "stored"), count(&looked, "unshipped"), "{done}");
    let bills: Vec<UsageRecord> = state.lock().unwrap().stored.values().cloned().collect();
    assert_eq!(bills.len() as u64, count(&looked, "unshipped"));
    let wrong = check(&bills, &engine.seen().produced, &seen.lock().unwrap());
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));

    // Once more there is nothing.
    let (code, again, _) = replay(&log, &["--usage", &service]).await;
    assert_eq!((code, count(&again, "unshipped"), count(&again, "stored")), (0, 0, 0), "{again}");
    assert_eq!(replay(&log, &["--dry-run"]).await.0, 0);
}

/// One record that the service never takes does not stop the others, is kept, and goes when a newer service takes it.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_never_taken_is_set_aside() {
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("log");
    let engine = Engine::start(Script { tokens: TOKENS, usage: Some(usage(7, TOKENS)), ..Script::default() }).await;
    let (process, gateway) = start(folder.path(), engine.address).await;
    let seen: Seen = Arc::default();
    let client = tokio::spawn(ask(gateway, Arc::clone(&seen)));
    while seen.lock().unwrap().values().filter(|seen| seen.done).count() < 9 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    drop(process);
    client.await.unwrap();
    let refused = seen.lock().unwrap().iter().find(|(_, seen)| seen.done).unwrap().0.clone();
    let state = Arc::new(Mutex::new(State { refuses: Some(refused.clone()), ..State::default() }));
    let service = format!("http://{}", serve(Arc::clone(&state)).await);
    let (code, report, said) = replay(&log, &["--usage", &service]).await;
    assert_eq!((code, &report["left"], &report["setAside"]), (3, &0.into(), &1.into()), "{report} {said}");
    assert!(said.contains(&refused), "{said}");
    let unshipped = report["unshipped"].as_u64().unwrap();
    assert_eq!(report["stored"].as_u64(), Some(unshipped - 1));
    assert_eq!(state.lock().unwrap().stored.len() as u64, unshipped - 1);
    let lines = std::fs::read_to_string(log.join("refused.jsonl")).unwrap();
    assert!(lines.lines().count() == 1 && lines.contains(&refused), "{lines}");
    // It stays as long as it is refused.
    let (code, again, _) = replay(&log, &["--usage", &service]).await;
    assert_eq!((code, &again["unshipped"], &again["setAside"]), (3, &0.into(), &1.into()), "{again}");
    state.lock().unwrap().refuses = None;
    let (code, taken, _) = replay(&log, &["--usage", &service]).await;
    assert_eq!((code, &taken["stored"], &taken["setAside"]), (0, &1.into(), &0.into()), "{taken}");
    assert!(state.lock().unwrap().stored.contains_key(&refused));
}
