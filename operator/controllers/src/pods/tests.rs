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
    let take = |event| index.take(&event, &prefixes()).iter().map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!(take(Event::Apply(pod("a", "n1", "Running"))), ["n1"]);
    assert_eq!(take(Event::Apply(pod("b", "", "Pending"))), Vec::<String>::new());
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
