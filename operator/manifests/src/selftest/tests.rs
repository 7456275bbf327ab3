use rstest::rstest;

use super::*;

const HOLDER: &str = "uid-1";

fn all() -> Vec<Attack> {
    attacks("nvidia.com/", 120)
}

fn attack(name: &str) -> Attack {
    all().into_iter().find(|attack| attack.name == name).unwrap()
}

fn refused_by(policy: &str) -> Answer {
    Answer::Refused(format!(
        "pods \"selftest\" is forbidden: ValidatingAdmissionPolicy '{policy}' with binding '{policy}' denied request: no"
    ))
}

/// As the mutating policies would return it.
fn pinned(attack: &Attack, holder: &str) -> Value {
    let mut object = attack.body.clone();
    let spec = object.pointer_mut(attack.object.spec()).unwrap();
    spec["tolerations"] = json!([
        {"key": "node.kubernetes.io/not-ready", "operator": "Exists"},
        {"key": "spillway.dev/hold", "operator": "Equal", "value": holder},
    ]);
    spec["nodeSelector"] = json!({"hold.spillway.dev/spillway-selftest": "true"});
    object
}

#[test]
fn each_try_is_a_well_formed_object_of_its_own() {
    let all = all();
    for (index, attack) in all.iter().enumerate() {
        let text = attack.body.to_string();
        match attack.object {
            Object::Pod => drop(serde_json::from_str::<k8s_openapi::api::core::v1::Pod>(&text).unwrap()),
            Object::DaemonSet => drop(serde_json::from_str::<k8s_openapi::api::apps::v1::DaemonSet>(&text).unwrap()),
        }
        let twin = all.iter().skip(index + 1).find(|other| other.body == attack.body || other.name == attack.name);
        assert!(twin.is_none(), "{} is tried twice", attack.name);
    }
    assert!(all.iter().filter(|attack| attack.expect == Expect::Pinned).count() == 3 && all.len() > 15);
}

#[test]
fn the_grace_cap_of_the_installation_is_tried() {
    let over = attacks("amd.com/", 60).into_iter().find(|attack| attack.name == "grace period over the cap").unwrap();
    assert_eq!(over.body["spec"]["terminationGracePeriodSeconds"], json!(61));
    assert_eq!(over.body["spec"]["containers"][0]["resources"]["limits"], json!({"amd.com/gpu": "1"}));
}

#[rstest]
#[case::ours("nodeName", &refused_by("spillway-pod"), "Passed")]
#[case::ours_but_another("nodeName", &refused_by("spillway-resize"), "Inconclusive")]
#[case::accepted("nodeName", &Answer::Accepted(json!({})), "Failed")]
#[case::no_right("nodeName", &Answer::Refused("pods is forbidden: User \"spillway:selftest\" cannot create".to_owned()), "Inconclusive")]
#[case::a_quota("nodeName", &Answer::Refused("exceeded quota".to_owned()), "Inconclusive")]
#[case::silence("nodeName", &Answer::None("no answer within 15s".to_owned()), "Inconclusive")]
#[case::a_control_refused_by_ours("a pod with devices", &refused_by("spillway-pod"), "Failed")]
#[case::a_control_refused_by_others("a pod with devices", &Answer::Refused("image policy".to_owned()), "Inconclusive")]
#[case::a_control_unchanged("a pod with devices", &Answer::Accepted(attack("a pod with devices").body), "Failed")]
#[case::a_control_pinned("a pod with devices", &Answer::Accepted(pinned(&attack("a pod with devices"), HOLDER)), "Passed")]
#[case::a_control_of_another("a pod with devices", &Answer::Accepted(pinned(&attack("a pod with devices"), "uid-2")), "Failed")]
#[case::a_daemonset_pinned("a DaemonSet with devices", &Answer::Accepted(pinned(&attack("a DaemonSet with devices"), HOLDER)), "Passed")]
#[case::a_daemonset_unchanged("a DaemonSet with devices", &Answer::Accepted(attack("a DaemonSet with devices").body), "Failed")]
fn only_our_refusal_of_an_attack_and_our_pin_of_a_control_pass(
    #[case] name: &str,
    #[case] answer: &Answer,
    #[case] expected: &str,
) {
    let verdict = judge(&attack(name), answer, HOLDER);
    assert!(format!("{verdict:?}").starts_with(expected), "{verdict:?}");
}

#[test]
fn a_failure_outweighs_what_is_unclear_and_nothing_is_needed_to_pass_but_all() {
    let failed = || Verdict::Failed("a".to_owned());
    let unclear = || Verdict::Inconclusive("b".to_owned());
    assert_eq!(sum([Verdict::Passed, Verdict::Passed]), Outcome::Passed);
    assert_eq!(sum([Verdict::Passed, unclear(), failed()]), Outcome::Failed(vec!["a".to_owned()]));
    assert_eq!(sum([Verdict::Passed, unclear()]), Outcome::Inconclusive(vec!["b".to_owned()]));
}
