//! Which of several services of one database leases limits: one, for a term that it renews, and no two at once (docs/adr/0014-one-of-several-leases.md).
//!
//! Pure: times are milliseconds of one clock of the caller's that does not go back, and clocks of two services must run alike, not agree. Who holds grants
//! until [`Config::term_ms`] after it *asked* for the renewal that succeeded last. Who does not takes the seat when it has *seen* for the term and a margin
//! that nothing was renewed, and only if that is still so ([`Seat`] is compared and swapped). What it saw first was renewed before, so the other one has
//! stopped by then, whether it knows of it or not.

/// Milliseconds between two looks that one follows on: after more, the time for which the seat stays as it is begins anew. One look may fail that takes
/// three seconds to.
const MOST_BETWEEN_MS: u64 = 6_000;

/// How long a term is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Config {
    /// Milliseconds for which a renewal holds.
    pub term_ms: u64,
    /// Milliseconds that are waited longer than that: by how much a clock may be slower than another in a term.
    pub margin_ms: u64,
    /// Milliseconds between two looks.
    pub look_ms: u64,
}

impl Default for Config {
    /// A restart or a failover of PostgreSQL is over in ten seconds, mostly; and what gateways hold lasts as long.
    fn default() -> Self {
        Self { term_ms: 10_000, margin_ms: 1_000, look_ms: 1_000 }
    }
}

/// What the database says of who leases.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Seat {
    /// Of the service's start. Empty where nobody has it, or who had it gave it back.
    pub holder: String,
    /// Where the others reach it; empty where they do not.
    pub address: String,
    /// Rises with each renewal and each taking.
    pub beat: i64,
}

/// What one service knows.
#[derive(Debug)]
pub struct Election {
    config: Config,
    me: String,
    /// The seat as it was read last.
    seen: Option<Seen>,
    /// Nothing is taken before then: the database has lost writes, and with them perhaps that somebody took it.
    doubtful_until_ms: u64,
    /// Until when we hold it.
    until_ms: Option<u64>,
}

#[derive(Debug)]
struct Seen {
    seat: Seat,
    /// Since when it was read so, again and again.
    since_ms: u64,
    /// When it was read last.
    read_ms: u64,
}

/// What to do next.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Step {
    /// Renew ours.
    Renew,
    /// Read it.
    Read,
}

impl Election {
    /// What one knows that starts now, under a name that none had before.
    pub fn new(config: Config, me: String) -> Self {
        Self { config, me, seen: None, doubtful_until_ms: 0, until_ms: None }
    }

    /// Our name.
    pub fn me(&self) -> &str {
        &self.me
    }

    /// Whether we may grant.
    pub fn holds(&self, now_ms: u64) -> bool {
        self.until_ms.is_some_and(|until_ms| now_ms < until_ms)
    }

    /// What to do next. A term that has ended is given up for good: somebody else may have had one since.
    pub fn step(&mut self, now_ms: u64) -> Step {
        if self.holds(now_ms) {
            return Step::Renew;
        }
        self.until_ms = None;
        Step::Read
    }

    /// It was renewed, as we asked at `asked_ms`; or it is not ours any more.
    pub fn renewed(&mut self, is_ours: bool, asked_ms: u64) {
        if !is_ours {
            self.until_ms = None;
        } else if let Some(until_ms) = &mut self.until_ms {
            *until_ms = asked_ms.saturating_add(self.config.term_ms).max(*until_ms);
        }
    }

    /// The seat was read, and `now_ms` is after it. The one to swap for ours, if it is to be taken.
    pub fn read(&mut self, seat: Seat, now_ms: u64) -> Option<Seat> {
        let Config { term_ms, margin_ms, .. } = self.config;
        let wait_ms = term_ms.saturating_add(margin_ms);
        // What was not looked at for a while may have been another meanwhile, in a database that has lost that since.
        let is_doubtful =
            |seen: &Seen| now_ms.saturating_sub(seen.read_ms) > MOST_BETWEEN_MS || seen.seat.beat > seat.beat;
        let since_ms = match &self.seen {
            Some(seen) if is_doubtful(seen) => {
                self.doubtful_until_ms = now_ms.saturating_add(wait_ms);
                now_ms
            }
            Some(seen) if seen.seat == seat => seen.since_ms,
            _ => now_ms,
        };
        let waited_ms = now_ms.saturating_sub(since_ms);
        let is_free = (seat.holder.is_empty() || waited_ms >= wait_ms) && now_ms >= self.doubtful_until_ms;
        self.seen = Some(Seen { seat: seat.clone(), since_ms, read_ms: now_ms });
        is_free.then_some(seat)
    }

    /// It was taken, as we asked at `asked_ms`; or somebody else was faster.
    pub fn taken(&mut self, is_ours: bool, asked_ms: u64) {
        self.until_ms = is_ours.then(|| asked_ms.saturating_add(self.config.term_ms));
    }

    /// We grant nothing from now on.
    pub fn end(&mut self) {
        self.until_ms = None;
    }

    /// Where somebody else grants, as far as is known.
    pub fn other(&self) -> Option<&str> {
        let Seen { seat, .. } = self.seen.as_ref()?;
        (seat.holder != self.me && !seat.holder.is_empty() && !seat.address.is_empty()).then_some(seat.address.as_str())
    }
}

#[cfg(test)]
mod tests;
