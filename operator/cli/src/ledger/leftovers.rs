//! A ledger put together from the pages that are left, when only the root is gone.
//!
//! Index pages are named by the time of their making, so the newest of a pool is the last that was written. It may be of a commit that never
//! became valid, by a crash between pages and root; then an older one agrees better with the cluster, and is taken.

use std::collections::BTreeMap;

use kube::ResourceExt;
use spillway_crds::{CapacityLedger, CapacityLedgerSpec, LedgerPool, PageKind, names};
use spillway_manifests::ledger::read_root;
use spillway_verify::{Severity, World, check};

use super::{
    copy::{Copy, PageCopy, by_name, decode},
    export::highest_stamp,
};
use crate::{error::Error, time};

/// How many index pages of a pool are tried.
const TRIED: usize = 4;

/// When a page was made, in Unix milliseconds: its name ends in a UUID of version 7.
pub(crate) fn made_at(name: &str) -> Option<u64> {
    let (_, uuid) = name.split_once('-')?;
    let timestamp = uuid::Uuid::parse_str(uuid).ok()?.get_timestamp()?;
    let (seconds, nanos) = timestamp.to_unix();
    Some(seconds.saturating_mul(1000).saturating_add(u64::from(nanos / 1_000_000)))
}

/// The newest whole ledger that the pages of a cluster make, and that agrees best with the cluster.
pub(crate) fn gather(world: &World, cluster: String, now_ms: i64) -> Result<Copy, Error> {
    let mut candidates: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for page in world.pages.iter().filter(|page| page.spec.kind == PageKind::Index) {
        candidates.entry(&page.spec.pool).or_default().push(page.name_any());
    }
    if candidates.is_empty() {
        return Err(Error::Copy { why: "this cluster has no index page of a ledger: only a copy can help".to_owned() });
    }
    let pages = by_name(world.pages.iter().cloned());
    let stamp = highest_stamp(&world.nodes);
    let format = world.pages.iter().map(|page| page.spec.format).max().unwrap_or(1);
    let root = |pools: Vec<LedgerPool>| CapacityLedgerSpec {
        format,
        generation: stamp,
        epoch: 0,
        committed_at: now_ms,
        pools,
    };
    let mut chosen: BTreeMap<&str, String> = BTreeMap::new();
    for (pool, names) in &mut candidates {
        names.sort();
        names.reverse();
        names.retain(|index| {
            let alone = root(vec![LedgerPool { name: (*pool).to_owned(), index: index.clone() }]);
            decode(&read_root(&CapacityLedger::new(names::LEDGER_NAME, alone)), &pages).is_ok()
        });
        names.truncate(TRIED);
        let newest = names.first().ok_or_else(|| Error::Copy {
            why: format!("no index page of pool {pool} has all the pages that it names: only a copy can help"),
        })?;
        chosen.insert(pool, newest.clone());
    }
    let as_root = |chosen: &BTreeMap<&str, String>| {
        root(chosen.iter().map(|(name, index)| LedgerPool { name: (*name).to_owned(), index: index.clone() }).collect())
    };
    for (pool, names) in &candidates {
        let faults = |index: &String| {
            let mut tried = chosen.clone();
            tried.insert(pool, index.clone());
            violations(world, as_root(&tried))
        };
        // The first of those with the fewest, so the newest.
        if let Some(best) = names.iter().min_by_key(|index| faults(index)) {
            let best = best.clone();
            chosen.insert(pool, best);
        }
    }
    let root = as_root(&chosen);
    let whole = decode(&read_root(&CapacityLedger::new(names::LEDGER_NAME, root.clone())), &pages)
        .map_err(|source| Error::Ledger { source })?;
    let mut copies: BTreeMap<String, PageCopy> =
        world.pages.iter().map(PageCopy::of).map(|page| (page.name.clone(), page)).collect();
    let reached = whole.reached.iter().filter_map(|name| copies.remove(&**name)).collect();
    Ok(Copy::new(time::show(now_ms), cluster, stamp, root, reached, Vec::new()))
}

fn violations(world: &World, root: CapacityLedgerSpec) -> usize {
    let world = World { root: Some(CapacityLedger::new(names::LEDGER_NAME, root)), ..world.clone() };
    check(&world).iter().filter(|finding| finding.severity == Severity::Violation).count()
}
