//! The data plane of hosted models: an OpenAI-compatible API that admits, routes and meters (docs/adr/0011-the-shape-of-hosted-models.md).
//!
//! What decides is pure and takes its clock as an argument: [`admission`], [`catalogue`], [`request`], [`routing`], [`sse`]. [`wal`] is the log of what
//! is billed. What touches sockets is [`server`], [`proxy`] and [`providers`], what touches the API server [`cluster`].

pub mod admission;
pub mod budget;
pub mod catalogue;
pub mod clock;
pub mod cluster;
pub mod error;
pub mod file;
pub mod fleet;
pub mod json;
pub mod keys;
pub mod kv_cache;
pub mod leasing;
pub mod load;
pub mod metrics;
pub mod providers;
pub mod proxy;
pub mod replay;
pub mod request;
pub mod routing;
pub mod server;
pub mod ship;
pub mod sse;
pub mod telemetry;
pub mod wal;
