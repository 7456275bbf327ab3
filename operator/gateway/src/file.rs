//! A catalogue in a file, for trying a gateway out and measuring it without a cluster.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;

use serde::Deserialize;
use spillway_crds::key::{KeyId, SecretHash};
use spillway_crds::{Capability, Preset, ServingLimits};

use crate::catalogue::{Absence, Catalogue, FullName, Replica, Routing, Served, Target};
use crate::cluster::{capability, limits, number};
use crate::keys::{AllowedModels, Key, Secret};
use crate::routing::EngineId;

/// The file, as YAML or JSON.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct File {
    #[serde(default)]
    tenants: Vec<Tenant>,
    #[serde(default)]
    keys: Vec<KeyEntry>,
    #[serde(default)]
    endpoints: Vec<Endpoint>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Tenant {
    name: String,
    limits: ServingLimits,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct KeyEntry {
    id: String,
    sha256: String,
    tenant: String,
    namespace: String,
    #[serde(default)]
    limits: Option<ServingLimits>,
    #[serde(default)]
    models: Option<Vec<String>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Endpoint {
    namespace: String,
    name: String,
    tenant: String,
    #[serde(default)]
    shared_with: Vec<String>,
    model: String,
    version: String,
    served_name: Option<String>,
    capabilities: Vec<Capability>,
    context_length: u64,
    replicas: Vec<Address>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Address {
    name: String,
    address: SocketAddr,
}

/// Why a file is no catalogue.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Not YAML, or with other fields.
    #[error("it is not the YAML of a catalogue: {0}")]
    Form(#[from] serde_yaml::Error),
    /// A key's id or hash is none.
    #[error("keys[{index}].{field} is not one: `spillway-gateway key` prints both")]
    Key {
        /// Which of the keys.
        index: usize,
        /// `id` or `sha256`.
        field: &'static str,
    },
}

/// The catalogue that a file is.
///
/// # Errors
///
/// [`Error`].
pub fn parse(text: &str) -> Result<Catalogue, Error> {
    let file: File = serde_yaml::from_str(text)?;
    let tenants = file.tenants.into_iter().map(|tenant| (tenant.name.into(), limits(Some(tenant.limits)))).collect();
    let key = |(index, entry): (usize, KeyEntry)| {
        let hash = SecretHash::from_hex(&entry.sha256).ok_or(Error::Key { index, field: "sha256" })?;
        Ok(Key {
            id: KeyId::parse(&entry.id).ok_or(Error::Key { index, field: "id" })?,
            tenant: entry.tenant.into(),
            namespace: entry.namespace.into(),
            secrets: vec![Secret { hash, expires_at_ms: None }],
            expires_at_ms: None,
            revoked: false,
            models: entry.models.map_or(AllowedModels::All, |models| AllowedModels::Only(models.into_iter().collect())),
            limits: limits(entry.limits),
            residency: BTreeSet::new(),
        })
    };
    let keys = file.keys.into_iter().enumerate().map(key).collect::<Result<_, Error>>()?;
    let endpoint = |endpoint: Endpoint| -> (FullName, Arc<Served>) {
        let replica = |one: Address| Replica {
            engine: EngineId(number(&one.name)),
            name: one.name.into(),
            target: Target::Pod(one.address),
            version: endpoint.version.as_str().into(),
            served_name: endpoint.served_name.clone().unwrap_or_else(|| endpoint.model.clone()),
            preset: Preset::OpenAi,
        };
        let replicas = endpoint.replicas.into_iter().map(replica).collect::<Vec<_>>();
        let name: FullName = (endpoint.namespace.into(), endpoint.name.into());
        let served = Served {
            namespace: name.0.clone(),
            name: name.1.clone(),
            tenant: endpoint.tenant.into(),
            shared_with: endpoint.shared_with.into_iter().map(Into::into).collect(),
            served_name: endpoint.served_name.unwrap_or_else(|| endpoint.model.clone()),
            model: endpoint.model.into(),
            version: endpoint.version.into(),
            capabilities: endpoint.capabilities.iter().map(capability).collect(),
            context_length: endpoint.context_length,
            created: 0,
            wanted: u32::try_from(replicas.len()).unwrap_or(u32::MAX),
            kv_cache_target: None,
            // None comes by itself.
            absence: Absence::Stopped,
            replicas,
            routing: Routing::default(),
        };
        (name, Arc::new(served))
    };
    let endpoints = file.endpoints.into_iter().map(endpoint).collect();
    Ok(Catalogue { keys, tenants, endpoints, ..Catalogue::default() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::{PresentedKey, mint};

    #[test]
    fn a_file_is_a_catalogue() {
        let text = mint(KeyId::new(&[1; 5]), &[2; 32]);
        let hash = PresentedKey::parse(&text).unwrap().hash().to_hex();
        let file = format!(
            "keys: [{{id: {}, sha256: {hash}, tenant: acme, namespace: acme, limits: {{concurrency: 4}}}}]\n\
             endpoints: [{{namespace: acme, name: chat, tenant: acme, model: tiny, version: v1, capabilities: [Chat], contextLength: 2048, \
             replicas: [{{name: one, address: '127.0.0.1:8080'}}]}}]\n",
            KeyId::new(&[1; 5])
        );
        let catalogue = parse(&file).unwrap();
        let key = catalogue.keys.authenticate(Some(&format!("Bearer {text}")), 0).unwrap();
        assert_eq!(catalogue.resolve(key, "chat").unwrap().replicas.len(), 1);
        let wrong = file.replace(&hash, "abc");
        assert_eq!(
            parse(&wrong).unwrap_err().to_string(),
            "keys[0].sha256 is not one: `spillway-gateway key` prints both"
        );
        assert!(parse("endpoint: []").unwrap_err().to_string().contains("unknown field `endpoint`"));
    }
}
