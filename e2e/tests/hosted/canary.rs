//! A version that is tried, and endpoints of providers: what is laid out, what is said, and what is refused. That a canary fails by its requests is shown with real pods.

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::core::v1::Event;
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams};
use serde_json::{Value, json};
use spillway_crds::ModelEndpoint;
use spillway_lab::wait_for;

use crate::{BOUND, Stage, TENANT, create};

/// Two replicas of `q6` answer, and there is no device to spare.
pub(crate) async fn is_tried(stage: &Stage<'_>) -> Result<()> {
    let canary = |more: Value| async move { stage.change(json!({"canary": more})).await };
    canary(json!({"version": "q5", "weight": 50})).await?;
    stage.wait_condition("Canary", "VersionNotFound", false, "set spec.canary.version to one of q4, q6, q8").await?;
    canary(json!({"version": "q8"})).await?;
    stage.wait_condition("Canary", "NeedsDiffer", false, "takes 3 devices, and one of q6 takes 2").await?;
    stage.wait_deployed("chat-q6", 2).await?;

    // One of the two goes for it, and comes back when it fails to start.
    canary(json!({"version": "q4"})).await?;
    stage.wait_all_deployed(&[("chat-q4", 1), ("chat-q6", 1)]).await?;
    stage.wait_condition("Canary", "Starting", true, "No replica of version q4 answers yet").await?;
    stage.answer("chat-q6", 1).await?;
    stage.answer("chat-q4", 1).await?;
    stage.wait_condition("Canary", "Running", true, "50 % of the requests go to version q4").await?;
    let status = stage.endpoints.get("chat").await?.status.unwrap_or_default();
    let versions: Vec<_> =
        status.versions.iter().map(|one| (one.version.as_str(), one.weight, one.ready_replicas)).collect();
    ensure!(versions == [("q4", Some(50), 1), ("q6", Some(50), 1)], "its versions are {versions:?}");
    ensure!(!status.regions.is_empty(), "it does not say where it is served");
    stalls(stage, "chat-q4").await?;
    stage.wait_condition("Canary", "RolledBack", false, "No replica of version q4 has come to answer").await?;
    stage.wait_deployed("chat-q6", 2).await?;
    stage.answer("chat-q6", 2).await?;
    let events: Api<Event> = Api::namespaced(stage.spillway.client(), TENANT);
    wait_for("the Event that tells of it", BOUND, || async {
        let all = events.list(&ListParams::default()).await?.items;
        Ok(all.iter().any(|event| event.reason.as_deref() == Some("CanaryRolledBack")))
    })
    .await?;

    // More weight does not bring it back; it is tried again when somebody takes it out first.
    canary(json!({"weight": 60})).await?;
    tokio::time::sleep(std::time::Duration::from_millis(500)).await;
    stage.wait_deployed("chat-q6", 2).await?;
    let weights = stage.endpoints.get("chat").await?.status.unwrap_or_default().versions;
    ensure!(weights.iter().all(|one| (one.weight == Some(0)) == (one.version == "q4")), "weights are {weights:?}");
    canary(json!(null)).await?;
    wait_for("the canary to be forgotten", BOUND, || async {
        let status = stage.endpoints.get("chat").await?.status.unwrap_or_default();
        Ok(status.canary.is_none() && status.conditions.iter().all(|one| one.type_ != "Canary"))
    })
    .await?;
    canary(json!({"version": "q4", "weight": 50})).await?;
    stage.wait_all_deployed(&[("chat-q4", 1), ("chat-q6", 1)]).await?;
    stage.change(json!({"replicas": 1})).await?;
    stage.wait_condition("Canary", "NeedsTwoReplicas", false, "set spec.replicas to 2 or more").await?;
    stage.wait_deployed("chat-q6", 1).await?;
    stage.change(json!({"replicas": 2, "canary": null})).await?;
    stage.wait_deployed("chat-q6", 2).await?;
    stage.answer("chat-q6", 2).await?;
    serves_until_another_does(stage).await?;
    is_refused(stage).await
}

/// A change that is taken back names as its canary what serves: that is not cut down before the other version answers, though it is not tried.
async fn serves_until_another_does(stage: &Stage<'_>) -> Result<()> {
    stage.change(json!({"replicas": 1})).await?;
    stage.wait_deployed("chat-q6", 1).await?;
    stage.answer("chat-q6", 1).await?;
    stage.change(json!({"model": {"version": "q4"}, "canary": {"version": "q6", "weight": 50}})).await?;
    stage.wait_all_deployed(&[("chat-q4", 1), ("chat-q6", 1)]).await?;
    stage.wait_condition("Canary", "NeedsTwoReplicas", false, "").await?;
    tokio::time::sleep(std::time::Duration::from_millis(500)).await;
    stage.wait_all_deployed(&[("chat-q4", 1), ("chat-q6", 1)]).await?;
    let weights = stage.endpoints.get("chat").await?.status.unwrap_or_default().versions;
    ensure!(weights.iter().any(|one| one.version == "q6" && one.weight.is_none()), "weights are {weights:?}");
    stage.answer("chat-q4", 1).await?;
    stage.wait_deployed("chat-q4", 1).await?;
    stage.change(json!({"model": {"version": "q6"}, "canary": null, "replicas": 2})).await?;
    stage.wait_all_deployed(&[("chat-q4", 1), ("chat-q6", 1)]).await?;
    stage.answer("chat-q6", 1).await?;
    stage.wait_deployed("chat-q6", 2).await?;
    stage.answer("chat-q6", 2).await
}

/// A Deployment got no further in its time; there is no controller that would say so.
async fn stalls(stage: &Stage<'_>, name: &str) -> Result<()> {
    let condition = json!({
        "type": "Progressing", "status": "False", "reason": "ProgressDeadlineExceeded",
        "lastUpdateTime": "2026-11-27T00:00:00Z", "lastTransitionTime": "2026-11-27T00:00:00Z",
    });
    let patch =
        Patch::Merge(json!({"status": {"readyReplicas": 0, "availableReplicas": 0, "conditions": [condition]}}));
    stage
        .deployments
        .patch_status(name, &PatchParams::default(), &patch)
        .await
        .context("saying that it stalls")
        .map(drop)
}

/// What cannot be is refused by the API server, with the field and the remedy; what may not be, by the operator.
async fn is_refused(stage: &Stage<'_>) -> Result<()> {
    let model = json!({"name": "smollm2", "version": "q6"});
    let capacity = json!({"reservation": "base"});
    let external = json!({"url": "https://api.example.com/v1", "model": "big-1"});
    let cases = [
        (json!({"model": model}), "set exactly one of spec.capacity and spec.external"),
        (json!({"model": model, "capacity": capacity, "external": external}), "set exactly one of"),
        (
            json!({"model": model, "external": external, "scaling": {"max": 2}}),
            "leave out spec.scaling and spec.canary",
        ),
        (
            json!({"model": model, "capacity": capacity, "canary": {"version": "q6", "weight": 10}}),
            "spec.canary.version is what all of the endpoint serves",
        ),
        (json!({"model": model, "capacity": capacity, "canary": {"version": "q4", "weight": 100}}), "canary.weight"),
        (
            json!({"model": model, "capacity": capacity, "routing": {"fallback": [{"endpoint": "other"}]}}),
            "names the endpoint itself",
        ),
        (
            json!({"model": model, "external": {"url": "http://api.example.com/v1", "model": "m", "credentials": "c"}}),
            "go by https only",
        ),
        (json!({"model": model, "external": {"url": "https://user:secret@example.com", "model": "m"}}), "external.url"),
    ];
    for (spec, says) in cases {
        let object = json!({"metadata": {"name": "other"}, "spec": spec});
        let refused = create(&stage.endpoints, object).await.err().with_context(|| format!("it took {spec}"))?;
        ensure!(format!("{refused:#}").contains(says), "{spec}: {refused:#}");
    }
    // A tenant that could name a provider would be sent the credentials of gateways.
    let object = json!({"metadata": {"name": "other"}, "spec": {"model": model, "external": external}});
    create::<ModelEndpoint>(&stage.endpoints, object).await?;
    wait_for("the endpoint of a provider to be refused", BOUND, || async {
        let status = stage.endpoints.get("other").await?.status.unwrap_or_default();
        Ok(status.conditions.iter().any(|one| one.type_ == "Stalled" && one.reason == "ExternalNotAllowed"))
    })
    .await?;
    let changed = stage
        .endpoints
        .patch(
            "other",
            &PatchParams::default(),
            &Patch::Merge(json!({"spec": {"external": null, "capacity": capacity}})),
        )
        .await;
    ensure!(
        changed.is_err_and(|error| error.to_string().contains("do not become each other")),
        "an endpoint of a provider became one of ours"
    );
    stage.endpoints.delete("other", &DeleteParams::default()).await.context("deleting it").map(drop)
}
