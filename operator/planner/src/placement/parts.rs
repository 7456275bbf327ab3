//! Parts of nodes: some devices each, the rest may be somebody else's.

use super::{Domain, DomainId, POOL, Slot, Standing, State, Stock};
use crate::types::{Segment, TopologyKey};

impl Stock {
    /// Devices that can be booked in parts, wholly free nodes included.
    pub fn part_free(&self) -> u64 {
        self.domains.get(POOL).map_or(0, |pool| pool.part_free)
    }

    /// The most devices that can be booked in parts of one domain of the level.
    pub fn most_part_free(&self, level: &TopologyKey) -> u64 {
        self.domains_of(level).map(|(_, domain)| domain.part_free).max().unwrap_or(0)
    }

    /// Parts that add up to so many devices, all or none, on as few nodes as possible and on those with the least free devices that suffice,
    /// so that whole nodes stay whole. With `per_node`, so many of each node. With a required level all are in one domain of it, the one with
    /// the least free devices that suffices.
    pub fn find_parts(
        &self,
        devices: u32,
        per_node: Option<u32>,
        require: Option<&TopologyKey>,
    ) -> Option<Vec<(Slot, u32)>> {
        let Some(level) = require else { return self.pick_parts(self.domains.get(POOL)?, devices, per_node) };
        let enough = |(_, domain): &(DomainId, &Domain)| domain.part_free >= u64::from(devices);
        let mut scopes: Vec<(DomainId, &Domain)> = self.domains_of(level).filter(enough).collect();
        scopes.sort_by_key(|&(id, domain)| (domain.part_free, id));
        scopes.into_iter().find_map(|(_, scope)| self.pick_parts(scope, devices, per_node))
    }

    /// A node with so many devices free for a part, in place of one that was lost or never was: with a required level in the domain of the nodes
    /// that remain. Nodes that remain are not taken again.
    pub fn find_part_near(&self, remaining: &[Slot], devices: u32, require: Option<&TopologyKey>) -> Option<Slot> {
        let pool = self.domains.get(POOL)?;
        let scopes: Vec<&Domain> = match (require, remaining.first()) {
            (None, _) => vec![pool],
            (Some(key), None) => self.domains_of(key).map(|(_, domain)| domain).collect(),
            (Some(key), Some(_)) => {
                let level = self.level(key)?;
                let home = |slot: &Slot| self.places.get(*slot).and_then(|place| *place.homes.get(level)?);
                let domain = home(remaining.first()?)?;
                if !remaining.iter().all(|slot| home(slot) == Some(domain)) {
                    return None;
                }
                vec![self.domains.get(domain)?]
            }
        };
        let fits = |scope: &Domain| {
            scope
                .parts
                .range((devices, 0)..)
                .find(|(_, slot)| !remaining.contains(slot))
                .map(|&(free, slot)| (free, slot))
        };
        scopes.into_iter().filter_map(fits).min().map(|(_, slot)| slot)
    }

    /// Takes parts.
    pub fn take_parts(&mut self, parts: &[(Slot, u32)]) -> Vec<Segment> {
        let of = self.pool.devices_per_node;
        let mut segments = Vec::with_capacity(parts.len());
        for &(slot, devices) in parts {
            let Some(before) = self.standing(slot) else { continue };
            let free = before.free.saturating_sub(devices);
            let parts = before.parts.saturating_add(devices);
            self.set(slot, Some(Standing { state: State::Shared, free, parts }));
            segments.extend(self.segment(slot, devices, Some(of)));
        }
        segments.sort_by(|one, other| (&one.node, &one.uid).cmp(&(&other.node, &other.uid)));
        segments
    }

    fn domains_of(&self, level: &TopologyKey) -> impl Iterator<Item = (DomainId, &Domain)> {
        let depth = self.level(level).map(|level| level + 1);
        self.domains.iter().enumerate().filter(move |(_, domain)| Some(domain.depth) == depth)
    }

    fn pick_parts(&self, scope: &Domain, devices: u32, per_node: Option<u32>) -> Option<Vec<(Slot, u32)>> {
        if devices == 0 || scope.part_free < u64::from(devices) {
            return None;
        }
        if let Some(each) = per_node {
            let nodes = usize::try_from(devices.checked_div(each)?).ok()?;
            let picked: Vec<(Slot, u32)> =
                scope.parts.range((each, 0)..).take(nodes).map(|&(_, slot)| (slot, each)).collect();
            return (picked.len() == nodes).then_some(picked);
        }
        let mut picked = Vec::new();
        let mut left = devices;
        // The largest ones whole, so that they are few, until one has enough for the rest.
        let mut largest = scope.parts.iter().rev();
        while left > 0 {
            let mut enough = scope.parts.range((left, 0)..).map(|&(_, slot)| slot);
            if let Some(slot) = enough.find(|slot| !picked.iter().any(|(taken, _)| taken == slot)) {
                picked.push((slot, left));
                return Some(picked);
            }
            let &(free, slot) = largest.next()?;
            picked.push((slot, free));
            left = left.checked_sub(free)?;
        }
        Some(picked)
    }
}
