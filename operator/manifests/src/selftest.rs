//! The attacks that the operator tries on itself, and what came of each.
//!
//! They are those of a tenant that may create pods: of each rule of the policies one that breaks this rule and no other, so that a rule which is gone
//! shows. A pod that does nothing wrong must pass and come back pinned: that shows the mutating policies, and that a refusal is no accident.

use serde_json::{Value, json};
use spillway_crds::names::{
    HOLD_CLOSED, HOLD_TAINT, HOLD_UNSOLD, MIRROR_ANNOTATION, SELFTEST_NAMESPACE, SELFTEST_SERVICE_ACCOUNT, hold_label,
};

/// The policy that judges pods.
const POD_POLICY: &str = "spillway-pod";
/// A UID that nobody has.
const NOBODY: &str = "00000000-0000-4000-8000-000000000000";

/// What is created.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Object {
    /// A pod.
    Pod,
    /// A `DaemonSet`.
    DaemonSet,
}

impl Object {
    /// The collection's path.
    pub fn path(self) -> String {
        match self {
            Self::Pod => format!("/api/v1/namespaces/{SELFTEST_NAMESPACE}/pods"),
            Self::DaemonSet => format!("/apis/apps/v1/namespaces/{SELFTEST_NAMESPACE}/daemonsets"),
        }
    }

    /// Where the pod's spec is.
    fn spec(self) -> &'static str {
        match self {
            Self::Pod => "/spec",
            Self::DaemonSet => "/spec/template/spec",
        }
    }
}

/// What must come of it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Expect {
    /// Refused by this policy of ours.
    RefusedBy(&'static str),
    /// Accepted, with the toleration of this holder and pinned to what the namespace holds.
    Pinned,
}

/// One try.
#[derive(Clone, Debug, PartialEq)]
pub struct Attack {
    /// For people.
    pub name: &'static str,
    /// What is created.
    pub object: Object,
    /// The object.
    pub body: Value,
    /// What must come of it.
    pub expect: Expect,
}

/// What the API server said.
#[derive(Clone, Debug, PartialEq)]
pub enum Answer {
    /// It would have been made, as this.
    Accepted(Value),
    /// It was refused.
    Refused(String),
    /// There was no answer.
    None(String),
}

/// What that means.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Verdict {
    /// As it should be.
    Passed,
    /// The policies do not hold.
    Failed(String),
    /// It says nothing about the policies.
    Inconclusive(String),
}

fn pod(name: &str, device: Option<&str>, spec: &Value) -> Value {
    let mut container = json!({"name": "c", "image": "localhost/none"});
    if let (Some(device), Some(fields)) = (device, container.as_object_mut()) {
        fields.insert("resources".to_owned(), json!({"limits": {device: "1"}}));
    }
    let mut all = json!({"serviceAccountName": SELFTEST_SERVICE_ACCOUNT, "containers": [container]});
    if let (Some(all), Some(more)) = (all.as_object_mut(), spec.as_object()) {
        all.extend(more.iter().map(|(key, value)| (key.clone(), value.clone())));
    }
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": all})
}

/// All tries. `device_prefix` is one of those that make a pod a device pod, such as `nvidia.com/`.
pub fn attacks(device_prefix: &str, grace_cap_seconds: u32) -> Vec<Attack> {
    let device = format!("{device_prefix}gpu");
    let of = |name, spec: &Value| Attack {
        name,
        object: Object::Pod,
        body: pod("selftest", Some(&device), spec),
        expect: Expect::RefusedBy(POD_POLICY),
    };
    let tolerating = |name, toleration: Value| of(name, &json!({"tolerations": [toleration]}));
    let equal = |value: &str| json!({"key": HOLD_TAINT, "operator": "Equal", "value": value});
    let node_name = json!({"nodeName": "spillway-selftest"});
    // A mirror pod may name no ServiceAccount.
    let mut mirror = pod("selftest", None, &node_name);
    if let Some(spec) = mirror.pointer_mut("/spec").and_then(Value::as_object_mut) {
        spec.remove("serviceAccountName");
    }
    if let Some(metadata) = mirror.pointer_mut("/metadata").and_then(Value::as_object_mut) {
        metadata.insert("annotations".to_owned(), json!({MIRROR_ANNOTATION: "selftest"}));
    }
    let pinned = |name, body| Attack { name, object: Object::Pod, body, expect: Expect::Pinned };
    let init = json!({"initContainers": [
        {"name": "i", "image": "localhost/none", "resources": {"limits": {&device: "1"}}},
    ]});
    let labels = json!({"app": "selftest"});
    let template = pod("selftest", Some(&device), &json!({}));
    let template = json!({"metadata": {"labels": labels}, "spec": template.get("spec")});
    vec![
        tolerating("toleration of another holder", equal(NOBODY)),
        tolerating("toleration of every holder", json!({"key": HOLD_TAINT, "operator": "Exists"})),
        tolerating("toleration of closed nodes", equal(HOLD_CLOSED)),
        tolerating("toleration of unsold nodes", equal(HOLD_UNSOLD)),
        tolerating("toleration of a shared node", equal(&format!("node.{NOBODY}"))),
        tolerating(
            "toleration of another spillway.dev/ key",
            json!({"key": "spillway.dev/other", "operator": "Exists"}),
        ),
        tolerating("toleration without a key", json!({"operator": "Exists"})),
        tolerating("toleration with an empty key", json!({"key": "", "operator": "Exists", "effect": "NoSchedule"})),
        tolerating(
            "toleration without a key for a while",
            json!({"operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300}),
        ),
        Attack { body: pod("selftest", None, &node_name), ..of("nodeName", &node_name) },
        of("nodeName with devices", &node_name),
        Attack { body: mirror, ..of("posing as a mirror pod", &node_name) },
        of("grace period 0", &json!({"terminationGracePeriodSeconds": 0})),
        of("grace period over the cap", &json!({"terminationGracePeriodSeconds": i64::from(grace_cap_seconds) + 1})),
        of("system priority", &json!({"priorityClassName": "system-cluster-critical"})),
        Attack {
            body: pod("selftest", None, &json!({"priorityClassName": "system-cluster-critical"})),
            ..of("priority without devices", &json!({}))
        },
        pinned("a pod with devices", pod("selftest", Some(&device), &json!({}))),
        pinned("a pod with devices in an init container", pod("selftest", None, &init)),
        Attack {
            name: "a DaemonSet with devices",
            object: Object::DaemonSet,
            body: json!({"apiVersion": "apps/v1", "kind": "DaemonSet", "metadata": {"name": "selftest"},
                "spec": {"selector": {"matchLabels": labels}, "template": template}}),
            expect: Expect::Pinned,
        },
    ]
}

/// What an answer means. `holder` is the namespace's holder id.
pub fn judge(attack: &Attack, answer: &Answer, holder: &str) -> Verdict {
    match (attack.expect, answer) {
        (_, Answer::None(why)) => Verdict::Inconclusive(format!("{}: {why}", attack.name)),
        (Expect::RefusedBy(policy), Answer::Refused(message)) if by_policy(message, Some(policy)) => Verdict::Passed,
        (Expect::RefusedBy(_), Answer::Accepted(_)) => Verdict::Failed(format!("{} was accepted", attack.name)),
        (Expect::Pinned, Answer::Accepted(object)) => match unpinned(object, attack.object, holder) {
            None => Verdict::Passed,
            Some(what) => Verdict::Failed(format!("{} came back {what}", attack.name)),
        },
        // Without a mutating policy the validating one refuses what was not pinned.
        (Expect::Pinned, Answer::Refused(message)) if by_policy(message, None) => {
            Verdict::Failed(format!("{} was refused: {message}", attack.name))
        }
        (_, Answer::Refused(message)) => {
            Verdict::Inconclusive(format!("{} was refused by somebody else: {message}", attack.name))
        }
    }
}

/// Whether a policy of ours refused: any, or this one.
fn by_policy(message: &str, policy: Option<&str>) -> bool {
    match policy {
        Some(policy) => message.contains(&format!("ValidatingAdmissionPolicy '{policy}'")),
        None => message.contains("ValidatingAdmissionPolicy 'spillway-"),
    }
}

/// What an accepted object lacks.
fn unpinned(object: &Value, kind: Object, holder: &str) -> Option<&'static str> {
    let spec = object.pointer(kind.spec())?;
    let ours = |toleration: &&Value| toleration.get("key").and_then(Value::as_str) == Some(HOLD_TAINT);
    let values: Vec<Option<&str>> = spec
        .get("tolerations")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter(ours)
        .map(|toleration| toleration.get("value").and_then(Value::as_str))
        .collect();
    let pin = spec.get("nodeSelector").and_then(|all| all.get(hold_label(SELFTEST_NAMESPACE))).and_then(Value::as_str);
    if values != [Some(holder)] {
        return Some("without the toleration of its holder alone");
    }
    (pin != Some("true")).then_some("without its pin")
}

/// What a run found.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Outcome {
    /// Every try came out as it should.
    Passed,
    /// At least one did not.
    Failed(Vec<String>),
    /// None failed, and at least one says nothing.
    Inconclusive(Vec<String>),
}

/// The sum of a run.
pub fn sum(verdicts: impl IntoIterator<Item = Verdict>) -> Outcome {
    let (mut failed, mut unclear) = (Vec::new(), Vec::new());
    for verdict in verdicts {
        match verdict {
            Verdict::Passed => {}
            Verdict::Failed(what) => failed.push(what),
            Verdict::Inconclusive(what) => unclear.push(what),
        }
    }
    match (failed.is_empty(), unclear.is_empty()) {
        (false, _) => Outcome::Failed(failed),
        (true, false) => Outcome::Inconclusive(unclear),
        (true, true) => Outcome::Passed,
    }
}

#[cfg(test)]
mod tests;
