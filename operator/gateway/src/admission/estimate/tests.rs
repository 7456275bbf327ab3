//! That estimates follow what is used, and stay within it.

use proptest::prelude::*;
use rstest::rstest;

use super::*;

fn learned(answers: impl IntoIterator<Item = u64>) -> Estimate {
    let mut estimate = Estimate::default();
    answers.into_iter().for_each(|tokens| estimate.observe(tokens));
    estimate
}

#[rstest]
#[case::of_nothing(vec![], FIRST_ESTIMATE)]
#[case::of_one(vec![100], 200)]
#[case::of_empty_answers(vec![0], 0)]
#[case::of_alike_answers(vec![100; 50], 102)]
#[case::of_answers_that_grew([vec![10; 50], vec![1_000; 20]].concat(), 1_195)]
#[case::of_answers_that_shrank([vec![1_000; 50], vec![10; 50]].concat(), 18)]
fn estimates(#[case] answers: Vec<u64>, #[case] tokens: u64) {
    assert_eq!(learned(answers).tokens(), tokens);
}

#[test]
fn the_model_unused_for_longest_is_forgotten() {
    let mut estimates = Estimates::default();
    for model in 0..MODELS_MAX {
        estimates.of(&model.to_string());
        estimates.observe(&model.to_string(), 8);
    }
    estimates.of("0");
    estimates.of("new");
    estimates.observe("1", 8);
    assert_eq!(estimates.0.len(), MODELS_MAX);
    assert_eq!(["0", "1", "2"].map(|model| estimates.of(model).1), [16, FIRST_ESTIMATE, FIRST_ESTIMATE]);
}

proptest! {
    /// No more than three times the longest answer is ever reserved, and alike answers are reserved for as they are, nearly.
    #[test]
    fn estimates_are_bounded(answers in prop::collection::vec(0_u64..=1 << 40, 1..60), alike in 0_u64..100_000) {
        let longest = answers.iter().copied().max().expect("one").min(OBSERVED_MAX);
        let mut estimate = learned(answers);
        prop_assert!(estimate.tokens() <= 3 * longest + 4, "{} {longest}", estimate.tokens());
        (0..200).for_each(|_| estimate.observe(alike));
        prop_assert!(estimate.tokens().abs_diff(alike) <= 16, "{} {alike}", estimate.tokens());
    }
}
