//! The published policies that ours is measured against. Their scores are whole numbers from 0 to 100, so that most choices are ties.

use std::collections::BTreeMap;

use super::{
    bin::{Level, Slot, WHOLE},
    fixed,
    item::{ClassSet, Item, Kind},
};

/// What best fit takes for the CPU of a large node, in thousandths of a core.
const FULL_CPU_MILLI: i64 = 128_000;
/// What best fit takes for the devices of a large node, in thousandths.
const FULL_GPU_MILLI: i64 = 8 * WHOLE as i64;
/// Share of the arrivals, in percent, that FGD's types must cover, the most frequent first.
const COVERED_PERCENT: u64 = 95;

/// Best fit: floor(100 (1 - 0.5 cpu left / 128 cores - 0.5 devices left / 8)), after the item. A share takes the fullest device that it fits.
pub(super) fn best_fit(slot: &Slot, kind: Kind) -> (i64, u16) {
    let cpu = i64::from(slot.bin.left.cpu_milli) - i64::from(kind.cpu_milli);
    let gpu = slot.gpu_left - kind.gpu_milli();
    let full = 2 * FULL_CPU_MILLI * FULL_GPU_MILLI;
    let score = (100 * (full - cpu * FULL_GPU_MILLI - gpu * FULL_CPU_MILLI)).div_euclid(full);
    let fullest = slot.levels.iter().filter(|level| level.milli >= kind.milli).min_by_key(|level| level.milli);
    (score, fullest.map_or(0, |level| level.first))
}

/// What FGD is told beforehand: which types of items come, and how often.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Mix {
    types: Vec<MixType>,
    /// Sum of their counts.
    total: i64,
}

/// A type of FGD: memory does not count.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
struct MixType {
    cpu_milli: u32,
    devices: u16,
    milli: u16,
    classes: ClassSet,
    count: i64,
}

impl Mix {
    /// The mix of a list of items: the most frequent types, until they are 95 % of the list.
    pub fn of<'a>(items: impl IntoIterator<Item = &'a Item>) -> Self {
        let mut counts: BTreeMap<MixType, i64> = BTreeMap::new();
        let mut all: u64 = 0;
        for item in items {
            let Kind { devices, milli, cpu_milli, .. } = item.kind();
            *counts.entry(MixType { cpu_milli, devices, milli, classes: item.classes(), count: 0 }).or_default() += 1;
            all += 1;
        }
        let mut types: Vec<MixType> = counts.into_iter().map(|(one, count)| MixType { count, ..one }).collect();
        // Stable: types of the same count stay in their order.
        types.sort_by_key(|one| std::cmp::Reverse(one.count));
        let mut covered: u64 = 0;
        types.retain(|one| {
            let wanted = covered * 100 < all * COVERED_PERCENT;
            covered += one.count.unsigned_abs();
            wanted
        });
        Self { total: types.iter().map(|one| one.count).sum(), types }
    }

    /// F of a bin times the sum of counts: thousandths of devices left that the types, each by its count, could not use.
    fn fragments(&self, class: ClassSet, cpu_left: u32, levels: &[Level]) -> i64 {
        let all: i64 = levels.iter().map(|level| i64::from(level.milli) * i64::from(level.count)).sum();
        let mut sum = 0;
        for one in &self.types {
            let (mut enough, mut usable) = (0, 0);
            if one.devices > 0 && one.cpu_milli <= cpu_left && one.classes.meets(class) {
                for level in levels.iter().filter(|level| level.milli >= one.milli) {
                    enough += level.count;
                    usable += i64::from(level.milli) * i64::from(level.count);
                }
            }
            sum += one.count * if enough >= one.devices { all - usable } else { all };
        }
        sum
    }

    /// FGD: floor(100 / (1 + exp(-(F before - F after) / 1000))). A share takes the device with the best score.
    pub(super) fn score(&self, slot: &Slot, kind: Kind) -> (i64, u16) {
        let class = slot.class();
        let cpu_after = slot.bin.left.cpu_milli.saturating_sub(kind.cpu_milli);
        let before = self.fragments(class, slot.bin.left.cpu_milli, &slot.levels);
        let mut levels = Vec::with_capacity(slot.levels.len() + 1);
        let mut score = |taken: Option<Level>, count: u16| {
            levels.clear();
            levels.extend_from_slice(&slot.levels);
            if let Some(taken) = taken {
                for level in levels.iter_mut().filter(|level| level.milli == taken.milli) {
                    level.count = level.count.saturating_sub(count);
                }
                levels.push(Level { milli: taken.milli.saturating_sub(kind.milli), count, first: 0 });
            }
            let gained = before - self.fragments(class, cpu_after, &levels);
            fixed::percent_sigmoid(fixed::ratio(i128::from(gained), i128::from(self.total) * 1000))
        };
        let mut best: Option<(i64, u16)> = None;
        for level in slot.levels.iter().filter(|level| kind.devices > 0 && level.milli >= kind.milli) {
            let found = score(Some(*level), kind.devices);
            if best.is_none_or(|(best, _)| found > best) {
                best = Some((found, level.first));
            }
        }
        best.unwrap_or_else(|| (score(None, 0), 0))
    }
}
