//! The usage service, asked through the API server: so that whoever may is who may reach that Service.

use http::Request;
use kube::Client;
use serde::de::DeserializeOwned;

/// Asks. None where there is no usage service, or one that does not know this path; an error is why there is no answer.
pub(super) async fn ask<Answer: DeserializeOwned>(
    client: &Client,
    namespace: &str,
    path: &str,
) -> Result<Option<Answer>, String> {
    let path = format!("/api/v1/namespaces/{namespace}/services/spillway-usage:reports/proxy{path}");
    let request = Request::get(&path).body(Vec::new());
    let request = request.map_err(|error| format!("the usage service cannot be asked: {error}"))?;
    match client.request::<Answer>(request).await {
        Ok(answer) => Ok(Some(answer)),
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(None),
        Err(kube::Error::Api(status)) if status.code == 403 => Err(format!(
            "you may not ask the usage service: it takes `get` of services/proxy, spillway-usage:reports, in namespace {namespace}"
        )),
        Err(error) => Err(format!("the usage service in namespace {namespace} does not answer: {error}")),
    }
}

/// Whether a value may be a parameter as it is. Names of Kubernetes: there is nothing in them to be escaped, and anything else finds nothing.
pub(super) fn is_plain(name: &str) -> bool {
    name.chars().all(|letter| letter.is_ascii_alphanumeric() || "-._".contains(letter))
}
