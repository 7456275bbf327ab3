//! What the API server has, as a [`Catalogue`]: watched, and put together anew whenever something of it changes. With the API server away the last one
//! stands.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::future::Future;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures::{StreamExt as _, future::join_all};
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::runtime::reflector::{self, Store};
use kube::runtime::{WatchStreamExt as _, watcher};
use kube::{Api, Client, Resource, ResourceExt as _};
use serde::de::DeserializeOwned;
use spillway_crds::apikey::{KEY_SHARDS, keys_secret};
use spillway_crds::key::{KeyId, SecretHash};
use spillway_crds::names::{ENDPOINT_LABEL, host_of};
use spillway_crds::{
    ApiKey, Canary, Capability, ConditionStatus, External, KeyRecord, Model, ModelEndpoint, ModelVersion, Preset,
    ServingLimits, Tenant,
};
use spillway_metering::tokens::ReplicaName;
use spillway_metering::{NamespaceName, TenantName};
use tokio::sync::{Notify, watch};

use crate::admission::Limits;
use crate::catalogue::{Absence, Catalogue, FullName, Provider, Replica, Routing, Served, Target};
use crate::keys::{AllowedModels, Key, Keyring, Secret as KeySecret};
use crate::request::Endpoint;
use crate::routing::EngineId;

/// Changes within this time of the one before are taken in together.
const TOGETHER: Duration = Duration::from_millis(50);
/// Label of an `EndpointSlice` with the name of its Service.
const SERVICE_LABEL: &str = "kubernetes.io/service-name";
/// Name of the port on which replicas serve.
const PORT: &str = "http";

/// The objects that a catalogue is made of.
#[derive(Debug, Default)]
pub struct Objects {
    /// Tenants.
    pub tenants: Vec<Arc<Tenant>>,
    /// Models.
    pub models: Vec<Arc<Model>>,
    /// Endpoints.
    pub endpoints: Vec<Arc<ModelEndpoint>>,
    /// Keys.
    pub keys: Vec<Arc<ApiKey>>,
    /// What is kept of keys.
    pub shards: Vec<Arc<Secret>>,
    /// Where replicas are.
    pub slices: Vec<Arc<EndpointSlice>>,
}

/// Puts a catalogue together. What is not whole is left out: a key without its object, an endpoint without its model or tenant.
pub fn build(objects: &Objects) -> Catalogue {
    let mut tenants = HashMap::new();
    let mut residency = HashMap::new();
    let mut owners: HashMap<NamespaceName, TenantName> = HashMap::new();
    let mut of_owner: BTreeSet<TenantName> = BTreeSet::new();
    for tenant in &objects.tenants {
        let name = TenantName::from(tenant.name_any());
        tenants.insert(name.clone(), limits(tenant.spec.limits));
        residency.insert(name.clone(), tenant.spec.residency.iter().cloned().collect());
        if tenant.spec.owner {
            of_owner.insert(name.clone());
        }
        for namespace in tenant.status.iter().flat_map(|status| &status.namespaces) {
            owners.insert(namespace.name.as_str().into(), name.clone());
        }
    }
    let models: HashMap<String, &Arc<Model>> = objects.models.iter().map(|model| (model.name_any(), model)).collect();
    let mut found = replicas(&objects.slices);
    let mut served = |endpoint: &Arc<ModelEndpoint>| -> Option<(FullName, Arc<Served>)> {
        let name: FullName = (endpoint.namespace()?.into(), endpoint.name_any().into());
        let model = models.get(&endpoint.spec.model.name)?;
        let tenant = owners.get(&name.0)?;
        let (served, preset) = serve(endpoint, &name, tenant, model)?;
        if let Some(external) = &endpoint.spec.external {
            // Only an owner says where the gateways' credentials go.
            let replicas = of_owner.contains(tenant).then(|| provider(endpoint, external, &served)).flatten();
            return Some((name, Arc::new(Served { replicas: replicas.into_iter().collect(), ..served })));
        }
        // What a pod calls its host is its version, as names of pods may be. One of a version that is no more serves on until it goes.
        let replica = |one: Found| {
            let version =
                model.spec.versions.iter().find(|version| one.host.as_deref() == Some(&host_of(&version.name)));
            Replica {
                name: one.name,
                engine: one.engine,
                target: Target::Pod(one.address),
                version: version.map_or_else(|| served.version.clone(), |version| version.name.as_str().into()),
                served_name: version
                    .map_or_else(|| served.served_name.clone(), |version| served_name(endpoint, version)),
                preset: version.and_then(|version| version.runtime.as_ref()).map_or(preset, |runtime| runtime.preset),
            }
        };
        let replicas = found.remove(&name).unwrap_or_default().into_iter().map(replica).collect();
        Some((name, Arc::new(Served { replicas, ..served })))
    };
    let endpoints: BTreeMap<FullName, Arc<Served>> = objects.endpoints.iter().filter_map(&mut served).collect();
    Catalogue { keys: keyring(objects, &owners), tenants, residency, endpoints }
}

/// An endpoint without its replicas, and the preset of its version.
fn serve(endpoint: &ModelEndpoint, name: &FullName, tenant: &TenantName, model: &Model) -> Option<(Served, Preset)> {
    let version = model.spec.versions.iter().find(|version| version.name == endpoint.spec.model.version)?;
    let shared = endpoint.spec.access.iter().flat_map(|access| &access.tenants);
    let scaling = endpoint.spec.scaling.as_ref();
    let served = Served {
        namespace: name.0.clone(),
        name: name.1.clone(),
        tenant: tenant.clone(),
        shared_with: shared.map(|tenant| tenant.as_str().into()).collect(),
        model: endpoint.spec.model.name.as_str().into(),
        version: endpoint.spec.model.version.as_str().into(),
        served_name: served_name(endpoint, version),
        capabilities: model.spec.capabilities.iter().map(capability).collect(),
        context_length: u64::try_from(version.context_length).unwrap_or(0),
        created: endpoint.metadata.creation_timestamp.as_ref().map_or(0, |at| at.0.as_second()),
        wanted: u32::try_from(endpoint.spec.replicas).unwrap_or(0),
        kv_cache_target: scaling
            .and_then(|scaling| scaling.target.kv_cache_percent_per_replica)
            .and_then(|percent| u32::try_from(percent).ok()),
        absence: absence(endpoint),
        replicas: Vec::new(),
        routing: routing(endpoint),
    };
    let preset = version.runtime.as_ref().map_or(Preset::OpenAi, |runtime| runtime.preset);
    Some((served, preset))
}

/// How a request finds a replica.
fn routing(endpoint: &ModelEndpoint) -> Routing {
    let status = endpoint.status.as_ref();
    // The operator says how much it gets: of one that was rolled back nothing, whatever is asked for.
    let weight = |canary: &Canary| {
        let known = status.iter().flat_map(|status| &status.versions).find(|one| one.version == canary.version);
        let weight = match known {
            // It is not tried, and serves as what goes or comes.
            Some(known) => known.weight?,
            None => 0,
        };
        Some((canary.version.as_str().into(), u32::try_from(weight).unwrap_or(0).min(100)))
    };
    let spec = endpoint.spec.routing.clone().unwrap_or_default();
    let mut regions: BTreeSet<String> = status.iter().flat_map(|status| status.regions.clone()).collect();
    if let Some(external) = &endpoint.spec.external {
        regions = external.region.iter().cloned().collect();
    }
    Routing {
        policy: spec.policy,
        canary: endpoint.spec.canary.as_ref().and_then(weight),
        fallback: spec.fallback.iter().map(|one| one.endpoint.as_str().into()).collect(),
        regions,
    }
}

/// A provider, as the one replica of its endpoint.
fn provider(endpoint: &ModelEndpoint, external: &External, served: &Served) -> Option<Replica> {
    let base = external.url.parse().ok()?;
    Some(Replica {
        name: format!("provider/{}", served.name).into(),
        engine: EngineId(number(endpoint.metadata.uid.as_deref().unwrap_or_default())),
        target: Target::Provider(Arc::new(Provider { base, credentials: external.credentials.clone() })),
        version: served.version.clone(),
        served_name: served.served_name.clone(),
        preset: Preset::OpenAi,
    })
}

/// The model's name at engines of a version: vLLM and llama.cpp are told it; another image may know it by one of its own.
fn served_name(endpoint: &ModelEndpoint, version: &ModelVersion) -> String {
    if let Some(external) = &endpoint.spec.external {
        return external.model.clone();
    }
    let named = version.runtime.as_ref().and_then(|runtime| runtime.served_name.clone());
    named.unwrap_or_else(|| endpoint.spec.model.name.clone())
}

/// What a request waits for where an endpoint has no replica.
fn absence(endpoint: &ModelEndpoint) -> Absence {
    if endpoint.spec.external.is_some() {
        return Absence::Stalled;
    }
    let sleeps = endpoint.spec.scaling.as_ref().is_some_and(|scaling| scaling.min == 0);
    if endpoint.spec.replicas == 0 && !sleeps {
        return Absence::Stopped;
    }
    // Of one that is new nothing is known yet.
    let Some(status) = endpoint.status.as_ref().filter(|status| status.observed_generation.is_some()) else {
        return Absence::Starts;
    };
    let stalled = status.conditions.iter().find(|one| one.type_ == "Stalled" && one.status == ConditionStatus::True);
    match stalled {
        Some(condition) if condition.reason != "NoCapacity" => Absence::Stalled,
        None if status.bookable_replicas > 0 => Absence::Starts,
        _ => Absence::NoCapacity,
    }
}

/// The path at which a capability is asked for.
pub(crate) fn capability(capability: &Capability) -> Endpoint {
    match capability {
        Capability::Chat => Endpoint::ChatCompletions,
        Capability::Completions => Endpoint::Completions,
        Capability::Embeddings => Endpoint::Embeddings,
    }
}

/// A pod that answers.
struct Found {
    name: ReplicaName,
    engine: EngineId,
    address: SocketAddr,
    host: Option<String>,
}

/// Pods that answer, by endpoint, in order.
fn replicas(slices: &[Arc<EndpointSlice>]) -> HashMap<FullName, Vec<Found>> {
    let mut found: HashMap<FullName, BTreeMap<u64, Found>> = HashMap::new();
    for slice in slices {
        let labels = slice.labels();
        let (Some(endpoint), Some(namespace)) = (labels.get(ENDPOINT_LABEL), slice.namespace()) else { continue };
        let port = slice.ports.iter().flatten().find(|port| port.name.as_deref() == Some(PORT));
        let port = port.and_then(|port| u16::try_from(port.port?).ok());
        let (true, Some(port)) = (labels.get(SERVICE_LABEL) == Some(endpoint), port) else { continue };
        for one in slice.endpoints.iter().flatten() {
            // Not told is ready (the API's own words).
            let ready = one.conditions.as_ref().and_then(|conditions| conditions.ready).unwrap_or(true);
            let address = one.addresses.first().and_then(|address| address.parse::<IpAddr>().ok());
            let (true, Some(address), Some(pod)) = (ready, address, &one.target_ref) else { continue };
            let engine = EngineId(number(pod.uid.as_deref().unwrap_or_default()));
            let name = pod.name.as_deref().unwrap_or_default();
            let address = SocketAddr::new(address, port);
            let replica = Found { name: name.into(), engine, address, host: one.hostname.clone() };
            found.entry((namespace.as_str().into(), endpoint.as_str().into())).or_default().insert(engine.0, replica);
        }
    }
    found.into_iter().map(|(name, replicas)| (name, replicas.into_values().collect())).collect()
}

/// A number for a UID that every gateway gives it alike: FNV-1a.
pub(crate) fn number(uid: &str) -> u64 {
    uid.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

pub(crate) fn limits(limits: Option<ServingLimits>) -> Limits {
    let limits = limits.unwrap_or_default();
    let small = |limit: Option<i64>| limit.map(|limit| u32::try_from(limit.max(0)).unwrap_or(u32::MAX));
    Limits {
        requests_per_minute: small(limits.requests_per_minute),
        tokens_per_minute: limits.tokens_per_minute.map(|limit| u64::try_from(limit).unwrap_or(0)),
        concurrency: small(limits.concurrency),
    }
}

fn keyring(objects: &Objects, owners: &HashMap<NamespaceName, TenantName>) -> Keyring {
    let objects_by_uid: HashMap<&str, &Arc<ApiKey>> =
        objects.keys.iter().filter_map(|key| Some((key.metadata.uid.as_deref()?, key))).collect();
    let records = objects.shards.iter().flat_map(|shard| shard.data.iter().flatten());
    let key = |(id, bytes): (&String, &k8s_openapi::ByteString)| -> Option<Key> {
        let record: KeyRecord = serde_json::from_slice(&bytes.0).ok()?;
        let object = objects_by_uid.get(record.uid.as_str())?;
        // It is worth nothing from the moment on in which somebody deletes it.
        let there = object.metadata.deletion_timestamp.is_none();
        let namespace: NamespaceName = object.namespace().filter(|_| there)?.into();
        let spec = &object.spec;
        let ends = spec.expires_at.as_deref().map(|at| at.parse::<jiff::Timestamp>());
        let secrets = record.hashes.iter().filter_map(|hash| {
            let end = hash.expires_at_ms.map(|end| u64::try_from(end).unwrap_or(0));
            Some(KeySecret { hash: SecretHash::from_hex(&hash.sha256)?, expires_at_ms: end })
        });
        Some(Key {
            id: KeyId::parse(id)?,
            tenant: owners.get(&namespace)?.clone(),
            namespace,
            secrets: secrets.collect(),
            // An end that cannot be read is over.
            expires_at_ms: ends.map(|ends| ends.map_or(0, |at| u64::try_from(at.as_millisecond()).unwrap_or(0))),
            revoked: spec.revoked,
            models: match &spec.models {
                None => AllowedModels::All,
                Some(models) => AllowedModels::Only(models.iter().cloned().collect::<BTreeSet<String>>()),
            },
            limits: limits(spec.limits),
            residency: spec.residency.iter().cloned().collect(),
        })
    };
    records.filter_map(key).collect()
}

type Feed = Pin<Box<dyn Future<Output = ()> + Send>>;

/// The watched kinds.
struct Watched {
    tenants: Store<Tenant>,
    models: Store<Model>,
    endpoints: Store<ModelEndpoint>,
    keys: Store<ApiKey>,
    shards: Vec<Store<Secret>>,
    slices: Store<EndpointSlice>,
}

impl Watched {
    async fn wait_until_ready(&self) {
        // A store ends with its writer, which is in a feed: the process ends then.
        let _ = self.tenants.wait_until_ready().await;
        let _ = self.models.wait_until_ready().await;
        let _ = self.endpoints.wait_until_ready().await;
        let _ = self.keys.wait_until_ready().await;
        let _ = self.slices.wait_until_ready().await;
        join_all(self.shards.iter().map(Store::wait_until_ready)).await;
    }

    fn objects(&self) -> Objects {
        Objects {
            tenants: self.tenants.state(),
            models: self.models.state(),
            endpoints: self.endpoints.state(),
            keys: self.keys.state(),
            shards: self.shards.iter().flat_map(Store::state).collect(),
            slices: self.slices.state(),
        }
    }
}

fn watch_one<K>(api: Api<K>, config: watcher::Config, changed: &Arc<Notify>, feeds: &mut Vec<Feed>) -> Store<K>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + std::fmt::Debug + Send + Sync + 'static,
{
    let (store, writer) = reflector::store();
    let changed = Arc::clone(changed);
    let slim = |object: &mut K| object.meta_mut().managed_fields = None;
    let stream = watcher(api, config).default_backoff().modify(slim).reflect(writer);
    feeds.push(Box::pin(async move {
        let mut stream = Box::pin(stream);
        while let Some(event) = stream.next().await {
            match event {
                Ok(_) => changed.notify_one(),
                Err(error) => tracing::warn!(kind = %K::kind(&()), %error, "a watch failed; it is tried again"),
            }
        }
    }));
    store
}

/// Watches the cluster and publishes what is known of it. Runs until a watch ends, which none does by itself. `namespace`: the operator's, where what is
/// kept of keys is.
pub async fn follow(
    client: Client,
    namespace: &str,
    publish: watch::Sender<Arc<Catalogue>>,
    ready: watch::Sender<bool>,
) {
    let changed = Arc::new(Notify::new());
    let mut feeds: Vec<Feed> = Vec::new();
    let any = || watcher::Config::default().streaming_lists();
    let shard = |shard: u8| any().fields(&format!("metadata.name={}", keys_secret(shard)));
    let watched = Watched {
        tenants: watch_one(Api::all(client.clone()), any(), &changed, &mut feeds),
        models: watch_one(Api::all(client.clone()), any(), &changed, &mut feeds),
        endpoints: watch_one(Api::all(client.clone()), any(), &changed, &mut feeds),
        keys: watch_one(Api::all(client.clone()), any(), &changed, &mut feeds),
        slices: watch_one(Api::all(client.clone()), any().labels(ENDPOINT_LABEL), &changed, &mut feeds),
        shards: (0..KEY_SHARDS)
            .map(|number| watch_one(Api::namespaced(client.clone(), namespace), shard(number), &changed, &mut feeds))
            .collect(),
    };
    let building = async {
        watched.wait_until_ready().await;
        loop {
            publish.send_replace(Arc::new(build(&watched.objects())));
            ready.send_replace(true);
            // The first change counts at once; what comes right after it is taken in together.
            tokio::time::sleep(TOGETHER).await;
            changed.notified().await;
        }
    };
    tokio::select! {
        () = building => {}
        _ = futures::future::select_all(feeds) => {}
    }
}

#[cfg(test)]
mod tests;
