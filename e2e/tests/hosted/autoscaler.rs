//! The autoscaler of an endpoint: what somebody deletes comes back at once.

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscaler;
use k8s_openapi::kube_aggregator::pkg::apis::apiregistration::v1::APIService;
use kube::ResourceExt as _;
use kube::api::{Api, DeleteParams};
use serde_json::json;
use spillway_crds::{Model, ModelEndpoint, Phase};
use spillway_lab::spillway::{NAMESPACE, Spillway};
use spillway_lab::{Lab, LabOptions, Size, wait_for};

use crate::{BOUND, TENANT, create, furnish, version};

#[tokio::test]
async fn an_autoscaler_that_is_deleted_comes_back() -> Result<()> {
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
    operator.stop().await?;
    lab.stop()
}
