//! The ledger in the API server: reading it whole, committing to it, collecting what nobody names.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    sync::Arc,
    time::{Duration, Instant},
};

use futures::{StreamExt, TryStreamExt, stream};
use kube::{
    Api, Client, ResourceExt,
    api::{DeleteParams, ListParams, PostParams},
};
use spillway_crds::{
    CapacityLedger, CapacityLedgerPage,
    names::{LEDGER_NAME, PAGE_KIND_LABEL},
};
use spillway_manifests::ledger::{kind_label, page_object, read_page, read_root, root_spec};
use spillway_planner::{
    Booking, PoolName, ReservationUid, TimeMs,
    ledger::{ArchiveWalk, Ledger, LoadError, Page, PageKind, PageName, Root, Staged, needed_pages},
};

use crate::{
    error::{Error, call},
    kill,
};

/// Calls at once.
const PARALLEL: usize = 8;
/// Pages that are deleted at once: nobody waits for it.
const SWEEPING: usize = 2;
/// Objects of a page of a list.
const CHUNK: u32 = 200;
/// How often reading starts again because the ledger moved on meanwhile.
const TRIES: usize = 5;

/// How a swap of the root ended.
#[derive(Debug)]
pub enum Swap {
    /// It is committed.
    Done,
    /// Somebody else had committed: read again, decide again.
    Conflict,
    /// There is no root any more.
    Gone,
}

/// The ledger in the API server.
pub struct LedgerStore {
    roots: Api<CapacityLedger>,
    pages: Api<CapacityLedgerPage>,
    /// resourceVersion of the root that was read or written last.
    version: Option<String>,
    /// When the root was last seen to have it.
    seen: Option<Instant>,
    /// The archive chain of each pool as far as it was walked, newest first.
    chains: HashMap<PoolName, Chain>,
}

/// An archive chain: pages newest first, and how many bookings were pruned behind them.
#[derive(Default)]
struct Chain {
    pruned: i64,
    pages: Vec<PageName>,
}

/// A name for a page that was never used and never will be.
pub fn new_name(kind: PageKind) -> PageName {
    Arc::from(format!("{}-{}", kind_label(kind), uuid::Uuid::now_v7()))
}

async fn read(pages: Api<CapacityLedgerPage>, name: PageName) -> Result<Page, Error> {
    match call("reading a page of the ledger", pages.get_opt(&name)).await? {
        Some(object) => Ok(read_page(&object)),
        None => Err(LoadError::MissingPage { name }.into()),
    }
}

async fn create(pages: Api<CapacityLedgerPage>, object: CapacityLedgerPage) -> Result<(), Error> {
    call("writing a page of the ledger", pages.create(&PostParams::default(), &object)).await.map(|_| ())
}

async fn delete(pages: Api<CapacityLedgerPage>, name: String) -> Result<(), Error> {
    let result = call("deleting a page of the ledger", pages.delete(&name, &DeleteParams::background())).await;
    kill::point("collect.after-one-delete");
    match result {
        Err(error) if !error.is_not_found() => Err(error),
        _ => Ok(()),
    }
}

impl LedgerStore {
    /// The ledger of the cluster behind a client.
    pub fn new(client: &Client) -> Self {
        Self {
            roots: Api::all(client.clone()),
            pages: Api::all(client.clone()),
            version: None,
            seen: None,
            chains: HashMap::new(),
        }
    }

    /// The root as it stands now, by a consistent read.
    ///
    /// # Errors
    /// When the API server cannot be asked.
    pub async fn root(&self) -> Result<Option<(Root, String)>, Error> {
        let object = call("reading the ledger's root", self.roots.get_opt(LEDGER_NAME)).await?;
        Ok(object.map(|object| (read_root(&object), object.resource_version().unwrap_or_default())))
    }

    fn is_at(&mut self, version: Option<String>) {
        (self.version, self.seen) = (version, Some(Instant::now()));
    }

    /// Whether the root is still the one that was read or written last; it is not asked if it was seen within this time. A commit is a swap of that
    /// very root, so it need not be read before each.
    ///
    /// # Errors
    /// When the API server cannot be asked.
    pub async fn unchanged(&mut self, within: Duration) -> Result<Option<bool>, Error> {
        if self.seen.is_some_and(|seen| seen.elapsed() < within) {
            return Ok(Some(true));
        }
        let Some((_, version)) = self.root().await? else { return Ok(None) };
        let same = self.version.as_ref() == Some(&version);
        if same {
            self.is_at(Some(version));
        }
        Ok(Some(same))
    }

    /// Reads the whole ledger; `None`: there is no root.
    ///
    /// # Errors
    /// When it cannot be read, or is not whole.
    pub async fn load(&mut self) -> Result<Option<Ledger>, Error> {
        let mut have: BTreeMap<PageName, Page> = BTreeMap::new();
        let mut failure = None;
        for attempt in 0..TRIES {
            let Some((root, version)) = self.root().await? else { return Ok(None) };
            if attempt == 0 {
                self.list_live(&mut have).await?;
            }
            match self.fetch(&root, &mut have).await {
                Ok(ledger) => {
                    self.is_at(Some(version));
                    return Ok(Some(ledger));
                }
                // A page may be collected while it is being read, if the root moved on: then another root names other pages.
                Err(Error::Load(error @ LoadError::MissingPage { .. })) => {
                    if self.root().await?.is_some_and(|(_, now)| now == version) {
                        return Err(error.into());
                    }
                    failure = Some(error);
                }
                Err(error) => return Err(error),
            }
        }
        Err(failure.map_or(Error::TaskEnded("reading the ledger"), Error::Load))
    }

    async fn list_live(&self, have: &mut BTreeMap<PageName, Page>) -> Result<(), Error> {
        let selector = format!("{PAGE_KIND_LABEL} in (index,bookings)");
        let mut params = ListParams::default().labels(&selector).limit(CHUNK);
        loop {
            let list = call("listing the ledger's pages", self.pages.list(&params)).await?;
            have.extend(list.items.iter().map(read_page).map(|page| (Arc::clone(&page.name), page)));
            match list.metadata.continue_.filter(|token| !token.is_empty()) {
                Some(token) => params = params.continue_token(&token),
                None => return Ok(()),
            }
        }
    }

    async fn fetch(&self, root: &Root, have: &mut BTreeMap<PageName, Page>) -> Result<Ledger, Error> {
        loop {
            let needed = needed_pages(root, have)?;
            if needed.is_empty() {
                return Ok(Ledger::decode(root, &mut |name| have.get(name).cloned())?);
            }
            let reads: Vec<_> = needed.into_iter().map(|name| read(self.pages.clone(), name)).collect();
            let fetched: Vec<Page> = stream::iter(reads).buffer_unordered(PARALLEL).try_collect().await?;
            have.extend(fetched.into_iter().map(|page| (Arc::clone(&page.name), page)));
        }
    }

    /// Reads a page.
    ///
    /// # Errors
    /// When it is gone, or the API server cannot be asked.
    pub async fn page(&self, name: PageName) -> Result<Page, Error> {
        read(self.pages.clone(), name).await
    }

    /// True when the API server has any page, or any trace that a ledger was there.
    ///
    /// # Errors
    /// When the API server cannot be asked.
    pub async fn has_pages(&self) -> Result<bool, Error> {
        let list =
            call("listing the ledger's pages", self.pages.list_metadata(&ListParams::default().limit(1))).await?;
        Ok(!list.items.is_empty())
    }

    /// Makes the ledger of a cluster that never sold anything.
    ///
    /// # Errors
    /// When it cannot be made, or is there.
    pub async fn initialise(&mut self, now: TimeMs) -> Result<Ledger, Error> {
        let (root, ledger) = Ledger::empty(now);
        let object = CapacityLedger::new(LEDGER_NAME, root_spec(&root));
        let made = call("making the ledger", self.roots.create(&PostParams::default(), &object)).await?;
        self.is_at(made.resource_version());
        Ok(ledger)
    }

    /// Commits what was staged.
    ///
    /// # Errors
    /// When the pages cannot be written, or it cannot be found out whether the swap was done.
    pub async fn commit(&mut self, staged: &Staged) -> Result<Swap, Error> {
        kill::point("commit.before-pages");
        let writes: Vec<_> = staged.pages.iter().map(|page| create(self.pages.clone(), page_object(page))).collect();
        stream::iter(writes).buffer_unordered(PARALLEL).try_collect::<Vec<()>>().await?;
        kill::point("commit.after-pages");
        let swap = self.swap(&staged.root).await?;
        kill::point("commit.after-root");
        Ok(swap)
    }

    async fn swap(&mut self, root: &Root) -> Result<Swap, Error> {
        let mut object = CapacityLedger::new(LEDGER_NAME, root_spec(root));
        object.metadata.resource_version.clone_from(&self.version);
        match call("swapping the ledger's root", self.roots.replace(LEDGER_NAME, &PostParams::default(), &object)).await
        {
            Ok(object) => {
                self.is_at(object.resource_version());
                Ok(Swap::Done)
            }
            Err(error) if error.is_not_found() => Ok(Swap::Gone),
            Err(error) if error.is_conflict() => Ok(Swap::Conflict),
            // It is not known whether it was done: the names of the pages are ours alone, so the root itself can say.
            Err(error) => match self.root().await {
                Ok(Some((now, version)))
                    if now.generation == root.generation
                        && now.pools == root.pools
                        && now.epoch == root.epoch
                        && now.committed_at == root.committed_at =>
                {
                    self.is_at(Some(version));
                    Ok(Swap::Done)
                }
                Ok(Some(_)) => Ok(Swap::Conflict),
                Ok(None) => Ok(Swap::Gone),
                Err(_) => Err(error),
            },
        }
    }

    /// Finds the pages that nobody names: lists, swaps the root under a raised epoch, and gives the ledger after the swap and what was listed and
    /// is not reachable. That can be deleted at any time from then on, for no root that names it can be committed any more.
    ///
    /// # Errors
    /// When the API server cannot be asked.
    pub async fn collect(&mut self, ledger: &Ledger, now: TimeMs) -> Result<Option<(Ledger, Vec<String>)>, Error> {
        let mut listed: Vec<String> = Vec::new();
        let mut params = ListParams::default().limit(500);
        loop {
            let list = call("listing the ledger's pages", self.pages.list_metadata(&params)).await?;
            listed.extend(list.items.iter().map(ResourceExt::name_any));
            match list.metadata.continue_.filter(|token| !token.is_empty()) {
                Some(token) => params = params.continue_token(&token),
                None => break,
            }
        }
        kill::point("collect.after-list");
        let mut keep = ledger.reachable();
        for pool in ledger.root().pools.keys() {
            keep.extend(self.chain(ledger, pool).await?);
        }
        let garbage: Vec<String> = listed.into_iter().filter(|name| !keep.contains(name.as_str())).collect();
        if garbage.is_empty() {
            return Ok(Some((ledger.clone(), garbage)));
        }
        let (root, next) = ledger.collect(now);
        match self.swap(&root).await? {
            Swap::Done => {}
            Swap::Conflict | Swap::Gone => return Ok(None),
        }
        kill::point("collect.after-root");
        Ok(Some((next, garbage)))
    }

    /// Deletes what [`Self::collect`] gave while `may` says so, and gives how many pages went. What does not go is listed again by the next one.
    pub fn sweep<F: Fn() -> bool + Send + Sync>(
        &self,
        garbage: Vec<String>,
        may: F,
    ) -> impl Future<Output = usize> + Send + use<F> {
        let pages = self.pages.clone();
        async move {
            let names = stream::iter(garbage).take_while(|_| std::future::ready(may()));
            let deletes = names.map(|name| delete(pages.clone(), name)).buffer_unordered(SWEEPING);
            let results: Vec<Result<(), Error>> = deletes.collect().await;
            for error in results.iter().filter_map(|result| result.as_ref().err()) {
                tracing::debug!(%error, "a page that nobody names stays for now");
            }
            results.iter().filter(|result| result.is_ok()).count()
        }
    }

    /// The archive chain of a pool, newest first; walks only to the first page that was walked before.
    async fn chain(&mut self, ledger: &Ledger, pool: &PoolName) -> Result<BTreeSet<PageName>, Error> {
        let pruned = ledger.stored(pool).map_or(0, |stored| stored.pruned);
        // Of a chain that was longer too much is known.
        let known = self.chains.remove(pool).filter(|chain| chain.pruned == pruned).unwrap_or_default().pages;
        let mut walk = ArchiveWalk::of(ledger, pool);
        let mut chain: Vec<PageName> = Vec::new();
        while let Some(name) = walk.wanted().cloned() {
            if let Some(place) = known.iter().position(|page| *page == name) {
                chain.extend(known.into_iter().skip(place));
                break;
            }
            let page = self.page(Arc::clone(&name)).await?;
            walk.take(&page)?;
            chain.push(name);
        }
        let names = chain.iter().cloned().collect();
        self.chains.insert(pool.clone(), Chain { pruned, pages: chain });
        Ok(names)
    }

    /// Finds the ended bookings of reservations, the oldest of which was created at `since`.
    ///
    /// # Errors
    /// When the archive cannot be read.
    pub async fn find_ended(
        &self,
        ledger: &Ledger,
        wanted: &HashSet<ReservationUid>,
        since: TimeMs,
    ) -> Result<HashMap<ReservationUid, Arc<Booking>>, Error> {
        let mut found = HashMap::new();
        let day = jiff::Timestamp::from_millisecond(since.0)
            .map(|instant| jiff::tz::Offset::UTC.to_datetime(instant).date().to_string())
            .unwrap_or_default();
        for pool in ledger.root().pools.keys() {
            let mut walk = ArchiveWalk::of(ledger, pool);
            while let Some(name) = walk.wanted().cloned() {
                if found.len() == wanted.len() {
                    return Ok(found);
                }
                let page = self.page(name).await?;
                let (page_day, bookings) = walk.take(&page)?;
                for booking in bookings {
                    if wanted.contains(&booking.reservation.uid) {
                        found.insert(booking.reservation.uid.clone(), booking);
                    }
                }
                if *page_day < *day {
                    break;
                }
            }
        }
        Ok(found)
    }
}
