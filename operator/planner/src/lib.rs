//! Pure decisions about capacity: no I/O, no async, no Kubernetes. Values and a clock come in, values go out, and the same input
//! gives the same output on any machine.
//!
//! - [`types`]: capacity, time, bookings, requests: types that cannot be wrong.
//! - [`calendar`]: what of a node is free over an interval.
//! - [`placement`]: which nodes, or parts of nodes, a gang gets.
//! - [`assign`]: which pod may land on which shared node.
//! - [`node`]: the next step of a node on its way to what the ledger wants.
//! - [`mod@plan`]: the decision over a whole [`Snapshot`]: bookings, ends, replacements, and an answer for every request.
//! - [`packing`]: which node and which devices a part of a node is cut from.
//! - [`ledger`]: the format and the protocol of the booking ledger. The operator and the model check run the same transition function.

pub mod assign;
pub mod calendar;
pub mod ledger;
pub mod node;
pub mod packing;
pub mod placement;
pub mod plan;
pub mod types;

pub use plan::{End, NewBooking, Outcome, Plan, PlannedShare, Planner, Reason, Swap, plan};
pub use types::*;
