//! Invariant 1: a device-hour is sold once.

use std::collections::{BTreeMap, BTreeSet};

use spillway_crds::names;

use crate::{
    ledger::{Booking, Ledger},
    violation::Findings,
    world::{PoolNode, World},
};

/// A node in the hands of a booking, over a time.
#[derive(Clone, Copy)]
struct Use<'a> {
    booking: &'a Booking,
    devices: i64,
    of: Option<i64>,
    live: bool,
    start: i64,
    end: i64,
}

/// The root must be there when anything says that something was sold, and be no older than what the nodes were told. False when it
/// cannot be believed.
pub(super) fn check_root(world: &World, findings: &mut Findings) -> bool {
    let object = format!("CapacityLedger/{}", names::LEDGER_NAME);
    let Some(root) = &world.root else {
        let mut evidence = Vec::new();
        if !world.pages.is_empty() {
            evidence.push(format!("{} ledger pages", world.pages.len()));
        }
        let held = world.pool_nodes().filter(|node| !matches!(node.hold(), None | Some("closed" | "unsold"))).count();
        if held > 0 {
            evidence.push(format!("{held} nodes with a holder's taint"));
        }
        let booked = world
            .reservations
            .iter()
            .filter(|reservation| reservation.status.as_ref().is_some_and(|status| status.booking.is_some()));
        let booked = booked.count();
        if booked > 0 {
            evidence.push(format!("{booked} reservations with a booking"));
        }
        if evidence.is_empty() {
            return true;
        }
        let message = format!("it does not exist, and there are {}", evidence.join(", "));
        findings.violation(1, "LedgerMissing", object, message);
        return false;
    };
    let newest = world.pool_nodes().filter_map(|node| Some((node.generation()?, node))).max_by_key(|(stamp, _)| *stamp);
    if let Some((stamp, node)) = newest
        && stamp > root.spec.generation
    {
        let message = format!(
            "it has generation {}, and {} was written on generation {stamp}: an older ledger was put back",
            root.spec.generation,
            node.object()
        );
        findings.violation(1, "LedgerOlderThanNodes", object, message);
        return false;
    }
    true
}

/// No id twice, no node in two bookings at one instant, no more devices than there are.
pub(super) fn check(world: &World, ledger: &Ledger, findings: &mut Findings) {
    check_ids(ledger, findings);
    check_open_segments(world, ledger, findings);
    check_sizes(ledger, findings);
    check_history(ledger, findings);
}

fn check_ids(ledger: &Ledger, findings: &mut Findings) {
    let mut seen = BTreeSet::new();
    for (booking, _) in ledger.all() {
        if !seen.insert(&booking.id) {
            findings.violation(1, "BookingTwice", booking.object(), "the ledger has this id twice".to_owned());
        }
    }
}

/// Now: what live bookings hold together of each node.
fn check_open_segments(world: &World, ledger: &Ledger, findings: &mut Findings) {
    let nodes: BTreeMap<&str, PoolNode<'_>> = world.pool_nodes().map(|node| (node.uid, node)).collect();
    for (uid, holds) in ledger.open_by_node() {
        let Some((first, segment)) = holds.first().copied() else { continue };
        let object = format!("Node/{}", segment.node);
        if holds.len() > 1 && holds.iter().any(|(booking, _)| booking.exclusive) {
            let owners: Vec<String> =
                holds.iter().map(|(booking, _)| format!("{} ({})", booking.id, booking.owner())).collect();
            let message = format!("uid {uid} is held by {} bookings at once: {}", holds.len(), owners.join(", "));
            findings.violation(1, "NodeSoldTwice", object.clone(), message);
        }
        let sold: i64 = holds.iter().map(|(_, segment)| segment.devices).sum();
        let pool = world.pools.iter().find(|pool| pool.metadata.name.as_deref() == Some(first.pool.as_str()));
        let Some(devices) = pool.map(|pool| &pool.spec.devices) else { continue };
        // A pool's number and a node's may change after the sale: what either allows was there to be sold.
        let offered = nodes.get(uid).and_then(|node| node.capacity(&devices.resource)).unwrap_or_default();
        let limit = offered.max(i64::from(devices.per_node));
        if sold > limit {
            let message = format!("{sold} devices of it are booked, and it has {limit}");
            findings.violation(1, "DevicesOversold", object, message);
        }
    }
}

/// A booking holds no more than was sold with it.
fn check_sizes(ledger: &Ledger, findings: &mut Findings) {
    for booking in &ledger.live {
        let open: i64 = booking.open_segments().map(|segment| segment.devices).sum();
        if open > booking.devices {
            let message = format!("it was sold with {} devices and holds {open}", booking.devices);
            findings.violation(1, "BookingTooLarge", booking.object(), message);
        }
    }
}

/// At any time: what all bookings, past and present, had of each node.
fn check_history(ledger: &Ledger, findings: &mut Findings) {
    let mut by_node: BTreeMap<&str, (&str, Vec<Use<'_>>)> = BTreeMap::new();
    for (booking, live) in ledger.all() {
        let booking_end = if live { i64::MAX } else { booking.end.unwrap_or(i64::MAX) };
        for segment in &booking.segments {
            let Some(start) = segment.from else { continue };
            let end = segment.to.unwrap_or(booking_end);
            if start < end {
                let (_, uses) = by_node.entry(&segment.uid).or_insert_with(|| (&segment.node, Vec::new()));
                let live = live && segment.to.is_none();
                uses.push(Use { booking, devices: segment.devices, of: segment.of, live, start, end });
            }
        }
    }
    for (uid, (name, mut uses)) in by_node {
        uses.sort_by_key(|one| (one.start, one.end));
        let mut running: Vec<Use<'_>> = Vec::new();
        for one in uses {
            running.retain(|other| other.end > one.start);
            for other in &running {
                let exclusive = one.booking.exclusive || other.booking.exclusive;
                // Two that stand now are found by what is open.
                if exclusive && !(one.live && other.live) {
                    let message = format!(
                        "uid {uid} was held from {} to {} by booking {} ({}) and from {} to {} by booking {} ({}), Unix milliseconds",
                        other.start,
                        shown(other.end),
                        other.booking.id,
                        other.booking.owner(),
                        one.start,
                        shown(one.end),
                        one.booking.id,
                        one.booking.owner(),
                    );
                    findings.violation(1, "NodeTimeSoldTwice", format!("Node/{name}"), message);
                }
            }
            running.push(one);
            let parts = running.iter().filter(|other| !other.booking.exclusive);
            let (together, of) =
                parts.fold((0, i64::MAX), |(sum, of), part| (sum + part.devices, of.min(part.of.unwrap_or(i64::MAX))));
            if !one.booking.exclusive && together > of {
                let message = format!(
                    "uid {uid} has {of} devices, and from {} on parts of {together} were held together, the last of them booking {} ({})",
                    one.start,
                    one.booking.id,
                    one.booking.owner(),
                );
                findings.violation(1, "PartsTimeOversold", format!("Node/{name}"), message);
            }
        }
    }
}

fn shown(end: i64) -> String {
    if end == i64::MAX { "now".to_owned() } else { end.to_string() }
}
