//! The owner uses what is not sold, with unchanged pods, and no sale displaces one of them.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::json;
use spillway_crds::Phase;
use spillway_lab::wait_for;

use crate::BOUND;
use crate::accounts::{capacity, cli, verify};
use crate::stage::{GPUS, POOL, Stage, is_running, list, node_of, uids};
use crate::workloads::deployment;

/// A sale that would displace somebody has done so by then.
const PATIENCE: Duration = Duration::from_secs(3);

pub(crate) async fn tell(stage: &Stage<'_>) -> Result<()> {
    stage.create("house", &[deployment("research", 2, 8)]).await?;
    let pods = stage.wait_running("house", 2).await?;
    ensure!(node_of(&pods[0]) != node_of(&pods[1]), "two pods of eight devices are on one node: {}", list(&pods));

    stage.reserve("acme", "wants", GPUS, json!({})).await?;
    let said = stage.wait_reason("acme", "wants", Phase::Waitlisted, "InsufficientCapacity").await?;
    ensure!(said.contains("16 used by the owner"), "{said}");
    tokio::time::sleep(PATIENCE).await;
    let later = stage.pods("house").await?;
    ensure!(
        uids(&later) == uids(&pods) && later.iter().all(is_running),
        "a sale displaced the owner: {}",
        list(&later)
    );
    stage.wait_reason("acme", "wants", Phase::Waitlisted, "InsufficientCapacity").await?;

    // One of them goes: its node is sold, and the other pod does not notice.
    stage.lab.kubectl(&["scale", "deployment/research", "-n", "house", "--replicas=1"]).await?;
    let bought = stage.wait_active("acme", "wants").await?;
    let left = stage.wait_running("house", 1).await?;
    ensure!(uids(&pods).contains(&uids(&left)[0]), "the owner's pod was made anew");
    let its_node = node_of(&left[0]).context("no node")?;
    ensure!(bought == [stage.other(its_node)?], "acme got {bought:?}, and the owner is on {its_node}");
    // The status of the pool follows the pods within a minute, the command line tool looks itself.
    wait_for("the owner's devices to be counted", BOUND, || async {
        let told = cli(stage, &["capacity", POOL]).await?["pools"][0].clone();
        ensure!(told["ownerUsed"] == GPUS, "{told}");
        Ok(true)
    })
    .await?;
    capacity(stage).await?;
    verify(stage).await?;

    stage.give_up("acme", "wants").await?;
    stage.wait_unsold().await?;
    let last = stage.pods("house").await?;
    ensure!(
        uids(&last) == uids(&left) && last.iter().all(is_running),
        "the end of a sale displaced the owner: {}",
        list(&last)
    );
    Ok(())
}
