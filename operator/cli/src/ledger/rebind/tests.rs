use rstest::rstest;
use serde_json::json;

use super::*;
use crate::{
    ledger::copy::tests::copy,
    sample::{node, reservation},
};

fn with_uid(mut object: GpuReservation, uid: &str) -> GpuReservation {
    object.metadata.uid = Some(uid.to_owned());
    object
}

fn node_with_uid(name: &str, pool: &str, uid: &str) -> Node {
    let mut node = node(name, pool, "closed", true);
    node.metadata.uid = Some(uid.to_owned());
    node
}

#[test]
fn what_is_there_as_it_was_needs_nothing() {
    let whole = copy(&[("b-1", "train", "node-1")]).decode().unwrap();
    let matches = match_names(
        &whole,
        &[reservation("train", "Active", "Active", 60)],
        &[node("node-1", "h200", "uid-acme", true)],
    );
    assert_eq!(matches, Matches::default());
}

#[test]
fn after_a_loss_of_etcd_names_say_what_is_meant() {
    let copy = copy(&[("b-1", "train", "node-1"), ("b-2", "serve", "node-2")]);
    let whole = copy.decode().unwrap();
    let reservations = [
        with_uid(reservation("train", "Pending", "LedgerLost", 1), "new-train"),
        with_uid(reservation("serve", "Pending", "LedgerLost", 1), "new-serve"),
    ];
    let nodes = [node_with_uid("node-1", "h200", "new-1"), node_with_uid("node-2", "h200", "new-2")];
    let matches = match_names(&whole, &reservations, &nodes);
    assert_eq!((matches.lost, matches.nodes_gone), (Vec::new(), Vec::new()));
    let uids: BTreeMap<String, String> =
        matches.rebound.into_iter().map(|rebound| (rebound.from, rebound.to)).collect();
    assert_eq!(uids.len(), 4);

    let mut names = 0;
    let mut name = |kind: &str| {
        names += 1;
        format!("{kind}-0192aabb-ccdd-7eff-9000-{names:012}")
    };
    let (root, pages) = rename(&copy.root, &copy.pages, &uids, &mut name).unwrap();
    let renamed = crate::ledger::copy::Copy { root, pages, ..copy.clone() };
    assert!(renamed.faults().is_empty(), "{:?}", renamed.faults());
    let now = renamed.decode().unwrap();
    let mut said: Vec<(&str, &str)> =
        now.live.iter().map(|booking| (booking.reservation.uid.as_str(), booking.segments[0].uid.as_str())).collect();
    said.sort_unstable();
    assert_eq!(said, [("new-serve", "new-2"), ("new-train", "new-1")]);
    // No name is used twice, and history stays as it was.
    let before: BTreeSet<&str> = copy.pages.iter().map(|page| page.name.as_str()).collect();
    for page in &renamed.pages {
        let kept = copy.pages.iter().any(|old| old == page);
        assert!(kept || !before.contains(page.name.as_str()), "{} says something else now", page.name);
        assert_eq!(kept, page.spec.kind == PageKind::Archive, "{}", page.name);
    }
}

#[rstest]
#[case::gone(vec![], "does not exist")]
#[case::another_size(vec![json!({"devices": {"count": 16}})], "wants 16 devices and 8 were booked")]
#[case::parts(vec![json!({"exclusiveNodes": false})], "wants parts of nodes and whole nodes were booked")]
#[case::another_tier(vec![json!({"tier": "Spot"})], "of tier Spot and Committed was booked")]
#[case::another_term(vec![json!({"term": {"duration": "4h"}})], "another term")]
fn a_reservation_that_is_not_the_same_is_not_taken_for_it(
    #[case] specs: Vec<serde_json::Value>,
    #[case] expected: &str,
) {
    let whole = copy(&[("b-1", "train", "node-1")]).decode().unwrap();
    let reservations: Vec<GpuReservation> = specs
        .into_iter()
        .map(|over| {
            let mut value = serde_json::to_value(with_uid(reservation("train", "Pending", "x", 1), "new")).unwrap();
            value["spec"].as_object_mut().unwrap().extend(over.as_object().unwrap().clone());
            serde_json::from_value(value).unwrap()
        })
        .collect();
    let matches = match_names(&whole, &reservations, &[node("node-1", "h200", "closed", true)]);
    assert_eq!(matches.lost.len(), 1, "{matches:?}");
    assert!(matches.lost[0].why.contains(expected), "{matches:?}");
}

#[test]
fn a_node_that_is_gone_or_elsewhere_is_said() {
    let whole = copy(&[("b-1", "train", "node-1"), ("b-2", "serve", "node-2")]).decode().unwrap();
    let matches = match_names(
        &whole,
        &[reservation("train", "Active", "x", 9), reservation("serve", "Active", "x", 9)],
        &[node_with_uid("node-1", "other", "new-1")],
    );
    let said: Vec<(&str, &str)> =
        matches.nodes_gone.iter().map(|one| (one.object.as_str(), one.why.as_str())).collect();
    assert_eq!(
        said,
        [
            ("Node/node-1", "the node of this name is not in the pool of the booking"),
            ("Node/node-2", "it does not exist")
        ]
    );
}

#[test]
fn what_ended_and_is_applied_again_is_said_to_be_bought_again() {
    let whole = copy(&[]).decode().unwrap();
    let again = with_uid(reservation("old", "Pending", "LedgerLost", 1), "new-old");
    let matches = match_names(&whole, &[again], &[]);
    assert_eq!(matches.bought_again.len(), 1);
    assert_eq!(matches.bought_again[0].object, "GpuReservation/acme/old");
}
