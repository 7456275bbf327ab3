//! The protocol, checked exhaustively at small sizes (docs/ARCHITECTURE.md, invariant 1): two operators that both believe to lead, each stopped or
//! killed between any two of its API calls, a collection, node objects that are re-created, pods that land, and containers that outlive them.
//!
//! The model runs the operator's own transition functions: `Ledger::stage`, `decode`, `collect` and `node_step`. What is abstract is the world:
//! - There is no election. Both operators act whenever they like, which covers every way in which an election can fail; one that is paused
//!   is one that does not happen to be chosen.
//! - A resourceVersion is a flag: whether the object changed since it was read. The root's is its generation.
//! - A page name is the smallest number that occurs nowhere in the state: as good as one that was never used.
//! - A crash forgets the task; operators remember nothing between tasks.
//!
//! So that the check can fail, each safeguard is also taken away in turn ([`Bug`]), and the model must then find a history that breaks a property.

#[path = "model/state.rs"]
mod state;
#[path = "model/world.rs"]
mod world;

use stateright::{Checker, HasDiscoveries, Model};
use world::{Bug, World};

/// Checks a world to the end, prints its size, and asserts that all properties hold and that every `sometimes` was seen.
fn check(name: &str, world: World, expected_states: usize) {
    let checker = world.checker().threads(2).spawn_bfs().join();
    println!("{name}: {} states, depth {}", checker.unique_state_count(), checker.max_depth());
    checker.assert_properties();
    assert!(checker.is_done());
    // A change in the number means a change in the protocol or in the model: look at it, then write the new number here.
    assert_eq!(checker.unique_state_count(), expected_states, "{name}");
}

/// Checks a world with a safeguard taken away: some history must break one of these properties.
fn find(world: World, bug: Bug, broken: &[&str]) {
    let checker = World { bug: Some(bug), ..world }
        .checker()
        .threads(2)
        .finish_when(HasDiscoveries::AnyFailures)
        .spawn_bfs()
        .join();
    let discoveries = checker.discoveries();
    let found: Vec<&str> = broken.iter().filter(|name| discoveries.contains_key(*name)).copied().collect();
    println!("{bug:?}: {} states, breaks {found:?}", checker.unique_state_count());
    for name in &found {
        let actions: Vec<String> =
            discoveries[name].clone().into_actions().iter().map(|action| format!("{action:?}")).collect();
        println!("  {name}: {}", actions.join(", "));
    }
    assert!(!found.is_empty(), "{bug:?} is not found");
}

/// One node that two tenants want, one after the other.
const SALES: World = World {
    nodes: 1,
    reservations: 2,
    owner: false,
    pods: true,
    recreations: 0,
    collections: 0,
    losses: 0,
    crashes: 0,
    keep_garbage: false,
    bug: None,
};

#[test]
fn sales() {
    check("sales", SALES, 0);
}
