//! What a log holds when it is opened: reads all of it, and cuts off a torn tail.

use std::collections::{HashMap, VecDeque};
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use spillway_metering::tokens::{Entry, OpenRequests, RequestId, UsageRecord};

use super::frame::{self, Header, Kind, Read};
use super::state::{Segment, Shared};
use super::{Durability, Error, record, segment_path};

const BAD: &str = "no frame can be read there, though what follows says that it was safe";
const UNKNOWN: &str = "a frame there is whole, but means nothing to this version";

/// What was found in a log when it was opened.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Recovery {
    /// Bills of the requests that were open: the log holds them now.
    pub crashed: Vec<UsageRecord>,
    /// Bills that are not acknowledged, those of the crash among them.
    pub unacknowledged: u64,
    /// What was cut off: of the last segment, and the beginning of another one.
    pub torn: Vec<Torn>,
}

/// The end of a last segment that nobody was told to be durable.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Torn {
    /// The segment.
    pub path: PathBuf,
    /// Where it ends now; 0 where it is gone.
    pub offset: u64,
    /// How much was cut off.
    pub bytes: u64,
}

/// What the files hold.
#[derive(Default)]
pub(super) struct Recovered {
    /// Oldest first.
    pub(super) segments: VecDeque<Segment>,
    /// Number of the next record.
    pub(super) next: u64,
    /// Bills before it are stored elsewhere.
    pub(super) acknowledged: u64,
    /// The last segment: its first record, and where it ends.
    pub(super) previous: Option<(u64, u64)>,
    open: OpenRequests,
    homes: HashMap<RequestId, u64>,
    /// Closing records.
    closes: Vec<u64>,
    torn: Vec<Torn>,
}

impl Recovered {
    /// Numbers of the bills that are not acknowledged, in order.
    pub(super) fn unacknowledged(&self) -> impl Iterator<Item = u64> + '_ {
        self.closes.iter().copied().filter(|close| *close >= self.acknowledged)
    }

    /// Queues the bills of what was open.
    pub(super) fn bill(mut self, shared: &Shared) -> Result<Recovery, Error> {
        let unacknowledged = self.unacknowledged().count() + self.open.len();
        let crashed: Vec<_> = self.open.into_crashed().collect();
        let mut state = shared.lock();
        for bill in &crashed {
            let home = self.homes.remove(&bill.opening.id).unwrap_or_default();
            state.push_close(&record::encode_opening(&bill.opening)?, &bill.ending, home, None);
        }
        Ok(Recovery { crashed, unacknowledged: unacknowledged as u64, torn: self.torn })
    }

    /// Reads the frames of a segment that begins with `header`, as far as it goes.
    fn read(&mut self, header: Header, bytes: &[u8]) -> Scan {
        let mut segment = Segment {
            first: header.first,
            end: header.first,
            safe_bytes: 0,
            file_bytes: bytes.len() as u64,
            last_close: None,
        };
        let mut rest = bytes;
        let mut at_start = true;
        let stop = loop {
            let (kind, payload, length) = match frame::read(rest) {
                Read::End => break Stop::End,
                Read::Short | Read::Bad => break Stop::Bad,
                Read::Frame { kind, payload, length } => (kind, payload, length),
            };
            let known = match kind {
                Some(Kind::Segment) => at_start,
                Some(Kind::Batch) => frame::u64_of(payload).is_some(),
                Some(kind) => self.record(kind, payload, &mut segment),
                None => false,
            };
            if !known {
                break Stop::Unknown;
            }
            at_start = false;
            segment.safe_bytes += length;
            rest = usize::try_from(length).ok().and_then(|length| rest.get(length..)).unwrap_or_default();
        };
        Scan { segment, stop }
    }

    /// Reads a record; whether it means anything.
    fn record(&mut self, kind: Kind, payload: &[u8], segment: &mut Segment) -> bool {
        let sequence = segment.end;
        if kind == Kind::Acknowledged {
            let Some(up_to) = frame::u64_of(payload) else { return false };
            self.acknowledged = self.acknowledged.max(up_to);
        } else {
            let Some(entry) = record::decode(kind, payload) else { return false };
            match &entry {
                Entry::Open(opening) => {
                    self.homes.insert(opening.id, sequence);
                }
                Entry::Mark(_) => {}
                Entry::Close(_) => {
                    self.homes.remove(&entry.id());
                    self.closes.push(sequence);
                    segment.last_close = Some(sequence);
                }
            }
            self.open.apply(entry);
        }
        segment.end += 1;
        true
    }
}

/// Feeds one input of a fuzzer to the reader of segments, as frames that check and then as bytes: what it takes as safe is all there, means the same when
/// it is read again, and ends where it says. Of each frame the first byte is the kind, the second the length of what follows; a kind of 0 ends them.
#[doc(hidden)]
pub fn fuzz_log(data: &[u8]) {
    let header = Header { first: 0, previous: None };
    let mut bytes = Vec::new();
    header.append(&mut bytes);
    let mut rest = data;
    while let Some((&[kind, length], after)) = rest.split_first_chunk() {
        let (payload, after) = after.split_at(after.len().min(usize::from(length)));
        rest = after;
        let Some(kind) = Kind::of_byte(kind) else { break };
        frame::append(&mut bytes, kind, &[payload]);
    }
    bytes.extend_from_slice(rest);
    let read = |bytes: &[u8]| {
        let mut recovered = Recovered::default();
        let scan = recovered.read(header, bytes);
        let safe = usize::try_from(scan.segment.safe_bytes).unwrap_or(usize::MAX);
        let bills: Vec<u64> = recovered.unacknowledged().collect();
        let crashed: Vec<UsageRecord> = recovered.open.into_crashed().collect();
        (safe, scan.segment.end, bills, crashed, matches!(scan.stop, Stop::End))
    };
    let (safe, end, bills, crashed, _) = read(&bytes);
    assert!(safe <= bytes.len());
    let again = read(bytes.get(..safe).unwrap_or_default());
    assert!(again == (safe, end, bills, crashed, true));
}

/// One segment, read as far as it goes.
struct Scan {
    segment: Segment,
    stop: Stop,
}

enum Stop {
    End,
    /// At what is no frame.
    Bad,
    /// At a frame that checks.
    Unknown,
}

/// Reads all of a log, and cuts off what is torn. Changes nothing before all of it was read.
pub(super) fn recover(directory: &Path, durability: Durability) -> Result<Recovered, Error> {
    let mut recovered = scan(directory)?;
    recovered.clean(directory, durability)?;
    Ok(recovered)
}

/// What [`recover`] and billing would find, without any of it being done.
pub(super) fn look(directory: &Path) -> Result<Recovery, Error> {
    let recovered = scan(directory)?;
    let unacknowledged = (recovered.unacknowledged().count() + recovered.open.len()) as u64;
    Ok(Recovery { unacknowledged, crashed: recovered.open.into_crashed().collect(), torn: recovered.torn })
}

/// Whether a directory has a log: a segment, or the lock of one that has none.
pub(super) fn is_log(directory: &Path) -> Result<bool, Error> {
    let exists = directory.try_exists().map_err(Error::io("look at", directory))?;
    Ok(exists && (directory.join("lock").exists() || !list(directory)?.is_empty()))
}

fn scan(directory: &Path) -> Result<Recovered, Error> {
    let mut recovered = Recovered::default();
    let mut firsts = list(directory)?;
    let mut last = read_last(directory, &mut firsts, &mut recovered)?;
    for (position, first) in firsts.iter().enumerate() {
        let path = segment_path(directory, *first);
        let bytes = if position + 1 == firsts.len() { std::mem::take(&mut last) } else { read_file(&path)? };
        let header = header(&bytes, *first).ok_or_else(|| damaged(&path, 0, BAD))?;
        if let Some(before) = recovered.segments.back() {
            if header.previous != Some((before.first, before.safe_bytes)) || header.first != before.end {
                return Err(damaged(
                    &path,
                    0,
                    "the segment before it is not the one that was there when this one was begun",
                ));
            }
        } else {
            recovered.acknowledged = header.first;
        }
        let end = match firsts.get(position + 1) {
            None => bytes.len() as u64,
            Some(next) => end_of(directory, *first, *next)?,
        };
        let kept = usize::try_from(end).ok().and_then(|end| bytes.get(..end));
        let kept =
            kept.ok_or_else(|| damaged(&path, bytes.len() as u64, "it is shorter than the segment after it says"))?;
        let scan = recovered.read(header, kept);
        let offset = scan.segment.safe_bytes;
        let is_last = position + 1 == firsts.len();
        match scan.stop {
            Stop::End => {}
            Stop::Bad if is_last && !frame::is_claimed_safe(&bytes, offset) => {
                let bytes = bytes.len() as u64 - offset;
                recovered.torn.push(Torn { path: path.clone(), offset, bytes });
            }
            Stop::Bad => return Err(damaged(&path, offset, BAD)),
            Stop::Unknown => return Err(damaged(&path, offset, UNKNOWN)),
        }
        recovered.next = scan.segment.end;
        recovered.previous = Some((*first, offset));
        recovered.segments.push_back(Segment { file_bytes: bytes.len() as u64, ..scan.segment });
    }
    Ok(recovered)
}

impl Recovered {
    /// Cuts off what was given up or torn, and makes durable what was read, which only the machine's memory may hold.
    fn clean(&mut self, directory: &Path, durability: Durability) -> Result<(), Error> {
        for torn in self.torn.iter().filter(|torn| torn.offset == 0) {
            fs::remove_file(&torn.path).map_err(Error::io("delete the torn", &torn.path))?;
        }
        // A last segment without a record would have the name of the next one.
        if let Some(empty) = self.segments.pop_back_if(|last| last.first == last.end) {
            let path = segment_path(directory, empty.first);
            fs::remove_file(&path).map_err(Error::io("delete the empty", &path))?;
            self.previous = self.segments.back().map(|last| (last.first, last.safe_bytes));
        }
        for segment in &mut self.segments {
            let path = segment_path(directory, segment.first);
            if segment.file_bytes == segment.safe_bytes && durability == Durability::Process {
                continue;
            }
            let file = File::options().write(true).open(&path).map_err(Error::io("open", &path))?;
            if segment.file_bytes != segment.safe_bytes {
                file.set_len(segment.safe_bytes).map_err(Error::io("cut off the end of", &path))?;
                segment.file_bytes = segment.safe_bytes;
            }
            if durability == Durability::Disk {
                file.sync_all().map_err(Error::io("sync", &path))?;
            }
        }
        if durability == Durability::Disk {
            File::open(directory).and_then(|file| file.sync_all()).map_err(Error::io("sync", directory))?;
        }
        Ok(())
    }
}

/// The contents of the last segment. One whose beginning was never written is none: the one before it is the last then.
fn read_last(directory: &Path, firsts: &mut Vec<u64>, recovered: &mut Recovered) -> Result<Vec<u8>, Error> {
    let Some(first) = firsts.last().copied() else { return Ok(Vec::new()) };
    let path = segment_path(directory, first);
    let bytes = read_file(&path)?;
    if header(&bytes, first).is_some() {
        return Ok(bytes);
    }
    if matches!(frame::read(&bytes), Read::Frame { .. }) {
        return Err(damaged(&path, 0, UNKNOWN));
    }
    if frame::is_claimed_safe(&bytes, 0) {
        return Err(damaged(&path, 0, BAD));
    }
    recovered.torn.push(Torn { path, offset: 0, bytes: bytes.len() as u64 });
    firsts.pop();
    firsts.last().map_or(Ok(Vec::new()), |before| read_file(&segment_path(directory, *before)))
}

/// Where the segment `first` ends, as the one after it says.
fn end_of(directory: &Path, first: u64, next: u64) -> Result<u64, Error> {
    let path = segment_path(directory, next);
    let mut bytes = [0; frame::SEGMENT_BYTES as usize];
    let mut file = File::open(&path).map_err(Error::io("open", &path))?;
    std::io::Read::read_exact(&mut file, &mut bytes).map_err(|_| damaged(&path, 0, BAD))?;
    let header = header(&bytes, next).ok_or_else(|| damaged(&path, 0, BAD))?;
    match header.previous {
        Some((previous, end)) if previous == first => Ok(end),
        _ => Err(damaged(&path, 0, "the segment before it is not the one that was there when this one was begun")),
    }
}

fn header(bytes: &[u8], first: u64) -> Option<Header> {
    match frame::read(bytes) {
        Read::Frame { kind: Some(Kind::Segment), payload, .. } => {
            Header::of_payload(payload).filter(|header| header.first == first)
        }
        _ => None,
    }
}

/// First records of the segments of a directory, in order.
fn list(directory: &Path) -> Result<Vec<u64>, Error> {
    let failed = || Error::io("list", directory);
    let mut firsts = Vec::new();
    for entry in fs::read_dir(directory).map_err(failed())? {
        let path = entry.map_err(failed())?.path();
        if path.extension().is_none_or(|extension| extension != "log") {
            continue;
        }
        let first = path.file_stem().and_then(|name| name.to_str()).and_then(|name| name.parse().ok());
        match first.filter(|first| segment_path(directory, *first) == path) {
            Some(first) => firsts.push(first),
            None => return Err(damaged(&path, 0, "its name is not that of a segment")),
        }
    }
    firsts.sort_unstable();
    Ok(firsts)
}

fn read_file(path: &Path) -> Result<Vec<u8>, Error> {
    fs::read(path).map_err(Error::io("read", path))
}

fn damaged(path: &Path, offset: u64, reason: &'static str) -> Error {
    Error::Damaged { path: path.to_path_buf(), offset, reason }
}
