use std::net::SocketAddr;

use rstest::rstest;

use super::*;

const NOW: u64 = 1_000_000;

fn facts() -> Facts {
    Facts {
        replicas: 1,
        min: Some(0),
        asleep: false,
        idle_after_ms: 60_000,
        startup_ms: 600_000,
        held: false,
        idle_ms: Ok(500_000),
    }
}

fn ready(since_ms: u64) -> Option<Seen> {
    Some(Seen { up_ms: 0, ready_ms: Some(since_ms) })
}

fn unknown() -> Result<u64, Unknown> {
    Err(Unknown::Silent { address: SocketAddr::from(([10, 0, 0, 1], 1)), seconds: 9 })
}

#[rstest]
#[case::held(Facts { held: true, ..facts() }, Some(Change::Wake))]
#[case::nobody(facts(), None)]
#[case::held_and_another_gateway_is_silent(Facts { held: true, idle_ms: unknown(), ..facts() }, Some(Change::Wake))]
#[case::a_person_stopped_it(Facts { held: true, min: None, ..facts() }, None)]
#[case::stopped_above_none(Facts { held: true, min: Some(2), ..facts() }, None)]
#[case::min_was_raised_while_it_slept(Facts { asleep: true, min: Some(2), ..facts() }, Some(Change::Lift(2)))]
#[case::scaling_was_taken_away_while_it_slept(Facts { asleep: true, min: None, ..facts() }, Some(Change::Lift(1)))]
fn what_is_done_with_none(#[case] facts: Facts, #[case] expected: Option<Change>) {
    assert_eq!(decide(&Facts { replicas: 0, ..facts }, None, Some(NOW), NOW), expected);
}

#[rstest]
#[case::idle(facts(), ready(900_000), Some(Change::Sleep))]
#[case::not_for_long_enough(Facts { idle_ms: Ok(59_999), ..facts() }, ready(900_000), None)]
#[case::just_woken(facts(), ready(940_001), None)]
#[case::not_known(Facts { idle_ms: unknown(), ..facts() }, ready(0), None)]
#[case::may_not(Facts { min: Some(1), ..facts() }, ready(0), None)]
#[case::does_not_scale(Facts { min: None, ..facts() }, ready(0), None)]
#[case::never_seen(facts(), None, None)]
#[case::it_starts_still(facts(), Some(Seen { up_ms: 400_000, ready_ms: None }), None)]
#[case::it_should_have_started(facts(), Some(Seen { up_ms: 340_000, ready_ms: None }), Some(Change::Sleep))]
#[case::many(Facts { replicas: 9, ..facts() }, ready(900_000), Some(Change::Sleep))]
fn what_is_done_with_some(#[case] facts: Facts, #[case] seen: Option<Seen>, #[case] expected: Option<Change>) {
    assert_eq!(decide(&facts, seen, None, NOW), expected);
}

/// An HPA that meets a conflict with our number writes its own again.
#[rstest]
#[case::undone(facts(), 999_000, Some(Change::SleepAgain))]
#[case::somebody_asked(Facts { idle_ms: Ok(999), ..facts() }, 999_000, None)]
#[case::somebody_waits(Facts { held: true, ..facts() }, 999_000, None)]
#[case::not_known(Facts { idle_ms: unknown(), ..facts() }, 999_000, None)]
#[case::later(facts(), 994_999, None)]
#[case::may_not_sleep_any_more(Facts { min: Some(1), ..facts() }, 999_000, None)]
fn who_takes_back_that_it_sleeps_is_too_late(
    #[case] facts: Facts,
    #[case] slept_ms: u64,
    #[case] expected: Option<Change>,
) {
    let seen = Some(Seen { up_ms: NOW, ready_ms: None });
    assert_eq!(decide(&facts, seen, Some(slept_ms), NOW), expected);
}

/// As an API server writes it when the HPA controller and `kubectl scale` have written.
#[test]
fn who_wrote_the_replicas_is_known() {
    let entry = |manager: &str, fields: serde_json::Value| -> ManagedFieldsEntry {
        serde_json::from_value(json!({
            "manager": manager, "operation": "Update", "apiVersion": "spillway.dev/v1alpha1", "fieldsType": "FieldsV1",
            "subresource": "scale", "fieldsV1": fields,
        }))
        .unwrap()
    };
    assert!(writes_replicas(&entry(HPA, json!({"f:spec": {"f:replicas": {}}}))));
    assert!(!writes_replicas(&entry(HPA, json!({"f:status": {"f:replicas": {}}}))));
    assert!(!writes_replicas(&entry("kubectl", json!({"f:spec": {"f:scaling": {}}}))));
}
