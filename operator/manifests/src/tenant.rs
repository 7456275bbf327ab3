//! A tenant's namespaces: which labels they carry, and the status of the `Tenant`.

use jiff::Timestamp;
use serde_json::{Map, Value, json};
use spillway_crds::{
    HeldQuota, Tenant, TenantNamespace, TenantStatus,
    names::{HOLDER_LABEL, POD_SECURITY_ENFORCE, ROLE_LABEL, ROLE_OWNER, ROLE_TENANT, TENANT_LABEL},
};

use crate::conditions::{Wanted, merge};

/// Labels of a namespace as a map.
pub type Labels = std::collections::BTreeMap<String, String>;

/// What a namespace listed by a tenant must carry, as a merge patch of its labels; none when nothing is missing.
pub fn build_labels(tenant: &str, owner: bool, uid: &str, labels: &Labels) -> Option<Value> {
    let mut wanted =
        vec![(ROLE_LABEL, if owner { ROLE_OWNER } else { ROLE_TENANT }), (HOLDER_LABEL, uid), (TENANT_LABEL, tenant)];
    // Pod Security `restricted` is stricter than what is needed, so it is left alone.
    let enforced = labels.get(POD_SECURITY_ENFORCE).map(String::as_str);
    if !owner && !matches!(enforced, Some("baseline" | "restricted")) {
        wanted.push((POD_SECURITY_ENFORCE, "baseline"));
    }
    let changed: Map<String, Value> = wanted
        .into_iter()
        .filter(|(key, value)| labels.get(*key).map(String::as_str) != Some(*value))
        .map(|(key, value)| (key.to_owned(), json!(value)))
        .collect();
    (!changed.is_empty()).then(|| json!({ "metadata": { "labels": changed } }))
}

/// The merge patch that takes our labels off a namespace that no tenant lists any more. The Pod Security label stays.
pub fn build_unlabel(labels: &Labels) -> Option<Value> {
    let changed: Map<String, Value> = [ROLE_LABEL, HOLDER_LABEL, TENANT_LABEL]
        .into_iter()
        .filter(|key| labels.contains_key(*key))
        .map(|key| (key.to_owned(), Value::Null))
        .collect();
    (!changed.is_empty()).then(|| json!({ "metadata": { "labels": changed } }))
}

/// What is known of a tenant.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// Namespaces that carry its labels.
    pub namespaces: Vec<TenantNamespace>,
    /// Why a listed namespace is not this tenant's: a CamelCase word and a sentence.
    pub problems: Vec<(&'static str, String)>,
    /// What it holds.
    pub held: Vec<HeldQuota>,
    /// Live bookings as `namespace/name`, in order.
    pub live: Vec<String>,
}

/// The status that says what is known.
pub fn build_status(tenant: &Tenant, facts: &Facts, now: Timestamp) -> TenantStatus {
    let previous = tenant.status.clone().unwrap_or_default();
    let deleting = tenant.metadata.deletion_timestamp.is_some();
    let (ready, reason, message) = if deleting && !facts.live.is_empty() {
        let list = facts.live.iter().take(8).cloned().collect::<Vec<_>>().join(", ");
        (
            false,
            "LiveBookings",
            format!(
                "It cannot go while it holds {} bookings ({list}): delete those reservations first.",
                facts.live.len()
            ),
        )
    } else if let Some((reason, _)) = facts.problems.first() {
        (false, *reason, facts.problems.iter().map(|(_, text)| text.as_str()).collect::<Vec<_>>().join(" "))
    } else {
        (true, "Ready", "All namespaces are this tenant's.".to_owned())
    };
    let waiting = deleting || facts.problems.iter().all(|(reason, _)| *reason == "NamespaceMissing");
    let conditions = merge(
        &previous.conditions,
        vec![
            Wanted::new("Ready", ready, reason, message.clone()),
            Wanted::new("Reconciling", !ready && waiting, reason, message.clone()),
            Wanted::new("Stalled", !ready && !waiting, reason, message),
        ],
        tenant.metadata.generation,
        now,
    );
    TenantStatus {
        observed_generation: tenant.metadata.generation,
        conditions,
        namespaces: facts.namespaces.clone(),
        held: facts.held.clone(),
        live_booking_count: i32::try_from(facts.live.len()).unwrap_or(i32::MAX),
        live_bookings: facts.live.iter().take(16).cloned().collect(),
    }
}

#[cfg(test)]
mod tests;
