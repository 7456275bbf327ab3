//! What is not sold: cordoned nodes, nodes with fewer devices than their pool says, anything of a pool that is paused.

use anyhow::{Context as _, Result, ensure};
use serde_json::json;
use spillway_crds::{ConditionStatus, Phase};
use spillway_lab::wait_for;

use crate::BOUND;
use crate::accounts::verify;
use crate::stage::{GPUS, POOL, Stage, is_running, uids};
use crate::workloads::deployment;

pub(crate) async fn tell(stage: &Stage<'_>) -> Result<()> {
    let nodes = stage.lab.real_nodes();
    let [cordoned, broken] = nodes.as_slice() else { anyhow::bail!("two nodes, not {nodes:?}") };
    let index = stage.index(broken)?;
    stage.lab.kubectl(&["cordon", cordoned]).await?;
    wait_problem(stage, cordoned, Some("cordoned")).await?;
    stage.reserve("acme", "all", 2 * GPUS, json!({})).await?;
    let said = stage.wait_reason("acme", "all", Phase::Waitlisted, "InsufficientCapacity").await?;
    ensure!(said.contains("8 on broken or cordoned nodes"), "{said}");

    stage.spillway.patch_pool(POOL, json!({"sale": {"paused": true}})).await?;
    wait_for("the wait to be the pool's", BOUND, || async {
        stage.wait_reason("acme", "all", Phase::Waitlisted, "PoolNotSelling").await.map(|_| true)
    })
    .await?;
    stage.lab.kubectl(&["uncordon", cordoned]).await?;
    wait_problem(stage, cordoned, None).await?;
    stage.wait_reason("acme", "all", Phase::Waitlisted, "PoolNotSelling").await?;
    stage.spillway.patch_pool(POOL, json!({"sale": {"paused": false}})).await?;
    ensure!(stage.wait_active("acme", "all").await?.len() == 2, "not both nodes");

    // A device that breaks under a tenant is told, and no reason to take the rest away.
    stage.create("acme", &[deployment("serve", 2, 2)]).await?;
    let before = stage.wait_running("acme", 2).await?;
    stage.lab.set_devices(index, 8, 1)?;
    stage.lab.wait_for("the node to offer 7 devices", BOUND, || stage.lab.node_offers(index, 7)).await?;
    let pods = stage.pods("acme").await?;
    ensure!(uids(&pods) == uids(&before) && pods.iter().all(is_running), "a broken device ended pods");
    ensure!(stage.wait_active("acme", "all").await?.len() == 2, "a broken device took a node away");
    verify(stage).await?;

    // The node is not sold again before it is mended.
    stage.spillway.delete_reservation("acme", "all").await?;
    wait_problem(stage, broken, Some("offers 7 devices")).await?;
    stage.reserve("gamma", "all", 2 * GPUS, json!({})).await?;
    stage.wait_reason("gamma", "all", Phase::Waitlisted, "InsufficientCapacity").await?;
    ensure!(stage.hold(broken).await? == "closed", "a broken node was opened");
    stage.lab.set_devices(index, 8, 0)?;
    ensure!(stage.wait_active("gamma", "all").await?.len() == 2, "not both nodes");
    wait_problem(stage, broken, None).await
}

/// Waits until the pool's `NodesSound` says this of a node, or that all are sound.
async fn wait_problem(stage: &Stage<'_>, node: &str, problem: Option<&str>) -> Result<()> {
    wait_for(&format!("the pool to say of {node}: {problem:?}"), BOUND, || async {
        let status = stage.spillway.pool(POOL).await?.status.context("no status")?;
        let sound =
            status.conditions.iter().find(|one| one.type_ == "NodesSound").context("no condition NodesSound")?;
        let said = &sound.message;
        ensure!(
            problem
                .map_or(sound.status == ConditionStatus::True, |problem| said.contains(node) && said.contains(problem)),
            "it says {said}"
        );
        Ok(true)
    })
    .await
}
