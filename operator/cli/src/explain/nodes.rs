//! The nodes of a booking, and the pods on them and not on them.

use k8s_openapi::api::core::v1::{Node, Pod};
use kube::ResourceExt;
use spillway_crds::{
    AssignedNode, GpuPool, GpuReservationStatus, Phase,
    names::{HOLD_CLOSED, HOLD_UNSOLD, RESERVATION_LABEL},
};
use spillway_manifests::{hold, validate};
use spillway_planner::{Booking, Segment};

use super::{Facts, NodeRow, WaitingPod};
use crate::{
    capacity::{devices_wanted, is_alive},
    time,
};

/// Pods of a node that are listed.
const MAX_PODS: usize = 5;

/// The nodes of a booking in the order in which they came, lost ones included.
pub(super) fn rows(facts: &Facts, booking: &Booking) -> Vec<NodeRow> {
    booking.segments.iter().map(|segment| row(facts, segment)).collect()
}

fn row(facts: &Facts, segment: &Segment) -> NodeRow {
    let phase = facts.reservation.status.as_ref().map(|status| status.phase).unwrap_or_default();
    let over = phase.is_final() || (phase == Phase::Ending && is_given_back(facts, segment));
    let state = match facts.node(segment.uid.as_str()) {
        _ if segment.to.is_some() => "lost".to_owned(),
        _ if over => "given back".to_owned(),
        Some(node) => node_state(facts, node),
        None => "gone: it is replaced when another node is free".to_owned(),
    };
    let pods = if segment.to.is_some() || over { Vec::new() } else { pods_on(facts, segment.node.as_str()) };
    NodeRow {
        node: segment.node.to_string(),
        devices: segment.devices,
        state,
        handed_over: segment.from.map(|at| time::show(at.0)),
        lost: segment.to.map(|at| time::show(at.0)),
        pods,
    }
}

/// While the other nodes of a reservation are still being emptied.
fn is_given_back(facts: &Facts, segment: &Segment) -> bool {
    let lands = facts.node(segment.uid.as_str()).map(|node| hold::read_taints(node).0);
    match lands {
        Some(Some(HOLD_CLOSED)) => false,
        Some(Some(holder)) => Some(holder) != own_holder(facts),
        Some(None) | None => true,
    }
}

/// The nodes that the status names, where the ledger may not or cannot be read.
pub(super) fn rows_of_status(facts: &Facts, status: &GpuReservationStatus) -> Vec<NodeRow> {
    let nodes = facts.fleet.as_ref().map(|fleet| &fleet.nodes);
    let row = |assigned: &AssignedNode| NodeRow {
        node: assigned.name.clone(),
        devices: u32::try_from(assigned.devices).unwrap_or_default(),
        state: match nodes.map(|nodes| nodes.iter().find(|node| node.name_any() == assigned.name)) {
            None => "not shown".to_owned(),
            Some(None) => "gone".to_owned(),
            Some(Some(node)) => node_state(facts, node),
        },
        handed_over: None,
        lost: None,
        pods: pods_on(facts, &assigned.name),
    };
    status.nodes.iter().map(row).collect()
}

/// What a node is, as words.
fn node_state(facts: &Facts, node: &Node) -> String {
    let (lands, stays) = hold::read_taints(node);
    let mut words = match (lands, stays) {
        (None, _) => "without a hold taint: the operator closes it".to_owned(),
        (Some(HOLD_UNSOLD), _) => "unsold: not closed for the reservation yet".to_owned(),
        (Some(HOLD_CLOSED), None) => "closed: nobody new may land, what runs there is asked to go".to_owned(),
        (Some(HOLD_CLOSED), Some(_)) => "closed: it is being emptied and checked".to_owned(),
        (Some(holder), _) if Some(holder) == own_holder(facts) => "held by this namespace".to_owned(),
        (Some(_), _) => "held by another namespace".to_owned(),
    };
    if let Some(since) = hold::hold_since(node) {
        words.push_str(&format!(" (since {})", time::show(since)));
    }
    let (ready, _) = validate::readiness(node);
    if !ready {
        words.push_str(", NotReady");
    }
    if node.spec.as_ref().and_then(|spec| spec.unschedulable).unwrap_or_default() {
        words.push_str(", cordoned");
    }
    if lands == Some(HOLD_CLOSED)
        && let Some(check) = agent_says(facts, node)
    {
        words.push_str(&format!(", {check}"));
    }
    words
}

/// The holder id of the reservation's namespace, as its Tenant says.
fn own_holder(facts: &Facts) -> Option<&str> {
    let namespace = facts.reservation.metadata.namespace.as_deref()?;
    facts.tenants.iter().flatten().find_map(|tenant| {
        let status = tenant.status.as_ref()?;
        status.namespaces.iter().find(|one| one.name == namespace).map(|one| one.holder.as_str())
    })
}

/// What the agent of a node that is being emptied says.
fn agent_says(facts: &Facts, node: &Node) -> Option<String> {
    let uid = node.metadata.uid.as_deref()?;
    let gpu_node = facts.gpu_nodes.iter().find(|one| one.spec.node_uid == uid)?;
    let asked = gpu_node.spec.check.as_ref()?;
    let answer = gpu_node.status.as_ref().and_then(|status| status.check.as_ref()).filter(|check| check.id == asked.id);
    Some(match answer {
        None => "its agent was asked what runs there and has not answered".to_owned(),
        Some(check) => match &check.error {
            Some(error) => format!("its agent could not ask the container runtime: {error}"),
            None => format!("its agent saw {} containers and sandboxes at {}", check.total, check.observed_at.0),
        },
    })
}

/// Pods on a node: those of the namespace, and others that are not there by a DaemonSet.
fn pods_on(facts: &Facts, node: &str) -> Vec<String> {
    let Some(fleet) = &facts.fleet else { return Vec::new() };
    let own = facts.reservation.namespace();
    let mut pods: Vec<String> = fleet
        .pods
        .iter()
        .filter(|pod| pod.spec.as_ref().is_some_and(|spec| spec.node_name.as_deref() == Some(node)) && is_alive(pod))
        .filter(|pod| pod.namespace() == own || !is_of_daemon_set(pod))
        .map(|pod| {
            let leaving = if pod.metadata.deletion_timestamp.is_some() { ", going" } else { "" };
            let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or("Unknown");
            format!("{}/{} ({phase}{leaving})", pod.namespace().unwrap_or_default(), pod.name_any())
        })
        .collect();
    pods.sort();
    let more = pods.len().saturating_sub(MAX_PODS);
    pods.truncate(MAX_PODS);
    if more > 0 {
        pods.push(format!("and {more} more"));
    }
    pods
}

fn is_of_daemon_set(pod: &Pod) -> bool {
    pod.metadata.owner_references.iter().flatten().any(|owner| owner.kind == "DaemonSet")
}

/// Pods of the namespace that want devices, are on no node, and do not ask for another reservation.
pub(super) fn waiting_pods(facts: &Facts, pools: &[&GpuPool]) -> Vec<WaitingPod> {
    let name = facts.reservation.name_any();
    let mut waiting: Vec<WaitingPod> = facts
        .own_pods
        .iter()
        .flatten()
        .filter(|pod| pod.spec.as_ref().is_some_and(|spec| spec.node_name.is_none()) && is_alive(pod))
        .filter(|pod| pod.labels().get(RESERVATION_LABEL).is_none_or(|wanted| *wanted == name))
        .filter(|pod| pools.iter().any(|pool| devices_wanted(pod, &pool.spec.devices.resource) > 0))
        .map(|pod| WaitingPod { pod: pod.name_any(), why: scheduler_says(pod) })
        .collect();
    waiting.sort_by(|a, b| a.pod.cmp(&b.pod));
    waiting
}

fn scheduler_says(pod: &Pod) -> String {
    let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_deref()).unwrap_or_default();
    conditions
        .iter()
        .find(|condition| condition.type_ == "PodScheduled" && condition.status != "True")
        .and_then(|condition| condition.message.clone())
        .unwrap_or_else(|| "the scheduler has not looked at it".to_owned())
}
