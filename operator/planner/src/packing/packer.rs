//! The state of all bins, and the decision.

use std::collections::{BTreeSet, HashMap};

use super::{
    bin::{Bin, BinError, BinId, Placement, Slot},
    item::{ClassSet, Item, Kind},
    learned::Learned,
    prices::{KindCost, Prices, Worth},
    published::{self, Mix},
    rng::Rng,
};

/// Most cached costs, of 16 bytes each: 64 MiB. When there would be more, all are forgotten and made anew as they are needed.
const CACHED_MAX: usize = 1 << 22;

/// How a bin is chosen among those that an item fits into. Whatever fits somewhere is placed.
#[derive(Clone, Debug)]
pub enum Policy {
    /// Where the future loses least, by learned prices. Ours.
    DualPrices,
    /// Fragmentation gradient descent, told the mix of items beforehand. To be measured against.
    Fgd(Mix),
    /// The fullest bin. To be measured against.
    BestFit,
    /// Any bin and any device, by this seed. To be measured against.
    Random(u64),
}

/// A policy with what it needs to decide.
#[derive(Clone, Debug)]
enum Judge {
    DualPrices(Box<Prices>),
    Fgd(Mix),
    BestFit,
    Random(Rng),
}

/// A cached cost.
#[derive(Clone, Copy, Debug)]
struct Cost {
    /// The state of the bin that it is for.
    stamp: u32,
    /// Device that a share takes.
    device: u16,
    /// Lowest is best; none fits: [`NO_FIT`].
    cost: i64,
}

const NO_FIT: i64 = i64::MAX;
/// The stamp of no state.
const NEVER: u32 = 0;

/// The costs of one kind in all bins.
#[derive(Clone, Debug)]
struct Costs {
    /// The prices that they were made with.
    epoch: u64,
    of_kind: KindCost,
    costs: Vec<Cost>,
}

/// Bins, and where the next item goes.
///
/// It is kept up to date bit by bit: a change of one bin leaves what is known of all others.
///
/// ```
/// use spillway_planner::packing::{Bin, Class, Item, Packer, Policy};
///
/// let mut packer = Packer::new(Policy::DualPrices);
/// let model = Class::new(0).ok_or("too many classes")?;
/// let node = packer.add(Bin::empty(model, 96_000, 786_432, 8))?;
/// let item = Item::new(36_000, 294_912, 3, 1000)?;
/// let place = packer.place(&item).ok_or("full")?;
/// assert_eq!((place.bin, place.devices.as_slice()), (node, [0, 1, 2].as_slice()));
/// packer.take(&item, &place)?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct Packer {
    judge: Judge,
    slots: Vec<Option<Slot>>,
    vacant: BTreeSet<usize>,
    /// By bin: its class, none where no bin is, and a number that is new with each change.
    marks: Vec<(ClassSet, u32)>,
    last_stamp: u32,
    /// Raised when prices change.
    epoch: u64,
    costs: HashMap<Kind, Costs>,
    /// By bin: its worth, and the epoch and stamp that it is for.
    worths: Vec<Option<(u64, u32, Worth)>>,
}

impl Packer {
    /// Without a bin, and with nothing learned.
    pub fn new(policy: Policy) -> Self {
        Self {
            judge: match policy {
                Policy::DualPrices => Judge::DualPrices(Box::new(Prices::none())),
                Policy::Fgd(mix) => Judge::Fgd(mix),
                Policy::BestFit => Judge::BestFit,
                Policy::Random(seed) => Judge::Random(Rng::new(seed)),
            },
            slots: Vec::new(),
            vacant: BTreeSet::new(),
            marks: Vec::new(),
            last_stamp: NEVER,
            epoch: 0,
            costs: HashMap::new(),
            worths: Vec::new(),
        }
    }

    /// Adds a bin at the lowest position that is vacant, else behind all others.
    pub fn add(&mut self, bin: Bin) -> Result<BinId, BinError> {
        let slot = Slot::new(bin)?;
        let at = self.vacant.pop_first().unwrap_or(self.slots.len());
        if at == self.slots.len() {
            self.slots.push(None);
            self.marks.push((ClassSet::NONE, NEVER));
            self.worths.push(None);
        }
        if let Some(vacant) = self.slots.get_mut(at) {
            *vacant = Some(slot);
        }
        self.mark(at);
        Ok(BinId(at))
    }

    /// Takes a bin away, and says what it was. Its position may be another bin's next.
    pub fn remove(&mut self, id: BinId) -> Result<Bin, BinError> {
        let slot = self.slots.get_mut(id.0).and_then(Option::take).ok_or(BinError::NoBin { id })?;
        self.vacant.insert(id.0);
        self.mark(id.0);
        Ok(slot.bin)
    }

    /// Puts another state in the place of a bin's.
    pub fn update(&mut self, id: BinId, bin: Bin) -> Result<(), BinError> {
        let known = self.slots.get_mut(id.0).and_then(Option::as_mut).ok_or(BinError::NoBin { id })?;
        if known.bin != bin {
            *known = Slot::new(bin)?;
            self.mark(id.0);
        }
        Ok(())
    }

    /// A bin; none: no bin is there.
    pub fn bin(&self, id: BinId) -> Option<&Bin> {
        self.slots.get(id.0)?.as_ref().map(|slot| &slot.bin)
    }

    /// All bins, by position.
    pub fn bins(&self) -> impl Iterator<Item = (BinId, &Bin)> {
        self.slots.iter().enumerate().filter_map(|(at, slot)| Some((BinId(at), &slot.as_ref()?.bin)))
    }

    /// Takes the item out of what is left of its bin.
    pub fn take(&mut self, item: &Item, placement: &Placement) -> Result<(), BinError> {
        let id = placement.bin;
        let slot = self.slots.get_mut(id.0).and_then(Option::as_mut).ok_or(BinError::NoBin { id })?;
        if !slot.take(item, &placement.devices) {
            return Err(BinError::DoesNotFit { id });
        }
        self.mark(id.0);
        Ok(())
    }

    /// Gives back what was taken.
    pub fn give_back(&mut self, item: &Item, placement: &Placement) -> Result<(), BinError> {
        let id = placement.bin;
        let slot = self.slots.get_mut(id.0).and_then(Option::as_mut).ok_or(BinError::NoBin { id })?;
        if !slot.give_back(item, &placement.devices) {
            return Err(BinError::NotThere { id });
        }
        self.mark(id.0);
        Ok(())
    }

    /// Takes over what was learned, with the bins of now. All cached costs are forgotten. Other policies than [`Policy::DualPrices`] learn
    /// nothing, and nothing happens.
    pub fn reprice(&mut self, learned: &Learned) {
        if let Judge::DualPrices(prices) = &mut self.judge {
            **prices = Prices::new(learned, self.slots.iter().flatten());
            self.epoch += 1;
        }
    }

    /// Where the item goes: nothing is taken yet. None: it fits into no bin.
    ///
    /// The time is that of a look at each bin, and of a cost for each that changed since the last item of this kind.
    pub fn place(&mut self, item: &Item) -> Option<Placement> {
        self.place_where(item, |_| true)
    }

    /// [`Packer::place`] among the bins that `allowed` says. It is asked only of bins that could be the answer.
    pub fn place_where(&mut self, item: &Item, mut allowed: impl FnMut(BinId) -> bool) -> Option<Placement> {
        let kind = item.kind();
        self.refresh(kind);
        let costs = self.costs.get(&kind)?;
        let fits = |&(_, (class, _), cost): &(usize, (ClassSet, u32), Cost)| {
            cost.cost != NO_FIT && item.classes().meets(class)
        };
        let all = self.marks.iter().zip(&costs.costs).enumerate().map(|(at, (mark, cost))| (at, *mark, *cost));
        let fitting = all.filter(fits);
        if let Judge::Random(rng) = &mut self.judge {
            let bins: Vec<usize> = fitting.map(|(at, ..)| at).filter(|&at| allowed(BinId(at))).collect();
            let at = *bins.get(rng.below(bins.len()))?;
            let slot = self.slots.get(at)?.as_ref()?;
            let enough = |&(_, &left): &(u16, &u16)| left >= kind.milli;
            let devices: Vec<u16> =
                (0..).zip(&slot.bin.left.devices).filter(enough).map(|(device, _)| device).collect();
            let device = devices.get(rng.below(devices.len())).copied().unwrap_or(0);
            return Some(Placement { bin: BinId(at), devices: slot.devices(kind, device) });
        }
        let mut best: Option<(i64, usize, u16)> = None;
        for (at, _, cost) in fitting {
            if best.is_none_or(|(least, ..)| cost.cost < least) && allowed(BinId(at)) {
                best = Some((cost.cost, at, cost.device));
            }
        }
        let (_, at, device) = best?;
        let slot = self.slots.get(at)?.as_ref()?;
        Some(Placement { bin: BinId(at), devices: slot.devices(kind, device) })
    }

    /// The bins that the item would go to if each could take one only, cheapest first: at most `count`. Nothing is taken. [`Policy::Random`]
    /// is not asked so: all bins cost it the same.
    pub fn cheapest(&mut self, item: &Item, count: usize, mut allowed: impl FnMut(BinId) -> bool) -> Vec<BinId> {
        if count == 1 {
            return self.place_where(item, allowed).map(|place| place.bin).into_iter().collect();
        }
        let kind = item.kind();
        self.refresh(kind);
        let costs = self.costs.get(&kind).map(|known| known.costs.as_slice()).unwrap_or_default();
        let fits = |&(_, ((class, _), cost)): &(usize, (&(ClassSet, u32), &Cost))| {
            cost.cost != NO_FIT && item.classes().meets(*class)
        };
        let fitting = self.marks.iter().zip(costs).enumerate().filter(fits).filter(|&(at, _)| allowed(BinId(at)));
        let mut fitting: Vec<(i64, usize)> = fitting.map(|(at, (_, cost))| (cost.cost, at)).collect();
        if count < fitting.len() {
            fitting.select_nth_unstable(count);
            fitting.truncate(count);
        }
        fitting.sort_unstable();
        fitting.into_iter().map(|(_, at)| BinId(at)).collect()
    }

    /// Makes the costs of a kind anew where they are of another state or of other prices.
    fn refresh(&mut self, kind: Kind) {
        if !self.costs.contains_key(&kind) {
            if (self.costs.len() + 1).saturating_mul(self.slots.len()) > CACHED_MAX {
                self.forget();
            }
            let of_kind = self.judge.cost_of_kind(kind);
            self.costs.insert(kind, Costs { epoch: self.epoch, of_kind, costs: Vec::new() });
        }
        let Some(known) = self.costs.get_mut(&kind) else { return };
        let none = Cost { stamp: NEVER, device: 0, cost: NO_FIT };
        if known.epoch != self.epoch {
            known.epoch = self.epoch;
            known.costs.clear();
        }
        known.costs.resize(self.slots.len(), none);
        // Many bins are alike, empty ones above all: what was just computed holds for the next one as well.
        let mut last: Option<(&Slot, i64, u16)> = None;
        for (at, (cost, &(_, stamp))) in known.costs.iter_mut().zip(&self.marks).enumerate() {
            if cost.stamp == stamp {
                continue;
            }
            *cost = Cost { stamp, ..none };
            let Some(slot) = self.slots.get(at).and_then(Option::as_ref).filter(|slot| slot.fits(kind)) else {
                continue;
            };
            if let Some((_, known, device)) = last.filter(|(last, ..)| last.is_like(slot)) {
                (cost.cost, cost.device) = (known, device);
                continue;
            }
            (cost.cost, cost.device) = match &self.judge {
                Judge::DualPrices(prices) => {
                    let Some(worth) = self.worths.get_mut(at) else { continue };
                    let worth = match worth {
                        Some((epoch, of, worth)) if *epoch == self.epoch && *of == stamp => worth,
                        old => &mut old.insert((self.epoch, stamp, prices.worth(slot))).2,
                    };
                    prices.cost(worth, slot, kind, &known.of_kind)
                }
                Judge::Fgd(mix) => negated(mix.score(slot, kind)),
                Judge::BestFit => negated(published::best_fit(slot, kind)),
                Judge::Random(_) => (0, 0),
            };
            last = Some((slot, cost.cost, cost.device));
        }
    }

    /// Notes that a bin changed.
    fn mark(&mut self, at: usize) {
        match self.last_stamp.checked_add(1) {
            Some(next) => self.last_stamp = next,
            None => {
                // Every stamp was used: begin again, with nothing cached.
                self.forget();
                self.last_stamp = NEVER;
                for (stamp, (_, mark)) in (1..).zip(&mut self.marks) {
                    (*mark, self.last_stamp) = (stamp, stamp);
                }
                self.last_stamp += 1;
            }
        }
        let class = self.slots.get(at).and_then(Option::as_ref).map_or(ClassSet::NONE, Slot::class);
        if let Some(mark) = self.marks.get_mut(at) {
            *mark = (class, self.last_stamp);
        }
    }

    fn forget(&mut self) {
        self.costs.clear();
        self.worths.iter_mut().for_each(|worth| *worth = None);
    }

    /// Bins whose cost for the item is not known, or of another state.
    #[cfg(test)]
    pub(super) fn unknown(&self, item: &Item) -> usize {
        let known = self.costs.get(&item.kind()).filter(|known| known.epoch == self.epoch);
        let costs = known.map(|known| known.costs.as_slice()).unwrap_or_default();
        let fresh = self.marks.iter().zip(costs).filter(|((_, stamp), cost)| *stamp == cost.stamp).count();
        self.marks.len() - fresh
    }

    pub(super) fn slots(&self) -> impl Iterator<Item = &Slot> {
        self.slots.iter().flatten()
    }
}

impl Judge {
    fn cost_of_kind(&self, kind: Kind) -> KindCost {
        match self {
            Self::DualPrices(prices) => prices.cost_of_kind(kind),
            _ => KindCost::default(),
        }
    }
}

/// A score, of which the highest is best, as a cost.
fn negated((score, device): (i64, u16)) -> (i64, u16) {
    (score.saturating_neg(), device)
}
