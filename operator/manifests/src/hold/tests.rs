use k8s_openapi::api::core::v1::Node;
use serde_json::json;

use super::{Target, build_patch, hold_since, read_taints, stamped_generation};

fn node(value: serde_json::Value) -> Node {
    serde_json::from_value(value).unwrap()
}

fn foreign_and_unsold() -> Node {
    node(json!({
        "metadata": {"name": "n1", "resourceVersion": "7", "labels": {"spillway.dev/pool": "p", "old.hold.spillway.dev/r": "true", "hold.spillway.dev/old": "true"},
                     "annotations": {"spillway.dev/booking": "b-0", "spillway.dev/generation": "41", "spillway.dev/hold-since": "1000"}},
        "spec": {"taints": [{"key": "vendor/x", "effect": "NoSchedule"}, {"key": "spillway.dev/hold", "value": "unsold", "effect": "NoSchedule"}]}
    }))
}

#[test]
fn a_hold_is_one_write_that_keeps_foreign_taints_and_drops_old_labels() {
    let target = Target::Holder { holder: "uid-1", namespace: "acme", reservation: "train", booking: "b-1" };
    assert_eq!(
        build_patch(&foreign_and_unsold(), &target, 42, 2000),
        json!({
            "metadata": {
                "resourceVersion": "7",
                "labels": {"old.hold.spillway.dev/r": null, "hold.spillway.dev/old": null, "hold.spillway.dev/acme": "true", "acme.hold.spillway.dev/train": "true"},
                "annotations": {"spillway.dev/generation": "42", "spillway.dev/hold-since": "2000", "spillway.dev/booking": "b-1",
                    "cluster-autoscaler.kubernetes.io/scale-down-disabled": "true", "karpenter.sh/do-not-disrupt": "true"},
            },
            "spec": {"taints": [
                {"key": "vendor/x", "effect": "NoSchedule"},
                {"key": "spillway.dev/hold", "value": "uid-1", "effect": "NoSchedule"},
                {"key": "spillway.dev/hold", "value": "uid-1", "effect": "NoExecute"}]},
        })
    );
}

#[test]
fn unsold_has_no_execute_and_no_claim() {
    let patch = build_patch(&foreign_and_unsold(), &Target::Unsold, 42, 2000);
    assert_eq!(
        patch["spec"]["taints"][1],
        json!({"key": "spillway.dev/hold", "value": "unsold", "effect": "NoSchedule"})
    );
    assert_eq!(patch["spec"]["taints"].as_array().unwrap().len(), 2);
    assert_eq!(patch["metadata"]["annotations"]["spillway.dev/booking"], json!(null));
    assert_eq!(patch["metadata"]["annotations"]["karpenter.sh/do-not-disrupt"], json!(null));
}

#[test]
fn an_autoscaler_annotation_that_is_not_ours_stays() {
    let mut node = foreign_and_unsold();
    node.metadata.annotations.as_mut().unwrap().remove("spillway.dev/booking");
    let patch = build_patch(&node, &Target::Unsold, 42, 2000);
    assert!(patch["metadata"]["annotations"].get("karpenter.sh/do-not-disrupt").is_none());
}

#[test]
fn what_is_on_a_node_is_read() {
    let node = foreign_and_unsold();
    assert_eq!(read_taints(&node), (Some("unsold"), None));
    assert_eq!((stamped_generation(&node), hold_since(&node)), (Some(41), Some(1000)));
}
