//! Policies that are deleted, weakened, upgraded, that cannot be restored, and that do not do what they say.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use kube::core::DynamicObject;
use serde_json::{Value, json};
use spillway_crds::Phase;
use spillway_lab::spillway::{CHART, NAMESPACE};

use crate::stage::{BOUND, POOL, Stage, policies};

const VALIDATING: &str = "ValidatingAdmissionPolicy";
const VALIDATING_BINDING: &str = "ValidatingAdmissionPolicyBinding";
const MUTATING_BINDING: &str = "MutatingAdmissionPolicyBinding";
/// A second, and what a machine with other things to do adds to it.
const SOON: Duration = Duration::from_secs(5);

async fn delete(stage: &Stage<'_>, kind: &str, name: &str) -> Result<()> {
    let done = policies(stage.spillway, kind).delete(name, &DeleteParams::default()).await;
    done.map(drop).with_context(|| format!("deleting {kind} {name}"))
}

/// Writes into a policy's spec, as an administrator's `kubectl edit` would.
async fn edit(stage: &Stage<'_>, kind: &str, name: &str, spec: Value) -> Result<()> {
    let params = PatchParams { field_manager: Some("kubectl-edit".to_owned()), ..PatchParams::default() };
    let done = policies(stage.spillway, kind).patch(name, &params, &Patch::Merge(json!({"spec": spec}))).await;
    done.map(drop).with_context(|| format!("editing {kind} {name}"))
}

async fn wait_back(stage: &Stage<'_>, kind: &str, name: &str, before: &Value) -> Result<()> {
    let took = stage
        .time(&format!("{kind} {name} to be back"), || async {
            Ok(stage.spec(kind, name).await?.as_ref() == Some(before))
        })
        .await?;
    ensure!(took < SOON, "{kind} {name} was back after {took:?}");
    Ok(())
}

pub(crate) async fn what_is_deleted_or_changed_comes_back(stage: &Stage<'_>) -> Result<()> {
    stage.wait_metric("spillway_sales_doubted", "0").await?;
    for (kind, name) in [
        (VALIDATING_BINDING, "spillway-pod"),
        (VALIDATING, "spillway-namespace"),
        (MUTATING_BINDING, "spillway-tenant-pod"),
        ("MutatingAdmissionPolicy", "spillway-node"),
    ] {
        let before = stage.spec(kind, name).await?.context("a policy")?;
        delete(stage, kind, name).await?;
        wait_back(stage, kind, name, &before).await?;
    }
    let weaker = [
        (VALIDATING, "spillway-pod", json!({"validations": [{"expression": "true", "message": "all is well"}]})),
        (VALIDATING, "spillway-pod", json!({"matchConditions": [{"name": "never", "expression": "false"}]})),
        (VALIDATING, "spillway-pod-delete", json!({"failurePolicy": "Ignore"})),
        (VALIDATING_BINDING, "spillway-pod", json!({"validationActions": ["Warn"]})),
        (
            VALIDATING_BINDING,
            "spillway-pod",
            json!({"matchResources": {"namespaceSelector": {"matchLabels": {"a": "b"}}}}),
        ),
    ];
    for (kind, name, spec) in weaker {
        let before = stage.spec(kind, name).await?.context("a policy")?;
        edit(stage, kind, name, spec).await?;
        wait_back(stage, kind, name, &before).await?;
    }
    // Nothing is sold before the policies have been tried again; then it is as before.
    stage.wait_metric("spillway_policies_wrong", "0").await?;
    stage.wait_metric("spillway_sales_doubted", "0").await?;
    ensure!(stage.refuses_wildcards().await?, "the policies are back and do nothing");
    ensure!(stage.has_event(NAMESPACE, "PolicyRestored").await?, "nobody was told");
    let restored: u32 = stage.operator.metric("spillway_policies_restored_total").await?.parse()?;
    ensure!(restored >= 9, "{restored} policies were restored");
    Ok(())
}

/// An upgrade with this grace cap.
pub(crate) async fn upgrade(stage: &Stage<'_>, cap: &str) -> Result<()> {
    let set = format!("operator.replicas=0,agent.enabled=false,graceCapSeconds={cap}");
    stage.spillway.lab().helm(&["upgrade", "spillway", CHART, "-n", NAMESPACE, "--set", &set]).await?;
    Ok(())
}

/// Whoever restores a policy must not come to own it: the next upgrade changes it as if nothing had been, and is not undone.
pub(crate) async fn an_upgrade_after_a_restore_meets_no_conflict(stage: &Stage<'_>) -> Result<()> {
    for (cap, text) in [("110", "1 to 110,"), ("120", "1 to 120,")] {
        upgrade(stage, cap).await?;
        let upgraded = || async {
            Ok(stage.spec(VALIDATING, "spillway-pod-delete").await?.unwrap_or_default().to_string().contains(text))
        };
        stage.spillway.wait_for("the upgrade to be in the policies", BOUND, upgraded).await?;
        stage.wait_metric("spillway_policies_wrong", "0").await?;
        tokio::time::sleep(Duration::from_secs(1)).await;
        ensure!(upgraded().await?, "the upgrade was undone");
    }
    stage.wait_metric("spillway_sales_doubted", "0").await
}

/// The operator loses the right to write policies, and one is deleted: nothing is sold until both are back.
pub(crate) async fn what_cannot_be_restored_stops_sales(stage: &Stage<'_>) -> Result<()> {
    let spillway = stage.spillway;
    let rules = spillway.lab().kubectl(&["get", "clusterrole", "spillway-operator", "-o", "json"]).await?;
    let mut role: Value = serde_json::from_str(&rules)?;
    role["metadata"] = json!({"name": "spillway-operator", "labels": role["metadata"]["labels"], "annotations": role["metadata"]["annotations"]});
    let whole = role.to_string();
    if let Some(rules) = role["rules"].as_array_mut() {
        rules.retain(|rule| {
            rule["apiGroups"] != json!(["admissionregistration.k8s.io"]) || rule["verbs"] == json!(["list", "watch"])
        });
    }
    spillway.lab().kubectl_with_input(&["replace", "-f", "-"], &role.to_string()).await?;
    tokio::time::sleep(Duration::from_secs(1)).await;

    let before = stage.spec(VALIDATING_BINDING, "spillway-pod").await?.context("a binding")?;
    let generation = spillway.copy_ledger().await?.root.spec.generation;
    delete(stage, VALIDATING_BINDING, "spillway-pod").await?;
    stage.wait_condition("Ready", false, "PoliciesWrong").await?;
    spillway.reserve("acme", "stays", json!({"devices": {"count": 8}})).await?;
    spillway.reserve("beta", "at-once", json!({"devices": {"count": 8}, "waitFor": "0s"})).await?;
    tokio::time::sleep(Duration::from_secs(4)).await;
    ensure!(spillway.copy_ledger().await?.root.spec.generation == generation, "something was written to the ledger");
    let status = spillway.reservation("acme", "stays").await?.and_then(|found| found.status).context("a status")?;
    ensure!(
        status.phase == Phase::Waitlisted && status.message.as_deref().unwrap_or_default().contains("PoliciesWrong"),
        "{status:?}"
    );
    let status = spillway.reservation("beta", "at-once").await?.and_then(|found| found.status).unwrap_or_default();
    ensure!(!status.phase.is_final(), "doubt refused somebody for good: {status:?}");

    spillway.lab().kubectl_with_input(&["replace", "-f", "-"], &whole).await?;
    spillway
        .wait_for("the binding to be back", BOUND, || async {
            Ok(stage.spec(VALIDATING_BINDING, "spillway-pod").await?.as_ref() == Some(&before))
        })
        .await?;
    spillway.wait_phase("acme", "stays", Phase::Active, BOUND).await?;
    spillway.wait_phase("beta", "at-once", Phase::Active, BOUND).await?;
    spillway.delete_reservation("beta", "at-once").await?;
    spillway.wait_gone("beta", "at-once", BOUND).await
}

/// All our policies are as they should be, and yet they do not do what they should: somebody's own policy lets a tenant's pods tolerate everything, so
/// that ours refuses them all. Only a try shows it.
pub(crate) async fn a_test_that_fails_stops_sales(stage: &Stage<'_>) -> Result<()> {
    let spillway = stage.spillway;
    let meta = |kind: &str| json!({"apiVersion": "admissionregistration.k8s.io/v1", "kind": kind, "metadata": {"name": "zz-helpful"}});
    let mut policy = meta("MutatingAdmissionPolicy");
    policy["spec"] = json!({
        "failurePolicy": "Fail", "reinvocationPolicy": "IfNeeded",
        "matchConstraints": {"resourceRules": [{"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["pods"]}],
            "namespaceSelector": {"matchLabels": {"spillway.dev/role": "tenant"}}},
        "matchConditions": [{"name": "not-yet", "expression": "!has(object.spec.tolerations) || !object.spec.tolerations.exists(t, !has(t.key) || t.key == '')"}],
        "mutations": [{"patchType": "JSONPatch", "jsonPatch": {"expression": "(has(object.spec.tolerations) ? [] : [JSONPatch{op: 'add', path: '/spec/tolerations', value: []}]) + [JSONPatch{op: 'add', path: '/spec/tolerations/-', value: Object.spec.tolerations{operator: 'Exists'}}]"}}],
    });
    let mut binding = meta(MUTATING_BINDING);
    binding["spec"] = json!({"policyName": "zz-helpful"});
    for (kind, object) in [("MutatingAdmissionPolicy", policy), (MUTATING_BINDING, binding)] {
        let object: DynamicObject = serde_json::from_value(object)?;
        policies(spillway, kind).create(&PostParams::default(), &object).await.context("somebody's policy")?;
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    // A test is made each minute, and after each change of ours: this saves the minute.
    delete(stage, VALIDATING_BINDING, "spillway-resize").await?;
    stage.wait_condition("Ready", false, "SelfTestFailed").await?;
    stage.wait_metric("spillway_self_test_failed", "1").await?;
    let generation = spillway.copy_ledger().await?.root.spec.generation;
    spillway.reserve("beta", "later", json!({"devices": {"count": 8}})).await?;
    spillway
        .wait_for("somebody to be told", BOUND, || async { stage.has_event(NAMESPACE, "SelfTestFailed").await })
        .await?;
    ensure!(spillway.copy_ledger().await?.root.spec.generation == generation, "something was written to the ledger");
    delete(stage, MUTATING_BINDING, "zz-helpful").await?;
    delete(stage, "MutatingAdmissionPolicy", "zz-helpful").await?;
    spillway.wait_phase("beta", "later", Phase::Active, BOUND).await?;
    stage.wait_metric("spillway_self_test_failed", "0").await?;
    spillway.delete_reservation("beta", "later").await?;
    spillway.wait_gone("beta", "later", BOUND).await
}

/// The operator lives on while the release goes, and brings nothing back.
pub(crate) async fn an_uninstall_is_not_fought(stage: &Stage<'_>) -> Result<()> {
    let spillway = stage.spillway;
    spillway.patch_pool(POOL, json!({"mode": "Enforce"})).await?;
    spillway.wait_for("the policies to act", BOUND, || async { stage.refuses_wildcards().await }).await?;
    spillway.lab().helm(&["uninstall", "spillway", "-n", NAMESPACE]).await?;
    tokio::time::sleep(Duration::from_secs(3)).await;
    for kind in [VALIDATING, VALIDATING_BINDING, "MutatingAdmissionPolicy", MUTATING_BINDING] {
        let ours = kube::api::ListParams::default().labels("app.kubernetes.io/name=spillway");
        let left = policies(spillway, kind).list(&ours).await?.items;
        ensure!(left.is_empty(), "{} {kind} objects came back", left.len());
    }
    Ok(())
}
