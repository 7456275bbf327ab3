//! Invariant 4: the labels that make a namespace a tenant's or the owner's agree with the Tenants.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Namespace;
use spillway_crds::{Tenant, names};

use crate::{ledger::Ledger, violation::Findings, world::World};

const LABELS: [&str; 3] = [names::ROLE_LABEL, names::HOLDER_LABEL, names::TENANT_LABEL];

/// Each namespace has the labels that its Tenant gives it, and no other.
pub(super) fn check(world: &World, ledger: &Ledger, findings: &mut Findings) {
    let tenants = tenants_by_namespace(world);
    for namespace in &world.namespaces {
        let Some(name) = namespace.metadata.name.as_deref() else { continue };
        let object = format!("Namespace/{name}");
        let uid = namespace.metadata.uid.as_deref().unwrap_or_default();
        if let Some(holder) = label(namespace, names::HOLDER_LABEL)
            && holder != uid
        {
            let message = format!("its holder id is {holder}, and its UID is {uid}");
            findings.violation(4, "HolderForged", object.clone(), message);
            continue;
        }
        match tenants.get(name) {
            Some(tenant) if !world.is_infrastructure(name) => {
                check_labels(world, namespace, tenant, findings);
            }
            // A tenant's to the policies and of no Tenant: the operator attacks itself there.
            _ if name == names::SELFTEST_NAMESPACE => {}
            _ => {
                let stray: Vec<&str> = LABELS.into_iter().filter(|key| label(namespace, key).is_some()).collect();
                if !stray.is_empty() {
                    let booked = ledger.live.iter().any(|booking| booking.reservation.namespace == name);
                    let message = format!("it has the labels {}, and no Tenant lists it", stray.join(", "));
                    findings.unless(booked, 4, "NamespaceLabelsStray", object, message);
                }
            }
        }
    }
}

/// Which tenant each namespace is of: the oldest that lists it.
fn tenants_by_namespace(world: &World) -> BTreeMap<&str, &Tenant> {
    let mut tenants: Vec<&Tenant> = world.tenants.iter().collect();
    tenants.sort_by_key(|tenant| {
        (tenant.metadata.creation_timestamp.as_ref().map(|time| time.0), tenant.metadata.name.as_deref())
    });
    let mut by_namespace = BTreeMap::new();
    for tenant in tenants {
        for namespace in &tenant.spec.namespaces {
            by_namespace.entry(namespace.as_str()).or_insert(tenant);
        }
    }
    by_namespace
}

fn check_labels(world: &World, namespace: &Namespace, tenant: &Tenant, findings: &mut Findings) {
    let role = if tenant.spec.owner { names::ROLE_OWNER } else { names::ROLE_TENANT };
    let wanted = [
        (names::ROLE_LABEL, role),
        (names::HOLDER_LABEL, namespace.metadata.uid.as_deref().unwrap_or_default()),
        (names::TENANT_LABEL, tenant.metadata.name.as_deref().unwrap_or_default()),
    ];
    let wrong: Vec<String> = wanted
        .into_iter()
        .filter(|(key, value)| label(namespace, key) != Some(value))
        .map(|(key, value)| format!("{key} is {:?} and not {value:?}", label(namespace, key).unwrap_or_default()))
        .collect();
    if wrong.is_empty() {
        return;
    }
    let young = |time: Option<&k8s_openapi::apimachinery::pkg::apis::meta::v1::Time>| {
        time.is_some_and(|time| world.settling(time.0.as_millisecond()))
    };
    let observed = tenant.status.as_ref().and_then(|status| status.observed_generation);
    let excused = young(namespace.metadata.creation_timestamp.as_ref())
        || young(tenant.metadata.creation_timestamp.as_ref())
        || namespace.metadata.deletion_timestamp.is_some()
        || observed != tenant.metadata.generation;
    let object = format!("Namespace/{}", namespace.metadata.name.as_deref().unwrap_or_default());
    findings.unless(excused, 4, "NamespaceLabelsWrong", object, wrong.join("; "));
}

fn label<'a>(namespace: &'a Namespace, key: &str) -> Option<&'a str> {
    namespace.metadata.labels.as_ref()?.get(key).map(String::as_str)
}
