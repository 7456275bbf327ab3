//! Observing: when nothing may be touched, what a plan then says, and how a hold is taken off a node.

use std::collections::{BTreeSet, HashMap};

use k8s_openapi::api::core::v1::{Node, Taint};
use serde_json::{Map, Value, json};
use spillway_crds::{
    Mode,
    names::{
        BOOKING_ANNOTATION, CLUSTER_AUTOSCALER_ANNOTATION, HOLD_SINCE_ANNOTATION, HOLD_TAINT, KARPENTER_ANNOTATION,
        is_hold_label,
    },
};
use spillway_planner::{Outcome, Plan, Reason, ReservationUid, Shape, Snapshot, plan::NewBooking};

use crate::hold;

/// Whether the policies act.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub enum Stance {
    /// They do.
    #[default]
    Enforce,
    /// They do, and some pools only observe: the names of some that enforce.
    Mixed(Vec<String>),
    /// They do, because so many bookings are live, although all pools observe.
    Holding(usize),
    /// They do not: all pools observe and nothing is booked.
    Observe,
}

/// Whether the policies are to act. Policies are cluster-wide: one pool that enforces makes them act, and so does one booking.
pub fn stance<'a>(pools: impl IntoIterator<Item = (&'a str, Mode)>, bookings: usize) -> Stance {
    let (mut enforcing, mut observing) = (BTreeSet::new(), 0_usize);
    for (name, mode) in pools {
        match mode {
            Mode::Enforce => drop(enforcing.insert(name)),
            Mode::Observe => observing += 1,
        }
    }
    match (observing, enforcing.is_empty()) {
        (0, _) => Stance::Enforce,
        (_, false) => Stance::Mixed(enforcing.into_iter().take(5).map(str::to_owned).collect()),
        (_, true) if bookings > 0 => Stance::Holding(bookings),
        (_, true) => Stance::Observe,
    }
}

/// The condition `Observing` of a pool that observes: status, reason, message.
pub fn condition(stance: &Stance) -> (bool, &'static str, String) {
    match stance {
        Stance::Observe => (
            true,
            "Observing",
            "All pools observe: no node and no namespace is written, nothing is booked, and no policy refuses or changes anything. Set mode: Enforce to sell.".to_owned(),
        ),
        Stance::Mixed(pools) => (
            false,
            "MixedModes",
            format!(
                "Nothing is sold from this pool, but the policies act, because they are cluster-wide and {} enforces: set mode: Observe there too, or mode: Enforce here.",
                pools.join(", ")
            ),
        ),
        Stance::Holding(bookings) => (
            false,
            "BookingsLeft",
            format!(
                "Nothing new is sold from this pool, but the policies act, because they hold what {bookings} live bookings have: it is observed when those have ended."
            ),
        ),
        // Its own mode is Observe, and the guards have not taken that in yet.
        Stance::Enforce => (false, "ModeChanging", "The mode was changed; it takes a moment.".to_owned()),
    }
}

/// Makes a plan say what it would do, and do nothing of it.
pub fn speak(plan: &mut Plan, snapshot: &Snapshot) {
    let mut booked: HashMap<ReservationUid, NewBooking> = HashMap::new();
    for booking in plan.bookings.drain(..) {
        booked.insert(booking.reservation.uid.clone(), booking);
    }
    let says = |text: String| Outcome::Waitlisted(Reason { code: "Observing", message: text });
    let mut outcomes: Vec<(ReservationUid, Outcome)> = Vec::new();
    for (uid, outcome) in plan.outcomes.drain(..) {
        let (verb, reason) = match &outcome {
            Outcome::Waitlisted(reason) => ("wait", reason),
            Outcome::Rejected(reason) => ("be refused", reason),
            Outcome::Expired(reason) => ("give up", reason),
        };
        let text = format!("All pools observe. It would {verb} ({}): {}", reason.code, reason.message);
        outcomes.push((uid, says(text)));
    }
    // In the order of the requests, so that the same snapshot gives the same plan.
    for request in &snapshot.requests {
        if let Some(booking) = booked.get(&request.reservation.uid) {
            let text =
                format!("All pools observe. It would be booked now{}", where_it_would_be(booking, &request.shape));
            outcomes.push((request.reservation.uid.clone(), says(text)));
        }
    }
    plan.outcomes = outcomes;
    plan.swaps.clear();
}

/// Where a booking would be, and what would sell it: the end of a sentence, and another.
fn where_it_would_be(booking: &NewBooking, shape: &Shape) -> String {
    let counted = |count: usize, what: &str| if count == 1 { format!("1 {what}") } else { format!("{count} {what}s") };
    let NewBooking { pool, segments, shares, .. } = booking;
    if shares.is_empty() {
        return format!(", on {} of pool `{pool}`. Set mode: Enforce to sell.", counted(segments.len(), "node"));
    }
    let devices: BTreeSet<_> = shares.iter().map(|share| (&share.uid, share.device)).collect();
    let nodes: BTreeSet<_> = shares.iter().map(|share| &share.uid).collect();
    let profile = if let Shape::Shares { profile, .. } = shape { format!(" of `{profile}`") } else { String::new() };
    format!(
        ": {}{profile} on {} of {} of pool `{pool}`. Shares are planned and not held yet: with mode: Enforce it would be refused.",
        counted(shares.len(), "share"),
        counted(devices.len(), "device"),
        counted(nodes.len(), "node"),
    )
}

/// The merge patch that takes a hold off a node, and leaves who runs there alone; none where there is nothing of ours. It carries the
/// resourceVersion that was read. The stamped generation stays: the ledger stays too.
pub fn build_release(node: &Node) -> Option<Value> {
    let taints: Vec<Taint> = node.spec.as_ref().and_then(|spec| spec.taints.clone()).unwrap_or_default();
    let kept: Vec<Taint> = taints.iter().filter(|taint| taint.key != HOLD_TAINT).cloned().collect();
    let labels: Map<String, Value> = node
        .metadata
        .labels
        .iter()
        .flatten()
        .filter(|(key, _)| is_hold_label(key))
        .map(|(key, _)| (key.clone(), Value::Null))
        .collect();
    if kept.len() == taints.len() && labels.is_empty() {
        return None;
    }
    let mut annotations = Map::from_iter([(HOLD_SINCE_ANNOTATION.to_owned(), Value::Null)]);
    if hold::annotation(node, BOOKING_ANNOTATION).is_some() {
        for key in [BOOKING_ANNOTATION, CLUSTER_AUTOSCALER_ANNOTATION, KARPENTER_ANNOTATION] {
            annotations.insert(key.to_owned(), Value::Null);
        }
    }
    Some(json!({
        "metadata": {
            "resourceVersion": node.metadata.resource_version,
            "labels": labels,
            "annotations": annotations,
        },
        "spec": { "taints": kept },
    }))
}

#[cfg(test)]
mod tests;
