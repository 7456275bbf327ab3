//! What the test saw, held against what the ledger says in the end.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard};

use anyhow::{Context as _, Result, bail, ensure};
use futures::StreamExt as _;
use kube::runtime::{WatchStreamExt as _, watcher};
use kube::{Api, ResourceExt as _};
use spillway_crds::{GpuReservation, Phase};
use spillway_lab::spillway::{Booking, LedgerView, Spillway, holds};
use tokio::task::JoinHandle;

use crate::BOUND;

/// What was seen of one reservation.
#[derive(Debug, Clone, Default)]
pub(crate) struct Seen {
    pub(crate) name: String,
    pub(crate) phases: BTreeSet<Phase>,
    pub(crate) last: Phase,
    pub(crate) bookings: BTreeSet<String>,
    pub(crate) metered: Option<i64>,
    pub(crate) gone: bool,
}

/// Writes down what every reservation was, as any client could see it.
#[derive(Debug)]
pub(crate) struct Witness {
    seen: Arc<Mutex<BTreeMap<String, Seen>>>,
    task: JoinHandle<()>,
}

impl Drop for Witness {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Witness {
    pub(crate) fn start(spillway: &Spillway<'_>) -> Self {
        let seen: Arc<Mutex<BTreeMap<String, Seen>>> = Arc::default();
        let api = Api::<GpuReservation>::all(spillway.client());
        let book = Arc::clone(&seen);
        let task = tokio::spawn(async move {
            let mut events = watcher(api, watcher::Config::default()).default_backoff().boxed();
            while let Some(event) = events.next().await {
                match event {
                    Ok(watcher::Event::Apply(object) | watcher::Event::InitApply(object)) => {
                        note(&book, &object, false);
                    }
                    Ok(watcher::Event::Delete(object)) => note(&book, &object, true),
                    _ => {}
                }
            }
        });
        Self { seen, task }
    }

    fn book(&self) -> MutexGuard<'_, BTreeMap<String, Seen>> {
        self.seen.lock().unwrap()
    }

    /// Everything seen so far, by UID.
    pub(crate) fn seen(&self) -> BTreeMap<String, Seen> {
        self.book().clone()
    }

    /// How many reservations are not over yet.
    pub(crate) fn open(&self) -> usize {
        self.book().values().filter(|seen| !seen.gone && !seen.last.is_final()).count()
    }

    /// How many reservations were ever seen in a phase.
    pub(crate) fn count(&self, phase: Phase) -> usize {
        self.book().values().filter(|seen| seen.phases.contains(&phase)).count()
    }
}

fn note(book: &Mutex<BTreeMap<String, Seen>>, object: &GpuReservation, gone: bool) {
    let status = object.status.clone().unwrap_or_default();
    let mut book = book.lock().unwrap();
    let seen = book.entry(object.uid().unwrap()).or_default();
    seen.name = format!("{}/{}", object.namespace().unwrap_or_default(), object.name_any());
    seen.phases.insert(status.phase);
    seen.last = status.phase;
    seen.gone = gone;
    seen.bookings.extend(status.booking.map(|booking| booking.id));
    seen.metered = status.meter.map(|meter| meter.device_milliseconds).or(seen.metered);
}

/// How it ended, in numbers.
#[derive(Debug, Default)]
pub(crate) struct Account {
    pub(crate) reservations: usize,
    pub(crate) booked: usize,
    pub(crate) refused: usize,
    pub(crate) dropped: usize,
    pub(crate) device_ms: i64,
}

/// Waits until every reservation is over, every node is unsold again, and the witness knows it.
pub(crate) async fn settle(spillway: &Spillway<'_>, witness: &Witness) -> Result<()> {
    settle_within(spillway, witness, BOUND).await
}

pub(crate) async fn settle_within(
    spillway: &Spillway<'_>,
    witness: &Witness,
    bound: std::time::Duration,
) -> Result<()> {
    spillway
        .wait_for("everything to be over", bound, || async {
            let mut open = Vec::new();
            for object in spillway.reservations().await? {
                let status = object.status.clone().unwrap_or_default();
                if !status.phase.is_final() || object.metadata.deletion_timestamp.is_some() {
                    let message = status.message.unwrap_or_default();
                    open.push(format!("{} is {}: {message}", object.name_any(), status.phase.as_str()));
                }
            }
            for node in spillway.nodes().await? {
                let hold = holds(&node);
                if hold != (Some("unsold".to_owned()), None) {
                    open.push(format!("node {} is {hold:?}", node.name_any()));
                }
            }
            let late = witness.open();
            ensure!(
                open.is_empty() && late == 0,
                "{} are not, {late} not seen: {}",
                open.len(),
                open.iter().take(5).cloned().collect::<Vec<_>>().join("; ")
            );
            Ok(true)
        })
        .await
}

/// Settles, asks `spillway verify`, and holds what was seen against the ledger.
pub(crate) async fn audit(spillway: &Spillway<'_>, witness: &Witness) -> Result<Account> {
    let ledger = spillway.ledger().await?;
    let mut wrong = Vec::new();
    let mut account = Account::default();
    for (uid, seen) in witness.seen() {
        account.reservations += 1;
        if let Err(error) = judge(&seen, &ledger.of(&uid), &mut account) {
            wrong.push(format!("{} ({uid}): {error:#}: {seen:?}", seen.name));
        }
    }
    for booking in &ledger.archived {
        if let Err(error) = explain(booking) {
            wrong.push(format!("{} of {}: {error:#}: {booking:?}", booking.id, booking.reservation.name));
        }
    }
    wrong.extend(sold_twice(&ledger));
    ensure!(wrong.is_empty(), "{} things are wrong:\n{}", wrong.len(), wrong.join("\n"));
    spillway.verify_settled("0s").await?.ensure_clean()?;
    Ok(account)
}

/// One reservation: booked once and archived, or refused, or dropped while it waited.
fn judge(seen: &Seen, bookings: &[&Booking], account: &mut Account) -> Result<()> {
    ensure!(bookings.len() <= 1, "it was booked {} times", bookings.len());
    let booking = bookings.first();
    for id in &seen.bookings {
        ensure!(booking.is_some_and(|booking| booking.id == *id), "its booking {id} is lost");
    }
    match (booking, seen.last) {
        (Some(booking), last) => {
            ensure!(booking.end_reason.is_some(), "its booking is live still");
            ensure!(seen.gone || last == Phase::Ended, "its booking ended and it did not");
            if let Some(metered) = seen.metered {
                ensure!(
                    metered == booking.metered_ms(),
                    "it was told {metered} device-ms, the ledger has {}",
                    booking.metered_ms()
                );
            }
            ensure!(seen.metered.is_some() || seen.gone, "it was told no meter");
            account.booked += 1;
            account.device_ms += booking.metered_ms();
        }
        (None, Phase::Rejected | Phase::Expired) => account.refused += 1,
        (None, Phase::Pending | Phase::Waitlisted) if seen.gone => account.dropped += 1,
        (None, last) => bail!("it is {} and has no booking", last.as_str()),
    }
    Ok(())
}

/// One booking of the archive: every metered millisecond is one between `Active` and the end.
fn explain(booking: &Booking) -> Result<()> {
    let end = booking.end.context("it has no end")?;
    ensure!(end >= booking.booked_at, "it ended before it was booked");
    let Some(active) = booking.active_at else {
        ensure!(booking.metered_ms() == 0, "it was metered and never Active");
        return Ok(());
    };
    ensure!(booking.booked_at <= active && active <= end, "its times are out of order");
    if booking.end_reason.as_deref() == Some("TermOver") {
        ensure!(Some(end - active) == booking.duration_ms, "its term was {} ms", end - active);
    }
    if booking.segments.iter().all(|segment| segment.to.is_none()) {
        ensure!(
            booking.metered_ms() == booking.devices * (end - active),
            "it was metered {} device-ms",
            booking.metered_ms()
        );
    }
    Ok(())
}

/// Bookings that had more of a node together than there is, from the commit that gave it to the one that took it: anything beside a whole node, and
/// parts of more devices than a node has.
pub(crate) fn sold_twice(ledger: &LedgerView) -> Vec<String> {
    /// Devices of a node in these tests.
    const DEVICES: i64 = 8;
    let mut by_node: BTreeMap<&str, Vec<(i64, i64, i64, &Booking)>> = BTreeMap::new();
    for booking in ledger.live.iter().chain(&ledger.archived) {
        let over = if booking.end_reason.is_some() { booking.end.unwrap() } else { i64::MAX };
        for segment in &booking.segments {
            // A node is promised from the commit on; of a replacement it is only known when it was handed over.
            let replaced = booking.segments.iter().any(|segment| segment.to.is_some());
            let Some(begin) = (if replaced { segment.from } else { Some(booking.booked_at) }) else { continue };
            let taken = if booking.exclusive { DEVICES } else { segment.devices };
            by_node.entry(&segment.uid).or_default().push((begin, segment.to.unwrap_or(over), taken, booking));
        }
    }
    let mut twice = Vec::new();
    for (node, mut spans) in by_node {
        spans.sort_by_key(|(from, to, ..)| (*from, *to));
        for (at, (from, to, taken, one)) in spans.iter().enumerate() {
            let beside =
                spans[..at].iter().filter(|(_, until, _, other)| until > from && from < to && other.id != one.id);
            let (others, names) = beside.fold((0, Vec::new()), |(sum, mut names), (.., taken, other)| {
                names.push(other.reservation.name.as_str());
                (sum + taken, names)
            });
            if taken + others > DEVICES && !names.is_empty() {
                let names = names.join(", ");
                twice.push(format!("node {node} was sold to {} and {names} at once", one.reservation.name));
            }
        }
    }
    twice
}
