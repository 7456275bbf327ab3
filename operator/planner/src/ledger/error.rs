//! Why a ledger cannot be read, and why a change cannot be committed.

use thiserror::Error;

use super::PageName;
use crate::types::{BookingId, NodeUid, PoolName, ReservationUid};

/// Why a ledger cannot be used. In each case nothing is sold and nothing is written until a person has looked.
#[derive(Clone, Debug, Eq, Error, PartialEq)]
pub enum LoadError {
    /// Written by a newer version.
    #[error("{what} has format {found}, and this version reads up to {supported}: upgrade Spillway", supported = super::FORMAT)]
    Newer {
        /// The root, or which page.
        what: String,
        /// Its format.
        found: i32,
    },
    /// A page that the root needs is not there.
    #[error("page {name} of the booking ledger is missing: restore it, or the whole ledger, from a backup")]
    MissingPage {
        /// Its name.
        name: PageName,
    },
    /// Something is there that this code cannot have written.
    #[error("{what} of the booking ledger is unreadable: {why}")]
    Unreadable {
        /// The root, or which page.
        what: String,
        /// What is wrong with it.
        why: String,
    },
    /// The root is older than what was once committed.
    #[error(
        "the booking ledger has generation {found}, but a node was written under generation {stamped}: an old ledger was restored"
    )]
    Older {
        /// Generation of the root.
        found: i64,
        /// Highest generation stamped on a node.
        stamped: i64,
    },
}

/// Why nothing could be staged.
#[derive(Clone, Debug, Eq, Error, PartialEq)]
pub enum StageError {
    /// A change breaks a rule of the ledger.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The new pages cannot be written.
    #[error("the ledger pages of pool {pool} cannot be written: {why}")]
    Unwritable {
        /// Of which pool.
        pool: PoolName,
        /// What is wrong.
        why: String,
    },
}

/// A change that breaks a rule of the ledger.
#[derive(Clone, Debug, Eq, Error, PartialEq)]
#[error("change {change} of booking {booking} is refused: {reason}")]
pub struct Refusal {
    /// Its place among the changes of the commit, from 0.
    pub change: usize,
    /// Which booking it is about.
    pub booking: BookingId,
    /// Which rule.
    pub reason: Refused,
}

/// The rule of the ledger that a change breaks.
#[derive(Clone, Debug, Eq, Error, PartialEq)]
pub enum Refused {
    /// There is no such live booking.
    #[error("no such booking is live")]
    NotLive,
    /// The id is taken.
    #[error("a booking of this id is live or ends in this commit")]
    IdInUse,
    /// The reservation has a live booking already.
    #[error("reservation {reservation} has live booking {by} already")]
    ReservationBooked {
        /// Which reservation.
        reservation: ReservationUid,
        /// Its booking.
        by: BookingId,
    },
    /// The node is held already.
    #[error("node {node} is held by booking {by}")]
    NodeHeld {
        /// Which node.
        node: NodeUid,
        /// By which booking.
        by: BookingId,
    },
    /// Parts of the node would add up to more devices than it has.
    #[error("{wanted} devices of node {node} are not free: parts of {held} are held, and it has {of}")]
    NodeFull {
        /// Which node.
        node: NodeUid,
        /// Devices of the new part.
        wanted: u32,
        /// Devices of the parts that are held.
        held: u64,
        /// Devices that the node had, as the parts say.
        of: u32,
    },
    /// The booking has no open segment on the node.
    #[error("it holds nothing on node {node}")]
    NoOpenSegment {
        /// Which node.
        node: NodeUid,
    },
    /// A new booking or segment has times of its own.
    #[error("what is new has no times and no end yet")]
    NotNew,
    /// The devices do not add up.
    #[error("its open segments have {found} devices, and it is for {wanted}")]
    WrongDevices {
        /// Devices of the open segments.
        found: u64,
        /// Devices of the booking.
        wanted: u32,
    },
    /// It can be written into no page.
    #[error("its texts are too long to be written into a page")]
    TooLarge,
    /// The pool's index cannot name more pages.
    #[error("the ledger index of its pool is full")]
    PoolFull,
    /// The root cannot name more pools.
    #[error("the ledger names {} pools already", super::MAX_POOLS)]
    TooManyPools,
}
