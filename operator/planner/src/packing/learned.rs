//! What the policy of dual prices knows of the work that arrives.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{
    bin::WHOLE,
    fixed::{self, ONE},
    item::{ClassSet, Item},
};

/// How many types have a price of their own. With [`SETS_MAX`] it keeps the value below 64 KiB as JSON.
pub const TYPES_MAX: usize = 512;
/// How many restricted sets of classes are counted.
const SETS_MAX: usize = 64;
/// When so many arrivals are counted all counts are halved: they stay bounded, and what was long ago fades.
const COUNTED_MAX: u64 = 1 << 16;
/// After so many arrivals the prices are due for a step.
const STEP_ARRIVALS: u64 = 100;
/// Up to so many arrivals they are due more often, whenever the arrivals have grown by a tenth.
const EARLY_ARRIVALS: u64 = 200;

/// The least price of a type: nothing is for free.
pub(super) const PRICE_MIN: i64 = ONE / 10_000;
/// The highest price of a type.
pub(super) const PRICE_MAX: i64 = 3 * ONE;

/// A type of items of one device or a share of one, whatever their classes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct PricedType {
    /// Thousandths of the device.
    pub(super) milli: u16,
    /// Thousandths of a core.
    pub(super) cpu_milli: u32,
    /// MiB.
    pub(super) memory_mib: u32,
    /// Arrivals.
    pub(super) count: u64,
    /// Price of the last step, in units of 2^-40 of a device.
    pub(super) price: i64,
    /// Its moving mean, which decisions are made with.
    pub(super) mean: i64,
}

impl PricedType {
    /// By size first: tables are made so.
    fn key(&self) -> (u16, u32, u32) {
        (self.milli, self.cpu_milli, self.memory_mib)
    }
}

/// What was learned: how often each type of item arrived, and the price of each type. It depends on the arrivals and on the bins at
/// each [`super::learn()`], and on nothing else.
///
/// It is a value of at most 64 KiB (as JSON) to be kept with what was decided. Losing it costs the quality of packing only.
///
/// Of items of one device, [`TYPES_MAX`] types are told apart. One more takes the place of the rarest, with its count and one more (the
/// space-saving algorithm of Metwally, Agrawal and El Abbadi, 2005): a type that makes more than one arrival in 512 is always among
/// them, however many others come. Beyond 64 restricted sets of classes the same rule holds. After 65,536 arrivals all counts are halved.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(try_from = "Stored", into = "Stored")]
pub struct Learned {
    /// Arrivals in all.
    arrivals: u64,
    /// Arrivals at the last steps.
    stepped_at: u64,
    /// Arrivals that the counts are of.
    counted: u64,
    /// Thousandths of devices that these wanted.
    gpu_milli: u64,
    /// Of these, what could go to some classes only.
    restricted: BTreeMap<ClassSet, u64>,
    /// In order of [`PricedType::key`].
    types: Vec<PricedType>,
}

impl Learned {
    /// Counts an arrival, whether it is placed or not.
    pub fn observe(&mut self, item: &Item) {
        self.arrivals = self.arrivals.saturating_add(1);
        self.counted += 1;
        let milli = item.gpu_milli().unsigned_abs();
        self.gpu_milli += milli;
        if milli > 0 && item.classes() != ClassSet::ANY {
            self.observe_set(item.classes(), milli);
        }
        if item.devices() == 1 {
            self.observe_type(item);
        }
        if self.counted >= COUNTED_MAX {
            self.halve();
        }
    }

    fn observe_set(&mut self, set: ClassSet, milli: u64) {
        let mut before = 0;
        if !self.restricted.contains_key(&set) && self.restricted.len() >= SETS_MAX {
            let rarest = self.restricted.iter().min_by_key(|&(_, milli)| milli).map(|(&set, _)| set);
            before = rarest.and_then(|rarest| self.restricted.remove(&rarest)).unwrap_or(0);
        }
        *self.restricted.entry(set).or_insert(before) += milli;
    }

    fn observe_type(&mut self, item: &Item) {
        // A device is worth a device, until prices say more.
        let price = fixed::ratio(i128::from(item.milli()), i128::from(WHOLE));
        let (milli, cpu_milli, memory_mib) = (item.milli(), item.cpu_milli(), item.memory_mib());
        let mut new = PricedType { milli, cpu_milli, memory_mib, count: 0, price, mean: price };
        let find = |types: &[PricedType]| types.binary_search_by_key(&new.key(), PricedType::key);
        let at = find(&self.types);
        if let Ok(Some(known)) = at.map(|at| self.types.get_mut(at)) {
            known.count += 1;
            return;
        }
        if self.types.len() >= TYPES_MAX
            && let Some((rarest, _)) = self.types.iter().enumerate().min_by_key(|(_, one)| one.count)
        {
            let gone = self.types.remove(rarest);
            new.count = gone.count;
        }
        new.count += 1;
        let at = self.types.binary_search_by_key(&new.key(), PricedType::key).unwrap_or_else(|at| at);
        self.types.insert(at, new);
    }

    fn halve(&mut self) {
        self.counted /= 2;
        self.gpu_milli /= 2;
        self.types.iter_mut().for_each(|one| one.count /= 2);
        self.types.retain(|one| one.count > 0);
        self.restricted.values_mut().for_each(|milli| *milli /= 2);
        self.restricted.retain(|_, milli| *milli > 0);
    }

    /// Whether enough has arrived since the last steps for [`super::learn()`] to be worth its time: 100 arrivals, or at first a tenth more.
    pub fn is_due(&self) -> bool {
        let since = self.arrivals.saturating_sub(self.stepped_at);
        let early = self.arrivals <= EARLY_ARRIVALS && since > 0 && since.saturating_mul(10) >= self.stepped_at;
        early || since >= STEP_ARRIVALS
    }

    /// Notes that steps were made.
    pub(super) fn stepped(&mut self) {
        self.stepped_at = self.arrivals;
    }

    /// Arrivals counted in all.
    pub fn arrivals(&self) -> u64 {
        self.arrivals
    }

    pub(super) fn types(&self) -> &[PricedType] {
        &self.types
    }

    pub(super) fn types_mut(&mut self) -> &mut [PricedType] {
        &mut self.types
    }

    pub(super) fn gpu_milli(&self) -> u64 {
        self.gpu_milli
    }

    pub(super) fn restricted(&self) -> impl Iterator<Item = (ClassSet, u64)> {
        self.restricted.iter().map(|(&set, &milli)| (set, milli))
    }
}

/// Why a stored state cannot be used. Begin with an empty one then: only the quality of packing is lost.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum LearnedError {
    /// More than this version keeps.
    #[error(
        "{types} types and {sets} sets of classes, but at most {TYPES_MAX} and {SETS_MAX} are kept: begin with an empty state"
    )]
    TooMany {
        /// Types.
        types: usize,
        /// Restricted sets.
        sets: usize,
    },
    /// A value that learning never makes.
    #[error("{what} is out of its bounds: begin with an empty state")]
    OutOfBounds {
        /// Which.
        what: &'static str,
    },
}

/// The form that is kept: short, because it is bounded.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Stored {
    arrivals: u64,
    stepped_at: u64,
    counted: u64,
    gpu_milli: u64,
    restricted: Vec<(ClassSet, u64)>,
    /// Thousandths of a device, of a core, MiB, arrivals, price, mean price.
    types: Vec<(u16, u32, u32, u64, i64, i64)>,
}

impl From<Learned> for Stored {
    fn from(learned: Learned) -> Self {
        let types = learned.types.iter();
        Self {
            arrivals: learned.arrivals,
            stepped_at: learned.stepped_at,
            counted: learned.counted,
            gpu_milli: learned.gpu_milli,
            restricted: learned.restricted.into_iter().collect(),
            types: types.map(|t| (t.milli, t.cpu_milli, t.memory_mib, t.count, t.price, t.mean)).collect(),
        }
    }
}

impl TryFrom<Stored> for Learned {
    type Error = LearnedError;

    fn try_from(stored: Stored) -> Result<Self, LearnedError> {
        let (types, sets) = (stored.types.len(), stored.restricted.len());
        if types > TYPES_MAX || sets > SETS_MAX {
            return Err(LearnedError::TooMany { types, sets });
        }
        let types = stored.types.into_iter();
        let types = types.map(|(milli, cpu_milli, memory_mib, count, price, mean)| PricedType {
            milli,
            cpu_milli,
            memory_mib,
            count,
            price,
            mean,
        });
        let types: Vec<PricedType> = types.collect();
        let bounded = |what, holds: bool| if holds { Ok(()) } else { Err(LearnedError::OutOfBounds { what }) };
        let most_milli = COUNTED_MAX * u64::from(super::DEVICES_MAX) * u64::from(WHOLE);
        let prices = PRICE_MIN..=PRICE_MAX;
        bounded("the order of types", types.is_sorted_by(|one, next| one.key() < next.key()))?;
        bounded("a size", types.iter().all(|one| (1..=WHOLE).contains(&one.milli)))?;
        bounded("a count", types.iter().all(|one| (1..=COUNTED_MAX).contains(&one.count)))?;
        bounded("a price", types.iter().all(|one| prices.contains(&one.price) && prices.contains(&one.mean)))?;
        bounded("the arrivals", stored.stepped_at <= stored.arrivals && stored.counted < COUNTED_MAX)?;
        bounded("the devices wanted", stored.gpu_milli <= most_milli)?;
        bounded("a set of classes", stored.restricted.iter().all(|&(_, milli)| (1..=most_milli).contains(&milli)))?;
        Ok(Self {
            arrivals: stored.arrivals,
            stepped_at: stored.stepped_at,
            counted: stored.counted,
            gpu_milli: stored.gpu_milli,
            restricted: stored.restricted.into_iter().collect(),
            types,
        })
    }
}
