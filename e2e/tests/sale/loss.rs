//! A kubelet falls silent, with no node free: the promise is at risk, and kept as soon as there is one. The node that returns is looked at before
//! it is anybody's. So is a node that was deleted and registers again.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::json;
use spillway_crds::Phase;
use spillway_lab::spillway::holds;
use spillway_lab::wait_for;

use crate::BOUND;
use crate::accounts::verify;
use crate::stage::{GPUS, POOL, Stage, is_running, list, node_of, nodes_of};
use crate::workloads::deployment;

/// Longest time from the last word of a kubelet to another node in its place.
const LOSS_BOUND: Duration = Duration::from_secs(90);

pub(crate) async fn tell(stage: &Stage<'_>) -> Result<()> {
    stage.spillway.patch_pool(POOL, json!({"sale": {"repairAfter": "2s"}})).await?;
    let moved = async {
        lose_and_return(stage).await?;
        stage.clear().await?;
        delete_and_register(stage).await
    }
    .await;
    stage.spillway.patch_pool(POOL, json!({"sale": {"repairAfter": "5m"}})).await?;
    moved
}

async fn lose_and_return(stage: &Stage<'_>) -> Result<()> {
    stage.create("acme", &[deployment("serve", 1, 2)]).await?;
    stage.reserve("acme", "moves", GPUS, json!({"tier": "Committed", "term": {"duration": "1h"}})).await?;
    let nodes = stage.wait_active("acme", "moves").await?;
    let lost = nodes.first().context("no node")?;
    let refuge = stage.other(lost)?;
    stage.wait_running("acme", 1).await?;
    stage.reserve("gamma", "neighbour", GPUS, json!({})).await?;
    stage.wait_active("gamma", "neighbour").await?;

    let kubelet = format!("kubelet-{}", stage.index(lost)?);
    stage.lab.kill_process(&kubelet)?;
    wait_for("the promise to be at risk", LOSS_BOUND, || async {
        let moves = stage.spillway.reservation("acme", "moves").await?.context("it is gone")?;
        let status = moves.status.clone().unwrap_or_default();
        ensure!(status.reason.as_deref() == Some("CommitmentAtRisk"), "{:?}", status.message);
        ensure!(status.phase == Phase::Active && nodes_of(&moves).is_empty(), "it has {:?}", nodes_of(&moves));
        Ok(true)
    })
    .await?;
    stage.give_up("gamma", "neighbour").await?;
    stage
        .lab
        .wait_for("the booking to have the other node", LOSS_BOUND, || async {
            let moves = stage.spillway.reservation("acme", "moves").await?.context("it is gone")?;
            let status = moves.status.clone().unwrap_or_default();
            ensure!(nodes_of(&moves) == [refuge.clone()], "it has {:?}: {:?}", nodes_of(&moves), status.message);
            ensure!(
                status.phase == Phase::Active && status.reason.as_deref() == Some("Active"),
                "{:?}",
                status.message
            );
            Ok(true)
        })
        .await?;
    wait_for("a replacement on the other node", BOUND, || async {
        let pods = stage.pods("acme").await?;
        ensure!(pods.iter().any(|pod| is_running(pod) && node_of(pod) == Some(&refuge)), "{}", list(&pods));
        Ok(true)
    })
    .await?;
    // Its old container runs on, unheard: the node stays closed, and the meter has stopped counting it.
    ensure!(!stage.alive(lost, "acme").await?.is_empty(), "the container died with its kubelet");
    ensure!(stage.hold(lost).await? == "closed", "a lost node is not closed");
    let ledger = stage.spillway.ledger().await?;
    let booking = ledger.live.iter().find(|booking| booking.reservation.name == "moves").context("no booking")?;
    let open: i64 = booking.open().map(|segment| segment.devices).sum();
    ensure!(open == GPUS && booking.segments.len() == 2, "{booking:?}");
    ensure!(booking.segments.iter().any(|segment| segment.node == *lost && segment.to.is_some()), "{booking:?}");

    let asked = stage.gpu_node(lost).await?.spec.check.map(|check| check.id);
    stage.lab.start_process(&kubelet)?;
    wait_for("the node to be unsold", LOSS_BOUND, || async { Ok(stage.hold(lost).await? == "unsold") }).await?;
    ensure!(
        stage.alive(lost, "acme").await?.is_empty(),
        "a node that returned was opened with a container of acme's on it"
    );
    stage.ensure_clean_answer(lost).await?;
    ensure!(
        stage.gpu_node(lost).await?.spec.check.map(|check| check.id) != asked,
        "it was not looked at after its return"
    );
    let holds = stage.witness.holds(lost);
    let closed = (Some("closed".to_owned()), Some("closed".to_owned()));
    ensure!(holds.ends_with(&[closed, (Some("unsold".to_owned()), None)]), "it went {holds:?}");
    verify(stage).await
}

/// Somebody deletes the Node object of a held node, and its kubelet registers it anew under the same name.
async fn delete_and_register(stage: &Stage<'_>) -> Result<()> {
    stage.create("acme", &[deployment("serve", 1, 2)]).await?;
    stage.reserve("acme", "stays", GPUS, json!({})).await?;
    let nodes = stage.wait_active("acme", "stays").await?;
    let lost = nodes.first().context("no node")?;
    let refuge = stage.other(lost)?;
    stage.wait_running("acme", 1).await?;
    let uid = stage.spillway.node(lost).await?.metadata.uid;

    let kubelet = format!("kubelet-{}", stage.index(lost)?);
    stage.lab.kill_process(&kubelet)?;
    stage.lab.kubectl(&["delete", "node", lost]).await?;
    wait_for("the booking to have the other node", BOUND, || async {
        let stays = stage.spillway.reservation("acme", "stays").await?.context("it is gone")?;
        Ok(nodes_of(&stays) == [refuge.clone()])
    })
    .await?;
    ensure!(!stage.alive(lost, "acme").await?.is_empty(), "the container died with its node: this shows nothing");
    stage.lab.start_process(&kubelet)?;
    wait_for("the new node to be unsold", LOSS_BOUND, || async {
        // The node first: a container that runs when it is looked at later ran before, too.
        let node = stage.spillway.node(lost).await?;
        let hold = holds(&node).0.unwrap_or_default();
        let alive = stage.alive(lost, "acme").await?;
        if hold != "closed" && !alive.is_empty() {
            anyhow::bail!("it is {hold} with containers of acme's on it")
        }
        ensure!(node.metadata.uid != uid, "the old one is there still");
        Ok(hold == "unsold")
    })
    .await?;
    ensure!(stage.alive(lost, "acme").await?.is_empty(), "the new node was opened with containers of acme's on it");
    stage.ensure_clean_answer(lost).await?;
    let holds = stage.witness.holds(lost);
    let mut since_taken = holds.iter().skip_while(|(no_schedule, _)| no_schedule.is_none());
    ensure!(since_taken.all(|(no_schedule, _)| no_schedule.is_some()), "it was open to everybody: {holds:?}");
    let pods = stage.wait_running("acme", 1).await?;
    ensure!(pods.iter().all(|pod| node_of(pod) == Some(&refuge)), "{}", list(&pods));
    verify(stage).await
}
