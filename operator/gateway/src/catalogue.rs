//! What a gateway knows of the cluster: keys, limits of tenants, and who serves which model. A value that is swapped whole, so that a request
//! sees one state of it.
//!
//! A request names a model by `<endpoint>` in its key's own namespace, or by `<namespace>/<endpoint>`. Whoever may not call an endpoint is told the
//! same as where there is none.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::SocketAddr;
use std::sync::Arc;

use serde::Serialize;
use spillway_crds::Preset;
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
    /// Where it serves `/v1`.
    pub address: SocketAddr,
    /// The version of the model that it serves: another than the endpoint's while one takes the place of another.
    pub version: ModelVersion,
    /// The model's name at it.
    pub served_name: String,
    /// The preset of its engine.
    pub preset: Preset,
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
}

impl Served {
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
    /// The endpoints.
    pub endpoints: BTreeMap<FullName, Arc<Served>>,
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
        named.filter(|(name, served)| served.is_for(&key.tenant) && key.allows(name))
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
        let served = self.resolve(key, model)?;
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
