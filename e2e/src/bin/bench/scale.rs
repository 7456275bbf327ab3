//! `bench scale`: an operator that is started on so many nodes, and what it takes while nothing happens.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use spillway_lab::Lab;
use spillway_lab::progress::say;
use spillway_lab::spillway::{Operator, Spillway};

use crate::audit::{Audit, counts};
use crate::book::{Book, last_ms};
use crate::heartbeats::Heartbeats;
use crate::probe::{Milestones, Probe};
use crate::stage::{self, BOUND, IDENTITY};
use crate::usage::Usage;

/// Names of the reservations that are there before the start begin so.
const STANDING: &str = "b-";
/// The reservation that waits for the start.
const FIRST: &str = "first";

#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Options {
    /// Nodes of 8 devices; given more than once, one number after the other.
    #[arg(long, default_values_t = [1000, 5000])]
    nodes: Vec<usize>,
    /// One booking of one device for each so many nodes.
    #[arg(long, default_value_t = 10)]
    nodes_per_booking: usize,
    /// Tenants among whom the bookings are spread.
    #[arg(long, default_value_t = 40)]
    tenants: usize,
    /// Each node's heartbeat comes once in so many seconds.
    #[arg(long, default_value_t = 300)]
    heartbeat_seconds: u64,
    /// Seconds from the start to the steady part, and length of that.
    #[arg(long, default_value_t = 60)]
    seconds: u64,
}

pub(crate) async fn run(options: &Options) -> Result<Value> {
    let mut sizes = Vec::new();
    for nodes in &options.nodes {
        sizes.push(Box::pin(size(options, *nodes)).await.with_context(|| format!("{nodes} nodes"))?);
    }
    Ok(json!({
        "heartbeat_seconds": options.heartbeat_seconds, "steady_seconds": options.seconds, "tenants": options.tenants,
        "sizes": sizes,
    }))
}

/// Everything with so many nodes.
async fn size(options: &Options, nodes: usize) -> Result<Value> {
    let bookings = nodes.div_ceil(options.nodes_per_booking.max(1));
    ensure!(bookings < nodes * stage::DEVICES, "{bookings} bookings leave no device of {nodes} nodes");
    let audit = Audit::new()?;
    let lab = Lab::start(audit.lab_options()).await?;
    let spillway = Spillway::install(&lab).await?;
    let operator = spillway.start_operator(IDENTITY)?;
    let opened = stage::furnish(&spillway, &operator, nodes, options.tenants).await?;
    let active_ms = book(&spillway, bookings, options.tenants).await?;
    operator.stop().await?;

    let period = Duration::from_secs(options.heartbeat_seconds);
    let heartbeats = Heartbeats::begin(spillway.client(), stage::nodes(nodes), period);
    let tenant = stage::tenant(0, options.tenants);
    let probe = Probe::begin(spillway.client(), &tenant, FIRST).await?;
    stage::reserve(&spillway, &tenant, FIRST).await?;
    let started = Instant::now();
    let operator = spillway.start_operator(IDENTITY)?;
    let milestones = Milestones::watch(&operator, probe).await?.since(started);
    say(&format!("{nodes} nodes: milliseconds from the start: {milestones}"));

    let window = Duration::from_secs(options.seconds);
    tokio::time::sleep_until((started + window).into()).await;
    let after = Usage::of(operator.pid())?;
    let steady = steady(&operator, &audit, &heartbeats, window).await?;
    say(&format!("{nodes} nodes: while nothing happens: {steady}"));
    drop(heartbeats);
    spillway.verify_within("5s", BOUND).await?.ensure_clean()?;
    operator.stop().await?;
    lab.stop()?;
    Ok(json!({
        "nodes": nodes, "devices": nodes * stage::DEVICES, "bookings": bookings + 1,
        "nodes_made_and_opened_ms": opened.as_millis(),
        "bookings_made_to_active_ms": active_ms,
        "start_ms": milestones,
        "after_start": {"cpu_ms": after.cpu_ms, "resident_kib": after.resident_kib, "peak_kib": after.peak_kib},
        "steady": steady,
    }))
}

/// Makes the bookings that stand before the start, and waits until nothing is left to be done about them.
async fn book(spillway: &Spillway<'_>, bookings: usize, tenants: usize) -> Result<u128> {
    let book = Book::begin(spillway.client());
    let begun = Instant::now();
    stage::reserve_all(spillway, STANDING, 0..bookings, tenants).await?;
    let active = book.wait("all to be Active", STANDING, |times| times.active, bookings, BOUND).await?;
    say(&format!("{bookings} bookings are Active"));
    // The last statuses of pools and tenants.
    tokio::time::sleep(Duration::from_secs(6)).await;
    Ok(last_ms(&active, begun))
}

/// What the operator takes while there are heartbeats and nothing else.
async fn steady(operator: &Operator, audit: &Audit, heartbeats: &Heartbeats, window: Duration) -> Result<Value> {
    let from = audit.mark().await?;
    let (begun, beats, before) = (Instant::now(), heartbeats.written()?, Usage::of(operator.pid())?);
    tokio::time::sleep(window).await;
    let (after, beats) = (Usage::of(operator.pid())?, heartbeats.written()? - beats);
    let milli_cores = after.milli_cores_since(&before, begun.elapsed());
    // The mark is a little later, which is in this length as well.
    let to = audit.mark().await?;
    let length = begun.elapsed();
    let writes = audit.writes(from..to)?;
    let per_minute = |count: usize| count as u128 * 60_000 / length.as_millis().max(1);
    let of = |which: fn(&crate::audit::Write) -> bool| per_minute(writes.iter().filter(|write| which(write)).count());
    Ok(json!({
        "heartbeats": beats,
        "operator_milli_cores": milli_cores,
        "writes_per_minute": of(crate::audit::Write::counts),
        "writes": counts(&writes),
        "lease_writes_per_minute": of(crate::audit::Write::is_lease),
        "dry_runs_per_minute": of(|write| write.dry_run),
        "resident_kib": after.resident_kib,
        "peak_kib": after.peak_kib,
    }))
}
