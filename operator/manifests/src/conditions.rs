//! `status.conditions` by kstatus. A transition time changes only with its status.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use spillway_crds::{Condition, ConditionStatus};

/// Longest message that a condition may carry, in characters.
pub const MAX_MESSAGE: usize = 1024;

/// One condition as it should be; the transition time is found by [`merge`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// `Ready`, `Reconciling`, `Stalled`, ...
    pub type_: &'static str,
    /// Whether it holds.
    pub status: bool,
    /// One CamelCase word.
    pub reason: String,
    /// A sentence.
    pub message: String,
}

impl Wanted {
    /// A condition.
    pub fn new(type_: &'static str, status: bool, reason: impl Into<String>, message: impl Into<String>) -> Self {
        Self { type_, status, reason: reason.into(), message: message.into() }
    }
}

/// The wanted conditions, with the transition times of `previous` where the status is the same.
pub fn merge(previous: &[Condition], wanted: Vec<Wanted>, generation: Option<i64>, now: Timestamp) -> Vec<Condition> {
    wanted
        .into_iter()
        .map(|want| {
            let status = if want.status { ConditionStatus::True } else { ConditionStatus::False };
            let since = previous
                .iter()
                .find(|old| old.type_ == want.type_ && old.status == status)
                .map_or(Time(now), |old| old.last_transition_time.clone());
            Condition {
                type_: want.type_.to_owned(),
                status,
                reason: want.reason,
                message: bounded(&want.message, MAX_MESSAGE),
                last_transition_time: since,
                observed_generation: generation,
            }
        })
        .collect()
}

/// The text, cut to so many characters.
pub fn bounded(text: &str, characters: usize) -> String {
    match text.char_indices().nth(characters) {
        None => text.to_owned(),
        Some(_) => {
            let keep: String = text.chars().take(characters.saturating_sub(3)).collect();
            format!("{keep}...")
        }
    }
}

/// Unix milliseconds as a Kubernetes time of whole seconds, as the API server keeps it.
pub fn time(ms: i64) -> Time {
    Time(Timestamp::from_second(ms.div_euclid(1000)).unwrap_or(Timestamp::UNIX_EPOCH))
}

#[cfg(test)]
mod tests;
