//! Fencing of writes outside the ledger: leader election is for liveness, this is for safety.
//!
//! The target is read first (resourceVersion r), then the root by a consistent read; the write carries precondition r. A leader that was
//! paused finds another generation, or a conflict, or writes what is still right.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use kube::Api;
use spillway_crds::{CapacityLedger, names::LEDGER_NAME};
use tokio::sync::Mutex;

use crate::error::{Error, call};

/// Stands before every write to a node or a pod.
#[derive(Clone)]
pub struct Fence {
    api: Api<CapacityLedger>,
    /// How many reads were begun.
    begun: Arc<AtomicU64>,
    /// The read that ended last, and the generation that it found. Held by who reads.
    last: Arc<Mutex<Option<(u64, i64)>>>,
}

impl Fence {
    /// A fence that reads the root from the API server.
    pub fn new(client: kube::Client) -> Self {
        Self { api: Api::all(client), begun: Arc::default(), last: Arc::default() }
    }

    /// The generation of the root as it stands now, -1 where there is none: as it was found by a read that was begun after this was called. Who
    /// asks while a read is under way waits for the next one, which is that of all who wait.
    ///
    /// # Errors
    /// When the API server cannot be asked.
    pub async fn generation(&self) -> Result<i64, Error> {
        let asked = self.begun.load(Ordering::Acquire);
        let mut last = self.last.lock().await;
        if let Some((read, generation)) = *last
            && read > asked
        {
            return Ok(generation);
        }
        let read = self.begun.fetch_add(1, Ordering::AcqRel) + 1;
        let root = call("reading the ledger's root", self.api.get_opt(LEDGER_NAME)).await?;
        let generation = root.map_or(-1, |root| root.spec.generation);
        *last = Some((read, generation));
        Ok(generation)
    }
}

/// Notices gaps in the process's own time: a pause (SIGSTOP, a frozen machine) after which queued writes must be dropped.
#[derive(Debug, Default)]
pub struct Pulse {
    gaps: AtomicU64,
}

impl Pulse {
    /// Number of gaps so far. A write that was decided under another number is dropped.
    pub fn gaps(&self) -> u64 {
        self.gaps.load(Ordering::Acquire)
    }

    /// Beats for ever; a beat that comes later than `limit` counts as a gap.
    pub async fn beat(&self, limit: Duration) {
        let mut last = Instant::now();
        let mut ticker = tokio::time::interval(limit / 8);
        ticker.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticker.tick().await;
            let now = Instant::now();
            if now.duration_since(last) > limit {
                self.gaps.fetch_add(1, Ordering::AcqRel);
                tracing::warn!(
                    gap_ms = now.duration_since(last).as_millis(),
                    "the process was paused: what was queued is dropped"
                );
            }
            last = now;
        }
    }
}
