//! Hosted models on a real API server and controller manager: what an endpoint is laid out as, and what it says of itself. There is no kubelet here, so
//! no replica ever answers; the test says that one does where it must.

#![allow(clippy::indexing_slicing, reason = "a field that a JSON value lacks reads as null")]

mod archive;
mod autoscaler;
mod canary;
mod certificates;
mod keys;
mod killed;

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Pod, Service, ServiceAccount};
use kube::ResourceExt as _;
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, PostParams};
use serde_json::{Value, json};
use spillway_crds::{ConditionStatus, GpuReservation, Model, ModelEndpoint, Phase};
use spillway_lab::spillway::Spillway;
use spillway_lab::{Lab, LabOptions, Size, wait_for};

/// Longest time of anything that takes seconds on an idle machine.
const BOUND: Duration = Duration::from_secs(60);
const TENANT: &str = "acme";

fn version(name: &str, devices: i32) -> Value {
    json!({
        "name": name, "contextLength": 2048, "source": {"path": "/weights/model.gguf"},
        "runtime": {"preset": "LlamaCpp", "image": "llama:1"}, "cache": {"claim": "engine-cache"},
        "needs": {"devices": devices, "cpu": "1", "memory": "1Gi", "startup": "1m"},
    })
}

async fn create<K>(api: &Api<K>, object: Value) -> Result<K>
where
    K: kube::Resource + Clone + std::fmt::Debug + serde::de::DeserializeOwned + serde::Serialize,
{
    let object: K = serde_json::from_value(object).context("an object of the test")?;
    api.create(&PostParams::default(), &object).await.context("creating an object")
}

/// A pool of one node, and a tenant.
async fn furnish(spillway: &Spillway<'_>) -> Result<()> {
    spillway.create_pool("plain", json!({})).await?;
    spillway.create_tenant(TENANT, &[TENANT], json!({})).await?;
    spillway.add_nodes("plain", &["gpu-0"]).await?;
    spillway.wait_unsold("plain", 1, BOUND).await
}

struct Stage<'a> {
    spillway: &'a Spillway<'a>,
    endpoints: Api<ModelEndpoint>,
    deployments: Api<Deployment>,
}

impl Stage<'_> {
    /// Waits until the endpoint's `Ready` has this reason and what it says contains a text.
    async fn wait_reason(&self, reason: &str, ready: bool, text: &str) -> Result<()> {
        self.wait_condition("Ready", reason, ready, text).await
    }

    /// Waits until a condition of the endpoint has this reason and what it says contains a text.
    async fn wait_condition(&self, type_: &str, reason: &str, holds: bool, text: &str) -> Result<()> {
        let wanted = if holds { ConditionStatus::True } else { ConditionStatus::False };
        wait_for(&format!("the endpoint's {type_} to be {reason}"), BOUND, || async {
            let status = self.endpoints.get("chat").await?.status.unwrap_or_default();
            let found = status.conditions.into_iter().find(|condition| condition.type_ == type_);
            Ok(found.is_some_and(|one| one.reason == reason && one.status == wanted && one.message.contains(text)))
        })
        .await
    }

    async fn change(&self, spec: Value) -> Result<()> {
        let patch = Patch::Merge(json!({"spec": spec}));
        self.endpoints.patch("chat", &PatchParams::default(), &patch).await.context("changing the endpoint").map(drop)
    }

    /// Waits until exactly this Deployment is there, with so many replicas.
    async fn wait_deployed(&self, name: &str, replicas: i32) -> Result<Deployment> {
        self.wait_all_deployed(&[(name, replicas)]).await?;
        self.deployments.get(name).await.context("reading the Deployment")
    }

    /// Waits until exactly these Deployments are there, with so many replicas.
    async fn wait_all_deployed(&self, wanted: &[(&str, i32)]) -> Result<()> {
        wait_for(&format!("the Deployments to be {wanted:?}"), BOUND, || async {
            let all = self.deployments.list(&ListParams::default()).await?.items;
            let there: Vec<_> =
                all.iter().map(|one| (one.name_any(), one.spec.as_ref().and_then(|spec| spec.replicas))).collect();
            Ok(there.iter().map(|(name, replicas)| (name.as_str(), replicas.unwrap_or(1))).eq(wanted.iter().copied()))
        })
        .await
    }

    /// So many replicas of a Deployment answer; there is no kubelet that would say so.
    async fn answer(&self, name: &str, replicas: i32) -> Result<()> {
        let ready = json!({"status": {
            "replicas": replicas, "updatedReplicas": replicas, "readyReplicas": replicas, "availableReplicas": replicas,
            "observedGeneration": 1_000_000,
        }});
        let patch = Patch::Merge(ready);
        self.deployments
            .patch_status(name, &PatchParams::default(), &patch)
            .await
            .context("saying that it answers")
            .map(drop)
    }

    /// Waits until exactly these reservations are there.
    async fn wait_reservations(&self, wanted: &[&str]) -> Result<()> {
        let api: Api<GpuReservation> = Api::namespaced(self.spillway.client(), TENANT);
        wait_for(&format!("the reservations to be {wanted:?}"), BOUND, || async {
            let all = api.list(&ListParams::default()).await?.items;
            Ok(all.iter().map(kube::ResourceExt::name_any).eq(wanted.iter().map(|name| (*name).to_owned())))
        })
        .await
    }
}

/// What replicas may be scaled by, as the API server has it; nothing is changed.
async fn targets(stage: &Stage<'_>) -> Result<()> {
    let dry = PatchParams { dry_run: true, ..PatchParams::default() };
    for (target, refused) in [
        (json!({"kvCachePercentPerReplica": 80}), None),
        (json!({"kvCachePercentPerReplica": 100, "queuedPerReplica": 4}), None),
        (json!({"kvCachePercentPerReplica": 0}), Some("greater than or equal to 1")),
        (json!({"kvCachePercentPerReplica": 101}), Some("less than or equal to 100")),
        (json!({}), Some("tokensPerSecondPerReplica or kvCachePercentPerReplica")),
    ] {
        let patch = Patch::Merge(json!({"spec": {"scaling": {"max": 2, "target": target}}}));
        let answer = stage.endpoints.patch("chat", &dry, &patch).await.map_err(|error| error.to_string());
        match (&answer, refused) {
            (Ok(_), None) => {}
            (Err(message), Some(words)) if message.contains(words) => {}
            _ => anyhow::bail!("{target}: {answer:?} instead of {refused:?}"),
        }
    }
    Ok(())
}

#[tokio::test]
async fn an_endpoint_is_laid_out_on_what_its_reservation_holds() -> Result<()> {
    let lab = Lab::start(LabOptions::new(Size::Api)).await?;
    let spillway = Spillway::install(&lab).await?;
    let operator = spillway.start_operator("operator-a")?;
    furnish(&spillway).await?;
    let client = spillway.client();
    let models: Api<Model> = Api::all(client.clone());
    let stage = Stage {
        spillway: &spillway,
        endpoints: Api::namespaced(client.clone(), TENANT),
        deployments: Api::namespaced(client.clone(), TENANT),
    };

    // Nothing that it needs is there, and it says what is missing, one after the other.
    let endpoint = json!({
        "metadata": {"name": "chat"},
        "spec": {"model": {"name": "smollm2", "version": "q5"}, "capacity": {"reservation": "base"}, "replicas": 2},
    });
    create(&stage.endpoints, endpoint).await?;
    stage.wait_reason("ModelNotFound", false, "There is no Model smollm2").await?;
    targets(&stage).await?;
    let versions = [version("q4", 2), version("q6", 2), version("q8", 3)];
    create(&models, json!({"metadata": {"name": "smollm2"}, "spec": {"capabilities": ["Chat"], "versions": versions}}))
        .await?;
    stage.wait_reason("VersionNotFound", false, "set spec.model.version to one of q4, q6, q8").await?;
    stage.change(json!({"model": {"version": "q4"}})).await?;
    stage.wait_reason("ReservationNotFound", false, "There is no GpuReservation base").await?;

    // Four devices are held: two replicas of two. Three do not fit, and it says so.
    let part = json!({"devices": {"count": 4}, "exclusiveNodes": false});
    spillway.reserve(TENANT, "base", part).await?;
    spillway.wait_phase(TENANT, "base", Phase::Active, BOUND).await?;
    let deployment = stage.wait_deployed("chat-q4", 2).await?;
    check_laid_out(&deployment)?;
    stage.wait_reason("ReplicasStarting", false, "0 of 2 replicas answer").await?;
    too_large(&spillway, &stage).await?;
    lab.kubectl(&["scale", "me", "chat", "-n", TENANT, "--replicas=3"]).await?;
    stage.wait_reason("CapacityMissing", false, "devices are held for 2").await?;
    stage.wait_deployed("chat-q4", 2).await?;
    lab.kubectl(&["scale", "me", "chat", "-n", TENANT, "--replicas=1"]).await?;
    stage.wait_deployed("chat-q4", 1).await?;
    stage.answer("chat-q4", 1).await?;
    stage.wait_reason("Serving", true, "1 of 1 replicas answer").await?;
    lab.kubectl(&["wait", "--for=condition=Ready", "me/chat", "-n", TENANT, "--timeout=10s"]).await?;

    one_at_a_time(&stage).await?;
    canary::is_tried(&stage).await?;
    beyond_the_reservation(&stage).await?;

    // A version with other needs takes the place of the one before.
    lab.kubectl(&["scale", "me", "chat", "-n", TENANT, "--replicas=1"]).await?;
    stage.wait_deployed("chat-q6", 1).await?;
    stage.change(json!({"model": {"version": "q8"}})).await?;
    stage.wait_deployed("chat-q8", 1).await?;

    // A model in use stays, and who uses it is named.
    wait_for("the model to know who serves it", BOUND, || async {
        Ok(models.get("smollm2").await?.status.is_some_and(|status| status.endpoints == ["acme/chat"]))
    })
    .await?;
    let refused = models.delete("smollm2", &DeleteParams::default()).await.err().context("it was deleted")?;
    ensure!(refused.to_string().contains("is served by acme/chat"), "{refused}");
    stage.endpoints.delete("chat", &DeleteParams::default()).await?;
    wait_for("nobody to serve it", BOUND, || async {
        Ok(models.get("smollm2").await?.status.is_some_and(|status| status.endpoint_count == 0))
    })
    .await?;
    models.delete("smollm2", &DeleteParams::default()).await.context("deleting a model that nobody serves")?;
    stage.spillway.verify_settled("0s").await?.ensure_clean()?;
    operator.stop().await?;
    lab.stop()
}

/// A replica that wants more CPU than goes with its devices gets no room, and the endpoint says so until it is gone.
async fn too_large(spillway: &Spillway<'_>, stage: &Stage<'_>) -> Result<()> {
    let client = spillway.client();
    let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), TENANT);
    create(&accounts, json!({"metadata": {"name": "default"}})).await?;
    let pods: Api<Pod> = Api::namespaced(client, TENANT);
    let limits = json!({"nvidia.com/gpu": "2", "cpu": "9999", "memory": "1Gi"});
    let pod = json!({
        "metadata": {"name": "chat-large", "labels": {"spillway.dev/reservation": "base"}},
        "spec": {"containers": [{"name": "engine", "image": "none", "resources": {"limits": limits}}]},
    });
    create(&pods, pod).await?;
    stage.wait_reason("ReplicasStarting", false, "Pod chat-large requests 9999000m CPU").await?;
    pods.delete("chat-large", &DeleteParams::default()).await.context("deleting a pod")?;
    wait_for("the endpoint to say no more of it", BOUND, || async {
        let status = stage.endpoints.get("chat").await?.status.unwrap_or_default();
        let ready = status.conditions.into_iter().find(|condition| condition.type_ == "Ready");
        Ok(ready.is_some_and(|one| one.message == "0 of 2 replicas answer."))
    })
    .await
}

/// Another version takes the place of the first, one replica at a time, for there is no device to spare.
async fn one_at_a_time(stage: &Stage<'_>) -> Result<()> {
    stage.change(json!({"replicas": 2})).await?;
    stage.wait_deployed("chat-q4", 2).await?;
    stage.answer("chat-q4", 2).await?;
    stage.change(json!({"model": {"version": "q6"}})).await?;
    stage.wait_all_deployed(&[("chat-q4", 1), ("chat-q6", 1)]).await?;
    // Until the new one answers nothing more goes.
    tokio::time::sleep(Duration::from_millis(500)).await;
    stage.wait_all_deployed(&[("chat-q4", 1), ("chat-q6", 1)]).await?;
    stage.answer("chat-q6", 1).await?;
    stage.wait_deployed("chat-q6", 2).await?;
    stage.answer("chat-q6", 2).await
}

/// Replicas beyond the named reservation have a reservation each, which ends with its replica.
async fn beyond_the_reservation(stage: &Stage<'_>) -> Result<()> {
    stage.change(json!({"replicas": 5, "capacity": {"burst": {"maxReplicas": 2}}})).await?;
    stage.wait_reservations(&["base", "chat-burst-0", "chat-burst-1"]).await?;
    stage.wait_all_deployed(&[("chat-q6", 2), ("chat-q6-burst-0", 1), ("chat-q6-burst-1", 1)]).await?;
    let burst = stage.deployments.get("chat-q6-burst-1").await?;
    let labels = burst.spec.and_then(|spec| spec.template.metadata).and_then(|meta| meta.labels).unwrap_or_default();
    ensure!(labels.get("spillway.dev/reservation").is_some_and(|name| name == "chat-burst-1"), "labels are {labels:?}");
    stage.wait_reason("CapacityMissing", true, "devices are held for 4").await?;
    let status = stage.endpoints.get("chat").await?.status.unwrap_or_default();
    ensure!(status.bookable_replicas == 4, "{} can be booked", status.bookable_replicas);

    stage.answer("chat-q6-burst-0", 1).await?;
    stage.answer("chat-q6-burst-1", 1).await?;
    stage.change(json!({"replicas": 3})).await?;
    stage.wait_reservations(&["base", "chat-burst-0"]).await?;
    stage.wait_all_deployed(&[("chat-q6", 2), ("chat-q6-burst-0", 1)]).await?;
    // What is taken out of the spec goes.
    stage.change(json!({"capacity": {"burst": null}})).await?;
    stage.wait_reservations(&["base"]).await?;
    stage.wait_deployed("chat-q6", 2).await?;
    // It comes again, and goes when it is not wanted.
    stage.change(json!({"capacity": {"burst": {"maxReplicas": 2}}})).await?;
    stage.wait_reservations(&["base", "chat-burst-0"]).await?;
    stage.change(json!({"replicas": 2})).await?;
    stage.wait_reservations(&["base"]).await
}

/// What makes a replica land on what is held, and go with its endpoint.
fn check_laid_out(deployment: &Deployment) -> Result<()> {
    let spec = deployment.spec.clone().context("no spec")?;
    let labels = spec.template.metadata.and_then(|meta| meta.labels).unwrap_or_default();
    ensure!(labels.get("spillway.dev/reservation").is_some_and(|name| name == "base"), "labels are {labels:?}");
    let pod = spec.template.spec.context("no pod spec")?;
    let limits = pod.containers.first().and_then(|one| one.resources.clone()).and_then(|one| one.limits);
    let devices = limits.as_ref().and_then(|limits| limits.get("nvidia.com/gpu")).map(|quantity| quantity.0.as_str());
    ensure!(devices == Some("2"), "limits are {limits:?}");
    ensure!(deployment.owner_references().iter().any(|owner| owner.kind == "ModelEndpoint"), "nobody owns it");
    Ok(())
}

/// What somebody else made under a name that an endpoint needs is left as it is, and named.
#[tokio::test]
async fn an_endpoint_takes_over_nothing() -> Result<()> {
    let lab = Lab::start(LabOptions::new(Size::Api)).await?;
    let spillway = Spillway::install(&lab).await?;
    let operator = spillway.start_operator("operator-a")?;
    furnish(&spillway).await?;
    let client = spillway.client();
    let services: Api<Service> = Api::namespaced(client.clone(), TENANT);
    let mine = json!({"metadata": {"name": "chat"}, "spec": {"selector": {"app": "mine"}, "ports": [{"port": 80}]}});
    create(&services, mine).await?;
    let stage = Stage {
        spillway: &spillway,
        endpoints: Api::namespaced(client.clone(), TENANT),
        deployments: Api::namespaced(client.clone(), TENANT),
    };
    let models: Api<Model> = Api::all(client);
    create(
        &models,
        json!({"metadata": {"name": "m"}, "spec": {"capabilities": ["Chat"], "versions": [version("q4", 1)]}}),
    )
    .await?;
    spillway.reserve(TENANT, "base", json!({"devices": {"count": 4}, "exclusiveNodes": false})).await?;
    spillway.wait_phase(TENANT, "base", Phase::Active, BOUND).await?;
    let spec = json!({"model": {"name": "m", "version": "q4"}, "capacity": {"reservation": "base"}});
    create(&stage.endpoints, json!({"metadata": {"name": "chat"}, "spec": spec})).await?;
    stage.wait_reason("NameTaken", false, "Service chat").await?;
    let selector = services.get("chat").await?.spec.and_then(|spec| spec.selector).unwrap_or_default();
    ensure!(selector.get("app").is_some_and(|app| app == "mine"), "the Service selects {selector:?}");
    ensure!(stage.deployments.list(&ListParams::default()).await?.items.is_empty(), "something was laid out");
    services.delete("chat", &DeleteParams::default()).await?;
    stage.change(json!({"replicas": 2})).await?;
    stage.wait_deployed("chat-q4", 2).await?;
    operator.stop().await?;
    lab.stop()
}
