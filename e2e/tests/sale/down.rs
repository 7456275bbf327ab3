//! No operator: nothing new is sold, what was sold goes on, and a tenant gains nothing.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt as _;
use kube::api::{Api, ListParams};
use serde_json::json;
use spillway_lab::spillway::NAMESPACE;
use spillway_lab::wait_for;

use crate::BOUND;
use crate::accounts::{capacity, verify};
use crate::stage::{GPUS, Stage, is_running, list, node_of, uids};
use crate::workloads::{Work, deployment, pod};

/// Whatever an operator would do, it has done by then.
const PATIENCE: Duration = Duration::from_secs(4);

pub(crate) async fn tell(stage: &Stage<'_>) -> Result<()> {
    stage.create("acme", &[deployment("serve", 3, 2)]).await?;
    stage.create("beta", &[pod("hopeful", 8, Work::Polite)]).await?;
    stage.reserve("acme", "holds", GPUS, json!({})).await?;
    let nodes = stage.wait_active("acme", "holds").await?;
    let node = nodes.first().context("no node")?;
    let before = stage.wait_running("acme", 3).await?;

    scale(stage, 0).await?;
    stage.reserve("beta", "wants", GPUS, json!({})).await?;
    let victim = before.first().context("no pod")?;
    stage.lab.kubectl(&["delete", "pod", "-n", "acme", &victim.name_any(), "--grace-period=1"]).await?;
    let after = stage.wait_running("acme", 3).await?;
    ensure!(after.iter().all(|pod| node_of(pod) == Some(node)), "{}", list(&after));
    let stayed: Vec<Pod> = before.iter().skip(1).cloned().collect();
    ensure!(
        uids(&stayed).iter().all(|uid| uids(&after).contains(uid)),
        "pods that nobody touched were ended: {}",
        list(&after)
    );
    tokio::time::sleep(PATIENCE).await;
    let wants = stage.spillway.reservation("beta", "wants").await?.context("beta/wants is gone")?;
    ensure!(wants.status.is_none(), "somebody answered without an operator: {:?}", wants.status);
    ensure!(stage.hold(&stage.other(node)?).await? == "unsold", "a node was written without an operator");
    stage.wait_pending("beta", 1).await?;

    scale(stage, 2).await?;
    let bought = stage.wait_active("beta", "wants").await?;
    ensure!(bought == [stage.other(node)?], "beta got {bought:?}");
    let hopeful = stage.wait_running("beta", 1).await?;
    ensure!(hopeful.iter().all(|pod| node_of(pod) == bought.first().map(String::as_str)), "{}", list(&hopeful));
    let now = stage.pods("acme").await?;
    ensure!(
        uids(&now) == uids(&after) && now.iter().all(is_running),
        "an operator that came back ended pods: {}",
        list(&now)
    );
    verify(stage).await?;
    capacity(stage).await
}

/// Sets the number of operators and waits for it.
async fn scale(stage: &Stage<'_>, replicas: u32) -> Result<()> {
    stage
        .lab
        .kubectl(&["scale", "deployment/spillway-operator", "-n", NAMESPACE, &format!("--replicas={replicas}")])
        .await?;
    if replicas > 0 {
        return stage.wait_operator().await;
    }
    let params = ListParams::default().labels("app.kubernetes.io/component=operator");
    wait_for("the operators to be gone", BOUND, || async {
        let pods = Api::<Pod>::namespaced(stage.spillway.client(), NAMESPACE).list(&params).await?;
        ensure!(pods.items.is_empty(), "{}", list(&pods.items));
        Ok(true)
    })
    .await
}
