//! Attacks on nodes and namespaces: whoever may write our taints and labels could sell, take or open a node.

use serde_json::{Value, json};

use crate::row::{Expect, Row, Who, create, delete, edit, json_patch, merge, pods, row};
use crate::stage::{CLOSED, PLAIN, Stage, hold, pod};

const TAINTS: Expect = Expect::Policy("spillway-node", "only Spillway may change the spillway.dev/ taints");
const LABELS: Expect = Expect::Policy("spillway-node", "only Spillway may change the spillway.dev/ labels");
const ANNOTATIONS: Expect = Expect::Policy("spillway-node", "only Spillway may change the spillway.dev/ annotations");
const NAMESPACE: Expect = Expect::Policy("spillway-namespace", "list the namespace in a Tenant instead");
const NODES: &str = "/api/v1/nodes";
const DRY: &str = "/api/v1/nodes?dryRun=All";

fn node(name: &str) -> String {
    format!("{NODES}/{name}")
}

fn new_node(name: &str, labels: &Value, taints: &Value) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": {"name": name, "labels": labels},
        "spec": {"taints": taints},
    })
}

/// Labels, taints and annotations of nodes.
pub(crate) fn nodes(stage: &Stage) -> Vec<Row> {
    let taints = |value: &str| json!({"spec": {"taints": [hold(value, "NoSchedule"), hold(value, "NoExecute")]}});
    let label = |key: &str, value: Value| json!({"metadata": {"labels": {key: value}}});
    let mine = "hold.spillway.dev/acme";
    let pool = "spillway.dev/pool";
    let mut rows = vec![
        row("no taint any more", Who::Admin, merge(node("gpu-1"), json!({"spec": {"taints": []}})), TAINTS),
        row("another holder's taint", Who::Admin, merge(node("gpu-1"), taints(&stage.acme)), TAINTS),
        row("a closed node opened", Who::Admin, merge(node(CLOSED), taints("unsold")), TAINTS),
        row("a sold node closed", Who::Admin, merge(node("gpu-1"), taints("closed")), TAINTS),
        row(
            "NoExecute taken away",
            Who::Admin,
            merge(node("gpu-1"), json!({"spec": {"taints": [hold(&stage.beta, "NoSchedule")]}})),
            TAINTS,
        ),
        row("a taint on a node of no pool", Who::Admin, merge(node(PLAIN), taints(&stage.acme)), TAINTS),
        row(
            "the glass broken",
            Who::BreakGlass,
            merge(format!("{}?dryRun=All", node("gpu-1")), taints("closed")),
            Expect::Allowed,
        ),
        row(
            "taints through /status",
            Who::Admin,
            merge(format!("{}/status", node("gpu-1")), json!({"spec": {"taints": []}})),
            Expect::AllowedWith("the taints it had", |node| {
                node["spec"]["taints"].as_array().is_some_and(|taints| taints.len() == 2)
            }),
        ),
        row(
            "a pool node whose hold the operator forgot",
            Who::BreakGlass,
            merge(format!("{}?dryRun=All", node("gpu-1")), json!({"spec": {"taints": []}})),
            CLOSED_AGAIN,
        ),
        row(
            "another taint beside ours",
            Who::Admin,
            json_patch(
                format!("{}?dryRun=All", node("gpu-1")),
                json!([{"op": "add", "path": "/spec/taints/-", "value": {"key": "example.com/x", "effect": "NoSchedule"}}]),
            ),
            Expect::Allowed,
        ),
    ];
    for (path, how) in [(node("gpu-1"), "directly"), (format!("{}/status", node("gpu-1")), "through /status")] {
        rows.extend([
            row(format!("a holder's label {how}"), Who::Admin, merge(&path, label(mine, json!("true"))), LABELS),
            row(
                format!("a reservation's label {how}"),
                Who::Admin,
                merge(&path, label("acme.hold.spillway.dev/r1", json!("true"))),
                LABELS,
            ),
            row(
                format!("the holder's label away {how}"),
                Who::Admin,
                merge(&path, label("hold.spillway.dev/beta", Value::Null)),
                LABELS,
            ),
            row(format!("out of the pool {how}"), Who::Admin, merge(&path, label(pool, Value::Null)), LABELS),
            row(format!("into another pool {how}"), Who::Admin, merge(&path, label(pool, json!("other"))), LABELS),
            row(
                format!("the ledger's generation {how}"),
                Who::Admin,
                merge(&path, json!({"metadata": {"annotations": {"spillway.dev/generation": "999999"}}})),
                ANNOTATIONS,
            ),
            // The kubelet of that node: its own node, its own status.
            row(
                format!("a holder's label by the kubelet {how}"),
                Who::Kubelet("gpu-1"),
                merge(&path, label(mine, json!("true"))),
                LABELS,
            ),
            row(
                format!("out of the pool by the kubelet {how}"),
                Who::Kubelet("gpu-1"),
                merge(&path, label(pool, Value::Null)),
                LABELS,
            ),
            row(
                format!("the ledger's generation by the kubelet {how}"),
                Who::Kubelet("gpu-1"),
                merge(&path, json!({"metadata": {"annotations": {"spillway.dev/generation": "999999"}}})),
                ANNOTATIONS,
            ),
        ]);
    }
    rows.extend([
        row(
            "taints by the kubelet",
            Who::Kubelet("gpu-1"),
            merge(node("gpu-1"), taints("unsold")),
            Expect::Kubernetes(403, "is not allowed to modify taints"),
        ),
        row(
            "into a pool by the kubelet",
            Who::Kubelet(PLAIN),
            merge(node(PLAIN), label(pool, json!("h100"))),
            // The taint that comes with the label is one too many for NodeRestriction.
            Expect::Kubernetes(403, "is not allowed to modify taints"),
        ),
        row(
            "into a pool by the administrator",
            Who::Admin,
            merge(format!("{}?dryRun=All", node(PLAIN)), label(pool, json!("h100"))),
            CLOSED_AGAIN,
        ),
    ]);
    rows
}

const CLOSED_AGAIN: Expect = Expect::AllowedWith("exactly the taint closed:NoSchedule", |node| {
    node["spec"]["taints"].as_array().is_some_and(|taints| {
        taints.iter().filter(|taint| taint["key"] == "spillway.dev/hold").eq([&hold("closed", "NoSchedule")])
    })
});

/// Nodes that register themselves.
pub(crate) fn registrations(stage: &Stage) -> Vec<Row> {
    let who = Who::Kubelet("gpu-9");
    let pool = json!({"spillway.dev/pool": "h100"});
    let held = json!({"spillway.dev/pool": "h100", "hold.spillway.dev/acme": "true"});
    let closed = json!([hold("closed", "NoSchedule")]);
    vec![
        row(
            "a node that registers as unsold",
            who.clone(),
            create(NODES, new_node("gpu-9", &pool, &json!([hold("unsold", "NoSchedule")]))),
            TAINTS,
        ),
        row(
            "a node that registers as held",
            who.clone(),
            create(NODES, new_node("gpu-9", &pool, &json!([hold(&stage.acme, "NoSchedule")]))),
            TAINTS,
        ),
        row(
            "a node that registers with a holder's label",
            who.clone(),
            create(NODES, new_node("gpu-9", &held, &closed)),
            LABELS,
        ),
        row(
            "a node that registers with the pool's label",
            who.clone(),
            create(DRY, new_node("gpu-9", &pool, &json!([]))),
            CLOSED_AGAIN,
        ),
        row("a node that registers closed", who.clone(), create(DRY, new_node("gpu-9", &pool, &closed)), CLOSED_AGAIN),
        row(
            "a node of no pool",
            who,
            create(DRY, new_node("gpu-9", &json!({}), &json!([]))),
            Expect::AllowedWith("no taint of ours", |node| {
                !node["spec"]["taints"]
                    .as_array()
                    .is_some_and(|taints| taints.iter().any(|t| t["key"] == "spillway.dev/hold"))
            }),
        ),
    ]
}

/// Static pods: the one case of a node name and a keyless toleration from a node.
pub(crate) fn mirrors(gpu_1: &str) -> Vec<Row> {
    let mirror = |annotated: bool| {
        let mut pod = pod(
            "static",
            0,
            &json!({
                "metadata": {"ownerReferences": [
                    {"apiVersion": "v1", "kind": "Node", "name": "gpu-1", "uid": gpu_1, "controller": true},
                ]},
                "spec": {"nodeName": "gpu-1", "tolerations": [{"operator": "Exists", "effect": "NoExecute"}]},
            }),
        );
        if annotated {
            pod["metadata"]["annotations"] = json!({"kubernetes.io/config.mirror": "x"});
        }
        pod
    };
    vec![
        row(
            "a kubelet's static pod in an infrastructure namespace",
            Who::Kubelet("gpu-1"),
            create(format!("{}?dryRun=All", pods("kube-system")), mirror(true)),
            Expect::Allowed,
        ),
        row(
            "a kubelet's static pod that tolerates everything elsewhere",
            Who::Kubelet("gpu-1"),
            create(pods("free"), mirror(true)),
            Expect::Policy("spillway-pod", "a toleration without a key"),
        ),
        row(
            "a kubelet's pod that is no static pod",
            Who::Kubelet("gpu-1"),
            create(pods("kube-system"), mirror(false)),
            Expect::Kubernetes(403, "mirror"),
        ),
    ]
}

/// Labels of namespaces: the capability itself.
pub(crate) fn namespaces(stage: &Stage) -> Vec<Row> {
    let of = |name: &str| format!("/api/v1/namespaces/{name}");
    let label = |key: &str, value: Value| json!({"metadata": {"labels": {key: value}}});
    let role = |namespace: &mut Value| namespace["metadata"]["labels"]["spillway.dev/role"] = json!("owner");
    let mut rows = vec![
        row(
            "a tenant labels its namespace",
            Who::Editor("acme"),
            merge(of("acme"), label("spillway.dev/role", json!("owner"))),
            Expect::Rights,
        ),
        row("a role through /finalize", Who::Admin, edit(format!("{}/finalize", of("free")), role), NAMESPACE),
        row(
            "a new namespace with a holder's id",
            Who::Admin,
            create(
                "/api/v1/namespaces",
                json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "thief", "labels": {
                    "spillway.dev/role": "tenant", "spillway.dev/holder": stage.acme,
                }}}),
            ),
            NAMESPACE,
        ),
        row(
            "posing as kube-system",
            Who::Admin,
            merge(of("free"), label("kubernetes.io/metadata.name", json!("kube-system"))),
            Expect::AllowedWith("its own name", |namespace| {
                namespace["metadata"]["labels"]["kubernetes.io/metadata.name"] == "free"
            }),
        ),
        row(
            "another label",
            Who::Admin,
            merge(format!("{}?dryRun=All", of("acme")), label("example.com/team", json!("a"))),
            Expect::Allowed,
        ),
        row(
            "Pod Security where nobody buys",
            Who::Admin,
            merge(
                format!("{}?dryRun=All", of("free")),
                label("pod-security.kubernetes.io/enforce", json!("restricted")),
            ),
            Expect::Allowed,
        ),
        row(
            "the glass broken for a namespace",
            Who::BreakGlass,
            merge(format!("{}?dryRun=All", of("acme")), label("spillway.dev/role", Value::Null)),
            Expect::Allowed,
        ),
        row(
            "a policy deleted by a tenant",
            Who::Editor("acme"),
            delete("/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicybindings/spillway-pod", json!({})),
            Expect::Rights,
        ),
    ];
    for (suffix, how) in [("", "directly"), ("/status", "through /status")] {
        let path = |name: &str| format!("{}{suffix}", of(name));
        rows.extend([
            row(
                format!("a role {how}"),
                Who::Admin,
                merge(path("free"), label("spillway.dev/role", json!("owner"))),
                NAMESPACE,
            ),
            row(
                format!("a holder's id {how}"),
                Who::Admin,
                merge(path("free"), label("spillway.dev/holder", json!(stage.acme))),
                NAMESPACE,
            ),
            row(
                format!("another holder's id {how}"),
                Who::Admin,
                merge(path("acme"), label("spillway.dev/holder", json!(stage.beta))),
                NAMESPACE,
            ),
            row(
                format!("the role away {how}"),
                Who::Admin,
                merge(path("acme"), label("spillway.dev/role", Value::Null)),
                NAMESPACE,
            ),
            row(
                format!("another Pod Security level {how}"),
                Who::Admin,
                merge(path("acme"), label("pod-security.kubernetes.io/enforce", json!("privileged"))),
                NAMESPACE,
            ),
            row(
                format!("Pod Security away {how}"),
                Who::Admin,
                merge(path("acme"), label("pod-security.kubernetes.io/enforce", Value::Null)),
                NAMESPACE,
            ),
        ]);
    }
    rows
}
