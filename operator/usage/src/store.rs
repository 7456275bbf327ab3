//! Where records of usage are: of requests, each once by its id, and of bookings that ended, each segment once by its booking and number. Nothing is
//! changed in it: the first record of an id stands, and whole days are forgotten when they are old ([`Store::forget_before`]).
//!
//! Two kinds, of one behaviour: [`Sqlite`], one file for one service, and [`Postgres`], for several.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use spillway_metering::shipping::{EndedSegment, GpuUsage, Receipt, SegmentReceipt, Segments};
use spillway_metering::tokens::{RequestId, UsageRecord};

mod batch;
mod flat;
mod gpu;
mod postgres;
mod query;
mod seat;
mod security;
mod sqlite;

pub use gpu::{GpuFilter, GpuGroup};
pub use postgres::Postgres;
pub use query::{Filter, Group, GroupKey, MOST_ROWS, Usage};
pub use sqlite::Sqlite;

use batch::Batch;
use gpu::SegmentBatch;

/// Milliseconds of a day. Days are those of UTC.
pub const DAY_MS: i64 = 86_400_000;
/// The longest name of anything in a record that is stored, in bytes: three times that of Kubernetes, and fit for an index.
pub const MOST_NAME_BYTES: usize = 1_024;
/// The most records that are read at once.
pub const MOST_READ: u32 = 10_000;

/// What went wrong.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// SQLite said no.
    #[error("{action}: {source}")]
    Sqlite {
        /// What was being done.
        action: &'static str,
        /// What SQLite says.
        source: rusqlite::Error,
    },
    /// PostgreSQL said no.
    #[error("{action}: {}", with_sources(source))]
    Postgres {
        /// What was being done.
        action: &'static str,
        /// What PostgreSQL says.
        source: tokio_postgres::Error,
    },
    /// PostgreSQL did not answer in time.
    #[error("{action}: no answer within {seconds} s")]
    Slow {
        /// What was being done.
        action: &'static str,
        /// How long it was waited for.
        seconds: u64,
    },
    /// Not the URL of a PostgreSQL. It is not repeated here, for it has a password in it.
    #[error("the address of PostgreSQL is none: it must be like postgres://user:password@host:5432/database")]
    Url,
    /// A way to reach PostgreSQL that keeps nobody out.
    #[error(
        "the URL of PostgreSQL says an sslmode by which anybody could answer for it: say sslmode=verify-full, with --postgres-ca where its CA is not the \
         system's, or sslmode=disable where nobody can stand between"
    )]
    SslMode,
    /// What PostgreSQL's certificate is to be checked by cannot be used.
    #[error("the CA of PostgreSQL: {source}")]
    Authority {
        /// Why.
        source: spillway_tls::Error,
    },
    /// The system trusts nobody.
    #[error(
        "the system has no CAs by which PostgreSQL's certificate can be checked: name a file with its CA by --postgres-ca"
    )]
    NoAuthority,
    /// PostgreSQL is not reached by TLS.
    #[error("connecting to PostgreSQL by TLS: {}; {remedy}", with_sources(source))]
    Tls {
        /// What is wrong.
        source: tokio_postgres::Error,
        /// What to do.
        remedy: &'static str,
    },
    /// The file system said no.
    #[error("{action}: {source}")]
    File {
        /// What was being done.
        action: &'static str,
        /// What it says.
        source: std::io::Error,
    },
    /// Another program has made it newer.
    #[error(
        "the store has schema version {found}, and this program knows up to {known}: start one that is as new as the store"
    )]
    Newer {
        /// That of the store.
        found: i32,
        /// That of this program.
        known: i32,
    },
    /// It was not migrated.
    #[error("the store has schema version {found}, and this program needs {known}: run `spillway-usage migrate`")]
    Older {
        /// That of the store; 0 where it has none.
        found: i32,
        /// That of this program.
        known: i32,
    },
    /// A record with a name that no store takes.
    #[error(
        "the {field} of record {id} is longer than {MOST_NAME_BYTES} bytes or has a zero byte in it: it cannot be stored"
    )]
    Name {
        /// Whose.
        id: RequestId,
        /// Which name of it.
        field: &'static str,
    },
    /// A segment that cannot be stored.
    #[error("segment {number} of booking {booking:?} cannot be stored: {why}")]
    Segment {
        /// Of which booking.
        booking: String,
        /// Which of its segments.
        number: u32,
        /// Why.
        why: &'static str,
    },
    /// More rows than are given.
    #[error("there are more than {MOST_ROWS} rows: ask for a shorter time, for one tenant, or by fewer groups")]
    TooMany,
    /// A sum that 63 bits do not hold.
    #[error("a sum does not fit into 63 bits: ask for a shorter time")]
    Overflow,
    /// What is stored is no record: somebody else has written it.
    #[error("what is stored of {id} is no record: its {field} is not one")]
    Corrupt {
        /// Whose, as far as it can be read.
        id: String,
        /// What of it.
        field: &'static str,
    },
    /// A store to be imported has forgotten what this one has.
    #[error(
        "the other store has forgotten what ended before {before_ms} (Unix milliseconds), and here there is something of that time, which would be forgotten \
         as well: say --forget if it may be"
    )]
    WouldForget {
        /// When, Unix milliseconds.
        before_ms: i64,
    },
    /// SQLite's own check found something.
    #[error("the file is damaged: {found}; restore a backup")]
    Damaged {
        /// The first things found.
        found: String,
    },
    /// The thread that has the file is gone.
    #[error("the store is closed")]
    Closed,
    /// What only SQLite does.
    #[error("a backup is only made of SQLite: use pg_dump or your provider's backups")]
    NoBackup,
}

impl Error {
    /// Whether it may pass: it is about reaching the store, and not about what is in it or how it was asked for.
    pub fn may_pass(&self) -> bool {
        matches!(self, Self::Postgres { .. } | Self::Slow { .. } | Self::Tls { .. } | Self::Authority { .. })
    }

    /// Whether it is about what was asked, and would be the same another time.
    pub fn is_askers(&self) -> bool {
        matches!(self, Self::Name { .. } | Self::Segment { .. } | Self::TooMany | Self::Overflow)
    }
}

fn with_sources(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    text
}

/// Where a store is.
#[derive(Clone)]
pub enum Place {
    /// A file.
    Sqlite(PathBuf),
    /// A database.
    Postgres {
        /// Its URL. Never printed: it has a password in it.
        url: String,
        /// A file with the CAs of which its certificate must be; without it, those of the system.
        authority: Option<PathBuf>,
    },
}

/// Whether a store that is new or old is made or migrated when it is opened.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Migration {
    /// Yes.
    Apply,
    /// No: that is [`Error::Older`].
    Refuse,
}

/// Records that are deleted in one transaction.
const FORGET_AT_ONCE: i64 = 10_000;

/// A table whose rows are forgotten by the day of their end.
#[derive(Clone, Copy)]
struct Dated {
    table: &'static str,
    /// Columns of the primary key.
    id: &'static str,
    /// Column of the end.
    ended: &'static str,
}

const DATED: [Dated; 2] = [
    Dated { table: "records", id: "id", ended: "ended_ms" },
    Dated { table: "segments", id: "booking, number", ended: "to_ms" },
];

/// What was forgotten.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Forgotten {
    /// Days that had records.
    pub days: u64,
    /// Records, of requests and of segments.
    pub records: u64,
}

/// Records or segments that are read from another store at once.
const IMPORT_AT_ONCE: u32 = 1_000;

/// What became of what another store has.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Imported {
    /// Of records of requests.
    pub records: Receipt,
    /// Of segments of bookings that ended.
    pub segments: Receipt,
    /// Records and segments that cannot be read, and were left out; the log names them.
    pub unreadable: u64,
}

/// What is in a store.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Summary {
    /// Version of its schema.
    pub version: i32,
    /// Records of requests.
    pub records: u64,
    /// Segments of bookings that ended.
    pub segments: u64,
    /// End of the first request, Unix milliseconds.
    pub first_ms: Option<i64>,
    /// End of the last request, Unix milliseconds.
    pub last_ms: Option<i64>,
}

/// A store of records.
#[derive(Clone)]
pub enum Store {
    /// In a file.
    Sqlite(Sqlite),
    /// In a database.
    Postgres(Postgres),
}

impl Store {
    /// Opens the store at a place.
    ///
    /// # Errors
    ///
    /// [`Error::Newer`], [`Error::Older`], or why it cannot be opened.
    pub async fn open(place: &Place, migration: Migration) -> Result<Self, Error> {
        match place {
            Place::Sqlite(path) => Sqlite::open(path, migration).await.map(Self::Sqlite),
            Place::Postgres { url, authority } => {
                Postgres::open(url, authority.clone(), migration).await.map(Self::Postgres)
            }
        }
    }

    /// Stores records that are not known, in one transaction, and returns when it is durable. A record of an id that is known is counted as
    /// [`Receipt::known`] if it is the same, or else as [`Receipt::differing`] and logged. After a connection was lost while PostgreSQL stored them,
    /// they are sent again, and those that it had stored count as known.
    ///
    /// # Errors
    ///
    /// [`Error`]; nothing is stored then, but for PostgreSQL when no answer came: whoever sends them again is safe.
    pub async fn put(&self, records: Vec<UsageRecord>) -> Result<Receipt, Error> {
        let batch = Batch::new(records)?;
        let (receipt, differing) = match self {
            Self::Sqlite(store) => store.put(batch).await?,
            Self::Postgres(store) => store.put(&batch).await?,
        };
        for id in differing.iter().take(10) {
            tracing::warn!(%id, "a record differs from the one that is stored of its request, which stands");
        }
        if differing.len() > 10 {
            tracing::warn!(count = differing.len(), "records differ from those that are stored, which stand");
        }
        Ok(receipt)
    }

    /// Stores segments that are not known, in one transaction, and returns when it is durable; as [`Store::put`] does with records. With them it notes
    /// how many bookings of their archive are stored from the first on.
    ///
    /// # Errors
    ///
    /// As [`Store::put`].
    pub async fn put_segments(&self, posted: Segments) -> Result<SegmentReceipt, Error> {
        let batch = SegmentBatch::new(posted)?;
        let (receipt, differing) = match self {
            Self::Sqlite(store) => store.put_segments(batch).await?,
            Self::Postgres(store) => store.put_segments(&batch).await?,
        };
        for (booking, number) in differing.iter().take(10) {
            tracing::warn!(
                booking,
                number,
                "a segment differs from the one that is stored of its booking, which stands"
            );
        }
        Ok(receipt)
    }

    /// Stores what another store, a file, has and this one has not, and notes what of archives it has then. Days that the other one has forgotten are
    /// forgotten here as well: where there is something of them here, only if that `may_forget`. Again and again is safe; what is stored in the other one
    /// meanwhile may be missed.
    ///
    /// # Errors
    ///
    /// [`Error::WouldForget`], before anything is changed; or what either store says. Some of it may be stored by then.
    pub async fn import(&self, from: &Sqlite, may_forget: bool) -> Result<Imported, Error> {
        let (mut total, mut incomplete) = (Imported::default(), BTreeSet::new());
        if let Some(before_ms) = from.forgotten_day().await?.map(day_start_ms) {
            let has_older = match self {
                Self::Sqlite(store) => store.has_before(before_ms).await?,
                Self::Postgres(store) => store.has_before(before_ms).await?,
            };
            if has_older && !may_forget {
                return Err(Error::WouldForget { before_ms });
            }
            self.forget_before(before_ms).await?;
        }
        // Before what it is about: more of it does not harm.
        let archives = from.archives().await?;
        let mut unreadable = |error: Error| {
            tracing::error!(%error, "it is left out");
            total.unreadable = total.unreadable.saturating_add(1);
        };
        let mut after = Vec::new();
        loop {
            let flat = from.flat_records(after, IMPORT_AT_ONCE).await?;
            let Some(last) = flat.last() else { break };
            after = last.id.clone();
            let records: Vec<_> =
                flat.into_iter().filter_map(|flat| UsageRecord::try_from(flat).map_err(&mut unreadable).ok()).collect();
            total.records = total.records.and(self.put(records).await?);
            tracing::info!(records = total.records.total(), "imported");
        }
        let mut after = (String::new(), i64::MIN);
        loop {
            let flat = from.segments(after, IMPORT_AT_ONCE).await?;
            let Some(last) = flat.last() else { break };
            after = (last.booking.clone(), last.number);
            let mut posted: BTreeMap<String, Vec<EndedSegment>> = BTreeMap::new();
            for one in flat {
                let (id, of) = (one.booking.clone(), one.archive.clone());
                match one.ended() {
                    Some((archive, segment)) => posted.entry(archive).or_default().push(segment),
                    None => {
                        unreadable(Error::Corrupt { id, field: "number, place or devices" });
                        incomplete.insert(of);
                    }
                }
            }
            for (archive, segments) in posted {
                let receipt = self.put_segments(Segments { archive, segments, ..Segments::default() }).await?;
                total.segments = total.segments.and(receipt.receipt);
            }
            tracing::info!(segments = total.segments.total(), "imported");
        }
        // Of others not all is here.
        for (archive, held) in archives.into_iter().filter(|(archive, _)| !incomplete.contains(archive)) {
            match self {
                Self::Sqlite(store) => store.adopt(archive, held).await?,
                Self::Postgres(store) => store.adopt(&archive, held).await?,
            }
        }
        Ok(total)
    }

    /// Sums of the GPU time that passes the filter, sorted by their groups, and since when they are complete. Without a group it is one row.
    ///
    /// # Errors
    ///
    /// [`Error::TooMany`], [`Error::Overflow`], or what the store says.
    pub async fn gpu_usage(&self, filter: &GpuFilter, groups: &[GpuGroup]) -> Result<GpuUsage, Error> {
        let groups: Vec<GpuGroup> = GpuGroup::ALL.into_iter().filter(|group| groups.contains(group)).collect();
        let mut usage = match self {
            Self::Sqlite(store) => store.gpu_usage(filter.clone(), groups).await?,
            Self::Postgres(store) => store.gpu_usage(filter, &groups).await?,
        };
        if usage.rows.len() > MOST_ROWS {
            return Err(Error::TooMany);
        }
        usage.rows.sort_unstable();
        Ok(usage)
    }

    /// Sums of the records that pass the filter, sorted by their groups. Without a group it is one row, of everything.
    ///
    /// # Errors
    ///
    /// [`Error::TooMany`], [`Error::Overflow`], or what the store says.
    pub async fn usage(&self, filter: &Filter, groups: &[Group]) -> Result<Vec<Usage>, Error> {
        let groups = query::distinct(groups);
        let mut rows = match self {
            Self::Sqlite(store) => store.usage(filter.clone(), groups).await?,
            Self::Postgres(store) => store.usage(filter, &groups).await?,
        };
        if rows.len() > MOST_ROWS {
            return Err(Error::TooMany);
        }
        // Not by the store: each has its own order of text.
        rows.sort_unstable_by(|one, other| one.group.cmp(&other.group));
        Ok(rows)
    }

    /// The records that pass the filter and whose id is above `after`, at most `limit` (and [`MOST_READ`]) of them, by their ids. Who reads on with
    /// the last id sees each record once, but may miss those that come late: gateways may ship a record long after its id was made.
    ///
    /// # Errors
    ///
    /// What the store says.
    pub async fn records(
        &self,
        filter: &Filter,
        after: Option<RequestId>,
        limit: u32,
    ) -> Result<Vec<UsageRecord>, Error> {
        let limit = limit.min(MOST_READ);
        match self {
            Self::Sqlite(store) => store.records(filter.clone(), after, limit).await,
            Self::Postgres(store) => store.records(filter, after, limit).await,
        }
    }

    /// Deletes the records of whole days that ended by `before_ms`, Unix milliseconds, the first ones first, and remembers that they are forgotten: such
    /// records that come later are not stored, for they may have been before.
    ///
    /// # Errors
    ///
    /// What the store says. Some records may be deleted by then; the next time deletes the others.
    pub async fn forget_before(&self, before_ms: i64) -> Result<Forgotten, Error> {
        let day = before_ms.div_euclid(DAY_MS);
        match self {
            Self::Sqlite(store) => store.forget_before(day).await,
            Self::Postgres(store) => store.forget_before(day).await,
        }
    }

    /// Whether it answers.
    ///
    /// # Errors
    ///
    /// Why it does not.
    pub async fn ping(&self) -> Result<(), Error> {
        match self {
            Self::Sqlite(store) => store.ping().await,
            Self::Postgres(store) => store.ping().await,
        }
    }

    /// Whether it can work again without a start of the process: a store that cannot be reached now is alive.
    pub fn is_alive(&self) -> bool {
        match self {
            Self::Sqlite(store) => store.is_alive(),
            Self::Postgres(_) => true,
        }
    }

    /// Checks the store as far as it can be, and counts.
    ///
    /// # Errors
    ///
    /// What is wrong.
    pub async fn check(&self) -> Result<Summary, Error> {
        match self {
            Self::Sqlite(store) => store.check().await,
            Self::Postgres(store) => store.check().await,
        }
    }

    /// Writes a copy of an SQLite store, as it is at one moment, while it is used on. The copy is there whole, or not at all.
    ///
    /// # Errors
    ///
    /// [`Error::NoBackup`], or why it cannot be written.
    pub async fn backup(&self, to: PathBuf) -> Result<(), Error> {
        match self {
            Self::Sqlite(store) => store.backup(to).await,
            Self::Postgres(_) => Err(Error::NoBackup),
        }
    }
}

/// The day of a time, counted from 1970-01-01.
fn day_of(at_ms: i64) -> i64 {
    at_ms.div_euclid(DAY_MS)
}

/// The first millisecond of a day.
fn day_start_ms(day: i64) -> i64 {
    day.saturating_mul(DAY_MS)
}
