//! What each endpoint has to do at this gateway, for the operator's scaling, and the requests that wait for a replica
//! (docs/adr/0012-scaling-of-endpoints.md).

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use spillway_metering::load::{EndpointLoad, LoadReport, PATIENCE_MS};
use spillway_metering::tokens::GatewayName;
use tokio::sync::watch;

use crate::catalogue::{Catalogue, FullName};
use crate::clock::Clock;

/// How many requests may wait for a replica.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Of one endpoint.
    pub of_endpoint: u64,
    /// Of all.
    pub total: u64,
}

/// The load of all endpoints.
#[derive(Debug)]
pub struct Loads {
    clock: Clock,
    bounds: Bounds,
    state: Mutex<State>,
    /// How often a request began to wait where none waited.
    calls: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct State {
    endpoints: HashMap<FullName, Entry>,
    held: u64,
}

#[derive(Debug, Default)]
struct Entry {
    in_flight: u64,
    queued: u64,
    held: u64,
    /// When the last request ended, in milliseconds of the clock.
    ended_ms: u64,
    /// When the first of those that wait began to.
    called_ms: Option<u64>,
    tokens: u64,
}

/// A request that was let in, until it is dropped.
#[derive(Debug)]
pub struct Load {
    loads: Arc<Loads>,
    name: FullName,
    queued: bool,
    tokens: u64,
}

/// A request that waits for a replica, until it is dropped.
#[derive(Debug)]
pub struct Held {
    loads: Arc<Loads>,
    name: FullName,
}

impl Loads {
    /// Of nothing yet.
    pub fn new(clock: Clock, bounds: Bounds) -> Arc<Self> {
        Arc::new(Self { clock, bounds, state: Mutex::default(), calls: watch::Sender::new(0) })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A request of an endpoint was let in.
    pub fn begin(self: &Arc<Self>, name: FullName) -> Load {
        let mut state = self.lock();
        let entry = state.endpoints.entry(name.clone()).or_default();
        entry.in_flight += 1;
        entry.queued += 1;
        drop(state);
        Load { loads: Arc::clone(self), name, queued: true, tokens: 0 }
    }

    /// Requests that wait for a replica.
    pub fn held(&self) -> u64 {
        self.lock().held
    }

    /// Forgets endpoints that are no more. Gives for how many milliseconds requests had called for each that is wanted again since.
    pub fn take(&self, catalogue: &Catalogue) -> Vec<u64> {
        let now_ms = self.clock.now_ms();
        let mut woken = Vec::new();
        self.lock().endpoints.retain(|name, entry| {
            let served = catalogue.endpoints.get(name);
            if served.is_some_and(|served| served.wanted > 0)
                && let Some(called_ms) = entry.called_ms.take()
            {
                woken.push(now_ms.saturating_sub(called_ms));
            }
            served.is_some() || entry.in_flight > 0
        });
        woken
    }

    /// What the operator is told.
    pub fn report(&self, gateway: &GatewayName) -> LoadReport {
        let state = self.lock();
        // After the lock: what ended before it did so before now.
        let now_ms = self.clock.now_ms();
        let endpoints = state.endpoints.iter().map(|((namespace, endpoint), entry)| EndpointLoad {
            namespace: namespace.clone(),
            endpoint: endpoint.clone(),
            in_flight: entry.in_flight,
            queued: entry.queued,
            held: entry.held,
            idle_ms: if entry.in_flight > 0 { 0 } else { now_ms.saturating_sub(entry.ended_ms) },
            tokens: entry.tokens,
        });
        LoadReport {
            gateway: gateway.clone(),
            up_ms: now_ms,
            calls: *self.calls.borrow(),
            endpoints: endpoints.collect(),
        }
    }

    /// Until there were more calls than these, but not for long.
    pub async fn called(&self, after: u64) {
        let mut calls = self.calls.subscribe();
        // Another number than the one that was asked about is news, also after a restart, when there were fewer.
        let more = calls.wait_for(|calls| *calls != after);
        let _ = tokio::time::timeout(Duration::from_millis(PATIENCE_MS), more).await;
    }
}

impl Load {
    /// Its answer begins.
    pub fn began(&mut self) {
        if std::mem::take(&mut self.queued) {
            self.change(|entry| entry.queued = entry.queued.saturating_sub(1));
        }
    }

    /// Its answer has so many tokens now.
    pub fn produced(&mut self, tokens: u64) {
        let more = tokens.saturating_sub(self.tokens);
        if more > 0 {
            self.tokens = tokens;
            self.change(|entry| entry.tokens = entry.tokens.saturating_add(more));
        }
    }

    /// It waits for a replica, if there is room to. `asleep`: none is wanted, so that one has to be called for.
    pub fn hold(&self, asleep: bool) -> Option<Held> {
        let bounds = self.loads.bounds;
        let now_ms = self.loads.clock.now_ms();
        let mut state = self.loads.lock();
        if state.held >= bounds.total {
            return None;
        }
        let entry = state.endpoints.get_mut(&self.name)?;
        if entry.held >= bounds.of_endpoint {
            return None;
        }
        entry.held += 1;
        let calls = entry.held == 1;
        if calls && asleep {
            entry.called_ms = Some(now_ms);
        }
        state.held += 1;
        drop(state);
        if calls {
            self.loads.calls.send_modify(|calls| *calls += 1);
        }
        Some(Held { loads: Arc::clone(&self.loads), name: self.name.clone() })
    }

    fn change(&self, change: impl FnOnce(&mut Entry)) {
        if let Some(entry) = self.loads.lock().endpoints.get_mut(&self.name) {
            change(entry);
        }
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.began();
        let now_ms = self.loads.clock.now_ms();
        self.change(|entry| {
            entry.in_flight = entry.in_flight.saturating_sub(1);
            entry.ended_ms = now_ms;
        });
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let mut state = self.loads.lock();
        state.held = state.held.saturating_sub(1);
        if let Some(entry) = state.endpoints.get_mut(&self.name) {
            entry.held = entry.held.saturating_sub(1);
            if entry.held == 0 {
                entry.called_ms = None;
            }
        }
    }
}
