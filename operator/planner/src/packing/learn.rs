//! The price steps: what is wanted more often than it comes gets cheaper, what is wanted less gets dearer.
//!
//! A step asks every bin with devices left what it would be filled with at the prices of now, and compares that with what arrives.
//! It is the step of a subgradient method on the dual of the packing problem, in multiplicative form, on the state of now and not on a
//! list that was known beforehand.

use std::collections::BTreeMap;

use super::{
    bin::Level,
    fixed::{self, ONE},
    learned::{Learned, PRICE_MAX, PRICE_MIN},
    packer::Packer,
    prices::{FULL_GAP, Grid, POINTS, Row, Table, gap_of, least},
};

/// Steps at each call.
const STEPS: usize = 10;
/// A price moves by at most e^(1/20) a step: eta is 0.05.
const ETA_DIVISOR: i64 = 20;
/// How much of the way to the last price the mean goes: a tenth.
const MEAN_DIVISOR: i64 = 10;

/// Bins that are the same to a step.
struct Alike {
    /// The cost of the CPU and memory left, at each point.
    cost: Row,
    levels: Vec<Level>,
    count: u64,
}

/// Makes ten price steps on the bins as they are now. To be called between decisions, when [`Learned::is_due`] or whenever there is
/// time; [`Packer::reprice`] takes the result over. The same bins and the same state give the same result.
///
/// The time is that of a few looks at every bin with devices left: about 2 ms on 1,200 bins.
#[must_use]
pub fn learn(packer: &Packer, learned: &Learned) -> Learned {
    let mut learned = learned.clone();
    learned.stepped();
    if learned.types().is_empty() {
        return learned;
    }
    let grid = Grid::new();
    let bins = alike(&grid, packer);
    for _ in 0..STEPS {
        step(&grid, &bins, &mut learned);
    }
    learned
}

/// CPU and memory left, and the devices by what is left of them: how much, and how many. In order, whatever the devices are numbered.
type Look = (u32, u32, Vec<(u16, u16)>);

/// The bins with devices left, each sort once.
fn alike(grid: &Grid, packer: &Packer) -> Vec<Alike> {
    let mut counts: BTreeMap<Look, u64> = BTreeMap::new();
    for slot in packer.slots().filter(|slot| slot.gpu_left > 0) {
        let mut levels: Vec<(u16, u16)> = slot.levels.iter().map(|level| (level.milli, level.count)).collect();
        levels.sort_unstable();
        *counts.entry((slot.bin.left.cpu_milli, slot.bin.left.memory_mib, levels)).or_default() += 1;
    }
    counts
        .into_iter()
        .map(|((cpu_milli, memory_mib, levels), count)| Alike {
            cost: grid.cost(cpu_milli, memory_mib),
            levels: levels.into_iter().map(|(milli, count)| Level { milli, count, first: 0 }).collect(),
            count,
        })
        .collect()
}

fn step(grid: &Grid, bins: &[Alike], learned: &mut Learned) {
    let wanted = wanted(grid, bins, learned);
    let wide = |amount: u64| i128::from(amount);
    let types = learned.types();
    let worth_wanted: i128 = types.iter().zip(&wanted).map(|(one, &a)| wide(a) * i128::from(one.price)).sum();
    let worth_arrived: i128 = types.iter().map(|one| wide(one.count) * i128::from(one.price)).sum();
    if worth_wanted <= 0 || worth_arrived <= 0 {
        // Nothing is left to be wanted.
        return;
    }
    for (one, &a) in learned.types_mut().iter_mut().zip(&wanted) {
        // Wanted over arrived, measured by what all that is wanted is worth over all that arrived.
        let relative = fixed::ratio(wide(a) * worth_arrived, wide(one.count) * worth_wanted);
        let direction = ONE.saturating_sub(relative).clamp(-ONE, ONE);
        one.price = fixed::multiply(one.price, fixed::exp(direction / ETA_DIVISOR)).clamp(PRICE_MIN, PRICE_MAX);
    }
    // On average a device costs a device.
    let types = learned.types();
    let devices: i128 = types.iter().map(|one| wide(one.count) * i128::from(one.milli)).sum();
    let prices: i128 = types.iter().map(|one| wide(one.count) * i128::from(one.price)).sum();
    let scale = fixed::ratio(devices * i128::from(ONE) / 1000, prices);
    for one in learned.types_mut() {
        one.price = fixed::multiply(one.price, scale).clamp(PRICE_MIN, PRICE_MAX);
        one.mean += (one.price - one.mean) / MEAN_DIVISOR;
    }
}

/// How many of each type all bins together would take at the last prices.
fn wanted(grid: &Grid, bins: &[Alike], learned: &Learned) -> Vec<u64> {
    let table = Table::new(grid, learned.types(), |one| one.price);
    let mut gaps = [[0_u64; FULL_GAP + 1]; POINTS];
    for bin in bins {
        let mut row = bin.cost;
        table.add(&mut row, &bin.levels);
        let (_, point) = least(&row);
        let Some(gaps) = gaps.get_mut(point) else { continue };
        for level in &bin.levels {
            if let Some(gap) = gaps.get_mut(gap_of(level.milli)) {
                *gap += bin.count * u64::from(level.count);
            }
        }
    }
    let mut wanted = vec![0; learned.types().len()];
    for (point, gaps) in gaps.into_iter().enumerate() {
        table.fill(point, gaps, &mut wanted);
    }
    wanted
}
