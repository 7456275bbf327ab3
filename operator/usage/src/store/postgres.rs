//! Records in PostgreSQL, for services that several replicas of run. A connection that is lost is made anew, with growing pauses, and what was asked
//! of it is asked again: also a batch of which nobody knows whether it was stored, for its ids make that harmless.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::{Deref, DerefMut};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use spillway_metering::shipping::{GpuUsage, Receipt, SegmentReceipt};
use spillway_metering::tokens::{RequestId, UsageRecord};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_postgres::error::SqlState;
use tokio_postgres::tls::TlsStream;
use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, Config, Connection, GenericClient, IsolationLevel, NoTls, Row, Socket, Transaction};

use super::batch::Batch;
use super::flat::{COLUMNS, Flat, outcome_text, signed};
use super::gpu::{self, FlatSegment, Held, SegmentBatch, SegmentId};
use super::query::{Bound, Dialect, GroupValue, Query};
use super::security::{self, Trust};
use super::{
    DATED, DAY_MS, Dated, Error, FORGET_AT_ONCE, Filter, Forgotten, GpuFilter, GpuGroup, Group, GroupKey, Migration,
    Summary, Usage, day_of, day_start_ms,
};

/// The version of the schema that this program knows. Stores of older ones are migrated, of newer ones refused.
const SCHEMA_VERSION: i32 = 4;
/// Connections of one service that write at once, and that look at many rows: however long these take, batches have their places. There are two more at most,
/// of [`Postgres::once`].
const WRITERS: usize = 8;
const READERS: usize = 4;
/// Connections that are kept.
const IDLE: usize = 8;
/// How long a connection may take to be made.
const CONNECT: Duration = Duration::from_secs(5);
/// How long what is tried once may take.
const ONCE: Duration = Duration::from_secs(3);
/// How long one try of a batch may take.
const WRITE: Duration = Duration::from_secs(15);
/// How long one try of anything that looks at many rows may take.
const LONG: Duration = Duration::from_secs(120);
/// For how long it is tried again.
const PATIENCE: Duration = Duration::from_secs(20);
/// The pause before the second try; each one after it is twice as long, up to [`PAUSE_MAX`].
const PAUSE: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_secs(2);
/// The lock of who migrates: any number, but this one for ever.
const MIGRATION_LOCK: i64 = 0x5350_494c_4c57_4159;

/// The statements that lead from version `n` to `n + 1`. What is here once is never changed: stores have it. Names are compared byte by byte, so
/// that indexes hold whatever becomes of the system's locales.
const MIGRATIONS: [&str; 4] = [
    r#"
    CREATE TABLE records (
        id BYTEA PRIMARY KEY CHECK (octet_length(id) = 16),
        tenant TEXT COLLATE "C" NOT NULL, namespace TEXT COLLATE "C" NOT NULL, endpoint TEXT COLLATE "C" NOT NULL,
        model TEXT COLLATE "C" NOT NULL, version TEXT COLLATE "C" NOT NULL, key_id TEXT COLLATE "C" NOT NULL,
        gateway TEXT COLLATE "C" NOT NULL, replica TEXT COLLATE "C" NOT NULL,
        started_ms BIGINT NOT NULL, ended_ms BIGINT NOT NULL, day BIGINT NOT NULL, stream BOOLEAN NOT NULL,
        prompt BIGINT NOT NULL, cached BIGINT NOT NULL, completion BIGINT NOT NULL,
        outcome TEXT COLLATE "C" NOT NULL, adjusted BIGINT NOT NULL
    );
    CREATE INDEX records_ended ON records (ended_ms);
    CREATE INDEX records_tenant_ended ON records (tenant, ended_ms);
    -- One row at most: records of days before it are gone.
    CREATE TABLE forgotten (only_row BOOLEAN PRIMARY KEY CHECK (only_row), before_day BIGINT NOT NULL);
"#,
    // Who of several services leases limits: one row, always.
    r#"
    CREATE TABLE seat (
        only_row BOOLEAN PRIMARY KEY CHECK (only_row), holder TEXT COLLATE "C" NOT NULL, address TEXT NOT NULL, beat BIGINT NOT NULL
    );
    INSERT INTO seat (only_row, holder, address, beat) VALUES (true, '', '', 0);
"#,
    r#"
    CREATE TABLE segments (
        booking TEXT COLLATE "C" NOT NULL, number BIGINT NOT NULL, archive TEXT COLLATE "C" NOT NULL, place BIGINT NOT NULL,
        node TEXT COLLATE "C" NOT NULL, tenant TEXT COLLATE "C" NOT NULL, namespace TEXT COLLATE "C" NOT NULL,
        reservation TEXT COLLATE "C" NOT NULL, pool TEXT COLLATE "C" NOT NULL, sku TEXT COLLATE "C" NOT NULL,
        tier TEXT COLLATE "C" NOT NULL, devices BIGINT NOT NULL, from_ms BIGINT NOT NULL, to_ms BIGINT NOT NULL,
        PRIMARY KEY (booking, number)
    );
    CREATE INDEX segments_ended ON segments (to_ms);
    CREATE INDEX segments_tenant_ended ON segments (tenant, to_ms);
"#,
    r#"
    CREATE TABLE archives (id TEXT COLLATE "C" PRIMARY KEY, bookings BIGINT NOT NULL, lost_before_ms BIGINT, lost_below BIGINT);
"#,
];

/// A store in a database.
#[derive(Clone)]
pub struct Postgres {
    config: Arc<Config>,
    trust: Trust,
    /// Connections that nobody uses.
    idle: Arc<Mutex<Vec<Link>>>,
    writers: Arc<Semaphore>,
    readers: Arc<Semaphore>,
}

/// A connection. It is closed at once when this is dropped, also while it waits for an answer: the server, which looks for that, then ends what it does.
struct Link {
    client: Client,
    _connection: JoinSet<()>,
}

impl Deref for Link {
    type Target = Client;

    fn deref(&self) -> &Client {
        &self.client
    }
}

impl DerefMut for Link {
    fn deref_mut(&mut self) -> &mut Client {
        &mut self.client
    }
}

/// Does a step with a connection, again and again while it may help. A connection that a step failed on, or that nobody waits for any more, is not
/// used again: what state it is in is not known.
macro_rules! retry {
    ($store:ident.$places:ident, $action:literal, $limit:expr, |$client:ident| $step:expr) => {{
        let _place = $store.$places.acquire().await.map_err(|_| Error::Closed)?;
        let mut pause = Pause::new();
        loop {
            let attempt = async {
                let mut $client = $store.take().await?;
                let done = $step.await?;
                $store.give($client);
                Ok(done)
            };
            let outcome = match tokio::time::timeout($limit, attempt).await {
                Ok(outcome) => outcome,
                Err(_) => Err(Error::Slow { action: $action, seconds: $limit.as_secs() }),
            };
            match outcome {
                Err(error) if is_transient(&error) => pause.wait(error).await?,
                outcome => break outcome,
            }
        }
    }};
}

impl Postgres {
    /// Opens the database of a URL. Its certificate must be of a CA in `authority`, or of one of the system's.
    ///
    /// # Errors
    ///
    /// [`Error::Url`], [`Error::SslMode`], [`Error::Newer`], [`Error::Older`], or why it cannot be reached in 20 seconds.
    pub async fn open(url: &str, authority: Option<PathBuf>, migration: Migration) -> Result<Self, Error> {
        let (mut config, trust) = security::parse(url, authority)?;
        config.connect_timeout(CONNECT).application_name("spillway-usage");
        config.keepalives_idle(Duration::from_secs(10)).tcp_user_timeout(Duration::from_secs(20));
        let store = Self {
            config: Arc::new(config),
            trust,
            idle: Arc::new(Mutex::new(Vec::new())),
            writers: Arc::new(Semaphore::new(WRITERS)),
            readers: Arc::new(Semaphore::new(READERS)),
        };
        retry!(store.writers, "migrating the schema", LONG, |client| migrate(&mut client, migration))?;
        Ok(store)
    }

    pub(super) async fn put(&self, batch: &Batch) -> Result<(Receipt, Vec<RequestId>), Error> {
        retry!(self.writers, "storing records", WRITE, |client| put(&mut client, batch))
    }

    pub(super) async fn put_segments(&self, batch: &SegmentBatch) -> Result<(SegmentReceipt, Vec<SegmentId>), Error> {
        retry!(self.writers, "storing segments", WRITE, |client| put_segments(&mut client, batch))
    }

    pub(super) async fn has_before(&self, before_ms: i64) -> Result<bool, Error> {
        retry!(self.readers, "looking for what is older", LONG, |client| has_before(&mut client, before_ms))
    }

    pub(super) async fn adopt(&self, archive: &str, other: Held) -> Result<(), Error> {
        retry!(self.writers, "noting how far an archive is stored", WRITE, |client| adopt(&mut client, archive, other))
    }

    pub(super) async fn gpu_usage(&self, filter: &GpuFilter, groups: &[GpuGroup]) -> Result<GpuUsage, Error> {
        retry!(self.readers, "summing GPU time", LONG, |client| gpu_usage(&mut client, filter, groups))
    }

    pub(super) async fn usage(&self, filter: &Filter, groups: &[Group]) -> Result<Vec<Usage>, Error> {
        retry!(self.readers, "summing usage", LONG, |client| usage(&mut client, filter, groups))
    }

    pub(super) async fn records(
        &self,
        filter: &Filter,
        after: Option<RequestId>,
        limit: u32,
    ) -> Result<Vec<UsageRecord>, Error> {
        retry!(self.readers, "reading records", LONG, |client| records(&mut client, filter, after, limit))
    }

    pub(super) async fn forget_before(&self, day: i64) -> Result<Forgotten, Error> {
        retry!(self.writers, "remembering what is forgotten", WRITE, |client| remember_forgotten(&mut client, day))?;
        let (mut forgotten, mut days) = (Forgotten::default(), BTreeSet::new());
        for table in DATED {
            while let Some((first, records)) =
                retry!(self.writers, "forgetting old days", LONG, |client| forget_some(&mut client, &table, day))?
            {
                days.insert(first);
                forgotten.records = forgotten.records.saturating_add(records);
            }
        }
        forgotten.days = u64::try_from(days.len()).unwrap_or(u64::MAX);
        Ok(forgotten)
    }

    pub(super) async fn ping(&self) -> Result<(), Error> {
        let asking = async |client: &Client| client.simple_query("SELECT 1").await.map(drop);
        self.once("asking for nothing", asking).await
    }

    /// One try: who asks wants to know how it is now.
    pub(super) async fn once<Done>(
        &self,
        action: &'static str,
        step: impl AsyncFnOnce(&Client) -> Result<Done, tokio_postgres::Error>,
    ) -> Result<Done, Error> {
        let attempt = async {
            let client = self.take().await?;
            let done = step(&client).await.map_err(sql(action))?;
            self.give(client);
            Ok(done)
        };
        let slow = Error::Slow { action, seconds: ONCE.as_secs() };
        tokio::time::timeout(ONCE, attempt).await.unwrap_or(Err(slow))
    }

    pub(super) async fn check(&self) -> Result<Summary, Error> {
        retry!(self.readers, "counting records", LONG, |client| check(&mut client))
    }

    async fn take(&self) -> Result<Link, Error> {
        loop {
            let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
            match idle {
                Some(client) if client.is_closed() => {}
                Some(client) => return Ok(client),
                None => return self.connect().await,
            }
        }
    }

    fn give(&self, client: Link) {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() < IDLE {
            idle.push(client);
        }
    }

    async fn connect(&self) -> Result<Link, Error> {
        let slow = Error::Slow { action: "connecting to PostgreSQL", seconds: CONNECT.as_secs() };
        let connecting = async {
            match self.trust.connector().await? {
                None => self.config.connect(NoTls).await.map(follow).map_err(sql("connecting to PostgreSQL")),
                Some(tls) => {
                    self.config.connect(tls).await.map(follow).map_err(|source| match security::remedy(&source) {
                        Some(remedy) => Error::Tls { source, remedy },
                        None => sql("connecting to PostgreSQL")(source),
                    })
                }
            }
        };
        let client = tokio::time::timeout(CONNECT, connecting).await.map_err(|_| slow)??;
        // What is answered is durable, whatever the server's default is; a stronger one stays. A step that we gave up on ends there, too: soon where the
        // server can look for its client (from version 14 on, on Linux), or else after a while.
        let settings = "SELECT set_config('synchronous_commit', 'on', false) WHERE current_setting('synchronous_commit') = 'off'; \
             SET statement_timeout = '120s'; SET idle_in_transaction_session_timeout = '120s'; SET lock_timeout = '10s'";
        client.batch_execute(settings).await.map_err(sql("connecting to PostgreSQL"))?;
        if let Err(error) = client.batch_execute("SET client_connection_check_interval = '2s'").await {
            tracing::debug!(%error, "the server does not look for its client");
        }
        Ok(client)
    }
}

/// Lets a connection do its work, until its client is gone.
fn follow<Stream>((client, connection): (Client, Connection<Socket, Stream>)) -> Link
where
    Stream: TlsStream + Unpin + Send + 'static,
{
    let mut following = JoinSet::new();
    following.spawn(async move {
        if let Err(error) = connection.await {
            tracing::info!(%error, "a connection to PostgreSQL ended");
        }
    });
    Link { client, _connection: following }
}

/// Pauses that grow, until patience ends.
struct Pause {
    until: Instant,
    next: Duration,
}

impl Pause {
    fn new() -> Self {
        Self { until: Instant::now() + PATIENCE, next: PAUSE }
    }

    /// Waits; or gives the error back, if it has been waited for long enough.
    async fn wait(&mut self, error: Error) -> Result<(), Error> {
        if Instant::now() + self.next > self.until {
            return Err(error);
        }
        tracing::info!(%error, "PostgreSQL is tried again");
        tokio::time::sleep(self.next).await;
        self.next = self.next.saturating_mul(2).min(PAUSE_MAX);
        Ok(())
    }
}

/// Whether another try, perhaps with another connection, may end otherwise.
fn is_transient(error: &Error) -> bool {
    let source = match error {
        Error::Slow { .. } => return true,
        Error::Postgres { source, .. } => source,
        _ => return false,
    };
    let Some(code) = source.code() else {
        // Of the connection, and not of what was sent or read.
        return source.is_closed()
            || std::error::Error::source(source).is_some_and(|source| source.is::<std::io::Error>());
    };
    let lost = ["08", "53", "57P"].iter().any(|class| code.code().starts_with(class));
    let conflict = [SqlState::T_R_SERIALIZATION_FAILURE, SqlState::T_R_DEADLOCK_DETECTED, SqlState::LOCK_NOT_AVAILABLE];
    // After a failover: the connection is to one that only reads now.
    lost || conflict.contains(code) || *code == SqlState::READ_ONLY_SQL_TRANSACTION
}

fn sql(action: &'static str) -> impl Fn(tokio_postgres::Error) -> Error {
    move |source| match source.code() {
        Some(code) if *code == SqlState::NUMERIC_VALUE_OUT_OF_RANGE => Error::Overflow,
        _ => Error::Postgres { action, source },
    }
}

async fn migrate(client: &mut Client, migration: Migration) -> Result<(), Error> {
    let failed = sql("migrating the schema");
    let transaction = client.transaction().await.map_err(&failed)?;
    // Two services that start at once migrate one after the other.
    transaction.execute("SELECT pg_advisory_xact_lock($1)", &[&MIGRATION_LOCK]).await.map_err(&failed)?;
    let has = "SELECT to_regclass('schema_version') IS NOT NULL";
    let has: bool = transaction.query_one(has, &[]).await.and_then(|row| row.try_get(0)).map_err(&failed)?;
    let mut found = 0;
    if has {
        let version = "SELECT coalesce(max(version), 0) FROM schema_version";
        found = transaction.query_one(version, &[]).await.and_then(|row| row.try_get(0)).map_err(&failed)?;
    }
    if found > SCHEMA_VERSION {
        return Err(Error::Newer { found, known: SCHEMA_VERSION });
    }
    if found == SCHEMA_VERSION {
        return Ok(());
    }
    if migration == Migration::Refuse {
        return Err(Error::Older { found, known: SCHEMA_VERSION });
    }
    let first = "CREATE TABLE IF NOT EXISTS schema_version (version INTEGER PRIMARY KEY)";
    transaction.batch_execute(first).await.map_err(&failed)?;
    for (version, statements) in (1_i32..).zip(MIGRATIONS) {
        if version > found {
            transaction.batch_execute(statements).await.map_err(&failed)?;
            let done = "INSERT INTO schema_version (version) VALUES ($1)";
            transaction.execute(done, &[&version]).await.map_err(&failed)?;
        }
    }
    transaction.commit().await.map_err(&failed)
}

async fn put(client: &mut Client, batch: &Batch) -> Result<(Receipt, Vec<RequestId>), Error> {
    let failed = sql("storing records");
    let transaction = client.transaction().await.map_err(&failed)?;
    let forgotten = forgotten_day(&transaction).await.map_err(&failed)?;
    let (kept, forgotten) = batch.kept(forgotten.map(day_start_ms));
    let stored = insert(&transaction, &kept).await?;
    let others: BTreeMap<&[u8], &UsageRecord> = kept
        .iter()
        .map(|record| (record.opening.id.as_bytes().as_slice(), *record))
        .filter(|(id, _)| !stored.contains(*id))
        .collect();
    let mut differ = Vec::new();
    if !others.is_empty() {
        let ids: Vec<&[u8]> = others.keys().copied().collect();
        let select = format!("SELECT {COLUMNS} FROM records WHERE id = ANY($1)");
        for row in transaction.query(&select, &[&ids]).await.map_err(&failed)? {
            let found = flat(&row).map_err(&failed)?;
            let Some(expected) = others.get(found.id.as_slice()) else { continue };
            // One that cannot be read is not this one either; and a batch is not to be stuck on it.
            if !UsageRecord::try_from(found).is_ok_and(|found| found == **expected) {
                differ.push(expected.opening.id);
            }
        }
    }
    transaction.commit().await.map_err(&failed)?;
    differ.sort_unstable();
    Ok(batch.receipt(stored.len(), forgotten, differ))
}

async fn put_segments(client: &mut Client, batch: &SegmentBatch) -> Result<(SegmentReceipt, Vec<SegmentId>), Error> {
    fn column<'s, Out>(segments: &[&'s FlatSegment], of: impl Fn(&'s FlatSegment) -> Out) -> Vec<Out> {
        segments.iter().map(|one| of(one)).collect()
    }
    let failed = sql("storing segments");
    let transaction = client.transaction().await.map_err(&failed)?;
    // First: batches of one archive take turns.
    let mut held = match batch.has_places() {
        true => lock(&transaction, &batch.archive).await.map_err(&failed)?,
        false => held(&transaction, HELD, &batch.archive).await.map_err(&failed)?,
    };
    let forgotten = forgotten_day(&transaction).await.map_err(&failed)?;
    let (kept, forgotten) = batch.kept(forgotten.map(day_start_ms));
    let columns: [Box<dyn ToSql + Sync + Send>; 14] = [
        Box::new(column(&kept, |one| one.booking.as_str())),
        Box::new(column(&kept, |one| one.number)),
        Box::new(column(&kept, |one| one.archive.as_str())),
        Box::new(column(&kept, |one| one.place)),
        Box::new(column(&kept, |one| one.names[0].as_str())),
        Box::new(column(&kept, |one| one.names[1].as_str())),
        Box::new(column(&kept, |one| one.names[2].as_str())),
        Box::new(column(&kept, |one| one.names[3].as_str())),
        Box::new(column(&kept, |one| one.names[4].as_str())),
        Box::new(column(&kept, |one| one.names[5].as_str())),
        Box::new(column(&kept, |one| one.names[6].as_str())),
        Box::new(column(&kept, |one| one.devices)),
        Box::new(column(&kept, |one| one.from_ms)),
        Box::new(column(&kept, |one| one.to_ms)),
    ];
    let values: Vec<&(dyn ToSql + Sync)> = columns.iter().map(|column| &**column as &(dyn ToSql + Sync)).collect();
    let insert = format!(
        "INSERT INTO segments ({}) SELECT * FROM unnest($1::text[], $2::bigint[], $3::text[], $4::bigint[], $5::text[], \
         $6::text[], $7::text[], $8::text[], $9::text[], $10::text[], $11::text[], $12::bigint[], $13::bigint[], $14::bigint[]) \
         ON CONFLICT (booking, number) DO NOTHING RETURNING booking, number",
        gpu::COLUMNS
    );
    let rows = transaction.query(&insert, &values).await.map_err(&failed)?;
    let id = |row: &Row| Ok((row.try_get(0)?, row.try_get(1)?));
    let stored: Result<BTreeSet<SegmentId>, tokio_postgres::Error> = rows.iter().map(id).collect();
    let stored = stored.map_err(&failed)?;
    let others: BTreeMap<SegmentId, &FlatSegment> = kept
        .iter()
        .map(|one| ((one.booking.clone(), one.number), *one))
        .filter(|(id, _)| !stored.contains(id))
        .collect();
    let mut differ = Vec::new();
    if !others.is_empty() {
        let (bookings, numbers): (Vec<&str>, Vec<i64>) =
            others.keys().map(|(booking, n)| (booking.as_str(), *n)).unzip();
        let select = format!(
            "SELECT {} FROM segments WHERE (booking, number) IN (SELECT * FROM unnest($1::text[], $2::bigint[]))",
            gpu::COLUMNS
        );
        for row in transaction.query(&select, &[&bookings, &numbers]).await.map_err(&failed)? {
            let found = flat_segment(&row).map_err(&failed)?;
            let id = (found.booking.clone(), found.number);
            if others.get(&id).is_some_and(|expected| !expected.says(&found)) {
                differ.push(id);
            }
        }
    }
    if let Some(more) = batch.held(held) {
        held = more;
        note(&transaction, &batch.archive, held).await.map_err(&failed)?;
    }
    transaction.commit().await.map_err(&failed)?;
    differ.sort_unstable();
    Ok(batch.receipt(stored.len(), forgotten, differ, held))
}

const HELD: &str = "SELECT bookings, lost_before_ms, lost_below FROM archives WHERE id = $1";

/// How far an archive is stored.
async fn held(client: &impl GenericClient, select: &str, archive: &str) -> Result<Held, tokio_postgres::Error> {
    let row = client.query_opt(select, &[&archive]).await?;
    let Some(row) = row else { return Ok(Held::default()) };
    Ok(Held::read(row.try_get(0)?, row.try_get(1)?, row.try_get(2)?))
}

/// How far an archive is stored; until the transaction ends nobody else changes it.
async fn lock(transaction: &Transaction<'_>, archive: &str) -> Result<Held, tokio_postgres::Error> {
    let make = "INSERT INTO archives (id, bookings) VALUES ($1, 0) ON CONFLICT (id) DO NOTHING";
    transaction.execute(make, &[&archive]).await?;
    held(transaction, &format!("{HELD} FOR UPDATE"), archive).await
}

/// Of one that is [locked](lock).
async fn note(transaction: &Transaction<'_>, archive: &str, held: Held) -> Result<(), tokio_postgres::Error> {
    let note = "UPDATE archives SET bookings = $2, lost_before_ms = $3, lost_below = $4 WHERE id = $1";
    let (before_ms, below) = (held.lost.map(|lost| lost.before_ms), held.lost.map(|lost| lost.below));
    transaction.execute(note, &[&archive, &held.bookings, &before_ms, &below]).await.map(drop)
}

async fn has_before(client: &mut Client, before_ms: i64) -> Result<bool, Error> {
    let select =
        "SELECT EXISTS (SELECT 1 FROM records WHERE ended_ms < $1) OR EXISTS (SELECT 1 FROM segments WHERE to_ms < $1)";
    let row = client.query_one(select, &[&before_ms]).await;
    row.and_then(|row| row.try_get(0)).map_err(sql("looking for what is older"))
}

async fn adopt(client: &mut Client, archive: &str, other: Held) -> Result<(), Error> {
    let failed = sql("noting how far an archive is stored");
    let transaction = client.transaction().await.map_err(&failed)?;
    let known = lock(&transaction, archive).await.map_err(&failed)?;
    note(&transaction, archive, known.beside(other)).await.map_err(&failed)?;
    transaction.commit().await.map_err(&failed)
}

fn flat_segment(row: &Row) -> Result<FlatSegment, tokio_postgres::Error> {
    Ok(FlatSegment {
        booking: row.try_get(0)?,
        number: row.try_get(1)?,
        archive: row.try_get(2)?,
        place: row.try_get(3)?,
        names: [
            row.try_get(4)?,
            row.try_get(5)?,
            row.try_get(6)?,
            row.try_get(7)?,
            row.try_get(8)?,
            row.try_get(9)?,
            row.try_get(10)?,
        ],
        devices: row.try_get(11)?,
        from_ms: row.try_get(12)?,
        to_ms: row.try_get(13)?,
    })
}

async fn forgotten_day(transaction: &Transaction<'_>) -> Result<Option<i64>, tokio_postgres::Error> {
    let row = transaction.query_opt("SELECT before_day FROM forgotten", &[]).await?;
    row.map(|row| row.try_get(0)).transpose()
}

async fn gpu_usage(client: &mut Client, filter: &GpuFilter, groups: &[GpuGroup]) -> Result<GpuUsage, Error> {
    let failed = sql("summing GPU time");
    // One moment of both: what is forgotten between two would be summed in part.
    let transaction =
        client.build_transaction().isolation_level(IsolationLevel::RepeatableRead).read_only(true).start();
    let transaction = transaction.await.map_err(&failed)?;
    let forgotten_before_ms = forgotten_day(&transaction).await.map_err(&failed)?.map(day_start_ms);
    let mut archives = Vec::new();
    for (archive, _) in &filter.before {
        archives.push(held(&transaction, HELD, archive).await.map_err(&failed)?.of(archive));
    }
    let query = gpu::usage(Dialect::Postgres, filter, groups, forgotten_before_ms, &archives);
    let rows = self::query(&transaction, &query).await.map_err(&failed)?;
    let read = |row: &Row| {
        let names = (0..groups.len()).map(|column| row.try_get(column)).collect::<Result<Vec<String>, _>>()?;
        Ok(gpu::row(groups, names, row.try_get(groups.len())?))
    };
    let rows: Result<Vec<_>, tokio_postgres::Error> = rows.iter().map(read).collect();
    Ok(GpuUsage { rows: rows.map_err(&failed)?, archives, forgotten_before_ms })
}

/// The ids of those that were not there.
async fn insert(transaction: &Transaction<'_>, records: &[&UsageRecord]) -> Result<BTreeSet<Vec<u8>>, Error> {
    fn column<'r, Out>(records: &[&'r UsageRecord], of: impl Fn(&'r UsageRecord) -> Out) -> Vec<Out> {
        records.iter().map(|record| of(record)).collect()
    }
    let failed = sql("storing records");
    let statement = format!(
        "INSERT INTO records ({COLUMNS}, day) SELECT * FROM unnest($1::bytea[], $2::text[], $3::text[], $4::text[], $5::text[], \
         $6::text[], $7::text[], $8::text[], $9::text[], $10::bigint[], $11::bigint[], $12::boolean[], $13::bigint[], \
         $14::bigint[], $15::bigint[], $16::text[], $17::bigint[], $18::bigint[]) ON CONFLICT (id) DO NOTHING RETURNING id"
    );
    let columns: [Box<dyn ToSql + Sync + Send>; 18] = [
        Box::new(column(records, |record| record.opening.id.as_bytes().to_vec())),
        Box::new(column(records, |record| record.opening.tenant.to_string())),
        Box::new(column(records, |record| record.opening.namespace.to_string())),
        Box::new(column(records, |record| record.opening.endpoint.to_string())),
        Box::new(column(records, |record| record.opening.model.to_string())),
        Box::new(column(records, |record| record.opening.version.to_string())),
        Box::new(column(records, |record| record.opening.key.to_string())),
        Box::new(column(records, |record| record.opening.gateway.to_string())),
        Box::new(column(records, |record| record.opening.replica.to_string())),
        Box::new(column(records, |record| record.opening.started_ms)),
        Box::new(column(records, |record| record.ending.ended_ms)),
        Box::new(column(records, |record| record.opening.stream)),
        Box::new(column(records, |record| signed(record.ending.tokens.prompt()))),
        Box::new(column(records, |record| signed(record.ending.tokens.cached()))),
        Box::new(column(records, |record| signed(record.ending.tokens.completion()))),
        Box::new(column(records, |record| outcome_text(record.ending.outcome))),
        Box::new(column(records, |record| i64::from(record.ending.adjusted.bits()))),
        Box::new(column(records, |record| day_of(record.ending.ended_ms))),
    ];
    let values: Vec<&(dyn ToSql + Sync)> = columns.iter().map(|column| &**column as &(dyn ToSql + Sync)).collect();
    let rows = transaction.query(&statement, &values).await.map_err(&failed)?;
    rows.iter().map(|row| row.try_get(0).map_err(&failed)).collect()
}

fn flat(row: &Row) -> Result<Flat, tokio_postgres::Error> {
    Ok(Flat {
        id: row.try_get(0)?,
        names: [
            row.try_get(1)?,
            row.try_get(2)?,
            row.try_get(3)?,
            row.try_get(4)?,
            row.try_get(5)?,
            row.try_get(6)?,
            row.try_get(7)?,
            row.try_get(8)?,
        ],
        started_ms: row.try_get(9)?,
        ended_ms: row.try_get(10)?,
        stream: row.try_get(11)?,
        tokens: [row.try_get(12)?, row.try_get(13)?, row.try_get(14)?],
        outcome: row.try_get(15)?,
        adjusted: row.try_get(16)?,
    })
}

async fn query(client: &impl GenericClient, query: &Query) -> Result<Vec<Row>, tokio_postgres::Error> {
    let ids: Vec<Option<Vec<u8>>> = query
        .values
        .iter()
        .map(|value| match value {
            Bound::Id(id) => Some(id.to_vec()),
            _ => None,
        })
        .collect();
    let values: Vec<&(dyn ToSql + Sync)> = query
        .values
        .iter()
        .zip(&ids)
        .map(|(value, id)| match value {
            Bound::Text(text) => text as &(dyn ToSql + Sync),
            Bound::Number(number) => number,
            Bound::Id(_) => id,
        })
        .collect();
    client.query(&query.sql, &values).await
}

async fn usage(client: &mut Client, filter: &Filter, groups: &[Group]) -> Result<Vec<Usage>, Error> {
    let failed = sql("summing usage");
    let rows = query(&*client, &Query::usage(Dialect::Postgres, filter, groups)).await.map_err(&failed)?;
    let read = |row: Row| {
        let mut key = GroupKey::default();
        for (column, group) in groups.iter().enumerate() {
            let value = match group {
                Group::Day => row.try_get(column).map(GroupValue::Day),
                _ => row.try_get(column).map(GroupValue::Name),
            };
            key.set(*group, value.map_err(&failed)?);
        }
        let mut five = [0; 5];
        for (offset, sum) in five.iter_mut().enumerate() {
            *sum = row.try_get(groups.len().saturating_add(offset)).map_err(&failed)?;
        }
        Usage::new(key, five)
    };
    rows.into_iter().map(read).collect()
}

async fn records(
    client: &mut Client,
    filter: &Filter,
    after: Option<RequestId>,
    limit: u32,
) -> Result<Vec<UsageRecord>, Error> {
    let failed = sql("reading records");
    let rows = query(&*client, &Query::records(Dialect::Postgres, filter, after, limit)).await.map_err(&failed)?;
    rows.iter().map(|row| flat(row).map_err(&failed).and_then(UsageRecord::try_from)).collect()
}

async fn remember_forgotten(client: &mut Client, day: i64) -> Result<(), Error> {
    let remember = "INSERT INTO forgotten (only_row, before_day) VALUES (true, $1) \
         ON CONFLICT (only_row) DO UPDATE SET before_day = greatest(forgotten.before_day, excluded.before_day)";
    client.execute(remember, &[&day]).await.map(|_| ()).map_err(sql("remembering what is forgotten"))
}

/// Deletes some records of the first day that is before `day`: which day, and how many; none if there is no such day.
async fn forget_some(client: &mut Client, table: &Dated, day: i64) -> Result<Option<(i64, u64)>, Error> {
    let failed = sql("forgetting old days");
    let Dated { table, id, ended } = table;
    let first = format!("SELECT min({ended}) FROM {table} WHERE {ended} < $1");
    let first = client.query_one(&first, &[&day_start_ms(day)]).await.and_then(|row| row.try_get(0));
    let first: Option<i64> = first.map_err(&failed)?;
    let Some(first) = first.map(day_of) else { return Ok(None) };
    let end_ms = day_start_ms(first).saturating_add(DAY_MS);
    let delete = format!("DELETE FROM {table} WHERE ({id}) IN (SELECT {id} FROM {table} WHERE {ended} < $1 LIMIT $2)");
    let deleted = client.execute(&delete, &[&end_ms, &FORGET_AT_ONCE]).await.map_err(&failed)?;
    Ok(Some((first, deleted)))
}

async fn check(client: &mut Client) -> Result<Summary, Error> {
    let failed = sql("counting records");
    let count = "SELECT count(*), min(ended_ms), max(ended_ms), (SELECT max(version) FROM schema_version), \
         (SELECT count(*) FROM segments) FROM records";
    let row = client.query_one(count, &[]).await.map_err(&failed)?;
    let read = || -> Result<_, tokio_postgres::Error> {
        Ok((row.try_get::<_, i64>(0)?, row.try_get(1)?, row.try_get(2)?, row.try_get(3)?, row.try_get::<_, i64>(4)?))
    };
    let (records, first_ms, last_ms, version, segments) = read().map_err(&failed)?;
    let unsigned = |count: i64| u64::try_from(count).unwrap_or_default();
    Ok(Summary { version, records: unsigned(records), segments: unsigned(segments), first_ms, last_ms })
}
