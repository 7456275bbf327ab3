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
    validation = ("has(self.spec.capacity) != has(self.spec.external)", "set exactly one of spec.capacity and spec.external"),
    validation = ("has(self.spec.external) == has(oldSelf.spec.external)", "an endpoint of our own replicas and one of a provider do not become each other: make another ModelEndpoint"),
    validation = ("!has(self.spec.external) || !(has(self.spec.scaling) || has(self.spec.canary))", "an endpoint of a provider has no replicas: leave out spec.scaling and spec.canary"),
    validation = ("!has(self.spec.canary) || self.spec.canary.version != self.spec.model.version", "spec.canary.version is what all of the endpoint serves: name another version, or leave spec.canary out"),
    validation = ("!has(self.spec.routing) || !has(self.spec.routing.fallback) || self.spec.routing.fallback.all(one, one.endpoint != self.metadata.name)", "spec.routing.fallback names the endpoint itself: name another one of its namespace"),
    validation = ("size(self.metadata.name) <= 40", "the name of an endpoint is part of names of its Deployments and Services: at most 40 characters"),
    validation = ("self.metadata.name.matches('^[a-z]([a-z0-9-]*[a-z0-9])?$')", "the name of an endpoint may have lower-case letters, digits and dashes only, and begins with a letter: it is the name of a Service")
)]
#[serde(rename_all = "camelCase")]
pub struct ModelEndpointSpec {
    /// What is served.
    pub model: ServedModel,
    /// Another version that is tried with a part of the requests. Taken out, its replicas go; to promote it, name it in `model.version` instead.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub canary: Option<Canary>,
    /// What it is served on: this, or `external`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub capacity: Option<Capacity>,
    /// Who else serves it: a provider with an OpenAI-compatible API. Only in namespaces of an owner Tenant.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub external: Option<External>,
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
    /// Which of its replicas a request goes to, and where else.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub routing: Option<Routing>,
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

/// Another version that is tried.
#[derive(Clone, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Canary {
    /// Which of the model's versions. One that was rolled back is tried again once `canary` was taken out, or has named another version.
    #[schemars(length(min = 1, max = 32))]
    pub version: String,
    /// Percent of the requests that go to it while it has replicas that answer. Of the replicas it has about this part, at least one, and never all.
    #[schemars(range(min = 1, max = 99))]
    pub weight: i32,
    /// It is rolled back when more than this percent of its requests failed by the engine's fault, and more than of the other version's.
    #[serde(default = "default_max_error_percent")]
    #[schemars(range(min = 0, max = 100))]
    pub max_error_percent: i32,
    /// Requests to it before it is judged.
    #[serde(default = "default_min_requests")]
    #[schemars(range(min = 1, max = 100_000))]
    pub min_requests: i32,
}

fn default_max_error_percent() -> i32 {
    5
}

fn default_min_requests() -> i32 {
    20
}

/// A provider that serves the model.
#[derive(Clone, Debug, Deserialize, Eq, KubeSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = ("!has(self.credentials) || self.url.startsWith('https://')", "external.credentials go by https only: set external.url to an https address"))]
pub struct External {
    /// Where its `/chat/completions` is, such as `https://api.example.com/v1`.
    #[schemars(
        length(min = 8, max = 512),
        regex(pattern = r"^https?://[A-Za-z0-9.-]+(:[0-9]{1,5})?(/[A-Za-z0-9._~-]+)*$")
    )]
    pub url: String,
    /// The model's name at it.
    #[schemars(length(min = 1, max = 256))]
    pub model: String,
    /// Which key of the gateways' Secret of credentials has its key (`gateway.providers.secretName` of the chart). Absent: it asks for none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253), regex(pattern = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"))]
    pub credentials: Option<String>,
    /// The region in which it processes requests. Absent: it is not known, and whose data may not leave some regions is not served by it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63))]
    pub region: Option<String>,
}

/// Where requests go.
#[derive(Clone, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Routing {
    /// Which replica a request goes to.
    #[serde(default)]
    pub policy: RoutingPolicy,
    /// Endpoints of the same namespace that are asked, in this order, when none of its own replicas takes a request now. Whoever may call this endpoint is
    /// served by them; what they used is on the bill as theirs.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 4), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["endpoint"]))]
    pub fallback: Vec<Fallback>,
}

/// Which replica a request goes to.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
pub enum RoutingPolicy {
    /// The one that is expected to give the first token soonest, by what it has of the prompt in its cache and what it has to do.
    #[default]
    PrefixAffinity,
    /// The one with fewest tokens of prompts under way.
    LeastTokens,
    /// One after the other.
    RoundRobin,
}

/// Who is asked when an endpoint cannot answer.
#[derive(Clone, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Fallback {
    /// Name of a `ModelEndpoint` of the same namespace.
    #[schemars(length(min = 1, max = 63))]
    pub endpoint: String,
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
    /// replicas follow what is asked. `Canary`, with `spec.canary`: whether that version is tried.
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
    /// Versions that there are replicas of, or are to be.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["version"]))]
    pub versions: Vec<VersionStatus>,
    /// What became of `spec.canary`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub canary: Option<CanaryStatus>,
    /// Regions in which its requests may be processed: those of the pools of its capacity, or of its provider. Empty: they are not known.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8), inner(length(max = 63)), extend("x-kubernetes-list-type" = "set"))]
    pub regions: Vec<String>,
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

/// One version at an endpoint.
#[derive(Clone, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct VersionStatus {
    /// Which.
    #[schemars(length(max = 32))]
    pub version: String,
    /// Percent of the requests that go to it. Absent: it goes, as those of the others come.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 100))]
    pub weight: Option<i32>,
    /// Replicas of it that there are.
    #[serde(default)]
    #[schemars(range(min = 0))]
    pub replicas: i32,
    /// Of these, those that answer.
    #[serde(default)]
    #[schemars(range(min = 0))]
    pub ready_replicas: i32,
}

/// What became of a canary.
#[derive(Clone, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct CanaryStatus {
    /// Of which version.
    #[schemars(length(max = 32))]
    pub version: String,
    /// How it is.
    pub phase: CanaryPhase,
}

/// How a canary is.
#[derive(Clone, Copy, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
pub enum CanaryPhase {
    /// It is tried.
    Running,
    /// It failed, and gets no requests any more.
    RolledBack,
}
