//! Whether an engine is left alone for a while because it fails: so that its requests go elsewhere at once, and not after a timeout each.

/// So many failures in a row are no accident.
const FAILURES: u32 = 3;
/// How long an engine is left alone at first, in milliseconds; twice as long with each failure more,
const PAUSE_MS: u64 = 1_000;
/// but no longer than this.
const PAUSE_MAX_MS: u64 = 30_000;

/// How long one is left alone that says that it has no room.
const BUSY_MS: u64 = 250;

/// What a request tells of its engine.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Verdict {
    /// It answered.
    Worked,
    /// It could not be reached, or broke off.
    Failed,
    /// It has no room.
    Busy,
    /// Nothing: the client went away, or the engine answered as the request made it.
    Unknown,
}

/// What is known of one engine.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(super) struct Breaker {
    /// In a row, until now.
    failures: u32,
    /// Until when it is left alone.
    until_ms: u64,
}

impl Breaker {
    /// Milliseconds for which it is left alone still.
    pub(super) fn wait_ms(&self, now_ms: u64) -> u64 {
        self.until_ms.saturating_sub(now_ms)
    }

    /// A request is sent to it. Where it was left alone, that is a trial, and the next one is not before its pause is over again.
    pub(super) fn begin(&mut self, now_ms: u64) {
        if self.failures >= FAILURES {
            self.until_ms = now_ms.saturating_add(self.pause_ms());
        }
    }

    /// A request is over.
    pub(super) fn note(&mut self, verdict: Verdict, now_ms: u64) {
        match verdict {
            Verdict::Worked => *self = Self::default(),
            Verdict::Failed => {
                self.failures = self.failures.saturating_add(1);
                if self.failures >= FAILURES {
                    self.until_ms = now_ms.saturating_add(self.pause_ms());
                }
            }
            Verdict::Busy => self.until_ms = self.until_ms.max(now_ms.saturating_add(BUSY_MS)),
            Verdict::Unknown => {}
        }
    }

    fn pause_ms(&self) -> u64 {
        let doublings = self.failures.saturating_sub(FAILURES).min(16);
        (PAUSE_MS << doublings).min(PAUSE_MAX_MS)
    }
}

#[cfg(test)]
mod tests {
    use super::Verdict::{Busy, Failed, Unknown, Worked};
    use super::*;

    #[test]
    fn three_failures_in_a_row_and_longer_with_each_more() {
        let mut breaker = Breaker::default();
        breaker.note(Failed, 0);
        breaker.note(Failed, 0);
        breaker.note(Worked, 0);
        breaker.note(Failed, 0);
        breaker.note(Failed, 0);
        assert_eq!(breaker.wait_ms(0), 0, "an answer in between: not in a row");
        breaker.note(Failed, 0);
        assert_eq!((breaker.wait_ms(0), breaker.wait_ms(999), breaker.wait_ms(1_000)), (1_000, 1, 0));
        breaker.begin(1_000);
        assert_eq!(breaker.wait_ms(1_000), 1_000, "one trial at a time");
        breaker.note(Failed, 1_200);
        assert_eq!(breaker.wait_ms(1_200), 2_000);
        for _ in 0..100 {
            breaker.note(Failed, 5_000);
        }
        assert_eq!(breaker.wait_ms(5_000), PAUSE_MAX_MS);
        breaker.begin(35_000);
        breaker.note(Unknown, 35_000);
        assert_eq!(breaker.wait_ms(35_000), PAUSE_MAX_MS, "a client that goes away says nothing");
        breaker.note(Worked, 35_000);
        assert_eq!(breaker.wait_ms(35_000), 0);
        for _ in 0..10 {
            breaker.note(Busy, 40_000);
        }
        assert_eq!(breaker.wait_ms(40_000), BUSY_MS, "who has no room is not broken");
    }
}
