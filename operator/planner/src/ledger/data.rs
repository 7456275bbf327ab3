//! What pages hold, as JSON. The module documentation of `ledger` is the reference.

use std::{collections::BTreeMap, io, sync::Arc};

use serde::{Deserialize, Deserializer, Serialize, de::DeserializeOwned};

use super::{FORMAT, LoadError, PART_BYTES, Page, PageKind, PageName, Stored};
use crate::{
    packing::Learned,
    types::{Booking, BookingId, PoolName, Segment},
};

/// `data` of an index page.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct IndexData {
    pub(super) format: i32,
    pub(super) pool: PoolName,
    pub(super) bookings: Vec<PageName>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) archive: Option<PageName>,
    pub(super) archived: i64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) stored: Option<Stored>,
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "lenient")]
    pub(super) learned: Option<Arc<Learned>>,
}

/// What was learned and cannot be read any more is begun anew: it decides how well is packed, and nothing else.
fn lenient<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Arc<Learned>>, D::Error> {
    let value = serde_json::Value::deserialize(from)?;
    Ok(serde_json::from_value(value).ok().map(Arc::new))
}

/// Segments of a split booking from an index on.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Continued {
    pub(super) booking: BookingId,
    pub(super) first: usize,
    pub(super) segments: Vec<Segment>,
}

/// What booking and archive pages have in common.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Content {
    pub(super) bookings: Vec<Arc<Booking>>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) split: BTreeMap<BookingId, usize>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) continued: Vec<Continued>,
}

/// `data` of a bookings page.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct BookingsData {
    pub(super) format: i32,
    pub(super) pool: PoolName,
    pub(super) bookings: Vec<Arc<Booking>>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) split: BTreeMap<BookingId, usize>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) continued: Vec<Continued>,
}

impl BookingsData {
    pub(super) fn new(pool: &PoolName, content: Content) -> Self {
        let Content { bookings, split, continued } = content;
        Self { format: FORMAT, pool: pool.clone(), bookings, split, continued }
    }

    pub(super) fn content(self) -> Content {
        let Self { bookings, split, continued, .. } = self;
        Content { bookings, split, continued }
    }
}

/// `data` of an archive page.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ArchiveData {
    pub(super) format: i32,
    pub(super) pool: PoolName,
    pub(super) day: Arc<str>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) previous: Option<PageName>,
    pub(super) bookings: Vec<Arc<Booking>>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) split: BTreeMap<BookingId, usize>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) continued: Vec<Continued>,
}

/// What any page's `data` starts with.
#[derive(Deserialize)]
struct Head {
    format: i32,
    pool: PoolName,
}

pub(super) trait PageData: DeserializeOwned {
    const KIND: PageKind;
    fn format(&self) -> i32;
    fn pool(&self) -> &PoolName;
}

macro_rules! page_data {
    ($($name:ident: $kind:ident),*) => {$(
        impl PageData for $name {
            const KIND: PageKind = PageKind::$kind;
            fn format(&self) -> i32 {
                self.format
            }
            fn pool(&self) -> &PoolName {
                &self.pool
            }
        }
    )*};
}

page_data!(IndexData: Index, BookingsData: Bookings, ArchiveData: Archive);

/// Reads a page's `data` and checks that it is what its place in the ledger says.
pub(super) fn read<T: PageData>(page: &Page, pool: &PoolName) -> Result<T, LoadError> {
    let what = || format!("page {}", page.name);
    let unreadable = |why: String| LoadError::Unreadable { what: what(), why };
    let newer = |found: i32| LoadError::Newer { what: what(), found };
    let data: T = match serde_json::from_str(&page.data) {
        Ok(data) => data,
        // Of a newer format nothing is known but where its number stands.
        Err(source) => {
            return Err(match serde_json::from_str::<Head>(&page.data) {
                Ok(head) if head.format > FORMAT => newer(head.format),
                Ok(Head { pool: other, .. }) if other != *pool => {
                    unreadable(format!("it is of pool {other}, not {pool}"))
                }
                _ => unreadable(source.to_string()),
            });
        }
    };
    if data.format() > FORMAT {
        return Err(newer(data.format()));
    }
    if data.format() < 1 {
        return Err(unreadable(format!("there is no format {}", data.format())));
    }
    if page.kind != T::KIND {
        return Err(unreadable(format!("it is of kind {:?}, not {:?}", page.kind, T::KIND)));
    }
    if data.pool() != pool || page.pool != *pool {
        return Err(unreadable(format!("it is of pool {}, not {pool}", data.pool())));
    }
    Ok(data)
}

/// Bytes of a value as JSON.
pub(super) fn json_bytes<T: Serialize>(value: &T) -> usize {
    struct Count(usize);
    impl io::Write for Count {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0 += bytes.len();
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let mut count = Count(0);
    // What cannot be written is larger than any page, so that nobody tries to place it.
    if serde_json::to_writer(&mut count, value).is_ok() { count.0 } else { usize::MAX / 4 }
}

/// A booking, or a part of one, as it stands on a page.
#[derive(Clone, Debug)]
pub(super) struct Item {
    pub(super) booking: Arc<Booking>,
    pub(super) first: usize,
    pub(super) len: usize,
    pub(super) bytes: usize,
}

impl Item {
    pub(super) fn new(booking: &Arc<Booking>, first: usize, len: usize) -> Self {
        let mut item = Self { booking: Arc::clone(booking), first, len, bytes: 0 };
        item.bytes = if item.is_whole() {
            json_bytes(booking) + 1
        } else if first == 0 {
            // The entry in `split` as well.
            json_bytes(&item.header()) + booking.id.as_str().len() + 24
        } else {
            json_bytes(&item.continued()) + 1
        };
        item
    }

    fn is_whole(&self) -> bool {
        self.first == 0 && self.len == self.booking.segments.len()
    }

    fn segments(&self) -> Vec<Segment> {
        self.booking.segments.iter().skip(self.first).take(self.len).cloned().collect()
    }

    fn header(&self) -> Booking {
        Booking { segments: self.segments(), ..without_segments(&self.booking) }
    }

    fn continued(&self) -> Continued {
        Continued { booking: self.booking.id.clone(), first: self.first, segments: self.segments() }
    }

    /// Writes it behind what a page has already.
    pub(super) fn append_to(&self, content: &mut Content) {
        if self.is_whole() {
            content.bookings.push(Arc::clone(&self.booking));
        } else if self.first == 0 {
            content.bookings.push(Arc::new(self.header()));
            content.split.insert(self.booking.id.clone(), self.booking.segments.len());
        } else {
            content.continued.push(self.continued());
        }
    }
}

/// A copy of all but the segments, which may be many.
pub(super) fn without_segments(booking: &Booking) -> Booking {
    Booking {
        id: booking.id.clone(),
        reservation: booking.reservation.clone(),
        tenant: booking.tenant.clone(),
        pool: booking.pool.clone(),
        sku: booking.sku.clone(),
        region: booking.region.clone(),
        tier: booking.tier,
        devices: booking.devices,
        exclusive: booking.exclusive,
        require: booking.require.clone(),
        duration_ms: booking.duration_ms,
        booked_at: booking.booked_at,
        active_at: booking.active_at,
        end: booking.end,
        end_reason: booking.end_reason,
        segments: Vec::new(),
    }
}

/// Splits a booking into parts: (first, length). Parts that it had before stay where they can, so that a change of one segment touches
/// one part; segments are only ever appended.
pub(super) fn layout(booking: &Arc<Booking>, before: &[(usize, usize)]) -> Vec<Item> {
    let count = booking.segments.len();
    let mut ranges: Vec<(usize, usize)> = before.to_vec();
    match ranges.last_mut() {
        Some((first, len)) => *len = count.saturating_sub(*first),
        None => ranges.push((0, count)),
    }
    let room = if before.is_empty() { PART_BYTES } else { 2 * PART_BYTES };
    let mut items = Vec::with_capacity(ranges.len());
    for (first, len) in ranges {
        let item = Item::new(booking, first, len);
        if item.bytes <= room || len <= 1 {
            items.push(item);
        } else {
            items.extend(cut(booking, first, len).into_iter().map(|(first, len)| Item::new(booking, first, len)));
        }
    }
    items
}

/// Cuts a run of segments into parts of [`PART_BYTES`].
fn cut(booking: &Booking, first: usize, len: usize) -> Vec<(usize, usize)> {
    let header = if first == 0 { json_bytes(&without_segments(booking)) } else { 0 };
    let mut parts = Vec::new();
    let (mut start, mut taken, mut bytes) = (first, 0_usize, header);
    for segment in booking.segments.iter().skip(first).take(len) {
        let more = json_bytes(segment) + 1;
        if taken > 0 && bytes + more > PART_BYTES {
            parts.push((start, taken));
            start += taken;
            (taken, bytes) = (0, 0);
        }
        taken += 1;
        bytes += more;
    }
    parts.push((start, taken));
    parts
}

/// Puts split bookings together again.
#[derive(Clone, Debug, Default)]
pub(super) struct Assembly {
    headers: BTreeMap<BookingId, (Arc<Booking>, usize)>,
    parts: BTreeMap<BookingId, BTreeMap<usize, Vec<Segment>>>,
}

impl Assembly {
    /// Takes a page's content and gives the bookings that are whole. Parts wait for the rest.
    pub(super) fn take(&mut self, content: Content) -> Result<Vec<Arc<Booking>>, String> {
        let Content { bookings, split, continued } = content;
        for part in continued {
            let parts = self.parts.entry(part.booking.clone()).or_default();
            if part.first == 0 || part.segments.is_empty() || parts.insert(part.first, part.segments).is_some() {
                return Err(format!("a part of booking {} is empty or there twice", part.booking));
            }
        }
        let mut whole = Vec::with_capacity(bookings.len());
        let mut named = 0_usize;
        for booking in bookings {
            match split.get(&booking.id) {
                None => whole.push(booking),
                Some(&count) => {
                    named += 1;
                    let id = booking.id.clone();
                    if self.headers.insert(id.clone(), (booking, count)).is_some() {
                        return Err(format!("booking {id} is there twice"));
                    }
                }
            }
        }
        if named != split.len() {
            return Err("a split booking is named that does not begin on the page".to_owned());
        }
        Ok(whole)
    }

    /// Gives the split bookings whose parts are all there now.
    pub(super) fn complete(&mut self) -> Result<Vec<Arc<Booking>>, String> {
        let mut whole = Vec::new();
        let ready: Vec<BookingId> = self
            .headers
            .iter()
            .filter(|(id, (header, count))| {
                let more: usize = self.parts.get(*id).map_or(0, |parts| parts.values().map(Vec::len).sum());
                header.segments.len() + more >= *count
            })
            .map(|(id, _)| id.clone())
            .collect();
        for id in ready {
            let Some((header, count)) = self.headers.remove(&id) else { continue };
            let mut booking = Arc::unwrap_or_clone(header);
            for (first, segments) in self.parts.remove(&id).unwrap_or_default() {
                if first != booking.segments.len() {
                    return Err(format!("the parts of booking {id} do not fit together at segment {first}"));
                }
                booking.segments.extend(segments);
            }
            if booking.segments.len() != count {
                return Err(format!("booking {id} has {} segments and not {count}", booking.segments.len()));
            }
            whole.push(Arc::new(booking));
        }
        Ok(whole)
    }

    /// A booking of which something is missing, if any.
    pub(super) fn incomplete(&self) -> Option<&BookingId> {
        self.headers.keys().chain(self.parts.keys()).next()
    }
}
