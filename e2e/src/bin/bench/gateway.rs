//! What a gateway costs: our own, with keys, limits and its durable log on, and routers of others, which have none of these, before the same engine.

mod engine;
mod load;
mod peers;

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context as _, Result};
use clap::Args;
use serde_json::{Value, json};
use spillway_lab::{paths, progress::say};

pub(crate) use engine::Options as EngineOptions;
pub(crate) use engine::run as run_engine;
use load::{Outcome, Target};
use peers::Running;

/// Connections at which latency is measured.
const CONNECTIONS: [usize; 3] = [1, 16, 128];
/// Connections with streams.
const STREAMS: usize = 8;

/// What to measure.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Rounds, in each of which all are measured one after the other
    #[arg(long, default_value_t = 5)]
    rounds: u32,
    /// Seconds of each measurement
    #[arg(long, default_value_t = 2)]
    seconds: u64,
    /// Routers to compare with, from PyPI; those that cannot be had are left out, and named
    #[arg(long, value_delimiter = ',', default_value = "vllm-router,smg,sglang-router")]
    peers: Vec<String>,
}

/// Of one gateway, in each round.
#[derive(Default)]
struct Measured {
    /// By connections: p50 and p99, in microseconds, and requests a second.
    whole: BTreeMap<usize, Vec<(u64, u64, u64)>>,
    /// Streams a second, and p50 of one.
    streams: Vec<(u64, u64)>,
    memory_kib: u64,
    ticks: u64,
    requests: u64,
}

/// Measures, and reports as JSON.
pub(crate) async fn run(options: &Options) -> Result<Value> {
    let dir = tempfile::tempdir_in(paths::base_dir()).or_else(|_| tempfile::tempdir()).context("a folder")?;
    let (_engine, direct) = peers::engine(dir.path()).await?;
    let program = paths::binaries_dir()?.join("spillway-gateway");
    let mut running = Vec::new();
    for durability in ["process", "disk"] {
        running.push(peers::ours(&program, dir.path(), direct.address, durability).await?);
    }
    let mut left_out = Vec::new();
    for name in options.peers.iter().filter(|name| !name.is_empty()) {
        match peers::peer(name, dir.path(), direct.address).await {
            Ok(peer) => running.push(peer),
            Err(error) => left_out.push(json!({"name": name, "why": format!("{error:#}")})),
        }
    }
    let mut measured: BTreeMap<&str, Measured> = BTreeMap::new();
    let time = Duration::from_secs(options.seconds.max(1));
    for round in 1..=options.rounds {
        say(&format!("round {round} of {}", options.rounds));
        measure(measured.entry("direct").or_default(), &direct, None, time).await?;
        for one in &running {
            let entry = measured.entry(one.name).or_default();
            measure(entry, &one.target, Some(one), time).await.with_context(|| format!("measuring {}", one.name))?;
        }
    }
    let direct = measured.remove("direct").unwrap_or_default();
    let report: BTreeMap<&str, Value> = running
        .iter()
        .filter_map(|one| Some((one.name, tell(measured.get(one.name)?, &direct, &one.version))))
        .collect();
    let processors = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    Ok(json!({
        "what": "One request after the other on each connection, an engine that answers at once, all on this machine. spillway has a key, limits of key and tenant, and a durable bill for each request; the others have none of these. Added: the median over rounds of the difference to the engine without anything before it, in microseconds.",
        "machine": {"processors": processors},
        "rounds": options.rounds, "seconds": options.seconds,
        "direct": tell(&direct, &Measured::default(), "none"),
        "gateways": report, "leftOut": left_out, "marks": marks(&measured, &direct),
    }))
}

async fn measure(entry: &mut Measured, target: &Target, process: Option<&Running>, time: Duration) -> Result<()> {
    let before = process.map(Running::ticks).transpose()?.unwrap_or(0);
    let mut requests = 0;
    let mut count = |outcome: &Outcome| requests += u64::try_from(outcome.micros.len()).unwrap_or(0);
    for connections in CONNECTIONS {
        let outcome = load::run(target, connections, time, false).await?;
        count(&outcome);
        let all = (outcome.percentile(50), outcome.percentile(99), outcome.per_second());
        entry.whole.entry(connections).or_default().push(all);
    }
    // Of requests alone: a stream is many.
    let after = process.map(Running::ticks).transpose()?.unwrap_or(0);
    entry.ticks += after.saturating_sub(before);
    entry.requests += requests;
    let outcome = load::run(target, STREAMS, time, true).await?;
    entry.streams.push((outcome.per_second(), outcome.percentile(50)));
    entry.memory_kib = entry.memory_kib.max(process.map(Running::memory_kib).transpose()?.unwrap_or(0));
    Ok(())
}

fn median(mut values: Vec<i64>) -> i64 {
    values.sort_unstable();
    values.get(values.len() / 2).copied().unwrap_or(0)
}

fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// The median over rounds of what is more than without it.
fn added(of: &Measured, direct: &Measured, connections: usize, which: fn(&(u64, u64, u64)) -> u64) -> i64 {
    let none = Vec::new();
    let rounds = of.whole.get(&connections).unwrap_or(&none).iter();
    let without = direct.whole.get(&connections).unwrap_or(&none).iter().map(which).chain(std::iter::repeat(0));
    median(rounds.map(which).zip(without).map(|(with, without)| signed(with).saturating_sub(signed(without))).collect())
}

fn per_second(of: &Measured, connections: usize) -> i64 {
    let rounds = of.whole.get(&connections).into_iter().flatten();
    median(rounds.map(|(_, _, per_second)| signed(*per_second)).collect())
}

fn streams(of: &Measured) -> i64 {
    median(of.streams.iter().map(|(per_second, _)| signed(*per_second)).collect())
}

fn tell(of: &Measured, direct: &Measured, version: &str) -> Value {
    let by = |tell: &dyn Fn(usize) -> i64| -> BTreeMap<String, i64> {
        CONNECTIONS.iter().map(|connections| (connections.to_string(), tell(*connections))).collect()
    };
    json!({
        "version": version,
        "addedP50Micros": by(&|connections| added(of, direct, connections, |round| round.0)),
        "addedP99Micros": by(&|connections| added(of, direct, connections, |round| round.1)),
        "requestsPerSecond": by(&|connections| per_second(of, connections)),
        "streamsPerSecond": streams(of),
        "streamP50Micros": median(of.streams.iter().map(|(_, p50)| signed(*p50)).collect()),
        "memoryMiB": of.memory_kib.div_euclid(1024),
        // Ticks are of 10 ms.
        "processorMicrosPerRequest": of.ticks.saturating_mul(10_000).checked_div(of.requests).unwrap_or(0),
    })
}

/// What we mean to reach, and whether this run did. Those that are relative need vllm-router in the same run.
fn marks(measured: &BTreeMap<&str, Measured>, direct: &Measured) -> Vec<Value> {
    let mark = |name: &str, reached: i64, wanted: i64, most: bool| {
        let holds = if most { reached <= wanted } else { reached >= wanted };
        json!({"mark": name, "reached": reached, "wanted": wanted, "holds": holds})
    };
    let mut marks = Vec::new();
    let ours = |durability: &str| measured.get(format!("spillway ({durability})").as_str());
    if let Some(ours) = ours("process") {
        marks.push(mark("memory, MiB, at most", signed(ours.memory_kib.div_euclid(1024)), 57, true));
    }
    let Some(theirs) = measured.get("vllm-router") else { return marks };
    let latency = |of: &Measured| added(of, direct, 1, |round| round.0);
    for (durability, more) in [("process", 100), ("disk", 250)] {
        if let Some(ours) = ours(durability) {
            let name = format!("added p50 at 1 connection, {durability}, microseconds, at most vllm-router's + {more}");
            marks.push(mark(&name, latency(ours), latency(theirs).saturating_add(more), true));
        }
    }
    if let Some(ours) = ours("process") {
        let share = |all: i64, percent: i64| all.saturating_mul(percent).div_euclid(100);
        let name = "requests/s at 16 connections, process, at least 0.55 of vllm-router's";
        marks.push(mark(name, per_second(ours, 16), share(per_second(theirs, 16), 55), false));
        let name = "streams/s at 8 connections, process, at least 0.85 of vllm-router's";
        marks.push(mark(name, streams(ours), share(streams(theirs), 85), false));
    }
    marks
}
