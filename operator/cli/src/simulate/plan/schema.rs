//! Whether a value is what the schema of a CRD says. The part of OpenAPI that our CRDs are made of, and no CEL: see [`super::rules`].

use std::collections::{BTreeSet, HashMap};

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

/// Checks values by schemas.
#[derive(Debug, Default)]
pub(super) struct Checker {
    found: Vec<Wrong>,
    /// Patterns that were met, compiled; none: it is no pattern, which is a mistake of the CRD that the API server finds.
    patterns: HashMap<String, Option<Regex>>,
}

/// The schema of the spec of a CRD.
pub(super) fn spec_of(crd: &CustomResourceDefinition) -> JSONSchemaProps {
    let version = crd.spec.versions.first();
    let schema = version.and_then(|version| version.schema.as_ref()?.open_api_v3_schema.as_ref());
    schema.and_then(|schema| schema.properties.as_ref()?.get("spec").cloned()).unwrap_or_default()
}

fn missing(field: &str) -> Wrong {
    Wrong { field: field.to_owned(), value: "missing".to_owned(), remedy: "it must be there".to_owned() }
}

/// `at least 1 and at most 16`.
fn between<T: std::fmt::Display>(least: Option<T>, most: Option<T>) -> String {
    let least = least.map(|least| format!("at least {least}"));
    let most = most.map(|most| format!("at most {most}"));
    least.into_iter().chain(most).collect::<Vec<_>>().join(" and ")
}

impl Checker {
    /// What the schema of a spec says of the spec of an object.
    pub(super) fn check_spec(&mut self, schema: &JSONSchemaProps, object: &Value) -> Vec<Wrong> {
        match object.get("spec") {
            Some(spec) => self.check(spec, schema, "spec"),
            None => self.found.push(missing("spec")),
        }
        std::mem::take(&mut self.found)
    }

    fn check(&mut self, value: &Value, schema: &JSONSchemaProps, field: &str) {
        let remedy = match (schema.type_.as_deref().unwrap_or_default(), value) {
            ("object", Value::Object(fields)) => return self.check_fields(fields, schema, field),
            ("array", Value::Array(items)) => return self.check_items(items, schema, field),
            ("string", Value::String(text)) => match self.why_not_text(text, schema) {
                Some(remedy) => remedy,
                None => return,
            },
            ("integer", Value::Number(number)) if number.is_i64() => {
                // The bounds of a CRD are floats that are whole numbers.
                let number = number.as_f64();
                let below = schema.minimum.is_some_and(|minimum| number < Some(minimum));
                let above = schema.maximum.is_some_and(|maximum| number > Some(maximum));
                if !below && !above {
                    return;
                }
                between(schema.minimum, schema.maximum)
            }
            ("boolean", Value::Bool(_)) => return,
            (_, Value::Null) => "write a value, or leave it out".to_owned(),
            ("object", _) => "write fields here".to_owned(),
            ("array", _) => "write a list".to_owned(),
            ("string", _) => "write text, in quotes if it looks like something else".to_owned(),
            ("integer", _) => "write a whole number without quotes".to_owned(),
            ("boolean", _) => "write true or false".to_owned(),
            _ => return,
        };
        self.found.push(Wrong::new(field, value, remedy));
    }

    fn check_fields(&mut self, fields: &Map<String, Value>, schema: &JSONSchemaProps, field: &str) {
        for name in schema.required.iter().flatten().filter(|name| !fields.contains_key(*name)) {
            self.found.push(missing(&format!("{field}.{name}")));
        }
        let Some(known) = &schema.properties else { return };
        for (name, value) in fields {
            let path = format!("{field}.{name}");
            if let Some(schema) = known.get(name) {
                self.check(value, schema, &path);
            } else {
                let names: Vec<&str> = known.keys().map(String::as_str).collect();
                let remedy = format!("there is no such field (there are {})", names.join(", "));
                self.found.push(Wrong::new(path, value, remedy));
            }
        }
    }

    fn check_items(&mut self, items: &[Value], schema: &JSONSchemaProps, field: &str) {
        let count = i64::try_from(items.len()).unwrap_or(i64::MAX);
        if schema.min_items.is_some_and(|least| count < least) || schema.max_items.is_some_and(|most| count > most) {
            let remedy = format!("list {}", between(schema.min_items, schema.max_items));
            self.found.push(Wrong { field: field.to_owned(), value: format!("a list of {count}"), remedy });
        }
        let Some(JSONSchemaPropsOrArray::Schema(each)) = &schema.items else { return };
        // Items of a set are told apart by all that they are, those of a map by its keys.
        let keys = schema.x_kubernetes_list_map_keys.as_deref().unwrap_or_default();
        let mut seen = BTreeSet::new();
        for (at, item) in items.iter().enumerate() {
            let path = format!("{field}[{at}]");
            self.check(item, each, &path);
            let identity: Vec<Value> = match schema.x_kubernetes_list_type.as_deref() {
                Some("set") => vec![item.clone()],
                Some("map") => keys.iter().filter_map(|key| item.get(key).cloned()).collect(),
                _ => continue,
            };
            if identity.len() == keys.len().max(1) && !seen.insert(Value::from(identity).to_string()) {
                let what = if keys.is_empty() { String::new() } else { format!(" by {}", keys.join(" and ")) };
                self.found.push(Wrong::new(path, item, format!("it is in the list already{what}: take one out")));
            }
        }
    }

    fn why_not_text(&mut self, text: &str, schema: &JSONSchemaProps) -> Option<String> {
        if let Some(words) = &schema.enum_ {
            let words: Vec<&str> = words.iter().filter_map(|word| word.0.as_str()).collect();
            return (!words.contains(&text)).then(|| format!("write one of {}", words.join(", ")));
        }
        let length = i64::try_from(text.chars().count()).unwrap_or(i64::MAX);
        if schema.min_length.is_some_and(|least| length < least) || schema.max_length.is_some_and(|most| length > most)
        {
            return Some(format!("write {} characters", between(schema.min_length, schema.max_length)));
        }
        let pattern = schema.pattern.as_deref()?;
        let compiled = self.patterns.entry(pattern.to_owned()).or_insert_with(|| Regex::new(pattern).ok());
        let matches = compiled.as_ref().is_none_or(|pattern| pattern.is_match(text));
        (!matches).then(|| format!("it must match {pattern}"))
    }
}
