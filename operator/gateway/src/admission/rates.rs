//! What clients are told of their limits: `x-ratelimit-*`, as OpenAI's API has them.

/// One limit.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Rate {
    /// What is allowed in a minute.
    pub limit: u64,
    /// What is left now.
    pub remaining: u64,
    /// Milliseconds until all of it is left again, if nothing more is used.
    pub reset_ms: u64,
}

/// Limits of requests and of tokens: of the key or of its tenant, whichever has less left.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct RateLimits {
    /// Requests; none where there is no limit.
    pub requests: Option<Rate>,
    /// Tokens; none where there is no limit.
    pub tokens: Option<Rate>,
}

impl RateLimits {
    /// The tighter ones of two.
    pub(super) fn tighter(self, other: Self) -> Self {
        let tighter = |one: Option<Rate>, other: Option<Rate>| {
            [one, other].into_iter().flatten().min_by_key(|rate| (rate.remaining, rate.limit))
        };
        Self { requests: tighter(self.requests, other.requests), tokens: tighter(self.tokens, other.tokens) }
    }

    /// The headers of an answer.
    pub fn headers(&self) -> Vec<(&'static str, String)> {
        const REQUESTS: [&str; 3] =
            ["x-ratelimit-limit-requests", "x-ratelimit-remaining-requests", "x-ratelimit-reset-requests"];
        const TOKENS: [&str; 3] =
            ["x-ratelimit-limit-tokens", "x-ratelimit-remaining-tokens", "x-ratelimit-reset-tokens"];
        [(REQUESTS, self.requests), (TOKENS, self.tokens)]
            .into_iter()
            .filter_map(|(names, rate)| rate.map(|rate| (names, rate)))
            .flat_map(|(names, rate)| {
                names.into_iter().zip([rate.limit.to_string(), rate.remaining.to_string(), duration(rate.reset_ms)])
            })
            .collect()
    }
}

/// A duration as OpenAI's headers have it: `120ms`, `3s`, `6m0s`. Seconds are rounded up.
pub fn duration(milliseconds: u64) -> String {
    let seconds = milliseconds.div_ceil(1_000);
    match (milliseconds, seconds) {
        (0..1_000, _) => format!("{milliseconds}ms"),
        (_, 0..60) => format!("{seconds}s"),
        _ => format!("{}m{}s", seconds / 60, seconds % 60),
    }
}

#[cfg(test)]
mod tests;
