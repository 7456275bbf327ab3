//! Times and durations as people write and read them.

use jiff::{Timestamp, civil::Date, tz::TimeZone};
use spillway_crds::parse_duration_ms;

/// A point in time as it was given.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum When {
    /// This instant, in Unix milliseconds.
    At(i64),
    /// So many milliseconds ago.
    Ago(i64),
}

impl When {
    /// The instant in Unix milliseconds.
    pub(crate) fn resolve(self, now_ms: i64) -> i64 {
        match self {
            Self::At(at) => at,
            Self::Ago(ago) => now_ms.saturating_sub(ago),
        }
    }
}

/// Reads RFC 3339, a date (its first instant, UTC), or a duration (so long ago).
pub(crate) fn parse_when(text: &str) -> Result<When, String> {
    if let Ok(at) = text.parse::<Timestamp>() {
        return Ok(When::At(at.as_millisecond()));
    }
    if let Ok(date) = text.parse::<Date>()
        && let Ok(at) = date.to_zoned(TimeZone::UTC)
    {
        return Ok(When::At(at.timestamp().as_millisecond()));
    }
    parse_duration_ms(text).map(When::Ago).map_err(|_| {
        "write RFC 3339 (2026-11-01T08:00:00Z), a date (2026-11-01, UTC), or how long ago (24h, 90m)".to_owned()
    })
}

/// Reads a Go duration, in milliseconds.
pub(crate) fn parse_duration(text: &str) -> Result<i64, String> {
    parse_duration_ms(text).map_err(|error| error.to_string())
}

/// The clock, in Unix milliseconds.
pub(crate) fn now_ms() -> i64 {
    Timestamp::now().as_millisecond()
}

/// The first instant of the month of an instant, UTC, in Unix milliseconds.
pub(crate) fn start_of_month(at_ms: i64) -> i64 {
    Timestamp::from_millisecond(at_ms)
        .map(|at| at.to_zoned(TimeZone::UTC).date().first_of_month())
        .and_then(|first| first.to_zoned(TimeZone::UTC))
        .map_or(0, |first| first.timestamp().as_millisecond())
}

/// The UTC day of an instant, `YYYY-MM-DD`.
pub(crate) fn day(at_ms: i64) -> String {
    Timestamp::from_millisecond(at_ms).map(|at| at.to_zoned(TimeZone::UTC).date().to_string()).unwrap_or_default()
}

/// RFC 3339 with as many decimals as there are.
pub(crate) fn show(at_ms: i64) -> String {
    Timestamp::from_millisecond(at_ms).map_or_else(|_| at_ms.to_string(), |at| at.to_string())
}

#[cfg(test)]
mod tests;
