//! Rates and latencies of one rank's ports, and the constants of the library that drives them.

use crate::demand::{Algorithm, Protocol};
use rackflow_topology::{Cluster, ClusterMap, GroupSpan, Level, Path};
use rackflow_units::{Bandwidth, SimDuration};

/// Constants of NCCL per protocol. Times in nanoseconds.
///
/// Source: NVIDIA/nccl `src/graph/tuning.cc` (`baseLatencies`, `hwLatencies`). The catalogue's
/// `scale_up.latency` and `nic.latency` stand for the LL column, the fastest; what the other
/// columns add to it is the protocol's and is listed here.
#[derive(Debug, Clone, Copy, PartialEq)]
struct ProtocolCost {
    /// Launch and first synchronisation of a ring or chain.
    base: u64,
    /// Added to every NVLink step of a ring.
    ring_nvlink: u64,
    /// Added to every NIC step of a ring.
    ring_nic: u64,
    /// Added to every NVLink step of a tree.
    tree_nvlink: u64,
    /// Added to every NIC step of a tree.
    tree_nic: u64,
    /// Payload per wire byte over NVLink, and what the SMs can move in this protocol.
    nvlink_payload: f64,
    /// Payload per wire byte over the NIC.
    nic_payload: f64,
}

const LL: ProtocolCost = ProtocolCost {
    base: 6_600,
    ring_nvlink: 0,
    ring_nic: 0,
    tree_nvlink: 0,
    tree_nic: 2_300,
    nvlink_payload: 0.25,
    nic_payload: 0.5,
};
const LL128: ProtocolCost = ProtocolCost {
    base: 14_000,
    ring_nvlink: 1_300,
    ring_nic: 1_300,
    tree_nvlink: 650,
    tree_nic: 5_800,
    nvlink_payload: 0.92,
    nic_payload: 0.92,
};
const SIMPLE: ProtocolCost = ProtocolCost {
    base: 8_400,
    ring_nvlink: 2_800,
    ring_nic: 11_300,
    tree_nvlink: 3_400,
    tree_nic: 11_300,
    nvlink_payload: 1.0,
    nic_payload: 1.0,
};
/// Launch of an in-switch reduction inside one domain, and of one with a tree across domains.
const IN_SWITCH_BASE_NS: u64 = 25_000;
/// See [`IN_SWITCH_BASE_NS`].
const IN_SWITCH_TREE_BASE_NS: u64 = 20_900;

/// What the ports of one rank carry, and how long a step takes. All ranks of a cluster are alike.
#[derive(Debug, Clone, PartialEq)]
pub struct Links {
    pub(crate) nvlink_copy: Bandwidth,
    pub(crate) nvlink_collective: Bandwidth,
    pub(crate) in_switch: Option<Bandwidth>,
    pub(crate) nic: Bandwidth,
    nvlink_latency: SimDuration,
    nic_latency: SimDuration,
    tier_latency: [SimDuration; Level::ALL.len()],
    leaf_oversubscription: f64,
    spine_oversubscription: f64,
    load_balance: f64,
    library: bool,
}

/// Which of the two latency tables of the library an algorithm follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shape {
    Ring,
    Tree,
}

/// Shares of the NIC traffic that cross the leaf tier and the pod tier.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Crossing {
    leaf: f64,
    pod: f64,
}

impl Crossing {
    /// Neighbours on a ring that visits domains by place.
    pub(crate) fn ring(group: &GroupSpan) -> Self {
        let hops = f64::from(group.ranks);
        Self {
            leaf: f64::from(group.ring_hops_over_leaf) / hops,
            pod: f64::from(group.ring_hops_over_pod) / hops,
        }
    }

    /// Every pair alike.
    pub(crate) fn pairs(group: &GroupSpan) -> Self {
        let pairs = group.pairs_remote.max(1) as f64;
        Self {
            leaf: group.pairs_over_leaf as f64 / pairs,
            pod: group.pairs_over_pod as f64 / pairs,
        }
    }

    /// A tree over domains by place: its edges at distance 1, 2, 4, ... are half, a quarter, an
    /// eighth, ... of all, so about twice as many leave a leaf as on a ring.
    pub(crate) fn tree(group: &GroupSpan) -> Self {
        let (ring, pairs) = (Self::ring(group), Self::pairs(group));
        Self {
            leaf: pairs.leaf.min(2.0 * ring.leaf),
            pod: pairs.pod.min(2.0 * ring.pod),
        }
    }

    /// One message between two ranks.
    pub(crate) fn of_level(level: Level) -> Self {
        let crosses = |tier| f64::from(u8::from(level >= tier));
        Self {
            leaf: crosses(Level::Spine),
            pod: crosses(Level::Core),
        }
    }
}

impl Links {
    /// Reads the rates off a cluster.
    pub fn new(cluster: &Cluster, map: &ClusterMap) -> Self {
        let scale_up = &cluster.node.scale_up;
        let nic = &cluster.node.nic;
        Self {
            nvlink_copy: scale_up.bandwidth.scaled(scale_up.efficiency),
            nvlink_collective: scale_up.bandwidth.scaled(scale_up.collective_efficiency),
            in_switch: scale_up
                .in_switch_reduction
                .then(|| scale_up.bandwidth.scaled(scale_up.in_switch_efficiency)),
            nic: map.nic_share().scaled(nic.efficiency),
            nvlink_latency: scale_up.latency,
            nic_latency: nic.latency,
            tier_latency: Level::ALL.map(|level| map.tier_latency(level)),
            leaf_oversubscription: map.leaf_oversubscription(),
            spine_oversubscription: map.spine_oversubscription(),
            load_balance: map.load_balance(),
            library: true,
        }
    }

    /// The same wires driven by an ideal library: no launch cost, no protocol overhead, so that a
    /// step costs one hop and closed forms hold exactly.
    pub fn without_library(mut self) -> Self {
        self.library = false;
        self
    }

    fn cost(&self, protocol: Protocol) -> ProtocolCost {
        if !self.library {
            return ProtocolCost {
                base: 0,
                ring_nvlink: 0,
                ring_nic: 0,
                tree_nvlink: 0,
                tree_nic: 0,
                nvlink_payload: 1.0,
                nic_payload: 1.0,
            };
        }
        match protocol {
            Protocol::Ll => LL,
            Protocol::Ll128 => LL128,
            Protocol::Simple => SIMPLE,
        }
    }

    /// Launch and first synchronisation.
    pub(crate) fn base(&self, algorithm: Algorithm, protocol: Protocol) -> SimDuration {
        let ns = match algorithm {
            _ if !self.library => 0,
            Algorithm::Local => 0,
            Algorithm::InSwitch => IN_SWITCH_BASE_NS,
            Algorithm::InSwitchTree => IN_SWITCH_TREE_BASE_NS,
            _ => self.cost(protocol).base,
        };
        SimDuration::from_nanos(ns)
    }

    /// One step between two ranks of a domain.
    pub fn nvlink_step(&self, protocol: Protocol) -> SimDuration {
        self.nvlink_step_of(Shape::Ring, protocol)
    }

    /// One step between two ranks that meet at `level` of the fabric.
    pub fn nic_step(&self, level: Level, protocol: Protocol) -> SimDuration {
        self.nic_step_of(Shape::Ring, level, protocol)
    }

    pub(crate) fn nvlink_step_of(&self, shape: Shape, protocol: Protocol) -> SimDuration {
        let cost = self.cost(protocol);
        let added = if shape == Shape::Ring {
            cost.ring_nvlink
        } else {
            cost.tree_nvlink
        };
        self.nvlink_latency + SimDuration::from_nanos(added)
    }

    pub(crate) fn nic_step_of(
        &self,
        shape: Shape,
        level: Level,
        protocol: Protocol,
    ) -> SimDuration {
        let cost = self.cost(protocol);
        let added = if shape == Shape::Ring {
            cost.ring_nic
        } else {
            cost.tree_nic
        };
        self.nic_latency + self.tier_latency[level as usize] + SimDuration::from_nanos(added)
    }

    /// The latency of a path plus what the protocol adds to one step.
    pub(crate) fn message_latency(&self, path: &Path, protocol: Protocol) -> SimDuration {
        let cost = self.cost(protocol);
        let added = if path.level <= Level::NvLink {
            cost.ring_nvlink
        } else {
            cost.ring_nic
        };
        path.latency + SimDuration::from_nanos(added)
    }

    /// Payload rate of a rank's NVLink port in collectives that reduce or copy on SMs.
    pub(crate) fn nvlink_rate(&self, protocol: Protocol) -> Bandwidth {
        self.nvlink_collective
            .scaled(self.cost(protocol).nvlink_payload)
    }

    /// Payload rate of a rank's share of the NICs.
    pub(crate) fn nic_rate(&self, protocol: Protocol) -> Bandwidth {
        self.nic.scaled(self.cost(protocol).nic_payload)
    }

    /// How many times longer NIC traffic takes because the tiers above the leaf are narrower than
    /// the NICs, when all ranks of the cluster send alike.
    pub(crate) fn nic_slowdown(&self, crossing: Crossing) -> f64 {
        let leaf = crossing.leaf * self.leaf_oversubscription;
        let pod = crossing.pod * self.leaf_oversubscription * self.spine_oversubscription;
        (leaf.max(pod) / self.load_balance).max(1.0)
    }
}
