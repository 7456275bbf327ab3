//! The planner's table: what it knows of the cluster, kept up to date from what has changed.
//!
//! Must not: decide anything. After any changes the table is as one that was laid anew; every half a minute it is laid anew all the same.

use std::{
    collections::{BTreeMap, HashMap},
    time::{Duration, Instant},
};

use kube::{ResourceExt, runtime::reflector::ObjectRef};
use spillway_planner::{BookingId, NodeUid, Planner, Pool, ReservationUid, Snapshot, TimeMs, ledger::Ledger};

use crate::{changes::Changes, context::Context, guards, guards::State, snapshot::Frame};

/// How often everything is looked at, whatever the watches said.
const RESYNC: Duration = Duration::from_secs(30);

/// Of a pool or tenant: whatever of it a plan depends on changes this.
type Stamp = (String, Option<String>, Option<i64>, bool);

/// What the planner knows.
pub struct Table {
    /// The planner.
    pub planner: Planner,
    /// While all pools observe: what it was opened with.
    pub snapshot: Option<Snapshot>,
    nodes: HashMap<String, NodeUid>,
    requests: HashMap<(String, String), ReservationUid>,
    /// Held nodes that are not Ready, by the time at which they count as lost.
    losses: BTreeMap<String, TimeMs>,
    pools: Vec<Pool>,
    stamps: Vec<Stamp>,
    laid: Instant,
}

impl Table {
    /// Lays the table: everything is looked at.
    pub fn lay(context: &Context, frame: &Frame<'_>, state: &State) -> Self {
        let mut snapshot = frame.snapshot();
        guards::shape(context, state, &mut snapshot);
        let nodes = snapshot.nodes.iter().map(|node| (node.name.to_string(), node.uid.clone())).collect();
        let key = |request: &spillway_planner::Request| {
            let reservation = &request.reservation;
            ((reservation.namespace.to_string(), reservation.name.to_string()), reservation.uid.clone())
        };
        let requests = snapshot.requests.iter().map(key).collect();
        let mut losses = BTreeMap::new();
        for node in context.stores.nodes.state() {
            if let Some((_, Some(due))) = frame.node(&node) {
                losses.insert(node.name_any(), due);
            }
        }
        Self {
            pools: sorted(snapshot.pools.clone()),
            snapshot: state.observes().then(|| snapshot.clone()),
            planner: Planner::open(snapshot),
            nodes,
            requests,
            losses,
            stamps: stamps(context),
            laid: Instant::now(),
        }
    }

    /// Takes changes in; `false`: the table must be laid anew.
    pub fn take(
        &mut self,
        context: &Context,
        frame: &Frame<'_>,
        state: &State,
        mut told: Changes,
        now: TimeMs,
    ) -> bool {
        if told.all || self.snapshot.is_some() || state.observes() || self.laid.elapsed() > RESYNC {
            return false;
        }
        if stamps(context) != self.stamps {
            return false;
        }
        let mut pools = frame.pools();
        guards::shape_pools(context, state, &mut pools);
        let pools = sorted(pools);
        if pools != self.pools {
            self.planner.set_pools(pools.clone());
            self.pools = pools;
        }
        told.nodes.extend(self.losses.iter().filter(|(_, due)| **due <= now).map(|(name, _)| name.clone()));
        for name in told.nodes {
            self.take_node(context, frame, name);
        }
        for (namespace, name) in told.reservations {
            let object = context.stores.reservations.get(&ObjectRef::new(&name).within(&namespace));
            let request = object.and_then(|object| frame.request(&object));
            let key = (namespace, name);
            let uid = request.as_ref().map(|request| request.reservation.uid.clone());
            if let Some(before) = self.requests.remove(&key).filter(|before| Some(before) != uid.as_ref()) {
                self.planner.remove_request(&before);
            }
            if let (Some(request), Some(uid)) = (request, uid) {
                self.planner.set_request(request);
                self.requests.insert(key, uid);
            }
        }
        true
    }

    fn take_node(&mut self, context: &Context, frame: &Frame<'_>, name: String) {
        self.losses.remove(&name);
        let object = context.stores.nodes.get(&ObjectRef::new(&name));
        let seen = object.and_then(|object| frame.node(&object));
        let uid = seen.as_ref().map(|(node, _)| node.uid.clone());
        if let Some(before) = self.nodes.remove(&name).filter(|before| Some(before) != uid.as_ref()) {
            self.planner.remove_node(&before);
        }
        if let (Some((node, loss)), Some(uid)) = (seen, uid) {
            self.planner.set_node(node);
            self.losses.extend(loss.map(|due| (name.clone(), due)));
            self.nodes.insert(name, uid);
        }
    }

    /// Takes in what became of bookings.
    pub fn take_bookings<'a>(&mut self, ledger: &Ledger, touched: impl Iterator<Item = &'a BookingId>) {
        for id in touched {
            match ledger.booking(id) {
                Some(booking) => self.planner.set_booking(booking),
                None => self.planner.remove_booking(id),
            }
        }
    }

    /// The next time at which a node counts as lost, if all stays as it is.
    pub fn next_loss(&self) -> Option<TimeMs> {
        self.losses.values().min().copied()
    }
}

fn sorted(mut pools: Vec<Pool>) -> Vec<Pool> {
    pools.sort_unstable_by(|one, other| one.name.cmp(&other.name));
    pools
}

fn stamps(context: &Context) -> Vec<Stamp> {
    fn stamp(object: &impl ResourceExt) -> Stamp {
        let meta = object.meta();
        (object.name_any(), meta.uid.clone(), meta.generation, meta.deletion_timestamp.is_some())
    }
    let mut stamps: Vec<Stamp> = context.stores.pools.state().iter().map(|pool| stamp(&**pool)).collect();
    stamps.sort_unstable();
    let mut tenants: Vec<Stamp> = context.stores.tenants.state().iter().map(|tenant| stamp(&**tenant)).collect();
    tenants.sort_unstable();
    stamps.extend(tenants);
    stamps
}
