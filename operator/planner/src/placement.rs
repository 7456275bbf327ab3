//! Which nodes, or which parts of nodes, a gang gets.
//!
//! A [`Stock`] is one pool: its nodes in the tree of its topology levels, and what is free in each domain. Every question is answered from
//! counts that are kept up to date, not by looking at all nodes. Must not: know who asks, or what they may.
//!
//! A domain is the whole path of values from the widest level down: rack `r1` of zone `a` is not rack `r1` of zone `b`.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use crate::{
    packing::{BinId, Packer, WHOLE},
    types::{MilliGpu, Node, NodeHealth, NodeSale, Pool, ProfileName, Segment, Shape, TopologyKey},
};

mod bins;
mod parts;
#[cfg(test)]
mod tests;

pub use bins::item as part_item;

/// Position of a node in its [`Stock`], in order of name.
pub type Slot = usize;
/// Position of a domain in its [`Stock`]: by level, then by name. The pool itself is the first.
type DomainId = usize;

const POOL: DomainId = 0;

/// What a request wants of any pool.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Want<'a> {
    /// Devices in all; of shares, how many shares.
    pub count: u32,
    /// Devices of each node, if it matters.
    pub per_node: Option<u32>,
    /// Nodes with nobody beside us; else parts of nodes.
    pub whole: bool,
    /// Shares of devices, and which.
    pub profile: Option<&'a ProfileName>,
}

impl<'a> Want<'a> {
    /// What the shape wants.
    pub fn of(shape: &'a Shape) -> Self {
        match shape {
            &Shape::WholeNodes { count, per_node } => Self { count, per_node, whole: true, profile: None },
            &Shape::Devices { count, per_node } => Self { count, per_node, whole: false, profile: None },
            Shape::Shares { count, profile } => {
                Self { count: *count, per_node: None, whole: false, profile: Some(profile) }
            }
        }
    }
}

/// Thousandths of a device that the pool's share of this name is, 1 to [`WHOLE`]; none: it has no such share.
pub fn share_of(pool: &Pool, profile: &ProfileName) -> Option<u16> {
    let profile = pool.profiles.iter().find(|one| one.name == *profile)?;
    u16::try_from(profile.gpu.0).ok().filter(|milli| (1..=WHOLE).contains(milli))
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
    /// Parts of nodes, and each should be larger than a node, or they do not add up.
    NotParts {
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
    /// The pool offers no such share of a device.
    NoProfile,
    /// Nothing holds shares of a device yet.
    NotHeld,
    /// More shares than it, or its largest domain of the required level, could give, free or not.
    TooManyShares {
        /// How many.
        most: u64,
    },
}

/// How a node counts.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum State {
    /// Nobody has it.
    Free,
    /// A booking has it, whole.
    Sold,
    /// Bookings have parts of it.
    Shared,
    /// The owner's pods use devices of it.
    Owner,
    /// New, in turnover, or away for a moment.
    NotNow,
    /// Somebody must mend it.
    Broken,
}

/// How a node counts, and what of it is held in parts.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Standing {
    /// How it counts.
    pub state: State,
    /// Devices that can be booked in parts.
    pub free: u32,
    /// Devices of the parts that are booked.
    pub parts: u32,
}

/// What live bookings have of a node.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Held {
    /// A booking has it whole.
    pub whole: bool,
    /// Devices of parts.
    pub parts: u32,
}

impl Standing {
    /// How a node counts, with what bookings have of it. `owner`: whether the owner's pods use devices of it.
    pub fn of(node: &Node, pool: &Pool, held: Held, owner: bool) -> Self {
        let at = |state, free| Self { state, free, parts: held.parts };
        if held.whole {
            return at(State::Sold, 0);
        }
        let sound = node.health == NodeHealth::Sound && node.capacity.gpu == MilliGpu::whole(pool.devices_per_node);
        if held.parts > 0 {
            // A node that is open still may have the owner's pods: then it is given up soon, and nobody else should want it.
            let sells = match node.sale {
                NodeSale::Shared => sound,
                NodeSale::Open => sound && !owner,
                NodeSale::NotNow | NodeSale::Broken => false,
            };
            let taken = held.parts.saturating_add(node.returning);
            return at(State::Shared, if sells { pool.devices_per_node.saturating_sub(taken) } else { 0 });
        }
        if node.sale == NodeSale::Broken || !sound {
            at(State::Broken, 0)
        } else if node.sale != NodeSale::Open || node.returning > 0 {
            at(State::NotNow, 0)
        } else if owner {
            at(State::Owner, 0)
        } else {
            at(State::Free, pool.devices_per_node)
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
    /// [`State::Shared`].
    pub shared: usize,
    /// [`State::Owner`].
    pub owner: usize,
    /// [`State::NotNow`].
    pub not_now: usize,
    /// [`State::Broken`].
    pub broken: usize,
    /// Devices of shared nodes that can be booked in parts.
    pub part_free: u64,
    /// Devices of shared nodes that are booked.
    pub part_sold: u64,
}

/// One pool with what is free in it.
#[derive(Clone, Debug)]
pub struct Stock {
    pool: Arc<Pool>,
    places: Vec<Place>,
    domains: Vec<Domain>,
    /// Numbers of domains of each level by their number of nodes, free or not.
    sizes: Vec<BTreeMap<usize, usize>>,
    /// Nodes that are there.
    nodes: usize,
    tally: Tally,
    /// Which node a part is cut from: one bin for each place.
    packer: Packer,
}

#[derive(Clone, Debug)]
struct Place {
    node: Arc<Node>,
    /// Its domain at each level; none where the label is missing.
    homes: Vec<Option<DomainId>>,
    /// How it counts; none: it is gone.
    standing: Option<Standing>,
}

#[derive(Clone, Debug, Default)]
struct Domain {
    /// 0: the pool; n: the pool's level n - 1.
    depth: usize,
    /// Nodes that are there, free or not.
    nodes: usize,
    /// The wider domains that it is in, the pool first.
    around: Vec<DomainId>,
    /// Nodes that nobody has.
    free: BTreeSet<Slot>,
    /// The narrower domains in it that have free nodes: one entry for each narrower level.
    within: Vec<ByFree>,
    /// Nodes of which parts can be booked, by free devices.
    parts: BTreeSet<(u32, Slot)>,
    /// Their free devices.
    part_free: u64,
}

/// Domains of one level by their number of free nodes, then by name.
#[derive(Clone, Debug, Default)]
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

impl Stock {
    /// A pool with its nodes, in any order.
    pub fn new(pool: Arc<Pool>, mut nodes: Vec<(Arc<Node>, Standing)>) -> Self {
        nodes.sort_by(|(one, _), (other, _)| (&one.name, &one.uid).cmp(&(&other.name, &other.uid)));
        let levels = pool.topology.len();
        let mut stock = Self {
            pool,
            places: Vec::with_capacity(nodes.len()),
            domains: Vec::new(),
            sizes: vec![BTreeMap::new(); levels],
            nodes: nodes.len(),
            tally: Tally::default(),
            packer: bins::packer(),
        };
        for (_, standing) in &nodes {
            stock.tally.add(*standing);
            // A bin of free devices and nothing else is a bin that can be.
            let _ = stock.packer.add(bins::bin(stock.pool.devices_per_node, standing.free));
        }
        stock.lay_out(nodes, levels);
        stock.fill();
        stock
    }

    /// The pool.
    pub fn pool(&self) -> &Arc<Pool> {
        &self.pool
    }

    /// The node at a position.
    pub fn node(&self, slot: Slot) -> Option<&Arc<Node>> {
        self.places.get(slot).map(|place| &place.node)
    }

    /// How the node at a position counts; none: it is gone.
    pub fn standing(&self, slot: Slot) -> Option<Standing> {
        self.places.get(slot)?.standing
    }

    /// Numbers of nodes by state.
    pub fn tally(&self) -> Tally {
        self.tally
    }

    /// Nodes in all.
    pub fn len(&self) -> usize {
        self.nodes
    }

    /// Whether it has no nodes so far.
    pub fn is_empty(&self) -> bool {
        self.nodes == 0
    }

    /// The most free nodes that one domain of the level has.
    pub fn most_free(&self, level: &TopologyKey) -> usize {
        self.level(level).and_then(|level| self.domains.get(POOL)?.within.get(level)).map_or(0, ByFree::most_free)
    }

    /// How many nodes are wanted, if the pool could hold that many when nothing else is in it. Broken nodes count: they may be mended. A pool
    /// without nodes may get some.
    pub fn check(&self, want: Want<'_>, require: Option<&TopologyKey>) -> Result<usize, Misfit> {
        let per_node = self.pool.devices_per_node;
        if want.count == 0 {
            return Err(Misfit::Nothing);
        }
        if let Some(profile) = want.profile {
            return self.check_shares(want.count, profile, require);
        }
        let level = require.map(|key| self.level(key));
        if want.whole {
            if want.per_node.is_some_and(|wanted| wanted != per_node) {
                return Err(Misfit::OtherNodes { per_node });
            }
            if !want.count.is_multiple_of(per_node) {
                return Err(Misfit::NotWholeNodes { per_node });
            }
        } else {
            let fits = |each: u32| each > 0 && each <= per_node && want.count.is_multiple_of(each);
            if per_node == 0 || !want.per_node.is_none_or(fits) {
                return Err(Misfit::NotParts { per_node });
            }
        }
        let level = match level {
            Some(level) => Some(level.ok_or(Misfit::UnknownLevel)?),
            None => None,
        };
        // Parts of a given size may leave a rest of each node that is too small.
        let each = want.per_node.unwrap_or(if want.whole { per_node } else { 1 });
        let usable = per_node.checked_div(each).unwrap_or(0).saturating_mul(each);
        let wanted = want.count.div_ceil(usable.max(1)) as usize;
        if self.is_empty() {
            return Ok(wanted);
        }
        if wanted > self.len() {
            return Err(Misfit::TooLarge { total: self.devices(self.len()) });
        }
        let largest = level.map_or(self.len(), |level| self.largest(level));
        if wanted > largest {
            return Err(Misfit::DomainTooSmall { largest: self.devices(largest) });
        }
        Ok(wanted)
    }

    fn check_shares(&self, count: u32, profile: &ProfileName, require: Option<&TopologyKey>) -> Result<usize, Misfit> {
        let milli = share_of(&self.pool, profile).ok_or(Misfit::NoProfile)?;
        if !self.pool.observed {
            return Err(Misfit::NotHeld);
        }
        let level = require.map(|key| self.level(key).ok_or(Misfit::UnknownLevel)).transpose()?;
        let of_node = self.pool.devices_per_node.saturating_mul(u32::from(WHOLE / milli));
        let wanted = count.div_ceil(of_node.max(1)) as usize;
        let nodes = level.map_or(self.len(), |level| self.largest(level));
        if !self.is_empty() && wanted > nodes {
            return Err(Misfit::TooManyShares { most: u64::from(of_node).saturating_mul(nodes as u64) });
        }
        Ok(wanted)
    }

    /// Nodes of the largest domain of a level, free or not.
    fn largest(&self, level: usize) -> usize {
        self.sizes.get(level).and_then(|sizes| sizes.last_key_value()).map_or(0, |(&nodes, _)| nodes)
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
        let at = |place: &Place| (&place.node.name, &place.node.uid).cmp(&(&segment.node, &segment.uid));
        let slot = self.places.binary_search_by(at).ok()?;
        self.standing(slot).map(|_| slot)
    }

    /// Takes free nodes, whole.
    pub fn take(&mut self, slots: &[Slot]) -> Vec<Segment> {
        let devices = self.pool.devices_per_node;
        let segments = slots.iter().filter_map(|&slot| {
            self.set(slot, Some(Standing { state: State::Sold, free: 0, parts: 0 }));
            self.segment(slot, devices, None)
        });
        let mut segments: Vec<Segment> = segments.collect();
        segments.sort_by(|one, other| (&one.node, &one.uid).cmp(&(&other.node, &other.uid)));
        segments
    }

    fn segment(&self, slot: Slot, devices: u32, of: Option<u32>) -> Option<Segment> {
        let node = self.node(slot)?;
        Some(Segment { node: node.name.clone(), uid: node.uid.clone(), devices, of, from: None, to: None })
    }

    /// Puts another object of a node in its place; it must have the same name, UID and topology.
    pub fn replace(&mut self, slot: Slot, node: Arc<Node>) {
        if let Some(place) = self.places.get_mut(slot) {
            place.node = node;
        }
    }

    /// Says how a node counts from now on; none: it is gone.
    pub fn set(&mut self, slot: Slot, standing: Option<Standing>) {
        if self.count_as(slot, standing) {
            let free = standing.map_or(0, |standing| standing.free);
            // There is a bin for each place, and one of free devices and nothing else can be.
            let _ = self.packer.update(BinId(slot), bins::bin(self.pool.devices_per_node, free));
        }
    }

    /// Counts a node anew; false: it counts as before.
    fn count_as(&mut self, slot: Slot, standing: Option<Standing>) -> bool {
        let Some(place) = self.places.get_mut(slot) else { return false };
        let before = std::mem::replace(&mut place.standing, standing);
        if before == standing {
            return false;
        }
        let homes: Vec<DomainId> = std::iter::once(POOL).chain(place.homes.iter().copied().flatten()).collect();
        if let Some(before) = before {
            self.tally.remove(before);
        }
        if let Some(standing) = standing {
            self.tally.add(standing);
        }
        let free = |standing: Option<Standing>| standing.is_some_and(|standing| standing.state == State::Free);
        let parts = |standing: Option<Standing>| standing.map_or(0, |standing| standing.free);
        for home in homes {
            self.set_in(home, slot, parts(before), parts(standing));
            if free(before) != free(standing) {
                self.set_free(home, slot, free(standing));
            }
        }
        if before.is_some() != standing.is_some() {
            self.come_or_go(slot, standing.is_some());
        }
        true
    }

    fn set_in(&mut self, id: DomainId, slot: Slot, before: u32, after: u32) {
        let Some(domain) = self.domains.get_mut(id).filter(|_| before != after) else { return };
        if before > 0 {
            domain.parts.remove(&(before, slot));
        }
        if after > 0 {
            domain.parts.insert((after, slot));
        }
        domain.part_free = domain.part_free.saturating_add(u64::from(after)).saturating_sub(u64::from(before));
    }

    fn set_free(&mut self, id: DomainId, slot: Slot, free: bool) {
        let Some(domain) = self.domains.get_mut(id) else { return };
        let before = domain.free.len();
        if free {
            domain.free.insert(slot);
        } else {
            domain.free.remove(&slot);
        }
        let (depth, after) = (domain.depth, domain.free.len());
        for wider in domain.around.clone() {
            self.count(wider, depth, id, before, after);
        }
    }

    fn come_or_go(&mut self, slot: Slot, comes: bool) {
        let step = |count: &mut usize| *count = if comes { *count + 1 } else { count.saturating_sub(1) };
        step(&mut self.nodes);
        let homes = self.places.get(slot).map(|place| place.homes.clone()).unwrap_or_default();
        for (level, home) in homes.into_iter().enumerate() {
            let Some(domain) = home.and_then(|home| self.domains.get_mut(home)) else { continue };
            let before = domain.nodes;
            step(&mut domain.nodes);
            let after = domain.nodes;
            let Some(sizes) = self.sizes.get_mut(level) else { continue };
            if let Some(count) = sizes.get_mut(&before) {
                *count = count.saturating_sub(1);
                if *count == 0 {
                    sizes.remove(&before);
                }
            }
            *sizes.entry(after).or_default() += 1;
        }
    }

    /// Writes into a wider domain how many free nodes a narrower one has.
    fn count(&mut self, wider: DomainId, depth: usize, id: DomainId, before: usize, after: usize) {
        // Levels at which each node is alone say nothing about closeness: only the pool counts them, for those who require one.
        let alone = depth.checked_sub(1).is_some_and(|level| self.largest(level) <= 1);
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
    fn lay_out(&mut self, nodes: Vec<(Arc<Node>, Standing)>, levels: usize) {
        let place = |(node, standing)| Place { node, homes: vec![None; levels], standing: Some(standing) };
        self.places.extend(nodes.into_iter().map(place));
        self.domains.push(Domain { nodes: self.nodes, within: by_level(levels), ..Domain::default() });
        for level in 0..levels {
            let mut members: HashMap<&[Option<Arc<str>>], Vec<Slot>> = HashMap::new();
            for (slot, place) in self.places.iter().enumerate() {
                if let Some(path @ [.., Some(_)]) = place.node.domains.get(..=level) {
                    members.entry(path).or_default().push(slot);
                }
            }
            let mut members: Vec<_> = members.into_iter().collect();
            members.sort_unstable_by_key(|&(path, _)| path);
            let members: Vec<Vec<Slot>> = members.into_iter().map(|(_, slots)| slots).collect();
            for slots in members {
                self.add_domain(level, levels, &slots);
            }
        }
    }

    fn add_domain(&mut self, level: usize, levels: usize, slots: &[Slot]) {
        let id = self.domains.len();
        let wider = slots.first().and_then(|&slot| self.places.get(slot)).and_then(|place| place.homes.get(..level));
        let around = std::iter::once(POOL).chain(wider.unwrap_or_default().iter().copied().flatten()).collect();
        let within = by_level(levels.saturating_sub(level + 1));
        self.domains.push(Domain { depth: level + 1, nodes: slots.len(), around, within, ..Domain::default() });
        if let Some(sizes) = self.sizes.get_mut(level) {
            *sizes.entry(slots.len()).or_default() += 1;
        }
        for &slot in slots {
            if let Some(home) = self.places.get_mut(slot).and_then(|place| place.homes.get_mut(level)) {
                *home = Some(id);
            }
        }
    }

    /// Counts what is free in every domain, once.
    fn fill(&mut self) {
        let mut free: Vec<Vec<Slot>> = vec![Vec::new(); self.domains.len()];
        let mut parts: Vec<Vec<(u32, Slot)>> = vec![Vec::new(); self.domains.len()];
        for (slot, place) in self.places.iter().enumerate() {
            let Some(standing) = place.standing else { continue };
            for home in std::iter::once(POOL).chain(place.homes.iter().copied().flatten()) {
                if let Some(free) = free.get_mut(home).filter(|_| standing.state == State::Free) {
                    free.push(slot);
                }
                if let Some(parts) = parts.get_mut(home).filter(|_| standing.free > 0) {
                    parts.push((standing.free, slot));
                }
            }
        }
        for (id, (free, parts)) in free.into_iter().zip(parts).enumerate() {
            let Some(domain) = self.domains.get_mut(id) else { continue };
            let (depth, nodes) = (domain.depth, free.len());
            domain.free = free.into_iter().collect();
            domain.part_free = parts.iter().map(|&(free, _)| u64::from(free)).sum();
            domain.parts = parts.into_iter().collect();
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
        self.largest(scope.depth + below) > 1
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
            State::Shared => &mut self.shared,
            State::Owner => &mut self.owner,
            State::NotNow => &mut self.not_now,
            State::Broken => &mut self.broken,
        }
    }

    fn add(&mut self, standing: Standing) {
        *self.of(standing.state) += 1;
        if standing.state == State::Shared {
            self.part_free += u64::from(standing.free);
            self.part_sold += u64::from(standing.parts);
        }
    }

    fn remove(&mut self, standing: Standing) {
        let count = self.of(standing.state);
        *count = count.saturating_sub(1);
        if standing.state == State::Shared {
            self.part_free = self.part_free.saturating_sub(u64::from(standing.free));
            self.part_sold = self.part_sold.saturating_sub(u64::from(standing.parts));
        }
    }
}

fn by_level(levels: usize) -> Vec<ByFree> {
    std::iter::repeat_with(ByFree::default).take(levels).collect()
}
