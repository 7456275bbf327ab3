//! How both models are checked, and what is said of it.

use std::{
    fmt::{Debug, Display},
    hash::Hash,
};

use stateright::{Checker, DiscoveryClassification, Model};

/// Checks a world to the end, prints its size, and asserts that all properties hold and that every `sometimes` was seen. A world that has
/// outgrown `most` states is not checked to the end, and fails.
pub fn check<M>(name: &str, world: M, most: usize)
where
    M: Model + Send + Sync + 'static,
    M::State: Clone + Debug + Display + Hash + PartialEq + Send + Sync + 'static,
    M::Action: Clone + Debug + PartialEq + Send + Sync,
{
    // Steps, of which several lead to one state.
    let steps = most * 16;
    let checker = world.checker().threads(2).target_state_count(steps).spawn_bfs().join();
    println!("{name}: {} states, depth {}", checker.unique_state_count(), checker.max_depth());
    for (property, path) in checker.discoveries() {
        if matches!(checker.discovery_classification(property), DiscoveryClassification::Counterexample) {
            println!("{name}: broken: {property}");
            for (state, action) in path.into_vec() {
                println!("{state}\n    {action:?}");
            }
        }
    }
    checker.assert_properties();
    let all = checker.is_done() && checker.state_count() < steps && checker.unique_state_count() <= most;
    assert!(all, "{name} has more than {most} states");
}

/// Asserts that histories were found that break these properties, and prints them.
pub fn assert_broken<M>(what: &str, checker: &impl Checker<M>, broken: &[&'static str])
where
    M: Model,
    M::State: Clone + Debug + Hash + PartialEq,
    M::Action: Clone + Debug + PartialEq,
{
    println!("{what}: {} states", checker.unique_state_count());
    for name in broken {
        let actions: Vec<String> = match checker.discovery(name) {
            Some(path) => path.into_actions().iter().map(|action| format!("{action:?}")).collect(),
            None => panic!("{what} does not break: {name}"),
        };
        println!("  breaks: {name}: {}", actions.join(", "));
    }
}
