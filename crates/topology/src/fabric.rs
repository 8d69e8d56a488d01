//! Scale-out fabrics: how the NICs of the nodes are wired together.

use rackflow_units::{Bandwidth, SimDuration};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A scale-out fabric. Externally tagged, so that a faulty field keeps its line and column.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Fabric {
    /// Any NIC to any leaf: a plain (folded Clos) fat tree of two or three tiers.
    FatTree(FatTree),
    /// NIC i of every node of a group on leaf i: traffic between equal ranks stays on one leaf.
    RailOptimized(RailOptimized),
    /// One two-tier tree per NIC; planes meet only inside a node (DeepSeek's MPFT).
    MultiPlaneFatTree(MultiPlaneFatTree),
    /// Every rail a tree of its own and nothing above: rails meet only inside a domain.
    RailOnly(RailOnly),
    /// Groups of leaves and spines, every spine with direct links to other groups' spines.
    DragonflyPlus(DragonflyPlus),
}

impl Fabric {
    /// How parallel paths are used.
    pub const fn routing(&self) -> Routing {
        match self {
            Self::FatTree(f) => f.routing,
            Self::RailOptimized(f) => f.routing,
            Self::MultiPlaneFatTree(f) => f.routing,
            Self::RailOnly(f) => f.routing,
            Self::DragonflyPlus(f) => f.routing,
        }
    }

    /// Whether the switches reduce in flight; none do between the groups of a Dragonfly+.
    pub const fn reduces(&self) -> bool {
        match self {
            Self::FatTree(f) => f.in_network_reduction,
            Self::RailOptimized(f) => f.in_network_reduction,
            Self::MultiPlaneFatTree(f) => f.in_network_reduction,
            Self::RailOnly(f) => f.in_network_reduction,
            Self::DragonflyPlus(_) => false,
        }
    }

    /// The same, to be changed; `None` where switches cannot.
    pub fn reduces_mut(&mut self) -> Option<&mut bool> {
        match self {
            Self::FatTree(f) => Some(&mut f.in_network_reduction),
            Self::RailOptimized(f) => Some(&mut f.in_network_reduction),
            Self::MultiPlaneFatTree(f) => Some(&mut f.in_network_reduction),
            Self::RailOnly(f) => Some(&mut f.in_network_reduction),
            Self::DragonflyPlus(_) => None,
        }
    }

    /// How it is written in a scenario.
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::FatTree(_) => "fat_tree",
            Self::RailOptimized(_) => "rail_optimized",
            Self::MultiPlaneFatTree(_) => "multi_plane_fat_tree",
            Self::RailOnly(_) => "rail_only",
            Self::DragonflyPlus(_) => "dragonfly_plus",
        }
    }

    /// Link rate between switches, where it is not the NIC's own.
    pub fn link_mut(&mut self) -> Option<&mut Bandwidth> {
        match self {
            Self::FatTree(f) => f.link.as_mut(),
            Self::RailOptimized(f) => f.link.as_mut(),
            Self::MultiPlaneFatTree(f) => f.link.as_mut(),
            Self::RailOnly(f) => f.link.as_mut(),
            Self::DragonflyPlus(f) => f.link.as_mut(),
        }
    }

    /// Time added by each switch on the way.
    pub fn hop_mut(&mut self) -> &mut SimDuration {
        match self {
            Self::FatTree(f) => &mut f.hop,
            Self::RailOptimized(f) => &mut f.hop,
            Self::MultiPlaneFatTree(f) => &mut f.hop,
            Self::RailOnly(f) => &mut f.hop,
            Self::DragonflyPlus(f) => &mut f.hop,
        }
    }
}

/// How a fabric uses the parallel paths between two switches.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Routing {
    /// Packets are spread over all paths (adaptive routing, packet spraying).
    #[default]
    Adaptive,
    /// A hash of the connection picks one path for all its packets; connections collide.
    Ecmp,
}

/// A folded Clos of equal switches.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct FatTree {
    /// 1 (one switch), 2 (leaf, spine) or 3 (leaf, spine, core).
    pub tiers: u32,
    /// Ports per switch.
    #[serde(default = "default_radix")]
    pub radix: u32,
    /// Ports per spine and core switch where they differ from the leaf's (a modular chassis).
    #[serde(default)]
    pub spine_radix: Option<u32>,
    /// NICs per leaf; as many as the radix and the oversubscription allow where it is left out.
    #[serde(default)]
    pub nics_per_leaf: Option<u32>,
    /// Link rate between switches, one direction; the NIC's rate where it is left out.
    #[serde(default)]
    pub link: Option<Bandwidth>,
    /// Downlink over uplink capacity at the leaf; 1 is non-blocking.
    #[serde(default = "one")]
    pub leaf_oversubscription: f64,
    /// Downlink over uplink capacity at the spine of three tiers; 1 is non-blocking.
    #[serde(default = "one")]
    pub spine_oversubscription: f64,
    /// Fraction of the fair share that the fabric's load balancing delivers between leaves:
    /// 1 for adaptive routing, less for hashed (ECMP) paths that collide.
    #[serde(default = "one")]
    pub load_balance: f64,
    /// Whether packets are spread over all paths or a hash picks one per connection.
    #[serde(default)]
    pub routing: Routing,
    /// Whether the switches reduce in flight for collectives that ask for it (SHARP).
    #[serde(default)]
    pub in_network_reduction: bool,
    /// Time added by each switch on the way.
    #[serde(default = "default_hop")]
    pub hop: SimDuration,
}

/// A rail-optimised tree.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RailOptimized {
    /// 1 (a single rail's switch), 2 (rail leaf, spine) or 3 (rail leaf, spine, core).
    pub tiers: u32,
    /// Ports per switch.
    #[serde(default = "default_radix")]
    pub radix: u32,
    /// Rails; NIC i of a node is on rail i modulo this. Left out: one per NIC of a node with up to
    /// 16 NICs, else 4 (one per GPU of an NVL72 tray).
    #[serde(default)]
    pub rails: Option<u32>,
    /// Link rate between switches, one direction; the NIC's rate where it is left out.
    #[serde(default)]
    pub link: Option<Bandwidth>,
    /// Downlink over uplink capacity at the leaf; 1 is non-blocking.
    #[serde(default = "one")]
    pub leaf_oversubscription: f64,
    /// Downlink over uplink capacity at the spine of three tiers; 1 is non-blocking.
    #[serde(default = "one")]
    pub spine_oversubscription: f64,
    /// Fraction of the fair share that load balancing delivers between leaves.
    #[serde(default = "one")]
    pub load_balance: f64,
    /// Whether packets are spread over all paths or a hash picks one per connection.
    #[serde(default)]
    pub routing: Routing,
    /// Whether the switches reduce in flight for collectives that ask for it (SHARP).
    #[serde(default)]
    pub in_network_reduction: bool,
    /// Time added by each switch on the way.
    #[serde(default = "default_hop")]
    pub hop: SimDuration,
}

/// As many separate two-tier trees as a node has NICs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct MultiPlaneFatTree {
    /// Planes; NIC i of every node is in plane i modulo this.
    pub planes: u32,
    /// Ports per switch.
    #[serde(default = "default_radix")]
    pub radix: u32,
    /// Link rate between switches, one direction; the NIC's rate where it is left out.
    #[serde(default)]
    pub link: Option<Bandwidth>,
    /// Fraction of the fair share that load balancing delivers between leaves.
    #[serde(default = "one")]
    pub load_balance: f64,
    /// Whether packets are spread over all paths or a hash picks one per connection.
    #[serde(default)]
    pub routing: Routing,
    /// Whether the switches reduce in flight for collectives that ask for it (SHARP).
    #[serde(default)]
    pub in_network_reduction: bool,
    /// Time added by each switch on the way.
    #[serde(default = "default_hop")]
    pub hop: SimDuration,
}

/// As many separate trees as rails (Wang et al., "Rail-only", arXiv 2307.12169).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RailOnly {
    /// Tiers of one rail: 1 (a single switch), 2 or 3.
    #[serde(default = "one_tier")]
    pub tiers: u32,
    /// Ports per switch.
    #[serde(default = "default_radix")]
    pub radix: u32,
    /// Rails; NIC i of a node is on rail i modulo this. Left out: one per NIC of a node with up to
    /// 16 NICs, else 4.
    #[serde(default)]
    pub rails: Option<u32>,
    /// Link rate between switches, one direction; the NIC's rate where it is left out.
    #[serde(default)]
    pub link: Option<Bandwidth>,
    /// Downlink over uplink capacity at the leaf of two or three tiers; 1 is non-blocking.
    #[serde(default = "one")]
    pub leaf_oversubscription: f64,
    /// Fraction of the fair share that load balancing delivers between leaves.
    #[serde(default = "one")]
    pub load_balance: f64,
    /// Whether packets are spread over all paths or a hash picks one per connection.
    #[serde(default)]
    pub routing: Routing,
    /// Whether the switches reduce in flight for collectives that ask for it (SHARP).
    #[serde(default)]
    pub in_network_reduction: bool,
    /// Time added by each switch on the way.
    #[serde(default = "default_hop")]
    pub hop: SimDuration,
}

/// Two-tier groups joined each to each (Shpiner et al., "Dragonfly+", HiPINEB 2017). Routes are
/// minimal: leaf, spine, spine of the other group, leaf.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DragonflyPlus {
    /// Ports per switch.
    #[serde(default = "default_radix")]
    pub radix: u32,
    /// NICs per leaf; half the radix where it is left out and links are alike.
    #[serde(default)]
    pub nics_per_leaf: Option<u32>,
    /// Leaves per group; half the radix where it is left out.
    #[serde(default)]
    pub leaves_per_group: Option<u32>,
    /// Link rate between switches, one direction; the NIC's rate where it is left out.
    #[serde(default)]
    pub link: Option<Bandwidth>,
    /// Downlink over uplink capacity at the leaf; 1 is non-blocking.
    #[serde(default = "one")]
    pub leaf_oversubscription: f64,
    /// Capacity from the leaves into a group's spines over that of its links to other groups.
    #[serde(default = "one")]
    pub global_oversubscription: f64,
    /// Fraction of the fair share that load balancing delivers between leaves.
    #[serde(default = "one")]
    pub load_balance: f64,
    /// Whether packets are spread over all paths or a hash picks one per connection.
    #[serde(default)]
    pub routing: Routing,
    /// Time added by each switch on the way.
    #[serde(default = "default_hop")]
    pub hop: SimDuration,
}

fn one_tier() -> u32 {
    1
}

/// 64 ports, the radix of a QM9700 or a 51.2 Tbit/s Ethernet switch.
fn default_radix() -> u32 {
    64
}

fn one() -> f64 {
    1.0
}

fn default_hop() -> SimDuration {
    SimDuration::from_nanos(300)
}
