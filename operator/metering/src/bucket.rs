//! A token bucket in integers: it holds the limit of a minute at most and fills continuously.
//!
//! The unit is a part: 1/60,000 of what is counted. A limit of `l` in a minute is then `l` parts in a millisecond, exactly, so that nothing is
//! rounded, however often the bucket is looked at. What is taken over any stretch of `t` milliseconds is at most `l + l * t / 60,000`.

/// The largest limit in a minute, and the largest amount: 2^40. What is above counts as this.
pub const LIMIT_MAX: u64 = 1 << 40;

/// Parts of one request, or of one token.
const PARTS: i64 = 60_000;

/// How much of a limit is left.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Bucket {
    /// At most [`LIMIT_MAX`], so that its parts have room in 63 bits.
    per_minute: u64,
    /// Parts. Below zero where more was used than was reserved.
    level: i64,
    /// When `level` was true, milliseconds of the caller's clock.
    at_ms: u64,
}

impl Bucket {
    /// A full one, at `now_ms`.
    pub fn new(per_minute: u64, now_ms: u64) -> Self {
        let mut bucket = Self { per_minute: per_minute.min(LIMIT_MAX), level: 0, at_ms: now_ms };
        bucket.level = bucket.capacity();
        bucket
    }

    /// The limit in a minute, which is also the most that it holds.
    pub fn per_minute(&self) -> u64 {
        self.per_minute
    }

    /// Fills it up to `now_ms`. A clock that went back changes nothing.
    pub fn refill(&mut self, now_ms: u64) {
        let elapsed = now_ms.saturating_sub(self.at_ms);
        let gained = signed(self.per_minute).saturating_mul(signed(elapsed));
        self.level = self.level.saturating_add(gained).min(self.capacity());
        self.at_ms = self.at_ms.max(now_ms);
    }

    /// Another limit from `now_ms` on. What is left stays, within the new limit.
    pub fn set_limit(&mut self, per_minute: u64, now_ms: u64) {
        self.refill(now_ms);
        self.per_minute = per_minute.min(LIMIT_MAX);
        self.level = self.level.min(self.capacity());
    }

    /// What can be taken now, whole.
    pub fn available(&self) -> u64 {
        u64::try_from(self.level / PARTS).unwrap_or(0)
    }

    /// Milliseconds until `amount` can be taken, if nobody else takes: 0 for now, none for never, as it does not fit.
    pub fn wait_ms(&self, amount: u64) -> Option<u64> {
        if amount > self.per_minute {
            return None;
        }
        Some(self.fill_ms(parts(amount)))
    }

    /// Milliseconds until it is full.
    pub fn full_ms(&self) -> u64 {
        self.fill_ms(self.capacity())
    }

    /// Takes `amount`, whether it is there or not: who must not exceed the limit asks [`Bucket::wait_ms`] before.
    pub fn take(&mut self, amount: u64) {
        self.level = self.level.saturating_sub(parts(amount));
    }

    /// Puts `amount` back. What does not fit is lost.
    pub fn give(&mut self, amount: u64) {
        self.level = self.level.saturating_add(parts(amount)).min(self.capacity());
    }

    fn capacity(&self) -> i64 {
        parts(self.per_minute)
    }

    fn fill_ms(&self, level: i64) -> u64 {
        let missing = u64::try_from(level.saturating_sub(self.level)).unwrap_or(0);
        // Nothing is missing of nothing; of a limit of 0, nothing more ever comes.
        if missing == 0 {
            0
        } else {
            missing.checked_div(self.per_minute).map_or(u64::MAX, |_| missing.div_ceil(self.per_minute))
        }
    }
}

fn signed(amount: u64) -> i64 {
    i64::try_from(amount).unwrap_or(i64::MAX)
}

/// Amounts above [`LIMIT_MAX`] count as that.
fn parts(amount: u64) -> i64 {
    signed(amount.min(LIMIT_MAX)).saturating_mul(PARTS)
}

#[cfg(test)]
mod tests;
