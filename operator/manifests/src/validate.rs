//! API objects into the planner's types. What cannot be right is an error here, so that later steps cannot meet it.

use std::sync::Arc;

use k8s_openapi::{api::core::v1::Node as KubeNode, apimachinery::pkg::api::resource::Quantity};
use spillway_crds::{self as crds, GpuPool, GpuReservation, parse_duration_ms};
use spillway_planner::{
    MilliGpu, Pool, Profile, Quota, Region, Request, ReservationRef, Resources, Shape, Sku, Tenant, TenantName, Tier,
    TimeMs, Where,
};

/// Time for the node check and the health gate between two bookings of a device, beside the grace cap, in milliseconds.
pub const TURNOVER_CHECK_MS: i64 = 120_000;

/// The tier in the planner's words.
pub fn tier(tier: crds::Tier) -> Tier {
    match tier {
        crds::Tier::Internal => Tier::Internal,
        crds::Tier::Committed => Tier::Committed,
        crds::Tier::OnDemand => Tier::OnDemand,
        crds::Tier::Spot => Tier::Spot,
    }
}

/// The tier in the API's words.
pub fn api_tier(tier: Tier) -> crds::Tier {
    match tier {
        Tier::Internal => crds::Tier::Internal,
        Tier::Committed => crds::Tier::Committed,
        Tier::OnDemand => crds::Tier::OnDemand,
        Tier::Spot => crds::Tier::Spot,
    }
}

fn created(time: Option<&k8s_openapi::apimachinery::pkg::apis::meta::v1::Time>) -> TimeMs {
    TimeMs(time.map_or(0, |time| time.0.as_millisecond()))
}

fn positive(value: i32) -> u32 {
    u32::try_from(value).unwrap_or(0)
}

/// A pool. `cluster_grace_cap_s` is the cap that the admission policies enforce: a pool with a shorter one cannot keep its word and sells nothing.
pub fn pool(pool: &GpuPool, cluster_grace_cap_s: u32) -> Pool {
    let spec = &pool.spec;
    let name = pool.metadata.name.as_deref().unwrap_or_default();
    let grace_ms = parse_duration_ms(&spec.sale.grace_cap).unwrap_or(0);
    let cluster_ms = i64::from(cluster_grace_cap_s) * 1000;
    let not_selling = if pool.metadata.deletion_timestamp.is_some() {
        Some(format!("pool {name} is being deleted"))
    } else if grace_ms < cluster_ms {
        Some(format!(
            "sale.graceCap {} of pool {name} is below the cap of {cluster_grace_cap_s}s that the admission policies enforce: raise it, or lower graceCapSeconds of the chart",
            spec.sale.grace_cap
        ))
    } else if spec.sale.paused {
        Some(format!("pool {name} has sale.paused: true"))
    } else {
        None
    };
    Pool {
        name: name.into(),
        sku: spec.sku.as_str().into(),
        region: spec.region.as_str().into(),
        devices_per_node: positive(spec.devices.per_node),
        topology: spec.topology.iter().map(|key| key.as_str().into()).collect(),
        not_selling,
        turnover_ms: grace_ms.saturating_add(TURNOVER_CHECK_MS),
        profiles: spec.devices.profiles.iter().map(profile).collect(),
        observed: spec.mode == crds::Mode::Observe,
    }
}

fn profile(profile: &crds::ShareProfile) -> Profile {
    Profile { name: profile.name.as_str().into(), gpu: MilliGpu(i64::from(profile.milli_gpu)) }
}

/// A tenant.
pub fn tenant(tenant: &crds::Tenant) -> Tenant {
    Tenant {
        name: tenant.metadata.name.as_deref().unwrap_or_default().into(),
        owner: tenant.spec.owner,
        quotas: tenant
            .spec
            .quotas
            .iter()
            .map(|quota| Quota { sku: quota.sku.as_str().into(), tier: tier(quota.tier), limit: positive(quota.limit) })
            .collect(),
        regions: tenant.spec.regions.iter().map(|region| Region::from(region.as_str())).collect(),
    }
}

/// A reservation as a request.
pub fn request(reservation: &GpuReservation, tenant: Option<TenantName>) -> Request {
    let spec = &reservation.spec;
    let place = match (&spec.pool, &spec.sku, &spec.region) {
        (Some(pool), _, _) => Where::Pool(pool.as_str().into()),
        (None, sku, region) => Where::Sku(
            Sku::from(sku.as_deref().unwrap_or_default()),
            Region::from(region.as_deref().unwrap_or_default()),
        ),
    };
    Request {
        reservation: reference(reservation),
        tenant,
        place,
        shape: shape(spec),
        tier: tier(spec.tier),
        duration_ms: spec.term.as_ref().and_then(|term| parse_duration_ms(&term.duration).ok()),
        require: spec.topology.as_ref().map(|topology| topology.require.as_str().into()),
        created: created(reservation.metadata.creation_timestamp.as_ref()),
        wait_for_ms: parse_duration_ms(&spec.wait_for).unwrap_or(0),
        deleting: reservation.metadata.deletion_timestamp.is_some(),
    }
}

fn shape(spec: &crds::GpuReservationSpec) -> Shape {
    let (count, per_node) = (positive(spec.devices.count), spec.devices.per_node.map(positive));
    match &spec.devices.profile {
        Some(profile) => Shape::Shares { count, profile: profile.as_str().into() },
        None if spec.exclusive_nodes => Shape::WholeNodes { count, per_node },
        None => Shape::Devices { count, per_node },
    }
}

/// Which reservation.
pub fn reference(reservation: &GpuReservation) -> ReservationRef {
    ReservationRef {
        uid: reservation.metadata.uid.as_deref().unwrap_or_default().into(),
        namespace: Arc::from(reservation.metadata.namespace.as_deref().unwrap_or_default()),
        name: Arc::from(reservation.metadata.name.as_deref().unwrap_or_default()),
        generation: reservation.metadata.generation.unwrap_or(0),
    }
}

/// A whole number of a quantity, `None` where it is missing or no whole number.
pub fn whole(quantity: Option<&Quantity>) -> Option<u32> {
    quantity.and_then(|quantity| quantity.0.parse().ok())
}

/// Thousandths of a quantity such as `4`, `3500m`, `1.5`; 0 where it cannot be read.
pub fn milli(quantity: &Quantity) -> i64 {
    scaled(&quantity.0, 1000)
}

/// MiB of a quantity such as `16Gi`, `16384Mi`, `17179869184`; 0 where it cannot be read.
pub fn mib(quantity: &Quantity) -> i64 {
    scaled(&quantity.0, 1) / (1024 * 1024)
}

fn scaled(text: &str, per_unit: i128) -> i64 {
    let end = text.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(text.len());
    let (number, suffix) = text.split_at(end);
    let (multiply, divide): (i128, i128) = match suffix {
        "" => (1, 1),
        "n" => (1, 1_000_000_000),
        "u" => (1, 1_000_000),
        "m" => (1, 1000),
        "k" => (1000, 1),
        "M" => (1_000_000, 1),
        "G" => (1_000_000_000, 1),
        "T" => (1_000_000_000_000, 1),
        "P" => (1_000_000_000_000_000, 1),
        "Ki" => (1 << 10, 1),
        "Mi" => (1 << 20, 1),
        "Gi" => (1 << 30, 1),
        "Ti" => (1 << 40, 1),
        "Pi" => (1 << 50, 1),
        _ => return 0,
    };
    let (units, fraction) = number.split_once('.').unwrap_or((number, ""));
    let fraction = fraction.get(..fraction.len().min(9)).unwrap_or_default();
    let base = 10_i128.pow(u32::try_from(fraction.len()).unwrap_or(0));
    let read = |digits: &str| if digits.is_empty() { Some(0) } else { digits.parse::<i128>().ok() };
    let (Some(units), Some(fraction)) = (read(units), read(fraction)) else { return 0 };
    let value = units.saturating_mul(base).saturating_add(fraction);
    i64::try_from(value.saturating_mul(multiply).saturating_mul(per_unit) / divide / base).unwrap_or(i64::MAX)
}

/// What a node offers: devices of the pool's resource, CPU and memory.
pub fn capacity(node: &KubeNode, resource: &str) -> Resources {
    let allocatable = node.status.as_ref().and_then(|status| status.allocatable.as_ref());
    let get = |key: &str| allocatable.and_then(|all| all.get(key));
    Resources {
        gpu: MilliGpu::whole(whole(get(resource)).unwrap_or(0)),
        cpu_milli: get("cpu").map_or(0, milli),
        memory_mib: get("memory").map_or(0, mib),
    }
}

/// Whether a node is Ready, and when it last said so: the last heartbeat that reported Ready, in Unix milliseconds.
pub fn readiness(node: &KubeNode) -> (bool, TimeMs) {
    let condition = node
        .status
        .as_ref()
        .and_then(|status| status.conditions.as_ref())
        .and_then(|all| all.iter().find(|condition| condition.type_ == "Ready"));
    let ms = |time: Option<&k8s_openapi::apimachinery::pkg::apis::meta::v1::Time>| {
        time.map_or(0, |time: &_| time.0.as_millisecond())
    };
    match condition {
        None => (false, created(node.metadata.creation_timestamp.as_ref())),
        Some(condition) if condition.status == "True" => (true, TimeMs(ms(condition.last_heartbeat_time.as_ref()))),
        // The node controller sets Unknown and keeps the heartbeat of the kubelet's last word; a kubelet that says False itself was healthy until the change.
        Some(condition) if condition.status == "Unknown" => (false, TimeMs(ms(condition.last_heartbeat_time.as_ref()))),
        Some(condition) => (false, TimeMs(ms(condition.last_transition_time.as_ref()))),
    }
}

#[cfg(test)]
mod tests;
