//! The guards, on a cluster with a scheduler: from observing to enforcing and back, policies that are taken away or weakened, pods that are where they
//! may not be.

#![expect(
    clippy::unwrap_used,
    clippy::print_stderr,
    clippy::indexing_slicing,
    reason = "a test may fail loudly, and says what it saw"
)]

mod audit;
mod observe;
mod policies;
mod stage;

use std::time::Instant;

use anyhow::{Context as _, Result};
use spillway_lab::spillway::Spillway;
use spillway_lab::{Lab, LabOptions, Size};

use crate::stage::Stage;

/// Says how long a story took.
async fn told<T>(story: &str, story_itself: impl Future<Output = Result<T>>) -> Result<T> {
    let begun = Instant::now();
    let result = story_itself.await.context(story.to_owned());
    eprintln!("{story}: {:.1?}", begun.elapsed());
    result
}

/// All in one test, because only one cluster fits on the machine at a time and it takes a while to come up.
#[tokio::test]
async fn the_guards_watch_themselves() -> Result<()> {
    let lab = Lab::start(LabOptions::new(Size::Cluster)).await?;
    told("a cluster in use", Box::pin(stage::fill(&lab))).await?;
    let spillway = Spillway::install(&lab).await?;
    let mut stage = Stage::build(&spillway)?;

    let residents = told("a first look", Box::pin(observe::a_first_look_touches_nothing(&stage))).await?;
    told("enforcing", Box::pin(observe::enforcing_ends_nothing_that_runs(&stage, &residents))).await?;

    told("restored", Box::pin(policies::what_is_deleted_or_changed_comes_back(&stage))).await?;
    told("upgraded", Box::pin(policies::an_upgrade_after_a_restore_meets_no_conflict(&stage))).await?;
    told("not restored", Box::pin(policies::what_cannot_be_restored_stops_sales(&stage))).await?;
    told("a test that fails", Box::pin(policies::a_test_that_fails_stops_sales(&stage))).await?;

    told("intruders", Box::pin(audit::who_may_not_be_there_is_ended(&mut stage))).await?;
    told("too many", Box::pin(audit::too_many_stop_sales_and_end_nobody(&mut stage))).await?;

    told("observing", Box::pin(observe::observing_waits_for_bookings_and_then_lets_go(&stage, &residents))).await?;
    told("uninstalled", Box::pin(policies::an_uninstall_is_not_fought(&stage))).await?;
    drop(stage);
    lab.stop()
}
