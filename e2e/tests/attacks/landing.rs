//! Where pods land and where they stay: what admission lets through must still not run on what others hold.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use crate::row::{Call, Who, create, merge, pods};
use crate::stage::{PLAIN, Stage, pod};

/// Where a pod must be.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Lands {
    /// On this node.
    On(&'static str),
    /// Nowhere.
    Nowhere,
}

fn host(node: &str) -> Value {
    json!({"spec": {"nodeSelector": {"kubernetes.io/hostname": node}}})
}

fn labelled(reservation: &str) -> Value {
    json!({"metadata": {"labels": {"spillway.dev/reservation": reservation}}})
}

fn match_fields(node: &str) -> Value {
    let term = json!({"matchFields": [{"key": "metadata.name", "operator": "In", "values": [node]}]});
    json!({"spec": {"affinity": {"nodeAffinity": {
        "requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [term]},
    }}}})
}

fn init_only() -> Value {
    let container = json!({"name": "i", "image": "localhost/none", "resources": {"limits": {"nvidia.com/gpu": "1"}}});
    json!({"spec": {"initContainers": [container]}})
}

/// The table of landings: namespace, name, GPUs, what else, where.
fn landings(stage: &Stage) -> Vec<(&'static str, &'static str, u32, Value, Lands)> {
    use Lands::{Nowhere, On};
    let own = json!({"key": "spillway.dev/hold", "operator": "Equal", "value": stage.acme});
    let mut by_hand = host("gpu-0");
    by_hand["spec"]["tolerations"] = json!([own]);
    let urgent = |node: &str| {
        let mut more = host(node);
        more["spec"]["priorityClassName"] = json!("high");
        more
    };
    vec![
        ("acme", "unchanged", 1, json!({}), On("gpu-0")),
        ("acme", "by-reservation", 1, labelled("r1"), On("gpu-0")),
        ("acme", "wrong-reservation", 1, labelled("r2"), Nowhere),
        ("acme", "init-only", 0, init_only(), On("gpu-0")),
        ("acme", "without-gpus", 0, json!({}), On(PLAIN)),
        ("acme", "without-gpus-at-home", 0, by_hand, On("gpu-0")),
        ("acme", "to-beta", 1, host("gpu-1"), Nowhere),
        ("acme", "to-beta-by-field", 1, match_fields("gpu-1"), Nowhere),
        ("acme", "to-unsold", 1, host("gpu-2"), Nowhere),
        ("acme", "to-closed", 1, host("gpu-4"), Nowhere),
        ("acme", "without-gpus-to-beta", 0, host("gpu-1"), Nowhere),
        ("acme", "more-than-held", 8, json!({}), Nowhere),
        ("acme", "urgent-to-beta", 8, urgent("gpu-1"), Nowhere),
        ("beta", "unchanged", 8, json!({}), On("gpu-1")),
        ("own", "unchanged", 1, json!({}), On("gpu-2")),
        ("own", "urgent-to-sold", 8, urgent("gpu-1"), Nowhere),
        ("own", "to-closed", 1, host("gpu-4"), Nowhere),
        ("free", "with-gpus", 1, json!({}), Nowhere),
        ("free", "without-gpus-to-sold", 0, host("gpu-1"), Nowhere),
        (
            "gpu-operator",
            "anywhere",
            0,
            {
                let mut more = host("gpu-4");
                more["spec"]["tolerations"] = json!([{"operator": "Exists"}]);
                more
            },
            On("gpu-4"),
        ),
    ]
}

/// Creates all of them, waits for those that run, and looks where the others are.
pub(crate) async fn pods_land_on_what_is_held(stage: &Stage) -> Result<Vec<String>> {
    let table = landings(stage);
    for (namespace, name, gpus, more, _) in &table {
        let who = if *namespace == "gpu-operator" { Who::Admin } else { Who::Editor(namespace) };
        stage.must(who, create(pods(namespace), pod(name, *gpus, more))).await?;
    }
    let mut wrong = Vec::new();
    for (namespace, name, _, _, lands) in &table {
        if let Lands::On(node) = lands {
            let at = stage.wait_running(namespace, name).await?;
            if at != *node {
                wrong.push(format!("{namespace}/{name} runs on {at}, not on {node}"));
            }
        }
    }
    tokio::time::sleep(Duration::from_secs(2)).await;
    for (namespace, name, _, _, lands) in &table {
        if *lands == Lands::Nowhere {
            if let Some(node) = stage.node_of(namespace, name).await? {
                wrong.push(format!("{namespace}/{name} runs on {node}, where it has no business"));
            }
        } else if !stage.exists(namespace, name).await? {
            wrong.push(format!("{namespace}/{name} is gone: preempted?"));
        }
    }
    Ok(wrong)
}

/// DaemonSets follow what their namespace may use; infrastructure runs everywhere, in every state of a node.
pub(crate) async fn daemonsets_follow_their_namespace(stage: &Stage) -> Result<Vec<String>> {
    let mut wrong = Vec::new();
    let plugin = json!([{"key": "nvidia.com/gpu", "operator": "Exists"}]);
    for (namespace, gpus, tolerations, nodes) in [
        ("acme", 1, json!([]), vec!["gpu-0"]),
        ("own", 1, json!([]), vec!["gpu-2"]),
        // The form of a device plugin: no toleration of ours in it, the policy adds that.
        ("gpu-operator", 0, plugin, vec![PLAIN, "gpu-0", "gpu-1", "gpu-2", "gpu-3", "gpu-4"]),
    ] {
        let template =
            pod("x", gpus, &json!({"metadata": {"labels": {"app": "ds"}}, "spec": {"tolerations": tolerations}}));
        let daemonset = json!({
            "apiVersion": "apps/v1", "kind": "DaemonSet", "metadata": {"name": "ds"},
            "spec": {
                "selector": {"matchLabels": {"app": "ds"}},
                "template": {"metadata": {"labels": {"app": "ds"}}, "spec": template["spec"]},
            },
        });
        let path = format!("/apis/apps/v1/namespaces/{namespace}/daemonsets");
        stage.must(Who::Admin, create(&path, daemonset)).await?;
        let wanted: BTreeSet<String> = nodes.into_iter().map(str::to_owned).collect();
        let mut seen = BTreeSet::new();
        let waited = stage
            .lab
            .wait_for(&format!("the DaemonSet of {namespace}"), Duration::from_secs(30), || async {
                Ok(running(stage, namespace).await?.is_superset(&wanted))
            })
            .await;
        if waited.is_ok() {
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        seen.extend(running(stage, namespace).await?);
        if seen != wanted {
            wrong.push(format!("the DaemonSet of {namespace} runs on {seen:?}, not on {wanted:?}"));
        }
    }
    Ok(wrong)
}

/// Nodes on which the pods `ds-*` of a namespace run.
async fn running(stage: &Stage, namespace: &str) -> Result<BTreeSet<String>> {
    let list = stage.read(&format!("{}?labelSelector=app%3Dds", pods(namespace))).await?;
    let items = list["items"].as_array().context("a list of pods")?;
    let up = items.iter().filter(|pod| pod["status"]["phase"] == "Running");
    Ok(up.filter_map(|pod| pod["spec"]["nodeName"].as_str().map(str::to_owned)).collect())
}

/// A pod that was being bound while its node was sold: NoExecute ends it.
pub(crate) async fn a_late_bind_does_not_stay(stage: &Stage) -> Result<()> {
    stage.must(Who::Editor("free"), create(pods("free"), pod("late", 1, &json!({})))).await?;
    let binding = json!({
        "apiVersion": "v1", "kind": "Binding", "metadata": {"name": "late"},
        "target": {"apiVersion": "v1", "kind": "Node", "name": "gpu-1"},
    });
    stage.must(Who::Scheduler, create(format!("{}/late/binding", pods("free")), binding)).await?;
    stage.wait_gone("free", "late").await
}

/// A nomination by the administrator makes no victim.
pub(crate) async fn a_nomination_makes_no_victim(stage: &Stage) -> Result<()> {
    let path = format!("{}/urgent-to-beta/status", pods("acme"));
    stage.must(Who::Admin, merge(path, json!({"status": {"nominatedNodeName": "gpu-1"}}))).await?;
    tokio::time::sleep(Duration::from_secs(2)).await;
    ensure!(stage.exists("beta", "unchanged").await?, "beta's pod was preempted");
    let at = stage.node_of("acme", "urgent-to-beta").await?;
    ensure!(at.is_none(), "acme's pod was scheduled to {at:?}");
    Ok(())
}

/// Priorities work among a holder's own pods.
pub(crate) async fn a_holder_preempts_itself(stage: &Stage) -> Result<()> {
    stage.must(Who::Editor("gamma"), create(pods("gamma"), pod("low", 8, &json!({})))).await?;
    ensure!(stage.wait_running("gamma", "low").await? == "gpu-3", "gamma's pod is elsewhere");
    let high = pod("urgent", 8, &json!({"spec": {"priorityClassName": "high"}}));
    stage.must(Who::Editor("gamma"), create(pods("gamma"), high)).await?;
    ensure!(stage.wait_running("gamma", "urgent").await? == "gpu-3", "gamma's urgent pod is elsewhere");
    ensure!(!stage.exists("gamma", "low").await?, "gamma's other pod is still there");
    Ok(())
}

/// One write closes a node: whatever its holder did to stay there does not help, and infrastructure stays.
pub(crate) async fn a_closed_node_is_left(stage: &Stage) -> Result<()> {
    let budget = json!({
        "apiVersion": "policy/v1", "kind": "PodDisruptionBudget", "metadata": {"name": "never"},
        "spec": {"maxUnavailable": 0, "selector": {}},
    });
    stage.must(Who::Editor("beta"), create("/apis/policy/v1/namespaces/beta/poddisruptionbudgets", budget)).await?;
    // Until the disruption controller has seen the budget, an eviction would be allowed.
    stage
        .lab
        .wait_for("the budget to be counted", Duration::from_secs(20), || async {
            let budget = stage.read("/apis/policy/v1/namespaces/beta/poddisruptionbudgets/never").await?;
            Ok(budget["status"]["observedGeneration"] == budget["metadata"]["generation"])
        })
        .await?;
    stage.close("gpu-1", "beta").await?;
    stage.wait_gone("beta", "unchanged").await?;
    stage.must(Who::Editor("beta"), create(pods("beta"), pod("again", 8, &json!({})))).await?;
    tokio::time::sleep(Duration::from_secs(2)).await;
    ensure!(stage.node_of("beta", "again").await?.is_none(), "a pod landed on a closed node");
    ensure!(running(stage, "gpu-operator").await?.contains("gpu-1"), "infrastructure left a closed node");
    Ok(())
}

/// Without the mutating policy a tenant's device pods are refused, not let loose.
pub(crate) async fn without_the_pin_nothing_starts(stage: &Stage) -> Result<()> {
    let binding = "/apis/admissionregistration.k8s.io/v1/mutatingadmissionpolicybindings/spillway-tenant-pod";
    stage.must(Who::Admin, crate::row::delete(binding, json!({}))).await?;
    let call = create(format!("{}?dryRun=All", pods("acme")), pod("loose", 1, &json!({})));
    stage
        .lab
        .wait_for("the missing pin to be refused", Duration::from_secs(10), || async {
            Ok(matches!(call.send(&stage.lab, &Who::Editor("acme")).await?,
                Err(status) if status.message.contains("is MutatingAdmissionPolicy spillway-tenant-pod missing?")))
        })
        .await
}

/// The pods that the tables of changes and deletes are about.
pub(crate) async fn prepare(stage: &Stage) -> Result<()> {
    let make = async |who: Who, namespace: &str, name: &str, more: Value| -> Result<Value> {
        let call: Call = create(pods(namespace), pod(name, 8, &more));
        stage.must(who, call).await
    };
    make(Who::Editor("acme"), "acme", "running", json!({})).await?;
    stage.wait_running("acme", "running").await?;
    make(Who::Editor("acme"), "acme", "waiting", json!({})).await?;
    let limits = json!({"nvidia.com/gpu": "8", "cpu": "1", "memory": "1Gi"});
    let limited =
        json!({"spec": {"containers": [{"name": "c", "image": "localhost/none", "resources": {"limits": limits}}]}});
    make(Who::Editor("acme"), "acme", "parted", limited.clone()).await?;
    make(Who::Editor("acme"), "acme", "sized", limited).await?;
    make(Who::Editor("own"), "own", "owners", json!({})).await?;
    stage.wait_running("own", "owners").await?;
    // Never to be scheduled, so that it stays as it is.
    let gated = json!({"spec": {"priorityClassName": "high", "schedulingGates": [{"name": "example.com/wait"}]}});
    make(Who::Editor("acme"), "acme", "urgent", gated).await?;
    Ok(())
}
