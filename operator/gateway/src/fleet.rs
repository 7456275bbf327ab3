//! The engines of each endpoint, as one gateway sees them: which of them a request goes to, and which are left alone because they fail.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use spillway_crds::RoutingPolicy;
use spillway_metering::tokens::ModelVersion;
use tokio::sync::Notify;

use crate::catalogue::{Catalogue, FullName, Replica, Routing};
use crate::clock::Clock;
use crate::routing::{Config, EngineId, Least, PrefixAffinity, Prompt, RoundRobin, Strategy, Ticket, Turns, Usage};

mod breaker;

use breaker::Breaker;
pub use breaker::Verdict;

/// A request on its way to an engine. Dropping it ends it, and says nothing of the engine.
#[derive(Debug)]
pub struct Flight {
    /// Where it goes.
    pub replica: Replica,
    group: Arc<Group>,
    clock: Clock,
    /// None: it is over.
    ticket: Option<Ticket>,
}

impl Flight {
    /// Whether its engine is one of the endpoint's still, and not being taken away.
    pub fn is_there(&self) -> bool {
        self.group.lock().replicas.contains_key(&self.replica.engine)
    }

    /// Tokens of its answer have come.
    pub fn token(&self) {
        if let Some(ticket) = self.ticket {
            self.group.lock().strategy.token(self.clock.now_ns(), ticket);
        }
    }

    /// It is over.
    pub fn end(mut self, usage: Option<Usage>, verdict: Verdict) {
        self.finish(usage, verdict);
    }

    fn finish(&mut self, usage: Option<Usage>, verdict: Verdict) {
        let Some(ticket) = self.ticket.take() else { return };
        let now_ns = self.clock.now_ns();
        let mut state = self.group.lock();
        state.strategy.ended(now_ns, ticket, usage);
        if let Some((_, breaker)) = state.replicas.get_mut(&self.replica.engine) {
            breaker.note(verdict, now_ns / 1_000_000);
        }
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        self.finish(None, Verdict::Unknown);
    }
}

/// The engines of one endpoint.
#[derive(Debug)]
pub struct Group {
    state: Mutex<State>,
    /// Told when there are others.
    changed: Notify,
}

struct State {
    policy: RoutingPolicy,
    strategy: Box<dyn Strategy + Send>,
    /// The version that is tried, and its part of the requests in percent.
    canary: Option<(ModelVersion, u32)>,
    turns: Turns,
    replicas: HashMap<EngineId, (Replica, Breaker)>,
}

impl std::fmt::Debug for State {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("State").field("policy", &self.policy).finish_non_exhaustive()
    }
}

fn strategy(policy: RoutingPolicy, config: Config) -> Box<dyn Strategy + Send> {
    match policy {
        RoutingPolicy::PrefixAffinity => Box::new(PrefixAffinity::new(config)),
        RoutingPolicy::LeastTokens => Box::new(Least::prompt_tokens()),
        RoutingPolicy::RoundRobin => Box::new(RoundRobin::new()),
    }
}

impl State {
    /// Whether this request is one of the version that is tried: none, where it does not matter. A version that gets nothing is never asked.
    fn side(&mut self, now_ms: u64, tried: &[EngineId]) -> Option<bool> {
        let (version, weight) = self.canary.as_ref()?;
        let any = |of_it: bool| {
            let mut open = self.replicas.values().filter(|(_, breaker)| breaker.wait_ms(now_ms) == 0);
            open.any(|(one, _)| (one.version == *version) == of_it && !tried.contains(&one.engine))
        };
        match (any(true), any(false)) {
            _ if *weight == 0 => Some(false),
            (true, false) => Some(true),
            (false, _) => Some(false),
            (true, true) => Some(self.turns.is_next(*weight)),
        }
    }
}

impl Group {
    fn new(policy: RoutingPolicy, config: Config) -> Self {
        let state = State {
            policy,
            strategy: strategy(policy, config),
            canary: None,
            turns: Turns::default(),
            replicas: HashMap::new(),
        };
        Self { state: Mutex::new(state), changed: Notify::new() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Chooses an engine, but none of `tried`, and counts the request as sent to it.
    ///
    /// # Errors
    ///
    /// Milliseconds until one that failed is tried again, if there are any.
    pub fn send(
        self: &Arc<Self>,
        clock: Clock,
        prompt: &Prompt<'_>,
        tried: &[EngineId],
    ) -> Result<Flight, Option<u64>> {
        let now_ns = clock.now_ns();
        let mut state = self.lock();
        let now_ms = now_ns / 1_000_000;
        let side = state.side(now_ms, tried);
        let State { strategy, replicas, canary, .. } = &mut *state;
        let wait = |engine: &EngineId| replicas.get(engine).map(|(_, breaker)| breaker.wait_ms(now_ms));
        let is_on = |engine: &EngineId| match (side, &canary) {
            (Some(side), Some((version, _))) => {
                replicas.get(engine).is_some_and(|(replica, _)| (replica.version == *version) == side)
            }
            _ => true,
        };
        let open = |engine: EngineId| !tried.contains(&engine) && wait(&engine) == Some(0) && is_on(&engine);
        let Some(engine) = strategy.choose(now_ns, prompt, &open) else {
            return Err(replicas.keys().filter(|engine| !tried.contains(engine)).filter_map(wait).min());
        };
        let Some((replica, breaker)) = replicas.get_mut(&engine) else { return Err(None) };
        breaker.begin(now_ms);
        let ticket = Some(strategy.dispatched(now_ns, engine, prompt));
        Ok(Flight { replica: replica.clone(), group: Arc::clone(self), clock, ticket })
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.lock().replicas.is_empty()
    }

    /// Until there is one.
    pub async fn arrived(&self) {
        loop {
            // Before it is looked, so that none is missed.
            let mut changed = std::pin::pin!(self.changed.notified());
            changed.as_mut().enable();
            if !self.is_empty() {
                return;
            }
            changed.await;
        }
    }

    fn set(&self, routing: &Routing, replicas: &[Replica], config: Config) {
        let mut state = self.lock();
        if state.policy != routing.policy {
            state.policy = routing.policy;
            state.strategy = strategy(routing.policy, config);
        }
        state.canary.clone_from(&routing.canary);
        let known = std::mem::take(&mut state.replicas);
        let keep = |replica: &Replica| {
            let same = known.get(&replica.engine).filter(|(known, _)| known == replica);
            let breaker = same.map(|(_, breaker)| breaker.clone()).unwrap_or_default();
            (replica.engine, (replica.clone(), breaker))
        };
        state.replicas = replicas.iter().map(keep).collect();
        let engines: Vec<EngineId> = replicas.iter().map(|replica| replica.engine).collect();
        state.strategy.set_engines(&engines);
        drop(state);
        self.changed.notify_waiters();
    }
}

/// The engines of all endpoints.
#[derive(Debug)]
pub struct Fleet {
    config: Config,
    groups: RwLock<HashMap<FullName, Arc<Group>>>,
}

impl Fleet {
    /// Of no endpoint yet.
    pub fn new(config: Config) -> Self {
        Self { config, groups: RwLock::default() }
    }

    /// These are the endpoints and their engines from now on. What is known of those that stay is kept.
    pub fn take(&self, catalogue: &Catalogue) {
        let mut groups = self.groups.write().unwrap_or_else(PoisonError::into_inner);
        groups.retain(|name, _| catalogue.endpoints.contains_key(name));
        for (name, served) in &catalogue.endpoints {
            let new = || Arc::new(Group::new(served.routing.policy, self.config));
            groups.entry(name.clone()).or_insert_with(new).set(&served.routing, &served.replicas, self.config);
        }
    }

    /// The engines of an endpoint.
    pub fn group(&self, name: &FullName) -> Option<Arc<Group>> {
        self.groups.read().unwrap_or_else(PoisonError::into_inner).get(name).cloned()
    }
}

#[cfg(test)]
mod tests;
