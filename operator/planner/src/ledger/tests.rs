use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use rstest::rstest;
use serde_json::{Value, json};

use super::*;
use crate::{
    packing::Learned,
    types::{ReservationRef, Tier},
};

const DAY: i64 = 86_400_000;
/// 2026-11-21T00:00:00Z.
const NOON: TimeMs = TimeMs(1_795_219_200_000 + DAY / 2);

/// The API server: pages by name, never replaced. Names count up.
#[derive(Clone, Default)]
struct Store {
    pages: BTreeMap<PageName, Page>,
    names: u64,
}

impl Store {
    fn stage(&mut self, ledger: &Ledger, changes: &[Change], now: TimeMs) -> Result<Staged, StageError> {
        let staged = ledger.stage(changes, now, &mut |kind| Self::name(&mut self.names, kind))?;
        self.keep(ledger, &staged);
        Ok(staged)
    }

    fn commit(&mut self, ledger: &Ledger, changes: &[Change], now: TimeMs) -> Ledger {
        self.stage(ledger, changes, now).unwrap().next
    }

    fn name(names: &mut u64, kind: PageKind) -> PageName {
        *names += 1;
        // As long as the names of the operator: the kind and a UUID.
        format!("{}-0192aabb-ccdd-7eff-8000-{names:012}", format!("{kind:?}").to_lowercase()).into()
    }

    fn keep(&mut self, before: &Ledger, staged: &Staged) {
        for page in &staged.pages {
            assert!(page.data.len() <= MAX_PAGE_BYTES, "{} has {} bytes", page.name, page.data.len());
            assert!(self.pages.insert(page.name.clone(), page.clone()).is_none(), "{} is used twice", page.name);
        }
        assert_eq!(staged.root.generation, before.root().generation + 1);
        assert_eq!(staged.root.epoch, before.root().epoch);
        assert!(staged.root.committed_at >= before.root().committed_at);
        assert_eq!(&staged.root, staged.next.root());
        let (was, is) = (before.reachable(), staged.next.reachable());
        for name in &staged.garbage {
            assert!(was.contains(name), "{name} was not there");
            assert!(!is.contains(name), "{name} is still there");
        }
    }

    fn decode(&self, root: &Root) -> Result<Ledger, LoadError> {
        Ledger::decode(root, &mut |name| self.pages.get(name).cloned())
    }

    fn archive(&self, ledger: &Ledger, pool: &str) -> Vec<Arc<Booking>> {
        let mut walk = ArchiveWalk::new(pool.into(), ledger.archive_head(&pool.into()).cloned());
        let (mut bookings, mut last) = (Vec::new(), None);
        while let Some(name) = walk.wanted() {
            let (day, page) = walk.take(&self.pages[name]).unwrap();
            assert!(last.is_none_or(|last| day <= last), "days go back along the chain");
            last = Some(day);
            bookings.extend(page);
        }
        bookings
    }

    fn index(&self, ledger: &Ledger, pool: &str) -> Value {
        serde_json::from_str(&self.pages[&ledger.root().pools[&pool.into()]].data).unwrap()
    }
}

fn segment(node: &str) -> Segment {
    Segment { node: node.into(), uid: format!("uid-of-{node}").into(), devices: 8, of: None, from: None, to: None }
}

fn booking(id: &str, nodes: &[&str]) -> Booking {
    Booking {
        id: id.into(),
        reservation: ReservationRef {
            uid: format!("res-{id}").into(),
            namespace: "acme".into(),
            name: format!("train-{id}").into(),
            generation: 1,
        },
        tenant: "acme".into(),
        pool: "h200".into(),
        sku: "nvidia-h200-sxm".into(),
        region: "us-east".into(),
        tier: Tier::Committed,
        devices: u32::try_from(nodes.len()).unwrap() * 8,
        exclusive: true,
        require: None,
        duration_ms: Some(3_600_000),
        booked_at: TimeMs(0),
        active_at: None,
        end: None,
        end_reason: None,
        segments: nodes.iter().map(|node| segment(node)).collect(),
    }
}

fn book(id: &str, nodes: &[&str]) -> Change {
    Change::Book(booking(id, nodes))
}

fn hand_over(id: &str, nodes: &[&str], at: TimeMs) -> Change {
    let nodes = nodes.iter().map(|node| segment(node).uid).collect();
    Change::HandOver { booking: id.into(), nodes, at }
}

fn lose(id: &str, node: &str, at: TimeMs) -> Change {
    Change::Lose { booking: id.into(), node: segment(node).uid, at }
}

fn add(id: &str, node: &str) -> Change {
    Change::Add { booking: id.into(), segment: segment(node) }
}

fn end(id: &str, at: TimeMs) -> Change {
    Change::End { booking: id.into(), at, reason: EndReason::Deleted }
}

fn refused(result: Result<Staged, StageError>) -> (usize, Refused) {
    match result.unwrap_err() {
        StageError::Refused(refusal) => (refusal.change, refusal.reason),
        other => panic!("{other}"),
    }
}

#[test]
fn empty_ledger() {
    let (root, ledger) = Ledger::empty(NOON);
    assert_eq!(root, Root { format: 1, generation: 1, epoch: 0, committed_at: NOON, pools: BTreeMap::new() });
    assert_eq!(Store::default().decode(&root).unwrap(), ledger);
    assert!(ledger.is_empty());
}

/// What was learned is written with the next commit and read back, costs no page, and is no reason to refuse a ledger.
#[test]
fn what_was_learned_is_committed_with_what_is_decided() {
    let mut store = Store::default();
    let (_, ledger) = Ledger::empty(NOON);
    let mut learned = Learned::default();
    learned.observe(&crate::placement::part_item(1).unwrap());
    let learned = Arc::new(learned);
    assert!(ledger.taught(&"h200".into(), Arc::clone(&learned)).is_none(), "nothing was ever sold");
    let ledger = store.commit(&ledger, &[book("b-1", &["n1"])], NOON);
    let taught = ledger.taught(&"h200".into(), Arc::clone(&learned)).unwrap();
    assert_eq!(taught.root(), ledger.root());
    let pages = store.pages.len();
    let next = store.commit(&taught, &[book("b-2", &["n2"])], NOON);
    assert_eq!(store.pages.len(), pages + 2);
    let read = store.decode(next.root()).unwrap();
    assert_eq!(read, next);
    assert_eq!(read.learned().collect::<Vec<_>>(), [(&"h200".into(), &learned)]);
    assert_eq!(store.index(&next, "h200")["learned"], serde_json::to_value(&*learned).unwrap());

    let index = next.root().pools[&PoolName::from("h200")].clone();
    let page = store.pages.get_mut(&index).unwrap();
    page.data = page.data.replace("\"arrivals\":1", "\"arrivals\":\"many\"");
    let read = store.decode(next.root()).unwrap();
    assert!(read.learned().next().is_none() && read.len() == 2);

    let mut large = Learned::default();
    for milli in 1..=200 {
        large.observe(&crate::packing::Item::new(1, 1, 1, milli).unwrap());
    }
    assert!(next.taught(&"h200".into(), Arc::new(large)).is_none(), "it would not fit");
}

/// What a booking lives through, as the JSON that the format reference promises.
#[test]
fn pages_as_documented() {
    let mut store = Store::default();
    let (_, ledger) = Ledger::empty(NOON);
    let staged = store.stage(&ledger, &[book("b-1", &["n1", "n2"])], NOON.plus(5)).unwrap();
    assert_eq!(staged.pages.iter().map(|page| page.kind).collect::<Vec<_>>(), [PageKind::Bookings, PageKind::Index]);
    let ledger = store.commit(&staged.next, &[hand_over("b-1", &["n1"], NOON.plus(10))], NOON.plus(11));
    assert_eq!(ledger.booking(&"b-1".into()).unwrap().active_at, None);
    let ledger = store.commit(&ledger, &[hand_over("b-1", &["n1", "n2"], NOON.plus(20))], NOON.plus(21));
    let changes = [lose("b-1", "n2", NOON.plus(30)), add("b-1", "n3")];
    let ledger = store.commit(&ledger, &changes, NOON.plus(41));

    let index = store.index(&ledger, "h200");
    let page = index["bookings"][0].as_str().unwrap();
    assert_eq!(index, json!({"format": 1, "pool": "h200", "bookings": [page], "archived": 0}));
    let data: Value = serde_json::from_str(&store.pages[page].data).unwrap();
    let live = json!({
        "id": "b-1",
        "reservation": {"uid": "res-b-1", "namespace": "acme", "name": "train-b-1", "generation": 1},
        "tenant": "acme", "pool": "h200", "sku": "nvidia-h200-sxm", "region": "us-east",
        "tier": "Committed", "devices": 16, "exclusive": true, "durationMs": 3_600_000,
        "bookedAt": NOON.0 + 5, "activeAt": NOON.0 + 20, "end": NOON.0 + 3_600_020,
        "segments": [
            {"node": "n1", "uid": "uid-of-n1", "devices": 8, "from": NOON.0 + 10},
            {"node": "n2", "uid": "uid-of-n2", "devices": 8, "from": NOON.0 + 20, "to": NOON.0 + 30},
            {"node": "n3", "uid": "uid-of-n3", "devices": 8},
        ],
    });
    assert_eq!(data, json!({"format": 1, "pool": "h200", "bookings": [live]}));

    let next = store.commit(&ledger, &[end("b-1", NOON.plus(100))], NOON.plus(100));
    assert!(next.is_empty() && next.archived(&"h200".into()) == 1);
    let archive = next.archive_head(&"h200".into()).unwrap();
    assert_eq!(
        store.index(&next, "h200"),
        json!({"format": 1, "pool": "h200", "bookings": [], "archive": &**archive, "archived": 1})
    );
    let mut ended = live;
    ended["end"] = json!(NOON.0 + 100);
    ended["endReason"] = json!("Deleted");
    let data: Value = serde_json::from_str(&store.pages[archive].data).unwrap();
    assert_eq!(data, json!({"format": 1, "pool": "h200", "day": "2026-11-21", "bookings": [ended]}));
}

#[test]
fn finds_bookings_by_reservation_and_node() {
    let mut store = Store::default();
    let (_, ledger) = Ledger::empty(NOON);
    let ledger = store.commit(&ledger, &[book("b-1", &["n1"]), book("b-2", &["n2"])], NOON);
    let id = |booking: Option<&Arc<Booking>>| booking.map(|booking| booking.id.to_string());
    assert_eq!(id(ledger.booking_of(&"res-b-2".into())), Some("b-2".into()));
    assert_eq!(id(ledger.holders(&"uid-of-n1".into()).next()), Some("b-1".into()));
    assert_eq!(ledger.bookings().count(), 2);
    let ledger = store.commit(&ledger, &[lose("b-1", "n1", NOON), end("b-2", NOON)], NOON);
    assert_eq!(id(ledger.booking_of(&"res-b-2".into())), None);
    assert_eq!(id(ledger.holders(&"uid-of-n1".into()).next()), None);
    assert_eq!(ledger.len(), 1);
}

/// Each rule by its name; the change before it is fine and is not done either.
#[rstest]
#[case::same_node(book("b-9", &["n1"]), Refused::NodeHeld { node: "uid-of-n1".into(), by: "b-1".into() })]
#[case::node_booked_in_this_commit(book("b-9", &["n5"]), Refused::NodeHeld { node: "uid-of-n5".into(), by: "b-2".into() })]
#[case::node_twice(book("b-9", &["n7", "n7"]), Refused::NodeHeld { node: "uid-of-n7".into(), by: "b-9".into() })]
#[case::shared_beside_exclusive(
    Change::Book(Booking { exclusive: false, ..booking("b-9", &["n1"]) }),
    Refused::NodeHeld { node: "uid-of-n1".into(), by: "b-1".into() }
)]
#[case::other_pool(
    Change::Book(Booking { pool: "a100".into(), ..booking("b-9", &["n1"]) }),
    Refused::NodeHeld { node: "uid-of-n1".into(), by: "b-1".into() }
)]
#[case::id(book("b-1", &["n7"]), Refused::IdInUse)]
#[case::id_in_this_commit(book("b-2", &["n7"]), Refused::IdInUse)]
#[case::reservation(
    Change::Book(Booking { reservation: booking("b-1", &[]).reservation, ..booking("b-9", &["n7"]) }),
    Refused::ReservationBooked { reservation: "res-b-1".into(), by: "b-1".into() }
)]
#[case::times(Change::Book(Booking { active_at: Some(NOON), ..booking("b-9", &["n7"]) }), Refused::NotNew)]
#[case::devices(
    Change::Book(Booking { devices: 9, ..booking("b-9", &["n7"]) }),
    Refused::WrongDevices { found: 8, wanted: 9 }
)]
#[case::nothing(book("b-9", &[]), Refused::WrongDevices { found: 0, wanted: 0 })]
#[case::long(Change::Book(Booking { tenant: "x".repeat(9000).into(), ..booking("b-9", &["n7"]) }), Refused::TooLarge)]
#[case::long_node(book("b-9", &["n".repeat(2000).as_str()]), Refused::TooLarge)]
#[case::unknown(end("b-9", NOON), Refused::NotLive)]
#[case::unknown_hand_over(hand_over("b-9", &[], NOON), Refused::NotLive)]
#[case::foreign_node(hand_over("b-1", &["n5"], NOON), Refused::NoOpenSegment { node: "uid-of-n5".into() })]
#[case::lost_before(lose("b-1", "n2", NOON), Refused::NoOpenSegment { node: "uid-of-n2".into() })]
#[case::add_held(add("b-1", "n5"), Refused::NodeHeld { node: "uid-of-n5".into(), by: "b-2".into() })]
#[case::add_own(add("b-1", "n1"), Refused::NodeHeld { node: "uid-of-n1".into(), by: "b-1".into() })]
fn refuses(#[case] change: Change, #[case] reason: Refused) {
    let mut store = Store::default();
    let (_, ledger) = Ledger::empty(NOON);
    let ledger = store.commit(&ledger, &[book("b-1", &["n1", "n2"]), lose("b-1", "n2", NOON)], NOON);
    let fine = book("b-2", &["n5"]);
    assert_eq!(refused(store.stage(&ledger, &[fine.clone(), change.clone()], NOON)), (1, reason.clone()));

    let mut names = 1_000;
    let (staged, refusals) = ledger
        .stage_allowed(&[fine.clone(), change, add("b-1", "n6")], NOON, &mut |kind| Store::name(&mut names, kind))
        .unwrap();
    assert_eq!(refusals.into_iter().map(|r| (r.change, r.reason)).collect::<Vec<_>>(), [(1, reason)]);
    let expected = store.commit(&ledger, &[fine, add("b-1", "n6")], NOON);
    let ids = |ledger: &Ledger| ledger.bookings().cloned().collect::<Vec<_>>();
    assert_eq!(ids(&staged.next), ids(&expected));
}

#[test]
fn more_devices_than_booked_are_refused() {
    let mut store = Store::default();
    let (_, ledger) = Ledger::empty(NOON);
    let ledger = store.commit(&ledger, &[book("b-1", &["n1"])], NOON);
    let reason = refused(store.stage(&ledger, &[add("b-1", "n2")], NOON)).1;
    assert_eq!(reason, Refused::WrongDevices { found: 16, wanted: 8 });
}

/// A booking of so many devices of a node of eight.
fn part(id: &str, node: &str, devices: u32) -> Booking {
    let segments = vec![Segment { devices, of: Some(8), ..segment(node) }];
    Booking { exclusive: false, devices, segments, ..booking(id, &[node]) }
}

#[test]
fn parts_of_a_node_add_up_to_the_node_at_most() {
    let mut store = Store::default();
    let (_, ledger) = Ledger::empty(NOON);
    let ledger = store.commit(&ledger, &[Change::Book(part("b-1", "n1", 3)), Change::Book(part("b-2", "n1", 4))], NOON);
    let node: NodeUid = "uid-of-n1".into();
    assert_eq!(ledger.holders(&node).count(), 2);
    assert_eq!(store.decode(ledger.root()).unwrap(), ledger);
    let reason = refused(store.stage(&ledger, &[book("b-3", &["n1"])], NOON)).1;
    assert_eq!(reason, Refused::NodeHeld { node: node.clone(), by: "b-1".into() });
    let full = |wanted, of| Refused::NodeFull { node: node.clone(), wanted, held: 7, of };
    assert_eq!(refused(store.stage(&ledger, &[Change::Book(part("b-3", "n1", 2))], NOON)).1, full(2, 8));
    // A node that has fewer devices today has room for no more than that; one that has more has it for no more than it had.
    let with = |of| {
        let mut booking = part("b-3", "n1", 1);
        booking.segments[0].of = of;
        Change::Book(booking)
    };
    assert_eq!(refused(store.stage(&ledger, &[with(Some(4))], NOON)).1, full(1, 4));
    assert_eq!(refused(store.stage(&ledger, &[with(None)], NOON)).1, full(1, 0));
    store.commit(&ledger, &[with(Some(16))], NOON);
    // What is given back can be sold again, and only that.
    let ledger = store.commit(&ledger, &[end("b-1", NOON)], NOON);
    let ledger = store.commit(&ledger, &[Change::Book(part("b-4", "n1", 4))], NOON);
    let wide = Change::Add { booking: "b-4".into(), segment: Segment { devices: 1, of: Some(8), ..segment("n2") } };
    assert_eq!(refused(store.stage(&ledger, &[wide], NOON)).1, Refused::WrongDevices { found: 5, wanted: 4 });
    let ledger = store.commit(&ledger, &[lose("b-4", "n1", NOON)], NOON);
    let back = Change::Add { booking: "b-4".into(), segment: Segment { devices: 5, of: Some(8), ..segment("n1") } };
    assert!(matches!(refused(store.stage(&ledger, &[back], NOON)).1, Refused::NodeFull { .. }));
}

#[test]
fn an_oversold_node_does_not_load() {
    let mut store = Store::default();
    let (_, ledger) = Ledger::empty(NOON);
    let ledger = store.commit(&ledger, &[Change::Book(part("b-1", "n1", 3)), Change::Book(part("b-2", "n1", 4))], NOON);
    let page = store.pages.values_mut().find(|page| page.kind == PageKind::Bookings).unwrap();
    page.data = page.data.replace("\"devices\":4", "\"devices\":6");
    let error = store.decode(ledger.root()).unwrap_err();
    assert!(error.to_string().contains("beside 3, and it has 8"), "{error}");
}

#[test]
fn time_never_goes_back() {
    let mut store = Store::default();
    let (_, ledger) = Ledger::empty(NOON);
    let early = TimeMs(NOON.0 - 60_000);
    let ledger = store.commit(&ledger, &[book("b-1", &["n1"])], early);
    assert_eq!((ledger.root().committed_at, ledger.booking(&"b-1".into()).unwrap().booked_at), (NOON, NOON));
    // Steps of a life that a slow or a fast clock reports are between the booking and the commit.
    let ledger = store.commit(&ledger, &[hand_over("b-1", &["n1"], early)], NOON.plus(10));
    assert_eq!(ledger.booking(&"b-1".into()).unwrap().active_at, Some(NOON));
    let ledger = store.commit(&ledger, &[lose("b-1", "n1", NOON.plus(DAY))], NOON.plus(20));
    assert_eq!(ledger.booking(&"b-1".into()).unwrap().segments[0].to, Some(NOON.plus(20)));
    let (root, ledger) = ledger.collect(early);
    assert_eq!((root.committed_at, root.generation, root.epoch), (NOON.plus(20), 5, 1));
    assert_eq!(store.decode(&root).unwrap(), ledger);
    // A term that is over ends when it was over, however late that is noticed.
    let ledger = store.commit(&ledger, &[end("b-1", NOON.plus(2 * DAY))], NOON.plus(2 * DAY));
    assert_eq!(store.archive(&ledger, "h200")[0].end, Some(NOON.plus(3_600_000)));
}

#[test]
fn meter_of_a_booking() {
    let mut store = Store::default();
    let (_, ledger) = Ledger::empty(NOON);
    let at = |ms| NOON.plus(ms);
    let open_ended = Booking { duration_ms: None, ..booking("b-1", &["n1", "n2"]) };
    let mut ledger = store.commit(&ledger, &[Change::Book(open_ended)], at(0));
    let metered = |booking: &Booking| {
        usage(booking)
            .map(|u| (u.node.to_string(), u.from.0 - NOON.0, u.to.map(|to| to.0 - NOON.0)))
            .collect::<Vec<_>>()
    };
    let mut step = |changes: &[Change], now| {
        ledger = store.commit(&ledger, changes, at(now));
        let ended = || store.archive(&ledger, "h200").first().cloned();
        metered(&ledger.booking(&"b-1".into()).cloned().or_else(ended).unwrap())
    };
    assert_eq!(step(&[hand_over("b-1", &["n1"], at(10))], 10), []);
    assert_eq!(
        step(&[hand_over("b-1", &["n2"], at(20))], 20),
        [("n1".to_owned(), 20, None), ("n2".to_owned(), 20, None)]
    );
    step(&[lose("b-1", "n1", at(50)), add("b-1", "n3")], 90);
    step(&[hand_over("b-1", &["n3"], at(95))], 95);
    // A second loss, never handed over again.
    step(&[lose("b-1", "n2", at(96)), add("b-1", "n4")], 97);
    assert_eq!(
        step(&[end("b-1", at(99))], 99),
        [("n1".to_owned(), 20, Some(50)), ("n2".to_owned(), 20, Some(96)), ("n3".to_owned(), 95, Some(99))]
    );
}

#[test]
fn load_errors() {
    let mut store = Store::default();
    let (_, ledger) = Ledger::empty(NOON);
    let ledger = store.commit(&ledger, &[book("b-1", &["n1"]), book("b-2", &["n2"]), end("b-2", NOON)], NOON);
    let root = ledger.root();
    assert_eq!(check_stamp(root, root.generation), Ok(()));
    assert_eq!(check_stamp(root, 7), Err(LoadError::Older { found: 2, stamped: 7 }));
    let newer = Root { format: 2, ..root.clone() };
    assert_eq!(store.decode(&newer), Err(LoadError::Newer { what: "the root".into(), found: 2 }));
    for name in store.pages.keys() {
        let without =
            Store { pages: BTreeMap::from_iter(store.pages.clone().into_iter().filter(|(n, _)| n != name)), names: 0 };
        assert_eq!(without.decode(root), Err(LoadError::MissingPage { name: name.clone() }));
        let with = |data: &str| {
            let page = Page { data: data.into(), ..store.pages[name].clone() };
            let mut store = store.clone();
            store.pages.insert(name.clone(), page);
            store.decode(root).unwrap_err()
        };
        let what = format!("page {name}");
        assert_eq!(
            with(r#"{"format": 2, "pool": "h200", "new": []}"#),
            LoadError::Newer { what: what.clone(), found: 2 }
        );
        assert_eq!(
            with(&store.pages[name].data.replace(r#""format":1"#, r#""format":2"#)),
            LoadError::Newer { what, found: 2 }
        );
        assert!(matches!(with("{"), LoadError::Unreadable { .. }));
        assert!(matches!(with(&store.pages[name].data.replace("h200", "a100")), LoadError::Unreadable { .. }));
    }
    // A page in the place of another.
    let swapped =
        BTreeMap::from_iter(root.pools.keys().map(|pool| (pool.clone(), ledger.archive_head(pool).unwrap().clone())));
    assert!(matches!(store.decode(&Root { pools: swapped, ..root.clone() }), Err(LoadError::Unreadable { .. })));
}

/// A ledger that sells a node twice was not written by this code: nothing goes on from it.
#[test]
fn a_double_sale_does_not_load() {
    let mut store = Store::default();
    let (_, ledger) = Ledger::empty(NOON);
    let ledger = store.commit(&ledger, &[book("b-1", &["n1"]), book("b-2", &["n2"])], NOON);
    for page in store.pages.values_mut() {
        page.data = page.data.replace("uid-of-n2", "uid-of-n1");
    }
    let why = store.decode(ledger.root()).unwrap_err().to_string();
    assert!(why.contains("bookings b-1 and b-2 hold node uid-of-n1"), "{why}");
}

#[test]
fn pages_are_asked_for_in_rounds() {
    let mut store = Store::default();
    let (_, ledger) = Ledger::empty(NOON);
    let other = Change::Book(Booking { pool: "a100".into(), ..booking("b-3", &["n3"]) });
    let changes = [book("b-1", &["n1"]), book("b-2", &["n2"]), end("b-2", NOON), other];
    let ledger = store.commit(&ledger, &changes, NOON);
    let (mut have, mut rounds) = (BTreeMap::new(), Vec::new());
    loop {
        let needed = needed_pages(ledger.root(), &have).unwrap();
        if needed.is_empty() {
            break;
        }
        rounds.push(needed.len());
        have.extend(needed.into_iter().map(|name| (name.clone(), store.pages[&name].clone())));
    }
    assert_eq!(rounds, [2, 3]);
    assert_eq!(have.keys().cloned().collect::<BTreeSet<_>>(), ledger.reachable());
    assert_eq!(Ledger::decode(ledger.root(), &mut |name| have.get(name).cloned()).unwrap(), ledger);
}

fn long(prefix: &str, n: usize) -> String {
    format!("{prefix}-{n:06}-{}", "x".repeat(56))
}

/// 12,500 nodes with long names: far more than a page, live and in the archive. One lost node rewrites one part.
#[test]
fn a_gang_larger_than_a_page() {
    let mut store = Store::default();
    let (_, ledger) = Ledger::empty(NOON);
    let nodes: Vec<String> = (0..12_500).map(|n| long("node", n)).collect();
    let nodes: Vec<&str> = nodes.iter().map(String::as_str).collect();
    let ledger = store.commit(&ledger, &[book("b-1", &nodes), book("b-2", &["n1"])], NOON);
    assert_eq!(store.decode(ledger.root()).unwrap(), ledger);
    let ledger = store.commit(&ledger, &[hand_over("b-1", &nodes, NOON)], NOON);
    assert_eq!(store.decode(ledger.root()).unwrap(), ledger);
    assert_eq!(ledger.booking(&"b-1".into()).unwrap().active_at, Some(NOON));

    let staged = store.stage(&ledger, &[lose("b-1", nodes[6_000], NOON.plus(9))], NOON.plus(9)).unwrap();
    assert!(staged.pages.len() <= 3, "{} pages", staged.pages.len());
    assert_eq!(store.decode(&staged.root).unwrap(), staged.next);
    let staged = store.stage(&staged.next, &[add("b-1", "spare")], NOON.plus(9)).unwrap();
    assert!(staged.pages.len() <= 4, "{} pages", staged.pages.len());
    let ledger = staged.next;
    assert_eq!(store.decode(ledger.root()).unwrap(), ledger);
    let live = ledger.booking(&"b-1".into()).unwrap().clone();
    assert_eq!(live.segments.len(), 12_501);

    let ledger = store.commit(&ledger, &[end("b-2", NOON), end("b-1", NOON.plus(10))], NOON.plus(10));
    assert_eq!(store.decode(ledger.root()).unwrap(), ledger);
    let archive = store.archive(&ledger, "h200");
    assert_eq!(archive.iter().map(|b| b.id.as_str()).collect::<BTreeSet<_>>(), BTreeSet::from(["b-1", "b-2"]));
    let big = archive.iter().find(|booking| booking.id.as_str() == "b-1").unwrap();
    assert_eq!(big.segments, live.segments);
    assert!(ledger.reachable().len() == 2, "an index and the newest archive page");
}

#[test]
fn the_archive_is_a_chain_by_day() {
    let mut store = Store::default();
    let (_, mut ledger) = Ledger::empty(NOON);
    let mut expected = Vec::new();
    for n in 0..500_i64 {
        let (id, node) = (format!("b-{n:04}"), format!("n{n}"));
        // Three days, 166 ends each.
        let now = NOON.plus(n / 167 * DAY);
        ledger = store.commit(&ledger, &[book(&id, &[&node])], now);
        let staged = store.stage(&ledger, &[end(&id, now)], now).unwrap();
        assert!(staged.pages.len() <= 3, "{} pages", staged.pages.len());
        ledger = staged.next;
        expected.push(id);
    }
    expected.reverse();
    let ids: Vec<String> = store.archive(&ledger, "h200").iter().map(|b| b.id.to_string()).collect();
    assert_eq!(ids, expected);
    assert_eq!(ledger.archived(&"h200".into()), 500);

    let mut walk = ArchiveWalk::new("h200".into(), ledger.archive_head(&"h200".into()).cloned());
    let mut days = Vec::new();
    while let Some(name) = walk.wanted() {
        let page = &store.pages[name];
        assert!(page.data.len() <= TARGET_PAGE_BYTES + 256);
        days.push(walk.take(page).unwrap().0.to_string());
    }
    assert_eq!(days, ["2026-11-23", "2026-11-23", "2026-11-22", "2026-11-22", "2026-11-21", "2026-11-21"]);
    assert_eq!(walk.seen().len(), 6);
    // Any other page is not what the walk asked for.
    let mut walk = ArchiveWalk::new("h200".into(), ledger.archive_head(&"h200".into()).cloned());
    let other = store.pages.values().find(|page| page.kind == PageKind::Archive).unwrap();
    assert!(matches!(walk.take(other), Err(LoadError::Unreadable { .. })));
}

/// What is stored is told, only forward; and pages that go for it are not missed: a walk ends before them, and a collection finds them.
#[test]
fn stored_pages_may_go() {
    let mut store = Store::default();
    let pool = PoolName::from("h200");
    let (_, mut ledger) = Ledger::empty(NOON);
    for n in 0..500_i64 {
        let (id, node) = (format!("b-{n:04}"), format!("n{n}"));
        let now = NOON.plus(n / 167 * DAY);
        ledger = store.commit(&ledger, &[book(&id, &[&node])], now);
        ledger = store.commit(&ledger, &[end(&id, now)], now);
    }
    let tell = |store: &mut Store, ledger: &Ledger, note: StoredNote| {
        let names = &mut store.names;
        let staged = ledger.stage_stored(&pool, note, NOON, &mut |kind| Store::name(names, kind))?.unwrap();
        store.keep(ledger, &staged);
        assert_eq!(staged.pages.len(), 1, "an index and nothing else");
        assert_eq!(store.decode(&staged.root).unwrap(), staged.next);
        Some(staged.next)
    };
    let (archive, other) = (|| Arc::from("archive-id"), || Arc::from("other"));
    let named = tell(&mut store, &ledger, StoredNote::named(archive())).unwrap();
    assert_eq!(named.stored(&pool), Some(&Stored::new(archive())));
    let told = tell(&mut store, &named, StoredNote::stored(archive(), 400)).unwrap();
    for note in [
        StoredNote::named(archive()),
        StoredNote::stored(archive(), 400),
        StoredNote::stored(archive(), 501),
        StoredNote::pruned(archive(), 401),
        StoredNote::stored(other(), 500),
    ] {
        assert_eq!(tell(&mut store, &told, note.clone()), None, "{note:?}");
    }
    let nothing = StoredNote::named(archive());
    assert_eq!(ledger.stage_stored(&"a100".into(), nothing, NOON, &mut |_| unreachable!()), None);
    // A store that was put back has less.
    let less = tell(&mut store, &told, StoredNote::stored(archive(), 399)).unwrap();
    let told = tell(&mut store, &less, StoredNote::stored(archive(), 400)).unwrap();

    // Pages of about 90, two a day: of the third day's two and a part of the second's first not all is stored.
    let walk = |store: &Store, ledger: &Ledger, may_go: &dyn Fn(&str) -> bool| {
        let mut prunable = Prunable::new(500, ledger.stored(&pool).unwrap().bookings);
        let (mut walk, mut found) = (ArchiveWalk::of(ledger, &pool), 0);
        while let Some(name) = walk.wanted() {
            let (day, bookings) = walk.take(&store.pages[name]).unwrap();
            found += bookings.len();
            prunable.take(bookings.len(), may_go(&day), walk.is_even());
        }
        (prunable.pruned(), found, walk.seen().len())
    };
    let (all, found, pages) = walk(&store, &told, &|_| true);
    assert_eq!((found, pages), (500, 6));
    assert!((334..400).contains(&all), "{all}: the first page of the third day is only stored in part");
    assert_eq!(walk(&store, &told, &|day| day < "2026-11-22").0, 167);
    assert_eq!(walk(&store, &told, &|day| day != "2026-11-22").0, 167, "what is older than a page that stays may go");
    assert_eq!(walk(&store, &told, &|day| day != "2026-11-21").0, 0);
    let whole = tell(&mut store, &told, StoredNote::stored(archive(), 500)).unwrap();
    assert!(walk(&store, &whole, &|_| true).0 < 500, "the newest page stays");

    let pruned = tell(&mut store, &told, StoredNote::pruned(archive(), 334)).unwrap();
    assert_eq!(tell(&mut store, &pruned, StoredNote::stored(archive(), 333)), None, "pages of it are gone");
    assert_eq!(walk(&store, &pruned, &|_| true), (334, 166, 2), "two pages of the third day are left");
    // What comes does not forget it.
    let later = NOON.plus(2 * DAY);
    let next = store.commit(&pruned, &[book("b-9", &["n0"])], later);
    let next = store.commit(&next, &[end("b-9", later)], later);
    assert_eq!((next.archived(&pool), next.stored(&pool).unwrap().pruned), (501, 334));
}

#[rstest]
#[case::negative(json!({"archive": "a", "bookings": 0, "pruned": -1}))]
#[case::more_pruned_than_stored(json!({"archive": "a", "bookings": 0, "pruned": 1}))]
#[case::more_stored_than_ended(json!({"archive": "a", "bookings": 2, "pruned": 0}))]
fn a_wrong_count_of_what_is_stored_does_not_load(#[case] stored: Value) {
    let mut store = Store::default();
    let (_, ledger) = Ledger::empty(NOON);
    let ledger = store.commit(&ledger, &[book("b-1", &["n1"])], NOON);
    let ledger = store.commit(&ledger, &[end("b-1", NOON)], NOON);
    let mut index = store.index(&ledger, "h200");
    index["stored"] = stored;
    let name = Arc::clone(&ledger.root().pools[&"h200".into()]);
    store.pages.get_mut(&name).unwrap().data = index.to_string();
    assert!(matches!(store.decode(ledger.root()), Err(LoadError::Unreadable { .. })));
}

/// A generator of choices that is the same on every machine.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(self.0 >> 33).unwrap() % sides
    }
}

fn typical(n: usize) -> Booking {
    let id = format!("0192aabb-ccdd-7eff-9000-{n:012}");
    let node = format!("gpu-h200-us-east-{n:06}");
    let mut booking = booking(&id, &[&node]);
    booking.reservation.uid = format!("6e1f0d5e-58b6-4d5c-8c5e-{n:012}").into();
    booking.reservation.namespace = "team-research-nlp".into();
    booking.reservation.name = format!("finetune-{n}").into();
    booking.segments[0].uid = format!("77aa0d5e-58b6-4d5c-8c5e-{n:012}").into();
    booking
}

/// 50,000 live bookings in one pool: small commits touch few pages, and the index fits after any churn.
#[test]
fn fifty_thousand_bookings() {
    let mut store = Store::default();
    let (_, mut ledger) = Ledger::empty(NOON);
    let mut dice = Dice(1);
    let mut live: Vec<usize> = Vec::new();
    let mut made = 0;
    let mut arrive = |count: usize, live: &mut Vec<usize>| -> Vec<Change> {
        live.extend(made..made + count);
        made += count;
        (made - count..made).map(|n| Change::Book(typical(n))).collect()
    };
    let activate = |n: usize| {
        let booking = typical(n);
        let nodes = booking.segments.iter().map(|segment| segment.uid.clone()).collect();
        Change::HandOver { booking: booking.id, nodes, at: NOON }
    };
    let leave = |n: usize| Change::End { booking: typical(n).id, at: NOON, reason: EndReason::TermOver };
    let check_index = |store: &Store, ledger: &Ledger| -> (usize, usize) {
        let page = &store.pages[&ledger.root().pools[&"h200".into()]];
        (page.data.len(), store.index(ledger, "h200")["bookings"].as_array().unwrap().len())
    };
    // Superseded pages are dropped as a collection would.
    let commit = |store: &mut Store, ledger: &Ledger, changes: &[Change]| -> (Ledger, usize) {
        let staged = store.stage(ledger, changes, NOON).unwrap();
        staged.garbage.iter().for_each(|name| drop(store.pages.remove(name)));
        (staged.next, staged.pages.len())
    };

    while live.len() < 50_000 {
        let changes = arrive(1_000, &mut live);
        ledger = commit(&mut store, &ledger, &changes).0;
    }
    let (bytes, pages) = check_index(&store, &ledger);
    println!("50,000 booked: {pages} pages, index of {bytes} bytes");
    for some in live.chunks(1_000) {
        ledger = commit(&mut store, &ledger, &some.iter().map(|&n| activate(n)).collect::<Vec<_>>()).0;
    }
    let (bytes, pages) = check_index(&store, &ledger);
    println!("50,000 active: {pages} pages, index of {bytes} bytes");
    assert_eq!(store.decode(ledger.root()).unwrap(), ledger);

    // One at a time.
    let mut most = BTreeMap::new();
    for _ in 0..300 {
        let mut note = |what: &'static str, pages: usize| {
            let most = most.entry(what).or_insert(0);
            *most = pages.max(*most);
        };
        let changes = arrive(1, &mut live);
        let (next, pages) = commit(&mut store, &ledger, &changes);
        note("arrival", pages);
        let (next, pages) = commit(&mut store, &next, &[activate(live[live.len() - 1])]);
        note("hand-over", pages);
        let n = live[dice.roll(live.len())];
        let lost = typical(n);
        let node = lost.segments[0].uid.clone();
        let (next, pages) = match next.booking(&lost.id).unwrap().segments.iter().any(|s| s.to.is_some()) {
            true => (next, 0),
            false => commit(
                &mut store,
                &next,
                &[
                    Change::Lose { booking: lost.id.clone(), node, at: NOON },
                    Change::Add { booking: lost.id, segment: segment(&format!("spare-{n}")) },
                ],
            ),
        };
        note("loss", pages);
        let n = live.swap_remove(dice.roll(live.len()));
        let (next, pages) = commit(&mut store, &next, &[leave(n)]);
        note("end", pages);
        ledger = next;
    }
    println!("most pages of one commit: {most:?}");
    assert!(most.values().all(|&pages| pages <= 8), "{most:?}");

    // Churn: everything is replaced once, at random.
    for _ in 0..5 {
        let mut changes: Vec<Change> = (0..10_000).map(|_| leave(live.swap_remove(dice.roll(live.len())))).collect();
        changes.extend(arrive(10_000, &mut live));
        ledger = commit(&mut store, &ledger, &changes).0;
        let (bytes, pages) = check_index(&store, &ledger);
        assert!(bytes <= MAX_PAGE_BYTES && pages <= 1_100, "{pages} pages, {bytes} bytes");
    }
    let (bytes, pages) = check_index(&store, &ledger);
    println!("after churn: {pages} pages, index of {bytes} bytes");
    // Nearly all leave, one here and one there: the pages that are left are not nearly empty.
    while live.len() > 1_000 {
        let changes: Vec<Change> = (0..7_000).map(|_| leave(live.swap_remove(dice.roll(live.len())))).collect();
        ledger = commit(&mut store, &ledger, &changes).0;
    }
    let (_, pages) = check_index(&store, &ledger);
    println!("1,000 left: {pages} pages");
    assert!(pages <= 24, "{pages} pages");
    assert_eq!(ledger.len(), 1_000);
    assert_eq!(store.decode(ledger.root()).unwrap(), ledger);
}

/// Ends come one by one: pages that empty are joined on the way.
#[test]
fn pages_that_empty_are_joined() {
    let mut store = Store::default();
    let (_, mut ledger) = Ledger::empty(NOON);
    let mut dice = Dice(2);
    let mut live: Vec<usize> = (0..5_000).collect();
    ledger = store.commit(&ledger, &live.iter().map(|&n| Change::Book(typical(n))).collect::<Vec<_>>(), NOON);
    let pages = |store: &Store, ledger: &Ledger| store.index(ledger, "h200")["bookings"].as_array().unwrap().len();
    let full = pages(&store, &ledger);
    while live.len() > 50 {
        let n = live.swap_remove(dice.roll(live.len()));
        let change = Change::End { booking: typical(n).id, at: NOON, reason: EndReason::TermOver };
        let staged = store.stage(&ledger, &[change], NOON).unwrap();
        assert!(staged.pages.len() <= 4, "{} pages", staged.pages.len());
        ledger = staged.next;
        let bound = 2 * full * live.len() / 5_000 + 2;
        assert!(pages(&store, &ledger) <= bound, "{} pages of {} bookings", pages(&store, &ledger), live.len());
    }
    assert_eq!(pages(&store, &ledger), 1);
}

#[test]
fn a_full_index_refuses_bookings_and_lets_them_end() {
    let mut store = Store::default();
    let (_, mut ledger) = Ledger::empty(NOON);
    // Bookings of which no two fit into a page: 150 nodes of long names.
    let nodes = |n: usize| (0..95).map(|m| long("node", n * 1_000 + m)).collect::<Vec<_>>();
    let mut n = 0;
    let reason = loop {
        let changes: Vec<Change> = (n..n + 50)
            .map(|n| book(&format!("b-{n}"), &nodes(n).iter().map(String::as_str).collect::<Vec<_>>()))
            .collect();
        match ledger.stage(&changes, NOON, &mut |kind| Store::name(&mut store.names, kind)) {
            Ok(staged) => ledger = staged.next,
            Err(StageError::Refused(refusal)) => break refusal.reason,
            Err(other) => panic!("{other}"),
        }
        n += 50;
    };
    assert_eq!(reason, Refused::PoolFull);
    println!("full with {} bookings of 95 long nodes", ledger.len());
    let ends: Vec<Change> = ledger.bookings().map(|b| end(b.id.as_str(), NOON)).collect();
    let staged = ledger.stage(&ends, NOON, &mut |kind| Store::name(&mut store.names, kind)).unwrap();
    assert!(staged.next.is_empty());
}

/// What an independent reader makes of the pages: it follows the format reference and shares no code with the ledger.
fn read_independently(store: &Store, root: &Root) -> (BTreeMap<String, Value>, BTreeMap<String, Value>) {
    let data = |name: &str| -> Value { serde_json::from_str(&store.pages[name].data).unwrap() };
    let collect = |pages: &[Value]| {
        let mut bookings = BTreeMap::new();
        let mut parts: BTreeMap<(String, u64), Vec<Value>> = BTreeMap::new();
        let mut counts = BTreeMap::new();
        for page in pages {
            for booking in page["bookings"].as_array().unwrap() {
                assert!(bookings.insert(booking["id"].as_str().unwrap().to_owned(), booking.clone()).is_none());
            }
            for (id, count) in page["split"].as_object().into_iter().flatten() {
                counts.insert(id.clone(), count.as_u64().unwrap());
            }
            for part in page["continued"].as_array().into_iter().flatten() {
                let key = (part["booking"].as_str().unwrap().to_owned(), part["first"].as_u64().unwrap());
                assert!(parts.insert(key, part["segments"].as_array().unwrap().clone()).is_none());
            }
        }
        for ((id, first), more) in parts {
            let segments = bookings.get_mut(&id).unwrap()["segments"].as_array_mut().unwrap();
            assert_eq!(segments.len() as u64, first);
            segments.extend(more);
        }
        for (id, count) in counts {
            assert_eq!(bookings[&id]["segments"].as_array().unwrap().len() as u64, count);
        }
        bookings
    };
    let (mut live, mut ended) = (BTreeMap::new(), BTreeMap::new());
    for index in root.pools.values() {
        let index = data(index);
        let pages: Vec<Value> =
            index["bookings"].as_array().unwrap().iter().map(|n| data(n.as_str().unwrap())).collect();
        live.extend(collect(&pages));
        let mut chain = Vec::new();
        let mut next = index["archive"].as_str().map(str::to_owned);
        while let Some(name) = next {
            let page = data(&name);
            next = page["previous"].as_str().map(str::to_owned);
            chain.push(page);
        }
        let bookings = collect(&chain);
        assert_eq!(bookings.len() as u64, index["archived"].as_u64().unwrap());
        ended.extend(bookings);
    }
    (live, ended)
}

/// Random changes, most of them allowed: large and small bookings in three pools on 40 nodes.
fn random_changes(dice: &mut Dice, ledger: &Ledger, made: &mut usize) -> Vec<Change> {
    let mut ids: Vec<BookingId> = ledger.bookings().map(|booking| booking.id.clone()).collect();
    ids.sort();
    (0..1 + dice.roll(6))
        .map(|_| {
            let at = NOON.plus(i64::try_from(dice.roll(1_000)).unwrap());
            let any = (!ids.is_empty()).then(|| ids[dice.roll(ids.len())].clone());
            let known = any.and_then(|id| ledger.booking(&id).cloned());
            match (dice.roll(8), known) {
                (0, Some(known)) => Change::End { booking: known.id.clone(), at, reason: EndReason::TermOver },
                (1 | 2, Some(known)) => {
                    let open = known.segments.iter().filter(|segment| segment.to.is_none());
                    let nodes = open.map(|segment| segment.uid.clone()).filter(|_| dice.roll(4) > 0).collect();
                    Change::HandOver { booking: known.id.clone(), nodes, at }
                }
                (3, Some(known)) => {
                    let node = known.segments[dice.roll(known.segments.len())].uid.clone();
                    Change::Lose { booking: known.id.clone(), node, at }
                }
                (4, Some(known)) => {
                    Change::Add { booking: known.id.clone(), segment: segment(&long("node", 1 + dice.roll(4_000))) }
                }
                _ => {
                    *made += 1;
                    let nodes = if dice.roll(6) == 0 { 50 + dice.roll(400) } else { 1 + dice.roll(3) };
                    let first = dice.roll(4_000);
                    let nodes: Vec<String> = (0..nodes).map(|n| long("node", first + n)).collect();
                    let mut new = booking(&format!("b-{made}"), &nodes.iter().map(String::as_str).collect::<Vec<_>>());
                    new.pool = ["h200", "a100", "l40s"][dice.roll(3)].into();
                    new.exclusive = dice.roll(3) > 0;
                    if !new.exclusive {
                        for segment in &mut new.segments {
                            (segment.devices, segment.of) = (1 + u32::try_from(dice.roll(5)).unwrap(), Some(8));
                        }
                        new.devices = new.segments.iter().map(|segment| segment.devices).sum();
                    }
                    new.duration_ms = (dice.roll(2) == 0).then_some(500);
                    Change::Book(new)
                }
            }
        })
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever is committed in whatever order: what is read back is what was staged, nothing is lost, nothing is sold twice.
    #[test]
    fn what_is_written_is_read_back(seed in any::<u64>()) {
        let mut dice = Dice(seed);
        let mut store = Store::default();
        let (_, mut ledger) = Ledger::empty(NOON);
        let (mut made, mut booked) = (0, BTreeSet::new());
        for _ in 0..40 {
            let now = TimeMs(NOON.0 + i64::try_from(dice.roll(6)).unwrap() * DAY / 2 - DAY);
            let changes = random_changes(&mut dice, &ledger, &mut made);
            let mut names = store.names;
            let (staged, refusals) = ledger.stage_allowed(&changes, now, &mut |kind| Store::name(&mut names, kind)).unwrap();
            store.names = names;
            store.keep(&ledger, &staged);
            let kept: Vec<Change> = changes.iter().enumerate().filter(|(n, _)| refusals.iter().all(|r| r.change != *n)).map(|(_, c)| c.clone()).collect();
            let again = ledger.stage(&kept, now, &mut |kind| Store::name(&mut names, kind)).unwrap();
            prop_assert_eq!(again.pages.len(), staged.pages.len());
            booked.extend(kept.iter().filter(|c| matches!(c, Change::Book(_))).map(|c| c.booking().to_string()));
            ledger = staged.next;
            prop_assert_eq!(&store.decode(ledger.root()).unwrap(), &ledger);

            let (live, ended) = read_independently(&store, ledger.root());
            let all: BTreeSet<String> = live.keys().chain(ended.keys()).cloned().collect();
            prop_assert_eq!(live.len() + ended.len(), booked.len());
            prop_assert_eq!(&all, &booked);
            let mut held: BTreeMap<&str, Vec<(bool, u64)>> = BTreeMap::new();
            for booking in live.values() {
                for segment in booking["segments"].as_array().unwrap().iter().filter(|s| s.get("to").is_none()) {
                    let one = (booking["exclusive"].as_bool().unwrap(), segment["devices"].as_u64().unwrap());
                    held.entry(segment["uid"].as_str().unwrap()).or_default().push(one);
                }
            }
            prop_assert!(held.values().all(|holders| holders.len() == 1 || holders.iter().all(|(exclusive, _)| !exclusive)));
            prop_assert!(held.values().all(|holders| holders.iter().map(|(_, devices)| devices).sum::<u64>() <= 8));
            let walked: usize = ["h200", "a100", "l40s"].iter().map(|pool| store.archive(&ledger, pool).len()).sum();
            prop_assert_eq!(walked, ended.len());
            // No two pages of a pool would fit into one.
            for pool in ledger.root().pools.keys() {
                let index = store.index(&ledger, pool.as_str());
                let mut sizes: Vec<usize> = index["bookings"].as_array().unwrap().iter().map(|n| store.pages[n.as_str().unwrap()].data.len()).collect();
                sizes.sort_unstable();
                if let [a, b, ..] = sizes[..] {
                    prop_assert!(a + b > TARGET_PAGE_BYTES - 1_024, "{} and {}", a, b);
                }
            }
        }
    }
}
