//! The data plane of hosted models: an OpenAI-compatible API that admits, routes and meters (docs/adr/0011-the-shape-of-hosted-models.md).
//!
//! What decides is pure and takes its clock as an argument: [`routing`], [`request`], [`sse`]. [`wal`] is the log of what is billed.

pub mod admission;
pub mod error;
pub mod json;
pub mod keys;
pub mod request;
pub mod routing;
pub mod sse;
pub mod wal;
