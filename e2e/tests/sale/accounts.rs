//! The books: `spillway verify`, `usage` and `capacity` against the ledger, the statuses and the nodes, each added up here once more.

use std::collections::BTreeMap;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use kube::api::{Api, ListParams};
use serde_json::Value;
use spillway_crds::{Phase, Tenant};
use spillway_lab::spillway::{LedgerView, Segment, holds};
use spillway_lab::wait_for;
use tokio::process::Command;

use crate::BOUND;
use crate::stage::{GPUS, POOL, Stage};

/// Statuses and annotations are written within this time after the ledger.
const SETTLE: &str = "3s";

/// Runs `spillway` and reads its JSON.
pub(crate) async fn cli(stage: &Stage<'_>, args: &[&str]) -> Result<Value> {
    let run = Command::new(&stage.spillway.binaries().cli)
        .args(args)
        .args(["-o", "json"])
        .env("KUBECONFIG", stage.lab.kubeconfig())
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let output =
        tokio::time::timeout(BOUND, run).await.context("spillway does not end")?.context("running spillway")?;
    ensure!(output.status.success(), "spillway {}: {}", args.join(" "), String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).with_context(|| format!("the JSON of spillway {}", args.join(" ")))
}

/// When nothing is sold: everything that was is in the books, and the books agree.
pub(crate) async fn audit(stage: &Stage<'_>) -> Result<()> {
    verify(stage).await?;
    capacity(stage).await?;
    let ledger = stage.spillway.ledger().await?;
    ensure!(ledger.live.is_empty(), "bookings are left: {:?}", ledger.live);
    nothing_is_held(stage).await?;
    usage(stage, &ledger).await
}

/// Pool and tenants say that nothing of theirs is booked.
async fn nothing_is_held(stage: &Stage<'_>) -> Result<()> {
    wait_for("pool and tenants to say that nothing is booked", Duration::from_secs(10), || async {
        let pool = stage.spillway.pool(POOL).await?.status.context("the pool has no status")?;
        ensure!(
            pool.live_booking_count == 0 && pool.live_bookings.is_empty(),
            "the pool says {:?}",
            pool.live_bookings
        );
        let tenants = Api::<Tenant>::all(stage.spillway.client()).list(&ListParams::default()).await?;
        for tenant in tenants {
            let status = tenant.status.context("a tenant has no status")?;
            ensure!(
                status.live_booking_count == 0 && status.live_bookings.is_empty(),
                "a tenant says {:?}",
                status.live_bookings
            );
            ensure!(status.held.is_empty(), "a tenant says that it holds {:?}", status.held);
        }
        Ok(true)
    })
    .await
}

/// `spillway verify` has nothing to say.
pub(crate) async fn verify(stage: &Stage<'_>) -> Result<()> {
    stage.spillway.verify_settled(SETTLE).await?.ensure_clean()
}

/// `spillway capacity` and the pool's status say what the nodes and the ledger say.
pub(crate) async fn capacity(stage: &Stage<'_>) -> Result<()> {
    wait_for("the capacity statements to agree with the nodes", Duration::from_secs(10), || async {
        let told = cli(stage, &["capacity", POOL]).await?["pools"][0].clone();
        let status = stage.spillway.pool(POOL).await?.status.context("the pool has no status")?.devices;
        let (mut held, mut unsold, mut closed) = (0, 0, 0);
        for node in stage.spillway.nodes().await? {
            match holds(&node).0.as_deref() {
                Some("unsold") => unsold += GPUS,
                Some("closed") | None => closed += GPUS,
                Some(_) => held += GPUS,
            }
        }
        let ledger = stage.spillway.ledger().await?;
        let sold: i64 = ledger.live.iter().flat_map(|booking| booking.open().map(|segment| segment.devices)).sum();
        let owned = held + unsold + closed;
        for (what, expected, in_status) in [
            ("owned", owned, status.owned),
            ("sold", sold, status.sold),
            ("held", held, status.held),
            ("unsold", unsold, status.unsold),
        ] {
            ensure!(told[what] == expected, "`spillway capacity` says {what}={} and it is {expected}", told[what]);
            ensure!(i64::from(in_status) == expected, "the pool's status says {what}={in_status} and it is {expected}");
        }
        let rest = told["turnover"].as_i64().unwrap_or_default() + told["broken"].as_i64().unwrap_or_default();
        ensure!(rest == closed, "`spillway capacity` says turnover and broken are {rest} and it is {closed}: {told}");
        Ok(true)
    })
    .await
}

/// `spillway usage` and the meters in statuses say what the archive says.
async fn usage(stage: &Stage<'_>, ledger: &LedgerView) -> Result<()> {
    let mut expected: BTreeMap<(String, String), i64> = BTreeMap::new();
    for booking in &ledger.archived {
        let metered = booking.metered_ms();
        let name = (booking.reservation.namespace.clone(), booking.reservation.name.clone());
        *expected.entry(name).or_default() += metered;
        let (Some(active), Some(end)) = (booking.active_at, booking.end) else { continue };
        if booking.segments.iter().all(|segment| segment.to.is_none()) {
            let whole = booking.devices * (end - active);
            ensure!(metered == whole, "{} was metered {metered} and not {whole}", booking.reservation.name);
        }
        let over = |segment: &&Segment| {
            segment.from.is_some_and(|from| from < active) || segment.to.is_some_and(|to| to > end)
        };
        ensure!(booking.segments.iter().find(over).is_none(), "{booking:?} is metered out of its time");
    }
    expected.retain(|_, metered| *metered > 0);
    let told = cli(stage, &["usage", "--from", "1h", "--by", "reservation"]).await?;
    let mut found: BTreeMap<(String, String), i64> = BTreeMap::new();
    for row in told["rows"].as_array().context("rows of `spillway usage`")? {
        let text = |key: &str| row[key].as_str().unwrap_or_default().to_owned();
        let metered: i64 = text("deviceMilliseconds").parse().context("device-milliseconds")?;
        found.insert((text("namespace"), text("reservation")), metered);
    }
    found.retain(|_, metered| *metered > 0);
    ensure!(found == expected, "`spillway usage` says {found:?}, the archive {expected:?}");
    for reservation in stage.spillway.reservations().await? {
        let uid = reservation.metadata.uid.clone().unwrap_or_default();
        let Some(status) = reservation.status.filter(|status| status.phase == Phase::Ended) else { continue };
        let archived: i64 = ledger.of(&uid).iter().map(|booking| booking.metered_ms()).sum();
        let metered = status.meter.map(|meter| meter.device_milliseconds);
        ensure!(metered == Some(archived), "a status says {metered:?}, the archive {archived}");
    }
    Ok(())
}
