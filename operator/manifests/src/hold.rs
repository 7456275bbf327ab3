//! A node's hold: one taint key in two effects, the labels that pods are pinned to, and our annotations, changed in one write.
//!
//! `spec.taints` is an atomic list, so a write carries all taints of the node and its resourceVersion: somebody else's taint is never lost.

use k8s_openapi::api::core::v1::{Node, Taint};
use serde_json::{Map, Value, json};
use spillway_crds::names::{
    BOOKING_ANNOTATION, CLUSTER_AUTOSCALER_ANNOTATION, GENERATION_ANNOTATION, HOLD_CLOSED, HOLD_SINCE_ANNOTATION,
    HOLD_TAINT, HOLD_UNSOLD, KARPENTER_ANNOTATION, PARTS_ANNOTATION, hold_label, hold_of_node, is_hold_label,
    reservation_hold_label,
};
use spillway_planner::node::Part;

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
    /// The pods that are given the node's toleration, one by one.
    Shared {
        /// The parts for which it is set up.
        parts: &'a [Part],
        /// Whose they are, of those that are live: namespace and reservation.
        holders: &'a [(&'a str, &'a str)],
    },
}

/// The parts for which a node was set up, as its annotation says; sorted. What cannot be read is left out.
pub fn read_parts(node: &Node) -> Vec<Part> {
    let one = |text: &str| {
        let (booking, devices) = text.split_once('=')?;
        Some(Part { booking: booking.into(), devices: devices.parse().ok()? })
    };
    let mut parts: Vec<Part> =
        annotation(node, PARTS_ANNOTATION).unwrap_or_default().split(',').filter_map(one).collect();
    parts.sort_unstable();
    parts
}

/// Of so many devices of a node that is held, those that nobody holds: the rest of a shared node, none of another.
pub fn rest_of_shared(node: &Node, devices: u32) -> u32 {
    if !is_shared(node) {
        return 0;
    }
    devices.saturating_sub(read_parts(node).iter().map(|part| part.devices).sum())
}

/// Whether the node is shared: the taints are those of this very node object.
pub fn is_shared(node: &Node) -> bool {
    let wanted = hold_of_node(node.metadata.uid.as_deref().unwrap_or_default());
    let (no_schedule, no_execute) = read_taints(node);
    no_schedule == Some(wanted.as_str()) && no_execute == Some(wanted.as_str())
}

/// The bookings that a node names: for which it is prepared or held, whole or in parts.
pub fn named_bookings(node: &Node) -> impl Iterator<Item = &str> {
    let held = annotation(node, BOOKING_ANNOTATION).unwrap_or_default().split(',');
    let parts = annotation(node, PARTS_ANNOTATION).unwrap_or_default().split(',');
    held.chain(parts.map(|part| part.split_once('=').map_or(part, |(id, _)| id))).filter(|id| !id.is_empty())
}

/// Whether a node names a booking.
pub fn names_booking(node: &Node, id: &str) -> bool {
    named_bookings(node).any(|named| named == id)
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
    let of_node = hold_of_node(node.metadata.uid.as_deref().unwrap_or_default());
    let (value, no_execute) = match target {
        Target::ClosedNoSchedule { .. } => (HOLD_CLOSED, false),
        Target::ClosedBoth { .. } => (HOLD_CLOSED, true),
        Target::Unsold => (HOLD_UNSOLD, false),
        Target::Holder { holder, .. } => (*holder, true),
        Target::Shared { .. } => (of_node.as_str(), true),
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
    let mut claim = |bookings: &str| {
        annotations.insert(BOOKING_ANNOTATION.to_owned(), json!(bookings));
        annotations.insert(CLUSTER_AUTOSCALER_ANNOTATION.to_owned(), json!("true"));
        annotations.insert(KARPENTER_ANNOTATION.to_owned(), json!("true"));
    };
    let mut holders: Vec<(&str, &str)> = Vec::new();
    let mut parts: Option<String> = None;
    match target {
        Target::Holder { namespace, reservation, booking, .. } => {
            holders.push((namespace, reservation));
            claim(booking);
        }
        Target::Shared { parts: set_up, holders: all } => {
            holders.extend(*all);
            let text: Vec<String> = set_up.iter().map(|part| format!("{}={}", part.booking, part.devices)).collect();
            parts = Some(text.join(","));
            claim("");
            annotations.insert(BOOKING_ANNOTATION.to_owned(), Value::Null);
        }
        Target::ClosedNoSchedule { booking: Some(booking) } | Target::ClosedBoth { booking: Some(booking) } => {
            claim(booking);
        }
        Target::ClosedNoSchedule { booking: None } | Target::ClosedBoth { booking: None } => {}
        Target::Unsold if named_bookings(node).next().is_some() => {
            for key in [BOOKING_ANNOTATION, CLUSTER_AUTOSCALER_ANNOTATION, KARPENTER_ANNOTATION] {
                annotations.insert(key.to_owned(), Value::Null);
            }
        }
        Target::Unsold => {}
    }
    for (namespace, reservation) in holders {
        labels.insert(hold_label(namespace), json!("true"));
        labels.insert(reservation_hold_label(namespace, reservation), json!("true"));
    }
    // Who had a part of a node that is closed now is told by it until the node is somebody else's.
    let keeps_parts = matches!(target, Target::ClosedNoSchedule { .. } | Target::ClosedBoth { .. });
    if let Some(parts) = parts {
        annotations.insert(PARTS_ANNOTATION.to_owned(), json!(parts));
    } else if !keeps_parts && annotation(node, PARTS_ANNOTATION).is_some() {
        annotations.insert(PARTS_ANNOTATION.to_owned(), Value::Null);
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
