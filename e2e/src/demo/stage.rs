//! What the story stands on: the cluster, the chart, pools of real and fake nodes.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::core::v1::Node;
use kube::Api;
use kube::api::ListParams;
use serde_json::Value;
use spillway_crds::GpuPool;
use spillway_crds::names::{HOLD_TAINT, HOLD_UNSOLD};

use super::LAB;
use super::commands::Commands;
use super::fleet::{Fleet, Pool};
use super::teller::{Teller, Wait};
use crate::spillway::{CHART, NAMESPACE};
use crate::{Lab, LabOptions, Size, fake_node, paths, wait_for_value};

/// Devices of the real node.
const REAL_GPUS: u32 = 8;
/// Longest time from the chart's install to policies in force.
const POLICY_BOUND: Duration = Duration::from_secs(30);

/// Fake nodes that are created at a time.
const BATCH: usize = 100;
/// Nodes that may be on their way: two cores keep up with the heartbeats, agents' pods and checks of so many.
const IN_FLIGHT: usize = 300;
/// How long a batch, or the last nodes, may take.
const JOIN_BOUND: Duration = Duration::from_secs(180);
/// Lines of each answer among the logs of a failure.
const LOG_LINES: usize = 40;

/// The cluster with Spillway in it and a fleet that nobody has bought of yet.
pub(super) struct Stage {
    pub(super) lab: Lab,
    pub(super) commands: Commands,
    pub(super) fleet: Fleet,
    /// The pool of the real node.
    pub(super) real: Pool,
}

/// Brings everything up, step by step.
/// With `keep` the cluster outlives this process, whatever becomes of it.
pub(super) async fn set_up(teller: &mut Teller, fleet: Fleet, helm_args: &[String], keep: bool) -> Result<Stage> {
    let lab = start_kubernetes(teller, keep).await?;
    let kubeconfig = lab.kubeconfig();
    let commands = tokio::task::spawn_blocking(move || Commands::of_lab(kubeconfig))
        .await
        .context("looking for kubectl and helm")??;
    let real =
        Pool { name: "lab".to_owned(), sku: "lab-gpu".to_owned(), gpus: REAL_GPUS, nodes: lab.real_nodes().len() };
    let stage = Stage { lab, commands, fleet, real };
    let done = async {
        stage.install(teller, helm_args).await?;
        stage.declare_fleet(teller).await
    };
    match done.await {
        Ok(()) => Ok(stage),
        Err(error) => {
            super::teller::print(&format!("\nThe step failed: {error:#}\n\n{}", stage.logs().await));
            Err(error)
        }
    }
}

async fn start_kubernetes(teller: &mut Teller, keep: bool) -> Result<Lab> {
    teller.step("A real Kubernetes on this machine");
    tokio::task::spawn_blocking(super::take_down).await.context("taking an earlier demo down")??;
    let wait = teller
        .wait("starting etcd, the API server, controllers, the scheduler, and a node with containerd and kubelet");
    let mut options = LabOptions::new(Size::Node).named(LAB);
    options.gpus_per_node = REAL_GPUS;
    options.keep = keep;
    // For who looks on; 15 s are the default.
    options.controller_manager_args.push("--horizontal-pod-autoscaler-sync-period=2s".to_owned());
    let lab = Lab::start(options).await?;
    let version = lab.kubectl(&["get", "--raw", "/version"]).await?;
    let version: Value = serde_json::from_str(&version).context("the API server's version")?;
    let version = version.get("gitVersion").and_then(Value::as_str).unwrap_or_default();
    teller.done(
        wait,
        &format!(
            "Kubernetes {version} is up: one real node with {REAL_GPUS} GPUs that a device plugin of the lab plays"
        ),
    );
    Ok(lab)
}

impl Stage {
    pub(super) fn kubeconfig(&self) -> PathBuf {
        self.lab.kubeconfig()
    }

    async fn install(&self, teller: &mut Teller, helm_args: &[String]) -> Result<()> {
        teller.step("Spillway, by its Helm chart");
        let wait = teller.wait("building images of the operator, the agent, the gateway and the command line tool");
        let images = self.lab.load_product_images(&paths::binaries_dir()?).await?;
        teller.done(wait, &format!("{} images built and loaded into the node", images.len()));

        let socket = format!("agent.criSocket={}", self.lab.containerd_socket(0).display());
        let mut helm = vec!["helm", "install", "spillway", "charts/spillway", "-n", NAMESPACE, "--create-namespace"];
        helm.extend([
            "--set",
            "image.operator.tag=dev,image.agent.tag=dev,image.gateway.tag=dev,image.usage.tag=dev",
            "--set",
            &socket,
        ]);
        helm.extend(["--set", "gateway.enabled=true,gateway.storage.kind=Scratch,gateway.service.type=NodePort"]);
        // Its address is fixed, for the lab's pods have no DNS.
        helm.extend(["--set", "usage.enabled=true,usage.storage.kind=Scratch,usage.clusterIP=10.96.0.90"]);
        helm.extend(helm_args.iter().map(String::as_str));
        teller.command(&helm.join(" "), "");
        let real: Vec<&str> = helm.iter().map(|word| if *word == "charts/spillway" { CHART } else { word }).collect();
        self.commands.quiet(&real, "").await?;
        let wait = teller.wait("waiting for both operator pods, and for the policies to be in force");
        let rollout =
            ["kubectl", "rollout", "status", "deployment/spillway-operator", "-n", NAMESPACE, "--timeout=120s"];
        self.commands.quiet(&rollout, "").await?;
        self.wait_for_policies().await?;
        teller.done(wait, "2 operator pods are ready, one of them leads");
        Ok(())
    }

    /// The API server takes a moment to see new policies: one that refuses is tried.
    async fn wait_for_policies(&self) -> Result<()> {
        let probe = ["kubectl", "label", "namespace", "default", "spillway.dev/role=owner", "--dry-run=server"];
        crate::wait_for("the policies to be in force", POLICY_BOUND, || async {
            Ok(self.commands.run(&probe, "").await?.err.contains("denied"))
        })
        .await
    }

    async fn declare_fleet(&self, teller: &mut Teller) -> Result<()> {
        let fakes = self.fleet.nodes.len();
        teller.step(&format!(
            "The fleet: pool `lab` with the real node, and {fakes} fake nodes in {} pools, one for each SKU and GPUs a node",
            self.fleet.pools.len()
        ));
        teller.command("kubectl apply -f pools.yaml", "");
        self.commands.quiet(&["kubectl", "apply", "-f", "-"], &self.fleet.manifests(&self.real)).await?;
        for node in self.lab.real_nodes() {
            let label = format!("{}={}", spillway_crds::names::POOL_LABEL, self.real.name);
            self.commands.show(teller, &["kubectl", "label", "node", &node, &label], "").await?;
        }
        let wait = teller.wait("nodes join; each is closed at once, checked, then opened to the owner");
        let mut created = 0;
        for batch in self.fleet.nodes.chunks(BATCH) {
            fake_node::create(self.lab.client()?, batch).await?;
            created += batch.len();
            self.wait_unsold(created.saturating_sub(IN_FLIGHT), &wait).await?;
        }
        let total = fakes + self.real.nodes;
        self.wait_unsold(total, &wait).await?;
        teller.done(wait, &format!("all {total} nodes can be sold"));
        self.commands.show(teller, &["kubectl", "get", "gpupools"], "").await?;
        Ok(())
    }

    /// Waits until so many nodes are unsold. Asks the pools, whose status is small, and not for a thousand nodes each time.
    async fn wait_unsold(&self, count: usize, wait: &Wait) -> Result<()> {
        wait_for_value(&format!("{count} nodes to be unsold"), JOIN_BOUND, || async {
            let unsold = self.count_unsold().await?;
            wait.at(&format!("{unsold} nodes are checked and open"));
            Ok((unsold >= count).then_some(()))
        })
        .await
    }

    async fn count_unsold(&self) -> Result<usize> {
        let pools = Api::<GpuPool>::all(self.lab.client()?);
        let pools = pools.list(&ListParams::default()).await.context("listing the pools")?;
        let unsold = pools.into_iter().filter_map(|pool| usize::try_from(pool.status?.nodes.unsold).ok());
        Ok(unsold.sum())
    }

    /// Whether a node is open to the owner.
    pub(super) async fn is_unsold(&self, node: &str) -> Result<bool> {
        let node =
            Api::<Node>::all(self.lab.client()?).get(node).await.with_context(|| format!("reading node {node}"))?;
        let taints = node.spec.and_then(|spec| spec.taints).unwrap_or_default();
        Ok(taints.iter().any(|taint| taint.key == HOLD_TAINT && taint.value.as_deref() == Some(HOLD_UNSOLD)))
    }

    /// The name of the one real node.
    pub(super) fn real_node(&self) -> Result<String> {
        let nodes = self.lab.real_nodes();
        ensure!(nodes.len() == 1, "the demo has one real node, not {}", nodes.len());
        nodes.into_iter().next().context("no real node")
    }

    /// What the operator, the agent and the cluster said last.
    pub(super) async fn logs(&self) -> String {
        let selector = format!("--field-selector=spec.nodeName={}", self.real_node().unwrap_or_default());
        let agent = [
            "kubectl",
            "get",
            "pods",
            "-n",
            NAMESPACE,
            "-l",
            "app.kubernetes.io/component=agent",
            &selector,
            "-o",
            "name",
        ];
        // Without one its log is not there either, and says so.
        let agent = self.commands.quiet(&agent, "").await.unwrap_or_default();
        let mut text = String::new();
        for line in [
            ["kubectl", "logs", "-n", NAMESPACE, "-l", "app.kubernetes.io/component=operator", "--tail=15", "--prefix"]
                .as_slice(),
            ["kubectl", "logs", "-n", NAMESPACE, agent.trim(), "--tail=10"].as_slice(),
            ["kubectl", "get", "gpupools,tenants"].as_slice(),
            ["kubectl", "get", "gpures", "-A"].as_slice(),
            // There is an agent on every node, fake ones included.
            ["kubectl", "get", "pods", "-A", "-o", "wide", "-l", "app.kubernetes.io/component!=agent"].as_slice(),
            ["kubectl", "get", "events", "-A", "--field-selector=type=Warning"].as_slice(),
        ] {
            text.push_str(&format!("--- {}\n", line.join(" ")));
            let said = match self.commands.run(line, "").await {
                Ok(answer) => answer.out + &answer.err,
                Err(error) => format!("{error:#}"),
            };
            let lines: Vec<&str> = said.lines().collect();
            for line in lines.iter().skip(lines.len().saturating_sub(LOG_LINES)) {
                text.push_str(&format!("{line}\n"));
            }
        }
        text.push_str(&format!("--- logs of the cluster's own parts are in {}/logs\n", self.lab.dir().display()));
        text
    }

    /// What a person may try on the cluster that stays up.
    pub(super) fn what_next(&self) -> Result<String> {
        let mut folders: Vec<String> =
            self.commands.folders().iter().map(|folder| folder.display().to_string()).collect();
        folders.dedup();
        Ok(format!(
            "
What to try next:
  export KUBECONFIG={} PATH={}:$PATH
  kubectl get nodes -L spillway.dev/pool -o wide      all nodes; kubectl describe node {} shows its hold
  kubectl get gpures -A -w                            reservations as they change
  spillway explain acme/train                         why a reservation is where it is
  kubectl --as=acme-user -n acme get pods             acme's pods wait: buy again, and they run within seconds:
  kubectl --as=acme-user -n acme apply -f - <<EOF
{}EOF
",
            self.kubeconfig().display(),
            folders.join(":"),
            self.real_node()?,
            super::workloads::reservation(
                "again",
                "pool: lab, devices: {count: 8}, tier: Committed, term: {duration: 5m}"
            ),
        ))
    }
}
