//! [`Planner`]: a snapshot that is kept up to date, so that a decision costs what has changed and not what there is.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    sync::Arc,
};

use super::{End, Plan, book::Book, open_segments, queue::Queue, requests, stocks::Stocks, swaps};
use crate::packing::Learned;
use crate::placement::Stock;
use crate::types::{
    Booking, BookingId, EndReason, Node, NodeHealth, NodeUid, Pool, PoolName, Request, ReservationUid, Snapshot,
    Tenant, TenantName, TimeMs,
};

/// A snapshot that is kept up to date. After any sequence of changes it plans as one that was opened with what they led to.
///
/// Must not: remember anything else. A plan changes nothing here: what was committed comes back as [`Planner::set_booking`] and
/// [`Planner::remove_booking`].
#[derive(Clone, Debug, Default)]
pub struct Planner {
    pub(super) stocks: Stocks,
    pub(super) tenants: HashMap<TenantName, Tenant>,
    pub(super) book: Book,
    pub(super) queue: Queue,
    /// Bookings that have less than was sold, or something on a lost node.
    hurt: BTreeSet<BookingId>,
}

impl Planner {
    /// Begins with a snapshot.
    pub fn open(snapshot: Snapshot) -> Self {
        let Snapshot { pools, nodes, tenants, bookings, requests, learned } = snapshot;
        let mut book = Book::default();
        for booking in bookings {
            book.insert(booking);
        }
        let stocks = Stocks::open(pools, nodes, &book);
        let mut planner = Self { stocks, book, ..Self::default() };
        for (pool, learned) in learned {
            planner.set_learned(&pool, learned);
        }
        planner.set_tenants(tenants);
        for request in requests {
            planner.set_request(request);
        }
        planner.hurt =
            planner.book.all().filter(|booking| planner.is_hurt(booking)).map(|booking| booking.id.clone()).collect();
        planner
    }

    /// Takes these pools for all there are.
    pub fn set_pools(&mut self, pools: Vec<Pool>) {
        self.stocks.set_pools(pools, &self.book);
    }

    /// Takes these tenants for all there are.
    pub fn set_tenants(&mut self, tenants: Vec<Tenant>) {
        self.tenants = tenants.into_iter().map(|tenant| (tenant.name.clone(), tenant)).collect();
    }

    /// Takes this for what was learned of the requests for parts of a pool's nodes.
    pub fn set_learned(&mut self, pool: &PoolName, learned: Arc<Learned>) {
        self.stocks.set_learned(pool, learned);
    }

    /// Makes steps of learning on what is free of a pool now. It is no part of a decision, and changes nothing here; none: there is no such pool.
    pub fn learn(&self, pool: &PoolName, learned: &Learned) -> Option<Learned> {
        let at = self.stocks.by_name(pool)?;
        self.stocks.pools.get(at).map(|stock| stock.learn(learned))
    }

    /// Enters a node, or what it has become.
    pub fn set_node(&mut self, node: Node) {
        let uid = node.uid.clone();
        self.stocks.set_node(node, &self.book);
        self.look_for_hurt(&uid);
    }

    /// Strikes a node out.
    pub fn remove_node(&mut self, uid: &NodeUid) {
        self.stocks.remove_node(uid);
        self.look_for_hurt(uid);
    }

    /// Enters a reservation that wants something, or what it has become.
    pub fn set_request(&mut self, request: Request) {
        let booked = self.book.of(&request.reservation.uid).is_some();
        self.queue.insert(Arc::new(request), booked);
    }

    /// Strikes a reservation out. A booking of its goes on: a cache that is behind must not end a contract.
    pub fn remove_request(&mut self, uid: &ReservationUid) {
        self.queue.remove(uid);
    }

    /// A reservation that wants something.
    pub fn request(&self, uid: &ReservationUid) -> Option<&Arc<Request>> {
        self.queue.get(uid)
    }

    /// A pool.
    pub fn pool(&self, name: &PoolName) -> Option<&Arc<Pool>> {
        let at = self.stocks.by_name(name)?;
        self.stocks.pools.get(at).map(Stock::pool)
    }

    /// Reservations that are being deleted.
    pub fn deleting(&self) -> impl Iterator<Item = &ReservationUid> {
        self.queue.deleting()
    }

    /// Enters a live booking, or what it has become.
    pub fn set_booking(&mut self, booking: &Arc<Booking>) {
        let mut nodes: HashSet<NodeUid> = open_segments(booking).map(|segment| segment.uid.clone()).collect();
        if let Some(before) = self.book.get(&booking.id) {
            nodes.extend(open_segments(before).map(|segment| segment.uid.clone()));
        }
        self.book.insert(Arc::clone(booking));
        self.queue.set_booked(&booking.reservation.uid, true);
        self.note(&booking.id);
        for node in nodes {
            self.stocks.recount(&node, &self.book);
        }
    }

    /// Strikes a booking out that ended.
    pub fn remove_booking(&mut self, id: &BookingId) {
        let Some(booking) = self.book.remove(id) else { return };
        self.queue.set_booked(&booking.reservation.uid, false);
        self.hurt.remove(id);
        for segment in open_segments(&booking) {
            self.stocks.recount(&segment.uid, &self.book);
        }
    }

    fn look_for_hurt(&mut self, node: &NodeUid) {
        let there: Vec<BookingId> = self.book.on(node).map(|booking| booking.id.clone()).collect();
        for id in there {
            self.note(&id);
        }
    }

    fn note(&mut self, id: &BookingId) {
        let Some(booking) = self.book.get(id) else { return };
        if self.is_hurt(booking) {
            self.hurt.insert(id.clone());
        } else {
            self.hurt.remove(id);
        }
    }

    fn is_hurt(&self, booking: &Booking) -> bool {
        let held: u64 = open_segments(booking).map(|segment| u64::from(segment.devices)).sum();
        held < u64::from(booking.devices)
            || open_segments(booking).any(|segment| self.stocks.health(&segment.uid) != Some(&NodeHealth::Sound))
    }

    /// Decides on what there is at a time.
    pub fn plan(&mut self, now: TimeMs) -> Plan {
        self.stocks.settle(&self.book);
        let ends = self.plan_ends(now);
        let ending: HashSet<BookingId> = ends.iter().map(|end| end.booking.clone()).collect();
        let hurt: Vec<Arc<Booking>> = self
            .hurt
            .iter()
            .filter(|id| !ending.contains(*id))
            .filter_map(|id| self.book.get(id))
            .map(Arc::clone)
            .collect();
        let swaps = swaps::plan_swaps(&hurt, &mut self.stocks, now);
        let (bookings, outcomes, next_deadline) = requests::plan_requests(self, &ending, now);
        self.stocks.put_back();
        let next_end = self.book.next_end(now, |id| ending.contains(id));
        Plan { bookings, ends, swaps, outcomes, next: next_end.into_iter().chain(next_deadline).min() }
    }

    /// Bookings end for two reasons only: their term is over, or their reservation is being deleted. A booking whose reservation is not known
    /// at all goes on: a cache that is behind must not end a contract.
    fn plan_ends(&self, now: TimeMs) -> Vec<End> {
        let over = self.book.over(now).filter_map(|booking| {
            Some(End { booking: booking.id.clone(), at: booking.end?, reason: EndReason::TermOver })
        });
        let deleted = self
            .queue
            .deleting()
            .filter_map(|uid| self.book.of(uid))
            .filter(|booking| booking.end.is_none_or(|end| end > now));
        let deleted = deleted.map(|booking| End { booking: booking.id.clone(), at: now, reason: EndReason::Deleted });
        let mut ends: Vec<End> = over.chain(deleted).collect();
        ends.sort_unstable_by(|one, other| one.booking.cmp(&other.booking));
        ends
    }
}
