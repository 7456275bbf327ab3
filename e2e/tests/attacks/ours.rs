//! Attacks on our own objects: the ledger, what agents say, statuses, finalizers, deletions.

use anyhow::{Context as _, Result, ensure};
use kube::config::{AuthInfo, KubeConfigOptions, Kubeconfig};
use serde_json::{Value, json};

use crate::row::{Expect, RELEASE, Row, Who, create, delete, edit, merge, ours, ours_in, pods, row};
use crate::stage::Stage;

const LEDGER: Expect = Expect::Policy("spillway-ledger", "change the GpuReservation, GpuPool or Tenant instead");
const GPUNODE: Expect = Expect::Policy("spillway-gpunode", "they follow the nodes");
const STATUS: Expect = Expect::Policy("spillway-status", "change its spec instead");
const FINALIZER: Expect = Expect::Policy("spillway-finalizer", "wait until it has ended the bookings");
const EARLY: Expect = Expect::Policy("spillway-reservation-delete", "spillway.dev/allow-early-end=");
const SELLER: Expect = Expect::Policy("spillway-seller-delete", "delete these reservations or wait for their end");

fn object(kind: &str, name: &str, spec: &Value) -> Value {
    json!({"apiVersion": "spillway.dev/v1alpha1", "kind": kind, "metadata": {"name": name}, "spec": spec})
}

fn reservation(name: &str, tier: &str) -> Value {
    let spec = json!({"pool": "h100", "devices": {"count": 8}, "tier": tier, "term": {"duration": "1h"}});
    let mut object = object("GpuReservation", name, &spec);
    object["metadata"]["finalizers"] = json!(["spillway.dev/ledger"]);
    object
}

/// A reservation of these devices.
fn shares(devices: &Value, exclusive: bool) -> Value {
    let mut object = reservation("shares", "Spot");
    object["spec"]["devices"] = devices.clone();
    object["spec"]["exclusiveNodes"] = json!(exclusive);
    object
}

/// A patch by which a pool offers shares of these resources.
fn profiles(resources: &[&str]) -> Value {
    let profile =
        |(at, resource): (usize, &&str)| json!({"name": format!("p{at}"), "resource": resource, "milliGpu": 300});
    let profiles: Vec<Value> = resources.iter().enumerate().map(profile).collect();
    json!({"spec": {"devices": {"profiles": profiles}}})
}

/// Makes the objects as the operator would, with live bookings.
pub(crate) async fn prepare(stage: &Stage) -> Result<()> {
    let root = json!({"format": 1, "generation": 1, "epoch": 0, "committedAt": 1, "pools": []});
    let page = json!({"format": 1, "kind": "Bookings", "pool": "h100", "data": "[]"});
    let devices = json!({"resource": "nvidia.com/gpu", "perNode": 8});
    let pool = json!({"sku": "h100", "region": "lab", "provenance": "Owned", "devices": devices});
    let mut h100 = object("GpuPool", "h100", &pool);
    h100["metadata"]["finalizers"] = json!(["spillway.dev/ledger"]);
    let operator = || Who::Operator;
    stage.must(operator(), create(ours("capacityledgers"), object("CapacityLedger", "cluster", &root))).await?;
    stage
        .must(operator(), create(ours("capacityledgerpages"), object("CapacityLedgerPage", "bookings-1", &page)))
        .await?;
    stage.must(operator(), create(ours("gpunodes"), object("GpuNode", "gpu-0", &json!({"nodeUid": "u"})))).await?;
    stage.must(Who::Admin, create(ours("gpupools"), h100)).await?;
    stage.must(Who::Admin, create(ours("tenants"), object("Tenant", "acme", &json!({"namespaces": ["acme"]})))).await?;
    let live = json!({"status": {"liveBookingCount": 17, "liveBookings": ["acme/committed", "acme/spot"]}});
    for path in [ours("gpupools/h100/status"), ours("tenants/acme/status")] {
        stage.must(operator(), merge(path, live.clone())).await?;
    }
    for (name, tier, phase) in [
        ("committed", "Committed", "Active"),
        ("booked", "Committed", "Booked"),
        ("preparing", "Committed", "Preparing"),
        ("waiting", "Committed", "Waitlisted"),
        ("ended", "Committed", "Ended"),
        ("spot", "Spot", "Active"),
    ] {
        stage.must(Who::Editor("acme"), create(ours_in("acme", "gpureservations"), reservation(name, tier))).await?;
        let path = ours_in("acme", &format!("gpureservations/{name}/status"));
        stage.must(operator(), merge(path, json!({"status": {"phase": phase}}))).await?;
    }
    let refused = json!({"metadata": {"annotations": {"spillway.dev/allow-early-end": "another"}}});
    stage.must(Who::Editor("acme"), merge(ours_in("acme", "gpureservations/booked"), refused)).await?;
    Ok(())
}

/// The table.
pub(crate) fn rows() -> Vec<Row> {
    let root = ours("capacityledgers/cluster");
    let page = ours("capacityledgerpages/bookings-1");
    let dry = |path: &str| format!("{path}?dryRun=All");
    let mut rows = Vec::new();
    for who in [Who::Admin, Who::NamespaceController] {
        rows.push(row("the ledger's root deleted", who, delete(&root, json!({})), LEDGER));
    }
    let turned = |ledger: &mut Value| ledger["spec"]["generation"] = json!(2);
    let emptied = |page: &mut Value| page["spec"]["data"] = json!("{}");
    rows.extend([
        row("the ledger's root written", Who::Admin, edit(&root, turned), LEDGER),
        row("the ledger's root swapped by the operator", Who::Operator, edit(dry(&root), turned), Expect::Allowed),
        row("the ledger's root deleted by the operator", Who::Operator, delete(&root, json!({})), Expect::Rights),
        row(
            "the ledger's root deleted by breaking the glass",
            Who::BreakGlass,
            delete(dry(&root), json!({})),
            Expect::Allowed,
        ),
        row("all ledger pages deleted", Who::Admin, delete(ours("capacityledgerpages"), json!({})), LEDGER),
        row(
            "a ledger page changed by the operator",
            Who::OperatorWithAllRights,
            edit(&page, emptied),
            Expect::Kubernetes(422, "never changes"),
        ),
        row("a ledger page collected by the operator", Who::Operator, delete(dry(&page), json!({})), Expect::Allowed),
        row(
            "a second ledger",
            Who::OperatorWithAllRights,
            create(
                ours("capacityledgers"),
                object(
                    "CapacityLedger",
                    "other",
                    &json!({"format": 1, "generation": 1, "epoch": 0, "committedAt": 1, "pools": []}),
                ),
            ),
            Expect::Kubernetes(422, "is named cluster"),
        ),
        row(
            "the ledger's CRD deleted",
            Who::Admin,
            delete("/apis/apiextensions.k8s.io/v1/customresourcedefinitions/capacityledgers.spillway.dev", json!({})),
            Expect::Policy("spillway-crd", "deletes all bookings"),
        ),
    ]);
    rows.extend(agents());
    rows.extend(statuses());
    rows.extend(deletions());
    rows
}

fn answer() -> Value {
    json!({"status": {"check": {
        "id": "q", "nodeUid": "u", "bootId": "b", "observedAt": "2026-01-01T00:00:00Z", "total": 0,
    }}})
}

/// The rows about agents impersonate one. This is one: a token as the kubelet asks for it, bound to the agent's pod.
pub(crate) async fn a_real_token_names_its_node(stage: &Stage) -> Result<()> {
    let agents = stage.read(&format!("{}?labelSelector=app.kubernetes.io%2Fcomponent%3Dagent", pods(RELEASE))).await?;
    let mut agents = agents["items"].as_array().context("a list of pods")?.iter();
    let agent = agents.find(|pod| pod["spec"]["nodeName"] == "gpu-0").context("there is no agent on gpu-0")?;
    let bound =
        json!({"apiVersion": "v1", "kind": "Pod", "name": agent["metadata"]["name"], "uid": agent["metadata"]["uid"]});
    let request = json!({
        "apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest",
        "spec": {"audiences": [], "boundObjectRef": bound},
    });
    let path = format!("/api/v1/namespaces/{RELEASE}/serviceaccounts/spillway-agent/token");
    let made = stage.must(Who::Admin, create(path, request)).await?;
    let token = made["status"]["token"].as_str().context("a token")?.to_owned();

    let mut kubeconfig = Kubeconfig::read_from(stage.lab.kubeconfig()).context("reading the lab's kubeconfig")?;
    for user in &mut kubeconfig.auth_infos {
        user.auth_info = Some(AuthInfo { token: Some(token.clone().into()), ..AuthInfo::default() });
    }
    let config = kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
    let client = kube::Client::try_from(config).context("making a client")?;
    let own = merge(ours("gpunodes/gpu-0/status"), answer()).send_by(&stage.lab, &client).await?;
    ensure!(own.is_ok(), "an agent may not answer for its own node: {own:?}");
    stage.must(Who::Operator, create(ours("gpunodes"), object("GpuNode", "gpu-1", &json!({"nodeUid": "u"})))).await?;
    let other = merge(ours("gpunodes/gpu-1/status"), answer()).send_by(&stage.lab, &client).await?;
    let refusal = other.err().context("an agent answered for another node")?;
    ensure!(refusal.message.contains("runs on node gpu-0"), "{}", refusal.message);
    Ok(())
}

/// Who may say what runs on a node.
fn agents() -> Vec<Row> {
    let status = ours("gpunodes/gpu-0/status");
    let spec = json!({"spec": {"nodeUid": "other"}});
    let of = |node: &'static str| Expect::Policy("spillway-gpunode", node);
    vec![
        row("an agent answers for its own node", Who::Agent("gpu-0"), merge(&status, answer()), Expect::Allowed),
        row(
            "an agent answers for another node",
            Who::Agent("gpu-1"),
            merge(&status, answer()),
            of("runs on node gpu-1"),
        ),
        row(
            "the agent's token without a node",
            Who::AgentWithoutNode,
            merge(&status, answer()),
            of("has no token of a pod"),
        ),
        row(
            "the administrator answers for a node",
            Who::Admin,
            merge(&status, answer()),
            of("only the agent on node gpu-0"),
        ),
        row("a kubelet answers for its node", Who::Kubelet("gpu-0"), merge(&status, answer()), Expect::Rights),
        row(
            "an agent changes the question",
            Who::Agent("gpu-0"),
            merge(ours("gpunodes/gpu-0"), spec.clone()),
            Expect::Rights,
        ),
        row("the administrator changes the question", Who::Admin, merge(ours("gpunodes/gpu-0"), spec), GPUNODE),
        row("the administrator deletes a GpuNode", Who::Admin, delete(ours("gpunodes/gpu-0"), json!({})), GPUNODE),
        row(
            "the administrator makes a GpuNode",
            Who::Admin,
            create(ours("gpunodes"), object("GpuNode", "gpu-7", &json!({"nodeUid": "u"}))),
            GPUNODE,
        ),
        row(
            "the operator deletes a GpuNode",
            Who::Operator,
            delete(ours("gpunodes/gpu-0?dryRun=All"), json!({})),
            Expect::Allowed,
        ),
    ]
}

/// What became of a request.
fn statuses() -> Vec<Row> {
    let own = ours_in("acme", "gpureservations/waiting");
    let unfinish = |object: &mut Value| object["metadata"]["finalizers"] = json!([]);
    vec![
        row(
            "a tenant books itself",
            Who::Editor("acme"),
            merge(format!("{own}/status"), json!({"status": {"phase": "Active"}})),
            Expect::Rights,
        ),
        row(
            "the administrator books a tenant",
            Who::Admin,
            merge(format!("{own}/status"), json!({"status": {"phase": "Active"}})),
            STATUS,
        ),
        row(
            "the status in a new reservation",
            Who::Editor("acme"),
            {
                let mut claimed = reservation("claimed", "Spot");
                claimed["status"] = json!({"phase": "Active"});
                create(ours_in("acme", "gpureservations?dryRun=All"), claimed)
            },
            Expect::AllowedWith("no phase", |object| object["status"]["phase"].is_null()),
        ),
        row(
            "a pool's bookings forgotten",
            Who::Admin,
            merge(ours("gpupools/h100/status"), json!({"status": {"liveBookingCount": 0}})),
            STATUS,
        ),
        row(
            "a tenant's bookings forgotten",
            Who::Admin,
            merge(ours("tenants/acme/status"), json!({"status": {"liveBookingCount": 0}})),
            STATUS,
        ),
        row("a tenant takes the finalizer away", Who::Editor("acme"), edit(&own, unfinish), FINALIZER),
        row(
            "the administrator takes a pool's finalizer away",
            Who::Admin,
            edit(ours("gpupools/h100"), unfinish),
            FINALIZER,
        ),
        row(
            "the operator takes the finalizer away",
            Who::Operator,
            edit(format!("{own}?dryRun=All"), unfinish),
            Expect::Allowed,
        ),
        row(
            "a tenant changes what may be changed",
            Who::Editor("acme"),
            merge(format!("{own}?dryRun=All"), json!({"spec": {"waitFor": "1h"}})),
            Expect::Allowed,
        ),
        row(
            "a tenant makes its reservation larger",
            Who::Editor("acme"),
            merge(&own, json!({"spec": {"devices": {"count": 16}}})),
            Expect::Kubernetes(422, "devices cannot change"),
        ),
        row(
            "a tenant asks for shares of whole nodes",
            Who::Editor("acme"),
            create(
                ours_in("acme", "gpureservations?dryRun=All"),
                shares(&json!({"count": 1, "profile": "half"}), true),
            ),
            Expect::Kubernetes(422, "set exclusiveNodes: false"),
        ),
        row(
            "a tenant asks for shares and devices per node",
            Who::Editor("acme"),
            create(
                ours_in("acme", "gpureservations?dryRun=All"),
                shares(&json!({"count": 1, "perNode": 1, "profile": "half"}), false),
            ),
            Expect::Kubernetes(422, "devices.perNode counts whole devices"),
        ),
        row(
            "a tenant asks for shares",
            Who::Editor("acme"),
            create(
                ours_in("acme", "gpureservations?dryRun=All"),
                shares(&json!({"count": 1, "profile": "half"}), false),
            ),
            Expect::Allowed,
        ),
        row(
            "a pool offers whole devices as shares",
            Who::Admin,
            merge(ours("gpupools/h100?dryRun=All"), profiles(&["nvidia.com/gpu"])),
            Expect::Kubernetes(422, "name the resource of the share"),
        ),
        row(
            "a pool offers two shares of one resource",
            Who::Admin,
            merge(ours("gpupools/h100?dryRun=All"), profiles(&["example.com/half", "example.com/half"])),
            Expect::Kubernetes(422, "give each a resource of its own"),
        ),
        row(
            "a pool offers shares",
            Who::Admin,
            merge(ours("gpupools/h100?dryRun=All"), profiles(&["example.com/half", "example.com/third"])),
            Expect::Allowed,
        ),
        row(
            "a tenant makes its term longer",
            Who::Editor("acme"),
            merge(&own, json!({"spec": {"term": {"duration": "9h"}}})),
            Expect::Kubernetes(422, "term cannot change"),
        ),
        row(
            "a tenant in another's namespace",
            Who::Editor("beta"),
            create(ours_in("acme", "gpureservations"), reservation("theirs", "Spot")),
            Expect::Rights,
        ),
        row(
            "a tenant makes a Tenant",
            Who::Editor("acme"),
            create(ours("tenants"), object("Tenant", "mine", &json!({"namespaces": ["acme"], "owner": true}))),
            Expect::Rights,
        ),
        row(
            "a tenant pauses a pool",
            Who::Editor("acme"),
            merge(ours("gpupools/h100"), json!({"spec": {"sale": {"paused": true}}})),
            Expect::Rights,
        ),
        row(
            "the administrator pauses a pool",
            Who::Admin,
            merge(ours("gpupools/h100?dryRun=All"), json!({"spec": {"sale": {"paused": true}}})),
            Expect::Allowed,
        ),
    ]
}

/// Ends by accident.
fn deletions() -> Vec<Row> {
    let of = |name: &str| ours_in("acme", &format!("gpureservations/{name}"));
    let dry = |name: &str| format!("{}?dryRun=All", of(name));
    vec![
        row("a live commitment deleted by its tenant", Who::Editor("acme"), delete(of("committed"), json!({})), EARLY),
        row("a live commitment deleted by the administrator", Who::Admin, delete(of("committed"), json!({})), EARLY),
        row(
            "a live commitment deleted by the operator",
            Who::OperatorWithAllRights,
            delete(of("committed"), json!({})),
            EARLY,
        ),
        row(
            "a live commitment deleted with its namespace",
            Who::NamespaceController,
            delete(of("committed"), json!({})),
            EARLY,
        ),
        row(
            "all commitments deleted",
            Who::Editor("acme"),
            delete(ours_in("acme", "gpureservations"), json!({})),
            EARLY,
        ),
        row("a commitment in preparation deleted", Who::Editor("acme"), delete(of("preparing"), json!({})), EARLY),
        row(
            "a booked commitment deleted with another's UID",
            Who::Editor("acme"),
            delete(of("booked"), json!({})),
            EARLY,
        ),
        row("a waiting commitment deleted", Who::Editor("acme"), delete(dry("waiting"), json!({})), Expect::Allowed),
        row("an ended commitment deleted", Who::Editor("acme"), delete(dry("ended"), json!({})), Expect::Allowed),
        row("a live spot reservation deleted", Who::Editor("acme"), delete(dry("spot"), json!({})), Expect::Allowed),
        row(
            "a live commitment deleted by breaking the glass",
            Who::BreakGlass,
            delete(dry("committed"), json!({})),
            Expect::Allowed,
        ),
        row("a pool with bookings deleted", Who::Admin, delete(ours("gpupools/h100"), json!({})), SELLER),
        row(
            "a pool with bookings deleted, with the list",
            Who::Admin,
            delete(ours("gpupools/h100"), json!({})),
            Expect::Policy("spillway-seller-delete", "17 in all (acme/committed, acme/spot, ...)"),
        ),
        row(
            "a pool with bookings deleted by the operator",
            Who::OperatorWithAllRights,
            delete(ours("gpupools/h100"), json!({})),
            SELLER,
        ),
        row("a tenant with bookings deleted", Who::Admin, delete(ours("tenants/acme"), json!({})), SELLER),
        row(
            "a pool with bookings deleted by breaking the glass",
            Who::BreakGlass,
            delete(ours("gpupools/h100?dryRun=All"), json!({})),
            Expect::Allowed,
        ),
    ]
}

/// With its own UID in the annotation a commitment may be ended, and then the finalizer keeps it until that is done.
pub(crate) async fn end_early(stage: &Stage) -> Result<()> {
    let path = ours_in("acme", "gpureservations/committed");
    let uid = stage.read(&path).await?["metadata"]["uid"].clone();
    let annotation = json!({"metadata": {"annotations": {"spillway.dev/allow-early-end": uid}}});
    stage.must(Who::Editor("acme"), merge(&path, annotation)).await?;
    stage.must(Who::Editor("acme"), delete(&path, json!({}))).await?;
    let left = stage.read(&path).await?;
    ensure!(left["metadata"]["deletionTimestamp"].is_string(), "the finalizer did not keep it: {left}");
    Ok(())
}
