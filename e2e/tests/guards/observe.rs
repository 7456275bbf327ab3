//! From observing to enforcing and back, on nodes that are in use.

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::core::v1::Namespace;
use kube::api::{Api, ListParams};
use serde_json::json;
use spillway_crds::{Phase, names::ROLE_LABEL};
use spillway_lab::spillway::holds;

use crate::policies::upgrade;
use crate::stage::{BOUND, NODES, POOL, Residents, Stage, policies};

/// A pool that observes: no taint, no label, no refusal; reservations are told what would be. Gives the pods that were there.
pub(crate) async fn a_first_look_touches_nothing(stage: &Stage<'_>) -> Result<Residents> {
    let spillway = stage.spillway;
    spillway.create_pool(POOL, json!({"mode": "Observe"})).await?;
    stage.wait_condition("Observing", true, "Observing").await?;
    policies_rest(stage, true).await?;
    stage.label_nodes().await?;
    spillway.create_tenant("own", &["own"], json!({"owner": true})).await?;
    spillway.create_tenant("acme", &["acme"], json!({})).await?;
    spillway.create_tenant("beta", &["beta"], json!({})).await?;
    spillway
        .wait_for("the pods of a cluster in use", BOUND, || async { Ok(stage.residents().await?.len() >= 16 + NODES) })
        .await?;
    let residents = stage.residents().await?;

    spillway.reserve("acme", "fits", json!({"devices": {"count": 16}})).await?;
    spillway.reserve("beta", "waits", json!({"devices": {"count": 64}, "waitFor": "0s"})).await?;
    for (namespace, name, text) in [
        ("acme", "fits", "It would be booked now, on 2 nodes of pool `h200`."),
        ("beta", "waits", "It would be refused (NotNow)"),
    ] {
        spillway
            .wait_for(&format!("{name} to be told"), BOUND, || async {
                let status =
                    spillway.reservation(namespace, name).await?.and_then(|found| found.status).context("a status")?;
                let message = status.message.unwrap_or_default();
                ensure!(
                    status.phase == Phase::Waitlisted && status.reason.as_deref() == Some("Observing"),
                    "{message}"
                );
                ensure!(message.contains(text), "{message}");
                Ok(true)
            })
            .await?;
    }
    ensure!(spillway.copy_ledger().await?.root.spec.pools.is_empty(), "something was booked");
    // For up to a second after the bindings went the API server may act on one still; what that wrote is taken off again.
    spillway
        .wait_for("nodes without a hold", BOUND, || async {
            let nodes = spillway.nodes().await?;
            let held: Vec<_> = nodes.iter().map(holds).filter(|hold| *hold != (None, None)).collect();
            ensure!(held.is_empty(), "nodes were written: {held:?}");
            Ok(true)
        })
        .await?;
    let labelled = Api::<Namespace>::all(spillway.client()).list(&ListParams::default().labels(ROLE_LABEL)).await?;
    let names: Vec<_> = labelled.items.iter().filter_map(|found| found.metadata.name.clone()).collect();
    ensure!(names.is_empty() || names == ["spillway-selftest"], "namespaces were labelled: {names:?}");
    spillway.delete_reservation("beta", "waits").await?;
    stage.ensure_alive(&residents).await?;

    // An upgrade puts no policy in force for the moment until the operator has looked: it has nothing to mend.
    let restored = stage.operator.metric("spillway_policies_restored_total").await?;
    upgrade(stage, "120").await?;
    policies_rest(stage, true).await?;
    tokio::time::sleep(std::time::Duration::from_secs(1)).await;
    let after = stage.operator.metric("spillway_policies_restored_total").await?;
    ensure!(restored == after, "the upgrade put policies in force: {restored} were written before it, {after} after");
    Ok(residents)
}

/// The policies act or rest, all of them.
async fn policies_rest(stage: &Stage<'_>, rest: bool) -> Result<()> {
    let what = if rest { "the policies to rest" } else { "the policies to act" };
    stage
        .spillway
        .wait_for(what, BOUND, || async {
            let ours = ListParams::default().labels("app.kubernetes.io/name=spillway");
            let mutating = policies(stage.spillway, "MutatingAdmissionPolicyBinding").list(&ours).await?.items.len();
            let validating = policies(stage.spillway, "ValidatingAdmissionPolicyBinding").list(&ours).await?.items;
            let actions = if rest { json!(["Audit"]) } else { json!(["Deny"]) };
            ensure!((mutating == 0) == rest, "{mutating} mutating bindings");
            ensure!(validating.len() > 10, "{} validating bindings", validating.len());
            ensure!(
                validating.iter().all(|binding| binding.data["spec"]["validationActions"] == actions),
                "{validating:?}"
            );
            Ok(stage.refuses_wildcards().await? != rest)
        })
        .await
}

/// The pool enforces: policies act, nodes are unsold, and every pod that ran goes on, the system's that tolerate nothing of ours included.
pub(crate) async fn enforcing_ends_nothing_that_runs(stage: &Stage<'_>, residents: &Residents) -> Result<()> {
    let spillway = stage.spillway;
    spillway.delete_reservation("acme", "fits").await?;
    spillway.wait_gone("acme", "fits", BOUND).await?;
    spillway.patch_pool(POOL, json!({"mode": "Enforce"})).await?;
    spillway.wait_unsold(POOL, NODES, BOUND).await?;
    policies_rest(stage, false).await?;
    stage.wait_condition("Ready", true, "Selling").await?;
    for namespace in ["own", "acme", "beta"] {
        spillway.wait_holder(namespace, BOUND).await?;
    }
    // Longer than the audit suspects anybody, and than a self-test takes.
    tokio::time::sleep(std::time::Duration::from_secs(4)).await;
    stage.ensure_alive(residents).await?;
    ensure!(stage.operator.metric("spillway_audit_deleted_pods_total").await? == "0", "the audit ended something");

    // Before anything is sold the system's DaemonSets are rolled, as the book says, and get their toleration.
    spillway.lab().kubectl(&["annotate", "daemonset", "-n", "kube-system", "--all", "example.com/touched=1"]).await?;
    spillway
        .lab()
        .kubectl(&["rollout", "status", "daemonset", "-n", "kube-system", "device-plugin", "--timeout=60s"])
        .await?;
    Ok(())
}

/// Back to observing: as long as something is booked the policies hold it; then they rest, and nodes lose their holds.
pub(crate) async fn observing_waits_for_bookings_and_then_lets_go(
    stage: &Stage<'_>,
    residents: &Residents,
) -> Result<()> {
    let spillway = stage.spillway;
    // The system's were rolled; the owner's and nobody's are there still.
    let mut residents = residents.clone();
    residents.retain(|(namespace, _), _| namespace == "own" || namespace == "web");
    ensure!(residents.len() == 16, "{residents:?}");
    stage.ensure_alive(&residents).await?;
    spillway.patch_pool(POOL, json!({"mode": "Observe"})).await?;
    stage.wait_condition("Observing", false, "BookingsLeft").await?;
    ensure!(stage.refuses_wildcards().await?, "the policies rest while something is booked");
    for reservation in spillway.reservations().await? {
        let (namespace, name) = (reservation.metadata.namespace.unwrap(), reservation.metadata.name.unwrap());
        spillway.delete_reservation(&namespace, &name).await?;
    }
    stage.wait_condition("Observing", true, "Observing").await?;
    policies_rest(stage, true).await?;
    spillway
        .wait_for("all holds to be off", BOUND, || async {
            Ok(spillway.nodes().await?.iter().all(|node| holds(node) == (None, None)))
        })
        .await?;
    stage.ensure_alive(&residents).await
}
