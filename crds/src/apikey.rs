//! `ApiKey`: a tenant's key for hosted models, and what is kept of it.

use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::Condition;

/// A key for hosted models. The operator makes it once and writes it into a new Secret; only its hash is kept.
#[derive(Clone, CustomResource, Debug, Deserialize, Eq, KubeSchema, PartialEq, Serialize)]
#[kube(
    group = "spillway.dev",
    version = "v1alpha1",
    kind = "ApiKey",
    singular = "apikey",
    plural = "apikeys",
    category = "spillway",
    namespaced,
    status = "ApiKeyStatus",
    printcolumn(name = "Key", type_ = "string", json_path = ".status.prefix"),
    printcolumn(name = "Secret", type_ = "string", json_path = ".status.secretName"),
    printcolumn(name = "Expires", type_ = "date", json_path = ".spec.expiresAt"),
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].status"),
    printcolumn(name = "Reason", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].reason"),
    printcolumn(name = "Message", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].message", priority = 1),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    validation = ("size(self.metadata.name) <= 63", "the name of a key is at most 63 characters")
)]
#[serde(rename_all = "camelCase")]
pub struct ApiKeySpec {
    /// Name of the Secret that gets the key, as `OPENAI_API_KEY`. There must be none of that name: one that is there is never written. Another name
    /// makes another secret of the same key, and the one before is good for `overlap` longer.
    #[schemars(length(min = 1, max = 63), regex(pattern = "^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$"))]
    pub secret_name: String,
    /// How long the secret before is good after a change of `secretName`, as a Go duration from 0s to 720h.
    #[serde(default = "default_overlap")]
    #[schemars(length(min = 2, max = 32), regex(pattern = r"^([0-9]+(\.[0-9]+)?(h|m|s|ms))+$"))]
    #[x_kube(validation = ("duration(self) >= duration('0s') && duration(self) <= duration('720h')", "overlap must be from 0s to 720h"))]
    pub overlap: String,
    /// From when on it is no longer good. Absent: never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64), extend("format" = "date-time"))]
    pub expires_at: Option<String>,
    /// True takes it back. It can be given again.
    #[serde(default)]
    pub revoked: bool,
    /// Models that it may call, as a request names them: `<endpoint>`, or `<namespace>/<endpoint>`. Absent: all that its tenant may.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 256), inner(length(min = 1, max = 127)), extend("x-kubernetes-list-type" = "set"))]
    pub models: Option<Vec<String>>,
    /// Regions in which its requests may be processed, within those of its tenant. Empty: all of these.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32), inner(length(min = 1, max = 63)), extend("x-kubernetes-list-type" = "set"))]
    pub residency: Vec<String>,
    /// Its own limits, within those of its tenant.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limits: Option<ServingLimits>,
}

fn default_overlap() -> String {
    "24h".to_owned()
}

/// Limits of requests to hosted models. What is absent is not limited.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ServingLimits {
    /// Requests in a minute.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 1_000_000_000))]
    pub requests_per_minute: Option<i64>,
    /// Tokens in a minute, of prompts and of answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 1_000_000_000_000_i64))]
    pub tokens_per_minute: Option<i64>,
    /// Requests at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 1_000_000))]
    pub concurrency: Option<i64>,
}

/// What became of an `ApiKey`. Nothing of the key or its hash is here.
#[derive(Clone, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ApiKeyStatus {
    /// `metadata.generation` that was looked at.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// `Ready`: it was made, and gateways take it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
    /// The readable part of the key: `sk-spw-` and 8 characters. What logs and bills name it by.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32))]
    pub prefix: Option<String>,
    /// The Secret that has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 63))]
    pub secret_name: Option<String>,
    /// Until when the secret before is good, while it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64), extend("format" = "date-time"))]
    pub previous_expires_at: Option<String>,
}

/// What is kept of a key, as JSON in a Secret `keys-<shard>` of the operator's namespace under the key's id. All else is in the `ApiKey` of this UID:
/// without it the record is worth nothing.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct KeyRecord {
    /// UID of the `ApiKey`.
    pub uid: String,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// The Secret that its newest hashes are of.
    pub secret_name: String,
    /// Whether that Secret has been made. Until then, which of the newest hashes is that of the key is not known: all of them are taken, for of the
    /// others nobody has the key.
    pub issued: bool,
    /// The hashes that are taken.
    pub hashes: Vec<KeyHash>,
}

/// A hash of a key.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct KeyHash {
    /// SHA-256 of the whole key, in hexadecimal digits.
    pub sha256: String,
    /// From when on it is no longer taken, in Unix milliseconds: it is that of a Secret before. None: as long as the key is good.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_at_ms: Option<i64>,
}

/// Secrets `keys-<shard>` that there are. Each has room for some 3,000 keys.
pub const KEY_SHARDS: u8 = 16;

/// Name of a Secret with records of keys.
pub fn keys_secret(shard: u8) -> String {
    format!("keys-{shard}")
}

/// The shard of the `ApiKey` with this UID.
pub fn shard_of(uid: &str) -> u8 {
    // FNV-1a: it need only spread.
    let hash = uid
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    u8::try_from((hash >> 32) % u64::from(KEY_SHARDS)).unwrap_or(0)
}
