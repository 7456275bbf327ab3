//! A cluster that is in use, and what the stories ask of it.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::core::v1::{Namespace, Node, Pod};
use kube::api::{Api, DynamicObject, ListParams, ObjectMeta, Patch, PatchParams, PostParams};
use kube::core::{ApiResource, GroupVersionKind};
use kube::{Client, ResourceExt as _};
use serde_json::{Value, json};
use spillway_crds::{ConditionStatus, names::POOL_LABEL};
use spillway_lab::spillway::{Operator, Spillway};
use spillway_lab::{FakeNode, Lab, wait_for_value};

/// Longest time of anything that takes seconds on an idle machine.
pub(crate) const BOUND: Duration = Duration::from_secs(40);
/// The only pool.
pub(crate) const POOL: &str = "h200";
/// Nodes of the pool. The owner is on the first four, the rest is empty.
pub(crate) const NODES: usize = 8;

/// Name and UID of each pod that must live on, by namespace and name.
pub(crate) type Residents = BTreeMap<(String, String), String>;

pub(crate) struct Stage<'lab> {
    pub(crate) spillway: &'lab Spillway<'lab>,
    pub(crate) operator: Operator,
}

pub(crate) fn node(number: usize) -> String {
    format!("gpu-{number}")
}

/// A kind of admission policy, for untyped reads.
pub(crate) fn policies(spillway: &Spillway<'_>, kind: &str) -> Api<DynamicObject> {
    let gvk = GroupVersionKind::gvk("admissionregistration.k8s.io", "v1", kind);
    let plural = match kind.strip_suffix("Policy") {
        Some(stem) => format!("{stem}Policies"),
        None => format!("{kind}s"),
    };
    Api::all_with(spillway.client(), &ApiResource::from_gvk_with_plural(&gvk, &plural.to_lowercase()))
}

/// Fills a cluster that has never heard of Spillway: nodes of no pool, with the owner's pods, pods of the system and pods of nobody.
pub(crate) async fn fill(lab: &Lab) -> Result<()> {
    let nodes: Vec<FakeNode> = (0..NODES).map(|number| FakeNode::new(&node(number), "H200")).collect();
    lab.add_fake_nodes(&nodes).await?;
    let client = lab.client()?;
    for namespace in ["own", "web", "acme", "beta"] {
        let object = Namespace {
            metadata: ObjectMeta { name: Some(namespace.to_owned()), ..ObjectMeta::default() },
            ..Namespace::default()
        };
        Api::all(client.clone()).create(&PostParams::default(), &object).await.context("a namespace")?;
    }
    lab.apply_yaml(DAEMONSET).await?;
    for namespace in ["own", "web", "acme", "beta", "kube-system"] {
        let args = ["get", "serviceaccount", "default", "-n", namespace];
        lab.wait_for("a default service account", BOUND, || async { Ok(lab.kubectl(&args).await.is_ok()) }).await?;
    }
    for number in 0..4 {
        for (namespace, gpus) in [("own", 2), ("own", 2), ("own", 0), ("web", 0)] {
            let on = json!({"nodeSelector": {"kubernetes.io/hostname": node(number)}});
            create_pod(&client, namespace, gpus, &on).await?;
        }
    }
    Ok(())
}

/// Makes a pod with a name of its own; gives the name.
pub(crate) async fn create_pod(client: &Client, namespace: &str, gpus: u32, more: &Value) -> Result<String> {
    let mut container = json!({"name": "c", "image": "localhost/none"});
    if gpus > 0 {
        container["resources"] = json!({"limits": {"nvidia.com/gpu": gpus.to_string()}});
    }
    let mut object = json!({"metadata": {"generateName": "p-"},
        "spec": {"containers": [container], "terminationGracePeriodSeconds": 1}});
    for (key, value) in more.as_object().into_iter().flatten() {
        object["spec"][key] = value.clone();
    }
    let api = Api::<Pod>::namespaced(client.clone(), namespace);
    let pod: Pod = serde_json::from_value(object).context("a pod")?;
    let made = api.create(&PostParams::default(), &pod).await.context("making a pod")?;
    Ok(made.name_any())
}

impl<'lab> Stage<'lab> {
    /// An operator on it.
    pub(crate) fn build(spillway: &'lab Spillway<'lab>) -> Result<Self> {
        Ok(Self { spillway, operator: spillway.start_operator("operator-a")? })
    }

    pub(crate) async fn create_pod(&self, namespace: &str, gpus: u32, more: &Value) -> Result<String> {
        create_pod(&self.spillway.client(), namespace, gpus, more).await
    }

    pub(crate) async fn wait_running(&self, namespace: &str, pod: &str) -> Result<Pod> {
        let api = Api::<Pod>::namespaced(self.spillway.client(), namespace);
        wait_for_value(&format!("pod {namespace}/{pod} to run"), BOUND, || async {
            let pod = api.get(pod).await?;
            let runs = pod.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Running");
            Ok(runs.then_some(pod))
        })
        .await
    }

    /// All pods that run now.
    pub(crate) async fn residents(&self) -> Result<Residents> {
        let pods =
            Api::<Pod>::all(self.spillway.client()).list(&ListParams::default()).await.context("listing pods")?;
        let runs = |pod: &&Pod| {
            pod.metadata.deletion_timestamp.is_none()
                && pod.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Running")
        };
        let known = |pod: &Pod| ((pod.namespace().unwrap_or_default(), pod.name_any()), pod.uid().unwrap_or_default());
        Ok(pods.items.iter().filter(runs).map(known).collect())
    }

    /// None of them was ended.
    pub(crate) async fn ensure_alive(&self, residents: &Residents) -> Result<()> {
        let now = self.residents().await?;
        let gone: Vec<_> = residents.iter().filter(|(key, uid)| now.get(*key) != Some(*uid)).collect();
        ensure!(gone.is_empty(), "{} of {} pods were ended: {gone:?}", gone.len(), residents.len());
        Ok(())
    }

    pub(crate) async fn label_nodes(&self) -> Result<()> {
        let api = Api::<Node>::all(self.spillway.client());
        for number in 0..NODES {
            let patch = Patch::Merge(json!({"metadata": {"labels": {POOL_LABEL: POOL}}}));
            api.patch(&node(number), &PatchParams::default(), &patch).await.context("labelling a node")?;
        }
        Ok(())
    }

    /// A condition of the pool: status and reason.
    pub(crate) async fn condition(&self, type_: &str) -> Result<(bool, String)> {
        let conditions = self.spillway.pool(POOL).await?.status.context("the pool has no status")?.conditions;
        let found = conditions.into_iter().find(|condition| condition.type_ == type_);
        let found = found.with_context(|| format!("no condition {type_}"))?;
        Ok((found.status == ConditionStatus::True, found.reason))
    }

    pub(crate) async fn wait_condition(&self, type_: &str, status: bool, reason: &str) -> Result<()> {
        self.spillway
            .wait_for(&format!("the pool to say {type_}={status} {reason}"), BOUND, || async {
                let found = self.condition(type_).await?;
                ensure!(found == (status, reason.to_owned()), "it says {found:?}");
                Ok(true)
            })
            .await
    }

    pub(crate) async fn wait_metric(&self, name: &str, value: &str) -> Result<()> {
        self.spillway
            .wait_for(&format!("{name} to be {value}"), BOUND, || async {
                let found = self.operator.metric(name).await?;
                ensure!(found == value, "it is {found}");
                Ok(true)
            })
            .await
    }

    /// How long it takes until something is so.
    pub(crate) async fn time<F, Fut>(&self, what: &str, check: F) -> Result<Duration>
    where
        F: FnMut() -> Fut,
        Fut: Future<Output = Result<bool>>,
    {
        let begun = Instant::now();
        self.spillway.wait_for(what, BOUND, check).await?;
        Ok(begun.elapsed())
    }

    /// The spec of a policy or binding, if it is there.
    pub(crate) async fn spec(&self, kind: &str, name: &str) -> Result<Option<Value>> {
        let found =
            policies(self.spillway, kind).get_opt(name).await.with_context(|| format!("reading {kind} {name}"))?;
        Ok(found.map(|found| found.data["spec"].clone()))
    }

    /// Whether the policy on pods refuses a wildcard toleration.
    pub(crate) async fn refuses_wildcards(&self) -> Result<bool> {
        let api = Api::<Pod>::namespaced(self.spillway.client(), "web");
        let pod: Pod = serde_json::from_value(json!({"metadata": {"name": "probe"}, "spec": {
            "containers": [{"name": "c", "image": "localhost/none"}], "tolerations": [{"operator": "Exists"}]}}))?;
        match api.create(&PostParams { dry_run: true, ..PostParams::default() }, &pod).await {
            Ok(_) => Ok(false),
            Err(kube::Error::Api(status)) if status.message.contains("spillway-pod") => Ok(true),
            Err(error) => Err(error).context("probing the policies"),
        }
    }

    /// Whether an Event with this reason has been written in a namespace.
    pub(crate) async fn has_event(&self, namespace: &str, reason: &str) -> Result<bool> {
        let args = ["get", "events", "-n", namespace, "--field-selector", &format!("reason={reason}"), "-o", "name"];
        Ok(!self.spillway.lab().kubectl(&args).await?.trim().is_empty())
    }
}

/// What infrastructure looks like: a DaemonSet that is older than the policies' effect and tolerates nothing of ours.
const DAEMONSET: &str = r#"
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: device-plugin, namespace: kube-system}
spec:
  selector: {matchLabels: {app: device-plugin}}
  template:
    metadata: {labels: {app: device-plugin}}
    spec:
      containers: [{name: c, image: localhost/none}]
"#;
