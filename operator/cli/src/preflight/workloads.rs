//! Rules about pods, and about what makes pods.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::{Pod, PodSpec, Toleration};
use kube::ResourceExt;
use spillway_crds::names::{HOLD_TAINT, POOL_LABEL};

use super::{Facts, Finding, Role, Severity};

/// Priorities from here on are the system's.
const SYSTEM_PRIORITY: i32 = 1_000_000_000;

/// A pod, or the template of many.
struct Template<'a> {
    object: String,
    namespace: &'a str,
    spec: &'a PodSpec,
    /// A pod that is there: its `nodeName` may be the scheduler's.
    is_pod: bool,
    is_daemonset: bool,
    is_mirror: bool,
}

/// All rules of this file.
pub(super) fn check(facts: &Facts) -> Vec<Finding> {
    let mut findings = Vec::new();
    for template in templates(facts) {
        for rule in [tolerations, node_name, grace, priority, scheduler, pod_security] {
            findings.extend(rule(facts, &template));
        }
        findings.extend(kept_off(facts, &template));
    }
    findings.extend(evicted(facts));
    findings
}

/// What makes pods, and the pods that nothing makes.
fn templates(facts: &Facts) -> Vec<Template<'_>> {
    let mut templates = Vec::new();
    macro_rules! add {
        ($kind:literal, $list:expr, $object:ident => $pod:expr) => {
            for $object in $list {
                if let (Some(spec), Some(namespace)) = ($pod, $object.metadata.namespace.as_deref()) {
                    templates.push(Template {
                        object: format!("{}/{}/{}", $kind, namespace, $object.name_any()),
                        namespace,
                        spec,
                        is_pod: $kind == "Pod",
                        is_daemonset: $kind == "DaemonSet",
                        is_mirror: $object.annotations().contains_key("kubernetes.io/config.mirror"),
                    });
                }
            }
        };
    }
    add!("Deployment", &facts.deployments, object => object.spec.as_ref().and_then(|spec| spec.template.spec.as_ref()));
    add!("StatefulSet", &facts.statefulsets, object => object.spec.as_ref().and_then(|spec| spec.template.spec.as_ref()));
    add!("DaemonSet", &facts.daemonsets, object => object.spec.as_ref().and_then(|spec| spec.template.spec.as_ref()));
    // The pods of a CronJob's Job are told by the CronJob.
    add!("Job", facts.jobs.iter().filter(|job| job.owner_references().is_empty()),
        object => object.spec.as_ref().and_then(|spec| spec.template.spec.as_ref()));
    add!("CronJob", &facts.cronjobs,
        object => object.spec.job_template.spec.as_ref().and_then(|spec| spec.template.spec.as_ref()));
    add!("Pod", facts.pods.iter().filter(|pod| is_alone(pod)), object => object.spec.as_ref());
    templates
}

/// True for a pod that no controller makes again by a template that we have seen; a mirror pod's owner is its node.
fn is_alone(pod: &Pod) -> bool {
    !pod.owner_references()
        .iter()
        .any(|owner| matches!(owner.kind.as_str(), "ReplicaSet" | "StatefulSet" | "DaemonSet" | "Job"))
}

fn finding(template: &Template<'_>, severity: Severity, rule: &'static str, why: String, remedy: String) -> Finding {
    Finding { severity, rule, object: template.object.clone(), why, remedy }
}

fn tolerations_of(spec: &PodSpec) -> &[Toleration] {
    spec.tolerations.as_deref().unwrap_or_default()
}

/// Policy spillway-pod: a toleration without a key, and those of the hold taint that the namespace does not have.
fn tolerations(facts: &Facts, template: &Template<'_>) -> Vec<Finding> {
    if facts.role(template.namespace) == Role::Infrastructure {
        return Vec::new();
    }
    let mut findings = Vec::new();
    let namespace = template.namespace;
    if tolerations_of(template.spec).iter().any(|one| one.key.as_deref().unwrap_or_default().is_empty()) {
        let who = if template.is_mirror { "the kubelet's mirror of a static pod" } else { "the next pod of it" };
        findings.push(finding(
            template,
            Severity::Refused,
            "KeylessToleration",
            format!("it has a toleration without a key; {who} is refused in namespace {namespace}"),
            "name the keys that it tolerates, or list its namespace in infrastructureNamespaces (nobody who buys GPUs may create pods there)"
                .to_owned(),
        ));
    }
    let ours = |one: &&Toleration| one.key.as_deref().is_some_and(|key| key.starts_with("spillway.dev/"));
    for one in tolerations_of(template.spec).iter().filter(ours) {
        let equal = matches!(one.operator.as_deref(), None | Some("Equal"));
        let value = one.value.as_deref().unwrap_or_default();
        let allowed = one.key.as_deref() == Some(HOLD_TAINT)
            && equal
            && match facts.role(namespace) {
                Role::Owner => value == "unsold" || is_holder(facts, namespace, value),
                Role::Tenant => is_holder(facts, namespace, value),
                Role::Infrastructure | Role::None => false,
            };
        // One pod may have been given the toleration of one node.
        let assigned = template.is_pod && value.starts_with("node.");
        if !allowed && !assigned {
            findings.push(finding(
                template,
                Severity::Refused,
                "HoldToleration",
                format!(
                    "it tolerates {}={value}, which namespace {namespace} may not",
                    one.key.as_deref().unwrap_or_default()
                ),
                "leave the toleration out, Spillway adds the right one".to_owned(),
            ));
        }
    }
    findings
}

fn is_holder(facts: &Facts, namespace: &str, value: &str) -> bool {
    facts.namespaces.iter().any(|one| one.name_any() == namespace && one.uid().as_deref() == Some(value))
}

/// Policy spillway-pod: `nodeName` in what makes pods.
fn node_name(facts: &Facts, template: &Template<'_>) -> Vec<Finding> {
    let named = template.spec.node_name.as_deref().is_some_and(|name| !name.is_empty());
    if template.is_pod || !named || facts.role(template.namespace) == Role::Infrastructure {
        return Vec::new();
    }
    vec![finding(
        template,
        Severity::Refused,
        "NodeName",
        "its template names a node, which goes around the scheduler".to_owned(),
        "use a nodeSelector on kubernetes.io/hostname instead of nodeName".to_owned(),
    )]
}

/// Policy spillway-pod: grace periods of tenants.
fn grace(facts: &Facts, template: &Template<'_>) -> Vec<Finding> {
    let cap = facts.values.grace_cap_seconds;
    let Some(seconds) = template.spec.termination_grace_period_seconds else { return Vec::new() };
    if facts.role(template.namespace) != Role::Tenant || (1..=cap).contains(&seconds) {
        return Vec::new();
    }
    let severity = if template.is_pod { Severity::Note } else { Severity::Refused };
    vec![finding(
        template,
        severity,
        "GracePeriod",
        format!("its terminationGracePeriodSeconds is {seconds}, and a tenant's must be 1 to {cap}"),
        format!("set terminationGracePeriodSeconds to 1 to {cap}, or raise graceCapSeconds in the chart"),
    )]
}

/// Policy spillway-pod: priorities of tenants.
fn priority(facts: &Facts, template: &Template<'_>) -> Vec<Finding> {
    if facts.role(template.namespace) != Role::Tenant {
        return Vec::new();
    }
    let spec = template.spec;
    let class = spec.priority_class_name.as_deref().unwrap_or_default();
    let found = match class {
        "" => facts.priorities.iter().find(|one| one.global_default == Some(true)),
        name => facts.priorities.iter().find(|one| one.name_any() == name),
    };
    let value = spec.priority.or_else(|| found.and_then(|one| one.value)).unwrap_or_default();
    let name = found.map(ResourceExt::name_any).unwrap_or_else(|| class.to_owned());
    let (why, remedy) = if value >= SYSTEM_PRIORITY {
        (
            format!("its priority {value} ({name}) is one of the system's, which a tenant may not have"),
            "use a PriorityClass below 1000000000".to_owned(),
        )
    } else if value > 0 && !wants_devices(facts, spec) {
        (
            format!("it has no devices and priority {value} ({name}): it would push others from shared nodes"),
            "leave priorityClassName out; if the class is the cluster's default, name one with value 0".to_owned(),
        )
    } else {
        return Vec::new();
    };
    vec![finding(template, Severity::Refused, "Priority", why, remedy)]
}

/// Policy spillway-binding: schedulers that are not in the list.
fn scheduler(facts: &Facts, template: &Template<'_>) -> Vec<Finding> {
    let name = template.spec.scheduler_name.as_deref().unwrap_or("default-scheduler");
    if matches!(name, "" | "default-scheduler") {
        return Vec::new();
    }
    // Which user a scheduler is cannot be seen; that there is none but the cluster's own can.
    let users = &facts.values.schedulers;
    let only = users.iter().all(|user| user == "system:kube-scheduler");
    let (severity, why) = if only {
        (Severity::Refused, format!("its scheduler is {name}, and nobody but system:kube-scheduler may bind"))
    } else {
        (Severity::Note, format!("its scheduler is {name}: its user must be one of {}", users.join(", ")))
    };
    let remedy = format!("add the user name of scheduler {name} to the value schedulers");
    vec![finding(template, severity, "Scheduler", why, remedy)]
}

/// A tenant's namespace gets Pod Security level baseline.
fn pod_security(facts: &Facts, template: &Template<'_>) -> Vec<Finding> {
    if facts.role(template.namespace) != Role::Tenant {
        return Vec::new();
    }
    let spec = template.spec;
    let mut wants = BTreeSet::new();
    for (what, wanted) in [("hostNetwork", spec.host_network), ("hostPID", spec.host_pid), ("hostIPC", spec.host_ipc)] {
        if wanted == Some(true) {
            wants.insert(what);
        }
    }
    if spec.volumes.iter().flatten().any(|volume| volume.host_path.is_some()) {
        wants.insert("hostPath");
    }
    for container in spec.containers.iter().chain(spec.init_containers.iter().flatten()) {
        if container.security_context.as_ref().and_then(|context| context.privileged) == Some(true) {
            wants.insert("privileged");
        }
        if container.ports.iter().flatten().any(|port| port.host_port.is_some_and(|port| port != 0)) {
            wants.insert("hostPort");
        }
    }
    if wants.is_empty() {
        return Vec::new();
    }
    let wants: Vec<&str> = wants.into_iter().collect();
    vec![finding(
        template,
        Severity::Refused,
        "PodSecurity",
        format!("it wants {}, and a tenant's namespace has Pod Security level baseline", wants.join(", ")),
        "leave these out of a tenant's pods".to_owned(),
    )]
}

/// Infrastructure that does not tolerate a node that is closed or sold.
fn kept_off(facts: &Facts, template: &Template<'_>) -> Vec<Finding> {
    if !template.is_daemonset
        || facts.role(template.namespace) != Role::Infrastructure
        || tolerates_every_hold(template.spec)
        || !facts.nodes.iter().any(|node| is_candidate(facts, node) && selects(template.spec, node.labels()))
    {
        return Vec::new();
    }
    vec![finding(
        template,
        Severity::Evicted,
        "InfrastructureWithoutToleration",
        "its pods are kept off closed nodes, and evicted when a node is sold".to_owned(),
        "once the chart is installed, write it once, and the policy adds the toleration: kubectl annotate daemonsets -n NAMESPACE --all \
         --overwrite spillway.dev/touched=1"
            .to_owned(),
    )]
}

fn tolerates_every_hold(spec: &PodSpec) -> bool {
    tolerations_of(spec).iter().any(|one| {
        one.effect.is_none()
            && one.operator.as_deref() == Some("Exists")
            && matches!(one.key.as_deref(), None | Some("" | HOLD_TAINT))
    })
}

fn selects(spec: &PodSpec, labels: &BTreeMap<String, String>) -> bool {
    spec.node_selector.iter().flatten().all(|(key, value)| labels.get(key) == Some(value))
}

/// A node that is sold, or has devices and may be.
pub(super) fn is_candidate(facts: &Facts, node: &k8s_openapi::api::core::v1::Node) -> bool {
    let capacity = node.status.as_ref().and_then(|status| status.capacity.as_ref());
    node.labels().contains_key(POOL_LABEL)
        || capacity.is_some_and(|all| all.iter().any(|(name, amount)| facts.is_device(name) && amount.0 != "0"))
}

fn wants_devices(facts: &Facts, spec: &PodSpec) -> bool {
    spec.containers.iter().chain(spec.init_containers.iter().flatten()).any(|container| {
        let limits = container.resources.as_ref().and_then(|resources| resources.limits.as_ref());
        limits.is_some_and(|limits| limits.keys().any(|name| facts.is_device(name)))
    })
}

/// Pods that run on nodes which may be sold, and that nothing keeps there: one finding for all pods of one controller.
fn evicted(facts: &Facts) -> Vec<Finding> {
    let candidates: BTreeMap<String, bool> = facts
        .nodes
        .iter()
        .filter(|node| is_candidate(facts, node))
        .map(|node| (node.name_any(), node.labels().contains_key(POOL_LABEL)))
        .collect();
    let mut counts: BTreeMap<(&'static str, String), (usize, String, String)> = BTreeMap::new();
    for pod in &facts.pods {
        let (Some(spec), Some(namespace)) = (&pod.spec, pod.metadata.namespace.as_deref()) else { continue };
        let Some(node) = spec.node_name.as_deref() else { continue };
        let Some(in_pool) = candidates.get(node) else { continue };
        let device = wants_devices(facts, spec);
        let (rule, why, remedy) = match facts.role(namespace) {
            Role::Infrastructure => continue,
            Role::Owner if device => continue,
            Role::Tenant if *in_pool => (
                "TenantPodOnPoolNode",
                format!("on {node}: a tenant's pod may be only where its tenant holds something"),
                "let it end, or buy what it runs on, before its namespace is listed in a Tenant".to_owned(),
            ),
            Role::None if device => (
                "NobodysGpuPod",
                format!("on {node}: its namespace is in no Tenant, so the node counts as free, and the pod is deleted at its sale"),
                "list its namespace in the owner's Tenant (owner: true) before the node joins a pool".to_owned(),
            ),
            _ => (
                "PodWithoutDevices",
                format!("on {node}: it is deleted when the node is sold"),
                "move it to nodes that are not for sale, or list its namespace in infrastructureNamespaces if it belongs to every node".to_owned(),
            ),
        };
        let owner = pod.owner_references().first();
        let object = match owner {
            Some(owner) => format!("{}/{namespace}/{}", owner.kind, owner.name),
            None => format!("Pod/{namespace}/{}", pod.name_any()),
        };
        let entry = counts.entry((rule, object)).or_insert((0, why, remedy));
        entry.0 += 1;
    }
    counts
        .into_iter()
        .map(|((rule, object), (count, why, remedy))| {
            let why = if count > 1 { format!("{count} pods, one of them {why}") } else { why };
            Finding { severity: Severity::Evicted, rule, object, why, remedy }
        })
        .collect()
}
