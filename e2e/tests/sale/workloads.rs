//! What tenants and the owner run: plain Kubernetes objects with nothing of Spillway in them.

use serde_json::{Value, json};

/// Prints the devices that the container was given, then works until it is told to stop.
const WORK: &str = "echo \"GPUs: $LAB_GPUS\"; trap 'exit 0' TERM; while true; do sleep 0.5; done";
/// The same, and does not listen.
const DEAF: &str = "echo \"GPUs: $LAB_GPUS\"; trap '' TERM; while true; do sleep 0.5; done";

/// What a container does.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Work {
    /// Works until it is told to stop.
    Polite,
    /// Does not listen; it is killed after so many seconds.
    Deaf(u32),
}

/// A pod's spec.
fn spec(gpus: u32, work: Work) -> Value {
    let script = match work {
        Work::Polite => WORK,
        Work::Deaf(_) => DEAF,
    };
    let mut spec = json!({
        "containers": [{
            "name": "work",
            "image": "localhost/busybox:dev",
            "command": ["sh", "-c", script],
            "resources": {"limits": {"nvidia.com/gpu": gpus}},
        }],
    });
    if let Work::Deaf(grace) = work {
        spec["terminationGracePeriodSeconds"] = json!(grace);
    }
    spec
}

/// A pod of its own.
pub(crate) fn pod(name: &str, gpus: u32, work: Work) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {"app": name}}, "spec": spec(gpus, work)})
}

/// A pod that wants one node.
pub(crate) fn pod_on(name: &str, gpus: u32, node: &str) -> Value {
    let mut pod = pod(name, gpus, Work::Polite);
    pod["spec"]["nodeSelector"] = json!({"kubernetes.io/hostname": node});
    pod
}

fn template(app: &str, gpus: u32, work: Work) -> Value {
    json!({"metadata": {"labels": {"app": app}}, "spec": spec(gpus, work)})
}

fn selector(app: &str) -> Value {
    json!({"matchLabels": {"app": app}})
}

pub(crate) fn deployment(name: &str, replicas: u32, gpus: u32) -> Value {
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name},
        "spec": {"replicas": replicas, "selector": selector(name), "template": template(name, gpus, Work::Polite)},
    })
}

pub(crate) fn stateful_set(name: &str, replicas: u32, gpus: u32) -> Value {
    json!({
        "apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": {"name": name},
        "spec": {"replicas": replicas, "serviceName": name, "selector": selector(name), "template": template(name, gpus, Work::Polite)},
    })
}

pub(crate) fn daemon_set(name: &str, gpus: u32) -> Value {
    json!({
        "apiVersion": "apps/v1", "kind": "DaemonSet", "metadata": {"name": name},
        "spec": {"selector": selector(name), "template": template(name, gpus, Work::Polite)},
    })
}

/// A Job that makes a new pod for each that fails.
pub(crate) fn job(name: &str, pods: u32, gpus: u32, work: Work) -> Value {
    let mut template = template(name, gpus, work);
    template["spec"]["restartPolicy"] = json!("Never");
    json!({
        "apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": name},
        "spec": {"parallelism": pods, "completions": pods, "backoffLimit": 1000, "template": template},
    })
}

/// A PodDisruptionBudget that lets no pod go.
pub(crate) fn no_disruption(app: &str) -> Value {
    json!({
        "apiVersion": "policy/v1", "kind": "PodDisruptionBudget", "metadata": {"name": app},
        "spec": {"maxUnavailable": 0, "selector": selector(app)},
    })
}

/// The same with limits of CPU and memory in each container, without which nothing lands beside others.
pub(crate) fn limited(mut object: Value) -> Value {
    let spec = if object["kind"] == "Pod" { &mut object["spec"] } else { &mut object["spec"]["template"]["spec"] };
    for container in spec["containers"].as_array_mut().into_iter().flatten() {
        container["resources"]["limits"]["cpu"] = json!("20m");
        container["resources"]["limits"]["memory"] = json!("32Mi");
    }
    object
}
