//! The ledger lost and put back: the root alone, everything, and with it the whole of etcd.

use anyhow::{Context as _, Result, ensure};
use kube::api::{Api, DeleteParams, ListParams};
use serde_json::{Value, json};
use spillway_crds::{CapacityLedgerPage, Phase};
use spillway_lab::spillway::{LedgerView, Operator, Spillway};
use spillway_lab::{Lab, LabOptions, Size};

use crate::BOUND;
use crate::cli::{offline, spillway};

const NODES: [&str; 5] = ["gpu-0", "gpu-1", "gpu-2", "gpu-3", "gpu-4"];

async fn furnish(spillway: &Spillway<'_>) -> Result<()> {
    spillway.create_pool("h200", json!({})).await?;
    for tenant in ["acme", "beta"] {
        spillway.create_tenant(tenant, &[tenant], json!({})).await?;
    }
    spillway.add_nodes("h200", &NODES).await
}

/// Stops the operator and waits until its Lease says so.
async fn stop(spillway: &Spillway<'_>, operator: Operator) -> Result<()> {
    operator.stop().await?;
    spillway
        .wait_for("the Lease to run out", BOUND, || async {
            let lease = spillway
                .lab()
                .kubectl(&["get", "lease", "spillway-operator", "-n", "spillway-system", "-o", "json"])
                .await?;
            let lease: Value = serde_json::from_str(&lease)?;
            let renewed: jiff::Timestamp = match lease["spec"]["renewTime"].as_str() {
                Some(text) => text.parse().context("renewTime")?,
                None => return Ok(true),
            };
            let holder = lease["spec"]["holderIdentity"].as_str().unwrap_or_default();
            Ok(holder.is_empty() || jiff::Timestamp::now().as_millisecond() - renewed.as_millisecond() > 11_000)
        })
        .await
}

async fn wait_lost(spillway: &Spillway<'_>) -> Result<()> {
    spillway
        .wait_for("the pool to say LedgerLost", BOUND, || async {
            let status = spillway.pool("h200").await?.status.context("no status")?;
            Ok(status.conditions.iter().any(|condition| condition.reason == "LedgerLost"))
        })
        .await
}

async fn lose_everything(spillway: &Spillway<'_>) -> Result<()> {
    spillway.delete_root().await?;
    let pages = Api::<CapacityLedgerPage>::all(spillway.break_glass()?);
    pages.delete_collection(&DeleteParams::default(), &ListParams::default()).await.context("deleting pages")?;
    Ok(())
}

/// Bookings that stand as id, reservation and names of nodes, and how many ended.
fn gist(view: &LedgerView) -> (Vec<(String, String, Vec<String>)>, usize) {
    let mut live: Vec<_> = view
        .live
        .iter()
        .map(|booking| {
            let mut nodes: Vec<String> = booking.open().map(|segment| segment.node.clone()).collect();
            nodes.sort();
            (booking.id.clone(), format!("{}/{}", booking.reservation.namespace, booking.reservation.name), nodes)
        })
        .collect();
    live.sort();
    (live, view.archived.len())
}

#[tokio::test]
async fn a_lost_ledger_is_put_back() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("ledger.json");
    let file = file.to_str().context("a path")?;
    let sold = lost_and_restored(file).await?;
    etcd_is_lost(file, &sold).await
}

async fn lost_and_restored(file: &str) -> Result<LedgerView> {
    let lab = Lab::start(LabOptions::new(Size::Api)).await?;
    let stage = Spillway::install(&lab).await?;
    let operator = stage.start_operator("operator-a")?;
    furnish(&stage).await?;
    stage.wait_unsold("h200", 5, BOUND).await?;
    stage
        .reserve("acme", "train", json!({"devices": {"count": 16}, "tier": "Committed", "term": {"duration": "1h"}}))
        .await?;
    stage.wait_phase("acme", "train", Phase::Active, BOUND).await?;
    stage.reserve("beta", "short", json!({"devices": {"count": 8}, "term": {"duration": "1s"}})).await?;
    stage.wait_phase("beta", "short", Phase::Ended, BOUND).await?;
    stage.wait_unsold("h200", 3, BOUND).await?;

    // A copy, and what is no copy.
    spillway(&lab, &["ledger", "export", file]).await?.expect(0, &["1 booking live and 1 that ended"])?;
    offline(&["ledger", "verify", file]).await?.expect(0, &["is sound"])?;
    spillway(&lab, &["ledger", "verify"]).await?.expect(0, &["the cluster's ledger is sound"])?;
    let damaged = format!("{file}.damaged");
    std::fs::write(&damaged, std::fs::read_to_string(file)?.replace("\"gpu-", "\"cpu-").replace("gpu-0", "gpu-9"))?;
    offline(&["ledger", "verify", &damaged]).await?.expect(2, &["it was damaged or changed"])?;
    let before = stage.ledger().await?;

    // Root and pages are gone.
    lose_everything(&stage).await?;
    wait_lost(&stage).await?;
    spillway(&lab, &["verify"]).await?.expect(1, &["LedgerMissing"])?;
    spillway(&lab, &["ledger", "restore", file, "--yes"]).await?.expect(2, &["leads as operator"])?;
    stop(&stage, operator).await?;
    spillway(&lab, &["ledger", "restore", "--from-pages", "--yes"]).await?.expect(2, &["only a copy can help"])?;
    spillway(&lab, &["ledger", "restore", file, "--dry-run"]).await?.expect(0, &["Nothing was changed"])?;
    spillway(&lab, &["ledger", "restore", file]).await?.expect(2, &["nobody can be asked", "--yes"])?;
    spillway(&lab, &["ledger", "verify"]).await?.expect(2, &["there is no booking ledger"])?;
    spillway(&lab, &["ledger", "restore", file, "--yes"]).await?.expect(0, &["Restored: the ledger has generation"])?;
    ensure!(gist(&stage.ledger().await?) == gist(&before), "something was lost");
    ensure!(stage.ledger().await?.generation == before.generation, "what is exactly what was is another generation");
    stage.verify_settled("0s").await?.ensure_clean()?;

    // What is there is not overwritten.
    spillway(&lab, &["ledger", "restore", file, "--yes"])
        .await?
        .expect(2, &["this cluster has a ledger", "--replace"])?;
    let operator = stage.start_operator("operator-a")?;
    stage.reserve("beta", "after", json!({"devices": {"count": 8}})).await?;
    stage.wait_phase("beta", "after", Phase::Active, BOUND).await?;
    let train = stage.wait_phase("acme", "train", Phase::Active, BOUND).await?;
    ensure!(train.status.is_some_and(|status| status.nodes.len() == 2), "train has other nodes");
    stage.verify().await?.ensure_clean()?;

    // The root alone is gone, and the copy is from before what was sold since: pages know it.
    let now = stage.ledger().await?;
    stop(&stage, operator).await?;
    spillway(&lab, &["ledger", "restore", file, "--yes", "--replace"])
        .await?
        .expect(2, &["--accept-older", "booked since"])?;
    stage.delete_root().await?;
    spillway(&lab, &["ledger", "restore", file, "--yes"]).await?.expect(2, &["--accept-older"])?;
    spillway(&lab, &["ledger", "restore", "--from-pages", "--yes"]).await?.expect(0, &["Restored:"])?;
    let restored = stage.ledger().await?;
    ensure!(gist(&restored) == gist(&now), "something was lost: {restored:?}\n{now:?}");
    ensure!(restored.generation > now.generation, "a decision of a frozen process could pass");
    stage.verify_settled("0s").await?.ensure_clean()?;
    let operator = stage.start_operator("operator-a")?;
    stage.reserve("beta", "more", json!({"devices": {"count": 8}})).await?;
    stage.wait_phase("beta", "more", Phase::Active, BOUND).await?;
    stage.verify().await?.ensure_clean()?;

    // What a loss of etcd will be mended with: whole nodes, and one that two tenants share.
    stage.delete_reservation("beta", "more").await?;
    stage.wait_gone("beta", "more", BOUND).await?;
    for (tenant, devices) in [("acme", 3), ("beta", 4)] {
        let part = json!({"devices": {"count": devices}, "exclusiveNodes": false});
        stage.reserve(tenant, "part", part).await?;
        stage.wait_phase(tenant, "part", Phase::Active, BOUND).await?;
    }
    stage.wait_unsold("h200", 1, BOUND).await?;
    spillway(&lab, &["ledger", "export", file]).await?.expect(0, &["4 bookings live and 2 that ended"])?;
    let sold = stage.ledger().await?;
    drop(operator);
    lab.stop()?;
    Ok(sold)
}

/// A cluster that is new but for what is applied again: everything has another UID.
async fn etcd_is_lost(file: &str, sold: &LedgerView) -> Result<()> {
    let lab = Lab::start(LabOptions::new(Size::Api)).await?;
    let stage = Spillway::install(&lab).await?;
    spillway(&lab, &["ledger", "restore", file, "--yes"])
        .await?
        .expect(2, &["4 live bookings without a reservation", "--accept-losses"])?;

    // Namespaces and what the copy has of manifests; the kubelets register their nodes.
    for namespace in ["acme", "beta"] {
        lab.kubectl(&["create", "namespace", namespace]).await?;
    }
    let copy: Value = serde_json::from_str(&std::fs::read_to_string(file)?)?;
    let list = json!({"apiVersion": "v1", "kind": "List", "items": copy["manifests"]});
    lab.kubectl_with_input(&["apply", "-f", "-"], &list.to_string()).await?;
    stage.add_nodes("h200", &NODES).await?;

    spillway(&lab, &["ledger", "restore", file, "--yes"]).await?.expect(2, &["under another UID", "--rebind"])?;
    spillway(&lab, &["ledger", "restore", file, "--rebind", "--yes"])
        .await?
        .expect(0, &["GpuReservation/acme/train", "Node/gpu-", "Restored:"])?;
    ensure!(gist(&stage.ledger().await?) == gist(sold), "something was lost");
    let operator = stage.start_operator("operator-a")?;
    stage.wait_phase("acme", "train", Phase::Active, BOUND).await?;
    stage.wait_phase("beta", "after", Phase::Active, BOUND).await?;
    for tenant in ["acme", "beta"] {
        let part = stage.wait_phase(tenant, "part", Phase::Active, BOUND).await?;
        ensure!(part.status.is_some_and(|status| status.nodes.len() == 1), "the part of {tenant} is on other nodes");
    }
    stage.wait_unsold("h200", 1, BOUND).await?;
    ensure!(gist(&stage.ledger().await?) == gist(sold), "something was lost once the operator ran");
    stage.verify().await?.ensure_clean()?;
    drop(operator);
    lab.stop()
}
