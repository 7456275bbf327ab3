//! Real nodes of a running lab: bringing them up, and what tests do with them.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::core::v1::Node;
use kube::Api;

use super::Lab;
use super::bring_up::{config_for, wait_alive};
use crate::certs::Authority;
use crate::cluster_spec::{LabOptions, Size};
use crate::command::checked;
use crate::control_plane::Plan;
use crate::device_plugin::{Devices, RESOURCE};
use crate::fake_node::is_ready;
use crate::image::{catalog, engine};
use crate::node::{self, PRIVATE_FOLDERS, RealNode, cgroup, network, process_name, sysctl};
use crate::{packages, paths};

/// A node is Ready after five seconds and offers its devices six seconds later, on an idle machine.
const NODE_BOUND: Duration = Duration::from_secs(120);

/// What the machine needs before the API server can listen where nodes reach it.
pub(super) async fn prepare_machine(lab: &Lab, options: &LabOptions) -> Result<()> {
    ensure!(paths::is_root(), "the size node needs root: it makes namespaces, bridges and cgroups");
    ensure!((1..=network::MAX_NODES).contains(&options.real_nodes), "a lab has 1 to {} real nodes", network::MAX_NODES);
    tokio::task::spawn_blocking(packages::install_missing).await.context("installing packages")??;
    lab.update_state(|state| {
        state.sysctls = sysctl::current();
        for folder in PRIVATE_FOLDERS.map(PathBuf::from) {
            // Its parents as well: all that is missing now is ours to remove.
            let mut missing: Vec<PathBuf> =
                folder.ancestors().take_while(|path| !path.exists()).map(Path::to_owned).collect();
            missing.reverse();
            state.folders.extend(missing);
        }
    })?;
    for folder in PRIVATE_FOLDERS {
        std::fs::create_dir_all(folder).with_context(|| format!("creating {folder}"))?;
    }
    network::create(lab)
}

/// Brings up all real nodes and waits until they are Ready with their devices.
pub(super) async fn start(lab: &Lab, plan: &Plan<'_>, authority: &Authority) -> Result<()> {
    let server = plan.server();
    let proxy = config_for(lab, plan, authority, "kube-proxy", "system:kube-proxy", &[])?;
    let images = tokio::task::spawn_blocking(catalog::base).await.context("building images")??;
    for index in 0..plan.options.real_nodes {
        let mut node = RealNode {
            index,
            options: plan.options,
            tools: plan.tools,
            lab_dir: &lab.dir,
            server: &server,
            holder: None,
        };
        start_runtime(lab, &mut node).await?;
        for image in &images {
            lab.import_into(index, image).await?;
        }
        lab.spawn(node.kubelet(authority)?)?;
        lab.spawn(node.kube_proxy(&proxy)?)?;
        if plan.options.gpus_per_node > 0 {
            lab.spawn(node.device_plugin()?)?;
        }
    }
    for index in 0..plan.options.real_nodes {
        let kubelet = process_name("kubelet", index);
        wait_alive(lab, &kubelet, NODE_BOUND, || async { lab.node_offers(index, plan.options.gpus_per_node).await })
            .await?;
    }
    Ok(())
}

/// The node's namespaces, network, cgroup and container runtime.
async fn start_runtime(lab: &Lab, node: &mut RealNode<'_>) -> Result<()> {
    node.create_folders()?;
    let holder = node.holder();
    let name = holder.name.clone();
    lab.spawn(holder)?;
    let ready = node.ready_file();
    wait_alive(lab, &name, NODE_BOUND, || async { Ok(ready.exists()) }).await?;
    let pid = lab.pid(&name)?;
    node.holder = Some(pid);
    network::connect(lab, pid, node.index, node.options.real_nodes).context("connecting a node's network")?;
    lab.update_state(|state| state.cgroups.push(node.cgroup()))?;
    cgroup::create(&node.cgroup())?;
    let containerd = node.containerd()?;
    let name = containerd.name.clone();
    lab.spawn(containerd)?;
    let index = node.index;
    wait_alive(lab, &name, NODE_BOUND, || async { lab.ctr(index, &["version"]).await.map(|_| true) }).await
}

impl Lab {
    /// The names of the real nodes in Kubernetes.
    pub fn real_nodes(&self) -> Vec<String> {
        (0..self.real_node_count()).map(node::name_of).collect()
    }

    fn real_node_count(&self) -> u32 {
        let state = self.state();
        (0..network::MAX_NODES)
            .take_while(|index| state.processes.contains_key(&process_name("kubelet", *index)))
            .count() as u32
    }

    /// Changes the devices of a real node: the device plugin then tells the kubelet, which needs a moment.
    /// `broken` of the `total` devices, the last ones, are unhealthy.
    pub fn set_devices(&self, node: u32, total: u32, broken: u32) -> Result<()> {
        Devices { total, broken }.write(&node::devices_file(&self.dir, node))
    }

    /// Runs `ctr -n k8s.io` against a real node's containerd: who wants to know what really runs there asks that.
    pub async fn ctr(&self, node: u32, args: &[&str]) -> Result<String> {
        let socket = node::socket_of(&self.dir, node).to_string_lossy().into_owned();
        let args: Vec<String> =
            ["-a", &socket, "-n", "k8s.io"].iter().chain(args).map(|arg| (*arg).to_owned()).collect();
        let ctr = tokio::task::spawn_blocking(move || {
            let args: Vec<&str> = args.iter().map(String::as_str).collect();
            checked("ctr", &args)
        });
        tokio::time::timeout(NODE_BOUND, ctr).await.context("ctr does not end")?.context("running ctr")?
    }

    /// The path of a real node's containerd socket on this machine. Inside a node it is `/run/containerd/containerd.sock`, as anywhere.
    pub fn containerd_socket(&self, node: u32) -> PathBuf {
        node::socket_of(&self.dir, node)
    }

    /// Imports an image (an OCI layout in a tar file) into every real node.
    pub async fn import_image(&self, tar: &Path) -> Result<()> {
        ensure!(self.size() == Size::Node, "only a lab of size node has containers");
        for node in 0..self.real_node_count() {
            self.import_into(node, tar).await?;
        }
        Ok(())
    }

    async fn import_into(&self, node: u32, tar: &Path) -> Result<()> {
        self.ctr(node, &["images", "import", &tar.to_string_lossy()])
            .await
            .with_context(|| format!("importing {}", tar.display()))?;
        Ok(())
    }

    /// Builds the image of a real engine with a real model, once, imports it into every real node and returns its name.
    pub async fn load_engine_image(&self) -> Result<&'static str> {
        let image = tokio::task::spawn_blocking(engine::llama).await.context("building an image")??;
        self.import_image(&image).await?;
        Ok(engine::LLAMA)
    }

    /// The address of a real node, at which its NodePorts are.
    pub fn node_address(&self, node: u32) -> std::net::Ipv4Addr {
        network::node_address(node)
    }

    /// Builds the images of operator, agent, gateway and command line tool from the binaries that Cargo left in `binaries`, imports them into every real
    /// node and returns their names.
    pub async fn load_product_images(&self, binaries: &Path) -> Result<Vec<&'static str>> {
        let (binaries, into) = (binaries.to_owned(), self.dir.join("images"));
        let images = tokio::task::spawn_blocking(move || catalog::product(&binaries, &into))
            .await
            .context("building images")??;
        for image in images {
            self.import_image(&image).await?;
        }
        Ok(vec![catalog::OPERATOR, catalog::AGENT, catalog::GATEWAY, catalog::USAGE, catalog::CLI])
    }

    /// Whether a real node is Ready and offers exactly so many devices.
    pub async fn node_offers(&self, node: u32, devices: u32) -> Result<bool> {
        let name = node::name_of(node);
        let node =
            Api::<Node>::all(self.client()?).get_opt(&name).await.with_context(|| format!("reading node {name}"))?;
        Ok(node.is_some_and(|node| {
            let offered = node
                .status
                .as_ref()
                .and_then(|status| status.allocatable.as_ref()?.get(RESOURCE))
                .map_or("0", |count| &count.0);
            is_ready(&node) && offered == devices.to_string()
        }))
    }

    /// The names of processes that belong to a real node, such as `kubelet-0`, for [`Self::stop_process`] and its like.
    pub fn processes_of_node(&self, node: u32) -> BTreeSet<String> {
        ["node", "containerd", "kubelet", "kube-proxy", "device-plugin"]
            .iter()
            .map(|part| process_name(part, node))
            .collect()
    }
}
