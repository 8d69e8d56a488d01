//! Hardware as data: accelerators, nodes, NVLink domains, racks, rails, switches and fabrics.
//!
//! A rank sits on a GPU, a GPU in an NVLink domain, a domain in one or more racks, and its NICs on
//! the leaves of a fabric, by rail or by plane. [`ClusterGraph`] draws that as a petgraph graph for
//! algorithms and pictures; [`ClusterMap`] holds the same in flat arrays for inner loops, and
//! [`Wires`] holds every directed link and the routes over them. Property tests hold the three
//! against each other.
//!
//! This crate does not know what runs on the hardware, and it keeps no clock.

mod accelerator;
mod fabric;
mod fault;
mod graph;
mod layout;
mod map;
mod node;
mod reliability;
mod survey;
mod trace;
mod wires;
mod wiring;

pub use accelerator::{
    Accelerator, AttentionRate, AttentionRates, ByPrecision, Draw, Generation, Measured,
};
pub use fabric::{
    DragonflyPlus, Fabric, FatTree, MultiPlaneFatTree, RailOnly, RailOptimized, Routing,
};
pub use fault::{
    FaultError, FaultyLink, Flap, Flapping, FlappingPorts, Health, LinkFault, LinkState,
};
pub use graph::{ClusterGraph, Link, Vertex};
pub use layout::TopologyError;
pub use map::{Axis, ClusterMap, GroupSpan, Inventory, Joined, Level, Path, Place, Seats, Section};
pub use node::{Cluster, Nic, Node, Part, Rack, ScaleUp};
pub use reliability::{Component, FailureProfile};
pub use survey::{DomainSurvey, PeerSurvey, Sketch, SketchRack, SketchSwitch, Survey, TierSurvey};
pub use trace::{Hop, RouteTrace};
pub use wires::{LinkId, Wires};
pub use wiring::{Bridge, Torus, Wiring};
