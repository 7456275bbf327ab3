//! The live bookings, and what follows from them.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
};

use super::open_segments;
use crate::{
    placement::Held,
    types::{Booking, BookingId, NodeUid, ReservationUid, Sku, TenantName, Tier, TimeMs},
};

/// Whose, of what, on which terms.
pub(super) type Holding = (TenantName, Sku, Tier);

/// The live bookings.
#[derive(Clone, Debug, Default)]
pub(super) struct Book {
    live: HashMap<BookingId, Arc<Booking>>,
    by_reservation: HashMap<ReservationUid, BookingId>,
    /// By node: the bookings with an open segment on it.
    by_node: HashMap<NodeUid, Vec<BookingId>>,
    /// Known ends, soonest first.
    ends: BTreeSet<(TimeMs, BookingId)>,
    /// Devices that tenants hold.
    holdings: HashMap<Holding, u64>,
}

fn holding(booking: &Booking) -> Holding {
    (booking.tenant.clone(), booking.sku.clone(), booking.tier)
}

impl Book {
    /// Enters a booking, or what it has become.
    pub(super) fn insert(&mut self, booking: Arc<Booking>) {
        self.remove(&booking.id);
        for segment in open_segments(&booking) {
            let there = self.by_node.entry(segment.uid.clone()).or_default();
            if !there.contains(&booking.id) {
                there.push(booking.id.clone());
            }
        }
        self.ends.extend(booking.end.map(|end| (end, booking.id.clone())));
        self.by_reservation.insert(booking.reservation.uid.clone(), booking.id.clone());
        *self.holdings.entry(holding(&booking)).or_default() += u64::from(booking.devices);
        self.live.insert(booking.id.clone(), booking);
    }

    /// Strikes a booking out.
    pub(super) fn remove(&mut self, id: &BookingId) -> Option<Arc<Booking>> {
        let booking = self.live.remove(id)?;
        for segment in open_segments(&booking) {
            if let Some(there) = self.by_node.get_mut(&segment.uid) {
                there.retain(|other| other != id);
                if there.is_empty() {
                    self.by_node.remove(&segment.uid);
                }
            }
        }
        if let Some(end) = booking.end {
            self.ends.remove(&(end, id.clone()));
        }
        if self.by_reservation.get(&booking.reservation.uid) == Some(id) {
            self.by_reservation.remove(&booking.reservation.uid);
        }
        let key = holding(&booking);
        if let Some(held) = self.holdings.get_mut(&key) {
            *held = held.saturating_sub(u64::from(booking.devices));
            if *held == 0 {
                self.holdings.remove(&key);
            }
        }
        Some(booking)
    }

    pub(super) fn get(&self, id: &BookingId) -> Option<&Arc<Booking>> {
        self.live.get(id)
    }

    pub(super) fn of(&self, reservation: &ReservationUid) -> Option<&Arc<Booking>> {
        self.get(self.by_reservation.get(reservation)?)
    }

    pub(super) fn all(&self) -> impl Iterator<Item = &Arc<Booking>> {
        self.live.values()
    }

    /// The bookings with an open segment on a node.
    pub(super) fn on(&self, node: &NodeUid) -> impl Iterator<Item = &Arc<Booking>> {
        self.by_node.get(node).into_iter().flatten().filter_map(|id| self.get(id))
    }

    /// What bookings have of a node, those that are ending included: it is free when it was given back, not before.
    pub(super) fn held(&self, node: &NodeUid) -> Held {
        let mut held = Held::default();
        for booking in self.on(node) {
            for segment in open_segments(booking).filter(|segment| segment.uid == *node) {
                // Of a whole node everything is taken, however many devices it has today; and no part is so small that it is none.
                held.whole |= booking.exclusive;
                held.parts = held.parts.saturating_add(segment.devices.max(1));
            }
        }
        held
    }

    /// Bookings whose end is not after `now`, soonest first.
    pub(super) fn over(&self, now: TimeMs) -> impl Iterator<Item = &Arc<Booking>> {
        self.ends.iter().take_while(move |(end, _)| *end <= now).filter_map(|(_, id)| self.get(id))
    }

    /// The first end after `now`, but for these bookings.
    pub(super) fn next_end(&self, now: TimeMs, but: impl Fn(&BookingId) -> bool) -> Option<TimeMs> {
        self.ends.iter().find(|(end, id)| *end > now && !but(id)).map(|(end, _)| *end)
    }

    pub(super) fn holding(&self, key: &Holding) -> u64 {
        self.holdings.get(key).copied().unwrap_or(0)
    }
}
