//! Rules about the API server: its version, its plugins, its webhooks.

use k8s_openapi::api::admissionregistration::v1::{
    MutatingWebhookConfiguration, RuleWithOperations, ValidatingWebhookConfiguration,
};
use kube::ResourceExt;

use super::{Facts, Finding, Severity};

/// A webhook in the way of objects that matter here.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Webhook {
    /// `MutatingWebhookConfiguration/name` or the other.
    pub(crate) object: String,
    /// Name of the webhook.
    pub(crate) name: String,
    /// Which of pods, nodes and namespaces it takes.
    pub(crate) takes: Vec<&'static str>,
    /// It changes objects.
    pub(crate) mutates: bool,
    /// Without it nothing goes.
    pub(crate) fails_closed: bool,
}

/// All rules of this file.
pub(super) fn check(facts: &Facts) -> Vec<Finding> {
    [version, node_restriction, in_the_way].iter().flat_map(|rule| rule(facts)).collect()
}

fn number(text: &str) -> u32 {
    text.chars().take_while(char::is_ascii_digit).collect::<String>().parse().unwrap_or_default()
}

/// MutatingAdmissionPolicy is v1 from 1.36 on.
fn version(facts: &Facts) -> Vec<Finding> {
    let (major, minor) = (number(&facts.version.major), number(&facts.version.minor));
    if (major, minor) >= (1, 36) {
        return Vec::new();
    }
    vec![Finding {
        severity: Severity::Refused,
        rule: "KubernetesVersion",
        object: "Cluster".to_owned(),
        why: format!(
            "it is {}, and Spillway needs 1.36 or newer (MutatingAdmissionPolicy v1)",
            facts.version.git_version
        ),
        remedy: "upgrade the control plane first".to_owned(),
    }]
}

/// Without NodeRestriction a kubelet may write other nodes. Only seen where the API server is a pod.
fn node_restriction(facts: &Facts) -> Vec<Finding> {
    let servers: Vec<_> = facts
        .pods
        .iter()
        .filter(|pod| pod.namespace().as_deref() == Some("kube-system") && pod.name_any().starts_with("kube-apiserver"))
        .collect();
    let note = |why: &str, severity| {
        vec![Finding {
            severity,
            rule: "NodeRestriction",
            object: "Cluster".to_owned(),
            why: why.to_owned(),
            remedy: "look at --enable-admission-plugins of the API server: it must have NodeRestriction".to_owned(),
        }]
    };
    if servers.is_empty() {
        return note(
            "whether the plugin NodeRestriction is on cannot be seen: the API server is no pod here",
            Severity::Note,
        );
    }
    let with = servers.iter().all(|pod| {
        let containers = pod.spec.iter().flat_map(|spec| &spec.containers);
        let words =
            containers.flat_map(|container| container.command.iter().flatten().chain(container.args.iter().flatten()));
        words.into_iter().any(|word| word.starts_with("--enable-admission-plugins") && word.contains("NodeRestriction"))
    });
    if with {
        Vec::new()
    } else {
        note("the plugin NodeRestriction is off: a kubelet may write other nodes", Severity::Note)
    }
}

/// Webhooks that stand between Spillway and what it writes.
fn in_the_way(facts: &Facts) -> Vec<Finding> {
    let mut findings = Vec::new();
    for webhook in &facts.webhooks {
        let blocks: Vec<&str> = webhook.takes.iter().copied().filter(|what| *what != "pods").collect();
        if webhook.fails_closed && !blocks.is_empty() {
            findings.push(Finding {
                severity: Severity::Note,
                rule: "WebhookFailsClosed",
                object: webhook.object.clone(),
                why: format!(
                    "while {} does not answer, {} cannot be written: nothing is handed over or given back",
                    webhook.name,
                    blocks.join(" and ")
                ),
                remedy: "let it leave out the operator's user, or set failurePolicy: Ignore".to_owned(),
            });
        }
        if webhook.mutates && webhook.takes.contains(&"pods") {
            findings.push(Finding {
                severity: Severity::Note,
                rule: "WebhookChangesPods",
                object: webhook.object.clone(),
                why: format!(
                    "{} changes pods: a toleration without a key or a nodeName that it adds makes the pod refused",
                    webhook.name
                ),
                remedy: "try one pod with kubectl create --dry-run=server -o yaml, and look at its tolerations"
                    .to_owned(),
            });
        }
    }
    findings
}

/// The webhooks that take pods, nodes or namespaces.
pub(super) fn webhooks(
    validating: &[ValidatingWebhookConfiguration],
    mutating: &[MutatingWebhookConfiguration],
) -> Vec<Webhook> {
    let mut webhooks = Vec::new();
    for configuration in validating {
        for webhook in configuration.webhooks.iter().flatten() {
            webhooks.push(Webhook {
                object: format!("ValidatingWebhookConfiguration/{}", configuration.name_any()),
                name: webhook.name.clone(),
                takes: takes(webhook.rules.as_deref()),
                mutates: false,
                fails_closed: webhook.failure_policy.as_deref() != Some("Ignore"),
            });
        }
    }
    for configuration in mutating {
        for webhook in configuration.webhooks.iter().flatten() {
            webhooks.push(Webhook {
                object: format!("MutatingWebhookConfiguration/{}", configuration.name_any()),
                name: webhook.name.clone(),
                takes: takes(webhook.rules.as_deref()),
                mutates: true,
                fails_closed: webhook.failure_policy.as_deref() != Some("Ignore"),
            });
        }
    }
    webhooks.retain(|webhook| !webhook.takes.is_empty());
    webhooks
}

fn takes(rules: Option<&[RuleWithOperations]>) -> Vec<&'static str> {
    let core =
        |rule: &&RuleWithOperations| rule.api_groups.iter().flatten().any(|group| group.is_empty() || group == "*");
    ["pods", "nodes", "namespaces"]
        .into_iter()
        .filter(|what| {
            rules
                .unwrap_or_default()
                .iter()
                .filter(core)
                .any(|rule| rule.resources.iter().flatten().any(|name| name == what || name == "*" || name == "*/*"))
        })
        .collect()
}
