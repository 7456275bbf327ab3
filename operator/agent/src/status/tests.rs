//! The exact request of the one write, and what becomes of the answers to it.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use rstest::rstest;
use serde_json::Value;
use spillway_crds::RunningContainer;

use super::*;
use crate::fake_api::fake_client;

fn check() -> CheckResult {
    CheckResult {
        id: "q1".to_owned(),
        node_uid: "uid-1".to_owned(),
        boot_id: "boot-1".to_owned(),
        observed_at: Time(Timestamp::UNIX_EPOCH),
        total: 1,
        containers: vec![RunningContainer {
            namespace: "team-a".to_owned(),
            pod: "p".to_owned(),
            pod_uid: String::new(),
            container: String::new(),
        }],
        error: None,
    }
}

fn failure(code: u16) -> Value {
    json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": "no", "reason": "x", "code": code})
}

#[tokio::test]
async fn the_write_is_an_apply_of_the_status_and_of_nothing_else() {
    let stored = json!({
        "apiVersion": "spillway.dev/v1alpha1", "kind": "GpuNode",
        "metadata": {"name": "gpu-1", "resourceVersion": "7"}, "spec": {"nodeUid": "uid-1"},
    });
    let (client, mut requests) = fake_client(move |_| Some((200, stored.clone())));
    write_check(&Api::all(client), "gpu-1", check()).await.expect("written");

    let request = requests.recv().await.expect("a request");
    assert_eq!(request.method, "PATCH");
    assert_eq!(
        request.uri,
        "/apis/spillway.dev/v1alpha1/gpunodes/gpu-1/status?&force=true&fieldManager=spillway-agent"
    );
    assert_eq!(request.content_type, "application/apply-patch+yaml");
    assert_eq!(
        request.body,
        json!({
            "apiVersion": "spillway.dev/v1alpha1",
            "kind": "GpuNode",
            "metadata": {"name": "gpu-1"},
            "status": {"check": {
                "id": "q1",
                "nodeUid": "uid-1",
                "bootId": "boot-1",
                "observedAt": "1970-01-01T00:00:00Z",
                "total": 1,
                "containers": [{"namespace": "team-a", "pod": "p", "container": ""}],
            }},
        })
    );
    assert!(requests.try_recv().is_err(), "one request only");
}

#[rstest]
#[case::deleted(404, true)]
#[case::forbidden(403, false)]
#[case::overloaded(429, false)]
#[case::broken(500, false)]
#[tokio::test]
async fn only_a_deleted_object_ends_the_question(#[case] code: u16, #[case] gone: bool) {
    let (client, _requests) = fake_client(move |_| Some((code, failure(code))));
    let error = write_check(&Api::all(client), "gpu-1", check()).await.expect_err("refused");
    assert_eq!(matches!(error, Error::Gone { .. }), gone, "{error:?}");
}
