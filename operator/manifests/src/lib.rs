//! Pure builders: from validated resources and a plan to Kubernetes objects, patches and statuses. Building cannot fail.
//!
//! - [`validate`]: API objects into the planner's types.
//! - [`hold`]: a node's hold taints and labels, read and written.
//! - [`ledger`]: root and pages of the ledger as objects.
//! - [`conditions`]: `status.conditions` by kstatus, without changing what did not change.
//! - [`policies`], [`selftest`], [`audit`], [`observe`]: what the guards compare, try, judge and plan (docs/ARCHITECTURE.md, "The guards").
//! - [`endpoint`], [`model`], [`apikey`]: what a hosted model is laid out as, what is kept of a key, and their statuses.
//! - [`reservation`], [`pool`], [`tenant`]: statuses; [`status`]: how one is written.

pub mod apikey;
pub mod archive;
pub mod audit;
pub mod conditions;
pub mod endpoint;
pub mod hold;
pub mod ledger;
pub mod model;
pub mod observe;
pub mod policies;
pub mod pool;
pub mod reservation;
pub mod selftest;
pub mod status;
pub mod tenant;
pub mod validate;
