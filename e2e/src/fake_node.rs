//! Fake GPU nodes: Node objects that kwok keeps Ready. Scheduling and scale are real on them, devices and containers are not.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;

use anyhow::{Context as _, Result};
use futures::{StreamExt as _, TryStreamExt as _};
use k8s_openapi::api::core::v1::{Node, NodeSpec, NodeStatus, Taint};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use kube::api::{Api, ListParams, ObjectMeta, PostParams};
use serde::Deserialize;

/// How many nodes are created at a time.
const PARALLEL: usize = 32;

/// A fake node.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct FakeNode {
    /// Its name.
    pub name: String,
    /// Labels beside those that GPU feature discovery would write, which come by themselves.
    pub labels: BTreeMap<String, String>,
    /// GPUs.
    pub gpus: u32,
    /// CPU, in thousandths.
    pub cpu_milli: u64,
    /// Memory, in MiB.
    pub memory_mib: u64,
    /// The GPU's model, as `nvidia.com/gpu.product` has it.
    pub model: String,
    /// Taints that it has from its first moment.
    pub taints: Vec<Taint>,
}

#[derive(Debug, Deserialize)]
struct Row {
    sn: String,
    cpu_milli: u64,
    memory_mib: u64,
    gpu: u32,
    model: String,
}

impl FakeNode {
    /// A node with 8 GPUs of this model, 96 CPUs and 768 GiB.
    pub fn new(name: &str, model: &str) -> Self {
        Self {
            name: name.to_owned(),
            gpus: 8,
            cpu_milli: 96_000,
            memory_mib: 786_432,
            model: model.to_owned(),
            ..Self::default()
        }
    }

    /// The same with a label.
    #[must_use]
    pub fn label(mut self, key: &str, value: &str) -> Self {
        self.labels.insert(key.to_owned(), value.to_owned());
        self
    }

    /// Reads a list of nodes from CSV with the header `sn,cpu_milli,memory_mib,gpu,model`.
    pub fn read_csv(from: impl Read) -> Result<Vec<Self>> {
        csv::Reader::from_reader(from)
            .deserialize::<Row>()
            .map(|row| {
                let row = row.context("reading the list of nodes (header: sn,cpu_milli,memory_mib,gpu,model)")?;
                Ok(Self {
                    name: row.sn,
                    gpus: row.gpu,
                    cpu_milli: row.cpu_milli,
                    memory_mib: row.memory_mib,
                    model: row.model,
                    ..Self::default()
                })
            })
            .collect()
    }

    /// The Node object.
    pub fn to_object(&self) -> Node {
        let mut labels = BTreeMap::from([
            ("kubernetes.io/hostname".to_owned(), self.name.clone()),
            ("kubernetes.io/os".to_owned(), "linux".to_owned()),
            ("kubernetes.io/arch".to_owned(), "amd64".to_owned()),
            ("type".to_owned(), "kwok".to_owned()),
        ]);
        let mut resources = BTreeMap::from([
            ("cpu".to_owned(), Quantity(format!("{}m", self.cpu_milli))),
            ("memory".to_owned(), Quantity(format!("{}Mi", self.memory_mib))),
            ("pods".to_owned(), Quantity("110".to_owned())),
        ]);
        if self.gpus > 0 {
            labels.insert("nvidia.com/gpu.present".to_owned(), "true".to_owned());
            labels.insert("nvidia.com/gpu.count".to_owned(), self.gpus.to_string());
            labels.insert("nvidia.com/gpu.product".to_owned(), self.model.clone());
            resources.insert("nvidia.com/gpu".to_owned(), Quantity(self.gpus.to_string()));
        }
        labels.extend(self.labels.clone());
        Node {
            metadata: ObjectMeta {
                name: Some(self.name.clone()),
                labels: Some(labels),
                annotations: Some(BTreeMap::from([("kwok.x-k8s.io/node".to_owned(), "fake".to_owned())])),
                ..ObjectMeta::default()
            },
            spec: Some(NodeSpec {
                taints: (!self.taints.is_empty()).then(|| self.taints.clone()),
                ..NodeSpec::default()
            }),
            status: Some(NodeStatus {
                capacity: Some(resources.clone()),
                allocatable: Some(resources),
                ..NodeStatus::default()
            }),
        }
    }
}

/// Creates the nodes, many at a time.
pub(crate) async fn create(client: kube::Client, nodes: &[FakeNode]) -> Result<()> {
    let api = Api::<Node>::all(client);
    futures::stream::iter(nodes.iter().map(|node| {
        let api = api.clone();
        async move {
            api.create(&PostParams::default(), &node.to_object())
                .await
                .with_context(|| format!("creating the fake node {}", node.name))
        }
    }))
    .buffer_unordered(PARALLEL)
    .try_for_each(|_| async { Ok(()) })
    .await
}

/// How many of the named nodes are Ready.
pub(crate) async fn count_ready(client: kube::Client, names: &BTreeSet<&str>) -> Result<usize> {
    let nodes = Api::<Node>::all(client).list(&ListParams::default()).await.context("listing nodes")?;
    let wanted = |node: &&Node| node.metadata.name.as_deref().is_some_and(|name| names.contains(name));
    Ok(nodes.iter().filter(wanted).filter(|node| is_ready(node)).count())
}

/// Whether a node's Ready condition is true and the taint that every new node has until the controllers saw that is gone.
pub fn is_ready(node: &Node) -> bool {
    let conditions = node.status.as_ref().and_then(|status| status.conditions.as_ref());
    let taints = node.spec.as_ref().and_then(|spec| spec.taints.as_deref()).unwrap_or_default();
    conditions.is_some_and(|all| all.iter().any(|one| one.type_ == "Ready" && one.status == "True"))
        && taints.iter().all(|taint| taint.key != "node.kubernetes.io/not-ready")
}

#[cfg(test)]
mod tests;
