//! What `/metrics` shows of the whole fleet, reckoned after each turn of the engine. It reads what is in memory, and decides nothing.

use std::collections::HashMap;

use spillway_crds::names::{HOLD_CLOSED, POOL_LABEL};
use spillway_manifests::{hold, validate};
use spillway_planner::{Outcome, ReservationUid, TimeMs};

use kube::ResourceExt;

use crate::context::Context;

/// Sets the gauges of what waits.
pub fn observe(context: &Context, outcomes: &HashMap<ReservationUid, Outcome>, now: TimeMs) {
    let waiting = outcomes.values().filter(|outcome| matches!(outcome, Outcome::Waitlisted(_))).count();
    context.metrics.waiting.set(i64::try_from(waiting).unwrap_or(i64::MAX));
    context.metrics.turnover_oldest.set(oldest_turnover_seconds(context, now));
}

/// For how long the node has been closed that has been so the longest, of those that are Ready and not cordoned; 0: none is.
fn oldest_turnover_seconds(context: &Context, now: TimeMs) -> i64 {
    let nodes = context.stores.nodes.state();
    let closed = nodes.iter().filter(|node| {
        let cordoned = node.spec.as_ref().and_then(|spec| spec.unschedulable).unwrap_or_default();
        node.labels().contains_key(POOL_LABEL)
            && hold::read_taints(node).0 == Some(HOLD_CLOSED)
            && validate::readiness(node).0
            && !cordoned
    });
    let since = closed.filter_map(|node| hold::hold_since(node)).min();
    since.map_or(0, |since| now.0.saturating_sub(since).max(0) / 1000)
}
