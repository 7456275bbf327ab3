//! The nodes of a pool as the packer sees them. Position of a bin and of a node are the same.

use crate::{
    packing::{Bin, Class, DEVICES_MAX, Item, Learned, Packer, Placement, Policy, Room, WHOLE, learn},
    plan::PlannedShare,
    types::{MilliGpu, TopologyKey},
};

use super::{BinId, DomainId, POOL, Place, Slot, Standing, State, Stock};

/// CPU that a device counts with. What a reservation gets of a node's CPU and memory is in proportion to its devices, whatever the node has
/// of them, so that any amount will do.
const CPU_MILLI: u32 = 12_000;
/// Memory that a device counts with, in MiB.
const MEMORY_MIB: u32 = 49_152;

/// What takes so many whole devices of a node; none: nothing does. What is learned is learned of these.
pub fn item(devices: u32) -> Option<Item> {
    Item::new(CPU_MILLI.checked_mul(devices)?, MEMORY_MIB.checked_mul(devices)?, devices, u32::from(WHOLE)).ok()
}

/// What takes so many thousandths of a device; none: nothing does.
pub(super) fn share(milli: u16) -> Option<Item> {
    let of = |amount: u32| amount / u32::from(WHOLE) * u32::from(milli);
    Item::new(of(CPU_MILLI), of(MEMORY_MIB), 1, u32::from(milli)).ok()
}

fn room(of: u16, free: u16) -> Room {
    let mut devices = vec![0; usize::from(of)];
    devices.iter_mut().take(usize::from(free)).for_each(|device| *device = WHOLE);
    Room { cpu_milli: CPU_MILLI * u32::from(free), memory_mib: MEMORY_MIB * u32::from(free), devices }
}

/// A node of so many devices of which so many are free. Devices have no identity: those that are free come first.
pub(super) fn bin(of: u32, free: u32) -> Bin {
    let small = |count: u32| u16::try_from(count).map_or(DEVICES_MAX, |count| count.min(DEVICES_MAX));
    Bin { class: Class::FIRST, capacity: room(small(of), small(of)), left: room(small(of), small(free.min(of))) }
}

/// The packer of a pool, with nothing learned: best fit.
pub(super) fn packer() -> Packer {
    Packer::new(Policy::DualPrices)
}

impl Stock {
    /// Takes over what was learned of the requests to this pool.
    pub fn set_learned(&mut self, learned: &Learned) {
        self.packer.reprice(learned);
    }

    /// Makes steps of learning on what is free now: see [`learn`].
    pub fn learn(&self, learned: &Learned) -> Learned {
        learn(&self.packer, learned)
    }

    /// The nodes that cost the future least with so many devices of each taken, cheapest first: at most `count`, and fewer if no more have so
    /// many free and are allowed.
    pub(super) fn cheapest(
        &mut self,
        devices: u32,
        count: usize,
        allowed: impl Fn(&[Place], Slot) -> bool,
    ) -> Vec<Slot> {
        let Some(item) = item(devices) else { return Vec::new() };
        let Self { packer, places, .. } = self;
        packer.cheapest(&item, count, |bin| allowed(places, bin.0)).into_iter().map(|bin| bin.0).collect()
    }

    /// Takes whole devices out of a node's bin.
    pub(super) fn take_devices(&mut self, slot: Slot, devices: u32) {
        let left = self.packer.bin(BinId(slot)).map(|bin| bin.left.devices.as_slice()).unwrap_or_default();
        let whole = (0_u16..).zip(left).filter(|(_, left)| **left >= WHOLE).map(|(device, _)| device);
        let place = Placement { bin: BinId(slot), devices: whole.take(devices as usize).collect() };
        if let Some(item) = item(devices) {
            // What was found free a moment ago is free.
            let _ = self.packer.take(&item, &place);
        }
    }

    /// How many shares of so many thousandths of a device could be taken, one after the other.
    pub fn shares_free(&self, milli: u16) -> u64 {
        let fit = |left: &u16| left.checked_div(milli).map_or(0, u64::from);
        self.packer.bins().map(|(_, bin)| bin.left.devices.iter().map(fit).sum::<u64>()).sum()
    }

    /// Shares of so many thousandths of a device, all or none, in one domain of the required level.
    pub fn find_shares(&mut self, count: u32, milli: u16, require: Option<&TopologyKey>) -> Option<Vec<(Slot, u16)>> {
        let scopes: Vec<DomainId> = match require {
            None => vec![POOL],
            Some(level) => self.domains_of(level).map(|(id, _)| id).collect(),
        };
        scopes.into_iter().find_map(|scope| self.pick_shares(scope, count, milli))
    }

    fn pick_shares(&mut self, scope: DomainId, count: u32, milli: u16) -> Option<Vec<(Slot, u16)>> {
        let item = share(milli)?;
        let level = self.domains.get(scope)?.depth.checked_sub(1);
        let Self { packer, places, .. } = self;
        let mut found: Vec<Placement> = Vec::new();
        while found.len() < count as usize {
            let place = packer.place_where(&item, |bin| is_in(places, level, scope, bin.0));
            let Some(place) = place.filter(|place| packer.take(&item, place).is_ok()) else { break };
            found.push(place);
        }
        let whole = found.len() == count as usize;
        let mut picked = Vec::with_capacity(found.len());
        // Nothing is taken yet.
        for place in found.into_iter().rev() {
            packer.give_back(&item, &place).ok()?;
            picked.push((place.bin.0, *place.devices.first()?));
        }
        picked.reverse();
        whole.then_some(picked)
    }

    /// Takes shares, until a node that they are of is [set](Stock::set) anew.
    pub fn take_shares(&mut self, shares: &[(Slot, u16)], milli: u16) -> Vec<PlannedShare> {
        let mut taken = Vec::with_capacity(shares.len());
        let Some(item) = share(milli) else { return taken };
        for &(slot, device) in shares {
            let place = Placement { bin: BinId(slot), devices: vec![device] };
            let Some(before) = self.standing(slot) else { continue };
            if self.packer.take(&item, &place).is_err() {
                continue;
            }
            let left = self.packer.bin(place.bin).map(|bin| &bin.left.devices);
            let free = left.into_iter().flatten().filter(|&&left| left >= WHOLE).count();
            let free = u32::try_from(free).unwrap_or(u32::MAX);
            self.count_as(slot, Some(Standing { state: State::Shared, free, parts: before.parts }));
            let gpu = MilliGpu(i64::from(milli));
            taken.extend(self.node(slot).map(|node| PlannedShare {
                node: node.name.clone(),
                uid: node.uid.clone(),
                device,
                gpu,
            }));
        }
        taken.sort_by(|one, other| (&one.node, &one.uid, one.device).cmp(&(&other.node, &other.uid, other.device)));
        taken
    }
}

/// Whether a node is in a domain of a level; no level: the pool.
pub(super) fn is_in(places: &[Place], level: Option<usize>, scope: DomainId, slot: Slot) -> bool {
    level.is_none_or(|level| places.get(slot).and_then(|place| *place.homes.get(level)?) == Some(scope))
}
