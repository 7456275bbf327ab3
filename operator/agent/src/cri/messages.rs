//! The part of `runtime.v1` (kubernetes/cri-api, `pkg/apis/runtime/v1/api.proto`) that the agent reads.
//!
//! Written by hand: two calls and a dozen fields do not justify a protobuf compiler in the build. Field numbers are the
//! contract; unknown fields are skipped by the decoder. States are read as numbers, so that a state of a newer runtime
//! is seen and not lost.

use std::collections::HashMap;

/// `runtime.v1.RuntimeService/ListPodSandbox`.
pub(crate) const LIST_POD_SANDBOX: &str = "/runtime.v1.RuntimeService/ListPodSandbox";
/// `runtime.v1.RuntimeService/ListContainers`.
pub(crate) const LIST_CONTAINERS: &str = "/runtime.v1.RuntimeService/ListContainers";

/// `PodSandboxState.SANDBOX_NOTREADY`; 0 is `SANDBOX_READY`.
pub(crate) const SANDBOX_NOTREADY: i32 = 1;
/// `ContainerState.CONTAINER_EXITED`; 0 is created, 1 running, 3 unknown.
pub(crate) const CONTAINER_EXITED: i32 = 2;

/// A list request without a filter: the states are judged here, where they are tested.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct ListRequest {}

/// `ListPodSandboxResponse`.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct ListPodSandboxResponse {
    #[prost(message, repeated, tag = "1")]
    pub(crate) items: Vec<PodSandbox>,
}

/// `PodSandbox`.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct PodSandbox {
    #[prost(string, tag = "1")]
    pub(crate) id: String,
    #[prost(message, optional, tag = "2")]
    pub(crate) metadata: Option<PodSandboxMetadata>,
    #[prost(int32, tag = "3")]
    pub(crate) state: i32,
}

/// `PodSandboxMetadata`.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct PodSandboxMetadata {
    #[prost(string, tag = "1")]
    pub(crate) name: String,
    #[prost(string, tag = "2")]
    pub(crate) uid: String,
    #[prost(string, tag = "3")]
    pub(crate) namespace: String,
}

/// `ListContainersResponse`.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct ListContainersResponse {
    #[prost(message, repeated, tag = "1")]
    pub(crate) containers: Vec<Container>,
}

/// `Container`.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Container {
    #[prost(string, tag = "1")]
    pub(crate) id: String,
    #[prost(string, tag = "2")]
    pub(crate) pod_sandbox_id: String,
    #[prost(message, optional, tag = "3")]
    pub(crate) metadata: Option<ContainerMetadata>,
    #[prost(int32, tag = "6")]
    pub(crate) state: i32,
    #[prost(map = "string, string", tag = "8")]
    pub(crate) labels: HashMap<String, String>,
}

/// `ContainerMetadata`.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct ContainerMetadata {
    #[prost(string, tag = "1")]
    pub(crate) name: String,
}
