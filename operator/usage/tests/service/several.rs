//! Several services of one PostgreSQL: one leases limits, the others ask it, and no limit is granted twice, whoever dies or is cut off.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::{Request, StatusCode};
use serde_json::json;
use spillway_metering::lease::{Answers, Block, Grant};
use spillway_tls::Caller;
use spillway_usage::forward::{FORWARDED, Forward};
use spillway_usage::holder;
use spillway_usage::leases::Config;
use spillway_usage::server::{Service, posts};
use spillway_usage::socket::{listen, serve_until};
use spillway_usage::store::{Migration, Place, Store};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

use crate::postgres::Server;
use crate::tls::{Authority, GATEWAY, Mount, USAGE};

const HOLDING: holder::Config = holder::Config { term_ms: 1_500, margin_ms: 200, look_ms: 100 };
const LEASES: Config = Config { parts: 4, valid_ms: 700 };
/// In a minute: a token each microsecond.
const TOKENS: u64 = 60_000_000;
const SLOTS: u32 = 5;
const BOUND: Duration = Duration::from_secs(20);

/// One service, as its process would be.
struct Replica {
    address: SocketAddr,
    service: Arc<Service>,
    tasks: Vec<JoinHandle<()>>,
}

impl Replica {
    async fn start(place: &Place, authority: &Authority) -> Self {
        let store = Store::open(place, Migration::Apply).await.unwrap();
        let mount = Mount::new(authority, authority, USAGE, 2099);
        let listener = listen("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let address = listener.local_addr().unwrap();
        let caller = Caller::new(mount.client().await, USAGE).unwrap();
        let forward = Forward { caller, address: format!("https://{address}") };
        let service = Service::one_of_several(store, LEASES, HOLDING, Some(forward));
        let tls = mount.server(&[GATEWAY, USAGE]).await;
        let serving = serve_until(listener, posts(Arc::clone(&service)), Some(tls), std::future::pending());
        let tasks = vec![tokio::spawn(Arc::clone(&service).lead(HOLDING)), tokio::spawn(serving)];
        Self { address, service, tasks }
    }

    /// Without a word to anybody.
    fn kill(self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

/// A gateway that takes all that it is granted.
struct Gateway {
    name: &'static str,
    caller: Caller,
    sequence: u64,
    /// When slots were asked for, and how many were granted.
    slots: Vec<(Instant, u32)>,
    tokens: u64,
}

impl Gateway {
    async fn new(name: &'static str, authority: &Authority) -> Self {
        let mount = Mount::new(authority, authority, GATEWAY, 2099);
        let caller = Caller::new(mount.client().await, USAGE).unwrap();
        Self { name, caller, sequence: 0, slots: Vec::new(), tokens: 0 }
    }

    /// Asks for more than there is. Whether there was an answer.
    async fn ask(&mut self, address: SocketAddr, direct: bool) -> Option<Vec<Grant>> {
        self.sequence += 1;
        let none = Block::default();
        let need = json!({"sequence": self.sequence, "held": none, "returned": none, "least": none, "leastSlots": 0,
                          "want": {"requests": 0, "tokens": TOKENS}, "slots": SLOTS});
        let body = json!({"gateway": self.name, "needs": [
            {"tenant": "acme", "limits": {"tokensPerMinute": TOKENS}, "need": need},
            {"tenant": "beta", "limits": {"concurrency": SLOTS}, "need": need},
        ]});
        let mut request = Request::post(format!("https://{address}/v1/leases"));
        if direct {
            request = request.header(FORWARDED, "1");
        }
        let request = request.body(Full::new(Bytes::from(body.to_string()))).unwrap();
        let asked = Instant::now();
        let answer = tokio::time::timeout(Duration::from_secs(1), self.caller.request(request)).await.ok()?.ok()?;
        let status = answer.status();
        let body = answer.into_body().collect().await.ok()?.to_bytes();
        if status != StatusCode::OK {
            assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE, "{body:?}");
            return None;
        }
        let answers: Answers = serde_json::from_slice(&body).unwrap();
        for answer in &answers.grants {
            self.tokens += answer.grant.block.tokens;
            if answer.scope.tenant.as_str() == "beta" {
                self.slots.push((asked, answer.grant.slots));
            }
        }
        Some(answers.grants.into_iter().map(|answer| answer.grant).collect())
    }

    /// Slots that it may use, by its own clock.
    fn live(&self) -> u32 {
        let valid = Duration::from_millis(LEASES.valid_ms);
        self.slots.iter().rfind(|(asked, _)| asked.elapsed() < valid).map_or(0, |(_, slots)| *slots)
    }
}

/// What all were granted, over all that happened.
struct Watch {
    begun: Instant,
    gateways: [Gateway; 2],
}

impl Watch {
    async fn new(authority: &Authority) -> Self {
        let gateways = [Gateway::new("a", authority).await, Gateway::new("b", authority).await];
        Self { begun: Instant::now(), gateways }
    }

    /// Lets both ask, each its replica, until somebody has answered with tokens; how long that took.
    async fn until_granted(&mut self, addresses: [SocketAddr; 2]) -> Duration {
        let begun = Instant::now();
        loop {
            assert!(begun.elapsed() < BOUND, "nobody grants anything");
            if self.ask(addresses).await {
                return begun.elapsed();
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn ask(&mut self, addresses: [SocketAddr; 2]) -> bool {
        let mut granted = false;
        for (gateway, address) in self.gateways.iter_mut().zip(addresses) {
            let grants = gateway.ask(address, false).await.unwrap_or_default();
            granted |= grants.iter().any(|grant| grant.block.tokens > 0);
        }
        self.check();
        granted
    }

    fn check(&self) {
        // Buckets are empty at first, so all that was granted has come since.
        let (tokens, most) =
            (self.gateways.iter().map(|one| one.tokens).sum::<u64>(), self.begun.elapsed().as_micros());
        assert!(u128::from(tokens) <= most, "{tokens} granted of {most}");
        let slots: u32 = self.gateways.iter().map(Gateway::live).sum();
        assert!(slots <= SLOTS, "{slots} of {SLOTS} slots at once");
    }
}

fn leasing(replicas: &[&Replica]) -> Vec<bool> {
    replicas.iter().map(|replica| replica.service.is_leasing()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn one_leases_and_when_it_dies_the_other_does() {
    let server = Server::start();
    let database = server.new_database();
    let authority = Authority::new();
    let mut watch = Watch::new(&authority).await;
    let first = Replica::start(&server.place(&database), &authority).await;
    watch.until_granted([first.address; 2]).await;
    let second = Replica::start(&server.place(&database), &authority).await;
    let both = [first.address, second.address];
    let end = Instant::now() + Duration::from_secs(3);
    let mut answered = [0, 0];
    while Instant::now() < end {
        for (which, address) in both.into_iter().enumerate() {
            answered[which] += u32::from(watch.gateways[which].ask(address, false).await.is_some());
        }
        watch.check();
        assert_eq!(leasing(&[&first, &second]), [true, false]);
    }
    assert!(answered.iter().all(|count| *count > 20), "each answers, one by asking the other: {answered:?}");
    assert_eq!(watch.gateways[1].ask(second.address, true).await, None, "what is forwarded is not forwarded again");
    let tokens: u64 = watch.gateways.iter().map(|one| one.tokens).sum();
    assert!(u128::from(tokens) * 2 > watch.begun.elapsed().as_micros(), "{tokens}: the bound shows nothing");

    // It dies, with its connections to the database.
    first.kill();
    let terminate = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'spillway-usage'";
    server.sql(&database, terminate);
    let took = watch.until_granted([second.address; 2]).await;
    println!("another one grants after {took:?}");
    assert!(took < Duration::from_secs(5), "{took:?}");
    let third = Replica::start(&server.place(&database), &authority).await;
    for _ in 0..100 {
        watch.ask([second.address, third.address]).await;
    }
    assert_eq!(leasing(&[&second, &third]), [true, false]);

    // One that ends in an orderly way is not waited for.
    second.tasks[0].abort();
    second.service.leave().await.unwrap();
    assert!(!second.service.is_leasing());
    let took = watch.until_granted([second.address, third.address]).await;
    println!("and after an orderly end after {took:?}");
    assert!(took < Duration::from_millis(HOLDING.term_ms), "{took:?}");
    third.kill();
    second.kill();
}

/// A way to the database that can be cut: what is on it stays there, and no end hears of it.
async fn cuttable(port: u16) -> (u16, Arc<AtomicBool>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let cut = Arc::new(AtomicBool::new(false));
    let is_cut = Arc::clone(&cut);
    tokio::spawn(async move {
        let mut kept = Vec::new();
        while let Ok((mut from, _)) = listener.accept().await {
            if is_cut.load(Ordering::Relaxed) {
                kept.push(from);
                continue;
            }
            let mut to = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
            let is_cut = Arc::clone(&is_cut);
            tokio::spawn(async move {
                let copying = tokio::io::copy_bidirectional(&mut from, &mut to);
                tokio::select! {
                    _ = copying => return,
                    () = async { while !is_cut.load(Ordering::Relaxed) { tokio::time::sleep(Duration::from_millis(1)).await; } } => {}
                }
                // Both are held open.
                std::future::pending::<()>().await;
            });
        }
    });
    (address.port(), cut)
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_is_cut_off_has_stopped_before_another_starts() {
    let server = Server::start();
    let database = server.new_database();
    let authority = Authority::new();
    let mut watch = Watch::new(&authority).await;
    let (port, cut) = cuttable(server.port()).await;
    let url = format!("postgres://usage@127.0.0.1:{port}/{database}?sslmode=disable");
    let first = Replica::start(&Place::Postgres { url, authority: None }, &authority).await;
    watch.until_granted([first.address; 2]).await;
    let second = Replica::start(&server.place(&database), &authority).await;
    for _ in 0..20 {
        watch.ask([first.address, second.address]).await;
    }
    cut.store(true, Ordering::Relaxed);
    let begun = Instant::now();
    let (mut last_of_old, mut first_of_new) = (begun, None);
    while first_of_new.is_none() || begun.elapsed() < Duration::from_secs(5) {
        assert!(begun.elapsed() < BOUND, "nobody takes over");
        // Each of its own: nothing is forwarded.
        if watch.gateways[0].ask(first.address, true).await.is_some() {
            last_of_old = Instant::now();
        }
        let asked = Instant::now();
        if watch.gateways[1].ask(second.address, true).await.is_some() && first_of_new.is_none() {
            first_of_new = Some(asked);
        }
        watch.check();
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let first_of_new = first_of_new.unwrap();
    println!("it stopped after {:?}, and another began after {:?}", last_of_old - begun, first_of_new - begun);
    assert!(last_of_old > begun, "who is cut off grants to the end of its term");
    assert!(last_of_old < first_of_new, "two granted at once");
    assert!(first_of_new - begun < Duration::from_secs(5));
    // Back again, it asks who leases now.
    cut.store(false, Ordering::Relaxed);
    let begun = Instant::now();
    while watch.gateways[0].ask(first.address, false).await.is_none() {
        assert!(begun.elapsed() < BOUND, "it is not answered");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(leasing(&[&first, &second]), [false, true]);
    watch.check();
    first.kill();
    second.kill();
}
