//! Hand-made objects for the tests of the commands.

use k8s_openapi::api::core::v1::{Node, Pod};
use serde_json::{Value, json};
use spillway_crds::{GpuPool, GpuReservation, Tenant};
use spillway_planner::Booking;

/// 2026-11-21T08:00:00Z.
pub(crate) const NOW: i64 = 1_795_248_000_000;
/// An hour.
pub(crate) const HOUR: i64 = 3_600_000;

fn read<T: serde::de::DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).unwrap()
}

/// A pool of a SKU in `us-east`.
pub(crate) fn pool(name: &str, sku: &str, per_node: i32) -> GpuPool {
    read(json!({
        "apiVersion": "spillway.dev/v1alpha1", "kind": "GpuPool",
        "metadata": {"name": name},
        "spec": {"sku": sku, "region": "us-east", "provenance": "Owned",
            "devices": {"resource": "nvidia.com/gpu", "perNode": per_node}},
    }))
}

/// A node of 8 devices with a hold.
pub(crate) fn node(name: &str, pool: &str, hold: &str, ready: bool) -> Node {
    let mut taints = vec![json!({"key": "spillway.dev/hold", "value": hold, "effect": "NoSchedule"})];
    if hold != "unsold" {
        taints.push(json!({"key": "spillway.dev/hold", "value": hold, "effect": "NoExecute"}));
    }
    read(json!({
        "metadata": {
            "name": name, "uid": format!("uid-{name}"), "labels": {"spillway.dev/pool": pool},
            "annotations": {"spillway.dev/hold-since": (NOW - HOUR).to_string()},
        },
        "spec": {"taints": taints},
        "status": {
            "allocatable": {"nvidia.com/gpu": "8"},
            "conditions": [{"type": "Ready", "status": if ready { "True" } else { "False" }}],
        },
    }))
}

/// A running pod that wants devices.
pub(crate) fn pod(namespace: &str, name: &str, node: &str, devices: u32) -> Pod {
    read(json!({
        "metadata": {"namespace": namespace, "name": name},
        "spec": {
            "nodeName": node,
            "containers": [{"name": "main", "resources": {"limits": {"nvidia.com/gpu": devices.to_string()}}}],
        },
        "status": {"phase": "Running"},
    }))
}

/// A live booking of acme for 8 devices of pool `h200`: booked two hours ago, Active a minute later, for three hours.
pub(crate) fn booking(id: &str, reservation: &str, node: &str) -> Booking {
    let active = NOW - 2 * HOUR + 60_000;
    read(json!({
        "id": id,
        "reservation": {"uid": format!("uid-{reservation}"), "namespace": "acme", "name": reservation, "generation": 1},
        "tenant": "acme", "pool": "h200", "sku": "nvidia-h200-sxm", "region": "us-east", "tier": "Committed", "devices": 8,
        "exclusive": true, "durationMs": 3 * HOUR, "bookedAt": NOW - 2 * HOUR, "activeAt": active, "end": active + 3 * HOUR,
        "segments": [{"node": node, "uid": format!("uid-{node}"), "devices": 8, "from": active - 1000}],
    }))
}

/// A reservation of acme for 8 devices in a phase, created so many minutes ago.
pub(crate) fn reservation(name: &str, phase: &str, reason: &str, minutes_ago: i64) -> GpuReservation {
    let time = |ms: i64| jiff::Timestamp::from_millisecond(ms).unwrap().to_string();
    read(json!({
        "apiVersion": "spillway.dev/v1alpha1", "kind": "GpuReservation",
        "metadata": {
            "namespace": "acme", "name": name, "uid": format!("uid-{name}"), "generation": 1,
            "creationTimestamp": time(NOW - minutes_ago * 60_000),
        },
        "spec": {
            "sku": "nvidia-h200-sxm", "region": "us-east", "devices": {"count": 8}, "tier": "Committed",
            "term": {"duration": "3h"},
        },
        "status": {
            "observedGeneration": 1, "phase": phase, "reason": reason, "message": format!("What the operator says of {reason}."),
            "conditions": [{"type": "Ready", "status": "False", "reason": reason, "message": "", "lastTransitionTime": time(NOW - HOUR)}],
        },
    }))
}

/// Tenant acme, with a quota of 16.
pub(crate) fn tenant() -> Tenant {
    read(json!({
        "apiVersion": "spillway.dev/v1alpha1", "kind": "Tenant",
        "metadata": {"name": "acme"},
        "spec": {"namespaces": ["acme"], "quotas": [{"sku": "nvidia-h200-sxm", "tier": "Committed", "limit": 16}]},
        "status": {"namespaces": [{"name": "acme", "holder": "uid-acme"}]},
    }))
}
