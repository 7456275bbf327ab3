//! What the CEL rules of the CRDs say of one object, in Rust. Rules on changes are left out: nothing is changed here.

use std::collections::BTreeSet;

use kube::ResourceExt;
use serde_json::json;
use spillway_crds::{GpuPool, GpuReservation, Tenant, Tier, parse_duration_ms};

use super::schema::Wrong;

/// The longest value of a label.
const LABEL_MAX: usize = 63;

const SECOND: i64 = 1000;
const HOUR: i64 = 3600 * SECOND;

/// The rules of a pool.
pub(super) fn check_pool(pool: &GpuPool) -> Vec<Wrong> {
    let mut found: Vec<Wrong> = check_label(&pool.name_any()).into_iter().collect();
    let sale = &pool.spec.sale;
    found.extend(check_duration("spec.sale.graceCap", &sale.grace_cap, SECOND, HOUR, "1s to 1h"));
    found.extend(check_duration("spec.sale.repairAfter", &sale.repair_after, SECOND, 24 * HOUR, "1s to 24h"));
    let devices = &pool.spec.devices;
    let mut seen = BTreeSet::new();
    for (at, profile) in devices.profiles.iter().enumerate() {
        let remedy = if profile.resource == devices.resource {
            "it is that of whole devices (devices.resource): name the resource of the share"
        } else if !seen.insert(&profile.resource) {
            "another profile has it: give each a resource of its own"
        } else {
            continue;
        };
        found.push(Wrong::new(format!("spec.devices.profiles[{at}].resource"), &json!(profile.resource), remedy));
    }
    found
}

/// The rules of a tenant.
pub(super) fn check_tenant(tenant: &Tenant) -> Vec<Wrong> {
    check_label(&tenant.name_any()).into_iter().collect()
}

/// The rules of a reservation.
pub(super) fn check_reservation(reservation: &GpuReservation) -> Vec<Wrong> {
    let name = reservation.name_any();
    let mut found: Vec<Wrong> = check_label(&name).into_iter().collect();
    let is_end = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    if !(name.starts_with(is_end) && name.ends_with(is_end) && name.chars().all(|c| is_end(c) || c == '-')) {
        found.push(Wrong::new("metadata.name", &json!(name), "lower-case letters, digits and dashes only"));
    }
    let spec = &reservation.spec;
    let place = json!({"pool": spec.pool, "sku": spec.sku, "region": spec.region});
    if !matches!((&spec.pool, &spec.sku, &spec.region), (Some(_), None, None) | (None, Some(_), Some(_))) {
        found.push(Wrong::new("spec", &place, "name either pool, or sku and region"));
    }
    if spec.tier == Tier::Committed && spec.term.is_none() {
        found.push(Wrong::new("spec.tier", &json!(spec.tier), "a Committed reservation needs term.duration"));
    }
    let devices = &spec.devices;
    if let Some(per_node) = devices.per_node.filter(|per_node| devices.count.checked_rem(*per_node) != Some(0)) {
        let remedy = format!("ask for a multiple of devices.perNode, which is {per_node}");
        found.push(Wrong::new("spec.devices.count", &json!(devices.count), remedy));
    }
    if let Some(profile) = &devices.profile {
        let mut refuse = |remedy: &str| found.push(Wrong::new("spec.devices.profile", &json!(profile), remedy));
        if devices.per_node.is_some() {
            refuse("it asks for shares of a device, and devices.perNode counts whole ones: leave one of them out");
        }
        if spec.exclusive_nodes {
            refuse(
                "it asks for shares of a device, and exclusiveNodes: true for whole nodes: set exclusiveNodes: false",
            );
        }
    }
    found.extend(check_duration("spec.waitFor", &spec.wait_for, 0, 8784 * HOUR, "0s to 8784h"));
    if let Some(term) = &spec.term {
        found.extend(check_duration("spec.term.duration", &term.duration, SECOND, 26352 * HOUR, "1s to 26352h"));
    }
    found
}

fn check_label(name: &str) -> Option<Wrong> {
    (name.len() > LABEL_MAX).then(|| {
        Wrong::new("metadata.name", &json!(name), format!("it is used in labels: at most {LABEL_MAX} characters"))
    })
}

fn check_duration(field: &str, text: &str, least: i64, most: i64, range: &str) -> Option<Wrong> {
    let fits = parse_duration_ms(text).is_ok_and(|ms| (least..=most).contains(&ms));
    (!fits).then(|| Wrong::new(field, &json!(text), format!("write a duration from {range}")))
}
