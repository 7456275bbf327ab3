//! What the controllers share.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use k8s_openapi::api::core::v1::{Namespace, Node, Pod};
use kube::{
    Api, Client, ResourceExt,
    api::{DeleteParams, Preconditions},
    core::PartialObjectMeta,
    runtime::{
        events::{Event, EventType, Recorder},
        reflector::{ObjectRef, Store},
    },
};
use spillway_crds::{GpuNode, GpuPool, GpuReservation, Tenant, names::SELFTEST_NAMESPACE};
use spillway_planner::{
    Booking, NodeUid, Reason, ReservationUid, TenantName,
    assign::{Gone, Record},
};
use tokio::sync::{mpsc, watch};

use crate::{
    backlog::Backlog,
    changes::{Changed, Sharing},
    config::Config,
    ended::About,
    engine,
    error::{Error, call},
    fence::{Fence, Pulse},
    guards::Guards,
    hosted::Hosted,
    metrics::Metrics,
    pods::{PodFacts, PodIndex},
    view::View,
    watches::Queue,
    written::Written,
};

/// The watched objects.
#[derive(Clone)]
pub struct Stores {
    /// Pools.
    pub pools: Store<GpuPool>,
    /// Reservations.
    pub reservations: Store<GpuReservation>,
    /// Tenants.
    pub tenants: Store<Tenant>,
    /// All nodes.
    pub nodes: Store<Node>,
    /// Answers of the agents.
    pub gpu_nodes: Store<GpuNode>,
    /// Namespaces, without what is in them.
    pub namespaces: Store<PartialObjectMeta<Namespace>>,
}

/// The controllers' queues.
#[derive(Clone)]
pub struct Queues {
    /// Nodes to look at.
    pub nodes: Queue<Node>,
    /// Reservations to look at.
    pub reservations: Queue<GpuReservation>,
    /// Pools to look at.
    pub pools: Queue<GpuPool>,
    /// Tenants to look at.
    pub tenants: Queue<Tenant>,
    /// Namespaces whose pods may want room on shared nodes.
    pub namespaces: Queue<PartialObjectMeta<Namespace>>,
}

impl Queues {
    /// Has the namespace of a booking of parts looked at, if it has pods that may want room, or have it.
    pub async fn push_sharer(&self, booking: &Booking, pods: &PodIndex) {
        let namespace = &booking.reservation.namespace;
        if !booking.exclusive && pods.any_in(namespace) {
            self.namespaces.push(namespace).await;
        }
    }
}

/// What a node is being asked and why a node was given up: rebuilt by asking again.
#[derive(Debug, Default)]
pub struct NodeMemory {
    /// The question that the agent of a node was asked, and since when.
    pub asked: HashMap<NodeUid, Asked>,
    /// Of what the next question to the agent of a node is.
    pub about: HashMap<NodeUid, About>,
    /// Why a node cannot be handed over.
    pub problem: HashMap<NodeUid, String>,
    /// Pods that had room on a shared node, and whose containers were seen to be gone.
    pub gone: Gone,
}

/// Pods that wait for room on shared nodes, by namespace and reservation: how many, and why the first of them. Found anew by looking again.
pub type Waiting = HashMap<String, BTreeMap<ReservationUid, (usize, Reason)>>;

/// A question to an agent.
#[derive(Clone, Debug)]
pub struct Asked {
    /// Its id.
    pub id: String,
    /// The state of the node for which it was asked: the time of its last change of taints.
    pub hold_since: i64,
    /// Of which bookings and pods it is to say that nothing of them is left; empty: of all.
    pub about: About,
    /// When, in Unix milliseconds.
    pub at: i64,
    /// When the first question about this state was asked.
    pub first: i64,
}

/// Spaces out what would be done at each of many changes: at once the first time, then at most once in a gap.
#[derive(Debug)]
pub struct Throttle {
    gap: Duration,
    last: Mutex<HashMap<String, Instant>>,
}

impl Throttle {
    /// One that lets a key pass once in `gap`.
    pub fn new(gap: Duration) -> Self {
        Self { gap, last: Mutex::default() }
    }

    /// How long the key must wait still; `None`: it passes, and the gap starts anew.
    pub fn wait(&self, key: &str) -> Option<Duration> {
        let mut last = self.last.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let now = Instant::now();
        if let Some(left) = last.get(key).and_then(|at| self.gap.checked_sub(now.duration_since(*at))) {
            return Some(left.max(Duration::from_millis(10)));
        }
        last.retain(|_, at| now.duration_since(*at) < self.gap);
        last.insert(key.to_owned(), now);
        None
    }
}

/// What the controllers share.
pub struct Context {
    /// The API server.
    pub client: Client,
    /// What an installation may vary.
    pub config: Config,
    /// The watched objects.
    pub stores: Stores,
    /// Models, and who serves them.
    pub hosted: Hosted,
    /// The pods of each node.
    pub pods: Arc<PodIndex>,
    /// The controllers' queues.
    pub queues: Queues,
    /// What was decided last.
    pub view: watch::Receiver<Arc<View>>,
    /// What the watches have changed since the engine last looked.
    pub changed: Arc<Changed>,
    /// The engine's ear.
    pub engine: mpsc::Sender<engine::Message>,
    /// Stands before writes.
    pub fence: Fence,
    /// Notices pauses.
    pub pulse: Arc<Pulse>,
    /// What `/metrics` shows.
    pub metrics: Arc<Metrics>,
    /// Writes Events.
    pub recorder: Recorder,
    /// What the guards found.
    pub guards: Arc<Guards>,
    /// What nodes are being asked.
    pub nodes: Mutex<NodeMemory>,
    /// Pods that wait for room on shared nodes.
    pub waiting: Mutex<Waiting>,
    /// Lets an Event say once in a while why a pod waits.
    pub pod_events: Throttle,
    /// Lets a reservation's status be written for its wording alone once a minute.
    pub wording: Throttle,
    /// Lets a pool's status be reckoned once in five seconds while its nodes come and go.
    pub statements: Throttle,
    /// Lets a tenant be looked at once in five seconds while its bookings come and go.
    pub tenancies: Throttle,
    /// Reservations that were written and have not come back.
    pub written: Written,
    /// Reservations that were booked and have not been told so.
    pub backlog: Backlog,
    /// The reservations of each namespace that do not have their nodes for themselves, by name.
    pub sharing: Arc<Sharing>,
}

impl Context {
    /// What was decided last.
    pub fn view(&self) -> Arc<View> {
        Arc::clone(&self.view.borrow())
    }

    /// Tells the engine something. What does not fit into its queue is told again at the next look: to wait here while the engine waits for
    /// a controller's queue would stop both.
    pub fn tell(&self, message: engine::Message) {
        let _ = self.engine.try_send(message);
    }

    /// Writes an Event; one that cannot be written is logged, no more.
    pub async fn event(
        &self,
        object: &impl kube::Resource<DynamicType = ()>,
        type_: EventType,
        reason: &str,
        note: &str,
        action: &str,
    ) {
        let event = Event {
            type_,
            reason: reason.to_owned(),
            note: Some(spillway_manifests::conditions::bounded(note, 1000)),
            action: action.to_owned(),
            secondary: None,
        };
        if let Err(error) = self.recorder.publish(&event, &object.object_ref(&())).await {
            tracing::debug!(%error, reason, "an Event could not be written");
        }
    }

    /// Deletes a pod with its own grace, within the cap: the first grace that a kubelet is given is final. Gives whether it was there still.
    ///
    /// # Errors
    /// When the API server cannot be told.
    pub async fn end_pod(&self, pod: &PodFacts, action: &'static str) -> Result<bool, Error> {
        let cap = i64::from(self.config.grace_cap_seconds).max(1);
        let params = DeleteParams {
            grace_period_seconds: u32::try_from(pod.grace_seconds.clamp(1, cap)).ok(),
            preconditions: Some(Preconditions { uid: Some(pod.uid.to_string()), resource_version: None }),
            ..DeleteParams::default()
        };
        let api: Api<Pod> = Api::namespaced(self.client.clone(), &pod.namespace);
        match call(action, api.delete(&pod.name, &params)).await {
            Err(error) if error.is_not_found() || error.is_conflict() => Ok(false),
            result => result.map(|_| true),
        }
    }

    /// The view on which a write may stand that was decided on objects that were read before: the root is read now, and the view is no older.
    ///
    /// # Errors
    /// When the root cannot be read, the view does not come, nothing may be sold, or the process was paused since `gaps` was taken.
    pub async fn settled(&self, action: &'static str, gaps: u64) -> Result<Arc<View>, Error> {
        let expected = self.view().generation;
        let found = self.fence.generation().await?;
        let fenced = Error::Fenced { action, expected, found };
        let mut views = self.view.clone();
        let caught_up = tokio::time::timeout(Duration::from_millis(500), async {
            views.wait_for(|view| view.generation >= found).await.map(|view| Arc::clone(&view))
        })
        .await;
        let Some(view) = caught_up.ok().and_then(Result::ok) else {
            self.tell(engine::Message::Reload);
            return Err(fenced);
        };
        // What this process committed since the read is in its view already; a root that went back is another ledger.
        let same = found >= expected
            && view.generation >= found
            && view.blocked.is_none()
            && self.guards.allow_writes()
            && self.pulse.gaps() == gaps;
        if same { Ok(view) } else { Err(fenced) }
    }

    /// Pods that had room on shared nodes, and whose containers were seen to be gone.
    pub fn pods_seen_gone(&self) -> Gone {
        self.node_memory().gone.clone()
    }

    /// Forgets pods of whose room nothing is recorded any more.
    pub fn forget_gone(&self, before: &[Record], now: &BTreeSet<(&str, &str)>) {
        let mut memory = self.node_memory();
        for Record { node, pod_uid, .. } in
            before.iter().filter(|one| !now.contains(&(one.node.as_str(), &one.pod_uid)))
        {
            memory.gone.remove(&(node.clone(), Arc::clone(pod_uid)));
        }
    }

    /// Keeps in mind which pods of a namespace wait; gives the reservations of which something else is to be said now.
    pub fn note_waiting(
        &self,
        namespace: &str,
        notes: &BTreeMap<ReservationUid, (usize, Reason)>,
    ) -> Vec<ReservationUid> {
        let mut waiting = self.waiting.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let before = if notes.is_empty() {
            waiting.remove(namespace)
        } else {
            waiting.insert(namespace.to_owned(), notes.clone())
        };
        let before = before.unwrap_or_default();
        let all: BTreeSet<&ReservationUid> = before.keys().chain(notes.keys()).collect();
        all.into_iter().filter(|uid| before.get(*uid) != notes.get(*uid)).cloned().collect()
    }

    /// Forgets the waiting pods of a namespace.
    pub fn forget_waiting(&self, namespace: &str) {
        self.waiting.lock().unwrap_or_else(std::sync::PoisonError::into_inner).remove(namespace);
    }

    /// How many pods wait for room of a reservation, and why the first of them.
    pub fn waiting_for(&self, namespace: &str, reservation: &ReservationUid) -> Option<(usize, Reason)> {
        let waiting = self.waiting.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        waiting.get(namespace)?.get(reservation).cloned()
    }

    /// What a node is being asked.
    pub fn node_memory(&self) -> std::sync::MutexGuard<'_, NodeMemory> {
        self.nodes.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// A namespace's labels and UID.
    pub fn namespace(&self, name: &str) -> Option<Arc<PartialObjectMeta<Namespace>>> {
        self.stores.namespaces.get(&ObjectRef::new(name))
    }
}

/// Which tenant each namespace belongs to: the oldest Tenant that lists it; an infrastructure namespace, and that of the self-test, belong to
/// nobody.
pub fn owners(tenants: &[Arc<Tenant>], config: &Config) -> BTreeMap<String, (TenantName, bool)> {
    let mut sorted: Vec<&Arc<Tenant>> = tenants.iter().collect();
    sorted.sort_by_key(|tenant| (tenant.metadata.creation_timestamp.as_ref().map(|time| time.0), tenant.name_any()));
    let mut owners = BTreeMap::new();
    for tenant in sorted {
        for namespace in &tenant.spec.namespaces {
            if !config.infrastructure.contains(namespace) && namespace != SELFTEST_NAMESPACE {
                owners
                    .entry(namespace.clone())
                    .or_insert_with(|| (TenantName::from(tenant.name_any()), tenant.spec.owner));
            }
        }
    }
    owners
}

#[cfg(test)]
mod tests;
