//! The audit: every pod on a pool node is where it may be, or it is ended.
//!
//! What looks illegal in the watches' stores is only suspected; after a moment pod, namespace, node and root are read from the API server, and what is
//! illegal then is deleted. The rule itself is `spillway_manifests::audit::judge`.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use futures::StreamExt;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Node, Pod};
use kube::{
    Api, ResourceExt,
    api::{Patch, PatchParams},
    core::PartialObjectMeta,
    runtime::{
        WatchStreamExt,
        events::EventType,
        reflector::ObjectRef,
        watcher::{self, Event},
    },
};
use serde_json::{Value, json};
use spillway_crds::names::{
    AUDIT_BRAKE_CONFIGMAP, FIELD_MANAGER, HOLDER_LABEL, MIRROR_ANNOTATION, POOL_LABEL, ROLE_LABEL, ROLE_OWNER,
    ROLE_TENANT,
};
use spillway_manifests::{
    audit::{NodeHold, Resident, Whose, judge, may_delete},
    hold,
};
use spillway_planner::{Booking, NodeUid};
use tokio::sync::Notify;

use super::{change, state, subject};
use crate::{
    context::Context,
    error::{Error, call},
    pods::{PodFacts, devices, facts},
    view::View,
};

/// A pod is suspected for so long before it is looked at in earnest: evictions by the NoExecute taint, and the watches, get their time, and what
/// comes in one burst is judged in one go.
const SUSPICION: Duration = Duration::from_secs(2);
/// How often all nodes are looked at while nothing happens.
const RESYNC: Duration = Duration::from_secs(60);
/// Passes are at least so far apart.
const GATHER: Duration = Duration::from_millis(250);
/// Pods that a message names.
const NAMED: usize = 6;

/// Nodes whose pods or taints changed.
#[derive(Debug, Default)]
pub struct Dirty {
    nodes: Mutex<BTreeSet<Arc<str>>>,
    everything: AtomicBool,
    wake: Notify,
}

impl Dirty {
    /// A node is to be looked at.
    pub fn node(&self, name: &str) {
        self.nodes.lock().unwrap_or_else(PoisonError::into_inner).insert(Arc::from(name));
        self.wake.notify_one();
    }

    /// All are.
    pub fn all(&self) {
        self.everything.store(true, Ordering::Release);
        self.wake.notify_one();
    }

    /// All are at the next occasion, which somebody else makes.
    fn all_later(&self) {
        self.everything.store(true, Ordering::Release);
    }

    fn take(&self) -> (BTreeSet<Arc<str>>, bool) {
        let nodes = std::mem::take(&mut *self.nodes.lock().unwrap_or_else(PoisonError::into_inner));
        (nodes, self.everything.swap(false, Ordering::AcqRel))
    }
}

/// Whether a pod may be on a shared node; none: left alone, because its namespace has a part there, or had one that is being given back: the
/// node machine and the assignments have it.
fn assigned(view: &View, namespace: &str, node: &Node) -> Option<bool> {
    let uid = NodeUid::from(node.uid().unwrap_or_default());
    let of_namespace = |booking: &Booking| !booking.exclusive && *booking.reservation.namespace == *namespace;
    let has = view.bookings_on(&uid).any(|booking| of_namespace(booking));
    let had =
        || hold::read_parts(node).iter().filter_map(|part| view.booking(&part.booking)).any(|one| of_namespace(one));
    (!has && !had()).then_some(false)
}

/// Audits for ever.
pub(super) async fn run(context: Arc<Context>) {
    let named = watcher::Config::default().fields(&format!("metadata.name={AUDIT_BRAKE_CONFIGMAP}"));
    let api: Api<ConfigMap> = Api::namespaced(context.client.clone(), &context.config.namespace);
    let mut brakes = Box::pin(watcher::watcher(api, named).default_backoff());
    let mut views = context.view.clone();
    let mut audit = Audit::new(context);
    loop {
        let wait = audit.next_due();
        tokio::select! {
            event = brakes.next() => match event {
                Some(Ok(event)) => audit.take(event).await,
                Some(Err(error)) => tracing::warn!(kind = "ConfigMap", %error, "a watch failed; it is tried again"),
                None => return,
            },
            () = audit.context.guards.audit.wake.notified() => {}
            // Nothing is sold before the first look, and that waits for the ledger.
            changed = views.changed(), if audit.first_look.is_none() => if changed.is_err() { return },
            () = tokio::time::sleep(wait) => {}
        }
        if audit.first_look.is_some() {
            tokio::time::sleep(GATHER).await;
        }
        if let Err(error) = audit.pass().await {
            tracing::warn!(%error, "the audit could not go on; it is tried again");
        }
    }
}

/// A pod that looks illegal.
struct Suspect {
    since: Instant,
    /// When it is judged.
    due: Instant,
    node: Arc<str>,
    pod: PodFacts,
}

/// The hold of a node for which a pod was found legal by a read: while it is the same, the pod is not read again.
type Cleared = (Option<String>, Option<String>, Option<i64>);

struct Audit {
    context: Arc<Context>,
    suspects: HashMap<Arc<str>, Suspect>,
    cleared: HashMap<Arc<str>, Cleared>,
    /// When pods were deleted, in Unix milliseconds.
    deleted: Vec<i64>,
    braked: bool,
    /// A new leader, and one whose brake was taken off, looks at all nodes before anything is sold: when it did, and is not through with whom it
    /// suspects. None before.
    first_look: Option<Instant>,
    looking: bool,
    /// The brake, as long as it could not be written.
    unwritten: Option<Value>,
    relisted: bool,
    /// The brake is known to be on or off.
    relisted_once: bool,
    full: Instant,
}

/// A pod that is illegal for sure.
struct Illegal {
    pod: Pod,
    facts: PodFacts,
    node: Arc<str>,
    why: &'static str,
    /// Since when it was suspected.
    since: Instant,
}

impl Audit {
    fn new(context: Arc<Context>) -> Self {
        Self {
            context,
            suspects: HashMap::new(),
            cleared: HashMap::new(),
            deleted: Vec::new(),
            braked: false,
            first_look: None,
            looking: true,
            unwritten: None,
            relisted: false,
            relisted_once: false,
            full: Instant::now(),
        }
    }

    fn next_due(&self) -> Duration {
        let due = self.suspects.values().map(|suspect| suspect.due.saturating_duration_since(Instant::now())).min();
        let due = if self.looking { due.into_iter().chain([GATHER]).min() } else { due };
        let due = if self.unwritten.is_some() { due.into_iter().chain([SUSPICION]).min() } else { due };
        due.map_or(RESYNC, |due| due.max(Duration::from_millis(50))).min(RESYNC)
    }

    /// The brake is the `ConfigMap`: while it is there, sales stand; it is a person who deletes it.
    async fn take(&mut self, event: Event<ConfigMap>) {
        let pods =
            |brake: &ConfigMap| brake.data.as_ref().and_then(|data| data.get("pods").cloned()).unwrap_or_default();
        self.relisted_once |= matches!(event, Event::InitDone);
        match event {
            Event::Init => self.relisted = false,
            Event::InitApply(brake) => {
                self.relisted = true;
                self.brake(&pods(&brake)).await;
            }
            Event::Apply(brake) => self.brake(&pods(&brake)).await,
            Event::InitDone if self.relisted || !self.braked => {}
            Event::InitDone | Event::Delete(_) => self.release().await,
        }
    }

    async fn brake(&mut self, pods: &str) {
        (self.braked, self.looking) = (true, false);
        self.context.metrics.audit_brake.set(1);
        let doubt = state::braked(AUDIT_BRAKE_CONFIGMAP, &self.context.config.namespace, pods);
        change(&self.context, |state| state.brake = Some(doubt)).await;
    }

    async fn release(&mut self) {
        if self.braked {
            tracing::info!("the audit's brake was taken off");
        }
        (self.braked, self.looking, self.first_look) = (false, true, None);
        self.deleted.clear();
        self.suspects.clear();
        self.context.metrics.audit_brake.set(0);
        change(&self.context, |state| state.brake = Some(state::auditing())).await;
        self.context.guards.audit.all();
    }

    /// Looks at what changed, and in earnest at what has been suspected for long enough.
    async fn pass(&mut self) -> Result<(), Error> {
        if let Some(object) = self.unwritten.clone() {
            self.write_brake(&object).await?;
            self.unwritten = None;
        }
        let (mut nodes, everything) = self.context.guards.audit.take();
        let view = self.context.view();
        let observes = self.context.guards.state().observes();
        if view.ledger.is_none() || view.blocked.is_some() || observes {
            self.suspects.clear();
            self.context.guards.audit.all_later();
            if observes && self.looking && self.relisted_once {
                self.looking = false;
                change(&self.context, |state| state.brake = None).await;
            }
            return Ok(());
        }
        if everything || self.full.elapsed() > RESYNC || (self.looking && self.first_look.is_none()) {
            self.full = Instant::now();
            nodes = self.context.stores.nodes.state().iter().map(|node| Arc::from(node.name_any())).collect();
            let mut there = BTreeSet::new();
            for node in &nodes {
                there.extend(self.context.pods.on(node).into_iter().map(|pod| pod.uid));
            }
            self.cleared.retain(|uid, _| there.contains(uid));
            self.first_look = self.first_look.or_else(|| Some(Instant::now()));
        }
        for node in nodes {
            self.suspect(&view, &node);
        }
        let due: Vec<Arc<str>> = self
            .suspects
            .iter()
            .filter(|(_, suspect)| suspect.due <= Instant::now())
            .map(|(uid, _)| Arc::clone(uid))
            .collect();
        if !due.is_empty() {
            self.judge_due(&view, due).await?;
        }
        // Suspects of the first look are judged, and those who had to go went.
        let through = |at: Instant| self.suspects.values().all(|suspect| suspect.since > at);
        if self.looking && self.relisted_once && self.first_look.is_some_and(through) {
            self.looking = false;
            change(&self.context, |state| state.brake = None).await;
        }
        Ok(())
    }

    /// Judges those whose time has come, and ends who must go, or nobody if there are too many.
    async fn judge_due(&mut self, view: &View, due: Vec<Arc<str>>) -> Result<(), Error> {
        let gaps = self.context.pulse.gaps();
        let mut illegal = Vec::new();
        for uid in due {
            let Some(suspect) = self.suspects.remove(&uid) else { continue };
            match self.confirm(view, &suspect).await {
                Ok(found) => illegal.extend(found),
                Err(error) => {
                    // Not known: it stays suspected.
                    self.suspects.insert(uid, Suspect { due: Instant::now() + SUSPICION, ..suspect });
                    tracing::debug!(%error, "a pod could not be judged");
                }
            }
        }
        let count = |all: &[Illegal]| i64::try_from(all.len()).unwrap_or(i64::MAX);
        self.context.metrics.audit_illegal.set(count(&illegal));
        if illegal.is_empty() {
            return Ok(());
        }
        let expected = self.context.view().generation;
        let found = self.context.fence.generation().await?;
        // The brake is this one's own: while it only looks, it may end who must go.
        let state = self.context.guards.state();
        let sure = state.policies.is_none() && state.tested.is_none() && !state.observes() && !self.braked;
        if !sure || expected != found || self.context.pulse.gaps() != gaps {
            // While something is in doubt no pod is deleted: they are judged again.
            for one in illegal {
                let due = Instant::now() + SUSPICION;
                let suspect = Suspect { since: one.since, due, node: one.node, pod: one.facts };
                self.suspects.insert(Arc::clone(&suspect.pod.uid), suspect);
            }
            return Ok(());
        }
        let now_ms = jiff::Timestamp::now().as_millisecond();
        if !may_delete(&self.deleted, illegal.len(), now_ms) {
            return self.pull_brake(&illegal).await;
        }
        for one in illegal {
            self.end(&one).await?;
            self.deleted.push(now_ms);
        }
        self.deleted.retain(|at| now_ms.saturating_sub(*at) < spillway_manifests::audit::WINDOW_MS);
        Ok(())
    }

    /// Suspects the pods of a node that may be illegal, by what the watches have; what these do not have is taken for the worst.
    fn suspect(&mut self, view: &View, name: &Arc<str>) {
        let pods = self.context.pods.on(name);
        let node = self.context.stores.nodes.get(&ObjectRef::new(name));
        let node = node.filter(|node| node.labels().contains_key(POOL_LABEL));
        let Some(node) = node else {
            self.suspects.retain(|_, suspect| suspect.node != *name);
            return;
        };
        let hold = hold_of(&node);
        let mut still = BTreeSet::new();
        for pod in pods {
            let namespace = self.context.namespace(&pod.namespace);
            let (whose, holder) = whose(&self.context, &pod.namespace, namespace.as_deref());
            let resident = Resident {
                whose,
                holder: holder.as_deref(),
                devices: !pod.devices.is_empty(),
                mirror: false,
                leaving: pod.deleting.is_some(),
                assigned: assigned(view, &pod.namespace, &node),
                bound_ms: Some(i64::MAX),
            };
            let cleared = self.cleared.get(&pod.uid).is_some_and(|cleared| *cleared == key(&hold));
            if !cleared && judge(&resident, &hold).is_some() {
                still.insert(Arc::clone(&pod.uid));
                let (since, node) = (Instant::now(), Arc::clone(name));
                let suspect = || Suspect { since, due: since + SUSPICION, node, pod: pod.clone() };
                self.suspects.entry(Arc::clone(&pod.uid)).or_insert_with(suspect);
            }
        }
        self.suspects.retain(|uid, suspect| suspect.node != *name || still.contains(uid));
    }

    /// Judges a pod by what the API server has now.
    async fn confirm(&mut self, view: &View, suspect: &Suspect) -> Result<Option<Illegal>, Error> {
        let client = || self.context.client.clone();
        let pods: Api<Pod> = Api::namespaced(client(), &suspect.pod.namespace);
        let Some(pod) = call("reading a pod", pods.get_opt(&suspect.pod.name)).await? else { return Ok(None) };
        let Some(now) = facts(&pod, &self.context.config.device_prefixes) else { return Ok(None) };
        let Some(on) = now.node.clone().filter(|on| *on == suspect.node && now.uid == suspect.pod.uid) else {
            return Ok(None);
        };
        let nodes: Api<Node> = Api::all(client());
        let Some(node) = call("reading a node", nodes.get_opt(&on)).await? else { return Ok(None) };
        if !node.labels().contains_key(POOL_LABEL) {
            return Ok(None);
        }
        let namespaces: Api<Namespace> = Api::all(client());
        let found = call("reading a namespace", namespaces.get_metadata_opt(&now.namespace)).await?;
        let (whose, holder) = whose(&self.context, &now.namespace, found.as_ref());
        let resident = Resident {
            whose,
            holder: holder.as_deref(),
            devices: !devices(&pod, &self.context.config.device_prefixes).is_empty(),
            mirror: pod.annotations().contains_key(MIRROR_ANNOTATION),
            leaving: now.deleting.is_some(),
            assigned: assigned(view, &now.namespace, &node),
            bound_ms: bound_ms(&pod),
        };
        let hold = hold_of(&node);
        match judge(&resident, &hold) {
            Some(why) => Ok(Some(Illegal { pod, facts: now, node: on, why, since: suspect.since })),
            None => {
                self.cleared.insert(Arc::clone(&now.uid), key(&hold));
                Ok(None)
            }
        }
    }

    /// Ends a pod that is where it may not be.
    async fn end(&self, one: &Illegal) -> Result<(), Error> {
        let (namespace, name) = (&one.facts.namespace, &one.facts.name);
        if !self.context.end_pod(&one.facts, "deleting a pod that may not be where it is").await? {
            return Ok(());
        }
        self.context.metrics.audit_deleted.inc();
        tracing::error!(%namespace, %name, node = %one.node, why = one.why, "a pod was where it may not be, and was deleted");
        let note = format!("It is on node {} and is ended: {}.", one.node, one.why);
        self.context.event(&one.pod, EventType::Warning, "IllegalPod", &note, "Delete").await;
        Ok(())
    }

    /// Too many: whoever is wrong, it is not for a program to go on.
    async fn pull_brake(&mut self, illegal: &[Illegal]) -> Result<(), Error> {
        let named = |one: &Illegal| format!("{}/{} on {}", one.facts.namespace, one.facts.name, one.node);
        let mut pods: Vec<String> = illegal.iter().map(named).collect();
        pods.sort();
        let more = pods.len().saturating_sub(NAMED);
        pods.truncate(NAMED);
        let mut pods = pods.join(", ");
        if more > 0 {
            pods = format!("{pods} and {more} more");
        }
        self.brake(&pods).await;
        let namespace = &self.context.config.namespace;
        tracing::error!(pods, "too many pods are where they may not be: none is deleted, and nothing is sold");
        let (reason, message) = state::braked(AUDIT_BRAKE_CONFIGMAP, namespace, &pods);
        let note = format!("Nothing new is sold: {message}");
        self.context.event(&subject(&self.context), EventType::Warning, reason, &note, "Stop").await;
        let object = json!({
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": AUDIT_BRAKE_CONFIGMAP, "namespace": namespace},
            "data": {
                "pods": pods,
                "since": jiff::Timestamp::now().to_string(),
                "what": "More pods than the audit deletes in a minute are where they may not be. None is deleted and nothing is sold. Find out why, end them, then delete this ConfigMap.",
            },
        });
        let written = self.write_brake(&object).await;
        // Until a person can take it off, it must be there to be taken off.
        self.unwritten = written.is_err().then_some(object);
        written
    }

    async fn write_brake(&self, object: &Value) -> Result<(), Error> {
        let api: Api<ConfigMap> = Api::namespaced(self.context.client.clone(), &self.context.config.namespace);
        let params = PatchParams::apply(FIELD_MANAGER).force();
        let patch = Patch::Apply(object);
        let written = call("writing the audit's brake", api.patch(AUDIT_BRAKE_CONFIGMAP, &params, &patch)).await;
        written.map(drop)
    }
}

fn hold_of(node: &Node) -> NodeHold<'_> {
    let (no_schedule, no_execute) = hold::read_taints(node);
    NodeHold { no_schedule, no_execute, since_ms: hold::hold_since(node) }
}

fn key(hold: &NodeHold<'_>) -> Cleared {
    (hold.no_schedule.map(str::to_owned), hold.no_execute.map(str::to_owned), hold.since_ms)
}

/// Whose a namespace is, and its holder id.
fn whose(context: &Context, name: &str, found: Option<&PartialObjectMeta<Namespace>>) -> (Whose, Option<String>) {
    if context.config.infrastructure.contains(name) {
        return (Whose::Infrastructure, None);
    }
    let Some(found) = found else { return (Whose::Unknown, None) };
    let whose = match found.labels().get(ROLE_LABEL).map(String::as_str) {
        Some(ROLE_OWNER) => Whose::Owner,
        Some(ROLE_TENANT) => Whose::Tenant,
        _ => Whose::Nobody,
    };
    (whose, found.labels().get(HOLDER_LABEL).cloned())
}

/// When a pod was bound: its condition says so, or at least when its kubelet began or when it was made.
fn bound_ms(pod: &Pod) -> Option<i64> {
    let status = pod.status.as_ref();
    let scheduled = status
        .and_then(|status| status.conditions.as_ref())
        .and_then(|all| all.iter().find(|condition| condition.type_ == "PodScheduled" && condition.status == "True"))
        .and_then(|condition| condition.last_transition_time.as_ref());
    scheduled
        .or_else(|| status.and_then(|status| status.start_time.as_ref()))
        .or(pod.metadata.creation_timestamp.as_ref())
        .map(|time| time.0.as_millisecond())
}
