//! `ModelEndpoint`: a model that is served.

use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::Condition;

/// A model that is served on booked capacity.
#[derive(Clone, CustomResource, Debug, Deserialize, Eq, KubeSchema, PartialEq, Serialize)]
#[kube(
    group = "spillway.dev",
    version = "v1alpha1",
    kind = "ModelEndpoint",
    singular = "modelendpoint",
    plural = "modelendpoints",
    category = "spillway",
    shortname = "me",
    namespaced,
    status = "ModelEndpointStatus",
    scale(spec_replicas_path = ".spec.replicas", status_replicas_path = ".status.replicas", label_selector_path = ".status.selector"),
    printcolumn(name = "Model", type_ = "string", json_path = ".spec.model.name"),
    printcolumn(name = "Version", type_ = "string", json_path = ".spec.model.version"),
    printcolumn(name = "Wanted", type_ = "integer", json_path = ".spec.replicas"),
    printcolumn(name = "Ready replicas", type_ = "integer", json_path = ".status.readyReplicas"),
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].status"),
    printcolumn(name = "Reason", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].reason"),
    printcolumn(name = "Address", type_ = "string", json_path = ".status.address", priority = 1),
    printcolumn(name = "Message", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].message", priority = 1),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    validation = ("size(self.metadata.name) <= 40", "the name of an endpoint is part of names of its Deployments and Services: at most 40 characters"),
    validation = ("self.metadata.name.matches('^[a-z]([a-z0-9-]*[a-z0-9])?$')", "the name of an endpoint may have lower-case letters, digits and dashes only, and begins with a letter: it is the name of a Service")
)]
#[serde(rename_all = "camelCase")]
pub struct ModelEndpointSpec {
    /// What is served.
    pub model: ServedModel,
    /// What it is served on.
    pub capacity: Capacity,
    /// How many replicas are wanted. With `scaling` it is written by the autoscaler, and left out by GitOps.
    #[serde(default = "default_replicas")]
    #[schemars(range(min = 0, max = 1000))]
    pub replicas: i32,
    /// How `replicas` follows what is asked. Without it, it stays as it is set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scaling: Option<Scaling>,
    /// For so long a replica that is told to go serves what it has, as a Go duration from 5s to 1h. Its engine is told to stop after that, and it
    /// keeps its devices until then. Pods may be given only so long to stop as the cluster's cap allows.
    #[serde(default = "default_drain")]
    #[schemars(length(min = 2, max = 32), regex(pattern = r"^([0-9]+(\.[0-9]+)?(h|m|s|ms))+$"))]
    #[x_kube(validation = ("duration(self) >= duration('5s') && duration(self) <= duration('1h')", "drain must be from 5s to 1h"))]
    pub drain: String,
    /// Who beside the namespace's own tenant may call it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub access: Option<Access>,
}

fn default_replicas() -> i32 {
    1
}

fn default_drain() -> String {
    "30s".to_owned()
}

/// How the number of replicas follows what is asked of them.
#[derive(Clone, Debug, Deserialize, Eq, KubeSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = ("self.min <= self.max", "scaling.min must not be above scaling.max"))]
pub struct Scaling {
    /// Fewest replicas. 0: none while nobody asks; the first request then waits until one has started.
    #[serde(default = "default_replicas")]
    #[schemars(range(min = 0, max = 1000))]
    pub min: i32,
    /// Most replicas, as far as devices are held for them.
    #[schemars(range(min = 1, max = 1000))]
    pub max: i32,
    /// What one replica is to have; of several the one that asks for most replicas counts.
    #[serde(default)]
    pub target: ScalingTarget,
    /// With `min` 0: after so long without a request there is no replica any more, as a Go duration from 1s to 168h.
    #[serde(default = "default_idle_after")]
    #[schemars(length(min = 2, max = 32), regex(pattern = r"^([0-9]+(\.[0-9]+)?(h|m|s|ms))+$"))]
    #[x_kube(validation = ("duration(self) >= duration('1s') && duration(self) <= duration('168h')", "scaling.idleAfter must be from 1s to 168h"))]
    pub idle_after: String,
    /// For so long fewer replicas must have been enough before there are fewer, but never none, as a Go duration from 0s to 1h.
    #[serde(default = "default_scale_down_after")]
    #[schemars(length(min = 2, max = 32), regex(pattern = r"^([0-9]+(\.[0-9]+)?(h|m|s|ms))+$"))]
    #[x_kube(validation = ("duration(self) >= duration('0s') && duration(self) <= duration('1h')", "scaling.scaleDownAfter must be from 0s to 1h"))]
    pub scale_down_after: String,
}

fn default_idle_after() -> String {
    "10m".to_owned()
}

fn default_scale_down_after() -> String {
    "5m".to_owned()
}

/// What one replica is to have. Left out: 16 requests.
#[derive(Clone, Debug, Deserialize, Eq, KubeSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = (
    "has(self.inFlightPerReplica) || has(self.queuedPerReplica) || has(self.tokensPerSecondPerReplica) || has(self.kvCachePercentPerReplica)",
    "scaling.target names nothing: set inFlightPerReplica, queuedPerReplica, tokensPerSecondPerReplica or kvCachePercentPerReplica"
))]
pub struct ScalingTarget {
    /// Requests that run at a replica or wait for one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 10000))]
    pub in_flight_per_replica: Option<i32>,
    /// Requests that run and have no first token yet, or wait for a replica.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 10000))]
    pub queued_per_replica: Option<i32>,
    /// Tokens of answers a second, over the last half minute.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 10000000))]
    pub tokens_per_second_per_replica: Option<i32>,
    /// How much of its KV cache is in use, in percent, on average over the replicas, as their engines say. It is known of vLLM, and of no engine that
    /// does not tell it; then the number of replicas stands still.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 100))]
    pub kv_cache_percent_per_replica: Option<i32>,
}

impl Default for ScalingTarget {
    fn default() -> Self {
        Self {
            in_flight_per_replica: Some(16),
            queued_per_replica: None,
            tokens_per_second_per_replica: None,
            kv_cache_percent_per_replica: None,
        }
    }
}

/// Which version of which model.
#[derive(Clone, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ServedModel {
    /// Name of the `Model`.
    #[schemars(length(min = 1, max = 63))]
    pub name: String,
    /// Which of its versions.
    #[schemars(length(min = 1, max = 32))]
    pub version: String,
}

/// What an endpoint is served on.
#[derive(Clone, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Capacity {
    /// Name of a `GpuReservation` of the endpoint's namespace, on whose devices the replicas run.
    #[schemars(length(min = 1, max = 63))]
    pub reservation: String,
    /// What more replicas run on than the reservation has devices for: a reservation of its own for each of them, which the operator makes, and ends
    /// with its replica.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub burst: Option<Burst>,
}

/// Replicas beyond the named reservation.
#[derive(Clone, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Burst {
    /// Most replicas beyond the named reservation. Quotas of the tenant count for them as for all reservations.
    #[schemars(range(min = 1, max = 64))]
    pub max_replicas: i32,
    /// The `GpuPool` to take their devices from; without it that of the named reservation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63))]
    pub pool: Option<String>,
    /// On which terms.
    #[serde(default)]
    pub tier: BurstTier,
}

/// Terms of replicas beyond the named reservation.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
pub enum BurstTier {
    /// Open-ended, with no promise to start.
    #[default]
    OnDemand,
}

/// Who may call an endpoint.
#[derive(Clone, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Access {
    /// Tenants beside the namespace's own. Only endpoints in a namespace of an owner Tenant may name any.
    #[schemars(length(max = 256), inner(length(min = 1, max = 63)), extend("x-kubernetes-list-type" = "set"))]
    pub tenants: Vec<String>,
}

/// How an endpoint does.
#[derive(Clone, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ModelEndpointStatus {
    /// `metadata.generation` that was looked at.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// `Ready`: it answers. `Reconciling`: replicas are on their way. `Stalled`: a person must help. `Autoscaling`, with `spec.scaling`: whether
    /// replicas follow what is asked.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
    /// Replicas that there are.
    #[serde(default)]
    #[schemars(range(min = 0))]
    pub replicas: i32,
    /// Of these, those that answer.
    #[serde(default)]
    #[schemars(range(min = 0))]
    pub ready_replicas: i32,
    /// Replicas for which devices are booked, or, by `spec.capacity.burst`, may be.
    #[serde(default)]
    #[schemars(range(min = 0))]
    pub bookable_replicas: i32,
    /// It went to no replica because nobody asked, and a request or a change of `spec.scaling` brings it back. One that a person scaled to none is not.
    #[serde(default)]
    pub asleep: bool,
    /// Selects the pods of the replicas.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 512))]
    pub selector: Option<String>,
    /// Host and port of the Service before the replicas, for the gateway.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 300))]
    pub address: Option<String>,
}
