//! From an object to what is taken off it. Pure.

use k8s_openapi::{
    api::{
        apps::v1::DaemonSet,
        core::v1::{Namespace, Node, Toleration},
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::ResourceExt;
use serde_json::{Map, Value, json};
use spillway_crds::names::{
    BOOKING_ANNOTATION, CLUSTER_AUTOSCALER_ANNOTATION, KARPENTER_ANNOTATION, POD_SECURITY_ENFORCE, ROLE_LABEL,
};

use super::Change;

/// Keys of labels, annotations, taints and tolerations that are ours: those under `spillway.dev/` and under `hold.spillway.dev/` with
/// whatever stands before it.
fn is_ours(key: &str) -> bool {
    key.split_once('/').is_some_and(|(domain, _)| domain == "spillway.dev" || domain.ends_with(".spillway.dev"))
}

/// Sets keys of a map to null in a merge patch, and notes them.
fn nulls<'a>(keys: impl Iterator<Item = &'a String>, what: &str, removes: &mut Vec<String>) -> Map<String, Value> {
    keys.map(|key| {
        removes.push(format!("{what} {key}"));
        (key.clone(), Value::Null)
    })
    .collect()
}

fn labels(meta: &ObjectMeta, removes: &mut Vec<String>) -> Map<String, Value> {
    nulls(meta.labels.iter().flatten().map(|(key, _)| key).filter(|key| is_ours(key)), "label", removes)
}

/// Our taints, labels and annotations, the pool's label included, in one write: a node of a pool has a hold taint at any time.
pub(super) fn node(node: &Node) -> Option<Change> {
    let mut removes = Vec::new();
    let mut spec = Map::new();
    let taints = node.spec.as_ref().and_then(|spec| spec.taints.clone()).unwrap_or_default();
    let (ours, theirs): (Vec<_>, Vec<_>) = taints.into_iter().partition(|taint| is_ours(&taint.key));
    if !ours.is_empty() {
        removes.extend(ours.iter().map(|taint| format!("taint {}:{}", taint.key, taint.effect)));
        spec.insert("taints".to_owned(), if theirs.is_empty() { Value::Null } else { json!(theirs) });
    }
    let labels = labels(&node.metadata, &mut removes);
    // These two are ours only as long as the node is claimed for a booking.
    let claimed = node.annotations().contains_key(BOOKING_ANNOTATION);
    let annotations = nulls(
        node.annotations().keys().filter(|key| {
            is_ours(key) || (claimed && matches!(key.as_str(), CLUSTER_AUTOSCALER_ANNOTATION | KARPENTER_ANNOTATION))
        }),
        "annotation",
        &mut removes,
    );
    let patch = json!({
        "metadata": { "resourceVersion": node.metadata.resource_version, "labels": labels, "annotations": annotations },
        "spec": spec,
    });
    (!removes.is_empty()).then(|| Change { object: format!("Node/{}", node.name_any()), removes, patch })
}

/// Our labels, and the Pod Security label where the operator wrote it.
pub(super) fn namespace(namespace: &Namespace) -> Option<Change> {
    let mut removes = Vec::new();
    let mut labels = labels(&namespace.metadata, &mut removes);
    if wrote_pod_security(&namespace.metadata) {
        removes.push(format!("label {POD_SECURITY_ENFORCE}"));
        labels.insert(POD_SECURITY_ENFORCE.to_owned(), Value::Null);
    }
    let annotations = nulls(namespace.annotations().keys().filter(|key| is_ours(key)), "annotation", &mut removes);
    let patch = json!({"metadata": {
        "resourceVersion": namespace.metadata.resource_version, "labels": labels, "annotations": annotations,
    }});
    (!removes.is_empty()).then(|| Change { object: format!("Namespace/{}", namespace.name_any()), removes, patch })
}

/// True when the Pod Security level is `baseline` and whoever owns the field owns that of our role as well.
fn wrote_pod_security(meta: &ObjectMeta) -> bool {
    let level =
        meta.labels.iter().flatten().find(|(key, _)| *key == POD_SECURITY_ENFORCE).map(|(_, level)| level.as_str());
    level == Some("baseline")
        && meta.managed_fields.iter().flatten().any(|entry| {
            let labels = entry.fields_v1.as_ref().and_then(|fields| fields.0.pointer("/f:metadata/f:labels"));
            let owns = |key: &str| labels.is_some_and(|labels| labels.get(format!("f:{key}")).is_some());
            owns(ROLE_LABEL) && owns(POD_SECURITY_ENFORCE)
        })
}

/// Our tolerations and node selectors in the template. Those of pods are immutable, and harm nobody.
pub(super) fn daemonset(daemonset: &DaemonSet) -> Option<Change> {
    let mut removes = Vec::new();
    let annotations = nulls(daemonset.annotations().keys().filter(|key| is_ours(key)), "annotation", &mut removes);
    let mut template = Map::new();
    let spec = daemonset.spec.as_ref().and_then(|spec| spec.template.spec.as_ref());
    let tolerations = spec.and_then(|spec| spec.tolerations.clone()).unwrap_or_default();
    let (ours, theirs): (Vec<Toleration>, Vec<Toleration>) =
        tolerations.into_iter().partition(|toleration| toleration.key.as_deref().is_some_and(is_ours));
    if !ours.is_empty() {
        removes.extend(ours.iter().map(|toleration| {
            let value = toleration.value.as_ref().map(|value| format!("={value}")).unwrap_or_default();
            format!("toleration {}{value}", toleration.key.as_deref().unwrap_or_default())
        }));
        template.insert("tolerations".to_owned(), if theirs.is_empty() { Value::Null } else { json!(theirs) });
    }
    let selector = spec.and_then(|spec| spec.node_selector.as_ref());
    let selectors = nulls(
        selector
            .into_iter()
            .flatten()
            .map(|(key, _)| key)
            .filter(|key| is_ours(key) && key.contains("hold.spillway.dev/")),
        "nodeSelector",
        &mut removes,
    );
    if !selectors.is_empty() {
        template.insert("nodeSelector".to_owned(), Value::Object(selectors));
    }
    let patch = json!({
        "metadata": { "resourceVersion": daemonset.metadata.resource_version, "annotations": annotations },
        "spec": { "template": { "spec": template } },
    });
    let object = format!("DaemonSet/{}/{}", daemonset.namespace().unwrap_or_default(), daemonset.name_any());
    (!removes.is_empty()).then_some(Change { object, removes, patch })
}
