use rstest::rstest;

use super::*;

fn clear() -> State {
    State { stance: Stance::Enforce, policies: None, tested: None, brake: None, since: Instant::now() }
}

#[rstest]
#[case::a_new_leader(State::default(), Some("SelfTestPending"))]
#[case::all_is_well(clear(), None)]
#[case::a_policy_is_gone(State { policies: Some(wrong(&["x is missing".to_owned()], None)), ..clear() }, Some("PoliciesWrong"))]
#[case::not_tried_yet(State { tested: Some(pending()), ..clear() }, Some("SelfTestPending"))]
#[case::a_person_must_act_first(
    State { brake: Some(braked("c", "n", "a/b")), policies: Some(changing()), ..clear() },
    Some("AuditBrake")
)]
#[case::observing_tests_nothing(State { stance: Stance::Observe, tested: Some(pending()), ..clear() }, None)]
#[case::observing_with_policies_in_force(
    State { stance: Stance::Observe, policies: Some(changing()), ..clear() },
    Some("PoliciesChanging")
)]
fn what_is_in_doubt(#[case] state: State, #[case] expected: Option<&str>) {
    assert_eq!(state.doubt().map(|doubt| doubt.0), expected);
}

#[rstest]
#[case::at_a_start(State::default(), None)]
#[case::a_start_that_lasts(
    State { since: Instant::now().checked_sub(UNTOLD).unwrap(), ..State::default() },
    Some("SelfTestPending")
)]
#[case::what_does_not_pass(State { policies: Some(no_copy("it is gone")), ..clear() }, Some("PolicyCopyMissing"))]
fn what_passes_by_itself_is_not_told(#[case] state: State, #[case] expected: Option<&str>) {
    assert_eq!(state.told().map(|doubt| doubt.0), expected);
}

#[test]
fn a_doubt_says_what_to_do() {
    let many: Vec<String> = (0..3).map(|n| format!("VAP p{n} is missing")).collect();
    assert_eq!(
        wrong(&many, Some("forbidden")).1,
        "VAP p0 is missing; and 2 more; they could not be restored (forbidden), which is tried again: helm upgrade the release."
    );
    assert!(
        braked("spillway-audit-brake", "ns", "a/b").1.contains("kubectl delete configmap -n ns spillway-audit-brake")
    );
}
