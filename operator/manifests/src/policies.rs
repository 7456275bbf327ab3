//! The admission policies as the release has them, and what of them is missing or changed in the cluster.
//!
//! The chart renders its policies a second time, as JSON, into a `ConfigMap`. It says what should be; what the API server makes of it (defaults
//! filled in) is found out by a dry run, so that nothing here has to know the defaults.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::ConfigMap;
use serde_json::{Value, json};
use spillway_crds::names::{FIELD_MANAGER, POLICIES_CONFIGMAP};

/// Key of the `ConfigMap` that says whether the bindings refuse.
const ENFORCE: &str = "enforce";
/// Annotations by which Helm knows its own: an object that is made again must have them, or a later upgrade will not take it.
const RELEASE_ANNOTATIONS: &str = "meta.helm.sh/";

/// The kinds that are guarded.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Kind {
    /// Refuses.
    ValidatingPolicy,
    /// Puts a validating policy in force.
    ValidatingBinding,
    /// Changes.
    MutatingPolicy,
    /// Puts a mutating policy in force.
    MutatingBinding,
}

impl Kind {
    /// All, in the order in which they are written: a binding after its policy, and what changes pods before what refuses unchanged ones.
    pub const ALL: [Self; 4] =
        [Self::MutatingPolicy, Self::MutatingBinding, Self::ValidatingPolicy, Self::ValidatingBinding];

    /// As in `kind`.
    pub fn kind(self) -> &'static str {
        match self {
            Self::ValidatingPolicy => "ValidatingAdmissionPolicy",
            Self::ValidatingBinding => "ValidatingAdmissionPolicyBinding",
            Self::MutatingPolicy => "MutatingAdmissionPolicy",
            Self::MutatingBinding => "MutatingAdmissionPolicyBinding",
        }
    }

    /// As in a path.
    pub fn plural(self) -> &'static str {
        match self {
            Self::ValidatingPolicy => "validatingadmissionpolicies",
            Self::ValidatingBinding => "validatingadmissionpolicybindings",
            Self::MutatingPolicy => "mutatingadmissionpolicies",
            Self::MutatingBinding => "mutatingadmissionpolicybindings",
        }
    }
}

/// One policy or binding.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Key {
    /// Kind.
    pub kind: Kind,
    /// Name.
    pub name: String,
}

impl std::fmt::Display for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.kind.kind(), self.name)
    }
}

/// What the release says.
#[derive(Clone, Debug, PartialEq)]
pub struct PolicyCopy {
    /// False: the bindings only warn and audit, and nothing may be sold.
    pub enforced: bool,
    /// The field manager that wrote the copy, and so the policies.
    pub manager: String,
    /// The objects as rendered.
    pub objects: BTreeMap<Key, Value>,
}

/// Why the copy cannot be used.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum CopyError {
    /// A value is no policy.
    #[error("key {key} of ConfigMap {POLICIES_CONFIGMAP} is no admission policy or binding ({why})")]
    NotAPolicy {
        /// The key.
        key: String,
        /// What is wrong.
        why: String,
    },
    /// Nothing is in it.
    #[error("ConfigMap {POLICIES_CONFIGMAP} has no policies")]
    Empty,
    /// A binding has no policy, or a policy no binding.
    #[error("ConfigMap {POLICIES_CONFIGMAP} has {key} without its counterpart")]
    Unpaired {
        /// Which.
        key: Key,
    },
}

/// Reads the copy.
///
/// # Errors
/// When something in it is no policy, or a policy has no binding.
pub fn read_copy(config: &ConfigMap) -> Result<PolicyCopy, CopyError> {
    let data = config.data.clone().unwrap_or_default();
    let release: BTreeMap<&String, &String> =
        config.metadata.annotations.iter().flatten().filter(|(key, _)| key.starts_with(RELEASE_ANNOTATIONS)).collect();
    let mut objects = BTreeMap::new();
    for (key, text) in data.iter().filter(|(key, _)| *key != ENFORCE) {
        let wrong = |why: &str| CopyError::NotAPolicy { key: key.clone(), why: why.to_owned() };
        let mut object: Value = serde_json::from_str(text).map_err(|error| wrong(&error.to_string()))?;
        let named = |object: &Value, pointer: &str| object.pointer(pointer).and_then(Value::as_str).map(str::to_owned);
        let kind = named(&object, "/kind").unwrap_or_default();
        let kind = Kind::ALL.into_iter().find(|known| known.kind() == kind).ok_or_else(|| wrong("another kind"))?;
        let name = named(&object, "/metadata/name").ok_or_else(|| wrong("it has no name"))?;
        if object.pointer("/spec").is_none_or(|spec| !spec.is_object()) {
            return Err(wrong("it has no spec"));
        }
        if !release.is_empty()
            && let Some(metadata) = object.pointer_mut("/metadata").and_then(Value::as_object_mut)
        {
            metadata.insert("annotations".to_owned(), json!(release));
        }
        objects.insert(Key { kind, name }, object);
    }
    if objects.is_empty() {
        return Err(CopyError::Empty);
    }
    for key in objects.keys() {
        let counterpart = match key.kind {
            Kind::ValidatingPolicy => Kind::ValidatingBinding,
            Kind::ValidatingBinding => Kind::ValidatingPolicy,
            Kind::MutatingPolicy => Kind::MutatingBinding,
            Kind::MutatingBinding => Kind::MutatingPolicy,
        };
        if !objects.contains_key(&Key { kind: counterpart, name: key.name.clone() }) {
            return Err(CopyError::Unpaired { key: key.clone() });
        }
    }
    Ok(PolicyCopy {
        enforced: data.get(ENFORCE).map(String::as_str) == Some("true"),
        manager: manager(config),
        objects,
    })
}

/// Who wrote the copy. Whoever installs a chart by server-side apply must be found to own the policies' fields by its next upgrade, whoever restored
/// them meanwhile: they are restored in its name.
fn manager(config: &ConfigMap) -> String {
    let entries = || {
        let all = config.metadata.managed_fields.iter().flatten();
        all.filter(|entry| entry.subresource.as_deref().unwrap_or_default().is_empty())
    };
    let applied = entries().find(|entry| entry.operation.as_deref() == Some("Apply"));
    applied
        .or_else(|| entries().next())
        .and_then(|entry| entry.manager.clone())
        .unwrap_or_else(|| FIELD_MANAGER.to_owned())
}

/// What should be there: as the release has it, or, while all pools observe, policies that only audit and none that changes anything.
pub fn wanted(copy: &PolicyCopy, observing: bool) -> BTreeMap<Key, Value> {
    let mut objects = copy.objects.clone();
    if observing {
        objects.retain(|key, _| key.kind != Kind::MutatingBinding);
        for (key, object) in &mut objects {
            if key.kind == Kind::ValidatingBinding
                && let Some(spec) = object.pointer_mut("/spec").and_then(Value::as_object_mut)
            {
                spec.insert("validationActions".to_owned(), json!(["Audit"]));
            }
        }
    }
    objects
}

/// What is wrong with a policy or binding.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Fault {
    /// It is not there.
    Missing,
    /// It says something else.
    Changed,
    /// It is there, and all pools observe.
    Surplus,
    /// What the API server makes of what it should be is not known yet.
    Unknown,
}

impl Fault {
    /// For people.
    pub fn word(self) -> &'static str {
        match self {
            Self::Missing => "is missing",
            Self::Changed => "was changed",
            Self::Surplus => "is in force while all pools observe",
            Self::Unknown => "has not been compared yet",
        }
    }
}

/// What is wrong. `complete` has what the API server makes of each wanted object, where that is known.
pub fn compare(
    copy: &PolicyCopy,
    wanted: &BTreeMap<Key, Value>,
    complete: &BTreeMap<Key, Value>,
    live: &BTreeMap<Key, Value>,
) -> BTreeMap<Key, Fault> {
    let mut faults = BTreeMap::new();
    for (key, want) in wanted {
        let fault = match (live.get(key), complete.get(key)) {
            (None, _) => Some(Fault::Missing),
            (Some(_), None) => Some(Fault::Unknown),
            (Some(have), Some(complete)) => (!same(want, complete, have)).then_some(Fault::Changed),
        };
        if let Some(fault) = fault {
            faults.insert(key.clone(), fault);
        }
    }
    for key in copy.objects.keys().filter(|key| !wanted.contains_key(*key) && live.contains_key(*key)) {
        faults.insert(key.clone(), Fault::Surplus);
    }
    faults
}

/// The spec to the letter, and the labels that the release gives: others may add labels and annotations.
fn same(want: &Value, complete: &Value, have: &Value) -> bool {
    let labels = want.pointer("/metadata/labels").and_then(Value::as_object);
    complete.pointer("/spec") == have.pointer("/spec")
        && labels
            .into_iter()
            .flatten()
            .all(|(key, value)| have.pointer("/metadata/labels").and_then(|all| all.get(key)) == Some(value))
}

/// The wanted object as a replacement of the one that is there: all of its spec, nothing of what somebody added.
pub fn replacement(want: &Value, have: &Value) -> Value {
    let mut object = have.clone();
    if let (Some(fields), Some(spec)) = (object.as_object_mut(), want.get("spec")) {
        fields.insert("spec".to_owned(), spec.clone());
        fields.remove("status");
        for field in ["apiVersion", "kind"] {
            fields.insert(field.to_owned(), want.get(field).cloned().unwrap_or_default());
        }
    }
    if let Some(metadata) = object.pointer_mut("/metadata").and_then(Value::as_object_mut) {
        metadata.remove("managedFields");
        let labels = want.pointer("/metadata/labels").and_then(Value::as_object);
        let entry = metadata.entry("labels").or_insert_with(|| json!({}));
        if let Some(into) = entry.as_object_mut() {
            into.extend(labels.into_iter().flatten().map(|(key, value)| (key.clone(), value.clone())));
        }
    }
    object
}

/// The object with its fields owned by who applied them alone; none where they are. Owners of its status stay.
pub fn owned_alone(have: &Value, manager: &str) -> Option<Value> {
    let text = |entry: &Value, field: &str| entry.get(field).and_then(Value::as_str).unwrap_or_default().to_owned();
    let entries = have.pointer("/metadata/managedFields")?.as_array()?;
    let rightful = |entry: &&Value| {
        !text(entry, "subresource").is_empty()
            || (text(entry, "manager") == manager && text(entry, "operation") == "Apply")
    };
    let kept: Vec<Value> = entries.iter().filter(rightful).cloned().collect();
    if kept.len() == entries.len() || kept.is_empty() {
        return None;
    }
    let mut object = have.clone();
    if let Some(metadata) = object.pointer_mut("/metadata").and_then(Value::as_object_mut) {
        metadata.insert("managedFields".to_owned(), json!(kept));
    }
    Some(object)
}

#[cfg(test)]
mod tests;
