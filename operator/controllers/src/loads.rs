//! What is known of the load of endpoints, from what gateways told (docs/adr/0012-scaling-of-endpoints.md). Pure: the clock is an argument.
//!
//! What is not known is an error, never 0: whoever scales does nothing then.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::net::SocketAddr;

use spillway_metering::NamespaceName;
use spillway_metering::load::{CacheReading, CacheUnknown, EndpointCaches, EndpointLoad, LoadReport};
use spillway_metering::tokens::{EndpointName, ModelVersion, ReplicaName};

/// Milliseconds for which a report counts: five times as long as one takes.
const FRESH_MS: u64 = 5_000;
/// Milliseconds for which a gateway that went away while it had requests is waited for.
const GONE_MS: u64 = 120_000;
/// Milliseconds over which tokens are averaged,
const RATE_MS: u64 = 30_000;
/// of which so many must be known.
const RATE_LEAST_MS: u64 = 25_000;
/// Milliseconds for which what was read of a KV cache counts: three times as long as until it is read again.
const CACHE_MS: u64 = 15_000;

/// Name of an endpoint with its namespace.
pub type FullName = (NamespaceName, EndpointName);

/// Why a load is not known.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Unknown {
    /// There is no gateway.
    #[error("no gateway is known: is the gateway enabled, and are its pods ready?")]
    NoGateway,
    /// One does not answer.
    #[error("gateway {address} has not told its load for {seconds} s")]
    Silent {
        /// Where it is.
        address: SocketAddr,
        /// Since it was last heard, or first seen.
        seconds: u64,
    },
    /// It is too early to know a rate.
    #[error("tokens have been counted for {known_ms} ms only")]
    Young {
        /// Milliseconds.
        known_ms: u64,
    },
    /// No gateway reads the KV caches of the endpoint.
    #[error("no gateway has told of its KV caches: it may be new, or does not scale by them")]
    NoCaches,
    /// That of one replica is not known.
    #[error("replica {replica}: {why}")]
    Cache {
        /// Which.
        replica: ReplicaName,
        /// Why.
        why: CacheUnknown,
    },
    /// That of one replica was read too long ago.
    #[error("replica {replica}: its KV cache was read {seconds} s ago")]
    StaleCache {
        /// Which.
        replica: ReplicaName,
        /// Since then.
        seconds: u64,
    },
}

/// A gateway, as its `EndpointSlice` names it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Address {
    /// Of its admin port.
    pub address: SocketAddr,
    /// Whether it is Ready.
    pub ready: bool,
}

/// What is known of one gateway.
#[derive(Debug)]
struct Gateway {
    /// Whether it is Ready; none: it is not named any more.
    ready: Option<bool>,
    /// When it was last heard, or first named.
    heard_ms: u64,
    load: HashMap<FullName, EndpointLoad>,
    caches: HashMap<FullName, EndpointCaches>,
    /// Milliseconds since it began, when it was heard.
    up_ms: u64,
    told: bool,
    /// Tokens of answers, oldest first: when that was, and of each endpoint.
    tokens: VecDeque<(u64, HashMap<FullName, u64>)>,
}

/// How requests ended.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Outcomes {
    /// That were answered.
    pub answered: u64,
    /// That failed by the engine's fault.
    pub failed: u64,
}

/// The load of all endpoints at all gateways.
#[derive(Debug, Default)]
pub struct Loads {
    gateways: HashMap<SocketAddr, Gateway>,
    /// Of all gateways together, since they were first heard here.
    outcomes: HashMap<FullName, BTreeMap<ModelVersion, Outcomes>>,
}

impl Loads {
    /// These are the gateways from now on.
    pub fn set_gateways(&mut self, named: &[Address], now_ms: u64) {
        for (address, gateway) in &mut self.gateways {
            gateway.ready = named.iter().find(|one| one.address == *address).map(|one| one.ready);
        }
        for one in named {
            let new = || Gateway {
                ready: None,
                heard_ms: now_ms,
                load: HashMap::new(),
                caches: HashMap::new(),
                up_ms: 0,
                told: false,
                tokens: VecDeque::new(),
            };
            self.gateways.entry(one.address).or_insert_with(new).ready = Some(one.ready);
        }
        // One that went away while it had requests is missed for a while.
        self.gateways.retain(|_, gateway| {
            gateway.ready.is_some() || (gateway.is_busy() && now_ms.saturating_sub(gateway.heard_ms) < GONE_MS)
        });
    }

    /// What a gateway told.
    pub fn note(&mut self, address: SocketAddr, report: LoadReport, now_ms: u64) {
        let Some(gateway) = self.gateways.get_mut(&address) else { return };
        let anew = report.up_ms < gateway.up_ms;
        if anew {
            // It counts from 0.
            gateway.tokens.clear();
        }
        // What it counted before it was first heard is not known to be of now.
        if gateway.told {
            for load in &report.endpoints {
                let name = (load.namespace.clone(), load.endpoint.clone());
                let before = gateway.load.get(&name).filter(|_| !anew).map(|load| load.versions.as_slice());
                let sums = self.outcomes.entry(name).or_default();
                for now in &load.versions {
                    let before = before.unwrap_or_default().iter().find(|one| one.version == now.version);
                    let sum = sums.entry(now.version.clone()).or_default();
                    sum.answered += now.answered.saturating_sub(before.map_or(0, |one| one.answered));
                    sum.failed += now.failed.saturating_sub(before.map_or(0, |one| one.failed));
                }
            }
        }
        gateway.up_ms = report.up_ms;
        gateway.heard_ms = now_ms;
        gateway.told = true;
        let named = |load: EndpointLoad| ((load.namespace.clone(), load.endpoint.clone()), load);
        gateway.load = report.endpoints.into_iter().map(named).collect();
        let named = |caches: EndpointCaches| ((caches.namespace.clone(), caches.endpoint.clone()), caches);
        gateway.caches = report.caches.into_iter().map(named).collect();
        let tokens = gateway.load.iter().map(|(name, load)| (name.clone(), load.tokens)).collect();
        // One a second is enough, however often it calls.
        if gateway.tokens.back().is_none_or(|(at_ms, _)| now_ms.saturating_sub(*at_ms) >= 1_000) {
            gateway.tokens.push_back((now_ms, tokens));
        }
        while gateway.tokens.get(1).is_some_and(|(at_ms, _)| now_ms.saturating_sub(*at_ms) >= RATE_MS) {
            gateway.tokens.pop_front();
        }
    }

    /// The gateways that count for an endpoint, each of which was heard.
    fn heard(&self, name: &FullName, now_ms: u64) -> Result<impl Iterator<Item = &Gateway>, Unknown> {
        let fresh = |gateway: &Gateway| gateway.told && now_ms.saturating_sub(gateway.heard_ms) <= FRESH_MS;
        let mut known = Vec::new();
        for (address, gateway) in &self.gateways {
            let silent = || Unknown::Silent {
                address: *address,
                seconds: now_ms.saturating_sub(gateway.heard_ms).div_euclid(1_000),
            };
            match gateway.ready {
                _ if fresh(gateway) => known.push(gateway),
                Some(true) => return Err(silent()),
                // It had requests when it was last heard, which may run still.
                _ if gateway.has(name) && now_ms.saturating_sub(gateway.heard_ms) < GONE_MS => return Err(silent()),
                _ => {}
            }
        }
        if known.is_empty() { Err(Unknown::NoGateway) } else { Ok(known.into_iter()) }
    }

    fn sum(&self, name: &FullName, now_ms: u64, of: impl Fn(&EndpointLoad) -> u64) -> Result<u64, Unknown> {
        Ok(self.heard(name, now_ms)?.filter_map(|gateway| gateway.load.get(name)).map(of).sum())
    }

    /// Requests that run or wait.
    ///
    /// # Errors
    /// Where that is not known.
    pub fn in_flight(&self, name: &FullName, now_ms: u64) -> Result<u64, Unknown> {
        self.sum(name, now_ms, |load| load.in_flight)
    }

    /// Requests that have no first token yet.
    ///
    /// # Errors
    /// Where that is not known.
    pub fn queued(&self, name: &FullName, now_ms: u64) -> Result<u64, Unknown> {
        self.sum(name, now_ms, |load| load.queued)
    }

    /// Thousandths of tokens of answers a second, over the last half minute.
    ///
    /// # Errors
    /// Where that is not known.
    pub fn milli_tokens_per_second(&self, name: &FullName, now_ms: u64) -> Result<u64, Unknown> {
        let mut sum = 0_u64;
        for gateway in self.heard(name, now_ms)? {
            let (Some((first_ms, first)), Some((last_ms, last))) = (gateway.tokens.front(), gateway.tokens.back())
            else {
                return Err(Unknown::Young { known_ms: 0 });
            };
            let known_ms = last_ms.saturating_sub(*first_ms);
            if known_ms < RATE_LEAST_MS {
                return Err(Unknown::Young { known_ms });
            }
            let of = |tokens: &HashMap<FullName, u64>| tokens.get(name).copied().unwrap_or(0);
            let more = of(last).saturating_sub(of(first));
            sum = sum.saturating_add(more.saturating_mul(1_000_000).checked_div(known_ms).unwrap_or(0));
        }
        Ok(sum)
    }

    /// Thousandths of a percent of a KV cache that all replicas together have in use; with two that are half full it is that of one whole cache.
    ///
    /// All gateways read the same replicas: the latest reading of each counts. A replica that is wanted and does not answer has nothing in use as far
    /// as growing goes, and its target as far as shrinking goes, as Kubernetes has it of pods whose metrics are missing.
    ///
    /// # Errors
    /// Where that is not known of each replica that answers.
    pub fn kv_cache_milli_percent(&self, name: &FullName, now_ms: u64) -> Result<u64, Unknown> {
        let mut latest: BTreeMap<&ReplicaName, Result<(u64, u64), CacheUnknown>> = BTreeMap::new();
        let (mut wanted, mut target) = (None, 0);
        for gateway in self.heard(name, now_ms)? {
            let Some(caches) = gateway.caches.get(name) else { continue };
            wanted = wanted.max(Some(u64::from(caches.wanted)));
            target = target.max(u64::from(caches.target_percent).saturating_mul(1_000));
            let since_ms = now_ms.saturating_sub(gateway.heard_ms);
            for one in &caches.replicas {
                let known = match one.reading {
                    CacheReading::Used { millionths, age_ms } => {
                        Ok((age_ms.saturating_add(since_ms), u64::from(millionths).div_euclid(10)))
                    }
                    CacheReading::Unknown(why) => Err(why),
                };
                let before = latest.entry(&one.replica).or_insert(known);
                let later = match (&known, &before) {
                    (Ok((age, _)), Ok((before, _))) => age < before,
                    (known, _) => known.is_ok(),
                };
                if later {
                    *before = known;
                }
            }
        }
        let wanted = wanted.ok_or(Unknown::NoCaches)?;
        let mut sum = 0_u64;
        for (replica, known) in &latest {
            let (age_ms, used) = known.map_err(|why| Unknown::Cache { replica: (*replica).clone(), why })?;
            if age_ms > CACHE_MS {
                return Err(Unknown::StaleCache { replica: (*replica).clone(), seconds: age_ms.div_euclid(1_000) });
            }
            sum = sum.saturating_add(used);
        }
        let missing = wanted.saturating_sub(u64::try_from(latest.len()).unwrap_or(u64::MAX));
        let as_now = target.saturating_mul(wanted);
        Ok(if sum < as_now { as_now.min(sum.saturating_add(missing.saturating_mul(target))) } else { sum })
    }

    /// Milliseconds for which nobody had a request.
    ///
    /// # Errors
    /// Where that is not known.
    pub fn idle_ms(&self, name: &FullName, now_ms: u64) -> Result<u64, Unknown> {
        let idle = |gateway: &Gateway| match gateway.load.get(name) {
            // Since it was told nothing more is known.
            Some(load) => load.idle_ms,
            None => gateway.up_ms,
        };
        Ok(self.heard(name, now_ms)?.map(idle).min().unwrap_or(0))
    }

    /// How requests to a version of an endpoint ended, and those to all others together, as far as it is known.
    pub fn outcomes(&self, name: &FullName, version: &ModelVersion) -> (Outcomes, Outcomes) {
        let (mut own, mut others) = (Outcomes::default(), Outcomes::default());
        for (of, outcomes) in self.outcomes.get(name).into_iter().flatten() {
            let sum = if of == version { &mut own } else { &mut others };
            sum.answered = sum.answered.saturating_add(outcomes.answered);
            sum.failed = sum.failed.saturating_add(outcomes.failed);
        }
        (own, others)
    }

    /// Forgets how requests ended to other endpoints than these.
    pub fn retain_outcomes(&mut self, is_there: impl Fn(&FullName) -> bool) {
        self.outcomes.retain(|name, _| is_there(name));
    }

    /// Whether anybody waits for a replica, as far as it is known.
    pub fn is_held(&self, name: &FullName, now_ms: u64) -> bool {
        let fresh = |gateway: &&Gateway| now_ms.saturating_sub(gateway.heard_ms) <= FRESH_MS;
        self.gateways.values().filter(fresh).any(|gateway| gateway.load.get(name).is_some_and(|load| load.held > 0))
    }
}

impl Gateway {
    /// Whether it had requests of an endpoint when it was last heard.
    fn has(&self, name: &FullName) -> bool {
        self.load.get(name).is_some_and(|load| load.in_flight > 0)
    }

    fn is_busy(&self) -> bool {
        self.load.values().any(|load| load.in_flight > 0)
    }
}

#[cfg(test)]
mod tests;
