//! Every pool with what is free in it, from the nodes and what live bookings hold of them.

use std::collections::{BTreeMap, HashMap};

use super::{Book, open_segments};
use crate::{
    calendar::Timeline,
    placement::{State, Stock},
    types::{
        Interval, MilliGpu, Node, NodeHealth, NodeUid, Pool, PoolName, Region, Resources, Sku, Snapshot, TimeMs, Where,
    },
};

/// Every pool with what is free in it.
pub(super) struct Stocks<'a> {
    /// By name of the pool.
    pub(super) pools: Vec<Stock<'a>>,
    pub(super) by_name: HashMap<&'a PoolName, usize>,
    by_sku: HashMap<(&'a Sku, &'a Region), Vec<usize>>,
    pub(super) health: HashMap<&'a NodeUid, &'a NodeHealth>,
}

impl<'a> Stocks<'a> {
    pub(super) fn count(snapshot: &'a Snapshot, book: &Book<'a>, now: TimeMs) -> Self {
        let pools: BTreeMap<_, _> = snapshot.pools.iter().map(|pool| (&pool.name, pool)).collect();
        let mut nodes: HashMap<&NodeUid, (&Node, Timeline)> = HashMap::with_capacity(snapshot.nodes.len());
        for node in &snapshot.nodes {
            let turnover_ms = pools.get(&node.pool).map_or(0, |pool| pool.turnover_ms);
            nodes.insert(&node.uid, (node, Timeline::new(node.capacity, turnover_ms)));
        }
        add_uses(book, &mut nodes, now);
        let mut members: BTreeMap<&PoolName, Vec<(&Node, State)>> =
            pools.keys().map(|&name| (name, Vec::new())).collect();
        let mut stocks = Self {
            pools: Vec::with_capacity(pools.len()),
            by_name: HashMap::new(),
            by_sku: HashMap::new(),
            health: HashMap::with_capacity(nodes.len()),
        };
        for (uid, (node, timeline)) in nodes {
            stocks.health.insert(uid, &node.health);
            if let (Some(pool), Some(members)) = (pools.get(&node.pool), members.get_mut(&node.pool)) {
                members.push((node, state_of(node, pool, timeline, now)));
            }
        }
        for (at, (name, nodes)) in members.into_iter().enumerate() {
            let Some(pool) = pools.get(name) else { continue };
            stocks.by_name.insert(name, at);
            stocks.by_sku.entry((&pool.sku, &pool.region)).or_default().push(at);
            stocks.pools.push(Stock::new(pool, nodes));
        }
        stocks
    }

    pub(super) fn matching(&self, place: &Where) -> Vec<usize> {
        match place {
            Where::Pool(name) => self.by_name.get(name).copied().into_iter().collect(),
            Where::Sku(sku, region) => self.by_sku.get(&(sku, region)).cloned().unwrap_or_default(),
        }
    }
}

/// Adds what the open segments of live bookings take, those of ending bookings included: a node is free when it was given back, not before.
fn add_uses<'a>(book: &Book<'a>, nodes: &mut HashMap<&'a NodeUid, (&'a Node, Timeline)>, now: TimeMs) {
    for &booking in &book.live {
        for segment in open_segments(booking) {
            let Some((node, timeline)) = nodes.get_mut(&segment.uid) else { continue };
            // Of a whole node everything is taken, however many devices it has today; and no hold is so small that it leaves a node whole.
            let gpu = MilliGpu::whole(segment.devices.max(1));
            let amount = if booking.exclusive {
                Resources { gpu: gpu.max(node.capacity.gpu), ..node.capacity }
            } else {
                Resources { gpu, ..Resources::default() }
            };
            let start = segment.from.unwrap_or(booking.booked_at).min(now);
            timeline.add(Interval { start, end: booking.end.filter(|&end| end > now) }, amount);
        }
    }
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
