//! Invariant 4: the taints and labels of pool nodes say what the ledger says.

use std::collections::{BTreeMap, BTreeSet};

use spillway_crds::names;

use crate::{
    ledger::{Booking, Ledger, Segment},
    violation::Findings,
    world::{PoolNode, World},
};

/// Every pool node is in exactly one state, and it is the one that the ledger wants.
pub(super) fn check(world: &World, ledger: &Ledger, findings: &mut Findings) {
    let holders = world.holders();
    let open = ledger.open_by_node();
    let mut past: BTreeMap<&str, Vec<(&Booking, &Segment)>> = BTreeMap::new();
    for (booking, live) in ledger.all() {
        for segment in booking.segments.iter().filter(|segment| !live || segment.to.is_some()) {
            past.entry(&segment.uid).or_default().push((booking, segment));
        }
    }
    for node in world.pool_nodes() {
        let holds = open.get(node.uid).map(Vec::as_slice).unwrap_or_default();
        let Some(hold) = check_taints(world, node, findings) else { continue };
        match hold {
            names::HOLD_CLOSED => check_closed(world, node, holds, findings),
            names::HOLD_UNSOLD => check_unsold(world, node, holds, findings),
            shared if shared == names::hold_of_node(node.uid) => {
                check_shared(world, node, holds, findings);
                continue;
            }
            holder => {
                let holds: Vec<_> = holds
                    .iter()
                    .copied()
                    .filter(|(booking, _)| holders.get(booking.reservation.namespace.as_str()) == Some(&holder))
                    .collect();
                let past = past.get(node.uid).map(Vec::as_slice).unwrap_or_default();
                check_held(world, node, holder, &holds, past, findings);
                // A hold that is nobody's is one finding, its labels included.
                if !holds.is_empty() {
                    check_labels(node, &holds, findings);
                }
                continue;
            }
        }
        check_labels(node, &[], findings);
    }
}

/// One hold taint with NoSchedule, and none with NoExecute that disagrees. Gives its value.
fn check_taints<'a>(world: &World, node: PoolNode<'a>, findings: &mut Findings) -> Option<&'a str> {
    let values = node.holds("NoSchedule");
    let Some(hold) = node.hold() else {
        let excused = values.is_empty() && world.settling(node.hold_since_ms());
        let message =
            format!("it has {} {} taints with NoSchedule, and must have one", values.len(), names::HOLD_TAINT);
        findings.unless(excused, 4, "HoldTaintMissing", node.object(), message);
        return None;
    };
    let stay = node.holds("NoExecute");
    let agrees = match hold {
        names::HOLD_UNSOLD => stay.is_empty(),
        names::HOLD_CLOSED => stay.is_empty() || stay == [names::HOLD_CLOSED],
        holder => stay == [holder],
    };
    if !agrees {
        let message = format!("its hold is {hold:?} with NoSchedule and {stay:?} with NoExecute");
        findings.violation(4, "HoldTaintsDisagree", node.object(), message);
    }
    Some(hold)
}

fn check_unsold(world: &World, node: PoolNode<'_>, holds: &[(&Booking, &Segment)], findings: &mut Findings) {
    for (booking, _) in holds {
        let excused = world.is_fresh(booking);
        let message = format!("it is open to the owner, and {} ({}) has it", booking.owner(), booking.id);
        findings.unless(excused, 4, "SoldButUnsold", node.object(), message);
    }
}

fn check_closed(world: &World, node: PoolNode<'_>, holds: &[(&Booking, &Segment)], findings: &mut Findings) {
    for (booking, segment) in holds {
        let Some(from) = segment.from else { continue };
        if !world.settling(from) && !world.settling(node.hold_since_ms()) {
            let message = format!("{} ({}) has it since {from}, and it is closed", booking.owner(), booking.id);
            findings.warning(4, "SoldButClosed", node.object(), message);
        }
    }
}

/// A shared node is set up for the parts that live bookings have of it, and for such as are being given back; never for more than it has.
fn check_shared(world: &World, node: PoolNode<'_>, holds: &[(&Booking, &Segment)], findings: &mut Findings) {
    let set_up = node.parts();
    let there = |booking: &Booking, segment: &Segment| set_up.contains(&(booking.id.as_str(), segment.devices));
    for (booking, segment) in holds {
        if booking.exclusive {
            let message = format!("it is set up for several, and {} ({}) has it whole", booking.owner(), booking.id);
            findings.unless(world.is_fresh(booking), 4, "SoldButShared", node.object(), message);
        } else if segment.from.is_some() && !there(booking, segment) {
            let message = format!(
                "{} of its devices were handed over to {} ({}), for which it is not set up",
                segment.devices,
                booking.owner(),
                booking.id
            );
            findings.unless(world.is_fresh(booking), 4, "PartNotSetUp", node.object(), message);
        }
    }
    let live = |id: &str, devices: i64| holds.iter().any(|(one, part)| one.id == id && part.devices == devices);
    for (id, devices) in set_up.iter().filter(|(id, devices)| !live(id, *devices)) {
        if !world.settling(node.hold_since_ms()) {
            let message = format!("it is still set up for {devices} devices of {id}, which has them no more");
            findings.warning(4, "PartNotGivenBack", node.object(), message);
        }
    }
    let devices: i64 = set_up.iter().map(|(_, devices)| devices).sum();
    let pool = node.node.metadata.labels.as_ref().and_then(|labels| labels.get(names::POOL_LABEL));
    let pool = world.pools.iter().find(|known| known.metadata.name.as_ref() == pool);
    let has = pool.map(|pool| {
        let offered = node.capacity(&pool.spec.devices.resource).unwrap_or_default();
        offered.max(i64::from(pool.spec.devices.per_node))
    });
    if let Some(has) = has.filter(|has| devices > *has) {
        let message = format!("it is set up for parts of {devices} devices together, and has {has}");
        findings.violation(1, "PartsOversold", node.object(), message);
    }
    let labelled: Vec<_> = holds.iter().copied().filter(|(booking, part)| there(booking, part)).collect();
    let fresh = set_up.iter().any(|(id, devices)| !live(id, *devices));
    // Labels of parts that ended go with them.
    if !fresh {
        check_labels(node, &labelled, findings);
    }
}

fn check_held(
    world: &World,
    node: PoolNode<'_>,
    holder: &str,
    holds: &[(&Booking, &Segment)],
    past: &[(&Booking, &Segment)],
    findings: &mut Findings,
) {
    if let Some((booking, segment)) = holds.first() {
        if segment.from.is_none() && !world.settling(node.hold_since_ms()) {
            let message =
                format!("{} may use it, and the ledger does not say that it was handed over", booking.owner());
            findings.warning(4, "HeldButNotHandedOver", node.object(), message);
        }
        return;
    }
    let ended = past.iter().rev().find(|(booking, _)| node_held_by(world, booking, holder));
    match ended {
        // A booking that ended: its nodes are closed next. A node that was lost: likewise, after the commit that says so.
        Some((booking, _)) => {
            let excused = world.is_fresh(booking);
            let message =
                format!("its hold is still that of {} ({}), which has it no more", booking.owner(), booking.id);
            findings.unless(excused, 4, "HoldAfterEnd", node.object(), message);
        }
        None => {
            let namespace = world.holders().into_iter().find(|(_, uid)| *uid == holder).map(|(name, _)| name);
            let who = namespace
                .map_or_else(|| format!("{holder:?}, which no namespace has"), |name| format!("namespace {name}"));
            let message = format!("its hold is that of {who}, and no booking gives it that");
            findings.violation(4, "HoldWithoutBooking", node.object(), message);
        }
    }
}

fn node_held_by(world: &World, booking: &Booking, holder: &str) -> bool {
    world.holders().get(booking.reservation.namespace.as_str()) == Some(&holder)
}

/// Hold labels are those of the bookings that the taint lets in.
fn check_labels(node: PoolNode<'_>, holds: &[(&Booking, &Segment)], findings: &mut Findings) {
    let wanted: BTreeSet<String> = holds
        .iter()
        .flat_map(|(booking, _)| {
            let reservation = &booking.reservation;
            [
                names::hold_label(&reservation.namespace),
                names::reservation_hold_label(&reservation.namespace, &reservation.name),
            ]
        })
        .collect();
    let labels = node.node.metadata.labels.iter().flatten();
    let found: BTreeSet<String> =
        labels.filter(|(key, _)| names::is_hold_label(key)).map(|(key, _)| key.clone()).collect();
    if wanted == found {
        return;
    }
    let extra: Vec<&str> = found.difference(&wanted).map(String::as_str).collect();
    let missing: Vec<&str> = wanted.difference(&found).map(String::as_str).collect();
    let mut parts = Vec::new();
    if !extra.is_empty() {
        parts.push(format!("has the labels {} without a booking for them", extra.join(", ")));
    }
    if !missing.is_empty() {
        parts.push(format!("lacks the labels {}", missing.join(", ")));
    }
    findings.violation(4, "HoldLabelsWrong", node.object(), format!("it {}", parts.join(", and ")));
}
