//! Writes down through which phases reservations go, which taints nodes have, and which bound pods were asked to go, as any client could see it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures::StreamExt as _;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::runtime::{WatchStreamExt as _, watcher};
use kube::{Api, Client, ResourceExt as _};
use serde::de::DeserializeOwned;
use spillway_crds::{GpuReservation, Phase};
use spillway_lab::spillway::holds;
use tokio::task::JoinHandle;

/// The hold taints of a node: `NoSchedule` and `NoExecute`.
pub(crate) type Hold = (Option<String>, Option<String>);

#[derive(Debug, Default)]
struct Book {
    phases: BTreeMap<String, Vec<Phase>>,
    holds: BTreeMap<String, Vec<Hold>>,
    leaving: BTreeSet<String>,
}

/// Watches until it is dropped.
#[derive(Debug)]
pub(crate) struct Witness {
    book: Arc<Mutex<Book>>,
    tasks: [JoinHandle<()>; 3],
}

impl Drop for Witness {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

impl Witness {
    pub(crate) fn start(client: &Client) -> Self {
        let book = Arc::new(Mutex::new(Book::default()));
        let (one, other, third) = (Arc::clone(&book), Arc::clone(&book), Arc::clone(&book));
        let tasks = [
            watch(Api::<GpuReservation>::all(client.clone()), move |object| {
                let name = format!("{}/{}", object.namespace().unwrap_or_default(), object.name_any());
                let phase = object.status.map(|status| status.phase).unwrap_or_default();
                push(lock(&one).phases.entry(name).or_default(), phase);
            }),
            watch(Api::<Node>::all(client.clone()), move |node| {
                push(lock(&other).holds.entry(node.name_any()).or_default(), holds(&node));
            }),
            watch(Api::<Pod>::all(client.clone()), move |pod| {
                let bound = pod.spec.as_ref().is_some_and(|spec| spec.node_name.is_some());
                if bound && pod.metadata.deletion_timestamp.is_some() {
                    lock(&third).leaving.insert(format!("{}/{}", pod.namespace().unwrap_or_default(), pod.name_any()));
                }
            }),
        ];
        Self { book, tasks }
    }

    /// The phases in which a reservation of this name was seen, in order.
    pub(crate) fn phases(&self, reservation: &str) -> Vec<Phase> {
        lock(&self.book).phases.get(reservation).cloned().unwrap_or_default()
    }

    /// The hold taints that a node was seen with, in order.
    pub(crate) fn holds(&self, node: &str) -> Vec<Hold> {
        lock(&self.book).holds.get(node).cloned().unwrap_or_default()
    }

    /// Pods of a namespace that were on a node when somebody asked them to go.
    pub(crate) fn leaving(&self, namespace: &str) -> Vec<String> {
        let mine = |name: &&String| name.starts_with(&format!("{namespace}/"));
        lock(&self.book).leaving.iter().filter(mine).cloned().collect()
    }
}

fn lock(book: &Mutex<Book>) -> MutexGuard<'_, Book> {
    book.lock().unwrap_or_else(PoisonError::into_inner)
}

fn push<T: PartialEq>(list: &mut Vec<T>, value: T) {
    if list.last() != Some(&value) {
        list.push(value);
    }
}

fn watch<K>(api: Api<K>, note: impl Fn(K) + Send + 'static) -> JoinHandle<()>
where
    K: kube::Resource + Clone + DeserializeOwned + Debug + Send + 'static,
    K::DynamicType: Default,
{
    tokio::spawn(async move {
        let mut events = watcher(api, watcher::Config::default()).default_backoff().boxed();
        while let Some(event) = events.next().await {
            if let Ok(watcher::Event::Apply(object) | watcher::Event::InitApply(object)) = event {
                note(object);
            }
        }
    })
}
