//! What a communication asks of one rank.

use rackflow_topology::Level;
use rackflow_units::{Bytes, SimDuration};
use std::fmt;

/// How a collective moves its data.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Algorithm {
    /// Nothing moves: a group of one.
    Local,
    /// One ring through all ranks, entering and leaving every domain on each rank's NIC in turn.
    Ring,
    /// Reduce-scatter inside the domain, the slices across by rail, all-gather inside.
    Hierarchical,
    /// To ever nearer members half as much each time, and back: few steps, one after the other.
    RecursiveHalving,
    /// A chain inside each domain, a double binary tree across.
    Tree,
    /// The scale-up switches reduce in flight.
    InSwitch,
    /// The switches reduce inside each domain, a double binary tree carries the slices across.
    InSwitchTree,
    /// The switches of the fabric reduce the slices (SHARP), those of the domain where they can.
    InNetwork,
    /// Every pair for itself, over its own NIC.
    Direct,
    /// Over NVLink to the neighbour on the receiver's rail, and over its NIC (PXN).
    Pxn,
    /// Once over the NIC to each visited domain, then forwarded over NVLink.
    Relayed,
}

impl fmt::Display for Algorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Local => "local",
            Self::Ring => "ring",
            Self::Hierarchical => "hierarchical",
            Self::RecursiveHalving => "recursive halving",
            Self::Tree => "tree",
            Self::InSwitch => "in-switch",
            Self::InSwitchTree => "in-switch tree",
            Self::InNetwork => "in-network",
            Self::Direct => "direct",
            Self::Pxn => "pxn",
            Self::Relayed => "relayed",
        })
    }
}

/// How a library marks data as arrived: the lower the latency, the less payload per wire byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    /// A flag beside every four bytes.
    Ll,
    /// A flag in every 128 bytes.
    Ll128,
    /// Whole chunks, then a flag.
    Simple,
}

impl Protocol {
    /// Lowest latency first.
    pub const ALL: [Self; 3] = [Self::Ll, Self::Ll128, Self::Simple];
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Ll => "LL",
            Self::Ll128 => "LL128",
            Self::Simple => "Simple",
        })
    }
}

/// All of a rank's scale-up bandwidth, in millionths.
pub(crate) const WHOLE: u32 = 1_000_000;

/// What a communication asks of one rank's ports, on idle links. Where ranks differ it is the
/// busiest one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Demand {
    /// Time in which no byte could have been faster: launch, steps, hops.
    pub latency: SimDuration,
    /// Time for which the rank's NVLink port is busy at full rate.
    pub nvlink: SimDuration,
    /// Time for which the rank's share of the NICs is busy at full rate.
    pub nic: SimDuration,
    /// The highest tier that it crosses.
    pub level: Level,
    /// Bytes out of the rank's NVLink port.
    pub wire_bytes_nvlink: Bytes,
    /// Bytes out of the rank's share of the NICs.
    pub wire_bytes_nic: Bytes,
    /// Part of a rank's scale-up bandwidth, in millionths, at which those could leave it.
    pub scale_up_part: u32,
    /// Share of the bytes over NICs that leave their leaf, in millionths.
    pub over_leaf: u32,
    /// Of the bytes over NICs, the share that leave their pod, in millionths.
    pub over_pod: u32,
    /// How it moves.
    pub algorithm: Algorithm,
    /// How it marks arrival.
    pub protocol: Protocol,
}

impl Demand {
    /// Nothing to move.
    pub const NONE: Self = Self {
        latency: SimDuration::ZERO,
        nvlink: SimDuration::ZERO,
        nic: SimDuration::ZERO,
        level: Level::Local,
        wire_bytes_nvlink: Bytes::ZERO,
        wire_bytes_nic: Bytes::ZERO,
        scale_up_part: WHOLE,
        over_leaf: 0,
        over_pod: 0,
        algorithm: Algorithm::Local,
        protocol: Protocol::Simple,
    };

    /// Time on idle links: the two ports work at once.
    pub fn duration(&self) -> SimDuration {
        self.latency + self.nvlink.max(self.nic)
    }
}
