//! A node of which several have parts: each runs what it holds and no more, comes and goes without disturbing the others, and what goes is gone
//! before anybody else gets its room.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::events::v1::Event;
use kube::ResourceExt as _;
use kube::api::{Api, ListParams};
use serde_json::{Value, json};
use spillway_crds::Phase;
use spillway_lab::{wait_for, wait_for_value};

use crate::BOUND;
use crate::accounts::verify;
use crate::stage::{GPUS, Stage, is_running, is_unschedulable, list, node_of, uids};
use crate::workloads::{Work, deployment, limited, pod};

/// Seconds that the deaf pod is given.
const GRACE: u32 = 8;

pub(crate) async fn tell(stage: &Stage<'_>) -> Result<()> {
    let node = two_have_one_node(stage).await?;
    nobody_gets_more(stage, &node).await?;
    what_ends_keeps_its_room_until_it_is_gone(stage, &node).await?;
    one_goes_and_another_comes(stage, &node).await?;
    the_owner_has_a_part(stage, &node).await
}

/// Reserves a part of a node.
async fn reserve(stage: &Stage<'_>, tenant: &str, name: &str, devices: i64, more: Value) -> Result<()> {
    let mut spec = json!({"exclusiveNodes": false});
    for (key, value) in more.as_object().into_iter().flatten() {
        spec[key] = value.clone();
    }
    stage.reserve(tenant, name, devices, spec).await.map(drop)
}

/// Three of eight and five of eight, and unchanged workloads that were there before.
async fn two_have_one_node(stage: &Stage<'_>) -> Result<String> {
    stage.create("acme", &[limited(deployment("small", 3, 1))]).await?;
    stage.create("beta", &[limited(deployment("large", 5, 1))]).await?;
    stage.wait_pending("acme", 3).await?;
    reserve(stage, "acme", "three", 3, json!({"tier": "Committed", "term": {"duration": "30m"}})).await?;
    reserve(stage, "beta", "five", 5, json!({})).await?;
    let acmes = stage.wait_active("acme", "three").await?;
    let betas = stage.wait_active("beta", "five").await?;
    ensure!(acmes == betas && acmes.len() == 1, "acme has {acmes:?}, beta {betas:?}");
    let node = acmes.first().context("no node")?.clone();
    let uid = stage.spillway.node(&node).await?.metadata.uid.unwrap_or_default();
    ensure!(stage.hold(&node).await? == format!("node.{uid}"), "it is held by {}", stage.hold(&node).await?);
    let mut devices = BTreeSet::new();
    for (tenant, count) in [("acme", 3), ("beta", 5)] {
        for pod in stage.wait_running(tenant, count).await? {
            ensure!(node_of(&pod) == Some(&node), "{} is on {:?}", pod.name_any(), node_of(&pod));
            devices.extend(stage.devices_of(tenant, &pod.name_any()).await?);
        }
    }
    ensure!(devices.len() == 8, "eight pods have the devices {devices:?}");
    verify(stage).await?;
    Ok(node)
}

/// The reason of the last Event on a pod that says why it waits.
async fn event(stage: &Stage<'_>, tenant: &str, pod: &str, reason: &str) -> Result<String> {
    let api = Api::<Event>::namespaced(stage.spillway.client(), tenant);
    wait_for_value(&format!("an Event {reason} on {tenant}/{pod}"), BOUND, || async {
        let events = api.list(&ListParams::default()).await?.items;
        let about = |event: &&Event| {
            event.reason.as_deref() == Some(reason)
                && event.regarding.as_ref().and_then(|object| object.name.as_deref()) == Some(pod)
        };
        Ok(events.iter().find(about).and_then(|event| event.note.clone()))
    })
    .await
}

async fn pods_fit(stage: &Stage<'_>, tenant: &str, name: &str) -> Result<Option<(bool, String)>> {
    let status = stage.spillway.reservation(tenant, name).await?.and_then(|object| object.status).unwrap_or_default();
    let condition = status.conditions.into_iter().find(|one| one.type_ == "PodsFit");
    Ok(condition.map(|one| (one.status == spillway_crds::ConditionStatus::True, one.reason)))
}

/// More pods than are held wait, and are told why; so are pods that would harm their neighbours.
async fn nobody_gets_more(stage: &Stage<'_>, node: &str) -> Result<()> {
    stage.create("acme", &[limited(pod("fourth", 1, Work::Polite)), pod("greedy", 1, Work::Polite)]).await?;
    let said = event(stage, "acme", "fourth", "OverHold").await?;
    ensure!(
        said.contains(
            "wants 1 of the 3 devices that are held in parts of nodes, together on one node, and 3 are in use"
        ),
        "{said}"
    );
    let said = event(stage, "acme", "greedy", "LimitsMissing").await?;
    ensure!(said.contains("set resources.limits.cpu"), "{said}");
    wait_for("the condition that says that pods wait", BOUND, || async {
        Ok(pods_fit(stage, "acme", "three").await?.is_some_and(|(fit, _)| !fit))
    })
    .await?;
    let status = stage.spillway.reservation("acme", "three").await?.and_then(|object| object.status);
    let assigned = status.unwrap_or_default().assignments;
    ensure!(assigned.len() == 3 && assigned.iter().all(|one| one.node == node), "assigned are {assigned:?}");
    for name in ["fourth", "greedy"] {
        let pod = stage.pod("acme", name).await?.context("the pod is gone")?;
        ensure!(is_unschedulable(&pod), "{}", list(&[pod]));
    }
    stage.lab.kubectl(&["delete", "pod", "greedy", "-n", "acme", "--wait=false"]).await?;
    // What ends makes room for what waits.
    stage.lab.kubectl(&["scale", "deployment/small", "-n", "acme", "--replicas=2"]).await?;
    wait_for("the fourth pod to run in the place of another", BOUND, || async {
        let pods = stage.pods("acme").await?;
        let running: Vec<&Pod> = pods.iter().filter(|pod| is_running(pod)).collect();
        ensure!(running.len() <= 3, "{}", list(&pods));
        Ok(running.len() == 3 && running.iter().any(|pod| pod.name_any() == "fourth"))
    })
    .await?;
    wait_for("the condition that says that all fit", BOUND, || async {
        Ok(pods_fit(stage, "acme", "three").await?.is_some_and(|(fit, _)| fit))
    })
    .await?;
    verify(stage).await
}

/// A pod that was told to go and does not listen keeps its devices, whatever the API says of it.
async fn what_ends_keeps_its_room_until_it_is_gone(stage: &Stage<'_>, node: &str) -> Result<()> {
    stage.lab.kubectl(&["delete", "pod", "fourth", "-n", "acme"]).await?;
    stage.create("acme", &[limited(pod("deaf", 1, Work::Deaf(GRACE)))]).await?;
    stage.wait_running("acme", 3).await?;
    stage.create("acme", &[limited(pod("next", 1, Work::Polite))]).await?;
    event(stage, "acme", "next", "OverHold").await?;
    let before = stage.alive(node, "acme").await?.len();
    ensure!(before == 3, "{before} containers of acme run");
    stage.lab.kubectl(&["delete", "pod", "deaf", "-n", "acme", "--wait=false"]).await?;
    let begun = Instant::now();
    let mut seen = Duration::ZERO;
    loop {
        let next = stage.pod("acme", "next").await?.context("the pod is gone")?;
        let landed = node_of(&next).is_some();
        let at = begun.elapsed();
        // The pod first: a container that runs when it is looked at later ran before, too.
        if stage.alive(node, "acme").await?.len() < 3 || landed {
            ensure!(!landed || stage.alive(node, "acme").await?.len() <= 3, "there are four on three devices");
            break;
        }
        ensure!(!landed, "it landed beside a container that has its device");
        seen = at;
        ensure!(at < BOUND, "the deaf pod never goes");
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    ensure!(seen > Duration::from_secs(4), "the deaf pod was seen for {seen:.1?} only: this shows nothing");
    let pods = stage.wait_running("acme", 3).await?;
    ensure!(pods.iter().any(|pod| pod.name_any() == "next"), "{}", list(&pods));
    verify(stage).await
}

/// Who comes is let in by labels alone, and who stays is not disturbed.
async fn one_goes_and_another_comes(stage: &Stage<'_>, node: &str) -> Result<()> {
    let before = uids(&stage.wait_running("beta", 5).await?);
    reserve(stage, "gamma", "heir", 3, json!({"topology": {"require": "kubernetes.io/hostname"}})).await?;
    let other = stage.wait_active("gamma", "heir").await?;
    ensure!(other.iter().all(|other| other != node), "{node} had no room, and gamma got {other:?}");
    stage.give_up("gamma", "heir").await?;
    // Nobody else may open a node for it.
    let elsewhere = stage.other(node)?;
    wait_for("the other node to be unsold", BOUND, || async { Ok(stage.hold(&elsewhere).await? == "unsold") }).await?;
    stage.lab.kubectl(&["cordon", &elsewhere]).await?;
    stage.create("gamma", &[limited(pod("guest", 3, Work::Polite))]).await?;
    reserve(stage, "gamma", "heir", 3, json!({})).await?;
    stage.wait_reason("gamma", "heir", Phase::Waitlisted, "InsufficientCapacity").await?;
    stage.give_up("acme", "three").await?;
    ensure!(stage.alive(node, "acme").await?.is_empty(), "acme gave its part up, and its containers run on");
    ensure!(stage.wait_active("gamma", "heir").await? == [node], "gamma is elsewhere");
    let guests = stage.wait_running("gamma", 1).await?;
    ensure!(guests.iter().all(|pod| node_of(pod) == Some(node)), "{}", list(&guests));
    ensure!(stage.devices_of("gamma", "guest").await?.len() == 3, "the guest has not what it wants");
    let after = uids(&stage.wait_running("beta", 5).await?);
    ensure!(before == after, "beta's pods were disturbed");
    let acmes: Vec<Pod> = stage.pods("acme").await?;
    ensure!(acmes.iter().all(|pod| node_of(pod).is_none()), "{}", list(&acmes));
    verify(stage).await?;
    stage.lab.kubectl(&["uncordon", &elsewhere]).await.map(drop)
}

/// The owner reaches the rest of a shared node by a reservation of its own, and by nothing else.
async fn the_owner_has_a_part(stage: &Stage<'_>, node: &str) -> Result<()> {
    stage.give_up("gamma", "heir").await?;
    let mut own = limited(pod("own", 2, Work::Polite));
    own["metadata"]["labels"]["spillway.dev/reservation"] = json!("rest");
    stage.create("house", &[own, crate::workloads::pod_on("aimed", 1, node)]).await?;
    reserve(stage, "house", "rest", 2, json!({"tier": "Internal"})).await?;
    ensure!(stage.wait_active("house", "rest").await? == [node], "the owner's part is elsewhere");
    let pods = stage.wait_running("house", 1).await?;
    ensure!(pods.iter().all(|pod| pod.name_any() == "own" && node_of(pod) == Some(node)), "{}", list(&pods));
    let aimed = stage.pod("house", "aimed").await?.context("the pod is gone")?;
    ensure!(node_of(&aimed).is_none(), "a pod without a reservation landed on a shared node");
    ensure!(GPUS == 8, "the story is told of nodes of eight");
    verify(stage).await
}
