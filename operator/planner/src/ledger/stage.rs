//! The transition function: a ledger and changes give the next ledger and the pages to write. The operator and the model check run it.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use super::{
    Change, FORMAT, LEARNED_BYTES, Ledger, MAX_PAGE_BYTES, MAX_POOLS, PART_BYTES, Page, PageKind, PageName, Refusal,
    Refused, Root, StageError, StoredNote, TARGET_PAGE_BYTES, archive,
    data::{IndexData, json_bytes, without_segments},
    pack,
    state::{Conflict, Live, PoolLedger},
};
use crate::types::{Booking, BookingId, NodeUid, PoolName, Segment, TimeMs};

/// A commit that is ready to be written: create the pages in this order, then swap the root.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Staged {
    /// Pages to create.
    pub pages: Vec<Page>,
    /// The root to swap in.
    pub root: Root,
    /// The ledger after the swap.
    pub next: Ledger,
    /// Pages that the swap leaves without a name. Only a collection deletes them, for somebody may be reading.
    pub garbage: Vec<PageName>,
}

impl Ledger {
    /// Stages changes in their order, all or none. Names come from `new_name` and must never have been used.
    pub fn stage(
        &self,
        changes: &[Change],
        now: TimeMs,
        new_name: &mut dyn FnMut(PageKind) -> PageName,
    ) -> Result<Staged, StageError> {
        let mut draft = Draft::new(self, now);
        for (place, change) in changes.iter().enumerate() {
            draft.apply_numbered(place, change)?;
        }
        draft.write(new_name)
    }

    /// Stages what is said of a pool's bookings that ended and are with the usage service, and nothing else. None: it is nothing new, or of another
    /// archive; or the pool never sold anything.
    pub fn stage_stored(
        &self,
        pool: &PoolName,
        note: StoredNote,
        now: TimeMs,
        new_name: &mut dyn FnMut(PageKind) -> PageName,
    ) -> Option<Result<Staged, StageError>> {
        let known = self.pools.get(pool)?;
        let stored = note.apply(known.stored.as_ref(), known.archived)?;
        let mut draft = Draft::new(self, now);
        let changed = PoolLedger { stored: Some(stored), ..PoolLedger::clone(known) };
        draft.next.pools.insert(pool.clone(), Arc::new(changed));
        draft.touched(pool);
        Some(draft.write(new_name))
    }

    /// Stages those changes that break no rule, each seen after the ones before it, and says which were left out.
    pub fn stage_allowed(
        &self,
        changes: &[Change],
        now: TimeMs,
        new_name: &mut dyn FnMut(PageKind) -> PageName,
    ) -> Result<(Staged, Vec<Refusal>), StageError> {
        let mut draft = Draft::new(self, now);
        let refusals = changes.iter().enumerate().filter_map(|(n, change)| draft.apply_numbered(n, change).err());
        let refusals: Vec<Refusal> = refusals.collect();
        Ok((draft.write(new_name)?, refusals))
    }
}

impl Change {
    /// The booking that it is about.
    pub fn booking(&self) -> &BookingId {
        match self {
            Self::Book(booking) => &booking.id,
            Self::HandOver { booking, .. }
            | Self::Lose { booking, .. }
            | Self::Add { booking, .. }
            | Self::End { booking, .. } => booking,
        }
    }
}

/// What a commit changes in one pool.
#[derive(Default)]
struct Touched {
    /// Bookings that are new, changed or gone.
    bookings: BTreeSet<BookingId>,
    /// Bookings that end, in order.
    ended: Vec<Arc<Booking>>,
    /// Bytes of new bookings.
    added: usize,
}

struct Draft<'a> {
    before: &'a Ledger,
    next: Ledger,
    touched: BTreeMap<PoolName, Touched>,
}

fn open_devices(booking: &Booking) -> u64 {
    booking.segments.iter().filter(|s| s.to.is_none()).map(|s| u64::from(s.devices)).sum()
}

/// A segment larger than this would leave parts that cannot be balanced; names in Kubernetes are far below.
const MAX_SEGMENT_BYTES: usize = 2048;

fn check_segment(segment: &Segment) -> Result<(), Refused> {
    if segment.from.is_some() || segment.to.is_some() {
        return Err(Refused::NotNew);
    }
    if json_bytes(segment) > MAX_SEGMENT_BYTES { Err(Refused::TooLarge) } else { Ok(()) }
}

impl<'a> Draft<'a> {
    fn new(before: &'a Ledger, now: TimeMs) -> Self {
        let mut next = before.clone();
        next.root.format = FORMAT;
        next.root.generation = before.root.generation.saturating_add(1);
        next.root.committed_at = now.max(before.root.committed_at);
        Self { before, next, touched: BTreeMap::new() }
    }

    fn apply_numbered(&mut self, change: usize, step: &Change) -> Result<(), Refusal> {
        self.apply(step).map_err(|reason| Refusal { change, booking: step.booking().clone(), reason })
    }

    /// Applies one change, or leaves everything as it was.
    fn apply(&mut self, change: &Change) -> Result<(), Refused> {
        match change {
            Change::Book(booking) => self.book(booking),
            Change::HandOver { booking, nodes, at } => self.hand_over(booking, nodes, *at),
            Change::Lose { booking, node, at } => self.lose(booking, node, *at),
            Change::Add { booking, segment } => self.add(booking, segment),
            Change::End { booking, at, reason } => {
                let mut ended = self.live(booking)?;
                let at = self.clamp(&ended, *at);
                ended.end = Some(ended.end.map_or(at, |end| end.min(at)));
                ended.end_reason = Some(*reason);
                for segment in ended.segments.iter().filter(|segment| segment.to.is_none()) {
                    self.next.release(&segment.uid, booking);
                }
                self.next.live.remove(booking);
                self.next.reservations.remove(&ended.reservation.uid);
                let touched = self.touched(&ended.pool);
                touched.bookings.insert(booking.clone());
                touched.ended.push(Arc::new(ended));
                Ok(())
            }
        }
    }

    fn touched(&mut self, pool: &PoolName) -> &mut Touched {
        self.touched.entry(pool.clone()).or_default()
    }

    fn live(&self, id: &BookingId) -> Result<Booking, Refused> {
        self.next.booking(id).map(|booking| Booking::clone(booking)).ok_or(Refused::NotLive)
    }

    /// No step in a booking's life is before it was booked or after the commit that records it, whatever the clocks say.
    fn clamp(&self, booking: &Booking, at: TimeMs) -> TimeMs {
        at.min(self.next.root.committed_at).max(booking.booked_at)
    }

    fn replace(&mut self, booking: Booking) {
        let id = booking.id.clone();
        let parts = self.next.live.get(&id).map(|live| live.parts.clone()).unwrap_or_default();
        self.touched(&booking.pool).bookings.insert(id.clone());
        self.next.live.insert(id, Arc::new(Live { booking: Arc::new(booking), parts }));
    }

    fn book(&mut self, booking: &Booking) -> Result<(), Refused> {
        if self.next.booking(&booking.id).is_some()
            || self.touched.values().any(|touched| touched.bookings.contains(&booking.id))
        {
            return Err(Refused::IdInUse);
        }
        if let Some(by) = self.next.reservations.get(&booking.reservation.uid) {
            return Err(Refused::ReservationBooked { reservation: booking.reservation.uid.clone(), by: by.clone() });
        }
        if booking.active_at.is_some() || booking.end.is_some() || booking.end_reason.is_some() {
            return Err(Refused::NotNew);
        }
        let mut own = BTreeSet::new();
        for segment in &booking.segments {
            check_segment(segment)?;
            self.check_free(segment, booking.exclusive)?;
            if !own.insert(&segment.uid) {
                return Err(Refused::NodeHeld { node: segment.uid.clone(), by: booking.id.clone() });
            }
        }
        let found = open_devices(booking);
        if booking.devices == 0 || found != u64::from(booking.devices) {
            return Err(Refused::WrongDevices { found, wanted: booking.devices });
        }
        let header = json_bytes(&without_segments(booking));
        if header > PART_BYTES / 2 || json_bytes(&booking.pool) > 1024 {
            return Err(Refused::TooLarge);
        }
        let bytes = header + booking.segments.iter().map(|segment| json_bytes(segment) + 1).sum::<usize>();
        self.check_room(&booking.pool, bytes)?;
        self.touched(&booking.pool).added += bytes;
        self.touched(&booking.pool).bookings.insert(booking.id.clone());
        let booking = Booking { booked_at: self.next.root.committed_at, ..booking.clone() };
        self.next.enter(Arc::new(booking));
        Ok(())
    }

    fn check_free(&self, segment: &Segment, exclusive: bool) -> Result<(), Refused> {
        let node = || segment.uid.clone();
        match self.next.conflict(segment, exclusive) {
            Some(Conflict::Held(by)) => Err(Refused::NodeHeld { node: node(), by }),
            Some(Conflict::Full { held, of }) => {
                Err(Refused::NodeFull { node: node(), wanted: segment.devices, held, of })
            }
            None => Ok(()),
        }
    }

    /// A new booking must leave the index room for the pages that it may need.
    fn check_room(&self, pool: &PoolName, bytes: usize) -> Result<(), Refused> {
        const NAME: usize = 64;
        let known = self.next.pools.get(pool);
        let new_pools = self.touched.keys().filter(|pool| !self.before.pools.contains_key(*pool)).count();
        if known.is_none() && !self.touched.contains_key(pool) && self.before.pools.len() + new_pools >= MAX_POOLS {
            return Err(Refused::TooManyPools);
        }
        let now: usize = known.map_or(0, |known| known.pages.keys().map(|name| name.len() + 3).sum());
        let added = self.touched.get(pool).map_or(0, |touched| touched.added) + bytes;
        let pages = added / (TARGET_PAGE_BYTES / 2) + 2;
        if now + pages * NAME + 512 + LEARNED_BYTES + json_bytes(pool) > MAX_PAGE_BYTES {
            Err(Refused::PoolFull)
        } else {
            Ok(())
        }
    }

    fn hand_over(&mut self, id: &BookingId, nodes: &[NodeUid], at: TimeMs) -> Result<(), Refused> {
        let mut booking = self.live(id)?;
        let at = self.clamp(&booking, at);
        for node in nodes {
            let open = booking.segments.iter_mut().find(|segment| segment.uid == *node && segment.to.is_none());
            let segment = open.ok_or_else(|| Refused::NoOpenSegment { node: node.clone() })?;
            segment.from.get_or_insert(at);
        }
        let mut open = booking.segments.iter().filter(|segment| segment.to.is_none());
        // Handed over in steps, and by operators whose clocks differ: active is the last of the steps.
        let last = open.try_fold(at, |last, segment| segment.from.map(|from| from.max(last)));
        if booking.active_at.is_none()
            && let Some(last) = last
            && open_devices(&booking) >= u64::from(booking.devices)
        {
            booking.active_at = Some(last);
            booking.end = booking.duration_ms.map(|duration| last.plus(duration));
        }
        self.replace(booking);
        Ok(())
    }

    fn lose(&mut self, id: &BookingId, node: &NodeUid, at: TimeMs) -> Result<(), Refused> {
        let mut booking = self.live(id)?;
        let at = self.clamp(&booking, at);
        let open = booking.segments.iter_mut().find(|segment| segment.uid == *node && segment.to.is_none());
        let segment = open.ok_or_else(|| Refused::NoOpenSegment { node: node.clone() })?;
        segment.to = Some(segment.from.map_or(at, |from| from.max(at)));
        self.next.release(node, id);
        self.replace(booking);
        Ok(())
    }

    fn add(&mut self, id: &BookingId, segment: &Segment) -> Result<(), Refused> {
        let mut booking = self.live(id)?;
        check_segment(segment)?;
        if booking.segments.iter().any(|known| known.uid == segment.uid && known.to.is_none()) {
            return Err(Refused::NodeHeld { node: segment.uid.clone(), by: id.clone() });
        }
        self.check_free(segment, booking.exclusive)?;
        booking.segments.push(segment.clone());
        let found = open_devices(&booking);
        if found > u64::from(booking.devices) {
            return Err(Refused::WrongDevices { found, wanted: booking.devices });
        }
        self.check_room(&booking.pool, json_bytes(segment))?;
        self.touched(&booking.pool).added += json_bytes(segment);
        self.next.hold(segment, &booking);
        self.replace(booking);
        Ok(())
    }

    /// Writes what changed: booking pages, archive pages and indexes of the pools that were touched, then the root.
    fn write(mut self, new_name: &mut dyn FnMut(PageKind) -> PageName) -> Result<Staged, StageError> {
        let (mut pages, mut indexes, mut garbage) = (Vec::new(), Vec::new(), Vec::new());
        for (name, touched) in &self.touched {
            let unwritable = |why: String| StageError::Unwritable { pool: name.clone(), why };
            let mut pool = self.next.pools.get(name).map(|pool| PoolLedger::clone(pool)).unwrap_or_default();
            let changed = &touched.bookings;
            let replaced = pack::rewrite(name, &mut pool, self.before, &mut self.next, changed, new_name, &mut pages);
            garbage.extend(replaced.map_err(unwritable)?);
            if !touched.ended.is_empty() {
                let day = archive::day(self.next.root.committed_at).map_err(unwritable)?;
                let appended = archive::append(name, pool.archive.take(), &touched.ended, &day, new_name, &mut pages)
                    .map_err(unwritable)?;
                pool.archive = appended.head;
                pool.archived = pool.archived.saturating_add(i64::try_from(touched.ended.len()).unwrap_or(i64::MAX));
                garbage.extend(appended.superseded);
            }
            let data = IndexData {
                format: FORMAT,
                pool: name.clone(),
                bookings: pool.pages.keys().cloned().collect(),
                archive: pool.archive.as_ref().map(|head| Arc::clone(&head.name)),
                archived: pool.archived,
                stored: pool.stored.clone(),
                learned: pool.learned.clone(),
            };
            let data = serde_json::to_string(&data).map_err(|source| unwritable(source.to_string()))?;
            if data.len() > MAX_PAGE_BYTES {
                return Err(unwritable(format!("its index would have {} bytes", data.len())));
            }
            let index = new_name(PageKind::Index);
            indexes.push(Page { name: Arc::clone(&index), kind: PageKind::Index, pool: name.clone(), data });
            garbage.extend(self.next.root.pools.insert(name.clone(), index));
            self.next.pools.insert(name.clone(), Arc::new(pool));
        }
        pages.extend(indexes);
        Ok(Staged { pages, root: self.next.root.clone(), next: self.next, garbage })
    }
}
