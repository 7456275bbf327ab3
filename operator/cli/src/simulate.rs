//! `spillway simulate`: experiments on lists of nodes and tasks through the planner's own packer, and the planner's answers to what is in files.
//! No cluster is asked.
//!
//! - [`input`]: the lists.
//! - [`openb`]: one experiment, for one seed.
//! - [`report`]: the answer.
//! - [`plan`]: reservations, pools, tenants and nodes from files.

use std::{
    io::{self, IsTerminal, Write},
    num::NonZeroUsize,
    path::PathBuf,
    sync::atomic::{AtomicUsize, Ordering},
    thread,
};

use clap::{Args, Subcommand, ValueEnum};
use serde::Serialize;

use crate::output;
use input::Trace;
use openb::{Experiment, Outcome};
use plan::{Answers, PlanArgs};
use report::Report;

mod input;
mod openb;
mod plan;
mod report;

#[cfg(test)]
mod tests;

pub(crate) use input::InputError;
pub(crate) use plan::ObjectError;

/// Examples of the help.
pub(crate) const EXAMPLES: &str = "\
Examples:
  spillway simulate openb --nodes nodes.csv --tasks tasks.csv --seeds 42-51
  spillway simulate plan -f pool.yaml -f tenants.yaml -f reservations.yaml --nodes h200-us-east=16";

const OPENB_EXAMPLES: &str = "\
Examples:
  spillway simulate openb --nodes nodes.csv --tasks tasks.csv
  spillway simulate openb --nodes nodes.csv --tasks tasks.csv --seeds 42-51 -o json
  spillway simulate openb --nodes nodes.csv --tasks tasks.csv --policy fgd --threads 1";

/// More experiments than anybody waits for: a typing error.
const SEEDS_MAX: u64 = 10_000;

/// Arguments of `simulate`.
#[derive(Args, Debug)]
pub(crate) struct SimulateArgs {
    /// Which experiment.
    #[command(subcommand)]
    experiment: Simulation,
}

/// What can be simulated.
#[derive(Debug, Subcommand)]
enum Simulation {
    /// How much of a cluster's devices is allocated when tasks of a list arrive until they add up to 130 % of them.
    ///
    /// The experiment of "Beware of Fragmentation" (USENIX ATC 2023) on the lists published with it: for each seed the nodes and the tasks
    /// are shuffled, then tasks are drawn from the list until their devices add up to 130 % of the cluster's. They are placed one by one;
    /// a task that fits somewhere is placed, one that does not is dropped, and nothing leaves. Nodes without devices are left out.
    /// Printed is the share of the devices allocated, in percent, when 100, 110 and 130 % have arrived. A seed gives the same figures on
    /// any machine, with any number of threads.
    ///
    /// Nodes: CSV with the columns cpu_milli, memory_mib, gpu (devices) and model. Tasks: CSV with the columns cpu_milli, memory_mib,
    /// num_gpu, gpu_milli (thousandths of each device) and, if models matter, gpu_spec (A|B is either). Other columns are not read.
    #[command(after_help = OPENB_EXAMPLES)]
    Openb(OpenbArgs),

    /// What would be answered to reservations, and where they would go, if the objects of some files were the cluster.
    ///
    /// GpuPools, Tenants, Nodes and GpuReservations, through the operator's own planner: one plan, with nothing booked before. What an API
    /// server would refuse is refused here. Nodes with a pool's label count as Ready and open, whatever their taints say; one without status has
    /// the pool's devices. A pool with sale.paused sells nothing. Reservations are served by their creationTimestamp, those without one after
    /// them in the order of the files; those that are over or being deleted are left out. One without a namespace is in default. Shares of a
    /// device (devices.profile) are planned as in a pool of mode Observe: no operator holds them yet.
    ///
    /// The same files give the same answer at any time: virtual time is --at.
    #[command(after_help = plan::EXAMPLES)]
    Plan(PlanArgs),
}

/// Arguments of `simulate openb`.
#[derive(Args, Debug)]
pub(crate) struct OpenbArgs {
    /// List of nodes.
    #[arg(long, value_name = "FILE")]
    nodes: PathBuf,

    /// List of tasks.
    #[arg(long, value_name = "FILE")]
    tasks: PathBuf,

    /// Seeds, each an experiment: 42-51, or 1,2,7, or both.
    #[arg(long, value_name = "SEEDS", default_value = "42-51", value_parser = parse_seeds)]
    seeds: Seeds,

    /// How a node is chosen.
    #[arg(long, value_enum, default_value_t = PolicyName::Dual)]
    policy: PolicyName,

    /// How many experiments run at a time. Without it: one for each core.
    #[arg(long, value_name = "N")]
    threads: Option<NonZeroUsize>,
}

/// Seeds, as written.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Seeds(Vec<u64>);

/// A policy of the planner's packer.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub(crate) enum PolicyName {
    /// Dual prices learned from what arrives: Spillway's own.
    Dual,
    /// Fragmentation gradient descent, told the list beforehand.
    Fgd,
    /// The fullest node.
    Bestfit,
    /// Any node that fits.
    Random,
}

impl PolicyName {
    fn as_str(self) -> &'static str {
        match self {
            Self::Dual => "dual",
            Self::Fgd => "fgd",
            Self::Bestfit => "bestfit",
            Self::Random => "random",
        }
    }
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// A list cannot be used.
    #[error(transparent)]
    Input(#[from] InputError),
    /// Objects cannot be used.
    #[error(transparent)]
    Objects(#[from] ObjectError),
    /// The packer refused what it had placed itself.
    #[error("the packer went against itself with seed {seed}: report this, with both lists")]
    Packer {
        /// In which experiment.
        seed: u64,
        /// Why.
        #[source]
        source: spillway_planner::packing::BinError,
    },
    /// An experiment ended without a result.
    #[error("an experiment ended without a result: report this, with both lists")]
    NoResult,
}

/// What a simulation found.
#[derive(Debug, Serialize)]
#[serde(untagged)]
pub(crate) enum Found {
    /// How much of a cluster is allocated.
    Packing(Report),
    /// What would be answered.
    Plan(Answers),
}

impl Found {
    /// Whether there is something that a script should know: a reservation that is not booked.
    pub(crate) fn is_finding(&self) -> bool {
        match self {
            Self::Packing(_) => false,
            Self::Plan(answers) => !answers.all_booked(),
        }
    }
}

impl output::Report for Found {
    fn write_table(&self, out: &mut dyn Write) -> io::Result<()> {
        match self {
            Self::Packing(report) => report.write_table(out),
            Self::Plan(answers) => answers.write_table(out),
        }
    }
}

/// Reads files and simulates.
pub(crate) fn run(args: &SimulateArgs) -> Result<Found, Error> {
    match &args.experiment {
        Simulation::Openb(args) => run_openb(args).map(Found::Packing),
        Simulation::Plan(args) => Ok(Found::Plan(plan::run(args)?)),
    }
}

/// Reads the lists and runs the experiments.
fn run_openb(args: &OpenbArgs) -> Result<Report, Error> {
    let trace = input::read(&args.nodes, &args.tasks)?;
    let threads = args.threads.or_else(|| thread::available_parallelism().ok()).map_or(1, NonZeroUsize::get);
    let outcomes = run_all(&trace, args.policy, &args.seeds.0, threads)?;
    Ok(Report::new(args.policy, &trace, &args.seeds.0, &outcomes))
}

/// The experiments of all seeds, in their order, so many at a time.
fn run_all(trace: &Trace, policy: PolicyName, seeds: &[u64], threads: usize) -> Result<Vec<Outcome>, Error> {
    let experiment = Experiment::new(trace, policy);
    let next = AtomicUsize::new(0);
    let done = AtomicUsize::new(0);
    let work = || {
        let mut mine = Vec::new();
        while let Some((at, &seed)) = {
            let at = next.fetch_add(1, Ordering::Relaxed);
            seeds.get(at).map(|seed| (at, seed))
        } {
            mine.push((at, experiment.run(seed)));
            show_progress(done.fetch_add(1, Ordering::Relaxed) + 1, seeds.len());
        }
        mine
    };
    show_progress(0, seeds.len());
    let mut outcomes = thread::scope(|scope| {
        let workers: Vec<_> = (0..threads.min(seeds.len())).map(|_| scope.spawn(work)).collect();
        let mut all = Vec::with_capacity(seeds.len());
        for worker in workers {
            all.extend(worker.join().map_err(|_| Error::NoResult)?);
        }
        Ok::<_, Error>(all)
    })?;
    outcomes.sort_by_key(|&(at, _)| at);
    outcomes.into_iter().map(|(_, outcome)| outcome).collect()
}

/// One line on a terminal, which goes when all is done.
fn show_progress(done: usize, all: usize) {
    let mut err = std::io::stderr();
    if err.is_terminal() {
        // Who does not see it misses nothing.
        let _ = if done < all { write!(err, "\r{done} of {all} experiments") } else { write!(err, "\r\x1b[K") };
        let _ = err.flush();
    }
}

fn parse_seeds(text: &str) -> Result<Seeds, String> {
    let number = |text: &str| {
        text.trim()
            .parse::<u64>()
            .map_err(|_| format!("{text:?} is not a whole number: write seeds like 42-51 or 1,2,7"))
    };
    let mut seeds = Vec::new();
    for part in text.split(',') {
        let (first, last) = match part.split_once('-') {
            Some((first, last)) => (number(first)?, number(last)?),
            None => (number(part)?, number(part)?),
        };
        if last < first {
            return Err(format!("{part:?} ends before it begins"));
        }
        if last - first >= SEEDS_MAX || seeds.len() as u64 + (last - first) >= SEEDS_MAX {
            return Err(format!("more than {SEEDS_MAX} seeds"));
        }
        seeds.extend(first..=last);
    }
    Ok(Seeds(seeds))
}
