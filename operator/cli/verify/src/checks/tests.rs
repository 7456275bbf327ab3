//! A clean world, and one mutation for each finding: the test fails without the check.

use rstest::rstest;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::check;
use crate::{Settings, Severity, World};

const NOW: i64 = 1_795_300_000_000;
const HOUR: i64 = 3_600_000;
/// Long before any settling.
const BOOKED: i64 = NOW - 2 * HOUR;
const ACTIVE: i64 = BOOKED + 60_000;

/// A world as JSON, so that a test can bend any part of it.
///
/// Nodes: `held` (acme's), `free` (unsold, the owner's pod on it), `shut` (closed, its booking `b-old` ended an hour ago).
struct Setup {
    root: Value,
    index: Value,
    live: Value,
    archive: Value,
    pools: Value,
    reservations: Value,
    tenants: Value,
    nodes: Value,
    pods: Value,
    namespaces: Value,
    now_ms: i64,
    /// When the pages were written.
    written: i64,
    /// What becomes of the pages at the last moment.
    bend_pages: fn(&mut Vec<Value>),
}

fn time(ms: i64) -> String {
    jiff::Timestamp::from_millisecond(ms).unwrap().to_string()
}

fn taint(value: &str, effect: &str) -> Value {
    json!({"key": "spillway.dev/hold", "value": value, "effect": effect})
}

fn node(name: &str, taints: &[Value], labels: &Value, since: i64) -> Value {
    let mut all = json!({"spillway.dev/pool": "lab"});
    all.as_object_mut().unwrap().extend(labels.as_object().unwrap().clone());
    json!({
        "metadata": {
            "name": name, "uid": format!("uid-{name}"), "labels": all, "creationTimestamp": time(BOOKED - HOUR),
            "annotations": {"spillway.dev/generation": "7", "spillway.dev/hold-since": since.to_string()},
        },
        "spec": {"taints": taints},
        "status": {"capacity": {"nvidia.com/gpu": "8"}},
    })
}

fn pod(namespace: &str, name: &str, node: &str, bound: i64) -> Value {
    json!({
        "metadata": {"namespace": namespace, "name": name, "creationTimestamp": time(bound - 1000)},
        "spec": {"nodeName": node, "containers": []},
        "status": {"phase": "Running", "conditions": [
            {"type": "PodScheduled", "status": "True", "lastTransitionTime": time(bound)},
        ]},
    })
}

fn namespace(name: &str, role: &str, tenant: &str) -> Value {
    json!({"metadata": {
        "name": name, "uid": format!("uid-{name}"), "creationTimestamp": time(BOOKED - HOUR),
        "labels": {"spillway.dev/role": role, "spillway.dev/holder": format!("uid-{name}"), "spillway.dev/tenant": tenant},
    }})
}

fn tenant(name: &str, namespace: &str, owner: bool) -> Value {
    json!({
        "metadata": {"name": name, "generation": 1, "creationTimestamp": time(BOOKED - HOUR)},
        "spec": {"namespaces": [namespace], "owner": owner},
        "status": {"observedGeneration": 1},
    })
}

fn booking(id: &str, reservation: &str, node: &str) -> Value {
    json!({
        "id": id,
        "reservation": {"uid": format!("uid-{reservation}"), "namespace": "acme", "name": reservation, "generation": 1},
        "tenant": "acme", "pool": "lab", "sku": "lab-gpu", "region": "here", "tier": "Committed", "devices": 8, "exclusive": true,
        "durationMs": 3 * HOUR, "bookedAt": BOOKED, "activeAt": ACTIVE, "end": ACTIVE + 3 * HOUR,
        "segments": [{"node": node, "uid": format!("uid-{node}"), "devices": 8, "from": ACTIVE - 1000}],
    })
}

fn reservation(name: &str, phase: &str, booking: &Value) -> Value {
    json!({
        "metadata": {"namespace": "acme", "name": name, "uid": format!("uid-{name}"), "generation": 1},
        "spec": {"pool": "lab", "devices": {"count": 8}, "tier": "Committed", "term": {"duration": "3h"}},
        "status": {"phase": phase, "booking": booking},
    })
}

fn booking_status(id: &str) -> Value {
    json!({"id": id, "pool": "lab", "bookedAt": time(BOOKED)})
}

impl Setup {
    fn clean() -> Self {
        let mut old = booking("b-old", "old", "shut");
        old["durationMs"] = json!(HOUR);
        old["end"] = json!(ACTIVE + HOUR);
        old["endReason"] = json!("TermOver");
        let mut ended = reservation("old", "Ended", &booking_status("b-old"));
        ended["status"]["meter"] = json!({"deviceMilliseconds": 8 * HOUR});
        let held = json!({"hold.spillway.dev/acme": "true", "acme.hold.spillway.dev/run": "true"});
        Self {
            root: json!({
                "metadata": {"name": "cluster"},
                "spec": {
                    "format": 1, "generation": 7, "epoch": 1, "committedAt": ACTIVE + HOUR,
                    "pools": [{"name": "lab", "index": "index-1"}],
                },
            }),
            index: json!({"format": 1, "pool": "lab", "bookings": ["bookings-1"], "archive": "archive-1", "archived": 1}),
            live: json!({"format": 1, "pool": "lab", "bookings": [booking("b-run", "run", "held")]}),
            archive: json!({"format": 1, "pool": "lab", "day": "2026-11-21", "bookings": [old]}),
            pools: json!([{
                "metadata": {"name": "lab"},
                "spec": {"sku": "lab-gpu", "region": "here", "provenance": "Owned",
                    "devices": {"resource": "nvidia.com/gpu", "perNode": 8}},
            }]),
            reservations: json!([reservation("run", "Active", &booking_status("b-run")), ended]),
            tenants: json!([tenant("acme", "acme", false), tenant("house", "house", true)]),
            nodes: json!([
                node("held", &[taint("uid-acme", "NoSchedule"), taint("uid-acme", "NoExecute")], &held, ACTIVE),
                node("free", &[taint("unsold", "NoSchedule")], &json!({}), BOOKED),
                node("shut", &[taint("closed", "NoSchedule"), taint("closed", "NoExecute")], &json!({}), ACTIVE + HOUR),
            ]),
            pods: json!([
                pod("acme", "train", "held", ACTIVE + 1000),
                pod("house", "own", "free", ACTIVE),
                pod("kube-system", "plugin", "held", BOOKED),
                pod("kube-system", "plugin-2", "shut", BOOKED),
                pod("elsewhere", "web", "not-in-a-pool", BOOKED),
            ]),
            namespaces: json!([namespace("acme", "tenant", "acme"), namespace("house", "owner", "house"),
                {"metadata": {"name": "kube-system", "uid": "uid-kube-system"}},
                {"metadata": {"name": "elsewhere", "uid": "uid-elsewhere"}}]),
            now_ms: NOW,
            written: ACTIVE + HOUR,
            bend_pages: |_| {},
        }
    }

    fn world(self) -> World {
        let page = |name: &str, kind: &str, data: &Value| {
            json!({
                "metadata": {"name": name, "creationTimestamp": time(self.written)},
                "spec": {"format": 1, "kind": kind, "pool": "lab", "data": data.to_string()},
            })
        };
        let mut pages = vec![
            page("index-1", "Index", &self.index),
            page("bookings-1", "Bookings", &self.live),
            page("archive-1", "Archive", &self.archive),
            page("bookings-garbage", "Bookings", &json!({"left": "by a crash"})),
        ];
        (self.bend_pages)(&mut pages);
        World {
            began_ms: self.now_ms,
            now_ms: self.now_ms,
            settings: Settings::default(),
            root: read(self.root),
            pages: read(Value::Array(pages)),
            pools: read(self.pools),
            reservations: read(self.reservations),
            tenants: read(self.tenants),
            nodes: read(self.nodes),
            pods: read(self.pods),
            namespaces: read(self.namespaces),
        }
    }
}

fn read<T: DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).unwrap()
}

/// Findings as `1 Code object`, warnings with a leading `warning`.
fn found(setup: Setup) -> Vec<String> {
    check(&setup.world())
        .iter()
        .map(|violation| {
            let severity = if violation.severity == Severity::Warning { "warning " } else { "" };
            format!("{severity}{} {} {}", violation.invariant, violation.code, violation.object)
        })
        .collect()
}

fn push(list: &mut Value, item: Value) {
    list.as_array_mut().unwrap().push(item);
}

fn remove(object: &mut Value, key: &str) {
    object.as_object_mut().unwrap().remove(key);
}

fn set_data(page: &mut Value, data: &Value) {
    page["spec"]["data"] = json!(data.to_string());
}

/// Another live booking, of reservation `more`, on a node.
fn add_live(setup: &mut Setup, node: &str) {
    push(&mut setup.live["bookings"], booking("b-more", "more", node));
    push(&mut setup.reservations, reservation("more", "Active", &booking_status("b-more")));
}

/// Another booking that ended, of reservation `past`, on a node.
fn add_archived(setup: &mut Setup, node: &str) {
    let mut past = booking("b-past", "past", node);
    past["durationMs"] = json!(HOUR);
    past["end"] = json!(ACTIVE + HOUR);
    past["endReason"] = json!("TermOver");
    push(&mut setup.archive["bookings"], past);
    setup.index["archived"] = json!(2);
    push(&mut setup.reservations, reservation("past", "Ended", &booking_status("b-past")));
}

/// Node `held` is still acme's while its booking ended at a time.
fn end_run(setup: &mut Setup, end: i64) {
    let mut run = setup.live["bookings"][0].take();
    setup.live["bookings"] = json!([]);
    run["end"] = json!(end);
    run["endReason"] = json!("Deleted");
    push(&mut setup.archive["bookings"], run);
    setup.index["archived"] = json!(2);
    setup.root["spec"]["committedAt"] = json!(end);
    setup.written = end;
    setup.reservations[0]["status"]["phase"] = json!("Ending");
}

#[test]
fn a_clean_world_has_no_findings() {
    assert_eq!(check(&Setup::clean().world()), vec![]);
}

#[test]
fn an_empty_world_has_no_findings() {
    assert_eq!(check(&World { now_ms: NOW, ..World::default() }), vec![]);
}

/// Invariant 1: the ledger is whole and readable.
#[rstest]
#[case::root_missing(|s: &mut Setup| s.root = Value::Null, &["1 LedgerMissing CapacityLedger/cluster"])]
#[case::root_older(|s: &mut Setup| s.root["spec"]["generation"] = json!(6), &["1 LedgerOlderThanNodes CapacityLedger/cluster"])]
#[case::root_format(|s: &mut Setup| s.root["spec"]["format"] = json!(2), &["1 UnknownFormat CapacityLedger/cluster"])]
#[case::pool_twice(
    |s: &mut Setup| push(&mut s.root["spec"]["pools"], json!({"name": "lab", "index": "index-1"})),
    &["1 PageTwice CapacityLedgerPage/index-1", "1 PoolTwice CapacityLedger/cluster"]
)]
#[case::index_missing(|s: &mut Setup| s.bend_pages = |p| { p.remove(0); }, &["1 PageMissing CapacityLedgerPage/index-1"])]
#[case::bookings_missing(|s: &mut Setup| s.bend_pages = |p| { p.remove(1); }, &["1 PageMissing CapacityLedgerPage/bookings-1"])]
#[case::archive_missing(|s: &mut Setup| s.bend_pages = |p| { p.remove(2); }, &["1 PageMissing CapacityLedgerPage/archive-1"])]
#[case::chain_broken(|s: &mut Setup| s.archive["previous"] = json!("archive-0"), &["1 PageMissing CapacityLedgerPage/archive-0"])]
#[case::chain_is_a_ring(|s: &mut Setup| s.archive["previous"] = json!("archive-1"), &["1 PageTwice CapacityLedgerPage/archive-1"])]
#[case::chain_incomplete(|s: &mut Setup| s.index["archived"] = json!(2), &["1 ArchiveIncomplete GpuPool/lab"])]
#[case::page_named_twice(
    |s: &mut Setup| s.index["bookings"] = json!(["bookings-1", "bookings-1"]),
    &["1 PageTwice CapacityLedgerPage/bookings-1"]
)]
#[case::page_format(|s: &mut Setup| s.bend_pages = |p| p[1]["spec"]["format"] = json!(2), &["1 UnknownFormat CapacityLedgerPage/bookings-1"])]
#[case::data_format(|s: &mut Setup| s.live["format"] = json!(2), &["1 UnknownFormat CapacityLedgerPage/bookings-1"])]
#[case::page_kind(|s: &mut Setup| s.bend_pages = |p| p[1]["spec"]["kind"] = json!("Archive"), &["1 PageMisplaced CapacityLedgerPage/bookings-1"])]
#[case::page_pool(|s: &mut Setup| s.bend_pages = |p| p[1]["spec"]["pool"] = json!("other"), &["1 PageMisplaced CapacityLedgerPage/bookings-1"])]
#[case::data_pool(|s: &mut Setup| s.live["pool"] = json!("other"), &["1 PageMisplaced CapacityLedgerPage/bookings-1"])]
#[case::unreadable(|s: &mut Setup| s.bend_pages = |p| set_data(&mut p[1], &json!({"format": 1, "pool": "lab"})), &["1 PageUnreadable CapacityLedgerPage/bookings-1"])]
#[case::not_json(|s: &mut Setup| s.bend_pages = |p| p[1]["spec"]["data"] = json!("{"), &["1 PageUnreadable CapacityLedgerPage/bookings-1"])]
#[case::too_large(|s: &mut Setup| s.live["filler"] = json!("x".repeat(65_536)), &["1 PageTooLarge CapacityLedgerPage/bookings-1"])]
#[case::wrong_pool(|s: &mut Setup| s.live["bookings"][0]["pool"] = json!("other"), &["1 BookingMisplaced Booking/b-run"])]
fn ledger_faults(#[case] bend: fn(&mut Setup), #[case] expected: &[&str]) {
    let mut setup = Setup::clean();
    bend(&mut setup);
    assert_eq!(found(setup), expected);
}

#[test]
fn archive_days_go_back_along_the_chain() {
    let mut setup = Setup::clean();
    setup.archive["previous"] = json!("archive-0");
    setup.bend_pages = |pages| {
        let mut older = pages[2].clone();
        older["metadata"]["name"] = json!("archive-0");
        set_data(&mut older, &json!({"format": 1, "pool": "lab", "day": "2026-11-22", "bookings": []}));
        pages.push(older);
    };
    assert_eq!(found(setup), ["1 ArchiveOutOfOrder CapacityLedgerPage/archive-0"]);
}

/// A booking over two nodes, its second segment in `continued`.
fn split_run(setup: &mut Setup) {
    let second = json!({"node": "held-2", "uid": "uid-held-2", "devices": 8, "from": ACTIVE - 1000});
    setup.live["bookings"][0]["devices"] = json!(16);
    setup.live["split"] = json!({"b-run": 2});
    setup.live["continued"] = json!([{"booking": "b-run", "first": 1, "segments": [second]}]);
    let mut node = setup.nodes[0].clone();
    node["metadata"]["name"] = json!("held-2");
    node["metadata"]["uid"] = json!("uid-held-2");
    push(&mut setup.nodes, node);
}

#[rstest]
#[case::whole(|_: &mut Setup| {}, &[])]
#[case::part_missing(|s: &mut Setup| s.live["continued"] = json!([]), &["1 BookingTorn Booking/b-run"])]
#[case::gap(|s: &mut Setup| s.live["continued"][0]["first"] = json!(2), &["1 BookingTorn Booking/b-run"])]
#[case::not_said(|s: &mut Setup| remove(&mut s.live, "split"), &["1 BookingTorn Booking/b-run"])]
#[case::head_missing(|s: &mut Setup| s.live["continued"][0]["booking"] = json!("b-other"), &["1 BookingTorn Booking/b-other", "1 BookingTorn Booking/b-run"])]
fn split_bookings(#[case] bend: fn(&mut Setup), #[case] expected: &[&str]) {
    let mut setup = Setup::clean();
    split_run(&mut setup);
    bend(&mut setup);
    let mut found = found(setup);
    // A torn booking is short of devices too; only the tear is of interest here.
    found.retain(|finding| !finding.contains("DevicesShort"));
    assert_eq!(found, expected);
}

/// Invariant 1: no device is sold twice.
#[rstest]
#[case::node_in_two_live(|s: &mut Setup| add_live(s, "held"), &["1 NodeSoldTwice Node/held", "1 DevicesOversold Node/held", "4 HoldLabelsWrong Node/held"])]
#[case::node_twice_in_one(
    |s: &mut Setup| push(&mut s.live["bookings"][0]["segments"], json!({"node": "held", "uid": "uid-held", "devices": 8})),
    &["1 BookingTooLarge Booking/b-run", "1 DevicesOversold Node/held", "1 NodeSoldTwice Node/held"]
)]
#[case::id_in_live_and_archive(
    |s: &mut Setup| s.archive["bookings"][0]["id"] = json!("b-run"),
    &["1 BookingTwice Booking/b-run", "2 BookingLost GpuReservation/acme/old"]
)]
#[case::past_and_present_overlap(|s: &mut Setup| add_archived(s, "held"), &["1 NodeTimeSoldTwice Node/held"])]
#[case::two_past_overlap(|s: &mut Setup| add_archived(s, "shut"), &["1 NodeTimeSoldTwice Node/shut"])]
#[case::more_than_the_node_has(
    |s: &mut Setup| {
        s.live["bookings"][0]["devices"] = json!(16);
        s.live["bookings"][0]["segments"][0]["devices"] = json!(16);
    },
    &["1 DevicesOversold Node/held"]
)]
#[case::more_than_was_sold(|s: &mut Setup| s.live["bookings"][0]["devices"] = json!(4), &["1 BookingTooLarge Booking/b-run"])]
fn sold_twice(#[case] bend: fn(&mut Setup), #[case] expected: &[&str]) {
    let mut setup = Setup::clean();
    bend(&mut setup);
    let mut expected: Vec<&str> = expected.to_vec();
    let mut found = found(setup);
    expected.sort_unstable();
    found.sort_unstable();
    assert_eq!(found, expected);
}

#[test]
fn a_node_may_be_sold_again_the_instant_it_came_back() {
    let mut setup = Setup::clean();
    add_archived(&mut setup, "shut");
    // `past` had it up to the millisecond at which `old` got it; the end of a booking is exclusive.
    setup.archive["bookings"][0]["segments"][0]["from"] = json!(ACTIVE);
    setup.archive["bookings"][1]["segments"][0]["to"] = json!(ACTIVE);
    assert_eq!(found(setup), Vec::<String>::new());
}

/// Invariant 2: a commitment holds.
#[rstest]
#[case::committed_without_term(
    |s: &mut Setup| {
        remove(&mut s.live["bookings"][0], "durationMs");
        remove(&mut s.live["bookings"][0], "end");
    },
    &["2 CommittedWithoutTerm Booking/b-run"]
)]
#[case::end_moved(|s: &mut Setup| s.live["bookings"][0]["end"] = json!(NOW + HOUR), &["2 TermChanged Booking/b-run"])]
#[case::end_lost(|s: &mut Setup| remove(&mut s.live["bookings"][0], "end"), &["2 TermChanged Booking/b-run"])]
#[case::live_with_reason(|s: &mut Setup| s.live["bookings"][0]["endReason"] = json!("Deleted"), &["2 EndedButLive Booking/b-run"])]
#[case::overdue(|s: &mut Setup| s.now_ms = NOW + 2 * HOUR, &["warning 2 TermOverdue Booking/b-run"])]
#[case::cut_short(
    |s: &mut Setup| {
        s.archive["bookings"][0]["end"] = json!(ACTIVE + HOUR / 2);
        s.reservations[1]["status"]["meter"]["deviceMilliseconds"] = json!(4 * HOUR);
    },
    &["2 CommitmentCutShort Booking/b-old"]
)]
#[case::over_before_active(
    |s: &mut Setup| {
        remove(&mut s.archive["bookings"][0], "activeAt");
        s.reservations[1]["status"]["meter"]["deviceMilliseconds"] = json!(0);
    },
    &["2 CommitmentCutShort Booking/b-old"]
)]
#[case::deleted_early(
    |s: &mut Setup| {
        s.archive["bookings"][0]["end"] = json!(ACTIVE + HOUR / 2);
        s.archive["bookings"][0]["endReason"] = json!("Deleted");
        s.reservations[1]["status"]["meter"]["deviceMilliseconds"] = json!(4 * HOUR);
    },
    &[]
)]
#[case::deleted_late(
    |s: &mut Setup| {
        s.archive["bookings"][0]["end"] = json!(ACTIVE + HOUR + 1);
        s.archive["bookings"][0]["endReason"] = json!("Deleted");
        s.reservations[1]["status"]["meter"]["deviceMilliseconds"] = json!(8 * (HOUR + 1));
    },
    &["2 TermChanged Booking/b-old"]
)]
#[case::no_reason(|s: &mut Setup| remove(&mut s.archive["bookings"][0], "endReason"), &["2 EndNotSaid Booking/b-old"])]
#[case::short(|s: &mut Setup| s.live["bookings"][0]["devices"] = json!(16), &["2 DevicesShort Booking/b-run"])]
#[case::short_and_said(
    |s: &mut Setup| {
        s.live["bookings"][0]["devices"] = json!(16);
        s.reservations[0]["status"]["conditions"] = json!([{"type": "Stalled", "status": "True", "reason": "CommitmentAtRisk",
            "message": "one node is lost", "lastTransitionTime": time(NOW)}]);
    },
    &["warning 2 DevicesShort Booking/b-run"]
)]
#[case::short_just_now(
    |s: &mut Setup| {
        s.live["bookings"][0]["devices"] = json!(16);
        s.root["spec"]["committedAt"] = json!(NOW - 1000);
        s.written = NOW - 1000;
    },
    &["warning 2 DevicesShort Booking/b-run"]
)]
#[case::node_gone(|s: &mut Setup| s.nodes[0]["metadata"]["uid"] = json!("uid-another"), &["warning 2 NodeGone Booking/b-run", "4 HoldWithoutBooking Node/held"])]
#[case::reservation_gone(|s: &mut Setup| { s.reservations.as_array_mut().unwrap().remove(0); }, &["warning 2 ReservationGone Booking/b-run"])]
#[case::booked_twice(|s: &mut Setup| s.archive["bookings"][0]["reservation"] = s.live["bookings"][0]["reservation"].clone(),
    &["2 BookingLost GpuReservation/acme/old", "2 ReservationBookedTwice GpuReservation/acme/run", "5 MeterUnexplained GpuReservation/acme/old"]
)]
#[case::booking_of_status_lost(|s: &mut Setup| s.reservations[0]["status"]["booking"]["id"] = json!("b-lost"), &["2 BookingLost GpuReservation/acme/run"])]
#[case::booking_of_phase_lost(
    |s: &mut Setup| push(&mut s.reservations, reservation("more", "Booked", &Value::Null)),
    &["2 BookingLost GpuReservation/acme/more"]
)]
#[case::archive_lost(
    |s: &mut Setup| push(&mut s.reservations, reservation("more", "Ended", &Value::Null)),
    &["2 BookingLost GpuReservation/acme/more"]
)]
#[case::active_but_ended(|s: &mut Setup| s.reservations[1]["status"]["phase"] = json!("Active"), &["2 StatusBehind GpuReservation/acme/old"])]
#[case::ended_but_live(|s: &mut Setup| s.reservations[0]["status"]["phase"] = json!("Ended"), &["2 EndedButLive GpuReservation/acme/run"])]
#[case::rejected_but_live(|s: &mut Setup| s.reservations[0]["status"]["phase"] = json!("Rejected"), &["2 StatusBehind GpuReservation/acme/run"])]
#[case::waitlisted_but_live(|s: &mut Setup| s.reservations[0]["status"]["phase"] = json!("Waitlisted"), &["warning 2 StatusBehind GpuReservation/acme/run"])]
#[case::waitlisted(|s: &mut Setup| push(&mut s.reservations, reservation("more", "Waitlisted", &Value::Null)), &[])]
fn commitments(#[case] bend: fn(&mut Setup), #[case] expected: &[&str]) {
    let mut setup = Setup::clean();
    bend(&mut setup);
    let mut expected: Vec<&str> = expected.to_vec();
    let mut found = found(setup);
    expected.sort_unstable();
    found.sort_unstable();
    assert_eq!(found, expected);
}

/// Invariant 4: taints, labels and namespaces.
#[rstest]
#[case::no_taint(|s: &mut Setup| s.nodes[1]["spec"]["taints"] = json!([]), &["4 HoldTaintMissing Node/free"])]
#[case::two_taints(|s: &mut Setup| push(&mut s.nodes[1]["spec"]["taints"], taint("closed", "NoSchedule")), &["4 HoldTaintMissing Node/free"])]
#[case::taints_disagree(|s: &mut Setup| s.nodes[0]["spec"]["taints"][1]["value"] = json!("closed"), &["4 HoldTaintsDisagree Node/held"])]
#[case::held_without_no_execute(|s: &mut Setup| { s.nodes[0]["spec"]["taints"].as_array_mut().unwrap().remove(1); }, &["4 HoldTaintsDisagree Node/held"])]
#[case::closed_for_landing_only(|s: &mut Setup| { s.nodes[2]["spec"]["taints"].as_array_mut().unwrap().remove(1); }, &[])]
#[case::held_by_nobody(
    |s: &mut Setup| s.nodes[2]["spec"]["taints"] = json!([taint("uid-house", "NoSchedule"), taint("uid-house", "NoExecute")]),
    &["4 HoldWithoutBooking Node/shut"]
)]
#[case::held_by_the_unknown(
    |s: &mut Setup| s.nodes[2]["spec"]["taints"] = json!([taint("x", "NoSchedule"), taint("x", "NoExecute")]),
    &["4 HoldWithoutBooking Node/shut"]
)]
#[case::held_long_after_end(
    |s: &mut Setup| s.nodes[2]["spec"]["taints"] = json!([taint("uid-acme", "NoSchedule"), taint("uid-acme", "NoExecute")]),
    &["4 HoldAfterEnd Node/shut"]
)]
#[case::held_just_after_end(|s: &mut Setup| end_run(s, NOW - 1000), &["warning 4 HoldAfterEnd Node/held"])]
#[case::held_some_time_after_end(|s: &mut Setup| end_run(s, NOW - 31_000), &["4 HoldAfterEnd Node/held"])]
#[case::held_and_lost(
    |s: &mut Setup| s.live["bookings"][0]["segments"][0]["to"] = json!(NOW - HOUR),
    &["2 DevicesShort Booking/b-run", "4 HoldAfterEnd Node/held"]
)]
#[case::held_not_handed_over(
    |s: &mut Setup| remove(&mut s.live["bookings"][0]["segments"][0], "from"),
    &["warning 4 HeldButNotHandedOver Node/held"]
)]
#[case::sold_but_unsold(
    |s: &mut Setup| {
        s.nodes[0]["spec"]["taints"] = json!([taint("unsold", "NoSchedule")]);
        s.nodes[0]["metadata"]["labels"] = json!({"spillway.dev/pool": "lab"});
        s.pods = json!([]);
    },
    &["4 SoldButUnsold Node/held"]
)]
#[case::sold_a_moment_ago(
    |s: &mut Setup| {
        add_live(s, "free");
        s.live["bookings"][1]["bookedAt"] = json!(NOW - 1000);
        s.live["bookings"][1]["segments"] = json!([{"node": "free", "uid": "uid-free", "devices": 8}]);
        remove(&mut s.live["bookings"][1], "activeAt");
        remove(&mut s.live["bookings"][1], "end");
        s.root["spec"]["committedAt"] = json!(NOW - 1000);
        s.written = NOW - 1000;
    },
    &["warning 4 SoldButUnsold Node/free"]
)]
#[case::sold_but_closed(
    |s: &mut Setup| {
        s.nodes[0]["spec"]["taints"] = json!([taint("closed", "NoSchedule")]);
        s.nodes[0]["metadata"]["labels"] = json!({"spillway.dev/pool": "lab"});
        s.pods = json!([]);
    },
    &["warning 4 SoldButClosed Node/held"]
)]
#[case::label_missing(
    |s: &mut Setup| remove(&mut s.nodes[0]["metadata"]["labels"], "acme.hold.spillway.dev/run"),
    &["4 HoldLabelsWrong Node/held"]
)]
#[case::label_extra(
    |s: &mut Setup| s.nodes[1]["metadata"]["labels"]["hold.spillway.dev/acme"] = json!("true"),
    &["4 HoldLabelsWrong Node/free"]
)]
#[case::holder_forged(
    |s: &mut Setup| s.namespaces[3]["metadata"]["labels"] = json!({"spillway.dev/holder": "uid-acme"}),
    &["4 HolderForged Namespace/elsewhere"]
)]
#[case::role_stray(
    |s: &mut Setup| s.namespaces[3]["metadata"]["labels"] = json!({"spillway.dev/role": "tenant"}),
    &["4 NamespaceLabelsStray Namespace/elsewhere"]
)]
#[case::role_of_infrastructure(
    |s: &mut Setup| {
        s.namespaces[2]["metadata"]["labels"] = json!({"spillway.dev/role": "tenant"});
        s.tenants[0]["spec"]["namespaces"] = json!(["acme", "kube-system"]);
    },
    &["4 NamespaceLabelsStray Namespace/kube-system"]
)]
#[case::role_stray_with_booking(
    |s: &mut Setup| { s.tenants.as_array_mut().unwrap().remove(0); },
    &["warning 4 NamespaceLabelsStray Namespace/acme"]
)]
#[case::the_namespace_of_the_self_test(
    |s: &mut Setup| s.namespaces[3]["metadata"] = json!({
        "name": "spillway-selftest", "uid": "uid-elsewhere",
        "labels": {"spillway.dev/role": "tenant", "spillway.dev/holder": "uid-elsewhere"},
    }),
    &[]
)]
#[case::role_wrong(
    |s: &mut Setup| s.namespaces[0]["metadata"]["labels"]["spillway.dev/role"] = json!("owner"),
    &["4 NamespaceLabelsWrong Namespace/acme"]
)]
#[case::labels_missing(
    |s: &mut Setup| s.tenants[0]["spec"]["namespaces"] = json!(["acme", "elsewhere"]),
    &["4 NamespaceLabelsWrong Namespace/elsewhere"]
)]
#[case::labels_on_their_way(
    |s: &mut Setup| {
        s.tenants[0]["spec"]["namespaces"] = json!(["acme", "elsewhere"]);
        s.tenants[0]["metadata"]["generation"] = json!(2);
    },
    &["warning 4 NamespaceLabelsWrong Namespace/elsewhere"]
)]
#[case::namespace_of_two_tenants_is_the_older_ones(
    |s: &mut Setup| push(&mut s.tenants, json!({
        "metadata": {"name": "aaa", "generation": 1, "creationTimestamp": time(NOW)},
        "spec": {"namespaces": ["acme"]}, "status": {"observedGeneration": 1},
    })),
    &[]
)]
fn holds(#[case] bend: fn(&mut Setup), #[case] expected: &[&str]) {
    let mut setup = Setup::clean();
    bend(&mut setup);
    assert_eq!(found(setup), expected);
}

/// Invariant 4: pods.
#[rstest]
#[case::stranger_on_held(|s: &mut Setup| push(&mut s.pods, pod("elsewhere", "x", "held", ACTIVE)), &["4 PodWithoutHold Pod/elsewhere/x"])]
#[case::owner_on_held(|s: &mut Setup| push(&mut s.pods, pod("house", "x", "held", ACTIVE)), &["4 PodWithoutHold Pod/house/x"])]
#[case::nobodys_on_unsold_after(|s: &mut Setup| push(&mut s.pods, pod("elsewhere", "x", "free", ACTIVE)), &["4 PodWithoutHold Pod/elsewhere/x"])]
#[case::nobodys_on_unsold_from_before(|s: &mut Setup| push(&mut s.pods, pod("elsewhere", "x", "free", BOOKED - HOUR)), &[])]
#[case::tenant_on_unsold(|s: &mut Setup| push(&mut s.pods, pod("acme", "x", "free", ACTIVE)), &["4 PodWithoutHold Pod/acme/x"])]
#[case::terminating_stranger_on_held(
    |s: &mut Setup| {
        push(&mut s.pods, pod("elsewhere", "x", "held", ACTIVE));
        s.pods[5]["metadata"]["deletionTimestamp"] = json!(time(NOW));
    },
    &["4 PodWithoutHold Pod/elsewhere/x"]
)]
#[case::node_changed_hands_while_we_read(
    |s: &mut Setup| {
        push(&mut s.pods, pod("elsewhere", "x", "held", ACTIVE));
        s.nodes[0]["metadata"]["annotations"]["spillway.dev/hold-since"] = json!(NOW.to_string());
    },
    &["warning 4 PodWithoutHold Pod/elsewhere/x"]
)]
#[case::dead_stranger(
    |s: &mut Setup| {
        push(&mut s.pods, pod("elsewhere", "x", "held", ACTIVE));
        s.pods[5]["status"]["phase"] = json!("Failed");
    },
    &[]
)]
#[case::landed_on_closed(|s: &mut Setup| push(&mut s.pods, pod("acme", "x", "shut", NOW - 60_000)), &["4 PodOnClosedNode Pod/acme/x"])]
#[case::landed_on_closed_just_now(|s: &mut Setup| push(&mut s.pods, pod("acme", "x", "shut", NOW - 1000)), &["warning 4 PodOnClosedNode Pod/acme/x"])]
#[case::stays_on_closed(|s: &mut Setup| push(&mut s.pods, pod("acme", "x", "shut", ACTIVE)), &["warning 4 PodStaysOnClosedNode Pod/acme/x"])]
#[case::leaves_closed(
    |s: &mut Setup| {
        push(&mut s.pods, pod("acme", "x", "shut", ACTIVE));
        s.pods[5]["metadata"]["deletionTimestamp"] = json!(time(NOW));
    },
    &[]
)]
fn pods(#[case] bend: fn(&mut Setup), #[case] expected: &[&str]) {
    let mut setup = Setup::clean();
    bend(&mut setup);
    assert_eq!(found(setup), expected);
}

/// Invariant 5: GPU time.
#[rstest]
#[case::active_before_booked(|s: &mut Setup| s.live["bookings"][0]["bookedAt"] = json!(ACTIVE + 1), &["5 TimesOutOfOrder Booking/b-run", "5 TimesOutOfOrder Booking/b-run"])]
#[case::active_in_the_future(|s: &mut Setup| s.root["spec"]["committedAt"] = json!(ACTIVE - 1), &["5 TimesOutOfOrder Booking/b-run", "5 TimesOutOfOrder Booking/b-old"])]
#[case::handed_over_before_booked(|s: &mut Setup| s.live["bookings"][0]["segments"][0]["from"] = json!(BOOKED - 1), &["5 TimesOutOfOrder Booking/b-run"])]
#[case::lost_before_handed_over(
    |s: &mut Setup| {
        s.archive["bookings"][0]["segments"][0]["to"] = json!(ACTIVE - 2000);
        s.reservations[1]["status"]["meter"]["deviceMilliseconds"] = json!(0);
    },
    &["5 TimesOutOfOrder Booking/b-old"]
)]
#[case::lost_after_the_end(
    |s: &mut Setup| {
        s.archive["bookings"][0]["segments"][0]["to"] = json!(ACTIVE + HOUR + 1);
        s.reservations[1]["status"]["meter"]["deviceMilliseconds"] = json!(8 * (HOUR + 1));
    },
    &["5 TimesOutOfOrder Booking/b-old"]
)]
#[case::no_devices(
    |s: &mut Setup| push(&mut s.live["bookings"][0]["segments"], json!({"node": "x", "uid": "uid-x", "devices": 0, "to": NOW - HOUR})),
    &["5 TimesOutOfOrder Booking/b-run"]
)]
#[case::meter_wrong(|s: &mut Setup| s.reservations[1]["status"]["meter"]["deviceMilliseconds"] = json!(8 * HOUR + 1), &["5 MeterWrong GpuReservation/acme/old"])]
#[case::meter_unexplained(
    |s: &mut Setup| s.reservations[0]["status"]["meter"] = json!({"deviceMilliseconds": 0}),
    &["5 MeterUnexplained GpuReservation/acme/run"]
)]
#[case::meter_takes_losses_out(
    |s: &mut Setup| {
        s.archive["bookings"][0]["segments"] = json!([
            {"node": "shut", "uid": "uid-shut", "devices": 8, "from": ACTIVE - 1000, "to": ACTIVE + 1000},
            {"node": "new", "uid": "uid-new", "devices": 8, "from": ACTIVE + 5000},
            {"node": "never", "uid": "uid-never", "devices": 8},
        ]);
        s.reservations[1]["status"]["meter"]["deviceMilliseconds"] = json!(8 * (1000 + HOUR - 5000));
    },
    &[]
)]
fn meter(#[case] bend: fn(&mut Setup), #[case] expected: &[&str]) {
    let mut setup = Setup::clean();
    bend(&mut setup);
    let mut expected: Vec<&str> = expected.to_vec();
    let mut found = found(setup);
    expected.sort_unstable();
    found.sort_unstable();
    assert_eq!(found, expected);
}

/// `free` is shared: `b-part` has three of its devices for acme, and a pod uses two.
fn shared() -> Setup {
    let mut setup = Setup::clean();
    let mut part = booking("b-part", "part", "free");
    part["exclusive"] = json!(false);
    part["devices"] = json!(3);
    part["segments"][0]["devices"] = json!(3);
    part["segments"][0]["of"] = json!(8);
    push(&mut setup.live["bookings"], part);
    let mut reservation = reservation("part", "Active", &booking_status("b-part"));
    reservation["spec"]["exclusiveNodes"] = json!(false);
    reservation["spec"]["devices"]["count"] = json!(3);
    push(&mut setup.reservations, reservation);
    let labels = json!({"hold.spillway.dev/acme": "true", "acme.hold.spillway.dev/part": "true"});
    let hold = "node.uid-free";
    let mut node = node("free", &[taint(hold, "NoSchedule"), taint(hold, "NoExecute")], &labels, ACTIVE - 2000);
    node["metadata"]["annotations"]["spillway.dev/parts"] = json!("b-part=3");
    setup.nodes[1] = node;
    setup.pods[1] = gpu_pod("acme", "serve", "free", 2);
    setup
}

fn gpu_pod(namespace: &str, name: &str, node: &str, devices: i64) -> Value {
    let mut pod = pod(namespace, name, node, ACTIVE + 1000);
    let limits = json!({"nvidia.com/gpu": devices.to_string()});
    pod["spec"]["containers"] = json!([{"name": "c", "resources": {"limits": limits}}]);
    pod
}

#[test]
fn a_shared_node_in_order() {
    assert_eq!(found(shared()), Vec::<String>::new());
}

#[rstest]
#[case::not_set_up(|s: &mut Setup| s.nodes[1]["metadata"]["annotations"]["spillway.dev/parts"] = json!(""), &["4 HoldLabelsWrong Node/free", "4 PartNotSetUp Node/free", "4 PodWithoutHold Pod/acme/serve", "4 PartsOverused Node/free"])]
#[case::set_up_for_what_ended(|s: &mut Setup| s.nodes[1]["metadata"]["annotations"]["spillway.dev/parts"] = json!("b-old=2,b-part=3"), &["warning 4 PartNotGivenBack Node/free"])]
#[case::set_up_for_more_than_it_has(|s: &mut Setup| s.nodes[1]["metadata"]["annotations"]["spillway.dev/parts"] = json!("b-old=6,b-part=3"), &["1 PartsOversold Node/free", "warning 4 PartNotGivenBack Node/free"])]
#[case::uses_more_than_its_part(|s: &mut Setup| s.pods[1] = gpu_pod("acme", "serve", "free", 4), &["4 PartsOverused Node/free"])]
#[case::somebody_else_is_there(|s: &mut Setup| s.pods[1] = gpu_pod("house", "own", "free", 1), &["4 PodWithoutHold Pod/house/own", "4 PartsOverused Node/free"])]
#[case::sold_whole_beside_it(|s: &mut Setup| s.live["bookings"][1]["exclusive"] = json!(true), &["4 SoldButShared Node/free"])]
#[case::parts_larger_than_the_node(|s: &mut Setup| {
    for (field, value) in [("devices", 9), ("of", 8)] {
        s.live["bookings"][1]["segments"][0][field] = json!(value);
    }
    s.live["bookings"][1]["devices"] = json!(9);
    s.nodes[1]["metadata"]["annotations"]["spillway.dev/parts"] = json!("b-part=9");
}, &["1 DevicesOversold Node/free", "1 PartsOversold Node/free", "1 PartsTimeOversold Node/free"])]
fn shared_nodes(#[case] bend: fn(&mut Setup), #[case] expected: &[&str]) {
    let mut setup = shared();
    bend(&mut setup);
    let mut found = found(setup);
    found.sort();
    let mut expected: Vec<&str> = expected.to_vec();
    expected.sort_unstable();
    assert_eq!(found, expected);
}
