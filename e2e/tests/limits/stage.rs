//! Gateways and a usage service as processes, and a client of many requests.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};
use spillway_lab::certs::Authority;
use spillway_lab::spillway::{Binaries, CatalogueOptions, write_catalogue};
use spillway_lab::{free_port, wait_for};
use tempfile::TempDir;
use tokio::process::{Child, Command};
use tokio::task::JoinSet;

use crate::engine::Engine;

const BOUND: Duration = Duration::from_secs(30);

/// How many were answered how.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) struct Told {
    pub(crate) served: usize,
    /// With 429, or 503 where a gateway has no lease.
    pub(crate) refused: usize,
    /// Broken off.
    pub(crate) cut: usize,
}

pub(crate) struct Stage {
    gateways: Vec<(Child, SocketAddr)>,
    usage: Option<Child>,
    key: String,
    http: reqwest::Client,
    program: PathBuf,
    /// By which the usage service is called.
    service: Vec<String>,
    /// Where it tells sums.
    reports: Option<SocketAddr>,
    dir: TempDir,
}

const GATEWAYS: &str = "spillway-gateway.spillway-system.svc";
const USAGE: &str = "spillway-usage.spillway-system.svc";

/// Makes what the operator makes in a cluster, and says the arguments by which it is found.
fn write_certificates(dir: &Path) -> Result<impl Fn(&str, &str) -> [String; 3]> {
    let authority = Authority::create("ca")?;
    authority.write(dir)?;
    authority.server("usage", &[], &[USAGE.to_owned()])?.write(dir, "usage")?;
    authority.server("gateway", &[], &[GATEWAYS.to_owned()])?.write(dir, "gateway")?;
    let dir = dir.to_owned();
    Ok(move |name: &str, prefix: &str| {
        let file = |name: String| dir.join(name).display().to_string();
        [
            format!("{prefix}-certificate={}", file(format!("{name}.crt"))),
            format!("{prefix}-key={}", file(format!("{name}.key"))),
            format!("{prefix}-ca={}", file("ca.crt".to_owned())),
        ]
    })
}

fn free() -> Result<SocketAddr> {
    Ok(SocketAddr::from((Ipv4Addr::LOCALHOST, free_port(Ipv4Addr::LOCALHOST)?)))
}

fn spawn(program: &Path, args: &[String], log: &Path) -> Result<Child> {
    let file = std::fs::File::create(log).with_context(|| format!("creating {}", log.display()))?;
    let mut command = Command::new(program);
    command.args(args).stdin(Stdio::null()).stdout(Stdio::null()).stderr(file).kill_on_drop(true);
    command.spawn().with_context(|| format!("starting {}", program.display()))
}

impl Stage {
    /// One gateway, which has the limits for itself.
    pub(crate) async fn alone(engine: &Engine, limits: &str) -> Result<Self> {
        Self::start(engine, limits, 1, false).await
    }

    /// Several that share them.
    pub(crate) async fn shared(engine: &Engine, limits: &str, count: u32) -> Result<Self> {
        Self::start(engine, limits, count, true).await
    }

    async fn start(engine: &Engine, limits: &str, count: u32, shared: bool) -> Result<Self> {
        let binaries = tokio::task::spawn_blocking(Binaries::find).await.context("looking for the binaries")??;
        let dir = TempDir::new().context("a folder")?;
        let http = reqwest::Client::builder().timeout(BOUND).pool_max_idle_per_host(0).build().context("a client")?;
        let (mut usage, mut reported) = (None, None);
        let mut service = Vec::new();
        if shared {
            let (address, reports, admin) = (free()?, free()?, free()?);
            let program = binaries.gateway.with_file_name("spillway-usage");
            let store = dir.path().join("usage.sqlite");
            let tls = write_certificates(dir.path())?;
            let mut args = vec![
                format!("--sqlite={}", store.display()),
                format!("--listen={address}"),
                format!("--reports={reports}"),
                format!("--admin={admin}"),
                format!("--tls-callers={GATEWAYS}"),
            ];
            args.extend(tls("usage", "--tls"));
            reported = Some(reports);
            usage = Some(spawn(&program, &args, &dir.path().join("usage.log"))?);
            wait_for("the usage service to be ready", BOUND, || async {
                Ok(http
                    .get(format!("http://{admin}/readyz"))
                    .send()
                    .await
                    .is_ok_and(|answer| answer.status().is_success()))
            })
            .await?;
            service = vec![format!("--usage=https://{address}"), format!("--usage-tls-name={USAGE}")];
            service.extend(tls("gateway", "--usage-tls"));
        }
        let options = CatalogueOptions {
            endpoint: "chat",
            engine: engine.address,
            key_limits: &format!("{{{limits}}}"),
            tenant_limits: "{}",
        };
        let (key, catalogue) = write_catalogue(&binaries.gateway, dir.path(), options).await?;
        let program = binaries.gateway;
        let mut stage = Self { gateways: Vec::new(), usage, key, http, program, service, reports: reported, dir };
        for number in 0..count {
            let (address, admin) = (free()?, free()?);
            let folder = stage.log(number);
            let mut args = vec![
                format!("--name=gateway-{number}"),
                format!("--catalogue={}", catalogue.display()),
                format!("--log-directory={}", folder.display()),
                format!("--listen={address}"),
                format!("--admin={admin}"),
                "--durability=process".to_owned(),
                "--log-format=text".to_owned(),
            ];
            if shared {
                args.push(format!("--gateways={count}"));
            }
            args.extend(stage.service.iter().cloned());
            let log = stage.dir.path().join(format!("gateway-{number}.log"));
            let child = spawn(&stage.program, &args, &log)?;
            wait_for("a gateway to be ready", BOUND, || async {
                Ok(stage
                    .http
                    .get(format!("http://{admin}/readyz"))
                    .send()
                    .await
                    .is_ok_and(|answer| answer.status().is_success()))
            })
            .await
            .with_context(|| std::fs::read_to_string(&log).unwrap_or_default())?;
            stage.gateways.push((child, address));
        }
        Ok(stage)
    }

    /// The log of a gateway.
    fn log(&self, number: u32) -> PathBuf {
        self.dir.path().join(format!("log-{number}"))
    }

    /// Has the log of a gateway stored; gives the status and what it says of it.
    pub(crate) async fn replay(&self, number: u32) -> Result<(Option<i32>, Value)> {
        let mut command = Command::new(&self.program);
        command.arg("replay").arg(format!("--log-directory={}", self.log(number).display())).args(&self.service);
        let output = command.stdin(Stdio::null()).kill_on_drop(true).output().await.context("running a replay")?;
        Ok((output.status.code(), serde_json::from_slice(&output.stdout).unwrap_or_default()))
    }

    /// Kills all gateways, and leaves their logs.
    pub(crate) async fn kill_gateways(&mut self) -> Result<()> {
        for (child, _) in &mut self.gateways {
            child.kill().await.context("killing a gateway")?;
        }
        self.gateways.clear();
        Ok(())
    }

    /// Requests that are stored.
    pub(crate) async fn stored(&self) -> Result<u64> {
        let reports = self.reports.context("a usage service")?;
        let answer = self.http.get(format!("http://{reports}/v1/usage")).send().await.context("asking for usage")?;
        let answer: Value = answer.json().await.context("usage")?;
        answer["rows"][0]["requests"].as_u64().with_context(|| format!("no requests in {answer}"))
    }

    /// So many requests at once, over all gateways.
    pub(crate) async fn ask(&self, count: usize) -> Result<Told> {
        let told = gather(self.begin(count)).await?;
        anyhow::ensure!(told.cut == 0, "{told:?}");
        Ok(told)
    }

    /// So many requests at once; in the middle of them the last gateway is killed.
    pub(crate) async fn ask_and_kill(&mut self, count: usize) -> Result<Told> {
        let asking = self.begin(count);
        tokio::time::sleep(Duration::from_millis(100)).await;
        let (mut child, _) = self.gateways.pop().context("a gateway")?;
        child.kill().await.context("killing a gateway")?;
        gather(asking).await
    }

    fn begin(&self, count: usize) -> JoinSet<Result<Told>> {
        let body = json!({
            "model": "chat", "max_tokens": 8, "messages": [{"role": "user", "content": "Count to five, please."}],
        });
        let mut asking = JoinSet::new();
        for (_, (_, address)) in (0..count).zip(self.gateways.iter().cycle()) {
            let request = self.http.post(format!("http://{address}/v1/chat/completions")).bearer_auth(&self.key);
            let request = request.json(&body);
            asking.spawn(async move {
                let cut = Told { cut: 1, ..Told::default() };
                let Ok(answer) = request.send().await else { return Ok(cut) };
                let status = answer.status().as_u16();
                let Ok(text) = answer.text().await else { return Ok(cut) };
                match status {
                    200 => Ok(Told { served: 1, ..Told::default() }),
                    429 => Ok(Told { refused: 1, ..Told::default() }),
                    503 if text.contains("limits_unavailable") => Ok(Told { refused: 1, ..Told::default() }),
                    _ => bail!("an answer is {status}: {text}"),
                }
            });
        }
        asking
    }

    /// Ends all that runs.
    pub(crate) async fn stop(mut self) -> Result<()> {
        for (child, _) in &mut self.gateways {
            child.kill().await.context("ending a gateway")?;
        }
        match &mut self.usage {
            Some(usage) => usage.kill().await.context("ending the usage service"),
            None => Ok(()),
        }
    }
}

async fn gather(mut asking: JoinSet<Result<Told>>) -> Result<Told> {
    let mut all = Told::default();
    while let Some(one) = asking.join_next().await {
        let one = one.context("a client")??;
        all.served += one.served;
        all.refused += one.refused;
        all.cut += one.cut;
    }
    Ok(all)
}
