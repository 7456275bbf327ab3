//! The ledger's archive on its way to the usage service (docs/adr/0016): the GPU time of bookings that ended is posted, again until there is a receipt,
//! and then the engine notes in the ledger how far it is stored. What is stored, old enough and told may be pruned. The store says itself how far it is: one
//! that has less than it took, because it is another one or was brought back from a copy, is posted the rest again.
//!
//! Must not: write the ledger. It tells the engine, which commits it.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    sync::Arc,
    time::Duration,
};

use hyper::Uri;
use spillway_manifests::archive::ended_segments;
use spillway_metering::shipping::{EndedSegment, HeldArchive, Segments};
use spillway_planner::{
    Booking, PoolName, ReservationUid,
    ledger::{ArchiveWalk, Ledger, Prunable, Stored, StoredNote},
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
    let mut asked = false;
    let mut lost: BTreeSet<PoolName> = BTreeSet::new();
    loop {
        let view = Arc::clone(&views.borrow_and_update());
        // Also where nobody can be called.
        context.metrics.archive_waiting.set(view.ledger.as_deref().map_or(0, waiting));
        // Whether the store still has what it took is asked at the start, and before anything goes for it.
        let prunes = pruned.elapsed() >= PRUNE || context.config.archive_days == 0;
        let passing = async {
            let service = call(&context, &base, &mut service).await?;
            let (held, outcome) = pass(&context, &store, service, &view, prunes || !asked).await;
            for (pool, answer) in &held {
                if answer.lost_before_ms.is_some() {
                    lost.insert(pool.clone())
                } else {
                    lost.remove(pool)
                };
            }
            if prunes && !held.is_empty() {
                pruned = Instant::now();
                // Of pools of which all went well, whatever stops another one.
                prune(&context, &store, service, &view, &held).await;
            }
            outcome.map(|()| !held.is_empty())
        };
        match passing.await {
            Ok(has_asked) => {
                gap = GAP;
                asked |= has_asked;
            }
            Err(why) => {
                // With another certificate it may go better.
                service = None;
                gap = (gap * 2).min(GAP_MAX);
                tracing::warn!(why, "GPU time of bookings that ended is not stored yet; it is tried again");
            }
        }
        context.metrics.archive_lost.set(i64::try_from(lost.len()).unwrap_or(i64::MAX));
        tokio::time::sleep(gap).await;
    }
}

async fn call<'a>(
    context: &Context,
    base: &Uri,
    service: &'a mut Option<UsageService>,
) -> Result<&'a UsageService, String> {
    match service {
        Some(service) => Ok(service),
        None => Ok(service.insert(UsageService::new(base.clone(), identities::caller(context).await?))),
    }
}

/// Bookings that ended and are not stored.
fn waiting(ledger: &Ledger) -> i64 {
    let of = |pool| ledger.archived(pool).saturating_sub(ledger.stored(pool).map_or(0, |stored| stored.bookings));
    ledger.root().pools.keys().map(of).fold(0, i64::saturating_add)
}

/// Posts what is not stored of each pool, and asks about those of which all is, if that `asks`. Gives what the store says that it has of each pool about
/// which all went well.
async fn pass(
    context: &Context,
    store: &LedgerStore,
    service: &UsageService,
    view: &View,
    asks: bool,
) -> (BTreeMap<PoolName, HeldArchive>, Result<(), String>) {
    let (mut held, mut outcome) = (BTreeMap::new(), Ok(()));
    let Some(ledger) = &view.ledger else { return (held, outcome) };
    for pool in ledger.root().pools.keys() {
        let archived = ledger.archived(pool);
        let Some(stored) = ledger.stored(pool) else {
            if archived > 0 {
                // Its id is durable before anything is stored under it.
                tell(context, pool, StoredNote::named(uuid::Uuid::now_v7().to_string().into()));
            }
            continue;
        };
        if archived == stored.bookings && !asks {
            continue;
        }
        let Posted { to, held: answer, outcome: posted } = post(store, service, ledger, pool, stored).await;
        let there = answer.as_ref().map_or(stored.bookings, |answer| answer.bookings);
        if to > stored.bookings {
            kill::point("archive.after-post");
        }
        match (posted, answer) {
            (Ok(()), Some(answer)) => drop(held.insert(pool.clone(), answer)),
            (Ok(()), None) => {}
            (Err(why), _) => outcome = Err(why),
        }
        // What the store has by its own account is what it has, but what is pruned cannot be posted any more.
        let bookings = there.clamp(stored.pruned, to.max(stored.pruned));
        if there < stored.bookings {
            let (archive, was) = (&stored.archive, stored.bookings);
            tracing::warn!(%pool, %archive, was, there, "the usage store has less than it took: it is another one, or a copy; it is posted again");
        }
        if there < stored.pruned {
            let lost = stored.pruned.saturating_sub(there);
            tracing::error!(%pool, lost, "GPU time of bookings is lost, unless another store has it: the usage store has it not, and their pages are gone");
        }
        if bookings != stored.bookings {
            tell(context, pool, StoredNote::stored(Arc::clone(&stored.archive), bookings));
        }
    }
    (held, outcome)
}

fn tell(context: &Context, pool: &PoolName, note: StoredNote) {
    context.tell(Message::Stored { pool: pool.clone(), note });
}

/// How far a pool was posted.
struct Posted {
    /// Place after the last booking of which all is posted.
    to: i64,
    /// What the store says that it has, once it has answered.
    held: Option<HeldArchive>,
    outcome: Result<(), String>,
}

/// Posts the bookings of a pool that ended and are not stored. Where there are none, it only asks.
async fn post(
    store: &LedgerStore,
    service: &UsageService,
    ledger: &Ledger,
    pool: &PoolName,
    stored: &Stored,
) -> Posted {
    let mut posted = Posted { to: stored.bookings, held: None, outcome: Ok(()) };
    let (newest, first_day) = match unstored(store, ledger, pool, stored).await {
        Ok(found) => found,
        Err(error) => return Posted { outcome: Err(error.to_string()), ..posted },
    };
    // What is pruned ended by the end of the day of the oldest page that is left.
    let oldest_ms = first_day.and_then(|day| end_of_day(&day));
    let mut batch: Vec<EndedSegment> = Vec::new();
    let mut to = stored.bookings;
    for booking in newest.iter().rev() {
        let segments: Vec<_> = ended_segments(booking, u64::try_from(to).unwrap_or(0)).collect();
        // A booking goes in one piece, but for one that does not fit.
        if !batch.is_empty() && batch.len().saturating_add(segments.len()) > AT_ONCE {
            send(service, stored, &mut batch, to, oldest_ms, &mut posted).await;
        }
        for segment in segments {
            if batch.len() >= AT_ONCE {
                send(service, stored, &mut batch, to, oldest_ms, &mut posted).await;
            }
            batch.push(segment);
        }
        to = to.saturating_add(1);
        if posted.outcome.is_err() {
            return posted;
        }
    }
    send(service, stored, &mut batch, to, oldest_ms, &mut posted).await;
    posted
}

/// Sends a batch, with which all bookings before place `to` are posted.
async fn send(
    service: &UsageService,
    stored: &Stored,
    batch: &mut Vec<EndedSegment>,
    to: i64,
    oldest_ms: Option<i64>,
    posted: &mut Posted,
) {
    if posted.outcome.is_err() {
        return;
    }
    let segments = Segments {
        archive: stored.archive.to_string(),
        from: posted.to,
        to,
        oldest_ms: oldest_ms.filter(|_| posted.to == stored.pruned),
        segments: std::mem::take(batch),
    };
    match service.post(&segments).await {
        Ok(held) => (posted.to, posted.held) = (to, Some(held)),
        Err(why) => posted.outcome = Err(why),
    }
}

/// How many bookings of an archive the store has.
async fn ask(service: &UsageService, stored: &Stored) -> Result<i64, String> {
    let question = Segments { archive: stored.archive.to_string(), ..Segments::default() };
    service.post(&question).await.map(|answer| answer.bookings)
}

/// The newest bookings of an archive, newest first, that are not stored, and the day of the oldest page that has one.
async fn unstored(
    store: &LedgerStore,
    ledger: &Ledger,
    pool: &PoolName,
    stored: &Stored,
) -> Result<(Vec<Arc<Booking>>, Option<Arc<str>>), Error> {
    let left = usize::try_from(ledger.archived(pool).saturating_sub(stored.bookings)).unwrap_or(0);
    let mut walk = ArchiveWalk::of(ledger, pool);
    let (mut newest, mut oldest) = (Vec::new(), None);
    while let Some(name) = walk.wanted().filter(|_| newest.len() < left).cloned() {
        let (day, bookings) = walk.take(&store.page(name).await?)?;
        newest.extend(bookings);
        oldest = Some(day);
    }
    newest.truncate(left);
    Ok((newest, oldest))
}

/// Finds the pages that may go, of pools of which the store has just said how many bookings it has, and has the engine note it: a collection then deletes them, for nothing reaches them any more.
async fn prune(
    context: &Context,
    store: &LedgerStore,
    service: &UsageService,
    view: &View,
    held: &BTreeMap<PoolName, HeldArchive>,
) {
    let Some(ledger) = &view.ledger else { return };
    let untold: HashSet<&ReservationUid> = view.ended.keys().collect();
    let keep = i64::from(context.config.archive_days).saturating_mul(86_400_000);
    let oldest = day(ledger.root().committed_at.0.saturating_sub(keep));
    for (pool, answer) in held {
        let Some(stored) = ledger.stored(pool).filter(|stored| stored.bookings > stored.pruned) else { continue };
        let walking = async {
            let mut prunable = Prunable::new(ledger.archived(pool), stored.bookings.min(answer.bookings));
            let mut walk = ArchiveWalk::of(ledger, pool);
            while let Some(name) = walk.wanted().cloned() {
                let (day, bookings) = walk.take(&store.page(name).await?)?;
                let told = bookings.iter().all(|booking| !untold.contains(&booking.reservation.uid));
                prunable.take(bookings.len(), told && *day <= *oldest, walk.is_even());
            }
            Ok::<_, Error>(prunable.pruned())
        };
        let pruned = match walking.await {
            Ok(pruned) => pruned,
            Err(error) => {
                tracing::warn!(%pool, %error, "it could not be seen which pages of the archive may go");
                continue;
            }
        };
        // Once more: other pools and the walk took their time.
        if pruned > stored.pruned && ask(service, stored).await.is_ok_and(|there| there >= pruned) {
            tracing::info!(%pool, pruned, "pages of the archive go: what they say is in the usage store");
            tell(context, pool, StoredNote::pruned(Arc::clone(&stored.archive), pruned));
        }
    }
}

/// The UTC day of an instant; of one that there is not, no day.
fn day(at_ms: i64) -> String {
    jiff::Timestamp::from_millisecond(at_ms)
        .map(|instant| jiff::tz::Offset::UTC.to_datetime(instant).date().to_string())
        .unwrap_or_default()
}

/// The end of a UTC day, Unix milliseconds.
fn end_of_day(day: &str) -> Option<i64> {
    let next = day.parse::<jiff::civil::Date>().ok()?.tomorrow().ok()?;
    let instant = jiff::tz::Offset::UTC.to_timestamp(next.to_datetime(jiff::civil::Time::midnight())).ok()?;
    Some(instant.as_millisecond())
}
