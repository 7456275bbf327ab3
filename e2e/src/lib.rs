//! The lab: a real Kubernetes on this one machine, for the tests in `tests/` and for the demo.
//!
//! Nothing of Kubernetes is mocked. [`Lab::start`] brings up one of three sizes ([`Size`]), waits until it is usable and hands back a [`Lab`];
//! dropping that takes everything down again, and so does the guard process when a test is killed. The same machinery stands behind the
//! `lab` binary, whose clusters outlive it.
//!
//! Rules of the house: every wait is bounded, every process is known by its pid and start time, no packet leaves the machine, and nothing here
//! is known to product code.

pub mod certs;
mod claim;
mod cluster_spec;
mod command;
mod control_plane;
pub mod demo;
pub mod device_plugin;
pub mod fake_node;
pub mod guard;
pub mod image;
mod kubeconfig;
mod kwok;
mod lab;
mod node;
pub mod packages;
pub mod paths;
pub mod pip;
pub mod process;
pub mod progress;
pub mod spillway;
pub mod state;
pub mod teardown;
pub mod tools;
mod wait;

pub use cluster_spec::{LabOptions, Size};
pub use control_plane::free_port;
pub use fake_node::FakeNode;
pub use lab::{Lab, logs_tail};
pub use nix::sys::signal::Signal;
pub use process::ProcessSpec;
pub use wait::{wait_for, wait_for_value};
