//! The ledger as this crate reads it, from the description of its format in the planner's `ledger` module and by types of its own.
//!
//! Reading never stops at the first fault: what can be read is returned, and each fault is a finding.

use std::collections::BTreeMap;

use serde::Deserialize;
use spillway_crds::{CapacityLedger, CapacityLedgerPage, Tier};

use crate::violation::{Findings, Violation};

mod reader;

use reader::Reader;

/// A promise in the ledger.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq)]
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
    /// On which terms.
    pub tier: Tier,
    /// Devices in all.
    pub devices: i64,
    /// Whole nodes with nobody beside it.
    pub exclusive: bool,
    /// Length of the term from `active_at`; none: open-ended.
    #[serde(default)]
    pub duration_ms: Option<i64>,
    /// When it was committed.
    pub booked_at: i64,
    /// When all nodes were handed over for the first time.
    #[serde(default)]
    pub active_at: Option<i64>,
    /// When it ends; in the archive: when it ended.
    #[serde(default)]
    pub end: Option<i64>,
    /// Why it ended; only in the archive.
    #[serde(default)]
    pub end_reason: Option<EndReason>,
    /// Its nodes, past ones included.
    pub segments: Vec<Segment>,
    /// When the page that has it was created, in Unix milliseconds: it has not changed since.
    #[serde(skip)]
    pub written_at: Option<i64>,
}

/// Which reservation.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq)]
pub struct ReservationRef {
    /// UID.
    pub uid: String,
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
}

/// Why a booking ended.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq)]
pub enum EndReason {
    /// Its term was over.
    TermOver,
    /// The reservation was deleted.
    Deleted,
}

/// A part of a booking on one node.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq)]
pub struct Segment {
    /// Name of the node.
    pub node: String,
    /// UID of the node.
    pub uid: String,
    /// Devices.
    pub devices: i64,
    /// Of a part: of so many that the node had.
    #[serde(default)]
    pub of: Option<i64>,
    /// When the node was handed over.
    #[serde(default)]
    pub from: Option<i64>,
    /// When the node was lost; a segment without it is open.
    #[serde(default)]
    pub to: Option<i64>,
}

impl Booking {
    /// How the booking is named in a finding.
    pub(crate) fn object(&self) -> String {
        format!("Booking/{}", self.id)
    }

    /// How a person knows it.
    pub(crate) fn owner(&self) -> String {
        format!("{}/{}", self.reservation.namespace, self.reservation.name)
    }

    /// Segments that hold their devices.
    pub(crate) fn open_segments(&self) -> impl Iterator<Item = &Segment> {
        self.segments.iter().filter(|segment| segment.to.is_none())
    }
}

/// All bookings that the root reaches.
#[derive(Clone, Debug, Default)]
pub struct Ledger {
    /// Those that stand.
    pub live: Vec<Booking>,
    /// Those that ended.
    pub archived: Vec<Booking>,
    /// How many that ended are pruned: the usage store alone has them.
    pub pruned: usize,
    /// False when a part could not be read: then nothing may be concluded from what is not here.
    pub whole: bool,
}

impl Ledger {
    /// All bookings, with whether they stand.
    pub(crate) fn all(&self) -> impl Iterator<Item = (&Booking, bool)> {
        self.live.iter().map(|booking| (booking, true)).chain(self.archived.iter().map(|booking| (booking, false)))
    }

    /// Live bookings with an open segment on each node, by node UID.
    pub(crate) fn open_by_node(&self) -> BTreeMap<&str, Vec<(&Booking, &Segment)>> {
        let mut by_node: BTreeMap<&str, Vec<(&Booking, &Segment)>> = BTreeMap::new();
        for booking in &self.live {
            for segment in booking.open_segments() {
                by_node.entry(&segment.uid).or_default().push((booking, segment));
            }
        }
        by_node
    }
}

/// Reads all that the root reaches. The findings are faults of the ledger itself (invariant 1).
pub fn read_ledger(root: Option<&CapacityLedger>, pages: &[CapacityLedgerPage]) -> (Ledger, Vec<Violation>) {
    let mut findings = Findings::default();
    let ledger = read(root, pages, &mut findings);
    (ledger, findings.sorted())
}

/// As [`read_ledger`], noting faults among other findings.
pub(crate) fn read(root: Option<&CapacityLedger>, pages: &[CapacityLedgerPage], findings: &mut Findings) -> Ledger {
    match root {
        Some(root) => Reader::new(pages, findings).read(root),
        None => Ledger { whole: true, ..Ledger::default() },
    }
}

/// True when the root reaches a page that is not among these.
pub(crate) fn is_page_missing(root: Option<&CapacityLedger>, pages: &[CapacityLedgerPage]) -> bool {
    read_ledger(root, pages).1.iter().any(|violation| violation.code == reader::PAGE_MISSING)
}
