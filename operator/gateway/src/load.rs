//! What each endpoint has to do at this gateway, for the operator's scaling, and the requests that wait for a replica
//! (docs/adr/0012-scaling-of-endpoints.md).

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use spillway_metering::TenantName;
use spillway_metering::load::{EndpointCaches, EndpointLoad, LoadReport, PATIENCE_MS, VersionLoad};
use spillway_metering::tokens::{GatewayName, ModelVersion};
use tokio::sync::watch;

use crate::catalogue::{Catalogue, FullName};
use crate::clock::Clock;

/// Milliseconds for which a request calls that had no place to wait in.
const CALLS_MS: u64 = 5_000;
/// Milliseconds after which an endpoint without requests is forgotten.
const FORGET_MS: u64 = 86_400_000;

/// How many requests may wait for a replica.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Of one endpoint.
    pub of_endpoint: u64,
    /// Of one tenant's keys.
    pub of_tenant: u64,
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
    tenants: HashMap<TenantName, u64>,
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
    /// When one was refused last for want of a place to wait in: it calls all the same.
    refused_ms: Option<u64>,
    tokens: u64,
    /// How requests ended, by version: answered and failed.
    versions: HashMap<ModelVersion, (u64, u64)>,
}

impl Entry {
    /// Whether nobody calls for a replica now.
    fn is_quiet(&self, now_ms: u64) -> bool {
        self.held == 0 && self.refused_ms.is_none_or(|at_ms| now_ms.saturating_sub(at_ms) >= CALLS_MS)
    }
}

/// A request that was let in, until it is dropped.
#[derive(Debug)]
pub struct Load {
    loads: Arc<Loads>,
    name: FullName,
    tenant: TenantName,
    queued: bool,
    tokens: u64,
}

/// A request that waits for a replica, until it is dropped.
#[derive(Debug)]
pub struct Held {
    loads: Arc<Loads>,
    name: FullName,
    tenant: TenantName,
}

impl Loads {
    /// Of nothing yet.
    pub fn new(clock: Clock, bounds: Bounds) -> Arc<Self> {
        Arc::new(Self { clock, bounds, state: Mutex::default(), calls: watch::Sender::new(0) })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A request of an endpoint was let in, with a key of this tenant.
    pub fn begin(self: &Arc<Self>, name: FullName, tenant: TenantName) -> Load {
        let mut state = self.lock();
        let entry = state.endpoints.entry(name.clone()).or_default();
        entry.in_flight += 1;
        entry.queued += 1;
        drop(state);
        Load { loads: Arc::clone(self), name, tenant, queued: true, tokens: 0 }
    }

    /// Requests that wait for a replica.
    pub fn held(&self) -> u64 {
        self.lock().held
    }

    /// Forgets endpoints that have been idle for a day: one that is gone may be back, and was not idle meanwhile. Gives for how many milliseconds requests had called for each that is wanted again since.
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
            if let Some(served) = served {
                // One that is gone is asked for no more.
                let is_there = |version: &ModelVersion| served.replicas.iter().any(|one| one.version == *version);
                let is_tried = |version: &ModelVersion| {
                    served.routing.canary.as_ref().is_some_and(|(canary, _)| canary == version)
                };
                let stays =
                    |version: &ModelVersion| *version == served.version || is_tried(version) || is_there(version);
                entry.versions.retain(|version, _| stays(version));
            }
            entry.in_flight > 0 || now_ms.saturating_sub(entry.ended_ms) < FORGET_MS
        });
        woken
    }

    /// What the operator is told.
    pub fn report(&self, gateway: &GatewayName, caches: Vec<EndpointCaches>) -> LoadReport {
        let state = self.lock();
        // After the lock: what ended before it did so before now.
        let now_ms = self.clock.now_ms();
        let endpoints = state.endpoints.iter().map(|((namespace, endpoint), entry)| EndpointLoad {
            namespace: namespace.clone(),
            endpoint: endpoint.clone(),
            in_flight: entry.in_flight,
            queued: entry.queued,
            held: entry
                .held
                .max(u64::from(entry.refused_ms.is_some_and(|at_ms| now_ms.saturating_sub(at_ms) < CALLS_MS))),
            idle_ms: if entry.in_flight > 0 { 0 } else { now_ms.saturating_sub(entry.ended_ms) },
            tokens: entry.tokens,
            versions: entry.versions.iter().map(version_load).collect(),
        });
        LoadReport {
            gateway: gateway.clone(),
            up_ms: now_ms,
            calls: *self.calls.borrow(),
            endpoints: endpoints.collect(),
            caches,
        }
    }

    /// Answers whoever asks now: what is told last is that nothing runs.
    pub fn farewell(&self) {
        self.calls.send_modify(|calls| *calls += 1);
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

    /// A replica of this version answered it, or failed.
    pub fn ended(&self, version: &ModelVersion, failed: bool) {
        self.change(|entry| {
            let (answers, failures) = entry.versions.entry(version.clone()).or_default();
            let count = if failed { failures } else { answers };
            *count = count.saturating_add(1);
        });
    }

    /// It goes elsewhere, and calls for a replica all the same. `asleep`: none is wanted.
    pub fn call(&self, asleep: bool) {
        let now_ms = self.loads.clock.now_ms();
        let mut state = self.loads.lock();
        let Some(entry) = state.endpoints.get_mut(&self.name) else { return };
        let first = entry.is_quiet(now_ms);
        entry.refused_ms = Some(now_ms);
        if asleep && first {
            entry.called_ms = Some(now_ms);
            drop(state);
            self.loads.calls.send_modify(|calls| *calls += 1);
        }
    }

    /// It waits for a replica, if there is room to. `asleep`: none is wanted, so that one has to be called for.
    pub fn hold(&self, asleep: bool) -> Option<Held> {
        let bounds = self.loads.bounds;
        let now_ms = self.loads.clock.now_ms();
        let mut state = self.loads.lock();
        let State { endpoints, held, tenants } = &mut *state;
        let of_tenant = tenants.entry(self.tenant.clone()).or_default();
        let entry = endpoints.get_mut(&self.name)?;
        let has_room = *held < bounds.total && *of_tenant < bounds.of_tenant && entry.held < bounds.of_endpoint;
        let first = entry.is_quiet(now_ms);
        if has_room {
            entry.held += 1;
            *held += 1;
            *of_tenant += 1;
        } else {
            entry.refused_ms = Some(now_ms);
        }
        // Where one is wanted already there is nothing to call for.
        let calls = asleep && first;
        if calls {
            entry.called_ms = Some(now_ms);
        }
        drop(state);
        if calls {
            self.loads.calls.send_modify(|calls| *calls += 1);
        }
        has_room.then(|| Held { loads: Arc::clone(&self.loads), name: self.name.clone(), tenant: self.tenant.clone() })
    }

    fn change(&self, change: impl FnOnce(&mut Entry)) {
        if let Some(entry) = self.loads.lock().endpoints.get_mut(&self.name) {
            change(entry);
        }
    }
}

fn version_load((version, (answered, failed)): (&ModelVersion, &(u64, u64))) -> VersionLoad {
    VersionLoad { version: version.clone(), answered: *answered, failed: *failed }
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
        if let Some(of_tenant) = state.tenants.get_mut(&self.tenant) {
            *of_tenant = of_tenant.saturating_sub(1);
            if *of_tenant == 0 {
                state.tenants.remove(&self.tenant);
            }
        }
        if let Some(entry) = state.endpoints.get_mut(&self.name) {
            entry.held = entry.held.saturating_sub(1);
            if entry.held == 0 {
                entry.called_ms = None;
            }
        }
    }
}
