//! Reads bills for shipping, beside the writer. Blocks on files: called where that is allowed.

use std::fs::File;
use std::io::ErrorKind;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use spillway_metering::tokens::{Entry, UsageRecord};

use super::frame::{self, Kind, Read};
use super::state::{Segment, Shared};
use super::{Error, Sequence, record, segment_path};

/// How much of a file is read at once: many of the largest frames.
const CHUNK_BYTES: u64 = 256 << 10;

/// Bills, in the order of the log.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Shipment {
    /// The bills.
    pub records: Vec<UsageRecord>,
    /// For [`Wal::acknowledge`](super::Wal::acknowledge), when all of them, and of the shipments before, are stored.
    pub up_to: Sequence,
}

/// A place in the log. Sees what is durable, and nothing else.
pub struct Reader {
    shared: Arc<Shared>,
    /// Number of the next record.
    next: u64,
    place: Option<Place>,
}

struct Place {
    file: File,
    first: u64,
    offset: u64,
    /// Number of the record there.
    sequence: u64,
}

impl Reader {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        let next = shared.lock().acknowledged;
        Self { shared, next, place: None }
    }

    /// The next bills, `most` at most; none where there is none yet.
    pub fn next(&mut self, most: usize) -> Result<Option<Shipment>, Error> {
        let mut shipment = Shipment::default();
        while shipment.records.len() < most {
            if !self.read_chunk(most, &mut shipment)? {
                break;
            }
        }
        shipment.up_to = Sequence(self.next);
        Ok((!shipment.records.is_empty()).then_some(shipment))
    }

    /// Reads a part of one segment; whether it is in another place than before.
    fn read_chunk(&mut self, most: usize, shipment: &mut Shipment) -> Result<bool, Error> {
        let Some(segment) = self.shared.lock().segments.iter().find(|segment| segment.end > self.next).cloned() else {
            return Ok(false);
        };
        let path = segment_path(&self.shared.config.directory, segment.first);
        if self.place.as_ref().is_none_or(|place| place.first != segment.first) {
            let file = match File::open(&path) {
                // It was acknowledged and deleted just now.
                Err(error) if error.kind() == ErrorKind::NotFound && !self.is_listed(&segment) => return Ok(true),
                opened => opened.map_err(Error::io("open", &path))?,
            };
            self.place = Some(Place { file, first: segment.first, offset: 0, sequence: segment.first });
        }
        let Some(place) = &mut self.place else { return Ok(false) };
        let length = segment.safe_bytes.saturating_sub(place.offset).min(CHUNK_BYTES);
        let mut chunk = vec![0; usize::try_from(length).unwrap_or_default()];
        place.file.read_exact_at(&mut chunk, place.offset).map_err(Error::io("read", &path))?;
        let started = place.offset;
        let mut rest = chunk.as_slice();
        while shipment.records.len() < most {
            let damaged = |reason| Error::Damaged { path: path.clone(), offset: place.offset, reason };
            let (kind, payload, length) = match frame::read(rest) {
                Read::End => break,
                Read::Short if place.offset > started => break,
                Read::Short | Read::Bad => return Err(damaged("no frame can be read there, though it was safe")),
                Read::Frame { kind, payload, length } => (kind, payload, length),
            };
            match kind {
                Some(Kind::Segment | Kind::Batch) => {}
                Some(kind) => {
                    if kind == Kind::Close && place.sequence >= self.next {
                        match record::decode(kind, payload) {
                            Some(Entry::Close(record)) => shipment.records.push(record),
                            _ => return Err(damaged("a frame there is whole, but means nothing to this version")),
                        }
                    }
                    place.sequence += 1;
                }
                None => return Err(damaged("a frame there is whole, but means nothing to this version")),
            }
            place.offset += length;
            rest = usize::try_from(length).ok().and_then(|length| rest.get(length..)).unwrap_or_default();
        }
        let moved = place.offset > started;
        self.next = self.next.max(place.sequence);
        Ok(moved)
    }

    /// Whether a segment is still part of the log.
    fn is_listed(&self, segment: &Segment) -> bool {
        self.shared.lock().segments.iter().any(|listed| listed.first == segment.first)
    }
}
