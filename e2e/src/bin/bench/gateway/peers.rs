//! The processes that are measured: ours, and those of others, which come from PyPI by exact versions.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use spillway_lab::spillway::{CatalogueOptions, write_catalogue};
use spillway_lab::{free_port, pip, wait_for};
use tokio::process::{Child, Command};

use super::load::{self, Target};

/// How long one may take to serve.
const START: Duration = Duration::from_secs(60);

/// A gateway or router that runs, until this is dropped.
pub(crate) struct Running {
    pub(crate) name: &'static str,
    pub(crate) version: String,
    pub(crate) target: Target,
    child: Child,
}

/// A router of others: its name, package and version, and how it is started.
struct Peer {
    name: &'static str,
    package: &'static str,
    main: &'static str,
}

/// As their documentation starts them before workers that speak HTTP, with the policy that costs them the least.
const PEERS: [Peer; 3] = [
    Peer {
        name: "vllm-router",
        package: "vllm-router==0.1.17",
        main: "from vllm_router.launch_router import main; main()",
    },
    Peer {
        name: "smg",
        package: "smg==1.13.0",
        main: "import sys; sys.argv.insert(1, 'launch'); from smg.cli import main; main()",
    },
    Peer {
        name: "sglang-router",
        package: "sglang-router==0.3.2",
        main: "import sys; sys.argv.insert(1, 'launch'); from sglang_router.cli import main; main()",
    },
];

impl Running {
    /// Resident memory, in KiB.
    pub(crate) fn memory_kib(&self) -> Result<u64> {
        let status = self.read("status")?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
        line.split_whitespace().next().and_then(|kib| kib.parse().ok()).context("VmRSS is no number")
    }

    /// Processor time until now, in ticks of 10 ms.
    pub(crate) fn ticks(&self) -> Result<u64> {
        let stat = self.read("stat")?;
        // The name, in parentheses, may have anything in it.
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
        let field =
            |index: usize| fields.get(index).and_then(|ticks| ticks.parse::<u64>().ok()).context("a field of stat");
        Ok(field(11)?.saturating_add(field(12)?))
    }

    fn read(&self, file: &str) -> Result<String> {
        let pid = self.child.id().with_context(|| format!("{} has ended", self.name))?;
        std::fs::read_to_string(format!("/proc/{pid}/{file}"))
            .with_context(|| format!("reading {file} of {}", self.name))
    }
}

/// An address of loopback whose port is free now.
fn free() -> Result<SocketAddr> {
    Ok(SocketAddr::from((Ipv4Addr::LOCALHOST, free_port(Ipv4Addr::LOCALHOST)?)))
}

fn spawn(command: &mut Command, log: &Path) -> Result<Child> {
    let file = std::fs::File::create(log).with_context(|| format!("creating {}", log.display()))?;
    let errors = file.try_clone().context("a second handle of a log")?;
    command.stdin(Stdio::null()).stdout(file).stderr(errors).kill_on_drop(true).spawn().context("starting a process")
}

/// The scripted engine.
pub(crate) async fn engine(dir: &Path) -> Result<(Child, Target)> {
    let address = free()?;
    let program = std::env::current_exe().context("this program")?;
    let mut command = Command::new(program);
    let child = spawn(command.args(["engine", "--listen", &address.to_string()]), &dir.join("engine.log"))?;
    let target = Target { address, model: "bench", key: "Bearer none".to_owned() };
    serves("the engine", &target).await?;
    Ok((child, target))
}

/// Waits until it answers a request.
async fn serves(name: &str, target: &Target) -> Result<()> {
    wait_for(&format!("{name} to serve"), START, || async {
        Ok(load::run(target, 1, Duration::ZERO, false).await.is_ok())
    })
    .await
}

/// Our gateway, with a key, limits and its log on.
pub(crate) async fn ours(program: &Path, dir: &Path, engine: SocketAddr, durability: &'static str) -> Result<Running> {
    // Limits that are looked at and never reached.
    let limits = "{requestsPerMinute: 1000000000, tokensPerMinute: 1000000000000, concurrency: 100000}";
    let options = CatalogueOptions { endpoint: "bench", engine, key_limits: limits, tenant_limits: limits };
    let folder = dir.join(durability);
    std::fs::create_dir(&folder).context("a folder for the catalogue")?;
    let (secret, path) = write_catalogue(program, &folder, options).await?;
    let (address, admin) = (free()?, free()?);
    let log = dir.join(format!("log-{durability}"));
    let mut command = Command::new(program);
    command
        .args(["--name", "bench", "--durability", durability, "--listen", &address.to_string()])
        .args(["--admin", &admin.to_string(), "--log-limit", "8192", "--log-format", "text"])
        .arg("--catalogue")
        .arg(&path)
        .arg("--log-directory")
        .arg(&log)
        .env("RUST_LOG", "warn");
    let child = spawn(&mut command, &dir.join(format!("spillway-{durability}.log")))?;
    let name = if durability == "disk" { "spillway (disk)" } else { "spillway (process)" };
    let target = Target { address, model: "bench", key: format!("Bearer {secret}") };
    let version = Command::new(program).arg("--version").output().await.context("asking its version")?;
    let version = String::from_utf8_lossy(&version.stdout).split_whitespace().last().unwrap_or_default().to_owned();
    serves(name, &target).await?;
    Ok(Running { name, version, target, child })
}

/// A router of others, from the cache or installed.
pub(crate) async fn peer(name: &str, dir: &Path, engine: SocketAddr) -> Result<Running> {
    let Some(peer) = PEERS.iter().find(|peer| peer.name == name) else {
        let known: Vec<&str> = PEERS.iter().map(|peer| peer.name).collect();
        bail!("there is no peer {name}: --peers takes {}", known.join(", "));
    };
    let package = peer.package;
    let site: PathBuf = tokio::task::spawn_blocking(move || pip::site(&package.replace("==", "-"), &[package]))
        .await
        .context("looking for a package")??;
    let (address, metrics) = (free()?, free()?);
    let mut command = Command::new("python3");
    command
        .args(["-c", peer.main, "--host", "127.0.0.1", "--port", &address.port().to_string()])
        .args(["--worker-urls", &format!("http://{engine}"), "--policy", "round_robin", "--log-level", "error"])
        .args(["--prometheus-host", "127.0.0.1", "--prometheus-port", &metrics.port().to_string()])
        .env("PYTHONPATH", site);
    let child = spawn(&mut command, &dir.join(format!("{name}.log")))?;
    let target = Target { address, model: "bench", key: "Bearer none".to_owned() };
    let log = || std::fs::read_to_string(dir.join(format!("{name}.log"))).unwrap_or_default();
    let up = serves(name, &target).await;
    ensure!(up.is_ok(), "{name} does not serve:\n{}", log());
    let version = package.rsplit("==").next().unwrap_or_default().to_owned();
    Ok(Running { name: peer.name, version, target, child })
}
