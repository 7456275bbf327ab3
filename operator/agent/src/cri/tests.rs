//! The client against a runtime of the test's own on a unix socket, and the rules of `alive` alone.

use std::convert::Infallible;
use std::task::{Context, Poll};

use futures::future::BoxFuture;
use rstest::rstest;
use tempfile::TempDir;
use tokio::net::UnixListener;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::body::Body;
use tonic::codegen::http;
use tonic::server::{Grpc as ServerGrpc, NamedService};
use tonic::transport::Server;
use tower::Service;

use super::messages::ContainerMetadata;
use super::*;

/// A runtime that answers each call with what it was given.
#[derive(Clone)]
struct FakeRuntime {
    sandboxes: Result<ListPodSandboxResponse, Status>,
    containers: Result<ListContainersResponse, Status>,
}

impl NamedService for FakeRuntime {
    const NAME: &'static str = "runtime.v1.RuntimeService";
}

impl Service<http::Request<Body>> for FakeRuntime {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Self::Error>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let fake = self.clone();
        Box::pin(async move {
            match request.uri().path() {
                LIST_POD_SANDBOX => Ok(respond(request, fake.sandboxes).await),
                LIST_CONTAINERS => Ok(respond(request, fake.containers).await),
                other => panic!("the agent called {other}"),
            }
        })
    }
}

async fn respond<Response>(request: http::Request<Body>, answer: Result<Response, Status>) -> http::Response<Body>
where
    Response: prost::Message + Default + Clone + Send + Sync + 'static,
{
    let codec: ProstCodec<Response, ListRequest> = ProstCodec::default();
    let method = service_fn(move |_: tonic::Request<ListRequest>| {
        let answer = answer.clone();
        async move { answer.map(tonic::Response::new) }
    });
    ServerGrpc::new(codec).max_encoding_message_size(MAX_MESSAGE).unary(method, request).await
}

/// Serves `fake` until the test's runtime ends; the folder goes away with the first of the pair.
fn serve(fake: FakeRuntime) -> (TempDir, Runtime) {
    let folder = tempfile::tempdir().expect("a folder");
    let socket = folder.path().join("cri.sock");
    let listener = UnixListener::bind(&socket).expect("a socket");
    tokio::spawn(Server::builder().add_service(fake).serve_with_incoming(UnixListenerStream::new(listener)));
    (folder, Runtime::new(&socket))
}

fn sandbox(id: &str, namespace: &str, pod: &str, state: i32) -> PodSandbox {
    let metadata =
        Some(PodSandboxMetadata { name: pod.to_owned(), uid: format!("uid-{pod}"), namespace: namespace.to_owned() });
    PodSandbox { id: id.to_owned(), metadata, state }
}

fn container(sandbox: &str, labels: &[(&str, &str)], state: i32) -> Container {
    Container {
        id: format!("c-{sandbox}"),
        pod_sandbox_id: sandbox.to_owned(),
        metadata: Some(ContainerMetadata { name: "by-metadata".to_owned() }),
        state,
        labels: labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect(),
    }
}

fn labelled(namespace: &str, pod: &str, name: &str, state: i32) -> Container {
    let uid = format!("uid-{pod}");
    let labels =
        [(NAMESPACE_LABEL, namespace), (POD_LABEL, pod), (POD_UID_LABEL, uid.as_str()), (CONTAINER_LABEL, name)];
    container("", &labels, state)
}

fn line(namespace: &str, pod: &str, container: &str) -> RunningContainer {
    let pod_uid = if pod.is_empty() { String::new() } else { format!("uid-{pod}") };
    RunningContainer { namespace: namespace.to_owned(), pod: pod.to_owned(), pod_uid, container: container.to_owned() }
}

#[tokio::test]
async fn lists_what_is_not_dead_and_sorts_it() {
    let (_folder, runtime) = serve(FakeRuntime {
        sandboxes: Ok(ListPodSandboxResponse {
            items: vec![
                sandbox("s1", "team-b", "train-0", 0),
                sandbox("s2", "kube-system", "proxy", 0),
                sandbox("s3", "team-a", "gone", 1),
            ],
        }),
        containers: Ok(ListContainersResponse {
            containers: vec![
                labelled("team-b", "train-0", "main", 1),
                labelled("team-b", "train-0", "init", 2),
                labelled("kube-system", "proxy", "proxy", 0),
                labelled("team-a", "gone", "ghost", 3),
            ],
        }),
    });
    assert_eq!(
        runtime.list().await.expect("a list"),
        [
            line("kube-system", "proxy", ""),
            line("kube-system", "proxy", "proxy"),
            line("team-a", "gone", "ghost"),
            line("team-b", "train-0", ""),
            line("team-b", "train-0", "main"),
        ]
    );
}

#[tokio::test]
async fn an_empty_runtime_is_an_empty_list() {
    let (_folder, runtime) =
        serve(FakeRuntime { sandboxes: Ok(Default::default()), containers: Ok(Default::default()) });
    assert_eq!(runtime.list().await.expect("a list"), []);
}

/// What the API object takes is the first 250 of the sorted list, with the true total.
#[tokio::test]
async fn more_than_an_answer_holds_is_counted() {
    let containers = (0..261).rev().map(|at| labelled("team-a", &format!("pod-{at:04}"), "main", 1)).collect();
    let (_folder, runtime) =
        serve(FakeRuntime { sandboxes: Ok(Default::default()), containers: Ok(ListContainersResponse { containers }) });
    let question = crate::answer::Question { id: "q1".to_owned(), node_uid: "uid-1".to_owned() };
    let boot_id = Ok("boot-1".to_owned());
    let check = crate::answer::answer(&question, boot_id, runtime.list().await, jiff::Timestamp::UNIX_EPOCH);
    assert_eq!((check.total, check.containers.len(), check.error), (261, 250, None));
    assert_eq!(check.containers.first(), Some(&line("team-a", "pod-0000", "main")));
    assert_eq!(check.containers.last(), Some(&line("team-a", "pod-0249", "main")));
}

/// More than tonic's own bound of 4 MiB: labels of many dead containers.
#[tokio::test]
async fn a_large_list_is_read_whole() {
    let long = "x".repeat(1 << 16);
    let dead = (0..100).map(|_| container("", &[("padding", &long)], CONTAINER_EXITED));
    let containers = dead.chain([labelled("team-a", "p", "c", 1)]).collect();
    let (_folder, runtime) =
        serve(FakeRuntime { sandboxes: Ok(Default::default()), containers: Ok(ListContainersResponse { containers }) });
    assert_eq!(runtime.list().await.expect("a list"), [line("team-a", "p", "c")]);
}

#[tokio::test]
async fn a_refusal_is_an_error_and_not_an_empty_list() {
    let (_folder, runtime) = serve(FakeRuntime {
        sandboxes: Err(Status::unavailable("server is not initialized yet")),
        containers: Ok(Default::default()),
    });
    let error = runtime.list().await.expect_err("an error");
    assert!(matches!(&error, Error::Call { method, .. } if *method == LIST_POD_SANDBOX), "{error:?}");
    let text = crate::answer::describe(&error);
    assert!(text.starts_with("call /runtime.v1.RuntimeService/ListPodSandbox of the container runtime: "), "{text}");
    assert!(text.contains("server is not initialized yet"), "{text}");
}

#[tokio::test]
async fn no_runtime_is_an_error() {
    let folder = tempfile::tempdir().expect("a folder");
    let error = Runtime::new(&folder.path().join("none.sock")).list().await.expect_err("an error");
    assert!(matches!(error, Error::Connect { .. }), "{error:?}");
    let text = crate::answer::describe(&error);
    assert!(text.contains("No such file or directory"), "{text}");
}

/// A socket that nobody accepts from: the connection stands in the kernel's queue and no byte comes.
#[tokio::test]
async fn a_runtime_that_hangs_is_an_error() {
    let folder = tempfile::tempdir().expect("a folder");
    let socket = folder.path().join("cri.sock");
    let _listener = UnixListener::bind(&socket).expect("a socket");
    let error = Runtime::new(&socket).with_timeout(Duration::from_millis(50)).list().await.expect_err("an error");
    assert!(matches!(error, Error::Timeout { .. }), "{error:?}");
}

#[rstest]
#[case::path("/run/containerd/containerd.sock")]
#[case::address("unix:///run/containerd/containerd.sock")]
fn a_socket_is_a_path_or_an_address(#[case] written: &str) {
    assert_eq!(Runtime::new(Path::new(written)).socket, Path::new("/run/containerd/containerd.sock"));
}

#[rstest]
#[case::created(0, true)]
#[case::running(1, true)]
#[case::exited(2, false)]
#[case::unknown(3, true)]
#[case::of_a_newer_runtime(9, true)]
fn a_container_is_dead_only_when_it_exited(#[case] state: i32, #[case] counts: bool) {
    assert_eq!(!alive(&[], &[labelled("a", "p", "c", state)]).is_empty(), counts);
}

#[rstest]
#[case::ready(0, true)]
#[case::not_ready(1, false)]
#[case::of_a_newer_runtime(9, true)]
fn a_sandbox_is_dead_only_when_it_is_not_ready(#[case] state: i32, #[case] counts: bool) {
    assert_eq!(!alive(&[sandbox("s", "a", "p", state)], &[]).is_empty(), counts);
}

#[rstest]
#[case::labels_say(container("s", &[(NAMESPACE_LABEL, "a"), (POD_LABEL, "q"), (CONTAINER_LABEL, "c")], 1), RunningContainer { pod_uid: "uid-p".to_owned(), ..line("a", "q", "c") })]
#[case::sandbox_says_where_labels_lack(container("s", &[], 1), line("a", "p", "by-metadata"))]
#[case::no_sandbox(container("other", &[(NAMESPACE_LABEL, "a")], 1), line("a", "", "by-metadata"))]
#[case::nobody_says(container("other", &[], 1), line("", "", "by-metadata"))]
#[case::they_differ(container("s", &[(NAMESPACE_LABEL, "kube-system"), (POD_LABEL, "p")], 1), line("", "p", "by-metadata"))]
fn a_container_is_of_the_namespace_that_is_sure(#[case] container: Container, #[case] expected: RunningContainer) {
    assert_eq!(alive(&[sandbox("s", "a", "p", SANDBOX_NOTREADY)], &[container]), [expected]);
}

/// A pod of a StatefulSet has the name of the one before it.
#[rstest]
#[case::label(&[(POD_UID_LABEL, "u-2")], "other", "u-2")]
#[case::sandbox(&[], "s", "uid-p")]
#[case::they_differ(&[(POD_UID_LABEL, "u-2")], "s", "")]
#[case::nobody_says(&[], "other", "")]
fn a_container_is_of_the_pod_that_is_sure(#[case] labels: &[(&str, &str)], #[case] of: &str, #[case] uid: &str) {
    let found = alive(&[sandbox("s", "a", "p", SANDBOX_NOTREADY)], &[container(of, labels, 1)]);
    assert_eq!(found[0].pod_uid, uid);
}

#[test]
fn a_sandbox_without_metadata_counts_as_foreign() {
    let bare = PodSandbox { id: "s".to_owned(), metadata: None, state: 0 };
    assert_eq!(alive(&[bare], &[]), [line("", "", "")]);
}

#[test]
fn names_stay_within_the_bounds_of_the_api() {
    let long = "n".repeat(300);
    let found = alive(&[], &[labelled(&long, &long, &long, 1)]);
    let name = "n".repeat(253);
    assert_eq!(found, [RunningContainer { pod_uid: String::new(), ..line("", &name, &name) }]);
}
