use super::*;

#[test]
fn the_built_in_list_has_sixty_mixed_nodes() {
    let fleet = Fleet::read(None).unwrap();
    assert_eq!(fleet.nodes.len(), 60);
    let pools: Vec<(&str, usize)> = fleet.pools.iter().map(|pool| (pool.name.as_str(), pool.nodes)).collect();
    assert_eq!(pools, [("a100-x8", 8), ("h100-x8", 12), ("h200-x8", 24), ("l40s-x4", 8), ("t4-x2", 4), ("t4-x4", 4)]);
    assert_eq!(fleet.largest().unwrap().name, "h200-x8");
}

#[test]
fn a_node_goes_into_the_pool_of_its_model_and_gpus() {
    let mut csv =
        "sn,cpu_milli,memory_mib,gpu,model\ncpu-only,1000,1024,0,\nodd,1000,1024,2,Tesla V100 (SXM2)\n".to_owned();
    for node in 0..NEEDED_NODES {
        csv.push_str(&format!("g-{node},96000,393216,8,G2\n"));
    }
    let fleet = Fleet::of(FakeNode::read_csv(csv.as_bytes()).unwrap()).unwrap();
    assert_eq!(fleet.nodes.len(), NEEDED_NODES + 1);
    assert_eq!(fleet.nodes[0].labels[POOL_LABEL], "tesla-v100--sxm2-x2");
    assert_eq!(
        fleet.largest().unwrap(),
        &Pool { name: "g2-x8".into(), sku: "g2".into(), gpus: 8, nodes: NEEDED_NODES }
    );
    let real = Pool { name: "lab".into(), sku: "lab-gpu".into(), gpus: 8, nodes: 1 };
    let manifests = fleet.manifests(&real);
    assert_eq!(manifests.matches("\"nodeCheck\":\"None\"").count(), 2);
    assert_eq!(manifests.matches("\"nodeCheck\":\"Agent\"").count(), 1);
}

#[test]
fn a_list_without_a_large_pool_is_refused() {
    let csv = "sn,cpu_milli,memory_mib,gpu,model\na,1000,1024,8,G2\n";
    let refused = Fleet::of(FakeNode::read_csv(csv.as_bytes()).unwrap()).unwrap_err();
    assert_eq!(refused.to_string(), "no pool of the list has 8 nodes, which the demo needs; the largest has 1");
}

#[test]
fn a_model_without_a_letter_is_refused() {
    assert!(sku_of("--").is_err());
    assert_eq!(sku_of("RTX 6000").unwrap(), "rtx-6000");
}
