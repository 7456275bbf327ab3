//! `GpuReservation`: a claim on capacity.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::Condition;

/// On which terms capacity is held.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, JsonSchema, Ord, PartialEq, PartialOrd, Serialize)]
pub enum Tier {
    /// The owner's own use: not billed, still booked and metered.
    Internal,
    /// A fixed term; nobody takes it back before its end.
    Committed,
    /// Open-ended; nobody takes it back.
    OnDemand,
    /// Open-ended and cheapest; it can be taken back with notice once reclaim exists.
    Spot,
}

impl Tier {
    /// The name as the API spells it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Internal => "Internal",
            Self::Committed => "Committed",
            Self::OnDemand => "OnDemand",
            Self::Spot => "Spot",
        }
    }
}

/// Where a reservation is in its life.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, Hash, JsonSchema, Ord, PartialEq, PartialOrd, Serialize)]
pub enum Phase {
    /// Not yet looked at.
    #[default]
    Pending,
    /// It does not fit now and waits.
    Waitlisted,
    /// It can never be met; the reason says why.
    Rejected,
    /// It waited for `waitFor` and did not fit.
    Expired,
    /// Devices are booked for it.
    Booked,
    /// Its nodes are being emptied and checked.
    Preparing,
    /// Its nodes are its own.
    Active,
    /// Its nodes are being given back.
    Ending,
    /// It is over.
    Ended,
}

impl Phase {
    /// The name as the API spells it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "Pending",
            Self::Waitlisted => "Waitlisted",
            Self::Rejected => "Rejected",
            Self::Expired => "Expired",
            Self::Booked => "Booked",
            Self::Preparing => "Preparing",
            Self::Active => "Active",
            Self::Ending => "Ending",
            Self::Ended => "Ended",
        }
    }

    /// True when nothing will happen to the reservation any more.
    pub fn is_final(self) -> bool {
        matches!(self, Self::Rejected | Self::Expired | Self::Ended)
    }
}

/// A claim on GPUs: how many, where, for how long, on which terms. Its status says what became of it.
#[derive(Clone, CustomResource, Debug, Deserialize, Eq, KubeSchema, PartialEq, Serialize)]
#[kube(
    group = "spillway.dev",
    version = "v1alpha1",
    kind = "GpuReservation",
    singular = "gpureservation",
    plural = "gpureservations",
    category = "spillway",
    shortname = "gpures",
    namespaced,
    status = "GpuReservationStatus",
    printcolumn(name = "Tier", type_ = "string", json_path = ".spec.tier"),
    printcolumn(name = "Devices", type_ = "integer", json_path = ".spec.devices.count"),
    printcolumn(name = "Phase", type_ = "string", json_path = ".status.phase"),
    printcolumn(name = "Nodes", type_ = "integer", json_path = ".status.nodeCount"),
    printcolumn(name = "Starts", type_ = "string", json_path = ".status.booking.activeAt"),
    printcolumn(name = "Ends", type_ = "string", json_path = ".status.booking.endsAt"),
    printcolumn(name = "Reason", type_ = "string", json_path = ".status.reason"),
    printcolumn(name = "Pool", type_ = "string", json_path = ".status.booking.pool", priority = 1),
    printcolumn(name = "Message", type_ = "string", json_path = ".status.message", priority = 1),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    validation = ("size(self.metadata.name) <= 63", "the name of a reservation is used in node labels: at most 63 characters"),
    validation = ("self.metadata.name.matches('^[a-z0-9]([a-z0-9-]*[a-z0-9])?$')", "the name of a reservation may have lower-case letters, digits and dashes only: it is used in node labels")
)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = ("has(self.pool) ? !has(self.sku) && !has(self.region) : has(self.sku) && has(self.region)", "name either pool, or sku and region"))]
#[x_kube(validation = ("self.tier != 'Committed' || has(self.term)", "a Committed reservation needs term.duration"))]
#[x_kube(validation = ("!has(self.devices.profile) || !self.exclusiveNodes", "devices.profile asks for shares of a device, and exclusiveNodes: true for whole nodes: set exclusiveNodes: false, or leave devices.profile out"))]
#[x_kube(validation = ("has(self.pool) == has(oldSelf.pool) && (!has(self.pool) || self.pool == oldSelf.pool)", "pool cannot change: delete the reservation and create another"))]
#[x_kube(validation = ("has(self.sku) == has(oldSelf.sku) && (!has(self.sku) || self.sku == oldSelf.sku)", "sku cannot change: delete the reservation and create another"))]
#[x_kube(validation = ("has(self.region) == has(oldSelf.region) && (!has(self.region) || self.region == oldSelf.region)", "region cannot change: delete the reservation and create another"))]
#[x_kube(validation = ("has(self.term) == has(oldSelf.term) && (!has(self.term) || self.term == oldSelf.term)", "term cannot change: delete the reservation and create another"))]
#[x_kube(validation = ("has(self.topology) == has(oldSelf.topology) && (!has(self.topology) || self.topology == oldSelf.topology)", "topology cannot change: delete the reservation and create another"))]
pub struct GpuReservationSpec {
    /// Name of the `GpuPool` to take the devices from. Instead: `sku` and `region`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63))]
    pub pool: Option<String>,
    /// What is wanted, such as `nvidia-h200-sxm`; any pool of this SKU in `region` will do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63))]
    pub sku: Option<String>,
    /// Where it is wanted, such as `us-east`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63))]
    pub region: Option<String>,
    /// How many devices, and how they lie on nodes.
    #[x_kube(validation = ("self == oldSelf", "devices cannot change: delete the reservation and create another"))]
    pub devices: ReservationDevices,
    /// Whole nodes, with nobody beside us. `false`: some devices of nodes, of which others may have the rest.
    #[serde(default = "default_exclusive_nodes")]
    #[x_kube(validation = ("self == oldSelf", "exclusiveNodes cannot change: delete the reservation and create another"))]
    pub exclusive_nodes: bool,
    /// On which terms.
    #[x_kube(validation = ("self == oldSelf", "tier cannot change: delete the reservation and create another"))]
    pub tier: Tier,
    /// How long. Without it the reservation is open-ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub term: Option<Term>,
    /// What the nodes must have in common.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub topology: Option<TopologyRequest>,
    /// How long to stay on the waitlist if it does not fit, as a Go duration. `0s`: book at once or be refused.
    #[serde(default = "default_wait_for")]
    #[schemars(length(min = 2, max = 32), regex(pattern = r"^([0-9]+(\.[0-9]+)?(h|m|s|ms))+$"))]
    #[x_kube(validation = ("duration(self) >= duration('0s') && duration(self) <= duration('8784h')", "waitFor must be from 0s to 8784h"))]
    pub wait_for: String,
}

fn default_exclusive_nodes() -> bool {
    true
}

fn default_wait_for() -> String {
    "24h".to_owned()
}

/// How many devices, and how they lie on nodes.
#[derive(Clone, Debug, Deserialize, Eq, KubeSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = ("!has(self.perNode) || self.count % self.perNode == 0", "devices.count must be a multiple of devices.perNode"))]
#[x_kube(validation = ("!has(self.profile) || !has(self.perNode)", "devices.perNode counts whole devices, and devices.profile asks for shares of a device: leave one of them out"))]
pub struct ReservationDevices {
    /// Devices in all; of whole nodes (`exclusiveNodes`) a multiple of the devices of a node. With `profile` the number of shares.
    #[schemars(range(min = 1, max = 100_000))]
    pub count: i32,
    /// Devices of each node. Of whole nodes: only pools with such nodes will do; without it any pool of the SKU whose nodes divide `count`. Of
    /// parts of nodes (`exclusiveNodes: false`): so many on each node; without it as few nodes as possible.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1024))]
    pub per_node: Option<i32>,
    /// Shares of a device instead of whole devices: which of the pool's `devices.profiles`. `count` is then a number of shares, each of one
    /// device. Planned and simulated, not held on nodes yet: in pools of mode Observe, and by `spillway simulate plan`, one sees where shares
    /// would go; elsewhere such a reservation is Rejected.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63), regex(pattern = "^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$"))]
    pub profile: Option<String>,
}

/// How long.
#[derive(Clone, Debug, Deserialize, Eq, KubeSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Term {
    /// From the first `Active` to the end, as a Go duration from 1s to 26352h (three years), such as `336h`.
    #[schemars(length(min = 2, max = 32), regex(pattern = r"^([0-9]+(\.[0-9]+)?(h|m|s|ms))+$"))]
    #[x_kube(validation = ("duration(self) >= duration('1s') && duration(self) <= duration('26352h')", "term.duration must be from 1s to 26352h"))]
    pub duration: String,
}

/// What the nodes of a reservation must have in common.
#[derive(Clone, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct TopologyRequest {
    /// Node label, one of the pool's `topology`: all nodes have the same value of it.
    #[schemars(length(min = 1, max = 317))]
    pub require: String,
}

/// What became of a reservation.
#[derive(Clone, Debug, Default, Deserialize, Eq, KubeSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = ("!has(self.assignments) || self.assignments.filter(a, !has(a.ending) || !a.ending).map(a, a.devices).sum() <= (has(self.deviceCount) ? self.deviceCount : 0)", "more devices would be assigned to pods than the reservation has"))]
pub struct GpuReservationStatus {
    /// `metadata.generation` that was looked at.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Where it is in its life.
    #[serde(default)]
    pub phase: Phase,
    /// Why, as one CamelCase word for machines.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub reason: Option<String>,
    /// Why, and what would change it, as a sentence for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub message: Option<String>,
    /// `Ready`: the promise stands, or ended as agreed. `Reconciling`: it is waiting. `Stalled`: it was refused or is at risk.
    // Atomic, as `nodes` is: the operator alone writes them, and who owns each field of each entry would be a third of what the API server keeps,
    // merges and sends of a reservation.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), extend("x-kubernetes-list-type" = "atomic"))]
    pub conditions: Vec<Condition>,
    /// What was booked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub booking: Option<BookingStatus>,
    /// Number of nodes booked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub node_count: Option<i32>,
    /// The nodes booked, at most 1024 of them, in order of name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 1024), extend("x-kubernetes-list-type" = "atomic"))]
    pub nodes: Vec<AssignedNode>,
    /// Devices booked on those nodes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub device_count: Option<i32>,
    /// The pods that were given room on nodes that are shared with others, at most 2048 of them. A pod is in it before it may land, and until
    /// its containers are gone.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 2048), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["podUid", "node"]))]
    pub assignments: Vec<Assignment>,
    /// What was used, written when the reservation ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub meter: Option<Meter>,
}

/// Room for a pod on a shared node.
#[derive(Clone, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Assignment {
    /// Name of the pod, which is in the reservation's namespace.
    #[schemars(length(max = 253))]
    pub pod: String,
    /// UID of the pod.
    #[schemars(length(max = 64))]
    pub pod_uid: String,
    /// Name of the Node.
    #[schemars(length(max = 253))]
    pub node: String,
    /// Devices of the pod.
    #[schemars(range(min = 1))]
    pub devices: i32,
    /// The part of the node is not held any more, and the node has not given it back: the pod may be there still, and gets no device that is held.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub ending: bool,
}

/// What was booked.
#[derive(Clone, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct BookingStatus {
    /// Id of the booking in the ledger.
    #[schemars(length(max = 64))]
    pub id: String,
    /// Name of the `GpuPool`.
    #[schemars(length(max = 63))]
    pub pool: String,
    /// When it was booked.
    pub booked_at: Time,
    /// When all nodes were handed over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub active_at: Option<Time>,
    /// When it ends, or ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ends_at: Option<Time>,
}

/// A node of a reservation.
#[derive(Clone, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct AssignedNode {
    /// Name of the Node.
    #[schemars(length(max = 253))]
    pub name: String,
    /// Devices of it that are booked.
    #[schemars(range(min = 1))]
    pub devices: i32,
}

/// What was used.
#[derive(Clone, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Meter {
    /// Devices times milliseconds, from `Active` to the end, less what was lost with nodes. 3,600,000 are one GPU-hour.
    #[schemars(range(min = 0))]
    pub device_milliseconds: i64,
}
