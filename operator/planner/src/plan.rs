//! The decision over a whole snapshot.
//!
//! Must not: do I/O, read a clock, or depend on the order of its input.

use std::{collections::HashSet, sync::Arc};

use crate::types::{
    Booking, BookingId, EndReason, NodeUid, PoolName, Request, ReservationRef, ReservationUid, Segment, Snapshot,
    TimeMs,
};

mod reasons;
mod requests;
mod stocks;
mod swaps;
#[cfg(test)]
mod tests;

/// What to commit, and an answer for every request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// New bookings, in the order in which they were decided.
    pub bookings: Vec<NewBooking>,
    /// Bookings that end.
    pub ends: Vec<End>,
    /// Nodes that were lost, with what replaces them.
    pub swaps: Vec<Swap>,
    /// The answer to every request that has no live booking and gets none now.
    pub outcomes: Vec<(ReservationUid, Outcome)>,
    /// The next instant at which the same snapshot would give another plan (a term's end, a `waitFor` that is over), if any.
    pub next: Option<TimeMs>,
}

/// A booking to be made; the id is given when it is committed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewBooking {
    /// For which reservation.
    pub reservation: ReservationRef,
    /// From which pool.
    pub pool: PoolName,
    /// On which nodes.
    pub segments: Vec<Segment>,
}

/// A booking that ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct End {
    /// Which.
    pub booking: BookingId,
    /// When: the end of its term, or now.
    pub at: TimeMs,
    /// Why.
    pub reason: EndReason,
}

/// A node of a booking that was lost.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Swap {
    /// Which booking.
    pub booking: BookingId,
    /// The node that was lost; none when an earlier loss is made good now.
    pub lost: Option<NodeUid>,
    /// When it was last known healthy.
    pub at: TimeMs,
    /// What replaces it, if anything is free: devices as the lost node had.
    pub replacement: Option<Segment>,
}

/// The answer to a request that is not booked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It waits.
    Waitlisted(Reason),
    /// It can never be met.
    Rejected(Reason),
    /// It waited for `waitFor`.
    Expired(Reason),
}

/// Why, for machines and for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reason {
    /// One CamelCase word: `InsufficientCapacity`, `BehindOlderRequest`, `QuotaInUse`, `QuotaExceeded`, `RegionNotAllowed`, `NoTenant`,
    /// `NoMatchingPool`, `ShapeDoesNotFit`, `UnknownTopology`, `TierNotAllowed`, `PoolNotSelling`, `WaitedTooLong`, `NotNow`.
    pub code: &'static str,
    /// A sentence that says what would change it, with the numbers.
    pub message: String,
}

/// Decides on a snapshot at a time.
pub fn plan(snapshot: &Snapshot, now: TimeMs) -> Plan {
    let book = Book::open(snapshot);
    let ends = plan_ends(&book, now);
    let mut stocks = stocks::Stocks::count(snapshot, &book, now);
    let ending: HashSet<&BookingId> = ends.iter().map(|end| &end.booking).collect();
    let swaps = swaps::plan_swaps(&book, &ending, &mut stocks, now);
    let (bookings, outcomes, next_deadline) = requests::plan_requests(snapshot, &book, &ending, stocks, now);
    let staying = book.live.iter().filter(|booking| !ending.contains(&booking.id));
    let next_end = staying.filter_map(|booking| booking.end).min();
    Plan { bookings, ends, swaps, outcomes, next: next_end.into_iter().chain(next_deadline).min() }
}

/// Bookings and requests, in no order unless it is said.
struct Book<'a> {
    /// Live bookings.
    live: Vec<&'a Booking>,
    /// Requests that are to be answered, in the order in which they are served.
    waiting: Vec<&'a Request>,
    /// Reservations that are being deleted.
    deleting: HashSet<&'a ReservationUid>,
}

impl<'a> Book<'a> {
    fn open(snapshot: &'a Snapshot) -> Self {
        let live: Vec<&Booking> = snapshot.bookings.iter().map(Arc::as_ref).collect();
        let booked: HashSet<&ReservationUid> = live.iter().map(|booking| &booking.reservation.uid).collect();
        let (deleting, staying): (Vec<&Request>, _) = snapshot.requests.iter().partition(|request| request.deleting);
        let mut waiting: Vec<&Request> = staying;
        waiting.retain(|request| !booked.contains(&request.reservation.uid));
        waiting.sort_unstable_by_key(|request| {
            let reservation = &request.reservation;
            (request.created, &reservation.namespace, &reservation.name, &reservation.uid)
        });
        let deleting = deleting.into_iter().map(|request| &request.reservation.uid).collect();
        Self { live, waiting, deleting }
    }
}

/// Bookings end for two reasons only: their term is over, or their reservation is being deleted. A booking whose reservation is not in the
/// snapshot at all goes on: a cache that is behind must not end a contract.
fn plan_ends(book: &Book<'_>, now: TimeMs) -> Vec<End> {
    let end_of = |booking: &&Booking| {
        let (at, reason) = match booking.end {
            Some(end) if end <= now => (end, EndReason::TermOver),
            _ if book.deleting.contains(&booking.reservation.uid) => (now, EndReason::Deleted),
            _ => return None,
        };
        Some(End { booking: booking.id.clone(), at, reason })
    };
    let mut ends: Vec<End> = book.live.iter().filter_map(end_of).collect();
    ends.sort_unstable_by(|one, other| one.booking.cmp(&other.booking));
    ends
}

fn open_segments(booking: &Booking) -> impl Iterator<Item = &Segment> {
    booking.segments.iter().filter(|segment| segment.to.is_none())
}
