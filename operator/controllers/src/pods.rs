//! Which pods are on which node, by watch: only what the other parts need of them, so that 100,000 pods stay small.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, PoisonError, RwLock},
};

use k8s_openapi::api::core::v1::Pod;
use kube::{ResourceExt, runtime::watcher::Event};
use spillway_manifests::validate::whole;

/// What is kept of a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodFacts {
    /// Namespace.
    pub namespace: Arc<str>,
    /// Name.
    pub name: Arc<str>,
    /// UID.
    pub uid: Arc<str>,
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

/// What is kept of a pod; none for one that is on no node or whose containers are over.
pub fn facts(pod: &Pod, prefixes: &[String]) -> Option<(Arc<str>, PodFacts)> {
    let spec = pod.spec.as_ref()?;
    let node = spec.node_name.as_deref().filter(|node| !node.is_empty())?;
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    if matches!(phase, Some("Succeeded" | "Failed")) {
        return None;
    }
    Some((
        Arc::from(node),
        PodFacts {
            namespace: Arc::from(pod.namespace().unwrap_or_default()),
            name: Arc::from(pod.name_any()),
            uid: Arc::from(pod.uid().unwrap_or_default()),
            devices: devices(pod, prefixes),
            grace_seconds: spec.termination_grace_period_seconds.unwrap_or(30),
            deleting: pod
                .metadata
                .deletion_timestamp
                .as_ref()
                .map(|_| pod.metadata.deletion_grace_period_seconds.unwrap_or(0)),
        },
    ))
}

#[derive(Debug, Default)]
struct Tables {
    by_node: HashMap<Arc<str>, BTreeMap<Arc<str>, PodFacts>>,
    node_of: HashMap<Arc<str>, Arc<str>>,
}

impl Tables {
    fn remove(&mut self, uid: &str) -> Option<Arc<str>> {
        let node = self.node_of.remove(uid)?;
        if let Some(pods) = self.by_node.get_mut(&node) {
            pods.remove(uid);
            if pods.is_empty() {
                self.by_node.remove(&node);
            }
        }
        Some(node)
    }

    fn insert(&mut self, node: Arc<str>, pod: PodFacts) {
        self.node_of.insert(Arc::clone(&pod.uid), Arc::clone(&node));
        self.by_node.entry(node).or_default().insert(Arc::clone(&pod.uid), pod);
    }
}

#[derive(Debug, Default)]
struct State {
    live: Tables,
    /// What a relist has brought so far; it replaces `live` when it is done.
    relist: Tables,
}

/// The pods of each node.
#[derive(Debug, Default)]
pub struct PodIndex {
    state: RwLock<State>,
}

impl PodIndex {
    /// Takes in a watch event; returns the nodes whose pods changed.
    pub fn take(&self, event: &Event<Pod>, prefixes: &[String]) -> Vec<Arc<str>> {
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        let State { live, relist } = &mut *state;
        let mut touched = Vec::new();
        match event {
            Event::Init => *relist = Tables::default(),
            Event::InitApply(pod) => {
                if let Some((node, pod)) = facts(pod, prefixes) {
                    relist.insert(node, pod);
                }
            }
            Event::InitDone => {
                let before = std::mem::replace(live, std::mem::take(relist));
                touched.extend(live.by_node.keys().chain(before.by_node.keys()).cloned());
                touched.sort();
            }
            Event::Apply(pod) => {
                touched.extend(live.remove(&pod.uid().unwrap_or_default()));
                if let Some((node, pod)) = facts(pod, prefixes) {
                    touched.push(Arc::clone(&node));
                    live.insert(node, pod);
                }
            }
            Event::Delete(pod) => touched.extend(live.remove(&pod.uid().unwrap_or_default())),
        }
        touched.dedup();
        touched
    }

    /// The pods of a node.
    pub fn on(&self, node: &str) -> Vec<PodFacts> {
        let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
        state.live.by_node.get(node).map(|pods| pods.values().cloned().collect()).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests;
