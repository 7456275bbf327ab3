//! From a `GpuNode` to the question it asks, and from what was seen to the answer. Pure: no I/O, no clock.

use std::error::Error as StdError;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use spillway_crds::{CheckResult, GpuNode, RunningContainer};

use crate::{boot, cri};

/// Bound of `status.check.containers` in the API.
pub const MAX_CONTAINERS: usize = 250;
/// Bound of `status.check.error` in the API, in characters.
pub const MAX_ERROR: usize = 1024;

/// What the operator wants to know: the state of the node with that UID, at or after the time of this question.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Question {
    /// Id that the answer repeats.
    pub id: String,
    /// UID of the Node object that is meant.
    pub node_uid: String,
}

/// The question of this object that has no answer yet.
pub fn question(node: &GpuNode) -> Option<Question> {
    let asked = node.spec.check.as_ref()?;
    let answered = node.status.as_ref().and_then(|status| status.check.as_ref());
    if answered.is_some_and(|answer| answer.id == asked.id && answer.node_uid == node.spec.node_uid) {
        return None;
    }
    Some(Question { id: asked.id.clone(), node_uid: node.spec.node_uid.clone() })
}

/// The answer to `question`. An error of either source makes an answer with `error` and an empty list, never a short list.
pub fn answer(
    question: &Question,
    boot_id: Result<String, boot::Error>,
    containers: Result<Vec<RunningContainer>, cri::Error>,
    observed_at: Timestamp,
) -> CheckResult {
    let mut result = CheckResult {
        id: question.id.clone(),
        node_uid: question.node_uid.clone(),
        boot_id: String::new(),
        observed_at: Time(observed_at),
        total: 0,
        containers: Vec::new(),
        error: None,
    };
    match (boot_id, containers) {
        (Ok(boot_id), Ok(mut containers)) => {
            containers.sort();
            result.boot_id = boot_id;
            result.total = i32::try_from(containers.len()).unwrap_or(i32::MAX);
            containers.truncate(MAX_CONTAINERS);
            result.containers = containers;
        }
        (Ok(boot_id), Err(error)) => {
            result.boot_id = boot_id;
            result.error = Some(describe(&error));
        }
        (Err(error), _) => result.error = Some(describe(&error)),
    }
    result
}

/// An error with its causes in one line of at most [`MAX_ERROR`] characters. A cause whose text the line already ends
/// with is left out: some libraries print their source themselves.
pub fn describe(error: &dyn StdError) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.ends_with(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    match text.char_indices().nth(MAX_ERROR.saturating_sub(1)) {
        Some((at, last)) if at.saturating_add(last.len_utf8()) < text.len() => {
            text.truncate(at);
            text.push('…');
            text
        }
        _ => text,
    }
}

#[cfg(test)]
mod tests;
