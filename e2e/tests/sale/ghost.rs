//! A container that the API server knows nothing of: its node is nobody else's before it is dead.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::json;
use spillway_crds::Phase;

use crate::BOUND;
use crate::accounts::verify;
use crate::stage::{GPUS, Stage};
use crate::workloads::{Work, pod};

/// Seconds that the deaf pod is given first. A kubelet keeps the first grace that it was given, whatever comes later.
const GRACE: u32 = 14;
/// The ghost must have been seen for at least so long after the sale ended, or this test has shown nothing.
const SEEN: Duration = Duration::from_secs(4);

pub(crate) async fn tell(stage: &Stage<'_>) -> Result<()> {
    stage.create("acme", &[pod("ghost", 1, Work::Deaf(GRACE))]).await?;
    stage.reserve("acme", "haunted", GPUS, json!({})).await?;
    let nodes = stage.wait_active("acme", "haunted").await?;
    let node = nodes.first().context("no node")?;
    stage.wait_running("acme", 1).await?;
    // Both nodes: it cannot have one of them without the other.
    stage.reserve("gamma", "heir", 2 * GPUS, json!({})).await?;
    stage.wait_reason("gamma", "heir", Phase::Waitlisted, "InsufficientCapacity").await?;

    let delete = ["delete", "pod", "ghost", "-n", "acme", "--wait=false"];
    let forced = [&delete[..], &["--grace-period=0", "--force"]].concat();
    let said = stage.refused(&forced).await?;
    ensure!(said.contains("a forced delete hides a container that still runs"), "{said}");
    stage.lab.kubectl(&[&delete[..], &[&format!("--grace-period={GRACE}")]].concat()).await?;
    // A kubelet that hears of both deletions at once would give the second one's grace.
    let killing =
        ["get", "events", "-n", "acme", "--field-selector=reason=Killing,involvedObject.name=ghost", "-o", "name"];
    let heard = || async { Ok(!stage.lab.kubectl(&killing).await?.is_empty()) };
    stage.lab.wait_for("the kubelet to begin to end the ghost", BOUND, heard).await?;
    let glass = ["--as=lab:admin", "--as-group=system:masters", "--as-group=spillway:break-glass"];
    stage.lab.kubectl(&[&forced[..], &glass[..]].concat()).await?;
    ensure!(stage.pod("acme", "ghost").await?.is_none(), "a forced delete left the object");
    ensure!(!stage.alive(node, "acme").await?.is_empty(), "the container died with its object: this shows nothing");

    stage.spillway.delete_reservation("acme", "haunted").await?;
    let begun = Instant::now();
    let mut seen = Duration::ZERO;
    let mut told = false;
    loop {
        // The node first: a container that runs when it is looked at later ran before, too.
        let hold = stage.hold(node).await?;
        let at = begun.elapsed();
        let heir = stage.spillway.reservation("gamma", "heir").await?.and_then(|heir| heir.status).unwrap_or_default();
        let answer = stage.gpu_node(node).await?.status.and_then(|status| status.check);
        if stage.alive(node, "acme").await?.is_empty() {
            break;
        }
        seen = at;
        let waits = heir.phase == Phase::Waitlisted;
        let acmes = stage.spillway.reservation("acme", "haunted").await?.is_some();
        ensure!(
            waits && (hold == "closed" || acmes),
            "a ghost runs on {node}, which is {hold}; the heir is {}",
            heir.phase.as_str()
        );
        ensure!(hold != "unsold", "a ghost runs on {node}, which is open to the owner");
        told |= answer
            .is_some_and(|answer| answer.containers.iter().any(|one| one.namespace == "acme" && one.pod == "ghost"));
        ensure!(at < BOUND, "the ghost never goes");
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    ensure!(seen > SEEN && told, "the ghost was seen for {seen:.1?}, named by the agent: {told}");
    eprintln!("a ghost kept its node closed for {seen:.1?}");
    let inherited = stage.wait_active("gamma", "heir").await?;
    ensure!(inherited.len() == 2, "the heir got {inherited:?}");
    stage.ensure_clean_answer(node).await?;
    verify(stage).await
}
