//! What replaces lost nodes.

use std::collections::HashSet;

use super::{Book, Swap, open_segments, stocks::Stocks};
use crate::{
    placement::Slot,
    types::{Booking, BookingId, NodeHealth, Segment, Tier, TimeMs},
};

/// Lost nodes are replaced before anything new is sold, paused sale or not: what was promised comes first, and commitments before the rest.
pub(super) fn plan_swaps(
    book: &Book<'_>,
    ending: &HashSet<&BookingId>,
    stocks: &mut Stocks<'_>,
    now: TimeMs,
) -> Vec<Swap> {
    let mut hurt: Vec<Hurt<'_>> = book
        .live
        .iter()
        .filter(|booking| !ending.contains(&booking.id))
        .filter_map(|booking| Hurt::of(booking, stocks, now))
        .collect();
    hurt.sort_unstable_by_key(|hurt| {
        let booking = hurt.booking;
        (booking.tier != Tier::Committed, booking.booked_at, &booking.id)
    });
    hurt.into_iter().flat_map(|hurt| swap_nodes(&hurt, stocks, now)).collect()
}

/// A booking that has less than was sold.
struct Hurt<'a> {
    booking: &'a Booking,
    /// Open segments on nodes that are lost, with the time of the loss.
    lost: Vec<(&'a Segment, TimeMs)>,
    /// Devices that were lost earlier and not replaced.
    short: u64,
}

impl<'a> Hurt<'a> {
    fn of(booking: &'a Booking, stocks: &Stocks<'_>, now: TimeMs) -> Option<Self> {
        let lost: Vec<_> =
            open_segments(booking).filter_map(|segment| Some((segment, lost_at(segment, stocks, now)?))).collect();
        let held: u64 = open_segments(booking).map(|segment| u64::from(segment.devices)).sum();
        let short = u64::from(booking.devices).saturating_sub(held);
        (short > 0 || !lost.is_empty()).then_some(Self { booking, lost, short })
    }
}

fn swap_nodes(hurt: &Hurt<'_>, stocks: &mut Stocks<'_>, now: TimeMs) -> Vec<Swap> {
    let booking = hurt.booking;
    let mut replacements = replacements(hurt, stocks).into_iter();
    let mut swaps: Vec<Swap> = Vec::with_capacity(hurt.lost.len());
    for &(segment, at) in &hurt.lost {
        // A node of another size than the pool's nodes have today cannot be replaced by one of them.
        let replacement = replacements.as_slice().first().is_some_and(|new| new.devices == segment.devices);
        swaps.push(Swap {
            booking: booking.id.clone(),
            lost: Some(segment.uid.clone()),
            at,
            replacement: if replacement { replacements.next() } else { None },
        });
    }
    swaps.extend(replacements.map(|new| Swap {
        booking: booking.id.clone(),
        lost: None,
        at: now,
        replacement: Some(new),
    }));
    swaps
}

/// When a node was lost, if it was: last known healthy, or now when it is gone; never before it was handed over.
fn lost_at(segment: &Segment, stocks: &Stocks<'_>, now: TimeMs) -> Option<TimeMs> {
    let at = match stocks.health.get(&segment.uid) {
        Some(NodeHealth::Sound) => return None,
        Some(NodeHealth::Lost(at)) => *at,
        None => now,
    };
    let at = at.min(now);
    Some(segment.from.map_or(at, |from| at.max(from)))
}

/// Takes free nodes for what is lost now and for what is missing since earlier: as many as there are.
fn replacements(hurt: &Hurt<'_>, stocks: &mut Stocks<'_>) -> Vec<Segment> {
    let Hurt { booking, lost, short } = hurt;
    let stock = stocks.by_name.get(&booking.pool).and_then(|&at| stocks.pools.get_mut(at));
    let Some(stock) = stock.filter(|_| booking.exclusive) else { return Vec::new() };
    let per_node = stock.pool().devices_per_node;
    let alike = lost.iter().filter(|(segment, _)| segment.devices == per_node).count();
    let missing = short.checked_div(u64::from(per_node)).and_then(|nodes| usize::try_from(nodes).ok()).unwrap_or(0);
    let wanted = alike.saturating_add(missing);
    if wanted == 0 || stock.tally().free == 0 {
        return Vec::new();
    }
    let is_lost = |segment: &Segment| lost.iter().any(|(lost, _)| lost.uid == segment.uid);
    let remaining: Option<Vec<Slot>> =
        open_segments(booking).filter(|segment| !is_lost(segment)).map(|segment| stock.slot(segment)).collect();
    let Some(remaining) = remaining.or_else(|| booking.require.is_none().then(Vec::new)) else {
        // Where a node that remains stands is not known (it left the pool), so nothing can be said to stand with it.
        return Vec::new();
    };
    let slots = stock.find_near(&remaining, wanted, booking.require.as_ref());
    stock.take(&slots)
}
