//! Leases of limits that several gateways share. The rules, and the bound that they keep, are on the page of the gateway's `admission::lease`.
//!
//! Nothing of it is stored. What a service that starts anew cannot know is taken to be the worst: every bucket is as if it had been empty at the
//! start, and fills from then on, so that a minute later one is full that nobody takes from; and scopes with a limit of concurrency are not answered
//! until all slots that a service before may have granted are over ([`Config::valid_ms`]), during which gateways go on with those they hold. For the
//! same reason a limit is kept by one service: two that answer for the same gateways would grant each limit twice. Who follows another that kept it
//! ([`crate::holder`]) starts anew as well.
//!
//! A limit that changes holds for what is granted from then on. Pure: times are milliseconds of one clock of the caller's that does not go back.

use std::collections::BTreeMap;

use spillway_metering::bucket::Bucket;
use spillway_metering::lease::{Block, Grant, Limits, Need, Question, Scope};
use spillway_metering::tokens::GatewayName;

/// Milliseconds after which a gateway that asked for nothing is forgotten. It may come again.
pub const FORGET_MS: u64 = 600_000;
/// Milliseconds after which to try again where there is no slot: when one will be free is not known.
const SLOT_RETRY_MS: u64 = 1_000;
/// The longest wait that is said: a bucket is full by then.
const RETRY_MAX_MS: u64 = 60_000;

/// How leases are granted.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Config {
    /// A gateway's part of each limit is one of so many: at least 1.
    pub parts: u64,
    /// Milliseconds for which grants hold. Longer than gateways ask ahead (2,000), by the time that an answer takes at least.
    pub valid_ms: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self { parts: 4, valid_ms: 10_000 }
    }
}

/// What is known of one start of a gateway, of one scope.
#[derive(Debug, Default)]
struct Known {
    sequence: u64,
    /// Running totals. Both begin at what it had returned when it came: that was of no grant of ours.
    returned: Block,
    granted: Block,
    /// Ends of grants and their slots.
    slots: Vec<(u64, u32)>,
    asked_ms: u64,
}

impl Known {
    /// The most slots of grants that have not ended.
    fn live_slots(&self, now_ms: u64) -> u32 {
        self.slots.iter().filter(|(end_ms, _)| *end_ms > now_ms).map(|(_, slots)| *slots).max().unwrap_or(0)
    }
}

/// The buckets of one scope, and who holds what.
#[derive(Debug, Default)]
struct State {
    requests: Option<Bucket>,
    tokens: Option<Bucket>,
    known: BTreeMap<GatewayName, Known>,
}

impl State {
    /// Takes over limits. A bucket whose limit is lifted stays as it is, so that lifting and setting it gives nothing.
    fn set_limits(&mut self, limits: Limits, started_ms: u64, now_ms: u64) {
        let set = |bucket: &mut Option<Bucket>, limit: Option<u64>| {
            if let Some(limit) = limit {
                bucket.get_or_insert_with(|| empty(limit, started_ms)).set_limit(limit, now_ms);
            }
        };
        set(&mut self.requests, limits.requests_per_minute.map(u64::from));
        set(&mut self.tokens, limits.tokens_per_minute);
    }

    fn is_full(&self) -> bool {
        [&self.requests, &self.tokens].into_iter().flatten().all(|bucket| bucket.full_ms() == 0)
    }
}

/// The bucket of a limit of which nothing is known before `started_ms`.
fn empty(limit: u64, started_ms: u64) -> Bucket {
    let mut bucket = Bucket::new(limit, started_ms);
    bucket.take(bucket.per_minute());
    bucket
}

/// All leases of one service.
#[derive(Debug)]
pub struct Leases {
    config: Config,
    started_ms: u64,
    scopes: BTreeMap<Scope, State>,
}

impl Leases {
    /// Those of a service that starts at `now_ms`.
    pub fn new(config: Config, now_ms: u64) -> Self {
        Self { config, started_ms: now_ms, scopes: BTreeMap::new() }
    }

    /// How many scopes are known.
    pub fn len(&self) -> usize {
        self.scopes.len()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.scopes.is_empty()
    }

    /// Answers a question of `gateway` at `now_ms`. None where it is not above all that came before it, or where the service has just started: the
    /// gateway asks again when no answer comes.
    pub fn answer(&mut self, gateway: &GatewayName, question: &Question, now_ms: u64) -> Option<Grant> {
        let Question { scope, limits, need } = question;
        let valid_ms = self.config.valid_ms;
        if limits.concurrency.is_some() && now_ms < self.started_ms.saturating_add(valid_ms) {
            return None;
        }
        if !self.scopes.contains_key(scope) {
            self.scopes.insert(scope.clone(), State::default());
        }
        let state = self.scopes.get_mut(scope)?;
        state.set_limits(*limits, self.started_ms, now_ms);
        let others = state.known.iter().filter(|(name, _)| *name != gateway);
        let others = others.fold(0_u32, |sum, (_, known)| sum.saturating_add(known.live_slots(now_ms)));
        let known = state.known.entry(gateway.clone()).or_insert_with(|| Known {
            returned: need.returned,
            granted: need.returned,
            ..Known::default()
        });
        if need.sequence <= known.sequence {
            return None;
        }
        known.sequence = need.sequence;
        known.asked_ms = now_ms;
        // Since it asked it uses no more than it asked for, whatever it was granted before.
        known.slots.iter_mut().for_each(|(_, slots)| *slots = need.slots.min(*slots));
        let requests = limits.requests_per_minute.and(state.requests.as_mut());
        let (requests, retry_requests_ms) = lease(requests, Amount::REQUESTS, known, need, self.config);
        let tokens = limits.tokens_per_minute.and(state.tokens.as_mut());
        let (tokens, retry_tokens_ms) = lease(tokens, Amount::TOKENS, known, need, self.config);
        let slots = match limits.concurrency {
            None => need.slots,
            Some(limit) => {
                let counted = known.live_slots(now_ms);
                let slots = need.slots.min(limit.saturating_sub(others)).max(need.slots.min(counted));
                known.slots.retain(|(end_ms, _)| *end_ms > now_ms);
                known.slots.push((now_ms.saturating_add(valid_ms), slots));
                slots
            }
        };
        let retry_slots_ms = if slots < need.least_slots { SLOT_RETRY_MS } else { 0 };
        let retry_after_ms = retry_slots_ms.max(retry_requests_ms).max(retry_tokens_ms);
        Some(Grant { sequence: need.sequence, block: Block { requests, tokens }, slots, valid_ms, retry_after_ms })
    }

    /// Forgets gateways that asked for nothing in [`FORGET_MS`], and scopes that nobody holds anything of and that are full. What they return later is
    /// lost, not granted again.
    pub fn forget(&mut self, now_ms: u64) {
        let until_ms = FORGET_MS.max(self.config.valid_ms);
        self.scopes.retain(|_, state| {
            state.known.retain(|_, known| now_ms < known.asked_ms.saturating_add(until_ms));
            [&mut state.requests, &mut state.tokens].into_iter().flatten().for_each(|bucket| bucket.refill(now_ms));
            !state.known.is_empty() || !state.is_full()
        });
    }
}

/// One of the two amounts of a block.
#[derive(Clone, Copy)]
struct Amount {
    of: fn(&Block) -> u64,
    of_mut: fn(&mut Block) -> &mut u64,
}

impl Amount {
    const REQUESTS: Self = Self { of: |block| block.requests, of_mut: |block| &mut block.requests };
    const TOKENS: Self = Self { of: |block| block.tokens, of_mut: |block| &mut block.tokens };
}

/// Takes what is returned into the bucket, and what is granted out of it; and how long to wait where that is less than the least.
fn lease(bucket: Option<&mut Bucket>, amount: Amount, known: &mut Known, need: &Need, config: Config) -> (u64, u64) {
    let Amount { of, of_mut } = amount;
    let (before, granted, now) = (of(&known.returned), of(&known.granted), of(&need.returned));
    *of_mut(&mut known.returned) = before.max(now);
    let Some(bucket) = bucket else { return (0, 0) };
    bucket.give(now.min(granted).saturating_sub(before));
    let part = bucket.per_minute().checked_div(config.parts).unwrap_or(bucket.per_minute()).max(1);
    let most = part.saturating_sub(of(&need.held));
    let least = of(&need.least);
    let block = of(&need.want).min(most).max(least).min(bucket.available());
    bucket.take(block);
    let total = of_mut(&mut known.granted);
    *total = total.saturating_add(block);
    let missing = least.saturating_sub(block);
    let retry_ms =
        if missing == 0 { 0 } else { bucket.wait_ms(missing).unwrap_or(RETRY_MAX_MS).clamp(1, RETRY_MAX_MS) };
    (block, retry_ms)
}

#[cfg(test)]
mod tests;
