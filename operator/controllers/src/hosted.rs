//! What hosted models stand on: their watches and queues. They are beside those of capacity, which is sold whether these come or not.

use std::sync::Arc;

use k8s_openapi::api::apps::v1::Deployment;
use kube::{
    Api, Client, ResourceExt,
    runtime::{reflector::Store, watcher},
};
use spillway_crds::{Model, ModelEndpoint, names::ENDPOINT_LABEL};

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
    queue: Queue<ModelEndpoint>,
}

impl Hosted {
    /// The watches of hosted models.
    pub fn watch(
        client: &Client,
        model_queue: Queue<Model>,
        endpoint_queue: Queue<ModelEndpoint>,
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

        let labelled = any().labels(ENDPOINT_LABEL);
        let e = endpoint_queue.clone();
        let (deployments, deployment_feed) =
            watch::<Deployment, _, _>(Api::all(client.clone()), labelled, slim, &synced, move |event| {
                let e = e.clone();
                async move {
                    if let Some((of, namespace)) = object(&event).and_then(endpoint_of) {
                        e.push_in(&namespace, &of).await;
                    }
                }
            });
        let feeds = vec![endpoint_feed, model_feed, deployment_feed];
        (Self { models, endpoints, deployments, queue: endpoint_queue }, feeds)
    }

    /// A reservation changed: those that stand on it are looked at.
    pub async fn reservation(&self, namespace: &str, name: &str) {
        let on_it = |endpoint: &ModelEndpoint| {
            endpoint.namespace().as_deref() == Some(namespace) && endpoint.spec.capacity.reservation == name
        };
        push(&self.queue, &self.endpoints, on_it).await;
    }
}

fn endpoint_of(deployment: &Deployment) -> Option<(String, String)> {
    Some((deployment.labels().get(ENDPOINT_LABEL)?.clone(), deployment.namespace()?))
}

async fn push(queue: &Queue<ModelEndpoint>, known: &Store<ModelEndpoint>, which: impl Fn(&ModelEndpoint) -> bool) {
    let found: Vec<Arc<ModelEndpoint>> = known.state().into_iter().filter(|endpoint| which(endpoint)).collect();
    for endpoint in found {
        queue.push_in(&endpoint.namespace().unwrap_or_default(), &endpoint.name_any()).await;
    }
}
