//! The booking ledger as a test reads it: by itself, so that a mistake of the operator is not repeated here.

use std::collections::HashMap;

use anyhow::{Context as _, Result, bail};
use kube::api::{Api, ListParams, PostParams};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use spillway_crds::{CapacityLedger, CapacityLedgerPage, names::LEDGER_NAME};

use super::Spillway;

/// How often the ledger is read again because it moved on meanwhile.
const TRIES: u32 = 20;

/// A booking.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Booking {
    /// Its id.
    pub id: String,
    /// For which reservation.
    pub reservation: ReservationRef,
    /// For which tenant.
    pub tenant: String,
    /// From which pool.
    pub pool: String,
    /// Devices in all.
    pub devices: i64,
    /// Whole nodes with nobody beside it.
    pub exclusive: bool,
    /// Length of the term.
    #[serde(default)]
    pub duration_ms: Option<i64>,
    /// When it was committed.
    pub booked_at: i64,
    /// When all nodes were handed over.
    #[serde(default)]
    pub active_at: Option<i64>,
    /// When it ends, or ended.
    #[serde(default)]
    pub end: Option<i64>,
    /// Why it ended; in the archive only.
    #[serde(default)]
    pub end_reason: Option<String>,
    /// Its nodes, past ones included.
    pub segments: Vec<Segment>,
}

/// Which reservation.
#[derive(Clone, Debug, Deserialize, PartialEq)]
pub struct ReservationRef {
    /// UID.
    pub uid: String,
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
}

/// A part of a booking on one node.
#[derive(Clone, Debug, Deserialize, PartialEq)]
pub struct Segment {
    /// Name of the node.
    pub node: String,
    /// UID of the node.
    pub uid: String,
    /// Devices.
    pub devices: i64,
    /// When it was handed over.
    #[serde(default)]
    pub from: Option<i64>,
    /// When it was lost.
    #[serde(default)]
    pub to: Option<i64>,
}

impl Booking {
    /// Devices times milliseconds of an ended booking, summed here and not by the operator.
    pub fn metered_ms(&self) -> i64 {
        let (Some(active), Some(end)) = (self.active_at, self.end) else { return 0 };
        let of = |segment: &Segment| {
            let from = segment.from?.max(active);
            Some(segment.devices * (segment.to.unwrap_or(end).min(end) - from).max(0))
        };
        self.segments.iter().filter_map(of).sum()
    }

    /// Its open segments.
    pub fn open(&self) -> impl Iterator<Item = &Segment> {
        self.segments.iter().filter(|segment| segment.to.is_none())
    }
}

/// All bookings that the root reaches.
#[derive(Clone, Debug)]
pub struct LedgerView {
    /// Generation of the root.
    pub generation: i64,
    /// Bookings that stand.
    pub live: Vec<Booking>,
    /// Bookings that ended.
    pub archived: Vec<Booking>,
    /// What the usage store has, by pool.
    pub stored: HashMap<String, Stored>,
}

impl LedgerView {
    /// All bookings of a reservation, by UID.
    pub fn of(&self, uid: &str) -> Vec<&Booking> {
        self.live.iter().chain(&self.archived).filter(|booking| booking.reservation.uid == uid).collect()
    }
}

/// Root and pages as they stood once: what a backup has.
#[derive(Clone, Debug)]
pub struct LedgerCopy {
    /// The root.
    pub root: CapacityLedger,
    /// All pages.
    pub pages: Vec<CapacityLedgerPage>,
}

#[derive(Deserialize)]
struct Index {
    bookings: Vec<String>,
    #[serde(default)]
    archive: Option<String>,
    archived: usize,
    #[serde(default)]
    stored: Option<Stored>,
}

/// What an index says of the usage store.
#[derive(Clone, Debug, Deserialize)]
pub struct Stored {
    /// By which id it knows this archive.
    pub archive: String,
    /// How many of the bookings that ended it has.
    pub bookings: usize,
    /// How many of these are gone from the ledger.
    pub pruned: usize,
}

#[derive(Deserialize)]
struct Content {
    #[serde(default)]
    previous: Option<String>,
    bookings: Vec<Booking>,
    #[serde(default)]
    continued: Vec<serde_json::Value>,
}

fn page<T: DeserializeOwned>(pages: &HashMap<String, String>, name: &str) -> Result<Option<T>> {
    let Some(data) = pages.get(name) else { return Ok(None) };
    serde_json::from_str(data).map(Some).with_context(|| format!("reading page {name}"))
}

impl LedgerCopy {
    /// Reads it; none: the root names a page that is not here, because the ledger moved on between the reads.
    pub fn read(&self) -> Result<Option<LedgerView>> {
        let pages: HashMap<String, String> = self
            .pages
            .iter()
            .map(|page| (page.metadata.name.clone().unwrap_or_default(), page.spec.data.clone()))
            .collect();
        let mut view = LedgerView {
            generation: self.root.spec.generation,
            live: Vec::new(),
            archived: Vec::new(),
            stored: HashMap::new(),
        };
        for pool in &self.root.spec.pools {
            let Some(index) = page::<Index>(&pages, &pool.index)? else { return Ok(None) };
            for name in &index.bookings {
                let Some(content) = page::<Content>(&pages, name)? else { return Ok(None) };
                anyhow::ensure!(content.continued.is_empty(), "bookings of more than a page are not read here");
                view.live.extend(content.bookings);
            }
            let mut left = index.archived - index.stored.as_ref().map_or(0, |stored| stored.pruned);
            view.stored.extend(index.stored.map(|stored| (pool.name.clone(), stored)));
            let mut next = index.archive;
            while let Some(name) = next.filter(|_| left > 0) {
                let Some(content) = page::<Content>(&pages, &name)? else { return Ok(None) };
                anyhow::ensure!(content.continued.is_empty(), "bookings of more than a page are not read here");
                left = left.saturating_sub(content.bookings.len());
                view.archived.extend(content.bookings);
                next = content.previous;
            }
        }
        Ok(Some(view))
    }
}

impl Spillway<'_> {
    /// Root and pages as they stand; pages are read after the root, so they may be newer.
    pub async fn copy_ledger(&self) -> Result<LedgerCopy> {
        let root =
            Api::<CapacityLedger>::all(self.client()).get(LEDGER_NAME).await.context("reading the ledger's root")?;
        let pages = Api::<CapacityLedgerPage>::all(self.client())
            .list(&ListParams::default())
            .await
            .context("listing pages")?;
        Ok(LedgerCopy { root, pages: pages.items })
    }

    /// All bookings.
    pub async fn ledger(&self) -> Result<LedgerView> {
        for _ in 0..TRIES {
            if let Some(view) = self.copy_ledger().await?.read()? {
                return Ok(view);
            }
        }
        bail!("the root names pages that are not there, {TRIES} times in a row")
    }

    /// Deletes the root, as somebody who breaks the glass.
    pub async fn delete_root(&self) -> Result<()> {
        let api = Api::<CapacityLedger>::all(self.break_glass()?);
        api.delete(LEDGER_NAME, &Default::default()).await.context("deleting the ledger's root")?;
        Ok(())
    }

    /// Puts a root and the pages that are missing back, as somebody who breaks the glass.
    pub async fn restore_ledger(&self, copy: &LedgerCopy) -> Result<()> {
        let pages = Api::<CapacityLedgerPage>::all(self.break_glass()?);
        for page in &copy.pages {
            let mut page = page.clone();
            let name = page.metadata.name.clone().unwrap_or_default();
            page.metadata =
                kube::api::ObjectMeta { name: page.metadata.name, labels: page.metadata.labels, ..Default::default() };
            match pages.create(&PostParams::default(), &page).await {
                Err(kube::Error::Api(status)) if status.code == 409 => {}
                result => drop(result.with_context(|| format!("restoring page {name}"))?),
            }
        }
        let root = CapacityLedger::new(LEDGER_NAME, copy.root.spec.clone());
        let api = Api::<CapacityLedger>::all(self.break_glass()?);
        api.create(&PostParams::default(), &root).await.context("restoring the ledger's root")?;
        Ok(())
    }
}
