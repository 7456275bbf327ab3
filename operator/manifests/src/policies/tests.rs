use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ManagedFieldsEntry, ObjectMeta};
use rstest::rstest;

use super::*;

fn object(kind: Kind, name: &str, spec: &Value) -> Value {
    json!({"apiVersion": "admissionregistration.k8s.io/v1", "kind": kind.kind(),
        "metadata": {"name": name, "labels": {"app.kubernetes.io/name": "spillway"}}, "spec": spec})
}

fn key(kind: Kind, name: &str) -> Key {
    Key { kind, name: name.to_owned() }
}

fn data() -> BTreeMap<String, String> {
    let binding = json!({"policyName": "a", "validationActions": ["Deny"]});
    [
        (Kind::ValidatingPolicy, "a", json!({"validations": [{"expression": "false"}]})),
        (Kind::ValidatingBinding, "a", binding),
        (Kind::MutatingPolicy, "b", json!({"mutations": []})),
        (Kind::MutatingBinding, "b", json!({"policyName": "b"})),
    ]
    .into_iter()
    .map(|(kind, name, spec)| (format!("{}.{name}", kind.kind()), object(kind, name, &spec).to_string()))
    .chain([("enforce".to_owned(), "true".to_owned())])
    .collect()
}

fn config(data: BTreeMap<String, String>) -> ConfigMap {
    let annotations = [("meta.helm.sh/release-name", "spillway"), ("other", "x")];
    ConfigMap {
        metadata: ObjectMeta {
            annotations: Some(annotations.map(|(key, value)| (key.to_owned(), value.to_owned())).into()),
            ..ObjectMeta::default()
        },
        data: Some(data),
        ..ConfigMap::default()
    }
}

fn copy() -> PolicyCopy {
    read_copy(&config(data())).unwrap()
}

/// As the API server would: with a default filled in.
fn complete(objects: &BTreeMap<Key, Value>) -> BTreeMap<Key, Value> {
    let mut objects = objects.clone();
    for object in objects.values_mut() {
        object["spec"]["matchPolicy"] = json!("Equivalent");
    }
    objects
}

#[test]
fn a_copy_is_read_with_the_marks_of_its_release() {
    let copy = copy();
    assert!(copy.enforced);
    assert_eq!(copy.objects.len(), 4);
    let policy = &copy.objects[&key(Kind::ValidatingPolicy, "a")];
    assert_eq!(policy["metadata"]["annotations"], json!({"meta.helm.sh/release-name": "spillway"}));
}

#[rstest]
#[case::empty(BTreeMap::from([("enforce".to_owned(), "true".to_owned())]), "has no policies")]
#[case::no_json(BTreeMap::from([("x".to_owned(), "{".to_owned())]), "key x of ConfigMap spillway-policies is no admission policy")]
#[case::other_kind(BTreeMap::from([("x".to_owned(), json!({"kind": "Pod"}).to_string())]), "(another kind)")]
#[case::no_spec(BTreeMap::from([("x".to_owned(), json!({"kind": "MutatingAdmissionPolicy", "metadata": {"name": "x"}}).to_string())]), "(it has no spec)")]
#[case::unpaired({ let mut data = data(); data.remove("ValidatingAdmissionPolicyBinding.a"); data }, "has ValidatingAdmissionPolicy a without its counterpart")]
fn a_copy_that_is_no_copy_is_refused(#[case] data: BTreeMap<String, String>, #[case] text: &str) {
    let error = read_copy(&config(data)).unwrap_err().to_string();
    assert!(error.contains(text), "{error}");
}

#[rstest]
#[case::helm_4(vec![("kubectl-edit", "Update"), ("helm", "Apply")], "helm")]
#[case::helm_3(vec![("helm", "Update")], "helm")]
#[case::argo(vec![("argocd-controller", "Apply")], "argocd-controller")]
#[case::nobody(vec![], "spillway")]
fn policies_are_restored_in_the_name_of_who_wrote_the_copy(#[case] entries: Vec<(&str, &str)>, #[case] expected: &str) {
    let mut config = config(data());
    let entry = |(manager, operation): (&str, &str)| ManagedFieldsEntry {
        manager: Some(manager.to_owned()),
        operation: Some(operation.to_owned()),
        ..ManagedFieldsEntry::default()
    };
    config.metadata.managed_fields = Some(entries.into_iter().map(entry).collect());
    assert_eq!(read_copy(&config).unwrap().manager, expected);
}

#[test]
fn while_all_pools_observe_nothing_is_refused_or_changed() {
    let wanted = wanted(&copy(), true);
    let keys: Vec<String> = wanted.keys().map(Key::to_string).collect();
    assert_eq!(
        keys,
        ["ValidatingAdmissionPolicy a", "ValidatingAdmissionPolicyBinding a", "MutatingAdmissionPolicy b"]
    );
    assert_eq!(wanted[&key(Kind::ValidatingBinding, "a")]["spec"]["validationActions"], json!(["Audit"]));
    assert_eq!(super::wanted(&copy(), false), copy().objects);
}

#[rstest]
#[case::as_it_should_be(|_: &mut BTreeMap<Key, Value>| {}, None)]
#[case::an_annotation_is_nobodys_business(
    |live: &mut BTreeMap<Key, Value>| live.get_mut(&key(Kind::MutatingPolicy, "b")).unwrap()["metadata"]["annotations"] = json!({"a": "b"}),
    None
)]
#[case::deleted(
    |live: &mut BTreeMap<Key, Value>| drop(live.remove(&key(Kind::ValidatingBinding, "a"))),
    Some((key(Kind::ValidatingBinding, "a"), Fault::Missing))
)]
#[case::weakened(
    |live: &mut BTreeMap<Key, Value>| live.get_mut(&key(Kind::ValidatingBinding, "a")).unwrap()["spec"]["validationActions"] = json!(["Warn"]),
    Some((key(Kind::ValidatingBinding, "a"), Fault::Changed))
)]
#[case::narrowed_by_an_addition(
    |live: &mut BTreeMap<Key, Value>| live.get_mut(&key(Kind::ValidatingPolicy, "a")).unwrap()["spec"]["matchConditions"] = json!([{"name": "never", "expression": "false"}]),
    Some((key(Kind::ValidatingPolicy, "a"), Fault::Changed))
)]
#[case::without_the_label_by_which_it_is_watched(
    |live: &mut BTreeMap<Key, Value>| live.get_mut(&key(Kind::ValidatingPolicy, "a")).unwrap()["metadata"]["labels"] = json!({}),
    Some((key(Kind::ValidatingPolicy, "a"), Fault::Changed))
)]
fn what_differs_is_found(#[case] change: fn(&mut BTreeMap<Key, Value>), #[case] expected: Option<(Key, Fault)>) {
    let copy = copy();
    let wanted = wanted(&copy, false);
    let complete = complete(&wanted);
    let mut live = complete.clone();
    change(&mut live);
    assert_eq!(compare(&copy, &wanted, &complete, &live), expected.into_iter().collect());
}

#[test]
fn what_has_not_been_asked_about_is_not_taken_for_right() {
    let copy = copy();
    let wanted = wanted(&copy, false);
    let faults = compare(&copy, &wanted, &BTreeMap::new(), &complete(&wanted));
    assert!(faults.len() == 4 && faults.values().all(|fault| *fault == Fault::Unknown), "{faults:?}");
}

#[test]
fn a_mutating_binding_is_too_much_while_all_pools_observe() {
    let copy = copy();
    let wanted = wanted(&copy, true);
    let mut live = complete(&wanted);
    live.insert(key(Kind::MutatingBinding, "b"), json!({}));
    let faults = compare(&copy, &wanted, &complete(&wanted), &live);
    assert_eq!(faults, BTreeMap::from([(key(Kind::MutatingBinding, "b"), Fault::Surplus)]));
}

#[test]
fn a_replacement_has_the_spec_as_a_whole() {
    let want = object(Kind::ValidatingPolicy, "a", &json!({"validations": [1]}));
    let have = json!({"metadata": {"name": "a", "resourceVersion": "7", "managedFields": [], "labels": {"mine": "x"}},
        "spec": {"validations": [2], "matchConditions": [3]}, "status": {}});
    assert_eq!(
        replacement(&want, &have),
        json!({"apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingAdmissionPolicy",
            "metadata": {"name": "a", "resourceVersion": "7", "labels": {"mine": "x", "app.kubernetes.io/name": "spillway"}},
            "spec": {"validations": [1]}})
    );
}

#[test]
fn whoever_applied_a_policy_owns_it_alone() {
    let entry = |manager: &str, operation: &str, subresource: &str| json!({"manager": manager, "operation": operation, "subresource": subresource});
    let of = |entries: Value| json!({"metadata": {"name": "a", "managedFields": entries}});
    let (helm, status) = (entry("helm", "Apply", ""), entry("kube-controller-manager", "Update", "status"));
    let shared = of(json!([helm, entry("kubectl-edit", "Update", ""), entry("helm", "Update", ""), status]));
    assert_eq!(owned_alone(&shared, "helm"), Some(of(json!([helm, status]))));
    assert_eq!(owned_alone(&of(json!([helm, status])), "helm"), None);
    assert_eq!(owned_alone(&json!({"metadata": {}}), "helm"), None);
}
