//! What is placed.

use serde::{Deserialize, Serialize};

use super::bin::{DEVICES_MAX, WHOLE};

/// How many classes of bins there can be.
pub const CLASSES_MAX: u8 = 64;

/// Class of a bin, such as the model of its devices: below [`CLASSES_MAX`]. The caller numbers them, and keeps the numbers for as long as
/// a [`super::Learned`] that was made with them.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Class(u8);

impl Class {
    /// The class of a caller that tells none apart.
    pub const FIRST: Self = Self(0);

    /// The class of this number; none: there are only [`CLASSES_MAX`].
    pub const fn new(number: u8) -> Option<Self> {
        if number < CLASSES_MAX { Some(Self(number)) } else { None }
    }

    /// Its number.
    pub fn number(self) -> u8 {
        self.0
    }
}

/// Some classes.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(transparent)]
pub struct ClassSet(u64);

impl ClassSet {
    /// Every class.
    pub const ANY: Self = Self(u64::MAX);
    /// No class.
    pub const NONE: Self = Self(0);

    /// This set and one class more.
    pub fn with(self, class: Class) -> Self {
        Self(self.0 | Self::of(class).0)
    }

    /// One class.
    pub(super) fn of(class: Class) -> Self {
        Self(1 << class.0)
    }

    /// Whether they have a class in common.
    pub fn meets(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }

    /// Whether the class is one of them.
    pub fn contains(self, class: Class) -> bool {
        self.meets(Self::of(class))
    }
}

impl FromIterator<Class> for ClassSet {
    fn from_iter<T: IntoIterator<Item = Class>>(classes: T) -> Self {
        classes.into_iter().fold(Self::NONE, Self::with)
    }
}

/// Why there is no such item.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum ItemError {
    /// More devices than a bin can have.
    #[error("{devices} devices wanted of one bin: at most {DEVICES_MAX}")]
    Devices {
        /// How many.
        devices: u32,
    },
    /// A share of nothing or of more than a device.
    #[error("{milli} thousandths wanted of a device: 1 to {WHOLE}")]
    Milli {
        /// How much.
        milli: u32,
    },
    /// Shares of several devices.
    #[error(
        "{milli} thousandths of each of {devices} devices wanted: an item has a share of one device, or whole devices"
    )]
    Shares {
        /// How many.
        devices: u32,
        /// How much of each.
        milli: u32,
    },
}

/// What is placed into one bin: CPU, memory, and no device, whole devices, or a share of one device.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct Item {
    kind: Kind,
    classes: ClassSet,
}

/// An item without its classes: what costs are cached by.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub(super) struct Kind {
    /// Number of devices.
    pub(super) devices: u16,
    /// Thousandths of each; 0 without devices.
    pub(super) milli: u16,
    /// Thousandths of a core.
    pub(super) cpu_milli: u32,
    /// MiB.
    pub(super) memory_mib: u32,
}

impl Kind {
    /// Thousandths of devices in all.
    pub(super) fn gpu_milli(self) -> i64 {
        i64::from(self.devices) * i64::from(self.milli)
    }

    /// Whether it wants a part of one device.
    pub(super) fn is_share(self) -> bool {
        self.devices == 1 && self.milli < WHOLE
    }
}

impl Item {
    /// An item of `devices` devices with `milli` thousandths of each ([`WHOLE`] is a whole one), for bins of any class. The share is not
    /// looked at where no device is wanted.
    pub fn new(cpu_milli: u32, memory_mib: u32, devices: u32, milli: u32) -> Result<Self, ItemError> {
        let count = u16::try_from(devices).ok().filter(|&count| count <= DEVICES_MAX);
        let count = count.ok_or(ItemError::Devices { devices })?;
        let share = u16::try_from(milli).ok().filter(|&share| (1..=WHOLE).contains(&share));
        let milli = match share {
            _ if count == 0 => 0,
            None => return Err(ItemError::Milli { milli }),
            Some(share) if count > 1 && share < WHOLE => return Err(ItemError::Shares { devices, milli }),
            Some(share) => share,
        };
        Ok(Self { kind: Kind { devices: count, milli, cpu_milli, memory_mib }, classes: ClassSet::ANY })
    }

    /// The same item for bins of these classes only.
    #[must_use]
    pub fn only(mut self, classes: ClassSet) -> Self {
        self.classes = classes;
        self
    }

    /// Which bins it may go to.
    pub fn classes(&self) -> ClassSet {
        self.classes
    }

    /// Thousandths of a core.
    pub fn cpu_milli(&self) -> u32 {
        self.kind.cpu_milli
    }

    /// Memory in MiB.
    pub fn memory_mib(&self) -> u32 {
        self.kind.memory_mib
    }

    /// Number of devices.
    pub fn devices(&self) -> u16 {
        self.kind.devices
    }

    /// Thousandths of each device; 0 without devices.
    pub fn milli(&self) -> u16 {
        self.kind.milli
    }

    /// Thousandths of devices in all.
    pub fn gpu_milli(&self) -> i64 {
        self.kind.gpu_milli()
    }

    pub(super) fn kind(&self) -> Kind {
        self.kind
    }
}
