//! An independent checker of Spillway's invariants: what was sold, is it really so?
//!
//! It reads API objects only and shares no code with the planner: the ledger's format is read here by types of this crate's own, so
//! that a mistake in the one is not repeated in the other. [`load`] reads a [`World`]; [`check`] is pure.
//!
//! | invariant | what is checked |
//! |---|---|
//! | 1 a device-hour is sold once | the ledger is whole and readable; no node in two bookings at one instant, past or present; no more devices than a node has |
//! | 2 a commitment holds | every promise has its booking and its devices, and ended when it was agreed |
//! | 4 what is not sold is not usable | taints, labels and namespaces agree with the ledger; no pod where its tenant holds nothing |
//! | 5 GPU time is exact | every metered millisecond is explained by the ledger |
//!
//! Must not: use `spillway-planner`, write anything.

mod checks;
mod ledger;
mod load;
mod violation;
mod world;

pub use checks::{check, check_ledger};
pub use ledger::{Booking, EndReason, Ledger, ReservationRef, Segment, read_ledger};
pub use load::{LoadError, load};
pub use violation::{Severity, Violation};
pub use world::{Settings, World};
