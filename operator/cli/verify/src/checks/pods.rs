//! Invariant 4: no pod where its tenant holds nothing (HOLDS, section 4, the audit).

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Pod;
use spillway_crds::names;

use crate::{
    violation::Findings,
    world::{PoolNode, World},
};

/// A pod's times are whole seconds; a node's are milliseconds.
const SECOND_MS: i64 = 1000;

/// How far the clock of the operator, which stamps nodes, and ours may be apart.
const CLOCK_SKEW_MS: i64 = 2000;

/// Every pod on a pool node is there by right.
pub(super) fn check(world: &World, findings: &mut Findings) {
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
            _ => misplaced(world, pod, *node, hold, findings),
        }
    }
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
