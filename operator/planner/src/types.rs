//! Capacity, time, bookings and requests. All amounts are integers; all times are Unix milliseconds.

use std::{collections::BTreeMap, fmt, sync::Arc};

use serde::{Deserialize, Serialize};

use crate::packing::Learned;

macro_rules! name_types {
    ($($(#[$doc:meta])* $name:ident),* $(,)?) => {$(
        $(#[$doc])*
        #[derive(Clone, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
        #[serde(transparent)]
        pub struct $name(Arc<str>);

        impl $name {
            /// Takes the text as it is.
            pub fn new(text: impl Into<Arc<str>>) -> Self {
                Self(text.into())
            }

            /// The text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl From<&str> for $name {
            fn from(text: &str) -> Self {
                Self::new(text)
            }
        }

        impl From<String> for $name {
            fn from(text: String) -> Self {
                Self::new(text)
            }
        }
    )*};
}

name_types! {
    /// Name of a `GpuPool`.
    PoolName,
    /// Name of a Node.
    NodeName,
    /// UID of a Node object: a node that is re-created under the same name has another.
    NodeUid,
    /// Name of a `Tenant`.
    TenantName,
    /// What is sold, such as `nvidia-h200-sxm`.
    Sku,
    /// Where it stands, such as `us-east`.
    Region,
    /// UID of a `GpuReservation`.
    ReservationUid,
    /// Id of a booking in the ledger, never used twice.
    BookingId,
    /// A node label that says where a node stands.
    TopologyKey,
    /// Name of a share of a device that a pool offers, such as `1g.18gb`.
    ProfileName,
}

/// A point in time: Unix milliseconds.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(transparent)]
pub struct TimeMs(pub i64);

impl TimeMs {
    /// This time plus a number of milliseconds; stops at the end of time instead of wrapping.
    pub fn plus(self, ms: i64) -> Self {
        Self(self.0.saturating_add(ms))
    }
}

/// A half-open interval [start, end) of use; no end: open-ended.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, PartialEq, Serialize)]
pub struct Interval {
    /// First instant.
    pub start: TimeMs,
    /// First instant after it.
    pub end: Option<TimeMs>,
}

/// Devices in thousandths, so that a share of one is an amount as well. A whole device is 1,000.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(transparent)]
pub struct MilliGpu(pub i64);

impl MilliGpu {
    /// So many whole devices.
    pub fn whole(devices: u32) -> Self {
        Self(i64::from(devices) * 1000)
    }
}

/// What a node has, or what a part of it takes.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, Hash, PartialEq, Serialize)]
pub struct Resources {
    /// Devices, in thousandths.
    pub gpu: MilliGpu,
    /// CPU, in thousandths of a core.
    pub cpu_milli: i64,
    /// Memory, in MiB.
    pub memory_mib: i64,
}

/// On which terms capacity is held.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
pub enum Tier {
    /// The owner's own use.
    Internal,
    /// A fixed term that nobody takes back.
    Committed,
    /// Open-ended, nobody takes it back.
    OnDemand,
    /// Open-ended and cheapest.
    Spot,
}

impl fmt::Display for Tier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Internal => "Internal",
            Self::Committed => "Committed",
            Self::OnDemand => "OnDemand",
            Self::Spot => "Spot",
        })
    }
}

/// A share of one device that a pool offers.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Profile {
    /// Its name, unique in the pool.
    pub name: ProfileName,
    /// How much of a device, in thousandths: 1 to 1,000.
    pub gpu: MilliGpu,
}

/// A pool as the planner sees it: valid, of one SKU.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Pool {
    /// Its name.
    pub name: PoolName,
    /// What it sells.
    pub sku: Sku,
    /// Where it stands.
    pub region: Region,
    /// Devices of each node.
    pub devices_per_node: u32,
    /// Topology levels, widest first.
    pub topology: Vec<TopologyKey>,
    /// Why nothing new is sold from it now (`sale.paused`, a bad grace cap, deletion), if so: a sentence for people.
    pub not_selling: Option<String>,
    /// Time kept free between two bookings of a device: grace cap plus two minutes.
    pub turnover_ms: i64,
    /// Shares of a device that it offers.
    #[serde(default)]
    pub profiles: Vec<Profile>,
    /// A plan only says what it would do, and nothing of the pool is held. Only of such pools shares are planned: there is no hold for them yet.
    #[serde(default)]
    pub observed: bool,
}

/// Whether a node can be booked now.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub enum NodeSale {
    /// Open to the owner, Ready, not cordoned, of the pool's device count: it can be booked, whole or in parts.
    Open,
    /// Held in parts, or being prepared for that, and else as [`Self::Open`]: what is left of it can be booked in parts.
    Shared,
    /// It cannot be booked now but is expected to be: new, in turnover, NotReady for a moment.
    NotNow,
    /// It cannot be booked until somebody mends it: cordoned, of another device count, quarantined.
    Broken,
}

/// Whether what a node holds must move.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub enum NodeHealth {
    /// It lives, or has not been away for long enough.
    Sound,
    /// It was NotReady for the pool's `repairAfter`, or must be given up for another reason; last known healthy at this time.
    Lost(TimeMs),
}

/// A node as the planner sees it.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Node {
    /// Its name.
    pub name: NodeName,
    /// UID of the Node object.
    pub uid: NodeUid,
    /// The pool whose label it has.
    pub pool: PoolName,
    /// What it offers.
    pub capacity: Resources,
    /// The value of each of the pool's topology levels, in that order; none where the label is missing.
    pub domains: Vec<Option<Arc<str>>>,
    /// Whether it can be booked.
    pub sale: NodeSale,
    /// Whether what it holds must move.
    pub health: NodeHealth,
    /// What the owner's running pods use of it: an implicit `Internal` booking.
    pub owner_use: Resources,
    /// Devices of parts whose bookings ended and that were not given back yet: their pods or containers may still be there.
    pub returning: u32,
}

/// A limit of a tenant on one SKU in one tier.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Quota {
    /// SKU.
    pub sku: Sku,
    /// Tier.
    pub tier: Tier,
    /// Devices at once.
    pub limit: u32,
}

/// A tenant as the planner sees it.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Tenant {
    /// Its name.
    pub name: TenantName,
    /// Whether it is the owner of the fleet.
    pub owner: bool,
    /// Limits; what is not listed is not limited.
    pub quotas: Vec<Quota>,
    /// Regions in which it may reserve; empty: all.
    pub regions: Vec<Region>,
}

/// Which reservation, by name and UID.
#[derive(Clone, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ReservationRef {
    /// UID.
    pub uid: ReservationUid,
    /// Namespace.
    pub namespace: Arc<str>,
    /// Name.
    pub name: Arc<str>,
    /// `metadata.generation` for which it was booked.
    pub generation: i64,
}

/// Which pools will do.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub enum Where {
    /// This pool.
    Pool(PoolName),
    /// Any pool of this SKU in this region.
    Sku(Sku, Region),
}

/// How much of each node is wanted.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub enum Shape {
    /// Whole nodes with nobody beside us; `per_node` devices each, or whatever the pool's nodes have.
    WholeNodes {
        /// Devices in all.
        count: u32,
        /// Devices of each node, if it matters.
        per_node: Option<u32>,
    },
    /// Some devices of nodes that others may have the rest of, on as few nodes as possible.
    Devices {
        /// Devices in all.
        count: u32,
        /// So many on each node, if it matters.
        per_node: Option<u32>,
    },
    /// Shares of devices, each of one device. They are planned, and not held: see [`Pool::observed`].
    Shares {
        /// How many.
        count: u32,
        /// Which of those that a pool offers.
        profile: ProfileName,
    },
}

/// A reservation that wants something: it waits, or it has a booking that is to end.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Request {
    /// Which reservation.
    pub reservation: ReservationRef,
    /// Whose namespace it is in; none: no Tenant lists the namespace.
    pub tenant: Option<TenantName>,
    /// Which pools will do.
    pub place: Where,
    /// How much.
    pub shape: Shape,
    /// On which terms.
    pub tier: Tier,
    /// How long, from the first `Active`; none: open-ended.
    pub duration_ms: Option<i64>,
    /// The topology level whose value all nodes must share.
    pub require: Option<TopologyKey>,
    /// When the object was created.
    pub created: TimeMs,
    /// How long it waits if it does not fit.
    pub wait_for_ms: i64,
    /// The object is being deleted: end its booking, or drop it.
    pub deleting: bool,
}

/// A part of a booking on one node, over a time.
#[derive(Clone, Debug, Deserialize, Eq, Hash, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Segment {
    /// Name of the node.
    pub node: NodeName,
    /// UID of the node.
    pub uid: NodeUid,
    /// Whole devices.
    pub devices: u32,
    /// Of so many that the node had when it was booked; only where others may have the rest. The parts of a node never add up to more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub of: Option<u32>,
    /// When the node was handed over; the meter of the segment starts here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<TimeMs>,
    /// When the node was lost; a segment without it is open and holds its devices.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<TimeMs>,
}

/// A promise in the ledger.
#[derive(Clone, Debug, Deserialize, Eq, Hash, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Booking {
    /// Its id.
    pub id: BookingId,
    /// For which reservation.
    pub reservation: ReservationRef,
    /// For which tenant.
    pub tenant: TenantName,
    /// From which pool.
    pub pool: PoolName,
    /// What was sold (a copy: the booking outlives its pool).
    pub sku: Sku,
    /// Where (a copy).
    pub region: Region,
    /// On which terms.
    pub tier: Tier,
    /// Whole devices in all.
    pub devices: u32,
    /// Whole nodes with nobody beside it.
    pub exclusive: bool,
    /// Topology level whose value all its nodes share, for replacements.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub require: Option<TopologyKey>,
    /// Length of the term from `active_at`; none: open-ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub duration_ms: Option<i64>,
    /// When it was committed.
    pub booked_at: TimeMs,
    /// When all nodes were handed over for the first time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub active_at: Option<TimeMs>,
    /// When it ends, once known; in the archive: when it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub end: Option<TimeMs>,
    /// Why it ended; only in the archive.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub end_reason: Option<EndReason>,
    /// Its nodes, past ones included.
    pub segments: Vec<Segment>,
}

/// Why a booking ended.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, PartialEq, Serialize)]
pub enum EndReason {
    /// Its term was over.
    TermOver,
    /// The reservation was deleted.
    Deleted,
}

/// All that a decision looks at. Order does not matter: the planner sorts what it must.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct Snapshot {
    /// All pools.
    pub pools: Vec<Pool>,
    /// All nodes with a pool's label.
    pub nodes: Vec<Node>,
    /// All tenants.
    pub tenants: Vec<Tenant>,
    /// All live bookings.
    pub bookings: Vec<Arc<Booking>>,
    /// All reservations that are neither final nor ended; those with a live booking included.
    pub requests: Vec<Request>,
    /// What was learned of the requests for parts of each pool's nodes. It decides which node a part is cut from.
    #[serde(default)]
    pub learned: BTreeMap<PoolName, Arc<Learned>>,
}
