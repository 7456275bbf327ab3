//! What a bin is worth to the work that comes: tables of device gaps, made from the prices of the types.
//!
//! A device with a gap of u hundredths is worth the best set of items that fills it (an unbounded knapsack), each at its type's price less
//! the CPU and memory that it takes along. How dear CPU and memory are is not known beforehand; it depends on the bin. So there is one
//! table for each [`Point`] of a grid of both prices, and a bin is worth the least that any point of the grid says:
//!
//! V(bin) = min over k of (c_k cpu left / 12,000 + m_k memory left / 49,152 + sum over devices of h_k\[gap\])
//!
//! which is the value of the dual of "fill this bin with what it is worth most", over the points of the grid.

use super::{
    bin::{Level, Slot, WHOLE},
    fixed::{self, ONE},
    item::{CLASSES_MAX, Kind},
    learned::{Learned, PricedType},
};

/// Points of the grid.
pub(super) const POINTS: usize = 25;
/// A number for each point of the grid.
pub(super) type Row = [i64; POINTS];

/// Prices of CPU and of memory on the grid, in thousandths of a device for the amounts below: each alone, and half of both.
const STEPS: [i64; 8] = [50, 120, 200, 300, 420, 600, 850, 1200];
/// The CPU that the grid's prices are for: 12 cores, about what a device of the published traces has beside it.
const CPU_UNIT_MILLI: i64 = 12_000;
/// The memory that the grid's prices are for: 48 GiB.
const MEMORY_UNIT_MIB: i64 = 49_152;

/// Thousandths of a device in a unit of gaps. Sizes are rounded up to it, gaps down.
const GAP_MILLI: u16 = 10;
/// The gap of a wholly free device.
pub(super) const FULL_GAP: usize = (WHOLE / GAP_MILLI) as usize;

/// Cost of each thousandth of a device that is left in the bin: 0.005 for 8 devices. It decides between bins that are worth the same.
const LEFT_COST: i64 = ONE * 5 / 1000 / (8 * WHOLE as i64);
/// Weight of the price of a class.
const CLASS_WEIGHT_PERCENT: i128 = 50;
/// What demand over supply of a class is cut at, in percent.
const CLASS_DEMAND_MAX_PERCENT: i128 = 150;

/// One choice of prices of CPU and memory.
#[derive(Clone, Debug)]
pub(super) struct Grid {
    /// Of a thousandth of a core.
    cpu: Row,
    /// Of a MiB.
    memory: Row,
}

impl Grid {
    pub(super) fn new() -> Self {
        let alone = |at: usize, offset: usize| {
            // Point 0 is free of charge; then for each step CPU alone, memory alone, half of both.
            let (step, which) = (at.checked_sub(1)? / 3, (at - 1) % 3);
            let step = STEPS.get(step)?;
            if which == offset { Some(*step * 2) } else { (which == 2).then_some(*step) }
        };
        let row = |offset: usize, unit: i64| {
            std::array::from_fn(|at| {
                let half_thousandths = i128::from(alone(at, offset).unwrap_or(0));
                fixed::ratio(half_thousandths, 2000 * i128::from(unit))
            })
        };
        Self { cpu: row(0, CPU_UNIT_MILLI), memory: row(1, MEMORY_UNIT_MIB) }
    }

    /// What so much CPU and memory costs at each point.
    pub(super) fn cost(&self, cpu_milli: u32, memory_mib: u32) -> Row {
        let (cpu_milli, memory_mib) = (i64::from(cpu_milli), i64::from(memory_mib));
        let mut row = [0; POINTS];
        for ((cost, cpu), memory) in row.iter_mut().zip(&self.cpu).zip(&self.memory) {
            *cost = cpu * cpu_milli + memory * memory_mib;
        }
        row
    }
}

/// All types of one size.
#[derive(Clone, Debug)]
struct Size {
    /// In units of gaps.
    gap: usize,
    /// What the best type of this size is worth at each point; not positive: none is worth anything.
    worth: Row,
    /// Which type that is.
    best: [usize; POINTS],
}

/// The worth of each gap at each point of the grid.
#[derive(Clone, Debug)]
pub(super) struct Table {
    sizes: Vec<Size>,
    /// By gap, 0 to [`FULL_GAP`].
    rows: Vec<Row>,
}

impl Table {
    /// The table of these types, which must be in order of size, at these prices.
    pub(super) fn new(grid: &Grid, types: &[PricedType], price: impl Fn(&PricedType) -> i64) -> Self {
        let mut sizes: Vec<Size> = Vec::new();
        for (at, one) in types.iter().enumerate() {
            let mut worth = grid.cost(one.cpu_milli, one.memory_mib);
            let price = price(one);
            worth.iter_mut().for_each(|cost| *cost = price - *cost);
            let gap = size_of(one.milli);
            match sizes.last_mut().filter(|size| size.gap == gap) {
                Some(size) => {
                    for ((most, best), worth) in size.worth.iter_mut().zip(&mut size.best).zip(worth) {
                        if worth > *most {
                            (*most, *best) = (worth, at);
                        }
                    }
                }
                None => sizes.push(Size { gap, worth, best: [at; POINTS] }),
            }
        }
        // What is worth nothing anywhere fills nothing.
        sizes.retain(|size| size.worth.iter().any(|&worth| worth > 0));
        let mut rows = Vec::with_capacity(FULL_GAP + 1);
        let mut last = [0; POINTS];
        rows.push(last);
        for gap in 1..=FULL_GAP {
            for size in &sizes {
                let Some(rest) = gap.checked_sub(size.gap).and_then(|rest| rows.get(rest)) else { break };
                for ((most, rest), worth) in last.iter_mut().zip(rest).zip(&size.worth) {
                    *most = (*most).max(rest + worth);
                }
            }
            rows.push(last);
        }
        Self { sizes, rows }
    }

    /// The worth of a gap at each point.
    fn row(&self, gap: usize) -> &Row {
        const NOTHING: &Row = &[0; POINTS];
        self.rows.get(gap).unwrap_or(NOTHING)
    }

    /// Adds the worth of these devices at each point.
    pub(super) fn add(&self, sum: &mut Row, levels: &[Level]) {
        for level in levels {
            let count = i64::from(level.count);
            for (sum, worth) in sum.iter_mut().zip(self.row(gap_of(level.milli))) {
                *sum += count * worth;
            }
        }
    }

    /// Fills gaps at one point with what they are worth most, and counts what fills them by type. `gaps`: how many there are of each.
    pub(super) fn fill(&self, point: usize, mut gaps: [u64; FULL_GAP + 1], wanted: &mut [u64]) {
        let worth = |gap: usize| self.row(gap).get(point).copied().unwrap_or(0);
        for gap in (1..=FULL_GAP).rev() {
            let count = gaps.get(gap).copied().unwrap_or(0);
            if count == 0 {
                continue;
            }
            let (all, mut rest) = (worth(gap), gap - 1);
            if worth(rest) < all {
                let size = self.sizes.iter().find_map(|size| {
                    let rest = gap.checked_sub(size.gap)?;
                    (worth(rest) + size.worth.get(point)? == all).then_some((rest, size.best.get(point)?))
                });
                // There is always one: the table was made so.
                let Some((left, &best)) = size else { continue };
                rest = left;
                if let Some(wanted) = wanted.get_mut(best) {
                    *wanted += count;
                }
            }
            if let Some(gap) = gaps.get_mut(rest) {
                *gap += count;
            }
        }
    }
}

/// The gap of a device with so many thousandths left.
pub(super) fn gap_of(milli: u16) -> usize {
    usize::from(milli / GAP_MILLI)
}

/// The gap that an item of so many thousandths fills.
fn size_of(milli: u16) -> usize {
    usize::from(milli.div_ceil(GAP_MILLI))
}

/// The least of a row, and the first point that has it.
pub(super) fn least(row: &Row) -> (i64, usize) {
    let mut found = (i64::MAX, 0);
    for (point, &value) in row.iter().enumerate() {
        if value < found.0 {
            found = (value, point);
        }
    }
    found
}

/// A bin before a decision.
#[derive(Clone, Copy, Debug)]
pub(super) struct Worth {
    /// At each point.
    row: Row,
    /// V.
    least: i64,
}

/// A kind at each point: what the CPU and memory that it takes are worth.
pub(super) type KindCost = Row;

/// What decisions are made with.
#[derive(Clone, Debug)]
pub(super) struct Prices {
    grid: Grid,
    table: Table,
    /// By class: what a device of it costs because restricted items need it.
    classes: [i64; CLASSES_MAX as usize],
}

impl Prices {
    /// Without any type: every bin is worth nothing.
    pub(super) fn none() -> Self {
        let grid = Grid::new();
        Self { table: Table::new(&grid, &[], |_| 0), grid, classes: [0; CLASSES_MAX as usize] }
    }

    /// From what was learned, and the bins of now.
    pub(super) fn new<'a>(learned: &Learned, slots: impl Iterator<Item = &'a Slot>) -> Self {
        let grid = Grid::new();
        let table = Table::new(&grid, learned.types(), |one| one.mean);
        Self { table, grid, classes: class_prices(learned, slots) }
    }

    pub(super) fn cost_of_kind(&self, kind: Kind) -> KindCost {
        self.grid.cost(kind.cpu_milli, kind.memory_mib)
    }

    /// What the bin is worth.
    pub(super) fn worth(&self, slot: &Slot) -> Worth {
        let mut row = self.grid.cost(slot.bin.left.cpu_milli, slot.bin.left.memory_mib);
        self.table.add(&mut row, &slot.levels);
        Worth { least: least(&row).0, row }
    }

    /// Cost of the kind in the bin, where it fits, and the device if it wants a share:
    /// V(before) - V(after) + 0.005 devices left / 8 + the price of the class for each device.
    pub(super) fn cost(&self, worth: &Worth, slot: &Slot, kind: Kind, kind_cost: &KindCost) -> (i64, u16) {
        let class = self.classes.get(usize::from(slot.bin.class.number())).copied().unwrap_or(0);
        let gpu = kind.gpu_milli();
        let fixed = worth.least + LEFT_COST * (slot.gpu_left - gpu) + class * gpu / i64::from(WHOLE);
        if kind.devices == 0 {
            let after = worth.row.iter().zip(kind_cost).map(|(before, cost)| before - cost).min();
            return (fixed - after.unwrap_or(0), 0);
        }
        let mut best = (i64::MAX, 0);
        for level in slot.levels.iter().filter(|level| level.milli >= kind.milli) {
            let (before, after) =
                (self.table.row(gap_of(level.milli)), self.table.row(gap_of(level.milli.saturating_sub(kind.milli))));
            let count = i64::from(kind.devices);
            let mut value = i64::MAX;
            for (((worth, cost), before), after) in worth.row.iter().zip(kind_cost).zip(before).zip(after) {
                value = value.min(worth - cost - count * (before - after));
            }
            let cost = fixed - value;
            if cost < best.0 {
                best = (cost, level.first);
            }
        }
        best
    }
}

/// The price of a device of each class: restricted items need it, others could go elsewhere.
///
/// With C the thousandths left of a class and R their sum, each restricted set of classes that made a share f of the arrivals' devices
/// spreads R f over its classes in proportion to C, which gives a class its demand D. Its price is 0.5 min(1.5, D / C).
fn class_prices<'a>(learned: &Learned, slots: impl Iterator<Item = &'a Slot>) -> [i64; CLASSES_MAX as usize] {
    let mut left = [0_i128; CLASSES_MAX as usize];
    for slot in slots {
        if let Some(left) = left.get_mut(usize::from(slot.bin.class.number())) {
            *left += i128::from(slot.gpu_left);
        }
    }
    let all: i128 = left.iter().sum();
    let mut prices = [0; CLASSES_MAX as usize];
    let arrived = i128::from(learned.gpu_milli());
    for (number, price) in (0..).zip(&mut prices) {
        // D / C is the same sum for all classes of a set: R f over the C of the set. In units of one part in 2^40.
        let mut demand: i64 = 0;
        for (set, milli) in learned.restricted() {
            if super::Class::new(number).is_some_and(|class| set.contains(class)) {
                let of_set: i128 = (0..)
                    .zip(&left)
                    .filter(|&(other, _)| super::Class::new(other).is_some_and(|class| set.contains(class)))
                    .map(|(_, left)| left)
                    .sum();
                demand = demand.saturating_add(fixed::ratio(all * i128::from(milli), of_set * arrived));
            }
        }
        let most = i128::from(ONE) * CLASS_DEMAND_MAX_PERCENT / 100;
        *price = i64::try_from(i128::from(demand).min(most) * CLASS_WEIGHT_PERCENT / 100).unwrap_or(0);
    }
    prices
}
