//! The reconcilers of Spillway, and the engine that decides capacity.
//!
//! Capacity is decided by the [`engine`] alone: it plans on a snapshot and commits to the ledger. The other controllers read the last
//! committed [`view`] and derive from it: [`nodes`] the taints and labels, [`reservations`], [`pools`] and [`tenants`] their statuses.
//! [`endpoints`] and [`models`] lay out what is served on it, from watches of their own ([`hosted`]).
//! The [`guards`] watch the hold, and while they doubt it nothing is sold.
//! Nothing here is true only in memory: a new leader reads the ledger and the API server and goes on.

pub mod apikeys;
pub mod archive;
pub mod assignments;
pub mod backlog;
pub mod canaries;
mod certificate;
pub mod changes;
pub mod config;
pub mod context;
pub mod ended;
pub mod endpoints;
pub mod engine;
pub mod error;
pub mod external;
pub mod fence;
pub mod finalizer;
pub mod gateways;
pub mod gauges;
pub mod guards;
pub mod hosted;
pub mod http;
pub mod identities;
pub mod kill;
pub mod leader;
pub mod loads;
pub mod metrics;
pub mod models;
pub mod nodes;
pub mod pods;
pub mod pools;
pub mod reservations;
pub mod run;
pub mod scaling;
pub mod snapshot;
pub mod status;
pub mod store;
pub mod table;
pub mod tenants;
pub mod usage_service;
pub mod view;
pub mod watches;
pub mod written;

pub use config::Config;
pub use error::Error;
pub use run::run;
