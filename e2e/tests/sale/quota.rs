//! What a tenant may have at once.

use anyhow::{Result, ensure};
use serde_json::json;
use spillway_crds::Phase;

use crate::accounts::verify;
use crate::stage::{BETAS_QUOTA, GPUS, Stage};

pub(crate) async fn tell(stage: &Stage<'_>) -> Result<()> {
    // More than the quota in all: never. The numbers are in the answer.
    stage.reserve("beta", "too-much", 2 * GPUS, json!({})).await?;
    let said = stage.wait_reason("beta", "too-much", Phase::Rejected, "QuotaExceeded").await?;
    ensure!(said.contains("16 devices") && said.contains(&format!("is {BETAS_QUOTA} in all")), "{said}");

    // More than is left of it: later.
    stage.reserve("beta", "first", GPUS, json!({})).await?;
    let first = stage.wait_active("beta", "first").await?;
    stage.reserve("beta", "second", GPUS, json!({})).await?;
    let said = stage.wait_reason("beta", "second", Phase::Waitlisted, "QuotaInUse").await?;
    ensure!(said.contains("holds 8 of its quota of 8") && said.contains("0 are left"), "{said}");

    // It stands in nobody's way: the other node is free, and gamma, who comes later, gets it.
    stage.reserve("gamma", "passes", GPUS, json!({})).await?;
    let passes = stage.wait_active("gamma", "passes").await?;
    ensure!(passes == [stage.other(&first[0])?], "gamma got {passes:?}");
    stage.give_up("gamma", "passes").await?;
    stage.wait_reason("beta", "second", Phase::Waitlisted, "QuotaInUse").await?;

    stage.give_up("beta", "first").await?;
    stage.wait_active("beta", "second").await?;
    verify(stage).await
}
