//! `spillway-usage`: the arguments, the logs, the signals and the ports around the library.

use std::io::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, bail};
use clap::{Args, Parser, Subcommand, ValueEnum};
use spillway_metering::shipping::Receipt;
use spillway_tls::{Caller, Client, Files, Peers, Server};
use spillway_usage::forward::Forward;
use spillway_usage::holder;
use spillway_usage::leases::Config;
use spillway_usage::server::{Front, Service, admin, posts, reports};
use spillway_usage::socket::{listen, serve_until};
use spillway_usage::store::{DAY_MS, Imported, Migration, Place, Sqlite, Store, Summary};
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
    /// Where gateways post records and ask for leases
    #[arg(long, value_name = "ADDRESS", default_value = "0.0.0.0:8000")]
    listen: SocketAddr,
    #[command(flatten)]
    tls: TlsArguments,
    /// Address of this pod, by which other replicas of the same PostgreSQL reach the port of --listen: one of them leases limits, the others ask it
    #[arg(long, value_name = "IP", env = "POD_IP")]
    advertise: Option<IpAddr>,
    /// Where sums are read, without TLS: it only answers GET. Whoever may reach it may read all
    #[arg(long, value_name = "ADDRESS", default_value = "0.0.0.0:8001")]
    reports: SocketAddr,
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

/// Who is let in to post.
#[derive(Args, Debug)]
struct TlsArguments {
    /// PEM of the certificate that gateways are shown, read again when it changes. Without it there is no TLS, and whoever reaches the port may post
    #[arg(long, value_name = "FILE", requires_all = ["tls_key", "tls_ca", "tls_callers"])]
    tls_certificate: Option<PathBuf>,
    /// PEM of the certificate's key
    #[arg(long, value_name = "FILE", requires = "tls_certificate")]
    tls_key: Option<PathBuf>,
    /// PEM of the CA that signs the certificates of those who may post
    #[arg(long, value_name = "FILE", requires = "tls_certificate")]
    tls_ca: Option<PathBuf>,
    /// DNS names of which one must be in the certificate of whoever posts
    #[arg(long, value_name = "NAMES", value_delimiter = ',', requires = "tls_certificate")]
    tls_callers: Vec<String>,
    /// The DNS name in the certificates of this service's replicas, which call each other
    #[arg(long, value_name = "NAME", requires = "tls_certificate")]
    tls_name: Option<String>,
}

impl TlsArguments {
    async fn load(&self) -> anyhow::Result<Option<Arc<Server>>> {
        let (Some(certificate), Some(key), Some(authority)) = (&self.tls_certificate, &self.tls_key, &self.tls_ca)
        else {
            tracing::warn!("there is no TLS: whoever reaches the port may post records, which bills are made of");
            return Ok(None);
        };
        let files = Files { certificate: certificate.clone(), key: key.clone() };
        let callers = Peers { authority: authority.clone(), names: self.tls_callers.clone() };
        let tls = Server::load(files, Some(callers)).await.context("the certificate for gateways")?;
        tokio::spawn(Arc::clone(&tls).follow());
        Ok(Some(tls))
    }
}

/// Where the store is.
#[derive(Args)]
struct PlaceArguments {
    /// The file of records, which is made where there is none
    #[arg(long, value_name = "PATH", global = true, conflicts_with = "postgres")]
    sqlite: Option<PathBuf>,
    /// The database of records, as postgres://user:password@host:5432/database; better by the environment, which nobody else sees. It is reached by TLS
    /// and must show a certificate for its host (sslmode=verify-full), unless the URL ends with ?sslmode=disable
    #[arg(long, value_name = "URL", global = true, env = "SPILLWAY_USAGE_POSTGRES", hide_env_values = true)]
    postgres: Option<String>,
    /// PEM of the CAs by which the database's certificate is checked; without it, those of the system
    #[arg(long, value_name = "FILE", global = true)]
    postgres_ca: Option<PathBuf>,
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
            (None, Some(url)) => Ok(Place::Postgres { url: url.clone(), authority: self.postgres_ca.clone() }),
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
    /// Store what an SQLite store has and this one has not: to move to PostgreSQL, or to bring back what an older store had. Again is safe
    Import {
        /// The file of the other store, which no service uses meanwhile
        #[arg(long, value_name = "PATH")]
        from: PathBuf,
        /// Forget what the other store has forgotten, also where it is here still
        #[arg(long)]
        forget: bool,
    },
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

  # from a file to a database, while no service uses the file
  SPILLWAY_USAGE_POSTGRES=postgres://usage:secret@db:5432/usage spillway-usage import --from /backup/usage.db

  # what acme used of each model
  curl 'http://127.0.0.1:8001/v1/usage?tenant=acme&by=model,day'

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
    let open = async |migration| Store::open(&place, migration).await.context("opening the store");
    match &arguments.command {
        None => serve(&arguments, &place).await,
        Some(Command::Migrate) => say(&open(Migration::Apply).await?.check().await?),
        Some(Command::Check) => say(&open(Migration::Refuse).await?.check().await?),
        Some(Command::Import { from, forget }) => {
            let other = Sqlite::open(from, Migration::Refuse).await;
            let other = other.with_context(|| format!("opening {}", from.display()))?;
            say_imported(&open(Migration::Apply).await?.import(&other, *forget).await.context("importing")?)
        }
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

/// Prints what became of another store's.
fn say_imported(imported: &Imported) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    for (what, receipt) in [("records", imported.records), ("segments of bookings", imported.segments)] {
        let Receipt { stored, known, differing, forgotten } = receipt;
        writeln!(
            out,
            "{what}: {stored} stored, {known} were there, {differing} differ from what is there, which stands, {forgotten} of days that are forgotten"
        )
        .context("printing")?;
    }
    if imported.unreadable > 0 {
        bail!("{} of the other store cannot be read and were left out: the log above names them", imported.unreadable);
    }
    Ok(())
}

async fn serve(arguments: &Arguments, place: &Place) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("hearing SIGTERM")?;
    let (to_end, end) = watch::channel(false);
    let ended = |mut end: watch::Receiver<bool>| async move {
        let _ = end.wait_for(|end| *end).await;
    };
    let to_listen = |address| async move { listen(address).await.with_context(|| format!("listening on {address}")) };
    let tls = arguments.tls.load().await?;
    let (front, admin_listener) = (Arc::new(Front::default()), to_listen(arguments.admin).await?);
    let admin_address = admin_listener.local_addr()?;
    tokio::spawn(serve_until(admin_listener, admin(Arc::clone(&front)), None, std::future::pending()));
    let store = tokio::select! {
        store = open_store(place, &front) => store?,
        _ = terminate.recv() => return Ok(()),
        _ = tokio::signal::ctrl_c() => return Ok(()),
    };
    let (listener, report_listener) = (to_listen(arguments.listen).await?, to_listen(arguments.reports).await?);
    let addresses = (listener.local_addr()?, report_listener.local_addr()?, admin_address);
    let is_tls = tls.is_some();
    let service = match &store {
        Store::Sqlite(_) => Service::new(store, Config::default()),
        Store::Postgres(_) => {
            let forward = find_forward(arguments, addresses.0.port()).await?;
            Service::one_of_several(store, Config::default(), holder::Config::default(), forward)
        }
    };
    let leading = tokio::spawn(Arc::clone(&service).lead(holder::Config::default()));
    front.open(Arc::clone(&service));
    let posting = serve_until(listener, posts(Arc::clone(&service)), tls, ended(end.clone()));
    let reporting = serve_until(report_listener, reports(Arc::clone(&service)), None, ended(end));
    let serving = tokio::spawn(async move { tokio::join!(posting, reporting) });
    tokio::spawn(watch_store(Arc::clone(&service)));
    if let Some(days) = arguments.retention_days {
        tokio::spawn(forget(Arc::clone(&service), days));
    }
    tracing::info!(address = %addresses.0, tls = is_tls, reports = %addresses.1, admin = %addresses.2, "serving");
    tokio::select! {
        _ = terminate.recv() => {}
        _ = tokio::signal::ctrl_c() => {}
    }
    tracing::info!("asked to end");
    // Or it would take up again what it gives back.
    leading.abort();
    if let Err(error) = service.leave().await {
        tracing::warn!(%error, "another one leases limits only when this one's term is over");
    }
    to_end.send_replace(true);
    match tokio::time::timeout(GRACE, serving).await {
        Ok(ended) => drop(ended.context("serving")?),
        Err(_) => tracing::warn!("connections are cut off"),
    }
    tracing::info!("ended");
    Ok(())
}

/// Opens the store, as soon as it can be reached.
async fn open_store(place: &Place, front: &Front) -> anyhow::Result<Store> {
    loop {
        match Store::open(place, Migration::Apply).await {
            Err(error) if error.may_pass() => {
                tracing::warn!(%error, "the store is not open yet, and nobody is served; it is tried again");
                front.misses(error.to_string());
                tokio::time::sleep(PROBE).await;
            }
            opened => return opened.context("opening the store"),
        }
    }
}

/// How the replica that leases limits is asked.
async fn find_forward(arguments: &Arguments, port: u16) -> anyhow::Result<Option<Forward>> {
    let Some(ip) = arguments.advertise else { return Ok(None) };
    let address = SocketAddr::new(ip, port);
    let tls = &arguments.tls;
    let (Some(certificate), Some(key), Some(authority)) = (&tls.tls_certificate, &tls.tls_key, &tls.tls_ca) else {
        let caller = Caller::plain().context("calling other replicas")?;
        return Ok(Some(Forward { caller, address: format!("http://{address}") }));
    };
    let name = tls
        .tls_name
        .as_deref()
        .context("--advertise with TLS: say by --tls-name what certificates of replicas are for")?;
    let files = Files { certificate: certificate.clone(), key: key.clone() };
    let identity = Client::load(files, authority.clone()).await.context("the certificate for other replicas")?;
    tokio::spawn(Arc::clone(&identity).follow());
    let caller = Caller::new(identity, name).context("--tls-name")?;
    Ok(Some(Forward { caller, address: format!("https://{address}") }))
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
