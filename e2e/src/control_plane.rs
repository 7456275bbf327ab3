//! etcd, API server, controller manager and scheduler: how each is started.

use std::net::{Ipv4Addr, TcpListener};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use serde_json::json;

use crate::cluster_spec::{LabOptions, Size};
use crate::process::ProcessSpec;
use crate::tools::Tools;

/// Addresses of Services.
pub(crate) const SERVICE_CIDR: &str = "10.96.0.0/16";
/// The API server's own Service.
pub(crate) const API_SERVICE_ADDRESS: &str = "10.96.0.1";

/// Where the parts of one control plane listen.
#[derive(Debug, Clone)]
pub(crate) struct Plan<'a> {
    pub(crate) options: &'a LabOptions,
    pub(crate) tools: &'a Tools,
    pub(crate) dir: &'a Path,
    /// The address that the API server listens on.
    pub(crate) address: Ipv4Addr,
    pub(crate) etcd_port: u16,
    pub(crate) api_port: u16,
}

impl Plan<'_> {
    pub(crate) fn server(&self) -> String {
        format!("https://{}:{}", self.address, self.api_port)
    }

    pub(crate) fn etcd_url(&self) -> String {
        format!("http://127.0.0.1:{}", self.etcd_port)
    }

    fn pki(&self, file: &str) -> PathBuf {
        crate::certs::dir_of(self.dir).join(file)
    }

    pub(crate) fn etcd(&self) -> Result<ProcessSpec> {
        let client = self.etcd_url();
        let peer = format!("http://127.0.0.1:{}", free_port(Ipv4Addr::LOCALHOST)?);
        Ok(ProcessSpec::new(
            "etcd",
            self.tools.etcd(),
            [
                format!("--data-dir={}", self.dir.join("etcd").display()),
                format!("--listen-client-urls={client}"),
                format!("--advertise-client-urls={client}"),
                format!("--listen-peer-urls={peer}"),
                format!("--initial-advertise-peer-urls={peer}"),
                format!("--initial-cluster=default={peer}"),
                // The data lives no longer than the lab, so it need not survive a power cut.
                "--unsafe-no-fsync".to_owned(),
            ],
        ))
    }

    pub(crate) fn api_server(&self) -> ProcessSpec {
        let file = |flag: &str, name: &str| format!("--{flag}={}", self.pki(name).display());
        let mut args = vec![
            format!("--etcd-servers={}", self.etcd_url()),
            format!("--bind-address={}", self.address),
            format!("--secure-port={}", self.api_port),
            format!("--service-cluster-ip-range={SERVICE_CIDR}"),
            "--authorization-mode=Node,RBAC".to_owned(),
            "--enable-admission-plugins=NodeRestriction".to_owned(),
            "--allow-privileged=true".to_owned(),
            file("client-ca-file", "ca.crt"),
            file("tls-cert-file", "apiserver.crt"),
            file("tls-private-key-file", "apiserver.key"),
            file("kubelet-client-certificate", "apiserver-kubelet-client.crt"),
            file("kubelet-client-key", "apiserver-kubelet-client.key"),
            file("kubelet-certificate-authority", "ca.crt"),
            "--kubelet-preferred-address-types=InternalIP".to_owned(),
            "--service-account-issuer=https://kubernetes.default.svc".to_owned(),
            file("service-account-key-file", "sa.pub"),
            file("service-account-signing-key-file", "sa.key"),
            file("requestheader-client-ca-file", "front-proxy-ca.crt"),
            "--requestheader-allowed-names=front-proxy-client".to_owned(),
            "--requestheader-username-headers=X-Remote-User".to_owned(),
            "--requestheader-group-headers=X-Remote-Group".to_owned(),
            "--requestheader-extra-headers-prefix=X-Remote-Extra-".to_owned(),
            file("proxy-client-cert-file", "front-proxy-client.crt"),
            file("proxy-client-key-file", "front-proxy-client.key"),
        ];
        if self.options.size == Size::Node {
            args.push(format!("--advertise-address={}", self.address));
            // Pods' addresses are reachable from here, Services' are not in this namespace.
            args.push("--enable-aggregator-routing=true".to_owned());
        } else {
            // Loopback may not be an endpoint of a Service, and nothing here could reach one: a documentation address, never advertised.
            args.push("--advertise-address=198.51.100.1".to_owned());
            args.push("--endpoint-reconciler-type=none".to_owned());
        }
        args.extend(self.options.apiserver_args.iter().cloned());
        ProcessSpec::new("kube-apiserver", self.tools.kubernetes("kube-apiserver"), args)
    }

    pub(crate) fn controller_manager(&self, kubeconfig: &Path) -> Result<ProcessSpec> {
        let file = |flag: &str, name: &str| format!("--{flag}={}", self.pki(name).display());
        let mut args = own_access(kubeconfig)?;
        args.extend([
            format!("--kubeconfig={}", kubeconfig.display()),
            "--leader-elect=false".to_owned(),
            "--use-service-account-credentials=true".to_owned(),
            file("service-account-private-key-file", "sa.key"),
            file("root-ca-file", "ca.crt"),
            file("cluster-signing-cert-file", "ca.crt"),
            file("cluster-signing-key-file", "ca.key"),
            "--kube-api-qps=300".to_owned(),
            "--kube-api-burst=600".to_owned(),
        ]);
        args.extend(self.options.controller_manager_args.iter().cloned());
        Ok(ProcessSpec::new("kube-controller-manager", self.tools.kubernetes("kube-controller-manager"), args))
    }

    pub(crate) fn scheduler(&self, kubeconfig: &Path) -> Result<ProcessSpec> {
        // With the default limits it binds 54 pods a second, with these 241.
        let config = json!({
            "apiVersion": "kubescheduler.config.k8s.io/v1",
            "kind": "KubeSchedulerConfiguration",
            "leaderElection": {"leaderElect": false},
            "clientConnection": {"kubeconfig": kubeconfig, "qps": 1000, "burst": 2000},
        });
        let path = self.dir.join("scheduler.json");
        std::fs::write(&path, config.to_string()).with_context(|| format!("writing {}", path.display()))?;
        let mut args = own_access(kubeconfig)?;
        args.push(format!("--config={}", path.display()));
        Ok(ProcessSpec::new("kube-scheduler", self.tools.kubernetes("kube-scheduler"), args))
    }
}

/// What the controller manager and the scheduler have in common: they serve metrics on a port of loopback and ask the API server who may read them.
fn own_access(kubeconfig: &Path) -> Result<Vec<String>> {
    Ok(vec![
        format!("--authentication-kubeconfig={}", kubeconfig.display()),
        format!("--authorization-kubeconfig={}", kubeconfig.display()),
        "--bind-address=127.0.0.1".to_owned(),
        format!("--secure-port={}", free_port(Ipv4Addr::LOCALHOST)?),
    ])
}

/// Where the lab's own ports lie: below the range from which the kernel takes ports for outgoing connections.
pub(crate) const FREE_PORTS: RangeInclusive<u16> = 20_000..=31_999;

/// A port of this address that is free now. At random, so that labs that start together do not meet; who loses the race all the same has to
/// try again with another. Pods of the node size reach such ports of the machine (at `10.87.0.1`) and no others.
pub fn free_port(address: Ipv4Addr) -> Result<u16> {
    let count = u64::from(FREE_PORTS.end() - FREE_PORTS.start()) + 1;
    for _ in 0..200 {
        let (random, _) = uuid::Uuid::new_v4().as_u64_pair();
        let port = FREE_PORTS.start() + u16::try_from(random % count).unwrap_or(0);
        if TcpListener::bind((address, port)).is_ok() {
            return Ok(port);
        }
    }
    bail!("no free port on {address} in 200 tries")
}
