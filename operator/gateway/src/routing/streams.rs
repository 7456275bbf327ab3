//! What the tokens of our own streams tell of the requests that other gateways sent to the same engine.
//!
//! An engine that prefills stutters: tokens of the answers that it is giving come late. So a stream of our own is a probe of its queue.

/// A gap between two tokens of a stream from which on it stutters: about twice what a full engine takes that does not prefill.
const STUTTER_NS: u64 = 50 * MS;
const MS: u64 = 1_000_000;
const SECOND: u64 = 1_000 * MS;

/// Own requests are waiting there: what others have there comes on top of what is known.
const BESIDE_OWN_NS: u64 = 300 * MS;
/// It began to stutter just now.
const STUTTERING_NS: u64 = 500 * MS;
/// In thousandths of the time for which it has stuttered: the longer it does, the more is there,
const GROWTH_MILLI: u64 = 700;
/// up to here.
const GROWTH_MAX_NS: u64 = 5 * SECOND;
/// Nothing is known.
const UNKNOWN_NS: u64 = 400 * MS;
/// What was seen last is worth nothing after this.
const MEMORY_NS: u64 = 3 * SECOND;

/// Own streams on one engine.
#[derive(Clone, Debug, Default)]
pub(super) struct Streams {
    /// Own requests that get tokens.
    count: u32,
    /// The last token of any of them.
    last_token: Option<u64>,
    /// Since when it has stuttered, by the last gap.
    stutters_since: Option<u64>,
}

impl Streams {
    pub(super) fn begin(&mut self, now: u64) {
        if self.count == 0 {
            // The gap was one of a stream that is over.
            self.stutters_since = None;
        }
        self.count = self.count.saturating_add(1);
        self.last_token = Some(now);
    }

    /// A token of a stream whose last one came then.
    pub(super) fn token(&mut self, now: u64, last: u64) {
        self.last_token = Some(now);
        self.stutters_since =
            if now.saturating_sub(last) < STUTTER_NS { None } else { self.stutters_since.or(Some(last)) };
    }

    pub(super) fn end(&mut self) {
        self.count = self.count.saturating_sub(1);
    }

    #[cfg(test)]
    pub(super) fn is_none(&self) -> bool {
        self.count == 0
    }

    /// Nanoseconds for which the engine is likely busy with prompts of others.
    pub(super) fn others(&self, now: u64, own_pending: bool) -> u64 {
        let since_token = self.last_token.map(|last| now.saturating_sub(last));
        if self.count > 0 {
            let last = self.last_token.filter(|last| now.saturating_sub(*last) >= STUTTER_NS);
            return match self.stutters_since.or(last) {
                None => 0,
                Some(_) if own_pending => BESIDE_OWN_NS,
                Some(since) => {
                    let lasts = now.saturating_sub(since).min(GROWTH_MAX_NS);
                    STUTTERING_NS + lasts * GROWTH_MILLI / 1000
                }
            };
        }
        if own_pending {
            return BESIDE_OWN_NS;
        }
        let age = since_token.map_or(MEMORY_NS, |age| age.min(MEMORY_NS));
        let seen = if self.stutters_since.is_some() { STUTTERING_NS } else { 0 };
        // From what was seen to what is usual, as the memory of it fades.
        (age * (UNKNOWN_NS / MS) + (MEMORY_NS - age) * (seen / MS)) / (MEMORY_NS / MS)
    }
}
