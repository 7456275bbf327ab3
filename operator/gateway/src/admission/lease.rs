//! A gateway's part of limits that several gateways share: blocks of them, leased from the usage service for a short time.
//!
//! A gateway admits what it holds, and nothing else. It asks ([`Lease::need`]), is granted ([`Lease::grant`]), and stops using what it holds when
//! that ends ([`Lease::expire`]), by its own clock and counted from when it asked. The service counts from when it answered, which is later, so
//! that it never counts on what a gateway may still use. Clocks must run alike, not agree.
//!
//! What the service must do, for each limited key and tenant (`leases` of the crate spillway-usage does it, and so does the model in this module's tests):
//!
//! 1. *Blocks.* It keeps the one bucket of each limit, and takes a block out of it before it grants the block. It adds what gateways return;
//!    [`Need::returned`] is a running total, so that a message that comes twice or never does no harm. What a gateway neither used nor
//!    returned is lost, not granted again.
//! 2. *Slots* replace those granted before. It counts for each gateway the most of its grants that have not ended, but no more than it asked for
//!    last, and grants no more than the limit to all of them; it does not take away from a gateway that asks in time: it grants at least the
//!    lesser of what is asked and what it counts for it.
//! 3. It ignores a [`Need`] whose sequence is not above all that it had from that gateway; a gateway that starts anew is another gateway.
//! 4. It grants no gateway more than its part (`held` and the block together), unless one request needs more ([`Need::least`]).
//!
//! **Bound.** Let `l` be a limit in a minute and `held(s)` what all gateways hold unspent at time `s`, with grants on their way to them and
//! what they return on its way to the service. Over any stretch from `s`, `t` milliseconds long, all gateways together admit no more than `held(s) + l + l * t / 60,000`: with one gateway it is `l + l * t /
//! 60,000`, so that the overshoot is at most the sum of outstanding leases, and by rule 4 at most gateways times part. From the start on it is
//! none: `l + l * t / 60,000`. Whatever is lost, late, twice or dead. Requests in flight are at most the limit, and those of gateways whose slots
//! ended before they could renew them, which are at most the slots they held.

pub use spillway_metering::lease::{Block, Grant, Need};

/// Milliseconds of demand that a gateway asks for in advance, and before the end of slots in use when it asks to keep them. Grants must be
/// valid for longer, by the time that an answer takes at least.
pub const HORIZON_MS: u64 = 2_000;
/// The shortest time over which demand is taken to be known.
const DEMAND_MS: u64 = 250;
/// Milliseconds without a request after which slots are given back.
const IDLE_MS: u64 = 1_000;
/// Milliseconds after which an answer is taken to be lost.
pub const ANSWER_MS: u64 = 1_000;

/// What of a limit is missing, and when to try again.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Wait {
    /// The service had none: milliseconds until it may.
    Ms(u64),
    /// The service was not asked yet, or has not answered.
    Answer,
}

/// What a gateway holds of one scope's limits, and what it knows of the need.
#[derive(Clone, Debug, Default)]
pub struct Lease {
    /// End of what is held; 0 where nothing is.
    until_ms: u64,
    requests: u64,
    /// Below zero where more was used than was reserved: paid from the next block.
    tokens: i64,
    slots: u32,
    returned: Block,
    /// `returned` as the service was last told.
    told: Block,
    sequence: u64,
    /// When the question was asked that is not answered.
    asked_ms: Option<u64>,
    /// Until when the service has nothing.
    dry_until_ms: u64,
    /// Nothing is asked for before then for want alone.
    ask_from_ms: u64,
    /// From when on demand was counted.
    since_ms: u64,
    /// Taken since then.
    spent: Block,
    /// The most that a request was refused for since then.
    short: Block,
    /// How many requests were refused for want of slots since then.
    short_slots: u32,
    /// Most in flight since then.
    peak: u32,
    /// Since when nothing is in flight, as far as it was looked at.
    quiet_ms: Option<u64>,
}

impl Lease {
    /// Ends what is held, if its time is over at `now_ms`: what is left of it is to be returned.
    pub fn expire(&mut self, now_ms: u64) {
        if self.until_ms == 0 || now_ms < self.until_ms {
            return;
        }
        self.until_ms = 0;
        self.slots = 0;
        self.returned.requests = self.returned.requests.saturating_add(std::mem::take(&mut self.requests));
        self.returned.tokens = self.returned.tokens.saturating_add(self.unspent_tokens());
        self.tokens = self.tokens.min(0);
    }

    /// What is held unspent.
    pub fn held(&self) -> Block {
        Block { requests: self.requests, tokens: self.unspent_tokens() }
    }

    /// How many requests may be in flight at once.
    pub fn slots(&self) -> u32 {
        self.slots
    }

    /// Whether anything is held, or owed, or to be returned.
    pub fn is_settled(&self) -> bool {
        self.until_ms == 0 && self.tokens == 0 && self.returned == self.told
    }

    /// Whether `needed` of requests and tokens is not held, and how long to wait for each. The caller has called [`Lease::expire`].
    pub(super) fn missing(&mut self, needed: Block, now_ms: u64) -> (Option<Wait>, Option<Wait>) {
        let wait = self.wait(now_ms);
        let held = self.held();
        let requests = needed.requests > held.requests;
        // A debt is missing as well, so that whoever needs nothing need not pay it.
        let tokens = needed.tokens > held.tokens;
        if requests {
            self.short.requests = self.short.requests.max(needed.requests);
        }
        if tokens {
            self.short.tokens = self.short.tokens.max(needed.tokens);
        }
        (requests.then_some(wait), tokens.then_some(wait))
    }

    /// Whether there is no slot for one more than `in_flight`, and how long to wait. `counted` is by which question the request that asks was counted as
    /// one that waits for a slot: however often it asks, each question counts it once.
    pub(super) fn missing_slot(&mut self, in_flight: u32, now_ms: u64, counted: &mut Option<u64>) -> Option<Wait> {
        if in_flight < self.slots {
            return None;
        }
        if counted.replace(self.sequence) != Some(self.sequence) {
            self.short_slots = self.short_slots.saturating_add(1);
        }
        Some(self.wait(now_ms))
    }

    /// Takes what [`Lease::missing`] said is there. `in_flight` is with this request.
    pub(super) fn take(&mut self, taken: Block, in_flight: u32) {
        self.requests = self.requests.saturating_sub(taken.requests);
        self.charge(taken.tokens);
        self.spent.requests = self.spent.requests.saturating_add(taken.requests);
        self.peak = self.peak.max(in_flight);
        self.quiet_ms = None;
    }

    /// Takes tokens that were used without having been reserved.
    pub(super) fn charge(&mut self, tokens: u64) {
        self.tokens = self.tokens.saturating_sub(signed(tokens));
        self.spent.tokens = self.spent.tokens.saturating_add(tokens);
    }

    /// Puts back what was taken. Where nothing is held any more, it is the service's again, but for what is owed.
    pub(super) fn give(&mut self, given: Block) {
        self.tokens = self.tokens.saturating_add(signed(given.tokens));
        self.requests = self.requests.saturating_add(given.requests);
        self.spent.tokens = self.spent.tokens.saturating_sub(given.tokens);
        self.spent.requests = self.spent.requests.saturating_sub(given.requests);
        if self.until_ms == 0 {
            // Over already, whatever the time is.
            self.until_ms = 1;
            self.expire(u64::MAX);
        }
    }

    /// What to ask the service for at `now_ms`, with `in_flight` requests: nothing while it has not answered, has nothing, or all is well.
    ///
    /// From now on no more slots are used than are asked for, so that the service can give the others away.
    pub fn need(&mut self, now_ms: u64, in_flight: u32) -> Option<Need> {
        self.expire(now_ms);
        let lost = self.asked_ms.is_none_or(|asked_ms| now_ms >= asked_ms.saturating_add(ANSWER_MS));
        if !lost {
            return None;
        }
        let elapsed_ms = now_ms.saturating_sub(self.since_ms).max(DEMAND_MS);
        let ahead = |spent: u64, short: u64| (spent.saturating_mul(HORIZON_MS) / elapsed_ms).max(short);
        let (requests, tokens) =
            (ahead(self.spent.requests, self.short.requests), ahead(self.spent.tokens, self.short.tokens));
        let quiet_ms = if in_flight == 0 { *self.quiet_ms.get_or_insert(now_ms) } else { now_ms };
        let short = self.short != Block::default() || self.short_slots > 0;
        // What nobody uses here may be what somebody waits for elsewhere.
        let idle = self.slots > 0 && !short && now_ms.saturating_sub(quiet_ms) >= IDLE_MS;
        let peak = if idle { 0 } else { self.peak.max(in_flight) };
        let slots = peak.saturating_add(peak / 4).saturating_add(self.short_slots);
        // Half of what is wanted is left, or less.
        let low = self.requests < requests.div_ceil(2) || self.tokens < signed(tokens.div_ceil(2)) || self.tokens < 0;
        let ending = in_flight > 0 && self.until_ms.saturating_sub(now_ms) <= HORIZON_MS;
        let wanting = (short || low) && now_ms >= self.ask_from_ms;
        if !(wanting || ending || idle || self.returned != self.told) {
            return None;
        }
        let missing = |wanted: Block| Block {
            requests: wanted.requests.saturating_sub(self.requests),
            tokens: u64::try_from(signed(wanted.tokens).saturating_sub(self.tokens)).unwrap_or(0),
        };
        let need = Need {
            // Also above those of a lease of this name that was forgotten here, which the service still knows.
            sequence: self.sequence.max(now_ms) + 1,
            held: self.held(),
            returned: self.returned,
            want: missing(Block { requests, tokens }),
            least: missing(self.short),
            slots,
            least_slots: if self.short_slots > 0 { in_flight.saturating_add(1) } else { 0 },
        };
        self.sequence = need.sequence;
        self.told = self.returned;
        self.asked_ms = Some(now_ms);
        self.slots = self.slots.min(slots);
        self.since_ms = now_ms;
        self.spent = Block::default();
        self.short = Block::default();
        self.short_slots = 0;
        self.peak = in_flight;
        Some(need)
    }

    /// Takes what the service grants, if it answers the last question and is not over. Whether it was taken.
    pub fn grant(&mut self, now_ms: u64, grant: &Grant) -> bool {
        self.expire(now_ms);
        let Some(asked_ms) = self.asked_ms.filter(|_| grant.sequence == self.sequence) else { return false };
        self.asked_ms = None;
        let until_ms = asked_ms.saturating_add(grant.valid_ms);
        if now_ms >= until_ms {
            // Too late to be used, and it cannot come again.
            self.returned.requests = self.returned.requests.saturating_add(grant.block.requests);
            self.returned.tokens = self.returned.tokens.saturating_add(grant.block.tokens);
            return false;
        }
        self.until_ms = until_ms;
        self.requests = self.requests.saturating_add(grant.block.requests);
        self.tokens = self.tokens.saturating_add(signed(grant.block.tokens));
        self.slots = grant.slots;
        self.dry_until_ms = if grant.retry_after_ms == 0 { 0 } else { now_ms.saturating_add(grant.retry_after_ms) };
        // What was too little for one request may be enough for others, and comes bit by bit.
        self.ask_from_ms = self.dry_until_ms.min(now_ms.saturating_add(ANSWER_MS));
        true
    }

    fn unspent_tokens(&self) -> u64 {
        u64::try_from(self.tokens).unwrap_or(0)
    }

    fn wait(&self, now_ms: u64) -> Wait {
        match self.dry_until_ms.saturating_sub(now_ms) {
            0 => Wait::Answer,
            wait_ms => Wait::Ms(wait_ms),
        }
    }
}

fn signed(amount: u64) -> i64 {
    i64::try_from(amount).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests;
