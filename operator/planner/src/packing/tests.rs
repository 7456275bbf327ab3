use rstest::rstest;

use super::{bin::Slot, fixed::ONE, *};

mod arithmetic;
mod properties;
mod state;

pub(super) const MODEL: Class = match Class::new(0) {
    Some(class) => class,
    None => panic!("class 0"),
};
pub(super) const OTHER: Class = match Class::new(1) {
    Some(class) => class,
    None => panic!("class 1"),
};

/// A share of a device, or whole ones, with a core and 4 GiB for each.
pub(super) fn item(devices: u32, milli: u32) -> Item {
    Item::new(1000 * devices.max(1), 4096 * devices.max(1), devices, milli).unwrap()
}

pub(super) fn node(devices: u16) -> Bin {
    Bin::empty(MODEL, 12_000 * u32::from(devices), 49_152 * u32::from(devices), devices)
}

/// A node with so much left of each device, and of CPU and memory in proportion.
pub(super) fn used(left: &[u16]) -> Bin {
    let mut bin = node(u16::try_from(left.len()).unwrap());
    let sum: u32 = left.iter().map(|&milli| u32::from(milli)).sum();
    bin.left = Room { cpu_milli: 12 * sum, memory_mib: 49 * sum, devices: left.to_vec() };
    bin
}

pub(super) fn packer(policy: Policy, bins: impl IntoIterator<Item = Bin>) -> Packer {
    let mut packer = Packer::new(policy);
    for bin in bins {
        packer.add(bin).unwrap();
    }
    packer
}

pub(super) fn at(bin: usize, devices: &[u16]) -> Option<Placement> {
    Some(Placement { bin: BinId(bin), devices: devices.to_vec() })
}

/// Learns these arrivals on bins that are `bins` all the time.
pub(super) fn taught(bins: &[Bin], arrivals: &[(Item, usize)]) -> Learned {
    let packer = packer(Policy::DualPrices, bins.iter().cloned());
    let mut learned = Learned::default();
    for (item, count) in arrivals {
        (0..*count).for_each(|_| learned.observe(item));
    }
    for _ in 0..20 {
        learned = learn(&packer, &learned);
    }
    learned
}

#[rstest]
#[case::dual(Policy::DualPrices)]
#[case::fgd(Policy::Fgd(Mix::of(&[item(1, 1000), item(2, 1000)])))]
#[case::best_fit(Policy::BestFit)]
fn equal_bins_and_equal_devices_go_to_the_first(#[case] policy: Policy) {
    let mut packer = packer(policy, [node(4), node(4)]);
    assert_eq!(packer.place(&item(2, 1000)), at(0, &[0, 1]));
    assert_eq!(packer.place(&item(1, 300)), at(0, &[0]));
    assert_eq!(packer.place(&item(0, 0)), at(0, &[]));
}

/// Nothing was learned: whole devices go where the fewest are left.
#[test]
fn without_anything_learned_it_is_best_fit() {
    let mut packer = packer(Policy::DualPrices, [node(8), used(&[1000, 1000, 0, 1000]), used(&[1000; 4])]);
    assert_eq!(packer.place(&item(3, 1000)), at(1, &[0, 1, 3]));
    assert_eq!(packer.place(&item(4, 1000)), at(2, &[0, 1, 2, 3]));
    assert_eq!(packer.place(&item(5, 1000)), at(0, &[0, 1, 2, 3, 4]));
    assert_eq!(packer.place(&item(9, 1000)), None);
}

/// A half fits into either gap. Where halves come in pairs the whole device is worth two of them; where whole devices come it is kept.
#[test]
fn what_comes_decides_where_a_share_goes() {
    let bins = [used(&[1000]), used(&[500])];
    let mut packer = packer(Policy::DualPrices, bins.clone());
    packer.reprice(&taught(&bins, &[(item(1, 1000), 50), (item(1, 500), 50)]));
    assert_eq!(packer.place(&item(1, 500)), at(1, &[0]));
    assert_eq!(packer.place(&item(1, 600)), at(0, &[0]));
}

/// Prices as if they had been learned, in hundredths of a device, of (milli, CPU) without memory.
fn priced(prices: &[(u16, u32, i64)]) -> Learned {
    let types = prices.iter().map(|&(milli, cpu_milli, price)| {
        let price = price * ONE / 100;
        serde_json::json!([milli, cpu_milli, 0, 1, price, price])
    });
    let state = serde_json::json!({
        "arrivals": 9, "steppedAt": 9, "counted": 9, "gpuMilli": 9000, "restricted": [], "types": types.collect::<Vec<_>>()
    });
    serde_json::from_value(state).unwrap()
}

/// A gap of 0.5 holds two of 0.25 (0.4 together), and one of 0.3 would leave nothing that is worth anything. A gap of 0.3 is for 0.3.
#[test]
fn gaps_are_worth_what_fills_them() {
    let mut packer = packer(Policy::DualPrices, [used(&[500]), used(&[300])]);
    packer.reprice(&priced(&[(250, 0, 20), (300, 0, 30)]));
    let share = |milli| Item::new(0, 0, 1, milli).unwrap();
    assert_eq!(packer.place(&share(250)), at(0, &[0]));
    assert_eq!(packer.place(&share(300)), at(1, &[0]));
}

/// Work wants 12 cores beside a device. A device beside 4 cores is worth 0.4 to it and not 1, so what needs only 4 goes there.
#[test]
fn a_device_without_cpu_is_worth_little() {
    let mut poor = node(1);
    poor.left.cpu_milli = 4000;
    let mut packer = packer(Policy::DualPrices, [node(1), poor]);
    let modest = Item::new(4000, 0, 1, 1000).unwrap();
    assert_eq!(packer.place(&modest), at(0, &[0]));
    packer.reprice(&priced(&[(1000, 12_000, 100)]));
    assert_eq!(packer.place(&modest), at(1, &[0]));
}

/// Items that need a model are counted, and others leave it alone, even where the devices are otherwise the same.
#[test]
fn a_model_that_is_asked_for_is_kept() {
    let wanted = item(1, 1000).only(ClassSet::NONE.with(MODEL));
    let bins = [node(4), Bin { class: OTHER, ..node(4) }];
    let mut packer = packer(Policy::DualPrices, bins.clone());
    assert_eq!(packer.place(&item(1, 1000)), at(0, &[0]));
    packer.reprice(&taught(&bins, &[(wanted, 20), (item(1, 1000), 20)]));
    assert_eq!(packer.place(&item(1, 1000)), at(1, &[0]));
    assert_eq!(packer.place(&wanted), at(0, &[0]));
}

#[rstest]
#[case::dual(Policy::DualPrices)]
#[case::best_fit(Policy::BestFit)]
#[case::random(Policy::Random(1))]
fn classes_and_filters_are_kept(#[case] policy: Policy) {
    let mut packer = packer(policy, [node(2), Bin { class: OTHER, ..node(2) }, node(2)]);
    let other = item(1, 1000).only(ClassSet::NONE.with(OTHER));
    assert_eq!(packer.place(&other).map(|place| place.bin), Some(BinId(1)));
    assert_eq!(packer.place(&item(1, 1000).only(ClassSet::NONE)), None);
    let found = packer.place_where(&item(2, 1000), |bin| bin == BinId(2));
    assert_eq!(found, at(2, &[0, 1]));
    assert_eq!(packer.place_where(&other, |bin| bin != BinId(1)), None);
    assert_eq!(packer.place_where(&item(1, 1000), |_| false), None);
}

/// floor(100 (1 - 0.5 cpu / 128 - 0.5 gpu / 8)) after the item: 0.3 of a device, a core.
#[rstest]
#[case::empty(node(8), 14)]
#[case::half(used(&[0, 0, 0, 0, 1000, 1000, 1000, 1000]), 58)]
#[case::larger_than_any(node(64), -598)]
fn best_fit_scores(#[case] bin: Bin, #[case] expected: i64) {
    let slot = Slot::new(bin).unwrap();
    assert_eq!(published::best_fit(&slot, item(1, 300).kind()).0, expected);
}

#[test]
fn best_fit_takes_the_fullest_device() {
    let mut packer = packer(Policy::BestFit, [used(&[1000, 600, 300, 400, 300])]);
    assert_eq!(packer.place(&item(1, 300)), at(0, &[2]));
    assert_eq!(packer.place(&item(1, 301)), at(0, &[3]));
    assert_eq!(packer.place(&item(1, 1000)), at(0, &[0]));
}

/// Only whole devices come. A share on a whole device strands all of it: F grows by 700. On one that is broken already F falls by 300.
#[test]
fn fgd_scores() {
    let mix = Mix::of(&[item(1, 1000)]);
    let kind = item(1, 300).kind();
    let whole = Slot::new(used(&[1000, 1000])).unwrap();
    // 100 / (1 + e^0.7) = 33.18
    assert_eq!(mix.score(&whole, kind), (33, 0));
    let broken = Slot::new(used(&[1000, 700])).unwrap();
    // 100 / (1 + e^-0.3) = 57.44
    assert_eq!(mix.score(&broken, kind), (57, 1));
    // All that is left is stranded already, and less of it after: 100 / (1 + e^-0.7).
    let full = Slot::new(used(&[700])).unwrap();
    assert_eq!(mix.score(&full, item(1, 700).kind()), (66, 0));
    // Without devices nothing changes.
    assert_eq!(mix.score(&whole, item(0, 0).kind()), (50, 0));
}

#[test]
fn fgd_is_told_the_most_frequent_types() {
    let mut list = vec![item(1, 1000); 95];
    list.extend([item(1, 500), item(1, 400), item(1, 300), item(1, 200), item(1, 100)]);
    assert_eq!(Mix::of(&list), Mix::of(&vec![item(1, 1000); 95]));
    list.extend([item(1, 500); 5]);
    assert_eq!(Mix::of(&list), Mix::of(&[vec![item(1, 1000); 95], vec![item(1, 500); 6]].concat()));
}

#[test]
fn random_is_by_seed_and_reaches_every_bin_and_device() {
    let places = |seed| {
        let mut packer = packer(Policy::Random(seed), [node(2), used(&[0, 0]), node(2)]);
        (0..64).map(|_| packer.place(&item(1, 200)).unwrap()).collect::<Vec<_>>()
    };
    assert_eq!(places(7), places(7));
    assert_ne!(places(7), places(8));
    let mut reached: Vec<_> = places(7).into_iter().map(|place| (place.bin.0, place.devices)).collect();
    reached.sort();
    reached.dedup();
    assert_eq!(reached, [(0, vec![0]), (0, vec![1]), (2, vec![0]), (2, vec![1])]);
}

/// The prices of two types that both arrive a lot: the one that a gap is too small for twice does not run away.
#[test]
fn prices_stay_in_bounds_and_average_a_device() {
    let learned = taught(&[node(8), used(&[300, 1000])], &[(item(1, 810), 30), (item(1, 190), 3), (item(1, 1000), 9)]);
    let (mut prices, mut devices) = (0_i128, 0_i128);
    for one in learned.types() {
        assert!((learned::PRICE_MIN..=learned::PRICE_MAX).contains(&one.mean));
        prices += i128::from(one.count) * i128::from(one.price);
        devices += i128::from(one.count) * i128::from(one.milli) * i128::from(ONE) / 1000;
    }
    assert!((prices - devices).abs() < devices / 1_000_000, "{prices} {devices}");
}
