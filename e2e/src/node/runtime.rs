//! containerd and the pod network's configuration.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use serde_json::json;

use super::{RealNode, network};
use crate::image::catalog::PAUSE;

/// Its path on this machine. The folder is the node's own `/run/containerd`, so pods of any node find the socket where products expect it.
/// containerd itself is told the long path: so its shims can be told from others on this machine.
pub(super) fn socket(node_dir: &Path) -> PathBuf {
    node_dir.join("run-containerd").join("containerd.sock")
}

/// Writes containerd's and the pod network's configuration, and returns the former's path.
pub(super) fn write_configs(node: &RealNode<'_>) -> Result<PathBuf> {
    let dir = node.dir();
    let network = json!({
        "cniVersion": "1.0.0",
        "name": "lab",
        "plugins": [
            {
                "type": "bridge",
                "bridge": network::POD_BRIDGE,
                "isGateway": true,
                "hairpinMode": true,
                "ipMasq": false,
                "ipam": {"type": "host-local", "ranges": [[{"subnet": network::pod_cidr(node.index)}]], "routes": [{"dst": "0.0.0.0/0"}]},
            },
            {"type": "portmap", "capabilities": {"portMappings": true}},
        ],
    });
    std::fs::write(dir.join("cni-conf").join("10-lab.conflist"), network.to_string())
        .context("writing the pod network's configuration")?;

    // restrict_oom_score_adj: a root without CAP_SYS_RESOURCE could not start a container otherwise.
    // netns_mounts_under_state_dir: the pods' network namespaces stay in the node's own folder.
    let config = format!(
        r#"version = 2
root = "{root}"
state = "{state}"
disabled_plugins = ["io.containerd.internal.v1.opt", "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.zfs",
  "io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.devmapper", "io.containerd.tracing.processor.v1.otlp"]

[grpc]
  address = "{socket}"

[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{PAUSE}"
  restrict_oom_score_adj = true
  netns_mounts_under_state_dir = true
  disable_apparmor = true

[plugins."io.containerd.grpc.v1.cri".cni]
  bin_dir = "/usr/lib/cni"
  conf_dir = "{cni}"

[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
  runtime_type = "io.containerd.runc.v2"
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
    SystemdCgroup = false
"#,
        root = dir.join("containerd").display(),
        state = dir.join("containerd-state").display(),
        socket = socket(&dir).display(),
        cni = dir.join("cni-conf").display(),
    );
    let path = dir.join("containerd.toml");
    std::fs::write(&path, config).with_context(|| format!("writing {}", path.display()))?;
    Ok(path)
}
