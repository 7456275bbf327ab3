//! How long the planner takes for one arrival, one end and one loss in a large fleet: `make bench-planner`.
//!
//! `cargo run --release -p spillway-planner --example scale -- [NODES [BOOKINGS [WAITING [SAMPLES]]]]`, 10000 50000 1000 1000 if not said.
//! Pool `big` has all nodes but 64, of 8 devices each; a fifth of them are sold whole, to gangs of one to four, the others in parts of one device, as
//! many as it takes. Pool `full` has 64 nodes and a waitlist, which every plan answers anew. Times include what the planner must be told before and
//! after; what is learned of the arrivals between decisions has times of its own. Prints JSON; times are microseconds.

#![expect(clippy::print_stdout, reason = "it prints what it measured")]

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use spillway_planner::{
    Booking, MilliGpu, NewBooking, Node, NodeHealth, NodeSale, Plan, Planner, Pool, PoolName, Request, ReservationRef,
    Resources, Segment, Shape, Snapshot, Tenant, Tier, TimeMs, Where, packing::Learned, placement::part_item,
};

const DEVICES: u32 = 8;
const FULL: u32 = 64;
const START: TimeMs = TimeMs(1_000_000);

fn pool(name: &str) -> Pool {
    Pool {
        name: name.into(),
        sku: name.into(),
        region: "here".into(),
        devices_per_node: DEVICES,
        topology: vec!["zone".into(), "rack".into(), "host".into()],
        not_selling: None,
        profiles: Vec::new(),
        observed: false,
        turnover_ms: 240_000,
    }
}

fn node(pool: &str, number: u32) -> Node {
    let name = format!("{pool}-{number:05}");
    Node {
        uid: format!("uid-{name}").into(),
        pool: pool.into(),
        capacity: Resources { gpu: MilliGpu::whole(DEVICES), cpu_milli: 96_000, memory_mib: 1 << 20 },
        domains: vec![
            Some(Arc::from(format!("z{}", number % 4))),
            Some(Arc::from(format!("r{}", number / 32))),
            Some(Arc::from(name.as_str())),
        ],
        sale: NodeSale::Open,
        health: NodeHealth::Sound,
        owner_use: Resources::default(),
        returning: 0,
        name: name.into(),
    }
}

fn reservation(name: &str) -> ReservationRef {
    ReservationRef { uid: format!("uid-{name}").into(), namespace: "ns".into(), name: name.into(), generation: 1 }
}

fn request(name: &str, pool: &str, shape: Shape, created: TimeMs) -> Request {
    Request {
        reservation: reservation(name),
        tenant: Some("acme".into()),
        place: Where::Pool(pool.into()),
        shape,
        tier: Tier::OnDemand,
        duration_ms: None,
        require: None,
        created,
        wait_for_ms: 1 << 50,
        deleting: false,
    }
}

fn booking(name: &str, pool: &str, segments: Vec<Segment>) -> Booking {
    Booking {
        id: format!("b-{name}").into(),
        reservation: reservation(name),
        tenant: "acme".into(),
        pool: pool.into(),
        sku: pool.into(),
        region: "here".into(),
        tier: Tier::OnDemand,
        devices: segments.iter().map(|segment| segment.devices).sum(),
        exclusive: segments.iter().all(|segment| segment.of.is_none()),
        require: None,
        duration_ms: None,
        booked_at: START,
        active_at: Some(START),
        end: None,
        end_reason: None,
        segments,
    }
}

fn segment(node: &Node, part: bool) -> Segment {
    let (devices, of) = if part { (1, Some(DEVICES)) } else { (DEVICES, None) };
    Segment { node: node.name.clone(), uid: node.uid.clone(), devices, of, from: Some(START), to: None }
}

/// A fleet with so many nodes and bookings.
fn fleet(nodes: u32, bookings: usize, waiting: u32) -> Snapshot {
    let big = nodes.saturating_sub(FULL);
    let mut all: Vec<Node> = (0..big).map(|number| node("big", number)).collect();
    let mut sold = Vec::with_capacity(bookings);
    let (whole, parted) = all.split_at_mut((big / 5) as usize);
    let mut whole = &*whole;
    while !whole.is_empty() && sold.len() < bookings {
        let (gang, rest) = whole.split_at((sold.len() % 4 + 1).min(whole.len()));
        let segments = gang.iter().map(|node| segment(node, false)).collect();
        sold.push(Arc::new(booking(&format!("w{:05}", sold.len()), "big", segments)));
        whole = rest;
    }
    'parts: for node in parted {
        for _ in 0..DEVICES {
            if sold.len() >= bookings {
                break 'parts;
            }
            node.sale = NodeSale::Shared;
            sold.push(Arc::new(booking(&format!("p{:05}", sold.len()), "big", vec![segment(node, true)])));
        }
    }
    for number in 0..FULL {
        let node = node("full", number);
        sold.push(Arc::new(booking(&format!("f{number}"), "full", vec![segment(&node, false)])));
        all.push(node);
    }
    let waits = |number: u32| {
        let shape = Shape::WholeNodes { count: DEVICES * (number % 4 + 1), per_node: None };
        request(&format!("q{number:05}"), "full", shape, TimeMs(i64::from(number)))
    };
    Snapshot {
        pools: vec![pool("big"), pool("full")],
        nodes: all,
        tenants: vec![Tenant { name: "acme".into(), owner: false, quotas: Vec::new(), regions: Vec::new() }],
        bookings: sold,
        requests: (0..waiting).map(waits).collect(),
        learned: BTreeMap::new(),
    }
}

fn summary(mut times: Vec<Duration>) -> Value {
    times.sort_unstable();
    let at = |percent: usize| {
        let place = (times.len() * percent).div_ceil(100).saturating_sub(1);
        times.get(place).map_or(0, Duration::as_micros)
    };
    json!({"p50": at(50), "p99": at(99), "max": at(100), "samples": times.len()})
}

fn committed(new: &NewBooking) -> Arc<Booking> {
    Arc::new(booking(&new.reservation.name, new.pool.as_str(), new.segments.clone()))
}

/// So many arrivals, of one device and of whole nodes in turn, with what is learned of them between the decisions. Gives the times of
/// decisions and of learning, and what was booked.
fn arrivals(planner: &mut Planner, samples: u32) -> (Vec<Duration>, Vec<Duration>, Vec<Arc<Booking>>) {
    let (mut times, mut learning, mut made) = (Vec::new(), Vec::new(), Vec::new());
    let big = PoolName::from("big");
    let mut learned = Learned::default();
    for number in 0..samples {
        let shape = if number % 4 == 0 {
            Shape::WholeNodes { count: DEVICES, per_node: None }
        } else {
            Shape::Devices { count: 1, per_node: None }
        };
        let one = request(&format!("a{number:05}"), "big", shape, START);
        let begun = Instant::now();
        planner.set_request(one);
        let Plan { bookings, .. } = planner.plan(START);
        let booked: Vec<Arc<Booking>> = bookings.iter().map(committed).collect();
        for booking in &booked {
            planner.set_booking(booking);
        }
        times.push(begun.elapsed());
        let parts = booked.iter().flat_map(|booking| &booking.segments).filter(|segment| segment.of.is_some());
        parts.filter_map(|segment| part_item(segment.devices)).for_each(|item| learned.observe(&item));
        if learned.is_due() {
            let begun = Instant::now();
            learned = planner.learn(&big, &learned).unwrap_or_default();
            planner.set_learned(&big, Arc::new(learned.clone()));
            learning.push(begun.elapsed());
        }
        made.extend(booked);
    }
    (times, learning, made)
}

/// The terms of these are over, one after the other.
fn ends(planner: &mut Planner, made: &[Arc<Booking>]) -> Vec<Duration> {
    let mut times = Vec::new();
    for (number, booking) in (1..).zip(made) {
        let now = START.plus(number);
        let over = Arc::new(Booking { end: Some(now), ..Booking::clone(booking) });
        let begun = Instant::now();
        planner.set_booking(&over);
        for end in planner.plan(now).ends {
            planner.remove_booking(&end.booking);
        }
        // Its reservation is over, and wants nothing more.
        planner.remove_request(&booking.reservation.uid);
        times.push(begun.elapsed());
    }
    times
}

/// So many nodes are lost, one after the other, with what they hold replaced.
fn losses(planner: &mut Planner, snapshot: &Snapshot, samples: usize) -> Vec<Duration> {
    let mut times = Vec::new();
    let mut live: std::collections::HashMap<_, _> =
        snapshot.bookings.iter().map(|booking| (booking.id.clone(), Arc::clone(booking))).collect();
    let step = (snapshot.nodes.len() / samples.max(1)).max(1);
    for node in snapshot.nodes.iter().step_by(step).take(samples) {
        let lost = Node { health: NodeHealth::Lost(START), ..node.clone() };
        let begun = Instant::now();
        planner.set_node(lost);
        for swap in planner.plan(START).swaps {
            let Some(booking) = live.get_mut(&swap.booking) else { continue };
            let changed = Arc::make_mut(booking);
            for segment in changed.segments.iter_mut().filter(|one| Some(&one.uid) == swap.lost.as_ref()) {
                segment.to = Some(swap.at);
            }
            changed.segments.extend(swap.replacement);
            planner.set_booking(booking);
        }
        times.push(begun.elapsed());
    }
    times
}

/// Most memory that this process has used so far, in MiB.
fn peak_mib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok()).unwrap_or(0) / 1024
}

fn main() {
    let mut numbers = std::env::args().skip(1).filter_map(|text| text.parse::<u32>().ok());
    let mut next = |default: u32| numbers.next().unwrap_or(default);
    let (nodes, bookings, waiting, samples) = (next(10_000), next(50_000), next(1_000), next(1_000));
    let snapshot = fleet(nodes, bookings as usize, waiting);
    let begun = Instant::now();
    let mut planner = Planner::open(snapshot.clone());
    let opened = begun.elapsed();
    let begun = Instant::now();
    let first = planner.plan(START);
    let planned = begun.elapsed();
    let (arrived, learning, made) = arrivals(&mut planner, samples);
    let ended = ends(&mut planner, &made);
    let lost = losses(&mut planner, &snapshot, samples as usize);
    let answer = json!({
        "nodes": nodes,
        "devices": u64::from(nodes) * u64::from(DEVICES),
        "bookings": snapshot.bookings.len(),
        "waiting": first.outcomes.len(),
        "booked": made.len(),
        "open_us": opened.as_micros(),
        "first_plan_us": planned.as_micros(),
        "arrival_us": summary(arrived),
        "learning_us": summary(learning),
        "end_us": summary(ended),
        "loss_us": summary(lost),
        "peak_memory_mib": peak_mib(),
    });
    println!("{answer:#}");
}
