//! What a prompt costs an engine, in tokens of work and in time.

use super::fixed::{ONE, narrow, ratio, scale};

/// Prompts count as at most this long, so that nothing overflows.
const TOKENS_MAX: u64 = 1 << 30;

/// How the time to prefill grows. The defaults are those of a model of 8 billion parameters on a GPU with 80 GB, by its sizes:
/// they need not be exact, for how fast an engine is gets learned.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Cost {
    /// Tokens of a block of a prompt.
    pub block_tokens: u64,
    /// How many tokens before it make a token twice as dear as the first: cost of the linear layers over cost of attention to one token.
    pub attention_tokens: u64,
    /// How many tokens of other requests, which are decoded in the same steps, make prefilling take twice as long.
    pub decode_tokens: u64,
    /// How much longer a step takes than its prefill does, in thousandths of that: what every step costs.
    pub step_milli: u64,
}

impl Default for Cost {
    fn default() -> Self {
        Self { block_tokens: 512, attention_tokens: 40_000, decode_tokens: 1_600_000, step_milli: 100 }
    }
}

impl Cost {
    /// The work of `new` tokens that are computed after `cached` ones that are not, in tokens at the start of a prompt:
    /// new (1 + (cached + new / 2) / attention).
    pub(super) fn work(&self, new: u64, cached: u64) -> u64 {
        let (new, cached) = (new.min(TOKENS_MAX), cached.min(TOKENS_MAX));
        let attended = new.saturating_mul(2 * cached + new);
        new.saturating_add(attended.checked_div(self.attention_tokens.saturating_mul(2)).unwrap_or(0))
    }

    /// By what factor work takes longer where requests with so many tokens are in flight, in units of 2^-20.
    pub(super) fn slow(&self, in_flight: u64) -> u64 {
        let step = ratio(self.step_milli, 1000);
        ONE.saturating_add(step).saturating_add(ratio(in_flight, self.decode_tokens))
    }
}

/// Nanoseconds that the work takes. The rate is in nanoseconds a token, both factors in units of 2^-20.
pub(super) fn time(work: u64, slow: u64, rate: u64) -> u64 {
    scale(work, scale(rate, slow))
}

/// The rate at which the work took so long.
pub(super) fn rate(time: u64, work: u64, slow: u64) -> u64 {
    let work = u128::from(work) * u128::from(slow);
    let scaled = (u128::from(time) << 40).checked_div(work);
    scaled.map_or(0, narrow)
}
