//! Invariant 4: no pod where its tenant holds nothing (HOLDS, section 4, the audit).

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, Pod};
use spillway_crds::names;

use crate::{
    ledger::{Booking, Ledger},
    violation::Findings,
    world::{PoolNode, World},
};

/// A pod's times are whole seconds; a node's are milliseconds.
const SECOND_MS: i64 = 1000;

/// How far the clock of the operator, which stamps nodes, and ours may be apart.
const CLOCK_SKEW_MS: i64 = 2000;

/// Every pod on a pool node is there by right; `ledger`: none where it cannot be relied on.
pub(super) fn check(world: &World, ledger: Option<&Ledger>, findings: &mut Findings) {
    let nodes: BTreeMap<&str, PoolNode<'_>> = world.pool_nodes().map(|node| (node.name, node)).collect();
    let holders = world.holders();
    let roles: BTreeMap<&str, &str> = world
        .namespaces
        .iter()
        .filter_map(|namespace| {
            let role = namespace.metadata.labels.as_ref()?.get(names::ROLE_LABEL)?;
            Some((namespace.metadata.name.as_deref()?, role.as_str()))
        })
        .collect();
    for pod in &world.pods {
        let Some(node) = pod.spec.as_ref().and_then(|spec| nodes.get(spec.node_name.as_deref()?)) else { continue };
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
        if matches!(phase, Some("Succeeded" | "Failed")) || world.is_infrastructure(namespace) {
            continue;
        }
        let Some(hold) = node.hold() else { continue };
        let owner = roles.get(namespace) == Some(&names::ROLE_OWNER);
        match hold {
            names::HOLD_CLOSED => check_on_closed(world, pod, *node, findings),
            names::HOLD_UNSOLD if owner => {}
            // Nobody's, and there before the node was opened: it stays until the node is sold.
            names::HOLD_UNSOLD
                if !roles.contains_key(namespace)
                    && landed_ms(pod) <= node.hold_since_ms().saturating_add(SECOND_MS) => {}
            holder if holders.get(namespace) == Some(&holder) => {}
            // Whose the parts are, the ledger says; without it, nobody knows.
            shared if shared == names::hold_of_node(node.uid) => {
                if let Some(ledger) = ledger {
                    check_on_shared(world, ledger, pod, *node, findings);
                }
            }
            _ => misplaced(world, pod, *node, hold, findings),
        }
    }
    if let Some(ledger) = ledger {
        check_parts(world, ledger, findings);
    }
}

/// A pod on a shared node is of a namespace that has a part of it, or had one that is being given back.
fn check_on_shared(world: &World, ledger: &Ledger, pod: &Pod, node: PoolNode<'_>, findings: &mut Findings) {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let set_up = node.parts();
    let of_it = |booking: &Booking| {
        booking.reservation.namespace == namespace && set_up.iter().any(|(id, _)| *id == booking.id)
    };
    if !ledger.all().any(|(booking, _)| of_it(booking)) {
        misplaced(world, pod, node, &names::hold_of_node(node.uid), findings);
    }
}

/// Pods of a namespace on a shared node use no more devices than its parts of the node have.
fn check_parts(world: &World, ledger: &Ledger, findings: &mut Findings) {
    for node in world.pool_nodes().filter(|node| node.hold() == Some(names::hold_of_node(node.uid).as_str())) {
        let pool = node.node.metadata.labels.as_ref().and_then(|labels| labels.get(names::POOL_LABEL));
        let Some(pool) = world.pools.iter().find(|known| known.metadata.name.as_ref() == pool) else { continue };
        let set_up = node.parts();
        let mut used: BTreeMap<&str, i64> = BTreeMap::new();
        for pod in &world.pods {
            let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
            let here = pod.spec.as_ref().is_some_and(|spec| spec.node_name.as_deref() == Some(node.name));
            if here && !matches!(phase, Some("Succeeded" | "Failed")) {
                let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
                *used.entry(namespace).or_default() += devices(pod, &pool.spec.devices.resource);
            }
        }
        for (namespace, used) in
            used.into_iter().filter(|(namespace, used)| *used > 0 && !world.is_infrastructure(namespace))
        {
            let of_it = |(booking, _): &(&Booking, bool)| booking.reservation.namespace == namespace;
            let part = |(booking, _): (&Booking, bool)| {
                set_up.iter().find(|(id, _)| *id == booking.id).map_or(0, |(_, devices)| *devices)
            };
            let held: i64 = ledger.all().filter(of_it).map(part).sum();
            if used > held {
                let message =
                    format!("pods of namespace {namespace} use {used} devices of it, and it has parts of {held}");
                let excused = node.hold_since_ms() >= world.began_ms.saturating_sub(CLOCK_SKEW_MS);
                findings.unless(excused, 4, "PartsOverused", node.object(), message);
            }
        }
    }
}

/// Devices of a resource that the containers of a pod are limited to.
fn devices(pod: &Pod, resource: &str) -> i64 {
    let containers = pod.spec.as_ref().map(|spec| spec.containers.as_slice()).unwrap_or_default();
    let of = |container: &Container| {
        let limits = container.resources.as_ref()?.limits.as_ref()?;
        limits.get(resource)?.0.parse::<i64>().ok()
    };
    containers.iter().filter_map(of).sum()
}

/// What was there when the node was closed is on its way out; nothing may come after.
fn check_on_closed(world: &World, pod: &Pod, node: PoolNode<'_>, findings: &mut Findings) {
    if pod.metadata.deletion_timestamp.is_some() {
        return;
    }
    let since = node.hold_since_ms();
    let landed = landed_ms(pod);
    if landed > since.saturating_add(SECOND_MS) {
        let message = format!("it landed on {} at {landed}, which is closed since {since}", node.name);
        findings.unless(world.settling(landed), 4, "PodOnClosedNode", object(pod), message);
    } else if !node.holds("NoExecute").is_empty() && !world.settling(since) {
        let message = format!("it is still on {}, which is closed since {since}, and nobody has stopped it", node.name);
        findings.warning(4, "PodStaysOnClosedNode", object(pod), message);
    }
}

fn misplaced(world: &World, pod: &Pod, node: PoolNode<'_>, hold: &str, findings: &mut Findings) {
    // Pods are read before nodes: a node that changed hands in between was emptied in between.
    let excused = node.hold_since_ms() >= world.began_ms.saturating_sub(CLOCK_SKEW_MS);
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let state = match hold {
        names::HOLD_UNSOLD => "which is not sold and open to the owner only".to_owned(),
        shared if shared == names::hold_of_node(node.uid) => "which others share".to_owned(),
        holder => match world.holders().into_iter().find(|(_, uid)| *uid == holder) {
            Some((name, _)) => format!("which namespace {name} holds"),
            None => format!("whose holder {holder} is no namespace"),
        },
    };
    let message = format!("it is on {}, {state}: namespace {namespace} holds nothing there", node.name);
    findings.unless(excused, 4, "PodWithoutHold", object(pod), message);
}

/// When the pod was bound, or else created, in Unix milliseconds.
fn landed_ms(pod: &Pod) -> i64 {
    let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_deref()).unwrap_or_default();
    let scheduled = conditions.iter().find(|condition| condition.type_ == "PodScheduled" && condition.status == "True");
    scheduled
        .and_then(|condition| condition.last_transition_time.as_ref())
        .or(pod.metadata.creation_timestamp.as_ref())
        .map(|time| time.0.as_millisecond())
        .unwrap_or_default()
}

fn object(pod: &Pod) -> String {
    format!(
        "Pod/{}/{}",
        pod.metadata.namespace.as_deref().unwrap_or_default(),
        pod.metadata.name.as_deref().unwrap_or_default()
    )
}
