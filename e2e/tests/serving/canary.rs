//! A version that starts and then fails its requests, in a real pod: it gets its part of them, and is taken back by itself.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::apps::v1::Deployment;
use kube::ResourceExt as _;
use kube::api::{Api, ListParams, Patch, PatchParams};
use serde_json::{Value, json};
use spillway_crds::ModelEndpoint;
use spillway_lab::spillway::Spillway;
use spillway_lab::wait_for;

use crate::TENANT;
use crate::serve::{Client, START};

/// Requests that are asked before the canary must be gone: at half of them it is judged after a few.
const MOST: u32 = 60;

pub(crate) async fn is_rolled_back(spillway: &Spillway<'_>, gateway: &Arc<Client>) -> Result<()> {
    let api: Api<ModelEndpoint> = Api::namespaced(spillway.client(), TENANT);
    let change = |spec: Value| {
        let api = api.clone();
        async move {
            let patch = Patch::Merge(json!({"spec": spec}));
            api.patch("chat", &PatchParams::default(), &patch).await.context("changing the endpoint").map(drop)
        }
    };
    let canary = json!({"version": "mute", "weight": 50, "minRequests": 4});
    change(json!({"replicas": 2, "canary": canary})).await?;
    let says = |type_: &'static str, reason: &'static str| {
        let api = api.clone();
        async move {
            let conditions = api.get("chat").await?.status.unwrap_or_default().conditions;
            Ok(conditions.iter().any(|one| one.type_ == type_ && one.reason == reason))
        }
    };
    wait_for("the canary to run", START, || says("Canary", "Running")).await?;
    let (begun, mut failed, mut asked) = (Instant::now(), 0, 0);
    while !says("Canary", "RolledBack").await? {
        ensure!(asked < MOST, "after {asked} requests, of which {failed} failed, it is still tried");
        asked += 1;
        failed += u32::from(gateway.status("chat").await? >= 500);
        // What gateways tell is looked at once a second.
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    ensure!(failed >= 4, "{failed} of {asked} requests failed, and it was judged by four");
    eprintln!("a canary was taken back after {:.1?}: {failed} of {asked} requests failed", begun.elapsed());
    // From now on nobody meets it, and the other version has its replica again.
    wait_for("gateways to hear of it", START, || async {
        for _ in 0..4 {
            if gateway.status("chat").await? != 200 {
                return Ok(false);
            }
        }
        Ok(true)
    })
    .await?;
    for _ in 0..20 {
        let status = gateway.status("chat").await?;
        ensure!(status == 200, "after the roll-back a request is answered by {status}");
    }
    let deployments: Api<Deployment> = Api::namespaced(spillway.client(), TENANT);
    wait_for("two replicas of the other version", START, || async {
        let all = deployments.list(&ListParams::default().labels("spillway.dev/endpoint=chat")).await?.items;
        let ready = all.iter().filter_map(|one| one.status.as_ref()?.ready_replicas).sum::<i32>();
        Ok(all.len() == 1 && all.iter().all(|one| one.name_any() == "chat-q4b") && ready == 2)
    })
    .await?;
    change(json!({"replicas": 1, "canary": null})).await
}
