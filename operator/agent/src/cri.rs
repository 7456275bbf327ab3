//! What the container runtime has, asked by CRI (`runtime.v1`) over its unix socket. Reads only.
//!
//! Everything that is not surely dead counts: a container is dead when it exited, a sandbox when it is not ready, and any
//! other state, one of a future runtime included, is alive. What cannot be attributed to a namespace is reported with an
//! empty one, which the operator takes for foreign.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use spillway_crds::RunningContainer;
use tokio::net::UnixStream;
use tonic::Status;
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic_prost::ProstCodec;
use tower::service_fn;

use messages::{
    CONTAINER_EXITED, Container, LIST_CONTAINERS, LIST_POD_SANDBOX, ListContainersResponse, ListPodSandboxResponse,
    ListRequest, PodSandbox, PodSandboxMetadata, SANDBOX_NOTREADY,
};

mod messages;

/// Label by which the kubelet names the namespace of a container's pod.
const NAMESPACE_LABEL: &str = "io.kubernetes.pod.namespace";
/// Label by which the kubelet names a container's pod.
const POD_LABEL: &str = "io.kubernetes.pod.name";
/// Label by which the kubelet tells a pod from an earlier one of the same name.
const POD_UID_LABEL: &str = "io.kubernetes.pod.uid";
/// Label by which the kubelet names a container.
const CONTAINER_LABEL: &str = "io.kubernetes.container.name";

/// Bounds of the API's fields, which are those of Kubernetes names.
const MAX_NAMESPACE: usize = 63;
const MAX_NAME: usize = 253;
const MAX_UID: usize = 64;

/// For the connection and both calls together: a runtime that hangs is answered as an error, and the operator asks again.
const TIMEOUT: Duration = Duration::from_secs(10);
/// A list carries labels and annotations of dead containers too; the kubelet takes 16 MiB, and more room costs nothing.
const MAX_MESSAGE: usize = 64 * 1024 * 1024;

/// Why the runtime could not be asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nothing listens on the socket, or it may not be opened.
    #[error("connect to the container runtime at {}", socket.display())]
    Connect {
        /// The socket.
        socket: PathBuf,
        /// What the transport said.
        source: tonic::transport::Error,
    },
    /// The runtime refused or broke off a call.
    #[error("call {method} of the container runtime")]
    Call {
        /// Path of the method.
        method: &'static str,
        /// What it said. Boxed, it is large.
        source: Box<Status>,
    },
    /// The runtime took the connection and said nothing.
    #[error("no answer of the container runtime at {} within {} ms", socket.display(), timeout.as_millis())]
    Timeout {
        /// The socket.
        socket: PathBuf,
        /// How long it was waited for.
        timeout: Duration,
    },
}

/// A container runtime behind a unix socket. Each list makes its own connection, so a restarted runtime needs no care.
#[derive(Clone, Debug)]
pub struct Runtime {
    socket: PathBuf,
    timeout: Duration,
}

impl Runtime {
    /// The runtime that listens on `socket`, which may be written with the `unix://` that other tools want.
    pub fn new(socket: &Path) -> Self {
        let path = socket.to_str().and_then(|text| text.strip_prefix("unix://")).map_or(socket, Path::new);
        Self { socket: path.to_owned(), timeout: TIMEOUT }
    }

    /// The same with another bound for one list.
    #[must_use]
    pub fn with_timeout(self, timeout: Duration) -> Self {
        Self { timeout, ..self }
    }

    /// Every container and pod sandbox that is not dead, sorted.
    pub async fn list(&self) -> Result<Vec<RunningContainer>, Error> {
        match tokio::time::timeout(self.timeout, self.list_unbounded()).await {
            Ok(listed) => listed,
            Err(_) => Err(Error::Timeout { socket: self.socket.clone(), timeout: self.timeout }),
        }
    }

    /// Containers first: a pod that starts between the two calls then shows its sandbox in the second.
    async fn list_unbounded(&self) -> Result<Vec<RunningContainer>, Error> {
        let channel = self.connect().await?;
        let containers: ListContainersResponse = call(channel.clone(), LIST_CONTAINERS).await?;
        let sandboxes: ListPodSandboxResponse = call(channel, LIST_POD_SANDBOX).await?;
        Ok(alive(&sandboxes.items, &containers.containers))
    }

    async fn connect(&self) -> Result<Channel, Error> {
        let socket = self.socket.clone();
        let connector = service_fn(move |_: Uri| {
            let socket = socket.clone();
            async move { UnixStream::connect(socket).await.map(TokioIo::new) }
        });
        // The name stands in the `:authority` header only; the connector goes to the socket.
        Endpoint::from_static("http://localhost")
            .connect_with_connector(connector)
            .await
            .map_err(|source| Error::Connect { socket: self.socket.clone(), source })
    }
}

/// One call without a filter.
async fn call<Response>(channel: Channel, method: &'static str) -> Result<Response, Error>
where
    Response: prost::Message + Default + Send + Sync + 'static,
{
    let failed = |source: Status| Error::Call { method, source: Box::new(source) };
    let mut grpc = Grpc::new(channel).max_decoding_message_size(MAX_MESSAGE);
    grpc.ready().await.map_err(|error| failed(Status::from_error(error.into())))?;
    let codec: ProstCodec<ListRequest, Response> = ProstCodec::default();
    let request = tonic::Request::new(ListRequest {});
    let response = grpc.unary(request, PathAndQuery::from_static(method), codec).await.map_err(failed)?;
    Ok(response.into_inner())
}

/// What of the lists is alive, sorted. Pure.
fn alive(sandboxes: &[PodSandbox], containers: &[Container]) -> Vec<RunningContainer> {
    let pods: HashMap<&str, &PodSandboxMetadata> =
        sandboxes.iter().filter_map(|sandbox| Some((sandbox.id.as_str(), sandbox.metadata.as_ref()?))).collect();
    let mut found: Vec<RunningContainer> = sandboxes
        .iter()
        .filter(|sandbox| sandbox.state != SANDBOX_NOTREADY)
        .map(|sandbox| {
            let pod = sandbox.metadata.as_ref();
            entry(
                pod.map(|pod| pod.namespace.as_str()),
                pod.map(|pod| pod.name.as_str()),
                pod.map(|pod| pod.uid.as_str()),
                None,
            )
        })
        .chain(containers.iter().filter(|container| container.state != CONTAINER_EXITED).map(|container| {
            let pod = pods.get(container.pod_sandbox_id.as_str());
            let label = |key: &str| container.labels.get(key).map(String::as_str);
            entry(
                agreed(label(NAMESPACE_LABEL), pod.map(|pod| pod.namespace.as_str())),
                label(POD_LABEL).or(pod.map(|pod| pod.name.as_str())),
                agreed(label(POD_UID_LABEL), pod.map(|pod| pod.uid.as_str())),
                label(CONTAINER_LABEL).or(container.metadata.as_ref().map(|metadata| metadata.name.as_str())),
            )
        }))
        .collect();
    found.sort();
    found
}

/// The namespace by a container's label and by its sandbox: either where only one is known, none where they differ.
fn agreed<'a>(label: Option<&'a str>, sandbox: Option<&'a str>) -> Option<&'a str> {
    match (label, sandbox) {
        (Some(label), Some(sandbox)) if label != sandbox => None,
        (label, sandbox) => label.or(sandbox),
    }
}

/// One line of the answer within the bounds of the API. A namespace that is too long is none, not its beginning:
/// the beginning could be the name of another.
fn entry(
    namespace: Option<&str>,
    pod: Option<&str>,
    pod_uid: Option<&str>,
    container: Option<&str>,
) -> RunningContainer {
    let bounded = |name: Option<&str>| name.unwrap_or_default().chars().take(MAX_NAME).collect();
    RunningContainer {
        namespace: namespace.filter(|name| name.len() <= MAX_NAMESPACE).unwrap_or_default().to_owned(),
        pod: bounded(pod),
        pod_uid: pod_uid.filter(|uid| uid.len() <= MAX_UID).unwrap_or_default().to_owned(),
        container: bounded(container),
    }
}

#[cfg(test)]
mod tests;
