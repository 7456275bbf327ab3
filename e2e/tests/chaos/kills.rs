//! Random SIGKILLs of the operator while reservations churn and pods come and go.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::json;
use spillway_crds::Phase;
use spillway_lab::spillway::Spillway;
use spillway_lab::{Lab, LabOptions, Size};

use crate::audit::{Witness, audit, settle_within};
use crate::churn::{Churn, Dice};
use crate::{BOUND, furnish};

/// More are not let in before some are over, so that a long run does not become one long queue.
const MOST_OPEN: usize = 100;
const TENANTS: [&str; 4] = ["acme", "beta", "gamma", "delta"];

fn number(name: &str, default: u64) -> Result<u64> {
    std::env::var(name).map_or(Ok(default), |text| text.parse().with_context(|| format!("{name} is no number")))
}

/// Pods that want a whole node, wherever their namespace holds one.
async fn deploy(spillway: &Spillway<'_>, namespace: &str, replicas: u32) -> Result<()> {
    let deployment = json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "work", "namespace": namespace},
        "spec": {
            "replicas": replicas, "selector": {"matchLabels": {"app": "work"}},
            "template": {
                "metadata": {"labels": {"app": "work"}},
                "spec": {
                    "terminationGracePeriodSeconds": 1,
                    "containers": [{"name": "c", "image": "none", "resources": {"limits": {"nvidia.com/gpu": "8"}}}],
                },
            },
        },
    });
    spillway.lab().apply_yaml(&deployment.to_string()).await.map(drop)
}

#[tokio::test]
async fn random_kills_while_reservations_churn_lose_nothing() -> Result<()> {
    let kills = number("SPILLWAY_SOAK_KILLS", 20)?;
    let seed = number("SPILLWAY_CHAOS_SEED", u64::from(std::process::id()))?;
    eprintln!("random kills: SPILLWAY_CHAOS_SEED={seed} SPILLWAY_SOAK_KILLS={kills}");
    let lab = Lab::start(LabOptions::new(Size::Cluster)).await?;
    let spillway = Spillway::install(&lab).await?;
    let mut operator = spillway.start_operator("operator-a")?;
    furnish(&spillway, "h200", 40, &TENANTS).await?;
    spillway.create_tenant("house", &["house"], json!({"owner": true})).await?;
    spillway.wait_holder("house", BOUND).await?;
    for tenant in TENANTS {
        deploy(&spillway, tenant, 4).await?;
    }
    deploy(&spillway, "house", 4).await?;
    let witness = Witness::start(&spillway);
    let begun = Instant::now();

    let churn =
        Churn { seed, namespaces: TENANTS.map(str::to_owned).to_vec(), longest: 10, widest: 4, every_ms: (20, 200) };
    let kills = usize::try_from(kills).context("kills")?;
    let count = (kills * 4).max(200);
    let made = AtomicUsize::new(0);
    let mut dice = Dice::new(seed ^ 0x6b69_6c6c);
    let killing = async {
        for kill in 0..kills {
            // Spread over all arrivals, at a moment that nobody chose.
            let due = count * kill / kills;
            spillway
                .wait_for("more to arrive", BOUND * 3, || async { Ok(made.load(Ordering::Relaxed) >= due) })
                .await?;
            tokio::time::sleep(Duration::from_millis(dice.roll(50, 1200))).await;
            // One identity, as a container that is started again has, so that it goes on with its own Lease.
            operator.kill()?;
            operator = spillway.start_operator("operator-a")?;
        }
        anyhow::Ok(operator)
    };
    let arriving = churn.run_until_full(&spillway, 0, count, &made, || witness.open() > MOST_OPEN);
    let (arrivals, killing) = tokio::join!(arriving, killing);
    let operator = killing?;
    arrivals?;
    eprintln!("random kills: {kills} kills and {count} reservations in {:.0?}", begun.elapsed());
    settle_within(&spillway, &witness, BOUND * 3).await?;
    let account = audit(&spillway, &witness).await?;
    eprintln!("random kills: settled after {:.0?}: {account:?}, seed {seed}", begun.elapsed());
    ensure!(account.reservations == count, "{account:?}");
    ensure!(witness.count(Phase::Active) > count / 2, "hardly anything was sold: {account:?}");
    drop(operator);
    lab.stop()
}
