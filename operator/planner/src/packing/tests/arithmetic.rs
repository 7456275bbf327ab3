use rstest::rstest;

use super::super::{fixed::*, rng::Rng};

/// x and e^x as decimal fractions of 10^9.
#[rstest]
#[case::zero(0, 1_000_000_000)]
#[case::step(50_000_000, 1_051_271_096)]
#[case::down(-50_000_000, 951_229_425)]
#[case::one(1_000_000_000, 2_718_281_828)]
#[case::minus_one(-1_000_000_000, 367_879_441)]
#[case::half(500_000_000, 1_648_721_271)]
#[case::ten(10_000_000_000, 22_026_465_794_807)]
#[case::minus_ten(-10_000_000_000, 45_400)]
#[case::ln_two(693_147_181, 2_000_000_001)]
fn exp_is_that_of_the_tables(#[case] x: i128, #[case] expected: i128) {
    let found = (i128::from(exp(ratio(x, 1_000_000_000))) * 1_000_000_000 + i128::from(ONE / 2)) >> 40;
    assert!((found - expected).abs() <= 1 + expected / 1_000_000_000, "{found}, not {expected}");
}

#[rstest]
#[case::far_below(-40, 0)]
#[case::farther(i64::from(i32::MIN), 0)]
#[case::far_above(16, i64::MAX)]
fn exp_ends_where_the_range_does(#[case] x: i64, #[case] expected: i64) {
    assert_eq!(exp(x.saturating_mul(ONE)), expected);
    assert_eq!(exp(i64::MIN), 0);
    assert_eq!(exp(i64::MAX), i64::MAX);
}

/// It grows with its argument, across the doublings as well.
#[test]
fn exp_is_monotone() {
    let steps: Vec<i64> = (-3_000..1_500).map(|n| exp(n * (ONE / 100))).collect();
    assert!(steps.is_sorted());
}

/// Thousandths in, a percentage out.
#[rstest]
#[case::middle(0, 50)]
#[case::just_below(-1, 49)]
#[case::just_above(1, 50)]
#[case::one(1000, 73)]
#[case::minus_one(-1000, 26)]
#[case::boundary(405, 59)]
#[case::beyond(406, 60)]
#[case::eight(8000, 99)]
#[case::minus_eight(-8000, 0)]
#[case::never_all(20_000, 99)]
fn sigmoid_is_that_of_the_tables(#[case] thousandths: i128, #[case] expected: i64) {
    assert_eq!(percent_sigmoid(ratio(thousandths, 1000)), expected);
}

#[rstest]
#[case::half(1, 2, ONE / 2)]
#[case::negative(-1, 2, -ONE / 2)]
#[case::nothing(1, 0, 0)]
#[case::too_large(i128::MAX, 1, i64::MAX)]
fn ratios(#[case] numerator: i128, #[case] denominator: i128, #[case] expected: i64) {
    assert_eq!(ratio(numerator, denominator), expected);
}

#[test]
fn products() {
    assert_eq!(multiply(3 * ONE, ONE / 2), 3 * ONE / 2);
    assert_eq!(multiply(-ONE, ONE / 4), -ONE / 4);
    assert_eq!(multiply(1, ONE / 2), 1);
}

/// What seed 42 gives is promised. The first state is that of the published splitmix64; the sequence that of the published xoshiro256**.
#[test]
fn a_seed_gives_the_same_numbers_for_ever() {
    let mut rng = Rng::new(42);
    let found: Vec<u64> = (0..4).map(|_| rng.next_u64()).collect();
    assert_eq!(found, [1546998764402558742, 6990951692964543102, 12544586762248559009, 17057574109182124193]);
    let mut cards: Vec<u8> = (0..10).collect();
    Rng::new(42).shuffle(&mut cards);
    assert_eq!(cards, CARDS);
}

const CARDS: [u8; 10] = [9, 1, 4, 2, 8, 7, 6, 5, 3, 0];

#[test]
fn draws_are_below_their_bound_and_reach_all() {
    let mut rng = Rng::new(1);
    let mut counts = [0; 6];
    (0..6000).for_each(|_| counts[rng.below(6)] += 1);
    assert!(counts.iter().all(|&count| (850..1150).contains(&count)), "{counts:?}");
    assert_eq!((rng.below(0), rng.below(1)), (0, 0));
}
