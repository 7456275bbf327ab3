//! The engine: the one task that decides capacity. It plans on a snapshot, commits to the ledger, and publishes what was committed.
//!
//! Must not: write nodes, pods or statuses. It only says what is true; the other controllers make it so.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    sync::Arc,
    time::{Duration, Instant},
};

use kube::{Api, ResourceExt};
use spillway_crds::{GpuReservation, Phase, names::HOLD_CLOSED, names::HOLD_UNSOLD};
use spillway_manifests::hold;
use spillway_planner::{
    Booking, BookingId, EndReason, NodeUid, Outcome, Plan, Planner, PoolName, ReservationUid, Shape, TimeMs,
    ledger::{Change, Ledger, StoredNote, check_stamp},
    packing::Learned,
    placement::part_item,
};
use tokio::{
    sync::{Notify, mpsc, watch},
    task::JoinHandle,
};

use crate::{
    context::{Context, owners},
    error::{Error, call},
    gauges, guards, kill,
    snapshot::{Frame, Past},
    store::{LedgerStore, Swap, new_name},
    table::Table,
    view::View,
};

/// Commits are at least so far apart, so that what arrives together is committed together.
const GATHER: Duration = Duration::from_millis(25);
/// How often the root is looked at while nothing happens, and everything is planned again.
const IDLE: Duration = Duration::from_secs(2);
/// How often a ledger that could not be read is tried again.
const RETRY: Duration = Duration::from_secs(5);
/// How often pages that nobody names are collected.
const COLLECT: Duration = Duration::from_secs(30);
/// Collected at once when there are so many.
const GARBAGE: usize = 400;
/// How often bookings are looked for whose reservation is gone.
const ORPHANS: Duration = Duration::from_secs(60);

/// What the engine is told.
#[derive(Clone, Debug)]
pub enum Message {
    /// A node carries the taints and labels of a booking's holder.
    HandedOver {
        /// Which booking.
        booking: BookingId,
        /// Which node.
        node: NodeUid,
    },
    /// A node cannot be handed over to a booking, because the owner's pods are on it.
    GiveUp {
        /// Which booking.
        booking: BookingId,
        /// Which node.
        node: NodeUid,
    },
    /// How far the GPU time of bookings that ended is in the usage store, or which of the pages that it is in may go.
    Stored {
        /// Of which pool.
        pool: PoolName,
        /// What is said.
        note: StoredNote,
    },
    /// The ledger is another than the one that was published.
    Reload,
}

/// The engine.
pub struct Engine {
    context: Arc<Context>,
    store: LedgerStore,
    ledger: Option<Arc<Ledger>>,
    /// Read while the watches were listing; it stands if the root is the same when these are done.
    preloaded: Option<Ledger>,
    /// What the planner knows; none: it must look at everything.
    table: Option<Table>,
    ended: Arc<HashMap<ReservationUid, Arc<Booking>>>,
    outcomes: Arc<HashMap<ReservationUid, Outcome>>,
    released: Arc<HashSet<ReservationUid>>,
    refused: HashMap<ReservationUid, Outcome>,
    blocked: Option<(&'static str, String)>,
    handed: HashMap<BookingId, BTreeSet<NodeUid>>,
    given_up: HashMap<NodeUid, BookingId>,
    /// What was learned of each pool's requests, with those that came since.
    learned: BTreeMap<PoolName, Learned>,
    /// What is to be noted of the archive.
    stored: BTreeMap<PoolName, StoredNote>,
    garbage: usize,
    publish: watch::Sender<Arc<View>>,
    wake: Arc<Notify>,
    messages: mpsc::Receiver<Message>,
    /// Deletes pages that nobody names. It may take long on a busy API server, and nothing waits for it.
    sweeping: Option<JoinHandle<()>>,
    collected: Instant,
    orphans: Instant,
}

fn now() -> TimeMs {
    TimeMs(jiff::Timestamp::now().as_millisecond())
}

impl Engine {
    /// An engine that has not read the ledger yet.
    pub fn new(
        context: Arc<Context>,
        publish: watch::Sender<Arc<View>>,
        wake: Arc<Notify>,
        messages: mpsc::Receiver<Message>,
    ) -> Self {
        let store = LedgerStore::new(&context.client);
        Self {
            context,
            store,
            ledger: None,
            preloaded: None,
            table: None,
            ended: Arc::default(),
            outcomes: Arc::default(),
            released: Arc::default(),
            refused: HashMap::new(),
            blocked: None,
            handed: HashMap::new(),
            given_up: HashMap::new(),
            learned: BTreeMap::new(),
            stored: BTreeMap::new(),
            garbage: GARBAGE,
            publish,
            wake,
            messages,
            sweeping: None,
            collected: Instant::now(),
            orphans: Instant::now(),
        }
    }

    /// Reads the ledger while there is nothing to decide on yet. What is wrong with it is said when it is needed.
    pub async fn preload(&mut self) {
        self.preloaded = self.store.load().await.ok().flatten();
    }

    /// Decides for ever.
    pub async fn run(mut self) {
        let mut wait = Duration::ZERO;
        loop {
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = self.wake.notified() => {}
                message = self.messages.recv() => match message {
                    Some(message) => self.take(message),
                    None => return,
                },
            }
            tokio::time::sleep(GATHER).await;
            while let Ok(message) = self.messages.try_recv() {
                self.take(message);
            }
            wait = match self.turn().await {
                Ok(wait) => wait,
                Err(error) => {
                    tracing::warn!(%error, "a turn of the engine failed; it is tried again");
                    self.ledger = None;
                    Duration::from_secs(1)
                }
            };
        }
    }

    fn take(&mut self, message: Message) {
        match message {
            Message::HandedOver { booking, node } => {
                self.handed.entry(booking).or_default().insert(node);
            }
            Message::GiveUp { booking, node } => {
                let held = self.ledger.as_ref().and_then(|ledger| ledger.booking(&booking));
                for segment in held.iter().flat_map(|booking| &booking.segments).filter(|one| one.uid == node) {
                    self.context.changed.node(segment.node.as_str());
                }
                self.given_up.insert(node, booking);
            }
            Message::Stored { pool, note } => {
                let note = note.after(self.stored.remove(&pool));
                self.stored.insert(pool, note);
            }
            Message::Reload => self.ledger = None,
        }
    }

    /// One turn: read what must be read, plan, commit, publish. Gives the time to the next.
    async fn turn(&mut self) -> Result<Duration, Error> {
        let Some(ledger) = self.current().await? else { return Ok(RETRY) };
        let now = now();
        let guarded = self.context.guards.state();
        let plan = self.plan(&ledger, &guarded, now);
        let Some(table) = &self.table else { return Ok(RETRY) };
        let mut changes = changes(&plan, &table.planner, &ledger);
        let next = [plan.next, table.next_loss()].into_iter().flatten().min();
        changes.extend(self.handovers(&ledger, &plan, now));
        if self.orphans.elapsed() > ORPHANS {
            self.orphans = Instant::now();
            changes.extend(self.orphaned(&ledger, now).await?);
        }
        let mut changed = self.answers(&plan);
        changed.extend(self.release(&ledger));
        if !changes.is_empty() && !self.commit(&ledger, &changes, now).await? {
            return Ok(Duration::ZERO);
        }
        if !self.note_stored(now).await? {
            return Ok(Duration::ZERO);
        }
        self.tidy().await?;
        self.forget();
        self.learn();
        self.publish_view();
        gauges::observe(&self.context, &self.outcomes, now);
        for (namespace, name) in changed {
            self.context.queues.reservations.push_in(&namespace, &name).await;
        }
        let next =
            next.map_or(IDLE, |at| Duration::from_millis(u64::try_from(at.0.saturating_sub(now.0)).unwrap_or(0)));
        Ok(next.clamp(Duration::from_millis(5), IDLE))
    }

    /// Brings the planner's table up to date, and plans.
    fn plan(&mut self, ledger: &Ledger, guarded: &guards::State, now: TimeMs) -> Plan {
        let told = self.context.changed.take();
        let owners = owners(&self.context.stores.tenants.state(), &self.context.config);
        let past = Past { ended: &self.ended, refused: &self.refused, given_up: &self.given_up };
        let frame = Frame::new(&self.context, ledger, &owners, &past, now);
        let current = self
            .table
            .take()
            .and_then(|mut table| table.take(&self.context, &frame, guarded, told, now).then_some(table));
        let mut table = current.unwrap_or_else(|| Table::lay(&self.context, &frame, guarded));
        let started = Instant::now();
        let mut plan = table.planner.plan(now);
        self.context.metrics.plan_seconds.observe(started.elapsed().as_secs_f64());
        guards::temper(&self.context, guarded, table.snapshot.as_ref(), &mut plan);
        self.table = Some(table);
        plan
    }

    /// The ledger, read again if it was dropped or is another now; `None`: nothing may be decided.
    async fn current(&mut self) -> Result<Option<Arc<Ledger>>, Error> {
        if let Some(ledger) = self.ledger.clone() {
            match self.store.unchanged(IDLE).await? {
                Some(true) => return Ok(Some(ledger)),
                Some(false) => tracing::info!("the ledger was changed by another leader; it is read again"),
                None => {
                    self.block("LedgerLost", lost("CapacityLedger/cluster is gone")).await;
                    return Ok(None);
                }
            }
        }
        self.ledger = None;
        self.table = None;
        self.learned.clear();
        let stands = self.preloaded.is_some() && self.store.unchanged(Duration::ZERO).await? == Some(true);
        let loaded = match self.preloaded.take().filter(|_| stands) {
            Some(ledger) => Ok(Some(ledger)),
            None => self.store.load().await,
        };
        let loaded = match loaded {
            Ok(loaded) => loaded,
            Err(Error::Load(error)) => {
                self.block("LedgerUnreadable", lost(&error.to_string())).await;
                return Ok(None);
            }
            Err(error) => return Err(error),
        };
        let stamp = self.highest_stamp();
        let ledger = match loaded {
            Some(ledger) => {
                if let Err(error) = check_stamp(ledger.root(), stamp) {
                    self.block("LedgerLost", lost(&error.to_string())).await;
                    return Ok(None);
                }
                ledger
            }
            None => match self.evidence().await? {
                Some(evidence) => {
                    self.block("LedgerLost", lost(&evidence)).await;
                    return Ok(None);
                }
                None => {
                    tracing::info!("this cluster never sold anything: its ledger is made");
                    self.store.initialise(now()).await?
                }
            },
        };
        self.recall(&ledger).await?;
        tracing::info!(generation = ledger.root().generation, bookings = ledger.len(), "the ledger was read");
        let ledger = Arc::new(ledger);
        self.ledger = Some(Arc::clone(&ledger));
        if self.blocked.take().is_some() {
            self.look_at_all_pools().await;
        }
        self.publish_view();
        // Tens of thousands of objects to look at must not keep the first decision waiting.
        tokio::spawn(look_at_everything(Arc::clone(&self.context), Arc::clone(&ledger)));
        Ok(Some(ledger))
    }

    fn highest_stamp(&self) -> i64 {
        self.context.stores.nodes.state().iter().filter_map(|node| hold::stamped_generation(node)).max().unwrap_or(0)
    }

    /// Why a missing root is a lost ledger and not a new cluster.
    async fn evidence(&self) -> Result<Option<String>, Error> {
        for node in self.context.stores.nodes.state() {
            let (no_schedule, no_execute) = hold::read_taints(&node);
            if [no_schedule, no_execute].into_iter().flatten().any(|value| value != HOLD_CLOSED && value != HOLD_UNSOLD)
            {
                return Ok(Some(format!("CapacityLedger/cluster is missing, but node {} is held", node.name_any())));
            }
            if hold::stamped_generation(&node).is_some() {
                return Ok(Some(format!(
                    "CapacityLedger/cluster is missing, but node {} was written under one",
                    node.name_any()
                )));
            }
        }
        let booked = |phase: Phase| matches!(phase, Phase::Booked | Phase::Preparing | Phase::Active | Phase::Ending);
        for reservation in self.context.stores.reservations.state() {
            if reservation.status.as_ref().is_some_and(|status| booked(status.phase)) {
                let name = reservation.name_any();
                return Ok(Some(format!("CapacityLedger/cluster is missing, but reservation {name} was booked")));
            }
        }
        if self.store.has_pages().await? {
            return Ok(Some("CapacityLedger/cluster is missing, but it left pages behind".to_owned()));
        }
        Ok(None)
    }

    /// Finds in the archive what ended without its reservation having been told.
    async fn recall(&mut self, ledger: &Ledger) -> Result<(), Error> {
        let mut wanted = HashSet::new();
        let mut since = TimeMs(i64::MAX);
        for reservation in self.context.stores.reservations.state() {
            let uid = ReservationUid::from(reservation.uid().unwrap_or_default());
            let over = reservation.status.as_ref().is_some_and(|status| status.phase.is_final())
                && reservation.metadata.deletion_timestamp.is_none();
            if !over && ledger.booking_of(&uid).is_none() {
                let created =
                    reservation.metadata.creation_timestamp.as_ref().map_or(0, |time| time.0.as_millisecond());
                since = since.min(TimeMs(created));
                wanted.insert(uid);
            }
        }
        if !wanted.is_empty() {
            let found = self.store.find_ended(ledger, &wanted, since).await?;
            let mut ended = (*self.ended).clone();
            ended.extend(found);
            self.ended = Arc::new(ended);
        }
        Ok(())
    }

    /// Nothing is sold and no node is written until a person has helped.
    async fn block(&mut self, reason: &'static str, message: String) {
        self.ledger = None;
        if self.blocked.as_ref().map(|(reason, message)| (*reason, message.as_str()))
            != Some((reason, message.as_str()))
        {
            tracing::error!(reason, message, "nothing is sold");
            self.blocked = Some((reason, message));
            self.publish_view();
            self.look_at_all_pools().await;
        }
    }

    /// Node handed over: to the ledger at once, or, while the gang is not whole, when it is.
    fn handovers(&self, ledger: &Ledger, plan: &Plan, now: TimeMs) -> Vec<Change> {
        let ending: HashSet<&BookingId> = plan.ends.iter().map(|end| &end.booking).collect();
        let swapped: HashSet<&NodeUid> = plan.swaps.iter().filter_map(|swap| swap.lost.as_ref()).collect();
        let mut changes = Vec::new();
        for (id, handed) in &self.handed {
            let Some(booking) = ledger.booking(id).filter(|_| !ending.contains(id)) else { continue };
            let open =
                || booking.segments.iter().filter(|segment| segment.to.is_none() && !swapped.contains(&segment.uid));
            let nodes: Vec<NodeUid> = open()
                .filter(|segment| segment.from.is_none() && handed.contains(&segment.uid))
                .map(|segment| segment.uid.clone())
                .collect();
            let whole = open().map(|segment| segment.devices).sum::<u32>() >= booking.devices
                && open().all(|segment| segment.from.is_some() || handed.contains(&segment.uid));
            if !nodes.is_empty() && (booking.active_at.is_some() || whole) {
                changes.push(Change::HandOver { booking: id.clone(), nodes, at: now });
            }
        }
        changes
    }

    /// Ends of bookings whose reservation is gone for sure: somebody took the finalizer off.
    async fn orphaned(&self, ledger: &Ledger, now: TimeMs) -> Result<Vec<Change>, Error> {
        let known: HashSet<ReservationUid> = self
            .context
            .stores
            .reservations
            .state()
            .iter()
            .map(|reservation| ReservationUid::from(reservation.uid().unwrap_or_default()))
            .collect();
        let mut changes = Vec::new();
        for booking in ledger.bookings().filter(|booking| !known.contains(&booking.reservation.uid)) {
            let api: Api<GpuReservation> = Api::namespaced(self.context.client.clone(), &booking.reservation.namespace);
            let found = call("looking for a reservation", api.get_opt(&booking.reservation.name)).await?;
            if found.and_then(|object| object.uid()).as_deref() != Some(booking.reservation.uid.as_str()) {
                tracing::warn!(booking = %booking.id, namespace = %booking.reservation.namespace, name = %booking.reservation.name,
                    "the reservation of a live booking is gone; the booking ends");
                changes.push(Change::End { booking: booking.id.clone(), at: now, reason: EndReason::Deleted });
            }
        }
        Ok(changes)
    }

    /// Takes in the plan's answers; gives the reservations whose answer changed.
    fn answers(&mut self, plan: &Plan) -> Vec<(String, String)> {
        let mut fresh: HashMap<ReservationUid, Outcome> = plan.outcomes.iter().cloned().collect();
        for (uid, outcome) in &fresh {
            if !matches!(outcome, Outcome::Waitlisted(_)) {
                self.refused.insert(uid.clone(), outcome.clone());
                let request = self.table.as_ref().and_then(|table| table.planner.request(uid));
                if let Some(reservation) = request.map(|request| &request.reservation) {
                    self.context.changed.reservation(&reservation.namespace, &reservation.name);
                }
            }
        }
        fresh.extend(self.refused.iter().map(|(uid, outcome)| (uid.clone(), outcome.clone())));
        if fresh == *self.outcomes {
            return Vec::new();
        }
        let changed: HashSet<&ReservationUid> = fresh
            .iter()
            .filter(|(uid, outcome)| self.outcomes.get(*uid) != Some(*outcome))
            .map(|(uid, _)| uid)
            .collect();
        let list = self
            .context
            .stores
            .reservations
            .state()
            .iter()
            .filter(|object| changed.contains(&ReservationUid::from(object.uid().unwrap_or_default())))
            .map(|object| (object.namespace().unwrap_or_default(), object.name_any()))
            .collect();
        self.outcomes = Arc::new(fresh);
        list
    }

    /// Takes in which reservations are being deleted and have nothing booked; gives those that are new among them.
    fn release(&mut self, ledger: &Ledger) -> Vec<(String, String)> {
        let Some(table) = &self.table else { return Vec::new() };
        let idle = table
            .planner
            .deleting()
            .filter(|uid| ledger.booking_of(uid).is_none())
            .filter_map(|uid| table.planner.request(uid));
        let (uids, new): (HashSet<_>, Vec<_>) = idle
            .map(|request| {
                let reservation = &request.reservation;
                let new = !self.released.contains(&reservation.uid);
                (
                    reservation.uid.clone(),
                    new.then(|| (reservation.namespace.to_string(), reservation.name.to_string())),
                )
            })
            .unzip();
        if uids != *self.released {
            self.released = Arc::new(uids);
        }
        new.into_iter().flatten().collect()
    }

    /// Commits; `false`: somebody else had, or the ledger is gone, and everything must be read again.
    async fn commit(&mut self, ledger: &Ledger, changes: &[Change], now: TimeMs) -> Result<bool, Error> {
        let (staged, refusals) = match ledger.stage_allowed(changes, now, &mut new_name) {
            Ok(staged) => staged,
            Err(error) => {
                tracing::error!(%error, "a decision could not be written into pages; nothing of it is committed");
                return Ok(true);
            }
        };
        for refusal in &refusals {
            tracing::error!(%refusal, "the ledger refused a part of a decision");
        }
        if refusals.len() == changes.len() {
            return Ok(true);
        }
        let started = Instant::now();
        let swap = self.store.commit(&staged).await?;
        self.context.metrics.commit_seconds.observe(started.elapsed().as_secs_f64());
        if !self.is_done(swap).await {
            return Ok(false);
        }
        self.garbage += staged.garbage.len();
        let mut ended = (*self.ended).clone();
        let mut touched: Vec<Arc<Booking>> = Vec::new();
        for change in changes {
            let id = change.booking();
            if let Some(booking) = staged.next.booking(id) {
                if matches!(change, Change::Book(_)) {
                    self.context.backlog.booked(booking);
                }
                touched.push(Arc::clone(booking));
            }
            if let Some(before) = ledger.booking(id) {
                touched.push(Arc::clone(before));
                if let Change::End { at, reason, .. } = change
                    && staged.next.booking(id).is_none()
                {
                    let over = Booking { end: Some(*at), end_reason: Some(*reason), ..(**before).clone() };
                    ended.insert(before.reservation.uid.clone(), Arc::new(over));
                    self.handed.remove(id);
                    self.context.backlog.told(&before.reservation.uid);
                }
            }
            if let Change::Lose { node, .. } = change {
                self.given_up.remove(node);
            }
        }
        self.ended = Arc::new(ended);
        if let Some(table) = &mut self.table {
            table.take_bookings(&staged.next, changes.iter().map(Change::booking));
        }
        // What a node and a reservation count as depends on what is booked.
        for booking in &touched {
            self.context.changed.reservation(&booking.reservation.namespace, &booking.reservation.name);
            for segment in &booking.segments {
                self.context.changed.node(segment.node.as_str());
            }
        }
        self.ledger = Some(Arc::new(staged.next));
        self.observe(changes);
        kill::point("commit.before-publish");
        self.publish_view();
        self.look_at(&touched).await;
        Ok(true)
    }

    /// Commits what is stored of the archive, if that is news; `false`: everything must be read again. What is lost here is posted and told again.
    async fn note_stored(&mut self, now: TimeMs) -> Result<bool, Error> {
        while let Some((pool, note)) = self.stored.pop_first() {
            let Some(ledger) = self.ledger.clone() else { return Ok(false) };
            let staged = match ledger.stage_stored(&pool, note, now, &mut new_name) {
                Some(Ok(staged)) => staged,
                // Nothing new, or the archive is another by now.
                None => continue,
                Some(Err(error)) => {
                    tracing::error!(%error, "what is stored of the archive could not be written into pages");
                    continue;
                }
            };
            let swap = self.store.commit(&staged).await?;
            if !self.is_done(swap).await {
                return Ok(false);
            }
            // A page that is not reached any more is found by a collection, which there must be.
            self.garbage += staged.garbage.len();
            self.ledger = Some(Arc::new(staged.next));
            kill::point("archive.after-note");
        }
        Ok(true)
    }

    /// Whether a commit was done; counts it, and sees to what follows where it was not.
    async fn is_done(&mut self, swap: Swap) -> bool {
        match swap {
            Swap::Done => {
                self.context.metrics.commits.inc();
                true
            }
            Swap::Conflict => {
                self.context.metrics.conflicts.inc();
                self.ledger = None;
                false
            }
            Swap::Gone => {
                self.block("LedgerLost", lost("CapacityLedger/cluster is gone")).await;
                false
            }
        }
    }

    /// Counts what was sold in parts, for what comes next.
    fn observe(&mut self, changes: &[Change]) {
        let Some(ledger) = &self.ledger else { return };
        for change in changes {
            let Change::Book(booking) = change else { continue };
            if booking.exclusive || ledger.booking(&booking.id).is_none() {
                continue;
            }
            let learned = self.learned.entry(booking.pool.clone()).or_insert_with(|| {
                let known = ledger.learned().find(|(pool, _)| **pool == booking.pool);
                known.map(|(_, learned)| Learned::clone(learned)).unwrap_or_default()
            });
            let items = booking.segments.iter().filter_map(|segment| part_item(segment.devices));
            items.for_each(|item| learned.observe(&item));
        }
    }

    /// Moves the prices of parts where enough has come since they were moved last. Nothing is decided with them before the next turn, and
    /// they are committed with what is.
    fn learn(&mut self) {
        let (Some(table), Some(ledger)) = (&mut self.table, &mut self.ledger) else { return };
        for (pool, learned) in self.learned.iter_mut().filter(|(_, learned)| learned.is_due()) {
            let Some(stepped) = table.planner.learn(pool, learned) else { continue };
            *learned = stepped;
            let stepped = Arc::new(learned.clone());
            match ledger.taught(pool, Arc::clone(&stepped)) {
                Some(taught) => {
                    table.planner.set_learned(pool, stepped);
                    *ledger = Arc::new(taught);
                }
                None => *learned = Learned::default(),
            }
        }
    }

    /// Collects garbage when there is enough of it or it is time.
    async fn tidy(&mut self) -> Result<(), Error> {
        let Some(ledger) = self.ledger.clone() else { return Ok(()) };
        if self.garbage == 0 || (self.garbage < GARBAGE && self.collected.elapsed() < COLLECT) {
            return Ok(());
        }
        if self.sweeping.as_ref().is_some_and(|sweeping| !sweeping.is_finished()) {
            return Ok(());
        }
        self.collected = Instant::now();
        match self.store.collect(&ledger, now()).await? {
            Some((next, garbage)) => {
                let (pulse, gaps) = (Arc::clone(&self.context.pulse), self.context.pulse.gaps());
                // After a pause the ledger may be another, which a person has put back.
                let sweep = self.store.sweep(garbage, move || pulse.gaps() == gaps);
                let context = Arc::clone(&self.context);
                self.sweeping = Some(tokio::spawn(async move {
                    let deleted = sweep.await;
                    context.metrics.collected.inc_by(u64::try_from(deleted).unwrap_or(0));
                }));
                self.garbage = 0;
                self.ledger = Some(Arc::new(next));
            }
            None => self.ledger = None,
        }
        Ok(())
    }

    /// Forgets ended bookings and refusals whose reservation is gone or has been told.
    fn forget(&mut self) {
        if self.ended.is_empty() && self.refused.is_empty() {
            return;
        }
        let waiting: HashSet<ReservationUid> = self
            .context
            .stores
            .reservations
            .state()
            .iter()
            .filter(|object| {
                object.metadata.deletion_timestamp.is_some()
                    || !object.status.as_ref().is_some_and(|status| status.phase.is_final())
            })
            .map(|object| ReservationUid::from(object.uid().unwrap_or_default()))
            .collect();
        self.refused.retain(|uid, _| waiting.contains(uid));
        if self.ended.keys().any(|uid| !waiting.contains(uid)) {
            let mut ended = (*self.ended).clone();
            ended.retain(|uid, _| waiting.contains(uid));
            self.ended = Arc::new(ended);
        }
    }

    fn publish_view(&self) {
        let generation = self.ledger.as_ref().map_or(0, |ledger| ledger.root().generation);
        let metrics = &self.context.metrics;
        metrics.generation.set(generation);
        metrics.blocked.set(i64::from(self.blocked.is_some()));
        metrics.bookings.set(self.ledger.as_ref().map_or(0, |ledger| i64::try_from(ledger.len()).unwrap_or(i64::MAX)));
        self.publish.send_replace(Arc::new(View {
            ledger: self.ledger.clone(),
            generation,
            outcomes: Arc::clone(&self.outcomes),
            released: Arc::clone(&self.released),
            ended: Arc::clone(&self.ended),
            blocked: self.blocked.clone(),
        }));
    }

    async fn look_at(&self, bookings: &[Arc<Booking>]) {
        let queues = &self.context.queues;
        let mut pools = BTreeSet::new();
        let mut tenants = BTreeSet::new();
        for booking in bookings {
            queues.reservations.push_in(&booking.reservation.namespace, &booking.reservation.name).await;
            for segment in &booking.segments {
                queues.nodes.push(segment.node.as_str()).await;
            }
            queues.push_sharer(booking, &self.context.pods).await;
            pools.insert(booking.pool.clone());
            tenants.insert(booking.tenant.clone());
        }
        for pool in pools {
            queues.pools.push(pool.as_str()).await;
        }
        for tenant in tenants {
            queues.tenants.push(tenant.as_str()).await;
        }
    }

    async fn look_at_all_pools(&self) {
        look_at_all_pools(&self.context).await;
    }
}

async fn look_at_all_pools(context: &Context) {
    for pool in context.stores.pools.state() {
        context.queues.pools.push(&pool.name_any()).await;
    }
}

/// Has everything looked at, under a ledger that was just read.
async fn look_at_everything(context: Arc<Context>, ledger: Arc<Ledger>) {
    let queues = &context.queues;
    for node in context.stores.nodes.state() {
        queues.nodes.push(&node.name_any()).await;
    }
    look_at_all_pools(&context).await;
    for tenant in context.stores.tenants.state() {
        queues.tenants.push(&tenant.name_any()).await;
    }
    let sharers = ledger.bookings().filter(|booking| !booking.exclusive);
    let namespaces: BTreeSet<Arc<str>> = sharers.map(|booking| Arc::clone(&booking.reservation.namespace)).collect();
    for namespace in namespaces {
        queues.namespaces.push(&namespace).await;
    }
    for reservation in context.stores.reservations.state() {
        queues.reservations.push_in(&reservation.namespace().unwrap_or_default(), &reservation.name_any()).await;
    }
}

fn lost(what: &str) -> String {
    format!(
        "{what}. Nothing is sold and no node is written until the ledger is back: restore CapacityLedger and CapacityLedgerPage objects from a backup. What was sold keeps running."
    )
}

/// The ledger's changes that a plan asks for.
fn changes(plan: &Plan, planner: &Planner, ledger: &Ledger) -> Vec<Change> {
    let mut changes: Vec<Change> = plan
        .ends
        .iter()
        .map(|end| Change::End { booking: end.booking.clone(), at: end.at, reason: end.reason })
        .collect();
    for swap in &plan.swaps {
        if let Some(node) = &swap.lost {
            changes.push(Change::Lose { booking: swap.booking.clone(), node: node.clone(), at: swap.at });
        }
        if let Some(segment) = &swap.replacement {
            changes.push(Change::Add { booking: swap.booking.clone(), segment: segment.clone() });
        }
    }
    // Shares are only spoken of.
    for new in plan.bookings.iter().filter(|new| new.shares.is_empty()) {
        let (Some(request), Some(pool)) = (planner.request(&new.reservation.uid), planner.pool(&new.pool)) else {
            continue;
        };
        let Some(tenant) = request.tenant.clone() else { continue };
        changes.push(Change::Book(Booking {
            id: BookingId::from(format!("b-{}", uuid::Uuid::now_v7())),
            reservation: new.reservation.clone(),
            tenant,
            pool: new.pool.clone(),
            sku: pool.sku.clone(),
            region: pool.region.clone(),
            tier: request.tier,
            devices: new.segments.iter().map(|segment| segment.devices).sum(),
            exclusive: matches!(request.shape, Shape::WholeNodes { .. }),
            require: request.require.clone(),
            duration_ms: request.duration_ms,
            booked_at: ledger.root().committed_at,
            active_at: None,
            end: None,
            end_reason: None,
            segments: new.segments.clone(),
        }));
    }
    changes
}
