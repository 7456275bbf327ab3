//! `spillway preflight` says what the policies then do.

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use spillway_lab::spillway::{CHART, NAMESPACE, Spillway};
use spillway_lab::{Lab, LabOptions, Size};

use crate::cli::spillway;

/// Names of templates, what is in them, and whether a pod of them is refused.
fn templates() -> Vec<(&'static str, Value, bool)> {
    vec![
        ("plain", json!({}), false),
        ("keyed", json!({"tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists"}]}), false),
        ("keyless", json!({"tolerations": [{"operator": "Exists"}]}), true),
        ("keyless-effect", json!({"tolerations": [{"operator": "Exists", "effect": "NoSchedule"}]}), true),
        ("unsold", json!({"tolerations": [{"key": "spillway.dev/hold", "value": "unsold"}]}), true),
        ("any-hold", json!({"tolerations": [{"key": "spillway.dev/hold", "operator": "Exists"}]}), true),
        ("named-node", json!({"nodeName": "gpu-1"}), true),
        ("long-grace", json!({"terminationGracePeriodSeconds": 3600}), false),
    ]
}

fn spec(more: &Value) -> Value {
    let mut spec = json!({"containers": [{"name": "main", "image": "example.com/main"}]});
    if let (Some(spec), Some(more)) = (spec.as_object_mut(), more.as_object()) {
        spec.extend(more.clone());
    }
    spec
}

async fn create(lab: &Lab, object: &Value) -> Result<String> {
    lab.kubectl_with_input(&["create", "-f", "-"], &object.to_string()).await
}

#[tokio::test]
async fn what_it_says_is_what_the_policies_do() -> Result<()> {
    let lab = Lab::start(LabOptions::new(Size::Api)).await?;
    for namespace in ["apps", "monitoring"] {
        lab.kubectl(&["create", "namespace", namespace]).await?;
    }
    // No controller makes it on a bare API server.
    lab.kubectl(&["create", "serviceaccount", "default", "-n", "apps"]).await?;
    for (name, more, _) in templates() {
        let labels = json!({"app": name});
        create(&lab, &json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name, "namespace": "apps"},
            "spec": {"selector": {"matchLabels": labels}, "template": {"metadata": {"labels": labels}, "spec": spec(&more)}}}))
        .await?;
    }
    create(&lab, &json!({"apiVersion": "apps/v1", "kind": "DaemonSet", "metadata": {"name": "exporter", "namespace": "monitoring"},
        "spec": {"selector": {"matchLabels": {"app": "e"}}, "template": {"metadata": {"labels": {"app": "e"}},
            "spec": spec(&json!({"tolerations": [{"operator": "Exists"}]}))}}}))
    .await?;

    // Before anything of Spillway is there.
    let said = spillway(&lab, &["preflight", "-o", "json"]).await?;
    said.expect(1, &["the chart's defaults"])?;
    let answer: Value = serde_json::from_str(&said.out).context("its JSON")?;
    let refused = |object: &str| {
        answer["findings"].as_array().is_some_and(|all| {
            all.iter().any(|one| one["severity"] == "Refused" && one["object"] == object && one["remedy"] != "")
        })
    };
    for (name, _, expected) in templates() {
        ensure!(refused(&format!("Deployment/apps/{name}")) == expected, "{name}: {answer}");
    }
    ensure!(refused("DaemonSet/monitoring/exporter"), "{answer}");
    spillway(&lab, &["preflight", "--fail-on", "never"]).await?.expect(0, &["KeylessToleration", "What to do:"])?;

    // And after: the policies do what was said, and the values are those of the release.
    let stage = Spillway::install_with(
        &lab,
        &["operator.replicas=0", "agent.enabled=false", "infrastructureNamespaces={monitoring}"],
    )
    .await?;
    for (name, more, expected) in templates() {
        let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "apps"}, "spec": spec(&more)});
        let tried = lab.kubectl_with_input(&["create", "--dry-run=server", "-f", "-"], &pod.to_string()).await;
        let refused =
            matches!(&tried, Err(error) if format!("{error:#}").contains("ValidatingAdmissionPolicy 'spillway-"));
        ensure!(refused == expected && tried.is_err() == expected, "{name}: {tried:?}");
    }
    let said = spillway(&lab, &["preflight"]).await?;
    said.expect(1, &["the installed release", "kube-system,monitoring,spillway-system"])?;
    ensure!(!said.out.contains("DaemonSet/monitoring/exporter"), "{}", said.out);
    ensure!(stage.lab().helm(&["status", "spillway", "-n", NAMESPACE]).await.is_ok(), "{CHART} is not installed");
    lab.stop()
}
