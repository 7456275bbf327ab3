//! The state of the modelled world: the API server, the machines, and what each operator is doing.

use std::{
    collections::{BTreeMap, BTreeSet, hash_map::DefaultHasher},
    fmt,
    hash::{Hash, Hasher},
    sync::Arc,
};

use spillway_planner::{
    BookingId, NodeUid,
    ledger::{ArchiveWalk, Ledger, LoadError, Page, PageKind, PageName, Root},
    node::{Check, Hold},
};

/// A page, hashed once.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Stored {
    pub page: Page,
    digest: u64,
}

impl Stored {
    pub fn new(page: Page) -> Arc<Self> {
        let mut hasher = DefaultHasher::new();
        page.hash(&mut hasher);
        Arc::new(Self { digest: hasher.finish(), page })
    }
}

impl Hash for Stored {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.digest.hash(state);
    }
}

/// What follows from the root and its pages, worked out once.
#[derive(Clone)]
pub struct Committed {
    pub ledger: Ledger,
    pub archived: BTreeSet<BookingId>,
    /// All pages that must not be deleted.
    pub pages: BTreeSet<PageName>,
}

impl Committed {
    pub fn read(root: &Root, pages: &BTreeMap<PageName, Arc<Stored>>) -> Result<Self, LoadError> {
        let ledger = Ledger::decode(root, &mut |name| pages.get(name).map(|stored| stored.page.clone()))?;
        let (mut archived, mut all) = (BTreeSet::new(), ledger.reachable());
        for pool in root.pools.keys() {
            let mut walk = ArchiveWalk::new(pool.clone(), ledger.archive_head(pool).cloned());
            while let Some(name) = walk.wanted() {
                let page = pages.get(name).ok_or_else(|| LoadError::MissingPage { name: name.clone() })?;
                archived.extend(walk.take(&page.page)?.1.into_iter().map(|booking| booking.id.clone()));
            }
            all.extend(walk.seen().iter().cloned());
        }
        Ok(Self { ledger, archived, pages: all })
    }
}

/// Something that follows from the rest of the state.
#[derive(Clone)]
pub struct Derived<T>(pub T);

impl<T> Hash for Derived<T> {
    fn hash<H: Hasher>(&self, _: &mut H) {}
}

impl<T> PartialEq for Derived<T> {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl<T> Eq for Derived<T> {}

impl<T> fmt::Debug for Derived<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("..")
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

/// What the agent was asked and answered.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Asked {
    No,
    Waiting,
    Clean,
    Dirty,
}

/// A node object and the machine behind it.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct NodeObject {
    /// How often it was re-created.
    pub incarnation: u8,
    pub hold: Hold,
    /// Generation of the last write.
    pub stamp: i64,
    pub asked: Asked,
    /// Whether `asked` is about this closing.
    pub asked_now: bool,
    /// By party: the tenants, then the owner.
    pub pods: Vec<Pod>,
}

impl NodeObject {
    pub fn uid(&self, place: usize) -> NodeUid {
        format!("n{place}.{}", self.incarnation).into()
    }

    pub fn check(&self, trust_old_answers: bool) -> Check {
        if !self.asked_now && !trust_old_answers {
            return Check::NotAsked;
        }
        match self.asked {
            Asked::No => Check::NotAsked,
            Asked::Waiting => Check::Waiting,
            Asked::Clean => Check::Clean,
            Asked::Dirty => {
                Check::Dirty { found: vec!["a container".to_owned()], age_ms: spillway_planner::node::RECHECK_MS }
            }
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
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub enum Task {
    Idle,
    /// It looked at the nodes, and will read the ledger and plan.
    Planning(Vec<Seen>),
    /// It creates pages, then swaps the root.
    Committing {
        base: i64,
        todo: Vec<Arc<Stored>>,
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
        root: Root,
        committed: Derived<Arc<Committed>>,
    },
    /// It will write a node. `unfounded`: for a booking that was not live when the node was read or later.
    Writing {
        node: usize,
        write: Write,
        generation: i64,
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
}

/// The modelled world.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct State {
    pub root: Root,
    pub pages: BTreeMap<PageName, Arc<Stored>>,
    pub committed: Derived<Arc<Committed>>,
    pub nodes: Vec<NodeObject>,
    pub tasks: Vec<Task>,
    pub recreations: u8,
    pub collections: u8,
    pub losses: u8,
    pub crashes: u8,
    pub bad: Option<Bad>,
    /// Tenants whose pods ran.
    pub served: u8,
    /// A collection came to its end.
    pub collected: bool,
    /// A write was refused because its target had changed.
    pub fenced: bool,
}

impl State {
    /// The smallest page name that occurs nowhere.
    pub fn fresh(&self, kind: PageKind, taken: &mut BTreeSet<PageName>) -> PageName {
        if taken.is_empty() {
            taken.extend(self.pages.keys().chain(self.root.pools.values()).cloned());
            for task in &self.tasks {
                match task {
                    Task::Committing { todo, created, root, .. } => {
                        taken.extend(todo.iter().map(|stored| stored.page.name.clone()));
                        taken.extend(created.iter().chain(root.pools.values()).cloned());
                    }
                    Task::Collecting { listed } => taken.extend(listed.iter().cloned()),
                    Task::Deleting { names } => taken.extend(names.iter().cloned()),
                    _ => {}
                }
            }
        }
        let name = (0..).map(|n| PageName::from(format!("{kind:?}-{n}"))).find(|name| !taken.contains(name)).unwrap();
        taken.insert(name.clone());
        name
    }

    /// Operators are alike, so their order is no part of the state.
    pub fn sort(&mut self) {
        self.tasks.sort_by_cached_key(|task| {
            let mut hasher = DefaultHasher::new();
            task.hash(&mut hasher);
            hasher.finish()
        });
    }
}
