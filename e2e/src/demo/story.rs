//! The sale: three tenants and the owner meet on one fleet.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::ListParams;
use serde_json::Value;
use spillway_crds::{GpuReservation, Phase};

use super::commands::wrap;
use super::fleet::{Pool, REGION};
use super::model;
use super::stage::Stage;
use super::teller::{Teller, seconds};
use super::workloads;
use crate::wait_for_value;

/// Most that any one thing of the story may take; each takes seconds.
pub(super) const BOUND: Duration = Duration::from_secs(90);
/// Width of text that is wrapped.
pub(super) const WIDTH: usize = 110;

/// How long acme buys the real node: the story comes to the waitlist within it, also where a thousand nodes make everything slower.
fn term_seconds(stage: &Stage) -> u64 {
    45 + 5 * (stage.fleet.nodes.len() as u64 / 100)
}

pub(super) async fn tell(teller: &mut Teller, stage: &Stage) -> Result<()> {
    let shared = stage.fleet.largest()?.clone();
    tenants_come(teller, stage, &shared).await?;
    a_tenant_buys(teller, stage).await?;
    others_do_not_get_there(teller, stage).await?;
    a_quota_says_no(teller, stage, &shared).await?;
    who_comes_late_waits(teller, stage).await?;
    the_owner_uses_the_rest(teller, stage, &shared).await?;
    the_term_ends(teller, stage).await?;
    the_node_comes_back(teller, stage).await?;
    model::a_node_is_shared(teller, stage).await?;
    model::a_model_is_served(teller, stage).await?;
    the_bill(teller, stage).await
}

async fn tenants_come(teller: &mut Teller, stage: &Stage, shared: &Pool) -> Result<()> {
    let limit = 2 * shared.gpus;
    teller
        .step(&format!("Tenants acme, birch (at most {limit} {} OnDemand), cobalt, and the owner, house", shared.sku));
    teller.command("kubectl apply -f tenants.yaml", "");
    stage.commands.quiet(&["kubectl", "apply", "-f", "-"], &workloads::tenants(&shared.sku, limit)).await?;
    let wait = ["kubectl", "wait", "--for=condition=Ready", "tenants", "--all", "--timeout=60s"];
    stage.commands.quiet(&wait, "").await?;
    stage.commands.show(teller, &["kubectl", "get", "tenants"], "").await?;
    Ok(())
}

async fn a_tenant_buys(teller: &mut Teller, stage: &Stage) -> Result<()> {
    teller.step(
        "acme deploys first and buys then: a Deployment, a StatefulSet and a Job, 8 GPUs, nothing of Spillway in them",
    );
    apply_as(teller, stage, "acme-user", "acme", "workloads.yaml", &workloads::of_a_tenant()).await?;
    let message = pending_message(stage, "acme", "app=inference").await?;
    teller.say(&format!("It holds nothing yet, so its pods are Pending:\n{}", wrap(&message, WIDTH)));

    let term = term_seconds(stage);
    let spec = format!("pool: lab, devices: {{count: 8}}, tier: Committed, term: {{duration: {term}s}}");
    reserve(teller, stage, "acme-user", "acme", "train", &spec).await?;
    let train = follow(teller, stage, "acme", "train", Phase::Active).await?;
    let active = Instant::now();
    let wait = teller.wait_briefly("waiting for acme's pods");
    let pods = running_pods(stage, "acme", 4).await?;
    teller.done(
        wait,
        &format!("all {} pods run, {} after the node became acme's", pods.len(), seconds(active.elapsed())),
    );
    let bought: Vec<String> = nodes_of(&train);
    let elsewhere: Vec<&Pod> =
        pods.iter().filter(|pod| !node_of(pod).is_some_and(|node| bought.contains(&node))).collect();
    ensure!(elsewhere.is_empty(), "{} pods run elsewhere than on {bought:?}", elsewhere.len());
    stage.commands.show(teller, &["kubectl", "--as=acme-user", "-n", "acme", "get", "pods", "-o", "wide"], "").await?;
    let logs =
        stage.commands.show(teller, &["kubectl", "--as=acme-user", "-n", "acme", "logs", "trainer-0"], "").await?;
    ensure!(logs.matches("lab-gpu-").count() == 2, "the container was given other devices than it asked for: {logs}");
    teller
        .fine(&format!("every pod of acme's is on {}, the node that acme bought, and nowhere else", bought.join(", ")));
    Ok(())
}

async fn others_do_not_get_there(teller: &mut Teller, stage: &Stage) -> Result<()> {
    teller.step("cobalt tries to get onto acme's node without paying");
    let node = stage.real_node()?;
    let apply = ["kubectl", "--as=cobalt-user", "-n", "cobalt", "apply", "-f", "-"];
    apply_as(teller, stage, "cobalt-user", "cobalt", "pod.yaml", &workloads::pod("hopeful", 8, "")).await?;
    let message = pending_message(stage, "cobalt", "app=hopeful").await?;
    teller.answer(&wrap(&message, WIDTH), 8);
    teller.fine("an unchanged pod waits: cobalt holds nothing");

    let toleration = "tolerations: [{key: spillway.dev/hold, operator: Exists}]";
    teller.say("With a toleration of the hold taint:");
    stage.commands.show_refused(teller, &apply, &workloads::pod("sneaky", 8, toleration), "may not tolerate").await?;
    teller.say("Past the scheduler:");
    stage
        .commands
        .show_refused(
            teller,
            &apply,
            &workloads::pod("sneakier", 8, &format!("nodeName: {node}")),
            "use a nodeSelector",
        )
        .await
}

async fn a_quota_says_no(teller: &mut Teller, stage: &Stage, shared: &Pool) -> Result<()> {
    let Pool { sku, gpus, .. } = shared;
    teller.step(&format!("birch meets its quota of {} {sku}", 2 * gpus));
    let spec = |nodes: u32| {
        let count = nodes * gpus;
        format!("sku: {sku}, region: {REGION}, devices: {{count: {count}, perNode: {gpus}}}, tier: OnDemand")
    };
    reserve(teller, stage, "birch-user", "birch", "too-much", &spec(3)).await?;
    let refused = follow(teller, stage, "birch", "too-much", Phase::Rejected).await?;
    explain_status(teller, &refused, "QuotaExceeded")?;
    reserve(teller, stage, "birch-user", "birch", "serve", &spec(2)).await?;
    let serve = follow(teller, stage, "birch", "serve", Phase::Active).await?;
    teller.fine(&format!("birch's nodes: {}", nodes_of(&serve).join(", ")));
    reserve(teller, stage, "birch-user", "birch", "one-more", &spec(1)).await?;
    let waits = follow(teller, stage, "birch", "one-more", Phase::Waitlisted).await?;
    explain_status(teller, &waits, "QuotaInUse")
}

async fn who_comes_late_waits(teller: &mut Teller, stage: &Stage) -> Result<()> {
    teller.step("cobalt decides to pay, but the node is acme's until the term ends: the waitlist");
    reserve(teller, stage, "cobalt-user", "cobalt", "next", "pool: lab, devices: {count: 8}, tier: OnDemand").await?;
    follow(teller, stage, "cobalt", "next", Phase::Waitlisted).await?;
    stage.commands.show(teller, &["spillway", "explain", "cobalt/next"], "").await?;
    Ok(())
}

async fn the_owner_uses_the_rest(teller: &mut Teller, stage: &Stage, shared: &Pool) -> Result<()> {
    const REPLICAS: usize = 4;
    teller.step("The owner's unchanged pods use what is not sold");
    let manifest = workloads::of_the_owner(&shared.name, REPLICAS as u32, shared.gpus);
    apply_as(teller, stage, "house-user", "house", "research.yaml", &manifest).await?;
    for pod in running_pods(stage, "house", REPLICAS).await? {
        let node = node_of(&pod).context("a running pod without a node")?;
        ensure!(stage.is_unsold(&node).await?, "the owner's pod runs on {node}, which is not unsold");
    }
    teller.fine(&format!("{REPLICAS} pods of {} GPUs run, each on an unsold node", shared.gpus));
    stage.commands.show(teller, &["spillway", "capacity"], "").await?;
    Ok(())
}

async fn the_term_ends(teller: &mut Teller, stage: &Stage) -> Result<()> {
    let node = stage.real_node()?;
    teller.step(&format!(
        "acme's {} s end; the node is closed, emptied, checked, and goes to who waited",
        term_seconds(stage)
    ));
    let train = follow(teller, stage, "acme", "train", Phase::Ended).await?;
    let next = follow(teller, stage, "cobalt", "next", Phase::Active).await?;
    ensure!(nodes_of(&next) == [node.clone()], "cobalt was given {:?}", nodes_of(&next));
    if let Some(took) = handover(&train, &next) {
        teller.fine(&format!("{node} was cobalt's {} after acme's term ended", seconds(took)));
    }
    let wait = teller.wait_briefly("waiting for cobalt's pod");
    let pods = running_pods(stage, "cobalt", 1).await?;
    ensure!(pods.iter().all(|pod| node_of(pod).as_ref() == Some(&node)), "cobalt's pod runs elsewhere");
    teller.done(wait, &format!("cobalt's pod, which waited since its first attempt, runs on {node}"));
    let message = pending_message(stage, "acme", "app=inference").await?;
    ensure!(!message.is_empty(), "acme's pods should wait again");
    teller.fine("acme's pods are gone from it; its Deployment's new ones wait for the next purchase");
    Ok(())
}

async fn the_node_comes_back(teller: &mut Teller, stage: &Stage) -> Result<()> {
    let node = stage.real_node()?;
    teller.step("cobalt gives the node back, and the owner has it");
    stage
        .commands
        .show(teller, &["kubectl", "--as=cobalt-user", "-n", "cobalt", "delete", "gpures", "next"], "")
        .await?;
    let wait = teller.wait_briefly("waiting for the node to be unsold");
    wait_for_value("the real node to be unsold", BOUND, || async { Ok(stage.is_unsold(&node).await?.then_some(())) })
        .await?;
    teller.done(wait, &format!("{node} was emptied, checked, and is unsold again"));
    apply_as(teller, stage, "house-user", "house", "nightly.yaml", &workloads::short_job("lab", 8)).await?;
    let done = [
        "kubectl",
        "--as=house-user",
        "-n",
        "house",
        "wait",
        "--for=condition=Complete",
        "job/nightly",
        "--timeout=60s",
    ];
    stage.commands.quiet(&done, "").await?;
    stage.commands.show(teller, &["kubectl", "--as=house-user", "-n", "house", "logs", "job/nightly"], "").await?;
    teller.fine("the owner's Job ran on it");
    Ok(())
}

async fn the_bill(teller: &mut Teller, stage: &Stage) -> Result<()> {
    teller.step("The meter, and the independent checker");
    stage.commands.show(teller, &["spillway", "usage", "--from", "1h", "--by", "reservation"], "").await?;
    let usage =
        stage.commands.quiet(&["spillway", "usage", "--from", "1h", "--by", "reservation", "-o", "json"], "").await?;
    let usage: Value = serde_json::from_str(&usage).context("the JSON of `spillway usage`")?;
    let rows = usage.get("rows").and_then(Value::as_array).context("rows of `spillway usage`")?;
    let train = rows.iter().find(|row| row["namespace"] == "acme" && row["reservation"] == "train");
    let metered =
        train.and_then(|row| row["deviceMilliseconds"].as_str()).context("acme's reservation in the usage")?;
    let term = term_seconds(stage);
    let expected = 8 * term * 1000;
    ensure!(
        metered == expected.to_string(),
        "acme/train is metered with {metered} device-milliseconds, not {expected}"
    );
    teller.fine(&format!("acme owes for 8 GPUs x {term} s = {} GPU-seconds, to the millisecond", 8 * term));
    stage.commands.show(teller, &["kubectl", "get", "gpures", "-A"], "").await?;
    stage.commands.show(teller, &["spillway", "verify"], "").await?;
    teller.fine("nothing was sold twice, nobody is where they hold nothing, and the ledger explains every millisecond");
    Ok(())
}

/// Applies a manifest as a tenant's user.
pub(super) async fn apply_as(
    teller: &Teller,
    stage: &Stage,
    user: &str,
    namespace: &str,
    file: &str,
    manifest: &str,
) -> Result<()> {
    let user = format!("--as={user}");
    teller.command(&format!("kubectl {user} -n {namespace} apply -f {file}"), "");
    let out = stage.commands.quiet(&["kubectl", &user, "-n", namespace, "apply", "-f", "-"], manifest).await?;
    teller.answer(&out, 8);
    Ok(())
}

pub(super) async fn reserve(
    teller: &Teller,
    stage: &Stage,
    user: &str,
    namespace: &str,
    name: &str,
    spec: &str,
) -> Result<()> {
    let user = format!("--as={user}");
    stage
        .commands
        .show(teller, &["kubectl", &user, "-n", namespace, "apply", "-f", "-"], &workloads::reservation(name, spec))
        .await?;
    Ok(())
}

/// Waits until a reservation is in a phase, and tells through which it went.
pub(super) async fn follow(
    teller: &Teller,
    stage: &Stage,
    namespace: &str,
    name: &str,
    until: Phase,
) -> Result<GpuReservation> {
    let api = Api::<GpuReservation>::namespaced(stage.lab.client()?, namespace);
    let what = format!("{namespace}/{name}");
    let waiting = format!("waiting for {what} to be {}", until.as_str());
    // The end of a term is waited for longest.
    let wait = if until == Phase::Ended { teller.wait(waiting) } else { teller.wait_briefly(waiting) };
    let begun = Instant::now();
    let bound = BOUND + Duration::from_secs(term_seconds(stage));
    let mut phases: Vec<Phase> = Vec::new();
    loop {
        let reservation = api.get(name).await.with_context(|| format!("reading {what}"))?;
        let status = reservation.status.clone().unwrap_or_default();
        if phases.last() != Some(&status.phase) {
            phases.push(status.phase);
            wait.at(&format!("{what} is {}", status.phase.as_str()));
        }
        let reason =
            || format!("{}: {}", status.reason.clone().unwrap_or_default(), status.message.clone().unwrap_or_default());
        if status.phase == until {
            let phases: Vec<&str> = phases.iter().map(|phase| phase.as_str()).collect();
            teller.done(wait, &format!("{what}: {}", phases.join(" -> ")));
            return Ok(reservation);
        }
        if status.phase.is_final() {
            bail!("{what} is {} and not {}: {}", status.phase.as_str(), until.as_str(), reason());
        }
        if begun.elapsed() > bound {
            bail!(
                "{what} is still {} after {} s, not {}: {}",
                status.phase.as_str(),
                bound.as_secs(),
                until.as_str(),
                reason()
            );
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Shows why a reservation is where it is; the reason must be this one.
fn explain_status(teller: &Teller, reservation: &GpuReservation, reason: &str) -> Result<()> {
    let status = reservation.status.clone().unwrap_or_default();
    let message = status.message.unwrap_or_default();
    ensure!(status.reason.as_deref() == Some(reason), "expected {reason}, got {:?}: {message}", status.reason);
    teller.answer(&wrap(&format!("{reason}: {message}"), WIDTH), 8);
    Ok(())
}

/// From the end of one reservation to the moment in which the next has all its nodes.
fn handover(from: &GpuReservation, to: &GpuReservation) -> Option<Duration> {
    let ended = from.status.as_ref()?.booking.as_ref()?.ends_at.clone()?;
    let active = to.status.as_ref()?.booking.as_ref()?.active_at.clone()?;
    Duration::try_from(active.0.duration_since(ended.0)).ok()
}

pub(super) fn nodes_of(reservation: &GpuReservation) -> Vec<String> {
    let status = reservation.status.as_ref();
    status.map(|status| status.nodes.iter().map(|node| node.name.clone()).collect()).unwrap_or_default()
}

fn node_of(pod: &Pod) -> Option<String> {
    pod.spec.as_ref()?.node_name.clone()
}

/// Waits until so many pods of a namespace run, and returns them.
pub(super) async fn running_pods(stage: &Stage, namespace: &str, count: usize) -> Result<Vec<Pod>> {
    let api = Api::<Pod>::namespaced(stage.lab.client()?, namespace);
    wait_for_value(&format!("{count} pods to run in {namespace}"), BOUND, || async {
        let pods = api.list(&ListParams::default()).await?.items;
        let running: Vec<Pod> = pods.into_iter().filter(|pod| phase_of(pod) == "Running").collect();
        Ok((running.len() == count).then_some(running))
    })
    .await
}

fn phase_of(pod: &Pod) -> &str {
    pod.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or_default()
}

/// What the scheduler says about a pod that waits.
async fn pending_message(stage: &Stage, namespace: &str, selector: &str) -> Result<String> {
    let api = Api::<Pod>::namespaced(stage.lab.client()?, namespace);
    wait_for_value(&format!("pods of {namespace} to be Pending"), BOUND, || async {
        let pods = api.list(&ListParams::default().labels(selector)).await?.items;
        let message = pods
            .iter()
            .filter(|pod| phase_of(pod) == "Pending" && pod.metadata.deletion_timestamp.is_none())
            .find_map(|pod| {
                let conditions = pod.status.as_ref()?.conditions.as_ref()?;
                let scheduled = conditions.iter().find(|one| one.type_ == "PodScheduled" && one.status == "False")?;
                scheduled.message.clone()
            });
        Ok(message)
    })
    .await
}
