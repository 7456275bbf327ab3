//! The planner's snapshot, from what is watched and what is committed. Pure: the same stores give the same snapshot.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
};

use k8s_openapi::api::core::v1::Node as KubeNode;
use kube::ResourceExt;
use spillway_crds::{
    GpuPool, GpuReservation,
    names::{FINALIZER, HOLD_CLOSED, HOLD_UNSOLD, POOL_LABEL},
    parse_duration_ms,
};
use spillway_manifests::{hold, validate};
use spillway_planner::{
    Booking, BookingId, MilliGpu, Node, NodeHealth, NodeSale, NodeUid, Outcome, Pool, Request, ReservationUid,
    Resources, Snapshot, TenantName, TimeMs, ledger::Ledger, node::Part,
};

use crate::{context::Context, pods::PodFacts};

/// A namespace's tenant, and whether it is the owner.
pub type Owners = BTreeMap<String, (TenantName, bool)>;

/// What stands between a node and its sale, beside its taints.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Soundness {
    /// The kubelet says Ready.
    pub ready: bool,
    /// Last known healthy.
    pub healthy_at: TimeMs,
    /// Since when it is not Ready.
    pub not_ready_since: TimeMs,
    /// Nobody may schedule there.
    pub cordoned: bool,
    /// Devices that it offers, if another number than the pool says.
    pub wrong_devices: Option<u32>,
    /// The object is being deleted.
    pub deleting: bool,
}

/// Looks at a node.
pub fn soundness(node: &KubeNode, pool: &GpuPool) -> Soundness {
    let (ready, healthy_at) = validate::readiness(node);
    let devices = validate::capacity(node, &pool.spec.devices.resource).gpu.0 / 1000;
    let since = node
        .status
        .as_ref()
        .and_then(|status| status.conditions.as_ref())
        .and_then(|all| all.iter().find(|condition| condition.type_ == "Ready"))
        .and_then(|condition| condition.last_transition_time.as_ref())
        .or(node.metadata.creation_timestamp.as_ref())
        .map_or(0, |time| time.0.as_millisecond());
    Soundness {
        ready,
        healthy_at,
        not_ready_since: TimeMs(since),
        cordoned: node.spec.as_ref().and_then(|spec| spec.unschedulable).unwrap_or(false),
        wrong_devices: (devices != i64::from(pool.spec.devices.per_node)).then(|| u32::try_from(devices).unwrap_or(0)),
        deleting: node.metadata.deletion_timestamp.is_some(),
    }
}

/// A number that changes with whatever of a node anybody here looks at, and not with its heartbeats.
pub fn fingerprint(node: &KubeNode) -> u64 {
    use std::hash::{DefaultHasher, Hash, Hasher};
    let mut hasher = DefaultHasher::new();
    let meta = &node.metadata;
    (&meta.uid, &meta.labels, &meta.annotations, meta.deletion_timestamp.is_some()).hash(&mut hasher);
    if let Some(spec) = &node.spec {
        spec.unschedulable.hash(&mut hasher);
        for taint in spec.taints.iter().flatten() {
            (&taint.key, &taint.value, &taint.effect).hash(&mut hasher);
        }
    }
    if let Some(status) = &node.status {
        for (key, quantity) in status.allocatable.iter().flatten() {
            (key, &quantity.0).hash(&mut hasher);
        }
        for condition in status.conditions.iter().flatten().filter(|condition| condition.type_ == "Ready") {
            condition.status.hash(&mut hasher);
        }
        status.node_info.as_ref().map(|info| &info.boot_id).hash(&mut hasher);
    }
    hasher.finish()
}

/// Devices that the owner's pods use on a node.
pub fn owner_devices(pods: &[PodFacts], owners: &Owners, resource: &str) -> u32 {
    pods.iter()
        .filter(|pod| owners.get(&*pod.namespace).is_some_and(|(_, owner)| *owner))
        .filter_map(|pod| pod.devices.get(resource))
        .sum()
}

/// Whether a reservation can be planned: ours to end properly, and not over or refused; one that has a booking always is.
fn plannable(reservation: &GpuReservation, ledger: &Ledger, past: &Past<'_>) -> bool {
    let uid = ReservationUid::from(reservation.uid().unwrap_or_default());
    if ledger.booking_of(&uid).is_some() {
        return true;
    }
    let deleting = reservation.metadata.deletion_timestamp.is_some();
    let finished = reservation.status.as_ref().is_some_and(|status| status.phase.is_final());
    !finished
        && !past.ended.contains_key(&uid)
        && (deleting || !past.refused.contains_key(&uid))
        && reservation.finalizers().iter().any(|name| name == FINALIZER)
}

/// What was decided before and is not in the ledger's live pages.
pub struct Past<'a> {
    /// Bookings that ended.
    pub ended: &'a HashMap<ReservationUid, Arc<Booking>>,
    /// Reservations that were refused: once said, it is not taken back, even while the status is on its way.
    pub refused: &'a HashMap<ReservationUid, Outcome>,
    /// Nodes that a booking gave up.
    pub given_up: &'a HashMap<NodeUid, BookingId>,
}

/// A node that is held and whose pool is not there: it lives, and cannot be sold.
fn unpooled(node: &KubeNode, uid: NodeUid, pool: &str) -> Node {
    Node {
        name: node.name_any().into(),
        uid,
        pool: pool.into(),
        capacity: Resources::default(),
        domains: Vec::new(),
        sale: NodeSale::NotNow,
        health: NodeHealth::Sound,
        owner_use: Resources::default(),
        returning: 0,
    }
}

/// Whether a node can be booked now; `shared`: live bookings have parts of it, and nobody has it whole.
fn sale(node: &KubeNode, sound: &Soundness, shared: bool) -> NodeSale {
    if sound.cordoned || (sound.ready && sound.wrong_devices.is_some()) {
        return NodeSale::Broken;
    }
    if !sound.ready || sound.deleting {
        return NodeSale::NotNow;
    }
    // A node that is being prepared for parts may be prepared for some more.
    let preparing = || shared && hold::read_taints(node).0 == Some(HOLD_CLOSED);
    if hold::read_taints(node) == (Some(HOLD_UNSOLD), None) {
        NodeSale::Open
    } else if hold::is_shared(node) || preparing() {
        NodeSale::Shared
    } else {
        NodeSale::NotNow
    }
}

/// Devices of parts whose bookings are not live any more, and that were not given back.
fn returning(node: &KubeNode, ledger: &Ledger) -> u32 {
    if !hold::is_shared(node) {
        return 0;
    }
    let uid = NodeUid::from(node.uid().unwrap_or_default());
    let live = |part: &Part| {
        let open = |booking: &Arc<Booking>| {
            let mut open = booking.segments.iter().filter(|segment| segment.uid == uid && segment.to.is_none());
            open.any(|segment| segment.devices == part.devices)
        };
        ledger.booking(&part.booking).is_some_and(open)
    };
    hold::read_parts(node).iter().filter(|part| !live(part)).map(|part| part.devices).sum()
}

/// What a snapshot is made from, looked up once.
pub struct Frame<'a> {
    context: &'a Context,
    ledger: &'a Ledger,
    owners: &'a Owners,
    past: &'a Past<'a>,
    pools: HashMap<String, Arc<GpuPool>>,
    /// Tenants that are not being deleted.
    tenants: HashSet<TenantName>,
    now: TimeMs,
}

impl<'a> Frame<'a> {
    /// A frame at a time.
    pub fn new(context: &'a Context, ledger: &'a Ledger, owners: &'a Owners, past: &'a Past<'a>, now: TimeMs) -> Self {
        let pools = context.stores.pools.state().into_iter().map(|pool| (pool.name_any(), pool)).collect();
        let tenants = context.stores.tenants.state();
        let alive = tenants.iter().filter(|tenant| tenant.metadata.deletion_timestamp.is_none());
        let tenants = alive.map(|tenant| TenantName::from(tenant.name_any())).collect();
        Self { context, ledger, owners, past, pools, tenants, now }
    }

    /// A node as the planner sees it; none: it is nothing to it. With it, the time at which it counts as lost if it stays as it is.
    pub fn node(&self, node: &KubeNode) -> Option<(Node, Option<TimeMs>)> {
        let Self { context, ledger, past, now, .. } = self;
        let uid = NodeUid::from(node.uid().unwrap_or_default());
        let held = ledger.holders(&uid).next();
        let shared = held.is_some_and(|booking| !booking.exclusive);
        // A node that holds something is looked at whatever its label says: it is not lost because somebody relabelled it.
        let label = node.labels().get(POOL_LABEL).cloned();
        let pool_name = label.or_else(|| held.map(|booking| booking.pool.to_string()))?;
        let Some(pool) = self.pools.get(&pool_name) else {
            // A pool that somebody forced away takes no booking with it: to leave a held node out would say that it is lost.
            return held.map(|_| (unpooled(node, uid, &pool_name), None));
        };
        let sound = soundness(node, pool);
        let repair = parse_duration_ms(&pool.spec.sale.repair_after).unwrap_or(300_000);
        let (mut health, mut loss) = (NodeHealth::Sound, None);
        if held.is_some() && !sound.ready {
            let due = sound.not_ready_since.plus(repair);
            if due <= *now {
                health = NodeHealth::Lost(sound.healthy_at);
            } else {
                loss = Some(due);
            }
        }
        if past.given_up.get(&uid).is_some_and(|id| ledger.holders(&uid).any(|booking| booking.id == *id)) {
            health = NodeHealth::Lost(*now);
        }
        let used = owner_devices(&context.pods.on(&node.name_any()), self.owners, &pool.spec.devices.resource);
        let domain = |key: &String| node.labels().get(key).map(|value| Arc::from(value.as_str()));
        let seen = Node {
            name: node.name_any().into(),
            uid,
            pool: pool_name.into(),
            capacity: validate::capacity(node, &pool.spec.devices.resource),
            domains: pool.spec.topology.iter().map(domain).collect(),
            sale: sale(node, &sound, shared),
            health,
            owner_use: Resources { gpu: MilliGpu::whole(used), ..Resources::default() },
            returning: returning(node, ledger),
        };
        Some((seen, loss))
    }

    /// A reservation as the planner sees it; none: there is nothing to be planned for it.
    pub fn request(&self, reservation: &GpuReservation) -> Option<Request> {
        if !plannable(reservation, self.ledger, self.past) {
            return None;
        }
        let tenant = self.owners.get(&reservation.namespace().unwrap_or_default()).map(|(tenant, _)| tenant.clone());
        Some(validate::request(reservation, tenant.filter(|tenant| self.tenants.contains(tenant))))
    }

    /// All pools.
    pub fn pools(&self) -> Vec<Pool> {
        let grace = self.context.config.grace_cap_seconds;
        self.pools.values().map(|pool| validate::pool(pool, grace)).collect()
    }

    /// Everything.
    pub fn snapshot(&self) -> Snapshot {
        let stores = &self.context.stores;
        Snapshot {
            pools: self.pools(),
            nodes: stores.nodes.state().iter().filter_map(|node| Some(self.node(node)?.0)).collect(),
            tenants: stores.tenants.state().iter().map(|tenant| validate::tenant(tenant)).collect(),
            bookings: self.ledger.bookings().cloned().collect(),
            requests: stores.reservations.state().iter().filter_map(|one| self.request(one)).collect(),
            learned: self.ledger.learned().map(|(pool, learned)| (pool.clone(), Arc::clone(learned))).collect(),
        }
    }
}
