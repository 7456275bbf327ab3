use rstest::rstest;

use super::*;

fn canary(version: &str) -> Canary {
    Canary { version: version.to_owned(), weight: 10, max_error_percent: 5, min_requests: 20 }
}

fn sample(at_ms: u64, canary: (u64, u64), stable: (u64, u64)) -> Sample {
    let outcomes = |(answered, failed)| Outcomes { answered, failed };
    Sample { at_ms, canary: outcomes(canary), stable: outcomes(stable) }
}

#[rstest]
#[case::good((400, 0), (4_000, 0), false)]
#[case::too_few((0, 19), (4_000, 0), false)]
#[case::just_enough((0, 20), (4_000, 0), true)]
#[case::at_the_limit((95, 5), (4_000, 0), false)]
#[case::above_the_limit((94, 6), (4_000, 0), true)]
#[case::the_other_is_as_bad((90, 10), (3_600, 400), false)]
#[case::worse_than_a_bad_one((89, 11), (3_600, 400), true)]
#[case::nobody_asks_the_other((90, 10), (0, 0), true)]
fn a_canary_fails_by_its_own_rate_and_beside_the_other(
    #[case] tried: (u64, u64),
    #[case] other: (u64, u64),
    #[case] fails: bool,
) {
    let mut trial = Trial::default();
    // What was before it began is no part of it.
    assert_eq!(trial.judge(&canary("q8"), "q4", sample(0, (7, 90), (1, 1))), None);
    let now = sample(1_000, (7 + tried.0, 90 + tried.1), (1 + other.0, 1 + other.1));
    assert_eq!(trial.judge(&canary("q8"), "q4", now).is_some(), fails);
}

#[test]
fn what_was_long_ago_does_not_hide_what_is_now() {
    let mut trial = Trial::default();
    let (mut answered, mut failed, mut at_ms) = (0, 0, 0);
    // An hour of good answers, then each one fails.
    while at_ms < 3_600_000 {
        answered += 10;
        assert_eq!(trial.judge(&canary("q8"), "q4", sample(at_ms, (answered, 0), (answered, 0))), None);
        at_ms += 1_000;
    }
    let began_ms = at_ms;
    let why = loop {
        failed += 10;
        if let Some(why) = trial.judge(&canary("q8"), "q4", sample(at_ms, (answered, failed), (answered + failed, 0))) {
            break why;
        }
        at_ms += 1_000;
    };
    assert!(at_ms - began_ms < 20_000, "{} ms", at_ms - began_ms);
    assert!(why.contains("requests to version q8 failed, and 0 of"), "{why}");
    assert!(trial.samples.len() <= 62, "{} samples are kept", trial.samples.len());
}

#[test]
fn one_request_a_minute_is_judged_after_as_many_as_are_asked_for() {
    let mut trial = Trial::default();
    let mut failed = 0;
    let ended = (0..100).find(|minute| {
        failed += 1;
        trial.judge(&canary("q8"), "q4", sample(minute * 60_000, (0, failed), (0, 0))).is_some()
    });
    assert_eq!(ended, Some(20));
}

#[test]
fn another_version_begins_anew() {
    let mut trial = Trial::default();
    assert_eq!(trial.judge(&canary("q8"), "q4", sample(0, (0, 0), (0, 0))), None);
    assert_eq!(trial.judge(&canary("q9"), "q4", sample(1_000, (0, 100), (100, 0))), None);
    assert!(trial.judge(&canary("q9"), "q4", sample(2_000, (0, 120), (100, 0))).is_some());
    // Also where the other one changes: what was known of the one before is no part of it.
    assert_eq!(trial.judge(&canary("q9"), "q6", sample(3_000, (0, 240), (100, 0))), None);
}
