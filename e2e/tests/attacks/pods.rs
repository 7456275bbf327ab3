//! Attacks by pods: tolerations, node names, changes afterwards, bindings, grace periods, priorities.

use serde_json::{Value, json};

use crate::row::{Expect, RELEASE, Row, Who, apply, create, delete, edit, json_patch, merge, pods, row, strategic};
use crate::stage::{Stage, pod};

const KEYLESS: Expect = Expect::Policy("spillway-pod", "a toleration without a key tolerates the taints");
const FOREIGN: Expect = Expect::Policy("spillway-pod", "leave the toleration out, Spillway adds the right one");
const NODE_NAME: Expect = Expect::Policy("spillway-pod", "use a nodeSelector");
const GRACE_OF_POD: Expect = Expect::Policy("spillway-pod", "must be 1 to 120");
const GRACE_OF_DELETE: Expect = Expect::Policy("spillway-pod-delete", "delete without --force");
const UNBOUND: Expect = Expect::Policy("spillway-binding", "leave it to the scheduler");
/// The list is atomic: to apply it is to replace it, and that is never allowed.
const REPLACED: Expect = Expect::Kubernetes(422, "existing toleration can not be modified");
const RESIZE: Expect = Expect::Kubernetes(422, "only cpu and memory");

/// Dry runs go through all of admission and leave nothing.
fn dry(namespace: &str) -> String {
    format!("{}?dryRun=All", pods(namespace))
}

fn tolerating(toleration: &Value) -> Value {
    pod("attack", 1, &json!({"spec": {"tolerations": [toleration]}}))
}

/// Tolerations at creation: (what, toleration).
fn foreign_tolerations(stage: &Stage) -> Vec<(String, Value)> {
    let equal = |value: &str| json!({"key": "spillway.dev/hold", "operator": "Equal", "value": value});
    vec![
        ("another holder's id".to_owned(), equal(&stage.beta)),
        (
            "another holder's id, one effect".to_owned(),
            json!({"key": "spillway.dev/hold", "value": stage.beta, "effect": "NoExecute"}),
        ),
        ("any value".to_owned(), json!({"key": "spillway.dev/hold", "operator": "Exists"})),
        ("closed".to_owned(), equal("closed")),
        ("one node's id".to_owned(), equal(&format!("node.{}", stage.node_uid))),
        ("another key of ours".to_owned(), json!({"key": "spillway.dev/other", "operator": "Exists"})),
        ("no value".to_owned(), json!({"key": "spillway.dev/hold", "operator": "Equal"})),
    ]
}

const KEYLESS_TOLERATIONS: [(&str, &str); 4] = [
    ("no key", r#"{"operator": "Exists"}"#),
    ("an empty key", r#"{"key": "", "operator": "Exists"}"#),
    ("no key, NoSchedule", r#"{"operator": "Exists", "effect": "NoSchedule"}"#),
    ("no key, NoExecute for 300 s", r#"{"operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300}"#),
];

/// Tolerations of new pods, in namespaces of a tenant, of the owner, and of nobody.
pub(crate) fn tolerations(stage: &Stage) -> Vec<Row> {
    let mut rows = Vec::new();
    for namespace in ["acme", "own", "free"] {
        let who = Who::Editor(namespace);
        for (what, toleration) in foreign_tolerations(stage) {
            let call = create(pods(namespace), tolerating(&toleration));
            rows.push(row(format!("toleration of {what} in {namespace}"), who.clone(), call, FOREIGN));
        }
        for (what, toleration) in KEYLESS_TOLERATIONS {
            let toleration = serde_json::from_str(toleration).unwrap_or_default();
            let call = create(pods(namespace), tolerating(&toleration));
            rows.push(row(format!("toleration with {what} in {namespace}"), who.clone(), call, KEYLESS));
        }
        let greater = json!({"key": "spillway.dev/hold", "operator": "Gt", "value": "1"});
        let call = create(pods(namespace), tolerating(&greater));
        rows.push(row(format!("toleration with Gt in {namespace}"), who, call, Expect::Kubernetes(422, "Gt")));
    }
    let unsold = json!({"key": "spillway.dev/hold", "operator": "Equal", "value": "unsold"});
    for namespace in ["acme", "free"] {
        let call = create(pods(namespace), tolerating(&unsold));
        rows.push(row(format!("toleration of unsold in {namespace}"), Who::Editor(namespace), call, FOREIGN));
    }
    let own = json!({"key": "spillway.dev/hold", "operator": "Equal", "value": stage.acme});
    rows.extend([
        row(
            "the owner tolerates unsold by hand",
            Who::Editor("own"),
            create(dry("own"), tolerating(&unsold)),
            ONE_TOLERATION,
        ),
        row(
            "a tenant tolerates its own id by hand",
            Who::Editor("acme"),
            create(dry("acme"), tolerating(&own)),
            ONE_TOLERATION,
        ),
        row(
            "a tenant's pod without GPUs tolerates its own id",
            Who::Editor("acme"),
            create(dry("acme"), pod("cpu", 0, &json!({"spec": {"tolerations": [own]}}))),
            ONE_TOLERATION,
        ),
        row(
            "an unchanged pod of a tenant is pinned",
            Who::Editor("acme"),
            create(dry("acme"), pod("p", 1, &json!({}))),
            PINNED,
        ),
        row(
            "GPUs in an init container only are pinned like any others",
            Who::Editor("acme"),
            create(
                dry("acme"),
                pod(
                    "init",
                    0,
                    &json!({"spec": {"initContainers": [
                        {"name": "i", "image": "localhost/none", "resources": {"limits": {"nvidia.com/gpu": "1"}}},
                    ]}}),
                ),
            ),
            PINNED,
        ),
        row(
            "an infrastructure pod tolerates everything",
            Who::Admin,
            create(dry("gpu-operator"), tolerating(&json!({"operator": "Exists"}))),
            Expect::Allowed,
        ),
    ]);
    rows
}

const ONE_TOLERATION: Expect = Expect::AllowedWith("one toleration of ours", |pod| {
    let ours = |toleration: &&Value| toleration["key"] == "spillway.dev/hold";
    pod["spec"]["tolerations"].as_array().is_some_and(|all| all.iter().filter(ours).count() == 1)
});

const PINNED: Expect = Expect::AllowedWith("a pin to acme's holds and one toleration", |pod| {
    let ours = |toleration: &&Value| toleration["key"] == "spillway.dev/hold";
    pod["spec"]["nodeSelector"]["hold.spillway.dev/acme"] == "true"
        && pod["spec"]["tolerations"].as_array().is_some_and(|all| all.iter().filter(ours).count() == 1)
});

/// Ways around the scheduler.
pub(crate) fn around_the_scheduler() -> Vec<Row> {
    let named = |gpus| pod("attack", gpus, &json!({"spec": {"nodeName": "gpu-1"}}));
    let mirror = json!({
        "metadata": {"annotations": {"kubernetes.io/config.mirror": "x"}},
        "spec": {"nodeName": "gpu-1"},
    });
    let to = |node: &str| json!({"target": {"apiVersion": "v1", "kind": "Node", "name": node}});
    let binding = |name: &str, node: &str| {
        let mut body = to(node);
        crate::row::merge_into(&mut body, &json!({"apiVersion": "v1", "kind": "Binding", "metadata": {"name": name}}));
        body
    };
    let mut rows = Vec::new();
    for namespace in ["acme", "own", "free"] {
        for gpus in [0, 1] {
            let call = create(pods(namespace), named(gpus));
            rows.push(row(
                format!("nodeName with {gpus} GPUs in {namespace}"),
                Who::Editor(namespace),
                call,
                NODE_NAME,
            ));
        }
    }
    rows.extend([
        row("nodeName as the administrator", Who::Admin, create(pods("free"), named(1)), NODE_NAME),
        row("nodeName as the operator", Who::OperatorWithAllRights, create(pods("acme"), named(1)), NODE_NAME),
        row("a user's mirror pod", Who::Editor("acme"), create(pods("acme"), pod("mirror", 0, &mirror)), NODE_NAME),
        row(
            "nodeName of a waiting pod by PUT",
            Who::Editor("acme"),
            edit(format!("{}/waiting", pods("acme")), |pod| pod["spec"]["nodeName"] = json!("gpu-1")),
            Expect::Kubernetes(422, "pod updates may not change fields"),
        ),
        row(
            "binding as a tenant",
            Who::Editor("acme"),
            create(format!("{}/waiting/binding", pods("acme")), binding("waiting", "gpu-1")),
            Expect::Rights,
        ),
        row(
            "binding as a tenant, the old way",
            Who::Editor("acme"),
            create("/api/v1/namespaces/acme/bindings", binding("waiting", "gpu-1")),
            Expect::Rights,
        ),
        row(
            "binding as the administrator",
            Who::Admin,
            create(format!("{}/waiting/binding", pods("acme")), binding("waiting", "gpu-1")),
            UNBOUND,
        ),
        row(
            "binding as the administrator, the old way",
            Who::Admin,
            create("/api/v1/namespaces/acme/bindings", binding("waiting", "gpu-1")),
            UNBOUND,
        ),
        row(
            "binding as who breaks the glass",
            Who::BreakGlass,
            create(format!("{}/waiting/binding", pods("acme")), binding("waiting", "gpu-1")),
            UNBOUND,
        ),
        row(
            "a nominated node at creation",
            Who::Editor("acme"),
            create(dry("acme"), pod("nominated", 1, &json!({"status": {"nominatedNodeName": "gpu-1"}}))),
            Expect::AllowedWith("no nominated node", |pod| pod["status"]["nominatedNodeName"].is_null()),
        ),
        row(
            "a nominated node as a tenant",
            Who::Editor("acme"),
            merge(format!("{}/waiting/status", pods("acme")), json!({"status": {"nominatedNodeName": "gpu-1"}})),
            Expect::Rights,
        ),
    ]);
    rows
}

/// Changes to pods that are there: `running` has all GPUs of acme's node, `waiting` waits for it, `urgent` has a priority.
pub(crate) fn changes(stage: &Stage) -> Vec<Row> {
    let mut rows = Vec::new();
    let foreign = json!({"key": "spillway.dev/hold", "operator": "Equal", "value": stage.beta});
    let one = json!([{"op": "add", "path": "/spec/tolerations/-", "value": foreign}]);
    // A pod that runs nowhere may be resized, and nothing but its resources is taken over.
    let ignored = Expect::AllowedWith("no such toleration", not_foreign);
    for (name, resized) in [("running", Expect::Kubernetes(422, "")), ("waiting", ignored)] {
        let path = format!("{}/{name}", pods("acme"));
        let applied =
            json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": {"tolerations": [foreign]}});
        let any = |pod: &mut Value| {
            if let Some(list) = pod["spec"]["tolerations"].as_array_mut() {
                list.push(json!({"key": "spillway.dev/hold", "operator": "Exists"}));
            }
        };
        let keyless = |pod: &mut Value| {
            if let Some(list) = pod["spec"]["tolerations"].as_array_mut() {
                list.push(json!({"operator": "Exists", "effect": "NoSchedule"}));
            }
        };
        let unpin = |pod: &mut Value| pod["spec"]["nodeSelector"] = json!({});
        rows.extend([
            row(format!("a further toleration of a {name} pod by PUT"), Who::Editor("acme"), edit(&path, any), FOREIGN),
            row(
                format!("a keyless toleration of a {name} pod by PUT"),
                Who::Editor("acme"),
                edit(&path, keyless),
                KEYLESS,
            ),
            row(
                format!("a further toleration of a {name} pod by patch"),
                Who::Editor("acme"),
                json_patch(&path, one.clone()),
                FOREIGN,
            ),
            row(
                format!("a further toleration of a {name} pod by apply"),
                Who::Editor("acme"),
                apply(&path, applied),
                REPLACED,
            ),
            row(
                format!("a further toleration of a {name} pod through /status"),
                Who::Admin,
                json_patch(format!("{path}/status"), one.clone()),
                Expect::AllowedWith("no such toleration", not_foreign),
            ),
            row(
                format!("a further toleration of a {name} pod through /ephemeralcontainers"),
                Who::Admin,
                json_patch(format!("{path}/ephemeralcontainers"), one.clone()),
                Expect::AllowedWith("no such toleration", not_foreign),
            ),
            row(
                format!("a further toleration of a {name} pod through /resize"),
                Who::Admin,
                json_patch(format!("{path}/resize"), one.clone()),
                resized,
            ),
            row(
                format!("unpinning a {name} pod"),
                Who::Editor("acme"),
                edit(&path, unpin),
                Expect::Kubernetes(422, "spec"),
            ),
        ]);
    }
    let running = format!("{}/running", pods("acme"));
    let gpus = |n: &str| json!({"nvidia.com/gpu": n});
    let grown =
        json!({"spec": {"containers": [{"name": "c", "resources": {"limits": gpus("16"), "requests": gpus("16")}}]}});
    let ephemeral = json!({"spec": {"ephemeralContainers": [
        {"name": "e", "image": "localhost/none", "resources": {"limits": gpus("8")}},
    ]}});
    rows.extend([
        row("more GPUs by /resize", Who::Admin, strategic(format!("{running}/resize"), grown.clone()), RESIZE),
        row("/resize as a tenant", Who::Editor("acme"), strategic(format!("{running}/resize"), grown), Expect::Rights),
        row(
            "GPUs in an ephemeral container",
            Who::Admin,
            strategic(format!("{running}/ephemeralcontainers"), ephemeral.clone()),
            Expect::Kubernetes(422, "ephemeralContainers"),
        ),
        row(
            "/ephemeralcontainers as a tenant",
            Who::Editor("acme"),
            strategic(format!("{running}/ephemeralcontainers"), ephemeral),
            Expect::Rights,
        ),
        row(
            "the reservation label changed afterwards stays without effect",
            Who::Editor("acme"),
            merge(format!("{running}?dryRun=All"), json!({"metadata": {"labels": {"spillway.dev/reservation": "r9"}}})),
            Expect::AllowedWith("the pin it had", |pod| {
                pod["spec"]["nodeSelector"] == json!({"hold.spillway.dev/acme": "true"})
            }),
        ),
    ]);
    rows
}

fn not_foreign(pod: &Value) -> bool {
    let ours = |toleration: &&Value| toleration["key"] == "spillway.dev/hold";
    pod["spec"]["tolerations"].as_array().is_some_and(|all| all.iter().filter(ours).count() == 1)
}

/// What the operator's identity is good for, and what it is not.
pub(crate) fn as_the_operator(stage: &Stage) -> Vec<Row> {
    let waiting = format!("{}/waiting", pods("acme"));
    let add = |value: String| {
        let toleration = json!({"key": "spillway.dev/hold", "operator": "Equal", "value": value});
        json!([{"op": "add", "path": "/spec/tolerations/-", "value": toleration}])
    };
    let assigned =
        json!({"key": "spillway.dev/hold", "operator": "Equal", "value": format!("node.{}", stage.node_uid)});
    let account = format!("/api/v1/namespaces/{RELEASE}/serviceaccounts/spillway-operator/token");
    let token = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}});
    let parted = format!("{}/parted", pods("acme"));
    let cpu = json!({"requests": {"cpu": "2"}, "limits": {"cpu": "2"}});
    let bigger = json!({"spec": {"containers": [{"name": "c", "resources": cpu}]}});
    let other = json!([{"op": "replace", "path": "/spec/containers/0/image", "value": "localhost/other"}]);
    let image = |pod: &mut Value| pod["spec"]["containers"][0]["image"] = json!("localhost/other");
    let all = Who::OperatorWithAllRights;
    vec![
        row("a tenant asks for the operator's token", Who::Editor("acme"), create(account, token), Expect::Rights),
        row(
            "a tenant's pod beside the operator",
            Who::Editor("acme"),
            create(pods(RELEASE), pod("p", 0, &json!({}))),
            Expect::Rights,
        ),
        row(
            "a tenant's pod under the operator's name",
            Who::Editor("acme"),
            create(pods("acme"), pod("p", 0, &json!({"spec": {"serviceAccountName": "spillway-operator"}}))),
            Expect::Kubernetes(403, "not found"),
        ),
        row(
            "the operator changes an image",
            all.clone(),
            edit(&waiting, image),
            Expect::Policy("spillway-operator", "not their containers"),
        ),
        row("the operator adds a foreign holder", all.clone(), json_patch(&waiting, add(stage.beta.clone())), FOREIGN),
        row("the operator creates an assigned pod", all.clone(), create(pods("acme"), tolerating(&assigned)), FOREIGN),
        row(
            "the operator assigns one pod to a shared node",
            all.clone(),
            json_patch(format!("{waiting}?dryRun=All"), add(format!("node.{}", stage.node_uid))),
            Expect::Allowed,
        ),
        row(
            "the operator assigns a pod with a priority to a shared node",
            all,
            json_patch(format!("{}/urgent", pods("acme")), add(format!("node.{}", stage.node_uid))),
            Expect::Policy("spillway-pod", "a pod with a priority over 0"),
        ),
        row(
            "the operator, by its roles, changes an image",
            Who::Operator,
            json_patch(&waiting, other),
            Expect::Policy("spillway-operator", "not their containers"),
        ),
        row(
            "the operator, by its roles, adds a foreign holder",
            Who::Operator,
            json_patch(&waiting, add(stage.beta.clone())),
            FOREIGN,
        ),
        row(
            "the operator, by its roles, assigns one pod to a shared node",
            Who::Operator,
            json_patch(&parted, add(format!("node.{}", stage.node_uid))),
            Expect::Allowed,
        ),
        row(
            "a pod on a shared node grows into its neighbours' share",
            Who::Admin,
            strategic(format!("{parted}/resize"), bigger.clone()),
            Expect::Policy("spillway-resize", "may not be resized in place"),
        ),
        row(
            "a pod on a node of its own is resized",
            Who::Admin,
            strategic(format!("{}/sized/resize", pods("acme")), bigger),
            Expect::Allowed,
        ),
        row(
            "the operator's roles do not let it make pods",
            Who::Operator,
            create(pods("acme"), pod("p", 0, &json!({}))),
            Expect::Rights,
        ),
        row(
            "the operator's roles do not let it delete nodes",
            Who::Operator,
            delete("/api/v1/nodes/gpu-0", json!({})),
            Expect::Rights,
        ),
    ]
}

/// Priorities and Pod Security.
pub(crate) fn priorities() -> Vec<Row> {
    let class = |name: &str| json!({"spec": {"priorityClassName": name}});
    let privileged = json!({"spec": {"containers": [{"name": "c", "image": "localhost/none", "securityContext": {"privileged": true}}]}});
    let host = json!({"spec": {"volumes": [{"name": "h", "hostPath": {"path": "/"}}]}});
    vec![
        row(
            "a system priority of a tenant",
            Who::Editor("acme"),
            create(pods("acme"), pod("p", 1, &class("system-node-critical"))),
            Expect::Policy("spillway-pod", "may not have a system priority"),
        ),
        row(
            "a priority of a tenant's pod without GPUs",
            Who::Editor("acme"),
            create(pods("acme"), pod("p", 0, &class("high"))),
            Expect::Policy("spillway-pod", "a tenant's pod without GPUs"),
        ),
        row(
            "a priority among a tenant's own GPU pods",
            Who::Editor("acme"),
            create(dry("acme"), pod("p", 1, &class("high"))),
            Expect::Allowed,
        ),
        row(
            "priorities elsewhere stay as they are",
            Who::Editor("free"),
            create(dry("free"), pod("p", 0, &class("high"))),
            Expect::Allowed,
        ),
        row(
            "a privileged pod of a tenant",
            Who::Editor("acme"),
            create(pods("acme"), pod("p", 0, &privileged)),
            Expect::Kubernetes(403, "violates PodSecurity"),
        ),
        row(
            "a host path of a tenant",
            Who::Editor("acme"),
            create(pods("acme"), pod("p", 0, &host)),
            Expect::Kubernetes(403, "violates PodSecurity"),
        ),
    ]
}

/// Hiding a container that still runs, or outliving the reservation.
pub(crate) fn grace() -> Vec<Row> {
    const YEAR: u32 = 31_536_000;
    let lasting = |seconds: u32| pod("p", 1, &json!({"spec": {"terminationGracePeriodSeconds": seconds}}));
    let options = |seconds: u32| json!({"gracePeriodSeconds": seconds});
    let evict = |namespace: &str, name: &str, seconds: u32| {
        let body = json!({
            "apiVersion": "policy/v1", "kind": "Eviction",
            "metadata": {"name": name, "namespace": namespace},
            "deleteOptions": options(seconds),
        });
        create(format!("{}/{name}/eviction", pods(namespace)), body)
    };
    let mut rows = vec![
        row("a grace period of 0 in the pod", Who::Editor("acme"), create(pods("acme"), lasting(0)), GRACE_OF_POD),
        row(
            "a grace period over the cap in the pod",
            Who::Editor("acme"),
            create(pods("acme"), lasting(121)),
            GRACE_OF_POD,
        ),
        row(
            "a grace period of a year in the pod",
            Who::Editor("acme"),
            create(pods("acme"), lasting(YEAR)),
            GRACE_OF_POD,
        ),
        row(
            "a grace period at the cap in the pod",
            Who::Editor("acme"),
            create(dry("acme"), lasting(120)),
            Expect::Allowed,
        ),
    ];
    for (namespace, name) in [("acme", "running"), ("own", "owners")] {
        let who = Who::Editor(namespace);
        let path = format!("{}/{name}", pods(namespace));
        for seconds in [0, 121, YEAR] {
            let what = |how: &str| format!("{how} with a grace period of {seconds} s in {namespace}");
            rows.extend([
                row(what("delete"), who.clone(), delete(&path, options(seconds)), GRACE_OF_DELETE),
                row(what("deletecollection"), who.clone(), delete(pods(namespace), options(seconds)), GRACE_OF_DELETE),
                row(what("eviction"), who.clone(), evict(namespace, name, seconds), GRACE_OF_DELETE),
            ]);
        }
        let dry = format!("{path}?dryRun=All");
        rows.extend([
            row(format!("a plain delete in {namespace}"), who.clone(), delete(&dry, json!({})), Expect::Allowed),
            row(format!("a delete within the cap in {namespace}"), who, delete(&dry, options(120)), Expect::Allowed),
            row(
                format!("the operator's delete in {namespace}"),
                Who::Operator,
                delete(&dry, options(30)),
                Expect::Allowed,
            ),
            row(
                format!("a forced delete by the administrator in {namespace}"),
                Who::Admin,
                delete(&path, options(0)),
                GRACE_OF_DELETE,
            ),
            row(
                format!("a forced delete by the operator in {namespace}"),
                Who::Operator,
                delete(&path, options(0)),
                GRACE_OF_DELETE,
            ),
            row(
                format!("a forced delete that breaks the glass in {namespace}"),
                Who::BreakGlass,
                delete(&dry, options(0)),
                Expect::Allowed,
            ),
        ]);
    }
    rows.push(row(
        "a forced delete of a pod that runs nowhere",
        Who::Editor("acme"),
        delete(format!("{}/waiting?dryRun=All", pods("acme")), options(0)),
        Expect::Allowed,
    ));
    rows
}
