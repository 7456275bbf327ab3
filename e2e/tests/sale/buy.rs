//! A node is bought, and what the tenant had deployed before runs on it, unchanged. Nobody else gets there. The contract is not ended by accident.

use std::collections::BTreeSet;

use anyhow::{Context as _, Result, ensure};
use kube::ResourceExt as _;
use serde_json::json;
use spillway_crds::Phase;
use spillway_lab::wait_for;

use crate::BOUND;
use crate::accounts::{capacity, verify};
use crate::stage::{GPUS, INFRASTRUCTURE, Stage, is_unschedulable, list, node_of};
use crate::workloads::{Work, daemon_set, deployment, job, pod, pod_on, stateful_set};

/// Who gets how many devices: five kinds of workload, six pods, on one node.
const WORKLOADS: [(&str, usize, usize); 5] =
    [("inference", 2, 1), ("trainer", 1, 1), ("batch", 1, 1), ("monitor", 1, 1), ("notebook", 1, 2)];

pub(crate) async fn tell(stage: &Stage<'_>) -> Result<()> {
    // Deployed before anything is bought. A DaemonSet makes no pod where no node would take one.
    stage
        .create(
            "acme",
            &[
                deployment("inference", 2, 1),
                stateful_set("trainer", 1, 1),
                job("batch", 1, 1, Work::Polite),
                daemon_set("monitor", 1),
                pod("notebook", 2, Work::Polite),
            ],
        )
        .await?;
    stage.create("beta", &[pod("hopeful", 8, Work::Polite)]).await?;
    stage.wait_pending("acme", 5).await?;
    stage.wait_pending("beta", 1).await?;

    let terms = json!({"tier": "Committed", "term": {"duration": "30m"}});
    stage.reserve("acme", "train", GPUS, terms).await?;
    let nodes = stage.wait_active("acme", "train").await?;
    let [node] = nodes.as_slice() else { anyhow::bail!("one node was bought, not {nodes:?}") };
    let phases = stage.witness.phases("acme/train");
    ensure!(
        phases.is_sorted() && phases.contains(&Phase::Preparing) && phases.ends_with(&[Phase::Active]),
        "it went {phases:?}"
    );
    stage.ensure_clean_answer(node).await?;
    let elsewhere = stage.other(node)?;
    stage.create("beta", &[pod_on("aimed", 1, node)]).await?;

    its_pods_run_there(stage, node, &elsewhere).await?;
    nobody_else_is_there(stage, node).await?;
    verify(stage).await?;
    capacity(stage).await?;
    it_is_not_ended_by_accident(stage).await?;

    // The owner of the contract says so.
    stage.give_up("acme", "train").await?;
    stage.wait_unsold().await?;
    stage.ensure_clean_answer(node).await?;
    ensure!(stage.alive(node, "acme").await?.is_empty(), "containers run on a node that was given back");
    wait_for("what a controller re-creates to be Pending again", BOUND, || async {
        let pods = stage.pods("acme").await?;
        let waiting = pods.iter().filter(|pod| is_unschedulable(pod)).count();
        ensure!(waiting >= 3 && pods.iter().all(is_unschedulable), "{}", list(&pods));
        Ok(true)
    })
    .await
}

/// Each pod is on the node that was bought and has devices of its own.
async fn its_pods_run_there(stage: &Stage<'_>, node: &str, elsewhere: &str) -> Result<()> {
    let count = WORKLOADS.iter().map(|(_, pods, _)| pods).sum();
    let pods = stage.wait_running("acme", count).await?;
    ensure!(pods.iter().all(|pod| node_of(pod) == Some(node)), "{node} was bought: {}", list(&pods));
    let mut devices = BTreeSet::new();
    let mut given = 0;
    for (app, count, each) in WORKLOADS {
        let of_it: Vec<_> =
            pods.iter().filter(|pod| pod.labels().get("app").is_some_and(|label| label == app)).collect();
        ensure!(of_it.len() == count, "{app} has {} pods", of_it.len());
        for pod in of_it {
            let its = stage.devices_of("acme", &pod.name_any()).await?;
            ensure!(
                its.len() == each && its.iter().all(|device| device.starts_with("lab-gpu-")),
                "{app} was given {its:?}"
            );
            given += its.len();
            devices.extend(its);
        }
    }
    ensure!(devices.len() == given, "{given} devices were given out and only {} are different", devices.len());
    ensure!(stage.alive(node, "acme").await?.len() == count, "containerd knows other containers than the API server");
    ensure!(stage.alive(elsewhere, "acme").await?.is_empty(), "acme has containers on a node that it has not bought");
    Ok(())
}

async fn nobody_else_is_there(stage: &Stage<'_>, node: &str) -> Result<()> {
    stage.wait_pending("beta", 2).await?;
    let there = stage.pods_on(node).await?;
    let allowed = |namespace: &str| namespace == "acme" || INFRASTRUCTURE.contains(&namespace);
    let foreign: Vec<_> = there.iter().filter(|pod| !allowed(&pod.namespace().unwrap_or_default())).cloned().collect();
    ensure!(foreign.is_empty(), "on {node}: {}", list(&foreign));
    ensure!(stage.alive(node, "beta").await?.is_empty(), "beta's containers run on acme's node");
    Ok(())
}

async fn it_is_not_ended_by_accident(stage: &Stage<'_>) -> Result<()> {
    let said = stage.refused(&["delete", "gpures", "train", "-n", "acme", "--wait=false"]).await?;
    ensure!(said.contains("is Committed and Active") && said.contains("spillway.dev/allow-early-end="), "{said}");
    for (kind, name) in [("tenant", "acme"), ("gpupool", crate::stage::POOL)] {
        wait_for(&format!("{kind} {name} to be refused to go"), BOUND, || async {
            let said = stage.refused(&["delete", kind, name, "--wait=false", "--dry-run=server"]).await?;
            Ok(said.contains("still has live bookings, 1 in all (acme/train)"))
        })
        .await?;
        stage.refused(&["delete", kind, name, "--wait=false"]).await?;
    }
    let train = stage.spillway.reservation("acme", "train").await?.context("acme/train is gone")?;
    ensure!(train.metadata.deletion_timestamp.is_none(), "a refused delete ends acme/train");
    Ok(())
}
