//! What the meter reads from a booking.

use crate::types::{Booking, NodeName, NodeUid, TenantName, TimeMs};

/// Devices that a tenant had for its use, over a time.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Usage<'a> {
    /// Who pays.
    pub tenant: &'a TenantName,
    /// On which node.
    pub node: &'a NodeName,
    /// UID of the node.
    pub uid: &'a NodeUid,
    /// How many.
    pub devices: u32,
    /// First instant.
    pub from: TimeMs,
    /// First instant after it; none: it goes on.
    pub to: Option<TimeMs>,
}

/// The metered intervals of a booking: each segment that was handed over, from the later of that and the booking's `active_at`, to its loss,
/// else to the booking's end. A segment lost before the booking was active, and a booking that never was, give nothing.
pub fn usage(booking: &Booking) -> impl Iterator<Item = Usage<'_>> {
    booking.active_at.into_iter().flat_map(move |active| {
        booking.segments.iter().filter_map(move |segment| {
            let from = segment.from?.max(active);
            let to = match (segment.to, booking.end) {
                (Some(to), Some(end)) => Some(to.min(end)),
                (to, end) => to.or(end),
            };
            if to.is_some_and(|to| to <= from) {
                return None;
            }
            Some(Usage {
                tenant: &booking.tenant,
                node: &segment.node,
                uid: &segment.uid,
                devices: segment.devices,
                from,
                to,
            })
        })
    })
}
