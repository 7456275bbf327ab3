//! What of a node is free over an interval.
//!
//! A [`Timeline`] knows every use of one node, past and future ones alike. Between two uses of a device the turnover stays free: the time to
//! empty and check the node. Must not: know why something is used, or what the time is now.

use crate::types::{Interval, MilliGpu, Resources};

#[cfg(test)]
mod tests;

/// The uses of one node over time.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Timeline {
    capacity: Resources,
    turnover_ms: i64,
    uses: Vec<(Interval, Resources)>,
}

impl Timeline {
    /// A node of this capacity with no use yet.
    pub fn new(capacity: Resources, turnover_ms: i64) -> Self {
        Self { capacity, turnover_ms: turnover_ms.max(0), uses: Vec::new() }
    }

    /// What the node has.
    pub fn capacity(&self) -> Resources {
        self.capacity
    }

    /// Adds a use. Nothing is refused here: what is promised is promised, and shows as nothing free.
    pub fn add(&mut self, interval: Interval, amount: Resources) {
        if !is_empty(interval) {
            self.uses.push((interval, amount));
        }
    }

    /// What is free at every instant of the interval, and in the turnover that follows it, so that whatever starts later can still start in time.
    /// Never negative.
    pub fn free_over(&self, interval: Interval) -> Resources {
        if self.uses.is_empty() || is_empty(interval) {
            return self.capacity;
        }
        let asked = self.with_turnover(interval);
        // The sum of uses grows only where one starts: ends are counted first at the same instant, because intervals are half-open.
        let mut steps = Vec::with_capacity(self.uses.len().saturating_mul(2));
        for &(interval, amount) in &self.uses {
            let held = self.with_turnover(interval);
            if overlap(held, asked) {
                steps.push((held.start.max(asked.start), true, amount));
                steps.extend(held.end.map(|end| (end, false, amount)));
            }
        }
        steps.sort_by_key(|&(at, starts, _)| (at, starts));
        let mut used = Resources::default();
        let mut peak = Resources::default();
        for (at, starts, amount) in steps {
            if asked.end.is_some_and(|end| at >= end) {
                break;
            }
            if starts {
                used = zip(used, amount, i64::saturating_add);
                peak = zip(peak, used, i64::max);
            } else {
                used = zip(used, amount, i64::saturating_sub);
            }
        }
        zip(self.capacity, peak, |has, used| has.saturating_sub(used).max(0))
    }

    fn with_turnover(&self, interval: Interval) -> Interval {
        Interval { end: interval.end.map(|end| end.plus(self.turnover_ms)), ..interval }
    }
}

/// Whether it has no instant.
fn is_empty(interval: Interval) -> bool {
    interval.end.is_some_and(|end| end <= interval.start)
}

/// Whether two intervals that are not empty have an instant in common.
fn overlap(one: Interval, other: Interval) -> bool {
    other.end.is_none_or(|end| one.start < end) && one.end.is_none_or(|end| other.start < end)
}

fn zip(one: Resources, other: Resources, with: impl Fn(i64, i64) -> i64) -> Resources {
    Resources {
        gpu: MilliGpu(with(one.gpu.0, other.gpu.0)),
        cpu_milli: with(one.cpu_milli, other.cpu_milli),
        memory_mib: with(one.memory_mib, other.memory_mib),
    }
}
