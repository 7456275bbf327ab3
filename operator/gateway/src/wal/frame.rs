//! Frames: `length u32, crc32c u32, kind u8, payload`, little endian. Pure.

use super::MOST_NAME_BYTES;

/// Bytes of a frame beside its payload.
pub(super) const OVERHEAD: u64 = 9;
/// Bytes of a [`Kind::Segment`] frame.
pub(super) const SEGMENT_BYTES: u64 = OVERHEAD + 25;
/// Bytes of a [`Kind::Batch`] frame.
pub(super) const BATCH_BYTES: u64 = OVERHEAD + 8;
/// The version of the format, in every segment's first frame.
const VERSION: u8 = 1;
/// No payload is longer: a closing record with eight of the longest names has 2,123 bytes.
const MOST_PAYLOAD_BYTES: usize = 8 * (MOST_NAME_BYTES + 2) + 64;

/// What a frame is. The numbers are of the format: never changed, only added to.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Kind {
    /// First in each segment: [`Header`].
    Segment,
    /// First in each write: the offset (u64) before which the segment was safe by then.
    Batch,
    /// An opening record.
    Open,
    /// A mark.
    Mark,
    /// A closing record.
    Close,
    /// Bills of records before this number (u64) are acknowledged.
    Acknowledged,
}

impl Kind {
    fn byte(self) -> u8 {
        match self {
            Self::Segment => 1,
            Self::Batch => 2,
            Self::Open => 3,
            Self::Mark => 4,
            Self::Close => 5,
            Self::Acknowledged => 6,
        }
    }

    pub(super) fn of_byte(byte: u8) -> Option<Self> {
        [Self::Segment, Self::Batch, Self::Open, Self::Mark, Self::Close, Self::Acknowledged]
            .into_iter()
            .find(|kind| kind.byte() == byte)
    }
}

/// Appends a frame whose payload is `parts`, one after the other.
pub(super) fn append(buffer: &mut Vec<u8>, kind: Kind, parts: &[&[u8]]) {
    let length = parts.iter().map(|part| part.len()).sum::<usize>();
    // Names are bounded, so payloads are far below 4 GiB.
    let length = u32::try_from(length).unwrap_or(u32::MAX).to_le_bytes();
    let start = buffer.len();
    buffer.extend_from_slice(&length);
    buffer.extend_from_slice(&[0; 4]);
    buffer.push(kind.byte());
    for part in parts {
        buffer.extend_from_slice(part);
    }
    let sum = checksum(length, buffer.get(start + 8..).unwrap_or_default());
    if let Some(place) = buffer.get_mut(start + 4..start + 8) {
        place.copy_from_slice(&sum);
    }
}

/// The checksum of a frame: of its length, and of its kind and payload.
fn checksum(length: [u8; 4], rest: &[u8]) -> [u8; 4] {
    crc32c::crc32c_append(crc32c::crc32c(&length), rest).to_le_bytes()
}

/// What stands at the beginning of some bytes.
#[derive(Debug, Eq, PartialEq)]
pub(super) enum Read<'a> {
    /// A frame that checks. No kind: one that this version does not know.
    Frame { kind: Option<Kind>, payload: &'a [u8], length: u64 },
    /// Nothing.
    End,
    /// The beginning of a frame, so far as can be seen.
    Short,
    /// No frame.
    Bad,
}

/// Reads the frame at the beginning of `bytes`.
pub(super) fn read(bytes: &[u8]) -> Read<'_> {
    if bytes.is_empty() {
        return Read::End;
    }
    let Some((head, rest)) = bytes.split_first_chunk::<8>() else { return Read::Short };
    let [l0, l1, l2, l3, s0, s1, s2, s3] = *head;
    let length_bytes = [l0, l1, l2, l3];
    let length = usize::try_from(u32::from_le_bytes(length_bytes)).unwrap_or(usize::MAX);
    if length > MOST_PAYLOAD_BYTES {
        return Read::Bad;
    }
    let Some(rest) = rest.get(..=length) else { return Read::Short };
    let Some((kind, payload)) = rest.split_first().filter(|_| checksum(length_bytes, rest) == [s0, s1, s2, s3]) else {
        return Read::Bad;
    };
    Read::Frame { kind: Kind::of_byte(*kind), payload, length: OVERHEAD + payload.len() as u64 }
}

/// The first frame of a segment.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Header {
    /// Number of the first record.
    pub(super) first: u64,
    /// The segment before: its first record, and the offset at which it ends.
    pub(super) previous: Option<(u64, u64)>,
}

impl Header {
    /// Appends it as a frame.
    pub(super) fn append(self, buffer: &mut Vec<u8>) {
        let (previous, end) = self.previous.unwrap_or((u64::MAX, 0));
        let parts: [&[u8]; 4] = [&[VERSION], &self.first.to_le_bytes(), &previous.to_le_bytes(), &end.to_le_bytes()];
        append(buffer, Kind::Segment, &parts);
    }

    /// The header of a payload; none where another version wrote it.
    pub(super) fn of_payload(payload: &[u8]) -> Option<Self> {
        let (version, numbers) = payload.split_first()?;
        let (first, rest) = numbers.split_first_chunk()?;
        let (previous, rest) = rest.split_first_chunk()?;
        let end = u64_of(rest)?;
        let previous = u64::from_le_bytes(*previous);
        let previous = (previous != u64::MAX).then_some((previous, end));
        (*version == VERSION).then_some(Self { first: u64::from_le_bytes(*first), previous })
    }
}

/// The payload of a batch or an acknowledgement.
pub(super) fn u64_of(payload: &[u8]) -> Option<u64> {
    payload.try_into().ok().map(u64::from_le_bytes)
}

/// Whether anything in `bytes` claims that the place `offset`, at which no frame can be read, was safe: then it was
/// damaged since.
pub(super) fn is_claimed_safe(bytes: &[u8], offset: u64) -> bool {
    let Some(mut rest) = usize::try_from(offset).ok().and_then(|offset| bytes.get(offset..)) else { return false };
    while let Some((_, next)) = rest.split_first() {
        rest = next;
        // Most places are ruled out by the length, without a checksum.
        if rest.first_chunk() == Some(&8_u32.to_le_bytes())
            && let Read::Frame { kind: Some(Kind::Batch), payload, .. } = read(rest)
            && u64_of(payload).is_some_and(|safe| safe > offset)
        {
            return true;
        }
    }
    false
}
