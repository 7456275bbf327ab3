//! Which booking stands on which page. Few pages are written for a small change, and no page stays nearly empty.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use super::{
    Ledger, MAX_PAGE_BYTES, Page, PageKind, PageName, TARGET_PAGE_BYTES,
    data::{BookingsData, Content, Item, json_bytes, layout, without_segments},
    state::{BookPage, Live, Part, PoolLedger},
};
use crate::types::{Booking, BookingId, PoolName};

/// A page that is being written.
#[derive(Default)]
struct Bin {
    items: BTreeMap<(BookingId, usize), Item>,
    bytes: usize,
}

impl Bin {
    fn put(&mut self, item: Item) {
        self.bytes += item.bytes;
        self.items.insert((item.booking.id.clone(), item.first), item);
    }

    fn has_room_for(&self, bytes: usize) -> bool {
        self.bytes + bytes <= TARGET_PAGE_BYTES
    }
}

/// Pages that are being written, and those that stay as they are.
struct Packing<'a> {
    pool: &'a PoolLedger,
    ledger: &'a Ledger,
    /// Bytes of a page without bookings.
    empty: usize,
    bins: Vec<Bin>,
    opened: BTreeSet<PageName>,
}

impl Packing<'_> {
    /// Takes a page apart into a bin, without the parts in `moved`.
    fn open(&mut self, name: &PageName, moved: &BTreeMap<(BookingId, usize), Option<Item>>) -> usize {
        self.opened.insert(Arc::clone(name));
        let mut bin = Bin { bytes: self.empty, ..Bin::default() };
        let page = self.pool.pages.get(name).cloned().unwrap_or_default();
        for (key, len) in &page.items {
            match moved.get(key) {
                Some(None) => {}
                Some(Some(item)) => bin.put(item.clone()),
                None => {
                    if let Some(booking) = self.ledger.booking(&key.0) {
                        bin.put(Item::new(booking, key.1, *len));
                    }
                }
            }
        }
        self.bins.push(bin);
        self.bins.len() - 1
    }

    /// The emptiest page that is not being written.
    fn emptiest(&self) -> Option<&(usize, PageName)> {
        self.pool.by_size.iter().find(|(_, name)| !self.opened.contains(name))
    }

    /// The bin for an item: one that is being written anyway, else the emptiest page, else a new one.
    fn place(&mut self, item: Item) {
        let bytes = item.bytes;
        let bins = self.bins.iter().enumerate().filter(|(_, bin)| bin.has_room_for(bytes));
        let mut bin = bins.min_by_key(|(n, bin)| (bin.bytes, *n)).map(|(n, _)| n);
        if bin.is_none()
            && let Some((size, name)) = self.emptiest().cloned()
            && size + bytes <= TARGET_PAGE_BYTES
        {
            let opened = self.open(&name, &BTreeMap::new());
            // What it holds may have been measured a little differently when it was written.
            bin = self.bins.get(opened).is_some_and(|bin| bin.has_room_for(bytes)).then_some(opened);
        }
        let bin = bin.unwrap_or_else(|| {
            self.bins.push(Bin { bytes: self.empty, ..Bin::default() });
            self.bins.len() - 1
        });
        if let Some(bin) = self.bins.get_mut(bin) {
            bin.put(item);
        }
    }

    /// Joins the emptiest bin with the emptiest other page while both fit into one. So any two pages of a pool hold more than one page's
    /// worth together, which bounds their number.
    fn join(&mut self) {
        let mut order: BTreeSet<(usize, usize)> =
            self.bins.iter().enumerate().filter(|(_, bin)| !bin.items.is_empty()).map(|(n, b)| (b.bytes, n)).collect();
        while let Some((bytes, bin)) = order.pop_first() {
            let other_bin = order.first().copied();
            let other_page = self.emptiest().cloned();
            let fits = |other: usize| bytes + other <= TARGET_PAGE_BYTES + self.empty;
            let other = match (other_bin, other_page) {
                (Some((size, other)), page) if page.as_ref().is_none_or(|(page, _)| size <= *page) => {
                    fits(size).then_some(other)
                }
                (_, Some((size, page))) => fits(size).then(|| self.open(&page, &BTreeMap::new())),
                _ => None,
            };
            let Some(other) = other else { return };
            let items = self.bins.get_mut(bin).map(std::mem::take).unwrap_or_default().items;
            if let Some(target) = self.bins.get_mut(other) {
                order.remove(&(target.bytes, other));
                items.into_values().for_each(|item| target.put(item));
                order.insert((target.bytes, other));
            }
        }
    }
}

/// Whether a part stands on its page as it did.
fn same_part(before: &Booking, part: &Part, item: &Item) -> bool {
    let run =
        |booking: &Booking| -> Vec<_> { booking.segments.iter().skip(part.first).take(part.len).cloned().collect() };
    part.first == item.first
        && part.len == item.len
        && run(before) == run(&item.booking)
        && (part.first > 0
            || (before.segments.len() == item.booking.segments.len()
                && without_segments(before) == without_segments(&item.booking)))
}

/// Writes the bookings that changed, and gives the pages that are no longer named.
pub(super) fn rewrite(
    name: &PoolName,
    pool: &mut PoolLedger,
    before: &Ledger,
    next: &mut Ledger,
    changed: &BTreeSet<BookingId>,
    new_name: &mut dyn FnMut(PageKind) -> PageName,
    pages: &mut Vec<Page>,
) -> Result<Vec<PageName>, String> {
    // What becomes of each part that is written already (a new version on the same page, or gone), on which pages, and what is to be placed.
    let mut moved: BTreeMap<(BookingId, usize), Option<Item>> = BTreeMap::new();
    let mut pages_touched: BTreeSet<PageName> = BTreeSet::new();
    let mut loose: Vec<Item> = Vec::new();
    for id in changed {
        let old = before.live.get(id);
        let old_parts = old.map(|live| live.parts.as_slice()).unwrap_or_default();
        let ranges: Vec<(usize, usize)> = old_parts.iter().map(|part| (part.first, part.len)).collect();
        let items = next.booking(id).map(|booking| layout(booking, &ranges)).unwrap_or_default();
        let mut items: BTreeMap<usize, Item> = items.into_iter().map(|item| (item.first, item)).collect();
        for part in old_parts {
            let item = items.remove(&part.first);
            if let (Some(old), Some(item)) = (old, &item)
                && same_part(&old.booking, part, item)
            {
                continue;
            }
            pages_touched.insert(Arc::clone(&part.page));
            moved.insert((id.clone(), part.first), item);
        }
        loose.extend(items.into_values());
    }

    let mut packing = Packing {
        pool,
        ledger: next,
        // `continued` and `split` are not always there: a few bytes too many.
        empty: 72 + json_bytes(name),
        bins: Vec::new(),
        opened: BTreeSet::new(),
    };
    for page in &pages_touched {
        let bin = packing.open(page, &moved);
        // What outgrew its page goes elsewhere, the newest first.
        if let Some(bin) = packing.bins.get_mut(bin)
            && bin.bytes > MAX_PAGE_BYTES
        {
            while bin.bytes > TARGET_PAGE_BYTES
                && let Some((_, item)) = bin.items.pop_last()
            {
                bin.bytes -= item.bytes;
                loose.push(item);
            }
        }
    }
    loose.sort_by(|a, b| (&a.booking.id, a.first).cmp(&(&b.booking.id, b.first)));
    loose.into_iter().for_each(|item| packing.place(item));
    packing.join();

    let Packing { bins, opened, .. } = packing;
    for page in &opened {
        pool.remove(page);
    }
    let mut bins: Vec<Bin> = bins.into_iter().filter(|bin| !bin.items.is_empty()).collect();
    bins.sort_by(|a, b| a.items.keys().next().cmp(&b.items.keys().next()));
    for bin in bins {
        let mut content = Content::default();
        bin.items.values().for_each(|item| item.append_to(&mut content));
        let data = serde_json::to_string(&BookingsData::new(name, content)).map_err(|source| source.to_string())?;
        if data.len() > MAX_PAGE_BYTES {
            return Err(format!("a page would have {} bytes", data.len()));
        }
        let page = new_name(PageKind::Bookings);
        let items = bin.items.iter().map(|(key, item)| (key.clone(), item.len)).collect();
        pool.insert(Arc::clone(&page), BookPage { items, bytes: data.len() });
        for item in bin.items.into_values() {
            locate(next, item, &page);
        }
        pages.push(Page { name: page, kind: PageKind::Bookings, pool: name.clone(), data });
    }
    Ok(opened.into_iter().collect())
}

/// Notes on which page a part is written now.
fn locate(ledger: &mut Ledger, item: Item, page: &PageName) {
    let Item { booking, first, len, .. } = item;
    let mut parts = ledger.live.get(&booking.id).map(|live| live.parts.clone()).unwrap_or_default();
    parts.retain(|part| part.first != first);
    parts.push(Part { first, len, page: Arc::clone(page) });
    parts.sort_by_key(|part| part.first);
    ledger.live.insert(booking.id.clone(), Arc::new(Live { booking, parts }));
}
