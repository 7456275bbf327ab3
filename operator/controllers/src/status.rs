//! How pools, tenants, models and endpoints get their statuses written.

use std::fmt::Debug;

use kube::{
    Api, Resource, ResourceExt,
    api::{Patch, PatchParams},
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::json;
use spillway_manifests::status::build_patch;

use crate::error::{Error, call};

/// Writes a status if it is another than before, and the object is still the one that was read. Whether it was written.
///
/// # Errors
/// When the API server cannot be told, or the object changed.
pub async fn write<K, S>(
    action: &'static str,
    api: &Api<K>,
    object: &K,
    previous: Option<&S>,
    next: &S,
) -> Result<bool, Error>
where
    K: Resource + Clone + DeserializeOwned + Debug,
    S: PartialEq + Serialize,
{
    if previous == Some(next) {
        return Ok(false);
    }
    let patch = build_patch(object.resource_version().as_deref(), &json!(previous), json!(next));
    call(action, api.patch_status(&object.name_any(), &PatchParams::default(), &Patch::Merge(&patch))).await?;
    Ok(true)
}
