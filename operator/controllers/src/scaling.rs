//! Endpoints that go to no replica and come back: the leader writes `spec.replicas`, between none and one. Above that it is the HPA's.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ManagedFieldsEntry;
use kube::{
    Api, ResourceExt,
    api::{Patch, PatchParams},
    runtime::{events::EventType, reflector::ObjectRef},
};
use serde_json::json;
use spillway_crds::{ModelEndpoint, names::FIELD_MANAGER, parse_duration_ms};
use spillway_manifests::endpoint::find_version;

use crate::{
    canaries::full_name,
    context::Context,
    error::{Error, call},
    gateways::Gateways,
    loads::{FullName, Unknown},
};

/// How often endpoints are looked at without news.
const LOOK: Duration = Duration::from_secs(1);
/// For how long it is looked whether somebody takes back that an endpoint went to none.
const UNDONE_MS: u64 = 5_000;
/// In whose name the HPA controller writes.
const HPA: &str = "kube-controller-manager";
/// Between two looks.
const PAUSE: Duration = Duration::from_millis(25);

/// What the leader has seen of an endpoint.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Seen {
    /// Since when it wants replicas.
    up_ms: u64,
    /// Since when one answers.
    ready_ms: Option<u64>,
}

/// What is known of an endpoint.
#[derive(Clone, Debug)]
struct Facts {
    /// Replicas that are wanted.
    replicas: i32,
    /// Fewest, if it scales.
    min: Option<i32>,
    /// Its status says that it sleeps.
    asleep: bool,
    /// Milliseconds after which it goes to none.
    idle_after_ms: u64,
    /// Milliseconds that a replica may take to start.
    startup_ms: u64,
    /// Somebody waits for a replica.
    held: bool,
    /// Milliseconds for which nobody had a request.
    idle_ms: Result<u64, Unknown>,
}

/// Why the number of replicas is changed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Change {
    /// Somebody waits.
    Wake,
    /// Nobody asks.
    Sleep,
    /// It was just sent to none, and is not there, though nobody has asked.
    SleepAgain,
    /// It may not sleep any more.
    Lift(i32),
}

/// What is to be done with an endpoint, if anything. `slept_ms`: when it was sent to none last.
fn decide(facts: &Facts, seen: Option<Seen>, slept_ms: Option<u64>, now_ms: u64) -> Option<Change> {
    let sleeps = facts.min == Some(0);
    if facts.replicas == 0 {
        return match (sleeps, facts.asleep) {
            (true, _) => facts.held.then_some(Change::Wake),
            // Who scales an endpoint to 0 that may not sleep stops it; it does not say that it sleeps.
            (false, true) => Some(Change::Lift(facts.min.unwrap_or(1).max(1))),
            (false, false) => None,
        };
    }
    let (Ok(idle_ms), Some(seen), true) = (&facts.idle_ms, seen, sleeps) else { return None };
    // An HPA that was about to write writes its number whatever stands there by then. Nobody has asked since.
    let slept_for = slept_ms.map(|slept_ms| now_ms.saturating_sub(slept_ms)).filter(|past| *past <= UNDONE_MS);
    if slept_for.is_some_and(|past| !facts.held && *idle_ms >= past) {
        return Some(Change::SleepAgain);
    }
    // Who starts for longer than anybody waits would never come to serve.
    let since_ms = seen.ready_ms.unwrap_or_else(|| seen.up_ms.saturating_add(facts.startup_ms));
    let awake_ms = now_ms.saturating_sub(since_ms);
    ((*idle_ms).min(awake_ms) >= facts.idle_after_ms).then_some(Change::Sleep)
}

/// Watches over all endpoints, and never ends by itself.
pub async fn run(context: Arc<Context>, gateways: Arc<Gateways>) {
    let mut seen: HashMap<FullName, Seen> = HashMap::new();
    let mut slept: HashMap<FullName, u64> = HashMap::new();
    loop {
        // An answer that comes while endpoints are looked at is not missed.
        let _ = tokio::time::timeout(LOOK, gateways.news.notified()).await;
        look(&context, &gateways, &mut seen, &mut slept).await;
        // However often gateways call, they are not looked at more often than that.
        tokio::time::sleep(PAUSE).await;
    }
}

async fn look(
    context: &Context,
    gateways: &Gateways,
    seen: &mut HashMap<FullName, Seen>,
    slept: &mut HashMap<FullName, u64>,
) {
    let now_ms = gateways.now_ms();
    let mut changes = Vec::new();
    let endpoints = context.hosted.endpoints.state();
    let named: HashSet<FullName> = endpoints.iter().map(|one| full_name(one)).collect();
    seen.retain(|name, _| named.contains(name));
    slept.retain(|_, at_ms| now_ms.saturating_sub(*at_ms) <= UNDONE_MS);
    {
        let loads = gateways.loads();
        for endpoint in endpoints {
            let name = full_name(&endpoint);
            let ready = endpoint.status.as_ref().is_some_and(|status| status.ready_replicas > 0);
            if endpoint.spec.replicas == 0 {
                seen.remove(&name);
            } else {
                let one = seen.entry(name.clone()).or_insert(Seen { up_ms: now_ms, ready_ms: None });
                one.ready_ms = if ready { one.ready_ms.or(Some(now_ms)) } else { None };
            }
            let facts = facts(context, &endpoint, loads.is_held(&name, now_ms), loads.idle_ms(&name, now_ms));
            if let Some(change) = decide(&facts, seen.get(&name).copied(), slept.get(&name).copied(), now_ms) {
                changes.push((endpoint, change));
            }
        }
    }
    let writing = changes.into_iter().map(|(endpoint, change)| apply(context, endpoint, change));
    for (name, replicas) in futures::future::join_all(writing).await.into_iter().flatten() {
        // When it was first sent to none, or somebody who scales it up again and again would never be let.
        if replicas == 0 {
            slept.entry(name).or_insert(now_ms);
        } else {
            slept.remove(&name);
        }
    }
}

fn facts(context: &Context, endpoint: &ModelEndpoint, held: bool, idle_ms: Result<u64, Unknown>) -> Facts {
    let spec = &endpoint.spec;
    let milliseconds = |text: &str| parse_duration_ms(text).ok().and_then(|ms| u64::try_from(ms).ok());
    let model = context.hosted.models.get(&ObjectRef::new(&spec.model.name));
    let startup = model
        .as_ref()
        .and_then(|model| find_version(model, &spec.model.version).ok())
        .and_then(|version| milliseconds(&version.needs.as_ref()?.startup));
    Facts {
        replicas: spec.replicas,
        min: spec.scaling.as_ref().map(|scaling| scaling.min),
        asleep: endpoint.status.as_ref().is_some_and(|status| status.asleep),
        idle_after_ms: spec.scaling.as_ref().and_then(|scaling| milliseconds(&scaling.idle_after)).unwrap_or(u64::MAX),
        startup_ms: startup.unwrap_or(600_000),
        held,
        idle_ms,
    }
}

/// Does it; says how many replicas are wanted of which endpoint then, if that is known.
async fn apply(context: &Context, endpoint: Arc<ModelEndpoint>, change: Change) -> Option<(FullName, i32)> {
    let (namespace, name) = (endpoint.namespace().unwrap_or_default(), endpoint.name_any());
    let (replicas, note) = match change {
        Change::Wake => (1, "A request waits for a replica."),
        Change::Sleep => (0, "Nobody has asked for spec.scaling.idleAfter."),
        Change::SleepAgain => (0, "Its autoscaler wrote over that, and nobody has asked since."),
        Change::Lift(least) => (least, "It slept, and may not any more by spec.scaling."),
    };
    let writing = async {
        if change == Change::SleepAgain && !is_by_an_autoscaler(context, &namespace, &endpoint).await? {
            return Ok(false);
        }
        write(context, &namespace, &endpoint, replicas).await.map(|()| true)
    };
    match writing.await {
        // A person's number stays, until it is time.
        Ok(false) => Some((full_name(&endpoint), endpoint.spec.replicas)),
        Ok(true) => {
            tracing::info!(namespace, endpoint = name, replicas, note, "scaled");
            context.metrics.scaled(match change {
                Change::Wake => "wake",
                Change::Sleep | Change::SleepAgain => "sleep",
                Change::Lift(_) => "lift",
            });
            let note = format!("Replicas: {replicas}. {note}");
            context.event(&*endpoint, EventType::Normal, "Scaled", &note, "Scale").await;
            Some((full_name(&endpoint), replicas))
        }
        // It is another one by now: the watch brings it, and it is looked at again.
        Err(error) if error.is_conflict() || error.is_not_found() => None,
        Err(error) => {
            tracing::warn!(namespace, endpoint = name, %error, "an endpoint could not be scaled; it is tried again");
            None
        }
    }
}

/// Whether it was an HPA that wrote the number of replicas last.
async fn is_by_an_autoscaler(context: &Context, namespace: &str, endpoint: &ModelEndpoint) -> Result<bool, Error> {
    let api: Api<ModelEndpoint> = Api::namespaced(context.client.clone(), namespace);
    let found = call("reading an endpoint", api.get(&endpoint.name_any())).await?;
    let is_same = found.metadata.uid == endpoint.metadata.uid;
    Ok(is_same && found.managed_fields().iter().any(|one| writes_replicas(one) && one.manager.as_deref() == Some(HPA)))
}

/// Whether whoever this is about has written `spec.replicas` last.
fn writes_replicas(fields: &ManagedFieldsEntry) -> bool {
    fields.fields_v1.as_ref().is_some_and(|fields| fields.0.pointer("/f:spec/f:replicas").is_some())
}

/// Writes the number of replicas of an endpoint as it was read.
async fn write(context: &Context, namespace: &str, endpoint: &ModelEndpoint, replicas: i32) -> Result<(), Error> {
    let api: Api<ModelEndpoint> = Api::namespaced(context.client.clone(), namespace);
    let patch = json!({
        "metadata": {"resourceVersion": endpoint.resource_version()},
        "spec": {"replicas": replicas},
    });
    let params = PatchParams { field_manager: Some(format!("{FIELD_MANAGER}-scaling")), ..PatchParams::default() };
    let (name, patch) = (endpoint.name_any(), Patch::Merge(&patch));
    call("scaling an endpoint", api.patch_scale(&name, &params, &patch)).await.map(drop)
}

#[cfg(test)]
mod tests;
