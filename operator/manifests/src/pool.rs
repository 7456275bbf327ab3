//! The status of a `GpuPool`: the public capacity statement.

use jiff::Timestamp;
use spillway_crds::{GpuPool, GpuPoolStatus, PoolCapacity, PoolNodes};

use crate::conditions::{Wanted, merge};

/// What a node of a pool is, for the statement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NodeClass {
    /// A holder's taints and labels are in place.
    Held,
    /// Open to the owner, can be sold.
    Unsold,
    /// Being prepared or given back.
    Turnover,
    /// Cannot be sold until somebody mends it.
    Broken,
}

/// A node in the statement.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeFacts {
    /// Its name.
    pub name: String,
    /// What it is.
    pub class: NodeClass,
    /// Devices that it offers.
    pub devices: u32,
    /// Those of them that nobody holds, if it is held: the rest of a shared node.
    pub rest: u32,
    /// Devices that the owner's pods use there.
    pub owner_used: u32,
    /// Why it is not what the pool says, if so.
    pub problem: Option<String>,
}

/// What is known of a pool.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// Its nodes, in order of name.
    pub nodes: Vec<NodeFacts>,
    /// Devices in live bookings, and the bookings as `namespace/name`, in order; none while the ledger is not known: then what was said
    /// last stands, because a pool with bookings must not look as if it could go.
    pub sold: Option<(u32, Vec<String>)>,
    /// Why it sells nothing, if so: a CamelCase word and a sentence.
    pub not_selling: Option<(&'static str, String)>,
    /// The condition `Observing` of a pool that observes: status, reason, message.
    pub observing: Option<(bool, &'static str, String)>,
}

/// Whether a reason is one that passes by itself within seconds.
pub fn passes(reason: &str) -> bool {
    PASSING.contains(&reason)
}

/// Reasons that pass by themselves within seconds.
const PASSING: [&str; 4] = ["AuditPending", "GuardsStarting", "PoliciesChanging", "SelfTestPending"];

fn count(value: usize) -> i32 {
    i32::try_from(value).unwrap_or(i32::MAX)
}

/// The status that says what is known.
pub fn build_status(pool: &GpuPool, facts: &Facts, now: Timestamp) -> GpuPoolStatus {
    let previous = pool.status.clone().unwrap_or_default();
    let nodes_of = |class: NodeClass| count(facts.nodes.iter().filter(|node| node.class == class).count());
    let sum_of = |class: NodeClass, devices: fn(&NodeFacts) -> u32| {
        let sum: u32 = facts.nodes.iter().filter(|node| node.class == class).map(devices).sum();
        i32::try_from(sum).unwrap_or(i32::MAX)
    };
    let devices_of = |class: NodeClass| sum_of(class, |node| node.devices);
    let rest = sum_of(NodeClass::Held, |node| node.rest);
    let devices = PoolCapacity {
        owned: i32::try_from(facts.nodes.iter().map(|node| node.devices).sum::<u32>()).unwrap_or(i32::MAX),
        sold: facts.sold.as_ref().map_or(previous.devices.sold, |(sold, _)| i32::try_from(*sold).unwrap_or(i32::MAX)),
        held: devices_of(NodeClass::Held).saturating_sub(rest),
        unsold: devices_of(NodeClass::Unsold).saturating_add(rest),
        turnover: devices_of(NodeClass::Turnover),
        broken: devices_of(NodeClass::Broken),
        owner_used: i32::try_from(facts.nodes.iter().map(|node| node.owner_used).sum::<u32>()).unwrap_or(i32::MAX),
    };
    let nodes = PoolNodes {
        total: count(facts.nodes.len()),
        held: nodes_of(NodeClass::Held),
        unsold: nodes_of(NodeClass::Unsold),
        turnover: nodes_of(NodeClass::Turnover),
        broken: nodes_of(NodeClass::Broken),
    };
    let problems: Vec<&NodeFacts> = facts.nodes.iter().filter(|node| node.problem.is_some()).collect();
    let sound = if problems.is_empty() {
        Wanted::new("NodesSound", true, "AllSound", "All nodes are what the pool says.")
    } else {
        let list: Vec<String> = problems
            .iter()
            .take(8)
            .map(|node| format!("{}: {}", node.name, node.problem.as_deref().unwrap_or_default()))
            .collect();
        let more = problems.len().saturating_sub(list.len());
        let more = if more > 0 { format!("; and {more} more") } else { String::new() };
        Wanted::new("NodesSound", false, "NodesNotSound", format!("{}{more}", list.join("; ")))
    };
    let deleting = pool.metadata.deletion_timestamp.is_some();
    let (ready, reason, message) = match &facts.not_selling {
        Some((reason, message)) => (false, (*reason).to_owned(), message.clone()),
        None => (true, "Selling".to_owned(), "The pool can be sold from.".to_owned()),
    };
    let passing = passes(&reason);
    // As was wished.
    let paused = reason == "Paused" || reason == "Observing";
    let observing = facts
        .observing
        .as_ref()
        .map(|(status, reason, message)| Wanted::new("Observing", *status, *reason, message.clone()));
    let wanted: Vec<Wanted> = [
        Wanted::new("Ready", ready || paused, reason.clone(), message.clone()),
        Wanted::new("Reconciling", deleting || passing, reason.clone(), message.clone()),
        Wanted::new("Stalled", !ready && !paused && !deleting && !passing, reason, message),
        sound,
    ]
    .into_iter()
    .chain(observing)
    .collect();
    let conditions = merge(&previous.conditions, wanted, pool.metadata.generation, now);
    GpuPoolStatus {
        observed_generation: pool.metadata.generation,
        conditions,
        nodes,
        devices,
        live_booking_count: facts.sold.as_ref().map_or(previous.live_booking_count, |(_, live)| count(live.len())),
        live_bookings: facts
            .sold
            .as_ref()
            .map_or(previous.live_bookings, |(_, live)| live.iter().take(16).cloned().collect()),
    }
}

#[cfg(test)]
mod tests;
