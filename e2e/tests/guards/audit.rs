//! Pods that came where they may not be while a policy was away.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use kube::api::{Api, DeleteParams};
use serde_json::json;
use spillway_crds::Phase;
use spillway_lab::Signal;
use spillway_lab::spillway::NAMESPACE;

use crate::stage::{BOUND, Stage, policies};

const BRAKE: &str = "spillway-audit-brake";

/// The node that acme holds by its reservation `stays`.
async fn held(stage: &Stage<'_>) -> Result<String> {
    let stays = stage.spillway.wait_phase("acme", "stays", Phase::Active, BOUND).await?;
    let nodes = stays.status.context("a status")?.nodes;
    Ok(nodes.first().context("a node")?.name.clone())
}

/// While the operator is frozen and a policy away, so many pods of beta come to a node of acme's; then both are back.
async fn intrude(stage: &mut Stage<'_>, node: &str, count: usize) -> Result<Vec<String>> {
    stage.operator.signal(Signal::SIGSTOP)?;
    policies(stage.spillway, "ValidatingAdmissionPolicyBinding")
        .delete("spillway-pod", &DeleteParams::default())
        .await?;
    stage.spillway.wait_for("the policy to be away", BOUND, || async { Ok(!stage.refuses_wildcards().await?) }).await?;
    let mut names = Vec::new();
    for _ in 0..count {
        let wildcard =
            json!({"tolerations": [{"operator": "Exists"}], "nodeSelector": {"kubernetes.io/hostname": node}});
        names.push(stage.create_pod("beta", 0, &wildcard).await?);
    }
    for name in &names {
        let pod = stage.wait_running("beta", name).await?;
        ensure!(pod.spec.and_then(|spec| spec.node_name).as_deref() == Some(node), "it runs elsewhere");
    }
    stage.operator.signal(Signal::SIGCONT)?;
    Ok(names)
}

pub(crate) async fn who_may_not_be_there_is_ended(stage: &mut Stage<'_>) -> Result<()> {
    let node = held(stage).await?;
    let legal = stage.create_pod("acme", 4, &json!({})).await?;
    stage.wait_running("acme", &legal).await?;
    let before = stage.residents().await?;
    let intruders = intrude(stage, &node, 2).await?;
    let pods = Api::<Pod>::namespaced(stage.spillway.client(), "beta");
    for name in &intruders {
        let gone =
            || async { Ok(pods.get_opt(name).await?.is_none_or(|pod| pod.metadata.deletion_timestamp.is_some())) };
        stage.spillway.wait_for("an intruder to be ended", BOUND, gone).await?;
    }
    stage.wait_metric("spillway_audit_deleted_pods_total", "2").await?;
    ensure!(stage.has_event("beta", "IllegalPod").await?, "nobody was told");
    ensure!(stage.refuses_wildcards().await?, "the policy is not back");
    stage.ensure_alive(&before).await
}

pub(crate) async fn too_many_stop_sales_and_end_nobody(stage: &mut Stage<'_>) -> Result<()> {
    let node = held(stage).await?;
    // Those of the story before count for a minute, and the brake holds for more than five.
    let intruders = intrude(stage, &node, 6).await?;
    stage.wait_metric("spillway_audit_brake", "1").await?;
    stage.wait_condition("Ready", false, "AuditBrake").await?;
    let before = stage.residents().await?;
    ensure!(intruders.iter().all(|name| before.contains_key(&("beta".to_owned(), name.clone()))), "some were ended");
    ensure!(stage.has_event(NAMESPACE, "AuditBrake").await?, "nobody was told");
    let generation = stage.spillway.copy_ledger().await?.root.spec.generation;
    stage.spillway.reserve("beta", "braked", json!({"devices": {"count": 8}})).await?;
    tokio::time::sleep(Duration::from_secs(4)).await;
    stage.ensure_alive(&before).await?;
    ensure!(stage.spillway.copy_ledger().await?.root.spec.generation == generation, "something was sold");

    // A new operator is no wiser.
    stage.operator.signal(Signal::SIGKILL)?;
    stage.operator = stage.spillway.start_operator("operator-a")?;
    stage.operator.wait_leading(BOUND).await?;
    stage.wait_metric("spillway_audit_brake", "1").await?;

    // The brake taken off while they are there: it is pulled again.
    let brakes = Api::<ConfigMap>::namespaced(stage.spillway.client(), NAMESPACE);
    let first = brakes.get(BRAKE).await?.metadata.uid;
    brakes.delete(BRAKE, &DeleteParams::default()).await?;
    stage
        .spillway
        .wait_for("the brake to be pulled again", BOUND, || async {
            Ok(brakes.get_opt(BRAKE).await?.is_some_and(|brake| brake.metadata.uid != first))
        })
        .await?;
    stage.ensure_alive(&before).await?;

    // A person ends them and takes it off.
    let pods = Api::<Pod>::namespaced(stage.spillway.client(), "beta");
    for name in &intruders {
        pods.delete(name, &DeleteParams::default()).await?;
    }
    brakes.delete(BRAKE, &DeleteParams::default()).await?;
    stage.spillway.wait_phase("beta", "braked", Phase::Active, BOUND).await?;
    stage.wait_metric("spillway_audit_brake", "0").await?;
    stage.spillway.delete_reservation("beta", "braked").await?;
    stage.spillway.wait_gone("beta", "braked", BOUND).await
}
