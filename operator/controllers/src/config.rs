//! What an installation may vary. The chart sets it by flags, together with the admission policies that must agree with it.

use std::{collections::BTreeSet, time::Duration};

/// Longest time that any call to the API server may take.
pub const CALL_TIMEOUT: Duration = Duration::from_secs(15);
/// Length of the leader's lease in seconds.
pub const LEASE_SECONDS: u64 = 10;
/// A gap in the leader's loop longer than a third of the lease drops what was queued: somebody else may lead by now.
pub const MAX_GAP: Duration = Duration::from_millis(LEASE_SECONDS * 1000 / 3);

/// What an installation may vary.
#[derive(Clone, Debug)]
pub struct Config {
    /// Namespace in which the operator runs.
    pub namespace: String,
    /// Identity in the leader election: the pod's UID, so that a restarted container goes on with its own lease at once.
    pub identity: String,
    /// Namespaces whose pods may be on every node and are no tenant's: `kube-system`, the operator's own, the GPU operator's.
    pub infrastructure: BTreeSet<String>,
    /// Prefixes of the extended resources that are devices, such as `nvidia.com/`.
    pub device_prefixes: Vec<String>,
    /// The cap on pods' grace periods that the admission policies enforce, in seconds.
    pub grace_cap_seconds: u32,
    /// Address of `/metrics`, `/healthz` and `/readyz`.
    pub http: std::net::SocketAddr,
    /// Address of `external.metrics.k8s.io`, if it is served.
    pub metrics_api: Option<std::net::SocketAddr>,
    /// The usage service, to which the GPU time of bookings that ended is posted, if there is one.
    pub usage: Option<hyper::Uri>,
    /// Days for which pages of the archive are kept after that.
    pub archive_days: u32,
    /// Whether gateways and the usage service have certificates of the operator's making.
    pub usage_tls: bool,
}
