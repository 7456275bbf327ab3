//! How far an operator has come since it was started: by its metrics, and by a reservation that it sells.

use std::pin::Pin;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use futures::{Stream, StreamExt as _};
use kube::Client;
use kube::api::Api;
use kube::runtime::{WatchStreamExt as _, watcher};
use serde_json::{Value, json};
use spillway_crds::GpuReservation;
use spillway_lab::spillway::Operator;

use crate::book::is_booked;
use crate::stage::BOUND;

/// How often metrics are asked for.
const LOOK: Duration = Duration::from_millis(5);

/// A watch of one reservation.
pub(crate) struct Probe(Pin<Box<dyn Stream<Item = watcher::Result<watcher::Event<GpuReservation>>> + Send>>);

impl Probe {
    /// Begins to watch, and waits until it would miss nothing. The reservation need not be there yet.
    pub(crate) async fn begin(client: Client, namespace: &str, name: &str) -> Result<Self> {
        let only = watcher::Config::default().fields(&format!("metadata.name={name}"));
        let mut events = watcher(Api::namespaced(client, namespace), only).default_backoff().boxed();
        let listed = async {
            while let Some(event) = events.next().await {
                if matches!(event, Ok(watcher::Event::InitDone)) {
                    return true;
                }
            }
            false
        };
        let listed = tokio::time::timeout(BOUND, listed).await.unwrap_or(false);
        anyhow::ensure!(listed, "reservation {namespace}/{name} cannot be watched");
        Ok(Self(events))
    }

    /// When it is seen to be booked.
    pub(crate) async fn booked(mut self) -> Result<Instant> {
        let seen = async {
            while let Some(event) = self.0.next().await {
                if let Ok(watcher::Event::Apply(object) | watcher::Event::InitApply(object)) = event
                    && is_booked(&object)
                {
                    return Some(Instant::now());
                }
            }
            None
        };
        let seen = tokio::time::timeout(BOUND, seen).await.context("the reservation is not booked in time")?;
        seen.context("the watch of the reservation ended")
    }
}

/// When an operator had come how far.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Milestones {
    /// It leads.
    leads: Instant,
    /// It has read the ledger.
    ledger_read: Instant,
    /// No guard stops sales.
    sells: Instant,
    /// A reservation is booked.
    booked: Instant,
}

impl Milestones {
    /// Looks until the operator has come to all of them.
    pub(crate) async fn watch(operator: &Operator, probe: Probe) -> Result<Self> {
        let reach = async {
            let (mut leads, mut ledger_read) = (None, None);
            loop {
                // It does not answer before it listens.
                let text = operator.metrics().await.unwrap_or_default();
                let now = Instant::now();
                let is = |name: &str, wanted: fn(i64) -> bool| value(&text, name).is_some_and(wanted);
                if is("spillway_leader", |value| value == 1) {
                    leads.get_or_insert(now);
                }
                if is("spillway_ledger_generation", |value| value > 0) {
                    ledger_read.get_or_insert(now);
                }
                if let (Some(leads), Some(ledger_read)) = (leads, ledger_read)
                    && is("spillway_sales_doubted", |value| value == 0)
                {
                    return (leads, ledger_read, now);
                }
                tokio::time::sleep(LOOK).await;
            }
        };
        let reach = async { tokio::time::timeout(BOUND, reach).await.context("the operator does not sell in time") };
        let ((leads, ledger_read, sells), booked) = tokio::try_join!(reach, probe.booked())?;
        Ok(Self { leads, ledger_read, sells, booked })
    }

    /// Milliseconds from a moment to each of them.
    pub(crate) fn since(&self, begun: Instant) -> Value {
        let ms = |at: Instant| at.saturating_duration_since(begun).as_millis();
        json!({
            "leads": ms(self.leads),
            "ledger_read": ms(self.ledger_read),
            "guards_let_sell": ms(self.sells),
            "booked": ms(self.booked),
        })
    }
}

/// The value of a gauge without labels.
fn value(metrics: &str, name: &str) -> Option<i64> {
    metrics.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok())
}
