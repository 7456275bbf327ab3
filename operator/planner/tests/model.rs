//! The protocol, checked exhaustively at small sizes (docs/ARCHITECTURE.md, invariant 1): two operators that both believe to lead, each stopped or
//! killed between any two of its API calls, a collection, node objects that are re-created, pods that land, and containers that outlive them.
//!
//! The model runs the operator's own transition functions: `Ledger::stage`, `decode`, `collect` and `node_step`. What is abstract is the world:
//! - There is no election. Both operators act whenever they like, which covers every way in which an election can fail; one that is paused
//!   is one that does not happen to be chosen.
//! - A resourceVersion is a flag: whether the object changed since it was read. The root's is its generation.
//! - A page's name says from which commit it comes, and states that differ in such names only are one state. A page that neither the root nor
//!   anybody's task names is gone, as if it had been collected.
//! - A crash forgets the task; operators remember nothing between tasks.
//! - What can only fail (a write whose precondition is broken) is given up at once, unless what it leaves behind matters.
//!
//! So that the check can fail, each safeguard is also taken away in turn ([`Bug`]), and the model must then find a history that breaks a property.

#![allow(unreachable_pub, reason = "modules of one test")]
#![allow(
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a test of its own crate, which clippy does not take for one"
)]

#[path = "checking/mod.rs"]
mod checking;
#[path = "model/state.rs"]
mod state;
#[path = "model/world.rs"]
mod world;

use checking::{assert_broken, check};
use stateright::{Checker, HasDiscoveries, Model};
use world::{Bug, Size, World};

/// Checks a world with a safeguard taken away: histories must be found that break these properties.
fn find(size: Size, bug: Bug, broken: &[&'static str]) {
    let all = HasDiscoveries::AllOf(broken.iter().copied().collect());
    let checker = World::new(size, Some(bug)).checker().threads(2).finish_when(all).spawn_bfs().join();
    assert_broken(&format!("{bug:?}"), &checker, broken);
}

/// One node that two tenants want, one after the other.
const SALES: Size = Size {
    nodes: 1,
    reservations: 2,
    owner: false,
    pods: true,
    late_pods: false,
    recreations: 0,
    collections: 0,
    losses: 0,
};

/// The same, and the node object is deleted and registers again at any time, its containers living on.
const RECREATED: Size = Size { recreations: 1, ..SALES };

/// The same, and operators may not see pods that are there: the agent alone knows.
const LATE_PODS: Size = Size { late_pods: true, ..RECREATED };

/// Two nodes, one of which is lost and replaced.
const REPLACED: Size = Size { nodes: 2, reservations: 1, recreations: 1, losses: 1, ..SALES };

/// Two tenants and two nodes.
const TWO_NODES: Size = Size { nodes: 2, ..SALES };

/// The owner's pods land on what is not sold, and make a booking give its node up.
const OWNER: Size = Size { owner: true, losses: 1, ..SALES };

/// The same, and the node object registers again.
const OWNER_RECREATED: Size = Size { recreations: 1, reservations: 1, ..OWNER };

/// The ledger alone, with collections while commits are under way.
const COLLECTED: Size = Size { nodes: 2, reservations: 3, pods: false, collections: 2, ..SALES };

/// Sales with a collection in their midst, and a node that registers again.
const SALES_COLLECTED: Size = Size { collections: 1, recreations: 1, ..SALES };

macro_rules! worlds {
    ($($name:ident: $size:expr, $states:expr;)*) => {$(
        #[test]
        fn $name() {
            check(stringify!($name), World::new($size, None), $states);
        }
    )*};
}

worlds! {
    sales: SALES, 20_000;
    recreated: RECREATED, 160_000;
    late_pods: LATE_PODS, 250_000;
    replaced: REPLACED, 500_000;
    two_nodes: TWO_NODES, 1_200_000;
    owner: OWNER, 160_000;
    owner_recreated: OWNER_RECREATED, 500_000;
    collected: COLLECTED, 400_000;
    sales_collected: SALES_COLLECTED, 1_000_000;
}

macro_rules! bugs {
    ($($name:ident: $bug:ident in $size:expr, $broken:expr;)*) => {$(
        #[test]
        fn $name() {
            find($size, Bug::$bug, &$broken);
        }
    )*};
}

bugs! {
    finds_node_without_precondition: NodeWithoutPrecondition in SALES, ["nobody runs on another's node"];
    finds_swap_without_precondition: SwapWithoutPrecondition in SALES, ["time goes on", "no booking is lost"];
    finds_patch_by_pool: PatchByPool in SALES, ["a node is sold once"];
    finds_root_before_node: RootBeforeNode in SALES, ["no holder without a booking"];
    finds_collection_without_swap: CollectionWithoutSwap in COLLECTED, ["the root can be read"];
    finds_list_after_swap: ListAfterSwap in COLLECTED, ["the root can be read"];
    finds_no_node_check: NoNodeCheck in SALES, ["nobody runs on another's node"];
    finds_old_answer: OldAnswer in SALES, ["nobody runs on another's node"];
    finds_comes_open: ComesOpen in Size { owner: true, ..RECREATED }, ["no two run on a node at once"];
}
