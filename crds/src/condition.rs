//! `status.conditions`, following kstatus: `Ready`, `Reconciling`, `Stalled`, and kind-specific types.
//!
//! Kubernetes' own `Condition` has unbounded strings, so this is the same shape with bounds.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Whether a condition holds.
#[derive(Clone, Copy, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
pub enum ConditionStatus {
    /// It holds.
    True,
    /// It does not hold.
    False,
    /// It is not known.
    Unknown,
}

/// One observation about the object.
#[derive(Clone, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Condition {
    /// What is observed, in CamelCase: `Ready`, `Reconciling`, `Stalled`, ...
    #[serde(rename = "type")]
    #[schemars(length(min = 1, max = 64))]
    pub type_: String,
    /// Whether it holds.
    pub status: ConditionStatus,
    /// Why, as one CamelCase word for machines.
    #[schemars(length(min = 1, max = 64))]
    pub reason: String,
    /// Why, and what would change it, as a sentence for people.
    #[schemars(length(max = 1024))]
    pub message: String,
    /// When `status` last changed.
    pub last_transition_time: Time,
    /// `metadata.generation` that was looked at.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub observed_generation: Option<i64>,
}
