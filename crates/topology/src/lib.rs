//! Hardware as data: accelerators, nodes, NVLink domains, racks, rails, switches and fabrics.
//!
//! This crate does not know what runs on the hardware, and it keeps no clock.

mod accelerator;
mod fabric;
mod node;

pub use accelerator::{Accelerator, ByPrecision, Measured};
pub use fabric::{Fabric, FatTree, MultiPlaneFatTree, RailOptimized};
pub use node::{Cluster, Nic, Node, Rack, ScaleUp};
