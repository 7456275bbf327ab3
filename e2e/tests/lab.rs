//! The lab itself, one smoke test for each size. Needs root for the node size.

use std::time::Duration;

use anyhow::{Context as _, Result};
use k8s_openapi::api::core::v1::{Namespace, Pod};
use kube::Api;
use kube::api::PostParams;
use serde_json::{Value, json};
use spillway_lab::{FakeNode, Lab, LabOptions, Signal, Size};

/// Pods of this namespace are the tests' own.
const NAMESPACE: &str = "default";

fn object<T: serde::de::DeserializeOwned>(value: Value) -> Result<T> {
    serde_json::from_value(value).context("an object of this test")
}

async fn wait_for_phase(lab: &Lab, pod: &str, phase: &str) -> Result<()> {
    let pods = Api::<Pod>::namespaced(lab.client()?, NAMESPACE);
    lab.wait_for(&format!("pod {pod} to be {phase}"), Duration::from_secs(60), || async {
        Ok(pods.get(pod).await?.status.and_then(|status| status.phase).as_deref() == Some(phase))
    })
    .await
}

#[tokio::test]
async fn two_api_labs_live_side_by_side() -> Result<()> {
    let (one, two) = tokio::join!(Lab::start(LabOptions::new(Size::Api)), Lab::start(LabOptions::new(Size::Api)));
    let (one, two) = (one?, two?);
    assert_ne!(one.server(), two.server());

    let namespace = object::<Namespace>(json!({"metadata": {"name": "only-in-one"}}))?;
    Api::<Namespace>::all(one.client()?).create(&PostParams::default(), &namespace).await?;
    assert!(Api::<Namespace>::all(one.client()?).get_opt("only-in-one").await?.is_some());
    assert!(Api::<Namespace>::all(two.client()?).get_opt("only-in-one").await?.is_none());

    // Impersonation: who may do nothing is refused, who is master may.
    let nobody = Api::<Namespace>::all(one.client_as("nobody", &[], &[])?).get("default").await;
    assert!(matches!(nobody, Err(kube::Error::Api(status)) if status.code == 403));
    let who = one.kubectl(&["auth", "whoami", "-o", "json"]).await?;
    assert!(who.contains("lab:admin") && who.contains("system:masters") && !who.contains("spillway:break-glass"), "{who}");

    let (one_dir, two_dir) = (one.dir().to_owned(), two.dir().to_owned());
    let pids: Vec<i32> = one.processes().iter().map(|name| one.pid(name)).collect::<Result<_>>()?;
    one.stop()?;
    drop(two);
    assert!(!one_dir.exists() && !two_dir.exists());
    assert!(pids.iter().all(|pid| !std::path::Path::new(&format!("/proc/{pid}")).exists()));
    Ok(())
}

#[tokio::test]
async fn a_client_may_be_anybody_with_any_extra() -> Result<()> {
    let lab = Lab::start(LabOptions::new(Size::Api)).await?;
    let client = lab.client_as("somebody", &["some-group", "system:masters"], &[("authentication.kubernetes.io/node-name", "n-0")])?;
    let review: Value = client
        .request(
            tonic::codegen::http::Request::post("/apis/authentication.k8s.io/v1/selfsubjectreviews")
                .header("content-type", "application/json")
                .body(json!({"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"}).to_string().into_bytes())?,
        )
        .await?;
    let user = &review["status"]["userInfo"];
    assert_eq!(user["username"], "somebody");
    assert_eq!(user["extra"]["authentication.kubernetes.io/node-name"], json!(["n-0"]));
    assert!(user["groups"].as_array().is_some_and(|groups| groups.contains(&json!("some-group"))));

    let kubeconfig = lab.kubeconfig_for("system:serviceaccount:ns:operator", &["system:serviceaccounts"])?;
    let path = kubeconfig.to_string_lossy().into_owned();
    let who = lab.kubectl(&["--kubeconfig", &path, "auth", "whoami"]).await?;
    assert!(who.contains("system:serviceaccount:ns:operator") && who.contains("system:serviceaccounts"), "{who}");
    lab.stop()
}

#[tokio::test]
async fn a_cluster_lab_runs_pods_on_fake_nodes() -> Result<()> {
    let lab = Lab::start(LabOptions::new(Size::Cluster)).await?;
    let csv = "sn,cpu_milli,memory_mib,gpu,model\nfake-1,96000,393216,8,G2\nfake-2,32000,131072,4,V100M16\n";
    let mut nodes = FakeNode::read_csv(csv.as_bytes())?;
    nodes.push(FakeNode::new("fake-3", "H100").label("spillway.dev/pool", "h100"));
    lab.add_fake_nodes(&nodes).await?;

    let pod = object::<Pod>(json!({
        "metadata": {"name": "p"},
        "spec": {
            "nodeSelector": {"nvidia.com/gpu.product": "H100"},
            "containers": [{"name": "c", "image": "localhost/none", "resources": {"limits": {"nvidia.com/gpu": "8"}}}],
        },
    }))?;
    let pods = Api::<Pod>::namespaced(lab.client()?, NAMESPACE);
    pods.create(&PostParams::default(), &pod).await?;
    wait_for_phase(&lab, "p", "Running").await?;
    assert_eq!(pods.get("p").await?.spec.and_then(|spec| spec.node_name).as_deref(), Some("fake-3"));

    // Processes stop and go on by name.
    lab.signal("kube-scheduler", Signal::SIGSTOP)?;
    lab.apply_yaml("{apiVersion: v1, kind: Pod, metadata: {name: q}, spec: {containers: [{name: c, image: localhost/none}]}}").await?;
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(pods.get("q").await?.spec.and_then(|spec| spec.node_name), None);
    lab.signal("kube-scheduler", Signal::SIGCONT)?;
    wait_for_phase(&lab, "q", "Running").await?;
    lab.kill_process("kwok")?;
    assert!(!lab.is_running("kwok"));
    lab.start_process("kwok")?;
    assert!(lab.is_running("kwok"));

    let releases = lab.helm(&["list", "-A"]).await?;
    assert!(releases.starts_with("NAME"), "{releases}");
    let dir = lab.dir().to_owned();
    lab.stop()?;
    assert!(!dir.exists());
    Ok(())
}
