//! A copy of the whole ledger: the root and every page that it reaches, archive chains included, with a checksum. What `ledger export` writes,
//! `ledger verify` checks and `ledger restore` puts back.
//!
//! Version 1 is one JSON object. `checksum` is `sha256:` and the SHA-256 of the same object, written without spaces in the order of
//! the fields below, with an empty `checksum`.

use std::{collections::BTreeMap, fmt::Write as _, sync::Arc};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};
use spillway_crds::{CapacityLedger, CapacityLedgerPage, CapacityLedgerPageSpec, CapacityLedgerSpec, names};
use spillway_manifests::ledger::{kind_label, read_page, read_root};
use spillway_planner::{
    Booking,
    ledger::{ArchiveWalk, Ledger, LoadError, Page, PageName, Root},
};
use spillway_verify::{Violation, check_ledger};

use crate::error::Error;

/// What the file says that it is.
const KIND: &str = "SpillwayLedgerCopy";
/// The version that is written, and the newest that is read.
const VERSION: u32 = 1;

/// A copy of the ledger.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Copy {
    /// Always `SpillwayLedgerCopy`.
    pub(crate) kind: String,
    /// Version of this file's form.
    pub(crate) version: u32,
    /// When it was made, RFC 3339.
    pub(crate) exported_at: String,
    /// UID of namespace `kube-system`: which cluster it is of.
    pub(crate) cluster: String,
    /// The highest generation stamped on a node when it was made.
    pub(crate) highest_stamp: i64,
    /// The root.
    pub(crate) root: CapacityLedgerSpec,
    /// Every page that the root reaches.
    pub(crate) pages: Vec<PageCopy>,
    /// Pools, tenants and the reservations of live bookings as they can be applied again: after a loss of etcd they are gone as well.
    pub(crate) manifests: Vec<Value>,
    /// See the module.
    pub(crate) checksum: String,
}

/// A page.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct PageCopy {
    /// Its name.
    pub(crate) name: String,
    /// What it holds.
    pub(crate) spec: CapacityLedgerPageSpec,
}

impl PageCopy {
    /// The page of an object.
    pub(crate) fn of(object: &CapacityLedgerPage) -> Self {
        Self { name: object.metadata.name.clone().unwrap_or_default(), spec: object.spec.clone() }
    }

    /// The object of the page.
    pub(crate) fn object(&self) -> CapacityLedgerPage {
        let kind = kind_label(read_page(&CapacityLedgerPage::new(&self.name, self.spec.clone())).kind);
        CapacityLedgerPage {
            metadata: ObjectMeta {
                name: Some(self.name.clone()),
                labels: Some([(names::PAGE_KIND_LABEL.to_owned(), kind.to_owned())].into()),
                ..ObjectMeta::default()
            },
            spec: self.spec.clone(),
        }
    }
}

/// A ledger that was read whole: what stands, and how many bookings of it ended.
#[derive(Debug)]
pub(crate) struct Whole {
    /// Bookings that stand, by id.
    pub(crate) live: Vec<Arc<Booking>>,
    /// Bookings that ended, newest first within a pool.
    pub(crate) ended: Vec<Arc<Booking>>,
    /// Names of all pages that the root reaches.
    pub(crate) reached: Vec<PageName>,
}

/// Reads a ledger whole from pages, with the operator's own decoder: what it takes the operator takes.
pub(crate) fn decode(root: &Root, pages: &BTreeMap<PageName, Page>) -> Result<Whole, LoadError> {
    let ledger = Ledger::decode(root, &mut |name| pages.get(name).cloned())?;
    let mut reached = ledger.reachable();
    let mut ended = Vec::new();
    for pool in root.pools.keys() {
        let mut walk = ArchiveWalk::of(&ledger, pool);
        while let Some(name) = walk.wanted().cloned() {
            let page = pages.get(&name).ok_or(LoadError::MissingPage { name })?;
            ended.extend(walk.take(page)?.1);
        }
        reached.extend(walk.seen().iter().cloned());
    }
    let mut live: Vec<Arc<Booking>> = ledger.bookings().cloned().collect();
    live.sort_by(|a, b| a.id.cmp(&b.id));
    Ok(Whole { live, ended, reached: reached.into_iter().collect() })
}

/// Pages by name, as the decoder wants them.
pub(crate) fn by_name(objects: impl IntoIterator<Item = CapacityLedgerPage>) -> BTreeMap<PageName, Page> {
    objects.into_iter().map(|object| read_page(&object)).map(|page| (Arc::clone(&page.name), page)).collect()
}

impl Copy {
    /// A copy without its checksum yet.
    pub(crate) fn new(
        exported_at: String,
        cluster: String,
        highest_stamp: i64,
        root: CapacityLedgerSpec,
        pages: Vec<PageCopy>,
        manifests: Vec<Value>,
    ) -> Self {
        let checksum = String::new();
        Self {
            kind: KIND.to_owned(),
            version: VERSION,
            exported_at,
            cluster,
            highest_stamp,
            root,
            pages,
            manifests,
            checksum,
        }
    }

    /// The text of the file, checksum included.
    pub(crate) fn write(mut self) -> Result<String, Error> {
        self.checksum = self.sum()?;
        let mut text = serde_json::to_string_pretty(&self).map_err(|source| Error::Copy { why: source.to_string() })?;
        text.push('\n');
        Ok(text)
    }

    /// Reads the text of a file: its form, its version, its checksum. Not yet what the pages say.
    pub(crate) fn read(text: &str) -> Result<Self, Error> {
        let bad = |why: String| Error::Copy { why };
        let value: Value = serde_json::from_str(text).map_err(|source| bad(format!("it is no JSON: {source}")))?;
        if value.get("kind").and_then(Value::as_str) != Some(KIND) {
            return Err(bad(format!("it is no file of `spillway ledger export`: its kind is not {KIND}")));
        }
        let version = value.get("version").and_then(Value::as_u64).unwrap_or_default();
        if version != u64::from(VERSION) {
            return Err(bad(format!(
                "it has version {version}, and this spillway reads version {VERSION}: use the spillway that wrote it"
            )));
        }
        let copy: Self = serde_json::from_value(value).map_err(|source| bad(source.to_string()))?;
        let sum = copy.sum()?;
        if sum != copy.checksum {
            return Err(bad(format!(
                "its content has checksum {sum} and it says {}: it was damaged or changed, take another copy",
                copy.checksum
            )));
        }
        Ok(copy)
    }

    fn sum(&self) -> Result<String, Error> {
        let bare = Self { checksum: String::new(), ..self.clone() };
        let bytes = serde_json::to_vec(&bare).map_err(|source| Error::Copy { why: source.to_string() })?;
        let mut text = "sha256:".to_owned();
        for byte in Sha256::digest(&bytes) {
            // Writing into a String cannot fail.
            let _ = write!(text, "{byte:02x}");
        }
        Ok(text)
    }

    /// The root as an object.
    pub(crate) fn root_object(&self) -> CapacityLedger {
        CapacityLedger::new(names::LEDGER_NAME, self.root.clone())
    }

    /// The pages as objects.
    pub(crate) fn page_objects(&self) -> Vec<CapacityLedgerPage> {
        self.pages.iter().map(PageCopy::object).collect()
    }

    /// Reads what the pages say.
    pub(crate) fn decode(&self) -> Result<Whole, LoadError> {
        decode(&read_root(&self.root_object()), &by_name(self.page_objects()))
    }

    /// What is wrong with the ledger by itself, found by the checker that shares no code with the operator.
    pub(crate) fn faults(&self) -> Vec<Violation> {
        check_ledger(Some(&self.root_object()), &self.page_objects())
    }
}

#[cfg(test)]
pub(crate) mod tests;
