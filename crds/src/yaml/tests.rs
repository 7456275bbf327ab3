use std::path::Path;

use serde_json::Value;

use super::files;

/// The committed copies: this crate's own and the Helm chart's.
const COPIES: [&str; 2] = ["", "../charts/spillway/files/crds"];

#[test]
fn the_committed_yaml_is_what_the_types_say() {
    for copy in COPIES {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(copy);
        let mut committed: Vec<String> = std::fs::read_dir(&folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| name.ends_with(".yaml"))
            .collect();
        committed.sort();
        let mut generated = Vec::new();
        for (name, text) in files().unwrap() {
            let path = folder.join(&name);
            let found = std::fs::read_to_string(&path).unwrap_or_default();
            assert!(found == text, "{} is not what crds/src says: run `make generate` and commit it", path.display());
            generated.push(name);
        }
        generated.sort();
        assert_eq!(
            committed,
            generated,
            "{} has other files than crds/src makes: run `make generate`",
            folder.display()
        );
    }
}

/// Rules are tried on an API server; here only that they stand where they are looked for, and what they tell people.
#[test]
fn the_rules_on_shares_stand_in_the_schemas() {
    let rules = |file: &str, place: &str| -> Vec<(String, String)> {
        let (_, text) = files().unwrap().into_iter().find(|(name, _)| name == file).unwrap();
        let crd: Value = serde_yaml::from_str(&text).unwrap();
        let spec = "/spec/versions/0/schema/openAPIV3Schema/properties/spec";
        let all = crd.pointer(&format!("{spec}{place}/x-kubernetes-validations")).unwrap().as_array().unwrap();
        let text = |rule: &Value, key: &str| rule.get(key).and_then(Value::as_str).unwrap().to_owned();
        let mut found: Vec<_> = all.iter().map(|rule| (text(rule, "rule"), text(rule, "message"))).collect();
        found.retain(|(rule, _)| rule.contains("profile"));
        found
    };
    let expect = |found: Vec<(String, String)>, expected: &[(&str, &str)]| {
        assert_eq!(found.len(), expected.len(), "{found:?}");
        for ((rule, message), (of_rule, of_message)) in found.iter().zip(expected) {
            assert!(rule.contains(of_rule) && message.contains(of_message), "{rule}: {message}");
        }
    };
    expect(
        rules("gpupools.yaml", "/properties/devices"),
        &[
            ("profile.resource != self.resource", "name the resource of the share"),
            ("other.resource == profile.resource", "give each a resource of its own"),
        ],
    );
    expect(
        rules("gpureservations.yaml", ""),
        &[("!has(self.devices.profile) || !self.exclusiveNodes", "set exclusiveNodes: false")],
    );
    expect(
        rules("gpureservations.yaml", "/properties/devices"),
        &[("!has(self.profile) || !has(self.perNode)", "leave one of them out")],
    );
}

#[test]
fn no_field_takes_null_and_every_list_and_string_is_bounded() {
    for (name, text) in files().unwrap() {
        let crd: Value = serde_yaml::from_str(&text).unwrap();
        let schema = crd.pointer("/spec/versions/0/schema/openAPIV3Schema").unwrap();
        check(schema, &name);
    }
}

fn check(schema: &Value, path: &str) {
    assert!(schema.get("nullable").is_none(), "{path} takes null");
    assert!(schema.get("description").is_some(), "{path} is not described");
    match schema.get("type").and_then(Value::as_str) {
        Some("string") => {
            let bounded = ["maxLength", "enum", "format"].iter().any(|key| schema.get(key).is_some());
            assert!(bounded, "{path} is a string without a bound");
        }
        Some("array") => {
            assert!(schema.get("maxItems").is_some(), "{path} is a list without a bound");
            assert!(schema.get("x-kubernetes-list-type").is_some(), "{path} is a list that cannot be merged");
            let items = schema.get("items").unwrap();
            if items.get("type").and_then(Value::as_str) == Some("object") {
                check(items, &format!("{path}[]"));
            } else {
                // A word of a list of words is bounded as well.
                let bounded = ["maxLength", "enum"].iter().any(|key| items.get(key).is_some());
                assert!(bounded, "{path}[] is a string without a bound");
            }
        }
        Some("object") => {
            let Some(Value::Object(fields)) = schema.get("properties") else {
                panic!("{path} is an object without fields")
            };
            for (key, field) in fields {
                check(field, &format!("{path}.{key}"));
            }
        }
        Some("integer" | "boolean") => {}
        other => panic!("{path} has the type {other:?}"),
    }
}
