//! From the root to its bookings: index pages, booking pages, archive chains, and the parts of bookings that are split over pages.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, de::DeserializeOwned};
use spillway_crds::{CapacityLedger, CapacityLedgerPage, PageKind};

use super::{Booking, Ledger, Segment};
use crate::violation::Findings;

/// The newest format that is read.
const FORMAT: i32 = 1;
/// A page's `data` is at most so many bytes.
const MAX_PAGE_BYTES: usize = 65_536;
/// Code of the finding that the root reaches a page that does not exist.
pub(super) const PAGE_MISSING: &str = "PageMissing";

#[derive(Deserialize)]
struct Head {
    format: i32,
    pool: String,
}

#[derive(Deserialize)]
struct IndexData {
    bookings: Vec<String>,
    archive: Option<String>,
    archived: usize,
    #[serde(default)]
    stored: Option<StoredData>,
}

#[derive(Deserialize)]
struct StoredData {
    bookings: usize,
    pruned: usize,
}

#[derive(Deserialize)]
struct BookingsData {
    bookings: Vec<Booking>,
    #[serde(default)]
    split: BTreeMap<String, usize>,
    #[serde(default)]
    continued: Vec<Continued>,
}

#[derive(Deserialize)]
struct ArchiveData {
    day: String,
    previous: Option<String>,
    #[serde(flatten)]
    content: BookingsData,
}

#[derive(Deserialize)]
struct Continued {
    booking: String,
    first: usize,
    segments: Vec<Segment>,
    #[serde(skip)]
    written_at: Option<i64>,
}

/// Bookings of pages that belong together, before their parts are joined.
#[derive(Default)]
struct Parts {
    bookings: Vec<Booking>,
    split: BTreeMap<String, usize>,
    continued: Vec<Continued>,
}

impl Parts {
    fn add(&mut self, data: BookingsData, written_at: Option<i64>) {
        self.bookings.extend(data.bookings.into_iter().map(|booking| Booking { written_at, ..booking }));
        self.split.extend(data.split);
        self.continued.extend(data.continued.into_iter().map(|part| Continued { written_at, ..part }));
    }
}

pub(super) struct Reader<'a> {
    pages: BTreeMap<&'a str, &'a CapacityLedgerPage>,
    seen: BTreeSet<&'a str>,
    findings: &'a mut Findings,
    whole: bool,
}

impl<'a> Reader<'a> {
    pub(super) fn new(pages: &'a [CapacityLedgerPage], findings: &'a mut Findings) -> Self {
        let pages = pages.iter().filter_map(|page| Some((page.metadata.name.as_deref()?, page))).collect();
        Self { pages, seen: BTreeSet::new(), findings, whole: true }
    }

    pub(super) fn read(mut self, root: &CapacityLedger) -> Ledger {
        let object = "CapacityLedger/cluster";
        if root.spec.format > FORMAT {
            let message = format!(
                "the ledger has format {}, and this checker reads up to {FORMAT}: use the spillway command of the installed version",
                root.spec.format
            );
            self.findings.violation(1, "UnknownFormat", object, message);
            return Ledger::default();
        }
        let mut ledger = Ledger::default();
        let mut pools = BTreeSet::new();
        for pool in &root.spec.pools {
            if !pools.insert(&pool.name) {
                self.fault("PoolTwice", object, format!("the root names pool {} twice", pool.name));
            }
            self.read_pool(&pool.name, &pool.index, &mut ledger);
        }
        ledger.whole = self.whole;
        ledger
    }

    fn read_pool(&mut self, pool: &str, index: &str, ledger: &mut Ledger) {
        let Some((index_data, _)) = self.page::<IndexData>(index, PageKind::Index, pool) else { return };
        let mut live = Parts::default();
        for name in &index_data.bookings {
            if let Some((data, written_at)) = self.page::<BookingsData>(name, PageKind::Bookings, pool) {
                live.add(data, written_at);
            }
        }
        let live = self.join(pool, live);
        let StoredData { bookings, pruned } = index_data.stored.unwrap_or(StoredData { bookings: 0, pruned: 0 });
        if pruned > bookings || bookings > index_data.archived {
            let message = format!(
                "of {} bookings that ended {bookings} are said to be stored and {pruned} of them pruned",
                index_data.archived
            );
            self.fault("StoredMiscounted", &format!("GpuPool/{pool}"), message);
        }
        ledger.pruned = ledger.pruned.saturating_add(pruned);
        let count = index_data.archived.saturating_sub(pruned);
        let archived = self.read_archive(pool, index_data.archive, count, pruned > 0);
        for booking in live.iter().chain(&archived).filter(|booking| booking.pool != pool) {
            self.findings.violation(
                1,
                "BookingMisplaced",
                booking.object(),
                format!("it is kept with pool {pool} and says that it is of pool {}", booking.pool),
            );
        }
        ledger.live.extend(live);
        ledger.archived.extend(archived);
    }

    /// The bookings of an archive. One that is pruned ends where all that are left were found, though its last page names another.
    fn read_archive(&mut self, pool: &str, newest: Option<String>, count: usize, pruned: bool) -> Vec<Booking> {
        let mut archive = Parts::default();
        let mut next = newest;
        let mut broken = false;
        let mut day_after: Option<String> = None;
        while let Some(name) = next {
            let Some((data, written_at)) = self.page::<ArchiveData>(&name, PageKind::Archive, pool) else {
                broken = true;
                break;
            };
            if day_after.as_ref().is_some_and(|after| *after < data.day) {
                let message = format!("its day {} is later than that of the page after it", data.day);
                self.findings.violation(1, "ArchiveOutOfOrder", page_object(&name), message);
            }
            day_after = Some(data.day);
            next = data.previous;
            archive.add(data.content, written_at);
            if pruned && archive.bookings.len() >= count {
                next = None;
            }
        }
        let archived = self.join(pool, archive);
        if !broken && archived.len() != count {
            self.fault(
                "ArchiveIncomplete",
                &format!("GpuPool/{pool}"),
                format!(
                    "its index counts {count} bookings that ended and are not pruned, and its archive has {}",
                    archived.len()
                ),
            );
        }
        archived
    }

    /// Reads one page that must be of a kind and a pool, and that no other page may name. Gives when it was created as well.
    fn page<T: DeserializeOwned>(&mut self, name: &str, kind: PageKind, pool: &str) -> Option<(T, Option<i64>)> {
        let object = page_object(name);
        let Some((key, page)) = self.pages.get_key_value(name).map(|(key, page)| (*key, *page)) else {
            let message = format!("{kind:?} page of pool {pool}: the ledger names it and it does not exist");
            self.fault(PAGE_MISSING, &object, message);
            return None;
        };
        if !self.seen.insert(key) {
            self.fault("PageTwice", &object, "it is named twice in the ledger".to_owned());
            return None;
        }
        let spec = &page.spec;
        if spec.data.len() > MAX_PAGE_BYTES {
            let message = format!("its data has {} bytes, and at most {MAX_PAGE_BYTES} are allowed", spec.data.len());
            self.findings.violation(1, "PageTooLarge", object.clone(), message);
        }
        let head: Option<Head> = serde_json::from_str(&spec.data).ok();
        if spec.format > FORMAT || head.as_ref().is_some_and(|head| head.format > FORMAT) {
            self.fault("UnknownFormat", &object, format!("it has a newer format than {FORMAT}, which is read here"));
            return None;
        }
        if spec.kind != kind || spec.pool != pool || head.is_some_and(|head| head.pool != pool) {
            let message = format!(
                "it is named as {kind:?} page of pool {pool}, and says that it is {:?} page of pool {}",
                spec.kind, spec.pool
            );
            self.fault("PageMisplaced", &object, message);
            return None;
        }
        match serde_json::from_str(&spec.data) {
            Ok(data) => {
                let created = page.metadata.creation_timestamp.as_ref();
                Some((data, created.map(|time| time.0.as_millisecond())))
            }
            Err(error) => {
                self.fault("PageUnreadable", &object, format!("its data cannot be read: {error}"));
                None
            }
        }
    }

    /// Joins the parts of split bookings: they must cover all segments without gap or overlap.
    fn join(&mut self, pool: &str, parts: Parts) -> Vec<Booking> {
        let Parts { mut bookings, split, mut continued } = parts;
        continued.sort_by(|a, b| (&a.booking, a.first).cmp(&(&b.booking, b.first)));
        let mut by_booking: BTreeMap<String, Vec<Continued>> = BTreeMap::new();
        for part in continued {
            by_booking.entry(part.booking.clone()).or_default().push(part);
        }
        for booking in &mut bookings {
            let parts = by_booking.remove(&booking.id).unwrap_or_default();
            let mut sound = parts.is_empty() || split.contains_key(&booking.id);
            for part in parts {
                sound &= part.first == booking.segments.len();
                booking.segments.extend(part.segments);
                booking.written_at = booking.written_at.max(part.written_at);
            }
            sound &= split.get(&booking.id).is_none_or(|total| *total == booking.segments.len());
            if !sound {
                self.fault("BookingTorn", &booking.object(), "its parts do not fit together".to_owned());
            }
        }
        for id in by_booking.keys() {
            let message = format!("pool {pool} has a part of it, and its beginning is nowhere");
            self.fault("BookingTorn", &format!("Booking/{id}"), message);
        }
        bookings
    }

    /// Notes a fault after which something may be missing from what was read.
    fn fault(&mut self, code: &'static str, object: &str, message: String) {
        self.whole = false;
        self.findings.violation(1, code, object, message);
    }
}

fn page_object(name: &str) -> String {
    format!("CapacityLedgerPage/{name}")
}
