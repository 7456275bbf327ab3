//! `spillway simulate plan`: what the planner would answer to reservations if the objects of some files were the cluster. No cluster is asked.
//!
//! - [`objects`]: the files. What an API server would refuse is refused here as well: [`schema`] and [`rules`].
//! - [`cluster`]: the planner's snapshot of them.
//! - [`answer`]: what the plan says.

use std::{collections::BTreeMap, path::PathBuf};

use clap::Args;
use jiff::Timestamp;
use spillway_planner::TimeMs;

mod answer;
mod cluster;
mod objects;
mod rules;
mod schema;

#[cfg(test)]
mod tests;

pub(crate) use answer::Answers;
pub(crate) use objects::ObjectError;

/// Examples of the help.
pub(super) const EXAMPLES: &str = "\
Examples:
  spillway simulate plan -f pool.yaml -f tenants.yaml -f reservations.yaml --nodes h200-us-east=16
  kubectl get gpupools,tenants,nodes,gpureservations -A -o yaml | spillway simulate plan -f -
  spillway simulate plan -f fleet.yaml --at 2026-11-21T08:00:00Z -o json | jq '.pools'

Exit codes: 0 all are booked, 1 some are not, 2 the objects cannot be used.";

/// More nodes than any pool has: a typing error.
const NODES_MAX: u32 = 100_000;

/// Arguments of `simulate plan`.
#[derive(Args, Debug)]
pub(crate) struct PlanArgs {
    /// File with objects; - is standard input. YAML documents, Lists of them, or JSON. Can be given several times.
    #[arg(short, long = "filename", value_name = "FILE", required = true)]
    files: Vec<PathBuf>,

    /// So many nodes in a pool beside those in the files, each of the pool's devices, and of 12 cores and 48 GiB of memory for each of them.
    /// They stand in one domain of every topology level but kubernetes.io/hostname. Can be given several times.
    #[arg(long, value_name = "POOL=COUNT", value_parser = parse_nodes)]
    nodes: Vec<(String, u32)>,

    /// The time of the plan, RFC 3339. Without it: when the youngest reservation was created, else 1970-01-01T00:00:00Z.
    #[arg(long, value_name = "TIME", value_parser = parse_at)]
    at: Option<TimeMs>,

    /// Pass over objects of other kinds than GpuPool, Tenant, Node and GpuReservation.
    #[arg(long)]
    ignore_others: bool,
}

/// Reads the objects and plans once.
pub(super) fn run(args: &PlanArgs) -> Result<Answers, ObjectError> {
    let objects = objects::read(&args.files, args.ignore_others)?;
    let mut extra: BTreeMap<&str, u32> = BTreeMap::new();
    for (pool, count) in &args.nodes {
        let all = extra.entry(pool).or_default();
        *all = all.saturating_add(*count);
    }
    answer(&objects, &extra, args.at)
}

fn answer(objects: &objects::Objects, extra: &BTreeMap<&str, u32>, at: Option<TimeMs>) -> Result<Answers, ObjectError> {
    let cluster = cluster::Cluster::build(objects, extra, at)?;
    let plan = spillway_planner::plan(&cluster.snapshot, cluster.at);
    Ok(Answers::new(&cluster, &plan))
}

fn parse_nodes(text: &str) -> Result<(String, u32), String> {
    let wrong = || format!("write the name of a pool and a number from 1 to {NODES_MAX}, such as h200-us-east=16");
    let (pool, count) = text.split_once('=').ok_or_else(wrong)?;
    let count = count.parse().ok().filter(|count| (1..=NODES_MAX).contains(count)).ok_or_else(wrong)?;
    if pool.is_empty() { Err(wrong()) } else { Ok((pool.to_owned(), count)) }
}

fn parse_at(text: &str) -> Result<TimeMs, String> {
    let at = text.parse::<Timestamp>().map_err(|_| "write RFC 3339, such as 2026-11-21T08:00:00Z".to_owned())?;
    Ok(TimeMs(at.as_millisecond()))
}
