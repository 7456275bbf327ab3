//! The gateway's process is killed under load, again and again, and whatever it let in is billed: once, and for what was produced.
//!
//! What is billed is read from the log by its own reader after the last kill; what was produced is counted by the engines, and what was received by the
//! clients. `SPILLWAY_GATEWAY_KILLS=100` kills more often (`make soak`).

#![allow(
    clippy::indexing_slicing,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test may fail loudly"
)]
#![allow(dead_code, reason = "the engine is that of another test")]

#[path = "../proxy/engine.rs"]
mod engine;
mod replay;

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::Request;
use hyper_util::client::legacy::{Client, connect::HttpConnector};
use hyper_util::rt::TokioExecutor;
use serde_json::json;
use spillway_crds::key::{KeyId, PresentedKey, mint};
use spillway_gateway::wal::{Config, Durability, Wal};
use spillway_metering::tokens::{Cause, Outcome, UsageRecord};

use engine::{Engine, Script, usage};

/// Clients at once.
const CLIENTS: u64 = 16;
/// Tokens of an answer.
const TOKENS: u64 = 200;
/// Tokens between two marks, and as many that the engine may produce before it finds that the gateway is gone.
const UNMARKED: u64 = 64 + 64;

fn key() -> String {
    mint(KeyId::new(&[7; 5]), &[7; 32])
}

/// What a client has seen of a request.
#[derive(Clone, Copy, Debug, Default)]
struct Received {
    tokens: u64,
    done: bool,
}

type Seen = Arc<Mutex<HashMap<String, Received>>>;

/// A gateway's process. Dropping it kills it.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn free_port() -> SocketAddr {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

async fn start(folder: &Path, engine: SocketAddr) -> (Process, SocketAddr) {
    let presented = key();
    let presented = PresentedKey::parse(&presented).unwrap();
    let catalogue = json!({
        "keys": [{"id": presented.id().as_str(), "sha256": presented.hash().to_hex(), "tenant": "acme", "namespace": "acme"}],
        "endpoints": [{"namespace": "acme", "name": "chat", "tenant": "acme", "model": "tiny", "version": "v1",
            "capabilities": ["Chat"], "contextLength": 4096, "replicas": [{"name": "chat-0", "address": engine}]}],
    });
    let file = folder.join("catalogue.yaml");
    std::fs::write(&file, catalogue.to_string()).unwrap();
    let (listen, admin) = (free_port(), free_port());
    let out = std::fs::OpenOptions::new().create(true).append(true).open(folder.join("gateway.txt")).unwrap();
    let child = Command::new(env!("CARGO_BIN_EXE_spillway-gateway"))
        .args(["--name", "gateway-0", "--durability", "process", "--log-format", "text", "--log-limit", "256"])
        .arg(format!("--listen={listen}"))
        .arg(format!("--admin={admin}"))
        .arg("--catalogue")
        .arg(&file)
        .arg("--log-directory")
        .arg(folder.join("log"))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(out)
        .spawn()
        .unwrap();
    let process = Process(child);
    let begun = Instant::now();
    while tokio::net::TcpStream::connect(listen).await.is_err() {
        assert!(begun.elapsed() < Duration::from_secs(20), "the gateway does not serve");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    (process, listen)
}

/// One client, which asks again and again until the gateway is gone.
async fn ask(gateway: SocketAddr, seen: Seen) {
    let client: Client<HttpConnector, Full<Bytes>> = Client::builder(TokioExecutor::new()).build(HttpConnector::new());
    let body =
        json!({"model": "chat", "stream": true, "messages": [{"role": "user", "content": "Count."}]}).to_string();
    loop {
        let request = Request::post(format!("http://{gateway}/v1/chat/completions"))
            .header("authorization", format!("Bearer {}", key()))
            .body(Full::new(Bytes::from(body.clone())))
            .unwrap();
        let Ok(mut response) = client.request(request).await else { return };
        assert_eq!(response.status().as_u16(), 200);
        let id = response.headers()["x-request-id"].to_str().unwrap().to_owned();
        let mut text = String::new();
        while let Some(Ok(frame)) = response.body_mut().frame().await {
            text.push_str(std::str::from_utf8(frame.data_ref().unwrap()).unwrap());
            let received =
                Received { tokens: text.matches("\"content\"").count() as u64, done: text.contains("[DONE]") };
            seen.lock().unwrap().insert(id.clone(), received);
        }
        if !text.contains("[DONE]") {
            return;
        }
    }
}

/// Everything that is wrong with the bills, as sentences.
fn check(bills: &[UsageRecord], produced: &HashMap<String, u64>, received: &HashMap<String, Received>) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut by_id: HashMap<String, &UsageRecord> = HashMap::new();
    for bill in bills {
        let id = bill.opening.id.to_string();
        let (billed, made) = (bill.ending.tokens.completion(), produced.get(&id).copied().unwrap_or(0));
        if by_id.insert(id.clone(), bill).is_some() {
            wrong.push(format!("{id} is billed twice"));
        }
        match bill.ending.outcome {
            Outcome::Complete if billed != TOKENS => wrong.push(format!("{id} is whole and billed for {billed}")),
            Outcome::Complete => {}
            Outcome::Partial(Cause::Crash) if billed > made => {
                wrong.push(format!("{id} is billed for {billed} of {made}"));
            }
            Outcome::Partial(Cause::Crash) if made - billed > UNMARKED => {
                wrong.push(format!("{id}: {made} were produced, and {billed} are billed"));
            }
            Outcome::Partial(Cause::Crash) => {}
            Outcome::Partial(other) => wrong.push(format!("{id} ended by {other:?}")),
        }
    }
    for (id, seen) in received {
        match by_id.get(id) {
            Some(bill) if seen.done && bill.ending.outcome != Outcome::Complete => {
                wrong.push(format!("{id} was received to its end, and is billed as {:?}", bill.ending.outcome));
            }
            // Its opening was not on the disk yet: then it had only just begun.
            None if seen.done || seen.tokens > UNMARKED => {
                wrong.push(format!("{id}: {} tokens were received, and nothing is billed", seen.tokens));
            }
            _ => {}
        }
    }
    let known: HashSet<&String> = produced.keys().collect();
    wrong.extend(
        by_id
            .keys()
            .filter(|id| !known.contains(id) && by_id[*id].ending.tokens.completion() > 0)
            .map(|id| format!("{id} is billed, and no engine has seen it")),
    );
    wrong
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_was_let_in_is_billed_once() {
    let kills: u32 = std::env::var("SPILLWAY_GATEWAY_KILLS").map_or(20, |kills| kills.parse().unwrap());
    let folder = tempfile::tempdir().unwrap();
    let script =
        Script { tokens: TOKENS, pause: Duration::from_millis(1), usage: Some(usage(7, TOKENS)), ..Script::default() };
    let engine = Engine::start(script).await;
    let seen: Seen = Arc::default();
    for kill in 0..kills {
        let (process, gateway) = start(folder.path(), engine.address).await;
        let mut clients = tokio::task::JoinSet::new();
        for _ in 0..CLIENTS {
            clients.spawn(ask(gateway, Arc::clone(&seen)));
        }
        // At another place in the streams each time: they take a quarter of a second or more.
        tokio::time::sleep(Duration::from_millis(150 + u64::from(kill) * 37 % 400)).await;
        // However slow the machine: some come to their end.
        let begun = std::time::Instant::now();
        while kill == 0 && !seen.lock().unwrap().values().any(|seen| seen.done) {
            assert!(begun.elapsed() < Duration::from_secs(60), "no request comes to its end");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        drop(process);
        clients.join_all().await;
    }
    // The last start bills what the last kill left open.
    let (wal, recovery) = Wal::open(Config::new(folder.path().join("log"), Durability::Process, 256 << 20)).unwrap();
    let mut bills = Vec::new();
    let mut reader = wal.reader();
    while let Some(shipment) = reader.next(1_000).unwrap() {
        bills.extend(shipment.records);
    }
    let (produced, received) = (engine.seen().produced, seen.lock().unwrap().clone());
    let count = |outcome: Outcome| bills.iter().filter(|bill| bill.ending.outcome == outcome).count();
    let (whole, cut) = (count(Outcome::Complete), count(Outcome::Partial(Cause::Crash)));
    let (requests, last) = (received.len(), recovery.crashed.len());
    eprintln!(
        "{kills} kills, {requests} requests: {whole} billed whole, {cut} in part, {last} of them after the last kill"
    );
    let wrong = check(&bills, &produced, &received);
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(whole > 0 && cut > 0, "nothing was shown: {whole} whole and {cut} in part");
    assert_eq!(wal.stats().open, 0);

    // The checker can fail.
    let mut broken = bills.clone();
    broken.push(bills[0].clone());
    assert_eq!(check(&broken, &produced, &received).len(), 1, "a bill that is there twice");
    let done = received.iter().find(|(_, seen)| seen.done).unwrap().0;
    let missing: Vec<UsageRecord> = bills.iter().filter(|bill| bill.opening.id.to_string() != *done).cloned().collect();
    assert_eq!(check(&missing, &produced, &received).len(), 1, "a bill that is not there");
}
