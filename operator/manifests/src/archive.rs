//! Bookings that ended, as the usage service stores them.

use spillway_metering::{Segment, shipping::EndedSegment};
use spillway_planner::{Booking, ledger};

/// What the meter counts of a booking, in the meter's own words.
pub fn metered_segments(booking: &Booking) -> impl Iterator<Item = Segment> {
    ledger::usage(booking).map(|used| segment(booking, &used))
}

/// The GPU time of a booking that ended, at its place in the archive; of one that was never used nothing. The same each time: a booking that ended
/// never changes.
pub fn ended_segments(booking: &Booking, place: u64) -> impl Iterator<Item = EndedSegment> {
    (0..).zip(ledger::usage(booking)).map(move |(number, used)| EndedSegment {
        booking: booking.id.to_string(),
        number,
        place,
        node: used.node.to_string(),
        segment: segment(booking, &used),
    })
}

fn segment(booking: &Booking, used: &ledger::Usage<'_>) -> Segment {
    Segment {
        tenant: booking.tenant.as_str().into(),
        namespace: booking.reservation.namespace.as_ref().into(),
        reservation: booking.reservation.name.as_ref().into(),
        pool: booking.pool.as_str().into(),
        sku: booking.sku.as_str().into(),
        tier: booking.tier.to_string().into(),
        devices: used.devices,
        from_ms: used.from.0,
        to_ms: used.to.map(|to| to.0),
    }
}
