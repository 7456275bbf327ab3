//! Real nodes: kubelet, containerd and kube-proxy, each node in a network and a mount namespace of its own.
//!
//! A small process holds the two namespaces; everything of the node joins it. When the last of them has ended, the kernel removes the node's
//! network, routes, translations and mounts, so there is little left to be cleaned up by hand.

pub(crate) mod cgroup;
mod kubelet;
pub(crate) mod network;
mod runtime;
pub(crate) mod sysctl;

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use crate::certs::Authority;
use crate::cluster_spec::LabOptions;
use crate::device_plugin::Devices;
use crate::process::ProcessSpec;
use crate::tools::Tools;

/// Folders that kubelet and containerd insist on, whatever they are told: each node mounts its own over them.
pub(crate) const PRIVATE_FOLDERS: [&str; 4] =
    ["/var/lib/kubelet", "/run/containerd", "/var/log/containers", "/var/lib/cni"];

/// One real node.
#[derive(Debug, Clone)]
pub(crate) struct RealNode<'a> {
    pub(crate) index: u32,
    pub(crate) options: &'a LabOptions,
    pub(crate) tools: &'a Tools,
    /// The lab's folder.
    pub(crate) lab_dir: &'a Path,
    /// The API server's address.
    pub(crate) server: &'a str,
    /// The process that holds the node's namespaces, once it runs.
    pub(crate) holder: Option<i32>,
}

impl RealNode<'_> {
    /// The node's name in Kubernetes.
    pub(crate) fn name(&self) -> String {
        name_of(self.index)
    }

    /// The node's folder.
    pub(crate) fn dir(&self) -> PathBuf {
        dir_of(self.lab_dir, self.index)
    }

    pub(crate) fn address(&self) -> Ipv4Addr {
        network::node_address(self.index)
    }

    /// The cgroup under which all of its pods are.
    pub(crate) fn cgroup(&self) -> String {
        format!("spillway-lab-{}", self.index)
    }

    fn process(&self, part: &str, program: PathBuf, args: Vec<String>) -> ProcessSpec {
        ProcessSpec { join: self.holder, ..ProcessSpec::new(&process_name(part, self.index), program, args) }
    }

    /// Makes the node's folders. Each private folder of the machine has a counterpart here.
    pub(crate) fn create_folders(&self) -> Result<()> {
        for folder in ["cni-conf", "pod-logs", "volume-plugins", "pki"]
            .into_iter()
            .map(str::to_owned)
            .chain(PRIVATE_FOLDERS.map(flat))
        {
            let path = self.dir().join(folder);
            std::fs::create_dir_all(&path).with_context(|| format!("creating {}", path.display()))?;
        }
        Ok(())
    }

    /// The process that holds the namespaces. The file that it writes last says that they are as they should be.
    pub(crate) fn holder(&self) -> ProcessSpec {
        // `private` cuts the namespace off from the machine's mounts; `shared` lets pods see mounts made inside it later, as they may ask for.
        let mut script = "set -e; mount --make-rshared /".to_owned();
        for folder in PRIVATE_FOLDERS {
            let own = self.dir().join(flat(folder));
            script.push_str(&format!("; mount --bind '{}' {folder}", own.display()));
        }
        script.push_str(&format!("; touch '{}'; exec sleep infinity", self.ready_file().display()));
        let args = ["--mount", "--net", "--propagation", "private", "sh", "-c", &script];
        ProcessSpec::new(&process_name("node", self.index), "unshare", args)
    }

    /// Written by [`Self::holder`].
    pub(crate) fn ready_file(&self) -> PathBuf {
        self.dir().join("namespaces-ready")
    }

    /// containerd; writes its configuration.
    pub(crate) fn containerd(&self) -> Result<ProcessSpec> {
        let config = runtime::write_configs(self)?;
        Ok(self.process(
            "containerd",
            PathBuf::from("/usr/bin/containerd"),
            vec![format!("--config={}", config.display())],
        ))
    }

    /// containerd's socket.
    pub(crate) fn socket(&self) -> PathBuf {
        runtime::socket(&self.dir())
    }

    /// The kubelet; writes its configuration and certificates.
    pub(crate) fn kubelet(&self, authority: &Authority) -> Result<ProcessSpec> {
        let args = kubelet::prepare(self, authority)?;
        Ok(self.process("kubelet", self.tools.kubernetes("kubelet"), args))
    }

    /// kube-proxy; writes its configuration.
    pub(crate) fn kube_proxy(&self, kubeconfig: &Path) -> Result<ProcessSpec> {
        let args = kubelet::prepare_proxy(self, kubeconfig)?;
        Ok(self.process("kube-proxy", self.tools.kubernetes("kube-proxy"), args))
    }

    /// The device plugin, which finds its devices in a file.
    pub(crate) fn device_plugin(&self) -> Result<ProcessSpec> {
        let devices = devices_file(self.lab_dir, self.index);
        Devices { total: self.options.gpus_per_node, broken: 0 }.write(&devices)?;
        let args = vec![
            "device-plugin".to_owned(),
            "--folder=/var/lib/kubelet/device-plugins".to_owned(),
            format!("--devices={}", devices.display()),
        ];
        Ok(self.process("device-plugin", crate::paths::lab_binary()?, args))
    }
}

/// The name of a real node in Kubernetes.
pub(crate) fn name_of(index: u32) -> String {
    format!("lab-node-{index}")
}

/// The name of a node's process, such as `kubelet-0`.
pub(crate) fn process_name(part: &str, index: u32) -> String {
    format!("{part}-{index}")
}

/// A node's folder in its lab's folder.
pub(crate) fn dir_of(lab_dir: &Path, index: u32) -> PathBuf {
    lab_dir.join("nodes").join(index.to_string())
}

/// containerd's socket of a node.
pub(crate) fn socket_of(lab_dir: &Path, index: u32) -> PathBuf {
    runtime::socket(&dir_of(lab_dir, index))
}

/// The file that tells a node's device plugin what devices there are.
pub(crate) fn devices_file(lab_dir: &Path, index: u32) -> PathBuf {
    dir_of(lab_dir, index).join("devices")
}

fn flat(folder: &str) -> String {
    folder.trim_start_matches('/').replace('/', "-")
}
