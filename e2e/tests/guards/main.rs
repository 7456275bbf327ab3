//! The guards, on a cluster with a scheduler: from observing to enforcing and back, policies that are taken away or weakened, pods that are where they
//! may not be.

#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may fail loudly")]

mod audit;
mod observe;
mod policies;
mod stage;

use anyhow::Result;
use spillway_lab::spillway::Spillway;
use spillway_lab::{Lab, LabOptions, Size};

use crate::stage::Stage;

/// All in one test, because only one cluster fits on the machine at a time and it takes a while to come up.
#[tokio::test]
async fn the_guards_watch_themselves() -> Result<()> {
    let lab = Lab::start(LabOptions::new(Size::Cluster)).await?;
    stage::fill(&lab).await?;
    let spillway = Spillway::install(&lab).await?;
    let mut stage = Stage::build(&spillway)?;

    let residents = observe::a_first_look_touches_nothing(&stage).await?;
    observe::enforcing_ends_nothing_that_runs(&stage, &residents).await?;

    policies::what_is_deleted_or_changed_comes_back(&stage).await?;
    policies::an_upgrade_after_a_restore_meets_no_conflict(&stage).await?;
    policies::what_cannot_be_restored_stops_sales(&stage).await?;
    policies::a_test_that_fails_stops_sales(&stage).await?;

    audit::who_may_not_be_there_is_ended(&mut stage).await?;
    audit::too_many_stop_sales_and_end_nobody(&mut stage).await?;

    observe::observing_waits_for_bookings_and_then_lets_go(&stage, &residents).await?;
    policies::an_uninstall_is_not_fought(&stage).await?;
    drop(stage);
    lab.stop()
}
