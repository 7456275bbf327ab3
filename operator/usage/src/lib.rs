//! The usage service of hosted models: it stores what requests used, sums it, and leases limits to gateways
//! (docs/adr/0011-the-shape-of-hosted-models.md).
//!
//! [`leases`] and [`holder`], which says who of several leases, are pure and take their clock as an argument. [`store`] is where records are, in SQLite or PostgreSQL. [`server`] is the API over both, [`socket`] what it is
//! spoken on.
//! Must not: know of gateways' configuration, or write anything but the store.

pub mod forward;
pub mod holder;
pub mod leases;
pub mod metrics;
pub mod server;
pub mod socket;
pub mod store;
