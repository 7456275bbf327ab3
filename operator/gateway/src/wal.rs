//! The log of what is billed: a record is opened when a request goes upstream, marked while it runs, and closed, durably,
//! before its last chunk is released (docs/adr/0011-the-shape-of-hosted-models.md). No text of prompts or answers goes in.
//!
//! **Frames.** `length u32, crc32c u32, kind u8, payload`, little endian; the length is the payload's, the checksum is of
//! length, kind and payload (so that zeros are no frame). Payloads are a fixed binary form (`record.rs`). Measured against
//! JSON, a bill has 170 bytes instead of 363, and is written in 0.1 to 0.9 µs instead of 0.9 and read in 0.4 instead of 3.5.
//! Opening, mark, closing and acknowledgement are *records* and numbered; a closing record holds all of the bill, so that
//! it stands for itself.
//!
//! **Segments** are files `<number of the first record>.log`. The first frame of one says where the one before it ends:
//! what stands after that place there was given up. Every write begins with a frame that says up to which offset the
//! segment was safe by then. So a start can tell a torn tail, which nothing behind it claims to be safe and which is cut
//! off, from damage, which is refused with its file and offset. What it cannot tell from a torn tail is damage within the
//! very last write before a crash; an orderly end leaves a claim behind that one, too.
//!
//! **Writing.** One thread takes whatever is queued, writes it with one call and, where anybody waits for it, syncs it
//! with one. Openings and marks are written at once, too, but synced with the next closing record, or after [`LAZY_SYNC`].
//! With [`Durability::Process`] nothing is ever synced. After a failed write or sync the segment is given up at its last
//! safe frame, and all that came after is written again into a new one: a failed sync is never tried again as if it could
//! still work. While that fails too, new requests are refused, and those who wait go on waiting.
//!
//! **Room.** `limit_bytes` bounds the files. An opening is refused when it would take what the closing records of the
//! open requests need: their room is set aside when they are opened, so a closing record always has it. A mark is refused
//! like that, too; it only makes the bill after a crash nearer to what was used. (Where the disk itself fails, each segment
//! that is given up may cost a header's bytes above the limit, and its tail where it cannot be cut off.)
//!
//! **What goes.** [`Wal::acknowledge`] says up to where the bills are stored elsewhere. The oldest segment is deleted once
//! all requests that were opened in it are closed and all bills in it are acknowledged. Where long requests alone hold it
//! and the log is half full, their records are written again at the end. How far the bills were acknowledged is a record
//! of the log itself, not a file beside it, which could say more than the log has. Where the last one is lost, bills are
//! shipped again, which the store knows by their ids.

mod aside;
mod files;
mod frame;
mod reader;
mod record;
mod recovery;
mod state;
mod writer;

pub use recovery::fuzz_log;

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use spillway_metering::tokens::{Ending, Mark, Opening, RequestId};
use tokio::sync::{oneshot, watch};

pub use self::aside::{Aside, Refused};
pub use self::reader::{Reader, Shipment};
pub use self::recovery::{Recovery, Torn};
pub use self::state::Stats;

use self::files::{Disk, Files};
use self::state::Shared;
use self::writer::Writer;

/// The most bytes that one name in a record may have. Names of Kubernetes have 253.
pub const MOST_NAME_BYTES: usize = 256;
/// The smallest segment: two of the largest requests fit.
pub const LEAST_SEGMENT_BYTES: u64 = 8 << 10;
/// How long what nobody waits for may stay unsynced.
pub const LAZY_SYNC: Duration = Duration::from_millis(250);

/// Number of a record in a log. It means nothing outside of the log's process: after all of a log was deleted, its numbers
/// begin again.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Sequence(u64);

impl Sequence {
    /// The number.
    pub fn get(self) -> u64 {
        self.0
    }
}

impl fmt::Display for Sequence {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(formatter)
    }
}

/// What a record that is durable survives.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Durability {
    /// The loss of power: synced to the disk.
    #[default]
    Disk,
    /// The end of the process, however it comes, but not that of the machine. After one, a log may be refused as damaged.
    Process,
}

/// Where a log stands and how much room it has.
#[derive(Clone, Debug)]
pub struct Config {
    /// Directory of the log and of nothing else. Made where there is none.
    pub directory: PathBuf,
    /// What a durable record survives.
    pub durability: Durability,
    /// The most bytes that its files may have, at least two segments.
    pub limit_bytes: u64,
    /// Size from which on a segment is closed: it may be larger by one write.
    pub segment_bytes: u64,
    /// The most bytes of openings and marks that wait for the writer. Closing records always may.
    pub queue_bytes: usize,
}

impl Config {
    /// A log of at most `limit_bytes`, in segments of a 16th of it, of 8 MiB at most.
    pub fn new(directory: impl Into<PathBuf>, durability: Durability, limit_bytes: u64) -> Self {
        let segment_bytes = (limit_bytes / 16).clamp(LEAST_SEGMENT_BYTES, 8 << 20);
        Self { directory: directory.into(), durability, limit_bytes, segment_bytes, queue_bytes: 4 << 20 }
    }
}

/// Why a log was not opened, or did not take a record.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The sizes make no log.
    #[error(
        "a log needs segments of at least {LEAST_SEGMENT_BYTES} bytes and a limit of two of them, not {segment_bytes} and {limit_bytes}"
    )]
    Config {
        /// Size of a segment.
        segment_bytes: u64,
        /// The limit.
        limit_bytes: u64,
    },
    /// Another process writes this log.
    #[error("the log in {} is being written by another process", directory.display())]
    Locked {
        /// Directory of the log.
        directory: PathBuf,
    },
    /// The file system failed.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A part of the log that was safe is not what was written. Nothing of the log was changed.
    #[error(
        "{} is damaged at offset {offset}: {reason}; set the log aside, and bill what is before that place by hand",
        path.display()
    )]
    Damaged {
        /// The segment.
        path: PathBuf,
        /// Where in it.
        offset: u64,
        /// What is wrong there.
        reason: &'static str,
    },
    /// No room to set more aside.
    #[error(
        "no more than {limit} bytes are set aside in {}: the usage service refuses too much for this to be a few odd bills",
        path.display()
    )]
    AsideFull {
        /// The file.
        path: PathBuf,
        /// The most that it may have.
        limit: u64,
    },
    /// There is no log.
    #[error("there is no log in {}", directory.display())]
    None {
        /// The directory.
        directory: PathBuf,
    },
    /// No room for another request.
    #[error(
        "the log is full: {needed} bytes are needed, {used} are used and {reserved} are kept for requests that run, of {limit}; \
         it has room again when the usage service has taken its records"
    )]
    Full {
        /// Bytes that the record needs.
        needed: u64,
        /// Bytes of the files and the queue.
        used: u64,
        /// Bytes that closing records of open requests will need.
        reserved: u64,
        /// The limit.
        limit: u64,
    },
    /// The writer does not keep up.
    #[error("the log's queue is full")]
    Busy,
    /// The disk fails; requests that run wait for it.
    #[error("the log cannot be written now: {reason}")]
    Failing {
        /// What the file system last said.
        reason: String,
    },
    /// A mark or an end of a request that is not open.
    #[error("request {id} is not open")]
    NotOpen {
        /// The request.
        id: RequestId,
    },
    /// A name that no record has room for.
    #[error("a name of {bytes} bytes is longer than the {MOST_NAME_BYTES} that a record holds")]
    NameTooLong {
        /// Its length.
        bytes: usize,
    },
    /// The writer is gone: what was not said to be durable may not be.
    #[error("the log is closed")]
    Stopped,
}

impl Error {
    fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { action, path: path.to_path_buf(), source }
    }
}

/// What is in a log that nobody writes.
#[derive(Clone, Debug)]
pub struct Look {
    /// What opening it would find.
    pub recovery: Recovery,
    /// Bills that are set aside.
    pub set_aside: usize,
}

/// A log that is open for writing. Dropping it writes and syncs what is queued, which takes as long as the disk does.
pub struct Wal {
    shared: Arc<Shared>,
    aside: Arc<Aside>,
    writer: Option<JoinHandle<()>>,
}

impl Wal {
    /// Opens the log: cuts off a torn tail, bills what is open as `partial: crash`, durably, and says what it found. Reads
    /// all of the log, and blocks for as long.
    pub fn open(config: Config) -> Result<(Self, Recovery), Error> {
        Self::open_on(config, Disk)
    }

    fn open_on(config: Config, files: impl Files) -> Result<(Self, Recovery), Error> {
        let (segment_bytes, limit_bytes) = (config.segment_bytes, config.limit_bytes);
        if segment_bytes < LEAST_SEGMENT_BYTES || limit_bytes / 2 < segment_bytes {
            return Err(Error::Config { segment_bytes, limit_bytes });
        }
        let lock = files::lock(&config.directory)?;
        let aside = Arc::new(Aside::open(&config.directory)?);
        let recovered = recovery::recover(&config.directory, config.durability)?;
        let shared = Arc::new(Shared::new(config, &recovered));
        let mut writer = Writer::new(files, lock, Arc::clone(&shared), recovered.previous);
        let recovery = recovered.bill(&shared)?;
        writer.flush()?;
        let path = shared.config.directory.clone();
        let writer = std::thread::Builder::new()
            .name("wal".to_owned())
            .spawn(move || writer.run())
            .map_err(Error::io("start the writer of", &path))?;
        Ok((Self { shared, aside, writer: Some(writer) }, recovery))
    }

    /// Says what opening a log that nobody writes would find, and changes nothing of it.
    ///
    /// # Errors
    ///
    /// [`Error::None`], [`Error::Locked`], [`Error::Damaged`], or what the file system says.
    pub fn look(directory: &Path) -> Result<Look, Error> {
        if !recovery::is_log(directory)? {
            return Err(Error::None { directory: directory.to_path_buf() });
        }
        let _lock = files::lock(directory)?;
        let recovery = recovery::look(directory)?;
        Ok(Look { recovery, set_aside: Aside::read(directory)?.0.count() })
    }

    /// The bills that the usage service does not take.
    pub fn aside(&self) -> &Arc<Aside> {
        &self.aside
    }

    /// Opens a request; one that is open already goes on with what is said now (elsewhere). Returns at once: the record is
    /// on its way. After an error the request must not go upstream.
    pub fn open_request(&self, opening: &Opening) -> Result<(), Error> {
        self.shared.open(opening)
    }

    /// Marks what an open request has used so far. Returns at once. After an error, a crash is billed at the mark before.
    pub fn mark(&self, mark: &Mark) -> Result<(), Error> {
        self.shared.mark(mark)
    }

    /// Closes a request, and returns when its bill is durable. Only then may the last chunk go. While the disk fails this
    /// waits, and whoever stops waiting has a bill nevertheless as soon as the disk works. An error means that there may be
    /// no bill.
    pub async fn close(&self, id: RequestId, ending: Ending) -> Result<Sequence, Error> {
        let durable = self.begin_close(id, ending)?;
        durable.await.map_err(|_| Error::Stopped)
    }

    /// Closes a request; the receiver says when that is durable.
    fn begin_close(&self, id: RequestId, ending: Ending) -> Result<oneshot::Receiver<Sequence>, Error> {
        self.shared.close(id, ending)
    }

    /// Says that all bills before `up_to` are stored elsewhere ([`Shipment::up_to`]): the log may forget them.
    pub fn acknowledge(&self, up_to: Sequence) {
        self.shared.acknowledge(up_to);
    }

    /// Reads the bills that are not acknowledged, and those to come.
    pub fn reader(&self) -> Reader {
        Reader::new(Arc::clone(&self.shared))
    }

    /// The number up to which records are durable, whenever it grows: for a shipper to wait on.
    pub fn durable(&self) -> watch::Receiver<Sequence> {
        self.shared.durable.subscribe()
    }

    /// How full the log is, and how it does.
    pub fn stats(&self) -> Stats {
        self.shared.stats()
    }
}

impl Drop for Wal {
    fn drop(&mut self) {
        self.shared.stop();
        if let Some(writer) = self.writer.take()
            && writer.join().is_err()
        {
            tracing::error!("the writer of the log panicked");
        }
    }
}

impl fmt::Debug for Wal {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Wal").field("stats", &self.stats()).finish_non_exhaustive()
    }
}

/// The file of the segment that begins with record `first`.
fn segment_path(directory: &Path, first: u64) -> PathBuf {
    directory.join(format!("{first:020}.log"))
}

#[cfg(test)]
mod tests;
