//! The owner uses what is not sold, with unchanged pods, and no sale displaces one of them.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::json;
use spillway_crds::Phase;
use spillway_lab::wait_for;

use crate::BOUND;
use crate::accounts::{capacity, cli, verify};
use crate::stage::{GPUS, POOL, Stage, is_running, is_unschedulable, list, node_of, uids};
use crate::workloads::deployment;

/// How often a sale and the owner meet.
const ROUNDS: u32 = 2;
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
    stage.lab.kubectl(&["delete", "deployment", "research", "-n", "house", "--cascade=foreground"]).await?;
    for round in 0..ROUNDS {
        at_the_same_moment(stage, round).await?;
    }
    Ok(())
}

/// A sale and a pod of the owner's want the same node at once: whoever gets it, no pod of the owner's that was bound is ended.
async fn at_the_same_moment(stage: &Stage<'_>, round: u32) -> Result<()> {
    let (sale, app) = (format!("race-{round}"), format!("race-{round}"));
    let before = stage.witness.leaving("house");
    let workload = [deployment(&app, 2, 8)];
    let (made, reserved) =
        tokio::join!(stage.create("house", &workload), stage.reserve("acme", &sale, GPUS, json!({})));
    made?;
    reserved?;
    wait_for("one of the three to wait and two to be served", BOUND, || async {
        let pods = stage.pods("house").await?;
        let running = pods.iter().filter(|pod| is_running(pod)).count();
        let waiting = pods.iter().filter(|pod| is_unschedulable(pod)).count();
        let sale = stage.spillway.reservation("acme", &sale).await?.context("it is gone")?;
        let phase = sale.status.as_ref().map(|status| status.phase).unwrap_or_default();
        let reason = sale.status.as_ref().and_then(|status| status.reason.clone()).unwrap_or_default();
        // It waits in line, or, where it was booked just before the owner's pods came, for a node in place of the one that it gave up for them.
        let waits = phase == Phase::Waitlisted || (phase == Phase::Booked && reason == "NodesLost");
        let settled = (running == 2 && waits) || (running == 1 && waiting == 1 && phase == Phase::Active);
        ensure!(settled && pods.len() == 2, "the sale is {}, {}", phase.as_str(), list(&pods));
        Ok(true)
    })
    .await?;
    let ended: Vec<String> = stage.witness.leaving("house").into_iter().filter(|pod| !before.contains(pod)).collect();
    ensure!(ended.is_empty(), "a sale ended pods of the owner's: {ended:?}");
    stage.give_up("acme", &sale).await?;
    stage.lab.kubectl(&["delete", "deployment", &app, "-n", "house", "--cascade=foreground"]).await?;
    stage.wait_unsold().await
}
