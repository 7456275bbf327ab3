//! The booking ledger, read with the planner's own decoder: what the operator goes by is what is shown.

use std::{collections::BTreeMap, sync::Arc};

use futures::{StreamExt, TryStreamExt, stream};
use kube::{Api, Client, api::ListParams};
use spillway_crds::{CapacityLedger, CapacityLedgerPage, names};
use spillway_manifests::ledger::{read_page, read_root};
use spillway_planner::{
    Booking, BookingId, PoolName,
    ledger::{ArchiveWalk, Ledger, LoadError, Page, PageName, Root, needed_pages},
};

use crate::{cluster::list, error::Error, time};

pub(crate) mod check;
pub(crate) mod copy;
pub(crate) mod export;
pub(crate) mod leftovers;
pub(crate) mod rebind;
pub(crate) mod restore;

const ROOTS: &str = "capacityledgers.spillway.dev";
const PAGES: &str = "capacityledgerpages.spillway.dev";
/// How often the ledger is read anew when it was collected while it was read.
const ATTEMPTS: usize = 5;
/// Pages fetched at once.
const PARALLEL: usize = 8;

/// Bookings of one moment.
#[derive(Debug, Default)]
pub(crate) struct Bookings {
    /// Those that stand, by id.
    pub(crate) live: Vec<Arc<Booking>>,
    /// Those that ended at the asked time or later, and possibly older ones.
    pub(crate) ended: Vec<Arc<Booking>>,
    /// Which of these the usage service is known to have: under which archive, and at which place of it.
    pub(crate) in_store: BTreeMap<BookingId, (Arc<str>, i64)>,
    /// Archives of which the usage service has something, with how many of their bookings, from the first on, it has.
    pub(crate) stored: Vec<(String, i64)>,
    /// Archives of which pages with bookings that may have ended at the asked time or later are pruned, with how many of their bookings, from the first on:
    /// only the usage service has them.
    pub(crate) pruned: Vec<(String, i64)>,
}

/// Reads what stands, and what ended at `since` or later.
pub(crate) async fn read(client: &Client, since_ms: Option<i64>) -> Result<Bookings, Error> {
    let reader = Reader { roots: Api::all(client.clone()), pages: Api::all(client.clone()) };
    for _ in 0..ATTEMPTS {
        let root = reader.root().await?;
        match reader.read(&root, since_ms).await {
            // The page of a ledger that was swapped and collected while we read is no loss.
            Err(Error::Ledger { source: LoadError::MissingPage { .. } })
                if reader.root().await?.generation != root.generation => {}
            result => return result,
        }
    }
    Err(Error::Restless)
}

struct Reader {
    roots: Api<CapacityLedger>,
    pages: Api<CapacityLedgerPage>,
}

impl Reader {
    async fn root(&self) -> Result<Root, Error> {
        let found = self.roots.get_opt(names::LEDGER_NAME).await;
        let object = match found.map_err(|source| Error::Read { what: ROOTS, source })? {
            Some(object) => object,
            None => {
                // A 404 may also mean that the kind is unknown, which a list tells apart.
                list(self.roots.clone(), &ListParams::default(), ROOTS).await?;
                return Err(Error::NoLedger);
            }
        };
        Ok(read_root(&object))
    }

    async fn read(&self, root: &Root, since_ms: Option<i64>) -> Result<Bookings, Error> {
        let not_archived = format!("{}!=archive", names::PAGE_KIND_LABEL);
        let pages = list(self.pages.clone(), &ListParams::default().labels(&not_archived), PAGES).await?;
        let mut have: BTreeMap<PageName, Page> =
            pages.iter().map(read_page).map(|page| (Arc::clone(&page.name), page)).collect();
        loop {
            let needed = needed_pages(root, &have).map_err(|source| Error::Ledger { source })?;
            if needed.is_empty() {
                break;
            }
            let fetched: Vec<Page> =
                stream::iter(needed).map(|name| self.page(name)).buffer_unordered(PARALLEL).try_collect().await?;
            have.extend(fetched.into_iter().map(|page| (Arc::clone(&page.name), page)));
        }
        let ledger =
            Ledger::decode(root, &mut |name| have.get(name).cloned()).map_err(|source| Error::Ledger { source })?;
        let mut live: Vec<Arc<Booking>> = ledger.bookings().cloned().collect();
        live.sort_by(|a, b| a.id.cmp(&b.id));
        let mut bookings = Bookings { live, ..Bookings::default() };
        if let Some(since_ms) = since_ms {
            for pool in root.pools.keys() {
                self.walk(pool, &ledger, &time::day(since_ms), &mut bookings).await?;
            }
        }
        Ok(bookings)
    }

    /// Walks a pool's archive back to a day: a booking ends at the latest when that is committed, so older pages hold nothing newer.
    async fn walk(&self, pool: &PoolName, ledger: &Ledger, oldest_day: &str, to: &mut Bookings) -> Result<(), Error> {
        let mut walk = ArchiveWalk::of(ledger, pool);
        let mut place = ledger.archived(pool);
        let stored = ledger.stored(pool);
        to.stored.extend(stored.map(|stored| (stored.archive.to_string(), stored.bookings)));
        while let Some(name) = walk.wanted().cloned() {
            let page = self.page(name).await?;
            let (day, bookings) = walk.take(&page).map_err(|source| Error::Ledger { source })?;
            // The parts of a split booking are of one day, so this loses none.
            if *day < *oldest_day {
                return Ok(());
            }
            for booking in bookings {
                place = place.saturating_sub(1);
                if let Some(stored) = stored.filter(|stored| place < stored.bookings) {
                    to.in_store.insert(booking.id.clone(), (Arc::clone(&stored.archive), place));
                }
                to.ended.push(booking);
            }
        }
        let pruned = stored.filter(|stored| stored.pruned > 0);
        to.pruned.extend(pruned.map(|stored| (stored.archive.to_string(), stored.pruned)));
        Ok(())
    }

    async fn page(&self, name: PageName) -> Result<Page, Error> {
        match self.pages.get_opt(&name).await {
            Ok(Some(object)) => Ok(read_page(&object)),
            Ok(None) => Err(Error::Ledger { source: LoadError::MissingPage { name } }),
            Err(source) => Err(Error::Read { what: PAGES, source }),
        }
    }
}
