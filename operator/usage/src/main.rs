//! `spillway-usage`: the arguments, the logs, the signals and the ports around the library.

use std::io::Write as _;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, bail};
use clap::{Args, Parser, Subcommand, ValueEnum};
use spillway_usage::leases::Config;
use spillway_usage::server::{Service, admin, api, listen, serve_until};
use spillway_usage::store::{DAY_MS, Migration, Place, Store, Summary};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tracing_subscriber::EnvFilter;

/// How often the store is asked whether it is there.
const PROBE: Duration = Duration::from_secs(5);
/// How often old days are forgotten.
const FORGET: Duration = Duration::from_secs(3_600);
/// How long those who are being answered have after SIGTERM.
const GRACE: Duration = Duration::from_secs(20);

/// Stores what requests of hosted models used and the GPU time of bookings that ended, sums it, and leases limits to gateways.
///
/// The store is one SQLite file, or a PostgreSQL database. It is migrated when the service starts.
#[derive(Debug, Parser)]
#[command(name = "spillway-usage", version, after_help = EXAMPLES)]
struct Arguments {
    #[command(flatten)]
    place: PlaceArguments,
    /// Where gateways and the CLI come
    #[arg(long, value_name = "ADDRESS", default_value = "0.0.0.0:8000")]
    listen: SocketAddr,
    /// Address of /metrics, /healthz and /readyz
    #[arg(long, value_name = "ADDRESS", default_value = "0.0.0.0:8080")]
    admin: SocketAddr,
    /// Days for which records are kept; without it, for ever
    #[arg(long, value_name = "DAYS", value_parser = clap::value_parser!(u32).range(1..=36_500))]
    retention_days: Option<u32>,
    /// Form of the log lines on standard error
    #[arg(long, env = "LOG_FORMAT", value_enum, default_value = "json", global = true)]
    log_format: LogFormat,

    #[command(subcommand)]
    command: Option<Command>,
}

/// Where the store is.
#[derive(Args)]
struct PlaceArguments {
    /// The file of records, which is made where there is none
    #[arg(long, value_name = "PATH", global = true, conflicts_with = "postgres")]
    sqlite: Option<PathBuf>,
    /// The database of records, as postgres://user:password@host:5432/database; better by the environment, which nobody else sees
    #[arg(long, value_name = "URL", global = true, env = "SPILLWAY_USAGE_POSTGRES", hide_env_values = true)]
    postgres: Option<String>,
}

impl std::fmt::Debug for PlaceArguments {
    /// Without the URL: it has a password in it.
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("PlaceArguments").field("sqlite", &self.sqlite).finish_non_exhaustive()
    }
}

impl PlaceArguments {
    fn place(&self) -> anyhow::Result<Place> {
        match (&self.sqlite, &self.postgres) {
            (Some(path), None) => Ok(Place::Sqlite(path.clone())),
            (None, Some(url)) => Ok(Place::Postgres(url.clone())),
            (None, None) => bail!("where is the store? Say --sqlite PATH, or set SPILLWAY_USAGE_POSTGRES"),
            (Some(_), Some(_)) => {
                bail!("--sqlite and --postgres (or SPILLWAY_USAGE_POSTGRES) are both set: choose one")
            }
        }
    }
}

/// What to do instead of serving.
#[derive(Debug, Subcommand)]
enum Command {
    /// Make the store, or bring it to this version, and end
    Migrate,
    /// Write a copy of an SQLite store, while it is used on
    Backup {
        /// The file to write; it is replaced when the copy is whole
        #[arg(long, value_name = "PATH")]
        to: PathBuf,
    },
    /// Open the store, look for damage, and count what is in it
    Check,
}

/// How logs are written.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum LogFormat {
    /// One JSON object a line
    Json,
    /// For people
    Text,
}

const EXAMPLES: &str = "\
Examples:
  # one service, and its records in a file on its own volume
  spillway-usage --sqlite /var/lib/spillway-usage/usage.db

  # records in PostgreSQL, kept for 400 days
  SPILLWAY_USAGE_POSTGRES=postgres://usage:secret@db:5432/usage spillway-usage --retention-days 400

  # a copy for elsewhere, and whether it is whole
  spillway-usage backup --sqlite /var/lib/spillway-usage/usage.db --to /backup/usage.db
  spillway-usage check --sqlite /backup/usage.db

  # what acme used of each model
  curl 'http://127.0.0.1:8000/v1/usage?tenant=acme&by=model,day'

RUST_LOG sets what is logged (default: info).";

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let log = tracing_subscriber::fmt().with_ansi(false).with_env_filter(filter).with_writer(std::io::stderr);
    match arguments.log_format {
        LogFormat::Json => log.json().init(),
        LogFormat::Text => log.init(),
    }
    let place = arguments.place.place()?;
    let open = |migration| async move { Store::open(&place, migration).await.context("opening the store") };
    match &arguments.command {
        None => serve(&arguments, open(Migration::Apply).await?).await,
        Some(Command::Migrate) => say(&open(Migration::Apply).await?.check().await?),
        Some(Command::Check) => say(&open(Migration::Refuse).await?.check().await?),
        Some(Command::Backup { to }) => open(Migration::Refuse)
            .await?
            .backup(to.clone())
            .await
            .with_context(|| format!("backing up to {}", to.display())),
    }
}

/// Prints what a store has.
fn say(summary: &Summary) -> anyhow::Result<()> {
    let time = |at_ms: Option<i64>| at_ms.map_or_else(|| "-".to_owned(), |at_ms| at_ms.to_string());
    let (first, last) = (time(summary.first_ms), time(summary.last_ms));
    let mut out = std::io::stdout().lock();
    let Summary { version, records, segments, .. } = summary;
    writeln!(
        out,
        "schema version {version}, {records} records, from {first} to {last} ms; {segments} segments of bookings"
    )
    .context("printing")
}

async fn serve(arguments: &Arguments, store: Store) -> anyhow::Result<()> {
    let service = Service::new(store, Config::default());
    let mut terminate = signal(SignalKind::terminate()).context("hearing SIGTERM")?;
    let (to_end, end) = watch::channel(false);
    let ended = |mut end: watch::Receiver<bool>| async move {
        let _ = end.wait_for(|end| *end).await;
    };
    let to_listen = |address| async move { listen(address).await.with_context(|| format!("listening on {address}")) };
    let (admin_listener, listener) = (to_listen(arguments.admin).await?, to_listen(arguments.listen).await?);
    let addresses = (listener.local_addr()?, admin_listener.local_addr()?);
    tokio::spawn(serve_until(admin_listener, admin(Arc::clone(&service)), std::future::pending()));
    let mut serving = tokio::spawn(serve_until(listener, api(Arc::clone(&service)), ended(end)));
    tokio::spawn(watch_store(Arc::clone(&service)));
    if let Some(days) = arguments.retention_days {
        tokio::spawn(forget(Arc::clone(&service), days));
    }
    tracing::info!(address = %addresses.0, admin = %addresses.1, "serving");
    tokio::select! {
        _ = terminate.recv() => {}
        _ = tokio::signal::ctrl_c() => {}
        ended = &mut serving => return ended.context("serving")?.context("serving"),
    }
    tracing::info!("asked to end");
    to_end.send_replace(true);
    match tokio::time::timeout(GRACE, serving).await {
        Ok(ended) => ended.context("serving")?.context("serving")?,
        Err(_) => tracing::warn!("connections are cut off"),
    }
    tracing::info!("ended");
    Ok(())
}

async fn watch_store(service: Arc<Service>) {
    let mut ticks = tokio::time::interval(PROBE);
    loop {
        ticks.tick().await;
        if let Err(error) = service.probe().await {
            tracing::warn!(error, "the store cannot be reached");
        }
        service.tidy();
    }
}

async fn forget(service: Arc<Service>, days: u32) {
    let mut ticks = tokio::time::interval(FORGET);
    loop {
        ticks.tick().await;
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let now_ms = i64::try_from(since.as_millis()).unwrap_or(i64::MAX);
        match service.store().forget_before(now_ms.saturating_sub(i64::from(days).saturating_mul(DAY_MS))).await {
            Ok(forgotten) if forgotten.days > 0 => {
                tracing::info!(days = forgotten.days, records = forgotten.records, "old days are forgotten");
            }
            Ok(_) => {}
            Err(error) => tracing::error!(%error, "old days could not be forgotten"),
        }
    }
}
