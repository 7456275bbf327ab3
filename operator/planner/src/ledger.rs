//! The format and the protocol of the booking ledger (docs/ARCHITECTURE.md, "The booking ledger").
//!
//! Must not: do I/O, read a clock, or make a name by itself. Objects come in as values, pages and a root go out as values.
//!
//! # Format reference (format 1)
//!
//! This is all that a reader needs who shares no code with this module. Times are Unix milliseconds, days are UTC days
//! `YYYY-MM-DD`. Fields marked `?` are absent when they have no value (never `null`). Readers ignore fields that they do not know
//! within a format that they know, and refuse a `format` above theirs, in the root and in each page.
//!
//! **Root**: `CapacityLedger/cluster`, `spec`: `format`, `generation` (+1 each swap), `epoch` (+1 each collection), `committedAt`
//! (never goes back), `pools`: per pool the name of its index page. A pool that was never sold from is not there.
//!
//! **Pages**: `CapacityLedgerPage` objects, `spec`: `format`, `kind` and `pool` (the same as inside), and `data`: one JSON object in a string of at most 65,536 bytes.
//!
//! `data` of an `Index` page. One per pool:
//!
//! ```json
//! {"format": 1, "pool": "h200-us-east",
//!  "bookings": ["bookings-0192...", "bookings-0193..."],
//!  "archive": "archive-0194...",
//!  "archived": 12,
//!  "stored": {"archive": "0195...", "bookings": 10, "pruned": 4},
//!  "learned": {"arrivals": 4000, "steppedAt": 3904, "counted": 4000, "gpuMilli": 4000000, "restricted": [],
//!              "types": [[1000, 12000, 49152, 4000, 1099511627776, 1099511627776]]}}
//! ```
//!
//! - `bookings`: names of all pages with live bookings of the pool, sorted. A live booking is in exactly one of them, or split.
//! - `archive`?: name of the newest archive page; absent while nothing of the pool has ended.
//! - `archived`: how many bookings of the pool have ended so far; the chain below holds exactly so many, less `stored.pruned`.
//! - `stored`?: what the usage service has of them (docs/adr/0016): `archive` is the id by which it knows this archive, made once and never changed;
//!   the GPU time of the first `bookings` of them, in the order in which they ended, is stored there, as that store said last; and the pages of the first `pruned` of those are
//!   gone, so that a walk ends where it has found the others. 0 <= `pruned` <= `bookings` <= `archived`.
//! - `learned`?: what the packer knew when this was decided ([`Learned`](crate::packing::Learned)). It promises nothing: a reader who cannot
//!   read it goes on without.
//!
//! `data` of a `Bookings` page:
//!
//! ```json
//! {"format": 1, "pool": "h200-us-east",
//!  "bookings": [{
//!    "id": "b-0195...",
//!    "reservation": {"uid": "6e1f...", "namespace": "acme", "name": "finetune", "generation": 1},
//!    "tenant": "acme", "pool": "h200-us-east", "sku": "nvidia-h200-sxm", "region": "us-east",
//!    "tier": "Committed", "devices": 16, "exclusive": true, "require": "example.com/rack",
//!    "durationMs": 86400000, "bookedAt": 1795200000000, "activeAt": 1795200060000, "end": 1795286460000,
//!    "segments": [
//!      {"node": "gpu-7", "uid": "77aa...", "devices": 8, "from": 1795200060000, "to": 1795203600000},
//!      {"node": "gpu-8", "uid": "78aa...", "devices": 8, "from": 1795200060000},
//!      {"node": "gpu-9", "uid": "79aa...", "devices": 8}]}],
//!  "split": {"b-0195...": 12500},
//!  "continued": [{"booking": "b-0196...", "first": 95, "segments": [{"node": "gpu-100", "uid": "...", "devices": 8}]}]}
//! ```
//!
//! - `bookings`: sorted by `id`. `tier` is `Internal`, `Committed`, `OnDemand` or `Spot`; `require`? a topology label key; `durationMs`?
//!   the length of the term (absent: open-ended); `bookedAt` the `committedAt` of its commit; `activeAt`? when all its devices were handed
//!   over for the first time; `end`? when it ends, once known (`activeAt` + `durationMs`); `endReason`? only in the archive:
//!   `TermOver` or `Deleted`.
//! - `exclusive`: it has its nodes whole, with nobody beside it; else its segments are parts of nodes, and say in `of` how many devices the node
//!   had when the part was booked.
//! - `segments`: its nodes, past ones included, in the order in which they came; segments are only ever appended and changed in place.
//!   A segment without `to`? is *open*: it holds its `devices` of the node `uid`. `from`? is when the node was handed over to the
//!   holder, `to`? when it was last known healthy before it was lost. `from` <= `to`.
//! - `split`?: bookings of this page that go on elsewhere: id and number of all their segments. Their `segments` here are the first
//!   ones, from index 0 on.
//! - `continued`?: parts of such bookings, in this pool's other pages or in this one: `segments` from index `first` on. The parts of a
//!   booking cover 0 to its number without gap or overlap. Sorted by `booking`, then `first`.
//!
//! `data` of an `Archive` page: bookings that ended, in the order in which they ended. A chain, newest page first:
//!
//! ```json
//! {"format": 1, "pool": "h200-us-east", "day": "2026-11-21", "previous": "archive-0193...",
//!  "bookings": [{"id": "b-0190...", "end": 1795286460000, "endReason": "TermOver"}]}
//! ```
//!
//! - `day`: the UTC day of the commits (`committedAt`) whose ends this page holds; never later than that of the page after it.
//! - `previous`?: the page before it, which may be pruned; absent: this is the first page of the pool's archive.
//! - `bookings`, `split`?, `continued`? as above, with `end` and `endReason` always set. A split booking begins in an older page and goes
//!   on in newer ones (or the same) of the same `day`.
//!
//! **What holds in every ledger.** Live bookings of all pools together: no `id` twice, no reservation `uid` twice; a node `uid` with an
//! open segment of an `exclusive` booking has no other open segment; the open segments of a node `uid` that are parts of it have at most the
//! least of their `of` together; open segments of a booking have at most its `devices` together;
//! a live booking has no `endReason`.
//!
//! **The meter.** A segment counts its `devices` from the later of its `from` and the booking's `activeAt` until its `to`, else the
//! booking's `end`, else now. A segment without `from`, and a booking without `activeAt`, count nothing; nor do intervals that are
//! empty or negative. For a live booking, an `end` in the future stops at now; an `end` in the past stops there.
//!
//! # The protocol
//!
//! *Commit*: read the root (resourceVersion r) and its pages, [`Ledger::stage`], create all [`Staged::pages`] in their order, replace the
//! root with precondition r. A conflict, or a crash, leaves garbage pages and nothing else; after a conflict everything is read again and
//! decided again. An unknown answer (timeout) to the swap is settled by reading the root: same generation and pools as
//! [`Staged::root`] means that it is ours, for page names are never used twice.
//!
//! *Collection*: list all pages; swap the root for that of [`Ledger::collect`] (raised epoch), which makes every commit in flight fail;
//! then delete what was listed *before* the swap and is not [`Ledger::reachable`] from the swapped root. What is created after the swap was
//! not listed. A collection that stops half way has deleted garbage only.
//!
//! *Writes outside the ledger* (nodes): read the target (resourceVersion t), read the root consistently, decide on it (or give up if its
//! generation is not that of the decision), write with precondition t, stamp the generation. [`check_stamp`] refuses a root that is older than
//! a stamp.
//!
//! # Size
//!
//! A page is filled to [`TARGET_PAGE_BYTES`]. What does not fit into the emptiest page starts another; a page that shrank is joined with the
//! emptiest other one if both fit into one. So any two booking pages of a pool hold more than [`TARGET_PAGE_BYTES`] together, and
//! a pool of n bytes of bookings has fewer than 2n/48 KiB + 1 pages: 50,000 bookings of one node are named by an index of at most 48 KiB.
//! A change of one booking of up to 16 KiB creates at most 5 pages: its page (two if it outgrew the page), the one joined with it, the index and
//! the head of the archive. Bookings above 16 KiB are split, and a change touches the parts that it changes.

mod archive;
mod data;
mod error;
mod pack;
mod shards;
mod stage;
mod state;
mod stored;
#[cfg(test)]
mod tests;
mod usage;

use std::{collections::BTreeMap, sync::Arc};

use serde::{Deserialize, Serialize};

pub use archive::{ArchivePage, ArchiveWalk};
pub use error::{LoadError, Refusal, Refused, StageError};
pub use stage::Staged;
pub use state::{Ledger, check_stamp, needed_pages};
pub use stored::{Prunable, Stored, StoredNote};
pub use usage::{Usage, usage};

use crate::types::{Booking, BookingId, EndReason, NodeUid, PoolName, Segment, TimeMs};

/// Format that this code writes and the newest that it reads.
pub const FORMAT: i32 = 1;
/// A page's `data` is at most so many bytes.
pub const MAX_PAGE_BYTES: usize = 65_536;
/// Pages are filled so far, which leaves room for what their bookings get later (times, mostly).
pub const TARGET_PAGE_BYTES: usize = 49_152;
/// A booking larger than this is split into parts of about this size.
pub const PART_BYTES: usize = 16_384;
/// What was learned of a pool's requests ([`Ledger::taught`]) is at most so many bytes: more than 60 sizes of requests.
pub const LEARNED_BYTES: usize = 4096;
/// The root names at most so many pools.
pub const MAX_POOLS: usize = 256;

/// Name of a page, never used twice.
pub type PageName = Arc<str>;

/// The root, as it stands in `CapacityLedger/cluster`.
#[derive(Clone, Debug, Default, Deserialize, Eq, Hash, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Root {
    /// Format of root and pages.
    pub format: i32,
    /// Swaps so far.
    pub generation: i64,
    /// Collections so far.
    pub epoch: i64,
    /// Time of the last commit; never goes back.
    pub committed_at: TimeMs,
    /// Index page of each pool.
    pub pools: BTreeMap<PoolName, PageName>,
}

/// What a page holds.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
pub enum PageKind {
    /// Names of booking pages, head of the archive.
    Index,
    /// Live bookings.
    Bookings,
    /// Bookings that ended.
    Archive,
}

/// A page to be created.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct Page {
    /// Its name.
    pub name: PageName,
    /// What it holds.
    pub kind: PageKind,
    /// Of which pool.
    pub pool: PoolName,
    /// JSON, at most [`MAX_PAGE_BYTES`].
    pub data: String,
}

/// One step in the life of a booking.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub enum Change {
    /// A new booking.
    Book(Booking),
    /// A node was handed over: its open segment's `from` (if it has none). When no open segment is without `from` and the booking holds all its
    /// devices for the first time, `active_at` becomes `at` and, with a term, `end` becomes `at` + term, in the same change.
    HandOver {
        /// Which booking.
        booking: BookingId,
        /// Which nodes.
        nodes: Vec<NodeUid>,
        /// When.
        at: TimeMs,
    },
    /// A node was lost: its open segment's `to`.
    Lose {
        /// Which booking.
        booking: BookingId,
        /// Which node.
        node: NodeUid,
        /// Last known healthy.
        at: TimeMs,
    },
    /// A node is added in place of a lost one.
    Add {
        /// Which booking.
        booking: BookingId,
        /// The new segment.
        segment: Segment,
    },
    /// The booking ends and moves to the archive.
    End {
        /// Which booking.
        booking: BookingId,
        /// When.
        at: TimeMs,
        /// Why.
        reason: EndReason,
    },
}
