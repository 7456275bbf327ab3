//! The decoded ledger: reading it, looking things up, collecting garbage.

use std::{
    collections::{BTreeMap, BTreeSet},
    hash::{Hash, Hasher},
    sync::Arc,
};

use super::{
    FORMAT, LEARNED_BYTES, LoadError, Page, PageName, Root,
    archive::ArchiveHead,
    data::{Assembly, BookingsData, IndexData, json_bytes, read},
    shards::Shards,
    stored::Stored,
};
use crate::{
    packing::Learned,
    types::{Booking, BookingId, NodeUid, PoolName, ReservationUid, Segment, TimeMs},
};

/// A live booking and where it is written.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Live {
    pub(super) booking: Arc<Booking>,
    /// Its parts in order: one, unless it is split. Empty only while a commit is being staged.
    pub(super) parts: Vec<Part>,
}

/// Where a run of a booking's segments is written.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Part {
    pub(super) first: usize,
    pub(super) len: usize,
    pub(super) page: PageName,
}

/// Who holds something of a node.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(super) struct Holder {
    pub(super) booking: BookingId,
    pub(super) exclusive: bool,
    /// Devices of it.
    pub(super) devices: u32,
    /// Of so many.
    pub(super) of: u32,
}

/// What stands against a segment.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Conflict {
    /// A booking has the node, or a part of it.
    Held(BookingId),
    /// It has not enough devices for all parts.
    Full {
        /// Devices of the parts that are held.
        held: u64,
        /// Devices that it has.
        of: u32,
    },
}

/// What a page of live bookings holds: parts by booking and first segment, with their number of segments.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(super) struct BookPage {
    pub(super) items: BTreeMap<(BookingId, usize), usize>,
    /// Length of its data.
    pub(super) bytes: usize,
}

/// One pool of the ledger.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(super) struct PoolLedger {
    pub(super) pages: BTreeMap<PageName, Arc<BookPage>>,
    /// The same pages, emptiest first.
    pub(super) by_size: BTreeSet<(usize, PageName)>,
    pub(super) archive: Option<Arc<ArchiveHead>>,
    pub(super) archived: i64,
    pub(super) stored: Option<Stored>,
    pub(super) learned: Option<Arc<Learned>>,
}

impl PoolLedger {
    pub(super) fn insert(&mut self, name: PageName, page: BookPage) {
        self.by_size.insert((page.bytes, Arc::clone(&name)));
        self.pages.insert(name, Arc::new(page));
    }

    pub(super) fn remove(&mut self, name: &PageName) {
        if let Some(page) = self.pages.remove(name) {
            self.by_size.remove(&(page.bytes, Arc::clone(name)));
        }
    }
}

/// The booking ledger as it was committed: a value that never changes, and cheap to copy.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Ledger {
    pub(super) root: Root,
    pub(super) pools: BTreeMap<PoolName, Arc<PoolLedger>>,
    pub(super) live: Shards<BookingId, Arc<Live>>,
    pub(super) reservations: Shards<ReservationUid, BookingId>,
    pub(super) nodes: Shards<NodeUid, Arc<Vec<Holder>>>,
}

/// A root says all: pages never change and their names are never used twice.
impl Hash for Ledger {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.root.hash(state);
    }
}

impl Ledger {
    /// The ledger of a cluster that never sold anything, and its root. Only a cluster without any holder taint may start with it: a ledger
    /// that was lost is not empty.
    pub fn empty(now: TimeMs) -> (Root, Self) {
        let root = Root { format: FORMAT, generation: 1, epoch: 0, committed_at: now, pools: BTreeMap::new() };
        (root.clone(), Self::of(root))
    }

    fn of(root: Root) -> Self {
        Self {
            root,
            pools: BTreeMap::new(),
            live: Shards::default(),
            reservations: Shards::default(),
            nodes: Shards::default(),
        }
    }

    /// Reads the ledger that a root names. `fetch` gives a page by name; [`needed_pages`] says beforehand which will be asked for.
    pub fn decode(root: &Root, fetch: &mut dyn FnMut(&str) -> Option<Page>) -> Result<Self, LoadError> {
        check_format(root)?;
        let mut ledger = Self::of(root.clone());
        let mut get = |name: &PageName| -> Result<Page, LoadError> {
            fetch(name).ok_or_else(|| LoadError::MissingPage { name: Arc::clone(name) })
        };
        for (pool, index) in &root.pools {
            let (name, index) = (index, read::<IndexData>(&get(index)?, pool)?);
            if let Some(why) = index.stored.as_ref().and_then(|stored| stored.fault(index.archived)) {
                return Err(LoadError::Unreadable { what: format!("page {name}"), why });
            }
            let mut decoded = PoolLedger {
                archived: index.archived,
                stored: index.stored,
                learned: index.learned,
                ..PoolLedger::default()
            };
            let mut assembly = Assembly::default();
            let mut parts: BTreeMap<BookingId, Vec<Part>> = BTreeMap::new();
            for name in &index.bookings {
                let unreadable = |why: String| LoadError::Unreadable { what: format!("page {name}"), why };
                let page = get(name)?;
                let bytes = page.data.len();
                let content = read::<BookingsData>(&page, pool)?.content();
                let mut items = BTreeMap::new();
                let found = content.bookings.iter().map(|b| (&b.id, 0, b.segments.len()));
                for (id, first, len) in
                    found.chain(content.continued.iter().map(|c| (&c.booking, c.first, c.segments.len())))
                {
                    if items.insert((id.clone(), first), len).is_some() {
                        return Err(unreadable(format!("booking {id} is there twice")));
                    }
                    parts.entry(id.clone()).or_default().push(Part { first, len, page: Arc::clone(name) });
                }
                if decoded.pages.contains_key(name) {
                    return Err(unreadable("its index names it twice".to_owned()));
                }
                decoded.insert(Arc::clone(name), BookPage { items, bytes });
                let mut whole = assembly.take(content).map_err(unreadable)?;
                whole.extend(assembly.complete().map_err(unreadable)?);
                for booking in whole {
                    ledger.check_loaded(&booking, pool).map_err(unreadable)?;
                    ledger.enter(booking);
                }
            }
            if let Some(id) = assembly.incomplete() {
                let why = format!("a part of booking {id} is missing");
                return Err(LoadError::Unreadable { what: format!("pool {pool}"), why });
            }
            for (id, mut parts) in parts {
                parts.sort_by_key(|part| part.first);
                if let Some(live) = ledger.live.get(&id) {
                    let booking = Arc::clone(&live.booking);
                    ledger.live.insert(id, Arc::new(Live { booking, parts }));
                }
            }
            if let Some(name) = &index.archive {
                decoded.archive = Some(Arc::new(ArchiveHead::read(&get(name)?, pool)?));
            }
            ledger.pools.insert(pool.clone(), Arc::new(decoded));
        }
        Ok(ledger)
    }

    /// A loaded booking is checked against those loaded before: a ledger that sells something twice is not one to go on with.
    fn check_loaded(&self, booking: &Booking, pool: &PoolName) -> Result<(), String> {
        let id = &booking.id;
        if booking.pool != *pool {
            return Err(format!("booking {id} is of pool {}", booking.pool));
        }
        if booking.end_reason.is_some() {
            return Err(format!("booking {id} has ended"));
        }
        if self.live.get(id).is_some() {
            return Err(format!("booking {id} is there twice"));
        }
        if let Some(other) = self.reservations.get(&booking.reservation.uid) {
            return Err(format!("bookings {other} and {id} are of one reservation"));
        }
        let mut own = BTreeSet::new();
        for segment in booking.segments.iter().filter(|segment| segment.to.is_none()) {
            match self.conflict(segment, booking.exclusive) {
                Some(Conflict::Held(other)) => {
                    return Err(format!("bookings {other} and {id} hold node {}", segment.uid));
                }
                Some(Conflict::Full { held, of }) => {
                    let devices = segment.devices;
                    return Err(format!(
                        "booking {id} holds {devices} devices of node {} beside {held}, and it has {of}",
                        segment.uid
                    ));
                }
                None => {}
            }
            if !own.insert(&segment.uid) {
                return Err(format!("booking {id} holds node {} twice", segment.uid));
            }
        }
        Ok(())
    }

    /// Enters a booking that was checked.
    pub(super) fn enter(&mut self, booking: Arc<Booking>) {
        for segment in booking.segments.iter().filter(|segment| segment.to.is_none()) {
            self.hold(segment, &booking);
        }
        self.reservations.insert(booking.reservation.uid.clone(), booking.id.clone());
        self.live.insert(booking.id.clone(), Arc::new(Live { booking, parts: Vec::new() }));
    }

    /// What stands against holding what an open segment holds, if anything does: a booking that has the node whole, or, for one that wants it
    /// whole, any; and parts that would add up to more devices than the node had when any of them was booked.
    pub(super) fn conflict(&self, segment: &Segment, exclusive: bool) -> Option<Conflict> {
        let holders = self.nodes.get(&segment.uid).map(|holders| holders.as_slice()).unwrap_or_default();
        if let Some(other) = holders.iter().find(|holder| exclusive || holder.exclusive) {
            return Some(Conflict::Held(other.booking.clone()));
        }
        if exclusive {
            return None;
        }
        // A part that does not say of how many devices is a part of none.
        let of = holders.iter().map(|holder| holder.of).chain([segment.of.unwrap_or(0)]).min().unwrap_or(0);
        let held: u64 = holders.iter().map(|holder| u64::from(holder.devices)).sum();
        (held.saturating_add(u64::from(segment.devices)) > u64::from(of)).then_some(Conflict::Full { held, of })
    }

    pub(super) fn hold(&mut self, segment: &Segment, booking: &Booking) {
        let node = &segment.uid;
        let mut holders = self.nodes.get(node).map(|holders| holders.to_vec()).unwrap_or_default();
        holders.push(Holder {
            booking: booking.id.clone(),
            exclusive: booking.exclusive,
            devices: segment.devices,
            of: segment.of.unwrap_or(0),
        });
        holders.sort();
        self.nodes.insert(node.clone(), Arc::new(holders));
    }

    pub(super) fn release(&mut self, node: &NodeUid, booking: &BookingId) {
        let Some(holders) = self.nodes.get(node) else { return };
        let rest: Vec<Holder> = holders.iter().filter(|holder| holder.booking != *booking).cloned().collect();
        if rest.is_empty() {
            self.nodes.remove(node);
        } else {
            self.nodes.insert(node.clone(), Arc::new(rest));
        }
    }

    /// The root that names this content.
    pub fn root(&self) -> &Root {
        &self.root
    }

    /// A live booking by id.
    pub fn booking(&self, id: &BookingId) -> Option<&Arc<Booking>> {
        self.live.get(id).map(|live| &live.booking)
    }

    /// The live booking of a reservation.
    pub fn booking_of(&self, reservation: &ReservationUid) -> Option<&Arc<Booking>> {
        self.booking(self.reservations.get(reservation)?)
    }

    /// The live bookings that hold something of a node (an open segment on it), by id.
    pub fn holders(&self, node: &NodeUid) -> impl Iterator<Item = &Arc<Booking>> {
        self.nodes.get(node).into_iter().flat_map(|holders| holders.iter()).filter_map(|h| self.booking(&h.booking))
    }

    /// All live bookings: the same order in each run, but none to rely on.
    pub fn bookings(&self) -> impl Iterator<Item = &Arc<Booking>> {
        self.live.values().map(|live| &live.booking)
    }

    /// How many bookings are live.
    pub fn len(&self) -> usize {
        self.live.len()
    }

    /// Whether no booking is live.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many bookings of a pool have ended so far.
    pub fn archived(&self, pool: &PoolName) -> i64 {
        self.pools.get(pool).map_or(0, |pool| pool.archived)
    }

    /// What was learned of the requests for parts of each pool's nodes.
    pub fn learned(&self) -> impl Iterator<Item = (&PoolName, &Arc<Learned>)> {
        self.pools.iter().filter_map(|(name, pool)| Some((name, pool.learned.as_ref()?)))
    }

    /// The same ledger with this for what was learned of a pool's requests. It is written with the next commit that changes something of the
    /// pool: so each decision is committed with what it was made with, and learning costs no write. None: nothing was ever sold from the
    /// pool, or the value is larger than [`LEARNED_BYTES`].
    pub fn taught(&self, pool: &PoolName, learned: Arc<Learned>) -> Option<Self> {
        if json_bytes(&*learned) > LEARNED_BYTES {
            return None;
        }
        let mut next = self.clone();
        let changed = PoolLedger { learned: Some(learned), ..PoolLedger::clone(next.pools.get(pool)?) };
        next.pools.insert(pool.clone(), Arc::new(changed));
        Some(next)
    }

    /// What the usage service has of a pool's bookings that ended.
    pub fn stored(&self, pool: &PoolName) -> Option<&Stored> {
        self.pools.get(pool)?.stored.as_ref()
    }

    /// Name of the newest archive page of a pool, where a walk through it starts.
    pub fn archive_head(&self, pool: &PoolName) -> Option<&PageName> {
        self.pools.get(pool)?.archive.as_ref().map(|head| &head.name)
    }

    /// The same content under a raised epoch: what a collection swaps in before it deletes.
    pub fn collect(&self, now: TimeMs) -> (Root, Self) {
        let root = Root {
            format: FORMAT,
            generation: self.root.generation.saturating_add(1),
            epoch: self.root.epoch.saturating_add(1),
            committed_at: now.max(self.root.committed_at),
            pools: self.root.pools.clone(),
        };
        (root.clone(), Self { root, ..self.clone() })
    }

    /// Names of all pages that this ledger needs to be read: indexes, booking pages, and the newest archive page of each pool. A collection
    /// keeps these and the rest of each archive chain, which is found with [`ArchiveWalk`](super::ArchiveWalk) and never changes, so
    /// that who has walked it once needs to walk only to a page that it knows. A collector that has not walked a chain to its end keeps all
    /// archive pages of that pool.
    pub fn reachable(&self) -> BTreeSet<PageName> {
        let mut names: BTreeSet<PageName> = self.root.pools.values().cloned().collect();
        for pool in self.pools.values() {
            names.extend(pool.pages.keys().cloned());
            names.extend(pool.archive.iter().map(|head| Arc::clone(&head.name)));
        }
        names
    }
}

/// Refuses a root that this code cannot read.
fn check_format(root: &Root) -> Result<(), LoadError> {
    let what = || "the root".to_owned();
    if root.format > FORMAT {
        return Err(LoadError::Newer { what: what(), found: root.format });
    }
    if root.format < 1 {
        return Err(LoadError::Unreadable { what: what(), why: format!("there is no format {}", root.format) });
    }
    Ok(())
}

/// Refuses a root that is older than the highest generation stamped on a node: it was restored from before that write.
pub fn check_stamp(root: &Root, highest_stamp: i64) -> Result<(), LoadError> {
    if root.generation < highest_stamp {
        return Err(LoadError::Older { found: root.generation, stamped: highest_stamp });
    }
    Ok(())
}

/// The pages that [`Ledger::decode`] will ask for and `have` lacks, as far as they are known: first index pages, then, with those there,
/// the rest. Fetch, add, ask again, until none is needed.
pub fn needed_pages(root: &Root, have: &BTreeMap<PageName, Page>) -> Result<Vec<PageName>, LoadError> {
    check_format(root)?;
    let mut needed = BTreeSet::new();
    for (pool, index) in &root.pools {
        match have.get(index) {
            None => {
                needed.insert(Arc::clone(index));
            }
            Some(page) => {
                let index: IndexData = read(page, pool)?;
                needed.extend(index.bookings.into_iter().chain(index.archive).filter(|name| !have.contains_key(name)));
            }
        }
    }
    Ok(needed.into_iter().collect())
}
