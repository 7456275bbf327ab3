//! The one write of the agent: `status.check` of its node's `GpuNode`, by server-side apply.

use std::time::Duration;

use kube::api::{Api, Patch, PatchParams};
use kube::{Resource as _, ResourceExt as _};
use serde_json::json;
use spillway_crds::{CheckResult, GpuNode, GpuNodeStatus};

/// Field manager of the agent's writes; it owns nothing but `status.check`.
pub const FIELD_MANAGER: &str = "spillway-agent";
/// For one write, the client's queue included.
const TIMEOUT: Duration = Duration::from_secs(15);

/// Why an answer is not written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The object was deleted meanwhile: nobody waits for the answer.
    #[error("GpuNode {name} is gone")]
    Gone {
        /// Name of the object.
        name: String,
    },
    /// The API server refused it or could not be reached.
    #[error("write the status of GpuNode {name}")]
    Write {
        /// Name of the object.
        name: String,
        /// What the client said. Boxed, it is large.
        source: Box<kube::Error>,
    },
    /// The API server took the request and said nothing.
    #[error("no answer of the API server within {} s to the status of GpuNode {name}", TIMEOUT.as_secs())]
    Timeout {
        /// Name of the object.
        name: String,
    },
}

/// Writes the answer. Apply and not merge: an `error` of the answer before goes away because this one does not have it.
pub async fn write_check(api: &Api<GpuNode>, name: &str, check: CheckResult) -> Result<(), Error> {
    let body = json!({
        "apiVersion": GpuNode::api_version(&()),
        "kind": GpuNode::kind(&()),
        "metadata": { "name": name },
        "status": GpuNodeStatus { check: Some(check) },
    });
    let params = PatchParams::apply(FIELD_MANAGER).force();
    let patch = Patch::Apply(&body);
    match tokio::time::timeout(TIMEOUT, api.patch_status(name, &params, &patch)).await {
        Ok(Ok(written)) => {
            tracing::debug!(node = name, resource_version = written.resource_version(), "wrote the answer");
            Ok(())
        }
        Ok(Err(kube::Error::Api(status))) if status.code == 404 => Err(Error::Gone { name: name.to_owned() }),
        Ok(Err(source)) => Err(Error::Write { name: name.to_owned(), source: Box::new(source) }),
        Err(_) => Err(Error::Timeout { name: name.to_owned() }),
    }
}

#[cfg(test)]
mod tests;
