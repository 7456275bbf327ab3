//! The state of the modelled world: the API server, the machines, and what each operator is doing.

use std::{
    collections::{BTreeMap, BTreeSet, hash_map::DefaultHasher},
    fmt,
    hash::{Hash, Hasher},
    sync::Arc,
};

use spillway_planner::{
    Booking, BookingId, NodeUid,
    ledger::{ArchiveWalk, Ledger, LoadError, Page, PageName, Root},
    node::{Check, Hold},
};

/// A hash that is the same in each run.
pub fn digest(value: &impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish()
}

/// What follows from the root and its pages, worked out once.
#[derive(Clone, Debug)]
pub struct Committed {
    pub ledger: Ledger,
    /// What has ended, and whether it was ever active.
    pub archived: BTreeMap<BookingId, bool>,
    /// All pages that must not be deleted.
    pub pages: BTreeSet<PageName>,
    /// Of all that the ledger says, names of pages left out.
    digest: u64,
}

impl Committed {
    pub fn read(root: &Root, pages: &BTreeMap<PageName, Arc<Page>>) -> Result<Self, LoadError> {
        let ledger = Ledger::decode(root, &mut |name| pages.get(name).map(|page| Page::clone(page)))?;
        let (mut ended, mut all) = (Vec::new(), ledger.reachable());
        for pool in root.pools.keys() {
            let mut walk = ArchiveWalk::new(pool.clone(), ledger.archive_head(pool).cloned());
            while let Some(name) = walk.wanted() {
                let page = pages.get(name).ok_or_else(|| LoadError::MissingPage { name: name.clone() })?;
                ended.extend(walk.take(page)?.1);
            }
            all.extend(walk.seen().iter().cloned());
        }
        let mut live: Vec<&Arc<Booking>> = ledger.bookings().collect();
        live.sort_by_key(|booking| &booking.id);
        let digest = digest(&(root.generation, root.epoch, root.committed_at, live, &ended));
        let archived = ended.iter().map(|booking| (booking.id.clone(), booking.active_at.is_some())).collect();
        Ok(Self { ledger, archived, pages: all, digest })
    }
}

/// The ledger as it stands in the API server.
#[derive(Clone, Debug)]
pub struct Api {
    pub root: Root,
    pub pages: BTreeMap<PageName, Arc<Page>>,
    pub committed: Arc<Committed>,
}

impl Api {
    pub fn new(root: Root) -> Arc<Self> {
        let pages = BTreeMap::new();
        let committed = Arc::new(Committed::read(&root, &pages).unwrap());
        Arc::new(Self { root, pages, committed })
    }
}

/// A pod of one party on one node, and its container.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Pod {
    /// Neither.
    None,
    /// Both.
    Running,
    /// Both, and it was told to go.
    Leaving,
    /// The pod is gone from the API server, the container runs on.
    Ghost,
}

impl Pod {
    pub fn has_container(self) -> bool {
        self != Self::None
    }
}

/// Tenants, and the owner.
pub const PARTIES: usize = 4;

/// What the agent was asked and answered.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Asked {
    No,
    Waiting,
    /// Whose containers there are.
    Answered {
        tenants: bool,
        owner: bool,
    },
}

/// A node object and the machine behind it.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct NodeObject {
    /// How often it was re-created.
    pub incarnation: u8,
    pub hold: Hold,
    pub asked: Asked,
    /// Whether `asked` is about the taints as they are.
    pub asked_now: bool,
    /// By party: the tenants, then the owner.
    pub pods: [Pod; PARTIES],
}

impl NodeObject {
    pub fn uid(&self, place: usize) -> NodeUid {
        format!("n{place}.{}", self.incarnation).into()
    }

    /// What a decision looks at: with any taint but `closed`, that is all.
    pub fn reduced(&self) -> Self {
        let mut seen = self.clone();
        if !matches!(seen.hold, Hold::Closed { .. }) {
            seen.asked = Asked::No;
            seen.asked_now = false;
            seen.pods.fill(Pod::None);
        }
        // Containers without a pod are not to be seen.
        for pod in seen.pods.iter_mut().filter(|pod| **pod == Pod::Ghost) {
            *pod = Pod::None;
        }
        seen
    }

    /// What the agent says, about tenants only where a node is opened with the owner's pods on it.
    pub fn check(&self, trust_old_answers: bool, tenants_only: bool) -> Check {
        if !self.asked_now && !trust_old_answers {
            return Check::NotAsked;
        }
        match self.asked {
            Asked::No => Check::NotAsked,
            Asked::Waiting => Check::Waiting,
            Asked::Answered { tenants, owner } if tenants || owner && !tenants_only => {
                Check::Dirty { found: vec!["a container".to_owned()], age_ms: spillway_planner::node::RECHECK_MS }
            }
            Asked::Answered { .. } => Check::Clean,
        }
    }
}

/// What planning sees of a node.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct Seen {
    pub uid: NodeUid,
    pub hold: Hold,
    pub owner: bool,
}

/// A write that was decided.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub enum Write {
    Hold(Hold),
    Drain(Vec<usize>),
    Ask,
}

/// What an operator is doing, between two API calls.
#[derive(Clone, Debug)]
pub enum Task {
    Idle,
    /// It looked at the nodes, and will read the ledger and plan.
    Planning(Vec<Seen>),
    /// It creates pages, then swaps the root. `changes`: a digest of what it commits; 0 once that can only fail.
    Committing {
        base: i64,
        changes: u64,
        todo: Vec<Arc<Page>>,
        created: Vec<PageName>,
        root: Root,
    },
    /// It read a node with its pods, and will read the root.
    Deciding {
        node: usize,
        seen: NodeObject,
        current: bool,
    },
    /// With the safeguard taken away: it read the root, and will read a node.
    Trusting {
        node: usize,
        committed: Arc<Committed>,
    },
    /// It will write a node. `unfounded`: for a booking that was not live when the node was read or later.
    Writing {
        node: usize,
        write: Write,
        current: bool,
        unfounded: bool,
    },
    /// It listed all pages, and will swap the root.
    Collecting {
        listed: BTreeSet<PageName>,
    },
    /// With the safeguard taken away: it swapped the root, and will list all pages.
    Listing,
    /// It deletes pages.
    Deleting {
        names: Vec<PageName>,
    },
}

/// A property that a step broke.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Bad {
    SoldTwice,
    Unreadable,
    TimeWentBack,
    BookingLost,
    HolderOfNobody,
    WrongPodDeleted,
    OwnerDisplaced,
}

/// The modelled world. Its hash, by which states are told apart, has no names of pages: what a page is to the root and to the tasks stands
/// in their place. And operators are alike, so that their order is no part of it.
#[derive(Clone, Debug)]
pub struct State {
    pub api: Arc<Api>,
    pub nodes: Vec<NodeObject>,
    pub tasks: [Task; 2],
    pub recreations: u8,
    pub collections: u8,
    pub bad: Option<Bad>,
}

impl State {
    /// Whether a page name occurs anywhere.
    pub fn knows(&self, name: &PageName) -> bool {
        self.api.pages.contains_key(name)
            || self.tasks.iter().any(|task| match task {
                Task::Committing { todo, created, .. } => {
                    created.contains(name) || todo.iter().any(|stored| stored.name == *name)
                }
                Task::Collecting { listed } => listed.contains(name),
                Task::Deleting { names } => names.contains(name),
                _ => false,
            })
    }

    /// Whether two operators do the same.
    pub fn same_task(&self, one: usize, other: usize) -> bool {
        self.digest_task(&self.tasks[one]) == self.digest_task(&self.tasks[other])
    }

    /// What a page is, whatever its name.
    fn role(&self, name: &PageName) -> Role {
        let in_flight = self.tasks.iter().find_map(|task| match task {
            Task::Committing { created, .. } => created.iter().position(|created| created == name),
            _ => None,
        });
        match in_flight {
            Some(place) => Role::InFlight(place),
            None => match self.api.committed.pages.iter().position(|named| named == name) {
                // There are few pages in a modelled ledger: their order is by kind.
                Some(place) => Role::Named(place),
                None => Role::Garbage,
            },
        }
    }

    fn digest_task(&self, task: &Task) -> u64 {
        let roles = |names: &mut dyn Iterator<Item = &PageName>| -> BTreeSet<Role> {
            names.map(|name| self.role(name)).filter(|role| *role != Role::Garbage).collect()
        };
        match task {
            Task::Idle => 0,
            Task::Planning(seen) => digest(&(1, seen)),
            Task::Committing { base, changes, todo, created, .. } => {
                let there: Vec<bool> = created.iter().map(|name| self.api.pages.contains_key(name)).collect();
                digest(&(2, if *changes == 0 { 0 } else { *base }, changes, todo.len(), there))
            }
            Task::Deciding { node, seen, current } => digest(&(3, node, seen, current)),
            Task::Trusting { node, committed } => digest(&(4, node, committed.digest)),
            Task::Writing { node, write, current, unfounded } => digest(&(5, node, write, current, unfounded)),
            Task::Collecting { listed } => digest(&(6, roles(&mut listed.iter()))),
            Task::Listing => 7,
            Task::Deleting { names } => digest(&(8, roles(&mut names.iter()))),
        }
    }
}

/// What a page is to the root and to the tasks.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
enum Role {
    Named(usize),
    InFlight(usize),
    Garbage,
}

impl Hash for State {
    fn hash<H: Hasher>(&self, state: &mut H) {
        let mut tasks: Vec<u64> = self.tasks.iter().map(|task| self.digest_task(task)).collect();
        tasks.sort_unstable();
        let Self { api, nodes, recreations, collections, bad, tasks: _ } = self;
        (api.committed.digest, nodes, tasks, recreations, collections, bad).hash(state);
    }
}

impl PartialEq for State {
    fn eq(&self, other: &Self) -> bool {
        digest(self) == digest(other)
    }
}

/// In short, for those who read a counterexample.
impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let live: Vec<String> = self.api.committed.ledger.bookings().map(|booking| booking.id.to_string()).collect();
        write!(f, "generation {} live {live:?} ended {:?}", self.api.root.generation, self.api.committed.archived)?;
        for node in &self.nodes {
            let NodeObject { incarnation, hold, asked, asked_now, pods } = node;
            write!(f, "; node.{incarnation} {hold:?} {asked:?} {asked_now} {pods:?}")?;
        }
        for task in &self.tasks {
            match task {
                Task::Committing { base, todo, root, .. } => {
                    write!(f, "; committing {} on {base}, {} to create", root.generation, todo.len())?;
                }
                Task::Trusting { node, .. } => write!(f, "; trusting for node {node}")?,
                task => write!(f, "; {task:?}")?,
            }
        }
        Ok(())
    }
}
