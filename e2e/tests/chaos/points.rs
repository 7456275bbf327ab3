//! Every kill point of the operator once: it ends there, is started again, and nothing is lost or done twice.

use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use kube::ResourceExt as _;
use serde_json::json;
use spillway_lab::spillway::{Operator, Spillway};
use spillway_lab::{Lab, LabOptions, Size, wait_for};

use crate::audit::{Witness, audit, settle};
use crate::stand_in::{StandIn, bind_pod, waiting_pod};
use crate::{BOUND, furnish, names};

/// The points as `operator/controllers/src/kill.rs` lists them.
fn points() -> Result<Vec<String>> {
    let source = include_str!("../../../operator/controllers/src/kill.rs");
    let list = source
        .split_once("POINTS: &[&str] = &[")
        .and_then(|(_, rest)| rest.split_once("];"))
        .context("the list of points")?
        .0;
    let points: Vec<String> = list.split('"').skip(1).step_by(2).map(str::to_owned).collect();
    ensure!(points.len() >= 24, "only {} points: {points:?}", points.len());
    Ok(points)
}

#[tokio::test]
async fn a_kill_at_any_point_loses_nothing() -> Result<()> {
    // Most of it is waiting for terms to end, so two labs share the points.
    let points = points()?;
    let (one, other) = points.split_at(points.len() / 2);
    tokio::try_join!(Box::pin(die_at(one)), Box::pin(die_at(other)))?;
    Ok(())
}

async fn die_at(points: &[String]) -> Result<()> {
    let lab = Lab::start(LabOptions::new(Size::Api)).await?;
    let spillway = Spillway::install(&lab).await?;
    let _kubelets = StandIn::start(&spillway)?;
    let mut operator = spillway.start_operator("operator-a")?;
    furnish(&spillway, "plain", 6, &["acme", "beta"]).await?;
    spillway.create_pool("checked", json!({"nodeCheck": "Agent", "sku": "checked"})).await?;
    spillway.add_nodes("checked", &names("checked", 2)).await?;
    spillway.create_tenant("house", &["house"], json!({"owner": true})).await?;
    spillway.wait_holder("house", BOUND).await?;
    let witness = Witness::start(&spillway);
    settle(&spillway, &witness).await?;
    operator.stop().await?;

    for (number, point) in points.iter().enumerate() {
        let begun = Instant::now();
        // Pods of the owner without devices, which a sale drains.
        for node in spillway.nodes().await?.iter().filter(|node| node.name_any().starts_with("plain")) {
            bind_pod(&spillway, "house", &format!("cpu-{number}-{}", node.name_any()), &node.name_any(), 0).await?;
        }
        operator = spillway.start_operator_to_die("operator-a", point)?;
        arrive(&spillway, number, &mut operator).await?;
        let status = operator
            .wait_exit(BOUND)
            .await
            .with_context(|| format!("it never came to {point} (was it built with the feature kill-points?)"))?;
        ensure!(status.code() == Some(137), "at {point} it ended with {status}");
        let log = std::fs::read_to_string(operator.log()).context("the operator's log")?;
        let last = log.lines().last().unwrap_or_default();
        ensure!(last.contains("kill point") && last.contains(point.as_str()), "it did not end at {point}: {last}");
        let died = begun.elapsed();

        operator = spillway.start_operator("operator-a")?;
        settle(&spillway, &witness).await.with_context(|| format!("after a kill at {point}"))?;
        for namespace in ["acme", "beta"] {
            spillway.lab().kubectl(&["delete", "pods", "--all", "-n", namespace, "--wait=false"]).await?;
        }
        let account = audit(&spillway, &witness).await.with_context(|| format!("after a kill at {point}"))?;
        eprintln!("{point}: died after {died:.1?}, settled after {:.1?}: {account:?}", begun.elapsed());
        operator.stop().await?;
    }
    lab.stop()
}

/// What arrives for each point: terms, a delete, a pool with agents, a new tenant.
async fn arrive(spillway: &Spillway<'_>, number: usize, operator: &mut Operator) -> Result<()> {
    let short = json!({"duration": "1s"});
    // Parts of nodes, and pods that wait for room there.
    for (namespace, devices) in [("acme", 3), ("beta", 4)] {
        waiting_pod(spillway, namespace, &format!("part-{number}"), 1).await?;
        let part = json!({"devices": {"count": devices}, "exclusiveNodes": false, "term": short});
        spillway.reserve(namespace, &format!("part-{number}"), part).await?;
    }
    let tenant = format!("new-{number}");
    spillway.create_tenant(&tenant, &[&tenant], json!({})).await?;
    spillway.reserve("acme", &format!("term-{number}"), json!({"devices": {"count": 16}, "term": short})).await?;
    spillway
        .reserve(
            "beta",
            &format!("checked-{number}"),
            json!({"sku": "checked", "devices": {"count": 8}, "term": short}),
        )
        .await?;
    spillway
        .reserve(
            &tenant,
            &format!("new-{number}"),
            json!({"devices": {"count": 8}, "term": short, "tier": "Committed"}),
        )
        .await?;
    spillway.reserve("beta", &format!("wide-{number}"), json!({"devices": {"count": 16}, "term": short})).await?;
    spillway.reserve("beta", &format!("gone-{number}"), json!({"devices": {"count": 8}})).await?;
    // Deleted once it is the operator's to let go, if that lives so long.
    let gone = format!("gone-{number}");
    wait_for("the finalizer", BOUND, || {
        let dead = operator.exit_status().is_ok_and(|status| status.is_some());
        let gone = &gone;
        async move {
            Ok(dead || spillway.reservation("beta", gone).await?.is_some_and(|object| !object.finalizers().is_empty()))
        }
    })
    .await?;
    spillway.delete_reservation("beta", &gone).await
}
