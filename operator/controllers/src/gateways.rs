//! Gateways and what they tell of their load: a question is open at each of them all the time, and answered at once when a request waits for a replica.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures::StreamExt as _;
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper_util::{
    client::legacy::{Client as HttpClient, connect::HttpConnector},
    rt::TokioExecutor,
};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::{
    Api, Client,
    runtime::{WatchStreamExt as _, reflector, watcher},
};
use spillway_crds::names::GATEWAY_LOAD_SERVICE;
use spillway_metering::load::{LoadReport, PATIENCE_MS};
use tokio::{sync::Notify, task::AbortHandle};

use crate::loads::{Address, Loads};

/// Name of the port of gateways that tells.
const PORT: &str = "admin";
/// How long an answer may take beyond the gateway's patience.
const SLACK: Duration = Duration::from_secs(2);
/// Bytes of an answer: enough for ten thousand endpoints.
const ANSWER_BYTES: usize = 4 << 20;
/// Between an answer and the next question,
const PAUSE: Duration = Duration::from_millis(5);
/// and after a question that failed.
const FAILED: Duration = Duration::from_millis(500);

/// What is known of the load, and who is told of news.
pub struct Gateways {
    start: Instant,
    loads: Mutex<Loads>,
    /// Told with each answer.
    pub news: Notify,
}

impl Default for Gateways {
    fn default() -> Self {
        Self { start: Instant::now(), loads: Mutex::default(), news: Notify::new() }
    }
}

impl Gateways {
    /// Milliseconds of the clock by which loads are asked.
    pub fn now_ms(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// What is known of the load.
    pub fn loads(&self) -> MutexGuard<'_, Loads> {
        self.loads.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Finds gateways and asks them, and never ends by itself.
    pub async fn follow(self: Arc<Self>, client: Client, namespace: String) {
        let mut http = HttpConnector::new();
        http.set_connect_timeout(Some(SLACK));
        let http: HttpClient<_, Empty<Bytes>> = HttpClient::builder(TokioExecutor::new()).build(http);
        let (store, writer) = reflector::store::<EndpointSlice>();
        let labels = format!("kubernetes.io/service-name={GATEWAY_LOAD_SERVICE}");
        let config = watcher::Config::default().streaming_lists().labels(&labels);
        let stream = watcher(Api::<EndpointSlice>::namespaced(client, &namespace), config);
        let mut stream = Box::pin(stream.default_backoff().reflect(writer));
        let mut asked: HashMap<SocketAddr, Asking> = HashMap::new();
        while let Some(event) = stream.next().await {
            match event {
                Ok(watcher::Event::Init | watcher::Event::InitApply(_)) => continue,
                Ok(_) => {}
                Err(error) => {
                    tracing::warn!(kind = "EndpointSlice", %error, "a watch failed; it is tried again");
                    continue;
                }
            }
            let named: Vec<Address> = store.state().iter().flat_map(|slice| addresses(slice)).collect();
            self.loads().set_gateways(&named, self.now_ms());
            asked.retain(|address, _| named.iter().any(|one| one.address == *address));
            for one in named {
                let ask = || {
                    let asking = Arc::clone(&self).ask(http.clone(), one.address);
                    Asking(tokio::spawn(asking).abort_handle())
                };
                asked.entry(one.address).or_insert_with(ask);
            }
        }
    }

    /// Asks a gateway again and again.
    async fn ask(self: Arc<Self>, http: HttpClient<HttpConnector, Empty<Bytes>>, address: SocketAddr) {
        // No gateway had so many calls: the first answer comes at once.
        let mut after = u64::MAX;
        let mut failing = false;
        loop {
            match ask_once(&http, address, after).await {
                Ok(report) => {
                    after = report.calls;
                    self.loads().note(address, report, self.now_ms());
                    self.news.notify_one();
                    failing = false;
                    tokio::time::sleep(PAUSE).await;
                }
                Err(error) => {
                    if !std::mem::replace(&mut failing, true) {
                        tracing::warn!(%address, error, "a gateway does not tell its load; it is asked again");
                    }
                    // It may have begun anew.
                    after = u64::MAX;
                    tokio::time::sleep(FAILED).await;
                }
            }
        }
    }
}

/// A gateway that is asked until this is dropped.
struct Asking(AbortHandle);

impl Drop for Asking {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// The gateways in a slice.
fn addresses(slice: &EndpointSlice) -> Vec<Address> {
    let port = slice.ports.iter().flatten().find(|port| port.name.as_deref() == Some(PORT));
    let Some(port) = port.and_then(|port| u16::try_from(port.port?).ok()) else { return Vec::new() };
    let address = |one: &k8s_openapi::api::discovery::v1::Endpoint| {
        let address: IpAddr = one.addresses.first()?.parse().ok()?;
        // The Service publishes those that are not Ready as Ready; that one serves is told by `serving`.
        let conditions = one.conditions.as_ref();
        let ends = conditions.and_then(|conditions| conditions.terminating).unwrap_or(false);
        let serving = conditions.and_then(|conditions| conditions.serving).unwrap_or(true);
        Some(Address { address: SocketAddr::new(address, port), ready: serving && !ends })
    };
    slice.endpoints.iter().flatten().filter_map(address).collect()
}

async fn ask_once(
    http: &HttpClient<HttpConnector, Empty<Bytes>>,
    address: SocketAddr,
    after: u64,
) -> Result<LoadReport, String> {
    let uri = format!("http://{address}/load?after={after}").parse().map_err(|error| format!("{error}"))?;
    let asking = async {
        let answer = http.get(uri).await.map_err(|error| format!("{error}"))?;
        if !answer.status().is_success() {
            return Err(format!("it answers {}", answer.status()));
        }
        let body = Limited::new(answer.into_body(), ANSWER_BYTES).collect().await.map_err(|error| error.to_string())?;
        serde_json::from_slice(&body.to_bytes()).map_err(|error| error.to_string())
    };
    let limit = Duration::from_millis(PATIENCE_MS) + SLACK;
    tokio::time::timeout(limit, asking).await.map_err(|_| "no answer in time".to_owned())?
}
