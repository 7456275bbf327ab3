//! Requests as they were recorded, and when they arrive at a speed.

use std::path::Path;

use serde::Deserialize;

/// Nanoseconds of a millisecond.
const MS: u64 = 1_000_000;
/// How long the last tick lasts, in ms.
const LAST_TICK: u64 = 3_000;

/// A request: a line of the file.
#[derive(Debug, Deserialize)]
pub(crate) struct Request {
    /// Ms from the start of the recording.
    timestamp: u64,
    #[serde(rename = "input_length")]
    pub(crate) input: u64,
    #[serde(rename = "output_length")]
    pub(crate) output: u64,
    #[serde(rename = "hash_ids")]
    pub(crate) blocks: Vec<u64>,
}

/// All of them, in order.
pub(crate) struct Trace {
    pub(crate) requests: Vec<Request>,
}

impl Trace {
    pub(crate) fn read(path: &Path) -> Result<Self, String> {
        let text = std::fs::read_to_string(path).map_err(|error| format!("cannot read {}: {error}", path.display()))?;
        let mut requests: Vec<Request> = Vec::new();
        for (number, line) in (1..).zip(text.lines()) {
            let request: Request = serde_json::from_str(line)
                .map_err(|error| format!("line {number} of {} is no request: {error}", path.display()))?;
            if requests.last().is_some_and(|last| last.timestamp > request.timestamp) {
                return Err(format!("line {number} of {} is earlier than the one before", path.display()));
            }
            requests.push(Request { output: request.output.max(1), ..request });
        }
        if requests.is_empty() {
            return Err(format!("there are no requests in {}", path.display()));
        }
        Ok(Self { requests })
    }

    pub(crate) fn prompt_tokens(&self) -> u64 {
        self.requests.iter().map(|request| request.input).sum()
    }

    /// When each request arrives at a speed in percent. Those of one tick are spread evenly over it.
    pub(crate) fn arrivals(&self, speed: u64) -> Vec<u64> {
        let first = self.requests.first().map_or(0, |request| request.timestamp);
        let ticks: Vec<&[Request]> = self.requests.chunk_by(|one, next| one.timestamp == next.timestamp).collect();
        let starts: Vec<u64> = ticks.iter().flat_map(|tick| tick.first()).map(|one| one.timestamp - first).collect();
        let ends = starts.iter().skip(1).copied().chain(starts.last().map(|last| last + LAST_TICK));
        let mut arrivals = Vec::with_capacity(self.requests.len());
        for ((tick, &start), end) in ticks.iter().zip(&starts).zip(ends) {
            let count = tick.len() as u64;
            arrivals.extend((0..count).map(|k| (start * MS + (end - start) * MS * k / count) * 100 / speed));
        }
        arrivals
    }
}
