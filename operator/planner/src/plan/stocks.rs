//! Every pool with what is free in it, and where each node is.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use super::book::Book;
use crate::{
    packing::Learned,
    placement::{Slot, Standing, Stock},
    types::{MilliGpu, Node, NodeHealth, NodeUid, Pool, PoolName, Region, Sku, Where},
};

/// A node, and where it stands.
#[derive(Clone, Debug)]
struct Seat {
    node: Arc<Node>,
    /// Position of its pool, and its position there; none while its pool is not there or has not been counted.
    at: Option<(usize, Slot)>,
}

/// Every pool with what is free in it.
#[derive(Clone, Debug, Default)]
pub(super) struct Stocks {
    /// By name of the pool.
    pub(super) pools: Vec<Stock>,
    by_name: HashMap<PoolName, usize>,
    by_sku: HashMap<(Sku, Region), Vec<usize>>,
    seats: HashMap<NodeUid, Seat>,
    /// What was changed since it was last put back, latest last.
    changed: Vec<(usize, Slot, Standing)>,
    /// Pools to which nodes came: they are counted anew before the next plan.
    stale: BTreeSet<PoolName>,
    learned: BTreeMap<PoolName, Arc<Learned>>,
}

impl Stocks {
    pub(super) fn open(pools: Vec<Pool>, nodes: Vec<Node>, book: &Book) -> Self {
        let mut stocks = Self::default();
        for node in nodes {
            let node = Arc::new(node);
            stocks.seats.insert(node.uid.clone(), Seat { node, at: None });
        }
        stocks.set_pools(pools, book);
        stocks
    }

    /// Takes these pools for all there are, and counts all nodes anew.
    pub(super) fn set_pools(&mut self, pools: Vec<Pool>, book: &Book) {
        let pools: BTreeMap<PoolName, Arc<Pool>> =
            pools.into_iter().map(|pool| (pool.name.clone(), Arc::new(pool))).collect();
        self.by_name.clear();
        self.by_sku.clear();
        self.pools.clear();
        self.changed.clear();
        self.stale.clear();
        for seat in self.seats.values_mut() {
            seat.at = None;
        }
        for (at, (name, pool)) in pools.into_iter().enumerate() {
            self.by_name.insert(name, at);
            self.by_sku.entry((pool.sku.clone(), pool.region.clone())).or_default().push(at);
            self.pools.push(Stock::new(pool, Vec::new()));
        }
        let mut members: HashMap<usize, Vec<Arc<Node>>> = HashMap::new();
        for seat in self.seats.values() {
            if let Some(&at) = self.by_name.get(&seat.node.pool) {
                members.entry(at).or_default().push(Arc::clone(&seat.node));
            }
        }
        for (at, nodes) in members {
            self.count(at, nodes, book);
        }
    }

    fn count(&mut self, at: usize, nodes: Vec<Arc<Node>>, book: &Book) {
        let Some(pool) = self.pools.get(at).map(|stock| Arc::clone(stock.pool())) else { return };
        let count = |node: Arc<Node>| {
            let standing = standing_of(&node, &pool, book);
            (node, standing)
        };
        let nodes = nodes.into_iter().map(count).collect();
        let mut stock = Stock::new(pool, nodes);
        if let Some(learned) = self.learned.get(&stock.pool().name) {
            stock.set_learned(learned);
        }
        for slot in 0..stock.len() {
            if let Some(seat) = stock.node(slot).and_then(|node| self.seats.get_mut(&node.uid)) {
                seat.at = Some((at, slot));
            }
        }
        if let Some(place) = self.pools.get_mut(at) {
            *place = stock;
        }
    }

    /// Counts the pools anew to which nodes came.
    pub(super) fn settle(&mut self, book: &Book) {
        for name in std::mem::take(&mut self.stale) {
            let Some(&at) = self.by_name.get(&name) else { continue };
            let of_pool = self.seats.values().filter(|seat| seat.node.pool == name);
            let nodes = of_pool.map(|seat| Arc::clone(&seat.node)).collect();
            self.count(at, nodes, book);
        }
    }

    /// Enters a node, or what it has become.
    pub(super) fn set_node(&mut self, node: Node, book: &Book) {
        let node = Arc::new(node);
        let Some(seat) = self.seats.get_mut(&node.uid) else {
            self.stale.insert(node.pool.clone());
            self.seats.insert(node.uid.clone(), Seat { node, at: None });
            return;
        };
        let before = std::mem::replace(&mut seat.node, Arc::clone(&node));
        if before.pool != node.pool || before.name != node.name || before.domains != node.domains {
            self.stale.insert(before.pool.clone());
            self.stale.insert(node.pool.clone());
            seat.at = None;
            return;
        }
        if let Some((at, slot)) = seat.at
            && let Some(stock) = self.pools.get_mut(at)
        {
            let standing = standing_of(&node, stock.pool(), book);
            stock.replace(slot, node);
            stock.set(slot, Some(standing));
        }
    }

    pub(super) fn remove_node(&mut self, uid: &NodeUid) {
        if let Some(seat) = self.seats.remove(uid)
            && let Some((at, slot)) = seat.at
            && let Some(stock) = self.pools.get_mut(at)
        {
            stock.set(slot, None);
        }
    }

    /// What bookings have of a node has changed.
    pub(super) fn recount(&mut self, uid: &NodeUid, book: &Book) {
        if let Some(seat) = self.seats.get(uid)
            && let Some((at, slot)) = seat.at
            && let Some(stock) = self.pools.get_mut(at)
        {
            let standing = standing_of(&seat.node, stock.pool(), book);
            stock.set(slot, Some(standing));
        }
    }

    /// Whether what a node holds must move; none: it is gone.
    pub(super) fn health(&self, uid: &NodeUid) -> Option<&NodeHealth> {
        self.seats.get(uid).map(|seat| &seat.node.health)
    }

    pub(super) fn by_name(&self, name: &PoolName) -> Option<usize> {
        self.by_name.get(name).copied()
    }

    pub(super) fn matching(&self, place: &Where) -> Vec<usize> {
        match place {
            Where::Pool(name) => self.by_name(name).into_iter().collect(),
            Where::Sku(sku, region) => self.by_sku.get(&(sku.clone(), region.clone())).cloned().unwrap_or_default(),
        }
    }

    /// Takes this for what was learned of a pool's requests.
    pub(super) fn set_learned(&mut self, pool: &PoolName, learned: Arc<Learned>) {
        if let Some(stock) = self.by_name(pool).and_then(|at| self.pools.get_mut(at)) {
            stock.set_learned(&learned);
        }
        self.learned.insert(pool.clone(), learned);
    }

    /// Lets a plan take from a pool; [`Self::put_back`] undoes it.
    pub(super) fn take<T>(&mut self, at: usize, slots: &[Slot], take: impl FnOnce(&mut Stock) -> T) -> Option<T> {
        let stock = self.pools.get_mut(at)?;
        self.changed.extend(slots.iter().filter_map(|&slot| Some((at, slot, stock.standing(slot)?))));
        Some(take(stock))
    }

    /// Undoes what a plan has taken: it is real when it was committed.
    pub(super) fn put_back(&mut self) {
        while let Some((at, slot, standing)) = self.changed.pop() {
            if let Some(stock) = self.pools.get_mut(at) {
                stock.set(slot, Some(standing));
            }
        }
    }
}

/// How a node counts. The owner's pods without devices do not: they leave a node that is sold.
fn standing_of(node: &Node, pool: &Pool, book: &Book) -> Standing {
    Standing::of(node, pool, book.held(&node.uid), node.owner_use.gpu > MilliGpu(0))
}
