//! `bench operator`: how fast a real operator sells on a real API server.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use futures::{StreamExt as _, TryStreamExt as _};
use kube::api::{Api, DeleteParams};
use serde_json::{Value, json};
use spillway_crds::GpuReservation;
use spillway_lab::Lab;
use spillway_lab::progress::say;
use spillway_lab::spillway::{Operator, Spillway};

use crate::audit::{Audit, counts};
use crate::book::{Book, last_ms, spread};
use crate::stage::{self, BOUND, IDENTITY, PARALLEL, POOL};
use crate::usage::Usage;

#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Options {
    /// Nodes of 8 devices.
    #[arg(long, default_value_t = 500)]
    nodes: usize,
    /// Reservations.
    #[arg(long, default_value_t = 4000)]
    reservations: usize,
    /// Tenants among whom they are spread.
    #[arg(long, default_value_t = 40)]
    tenants: usize,
    /// Arrivals a second in the second part.
    #[arg(long, default_value_t = 100)]
    rate: u64,
}

/// Thousandths of writes for each of so many.
fn each(total: u64, count: usize) -> u64 {
    total * 1000 / u64::try_from(count).unwrap_or(1).max(1)
}

struct Bench<'a> {
    spillway: &'a Spillway<'a>,
    options: &'a Options,
    operator: &'a Operator,
    api_server: u32,
    audit: Audit,
    book: Book,
}

impl Bench<'_> {
    fn tenant(&self, number: usize) -> String {
        stage::tenant(number, self.options.tenants)
    }

    /// Makes all reservations, `gap` apart or as fast as they go; gives when each was sent.
    async fn arrive(&self, prefix: &str, gap: Option<Duration>) -> Result<HashMap<String, Instant>> {
        let begun = Instant::now();
        let make = |number: usize| async move {
            if let Some(gap) = gap {
                let due = begun + gap * u32::try_from(number).unwrap_or(u32::MAX);
                tokio::time::sleep_until(due.into()).await;
            }
            let name = format!("{prefix}{number:05}");
            let sent = Instant::now();
            stage::reserve(self.spillway, &self.tenant(number), &name).await?;
            anyhow::Ok((name, sent))
        };
        let parallel = if gap.is_some() { 256 } else { PARALLEL };
        futures::stream::iter(0..self.options.reservations).map(make).buffer_unordered(parallel).try_collect().await
    }

    /// All arrive, are sold, and go.
    async fn round(&self, prefix: &str, gap: Option<Duration>) -> Result<Value> {
        let wanted = self.options.reservations;
        let before = self.audit.mark().await?;
        let used = Usage::of(self.operator.pid())?;
        let api_used = Usage::of(self.api_server)?;
        let begun = Instant::now();
        let sent = self.arrive(prefix, gap).await?;
        let created = begun.elapsed();
        say(&format!("{} reservations were made in {created:.1?}", sent.len()));
        let booked = self.book.wait("all to be Booked", prefix, |times| times.booked, wanted, BOUND).await?;
        let active = self.book.wait("all to be Active", prefix, |times| times.active, wanted, BOUND).await?;
        let since = |seen: &HashMap<String, Instant>| -> Vec<Duration> {
            seen.iter().filter_map(|(name, at)| Some(at.saturating_duration_since(*sent.get(name)?))).collect()
        };
        let rate = |ms: u128| self.options.reservations as u128 * 1000 / ms.max(1);
        let sold = Usage::of(self.operator.pid())?;
        let api_sold = Usage::of(self.api_server)?;
        // The last statuses of pools and tenants belong to it.
        tokio::time::sleep(Duration::from_secs(6)).await;
        let between = self.audit.mark().await?;
        let made = counts(&self.audit.writes(before..between)?);
        let gone_ms = self.leave(prefix).await?;
        let ended = counts(&self.audit.writes(between..self.audit.mark().await?)?);
        let sum = |counts: &BTreeMap<String, u64>| each(counts.values().sum(), wanted);
        let (last_booked, last_active) = (last_ms(&booked, begun), last_ms(&active, begun));
        Ok(json!({
            "created_ms": created.as_millis(),
            "last_booked_ms": last_booked,
            "last_active_ms": last_active,
            "booked_per_second": rate(last_booked),
            "active_per_second": rate(last_active),
            "booked_after_ms": spread(since(&booked)),
            "active_after_ms": spread(since(&active)),
            "operator_cpu_ms": sold.cpu_ms - used.cpu_ms,
            "api_server_cpu_ms": api_sold.cpu_ms - api_used.cpu_ms,
            "writes_to_active_milli_each": sum(&made),
            "writes_to_active": made,
            "delete_to_gone_ms": gone_ms,
            "writes_to_gone_milli_each": sum(&ended),
            "writes_to_gone": ended,
        }))
    }

    /// Deletes all reservations and waits until their nodes are unsold; gives how long the last one took to go.
    async fn leave(&self, prefix: &str) -> Result<u128> {
        let deleted = Instant::now();
        let api = |number: usize| Api::<GpuReservation>::namespaced(self.spillway.client(), &self.tenant(number));
        futures::stream::iter(0..self.options.reservations)
            .map(|number| {
                let api = api(number);
                async move { api.delete(&format!("{prefix}{number:05}"), &DeleteParams::default()).await.map(drop) }
            })
            .buffer_unordered(PARALLEL)
            .try_collect::<Vec<()>>()
            .await
            .context("deleting the reservations")?;
        let wanted = self.options.reservations;
        let gone = self.book.wait("all to be gone", prefix, |times| times.gone, wanted, BOUND).await?;
        self.spillway.wait_unsold(POOL, self.options.nodes, BOUND).await?;
        tokio::time::sleep(Duration::from_secs(6)).await;
        Ok(last_ms(&gone, deleted))
    }
}

pub(crate) async fn run(options: &Options) -> Result<Value> {
    let audit = Audit::new()?;
    let lab = Lab::start(audit.lab_options()).await?;
    let spillway = Spillway::install(&lab).await?;
    let operator = spillway.start_operator(IDENTITY)?;
    stage::furnish(&spillway, &operator, options.nodes, options.tenants).await?;
    let bench = Bench {
        spillway: &spillway,
        options,
        operator: &operator,
        api_server: u32::try_from(lab.pid("kube-apiserver")?).context("a pid")?,
        audit,
        book: Book::begin(spillway.client()),
    };
    let burst = bench.round("b-", None).await.context("all at once")?;
    say("all at once: done");
    let gap = Duration::from_nanos(1_000_000_000 / options.rate.max(1));
    let steady = bench.round("s-", Some(gap)).await.context("one after the other")?;
    let used = Usage::of(operator.pid())?;
    let verdict = spillway.verify_settled("5s").await?;
    verdict.ensure_clean()?;
    drop(bench);
    let report = json!({
        "nodes": options.nodes, "devices": options.nodes * stage::DEVICES, "reservations": options.reservations,
        "tenants": options.tenants,
        "burst": burst,
        "arrivals_per_second": options.rate,
        "steady": steady,
        "operator_peak_memory_kib": used.peak_kib,
    });
    operator.stop().await?;
    lab.stop()?;
    Ok(report)
}
