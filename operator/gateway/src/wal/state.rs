//! What the callers of a log, its writer and its readers share: the queue, the open requests, the room, the segments.
//!
//! The room is kept by one invariant: `disk + queued + reserved <= limit`. An opening adds to `queued` and `reserved`, and
//! is refused where that does not fit; a closing record moves its own from `reserved` to `queued`, and always fits; a
//! write moves from `queued` to `disk`, at most what was charged.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use spillway_metering::tokens::{Ending, Mark, Opening, RequestId};
use tokio::sync::{oneshot, watch};

use super::frame::{self, Kind};
use super::record::{self, ENDING_BYTES, MARK_BYTES};
use super::recovery::Recovered;
use super::{Config, Error, Sequence};

/// What a record of `payload` bytes may take at most: alone in a write that begins a segment.
fn charge(payload: usize) -> u64 {
    payload as u64 + frame::OVERHEAD + frame::BATCH_BYTES + frame::SEGMENT_BYTES
}

/// How full a log is, and how it does.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Stats {
    /// Bytes of the files, and of what is queued for them at most.
    pub used_bytes: u64,
    /// Bytes that are kept for the closing records of open requests.
    pub reserved_bytes: u64,
    /// The most that both may be.
    pub limit_bytes: u64,
    /// Files.
    pub segments: usize,
    /// Requests that are open.
    pub open: usize,
    /// Records that are durable.
    pub durable: Sequence,
    /// Bills before it are stored elsewhere.
    pub acknowledged: Sequence,
    /// Bills that are durable here and not known to be stored elsewhere.
    pub unacknowledged: usize,
    /// What the file system last said, while it fails.
    pub failing: Option<String>,
}

/// A request that was opened and not closed.
struct OpenRequest {
    /// The opening record's payload, with which the closing one begins.
    opening: Box<[u8]>,
    started_ms: i64,
    /// The last mark's payload.
    mark: Option<[u8; MARK_BYTES]>,
    /// Its last opening record.
    home: u64,
    /// What its closing record may take.
    reserved: u64,
}

/// Someone who waits for a closing record, and what it closes.
#[derive(Debug)]
pub(super) struct Closing {
    /// Number of the closing record.
    sequence: u64,
    /// Number of the opening one.
    home: u64,
    /// Who waits; nobody for what a crash left.
    waiter: Option<oneshot::Sender<Sequence>>,
}

impl Closing {
    /// Says that it is durable.
    pub(super) fn answer(self) {
        if let Some(waiter) = self.waiter {
            // Whoever no longer waits has its bill all the same.
            let _ = waiter.send(Sequence(self.sequence));
        }
    }
}

/// Records on their way, one after the other.
#[derive(Debug, Default)]
pub(super) struct Batch {
    /// Their frames.
    pub(super) frames: Vec<u8>,
    /// Number of the first.
    pub(super) first: u64,
    /// How many.
    pub(super) records: u64,
    /// What was charged for them.
    pub(super) charge: u64,
    /// Closing records among them.
    pub(super) closings: Vec<Closing>,
    /// Opening records that others among them take the place of.
    pub(super) moved: Vec<u64>,
}

impl Batch {
    /// Number of the record after the last.
    pub(super) fn end(&self) -> u64 {
        self.first + self.records
    }

    /// Takes over what comes right after it.
    pub(super) fn extend(&mut self, next: &mut Self) {
        if self.records == 0 {
            self.first = next.first;
        }
        self.frames.extend_from_slice(&next.frames);
        self.records += next.records;
        self.charge += next.charge;
        self.closings.append(&mut next.closings);
        self.moved.append(&mut next.moved);
    }

    /// Empties it and keeps its room.
    pub(super) fn clear(&mut self) {
        self.frames.clear();
        self.closings.clear();
        self.moved.clear();
        (self.records, self.charge) = (0, 0);
    }
}

/// A file of the log.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Segment {
    /// Number of its first record.
    pub(super) first: u64,
    /// Number after its last safe record.
    pub(super) end: u64,
    /// Bytes that are safe.
    pub(super) safe_bytes: u64,
    /// Bytes of the file.
    pub(super) file_bytes: u64,
    /// Its last closing record.
    pub(super) last_close: Option<u64>,
}

/// See the module.
#[derive(Default)]
pub(super) struct State {
    /// What waits for the writer.
    pub(super) pending: Batch,
    /// Oldest first.
    pub(super) segments: VecDeque<Segment>,
    /// Bytes of all files.
    pub(super) disk: u64,
    /// Charges of what is not written.
    pub(super) queued: u64,
    /// Charges of the closing records to come.
    reserved: u64,
    open: HashMap<RequestId, OpenRequest>,
    /// The opening records that are needed: of open requests, and of closed ones whose closing record is not durable.
    homes: BTreeMap<u64, RequestId>,
    /// Number after the last durable record.
    pub(super) durable: u64,
    /// Bills before it are stored elsewhere.
    pub(super) acknowledged: u64,
    /// Numbers of the bills from then on that are durable, in order.
    closes: VecDeque<u64>,
    /// Something may be deleted now.
    pub(super) reclaim: bool,
    pub(super) failing: Option<String>,
    pub(super) stopping: bool,
    /// The writer sleeps.
    pub(super) idle: bool,
}

impl State {
    /// Bytes that nobody has a claim to.
    pub(super) fn room(&self, limit: u64) -> u64 {
        limit.saturating_sub(self.disk).saturating_sub(self.queued).saturating_sub(self.reserved)
    }

    /// Queues a record; its number.
    fn push(&mut self, kind: Kind, parts: &[&[u8]]) -> u64 {
        let charge = charge(parts.iter().map(|part| part.len()).sum());
        frame::append(&mut self.pending.frames, kind, parts);
        let sequence = self.pending.end();
        self.pending.records += 1;
        self.pending.charge += charge;
        self.queued += charge;
        sequence
    }

    /// Queues a closing record.
    pub(super) fn push_close(
        &mut self,
        opening: &[u8],
        ending: &Ending,
        home: u64,
        waiter: Option<oneshot::Sender<Sequence>>,
    ) {
        let sequence = self.push(Kind::Close, &[opening, &record::encode_ending(ending)]);
        self.pending.closings.push(Closing { sequence, home, waiter });
    }

    /// Takes away the oldest segment, where nothing needs it any more and it is not being written.
    pub(super) fn take_deletable(&mut self, current: Option<u64>, limit: u64) -> Option<Segment> {
        let may_move = std::mem::take(&mut self.reclaim);
        let acknowledged = self.acknowledged;
        let is_needed = |head: &Segment| head.last_close.is_some_and(|last| last >= acknowledged);
        let head = self.segments.front().filter(|head| current != Some(head.first) && !is_needed(head))?.clone();
        if self.homes.first_key_value().is_some_and(|(home, _)| *home < head.end) {
            if may_move && self.disk > limit / 2 {
                self.move_open(&head, limit);
            }
            return None;
        }
        self.segments.pop_front();
        self.disk -= head.file_bytes;
        // The next one may go, too.
        self.reclaim = may_move;
        Some(head)
    }

    /// Puts back what could not be deleted.
    pub(super) fn put_back(&mut self, head: Segment) {
        self.disk += head.file_bytes;
        self.segments.push_front(head);
        self.reclaim = false;
    }

    /// Queues the records of open requests that alone hold the segment to be written again, where that takes half of its
    /// bytes at most.
    fn move_open(&mut self, head: &Segment, limit: u64) {
        let mut cost = 0;
        let mut moving = Vec::new();
        for (home, id) in self.homes.range(..head.end) {
            // What is closed already goes with its closing record, and what was written again already with that.
            let Some(open) = self.open.get(id).filter(|open| open.home == *home) else { continue };
            cost += charge(open.opening.len()) + open.mark.map_or(0, |mark| charge(mark.len()));
            moving.push((*id, *home));
        }
        if cost > head.file_bytes / 2 || cost > self.room(limit) {
            return;
        }
        for (id, old) in moving {
            let Some(mut open) = self.open.remove(&id) else { continue };
            open.home = self.push(Kind::Open, &[&open.opening]);
            if let Some(mark) = open.mark {
                self.push(Kind::Mark, &[&mark]);
            }
            self.homes.insert(open.home, id);
            self.pending.moved.push(old);
            self.open.insert(id, open);
        }
    }

    /// Says how large the file of the last segment is now.
    pub(super) fn set_file_bytes(&mut self, bytes: u64) {
        if let Some(segment) = self.segments.back_mut() {
            self.disk = self.disk - segment.file_bytes + bytes;
            segment.file_bytes = bytes;
        }
    }

    /// Settles what became safe with `batch`, in the last segment.
    pub(super) fn settle(&mut self, batch: &Batch, safe_bytes: u64) {
        self.durable = batch.end();
        self.closes.extend(batch.closings.iter().map(|closing| closing.sequence));
        if let Some(segment) = self.segments.back_mut() {
            (segment.end, segment.safe_bytes) = (batch.end(), safe_bytes);
            segment.last_close = batch.closings.last().map(|closing| closing.sequence).or(segment.last_close);
        }
        for home in batch.moved.iter().chain(batch.closings.iter().map(|closing| &closing.home)) {
            self.homes.remove(home);
        }
    }
}

/// The state, who is woken for it, and what is said of it.
pub(super) struct Shared {
    pub(super) config: Config,
    state: Mutex<State>,
    wake: Condvar,
    pub(super) durable: watch::Sender<Sequence>,
}

impl Shared {
    pub(super) fn new(config: Config, recovered: &Recovered) -> Self {
        let state = State {
            pending: Batch { first: recovered.next, ..Batch::default() },
            disk: recovered.segments.iter().map(|segment| segment.file_bytes).sum(),
            segments: recovered.segments.clone(),
            durable: recovered.next,
            acknowledged: recovered.acknowledged,
            closes: recovered.unacknowledged().collect(),
            reclaim: true,
            ..State::default()
        };
        let durable = watch::Sender::new(Sequence(recovered.next));
        Self { config, state: Mutex::new(state), wake: Condvar::new(), durable }
    }

    /// The state. Nothing panics with it in hand, so what is said of one that did is still whole.
    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits to be woken, for `limit` at most.
    pub(super) fn wait<'a>(
        &'a self,
        mut state: MutexGuard<'a, State>,
        limit: Option<Duration>,
    ) -> MutexGuard<'a, State> {
        state.idle = true;
        let mut state = match limit {
            None => self.wake.wait(state).unwrap_or_else(PoisonError::into_inner),
            Some(limit) => self.wake.wait_timeout(state, limit).unwrap_or_else(PoisonError::into_inner).0,
        };
        state.idle = false;
        state
    }

    fn wake(&self, state: &State) {
        if state.idle {
            self.wake.notify_one();
        }
    }

    pub(super) fn open(&self, opening: &Opening) -> Result<(), Error> {
        let payload = record::encode_opening(opening)?;
        let (charged, reserved) = (charge(payload.len()), charge(payload.len() + ENDING_BYTES));
        let mut state = self.lock();
        if state.stopping {
            return Err(Error::Stopped);
        }
        if let Some(reason) = &state.failing {
            return Err(Error::Failing { reason: reason.clone() });
        }
        if state.pending.frames.len() >= self.config.queue_bytes {
            return Err(Error::Busy);
        }
        let before = state.open.get(&opening.id).map(|open| (open.reserved, open.home, open.mark));
        let kept = before.map_or(0, |(reserved, _, _)| reserved);
        let needed = charged + reserved;
        if needed > state.room(self.config.limit_bytes) + kept {
            return Err(self.full(&state, needed));
        }
        state.reserved = state.reserved - kept + reserved;
        let home = state.push(Kind::Open, &[&payload]);
        state.homes.insert(home, opening.id);
        state.pending.moved.extend(before.map(|(_, home, _)| home));
        let mark = before.and_then(|(_, _, mark)| mark);
        let started_ms = opening.started_ms;
        state.open.insert(opening.id, OpenRequest { opening: payload.into(), started_ms, mark, home, reserved });
        self.wake(&state);
        Ok(())
    }

    pub(super) fn mark(&self, mark: &Mark) -> Result<(), Error> {
        let payload = record::encode_mark(mark);
        let mut state = self.lock();
        if state.stopping {
            return Err(Error::Stopped);
        }
        let Some(open) = state.open.get_mut(&mark.id) else { return Err(Error::NotOpen { id: mark.id }) };
        open.mark = Some(payload);
        if state.pending.frames.len() >= self.config.queue_bytes {
            return Err(Error::Busy);
        }
        let needed = charge(payload.len());
        if needed > state.room(self.config.limit_bytes) {
            return Err(self.full(&state, needed));
        }
        state.push(Kind::Mark, &[&payload]);
        self.wake(&state);
        Ok(())
    }

    pub(super) fn close(&self, id: RequestId, ending: Ending) -> Result<oneshot::Receiver<Sequence>, Error> {
        let (waiter, durable) = oneshot::channel();
        let mut state = self.lock();
        if state.stopping {
            return Err(Error::Stopped);
        }
        let Some(open) = state.open.remove(&id) else { return Err(Error::NotOpen { id }) };
        state.reserved -= open.reserved;
        state.push_close(&open.opening, &ending.after(open.started_ms), open.home, Some(waiter));
        self.wake(&state);
        Ok(durable)
    }

    pub(super) fn acknowledge(&self, up_to: Sequence) {
        let mut state = self.lock();
        let up_to = up_to.0.min(state.durable);
        if up_to <= state.acknowledged || state.stopping {
            return;
        }
        state.acknowledged = up_to;
        let stored = state.closes.partition_point(|close| *close < up_to);
        state.closes.drain(..stored);
        state.reclaim = true;
        let payload = up_to.to_le_bytes();
        // Where there is no room to remember it, it is remembered until the end of the process.
        if charge(payload.len()) <= state.room(self.config.limit_bytes) {
            state.push(Kind::Acknowledged, &[&payload]);
        }
        self.wake(&state);
    }

    pub(super) fn stats(&self) -> Stats {
        let state = self.lock();
        Stats {
            used_bytes: state.disk + state.queued,
            reserved_bytes: state.reserved,
            limit_bytes: self.config.limit_bytes,
            segments: state.segments.len(),
            open: state.open.len(),
            durable: Sequence(state.durable),
            acknowledged: Sequence(state.acknowledged),
            unacknowledged: state.closes.len(),
            failing: state.failing.clone(),
        }
    }

    /// Takes no more, and lets the writer end with what is queued.
    pub(super) fn stop(&self) {
        self.lock().stopping = true;
        self.wake.notify_one();
    }

    fn full(&self, state: &State, needed: u64) -> Error {
        Error::Full {
            needed,
            used: state.disk + state.queued,
            reserved: state.reserved,
            limit: self.config.limit_bytes,
        }
    }
}

/// Stops the log when the writer ends, however it does: nobody waits for one that is gone.
pub(super) struct StopOnDrop(pub(super) Arc<Shared>);

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.stopping = true;
        state.pending.clear();
    }
}
