//! What an administrator has in hand: looking before an installation, the ledger lost and put back, leaving.

#![allow(clippy::indexing_slicing, reason = "a field that a JSON value lacks reads as null")]
#![expect(clippy::print_stderr, reason = "a test says what it saw")]

mod cli;
mod eject;
mod ledger;
mod preflight;

use std::time::Duration;

/// Longest time of anything that takes seconds on an idle machine.
const BOUND: Duration = Duration::from_secs(60);
