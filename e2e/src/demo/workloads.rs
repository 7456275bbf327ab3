//! What tenants and the owner run: plain Kubernetes manifests with nothing of Spillway in them.

use serde_json::{Value, json};
use spillway_crds::names::POOL_LABEL;

use crate::image::catalog;

/// Prints the devices that the container was given, then works until it is told to stop.
const WORK: &str = "echo \"GPUs: $LAB_GPUS\"; trap 'exit 0' TERM; while true; do sleep 0.2; done";
const SHORT_WORK: &str = "echo \"GPUs: $LAB_GPUS\"";

fn containers(gpus: u32, work: &str) -> Value {
    json!([{
        "name": "work",
        "image": catalog::BUSYBOX,
        "command": ["sh", "-c", work],
        "resources": {"limits": {"nvidia.com/gpu": gpus}},
    }])
}

/// A pod's spec with one container, and more if that is wanted.
fn pod_spec(gpus: u32, work: &str, more: &Value) -> Value {
    let mut spec = serde_json::Map::from_iter([("containers".to_owned(), containers(gpus, work))]);
    spec.extend(more.as_object().cloned().unwrap_or_default());
    Value::Object(spec)
}

fn template(app: &str, gpus: u32, more: &Value) -> Value {
    json!({"metadata": {"labels": {"app": app}}, "spec": pod_spec(gpus, WORK, more)})
}

fn join(manifests: &[Value]) -> String {
    manifests.iter().map(Value::to_string).collect::<Vec<_>>().join("\n---\n")
}

/// A Deployment, a StatefulSet and a Job that use 8 GPUs together, in 4 pods.
pub(super) fn of_a_tenant() -> String {
    let metadata = |name: &str| json!({"name": name});
    let spec = |name: &str, replicas: u32| {
        let selector = json!({"matchLabels": {"app": name}});
        json!({"replicas": replicas, "serviceName": name, "selector": selector, "template": template(name, 2, &json!({}))})
    };
    let mut deployment = spec("inference", 2);
    // Only a StatefulSet has one.
    deployment.as_object_mut().and_then(|spec| spec.remove("serviceName"));
    let job = json!({"template": template("batch", 2, &json!({"restartPolicy": "Never"}))});
    join(&[
        json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": metadata("inference"), "spec": deployment}),
        json!({"apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": metadata("trainer"), "spec": spec("trainer", 1)}),
        json!({"apiVersion": "batch/v1", "kind": "Job", "metadata": metadata("batch"), "spec": job}),
    ])
}

/// A pod of its own, written as a person would, with one more line in its spec if that is wanted.
pub(super) fn pod(name: &str, gpus: u32, line: &str) -> String {
    format!("{}  {line}\n", written(name, &format!("nvidia.com/gpu: {gpus}")))
}

/// The same on a node that is shared, where each container is bounded.
pub(super) fn pod_of_a_part(name: &str, gpus: u32) -> String {
    written(name, &format!("nvidia.com/gpu: {gpus}, cpu: 100m, memory: 64Mi"))
}

fn written(name: &str, limits: &str) -> String {
    let image = catalog::BUSYBOX;
    format!(
        "apiVersion: v1
kind: Pod
metadata: {{name: {name}, labels: {{app: {name}}}}}
spec:
  containers:
    - name: work
      image: {image}
      command: [sh, -c, 'trap exit TERM; while sleep 0.2; do :; done']
      resources: {{limits: {{{limits}}}}}
"
    )
}

/// The owner's Deployment on a pool.
pub(super) fn of_the_owner(pool: &str, replicas: u32, gpus: u32) -> String {
    let template = template("research", gpus, &json!({"nodeSelector": {POOL_LABEL: pool}}));
    json!({
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "research"},
        "spec": {"replicas": replicas, "selector": {"matchLabels": {"app": "research"}}, "template": template},
    })
    .to_string()
}

/// The owner's Job that ends by itself.
pub(super) fn short_job(pool: &str, gpus: u32) -> String {
    let more = json!({"restartPolicy": "Never", "nodeSelector": {POOL_LABEL: pool}});
    json!({
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": "nightly"},
        "spec": {"template": {"metadata": {"labels": {"app": "nightly"}}, "spec": pod_spec(gpus, SHORT_WORK, &more)}},
    })
    .to_string()
}

/// Namespaces, who works there, and the tenants; the owner comes last. `sku` is limited for birch to `limit` OnDemand devices.
pub(super) fn tenants(sku: &str, limit: u32) -> String {
    let mut manifests = Vec::new();
    for (tenant, user) in
        [("acme", "acme-user"), ("birch", "birch-user"), ("cobalt", "cobalt-user"), ("house", "house-user")]
    {
        manifests.push(json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": tenant}}));
        manifests.push(json!({
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "RoleBinding",
            "metadata": {"name": "staff", "namespace": tenant},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "edit"},
            "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": user}],
        }));
        let spec = match tenant {
            "birch" => json!({"namespaces": [tenant], "quotas": [{"sku": sku, "tier": "OnDemand", "limit": limit}]}),
            "house" => json!({"namespaces": [tenant], "owner": true}),
            _ => json!({"namespaces": [tenant]}),
        };
        manifests.push(json!({"apiVersion": "spillway.dev/v1alpha1", "kind": "Tenant", "metadata": {"name": tenant}, "spec": spec}));
    }
    join(&manifests)
}

/// A reservation, as short as a person would write it.
pub(super) fn reservation(name: &str, spec: &str) -> String {
    format!("apiVersion: spillway.dev/v1alpha1\nkind: GpuReservation\nmetadata: {{name: {name}}}\nspec: {{{spec}}}\n")
}
