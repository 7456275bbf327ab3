//! What a gateway and the usage service say to each other of records.

use serde::{Deserialize, Serialize};

use crate::tokens::{GatewayName, UsageRecord};

/// The most records of one [`Shipment`].
pub const MOST_RECORDS: usize = 10_000;
/// The most bytes of one [`Shipment`], as JSON.
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
    /// How many records it is for; no more than 64 bits hold.
    pub fn total(&self) -> u64 {
        self.stored.saturating_add(self.known).saturating_add(self.differing).saturating_add(self.forgotten)
    }
}
