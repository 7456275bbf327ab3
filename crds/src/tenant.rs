//! `Tenant`: who buys.

use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{Condition, ServingLimits, Tier};

/// Who buys: namespaces, quotas, regions. The owner of the fleet is a tenant with `owner: true`.
#[derive(Clone, CustomResource, Debug, Deserialize, Eq, KubeSchema, PartialEq, Serialize)]
#[kube(
    group = "spillway.dev",
    version = "v1alpha1",
    kind = "Tenant",
    singular = "tenant",
    plural = "tenants",
    category = "spillway",
    status = "TenantStatus",
    printcolumn(name = "Owner", type_ = "boolean", json_path = ".spec.owner"),
    printcolumn(name = "Namespaces", type_ = "string", json_path = ".spec.namespaces"),
    printcolumn(name = "Bookings", type_ = "integer", json_path = ".status.liveBookingCount"),
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].status"),
    printcolumn(name = "Reason", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].reason"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    validation = ("size(self.metadata.name) <= 63", "the name of a tenant is a label value: at most 63 characters")
)]
#[serde(rename_all = "camelCase")]
pub struct TenantSpec {
    /// The tenant's namespaces. A name that an older Tenant lists already is refused here.
    #[schemars(length(min = 1, max = 64), inner(length(min = 1, max = 63), regex(pattern = "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")), extend("x-kubernetes-list-type" = "set"))]
    pub namespaces: Vec<String>,
    /// True for the owner of the fleet, whose pods may use what is not sold. Immutable.
    #[serde(default)]
    #[x_kube(validation = ("self == oldSelf", "owner cannot change: make another Tenant"))]
    pub owner: bool,
    /// How many devices the tenant may hold at once. What is not listed is not limited.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["sku", "tier"]))]
    pub quotas: Vec<Quota>,
    /// Regions in which the tenant may reserve. Empty: all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32), inner(length(min = 1, max = 63)), extend("x-kubernetes-list-type" = "set"))]
    pub regions: Vec<String>,
    /// Regions in which its requests to hosted models may be processed. Empty: all. One whose region is not known is none of them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32), inner(length(min = 1, max = 63)), extend("x-kubernetes-list-type" = "set"))]
    pub residency: Vec<String>,
    /// Limits of requests to hosted models, of all its keys together.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limits: Option<ServingLimits>,
}

/// A limit on the devices of one SKU in one tier.
#[derive(Clone, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Quota {
    /// SKU as the pools name it.
    #[schemars(length(min = 1, max = 63))]
    pub sku: String,
    /// Tier.
    pub tier: Tier,
    /// Devices at once.
    #[schemars(range(min = 0, max = 1_000_000))]
    pub limit: i32,
}

/// What Spillway made of a Tenant.
#[derive(Clone, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct TenantStatus {
    /// `metadata.generation` that was looked at.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// `Ready`: all namespaces are this tenant's.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
    /// The namespaces that are this tenant's.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub namespaces: Vec<TenantNamespace>,
    /// What the tenant holds now, per SKU and tier.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["sku", "tier"]))]
    pub held: Vec<HeldQuota>,
    /// Number of live bookings.
    #[serde(default)]
    #[schemars(range(min = 0))]
    pub live_booking_count: i32,
    /// Live bookings as `namespace/name`, at most 16 of them: while there are any, the tenant cannot be deleted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), inner(length(max = 128)), extend("x-kubernetes-list-type" = "set"))]
    pub live_bookings: Vec<String>,
}

/// A namespace of a tenant.
#[derive(Clone, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct TenantNamespace {
    /// Its name.
    #[schemars(length(max = 63))]
    pub name: String,
    /// Its holder id: the taint value of the whole nodes that it holds.
    #[schemars(length(max = 64))]
    pub holder: String,
}

/// What a tenant holds of one SKU in one tier.
#[derive(Clone, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct HeldQuota {
    /// SKU.
    #[schemars(length(max = 63))]
    pub sku: String,
    /// Tier.
    pub tier: Tier,
    /// Devices booked.
    pub devices: i32,
}
