//! Records that come together: the first of each id, in the order of ids, so that two services that store the same ones cannot wait for each other.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use spillway_metering::shipping::Receipt;
use spillway_metering::tokens::{RequestId, UsageRecord};

use super::{Error, MOST_NAME_BYTES};

/// A batch whose records every store takes.
#[derive(Debug, Default)]
pub(super) struct Batch {
    records: BTreeMap<RequestId, UsageRecord>,
    /// Copies in the batch itself.
    known: u64,
    /// Ids of other records of a request that is in the batch before.
    differing: Vec<RequestId>,
}

impl Batch {
    pub(super) fn new(records: Vec<UsageRecord>) -> Result<Self, Error> {
        let mut batch = Self::default();
        for record in records {
            let opening = &record.opening;
            let names = [
                ("tenant", opening.tenant.as_str()),
                ("namespace", opening.namespace.as_str()),
                ("endpoint", opening.endpoint.as_str()),
                ("model", opening.model.as_str()),
                ("version", opening.version.as_str()),
                ("key", opening.key.as_str()),
                ("gateway", opening.gateway.as_str()),
                ("replica", opening.replica.as_str()),
            ];
            for (field, name) in names {
                if name.len() > MOST_NAME_BYTES || name.contains('\0') {
                    return Err(Error::Name { id: opening.id, field });
                }
            }
            match batch.records.entry(opening.id) {
                Entry::Vacant(place) => {
                    place.insert(record);
                }
                Entry::Occupied(first) if *first.get() == record => batch.known = batch.known.saturating_add(1),
                Entry::Occupied(_) => batch.differing.push(record.opening.id),
            }
        }
        Ok(batch)
    }

    /// Those that are not forgotten, by their ids, and how many are.
    pub(super) fn kept(&self, forgotten_before_ms: Option<i64>) -> (Vec<&UsageRecord>, u64) {
        let kept: Vec<&UsageRecord> = self
            .records
            .values()
            .filter(|record| forgotten_before_ms.is_none_or(|before_ms| record.ending.ended_ms >= before_ms))
            .collect();
        let forgotten = self.records.len().saturating_sub(kept.len());
        (kept, count(forgotten))
    }

    /// The receipt for the whole batch, where of those [kept](Self::kept) `stored` are stored and these differ; and the ids of all that differ.
    pub(super) fn receipt(&self, stored: usize, forgotten: u64, differ: Vec<RequestId>) -> (Receipt, Vec<RequestId>) {
        let had = count(self.records.len())
            .saturating_sub(forgotten)
            .saturating_sub(count(stored))
            .saturating_sub(count(differ.len()));
        let differing = [differ, self.differing.clone()].concat();
        let receipt = Receipt {
            stored: count(stored),
            known: self.known.saturating_add(had),
            differing: count(differing.len()),
            forgotten,
        };
        (receipt, differing)
    }
}

pub(super) fn count(length: usize) -> u64 {
    u64::try_from(length).unwrap_or(u64::MAX)
}
