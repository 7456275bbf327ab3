//! Objects from files: YAML documents, Lists of them, JSON.

use std::{
    collections::HashMap,
    fs,
    io::{self, Read as _},
    path::{Path, PathBuf},
};

use k8s_openapi::{api::core::v1::Node, apiextensions_apiserver::pkg::apis::apiextensions::v1::JSONSchemaProps};
use kube::CustomResourceExt;
use serde::{Deserialize as _, de::DeserializeOwned};
use serde_json::{Value, json};
use spillway_crds::{GpuPool, GpuReservation, Tenant};

use super::{
    rules,
    schema::{self, Checker, Wrong},
};

/// Group and version of our kinds.
const OURS: &str = "spillway.dev/v1alpha1";
/// The namespace of what names none.
const DEFAULT_NAMESPACE: &str = "default";
/// Problems that are shown at once.
const PROBLEMS_MAX: usize = 20;

/// The objects of all files, in their order.
#[derive(Debug, Default)]
pub(super) struct Objects {
    /// Pools.
    pub(super) pools: Vec<GpuPool>,
    /// Tenants.
    pub(super) tenants: Vec<Tenant>,
    /// Nodes.
    pub(super) nodes: Vec<Node>,
    /// Reservations, each in a namespace.
    pub(super) reservations: Vec<GpuReservation>,
}

/// Why the objects cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ObjectError {
    /// A file cannot be read.
    #[error("{file}: cannot be read: is the path right?")]
    Read {
        /// Which.
        file: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A document is no YAML.
    #[error("{place}: this is neither YAML nor JSON")]
    Yaml {
        /// File and document.
        place: String,
        /// Why, with the line.
        #[source]
        source: serde_yaml::Error,
    },
    /// A document is no object.
    #[error("{place}: this is no Kubernetes object: it needs apiVersion, kind and metadata")]
    NoObject {
        /// File, document, item.
        place: String,
    },
    /// An object of a kind that has no part in a plan.
    #[error(
        "{place}: kind {kind} of {api_version:?} has no part in a plan (GpuPool, Tenant and GpuReservation of {OURS} and Node of v1 have): \
         take it out, or say --ignore-others"
    )]
    Kind {
        /// File, document, item.
        place: String,
        /// Its kind.
        kind: String,
        /// Its group and version.
        api_version: String,
    },
    /// Objects that the API server would refuse.
    #[error("an API server would not take this:\n  - {}", shown(problems))]
    Refused {
        /// Object, field, value, remedy.
        problems: Vec<String>,
    },
    /// `--nodes` of a pool that is not there.
    #[error(
        "--nodes names pool {pool:?}, and no file has a GpuPool of that name (there is {known}): correct the name, or add the pool"
    )]
    NoPool {
        /// Its name.
        pool: String,
        /// Those that are there.
        known: String,
    },
    /// Nothing to plan.
    #[error("no file has a GpuReservation that is still to be answered: there is nothing to plan")]
    NothingToPlan,
}

fn shown(problems: &[String]) -> String {
    let mut lines: Vec<String> = problems.iter().take(PROBLEMS_MAX).cloned().collect();
    if problems.len() > PROBLEMS_MAX {
        lines.push(format!("and {} more", problems.len() - PROBLEMS_MAX));
    }
    lines.join("\n  - ")
}

/// Reads the files; `-` is standard input.
pub(super) fn read(files: &[PathBuf], ignore_others: bool) -> Result<Objects, ObjectError> {
    let mut reading = Reading { ignore_others, ..Reading::default() };
    for file in files {
        let (name, text) = if file == Path::new("-") {
            let mut text = String::new();
            ("standard input".to_owned(), io::stdin().lock().read_to_string(&mut text).map(|_| text))
        } else {
            (file.display().to_string(), fs::read_to_string(file))
        };
        let text = text.map_err(|source| ObjectError::Read { file: name.clone(), source })?;
        reading.take_text(&name, &text)?;
    }
    reading.finish()
}

/// Reads texts, each with a name.
#[cfg(test)]
pub(super) fn read_texts(texts: &[(&str, &str)], ignore_others: bool) -> Result<Objects, ObjectError> {
    let mut reading = Reading { ignore_others, ..Reading::default() };
    for (name, text) in texts {
        reading.take_text(name, text)?;
    }
    reading.finish()
}

/// The schemas of our kinds' specs.
#[derive(Debug)]
struct Schemas {
    pool: JSONSchemaProps,
    tenant: JSONSchemaProps,
    reservation: JSONSchemaProps,
}

impl Default for Schemas {
    fn default() -> Self {
        Self {
            pool: schema::spec_of(&GpuPool::crd()),
            tenant: schema::spec_of(&Tenant::crd()),
            reservation: schema::spec_of(&GpuReservation::crd()),
        }
    }
}

/// What was read until now.
#[derive(Debug, Default)]
struct Reading {
    ignore_others: bool,
    schemas: Schemas,
    checker: Checker,
    objects: Objects,
    problems: Vec<String>,
    /// By kind, namespace and name: where it is.
    seen: HashMap<(String, String, String), String>,
}

impl Reading {
    fn take_text(&mut self, file: &str, text: &str) -> Result<(), ObjectError> {
        for (at, document) in serde_yaml::Deserializer::from_str(text).enumerate() {
            let place = format!("{file}, document {}", at + 1);
            let value =
                Value::deserialize(document).map_err(|source| ObjectError::Yaml { place: place.clone(), source })?;
            // Nothing between two separators.
            if !value.is_null() {
                self.take(&place, value)?;
            }
        }
        Ok(())
    }

    fn take(&mut self, place: &str, mut object: Value) -> Result<(), ObjectError> {
        let text = |object: &Value, key: &str| object.get(key).and_then(Value::as_str).map(str::to_owned);
        let (Some(kind), Some(api_version)) = (text(&object, "kind"), text(&object, "apiVersion")) else {
            return Err(ObjectError::NoObject { place: place.to_owned() });
        };
        if let (Some(of), Some(Value::Array(items))) = (kind.strip_suffix("List"), object.get_mut("items")) {
            for (at, mut item) in std::mem::take(items).into_iter().enumerate() {
                // The API server leaves out what the name of a list says: all items are of that kind.
                if let Some(fields) = item.as_object_mut().filter(|_| !of.is_empty()) {
                    fields.entry("kind").or_insert_with(|| json!(of));
                    fields.entry("apiVersion").or_insert_with(|| json!(api_version));
                }
                self.take(&format!("{place}, item {}", at + 1), item)?;
            }
            return Ok(());
        }
        match (kind.as_str(), api_version.as_str()) {
            ("GpuPool", OURS) => {
                let spec = self.checker.check_spec(&self.schemas.pool, &object);
                let read = self.read(place, &kind, object, spec, rules::check_pool);
                self.objects.pools.extend(read);
            }
            ("Tenant", OURS) => {
                let spec = self.checker.check_spec(&self.schemas.tenant, &object);
                let read = self.read(place, &kind, object, spec, rules::check_tenant);
                self.objects.tenants.extend(read);
            }
            ("GpuReservation", OURS) => {
                if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
                    metadata.entry("namespace").or_insert_with(|| json!(DEFAULT_NAMESPACE));
                }
                let spec = self.checker.check_spec(&self.schemas.reservation, &object);
                let read = self.read(place, &kind, object, spec, rules::check_reservation);
                self.objects.reservations.extend(read);
            }
            ("Node", "v1") => {
                let read = self.read(place, &kind, object, Vec::new(), |_| Vec::new());
                self.objects.nodes.extend(read);
            }
            _ if self.ignore_others => {}
            _ => return Err(ObjectError::Kind { place: place.to_owned(), kind, api_version }),
        }
        Ok(())
    }

    /// An object, if nothing is wrong with it.
    fn read<T: DeserializeOwned>(
        &mut self,
        place: &str,
        kind: &str,
        object: Value,
        spec: Vec<Wrong>,
        rules: impl FnOnce(&T) -> Vec<Wrong>,
    ) -> Option<T> {
        let text = |key: &str| {
            let found = object.get("metadata").and_then(|metadata| metadata.get(key)).and_then(Value::as_str);
            found.unwrap_or_default().to_owned()
        };
        let (namespace, name) = (text("namespace"), text("name"));
        let full = if namespace.is_empty() { name.clone() } else { format!("{namespace}/{name}") };
        let before = self.problems.len();
        let mut say = |problem: String| self.problems.push(format!("{place}: {kind} {full}: {problem}"));
        if name.is_empty() {
            say("metadata.name is missing: give it a name".to_owned());
        }
        for wrong in spec {
            say(wrong.to_string());
        }
        if let Some(first) = self.seen.insert((kind.to_owned(), namespace, name), place.to_owned()) {
            say(format!("it is in {first} as well: take one of them out"));
        }
        if self.problems.len() > before {
            return None;
        }
        let read = match serde_json::from_value(object) {
            Ok(read) => read,
            Err(error) => {
                self.problems.push(format!("{place}: {kind} {full}: {error}"));
                return None;
            }
        };
        let wrong = rules(&read);
        self.problems.extend(wrong.iter().map(|wrong| format!("{place}: {kind} {full}: {wrong}")));
        wrong.is_empty().then_some(read)
    }

    fn finish(self) -> Result<Objects, ObjectError> {
        if self.problems.is_empty() { Ok(self.objects) } else { Err(ObjectError::Refused { problems: self.problems }) }
    }
}
