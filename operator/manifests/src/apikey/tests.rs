use serde_json::json;

use super::*;

const NOW: i64 = 1_000_000;
const HOUR: i64 = 3_600_000;

fn key(secret_name: &str) -> ApiKey {
    serde_json::from_value(json!({
        "apiVersion": "spillway.dev/v1alpha1", "kind": "ApiKey",
        "metadata": {"name": "ci", "namespace": "acme", "uid": "u1", "generation": 2},
        "spec": {"secretName": secret_name, "overlap": "1h"},
    }))
    .unwrap()
}

/// The hashes of a record, with what is left of those that end.
fn said(record: &KeyRecord) -> String {
    let hashes = record.hashes.iter().map(|hash| match hash.expires_at_ms {
        None => hash.sha256.clone(),
        Some(end) => format!("{}<{}", hash.sha256, end - NOW),
    });
    let issued = if record.issued { "issued" } else { "candidate" };
    format!("{} {issued}: {}", record.secret_name, hashes.collect::<Vec<_>>().join(" "))
}

fn candidate(before: Option<&KeyRecord>, secret_name: &str, sha256: &str, now_ms: i64) -> KeyRecord {
    with_candidate(before, &key(secret_name), sha256.to_owned(), now_ms)
}

#[test]
fn a_key_is_made_and_made_anew() {
    let first = candidate(None, "one", "h1", NOW);
    assert_eq!(said(&first), "one candidate: h1");
    let made = with_secret_made(first);
    assert_eq!(said(&made), "one issued: h1");
    // Another name is another secret; the one before is good for the overlap.
    let second = candidate(Some(&made), "two", "h2", NOW);
    assert_eq!(said(&second), format!("two candidate: h1<{HOUR} h2"));
    let made = with_secret_made(second);
    assert_eq!(said(&made), format!("two issued: h1<{HOUR} h2"));
    // What is over goes with the next change.
    let third = candidate(Some(&made), "three", "h3", NOW + HOUR);
    assert_eq!(said(&third), format!("three candidate: h2<{} h3", 2 * HOUR));
}

/// The operator dies between the two writes, once or several times.
#[test]
fn whoever_finds_a_candidate_tries_once_more() {
    let before = candidate(None, "one", "h1", NOW);
    let again = candidate(Some(&before), "one", "h2", NOW);
    assert_eq!(said(&again), "one candidate: h1 h2");
    // It had been made: with the key of the first.
    assert_eq!(with_secret_found(Some(&before), again.clone()).map(|one| said(&one)).unwrap(), "one issued: h1");
    // It had not.
    assert_eq!(said(&with_secret_made(again)), "one issued: h2");
    let mut many = before;
    for number in 2..20 {
        many = candidate(Some(&many), "one", &format!("h{number}"), NOW);
    }
    assert_eq!(many.hashes.len(), HASHES, "what nobody has is not kept for ever");
}

#[test]
fn a_secret_of_somebody_elses_is_left_alone() {
    let first = candidate(None, "theirs", "h1", NOW);
    assert_eq!(with_secret_found(None, first), None);
    let mine = with_secret_made(candidate(None, "one", "h1", NOW));
    let second = candidate(Some(&mine), "theirs", "h2", NOW);
    // The one before stands, and without an end.
    assert_eq!(with_secret_found(Some(&mine), second).as_ref(), Some(&mine));
}

#[test]
fn a_status_shows_no_key() {
    let object = key("two");
    let old = with_secret_made(candidate(None, "one", "h1", NOW));
    let record = with_secret_made(candidate(Some(&old), "two", "h2", NOW));
    let facts = Facts { record: Some(&record), prefix: Some("sk-spw-00000000"), problem: None };
    let now = Timestamp::from_millisecond(NOW).unwrap();
    let status = build_status(&object, facts, now);
    assert_eq!(status.secret_name.as_deref(), Some("two"));
    assert_eq!(status.previous_expires_at.as_deref(), Some("1970-01-01T01:16:40Z"));
    assert_eq!(status.conditions[0].reason, "Issued");
    let text = serde_json::to_string(&status).unwrap();
    assert!(!text.contains("h1") && !text.contains("h2"), "{text}");
    // While the next one is made, the one before is what there is.
    let changed = build_status(&key("three"), facts, now);
    assert_eq!((changed.conditions[0].reason.as_str(), changed.secret_name.as_deref()), ("Issuing", Some("two")));
    let mut revoked = object;
    revoked.spec.revoked = true;
    assert_eq!(build_status(&revoked, facts, now).conditions[0].reason, "Revoked");
}

#[test]
fn the_secret_is_new_and_the_keys() {
    let secret = build_secret(&key("one"), "sk-spw-x");
    assert_eq!(secret["stringData"], json!({"OPENAI_API_KEY": "sk-spw-x"}));
    assert_eq!(secret["metadata"]["ownerReferences"][0]["uid"], "u1");
}
