//! A node's hold: one taint key in two effects, the labels that pods are pinned to, and our annotations, changed in one write.
//!
//! `spec.taints` is an atomic list, so a write carries all taints of the node and its resourceVersion: somebody else's taint is never lost.

use k8s_openapi::api::core::v1::{Node, Taint};
use serde_json::{Map, Value, json};
use spillway_crds::names::{
    BOOKING_ANNOTATION, CLUSTER_AUTOSCALER_ANNOTATION, GENERATION_ANNOTATION, HOLD_CLOSED, HOLD_SINCE_ANNOTATION,
    HOLD_TAINT, HOLD_UNSOLD, KARPENTER_ANNOTATION, hold_label, is_hold_label, reservation_hold_label,
};

/// What a node is to become.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target<'a> {
    /// Nobody new may land; who is there stays.
    ClosedNoSchedule {
        /// For which booking it is prepared, if for one.
        booking: Option<&'a str>,
    },
    /// Nobody may land or stay.
    ClosedBoth {
        /// For which booking it is prepared; none keeps what the annotation says.
        booking: Option<&'a str>,
    },
    /// The owner may land.
    Unsold,
    /// One namespace may land and stay.
    Holder {
        /// The namespace's holder id.
        holder: &'a str,
        /// The namespace.
        namespace: &'a str,
        /// The reservation.
        reservation: &'a str,
        /// The booking.
        booking: &'a str,
    },
}

/// The hold taints of a node: the values of `NoSchedule` and of `NoExecute`.
pub fn read_taints(node: &Node) -> (Option<&str>, Option<&str>) {
    let value = |effect: &str| {
        node.spec
            .as_ref()
            .and_then(|spec| spec.taints.as_deref())
            .unwrap_or_default()
            .iter()
            .find(|taint| taint.key == HOLD_TAINT && taint.effect == effect)
            .map(|taint| taint.value.as_deref().unwrap_or_default())
    };
    (value("NoSchedule"), value("NoExecute"))
}

/// An annotation of a node.
pub fn annotation<'a>(node: &'a Node, key: &str) -> Option<&'a str> {
    node.metadata.annotations.as_ref().and_then(|all| all.get(key)).map(String::as_str)
}

/// The ledger generation on which the last write of the node stands.
pub fn stamped_generation(node: &Node) -> Option<i64> {
    annotation(node, GENERATION_ANNOTATION).and_then(|text| text.parse().ok())
}

/// When the hold taints last changed, in Unix milliseconds.
pub fn hold_since(node: &Node) -> Option<i64> {
    annotation(node, HOLD_SINCE_ANNOTATION).and_then(|text| text.parse().ok())
}

/// The merge patch that makes a node what it is to become. It carries the resourceVersion that was read, so it fails when the node changed.
pub fn build_patch(node: &Node, target: &Target<'_>, generation: i64, now_ms: i64) -> Value {
    let taint = |value: &str, effect: &str| Taint {
        key: HOLD_TAINT.to_owned(),
        value: Some(value.to_owned()),
        effect: effect.to_owned(),
        time_added: None,
    };
    let (value, no_execute) = match target {
        Target::ClosedNoSchedule { .. } => (HOLD_CLOSED, false),
        Target::ClosedBoth { .. } => (HOLD_CLOSED, true),
        Target::Unsold => (HOLD_UNSOLD, false),
        Target::Holder { holder, .. } => (*holder, true),
    };
    let mut taints: Vec<Taint> = node
        .spec
        .as_ref()
        .and_then(|spec| spec.taints.clone())
        .unwrap_or_default()
        .into_iter()
        .filter(|taint| taint.key != HOLD_TAINT)
        .collect();
    taints.push(taint(value, "NoSchedule"));
    if no_execute {
        taints.push(taint(value, "NoExecute"));
    }

    let mut labels = Map::new();
    for key in node.metadata.labels.iter().flatten().map(|(key, _)| key).filter(|key| is_hold_label(key)) {
        labels.insert(key.clone(), Value::Null);
    }
    let mut annotations = Map::new();
    annotations.insert(GENERATION_ANNOTATION.to_owned(), json!(generation.to_string()));
    annotations.insert(HOLD_SINCE_ANNOTATION.to_owned(), json!(now_ms.to_string()));
    let mut claim = |booking: &str| {
        annotations.insert(BOOKING_ANNOTATION.to_owned(), json!(booking));
        annotations.insert(CLUSTER_AUTOSCALER_ANNOTATION.to_owned(), json!("true"));
        annotations.insert(KARPENTER_ANNOTATION.to_owned(), json!("true"));
    };
    match target {
        Target::Holder { namespace, reservation, booking, .. } => {
            labels.insert(hold_label(namespace), json!("true"));
            labels.insert(reservation_hold_label(namespace, reservation), json!("true"));
            claim(booking);
        }
        Target::ClosedNoSchedule { booking: Some(booking) } | Target::ClosedBoth { booking: Some(booking) } => {
            claim(booking);
        }
        Target::ClosedNoSchedule { booking: None } | Target::ClosedBoth { booking: None } => {}
        Target::Unsold if annotation(node, BOOKING_ANNOTATION).is_some() => {
            for key in [BOOKING_ANNOTATION, CLUSTER_AUTOSCALER_ANNOTATION, KARPENTER_ANNOTATION] {
                annotations.insert(key.to_owned(), Value::Null);
            }
        }
        Target::Unsold => {}
    }
    json!({
        "metadata": {
            "resourceVersion": node.metadata.resource_version,
            "labels": labels,
            "annotations": annotations,
        },
        "spec": { "taints": taints },
    })
}

#[cfg(test)]
mod tests;
