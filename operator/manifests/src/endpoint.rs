//! What a `ModelEndpoint` is laid out as: one Deployment for its model version on the reservation that it names, one for each burst reservation, and one
//! Service before all.
//!
//! The presets are arguments, ports and probes of engines as their own documentation has them. A pod asks for its devices, and names by a label the
//! reservation on whose devices it runs; where it may land is not decided here.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde_json::{Value, json};
use spillway_crds::{
    CanaryPhase, CanaryStatus, ConditionStatus, Model, ModelEndpoint, ModelEndpointStatus, ModelVersion, Needs, Preset,
    Runtime, Scaling, Source,
    names::{ENDPOINT_LABEL, MODEL_LABEL, RESERVATION_LABEL, VERSION_LABEL, host_of},
    parse_duration_ms,
};

use crate::conditions::{Wanted, merge};

/// Where the volume with a model's weights is mounted.
const MODELS: &str = "/models";
/// Where the volume is mounted on which an engine keeps what it downloads and compiles.
const CACHE: &str = "/cache";
/// The group of what is on it.
const CACHE_GROUP: i64 = 65_532;
/// Seconds that an engine has to end when it is told to, after its drain.
pub const STOP_SECONDS: u32 = 10;
/// Seconds in which a pod is placed and its image is there.
const SCHEDULING_SECONDS: i64 = 120;
/// Reason of an endpoint that has no replica because nobody asks.
pub const ASLEEP: &str = "Asleep";
/// Reason of an endpoint that a provider serves.
const EXTERNAL: &str = "External";
/// Label in the selector of an autoscaler of ours, beside the endpoint's: its value [`SCALING_SPEC`] says that the endpoint's spec is to ask for the metric.
pub const SCALING_LABEL: &str = "spillway.dev/scaling";
/// See [`SCALING_LABEL`].
pub const SCALING_SPEC: &str = "spec";
/// Metric of requests that run or wait.
pub const METRIC_IN_FLIGHT: &str = "spillway-in-flight";
/// Metric of requests that have no first token yet.
pub const METRIC_QUEUED: &str = "spillway-queued";
/// Metric of tokens of answers a second.
pub const METRIC_TOKENS: &str = "spillway-tokens-per-second";
/// Metric of KV cache in use: the sum over replicas of what each has in use, in percent.
pub const METRIC_KV_CACHE: &str = "spillway-kv-cache-percent";
/// The condition that says whether replicas follow what is asked.
const AUTOSCALING: &str = "Autoscaling";
/// The condition that says whether another version is tried.
const CANARY: &str = "Canary";
/// Seconds between two startup probes.
const STARTUP_PERIOD: i64 = 2;

/// All that an endpoint is laid out from; whoever makes one has found that it can be.
#[derive(Clone, Debug)]
pub struct Serving<'a> {
    /// The endpoint.
    pub endpoint: &'a ModelEndpoint,
    /// Its namespace.
    pub namespace: &'a str,
    /// Its name.
    pub name: &'a str,
    /// Name of the model.
    pub model: &'a str,
    /// The version that is served.
    pub version: &'a ModelVersion,
    /// What serves that version.
    pub runtime: &'a Runtime,
    /// What each replica of it needs.
    pub needs: &'a Needs,
    /// The extended resource of the pool.
    pub resource: &'a str,
    /// The pool of burst reservations.
    pub pool: &'a str,
    /// Name of the reservation that the endpoint names.
    pub reservation: &'a str,
    /// Seconds for which a replica that is told to go serves what it has.
    pub drain_seconds: u32,
}

/// How an engine is started and asked.
struct Engine {
    command: Option<Vec<&'static str>>,
    port: i32,
    health: &'static str,
}

fn engine(preset: Preset) -> Engine {
    match preset {
        // https://docs.vllm.ai: `vllm serve`, port 8000, /health.
        Preset::Vllm => Engine { command: Some(vec!["vllm", "serve"]), port: 8000, health: "/health" },
        // https://github.com/ggml-org/llama.cpp, tools/server: the image's entry point is llama-server; port 8080, /health says 503 while it loads.
        Preset::LlamaCpp => Engine { command: None, port: 8080, health: "/health" },
        Preset::OpenAi => Engine { command: None, port: 0, health: "/v1/models" },
    }
}

/// The port on which an engine serves.
pub fn port(runtime: &Runtime) -> i32 {
    runtime.port.unwrap_or_else(|| engine(runtime.preset).port)
}

/// What the engine is told to load.
fn weights(source: Option<&Source>) -> Option<String> {
    let source = source?;
    let on_volume = |path: &str| if path.is_empty() { MODELS.to_owned() } else { format!("{MODELS}/{path}") };
    source
        .path
        .clone()
        .or_else(|| source.registry.clone())
        .or_else(|| source.claim.as_ref().or(source.image.as_ref()).map(|volume| on_volume(&volume.path)))
}

fn args(serving: &Serving<'_>) -> Vec<String> {
    let (version, runtime) = (serving.version, serving.runtime);
    let (name, port) = (runtime.served_name.as_deref().unwrap_or(serving.model), port(runtime).to_string());
    let context = version.context_length.to_string();
    let weights = weights(version.source.as_ref());
    let mut args: Vec<String> = Vec::new();
    let mut push = |all: &[&str]| args.extend(all.iter().map(|one| (*one).to_owned()));
    match runtime.preset {
        Preset::Vllm => {
            push(&[weights.as_deref().unwrap_or(serving.model)]);
            push(&["--served-model-name", name, "--host", "0.0.0.0", "--port", &port, "--max-model-len", &context]);
            push(&["--tensor-parallel-size", &serving.needs.devices.to_string()]);
            // Without it usage does not tell of cached tokens.
            push(&["--enable-prompt-tokens-details"]);
        }
        Preset::LlamaCpp => {
            if let Some(path) = &weights {
                push(&["--model", path]);
            }
            push(&["--alias", name, "--host", "0.0.0.0", "--port", &port, "--ctx-size", &context, "--metrics"]);
        }
        Preset::OpenAi => {}
    }
    args.extend(runtime.args.iter().cloned());
    args
}

/// Where replicas of an endpoint run.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Place {
    /// On the reservation that the endpoint names: so many.
    Named(i32),
    /// One, on the burst reservation of this number.
    Burst(i32),
}

/// Name of the Deployment of an endpoint for one version and place.
pub fn deployment_name(endpoint: &str, version: &str, place: Place) -> String {
    let version = host_of(version);
    match place {
        Place::Named(_) => format!("{endpoint}-{version}"),
        Place::Burst(number) => format!("{endpoint}-{version}-burst-{number}"),
    }
}

/// Name of a burst reservation of an endpoint.
pub fn burst_name(endpoint: &str, number: i32) -> String {
    format!("{endpoint}-burst-{number}")
}

/// A burst reservation, to be created: the devices of one replica, on one node.
pub fn build_burst(serving: &Serving<'_>, number: i32) -> Value {
    let mut metadata = metadata(serving);
    if let Some(fields) = metadata.as_object_mut() {
        fields.insert("name".to_owned(), json!(burst_name(serving.name, number)));
    }
    let devices = serving.needs.devices;
    json!({
        "apiVersion": "spillway.dev/v1alpha1",
        "kind": "GpuReservation",
        "metadata": metadata,
        "spec": {
            "pool": serving.pool,
            "devices": {"count": devices, "perNode": devices},
            "exclusiveNodes": false,
            "tier": "OnDemand",
            // For as long as its replica is wanted; it is deleted with it.
            "waitFor": "8784h",
        },
    })
}

/// Labels by which an endpoint's pods are found, whatever version they are of.
pub fn selector(endpoint: &str) -> BTreeMap<&'static str, String> {
    [(ENDPOINT_LABEL, endpoint.to_owned())].into()
}

fn labels(serving: &Serving<'_>, place: Place) -> BTreeMap<&'static str, String> {
    let mut labels = selector(serving.name);
    labels.insert(MODEL_LABEL, serving.model.to_owned());
    labels.insert(VERSION_LABEL, serving.version.name.clone());
    labels.insert(
        RESERVATION_LABEL,
        match place {
            Place::Named(_) => serving.reservation.to_owned(),
            Place::Burst(number) => burst_name(serving.name, number),
        },
    );
    labels
}

fn owner(endpoint: &ModelEndpoint) -> Value {
    json!([{
        "apiVersion": "spillway.dev/v1alpha1", "kind": "ModelEndpoint", "controller": true,
        "blockOwnerDeletion": true,
        "name": endpoint.metadata.name, "uid": endpoint.metadata.uid,
    }])
}

fn volumes(version: &ModelVersion) -> (Vec<Value>, Vec<Value>) {
    let mut volumes =
        vec![json!({"name": "scratch", "emptyDir": {}}), json!({"name": "shm", "emptyDir": {"medium": "Memory"}})];
    let mut mounts =
        vec![json!({"name": "scratch", "mountPath": "/tmp"}), json!({"name": "shm", "mountPath": "/dev/shm"})];
    let models = version.source.as_ref().and_then(|source| {
        let claim = source.claim.as_ref().map(
            |claim| json!({"name": "models", "persistentVolumeClaim": {"claimName": claim.name, "readOnly": true}}),
        );
        claim.or_else(|| {
            let image = source.image.as_ref()?;
            Some(json!({"name": "models", "image": {"reference": image.name, "pullPolicy": "IfNotPresent"}}))
        })
    });
    if let Some(models) = models {
        volumes.push(models);
        mounts.push(json!({"name": "models", "mountPath": MODELS, "readOnly": true}));
    }
    if let Some(cache) = &version.cache {
        volumes.push(json!({"name": "cache", "persistentVolumeClaim": {"claimName": cache.claim}}));
        mounts.push(json!({"name": "cache", "mountPath": CACHE}));
    }
    (volumes, mounts)
}

/// The Deployment, for server-side apply.
pub fn build_deployment(serving: &Serving<'_>, place: Place) -> Value {
    let (version, runtime, wants) = (serving.version, serving.runtime, serving.needs);
    let engine = engine(runtime.preset);
    let startup_ms = parse_duration_ms(&wants.startup).unwrap_or(600_000);
    let probe = json!({"path": engine.health, "port": "http"});
    let needs = json!({
        "cpu": wants.cpu, "memory": wants.memory,
        serving.resource: wants.devices.to_string(),
    });
    let (volumes, mounts) = volumes(version);
    let mut container = json!({
        "name": "engine",
        "image": runtime.image,
        "args": args(serving),
        // What engines write (caches, compiled kernels) goes where it may: below HOME, as `~/.cache`.
        "env": [{"name": "HOME", "value": if version.cache.is_some() { CACHE } else { "/tmp" }}],
        "ports": [{"name": "http", "containerPort": port(runtime)}],
        "resources": {"requests": needs, "limits": needs},
        "startupProbe": {
            "httpGet": probe, "periodSeconds": STARTUP_PERIOD, "timeoutSeconds": 5,
            "failureThreshold": (startup_ms / 1000 / STARTUP_PERIOD).max(1),
        },
        "readinessProbe": {"httpGet": probe, "periodSeconds": 5, "timeoutSeconds": 5, "failureThreshold": 2},
        // An engine that is busy with one long prompt must not be restarted for it.
        "livenessProbe": {"httpGet": probe, "periodSeconds": 15, "timeoutSeconds": 15, "failureThreshold": 8},
        "lifecycle": {"preStop": {"sleep": {"seconds": serving.drain_seconds}}},
        "securityContext": {
            "allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true, "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": mounts,
    });
    if let (Some(command), Some(fields)) = (engine.command, container.as_object_mut()) {
        fields.insert("command".to_owned(), json!(command));
    }
    let mut security = json!({"seccompProfile": {"type": "RuntimeDefault"}});
    if let (Some(_), Some(fields)) = (&version.cache, security.as_object_mut()) {
        // Whoever the image's user is may write there.
        fields.insert("fsGroup".to_owned(), json!(CACHE_GROUP));
        fields.insert("fsGroupChangePolicy".to_owned(), json!("OnRootMismatch"));
    }
    let mut wanted = selector(serving.name);
    wanted.insert(VERSION_LABEL, version.name.clone());
    let mut replicas = 1;
    match place {
        Place::Named(count) => replicas = count,
        Place::Burst(number) => drop(wanted.insert(RESERVATION_LABEL, burst_name(serving.name, number))),
    }
    json!({
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {
            "name": deployment_name(serving.name, &version.name, place),
            "namespace": serving.namespace,
            "labels": labels(serving, place),
            "ownerReferences": owner(serving.endpoint),
        },
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": wanted},
            // Until a pod that goes has drained, and the one in its place has started.
            "progressDeadlineSeconds":
                startup_ms / 1000 + i64::from(serving.drain_seconds) + i64::from(STOP_SECONDS) + SCHEDULING_SECONDS,
            // In place, one at a time: a new version needs no device that is not held.
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 0, "maxUnavailable": 1}},
            "template": {
                "metadata": {"labels": labels(serving, place)},
                "spec": {
                    // So its EndpointSlice says of which version a pod is.
                    "hostname": host_of(&version.name),
                    "subdomain": serving.name,
                    "automountServiceAccountToken": false,
                    "enableServiceLinks": false,
                    "terminationGracePeriodSeconds": serving.drain_seconds.saturating_add(STOP_SECONDS),
                    "securityContext": security,
                    "containers": [container],
                    "volumes": volumes,
                },
            },
        },
    })
}

/// The Service before the replicas, for server-side apply.
pub fn build_service(serving: &Serving<'_>) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata(serving),
        "spec": {
            "selector": selector(serving.name),
            "ports": [{"name": "http", "port": 80, "targetPort": "http", "protocol": "TCP"}],
        },
    })
}

/// The PodDisruptionBudget of the replicas, for server-side apply: a drain takes them one at a time.
pub fn build_disruption_budget(serving: &Serving<'_>) -> Value {
    json!({
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": metadata(serving),
        "spec": {
            "maxUnavailable": 1,
            // A pod that is not ready anyway does not stop a drain.
            "unhealthyPodEvictionPolicy": "AlwaysAllow",
            "selector": {"matchLabels": selector(serving.name)},
        },
    })
}

/// Metrics, and what a replica is to have of each.
fn targets(scaling: &Scaling) -> [(&'static str, Option<i32>); 4] {
    let target = &scaling.target;
    [
        (METRIC_IN_FLIGHT, target.in_flight_per_replica),
        (METRIC_QUEUED, target.queued_per_replica),
        (METRIC_TOKENS, target.tokens_per_second_per_replica),
        (METRIC_KV_CACHE, target.kv_cache_percent_per_replica),
    ]
}

/// Whether an endpoint scales by a metric, by what its spec says.
pub fn scales_by(endpoint: &ModelEndpoint, metric: &str) -> bool {
    let scaling = endpoint.spec.scaling.as_ref();
    scaling.is_some_and(|scaling| targets(scaling).iter().any(|(name, target)| *name == metric && target.is_some()))
}

/// The HorizontalPodAutoscaler of the endpoint, for server-side apply, if it scales. From and to no replica is the operator's own. It asks in the name of
/// the spec: it is told nothing any more when that says something else, and so does nothing until it is changed or deleted.
pub fn build_autoscaler(serving: &Serving<'_>) -> Option<Value> {
    let scaling = serving.endpoint.spec.scaling.as_ref()?;
    let mut asking = selector(serving.name);
    asking.insert(SCALING_LABEL, SCALING_SPEC.to_owned());
    let metric = |(name, target): (&str, Option<i32>)| {
        Some(json!({"type": "External", "external": {
            "metric": {"name": name, "selector": {"matchLabels": asking}},
            "target": {"type": "AverageValue", "averageValue": target?.to_string()},
        }}))
    };
    let window = parse_duration_ms(&scaling.scale_down_after).unwrap_or(300_000).div_euclid(1_000);
    Some(json!({
        "apiVersion": "autoscaling/v2",
        "kind": "HorizontalPodAutoscaler",
        "metadata": metadata(serving),
        "spec": {
            "scaleTargetRef": {"apiVersion": "spillway.dev/v1alpha1", "kind": "ModelEndpoint", "name": serving.name},
            "minReplicas": scaling.min.max(1),
            "maxReplicas": scaling.max,
            "metrics": targets(scaling).into_iter().filter_map(metric).collect::<Vec<_>>(),
            "behavior": {"scaleDown": {"stabilizationWindowSeconds": window}},
        },
    }))
}

/// The NetworkPolicy of the replicas, for server-side apply: only the gateways of this namespace reach the engines, which ask for no key. In force where
/// the cluster's network has policies.
pub fn build_network_policy(serving: &Serving<'_>, gateways: &str) -> Value {
    json!({
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": metadata(serving),
        "spec": {
            "podSelector": {"matchLabels": selector(serving.name)},
            "policyTypes": ["Ingress"],
            "ingress": [{
                "from": [{
                    "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": gateways}},
                    "podSelector": {"matchLabels": {
                        "app.kubernetes.io/name": "spillway", "app.kubernetes.io/component": "gateway",
                    }},
                }],
                "ports": [{"port": "http"}],
            }],
        },
    })
}

/// That of what is named like the endpoint.
fn metadata(serving: &Serving<'_>) -> Value {
    json!({
        "name": serving.name,
        "namespace": serving.namespace,
        "labels": selector(serving.name),
        "ownerReferences": owner(serving.endpoint),
    })
}

/// What is known of an endpoint.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Facts {
    /// Why it cannot be laid out: a word and a sentence.
    pub problem: Option<(&'static str, String)>,
    /// Replicas that there are, and of these those that answer.
    pub replicas: (i32, i32),
    /// Replicas for which devices are held.
    pub bookable: i32,
    /// Why devices are missing, if they are.
    pub missing: Option<String>,
    /// Why the first of the pods that wait for room on what is held waits, if one does.
    pub waiting: Option<String>,
    /// Whether replicas follow what is asked: a word and a sentence. None: it is not known yet.
    pub autoscaling: Option<(bool, &'static str, String)>,
    /// What becomes of the canary. None, where there is one: what was known before.
    pub canary: Option<CanaryFacts>,
    /// Replicas of the canary's version serve beyond its share, as those of a version before.
    pub canary_moves: bool,
    /// Regions in which it is served. None: those that were known before.
    pub regions: Option<Vec<String>>,
}

/// What becomes of a canary.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct CanaryFacts {
    /// How it is; none where it is not tried for want of something.
    pub phase: Option<CanaryPhase>,
    /// A word.
    pub reason: &'static str,
    /// A sentence.
    pub message: String,
}

/// The status that says what is known.
pub fn build_status(endpoint: &ModelEndpoint, facts: &Facts, now: Timestamp) -> ModelEndpointStatus {
    let previous = endpoint.status.clone().unwrap_or_default();
    let (name, namespace) = (
        endpoint.metadata.name.as_deref().unwrap_or_default(),
        endpoint.metadata.namespace.as_deref().unwrap_or_default(),
    );
    let wanted = endpoint.spec.replicas;
    let may_sleep = endpoint.spec.scaling.as_ref().is_some_and(|scaling| scaling.min == 0);
    // One that slept sleeps until it is woken or lifted, whatever its spec says meanwhile: it is not taken for one that a person stopped.
    let asleep = wanted == 0 && (may_sleep || previous.asleep);
    let (there, ready) = facts.replicas;
    let external = endpoint.spec.external.is_some();
    let (is_ready, stalled, reason, message) = match &facts.problem {
        Some((reason, message)) => (false, true, *reason, message.clone()),
        None if external => (true, false, EXTERNAL, "A provider serves it.".to_owned()),
        None if asleep => (true, false, ASLEEP, "Nobody asks: the first request starts a replica.".to_owned()),
        None if wanted == 0 => (true, false, "ScaledToZero", "No replica is wanted.".to_owned()),
        None if facts.bookable < wanted => {
            let why = facts.missing.clone().unwrap_or_default();
            let message =
                format!("{ready} of {wanted} replicas answer, and devices are held for {}. {why}", facts.bookable);
            (ready > 0, false, "CapacityMissing", message.trim_end().to_owned())
        }
        None if ready < wanted => {
            let why = facts.waiting.as_deref().map(|why| format!(" {why}")).unwrap_or_default();
            (ready > 0, false, "ReplicasStarting", format!("{ready} of {wanted} replicas answer.{why}"))
        }
        None => (true, false, "Serving", format!("{ready} of {wanted} replicas answer.")),
    };
    let reconciling = !stalled && !external && (ready < wanted || there > wanted);
    let mut conditions = vec![
        Wanted::new("Ready", is_ready, reason, message.clone()),
        Wanted::new("Reconciling", reconciling, reason, message.clone()),
        Wanted::new("Stalled", stalled, reason, message),
    ];
    let known = previous.conditions.iter().find(|one| one.type_ == AUTOSCALING);
    if endpoint.spec.scaling.is_some() {
        conditions.extend(match (&facts.autoscaling, known) {
            (Some((holds, reason, message)), _) => Some(Wanted::new(AUTOSCALING, *holds, *reason, message)),
            (None, Some(known)) => {
                let holds = known.status == ConditionStatus::True;
                Some(Wanted::new(AUTOSCALING, holds, &known.reason, &known.message))
            }
            (None, None) => None,
        });
    }
    let mut canary = None;
    if let Some(spec) = &endpoint.spec.canary {
        canary = previous.canary.filter(|known| known.version == spec.version);
        let known = previous.conditions.iter().find(|one| one.type_ == CANARY);
        if let Some(facts) = &facts.canary {
            canary = facts.phase.map(|phase| CanaryStatus { version: spec.version.clone(), phase });
            let runs = facts.phase == Some(CanaryPhase::Running);
            conditions.push(Wanted::new(CANARY, runs, facts.reason, &facts.message));
        } else if let (Some(_), Some(known)) = (&canary, known) {
            let holds = known.status == ConditionStatus::True;
            conditions.push(Wanted::new(CANARY, holds, &known.reason, &known.message));
        }
    }
    let conditions = merge(&previous.conditions, conditions, endpoint.metadata.generation, now);
    let selector: Vec<String> = selector(name).iter().map(|(key, value)| format!("{key}={value}")).collect();
    ModelEndpointStatus {
        observed_generation: endpoint.metadata.generation,
        conditions,
        replicas: there,
        ready_replicas: ready,
        bookable_replicas: facts.bookable,
        versions: previous.versions,
        canary,
        regions: facts.regions.clone().unwrap_or(previous.regions),
        asleep,
        selector: Some(selector.join(",")),
        address: (!external).then(|| format!("{name}.{namespace}.svc:80")),
    }
}

/// The version of a model that an endpoint asks for.
///
/// # Errors
/// A word and a sentence that says what there is instead.
pub fn find_version<'a>(model: &'a Model, wanted: &str) -> Result<&'a ModelVersion, (&'static str, String)> {
    model.spec.versions.iter().find(|version| version.name == wanted).ok_or_else(|| {
        let there: Vec<&str> = model.spec.versions.iter().map(|version| version.name.as_str()).collect();
        let name = model.metadata.name.as_deref().unwrap_or_default();
        (
            "VersionNotFound",
            format!("Model {name} has no version {wanted}: set spec.model.version to one of {}.", there.join(", ")),
        )
    })
}

/// What serves a version and what a replica of it needs.
///
/// # Errors
/// A word and a sentence where only providers serve it.
pub fn runtime_of(version: &ModelVersion) -> Result<(&Runtime, &Needs), (&'static str, String)> {
    version.runtime.as_ref().zip(version.needs.as_ref()).ok_or_else(|| {
        let message = format!(
            "Version {} has no runtime, and only providers serve it: set spec.external, or name a version that has one.",
            version.name
        );
        ("VersionHasNoRuntime", message)
    })
}

mod layout;

pub use layout::{Replicas, canary_share, shift};

#[cfg(test)]
mod tests;
