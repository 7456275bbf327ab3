//! Parts of nodes: some devices each, the rest may be somebody else's.

use super::{Domain, DomainId, POOL, Place, Slot, Standing, State, Stock, bins::is_in};
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

    /// Parts that add up to so many devices, all or none, on as few nodes as possible: of a node that has not enough, all that is free; else cut
    /// from the node where the packer says that it costs the future least. With `per_node`, so many of each node. With a required level all are
    /// in one domain of it, the one with the least free devices that suffices.
    pub fn find_parts(
        &mut self,
        devices: u32,
        per_node: Option<u32>,
        require: Option<&TopologyKey>,
    ) -> Option<Vec<(Slot, u32)>> {
        let scopes = match require {
            None => vec![POOL],
            Some(level) => {
                let enough = |(_, domain): &(DomainId, &Domain)| domain.part_free >= u64::from(devices);
                let scopes = self.domains_of(level).filter(enough).map(|(id, domain)| (domain.part_free, id));
                let mut scopes: Vec<(u64, DomainId)> = scopes.collect();
                scopes.sort_unstable();
                scopes.into_iter().map(|(_, id)| id).collect()
            }
        };
        scopes.into_iter().find_map(|scope| self.pick_parts(scope, devices, per_node))
    }

    /// A node with so many devices free for a part, in place of one that was lost or never was: with a required level in the domain of the nodes
    /// that remain. Nodes that remain are not taken again.
    pub fn find_part_near(&mut self, remaining: &[Slot], devices: u32, require: Option<&TopologyKey>) -> Option<Slot> {
        let level = require.map(|key| self.level(key).ok_or(())).transpose().ok()?;
        let home = |places: &[Place], slot: Slot| level.and_then(|level| *places.get(slot)?.homes.get(level)?);
        let home_of_all = remaining.first().and_then(|&first| home(&self.places, first));
        if level.is_some() && !remaining.iter().all(|&slot| home(&self.places, slot) == home_of_all) {
            return None;
        }
        let near = |places: &[Place], slot: Slot| {
            let there = home(places, slot);
            let inside = match (level, remaining.is_empty()) {
                (None, _) => true,
                (Some(_), true) => there.is_some(),
                (Some(_), false) => there.is_some() && there == home_of_all,
            };
            inside && !remaining.contains(&slot)
        };
        self.cheapest(devices, 1, near).pop()
    }

    /// Takes parts.
    pub fn take_parts(&mut self, parts: &[(Slot, u32)]) -> Vec<Segment> {
        let of = self.pool.devices_per_node;
        let mut segments = Vec::with_capacity(parts.len());
        for &(slot, devices) in parts {
            let Some(before) = self.standing(slot) else { continue };
            let free = before.free.saturating_sub(devices);
            let parts = before.parts.saturating_add(devices);
            self.take_devices(slot, devices);
            self.count_as(slot, Some(Standing { state: State::Shared, free, parts }));
            segments.extend(self.segment(slot, devices, Some(of)));
        }
        segments.sort_by(|one, other| (&one.node, &one.uid).cmp(&(&other.node, &other.uid)));
        segments
    }

    pub(super) fn domains_of(&self, level: &TopologyKey) -> impl Iterator<Item = (DomainId, &Domain)> {
        let depth = self.level(level).map(|level| level + 1);
        self.domains.iter().enumerate().filter(move |(_, domain)| Some(domain.depth) == depth)
    }

    fn pick_parts(&mut self, scope: DomainId, devices: u32, per_node: Option<u32>) -> Option<Vec<(Slot, u32)>> {
        let domain = self.domains.get(scope)?;
        let level = domain.depth.checked_sub(1);
        if devices == 0 || domain.part_free < u64::from(devices) {
            return None;
        }
        if let Some(each) = per_node {
            let nodes = usize::try_from(devices.checked_div(each)?).ok()?;
            let picked = self.cheapest(each, nodes, |places, slot| is_in(places, level, scope, slot));
            return (picked.len() == nodes).then(|| picked.into_iter().map(|slot| (slot, each)).collect());
        }
        let mut picked = Vec::new();
        let mut left = devices;
        // The largest ones whole, so that they are few, until one has enough for the rest.
        for &(free, slot) in domain.parts.iter().rev() {
            if free >= left {
                break;
            }
            picked.push((slot, free));
            left -= free;
        }
        let free = |places: &[Place], slot| {
            is_in(places, level, scope, slot) && !picked.iter().any(|&(taken, _)| taken == slot)
        };
        let last = self.cheapest(left, 1, free).pop()?;
        picked.push((last, left));
        Some(picked)
    }
}
