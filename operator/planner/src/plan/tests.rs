use std::sync::Arc;

use rstest::rstest;

use super::*;
use crate::types::{
    MilliGpu, Node, NodeHealth, NodeSale, Pool, Profile, Quota, Request, Resources, Shape, Sku, Tenant, Tier,
    TopologyKey, Where,
};

mod parts;
mod properties;

const NOW: TimeMs = TimeMs(1_000_000);
const HOUR: i64 = 3_600_000;

fn pool(name: &str, sku: &str) -> Pool {
    Pool {
        name: name.into(),
        sku: sku.into(),
        region: "us-east".into(),
        devices_per_node: 8,
        topology: vec!["zone".into(), "rack".into()],
        not_selling: None,
        profiles: Vec::new(),
        observed: false,
        turnover_ms: 240_000,
    }
}

/// A node `<pool>-<anything>` in a rack of zone `z`.
fn node(name: &str, rack: &str) -> Node {
    Node {
        name: name.into(),
        uid: uid(name),
        pool: name.split('-').next().unwrap_or_default().into(),
        capacity: Resources { gpu: MilliGpu::whole(8), cpu_milli: 64_000, memory_mib: 1 << 20 },
        domains: vec![Some("z".into()), Some(rack.into())],
        sale: NodeSale::Open,
        health: NodeHealth::Sound,
        owner_use: Resources::default(),
        returning: 0,
    }
}

fn uid(node: &str) -> NodeUid {
    format!("uid-{node}").into()
}

fn tenant(name: &str, owner: bool) -> Tenant {
    Tenant { name: name.into(), owner, quotas: Vec::new(), regions: Vec::new() }
}

fn reservation(name: &str) -> ReservationRef {
    ReservationRef { uid: format!("uid-{name}").into(), namespace: "ns".into(), name: name.into(), generation: 1 }
}

/// 8 devices of pool `a` for tenant `acme`, on demand, patient for a day.
fn request(name: &str) -> Request {
    Request {
        reservation: reservation(name),
        tenant: Some("acme".into()),
        place: Where::Pool("a".into()),
        shape: whole(8),
        tier: Tier::OnDemand,
        duration_ms: None,
        require: None,
        created: NOW,
        wait_for_ms: 24 * HOUR,
        deleting: false,
    }
}

fn whole(count: u32) -> Shape {
    Shape::WholeNodes { count, per_node: None }
}

fn sku() -> Where {
    Where::Sku("h200".into(), "us-east".into())
}

fn segment(node: &str) -> Segment {
    Segment { node: node.into(), uid: uid(node), devices: 8, of: None, from: None, to: None }
}

/// An active booking of tenant `acme` in the pool of the nodes.
fn booking(name: &str, nodes: &[&str]) -> Booking {
    Booking {
        id: name.into(),
        reservation: reservation(name),
        tenant: "acme".into(),
        pool: nodes.first().and_then(|node| node.split('-').next()).unwrap_or("a").into(),
        sku: "h200".into(),
        region: "us-east".into(),
        tier: Tier::OnDemand,
        devices: 8 * u32::try_from(nodes.len()).unwrap(),
        exclusive: true,
        require: None,
        duration_ms: None,
        booked_at: TimeMs(1000),
        active_at: Some(TimeMs(2000)),
        end: None,
        end_reason: None,
        segments: nodes.iter().map(|node| Segment { from: Some(TimeMs(2000)), ..segment(node) }).collect(),
    }
}

/// Pool `a` of four nodes in racks of two, tenant `acme` and the owner `house`.
fn scene() -> Snapshot {
    Snapshot {
        pools: vec![pool("a", "h200")],
        nodes: vec![node("a-1", "r1"), node("a-2", "r1"), node("a-3", "r2"), node("a-4", "r2")],
        tenants: vec![tenant("acme", false), tenant("house", true)],
        bookings: Vec::new(),
        learned: std::collections::BTreeMap::new(),
        requests: Vec::new(),
    }
}

fn sell(snapshot: &mut Snapshot, booking: Booking) {
    snapshot.requests.push(Request { reservation: booking.reservation.clone(), ..request("") });
    snapshot.bookings.push(Arc::new(booking));
}

fn ask(snapshot: &mut Snapshot, name: &str, change: impl FnOnce(&mut Request)) {
    let mut request = request(name);
    change(&mut request);
    snapshot.requests.push(request);
}

/// `name: nodes` of each new booking, then `name: Outcome code` of each outcome, in order.
fn told(plan: &Plan) -> Vec<String> {
    let nodes = |segments: &[Segment]| {
        let names: Vec<&str> = segments.iter().map(|segment| segment.node.as_str()).collect();
        names.join(" ")
    };
    let bookings = plan.bookings.iter().map(|new| format!("{}: {}", new.reservation.name, nodes(&new.segments)));
    let outcomes = plan.outcomes.iter().map(|(uid, outcome)| {
        let (kind, reason) = parts(outcome);
        format!("{}: {kind} {}", uid.as_str().trim_start_matches("uid-"), reason.code)
    });
    bookings.chain(outcomes).collect()
}

fn parts(outcome: &Outcome) -> (&'static str, &Reason) {
    match outcome {
        Outcome::Waitlisted(reason) => ("Waitlisted", reason),
        Outcome::Rejected(reason) => ("Rejected", reason),
        Outcome::Expired(reason) => ("Expired", reason),
    }
}

/// The one answer to the one request `r`, in full.
fn answer(snapshot: &Snapshot) -> String {
    let plan = plan(snapshot, NOW);
    assert!(plan.bookings.is_empty(), "{:?}", plan.bookings);
    let [(uid, outcome)] = plan.outcomes.as_slice() else { panic!("one answer: {:?}", plan.outcomes) };
    assert_eq!(uid.as_str(), "uid-r");
    let (kind, reason) = parts(outcome);
    format!("{kind} {}: {}", reason.code, reason.message)
}

#[test]
fn nothing_is_asked() {
    assert_eq!(plan(&Snapshot::default(), NOW), Plan::default());
    assert_eq!(plan(&scene(), NOW), Plan::default());
}

#[test]
fn what_fits_is_booked_whole() {
    let mut scene = scene();
    ask(&mut scene, "r", |request| request.shape = whole(16));
    let new = NewBooking {
        reservation: reservation("r"),
        pool: "a".into(),
        segments: vec![segment("a-1"), segment("a-2")],
        shares: Vec::new(),
    };
    assert_eq!(plan(&scene, NOW), Plan { bookings: vec![new], ..Plan::default() });
}

/// The pools offer halves and thirds of a device.
fn offer(scene: &mut Snapshot, observed: bool) {
    for pool in &mut scene.pools {
        let one = |name: &str, milli| Profile { name: name.into(), gpu: MilliGpu(milli) };
        pool.profiles = vec![one("half", 500), one("third", 333)];
        pool.observed = observed;
    }
}

#[test]
fn shares_are_planned_where_nothing_is_held() {
    let mut scene = scene();
    offer(&mut scene, true);
    ask(&mut scene, "1st", |r| r.shape = Shape::Shares { count: 3, profile: "half".into() });
    ask(&mut scene, "2nd", |r| r.shape = Shape::Shares { count: 1, profile: "third".into() });
    ask(&mut scene, "3rd", |r| r.shape = Shape::Devices { count: 7, per_node: None });
    let mut planner = Planner::open(scene);
    let plan = planner.plan(NOW);
    let said: Vec<String> = plan
        .bookings
        .iter()
        .map(|new| {
            let shares = new.shares.iter().map(|share| format!("{}/{}:{}", share.node, share.device, share.gpu.0));
            let parts = new.segments.iter().map(|segment| format!("{}={}", segment.node, segment.devices));
            format!("{} {}", new.reservation.name, shares.chain(parts).collect::<Vec<_>>().join(" "))
        })
        .collect();
    // Seven devices are no longer free on the node with shares.
    assert_eq!(said, ["1st a-1/0:500 a-1/0:500 a-1/1:500", "2nd a-1/1:333", "3rd a-2=7"]);
    assert_eq!(planner.plan(NOW), plan, "a plan took something for good");
}

#[rstest]
#[case::no_tenant(
    |s: &mut Snapshot| ask(s, "r", |r| r.tenant = None),
    "Waitlisted NoTenant: No Tenant lists namespace `ns`: ask the operator of the cluster to add it to one. The reservation waits for that."
)]
#[case::tenant_is_gone(
    |s: &mut Snapshot| ask(s, "r", |r| r.tenant = Some("gone".into())),
    "Waitlisted NoTenant: No Tenant lists namespace `ns`: ask the operator of the cluster to add it to one. The reservation waits for that."
)]
#[case::internal_is_the_owners(
    |s: &mut Snapshot| ask(s, "r", |r| r.tier = Tier::Internal),
    "Rejected TierNotAllowed: Tier Internal is for the owner of the fleet only, and tenant `acme` is not: use Committed, OnDemand or Spot."
)]
#[case::no_such_share(
    |s: &mut Snapshot| ask(s, "r", |r| r.shape = Shape::Shares { count: 1, profile: "half".into() }),
    "Rejected ShapeDoesNotFit: Pool `a` has no profile `half`: it has none."
)]
#[case::shares_are_not_held(
    |s: &mut Snapshot| { offer(s, false); ask(s, "r", |r| r.shape = Shape::Shares { count: 1, profile: "half".into() }) },
    "Rejected ShapeDoesNotFit: Shares of a device are planned only so far, and pool `a` does not observe: ask for whole devices."
)]
#[case::more_shares_than_there_are(
    |s: &mut Snapshot| { offer(s, true); ask(s, "r", |r| r.shape = Shape::Shares { count: 65, profile: "half".into() }) },
    "Rejected ShapeDoesNotFit: 65 shares `half` wanted, but pool `a` can give 64 together, free or not: ask for at most 64."
)]
#[case::shares_that_are_taken(
    |s: &mut Snapshot| {
        offer(s, true);
        sell(s, booking("old", &["a-1", "a-2", "a-3"]));
        ask(s, "r", |r| r.shape = Shape::Shares { count: 17, profile: "half".into() });
    },
    "Waitlisted InsufficientCapacity: 17 shares `half` wanted, 16 free in pool `a`. It is booked when enough come free or nodes are added; nothing younger is booked there before it."
)]
#[case::no_such_pool(
    |s: &mut Snapshot| ask(s, "r", |r| r.place = Where::Pool("b".into())),
    "Waitlisted NoMatchingPool: There is no GpuPool `b` (there is `a`). It is tried again when such a pool is created."
)]
#[case::no_such_sku(
    |s: &mut Snapshot| ask(s, "r", |r| r.place = Where::Sku("b200".into(), "us-east".into())),
    "Waitlisted NoMatchingPool: No GpuPool has `b200` in region `us-east` (there is `h200 in us-east`). It is tried again when such a pool is created."
)]
#[case::no_pool_at_all(
    |s: &mut Snapshot| { s.pools.clear(); ask(s, "r", |r| r.place = sku()) },
    "Waitlisted NoMatchingPool: No GpuPool has `h200` in region `us-east` (there is none at all). It is tried again when such a pool is created."
)]
#[case::too_large(
    |s: &mut Snapshot| ask(s, "r", |r| r.shape = whole(40)),
    "Rejected ShapeDoesNotFit: 40 devices wanted, but pool `a` has 32 in all, free or not: ask for at most 32."
)]
#[case::not_whole_nodes(
    |s: &mut Snapshot| ask(s, "r", |r| r.shape = whole(12)),
    "Rejected ShapeDoesNotFit: 12 devices are not whole nodes of pool `a`: ask for a multiple of 8, or set `exclusiveNodes: false`."
)]
#[case::nodes_of_another_size(
    |s: &mut Snapshot| ask(s, "r", |r| r.shape = Shape::WholeNodes { count: 8, per_node: Some(4) }),
    "Rejected ShapeDoesNotFit: Nodes of pool `a` have 8 devices: ask for 8 per node."
)]
#[case::no_rack_is_large_enough(
    |s: &mut Snapshot| ask(s, "r", |r| { r.shape = whole(24); r.require = Some("rack".into()) }),
    "Rejected ShapeDoesNotFit: 24 devices wanted in one `rack`, but the largest of pool `a` has 16, free or not: ask for at most 16, or require a wider level."
)]
#[case::unknown_level(
    |s: &mut Snapshot| ask(s, "r", |r| r.require = Some("row".into())),
    "Rejected UnknownTopology: `row` is no topology level of pool `a`: its levels are `zone`, `rack`."
)]
#[case::two_pools_for_two_reasons(
    |s: &mut Snapshot| {
        s.pools.push(Pool { topology: Vec::new(), ..pool("b", "h200") });
        ask(s, "r", |r| { r.place = sku(); r.shape = whole(24); r.require = Some("rack".into()) });
    },
    "Rejected ShapeDoesNotFit: 24 devices wanted in one `rack`, but the largest of pool `a` has 16, free or not: ask for at most 16, or require a wider level. `rack` is no topology level of pool `b`: its levels are none."
)]
#[case::region(
    |s: &mut Snapshot| { s.tenants[0].regions = vec!["eu-west".into(), "eu-north".into()]; ask(s, "r", |_| ()) },
    "Rejected RegionNotAllowed: Tenant `acme` may not reserve in region `us-east`, only in `eu-west`, `eu-north`: use one of those, or ask for this region to be added to the Tenant."
)]
#[case::region_even_before_there_is_a_pool(
    |s: &mut Snapshot| {
        s.tenants[0].regions = vec!["eu-west".into()];
        ask(s, "r", |r| r.place = Where::Sku("h200".into(), "mars".into()));
    },
    "Rejected RegionNotAllowed: Tenant `acme` may not reserve in region `mars`, only in `eu-west`: use one of those, or ask for this region to be added to the Tenant."
)]
#[case::alone_over_quota(
    |s: &mut Snapshot| { quota(s, 8); ask(s, "r", |r| r.shape = whole(16)) },
    "Rejected QuotaExceeded: 16 devices of `h200` wanted in tier OnDemand, but the quota of tenant `acme` is 8 in all: ask for at most 8, or for a higher quota."
)]
#[case::together_over_quota(
    |s: &mut Snapshot| { quota(s, 16); sell(s, booking("old", &["a-1"])); ask(s, "r", |r| r.shape = whole(16)) },
    "Waitlisted QuotaInUse: 16 devices of `h200` wanted in tier OnDemand, but tenant `acme` holds 8 of its quota of 16: 8 are left. It is tried again when a reservation of the tenant ends or the quota is raised."
)]
#[case::no_capacity(
    |s: &mut Snapshot| {
        sell(s, booking("old", &["a-1"]));
        s.nodes[1].owner_use.gpu = MilliGpu::whole(1);
        s.nodes[2].sale = NodeSale::NotNow;
        s.nodes[3].sale = NodeSale::Broken;
        ask(s, "r", |_| ());
    },
    "Waitlisted InsufficientCapacity: 8 devices wanted, 0 free of 32 in pool `a` (8 sold, 8 used by the owner, 8 in turnover or not ready, 8 on broken or cordoned nodes). It is booked when enough come free or nodes are added; nothing younger is booked there before it."
)]
#[case::no_capacity_in_one_rack(
    |s: &mut Snapshot| {
        sell(s, booking("old", &["a-1", "a-3"]));
        ask(s, "r", |r| { r.shape = whole(16); r.require = Some("rack".into()) });
    },
    "Waitlisted InsufficientCapacity: 16 devices wanted, 16 free of 32 in pool `a` (16 sold). They must be in one `rack`, and none has more than 8 free. It is booked when enough come free or nodes are added; nothing younger is booked there before it."
)]
#[case::no_capacity_in_any_of_three(
    |s: &mut Snapshot| {
        s.pools.extend([pool("b", "h200"), pool("c", "h200")]);
        sell(s, booking("old", &["a-1"]));
        ask(s, "r", |r| { r.place = sku(); r.shape = whole(32) });
    },
    "Waitlisted InsufficientCapacity: 32 devices wanted, 24 free of 32 in pool `a` (8 sold), and 2 other pools cannot take it either. It is booked when enough come free or nodes are added; nothing younger is booked there before it."
)]
#[case::a_pool_without_nodes(
    |s: &mut Snapshot| { s.nodes.clear(); ask(s, "r", |r| r.require = Some("rack".into())) },
    "Waitlisted InsufficientCapacity: 8 devices wanted, 0 free of 0 in pool `a`. It is booked when enough come free or nodes are added; nothing younger is booked there before it."
)]
#[case::not_selling(
    |s: &mut Snapshot| { s.pools[0].not_selling = Some("`sale.paused` is set.".into()); ask(s, "r", |_| ()) },
    "Waitlisted PoolNotSelling: Pool `a` sells nothing new now: `sale.paused` is set. It is tried again when the pool sells again."
)]
#[case::not_selling_and_full(
    |s: &mut Snapshot| {
        s.pools.push(Pool { not_selling: Some("paused".into()), ..pool("b", "h200") });
        sell(s, booking("old", &["a-1", "a-2", "a-3", "a-4"]));
        ask(s, "r", |r| r.place = sku());
    },
    "Waitlisted InsufficientCapacity: 8 devices wanted, 0 free of 32 in pool `a` (32 sold), and 1 other pool cannot take it either. It is booked when enough come free or nodes are added; nothing younger is booked there before it."
)]
#[case::tried_once(
    |s: &mut Snapshot| { s.nodes.truncate(1); s.nodes[0].sale = NodeSale::NotNow; ask(s, "r", |r| r.wait_for_ms = 0) },
    "Rejected NotNow: Not now, and waitFor is 0s (InsufficientCapacity): 8 devices wanted, 0 free of 8 in pool `a` (8 in turnover or not ready). It is booked when enough come free or nodes are added; nothing younger is booked there before it. Create it again with a longer waitFor to wait."
)]
#[case::waited_in_vain(
    |s: &mut Snapshot| {
        s.nodes.clear();
        ask(s, "r", |r| { r.wait_for_ms = 90_000; r.created = TimeMs(NOW.0 - 90_000) });
    },
    "Expired WaitedTooLong: It waited 90s (waitFor) in vain (InsufficientCapacity): 8 devices wanted, 0 free of 0 in pool `a`. It is booked when enough come free or nodes are added; nothing younger is booked there before it. Create it again to wait anew."
)]
fn refusals_say_why_and_what_would_help(#[case] change: fn(&mut Snapshot), #[case] expected: &str) {
    let mut scene = scene();
    change(&mut scene);
    assert_eq!(answer(&scene), expected);
}

fn quota(snapshot: &mut Snapshot, limit: u32) {
    snapshot.tenants[0].quotas = vec![Quota { sku: "h200".into(), tier: Tier::OnDemand, limit }];
}

#[test]
fn behind_an_older_one_nobody_passes() {
    let mut scene = scene();
    sell(&mut scene, booking("old", &["a-1"]));
    ask(&mut scene, "big", |request| request.shape = whole(32));
    ask(&mut scene, "small", |request| request.created = NOW.plus(1));
    let plan = plan(&scene, NOW);
    assert_eq!(told(&plan), ["big: Waitlisted InsufficientCapacity", "small: Waitlisted BehindOlderRequest"]);
    let (_, reason) = parts(&plan.outcomes[1].1);
    assert_eq!(
        reason.message,
        "8 devices wanted, 24 free of 32 in pool `a` (8 sold), but 1 older reservation waits for that pool, and nobody is passed. \
         It is tried again when those before it are booked or give up."
    );
}

#[rstest]
#[case::one_that_waits_for_quota(
    |s: &mut Snapshot| { quota(s, 8); sell(s, booking("old", &["a-1"])); ask(s, "first", |_| ()) },
    &["next: a-2", "first: Waitlisted QuotaInUse"]
)]
#[case::one_without_a_pool(
    |s: &mut Snapshot| ask(s, "first", |r| r.place = Where::Pool("b".into())),
    &["next: a-1", "first: Waitlisted NoMatchingPool"]
)]
#[case::one_that_is_refused(
    |s: &mut Snapshot| ask(s, "first", |r| r.shape = whole(80)),
    &["next: a-1", "first: Rejected ShapeDoesNotFit"]
)]
#[case::one_that_does_not_wait(
    |s: &mut Snapshot| { s.nodes[1].sale = NodeSale::NotNow; ask(s, "first", |r| { r.shape = whole(32); r.wait_for_ms = 0 }) },
    &["next: a-1", "first: Rejected NotNow"]
)]
#[case::one_that_waited_long_enough(
    |s: &mut Snapshot| {
        s.nodes[1].sale = NodeSale::NotNow;
        ask(s, "first", |r| { r.shape = whole(32); r.created = TimeMs(0); r.wait_for_ms = 5 });
    },
    &["next: a-1", "first: Expired WaitedTooLong"]
)]
#[case::one_that_is_deleted(
    |s: &mut Snapshot| ask(s, "first", |r| { r.shape = whole(32); r.deleting = true }),
    &["next: a-1"]
)]
#[case::one_that_waits_for_another_pool(
    |s: &mut Snapshot| { s.pools.push(pool("b", "h200")); ask(s, "first", |r| r.place = Where::Pool("b".into())) },
    &["next: a-1", "first: Waitlisted InsufficientCapacity"]
)]
#[case::one_that_this_pool_could_never_hold(
    |s: &mut Snapshot| {
        s.pools.push(Pool { devices_per_node: 5, ..pool("b", "h200") });
        ask(s, "first", |r| { r.place = sku(); r.shape = whole(5) });
    },
    &["next: a-1", "first: Waitlisted InsufficientCapacity"]
)]
#[case::not_one_that_waits_for_both(
    |s: &mut Snapshot| {
        s.pools.push(pool("b", "h200"));
        s.nodes[1].sale = NodeSale::Broken;
        ask(s, "first", |r| { r.place = sku(); r.shape = whole(32) });
    },
    &["first: Waitlisted InsufficientCapacity", "next: Waitlisted BehindOlderRequest"]
)]
#[case::not_one_that_waits_for_a_rack(
    |s: &mut Snapshot| {
        s.nodes[0].sale = NodeSale::NotNow;
        s.nodes[2].sale = NodeSale::NotNow;
        ask(s, "first", |r| { r.shape = whole(16); r.require = Some("rack".into()) });
    },
    &["first: Waitlisted InsufficientCapacity", "next: Waitlisted BehindOlderRequest"]
)]
fn who_is_passed(#[case] first: fn(&mut Snapshot), #[case] expected: &[&str]) {
    let mut scene = scene();
    scene.tenants.push(tenant("beta", false));
    first(&mut scene);
    ask(&mut scene, "next", |request| {
        request.created = NOW.plus(1);
        request.tenant = Some("beta".into());
    });
    assert_eq!(told(&plan(&scene, NOW.plus(1))), expected);
}

#[rstest]
#[case::by_creation(|r: &mut Request| { r.created = TimeMs(5); r.reservation.name = "z".into() })]
#[case::then_by_namespace(|r: &mut Request| { r.reservation.namespace = "a".into(); r.reservation.name = "z".into() })]
#[case::then_by_name(|r: &mut Request| r.reservation.name = "a".into())]
#[case::then_by_uid(|r: &mut Request| { r.reservation.name = "m".into(); r.reservation.uid = "a".into() })]
fn order_of_service(#[case] first: fn(&mut Request)) {
    let mut scene = scene();
    scene.nodes.truncate(1);
    ask(&mut scene, "m", |request| request.created = TimeMs(10));
    ask(&mut scene, "m", |request| {
        request.created = TimeMs(10);
        request.reservation.uid = "later".into();
        first(request);
    });
    let last = scene.requests[1].reservation.clone();
    let plan = plan(&scene, NOW);
    assert_eq!(plan.bookings.iter().map(|new| &new.reservation).collect::<Vec<_>>(), [&last]);
}

#[rstest]
#[case::the_fullest_that_suffices(8, "a-1")]
#[case::the_other_when_it_must(16, "b-1 b-2")]
fn among_pools(#[case] count: u32, #[case] nodes: &str) {
    let mut scene = scene();
    scene.pools.push(pool("b", "h200"));
    scene.pools.push(pool("c", "h100"));
    scene.nodes.truncate(1);
    scene.nodes.extend([node("b-1", "r"), node("b-2", "r"), node("b-3", "r"), node("c-1", "r")]);
    ask(&mut scene, "r", |request| {
        request.place = sku();
        request.shape = whole(count);
    });
    assert_eq!(told(&plan(&scene, NOW)), [format!("r: {nodes}")]);
}

#[rstest]
#[case::of_another_tenant(|b: &mut Booking| b.tenant = "beta".into(), true)]
#[case::of_another_tier(|b: &mut Booking| b.tier = Tier::Spot, true)]
#[case::of_another_sku(|b: &mut Booking| b.sku = "h100".into(), true)]
#[case::short_of_a_node_it_still_counts(|b: &mut Booking| b.segments[0].to = Some(TimeMs(3000)), false)]
#[case::that_ends_now(|b: &mut Booking| b.end = Some(NOW), true)]
#[case::its_own(|_: &mut Booking| (), false)]
fn quota_counts_what_the_tenant_holds(#[case] change: fn(&mut Booking), #[case] fits: bool) {
    let mut scene = scene();
    quota(&mut scene, 8);
    let mut held = booking("old", &["a-1"]);
    change(&mut held);
    sell(&mut scene, held);
    ask(&mut scene, "r", |_| ());
    assert_eq!(!plan(&scene, NOW).bookings.is_empty(), fits);
}

#[test]
fn quota_counts_what_was_decided_before_in_the_same_plan() {
    let mut scene = scene();
    quota(&mut scene, 8);
    scene.tenants[0].quotas.push(Quota { sku: "h200".into(), tier: Tier::OnDemand, limit: 100 });
    ask(&mut scene, "r1", |_| ());
    ask(&mut scene, "r2", |_| ());
    ask(&mut scene, "r3", |request| request.tier = Tier::Spot);
    assert_eq!(told(&plan(&scene, NOW)), ["r1: a-1", "r3: a-2", "r2: Waitlisted QuotaInUse"]);
}

#[test]
fn the_owner_may_use_the_internal_tier() {
    let mut scene = scene();
    ask(&mut scene, "r", |request| {
        request.tier = Tier::Internal;
        request.tenant = Some("house".into());
    });
    assert_eq!(told(&plan(&scene, NOW)), ["r: a-1"]);
}

#[rstest]
#[case::in_turnover(|s: &mut Snapshot| s.nodes[0].sale = NodeSale::NotNow, "a-2")]
#[case::broken(|s: &mut Snapshot| s.nodes[0].sale = NodeSale::Broken, "a-2")]
#[case::lost(|s: &mut Snapshot| s.nodes[0].health = NodeHealth::Lost(NOW), "a-2")]
#[case::the_owner_uses_a_device(|s: &mut Snapshot| s.nodes[0].owner_use.gpu = MilliGpu(1), "a-2")]
#[case::the_owner_uses_cpu(|s: &mut Snapshot| s.nodes[0].owner_use.cpu_milli = 64_000, "a-1")]
#[case::sold(|s: &mut Snapshot| sell(s, booking("old", &["a-1"])), "a-2")]
#[case::sold_and_to_be_replaced(
    |s: &mut Snapshot| sell(s, Booking { tenant: "beta".into(), pool: "gone".into(), ..booking("old", &["a-1"]) }),
    "a-2"
)]
#[case::sold_in_part(|s: &mut Snapshot| {
    let mut part = booking("old", &["a-1"]);
    (part.exclusive, part.devices, part.segments[0].devices) = (false, 1, 1);
    sell(s, part);
}, "a-2")]
#[case::sold_to_one_whose_term_is_over(
    |s: &mut Snapshot| sell(s, Booking { end: Some(TimeMs(5000)), ..booking("old", &["a-1"]) }),
    "a-2"
)]
#[case::booked_by_a_clock_that_runs_ahead(|s: &mut Snapshot| {
    let mut early = booking("old", &["a-1"]);
    (early.booked_at, early.segments[0].from, early.end) = (NOW.plus(HOUR), None, Some(NOW.plus(1)));
    sell(s, early);
}, "a-2")]
#[case::another_device_count(|s: &mut Snapshot| s.nodes[0].capacity.gpu = MilliGpu::whole(7), "a-2")]
#[case::of_another_pool(|s: &mut Snapshot| s.nodes[0].pool = "b".into(), "a-2")]
#[case::held_once_but_no_more(|s: &mut Snapshot| {
    let mut moved = booking("old", &["a-1", "a-2"]);
    (moved.devices, moved.segments[0].to) = (8, Some(TimeMs(3000)));
    sell(s, moved);
}, "a-1")]
fn only_free_nodes_are_sold(#[case] change: fn(&mut Snapshot), #[case] node: &str) {
    let mut scene = scene();
    change(&mut scene);
    ask(&mut scene, "r", |_| ());
    assert_eq!(told(&plan(&scene, NOW)), [format!("r: {node}")]);
}

#[rstest]
#[case::goes_on(None, false, None)]
#[case::term_is_not_over(Some(NOW.0 + 1), false, None)]
#[case::term_is_over(Some(NOW.0), false, Some((NOW.0, EndReason::TermOver)))]
#[case::term_was_over_while_nobody_looked(Some(5000), false, Some((5000, EndReason::TermOver)))]
#[case::deleted(None, true, Some((NOW.0, EndReason::Deleted)))]
#[case::deleted_before_its_end(Some(NOW.0 + 1), true, Some((NOW.0, EndReason::Deleted)))]
#[case::deleted_after_its_end(Some(5000), true, Some((5000, EndReason::TermOver)))]
fn bookings_end(#[case] end: Option<i64>, #[case] deleting: bool, #[case] expected: Option<(i64, EndReason)>) {
    let mut scene = scene();
    sell(&mut scene, Booking { end: end.map(TimeMs), ..booking("old", &["a-1"]) });
    scene.requests[0].deleting = deleting;
    let expected = expected.map(|(at, reason)| End { booking: "old".into(), at: TimeMs(at), reason });
    let next = end.map(TimeMs).filter(|_| expected.is_none());
    assert_eq!(plan(&scene, NOW), Plan { ends: expected.into_iter().collect(), next, ..Plan::default() });
}

#[test]
fn a_booking_that_is_not_active_yet_ends_when_deleted() {
    let mut scene = scene();
    sell(&mut scene, Booking { active_at: None, segments: vec![segment("a-1")], ..booking("old", &["a-1"]) });
    scene.requests[0].deleting = true;
    let end = End { booking: "old".into(), at: NOW, reason: EndReason::Deleted };
    assert_eq!(plan(&scene, NOW).ends, [end]);
}

#[test]
fn a_cache_that_is_behind_ends_no_contract() {
    let mut scene = scene();
    scene.bookings.push(Arc::new(booking("old", &["a-1"])));
    assert_eq!(plan(&scene, NOW), Plan::default());
}

fn swap(lost: Option<&str>, at: TimeMs, replacement: Option<&str>) -> Swap {
    Swap { booking: "old".into(), lost: lost.map(uid), at, replacement: replacement.map(segment) }
}

const LOST_AT: TimeMs = TimeMs(900_000);

fn lose(snapshot: &mut Snapshot, node: usize) {
    snapshot.nodes[node].health = NodeHealth::Lost(LOST_AT);
}

#[rstest]
#[case::replaced_where_it_fits_best(&["a-3"], |s: &mut Snapshot| lose(s, 2), vec![swap(Some("a-3"), LOST_AT, Some("a-4"))])]
#[case::close_to_what_remains(
    &["a-1", "a-3"],
    |s: &mut Snapshot| lose(s, 0),
    vec![swap(Some("a-1"), LOST_AT, Some("a-4"))]
)]
#[case::gone(&["a-1"], |s: &mut Snapshot| { s.nodes.remove(0); }, vec![swap(Some("a-1"), NOW, Some("a-2"))])]
#[case::re_created_under_the_same_name(
    &["a-1"],
    |s: &mut Snapshot| s.nodes[0].uid = "another".into(),
    vec![Swap {
        replacement: Some(Segment { uid: "another".into(), ..segment("a-1") }),
        ..swap(Some("a-1"), NOW, None)
    }]
)]
#[case::never_before_it_was_handed_over(
    &["a-1"],
    |s: &mut Snapshot| s.nodes[0].health = NodeHealth::Lost(TimeMs(1500)),
    vec![swap(Some("a-1"), TimeMs(2000), Some("a-2"))]
)]
#[case::nothing_is_free(
    &["a-1"],
    |s: &mut Snapshot| { s.nodes.truncate(1); lose(s, 0) },
    vec![swap(Some("a-1"), LOST_AT, None)]
)]
#[case::two_lost_one_free(
    &["a-1", "a-2", "a-3"],
    |s: &mut Snapshot| { lose(s, 0); lose(s, 1) },
    vec![swap(Some("a-1"), LOST_AT, Some("a-4")), swap(Some("a-2"), LOST_AT, None)]
)]
#[case::not_out_of_the_required_rack(
    &["a-1", "a-2"],
    |s: &mut Snapshot| { require(s); lose(s, 0) },
    vec![swap(Some("a-1"), LOST_AT, None)]
)]
#[case::within_the_required_zone(
    &["a-1", "a-2"],
    |s: &mut Snapshot| { change(s, |b| b.require = Some("zone".into())); lose(s, 0) },
    vec![swap(Some("a-1"), LOST_AT, Some("a-3"))]
)]
#[case::all_lost_together_to_another_rack(
    &["a-1", "a-2"],
    |s: &mut Snapshot| { require(s); lose(s, 0); lose(s, 1) },
    vec![swap(Some("a-1"), LOST_AT, Some("a-3")), swap(Some("a-2"), LOST_AT, Some("a-4"))]
)]
#[case::what_remains_left_the_pool(
    &["a-1", "a-2"],
    |s: &mut Snapshot| { require(s); lose(s, 0); s.nodes[1].pool = "b".into() },
    vec![swap(Some("a-1"), LOST_AT, None)]
)]
#[case::the_pool_is_gone(&["a-1"], |s: &mut Snapshot| { s.pools.clear(); lose(s, 0) }, vec![swap(Some("a-1"), LOST_AT, None)])]
#[case::the_pools_nodes_are_of_another_size_now(
    &["a-1"],
    |s: &mut Snapshot| { change(s, |b| (b.devices, b.segments[0].devices) = (4, 4)); lose(s, 0) },
    vec![swap(Some("a-1"), LOST_AT, None)]
)]
#[case::sale_is_paused(
    &["a-1"],
    |s: &mut Snapshot| { s.pools[0].not_selling = Some("paused".into()); lose(s, 0) },
    vec![swap(Some("a-1"), LOST_AT, Some("a-2"))]
)]
#[case::short_since_earlier(
    &["a-1", "a-2"],
    |s: &mut Snapshot| change(s, |b| b.segments[1].to = Some(LOST_AT)),
    vec![swap(None, NOW, Some("a-2"))]
)]
#[case::short_and_nothing_is_free(
    &["a-1", "a-2"],
    |s: &mut Snapshot| { s.nodes.truncate(1); change(s, |b| b.segments[1].to = Some(LOST_AT)) },
    vec![]
)]
#[case::short_and_losing_more(
    &["a-1", "a-2", "a-3"],
    |s: &mut Snapshot| { change(s, |b| b.segments[1].to = Some(LOST_AT)); lose(s, 2) },
    vec![swap(Some("a-3"), LOST_AT, Some("a-2")), swap(None, NOW, Some("a-4"))]
)]
#[case::away_for_a_moment(&["a-1"], |s: &mut Snapshot| s.nodes[0].sale = NodeSale::NotNow, vec![])]
#[case::cordoned(&["a-1"], |s: &mut Snapshot| s.nodes[0].sale = NodeSale::Broken, vec![])]
#[case::ending_anyway(&["a-1"], |s: &mut Snapshot| { lose(s, 0); s.requests[0].deleting = true }, vec![])]
fn lost_nodes(#[case] nodes: &[&str], #[case] lose: fn(&mut Snapshot), #[case] expected: Vec<Swap>) {
    let mut scene = scene();
    sell(&mut scene, booking("old", nodes));
    lose(&mut scene);
    assert_eq!(plan(&scene, NOW).swaps, expected);
}

fn change(snapshot: &mut Snapshot, change: impl FnOnce(&mut Booking)) {
    change(Arc::make_mut(&mut snapshot.bookings[0]));
}

fn require(snapshot: &mut Snapshot) {
    change(snapshot, |booking| booking.require = Some("rack".into()));
}

#[test]
fn replacements_come_before_sales_and_commitments_before_the_rest() {
    let mut scene = scene();
    scene.nodes.truncate(3);
    sell(&mut scene, booking("old", &["a-1"]));
    let committed = Booking { tier: Tier::Committed, booked_at: TimeMs(1500), ..booking("promise", &["a-2"]) };
    sell(&mut scene, committed);
    lose(&mut scene, 0);
    lose(&mut scene, 1);
    ask(&mut scene, "r", |_| ());
    let plan = plan(&scene, NOW);
    let promise = Swap { booking: "promise".into(), ..swap(Some("a-2"), LOST_AT, Some("a-3")) };
    assert_eq!(plan.swaps, [promise, swap(Some("a-1"), LOST_AT, None)]);
    assert_eq!(told(&plan), ["r: Waitlisted InsufficientCapacity"]);
}

#[rstest]
#[case::a_term_ends_first(NOW.0 + 10, NOW.0 + 20, 10)]
#[case::a_wait_is_over_first(NOW.0 + 20, NOW.0 + 10, 10)]
fn next_is_the_first_of_what_time_alone_changes(#[case] end: i64, #[case] deadline: i64, #[case] next: i64) {
    let mut scene = scene();
    sell(&mut scene, Booking { end: Some(TimeMs(end)), ..booking("old", &["a-1", "a-2", "a-3", "a-4"]) });
    sell(&mut scene, Booking { end: Some(TimeMs(5000)), ..booking("over", &["a-5"]) });
    sell(&mut scene, Booking { end: Some(NOW.plus(1)), ..booking("deleted", &["a-6"]) });
    scene.requests[2].deleting = true;
    ask(&mut scene, "r", |request| request.wait_for_ms = deadline - NOW.0);
    assert_eq!(plan(&scene, NOW).next, Some(NOW.plus(next)));
    assert_eq!(plan(&scene, NOW.plus(100)).next, None);
}

#[test]
fn a_wait_that_is_over_still_ends_in_a_booking_if_it_fits() {
    let mut scene = scene();
    ask(&mut scene, "r", |request| (request.created, request.wait_for_ms) = (TimeMs(0), 1));
    assert_eq!(told(&plan(&scene, NOW)), ["r: a-1"]);
}

#[test]
fn messages_are_bounded_whatever_names_say() {
    let long = "ñ".repeat(400);
    let mut scene = scene();
    for at in 0..40 {
        let level: TopologyKey = format!("{long}{at}").into();
        scene.pools.push(Pool { topology: vec![level; 9], ..pool(&format!("{long}{at}"), "h100") });
    }
    scene.pools[0].not_selling = Some(long.clone());
    scene.tenants[0].name = long.as_str().into();
    scene.tenants[0].regions = vec![long.as_str().into(); 50];
    scene.tenants[0].regions.push("us-east".into());
    let places = [
        Where::Pool("a".into()),
        Where::Pool(long.as_str().into()),
        Where::Pool(format!("{long}1").into()),
        Where::Sku("h100".into(), "us-east".into()),
        Where::Sku(Sku::from(long.as_str()), "us-east".into()),
        Where::Sku(Sku::from(long.as_str()), "elsewhere".into()),
    ];
    for (at, place) in places.into_iter().enumerate() {
        for wait_for_ms in [0, 1, HOUR] {
            for require in [None, Some(TopologyKey::from(long.as_str()))] {
                let name = format!("r{at}-{wait_for_ms}-{}", require.is_some());
                ask(&mut scene, &name, |request| {
                    (request.place, request.wait_for_ms, request.require) = (place.clone(), wait_for_ms, require);
                    request.tenant = Some(long.as_str().into());
                });
            }
        }
    }
    let plan = plan(&scene, NOW.plus(1));
    assert_eq!(plan.outcomes.len(), 36);
    for (_, outcome) in &plan.outcomes {
        let (_, reason) = parts(outcome);
        assert!(reason.message.len() <= 600 && reason.message.ends_with(['.', '…']), "{}", reason.message);
    }
}
