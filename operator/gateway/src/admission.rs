//! Whether a request may go on, in one step over all limits of its key and its tenant: requests in a minute, tokens in a minute, and requests
//! at once.
//!
//! [`Admission::admit`] looks at every limit and takes from all of them, or from none, under one lock. What tokens a request will use is not
//! known by then: an estimate is reserved ([`estimate`]), and settled with what was used. The [`Guard`] that is given out ends in one of three
//! ways: [`Guard::settle`], [`Guard::refund`], or dropped, which refunds what was not [produced](Guard::progress) and is counted, as it should not
//! happen. So no count of requests in flight can leak.
//!
//! **Locks.** A tenant with all its keys is in one of [`SHARDS`] shards. Each call takes the lock of one shard at a time, takes no other lock
//! while it holds one, and calls nothing of its caller's: without a second lock that is waited for, no two calls can wait for each other.
//! What a lock guards is right between any two statements that could panic, so that a poisoned one is used on.
//!
//! **Overshoot.** With [`Mode::Local`], one gateway: none. Requests over any `t` milliseconds are at most `l + l * t / 60,000` of a limit of
//! `l`, and so are tokens as reserved; at once are never more than the limit. An answer that is longer than its estimate is charged for while
//! it is produced, and paid by the requests after it: tokens used exceed that by at most what running requests produce above their
//! estimates, and by nothing in the long run. With [`Mode::Leased`], several gateways: [`lease`] has the bound, the sum of outstanding leases.
//!
//! Times are milliseconds of one clock of the caller's that does not go back (if it does, no time has passed). Must not: read a clock, do I/O.

use std::collections::HashMap;
use std::collections::hash_map::RandomState;
use std::fmt;
use std::hash::BuildHasher;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::keys::{KeyId, Keyring};

pub mod estimate;
pub mod lease;
pub mod rates;
mod scope;

use estimate::Estimates;
use lease::{Grant, Need};
use rates::RateLimits;
use scope::{Full, Scope, Taken};

pub use spillway_metering::bucket::{self, LIMIT_MAX};
pub use spillway_metering::lease::Limits;

/// Parts of the tenants, each with its lock.
pub const SHARDS: usize = 32;

/// Where limits are kept.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Mode {
    /// In this gateway, which is the only one.
    Local,
    /// With the usage service, for several gateways: this one admits what it holds leases of.
    Leased,
}

/// Whose limit it is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum ScopeKind {
    /// The key's.
    Key,
    /// Its tenant's, which all keys of the tenant share.
    Tenant,
}

/// What is limited.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum LimitKind {
    /// Requests in a minute.
    Requests,
    /// Tokens in a minute.
    Tokens,
    /// Requests at once.
    Concurrency,
}

/// What helps against a refusal. In the order of how long it takes.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Retry {
    /// Asking the usage service for a lease, which is not held: see [`Admission::needs`].
    Lease,
    /// Waiting for so many milliseconds: exact where a bucket must fill, if nobody else takes from it.
    AfterMs(u64),
    /// Nothing: the request needs more than the limit.
    Never,
}

/// Which limit has no room.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Refusal {
    /// Whose it is.
    pub scope: ScopeKind,
    /// What it limits.
    pub limit: LimitKind,
    /// How much it allows.
    pub allowed: u64,
    /// What helps.
    pub retry: Retry,
    /// What clients are told of all limits.
    pub rates: RateLimits,
}

/// A request that waits for leases, over all of its tries: by which question for each it was counted.
#[derive(Debug, Default)]
pub struct Waiter {
    key: Option<u64>,
    tenant: Option<u64>,
}

/// A request that asks to be let in.
#[derive(Clone, Copy, Debug)]
pub struct Ask<'a> {
    /// Who pays.
    pub tenant: &'a str,
    /// The key that was authenticated.
    pub key: KeyId,
    /// The model, as estimates are kept by it.
    pub model: &'a str,
    /// Limits of the tenant, as configured now.
    pub tenant_limits: Limits,
    /// Limits of the key, as configured now.
    pub key_limits: Limits,
    /// Tokens of the prompt, as [`crate::request::PromptSize`] estimates them.
    pub prompt_tokens: u64,
    /// Most tokens of each choice, if the client bounds them.
    pub max_completion_tokens: Option<u64>,
    /// How many choices are generated; 0 for embeddings.
    pub choices: u32,
}

/// How requests ended, since the start.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Counts {
    /// Let in.
    pub admitted: u64,
    /// Not let in.
    pub refused: u64,
    /// Ended with what they used.
    pub settled: u64,
    /// Ended as if they had not been.
    pub refunded: u64,
    /// Ended without either, by mistake.
    pub dropped: u64,
}

#[derive(Debug, Default)]
struct Counters {
    admitted: AtomicU64,
    refused: AtomicU64,
    settled: AtomicU64,
    refunded: AtomicU64,
    dropped: AtomicU64,
}

/// Whose limits a lease is of.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct ScopeName {
    /// The tenant.
    pub tenant: Arc<str>,
    /// The key of it; none for the tenant itself.
    pub key: Option<KeyId>,
}

#[derive(Debug)]
struct Tenant {
    name: Arc<str>,
    scope: Scope,
    keys: HashMap<KeyId, KeyState>,
}

#[derive(Debug)]
struct KeyState {
    scope: Scope,
    estimates: Estimates,
}

type Shard = HashMap<Arc<str>, Tenant>;

/// All limits of one gateway.
#[derive(Debug)]
pub struct Admission {
    mode: Mode,
    shards: [Mutex<Shard>; SHARDS],
    hasher: RandomState,
    counters: Counters,
}

impl Admission {
    /// With nothing in use.
    pub fn new(mode: Mode) -> Self {
        Self {
            mode,
            shards: std::array::from_fn(|_| Mutex::default()),
            hasher: RandomState::new(),
            counters: Counters::default(),
        }
    }

    /// Lets a request in at `now_ms`, or refuses it and takes nothing.
    ///
    /// # Errors
    ///
    /// [`Refusal`]: of the limits that have no room, the one to wait for longest.
    pub fn admit(self: &Arc<Self>, now_ms: u64, ask: &Ask<'_>) -> Result<Guard, Refusal> {
        let mut waiter = Waiter::default();
        self.admit_waiting(now_ms, ask, &mut waiter).inspect_err(|_| self.give_up())
    }

    /// As [`Admission::admit`], for a request that tries again while a lease is asked for: `waiter` is the same at each of its tries, so that it counts as
    /// one. It counts as refused by [`Admission::give_up`].
    ///
    /// # Errors
    ///
    /// As [`Admission::admit`].
    pub fn admit_waiting(self: &Arc<Self>, now_ms: u64, ask: &Ask<'_>, waiter: &mut Waiter) -> Result<Guard, Refusal> {
        let admitted = self.with_shard(ask.tenant, |shard| admit(shard, self.mode, now_ms, ask, waiter));
        let Admitted { tenant, model, reserved, taken, rates } = admitted?;
        self.counters.admitted.fetch_add(1, Ordering::Relaxed);
        Ok(Guard {
            admission: Arc::clone(self),
            tenant,
            key: ask.key,
            model,
            choices: ask.choices,
            prompt_tokens: ask.prompt_tokens.min(LIMIT_MAX),
            reserved,
            taken,
            produced: 0,
            rates,
            open: true,
        })
    }

    /// A request is refused for good.
    pub fn give_up(&self) {
        self.counters.refused.fetch_add(1, Ordering::Relaxed);
    }

    /// How requests ended.
    pub fn counts(&self) -> Counts {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Counts {
            admitted: read(&self.counters.admitted),
            refused: read(&self.counters.refused),
            settled: read(&self.counters.settled),
            refunded: read(&self.counters.refunded),
            dropped: read(&self.counters.dropped),
        }
    }

    /// Requests of `tenant` that are let in and not over.
    pub fn in_flight(&self, tenant: &str) -> u32 {
        self.with_shard(tenant, |shard| shard.get(tenant).map_or(0, |tenant| tenant.scope.in_flight()))
    }

    /// What to ask the usage service for at `now_ms`, and the limits as they are known here. Looks at each tenant and key once.
    pub fn needs(&self, now_ms: u64) -> Vec<(ScopeName, Limits, Need)> {
        let mut needs = Vec::new();
        let mut ask = |tenant: &Arc<str>, key: Option<KeyId>, scope: &mut Scope| {
            let (in_flight, limits) = (scope.in_flight(), scope.limits());
            if let Some(need) = scope.lease().and_then(|lease| lease.need(now_ms, in_flight)) {
                needs.push((ScopeName { tenant: Arc::clone(tenant), key }, limits, need));
            }
        };
        for shard in &self.shards {
            for tenant in lock(shard).values_mut() {
                ask(&tenant.name, None, &mut tenant.scope);
                for (&key, state) in &mut tenant.keys {
                    ask(&tenant.name, Some(key), &mut state.scope);
                }
            }
        }
        needs
    }

    /// Takes what the usage service grants, at `now_ms`. Whether it was of use.
    pub fn grant(&self, now_ms: u64, name: &ScopeName, grant: &Grant) -> bool {
        self.with_shard(&name.tenant, |shard| {
            let tenant = shard.get_mut(&name.tenant)?;
            let scope = match name.key {
                None => &mut tenant.scope,
                Some(key) => &mut tenant.keys.get_mut(&key)?.scope,
            };
            Some(scope.lease()?.grant(now_ms, grant))
        })
        .unwrap_or(false)
    }

    /// The limits are those of the keys in `keyring`, and of tenants these, from now on. Forgets keys that are not in it any more, and tenants without
    /// keys, once that gives them nothing at `now_ms`: with nothing in flight, and nothing used of their limits that is not there again.
    pub fn retain(&self, keyring: &Keyring, tenants: impl Fn(&str) -> Limits, now_ms: u64) {
        for shard in &self.shards {
            lock(shard).retain(|name, tenant| {
                tenant.scope.set_limits(tenants(name), now_ms);
                tenant.keys.retain(|&id, state| match keyring.get(id) {
                    Some(key) => {
                        state.scope.set_limits(key.limits, now_ms);
                        true
                    }
                    None => !state.scope.is_unused(now_ms),
                });
                !tenant.keys.is_empty() || !tenant.scope.is_unused(now_ms)
            });
        }
    }

    fn with_shard<T>(&self, tenant: &str, step: impl FnOnce(&mut Shard) -> T) -> T {
        let index = usize::try_from(self.hasher.hash_one(tenant) % SHARDS as u64).unwrap_or(0);
        // The index is below the number of shards: the first one is never a stand-in.
        let [first, ..] = &self.shards;
        step(&mut lock(self.shards.get(index).unwrap_or(first)))
    }

    /// The end of a request: `used` tokens of `reserved` stay taken, and the request itself unless it is to be forgotten.
    fn end(&self, guard: &Guard, now_ms: u64, end: End) {
        let used = match end {
            End::Refunded => 0,
            End::Settled { tokens, .. } => tokens,
        };
        self.with_shard(&guard.tenant, |shard| {
            let Some(tenant) = shard.get_mut(&guard.tenant) else { return };
            let Some(key) = tenant.keys.get_mut(&guard.key) else { return };
            for (scope, taken) in [&mut key.scope, &mut tenant.scope].into_iter().zip(guard.taken) {
                scope.charge(taken, used.saturating_sub(guard.reserved));
                scope.end(taken, guard.reserved.saturating_sub(used), matches!(end, End::Refunded), now_ms);
            }
            if let End::Settled { answer: Some(tokens), .. } = end
                && let Some(tokens) = tokens.checked_div(guard.choices.into())
            {
                key.estimates.observe(&guard.model, tokens);
            }
        });
    }
}

/// How a request ends.
#[derive(Clone, Copy, Debug)]
enum End {
    Refunded,
    /// `tokens` in all, and those of an answer that is whole, to learn from.
    Settled {
        tokens: u64,
        answer: Option<u64>,
    },
}

struct Admitted {
    tenant: Arc<str>,
    model: Arc<str>,
    reserved: u64,
    taken: [Taken; 2],
    rates: RateLimits,
}

fn lock(shard: &Mutex<Shard>) -> MutexGuard<'_, Shard> {
    shard.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The one step.
fn admit(shard: &mut Shard, mode: Mode, now_ms: u64, ask: &Ask<'_>, waiter: &mut Waiter) -> Result<Admitted, Refusal> {
    if !shard.contains_key(ask.tenant) {
        let name: Arc<str> = ask.tenant.into();
        let scope = Scope::new(mode, ask.tenant_limits, now_ms);
        shard.insert(Arc::clone(&name), Tenant { name, scope, keys: HashMap::new() });
    }
    let Some(tenant) = shard.get_mut(ask.tenant) else {
        // It was put there above.
        return Err(Refusal {
            scope: ScopeKind::Tenant,
            limit: LimitKind::Requests,
            allowed: 0,
            retry: Retry::Never,
            rates: RateLimits::default(),
        });
    };
    let key = tenant.keys.entry(ask.key).or_insert_with(|| KeyState {
        scope: Scope::new(mode, ask.key_limits, now_ms),
        estimates: Estimates::default(),
    });
    tenant.scope.set_limits(ask.tenant_limits, now_ms);
    key.scope.set_limits(ask.key_limits, now_ms);

    let (model, estimate) = key.estimates.of(ask.model);
    let reserved = reserve(ask, estimate);
    let Waiter { key: of_key, tenant: of_tenant } = waiter;
    let full = [(ScopeKind::Key, &mut key.scope, of_key), (ScopeKind::Tenant, &mut tenant.scope, of_tenant)]
        .map(|(kind, scope, counted)| scope.full(reserved, now_ms, counted).map(|full| (kind, full)));
    let rates = |key: &Scope, tenant: &Scope| key.rates().tighter(tenant.rates());
    if let Some((scope, Full { limit, allowed, retry })) = full.into_iter().flatten().max_by_key(|(_, full)| full.retry)
    {
        return Err(Refusal { scope, limit, allowed, retry, rates: rates(&key.scope, &tenant.scope) });
    }
    let taken = [key.scope.take(reserved), tenant.scope.take(reserved)];
    let rates = rates(&key.scope, &tenant.scope);
    Ok(Admitted { tenant: Arc::clone(&tenant.name), model, reserved, taken, rates })
}

/// Tokens to reserve: the prompt, and for each choice the estimate or the client's bound, whichever is less. Never so many for the answer alone
/// that a limit that has room for the prompt could not be met.
fn reserve(ask: &Ask<'_>, estimate: u64) -> u64 {
    let prompt = ask.prompt_tokens.min(LIMIT_MAX);
    let each = ask.max_completion_tokens.map_or(estimate, |most| estimate.min(most));
    let answer = each.saturating_mul(ask.choices.into()).min(LIMIT_MAX);
    let limits = [ask.key_limits, ask.tenant_limits];
    let room =
        limits.iter().filter_map(|limits| limits.tokens_per_minute).min().unwrap_or(u64::MAX).saturating_sub(prompt);
    prompt + answer.min(room)
}

/// A request that was let in. To be ended by [`Guard::settle`] or [`Guard::refund`].
#[must_use = "dropping it ends the request"]
pub struct Guard {
    admission: Arc<Admission>,
    tenant: Arc<str>,
    key: KeyId,
    model: Arc<str>,
    choices: u32,
    prompt_tokens: u64,
    /// Tokens taken from the limits.
    reserved: u64,
    /// Which limits of the key and of the tenant they were taken from.
    taken: [Taken; 2],
    /// Tokens of the answer until now.
    produced: u64,
    rates: RateLimits,
    open: bool,
}

impl Guard {
    /// Tokens that are taken for it now.
    pub fn reserved(&self) -> u64 {
        self.reserved
    }

    /// What the client is told of its limits, as they were after this request.
    pub fn rates(&self) -> RateLimits {
        self.rates
    }

    /// The answer has `completion_tokens` until now, of all choices. What is above the estimate is taken from the limits at once, so that the
    /// requests after this one wait for it.
    pub fn progress(&mut self, completion_tokens: u64) {
        self.produced = self.produced.max(completion_tokens);
        let used = self.prompt_tokens.saturating_add(self.produced);
        let more = used.saturating_sub(self.reserved);
        if more == 0 {
            return;
        }
        self.reserved = used;
        self.admission.with_shard(&self.tenant, |shard| {
            let Some(tenant) = shard.get_mut(&self.tenant) else { return };
            let [of_key, of_tenant] = self.taken;
            tenant.scope.charge(of_tenant, more);
            if let Some(key) = tenant.keys.get_mut(&self.key) {
                key.scope.charge(of_key, more);
            }
        });
    }

    /// The request is over at `now_ms`, and has used what the engine says. `whole` if its answer came to its end: what was cut off says nothing
    /// of how long answers are.
    pub fn settle(mut self, now_ms: u64, prompt_tokens: u64, completion_tokens: u64, whole: bool) {
        let tokens = prompt_tokens.saturating_add(completion_tokens);
        let answer = (whole && self.choices > 0).then_some(completion_tokens);
        self.end(now_ms, End::Settled { tokens, answer });
        self.admission.counters.settled.fetch_add(1, Ordering::Relaxed);
    }

    /// The request failed at `now_ms` by no fault of its client's, and is not to count.
    pub fn refund(mut self, now_ms: u64) {
        self.end(now_ms, End::Refunded);
        self.admission.counters.refunded.fetch_add(1, Ordering::Relaxed);
    }

    fn end(&mut self, now_ms: u64, end: End) {
        self.open = false;
        self.admission.end(self, now_ms, end);
    }
}

impl fmt::Debug for Guard {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = formatter.debug_struct("Guard");
        shown
            .field("tenant", &self.tenant)
            .field("key", &self.key)
            .field("reserved", &self.reserved)
            .finish_non_exhaustive()
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        if !self.open {
            return;
        }
        let end = match self.produced {
            0 => End::Refunded,
            produced => End::Settled { tokens: self.prompt_tokens.saturating_add(produced), answer: None },
        };
        // There is no clock here, and none is needed: what is put back counts from when limits were last looked at.
        self.end(0, end);
        self.admission.counters.dropped.fetch_add(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests;
