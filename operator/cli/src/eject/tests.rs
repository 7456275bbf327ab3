use rstest::rstest;
use serde_json::json;

use super::*;

fn node(value: Value) -> Option<Change> {
    plan::node(&serde_json::from_value(value).unwrap())
}

#[test]
fn a_node_loses_ours_and_keeps_the_rest() {
    let change = node(json!({
        "metadata": {
            "name": "gpu-1", "resourceVersion": "7",
            "labels": {"spillway.dev/pool": "p", "hold.spillway.dev/acme": "true", "acme.hold.spillway.dev/job": "true", "zone": "z1"},
            "annotations": {"spillway.dev/generation": "4", "other": "x", "karpenter.sh/do-not-disrupt": "true",
                "spillway.dev/booking": "b"},
        },
        "spec": {"taints": [
            {"key": "spillway.dev/hold", "value": "u", "effect": "NoSchedule"},
            {"key": "nvidia.com/gpu", "effect": "NoSchedule"},
            {"key": "spillway.dev/hold", "value": "u", "effect": "NoExecute"},
        ]},
    }))
    .unwrap();
    assert_eq!(change.object, "Node/gpu-1");
    assert_eq!(
        change.patch,
        json!({
            "metadata": {
                "resourceVersion": "7",
                "labels": {"spillway.dev/pool": null, "hold.spillway.dev/acme": null, "acme.hold.spillway.dev/job": null},
                "annotations": {"spillway.dev/generation": null, "karpenter.sh/do-not-disrupt": null, "spillway.dev/booking": null},
            },
            "spec": {"taints": [{"key": "nvidia.com/gpu", "effect": "NoSchedule"}]},
        })
    );
}

#[rstest]
#[case::autoscaler_annotation_of_somebody_else(json!({"metadata": {"name": "n", "annotations": {"karpenter.sh/do-not-disrupt": "true"}}}))]
#[case::a_name_that_only_looks_alike(json!({"metadata": {"name": "n", "labels": {"notspillway.dev/pool": "p", "spillway.dev": "x"}}}))]
#[case::bare(json!({"metadata": {"name": "n"}}))]
fn a_node_without_ours_is_left_alone(#[case] value: Value) {
    assert_eq!(node(value), None);
}

#[rstest]
#[case::written_by_the_operator("baseline", json!({"f:spillway.dev/role": {}, "f:pod-security.kubernetes.io/enforce": {}}), true)]
#[case::written_by_a_person("baseline", json!({"f:spillway.dev/role": {}}), false)]
#[case::stricter("restricted", json!({"f:spillway.dev/role": {}, "f:pod-security.kubernetes.io/enforce": {}}), false)]
fn the_pod_security_label_goes_where_the_operator_wrote_it(
    #[case] level: &str,
    #[case] fields: Value,
    #[case] goes: bool,
) {
    let namespace: Namespace = serde_json::from_value(json!({"metadata": {
        "name": "acme", "resourceVersion": "3",
        "labels": {"spillway.dev/role": "tenant", "pod-security.kubernetes.io/enforce": level},
        "managedFields": [{"manager": "m", "operation": "Update", "fieldsType": "FieldsV1",
            "fieldsV1": {"f:metadata": {"f:labels": fields}}}],
    }}))
    .unwrap();
    let change = plan::namespace(&namespace).unwrap();
    assert_eq!(change.removes.contains(&"label pod-security.kubernetes.io/enforce".to_owned()), goes);
    assert_eq!(change.patch["metadata"]["labels"]["spillway.dev/role"], Value::Null);
}

#[test]
fn a_daemonset_keeps_its_own_tolerations_and_selectors() {
    let daemonset: DaemonSet = serde_json::from_value(json!({
        "metadata": {"name": "plugin", "namespace": "gpu-operator", "resourceVersion": "9", "annotations": {"spillway.dev/touched": "1"}},
        "spec": {"selector": {}, "template": {"spec": {
            "containers": [],
            "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists"}, {"key": "spillway.dev/hold", "operator": "Exists"}],
            "nodeSelector": {"hold.spillway.dev/acme": "true", "spillway.dev/pool": "p", "gpu": "yes"},
        }}},
    }))
    .unwrap();
    let change = plan::daemonset(&daemonset).unwrap();
    assert_eq!(change.object, "DaemonSet/gpu-operator/plugin");
    // A selector for the pool is what a person wrote.
    assert_eq!(
        change.patch,
        json!({
            "metadata": {"resourceVersion": "9", "annotations": {"spillway.dev/touched": null}},
            "spec": {"template": {"spec": {
                "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists"}],
                "nodeSelector": {"hold.spillway.dev/acme": null},
            }}},
        })
    );
}
