//! What a bare API server lacks, played by the test: kubelets that end pods, agents that answer, a scheduler that binds.

use std::time::Duration;

use anyhow::{Context as _, Result};
use k8s_openapi::api::core::v1::{Pod, ServiceAccount};
use kube::api::{Api, DeleteParams, ListParams, ObjectMeta, Patch, PatchParams, PostParams};
use kube::{Client, ResourceExt as _};
use serde_json::json;
use spillway_crds::GpuNode;
use spillway_lab::spillway::Spillway;
use tokio::task::JoinHandle;

/// Kubelets and agents of all nodes, until dropped.
#[derive(Debug)]
pub(crate) struct StandIn(JoinHandle<()>);

impl Drop for StandIn {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl StandIn {
    pub(crate) fn start(spillway: &Spillway<'_>) -> Result<Self> {
        let client = spillway.break_glass()?;
        Ok(Self(tokio::spawn(async move {
            loop {
                if let Err(error) = turn(&client).await {
                    eprintln!("the stand-in for kubelets: {error:#}");
                }
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        })))
    }
}

async fn turn(client: &Client) -> Result<()> {
    let pods = Api::<Pod>::all(client.clone())
        .list(&ListParams::default().fields("spec.nodeName!="))
        .await
        .context("listing pods")?;
    for pod in pods.items.iter().filter(|pod| pod.metadata.deletion_timestamp.is_some()) {
        let api = Api::<Pod>::namespaced(client.clone(), &pod.namespace().unwrap_or_default());
        let now = DeleteParams { grace_period_seconds: Some(0), ..DeleteParams::default() };
        match api.delete(&pod.name_any(), &now).await {
            Err(kube::Error::Api(status)) if status.code == 404 => {}
            result => drop(result.context("ending a pod")?),
        }
    }
    let api = Api::<GpuNode>::all(client.clone());
    for node in api.list(&ListParams::default()).await.context("listing GpuNodes")?.items {
        let asked = node.spec.check.as_ref().map(|check| check.id.as_str());
        let answered = node.status.as_ref().and_then(|status| status.check.as_ref()).map(|check| check.id.as_str());
        if let Some(id) = asked.filter(|_| asked != answered) {
            let now = jiff::Timestamp::now().to_string();
            let check = json!({"id": id, "nodeUid": node.spec.node_uid, "bootId": "", "observedAt": now, "total": 0});
            let patch = Patch::Merge(json!({"status": {"check": check}}));
            api.patch_status(&node.name_any(), &PatchParams::default(), &patch)
                .await
                .context("answering for an agent")?;
        }
    }
    Ok(())
}

/// Makes a pod, with limits of CPU and memory beside its devices.
pub(crate) async fn waiting_pod(spillway: &Spillway<'_>, namespace: &str, name: &str, gpus: u32) -> Result<()> {
    let accounts = Api::<ServiceAccount>::namespaced(spillway.client(), namespace);
    let account = ServiceAccount {
        metadata: ObjectMeta { name: Some("default".to_owned()), ..Default::default() },
        ..Default::default()
    };
    match accounts.create(&PostParams::default(), &account).await {
        Err(kube::Error::Api(status)) if status.code == 409 => {}
        result => drop(result.context("making a ServiceAccount")?),
    }
    let mut limits = json!({"cpu": "1", "memory": "1Gi"});
    if gpus > 0 {
        limits["nvidia.com/gpu"] = json!(gpus.to_string());
    }
    let pod: Pod = serde_json::from_value(json!({
        "metadata": {"name": name},
        "spec": {
            "terminationGracePeriodSeconds": 5,
            "containers": [{"name": "c", "image": "none", "resources": {"limits": limits}}],
        },
    }))
    .context("a pod")?;
    let api = Api::<Pod>::namespaced(spillway.client(), namespace);
    api.create(&PostParams::default(), &pod).await.with_context(|| format!("making pod {namespace}/{name}"))?;
    Ok(())
}

/// Makes a pod and binds it to a node, as kube-scheduler would.
pub(crate) async fn bind_pod(
    spillway: &Spillway<'_>,
    namespace: &str,
    name: &str,
    node: &str,
    gpus: u32,
) -> Result<()> {
    waiting_pod(spillway, namespace, name, gpus).await?;
    let scheduler = spillway.lab().client_as("system:kube-scheduler", &["system:masters"], &[])?;
    let binding = json!({"apiVersion": "v1", "kind": "Binding", "metadata": {"name": name}, "target": {"apiVersion": "v1", "kind": "Node", "name": node}});
    let path = format!("/api/v1/namespaces/{namespace}/pods/{name}/binding");
    let request = tonic::codegen::http::Request::post(path)
        .header("content-type", "application/json")
        .body(binding.to_string().into_bytes())
        .context("a request")?;
    scheduler.request::<serde_json::Value>(request).await.with_context(|| format!("binding {namespace}/{name}"))?;
    let running = Patch::Merge(json!({"status": {"phase": "Running"}}));
    spillway_lab_status(spillway, namespace, name, &running).await
}

async fn spillway_lab_status(
    spillway: &Spillway<'_>,
    namespace: &str,
    name: &str,
    patch: &Patch<serde_json::Value>,
) -> Result<()> {
    let api = Api::<Pod>::namespaced(spillway.client(), namespace);
    api.patch_status(name, &PatchParams::default(), patch).await.context("a pod's status")?;
    Ok(())
}

/// Bound pods that are being deleted or are gone, of those named.
pub(crate) async fn pods_ending(spillway: &Spillway<'_>, pods: &[(&str, &str)]) -> Result<Vec<String>> {
    let mut ending = Vec::new();
    for (namespace, name) in pods {
        let pod = Api::<Pod>::namespaced(spillway.client(), namespace).get_opt(name).await.context("reading a pod")?;
        if pod.is_none_or(|pod| pod.metadata.deletion_timestamp.is_some()) {
            ending.push(format!("{namespace}/{name}"));
        }
    }
    Ok(ending)
}
