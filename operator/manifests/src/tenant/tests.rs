use jiff::Timestamp;
use serde_json::json;
use spillway_crds::{ConditionStatus, Tenant};

use super::{Facts, Labels, build_labels, build_status, build_unlabel};

fn labels(list: &[(&str, &str)]) -> Labels {
    list.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

#[test]
fn a_namespace_gets_what_it_lacks_and_no_weaker_pod_security() {
    let all = json!({"metadata": {"labels": {"spillway.dev/role": "tenant", "spillway.dev/holder": "u", "spillway.dev/tenant": "acme",
        "pod-security.kubernetes.io/enforce": "baseline"}}});
    assert_eq!(build_labels("acme", false, "u", &labels(&[])), Some(all));
    let done = labels(&[
        ("spillway.dev/role", "tenant"),
        ("spillway.dev/holder", "u"),
        ("spillway.dev/tenant", "acme"),
        ("pod-security.kubernetes.io/enforce", "restricted"),
    ]);
    assert_eq!(build_labels("acme", false, "u", &done), None);
    let owner = json!({"metadata": {"labels": {"spillway.dev/role": "owner", "spillway.dev/holder": "u", "spillway.dev/tenant": "house"}}});
    assert_eq!(build_labels("house", true, "u", &labels(&[])), Some(owner));
}

#[test]
fn only_our_labels_are_taken_off() {
    let some =
        labels(&[("spillway.dev/role", "tenant"), ("pod-security.kubernetes.io/enforce", "baseline"), ("team", "x")]);
    assert_eq!(build_unlabel(&some), Some(json!({"metadata": {"labels": {"spillway.dev/role": null}}})));
    assert_eq!(build_unlabel(&labels(&[("team", "x")])), None);
}

#[test]
fn a_namespace_of_somebody_else_stalls_and_a_missing_one_waits() {
    let tenant: Tenant = serde_json::from_value(json!({
        "apiVersion": "spillway.dev/v1alpha1", "kind": "Tenant", "metadata": {"name": "t", "generation": 1}, "spec": {"namespaces": ["a"]}
    }))
    .unwrap();
    let told = |problems: Vec<(&'static str, String)>| {
        let status = build_status(&tenant, &Facts { problems, ..Facts::default() }, Timestamp::UNIX_EPOCH);
        ["Ready", "Reconciling", "Stalled"].map(|type_| {
            status.conditions.iter().find(|condition| condition.type_ == type_).unwrap().status == ConditionStatus::True
        })
    };
    assert_eq!(told(vec![]), [true, false, false]);
    assert_eq!(told(vec![("NamespaceMissing", String::new())]), [false, true, false]);
    assert_eq!(
        told(vec![("NamespaceTaken", String::new()), ("NamespaceMissing", String::new())]),
        [false, false, true]
    );
}
