use proptest::prelude::*;
use rstest::rstest;

use super::*;
use crate::types::TimeMs;

const TURNOVER: i64 = 10;

fn over(start: i64, end: impl Into<Option<i64>>) -> Interval {
    Interval { start: TimeMs(start), end: end.into().map(TimeMs) }
}

fn amount(gpu: i64) -> Resources {
    Resources { gpu: MilliGpu(gpu * 1000), cpu_milli: gpu * 16_000, memory_mib: gpu * 1024 }
}

fn free_gpus(uses: &[(Interval, i64)], asked: Interval) -> i64 {
    let mut timeline = Timeline::new(amount(8), TURNOVER);
    for &(interval, gpu) in uses {
        timeline.add(interval, amount(gpu));
    }
    let free = timeline.free_over(asked);
    assert_eq!(free, amount(free.gpu.0 / 1000), "every dimension is counted alike");
    free.gpu.0 / 1000
}

#[rstest]
#[case::nothing_is_used(&[], over(0, None), 8)]
#[case::in_use_for_good(&[(over(0, None), 8)], over(5, 6), 0)]
#[case::part_of_it_in_use(&[(over(0, None), 3)], over(5, None), 5)]
#[case::ends_before_but_turnover_is_not_over(&[(over(0, 100), 8)], over(109, None), 0)]
#[case::turnover_is_over(&[(over(0, 100), 8)], over(110, None), 8)]
#[case::starts_long_after(&[(over(100, None), 8)], over(0, 50), 8)]
#[case::starts_when_our_turnover_is_over(&[(over(100, None), 8)], over(0, 90), 8)]
#[case::starts_within_our_turnover(&[(over(100, None), 8)], over(0, 91), 0)]
#[case::forever_meets_every_later_start(&[(over(1_000_000, 1_000_001), 2)], over(0, None), 6)]
#[case::the_most_at_one_instant_counts(&[(over(0, 20), 2), (over(40, 60), 5), (over(50, 55), 1)], over(0, 100), 2)]
#[case::one_after_the_other_does_not_add_up(&[(over(0, 20), 4), (over(30, 50), 4)], over(0, 100), 4)]
#[case::within_the_turnover_of_the_other_it_does(&[(over(0, 20), 4), (over(29, 50), 4)], over(0, 100), 0)]
#[case::promised_twice_is_not_negative(&[(over(0, None), 8), (over(0, None), 8)], over(0, 1), 0)]
#[case::an_empty_use_takes_nothing(&[(over(5, 5), 8)], over(0, None), 8)]
#[case::an_empty_interval_needs_nothing(&[(over(0, None), 8)], over(5, 5), 8)]
#[case::the_end_of_time(&[(over(0, i64::MAX), 8)], over(i64::MAX - 1, None), 0)]
fn free_over_an_interval(#[case] uses: &[(Interval, i64)], #[case] asked: Interval, #[case] free: i64) {
    assert_eq!(free_gpus(uses, asked), free);
}

#[test]
fn each_dimension_has_its_own_peak() {
    let mut timeline = Timeline::new(Resources { gpu: MilliGpu(8000), cpu_milli: 100, memory_mib: 50 }, 0);
    timeline.add(over(0, 10), Resources { gpu: MilliGpu(7000), cpu_milli: 0, memory_mib: 0 });
    timeline.add(over(20, 30), Resources { gpu: MilliGpu(0), cpu_milli: 90, memory_mib: 0 });
    assert_eq!(timeline.free_over(over(0, 100)), Resources { gpu: MilliGpu(1000), cpu_milli: 10, memory_mib: 50 });
}

fn intervals() -> impl Strategy<Value = Interval> {
    (0..60i64, proptest::option::of(1..40i64)).prop_map(|(start, length)| over(start, length.map(|ms| start + ms)))
}

/// What is free by asking each instant up to a time at which nothing changes any more.
fn free_by_instants(uses: &[(Interval, i64)], asked: Interval) -> i64 {
    let holds =
        |interval: Interval, at: i64| interval.start.0 <= at && interval.end.is_none_or(|end| at < end.0 + TURNOVER);
    let used_at = |at: i64| uses.iter().filter(|&&(interval, _)| holds(interval, at)).map(|&(_, gpu)| gpu).sum::<i64>();
    (0..200).filter(|&at| holds(asked, at)).map(|at| (8 - used_at(at)).max(0)).min().unwrap_or(8)
}

proptest! {
    #[test]
    fn free_is_the_least_of_all_instants(
        uses in prop::collection::vec((intervals(), 0..5i64), 0..8),
        asked in intervals(),
    ) {
        prop_assert_eq!(free_gpus(&uses, asked), free_by_instants(&uses, asked));
    }

    #[test]
    fn order_of_uses_does_not_matter(
        (uses, shuffled) in prop::collection::vec((intervals(), 0..5i64), 0..8)
            .prop_flat_map(|uses| (Just(uses.clone()), Just(uses).prop_shuffle())),
        asked in intervals(),
    ) {
        prop_assert_eq!(free_gpus(&uses, asked), free_gpus(&shuffled, asked));
    }

    /// Whoever takes only what is free never has the node over capacity, and leaves the turnover between any two that do not fit side by side.
    #[test]
    fn taking_what_is_free_keeps_capacity_and_turnover(wanted in prop::collection::vec((intervals(), 1..9i64), 0..12)) {
        let mut taken: Vec<(Interval, i64)> = Vec::new();
        for (interval, gpu) in wanted {
            if free_gpus(&taken, interval) >= gpu {
                taken.push((interval, gpu));
            }
        }
        for at in 0..200 {
            let used: i64 = taken
                .iter()
                .filter(|(interval, _)| interval.start.0 <= at && interval.end.is_none_or(|end| at < end.0))
                .map(|&(_, gpu)| gpu)
                .sum();
            prop_assert!(used <= 8);
        }
        for (i, &(one, gpu)) in taken.iter().enumerate() {
            for &(other, other_gpu) in taken.iter().skip(i + 1) {
                let apart = one.end.is_some_and(|end| end.plus(TURNOVER) <= other.start)
                    || other.end.is_some_and(|end| end.plus(TURNOVER) <= one.start);
                prop_assert!(apart || gpu + other_gpu <= 8);
            }
        }
    }
}
