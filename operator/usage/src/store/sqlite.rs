//! Records in one SQLite file, with its journal beside it. One thread writes, another reads, so that a long report holds nothing up.
//!
//! Each batch is one transaction, and is on the disk (`synchronous = FULL`) before it is answered.

use std::collections::BTreeSet;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use rusqlite::{Connection, OpenFlags, OptionalExtension as _, Row, Transaction, TransactionBehavior, params};
use spillway_metering::shipping::{GpuUsage, Receipt, SegmentReceipt};
use spillway_metering::tokens::{RequestId, UsageRecord};
use tokio::sync::{mpsc, oneshot};

use super::batch::Batch;
use super::flat::{COLUMNS, Flat, outcome_text, signed};
use super::gpu::{self, FlatSegment, Held, SegmentBatch, SegmentId};
use super::query::{Bound, Dialect, GroupValue, Query};
use super::{
    DATED, DAY_MS, Dated, Error, FORGET_AT_ONCE, Filter, Forgotten, GpuFilter, GpuGroup, Group, GroupKey, Migration,
    Summary, Usage, day_of, day_start_ms,
};

/// The version of the schema that this program knows. Stores of older ones are migrated, of newer ones refused.
const SCHEMA_VERSION: i32 = 3;
/// How long one process waits for another that writes.
const BUSY: Duration = Duration::from_secs(10);
/// Steps that wait for a thread. More wait for room.
const WAITING: usize = 64;

/// The statements that lead from version `n` to `n + 1`. What is here once is never changed: stores have it.
const MIGRATIONS: [&str; 3] = ["
    CREATE TABLE records (
        id BLOB PRIMARY KEY NOT NULL CHECK (length(id) = 16),
        tenant TEXT NOT NULL, namespace TEXT NOT NULL, endpoint TEXT NOT NULL, model TEXT NOT NULL, version TEXT NOT NULL,
        key_id TEXT NOT NULL, gateway TEXT NOT NULL, replica TEXT NOT NULL,
        started_ms INTEGER NOT NULL, ended_ms INTEGER NOT NULL, day INTEGER NOT NULL, stream INTEGER NOT NULL,
        prompt INTEGER NOT NULL, cached INTEGER NOT NULL, completion INTEGER NOT NULL,
        outcome TEXT NOT NULL, adjusted INTEGER NOT NULL
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX records_ended ON records (ended_ms);
    CREATE INDEX records_tenant_ended ON records (tenant, ended_ms);
    -- One row at most: records of days before it are gone.
    CREATE TABLE forgotten (only INTEGER PRIMARY KEY CHECK (only = 1), before_day INTEGER NOT NULL) STRICT;
", "
    CREATE TABLE segments (
        booking TEXT NOT NULL, number INTEGER NOT NULL, archive TEXT NOT NULL, place INTEGER NOT NULL, node TEXT NOT NULL,
        tenant TEXT NOT NULL, namespace TEXT NOT NULL, reservation TEXT NOT NULL, pool TEXT NOT NULL, sku TEXT NOT NULL,
        tier TEXT NOT NULL, devices INTEGER NOT NULL, from_ms INTEGER NOT NULL, to_ms INTEGER NOT NULL,
        PRIMARY KEY (booking, number)
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX segments_ended ON segments (to_ms);
    CREATE INDEX segments_tenant_ended ON segments (tenant, to_ms);
", "
    CREATE TABLE archives (id TEXT PRIMARY KEY NOT NULL, bookings INTEGER NOT NULL, lost_before_ms INTEGER, lost_below INTEGER)
        STRICT, WITHOUT ROWID;
"];

/// A store in a file.
#[derive(Clone)]
pub struct Sqlite {
    writer: Worker,
    reader: Worker,
    /// For [`Sqlite::ping`], so that it need not wait for a report.
    prober: Worker,
}

impl Sqlite {
    /// Opens a file, and makes it where there is none and it may ([`Migration::Apply`]).
    ///
    /// # Errors
    ///
    /// [`Error::Newer`], [`Error::Older`], or why it cannot be opened.
    pub async fn open(path: &Path, migration: Migration) -> Result<Self, Error> {
        let path = path.to_owned();
        let opened = tokio::task::spawn_blocking(move || {
            let mut writer = connect(&path, migration)?;
            migrate(&mut writer, migration)?;
            let reader = connect(&path, Migration::Refuse)?;
            reader.pragma_update(None, "query_only", true).map_err(sql("opening the file to read"))?;
            let prober = connect(&path, Migration::Refuse)?;
            Ok(Self {
                writer: Worker::start("usage-writer", writer)?,
                reader: Worker::start("usage-reader", reader)?,
                prober: Worker::start("usage-prober", prober)?,
            })
        });
        opened.await.map_err(|_| Error::Closed)?
    }

    pub(super) async fn put(&self, batch: Batch) -> Result<(Receipt, Vec<RequestId>), Error> {
        self.writer.run(move |connection| put(connection, &batch)).await
    }

    pub(super) async fn put_segments(&self, batch: SegmentBatch) -> Result<(SegmentReceipt, Vec<SegmentId>), Error> {
        self.writer.run(move |connection| put_segments(connection, &batch)).await
    }

    pub(super) async fn flat_records(&self, after: Vec<u8>, limit: u32) -> Result<Vec<Flat>, Error> {
        self.reader.run(move |connection| flat_records(connection, &after, limit)).await
    }

    pub(super) async fn has_before(&self, before_ms: i64) -> Result<bool, Error> {
        let select = "SELECT EXISTS (SELECT 1 FROM records WHERE ended_ms < ?1) OR EXISTS (SELECT 1 FROM segments WHERE to_ms < ?1)";
        let ask = move |connection: &mut Connection| {
            connection.query_row(select, [before_ms], |row| row.get(0)).map_err(sql("looking for what is older"))
        };
        self.reader.run(ask).await
    }

    pub(super) async fn segments(&self, after: SegmentId, limit: u32) -> Result<Vec<FlatSegment>, Error> {
        self.reader.run(move |connection| segments(connection, &after, limit)).await
    }

    pub(super) async fn forgotten_day(&self) -> Result<Option<i64>, Error> {
        self.reader.run(|connection| forgotten_day(connection).map_err(sql("reading what is forgotten"))).await
    }

    pub(super) async fn archives(&self) -> Result<Vec<(String, Held)>, Error> {
        self.reader.run(|connection| archives(connection)).await
    }

    pub(super) async fn adopt(&self, archive: String, other: Held) -> Result<(), Error> {
        self.writer.run(move |connection| adopt(connection, &archive, other)).await
    }

    pub(super) async fn gpu_usage(&self, filter: GpuFilter, groups: Vec<GpuGroup>) -> Result<GpuUsage, Error> {
        self.reader.run(move |connection| gpu_usage(connection, &filter, &groups)).await
    }

    pub(super) async fn usage(&self, filter: Filter, groups: Vec<Group>) -> Result<Vec<Usage>, Error> {
        self.reader.run(move |connection| usage(connection, &filter, &groups)).await
    }

    pub(super) async fn records(
        &self,
        filter: Filter,
        after: Option<RequestId>,
        limit: u32,
    ) -> Result<Vec<UsageRecord>, Error> {
        self.reader.run(move |connection| records(connection, &filter, after, limit)).await
    }

    pub(super) async fn forget_before(&self, day: i64) -> Result<Forgotten, Error> {
        self.writer.run(move |connection| remember_forgotten(connection, day)).await?;
        let (mut forgotten, mut days) = (Forgotten::default(), BTreeSet::new());
        // Between two parts batches have their turn.
        for table in DATED {
            while let Some((first, records)) =
                self.writer.run(move |connection| forget_some(connection, &table, day)).await?
            {
                days.insert(first);
                forgotten.records = forgotten.records.saturating_add(records);
            }
        }
        forgotten.days = u64::try_from(days.len()).unwrap_or(u64::MAX);
        Ok(forgotten)
    }

    pub(super) async fn ping(&self) -> Result<(), Error> {
        let ask = |connection: &mut Connection| {
            let one = connection.query_row("SELECT version FROM schema_version LIMIT 1", [], |_| Ok(()));
            one.map_err(sql("reading the version of the schema"))
        };
        // They may be at work on something large: that they are there is enough.
        if !self.is_alive() {
            return Err(Error::Closed);
        }
        self.prober.run(ask).await
    }

    /// Whether all threads are there.
    pub(super) fn is_alive(&self) -> bool {
        [&self.writer, &self.reader, &self.prober].iter().all(|worker| !worker.jobs.is_closed())
    }

    /// Ends the thread that writes, as a panic there would.
    #[cfg(test)]
    pub(crate) async fn end_writer(&self) {
        let ended = self.writer.run(|_| -> Result<(), Error> { std::panic::resume_unwind(Box::new("a test ends it")) });
        assert!(ended.await.is_err());
        while self.is_alive() {
            tokio::task::yield_now().await;
        }
    }

    pub(super) async fn check(&self) -> Result<Summary, Error> {
        self.reader.run(|connection| check(connection)).await
    }

    pub(super) async fn backup(&self, to: PathBuf) -> Result<(), Error> {
        self.reader.run(move |connection| backup(connection, &to)).await
    }
}

fn sql(action: &'static str) -> impl Fn(rusqlite::Error) -> Error {
    move |source| match &source {
        rusqlite::Error::SqliteFailure(_, Some(text)) if text == "integer overflow" => Error::Overflow,
        _ => Error::Sqlite { action, source },
    }
}

fn file(action: &'static str) -> impl Fn(std::io::Error) -> Error {
    move |source| Error::File { action, source }
}

fn connect(path: &Path, migration: Migration) -> Result<Connection, Error> {
    let mut flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    if migration == Migration::Apply {
        flags |= OpenFlags::SQLITE_OPEN_CREATE;
    }
    let failed = sql("opening the file");
    let connection = Connection::open_with_flags(path, flags).map_err(&failed)?;
    connection.busy_timeout(BUSY).map_err(&failed)?;
    // It stays with the file. One that is only looked at, such as a backup, is left as it is.
    if migration == Migration::Apply {
        connection.pragma_update(None, "journal_mode", "wal").map_err(&failed)?;
    }
    connection.pragma_update(None, "synchronous", "full").map_err(&failed)?;
    Ok(connection)
}

fn version(connection: &Connection) -> Result<i32, Error> {
    let failed = sql("reading the version of the schema");
    let has = "SELECT count(*) FROM sqlite_schema WHERE type = 'table' AND name = 'schema_version'";
    let has: i64 = connection.query_row(has, [], |row| row.get(0)).map_err(&failed)?;
    if has == 0 {
        return Ok(0);
    }
    connection.query_row("SELECT coalesce(max(version), 0) FROM schema_version", [], |row| row.get(0)).map_err(&failed)
}

fn migrate(connection: &mut Connection, migration: Migration) -> Result<(), Error> {
    let failed = sql("migrating the schema");
    let behavior = match migration {
        Migration::Apply => TransactionBehavior::Immediate,
        Migration::Refuse => TransactionBehavior::Deferred,
    };
    let transaction = connection.transaction_with_behavior(behavior).map_err(&failed)?;
    let found = version(&transaction)?;
    if found > SCHEMA_VERSION {
        return Err(Error::Newer { found, known: SCHEMA_VERSION });
    }
    if found == SCHEMA_VERSION {
        return Ok(());
    }
    if migration == Migration::Refuse {
        return Err(Error::Older { found, known: SCHEMA_VERSION });
    }
    let first = "CREATE TABLE IF NOT EXISTS schema_version (version INTEGER PRIMARY KEY NOT NULL) STRICT";
    transaction.execute_batch(first).map_err(&failed)?;
    for (version, statements) in (1..).zip(MIGRATIONS) {
        if version > found {
            transaction.execute_batch(statements).map_err(&failed)?;
            transaction.execute("INSERT INTO schema_version (version) VALUES (?1)", [version]).map_err(&failed)?;
        }
    }
    transaction.commit().map_err(&failed)
}

fn forgotten_day(connection: &Connection) -> rusqlite::Result<Option<i64>> {
    connection.query_row("SELECT before_day FROM forgotten", [], |row| row.get(0)).optional()
}

fn put(connection: &mut Connection, batch: &Batch) -> Result<(Receipt, Vec<RequestId>), Error> {
    let failed = sql("storing records");
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(&failed)?;
    let forgotten = forgotten_day(&transaction).map_err(&failed)?.map(day_start_ms);
    let (kept, forgotten) = batch.kept(forgotten);
    let (mut stored, mut differ) = (0_usize, Vec::new());
    {
        let insert = format!(
            "INSERT INTO records ({COLUMNS}, day) VALUES \
             (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17, ?18) ON CONFLICT (id) DO NOTHING"
        );
        let mut insert = transaction.prepare(&insert).map_err(&failed)?;
        let select = format!("SELECT {COLUMNS} FROM records WHERE id = ?1");
        let mut select = transaction.prepare(&select).map_err(&failed)?;
        for record in kept {
            let UsageRecord { opening, ending } = record;
            let values = params![
                opening.id.as_bytes(),
                opening.tenant.as_str(),
                opening.namespace.as_str(),
                opening.endpoint.as_str(),
                opening.model.as_str(),
                opening.version.as_str(),
                opening.key.as_str(),
                opening.gateway.as_str(),
                opening.replica.as_str(),
                opening.started_ms,
                ending.ended_ms,
                opening.stream,
                signed(ending.tokens.prompt()),
                signed(ending.tokens.cached()),
                signed(ending.tokens.completion()),
                outcome_text(ending.outcome),
                ending.adjusted.bits(),
                day_of(ending.ended_ms),
            ];
            if insert.execute(values).map_err(&failed)? > 0 {
                stored = stored.saturating_add(1);
                continue;
            }
            let known = select.query_row([opening.id.as_bytes()], flat).map_err(&failed)?;
            // One that cannot be read is not this one either; and a batch is not to be stuck on it.
            if !UsageRecord::try_from(known).is_ok_and(|known| known == *record) {
                differ.push(opening.id);
            }
        }
    }
    transaction.commit().map_err(&failed)?;
    Ok(batch.receipt(stored, forgotten, differ))
}

fn put_segments(connection: &mut Connection, batch: &SegmentBatch) -> Result<(SegmentReceipt, Vec<SegmentId>), Error> {
    let failed = sql("storing segments");
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(&failed)?;
    let forgotten = forgotten_day(&transaction).map_err(&failed)?.map(day_start_ms);
    let (kept, forgotten) = batch.kept(forgotten);
    let (mut stored, mut differ) = (0_usize, Vec::new());
    {
        let insert = format!(
            "INSERT INTO segments ({}) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14) \
             ON CONFLICT (booking, number) DO NOTHING",
            gpu::COLUMNS
        );
        let mut insert = transaction.prepare(&insert).map_err(&failed)?;
        let select = format!("SELECT {} FROM segments WHERE booking = ?1 AND number = ?2", gpu::COLUMNS);
        let mut select = transaction.prepare(&select).map_err(&failed)?;
        for one in kept {
            let [node, tenant, namespace, reservation, pool, sku, tier] = &one.names;
            let values = params![
                one.booking,
                one.number,
                one.archive,
                one.place,
                node,
                tenant,
                namespace,
                reservation,
                pool,
                sku,
                tier,
                one.devices,
                one.from_ms,
                one.to_ms,
            ];
            if insert.execute(values).map_err(&failed)? > 0 {
                stored = stored.saturating_add(1);
                continue;
            }
            let known = select.query_row(params![one.booking, one.number], flat_segment).map_err(&failed)?;
            if !known.says(one) {
                differ.push((one.booking.clone(), one.number));
            }
        }
    }
    let mut held = held(&transaction, &batch.archive).map_err(&failed)?;
    if let Some(more) = batch.held(held) {
        held = more;
        note(&transaction, &batch.archive, held).map_err(&failed)?;
    }
    transaction.commit().map_err(&failed)?;
    Ok(batch.receipt(stored, forgotten, differ, held))
}

/// How far an archive is stored.
fn held(connection: &Connection, archive: &str) -> rusqlite::Result<Held> {
    let select = "SELECT bookings, lost_before_ms, lost_below FROM archives WHERE id = ?1";
    let read = |row: &Row<'_>| Ok(Held::read(row.get(0)?, row.get(1)?, row.get(2)?));
    connection.query_row(select, [archive], read).optional().map(Option::unwrap_or_default)
}

fn note(transaction: &Transaction<'_>, archive: &str, held: Held) -> rusqlite::Result<()> {
    let note = "INSERT INTO archives (id, bookings, lost_before_ms, lost_below) VALUES (?1, ?2, ?3, ?4) ON CONFLICT (id) DO UPDATE \
         SET bookings = excluded.bookings, lost_before_ms = excluded.lost_before_ms, lost_below = excluded.lost_below";
    let (before_ms, below) = (held.lost.map(|lost| lost.before_ms), held.lost.map(|lost| lost.below));
    transaction.execute(note, params![archive, held.bookings, before_ms, below]).map(drop)
}

fn archives(connection: &Connection) -> Result<Vec<(String, Held)>, Error> {
    let failed = sql("reading how far archives are stored");
    let select = "SELECT id, bookings, lost_before_ms, lost_below FROM archives";
    let mut statement = connection.prepare(select).map_err(&failed)?;
    let read = |row: &Row<'_>| Ok((row.get(0)?, Held::read(row.get(1)?, row.get(2)?, row.get(3)?)));
    let rows = statement.query_map([], read).map_err(&failed)?;
    rows.collect::<rusqlite::Result<_>>().map_err(&failed)
}

fn adopt(connection: &mut Connection, archive: &str, other: Held) -> Result<(), Error> {
    let failed = sql("noting how far an archive is stored");
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(&failed)?;
    let known = held(&transaction, archive).map_err(&failed)?;
    note(&transaction, archive, known.beside(other)).map_err(&failed)?;
    transaction.commit().map_err(&failed)
}

fn flat_records(connection: &Connection, after: &[u8], limit: u32) -> Result<Vec<Flat>, Error> {
    let failed = sql("reading records");
    let select = format!("SELECT {COLUMNS} FROM records WHERE id > ?1 ORDER BY id LIMIT ?2");
    let mut statement = connection.prepare(&select).map_err(&failed)?;
    let rows = statement.query_map(params![after, limit], flat).map_err(&failed)?;
    rows.collect::<rusqlite::Result<_>>().map_err(&failed)
}

fn segments(connection: &Connection, after: &SegmentId, limit: u32) -> Result<Vec<FlatSegment>, Error> {
    let failed = sql("reading segments");
    let select = format!(
        "SELECT {} FROM segments WHERE (booking, number) > (?1, ?2) ORDER BY booking, number LIMIT ?3",
        gpu::COLUMNS
    );
    let mut statement = connection.prepare(&select).map_err(&failed)?;
    let rows = statement.query_map(params![after.0, after.1, limit], flat_segment).map_err(&failed)?;
    rows.collect::<rusqlite::Result<_>>().map_err(&failed)
}

fn flat_segment(row: &Row<'_>) -> rusqlite::Result<FlatSegment> {
    Ok(FlatSegment {
        booking: row.get(0)?,
        number: row.get(1)?,
        archive: row.get(2)?,
        place: row.get(3)?,
        names: [row.get(4)?, row.get(5)?, row.get(6)?, row.get(7)?, row.get(8)?, row.get(9)?, row.get(10)?],
        devices: row.get(11)?,
        from_ms: row.get(12)?,
        to_ms: row.get(13)?,
    })
}

fn gpu_usage(connection: &mut Connection, filter: &GpuFilter, groups: &[GpuGroup]) -> Result<GpuUsage, Error> {
    let failed = sql("summing GPU time");
    // One moment of both: what is forgotten between two would be summed in part.
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Deferred).map_err(&failed)?;
    let forgotten_before_ms = forgotten_day(&transaction).map_err(&failed)?.map(day_start_ms);
    let of = |(archive, _): &(String, i64)| held(&transaction, archive).map(|held| held.of(archive));
    let archives = filter.before.iter().map(of).collect::<rusqlite::Result<Vec<_>>>().map_err(&failed)?;
    let query = gpu::usage(Dialect::Sqlite, filter, groups, forgotten_before_ms, &archives);
    let mut statement = transaction.prepare(&query.sql).map_err(&failed)?;
    let read = |row: &Row<'_>| {
        let names = (0..groups.len()).map(|column| row.get(column)).collect::<rusqlite::Result<Vec<String>>>()?;
        Ok(gpu::row(groups, names, row.get(groups.len())?))
    };
    let rows = statement.query_map(rusqlite::params_from_iter(values(&query)), read).map_err(&failed)?;
    let rows = rows.collect::<rusqlite::Result<Vec<_>>>().map_err(&failed)?;
    Ok(GpuUsage { rows, archives, forgotten_before_ms })
}

fn flat(row: &Row<'_>) -> rusqlite::Result<Flat> {
    Ok(Flat {
        id: row.get(0)?,
        names: [row.get(1)?, row.get(2)?, row.get(3)?, row.get(4)?, row.get(5)?, row.get(6)?, row.get(7)?, row.get(8)?],
        started_ms: row.get(9)?,
        ended_ms: row.get(10)?,
        stream: row.get(11)?,
        tokens: [row.get(12)?, row.get(13)?, row.get(14)?],
        outcome: row.get(15)?,
        adjusted: row.get(16)?,
    })
}

fn values(query: &Query) -> impl Iterator<Item = rusqlite::types::Value> {
    use rusqlite::types::Value;
    query.values.iter().map(|value| match value {
        Bound::Text(text) => Value::Text(text.clone()),
        Bound::Number(number) => Value::Integer(*number),
        Bound::Id(id) => Value::Blob(id.to_vec()),
    })
}

fn usage(connection: &Connection, filter: &Filter, groups: &[Group]) -> Result<Vec<Usage>, Error> {
    let failed = sql("summing usage");
    let query = Query::usage(Dialect::Sqlite, filter, groups);
    let mut statement = connection.prepare(&query.sql).map_err(&failed)?;
    let mut rows = statement.query(rusqlite::params_from_iter(values(&query))).map_err(&failed)?;
    let mut sums = Vec::new();
    while let Some(row) = rows.next().map_err(&failed)? {
        let read = |row: &Row<'_>| {
            let mut key = GroupKey::default();
            for (column, group) in groups.iter().enumerate() {
                let value = match group {
                    Group::Day => GroupValue::Day(row.get(column)?),
                    _ => GroupValue::Name(row.get(column)?),
                };
                key.set(*group, value);
            }
            let mut five = [0; 5];
            for (offset, sum) in five.iter_mut().enumerate() {
                *sum = row.get(groups.len().saturating_add(offset))?;
            }
            Ok((key, five))
        };
        let (key, five) = read(row).map_err(&failed)?;
        sums.push(Usage::new(key, five)?);
    }
    Ok(sums)
}

fn records(
    connection: &Connection,
    filter: &Filter,
    after: Option<RequestId>,
    limit: u32,
) -> Result<Vec<UsageRecord>, Error> {
    let failed = sql("reading records");
    let query = Query::records(Dialect::Sqlite, filter, after, limit);
    let mut statement = connection.prepare(&query.sql).map_err(&failed)?;
    let rows = statement.query_map(rusqlite::params_from_iter(values(&query)), flat).map_err(&failed)?;
    rows.map(|row| row.map_err(&failed).and_then(UsageRecord::try_from)).collect()
}

fn remember_forgotten(connection: &mut Connection, day: i64) -> Result<(), Error> {
    let remember = "INSERT INTO forgotten (only, before_day) VALUES (1, ?1) \
         ON CONFLICT (only) DO UPDATE SET before_day = max(before_day, excluded.before_day)";
    connection.execute(remember, [day]).map(|_| ()).map_err(sql("remembering what is forgotten"))
}

/// Deletes some records of the first day that is before `day`: which day, and how many; none if there is no such day.
fn forget_some(connection: &mut Connection, table: &Dated, day: i64) -> Result<Option<(i64, u64)>, Error> {
    let failed = sql("forgetting old days");
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(&failed)?;
    let Dated { table, id, ended } = table;
    let first = format!("SELECT min({ended}) FROM {table} WHERE {ended} < ?1");
    let first: Option<i64> = transaction.query_row(&first, [day_start_ms(day)], |row| row.get(0)).map_err(&failed)?;
    let Some(first) = first.map(day_of) else { return Ok(None) };
    let end_ms = day_start_ms(first).saturating_add(DAY_MS);
    let delete = format!("DELETE FROM {table} WHERE ({id}) IN (SELECT {id} FROM {table} WHERE {ended} < ?1 LIMIT ?2)");
    let deleted = transaction.execute(&delete, [end_ms, FORGET_AT_ONCE]).map_err(&failed)?;
    transaction.commit().map_err(&failed)?;
    Ok(Some((first, u64::try_from(deleted).unwrap_or(u64::MAX))))
}

fn check(connection: &Connection) -> Result<Summary, Error> {
    let failed = sql("checking the file");
    let mut statement = connection.prepare("PRAGMA integrity_check(10)").map_err(&failed)?;
    let found: Vec<String> = statement.query_map([], |row| row.get(0)).and_then(Iterator::collect).map_err(&failed)?;
    if found != ["ok"] {
        return Err(Error::Damaged { found: found.join("; ") });
    }
    let version = version(connection)?;
    let count = "SELECT count(*), min(ended_ms), max(ended_ms), (SELECT count(*) FROM segments) FROM records";
    let (records, first_ms, last_ms, segments): (i64, Option<i64>, Option<i64>, i64) = connection
        .query_row(count, [], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?)))
        .map_err(&failed)?;
    let unsigned = |count: i64| u64::try_from(count).unwrap_or_default();
    Ok(Summary { version, records: unsigned(records), segments: unsigned(segments), first_ms, last_ms })
}

/// Into a file beside it first, which takes the name when all of it is on the disk.
fn backup(connection: &Connection, to: &Path) -> Result<(), Error> {
    let mut name = to.file_name().unwrap_or_default().to_owned();
    name.push(".partial");
    let partial = to.with_file_name(name);
    match std::fs::remove_file(&partial) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(file("removing an old part")(error)),
        _ => {}
    }
    let text = partial.to_str().ok_or_else(|| {
        let source = std::io::Error::new(std::io::ErrorKind::InvalidInput, "its path is not UTF-8");
        Error::File { action: "naming the backup", source }
    })?;
    // A reader may write no page of its own file: that it makes another one is not the same.
    connection.pragma_update(None, "query_only", false).map_err(sql("writing the backup"))?;
    let written = connection.execute("VACUUM INTO ?1", [text]).map_err(sql("writing the backup"));
    connection.pragma_update(None, "query_only", true).map_err(sql("writing the backup"))?;
    written?;
    File::open(&partial).and_then(|written| written.sync_all()).map_err(file("syncing the backup"))?;
    std::fs::rename(&partial, to).map_err(file("naming the backup"))?;
    let folder = to.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(file("syncing the folder of the backup"))
}

type Job = Box<dyn FnOnce(&mut Connection) + Send>;

/// A thread that has a connection, and does one step after the other. It ends when nobody can ask it any more.
#[derive(Clone)]
struct Worker {
    jobs: mpsc::Sender<Job>,
}

impl Worker {
    fn start(name: &str, mut connection: Connection) -> Result<Self, Error> {
        let (jobs, mut waiting) = mpsc::channel::<Job>(WAITING);
        let work = move || {
            while let Some(job) = waiting.blocking_recv() {
                job(&mut connection);
            }
        };
        thread::Builder::new().name(name.to_owned()).spawn(work).map_err(file("starting a thread"))?;
        Ok(Self { jobs })
    }

    /// Does a step there. It is done even if nobody waits for it any more.
    async fn run<Out: Send + 'static>(
        &self,
        step: impl FnOnce(&mut Connection) -> Result<Out, Error> + Send + 'static,
    ) -> Result<Out, Error> {
        let (answer, answered) = oneshot::channel();
        let job: Job = Box::new(move |connection| {
            let _ = answer.send(step(connection));
        });
        self.jobs.send(job).await.map_err(|_| Error::Closed)?;
        answered.await.map_err(|_| Error::Closed)?
    }
}
