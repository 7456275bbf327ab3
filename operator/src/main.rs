//! The Spillway operator: sells GPU nodes and takes them back. See docs/ARCHITECTURE.md.

use std::{collections::BTreeSet, net::SocketAddr};

use anyhow::Context;
use clap::Parser;
use spillway_controllers::{Config, run};
use tracing_subscriber::EnvFilter;

/// The Spillway operator.
#[derive(Debug, Parser)]
#[command(
    version,
    about = "Sells the GPU nodes of a Kubernetes cluster and takes them back when a reservation ends.",
    after_help = "Usually started by the Helm chart. On a workstation, against the current kubeconfig:\n  spillway-operator --namespace spillway-system --identity me --log-format text"
)]
struct Arguments {
    /// Namespace in which the operator runs; its Lease is there
    #[arg(long, env = "POD_NAMESPACE", default_value = "spillway-system")]
    namespace: String,
    /// Identity in the leader election: the pod's UID
    #[arg(long, env = "POD_UID")]
    identity: String,
    /// Namespaces whose pods may be on every node, beside kube-system and the operator's own
    #[arg(long, value_delimiter = ',', default_value = "kube-system,gpu-operator")]
    infrastructure_namespaces: Vec<String>,
    /// Prefixes of the extended resources that are devices
    #[arg(long, value_delimiter = ',', default_value = "nvidia.com/,amd.com/")]
    device_prefixes: Vec<String>,
    /// Cap on pods' grace periods that the admission policies enforce, in seconds
    #[arg(long, default_value_t = 120)]
    grace_cap_seconds: u32,
    /// Group that passes the admission policies. The operator does not use it; it is here so that the chart can say it in one place
    #[arg(long, default_value = "spillway:break-glass", hide = true)]
    break_glass_group: String,
    /// Address of /metrics, /healthz and /readyz
    #[arg(long, default_value = "0.0.0.0:8080")]
    http: SocketAddr,
    /// Address of external.metrics.k8s.io, which the autoscalers of endpoints ask; left out, it is not served
    #[arg(long, value_name = "ADDRESS")]
    metrics_api: Option<SocketAddr>,
    /// The usage service, to which the GPU time of bookings that ended is posted, as https://spillway-usage.spillway-system.svc:8090; left out, the ledger
    /// alone keeps it
    #[arg(long, value_name = "URL", env = "SPILLWAY_USAGE")]
    usage: Option<http::Uri>,
    /// Days for which pages of the ledger's archive are kept after their GPU time is in the usage store
    #[arg(long, value_name = "DAYS", env = "SPILLWAY_ARCHIVE_DAYS", default_value_t = 30)]
    archive_days: u32,
    /// Keep the certificates by which gateways and the usage service know each other, in Secrets
    #[arg(long)]
    usage_tls: bool,
    /// Form of the log
    #[arg(long, default_value = "json", value_parser = ["json", "text"])]
    log_format: String,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let log = tracing_subscriber::fmt().with_ansi(false).with_env_filter(filter).with_writer(std::io::stderr);
    if arguments.log_format == "json" {
        log.json().init();
    } else {
        log.init();
    }
    let mut infrastructure: BTreeSet<String> = arguments.infrastructure_namespaces.into_iter().collect();
    infrastructure.insert("kube-system".to_owned());
    infrastructure.insert(arguments.namespace.clone());
    let config = Config {
        namespace: arguments.namespace,
        identity: arguments.identity,
        infrastructure,
        device_prefixes: arguments.device_prefixes,
        grace_cap_seconds: arguments.grace_cap_seconds,
        http: arguments.http,
        metrics_api: arguments.metrics_api,
        usage: arguments.usage,
        archive_days: arguments.archive_days,
        usage_tls: arguments.usage_tls,
    };
    let mut kube_config =
        kube::Config::infer().await.context("finding the API server: is there a kubeconfig, or a service account?")?;
    // The client retries by default, which would hide conflicts and hold calls up; every call has its own time limit here.
    kube_config.default_retry = false;
    let client = kube::Client::try_from(kube_config).context("making a client of the API server")?;

    let (stop, stopped) = tokio::sync::watch::channel(false);
    let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = tokio::signal::ctrl_c() => {}
        }
        let _ = stop.send(true);
    });
    run(client, config, stopped).await.context("the operator ended")
}
