//! What holds for every snapshot. The checks here are written from the promises, not from the code: they scan.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::{packing::Learned, placement::part_item, types::TenantName};

/// Times in the snapshots are small, and this is in the middle of them.
const NOW: TimeMs = TimeMs(50);

/// Pools `a` and `b` sell the same in one region, `c` another SKU on smaller nodes, and `d` sells nothing and may have no nodes.
fn pools() -> Vec<Pool> {
    vec![
        pool("a", "h200"),
        Pool { topology: vec!["zone".into()], ..pool("b", "h200") },
        Pool { devices_per_node: 4, ..pool("c", "l40s") },
        Pool { not_selling: Some("paused".into()), ..pool("d", "h200") },
    ]
}

fn part(count: u32) -> Shape {
    Shape::Devices { count, per_node: None }
}

#[derive(Clone, Debug)]
struct NodeSeed {
    pool: usize,
    zone: Option<u8>,
    rack: Option<u8>,
    sale: NodeSale,
    lost: Option<i64>,
    gone: bool,
    owner: bool,
    odd: bool,
    returning: u32,
    booking: Option<usize>,
}

fn nodes() -> impl Strategy<Value = Vec<NodeSeed>> {
    let seed = (
        prop::sample::select(vec![0usize, 0, 0, 1, 1, 2, 2, 3]),
        prop::option::weighted(0.9, 0..2u8),
        prop::option::weighted(0.9, 0..2u8),
        prop::sample::select(vec![
            NodeSale::Open,
            NodeSale::Open,
            NodeSale::Open,
            NodeSale::Shared,
            NodeSale::NotNow,
            NodeSale::Broken,
        ]),
        prop::option::weighted(0.15, 0..100i64),
        prop::bool::weighted(0.1),
        prop::bool::weighted(0.1),
        prop::bool::weighted(0.05),
        prop::sample::select(vec![0u32, 0, 0, 0, 2]),
        prop::option::weighted(0.4, 0..6usize),
    );
    let seed = seed.prop_map(|(pool, zone, rack, sale, lost, gone, owner, odd, returning, booking)| NodeSeed {
        pool,
        zone,
        rack,
        sale,
        lost,
        gone,
        owner,
        odd,
        returning,
        booking,
    });
    prop::collection::vec(seed, 0..24)
}

#[derive(Clone, Debug)]
struct BookingSeed {
    tenant: usize,
    tier: Tier,
    end: Option<i64>,
    missing: u32,
    require: bool,
    /// Parts of nodes: so many devices of each.
    part: Option<u32>,
    /// In the requests, and whether deleting.
    request: Option<bool>,
}

fn tiers() -> impl Strategy<Value = Tier> {
    prop::sample::select(vec![Tier::Committed, Tier::OnDemand, Tier::OnDemand, Tier::Spot, Tier::Internal])
}

fn bookings() -> impl Strategy<Value = Vec<BookingSeed>> {
    let seed = (
        0..2usize,
        tiers(),
        prop::option::of(0..100i64),
        prop::sample::select(vec![0u32, 0, 0, 1, 2]),
        any::<bool>(),
        prop::option::weighted(0.4, 1..4u32),
        prop::option::weighted(0.8, prop::bool::weighted(0.2)),
    );
    let seed = seed.prop_map(|(tenant, tier, end, missing, require, part, request)| BookingSeed {
        tenant,
        tier,
        end,
        missing,
        require,
        part,
        request,
    });
    prop::collection::vec(seed, 6)
}

fn requests() -> impl Strategy<Value = Vec<Request>> {
    let places = vec![
        Where::Pool("a".into()),
        Where::Pool("c".into()),
        Where::Pool("d".into()),
        Where::Pool("none".into()),
        sku(),
        sku(),
        sku(),
        Where::Sku("l40s".into(), "us-east".into()),
    ];
    let shapes = vec![
        whole(8),
        whole(8),
        whole(16),
        whole(24),
        whole(32),
        whole(4),
        whole(0),
        Shape::Shares { count: 1, profile: "half".into() },
        part(1),
        part(3),
        part(3),
        part(8),
        part(11),
        Shape::Devices { count: 6, per_node: Some(2) },
    ];
    let levels: Vec<Option<TopologyKey>> =
        vec![None, None, None, Some("zone".into()), Some("rack".into()), Some("row".into())];
    let seed = (
        prop::sample::select(places),
        prop::sample::select(shapes),
        prop::sample::select(levels),
        prop::sample::select(vec![Some("acme"), Some("acme"), Some("house"), Some("gone"), None]),
        tiers(),
        0..60i64,
        prop::sample::select(vec![0i64, 10, 1000, 1000, 1000]),
        prop::bool::weighted(0.1),
    );
    let seed = seed.prop_map(|(place, shape, require, tenant, tier, created, wait_for_ms, deleting)| Request {
        place,
        shape,
        require,
        tenant: tenant.map(TenantName::from),
        tier,
        created: TimeMs(created),
        wait_for_ms,
        deleting,
        ..request("")
    });
    prop::collection::vec(seed, 0..14).prop_map(|mut requests| {
        for (at, request) in requests.iter_mut().enumerate() {
            request.reservation = reservation(&format!("r{at:02}"));
        }
        requests
    })
}

/// Snapshots in which no node is sold twice.
fn snapshots() -> impl Strategy<Value = Snapshot> {
    let limited = prop::sample::select(vec![Tier::OnDemand, Tier::OnDemand, Tier::Committed, Tier::Spot]);
    let limits = prop::collection::vec((limited, prop::sample::select(vec!["h200", "h200", "l40s"]), 0..4u32), 0..3);
    let seen = prop::collection::vec(1..9u32, 0..30);
    (nodes(), bookings(), requests(), limits, prop::bool::weighted(0.1), seen).prop_map(
        |(seeds, bookings, requests, limits, elsewhere, seen)| {
            let mut snapshot = Snapshot {
                pools: pools(),
                tenants: vec![tenant("acme", false), tenant("house", true)],
                requests,
                ..Snapshot::default()
            };
            snapshot.tenants[0].quotas = limits
                .into_iter()
                .map(|(tier, sku, nodes)| Quota { sku: sku.into(), tier, limit: nodes * 8 })
                .collect();
            if elsewhere {
                snapshot.tenants[0].regions = vec!["eu-west".into()];
            }
            let mut held: BTreeMap<(usize, usize), Vec<Segment>> = BTreeMap::new();
            for (at, seed) in seeds.iter().enumerate() {
                let node = build_node(at, seed);
                if let Some(booking) = seed.booking {
                    let whole = pools()[seed.pool].devices_per_node;
                    let of = bookings[booking].part.map(|_| whole);
                    let devices = bookings[booking].part.unwrap_or(whole);
                    let from = (at % 3 != 0).then_some(TimeMs(20));
                    let (node, uid) = (node.name.clone(), node.uid.clone());
                    held.entry((booking, seed.pool)).or_default().push(Segment {
                        node,
                        uid,
                        devices,
                        of,
                        from,
                        to: None,
                    });
                }
                if !seed.gone {
                    snapshot.nodes.push(node);
                }
            }
            for ((seed, pool), segments) in held {
                let name = format!("b{seed}-{pool}");
                sell_seed(&mut snapshot, &name, &bookings[seed], &pools()[pool], segments);
            }
            let mut learned = Learned::default();
            seen.into_iter().filter_map(part_item).for_each(|item| learned.observe(&item));
            snapshot.learned.insert("a".into(), Arc::new(learned));
            snapshot
        },
    )
}

fn build_node(at: usize, seed: &NodeSeed) -> Node {
    let pool = &pools()[seed.pool];
    let name = format!("{}-{at:02}", pool.name);
    let label = |kind: &str, label: Option<u8>| label.map(|label| Arc::from(format!("{kind}{label}")));
    let mut domains = vec![label("z", seed.zone), label("r", seed.rack)];
    domains.truncate(pool.topology.len());
    let mut made = Node {
        pool: pool.name.clone(),
        domains,
        sale: seed.sale.clone(),
        health: seed.lost.map_or(NodeHealth::Sound, |at| NodeHealth::Lost(TimeMs(at))),
        ..node(&name, "")
    };
    made.capacity.gpu = MilliGpu::whole(pool.devices_per_node - u32::from(seed.odd));
    made.owner_use.gpu = MilliGpu::whole(u32::from(seed.owner));
    made.returning = seed.returning;
    made
}

fn sell_seed(snapshot: &mut Snapshot, name: &str, seed: &BookingSeed, pool: &Pool, segments: Vec<Segment>) {
    let held: u32 = segments.iter().map(|segment| segment.devices).sum();
    let made = Booking {
        pool: pool.name.clone(),
        tenant: snapshot.tenants[seed.tenant].name.clone(),
        sku: pool.sku.clone(),
        tier: seed.tier,
        end: seed.end.map(TimeMs),
        require: seed.require.then(|| "zone".into()),
        exclusive: seed.part.is_none(),
        devices: held + seed.missing * seed.part.unwrap_or(pool.devices_per_node),
        booked_at: TimeMs(10),
        segments,
        ..booking(name, &[])
    };
    if let Some(deleting) = seed.request {
        let (reservation, tenant) = (made.reservation.clone(), Some(made.tenant.clone()));
        snapshot.requests.push(Request { reservation, tenant, tier: made.tier, deleting, ..request("") });
    }
    snapshot.bookings.push(Arc::new(made));
}

/// The snapshot after the plan was committed and every reservation told, with no time passed: nodes that were given back are in turnover.
fn apply(mut snapshot: Snapshot, plan: &Plan) -> Snapshot {
    let over = |booking: &Booking| plan.ends.iter().any(|end| end.booking == booking.id);
    let (ended, mut live): (Vec<_>, Vec<_>) = snapshot.bookings.into_iter().partition(|booking| over(booking));
    for booking in &ended {
        snapshot.requests.retain(|request| request.reservation.uid != booking.reservation.uid);
        for node in &mut snapshot.nodes {
            for segment in open(booking).filter(|segment| segment.uid == node.uid) {
                if booking.exclusive && node.sale == NodeSale::Open {
                    node.sale = NodeSale::NotNow;
                } else if !booking.exclusive {
                    node.returning += segment.devices;
                }
            }
        }
    }
    for swap in &plan.swaps {
        let booking = live.iter_mut().find(|booking| booking.id == swap.booking).expect("a live booking is swapped");
        let booking = Arc::make_mut(booking);
        if let Some(lost) = &swap.lost {
            let mut open = booking.segments.iter_mut().filter(|segment| segment.to.is_none());
            open.find(|segment| segment.uid == *lost).expect("an open segment is lost").to = Some(swap.at);
        }
        booking.segments.extend(swap.replacement.clone());
    }
    for new in &plan.bookings {
        let request = snapshot.requests.iter().find(|request| request.reservation == new.reservation).expect("asked");
        let pool = snapshot.pools.iter().find(|pool| pool.name == new.pool).expect("a pool");
        live.push(Arc::new(Booking {
            id: format!("id-{}", new.reservation.name).into(),
            reservation: new.reservation.clone(),
            tenant: request.tenant.clone().expect("a tenant"),
            pool: pool.name.clone(),
            sku: pool.sku.clone(),
            tier: request.tier,
            devices: new.segments.iter().map(|segment| segment.devices).sum(),
            exclusive: matches!(request.shape, Shape::WholeNodes { .. }),
            require: request.require.clone(),
            booked_at: NOW,
            active_at: None,
            segments: new.segments.clone(),
            ..booking("", &[])
        }));
    }
    let refused = |request: &Request| {
        plan.outcomes.iter().any(|(uid, outcome)| {
            *uid == request.reservation.uid && matches!(outcome, Outcome::Rejected(_) | Outcome::Expired(_))
        })
    };
    snapshot.requests.retain(|request| !refused(request));
    snapshot.bookings = live;
    snapshot
}

fn open(booking: &Booking) -> impl Iterator<Item = &Segment> {
    booking.segments.iter().filter(|segment| segment.to.is_none())
}

fn node_of<'a>(snapshot: &'a Snapshot, segment: &Segment) -> Option<&'a Node> {
    snapshot.nodes.iter().find(|node| node.uid == segment.uid && node.name == segment.node)
}

/// The path of labels down to the level, if the node has it.
fn domain(pool: &Pool, node: &Node, level: &TopologyKey) -> Option<Vec<Option<Arc<str>>>> {
    let at = pool.topology.iter().position(|key| key == level)?;
    node.domains[at].as_ref()?;
    Some(node.domains[..=at].to_vec())
}

/// Whether nobody has the node and it can be sold.
fn is_free(snapshot: &Snapshot, pool: &Pool, node: &Node) -> bool {
    node.pool == pool.name
        && node.sale == NodeSale::Open
        && node.health == NodeHealth::Sound
        && node.owner_use.gpu == MilliGpu(0)
        && node.capacity.gpu == MilliGpu::whole(pool.devices_per_node)
        && node.returning == 0
        && !snapshot.bookings.iter().any(|booking| open(booking).any(|segment| segment.uid == node.uid))
}

/// Devices of the node that can be booked in parts.
fn part_room(snapshot: &Snapshot, pool: &Pool, node: &Node) -> u32 {
    if is_free(snapshot, pool, node) {
        return pool.devices_per_node;
    }
    let there = || snapshot.bookings.iter().filter(|booking| open(booking).any(|segment| segment.uid == node.uid));
    let sells = node.sale == NodeSale::Shared || node.sale == NodeSale::Open && node.owner_use.gpu == MilliGpu(0);
    let sound = node.health == NodeHealth::Sound && node.capacity.gpu == MilliGpu::whole(pool.devices_per_node);
    if node.pool != pool.name || !sells || !sound || there().count() == 0 || there().any(|booking| booking.exclusive) {
        return 0;
    }
    let held = |booking: &Arc<Booking>| {
        open(booking).filter(|segment| segment.uid == node.uid).map(|segment| segment.devices).sum::<u32>()
    };
    pool.devices_per_node.saturating_sub(there().map(held).sum::<u32>() + node.returning)
}

/// The most of the nodes that stand together as the request wants it.
fn together(pool: &Pool, nodes: &[&Node], require: Option<&TopologyKey>) -> usize {
    let Some(level) = require else { return nodes.len() };
    let same = |one: &&&Node| {
        let at = domain(pool, one, level);
        nodes.iter().filter(|node| at.is_some() && domain(pool, node, level) == at).count()
    };
    nodes.iter().map(|node| same(&node)).max().unwrap_or(0)
}

/// The pools that could hold the request if they were empty and whole, with the number of nodes.
fn could_hold<'a>(snapshot: &'a Snapshot, request: &Request) -> Vec<(&'a Pool, usize)> {
    let (count, each) = match request.shape {
        Shape::WholeNodes { count, .. } => (count, None),
        Shape::Devices { count, per_node } => (count, Some(per_node.unwrap_or(1))),
        Shape::Shares { .. } => return Vec::new(),
    };
    let fits = |pool: &'a Pool| {
        let matches = match &request.place {
            Where::Pool(name) => pool.name == *name,
            Where::Sku(sku, region) => pool.sku == *sku && pool.region == *region,
        };
        let level = request.require.as_ref().is_none_or(|level| pool.topology.contains(level));
        let of_each = each.map_or(pool.devices_per_node, |each| pool.devices_per_node / each * each);
        let wanted = count.div_ceil(of_each.max(1)) as usize;
        let all: Vec<&Node> = snapshot.nodes.iter().filter(|node| node.pool == pool.name).collect();
        let large = all.is_empty() || together(pool, &all, request.require.as_ref()) >= wanted;
        let whole = count > 0 && (each.is_some() || count % pool.devices_per_node == 0);
        (matches && level && whole && large).then_some((pool, wanted))
    };
    snapshot.pools.iter().filter_map(fits).collect()
}

fn waits_for_capacity(outcome: &Outcome) -> bool {
    let codes = ["InsufficientCapacity", "BehindOlderRequest", "PoolNotSelling"];
    matches!(outcome, Outcome::Waitlisted(reason) if codes.contains(&reason.code))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn same_input_same_plan(
        (snapshot, shuffled) in snapshots().prop_flat_map(|snapshot| {
            let Snapshot { pools, nodes, tenants, bookings, requests, learned } = snapshot.clone();
            let parts = (
                Just(pools).prop_shuffle(),
                Just(nodes).prop_shuffle(),
                Just(tenants).prop_shuffle(),
                Just(bookings).prop_shuffle(),
                Just(requests).prop_shuffle(),
            );
            let shuffled = parts.prop_map(move |(pools, nodes, tenants, bookings, requests)| Snapshot {
                pools, nodes, tenants, bookings, requests, learned: learned.clone(),
            });
            (Just(snapshot), shuffled)
        }),
    ) {
        prop_assert_eq!(plan(&snapshot, NOW), plan(&shuffled, NOW));
    }

    /// Invariant 1: no node is ever in two open segments, and what is new is on nodes that nobody has and that can be sold.
    #[test]
    fn never_over_capacity(snapshot in snapshots()) {
        let plan = plan(&snapshot, NOW);
        let replacements = plan.swaps.iter().filter_map(|swap| {
            let booking = snapshot.bookings.iter().find(|booking| booking.id == swap.booking)?;
            Some((&booking.pool, swap.replacement.as_ref()?))
        });
        let new = plan.bookings.iter().flat_map(|new| new.segments.iter().map(|segment| (&new.pool, segment)));
        for (pool, segment) in replacements.chain(new) {
            let pool = snapshot.pools.iter().find(|known| known.name == *pool).expect("a pool");
            let node = node_of(&snapshot, segment).expect("a node of the snapshot");
            match segment.of {
                None => {
                    prop_assert!(is_free(&snapshot, pool, node), "{node:?}");
                    prop_assert_eq!(segment.devices, pool.devices_per_node);
                }
                Some(of) => {
                    prop_assert_eq!(of, pool.devices_per_node);
                    prop_assert!(segment.devices > 0 && segment.devices <= part_room(&snapshot, pool, node), "{node:?}");
                }
            }
            prop_assert_eq!((segment.from, segment.to), (None, None));
        }
        let after = apply(snapshot, &plan);
        let mut taken: BTreeMap<NodeUid, (u32, u32)> = BTreeMap::new();
        for booking in &after.bookings {
            for segment in open(booking) {
                let (whole, parts) = taken.entry(segment.uid.clone()).or_default();
                if booking.exclusive { *whole += 1 } else { *parts += segment.devices };
                prop_assert!(*whole == 0 && *parts <= 8 || *whole == 1 && *parts == 0, "{segment:?} is sold twice");
            }
        }
        for pool in &after.pools {
            for node in after.nodes.iter().filter(|node| node.pool == pool.name) {
                let parts = taken.get(&node.uid).map_or(0, |(_, parts)| *parts);
                prop_assert!(parts <= pool.devices_per_node, "{node:?} has {parts} in parts");
            }
        }
    }

    /// Invariant 2: a booking ends by its term or its deletion only, and leaves a node only when the node is lost.
    #[test]
    fn no_booking_is_displaced(snapshot in snapshots()) {
        let plan = plan(&snapshot, NOW);
        let find = |id: &BookingId| snapshot.bookings.iter().find(|booking| booking.id == *id).expect("a live booking");
        for end in &plan.ends {
            let booking = find(&end.booking);
            match end.reason {
                EndReason::TermOver => prop_assert!(booking.end == Some(end.at) && end.at <= NOW),
                EndReason::Deleted => {
                    let deleting = |request: &Request| request.deleting && request.reservation == booking.reservation;
                    prop_assert!(snapshot.requests.iter().any(deleting) && end.at == NOW);
                }
            }
        }
        for swap in &plan.swaps {
            let booking = find(&swap.booking);
            prop_assert!(plan.ends.iter().all(|end| end.booking != booking.id));
            match &swap.lost {
                None => prop_assert!(swap.replacement.is_some()),
                Some(lost) => {
                    let segment = open(booking).find(|segment| segment.uid == *lost).expect("an open segment");
                    prop_assert!(node_of(&snapshot, segment).is_none_or(|node| node.health != NodeHealth::Sound));
                    prop_assert!(swap.at <= NOW && segment.from.is_none_or(|from| from <= swap.at));
                }
            }
        }
        let before: BTreeMap<_, _> = snapshot.bookings.iter().map(|booking| (&booking.id, booking.devices)).collect();
        for booking in &apply(snapshot.clone(), &plan).bookings {
            let held: u32 = open(booking).map(|segment| segment.devices).sum();
            prop_assert!(held <= before.get(&booking.id).copied().unwrap_or(booking.devices), "{booking:?} has too much");
        }
    }

    /// A planner that was told of changes plans as one that began with what they led to.
    #[test]
    fn told_of_changes_or_begun_anew(before in snapshots(), after in snapshots()) {
        let mut planner = Planner::open(before.clone());
        prop_assert_eq!(planner.plan(NOW), plan(&before, NOW));
        // A plan is no change.
        prop_assert_eq!(planner.plan(NOW), plan(&before, NOW));
        planner.set_tenants(after.tenants.clone());
        for (pool, learned) in &after.learned {
            planner.set_learned(pool, Arc::clone(learned));
        }
        for booking in before.bookings.iter().filter(|b| after.bookings.iter().all(|other| other.id != b.id)) {
            planner.remove_booking(&booking.id);
        }
        for request in &before.requests {
            let uid = &request.reservation.uid;
            if after.requests.iter().all(|other| other.reservation.uid != *uid) {
                planner.remove_request(uid);
            }
        }
        for node in before.nodes.iter().filter(|node| after.nodes.iter().all(|other| other.uid != node.uid)) {
            planner.remove_node(&node.uid);
        }
        for request in &after.requests {
            planner.set_request(request.clone());
        }
        for node in &after.nodes {
            planner.set_node(node.clone());
        }
        for booking in &after.bookings {
            planner.set_booking(booking);
        }
        prop_assert_eq!(planner.plan(NOW), plan(&after, NOW));
        let mut pools = after.pools.clone();
        pools.remove(0);
        planner.set_pools(pools.clone());
        prop_assert_eq!(planner.plan(NOW), plan(&Snapshot { pools, ..after }, NOW));
    }

    /// A gang is booked whole, in one pool, and in one domain of the required level; so are its replacements.
    #[test]
    fn gangs_are_whole_and_together(snapshot in snapshots()) {
        let plan = plan(&snapshot, NOW);
        for new in &plan.bookings {
            let asked = |request: &&Request| request.reservation == new.reservation;
            let request = snapshot.requests.iter().find(asked).expect("asked");
            let pool = snapshot.pools.iter().find(|pool| pool.name == new.pool).expect("a pool");
            let nodes: Vec<&Node> = new.segments.iter().filter_map(|segment| node_of(&snapshot, segment)).collect();
            let devices: u32 = new.segments.iter().map(|segment| segment.devices).sum();
            match request.shape {
                Shape::WholeNodes { count, .. } => {
                    prop_assert_eq!(count, devices);
                    prop_assert!(could_hold(&snapshot, request).contains(&(pool, nodes.len())));
                }
                Shape::Devices { count, per_node } => {
                    prop_assert_eq!(count, devices);
                    prop_assert!(per_node.is_none_or(|each| new.segments.iter().all(|segment| segment.devices == each)));
                    prop_assert!(could_hold(&snapshot, request).iter().any(|(could, _)| could.name == pool.name));
                }
                Shape::Shares { .. } => prop_assert!(false, "a share was sold"),
            }
            prop_assert_eq!(together(pool, &nodes, request.require.as_ref()), new.segments.len());
        }
        for swap in plan.swaps.iter().filter(|swap| swap.replacement.is_some()) {
            let lost = |uid: &NodeUid| plan.swaps.iter().any(|swap| swap.lost.as_ref() == Some(uid));
            let booking = snapshot.bookings.iter().find(|booking| booking.id == swap.booking).expect("live");
            let pool = snapshot.pools.iter().find(|pool| pool.name == booking.pool).expect("a pool");
            let of_this = plan.swaps.iter().filter(|other| other.booking == swap.booking);
            let held: Vec<&Segment> = open(booking)
                .filter(|segment| !lost(&segment.uid))
                .chain(of_this.filter_map(|swap| swap.replacement.as_ref()))
                .collect();
            let nodes: Vec<&Node> = held.iter().filter_map(|segment| node_of(&snapshot, segment)).collect();
            prop_assert_eq!(together(pool, &nodes, booking.require.as_ref()), held.len());
        }
    }

    /// Every request has a live booking, is being deleted, or gets exactly one answer.
    /// Of no device more than all of it, and no device whole and in shares.
    #[test]
    fn shares_fit(
        wants in prop::collection::vec((1..7u32, prop::sample::select(vec!["", "half", "third", "tenth"])), 1..30),
        nodes in 1..5usize,
        taught in prop::collection::vec(prop::sample::select(vec![100u32, 333, 500, 1000]), 0..200),
    ) {
        let one = |name: &str, milli| Profile { name: name.into(), gpu: MilliGpu(milli) };
        let profiles = vec![one("half", 500), one("third", 333), one("tenth", 100)];
        let mut snapshot = Snapshot {
            pools: vec![Pool { profiles, observed: true, ..pool("a", "h200") }],
            tenants: scene().tenants,
            ..Snapshot::default()
        };
        snapshot.nodes = scene().nodes.into_iter().filter(|node| node.pool.as_str() == "a").take(nodes).collect();
        for (at, (count, profile)) in wants.iter().enumerate() {
            let shape = match *profile {
                "" => part(*count),
                profile => Shape::Shares { count: *count, profile: profile.into() },
            };
            ask(&mut snapshot, &format!("r{at}"), |request| request.shape = shape);
        }
        let mut learned = Learned::default();
        for milli in taught {
            learned.observe(&crate::packing::Item::new(12 * milli, 49 * milli, 1, milli).expect("an item"));
            if learned.is_due() {
                learned = Planner::open(snapshot.clone()).learn(&"a".into(), &learned).expect("the pool");
            }
        }
        snapshot.learned.insert("a".into(), Arc::new(learned));
        let plan = plan(&snapshot, NOW);
        let mut of_device: BTreeMap<(String, u16), i64> = BTreeMap::new();
        let mut whole: BTreeMap<String, u32> = BTreeMap::new();
        for new in &plan.bookings {
            prop_assert!(new.segments.is_empty() != new.shares.is_empty());
            for share in &new.shares {
                *of_device.entry((share.node.to_string(), share.device)).or_default() += share.gpu.0;
            }
            for segment in &new.segments {
                *whole.entry(segment.node.to_string()).or_default() += segment.devices;
            }
        }
        prop_assert!(of_device.values().all(|milli| *milli <= 1000));
        for node in &snapshot.nodes {
            let in_shares = of_device.keys().filter(|(name, _)| *name == node.name.to_string()).count();
            prop_assert!(in_shares + whole.get(&node.name.to_string()).map_or(0, |n| *n as usize) <= 8);
        }
        for (uid, outcome) in &plan.outcomes {
            // Nobody waits for a single share while a device is free of everything.
            let waiting = snapshot.requests.iter().find(|request| request.reservation.uid == *uid).expect("asked");
            let first = plan.outcomes.first().is_some_and(|(first, _)| first == uid);
            if let (Shape::Shares { count: 1, .. }, true, Outcome::Waitlisted(_)) = (&waiting.shape, first, outcome) {
                let touched: usize = of_device.len() + whole.values().map(|n| *n as usize).sum::<usize>();
                prop_assert!(touched >= 8 * snapshot.nodes.len());
            }
        }
        prop_assert_eq!(super::plan(&snapshot, NOW), plan);
    }

    #[test]
    fn every_request_is_answered_once(snapshot in snapshots()) {
        let plan = plan(&snapshot, NOW);
        let booked = plan.bookings.iter().map(|new| new.reservation.uid.clone());
        let mut answers: Vec<_> = booked.chain(plan.outcomes.iter().map(|(uid, _)| uid.clone())).collect();
        answers.sort_unstable();
        let live = |request: &Request| {
            snapshot.bookings.iter().any(|booking| booking.reservation.uid == request.reservation.uid)
        };
        let mut waiting: Vec<_> = snapshot
            .requests
            .iter()
            .filter(|request| !request.deleting && !live(request))
            .map(|request| request.reservation.uid.clone())
            .collect();
        waiting.sort_unstable();
        prop_assert_eq!(answers, waiting);
    }

    /// Nobody passes an older request that waits for capacity of the pool.
    #[test]
    fn first_come_first_served_within_a_pool(snapshot in snapshots()) {
        let plan = plan(&snapshot, NOW);
        let age = |request: &Request| (request.created, request.reservation.name.clone());
        let by_uid: BTreeMap<_, _> =
            snapshot.requests.iter().map(|request| (request.reservation.uid.clone(), request)).collect();
        for (uid, outcome) in plan.outcomes.iter().filter(|(_, outcome)| waits_for_capacity(outcome)) {
            let waiting = by_uid[uid];
            for (pool, _) in could_hold(&snapshot, waiting) {
                for new in plan.bookings.iter().filter(|new| new.pool == pool.name) {
                    let booked = by_uid[&new.reservation.uid];
                    prop_assert!(age(booked) < age(waiting), "{booked:?} passed {waiting:?}: {outcome:?}");
                }
            }
        }
    }

    /// Nothing that fits is left waiting for capacity, and nothing is refused for good that a pool could hold and the tenant may have.
    #[test]
    fn nobody_waits_in_vain(snapshot in snapshots()) {
        let plan = plan(&snapshot, NOW);
        let after = apply(snapshot.clone(), &plan);
        let age = |request: &Request| (request.created, request.reservation.name.clone());
        let waiting: Vec<&Request> = after
            .requests
            .iter()
            .filter(|request| {
                let uid = &request.reservation.uid;
                plan.outcomes.iter().any(|(of, outcome)| of == uid && waits_for_capacity(outcome))
            })
            .collect();
        for request in &waiting {
            for (pool, wanted) in could_hold(&snapshot, request) {
                let older = |other: &&&Request| {
                    age(other) < age(request) && could_hold(&snapshot, other).iter().any(|(held, _)| held.name == pool.name)
                };
                if pool.not_selling.is_some() || waiting.iter().any(|other| older(&other)) {
                    continue;
                }
                let Shape::Devices { count, per_node } = request.shape else {
                    let free: Vec<&Node> = after.nodes.iter().filter(|node| is_free(&after, pool, node)).collect();
                    prop_assert!(together(pool, &free, request.require.as_ref()) < wanted, "{request:?} fits {pool:?}");
                    continue;
                };
                let each = per_node.unwrap_or(1);
                let of_node = |node: &Node| part_room(&after, pool, node) / each * if per_node.is_some() { 1 } else { each };
                let needed = if per_node.is_some() { count / each } else { count };
                for one in after.nodes.iter().filter(|node| node.pool == pool.name) {
                    let near = |node: &&Node| request.require.as_ref().is_none_or(|level| {
                        domain(pool, one, level).is_some() && domain(pool, node, level) == domain(pool, one, level)
                    });
                    let of_pool = after.nodes.iter().filter(|node| node.pool == pool.name);
                    let room: u32 = of_pool.filter(near).map(|node| {
                        if per_node.is_some() { of_node(node).min(1) } else { of_node(node) }
                    }).sum();
                    prop_assert!(room < needed, "{request:?} fits {pool:?}");
                }
            }
        }
        for (uid, outcome) in &plan.outcomes {
            let request = snapshot.requests.iter().find(|request| request.reservation.uid == *uid).expect("asked");
            if let Outcome::Rejected(Reason { code: "ShapeDoesNotFit" | "UnknownTopology", .. }) = outcome {
                prop_assert_eq!(could_hold(&snapshot, request), vec![]);
            }
        }
    }

    /// No tenant gets more than its quota.
    #[test]
    fn quotas_hold(mut snapshot in snapshots(), nodes in 0..4u32) {
        // Many that want the same of one tenant.
        quota(&mut snapshot, nodes * 8);
        for request in &mut snapshot.requests {
            (request.tenant, request.tier) = (Some("acme".into()), Tier::OnDemand);
            request.shape = if matches!(request.shape, Shape::Devices { .. }) { part(3) } else { whole(8) };
        }
        let held = |snapshot: &Snapshot, tenant: &Tenant, quota: &Quota| -> u64 {
            snapshot
                .bookings
                .iter()
                .filter(|booking| {
                    booking.tenant == tenant.name && booking.sku == quota.sku && booking.tier == quota.tier
                })
                .map(|booking| u64::from(booking.devices))
                .sum()
        };
        let plan = plan(&snapshot, NOW);
        let after = apply(snapshot.clone(), &plan);
        for tenant in &snapshot.tenants {
            for quota in &tenant.quotas {
                let now = held(&after, tenant, quota);
                prop_assert!(now <= u64::from(quota.limit).max(held(&snapshot, tenant, quota)));
            }
        }
    }

    /// Committing a plan leaves nothing to decide until something else changes.
    #[test]
    fn a_plan_is_final(snapshot in snapshots()) {
        let first = plan(&snapshot, NOW);
        let second = plan(&apply(snapshot.clone(), &first), NOW);
        prop_assert_eq!(&second.bookings, &vec![]);
        prop_assert_eq!(&second.ends, &vec![]);
        prop_assert_eq!(&second.swaps, &vec![]);
        let waiting = |plan: &Plan| -> Vec<ReservationUid> {
            let waits = |(uid, outcome): &(ReservationUid, Outcome)| {
                matches!(outcome, Outcome::Waitlisted(_)).then(|| uid.clone())
            };
            plan.outcomes.iter().filter_map(waits).collect()
        };
        prop_assert_eq!(waiting(&first), waiting(&second));
        prop_assert_eq!(second.outcomes.len(), waiting(&second).len());
        prop_assert_eq!(first.next, second.next);
    }

    /// Before `next`, time alone changes nothing but the words of no answer; at `next`, it does.
    #[test]
    fn nothing_happens_before_next(snapshot in snapshots(), early in 0..200i64) {
        let settled = apply(snapshot.clone(), &plan(&snapshot, NOW));
        let first = plan(&settled, NOW);
        let later = NOW.plus(early);
        if first.next.is_none_or(|next| later < next) {
            prop_assert_eq!(plan(&settled, later), first.clone());
        }
        if let Some(next) = first.next {
            prop_assert!(next > NOW);
            prop_assert_ne!(plan(&settled, next), first);
        }
    }

    /// Messages are sentences of a bounded length, and codes are the documented ones.
    #[test]
    fn answers_are_readable(snapshot in snapshots()) {
        let known = [
            "InsufficientCapacity", "BehindOlderRequest", "QuotaInUse", "QuotaExceeded", "RegionNotAllowed", "NoTenant",
            "NoMatchingPool", "ShapeDoesNotFit", "UnknownTopology", "TierNotAllowed", "PoolNotSelling", "WaitedTooLong",
            "NotNow",
        ];
        for (_, outcome) in &plan(&snapshot, NOW).outcomes {
            let (_, reason) = parts(outcome);
            prop_assert!(known.contains(&reason.code), "{}", reason.code);
            prop_assert!(reason.message.len() <= 600 && reason.message.ends_with('.'), "{}", reason.message);
        }
    }
}
