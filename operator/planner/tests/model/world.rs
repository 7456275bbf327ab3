//! What can happen: the steps of operators, tenants, machines and agents.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use spillway_planner::{
    Booking, BookingId, EndReason, NodeUid, ReservationRef, Segment, Tier, TimeMs,
    ledger::{Change, Ledger, Root, check_stamp},
    node::{Check, ForeignPods, Hold, NodeInput, NodeStep, Wanted, node_step},
};
use stateright::{Model, Property};

use crate::state::{Asked, Bad, Committed, Derived, NodeObject, Pod, Seen, State, Stored, Task, Write};

/// A safeguard that is taken away, to see that the check fails without it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Bug {
    /// Nodes are written without the precondition that they did not change.
    NodeWithoutPrecondition,
    /// The root is swapped without the precondition that it did not change.
    SwapWithoutPrecondition,
    /// The root is read before the node instead of after it.
    RootBeforeNode,
    /// A collection deletes without having swapped the root.
    CollectionWithoutSwap,
    /// A collection deletes what it listed after it swapped the root.
    ListAfterSwap,
    /// A node is handed over without asking its agent.
    NoNodeCheck,
    /// An answer from before the node was closed counts.
    OldAnswer,
    /// A node that is re-created comes open instead of closed.
    ComesOpen,
}

/// The size of a modelled world.
#[derive(Clone, Copy, Debug)]
pub struct World {
    pub nodes: usize,
    /// Reservations of one node, each of its own tenant.
    pub reservations: usize,
    /// Whether the owner's pods land on unsold nodes.
    pub owner: bool,
    /// Whether there are pods, and nodes are prepared at all; without, nodes stay open and only the ledger moves.
    pub pods: bool,
    /// How often a node object may be re-created.
    pub recreations: u8,
    /// How many collections may start.
    pub collections: u8,
    /// How many nodes may be taken out of a booking.
    pub losses: u8,
    /// How many operators may be killed, where garbage is kept; elsewhere any number.
    pub crashes: u8,
    /// Whether pages that nobody names stay until they are collected. What nobody names, nobody will name, so that elsewhere they are left out.
    pub keep_garbage: bool,
    pub bug: Option<Bug>,
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
    Segment { node: format!("n{node}").into(), uid: uid.clone(), devices: 8, from: None, to: None }
}

fn booking(reservation: usize, segment: Segment) -> Booking {
    Booking {
        id: booking_id(reservation),
        reservation: ReservationRef {
            uid: format!("r{reservation}").into(),
            namespace: holder(reservation).into(),
            name: "r".into(),
            generation: 1,
        },
        tenant: holder(reservation).into(),
        pool: "p".into(),
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
    fn owner_place(&self) -> Option<usize> {
        self.owner.then_some(self.reservations)
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
    fn plan(
        &self,
        seen: &[Seen],
        committed: &Committed,
        book: Option<usize>,
        end: Option<usize>,
        losses: u8,
    ) -> Vec<Change> {
        let ledger = &committed.ledger;
        let (mut changes, mut losses) = (Vec::new(), losses);
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
            if !free.is_empty() && ledger.booking(&id).is_none() && !committed.archived.contains(&id) {
                let node = free.remove(0);
                changes.push(Change::Book(booking(reservation, segment(node, &seen[node].uid))));
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
        let step = node_step(&NodeInput {
            hold: seen.hold.clone(),
            wanted: wanted.clone(),
            closed_for_ms: 5_000,
            pods: ForeignPods {
                owner: running.iter().any(|&party| Some(party) == owner),
                running: running.iter().any(|&party| Some(party) != owner),
                leaving: !parties(Pod::Leaving).is_empty(),
            },
            ready: true,
            cordoned: false,
            device_count_ok: true,
            check: if self.is(Bug::NoNodeCheck) { Check::NotNeeded } else { seen.check(self.is(Bug::OldAnswer)) },
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
                        state.fenced = true;
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

    fn swap(&self, state: &mut State, root: Root) {
        let before = Arc::clone(&state.committed.0);
        if root.generation <= state.root.generation || root.committed_at < state.root.committed_at {
            state.bad = Some(Bad::TimeWentBack);
        }
        let Ok(after) = Committed::read(&root, &state.pages) else {
            state.bad = Some(Bad::Unreadable);
            return;
        };
        let mut held = BTreeSet::new();
        let open = after.ledger.bookings().flat_map(|booking| booking.segments.iter().filter(|s| s.to.is_none()));
        if !open.map(|segment| &segment.uid).all(|uid| held.insert(uid)) {
            state.bad = Some(Bad::SoldTwice);
        }
        let known = before.ledger.bookings().map(|booking| &booking.id).chain(&before.archived);
        if !known.into_iter().all(|id| after.ledger.booking(id).is_some() != after.archived.contains(id)) {
            state.bad = Some(Bad::BookingLost);
        }
        state.root = root;
        state.committed = Derived(Arc::new(after));
        // A commit that can only fail is given up now as well as later, unless what it leaves behind is looked at.
        if !self.keep_garbage && !self.is(Bug::SwapWithoutPrecondition) {
            for task in &mut state.tasks {
                if matches!(task, Task::Committing { base, .. } if *base != state.root.generation) {
                    *task = Task::Idle;
                    state.fenced = true;
                }
            }
        }
    }

    /// What of a list no root needs.
    fn unnamed(state: &State, listed: impl IntoIterator<Item = spillway_planner::ledger::PageName>) -> Task {
        let names: Vec<_> = listed.into_iter().filter(|name| !state.committed.0.pages.contains(name)).collect();
        Task::Deleting { names }
    }

    fn drop_garbage(&self, state: &mut State) {
        if self.keep_garbage {
            return;
        }
        let mut named = state.committed.0.pages.clone();
        for task in &state.tasks {
            if let Task::Committing { created, .. } = task {
                named.extend(created.iter().cloned());
            }
        }
        state.pages.retain(|name, _| named.contains(name));
    }

    fn operator_actions(&self, state: &State, o: usize, actions: &mut Vec<Action>) {
        match &state.tasks[o] {
            Task::Idle => {
                actions.push(Action::Look(o));
                if self.pods {
                    actions.extend((0..self.nodes).map(|node| Action::ReadNode(o, node)));
                }
                if state.collections > 0 {
                    actions.push(if self.is(Bug::ListAfterSwap) { Action::CollectSwap(o) } else { Action::List(o) });
                }
            }
            Task::Planning(_) => {
                let ledger = &state.committed.0.ledger;
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
        if state.tasks[o] != Task::Idle && (!self.keep_garbage || state.crashes > 0) {
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
                let seen = state.nodes.iter().enumerate().map(|(n, node)| Seen {
                    uid: node.uid(n),
                    hold: node.hold.clone(),
                    owner: owner.is_some_and(|party| node.pods[party].has_container()),
                });
                state.tasks[o] = Task::Planning(seen.collect());
            }
            Action::Plan(o, book, end) => {
                let Task::Planning(seen) = std::mem::replace(&mut state.tasks[o], Task::Idle) else { return None };
                let committed = Arc::clone(&state.committed.0);
                let changes = self.plan(&seen, &committed, book, end, state.losses);
                let booked = changes.iter().any(|change| matches!(change, Change::Book(_)));
                let ended = changes.iter().any(|change| matches!(change, Change::End { .. }));
                if booked != book.is_some() || ended != end.is_some() {
                    return None;
                }
                if !changes.is_empty() {
                    let mut taken = BTreeSet::new();
                    let now = clock(state.root.generation + 1);
                    let staged =
                        committed.ledger.stage(&changes, now, &mut |kind| state.fresh(kind, &mut taken)).unwrap();
                    let todo = staged.pages.into_iter().map(Stored::new).collect();
                    let base = state.root.generation;
                    state.losses -= changes.iter().filter(|c| matches!(c, Change::Lose { .. })).count() as u8;
                    state.tasks[o] = Task::Committing { base, todo, created: Vec::new(), root: staged.root };
                }
            }
            Action::CreatePage(o) => {
                let Task::Committing { todo, created, .. } = &mut state.tasks[o] else { return None };
                let stored = todo.remove(0);
                created.push(stored.page.name.clone());
                state.pages.insert(stored.page.name.clone(), stored);
            }
            Action::Swap(o) => {
                let Task::Committing { base, root, .. } = std::mem::replace(&mut state.tasks[o], Task::Idle) else {
                    return None;
                };
                if base == state.root.generation || self.is(Bug::SwapWithoutPrecondition) {
                    self.swap(state, root);
                } else {
                    state.fenced = true;
                }
            }
            Action::ReadNode(o, node) => {
                state.tasks[o] = if self.is(Bug::RootBeforeNode) {
                    Task::Trusting { node, root: state.root.clone(), committed: state.committed.clone() }
                } else {
                    Task::Deciding { node, seen: NodeObject { stamp: 0, ..state.nodes[node].clone() }, current: true }
                };
            }
            Action::ReadRoot(o) => {
                let ledger = &state.committed.0.ledger;
                let (node, write, generation, current) = match std::mem::replace(&mut state.tasks[o], Task::Idle) {
                    Task::Deciding { node, seen, current } => {
                        (node, self.decide(node, &seen, ledger), state.root.generation, current)
                    }
                    Task::Trusting { node, root, committed } => {
                        (node, self.decide(node, &state.nodes[node], &committed.0.ledger), root.generation, true)
                    }
                    _ => return None,
                };
                if let Some(write) = write {
                    let unfounded = matches!(&write, Write::Hold(Hold::Holder { booking: Some(id), .. }) if ledger.booking(id).is_none());
                    if current || self.is(Bug::NodeWithoutPrecondition) || !matches!(write, Write::Hold(_)) {
                        state.tasks[o] = Task::Writing { node, write, generation, current, unfounded };
                    } else {
                        state.fenced = true;
                    }
                }
            }
            Action::WriteNode(o) => {
                let task = std::mem::replace(&mut state.tasks[o], Task::Idle);
                let Task::Writing { node, write, generation, current, unfounded } = task else { return None };
                self.write_node(state, node, write, generation, current, unfounded);
            }
            Action::List(o) => {
                let listed: BTreeSet<_> = state.pages.keys().cloned().collect();
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
                        let (root, _) = state.committed.0.ledger.collect(clock(state.root.generation + 1));
                        self.swap(state, root);
                    }
                    state.tasks[o] = Self::unnamed(state, listed);
                }
                _ => {
                    state.collections -= 1;
                    let (root, _) = state.committed.0.ledger.collect(clock(state.root.generation + 1));
                    self.swap(state, root);
                }
            },
            Action::DeletePage(o) => {
                let Task::Deleting { names } = &mut state.tasks[o] else { return None };
                if names.is_empty() {
                    state.tasks[o] = Task::Idle;
                    state.collected = true;
                } else {
                    let name = names.remove(0);
                    state.pages.remove(&name);
                    if state.committed.0.pages.contains(&name) {
                        state.bad = Some(Bad::Unreadable);
                    }
                }
            }
            Action::Crash(o) => {
                state.tasks[o] = Task::Idle;
                if self.keep_garbage {
                    state.crashes -= 1;
                }
            }
            _ => return None,
        }
        Some(())
    }

    fn write_node(
        &self,
        state: &mut State,
        node: usize,
        write: Write,
        generation: i64,
        current: bool,
        unfounded: bool,
    ) {
        match write {
            Write::Hold(hold) => {
                let object = &mut state.nodes[node];
                // A new closing has a question of its own.
                if hold == (Hold::Closed { no_execute: true }) {
                    object.asked_now = false;
                }
                object.hold = hold;
                object.stamp = generation;
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
                    }
                }
            }
            Write::Ask => {
                let object = &mut state.nodes[node];
                object.asked = Asked::Waiting;
                object.asked_now = current;
            }
        }
    }

    /// One step of the world. None: nothing changed.
    fn happen(&self, state: &mut State, action: Action) -> Option<()> {
        match action {
            Action::Land(node, party) => {
                state.nodes[node].pods[party] = Pod::Running;
                if Some(party) != self.owner_place() {
                    state.served |= 1 << party;
                }
            }
            Action::Evict(node, party) => state.nodes[node].pods[party] = Pod::Leaving,
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
                let clean = !object.pods.iter().any(|pod| pod.has_container());
                object.asked = if clean { Asked::Clean } else { Asked::Dirty };
            }
            Action::Recreate(node) => {
                state.recreations -= 1;
                let object = &mut state.nodes[node];
                object.incarnation += 1;
                object.hold = if self.is(Bug::ComesOpen) { Hold::Unsold } else { Hold::Closed { no_execute: false } };
                object.stamp = 0;
                object.asked_now = false;
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
        let (root, ledger) = Ledger::empty(clock(1));
        let node = NodeObject {
            incarnation: 0,
            hold: Hold::Unsold,
            stamp: 1,
            asked: Asked::No,
            asked_now: false,
            pods: vec![Pod::None; if self.pods { self.reservations + usize::from(self.owner) } else { 0 }],
        };
        vec![State {
            root,
            pages: BTreeMap::new(),
            committed: Derived(Arc::new(Committed { ledger, archived: BTreeSet::new(), pages: BTreeSet::new() })),
            nodes: vec![node; self.nodes],
            tasks: vec![Task::Idle; 2],
            recreations: self.recreations,
            collections: self.collections,
            losses: self.losses,
            crashes: self.crashes,
            bad: None,
            served: 0,
            collected: false,
            fenced: false,
        }]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        if state.bad.is_some() {
            return;
        }
        for o in 0..state.tasks.len() {
            // Two operators that do the same are one case.
            if o == 0 || state.tasks[o] != state.tasks[o - 1] {
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
        self.drop_garbage(&mut state);
        state.sort();
        Some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        fn served(world: &World, state: &State) -> bool {
            let archived = &state.committed.0.archived;
            archived.len() == world.reservations
                && (!world.pods || state.served.count_ones() as usize == world.reservations)
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
            Property::always("time goes on", |_, state: &State| {
                let stamp = state.nodes.iter().map(|node| node.stamp).max().unwrap_or_default();
                state.bad != Some(Bad::TimeWentBack) && check_stamp(&state.root, stamp).is_ok()
            }),
            Property::always("no booking is lost", |_, state: &State| state.bad != Some(Bad::BookingLost)),
            Property::always("no holder without a booking", |_, state: &State| state.bad != Some(Bad::HolderOfNobody)),
            Property::always("a tenant's pod stays on its node", |_, state: &State| {
                state.bad != Some(Bad::WrongPodDeleted)
            }),
            Property::sometimes("all were served, one after another", served),
            Property::sometimes("a late write is refused", |_, state: &State| state.fenced),
        ];
        if self.collections > 0 {
            properties.push(Property::sometimes("a collection completes", |_, state: &State| state.collected));
        }
        properties
    }
}
