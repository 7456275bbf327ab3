//! Leaving: after `spillway eject` nodes, namespaces and DaemonSets are what they were before the installation.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::core::v1::Node;
use kube::api::{Api, PostParams};
use serde_json::{Value, json};
use spillway_crds::Phase;
use spillway_lab::spillway::{NAMESPACE, Operator, Spillway};
use spillway_lab::{FakeNode, Lab, LabOptions, Size};

use crate::BOUND;
use crate::cli::spillway;

/// What is compared: all but what the API server counts.
async fn objects(lab: &Lab) -> Result<BTreeMap<String, Value>> {
    let mut objects = BTreeMap::new();
    for kind in ["nodes", "namespaces", "daemonsets"] {
        let list: Value = serde_json::from_str(&lab.kubectl(&["get", kind, "-A", "-o", "json"]).await?)?;
        for mut object in list["items"].as_array().context("items")?.clone() {
            let name = format!("{kind} {}/{}", object["metadata"]["namespace"], object["metadata"]["name"]);
            if object["metadata"]["name"] == NAMESPACE || object["metadata"]["namespace"] == NAMESPACE {
                continue;
            }
            for field in ["resourceVersion", "generation", "managedFields"] {
                object["metadata"].as_object_mut().context("metadata")?.remove(field);
            }
            if let Some(annotations) = object["metadata"]["annotations"].as_object_mut() {
                annotations.remove("deprecated.daemonset.template.generation");
            }
            object.as_object_mut().context("an object")?.remove("status");
            objects.insert(name, object);
        }
    }
    Ok(objects)
}

fn same(before: &BTreeMap<String, Value>, after: &BTreeMap<String, Value>) -> Result<()> {
    for (name, object) in before {
        ensure!(after.get(name) == Some(object), "{name} was\n{object}\nand is\n{:?}", after.get(name));
    }
    Ok(())
}

async fn daemonset(lab: &Lab, namespace: &str, tolerations: &Value, devices: bool) -> Result<()> {
    let limits = if devices { json!({"nvidia.com/gpu": "1"}) } else { json!({}) };
    let object = json!({"apiVersion": "apps/v1", "kind": "DaemonSet", "metadata": {"name": "each", "namespace": namespace},
        "spec": {"selector": {"matchLabels": {"app": "e"}}, "template": {"metadata": {"labels": {"app": "e"}}, "spec": {
            "tolerations": tolerations,
            "containers": [{"name": "main", "image": "example.com/main", "resources": {"limits": limits}}]}}}});
    lab.kubectl_with_input(&["create", "-f", "-"], &object.to_string()).await.map(drop)
}

/// Stops the operator; until its Lease has run out it counts as running.
async fn stop(lab: &Lab, operator: Operator) -> Result<()> {
    operator.stop().await?;
    lab.wait_for("the Lease to run out", BOUND, || async {
        let said = spillway(lab, &["eject", "--dry-run"]).await?;
        Ok(!said.err.contains("leads as operator"))
    })
    .await
}

#[tokio::test]
async fn after_it_the_cluster_is_as_before() -> Result<()> {
    let lab = Lab::start(LabOptions::new(Size::Api)).await?;
    // A cluster in use, with taints, labels and tolerations of its own.
    for namespace in ["gpu-operator", "acme", "house", "apps"] {
        lab.kubectl(&["create", "namespace", namespace]).await?;
    }
    lab.kubectl(&["label", "namespace", "house", "pod-security.kubernetes.io/enforce=baseline"]).await?;
    daemonset(&lab, "gpu-operator", &json!([{"key": "nvidia.com/gpu", "operator": "Exists"}]), false).await?;
    daemonset(&lab, "house", &json!([]), true).await?;
    daemonset(&lab, "acme", &json!([]), true).await?;
    daemonset(&lab, "apps", &json!([{"operator": "Exists", "effect": "NoExecute"}]), false).await?;
    for name in ["gpu-0", "gpu-1", "cpu-0"] {
        let node = FakeNode::new(name, "H200").label("topology.kubernetes.io/zone", "z1").to_object();
        Api::<Node>::all(lab.client()?).create(&PostParams::default(), &node).await.context("making a node")?;
    }
    lab.kubectl(&["taint", "node", "gpu-0", "example.com/mine=yes:NoSchedule"]).await?;
    let before = objects(&lab).await?;

    // Spillway comes, sells, and is used.
    let stage = Spillway::install(&lab).await?;
    for name in ["gpu-0", "gpu-1"] {
        stage.set_ready(name, "True").await?;
        stage
            .patch_node_status(
                name,
                json!({"status": {"capacity": {"nvidia.com/gpu": "8", "cpu": "64", "memory": "256Gi", "pods": "110"},
            "allocatable": {"nvidia.com/gpu": "8", "cpu": "64", "memory": "256Gi", "pods": "110"}}}),
            )
            .await?;
        lab.kubectl(&["label", "node", name, "spillway.dev/pool=h200"]).await?;
    }
    stage.create_pool("h200", json!({})).await?;
    stage.create_tenant("acme", &["acme"], json!({})).await?;
    stage.create_tenant("house", &["house"], json!({"owner": true})).await?;
    let operator = stage.start_operator("operator-a")?;
    stage.wait_holder("acme", BOUND).await?;
    stage.wait_holder("house", BOUND).await?;
    stage.reserve("acme", "train", json!({"devices": {"count": 8}})).await?;
    stage.wait_phase("acme", "train", Phase::Active, BOUND).await?;
    for namespace in ["gpu-operator", "house", "acme", "apps"] {
        lab.kubectl(&["annotate", "daemonsets", "-n", namespace, "--all", "spillway.dev/touched=1"]).await?;
    }
    let used = objects(&lab).await?.into_values().map(|object| object.to_string()).collect::<String>();
    for text in ["spillway.dev/hold", "hold.spillway.dev/acme", "spillway.dev/role", "spillway.dev/generation"] {
        ensure!(used.contains(text), "nothing has {text}: {used}");
    }

    // It does not let go what is in use.
    spillway(&lab, &["eject", "--yes"]).await?.expect(2, &["leads as operator", "live booking"])?;
    stop(&lab, operator).await?;
    spillway(&lab, &["eject", "--yes"]).await?.expect(2, &["the ledger has 1 live booking", "--with-live-bookings"])?;
    let operator = stage.start_operator("operator-a")?;
    stage.delete_reservation("acme", "train").await?;
    stage.wait_gone("acme", "train", BOUND).await?;
    stage.wait_unsold("h200", 2, BOUND).await?;
    stop(&lab, operator).await?;

    // With the policies still there: past them, by breaking the glass.
    let untouched = objects(&lab).await?;
    spillway(&lab, &["eject"]).await?.expect(2, &["nobody can be asked"])?;
    spillway(&lab, &["eject", "--dry-run"])
        .await?
        .expect(0, &["Node/gpu-0", "Namespace/acme", "DaemonSet/gpu-operator/each"])?;
    same(&untouched, &objects(&lab).await?)?;
    spillway(&lab, &["eject", "--yes"]).await?.expect(0, &["Nothing of Spillway is left"])?;
    same(&before, &objects(&lab).await?)?;
    spillway(&lab, &["eject", "--yes"]).await?.expect(0, &["Nothing of Spillway is on nodes"])?;

    // And with the chart gone already.
    lab.helm(&["upgrade", "spillway", spillway_lab::spillway::CHART, "-n", NAMESPACE, "--reuse-values"]).await?;
    tokio::time::sleep(std::time::Duration::from_secs(2)).await;
    lab.kubectl(&["label", "node", "gpu-1", "spillway.dev/pool=h200"]).await?;
    let operator = stage.start_operator("operator-a")?;
    stage.wait_unsold("h200", 1, BOUND).await?;
    stage.wait_holder("acme", BOUND).await?;
    operator.stop().await?;
    lab.helm(&["uninstall", "spillway", "-n", NAMESPACE]).await?;
    lab.wait_for("the Lease to run out", BOUND, || async { Ok(spillway(&lab, &["eject", "--yes"]).await?.code == 0) })
        .await?;
    same(&before, &objects(&lab).await?)?;
    lab.stop()
}
