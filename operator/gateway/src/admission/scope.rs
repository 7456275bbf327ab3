//! The limits of one key or one tenant, and what is left of them: in buckets of our own, or in a lease.

use super::bucket::Bucket;
use super::lease::{Block, Lease, Wait};
use super::rates::{Rate, RateLimits};
use super::{LimitKind, Limits, Mode, Retry};

/// Milliseconds after which to try again where too many requests are in flight: when one will end is not known.
pub(super) const CONCURRENCY_RETRY_MS: u64 = 1_000;

/// A limit that has no room, and what would help.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Full {
    pub(super) limit: LimitKind,
    pub(super) allowed: u64,
    pub(super) retry: Retry,
}

#[derive(Debug)]
enum Source {
    Local { requests: Option<Bucket>, tokens: Option<Bucket> },
    Leased(Lease),
}

/// Which limits a request was taken from: only to these is it put back, whatever limits there are by then.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) struct Taken {
    requests: bool,
    tokens: bool,
}

impl Taken {
    fn of(limits: Limits) -> Self {
        Self { requests: limits.requests_per_minute.is_some(), tokens: limits.tokens_per_minute.is_some() }
    }

    /// One request of `tokens`, of these limits.
    fn block(self, tokens: u64) -> Block {
        Block { requests: u64::from(self.requests), tokens: if self.tokens { tokens } else { 0 } }
    }
}

/// The limits of a key or a tenant, and what is in use of them.
#[derive(Debug)]
pub(super) struct Scope {
    limits: Limits,
    in_flight: u32,
    source: Source,
}

impl Scope {
    pub(super) fn new(mode: Mode, limits: Limits, now_ms: u64) -> Self {
        let source = match mode {
            Mode::Local => Source::Local { requests: None, tokens: None },
            Mode::Leased => Source::Leased(Lease::default()),
        };
        let mut scope = Self { limits: Limits::default(), in_flight: 0, source };
        scope.set_limits(limits, now_ms);
        scope
    }

    /// Takes over limits as they are configured now, and what came or ended until `now_ms`.
    pub(super) fn set_limits(&mut self, limits: Limits, now_ms: u64) {
        self.limits = limits;
        match &mut self.source {
            Source::Local { requests, tokens } => {
                set_limit(requests, limits.requests_per_minute.map(u64::from), now_ms);
                set_limit(tokens, limits.tokens_per_minute, now_ms);
            }
            Source::Leased(lease) => lease.expire(now_ms),
        }
    }

    pub(super) fn limits(&self) -> Limits {
        self.limits
    }

    pub(super) fn in_flight(&self) -> u32 {
        self.in_flight
    }

    /// The limit that has no room for one more request of `tokens`, if there is one, and of several the one to wait for longest. `counted`
    /// is that of [`Lease::missing_slot`].
    pub(super) fn full(&mut self, tokens: u64, now_ms: u64, counted: &mut Option<u64>) -> Option<Full> {
        let limits = self.limits;
        let after = |wait: Option<u64>| match wait {
            Some(0) => None,
            Some(wait_ms) => Some(Retry::AfterMs(wait_ms)),
            None => Some(Retry::Never),
        };
        let asked = |wait: Wait| match wait {
            Wait::Ms(wait_ms) => Retry::AfterMs(wait_ms),
            Wait::Answer => Retry::Lease,
        };
        // What no time helps against is told before anything is asked for.
        let never = |limit: Option<u64>, needed: u64| limit.is_some_and(|limit| needed > limit).then_some(Retry::Never);
        let request_limit = limits.requests_per_minute.map(u64::from);
        let slot_limit = limits.concurrency.map(u64::from);
        let mut retries = [never(request_limit, 1), never(limits.tokens_per_minute, tokens), never(slot_limit, 1)];
        if retries.iter().all(Option::is_none) {
            retries = match &mut self.source {
                Source::Local { requests, tokens: bucket } => [
                    requests.as_ref().and_then(|bucket| after(bucket.wait_ms(1))),
                    bucket.as_ref().and_then(|bucket| after(bucket.wait_ms(tokens))),
                    limits
                        .concurrency
                        .is_some_and(|limit| self.in_flight >= limit)
                        .then_some(Retry::AfterMs(CONCURRENCY_RETRY_MS)),
                ],
                Source::Leased(lease) => {
                    let (requests, tokens) = lease.missing(Taken::of(limits).block(tokens), now_ms);
                    let slot = limits.concurrency.and_then(|_| lease.missing_slot(self.in_flight, now_ms, counted));
                    [requests.map(asked), tokens.map(asked), slot.map(asked)]
                }
            };
        }
        let kinds = [
            (LimitKind::Requests, request_limit),
            (LimitKind::Tokens, limits.tokens_per_minute),
            (LimitKind::Concurrency, slot_limit),
        ];
        kinds
            .into_iter()
            .zip(retries)
            .filter_map(|((limit, allowed), retry)| Some(Full { limit, allowed: allowed.unwrap_or(0), retry: retry? }))
            .max_by_key(|full| full.retry)
    }

    /// Takes one request of `tokens`, for which [`Scope::full`] said there is room.
    pub(super) fn take(&mut self, tokens: u64) -> Taken {
        let from = Taken::of(self.limits);
        self.in_flight = self.in_flight.saturating_add(1);
        match &mut self.source {
            Source::Local { requests, tokens: bucket } => {
                requests.iter_mut().for_each(|bucket| bucket.take(1));
                bucket.iter_mut().for_each(|bucket| bucket.take(tokens));
            }
            Source::Leased(lease) => lease.take(from.block(tokens), self.in_flight),
        }
        from
    }

    /// Takes tokens that are used already by a request that was taken `from` here.
    pub(super) fn charge(&mut self, from: Taken, tokens: u64) {
        if !from.tokens {
            return;
        }
        match &mut self.source {
            Source::Local { tokens: bucket, .. } => bucket.iter_mut().for_each(|bucket| bucket.take(tokens)),
            Source::Leased(lease) => lease.charge(tokens),
        }
    }

    /// A request that was taken `from` here is over: puts back `tokens` of it, and the request itself if it is not to count.
    pub(super) fn end(&mut self, from: Taken, tokens: u64, give_request: bool, now_ms: u64) {
        self.in_flight = self.in_flight.saturating_sub(1);
        let given = Taken { requests: from.requests && give_request, ..from }.block(tokens);
        match &mut self.source {
            Source::Local { requests, tokens: bucket } => {
                requests.iter_mut().for_each(|bucket| bucket.give(given.requests));
                bucket.iter_mut().for_each(|bucket| bucket.give(given.tokens));
            }
            Source::Leased(lease) => {
                lease.expire(now_ms);
                lease.give(given);
            }
        }
    }

    /// The lease of limits that there are.
    pub(super) fn lease(&mut self) -> Option<&mut Lease> {
        match &mut self.source {
            Source::Leased(lease) if self.limits != Limits::default() => Some(lease),
            Source::Leased(_) | Source::Local { .. } => None,
        }
    }

    /// What a client is told of these limits. Of a lease: what this gateway holds of them.
    pub(super) fn rates(&self) -> RateLimits {
        match &self.source {
            Source::Local { requests, tokens } => {
                let rate = |bucket: &Bucket| Rate {
                    limit: bucket.per_minute(),
                    remaining: bucket.available(),
                    reset_ms: bucket.full_ms(),
                };
                RateLimits { requests: requests.as_ref().map(rate), tokens: tokens.as_ref().map(rate) }
            }
            Source::Leased(lease) => {
                let held = lease.held();
                let rate = |limit: u64, held: u64| {
                    let remaining = held.min(limit);
                    let reset_ms = (limit - remaining).saturating_mul(60_000).checked_div(limit).unwrap_or(0);
                    Rate { limit, remaining, reset_ms }
                };
                RateLimits {
                    requests: self.limits.requests_per_minute.map(|limit| rate(limit.into(), held.requests)),
                    tokens: self.limits.tokens_per_minute.map(|limit| rate(limit, held.tokens)),
                }
            }
        }
    }

    /// Whether a new scope would be the same at `now_ms`: nothing is in flight, and nothing of the limits is used, held or owed.
    pub(super) fn is_unused(&mut self, now_ms: u64) -> bool {
        self.set_limits(self.limits, now_ms);
        self.in_flight == 0
            && match &self.source {
                Source::Local { requests, tokens } => {
                    [requests, tokens].into_iter().flatten().all(|bucket| bucket.full_ms() == 0)
                }
                Source::Leased(lease) => lease.is_settled(),
            }
    }
}

fn set_limit(bucket: &mut Option<Bucket>, limit: Option<u64>, now_ms: u64) {
    match (limit, bucket.as_mut()) {
        (None, _) => *bucket = None,
        (Some(limit), None) => *bucket = Some(Bucket::new(limit, now_ms)),
        (Some(limit), Some(bucket)) => bucket.set_limit(limit, now_ms),
    }
}
