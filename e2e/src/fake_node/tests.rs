use serde_json::json;

use super::*;

#[test]
fn a_list_of_nodes_becomes_node_objects() {
    let csv = "sn,cpu_milli,memory_mib,gpu,model\nn-0,96000,393216,8,G2\nn-1,32000,131072,0,\n";
    let nodes = FakeNode::read_csv(csv.as_bytes()).unwrap();
    assert_eq!(nodes.len(), 2);
    let resources = json!({"cpu": "96000m", "memory": "393216Mi", "pods": "110", "nvidia.com/gpu": "8"});
    assert_eq!(
        serde_json::to_value(nodes[0].clone().label("a", "b").to_object()).unwrap(),
        json!({
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {
                "name": "n-0",
                "annotations": {"kwok.x-k8s.io/node": "fake"},
                "labels": {
                    "a": "b",
                    "kubernetes.io/arch": "amd64",
                    "kubernetes.io/hostname": "n-0",
                    "kubernetes.io/os": "linux",
                    "nvidia.com/gpu.count": "8",
                    "nvidia.com/gpu.present": "true",
                    "nvidia.com/gpu.product": "G2",
                    "type": "kwok",
                },
            },
            "spec": {},
            "status": {"capacity": resources, "allocatable": resources},
        })
    );
    let without = nodes[1].to_object();
    assert!(without.metadata.labels.unwrap().keys().all(|key| !key.starts_with("nvidia.com/")));
    assert!(!without.status.unwrap().allocatable.unwrap().contains_key("nvidia.com/gpu"));
}

#[test]
fn a_list_with_another_header_is_refused_with_the_right_one() {
    let error = FakeNode::read_csv("name,gpus\nn,8\n".as_bytes()).unwrap_err();
    assert!(format!("{error:#}").contains("header: sn,cpu_milli,memory_mib,gpu,model"), "{error:#}");
}
