//! `bench operator`: how fast a real operator sells on a real API server. `make bench-operator` builds and runs it.

#![expect(clippy::print_stdout, reason = "it prints what it measured")]

use std::collections::{BTreeMap, HashMap};
use std::io::{BufRead as _, BufReader};
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use clap::{Parser, Subcommand};
use futures::{StreamExt as _, TryStreamExt as _};
use kube::api::{Api, DeleteParams};
use kube::runtime::{WatchStreamExt as _, watcher};
use kube::{Client, ResourceExt as _};
use serde_json::{Value, json};
use spillway_crds::{GpuReservation, Phase};
use spillway_lab::progress::say;
use spillway_lab::spillway::{OPERATOR_USER, Operator, Spillway};
use spillway_lab::{Lab, LabOptions, Size, wait_for};

/// Requests of the client under way at a time.
const PARALLEL: usize = 32;
/// Longest time of one part of the benchmark.
const BOUND: Duration = Duration::from_secs(900);

/// Benchmarks of Spillway on a Kubernetes of their own. Each prints JSON.
#[derive(Debug, Parser)]
#[command(name = "bench", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Reservations of one device each: from the first apply to the last `Booked` and `Active`, and from the deletes to the last one gone.
    ///
    /// First all at once, then so many a second. Nodes are API objects without kubelets (`nodeCheck: None`).
    #[command(after_help = "Examples:\n  bench operator\n  bench operator --nodes 50 --reservations 400 --rate 50")]
    Operator(Options),
}

#[derive(Debug, Clone, clap::Args)]
struct Options {
    /// Nodes of 8 devices.
    #[arg(long, default_value_t = 500)]
    nodes: usize,
    /// Reservations.
    #[arg(long, default_value_t = 4000)]
    reservations: usize,
    /// Tenants among whom they are spread.
    #[arg(long, default_value_t = 40)]
    tenants: usize,
    /// Arrivals a second in the second part.
    #[arg(long, default_value_t = 100)]
    rate: u64,
}

#[tokio::main]
async fn main() -> ExitCode {
    let Command::Operator(options) = Cli::parse().command;
    match operator(&options).await {
        Ok(report) => {
            println!("{report:#}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            say(&format!("error: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

/// When a reservation came to be what.
#[derive(Debug, Clone, Copy, Default)]
struct Times {
    booked: Option<Instant>,
    active: Option<Instant>,
    gone: Option<Instant>,
}

type Book = Arc<Mutex<HashMap<String, Times>>>;

/// Writes down when each reservation is seen to be what, as any client could.
fn witness(client: Client) -> (Book, tokio::task::JoinHandle<()>) {
    let book = Book::default();
    let into = Arc::clone(&book);
    let task = tokio::spawn(async move {
        let api = Api::<GpuReservation>::all(client);
        let mut events = watcher(api, watcher::Config::default()).default_backoff().boxed();
        while let Some(event) = events.next().await {
            let (object, gone) = match event {
                Ok(watcher::Event::Apply(object) | watcher::Event::InitApply(object)) => (object, false),
                Ok(watcher::Event::Delete(object)) => (object, true),
                _ => continue,
            };
            let now = Instant::now();
            let mut book = into.lock().unwrap_or_else(PoisonError::into_inner);
            let times = book.entry(object.name_any()).or_default();
            let phase = object.status.as_ref().map_or(Phase::Pending, |status| status.phase);
            if gone {
                times.gone.get_or_insert(now);
            }
            if matches!(phase, Phase::Booked | Phase::Preparing | Phase::Active) {
                times.booked.get_or_insert(now);
            }
            if phase == Phase::Active {
                times.active.get_or_insert(now);
            }
        }
    });
    (book, task)
}

fn reached(book: &Book, prefix: &str, what: fn(&Times) -> Option<Instant>) -> HashMap<String, Instant> {
    let book = book.lock().unwrap_or_else(PoisonError::into_inner);
    let of = book.iter().filter(|(name, _)| name.starts_with(prefix));
    of.filter_map(|(name, times)| Some((name.clone(), what(times)?))).collect()
}

/// Processor time of a process so far, in milliseconds, and the most memory that it has used, in KiB.
fn usage(pid: i64) -> (u64, u64) {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks = |at: usize| fields.get(at).and_then(|text| text.parse::<u64>().ok()).unwrap_or(0);
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.split_whitespace().next()?.parse().ok());
    // Linux counts in hundredths of a second.
    ((ticks(11) + ticks(12)) * 10, peak.unwrap_or(0))
}

/// Milliseconds at the percentiles that are asked for.
fn spread(mut times: Vec<Duration>) -> Value {
    times.sort_unstable();
    let at = |percent: usize| {
        let place = (times.len() * percent).div_ceil(100).saturating_sub(1);
        times.get(place).map_or(0, Duration::as_millis)
    };
    json!({"p50": at(50), "p99": at(99), "max": at(100)})
}

/// Writes of the operator so far by what they are of, Leases left out: from the API server's audit log.
fn writes(log: &std::path::Path) -> Result<BTreeMap<String, u64>> {
    let file = std::fs::File::open(log).with_context(|| format!("opening {}", log.display()))?;
    let mut counts = BTreeMap::new();
    for line in BufReader::new(file).lines() {
        let Ok(entry) = serde_json::from_str::<Value>(&line.context("reading the audit log")?) else { continue };
        let text = |path: &str| entry.pointer(path).and_then(Value::as_str).unwrap_or_default().to_owned();
        let mutates = matches!(text("/verb").as_str(), "create" | "update" | "patch" | "delete" | "deletecollection");
        let dry = text("/requestURI").contains("dryRun=All");
        if text("/user/username") != OPERATOR_USER || !mutates || dry || text("/objectRef/resource") == "leases" {
            continue;
        }
        let sub = text("/objectRef/subresource");
        let what = [text("/objectRef/resource"), sub].into_iter().filter(|part| !part.is_empty());
        *counts.entry(what.collect::<Vec<_>>().join("/")).or_default() += 1;
    }
    Ok(counts)
}

/// Thousandths of writes for each of so many.
fn each(total: u64, count: usize) -> u64 {
    total * 1000 / u64::try_from(count).unwrap_or(1).max(1)
}

struct Bench<'a> {
    spillway: &'a Spillway<'a>,
    options: &'a Options,
    operator: &'a Operator,
    api_server: i64,
    audit: std::path::PathBuf,
    book: Book,
}

impl Bench<'_> {
    fn tenant(&self, number: usize) -> String {
        format!("t-{:02}", number % self.options.tenants.max(1))
    }

    /// Makes all reservations, `gap` apart or as fast as they go; gives when each was sent.
    async fn arrive(&self, prefix: &str, gap: Option<Duration>) -> Result<HashMap<String, Instant>> {
        let begun = Instant::now();
        let make = |number: usize| async move {
            if let Some(gap) = gap {
                let due = begun + gap * u32::try_from(number).unwrap_or(u32::MAX);
                tokio::time::sleep_until(due.into()).await;
            }
            let name = format!("{prefix}{number:05}");
            let sent = Instant::now();
            let spec = json!({"pool": "bench", "devices": {"count": 1}, "exclusiveNodes": false});
            self.spillway.reserve(&self.tenant(number), &name, spec).await?;
            anyhow::Ok((name, sent))
        };
        let parallel = if gap.is_some() { 256 } else { PARALLEL };
        futures::stream::iter(0..self.options.reservations).map(make).buffer_unordered(parallel).try_collect().await
    }

    async fn wait(
        &self,
        what: &str,
        prefix: &str,
        of: fn(&Times) -> Option<Instant>,
    ) -> Result<HashMap<String, Instant>> {
        let wanted = self.options.reservations;
        wait_for(what, BOUND, || async { Ok(reached(&self.book, prefix, of).len() >= wanted) }).await?;
        Ok(reached(&self.book, prefix, of))
    }

    /// All arrive, are sold, and go.
    async fn round(&self, prefix: &str, gap: Option<Duration>) -> Result<Value> {
        let pid = i64::from(self.operator.pid());
        let (cpu, _) = usage(pid);
        let (api_cpu, _) = usage(self.api_server);
        let before = writes(&self.audit)?;
        let begun = Instant::now();
        let sent = self.arrive(prefix, gap).await?;
        let created = begun.elapsed();
        say(&format!("{} reservations were made in {created:.1?}", sent.len()));
        let booked = self.wait("all to be Booked", prefix, |times| times.booked).await?;
        let active = self.wait("all to be Active", prefix, |times| times.active).await?;
        let since = |seen: &HashMap<String, Instant>| -> Vec<Duration> {
            seen.iter().filter_map(|(name, at)| Some(at.saturating_duration_since(*sent.get(name)?))).collect()
        };
        let last = |seen: &HashMap<String, Instant>| {
            seen.values().max().map_or(0, |at| at.saturating_duration_since(begun).as_millis())
        };
        let rate = |ms: u128| self.options.reservations as u128 * 1000 / ms.max(1);
        let (cpu_sold, _) = usage(pid);
        let (api_sold, _) = usage(self.api_server);
        // The last statuses of pools and tenants belong to it.
        tokio::time::sleep(Duration::from_secs(6)).await;
        let sold = writes(&self.audit)?;
        let made = difference(&before, &sold);

        let deleted = Instant::now();
        let api = |number: usize| Api::<GpuReservation>::namespaced(self.spillway.client(), &self.tenant(number));
        futures::stream::iter(0..self.options.reservations)
            .map(|number| {
                let api = api(number);
                async move { api.delete(&format!("{prefix}{number:05}"), &DeleteParams::default()).await.map(drop) }
            })
            .buffer_unordered(PARALLEL)
            .try_collect::<Vec<()>>()
            .await
            .context("deleting the reservations")?;
        let gone = self.wait("all to be gone", prefix, |times| times.gone).await?;
        let gone_ms = gone.values().max().map_or(0, |at| at.saturating_duration_since(deleted).as_millis());
        self.spillway.wait_unsold("bench", self.options.nodes, BOUND).await?;
        tokio::time::sleep(Duration::from_secs(6)).await;
        let ended = difference(&sold, &writes(&self.audit)?);
        let count = self.options.reservations;
        let sum = |counts: &BTreeMap<String, u64>| each(counts.values().sum(), count);
        Ok(json!({
            "created_ms": created.as_millis(),
            "last_booked_ms": last(&booked),
            "last_active_ms": last(&active),
            "booked_per_second": rate(last(&booked)),
            "active_per_second": rate(last(&active)),
            "booked_after_ms": spread(since(&booked)),
            "active_after_ms": spread(since(&active)),
            "operator_cpu_ms": cpu_sold - cpu,
            "api_server_cpu_ms": api_sold - api_cpu,
            "writes_to_active_milli_each": sum(&made),
            "writes_to_active": made,
            "delete_to_gone_ms": gone_ms,
            "writes_to_gone_milli_each": sum(&ended),
            "writes_to_gone": ended,
        }))
    }
}

fn difference(before: &BTreeMap<String, u64>, after: &BTreeMap<String, u64>) -> BTreeMap<String, u64> {
    let more = |(what, count): (&String, &u64)| {
        let more = count - before.get(what).copied().unwrap_or(0);
        (more > 0).then(|| (what.clone(), more))
    };
    after.iter().filter_map(more).collect()
}

async fn operator(options: &Options) -> Result<Value> {
    let folder = tempfile::tempdir().context("a folder")?;
    let policy = folder.path().join("audit.yaml");
    let audit = folder.path().join("audit.log");
    // One line for each request that is answered.
    let rules = "apiVersion: audit.k8s.io/v1\nkind: Policy\nomitStages: [RequestReceived, ResponseStarted]\nrules:\n\
                 - {level: Metadata, verbs: [create, update, patch, delete, deletecollection]}\n- {level: None}\n";
    std::fs::write(&policy, rules).context("writing the audit policy")?;
    let mut lab_options = LabOptions::new(Size::Api);
    lab_options.apiserver_args = vec![
        format!("--audit-policy-file={}", policy.display()),
        format!("--audit-log-path={}", audit.display()),
        "--audit-log-mode=batch".to_owned(),
        "--audit-log-batch-max-wait=1s".to_owned(),
    ];
    let lab = Lab::start(lab_options).await?;
    let spillway = Spillway::install(&lab).await?;
    let operator = spillway.start_operator("operator-a")?;
    spillway.create_pool("bench", json!({"topology": ["kubernetes.io/hostname"]})).await?;
    for number in 0..options.tenants {
        let name = format!("t-{number:02}");
        spillway.create_tenant(&name, &[&name], json!({})).await?;
    }
    let begun = Instant::now();
    let names: Vec<String> = (0..options.nodes).map(|number| format!("gpu-{number:05}")).collect();
    spillway.add_nodes("bench", &names).await?;
    spillway.wait_unsold("bench", options.nodes, BOUND).await?;
    say(&format!("{} nodes are unsold after {:.1?}", options.nodes, begun.elapsed()));
    let (book, task) = witness(spillway.client());
    let bench = Bench {
        spillway: &spillway,
        options,
        operator: &operator,
        api_server: i64::from(lab.pid("kube-apiserver")?),
        audit,
        book,
    };
    let burst = bench.round("b-", None).await.context("all at once")?;
    say("all at once: done");
    let gap = Duration::from_nanos(1_000_000_000 / options.rate.max(1));
    let steady = bench.round("s-", Some(gap)).await.context("one after the other")?;
    let (_, peak) = usage(i64::from(operator.pid()));
    let verdict = spillway.verify_settled("5s").await?;
    verdict.ensure_clean()?;
    task.abort();
    let report = json!({
        "nodes": options.nodes, "devices": options.nodes * 8, "reservations": options.reservations,
        "tenants": options.tenants,
        "burst": burst,
        "arrivals_per_second": options.rate,
        "steady": steady,
        "operator_peak_memory_kib": peak,
    });
    operator.stop().await?;
    lab.stop()?;
    Ok(report)
}
