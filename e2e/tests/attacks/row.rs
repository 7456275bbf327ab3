//! One row of the attack table: who does what to the API server, and what must come of it.

use anyhow::{Context as _, Result};
use serde_json::{Value, json};
use spillway_lab::Lab;
use tonic::codegen::http::{Method, Request};

/// Who asks.
#[derive(Clone, Debug)]
pub(crate) enum Who {
    /// A person with ClusterRole `edit` in this namespace, and nothing else.
    Editor(&'static str),
    /// Cluster administrator (`system:masters`), who is not in the break-glass group.
    Admin,
    /// The administrator who breaks the glass.
    BreakGlass,
    /// A kubelet.
    Kubelet(&'static str),
    /// The operator, with the rights that the chart gives it.
    Operator,
    /// The operator, as if it had all rights: what do the policies alone let it do?
    OperatorWithAllRights,
    /// The agent's pod on this node, with the rights that the chart gives it.
    Agent(&'static str),
    /// Somebody who holds a token of the agent's service account that is bound to no node.
    AgentWithoutNode,
    /// kube-scheduler.
    Scheduler,
    /// The controller that deletes what is in a deleted namespace.
    NamespaceController,
}

/// The release's namespace.
pub(crate) const RELEASE: &str = "spillway-system";
const MASTERS: &str = "system:masters";
const NODE_NAME: &str = "authentication.kubernetes.io/node-name";

impl Who {
    /// A client that is this one.
    pub(crate) fn client(&self, lab: &Lab) -> Result<kube::Client> {
        let account = |name: &str| format!("system:serviceaccount:{RELEASE}:{name}");
        match self {
            Self::Editor(namespace) => lab.client_as(&format!("{namespace}-editor"), &["people"], &[]),
            Self::Admin => lab.client_as("cluster-admin", &[MASTERS], &[]),
            Self::BreakGlass => lab.client_as("cluster-admin", &[MASTERS, "spillway:break-glass"], &[]),
            Self::Kubelet(node) => lab.client_as(&format!("system:node:{node}"), &["system:nodes"], &[]),
            Self::Operator => lab.client_as_service_account(RELEASE, "spillway-operator"),
            Self::OperatorWithAllRights => lab.client_as(&account("spillway-operator"), &[MASTERS], &[]),
            Self::Agent(node) => {
                lab.client_as(&account("spillway-agent"), &["system:serviceaccounts"], &[(NODE_NAME, node)])
            }
            Self::AgentWithoutNode => lab.client_as(&account("spillway-agent"), &["system:serviceaccounts"], &[]),
            Self::Scheduler => lab.client_as("system:kube-scheduler", &[MASTERS], &[]),
            Self::NamespaceController => lab.client_as(
                "system:serviceaccount:kube-system:namespace-controller",
                &["system:serviceaccounts", "system:serviceaccounts:kube-system"],
                &[],
            ),
        }
    }
}

/// What is asked.
#[derive(Clone, Debug)]
pub(crate) enum Call {
    /// POST of this object.
    Create(String, Value),
    /// PATCH with these media type and body.
    Patch(String, &'static str, Value),
    /// GET, change, PUT, as an editor in `kubectl edit` would. The object is read as administrator.
    Edit(String, fn(&mut Value)),
    /// DELETE with these DeleteOptions.
    Delete(String, Value),
}

/// Media types of patches.
const MERGE: &str = "application/merge-patch+json";
const STRATEGIC: &str = "application/strategic-merge-patch+json";
const JSON: &str = "application/json-patch+json";
const APPLY: &str = "application/apply-patch+yaml";

/// What must come of it.
#[derive(Clone, Debug)]
pub(crate) enum Expect {
    /// Refused by this policy, in a message with this text.
    Policy(&'static str, &'static str),
    /// Refused because no role allows it.
    Rights,
    /// Refused by Kubernetes itself with this code, in a message with this text.
    Kubernetes(u16, &'static str),
    /// Goes through.
    Allowed,
    /// Goes through, and this is true of what comes back.
    AllowedWith(&'static str, fn(&Value) -> bool),
}

/// A row of the table.
#[derive(Clone, Debug)]
pub(crate) struct Row {
    attack: String,
    who: Who,
    call: Call,
    expect: Expect,
}

/// A row.
pub(crate) fn row(attack: impl Into<String>, who: Who, call: Call, expect: Expect) -> Row {
    Row { attack: attack.into(), who, call, expect }
}

/// POST to a collection.
pub(crate) fn create(path: impl Into<String>, body: Value) -> Call {
    Call::Create(path.into(), body)
}

/// JSON merge patch.
pub(crate) fn merge(path: impl Into<String>, body: Value) -> Call {
    Call::Patch(path.into(), MERGE, body)
}

/// Strategic merge patch.
pub(crate) fn strategic(path: impl Into<String>, body: Value) -> Call {
    Call::Patch(path.into(), STRATEGIC, body)
}

/// JSON patch.
pub(crate) fn json_patch(path: impl Into<String>, body: Value) -> Call {
    Call::Patch(path.into(), JSON, body)
}

/// Forced server-side apply by a manager of its own.
pub(crate) fn apply(path: impl Into<String>, body: Value) -> Call {
    Call::Patch(path.into(), APPLY, body)
}

/// Read, change, PUT.
pub(crate) fn edit(path: impl Into<String>, change: fn(&mut Value)) -> Call {
    Call::Edit(path.into(), change)
}

/// DELETE.
pub(crate) fn delete(path: impl Into<String>, options: Value) -> Call {
    Call::Delete(path.into(), options)
}

/// The path of pods of a namespace.
pub(crate) fn pods(namespace: &str) -> String {
    format!("/api/v1/namespaces/{namespace}/pods")
}

/// The path of one of our cluster-scoped kinds.
pub(crate) fn ours(plural: &str) -> String {
    format!("/apis/spillway.dev/v1alpha1/{plural}")
}

/// The path of one of our kinds in a namespace.
pub(crate) fn ours_in(namespace: &str, plural: &str) -> String {
    format!("/apis/spillway.dev/v1alpha1/namespaces/{namespace}/{plural}")
}

impl Call {
    /// Sends it.
    pub(crate) async fn send(&self, lab: &Lab, who: &Who) -> Result<Result<Value, kube::core::Status>> {
        self.send_by(lab, &who.client(lab)?).await
    }

    /// Sends it with a client that the caller has made.
    pub(crate) async fn send_by(&self, lab: &Lab, client: &kube::Client) -> Result<Result<Value, kube::core::Status>> {
        let (method, path, media, body) = match self {
            Self::Create(path, body) => (Method::POST, path.clone(), "application/json", body.clone()),
            Self::Patch(path, media, body) if *media == APPLY => {
                (Method::PATCH, format!("{path}?fieldManager=attacker&force=true"), *media, body.clone())
            }
            Self::Patch(path, media, body) => (Method::PATCH, path.clone(), *media, body.clone()),
            Self::Delete(path, options) => {
                let mut body = json!({"apiVersion": "v1", "kind": "DeleteOptions"});
                merge_into(&mut body, options);
                // A delete with a body does not look at its query.
                if path.ends_with("?dryRun=All") {
                    body["dryRun"] = json!(["All"]);
                }
                (Method::DELETE, path.clone(), "application/json", body)
            }
            Self::Edit(path, change) => {
                // Some subresources, such as finalize, can be written and not read: the object itself is read.
                let of = path.strip_suffix("/finalize").unwrap_or(path);
                let request = Request::get(of).body(Vec::new()).context("a request")?;
                let mut body: Value =
                    Who::Admin.client(lab)?.request(request).await.with_context(|| format!("reading {of}"))?;
                change(&mut body);
                (Method::PUT, path.clone(), "application/json", body)
            }
        };
        let request = Request::builder()
            .method(method)
            .uri(&path)
            .header("content-type", media)
            .body(body.to_string().into_bytes())
            .context("a request")?;
        match client.request::<Value>(request).await {
            Ok(answer) => Ok(Ok(answer)),
            Err(kube::Error::Api(status)) => Ok(Err(*status)),
            Err(error) => Err(error).with_context(|| format!("asking {path}")),
        }
    }
}

/// Adds the fields of one object to another.
pub(crate) fn merge_into(into: &mut Value, from: &Value) {
    match (into, from) {
        (Value::Object(into), Value::Object(from)) => {
            for (key, value) in from {
                merge_into(into.entry(key.clone()).or_insert(Value::Null), value);
            }
        }
        (into, from) => *into = from.clone(),
    }
}

/// Why what came is not what was expected, or nothing.
fn judge(expect: &Expect, answer: &Result<Value, kube::core::Status>) -> Option<String> {
    let told = |status: &kube::core::Status| format!("{} {}", status.code, status.message);
    match (expect, answer) {
        (Expect::Allowed, Ok(_)) => None,
        (Expect::AllowedWith(what, check), Ok(answer)) => {
            (!check(answer)).then(|| format!("expected {what}, got {answer}"))
        }
        (Expect::Allowed | Expect::AllowedWith(..), Err(status)) => {
            Some(format!("expected to pass, got {}", told(status)))
        }
        (Expect::Policy(policy, text), Err(status)) => {
            let by = format!("ValidatingAdmissionPolicy '{policy}'");
            let code = status.code == 403 || status.code == 422;
            (!(code && status.message.contains(&by) && status.message.contains(text)))
                .then(|| format!("expected a refusal by {policy} with \"{text}\", got {}", told(status)))
        }
        (Expect::Rights, Err(status)) => (!(status.code == 403 && status.message.contains(" cannot ")))
            .then(|| format!("expected a lack of rights, got {}", told(status))),
        (Expect::Kubernetes(code, text), Err(status)) => (!(status.code == *code && status.message.contains(text)))
            .then(|| format!("expected {code} with \"{text}\", got {}", told(status))),
        (expect, Ok(_)) => Some(format!("IT WORKED; expected {expect:?}")),
    }
}

/// Runs rows one after the other and says which came out differently.
pub(crate) async fn run(lab: &Lab, rows: &[Row]) -> Result<Vec<String>> {
    let mut wrong = Vec::new();
    for Row { attack, who, call, expect } in rows {
        let answer = call.send(lab, who).await.with_context(|| attack.clone())?;
        if let Some(why) = judge(expect, &answer) {
            wrong.push(format!("{attack} ({who:?}): {why}"));
        }
    }
    Ok(wrong)
}
