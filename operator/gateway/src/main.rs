//! `spillway-gateway`: the arguments, the logs, the signals and the ports around the library.

use std::io::Write as _;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use axum::{Router, extract::RawQuery, http::StatusCode, routing::get};
use clap::{Args, Parser, Subcommand, ValueEnum};
use spillway_crds::key::{ID_BYTES, KeyId, PresentedKey, SECRET_BYTES, mint};
use spillway_gateway::admission::{Admission, Mode};
use spillway_gateway::catalogue::Catalogue;
use spillway_gateway::fleet::Fleet;
use spillway_gateway::providers::Providers;
use spillway_gateway::proxy::{Gateway, Limits, Parts, Stage};
use spillway_gateway::routing::{BLOCKS_MAX, Cache, Config, Cost, Peers};
use spillway_gateway::ship::UsageService;
use spillway_gateway::telemetry::{self, Otlp, Telemetry};
use spillway_gateway::wal::{self, Durability, Wal};
use spillway_gateway::{cluster, file, kv_cache, leasing, replay, server, ship};
use spillway_tls::{Caller, Files};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tracing_subscriber::EnvFilter;

/// Serves hosted models by an OpenAI-compatible API.
///
/// It watches the endpoints, keys and tenants of a cluster, lets requests in within their limits, sends them to the replicas that the operator has laid
/// out, and writes what they used into its own log.
#[derive(Debug, Parser)]
#[command(name = "spillway-gateway", version, subcommand_negates_reqs = true, after_help = EXAMPLES)]
struct Arguments {
    /// Namespace of the operator, where what is kept of keys is
    #[arg(long, env = "POD_NAMESPACE", default_value = "spillway-system")]
    namespace: String,
    /// Name of this gateway in bills: the pod's
    #[arg(long, env = "POD_NAME", value_name = "NAME", required = true)]
    name: Option<String>,
    /// Serve what this file says, and no cluster: to try it out
    #[arg(long, value_name = "FILE")]
    catalogue: Option<PathBuf>,
    /// Where clients come
    #[arg(long, value_name = "ADDRESS", default_value = "0.0.0.0:8000")]
    listen: SocketAddr,
    /// PEM of the certificate that clients are shown, and of those between it and its CA; read again when it changes. Without it there is no TLS
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    tls_certificate: Option<PathBuf>,
    /// PEM of the certificate's key
    #[arg(long, value_name = "FILE", requires = "tls_certificate")]
    tls_key: Option<PathBuf>,
    /// Address of /metrics, /load, /healthz and /readyz
    #[arg(long, value_name = "ADDRESS", default_value = "0.0.0.0:8080")]
    admin: SocketAddr,
    /// Directory of the log of what is billed, and of nothing else
    #[arg(long, value_name = "PATH", default_value = "/var/lib/spillway-gateway")]
    log_directory: PathBuf,
    /// The most that the log may have, in MiB; when it is full, requests are refused
    #[arg(long, value_name = "MIB", default_value_t = 1024, value_parser = clap::value_parser!(u64).range(1..=1_048_576))]
    log_limit: u64,
    /// What a bill survives before the last piece of its answer goes: `disk` the loss of power, `process` the end of this process
    #[arg(long, value_enum, default_value = "disk")]
    durability: LogDurability,
    /// The usage service, such as https://spillway-usage.spillway-system.svc:8090: what is billed is stored there, and with several gateways limits are kept there
    #[arg(long, env = "SPILLWAY_USAGE", value_name = "URL")]
    usage: Option<hyper::Uri>,
    /// Directory of keys for providers, one file each, such as a mounted Secret; read again when it changes
    #[arg(long, value_name = "PATH")]
    providers: Option<PathBuf>,
    #[command(flatten)]
    usage_tls: UsageTls,
    /// How many gateways there are; with more than one, what others send to an engine is reckoned with
    #[arg(long, value_name = "COUNT", default_value_t = 1)]
    gateways: u32,
    /// Seconds for which requests that run go on after SIGTERM, before they are cut off and billed
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    grace_seconds: u64,
    /// Seconds for which a request waits for a model that starts
    #[arg(long, value_name = "SECONDS", default_value_t = 300, value_parser = clap::value_parser!(u64).range(..=3600))]
    hold_seconds: u64,
    /// Form of the log lines on standard error
    #[arg(long, env = "LOG_FORMAT", value_enum, default_value = "json")]
    log_format: LogFormat,

    #[command(subcommand)]
    command: Option<Command>,
}

/// How the usage service is called by TLS.
#[derive(Args, Debug)]
struct UsageTls {
    /// PEM of the certificate that the usage service is shown, read again when it changes. Without it, it is called without TLS
    #[arg(long, value_name = "FILE", requires_all = ["usage", "usage_tls_key", "usage_tls_ca", "usage_tls_name"])]
    usage_tls_certificate: Option<PathBuf>,
    /// PEM of that certificate's key
    #[arg(long, value_name = "FILE", requires = "usage_tls_certificate")]
    usage_tls_key: Option<PathBuf>,
    /// PEM of the CA that has signed the usage service's certificate
    #[arg(long, value_name = "FILE", requires = "usage_tls_certificate")]
    usage_tls_ca: Option<PathBuf>,
    /// The DNS name in the usage service's certificate, whatever the host of its address is
    #[arg(long, value_name = "NAME", requires = "usage_tls_certificate")]
    usage_tls_name: Option<String>,
}

/// What to do instead of serving.
#[derive(Debug, Subcommand)]
enum Command {
    /// Print a new key, and what a catalogue in a file says of it
    ///
    /// Keys of a cluster are made by ApiKey objects.
    Key,
    /// Have the log of a gateway that is gone stored by the usage service
    ///
    /// For a gateway that was scaled away and left its volume. What was open is billed at its last mark, as its next start would have done. Prints what
    /// was found and done as JSON. Exit status: 0 nothing is left in the log, 3 something is (run it again), 1 the log cannot be opened: it is written by
    /// a gateway, damaged, or not there. To run it twice is safe: each request is stored once.
    Replay(Box<ReplayArguments>),
}

#[derive(Args, Debug)]
struct ReplayArguments {
    /// Directory of the log
    #[arg(long, value_name = "PATH")]
    log_directory: PathBuf,
    /// The usage service, such as http://spillway-usage:8090
    #[arg(long, env = "SPILLWAY_USAGE", value_name = "URL", required_unless_present = "dry_run")]
    usage: Option<hyper::Uri>,
    #[command(flatten)]
    usage_tls: UsageTls,
    /// Only look, and change nothing
    #[arg(long)]
    dry_run: bool,
    /// Seconds for which a usage service that does not answer is asked again
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    patience: u64,
}

/// What a bill survives.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum LogDurability {
    /// The loss of power
    Disk,
    /// The end of this process, but not of its machine
    Process,
}

/// How logs are written.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum LogFormat {
    /// One JSON object a line
    Json,
    /// For people
    Text,
}

/// How long the bills of what was cut off may take at the end,
const BILLING: Duration = Duration::from_secs(20);
/// and what is billed on its way to the usage service.
const SHIPPING: Duration = Duration::from_secs(10);
/// How long the last traces may take, and the last metrics.
const TELLING: Duration = Duration::from_secs(3);
/// How long the last answers about its load may take.
const FAREWELL: Duration = Duration::from_millis(200);

const EXAMPLES: &str = "\
Examples:
  # as the StatefulSet does: name and namespace from the pod, the API server from the pod's service account
  POD_NAME=spillway-gateway-0 POD_NAMESPACE=spillway-system spillway-gateway

  # on a workstation, against the current kubeconfig
  spillway-gateway --name me --listen 127.0.0.1:8000 --admin 127.0.0.1:8001 --log-directory /tmp/gateway --durability process --log-format text

  # without a cluster: a key, and a catalogue that names it and an engine (docs/book/src/serving.md has one)
  spillway-gateway key
  spillway-gateway --name me --catalogue catalogue.yaml --log-directory /tmp/gateway

  # what a gateway that was scaled away has left in its log, and then to have it stored
  spillway-gateway replay --log-directory /log --dry-run
  spillway-gateway replay --log-directory /log --usage http://spillway-usage:8090

RUST_LOG sets what is logged (default: info). OTEL_EXPORTER_OTLP_ENDPOINT names a collector that is told of requests by OTLP
(http/protobuf), and OpenTelemetry's other variables say how.";

#[tokio::main]
async fn main() -> anyhow::Result<ExitCode> {
    let arguments = Arguments::parse();
    if let Some(Command::Key) = arguments.command {
        return print_key().map(|()| ExitCode::SUCCESS);
    }
    let name = arguments.name.clone().unwrap_or_default();
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let log = tracing_subscriber::fmt().with_ansi(false).with_env_filter(filter).with_writer(std::io::stderr);
    match arguments.log_format {
        LogFormat::Json => log.json().init(),
        LogFormat::Text => log.init(),
    }
    if let Some(Command::Replay(asked)) = arguments.command {
        return replay_log(*asked).await;
    }
    let durability = match arguments.durability {
        LogDurability::Disk => Durability::Disk,
        LogDurability::Process => Durability::Process,
    };
    let config = wal::Config::new(&arguments.log_directory, durability, arguments.log_limit << 20);
    let opened = tokio::task::spawn_blocking(move || Wal::open(config)).await.context("opening the log")?;
    let (wal, recovery) =
        opened.with_context(|| format!("opening the log in {}", arguments.log_directory.display()))?;
    let (crashed, torn) = (recovery.crashed.len(), recovery.torn.len());
    tracing::info!(crashed, torn, unshipped = recovery.unacknowledged, "the log is open");

    let tls = match (arguments.tls_certificate.clone(), arguments.tls_key.clone()) {
        (Some(certificate), Some(key)) => {
            let files = Files { certificate, key };
            let tls = spillway_tls::Server::load(files, None).await.context("the certificate for clients")?;
            tokio::spawn(Arc::clone(&tls).follow());
            Some(tls)
        }
        _ => None,
    };
    let source = find_source(&arguments).await?;
    let (publish, catalogue) = watch::channel(Arc::new(Catalogue::default()));
    let (known, is_known) = watch::channel(false);
    let (to_stage, stage) = watch::channel(Stage::Serving);
    let (seed, _) = uuid::Uuid::new_v4().as_u64_pair();
    let blocks = u32::try_from(BLOCKS_MAX).unwrap_or(u32::MAX).saturating_mul(16);
    let shared = arguments.gateways > 1 && arguments.usage.is_some();
    let mode = if shared { Mode::Leased } else { Mode::Local };
    let peers = if arguments.gateways > 1 { Peers::Any } else { Peers::None };
    let limits = Limits { hold: Duration::from_secs(arguments.hold_seconds), ..Limits::default() };
    let roots = tokio::task::spawn_blocking(Providers::system_roots).await.context("reading authorities of TLS")?;
    let providers = Providers::new(arguments.providers.clone(), roots, limits.connect).context("TLS to providers")?;
    tokio::spawn(Arc::clone(&providers).follow());
    let settings = telemetry::Settings::from_env(|name| std::env::var(name).ok()).context("telling a collector")?;
    let otlp =
        settings.as_ref().map(|settings| Otlp::new(settings, &name)).transpose().context("telling a collector")?;
    let telemetry = Telemetry::new(otlp);
    let gateway = Gateway::new(Parts {
        name: name.as_str().into(),
        limits,
        catalogue,
        stage: stage.clone(),
        admission: Arc::new(Admission::new(mode)),
        fleet: Fleet::new(Config { cache: Cache::AtMost(blocks), peers, cost: Cost::default(), seed }),
        providers,
        wal,
        telemetry: Arc::clone(&telemetry),
    });
    tokio::spawn(Arc::clone(&gateway).follow());
    tokio::spawn(kv_cache::read(Arc::clone(&gateway)));
    if let Some(base) = arguments.usage.clone() {
        let caller = find_caller(&base, &arguments.usage_tls).await?;
        let service = UsageService::new(base, caller);
        tokio::spawn(ship::ship(Arc::clone(&gateway), service.clone(), name.as_str().into()));
        if shared {
            // One that starts anew holds nothing: it is another gateway to the service.
            let start = format!("{name}/{}", uuid::Uuid::now_v7());
            tokio::spawn(leasing::lease(Arc::clone(&gateway), service, start.into()));
        }
    }
    let namespace = arguments.namespace.clone();
    let following = tokio::spawn(async move {
        match source {
            Source::Cluster(client) => cluster::follow(client, &namespace, publish, known).await,
            Source::File(catalogue) => {
                publish.send_replace(Arc::new(catalogue));
                known.send_replace(true);
                std::future::pending::<()>().await;
            }
        }
    });
    let admin = tokio::net::TcpListener::bind(arguments.admin)
        .await
        .with_context(|| format!("listening on {}", arguments.admin))?;
    let (to_open, is_open) = watch::channel(false);
    tokio::spawn(serve_admin(admin, Arc::clone(&gateway), is_open, stage.clone()));

    // A gateway that knows no keys would refuse good ones.
    let mut waiting = is_known;
    let mut terminate = signal(SignalKind::terminate()).context("hearing SIGTERM")?;
    tokio::select! {
        known = waiting.wait_for(|known| *known) => { known.context("what is known of the cluster")?; }
        _ = terminate.recv() => return Ok(ExitCode::SUCCESS),
        _ = tokio::signal::ctrl_c() => return Ok(ExitCode::SUCCESS),
    }
    let listener = tokio::net::TcpListener::bind(arguments.listen)
        .await
        .with_context(|| format!("listening on {}", arguments.listen))?;
    to_open.send_replace(true);
    tracing::info!(address = %arguments.listen, tls = tls.is_some(), "serving");
    let serving = tokio::spawn(server::serve(listener, Arc::clone(&gateway), server::Limits::default(), stage, tls));
    tokio::select! {
        _ = terminate.recv() => {}
        _ = tokio::signal::ctrl_c() => {}
        ended = following => ended.context("watching the cluster")?,
    }
    tracing::info!(running = gateway.running(), grace_seconds = arguments.grace_seconds, "asked to end");
    to_stage.send_replace(Stage::Draining);
    let grace = Duration::from_secs(arguments.grace_seconds);
    if !comes(grace, || gateway.running() == 0).await {
        tracing::warn!(running = gateway.running(), "requests are cut off");
    }
    to_stage.send_replace(Stage::Cutting);
    let _ = serving.await;
    if !comes(BILLING, || gateway.running() == 0).await {
        tracing::error!(
            running = gateway.running(),
            "requests could not be billed: the next start does, at their last marks"
        );
    }
    let unstored = || gateway.wal().stats().unacknowledged;
    if arguments.usage.is_some() && !comes(SHIPPING, || unstored() == 0).await {
        tracing::warn!(
            records = unstored(),
            "what is billed is not all stored by the usage service: it stays in the log"
        );
    }
    // The operator hears that nothing runs here any more, and need not wait for who is gone.
    gateway.farewell();
    tokio::time::sleep(FAREWELL).await;
    // It blocks while its requests go by this runtime.
    let _ = tokio::task::spawn_blocking(move || telemetry.end(TELLING)).await;
    tracing::info!("ended");
    Ok(ExitCode::SUCCESS)
}

/// Status of a replay after which something is left.
const LEFT: u8 = 3;

async fn replay_log(asked: ReplayArguments) -> anyhow::Result<ExitCode> {
    let directory = asked.log_directory;
    let failed = || format!("opening the log in {}", directory.display());
    let report = match asked.usage.filter(|_| !asked.dry_run) {
        None => replay::look(&directory).with_context(failed)?,
        Some(base) => {
            let patience = Duration::from_secs(asked.patience);
            let progress =
                |report: &replay::Report| tracing::info!(stored = report.stored, left = report.left, "stored");
            let caller = find_caller(&base, &asked.usage_tls).await?;
            replay::replay(&directory, &UsageService::new(base, caller), patience, progress)
                .await
                .with_context(failed)?
        }
    };
    let text = serde_json::to_string_pretty(&report).context("what was done")?;
    writeln!(std::io::stdout().lock(), "{text}").context("printing what was done")?;
    Ok(if report.is_done() { ExitCode::SUCCESS } else { ExitCode::from(LEFT) })
}

/// Whether something comes true within a time.
async fn comes(within: Duration, is_true: impl Fn() -> bool) -> bool {
    let waiting = async {
        while !is_true() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(within, waiting).await.is_ok()
}

/// How the usage service is called.
async fn find_caller(base: &hyper::Uri, tls: &UsageTls) -> anyhow::Result<Caller> {
    let is_tls = base.scheme() == Some(&hyper::http::uri::Scheme::HTTPS);
    let files = (&tls.usage_tls_certificate, &tls.usage_tls_key, &tls.usage_tls_ca);
    let (Some(certificate), Some(key), Some(authority)) = files else {
        ensure!(!is_tls, "--usage is https: say which certificate it is shown by --usage-tls-certificate");
        tracing::warn!(
            "the usage service is called without TLS: whoever is between can read and change what is billed"
        );
        return Caller::plain().context("calling the usage service");
    };
    ensure!(
        is_tls,
        "--usage is not https, and there is a certificate for it: say https, or leave --usage-tls-certificate out"
    );
    let files = Files { certificate: certificate.clone(), key: key.clone() };
    let identity = spillway_tls::Client::load(files, authority.clone()).await;
    let identity = identity.context("the certificate for the usage service")?;
    tokio::spawn(Arc::clone(&identity).follow());
    let name = tls.usage_tls_name.as_deref().unwrap_or_default();
    Caller::new(identity, name).context("--usage-tls-name")
}

/// Where what is known comes from.
enum Source {
    Cluster(kube::Client),
    File(Catalogue),
}

async fn find_source(arguments: &Arguments) -> anyhow::Result<Source> {
    if let Some(path) = &arguments.catalogue {
        let text = std::fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
        return Ok(Source::File(file::parse(&text).with_context(|| format!("reading {}", path.display()))?));
    }
    let config =
        kube::Config::infer().await.context("finding the API server: is there a kubeconfig, or a service account?")?;
    Ok(Source::Cluster(kube::Client::try_from(config).context("making a client of the API server")?))
}

/// Prints a new key and its entry in a file.
fn print_key() -> anyhow::Result<()> {
    let (mut id, mut secret) = ([0; ID_BYTES], [0; SECRET_BYTES]);
    getrandom::fill(&mut id)
        .and_then(|()| getrandom::fill(&mut secret))
        .context("asking the system for random bytes")?;
    let key = mint(KeyId::new(&id), &secret);
    let presented = PresentedKey::parse(&key).context("a key that was made")?;
    let mut out = std::io::stdout().lock();
    writeln!(
        out,
        "{key}\n\nkeys:\n  - {{id: {}, sha256: {}, tenant: acme, namespace: acme}}",
        presented.id(),
        presented.hash().to_hex()
    )
    .context("printing the key")
}

/// The answer to `/load?after=CALLS`.
async fn load(gateway: &Gateway, query: Option<&str>) -> Result<String, (StatusCode, String)> {
    let after = query.and_then(|query| query.strip_prefix("after=")).unwrap_or("0").parse();
    let after = after.map_err(|_| (StatusCode::BAD_REQUEST, "after is a number of calls: /load?after=0".to_owned()))?;
    let report = gateway.load(after).await;
    serde_json::to_string(&report).map_err(|error| (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))
}

/// `/metrics`, `/load`, `/healthz` and `/readyz`.
async fn serve_admin(
    listener: tokio::net::TcpListener,
    gateway: Arc<Gateway>,
    open: watch::Receiver<bool>,
    stage: watch::Receiver<Stage>,
) {
    let (measured, loaded, asked) = (Arc::clone(&gateway), Arc::clone(&gateway), gateway);
    let app = Router::new()
        .route("/metrics", get(move || async move { measured.metrics() }))
        .route("/load", get(move |RawQuery(query): RawQuery| async move { load(&loaded, query.as_deref()).await }))
        .route("/healthz", get(|| async { "ok" }))
        .route(
            "/readyz",
            get(move || async move {
                let unready = |why| (StatusCode::SERVICE_UNAVAILABLE, why);
                if !*open.borrow() {
                    unready("the API server has not been reached yet")
                } else if *stage.borrow() != Stage::Serving {
                    unready("it ends")
                } else if asked.wal().stats().failing.is_some() {
                    unready("the log cannot be written")
                } else {
                    (StatusCode::OK, "ok")
                }
            }),
        );
    if let Err(error) = axum::serve(listener, app).await {
        tracing::error!(%error, "the admin port failed");
    }
}
