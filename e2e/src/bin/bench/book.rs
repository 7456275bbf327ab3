//! When each reservation came to be what, as any client could see it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Result;
use futures::StreamExt as _;
use kube::api::Api;
use kube::runtime::{WatchStreamExt as _, watcher};
use kube::{Client, ResourceExt as _};
use serde_json::{Value, json};
use spillway_crds::{GpuReservation, Phase};
use spillway_lab::wait_for;
use tokio::task::JoinHandle;

/// When a reservation came to be what.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Times {
    /// Seen to be sold.
    pub(crate) booked: Option<Instant>,
    /// Seen to be handed over.
    pub(crate) active: Option<Instant>,
    /// Seen to be gone.
    pub(crate) gone: Option<Instant>,
}

/// All reservations by name. It is written until it is dropped.
#[derive(Debug)]
pub(crate) struct Book {
    times: Arc<Mutex<HashMap<String, Times>>>,
    witness: JoinHandle<()>,
}

impl Drop for Book {
    fn drop(&mut self) {
        self.witness.abort();
    }
}

impl Book {
    /// Begins to watch.
    pub(crate) fn begin(client: Client) -> Self {
        let times = Arc::default();
        let witness = tokio::spawn(write(client, Arc::clone(&times)));
        Self { times, witness }
    }

    /// When the reservations whose names begin so were seen to be what is asked.
    pub(crate) fn reached(&self, prefix: &str, what: fn(&Times) -> Option<Instant>) -> HashMap<String, Instant> {
        let times = self.times.lock().unwrap_or_else(PoisonError::into_inner);
        let of = times.iter().filter(|(name, _)| name.starts_with(prefix));
        of.filter_map(|(name, times)| Some((name.clone(), what(times)?))).collect()
    }

    /// Waits until so many are.
    pub(crate) async fn wait(
        &self,
        title: &str,
        prefix: &str,
        what: fn(&Times) -> Option<Instant>,
        wanted: usize,
        bound: Duration,
    ) -> Result<HashMap<String, Instant>> {
        wait_for(title, bound, || async {
            let found = self.reached(prefix, what).len();
            anyhow::ensure!(found >= wanted, "{found} of {wanted} are");
            Ok(true)
        })
        .await?;
        Ok(self.reached(prefix, what))
    }
}

/// Whether it is sold.
pub(crate) fn is_booked(object: &GpuReservation) -> bool {
    let phase = object.status.as_ref().map_or(Phase::Pending, |status| status.phase);
    matches!(phase, Phase::Booked | Phase::Preparing | Phase::Active)
}

async fn write(client: Client, into: Arc<Mutex<HashMap<String, Times>>>) {
    let api = Api::<GpuReservation>::all(client);
    let mut events = watcher(api, watcher::Config::default()).default_backoff().boxed();
    while let Some(event) = events.next().await {
        let (object, gone) = match event {
            Ok(watcher::Event::Apply(object) | watcher::Event::InitApply(object)) => (object, false),
            Ok(watcher::Event::Delete(object)) => (object, true),
            _ => continue,
        };
        let now = Instant::now();
        let mut book = into.lock().unwrap_or_else(PoisonError::into_inner);
        let times = book.entry(object.name_any()).or_default();
        if gone {
            times.gone.get_or_insert(now);
        }
        if is_booked(&object) {
            times.booked.get_or_insert(now);
        }
        if object.status.as_ref().is_some_and(|status| status.phase == Phase::Active) {
            times.active.get_or_insert(now);
        }
    }
}

/// Milliseconds at the percentiles that are asked for.
pub(crate) fn spread(mut times: Vec<Duration>) -> Value {
    times.sort_unstable();
    let at = |percent: usize| {
        let place = (times.len() * percent).div_ceil(100).saturating_sub(1);
        times.get(place).map_or(0, Duration::as_millis)
    };
    json!({"p50": at(50), "p99": at(99), "max": at(100)})
}

/// Milliseconds from `begun` to the last one.
pub(crate) fn last_ms(seen: &HashMap<String, Instant>, begun: Instant) -> u128 {
    seen.values().max().map_or(0, |at| at.saturating_duration_since(begun).as_millis())
}
