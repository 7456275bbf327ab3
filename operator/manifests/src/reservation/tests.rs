use jiff::Timestamp;
use rstest::rstest;
use serde_json::json;
use spillway_crds::{ConditionStatus, GpuReservation, Phase};
use spillway_planner::{Booking, EndReason, Outcome, Reason, ReservationRef, Segment, Tier, TimeMs};

use super::{Facts, build_status, differs_in_substance};

fn reservation() -> GpuReservation {
    serde_json::from_value(json!({
        "apiVersion": "spillway.dev/v1alpha1", "kind": "GpuReservation",
        "metadata": {"name": "train", "namespace": "acme", "uid": "u1", "generation": 3},
        "spec": {"pool": "p", "devices": {"count": 16}, "tier": "Committed", "term": {"duration": "1h"}}
    }))
    .unwrap()
}

fn segment(node: &str, from: Option<i64>, to: Option<i64>) -> Segment {
    Segment {
        node: node.into(),
        uid: format!("uid-{node}").into(),
        devices: 8,
        of: None,
        from: from.map(TimeMs),
        to: to.map(TimeMs),
    }
}

fn booking(segments: Vec<Segment>) -> Booking {
    Booking {
        id: "b-1".into(),
        reservation: ReservationRef { uid: "u1".into(), namespace: "acme".into(), name: "train".into(), generation: 3 },
        tenant: "acme".into(),
        pool: "p".into(),
        sku: "h200".into(),
        region: "us".into(),
        tier: Tier::Committed,
        devices: 16,
        exclusive: true,
        require: None,
        duration_ms: Some(3_600_000),
        booked_at: TimeMs(1_000),
        active_at: None,
        end: None,
        end_reason: None,
        segments,
    }
}

fn active(segments: Vec<Segment>) -> Booking {
    Booking { active_at: Some(TimeMs(10_000)), end: Some(TimeMs(3_610_000)), ..booking(segments) }
}

/// Phase, reason, and the status of Ready, Reconciling, Stalled.
fn told(facts: Facts<'_>) -> (Phase, String, [ConditionStatus; 3]) {
    let status = build_status(&reservation(), facts, None, Timestamp::UNIX_EPOCH);
    let of = |type_: &str| status.conditions.iter().find(|condition| condition.type_ == type_).unwrap().status;
    (status.phase, status.reason.unwrap(), [of("Ready"), of("Reconciling"), of("Stalled")])
}

use ConditionStatus::{False as F, True as T};

#[test]
fn the_promise_stands_from_the_booking_on() {
    let booked = booking(vec![segment("a", None, None), segment("b", None, None)]);
    assert_eq!(told(Facts::Live { booking: &booked, preparing: false }), (Phase::Booked, "Booked".into(), [T, F, F]));
    assert_eq!(
        told(Facts::Live { booking: &booked, preparing: true }),
        (Phase::Preparing, "Preparing".into(), [T, F, F])
    );
    let active = active(vec![segment("a", Some(9_000), None), segment("b", Some(10_000), None)]);
    assert_eq!(told(Facts::Live { booking: &active, preparing: true }), (Phase::Active, "Active".into(), [T, F, F]));
}

#[test]
fn a_commitment_that_is_short_says_so() {
    let short = active(vec![segment("a", Some(9_000), Some(20_000)), segment("b", Some(10_000), None)]);
    assert_eq!(
        told(Facts::Live { booking: &short, preparing: true }),
        (Phase::Active, "CommitmentAtRisk".into(), [F, F, T])
    );
}

#[rstest]
#[case(EndReason::TermOver, false, Phase::Ending, "TermOver")]
#[case(EndReason::TermOver, true, Phase::Ended, "TermOver")]
#[case(EndReason::Deleted, true, Phase::Ended, "Deleted")]
fn what_ended_as_agreed_is_ready(
    #[case] reason: EndReason,
    #[case] given_back: bool,
    #[case] phase: Phase,
    #[case] word: &str,
) {
    let over = Booking { end_reason: Some(reason), ..active(vec![segment("a", Some(10_000), None)]) };
    assert_eq!(told(Facts::Ended { booking: &over, given_back }), (phase, word.to_owned(), [T, F, F]));
}

#[test]
fn what_waits_reconciles_and_what_was_refused_stalls() {
    let reason = || Reason { code: "QuotaInUse", message: "no".to_owned() };
    assert_eq!(
        told(Facts::Answer(&Outcome::Waitlisted(reason()))),
        (Phase::Waitlisted, "QuotaInUse".into(), [F, T, F])
    );
    assert_eq!(told(Facts::Answer(&Outcome::Rejected(reason()))), (Phase::Rejected, "QuotaInUse".into(), [F, F, T]));
    assert_eq!(told(Facts::Answer(&Outcome::Expired(reason()))), (Phase::Expired, "QuotaInUse".into(), [F, F, T]));
    assert_eq!(told(Facts::Blocked("LedgerLost", "x")), (Phase::Pending, "LedgerLost".into(), [F, T, F]));
    assert_eq!(told(Facts::NotYet), (Phase::Pending, "Pending".into(), [F, T, F]));
}

#[test]
fn the_meter_counts_from_active_less_what_was_lost() {
    // a: handed over before Active, lost at 20 s; b: Active to the end; c replaced a at 30 s.
    let over = Booking {
        end: Some(TimeMs(40_000)),
        end_reason: Some(EndReason::Deleted),
        ..active(vec![
            segment("a", Some(9_000), Some(20_000)),
            segment("b", Some(10_000), None),
            segment("c", Some(30_000), None),
        ])
    };
    let status =
        build_status(&reservation(), Facts::Ended { booking: &over, given_back: true }, None, Timestamp::UNIX_EPOCH);
    assert_eq!(status.meter.unwrap().device_milliseconds, 8 * 10_000 + 8 * 30_000 + 8 * 10_000);
    assert_eq!(status.node_count, Some(2));
}

#[test]
fn never_active_is_never_metered() {
    let over = Booking {
        end: Some(TimeMs(40_000)),
        end_reason: Some(EndReason::Deleted),
        ..booking(vec![segment("a", None, None)])
    };
    let status =
        build_status(&reservation(), Facts::Ended { booking: &over, given_back: true }, None, Timestamp::UNIX_EPOCH);
    assert_eq!(status.meter.unwrap().device_milliseconds, 0);
}

#[test]
fn room_on_a_lost_node_is_told_until_the_node_has_given_it_back() {
    let mut object = reservation();
    let place =
        |node: &str, ending: bool| json!({"pod": "p", "podUid": "u", "node": node, "devices": 8, "ending": ending});
    let places = json!({"phase": "Active", "assignments": [place("a", false), place("b", true)]});
    object.status = Some(serde_json::from_value(places).unwrap());
    let mut shared = active(vec![segment("a", Some(10_000), Some(20_000)), segment("b", Some(10_000), None)]);
    shared.exclusive = false;
    let told = |facts: Facts<'_>| -> Vec<(String, bool)> {
        let status = build_status(&object, facts, None, Timestamp::UNIX_EPOCH);
        status.assignments.into_iter().map(|one| (one.node, one.ending)).collect()
    };
    let live = Facts::Live { booking: &shared, preparing: true };
    assert_eq!(told(live), [("a".to_owned(), true), ("b".to_owned(), false)]);
    assert_eq!(told(Facts::Ended { booking: &shared, given_back: false }).len(), 2);
    assert_eq!(told(Facts::Ended { booking: &shared, given_back: true }), []);
}

#[test]
fn the_same_facts_give_the_same_status() {
    let booked = booking(vec![segment("b", None, None), segment("a", None, None)]);
    let facts = Facts::Live { booking: &booked, preparing: true };
    let first = build_status(&reservation(), facts, None, Timestamp::UNIX_EPOCH);
    let again = GpuReservation { status: Some(first.clone()), ..reservation() };
    let second = build_status(&again, facts, None, Timestamp::from_second(99).unwrap());
    assert_eq!(first, second);
    assert!(!differs_in_substance(&first, &second));
    assert_eq!(first.nodes.iter().map(|node| node.name.as_str()).collect::<Vec<_>>(), ["a", "b"]);
}
