//! `Model`: what can be served, and how.

use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::Condition;

/// What a model can be asked for.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, JsonSchema, Ord, PartialEq, PartialOrd, Serialize)]
pub enum Capability {
    /// `/v1/chat/completions`.
    Chat,
    /// `/v1/completions`.
    Completions,
    /// `/v1/embeddings`.
    Embeddings,
}

/// Which engine serves a version: its arguments, probes, ports and names of metrics.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, JsonSchema, PartialEq, Serialize)]
pub enum Preset {
    /// vLLM's OpenAI-compatible server (`vllm serve`).
    Vllm,
    /// llama.cpp's server (`llama-server`).
    LlamaCpp,
    /// Any image with an OpenAI-compatible server, which is told nothing but its own `args`.
    OpenAi,
}

impl Preset {
    /// Metrics by which an engine tells at `/metrics` how much of its KV cache is in use, as a ratio from 0 to 1: names of today first. None: it tells
    /// it by no name that is known.
    pub fn kv_cache_metrics(self) -> &'static [&'static str] {
        match self {
            // https://docs.vllm.ai, "Production Metrics". Until 2025 it was the second.
            Self::Vllm => &["vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc"],
            // Only builds from before May 2025 have it: https://github.com/ggml-org/llama.cpp/pull/13660 took it away.
            Self::LlamaCpp => &["llamacpp:kv_cache_usage_ratio"],
            Self::OpenAi => &[],
        }
    }
}

/// An entry of the catalogue: versions of one model, each with its engine and needs.
#[derive(Clone, CustomResource, Debug, Deserialize, Eq, KubeSchema, PartialEq, Serialize)]
#[kube(
    group = "spillway.dev",
    version = "v1alpha1",
    kind = "Model",
    singular = "model",
    plural = "models",
    category = "spillway",
    status = "ModelStatus",
    printcolumn(name = "Capabilities", type_ = "string", json_path = ".spec.capabilities"),
    printcolumn(name = "Versions", type_ = "string", json_path = ".spec.versions[*].name"),
    printcolumn(name = "Used by", type_ = "integer", json_path = ".status.endpointCount"),
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].status"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    validation = ("size(self.metadata.name) <= 63", "the name of a model is a label value: at most 63 characters")
)]
#[serde(rename_all = "camelCase")]
pub struct ModelSpec {
    /// What it can be asked for.
    #[schemars(length(min = 1, max = 3), extend("x-kubernetes-list-type" = "set"))]
    pub capabilities: Vec<Capability>,
    /// Its versions. One that an endpoint serves cannot be taken out.
    #[schemars(length(min = 1, max = 32), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub versions: Vec<ModelVersion>,
}

/// One version of a model.
#[derive(Clone, Debug, Deserialize, Eq, KubeSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = ("has(self.runtime) == has(self.needs)", "a version has both runtime and needs, or, where only providers serve it, neither"))]
pub struct ModelVersion {
    /// Its name, such as `q4` or `2026-10`.
    #[schemars(length(min = 1, max = 32), regex(pattern = "^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$"))]
    pub name: String,
    /// What serves it. Absent: only endpoints of providers do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub runtime: Option<Runtime>,
    /// Where its weights are. Absent: the image has them, or gets them by its own means.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<Source>,
    /// Where its engine keeps what it downloads and compiles, from one pod to the next. Absent: with its pod, so that each start does it anew.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache: Option<Cache>,
    /// Tokens of the longest prompt and answer together.
    #[schemars(range(min = 16, max = 100_000_000))]
    pub context_length: i32,
    /// What each replica needs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub needs: Option<Needs>,
}

/// What serves a version.
#[derive(Clone, Debug, Deserialize, Eq, KubeSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = ("self.preset != 'OpenAi' || has(self.port)", "runtime.port is needed with preset OpenAi: the port on which the image serves /v1"))]
pub struct Runtime {
    /// Which engine.
    pub preset: Preset,
    /// Its image.
    #[schemars(length(min = 1, max = 512))]
    pub image: String,
    /// Arguments behind those of the preset.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(max = 1024)), extend("x-kubernetes-list-type" = "atomic"))]
    pub args: Vec<String>,
    /// The port on which it serves `/v1`. Default: the preset's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65_535))]
    pub port: Option<i32>,
    /// The name under which the engine knows the model. Default: the name of the `Model`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 256))]
    pub served_name: Option<String>,
}

/// Where the weights of a version are: one of these.
#[derive(Clone, Debug, Deserialize, Eq, KubeSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = ("[has(self.path), has(self.claim), has(self.image), has(self.registry)].filter(x, x).size() == 1", "source names exactly one of path, claim, image, registry"))]
pub struct Source {
    /// A path inside the runtime's image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 512), regex(pattern = "^/"))]
    pub path: Option<String>,
    /// A path on a claim of the endpoint's namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub claim: Option<VolumeSource>,
    /// A path in an image that is mounted as a volume.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<VolumeSource>,
    /// A name that the runtime itself loads, such as `HuggingFaceTB/SmolLM2-135M-Instruct`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 512))]
    pub registry: Option<String>,
}

/// A volume that an engine writes.
#[derive(Clone, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Cache {
    /// Name of a claim of the endpoint's namespace; of access mode `ReadWriteMany` where replicas are on several nodes.
    #[schemars(length(min = 1, max = 253))]
    pub claim: String,
}

/// A volume, and the weights on it.
#[derive(Clone, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct VolumeSource {
    /// Name of the claim, or reference of the image.
    #[schemars(length(min = 1, max = 512))]
    pub name: String,
    /// File or folder on it, relative to its root. Default: the root.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(
        length(max = 512),
        regex(pattern = r"^([A-Za-z0-9_-][A-Za-z0-9._-]*(/[A-Za-z0-9_-][A-Za-z0-9._-]*)*)?$")
    )]
    pub path: String,
}

/// What each replica of a version needs.
#[derive(Clone, Debug, Deserialize, Eq, KubeSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Needs {
    /// Devices.
    #[schemars(range(min = 1, max = 1024))]
    pub devices: i32,
    /// CPU, as a Kubernetes quantity, requested and limited.
    #[schemars(length(min = 1, max = 32), regex(pattern = r"^[0-9]+(\.[0-9]+)?m?$"))]
    pub cpu: String,
    /// Memory, as a Kubernetes quantity, requested and limited.
    #[schemars(length(min = 1, max = 32), regex(pattern = r"^[0-9]+(\.[0-9]+)?(Ki|Mi|Gi|Ti|k|M|G|T)?$"))]
    pub memory: String,
    /// Longest time from the container's start to its readiness, as a Go duration from 1s to 4h.
    #[serde(default = "default_startup")]
    #[schemars(length(min = 2, max = 32), regex(pattern = r"^([0-9]+(\.[0-9]+)?(h|m|s|ms))+$"))]
    #[x_kube(validation = ("duration(self) >= duration('1s') && duration(self) <= duration('4h')", "needs.startup must be from 1s to 4h"))]
    pub startup: String,
}

fn default_startup() -> String {
    "10m".to_owned()
}

/// What Spillway made of a `Model`.
#[derive(Clone, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ModelStatus {
    /// `metadata.generation` that was looked at.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// `Ready`: it can be served.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
    /// Endpoints that serve it, as `namespace/name`, at most 16 of them: while there are any, the model cannot be deleted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), inner(length(max = 128)), extend("x-kubernetes-list-type" = "set"))]
    pub endpoints: Vec<String>,
    /// How many endpoints serve it.
    #[serde(default)]
    #[schemars(range(min = 0))]
    pub endpoint_count: i32,
}
