//! Root and pages of the ledger: the planner's values as the API's objects, and back.

use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use spillway_crds::{
    self as crds, CapacityLedger, CapacityLedgerPage, CapacityLedgerPageSpec, CapacityLedgerSpec,
    names::PAGE_KIND_LABEL,
};
use spillway_planner::{
    TimeMs,
    ledger::{FORMAT, Page, PageKind, Root},
};

/// The kind of a page in its label and in its name.
pub fn kind_label(kind: PageKind) -> &'static str {
    match kind {
        PageKind::Index => "index",
        PageKind::Bookings => "bookings",
        PageKind::Archive => "archive",
    }
}

/// The root as the object's spec says it.
pub fn root_spec(root: &Root) -> CapacityLedgerSpec {
    CapacityLedgerSpec {
        format: root.format,
        generation: root.generation,
        epoch: root.epoch,
        committed_at: root.committed_at.0,
        pools: root
            .pools
            .iter()
            .map(|(name, index)| crds::LedgerPool { name: name.to_string(), index: index.to_string() })
            .collect(),
    }
}

/// The root that an object holds.
pub fn read_root(object: &CapacityLedger) -> Root {
    let spec = &object.spec;
    Root {
        format: spec.format,
        generation: spec.generation,
        epoch: spec.epoch,
        committed_at: TimeMs(spec.committed_at),
        pools: spec.pools.iter().map(|pool| (pool.name.as_str().into(), Arc::from(pool.index.as_str()))).collect(),
    }
}

/// The object of a page.
pub fn page_object(page: &Page) -> CapacityLedgerPage {
    CapacityLedgerPage {
        metadata: ObjectMeta {
            name: Some(page.name.to_string()),
            labels: Some([(PAGE_KIND_LABEL.to_owned(), kind_label(page.kind).to_owned())].into()),
            ..ObjectMeta::default()
        },
        spec: CapacityLedgerPageSpec {
            format: FORMAT,
            kind: match page.kind {
                PageKind::Index => crds::PageKind::Index,
                PageKind::Bookings => crds::PageKind::Bookings,
                PageKind::Archive => crds::PageKind::Archive,
            },
            pool: page.pool.to_string(),
            data: page.data.clone(),
        },
    }
}

/// The page that an object holds.
pub fn read_page(object: &CapacityLedgerPage) -> Page {
    Page {
        name: Arc::from(object.metadata.name.as_deref().unwrap_or_default()),
        kind: match object.spec.kind {
            crds::PageKind::Index => PageKind::Index,
            crds::PageKind::Bookings => PageKind::Bookings,
            crds::PageKind::Archive => PageKind::Archive,
        },
        pool: object.spec.pool.as_str().into(),
        data: object.spec.data.clone(),
    }
}
