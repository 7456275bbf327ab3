use super::parse_duration_ms;

#[test]
fn go_durations_are_read_exactly() {
    for (text, ms) in [
        ("0", 0),
        ("0s", 0),
        ("336h", 1_209_600_000),
        ("1h30m", 5_400_000),
        ("1.5h", 5_400_000),
        ("500ms", 500),
        ("90s", 90_000),
        (".5s", 500),
        ("1us", 0),
    ] {
        assert_eq!(parse_duration_ms(text), Ok(ms), "{text}");
    }
}

#[test]
fn what_is_not_a_duration_is_refused_with_the_value_and_a_remedy() {
    for text in ["", "h", "5", "5d", "-5m", "1.2.3s", "5 m", "99999999999999999h"] {
        let error = parse_duration_ms(text).unwrap_err().to_string();
        assert!(error.contains(&format!("\"{text}\"")) && error.contains("336h"), "{error}");
    }
}
