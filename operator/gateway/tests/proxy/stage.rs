//! A gateway between scripted engines and a client, all on loopback.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::{Request, Response};
use hyper_util::client::legacy::{Client, connect::HttpConnector};
use hyper_util::rt::TokioExecutor;
use rustls::RootCertStore;
use serde_json::{Value, json};
use spillway_crds::Preset;
use spillway_gateway::admission::{self, Admission, Mode};
use spillway_gateway::catalogue::{Absence, Catalogue, Replica, Routing, Served, Target};
use spillway_gateway::fleet::Fleet;
use spillway_gateway::keys::{AllowedModels, Key, KeyId, Keyring, PresentedKey, Secret, mint};
use spillway_gateway::providers::Providers;
use spillway_gateway::proxy::{Gateway, Limits, Parts, Stage as Phase};
use spillway_gateway::request::Endpoint;
use spillway_gateway::routing::{Cache, Config, Cost, EngineId, Peers};
use spillway_gateway::telemetry::{Otlp, Telemetry};
use spillway_gateway::wal::{self, Durability, Wal};
use spillway_gateway::{kv_cache, server};
use spillway_metering::tokens::UsageRecord;
use tempfile::TempDir;
use tokio::sync::watch;

use crate::engine::Engine;

/// Longest time of anything that takes milliseconds on an idle machine.
pub(crate) const BOUND: Duration = Duration::from_secs(20);

pub(crate) struct Stage {
    pub(crate) gateway: Arc<Gateway>,
    pub(crate) address: SocketAddr,
    pub(crate) catalogue: watch::Sender<Arc<Catalogue>>,
    pub(crate) phase: watch::Sender<Phase>,
    pub(crate) admission: Arc<Admission>,
    pub(crate) server: tokio::task::JoinHandle<()>,
    pub(crate) telemetry: Arc<Telemetry>,
    client: Client<HttpConnector, Full<Bytes>>,
    /// Where the log is.
    pub(crate) log: TempDir,
}

/// What a stage is made with.
pub(crate) struct Setting {
    pub(crate) limits: Limits,
    pub(crate) server: server::Limits,
    pub(crate) key: admission::Limits,
    pub(crate) log_bytes: u64,
    pub(crate) mode: Mode,
    pub(crate) tls: Option<Arc<spillway_tls::Server>>,
    pub(crate) providers: Arc<Providers>,
    pub(crate) otlp: Option<Otlp>,
}

impl Default for Setting {
    fn default() -> Self {
        let limits = Limits { idle: Duration::from_secs(10), first_byte: Duration::from_secs(10), ..Limits::default() };
        Self {
            limits,
            server: server::Limits::default(),
            key: admission::Limits::default(),
            log_bytes: 16 << 20,
            mode: Mode::Local,
            tls: None,
            providers: Providers::new(None, RootCertStore::empty(), limits.connect).unwrap(),
            otlp: None,
        }
    }
}

/// The key of `acme`.
pub(crate) fn key() -> String {
    mint(KeyId::new(&[7; 5]), &[7; 32])
}

fn keyring(limits: admission::Limits) -> Keyring {
    let text = key();
    let presented = PresentedKey::parse(&text).unwrap();
    let key = Key {
        id: presented.id(),
        tenant: "acme".into(),
        namespace: "acme".into(),
        secrets: vec![Secret { hash: presented.hash(), expires_at_ms: None }],
        expires_at_ms: None,
        revoked: false,
        models: AllowedModels::All,
        limits,
        residency: Default::default(),
    };
    [key].into_iter().collect()
}

/// An endpoint of `acme` that these engines serve.
pub(crate) fn served(name: &str, capabilities: &[Endpoint], engines: &[SocketAddr]) -> Served {
    let replica = |(number, address): (u64, &SocketAddr)| Replica {
        name: format!("{name}-{number}").into(),
        engine: EngineId(number),
        target: Target::Pod(*address),
        version: "v1".into(),
        served_name: "engine/tiny".to_owned(),
        preset: Preset::OpenAi,
    };
    Served {
        namespace: "acme".into(),
        name: name.into(),
        tenant: "acme".into(),
        shared_with: Default::default(),
        model: "tiny".into(),
        version: "v1".into(),
        served_name: "engine/tiny".to_owned(),
        capabilities: capabilities.iter().copied().collect(),
        context_length: 4_096,
        created: 1_700_000_000,
        wanted: 1,
        kv_cache_target: None,
        absence: Absence::Stopped,
        replicas: (0..).zip(engines).map(replica).collect(),
        routing: Routing::default(),
    }
}

pub(crate) fn catalogue(limits: admission::Limits, engines: &[SocketAddr]) -> Catalogue {
    let all = [
        served("chat", &[Endpoint::ChatCompletions, Endpoint::Completions], engines),
        served("embed", &[Endpoint::Embeddings], engines),
    ];
    let endpoints = all.into_iter().map(|one| ((one.namespace.clone(), one.name.clone()), Arc::new(one))).collect();
    Catalogue { keys: keyring(limits), endpoints, ..Catalogue::default() }
}

impl Stage {
    pub(crate) async fn new(engines: &[&Engine]) -> Self {
        Self::with(Setting::default(), engines).await
    }

    pub(crate) async fn with(setting: Setting, engines: &[&Engine]) -> Self {
        let addresses: Vec<SocketAddr> = engines.iter().map(|engine| engine.address).collect();
        let log = TempDir::new().unwrap();
        let mut config = wal::Config::new(log.path(), Durability::Process, setting.log_bytes);
        config.segment_bytes = config.segment_bytes.max(wal::LEAST_SEGMENT_BYTES);
        let (wal, _) = Wal::open(config).unwrap();
        let (catalogue, known) = watch::channel(Arc::new(catalogue(setting.key, &addresses)));
        let (phase, stage) = watch::channel(Phase::Serving);
        let routing = Config { cache: Cache::AtMost(4096), peers: Peers::None, cost: Cost::default(), seed: 1 };
        let admission = Arc::new(Admission::new(setting.mode));
        let telemetry = Telemetry::new(setting.otlp);
        let gateway = Gateway::new(Parts {
            name: "gateway-0".into(),
            limits: setting.limits,
            catalogue: known,
            stage: stage.clone(),
            admission: Arc::clone(&admission),
            fleet: Fleet::new(routing),
            providers: setting.providers,
            wal,
            telemetry: Arc::clone(&telemetry),
        });
        tokio::spawn(Arc::clone(&gateway).follow());
        tokio::spawn(kv_cache::read(Arc::clone(&gateway)));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = tokio::spawn(server::serve(listener, Arc::clone(&gateway), setting.server, stage, setting.tls));
        tokio::task::yield_now().await;
        let client = Client::builder(TokioExecutor::new()).build(HttpConnector::new());
        Self { gateway, address, catalogue, phase, admission, server, telemetry, client, log }
    }

    /// A request with the key.
    pub(crate) fn request(&self, path: &str, body: impl Into<Bytes>) -> Request<Full<Bytes>> {
        Request::post(format!("http://{}{path}", self.address))
            .header("authorization", format!("Bearer {}", key()))
            .header("content-type", "application/json")
            .body(Full::new(body.into()))
            .unwrap()
    }

    pub(crate) async fn send(&self, request: Request<Full<Bytes>>) -> Response<Incoming> {
        tokio::time::timeout(BOUND, self.client.request(request)).await.expect("no answer in time").unwrap()
    }

    pub(crate) async fn chat(&self, more: Value) -> Response<Incoming> {
        self.send(self.request("/v1/chat/completions", chat(more).to_string())).await
    }

    /// The bills of the log, once there are so many.
    pub(crate) async fn bills(&self, count: usize) -> Vec<UsageRecord> {
        let begun = Instant::now();
        loop {
            let mut reader = self.gateway.wal().reader();
            let bills = reader.next(1000).unwrap().unwrap_or_default().records;
            if bills.len() >= count {
                assert_eq!(bills.len(), count, "{bills:?}");
                return bills;
            }
            assert!(begun.elapsed() < BOUND, "{} bills instead of {count}", bills.len());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// That nothing is left of any request: no slot, no open record.
    pub(crate) async fn at_rest(&self) {
        until("the gateway to be at rest", || {
            self.gateway.running() == 0 && self.admission.in_flight("acme") == 0 && self.gateway.wal().stats().open == 0
        })
        .await;
        assert_eq!(self.admission.counts().dropped, 0);
    }
}

pub(crate) fn chat(more: Value) -> Value {
    let mut body = json!({"model": "chat", "messages": [{"role": "user", "content": "Say something."}]});
    let (Value::Object(body_members), Value::Object(more)) = (&mut body, more) else { panic!("no objects") };
    body_members.extend(more);
    body
}

pub(crate) async fn until(what: &str, mut check: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !check() {
        assert!(begun.elapsed() < BOUND, "waited in vain for {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

pub(crate) async fn text(response: Response<Incoming>) -> String {
    let body = tokio::time::timeout(BOUND, response.into_body().collect()).await.expect("no end in time").unwrap();
    String::from_utf8(body.to_bytes().to_vec()).unwrap()
}

pub(crate) async fn value(response: Response<Incoming>) -> Value {
    serde_json::from_str(&text(response).await).unwrap()
}

/// The data of the events of a stream.
pub(crate) fn events(text: &str) -> Vec<&str> {
    text.split("\n\n").filter_map(|event| event.strip_prefix("data: ")).collect()
}
