//! Amounts by hand, and that they add up for any split and any order.

use proptest::prelude::*;
use rstest::rstest;

use super::*;

fn segment(devices: u32, from_ms: i64, to_ms: Option<i64>) -> Segment {
    of("acme", "train", devices, from_ms, to_ms)
}

fn of(tenant: &str, reservation: &str, devices: u32, from_ms: i64, to_ms: Option<i64>) -> Segment {
    Segment {
        tenant: tenant.into(),
        namespace: format!("{tenant}-ns").into(),
        reservation: reservation.into(),
        pool: "pool".into(),
        sku: "h100".into(),
        tier: "Committed".into(),
        devices,
        from_ms,
        to_ms,
    }
}

fn period(from_ms: i64, to_ms: i64) -> Period {
    Period::new(from_ms, to_ms).expect("a period")
}

#[rstest]
#[case::within(8, 100, Some(200), 800)]
#[case::clipped_at_the_start(1, -50, Some(10), 10)]
#[case::clipped_at_now(1, 490, Some(2_000), 10)]
#[case::around(2, -50, Some(2_000), 1_000)]
#[case::before(8, -50, Some(0), 0)]
#[case::after(8, 1_000, Some(1_001), 0)]
#[case::empty(8, 100, Some(100), 0)]
#[case::no_devices(0, 0, Some(1_000), 0)]
#[case::open_runs_to_now(3, 400, None, 300)]
#[case::open_from_later_than_now(3, 501, None, 0)]
#[case::end_still_to_come(1, 400, Some(700), 100)]
#[case::all_of_it_still_to_come(1, 501, Some(700), 0)]
fn a_segment_counts_where_it_meets_the_period(
    #[case] devices: u32,
    #[case] from_ms: i64,
    #[case] to_ms: Option<i64>,
    #[case] expected: i128,
) {
    let now_ms = 500;
    assert_eq!(device_milliseconds(&segment(devices, from_ms, to_ms), period(0, 1_000), now_ms), Ok(expected));
}

/// Periods that are asked about are mostly over.
#[rstest]
#[case::open(0, None, 1_000)]
#[case::clipped(990, Some(2_000), 10)]
#[case::around(-50, Some(2_000), 1_000)]
fn a_segment_stops_at_the_end_of_the_period(#[case] from_ms: i64, #[case] to_ms: Option<i64>, #[case] expected: i128) {
    assert_eq!(device_milliseconds(&segment(1, from_ms, to_ms), period(0, 1_000), 5_000), Ok(expected));
}

#[test]
fn the_longest_time_with_the_most_devices_fits() {
    let most = device_milliseconds(&segment(u32::MAX, i64::MIN, Some(i64::MAX)), Period::ALWAYS, i64::MAX);
    assert_eq!(most, Ok(i128::from(u64::MAX) * i128::from(u32::MAX)));
}

#[test]
fn what_is_reversed_is_an_error() {
    assert_eq!(Period::new(2, 1), Err(Error::PeriodReversed { from_ms: 2, to_ms: 1 }));
    let reversed = device_milliseconds(&segment(1, 2, Some(1)), Period::ALWAYS, 0);
    assert_eq!(reversed, Err(Error::SegmentReversed { from_ms: 2, to_ms: 1 }));
}

#[test]
fn usage_is_summed_by_key_and_sorted() {
    let segments = [
        of("zeta", "a", 1, 0, Some(10)),
        of("acme", "train", 8, 0, Some(10)),
        of("acme", "serve", 4, 0, Some(10)),
        of("acme", "train", 8, 20, None),
        of("acme", "over", 8, -20, Some(0)),
    ];
    let rows = usage(&segments, period(0, 100), 30).expect("sums");
    let told: Vec<(&str, &str, i128)> = rows
        .iter()
        .map(|row| (row.key.tenant.as_str(), row.key.reservation.as_str(), row.device_milliseconds))
        .collect();
    assert_eq!(told, [("acme", "serve", 40), ("acme", "train", 160), ("zeta", "a", 10)]);
    assert_eq!(total(&rows), Ok(210));
}

/// Same names in two namespaces are two reservations.
#[test]
fn a_reservation_is_of_its_namespace() {
    let mut other = segment(1, 0, Some(10));
    other.namespace = "other".into();
    assert_eq!(usage(&[segment(1, 0, Some(10)), other], Period::ALWAYS, 10).expect("sums").len(), 2);
}

#[test]
fn a_sum_that_does_not_fit_is_an_error() {
    let row = |device_milliseconds| UsageRow {
        key: UsageKey {
            tenant: "t".into(),
            sku: "s".into(),
            tier: "t".into(),
            namespace: "n".into(),
            reservation: "r".into(),
        },
        device_milliseconds,
    };
    assert_eq!(total(&[row(i128::MAX), row(1)]), Err(Error::Overflow));
}

#[rstest]
#[case::nothing(0, "0.000000")]
#[case::below_half(1, "0.000000")]
#[case::half_goes_up(9, "0.000003")] // 9 / 3.6 = 2.5
#[case::above_half(2, "0.000001")]
#[case::carries(3_599_999, "1.000000")]
#[case::one_hour(3_600_000, "1.000000")]
#[case::eight_devices_for_ninety_minutes(8 * 5_400_000, "12.000000")]
#[case::a_third(1_200_000, "0.333333")]
#[case::negative(-1_800_000, "-0.500000")]
#[case::negative_that_rounds_to_nothing(-1, "0.000000")]
fn hours_have_six_decimals(#[case] amount: i128, #[case] expected: &str) {
    assert_eq!(gpu_hours(amount).as_deref(), Ok(expected));
}

#[rstest]
#[case(i128::MAX)]
#[case(i128::MIN)]
fn hours_that_do_not_fit_are_an_error(#[case] amount: i128) {
    assert_eq!(gpu_hours(amount), Err(Error::Overflow));
}

/// Any amount that segments can make has hours: 2^96 each.
#[test]
fn a_large_amount_has_hours() {
    let amount = i128::from(u64::MAX) * i128::from(u32::MAX);
    assert!(gpu_hours(amount).is_ok());
}

fn segments() -> impl Strategy<Value = Vec<Segment>> {
    let one = (0..3_usize, 0..3_usize, 0..16_u32, -1_000..1_000_i64, proptest::option::of(0..1_000_i64)).prop_map(
        |(tenant, reservation, devices, from_ms, length_ms)| {
            let to_ms = length_ms.map(|length_ms| from_ms + length_ms);
            of(["acme", "beta", "zeta"][tenant], ["a", "b", "c"][reservation], devices, from_ms, to_ms)
        },
    );
    proptest::collection::vec(one, 0..20)
}

proptest! {
    #[test]
    fn the_parts_of_a_period_add_up(
        segments in segments(),
        mut cuts in proptest::collection::vec(-1_500..1_500_i64, 2..8),
        now_ms in -1_500..1_500_i64,
    ) {
        cuts.sort_unstable();
        let whole = usage(&segments, period(cuts[0], cuts[cuts.len() - 1]), now_ms).expect("sums");
        let mut parts: BTreeMap<UsageKey, i128> = BTreeMap::new();
        for cut in cuts.windows(2) {
            for row in usage(&segments, period(cut[0], cut[1]), now_ms).expect("sums") {
                *parts.entry(row.key).or_default() += row.device_milliseconds;
            }
        }
        let whole: BTreeMap<_, _> = whole.into_iter().map(|row| (row.key, row.device_milliseconds)).collect();
        prop_assert_eq!(whole, parts);
    }

    #[test]
    fn order_does_not_matter(
        (segments, shuffled) in segments().prop_flat_map(|all| (Just(all.clone()), Just(all).prop_shuffle())),
        now_ms in -1_500..1_500_i64,
    ) {
        let period = period(-700, 700);
        prop_assert_eq!(usage(&segments, period, now_ms), usage(&shuffled, period, now_ms));
    }

    /// Cutting a segment in two, as a swap of a node does, changes nothing either.
    #[test]
    fn the_parts_of_a_segment_add_up(
        devices in 0..16_u32,
        from_ms in -900..900_i64,
        first in 0..500_i64,
        second in 0..500_i64,
        now_ms in -1_500..1_500_i64,
    ) {
        let (cut_ms, to_ms) = (from_ms + first, from_ms + first + second);
        let period = period(-500, 500);
        let amount = |segment: Segment| device_milliseconds(&segment, period, now_ms).expect("an amount");
        prop_assert_eq!(
            amount(segment(devices, from_ms, Some(to_ms))),
            amount(segment(devices, from_ms, Some(cut_ms))) + amount(segment(devices, cut_ms, Some(to_ms)))
        );
    }

    #[test]
    fn hours_are_within_half_a_place(amount in 0..1_000_000_000_000_000_i128) {
        let told = gpu_hours(amount).expect("hours");
        let fractions: i128 = told.replace('.', "").parse().expect("digits");
        let error = fractions * 3_600_000 - amount * 1_000_000;
        prop_assert!((-1_800_000..=1_800_000).contains(&error), "{told}");
    }
}
