use rstest::rstest;
use spillway_planner::{MilliGpu, Request, ReservationRef, Segment, Shape, Tier, TimeMs, Where, plan::PlannedShare};

use super::*;

#[rstest]
#[case::no_pools(&[], 0, Stance::Enforce)]
#[case::all_enforce(&[("a", Mode::Enforce)], 0, Stance::Enforce)]
#[case::all_observe(&[("a", Mode::Observe), ("b", Mode::Observe)], 0, Stance::Observe)]
#[case::a_mix(&[("a", Mode::Observe), ("b", Mode::Enforce)], 0, Stance::Mixed(vec!["b".to_owned()]))]
#[case::a_mix_with_bookings(&[("a", Mode::Observe), ("b", Mode::Enforce)], 3, Stance::Mixed(vec!["b".to_owned()]))]
#[case::what_is_sold_is_held(&[("a", Mode::Observe)], 3, Stance::Holding(3))]
fn policies_rest_only_when_all_pools_observe_and_nothing_is_booked(
    #[case] pools: &[(&str, Mode)],
    #[case] bookings: usize,
    #[case] expected: Stance,
) {
    assert_eq!(stance(pools.iter().copied(), bookings), expected);
}

fn reservation(name: &str) -> ReservationRef {
    ReservationRef { uid: name.into(), namespace: "acme".into(), name: name.into(), generation: 1 }
}

fn request(name: &str) -> Request {
    Request {
        reservation: reservation(name),
        tenant: Some("acme".into()),
        place: Where::Pool("h200".into()),
        shape: Shape::WholeNodes { count: 16, per_node: None },
        tier: Tier::OnDemand,
        duration_ms: None,
        require: None,
        created: TimeMs(1),
        wait_for_ms: 1,
        deleting: false,
    }
}

#[test]
fn a_plan_says_what_it_would_do_and_does_nothing() {
    let segment =
        |node: &str| Segment { node: node.into(), uid: node.into(), devices: 8, of: None, from: None, to: None };
    let snapshot =
        Snapshot { requests: vec![request("fits"), request("waits"), request("never")], ..Snapshot::default() };
    let why = |code| Reason { code, message: "Because.".to_owned() };
    let mut plan = Plan {
        bookings: vec![NewBooking {
            reservation: reservation("fits"),
            pool: "h200".into(),
            segments: vec![segment("a"), segment("b")],
            shares: Vec::new(),
        }],
        outcomes: vec![
            ("waits".into(), Outcome::Waitlisted(why("InsufficientCapacity"))),
            ("never".into(), Outcome::Rejected(why("QuotaExceeded"))),
        ],
        ..Plan::default()
    };
    speak(&mut plan, &snapshot);
    let said: Vec<(String, String)> = plan
        .outcomes
        .iter()
        .map(|(uid, outcome)| match outcome {
            Outcome::Waitlisted(Reason { code: "Observing", message }) => (uid.to_string(), message.clone()),
            other => panic!("{other:?}"),
        })
        .collect();
    let expected = [
        ("waits", "All pools observe. It would wait (InsufficientCapacity): Because."),
        ("never", "All pools observe. It would be refused (QuotaExceeded): Because."),
        ("fits", "All pools observe. It would be booked now, on 2 nodes of pool `h200`. Set mode: Enforce to sell."),
    ];
    assert_eq!(said, expected.map(|(uid, text)| (uid.to_owned(), text.to_owned())));
    assert!(plan.bookings.is_empty() && plan.swaps.is_empty());
}

/// Device of node, each of half a device.
fn share(node: &str, device: u16) -> PlannedShare {
    PlannedShare { node: node.into(), uid: node.into(), device, gpu: MilliGpu(500) }
}

#[rstest]
#[case::one(
    vec![share("a", 0)],
    "1 share of `half` on 1 device of 1 node of pool `h200`"
)]
#[case::two_of_a_device(
    vec![share("a", 0), share("a", 3), share("a", 0)],
    "3 shares of `half` on 2 devices of 1 node of pool `h200`"
)]
#[case::the_same_number_on_other_nodes(
    vec![share("a", 0), share("b", 0)],
    "2 shares of `half` on 2 devices of 2 nodes of pool `h200`"
)]
fn shares_are_said_and_not_promised(#[case] shares: Vec<PlannedShare>, #[case] expected: &str) {
    let count = u32::try_from(shares.len()).unwrap();
    let wants = Request { shape: Shape::Shares { count, profile: "half".into() }, ..request("r") };
    let snapshot = Snapshot { requests: vec![wants], ..Snapshot::default() };
    let booking = NewBooking { reservation: reservation("r"), pool: "h200".into(), segments: Vec::new(), shares };
    let mut plan = Plan { bookings: vec![booking], ..Plan::default() };
    speak(&mut plan, &snapshot);
    let message = format!(
        "All pools observe. It would be booked now: {expected}. Shares are planned and not held yet: with mode: Enforce it would be refused."
    );
    assert_eq!(
        plan,
        Plan {
            outcomes: vec![("r".into(), Outcome::Waitlisted(Reason { code: "Observing", message }))],
            ..Plan::default()
        }
    );
}

#[test]
fn a_hold_comes_off_and_nothing_else() {
    let node: Node = serde_json::from_value(json!({
        "metadata": {"name": "n", "resourceVersion": "7", "labels": {"spillway.dev/pool": "p", "hold.spillway.dev/acme": "true"},
            "annotations": {"spillway.dev/generation": "4", "spillway.dev/hold-since": "1", "spillway.dev/booking": "b"}},
        "spec": {"taints": [{"key": "vendor/x", "effect": "NoSchedule"},
            {"key": "spillway.dev/hold", "value": "closed", "effect": "NoSchedule"}, {"key": "spillway.dev/hold", "value": "closed", "effect": "NoExecute"}]},
    }))
    .unwrap();
    assert_eq!(
        build_release(&node),
        Some(json!({
            "metadata": {"resourceVersion": "7", "labels": {"hold.spillway.dev/acme": null}, "annotations": {
                "spillway.dev/hold-since": null, "spillway.dev/booking": null,
                "cluster-autoscaler.kubernetes.io/scale-down-disabled": null, "karpenter.sh/do-not-disrupt": null}},
            "spec": {"taints": [{"key": "vendor/x", "effect": "NoSchedule"}]},
        }))
    );
    let free: Node =
        serde_json::from_value(json!({"metadata": {"name": "n", "labels": {"spillway.dev/pool": "p"}}})).unwrap();
    assert_eq!(build_release(&free), None);
}
