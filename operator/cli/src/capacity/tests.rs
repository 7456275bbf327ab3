use serde_json::json;
use spillway_crds::names::PARTS_ANNOTATION;

use super::*;
use crate::{
    output::shown,
    sample::{booking, node, pod, pool},
};

fn facts() -> Facts {
    let held = |name: &str| node(name, "h200", "uid-acme", true);
    let mut cordoned = node("n5", "h200", "unsold", true);
    cordoned.spec.as_mut().unwrap().unschedulable = Some(true);
    let mut short = node("n6", "h200", "unsold", true);
    short
        .status
        .as_mut()
        .unwrap()
        .allocatable
        .as_mut()
        .unwrap()
        .insert("nvidia.com/gpu".to_owned(), serde_json::from_value(json!("7")).unwrap());
    Facts {
        pools: vec![
            pool("h200", "nvidia-h200-sxm", 8),
            pool("h200-west", "nvidia-h200-sxm", 8),
            pool("l4", "nvidia-l4", 4),
        ],
        nodes: vec![
            held("n1"),
            node("n2", "h200", "unsold", true),
            node("n3", "h200", "closed", true),
            node("n4", "h200", "unsold", false),
            cordoned,
            short,
            node("w1", "h200-west", "unsold", true),
        ],
        pods: vec![
            pod("house", "own", "n2", 3),
            pod("acme", "train", "n1", 8),
            // On no node of a pool.
            pod("house", "own-2", "elsewhere", 2),
        ],
        owners: ["house".to_owned()].into(),
        bookings: Bookings {
            live: vec![booking("b-1", "run", "n1").into(), booking("b-2", "next", "n3").into()],
            ..Bookings::default()
        },
    }
}

#[test]
fn pools_and_totals() {
    insta::assert_snapshot!(shown(&capacity(&facts())), @r#"
    POOL       SKU              REGION   NODES  OWNED  SOLD  HELD  UNSOLD  TURNOVER  BROKEN  OWNER-USED
    h200       nvidia-h200-sxm  us-east      6     47    16     8       8         8      23           3
    h200-west  nvidia-h200-sxm  us-east      1      8     0     0       8         0       0           0
    l4         nvidia-l4        us-east      0      0     0     0       0         0       0           0

    SKU              NODES  OWNED  SOLD  HELD  UNSOLD  TURNOVER  BROKEN  OWNER-USED
    nvidia-h200-sxm      7     55    16     8      16         8      23           3
    nvidia-l4            0      0     0     0       0         0       0           0

    BROKEN NODE  PROBLEM
    n4           it is NotReady
    n5           it is cordoned
    n6           it offers 7 devices and the pool says 8
    "#);
}

#[test]
fn states_add_up_to_what_is_owned() {
    for row in capacity(&facts()).pools {
        let amounts = row.amounts;
        assert_eq!(amounts.held + amounts.unsold + amounts.turnover + amounts.broken, amounts.owned, "{}", row.pool);
    }
}

#[test]
fn the_rest_of_a_shared_node_is_unsold() {
    let mut shared = node("n1", "h200", "node.uid-n1", true);
    shared.annotations_mut().insert(PARTS_ANNOTATION.to_owned(), "b-1=3,b-2=1".to_owned());
    let facts = Facts { pools: vec![pool("h200", "nvidia-h200-sxm", 8)], nodes: vec![shared], ..Facts::default() };
    let amounts = capacity(&facts).pools[0].amounts;
    assert_eq!((amounts.owned, amounts.held, amounts.unsold), (8, 4, 4));
}

#[test]
fn a_cluster_without_pools() {
    insta::assert_snapshot!(shown(&capacity(&Facts::default())), @r#"
    There are no GpuPools.
    "#);
}

#[test]
fn a_lost_node_is_not_sold_any_more() {
    let mut facts = facts();
    let mut booking = booking("b-1", "run", "n1");
    booking.segments[0].to = Some(spillway_planner::TimeMs(5));
    facts.bookings.live = vec![booking.into()];
    assert_eq!(capacity(&facts).skus.iter().map(|row| row.amounts.sold).sum::<u64>(), 0);
}

#[test]
fn pods_take_the_larger_of_their_containers_and_their_largest_init_container() {
    let limits = |devices: u32| json!({"limits": {"nvidia.com/gpu": devices.to_string()}});
    let pod: Pod = serde_json::from_value(json!({
        "metadata": {"name": "x"},
        "spec": {
            "containers": [{"name": "a", "resources": limits(2)}, {"name": "b"}],
            "initContainers": [
                {"name": "sidecar", "restartPolicy": "Always", "resources": limits(1)},
                {"name": "first", "resources": limits(4)},
                {"name": "second", "resources": limits(1)},
            ],
        },
    }))
    .unwrap();
    assert_eq!(devices_wanted(&pod, "nvidia.com/gpu"), 4);
    assert_eq!(devices_wanted(&pod, "amd.com/gpu"), 0);
}
