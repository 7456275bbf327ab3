use jiff::Timestamp;
use serde_json::json;
use spillway_crds::{ConditionStatus, GpuPool};

use super::{Facts, NodeClass, NodeFacts, build_status};

fn pool() -> GpuPool {
    serde_json::from_value(json!({
        "apiVersion": "spillway.dev/v1alpha1", "kind": "GpuPool", "metadata": {"name": "p", "generation": 1},
        "spec": {"sku": "h200", "region": "us", "provenance": "Owned", "devices": {"resource": "nvidia.com/gpu", "perNode": 8}}
    }))
    .unwrap()
}

fn node(name: &str, class: NodeClass, problem: Option<&str>) -> NodeFacts {
    NodeFacts { name: name.to_owned(), class, devices: 8, rest: 0, owner_used: 1, problem: problem.map(str::to_owned) }
}

#[test]
fn states_add_up() {
    let facts = Facts {
        nodes: vec![
            node("a", NodeClass::Held, None),
            node("b", NodeClass::Unsold, None),
            node("c", NodeClass::Turnover, None),
            node("d", NodeClass::Broken, Some("it is cordoned")),
        ],
        sold: Some((16, vec!["acme/train".to_owned()])),
        not_selling: None,
        observing: None,
    };
    let status = build_status(&pool(), &facts, Timestamp::UNIX_EPOCH);
    let nodes = &status.nodes;
    assert_eq!(nodes.total, nodes.held + nodes.unsold + nodes.turnover + nodes.broken);
    let devices = &status.devices;
    assert_eq!((devices.owned, devices.sold, devices.owner_used), (32, 16, 4));
    assert_eq!(devices.owned, devices.held + devices.unsold + devices.turnover + devices.broken);
    let sound = status.conditions.iter().find(|condition| condition.type_ == "NodesSound").unwrap();
    assert_eq!((sound.status, sound.message.as_str()), (ConditionStatus::False, "d: it is cordoned"));
}

#[test]
fn the_rest_of_a_shared_node_is_unsold() {
    let shared = NodeFacts { rest: 5, ..node("a", NodeClass::Held, None) };
    let facts = Facts { nodes: vec![shared, node("b", NodeClass::Unsold, None)], ..Facts::default() };
    let devices = build_status(&pool(), &facts, Timestamp::UNIX_EPOCH).devices;
    assert_eq!((devices.owned, devices.held, devices.unsold), (16, 3, 13));
}

#[test]
fn a_paused_pool_is_healthy_and_a_lost_ledger_is_not() {
    let status_of = |reason: &'static str| {
        let facts = Facts { not_selling: Some((reason, "why".to_owned())), ..Facts::default() };
        let status = build_status(&pool(), &facts, Timestamp::UNIX_EPOCH);
        let of = |type_: &str| status.conditions.iter().find(|condition| condition.type_ == type_).unwrap().status;
        (of("Ready"), of("Stalled"))
    };
    assert_eq!(status_of("Observing"), (ConditionStatus::True, ConditionStatus::False));
    assert_eq!(status_of("SelfTestPending"), (ConditionStatus::False, ConditionStatus::False));
    assert_eq!(status_of("SelfTestFailed"), (ConditionStatus::False, ConditionStatus::True));
    assert_eq!(status_of("Paused"), (ConditionStatus::True, ConditionStatus::False));
    assert_eq!(status_of("LedgerLost"), (ConditionStatus::False, ConditionStatus::True));
}

#[test]
fn only_a_pool_that_observes_says_whether_it_does() {
    let of = |observing| {
        let status = build_status(&pool(), &Facts { observing, ..Facts::default() }, Timestamp::UNIX_EPOCH);
        status
            .conditions
            .into_iter()
            .find(|condition| condition.type_ == "Observing")
            .map(|found| (found.status, found.reason))
    };
    assert_eq!(of(None), None);
    let mixed = of(Some((false, "MixedModes", "why".to_owned())));
    assert_eq!(mixed, Some((ConditionStatus::False, "MixedModes".to_owned())));
}

#[test]
fn while_the_ledger_is_not_known_what_was_said_stands() {
    let known = Facts { sold: Some((8, vec!["acme/train".to_owned()])), ..Facts::default() };
    let before = build_status(&pool(), &known, Timestamp::UNIX_EPOCH);
    let again = GpuPool { status: Some(before), ..pool() };
    let status = build_status(&again, &Facts::default(), Timestamp::UNIX_EPOCH);
    assert_eq!((status.devices.sold, status.live_booking_count), (8, 1));
    assert_eq!(status.live_bookings, ["acme/train"]);
}
