//! The one thread that writes a log: takes what is queued, writes it, syncs it where somebody waits, answers, and deletes
//! what is not needed any more.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::files::{Files, Lock};
use super::frame::{self, Header, Kind};
use super::state::{Batch, Segment, Shared, State, StopOnDrop};
use super::{Durability, Error, LAZY_SYNC, Sequence, segment_path};

/// Records that nobody waits for are synced when they are this many bytes: they are kept in memory until then.
const MOST_DOUBTFUL_BYTES: usize = 1 << 20;
/// How long a disk that failed twice is left alone at first, and at most.
const PAUSE: Duration = Duration::from_millis(10);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// The segment that is written.
struct Current<Open> {
    file: Open,
    path: PathBuf,
    first: u64,
    bytes: u64,
    /// What of it is safe: synced, or with [`Durability::Process`] written.
    safe_bytes: u64,
}

/// See the module.
pub(super) struct Writer<F: Files> {
    files: F,
    shared: Arc<Shared>,
    current: Option<Current<F::Segment>>,
    /// The last segment that was ended: its first record, and where it ends.
    previous: Option<(u64, u64)>,
    /// What was just taken.
    fresh: Batch,
    /// All that is not safe, what was just taken at its end: what a new segment must begin with when this one fails.
    doubtful: Batch,
    /// Since when there is something written and not synced.
    dirty_since: Option<Instant>,
    buffer: Vec<u8>,
    /// Held for as long as the log is written.
    _lock: Lock,
}

impl<F: Files> Writer<F> {
    pub(super) fn new(files: F, lock: Lock, shared: Arc<Shared>, previous: Option<(u64, u64)>) -> Self {
        Self {
            files,
            shared,
            current: None,
            previous,
            fresh: Batch::default(),
            doubtful: Batch::default(),
            dirty_since: None,
            buffer: Vec::new(),
            _lock: lock,
        }
    }

    /// Writes what is queued, durably, or says why not: before the thread is started.
    pub(super) fn flush(&mut self) -> Result<(), Error> {
        let mut state = self.shared.lock();
        if state.pending.records == 0 {
            return Ok(());
        }
        take(&mut self.fresh, &mut state);
        drop(state);
        let (fresh_at, charge) = self.join();
        let path = self.shared.config.directory.clone();
        self.write(fresh_at, true).map_err(Error::io("write a segment in", &path))?;
        self.publish(charge);
        Ok(())
    }

    /// Writes until the log is stopped.
    pub(super) fn run(mut self) {
        let _stop = StopOnDrop(Arc::clone(&self.shared));
        while let Some(sync) = self.next() {
            if self.fresh.records > 0 || sync {
                let (fresh_at, charge) = self.join();
                if !self.commit(fresh_at, charge, sync) {
                    return;
                }
            }
            self.reclaim();
        }
        if let Err(error) = self.finish() {
            tracing::error!(%error, records = self.doubtful.records, "the log was closed before its last records were synced");
        }
    }

    /// Waits for something to do, and takes what is queued; whether it must be synced. None when the log is stopped and
    /// nothing is left.
    fn next(&mut self) -> Option<bool> {
        let mut state = self.shared.lock();
        loop {
            let left = self.dirty_since.map(|since| LAZY_SYNC.saturating_sub(since.elapsed()));
            let due = left.is_some_and(|left| left.is_zero());
            if state.pending.records > 0 {
                take(&mut self.fresh, &mut state);
                return Some(due || !self.fresh.closings.is_empty());
            }
            if state.stopping {
                return None;
            }
            if due || state.reclaim {
                return Some(due);
            }
            state = self.shared.wait(state, left);
        }
    }

    /// Adds what was taken to what is not safe; where it begins there, and what was charged for it.
    fn join(&mut self) -> (usize, u64) {
        let (fresh_at, charge) = (self.doubtful.frames.len(), self.fresh.charge);
        self.doubtful.extend(&mut self.fresh);
        self.fresh.clear();
        (fresh_at, charge)
    }

    /// Writes until it worked; whether it did, before the log was stopped.
    fn commit(&mut self, fresh_at: usize, charge: u64, sync: bool) -> bool {
        let mut pause = Duration::ZERO;
        let mut is_last = false;
        loop {
            let Err(error) = self.write(fresh_at, sync) else {
                self.publish(charge);
                return true;
            };
            tracing::warn!(%error, "a segment of the log failed and was given up");
            self.give_up();
            if is_last {
                tracing::error!(%error, records = self.doubtful.records, "the log was closed before its last records were written");
                return false;
            }
            // A new segment may work at once: where one failed only the second time says that the disk does.
            if pause.is_zero() {
                pause = PAUSE;
                continue;
            }
            is_last = !self.pause(&error, pause);
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// Writes what was not written yet, from `fresh_at` on, or in a new segment all that is not safe.
    fn write(&mut self, fresh_at: usize, sync: bool) -> io::Result<()> {
        self.buffer.clear();
        let is_new = self.current.is_none();
        if is_new {
            self.create()?;
        }
        let Some(current) = &mut self.current else { return Err(io::ErrorKind::NotFound.into()) };
        let from = if is_new { 0 } else { fresh_at };
        let frames = self.doubtful.frames.get(from..).unwrap_or_default();
        if !frames.is_empty() {
            frame::append(&mut self.buffer, Kind::Batch, &[&current.safe_bytes.to_le_bytes()]);
            self.buffer.extend_from_slice(frames);
            current.bytes += self.buffer.len() as u64;
            self.files.write(&mut current.file, &self.buffer)?;
        }
        let config = &self.shared.config;
        match config.durability {
            Durability::Process => current.safe_bytes = current.bytes,
            Durability::Disk => {
                let large = current.bytes >= config.segment_bytes || self.doubtful.frames.len() >= MOST_DOUBTFUL_BYTES;
                if sync || large {
                    self.files.sync(&mut current.file)?;
                    if current.safe_bytes == 0 {
                        self.files.sync_directory(&config.directory)?;
                    }
                    current.safe_bytes = current.bytes;
                }
            }
        }
        Ok(())
    }

    /// Begins a segment; its header waits in the buffer.
    fn create(&mut self) -> io::Result<()> {
        let first = self.doubtful.first;
        let path = segment_path(&self.shared.config.directory, first);
        let file = match self.files.create(&path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                // Given up before anything in it was safe, and could not be deleted then.
                self.files.remove(&path)?;
                self.files.create(&path)?
            }
            created => created?,
        };
        Header { first, previous: self.previous }.append(&mut self.buffer);
        self.current = Some(Current { file, path, first, bytes: 0, safe_bytes: 0 });
        let segment = Segment { first, end: first, safe_bytes: 0, file_bytes: 0, last_close: None };
        self.shared.lock().segments.push_back(segment);
        Ok(())
    }

    /// Says what was written, and answers who waited for it.
    fn publish(&mut self, charge: u64) {
        let Some(current) = &self.current else { return };
        let is_safe = current.safe_bytes == current.bytes;
        let is_full = current.bytes >= self.shared.config.segment_bytes;
        let mut state = self.shared.lock();
        if state.failing.take().is_some() {
            tracing::info!("the log can be written again");
        }
        state.queued -= charge;
        state.set_file_bytes(current.bytes);
        if is_safe {
            state.settle(&self.doubtful, current.safe_bytes);
        }
        state.reclaim |= is_full;
        drop(state);
        if !is_safe {
            self.dirty_since.get_or_insert_with(Instant::now);
            return;
        }
        for closing in self.doubtful.closings.drain(..) {
            closing.answer();
        }
        self.shared.durable.send_replace(Sequence(self.doubtful.end()));
        self.doubtful.clear();
        self.dirty_since = None;
        if is_full && let Some(full) = self.current.take() {
            self.previous = Some((full.first, full.safe_bytes));
        }
    }

    /// Ends the segment that failed at its last safe frame. It may be that nothing more can be done to it: the header of
    /// the next one says where it ends.
    fn give_up(&mut self) {
        self.dirty_since = None;
        let Some(mut current) = self.current.take() else { return };
        if current.safe_bytes == 0 {
            if let Err(error) = self.files.remove(&current.path) {
                tracing::warn!(%error, path = %current.path.display(), "cannot delete a segment that failed");
            }
            let mut state = self.shared.lock();
            state.set_file_bytes(0);
            state.segments.pop_back();
            return;
        }
        let cut = self.files.truncate(&mut current.file, current.safe_bytes);
        self.shared.lock().set_file_bytes(if cut.is_ok() { current.safe_bytes } else { current.bytes });
        self.previous = Some((current.first, current.safe_bytes));
    }

    /// Leaves a failing disk alone for a while; whether the log is still wanted then.
    fn pause(&self, error: &io::Error, pause: Duration) -> bool {
        let until = Instant::now() + pause;
        let mut state = self.shared.lock();
        state.failing = Some(error.to_string());
        loop {
            let left = until.saturating_duration_since(Instant::now());
            if state.stopping || left.is_zero() {
                return !state.stopping;
            }
            state = self.shared.wait(state, Some(left));
        }
    }

    /// Deletes the segments that are not needed any more, the oldest first.
    fn reclaim(&mut self) {
        let current = self.current.as_ref().map(|current| current.first);
        let config = &self.shared.config;
        loop {
            let mut state = self.shared.lock();
            let Some(head) = state.take_deletable(current, config.limit_bytes) else { return };
            drop(state);
            let path = segment_path(&config.directory, head.first);
            match self.files.remove(&path) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => {
                    tracing::warn!(%error, path = %path.display(), "cannot delete a segment that is stored elsewhere");
                    self.shared.lock().put_back(head);
                    return;
                }
            }
            // One after the other: a log with a gap would be refused as damaged.
            if config.durability == Durability::Disk
                && let Err(error) = self.files.sync_directory(&config.directory)
            {
                tracing::warn!(%error, "cannot sync the log's directory");
                return;
            }
        }
    }

    /// Makes safe what is written, and says so in the log: damage of its end can be told from a torn tail then.
    fn finish(&mut self) -> io::Result<()> {
        if self.doubtful.records > 0 {
            self.write(self.doubtful.frames.len(), true)?;
            self.publish(0);
        }
        let Some(current) = &mut self.current else { return Ok(()) };
        if self.shared.lock().room(self.shared.config.limit_bytes) < frame::BATCH_BYTES {
            return Ok(());
        }
        self.buffer.clear();
        frame::append(&mut self.buffer, Kind::Batch, &[&current.safe_bytes.to_le_bytes()]);
        self.files.write(&mut current.file, &self.buffer)?;
        if self.shared.config.durability == Durability::Disk {
            self.files.sync(&mut current.file)?;
        }
        Ok(())
    }
}

/// Takes what is queued into `fresh`, which is empty.
fn take(fresh: &mut Batch, state: &mut State) {
    let next = state.pending.end();
    std::mem::swap(fresh, &mut state.pending);
    state.pending.first = next;
}
