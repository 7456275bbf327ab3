//! That a bucket gives what its limit says, to the millisecond.

use proptest::prelude::*;
use rstest::rstest;

use super::*;

#[rstest]
#[case::at_once(60, 0, 60, Some(0))]
#[case::one_a_second(60, 60, 1, Some(1_000))]
#[case::two_of_them(60, 60, 2, Some(2_000))]
#[case::rounded_up(7, 7, 1, Some(8_572))]
#[case::more_than_it_holds(60, 0, 61, None)]
#[case::nothing_of_nothing(0, 0, 0, Some(0))]
#[case::something_of_nothing(0, 0, 1, None)]
#[case::most(LIMIT_MAX, LIMIT_MAX, LIMIT_MAX, Some(60_000))]
fn waits_are_exact(#[case] limit: u64, #[case] taken: u64, #[case] amount: u64, #[case] wait_ms: Option<u64>) {
    let mut bucket = Bucket::new(limit, 5);
    bucket.take(taken);
    assert_eq!(bucket.wait_ms(amount), wait_ms);
}

#[test]
fn a_debt_is_paid_before_anything_is_given() {
    let mut bucket = Bucket::new(60, 0);
    bucket.take(90);
    assert_eq!((bucket.available(), bucket.wait_ms(1), bucket.full_ms()), (0, Some(31_000), 90_000));
    bucket.refill(30_000);
    assert_eq!(bucket.available(), 0);
    bucket.refill(31_000);
    assert_eq!(bucket.available(), 1);
}

#[test]
fn what_does_not_fit_is_lost() {
    let mut bucket = Bucket::new(60, 0);
    bucket.take(5);
    bucket.give(9);
    assert_eq!((bucket.available(), bucket), (60, Bucket::new(60, 0)));
}

#[test]
fn limits_change_within_what_is_left() {
    let mut bucket = Bucket::new(60, 0);
    bucket.set_limit(10, 0);
    assert_eq!(bucket.available(), 10);
    bucket.set_limit(60, 0);
    assert_eq!((bucket.available(), bucket.full_ms()), (10, 50_000));
}

proptest! {
    /// Over any stretch of time no more is taken than what was left plus what came, and a wait ends exactly when it says.
    #[test]
    fn no_more_than_the_limit(
        limit in 1_u64..5_000,
        steps in prop::collection::vec((0_u64..3_000, 0_u64..200), 1..60),
    ) {
        let mut bucket = Bucket::new(limit, 0);
        let mut now_ms = 0;
        // When, and how much was taken before.
        let mut taken = vec![(0_u64, 0_u64)];
        for (pause, amount) in steps {
            now_ms += pause;
            bucket.refill(now_ms);
            match bucket.wait_ms(amount) {
                Some(0) => bucket.take(amount),
                Some(wait) => {
                    let mut early = bucket;
                    early.refill(now_ms + wait - 1);
                    prop_assert_ne!(early.wait_ms(amount), Some(0));
                    now_ms += wait;
                    bucket.refill(now_ms);
                    prop_assert_eq!(bucket.wait_ms(amount), Some(0));
                    bucket.take(amount);
                }
                None => continue,
            }
            let total = taken.last().expect("the first").1 + amount;
            for &(from_ms, before) in &taken {
                prop_assert!((total - before) * 60_000 <= limit * 60_000 + limit * (now_ms - from_ms));
            }
            taken.push((now_ms, total));
        }
    }

    /// Looking often is looking once.
    #[test]
    fn refills_add_up(limit in 0..=LIMIT_MAX, taken in 0..=LIMIT_MAX, times in prop::collection::vec(0_u64..100_000, 1..20)) {
        let mut often = Bucket::new(limit, 0);
        often.take(taken);
        let mut once = often;
        for &time in &times {
            often.refill(time);
        }
        once.refill(times.iter().copied().max().expect("one"));
        prop_assert_eq!(often, once);
    }
}
