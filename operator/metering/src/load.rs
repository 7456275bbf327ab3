//! What a gateway tells the operator of the load of its endpoints (docs/adr/0012-scaling-of-endpoints.md).

use serde::{Deserialize, Serialize};

use crate::NamespaceName;
use crate::tokens::{EndpointName, GatewayName, ModelVersion, ReplicaName};

/// Milliseconds until a question is answered though nothing calls.
pub const PATIENCE_MS: u64 = 1_000;

/// The answer to `GET /load?after=N`, which comes at once when there was another number of calls than `N`, and after [`PATIENCE_MS`] otherwise.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct LoadReport {
    /// Who tells.
    pub gateway: GatewayName,
    /// Milliseconds since it began. An endpoint that is not named here had no request for so long.
    pub up_ms: u64,
    /// Calls since then: times at which a request began to wait for a replica where none waited.
    pub calls: u64,
    /// The endpoints that had a request since then.
    pub endpoints: Vec<EndpointLoad>,
    /// Of the endpoints that scale by it: their KV caches.
    #[serde(default)]
    pub caches: Vec<EndpointCaches>,
}

/// The load of one endpoint at one gateway.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct EndpointLoad {
    /// Its namespace.
    pub namespace: NamespaceName,
    /// Its name.
    pub endpoint: EndpointName,
    /// Requests that were let in and have not ended, whether they run or wait.
    pub in_flight: u64,
    /// Of these, requests of whose answer nothing has come yet.
    pub queued: u64,
    /// Of these, requests that wait for a replica.
    pub held: u64,
    /// Milliseconds since the last request ended; 0 while there is one.
    pub idle_ms: u64,
    /// Tokens of answers since the gateway began.
    pub tokens: u64,
    /// How its requests ended since then, by version.
    #[serde(default)]
    pub versions: Vec<VersionLoad>,
}

/// How requests to one version ended since the gateway began. What its clients made of them is no part of it.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct VersionLoad {
    /// Which.
    pub version: ModelVersion,
    /// Requests that were answered, be it by a refusal.
    pub answered: u64,
    /// Requests that failed by the engine's fault.
    pub failed: u64,
}

/// The KV caches of an endpoint's replicas, as one gateway has read them. Other gateways read the same ones.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct EndpointCaches {
    /// Its namespace.
    pub namespace: NamespaceName,
    /// Its name.
    pub endpoint: EndpointName,
    /// Replicas that are wanted, as this gateway knows it.
    pub wanted: u32,
    /// What each is to have in use, in percent.
    pub target_percent: u32,
    /// The replicas that answer.
    pub replicas: Vec<ReplicaCache>,
}

/// The KV cache of one replica.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ReplicaCache {
    /// Its name.
    pub replica: ReplicaName,
    /// What is known of it.
    pub reading: CacheReading,
}

/// What is known of a KV cache.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum CacheReading {
    /// So much of it was in use.
    #[serde(rename_all = "camelCase")]
    Used {
        /// Millionths of it.
        millionths: u32,
        /// Milliseconds since that was read.
        age_ms: u64,
    },
    /// Nothing is.
    Unknown(CacheUnknown),
}

/// Why nothing is known of a KV cache.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize, thiserror::Error)]
#[serde(rename_all = "camelCase")]
pub enum CacheUnknown {
    /// It is a new replica.
    #[error("it has not been read yet")]
    NotRead,
    /// Its `/metrics` gave no answer.
    #[error("its /metrics gives no answer in time, or too large a one")]
    NoAnswer,
    /// It has no `/metrics`.
    #[error("its engine has no /metrics")]
    NoMetrics,
    /// No metric tells it.
    #[error(
        "no metric of its engine tells it: this version of the engine does not export it, so scale by something else"
    )]
    NotExported,
    /// What is told is no ratio.
    #[error("what its engine tells is no ratio from 0 to 1")]
    NoRatio,
    /// The runtime preset of its version knows no metric that would.
    #[error("the runtime preset of its version knows no metric that tells it: scale by something else")]
    NotOfPreset,
}
