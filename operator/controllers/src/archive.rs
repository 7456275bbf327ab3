//! The ledger's archive on its way to the usage service (docs/adr/0016): the GPU time of bookings that ended is posted, again until there is a receipt,
//! and then the engine notes in the ledger how far it is stored. What is stored, old enough and told may be pruned.
//!
//! Must not: write the ledger. It tells the engine, which commits it.

use std::{collections::HashSet, sync::Arc, time::Duration};

use hyper::Uri;
use spillway_manifests::archive::ended_segments;
use spillway_metering::shipping::{EndedSegment, Segments};
use spillway_planner::{
    Booking, PoolName, ReservationUid,
    ledger::{ArchiveWalk, Ledger, Prunable, Stored},
};
use tokio::time::Instant;

use crate::{
    context::Context, engine::Message, error::Error, identities, kill, store::LedgerStore, usage_service::UsageService,
    view::View,
};

/// How often the archive is looked at, at most.
const GAP: Duration = Duration::from_secs(5);
/// and while nobody takes it, at least as often as this: each try reads all that is not stored.
const GAP_MAX: Duration = Duration::from_secs(60);
/// How often it is looked for pages that may go; the first time so long after the start.
const PRUNE: Duration = Duration::from_secs(600);
/// Segments of one post.
const AT_ONCE: usize = 1_000;

/// Posts what ended, now and to come, for ever.
pub async fn ship(context: Arc<Context>, base: Uri) {
    let store = LedgerStore::new(&context.client);
    let mut service: Option<UsageService> = None;
    let mut views = context.view.clone();
    let mut pruned = Instant::now();
    let mut gap = GAP;
    loop {
        let view = Arc::clone(&views.borrow_and_update());
        // Also where nobody can be called.
        context.metrics.archive_waiting.set(view.ledger.as_deref().map_or(0, waiting));
        let shipped = async {
            let service = match &service {
                Some(service) => service,
                None => service.insert(UsageService::new(base.clone(), identities::caller(&context).await?)),
            };
            pass(&context, &store, service, &view).await
        };
        if let Err(why) = shipped.await {
            // With another certificate it may go better.
            service = None;
            gap = (gap * 2).min(GAP_MAX);
            tracing::warn!(why, "GPU time of bookings that ended is not stored yet; it is tried again");
        } else {
            gap = GAP;
            if pruned.elapsed() >= PRUNE || context.config.archive_days == 0 {
                pruned = Instant::now();
                if let Err(error) = prune(&context, &store, &view).await {
                    tracing::warn!(%error, "it could not be seen which pages of the archive may go");
                }
            }
        }
        tokio::time::sleep(gap).await;
    }
}

/// Bookings that ended and are not stored.
fn waiting(ledger: &Ledger) -> i64 {
    let of = |pool| ledger.archived(pool).saturating_sub(ledger.stored(pool).map_or(0, |stored| stored.bookings));
    ledger.root().pools.keys().map(of).fold(0, i64::saturating_add)
}

/// What is not stored of each pool.
async fn pass(context: &Context, store: &LedgerStore, service: &UsageService, view: &View) -> Result<(), String> {
    let Some(ledger) = &view.ledger else { return Ok(()) };
    let mut outcome = Ok(());
    for pool in ledger.root().pools.keys() {
        let archived = ledger.archived(pool);
        let before = ledger.stored(pool).map_or(0, |stored| stored.bookings);
        let left = archived.saturating_sub(before);
        if left == 0 {
            continue;
        }
        let Some(stored) = ledger.stored(pool) else {
            // Its id is durable before anything is stored under it.
            tell(context, pool, Stored::new(uuid::Uuid::now_v7().to_string().into()));
            continue;
        };
        if let Err(why) = post(store, service, ledger, pool, stored).await {
            outcome = Err(why);
            continue;
        }
        kill::point("archive.after-post");
        tell(context, pool, Stored { bookings: archived, ..stored.clone() });
    }
    outcome
}

fn tell(context: &Context, pool: &PoolName, stored: Stored) {
    context.tell(Message::Stored { pool: pool.clone(), stored });
}

/// Posts the bookings of a pool that ended and are not stored.
async fn post(
    store: &LedgerStore,
    service: &UsageService,
    ledger: &Ledger,
    pool: &PoolName,
    stored: &Stored,
) -> Result<(), String> {
    let newest = unstored(store, ledger, pool, stored).await.map_err(|error| error.to_string())?;
    let mut batch: Vec<EndedSegment> = Vec::new();
    for (booking, place) in newest.iter().rev().zip(u64::try_from(stored.bookings).unwrap_or(0)..) {
        for segment in ended_segments(booking, place) {
            batch.push(segment);
            if batch.len() >= AT_ONCE {
                send(service, stored, &mut batch).await?;
            }
        }
    }
    send(service, stored, &mut batch).await
}

async fn send(service: &UsageService, stored: &Stored, batch: &mut Vec<EndedSegment>) -> Result<(), String> {
    if batch.is_empty() {
        return Ok(());
    }
    let segments = Segments { archive: stored.archive.to_string(), segments: std::mem::take(batch) };
    service.post(&segments).await
}

/// The newest bookings of an archive, newest first, that are not stored.
async fn unstored(
    store: &LedgerStore,
    ledger: &Ledger,
    pool: &PoolName,
    stored: &Stored,
) -> Result<Vec<Arc<Booking>>, Error> {
    let left = usize::try_from(ledger.archived(pool).saturating_sub(stored.bookings)).unwrap_or(0);
    let mut walk = ArchiveWalk::of(ledger, pool);
    let mut newest = Vec::new();
    while let Some(name) = walk.wanted().filter(|_| newest.len() < left).cloned() {
        newest.extend(walk.take(&store.page(name).await?)?.1);
    }
    newest.truncate(left);
    Ok(newest)
}

/// Finds the pages that may go, and has the engine note it: a collection then deletes them, for nothing reaches them any more.
async fn prune(context: &Context, store: &LedgerStore, view: &View) -> Result<(), Error> {
    let Some(ledger) = &view.ledger else { return Ok(()) };
    let untold: HashSet<&ReservationUid> = view.ended.keys().collect();
    let keep = i64::from(context.config.archive_days).saturating_mul(86_400_000);
    let oldest = day(ledger.root().committed_at.0.saturating_sub(keep));
    for pool in ledger.root().pools.keys() {
        let Some(stored) = ledger.stored(pool).filter(|stored| stored.bookings > stored.pruned) else { continue };
        let mut prunable = Prunable::new(ledger.archived(pool), stored.bookings);
        let mut walk = ArchiveWalk::of(ledger, pool);
        while let Some(name) = walk.wanted().cloned() {
            let (day, bookings) = walk.take(&store.page(name).await?)?;
            let told = bookings.iter().all(|booking| !untold.contains(&booking.reservation.uid));
            prunable.take(bookings.len(), told && *day <= *oldest, walk.is_even());
        }
        let pruned = prunable.pruned();
        if pruned > stored.pruned {
            tracing::info!(%pool, pruned, "pages of the archive go: what they say is in the usage store");
            tell(context, pool, Stored { pruned, ..stored.clone() });
        }
    }
    Ok(())
}

/// The UTC day of an instant; of one that there is not, no day.
fn day(at_ms: i64) -> String {
    jiff::Timestamp::from_millisecond(at_ms)
        .map(|instant| jiff::tz::Offset::UTC.to_datetime(instant).date().to_string())
        .unwrap_or_default()
}
