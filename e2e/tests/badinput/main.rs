//! Bad input: manifests that are wrong somewhere, against a real API server and operator. Each is refused with a message that names the
//! field, or is taken and handled: its status says what became of it. Afterwards nothing has panicked, nothing is written in a loop, and nothing
//! is lost.
//!
//! `SPILLWAY_BAD_INPUTS=2000` makes it long, `SPILLWAY_BAD_INPUT_SEED` repeats a run.

#![allow(clippy::indexing_slicing, reason = "a field that a JSON value lacks reads as null, and lists are never empty")]

mod generator;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use spillway_crds::Phase;
use spillway_lab::spillway::Spillway;
use spillway_lab::{Lab, LabOptions, Size};
use tonic::codegen::http::Request;

use crate::generator::{Case, Verb, case};

const BOUND: Duration = Duration::from_secs(60);
/// How long nothing may be written: longer than every period of the engine but the collection's.
const QUIET: Duration = Duration::from_secs(5);

fn number(name: &str, default: u64) -> Result<u64> {
    std::env::var(name).map_or(Ok(default), |text| text.parse().with_context(|| format!("{name}={text} is no number")))
}

/// Path of a kind's objects, and of the one that patches go to.
fn paths(kind: &str) -> (&'static str, &'static str) {
    match kind {
        "GpuPool" => ("/apis/spillway.dev/v1alpha1/gpupools", "/fixed"),
        "Tenant" => ("/apis/spillway.dev/v1alpha1/tenants", "/fixed"),
        _ => ("/apis/spillway.dev/v1alpha1/namespaces/acme/gpureservations", "/stays"),
    }
}

/// What the API server said: the object, or its refusal.
async fn send(client: &kube::Client, case: &Case) -> Result<Result<Value, String>> {
    let (list, one) = paths(case.kind);
    let (request, content) = match case.verb {
        Verb::Create => (Request::post(format!("{list}?fieldValidation=Strict")), "application/json"),
        Verb::Patch => (Request::patch(format!("{list}{one}?fieldValidation=Strict")), "application/merge-patch+json"),
    };
    let request = request.header("content-type", content).body(case.object.to_string().into_bytes())?;
    match client.request::<Value>(request).await {
        Ok(object) => Ok(Ok(object)),
        Err(kube::Error::Api(status)) if (400..500).contains(&status.code) => Ok(Err(status.message.clone())),
        Err(error) => Err(error).with_context(|| format!("case {case:?}")),
    }
}

/// Whether a refusal names one of the places that are wrong: the field, or the object that it stands in. A name that is taken is named by the
/// API server's own text.
fn names_the_field(message: &str, case: &Case) -> bool {
    message.contains("already exists")
        || case.places.iter().any(|place| {
            let words: Vec<&str> =
                place.split('/').filter(|word| !word.is_empty() && word.parse::<u8>().is_err()).collect();
            let inner =
                words.iter().rev().take(2).filter(|word| words.len() == 1 || !matches!(**word, "spec" | "metadata"));
            inner.into_iter().any(|word| message.contains(word))
        })
}

/// What is missing in the status of an object that was taken.
fn unhandled(object: &Value) -> Option<String> {
    let status = &object["status"];
    let said = |reason: &Value, message: &Value| {
        reason.as_str().is_some_and(|text| !text.is_empty()) && message.as_str().is_some_and(|text| !text.is_empty())
    };
    if object["kind"] == "GpuReservation" {
        let phase = status["phase"].as_str().unwrap_or_default();
        let good = matches!(phase, "Booked" | "Preparing" | "Active" | "Ending" | "Ended");
        return (phase.is_empty() || !(good || said(&status["reason"], &status["message"])))
            .then(|| format!("phase '{phase}', reason {}, message {}", status["reason"], status["message"]));
    }
    let ready = status["conditions"].as_array().and_then(|all| all.iter().find(|one| one["type"] == "Ready"));
    match ready {
        Some(ready) if said(&ready["reason"], &ready["message"]) => None,
        Some(ready) => Some(format!("its condition Ready says {ready}")),
        None => Some("it has no condition Ready".to_owned()),
    }
}

async fn list(client: &kube::Client, path: &str, kind: &str) -> Result<Vec<Value>> {
    let list: Value =
        client.request(Request::get(path).body(Vec::new())?).await.with_context(|| format!("listing {path}"))?;
    let mut items = list["items"].as_array().context("items")?.clone();
    for item in &mut items {
        item["kind"] = json!(kind);
    }
    Ok(items)
}

async fn all(client: &kube::Client) -> Result<Vec<Value>> {
    let mut objects = Vec::new();
    for (path, kind) in [
        ("/apis/spillway.dev/v1alpha1/gpupools", "GpuPool"),
        ("/apis/spillway.dev/v1alpha1/tenants", "Tenant"),
        ("/apis/spillway.dev/v1alpha1/gpureservations", "GpuReservation"),
        ("/api/v1/nodes", "Node"),
        ("/api/v1/namespaces", "Namespace"),
    ] {
        objects.extend(list(client, path, kind).await?);
    }
    Ok(objects)
}

fn name_of(object: &Value) -> String {
    format!("{} {}/{}", object["kind"], object["metadata"]["namespace"], object["metadata"]["name"])
}

async fn versions(client: &kube::Client) -> Result<BTreeMap<String, String>> {
    let objects = all(client).await?;
    Ok(objects.iter().map(|object| (name_of(object), object["metadata"]["resourceVersion"].to_string())).collect())
}

#[tokio::test]
async fn what_is_wrong_is_refused_or_handled_and_harms_nothing() -> Result<()> {
    let seed = number("SPILLWAY_BAD_INPUT_SEED", u64::from(std::process::id()))?;
    let count = usize::try_from(number("SPILLWAY_BAD_INPUTS", 200)?)?;
    eprintln!("seed {seed}: SPILLWAY_BAD_INPUT_SEED={seed} SPILLWAY_BAD_INPUTS={count} repeats this run");
    let lab = Lab::start(LabOptions::new(Size::Api)).await?;
    let spillway = Spillway::install(&lab).await?;
    let client = spillway.client();
    let mut operator = spillway.start_operator("operator-a")?;
    spillway.create_pool("h200", json!({})).await?;
    spillway.create_pool("fixed", json!({"sku": "b200"})).await?;
    spillway.create_tenant("acme", &["acme"], json!({})).await?;
    spillway.create_tenant("fixed", &["fixed"], json!({})).await?;
    spillway.add_nodes("h200", &["gpu-0", "gpu-1", "gpu-2", "gpu-3"]).await?;
    spillway.wait_unsold("h200", 4, BOUND).await?;
    spillway.reserve("acme", "stays", json!({"pool": "h200", "devices": {"count": 8}})).await?;
    let stays = spillway.wait_phase("acme", "stays", Phase::Active, BOUND).await?;

    let mut wrong = Vec::new();
    let (mut refused, mut taken) = (0, 0);
    for number in 0..count {
        let case = case(seed, number);
        if case.places.is_empty() {
            continue;
        }
        match send(&client, &case).await? {
            Ok(_) => taken += 1,
            Err(message) => {
                refused += 1;
                if !names_the_field(&message, &case) {
                    wrong.push(format!(
                        "the refusal of case {} does not name the field: {message}\n  {case:?}",
                        case.number
                    ));
                }
            }
        }
    }
    ensure!(
        refused > count / 4 && taken > count / 20,
        "{refused} refused and {taken} taken: the generator is one-sided"
    );

    // What was taken is answered.
    let begun = Instant::now();
    let bound = Duration::from_secs(20 + u64::try_from(count / 50)?);
    loop {
        let objects = all(&client).await?;
        let silent: Vec<String> = objects
            .iter()
            .filter(|object| matches!(object["kind"].as_str(), Some("GpuPool" | "Tenant" | "GpuReservation")))
            .filter_map(|object| Some(format!("{}: {}\n  {}", name_of(object), unhandled(object)?, object["spec"])))
            .collect();
        if silent.is_empty() {
            break;
        }
        if begun.elapsed() > bound {
            wrong.extend(silent.into_iter().map(|one| format!("not handled: {one}")));
            break;
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }

    // No hot loop: once it is quiet, nothing is written.
    let begun = Instant::now();
    let mut last = versions(&client).await?;
    let mut since = Instant::now();
    while since.elapsed() < QUIET {
        tokio::time::sleep(Duration::from_millis(500)).await;
        let now = versions(&client).await?;
        if now != last {
            if begun.elapsed() > bound {
                let changes: Vec<&String> = now
                    .iter()
                    .filter(|(name, version)| last.get(*name) != Some(*version))
                    .map(|(name, _)| name)
                    .collect();
                wrong.push(format!("written again and again: {changes:?}"));
                break;
            }
            (last, since) = (now, Instant::now());
        }
    }

    // Nobody died, nothing is lost.
    let log = std::fs::read_to_string(operator.log())?;
    if let Some(status) = operator.exit_status()? {
        wrong.push(format!("the operator ended: {status}"));
    }
    wrong.extend(log.lines().filter(|line| line.contains("panicked")).map(|line| format!("a panic: {line}")));
    let now = spillway.reservation("acme", "stays").await?.and_then(|one| one.status).context("what stays is gone")?;
    let nodes = |status: &spillway_crds::GpuReservationStatus| status.nodes.clone();
    let before = stays.status.context("status")?;
    if now.phase != Phase::Active || nodes(&now) != nodes(&before) {
        wrong.push(format!("what was sold is another: {before:?} and now {now:?}"));
    }
    if let Err(error) = spillway.verify().await?.ensure_clean() {
        wrong.push(format!("{error:#}"));
    }
    eprintln!("{count} inputs by seed {seed}: {refused} refused, {taken} taken");
    drop(operator);
    lab.stop()?;
    ensure!(wrong.is_empty(), "seed {seed}, {} things are wrong:\n{}", wrong.len(), wrong.join("\n"));
    Ok(())
}
