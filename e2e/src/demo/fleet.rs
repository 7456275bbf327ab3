//! The fleet of the demo: one pool for each SKU and number of GPUs of a list of nodes.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use spillway_crds::names::POOL_LABEL;

use crate::fake_node::FakeNode;

/// The list that is used when no other is given.
const BUILT_IN: &str = include_str!("../../demo/nodes.csv");
/// Where all nodes of the demo stand.
pub(super) const REGION: &str = "us-east";
/// What the story needs in one pool: two nodes each for two tenants, and some for the owner.
const NEEDED_NODES: usize = 8;

/// A pool of fake nodes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Pool {
    pub(super) name: String,
    pub(super) sku: String,
    pub(super) gpus: u32,
    pub(super) nodes: usize,
}

/// Fake nodes and their pools.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Fleet {
    pub(super) pools: Vec<Pool>,
    pub(super) nodes: Vec<FakeNode>,
}

impl Fleet {
    /// From a file, or the built-in list.
    pub(super) fn read(list: Option<&Path>) -> Result<Self> {
        let nodes = match list {
            None => FakeNode::read_csv(BUILT_IN.as_bytes())?,
            Some(path) => {
                let file = std::fs::File::open(path).with_context(|| format!("opening {}", path.display()))?;
                FakeNode::read_csv(file).with_context(|| format!("in {}", path.display()))?
            }
        };
        Self::of(nodes)
    }

    /// Puts each node into the pool of its SKU and number of GPUs; nodes without GPUs are left out.
    fn of(nodes: Vec<FakeNode>) -> Result<Self> {
        let mut pools: BTreeMap<(String, u32), usize> = BTreeMap::new();
        let mut labelled = Vec::new();
        for node in nodes.into_iter().filter(|node| node.gpus > 0) {
            let sku = sku_of(&node.model).with_context(|| format!("node {}", node.name))?;
            let pool = name_of(&sku, node.gpus);
            *pools.entry((sku, node.gpus)).or_default() += 1;
            labelled.push(node.label(POOL_LABEL, &pool));
        }
        let pools: Vec<Pool> = pools
            .into_iter()
            .map(|((sku, gpus), nodes)| Pool { name: name_of(&sku, gpus), sku, gpus, nodes })
            .collect();
        let most = pools.iter().map(|pool| pool.nodes).max().unwrap_or_default();
        ensure!(
            most >= NEEDED_NODES,
            "no pool of the list has {NEEDED_NODES} nodes, which the demo needs; the largest has {most}"
        );
        Ok(Self { pools, nodes: labelled })
    }

    /// The pool in which tenants and the owner meet: that with the most nodes.
    pub(super) fn largest(&self) -> Result<&Pool> {
        self.pools.iter().max_by_key(|pool| (pool.nodes, pool.gpus)).context("a fleet without pools")
    }

    /// The pools as manifests, that of the real nodes first.
    pub(super) fn manifests(&self, real: &Pool) -> String {
        let mut text = manifest(real, "Agent").to_string();
        for pool in &self.pools {
            // Fake nodes have no kubelet and no container runtime that could be asked.
            text.push_str(&format!("\n---\n{}", manifest(pool, "None")));
        }
        text
    }
}

fn manifest(pool: &Pool, node_check: &str) -> Value {
    json!({
        "apiVersion": "spillway.dev/v1alpha1",
        "kind": "GpuPool",
        "metadata": {"name": pool.name},
        "spec": {
            "sku": pool.sku,
            "region": REGION,
            "provenance": "Owned",
            "devices": {"resource": "nvidia.com/gpu", "perNode": pool.gpus},
            "topology": ["kubernetes.io/hostname"],
            "nodeCheck": node_check,
        },
    })
}

fn name_of(sku: &str, gpus: u32) -> String {
    format!("{sku}-x{gpus}")
}

/// A model as the SKU's name: lower-case letters, digits, dots and dashes.
fn sku_of(model: &str) -> Result<String> {
    let sku: String = model
        .to_lowercase()
        .chars()
        .map(|letter| if letter.is_ascii_alphanumeric() || letter == '.' { letter } else { '-' })
        .collect();
    let sku = sku.trim_matches(['-', '.']);
    ensure!(!sku.is_empty() && sku.len() <= 50, "'{model}' is no name of a GPU model");
    Ok(sku.to_owned())
}

#[cfg(test)]
mod tests;
