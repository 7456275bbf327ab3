//! What has ended: a chain of pages for each pool, newest first.

use std::{collections::BTreeSet, sync::Arc};

use super::{
    FORMAT, Ledger, LoadError, MAX_PAGE_BYTES, Page, PageKind, PageName, TARGET_PAGE_BYTES,
    data::{ArchiveData, Assembly, Content, json_bytes, layout, read},
};
use crate::types::{Booking, PoolName, TimeMs};

/// An archive page, decoded.
#[derive(Clone, Debug)]
pub struct ArchivePage {
    /// UTC day of the commits whose ends it holds, `YYYY-MM-DD`.
    pub day: Arc<str>,
    /// The page before it.
    pub previous: Option<PageName>,
    content: Content,
}

impl ArchivePage {
    /// Reads an archive page of a pool.
    pub fn decode(page: &Page, pool: &PoolName) -> Result<Self, LoadError> {
        let ArchiveData { day, previous, bookings, split, continued, .. } = read(page, pool)?;
        Ok(Self { day, previous, content: Content { bookings, split, continued } })
    }
}

/// A walk through a pool's archive, from the newest page back. The caller fetches; it may stop after any page.
#[derive(Clone, Debug)]
pub struct ArchiveWalk {
    pool: PoolName,
    next: Option<PageName>,
    /// Bookings that are still to be found; none: it is walked to the first page.
    left: Option<i64>,
    seen: BTreeSet<PageName>,
    assembly: Assembly,
}

impl ArchiveWalk {
    /// Starts at a page, if there is any ([`Ledger::archive_head`](super::Ledger::archive_head)), and goes to the first one.
    pub fn new(pool: PoolName, head: Option<PageName>) -> Self {
        Self { pool, next: head, left: None, seen: BTreeSet::new(), assembly: Assembly::default() }
    }

    /// Walks through what a ledger has of a pool's archive: to the pages that are pruned, if some are.
    pub fn of(ledger: &Ledger, pool: &PoolName) -> Self {
        let pruned = ledger.stored(pool).map_or(0, |stored| stored.pruned);
        let left = (pruned > 0).then(|| ledger.archived(pool).saturating_sub(pruned));
        Self { left, ..Self::new(pool.clone(), ledger.archive_head(pool).cloned()) }
    }

    /// Whether no booking has been found in part: the pages before this one have nothing of those that were found.
    pub fn is_even(&self) -> bool {
        self.assembly.incomplete().is_none()
    }

    /// The page to fetch next; none: the walk is at its end.
    pub fn wanted(&self) -> Option<&PageName> {
        self.next.as_ref()
    }

    /// Names of the pages walked so far.
    pub fn seen(&self) -> &BTreeSet<PageName> {
        &self.seen
    }

    /// Takes the wanted page. Gives its day and the bookings that are whole now, newest first. A split booking comes with the page it begins
    /// in, the oldest of its pages, all of which are of one day.
    pub fn take(&mut self, page: &Page) -> Result<(Arc<str>, Vec<Arc<Booking>>), LoadError> {
        let unreadable = |why: String| LoadError::Unreadable { what: format!("page {}", page.name), why };
        if self.next.as_ref() != Some(&page.name) {
            return Err(unreadable("it is not the next page of the archive".to_owned()));
        }
        let ArchivePage { day, previous, content } = ArchivePage::decode(page, &self.pool)?;
        let mut bookings = self.assembly.take(content).map_err(unreadable)?;
        bookings.reverse();
        bookings.extend(self.assembly.complete().map_err(unreadable)?);
        if let Some(booking) = bookings.iter().find(|b| b.end.is_none() || b.end_reason.is_none()) {
            return Err(unreadable(format!("booking {} has not ended", booking.id)));
        }
        self.seen.insert(Arc::clone(&page.name));
        let found = i64::try_from(bookings.len()).unwrap_or(i64::MAX);
        self.left = self.left.map(|left| left.saturating_sub(found));
        if self.left.is_some_and(|left| left <= 0) && self.is_even() {
            self.next = None;
            return Ok((day, bookings));
        }
        if previous.as_ref().is_some_and(|previous| self.seen.contains(previous)) {
            return Err(unreadable("the archive goes in a circle".to_owned()));
        }
        if previous.is_none()
            && let Some(id) = self.assembly.incomplete()
        {
            return Err(unreadable(format!("a part of booking {id} is missing from the archive")));
        }
        self.next = previous;
        Ok((day, bookings))
    }
}

/// The newest archive page of a pool.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct ArchiveHead {
    pub(super) name: PageName,
    day: Arc<str>,
    previous: Option<PageName>,
    content: Content,
    /// Length of its data.
    bytes: usize,
}

impl ArchiveHead {
    pub(super) fn read(page: &Page, pool: &PoolName) -> Result<Self, LoadError> {
        let ArchivePage { day, previous, content } = ArchivePage::decode(page, pool)?;
        Ok(Self { name: Arc::clone(&page.name), day, previous, content, bytes: page.data.len() })
    }
}

/// The UTC day of an instant.
pub(super) fn day(at: TimeMs) -> Result<Arc<str>, String> {
    let instant = jiff::Timestamp::from_millisecond(at.0).map_err(|source| source.to_string())?;
    Ok(jiff::tz::Offset::UTC.to_datetime(instant).date().to_string().into())
}

/// The newest archive page after a commit, and the one that it supersedes, if any.
#[derive(Default)]
pub(super) struct Appended {
    pub(super) head: Option<Arc<ArchiveHead>>,
    pub(super) superseded: Option<PageName>,
}

/// Writes ended bookings behind the archive: into its newest page while that is of the day and has room, then into new ones.
pub(super) fn append(
    pool: &PoolName,
    head: Option<Arc<ArchiveHead>>,
    ended: &[Arc<Booking>],
    day: &Arc<str>,
    new_name: &mut dyn FnMut(PageKind) -> PageName,
    pages: &mut Vec<Page>,
) -> Result<Appended, String> {
    let mut superseded = None;
    let mut open = head.as_ref().filter(|head| head.day == *day).map(|head| Open {
        rewrites: Some(Arc::clone(&head.name)),
        previous: head.previous.clone(),
        content: head.content.clone(),
        bytes: head.bytes,
        grown: false,
    });
    let mut newest = head;
    for item in ended.iter().flat_map(|booking| layout(booking, &[])) {
        if let Some(full) = open.take_if(|open| open.bytes + item.bytes > TARGET_PAGE_BYTES)
            && full.grown
        {
            newest = Some(Arc::new(full.write(pool, day, new_name, pages)?));
        }
        let page = open.get_or_insert_with(|| Open::after(pool, newest.as_ref()));
        item.append_to(&mut page.content);
        page.bytes += item.bytes;
        page.grown = true;
        superseded = superseded.or_else(|| page.rewrites.clone());
    }
    if let Some(last) = open.filter(|open| open.grown) {
        newest = Some(Arc::new(last.write(pool, day, new_name, pages)?));
    }
    Ok(Appended { head: newest, superseded })
}

/// An archive page that is being filled.
struct Open {
    /// The page whose place it takes.
    rewrites: Option<PageName>,
    previous: Option<PageName>,
    content: Content,
    bytes: usize,
    /// Whether anything was added.
    grown: bool,
}

impl Open {
    fn after(pool: &PoolName, previous: Option<&Arc<ArchiveHead>>) -> Self {
        let previous = previous.map(|page| Arc::clone(&page.name));
        // The names and punctuation of a page without bookings.
        let bytes = 160 + json_bytes(pool) + previous.as_ref().map_or(0, |name| name.len());
        Self { rewrites: None, previous, content: Content::default(), bytes, grown: false }
    }

    fn write(
        self,
        pool: &PoolName,
        day: &Arc<str>,
        new_name: &mut dyn FnMut(PageKind) -> PageName,
        pages: &mut Vec<Page>,
    ) -> Result<ArchiveHead, String> {
        let Self { previous, content, .. } = self;
        let Content { bookings, split, continued } = content.clone();
        let data = ArchiveData {
            format: FORMAT,
            pool: pool.clone(),
            day: Arc::clone(day),
            previous: previous.clone(),
            bookings,
            split,
            continued,
        };
        let data = serde_json::to_string(&data).map_err(|source| source.to_string())?;
        if data.len() > MAX_PAGE_BYTES {
            return Err(format!("an archive page would have {} bytes", data.len()));
        }
        let (name, bytes) = (new_name(PageKind::Archive), data.len());
        pages.push(Page { name: Arc::clone(&name), kind: PageKind::Archive, pool: pool.clone(), data });
        Ok(ArchiveHead { name, day: Arc::clone(day), previous, content, bytes })
    }
}
