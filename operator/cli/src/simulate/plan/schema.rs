//! Whether a value is what the schema of a CRD says. The part of OpenAPI that our CRDs are made of, and no CEL: see [`super::rules`].

use std::collections::BTreeSet;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    CustomResourceDefinition, JSONSchemaProps, JSONSchemaPropsOrArray,
};
use regex::Regex;
use serde_json::{Map, Value};

/// Longest text of a value in a message, in characters.
const SHOWN_MAX: usize = 60;

/// A field that cannot be so.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Wrong {
    /// Its path, such as `spec.devices.count`.
    pub(super) field: String,
    /// What is there.
    pub(super) value: String,
    /// What to do.
    pub(super) remedy: String,
}

impl Wrong {
    /// A field with its value as JSON.
    pub(super) fn new(field: impl Into<String>, value: &Value, remedy: impl Into<String>) -> Self {
        let text = value.to_string();
        let mut shown: String = text.chars().take(SHOWN_MAX).collect();
        if shown.len() < text.len() {
            shown.push_str("...");
        }
        Self { field: field.into(), value: shown, remedy: remedy.into() }
    }
}

impl std::fmt::Display for Wrong {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} is {}: {}", self.field, self.value, self.remedy)
    }
}

/// What the schema of `spec` says of the spec of an object.
pub(super) fn check_spec(crd: &CustomResourceDefinition, object: &Value) -> Vec<Wrong> {
    let version = crd.spec.versions.first();
    let schema = version.and_then(|version| version.schema.as_ref()?.open_api_v3_schema.as_ref());
    let mut found = Vec::new();
    match (schema.and_then(|schema| schema.properties.as_ref()?.get("spec")), object.get("spec")) {
        (Some(schema), Some(spec)) => check(spec, schema, "spec", &mut found),
        (Some(_), None) => found.push(missing("spec")),
        (None, _) => {}
    }
    found
}

fn missing(field: &str) -> Wrong {
    Wrong { field: field.to_owned(), value: "missing".to_owned(), remedy: "it must be there".to_owned() }
}

fn check(value: &Value, schema: &JSONSchemaProps, field: &str, found: &mut Vec<Wrong>) {
    let wrong = |remedy: String| Wrong::new(field, value, remedy);
    match (schema.type_.as_deref().unwrap_or_default(), value) {
        ("object", Value::Object(fields)) => check_fields(fields, schema, field, found),
        ("array", Value::Array(items)) => check_items(items, schema, field, found),
        ("string", Value::String(text)) => found.extend(why_not_text(text, schema).map(wrong)),
        ("integer", Value::Number(number)) if number.is_i64() => {
            // The bounds of a CRD are floats that are whole numbers.
            let number = number.as_f64();
            let below = schema.minimum.is_some_and(|minimum| number < Some(minimum));
            let above = schema.maximum.is_some_and(|maximum| number > Some(maximum));
            if below || above {
                let bound = |bound: Option<f64>, word: &str| bound.map(|bound| format!("{word} {bound}"));
                let bounds = [bound(schema.minimum, "at least"), bound(schema.maximum, "at most")];
                found.push(wrong(bounds.into_iter().flatten().collect::<Vec<_>>().join(" and ")));
            }
        }
        ("boolean", Value::Bool(_)) => {}
        (_, Value::Null) => found.push(wrong("write a value, or leave it out".to_owned())),
        ("object", _) => found.push(wrong("write fields here".to_owned())),
        ("array", _) => found.push(wrong("write a list".to_owned())),
        ("string", _) => found.push(wrong("write text, in quotes if it looks like something else".to_owned())),
        ("integer", _) => found.push(wrong("write a whole number without quotes".to_owned())),
        ("boolean", _) => found.push(wrong("write true or false".to_owned())),
        _ => {}
    }
}

fn check_fields(fields: &Map<String, Value>, schema: &JSONSchemaProps, field: &str, found: &mut Vec<Wrong>) {
    for name in schema.required.iter().flatten().filter(|name| !fields.contains_key(*name)) {
        found.push(missing(&format!("{field}.{name}")));
    }
    let Some(known) = &schema.properties else { return };
    for (name, value) in fields {
        let path = format!("{field}.{name}");
        match known.get(name) {
            Some(schema) => check(value, schema, &path, found),
            None => {
                let names: Vec<&str> = known.keys().map(String::as_str).collect();
                found.push(Wrong::new(path, value, format!("there is no such field (there are {})", names.join(", "))));
            }
        }
    }
}

fn check_items(items: &[Value], schema: &JSONSchemaProps, field: &str, found: &mut Vec<Wrong>) {
    let count = i64::try_from(items.len()).unwrap_or(i64::MAX);
    if schema.min_items.is_some_and(|least| count < least) || schema.max_items.is_some_and(|most| count > most) {
        let bound = |bound: Option<i64>, word: &str| bound.map(|bound| format!("{word} {bound}"));
        let bounds = [bound(schema.min_items, "at least"), bound(schema.max_items, "at most")];
        let remedy = format!("list {}", bounds.into_iter().flatten().collect::<Vec<_>>().join(" and "));
        found.push(Wrong { field: field.to_owned(), value: format!("a list of {count}"), remedy });
    }
    let Some(JSONSchemaPropsOrArray::Schema(each)) = &schema.items else { return };
    // Items of a set are told apart by all that they are, those of a map by its keys.
    let keys = schema.x_kubernetes_list_map_keys.as_deref().unwrap_or_default();
    let mut seen = BTreeSet::new();
    for (at, item) in items.iter().enumerate() {
        let path = format!("{field}[{at}]");
        check(item, each, &path, found);
        let identity: Vec<Value> = match schema.x_kubernetes_list_type.as_deref() {
            Some("set") => vec![item.clone()],
            Some("map") => keys.iter().filter_map(|key| item.get(key).cloned()).collect(),
            _ => continue,
        };
        if identity.len() == keys.len().max(1) && !seen.insert(Value::from(identity).to_string()) {
            let what = if keys.is_empty() { String::new() } else { format!(" by {}", keys.join(" and ")) };
            found.push(Wrong::new(path, item, format!("it is in the list already{what}: take one out")));
        }
    }
}

fn why_not_text(text: &str, schema: &JSONSchemaProps) -> Option<String> {
    let length = i64::try_from(text.chars().count()).unwrap_or(i64::MAX);
    if let Some(words) = &schema.enum_ {
        let words: Vec<&str> = words.iter().filter_map(|word| word.0.as_str()).collect();
        return (!words.contains(&text)).then(|| format!("write one of {}", words.join(", ")));
    }
    if schema.min_length.is_some_and(|least| length < least) {
        return Some(format!("at least {} characters", schema.min_length.unwrap_or_default()));
    }
    if schema.max_length.is_some_and(|most| length > most) {
        return Some(format!("at most {} characters", schema.max_length.unwrap_or_default()));
    }
    let pattern = schema.pattern.as_deref()?;
    // A pattern that is none is a mistake of the CRD, which the API server finds.
    let matches = Regex::new(pattern).map_or(true, |pattern| pattern.is_match(text));
    (!matches).then(|| format!("it must match {pattern}"))
}
