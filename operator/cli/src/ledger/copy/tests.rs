use std::sync::Arc;

use rstest::rstest;
use spillway_manifests::ledger::{page_object, root_spec};
use spillway_planner::{
    EndReason, TimeMs,
    ledger::{Change, Ledger, PageKind},
};

use super::*;
use crate::sample::{HOUR, NOW, booking};

/// A copy of a ledger with a live booking on each of these nodes, and one that ended.
pub(crate) fn copy(live: &[(&str, &str, &str)]) -> Copy {
    let mut names = 0;
    let mut name = |kind: PageKind| -> PageName {
        names += 1;
        Arc::from(format!("{}-0192aabb-ccdd-7eff-8000-{names:012}", kind_label(kind)))
    };
    let (_, ledger) = Ledger::empty(TimeMs(NOW - 3 * HOUR));
    let mut changes: Vec<Change> =
        live.iter().map(|(id, reservation, node)| Change::Book(fresh(booking(id, reservation, node)))).collect();
    changes.push(Change::Book(fresh(booking("over", "old", "node-9"))));
    let first = ledger.stage(&changes, TimeMs(NOW), &mut name).unwrap();
    let end = Change::End { booking: "over".into(), at: TimeMs(NOW + 1000), reason: EndReason::Deleted };
    let second = first.next.stage(&[end], TimeMs(NOW + 1000), &mut name).unwrap();
    let pages: BTreeMap<PageName, Page> =
        first.pages.iter().chain(&second.pages).map(|page| (Arc::clone(&page.name), page.clone())).collect();
    let whole = decode(&second.root, &pages).unwrap();
    let reached = whole.reached.iter().map(|name| PageCopy::of(&page_object(&pages[name]))).collect();
    let at = "2026-11-21T08:00:01Z".to_owned();
    Copy::new(at, "uid-cluster".to_owned(), second.root.generation, root_spec(&second.root), reached, Vec::new())
}

/// As it is when it is booked.
fn fresh(booking: Booking) -> Booking {
    let mut booking = Booking { booked_at: TimeMs(NOW), active_at: None, end: None, ..booking };
    for segment in &mut booking.segments {
        segment.from = None;
    }
    booking
}

#[test]
fn what_is_written_is_read_back() {
    let copy = copy(&[("b-1", "train", "node-1")]);
    assert!(copy.faults().is_empty(), "{:?}", copy.faults());
    let again = Copy::read(&copy.clone().write().unwrap()).unwrap();
    let whole = again.decode().unwrap();
    assert_eq!(whole.live.len(), 1);
    assert_eq!(whole.ended.len(), 1);
    assert_eq!((again.root, again.pages), (copy.root, copy.pages));
}

#[rstest]
#[case::another_number("\"highestStamp\": ", "\"highestStamp\": 1", "was damaged or changed")]
#[case::another_node("node-1", "node-2", "was damaged or changed")]
#[case::a_newer_version("\"version\": 1", "\"version\": 2", "use the spillway that wrote it")]
#[case::another_file("SpillwayLedgerCopy", "List", "no file of `spillway ledger export`")]
#[case::half_of_it("\"pages\"", "", "no JSON")]
fn what_was_changed_is_refused(#[case] from: &str, #[case] to: &str, #[case] expected: &str) {
    let text = copy(&[("b-1", "train", "node-1")]).write().unwrap();
    assert!(text.contains(from), "{text}");
    let changed = if to.is_empty() { text.split(from).next().unwrap().to_owned() } else { text.replace(from, to) };
    let error = Copy::read(&changed).unwrap_err().to_string();
    assert!(error.contains(expected), "{error}");
}

#[test]
fn a_missing_page_is_found() {
    let mut copy = copy(&[("b-1", "train", "node-1")]);
    copy.pages.retain(|page| page.spec.kind != spillway_crds::PageKind::Archive);
    assert!(matches!(copy.decode(), Err(LoadError::MissingPage { .. })));
    let codes: Vec<&str> = copy.faults().iter().map(|fault| fault.code).collect();
    assert!(codes.contains(&"PageMissing"), "{codes:?}");
}
