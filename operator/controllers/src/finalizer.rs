//! Our finalizer on what buys or is sold from: it goes only when the ledger has nothing of it any more.

use std::fmt::Debug;

use kube::{
    Api, Resource, ResourceExt,
    api::{Patch, PatchParams},
};
use serde::de::DeserializeOwned;
use serde_json::json;
use spillway_crds::names::FINALIZER;

use crate::error::{Error, call};

/// Whether an object has it.
pub fn is_on(object: &impl ResourceExt) -> bool {
    object.finalizers().iter().any(|finalizer| finalizer == FINALIZER)
}

/// Adds it.
///
/// # Errors
/// When the API server cannot be told, or the object changed.
pub async fn add<K>(api: &Api<K>, object: &K) -> Result<K, Error>
where
    K: Resource + Clone + DeserializeOwned + Debug,
{
    let mut finalizers = object.finalizers().to_vec();
    finalizers.push(FINALIZER.to_owned());
    let patch = json!({"metadata": {"resourceVersion": object.resource_version(), "finalizers": finalizers}});
    call("adding a finalizer", api.patch(&object.name_any(), &PatchParams::default(), &Patch::Merge(&patch))).await
}

/// Takes it off; an object that is gone is as it should be.
///
/// # Errors
/// When the API server cannot be told, or the object changed: it goes as it was looked at.
pub async fn remove<K>(api: &Api<K>, object: &K) -> Result<(), Error>
where
    K: Resource + Clone + DeserializeOwned + Debug,
{
    let finalizers: Vec<&String> = object.finalizers().iter().filter(|finalizer| *finalizer != FINALIZER).collect();
    let patch = json!({"metadata": {"resourceVersion": object.resource_version(), "finalizers": finalizers}});
    let (name, params) = (object.name_any(), PatchParams::default());
    match call("removing a finalizer", api.patch(&name, &params, &Patch::Merge(&patch))).await {
        Err(error) if error.is_not_found() => Ok(()),
        result => result.map(|_| ()),
    }
}
