//! Nodes that go, come back, fall silent, change their devices or their pool, are cordoned; and a sale that is paused.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::core::v1::Node;
use kube::api::{Api, DeleteParams, Patch, PatchParams};
use kube::{Client, ResourceExt as _};
use serde_json::{Value, json};
use spillway_crds::{ConditionStatus, Phase, names::POOL_LABEL};
use spillway_lab::spillway::{Booking, Spillway, holds};
use spillway_lab::{Lab, LabOptions, Size, wait_for_value};

use crate::audit::sold_twice;
use crate::{BOUND, furnish, names};

/// A swap needs a plan, a closing and its settling: a few seconds on a busy machine.
const SWAP: Duration = Duration::from_secs(20);

async fn delete_node(spillway: &Spillway<'_>, name: &str) -> Result<()> {
    let api = Api::<Node>::all(spillway.client());
    api.delete(name, &DeleteParams::default()).await.with_context(|| format!("deleting node {name}"))?;
    Ok(())
}

async fn patch_node(client: Client, name: &str, patch: Value) -> Result<()> {
    let api = Api::<Node>::all(client);
    api.patch(name, &PatchParams::default(), &Patch::Merge(patch))
        .await
        .with_context(|| format!("changing node {name}"))?;
    Ok(())
}

/// The live booking of a reservation, once its open segments are as many as it bought and all handed over, none of them on `without`.
async fn wait_whole(spillway: &Spillway<'_>, name: &str, without: &str) -> Result<Booking> {
    wait_for_value(&format!("{name} to be whole without {without}"), SWAP, || async {
        let ledger = spillway.ledger().await?;
        let booking =
            ledger.live.into_iter().find(|booking| booking.reservation.name == name).context("it is not booked")?;
        let open: i64 = booking
            .open()
            .filter(|segment| segment.from.is_some() && segment.node != without)
            .map(|segment| segment.devices)
            .sum();
        ensure!(open == booking.devices, "{open} of {} devices: {booking:?}", booking.devices);
        Ok(Some(booking))
    })
    .await
}

async fn wait_hold(spillway: &Spillway<'_>, node: &str, hold: &str) -> Result<()> {
    spillway
        .wait_for(&format!("node {node} to be {hold}"), SWAP, || async {
            let (no_schedule, _) = holds(&spillway.node(node).await?);
            ensure!(no_schedule.as_deref() == Some(hold), "it is {no_schedule:?}");
            Ok(true)
        })
        .await
}

/// Waits until the pool says of a node that it is not what it should be.
async fn wait_unsound(spillway: &Spillway<'_>, pool: &str, about: &[&str]) -> Result<()> {
    spillway
        .wait_for(&format!("pool {pool} to say {about:?}"), SWAP, || async {
            let conditions = spillway.pool(pool).await?.status.context("no status")?.conditions;
            let sound =
                conditions.into_iter().find(|condition| condition.type_ == "NodesSound").context("no condition")?;
            let said = sound.status == ConditionStatus::False && about.iter().all(|text| sound.message.contains(text));
            ensure!(said, "it says {:?}: {}", sound.status, sound.message);
            Ok(true)
        })
        .await
}

async fn wait_reason(spillway: &Spillway<'_>, name: &str, phase: Phase, reason: &str) -> Result<()> {
    spillway
        .wait_for(&format!("{name} to be {} ({reason})", phase.as_str()), SWAP, || async {
            let status =
                spillway.reservation("acme", name).await?.and_then(|object| object.status).context("no status")?;
            ensure!(status.phase == phase && status.reason.as_deref() == Some(reason), "it is {status:?}");
            Ok(true)
        })
        .await
}

async fn check(spillway: &Spillway<'_>) -> Result<()> {
    let twice = sold_twice(&spillway.ledger().await?);
    ensure!(twice.is_empty(), "{}", twice.join("\n"));
    spillway.verify_settled("10s").await?.ensure_clean()
}

#[tokio::test]
async fn lost_nodes_are_replaced_and_come_back_empty() -> Result<()> {
    let lab = Lab::start(LabOptions::new(Size::Api)).await?;
    let spillway = Spillway::install(&lab).await?;
    let mut operator = spillway.start_operator("operator-a")?;
    furnish(&spillway, "h200", 4, &["acme"]).await?;
    spillway.patch_pool("h200", json!({"sale": {"repairAfter": "2s"}})).await?;
    spillway
        .reserve("acme", "pair", json!({"devices": {"count": 16}, "tier": "Committed", "term": {"duration": "1h"}}))
        .await?;
    let pair = spillway.wait_phase("acme", "pair", Phase::Active, BOUND).await?.status.context("status")?;

    // The object goes: a spare takes its place within seconds, and the meter of what is gone stops.
    let lost = pair.nodes.first().context("a node")?.name.clone();
    let begun = Instant::now();
    delete_node(&spillway, &lost).await?;
    let booking = wait_whole(&spillway, "pair", &lost).await?;
    eprintln!("a deleted node was replaced after {:.1?}", begun.elapsed());
    let gone = booking.segments.iter().find(|segment| segment.node == lost).context("the lost segment")?;
    ensure!(gone.to.is_some() && gone.to >= gone.from, "the lost segment is metered on: {gone:?}");

    // It comes back under its name: closed first, then unsold, and the booking keeps its spare.
    spillway.add_nodes("h200", &[&lost]).await?;
    wait_hold(&spillway, &lost, "unsold").await?;
    ensure!(wait_whole(&spillway, "pair", &lost).await?.segments == booking.segments, "the booking moved back");

    // Deleted and re-created in one breath, while nobody looks: another UID is another node.
    let lost = booking.open().next().context("a node")?.node.clone();
    operator.stop().await?;
    delete_node(&spillway, &lost).await?;
    spillway.add_nodes("h200", &[&lost]).await?;
    operator = spillway.start_operator("operator-a")?;
    let booking = wait_for_value("another node in its place", SWAP, || async {
        let booking = wait_whole(&spillway, "pair", "").await?;
        let old = booking.segments.iter().filter(|segment| segment.to.is_some()).count();
        Ok((old == 2).then_some(booking))
    })
    .await?;
    check(&spillway).await?;

    // Silent for longer than repairAfter: replaced, metered to its last healthy word.
    let silent = booking.open().next().context("a node")?.node.clone();
    spillway.set_ready(&silent, "False").await?;
    let booking = wait_whole(&spillway, "pair", &silent).await?;
    let condition = spillway.node(&silent).await?.status.and_then(|status| status.conditions).context("conditions")?;
    let since = condition
        .iter()
        .find(|condition| condition.type_ == "Ready")
        .and_then(|ready| ready.last_transition_time.clone());
    let since = since.context("a time")?.0.as_millisecond();
    let segment = booking.segments.iter().rfind(|segment| segment.node == silent).context("its segment")?;
    ensure!(segment.to == Some(since.max(segment.from.unwrap())), "metered to {:?}, healthy until {since}", segment.to);
    wait_hold(&spillway, &silent, "closed").await?;
    spillway.set_ready(&silent, "True").await?;
    wait_hold(&spillway, &silent, "unsold").await?;

    // Silent for less: nothing moves.
    spillway.patch_pool("h200", json!({"sale": {"repairAfter": "1h"}})).await?;
    let steady = booking.open().next().context("a node")?.node.clone();
    spillway.set_ready(&steady, "False").await?;
    wait_unsound(&spillway, "h200", &[&steady, "NotReady"]).await?;
    ensure!(wait_whole(&spillway, "pair", "").await?.segments == booking.segments, "the booking moved at once");
    spillway.set_ready(&steady, "True").await?;

    // No spare is left: the loss is said, and made good when there is one.
    for node in spillway.nodes().await?.iter().filter(|node| holds(node).0.as_deref() == Some("unsold")) {
        delete_node(&spillway, &node.name_any()).await?;
    }
    delete_node(&spillway, &steady).await?;
    wait_reason(&spillway, "pair", Phase::Active, "CommitmentAtRisk").await?;
    spillway.add_nodes("h200", &["fresh"]).await?;
    let booking = wait_whole(&spillway, "pair", &steady).await?;
    ensure!(booking.open().any(|segment| segment.node == "fresh"), "the new node does not help: {booking:?}");
    wait_reason(&spillway, "pair", Phase::Active, "Active").await?;
    spillway.delete_reservation("acme", "pair").await?;
    spillway.wait_gone("acme", "pair", BOUND).await?;
    check(&spillway).await?;
    let ledger = spillway.ledger().await?;
    let booking = ledger.archived.first().context("an archived booking")?;
    let longest = booking.devices * (booking.end.unwrap() - booking.active_at.unwrap());
    ensure!(booking.metered_ms() < longest, "what was lost was metered: {} of {longest}", booking.metered_ms());
    drop(operator);
    lab.stop()
}

#[tokio::test]
async fn nodes_that_are_not_what_they_should_be_are_not_sold() -> Result<()> {
    let lab = Lab::start(LabOptions::new(Size::Api)).await?;
    let spillway = Spillway::install(&lab).await?;
    let operator = spillway.start_operator("operator-a")?;
    furnish(&spillway, "h200", 2, &["acme"]).await?;
    spillway.create_pool("other", json!({"sku": "other"})).await?;
    let [one, two] = <[String; 2]>::try_from(names("h200", 2)).ok().context("two names")?;
    let all = json!({"devices": {"count": 16}});

    // Another number of devices.
    let devices = |count: &str| json!({"status": {"allocatable": {"nvidia.com/gpu": count}}});
    spillway.patch_node_status(&one, devices("7")).await?;
    wait_unsound(&spillway, "h200", &[&one, "7 devices"]).await?;
    spillway.reserve("acme", "all", all.clone()).await?;
    wait_reason(&spillway, "all", Phase::Waitlisted, "InsufficientCapacity").await?;
    spillway.patch_node_status(&one, devices("8")).await?;
    spillway.wait_phase("acme", "all", Phase::Active, BOUND).await?;
    // On a held node: said, nothing moved.
    spillway.patch_node_status(&one, devices("9")).await?;
    wait_unsound(&spillway, "h200", &[&one, "9 devices"]).await?;
    ensure!(wait_whole(&spillway, "all", "").await?.segments.len() == 2, "a node that is held was given up");
    spillway.patch_node_status(&one, devices("8")).await?;

    // Relabelled while it is held, as only who breaks the glass can: into another pool, into none that exists, into none at all.
    for label in [json!("other"), json!("nowhere"), Value::Null] {
        patch_node(spillway.break_glass()?, &one, json!({"metadata": {"labels": {POOL_LABEL: label}}})).await?;
        spillway.reserve("acme", "late", json!({"sku": "other", "devices": {"count": 8}})).await?;
        wait_reason(&spillway, "late", Phase::Waitlisted, "InsufficientCapacity").await?;
        let booking = wait_whole(&spillway, "all", "").await?;
        ensure!(booking.segments.len() == 2, "label {label}: the node was lost: {booking:?}");
        spillway.delete_reservation("acme", "late").await?;
        spillway.wait_gone("acme", "late", BOUND).await?;
        let twice = sold_twice(&spillway.ledger().await?);
        ensure!(twice.is_empty(), "{}", twice.join("\n"));
    }
    // The label is gone and the booking ends: nobody may keep the node.
    spillway.delete_reservation("acme", "all").await?;
    wait_hold(&spillway, &one, "closed").await?;
    patch_node(spillway.client(), &one, json!({"metadata": {"labels": {POOL_LABEL: "h200"}}})).await?;
    spillway.wait_gone("acme", "all", BOUND).await?;
    spillway.wait_unsold("h200", 2, BOUND).await?;

    // Cordoned.
    patch_node(spillway.client(), &two, json!({"spec": {"unschedulable": true}})).await?;
    wait_unsound(&spillway, "h200", &[&two, "cordoned"]).await?;
    spillway.reserve("acme", "again", all.clone()).await?;
    wait_reason(&spillway, "again", Phase::Waitlisted, "InsufficientCapacity").await?;
    patch_node(spillway.client(), &two, json!({"spec": {"unschedulable": null}})).await?;
    spillway.wait_phase("acme", "again", Phase::Active, BOUND).await?;
    spillway.delete_reservation("acme", "again").await?;
    spillway.wait_gone("acme", "again", BOUND).await?;
    spillway.wait_unsold("h200", 2, BOUND).await?;

    // Paused.
    spillway.patch_pool("h200", json!({"sale": {"paused": true}})).await?;
    spillway.reserve("acme", "paused", all).await?;
    wait_reason(&spillway, "paused", Phase::Waitlisted, "PoolNotSelling").await?;
    spillway.patch_pool("h200", json!({"sale": {"paused": false}})).await?;
    spillway.wait_phase("acme", "paused", Phase::Active, BOUND).await?;
    check(&spillway).await?;
    drop(operator);
    lab.stop()
}
