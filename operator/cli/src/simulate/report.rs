//! What the experiments found.

use std::{
    collections::BTreeMap,
    io::{self, Write},
    time::Duration,
};

use serde::{Serialize, Serializer, ser::Error as _};

use super::{
    PolicyName,
    input::Trace,
    openb::{MICRO, Outcome, SHARES},
};
use crate::output::{self, Table, counted};

/// The answer.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    /// How nodes were chosen.
    policy: &'static str,
    /// One experiment each.
    seeds: Vec<u64>,
    /// Nodes with devices.
    nodes: usize,
    /// Their devices.
    devices: i64,
    /// Tasks of the list.
    tasks: usize,
    /// By percent of the cluster's devices that had arrived: what was allocated.
    allocated_percent: BTreeMap<u8, Allocated>,
    /// Tasks that arrived and fitted nowhere, by seed.
    dropped: Vec<usize>,
    /// Mean time of an experiment on one thread, reading the lists not included.
    pub(super) seconds_per_experiment: Decimal,
}

/// Percent of the cluster's devices.
#[derive(Debug, Serialize)]
pub(crate) struct Allocated {
    /// Over all seeds.
    mean: Decimal,
    /// In the order of the seeds.
    per_seed: Vec<Decimal>,
}

/// A number with a point, from integers. In JSON it is a number.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Decimal {
    /// The number times ten to the power of the places.
    pub(super) units: i64,
    /// Digits behind the point.
    pub(super) places: u32,
}

impl Decimal {
    /// Millionths of a percent, rounded to ten-thousandths.
    fn percent(micro: i64) -> Self {
        Self { units: (micro + 50).div_euclid(100), places: 4 }
    }

    fn seconds(time: Duration) -> Self {
        Self { units: i64::try_from(time.as_millis()).unwrap_or(i64::MAX), places: 3 }
    }

    fn text(self) -> String {
        let one = 10_i64.saturating_pow(self.places);
        format!("{}.{:0places$}", self.units / one, self.units % one, places = self.places as usize)
    }
}

impl Serialize for Decimal {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        // Nothing is computed with it: a program shall read a number.
        serializer.serialize_f64(self.text().parse().map_err(S::Error::custom)?)
    }
}

impl Report {
    pub(crate) fn new(policy: PolicyName, trace: &Trace, seeds: &[u64], outcomes: &[Outcome]) -> Self {
        let count = (outcomes.len().max(1)) as i128;
        let allocated = SHARES.iter().enumerate().map(|(at, &share)| {
            let each: Vec<i64> = outcomes.iter().filter_map(|outcome| outcome.allocated.get(at)).copied().collect();
            let sum: i128 = each.iter().map(|&micro| i128::from(micro)).sum();
            let mean = i64::try_from((sum + count / 2) / count).unwrap_or(i64::MAX);
            let per_seed = each.into_iter().map(Decimal::percent).collect();
            (share, Allocated { mean: Decimal::percent(mean), per_seed })
        });
        let took: Duration = outcomes.iter().map(|outcome| outcome.took).sum();
        let mean = took.checked_div(u32::try_from(outcomes.len()).unwrap_or(u32::MAX)).unwrap_or_default();
        Self {
            policy: policy.as_str(),
            seeds: seeds.to_vec(),
            nodes: trace.nodes.len(),
            devices: trace.capacity_milli / 1000,
            tasks: trace.tasks.len(),
            allocated_percent: allocated.collect(),
            dropped: outcomes.iter().map(|outcome| outcome.dropped).collect(),
            seconds_per_experiment: Decimal::seconds(mean),
        }
    }
}

impl output::Report for Report {
    fn write_table(&self, out: &mut dyn Write) -> io::Result<()> {
        writeln!(
            out,
            "Policy {}, {} with {}, {}: percent of the devices that are allocated when 100, 110 and 130 percent have arrived",
            self.policy,
            counted(self.nodes, "node"),
            counted(usize::try_from(self.devices).unwrap_or(usize::MAX), "device"),
            counted(self.tasks, "task"),
        )?;
        writeln!(out)?;
        let mut table = Table::new(&["SEED", "AT-100", "AT-110", "AT-130", "DROPPED"]);
        for (at, (seed, dropped)) in self.seeds.iter().zip(&self.dropped).enumerate() {
            let shares = self.allocated_percent.values();
            let cells = shares.filter_map(|share| share.per_seed.get(at)).map(|percent| percent.text());
            table.push([seed.to_string()].into_iter().chain(cells).chain([dropped.to_string()]).collect());
        }
        let means = self.allocated_percent.values().map(|share| share.mean.text());
        table.push(["mean".to_owned()].into_iter().chain(means).chain([String::new()]).collect());
        table.write(out, 0)?;
        writeln!(out)?;
        writeln!(out, "{} seconds an experiment on one thread", self.seconds_per_experiment.text())
    }
}

// `MICRO` says in which unit outcomes are; what is cut off above goes with it.
const _: () = assert!(MICRO == 1_000_000);
