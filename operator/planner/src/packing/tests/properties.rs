use std::collections::BTreeMap;

use proptest::{collection::vec, prelude::*, sample::select};

use super::*;

fn any_item() -> impl Strategy<Value = Item> {
    let shape = prop_oneof![
        (Just(1_u32), select(vec![10_u32, 100, 190, 255, 500, 810, 1000])),
        (2_u32..=8, Just(1000_u32)),
        Just((0, 0)),
    ];
    let classes = select(vec![ClassSet::ANY, ClassSet::NONE.with(MODEL), ClassSet::NONE.with(OTHER)]);
    (shape, select(vec![0_u32, 500, 8000, 40_000]), select(vec![0_u32, 4096, 100_000]), classes).prop_map(
        |((devices, milli), cpu, memory, classes)| Item::new(cpu, memory, devices, milli).unwrap().only(classes),
    )
}

fn any_bin() -> impl Strategy<Value = Bin> {
    (select(vec![MODEL, OTHER]), 0_u16..=8, select(vec![4000_u32, 32_000, 96_000]), select(vec![16_384_u32, 393_216]))
        .prop_map(|(class, devices, cpu, memory)| Bin::empty(class, cpu, memory, devices))
}

fn any_policy() -> impl Strategy<Value = Policy> {
    prop_oneof![
        4 => Just(Policy::DualPrices),
        1 => Just(Policy::BestFit),
        1 => vec(any_item(), 1..20).prop_map(|items| Policy::Fgd(Mix::of(&items))),
        1 => any::<u64>().prop_map(Policy::Random),
    ]
}

/// What happens: an item arrives, or one that was placed ends.
#[derive(Clone, Debug)]
enum Event {
    Arrival(Item),
    End(usize),
}

fn any_events() -> impl Strategy<Value = Vec<Event>> {
    let event = prop_oneof![3 => any_item().prop_map(Event::Arrival), 1 => any::<usize>().prop_map(Event::End)];
    vec(event, 0..80)
}

/// Whether any bin has room, by looking at every device of every bin.
fn fits_somewhere(packer: &Packer, item: &Item) -> bool {
    packer.bins().any(|(_, bin)| {
        let enough = bin.left.devices.iter().filter(|&&left| left >= item.milli()).count();
        item.classes().contains(bin.class)
            && bin.left.cpu_milli >= item.cpu_milli()
            && bin.left.memory_mib >= item.memory_mib()
            && (item.devices() == 0 || enough >= usize::from(item.devices()))
    })
}

/// What is left, from the capacity and all that was placed; none: less than nothing.
fn recount(bins: &[Bin], placed: &[(Item, Placement)]) -> Option<Vec<Room>> {
    let mut rooms: Vec<Room> = bins.iter().map(|bin| bin.capacity.clone()).collect();
    for (item, place) in placed {
        let room = &mut rooms[place.bin.0];
        room.cpu_milli = room.cpu_milli.checked_sub(item.cpu_milli())?;
        room.memory_mib = room.memory_mib.checked_sub(item.memory_mib())?;
        for &device in &place.devices {
            let left = &mut room.devices[usize::from(device)];
            *left = left.checked_sub(item.milli())?;
        }
    }
    Some(rooms)
}

proptest! {
    /// Never over a bin's capacity on any dimension, never a bin of a wrong class, and whatever fits somewhere is placed.
    #[test]
    fn what_fits_is_placed_where_it_fits(policy in any_policy(), bins in vec(any_bin(), 0..6), events in any_events()) {
        let mut packer = packer(policy, bins.clone());
        let mut learned = Learned::default();
        let mut placed: Vec<(Item, Placement)> = Vec::new();
        for event in events {
            match event {
                Event::Arrival(item) => {
                    let fits = fits_somewhere(&packer, &item);
                    let place = packer.place(&item);
                    prop_assert_eq!(fits, place.is_some());
                    learned.observe(&item);
                    if learned.is_due() {
                        learned = learn(&packer, &learned);
                        packer.reprice(&learned);
                    }
                    if let Some(place) = place {
                        prop_assert!(item.classes().contains(bins[place.bin.0].class));
                        prop_assert_eq!(place.devices.len(), usize::from(item.devices()));
                        packer.take(&item, &place).unwrap();
                        placed.push((item, place));
                    }
                }
                Event::End(which) if !placed.is_empty() => {
                    let (item, place) = placed.swap_remove(which % placed.len());
                    packer.give_back(&item, &place).unwrap();
                }
                Event::End(_) => {}
            }
            let left: Vec<Room> = packer.bins().map(|(_, bin)| bin.left.clone()).collect();
            prop_assert_eq!(Some(left), recount(&bins, &placed));
        }
        for (item, place) in placed {
            packer.give_back(&item, &place).unwrap();
        }
        prop_assert!(packer.bins().all(|(id, bin)| *bin == bins[id.0]));
    }

    /// A packer that was kept up to date decides as one that was just made of the same bins, prices and all: no cached cost is of another
    /// time. And both learn the same.
    #[test]
    fn what_is_cached_is_what_would_be_computed(bins in vec(any_bin(), 1..6), events in any_events(), probes in vec(any_item(), 1..6)) {
        let mut kept = packer(Policy::DualPrices, bins);
        let mut learned = Learned::default();
        let mut placed: Vec<(Item, Placement)> = Vec::new();
        for event in events {
            match event {
                Event::Arrival(item) => {
                    learned.observe(&item);
                    if let Some(place) = kept.place(&item) {
                        kept.take(&item, &place).unwrap();
                        placed.push((item, place));
                    }
                }
                Event::End(which) if !placed.is_empty() => {
                    let (item, place) = placed.swap_remove(which % placed.len());
                    kept.give_back(&item, &place).unwrap();
                }
                Event::End(_) => {}
            }
            if learned.is_due() {
                learned = learn(&kept, &learned);
            }
            kept.reprice(&learned);
            let mut fresh = packer(Policy::DualPrices, kept.bins().map(|(_, bin)| bin.clone()));
            fresh.reprice(&learned);
            prop_assert_eq!(learn(&kept, &learned), learn(&fresh, &learned));
            for probe in &probes {
                prop_assert_eq!(kept.place(probe), fresh.place(probe));
            }
            // The same bins and prices again: with what is cached.
            for probe in &probes {
                prop_assert_eq!(kept.place(probe), fresh.place(probe));
            }
        }
    }

    /// What the tables say a gap is worth is what trying every filling says.
    #[test]
    fn a_gap_is_worth_its_best_filling(worths in prop::collection::btree_map(1_usize..=30, 1_i64..100, 1..5), gap in 0_usize..=60) {
        let types: Vec<learned::PricedType> = worths
            .iter()
            .map(|(&size, &worth)| {
                let milli = u16::try_from(size * 10).unwrap();
                learned::PricedType { milli, cpu_milli: 0, memory_mib: 0, count: 1, price: worth, mean: worth }
            })
            .collect();
        let table = prices::Table::new(&prices::Grid::new(), &types, |one| one.price);
        let mut row = [0; prices::POINTS];
        let level = bin::Level { milli: u16::try_from(gap * 10).unwrap(), count: 1, first: 0 };
        table.add(&mut row, &[level]);
        let best = best_filling(&worths, gap, &mut BTreeMap::new());
        prop_assert_eq!(row, [best; prices::POINTS]);
        // And what fills it is worth as much and fits.
        let (mut gaps, mut wanted) = ([0; prices::FULL_GAP + 1], vec![0; types.len()]);
        gaps[gap] = 1;
        table.fill(0, gaps, &mut wanted);
        let filled: i64 = types.iter().zip(&wanted).map(|(one, &count)| one.price * i64::try_from(count).unwrap()).sum();
        let size: u64 = types.iter().zip(&wanted).map(|(one, &count)| u64::from(one.milli) * count).sum();
        prop_assert_eq!(filled, best);
        prop_assert!(size <= 10 * gap as u64);
    }
}

fn best_filling(worths: &BTreeMap<usize, i64>, gap: usize, known: &mut BTreeMap<usize, i64>) -> i64 {
    if let Some(&best) = known.get(&gap) {
        return best;
    }
    let fitting: Vec<(usize, i64)> = worths.range(..=gap).map(|(&size, &worth)| (size, worth)).collect();
    let best = fitting.into_iter().map(|(size, worth)| worth + best_filling(worths, gap - size, known)).max();
    known.insert(gap, best.unwrap_or(0));
    best.unwrap_or(0)
}
