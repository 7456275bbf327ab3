//! `GpuPool`: nodes of one kind that are sold together.

use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::Condition;

/// Whose hardware a pool is, shown to buyers.
#[derive(Clone, Copy, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
pub enum Provenance {
    /// The owner's own.
    Owned,
    /// Leased by the owner.
    Leased,
    /// Bought from another provider to be sold on.
    Resold,
}

/// Who says that a node is empty before it is handed over.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
pub enum NodeCheck {
    /// The agent on the node, by asking the container runtime.
    #[default]
    Agent,
    /// Nobody: the API server is believed. Only for nodes without a kubelet, such as simulated ones.
    None,
}

/// Whether a pool is sold from, or only looked at.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
pub enum Mode {
    /// It is sold from, and the policies hold what is sold.
    #[default]
    Enforce,
    /// Plan and report, sell nothing. When every pool says so and nothing is booked, no node and no namespace is written and no policy refuses
    /// or changes anything; policies are cluster-wide, so one pool that enforces makes them act for all.
    Observe,
}

/// The nodes labelled `spillway.dev/pool: <name>`: one SKU, one region, one sale policy. Its status is the public capacity statement.
#[derive(Clone, CustomResource, Debug, Deserialize, Eq, KubeSchema, PartialEq, Serialize)]
#[kube(
    group = "spillway.dev",
    version = "v1alpha1",
    kind = "GpuPool",
    singular = "gpupool",
    plural = "gpupools",
    category = "spillway",
    shortname = "gpool",
    status = "GpuPoolStatus",
    printcolumn(name = "SKU", type_ = "string", json_path = ".spec.sku"),
    printcolumn(name = "Region", type_ = "string", json_path = ".spec.region"),
    printcolumn(name = "Nodes", type_ = "integer", json_path = ".status.nodes.total"),
    printcolumn(name = "GPUs", type_ = "integer", json_path = ".status.devices.owned"),
    printcolumn(name = "Sold", type_ = "integer", json_path = ".status.devices.sold"),
    printcolumn(name = "Unsold", type_ = "integer", json_path = ".status.devices.unsold"),
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].status"),
    printcolumn(name = "Reason", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].reason"),
    printcolumn(name = "Provenance", type_ = "string", json_path = ".spec.provenance", priority = 1),
    printcolumn(name = "Mode", type_ = "string", json_path = ".spec.mode", priority = 1),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    validation = ("size(self.metadata.name) <= 63", "the name of a pool is a label value: at most 63 characters")
)]
#[serde(rename_all = "camelCase")]
pub struct GpuPoolSpec {
    /// Whether it is sold from, or only looked at.
    #[serde(default = "default_mode")]
    pub mode: Mode,
    /// What is sold: GPU model and form factor, such as `nvidia-h200-sxm`. Immutable.
    #[schemars(length(min = 1, max = 63), regex(pattern = "^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$"))]
    #[x_kube(validation = ("self == oldSelf", "sku cannot change: make another pool and relabel the nodes"))]
    pub sku: String,
    /// Where the nodes stand, such as `us-east`. Immutable.
    #[schemars(length(min = 1, max = 63), regex(pattern = "^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$"))]
    #[x_kube(validation = ("self == oldSelf", "region cannot change: make another pool and relabel the nodes"))]
    pub region: String,
    /// Whose hardware it is.
    pub provenance: Provenance,
    /// The devices of each node.
    pub devices: PoolDevices,
    /// Node labels that say where a node stands, widest first, the host name last. A reservation may require one of them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8), inner(length(min = 1, max = 317)), extend("x-kubernetes-list-type" = "set"))]
    pub topology: Vec<String>,
    /// Who says that a node is empty before it is handed over.
    #[serde(default = "default_node_check")]
    pub node_check: NodeCheck,
    /// How the pool is sold.
    #[serde(default)]
    pub sale: SalePolicy,
}

fn default_mode() -> Mode {
    Mode::Enforce
}

fn default_node_check() -> NodeCheck {
    NodeCheck::Agent
}

/// The devices of a pool's nodes.
#[derive(Clone, Debug, Deserialize, Eq, KubeSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = ("!has(self.profiles) || self.profiles.all(profile, profile.resource != self.resource)", "devices.profiles[].resource is that of whole devices (devices.resource): name the resource of the share, such as nvidia.com/mig-1g.18gb"))]
#[x_kube(validation = ("!has(self.profiles) || self.profiles.all(profile, self.profiles.exists_one(other, other.resource == profile.resource))", "devices.profiles[].resource is in two profiles: give each a resource of its own"))]
pub struct PoolDevices {
    /// Extended resource that the device plugin offers, such as `nvidia.com/gpu`.
    #[schemars(length(min = 3, max = 317), regex(pattern = "^[a-z0-9.-]+/[A-Za-z0-9._-]+$"))]
    pub resource: String,
    /// Devices of each node. A node that offers another number is not sold.
    #[schemars(range(min = 1, max = 1024))]
    pub per_node: i32,
    /// Shares of a device that are offered beside whole devices. Planned and simulated, not held on nodes yet: in pools of mode Observe, and by
    /// `spillway simulate plan`, one sees where shares would go; elsewhere a reservation of shares is Rejected.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub profiles: Vec<ShareProfile>,
}

/// A share of one device that a pool offers.
#[derive(Clone, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ShareProfile {
    /// Its name, such as `1g.18gb`. Reservations ask for it by `devices.profile`.
    #[schemars(length(min = 1, max = 63), regex(pattern = "^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$"))]
    pub name: String,
    /// Extended resource that the device plugin offers for such a share, such as `nvidia.com/mig-1g.18gb`.
    #[schemars(length(min = 3, max = 317), regex(pattern = "^[a-z0-9.-]+/[A-Za-z0-9._-]+$"))]
    pub resource: String,
    /// How much of one device it is, in thousandths.
    #[schemars(range(min = 1, max = 1000))]
    pub milli_gpu: i32,
}

/// How a pool is sold.
#[derive(Clone, Debug, Deserialize, Eq, KubeSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct SalePolicy {
    /// Sell nothing new. What is sold stays sold.
    #[serde(default)]
    pub paused: bool,
    /// Longest time that pods may take to stop when a reservation ends, as a Go duration of at most an hour: two minutes more than this lie
    /// between two bookings of a device. Not below the cap that the cluster's admission policies enforce, else nothing is sold.
    #[serde(default = "default_grace_cap")]
    #[schemars(length(min = 2, max = 32), regex(pattern = r"^([0-9]+(\.[0-9]+)?(h|m|s|ms))+$"))]
    #[x_kube(validation = ("duration(self) >= duration('1s') && duration(self) <= duration('1h')", "graceCap must be from 1s to 1h"))]
    pub grace_cap: String,
    /// How long a node may be NotReady before what it held is moved, as a Go duration from 1s to 24h.
    #[serde(default = "default_repair_after")]
    #[schemars(length(min = 2, max = 32), regex(pattern = r"^([0-9]+(\.[0-9]+)?(h|m|s|ms))+$"))]
    #[x_kube(validation = ("duration(self) >= duration('1s') && duration(self) <= duration('24h')", "repairAfter must be from 1s to 24h"))]
    pub repair_after: String,
}

impl Default for SalePolicy {
    fn default() -> Self {
        Self { paused: false, grace_cap: default_grace_cap(), repair_after: default_repair_after() }
    }
}

fn default_grace_cap() -> String {
    "120s".to_owned()
}

fn default_repair_after() -> String {
    "5m".to_owned()
}

/// The public capacity statement of a pool.
#[derive(Clone, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct GpuPoolStatus {
    /// `metadata.generation` that was looked at.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// `Ready`: the pool can be sold from. `Reconciling`, `Stalled`: kstatus. `NodesSound`: all nodes are what the spec says. `Observing`, on a
    /// pool with mode Observe: nothing is written or refused on its account, or why policies act all the same.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
    /// Nodes by state.
    #[serde(default)]
    pub nodes: PoolNodes,
    /// Devices by state.
    #[serde(default)]
    pub devices: PoolCapacity,
    /// Number of live bookings.
    #[serde(default)]
    #[schemars(range(min = 0))]
    pub live_booking_count: i32,
    /// Live bookings as `namespace/name`, at most 16 of them: while there are any, the pool cannot be deleted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), inner(length(max = 128)), extend("x-kubernetes-list-type" = "set"))]
    pub live_bookings: Vec<String>,
}

/// Nodes of a pool by state; the states add up to `total`.
#[derive(Clone, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PoolNodes {
    /// All nodes with the pool's label.
    #[serde(default)]
    pub total: i32,
    /// Nodes whose taints and labels are a holder's.
    #[serde(default)]
    pub held: i32,
    /// Nodes that are open to the owner and can be sold.
    #[serde(default)]
    pub unsold: i32,
    /// Nodes that are being prepared for a holder or given back by one.
    #[serde(default)]
    pub turnover: i32,
    /// Nodes that cannot be sold: NotReady, cordoned, of another device count, or whose check failed.
    #[serde(default)]
    pub broken: i32,
}

/// Devices of a pool by state.
#[derive(Clone, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PoolCapacity {
    /// All devices that the pool's nodes offer.
    #[serde(default)]
    pub owned: i32,
    /// Devices in live bookings.
    #[serde(default)]
    pub sold: i32,
    /// Devices of nodes whose taints and labels are a holder's; of shared nodes, those that somebody holds.
    #[serde(default)]
    pub held: i32,
    /// Devices of nodes that are open to the owner, used by it or not, and the rest of shared nodes.
    #[serde(default)]
    pub unsold: i32,
    /// Devices of nodes being prepared or given back.
    #[serde(default)]
    pub turnover: i32,
    /// Devices of nodes that cannot be sold.
    #[serde(default)]
    pub broken: i32,
    /// Devices that the owner's pods use on unsold nodes.
    #[serde(default)]
    pub owner_used: i32,
}
