//! What is kept of an `ApiKey`, the Secret that gets the key, and its status.
//!
//! A key is made in two writes, of which the second cannot be read back: the operator may make Secrets, and read none of a tenant's. So its hash is
//! kept first, as a candidate; then the Secret is made, which nobody has seen before and which is never written again. Whoever finds a candidate and
//! does not know whether its Secret was made tries once more with another one: where there is a Secret by then, it is one of the candidates before.

use jiff::Timestamp;
use serde_json::{Value, json};
use spillway_crds::{ApiKey, ApiKeyStatus, KeyHash, KeyRecord, parse_duration_ms};

use crate::conditions::{Wanted, merge};

/// Hashes that are kept of one key. Of those that are over, or that nobody has, the oldest go.
const HASHES: usize = 8;
/// What the Secret has the key as: what OpenAI's own clients read.
pub const SECRET_KEY: &str = "OPENAI_API_KEY";

/// A record with one more candidate, for the Secret that the spec names. What was good before is so for the overlap.
pub fn with_candidate(before: Option<&KeyRecord>, object: &ApiKey, sha256: String, now_ms: i64) -> KeyRecord {
    let metadata = &object.metadata;
    let overlap = parse_duration_ms(&object.spec.overlap).unwrap_or(0);
    let end = now_ms.saturating_add(overlap);
    let same = before.is_some_and(|before| before.secret_name == object.spec.secret_name && !before.issued);
    let kept = before.map(|before| before.hashes.as_slice()).unwrap_or_default().iter();
    let mut hashes: Vec<KeyHash> = kept
        .filter(|hash| hash.expires_at_ms.is_none_or(|end| end > now_ms))
        .map(|hash| KeyHash {
            sha256: hash.sha256.clone(),
            expires_at_ms: if same {
                hash.expires_at_ms
            } else {
                Some(hash.expires_at_ms.map_or(end, |one| one.min(end)))
            },
        })
        .collect();
    hashes.push(KeyHash { sha256, expires_at_ms: None });
    let over = hashes.len().saturating_sub(HASHES);
    hashes.drain(..over);
    KeyRecord {
        uid: metadata.uid.clone().unwrap_or_default(),
        namespace: metadata.namespace.clone().unwrap_or_default(),
        name: metadata.name.clone().unwrap_or_default(),
        secret_name: object.spec.secret_name.clone(),
        issued: false,
        hashes,
    }
}

/// The record once its Secret was made with the key of its last candidate.
pub fn with_secret_made(mut record: KeyRecord) -> KeyRecord {
    let last = record.hashes.pop();
    record.hashes.retain(|hash| hash.expires_at_ms.is_some());
    record.hashes.extend(last);
    record.issued = true;
    record
}

/// The record once it was found that there is a Secret of that name already: that of a candidate before the last one, if there is any; else it is
/// somebody else's, and what there was before stands. Nothing is kept where there was nothing.
pub fn with_secret_found(before: Option<&KeyRecord>, mut record: KeyRecord) -> Option<KeyRecord> {
    record.hashes.pop();
    if record.hashes.iter().any(|hash| hash.expires_at_ms.is_none()) {
        record.issued = true;
        return Some(record);
    }
    before.cloned()
}

/// The Secret that gets the key: new, and gone with its `ApiKey`.
pub fn build_secret(object: &ApiKey, key: &str) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Secret",
        "type": "Opaque",
        "metadata": {
            "name": object.spec.secret_name,
            "namespace": object.metadata.namespace,
            "labels": {"app.kubernetes.io/managed-by": "spillway"},
            "ownerReferences": [{
                "apiVersion": "spillway.dev/v1alpha1", "kind": "ApiKey",
                "name": object.metadata.name, "uid": object.metadata.uid,
            }],
        },
        "stringData": {SECRET_KEY: key},
    })
}

/// What is known of a key.
#[derive(Clone, Copy, Debug, Default)]
pub struct Facts<'a> {
    /// Why it cannot be made: a word and a sentence.
    pub problem: Option<(&'static str, &'a str)>,
    /// Its readable part.
    pub prefix: Option<&'a str>,
    /// What is kept of it.
    pub record: Option<&'a KeyRecord>,
}

/// The status that says what is known.
pub fn build_status(object: &ApiKey, facts: Facts<'_>, now: Timestamp) -> ApiKeyStatus {
    let previous = object.status.clone().unwrap_or_default();
    let record = facts.record.filter(|record| record.issued);
    let now_ms = now.as_millisecond();
    let ends = object.spec.expires_at.as_deref().and_then(|at| at.parse::<Timestamp>().ok());
    let name = &object.spec.secret_name;
    let (ready, stalled, reason, message) = match facts.problem {
        Some((reason, message)) => (false, true, reason, message.to_owned()),
        None if object.spec.revoked => (false, false, "Revoked", "It was revoked: no gateway takes it.".to_owned()),
        None if ends.is_some_and(|ends| ends <= now) => {
            (false, false, "Expired", "spec.expiresAt is over: no gateway takes it.".to_owned())
        }
        None if record.is_some_and(|record| record.secret_name == *name) => {
            (true, false, "Issued", format!("Secret {name} has it as {SECRET_KEY}. It is shown nowhere else."))
        }
        None => (false, false, "Issuing", "It is being made.".to_owned()),
    };
    let before = record.and_then(|record| record.hashes.iter().filter_map(|hash| hash.expires_at_ms).max());
    let before = before.filter(|end| *end > now_ms).and_then(|end| Timestamp::from_millisecond(end).ok());
    ApiKeyStatus {
        observed_generation: object.metadata.generation,
        conditions: merge(
            &previous.conditions,
            vec![
                Wanted::new("Ready", ready, reason, message.clone()),
                Wanted::new("Reconciling", reason == "Issuing", reason, message.clone()),
                Wanted::new("Stalled", stalled, reason, message),
            ],
            object.metadata.generation,
            now,
        ),
        prefix: facts.prefix.map(str::to_owned),
        secret_name: record.map(|record| record.secret_name.clone()),
        previous_expires_at: before.map(|end| end.to_string()),
    }
}

#[cfg(test)]
mod tests;
