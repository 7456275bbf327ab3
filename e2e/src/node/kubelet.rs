//! The configuration of kubelet and kube-proxy.

use std::path::Path;

use anyhow::{Context as _, Result};
use serde_json::json;

use super::{RealNode, network};
use crate::certs::{self, Authority};
use crate::device_plugin::RESOURCE;
use crate::kubeconfig;

/// Writes what the kubelet needs and returns its arguments.
pub(super) fn prepare(node: &RealNode<'_>, authority: &Authority) -> Result<Vec<String>> {
    let dir = node.dir();
    let name = node.name();
    let pki = dir.join("pki");
    let identity = authority.server(
        &format!("system:node:{name}"),
        &["system:nodes"],
        &[name.clone(), node.address().to_string()],
    )?;
    identity.write(&pki, "kubelet")?;
    let kubeconfig = dir.join("kubelet.kubeconfig");
    kubeconfig::write(&kubeconfig, node.server, &authority.pair().cert, &identity)?;

    let config = json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "address": node.address(),
        "containerRuntimeEndpoint": format!("unix://{}", node.socket().display()),
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": format!("/{}", node.cgroup()),
        "failCgroupV1": false,
        "failSwapOn": false,
        "enforceNodeAllocatable": ["pods"],
        "authentication": {
            "anonymous": {"enabled": false},
            "webhook": {"enabled": true},
            "x509": {"clientCAFile": certs::dir_of(node.lab_dir).join("ca.crt")},
        },
        "authorization": {"mode": "Webhook"},
        "tlsCertFile": pki.join("kubelet.crt"),
        "tlsPrivateKeyFile": pki.join("kubelet.key"),
        // The machine belongs to somebody who may be filling it; the lab's few images are never worth evicting for.
        "evictionHard": {"memory.available": "50Mi", "nodefs.available": "1%", "nodefs.inodesFree": "1%", "imagefs.available": "1%"},
        "imageGCHighThresholdPercent": 100,
        "makeIPTablesUtilChains": false,
        "resolvConf": "",
        "podLogsDir": dir.join("pod-logs"),
        "volumePluginDir": dir.join("volume-plugins"),
    });
    let path = dir.join("kubelet.json");
    std::fs::write(&path, config.to_string()).with_context(|| format!("writing {}", path.display()))?;

    let mut args = vec![
        format!("--config={}", path.display()),
        format!("--kubeconfig={}", kubeconfig.display()),
        format!("--hostname-override={name}"),
        format!("--node-ip={}", node.address()),
        "--root-dir=/var/lib/kubelet".to_owned(),
        format!("--cert-dir={}", pki.display()),
        format!("--node-labels={}", labels(node)),
    ];
    if !node.options.node_taints.is_empty() {
        args.push(format!("--register-with-taints={}", node.options.node_taints.join(",")));
    }
    Ok(args)
}

/// The labels that GPU feature discovery would write, and the asked ones.
fn labels(node: &RealNode<'_>) -> String {
    let mut labels = Vec::new();
    if node.options.gpus_per_node > 0 {
        labels.push(format!("{RESOURCE}.present=true"));
        labels.push(format!("{RESOURCE}.count={}", node.options.gpus_per_node));
        labels.push(format!("{RESOURCE}.product=Lab-GPU"));
    }
    labels.extend(node.options.node_labels.iter().map(|(key, value)| format!("{key}={value}")));
    labels.join(",")
}

/// Writes what kube-proxy needs and returns its arguments.
pub(super) fn prepare_proxy(node: &RealNode<'_>, kubeconfig: &Path) -> Result<Vec<String>> {
    let config = json!({
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "mode": "nftables",
        "bindAddress": node.address(),
        "healthzBindAddress": "127.0.0.1:10256",
        "metricsBindAddress": "127.0.0.1:10249",
        "hostnameOverride": node.name(),
        "clientConnection": {"kubeconfig": kubeconfig},
        // What comes from the machine itself is translated twice, or the answers of another node's pods would not come back through here.
        "clusterCIDR": network::POD_CIDR,
        "detectLocalMode": "ClusterCIDR",
        // The machine's own limits stay as they are.
        "conntrack": {"maxPerCore": 0},
    });
    let path = node.dir().join("kube-proxy.json");
    std::fs::write(&path, config.to_string()).with_context(|| format!("writing {}", path.display()))?;
    Ok(vec![format!("--config={}", path.display())])
}
