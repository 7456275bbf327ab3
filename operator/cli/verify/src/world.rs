//! All that a check looks at: the API objects of one moment, and what is granted to things that are on their way.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::{Namespace, Node, Pod};
use spillway_crds::{CapacityLedger, CapacityLedgerPage, GpuPool, GpuReservation, Mode, Tenant, names};

use crate::ledger::Booking;

/// What is granted.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Milliseconds for which nodes, statuses and labels may lag behind a commit: a finding that is younger is a warning.
    pub settle_ms: i64,
    /// Namespaces whose pods may be on any node: those that the policies of the chart exempt.
    pub infrastructure: BTreeSet<String>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            settle_ms: 30_000,
            infrastructure: ["kube-system", "spillway-system", "gpu-operator"].map(str::to_owned).into(),
        }
    }
}

/// The API objects of one moment.
///
/// They are lists of one moment each, not one list of one moment: pods are read first, then nodes, reservations and the rest, the
/// ledger last. The ledger leads in time and everything follows it, so what was allowed when it was read is still known to the
/// ledger that is read after it, at most [`Settings::settle_ms`] in the past.
#[derive(Clone, Debug, Default)]
pub struct World {
    /// When the first list, that of the pods, was asked for, in Unix milliseconds.
    pub began_ms: i64,
    /// The time of the check in Unix milliseconds.
    pub now_ms: i64,
    /// What is granted.
    pub settings: Settings,
    /// `CapacityLedger/cluster`, if there is one.
    pub root: Option<CapacityLedger>,
    /// All ledger pages; those that the root does not reach are garbage and not looked at.
    pub pages: Vec<CapacityLedgerPage>,
    /// All pools.
    pub pools: Vec<GpuPool>,
    /// All reservations.
    pub reservations: Vec<GpuReservation>,
    /// All tenants.
    pub tenants: Vec<Tenant>,
    /// All nodes; those without a pool's label are not looked at.
    pub nodes: Vec<Node>,
    /// All pods that are bound to pool nodes; others are not looked at.
    pub pods: Vec<Pod>,
    /// All namespaces.
    pub namespaces: Vec<Namespace>,
}

impl World {
    /// True when an instant is so young that what follows from it may still be on its way. An instant in the future (of another
    /// clock) is young.
    pub(crate) fn settling(&self, since_ms: i64) -> bool {
        self.now_ms.saturating_sub(since_ms) < self.settings.settle_ms
    }

    /// True when a booking changed so lately that the consequences may be on their way.
    pub(crate) fn is_fresh(&self, booking: &Booking) -> bool {
        booking.written_at.is_some_and(|at| self.settling(at))
    }

    /// True for namespaces that the policies exempt.
    pub(crate) fn is_infrastructure(&self, namespace: &str) -> bool {
        self.settings.infrastructure.contains(namespace)
    }

    /// There are pools, and all of them only observe.
    pub(crate) fn all_pools_observe(&self) -> bool {
        !self.pools.is_empty() && self.pools.iter().all(|pool| pool.spec.mode == Mode::Observe)
    }

    /// Nodes with a pool's label.
    pub(crate) fn pool_nodes(&self) -> impl Iterator<Item = PoolNode<'_>> {
        self.nodes.iter().filter_map(PoolNode::of)
    }

    /// UID of each namespace: its holder id.
    pub(crate) fn holders(&self) -> BTreeMap<&str, &str> {
        self.namespaces
            .iter()
            .filter_map(|namespace| Some((namespace.metadata.name.as_deref()?, namespace.metadata.uid.as_deref()?)))
            .collect()
    }
}

/// A node with a pool's label.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PoolNode<'a> {
    /// Its name.
    pub(crate) name: &'a str,
    /// UID of the Node object.
    pub(crate) uid: &'a str,
    /// The object.
    pub(crate) node: &'a Node,
}

impl<'a> PoolNode<'a> {
    fn of(node: &'a Node) -> Option<Self> {
        node.metadata.labels.as_ref()?.get(names::POOL_LABEL)?;
        Some(Self { name: node.metadata.name.as_deref()?, uid: node.metadata.uid.as_deref().unwrap_or_default(), node })
    }

    /// How the object is named in a finding.
    pub(crate) fn object(&self) -> String {
        format!("Node/{}", self.name)
    }

    /// Values of the hold taint with an effect.
    pub(crate) fn holds(&self, effect: &str) -> Vec<&'a str> {
        let taints = self.node.spec.as_ref().and_then(|spec| spec.taints.as_deref()).unwrap_or_default();
        taints
            .iter()
            .filter(|taint| taint.key == names::HOLD_TAINT && taint.effect == effect)
            .map(|taint| taint.value.as_deref().unwrap_or_default())
            .collect()
    }

    /// Who may land: the value of the one hold taint with NoSchedule, if there is exactly one.
    pub(crate) fn hold(&self) -> Option<&'a str> {
        match self.holds("NoSchedule").as_slice() {
            [value] => Some(value),
            _ => None,
        }
    }

    /// When the hold taints changed last, in Unix milliseconds, or when the node was created.
    pub(crate) fn hold_since_ms(&self) -> i64 {
        self.annotation(names::HOLD_SINCE_ANNOTATION)
            .and_then(|text| text.parse().ok())
            .or_else(|| self.node.metadata.creation_timestamp.as_ref().map(|time| time.0.as_millisecond()))
            .unwrap_or_default()
    }

    /// Generation of the ledger on which the last write of taints stands.
    pub(crate) fn generation(&self) -> Option<i64> {
        self.annotation(names::GENERATION_ANNOTATION)?.parse().ok()
    }

    /// The parts for which a shared node is set up: booking and devices.
    pub(crate) fn parts(&self) -> Vec<(&'a str, i64)> {
        let one = |text: &'a str| {
            let (booking, devices) = text.split_once('=')?;
            Some((booking, devices.parse().ok()?))
        };
        self.annotation(names::PARTS_ANNOTATION).unwrap_or_default().split(',').filter_map(one).collect()
    }

    /// Devices of a resource that the node says it has.
    pub(crate) fn capacity(&self, resource: &str) -> Option<i64> {
        self.node.status.as_ref()?.capacity.as_ref()?.get(resource)?.0.parse().ok()
    }

    fn annotation(&self, key: &str) -> Option<&'a str> {
        self.node.metadata.annotations.as_ref()?.get(key).map(String::as_str)
    }
}
