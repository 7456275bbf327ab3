//! What replaces lost nodes.

use std::{collections::HashSet, sync::Arc};

use super::{Swap, open_segments, stocks::Stocks};
use crate::{
    placement::Slot,
    types::{Booking, NodeHealth, NodeUid, Segment, Tier, TimeMs},
};

/// Lost nodes are replaced before anything new is sold, paused sale or not: what was promised comes first, and commitments before the rest.
pub(super) fn plan_swaps(hurt: &[Arc<Booking>], stocks: &mut Stocks, now: TimeMs) -> Vec<Swap> {
    let mut hurt: Vec<Hurt<'_>> = hurt.iter().map(|booking| Hurt::of(booking, stocks, now)).collect();
    hurt.sort_unstable_by_key(|hurt| {
        let booking = hurt.booking;
        (booking.tier != Tier::Committed, booking.booked_at, &booking.id)
    });
    let mut swaps = Vec::new();
    for hurt in hurt {
        let swap = if hurt.booking.exclusive { swap_nodes } else { swap_parts };
        swaps.extend(swap(&hurt, stocks, now));
    }
    swaps
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
    fn of(booking: &'a Booking, stocks: &Stocks, now: TimeMs) -> Self {
        let lost: Vec<_> =
            open_segments(booking).filter_map(|segment| Some((segment, lost_at(segment, stocks, now)?))).collect();
        let held: u64 = open_segments(booking).map(|segment| u64::from(segment.devices)).sum();
        Self { booking, lost, short: u64::from(booking.devices).saturating_sub(held) }
    }

    /// The nodes that remain; none where one stands is not known (it left the pool), and the booking must stand together: then nothing can be
    /// said to stand with it.
    fn remaining(&self, at: usize, stocks: &Stocks) -> Option<Vec<Slot>> {
        let stock = stocks.pools.get(at)?;
        let lost: HashSet<&NodeUid> = self.lost.iter().map(|(segment, _)| &segment.uid).collect();
        let staying = || open_segments(self.booking).filter(|segment| !lost.contains(&segment.uid));
        let known: Option<Vec<Slot>> = staying().map(|segment| stock.slot(segment)).collect();
        known.or_else(|| {
            let those = || staying().filter_map(|segment| stock.slot(segment)).collect();
            self.booking.require.is_none().then(those)
        })
    }
}

fn lost(booking: &Booking, segment: &Segment, at: TimeMs, replacement: Option<Segment>) -> Swap {
    Swap { booking: booking.id.clone(), lost: Some(segment.uid.clone()), at, replacement }
}

fn made_good(booking: &Booking, at: TimeMs, replacement: Segment) -> Swap {
    Swap { booking: booking.id.clone(), lost: None, at, replacement: Some(replacement) }
}

/// Of a booking of whole nodes.
fn swap_nodes(hurt: &Hurt<'_>, stocks: &mut Stocks, now: TimeMs) -> Vec<Swap> {
    let booking = hurt.booking;
    let mut replacements = replacements(hurt, stocks).into_iter();
    let mut swaps: Vec<Swap> = Vec::with_capacity(hurt.lost.len());
    for &(segment, at) in &hurt.lost {
        // A node of another size than the pool's nodes have today cannot be replaced by one of them.
        let alike = replacements.as_slice().first().is_some_and(|new| new.devices == segment.devices);
        swaps.push(lost(booking, segment, at, if alike { replacements.next() } else { None }));
    }
    swaps.extend(replacements.map(|new| made_good(booking, now, new)));
    swaps
}

/// Of a booking of parts: each part is replaced by one of its size if there is one, and what is missing then by as few as there are.
fn swap_parts(hurt: &Hurt<'_>, stocks: &mut Stocks, now: TimeMs) -> Vec<Swap> {
    let booking = hurt.booking;
    let at = stocks.by_name(&booking.pool);
    let mut remaining = at.and_then(|at| hurt.remaining(at, stocks));
    let mut part = |devices: u32| -> Option<Segment> {
        let (at, remaining) = (at?, remaining.as_mut()?);
        let slot = stocks.pools.get_mut(at)?.find_part_near(remaining, devices, booking.require.as_ref())?;
        remaining.push(slot);
        stocks.take(at, &[slot], |stock| stock.take_parts(&[(slot, devices)]))?.pop()
    };
    let mut swaps: Vec<Swap> = Vec::with_capacity(hurt.lost.len());
    let mut short = u32::try_from(hurt.short).unwrap_or(u32::MAX);
    for &(segment, at) in &hurt.lost {
        let replacement = part(segment.devices);
        if replacement.is_none() {
            short = short.saturating_add(segment.devices);
        }
        swaps.push(lost(booking, segment, at, replacement));
    }
    let mut size = short;
    while short > 0 && size > 0 {
        match part(size.min(short)) {
            Some(new) => {
                short = short.saturating_sub(new.devices);
                swaps.push(made_good(booking, now, new));
            }
            None => size = size.min(short).saturating_sub(1),
        }
    }
    swaps
}

/// When a node was lost, if it was: last known healthy, or now when it is gone; never before it was handed over.
fn lost_at(segment: &Segment, stocks: &Stocks, now: TimeMs) -> Option<TimeMs> {
    let at = match stocks.health(&segment.uid) {
        Some(NodeHealth::Sound) => return None,
        Some(NodeHealth::Lost(at)) => *at,
        None => now,
    };
    let at = at.min(now);
    Some(segment.from.map_or(at, |from| at.max(from)))
}

/// Takes free nodes for what is lost now and for what is missing since earlier: as many as there are.
fn replacements(hurt: &Hurt<'_>, stocks: &mut Stocks) -> Vec<Segment> {
    let Hurt { booking, lost, short } = hurt;
    let Some(at) = stocks.by_name(&booking.pool) else { return Vec::new() };
    let Some(remaining) = hurt.remaining(at, stocks) else { return Vec::new() };
    let Some(stock) = stocks.pools.get(at) else { return Vec::new() };
    let per_node = stock.pool().devices_per_node;
    let alike = lost.iter().filter(|(segment, _)| segment.devices == per_node).count();
    let missing = short.checked_div(u64::from(per_node)).and_then(|nodes| usize::try_from(nodes).ok()).unwrap_or(0);
    let wanted = alike.saturating_add(missing);
    if wanted == 0 || stock.tally().free == 0 {
        return Vec::new();
    }
    let slots = stock.find_near(&remaining, wanted, booking.require.as_ref());
    stocks.take(at, &slots, |stock| stock.take(&slots)).unwrap_or_default()
}
