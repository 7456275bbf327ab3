//! Room on shared nodes: which pod may land on which node.
//!
//! A live part of a node is a [`Room`]: so many devices, and CPU and memory in proportion. A pod gets a place in it before it may land, and keeps it
//! until its containers are gone. Places are recorded first and then made known to the pod, so that a crash between the two gives
//! nobody more than was sold.
//!
//! Must not: look at anything but its input. Devices of a node have no identity here: which of them a pod gets is the kubelet's choice.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use crate::{
    plan::Reason,
    types::{NodeName, NodeUid, TimeMs},
};

#[cfg(test)]
mod tests;

/// A live part of a node, of one namespace.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Room {
    /// Whose: the name of the reservation.
    pub reservation: Arc<str>,
    /// Where.
    pub node: NodeName,
    /// UID of that node.
    pub uid: NodeUid,
    /// The part was handed over and its node is set up for it. Until then, and while something is wrong with the node, no place is given in it, and
    /// those that were given stand.
    pub set_up: bool,
    /// The extended resource that its devices are.
    pub resource: Arc<str>,
    /// Devices.
    pub devices: u32,
    /// CPU that goes with them, in thousandths of a core.
    pub cpu_milli: i64,
    /// Memory that goes with them, in MiB.
    pub memory_mib: i64,
}

/// A pod with devices of the same namespace.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Guest {
    /// UID.
    pub uid: Arc<str>,
    /// Name.
    pub name: Arc<str>,
    /// When it was created.
    pub created: TimeMs,
    /// The node that it is bound to.
    pub node: Option<NodeName>,
    /// The one reservation whose devices it wants, if it says so.
    pub reservation: Option<Arc<str>>,
    /// The shared nodes on which it may land already.
    pub admitted: Vec<NodeUid>,
    /// Devices by resource.
    pub devices: BTreeMap<Arc<str>, u32>,
    /// CPU that it requests, in thousandths of a core.
    pub cpu_milli: i64,
    /// Memory that it requests, in MiB.
    pub memory_mib: i64,
    /// Whether each of its containers is limited in CPU and memory.
    pub limited: bool,
    /// Its priority.
    pub priority: i32,
    /// It is being deleted.
    pub deleting: bool,
}

/// A place that was given.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct Record {
    /// UID of the pod.
    pub pod_uid: Arc<str>,
    /// Name of the pod.
    pub pod: Arc<str>,
    /// Of which reservation.
    pub reservation: Arc<str>,
    /// On which node.
    pub node: NodeName,
    /// Devices.
    pub devices: u32,
}

/// What is to be recorded, made known, and said.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Assignment {
    /// All places, sorted.
    pub records: Vec<Record>,
    /// Pods that are to be given the toleration of a node, once the records are written.
    pub admit: Vec<(Arc<str>, NodeUid)>,
    /// Pods that wait, and why.
    pub waiting: Vec<(Arc<str>, Reason)>,
    /// Pods that must go: they may land on a shared node, or are there, and have no place, for what they had it in is over. A toleration cannot be
    /// taken back.
    pub expel: Vec<Arc<str>>,
}

/// Pods whose containers were seen to be gone, by node and UID.
pub type Gone = BTreeSet<(NodeName, Arc<str>)>;

/// Gives places.
///
/// Who is to be expelled must be found so by consistent reads, of the pods first, then of the records, then of what is held: a pod whose record is
/// not seen yet looks the same.
pub fn assign(rooms: &[Room], guests: &[Guest], records: &[Record], gone: &Gone) -> Assignment {
    let by_uid: BTreeMap<&str, &Guest> = guests.iter().map(|guest| (&*guest.uid, guest)).collect();
    let mut ledger = Places { rooms, by_uid: &by_uid, records: Vec::new() };
    // Those in parts that are held come first: one in a part that is over must not take the place of another.
    let has_room = |record: &&Record| rooms.iter().any(|room| is_of(record, room));
    let (held, over): (Vec<&Record>, Vec<&Record>) =
        records.iter().filter(|record| stands(record, rooms, &by_uid, gone)).partition(has_room);
    for record in held.into_iter().chain(over) {
        // Two operators may have written one each: of a node a pod has one place. Of two nodes both stand until it is known on which one it is.
        if ledger.records.iter().all(|one| one.pod_uid != record.pod_uid || one.node != record.node) {
            ledger.records.push(record.clone());
        }
    }
    let mut order: Vec<&Guest> = guests.iter().collect();
    order.sort_by_key(|guest| (guest.created, &guest.name, &guest.uid));
    let mut found = Assignment::default();
    for guest in order {
        if let Some(uid) = ledger.admit(guest) {
            found.admit.push((Arc::clone(&guest.uid), uid));
        }
        if ledger.has(guest) || guest.deleting {
            continue;
        }
        if ledger.adopt(guest) {
            continue;
        }
        if ledger.is_over(guest) {
            found.expel.push(Arc::clone(&guest.uid));
        }
        // Who may land somewhere already can be let in nowhere else.
        if guest.node.is_some() || !guest.admitted.is_empty() {
            continue;
        }
        match ledger.place(guest) {
            Ok(uid) => found.admit.push((Arc::clone(&guest.uid), uid)),
            Err(Some(reason)) => found.waiting.push((Arc::clone(&guest.uid), reason)),
            Err(None) => {}
        }
    }
    ledger.records.sort_unstable();
    found.records = ledger.records;
    found
}

/// A place stands while its pod may be or is on its node, and after that until nothing of it is left there. A pod that waits has none in a part
/// that is not held any more.
fn stands(record: &Record, rooms: &[Room], by_uid: &BTreeMap<&str, &Guest>, gone: &Gone) -> bool {
    let Some(guest) = by_uid.get(&*record.pod_uid) else {
        return !gone.contains(&(record.node.clone(), Arc::clone(&record.pod_uid)));
    };
    match &guest.node {
        Some(node) => *node == record.node,
        None => rooms.iter().any(|room| {
            let may_land = guest.admitted.is_empty() || guest.admitted.contains(&room.uid);
            is_of(record, room) && may_land
        }),
    }
}

fn is_of(record: &Record, room: &Room) -> bool {
    room.reservation == record.reservation && room.node == record.node
}

struct Places<'a> {
    rooms: &'a [Room],
    by_uid: &'a BTreeMap<&'a str, &'a Guest>,
    records: Vec<Record>,
}

/// What is taken of a room.
#[derive(Default)]
struct Taken {
    devices: u32,
    cpu_milli: i64,
    memory_mib: i64,
}

impl Places<'_> {
    fn has(&self, guest: &Guest) -> bool {
        self.records.iter().any(|record| record.pod_uid == guest.uid)
    }

    fn taken(&self, room: &Room) -> Taken {
        let mut taken = Taken::default();
        for record in self.records.iter().filter(|one| is_of(one, room)) {
            taken.devices = taken.devices.saturating_add(record.devices);
            if let Some(guest) = self.by_uid.get(&*record.pod_uid) {
                taken.cpu_milli = taken.cpu_milli.saturating_add(guest.cpu_milli);
                taken.memory_mib = taken.memory_mib.saturating_add(guest.memory_mib);
            }
        }
        taken
    }

    fn record(&mut self, guest: &Guest, room: &Room, devices: u32) {
        self.records.push(Record {
            pod_uid: Arc::clone(&guest.uid),
            pod: Arc::clone(&guest.name),
            reservation: Arc::clone(&room.reservation),
            node: room.node.clone(),
            devices,
        });
    }

    /// A place that was recorded and not made known: who wrote it was killed in between.
    fn admit(&self, guest: &Guest) -> Option<NodeUid> {
        if guest.node.is_some() || guest.deleting {
            return None;
        }
        let of = |room: &&Room| {
            let mut records = self.records.iter().filter(|record| record.pod_uid == guest.uid);
            room.set_up && records.any(|record| is_of(record, room))
        };
        let room = self.rooms.iter().find(of)?;
        (!guest.admitted.contains(&room.uid)).then(|| room.uid.clone())
    }

    /// Whether a pod without a place may use what nobody of its namespace holds: it waits and may land on a node, or is on one, where no place can
    /// become its own. On a node on which the namespace holds nothing, it is the node machine's.
    fn is_over(&self, guest: &Guest) -> bool {
        if guest.admitted.is_empty() {
            return false;
        }
        let mut there = self.rooms.iter().filter(|room| guest.admitted.contains(&room.uid));
        match &guest.node {
            None => there.all(|room| room.set_up),
            Some(node) => {
                let mut rooms = there.filter(|room| room.node == *node).peekable();
                rooms.peek().is_some() && rooms.all(|room| room.set_up)
            }
        }
    }

    /// A pod that may land or is there without a record: the record was lost, and is made again where there is room.
    fn adopt(&mut self, guest: &Guest) -> bool {
        let rooms = self.rooms;
        let mut fitting = rooms.iter().filter(|room| {
            room.set_up
                && guest.admitted.contains(&room.uid)
                && guest.node.as_ref().is_none_or(|node| *node == room.node)
        });
        let found = fitting.find_map(|room| {
            let devices = guest.devices.get(&room.resource).copied().filter(|&devices| devices > 0)?;
            let left = room.devices.saturating_sub(self.taken(room).devices);
            let asked = guest.reservation.as_ref().is_none_or(|name| *name == room.reservation);
            (asked && devices <= left).then_some((room, devices))
        });
        if let Some((room, devices)) = found {
            self.record(guest, room, devices);
        }
        found.is_some()
    }

    /// Gives a place in the room with the least free devices that has enough. `Err(None)`: it wants nothing of what is here.
    fn place(&mut self, guest: &Guest) -> Result<NodeUid, Option<Reason>> {
        let rooms = self.rooms;
        let asked = |room: &&Room| guest.reservation.as_ref().is_none_or(|name| *name == room.reservation);
        let wanted = |room: &Room| match guest.devices.iter().next() {
            Some((resource, &devices)) if guest.devices.len() == 1 && *resource == room.resource => devices,
            _ => 0,
        };
        let there = rooms.iter().filter(|room| room.set_up);
        let fitting: Vec<&Room> = there.filter(asked).filter(|room| wanted(room) > 0).collect();
        if fitting.is_empty() {
            return Err(None);
        }
        if guest.priority > 0 {
            return Err(Some(too_important(guest)));
        }
        if !guest.limited {
            return Err(Some(unlimited(guest)));
        }
        let mut held = 0_u64;
        let mut used = 0_u64;
        let mut starved = None;
        let mut best: Option<(u32, &Room, u32)> = None;
        for room in fitting {
            let devices = wanted(room);
            let taken = self.taken(room);
            held += u64::from(room.devices);
            used += u64::from(taken.devices);
            let left = room.devices.saturating_sub(taken.devices);
            if devices > left {
                continue;
            }
            let cpu = room.cpu_milli.saturating_sub(taken.cpu_milli);
            let memory = room.memory_mib.saturating_sub(taken.memory_mib);
            if guest.cpu_milli > cpu || guest.memory_mib > memory {
                starved = Some((room, cpu, memory));
            } else if best.is_none_or(|(least, ..)| left < least) {
                best = Some((left, room, devices));
            }
        }
        match (best, starved) {
            (Some((_, room, devices)), _) => {
                self.record(guest, room, devices);
                Ok(room.uid.clone())
            }
            (None, Some((room, cpu, memory))) => Err(Some(share_exceeded(guest, room, cpu, memory))),
            (None, None) => Err(Some(over_hold(guest, held, used))),
        }
    }
}

fn too_important(guest: &Guest) -> Reason {
    Reason {
        code: "PriorityTooHigh",
        message: format!(
            "Pod {} has priority {}, and would preempt its neighbours on a shared node: leave priorityClassName out, or reserve whole nodes.",
            guest.name, guest.priority
        ),
    }
}

fn unlimited(guest: &Guest) -> Reason {
    Reason {
        code: "LimitsMissing",
        message: format!(
            "A container of pod {} has no limit of CPU or memory, and could starve its neighbours on a shared node: set resources.limits.cpu and resources.limits.memory of every container, or reserve whole nodes.",
            guest.name
        ),
    }
}

fn share_exceeded(guest: &Guest, room: &Room, cpu_milli: i64, memory_mib: i64) -> Reason {
    Reason {
        code: "ShareExceeded",
        message: format!(
            "Pod {} requests {}m CPU and {} MiB of memory, and of what goes with the {} devices of reservation {} on node {} {}m and {} MiB are left: request less, or reserve more devices.",
            guest.name,
            guest.cpu_milli,
            guest.memory_mib,
            room.devices,
            room.reservation,
            room.node,
            cpu_milli.max(0),
            memory_mib.max(0)
        ),
    }
}

fn over_hold(guest: &Guest, held: u64, used: u64) -> Reason {
    let wanted: u32 = guest.devices.values().sum();
    Reason {
        code: "OverHold",
        message: format!(
            "Pod {} wants {wanted} of the {held} devices that are held in parts of nodes, together on one node, and {used} are in use. It lands when pods of this namespace end, or when more is reserved.",
            guest.name
        ),
    }
}
