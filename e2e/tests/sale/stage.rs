//! The cluster: two real nodes of eight GPUs in one pool, Spillway in pods, three buyers and the owner.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt as _;
use kube::api::{Api, ListParams};
use serde_json::{Value, json};
use spillway_crds::{GpuNode, GpuReservation, Phase};
use spillway_lab::spillway::{Binaries, NAMESPACE, Spillway, holds};
use spillway_lab::{Lab, wait_for, wait_for_value};

use crate::BOUND;
use crate::witness::Witness;

/// The pool of the real nodes.
pub(crate) const POOL: &str = "real";
/// What it sells.
pub(crate) const SKU: &str = "lab-gpu";
/// Devices of a node.
pub(crate) const GPUS: i64 = 8;
/// Buyers and the owner, each with a namespace of the same name and a user `<name>-dev` who may edit it.
pub(crate) const TENANTS: [&str; 4] = ["acme", "beta", "gamma", "house"];
/// OnDemand devices that beta may have at once.
pub(crate) const BETAS_QUOTA: i64 = 8;
/// Namespaces whose pods may be on every node.
pub(crate) const INFRASTRUCTURE: [&str; 2] = ["kube-system", NAMESPACE];

/// The cluster.
pub(crate) struct Stage<'lab> {
    pub(crate) lab: &'lab Lab,
    pub(crate) spillway: Spillway<'lab>,
    pub(crate) witness: Witness,
}

impl<'lab> Stage<'lab> {
    /// Installs Spillway, its operator and agents in pods, and declares the pool and the tenants.
    pub(crate) async fn set_up(lab: &'lab Lab) -> Result<Self> {
        let begun = Instant::now();
        let binaries = tokio::task::spawn_blocking(Binaries::find).await.context("looking for the binaries")??;
        lab.load_product_images(binaries.cli.parent().context("the folder of the binaries")?).await?;
        let values = ["image.operator.tag=dev", "image.agent.tag=dev"];
        let spillway = Spillway::install_with(lab, &values).await?;
        let witness = Witness::start(&spillway.client());
        let stage = Self { lab, spillway, witness };
        stage.wait_operator().await?;
        stage
            .spillway
            .create_pool(POOL, json!({"sku": SKU, "nodeCheck": "Agent", "topology": ["kubernetes.io/hostname"]}))
            .await?;
        for tenant in TENANTS {
            let spec = match tenant {
                "beta" => json!({"quotas": [{"sku": SKU, "tier": "OnDemand", "limit": BETAS_QUOTA}]}),
                "house" => json!({"owner": true}),
                _ => json!({}),
            };
            stage.spillway.create_tenant(tenant, &[tenant], spec).await?;
            let user = format!("--user={tenant}-dev");
            lab.kubectl(&["create", "rolebinding", "staff", "-n", tenant, "--clusterrole=edit", &user]).await?;
        }
        for tenant in TENANTS {
            stage.spillway.wait_holder(tenant, BOUND).await?;
        }
        stage.wait_unsold().await?;
        eprintln!("Spillway sells {:.1?} after its install", begun.elapsed());
        Ok(stage)
    }

    /// Waits until both operator pods are ready.
    pub(crate) async fn wait_operator(&self) -> Result<()> {
        self.lab
            .kubectl(&["rollout", "status", "deployment/spillway-operator", "-n", NAMESPACE, "--timeout=90s"])
            .await
            .map(drop)
    }

    /// Waits until all nodes are unsold.
    pub(crate) async fn wait_unsold(&self) -> Result<()> {
        self.spillway.wait_unsold(POOL, self.lab.real_nodes().len(), BOUND).await
    }

    /// Reserves devices of the pool; `more` says on which terms.
    pub(crate) async fn reserve(&self, tenant: &str, name: &str, devices: i64, more: Value) -> Result<GpuReservation> {
        let mut spec = json!({"pool": POOL, "devices": {"count": devices}});
        for (key, value) in more.as_object().into_iter().flatten() {
            spec[key] = value.clone();
        }
        self.spillway.reserve(tenant, name, spec).await
    }

    /// Waits until a reservation is Active, and says on which nodes.
    pub(crate) async fn wait_active(&self, tenant: &str, name: &str) -> Result<Vec<String>> {
        let active = self.spillway.wait_phase(tenant, name, Phase::Active, BOUND).await?;
        Ok(nodes_of(&active))
    }

    /// Waits until a reservation waits for this reason, and returns the sentence that says why.
    pub(crate) async fn wait_reason(&self, tenant: &str, name: &str, phase: Phase, reason: &str) -> Result<String> {
        let status = self.spillway.wait_phase(tenant, name, phase, BOUND).await?.status.unwrap_or_default();
        let message = status.message.unwrap_or_default();
        ensure!(
            status.reason.as_deref() == Some(reason),
            "{tenant}/{name}: {:?} and not {reason}: {message}",
            status.reason
        );
        Ok(message)
    }

    /// Deletes a reservation, early if need be, and waits until it is gone.
    pub(crate) async fn give_up(&self, tenant: &str, name: &str) -> Result<()> {
        self.spillway.delete_reservation(tenant, name).await?;
        self.spillway.wait_gone(tenant, name, BOUND).await
    }

    /// Creates objects as the tenant's own user.
    pub(crate) async fn create(&self, tenant: &str, objects: &[Value]) -> Result<()> {
        let user = format!("--as={tenant}-dev");
        let manifests: Vec<String> = objects.iter().map(Value::to_string).collect();
        let args = [user.as_str(), "-n", tenant, "create", "-f", "-"];
        self.lab.kubectl_with_input(&args, &manifests.join("\n---\n")).await.map(drop)
    }

    /// The pods of a tenant, in order of name.
    pub(crate) async fn pods(&self, tenant: &str) -> Result<Vec<Pod>> {
        let api = Api::<Pod>::namespaced(self.spillway.client(), tenant);
        let mut pods =
            api.list(&ListParams::default()).await.with_context(|| format!("listing the pods of {tenant}"))?.items;
        pods.sort_by_key(kube::ResourceExt::name_any);
        Ok(pods)
    }

    /// A tenant's pod, if it is there.
    pub(crate) async fn pod(&self, tenant: &str, name: &str) -> Result<Option<Pod>> {
        Ok(self.pods(tenant).await?.into_iter().find(|pod| pod.name_any() == name))
    }

    /// The pods of the whole cluster that are bound to a node and not over, as `namespace/name`.
    pub(crate) async fn pods_on(&self, node: &str) -> Result<Vec<Pod>> {
        let params = ListParams::default().fields(&format!("spec.nodeName={node}"));
        let pods = Api::<Pod>::all(self.spillway.client()).list(&params).await.context("listing the pods of a node")?;
        Ok(pods.items.into_iter().filter(|pod| !matches!(phase_of(pod), "Succeeded" | "Failed")).collect())
    }

    /// Waits until exactly so many pods of a tenant run, nobody leaving, and returns them.
    pub(crate) async fn wait_running(&self, tenant: &str, count: usize) -> Result<Vec<Pod>> {
        wait_for_value(&format!("{count} pods of {tenant} to run"), BOUND, || async {
            let pods = self.pods(tenant).await?;
            let running: Vec<Pod> = pods.into_iter().filter(is_running).collect();
            ensure!(running.len() == count, "{} do", running.len());
            Ok(Some(running))
        })
        .await
    }

    /// Waits until the scheduler has looked at so many pods of a tenant and found no node for any of them.
    pub(crate) async fn wait_pending(&self, tenant: &str, count: usize) -> Result<()> {
        wait_for(&format!("{count} pods of {tenant} to be Pending"), BOUND, || async {
            let pods = self.pods(tenant).await?;
            ensure!(pods.len() == count && pods.iter().all(is_unschedulable), "{}", list(&pods));
            Ok(true)
        })
        .await
    }

    /// What the device plugin gave the container of a pod: the container prints it.
    pub(crate) async fn devices_of(&self, tenant: &str, pod: &str) -> Result<Vec<String>> {
        wait_for_value(&format!("{tenant}/{pod} to print its devices"), BOUND, || async {
            let log = self.lab.kubectl(&["logs", "-n", tenant, pod]).await?;
            let Some(line) = log.lines().find_map(|line| line.strip_prefix("GPUs: ")) else { return Ok(None) };
            Ok(Some(line.split(',').filter(|device| !device.is_empty()).map(str::to_owned).collect()))
        })
        .await
    }

    /// Containers of a tenant that really run on a node, whatever the API says. Asked of containerd itself.
    pub(crate) async fn alive(&self, node: &str, tenant: &str) -> Result<Vec<String>> {
        let index = self.index(node)?;
        let filter =
            format!("labels.\"io.cri-containerd.kind\"==container,labels.\"io.kubernetes.pod.namespace\"=={tenant}");
        let theirs = self.lab.ctr(index, &["containers", "list", "-q", &filter]).await?;
        let tasks = self.lab.ctr(index, &["tasks", "list"]).await?;
        let running = |id: &str| tasks.lines().any(|line| line.starts_with(id) && line.trim_end().ends_with("RUNNING"));
        Ok(theirs.lines().filter(|id| running(id)).map(str::to_owned).collect())
    }

    /// Which real node has this name.
    pub(crate) fn index(&self, node: &str) -> Result<u32> {
        let at = self
            .lab
            .real_nodes()
            .iter()
            .position(|name| name == node)
            .with_context(|| format!("no real node {node}"))?;
        Ok(u32::try_from(at)?)
    }

    /// The real node that is not this one.
    pub(crate) fn other(&self, node: &str) -> Result<String> {
        self.lab.real_nodes().into_iter().find(|name| name != node).context("no other node")
    }

    /// The hold taint of a node in `NoSchedule`.
    pub(crate) async fn hold(&self, node: &str) -> Result<String> {
        Ok(holds(&self.spillway.node(node).await?).0.unwrap_or_default())
    }

    /// What the agent of a node was asked and answered last.
    pub(crate) async fn gpu_node(&self, node: &str) -> Result<GpuNode> {
        Api::all(self.spillway.client()).get(node).await.with_context(|| format!("reading GpuNode {node}"))
    }

    /// The agent's last answer: it is to the last question, of this boot, and names nothing but infrastructure.
    pub(crate) async fn ensure_clean_answer(&self, node: &str) -> Result<()> {
        let object = self.spillway.node(node).await?;
        let boot = object.status.as_ref().and_then(|status| status.node_info.as_ref()).map(|info| info.boot_id.clone());
        let gpu_node = self.gpu_node(node).await?;
        let question = gpu_node.spec.check.context("the agent was asked nothing")?;
        let answer = gpu_node.status.and_then(|status| status.check).context("the agent has answered nothing")?;
        ensure!(answer.id == question.id, "the agent answered {} and was asked {}", answer.id, question.id);
        ensure!(
            Some(&answer.node_uid) == object.metadata.uid.as_ref() && gpu_node.spec.node_uid == answer.node_uid,
            "the answer is of another node"
        );
        ensure!(Some(&answer.boot_id) == boot.as_ref(), "the answer is of boot {} and not of {boot:?}", answer.boot_id);
        ensure!(answer.error.is_none() && answer.total > 0, "the agent saw nothing: {answer:?}");
        let foreign: Vec<_> =
            answer.containers.iter().filter(|one| !INFRASTRUCTURE.contains(&one.namespace.as_str())).collect();
        ensure!(foreign.is_empty(), "the node changed hands with these containers on it: {foreign:?}");
        Ok(())
    }

    /// Runs kubectl and returns what it was refused with.
    pub(crate) async fn refused(&self, args: &[&str]) -> Result<String> {
        match self.lab.kubectl(args).await {
            Ok(said) => bail!("kubectl {} was not refused: {said}", args.join(" ")),
            Err(error) => Ok(format!("{error:#}")),
        }
    }

    /// Ends what is left of a story: reservations, then workloads, and waits until every node is unsold.
    pub(crate) async fn clear(&self) -> Result<()> {
        for reservation in self.spillway.reservations().await? {
            self.give_up(&reservation.namespace().unwrap_or_default(), &reservation.name_any()).await?;
        }
        for tenant in TENANTS {
            let kinds = "deployments,statefulsets,daemonsets,jobs,poddisruptionbudgets,pods";
            self.lab.kubectl(&["delete", kinds, "--all", "-n", tenant, "--wait=false", "--ignore-not-found"]).await?;
        }
        for tenant in TENANTS {
            wait_for(&format!("the pods of {tenant} to be gone"), BOUND, || async {
                let pods = self.pods(tenant).await?;
                ensure!(pods.is_empty(), "{}", list(&pods));
                Ok(true)
            })
            .await?;
        }
        self.wait_unsold().await
    }
}

/// The nodes of a reservation.
pub(crate) fn nodes_of(reservation: &GpuReservation) -> Vec<String> {
    let nodes = reservation.status.as_ref().map(|status| status.nodes.as_slice()).unwrap_or_default();
    nodes.iter().map(|node| node.name.clone()).collect()
}

/// The node of a pod.
pub(crate) fn node_of(pod: &Pod) -> Option<&str> {
    pod.spec.as_ref()?.node_name.as_deref()
}

/// The phase of a pod.
pub(crate) fn phase_of(pod: &Pod) -> &str {
    pod.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or_default()
}

/// It runs, and nobody has asked it to go.
pub(crate) fn is_running(pod: &Pod) -> bool {
    phase_of(pod) == "Running" && pod.metadata.deletion_timestamp.is_none()
}

/// The scheduler has found no node for it.
pub(crate) fn is_unschedulable(pod: &Pod) -> bool {
    let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_deref()).unwrap_or_default();
    let tried = conditions.iter().any(|one| one.type_ == "PodScheduled" && one.status == "False");
    phase_of(pod) == "Pending" && node_of(pod).is_none() && tried
}

/// UIDs of pods.
pub(crate) fn uids(pods: &[Pod]) -> Vec<String> {
    let mut uids: Vec<String> = pods.iter().filter_map(|pod| pod.metadata.uid.clone()).collect();
    uids.sort();
    uids
}

/// Pods for a message.
pub(crate) fn list(pods: &[Pod]) -> String {
    let line = |pod: &Pod| {
        let leaving = if pod.metadata.deletion_timestamp.is_some() { ", leaving" } else { "" };
        format!("{} is {} on {:?}{leaving}", pod.name_any(), phase_of(pod), node_of(pod))
    };
    pods.iter().map(line).collect::<Vec<_>>().join("; ")
}

/// What operator, agents and the cluster said last, for somebody who must find out what went wrong.
pub(crate) async fn what_the_cluster_says(lab: &Lab) -> String {
    let mut text = String::new();
    for line in [
        ["get", "gpures,gpupools,tenants", "-A", "-o", "wide"].as_slice(),
        &["get", "gpunodes", "-o", "yaml"],
        &[
            "get",
            "nodes",
            "-o",
            "custom-columns=NAME:.metadata.name,TAINTS:.spec.taints[*],ANNOTATIONS:.metadata.annotations",
        ],
        &["get", "pods", "-A", "-o", "wide"],
        &["get", "events", "-A", "--field-selector=type=Warning"],
        &["logs", "-n", NAMESPACE, "-l", "app.kubernetes.io/component=agent", "--tail=15", "--prefix"],
        &["logs", "-n", NAMESPACE, "-l", "app.kubernetes.io/component=operator", "--tail=60", "--prefix"],
    ] {
        let said = tokio::time::timeout(Duration::from_secs(20), lab.kubectl(line)).await;
        let said = match said {
            Ok(Ok(said)) => said,
            Ok(Err(error)) => format!("{error:#}\n"),
            Err(_) => "no answer\n".to_owned(),
        };
        text.push_str(&format!("--- kubectl {}\n{said}", line.join(" ")));
    }
    text
}
