//! What an administrator has in hand: looking before an installation, the ledger lost and put back, leaving.

#![expect(clippy::indexing_slicing, clippy::print_stderr, reason = "a test may fail loudly, and says what it saw")]

mod cli;
mod eject;
mod ledger;
mod preflight;

use std::time::Duration;

/// Longest time of anything that takes seconds on an idle machine.
const BOUND: Duration = Duration::from_secs(60);
