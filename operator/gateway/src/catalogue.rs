//! What a gateway knows of the cluster: keys, limits of tenants, and who serves which model. A value that is swapped whole, so that a request
//! sees one state of it.
//!
//! A request names a model by `<endpoint>` in its key's own namespace, or by `<namespace>/<endpoint>`. Whoever may not call an endpoint is told the
//! same as where there is none.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::SocketAddr;
use std::sync::Arc;

use hyper::Uri;
use serde::Serialize;
use spillway_crds::{Preset, RoutingPolicy};
use spillway_metering::tokens::{EndpointName, ModelName, ModelVersion, ReplicaName};
use spillway_metering::{NamespaceName, TenantName};

use crate::admission::Limits;
use crate::keys::{Key, Keyring};
use crate::request::Endpoint;
use crate::routing::EngineId;

/// A replica that answers.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Replica {
    /// Its pod's name.
    pub name: ReplicaName,
    /// Its number for routing: every gateway gives it alike.
    pub engine: EngineId,
    /// Where it serves.
    pub target: Target,
    /// The version of the model that it serves: another than the endpoint's while one takes the place of another.
    pub version: ModelVersion,
    /// The model's name at it.
    pub served_name: String,
    /// The preset of its engine.
    pub preset: Preset,
}

/// Where requests are sent.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Target {
    /// A pod, which serves `/v1` here.
    Pod(SocketAddr),
    /// A provider.
    Provider(Arc<Provider>),
}

/// A provider with an OpenAI-compatible API.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Provider {
    /// Where its `/chat/completions` is.
    pub base: Uri,
    /// Under which name the key is known that it asks for.
    pub credentials: Option<String>,
}

/// How a request finds a replica.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Routing {
    /// Which of them it goes to.
    pub policy: RoutingPolicy,
    /// The version that is tried, and how many percent of the requests go to it. 0: none, whatever else there is.
    pub canary: Option<(ModelVersion, u32)>,
    /// Endpoints of the same namespace that are asked when it cannot answer.
    pub fallback: Vec<EndpointName>,
    /// Regions in which it may be processed. Empty: they are not known.
    pub regions: BTreeSet<String>,
}

/// What a request waits for that finds no replica.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Absence {
    /// A replica, which is on its way, or is when it is called for.
    #[default]
    Starts,
    /// Nothing: its owner wants none.
    Stopped,
    /// Nothing: no devices are held for one.
    NoCapacity,
    /// Nothing: a person has to mend it first.
    Stalled,
}

/// A `ModelEndpoint`, as far as requests need it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Served {
    /// Its namespace.
    pub namespace: NamespaceName,
    /// Its name.
    pub name: EndpointName,
    /// The tenant of its namespace.
    pub tenant: TenantName,
    /// Tenants beside that one which may call it.
    pub shared_with: BTreeSet<TenantName>,
    /// The `Model`.
    pub model: ModelName,
    /// The version of it that is to serve.
    pub version: ModelVersion,
    /// The model's name at engines of that version.
    pub served_name: String,
    /// What it can be asked for.
    pub capabilities: BTreeSet<Endpoint>,
    /// Tokens of the longest prompt and answer together.
    pub context_length: u64,
    /// When it was made, in Unix seconds.
    pub created: i64,
    /// Replicas that are wanted.
    pub wanted: u32,
    /// How much of its KV cache each is to have in use, in percent, where replicas are scaled by it.
    pub kv_cache_target: Option<u32>,
    /// What a request waits for where none answers.
    pub absence: Absence,
    /// Replicas that answer.
    pub replicas: Vec<Replica>,
    /// How a request finds one, and where it goes where there is none.
    pub routing: Routing,
}

impl Served {
    /// Whether what it is asked stays in these regions; empty: all of them will do.
    fn stays_in(&self, regions: &BTreeSet<String>) -> bool {
        regions.is_empty() || (!self.routing.regions.is_empty() && self.routing.regions.is_subset(regions))
    }

    /// Whether the keys of a tenant may call it.
    fn is_for(&self, tenant: &TenantName) -> bool {
        self.tenant == *tenant || self.shared_with.contains(tenant)
    }
}

/// Name of an endpoint with its namespace.
pub type FullName = (NamespaceName, EndpointName);

/// All that a gateway knows.
#[derive(Clone, Debug, Default)]
pub struct Catalogue {
    /// The keys.
    pub keys: Keyring,
    /// Limits of tenants; of one that is not here there are none.
    pub tenants: HashMap<TenantName, Limits>,
    /// Regions in which requests of tenants may be processed; of one that is not here, all.
    pub residency: HashMap<TenantName, BTreeSet<String>>,
    /// The endpoints.
    pub endpoints: BTreeMap<FullName, Arc<Served>>,
}

/// Regions in which requests with a key may be processed.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Residency {
    /// All.
    Anywhere,
    /// These.
    Only(BTreeSet<String>),
    /// None: the key's and its tenant's have none in common.
    Nowhere,
}

/// One of the list that `/v1/models` gives.
#[derive(Serialize)]
struct Listed {
    id: String,
    object: &'static str,
    created: i64,
    owned_by: String,
}

#[derive(Serialize)]
struct List {
    object: &'static str,
    data: Vec<Listed>,
}

impl Catalogue {
    /// The endpoint that a key means by `model`, if there is one that it may call.
    pub fn resolve(&self, key: &Key, model: &str) -> Option<&Arc<Served>> {
        let (namespace, name) = match model.split_once('/') {
            Some((namespace, name)) => (NamespaceName::from(namespace), name),
            None => (key.namespace.clone(), model),
        };
        let served = self.endpoints.get(&(namespace, EndpointName::from(name)))?;
        (served.is_for(&key.tenant) && key.allows(&name_for(key, served))).then_some(served)
    }

    /// What a key may call, with the names that it calls them by.
    pub fn models<'a>(&'a self, key: &'a Key) -> impl Iterator<Item = (String, &'a Arc<Served>)> {
        let named = self.endpoints.values().map(move |served| (name_for(key, served), served));
        let may = |served: &Arc<Served>, name: &str| served.is_for(&key.tenant) && key.allows(name);
        named.filter(move |(name, served)| may(served, name) && !self.candidates(key, served).is_empty())
    }

    /// Regions in which requests with a key may be processed.
    pub fn residency(&self, key: &Key) -> Residency {
        let tenant = self.residency.get(&key.tenant).filter(|regions| !regions.is_empty());
        match (tenant, key.residency.is_empty()) {
            (None, true) => Residency::Anywhere,
            (None, false) => Residency::Only(key.residency.clone()),
            (Some(regions), true) => Residency::Only(regions.clone()),
            (Some(regions), false) => match regions & &key.residency {
                both if both.is_empty() => Residency::Nowhere,
                both => Residency::Only(both),
            },
        }
    }

    /// Who may serve a request with a key to this endpoint, in the order in which they are asked: it, and those that its owner named for when it cannot.
    pub fn candidates(&self, key: &Key, served: &Arc<Served>) -> Vec<Arc<Served>> {
        let named = |name: &EndpointName| self.endpoints.get(&(served.namespace.clone(), name.clone())).cloned();
        let all = std::iter::once(Arc::clone(served)).chain(served.routing.fallback.iter().filter_map(named));
        match self.residency(key) {
            Residency::Anywhere => all.collect(),
            Residency::Only(regions) => all.filter(|one| one.stays_in(&regions)).collect(),
            Residency::Nowhere => Vec::new(),
        }
    }

    /// Limits of a tenant.
    pub fn limits(&self, tenant: &TenantName) -> Limits {
        self.tenants.get(tenant).copied().unwrap_or_default()
    }

    /// The answer to `GET /v1/models`: exactly what the key may call.
    pub fn list(&self, key: &Key) -> String {
        let data = self.models(key).map(|(name, served)| listed(name, served)).collect();
        // Strings and numbers: there is no way for it to fail.
        serde_json::to_string(&List { object: "list", data }).unwrap_or_default()
    }

    /// The answer to `GET /v1/models/{model}`, if the key may call it.
    pub fn entry(&self, key: &Key, model: &str) -> Option<String> {
        let served = self.resolve(key, model).filter(|served| !self.candidates(key, served).is_empty())?;
        Some(serde_json::to_string(&listed(name_for(key, served), served)).unwrap_or_default())
    }
}

fn listed(id: String, served: &Served) -> Listed {
    Listed { id, object: "model", created: served.created, owned_by: served.tenant.to_string() }
}

/// The name by which a key calls an endpoint.
fn name_for(key: &Key, served: &Served) -> String {
    if served.namespace == key.namespace {
        served.name.to_string()
    } else {
        format!("{}/{}", served.namespace, served.name)
    }
}

#[cfg(test)]
mod tests;
