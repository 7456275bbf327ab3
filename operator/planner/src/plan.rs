//! The decision over a whole snapshot.
//!
//! Must not: do I/O, read a clock, or depend on the order of its input.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
};

use crate::{
    calendar::Timeline,
    placement::{Slot, State, Stock, Want},
    types::{
        Booking, BookingId, EndReason, Interval, MilliGpu, Node, NodeHealth, NodeUid, Pool, PoolName, Region, Request,
        ReservationRef, ReservationUid, Resources, Segment, Sku, Snapshot, Tenant, TenantName, Tier, TimeMs, Where,
    },
};

mod reasons;
#[cfg(test)]
mod tests;

/// What to commit, and an answer for every request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// New bookings, in the order in which they were decided.
    pub bookings: Vec<NewBooking>,
    /// Bookings that end.
    pub ends: Vec<End>,
    /// Nodes that were lost, with what replaces them.
    pub swaps: Vec<Swap>,
    /// The answer to every request that has no live booking and gets none now.
    pub outcomes: Vec<(ReservationUid, Outcome)>,
    /// The next instant at which the same snapshot would give another plan (a term's end, a `waitFor` that is over), if any.
    pub next: Option<TimeMs>,
}

/// A booking to be made; the id is given when it is committed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewBooking {
    /// For which reservation.
    pub reservation: ReservationRef,
    /// From which pool.
    pub pool: PoolName,
    /// On which nodes.
    pub segments: Vec<Segment>,
}

/// A booking that ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct End {
    /// Which.
    pub booking: BookingId,
    /// When: the end of its term, or now.
    pub at: TimeMs,
    /// Why.
    pub reason: EndReason,
}

/// A node of a booking that was lost.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Swap {
    /// Which booking.
    pub booking: BookingId,
    /// The node that was lost; none when an earlier loss is made good now.
    pub lost: Option<NodeUid>,
    /// When it was last known healthy.
    pub at: TimeMs,
    /// What replaces it, if anything is free: devices as the lost node had.
    pub replacement: Option<Segment>,
}

/// The answer to a request that is not booked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It waits.
    Waitlisted(Reason),
    /// It can never be met.
    Rejected(Reason),
    /// It waited for `waitFor`.
    Expired(Reason),
}

/// Why, for machines and for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reason {
    /// One CamelCase word: `InsufficientCapacity`, `BehindOlderRequest`, `QuotaInUse`, `QuotaExceeded`, `RegionNotAllowed`, `NoTenant`,
    /// `NoMatchingPool`, `ShapeDoesNotFit`, `UnknownTopology`, `TierNotAllowed`, `PoolNotSelling`, `WaitedTooLong`, `NotNow`.
    pub code: &'static str,
    /// A sentence that says what would change it, with the numbers.
    pub message: String,
}

/// Decides on a snapshot at a time.
pub fn plan(snapshot: &Snapshot, now: TimeMs) -> Plan {
    let book = Book::open(snapshot);
    let ends = plan_ends(&book, now);
    let mut stocks = Stocks::count(snapshot, &book, now);
    let ending: HashSet<&BookingId> = ends.iter().map(|end| &end.booking).collect();
    let swaps = plan_swaps(&book, &ending, &mut stocks, now);
    let (bookings, outcomes, next_deadline) = plan_requests(snapshot, &book, &ending, stocks, now);
    let next_end = book.live.iter().filter_map(|booking| booking.end).filter(|&end| end > now).min();
    Plan { bookings, ends, swaps, outcomes, next: next_end.into_iter().chain(next_deadline).min() }
}

/// Bookings and requests in an order that does not depend on the input's.
struct Book<'a> {
    /// Live bookings by id.
    live: Vec<&'a Booking>,
    /// Requests by the order in which they are served.
    requests: Vec<&'a Request>,
    /// Reservations with a live booking.
    booked: HashSet<&'a ReservationUid>,
}

impl<'a> Book<'a> {
    fn open(snapshot: &'a Snapshot) -> Self {
        let mut live: Vec<&Booking> = snapshot.bookings.iter().map(Arc::as_ref).collect();
        live.sort_unstable_by_key(|booking| &booking.id);
        let mut requests: Vec<&Request> = snapshot.requests.iter().collect();
        requests.sort_unstable_by_key(|request| {
            let reservation = &request.reservation;
            (request.created, &reservation.namespace, &reservation.name, &reservation.uid)
        });
        let booked = live.iter().map(|booking| &booking.reservation.uid).collect();
        Self { live, requests, booked }
    }
}

/// Bookings end for two reasons only: their term is over, or their reservation is being deleted. A booking whose reservation is not in the
/// snapshot at all goes on: a cache that is behind must not end a contract.
fn plan_ends(book: &Book<'_>, now: TimeMs) -> Vec<End> {
    let deleting: HashSet<&ReservationUid> =
        book.requests.iter().filter(|request| request.deleting).map(|request| &request.reservation.uid).collect();
    let end_of = |booking: &&Booking| {
        let (at, reason) = match booking.end {
            Some(end) if end <= now => (end, EndReason::TermOver),
            _ if deleting.contains(&booking.reservation.uid) => (now, EndReason::Deleted),
            _ => return None,
        };
        Some(End { booking: booking.id.clone(), at, reason })
    };
    book.live.iter().filter_map(end_of).collect()
}

/// Every pool with what is free in it.
struct Stocks<'a> {
    /// By name of the pool.
    pools: Vec<Stock<'a>>,
    by_name: HashMap<&'a PoolName, usize>,
    by_sku: HashMap<(&'a Sku, &'a Region), Vec<usize>>,
    nodes: HashMap<&'a NodeUid, &'a Node>,
}

impl<'a> Stocks<'a> {
    fn count(snapshot: &'a Snapshot, book: &Book<'a>, now: TimeMs) -> Self {
        let nodes: HashMap<&NodeUid, &Node> = snapshot.nodes.iter().map(|node| (&node.uid, node)).collect();
        let pools: BTreeMap<_, _> = snapshot.pools.iter().map(|pool| (&pool.name, pool)).collect();
        let mut members: BTreeMap<&PoolName, Vec<(&Node, State)>> =
            pools.keys().map(|&name| (name, Vec::new())).collect();
        let mut uses = uses_of_nodes(book, &nodes, now);
        for (uid, &node) in &nodes {
            let Some(pool) = pools.get(&node.pool) else { continue };
            let mut timeline = Timeline::new(node.capacity, pool.turnover_ms);
            for (interval, amount) in uses.remove(uid).unwrap_or_default() {
                timeline.add(interval, amount);
            }
            if let Some(members) = members.get_mut(&node.pool) {
                members.push((node, state_of(node, pool, timeline, now)));
            }
        }
        let mut stocks = Self { pools: Vec::new(), by_name: HashMap::new(), by_sku: HashMap::new(), nodes };
        for (at, (name, nodes)) in members.into_iter().enumerate() {
            let Some(pool) = pools.get(name) else { continue };
            stocks.by_name.insert(name, at);
            stocks.by_sku.entry((&pool.sku, &pool.region)).or_default().push(at);
            stocks.pools.push(Stock::new(pool, nodes));
        }
        stocks
    }

    fn matching(&self, place: &Where) -> Vec<usize> {
        match place {
            Where::Pool(name) => self.by_name.get(name).copied().into_iter().collect(),
            Where::Sku(sku, region) => self.by_sku.get(&(sku, region)).cloned().unwrap_or_default(),
        }
    }
}

/// What the open segments of live bookings take, those of ending bookings included: a node is free when it was given back, not before.
fn uses_of_nodes<'a>(
    book: &Book<'a>,
    nodes: &HashMap<&'a NodeUid, &'a Node>,
    now: TimeMs,
) -> HashMap<&'a NodeUid, Vec<(Interval, Resources)>> {
    let mut uses: HashMap<&NodeUid, Vec<(Interval, Resources)>> = HashMap::new();
    for &booking in &book.live {
        for segment in open_segments(booking) {
            let Some(node) = nodes.get(&segment.uid) else { continue };
            // Of a whole node everything is taken, however many devices it has today; and no hold is so small that it leaves a node whole.
            let gpu = MilliGpu::whole(segment.devices.max(1));
            let amount = if booking.exclusive {
                Resources { gpu: gpu.max(node.capacity.gpu), ..node.capacity }
            } else {
                Resources { gpu, ..Resources::default() }
            };
            let interval = Interval {
                start: segment.from.unwrap_or(booking.booked_at).min(now),
                end: booking.end.filter(|&end| end > now),
            };
            uses.entry(&segment.uid).or_default().push((interval, amount));
        }
    }
    uses
}

/// How a node counts for what starts now. It must be free for good, because a booking may stay for good; with starts in the future, those
/// with a term may be asked for their own interval.
fn state_of(node: &Node, pool: &Pool, mut timeline: Timeline, now: TimeMs) -> State {
    let from_now = Interval { start: now, end: None };
    let unsold = timeline.free_over(from_now).gpu;
    if unsold < node.capacity.gpu {
        return State::Sold;
    }
    // The owner's pods without devices do not count: they leave a node that is sold.
    timeline.add(from_now, node.owner_use);
    State::of_unsold(node, pool, timeline.free_over(from_now).gpu < unsold)
}

fn open_segments(booking: &Booking) -> impl Iterator<Item = &Segment> {
    booking.segments.iter().filter(|segment| segment.to.is_none())
}

/// Lost nodes are replaced before anything new is sold, paused sale or not: what was promised comes first, and commitments before the rest.
fn plan_swaps(book: &Book<'_>, ending: &HashSet<&BookingId>, stocks: &mut Stocks<'_>, now: TimeMs) -> Vec<Swap> {
    let mut staying: Vec<&Booking> =
        book.live.iter().copied().filter(|booking| !ending.contains(&booking.id)).collect();
    staying.sort_by_key(|booking| (booking.tier != Tier::Committed, booking.booked_at));
    staying.into_iter().flat_map(|booking| swap_nodes(booking, stocks, now)).collect()
}

fn swap_nodes(booking: &Booking, stocks: &mut Stocks<'_>, now: TimeMs) -> Vec<Swap> {
    let lost: Vec<(&Segment, TimeMs)> =
        open_segments(booking).filter_map(|segment| Some((segment, lost_at(segment, stocks, now)?))).collect();
    let held: u64 = open_segments(booking).map(|segment| u64::from(segment.devices)).sum();
    let short = u64::from(booking.devices).saturating_sub(held);
    if lost.is_empty() && short == 0 {
        return Vec::new();
    }
    let mut replacements = replacements(booking, &lost, short, stocks).into_iter();
    let mut swaps: Vec<Swap> = Vec::with_capacity(lost.len());
    for &(segment, at) in &lost {
        // A node of another size than the pool's nodes have today cannot be replaced by one of them.
        let replacement = replacements.as_slice().first().is_some_and(|new| new.devices == segment.devices);
        swaps.push(Swap {
            booking: booking.id.clone(),
            lost: Some(segment.uid.clone()),
            at,
            replacement: if replacement { replacements.next() } else { None },
        });
    }
    swaps.extend(replacements.map(|new| Swap {
        booking: booking.id.clone(),
        lost: None,
        at: now,
        replacement: Some(new),
    }));
    swaps
}

/// When a node was lost, if it was: last known healthy, or now when it is gone; never before it was handed over.
fn lost_at(segment: &Segment, stocks: &Stocks<'_>, now: TimeMs) -> Option<TimeMs> {
    let at = match stocks.nodes.get(&segment.uid).map(|node| &node.health) {
        Some(NodeHealth::Sound) => return None,
        Some(NodeHealth::Lost(at)) => *at,
        None => now,
    };
    Some(at.min(now).max(segment.from.unwrap_or(at)))
}

/// Takes free nodes for what is lost now and for what is missing since earlier: as many as there are.
fn replacements(booking: &Booking, lost: &[(&Segment, TimeMs)], short: u64, stocks: &mut Stocks<'_>) -> Vec<Segment> {
    let stock = stocks.by_name.get(&booking.pool).and_then(|&at| stocks.pools.get_mut(at));
    let Some(stock) = stock.filter(|_| booking.exclusive) else { return Vec::new() };
    let per_node = stock.pool().devices_per_node;
    let alike = lost.iter().filter(|(segment, _)| segment.devices == per_node).count();
    let missing = short.checked_div(u64::from(per_node)).and_then(|nodes| usize::try_from(nodes).ok()).unwrap_or(0);
    let wanted = alike.saturating_add(missing);
    if wanted == 0 || stock.tally().free == 0 {
        return Vec::new();
    }
    let is_lost = |segment: &Segment| lost.iter().any(|(lost, _)| lost.uid == segment.uid);
    let remaining: Option<Vec<Slot>> =
        open_segments(booking).filter(|segment| !is_lost(segment)).map(|segment| stock.slot(segment)).collect();
    let Some(remaining) = remaining.or_else(|| booking.require.is_none().then(Vec::new)) else {
        // Where a node that remains stands is not known (it left the pool), so nothing can be said to stand with it.
        return Vec::new();
    };
    let slots = stock.find_near(&remaining, wanted, booking.require.as_ref());
    stock.take(&slots)
}

/// Devices that tenants hold or get in this plan.
type Holdings<'a> = HashMap<(&'a TenantName, &'a Sku, Tier), u64>;

/// The requests without a live booking, one by one, oldest first.
fn plan_requests<'a>(
    snapshot: &'a Snapshot,
    book: &Book<'a>,
    ending: &HashSet<&BookingId>,
    stocks: Stocks<'a>,
    now: TimeMs,
) -> (Vec<NewBooking>, Vec<(ReservationUid, Outcome)>, Option<TimeMs>) {
    let mut holdings = Holdings::new();
    for booking in book.live.iter().filter(|booking| !ending.contains(&booking.id)) {
        *holdings.entry((&booking.tenant, &booking.sku, booking.tier)).or_default() += u64::from(booking.devices);
    }
    let waiting = vec![0; stocks.pools.len()];
    let tenants = snapshot.tenants.iter().map(|tenant| (&tenant.name, tenant)).collect();
    let mut desk = Desk { stocks, tenants, holdings, waiting };
    let (mut bookings, mut outcomes, mut next) = (Vec::new(), Vec::new(), None);
    for &request in &book.requests {
        if request.deleting || book.booked.contains(&request.reservation.uid) {
            continue;
        }
        let (reason, blocks) = match desk.decide(request) {
            Answer::Booked(booking) => {
                bookings.push(booking);
                continue;
            }
            Answer::Never(reason) => {
                outcomes.push((request.reservation.uid.clone(), Outcome::Rejected(reason)));
                continue;
            }
            Answer::Later { reason, blocks } => (reason, blocks),
        };
        let deadline = request.created.plus(request.wait_for_ms);
        let outcome = if request.wait_for_ms <= 0 {
            Outcome::Rejected(reasons::not_now(&reason))
        } else if now >= deadline {
            Outcome::Expired(reasons::waited_too_long(&reason, request.wait_for_ms))
        } else {
            // Only who goes on waiting stands in the way of others.
            for pool in blocks {
                if let Some(waiting) = desk.waiting.get_mut(pool) {
                    *waiting += 1;
                }
            }
            next = next.into_iter().chain([deadline]).min();
            Outcome::Waitlisted(reason)
        };
        outcomes.push((request.reservation.uid.clone(), outcome));
    }
    (bookings, outcomes, next)
}

/// What is known while requests are answered.
struct Desk<'a> {
    stocks: Stocks<'a>,
    tenants: HashMap<&'a TenantName, &'a Tenant>,
    holdings: Holdings<'a>,
    /// Requests that wait for each pool's capacity, by position of the pool.
    waiting: Vec<usize>,
}

enum Answer {
    Booked(NewBooking),
    /// No change of capacity would help.
    Never(Reason),
    /// `blocks`: the pools for whose capacity it waits.
    Later {
        reason: Reason,
        blocks: Vec<usize>,
    },
}

impl<'a> Desk<'a> {
    /// The rules, in order. What the tenant may is asked before what the pools have.
    fn decide(&mut self, request: &'a Request) -> Answer {
        let tenant = match self.tenant(request) {
            Ok(tenant) => tenant,
            Err(reason) => return Answer::Never(reason),
        };
        let Some(want) = Want::of(request.shape) else { return Answer::Never(reasons::not_sold_yet()) };
        let matching = self.stocks.matching(&request.place);
        let product = self.product(&request.place, &matching);
        if let Some((sku, region)) = product {
            let refusal =
                check_region(tenant, region).and_then(|()| check_quota(tenant, sku, request.tier, want.devices));
            if let Err(reason) = refusal {
                return Answer::Never(reason);
            }
        }
        let Some((sku, _)) = product.filter(|_| !matching.is_empty()) else {
            let pools: Vec<&Pool> = self.stocks.pools.iter().map(Stock::pool).collect();
            return Answer::Later { reason: reasons::no_matching_pool(&request.place, &pools), blocks: Vec::new() };
        };
        let usable = match self.usable(request, want, &matching) {
            Ok(usable) => usable,
            Err(reason) => return Answer::Never(reason),
        };
        let devices = u64::from(want.devices);
        let holding = (&tenant.name, sku, request.tier);
        let held = self.holdings.get(&holding).copied().unwrap_or(0);
        if let Some(limit) = limit(tenant, sku, request.tier)
            && held.saturating_add(devices) > u64::from(limit)
        {
            let reason = reasons::quota_in_use(tenant, sku, request.tier, want.devices, held, limit);
            return Answer::Later { reason, blocks: Vec::new() };
        }
        match self.place(request, &usable) {
            Some(booking) => {
                *self.holdings.entry(holding).or_default() += devices;
                Answer::Booked(booking)
            }
            None => Answer::Later {
                reason: self.why_not(request, want, &usable),
                blocks: usable.into_iter().map(|usable| usable.pool).collect(),
            },
        }
    }

    fn tenant(&self, request: &Request) -> Result<&'a Tenant, Reason> {
        let tenant = request.tenant.as_ref().and_then(|name| self.tenants.get(name).copied());
        let tenant = tenant.ok_or_else(|| reasons::no_tenant(&request.reservation.namespace))?;
        if request.tier == Tier::Internal && !tenant.owner {
            return Err(reasons::tier_not_allowed(&tenant.name));
        }
        Ok(tenant)
    }

    /// What is asked for and where; none when it is asked for by a pool that is not there.
    fn product(&self, place: &'a Where, matching: &[usize]) -> Option<(&'a Sku, &'a Region)> {
        match place {
            Where::Sku(sku, region) => Some((sku, region)),
            Where::Pool(_) => {
                let pool = self.stocks.pools.get(*matching.first()?)?.pool();
                Some((&pool.sku, &pool.region))
            }
        }
    }

    /// The pools that could ever hold it, with the number of nodes it takes there.
    fn usable(&self, request: &Request, want: Want, matching: &[usize]) -> Result<Vec<Usable>, Reason> {
        let mut usable = Vec::new();
        let mut misfits = Vec::new();
        for &pool in matching {
            let Some(stock) = self.stocks.pools.get(pool) else { continue };
            match stock.check(want, request.require.as_ref()) {
                Ok(nodes) => usable.push(Usable { pool, nodes }),
                Err(misfit) => misfits.push((stock.pool(), misfit)),
            }
        }
        if usable.is_empty() { Err(reasons::misfit(want, request.require.as_ref(), &misfits)) } else { Ok(usable) }
    }

    /// Books from the pool with the least free nodes that has enough, and in which nobody older waits.
    fn place(&mut self, request: &Request, usable: &[Usable]) -> Option<NewBooking> {
        let mut open: Vec<(usize, Usable)> = usable
            .iter()
            .filter(|usable| self.waiting_in(usable.pool) == 0)
            .filter_map(|&usable| {
                let stock = self.stocks.pools.get(usable.pool)?;
                let free = stock.tally().free;
                (stock.pool().not_selling.is_none() && free >= usable.nodes).then_some((free, usable))
            })
            .collect();
        open.sort_unstable_by_key(|&(free, usable)| (free, usable.pool));
        open.into_iter().find_map(|(_, usable)| {
            let stock = self.stocks.pools.get_mut(usable.pool)?;
            let slots = stock.find(usable.nodes, request.require.as_ref())?;
            Some(NewBooking {
                reservation: request.reservation.clone(),
                pool: stock.pool().name.clone(),
                segments: stock.take(&slots),
            })
        })
    }

    /// Why none of the pools that could hold it does so now: of those that sell, the one with the most free nodes speaks.
    fn why_not(&self, request: &Request, want: Want, usable: &[Usable]) -> Reason {
        let stocks = || usable.iter().filter_map(|usable| Some((usable, self.stocks.pools.get(usable.pool)?)));
        let selling = || stocks().filter(|(_, stock)| stock.pool().not_selling.is_none());
        let by_free = |(_, stock): &(&Usable, &Stock<'_>)| stock.tally().free;
        let others = usable.len().saturating_sub(1);
        let untaken = selling().filter(|(usable, _)| self.waiting_in(usable.pool) == 0).max_by_key(by_free);
        if let Some((usable, stock)) = untaken {
            return reasons::insufficient_capacity(want, usable.nodes, request.require.as_ref(), stock, others);
        }
        if let Some((usable, stock)) = selling().max_by_key(by_free) {
            return reasons::behind_older_request(want, stock, self.waiting_in(usable.pool), others);
        }
        reasons::pool_not_selling(stocks().map(|(_, stock)| stock.pool()).next(), others)
    }

    fn waiting_in(&self, pool: usize) -> usize {
        self.waiting.get(pool).copied().unwrap_or(0)
    }
}

/// A pool, by position, that could hold a request on so many of its nodes.
#[derive(Clone, Copy)]
struct Usable {
    pool: usize,
    nodes: usize,
}

fn check_region(tenant: &Tenant, region: &Region) -> Result<(), Reason> {
    if tenant.regions.is_empty() || tenant.regions.contains(region) {
        return Ok(());
    }
    Err(reasons::region_not_allowed(tenant, region))
}

fn check_quota(tenant: &Tenant, sku: &Sku, tier: Tier, devices: u32) -> Result<(), Reason> {
    match limit(tenant, sku, tier) {
        Some(limit) if devices > limit => Err(reasons::quota_exceeded(tenant, sku, tier, devices, limit)),
        _ => Ok(()),
    }
}

fn limit(tenant: &Tenant, sku: &Sku, tier: Tier) -> Option<u32> {
    let of_both = tenant.quotas.iter().filter(|quota| quota.sku == *sku && quota.tier == tier);
    of_both.map(|quota| quota.limit).min()
}
