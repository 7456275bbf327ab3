//! What gateways and the operator say to the usage service: records of requests, and segments of bookings that ended.

use serde::{Deserialize, Serialize};

use crate::Segment;
use crate::tokens::{GatewayName, UsageRecord};

/// The most records of one [`Shipment`], or segments of one [`Segments`].
pub const MOST_RECORDS: usize = 10_000;
/// The most bytes of one [`Shipment`] or [`Segments`], as JSON.
pub const MOST_BYTES: usize = 4 << 20;

/// What a gateway posts to `/v1/records`: closing records of its log, each as often as it likes.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Shipment {
    /// Who ships, for the service's log. A record says itself which gateway wrote it.
    pub gateway: GatewayName,
    /// At most [`MOST_RECORDS`].
    pub records: Vec<UsageRecord>,
}

/// What `/v1/records` answers once every record of a shipment is durable: each counts in one of the fields.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Receipt {
    /// Records that were not known before.
    pub stored: u64,
    /// Records that were stored already, just so.
    pub known: u64,
    /// Records of a request that another record is stored of, which stands.
    pub differing: u64,
    /// Records of days that the store has forgotten, which are not kept.
    #[serde(default)]
    pub forgotten: u64,
}

impl Receipt {
    /// This and another one together.
    #[must_use]
    pub fn and(&self, other: Self) -> Self {
        Self {
            stored: self.stored.saturating_add(other.stored),
            known: self.known.saturating_add(other.known),
            differing: self.differing.saturating_add(other.differing),
            forgotten: self.forgotten.saturating_add(other.forgotten),
        }
    }

    /// How many records it is for; no more than 64 bits hold.
    pub fn total(&self) -> u64 {
        self.stored.saturating_add(self.known).saturating_add(self.differing).saturating_add(self.forgotten)
    }
}

/// GPU time of a booking that ended: devices of one node over one stretch of time. Its booking and its number in it are its id.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct EndedSegment {
    /// The booking, whose id is never used again.
    pub booking: String,
    /// Which of the booking's segments it is, from 0 on.
    pub number: u32,
    /// Place of the booking among those of the archive, from 0 on, in the order in which they ended.
    pub place: u64,
    /// Node on which the devices were.
    pub node: String,
    /// What was held; its end is known.
    #[serde(flatten)]
    pub segment: Segment,
}

/// What the operator posts to `/v1/segments`: segments of bookings that ended, each as often as it likes. Without any, and without places, it is a question.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Segments {
    /// The archive whose places they have: an id that is made once for each.
    pub archive: String,
    /// Place of the first booking that these segments, and those posted since, are all of.
    #[serde(default)]
    pub from: i64,
    /// Place after the last booking that they are all of.
    #[serde(default)]
    pub to: i64,
    /// That nobody has what is before `from` any more, which ended before then, Unix milliseconds: if the store has not got it, it is lost.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub oldest_ms: Option<i64>,
    /// At most [`MOST_RECORDS`].
    pub segments: Vec<EndedSegment>,
}

/// What `/v1/segments` answers once every segment is durable.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct SegmentReceipt {
    /// What became of them.
    #[serde(flatten)]
    pub receipt: Receipt,
    /// What of the archive the store has by its own account. It is less than what was posted to another store, or to one that was brought back from a copy
    /// since.
    pub held: HeldArchive,
}

/// How far an archive is in the store.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct HeldArchive {
    /// Its id.
    pub archive: String,
    /// How many of its bookings, from the first on, are stored.
    pub bookings: i64,
    /// Some of them never came and are nowhere any more, and ended before then, Unix milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lost_before_ms: Option<i64>,
}

/// What `/v1/gpu` answers: sums of GPU time of bookings that ended.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct GpuUsage {
    /// The sums.
    pub rows: Vec<GpuRow>,
    /// How far the archives are stored that were asked about. Of none of them more is summed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub archives: Vec<HeldArchive>,
    /// What ended before then is forgotten, Unix milliseconds; none: nothing is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub forgotten_before_ms: Option<i64>,
}

/// A sum of GPU time. What was not grouped by is not there.
#[derive(Clone, Debug, Default, Deserialize, Eq, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct GpuRow {
    /// Who pays.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tenant: Option<String>,
    /// Namespace of the reservation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// The reservation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reservation: Option<String>,
    /// Which devices.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sku: Option<String>,
    /// On which terms.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tier: Option<String>,
    /// Devices times milliseconds.
    pub device_milliseconds: i64,
}
