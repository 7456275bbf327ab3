//! Which bin an item goes to: nodes with CPU, memory and devices, and what takes a part of them.
//!
//! A [`Packer`] holds the state of all bins, is told of every change, and answers [`Packer::place`]: the bin and the devices that cost the
//! future least, by a [`Policy`]. It does not take what it found; [`Packer::take`] does, so that a caller can think twice.
//!
//! What the policy [`Policy::DualPrices`] knows of the work that arrives is a value, [`Learned`]. Three steps use it, and none is part of
//! a decision: [`Learned::observe`] counts an arrival, [`learn()`] moves the prices a little, and [`Packer::reprice`] takes them over.
//! A packer that was never told anything packs by best fit of devices.
//!
//! All arithmetic is on integers, so that the same input gives the same placement on any machine: amounts as [`Item`] and [`Room`] say,
//! prices and costs in units of 2^-40 of one device (`fixed.rs`). Must not: know tenants, time, or the ledger; read, write, log.
//!
//! Sources. The dual prices: `docs/book/src/packing.md` and the ADR that it names. FGD, best fit and random: Weng et al., "Beware of
//! Fragmentation: Scheduling GPU-Sharing Workloads with Fragmentation Gradient Descent", USENIX ATC 2023, and the simulator published with it.

mod bin;
mod fixed;
mod item;
mod learn;
mod learned;
mod packer;
mod prices;
mod published;
mod rng;

#[cfg(test)]
mod tests;

pub use bin::{Bin, BinError, BinId, DEVICES_MAX, Placement, Room, WHOLE};
pub use item::{CLASSES_MAX, Class, ClassSet, Item, ItemError};
pub use learn::learn;
pub use learned::{Learned, LearnedError, TYPES_MAX};
pub use packer::{Packer, Policy};
pub use published::Mix;
pub use rng::Rng;
