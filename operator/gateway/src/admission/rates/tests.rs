use rstest::rstest;

use super::*;

#[rstest]
#[case(0, "0ms")]
#[case(999, "999ms")]
#[case(1_000, "1s")]
#[case(1_001, "2s")]
#[case(59_001, "1m0s")]
#[case(360_000, "6m0s")]
fn durations_are_read_by_people(#[case] milliseconds: u64, #[case] text: &str) {
    assert_eq!(duration(milliseconds), text);
}

#[test]
fn the_tighter_limit_is_told() {
    let rate = |limit, remaining| Some(Rate { limit, remaining, reset_ms: 1_500 });
    let key = RateLimits { requests: rate(10, 5), tokens: None };
    let tenant = RateLimits { requests: rate(100, 4), tokens: rate(1_000, 1_000) };
    let headers = key.tighter(tenant).headers();
    let expected = [
        ("x-ratelimit-limit-requests", "100"),
        ("x-ratelimit-remaining-requests", "4"),
        ("x-ratelimit-reset-requests", "2s"),
        ("x-ratelimit-limit-tokens", "1000"),
        ("x-ratelimit-remaining-tokens", "1000"),
        ("x-ratelimit-reset-tokens", "2s"),
    ];
    assert_eq!(headers, expected.map(|(name, value)| (name, value.to_owned())));
    assert_eq!(RateLimits::default().headers(), []);
}
