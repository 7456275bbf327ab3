//! The agent of a GPU node: says which containers and pod sandboxes the node's container runtime really has.
//!
//! The API server is no proof that a node is empty: a pod that was deleted by force is gone there and may still run.
//! So the operator writes a question into the `GpuNode` of the node, and the agent answers it from the runtime itself.
//! The agent writes only that answer, only into the status of its own node's object, and only when it is asked: nothing
//! here ticks. It decides nothing: whose containers may stay is the operator's business.

pub mod agent;
pub mod answer;
pub mod boot;
pub mod cri;
#[cfg(test)]
mod fake_api;
pub mod status;

pub use agent::Agent;
pub use cri::Runtime;
