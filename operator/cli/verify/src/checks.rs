//! The checks, one file an invariant.

use spillway_crds::{CapacityLedger, CapacityLedgerPage};

use crate::{
    ledger,
    violation::{Findings, Violation},
    world::World,
};

mod commitments;
mod holds;
mod meter;
mod namespaces;
mod pods;
mod sold_once;

/// Checks a world. Violations first, then warnings; none when everything is as it must be.
///
/// A ledger that cannot be read whole is a finding by itself, and nothing is then concluded from what it does not say.
pub fn check(world: &World) -> Vec<Violation> {
    let mut findings = Findings::default();
    let ledger = ledger::read(world.root.as_ref(), &world.pages, &mut findings);
    let known = sold_once::check_root(world, &mut findings);
    sold_once::check(world, &ledger, &mut findings);
    meter::check_bookings(world, &ledger, &mut findings);
    // While all pools observe and nothing is booked, no label and no taint is anybody's promise.
    let observing = ledger.whole && ledger.live.is_empty() && world.all_pools_observe();
    if !observing {
        namespaces::check(world, &ledger, &mut findings);
    }
    if known && ledger.whole {
        commitments::check(world, &ledger, &mut findings);
        if !observing {
            holds::check(world, &ledger, &mut findings);
        }
        meter::check_statuses(world, &ledger, &mut findings);
    }
    pods::check(world, (known && ledger.whole).then_some(&ledger), &mut findings);
    findings.sorted()
}

/// Checks a ledger by itself, without the objects that it speaks of: that it is whole and readable, that nothing in it is sold twice,
/// and that its times are in order.
pub fn check_ledger(root: Option<&CapacityLedger>, pages: &[CapacityLedgerPage]) -> Vec<Violation> {
    let world = World { root: root.cloned(), pages: pages.to_vec(), ..World::default() };
    let mut findings = Findings::default();
    let ledger = ledger::read(root, pages, &mut findings);
    sold_once::check(&world, &ledger, &mut findings);
    meter::check_bookings(&world, &ledger, &mut findings);
    findings.sorted()
}

#[cfg(test)]
mod tests;
