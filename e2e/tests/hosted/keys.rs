//! API keys on a real API server, and a real gateway that takes them.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::core::v1::Secret;
use kube::api::{Api, DeleteParams, Patch, PatchParams};
use serde_json::{Value, json};
use spillway_crds::{ApiKey, Model, ModelEndpoint, Phase};
use spillway_lab::spillway::{Gateway, Spillway};
use spillway_lab::{Lab, LabOptions, Size, wait_for, wait_for_value};

use crate::{BOUND, TENANT, create, furnish, version};

/// From a change of a key to what every gateway says of it.
const EFFECTIVE: Duration = Duration::from_secs(5);

struct Keys<'a> {
    spillway: &'a Spillway<'a>,
    keys: Api<ApiKey>,
    secrets: Api<Secret>,
}

impl Keys<'_> {
    async fn make(&self, name: &str, spec: Value) -> Result<()> {
        create(&self.keys, json!({"metadata": {"name": name}, "spec": spec})).await.map(drop)
    }

    async fn change(&self, name: &str, spec: Value) -> Result<()> {
        let patch = Patch::Merge(json!({"spec": spec}));
        self.keys.patch(name, &PatchParams::default(), &patch).await.context("changing a key").map(drop)
    }

    async fn wait_reason(&self, name: &str, reason: &str) -> Result<()> {
        self.spillway
            .wait_for(&format!("key {name} to be {reason}"), BOUND, || async {
                let status = self.keys.get(name).await?.status.unwrap_or_default();
                let ready = status.conditions.iter().find(|condition| condition.type_ == "Ready");
                ensure!(ready.is_some_and(|ready| ready.reason == reason), "it is {ready:?}");
                Ok(true)
            })
            .await
    }

    /// The key that a Secret has.
    async fn key(&self, secret: &str) -> Result<String> {
        let data = self.secrets.get(secret).await.context("reading a Secret")?.data.unwrap_or_default();
        let bytes = data.get("OPENAI_API_KEY").context("no OPENAI_API_KEY")?;
        String::from_utf8(bytes.0.clone()).context("a key")
    }
}

/// Waits until the gateway answers a key with this status and code; how long that took.
async fn wait_status(gateway: &Gateway, key: &str, status: u16, code: &str) -> Result<Duration> {
    let begun = Instant::now();
    wait_for(&format!("{status} {code}"), BOUND, || async {
        let (now, body) = gateway.get("/v1/models", key).await?;
        Ok(now == status && body.pointer("/error/code").and_then(Value::as_str).unwrap_or_default() == code)
    })
    .await?;
    Ok(begun.elapsed())
}

#[tokio::test]
async fn a_key_is_made_used_rotated_and_taken_back() -> Result<()> {
    let lab = Lab::start(LabOptions::new(Size::Api)).await?;
    let values = ["operator.replicas=0", "agent.enabled=false", "gateway.enabled=true", "gateway.replicas=0"];
    let spillway = Spillway::install_with(&lab, &values).await?;
    let operator = spillway.start_operator("operator-a")?;
    furnish(&spillway).await?;
    let client = spillway.client();
    let models = json!({"capabilities": ["Chat"], "versions": [version("q4", 1)]});
    create::<Model>(&Api::all(client.clone()), json!({"metadata": {"name": "m"}, "spec": models})).await?;
    spillway.reserve(TENANT, "base", json!({"devices": {"count": 4}, "exclusiveNodes": false})).await?;
    spillway.wait_phase(TENANT, "base", Phase::Active, BOUND).await?;
    let endpoints: Api<ModelEndpoint> = Api::namespaced(client.clone(), TENANT);
    // It wants no replica, and says so to who asks.
    let spec = json!({"model": {"name": "m", "version": "q4"}, "capacity": {"reservation": "base"}, "replicas": 0});
    create(&endpoints, json!({"metadata": {"name": "chat"}, "spec": spec})).await?;
    let gateway = spillway.start_gateway("gateway-0").await?;
    let keys = Keys {
        spillway: &spillway,
        keys: Api::namespaced(client.clone(), TENANT),
        secrets: Api::namespaced(client.clone(), TENANT),
    };

    // Made, and good at once.
    keys.make("ci", json!({"secretName": "first", "limits": {"requestsPerMinute": 1000}})).await?;
    keys.wait_reason("ci", "Issued").await?;
    let first = keys.key("first").await?;
    wait_status(&gateway, &first, 200, "").await?;
    let (_, list) = gateway.get("/v1/models", &first).await?;
    ensure!(list["data"][0]["id"] == "chat" && list["data"][0]["owned_by"] == TENANT, "the list is {list}");
    let question = json!({"model": "chat", "messages": [{"role": "user", "content": "Hello"}]});
    let (status, answer) = gateway.post("/v1/chat/completions", &first, &question).await?;
    ensure!(status == 503 && answer.contains("model_stopped"), "without a replica: {status} {answer}");
    let prefix = keys.keys.get("ci").await?.status.and_then(|status| status.prefix).context("no prefix")?;
    ensure!(first.starts_with(&prefix), "the status names another key than {prefix}");

    // Taken back, given again: on every gateway within seconds.
    for (revoked, status, code) in [(true, 401, "revoked_api_key"), (false, 200, "")] {
        keys.change("ci", json!({"revoked": revoked})).await?;
        let took = wait_status(&gateway, &first, status, code).await?;
        ensure!(took < EFFECTIVE, "a revocation took {took:?}");
    }

    // Made anew: both are good for the overlap, and then the new one alone.
    keys.change("ci", json!({"secretName": "second", "overlap": "1h"})).await?;
    wait_for("the second secret", BOUND, || async { Ok(keys.secrets.get_opt("second").await?.is_some()) }).await?;
    keys.wait_reason("ci", "Issued").await?;
    let second = keys.key("second").await?;
    ensure!(first != second && second.starts_with(&prefix), "another key was made");
    wait_status(&gateway, &second, 200, "").await?;
    wait_status(&gateway, &first, 200, "").await?;
    keys.change("ci", json!({"secretName": "third", "overlap": "0s"})).await?;
    wait_status(&gateway, &second, 401, "expired_api_key").await?;
    let third = wait_for_value("the third secret", BOUND, || async {
        Ok(match keys.secrets.get_opt("third").await? {
            Some(_) => Some(keys.key("third").await?),
            None => None,
        })
    })
    .await?;
    wait_status(&gateway, &third, 200, "").await?;

    // A Secret that is there already is not written, and what there was before stands.
    keys.change("ci", json!({"secretName": "first"})).await?;
    keys.wait_reason("ci", "SecretExists").await?;
    ensure!(keys.key("first").await? == first, "the Secret was written");
    wait_status(&gateway, &third, 200, "").await?;
    keys.change("ci", json!({"secretName": "third"})).await?;
    keys.wait_reason("ci", "Issued").await?;

    // An end, and the end.
    keys.change("ci", json!({"expiresAt": "2026-01-01T00:00:00Z"})).await?;
    wait_status(&gateway, &third, 401, "expired_api_key").await?;
    keys.wait_reason("ci", "Expired").await?;
    keys.change("ci", json!({"expiresAt": null})).await?;
    wait_status(&gateway, &third, 200, "").await?;
    keys.keys.delete("ci", &DeleteParams::default()).await?;
    let took = wait_status(&gateway, &third, 401, "invalid_api_key").await?;
    ensure!(took < EFFECTIVE, "a deletion took {took:?}");

    // Nothing of a key or its hash is anywhere but where it belongs.
    let logs = [operator.log(), gateway.log()].map(std::fs::read_to_string);
    let events = lab.kubectl(&["get", "events", "-A", "-o", "json"]).await?;
    let objects = lab.kubectl(&["get", "apikeys", "-A", "-o", "json"]).await?;
    for text in logs.into_iter().collect::<Result<Vec<_>, _>>()?.iter().chain([&events, &objects]) {
        for key in [&first, &second, &third] {
            // `sk-spw-<id>-<secret>`; there may be dashes in the secret too.
            let secret = key.splitn(4, '-').nth(3).context("a key without a secret")?;
            ensure!(secret.len() > 40 && !text.contains(secret), "a key is shown");
        }
    }
    gateway.stop().await?;
    operator.stop().await?;
    lab.stop()
}

/// The operator dies between the two writes that make a key; and nobody is left with a key that does not work.
#[tokio::test]
async fn a_kill_between_hash_and_secret_leaves_a_key_that_works() -> Result<()> {
    let lab = Lab::start(LabOptions::new(Size::Api)).await?;
    let values = ["operator.replicas=0", "agent.enabled=false", "gateway.enabled=true", "gateway.replicas=0"];
    let spillway = Spillway::install_with(&lab, &values).await?;
    let operator = spillway.start_operator("operator-a")?;
    furnish(&spillway).await?;
    operator.stop().await?;
    let gateway = spillway.start_gateway("gateway-0").await?;
    let client = spillway.client();
    let keys = Keys {
        spillway: &spillway,
        keys: Api::namespaced(client.clone(), TENANT),
        secrets: Api::namespaced(client, TENANT),
    };
    for point in ["apikey.after-candidate", "apikey.after-secret"] {
        let name = point.trim_start_matches("apikey.");
        keys.make(name, json!({"secretName": name})).await?;
        let mut operator = spillway.start_operator_to_die("operator-a", point)?;
        let status = operator.wait_exit(BOUND).await.with_context(|| format!("it never came to {point}"))?;
        ensure!(status.code() == Some(137), "at {point} it ended with {status}");
        let operator = spillway.start_operator("operator-a")?;
        keys.wait_reason(name, "Issued").await?;
        wait_status(&gateway, &keys.key(name).await?, 200, "").await?;
        operator.stop().await?;
    }
    gateway.stop().await?;
    lab.stop()
}
