//! What was decided last: the committed ledger and the answers to what waits. Read by every controller, written by the engine alone.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use spillway_planner::{Booking, BookingId, NodeUid, Outcome, ReservationUid, ledger::Ledger};

/// The last committed decision.
#[derive(Clone, Debug, Default)]
pub struct View {
    /// The committed ledger; none while it could not be read.
    pub ledger: Option<Arc<Ledger>>,
    /// Generation of the root.
    pub generation: i64,
    /// Answers to the reservations that are not booked.
    pub outcomes: Arc<HashMap<ReservationUid, Outcome>>,
    /// Bookings that ended and whose reservation may still have to be told.
    pub ended: Arc<HashMap<ReservationUid, Arc<Booking>>>,
    /// Reservations that are being deleted and for which the last plan had nothing booked: no later plan books them.
    pub released: Arc<HashSet<ReservationUid>>,
    /// Why nothing is sold and no node is written, if so: a CamelCase word and a sentence.
    pub blocked: Option<(&'static str, String)>,
}

impl View {
    /// The live booking of a reservation.
    pub fn booking_of(&self, reservation: &ReservationUid) -> Option<&Arc<Booking>> {
        self.ledger.as_ref()?.booking_of(reservation)
    }

    /// The live bookings that hold a node or parts of it, by id.
    pub fn bookings_on(&self, node: &NodeUid) -> impl Iterator<Item = &Arc<Booking>> {
        self.ledger.iter().flat_map(move |ledger| ledger.holders(node))
    }

    /// Whether a live booking holds a node or a part of it.
    pub fn is_held(&self, node: &NodeUid) -> bool {
        self.bookings_on(node).next().is_some()
    }

    /// A booking by its id, live or just ended.
    pub fn booking(&self, id: &BookingId) -> Option<&Arc<Booking>> {
        self.ledger
            .as_ref()
            .and_then(|ledger| ledger.booking(id))
            .or_else(|| self.ended.values().find(|booking| booking.id == *id))
    }
}
