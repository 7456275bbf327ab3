//! One experiment: what arrives, what is placed, and what is allocated when so much has arrived.

use std::time::{Duration, Instant};

use spillway_planner::packing::{Item, Learned, Mix, Packer, Policy, Rng, learn};

use super::{Error, PolicyName, input::Trace};

/// When the allocation is looked at: percent of the cluster's devices that have arrived.
pub(crate) const SHARES: [u8; 3] = [100, 110, 130];
/// Tasks arrive until they want so many percent of the cluster's devices.
const LIST_PERCENT: i64 = 130;

/// A millionth of a percent.
pub(crate) const MICRO: i128 = 1_000_000;

/// What an experiment found.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Outcome {
    /// Allocated at each of [`SHARES`], in millionths of a percent of the cluster's devices.
    pub(crate) allocated: [i64; SHARES.len()],
    /// How many tasks arrived.
    pub(crate) arrived: usize,
    /// How many of these fitted nowhere.
    pub(crate) dropped: usize,
    /// How long it took.
    pub(crate) took: Duration,
}

/// Experiments on one trace with one policy.
pub(crate) struct Experiment<'a> {
    trace: &'a Trace,
    policy: PolicyName,
    /// What FGD is told beforehand.
    mix: Mix,
}

impl<'a> Experiment<'a> {
    pub(crate) fn new(trace: &'a Trace, policy: PolicyName) -> Self {
        Self { trace, policy, mix: Mix::of(&trace.tasks) }
    }

    /// Runs the experiment of a seed.
    pub(crate) fn run(&self, seed: u64) -> Result<Outcome, Error> {
        let begun = Instant::now();
        let mut rng = Rng::new(seed);
        let broken = |source| Error::Packer { seed, source };
        let mut nodes = self.trace.nodes.clone();
        rng.shuffle(&mut nodes);
        let arrivals = arrivals(self.trace, &mut rng);
        let mut packer = Packer::new(match self.policy {
            PolicyName::Dual => Policy::DualPrices,
            PolicyName::Fgd => Policy::Fgd(self.mix.clone()),
            PolicyName::Bestfit => Policy::BestFit,
            PolicyName::Random => Policy::Random(rng.next_u64()),
        });
        for node in nodes {
            packer.add(node).map_err(broken)?;
        }
        let mut learned = Learned::default();
        let mut allocation = Allocation::new(self.trace.capacity_milli);
        let mut dropped = 0;
        for item in &arrivals {
            let place = packer.place(item);
            match &place {
                Some(place) => packer.take(item, place).map_err(broken)?,
                None => dropped += 1,
            }
            allocation.add(item.gpu_milli(), place.is_some());
            // Between decisions, as the operator does: what is learned from an arrival helps the next one.
            if self.policy == PolicyName::Dual {
                learned.observe(item);
                if learned.is_due() {
                    learned = learn(&packer, &learned);
                    packer.reprice(&learned);
                }
            }
        }
        Ok(Outcome {
            allocated: SHARES.map(|share| allocation.at(share)),
            arrived: arrivals.len(),
            dropped,
            took: begun.elapsed(),
        })
    }
}

/// The list in a random order, then draws from all of it until the next would pass 130 %. A list that is longer loses tasks at random.
fn arrivals<'a>(trace: &'a Trace, rng: &mut Rng) -> Vec<&'a Item> {
    let most = trace.capacity_milli * LIST_PERCENT / 100;
    let mut arrivals: Vec<&Item> = trace.tasks.iter().collect();
    rng.shuffle(&mut arrivals);
    let mut wanted: i64 = arrivals.iter().map(|item| item.gpu_milli()).sum();
    while wanted > most
        && let Some(dropped) = arrivals.pop()
    {
        wanted -= dropped.gpu_milli();
    }
    let shortened = arrivals.len() < trace.tasks.len();
    while !shortened && let Some(drawn) = trace.tasks.get(rng.below(trace.tasks.len())) {
        wanted += drawn.gpu_milli();
        if wanted > most {
            break;
        }
        arrivals.push(drawn);
    }
    arrivals
}

/// What has arrived and what was placed, after each arrival.
struct Allocation {
    capacity: i64,
    steps: Vec<(i64, i64)>,
}

impl Allocation {
    fn new(capacity: i64) -> Self {
        Self { capacity, steps: Vec::new() }
    }

    fn add(&mut self, milli: i64, placed: bool) {
        let (arrived, allocated) = self.steps.last().copied().unwrap_or_default();
        self.steps.push((arrived + milli, if placed { allocated + milli } else { allocated }));
    }

    /// The mean over the arrivals at which the arrived share rounds to so many percent. Where no arrival does, because there are few: what
    /// is allocated at the first one beyond, or at the end. In millionths of a percent.
    fn at(&self, share: u8) -> i64 {
        let capacity = i128::from(self.capacity.max(1));
        // In thousandths of the capacity: from half a percent below to half a percent above.
        let (from, to) = (i128::from(share) * 10 - 5, i128::from(share) * 10 + 5);
        let arrived = |step: &(i64, i64)| i128::from(step.0) * 1000;
        let inside: Vec<&(i64, i64)> =
            self.steps.iter().filter(|step| (from * capacity..to * capacity).contains(&arrived(step))).collect();
        let beyond = || self.steps.iter().find(|step| arrived(step) >= i128::from(share) * 10 * capacity);
        let looked_at = if inside.is_empty() { beyond().or(self.steps.last()).into_iter().collect() } else { inside };
        let sum: i128 = looked_at.iter().map(|step| i128::from(step.1)).sum();
        let whole = capacity * (looked_at.len().max(1) as i128);
        i64::try_from((sum * 100 * MICRO + whole / 2) / whole).unwrap_or(i64::MAX)
    }
}
