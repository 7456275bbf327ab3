//! Samples of one metric in Prometheus' text format (version 0.0.4; OpenMetrics has them alike). Of the rest nothing is looked at. The one maintained
//! parser of the whole format brings another library for time with it.

use std::time::Duration;

use spillway_metering::load::CacheUnknown;

/// The mean of the samples of the first of these metrics that has any, in millionths. An engine with several parts has a sample for each.
///
/// # Errors
///
/// Where there is no such metric, or a sample of it is no number from 0 to 1.
pub(super) fn mean(text: &str, names: &[&str]) -> Result<u32, CacheUnknown> {
    for name in names {
        let (mut sum, mut count) = (0_u64, 0_u64);
        for sample in text.lines().filter_map(|line| sample(line, name)) {
            sum = sum.saturating_add(sample.and_then(millionths).ok_or(CacheUnknown::NoRatio)?.into());
            count += 1;
        }
        if let Some(mean) = sum.checked_div(count) {
            return u32::try_from(mean).map_err(|_| CacheUnknown::NoRatio);
        }
    }
    Err(CacheUnknown::NotExported)
}

/// The value of a sample, if the line is one of this metric: `name value`, or `name{label="value",…} value`, and perhaps a timestamp. The inner none:
/// it has no value.
fn sample<'a>(line: &'a str, name: &str) -> Option<Option<&'a str>> {
    let rest = line.trim_start().strip_prefix(name)?;
    let value = match rest.strip_prefix('{') {
        Some(labels) => match after_labels(labels) {
            Some(value) => value,
            None => return Some(None),
        },
        // Another one, whose name begins so.
        None if !rest.starts_with([' ', '\t']) => return None,
        None => rest,
    };
    Some(value.split_ascii_whitespace().next())
}

/// What is behind the labels: a brace in a label's value does not end them.
fn after_labels(labels: &str) -> Option<&str> {
    let (mut quoted, mut escaped) = (false, false);
    for (at, byte) in labels.bytes().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if quoted => escaped = true,
            b'"' => quoted = !quoted,
            b'}' if !quoted => return labels.get(at + 1..),
            _ => {}
        }
    }
    None
}

/// A ratio in fixed point: as a time that is a second at most, which is reckoned with in integers and is never negative or no number.
fn millionths(value: &str) -> Option<u32> {
    let ratio = Duration::try_from_secs_f64(value.parse().ok()?).ok()?;
    u32::try_from(ratio.as_micros()).ok().filter(|millionths| *millionths <= 1_000_000)
}
