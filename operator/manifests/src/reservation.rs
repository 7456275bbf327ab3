//! The status of a `GpuReservation`, from what the ledger and the last plan say.

use jiff::Timestamp;
use spillway_crds::{AssignedNode, BookingStatus, ConditionStatus, GpuReservation, GpuReservationStatus, Meter, Phase};
use spillway_planner::{Booking, EndReason, Outcome, Reason, Tier, ledger::usage};

use crate::conditions::{Wanted, bounded, merge, time};

/// Most nodes that a status lists.
pub const MAX_NODES: usize = 1024;

/// What is known of a reservation.
#[derive(Clone, Copy, Debug)]
pub enum Facts<'a> {
    /// It has a live booking.
    Live {
        /// The booking.
        booking: &'a Booking,
        /// A node of it was closed for it already.
        preparing: bool,
    },
    /// Its booking is in the archive.
    Ended {
        /// The booking.
        booking: &'a Booking,
        /// None of its nodes is still being given back.
        given_back: bool,
    },
    /// The last plan's answer.
    Answer(&'a Outcome),
    /// Nothing is sold now, for this reason.
    Blocked(&'static str, &'a str),
    /// No plan has looked at it.
    NotYet,
}

/// Devices in open segments.
pub fn open_devices(booking: &Booking) -> u32 {
    booking.segments.iter().filter(|segment| segment.to.is_none()).map(|segment| segment.devices).sum()
}

/// Devices times milliseconds of a booking that ended.
fn metered(booking: &Booking) -> i64 {
    usage(booking)
        .filter_map(|part| Some(i64::from(part.devices).saturating_mul(part.to?.0.saturating_sub(part.from.0))))
        .fold(0, i64::saturating_add)
}

struct Summary {
    phase: Phase,
    reason: String,
    message: String,
    ready: bool,
    reconciling: bool,
    stalled: bool,
}

fn live(booking: &Booking, preparing: bool) -> Summary {
    let open = open_devices(booking);
    let short = booking.devices.saturating_sub(open);
    let (phase, mut reason, mut message) = if booking.active_at.is_some() {
        let until =
            booking.end.map_or_else(|| "until it is deleted".to_owned(), |end| format!("until {}", time(end.0).0));
        (Phase::Active, "Active", format!("{} devices are held for this namespace {until}.", booking.devices))
    } else if preparing {
        (
            Phase::Preparing,
            "Preparing",
            format!("{} devices are booked; their nodes are being emptied and checked.", booking.devices),
        )
    } else {
        (Phase::Booked, "Booked", format!("{} devices are booked.", booking.devices))
    };
    let at_risk = short > 0;
    if at_risk {
        reason = if booking.tier == Tier::Committed { "CommitmentAtRisk" } else { "NodesLost" };
        message = format!(
            "{short} of {} devices were lost with their nodes and no sound node is free to replace them: it is mended as soon as one is. What is missing is not metered.",
            booking.devices
        );
    }
    Summary { phase, reason: reason.to_owned(), message, ready: !at_risk, reconciling: false, stalled: at_risk }
}

fn ended(booking: &Booking, given_back: bool) -> Summary {
    let why = match booking.end_reason {
        Some(EndReason::Deleted) => ("Deleted", "The reservation was deleted"),
        _ => ("TermOver", "The term is over"),
    };
    let (phase, message) = if given_back {
        (Phase::Ended, format!("{}; its nodes were given back.", why.1))
    } else {
        (Phase::Ending, format!("{}; its nodes are being emptied and checked. This is not metered.", why.1))
    };
    Summary { phase, reason: why.0.to_owned(), message, ready: true, reconciling: false, stalled: false }
}

fn answered(outcome: &Outcome) -> Summary {
    let (phase, reason, stalled) = match outcome {
        Outcome::Waitlisted(reason) => (Phase::Waitlisted, reason, false),
        Outcome::Rejected(reason) => (Phase::Rejected, reason, true),
        Outcome::Expired(reason) => (Phase::Expired, reason, true),
    };
    Summary {
        phase,
        reason: reason.code.to_owned(),
        message: reason.message.clone(),
        ready: false,
        reconciling: !stalled,
        stalled,
    }
}

/// The status that says what is known. What did not change is taken over, so that the same facts give the same status. `waiting`: of a
/// reservation of parts of nodes, how many pods wait for its devices, and why the first of them.
pub fn build_status(
    reservation: &GpuReservation,
    facts: Facts<'_>,
    waiting: Option<(usize, &Reason)>,
    now: Timestamp,
) -> GpuReservationStatus {
    let previous = reservation.status.clone().unwrap_or_default();
    let summary = match facts {
        Facts::Live { booking, preparing } => live(booking, preparing),
        Facts::Ended { booking, given_back } => ended(booking, given_back),
        Facts::Answer(outcome) => answered(outcome),
        Facts::Blocked(reason, message) => Summary {
            phase: if previous.phase == Phase::Pending { Phase::Pending } else { previous.phase },
            reason: reason.to_owned(),
            message: message.to_owned(),
            ready: false,
            reconciling: true,
            stalled: false,
        },
        Facts::NotYet => Summary {
            phase: Phase::Pending,
            reason: "Pending".to_owned(),
            message: "It has not been looked at yet.".to_owned(),
            ready: false,
            reconciling: true,
            stalled: false,
        },
    };
    let generation = reservation.metadata.generation;
    let message = bounded(&summary.message, 1024);
    let mut wanted = vec![
        Wanted::new("Ready", summary.ready, summary.reason.clone(), message.clone()),
        Wanted::new("Reconciling", summary.reconciling, summary.reason.clone(), message.clone()),
        Wanted::new("Stalled", summary.stalled, summary.reason.clone(), message.clone()),
    ];
    wanted.extend(waiting.map(|(pods, why)| match pods {
        0 => Wanted::new("PodsFit", true, why.code, why.message.clone()),
        1 => Wanted::new("PodsFit", false, why.code, why.message.clone()),
        _ => Wanted::new("PodsFit", false, why.code, format!("{pods} pods wait, the first because: {}", why.message)),
    }));
    let conditions = merge(&previous.conditions, wanted, generation, now);
    let mut status = GpuReservationStatus {
        observed_generation: generation,
        phase: summary.phase,
        reason: Some(summary.reason),
        message: Some(message),
        conditions,
        booking: previous.booking,
        node_count: previous.node_count,
        nodes: previous.nodes,
        device_count: previous.device_count,
        assignments: previous.assignments,
        meter: previous.meter,
    };
    if let Facts::Live { booking, .. } | Facts::Ended { booking, .. } = facts {
        status.booking = Some(BookingStatus {
            id: booking.id.to_string(),
            pool: booking.pool.to_string(),
            booked_at: time(booking.booked_at.0),
            active_at: booking.active_at.map(|at| time(at.0)),
            ends_at: booking.end.map(|at| time(at.0)),
        });
        let mut nodes: Vec<AssignedNode> = booking
            .segments
            .iter()
            .filter(|segment| segment.to.is_none())
            .map(|segment| AssignedNode {
                name: segment.node.to_string(),
                devices: i32::try_from(segment.devices).unwrap_or(i32::MAX),
            })
            .collect();
        nodes.sort_by(|a, b| a.name.cmp(&b.name));
        status.node_count = i32::try_from(nodes.len()).ok();
        status.device_count = i32::try_from(open_devices(booking)).ok();
        let over = matches!(facts, Facts::Ended { given_back: true, .. });
        // Who has room on a node that was lost is known until the node has given it back; who gives room sees to that.
        status.assignments.retain(|_| !over);
        for room in &mut status.assignments {
            room.ending = nodes.iter().all(|node| node.name != room.node);
        }
        nodes.truncate(MAX_NODES);
        status.nodes = nodes;
    }
    if let Facts::Ended { booking, .. } = facts {
        status.meter = Some(Meter { device_milliseconds: metered(booking) });
    }
    status
}

/// Whether pods wait, and why, as far as it is said.
fn pods_fit(status: &GpuReservationStatus) -> Option<(ConditionStatus, &str)> {
    let mut conditions = status.conditions.iter();
    conditions.find(|one| one.type_ == "PodsFit").map(|one| (one.status, one.reason.as_str()))
}

/// True when two statuses differ in more than the wording of a message.
pub fn differs_in_substance(a: &GpuReservationStatus, b: &GpuReservationStatus) -> bool {
    a.phase != b.phase
        || a.reason != b.reason
        || a.booking != b.booking
        || a.nodes != b.nodes
        || a.node_count != b.node_count
        || a.device_count != b.device_count
        || a.assignments != b.assignments
        || pods_fit(a) != pods_fit(b)
        || a.meter != b.meter
        || a.observed_generation != b.observed_generation
}

#[cfg(test)]
mod tests;
