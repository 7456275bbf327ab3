//! The planner's snapshot of the objects: every node sound and open, nothing booked, every pool observed, so that shares are planned.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
};

use k8s_openapi::api::core::v1::Node as KubeNode;
use kube::{Resource, ResourceExt};
use spillway_crds::{GpuPool, GpuReservation, Phase, Tenant, names::POOL_LABEL};
use spillway_manifests::validate;
use spillway_planner::{
    MilliGpu, Node, NodeHealth, NodeSale, Pool, Request, ReservationUid, Resources, Snapshot, TenantName, TimeMs,
};

use super::objects::{ObjectError, Objects};

/// CPU of a node of which only the devices are known, in thousandths of a core for each of them.
const CPU_MILLI: i64 = 12_000;
/// Its memory, in MiB for each device.
const MEMORY_MIB: i64 = 48 * 1024;
/// The topology level of which each node is a domain of its own.
const HOSTNAME: &str = "kubernetes.io/hostname";

/// What is planned.
#[derive(Debug)]
pub(super) struct Cluster {
    /// For the planner. Requests are in the order in which they are served, and their UIDs are their places in it.
    pub(super) snapshot: Snapshot,
    /// The time of the plan.
    pub(super) at: TimeMs,
    /// Reservations that are over or being deleted.
    pub(super) reservations_left_out: usize,
    /// Nodes of no pool that is there.
    pub(super) nodes_left_out: usize,
}

impl Cluster {
    /// The cluster that the objects and so many more nodes make.
    pub(super) fn build(
        objects: &Objects,
        extra: &BTreeMap<&str, u32>,
        at: Option<TimeMs>,
    ) -> Result<Self, ObjectError> {
        let pools: BTreeMap<String, (&GpuPool, Pool)> =
            objects.pools.iter().map(|pool| (pool.name_any(), (pool, as_planned(pool)))).collect();
        let mut nodes: Vec<Node> = objects.nodes.iter().filter_map(|node| described(node, &pools)).collect();
        let nodes_left_out = objects.nodes.len() - nodes.len();
        let mut names: HashSet<String> = objects.nodes.iter().map(ResourceExt::name_any).collect();
        for (name, &count) in extra {
            let Some((_, pool)) = pools.get(*name) else {
                let known: Vec<String> = pools.keys().map(|name| format!("`{name}`")).collect();
                let known = if known.is_empty() { "none at all".to_owned() } else { known.join(", ") };
                return Err(ObjectError::NoPool { pool: (*name).to_owned(), known });
            };
            nodes.extend(made(pool, count, &mut names));
        }
        let owners = owners(&objects.tenants);
        let planned: Vec<&GpuReservation> = objects.reservations.iter().filter(|one| is_to_be_answered(one)).collect();
        let (requests, youngest) = in_order(&planned, &owners);
        if requests.is_empty() {
            return Err(ObjectError::NothingToPlan);
        }
        let snapshot = Snapshot {
            pools: pools.into_values().map(|(_, pool)| pool).collect(),
            nodes,
            tenants: objects.tenants.iter().map(validate::tenant).collect(),
            bookings: Vec::new(),
            requests,
            learned: BTreeMap::new(),
        };
        let reservations_left_out = objects.reservations.len() - planned.len();
        Ok(Self { snapshot, at: at.unwrap_or(youngest), reservations_left_out, nodes_left_out })
    }
}

fn as_planned(pool: &GpuPool) -> Pool {
    // Which grace cap the policies of the cluster enforce is not known: no pool is below it.
    Pool { observed: true, ..validate::pool(pool, 0) }
}

/// Not over, and not on its way out. What else was said of it before is said anew.
fn is_to_be_answered(reservation: &GpuReservation) -> bool {
    let ended = reservation.status.as_ref().is_some_and(|status| matches!(status.phase, Phase::Ending | Phase::Ended));
    !ended && reservation.metadata.deletion_timestamp.is_none()
}

/// Whose each namespace is: the oldest Tenant's that lists it; of those without a time the first one's. None's, while that one is being deleted.
fn owners(tenants: &[Tenant]) -> HashMap<&str, TenantName> {
    let mut by_age: Vec<&Tenant> = tenants.iter().collect();
    by_age.sort_by_cached_key(|tenant| match created(*tenant) {
        Some(at) => (at, Some(tenant.name_any())),
        None => (i64::MAX, None),
    });
    let mut owners = HashMap::new();
    for tenant in by_age {
        for namespace in &tenant.spec.namespaces {
            owners.entry(namespace.as_str()).or_insert(tenant);
        }
    }
    owners.retain(|_, tenant| tenant.metadata.deletion_timestamp.is_none());
    owners.into_iter().map(|(namespace, tenant)| (namespace, TenantName::from(tenant.name_any()))).collect()
}

/// Unix milliseconds.
fn created(object: &impl Resource) -> Option<i64> {
    object.meta().creation_timestamp.as_ref().map(|time| time.0.as_millisecond())
}

/// Requests, those with a time first and by it, the others in the order of the files; and the time of the youngest, else 0.
fn in_order(reservations: &[&GpuReservation], owners: &HashMap<&str, TenantName>) -> (Vec<Request>, TimeMs) {
    let mut ordered = reservations.to_vec();
    // As the operator serves those that were created in the same second.
    ordered.sort_by_cached_key(|one| match created(*one) {
        Some(at) => (at, one.namespace(), Some(one.name_any())),
        None => (i64::MAX, None, None),
    });
    let youngest = ordered.iter().filter_map(|one| created(*one)).max().unwrap_or(0);
    let mut undated = youngest;
    let requests = ordered.iter().enumerate().map(|(at, reservation)| {
        let owner = reservation.namespace().and_then(|namespace| owners.get(namespace.as_str()).cloned());
        let mut request = validate::request(reservation, owner);
        request.reservation.uid = ReservationUid::from(format!("{at:08}"));
        if created(*reservation).is_none() {
            // A millisecond after the one before it: the planner knows no other order than by time.
            undated = undated.saturating_add(1);
            request.created = TimeMs(undated);
        }
        request
    });
    (requests.collect(), TimeMs(youngest))
}

/// A node as it is described, if it is one of a pool that is there.
fn described(node: &KubeNode, pools: &BTreeMap<String, (&GpuPool, Pool)>) -> Option<Node> {
    let (object, pool) = pools.get(node.labels().get(POOL_LABEL)?)?;
    let resource = &object.spec.devices.resource;
    let offers = node.status.as_ref().and_then(|status| status.allocatable.as_ref());
    let capacity = if offers.is_some() { validate::capacity(node, resource) } else { usual(pool) };
    let fits = capacity.gpu == MilliGpu::whole(pool.devices_per_node);
    let open = open(node.name_any(), pool);
    // A kubelet labels its node with the host name; a manifest may leave that to it.
    let domain = |(key, made): (&String, &Option<Arc<str>>)| {
        let label = node.labels().get(key).map(|value| Arc::from(value.as_str()));
        label.or_else(|| made.clone().filter(|_| key == HOSTNAME))
    };
    Some(Node {
        domains: object.spec.topology.iter().zip(&open.domains).map(domain).collect(),
        // A node that offers another number of devices is not sold from.
        sale: if fits { NodeSale::Open } else { NodeSale::Broken },
        capacity,
        ..open
    })
}

/// So many nodes of a pool, of names that no node has.
fn made(pool: &Pool, count: u32, names: &mut HashSet<String>) -> Vec<Node> {
    let digits = count.to_string().len();
    let mut made = Vec::new();
    for number in 1_u32.. {
        if made.len() >= count as usize {
            break;
        }
        let name = format!("{}-{number:0digits$}", pool.name);
        if names.insert(name.clone()) {
            made.push(open(name, pool));
        }
    }
    made
}

/// A node of which only the pool is known.
fn open(name: String, pool: &Pool) -> Node {
    let domain =
        |key: &_| if *key == HOSTNAME.into() { Arc::from(name.as_str()) } else { Arc::from(pool.name.as_str()) };
    Node {
        uid: name.as_str().into(),
        pool: pool.name.clone(),
        capacity: usual(pool),
        domains: pool.topology.iter().map(|key| Some(domain(key))).collect(),
        sale: NodeSale::Open,
        health: NodeHealth::Sound,
        owner_use: Resources::default(),
        returning: 0,
        name: name.into(),
    }
}

fn usual(pool: &Pool) -> Resources {
    let devices = i64::from(pool.devices_per_node);
    Resources {
        gpu: MilliGpu::whole(pool.devices_per_node),
        cpu_milli: devices * CPU_MILLI,
        memory_mib: devices * MEMORY_MIB,
    }
}
