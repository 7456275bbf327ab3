//! The autoscaler of an endpoint: what somebody deletes comes back at once, and one that there is not to be goes, whatever else is wrong.

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscaler;
use k8s_openapi::kube_aggregator::pkg::apis::apiregistration::v1::APIService;
use kube::ResourceExt as _;
use kube::api::{Api, DeleteParams, Patch, PatchParams};
use serde_json::json;
use spillway_crds::{Model, ModelEndpoint, Phase};
use spillway_lab::spillway::{NAMESPACE, Spillway};
use spillway_lab::{Lab, LabOptions, Size, wait_for};

use crate::{BOUND, TENANT, create, furnish, version};

#[tokio::test]
async fn an_autoscaler_is_there_as_long_as_it_is_to_be() -> Result<()> {
    let lab = Lab::start(LabOptions::new(Size::Api)).await?;
    let spillway = Spillway::install(&lab).await?;
    let client = spillway.client();
    // As the chart lays it out where gateways are. Nobody answers for it here, and nobody asks.
    let services: Api<APIService> = Api::all(client.clone());
    let service = json!({
        "metadata": {"name": "v1beta1.external.metrics.k8s.io"},
        "spec": {
            "group": "external.metrics.k8s.io", "version": "v1beta1", "groupPriorityMinimum": 100, "versionPriority": 100,
            "service": {"name": "spillway-metrics-api", "namespace": NAMESPACE},
        },
    });
    create(&services, service).await?;
    let operator = spillway.start_operator("operator-a")?;
    furnish(&spillway).await?;
    let models: Api<Model> = Api::all(client.clone());
    let spec = json!({"capabilities": ["Chat"], "versions": [version("q4", 2)]});
    create(&models, json!({"metadata": {"name": "smollm2"}, "spec": spec})).await?;
    spillway.reserve(TENANT, "base", json!({"devices": {"count": 4}, "exclusiveNodes": false})).await?;
    spillway.wait_phase(TENANT, "base", Phase::Active, BOUND).await?;
    let endpoints: Api<ModelEndpoint> = Api::namespaced(client.clone(), TENANT);
    let endpoint = json!({
        "metadata": {"name": "chat"},
        "spec": {
            "model": {"name": "smollm2", "version": "q4"}, "capacity": {"reservation": "base"}, "replicas": 1,
            "scaling": {"min": 1, "max": 2, "target": {"inFlightPerReplica": 16}},
        },
    });
    create(&endpoints, endpoint).await?;
    let autoscalers: Api<HorizontalPodAutoscaler> = Api::namespaced(client, TENANT);
    let there = async |not: Option<String>| {
        wait_for("the endpoint to have an autoscaler", BOUND, || async {
            Ok(autoscalers.get_opt("chat").await?.is_some_and(|one| one.uid() != not))
        })
        .await?;
        autoscalers.get("chat").await.context("reading the autoscaler")
    };
    let mut before = None;
    // Just after it was applied, and later, when it is known as applied for minutes.
    for _ in 0..3 {
        let found = there(before).await?;
        ensure!(found.spec.max_replicas == 2, "{found:?}");
        autoscalers.delete("chat", &DeleteParams::default()).await.context("deleting the autoscaler")?;
        before = found.uid();
    }
    there(before).await?;
    // Also where nothing can be laid out: it would go on to write over what is asked for.
    let spec = json!({"model": {"version": "gone"}, "scaling": null, "replicas": 3});
    let patch = Patch::Merge(json!({"spec": spec}));
    endpoints.patch("chat", &PatchParams::default(), &patch).await.context("changing the endpoint")?;
    wait_for("the autoscaler to go", BOUND, || async { Ok(autoscalers.get_opt("chat").await?.is_none()) }).await?;
    wait_for("the endpoint to say what is wrong", BOUND, || async {
        let endpoint = endpoints.get("chat").await?;
        ensure!(endpoint.spec.replicas == 3, "{} replicas are wanted", endpoint.spec.replicas);
        Ok(endpoint.status.unwrap_or_default().conditions.iter().any(|one| one.message.contains("gone")))
    })
    .await?;
    operator.stop().await?;
    lab.stop()
}
