use serde_json::json;

use super::*;
use crate::{
    ledger::Bookings,
    output::shown,
    sample::{HOUR, NOW, booking, node, pod, pool, reservation, tenant},
};

fn facts(reservation: GpuReservation) -> Facts {
    Facts {
        now_ms: NOW,
        reservations: Some(vec![reservation.clone()]),
        reservation,
        tenants: Some(vec![tenant()]),
        fleet: Some(capacity::Facts {
            pools: vec![pool("h200", "nvidia-h200-sxm", 8), pool("l4", "nvidia-l4", 4)],
            nodes: vec![
                node("n1", "h200", "uid-acme", true),
                node("n2", "h200", "closed", true),
                node("n3", "h200", "unsold", false),
            ],
            pods: vec![pod("acme", "train", "n1", 8)],
            owners: ["house".to_owned()].into(),
            bookings: Bookings { live: vec![booking("b-1", "run", "n1").into()], ended: vec![], ..Bookings::default() },
        }),
        ledger_fault: None,
        gpu_nodes: vec![],
        own_pods: Some(vec![]),
        not_shown: vec![],
    }
}

fn pending_pod(name: &str, labels: &serde_json::Value) -> Pod {
    serde_json::from_value(json!({
        "metadata": {"namespace": "acme", "name": name, "labels": labels},
        "spec": {"containers": [{"name": "main", "resources": {"limits": {"nvidia.com/gpu": "1"}}}]},
        "status": {"phase": "Pending", "conditions": [
            {"type": "PodScheduled", "status": "False", "message": "0/3 nodes are available"},
        ]},
    }))
    .unwrap()
}

#[test]
fn active() {
    let mut facts = facts(reservation("run", "Active", "Active", 120));
    facts.own_pods = Some(vec![
        pending_pod("late", &json!({})),
        pending_pod("of-another", &json!({"spillway.dev/reservation": "other"})),
    ]);
    insta::assert_snapshot!(shown(&explain(facts)), @r#"
    acme/run: Active
      Asked:    8 devices of nvidia-h200-sxm in us-east, Committed for 3h; created 2026-11-21T06:00:00Z, waits for 24h at most
      Reason:   Active
      Message:  What the operator says of Active.
      Tenant:   acme holds 8 Committed devices of nvidia-h200-sxm, with a quota of 16
      Booking:  b-1 in pool h200, booked 2026-11-21T06:00:00Z
                active 2026-11-21T06:01:00Z, ends 2026-11-21T09:01:00Z
                15.866667 GPU-hours so far

      CONDITION  STATUS  REASON  SINCE
      Ready      False   Active  2026-11-21T07:00:00Z

      NODE  DEVICES  HANDED-OVER           LOST  STATE                                                PODS
      n1          8  2026-11-21T06:00:59Z  -     held by this namespace (since 2026-11-21T07:00:00Z)  acme/train (Running)

      POOL  SKU              REGION   NODES  OWNED  SOLD  HELD  UNSOLD  TURNOVER  BROKEN  OWNER-USED
      h200  nvidia-h200-sxm  us-east      3     24     8     8       0         8       8           0

      WAITING POD  WHY
      late         0/3 nodes are available

    What to know, and what would help:
      - 1 pod of namespace acme can run nowhere: more is wanted than is held, or another reservation is named in the label spillway.dev/reservation.
    "#);
}

#[test]
fn preparing() {
    let mut facts = facts(reservation("next", "Preparing", "Preparing", 5));
    let mut next = booking("b-2", "next", "n2");
    next.active_at = None;
    next.end = None;
    next.segments[0].from = None;
    let fleet = facts.fleet.as_mut().unwrap();
    fleet.bookings.live.push(next.into());
    fleet.pods.push(pod("house", "own", "n2", 8));
    facts.gpu_nodes = serde_json::from_value(json!([{
        "apiVersion": "spillway.dev/v1alpha1", "kind": "GpuNode",
        "metadata": {"name": "n2"}, "spec": {"nodeUid": "uid-n2", "check": {"id": "q1"}},
    }]))
    .unwrap();
    insta::assert_snapshot!(shown(&explain(facts)), @r#"
    acme/next: Preparing
      Asked:    8 devices of nvidia-h200-sxm in us-east, Committed for 3h; created 2026-11-21T07:55:00Z, waits for 24h at most
      Reason:   Preparing
      Message:  What the operator says of Preparing.
      Tenant:   acme holds 16 Committed devices of nvidia-h200-sxm, with a quota of 16
      Booking:  b-2 in pool h200, booked 2026-11-21T06:00:00Z
                0.000000 GPU-hours so far

      CONDITION  STATUS  REASON     SINCE
      Ready      False   Preparing  2026-11-21T07:00:00Z

      NODE  DEVICES  HANDED-OVER  LOST  STATE                                                                                                                           PODS
      n2          8  -            -     closed: it is being emptied and checked (since 2026-11-21T07:00:00Z), its agent was asked what runs there and has not answered  house/own (Running)

      POOL  SKU              REGION   NODES  OWNED  SOLD  HELD  UNSOLD  TURNOVER  BROKEN  OWNER-USED
      h200  nvidia-h200-sxm  us-east      3     24    16     8       0         8       8           8

    What to know, and what would help:
      - Its nodes are handed over one by one, as each is empty and checked; it is Active, and metered, when all are.
    "#);
}

#[test]
fn waitlisted_behind_an_older_request() {
    let mut facts = facts(reservation("more", "Waitlisted", "BehindOlderRequest", 5));
    facts.reservations.as_mut().unwrap().extend([
        reservation("first", "Waitlisted", "InsufficientCapacity", 10),
        // Passed: it waits for its tenant's quota.
        reservation("greedy", "Waitlisted", "QuotaInUse", 20),
        // Younger.
        reservation("young", "Waitlisted", "BehindOlderRequest", 1),
        // Waits no more.
        reservation("run", "Active", "Active", 120),
    ]);
    insta::assert_snapshot!(shown(&explain(facts)), @r#"
    acme/more: Waitlisted
      Asked:    8 devices of nvidia-h200-sxm in us-east, Committed for 3h; created 2026-11-21T07:55:00Z, waits for 24h at most
      Reason:   BehindOlderRequest
      Message:  What the operator says of BehindOlderRequest.
      Tenant:   acme holds 8 Committed devices of nvidia-h200-sxm, with a quota of 16

      CONDITION  STATUS  REASON              SINCE
      Ready      False   BehindOlderRequest  2026-11-21T07:00:00Z

      It is number 2 in line.
      BEFORE IT   DEVICES  CREATED               REASON
      acme/first        8  2026-11-21T07:50:00Z  InsufficientCapacity

      POOL  SKU              REGION   NODES  OWNED  SOLD  HELD  UNSOLD  TURNOVER  BROKEN  OWNER-USED
      h200  nvidia-h200-sxm  us-east      3     24     8     8       0         8       8           0

    What to know, and what would help:
      - 1 older request stands before it for the same pools, the oldest is acme/first with 8 devices: nobody is passed.
      - 8 devices of pool h200 are in turnover and can be sold when their nodes are empty and checked.
      - 8 devices of pool h200 are on broken nodes (n3: it is NotReady): mend them.
    "#);
}

#[test]
fn waitlisted_for_quota() {
    let mut facts = facts(reservation("more", "Waitlisted", "QuotaInUse", 5));
    facts.reservation.spec.devices.count = 16;
    let answer = explain(facts);
    let quota = "Tenant acme holds 8 of its 16 Committed devices of nvidia-h200-sxm, and this wants 16";
    assert!(answer.help.iter().any(|sentence| sentence.starts_with(quota)), "{:?}", answer.help);
}

/// Two nodes are wanted: one is free after the next end, the second after the one after that.
#[test]
fn waitlisted_until_terms_end() {
    let mut facts = facts(reservation("more", "Waitlisted", "InsufficientCapacity", 5));
    facts.reservation.spec.devices.count = 24;
    let fleet = facts.fleet.as_mut().unwrap();
    let mut later = booking("b-2", "later", "n4");
    later.end = Some(spillway_planner::TimeMs(NOW + 5 * HOUR));
    let mut open_ended = booking("b-3", "open", "n5");
    open_ended.end = None;
    fleet.bookings.live.extend([open_ended.into(), later.into()]);
    insta::assert_snapshot!(explain(facts).help.join("\n"), @r#"
    Tenant acme holds 24 of its 16 Committed devices of nvidia-h200-sxm, and this wants 24: end another reservation of the tenant, or raise the quota.
    8 devices of pool h200 are in turnover and can be sold when their nodes are empty and checked.
    8 devices of pool h200 are on broken nodes (n3: it is NotReady): mend them.
    By their terms enough devices of pool h200 come free at 2026-11-21T13:00:00Z, when acme/later ends, and then as soon as their nodes are empty and checked.
    "#);
}

#[test]
fn waitlisted_for_more_than_terms_free() {
    let mut facts = facts(reservation("more", "Waitlisted", "InsufficientCapacity", 5));
    facts.reservation.spec.devices.count = 24;
    let help = explain(facts).help;
    assert!(help.iter().any(|sentence| sentence.contains("do not free enough of pool h200")), "{help:?}");
}

#[test]
fn without_a_tenant() {
    let mut facts = facts(reservation("more", "Rejected", "NoTenant", 5));
    facts.tenants = Some(vec![]);
    insta::assert_snapshot!(explain(facts).help.join("\n"), @r#"
    No Tenant lists namespace acme: add it to one.
    Nothing more happens to it. Delete it, and create another once what the message says is mended.
    "#);
}

#[test]
fn of_a_pool_that_does_not_sell() {
    let mut facts = facts(reservation("more", "Waitlisted", "PoolNotSelling", 5));
    facts.fleet.as_mut().unwrap().pools[0].spec.sale.paused = true;
    let answer = explain(facts);
    assert!(answer.help.iter().any(|sentence| sentence.contains("sale.paused")), "{:?}", answer.help);
}

/// Of two nodes one is given back, the other still being emptied.
#[test]
fn ending() {
    let mut facts = facts(reservation("run", "Ending", "TermOver", 200));
    let mut over = booking("b-1", "run", "n2");
    over.end = Some(spillway_planner::TimeMs(NOW - HOUR));
    over.end_reason = Some(spillway_planner::EndReason::TermOver);
    let mut other = over.segments[0].clone();
    other.node = "n3".into();
    other.uid = "uid-n3".into();
    over.segments.push(other);
    facts.fleet.as_mut().unwrap().bookings = Bookings { live: vec![], ended: vec![over.into()], ..Bookings::default() };
    let states: Vec<String> = explain(facts).nodes.into_iter().map(|row| row.state).collect();
    assert_eq!(states, ["closed: it is being emptied and checked (since 2026-11-21T07:00:00Z)", "given back"]);
}

#[test]
fn with_a_status_that_is_behind() {
    let answer = explain(facts(reservation("run", "Pending", "Pending", 120)));
    assert!(answer.queue.is_none(), "what is booked is not in line");
    assert!(matches!(answer.help.as_slice(), [only] if only.contains("the status is behind")), "{:?}", answer.help);
}

#[test]
fn with_a_lost_ledger() {
    let mut facts = facts(reservation("run", "Active", "Active", 120));
    let status = facts.reservation.status.as_mut().unwrap();
    status.nodes = serde_json::from_value(json!([{"name": "n1", "devices": 8}, {"name": "n9", "devices": 8}])).unwrap();
    facts.fleet.as_mut().unwrap().bookings = Bookings::default();
    facts.ledger_fault = Some("there is no booking ledger".to_owned());
    let answer = explain(facts);
    assert_eq!(answer.help, ["there is no booking ledger"]);
    assert!(answer.pools.is_empty(), "what is sold is not known");
    assert_eq!(answer.quota.as_ref().unwrap().held, None);
    let states: Vec<&str> = answer.nodes.iter().map(|row| row.state.as_str()).collect();
    assert_eq!(states, ["held by this namespace (since 2026-11-21T07:00:00Z)", "gone"]);
}

#[test]
fn ended() {
    let mut facts = facts(reservation("run", "Ended", "TermOver", 200));
    let bookings = &mut facts.fleet.as_mut().unwrap().bookings;
    let mut over = booking("b-1", "run", "n1");
    over.end = Some(spillway_planner::TimeMs(NOW - HOUR));
    over.end_reason = Some(spillway_planner::EndReason::TermOver);
    *bookings = Bookings { live: vec![], ended: vec![over.into()], ..Bookings::default() };
    insta::assert_snapshot!(shown(&explain(facts)), @r#"
    acme/run: Ended
      Asked:    8 devices of nvidia-h200-sxm in us-east, Committed for 3h; created 2026-11-21T04:40:00Z, waits for 24h at most
      Reason:   TermOver
      Message:  What the operator says of TermOver.
      Tenant:   acme holds 0 Committed devices of nvidia-h200-sxm, with a quota of 16
      Booking:  b-1 in pool h200, booked 2026-11-21T06:00:00Z
                active 2026-11-21T06:01:00Z, ends 2026-11-21T07:00:00Z
                7.866667 GPU-hours

      CONDITION  STATUS  REASON    SINCE
      Ready      False   TermOver  2026-11-21T07:00:00Z

      NODE  DEVICES  HANDED-OVER           LOST  STATE       PODS
      n1          8  2026-11-21T06:00:59Z  -     given back  -

      POOL  SKU              REGION   NODES  OWNED  SOLD  HELD  UNSOLD  TURNOVER  BROKEN  OWNER-USED
      h200  nvidia-h200-sxm  us-east      3     24     0     8       0         8       8           0
    "#);
}

#[test]
fn a_tenant_who_may_read_its_namespace_only() {
    let mut facts = facts(reservation("run", "Active", "Active", 120));
    facts.reservation.status.as_mut().unwrap().booking =
        Some(serde_json::from_value(json!({"id": "b-1", "pool": "h200", "bookedAt": "2026-11-21T06:00:00Z"})).unwrap());
    facts.reservation.status.as_mut().unwrap().nodes =
        serde_json::from_value(json!([{"name": "n1", "devices": 8}])).unwrap();
    facts.reservations = None;
    facts.tenants = None;
    facts.fleet = None;
    facts.not_shown = vec!["tenants", "reservations of other namespaces", "pools, nodes, pods on them and the ledger"];
    insta::assert_snapshot!(shown(&explain(facts)), @r#"
    acme/run: Active
      Asked:    8 devices of nvidia-h200-sxm in us-east, Committed for 3h; created 2026-11-21T06:00:00Z, waits for 24h at most
      Reason:   Active
      Message:  What the operator says of Active.
      Booking:  b-1 in pool h200, booked 2026-11-21T06:00:00Z

      CONDITION  STATUS  REASON  SINCE
      Ready      False   Active  2026-11-21T07:00:00Z

      NODE  DEVICES  HANDED-OVER  LOST  STATE      PODS
      n1          8  -            -     not shown  -

    Not shown, because you may not list it: tenants; reservations of other namespaces; pools, nodes, pods on them and the ledger.
    "#);
}
