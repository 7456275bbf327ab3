//! The state of the modelled world: a node, the pods that want its devices, the reservations, and what each operator is doing.

use std::fmt;

/// Reservations of a world, at most.
pub const RESERVATIONS: usize = 3;
/// Pods of a world, at most.
pub const PODS: usize = 4;
/// Devices of the node.
pub const DEVICES: u32 = 2;

/// A set of pods, or of reservations.
#[derive(Clone, Copy, Default, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Set(u8);

impl Set {
    pub const NONE: Self = Self(0);

    pub fn one(of: usize) -> Self {
        Self(1 << of)
    }

    pub fn has(self, one: usize) -> bool {
        self.0 & (1 << one) != 0
    }

    pub fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    pub fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    pub fn and(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    pub fn len(self) -> usize {
        self.0.count_ones() as usize
    }

    pub fn all(self) -> impl Iterator<Item = usize> {
        (0..8).filter(move |&one| self.has(one))
    }

    pub fn filter(self, keeps: impl Fn(usize) -> bool) -> Self {
        self.all().filter(|&one| keeps(one)).collect()
    }
}

impl FromIterator<usize> for Set {
    fn from_iter<I: IntoIterator<Item = usize>>(all: I) -> Self {
        all.into_iter().fold(Self::NONE, |set, one| set.with(Self::one(one)))
    }
}

impl fmt::Debug for Set {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.all()).finish()
    }
}

/// A pod that wants one device, and its container.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Pod {
    /// Not created yet.
    Unborn,
    /// It waits for a node. `known`: the incarnation of the node whose toleration it was given.
    Waits { known: Option<u8> },
    /// It is bound to that incarnation of the node.
    Runs { known: u8 },
    /// The same, and it was told to go.
    Leaving { known: u8 },
    /// The pod is gone from the API server, the container runs on.
    Ghost,
    /// Both are gone.
    Gone,
}

impl Pod {
    pub fn has_container(self) -> bool {
        matches!(self, Self::Runs { .. } | Self::Leaving { .. } | Self::Ghost)
    }

    /// What the API server has of it.
    pub fn seen(self) -> Self {
        match self {
            Self::Ghost | Self::Gone => Self::Unborn,
            there => there,
        }
    }
}

/// The taints of the node.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Taint {
    Closed {
        no_execute: bool,
    },
    Unsold,
    /// Of this incarnation, and set up for the parts of these reservations.
    Shared {
        set_up: Set,
    },
}

/// Of what a question to the agent is: parts that ended, and pods that went.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct About {
    pub ended: Set,
    /// Those of them of which nobody knows any more who had places in them.
    pub forgotten: Set,
    pub went: Set,
}

/// What the agent was asked since the taints were last written, and of which pods it saw containers.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Question {
    pub about: About,
    pub answer: Option<Set>,
}

/// A node object.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Node {
    /// How often it was re-created.
    pub incarnation: u8,
    pub taint: Taint,
    /// The reservations whose labels it carries.
    pub labels: Set,
    /// The reservations whose parts it names: while it is closed, those that it was set up for before.
    pub named: Set,
    pub asked: Option<Question>,
}

/// What the ledger has of a reservation.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Booking {
    None,
    /// A part of that incarnation of the node.
    Live {
        node: u8,
        handed_over: bool,
    },
    Ended,
    /// The part is over, and the reservation goes on.
    Lost,
}

/// A reservation: its booking, and the pods that its status gives places.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Reservation {
    pub booking: Booking,
    pub records: Set,
    /// The object is gone.
    pub forgotten: bool,
}

/// What an operator saw of the node and who is or may come there, as far as it makes a difference.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Seen {
    pub incarnation: u8,
    pub taint: Taint,
    pub named: Set,
    pub asked: Option<Question>,
    pub running: Set,
    pub leaving: Set,
    /// The places that reservations record, of those that the node is set up for.
    pub records: [Set; RESERVATIONS],
    /// Which of the pods with places there are.
    pub there: Set,
    /// Which of them wait, with the toleration or without.
    pub waiting: Set,
    /// Reservations of parts that it is set up for and that are gone.
    pub forgotten: Set,
}

/// A write that the node machine decided.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Write {
    Taint { taint: Taint, labels: Set },
    Drain(Set),
    Ask(About),
    Release(Set),
}

/// What is still to be written of an assignment, in this order.
#[derive(Clone, Debug, Default, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Places {
    /// Reservations, and all their places.
    pub records: Vec<(usize, Set)>,
    /// Pods, the incarnations whose toleration they get, and the reservations that record them.
    pub admit: Vec<(usize, u8, usize)>,
}

/// What the ledger has of a tenant's reservations, and the node of them.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Root {
    pub bookings: [Booking; RESERVATIONS],
    pub incarnation: u8,
    pub set_up: Set,
}

/// What an operator is doing, between two API calls. `current`: whether what it read did not change since. `placed`: pods that had places in live parts
/// when it read the records, or listed pods to expel some, whatever it saw of that.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Task {
    Idle,
    /// Node machine: it read the node, its pods and the records, and will read the root.
    Deciding {
        seen: Seen,
        current: bool,
    },
    /// It read the records and the pods that had places in parts that ended from the API server, and will list the pods of the node.
    Finding {
        seen: Seen,
        live: Set,
        /// Whether to empty the node; else it decides anew.
        drains: bool,
        placed: Set,
        current: bool,
    },
    /// It did, and will read the root again, and, to empty the node, the node before.
    Confirming {
        seen: Seen,
        live: Set,
        drains: bool,
        placed: Set,
        current: bool,
    },
    /// It will write.
    Writing {
        write: Write,
        current: bool,
    },
    /// Assignment: it read the reservations of a tenant, and will read the root, and then the node and the pods.
    Placing {
        tenant: usize,
        records: [Set; RESERVATIONS],
        current: Set,
    },
    /// It will write.
    Recording {
        places: Places,
        current: Set,
    },
    /// It read a pod and then the root, and will give the pod the toleration of an incarnation.
    Telling {
        pod: usize,
        incarnation: u8,
        places: Places,
        current: Set,
    },
    /// It will list the pods of which some are suspected, and goes on after that.
    Suspecting {
        tenant: usize,
        suspects: Set,
        places: Places,
        current: Set,
    },
    /// It did, and will read the root. (With a safeguard taken away, in another order.)
    Listing {
        tenant: usize,
        suspects: Set,
        pods: [Pod; PODS],
        records: [Set; RESERVATIONS],
        places: Places,
        placed: Set,
        current: Set,
    },
    /// It did, and will list the reservations.
    Judging {
        tenant: usize,
        suspects: Set,
        pods: [Pod; PODS],
        records: [Set; RESERVATIONS],
        root: Root,
        places: Places,
        placed: Set,
        current: Set,
    },
    /// It will delete these pods.
    Expelling {
        pods: Set,
        places: Places,
        current: Set,
    },
}

/// A property that a step broke.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Bad {
    KnownWithoutRecord,
    EndedWithPlace,
}

/// An operator: what it does, and what it keeps in mind until it is killed.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Operator {
    pub task: Task,
    /// Pods whose containers it takes to be gone.
    pub gone: Set,
}

/// The modelled world. Operators are alike: they stand in order.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct State {
    pub node: Node,
    pub reservations: [Reservation; RESERVATIONS],
    pub pods: [Pod; PODS],
    /// Pods that had a record at some time.
    pub recorded: Set,
    pub operators: [Operator; 2],
    pub recreations: u8,
    pub deletions: u8,
    pub bad: Option<Bad>,
}

/// The reservations with a live part of an incarnation of the node.
pub fn live(reservations: &[Reservation; RESERVATIONS], incarnation: u8) -> Set {
    let on = |r: &usize| matches!(reservations[*r].booking, Booking::Live { node, .. } if node == incarnation);
    (0..RESERVATIONS).filter(on).collect()
}

impl State {
    /// The reservations with a live part of an incarnation of the node.
    pub fn live(&self, incarnation: u8) -> Set {
        live(&self.reservations, incarnation)
    }

    pub fn pods_that(&self, are: impl Fn(Pod) -> bool) -> Set {
        (0..PODS).filter(|&pod| are(self.pods[pod])).collect()
    }

    /// Pods that have places in live parts.
    pub fn placed(&self) -> Set {
        let live = self.reservations.iter().filter(|one| matches!(one.booking, Booking::Live { .. }));
        live.fold(Set::NONE, |all, one| all.with(one.records))
    }

    pub fn records(&self) -> [Set; RESERVATIONS] {
        self.reservations.map(|reservation| reservation.records)
    }
}

/// In short, for those who read a counterexample.
impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Node { incarnation, taint, labels, named: _, asked } = self.node;
        write!(f, "node.{incarnation} {taint:?} labels {labels:?}")?;
        if let Some(Question { about: About { ended, forgotten, went }, answer }) = asked {
            write!(f, " asked of parts {ended:?} ({forgotten:?} forgotten) and pods {went:?}: {answer:?}")?;
        }
        for (r, Reservation { booking, records, forgotten: _ }) in self.reservations.iter().enumerate() {
            if *booking != Booking::None {
                write!(f, "; r{r} {booking:?} {records:?}")?;
            }
        }
        write!(f, "; pods {:?}", self.pods.iter().filter(|pod| **pod != Pod::Unborn).collect::<Vec<_>>())?;
        for Operator { task, gone } in &self.operators {
            let what = format!("{task:?}");
            let short = matches!(task, Task::Writing { .. } | Task::Recording { .. } | Task::Expelling { .. });
            write!(f, "; {}", if short { &*what } else { what.split(' ').next().unwrap_or_default() })?;
            if !gone.is_empty() {
                write!(f, " ({gone:?} gone)")?;
            }
        }
        Ok(())
    }
}
