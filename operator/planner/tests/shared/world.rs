//! What can happen: the steps of operators, tenants, the scheduler, the machine and its agent.

use std::{
    collections::BTreeMap,
    ops::Deref,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use spillway_planner::{
    BookingId, NodeName, NodeUid, TimeMs,
    assign::{Assignment, Gone, Guest, Record, Room, assign},
    node::{Check, ForeignPods, Hold, NodeInput, NodeStep, Part, RECHECK_MS, Wanted, node_step},
};
use stateright::{Model, Property};

use crate::state::{
    About, Bad, Booking, DEVICES, Node, Operator, PODS, Places, Pod, Question, RESERVATIONS, Reservation, Root, Seen,
    Set, State, Taint, Task, Write, live,
};

/// A safeguard that is taken away, to see that the check fails without it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Bug {
    /// The node is written without the precondition that it did not change.
    NodeWithoutPrecondition,
    /// Places are recorded without the precondition that the reservation did not change.
    RecordWithoutPrecondition,
    /// A pod is told of its place before that is recorded.
    ToldBeforeRecorded,
    /// Places and parts are given to others without asking the agent.
    NoNodeCheck,
    /// An answer counts whatever the question was about.
    OldAnswer,
    /// The agent is asked about pods that went as far as a view says that may be behind.
    AskedByView,
    /// A question is not about the pods of parts that ended.
    AskedOfPartsOnly,
    /// Pods are deleted on a node that changed since it was found that it must be emptied.
    EmptiedLate,
    /// Who had a place in a part that ended is deleted, even if it has another now.
    EndedThoughPlaced,
    /// Who waits in a part that ended is left waiting.
    WaitingLeft,
    /// Who waits in a part that ended is left waiting once the node is closed.
    WaitingWhenClosed,
    /// Who was there when it was read and is gone when the pods of the node are listed counts as gone before the agent was asked.
    GoneBetweenReads,
    /// Of a part that is over, whose reservation goes on, the places are given up before the node machine has given it back.
    PlaceGivenUp,
    /// A reservation that ended is forgotten though a pod waits that has a place by it.
    ForgottenWaiting,
    /// What was asked while it was known who had places in a part counts when that is forgotten.
    AskedBeforeForgotten,
    /// Two places of one pod both stand.
    TwoPlaces,
    /// Nobody is expelled.
    NoExpel,
    /// Who is suspected of having no place is judged by reservations that were read before the pods.
    RecordsBeforePods,
    /// They are judged by reservations that were read before the root.
    RecordsBeforeRoot,
    /// They are judged without the places in parts that were booked since the root was read.
    LaterPlaceIgnored,
}

/// The size of a modelled world.
#[derive(Clone, Copy, Debug)]
pub struct Size {
    /// By reservation of one device: whose it is.
    pub reservations: &'static [usize],
    /// By pod that wants one device: whose it is.
    pub pods: &'static [usize],
    /// How many of the reservations have their parts handed over at the beginning; the node is open if none has.
    pub prepared: usize,
    /// How often the node object may be re-created.
    pub recreations: u8,
    /// Whether an operator's view of pods may be behind, so that it does not see one that is there.
    pub late_pods: bool,
    /// Whether the safeguard is taken away that the root is read between a pod and its toleration.
    pub told_late: bool,
    /// Whether an operator's view of reservations may be behind, so that it does not see the place of a pod.
    pub late_records: bool,
    /// How many of the reservations may end.
    pub ends: usize,
    /// How many of the reservations may lose their parts and go on elsewhere.
    pub losses: usize,
    /// How many pods may be deleted by their tenants.
    pub deletions: u8,
    /// Whether it comes to it that pods are expelled.
    pub expels: bool,
    /// Whether a tenant may never have more than its parts; else it is enough that the next look finds who is too many.
    pub strict: bool,
    /// Whether a reservation that ended may be gone before its part was given back.
    pub forgotten: bool,
}

/// What happened at least once in some history; no part of the state.
#[derive(Debug, Default)]
struct Happened {
    refused: AtomicBool,
    given_again: AtomicBool,
    waited_for_ghost: AtomicBool,
    expelled: AtomicBool,
}

/// Names and objects that are needed in each decision, made once.
#[derive(Debug)]
struct Names {
    pods: Vec<Arc<str>>,
    reservations: Vec<Arc<str>>,
    bookings: Vec<BookingId>,
    node: NodeName,
    resource: Arc<str>,
}

/// A modelled world.
#[derive(Debug)]
pub struct World {
    size: Size,
    bug: Option<Bug>,
    happened: Happened,
    names: Names,
}

impl Deref for World {
    type Target = Size;

    fn deref(&self) -> &Size {
        &self.size
    }
}

/// A step. The first number is the operator's, where it is one's: its place after the step before, for operators stand in order.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Action {
    /// The node machine reads the node, its pods but the first of these, and the records but of the second.
    Look(usize, Option<usize>, Option<usize>),
    /// It reads the root, and decides. If that is final, it reads the records again, and the pods that had places in parts that ended.
    Decide(usize),
    /// Then it lists the pods of the node.
    ReadPods(usize),
    /// It reads the root again, and decides.
    Confirm(usize),
    /// It writes.
    Write(usize),
    /// The reservations of a tenant are read, to give places.
    ReadReservations(usize, usize),
    /// The root is read, then the node and the tenant's pods but this one, and places are given.
    Place(usize, Option<usize>),
    /// Pods of which some are suspected are listed. (With a safeguard taken away, in another order.)
    ListPods(usize),
    /// Then the root is read.
    ReadRoot(usize),
    /// Then the reservations, and who must go is decided.
    Judge(usize),
    /// Who must go is deleted.
    Expel(usize),
    /// The next reservation's places are written.
    WriteRecord(usize),
    /// The next pod is read, and the root.
    Admit(usize),
    /// It gets the toleration.
    Tell(usize),
    /// An operator is killed.
    Crash(usize),
    /// A part is booked.
    Book(usize),
    /// It ends.
    End(usize),
    /// It is over, and the reservation goes on.
    Lose(usize),
    /// A reservation that ended is gone.
    Forget(usize),
    /// A pod is created.
    Create(usize),
    /// It lands.
    Land(usize),
    /// It is deleted by its tenant, or evicted by the taint.
    Delete(usize),
    /// Its container ends, and it is gone.
    Stop(usize),
    /// It vanishes from the API server, its container does not.
    Vanish(usize),
    /// The agent answers.
    Answer,
    /// The node object is deleted and registers again.
    Recreate,
}

/// What a decision about the node stands on beside what was seen of it.
struct Rights {
    live: Set,
    /// Pods that had places in parts that ended.
    ended_pods: Set,
    /// Pods that have places in live parts, where only these are there by right.
    placed: Option<Set>,
    /// Pods that had places in live parts, and went.
    releasing: Set,
    /// Of what a question to the agent is.
    about: About,
    shared: bool,
}

fn uid(incarnation: u8) -> NodeUid {
    format!("n.{incarnation}").into()
}

impl World {
    pub fn new(size: Size, bug: Option<Bug>) -> Self {
        let names = Names {
            pods: (0..PODS).map(|pod| Arc::from(format!("p{pod}"))).collect(),
            reservations: (0..RESERVATIONS).map(|r| Arc::from(format!("r{r}"))).collect(),
            bookings: (0..RESERVATIONS).map(|r| format!("b{r}").into()).collect(),
            node: "n".into(),
            resource: "gpu".into(),
        };
        Self { size, bug, happened: Happened::default(), names }
    }

    fn is(&self, bug: Bug) -> bool {
        self.bug == Some(bug)
    }

    fn refused(&self) {
        self.happened.refused.store(true, Ordering::Relaxed);
    }

    /// The tenants of reservations.
    fn has_any(&self, tenant: usize, of: Set) -> bool {
        of.all().any(|r| self.reservations[r] == tenant)
    }

    fn pods_of(&self, tenant: usize) -> Set {
        (0..self.pods.len()).filter(|&pod| self.pods[pod] == tenant).collect()
    }

    fn parts(&self, of: Set) -> Vec<Part> {
        of.all().map(|r| Part { booking: self.names.bookings[r].clone(), devices: 1 }).collect()
    }

    fn set_of(&self, parts: &[Part]) -> Set {
        (0..RESERVATIONS).filter(|&r| parts.iter().any(|part| part.booking == self.names.bookings[r])).collect()
    }

    /// What an operator sees of the node, where its views lack a pod, or the record of one.
    fn look(state: &State, hidden: Set, unrecorded: Set) -> Seen {
        let Node { incarnation, taint, named, asked, .. } = state.node;
        let mut records = state.records();
        let mut recorded = Set::NONE;
        for (r, records) in records.iter_mut().enumerate() {
            *records = if named.has(r) { records.without(unrecorded) } else { Set::NONE };
            recorded = recorded.with(*records);
        }
        let pods = |are: &dyn Fn(Pod) -> bool| {
            if taint == Taint::Unsold { Set::NONE } else { state.pods_that(are).without(hidden) }
        };
        Seen {
            incarnation,
            taint,
            named,
            asked,
            running: pods(&|pod| matches!(pod, Pod::Runs { .. })),
            leaving: pods(&|pod| matches!(pod, Pod::Leaving { .. })),
            records,
            there: pods(&|pod| pod.seen() != Pod::Unborn).and(recorded),
            waiting: pods(&|pod| matches!(pod, Pod::Waits { .. })).and(recorded),
            forgotten: named.filter(|r| state.reservations[r].forgotten),
        }
    }

    /// What may be given to others by mistake, by consistent reads: records, and then the pods that had places in parts that ended, one by one.
    fn read_records(state: &State, mut seen: Seen, live: Set) -> Seen {
        for r in seen.named.all() {
            seen.records[r] = state.reservations[r].records;
        }
        seen.forgotten = seen.named.filter(|r| state.reservations[r].forgotten);
        let ended = Self::places_in(&seen, seen.named.without(live));
        let now = |are: &dyn Fn(Pod) -> bool| state.pods_that(are).and(ended);
        seen.there = seen.there.without(ended).with(now(&|pod| pod.seen() != Pod::Unborn));
        seen.waiting = seen.waiting.without(ended).with(now(&|pod| matches!(pod, Pod::Waits { .. })));
        seen
    }

    fn places_in(seen: &Seen, of: Set) -> Set {
        of.all().fold(Set::NONE, |all, r| all.with(seen.records[r]))
    }

    fn rights(&self, seen: &Seen, live: Set, gone: Set) -> Rights {
        let places = |of: Set| Self::places_in(seen, of);
        let Taint::Shared { set_up } = seen.taint else {
            // Who waits in a part that it was set up for before it was closed may land once it is shared again.
            let over = if self.is(Bug::WaitingWhenClosed) { Set::NONE } else { seen.named.without(live) };
            let ended_pods = places(over).without(places(live));
            let (about, releasing) = (About::default(), Set::NONE);
            return Rights { live, ended_pods, placed: None, releasing, about, shared: false };
        };
        let ended = set_up.without(live);
        let releasing = places(live).without(seen.there).without(gone);
        // Who found a place in another part of the same holder's stays.
        let placed = if self.is(Bug::EndedThoughPlaced) { Set::NONE } else { places(live) };
        let ended_pods = places(ended).without(placed);
        let went = ended_pods.without(seen.there);
        let went = releasing.with(if self.is(Bug::AskedOfPartsOnly) { Set::NONE } else { went });
        let forgotten = seen.forgotten.and(ended);
        let placed = (!forgotten.is_empty()).then(|| places(live));
        let forgotten = if self.is(Bug::AskedBeforeForgotten) { Set::NONE } else { forgotten };
        Rights { live, ended_pods, placed, releasing, about: About { ended, forgotten, went }, shared: true }
    }

    /// Whether a pod may be there.
    fn allows(&self, rights: &Rights, pod: usize) -> bool {
        let by_right = rights.placed.map_or(!rights.ended_pods.has(pod), |placed| placed.has(pod));
        rights.shared && self.has_any(self.pods[pod], rights.live) && by_right
    }

    /// Pods that wait in parts that ended, told or not.
    fn waiting(&self, seen: &Seen, rights: &Rights) -> Set {
        if self.is(Bug::WaitingLeft) { Set::NONE } else { rights.ended_pods.and(seen.waiting) }
    }

    fn foreign(&self, rights: &Rights, of: Set) -> Set {
        of.filter(|pod| !self.allows(rights, pod))
    }

    /// What the agent says.
    fn check(&self, seen: &Seen, rights: &Rights) -> Check {
        if self.is(Bug::NoNodeCheck) {
            return Check::NotNeeded;
        }
        let asked = seen.asked.filter(|asked| asked.about == rights.about || self.is(Bug::OldAnswer));
        let Some(asked) = asked else { return Check::NotAsked };
        let Some(answer) = asked.answer else { return Check::Waiting };
        let pods = seen.running.with(seen.leaving);
        let left = answer.filter(|pod| {
            // Where others may stay, a container whose pod is gone is nobody's.
            let orphan = rights.shared && self.has_any(self.pods[pod], rights.live) && !pods.has(pod);
            orphan || !self.allows(rights, pod)
        });
        if left.is_empty() {
            Check::Clean
        } else {
            self.happened.waited_for_ghost.store(true, Ordering::Relaxed);
            Check::Dirty { found: vec!["a container".to_owned()], age_ms: RECHECK_MS }
        }
    }

    fn step(&self, seen: &Seen, rights: &Rights) -> NodeStep {
        let hold = match seen.taint {
            Taint::Closed { no_execute } => Hold::Closed { no_execute },
            Taint::Unsold => Hold::Unsold,
            Taint::Shared { set_up } => Hold::Shared { set_up: self.parts(set_up) },
        };
        let wanted =
            if rights.live.is_empty() { Wanted::Open } else { Wanted::Shared { parts: self.parts(rights.live) } };
        let waiting = !self.waiting(seen, rights).is_empty();
        let ended = if rights.shared { rights.ended_pods } else { Set::NONE };
        let bound = ended.and(seen.there).without(seen.waiting);
        let went = !bound.without(seen.running.with(seen.leaving)).is_empty() && !self.is(Bug::GoneBetweenReads);
        node_step(&NodeInput {
            hold,
            wanted,
            closed_for_ms: 5_000,
            pods: ForeignPods {
                owner: false,
                running: !self.foreign(rights, seen.running).is_empty() || waiting,
                leaving: !self.foreign(rights, seen.leaving).is_empty() || went,
            },
            ready: true,
            cordoned: false,
            device_count_ok: true,
            devices: DEVICES,
            releasing: !rights.releasing.is_empty(),
            check: self.check(seen, rights),
        })
    }

    /// Whether the API server is asked who is there before a step is taken.
    fn is_decisive(&self, seen: &Seen, step: &NodeStep) -> bool {
        let adds = |parts: &[Part]| {
            let parts = self.set_of(parts);
            matches!(seen.taint, Taint::Shared { set_up } if set_up.without(parts).is_empty())
        };
        let closed = matches!(seen.taint, Taint::Closed { .. });
        match step {
            NodeStep::WriteUnsold | NodeStep::Drain => true,
            NodeStep::WriteShared(parts) => !adds(parts),
            NodeStep::WriteClosedBoth => closed,
            _ => false,
        }
    }

    /// What is written in a step, if anything is. What is said of parts that are set up is committed at once.
    fn carry_out(&self, state: &mut State, seen: &Seen, rights: &Rights, step: &NodeStep) -> Option<Write> {
        let hand_over = |state: &mut State, parts: Set| {
            for r in parts.and(rights.live).all() {
                if let Booking::Live { node, handed_over } = &mut state.reservations[r].booking
                    && *node == seen.incarnation
                {
                    *handed_over = true;
                }
            }
        };
        match step {
            NodeStep::Nothing => {
                hand_over(state, rights.live);
                None
            }
            NodeStep::WriteClosedNoSchedule => {
                Some(Write::Taint { taint: Taint::Closed { no_execute: false }, labels: Set::NONE })
            }
            NodeStep::WriteClosedBoth => {
                Some(Write::Taint { taint: Taint::Closed { no_execute: true }, labels: Set::NONE })
            }
            NodeStep::WriteUnsold => Some(Write::Taint { taint: Taint::Unsold, labels: Set::NONE }),
            NodeStep::WriteShared(parts) => {
                if let Taint::Shared { set_up } = seen.taint {
                    hand_over(state, set_up);
                }
                let set_up = self.set_of(parts);
                Some(Write::Taint { taint: Taint::Shared { set_up }, labels: set_up.and(rights.live) })
            }
            NodeStep::Release => Some(Write::Release(rights.releasing)),
            NodeStep::Drain => {
                let going = self.foreign(rights, seen.running).with(self.waiting(seen, rights));
                (!going.is_empty()).then_some(Write::Drain(going))
            }
            NodeStep::AskCheck => Some(Write::Ask(rights.about)),
            NodeStep::Wait(..) => None,
            NodeStep::WriteHolder | NodeStep::GiveUp(_) | NodeStep::Broken(..) => {
                panic!("{step:?} in {state}")
            }
        }
    }

    /// What the root has of a tenant's reservations, and its parts that the node is set up for.
    fn root(&self, state: &State, tenant: usize) -> Root {
        let own = |r: usize| self.reservations.get(r) == Some(&tenant);
        let booking = |r: usize| if own(r) { state.reservations[r].booking } else { Booking::None };
        let set_up = match state.node.taint {
            Taint::Shared { set_up } => set_up.filter(own),
            Taint::Closed { .. } | Taint::Unsold => Set::NONE,
        };
        Root { bookings: std::array::from_fn(booking), incarnation: state.node.incarnation, set_up }
    }

    /// Gives places of a tenant, by records, pods and root that were read.
    fn assign(
        &self,
        root: &Root,
        tenant: usize,
        records: &[Set; RESERVATIONS],
        pods: &[Pod; PODS],
        gone: Set,
    ) -> Assignment {
        let own = (0..self.reservations.len()).filter(|&r| self.reservations[r] == tenant);
        let (mut rooms, mut places) = (Vec::new(), Vec::new());
        for r in own {
            let booking = root.bookings[r];
            if let Booking::Live { node, handed_over } = booking {
                let there = node == root.incarnation;
                rooms.push(Room {
                    reservation: Arc::clone(&self.names.reservations[r]),
                    node: self.names.node.clone(),
                    uid: uid(node),
                    set_up: handed_over && there && root.set_up.has(r),
                    resource: Arc::clone(&self.names.resource),
                    devices: 1,
                    cpu_milli: 1_000,
                    memory_mib: 1_024,
                });
            }
            // In the order of their names, whether their parts are over or not.
            if matches!(booking, Booking::Live { .. } | Booking::Lost) {
                places.extend(records[r].all().map(|pod| self.record(r, pod)));
            }
        }
        let guests: Vec<Guest> = self.pods_of(tenant).all().filter_map(|pod| self.guest(pod, pods[pod])).collect();
        let gone: Gone = gone.all().map(|pod| (self.names.node.clone(), Arc::clone(&self.names.pods[pod]))).collect();
        let mut found = assign(&rooms, &guests, &places, &gone);
        if self.is(Bug::TwoPlaces) {
            let twice = places.into_iter().filter(|place| found.records.iter().any(|one| one.pod == place.pod));
            let twice: Vec<Record> = twice.filter(|place| !found.records.contains(place)).collect();
            found.records.extend(twice);
        }
        found
    }

    fn record(&self, reservation: usize, pod: usize) -> Record {
        Record {
            pod_uid: Arc::clone(&self.names.pods[pod]),
            pod: Arc::clone(&self.names.pods[pod]),
            reservation: Arc::clone(&self.names.reservations[reservation]),
            node: self.names.node.clone(),
            devices: 1,
        }
    }

    fn guest(&self, pod: usize, seen: Pod) -> Option<Guest> {
        let (known, bound, deleting) = match seen.seen() {
            Pod::Waits { known } => (known, false, false),
            Pod::Runs { known } => (Some(known), true, false),
            Pod::Leaving { known } => (Some(known), true, true),
            _ => return None,
        };
        Some(Guest {
            uid: Arc::clone(&self.names.pods[pod]),
            name: Arc::clone(&self.names.pods[pod]),
            created: TimeMs(0),
            node: bound.then(|| self.names.node.clone()),
            reservation: None,
            admitted: known.map(uid).into_iter().collect(),
            devices: BTreeMap::from([(Arc::clone(&self.names.resource), 1)]),
            cpu_milli: 1_000,
            memory_mib: 1_024,
            limited: true,
            priority: 0,
            deleting,
        })
    }

    fn pod_of(&self, uid: &str) -> usize {
        self.names.pods.iter().position(|name| **name == *uid).unwrap()
    }

    fn recorded(&self, found: &Assignment, reservation: usize) -> Set {
        let own = |record: &&Record| record.reservation == self.names.reservations[reservation];
        found.records.iter().filter(own).map(|record| self.pod_of(&record.pod_uid)).collect()
    }

    fn suspects(&self, found: &Assignment) -> Set {
        found.expel.iter().map(|uid| self.pod_of(uid)).collect()
    }

    /// Who is expelled of a tenant's pods. Who has a place in a part that the root that was read has not yet is not.
    fn expelled(
        &self,
        root: &Root,
        tenant: usize,
        records: &[Set; RESERVATIONS],
        pods: &[Pod; PODS],
        gone: Set,
    ) -> Set {
        let later = (0..RESERVATIONS).filter(|&r| root.bookings[r] == Booking::None);
        let recorded = match self.is(Bug::LaterPlaceIgnored) {
            true => Set::NONE,
            false => later.fold(Set::NONE, |all, r| all.with(records[r])),
        };
        self.suspects(&self.assign(root, tenant, records, pods, gone)).without(recorded)
    }

    /// Pods of a tenant in excess of its parts that are set up, unless they are known to be: the next look of any operator has them deleted.
    fn unfound(&self, state: &State, tenant: usize) -> bool {
        let excess = self.excess(state, tenant);
        if excess == 0 {
            return false;
        }
        let expelled = if self.is(Bug::NoExpel) {
            Set::NONE
        } else {
            let pods = state.pods.map(Pod::seen);
            let records = self.list_records(state, tenant);
            self.expelled(&self.root(state, tenant), tenant, &records, &pods, Set::NONE)
        };
        let seen = Self::look(state, Set::NONE, Set::NONE);
        let drained = self.foreign(&self.rights(&seen, state.live(seen.incarnation), Set::NONE), seen.running);
        let told = state.pods_that(|pod| matches!(pod, Pod::Leaving { .. } | Pod::Ghost));
        excess > expelled.with(drained).with(told).and(self.pods_of(tenant)).len()
    }

    /// Whether a pod has two places after the next look as well.
    fn keeps_two(&self, state: &State) -> bool {
        let live = state.reservations.iter().filter(|one| matches!(one.booking, Booking::Live { .. }));
        let places: Vec<Set> = live.map(|one| one.records).collect();
        let twice = |pod: &usize| places.iter().filter(|records| records.has(*pod)).count() > 1;
        (0..self.pods.len()).filter(twice).any(|pod| {
            let pods = state.pods.map(Pod::seen);
            let root = self.root(state, self.pods[pod]);
            let found = self.assign(&root, self.pods[pod], &state.records(), &pods, Set::NONE);
            found.records.iter().filter(|record| record.pod_uid == self.names.pods[pod]).count() > 1
        })
    }

    /// How many containers a tenant has beyond its parts that the node is set up for.
    fn excess(&self, state: &State, tenant: usize) -> usize {
        let Taint::Shared { set_up } = state.node.taint else { return 0 };
        let containers = state.pods_that(Pod::has_container).and(self.pods_of(tenant)).len();
        containers.saturating_sub(set_up.filter(|r| self.reservations[r] == tenant).len())
    }

    fn tenants(&self) -> usize {
        self.reservations.iter().chain(self.pods).max().map_or(0, |last| last + 1)
    }

    /// The node changed: whoever read it before has an old resourceVersion.
    fn node_changed(&self, state: &mut State) {
        for operator in &mut state.operators {
            match &mut operator.task {
                Task::Deciding { current, .. } | Task::Finding { current, .. } | Task::Confirming { current, .. } => {
                    *current = false;
                }
                Task::Writing { write, current } => {
                    *current = false;
                    // A write that can only fail is given up now as well as later.
                    if matches!(write, Write::Taint { .. }) && !self.is(Bug::NodeWithoutPrecondition) {
                        operator.task = Task::Idle;
                        self.refused();
                    }
                }
                _ => {}
            }
        }
    }

    /// The reservation changed.
    fn reservation_changed(state: &mut State, reservation: usize) {
        for operator in &mut state.operators {
            if let Task::Placing { current, .. }
            | Task::Recording { current, .. }
            | Task::Telling { current, .. }
            | Task::Suspecting { current, .. }
            | Task::Listing { current, .. }
            | Task::Judging { current, .. }
            | Task::Expelling { current, .. } = &mut operator.task
            {
                *current = current.without(Set::one(reservation));
            }
        }
    }

    /// What follows the writes of a node.
    fn write(&self, state: &mut State, o: usize, write: Write, current: bool) {
        match write {
            Write::Taint { taint, labels } => {
                state.node.taint = taint;
                match taint {
                    Taint::Shared { set_up } => state.node.named = set_up,
                    Taint::Unsold => state.node.named = Set::NONE,
                    Taint::Closed { .. } => {}
                }
                state.node.labels = labels;
                // What was asked was asked about other taints.
                state.node.asked = None;
                self.node_changed(state);
            }
            Write::Drain(pods) => self.delete(state, pods),
            Write::Ask(about) => {
                // Pods that are said to have gone are looked for in the API server before.
                let there = about.went.filter(|pod| state.pods[pod].seen() != Pod::Unborn);
                if !there.is_empty() && !self.is(Bug::AskedByView) {
                    return;
                }
                // Asked about taints that are no more, it counts for nobody.
                state.node.asked = current.then_some(Question { about, answer: None });
            }
            Write::Release(pods) => {
                state.operators[o].gone = state.operators[o].gone.with(pods);
            }
        }
    }

    /// An operator deletes pods.
    fn delete(&self, state: &mut State, pods: Set) {
        for pod in pods.all() {
            match state.pods[pod] {
                Pod::Waits { .. } => state.pods[pod] = Pod::Gone,
                Pod::Runs { known } => state.pods[pod] = Pod::Leaving { known },
                _ => {}
            }
        }
    }

    /// Goes on with what is to be written; what can only be without effect is left out.
    fn recording(&self, state: &State, mut places: Places, current: Set) -> Task {
        places.admit.retain(|&(pod, ..)| state.pods[pod] == Pod::Waits { known: None });
        let stale = |r: usize| !current.has(r) && !self.is(Bug::RecordWithoutPrecondition);
        if places.records.first().is_some_and(|&(r, _)| stale(r)) {
            self.refused();
            return Task::Idle;
        }
        if places.records.is_empty() && places.admit.is_empty() {
            return Task::Idle;
        }
        let current = current.and(places.records.iter().map(|&(r, _)| r).collect());
        Task::Recording { places, current }
    }

    fn place(
        &self,
        state: &State,
        o: usize,
        tenant: usize,
        records: [Set; RESERVATIONS],
        current: Set,
        hidden: Set,
    ) -> Task {
        let mut pods = state.pods.map(Pod::seen);
        hidden.all().for_each(|pod| pods[pod] = Pod::Unborn);
        let gone = state.operators[o].gone;
        let found = self.assign(&self.root(state, tenant), tenant, &records, &pods, gone);
        let mut writes = Vec::new();
        for (r, &before) in records.iter().enumerate() {
            let goes_on = matches!(state.reservations[r].booking, Booking::Live { .. } | Booking::Lost);
            if goes_on && self.reservations.get(r) == Some(&tenant) {
                let mut now = self.recorded(&found, r);
                // Who had a place in a part that is over is recorded until the node machine has given the part back.
                if state.reservations[r].booking == Booking::Lost {
                    let stays = state.node.named.has(r) && !self.is(Bug::PlaceGivenUp);
                    now = if stays { before } else { Set::NONE };
                }
                if now != before {
                    writes.push((now.len() > before.len(), r, now));
                }
            }
        }
        writes.sort_by_key(|(grows, ..)| *grows);
        let told = |(pod, node): &(Arc<str>, NodeUid)| {
            let node = node.as_str().strip_prefix("n.").and_then(|incarnation| incarnation.parse().ok());
            let record = found.records.iter().find(|record| record.pod_uid == *pod);
            let by = self.names.reservations.iter().position(|name| record.is_some_and(|one| one.reservation == *name));
            (self.pod_of(pod), node.unwrap(), by.unwrap())
        };
        let places = Places {
            records: writes.into_iter().map(|(_, r, now)| (r, now)).collect(),
            admit: found.admit.iter().map(told).collect(),
        };
        let suspects = self.suspects(&found);
        if suspects.is_empty() || self.is(Bug::NoExpel) {
            self.recording(state, places, current)
        } else {
            Task::Suspecting { tenant, suspects, places, current }
        }
    }

    fn operator_actions(&self, state: &State, o: usize, actions: &mut Vec<Action>) {
        let hidden = |pods: Set| {
            let hidden = if self.late_pods { state.pods_that(|pod| pod.seen() != Pod::Unborn) } else { Set::NONE };
            [None].into_iter().chain(hidden.and(pods).all().map(Some).collect::<Vec<_>>())
        };
        match &state.operators[o].task {
            Task::Idle => {
                actions.extend(hidden((0..PODS).collect()).map(|pod| Action::Look(o, pod, None)));
                if self.late_records {
                    let recorded = state.records().iter().fold(Set::NONE, |all, &records| all.with(records));
                    let there = recorded.filter(|pod| state.pods[pod].seen() != Pod::Unborn);
                    actions.extend(there.all().map(|pod| Action::Look(o, None, Some(pod))));
                }
                actions.extend((0..self.tenants()).map(|tenant| Action::ReadReservations(o, tenant)));
            }
            Task::Deciding { .. } => actions.push(Action::Decide(o)),
            Task::Finding { .. } => actions.push(Action::ReadPods(o)),
            Task::Confirming { .. } => actions.push(Action::Confirm(o)),
            Task::Writing { .. } => actions.push(Action::Write(o)),
            Task::Placing { tenant, .. } => {
                actions.extend(hidden(self.pods_of(*tenant)).map(|pod| Action::Place(o, pod)));
            }
            Task::Suspecting { .. } => actions.push(Action::ListPods(o)),
            Task::Listing { .. } => actions.push(Action::ReadRoot(o)),
            Task::Judging { .. } => actions.push(Action::Judge(o)),
            Task::Expelling { .. } => actions.push(Action::Expel(o)),
            Task::Telling { .. } => actions.push(Action::Tell(o)),
            Task::Recording { places, .. } => {
                let told = places.records.is_empty() || self.is(Bug::ToldBeforeRecorded) && !places.admit.is_empty();
                actions.push(if told { Action::Admit(o) } else { Action::WriteRecord(o) });
            }
        }
        // Who has only read is forgotten as if it had not: that is another history.
        if matches!(state.operators[o].task, Task::Recording { .. } | Task::Telling { .. })
            || !state.operators[o].gone.is_empty()
        {
            actions.push(Action::Crash(o));
        }
    }

    fn world_actions(&self, state: &State, actions: &mut Vec<Action>) {
        let Node { incarnation, taint, labels, named: _, asked } = state.node;
        let live = state.live(incarnation);
        for r in 0..self.reservations.len() {
            // Reservations of a tenant are alike: the first to be booked is the first.
            let before = |other: usize| self.reservations[other] == self.reservations[r];
            let first =
                (0..r).filter(|&other| before(other)).all(|other| state.reservations[other].booking != Booking::None);
            match state.reservations[r].booking {
                Booking::None if first && live.len() < DEVICES as usize => actions.push(Action::Book(r)),
                Booking::Live { .. } if r < self.ends => actions.push(Action::End(r)),
                Booking::Live { .. } if r < self.losses => actions.push(Action::Lose(r)),
                Booking::Ended if self.forgotten && !state.reservations[r].forgotten => {
                    let waits = |pod: usize| matches!(state.pods[pod], Pod::Waits { .. });
                    let waiting = state.reservations[r].records.filter(waits);
                    if waiting.is_empty() || self.is(Bug::ForgottenWaiting) {
                        actions.push(Action::Forget(r));
                    }
                }
                _ => {}
            }
        }
        let bound = state.pods_that(|pod| matches!(pod, Pod::Runs { .. } | Pod::Leaving { .. })).len();
        for pod in 0..self.pods.len() {
            let tenant = self.pods[pod];
            match state.pods[pod] {
                Pod::Unborn => {
                    let first = self
                        .pods_of(tenant)
                        .filter(|other| other < pod)
                        .all()
                        .all(|other| state.pods[other] != Pod::Unborn);
                    // Who comes before anything was booked for its tenant is as one that comes then.
                    let booked = (0..self.reservations.len())
                        .any(|r| self.reservations[r] == tenant && state.reservations[r].booking != Booking::None);
                    if first && booked {
                        actions.push(Action::Create(pod));
                    }
                }
                Pod::Waits { known } => {
                    let welcome = known == Some(incarnation) && matches!(taint, Taint::Shared { .. });
                    if welcome && self.has_any(tenant, labels) && bound < DEVICES as usize {
                        actions.push(Action::Land(pod));
                    }
                    if state.deletions > 0 {
                        actions.push(Action::Delete(pod));
                    }
                }
                Pod::Runs { known } => {
                    let stays = known == incarnation && taint != Taint::Closed { no_execute: true };
                    if state.deletions > 0 || !stays {
                        actions.push(Action::Delete(pod));
                    }
                }
                Pod::Leaving { .. } => actions.extend([Action::Vanish(pod), Action::Stop(pod)]),
                Pod::Ghost => actions.push(Action::Stop(pod)),
                Pod::Gone => {}
            }
        }
        if asked.is_some_and(|asked| asked.answer.is_none()) {
            actions.push(Action::Answer);
        }
        if state.recreations > 0 {
            actions.push(Action::Recreate);
        }
    }

    /// One step of an operator. None: nothing changed.
    fn operate(&self, state: &mut State, action: Action) -> Option<()> {
        let hide = |pod: Option<usize>| pod.map_or(Set::NONE, Set::one);
        match action {
            Action::Look(o, hidden, unrecorded) => {
                let seen = Self::look(state, hide(hidden), hide(unrecorded));
                state.operators[o].task = Task::Deciding { seen, current: true };
            }
            Action::Decide(o) => {
                let Task::Deciding { seen, current } = state.operators[o].task else { return None };
                let live = state.live(seen.incarnation);
                let rights = self.rights(&seen, live, state.operators[o].gone);
                let step = self.step(&seen, &rights);
                state.operators[o].task = Task::Idle;
                if self.is_decisive(&seen, &step) {
                    self.read_again(state, o, seen, step == NodeStep::Drain, current);
                } else {
                    self.decided(state, o, &seen, &rights, &step, current);
                }
            }
            Action::ReadPods(o) => Self::find_pods(state, o)?,
            Action::Confirm(o) => {
                let Task::Confirming { seen, live, drains, placed, current } = state.operators[o].task else {
                    return None;
                };
                state.operators[o].task = Task::Idle;
                let rights = self.rights(&seen, live, state.operators[o].gone);
                // Who empties a node does not ask again whether that is what is to be done.
                let step = if drains { NodeStep::Drain } else { self.step(&seen, &rights) };
                if step == NodeStep::Drain && !drains {
                    self.read_again(state, o, seen, true, current);
                } else {
                    self.decided(state, o, &seen, &rights, &step, current);
                }
                if let Task::Writing { write: Write::Drain(going), .. } = state.operators[o].task
                    && !going.and(placed).and(state.placed()).is_empty()
                {
                    state.bad = Some(Bad::EndedWithPlace);
                }
            }
            Action::Write(o) => {
                let task = std::mem::replace(&mut state.operators[o].task, Task::Idle);
                let Task::Writing { write, current } = task else { return None };
                self.write(state, o, write, current);
            }
            Action::ReadReservations(o, tenant) => {
                let own: Set = (0..self.reservations.len()).filter(|&r| self.reservations[r] == tenant).collect();
                let of = |booking| matches!(booking, Booking::Live { .. } | Booking::Lost);
                let live = own.filter(|r| of(state.reservations[r].booking));
                let places = live.all().any(|r| !state.reservations[r].records.is_empty());
                let pods = self.pods_of(tenant).and(state.pods_that(|pod| match pod.seen() {
                    Pod::Unborn => false,
                    Pod::Waits { known: None } => !live.is_empty(),
                    _ => true,
                }));
                if pods.is_empty() && !places {
                    return None;
                }
                let mut records = state.records();
                (0..RESERVATIONS).filter(|&r| !own.has(r)).for_each(|r| records[r] = Set::NONE);
                state.operators[o].task = Task::Placing { tenant, records, current: own };
            }
            Action::Place(o, hidden) => {
                let Task::Placing { tenant, records, current } = state.operators[o].task else { return None };
                state.operators[o].task = self.place(state, o, tenant, records, current, hide(hidden));
            }
            Action::ListPods(o) => {
                let task = std::mem::replace(&mut state.operators[o].task, Task::Idle);
                let Task::Suspecting { tenant, suspects, places, current } = task else { return None };
                let pods = self.list_pods(state, tenant);
                let early = self.is(Bug::RecordsBeforePods);
                let records = if early { self.list_records(state, tenant) } else { [Set::NONE; RESERVATIONS] };
                state.operators[o].task =
                    Task::Listing { tenant, suspects, pods, records, places, placed: state.placed(), current };
            }
            Action::ReadRoot(o) => {
                let task = std::mem::replace(&mut state.operators[o].task, Task::Idle);
                let Task::Listing { tenant, suspects, mut pods, mut records, places, mut placed, current } = task
                else {
                    return None;
                };
                if self.is(Bug::RecordsBeforePods) {
                    pods = self.list_pods(state, tenant);
                    placed = state.placed();
                }
                if self.is(Bug::RecordsBeforeRoot) {
                    records = self.list_records(state, tenant);
                }
                let root = self.root(state, tenant);
                state.operators[o].task =
                    Task::Judging { tenant, suspects, pods, records, root, places, placed, current };
            }
            Action::Judge(o) => {
                let task = std::mem::replace(&mut state.operators[o].task, Task::Idle);
                let Task::Judging { tenant, suspects, pods, mut records, mut root, places, placed, current } = task
                else {
                    return None;
                };
                if self.is(Bug::RecordsBeforeRoot) {
                    root = self.root(state, tenant);
                } else if !self.is(Bug::RecordsBeforePods) {
                    records = self.list_records(state, tenant);
                }
                let gone = state.operators[o].gone;
                let pods = self.expelled(&root, tenant, &records, &pods, gone).and(suspects);
                if !pods.and(placed).and(state.placed()).is_empty() {
                    state.bad = Some(Bad::EndedWithPlace);
                }
                state.operators[o].task = if pods.is_empty() {
                    self.recording(state, places, current)
                } else {
                    Task::Expelling { pods, places, current }
                };
            }
            Action::Expel(o) => {
                let task = std::mem::replace(&mut state.operators[o].task, Task::Idle);
                let Task::Expelling { pods, places, current } = task else { return None };
                self.delete(state, pods);
                self.happened.expelled.store(true, Ordering::Relaxed);
                state.operators[o].task = self.recording(state, places, current);
            }
            Action::WriteRecord(o) => {
                let task = std::mem::replace(&mut state.operators[o].task, Task::Idle);
                let Task::Recording { mut places, current } = task else { return None };
                let (r, now) = places.records.remove(0);
                let before = std::mem::replace(&mut state.reservations[r].records, now);
                state.recorded = state.recorded.with(now);
                // Of whose place nothing is recorded any more is forgotten.
                state.operators[o].gone = state.operators[o].gone.without(before.without(now));
                if !before.without(now).is_empty() && !now.without(before).is_empty() {
                    self.happened.given_again.store(true, Ordering::Relaxed);
                }
                state.operators[o].task = self.recording(state, places, current);
                Self::reservation_changed(state, r);
            }
            Action::Admit(o) => {
                let task = std::mem::replace(&mut state.operators[o].task, Task::Idle);
                let Task::Recording { mut places, current } = task else { return None };
                let (pod, incarnation, r) = places.admit.remove(0);
                let held = matches!(state.reservations[r].booking, Booking::Live { node, .. } if node == incarnation);
                if !held && !self.told_late {
                    self.refused();
                    return Some(());
                }
                state.operators[o].task = Task::Telling { pod, incarnation, places, current };
            }
            Action::Tell(o) => {
                let task = std::mem::replace(&mut state.operators[o].task, Task::Idle);
                let Task::Telling { pod, incarnation, places, current } = task else { return None };
                if state.pods[pod] == (Pod::Waits { known: None }) {
                    state.pods[pod] = Pod::Waits { known: Some(incarnation) };
                    if !state.recorded.has(pod) {
                        state.bad = Some(Bad::KnownWithoutRecord);
                    }
                }
                state.operators[o].task = self.recording(state, places, current);
            }
            Action::Crash(o) => state.operators[o] = Operator { task: Task::Idle, gone: Set::NONE },
            _ => return None,
        }
        Some(())
    }

    /// Reads the records, and the pods that had places in parts that ended.
    fn read_again(&self, state: &mut State, o: usize, seen: Seen, drains: bool, current: bool) {
        let live = state.live(seen.incarnation);
        let seen = Self::read_records(state, seen, live);
        let placed = if drains { state.placed() } else { Set::NONE };
        let bound = self.rights(&seen, live, Set::NONE).ended_pods.and(seen.there);
        state.operators[o].task = Task::Finding { seen, live, drains, placed, current };
        // Who is gone stays gone: where nobody else is recorded, the pods may be listed at once.
        if bound.is_empty() {
            Self::find_pods(state, o);
        }
    }

    /// Lists the pods of the node. Bound pods are those of the node by its name.
    fn find_pods(state: &mut State, o: usize) -> Option<()> {
        let Task::Finding { mut seen, live, drains, placed, current } = state.operators[o].task else { return None };
        seen.running = state.pods_that(|pod| matches!(pod, Pod::Runs { .. }));
        seen.leaving = state.pods_that(|pod| matches!(pod, Pod::Leaving { .. }));
        state.operators[o].task = Task::Confirming { seen, live, drains, placed, current };
        Some(())
    }

    fn list_pods(&self, state: &State, tenant: usize) -> [Pod; PODS] {
        let mut pods = state.pods.map(Pod::seen);
        (0..PODS).filter(|&pod| !self.pods_of(tenant).has(pod)).for_each(|pod| pods[pod] = Pod::Unborn);
        pods
    }

    fn list_records(&self, state: &State, tenant: usize) -> [Set; RESERVATIONS] {
        let mut records = state.records();
        (0..RESERVATIONS).filter(|&r| self.reservations.get(r) != Some(&tenant)).for_each(|r| records[r] = Set::NONE);
        records
    }

    fn decided(&self, state: &mut State, o: usize, seen: &Seen, rights: &Rights, step: &NodeStep, current: bool) {
        let Some(write) = self.carry_out(state, seen, rights, step) else { return };
        let fenced = match write {
            Write::Taint { .. } => !self.is(Bug::NodeWithoutPrecondition),
            // The node is read again after the pods: they were there when it was to be emptied.
            Write::Drain(_) => !self.is(Bug::EmptiedLate),
            Write::Ask(_) | Write::Release(_) => false,
        };
        if current || !fenced {
            state.operators[o].task = Task::Writing { write, current };
        } else {
            self.refused();
        }
    }

    /// One step of the world. None: nothing changed.
    fn happen(&self, state: &mut State, action: Action) -> Option<()> {
        match action {
            Action::Book(r) => {
                state.reservations[r].booking = Booking::Live { node: state.node.incarnation, handed_over: false };
            }
            Action::End(r) => state.reservations[r].booking = Booking::Ended,
            Action::Lose(r) => state.reservations[r].booking = Booking::Lost,
            Action::Forget(r) => {
                state.reservations[r].records = Set::NONE;
                state.reservations[r].forgotten = true;
                Self::reservation_changed(state, r);
            }
            Action::Create(pod) => state.pods[pod] = Pod::Waits { known: None },
            Action::Land(pod) => {
                let Pod::Waits { known: Some(known) } = state.pods[pod] else { return None };
                state.pods[pod] = Pod::Runs { known };
            }
            Action::Delete(pod) => {
                if state.node.taint != (Taint::Closed { no_execute: true })
                    || matches!(state.pods[pod], Pod::Waits { .. })
                {
                    state.deletions -= 1;
                }
                match state.pods[pod] {
                    Pod::Waits { .. } => state.pods[pod] = Pod::Gone,
                    Pod::Runs { known } => state.pods[pod] = Pod::Leaving { known },
                    _ => return None,
                }
            }
            Action::Stop(pod) => state.pods[pod] = Pod::Gone,
            Action::Vanish(pod) => state.pods[pod] = Pod::Ghost,
            Action::Answer => {
                let there = state.pods_that(Pod::has_container);
                let asked = state.node.asked.as_mut()?;
                asked.answer = Some(there);
            }
            Action::Recreate => {
                state.recreations -= 1;
                state.node = Node {
                    incarnation: state.node.incarnation + 1,
                    taint: Taint::Closed { no_execute: false },
                    labels: Set::NONE,
                    named: Set::NONE,
                    asked: None,
                };
                for pod in &mut state.pods {
                    if pod.has_container() {
                        *pod = Pod::Ghost;
                    }
                }
                self.node_changed(state);
            }
            _ => return None,
        }
        Some(())
    }

    /// Leaves out what makes no difference any more, so that states that differ in it only are one state.
    fn tidy(&self, state: &mut State) {
        let recorded = state.records().iter().fold(Set::NONE, |all, &records| all.with(records));
        let pods = state.pods;
        let reservations = state.reservations;
        let live_now = |incarnation: u8| live(&reservations, incarnation);
        for operator in &mut state.operators {
            let mut mentioned = recorded;
            // Whose decision can only be refused is refused now as well as later.
            if let Task::Finding { seen, live, drains, current, .. }
            | Task::Confirming { seen, live, drains, current, .. } = &operator.task
            {
                let unfenced = self.is(Bug::EmptiedLate) || !drains && self.is(Bug::NodeWithoutPrecondition);
                if live_now(seen.incarnation) != *live || !current && !unfenced {
                    self.refused();
                    operator.task = Task::Idle;
                }
            }
            // Whom nobody can tell any more is not told.
            if let Task::Telling { pod, places, current, .. } = &mut operator.task
                && pods[*pod] != (Pod::Waits { known: None })
            {
                operator.task = Task::Recording { places: std::mem::take(places), current: *current };
            }
            if let Task::Recording { places, current } = &mut operator.task {
                places.admit.retain(|&(pod, ..)| pods[pod] == Pod::Waits { known: None });
                let stale = places.records.first().is_some_and(|&(r, _)| !current.has(r));
                if stale && !self.is(Bug::RecordWithoutPrecondition)
                    || places.records.is_empty() && places.admit.is_empty()
                {
                    operator.task = Task::Idle;
                }
            }
            if let Task::Writing { write: Write::Drain(going), .. } = &mut operator.task {
                *going = going.filter(|pod| matches!(pods[pod], Pod::Runs { .. } | Pod::Waits { .. }));
                if going.is_empty() {
                    operator.task = Task::Idle;
                }
            }
            match &operator.task {
                Task::Placing { records, .. } | Task::Listing { records, .. } | Task::Judging { records, .. } => {
                    mentioned = records.iter().fold(mentioned, |all, &records| all.with(records));
                }
                Task::Deciding { seen, .. } | Task::Finding { seen, .. } | Task::Confirming { seen, .. } => {
                    mentioned = seen.records.iter().fold(mentioned, |all, &records| all.with(records));
                }
                _ => {}
            }
            // Nobody asks for a pod that is not coming back and is in no record.
            operator.gone = operator.gone.filter(|pod| mentioned.has(pod) || pods[pod] != Pod::Gone);
        }
        // Only of a pod that waits for being told is it asked whether it was recorded.
        state.recorded = state.recorded.filter(|pod| matches!(pods[pod], Pod::Unborn | Pod::Waits { known: None }));
        state.operators.sort_unstable();
    }
}

impl Model for World {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        let idle = Operator { task: Task::Idle, gone: Set::NONE };
        let prepared: Set = (0..self.prepared).collect();
        let taint = if prepared.is_empty() { Taint::Unsold } else { Taint::Shared { set_up: prepared } };
        let mut reservations =
            [Reservation { booking: Booking::None, records: Set::NONE, forgotten: false }; RESERVATIONS];
        prepared.all().for_each(|r| reservations[r].booking = Booking::Live { node: 0, handed_over: true });
        vec![State {
            node: Node { incarnation: 0, taint, labels: prepared, named: prepared, asked: None },
            reservations,
            pods: [Pod::Unborn; PODS],
            recorded: Set::NONE,
            operators: [idle.clone(), idle],
            recreations: self.recreations,
            deletions: self.deletions,
            bad: None,
        }]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        if state.bad.is_some() {
            return;
        }
        for o in 0..state.operators.len() {
            // Two operators that do the same are one case.
            if o == 0 || state.operators[o] != state.operators[o - 1] {
                self.operator_actions(state, o, actions);
            }
        }
        self.world_actions(state, actions);
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let mut state = last.clone();
        match action {
            Action::Book(_)
            | Action::End(_)
            | Action::Lose(_)
            | Action::Forget(_)
            | Action::Create(_)
            | Action::Land(_)
            | Action::Delete(_)
            | Action::Stop(_)
            | Action::Vanish(_)
            | Action::Answer
            | Action::Recreate => self.happen(&mut state, action)?,
            _ => self.operate(&mut state, action)?,
        }
        self.tidy(&mut state);
        Some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        let mut properties = vec![
            Property::always("nobody has more than its parts", |world: &Self, state: &State| {
                !world.strict || (0..world.tenants()).all(|tenant| world.excess(state, tenant) == 0)
            }),
            Property::always("excess is found", |world: &Self, state: &State| {
                (0..world.tenants()).all(|tenant| !world.unfound(state, tenant))
            }),
            Property::always("no more containers than devices", |_, state: &State| {
                state.pods_that(Pod::has_container).len() <= DEVICES as usize
            }),
            Property::always("nothing of a tenant is on an unsold node", |_, state: &State| {
                state.node.taint != Taint::Unsold || state.pods_that(Pod::has_container).is_empty()
            }),
            Property::always("a place is one pod's", |_, state: &State| {
                state.reservations.iter().all(|reservation| reservation.records.len() <= 1)
            }),
            Property::always("a pod keeps one place", |world: &Self, state: &State| {
                !world.strict || !world.keeps_two(state)
            }),
            Property::always("nobody is told without a record", |_, state: &State| {
                state.bad != Some(Bad::KnownWithoutRecord)
            }),
            Property::always("who has a place is not ended", |_, state: &State| state.bad != Some(Bad::EndedWithPlace)),
        ];
        properties.push(Property::sometimes("a late write is refused", |world: &Self, _| {
            world.happened.refused.load(Ordering::Relaxed)
        }));
        if self.deletions > 0 && self.pods.len() > 1 {
            properties.push(Property::sometimes("a place is given back and given again", |world: &Self, _| {
                world.happened.given_again.load(Ordering::Relaxed)
            }));
        }
        if self.tenants() > 1 {
            properties.push(Property::sometimes("two tenants run side by side", |world: &Self, state: &State| {
                let running = state.pods_that(|pod| matches!(pod, Pod::Runs { .. }));
                (0..2).all(|tenant| !running.and(world.pods_of(tenant)).is_empty())
            }));
        }
        if self.ends == self.reservations.len() {
            properties.push(Property::sometimes(
                "all ended, and the node is unsold again",
                |world: &Self, state: &State| {
                    let ended = |r: usize| state.reservations[r].booking == Booking::Ended;
                    state.node.taint == Taint::Unsold && (0..world.reservations.len()).all(ended)
                },
            ));
        }
        properties.push(Property::sometimes("a container without a pod is waited for", |world: &Self, _| {
            world.happened.waited_for_ghost.load(Ordering::Relaxed)
        }));
        if self.expels {
            properties.push(Property::sometimes("who has no place any more is expelled", |world: &Self, _| {
                world.happened.expelled.load(Ordering::Relaxed)
            }));
        }
        properties
    }
}
