//! What the log of usage takes: records per second, and how long a closing record takes to be durable, on a disk.
//!
//! `cargo run --release -p spillway-gateway --example wal -- DIRECTORY [SECONDS]`, 5 seconds for each line if not said.
//! 1, 16 and 128 requests at a time, each opened, closed, and followed by the next one as soon as its bill is durable, with
//! both durabilities. Then the log's calls, and reading bills from it, against JSON. Makes a directory within DIRECTORY and
//! deletes it. Prints JSON.

#![expect(clippy::print_stdout, reason = "it prints what it measured")]

use std::error::Error;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use spillway_gateway::wal::{Config, Durability, Wal};
use spillway_metering::tokens::{Adjustments, Ending, Mark, Opening, Outcome, RequestId, Tokens, UsageRecord};

const LIMIT_BYTES: u64 = 16 << 30;
const BILLS: usize = 100_000;

fn opening() -> Opening {
    let (_, random) = uuid::Uuid::now_v7().as_u64_pair();
    let random = u128::from(random).to_be_bytes().last_chunk().copied().unwrap_or_default();
    Opening {
        id: RequestId::new(1_700_000_000_000, random),
        tenant: "acme".into(),
        namespace: "acme-serving".into(),
        endpoint: "chat".into(),
        model: "llama-3.3-70b-instruct".into(),
        version: "v3".into(),
        key: "k-7f3a9c21".into(),
        gateway: "gateway-0".into(),
        replica: "chat-v3-5d8f7c9b4-x2x7k".into(),
        started_ms: 1_700_000_000_000,
        stream: true,
    }
}

fn ending() -> Result<Ending, Box<dyn Error>> {
    Ok(Ending {
        ended_ms: 1_700_000_004_321,
        tokens: Tokens::new(2_048, 1_024, 512)?,
        outcome: Outcome::Complete,
        adjusted: Adjustments::default(),
    })
}

fn per(total: Duration, count: usize) -> u128 {
    total.as_nanos() / (count.max(1) as u128)
}

/// One line: so many closers, for so long.
async fn measure(
    directory: PathBuf,
    durability: Durability,
    closers: usize,
    time: Duration,
) -> Result<Value, Box<dyn Error>> {
    let (wal, _) = Wal::open(Config::new(&directory, durability, LIMIT_BYTES))?;
    let wal = Arc::new(wal);
    let ending = ending()?;
    let started = Instant::now();
    let tasks: Vec<_> = (0..closers)
        .map(|_| {
            let wal = Arc::clone(&wal);
            tokio::spawn(async move {
                let mut latencies = Vec::new();
                while started.elapsed() < time {
                    let opening = opening();
                    wal.open_request(&opening)?;
                    let closing = Instant::now();
                    wal.close(opening.id, ending).await?;
                    latencies.push(closing.elapsed().as_nanos());
                }
                Ok::<_, spillway_gateway::wal::Error>(latencies)
            })
        })
        .collect();
    let mut latencies = Vec::new();
    for task in tasks {
        latencies.extend(task.await??);
    }
    let took = started.elapsed();
    latencies.sort_unstable();
    let count = latencies.len();
    let percentile = |hundredths: usize| latencies.get(count * hundredths / 100).map(|nanoseconds| nanoseconds / 1_000);
    let line = json!({
        "durability": durability,
        "closers": closers,
        "appends_per_second": 2 * count as u128 * 1_000 / took.as_millis(),
        "closes_per_second": count as u128 * 1_000 / took.as_millis(),
        "close_us": { "p50": percentile(50), "p99": percentile(99) },
        "bytes_per_request": wal.stats().used_bytes / (count.max(1) as u64),
    });
    drop(wal);
    std::fs::remove_dir_all(&directory)?;
    Ok(line)
}

/// The log's form of a bill against JSON: its size, and how long it takes.
fn forms(directory: &Path) -> Result<Value, Box<dyn Error>> {
    let (wal, _) = Wal::open(Config::new(directory, Durability::Process, LIMIT_BYTES))?;
    let openings: Vec<_> = (0..BILLS).map(|_| opening()).collect();
    let ending = ending()?;
    let runtime = tokio::runtime::Builder::new_current_thread().build()?;
    // The log's own calls, one after the other: form, checksum, room and queue.
    let timed = |call: &dyn Fn(&Opening) -> Result<(), spillway_gateway::wal::Error>| {
        let mut took = Duration::ZERO;
        for some in openings.chunks(1_000) {
            let started = Instant::now();
            some.iter().try_for_each(call)?;
            took += started.elapsed();
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok::<_, Box<dyn Error>>(took)
    };
    let open = timed(&|opening| wal.open_request(opening))?;
    let mark = timed(&|opening| wal.mark(&Mark { id: opening.id, at_ms: 0, tokens: ending.tokens }))?;
    runtime.block_on(async {
        for opening in &openings {
            wal.close(opening.id, ending).await?;
        }
        Ok::<_, spillway_gateway::wal::Error>(())
    })?;
    let mut reader = wal.reader();
    let (mut read, started) = (0, Instant::now());
    while let Some(shipment) = reader.next(1_000)? {
        read += shipment.records.len();
    }
    let log_read = started.elapsed();

    let mut json_bytes = 0;
    for opening in &openings {
        json_bytes += serde_json::to_vec(opening)?.len();
    }
    let bills: Vec<_> = openings.into_iter().map(|opening| UsageRecord::new(opening, ending)).collect();
    let started = Instant::now();
    let written = bills.iter().map(serde_json::to_vec).collect::<Result<Vec<_>, _>>()?;
    let json_write = started.elapsed();
    json_bytes += written.iter().map(Vec::len).sum::<usize>();
    let started = Instant::now();
    let back = written.iter().map(|bytes| serde_json::from_slice(bytes)).collect::<Result<Vec<UsageRecord>, _>>()?;
    let json_read = started.elapsed();
    drop(wal);
    std::fs::remove_dir_all(directory)?;
    Ok(json!({
        "bills": read.min(back.len()),
        "json_bytes_of_opening_and_bill": json_bytes / BILLS,
        "log_open_call_ns": per(open, BILLS),
        "log_mark_call_ns": per(mark, BILLS),
        "log_read_from_file_ns": per(log_read, read),
        "json_write_ns": per(json_write, BILLS),
        "json_read_ns": per(json_read, BILLS),
    }))
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let directory = PathBuf::from(arguments.next().ok_or("which directory?")?).join("wal-example");
    let time = Duration::from_secs(arguments.next().map_or(Ok(5), |seconds| seconds.parse())?);
    let runtime = tokio::runtime::Builder::new_multi_thread().build()?;
    let mut lines = Vec::new();
    for durability in [Durability::Disk, Durability::Process] {
        for closers in [1, 16, 128] {
            lines.push(runtime.block_on(measure(directory.clone(), durability, closers, time))?);
        }
    }
    let report = json!({ "lines": lines, "forms": forms(&directory)? });
    println!("{}", serde_json::to_string_pretty(&report)?);
    Ok(())
}
