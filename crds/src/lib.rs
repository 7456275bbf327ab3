//! The Kubernetes API of Spillway, `spillway.dev/v1alpha1`.
//!
//! These types are the only place where the shape of the API is written: the YAML beside this crate and the chart's
//! CRD templates are generated from them (`cargo run -p spillway-crds --bin crdgen`), and a test fails on drift.
//! Nothing here decides anything: what can be refused early is refused by the schemas and CEL rules that stand on the types.

#![allow(unreachable_pub, reason = "KubeSchema repeats each struct inside a function, `pub` included")]

pub mod apikey;
pub mod condition;
pub mod duration;
pub mod endpoint;
pub mod key;
pub mod ledger;
pub mod model;
pub mod names;
pub mod node;
pub mod pool;
pub mod reservation;
pub mod tenant;
pub mod yaml;

pub use apikey::{ApiKey, ApiKeySpec, ApiKeyStatus, KeyHash, KeyRecord, ServingLimits};
pub use condition::{Condition, ConditionStatus};
pub use duration::{DurationError, parse_duration_ms};
pub use endpoint::{
    Access, Burst, BurstTier, Canary, CanaryPhase, CanaryStatus, Capacity, External, Fallback, ModelEndpoint,
    ModelEndpointSpec, ModelEndpointStatus, Routing, RoutingPolicy, Scaling, ScalingTarget, ServedModel, VersionStatus,
};
pub use ledger::{
    CapacityLedger, CapacityLedgerPage, CapacityLedgerPageSpec, CapacityLedgerSpec, LedgerPool, PageKind,
};
pub use model::{
    Cache, Capability, Model, ModelSpec, ModelStatus, ModelVersion, Needs, Preset, Runtime, Source, VolumeSource,
};
pub use node::{CheckRequest, CheckResult, GpuNode, GpuNodeSpec, GpuNodeStatus, RunningContainer};
pub use pool::{
    GpuPool, GpuPoolSpec, GpuPoolStatus, Mode, NodeCheck, PoolCapacity, PoolDevices, PoolNodes, Provenance, SalePolicy,
    ShareProfile,
};
pub use reservation::{
    AssignedNode, Assignment, BookingStatus, GpuReservation, GpuReservationSpec, GpuReservationStatus, Meter, Phase,
    ReservationDevices, Term, Tier, TopologyRequest,
};
pub use tenant::{HeldQuota, Quota, Tenant, TenantNamespace, TenantSpec, TenantStatus};
