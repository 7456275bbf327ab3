//! `bench recovery`: an operator that is killed in a cluster that is sold out, and started again.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use spillway_lab::Lab;
use spillway_lab::progress::say;
use spillway_lab::spillway::{Operator, Spillway};

use crate::audit::{Audit, pages_by_commit};
use crate::book::{Book, last_ms};
use crate::probe::{Milestones, Probe};
use crate::stage::{self, IDENTITY};
use crate::usage::Usage;

/// Names of the reservations that are there before the first kill begin so.
const STANDING: &str = "b-";
/// Longest time in which the bookings of a step are made, or all come to be Active.
const BOUND: Duration = Duration::from_secs(7200);
/// Longest time of `spillway verify`.
const VERIFY_BOUND: Duration = Duration::from_secs(600);

#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Options {
    /// Nodes of 8 devices.
    #[arg(long, default_value_t = 6250)]
    nodes: usize,
    /// Live bookings at the end: those that are there before the first kill, one for each kill, and one more.
    #[arg(long, default_value_t = 50_000)]
    bookings: usize,
    /// Tenants among whom they are spread.
    #[arg(long, default_value_t = 40)]
    tenants: usize,
    /// How often the operator is killed.
    #[arg(long, default_value_t = 5)]
    kills: usize,
    /// Reservations that are made at a time, before it is waited until they are booked; without it all are.
    #[arg(long)]
    step: Option<usize>,
    /// Makes the reservations of a step while there is no operator, which then sells all of them at once: fewer writes, and fewer commits.
    #[arg(long)]
    stopped: bool,
    /// Seconds from a decision to the next kill.
    #[arg(long, default_value_t = 15)]
    pause_seconds: u64,
}

struct Bench<'a> {
    spillway: &'a Spillway<'a>,
    options: &'a Options,
    audit: &'a Audit,
}

impl Bench<'_> {
    /// How many bookings there are before the first kill.
    fn standing(&self) -> usize {
        self.options.bookings.saturating_sub(self.options.kills + 1)
    }

    async fn pause(&self) {
        tokio::time::sleep(Duration::from_secs(self.options.pause_seconds)).await;
    }

    /// Makes the bookings that are there before the first kill.
    async fn fill(&self, mut operator: Operator) -> Result<(Operator, Value)> {
        let wanted = self.standing();
        let step = self.options.step.unwrap_or(wanted).max(1);
        let book = Book::begin(self.spillway.client());
        let begun = Instant::now();
        let mut steps = Vec::new();
        for first in (0..wanted).step_by(step) {
            let last = wanted.min(first + step);
            if self.options.stopped {
                operator.stop().await?;
                stage::reserve_all(self.spillway, STANDING, first..last, self.options.tenants).await?;
                operator = self.spillway.start_operator(IDENTITY)?;
            } else {
                stage::reserve_all(self.spillway, STANDING, first..last, self.options.tenants).await?;
            }
            let created = begun.elapsed();
            say(&format!("{last} reservations are made after {created:.1?}"));
            let booked = book.wait("all to be Booked", STANDING, |times| times.booked, last, BOUND).await?;
            let booked_ms = last_ms(&booked, begun);
            say(&format!("{last} are booked after {booked_ms} ms"));
            steps.push(json!({"bookings": last, "created_ms": created.as_millis(), "last_booked_ms": booked_ms}));
        }
        // A kill in the middle of handing over nodes would measure that as well.
        let active = book.wait("all to be Active", STANDING, |times| times.active, wanted, BOUND).await?;
        let active_ms = last_ms(&active, begun);
        say(&format!("{wanted} are active after {active_ms} ms"));
        let report = json!({
            "operator_stopped_while_reservations_were_made": self.options.stopped,
            "steps": steps, "last_active_ms": active_ms,
        });
        Ok((operator, report))
    }

    /// Kills the operator, starts it again as the same pod's next container, and gives it something to decide.
    async fn kill(&self, operator: Operator, number: usize) -> Result<(Operator, Value)> {
        let tenant = stage::tenant(number, self.options.tenants);
        let name = format!("k-{number:05}");
        let probe = Probe::begin(self.spillway.client(), &tenant, &name).await?;
        let killed = Instant::now();
        operator.kill()?;
        let started = Instant::now();
        let operator = self.spillway.start_operator(IDENTITY)?;
        let apply = async {
            stage::reserve(self.spillway, &tenant, &name).await?;
            anyhow::Ok(Instant::now())
        };
        let (applied, milestones) = tokio::try_join!(apply, Milestones::watch(&operator, probe))?;
        self.pause().await;
        let used = Usage::of(operator.pid())?;
        let report = json!({
            "kill_to_start_ms": started.duration_since(killed).as_millis(),
            "kill_to_applied_ms": applied.duration_since(killed).as_millis(),
            "from_kill_ms": milestones.since(killed),
            "from_start_ms": milestones.since(started),
            "operator_peak_memory_kib": used.peak_kib,
            "operator_resident_memory_kib": used.resident_kib,
        });
        say(&format!("kill {}: {report}", number + 1));
        Ok((operator, report))
    }

    /// One more arrival while nothing else happens: how long it takes, and how many pages each commit makes for it.
    async fn arrive_alone(&self) -> Result<Value> {
        let (tenant, name) = (stage::tenant(0, self.options.tenants), "last");
        let probe = Probe::begin(self.spillway.client(), &tenant, name).await?;
        let from = self.audit.mark().await?;
        let applied = Instant::now();
        stage::reserve(self.spillway, &tenant, name).await?;
        let booked = probe.booked().await?;
        self.spillway.wait_phase(&tenant, name, spillway_crds::Phase::Active, BOUND).await?;
        let writes = self.audit.writes(from..self.audit.mark().await?)?;
        let pages = pages_by_commit(writes);
        Ok(json!({
            "booked_after_ms": booked.duration_since(applied).as_millis(),
            "pages_of_its_booking": pages.first(),
            "pages_of_each_commit_to_active": pages,
        }))
    }

    /// Whether all is as it must be; gives how long `spillway verify` took.
    async fn check(&self, operator: &Operator) -> Result<Duration> {
        let bookings = operator.metric("spillway_bookings").await?;
        ensure!(bookings == self.options.bookings.to_string(), "the operator has {bookings} bookings");
        tokio::time::sleep(Duration::from_secs(6)).await;
        let begun = Instant::now();
        self.spillway.verify_within("5s", VERIFY_BOUND).await?.ensure_clean()?;
        Ok(begun.elapsed())
    }
}

pub(crate) async fn run(options: &Options) -> Result<Value> {
    let devices = options.nodes * stage::DEVICES;
    ensure!(options.bookings <= devices, "{} bookings do not fit into {devices} devices", options.bookings);
    ensure!(options.bookings > options.kills + 1, "each kill needs one booking, and so does the last arrival");
    let audit = Audit::new()?;
    let lab = Lab::start(audit.lab_options()).await?;
    let spillway = Spillway::install(&lab).await?;
    let operator = spillway.start_operator(IDENTITY)?;
    let opened = stage::furnish(&spillway, &operator, options.nodes, options.tenants).await?;
    let bench = Bench { spillway: &spillway, options, audit: &audit };
    let (mut operator, fill) = bench.fill(operator).await?;
    bench.pause().await;
    let filled = Usage::of(operator.pid())?;
    let mut peak_kib = filled.peak_kib;
    let mut kills = Vec::new();
    for number in 0..options.kills {
        let report;
        (operator, report) = bench.kill(operator, number).await.with_context(|| format!("kill {}", number + 1))?;
        kills.push(report);
        peak_kib = peak_kib.max(Usage::of(operator.pid())?.peak_kib);
    }
    let alone = bench.arrive_alone().await?;
    peak_kib = peak_kib.max(Usage::of(operator.pid())?.peak_kib);
    let report = |verify_ms: Option<u128>| {
        json!({
            "nodes": options.nodes, "devices": devices, "bookings": options.bookings, "tenants": options.tenants,
            "nodes_made_and_opened_ms": opened.as_millis(),
            "bookings_before_the_first_kill": bench.standing(),
            "fill": fill,
            "filled": {"operator_peak_memory_kib": filled.peak_kib, "operator_resident_memory_kib": filled.resident_kib},
            "kills": kills,
            "last_arrival": alone,
            "operator_peak_memory_kib": peak_kib,
            "verify_ms": verify_ms,
        })
    };
    let verified = bench.check(&operator).await;
    let report = report(verified.as_ref().ok().map(Duration::as_millis));
    if let Err(error) = verified {
        say(&format!("what was measured before the check failed: {report:#}"));
        return Err(error);
    }
    operator.stop().await?;
    lab.stop()?;
    Ok(report)
}
