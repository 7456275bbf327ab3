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
                assert!(items.get("maxLength").is_some(), "{path}[] is a string without a bound");
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
