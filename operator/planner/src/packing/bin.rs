//! Where items go: bins, and what is left of them.

use super::item::{Class, ClassSet, Item, Kind};

/// A whole device, in thousandths.
pub const WHOLE: u16 = 1000;
/// How many devices a bin can have: costs of a bin stay far inside the range of fixed-point numbers.
pub const DEVICES_MAX: u16 = 1024;

/// Position of a bin in its [`super::Packer`]. Equal costs go to the lowest.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct BinId(pub usize);

/// Amounts of a bin.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Room {
    /// CPU in thousandths of a core.
    pub cpu_milli: u32,
    /// Memory in MiB.
    pub memory_mib: u32,
    /// Thousandths of each device: [`WHOLE`] is a whole one.
    pub devices: Vec<u16>,
}

/// A bin: its class, what it has, and what is left of it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Bin {
    /// Its class.
    pub class: Class,
    /// All of it.
    pub capacity: Room,
    /// What nobody has.
    pub left: Room,
}

impl Bin {
    /// A bin of whole devices with nothing in it.
    pub fn empty(class: Class, cpu_milli: u32, memory_mib: u32, devices: u16) -> Self {
        let capacity = Room { cpu_milli, memory_mib, devices: vec![WHOLE; usize::from(devices)] };
        Self { class, left: capacity.clone(), capacity }
    }
}

/// Where an item goes.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Placement {
    /// The bin.
    pub bin: BinId,
    /// Its devices, ascending, as many as the item wants.
    pub devices: Vec<u16>,
}

/// Why a bin cannot be so. The state of the packer is as before.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum BinError {
    /// More devices than a bin can have.
    #[error("a bin with {devices} devices: at most {DEVICES_MAX}")]
    TooManyDevices {
        /// How many.
        devices: usize,
    },
    /// A device of more than [`WHOLE`], or more left than there is.
    #[error("more is left of a bin than it has, or one of its devices has more than {WHOLE} thousandths: {bin:?}")]
    Inconsistent {
        /// The bin.
        bin: Box<Bin>,
    },
    /// No bin is there.
    #[error("there is no bin {}", id.0)]
    NoBin {
        /// Where.
        id: BinId,
    },
    /// What should be taken is not left there.
    #[error("the item does not fit into bin {}: place it anew", id.0)]
    DoesNotFit {
        /// Where.
        id: BinId,
    },
    /// What should be given back was not taken there.
    #[error("bin {} would have more left than it has: the item is not in it", id.0)]
    NotThere {
        /// Where.
        id: BinId,
    },
}

/// Devices of a bin with the same amount left.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub(super) struct Level {
    /// Thousandths left of each.
    pub(super) milli: u16,
    /// How many they are.
    pub(super) count: u16,
    /// The lowest index among them.
    pub(super) first: u16,
}

/// A bin inside a packer.
#[derive(Clone, Debug)]
pub(super) struct Slot {
    pub(super) bin: Bin,
    /// The devices by what is left of them, in order of first index. Devices with nothing left are not in it.
    pub(super) levels: Vec<Level>,
    /// Thousandths left of all devices.
    pub(super) gpu_left: i64,
}

impl Slot {
    pub(super) fn new(bin: Bin) -> Result<Self, BinError> {
        let Bin { capacity, left, .. } = &bin;
        let devices = capacity.devices.len();
        if devices > usize::from(DEVICES_MAX) {
            return Err(BinError::TooManyDevices { devices });
        }
        let within = left.devices.iter().zip(&capacity.devices).all(|(left, has)| left <= has && *has <= WHOLE);
        if !within
            || left.devices.len() != devices
            || left.cpu_milli > capacity.cpu_milli
            || left.memory_mib > capacity.memory_mib
        {
            return Err(BinError::Inconsistent { bin: Box::new(bin) });
        }
        let mut slot = Self { bin, levels: Vec::new(), gpu_left: 0 };
        slot.count();
        Ok(slot)
    }

    /// Makes the levels anew.
    fn count(&mut self) {
        self.levels.clear();
        self.gpu_left = 0;
        for (first, &milli) in (0..).zip(&self.bin.left.devices) {
            self.gpu_left += i64::from(milli);
            match self.levels.iter_mut().find(|level| level.milli == milli) {
                Some(level) => level.count += 1,
                None if milli > 0 => self.levels.push(Level { milli, count: 1, first }),
                None => {}
            }
        }
    }

    /// Whether the kind fits, whatever the class.
    pub(super) fn fits(&self, kind: Kind) -> bool {
        let Room { cpu_milli, memory_mib, .. } = self.bin.left;
        if kind.cpu_milli > cpu_milli || kind.memory_mib > memory_mib {
            return false;
        }
        let enough: u16 = self.levels.iter().filter(|level| level.milli >= kind.milli).map(|level| level.count).sum();
        enough >= kind.devices
    }

    /// The devices that the kind gets: the lowest wholly free ones, or for a share the one that was chosen.
    pub(super) fn devices(&self, kind: Kind, chosen: u16) -> Vec<u16> {
        if kind.is_share() {
            return vec![chosen];
        }
        let free = (0..).zip(&self.bin.left.devices).filter(|&(_, &left)| left >= WHOLE).map(|(device, _)| device);
        free.take(usize::from(kind.devices)).collect()
    }

    /// Takes the item out of what is left; false: it is not left, and nothing changed.
    pub(super) fn take(&mut self, item: &Item, devices: &[u16]) -> bool {
        self.change(item, devices, |left, _, amount| left.checked_sub(amount), |left, _, milli| left.checked_sub(milli))
    }

    /// Puts the item back; false: more would be left than there is, and nothing changed.
    pub(super) fn give_back(&mut self, item: &Item, devices: &[u16]) -> bool {
        self.change(
            item,
            devices,
            |left, has, amount| left.checked_add(amount).filter(|&left| left <= has),
            |left, has, milli| left.checked_add(milli).filter(|&left| left <= has),
        )
    }

    fn change(
        &mut self,
        item: &Item,
        devices: &[u16],
        amount: impl Fn(u32, u32, u32) -> Option<u32>,
        milli: impl Fn(u16, u16, u16) -> Option<u16>,
    ) -> bool {
        let Bin { capacity, left, class } = &self.bin;
        let ascending = devices.is_sorted_by(|one, next| one < next);
        if !ascending || devices.len() != usize::from(item.devices()) || !item.classes().contains(*class) {
            return false;
        }
        let mut after = left.clone();
        let Some(cpu) = amount(left.cpu_milli, capacity.cpu_milli, item.cpu_milli()) else { return false };
        let Some(memory) = amount(left.memory_mib, capacity.memory_mib, item.memory_mib()) else { return false };
        (after.cpu_milli, after.memory_mib) = (cpu, memory);
        for &device in devices {
            let device = usize::from(device);
            let (Some(left), Some(&has)) = (after.devices.get_mut(device), capacity.devices.get(device)) else {
                return false;
            };
            let Some(changed) = milli(*left, has, item.milli()) else { return false };
            *left = changed;
        }
        self.bin.left = after;
        self.count();
        true
    }

    /// Whether every item costs the same in both.
    pub(super) fn is_like(&self, other: &Self) -> bool {
        self.bin.class == other.bin.class && self.bin.left == other.bin.left
    }

    /// Its class, as a set.
    pub(super) fn class(&self) -> ClassSet {
        ClassSet::of(self.bin.class)
    }
}
