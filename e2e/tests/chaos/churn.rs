//! Reservations that come and go, chosen by a seed.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::Result;
use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use serde_json::{Value, json};
use spillway_lab::spillway::Spillway;
use spillway_lab::wait_for;

use crate::BOUND;

/// Numbers from a seed (SplitMix64), the same on every machine.
#[derive(Debug, Clone)]
pub(crate) struct Dice(u64);

impl Dice {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number from `low` to `high`, both included.
    pub(crate) fn roll(&mut self, low: u64, high: u64) -> u64 {
        low + self.next() % (high - low + 1)
    }

    pub(crate) fn one_in(&mut self, count: u64) -> bool {
        self.roll(1, count) == 1
    }
}

/// What a churn is made of.
#[derive(Debug, Clone)]
pub(crate) struct Churn {
    pub(crate) seed: u64,
    pub(crate) namespaces: Vec<String>,
    /// Longest term, in seconds.
    pub(crate) longest: u64,
    /// Most nodes of one reservation.
    pub(crate) widest: u64,
    /// Time between two arrivals, in milliseconds.
    pub(crate) every_ms: (u64, u64),
}

/// One reservation of a churn.
#[derive(Debug, Clone)]
struct Arrival {
    namespace: String,
    name: String,
    spec: Value,
    /// Deleted after so long.
    delete_after: Option<Duration>,
    pause: Duration,
}

impl Churn {
    fn arrival(&self, dice: &mut Dice, number: usize) -> Arrival {
        let namespace = self.namespaces[usize::try_from(dice.next()).unwrap_or(0) % self.namespaces.len()].clone();
        let nodes = if dice.one_in(3) { dice.roll(1, self.widest) } else { 1 };
        let mut spec = json!({"devices": {"count": nodes * 8}});
        if dice.one_in(3) {
            // Parts of nodes, a few devices or some more than one node has.
            let most = if dice.one_in(4) { 12 } else { 5 };
            spec = json!({"devices": {"count": dice.roll(1, most)}, "exclusiveNodes": false});
        }
        let tier = ["OnDemand", "Spot", "Committed"][usize::try_from(dice.roll(0, 2)).unwrap_or(0)];
        spec["tier"] = json!(tier);
        let open_ended = tier != "Committed" && dice.one_in(6);
        if !open_ended {
            spec["term"] = json!({"duration": format!("{}s", dice.roll(2.min(self.longest), self.longest))});
        }
        if dice.one_in(8) {
            spec["waitFor"] = json!(format!("{}s", dice.roll(0, 3)));
        }
        if dice.one_in(25) {
            // No pool is so large.
            spec["devices"] = json!({"count": 8000});
        }
        let deleted = open_ended || dice.one_in(5);
        Arrival {
            namespace,
            name: format!("r-{number:04}"),
            spec,
            delete_after: deleted.then(|| Duration::from_millis(dice.roll(0, 6000))),
            pause: Duration::from_millis(dice.roll(self.every_ms.0, self.every_ms.1)),
        }
    }

    /// Makes so many reservations, and deletes those that are to be deleted.
    pub(crate) async fn run(&self, spillway: &Spillway<'_>, first: usize, count: usize) -> Result<()> {
        self.run_until_full(spillway, first, count, &AtomicUsize::new(0), || false).await
    }

    /// The same, counting what was made, and waiting while there is no room for more.
    pub(crate) async fn run_until_full(
        &self,
        spillway: &Spillway<'_>,
        first: usize,
        count: usize,
        made: &AtomicUsize,
        is_full: impl Fn() -> bool,
    ) -> Result<()> {
        let mut dice = Dice::new(self.seed ^ u64::try_from(first).unwrap_or(0));
        let mut deletes = FuturesUnordered::new();
        for number in first..first + count {
            let arrival = self.arrival(&mut dice, number);
            let room = wait_for("room for more", BOUND * 3, || {
                let room = !is_full();
                async move { Ok(room) }
            });
            alongside(room, &mut deletes).await??;
            spillway.reserve(&arrival.namespace, &arrival.name, arrival.spec).await?;
            made.fetch_add(1, Ordering::Relaxed);
            if let Some(after) = arrival.delete_after {
                deletes.push(async move {
                    tokio::time::sleep(after).await;
                    spillway.delete_reservation(&arrival.namespace, &arrival.name).await
                });
            }
            alongside(tokio::time::sleep(arrival.pause), &mut deletes).await?;
        }
        while let Some(deleted) = deletes.next().await {
            deleted?;
        }
        Ok(())
    }
}

/// Does the first while the others go on; the first failure among them ends it.
async fn alongside<T>(
    first: impl Future<Output = T>,
    others: &mut FuturesUnordered<impl Future<Output = Result<()>>>,
) -> Result<T> {
    tokio::pin!(first);
    loop {
        tokio::select! {
            done = &mut first => return Ok(done),
            Some(other) = others.next() => other?,
        }
    }
}
