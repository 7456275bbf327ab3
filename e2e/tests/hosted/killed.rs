//! The operator dies while an endpoint grows, shrinks and changes its version: whoever comes after it goes on, and nothing is left behind or there twice.

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::apps::v1::Deployment;
use kube::ResourceExt as _;
use kube::api::{Api, ListParams, Patch, PatchParams};
use serde_json::{Value, json};
use spillway_crds::{Model, ModelEndpoint, Phase};
use spillway_lab::spillway::Spillway;
use spillway_lab::{Lab, LabOptions, Size};

use crate::{BOUND, Stage, TENANT, create, furnish, version};

/// The points as `operator/controllers/src/kill.rs` lists them.
fn points() -> Result<Vec<&'static str>> {
    let source = include_str!("../../../operator/controllers/src/kill.rs");
    let list = source.split_once("ENDPOINT_POINTS: &[&str] = &[").and_then(|(_, rest)| rest.split_once("];"));
    let points: Vec<&str> = list.context("the list of points")?.0.split('"').skip(1).step_by(2).collect();
    ensure!(points.len() >= 7, "only {} points: {points:?}", points.len());
    Ok(points)
}

/// There is no kubelet: each replica that is asked for answers at once. Ends with an error when none did, after the first did.
async fn stand_in(deployments: Api<Deployment>) -> Result<()> {
    let mut answered = false;
    loop {
        let all = deployments.list(&ListParams::default()).await.context("listing Deployments")?.items;
        let mut ready = 0;
        for one in &all {
            let wanted = one.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1);
            ready += wanted;
            if one.status.as_ref().and_then(|status| status.ready_replicas).unwrap_or(0) != wanted {
                let now = json!({"status": {
                    "replicas": wanted, "updatedReplicas": wanted, "readyReplicas": wanted, "availableReplicas": wanted,
                }});
                // It may be gone by now.
                let _ = deployments.patch_status(&one.name_any(), &PatchParams::default(), &Patch::Merge(now)).await;
            }
        }
        ensure!(ready > 0 || !answered, "no replica is laid out any more");
        answered |= ready > 0;
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn whoever_comes_after_a_kill_goes_on() -> Result<()> {
    let lab = Lab::start(LabOptions::new(Size::Api)).await?;
    let spillway = Spillway::install(&lab).await?;
    let mut operator = spillway.start_operator("operator-a")?;
    furnish(&spillway).await?;
    let client = spillway.client();
    let stage = Stage {
        spillway: &spillway,
        endpoints: Api::namespaced(client.clone(), TENANT),
        deployments: Api::namespaced(client.clone(), TENANT),
    };
    let model = json!({"capabilities": ["Chat"], "versions": [version("q4", 2), version("q6", 2)]});
    create::<Model>(&Api::all(client), json!({"metadata": {"name": "smollm2"}, "spec": model})).await?;
    spillway.reserve(TENANT, "base", json!({"devices": {"count": 4}, "exclusiveNodes": false})).await?;
    spillway.wait_phase(TENANT, "base", Phase::Active, BOUND).await?;
    // Two replicas on what is reserved, and three, one of them beyond, of another version.
    let small = json!({"model": {"name": "smollm2", "version": "q4"}, "replicas": 2});
    let large = json!({"model": {"name": "smollm2", "version": "q6"}, "replicas": 3});
    let mut first = small.clone();
    first["capacity"] = json!({"reservation": "base", "burst": {"maxReplicas": 1}});
    create::<ModelEndpoint>(&stage.endpoints, json!({"metadata": {"name": "chat"}, "spec": first})).await?;
    let standing_in = tokio::spawn(stand_in(stage.deployments.clone()));
    stage.wait_deployed("chat-q4", 2).await?;
    stage.wait_reason("Serving", true, "2 of 2 replicas answer").await?;
    operator.stop().await?;

    let mut is_large = false;
    for point in points()? {
        // Some are met on one way only.
        let grows = match point {
            "endpoint.after-burst" => true,
            "endpoint.after-burst-end" => false,
            _ => !is_large,
        };
        if grows == is_large {
            operator = spillway.start_operator("operator-a")?;
            go(&stage, if grows { &small } else { &large }, !grows).await?;
            operator.stop().await?;
        }
        stage.change(if grows { large.clone() } else { small.clone() }).await?;
        let mut dying = spillway.start_operator_to_die("operator-a", point)?;
        let status = dying.wait_exit(BOUND).await.with_context(|| format!("it never came to {point}"))?;
        ensure!(status.code() == Some(137), "at {point} it ended with {status}");
        operator = spillway.start_operator("operator-a")?;
        arrived(&stage, grows).await.with_context(|| format!("after a kill at {point}"))?;
        spillway.verify_settled("0s").await?.ensure_clean().with_context(|| format!("after a kill at {point}"))?;
        operator.stop().await?;
        is_large = grows;
    }
    ensure!(!standing_in.is_finished(), "{:?}", standing_in.await);
    standing_in.abort();
    lab.stop()
}

async fn go(stage: &Stage<'_>, spec: &Value, large: bool) -> Result<()> {
    stage.change(spec.clone()).await?;
    arrived(stage, large).await
}

/// Waits until just that is there which is asked for.
async fn arrived(stage: &Stage<'_>, large: bool) -> Result<()> {
    if large {
        stage.wait_all_deployed(&[("chat-q6", 2), ("chat-q6-burst-0", 1)]).await?;
        stage.wait_reservations(&["base", "chat-burst-0"]).await?;
        return stage.wait_reason("Serving", true, "3 of 3 replicas answer").await;
    }
    stage.wait_all_deployed(&[("chat-q4", 2)]).await?;
    stage.wait_reservations(&["base"]).await?;
    stage.wait_reason("Serving", true, "2 of 2 replicas answer").await
}
