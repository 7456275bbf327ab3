//! Pools, nodes, tenants and reservations.

use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use futures::{StreamExt as _, TryStreamExt as _};
use k8s_openapi::api::core::v1::{Namespace, Node};
use kube::api::{Api, DeleteParams, ListParams, ObjectMeta, Patch, PatchParams, PostParams};
use serde_json::{Value, json};
use spillway_crds::{
    GpuPool, GpuReservation, Phase, Tenant,
    names::{HOLD_TAINT, HOLDER_LABEL, POOL_LABEL},
};

use super::Spillway;
use crate::cluster_spec::Size;
use crate::fake_node::FakeNode;
use crate::wait::wait_for_value;

/// SKU of pools that do not say another.
pub const SKU: &str = "nvidia-h200-sxm";
/// Region of pools that do not say another.
pub const REGION: &str = "us-east";
/// How many objects are made at a time.
const PARALLEL: usize = 16;

/// The first object with what the second says instead, object by object.
fn merged(mut base: Value, over: &Value) -> Value {
    match (base.as_object_mut(), over.as_object()) {
        (Some(into), Some(over)) => {
            for (key, value) in over {
                let old = into.remove(key).unwrap_or(Value::Null);
                into.insert(key.clone(), merged(old, value));
            }
            base
        }
        _ => over.clone(),
    }
}

/// The node's `spillway.dev/hold` taints, as the values of `NoSchedule` and `NoExecute`.
pub fn holds(node: &Node) -> (Option<String>, Option<String>) {
    let taints = node.spec.as_ref().and_then(|spec| spec.taints.as_deref()).unwrap_or_default();
    let value = |effect: &str| {
        let taint = taints.iter().find(|taint| taint.key == HOLD_TAINT && taint.effect == effect)?;
        Some(taint.value.clone().unwrap_or_default())
    };
    (value("NoSchedule"), value("NoExecute"))
}

impl Spillway<'_> {
    /// Makes a pool of nodes with 8 devices that nobody checks (`nodeCheck: None`); `spec` says what is different.
    pub async fn create_pool(&self, name: &str, spec: Value) -> Result<GpuPool> {
        let base = json!({
            "sku": SKU, "region": REGION, "provenance": "Owned", "nodeCheck": "None",
            "devices": {"resource": "nvidia.com/gpu", "perNode": 8},
            "topology": ["topology.kubernetes.io/zone", "kubernetes.io/hostname"],
        });
        let pool = GpuPool::new(name, serde_json::from_value(merged(base, &spec)).context("a pool's spec")?);
        Api::all(self.client())
            .create(&PostParams::default(), &pool)
            .await
            .with_context(|| format!("making pool {name}"))
    }

    /// Changes a pool's spec by a merge patch.
    pub async fn patch_pool(&self, name: &str, spec: Value) -> Result<()> {
        let api = Api::<GpuPool>::all(self.client());
        let patch = Patch::Merge(json!({"spec": spec}));
        api.patch(name, &PatchParams::default(), &patch).await.with_context(|| format!("changing pool {name}"))?;
        Ok(())
    }

    /// A pool as it stands.
    pub async fn pool(&self, name: &str) -> Result<GpuPool> {
        Api::all(self.client()).get(name).await.with_context(|| format!("reading pool {name}"))
    }

    /// Adds fake nodes with 8 devices to a pool and waits until they are Ready: kwok's on a cluster, by hand on a bare API server.
    pub async fn add_nodes(&self, pool: &str, names: &[impl AsRef<str>]) -> Result<()> {
        let nodes: Vec<FakeNode> = names
            .iter()
            .map(|name| {
                FakeNode::new(name.as_ref(), "H200").label(POOL_LABEL, pool).label("topology.kubernetes.io/zone", "z1")
            })
            .collect();
        if self.lab().size() >= Size::Cluster {
            return self.lab().add_fake_nodes(&nodes).await;
        }
        let api = Api::<Node>::all(self.client());
        futures::stream::iter(&nodes)
            .map(|node| async {
                let object = node.to_object();
                api.create(&PostParams::default(), &object)
                    .await
                    .with_context(|| format!("making node {}", node.name))?;
                self.set_ready(&node.name, "True").await?;
                let status = json!({"status": {"capacity": object.status.as_ref().map(|status| &status.capacity),
                    "allocatable": object.status.as_ref().map(|status| &status.allocatable)}});
                self.patch_node_status(&node.name, status).await
            })
            .buffer_unordered(PARALLEL)
            .try_collect()
            .await
    }

    /// Writes a node's `Ready` condition with this moment's heartbeat, as its kubelet would.
    pub async fn set_ready(&self, node: &str, status: &str) -> Result<()> {
        let now = jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
        let condition = json!({"type": "Ready", "status": status, "reason": "Test", "message": "by hand",
            "lastHeartbeatTime": now, "lastTransitionTime": now});
        self.patch_node_status(node, json!({"status": {"conditions": [condition]}})).await
    }

    /// Writes into a node's status by a strategic merge patch.
    pub async fn patch_node_status(&self, node: &str, patch: Value) -> Result<()> {
        let api = Api::<Node>::all(self.client());
        let params = PatchParams::default();
        api.patch_status(node, &params, &Patch::Strategic(patch))
            .await
            .with_context(|| format!("writing the status of node {node}"))?;
        Ok(())
    }

    /// A node as it stands.
    pub async fn node(&self, name: &str) -> Result<Node> {
        Api::all(self.client()).get(name).await.with_context(|| format!("reading node {name}"))
    }

    /// All nodes of all pools.
    pub async fn nodes(&self) -> Result<Vec<Node>> {
        let params = ListParams::default().labels(POOL_LABEL);
        Ok(Api::all(self.client()).list(&params).await.context("listing nodes")?.items)
    }

    /// Waits until so many nodes of a pool are unsold.
    pub async fn wait_unsold(&self, pool: &str, count: usize, timeout: Duration) -> Result<()> {
        self.wait_for(&format!("{count} unsold nodes in pool {pool}"), timeout, || async {
            let unsold = self
                .nodes()
                .await?
                .iter()
                .filter(|node| {
                    node.metadata.labels.as_ref().and_then(|all| all.get(POOL_LABEL)).is_some_and(|of| of == pool)
                        && holds(node) == (Some("unsold".to_owned()), None)
                })
                .count();
            ensure!(unsold == count, "{unsold} are");
            Ok(true)
        })
        .await
    }

    /// Makes a tenant and its namespaces; `spec` says what is more.
    pub async fn create_tenant(&self, name: &str, namespaces: &[&str], spec: Value) -> Result<Tenant> {
        for namespace in namespaces {
            let object = Namespace {
                metadata: ObjectMeta { name: Some((*namespace).to_owned()), ..Default::default() },
                ..Default::default()
            };
            match Api::all(self.client()).create(&PostParams::default(), &object).await {
                Err(kube::Error::Api(status)) if status.code == 409 => {}
                result => drop(result.with_context(|| format!("making namespace {namespace}"))?),
            }
        }
        let tenant = Tenant::new(
            name,
            serde_json::from_value(merged(json!({"namespaces": namespaces}), &spec)).context("a tenant's spec")?,
        );
        Api::all(self.client())
            .create(&PostParams::default(), &tenant)
            .await
            .with_context(|| format!("making tenant {name}"))
    }

    /// Waits until the operator has labelled a namespace, so that its pods can land on what it holds; returns its holder id.
    pub async fn wait_holder(&self, namespace: &str, timeout: Duration) -> Result<String> {
        let api = Api::<Namespace>::all(self.client());
        wait_for_value(&format!("namespace {namespace} to be a tenant's"), timeout, || async {
            Ok(api.get(namespace).await?.metadata.labels.and_then(|labels| labels.get(HOLDER_LABEL).cloned()))
        })
        .await
    }

    /// Makes a reservation: `OnDemand`, in pools of the usual SKU and region unless `spec` names others.
    pub async fn reserve(&self, namespace: &str, name: &str, spec: Value) -> Result<GpuReservation> {
        let mut base = json!({"tier": "OnDemand"});
        if spec.get("pool").is_none() {
            base = json!({"tier": "OnDemand", "sku": SKU, "region": REGION});
        }
        let spec = serde_json::from_value(merged(base, &spec)).context("a reservation's spec")?;
        let api = Api::<GpuReservation>::namespaced(self.client(), namespace);
        let made = api.create(&PostParams::default(), &GpuReservation::new(name, spec)).await;
        made.with_context(|| format!("making reservation {namespace}/{name}"))
    }

    /// A reservation as it stands, if it is there.
    pub async fn reservation(&self, namespace: &str, name: &str) -> Result<Option<GpuReservation>> {
        let api = Api::<GpuReservation>::namespaced(self.client(), namespace);
        api.get_opt(name).await.with_context(|| format!("reading reservation {namespace}/{name}"))
    }

    /// All reservations.
    pub async fn reservations(&self) -> Result<Vec<GpuReservation>> {
        let api = Api::<GpuReservation>::all(self.client());
        Ok(api.list(&ListParams::default()).await.context("listing reservations")?.items)
    }

    /// Deletes a reservation, with what allows a commitment to end early; it is gone once the operator lets it go.
    pub async fn delete_reservation(&self, namespace: &str, name: &str) -> Result<()> {
        let api = Api::<GpuReservation>::namespaced(self.client(), namespace);
        let Some(object) = self.reservation(namespace, name).await? else { return Ok(()) };
        let uid = object.metadata.uid.unwrap_or_default();
        let patch = Patch::Merge(json!({"metadata": {"annotations": {spillway_crds::names::ALLOW_EARLY_END: uid}}}));
        match api.patch_metadata(name, &PatchParams::default(), &patch).await {
            // It was ending already, and went between the look and the patch.
            Err(kube::Error::Api(status)) if status.code == 404 => return Ok(()),
            result => result.with_context(|| format!("allowing {namespace}/{name} to end"))?,
        };
        match api.delete(name, &DeleteParams::default()).await {
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
            result => result.map(drop).with_context(|| format!("deleting reservation {namespace}/{name}")),
        }
    }

    /// Waits until a reservation is in a phase, and returns it. One that is over in another phase fails at once.
    pub async fn wait_phase(
        &self,
        namespace: &str,
        name: &str,
        phase: Phase,
        timeout: Duration,
    ) -> Result<GpuReservation> {
        let what = format!("reservation {namespace}/{name} to be {}", phase.as_str());
        let found = wait_for_value(&what, timeout, || async {
            let found =
                self.reservation(namespace, name).await?.with_context(|| format!("there is no {namespace}/{name}"))?;
            let status = found.status.clone().unwrap_or_default();
            if status.phase == phase || status.phase.is_final() {
                return Ok(Some(found));
            }
            bail!("it is {}: {}", status.phase.as_str(), status.message.unwrap_or_default())
        })
        .await?;
        let status = found.status.clone().unwrap_or_default();
        ensure!(
            status.phase == phase,
            "{what}: it is {}: {}",
            status.phase.as_str(),
            status.message.unwrap_or_default()
        );
        Ok(found)
    }

    /// Waits until a reservation is gone.
    pub async fn wait_gone(&self, namespace: &str, name: &str, timeout: Duration) -> Result<()> {
        self.wait_for(&format!("reservation {namespace}/{name} to be gone"), timeout, || async {
            Ok(self.reservation(namespace, name).await?.is_none())
        })
        .await
    }

    /// Whether a policy that refuses does so.
    pub(super) async fn refuses_role_label(&self) -> Result<bool> {
        let api = Api::<Namespace>::all(self.client());
        let patch = Patch::Merge(json!({"metadata": {"labels": {"spillway.dev/role": "owner"}}}));
        match api.patch("default", &PatchParams { dry_run: true, ..Default::default() }, &patch).await {
            Err(kube::Error::Api(status)) => Ok(status.message.contains("list the namespace in a Tenant")),
            Err(error) => Err(error).context("trying the policies"),
            Ok(_) => Ok(false),
        }
    }

    /// Whether the policy that closes new nodes does so.
    pub(super) async fn closes_new_nodes(&self) -> Result<bool> {
        let node = FakeNode::new("lab-policy-probe", "H200").label(POOL_LABEL, "probe").to_object();
        let params = PostParams { dry_run: true, ..Default::default() };
        let made = Api::<Node>::all(self.client()).create(&params, &node).await.context("trying the policies")?;
        Ok(holds(&made).0.is_some())
    }

    /// Whether the policy that gives reservations our finalizer does so.
    pub(super) async fn finalizes_reservations(&self) -> Result<bool> {
        let spec = json!({"pool": "probe", "devices": {"count": 1}, "tier": "OnDemand"});
        let spec = serde_json::from_value(spec).context("a reservation's spec")?;
        let params = PostParams { dry_run: true, ..Default::default() };
        let api = Api::<GpuReservation>::namespaced(self.client(), "default");
        let made =
            api.create(&params, &GpuReservation::new("lab-policy-probe", spec)).await.context("trying the policies")?;
        Ok(made.metadata.finalizers.is_some_and(|all| all.iter().any(|name| name == spillway_crds::names::FINALIZER)))
    }
}
