//! The end of a term, with pods that do not want to go.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::json;
use spillway_crds::Phase;
use spillway_lab::wait_for;

use crate::BOUND;
use crate::stage::{GPUS, Stage, is_unschedulable, list, node_of, nodes_of};
use crate::workloads::{Work, deployment, job, no_disruption, pod};

/// Length of the term in seconds: the pods must run before it is over.
const TERM: i64 = 20;
/// Seconds that the deaf ones are given.
const GRACE: u32 = 3;
/// Longest time from the end of the term to the node's next state: the grace, and what two busy cores need.
const TURNOVER_MS: i64 = 30_000;

pub(crate) async fn tell(stage: &Stage<'_>) -> Result<()> {
    let mut pinned = pod("pinned", 1, Work::Polite);
    pinned["metadata"]["finalizers"] = json!(["example.org/keep"]);
    let mut slow = pod("slow", 1, Work::Deaf(GRACE));
    slow["spec"]["containers"][0]["lifecycle"] = json!({"preStop": {"exec": {"command": ["sleep", "300"]}}});
    stage
        .create(
            "acme",
            &[
                pod("deaf", 1, Work::Deaf(GRACE)),
                pinned,
                slow,
                no_disruption("guarded"),
                deployment("guarded", 2, 1),
                job("again", 2, 1, Work::Deaf(GRACE)),
            ],
        )
        .await?;
    stage.reserve("acme", "term", GPUS, json!({"tier": "Committed", "term": {"duration": format!("{TERM}s")}})).await?;
    let active = stage.spillway.wait_phase("acme", "term", Phase::Active, BOUND).await?;
    let nodes = nodes_of(&active);
    let node = nodes.first().context("no node")?;
    let pods = stage.wait_running("acme", 7).await?;
    ensure!(pods.iter().all(|pod| node_of(pod) == Some(node)), "{}", list(&pods));
    let booking = active.status.and_then(|status| status.booking).context("no booking")?;
    let active_at = booking.active_at.context("no start")?.0.as_millisecond();
    let end = booking.ends_at.context("no end")?.0.as_millisecond();
    ensure!(end - active_at == TERM * 1000, "the term is {} ms", end - active_at);
    // A budget that lets nobody go does what it is for: only the end of the term does not ask it.
    let said = stage
        .refused(&["drain", node, "--pod-selector=app=guarded", "--timeout=2s", "--disable-eviction=false"])
        .await?;
    ensure!(said.contains("disruption budget") || said.contains("global timeout"), "{said}");
    stage.lab.kubectl(&["uncordon", node]).await?;

    let bound = Duration::from_millis(u64::try_from(TERM * 1000 + TURNOVER_MS)?);
    wait_for("the node to be unsold again", bound, || async { Ok(stage.hold(node).await? == "unsold") }).await?;
    let took = jiff::Timestamp::now().as_millisecond() - end;
    let alive = stage.alive(node, "acme").await?;
    ensure!(alive.is_empty(), "the node was opened, and these containers run there: {alive:?}");
    stage.ensure_clean_answer(node).await?;
    eprintln!("the node was unsold {took} ms after the end of the term");
    ensure!(took < TURNOVER_MS, "the node came back {took} ms after the end of the term");

    let ended = stage.spillway.wait_phase("acme", "term", Phase::Ended, BOUND).await?.status.unwrap_or_default();
    let metered = ended.meter.context("no meter")?.device_milliseconds;
    ensure!(metered == GPUS * TERM * 1000, "it was metered {metered} device-milliseconds");
    ensure!(ended.reason.as_deref() == Some("TermOver"), "it ended by {:?}", ended.reason);
    let phases = stage.witness.phases("acme/term");
    ensure!(phases.is_sorted() && phases.contains(&Phase::Ending), "it went {phases:?}");

    // What its controllers made anew waits; the object with the finalizer stays and does no harm.
    wait_for("replacements to be Pending", BOUND, || async {
        let mut pods = stage.pods("acme").await?;
        pods.retain(|pod| !matches!(crate::stage::phase_of(pod), "Succeeded" | "Failed"));
        ensure!(pods.len() == 4 && pods.iter().all(is_unschedulable), "{}", list(&pods));
        Ok(true)
    })
    .await?;
    let pinned = stage.pod("acme", "pinned").await?.context("the pod with a finalizer is gone")?;
    ensure!(pinned.metadata.deletion_timestamp.is_some(), "nobody asked the pod with a finalizer to go");
    stage
        .lab
        .kubectl(&["patch", "pod", "pinned", "-n", "acme", "--type=merge", "-p", r#"{"metadata":{"finalizers":null}}"#])
        .await?;
    Ok(())
}
