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
    /// How many replicas are wanted. Left out by GitOps, and written by the autoscaler.
    #[serde(default = "default_replicas")]
    #[schemars(range(min = 0, max = 1000))]
    pub replicas: i32,
    /// Who beside the namespace's own tenant may call it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub access: Option<Access>,
}

fn default_replicas() -> i32 {
    1
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
    /// `Ready`: it answers. `Reconciling`: replicas are on their way. `Stalled`: a person must help.
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
    /// Replicas for which devices are booked.
    #[serde(default)]
    #[schemars(range(min = 0))]
    pub bookable_replicas: i32,
    /// Selects the pods of the replicas.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 512))]
    pub selector: Option<String>,
    /// Host and port of the Service before the replicas, for the gateway.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 300))]
    pub address: Option<String>,
}
