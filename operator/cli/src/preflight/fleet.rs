//! Rules about nodes, pools, namespaces and tenants.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::Node;
use kube::ResourceExt;
use spillway_crds::{
    names::{HOLD_TAINT, POOL_LABEL, ROLE_LABEL},
    parse_duration_ms,
};
use spillway_manifests::hold;

use super::{Facts, Finding, Role, Severity, workloads::is_candidate};

/// All rules of this file.
pub(super) fn check(facts: &Facts) -> Vec<Finding> {
    [devices, leftovers, pools, unknown_devices, tenants].iter().flat_map(|rule| rule(facts)).collect()
}

fn found(severity: Severity, rule: &'static str, object: String, why: String, remedy: &str) -> Finding {
    Finding { severity, rule, object, why, remedy: remedy.to_owned() }
}

fn capacity<'a>(node: &'a Node, resource: &str) -> &'a str {
    let capacity = node.status.as_ref().and_then(|status| status.capacity.as_ref());
    capacity.and_then(|all| all.get(resource)).map_or("0", |amount| amount.0.as_str())
}

/// Nodes of a pool that are not as the pool says, and nodes with devices that are in none.
fn devices(facts: &Facts) -> Vec<Finding> {
    let mut findings = Vec::new();
    for node in &facts.nodes {
        let object = format!("Node/{}", node.name_any());
        let Some(name) = node.labels().get(POOL_LABEL) else {
            if is_candidate(facts, node) && !facts.pools.is_empty() {
                let why = "it has devices and no label spillway.dev/pool: it is not sold".to_owned();
                findings.push(found(Severity::Note, "NotInAPool", object, why, "label it, if it is for sale"));
            }
            continue;
        };
        let Some(pool) = facts.pools.iter().find(|pool| pool.name_any() == *name) else {
            let why = format!("its label names pool {name}, and there is none: it stays closed");
            findings.push(found(Severity::Note, "NoSuchPool", object, why, "create the GpuPool"));
            continue;
        };
        let offered = capacity(node, &pool.spec.devices.resource);
        if offered != pool.spec.devices.per_node.to_string() {
            let why = format!(
                "it offers {offered} of {} and pool {name} says {}: it is not sold",
                pool.spec.devices.resource, pool.spec.devices.per_node
            );
            let remedy = "mend the device plugin, or give nodes of another size a pool of their own";
            findings.push(found(Severity::Note, "DeviceCount", object, why, remedy));
        }
    }
    findings
}

/// What an earlier installation left on nodes and namespaces.
fn leftovers(facts: &Facts) -> Vec<Finding> {
    if facts.ledger {
        return Vec::new();
    }
    let mut findings = Vec::new();
    for node in &facts.nodes {
        let object = format!("Node/{}", node.name_any());
        let held = hold::read_taints(node);
        let holder = [held.0, held.1].into_iter().flatten().find(|value| !matches!(*value, "closed" | "unsold"));
        if let Some(value) = holder {
            let why = format!(
                "it has taint {HOLD_TAINT}={value} and there is no ledger: the operator says LedgerLost and sells nothing"
            );
            let remedy = "spillway ledger restore, if something is sold; else spillway eject";
            findings.push(found(Severity::Refused, "HeldWithoutLedger", object, why, remedy));
        } else if hold::stamped_generation(node).is_some() {
            let why = "it was written under a ledger and there is none: the operator says LedgerLost and sells nothing"
                .to_owned();
            let remedy = "spillway ledger restore, if something is sold; else spillway eject";
            findings.push(found(Severity::Refused, "StampWithoutLedger", object, why, remedy));
        } else if (held.0.is_some() || held.1.is_some()) && !node.labels().contains_key(POOL_LABEL) {
            let why = format!("it has taint {HOLD_TAINT} and no pool: nothing lands there, and nobody opens it");
            findings.push(found(Severity::Note, "StrayTaint", object, why, "spillway eject, or label it for a pool"));
        }
    }
    for namespace in facts.namespaces.iter().filter(|namespace| namespace.labels().contains_key(ROLE_LABEL)) {
        let name = namespace.name_any();
        if !facts.tenants.iter().any(|tenant| tenant.spec.namespaces.contains(&name)) {
            let why = format!("it has label {ROLE_LABEL} and no Tenant lists it");
            findings.push(found(
                Severity::Note,
                "StrayNamespaceLabels",
                format!("Namespace/{name}"),
                why,
                "spillway eject, or a Tenant",
            ));
        }
    }
    findings
}

/// Pools that sell nothing.
fn pools(facts: &Facts) -> Vec<Finding> {
    let mut findings = Vec::new();
    for pool in &facts.pools {
        let name = pool.name_any();
        let object = format!("GpuPool/{name}");
        if !facts.nodes.iter().any(|node| node.labels().get(POOL_LABEL) == Some(&name)) {
            let resource = &pool.spec.devices.resource;
            let with: Vec<String> = facts
                .nodes
                .iter()
                .filter(|node| capacity(node, resource) != "0" && !node.labels().contains_key(POOL_LABEL))
                .map(ResourceExt::name_any)
                .take(5)
                .collect();
            let why = match with.is_empty() {
                true => "no node has its label".to_owned(),
                false => format!("no node has its label; {} and perhaps others have {resource}", with.join(", ")),
            };
            findings.push(found(
                Severity::Note,
                "PoolWithoutNodes",
                object.clone(),
                why,
                "kubectl label node NODE spillway.dev/pool=POOL",
            ));
        }
        let grace = parse_duration_ms(&pool.spec.sale.grace_cap).unwrap_or_default();
        if grace < facts.values.grace_cap_seconds.saturating_mul(1000) {
            let why = format!(
                "its sale.graceCap {} is below the cluster's {} s: it sells nothing",
                pool.spec.sale.grace_cap, facts.values.grace_cap_seconds
            );
            findings.push(found(
                Severity::Note,
                "GraceCapTooLow",
                object.clone(),
                why,
                "raise sale.graceCap, or lower graceCapSeconds",
            ));
        }
        if !facts.is_device(&pool.spec.devices.resource) {
            let why = format!(
                "its resource {} has none of the prefixes {}: its pods are not pinned to what they hold",
                pool.spec.devices.resource,
                facts.values.device_prefixes.join(", ")
            );
            findings.push(found(
                Severity::Note,
                "NotADevice",
                object,
                why,
                "add its prefix to the value devicePrefixes",
            ));
        }
    }
    findings
}

/// Extended resources that look like devices and are none by the prefixes.
fn unknown_devices(facts: &Facts) -> Vec<Finding> {
    let mut seen: BTreeMap<&str, String> = BTreeMap::new();
    for node in &facts.nodes {
        let capacity = node.status.as_ref().and_then(|status| status.capacity.as_ref());
        for name in capacity.into_iter().flatten().map(|(name, _)| name) {
            let lower = name.to_lowercase();
            if name.contains('/')
                && ["gpu", "mig", "npu", "tpu", "gaudi", "accelerator"].iter().any(|word| lower.contains(word))
                && !facts.is_device(name)
            {
                seen.entry(name).or_insert_with(|| node.name_any());
            }
        }
    }
    seen.into_iter()
        .map(|(resource, node)| {
            let why = format!(
                "it offers {resource}, which has none of the prefixes {}",
                facts.values.device_prefixes.join(", ")
            );
            let remedy = "add its prefix to the value devicePrefixes, if it is for sale";
            found(Severity::Note, "UnknownDevice", format!("Node/{node}"), why, remedy)
        })
        .collect()
}

/// Namespaces that more than one Tenant lists, or that cannot be a tenant's.
fn tenants(facts: &Facts) -> Vec<Finding> {
    let mut findings = Vec::new();
    let names: BTreeSet<String> = facts.namespaces.iter().map(ResourceExt::name_any).collect();
    let mut listed: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for tenant in &facts.tenants {
        let object = format!("Tenant/{}", tenant.name_any());
        for namespace in &tenant.spec.namespaces {
            listed.entry(namespace).or_default().push(tenant.name_any());
            if facts.role(namespace) == Role::Infrastructure {
                let why = format!(
                    "it lists namespace {namespace}, which is infrastructure: whoever may create pods there can use every node"
                );
                findings.push(found(
                    Severity::Refused,
                    "TenantInInfrastructure",
                    object.clone(),
                    why,
                    "take it out of the one or the other",
                ));
            } else if !names.contains(namespace) {
                let why = format!("it lists namespace {namespace}, which does not exist");
                findings.push(found(Severity::Note, "NamespaceMissing", object.clone(), why, "create the namespace"));
            }
        }
    }
    for (namespace, tenants) in listed.into_iter().filter(|(_, tenants)| tenants.len() > 1) {
        let why =
            format!("Tenants {} list it: it is the older one's, and the others are not Ready", tenants.join(", "));
        findings.push(found(
            Severity::Refused,
            "TwoTenants",
            format!("Namespace/{namespace}"),
            why,
            "list it in one Tenant",
        ));
    }
    findings
}
