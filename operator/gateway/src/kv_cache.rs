//! How much of their KV caches replicas have in use, for the operator's scaling: read from the `/metrics` of their engines, which nobody but gateways
//! reaches (docs/adr/0012-scaling-of-endpoints.md). Only of endpoints that scale by it. What an engine does not tell is not known, and never 0.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt as _;
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::StatusCode;
use hyper_util::client::legacy::{Client, connect::HttpConnector};
use hyper_util::rt::{TokioExecutor, TokioTimer};
use spillway_metering::load::{CacheReading, CacheUnknown, EndpointCaches, ReplicaCache};
use tokio::time::MissedTickBehavior;

use crate::catalogue::{Catalogue, Replica, Target};
use crate::clock::Clock;
use crate::proxy::Gateway;
use crate::routing::EngineId;

mod exposition;

/// Between two readings of a replica. The operator takes one for three times as long.
const EVERY: Duration = Duration::from_secs(5);
/// How long an engine may take to answer.
const ANSWER: Duration = Duration::from_secs(3);
/// Bytes of an answer: vLLM's has a tenth of a MiB.
const ANSWER_BYTES: usize = 4 << 20;
/// Replicas that are read at once.
const AT_ONCE: usize = 64;

type Http = Client<HttpConnector, Empty<Bytes>>;

/// What was read of each replica.
#[derive(Debug)]
pub struct Caches {
    clock: Clock,
    readings: Mutex<HashMap<EngineId, Reading>>,
}

/// Millionths of a cache that were in use, and when that was read, in milliseconds of the clock; or why it is not known.
type Reading = Result<(u32, u64), CacheUnknown>;

impl Caches {
    /// Of nothing yet.
    pub fn new(clock: Clock) -> Self {
        Self { clock, readings: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<EngineId, Reading>> {
        self.readings.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the operator is told.
    pub fn report(&self, catalogue: &Catalogue) -> Vec<EndpointCaches> {
        let readings = self.lock();
        // After the lock: what was read was read before now.
        let now_ms = self.clock.now_ms();
        let reading = |replica: &Replica| match readings.get(&replica.engine) {
            Some(&Ok((millionths, at_ms))) => CacheReading::Used { millionths, age_ms: now_ms.saturating_sub(at_ms) },
            Some(&Err(why)) => CacheReading::Unknown(why),
            None => CacheReading::Unknown(CacheUnknown::NotRead),
        };
        let told = catalogue.endpoints.values().filter_map(|served| {
            let replica = |replica: &Replica| ReplicaCache { replica: replica.name.clone(), reading: reading(replica) };
            Some(EndpointCaches {
                namespace: served.namespace.clone(),
                endpoint: served.name.clone(),
                wanted: served.wanted,
                target_percent: served.kv_cache_target?,
                replicas: served.replicas.iter().map(replica).collect(),
            })
        });
        told.collect()
    }

    /// Replicas to be read: all, or those that never were. Forgets those that are gone.
    fn due(&self, catalogue: &Catalogue, all: bool) -> Vec<Replica> {
        let scaled = catalogue.endpoints.values().filter(|served| served.kv_cache_target.is_some());
        let replicas: Vec<&Replica> = scaled.flat_map(|served| &served.replicas).collect();
        let there: HashSet<EngineId> = replicas.iter().map(|replica| replica.engine).collect();
        let mut readings = self.lock();
        readings.retain(|engine, _| there.contains(engine));
        replicas.into_iter().filter(|replica| all || !readings.contains_key(&replica.engine)).cloned().collect()
    }

    fn note(&self, engine: EngineId, read: Result<u32, CacheUnknown>) {
        let now_ms = self.clock.now_ms();
        let mut readings = self.lock();
        // One that does not answer once is known by its last answer, as long as that counts.
        if read == Err(CacheUnknown::NoAnswer) && readings.get(&engine).is_some_and(Result::is_ok) {
            return;
        }
        readings.insert(engine, read.map(|millionths| (millionths, now_ms)));
    }
}

/// Reads the replicas again and again, and new ones at once. Runs until the catalogue is dropped.
pub async fn read(gateway: Arc<Gateway>) {
    let mut connector = HttpConnector::new();
    connector.set_nodelay(true);
    connector.set_connect_timeout(Some(ANSWER));
    let http: Http =
        Client::builder(TokioExecutor::new()).pool_timer(TokioTimer::new()).pool_max_idle_per_host(0).build(connector);
    let mut catalogue = gateway.catalogue.clone();
    let mut ticks = tokio::time::interval(EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let all = tokio::select! {
            _ = ticks.tick() => true,
            changed = catalogue.changed() => match changed {
                Ok(()) => false,
                Err(_) => return,
            },
        };
        let now = Arc::clone(&catalogue.borrow_and_update());
        let due = futures::stream::iter(gateway.caches.due(&now, all));
        due.for_each_concurrent(AT_ONCE, |replica| {
            let (http, gateway) = (&http, &gateway);
            async move { gateway.caches.note(replica.engine, read_one(http, &replica).await) }
        })
        .await;
    }
}

/// Millionths of its KV cache that a replica has in use.
async fn read_one(http: &Http, replica: &Replica) -> Result<u32, CacheUnknown> {
    let names = replica.preset.kv_cache_metrics();
    if names.is_empty() {
        return Err(CacheUnknown::NotOfPreset);
    }
    // What a provider has is not ours to read.
    let Target::Pod(address) = replica.target else { return Err(CacheUnknown::NotOfPreset) };
    let uri = format!("http://{address}/metrics").parse().map_err(|_| CacheUnknown::NoAnswer)?;
    let asking = async {
        let answer = http.get(uri).await.map_err(|_| CacheUnknown::NoAnswer)?;
        match answer.status() {
            StatusCode::OK => {}
            // The last is llama-server's without `--metrics`.
            StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED | StatusCode::NOT_IMPLEMENTED => {
                return Err(CacheUnknown::NoMetrics);
            }
            _ => return Err(CacheUnknown::NoAnswer),
        }
        let body = Limited::new(answer.into_body(), ANSWER_BYTES).collect().await;
        Ok(body.map_err(|_| CacheUnknown::NoAnswer)?.to_bytes())
    };
    let body = tokio::time::timeout(ANSWER, asking).await.map_err(|_| CacheUnknown::NoAnswer)??;
    exposition::mean(std::str::from_utf8(&body).map_err(|_| CacheUnknown::NoRatio)?, names)
}

#[cfg(test)]
mod tests;
