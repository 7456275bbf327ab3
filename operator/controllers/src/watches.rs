//! The watches: one for each kind, each with a store, and a queue of keys for the controllers.
//!
//! The raw watch stream is consumed here, so that deletions are never lost on the way to a subscriber (kube#1590, #1768).

use std::{convert::Infallible, fmt::Debug, future::Future, hash::Hash, pin::Pin};

use futures::{Stream, StreamExt};
use kube::{
    Api, Resource,
    runtime::{
        WatchStreamExt,
        reflector::{self, ObjectRef, Store},
        watcher::{self, Event},
    },
};
use serde::de::DeserializeOwned;
use tokio::sync::mpsc;

/// Keys that a queue holds before a sender waits.
const QUEUE: usize = 4096;

/// A queue of objects to be looked at.
pub struct Queue<K: Resource>(pub mpsc::Sender<ObjectRef<K>>)
where
    K::DynamicType: Hash + Eq;

impl<K: Resource> Clone for Queue<K>
where
    K::DynamicType: Hash + Eq,
{
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<K: Resource> Queue<K>
where
    K::DynamicType: Hash + Eq + Default,
{
    /// A queue, and the stream that a controller reads.
    pub fn new() -> (Self, impl Stream<Item = Result<ObjectRef<K>, Infallible>>) {
        let (sender, receiver) = mpsc::channel(QUEUE);
        let stream = futures::stream::unfold(receiver, |mut receiver| async move {
            receiver.recv().await.map(|key| (Ok(key), receiver))
        });
        (Self(sender), stream)
    }

    /// Asks for a cluster-scoped object to be looked at.
    pub async fn push(&self, name: &str) {
        // The receiver lives as long as the process leads.
        let _ = self.0.send(ObjectRef::new(name)).await;
    }

    /// Asks for a namespaced object to be looked at.
    pub async fn push_in(&self, namespace: &str, name: &str) {
        let _ = self.0.send(ObjectRef::new(name).within(namespace)).await;
    }
}

/// Counts the watches whose first list is complete. kube's own `wait_until_ready` wakes one waiter only, and each controller waits for its
/// store already: a second waiter may wait for ever.
#[derive(Clone, Debug)]
pub struct Synced(tokio::sync::watch::Sender<usize>);

impl Default for Synced {
    fn default() -> Self {
        Self(tokio::sync::watch::Sender::new(0))
    }
}

impl Synced {
    /// A mark that one watch makes once, when its first list is complete.
    pub fn mark(&self) -> impl FnMut(bool) + Send + 'static {
        let mut open = Some(self.0.clone());
        move |done| {
            if done && let Some(count) = open.take() {
                count.send_modify(|count| *count += 1);
            }
        }
    }

    /// Waits until so many watches have their first list.
    pub async fn wait(&self, watches: usize) {
        // The sender is ours, so the channel cannot be closed.
        let _ = self.0.subscribe().wait_for(|count| *count >= watches).await;
    }
}

/// A watch in the making: its store, and the task that feeds it.
pub type Feed = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Watches a kind; `slim` drops what nobody reads, `on` hears every change after the store has it.
pub fn watch<K, F, Fut>(
    api: Api<K>,
    config: watcher::Config,
    slim: fn(&mut K),
    synced: &Synced,
    mut on: F,
) -> (Store<K>, Feed)
where
    K: Resource + Clone + DeserializeOwned + Debug + Send + Sync + 'static,
    K::DynamicType: Default + Eq + Hash + Clone + Send + Sync + Unpin,
    F: FnMut(Event<K>) -> Fut + Send + 'static,
    Fut: Future<Output = ()> + Send + 'static,
{
    let (store, writer) = reflector::store();
    let stream = kube::runtime::watcher(api, config).default_backoff().modify(slim).reflect(writer);
    let mut mark = synced.mark();
    let feed = async move {
        let mut stream = Box::pin(stream);
        while let Some(event) = stream.next().await {
            match event {
                Ok(event) => {
                    let listed = matches!(event, Event::InitDone);
                    on(event).await;
                    mark(listed);
                }
                Err(error) => {
                    tracing::warn!(kind = %K::kind(&K::DynamicType::default()), %error, "a watch failed; it is tried again");
                }
            }
        }
    };
    (store, Box::pin(feed))
}

/// The object of an event, if it has one.
pub fn object<K>(event: &Event<K>) -> Option<&K> {
    match event {
        Event::Apply(object) | Event::Delete(object) | Event::InitApply(object) => Some(object),
        Event::Init | Event::InitDone => None,
    }
}

/// Drops the bookkeeping of field managers, which nobody here reads and which is often the larger part of an object.
pub fn slim<K: Resource>(object: &mut K) {
    object.meta_mut().managed_fields = None;
}

/// As [`slim`], and drops the images that a node lists.
pub fn slim_node(node: &mut k8s_openapi::api::core::v1::Node) {
    slim(node);
    if let Some(status) = node.status.as_mut() {
        status.images = None;
        status.volumes_attached = None;
        status.volumes_in_use = None;
    }
}
