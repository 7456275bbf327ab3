//! The node machine: the next step of a pool node on its way to what the ledger wants (docs/ARCHITECTURE.md, "The node machine").
//!
//! Must not: look at anything but its input. The operator writes what this says, and the model check runs this same function.
//!
//! What the caller owes:
//! - every `Write*` is made with the precondition that the node is the object that was looked at, after the root was read again and found at
//!   the generation that `wanted` stands on, and stamps that generation;
//! - an answer of the node counts only if it was asked since the node's taints were last written: the question carries an id that is new with
//!   each such write, and so does the answer. Any other answer is [`Check::NotAsked`];
//! - a booking's node counts as handed over only once its holder taint was read back from the API server.

use crate::{plan::Reason, types::BookingId};

/// Late pods of the owner, that were being bound when the node was closed, show up within this time.
pub const SETTLE_MS: i64 = 1_000;
/// After an answer that names containers, the node is asked again so much later.
pub const RECHECK_MS: i64 = 2_000;
/// A node that cannot be emptied for so long is in quarantine: somebody must look.
pub const QUARANTINE_MS: i64 = 10 * 60 * 1_000;
/// How often a node is looked at that waits for something of which there is no event.
pub const POLL_MS: i64 = 1_000;

/// The `spillway.dev/hold` taints of a node.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub enum Hold {
    /// None.
    None,
    /// `closed`.
    Closed {
        /// With NoExecute beside NoSchedule.
        no_execute: bool,
    },
    /// `unsold` in NoSchedule.
    Unsold,
    /// A holder in both effects.
    Holder {
        /// The holder id.
        holder: String,
        /// The booking for which it was written, as noted on the node; none: the note is missing.
        booking: Option<BookingId>,
    },
    /// `node.<UID of this node>` in both effects: pods land that were given its toleration one by one.
    Shared {
        /// The parts for which it was set up, sorted: those whose bookings ended stay until nothing of theirs is left there.
        set_up: Vec<Part>,
    },
    /// Anything else: a mixture, or a value of nobody.
    Other,
}

/// A part of a node.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Part {
    /// Whose.
    pub booking: BookingId,
    /// Devices.
    pub devices: u32,
}

/// What the ledger says of a node.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub enum Wanted {
    /// No live booking has an open segment on it.
    Open,
    /// A live booking has.
    Held {
        /// Holder id of its namespace.
        holder: String,
        /// Which booking.
        booking: BookingId,
    },
    /// Live bookings have parts of it.
    Shared {
        /// Which, sorted.
        parts: Vec<Part>,
    },
}

/// What the node itself says about containers that should be gone.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub enum Check {
    /// The pool has no agents: the API server's word is enough.
    NotNeeded,
    /// It was not asked since its taints were last written.
    NotAsked,
    /// It was asked and has not answered.
    Waiting,
    /// It was asked since, and has nothing but infrastructure.
    Clean,
    /// It was asked since, and has more.
    Dirty {
        /// What it has, for people.
        found: Vec<String>,
        /// How old the answer is.
        age_ms: i64,
    },
}

/// Pods bound to a node that are not infrastructure and not there by right: on a held node its holder's pods are, on a shared one those that a
/// live booking was given room for. Those that are `Succeeded` or `Failed` do not count.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
pub struct ForeignPods {
    /// Device pods of the owner that nobody has asked to go.
    pub owner: bool,
    /// Other pods that nobody has asked to go.
    pub running: bool,
    /// Pods that are being deleted.
    pub leaving: bool,
}

/// All that the next step of a node depends on.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct NodeInput {
    /// Its taints.
    pub hold: Hold,
    /// What the ledger says.
    pub wanted: Wanted,
    /// Milliseconds since it was closed, if it is.
    pub closed_for_ms: i64,
    /// Pods that must not be there when it changes hands. On a node that is wanted `Open` and is closed in NoSchedule alone: tenants' pods only.
    pub pods: ForeignPods,
    /// `Ready`.
    pub ready: bool,
    /// Unschedulable by hand.
    pub cordoned: bool,
    /// It offers as many devices as its pool says.
    pub device_count_ok: bool,
    /// Devices of each node of its pool.
    pub devices: u32,
    /// On a shared node: pods that were given room have gone, and nobody has said that their containers have.
    pub releasing: bool,
    /// What the node itself says, about the same pods.
    pub check: Check,
}

/// The next step of a node. All but the writes leave its taints as they are.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum NodeStep {
    /// It is as it should be. On a wanted `Held` node: its segment counts as handed over.
    Nothing,
    /// Write `closed` in NoSchedule alone: nobody lands, and what runs is not touched yet.
    WriteClosedNoSchedule,
    /// Write `closed` in both effects; holder labels go in the same write.
    WriteClosedBoth,
    /// Write `unsold`: open to the owner, and to be sold.
    WriteUnsold,
    /// Write the holder in both effects, and its labels.
    WriteHolder,
    /// Write that the node is shared and set up for these parts, in both effects, with the labels of those that are live.
    WriteShared(Vec<Part>),
    /// The containers of pods that have gone are gone too: their room may be given to others.
    Release,
    /// Delete the pods that nobody has asked to go, with their grace bounded by the cap.
    Drain,
    /// Ask the node which containers it has.
    AskCheck,
    /// Nothing to do before something happens; look again after so many milliseconds.
    Wait(Reason, i64),
    /// The owner's pods are there: the booking takes another node, and this one stays the owner's.
    GiveUp(Reason),
    /// It can be neither sold nor handed over until somebody mends it; look again after so many milliseconds.
    Broken(Reason, i64),
}

fn reason(code: &'static str, message: impl Into<String>) -> Reason {
    Reason { code, message: message.into() }
}

/// The next step of a node.
pub fn node_step(input: &NodeInput) -> NodeStep {
    match (&input.hold, &input.wanted) {
        // A node that is new to the pool may have pods of the owner's that know nothing of us: NoExecute would end them.
        (Hold::None, _) => NodeStep::WriteClosedNoSchedule,
        (Hold::Other, _) => NodeStep::WriteClosedBoth,
        (Hold::Holder { holder, booking }, Wanted::Held { holder: wanted, booking: of })
            if holder == wanted && booking.as_ref() == Some(of) =>
        {
            NodeStep::Nothing
        }
        (Hold::Shared { set_up }, Wanted::Shared { parts }) => step_sharing(input, set_up, parts),
        (Hold::Holder { .. } | Hold::Shared { .. }, _) => NodeStep::WriteClosedBoth,
        (Hold::Unsold, Wanted::Open) => NodeStep::Nothing,
        (Hold::Unsold, Wanted::Held { .. } | Wanted::Shared { .. }) => NodeStep::WriteClosedNoSchedule,
        (Hold::Closed { no_execute: false }, wanted) => step_closing(input, wanted),
        (Hold::Closed { no_execute: true }, wanted) => step_emptying(input, wanted),
    }
}

/// Nobody lands any more; what runs has not been told to go.
fn step_closing(input: &NodeInput, wanted: &Wanted) -> NodeStep {
    if matches!(wanted, Wanted::Open) {
        return step_opening(input);
    }
    if input.pods.owner {
        return NodeStep::GiveUp(reason("OwnerPods", "The owner's pods run there, and a sale does not displace them."));
    }
    if input.closed_for_ms < SETTLE_MS {
        let message = "Waiting for pods that were being bound when the node was closed.";
        return NodeStep::Wait(reason("Settling", message), SETTLE_MS - input.closed_for_ms.max(0));
    }
    if input.pods.running {
        return NodeStep::Drain;
    }
    NodeStep::WriteClosedBoth
}

/// A node that is new, came back, or was given up by a booking before anything on it was told to go: it is opened as it is if nothing of a
/// tenant is on it, the owner's pods undisturbed. Before any tenant gets it, it is closed, emptied and checked like every node.
fn step_opening(input: &NodeInput) -> NodeStep {
    if input.pods.running || input.pods.leaving || matches!(input.check, Check::Dirty { .. }) {
        return NodeStep::WriteClosedBoth;
    }
    if let Some(step) = unfit(input) {
        return step;
    }
    match &input.check {
        Check::NotAsked => NodeStep::AskCheck,
        Check::Waiting => wait_for_check(input),
        _ => NodeStep::WriteUnsold,
    }
}

fn wait(code: &'static str, message: &str, ms: i64) -> NodeStep {
    NodeStep::Wait(reason(code, message), ms)
}

fn broken(code: &'static str, message: &str) -> NodeStep {
    NodeStep::Broken(reason(code, message), POLL_MS)
}

/// Why a node can be handed to nobody as it is, if so.
fn unfit(input: &NodeInput) -> Option<NodeStep> {
    if !input.ready {
        return Some(wait("NotReady", "Waiting for the node to be Ready.", POLL_MS));
    }
    if input.cordoned {
        return Some(broken("Cordoned", "The node is cordoned: kubectl uncordon it to let it be sold."));
    }
    if !input.device_count_ok {
        return Some(broken(
            "DeviceCount",
            "The node does not offer as many devices as its pool says: look at its device plugin and devices.",
        ));
    }
    None
}

fn wait_for_check(input: &NodeInput) -> NodeStep {
    if input.closed_for_ms >= QUARANTINE_MS {
        return broken("NoAnswer", "The agent on the node does not answer: look at its pod.");
    }
    wait("NodeCheck", "Waiting for the agent on the node to say that no container is left.", POLL_MS)
}

/// Nobody lands and nobody may stay: empty it, look, hand it over.
fn step_emptying(input: &NodeInput, wanted: &Wanted) -> NodeStep {
    if input.pods.running || input.pods.owner {
        return NodeStep::Drain;
    }
    if input.pods.leaving {
        if input.closed_for_ms >= QUARANTINE_MS {
            return broken(
                "PodsStuck",
                "Pods on the node do not go away: look at the node, or delete it and let it register again.",
            );
        }
        return wait("PodsLeaving", "Waiting for pods on the node to end.", POLL_MS);
    }
    if let Some(step) = unfit(input) {
        return step;
    }
    if let Some(step) = unless_clean(input) {
        return step;
    }
    match wanted {
        Wanted::Open => NodeStep::WriteUnsold,
        Wanted::Held { .. } => NodeStep::WriteHolder,
        Wanted::Shared { parts } => NodeStep::WriteShared(parts.clone()),
    }
}

/// What is to be done before the node says that nothing is left; none: it has said so.
fn unless_clean(input: &NodeInput) -> Option<NodeStep> {
    Some(match &input.check {
        Check::Clean | Check::NotNeeded => return None,
        Check::NotAsked => NodeStep::AskCheck,
        Check::Waiting => wait_for_check(input),
        Check::Dirty { age_ms, .. } if *age_ms >= RECHECK_MS => NodeStep::AskCheck,
        Check::Dirty { found, age_ms } => {
            let found = found.join(", ");
            let again = RECHECK_MS - (*age_ms).max(0);
            if input.closed_for_ms >= QUARANTINE_MS {
                let message = format!("Containers do not go away ({found}): restart the kubelet of the node.");
                return Some(NodeStep::Broken(reason("ContainersLeft", message), again));
            }
            NodeStep::Wait(
                reason("ContainersLeft", format!("Waiting for containers on the node to end: {found}.")),
                again,
            )
        }
    })
}

/// Bookings have parts of the node. Who comes is let in as soon as there is room, and disturbs nobody; who goes keeps its room until nothing of
/// it is left.
fn step_sharing(input: &NodeInput, set_up: &[Part], wanted: &[Part]) -> NodeStep {
    let (staying, ended): (Vec<&Part>, Vec<&Part>) = set_up.iter().partition(|part| wanted.contains(part));
    let mut room = input.devices.saturating_sub(set_up.iter().map(|part| part.devices).sum());
    let mut coming: Vec<&Part> = Vec::new();
    for part in wanted.iter().filter(|part| !set_up.contains(part)) {
        // A booking whose part has another size now must give the old one back first.
        if part.devices <= room && !ended.iter().any(|ended| ended.booking == part.booking) {
            room -= part.devices;
            coming.push(part);
        }
    }
    let together = |parts: &mut dyn Iterator<Item = &&Part>| {
        let mut parts: Vec<Part> = parts.map(|part| Part::clone(part)).collect();
        parts.sort_unstable();
        NodeStep::WriteShared(parts)
    };
    let unfit = unfit(input);
    if !coming.is_empty() && unfit.is_none() {
        return together(&mut staying.iter().chain(&ended).chain(&coming));
    }
    if !ended.is_empty() || input.pods.running {
        if input.pods.running {
            return NodeStep::Drain;
        }
        if input.pods.leaving {
            return wait("PodsLeaving", "Waiting for pods of a part that ended to end.", POLL_MS);
        }
    }
    if !ended.is_empty() {
        return unless_clean(input).unwrap_or_else(|| together(&mut staying.iter()));
    }
    if input.releasing {
        return unless_clean(input).unwrap_or(NodeStep::Release);
    }
    if wanted.iter().all(|part| set_up.contains(part)) {
        return NodeStep::Nothing;
    }
    unfit.unwrap_or_else(|| {
        broken("DeviceCount", "The node has fewer devices than were sold of it: look at its devices.")
    })
}

#[cfg(test)]
mod tests;
