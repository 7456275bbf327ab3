use k8s_openapi::api::core::v1::Pod;
use kube::runtime::watcher::Event;
use serde_json::json;

use super::{PodIndex, devices};

fn prefixes() -> Vec<String> {
    vec!["nvidia.com/".to_owned()]
}

fn pod(uid: &str, node: &str, phase: &str) -> Pod {
    serde_json::from_value(json!({
        "metadata": {"name": uid, "namespace": "acme", "uid": uid},
        "spec": {"nodeName": node, "containers": [{"name": "c", "resources": {"limits": {"nvidia.com/gpu": "2", "cpu": "1"}}}],
                 "initContainers": [{"name": "i", "resources": {"limits": {"nvidia.com/gpu": "3"}}}]},
        "status": {"phase": phase}
    }))
    .unwrap()
}

#[test]
fn an_init_container_counts_where_it_needs_more_than_the_others_together() {
    assert_eq!(
        devices(&pod("a", "n1", "Running"), &prefixes()).into_iter().collect::<Vec<_>>(),
        vec![("nvidia.com/gpu".into(), 3)]
    );
}

#[test]
fn pods_move_leave_and_a_relist_forgets_what_it_does_not_list() {
    let index = PodIndex::default();
    let take = |event| index.take(&event, &prefixes()).nodes.iter().map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!(take(Event::Apply(pod("a", "n1", "Running"))), ["n1"]);
    assert_eq!(take(Event::Apply(pod("b", "", "Pending"))), Vec::<String>::new());
    assert_eq!((index.in_namespace("acme").len(), index.on("n2").len()), (2, 0));
    assert_eq!(take(Event::Apply(pod("b", "n2", "Pending"))), ["n2"]);
    assert_eq!(index.on("n2").len(), 1);
    assert_eq!(take(Event::Apply(pod("b", "n2", "Succeeded"))), ["n2"]);
    assert_eq!(index.on("n2").len(), 0);
    take(Event::Init);
    take(Event::InitApply(pod("c", "n3", "Running")));
    assert_eq!(index.on("n1").len(), 1, "a relist that is not done changes nothing");
    assert_eq!(take(Event::InitDone), ["n1", "n3"]);
    assert_eq!((index.on("n1").len(), index.on("n3").len()), (0, 1));
    assert_eq!(take(Event::Delete(pod("c", "n3", "Running"))), ["n3"]);
    assert_eq!(index.on("n3").len(), 0);
}

#[test]
fn what_is_looked_at_before_a_pod_gets_room_on_a_shared_node() {
    let mut waiting = pod("a", "", "Pending");
    let spec = waiting.spec.as_mut().unwrap();
    spec.tolerations = serde_json::from_value(json!([
        {"key": "spillway.dev/hold", "operator": "Equal", "value": "node.n1-uid"},
        {"key": "spillway.dev/hold", "operator": "Equal", "value": "ns-uid"},
    ]))
    .unwrap();
    spec.containers[0].resources = serde_json::from_value(json!({
        "limits": {"nvidia.com/gpu": "2", "cpu": "2", "memory": "4Gi"},
        "requests": {"nvidia.com/gpu": "2", "cpu": "500m", "memory": "1Gi"},
    }))
    .unwrap();
    let found = super::facts(&waiting, &prefixes()).unwrap();
    assert_eq!(found.admitted, ["n1-uid".into()]);
    assert_eq!(
        (found.cpu_milli, found.memory_mib, found.limited),
        (500, 1024, false),
        "the init container has no limits"
    );
    waiting.spec.as_mut().unwrap().init_containers = None;
    assert!(super::facts(&waiting, &prefixes()).unwrap().limited);
    // A pod that waits and wants no devices is nothing to us.
    waiting.spec.as_mut().unwrap().containers[0].resources = None;
    assert_eq!(super::facts(&waiting, &prefixes()), None);
}
