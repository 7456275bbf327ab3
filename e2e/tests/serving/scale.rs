//! An endpoint that nobody asks has no replica; the first request starts one, load starts another, and when nobody asks any more there is none again. Real
//! pods, a real HPA, and the metrics API that the operator serves.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscaler;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::kube_aggregator::pkg::apis::apiregistration::v1::APIService;
use kube::ResourceExt as _;
use kube::api::{Api, ListParams, Patch, PatchParams};
use serde_json::{Value, json};
use spillway_crds::{GpuReservation, ModelEndpoint};
use spillway_lab::spillway::{NAMESPACE, Spillway};
use spillway_lab::wait_for;
use tokio::task::JoinSet;

use crate::serve::{Client, START, metric};
use crate::{TENANT, create};

/// Clients at once: more than one replica is to have.
const CLIENTS: u32 = 6;

/// So many cycles: `SPILLWAY_SCALE_CYCLES`, 20 in `make soak`.
fn count() -> Result<u32> {
    std::env::var("SPILLWAY_SCALE_CYCLES").map_or(Ok(5), |count| count.parse().context("SPILLWAY_SCALE_CYCLES"))
}

/// From none to two and back under load, again and again, without a request that is refused or cut.
pub(crate) async fn cycles(spillway: &Spillway<'_>, gateway: &Arc<Client>) -> Result<()> {
    let api: Api<ModelEndpoint> = Api::namespaced(spillway.client(), TENANT);
    let scaling = json!({
        "min": 0, "max": 2, "target": {"inFlightPerReplica": 2}, "idleAfter": "2s", "scaleDownAfter": "1s",
    });
    let spec = json!({
        "model": {"name": "smollm2", "version": "q4"},
        "capacity": {"reservation": "nap", "burst": {"maxReplicas": 1}},
        "replicas": 0, "drain": "5s", "scaling": scaling,
    });
    create(&api, json!({"metadata": {"name": "sleeper"}, "spec": spec})).await?;
    let status = |endpoint: ModelEndpoint| endpoint.status.unwrap_or_default();
    wait_for("the endpoint to sleep", START, || async {
        let conditions = status(api.get("sleeper").await?).conditions;
        let is = |type_: &str| conditions.iter().any(|one| one.type_ == type_ && one.reason == "Asleep");
        Ok(is("Ready") && is("Autoscaling"))
    })
    .await?;
    registered(spillway).await?;
    // Gateways hear of it by watch.
    wait_for("the gateways to know it", START, || async { gateway.lists("sleeper").await }).await?;

    let begun = Instant::now();
    let mut served = 0;
    for cycle in 1..=count()? {
        served += once(&api, gateway, cycle).await.with_context(|| format!("cycle {cycle}"))?;
    }
    let (count, sum) = (metric(spillway, "spillway_gateway_wake_seconds_count", "").await?, wakes(spillway).await?);
    ensure!(count > 0, "no wake was measured");
    eprintln!(
        "{served} requests in {:.1?}, none refused or cut; {count} wakes were decided in {sum} s together",
        begun.elapsed()
    );
    // What it has goes with it. Its autoscaler goes first: one that is in the middle of a decision still writes that.
    let change = |spec: Value| {
        let (api, patch) = (api.clone(), Patch::Merge(json!({"spec": spec})));
        async move { api.patch("sleeper", &PatchParams::default(), &patch).await.context("changing the endpoint").map(drop) }
    };
    change(json!({"scaling": null})).await?;
    let autoscalers: Api<HorizontalPodAutoscaler> = Api::namespaced(spillway.client(), TENANT);
    wait_for("no autoscaler", START, || async { Ok(autoscalers.get_opt("sleeper").await?.is_none()) }).await?;
    change(json!({"replicas": 2})).await?;
    let reservations: Api<GpuReservation> = Api::namespaced(spillway.client(), TENANT);
    let burst = || async {
        Ok(reservations.get_opt("sleeper-burst-0").await?.is_some_and(|one| one.metadata.deletion_timestamp.is_none()))
    };
    wait_for("a burst reservation", START, burst).await?;
    api.delete("sleeper", &Default::default()).await.context("deleting the endpoint")?;
    wait_for("the burst reservation to go with its endpoint", START, || async { Ok(!burst().await?) }).await
}

/// Another version takes the place of one under load: with a device to spare no request is refused or cut, and none finds fewer replicas.
pub(crate) async fn rolled_out(spillway: &Spillway<'_>, gateway: &Arc<Client>) -> Result<()> {
    let api: Api<ModelEndpoint> = Api::namespaced(spillway.client(), TENANT);
    let over = Arc::new(AtomicBool::new(false));
    let asking = tokio::spawn({
        let (gateway, over) = (Arc::clone(gateway), Arc::clone(&over));
        async move {
            let mut served = 0;
            while !over.load(Ordering::Acquire) {
                gateway.ask("chat", served % 2 == 0).await?;
                served += 1;
            }
            anyhow::Ok(served)
        }
    });
    let begun = Instant::now();
    let next = Patch::Merge(json!({"spec": {"model": {"version": "q4b"}}}));
    api.patch("chat", &PatchParams::default(), &next).await.context("changing the version")?;
    let deployments: Api<Deployment> = Api::namespaced(spillway.client(), TENANT);
    let changed = wait_for("the version before to be gone", START, || async {
        let all = deployments.list(&ListParams::default().labels("spillway.dev/endpoint=chat")).await?.items;
        let ready = |one: &Deployment| one.status.as_ref().and_then(|status| status.ready_replicas).unwrap_or(0);
        ensure!(all.iter().map(ready).sum::<i32>() >= 1, "no replica answers");
        Ok(all.len() == 1 && all.iter().all(|one| one.name_any() == "chat-q4b"))
    })
    .await;
    over.store(true, Ordering::Release);
    let served = asking.await.context("a client")?.context("under a change of version")?;
    changed?;
    eprintln!("another version after {:.1?}; {served} requests meanwhile, none refused or cut", begun.elapsed());
    Ok(())
}

/// One cycle; gives how many requests were served.
async fn once(api: &Api<ModelEndpoint>, gateway: &Arc<Client>, cycle: u32) -> Result<u64> {
    // From none: one that streams, and one that does not, by both of which it is woken once.
    let begun = Instant::now();
    let mut first = JoinSet::new();
    for stream in [true, false] {
        let gateway = Arc::clone(gateway);
        first.spawn(async move { gateway.ask("sleeper", stream).await });
    }
    let mut served = 0;
    while let Some(one) = first.join_next().await {
        one.context("a request from none")??;
        served += 1;
    }
    let woken = begun.elapsed();

    // Load, until there are two replicas and as long as it takes.
    let over = Arc::new(AtomicBool::new(false));
    let mut clients = JoinSet::new();
    for number in 0..CLIENTS {
        let (gateway, over) = (Arc::clone(gateway), Arc::clone(&over));
        clients.spawn(async move {
            let mut served = 0;
            while !over.load(Ordering::Acquire) {
                gateway.ask("sleeper", number % 2 == 0).await?;
                served += 1;
            }
            anyhow::Ok(served)
        });
    }
    let grown = wait_for("a second replica", START, || async {
        Ok(api.get("sleeper").await?.status.is_some_and(|status| status.ready_replicas == 2))
    })
    .await;
    let doubled = begun.elapsed();
    over.store(true, Ordering::Release);
    while let Some(one) = clients.join_next().await {
        served += one.context("a client")?.context("under load")?;
    }
    grown?;
    // Nobody asks: none, while what was answered was answered.
    wait_for("no replica to be wanted", START, || async {
        let endpoint = api.get("sleeper").await?;
        Ok(endpoint.spec.replicas == 0 && endpoint.status.is_some_and(|status| status.replicas == 0))
    })
    .await?;
    // The second replica was beyond what is reserved: its devices are given back, and its meter has ended.
    let reservations: Api<GpuReservation> = Api::namespaced(api.clone().into_client(), TENANT);
    wait_for("the burst reservation to end", START, || async {
        let burst = reservations.get_opt("sleeper-burst-0").await?;
        Ok(burst.is_none_or(|burst| burst.metadata.deletion_timestamp.is_some()))
    })
    .await?;
    eprintln!(
        "cycle {cycle}: the first answers after {woken:.1?}, two replicas after {doubled:.1?}, none after {:.1?}, {served} requests",
        begun.elapsed()
    );
    Ok(served)
}

/// The APIService is available, and answers by the API server alone.
async fn registered(spillway: &Spillway<'_>) -> Result<()> {
    let services: Api<APIService> = Api::all(spillway.client());
    wait_for("the metrics API", START, || async {
        let found = services.get("v1beta1.external.metrics.k8s.io").await?;
        let conditions = found.status.and_then(|status| status.conditions).unwrap_or_default();
        Ok(conditions.iter().any(|one| one.type_ == "Available" && one.status == "True"))
    })
    .await?;
    let path = format!("/apis/external.metrics.k8s.io/v1beta1/namespaces/{TENANT}/spillway-in-flight");
    let select = "labelSelector=spillway.dev%2Fendpoint%3Dsleeper";
    // It says nothing while a gateway has not been heard for a while.
    wait_for("a metric", START, || async {
        let told = spillway.lab().kubectl(&["get", "--raw", &format!("{path}?{select}")]).await?;
        let told: Value = serde_json::from_str(&told).context("a list of metrics")?;
        ensure!(told["items"][0]["value"] == "0", "the metrics API answers {told}");
        Ok(true)
    })
    .await?;
    // Whoever comes without the API server's certificate is not let in.
    let pods: Api<Pod> = Api::namespaced(spillway.client(), NAMESPACE);
    let params = ListParams::default().labels("app.kubernetes.io/component=operator");
    let pod = pods.list(&params).await?.items.pop().context("no pod of the operator")?;
    let address = pod.status.and_then(|status| status.pod_ip).context("no address of the operator")?;
    let curl = tokio::process::Command::new("curl")
        .args(["-sk", "--max-time", "5", &format!("https://{address}:6443{path}?{select}")])
        .output()
        .await
        .context("running curl")?;
    ensure!(!curl.status.success() && curl.stdout.is_empty(), "anybody is let in: {curl:?}");
    Ok(())
}

async fn wakes(spillway: &Spillway<'_>) -> Result<String> {
    // A sum with decimals: told, not judged.
    let texts = crate::serve::metrics(spillway).await?;
    let sums: Vec<String> = texts
        .iter()
        .flat_map(|text| text.lines())
        .filter_map(|line| line.strip_prefix("spillway_gateway_wake_seconds_sum "))
        .map(str::to_owned)
        .collect();
    Ok(sums.join(" + "))
}

/// With nobody behind the metrics API no namespace can be deleted, and the release takes it away first.
pub(crate) async fn leaves_nothing_behind(spillway: &Spillway<'_>) -> Result<()> {
    let lab = spillway.lab();
    lab.kubectl(&["scale", "deployment", "spillway-operator", "-n", NAMESPACE, "--replicas=0"]).await?;
    let pods: Api<Pod> = Api::namespaced(spillway.client(), NAMESPACE);
    let operators = ListParams::default().labels("app.kubernetes.io/component=operator");
    wait_for("the operator to be gone", START, || async { Ok(pods.list(&operators).await?.items.is_empty()) }).await?;
    let services: Api<APIService> = Api::all(spillway.client());
    wait_for("the metrics API to be away", START, || async {
        let found = services.get("v1beta1.external.metrics.k8s.io").await?;
        let conditions = found.status.and_then(|status| status.conditions).unwrap_or_default();
        Ok(conditions.iter().any(|one| one.type_ == "Available" && one.status == "False"))
    })
    .await?;
    lab.kubectl(&["create", "namespace", "passing"]).await?;
    lab.kubectl(&["delete", "namespace", "passing", "--wait=false"]).await?;
    let spaces: Api<k8s_openapi::api::core::v1::Namespace> = Api::all(spillway.client());
    wait_for("its deletion to be stuck", START, || async {
        let found = spaces.get("passing").await?;
        let conditions = found.status.and_then(|status| status.conditions).unwrap_or_default();
        Ok(conditions.iter().any(|one| one.type_ == "NamespaceDeletionDiscoveryFailure" && one.status == "True"))
    })
    .await?;
    lab.helm(&["uninstall", "spillway", "-n", NAMESPACE, "--wait=false"]).await?;
    wait_for("the namespace to go", START, || async { Ok(spaces.get_opt("passing").await?.is_none()) }).await?;
    ensure!(services.get_opt("v1beta1.external.metrics.k8s.io").await?.is_none(), "the APIService is left");
    Ok(())
}

/// This engine does not tell how full its KV cache is: the HPA is told so, moves nothing, and the endpoint says which replica and why.
async fn stands_still(api: &Api<ModelEndpoint>) -> Result<()> {
    let target = json!({"kvCachePercentPerReplica": 80, "inFlightPerReplica": null});
    for spec in [json!({"scaling": {"target": target}}), json!({"replicas": 2})] {
        let patch = Patch::Merge(json!({"spec": spec}));
        api.patch("lifted", &PatchParams::default(), &patch).await.context("scaling by the KV cache")?;
        wait_for("the endpoint to say that nothing is known", START, || async {
            let conditions = api.get("lifted").await?.status.unwrap_or_default().conditions;
            let missing =
                conditions.into_iter().find(|one| one.type_ == "Autoscaling" && one.reason == "MetricsMissing");
            let says = |text| missing.as_ref().is_some_and(|one| one.message.contains(text));
            Ok(says("does not export it") && says("lifted-q4-"))
        })
        .await?;
    }
    // The autoscaler looks once a second.
    for _ in 0..3 {
        tokio::time::sleep(Duration::from_secs(1)).await;
        let replicas = api.get("lifted").await?.spec.replicas;
        ensure!(replicas == 2, "it was scaled to {replicas}");
    }
    Ok(())
}

/// An endpoint whose owner raises `min` while it sleeps is lifted; another adapter's API is said, and its autoscaler goes.
pub(crate) async fn lifted(spillway: &Spillway<'_>) -> Result<()> {
    let api: Api<ModelEndpoint> = Api::namespaced(spillway.client(), TENANT);
    let spec = json!({
        "model": {"name": "smollm2", "version": "q4"}, "capacity": {"reservation": "base"},
        "replicas": 0, "drain": "5s", "scaling": {"min": 0, "max": 2},
    });
    create(&api, json!({"metadata": {"name": "lifted"}, "spec": spec})).await?;
    wait_for("it to sleep", START, || async {
        let conditions = api.get("lifted").await?.status.unwrap_or_default().conditions;
        Ok(conditions.iter().any(|one| one.reason == "Asleep"))
    })
    .await?;
    let min = json!({"spec": {"scaling": {"min": 1}}});
    api.patch("lifted", &PatchParams::default(), &Patch::Merge(&min)).await.context("raising min")?;
    wait_for("it to be lifted", START, || async { Ok(api.get("lifted").await?.spec.replicas == 1) }).await?;
    let endpoint = api.get("lifted").await?;
    let managers = endpoint.managed_fields().iter().filter_map(|one| one.manager.clone()).collect::<Vec<_>>();
    ensure!(managers.iter().any(|one| one == "spillway-scaling"), "who scaled it: {managers:?}");
    stands_still(&api).await?;
    api.delete("lifted", &Default::default()).await.context("deleting the endpoint")?;
    Ok(())
}
