//! The decision over a whole snapshot.
//!
//! Must not: do I/O, read a clock, or depend on the order of its input.

use crate::types::{
    Booking, BookingId, EndReason, MilliGpu, NodeName, NodeUid, PoolName, ReservationRef, ReservationUid, Segment,
    Snapshot, TimeMs,
};

mod book;
mod planner;
mod queue;
mod reasons;
mod requests;
mod stocks;
mod swaps;
#[cfg(test)]
mod tests;

pub use planner::Planner;

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
    /// Shares of devices: of an observed pool, and then there are no segments. It must not be committed.
    pub shares: Vec<PlannedShare>,
}

/// A share of a device, as a plan would give it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlannedShare {
    /// Name of the node.
    pub node: NodeName,
    /// UID of the node.
    pub uid: NodeUid,
    /// Which device of the node: a number to tell shares of the same device, below the pool's devices per node.
    pub device: u16,
    /// How much of it, in thousandths.
    pub gpu: MilliGpu,
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
    Planner::open(snapshot.clone()).plan(now)
}

fn open_segments(booking: &Booking) -> impl Iterator<Item = &Segment> {
    booking.segments.iter().filter(|segment| segment.to.is_none())
}
