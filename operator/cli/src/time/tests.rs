use rstest::rstest;

use super::*;

#[rstest]
#[case("2026-11-01T08:00:00Z", When::At(1_793_520_000_000))]
#[case("2026-11-01T09:00:00+01:00", When::At(1_793_520_000_000))]
#[case("2026-11-01", When::At(1_793_491_200_000))]
#[case("24h", When::Ago(86_400_000))]
fn times_are_read(#[case] text: &str, #[case] when: When) {
    assert_eq!(parse_when(text), Ok(when));
}

#[rstest]
#[case("yesterday")]
#[case("")]
#[case("2026-13-01")]
fn nonsense_is_refused(#[case] text: &str) {
    assert!(parse_when(text).unwrap_err().contains("RFC 3339"));
}

#[test]
fn the_month_begins_at_its_first_instant() {
    assert_eq!(show(start_of_month(1_793_520_000_000)), "2026-11-01T00:00:00Z");
    assert_eq!(show(start_of_month(1_793_491_200_000)), "2026-11-01T00:00:00Z");
    assert_eq!(day(1_793_520_000_001), "2026-11-01");
}

#[test]
fn ago_is_before_now() {
    assert_eq!(When::Ago(5).resolve(12), 7);
    assert_eq!(When::At(5).resolve(12), 5);
}
