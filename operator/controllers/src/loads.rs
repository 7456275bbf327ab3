//! What is known of the load of endpoints, from what gateways told (docs/adr/0012-scaling-of-endpoints.md). Pure: the clock is an argument.
//!
//! What is not known is an error, never 0: whoever scales does nothing then.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::net::SocketAddr;

use spillway_metering::NamespaceName;
use spillway_metering::load::{EndpointLoad, LoadReport};
use spillway_metering::tokens::{EndpointName, ModelVersion};

/// Milliseconds for which a report counts: five times as long as one takes.
const FRESH_MS: u64 = 5_000;
/// Milliseconds for which a gateway that went away while it had requests is waited for.
const GONE_MS: u64 = 120_000;
/// Milliseconds over which tokens are averaged,
const RATE_MS: u64 = 30_000;
/// of which so many must be known.
const RATE_LEAST_MS: u64 = 25_000;

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

    /// How requests to a version of an endpoint ended, as far as it is known.
    pub fn outcomes(&self, name: &FullName, version: &ModelVersion) -> Outcomes {
        self.outcomes.get(name).and_then(|all| all.get(version)).copied().unwrap_or_default()
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
