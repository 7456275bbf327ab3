//! Which pods are on which node, and which pods with devices wait for one, by watch: only what the other parts need of them, so that 100,000
//! pods stay small.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{Arc, PoisonError, RwLock},
};

use k8s_openapi::api::core::v1::Pod;
use kube::{ResourceExt, runtime::watcher::Event};
use spillway_crds::names::{HOLD_NODE_PREFIX, HOLD_TAINT, RESERVATION_LABEL};
use spillway_manifests::validate::{mib, milli, whole};

/// What is kept of a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodFacts {
    /// Namespace.
    pub namespace: Arc<str>,
    /// Name.
    pub name: Arc<str>,
    /// UID.
    pub uid: Arc<str>,
    /// When it was created, in Unix milliseconds.
    pub created_ms: i64,
    /// The node that it is bound to.
    pub node: Option<Arc<str>>,
    /// The reservation that it asks for by its label.
    pub reservation: Option<Arc<str>>,
    /// UIDs of the shared nodes whose toleration it was given.
    pub admitted: Vec<Arc<str>>,
    /// CPU that it requests, in thousandths of a core.
    pub cpu_milli: i64,
    /// Memory that it requests, in MiB.
    pub memory_mib: i64,
    /// Whether each of its containers is limited in CPU and memory.
    pub limited: bool,
    /// Its priority.
    pub priority: i32,
    /// Devices by resource name.
    pub devices: BTreeMap<Arc<str>, u32>,
    /// The grace period that the pod asks for, in seconds.
    pub grace_seconds: i64,
    /// The grace period of its deletion, once it is being deleted.
    pub deleting: Option<i64>,
}

/// Devices that a pod takes: the larger of its containers' sum and each init container, sidecars counted with the containers.
pub fn devices(pod: &Pod, prefixes: &[String]) -> BTreeMap<Arc<str>, u32> {
    let mut sum: BTreeMap<Arc<str>, u32> = BTreeMap::new();
    let mut peak: BTreeMap<Arc<str>, u32> = BTreeMap::new();
    let Some(spec) = pod.spec.as_ref() else { return sum };
    let limits = |container: &k8s_openapi::api::core::v1::Container| -> Vec<(Arc<str>, u32)> {
        container
            .resources
            .iter()
            .filter_map(|resources| resources.limits.as_ref())
            .flatten()
            .filter(|(key, _)| prefixes.iter().any(|prefix| key.starts_with(prefix)))
            .filter_map(|(key, quantity)| Some((Arc::from(key.as_str()), whole(Some(quantity))?)))
            .collect()
    };
    for container in &spec.containers {
        for (key, count) in limits(container) {
            *sum.entry(key).or_default() += count;
        }
    }
    for container in spec.init_containers.iter().flatten() {
        let sidecar = container.restart_policy.as_deref() == Some("Always");
        for (key, count) in limits(container) {
            if sidecar {
                *sum.entry(key).or_default() += count;
            } else {
                let entry = peak.entry(key).or_default();
                *entry = (*entry).max(count);
            }
        }
    }
    for (key, count) in peak {
        let entry = sum.entry(key).or_default();
        *entry = (*entry).max(count);
    }
    sum
}

/// What a pod requests of CPU (thousandths) and memory (MiB), counted as its devices are, with the overhead of its runtime class.
fn requests(pod: &Pod) -> (i64, i64) {
    let Some(spec) = pod.spec.as_ref() else { return (0, 0) };
    let of = |container: &k8s_openapi::api::core::v1::Container| {
        let requests = container.resources.as_ref().and_then(|resources| resources.requests.as_ref());
        let get = |key: &str| requests.and_then(|requests| requests.get(key));
        (get("cpu").map_or(0, milli), get("memory").map_or(0, mib))
    };
    let add = |one: (i64, i64), other: (i64, i64)| (one.0.saturating_add(other.0), one.1.saturating_add(other.1));
    let mut sum = spec.containers.iter().map(of).fold((0, 0), add);
    let mut peak = (0, 0);
    for container in spec.init_containers.iter().flatten() {
        if container.restart_policy.as_deref() == Some("Always") {
            sum = add(sum, of(container));
        } else {
            let one = of(container);
            peak = (one.0.max(peak.0), one.1.max(peak.1));
        }
    }
    let overhead = spec.overhead.as_ref();
    let more = |key: &str| overhead.and_then(|overhead| overhead.get(key));
    add((sum.0.max(peak.0), sum.1.max(peak.1)), (more("cpu").map_or(0, milli), more("memory").map_or(0, mib)))
}

/// Whether each container of a pod is limited in CPU and memory.
fn is_limited(pod: &Pod) -> bool {
    let Some(spec) = pod.spec.as_ref() else { return false };
    spec.containers.iter().chain(spec.init_containers.iter().flatten()).all(|container| {
        let limits = container.resources.as_ref().and_then(|resources| resources.limits.as_ref());
        limits.is_some_and(|limits| limits.contains_key("cpu") && limits.contains_key("memory"))
    })
}

/// What is kept of a pod; none for one whose containers are over, and for one that waits for a node and wants no devices.
pub fn facts(pod: &Pod, prefixes: &[String]) -> Option<PodFacts> {
    let spec = pod.spec.as_ref()?;
    let node = spec.node_name.as_deref().filter(|node| !node.is_empty());
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    if matches!(phase, Some("Succeeded" | "Failed")) {
        return None;
    }
    let devices = devices(pod, prefixes);
    if node.is_none() && devices.is_empty() {
        return None;
    }
    let (cpu_milli, memory_mib) = requests(pod);
    let admitted = spec
        .tolerations
        .iter()
        .flatten()
        .filter(|toleration| toleration.key.as_deref() == Some(HOLD_TAINT))
        .filter_map(|toleration| toleration.value.as_deref()?.strip_prefix(HOLD_NODE_PREFIX))
        .map(Arc::from)
        .collect();
    Some(PodFacts {
        namespace: Arc::from(pod.namespace().unwrap_or_default()),
        name: Arc::from(pod.name_any()),
        uid: Arc::from(pod.uid().unwrap_or_default()),
        created_ms: pod.metadata.creation_timestamp.as_ref().map_or(0, |time| time.0.as_millisecond()),
        node: node.map(Arc::from),
        reservation: pod.labels().get(RESERVATION_LABEL).map(|name| Arc::from(name.as_str())),
        admitted,
        cpu_milli,
        memory_mib,
        limited: is_limited(pod),
        priority: spec.priority.unwrap_or(0),
        devices,
        grace_seconds: spec.termination_grace_period_seconds.unwrap_or(30),
        deleting: pod
            .metadata
            .deletion_timestamp
            .as_ref()
            .map(|_| pod.metadata.deletion_grace_period_seconds.unwrap_or(0)),
    })
}

#[derive(Debug, Default)]
struct Tables {
    all: HashMap<Arc<str>, PodFacts>,
    by_node: HashMap<Arc<str>, BTreeSet<Arc<str>>>,
    /// Pods with devices, by namespace.
    by_namespace: HashMap<Arc<str>, BTreeSet<Arc<str>>>,
}

fn strike(index: &mut HashMap<Arc<str>, BTreeSet<Arc<str>>>, key: &str, uid: &str) {
    if let Some(pods) = index.get_mut(key) {
        pods.remove(uid);
        if pods.is_empty() {
            index.remove(key);
        }
    }
}

impl Tables {
    fn remove(&mut self, uid: &str) -> Option<PodFacts> {
        let pod = self.all.remove(uid)?;
        if let Some(node) = &pod.node {
            strike(&mut self.by_node, node, uid);
        }
        strike(&mut self.by_namespace, &pod.namespace, uid);
        Some(pod)
    }

    fn insert(&mut self, pod: PodFacts) {
        if let Some(node) = &pod.node {
            self.by_node.entry(Arc::clone(node)).or_default().insert(Arc::clone(&pod.uid));
        }
        if !pod.devices.is_empty() {
            self.by_namespace.entry(Arc::clone(&pod.namespace)).or_default().insert(Arc::clone(&pod.uid));
        }
        self.all.insert(Arc::clone(&pod.uid), pod);
    }

    fn pick<'a>(&'a self, uids: Option<&'a BTreeSet<Arc<str>>>) -> impl Iterator<Item = &'a PodFacts> {
        uids.into_iter().flatten().filter_map(|uid| self.all.get(uid))
    }
}

#[derive(Debug, Default)]
struct State {
    live: Tables,
    /// What a relist has brought so far; it replaces `live` when it is done.
    relist: Tables,
}

/// What a watch event changed.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Touched {
    /// Nodes whose pods changed.
    pub nodes: BTreeSet<Arc<str>>,
    /// Namespaces whose pods with devices changed.
    pub namespaces: BTreeSet<Arc<str>>,
}

impl Touched {
    fn add(&mut self, pod: &PodFacts) {
        self.nodes.extend(pod.node.clone());
        if !pod.devices.is_empty() {
            self.namespaces.insert(Arc::clone(&pod.namespace));
        }
    }
}

/// The pods of each node, and those with devices of each namespace.
#[derive(Debug, Default)]
pub struct PodIndex {
    state: RwLock<State>,
}

impl PodIndex {
    /// Takes in a watch event.
    pub fn take(&self, event: &Event<Pod>, prefixes: &[String]) -> Touched {
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        let State { live, relist } = &mut *state;
        let mut touched = Touched::default();
        match event {
            Event::Init => *relist = Tables::default(),
            Event::InitApply(pod) => {
                if let Some(pod) = facts(pod, prefixes) {
                    relist.insert(pod);
                }
            }
            Event::InitDone => {
                let before = std::mem::replace(live, std::mem::take(relist));
                for pod in live.all.values().chain(before.all.values()) {
                    touched.add(pod);
                }
            }
            Event::Apply(pod) => {
                let before = live.remove(&pod.uid().unwrap_or_default());
                let now = facts(pod, prefixes);
                if before != now {
                    for pod in before.iter().chain(&now) {
                        touched.add(pod);
                    }
                }
                if let Some(pod) = now {
                    live.insert(pod);
                }
            }
            Event::Delete(pod) => {
                if let Some(pod) = live.remove(&pod.uid().unwrap_or_default()) {
                    touched.add(&pod);
                }
            }
        }
        touched
    }

    /// The pods of a node.
    pub fn on(&self, node: &str) -> Vec<PodFacts> {
        let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
        state.live.pick(state.live.by_node.get(node)).cloned().collect()
    }

    /// The pods with devices of a namespace, on nodes and waiting.
    pub fn in_namespace(&self, namespace: &str) -> Vec<PodFacts> {
        let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
        state.live.pick(state.live.by_namespace.get(namespace)).cloned().collect()
    }

    /// Whether a namespace has pods with devices, on nodes or waiting. Where it has none, nobody is to be given room on shared nodes.
    pub fn any_in(&self, namespace: &str) -> bool {
        let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
        state.live.by_namespace.get(namespace).is_some_and(|pods| !pods.is_empty())
    }

    /// Whether a namespace has pods that were given the toleration of a shared node.
    pub fn any_admitted_in(&self, namespace: &str) -> bool {
        let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
        state.live.pick(state.live.by_namespace.get(namespace)).any(|pod| !pod.admitted.is_empty())
    }

    /// Whether a pod is there whose containers are not over.
    pub fn has(&self, uid: &str) -> bool {
        self.state.read().unwrap_or_else(PoisonError::into_inner).live.all.contains_key(uid)
    }

    /// A pod whose containers are not over.
    pub fn get(&self, uid: &str) -> Option<PodFacts> {
        self.state.read().unwrap_or_else(PoisonError::into_inner).live.all.get(uid).cloned()
    }
}

#[cfg(test)]
mod tests;
