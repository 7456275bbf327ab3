//! Invariant 5, GPU time: times are sane, and every metered millisecond is explained by the ledger.

use std::collections::BTreeMap;

use crate::{
    ledger::{Booking, Ledger, Segment},
    violation::Findings,
    world::World,
};

/// Times of bookings and their segments are in order.
pub(super) fn check_bookings(world: &World, ledger: &Ledger, findings: &mut Findings) {
    let committed_at = world.root.as_ref().map(|root| root.spec.committed_at);
    for (booking, live) in ledger.all() {
        let mut faults = Vec::new();
        if booking.active_at.is_some_and(|active| active < booking.booked_at) {
            faults.push("it was active before it was booked".to_owned());
        }
        if booking.end.zip(booking.active_at).is_some_and(|(end, active)| end < active) {
            faults.push("it ends before it was active".to_owned());
        }
        if committed_at.is_some_and(|at| booking.booked_at > at || booking.active_at.is_some_and(|active| active > at))
        {
            faults.push("it was booked or active later than the last commit of the ledger".to_owned());
        }
        for segment in &booking.segments {
            faults.extend(segment_faults(booking, segment, live));
        }
        for fault in faults {
            findings.violation(5, "TimesOutOfOrder", booking.object(), format!("{}: {fault}", booking.owner()));
        }
    }
}

fn segment_faults(booking: &Booking, segment: &Segment, live: bool) -> Vec<String> {
    let node = &segment.node;
    let mut faults = Vec::new();
    if segment.devices <= 0 {
        faults.push(format!("{node} has {} devices in it", segment.devices));
    }
    if segment.from.is_some_and(|from| from < booking.booked_at) {
        faults.push(format!("{node} was handed over before it was booked"));
    }
    if segment.from.zip(segment.to).is_some_and(|(from, to)| to < from) {
        faults.push(format!("{node} was lost before it was handed over"));
    }
    if segment.to.zip(booking.end).is_some_and(|(to, end)| to > end) {
        faults.push(format!("{node} was lost after the end"));
    }
    if !live && segment.from.zip(booking.end).is_some_and(|(from, end)| from > end) {
        faults.push(format!("{node} was handed over after the end"));
    }
    faults
}

/// What reservations say was used is what the ledger says.
pub(super) fn check_statuses(world: &World, ledger: &Ledger, findings: &mut Findings) {
    let mut used: BTreeMap<&str, i128> = BTreeMap::new();
    for booking in &ledger.archived {
        let sum = used.entry(&booking.reservation.uid).or_default();
        *sum += device_milliseconds(booking);
    }
    for reservation in &world.reservations {
        let Some(meter) = reservation.status.as_ref().and_then(|status| status.meter.as_ref()) else { continue };
        let metered = i128::from(meter.device_milliseconds);
        let object = format!(
            "GpuReservation/{}/{}",
            reservation.metadata.namespace.as_deref().unwrap_or_default(),
            reservation.metadata.name.as_deref().unwrap_or_default()
        );
        match reservation.metadata.uid.as_deref().and_then(|uid| used.get(uid)) {
            Some(explained) if *explained == metered => {}
            Some(explained) => {
                let message = format!("it says {metered} device-milliseconds, and the ledger explains {explained}");
                findings.violation(5, "MeterWrong", object, message);
            }
            // It may be one of those of which the ledger knows nothing any more.
            None if ledger.pruned > 0 => {}
            None => {
                let message = format!("it says {metered} device-milliseconds, and no booking of it has ended");
                findings.violation(5, "MeterUnexplained", object, message);
            }
        }
    }
}

/// Devices times milliseconds of a booking that ended: each segment from the later of its handover and the booking's `activeAt` to its
/// loss or the end.
fn device_milliseconds(booking: &Booking) -> i128 {
    let Some(active) = booking.active_at else { return 0 };
    booking
        .segments
        .iter()
        .filter_map(|segment| {
            let start = segment.from?.max(active);
            let end = segment.to.or(booking.end)?;
            Some(i128::from(segment.devices) * i128::from(end.saturating_sub(start).max(0)))
        })
        .sum()
}
