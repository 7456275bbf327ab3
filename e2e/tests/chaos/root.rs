//! The ledger's root deleted: under load, while idle, and put back from copies that are new enough or too old.

use anyhow::{Context as _, Result, ensure};
use kube::ResourceExt as _;
use serde_json::json;
use spillway_crds::Phase;
use spillway_lab::spillway::{Spillway, holds};
use spillway_lab::{Lab, LabOptions, Signal, Size};

use crate::audit::{Witness, audit, settle};
use crate::churn::Churn;
use crate::stand_in::{StandIn, bind_pod, pods_ending};
use crate::{BOUND, furnish};

type Versions = Vec<(String, Option<String>, (Option<String>, Option<String>))>;

async fn versions(spillway: &Spillway<'_>) -> Result<Versions> {
    let nodes = spillway.nodes().await?;
    let mut versions: Versions =
        nodes.iter().map(|node| (node.name_any(), node.resource_version(), holds(node))).collect();
    versions.sort();
    Ok(versions)
}

/// Why a pool sells nothing, if so: reason and message of `Ready`.
async fn refusal(spillway: &Spillway<'_>, pool: &str) -> Result<Option<(String, String)>> {
    let conditions = spillway.pool(pool).await?.status.context("the pool has no status")?.conditions;
    let ready = conditions.into_iter().find(|condition| condition.type_ == "Ready").context("no condition Ready")?;
    Ok((ready.status != spillway_crds::ConditionStatus::True).then_some((ready.reason, ready.message)))
}

async fn wait_lost(spillway: &Spillway<'_>, about: &str) -> Result<()> {
    spillway
        .wait_for(&format!("the pool to say LedgerLost ({about})"), BOUND, || async {
            let (reason, message) = refusal(spillway, "h200").await?.context("it sells")?;
            ensure!(reason == "LedgerLost" && message.contains(about), "it says {reason}: {message}");
            Ok(true)
        })
        .await
}

async fn wait_selling(spillway: &Spillway<'_>) -> Result<()> {
    spillway
        .wait_for("the pool to sell again", BOUND, || async { Ok(refusal(spillway, "h200").await?.is_none()) })
        .await
}

#[tokio::test]
async fn a_deleted_root_stops_sales_and_nothing_else() -> Result<()> {
    let lab = Lab::start(LabOptions::new(Size::Api)).await?;
    let spillway = Spillway::install(&lab).await?;
    let _kubelets = StandIn::start(&spillway)?;
    let mut operator = spillway.start_operator("operator-a")?;
    furnish(&spillway, "h200", 8, &["acme", "beta"]).await?;
    let witness = Witness::start(&spillway);
    let old = spillway.copy_ledger().await?;

    // Something that stays, with a pod on it.
    spillway.reserve("acme", "stays", json!({"devices": {"count": 16}})).await?;
    let stays = spillway.wait_phase("acme", "stays", Phase::Active, BOUND).await?;
    let held = stays.status.context("status")?.nodes;
    for node in &held {
        bind_pod(&spillway, "acme", &format!("on-{}", node.name), &node.name, 8).await?;
    }
    let pod_names: Vec<String> = held.iter().map(|node| format!("on-{}", node.name)).collect();
    let pods: Vec<(&str, &str)> = pod_names.iter().map(|name| ("acme", name.as_str())).collect();

    // Under load: frozen for a moment, so that the copy is of the very last root.
    let churn = Churn {
        seed: 5,
        namespaces: vec!["acme".to_owned(), "beta".to_owned()],
        longest: 2,
        widest: 2,
        every_ms: (20, 150),
    };
    let deletion = async {
        spillway.wait_for("sales", BOUND, || async { Ok(witness.count(Phase::Active) > 8) }).await?;
        operator.signal(Signal::SIGSTOP)?;
        let copy = spillway.copy_ledger().await?;
        spillway.delete_root().await?;
        operator.signal(Signal::SIGCONT)?;
        wait_lost(&spillway, "CapacityLedger/cluster is").await?;
        anyhow::Ok(copy)
    };
    let (arrivals, copy) = tokio::join!(churn.run(&spillway, 0, 60), deletion);
    let (copy, before) = (copy?, versions(&spillway).await?);
    arrivals?;
    nothing_moves(&spillway, &before, &pods).await?;

    // A new operator is no wiser: it makes no new ledger.
    operator.stop().await?;
    let operator = spillway.start_operator("operator-a")?;
    let metric = || async { Ok(operator.metric("spillway_sales_blocked").await? == "1") };
    spillway.wait_for("the new operator to find no ledger", BOUND, metric).await?;
    wait_lost(&spillway, "is missing").await?;
    nothing_moves(&spillway, &before, &pods).await?;
    ensure!(spillway.copy_ledger().await.is_err(), "a root was made");

    // A root from before is refused.
    spillway.restore_ledger(&old).await?;
    wait_lost(&spillway, "generation").await?;
    nothing_moves(&spillway, &before, &pods).await?;
    let generation = spillway.copy_ledger().await?.root.spec.generation;
    ensure!(generation == old.root.spec.generation, "the old root was written to");

    // The last one makes it go on, as if nothing had been.
    spillway.delete_root().await?;
    spillway.restore_ledger(&copy).await?;
    wait_selling(&spillway).await?;
    spillway.reserve("beta", "after", json!({"devices": {"count": 8}, "term": {"duration": "1s"}})).await?;
    spillway.wait_phase("beta", "after", Phase::Ended, BOUND).await?;
    ensure!(pods_ending(&spillway, &pods).await?.is_empty(), "pods on held nodes were ended");

    // While idle.
    spillway
        .wait_for("only what stays", BOUND, || async {
            Ok(spillway.nodes().await?.iter().filter(|node| holds(node) == (Some("unsold".to_owned()), None)).count()
                == 6)
        })
        .await?;
    let (copy, before) = (spillway.copy_ledger().await?, versions(&spillway).await?);
    spillway.delete_root().await?;
    wait_lost(&spillway, "CapacityLedger/cluster is").await?;
    spillway.reserve("beta", "meanwhile", json!({"devices": {"count": 8}, "term": {"duration": "1s"}})).await?;
    spillway
        .wait_for("a reservation to be told", BOUND, || async {
            let status = spillway
                .reservation("beta", "meanwhile")
                .await?
                .and_then(|object| object.status)
                .context("no status")?;
            ensure!(status.phase == Phase::Pending, "it is {}", status.phase.as_str());
            Ok(status.reason.as_deref() == Some("LedgerLost"))
        })
        .await?;
    nothing_moves(&spillway, &before, &pods).await?;
    spillway.restore_ledger(&copy).await?;
    spillway.wait_phase("beta", "meanwhile", Phase::Ended, BOUND).await?;
    ensure!(pods_ending(&spillway, &pods).await?.is_empty(), "pods on held nodes were ended");

    spillway.delete_reservation("acme", "stays").await?;
    spillway.wait_gone("acme", "stays", BOUND).await?;
    settle(&spillway, &witness).await?;
    eprintln!("root deleted: {:?}", audit(&spillway, &witness).await?);
    drop(operator);
    lab.stop()
}

/// No node was written, no pod was asked to go.
async fn nothing_moves(spillway: &Spillway<'_>, before: &Versions, pods: &[(&str, &str)]) -> Result<()> {
    let now = versions(spillway).await?;
    ensure!(*before == now, "nodes were written while there was no ledger:\n{before:?}\n{now:?}");
    let ending = pods_ending(spillway, pods).await?;
    ensure!(ending.is_empty(), "pods were ended while there was no ledger: {ending:?}");
    Ok(())
}
