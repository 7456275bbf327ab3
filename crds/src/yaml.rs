//! The CRDs as YAML: what is committed beside this crate and what the chart installs.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::CustomResourceExt;
use serde_json::Value;

use crate::{
    ApiKey, CapacityLedger, CapacityLedgerPage, GpuNode, GpuPool, GpuReservation, Model, ModelEndpoint, Tenant,
};

/// All CRDs, in the order in which they are installed.
pub fn all() -> Vec<CustomResourceDefinition> {
    vec![
        GpuPool::crd(),
        GpuReservation::crd(),
        Tenant::crd(),
        GpuNode::crd(),
        CapacityLedger::crd(),
        CapacityLedgerPage::crd(),
        Model::crd(),
        ModelEndpoint::crd(),
        ApiKey::crd(),
    ]
}

/// The file name and YAML text of each CRD.
///
/// # Errors
/// When a CRD cannot be serialised, which would be a mistake in this crate.
pub fn files() -> Result<Vec<(String, String)>, Error> {
    all()
        .into_iter()
        .map(|crd| {
            let name = format!("{}.yaml", crd.spec.names.plural);
            let mut tree = serde_json::to_value(&crd)?;
            polish(&mut tree);
            lift_descriptions(&mut tree);
            // serde_json keeps keys sorted unless some crate of the build asks it not to.
            tree.sort_all_objects();
            let head = "# Generated from crds/src by `make generate`. Do not edit.\n";
            Ok((name, format!("{head}{}", serde_yaml::to_string(&tree)?)))
        })
        .collect()
}

/// Why the YAML could not be written.
#[derive(Debug)]
pub enum Error {
    /// A CRD could not be turned into a JSON tree.
    Tree(serde_json::Error),
    /// The tree could not be written as YAML.
    Text(serde_yaml::Error),
}

impl From<serde_json::Error> for Error {
    fn from(source: serde_json::Error) -> Self {
        Self::Tree(source)
    }
}

impl From<serde_yaml::Error> for Error {
    fn from(source: serde_yaml::Error) -> Self {
        Self::Text(source)
    }
}

impl std::fmt::Display for Error {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Tree(_) => "cannot turn a CRD into a JSON tree",
            Self::Text(_) => "cannot write a CRD as YAML",
        })
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Tree(source) => Some(source),
            Self::Text(source) => Some(source),
        }
    }
}

/// Takes out what the derive says too much.
///
/// - `nullable`: an explicit null would pass a rule such as `has(self.term)` and mean nothing; nobody of us writes one.
/// - Bounds as floats (`1.0`): they are integers.
fn polish(tree: &mut Value) {
    match tree {
        Value::Object(fields) => {
            fields.retain(|key, value| key != "nullable" || *value != Value::Bool(true));
            fields.values_mut().for_each(polish);
        }
        Value::Array(items) => items.iter_mut().for_each(polish),
        Value::Number(number) => {
            // Only bounds are floats here. JSON writes them all with `.0`; what is no whole number stays.
            if let Some(whole) = number.to_string().strip_suffix(".0").and_then(|text| text.parse::<i64>().ok()) {
                *number = whole.into();
            }
        }
        Value::Null | Value::Bool(_) | Value::String(_) => {}
    }
}

/// Gives each kind the description that stands on its spec: `kubectl explain` shows that of the kind first.
fn lift_descriptions(tree: &mut Value) {
    let Some(versions) = tree.pointer_mut("/spec/versions").and_then(Value::as_array_mut) else { return };
    for version in versions {
        let Some(schema) = version.pointer_mut("/schema/openAPIV3Schema") else { continue };
        let Some(spec) = schema.pointer_mut("/properties/spec/description").map(Value::take) else { continue };
        if let Some(fields) = schema.as_object_mut() {
            fields.insert("description".to_owned(), spec);
            fields.remove("title");
        }
        if let Some(text) = schema.pointer_mut("/properties/spec/description") {
            *text = Value::from("What is asked for.");
        }
    }
}

#[cfg(test)]
mod tests;
