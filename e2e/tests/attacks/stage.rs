//! The cluster on which the attacks run: the chart as installed at a user's, six nodes, three buyers, the owner, a bystander.
//!
//! The operator's part (labels of namespaces and nodes, taints) is played by the test as the operator's service account with
//! the rights that the chart gives it: what stands here must stand with no operator running.

use std::time::Duration;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};
use spillway_lab::{FakeNode, Lab, LabOptions, Size};

use crate::row::{Call, RELEASE, Who, create, delete, merge, pods};

/// Where the chart is.
const CHART: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../charts/spillway");

/// Buyers, and the node that each holds as a whole.
const HOLDERS: [(&str, &str); 3] = [("acme", "gpu-0"), ("beta", "gpu-1"), ("gamma", "gpu-3")];
/// The owner's node, which is not sold.
const UNSOLD: &str = "gpu-2";
/// A node of the pool that nobody has looked at yet.
pub(crate) const CLOSED: &str = "gpu-4";
/// A node of no pool.
pub(crate) const PLAIN: &str = "cpu-0";

/// The cluster, and the ids in it.
pub(crate) struct Stage {
    /// The cluster.
    pub(crate) lab: Lab,
    /// Holder id of namespace acme.
    pub(crate) acme: String,
    /// Holder id of namespace beta.
    pub(crate) beta: String,
    /// UID of node gpu-1.
    pub(crate) node_uid: String,
}

impl Stage {
    /// Builds it.
    pub(crate) async fn build() -> Result<Self> {
        let lab = Lab::start(LabOptions::new(Size::Cluster)).await?;
        // No image of ours is needed here: no operator, and the agents are pods of fake nodes.
        let set = "operator.replicas=0";
        lab.helm(&["install", "spillway", CHART, "-n", RELEASE, "--create-namespace", "--set", set]).await?;
        wait_for_policies(&lab).await?;

        let mut nodes: Vec<FakeNode> =
            (0..5).map(|n| FakeNode::new(&format!("gpu-{n}"), "H100").label("spillway.dev/pool", "h100")).collect();
        nodes.push(FakeNode { gpus: 0, ..FakeNode::new(PLAIN, "") });
        lab.add_fake_nodes(&nodes).await?;

        let mut objects = String::from(
            "{apiVersion: scheduling.k8s.io/v1, kind: PriorityClass, metadata: {name: high}, value: 1000}\n---\n\
             {apiVersion: v1, kind: Namespace, metadata: {name: gpu-operator}}\n",
        );
        for namespace in ["acme", "beta", "gamma", "own", "free"] {
            objects += &format!(
                "---\n{{apiVersion: v1, kind: Namespace, metadata: {{name: {namespace}}}}}\n---\n\
                 apiVersion: rbac.authorization.k8s.io/v1\nkind: RoleBinding\nmetadata: {{name: editors, namespace: {namespace}}}\n\
                 roleRef: {{apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: edit}}\n\
                 subjects: [{{apiGroup: rbac.authorization.k8s.io, kind: User, name: {namespace}-editor}}]\n"
            );
        }
        lab.apply_yaml(&objects).await?;
        wait_for_service_accounts(&lab).await?;

        let mut stage = Self { lab, acme: String::new(), beta: String::new(), node_uid: String::new() };
        for (namespace, node) in HOLDERS {
            let holder = stage.uid(&format!("/api/v1/namespaces/{namespace}")).await?;
            stage.give_role(namespace, "tenant", &holder).await?;
            stage.hold(node, namespace, "r1", &holder).await?;
            match namespace {
                "acme" => stage.acme = holder,
                "beta" => stage.beta = holder,
                _ => {}
            }
        }
        let owner = stage.uid("/api/v1/namespaces/own").await?;
        stage.give_role("own", "owner", &owner).await?;
        stage.taint(UNSOLD, &json!([hold("unsold", "NoSchedule")])).await?;
        stage.node_uid = stage.uid("/api/v1/nodes/gpu-1").await?;
        // The labels of a namespace are seen by admission a moment after they are written (p50 4 ms, at most 40 ms).
        tokio::time::sleep(Duration::from_millis(500)).await;
        Ok(stage)
    }

    /// Does something that must go well, and returns what came back.
    pub(crate) async fn must(&self, who: Who, call: Call) -> Result<Value> {
        let answer = call.send(&self.lab, &who).await?;
        answer.map_err(|status| anyhow::anyhow!("{who:?} {call:?}: {} {}", status.code, status.message))
    }

    /// Reads an object as the administrator.
    pub(crate) async fn read(&self, path: &str) -> Result<Value> {
        let request = tonic::codegen::http::Request::get(path).body(Vec::new()).context("a request")?;
        self.lab.client()?.request(request).await.with_context(|| format!("reading {path}"))
    }

    /// Where a pod is: its node, or nothing.
    pub(crate) async fn node_of(&self, namespace: &str, pod: &str) -> Result<Option<String>> {
        let pod = self.read(&format!("{}/{pod}", pods(namespace))).await?;
        Ok(pod["spec"]["nodeName"].as_str().map(str::to_owned))
    }

    /// Whether a pod is there.
    pub(crate) async fn exists(&self, namespace: &str, pod: &str) -> Result<bool> {
        let list = self.read(&pods(namespace)).await?;
        let items = list["items"].as_array().context("a list of pods")?;
        Ok(items.iter().any(|item| item["metadata"]["name"] == pod))
    }

    /// Waits until a pod runs, and says where.
    pub(crate) async fn wait_running(&self, namespace: &str, pod: &str) -> Result<String> {
        let what = format!("pod {namespace}/{pod} to run");
        spillway_lab::wait_for_value(&what, Duration::from_secs(30), || async {
            let pod = self.read(&format!("{}/{pod}", pods(namespace))).await?;
            Ok((pod["status"]["phase"] == "Running")
                .then(|| pod["spec"]["nodeName"].as_str().unwrap_or_default().to_owned()))
        })
        .await
    }

    /// Waits until a pod is gone.
    pub(crate) async fn wait_gone(&self, namespace: &str, pod: &str) -> Result<()> {
        let what = format!("pod {namespace}/{pod} to be gone");
        self.lab.wait_for(&what, Duration::from_secs(20), || async { Ok(!self.exists(namespace, pod).await?) }).await
    }

    /// Gives a node's hold to nobody: both effects `closed`, the holder's labels away, in one write.
    pub(crate) async fn close(&self, node: &str, namespace: &str) -> Result<()> {
        let body = json!({
            "metadata": {"labels": {format!("hold.spillway.dev/{namespace}"): null, format!("{namespace}.hold.spillway.dev/r1"): null}},
            "spec": {"taints": [hold("closed", "NoSchedule"), hold("closed", "NoExecute")]},
        });
        self.must(Who::Operator, merge(format!("/api/v1/nodes/{node}"), body)).await?;
        Ok(())
    }

    /// Takes the pods of these namespaces away.
    pub(crate) async fn clear(&self, namespaces: &[&str]) -> Result<()> {
        for namespace in namespaces {
            for kind in ["daemonsets", "deployments"] {
                self.must(Who::Admin, delete(format!("/apis/apps/v1/namespaces/{namespace}/{kind}"), json!({})))
                    .await?;
            }
            self.must(Who::BreakGlass, delete(pods(namespace), json!({"gracePeriodSeconds": 0}))).await?;
            self.lab
                .wait_for(&format!("the pods of {namespace} to be gone"), Duration::from_secs(30), || async {
                    Ok(self.read(&pods(namespace)).await?["items"].as_array().is_some_and(Vec::is_empty))
                })
                .await?;
        }
        Ok(())
    }

    async fn uid(&self, path: &str) -> Result<String> {
        let object = self.read(path).await?;
        object["metadata"]["uid"].as_str().map(str::to_owned).with_context(|| format!("the UID of {path}"))
    }

    async fn give_role(&self, namespace: &str, role: &str, holder: &str) -> Result<()> {
        let labels = json!({
            "spillway.dev/role": role,
            "spillway.dev/holder": holder,
            "pod-security.kubernetes.io/enforce": "baseline",
        });
        let call = merge(format!("/api/v1/namespaces/{namespace}"), json!({"metadata": {"labels": labels}}));
        self.must(Who::Operator, call).await?;
        Ok(())
    }

    async fn hold(&self, node: &str, namespace: &str, reservation: &str, holder: &str) -> Result<()> {
        let labels = json!({
            format!("hold.spillway.dev/{namespace}"): "true",
            format!("{namespace}.hold.spillway.dev/{reservation}"): "true",
        });
        let taints = json!([hold(holder, "NoSchedule"), hold(holder, "NoExecute")]);
        let body = json!({"metadata": {"labels": labels}, "spec": {"taints": taints}});
        self.must(Who::Operator, merge(format!("/api/v1/nodes/{node}"), body)).await?;
        Ok(())
    }

    async fn taint(&self, node: &str, taints: &Value) -> Result<()> {
        self.must(Who::Operator, merge(format!("/api/v1/nodes/{node}"), json!({"spec": {"taints": taints}}))).await?;
        Ok(())
    }
}

/// A taint of ours.
pub(crate) fn hold(value: &str, effect: &str) -> Value {
    json!({"key": "spillway.dev/hold", "value": value, "effect": effect})
}

/// A pod that asks for so many GPUs, with further fields.
pub(crate) fn pod(name: &str, gpus: u32, more: &Value) -> Value {
    let mut container = json!({"name": "c", "image": "localhost/none"});
    if gpus > 0 {
        container["resources"] = json!({"limits": {"nvidia.com/gpu": gpus.to_string()}});
    }
    let mut pod = json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name},
        "spec": {"containers": [container]},
    });
    crate::row::merge_into(&mut pod, more);
    pod
}

/// A policy is in force within about a second after it was written; each has an informer of its own.
pub(crate) async fn wait_for_policies(lab: &Lab) -> Result<()> {
    let wildcard = pod("probe", 0, &json!({"spec": {"tolerations": [{"operator": "Exists"}]}}));
    let probe = create(format!("{}?dryRun=All", pods("default")), wildcard);
    lab.wait_for("the policies to be in force", Duration::from_secs(30), || async {
        let answer = probe.send(lab, &Who::Admin).await?;
        Ok(answer.is_err_and(|status| status.message.contains("spillway-pod")))
    })
    .await?;
    tokio::time::sleep(Duration::from_secs(2)).await;
    Ok(())
}

async fn wait_for_service_accounts(lab: &Lab) -> Result<()> {
    lab.wait_for("the default service accounts", Duration::from_secs(30), || async {
        for namespace in ["acme", "beta", "gamma", "own", "free", "gpu-operator"] {
            lab.kubectl(&["get", "serviceaccount", "default", "-n", namespace]).await?;
        }
        Ok(true)
    })
    .await
}
