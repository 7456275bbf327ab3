//! The service and its stores as they are used: SQLite in files, a real PostgreSQL on loopback, the API over HTTP, and the binary killed.
//!
//! PostgreSQL is Debian's `postgresql-15`. Where it is missing, root installs it (no service is started), and anybody else is told to.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "helpers of tests are tests too"
)]

mod api;
mod contract;
mod gpu;
mod import;
mod killed;
mod postgres;
mod restarts;
mod security;
mod several;
mod tls;

use std::time::{SystemTime, UNIX_EPOCH};

use spillway_metering::tokens::{Cause, Ending, Opening, Outcome, RequestId, Tokens, UsageRecord};
use spillway_usage::store::{Migration, Place, Store};

/// 2026-11-26.
pub(crate) const DAY: i64 = 20_783;

/// A record of request `number`, which is in no other but by the number.
pub(crate) fn record(number: u64) -> UsageRecord {
    let mut random = [0; 10];
    random[2..].copy_from_slice(&number.to_be_bytes());
    let started_ms = DAY * 86_400_000 + i64::try_from(number % 86_000_000).unwrap();
    UsageRecord {
        opening: Opening {
            id: RequestId::new(started_ms.try_into().unwrap(), random),
            tenant: format!("tenant-{}", number % 3).into(),
            namespace: "models".into(),
            endpoint: format!("chat-{}", number % 2).into(),
            model: "tiny".into(),
            version: "v1".into(),
            key: format!("key-{}", number % 5).into(),
            gateway: "gateway-0".into(),
            replica: "chat-0-abc".into(),
            started_ms,
            stream: number.is_multiple_of(2),
        },
        ending: Ending {
            ended_ms: started_ms + 250,
            tokens: Tokens::new(100 + number % 7, number % 7, 10 + number % 11).unwrap(),
            outcome: if number.is_multiple_of(10) { Outcome::Partial(Cause::ClientGone) } else { Outcome::Complete },
            adjusted: Default::default(),
        },
    }
}

pub(crate) fn records(numbers: std::ops::Range<u64>) -> Vec<UsageRecord> {
    numbers.map(record).collect()
}

pub(crate) fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis().try_into().unwrap()
}

/// Everything in a store, by its ids.
pub(crate) async fn all(store: &Store) -> Vec<UsageRecord> {
    let (mut all, mut after) = (Vec::new(), None);
    loop {
        let page = store.records(&Default::default(), after, 10_000).await.unwrap();
        let Some(last) = page.last() else { return all };
        after = Some(last.opening.id);
        all.extend(page);
    }
}

/// A place for one test, that is gone after it.
pub(crate) enum Home {
    Sqlite(tempfile::TempDir),
    Postgres(std::sync::Arc<postgres::Server>, String),
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Kind {
    Sqlite,
    Postgres,
}

impl Home {
    pub(crate) fn new(kind: Kind) -> Self {
        match kind {
            Kind::Sqlite => Self::Sqlite(tempfile::tempdir().unwrap()),
            Kind::Postgres => {
                let server = postgres::shared();
                let database = server.new_database();
                Self::Postgres(server, database)
            }
        }
    }

    pub(crate) fn place(&self) -> Place {
        match self {
            Self::Sqlite(folder) => Place::Sqlite(folder.path().join("usage.db")),
            Self::Postgres(server, database) => server.place(database),
        }
    }

    pub(crate) async fn open(&self) -> Store {
        Store::open(&self.place(), Migration::Apply).await.unwrap()
    }
}
