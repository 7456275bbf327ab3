//! How well strategies spread requests over engines: `make bench-routing TRACE=file.jsonl`.
//!
//! A simulation on integers: engines as in `engine.rs`, requests of a recorded trace, and the gateway's own strategies on the clock of the
//! simulation. A line of the trace is `{"timestamp": ms, "input_length": tokens, "output_length": tokens, "hash_ids": [blocks of 512]}`.
//! A single run is chaotic, so each load is also run two and four percent points slower and faster, and `mean` is over the five. Prints
//! JSON in integers: shares and ratios in millionths (`ppm`), times in microseconds, but for the real time of decisions in nanoseconds.
//! For the trace whose numbers are known, `check` says whether the integers of independent programs came out; if not, the exit status is 1.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "it prints what it measured, or why it cannot")]

mod check;
mod engine;
mod simulation;
mod trace;

use std::{path::PathBuf, process::ExitCode, time::Duration};

use clap::Parser;
use serde_json::{Value, json};

use simulation::{Entry, Outcome, Router, Setup};
use trace::Trace;

/// How well strategies spread requests over engines.
#[derive(Parser)]
struct Args {
    /// The trace: JSON lines of timestamp, input_length, output_length, hash_ids.
    trace: PathBuf,
    /// Engines.
    #[arg(long, default_value_t = 8)]
    engines: usize,
    /// Blocks that an engine caches.
    #[arg(long, default_value_t = 2048)]
    blocks: u32,
    /// Loads: percent of the recorded speed. 165 and 200 are 70 and 85 % of what round robin can do with 8 engines.
    #[arg(long = "load", default_values_t = [165, 200], value_parser = clap::value_parser!(u64).range(10..))]
    loads: Vec<u64>,
    /// Gateways, where there are several.
    #[arg(long, default_value_t = 3)]
    gateways: usize,
    /// Do not tell strategies how many blocks engines cache.
    #[arg(long)]
    untold_blocks: bool,
}

/// Sums over runs of one load.
#[derive(Clone, Default)]
struct Sums {
    runs: u64,
    cached_tokens: u64,
    first_token_sum: u64,
    first_token_p99: u64,
    wait_p99: u64,
    imbalance_ppm: u64,
    decisions: Vec<Duration>,
    telling: Duration,
}

impl Sums {
    fn add(&mut self, outcome: &Outcome) {
        self.runs += 1;
        self.cached_tokens += outcome.cached_tokens;
        self.first_token_sum += outcome.first_token_sum;
        self.first_token_p99 += outcome.first_token_p99;
        self.wait_p99 += outcome.wait_p99;
        self.imbalance_ppm += outcome.imbalance_ppm;
        self.decisions.extend(&outcome.decisions);
        self.telling += outcome.telling;
    }

    fn json(&self, trace: &Trace) -> Value {
        let requests = trace.requests.len() as u64 * self.runs;
        json!({
            "hit_ppm": ppm(self.cached_tokens, trace.prompt_tokens() * self.runs),
            "first_token_mean_us": self.first_token_sum / requests / 1000,
            "first_token_p99_us": self.first_token_p99 / self.runs / 1000,
            "wait_p99_us": self.wait_p99 / self.runs / 1000,
            "imbalance_ppm": self.imbalance_ppm / self.runs,
        })
    }

    /// Real time of a decision with its commit. A mean would be that of what else the machine does.
    fn decision_ns(&self) -> Value {
        let mut sorted = self.decisions.clone();
        sorted.sort_unstable();
        let at = |percent: usize| sorted.get((sorted.len() * percent).div_ceil(100).saturating_sub(1));
        let nanos = |percent| at(percent).map_or(0, Duration::as_nanos);
        json!({"p50": nanos(50), "p99": nanos(99)})
    }

    fn to(&self, oracle: &Self) -> Value {
        json!({
            "hit_ppm": ppm(self.cached_tokens, oracle.cached_tokens),
            "first_token_mean_ppm": ppm(self.first_token_sum, oracle.first_token_sum),
            "first_token_p99_ppm": ppm(self.first_token_p99, oracle.first_token_p99),
        })
    }
}

fn ppm(part: u64, whole: u64) -> u64 {
    let ratio = (u128::from(part) * 1_000_000).checked_div(u128::from(whole));
    ratio.map_or(0, |ratio| u64::try_from(ratio).unwrap_or(u64::MAX))
}

/// What is compared: a name, who decides, gateways, and which one a request comes to. The oracle comes first.
fn strategies(gateways: usize) -> Vec<(&'static str, Router, usize, Entry)> {
    vec![
        ("oracle", Router::Oracle, 1, Entry::InTurn),
        ("round robin", Router::RoundRobin, 1, Entry::InTurn),
        ("least requests", Router::LeastRequests, 1, Entry::InTurn),
        ("least prompt tokens", Router::LeastPromptTokens, 1, Entry::InTurn),
        ("affinity", Router::Affinity, 1, Entry::InTurn),
        ("least prompt tokens", Router::LeastPromptTokens, gateways, Entry::InTurn),
        ("affinity", Router::Affinity, gateways, Entry::InTurn),
        ("affinity, gateway by prefix", Router::Affinity, gateways, Entry::Owner),
    ]
}

fn main() -> ExitCode {
    let args = Args::parse();
    let trace = match Trace::read(&args.trace) {
        Ok(trace) => trace,
        Err(message) => {
            eprintln!("{message}");
            return ExitCode::from(2);
        }
    };
    let mut checks = Vec::new();
    let mut results = Vec::new();
    for &load in &args.loads {
        let mut oracle = Sums::default();
        for (name, router, gateways, entry) in strategies(args.gateways.max(1)) {
            let (mut sums, mut at_load) = (Sums::default(), Sums::default());
            for speed in [load - 4, load - 2, load, load + 2, load + 4] {
                let told_blocks = !args.untold_blocks;
                let Args { engines, blocks, .. } = args;
                let setup = Setup { router, gateways, entry, engines, blocks, told_blocks, speed };
                let outcome = setup.run(&trace);
                sums.add(&outcome);
                if speed == load {
                    at_load.add(&outcome);
                    checks.extend(check::compare(&setup, &trace, name, &outcome));
                }
            }
            if router == Router::Oracle {
                oracle = sums.clone();
            }
            results.push(json!({
                "strategy": name,
                "gateways": gateways,
                "load": load,
                "at_load": at_load.json(&trace),
                "mean": sums.json(&trace),
                "mean_to_oracle": sums.to(&oracle),
                "decision_ns": sums.decision_ns(),
                "tokens_and_end_ns": sums.telling.as_nanos() / sums.decisions.len().max(1) as u128,
            }));
        }
    }
    let exact = checks.iter().all(|check| check.exact);
    let answer = json!({
        "trace": {"requests": trace.requests.len(), "prompt_tokens": trace.prompt_tokens()},
        "engines": args.engines,
        "blocks": args.blocks,
        "check": checks.iter().map(check::Check::json).collect::<Vec<_>>(),
        "results": results,
    });
    println!("{answer:#}");
    if exact {
        ExitCode::SUCCESS
    } else {
        eprintln!("the integers are not those that are known of this trace: the simulation is another one");
        ExitCode::FAILURE
    }
}
