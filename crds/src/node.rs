//! `GpuNode`: what the agent on a node saw there. Spec written by the operator, status by the agent of that node only.

#![allow(clippy::duplicated_attributes, reason = "printer columns of one type look like repeated attributes")]

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What the agent on a node is asked, and what it answered. Named like its Node; internal.
#[derive(Clone, CustomResource, Debug, Deserialize, Eq, KubeSchema, PartialEq, Serialize)]
#[kube(
    group = "spillway.dev",
    version = "v1alpha1",
    kind = "GpuNode",
    singular = "gpunode",
    plural = "gpunodes",
    category = "spillway",
    status = "GpuNodeStatus",
    printcolumn(name = "Asked", type_ = "string", json_path = ".spec.check.id", description = "Last question"),
    printcolumn(name = "Answered", type_ = "string", json_path = ".status.check.id", description = "Last answer"),
    printcolumn(
        name = "Containers",
        type_ = "integer",
        json_path = ".status.check.total",
        description = "Containers at the answer"
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
pub struct GpuNodeSpec {
    /// UID of the Node object that is meant; a node that was re-created has another.
    #[schemars(length(min = 1, max = 64))]
    pub node_uid: String,
    /// The question that the agent is to answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub check: Option<CheckRequest>,
}

/// A question to the agent: which containers does the runtime really have now?
#[derive(Clone, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct CheckRequest {
    /// Id of the question; the answer repeats it.
    #[schemars(length(min = 1, max = 64))]
    pub id: String,
}

/// What the agent saw.
#[derive(Clone, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct GpuNodeStatus {
    /// The last answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub check: Option<CheckResult>,
}

/// An answer of the agent.
#[derive(Clone, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct CheckResult {
    /// Id of the question that is answered.
    #[schemars(length(min = 1, max = 64))]
    pub id: String,
    /// UID of the Node object that the question named.
    #[schemars(length(min = 1, max = 64))]
    pub node_uid: String,
    /// Boot id of the kernel at the answer; an answer from before a reboot does not count.
    #[schemars(length(max = 64))]
    pub boot_id: String,
    /// When the runtime was asked.
    pub observed_at: Time,
    /// Number of containers and pod sandboxes that the runtime has and that are not dead.
    #[schemars(range(min = 0))]
    pub total: i32,
    /// Those containers, at most 250 of them; `total` says whether there were more.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 250), extend("x-kubernetes-list-type" = "atomic"))]
    pub containers: Vec<RunningContainer>,
    /// Why the runtime could not be asked; then the list says nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub error: Option<String>,
}

/// One container or pod sandbox that is not dead.
#[derive(Clone, Debug, Deserialize, Eq, JsonSchema, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RunningContainer {
    /// Namespace of its pod; empty if the runtime knows none.
    #[schemars(length(max = 63))]
    pub namespace: String,
    /// Name of its pod.
    #[schemars(length(max = 253))]
    pub pod: String,
    /// UID of its pod, which tells it from an earlier pod of the same name; empty if the runtime knows none.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 64))]
    pub pod_uid: String,
    /// Name of the container; empty for a pod sandbox.
    #[schemars(length(max = 253))]
    pub container: String,
}
