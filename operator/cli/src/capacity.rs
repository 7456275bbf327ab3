//! `spillway capacity`: what each pool has.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{self, Write},
};

use k8s_openapi::api::core::v1::{Container, Namespace, Node, Pod};
use kube::{Api, Client, ResourceExt, api::ListParams};
use serde::Serialize;
use spillway_crds::{
    GpuPool,
    names::{HOLD_CLOSED, HOLD_UNSOLD, POOL_LABEL, ROLE_LABEL, ROLE_OWNER},
};
use spillway_manifests::{hold, validate};

use crate::{
    args::CapacityArgs,
    cluster::list,
    error::Error,
    ledger::{self, Bookings},
    output::{Report, Table},
};

/// All that the answer depends on.
#[derive(Debug, Default)]
pub(crate) struct Facts {
    /// Pools to show.
    pub(crate) pools: Vec<GpuPool>,
    /// Nodes with a pool's label.
    pub(crate) nodes: Vec<Node>,
    /// Pods bound to nodes.
    pub(crate) pods: Vec<Pod>,
    /// Namespaces of the owner.
    pub(crate) owners: BTreeSet<String>,
    /// The ledger.
    pub(crate) bookings: Bookings,
}

/// The answer.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Capacity {
    /// One row a pool, by SKU and name.
    pub(crate) pools: Vec<PoolRow>,
    /// One row a SKU.
    pub(crate) skus: Vec<SkuRow>,
}

/// A pool.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct PoolRow {
    /// Its name.
    pub(crate) pool: String,
    /// What it sells.
    pub(crate) sku: String,
    /// Where it stands.
    pub(crate) region: String,
    /// What it has.
    #[serde(flatten)]
    pub(crate) amounts: Amounts,
    /// Nodes that cannot be sold until somebody mends them, and why.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) problems: Vec<Problem>,
}

/// A node that must be mended.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Problem {
    /// Its name.
    pub(crate) node: String,
    /// What is wrong.
    pub(crate) problem: String,
}

/// All pools of a SKU.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct SkuRow {
    /// Its name.
    pub(crate) sku: String,
    /// What they have.
    #[serde(flatten)]
    pub(crate) amounts: Amounts,
}

/// Nodes, and devices by state.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Amounts {
    /// Nodes with the pool's label.
    pub(crate) nodes: u64,
    /// All devices that they offer.
    pub(crate) owned: u64,
    /// Devices booked in the ledger.
    pub(crate) sold: u64,
    /// Devices of nodes whose taints and labels are a holder's; of shared nodes, those that somebody holds.
    pub(crate) held: u64,
    /// Devices of nodes that are open to the owner, and the rest of shared nodes.
    pub(crate) unsold: u64,
    /// Devices of nodes being prepared or given back.
    pub(crate) turnover: u64,
    /// Devices of nodes that cannot be sold until somebody mends them.
    pub(crate) broken: u64,
    /// Devices that the owner's pods use.
    pub(crate) owner_used: u64,
}

impl Amounts {
    fn add(&mut self, other: Self) {
        self.nodes += other.nodes;
        self.owned += other.owned;
        self.sold += other.sold;
        self.held += other.held;
        self.unsold += other.unsold;
        self.turnover += other.turnover;
        self.broken += other.broken;
        self.owner_used += other.owner_used;
    }

    fn cells(self) -> Vec<String> {
        [self.nodes, self.owned, self.sold, self.held, self.unsold, self.turnover, self.broken, self.owner_used]
            .map(|amount| amount.to_string())
            .to_vec()
    }
}

/// Reads and answers.
pub(crate) async fn run(client: &Client, args: &CapacityArgs) -> Result<Capacity, Error> {
    let mut facts = fetch(client).await?;
    if let Some(name) = &args.pool {
        facts.pools.retain(|pool| pool.name_any() == *name);
        if facts.pools.is_empty() {
            return Err(Error::NoPool { name: name.clone() });
        }
    }
    Ok(capacity(&facts))
}

/// Reads: pods before nodes before the ledger, so that what is counted as used or held is known to what is read after it.
async fn fetch(client: &Client) -> Result<Facts, Error> {
    let facts = fetch_objects(client).await?;
    Ok(Facts { bookings: ledger::read(client, None).await?, ..facts })
}

/// Reads all but the ledger.
pub(crate) async fn fetch_objects(client: &Client) -> Result<Facts, Error> {
    let everything = ListParams::default();
    let pools = list(Api::all(client.clone()), &everything, "gpupools.spillway.dev").await?;
    let pods = list(Api::all(client.clone()), &ListParams::default().fields("spec.nodeName!="), "pods").await?;
    let nodes = list(Api::all(client.clone()), &ListParams::default().labels(POOL_LABEL), "nodes").await?;
    let of_owner = ListParams::default().labels(&format!("{ROLE_LABEL}={ROLE_OWNER}"));
    let owners: Vec<Namespace> = list(Api::all(client.clone()), &of_owner, "namespaces").await?;
    let owners = owners.iter().map(ResourceExt::name_any).collect();
    Ok(Facts { pools, nodes, pods, owners, bookings: Bookings::default() })
}

/// Counts.
pub(crate) fn capacity(facts: &Facts) -> Capacity {
    let mut pods: BTreeMap<&str, Vec<&Pod>> = BTreeMap::new();
    for pod in &facts.pods {
        if let Some(node) = pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()) {
            pods.entry(node).or_default().push(pod);
        }
    }
    let mut answer = Capacity::default();
    for pool in &facts.pools {
        answer.pools.push(count_pool(facts, pool, &pods));
    }
    answer.pools.sort_by(|a, b| (&a.sku, &a.pool).cmp(&(&b.sku, &b.pool)));
    let mut skus: BTreeMap<&str, Amounts> = BTreeMap::new();
    for row in &answer.pools {
        skus.entry(&row.sku).or_default().add(row.amounts);
    }
    answer.skus = skus.into_iter().map(|(sku, amounts)| SkuRow { sku: sku.to_owned(), amounts }).collect();
    answer
}

fn count_pool(facts: &Facts, pool: &GpuPool, pods: &BTreeMap<&str, Vec<&Pod>>) -> PoolRow {
    let name = pool.name_any();
    let resource = &pool.spec.devices.resource;
    let mut amounts = Amounts::default();
    let mut problems = Vec::new();
    for node in facts.nodes.iter().filter(|node| node.labels().get(POOL_LABEL) == Some(&name)) {
        let devices = devices_of(node, resource);
        amounts.nodes += 1;
        amounts.owned += devices;
        match state(node, pool) {
            State::Held => {
                let rest = u64::from(hold::rest_of_shared(node, u32::try_from(devices).unwrap_or(u32::MAX)));
                amounts.held += devices - rest;
                amounts.unsold += rest;
            }
            State::Unsold => amounts.unsold += devices,
            State::Turnover => amounts.turnover += devices,
            State::Broken(problem) => {
                amounts.broken += devices;
                problems.push(Problem { node: node.name_any(), problem });
            }
        }
        let here = pods.get(node.name_any().as_str()).map(Vec::as_slice).unwrap_or_default();
        amounts.owner_used += here
            .iter()
            .filter(|pod| facts.owners.contains(&pod.namespace().unwrap_or_default()) && is_alive(pod))
            .map(|pod| devices_wanted(pod, resource))
            .sum::<u64>();
    }
    amounts.sold = facts
        .bookings
        .live
        .iter()
        .filter(|booking| booking.pool.as_str() == name)
        .flat_map(|booking| booking.segments.iter().filter(|segment| segment.to.is_none()))
        .map(|segment| u64::from(segment.devices))
        .sum();
    problems.sort_by(|a, b| a.node.cmp(&b.node));
    PoolRow { pool: name, sku: pool.spec.sku.clone(), region: pool.spec.region.clone(), amounts, problems }
}

/// What a node is.
#[derive(Debug, Eq, PartialEq)]
pub(crate) enum State {
    /// A holder's taints are in place.
    Held,
    /// Open to the owner, and can be sold.
    Unsold,
    /// Being prepared or given back.
    Turnover,
    /// Cannot be sold until somebody mends it.
    Broken(String),
}

/// What a node of a pool is.
pub(crate) fn state(node: &Node, pool: &GpuPool) -> State {
    let (hold, _) = hold::read_taints(node);
    if !matches!(hold, None | Some(HOLD_CLOSED | HOLD_UNSOLD)) {
        return State::Held;
    }
    let (ready, _) = validate::readiness(node);
    let offered = devices_of(node, &pool.spec.devices.resource);
    let wanted = u64::try_from(pool.spec.devices.per_node).unwrap_or_default();
    if !ready {
        State::Broken("it is NotReady".to_owned())
    } else if offered != wanted {
        State::Broken(format!("it offers {offered} devices and the pool says {wanted}"))
    } else if node.spec.as_ref().and_then(|spec| spec.unschedulable).unwrap_or_default() {
        State::Broken("it is cordoned".to_owned())
    } else if hold == Some(HOLD_UNSOLD) {
        State::Unsold
    } else {
        State::Turnover
    }
}

fn devices_of(node: &Node, resource: &str) -> u64 {
    u64::try_from(validate::capacity(node, resource).gpu.0 / 1000).unwrap_or_default()
}

/// True for a pod that takes its devices.
pub(crate) fn is_alive(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    !matches!(phase, Some("Succeeded" | "Failed"))
}

/// Devices that a pod takes: its containers and sidecars together, or the largest of its other init containers.
pub(crate) fn devices_wanted(pod: &Pod, resource: &str) -> u64 {
    let Some(spec) = &pod.spec else { return 0 };
    let of = |container: &Container| {
        let limits = container.resources.as_ref().and_then(|resources| resources.limits.as_ref());
        u64::from(validate::whole(limits.and_then(|limits| limits.get(resource))).unwrap_or_default())
    };
    let (sidecars, inits): (Vec<_>, Vec<_>) = spec
        .init_containers
        .iter()
        .flatten()
        .partition(|container| container.restart_policy.as_deref() == Some("Always"));
    let running: u64 = spec.containers.iter().chain(sidecars).map(of).sum();
    running.max(inits.into_iter().map(of).max().unwrap_or_default())
}

const HEADS: [&str; 8] = ["NODES", "OWNED", "SOLD", "HELD", "UNSOLD", "TURNOVER", "BROKEN", "OWNER-USED"];

/// Rows of pools for people.
pub(crate) fn pool_table(rows: &[PoolRow]) -> Table {
    let mut table = Table::new(&["POOL", "SKU", "REGION"].into_iter().chain(HEADS).collect::<Vec<_>>());
    for row in rows {
        let mut cells = vec![row.pool.clone(), row.sku.clone(), row.region.clone()];
        cells.extend(row.amounts.cells());
        table.push(cells);
    }
    table
}

impl Report for Capacity {
    fn write_table(&self, out: &mut dyn Write) -> io::Result<()> {
        if self.pools.is_empty() {
            return writeln!(out, "There are no GpuPools.");
        }
        pool_table(&self.pools).write(out, 0)?;
        let mut table = Table::new(&["SKU"].into_iter().chain(HEADS).collect::<Vec<_>>());
        for row in &self.skus {
            let mut cells = vec![row.sku.clone()];
            cells.extend(row.amounts.cells());
            table.push(cells);
        }
        writeln!(out)?;
        table.write(out, 0)?;
        let problems: Vec<&Problem> = self.pools.iter().flat_map(|row| &row.problems).collect();
        if !problems.is_empty() {
            let mut table = Table::new(&["BROKEN NODE", "PROBLEM"]);
            for problem in problems {
                table.push(vec![problem.node.clone(), problem.problem.clone()]);
            }
            writeln!(out)?;
            table.write(out, 0)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
