//! Go duration strings (`336h`, `1h30m`, `500ms`) as integers of milliseconds.

/// Why a duration string could not be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DurationError {
    /// The text that was given.
    pub value: String,
}

impl std::fmt::Display for DurationError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "\"{}\" is not a duration: write numbers with the units h, m, s or ms, such as \"336h\" or \"1h30m\"",
            self.value
        )
    }
}

impl std::error::Error for DurationError {}

/// Reads a Go duration string, in milliseconds. Fractions are allowed (`1.5h`); what is left below a millisecond is dropped.
///
/// # Errors
/// When the text is empty, has no unit, an unknown unit, a sign, or is longer than about 292 million years.
pub fn parse_duration_ms(text: &str) -> Result<i64, DurationError> {
    let error = || DurationError { value: text.to_owned() };
    if text == "0" {
        return Ok(0);
    }
    let mut rest = text;
    let mut total_ns: i128 = 0;
    if rest.is_empty() {
        return Err(error());
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(error)?;
        let (number, tail) = rest.split_at(digits);
        let unit_end = tail.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(tail.len());
        let (unit, next) = tail.split_at(unit_end);
        let scale: i128 = match unit {
            "ns" => 1,
            "us" | "µs" => 1_000,
            "ms" => 1_000_000,
            "s" => 1_000_000_000,
            "m" => 60_000_000_000,
            "h" => 3_600_000_000_000,
            _ => return Err(error()),
        };
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if (whole.is_empty() && fraction.is_empty())
            || whole.len() > 15
            || fraction.len() > 15
            || fraction.contains('.')
        {
            return Err(error());
        }
        let read = |s: &str| if s.is_empty() { Ok(0) } else { s.parse::<i128>().map_err(|_| error()) };
        let base = 10_i128.pow(u32::try_from(fraction.len()).map_err(|_| error())?);
        total_ns += read(whole)? * scale + read(fraction)? * scale / base;
        rest = next;
    }
    i64::try_from(total_ns / 1_000_000).map_err(|_| error())
}

#[cfg(test)]
mod tests;
