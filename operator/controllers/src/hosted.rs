//! What hosted models stand on: their watches and queues. They are beside those of capacity, which is sold whether these come or not.

use std::{
    collections::HashMap,
    fmt::Debug,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use k8s_openapi::api::{apps::v1::Deployment, autoscaling::v2::HorizontalPodAutoscaler, core::v1::Secret};
use kube::{
    Api, Client, Resource, ResourceExt,
    runtime::{
        reflector::{ObjectRef, Store},
        watcher,
    },
};
use serde::de::DeserializeOwned;
use spillway_crds::{
    ApiKey, Model, ModelEndpoint,
    apikey::{KEY_SHARDS, keys_secret},
    key::KeyId,
    names::ENDPOINT_LABEL,
};

use crate::canaries::Failed;
use crate::external::Registration;
use crate::watches::{Feed, Queue, Synced, object, slim, watch};

/// The watched objects, and the queue of endpoints to look at.
#[derive(Clone)]
pub struct Hosted {
    /// Models.
    pub models: Store<Model>,
    /// Endpoints.
    pub endpoints: Store<ModelEndpoint>,
    /// The Deployments of endpoints.
    pub deployments: Store<Deployment>,
    /// The autoscalers of endpoints.
    pub autoscalers: Store<HorizontalPodAutoscaler>,
    /// Who has the metrics API.
    registration: tokio::sync::watch::Receiver<Registration>,
    /// Keys.
    pub keys: Store<ApiKey>,
    /// What is kept of keys: one Secret each. They are watched one by one, for no others may be read.
    shards: Vec<Store<Secret>>,
    namespace: String,
    queue: Queue<ModelEndpoint>,
    /// Canaries that failed.
    pub failed: Arc<Failed>,
    /// What was applied of each endpoint, and when.
    applied: Arc<Mutex<HashMap<String, (Applied, Instant)>>>,
}

/// What was applied of an endpoint: the objects, and the generations of the Deployments among them.
pub type Applied = (String, Vec<Option<i64>>);

/// What was applied is applied again after so long, whatever became of it.
const APPLIED: Duration = Duration::from_secs(240);

impl Hosted {
    /// The watches of hosted models.
    pub fn watch(
        client: &Client,
        namespace: &str,
        model_queue: Queue<Model>,
        endpoint_queue: Queue<ModelEndpoint>,
        key_queue: &Queue<ApiKey>,
        registration: tokio::sync::watch::Receiver<Registration>,
    ) -> (Self, Vec<Feed>) {
        let any = || watcher::Config::default().streaming_lists();
        // Nobody waits for these lists.
        let synced = Synced::default();

        let (m, e) = (model_queue.clone(), endpoint_queue.clone());
        let (endpoints, endpoint_feed) =
            watch::<ModelEndpoint, _, _>(Api::all(client.clone()), any(), slim, &synced, move |event| {
                let (m, e) = (m.clone(), e.clone());
                async move {
                    if let Some(endpoint) = object(&event) {
                        e.push_in(&endpoint.namespace().unwrap_or_default(), &endpoint.name_any()).await;
                        // Whom a model is served by has changed.
                        m.push(&endpoint.spec.model.name).await;
                    }
                }
            });

        let (m, e, known) = (model_queue, endpoint_queue.clone(), endpoints.clone());
        let (models, model_feed) = watch::<Model, _, _>(Api::all(client.clone()), any(), slim, &synced, move |event| {
            let (m, e, known) = (m.clone(), e.clone(), known.clone());
            async move {
                if let Some(model) = object(&event) {
                    let name = model.name_any();
                    m.push(&name).await;
                    push(&e, &known, |endpoint| endpoint.spec.model.name == name).await;
                }
            }
        });

        let (deployments, deployment_feed) = watch_owned::<Deployment>(client, &endpoint_queue, &synced);
        let (autoscalers, autoscaler_feed) = watch_owned::<HorizontalPodAutoscaler>(client, &endpoint_queue, &synced);
        let k = key_queue.clone();
        let (keys, key_feed) = watch::<ApiKey, _, _>(Api::all(client.clone()), any(), slim, &synced, move |event| {
            let k = k.clone();
            async move {
                if let Some(key) = object(&event) {
                    k.push_in(&key.namespace().unwrap_or_default(), &key.name_any()).await;
                }
            }
        });

        let mut feeds = vec![endpoint_feed, model_feed, deployment_feed, autoscaler_feed, key_feed];
        let (e, known, mut told) = (endpoint_queue.clone(), endpoints.clone(), registration.clone());
        feeds.push(Box::pin(async move {
            while told.changed().await.is_ok() {
                push(&e, &known, |endpoint| endpoint.spec.scaling.is_some()).await;
            }
        }));
        let mut shards = Vec::new();
        for shard in 0..KEY_SHARDS {
            let one = any().fields(&format!("metadata.name={}", keys_secret(shard)));
            let api = Api::namespaced(client.clone(), namespace);
            let (k, known) = (key_queue.clone(), keys.clone());
            let (store, feed) = watch::<Secret, _, _>(api, one, slim, &synced, move |event| {
                // Keys that waited for it to be there.
                let waits = matches!(event, watcher::Event::Apply(_) | watcher::Event::InitApply(_));
                let waiting: Vec<_> = match waits {
                    true => known
                        .state()
                        .into_iter()
                        .filter(|key| key.status.as_ref().is_none_or(|one| one.secret_name.is_none()))
                        .collect(),
                    false => Vec::new(),
                };
                let k = k.clone();
                async move {
                    for key in waiting {
                        k.push_in(&key.namespace().unwrap_or_default(), &key.name_any()).await;
                    }
                }
            });
            shards.push(store);
            feeds.push(feed);
        }
        let namespace = namespace.to_owned();
        (
            Self {
                models,
                endpoints,
                deployments,
                autoscalers,
                registration,
                keys,
                shards,
                namespace,
                queue: endpoint_queue,
                failed: Arc::default(),
                applied: Arc::default(),
            },
            feeds,
        )
    }

    /// Who has the metrics API.
    pub fn registration(&self) -> Registration {
        *self.registration.borrow()
    }

    /// Whether just this was applied of an endpoint a short while ago.
    pub fn was_applied(&self, endpoint: &str, all: &Applied) -> bool {
        let applied = self.applied.lock().unwrap_or_else(PoisonError::into_inner);
        applied.get(endpoint).is_some_and(|(known, at)| known == all && at.elapsed() < APPLIED)
    }

    /// Notes what was applied of an endpoint.
    pub fn note_applied(&self, endpoint: String, all: Applied) {
        let mut applied = self.applied.lock().unwrap_or_else(PoisonError::into_inner);
        applied.retain(|_, (_, at)| at.elapsed() < APPLIED);
        applied.insert(endpoint, (all, Instant::now()));
    }

    /// What is kept of the keys of a shard, if its Secret is there.
    pub fn shard(&self, shard: u8) -> Option<Arc<Secret>> {
        self.shards.get(usize::from(shard))?.get(&ObjectRef::new(&keys_secret(shard)).within(&self.namespace))
    }

    /// Whether a key has this id.
    pub fn knows(&self, id: KeyId) -> bool {
        let has = |secret: &Arc<Secret>| secret.data.as_ref().is_some_and(|data| data.contains_key(id.as_str()));
        (0..KEY_SHARDS).filter_map(|shard| self.shard(shard)).any(|secret| has(&secret))
    }

    /// Whether there is an `ApiKey` of this name and UID.
    pub fn has_key(&self, namespace: &str, name: &str, uid: &str) -> bool {
        let found = self.keys.get(&ObjectRef::new(name).within(namespace));
        found.is_some_and(|key| key.uid().as_deref() == Some(uid))
    }

    /// An endpoint is looked at.
    pub async fn push(&self, namespace: &str, name: &str) {
        self.queue.push_in(namespace, name).await;
    }

    /// A reservation changed: those that stand on it are looked at.
    pub async fn reservation(&self, namespace: &str, name: &str) {
        let on_it = |endpoint: &ModelEndpoint| {
            let of = endpoint.namespace();
            of.as_deref() == Some(namespace)
                && (endpoint.spec.capacity.as_ref().is_some_and(|capacity| capacity.reservation == name)
                    || name.strip_prefix(&format!("{}-burst-", endpoint.name_any())).is_some())
        };
        push(&self.queue, &self.endpoints, on_it).await;
    }
}

/// Watches what endpoints own, by our label.
fn watch_owned<K>(client: &Client, queue: &Queue<ModelEndpoint>, synced: &Synced) -> (Store<K>, Feed)
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + Sync + 'static,
{
    let config = watcher::Config::default().streaming_lists().labels(ENDPOINT_LABEL);
    let queue = queue.clone();
    watch::<K, _, _>(Api::all(client.clone()), config, slim, synced, move |event| {
        let queue = queue.clone();
        let of = object(&event).and_then(|one| Some((one.namespace()?, one.labels().get(ENDPOINT_LABEL)?.clone())));
        async move {
            if let Some((namespace, endpoint)) = of {
                queue.push_in(&namespace, &endpoint).await;
            }
        }
    })
}

async fn push(queue: &Queue<ModelEndpoint>, known: &Store<ModelEndpoint>, which: impl Fn(&ModelEndpoint) -> bool) {
    let found: Vec<Arc<ModelEndpoint>> = known.state().into_iter().filter(|endpoint| which(endpoint)).collect();
    for endpoint in found {
        queue.push_in(&endpoint.namespace().unwrap_or_default(), &endpoint.name_any()).await;
    }
}
