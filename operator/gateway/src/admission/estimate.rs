//! How many tokens an answer will have, before it has any: learned for each key and model from the answers before.
//!
//! Clients often ask for as many tokens as a model can give and use few. Reserving what they ask for would let a few such requests lock out
//! all others of the tenant; so what is reserved is the mean of what was used, and twice its mean deviation. That is how TCP waits for an
//! acknowledgement (Jacobson 1988; RFC 6298 section 2, with its gains of 1/8 and 1/4, in integers), and it follows a change within a few
//! answers. Never more than the client's own bound. An answer that is longer is charged for when it is, so that a wrong estimate delays the
//! requests after it and loses nothing.

use std::sync::Arc;

/// Tokens of an answer of which nothing is known.
pub const FIRST_ESTIMATE: u64 = 512;
/// Longer answers teach as if they had this many tokens.
const OBSERVED_MAX: u64 = 1 << 32;
/// Models of one key of which something is known. The one that was not used for longest is forgotten.
pub const MODELS_MAX: usize = 32;

/// What is known of the answers of one model.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Estimate {
    /// Eight times the mean; none before the first answer.
    mean_8: Option<u64>,
    /// Four times the mean deviation.
    deviation_4: u64,
}

impl Estimate {
    /// Tokens to reserve for one answer.
    pub fn tokens(&self) -> u64 {
        match self.mean_8 {
            None => FIRST_ESTIMATE,
            Some(mean_8) => mean_8.div_ceil(8) + self.deviation_4.div_ceil(2),
        }
    }

    /// Learns that an answer had `tokens`.
    pub fn observe(&mut self, tokens: u64) {
        let tokens = tokens.min(OBSERVED_MAX);
        match &mut self.mean_8 {
            None => {
                self.mean_8 = Some(tokens * 8);
                self.deviation_4 = tokens * 2;
            }
            Some(mean_8) => {
                let mean = *mean_8 / 8;
                self.deviation_4 = self.deviation_4 - self.deviation_4 / 4 + tokens.abs_diff(mean);
                *mean_8 = *mean_8 - mean + tokens;
            }
        }
    }
}

/// Estimates of the models of one key, the last used first.
#[derive(Debug, Default)]
pub(super) struct Estimates(Vec<(Arc<str>, Estimate)>);

impl Estimates {
    /// The name of `model` as it is kept, and tokens to reserve for one of its answers.
    pub(super) fn of(&mut self, model: &str) -> (Arc<str>, u64) {
        if !self.move_to_front(model) {
            self.0.truncate(MODELS_MAX - 1);
            self.0.insert(0, (model.into(), Estimate::default()));
        }
        self.0
            .first()
            .map_or_else(|| (model.into(), FIRST_ESTIMATE), |(name, known)| (Arc::clone(name), known.tokens()))
    }

    /// Learns that an answer of `model` had `tokens`, unless the model was forgotten.
    pub(super) fn observe(&mut self, model: &str, tokens: u64) {
        if self.move_to_front(model)
            && let Some((_, known)) = self.0.first_mut()
        {
            known.observe(tokens);
        }
    }

    fn move_to_front(&mut self, model: &str) -> bool {
        let Some(at) = self.0.iter().position(|(name, _)| **name == *model) else { return false };
        if let Some(used) = self.0.get_mut(..=at) {
            used.rotate_right(1);
        }
        true
    }
}

#[cfg(test)]
mod tests;
