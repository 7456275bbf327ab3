//! What may be asked of a lab.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// How much of Kubernetes a lab has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Size {
    /// etcd and the API server: admission, CRDs, RBAC. Several may run at once.
    Api,
    /// Also controllers, scheduler and fake nodes: pods get scheduled and "run". Several may run at once.
    Cluster,
    /// Also real nodes: pods are processes. Needs root. One at a time.
    Node,
}

impl Size {
    /// The word for it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Api => "api",
            Self::Cluster => "cluster",
            Self::Node => "node",
        }
    }

    /// Whether only one lab of this kind fits on the machine at a time.
    pub fn is_exclusive(self) -> bool {
        self == Self::Node
    }
}

/// What a lab should be like.
#[derive(Debug, Clone)]
pub struct LabOptions {
    /// How much of Kubernetes.
    pub size: Size,
    /// The lab's name, unique on this machine.
    pub name: String,
    /// Real nodes, of the node size.
    pub real_nodes: u32,
    /// Devices `lab-gpu-0..` that each real node offers as `nvidia.com/gpu`; 0 starts no device plugin.
    pub gpus_per_node: u32,
    /// Labels that a real node's kubelet registers with.
    pub node_labels: Vec<(String, String)>,
    /// Taints that a real node's kubelet registers with, as `key=value:Effect`.
    pub node_taints: Vec<String>,
    /// Lets the lab outlive its [`Lab`](crate::Lab) and this process.
    pub keep: bool,
    /// Further arguments of the API server.
    pub apiserver_args: Vec<String>,
    /// Further arguments of the controller manager, such as `--node-monitor-grace-period=20s`.
    pub controller_manager_args: Vec<String>,
    /// How long to wait for another lab of the size node to end.
    pub wait_for_machine: Duration,
}

impl LabOptions {
    /// A lab of this size with a name of its own, that goes with its [`Lab`](crate::Lab).
    pub fn new(size: Size) -> Self {
        static COUNTER: AtomicU32 = AtomicU32::new(0);
        let number = COUNTER.fetch_add(1, Ordering::Relaxed);
        Self {
            size,
            name: format!("{}-{}-{number}", size.word(), std::process::id()),
            real_nodes: 1,
            gpus_per_node: 8,
            node_labels: Vec::new(),
            node_taints: Vec::new(),
            keep: false,
            apiserver_args: Vec::new(),
            controller_manager_args: Vec::new(),
            wait_for_machine: Duration::from_secs(600),
        }
    }

    /// The same with another name.
    #[must_use]
    pub fn named(mut self, name: &str) -> Self {
        name.clone_into(&mut self.name);
        self
    }

    /// The same with so many real nodes.
    #[must_use]
    pub fn real_nodes(mut self, count: u32) -> Self {
        self.real_nodes = count;
        self
    }

    /// The same, with a label on every real node.
    #[must_use]
    pub fn node_label(mut self, key: &str, value: &str) -> Self {
        self.node_labels.push((key.to_owned(), value.to_owned()));
        self
    }

    /// The same, with a taint (`key=value:Effect`) on every real node from its first moment.
    #[must_use]
    pub fn node_taint(mut self, taint: &str) -> Self {
        self.node_taints.push(taint.to_owned());
        self
    }
}
