//! The booking ledger: one root that is swapped, and immutable pages that it names. Written by the operator alone.
//!
//! What a page's `data` holds is defined by the planner's `ledger` module; the API server only keeps it, bounds it to 64 KiB
//! and refuses changes. It is one string and not a tree of fields because the API server tracks the ownership of every field
//! of a tree, which would cost several times the page.

#![allow(clippy::duplicated_attributes, reason = "printer columns of one type look like repeated attributes")]

use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What a ledger page holds.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, JsonSchema, Ord, PartialEq, PartialOrd, Serialize)]
pub enum PageKind {
    /// The names of a pool's booking pages and the head of its archive.
    Index,
    /// Live bookings.
    Bookings,
    /// Bookings that ended, each page naming the one before it.
    Archive,
}

/// The root of the booking ledger: the one object whose swap commits a decision. There is one, named `cluster`.
#[derive(Clone, CustomResource, Debug, Deserialize, Eq, KubeSchema, PartialEq, Serialize)]
#[kube(
    group = "spillway.dev",
    version = "v1alpha1",
    kind = "CapacityLedger",
    singular = "capacityledger",
    plural = "capacityledgers",
    category = "spillway",
    shortname = "ledger",
    printcolumn(name = "Generation", type_ = "integer", json_path = ".spec.generation", description = "Swaps so far"),
    printcolumn(name = "Epoch", type_ = "integer", json_path = ".spec.epoch", description = "Collections so far"),
    printcolumn(name = "Format", type_ = "integer", json_path = ".spec.format", description = "Format of root and pages"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    validation = ("self.metadata.name == 'cluster'", "the one CapacityLedger is named cluster")
)]
#[serde(rename_all = "camelCase")]
pub struct CapacityLedgerSpec {
    /// Format of root and pages. An operator that meets a newer one reads and does not write.
    #[schemars(range(min = 1, max = 1000))]
    pub format: i32,
    /// Number of swaps so far; each commit raises it by one.
    #[schemars(range(min = 0))]
    pub generation: i64,
    /// Number of collections so far; a collection raises it before it deletes, so that a commit in flight fails.
    #[schemars(range(min = 0))]
    pub epoch: i64,
    /// Time of the last commit in Unix milliseconds. Never goes back.
    #[schemars(range(min = 0))]
    pub committed_at: i64,
    /// The index page of each pool that was ever sold from.
    #[schemars(length(max = 256), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub pools: Vec<LedgerPool>,
}

/// One pool in the root.
#[derive(Clone, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct LedgerPool {
    /// Name of the `GpuPool`.
    #[schemars(length(min = 1, max = 63))]
    pub name: String,
    /// Name of its index page.
    #[schemars(length(min = 1, max = 63))]
    pub index: String,
}

/// A page of the booking ledger: immutable, at most 64 KiB, its name never used twice.
#[derive(Clone, CustomResource, Debug, Deserialize, Eq, KubeSchema, PartialEq, Serialize)]
#[kube(
    group = "spillway.dev",
    version = "v1alpha1",
    kind = "CapacityLedgerPage",
    singular = "capacityledgerpage",
    plural = "capacityledgerpages",
    category = "spillway",
    shortname = "ledgerpage",
    printcolumn(name = "Kind", type_ = "string", json_path = ".spec.kind"),
    printcolumn(name = "Pool", type_ = "string", json_path = ".spec.pool"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[x_kube(validation = ("self == oldSelf", "a ledger page never changes: write a new one"))]
#[serde(rename_all = "camelCase")]
pub struct CapacityLedgerPageSpec {
    /// Format of `data`.
    #[schemars(range(min = 1, max = 1000))]
    pub format: i32,
    /// What `data` holds.
    pub kind: PageKind,
    /// Name of the `GpuPool` that the page belongs to.
    #[schemars(length(min = 1, max = 63))]
    pub pool: String,
    /// The content, as JSON. At most 64 KiB.
    #[schemars(length(min = 2, max = 65536))]
    pub data: String,
}
