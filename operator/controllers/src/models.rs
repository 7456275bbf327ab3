//! `Model`: which endpoints serve it. While there are any, a policy refuses its deletion, and names them.

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;
use kube::{Api, ResourceExt, runtime::controller::Action};
use spillway_crds::Model;
use spillway_manifests::model::build_status;

use crate::{context::Context, error::Error, status};

/// Looks at a model.
///
/// # Errors
/// When the API server cannot be told.
pub async fn reconcile(object: Arc<Model>, context: Arc<Context>) -> Result<Action, Error> {
    let name = object.name_any();
    let served = context.hosted.endpoints.state().into_iter().filter(|endpoint| endpoint.spec.model.name == name);
    let endpoints: Vec<String> = served
        .map(|endpoint| format!("{}/{}", endpoint.namespace().unwrap_or_default(), endpoint.name_any()))
        .collect();
    let status = build_status(&object, endpoints, Timestamp::now());
    let api: Api<Model> = Api::all(context.client.clone());
    status::write("writing a model's status", &api, &*object, object.status.as_ref(), &status).await?;
    Ok(Action::requeue(Duration::from_secs(300)))
}
