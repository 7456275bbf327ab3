//! What was booked and not told yet. It is told in the order in which it was booked, and when much of it waits, it goes before the nodes'
//! being handed over: a buyer first learns that it has what it asked for, and a busy API server is not asked for everything at once.

use std::{
    collections::HashSet,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use spillway_planner::{Booking, ReservationUid, TimeMs};
use tokio::sync::mpsc;

/// So many untold bookings are much.
const MUCH: usize = 8;
/// Milliseconds after its booking until which the hand-over may wait, whatever is untold.
const BOUND_MS: i64 = 60_000;
/// How long who waits for the backlog waits at a time.
const PAUSE: Duration = Duration::from_secs(1);

/// A booking of which a reservation is to be told.
#[derive(Clone, Debug)]
pub struct Order {
    /// Which reservation.
    pub reservation: ReservationUid,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// When it was booked.
    pub booked_at: TimeMs,
}

/// The reservations that were booked and whose status does not say so.
#[derive(Debug)]
pub struct Backlog {
    untold: Mutex<HashSet<ReservationUid>>,
    orders: mpsc::UnboundedSender<Order>,
}

impl Backlog {
    /// An empty one, and what is to be told, in order.
    pub fn new() -> (Self, mpsc::UnboundedReceiver<Order>) {
        let (orders, receiver) = mpsc::unbounded_channel();
        (Self { untold: Mutex::default(), orders }, receiver)
    }

    /// Notes a new booking.
    pub fn booked(&self, booking: &Booking) {
        let reservation = &booking.reservation;
        self.untold.lock().unwrap_or_else(PoisonError::into_inner).insert(reservation.uid.clone());
        // Who tells lives as long as the process leads.
        let _ = self.orders.send(Order {
            reservation: reservation.uid.clone(),
            namespace: reservation.namespace.to_string(),
            name: reservation.name.to_string(),
            booked_at: booking.booked_at,
        });
    }

    /// Notes that it was told, or that there is nothing to be told any more.
    pub fn told(&self, reservation: &ReservationUid) {
        self.untold.lock().unwrap_or_else(PoisonError::into_inner).remove(reservation);
    }

    /// Whether a reservation is to be told that it is booked.
    pub fn has(&self, reservation: &ReservationUid) -> bool {
        self.untold.lock().unwrap_or_else(PoisonError::into_inner).contains(reservation)
    }

    /// Whether much is untold.
    pub fn is_long(&self) -> bool {
        self.untold.lock().unwrap_or_else(PoisonError::into_inner).len() > MUCH
    }

    /// How long the hand-over for a booking of that time should wait; none: it need not.
    pub fn pause(&self, booked_at: TimeMs, now_ms: i64) -> Option<Duration> {
        let young = now_ms < booked_at.plus(BOUND_MS).0;
        (young && self.is_long()).then_some(PAUSE)
    }
}

#[cfg(test)]
mod tests;
