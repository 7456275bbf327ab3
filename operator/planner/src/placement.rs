//! Which nodes a gang gets.
//!
//! A [`Stock`] is one pool: its nodes in the tree of its topology levels, and what is free in each domain. Every question is answered from
//! counts that are kept up to date, not by looking at all nodes. Must not: know who asks, or what they may.
//!
//! A domain is the whole path of values from the widest level down: rack `r1` of zone `a` is not rack `r1` of zone `b`.

use std::{
    cmp::Reverse,
    collections::{BTreeSet, HashMap},
    sync::Arc,
};

use crate::types::{MilliGpu, Node, NodeHealth, NodeSale, Pool, Segment, Shape, TopologyKey};

#[cfg(test)]
mod tests;

/// Position of a node in its [`Stock`], in order of name.
pub type Slot = usize;
/// Position of a domain in its [`Stock`]: by level, then by name. The pool itself is the first.
type DomainId = usize;

const POOL: DomainId = 0;

/// What a request wants of any pool.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Want {
    /// Devices in all.
    pub devices: u32,
    /// Devices of each node, if it matters.
    pub per_node: Option<u32>,
}

impl Want {
    /// What the shape wants; none: shapes of which nothing is sold yet, because nodes are held whole.
    pub fn of(shape: Shape) -> Option<Self> {
        match shape {
            Shape::WholeNodes { count, per_node } => Some(Self { devices: count, per_node }),
            Shape::Devices { .. } | Shape::Share { .. } => None,
        }
    }
}

/// Why a pool can never hold what is wanted.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Misfit {
    /// Nothing is wanted.
    Nothing,
    /// Nodes of the pool have another number of devices than each node should have.
    OtherNodes {
        /// Devices of each of its nodes.
        per_node: u32,
    },
    /// Not a number of whole nodes.
    NotWholeNodes {
        /// Devices of each of its nodes.
        per_node: u32,
    },
    /// More than it has, free or not.
    TooLarge {
        /// Devices of the pool in all.
        total: u64,
    },
    /// The required level is none of the pool's.
    UnknownLevel,
    /// No domain of the required level is large enough, free or not.
    DomainTooSmall {
        /// Devices of the largest one.
        largest: u64,
    },
}

/// How a node counts.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum State {
    /// Nobody has it.
    Free,
    /// A booking has it.
    Sold,
    /// The owner's pods use devices of it.
    Owner,
    /// New, in turnover, or away for a moment.
    NotNow,
    /// Somebody must mend it.
    Broken,
}

impl State {
    /// How a node counts of which nothing is sold; `owner`: whether the owner's pods use devices of it.
    pub fn of_unsold(node: &Node, pool: &Pool, owner: bool) -> Self {
        if node.sale == NodeSale::Broken
            || node.health != NodeHealth::Sound
            || node.capacity.gpu != MilliGpu::whole(pool.devices_per_node)
        {
            Self::Broken
        } else if node.sale != NodeSale::Open {
            Self::NotNow
        } else if owner {
            Self::Owner
        } else {
            Self::Free
        }
    }
}

/// Numbers of nodes by state.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Tally {
    /// [`State::Free`].
    pub free: usize,
    /// [`State::Sold`].
    pub sold: usize,
    /// [`State::Owner`].
    pub owner: usize,
    /// [`State::NotNow`].
    pub not_now: usize,
    /// [`State::Broken`].
    pub broken: usize,
}

/// One pool with what is free in it.
#[derive(Debug)]
pub struct Stock<'a> {
    pool: &'a Pool,
    places: Vec<Place<'a>>,
    domains: Vec<Domain>,
    /// Nodes of the largest domain of each level, free or not.
    largest: Vec<usize>,
    tally: Tally,
}

#[derive(Debug)]
struct Place<'a> {
    node: &'a Node,
    /// Its domain at each level; none where the label is missing.
    homes: Vec<Option<DomainId>>,
}

#[derive(Debug, Default)]
struct Domain {
    /// 0: the pool; n: the pool's level n - 1.
    depth: usize,
    /// The wider domains that it is in, the pool first.
    around: Vec<DomainId>,
    free: BTreeSet<Slot>,
    /// The narrower domains in it that have free nodes: one entry for each narrower level.
    within: Vec<ByFree>,
}

/// Domains of one level by their number of free nodes, then by name.
#[derive(Debug, Default)]
struct ByFree(BTreeSet<(usize, DomainId)>);

impl ByFree {
    /// The domain with the least free nodes that suffices.
    fn best_fit(&self, wanted: usize) -> Option<DomainId> {
        self.0.range((wanted, 0)..).next().map(|&(_, id)| id)
    }

    fn most_free(&self) -> usize {
        self.0.last().map_or(0, |&(free, _)| free)
    }

    /// The first of the domains with the most free nodes.
    fn emptiest(&self) -> Option<DomainId> {
        self.best_fit(self.most_free().max(1))
    }

    fn count(&mut self, id: DomainId, before: usize, after: usize) {
        self.0.remove(&(before, id));
        if after > 0 {
            self.0.insert((after, id));
        }
    }
}

impl<'a> Stock<'a> {
    /// A pool with its nodes, in any order.
    pub fn new(pool: &'a Pool, mut nodes: Vec<(&'a Node, State)>) -> Self {
        nodes.sort_by(|(one, _), (other, _)| (&one.name, &one.uid).cmp(&(&other.name, &other.uid)));
        let levels = pool.topology.len();
        let mut stock = Self {
            pool,
            places: Vec::with_capacity(nodes.len()),
            domains: Vec::new(),
            largest: vec![0; levels],
            tally: Tally::default(),
        };
        let free: Vec<Slot> =
            nodes.iter().enumerate().filter(|(_, (_, state))| *state == State::Free).map(|(slot, _)| slot).collect();
        for &(_, state) in &nodes {
            *stock.tally.of(state) += 1;
        }
        stock.lay_out(nodes.into_iter().map(|(node, _)| node), levels);
        stock.fill(&free);
        stock
    }

    /// The pool.
    pub fn pool(&self) -> &'a Pool {
        self.pool
    }

    /// Numbers of nodes by state.
    pub fn tally(&self) -> Tally {
        self.tally
    }

    /// Nodes in all.
    pub fn len(&self) -> usize {
        self.places.len()
    }

    /// Whether it has no nodes so far.
    pub fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    /// The most free nodes that one domain of the level has.
    pub fn most_free(&self, level: &TopologyKey) -> usize {
        self.level(level).and_then(|level| self.domains.get(POOL)?.within.get(level)).map_or(0, ByFree::most_free)
    }

    /// How many nodes are wanted, if the pool could hold that many when nothing else is in it. Broken nodes count: they may be mended. A pool
    /// without nodes may get some.
    pub fn check(&self, want: Want, require: Option<&TopologyKey>) -> Result<usize, Misfit> {
        let per_node = self.pool.devices_per_node;
        if want.devices == 0 {
            return Err(Misfit::Nothing);
        }
        if want.per_node.is_some_and(|wanted| wanted != per_node) {
            return Err(Misfit::OtherNodes { per_node });
        }
        if !want.devices.is_multiple_of(per_node) {
            return Err(Misfit::NotWholeNodes { per_node });
        }
        let level = match require {
            Some(key) => Some(self.level(key).ok_or(Misfit::UnknownLevel)?),
            None => None,
        };
        let wanted = want.devices.checked_div(per_node).map_or(usize::MAX, |nodes| nodes as usize);
        if self.is_empty() {
            return Ok(wanted);
        }
        if wanted > self.len() {
            return Err(Misfit::TooLarge { total: self.devices(self.len()) });
        }
        let largest = level.map_or(self.len(), |level| self.largest.get(level).copied().unwrap_or(0));
        if wanted > largest {
            return Err(Misfit::DomainTooSmall { largest: self.devices(largest) });
        }
        Ok(wanted)
    }

    /// Devices of so many of its nodes.
    pub fn devices(&self, nodes: usize) -> u64 {
        u64::from(self.pool.devices_per_node).saturating_mul(nodes as u64)
    }

    /// Free nodes for a gang, all or none. With a required level all are in one domain of it, the one with the least free nodes that suffices;
    /// without one, they are as close together as the free nodes allow.
    pub fn find(&self, wanted: usize, require: Option<&TopologyKey>) -> Option<Vec<Slot>> {
        let pool = self.domains.get(POOL)?;
        let scope = match require {
            Some(key) => self.domains.get(pool.within.get(self.level(key)?)?.best_fit(wanted)?)?,
            None => pool,
        };
        (wanted > 0 && scope.free.len() >= wanted).then(|| self.pick(scope, wanted))
    }

    /// Free nodes in place of lost ones, at most so many: close to the nodes that remain, and with a required level in their domain of it.
    pub fn find_near(&self, remaining: &[Slot], wanted: usize, require: Option<&TopologyKey>) -> Vec<Slot> {
        self.scope_near(remaining, wanted, require)
            .map(|scope| self.pick(scope, wanted.min(scope.free.len())))
            .unwrap_or_default()
    }

    /// Where a node of that name and UID is.
    pub fn slot(&self, segment: &Segment) -> Option<Slot> {
        let at = |place: &Place<'_>| (&place.node.name, &place.node.uid).cmp(&(&segment.node, &segment.uid));
        self.places.binary_search_by(at).ok()
    }

    /// Takes free nodes, whole.
    pub fn take(&mut self, slots: &[Slot]) -> Vec<Segment> {
        let mut segments = Vec::with_capacity(slots.len());
        for &slot in slots {
            let Some(place) = self.places.get(slot) else { continue };
            segments.push(Segment {
                node: place.node.name.clone(),
                uid: place.node.uid.clone(),
                devices: self.pool.devices_per_node,
                from: None,
                to: None,
            });
            let homes: Vec<DomainId> = std::iter::once(POOL).chain(place.homes.iter().copied().flatten()).collect();
            for home in homes {
                self.take_in(home, slot);
            }
            self.tally.free = self.tally.free.saturating_sub(1);
            self.tally.sold += 1;
        }
        segments.sort_by(|one, other| (&one.node, &one.uid).cmp(&(&other.node, &other.uid)));
        segments
    }

    fn take_in(&mut self, id: DomainId, slot: Slot) {
        let Some(domain) = self.domains.get_mut(id) else { return };
        let before = domain.free.len();
        if !domain.free.remove(&slot) {
            return;
        }
        let (depth, after) = (domain.depth, domain.free.len());
        for wider in domain.around.clone() {
            self.count(wider, depth, id, before, after);
        }
    }

    /// Writes into a wider domain how many free nodes a narrower one has.
    fn count(&mut self, wider: DomainId, depth: usize, id: DomainId, before: usize, after: usize) {
        // Levels at which each node is alone say nothing about closeness: only the pool counts them, for those who require one.
        let alone = depth.checked_sub(1).and_then(|level| self.largest.get(level)).is_some_and(|&nodes| nodes <= 1);
        if alone && wider != POOL {
            return;
        }
        let Some(wider) = self.domains.get_mut(wider) else { return };
        let below = depth.saturating_sub(wider.depth + 1);
        if let Some(by_free) = wider.within.get_mut(below) {
            by_free.count(id, before, after);
        }
    }

    fn level(&self, key: &TopologyKey) -> Option<usize> {
        self.pool.topology.iter().position(|level| level == key)
    }

    /// Makes the tree of domains and puts each node into it.
    fn lay_out(&mut self, nodes: impl Iterator<Item = &'a Node>, levels: usize) {
        self.places.extend(nodes.map(|node| Place { node, homes: vec![None; levels] }));
        self.domains.push(Domain { within: by_level(levels), ..Domain::default() });
        for level in 0..levels {
            let mut members: HashMap<&'a [Option<Arc<str>>], Vec<Slot>> = HashMap::new();
            for (slot, place) in self.places.iter().enumerate() {
                if let Some(path @ [.., Some(_)]) = place.node.domains.get(..=level) {
                    members.entry(path).or_default().push(slot);
                }
            }
            let mut members: Vec<_> = members.into_iter().collect();
            members.sort_unstable_by_key(|&(path, _)| path);
            for (_, slots) in members {
                self.add_domain(level, levels, &slots);
            }
        }
    }

    fn add_domain(&mut self, level: usize, levels: usize, slots: &[Slot]) {
        let id = self.domains.len();
        let wider = slots.first().and_then(|&slot| self.places.get(slot)).and_then(|place| place.homes.get(..level));
        let around = std::iter::once(POOL).chain(wider.unwrap_or_default().iter().copied().flatten()).collect();
        let within = by_level(levels.saturating_sub(level + 1));
        self.domains.push(Domain { depth: level + 1, around, within, free: BTreeSet::new() });
        if let Some(largest) = self.largest.get_mut(level) {
            *largest = slots.len().max(*largest);
        }
        for &slot in slots {
            if let Some(home) = self.places.get_mut(slot).and_then(|place| place.homes.get_mut(level)) {
                *home = Some(id);
            }
        }
    }

    /// Counts the free nodes of every domain, once.
    fn fill(&mut self, free: &[Slot]) {
        let mut by_domain: Vec<Vec<Slot>> = vec![Vec::new(); self.domains.len()];
        for &slot in free {
            let homes = self.places.get(slot).map(|place| place.homes.as_slice()).unwrap_or_default();
            for home in std::iter::once(POOL).chain(homes.iter().copied().flatten()) {
                if let Some(slots) = by_domain.get_mut(home) {
                    slots.push(slot);
                }
            }
        }
        for (id, slots) in by_domain.into_iter().enumerate() {
            let Some(domain) = self.domains.get_mut(id) else { continue };
            let (depth, nodes) = (domain.depth, slots.len());
            domain.free = slots.into_iter().collect();
            for wider in domain.around.clone() {
                self.count(wider, depth, id, 0, nodes);
            }
        }
    }

    /// So many free nodes of the domain, which has them, as close together as can be.
    fn pick(&self, scope: &Domain, wanted: usize) -> Vec<Slot> {
        if wanted >= scope.free.len() {
            return scope.free.iter().copied().collect();
        }
        let narrowest_first =
            scope.within.iter().enumerate().rev().filter(|&(below, _)| self.says_closeness(scope, below));
        for (_, by_free) in narrowest_first {
            if let Some(domain) = by_free.best_fit(wanted).and_then(|id| self.domains.get(id)) {
                return self.pick(domain, wanted);
            }
        }
        let spill = scope
            .within
            .iter()
            .enumerate()
            .find(|&(below, by_free)| self.says_closeness(scope, below) && by_free.most_free() > 0);
        match spill {
            Some((below, by_free)) => self.spill(scope, scope.depth + below, by_free, wanted),
            None => scope.free.iter().copied().take(wanted).collect(),
        }
    }

    /// Whether the level that is so far below a domain has more than one node in a domain.
    fn says_closeness(&self, scope: &Domain, below: usize) -> bool {
        self.largest.get(scope.depth + below).is_some_and(|&nodes| nodes > 1)
    }

    /// No domain of the level has enough: the emptiest ones whole, so that they are few, and the rest where it fits best.
    fn spill(&self, scope: &Domain, level: usize, by_free: &ByFree, wanted: usize) -> Vec<Slot> {
        let mut order: Vec<_> = by_free.0.iter().copied().collect();
        order.sort_unstable_by_key(|&(free, id)| (Reverse(free), id));
        let mut picked = Vec::with_capacity(wanted);
        let mut left = order.as_slice();
        while let Some((&(free, id), after)) = left.split_first() {
            let missing = wanted.saturating_sub(picked.len());
            if free >= missing {
                let best = left.iter().filter(|&&(free, _)| free >= missing).min().map_or(id, |&(_, id)| id);
                picked.extend(self.domains.get(best).map(|domain| self.pick(domain, missing)).unwrap_or_default());
                return picked;
            }
            picked.extend(self.domains.get(id).into_iter().flat_map(|domain| &domain.free));
            left = after;
        }
        let unlabelled = |slot: &Slot| {
            self.places.get(*slot).is_some_and(|place| place.homes.get(level).copied().flatten().is_none())
        };
        let missing = wanted.saturating_sub(picked.len());
        picked.extend(scope.free.iter().copied().filter(unlabelled).take(missing));
        picked
    }

    fn scope_near(&self, remaining: &[Slot], wanted: usize, require: Option<&TopologyKey>) -> Option<&Domain> {
        let required = match require {
            Some(key) => Some(self.level(key)?),
            None => None,
        };
        let Some(first) = remaining.first() else {
            let pool = self.domains.get(POOL)?;
            let Some(level) = required else { return Some(pool) };
            let by_free = pool.within.get(level)?;
            return self.domains.get(by_free.best_fit(wanted).or_else(|| by_free.emptiest())?);
        };
        let homes = &self.places.get(*first)?.homes;
        let widest = match required {
            Some(level) => {
                let domain = (*homes.get(level)?)?;
                let stays =
                    |slot: &Slot| self.places.get(*slot).and_then(|place| *place.homes.get(level)?) == Some(domain);
                if !remaining.iter().all(stays) {
                    return None;
                }
                domain
            }
            None => POOL,
        };
        let widest = self.domains.get(widest)?;
        let narrower = homes.iter().rev().flatten().filter_map(|&id| self.domains.get(id));
        narrower
            .filter(|domain| domain.depth > widest.depth)
            .find(|domain| domain.free.len() >= wanted)
            .or(Some(widest))
    }
}

impl Tally {
    fn of(&mut self, state: State) -> &mut usize {
        match state {
            State::Free => &mut self.free,
            State::Sold => &mut self.sold,
            State::Owner => &mut self.owner,
            State::NotNow => &mut self.not_now,
            State::Broken => &mut self.broken,
        }
    }
}

fn by_level(levels: usize) -> Vec<ByFree> {
    std::iter::repeat_with(ByFree::default).take(levels).collect()
}
