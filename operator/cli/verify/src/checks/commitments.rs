//! Invariant 2: a commitment holds. Every promise has its booking and its devices, and ends when it was agreed.

use std::collections::{BTreeMap, BTreeSet};

use spillway_crds::{ConditionStatus, GpuReservation, GpuReservationStatus, Phase, Tier};

use crate::{
    ledger::{Booking, EndReason, Ledger},
    violation::Findings,
    world::World,
};

/// Condition types and reasons by which a reservation says openly that it has less than it was sold.
const SAID_TO_BE_SHORT: [&str; 2] = ["CommitmentAtRisk", "NodesLost"];

/// Bookings against their terms, reservations against their bookings.
pub(super) fn check(world: &World, ledger: &Ledger, findings: &mut Findings) {
    let reservations: BTreeMap<&str, &GpuReservation> = world
        .reservations
        .iter()
        .filter_map(|reservation| Some((reservation.metadata.uid.as_deref()?, reservation)))
        .collect();
    let mut bookings: BTreeMap<&str, Vec<(&Booking, bool)>> = BTreeMap::new();
    for (booking, live) in ledger.all() {
        check_term(world, booking, live, findings);
        bookings.entry(&booking.reservation.uid).or_default().push((booking, live));
    }
    let nodes: BTreeSet<&str> = world.pool_nodes().map(|node| node.uid).collect();
    for booking in &ledger.live {
        let reservation = reservations.get(booking.reservation.uid.as_str()).copied();
        check_devices(world, booking, reservation, &nodes, findings);
        if reservation.is_none() && !world.settling(booking.booked_at) {
            let message = format!("it stands, and its reservation {} does not exist", booking.owner());
            findings.warning(2, "ReservationGone", booking.object(), message);
        }
    }
    for of_one in bookings.values().filter(|of_one| of_one.len() > 1) {
        if let Some((first, _)) = of_one.first() {
            let ids: Vec<&str> = of_one.iter().map(|(booking, _)| booking.id.as_str()).collect();
            let message = format!("it was booked {} times: {}", ids.len(), ids.join(", "));
            let object = format!("GpuReservation/{}", first.owner());
            findings.violation(2, "ReservationBookedTwice", object, message);
        }
    }
    for (uid, reservation) in reservations {
        check_reservation(world, reservation, bookings.get(uid).map(Vec::as_slice).unwrap_or_default(), findings);
    }
}

fn check_term(world: &World, booking: &Booking, live: bool, findings: &mut Findings) {
    let object = booking.object();
    if booking.tier == Tier::Committed && booking.duration_ms.is_none() {
        findings.violation(2, "CommittedWithoutTerm", object.clone(), "it is Committed and has no duration".to_owned());
    }
    let agreed = booking.duration_ms.zip(booking.active_at).map(|(term, active)| active.saturating_add(term));
    if live {
        if let Some(reason) = booking.end_reason {
            let message = format!("it stands, and says that it ended: {reason:?}");
            findings.violation(2, "EndedButLive", object.clone(), message);
        }
        if booking.end != agreed {
            let message = format!("it ends at {:?}, and {agreed:?} was agreed (Unix milliseconds)", booking.end);
            findings.violation(2, "TermChanged", object.clone(), message);
        }
        if let Some(end) = booking.end
            && end < world.now_ms
            && !world.settling(end)
        {
            let message = format!("its term was over at {end} (Unix milliseconds), and it still stands");
            findings.warning(2, "TermOverdue", object, message);
        }
        return;
    }
    match (booking.end, booking.end_reason) {
        (Some(end), Some(EndReason::TermOver)) if Some(end) != agreed => {
            let message = format!("it ended at {end} because its term was over, and {agreed:?} was agreed");
            findings.violation(2, "CommitmentCutShort", object, message);
        }
        (Some(end), Some(EndReason::Deleted)) if agreed.is_some_and(|agreed| agreed < end) => {
            let message = format!("it ended at {end}, after the end that was agreed, {agreed:?}");
            findings.violation(2, "TermChanged", object, message);
        }
        (Some(_), Some(_)) => {}
        _ => {
            let message = "it is in the archive without the time or the reason of its end".to_owned();
            findings.violation(2, "EndNotSaid", object, message);
        }
    }
}

fn check_devices(
    world: &World,
    booking: &Booking,
    reservation: Option<&GpuReservation>,
    nodes: &BTreeSet<&str>,
    findings: &mut Findings,
) {
    let open: i64 = booking.open_segments().map(|segment| segment.devices).sum();
    if open < booking.devices {
        let said = reservation.and_then(|reservation| reservation.status.as_ref()).is_some_and(is_said_to_be_short);
        let message = format!("{} was sold {} devices and holds {open}", booking.owner(), booking.devices);
        findings.unless(said || world.is_fresh(booking), 2, "DevicesShort", booking.object(), message);
    }
    for segment in booking.open_segments() {
        if !nodes.contains(segment.uid.as_str()) {
            let message = format!(
                "{} holds node {} (uid {}), which is not there or in no pool",
                booking.owner(),
                segment.node,
                segment.uid
            );
            findings.warning(2, "NodeGone", booking.object(), message);
        }
    }
}

fn is_said_to_be_short(status: &GpuReservationStatus) -> bool {
    let says = |word: &str| SAID_TO_BE_SHORT.contains(&word);
    status.reason.as_deref().is_some_and(says)
        || status.conditions.iter().any(|condition| {
            says(&condition.reason) || (condition.status == ConditionStatus::True && says(&condition.type_))
        })
}

fn check_reservation(
    world: &World,
    reservation: &GpuReservation,
    bookings: &[(&Booking, bool)],
    findings: &mut Findings,
) {
    let namespace = reservation.metadata.namespace.as_deref().unwrap_or_default();
    let name = reservation.metadata.name.as_deref().unwrap_or_default();
    let object = format!("GpuReservation/{namespace}/{name}");
    let empty = GpuReservationStatus::default();
    let status = reservation.status.as_ref().unwrap_or(&empty);
    let phase = status.phase.as_str();
    let live = bookings.iter().find(|(_, live)| *live).map(|(booking, _)| *booking);
    let archived = bookings.iter().find(|(_, live)| !*live).map(|(booking, _)| *booking);
    if let Some(said) = &status.booking
        && !bookings.iter().any(|(booking, _)| booking.id == said.id)
    {
        let message = format!("its status names booking {}, which the ledger does not have", said.id);
        findings.violation(2, "BookingLost", object, message);
        return;
    }
    match status.phase {
        Phase::Booked | Phase::Preparing | Phase::Active => match (live, archived) {
            (Some(_), _) => {}
            (None, Some(archived)) => {
                let excused = world.is_fresh(archived);
                let message = format!("it is {phase}, and its booking {} ended", archived.id);
                findings.unless(excused, 2, "StatusBehind", object, message);
            }
            (None, None) => {
                findings.violation(2, "BookingLost", object, format!("it is {phase}, and the ledger has no booking"));
            }
        },
        Phase::Ending | Phase::Ended => {
            if let Some(live) = live {
                let message = format!("it is {phase}, and its booking {} stands", live.id);
                findings.violation(2, "EndedButLive", object, message);
            } else if archived.is_none() {
                let message = format!("it is {phase}, and the ledger's archive has no booking of it");
                findings.violation(2, "BookingLost", object, message);
            }
        }
        Phase::Pending | Phase::Waitlisted | Phase::Rejected | Phase::Expired => {
            if let Some(live) = live {
                let excused = world.settling(live.booked_at) || !status.phase.is_final();
                let message = format!("it is {phase}, and its booking {} stands", live.id);
                findings.unless(excused, 2, "StatusBehind", object, message);
            }
        }
    }
}
