//! Who may be on a node: the rule by which pods on pool nodes are audited (docs/ARCHITECTURE.md, "The guards").
//!
//! | hold of the node | legal |
//! |---|---|
//! | any | infrastructure, mirror pods (a kubelet's own), pods that are being deleted |
//! | none, or not one of ours | everybody: the node machine is about to close the node |
//! | `closed` in `NoSchedule` | everybody: nobody has been told to go, or the node machine is emptying it |
//! | `closed` in both effects | who was bound before it was closed: the node machine is emptying it |
//! | `unsold` | the owner's pods; pods of nobody (no Tenant lists the namespace) without devices, or from before the node was opened |
//! | a holder's | pods of the namespace whose holder id it is |
//! | `node.<uid>` | pods of namespaces that have a part of it, or had one that is being given back: they were let in one by one |
//!
//! Pods of nobody that were there first stay until the node is sold: to observe and then to enforce must end nothing that runs.

use spillway_crds::names::{HOLD_CLOSED, HOLD_NODE_PREFIX, HOLD_UNSOLD};

/// Pods that were being bound when a node was closed show up within this time. Times of Kubernetes are whole seconds, and clocks differ.
pub const LATE_MS: i64 = 5_000;
/// At most so many pods are deleted in [`WINDOW_MS`]. More is a mistake of ours or an emergency: a person must look.
pub const LIMIT: usize = 5;
/// The time over which they are counted.
pub const WINDOW_MS: i64 = 60_000;

/// Whose a namespace is, by its labels.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Whose {
    /// One of the infrastructure namespaces.
    Infrastructure,
    /// The owner's.
    Owner,
    /// A tenant's.
    Tenant,
    /// Nobody's: no Tenant lists it.
    Nobody,
    /// It has not been seen, so nothing is known.
    Unknown,
}

/// A pod that is bound to a node.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Resident<'a> {
    /// Whose its namespace is.
    pub whose: Whose,
    /// The holder id of its namespace.
    pub holder: Option<&'a str>,
    /// It asks for devices.
    pub devices: bool,
    /// The kubelet's picture of a static pod.
    pub mirror: bool,
    /// It is being deleted.
    pub leaving: bool,
    /// Whether it may be on a shared node; none: that is for others to say.
    pub assigned: Option<bool>,
    /// When it was bound, in Unix milliseconds; none: not known, it counts as old.
    pub bound_ms: Option<i64>,
}

/// The hold of the node that it is on.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct NodeHold<'a> {
    /// Value of the taint in `NoSchedule`.
    pub no_schedule: Option<&'a str>,
    /// Value of the taint in `NoExecute`.
    pub no_execute: Option<&'a str>,
    /// When the taints last changed, in Unix milliseconds; none: not noted.
    pub since_ms: Option<i64>,
}

/// Why a pod may not be where it is; none: it may.
pub fn judge(pod: &Resident<'_>, node: &NodeHold<'_>) -> Option<&'static str> {
    if pod.leaving || pod.mirror || matches!(pod.whose, Whose::Infrastructure | Whose::Unknown) {
        return None;
    }
    let later_than = |slack_ms: i64| match (pod.bound_ms, node.since_ms) {
        (Some(bound), Some(since)) => bound > since.saturating_add(slack_ms),
        _ => false,
    };
    match (node.no_schedule, node.no_execute) {
        (Some(HOLD_CLOSED), Some(HOLD_CLOSED)) => {
            later_than(LATE_MS).then_some("it came to a node that is closed to all")
        }
        (Some(HOLD_UNSOLD), None) => match pod.whose {
            Whose::Tenant => Some("it is a tenant's, on a node that is not sold"),
            Whose::Nobody if pod.devices && later_than(LATE_MS) => {
                Some("it uses devices of a node that is for its owner, and no Tenant lists its namespace")
            }
            _ => None,
        },
        (Some(hold), Some(stay)) if hold == stay && hold.starts_with(HOLD_NODE_PREFIX) => {
            (pod.assigned == Some(false)).then_some("it was not given a part of a node that several holders share")
        }
        (Some(hold), Some(stay)) if hold == stay && hold != HOLD_UNSOLD && hold != HOLD_CLOSED => {
            (pod.holder != Some(hold)).then_some("its namespace does not hold the node")
        }
        _ => None,
    }
}

/// Whether `new` pods more may be deleted after those that were deleted at these times.
pub fn may_delete(deleted_ms: &[i64], new: usize, now_ms: i64) -> bool {
    let recent = deleted_ms.iter().filter(|at| now_ms.saturating_sub(**at) < WINDOW_MS).count();
    recent + new <= LIMIT
}

#[cfg(test)]
mod tests;
