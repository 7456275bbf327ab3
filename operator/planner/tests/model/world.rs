//! What can happen: the steps of operators, tenants, machines and agents.

use std::{
    collections::{BTreeSet, HashMap},
    ops::Deref,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
};

use spillway_planner::{
    Booking, BookingId, EndReason, NodeUid, ReservationRef, Segment, Tier, TimeMs,
    ledger::{Change, Ledger, LoadError, PageName, Root},
    node::{Check, ForeignPods, Hold, NodeInput, NodeStep, Wanted, node_step},
};
use stateright::{Model, Property};

use crate::state::{Api, Asked, Bad, Committed, NodeObject, PARTIES, Pod, Seen, State, Task, Write, digest};

/// A safeguard that is taken away, to see that the check fails without it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Bug {
    /// Nodes are written without the precondition that they did not change.
    NodeWithoutPrecondition,
    /// The root is swapped without the precondition that it did not change.
    SwapWithoutPrecondition,
    /// The root is patched pool by pool instead of being replaced.
    PatchByPool,
    /// The root is read before the node instead of after it.
    RootBeforeNode,
    /// A collection deletes without having swapped the root.
    CollectionWithoutSwap,
    /// A collection deletes what it listed after it swapped the root.
    ListAfterSwap,
    /// A node is handed over without asking its agent.
    NoNodeCheck,
    /// An answer about earlier taints counts.
    OldAnswer,
    /// A node that is re-created comes open instead of closed.
    ComesOpen,
}

/// The size of a modelled world.
#[derive(Clone, Copy, Debug)]
pub struct Size {
    pub nodes: usize,
    /// Reservations of one node, each of its own tenant.
    pub reservations: usize,
    /// Whether the owner's pods land on unsold nodes.
    pub owner: bool,
    /// Whether there are pods, and nodes are prepared at all; without, nodes stay open and only the ledger moves.
    pub pods: bool,
    /// Whether an operator may read a node without seeing any pod that is on it.
    pub late_pods: bool,
    /// How often a node object may be re-created.
    pub recreations: u8,
    /// How many collections may start.
    pub collections: u8,
    /// How many nodes may be taken out of a booking.
    pub losses: u8,
}

/// What happened at least once in some history; no part of the state.
#[derive(Debug, Default)]
pub struct Happened {
    refused: AtomicBool,
    collected: AtomicBool,
}

/// A modelled world.
#[derive(Debug)]
pub struct World {
    size: Size,
    bug: Option<Bug>,
    happened: Happened,
    staged: Mutex<HashMap<u64, StagedPages>>,
    read: Mutex<HashMap<u64, Arc<Committed>>>,
}

type StagedPages = (Vec<Arc<spillway_planner::ledger::Page>>, Root);

impl Deref for World {
    type Target = Size;

    fn deref(&self) -> &Size {
        &self.size
    }
}

/// A step.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Action {
    /// An operator looks at the nodes.
    Look(usize),
    /// It reads the ledger, and plans: what must be, and perhaps this reservation booked and that one ended.
    Plan(usize, Option<usize>, Option<usize>),
    /// It creates the next page.
    CreatePage(usize),
    /// It swaps the root.
    Swap(usize),
    /// It reads a node (with the safeguard taken away: the root).
    ReadNode(usize, usize),
    /// It reads a node, and of its pods sees none yet.
    ReadNodeAlone(usize, usize),
    /// It reads the root (with the safeguard taken away: the node), and decides.
    ReadRoot(usize),
    /// It writes the node.
    WriteNode(usize),
    /// It lists all pages.
    List(usize),
    /// It swaps the root for a collection.
    CollectSwap(usize),
    /// It deletes the next page.
    DeletePage(usize),
    /// It is killed, or gives up.
    Crash(usize),
    /// A pod of a party lands on a node.
    Land(usize, usize),
    /// A pod of a party is told to go by Kubernetes.
    Evict(usize, usize),
    /// A container of a party stops.
    Stop(usize, usize),
    /// A pod vanishes from the API server, its container does not.
    Vanish(usize, usize),
    /// An agent answers.
    Answer(usize),
    /// A node object is deleted and registers again.
    Recreate(usize),
}

fn booking_id(reservation: usize) -> BookingId {
    format!("b{reservation}").into()
}

fn holder(tenant: usize) -> String {
    format!("t{tenant}")
}

/// The tenant whose holder a node has.
fn tenant_of(hold: &Hold) -> Option<usize> {
    match hold {
        Hold::Holder { holder, .. } => holder.strip_prefix('t')?.parse().ok(),
        _ => None,
    }
}

fn segment(node: usize, uid: &NodeUid) -> Segment {
    Segment { node: format!("n{node}").into(), uid: uid.clone(), devices: 8, of: None, from: None, to: None }
}

fn booking(reservation: usize, pool: &str, segment: Segment) -> Booking {
    Booking {
        id: booking_id(reservation),
        reservation: ReservationRef {
            uid: format!("r{reservation}").into(),
            namespace: holder(reservation).into(),
            name: "r".into(),
            generation: 1,
        },
        tenant: holder(reservation).into(),
        pool: pool.into(),
        sku: "s".into(),
        region: "r".into(),
        tier: Tier::OnDemand,
        devices: 8,
        exclusive: true,
        require: None,
        duration_ms: None,
        booked_at: TimeMs(0),
        active_at: None,
        end: None,
        end_reason: None,
        segments: vec![segment],
    }
}

/// The operators' clocks differ: one commit reads a late clock, the next an early one.
fn clock(generation: i64) -> TimeMs {
    TimeMs(if generation % 2 == 0 { 2_000 } else { 1_000 })
}

impl World {
    pub fn new(size: Size, bug: Option<Bug>) -> Self {
        Self { size, bug, happened: Happened::default(), staged: Mutex::default(), read: Mutex::default() }
    }

    /// Where pages are not looked at one by one, they are created in one step: until the swap nobody can tell.
    fn pages_matter(&self) -> bool {
        self.collections > 0
    }

    fn refused(&self) {
        self.happened.refused.store(true, Ordering::Relaxed);
    }

    fn owner_place(&self) -> Option<usize> {
        self.owner.then_some(PARTIES - 1)
    }

    fn is(&self, bug: Bug) -> bool {
        self.bug == Some(bug)
    }

    fn wanted(&self, ledger: &Ledger, uid: &NodeUid) -> Wanted {
        match ledger.holders(uid).next() {
            None => Wanted::Open,
            Some(booking) => Wanted::Held { holder: booking.tenant.to_string(), booking: booking.id.clone() },
        }
    }

    /// The changes of one plan, from nodes as they were seen and the ledger as it is.
    fn plan(&self, seen: &[Seen], committed: &Committed, book: Option<usize>, end: Option<usize>) -> Vec<Change> {
        let ledger = &committed.ledger;
        let mut changes = Vec::new();
        let lost = |booking: &Arc<Booking>| booking.segments.iter().filter(|segment| segment.to.is_some()).count();
        let mut losses = usize::from(self.losses).saturating_sub(ledger.bookings().map(lost).sum());
        let mut free: Vec<usize> = (0..seen.len())
            .filter(|&n| {
                let seen = &seen[n];
                seen.hold == Hold::Unsold && !seen.owner && ledger.holders(&seen.uid).next().is_none()
            })
            .collect();
        let at = clock(ledger.root().generation);
        for reservation in 0..self.reservations {
            let id = booking_id(reservation);
            let Some(booking) = ledger.booking(&id) else { continue };
            if end == Some(reservation) {
                changes.push(Change::End { booking: id, at, reason: EndReason::Deleted });
                continue;
            }
            let mut open = 0;
            for segment in booking.segments.iter().filter(|segment| segment.to.is_none()) {
                let node = seen.iter().find(|seen| seen.uid == segment.uid);
                let given_up = node.is_some_and(|seen| {
                    segment.from.is_none() && seen.owner && seen.hold == (Hold::Closed { no_execute: false })
                });
                if (node.is_none() || given_up) && losses > 0 {
                    losses -= 1;
                    changes.push(Change::Lose { booking: id.clone(), node: segment.uid.clone(), at });
                    continue;
                }
                open += 1;
                let held = node.is_some_and(|seen| {
                    matches!(&seen.hold, Hold::Holder { booking: Some(of), .. } if *of == id) || !self.pods
                });
                if segment.from.is_none() && held {
                    changes.push(Change::HandOver { booking: id.clone(), nodes: vec![segment.uid.clone()], at });
                }
            }
            if open == 0 && !free.is_empty() {
                let node = free.remove(0);
                changes.push(Change::Add { booking: id, segment: segment(node, &seen[node].uid) });
            }
        }
        if let Some(reservation) = book {
            let id = booking_id(reservation);
            if !free.is_empty() && ledger.booking(&id).is_none() && !committed.archived.contains_key(&id) {
                let node = free.remove(0);
                let pool = if self.is(Bug::PatchByPool) { format!("p{reservation}") } else { "p".to_owned() };
                changes.push(Change::Book(booking(reservation, &pool, segment(node, &seen[node].uid))));
            }
        }
        changes
    }

    /// What an operator decides for a node that it read, under a ledger.
    fn decide(&self, node: usize, seen: &NodeObject, ledger: &Ledger) -> Option<Write> {
        let parties = |of: Pod| -> Vec<usize> {
            let kept = tenant_of(&seen.hold);
            (0..seen.pods.len()).filter(|&party| Some(party) != kept && seen.pods[party] == of).collect()
        };
        let running = parties(Pod::Running);
        let owner = self.owner_place();
        let wanted = self.wanted(ledger, &seen.uid(node));
        // A node on which nothing was told to go is opened as it is, if nothing of a tenant is there.
        let tenants_only = wanted == Wanted::Open && seen.hold == Hold::Closed { no_execute: false };
        let step = node_step(&NodeInput {
            hold: seen.hold.clone(),
            wanted: wanted.clone(),
            closed_for_ms: 5_000,
            pods: ForeignPods {
                owner: running.iter().any(|&party| Some(party) == owner),
                running: running.iter().any(|&party| Some(party) != owner),
                leaving: parties(Pod::Leaving).iter().any(|&party| !tenants_only || Some(party) != owner),
            },
            ready: true,
            cordoned: false,
            device_count_ok: true,
            devices: 8,
            releasing: false,
            check: if self.is(Bug::NoNodeCheck) {
                Check::NotNeeded
            } else {
                seen.check(self.is(Bug::OldAnswer), tenants_only)
            },
        });
        match (step, wanted) {
            (NodeStep::WriteClosedNoSchedule, _) => Some(Write::Hold(Hold::Closed { no_execute: false })),
            (NodeStep::WriteClosedBoth, _) => Some(Write::Hold(Hold::Closed { no_execute: true })),
            (NodeStep::WriteUnsold, _) => Some(Write::Hold(Hold::Unsold)),
            (NodeStep::WriteHolder, Wanted::Held { holder, booking }) => {
                Some(Write::Hold(Hold::Holder { holder, booking: Some(booking) }))
            }
            // Before the node is emptied, the owner's pods are not touched.
            (NodeStep::Drain, _) => {
                let all = seen.hold == Hold::Closed { no_execute: true };
                Some(Write::Drain(running.into_iter().filter(|&party| all || Some(party) != owner).collect()))
            }
            (NodeStep::AskCheck, _) => Some(Write::Ask),
            _ => None,
        }
    }

    /// The node changed: whoever read it before has an old resourceVersion.
    fn node_changed(&self, state: &mut State, node: usize) {
        for task in &mut state.tasks {
            match task {
                Task::Deciding { node: read, current, .. } if *read == node => *current = false,
                Task::Writing { node: read, current, write, .. } if *read == node => {
                    *current = false;
                    // A write that can only fail is given up now as well as later.
                    if matches!(write, Write::Hold(_)) && !self.is(Bug::NodeWithoutPrecondition) {
                        *task = Task::Idle;
                        self.refused();
                    }
                }
                _ => {}
            }
        }
    }

    /// A pod is gone: whoever wanted to delete it by its UID will delete nothing.
    fn pod_gone(state: &mut State, node: usize, party: usize) {
        for task in &mut state.tasks {
            if let Task::Writing { node: read, write: Write::Drain(parties), .. } = task
                && *read == node
            {
                parties.retain(|&known| known != party);
                if parties.is_empty() {
                    *task = Task::Idle;
                }
            }
            if let Task::Deciding { node: read, seen, .. } = task
                && *read == node
            {
                seen.pods[party] = Pod::None;
            }
        }
    }

    /// The operator's commit, worked out once for the same ledger and changes. Names say from what they come, so that they differ
    /// where their pages do.
    fn stage(&self, api: &Api, changes: &[Change], attempt: u32) -> StagedPages {
        let key = digest(&(&api.root, changes, attempt));
        if let Some(known) = self.staged.lock().unwrap().get(&key) {
            return known.clone();
        }
        let (mut count, generation) = (0, api.root.generation);
        let mut new_name = |kind| {
            count += 1;
            PageName::from(format!("{kind:?}-{generation}-{key:016x}-{count}"))
        };
        let staged = api.committed.ledger.stage(changes, clock(generation + 1), &mut new_name).unwrap();
        let staged = (staged.pages.into_iter().map(Arc::new).collect::<Vec<_>>(), staged.root);
        self.staged.lock().unwrap().insert(key, staged.clone());
        staged
    }

    /// The ledger of a root, read once.
    fn read(&self, root: &Root, api: &Api) -> Result<Arc<Committed>, LoadError> {
        let key = digest(root);
        let known = self.read.lock().unwrap().get(&key).cloned();
        if let Some(known) = known.filter(|known| known.pages.iter().all(|name| api.pages.contains_key(name))) {
            return Ok(known);
        }
        let read = Arc::new(Committed::read(root, &api.pages)?);
        self.read.lock().unwrap().insert(key, Arc::clone(&read));
        Ok(read)
    }

    fn swap(&self, state: &mut State, root: Root) {
        let before = Arc::clone(&state.api.committed);
        if root.generation <= state.api.root.generation || root.committed_at < state.api.root.committed_at {
            state.bad = Some(Bad::TimeWentBack);
        }
        let after = match self.read(&root, &state.api) {
            Ok(after) => after,
            Err(error) => {
                // Reading refuses a double sale as well.
                let twice = error.to_string().contains(" hold node ");
                state.bad = Some(if twice { Bad::SoldTwice } else { Bad::Unreadable });
                return;
            }
        };
        let mut held = BTreeSet::new();
        let open = after.ledger.bookings().flat_map(|booking| booking.segments.iter().filter(|s| s.to.is_none()));
        if !open.map(|segment| &segment.uid).all(|uid| held.insert(uid)) {
            state.bad = Some(Bad::SoldTwice);
        }
        let known = before.ledger.bookings().map(|booking| &booking.id).chain(before.archived.keys());
        if !known.into_iter().all(|id| after.ledger.booking(id).is_some() != after.archived.contains_key(id)) {
            state.bad = Some(Bad::BookingLost);
        }
        let api = Arc::make_mut(&mut state.api);
        api.root = root;
        api.committed = after;
        // A commit that can only fail is given up now as well as later, unless what it leaves behind is looked at.
        if !self.is(Bug::SwapWithoutPrecondition) && !self.is(Bug::PatchByPool) {
            for task in &mut state.tasks {
                if let Task::Committing { base, changes, .. } = task
                    && *base != state.api.root.generation
                {
                    *changes = 0;
                    if !self.pages_matter() {
                        *task = Task::Idle;
                    }
                    self.refused();
                }
            }
        }
    }

    /// What of a list no root needs.
    fn unnamed(state: &State, listed: impl IntoIterator<Item = PageName>) -> Task {
        let names: Vec<_> = listed.into_iter().filter(|name| !state.api.committed.pages.contains(name)).collect();
        Task::Deleting { names }
    }

    /// A sale displaces no pod of the owner that can be seen.
    fn told_to_go(&self, state: &mut State, party: usize) {
        if Some(party) == self.owner_place() && !self.late_pods {
            state.bad = Some(Bad::OwnerDisplaced);
        }
    }

    /// What was asked before is of no more interest, nor is its answer.
    fn forget_question(&self, node: &mut NodeObject) {
        node.asked_now = false;
        if !self.is(Bug::OldAnswer) {
            node.asked = Asked::No;
        }
    }

    /// What nobody names or is about to, nobody will name: it is left out of the state, as if it had been collected.
    fn drop_garbage(state: &mut State) {
        let Api { committed, pages, .. } = &*state.api;
        let named = |name: &PageName| {
            committed.pages.contains(name)
                || state.tasks.iter().any(|task| match task {
                    Task::Committing { created, .. } => created.contains(name),
                    Task::Collecting { listed } => listed.contains(name),
                    Task::Deleting { names } => names.contains(name),
                    _ => false,
                })
        };
        let garbage: Vec<PageName> = pages.keys().filter(|name| !named(name)).cloned().collect();
        let api = Arc::make_mut(&mut state.api);
        garbage.iter().for_each(|name| drop(api.pages.remove(name)));
    }

    fn operator_actions(&self, state: &State, o: usize, actions: &mut Vec<Action>) {
        match &state.tasks[o] {
            Task::Idle => {
                actions.push(Action::Look(o));
                if self.pods {
                    actions.extend((0..self.nodes).map(|node| Action::ReadNode(o, node)));
                    if self.late_pods {
                        actions.extend((0..self.nodes).map(|node| Action::ReadNodeAlone(o, node)));
                    }
                }
                if state.collections > 0 {
                    actions.push(if self.is(Bug::ListAfterSwap) { Action::CollectSwap(o) } else { Action::List(o) });
                }
            }
            Task::Planning(_) => {
                let ledger = &state.api.committed.ledger;
                let booked: Vec<usize> =
                    (0..self.reservations).filter(|&r| ledger.booking(&booking_id(r)).is_some()).collect();
                let others = (0..self.reservations).filter(|r| !booked.contains(r)).map(Some).chain([None]);
                for book in others {
                    actions
                        .extend(booked.iter().copied().map(Some).chain([None]).map(|end| Action::Plan(o, book, end)));
                }
            }
            Task::Committing { todo, .. } if todo.is_empty() => actions.push(Action::Swap(o)),
            Task::Committing { .. } => actions.push(Action::CreatePage(o)),
            Task::Deciding { .. } | Task::Trusting { .. } => actions.push(Action::ReadRoot(o)),
            Task::Writing { .. } => actions.push(Action::WriteNode(o)),
            Task::Collecting { .. } => actions.push(Action::CollectSwap(o)),
            Task::Listing => actions.push(Action::List(o)),
            Task::Deleting { .. } => actions.push(Action::DeletePage(o)),
        }
        if !matches!(state.tasks[o], Task::Idle) {
            actions.push(Action::Crash(o));
        }
    }

    fn world_actions(&self, state: &State, actions: &mut Vec<Action>) {
        for (n, node) in state.nodes.iter().enumerate() {
            for (party, pod) in node.pods.iter().enumerate() {
                let welcome = match &node.hold {
                    Hold::Unsold => Some(party) == self.owner_place(),
                    hold => tenant_of(hold) == Some(party),
                };
                if *pod == Pod::None && welcome {
                    actions.push(Action::Land(n, party));
                }
                let evicted = match &node.hold {
                    Hold::Closed { no_execute } => *no_execute,
                    Hold::Holder { .. } => !welcome,
                    _ => false,
                };
                if *pod == Pod::Running && evicted {
                    actions.push(Action::Evict(n, party));
                }
                if *pod == Pod::Leaving {
                    actions.push(Action::Vanish(n, party));
                }
                if pod.has_container() {
                    actions.push(Action::Stop(n, party));
                }
            }
            if node.asked == Asked::Waiting {
                actions.push(Action::Answer(n));
            }
            if state.recreations > 0 {
                actions.push(Action::Recreate(n));
            }
        }
    }

    /// One step of an operator. None: nothing changed.
    fn operate(&self, state: &mut State, action: Action) -> Option<()> {
        match action {
            Action::Look(o) => {
                let owner = self.owner_place();
                let seen = state.nodes.iter().enumerate().map(|(n, node)| {
                    let owner = owner.is_some_and(|party| node.pods[party].has_container());
                    // What makes no difference to a plan is left out.
                    let hold = match &node.hold {
                        Hold::Closed { no_execute: false } if owner => node.hold.clone(),
                        Hold::Unsold | Hold::Holder { .. } => node.hold.clone(),
                        _ => Hold::Closed { no_execute: true },
                    };
                    let owner = owner && !matches!(hold, Hold::Closed { no_execute: true } | Hold::Holder { .. });
                    Seen { uid: node.uid(n), hold, owner }
                });
                state.tasks[o] = Task::Planning(seen.collect());
            }
            Action::Plan(o, book, end) => {
                let Task::Planning(seen) = std::mem::replace(&mut state.tasks[o], Task::Idle) else { return None };
                let committed = Arc::clone(&state.api.committed);
                let changes = self.plan(&seen, &committed, book, end);
                let booked = changes.iter().any(|change| matches!(change, Change::Book(_)));
                let ended = changes.iter().any(|change| matches!(change, Change::End { .. }));
                if booked != book.is_some() || ended != end.is_some() {
                    return None;
                }
                if !changes.is_empty() {
                    // Two operators that plan the same do not make the same names.
                    let (mut todo, root) = (0..)
                        .map(|attempt| self.stage(&state.api, &changes, attempt))
                        .find(|(pages, _)| !pages.iter().any(|stored| state.knows(&stored.name)))?;
                    let mut created = Vec::new();
                    if !self.pages_matter() {
                        created.extend(todo.iter().map(|stored| stored.name.clone()));
                        let api = Arc::make_mut(&mut state.api);
                        api.pages.extend(todo.drain(..).map(|stored| (stored.name.clone(), stored)));
                    }
                    state.tasks[o] = Task::Committing {
                        base: state.api.root.generation,
                        changes: digest(&changes),
                        todo,
                        created,
                        root,
                    };
                }
            }
            Action::CreatePage(o) => {
                let Task::Committing { todo, created, .. } = &mut state.tasks[o] else { return None };
                let stored = todo.remove(0);
                created.push(stored.name.clone());
                Arc::make_mut(&mut state.api).pages.insert(stored.name.clone(), stored);
            }
            Action::Swap(o) => {
                let task = std::mem::replace(&mut state.tasks[o], Task::Idle);
                let Task::Committing { base, mut root, created, .. } = task else { return None };
                if self.is(Bug::PatchByPool) {
                    let own: Vec<_> = root.pools.into_iter().filter(|(_, index)| created.contains(index)).collect();
                    root = state.api.committed.ledger.collect(root.committed_at).0;
                    root.pools.extend(own);
                }
                if base == state.api.root.generation
                    || self.is(Bug::SwapWithoutPrecondition)
                    || self.is(Bug::PatchByPool)
                {
                    self.swap(state, root);
                    // Tenants are alike: the first to be booked is the first.
                    let Committed { ledger, archived, .. } = &*state.api.committed;
                    let known = |r| ledger.booking(&booking_id(r)).is_some() || archived.contains_key(&booking_id(r));
                    if (1..self.reservations).any(|r| known(r) && !known(r - 1)) {
                        return None;
                    }
                } else {
                    self.refused();
                }
            }
            Action::ReadNode(o, node) => {
                state.tasks[o] = if self.is(Bug::RootBeforeNode) {
                    Task::Trusting { node, committed: Arc::clone(&state.api.committed) }
                } else {
                    Task::Deciding { node, seen: state.nodes[node].reduced(), current: true }
                };
            }
            Action::ReadNodeAlone(o, node) => {
                let mut seen = state.nodes[node].reduced();
                seen.pods.fill(Pod::None);
                state.tasks[o] = Task::Deciding { node, seen, current: true };
            }
            Action::ReadRoot(o) => {
                let ledger = &state.api.committed.ledger;
                let (node, write, current) = match std::mem::replace(&mut state.tasks[o], Task::Idle) {
                    Task::Deciding { node, seen, current } => (node, self.decide(node, &seen, ledger), current),
                    Task::Trusting { node, committed } => {
                        (node, self.decide(node, &state.nodes[node], &committed.ledger), true)
                    }
                    _ => return None,
                };
                if let Some(write) = write {
                    let unfounded = matches!(&write, Write::Hold(Hold::Holder { booking: Some(id), .. }) if ledger.booking(id).is_none());
                    if current || self.is(Bug::NodeWithoutPrecondition) || !matches!(write, Write::Hold(_)) {
                        state.tasks[o] = Task::Writing { node, write, current, unfounded };
                    } else {
                        self.refused();
                    }
                }
            }
            Action::WriteNode(o) => {
                let task = std::mem::replace(&mut state.tasks[o], Task::Idle);
                let Task::Writing { node, write, current, unfounded } = task else { return None };
                self.write_node(state, node, write, current, unfounded);
            }
            Action::List(o) => {
                let listed: BTreeSet<_> = state.api.pages.keys().cloned().collect();
                state.tasks[o] = match state.tasks[o] {
                    Task::Listing => Self::unnamed(state, listed),
                    _ => {
                        state.collections -= 1;
                        Task::Collecting { listed }
                    }
                };
            }
            Action::CollectSwap(o) => match std::mem::replace(&mut state.tasks[o], Task::Listing) {
                Task::Collecting { listed } => {
                    if !self.is(Bug::CollectionWithoutSwap) {
                        let (root, _) = state.api.committed.ledger.collect(clock(state.api.root.generation + 1));
                        self.swap(state, root);
                    }
                    state.tasks[o] = Self::unnamed(state, listed);
                }
                _ => {
                    state.collections -= 1;
                    let (root, _) = state.api.committed.ledger.collect(clock(state.api.root.generation + 1));
                    self.swap(state, root);
                }
            },
            Action::DeletePage(o) => {
                let Task::Deleting { names } = &mut state.tasks[o] else { return None };
                if names.is_empty() {
                    state.tasks[o] = Task::Idle;
                    self.happened.collected.store(true, Ordering::Relaxed);
                } else {
                    let name = names.remove(0);
                    Arc::make_mut(&mut state.api).pages.remove(&name);
                    if state.api.committed.pages.contains(&name) {
                        state.bad = Some(Bad::Unreadable);
                    }
                }
            }
            Action::Crash(o) => {
                state.tasks[o] = Task::Idle;
            }
            _ => return None,
        }
        Some(())
    }

    fn write_node(&self, state: &mut State, node: usize, write: Write, current: bool, unfounded: bool) {
        match write {
            Write::Hold(hold) => {
                let object = &mut state.nodes[node];
                // What was asked was asked about other taints.
                self.forget_question(object);
                object.hold = hold;
                if unfounded {
                    state.bad = Some(Bad::HolderOfNobody);
                }
                self.node_changed(state, node);
            }
            Write::Drain(parties) => {
                for party in parties {
                    let object = &mut state.nodes[node];
                    if object.pods[party] == Pod::Running {
                        object.pods[party] = Pod::Leaving;
                        if tenant_of(&object.hold) == Some(party) {
                            state.bad = Some(Bad::WrongPodDeleted);
                        }
                        self.told_to_go(state, party);
                    }
                }
            }
            Write::Ask => {
                let object = &mut state.nodes[node];
                object.asked = Asked::Waiting;
                object.asked_now = true;
                // Asked about taints that are no more.
                if !current {
                    self.forget_question(object);
                }
            }
        }
    }

    /// One step of the world. None: nothing changed.
    fn happen(&self, state: &mut State, action: Action) -> Option<()> {
        match action {
            Action::Land(node, party) => {
                state.nodes[node].pods[party] = Pod::Running;
            }
            Action::Evict(node, party) => {
                state.nodes[node].pods[party] = Pod::Leaving;
                self.told_to_go(state, party);
            }
            Action::Stop(node, party) => {
                state.nodes[node].pods[party] = Pod::None;
                Self::pod_gone(state, node, party);
            }
            Action::Vanish(node, party) => {
                state.nodes[node].pods[party] = Pod::Ghost;
                Self::pod_gone(state, node, party);
            }
            Action::Answer(node) => {
                let object = &mut state.nodes[node];
                let owner = self.owner_place();
                let has = |of_owner: bool| {
                    let containers = object.pods.iter().enumerate().filter(|(_, pod)| pod.has_container());
                    containers.into_iter().any(|(party, _)| (Some(party) == owner) == of_owner)
                };
                object.asked = Asked::Answered { tenants: has(false), owner: has(true) };
            }
            Action::Recreate(node) => {
                state.recreations -= 1;
                let object = &mut state.nodes[node];
                object.incarnation += 1;
                object.hold = if self.is(Bug::ComesOpen) { Hold::Unsold } else { Hold::Closed { no_execute: false } };
                self.forget_question(object);
                for party in 0..object.pods.len() {
                    if state.nodes[node].pods[party].has_container() {
                        state.nodes[node].pods[party] = Pod::Ghost;
                        Self::pod_gone(state, node, party);
                    }
                }
                self.node_changed(state, node);
            }
            _ => return None,
        }
        Some(())
    }
}

impl Model for World {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        let (root, _) = Ledger::empty(clock(1));
        let node = NodeObject {
            incarnation: 0,
            hold: Hold::Unsold,
            asked: Asked::No,
            asked_now: false,
            pods: [Pod::None; PARTIES],
        };
        vec![State {
            api: Api::new(root),
            nodes: vec![node; self.nodes],
            tasks: [Task::Idle, Task::Idle],
            recreations: self.recreations,
            collections: self.collections,
            bad: None,
        }]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        if state.bad.is_some() {
            return;
        }
        for o in 0..state.tasks.len() {
            // Two operators that do the same are one case.
            if o == 0 || !state.same_task(o, o - 1) {
                self.operator_actions(state, o, actions);
            }
        }
        self.world_actions(state, actions);
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let mut state = last.clone();
        match action {
            Action::Land(..)
            | Action::Evict(..)
            | Action::Stop(..)
            | Action::Vanish(..)
            | Action::Answer(_)
            | Action::Recreate(_) => self.happen(&mut state, action)?,
            _ => self.operate(&mut state, action)?,
        }
        if matches!(
            action,
            Action::Plan(..)
                | Action::CreatePage(_)
                | Action::Swap(_)
                | Action::List(_)
                | Action::CollectSwap(_)
                | Action::DeletePage(_)
                | Action::Crash(_)
        ) {
            Self::drop_garbage(&mut state);
        }
        Some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        fn served(world: &World, state: &State) -> bool {
            let archived = &state.api.committed.archived;
            archived.len() == world.reservations && archived.values().all(|active| *active)
        }
        let mut properties = vec![
            Property::always("a node is sold once", |_, state: &State| state.bad != Some(Bad::SoldTwice)),
            Property::always("nobody runs on another's node", |_, state: &State| {
                state.nodes.iter().all(|node| {
                    tenant_of(&node.hold).is_none_or(|tenant| {
                        (0..node.pods.len()).all(|party| party == tenant || !node.pods[party].has_container())
                    })
                })
            }),
            Property::always("no two run on a node at once", |_, state: &State| {
                state.nodes.iter().all(|node| node.pods.iter().filter(|pod| pod.has_container()).count() <= 1)
            }),
            Property::always("the root can be read", |_, state: &State| state.bad != Some(Bad::Unreadable)),
            Property::always("time goes on", |_, state: &State| state.bad != Some(Bad::TimeWentBack)),
            Property::always("no booking is lost", |_, state: &State| state.bad != Some(Bad::BookingLost)),
            Property::always("no holder without a booking", |_, state: &State| state.bad != Some(Bad::HolderOfNobody)),
            Property::always("a tenant's pod stays on its node", |_, state: &State| {
                state.bad != Some(Bad::WrongPodDeleted)
            }),
            Property::always("the owner is not displaced", |_, state: &State| state.bad != Some(Bad::OwnerDisplaced)),
            Property::sometimes("all were served, one after another", served),
            Property::sometimes("a late write is refused", |world: &Self, _| {
                world.happened.refused.load(Ordering::Relaxed)
            }),
        ];
        if self.collections > 0 {
            properties.push(Property::sometimes("a collection completes", |world: &Self, _| {
                world.happened.collected.load(Ordering::Relaxed)
            }));
        }
        properties
    }
}
