//! Nodes, NVLink domains and racks: what stands in the hall.

use crate::accelerator::Accelerator;
use crate::fabric::Fabric;
use crate::wiring::Wiring;
use rackflow_units::{Bandwidth, Bytes, Power, SimDuration};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use std::collections::BTreeMap;

/// The scale-up network inside one NVLink domain (or xGMI mesh, or ICI slice).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ScaleUp {
    /// GPUs that reach each other through it.
    pub domain: u32,
    /// Bandwidth of one GPU into the domain, one direction, all its links together.
    pub bandwidth: Bandwidth,
    /// How the GPUs are wired: `switched`, `mesh`, a `torus`, or `bridged` over PCIe.
    #[serde(default)]
    pub wiring: Wiring,
    /// Fraction of `bandwidth` that payload reaches in large transfers (headers, flow control).
    pub efficiency: f64,
    /// Fraction of `bandwidth` that a ring collective's bus bandwidth reaches, where the reduction
    /// or the copy engine costs more than the wire.
    pub collective_efficiency: f64,
    /// Time of one hop between two GPUs of the domain, one small message.
    pub latency: SimDuration,
    /// Fixed cost of one collective on this node, whatever its size: the kernel's launch and the
    /// first meeting of the ranks.
    #[serde(default = "default_collective_base")]
    pub collective_base: SimDuration,
    /// Fraction of `bandwidth` that kernels reach which dispatch tokens to experts and combine
    /// them; `efficiency` where it is left out.
    #[serde(default)]
    pub expert_efficiency: Option<f64>,
    /// The same for HybridEP's kernels, which copy by the tensor memory accelerator;
    /// `expert_efficiency` where it is left out.
    #[serde(default)]
    pub hybrid_expert_efficiency: Option<f64>,
    /// The switches can reduce in flight (NVLink SHARP): an all-reduce crosses each link once.
    #[serde(default)]
    pub in_switch_reduction: bool,
    /// Fraction of `bandwidth` that in-switch reduction keeps busy; read only where the switches
    /// reduce.
    #[serde(default = "default_in_switch_efficiency")]
    pub in_switch_efficiency: f64,
    /// Time for which an in-switch reduction of many bytes fills its pipeline, for each member of
    /// its domain: a round goes over the slices of all.
    #[serde(default = "default_in_switch_fill")]
    pub in_switch_fill: SimDuration,
    /// Time in which a rank hands on what it received in a ring of large chunks (NCCL's Simple), beyond
    /// `latency`. A chunk comes in two slices, so that a step hides half of its own transfer behind
    /// it. Where it is left out, a ring fills its pipeline once.
    #[serde(default)]
    pub hand_on: Option<SimDuration>,
    /// Part of a step for which the links of a ring stand still between two rounds of chunks: the last
    /// step of a round only receives. A ring of few steps is slower for it.
    #[serde(default)]
    pub ring_turn: f64,
    /// Time in which a rank copies its own part of an all-to-all, over that of sending a part: the
    /// same SMs do both.
    #[serde(default)]
    pub own_part: f64,
}

/// Between what an eight-GPU Hopper (0.7) and a Blackwell domain (0.5) measure.
fn default_in_switch_efficiency() -> f64 {
    0.6
}

/// What eight Hopper GPUs measure.
fn default_in_switch_fill() -> SimDuration {
    SimDuration::from_nanos(3_800)
}

/// Base latency of a ring in NCCL's tuner.
fn default_collective_base() -> SimDuration {
    SimDuration::from_nanos(6_600)
}

/// The network interfaces of one node.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Nic {
    /// Interfaces per node, shared evenly by its GPUs.
    pub count: u32,
    /// Line rate of one interface, one direction.
    pub rate: Bandwidth,
    /// Fraction of `rate` that payload reaches in large transfers.
    pub efficiency: f64,
    /// Fraction of `rate` that kernels reach which relay tokens to experts in other domains (DeepEP,
    /// HybridEP); `efficiency` where it is left out.
    #[serde(default)]
    pub expert_efficiency: Option<f64>,
    /// One end to the other over one switch, one small message, GPU memory to GPU memory.
    pub latency: SimDuration,
}

/// What stands in one rack.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Rack {
    /// GPUs in one rack: 72 of an NVL72, or as many 8-GPU nodes as its power allows.
    pub gpus: u32,
    /// Power of one full rack under load.
    pub power: Power,
}

/// The unit that a cluster repeats: a server, or one NVL72 rack.
#[derive(Debug, Clone, PartialEq)]
pub struct Node {
    /// Catalogue name, such as `dgx-h100`.
    pub name: String,
    /// What computes.
    pub accelerator: Accelerator,
    /// Accelerators per node.
    pub gpus: u32,
    /// Accelerators whose processes share a host: one operating system, one driver.
    pub gpus_per_host: u32,
    /// The network inside.
    pub scale_up: ScaleUp,
    /// The interfaces to the outside.
    pub nic: Nic,
    /// The rack it stands in.
    pub rack: Rack,
    /// Time of the host's processors for a launch over that of the x86 servers on which the host
    /// times of software stacks are measured.
    pub host_slowdown: f64,
    /// Sources of the values, by field name.
    pub sources: BTreeMap<String, String>,
}

/// Nodes on one fabric: all alike, or of several kinds side by side.
#[derive(Debug, Clone, PartialEq)]
pub struct Cluster {
    /// What is repeated; of several kinds the first.
    pub node: Node,
    /// Accelerators in all; a multiple of what one node holds, or less than one node.
    pub gpus: u32,
    /// What connects the nodes.
    pub fabric: Fabric,
    /// The parts in the order of GPUs, where there are several kinds; else none.
    pub parts: Vec<Part>,
}

/// Nodes of one kind, side by side.
#[derive(Debug, Clone, PartialEq)]
pub struct Part {
    /// What is repeated.
    pub node: Node,
    /// Accelerators of this part.
    pub gpus: u32,
}

impl Cluster {
    /// Parts on one fabric, in the order of GPUs. Neighbours that are alike are one part, and one part
    /// is a cluster of one kind.
    ///
    /// # Panics
    /// When there is no part.
    pub fn of_parts(parts: Vec<Part>, fabric: Fabric) -> Self {
        let mut merged: Vec<Part> = Vec::new();
        for part in parts {
            match merged.last_mut() {
                Some(last) if last.node == part.node => {
                    last.gpus = last.gpus.saturating_add(part.gpus);
                }
                _ => merged.push(part),
            }
        }
        let first = merged.first().expect("a cluster has a part");
        Self {
            node: first.node.clone(),
            gpus: merged
                .iter()
                .fold(0, |sum, part| sum.saturating_add(part.gpus)),
            fabric,
            parts: if merged.len() > 1 { merged } else { Vec::new() },
        }
    }

    /// Whether there are several kinds.
    pub fn is_mixed(&self) -> bool {
        !self.parts.is_empty()
    }

    /// A node of each kind that computes differently, in the order of their first GPUs, and how many
    /// accelerators there are of it.
    pub fn kinds(&self) -> Vec<Part> {
        let mut kinds: Vec<Part> = Vec::new();
        for part in self.runs().iter() {
            match kinds
                .iter_mut()
                .find(|kind| kind.node.computes_as(&part.node))
            {
                Some(kind) => kind.gpus += part.gpus,
                None => kinds.push(part.clone()),
            }
        }
        kinds
    }

    /// Nodes of one kind side by side, in the order of GPUs: one part where all are alike.
    fn runs(&self) -> Cow<'_, [Part]> {
        if self.is_mixed() {
            return Cow::Borrowed(&self.parts);
        }
        Cow::Owned(vec![Part {
            node: self.node.clone(),
            gpus: self.gpus,
        }])
    }

    /// The host of every GPU, counted over the cluster. No host spans two nodes; where hosts do not divide a
    /// node, its last one is smaller.
    pub fn host_of_gpus(&self) -> Vec<u32> {
        let mut of_gpus = Vec::with_capacity(self.gpus as usize);
        let mut hosts = 0;
        for part in self.runs().iter() {
            let in_node = part.node.gpus.max(1);
            let in_host = part.node.gpus_per_host.max(1);
            of_gpus.extend((0..part.gpus).map(|gpu| {
                if (gpu % in_node).is_multiple_of(in_host) {
                    hosts += 1;
                }
                hosts - 1
            }));
        }
        of_gpus
    }

    /// Position in [`Cluster::kinds`] of every GPU; empty where there is one kind.
    pub fn kind_of_gpus(&self) -> Vec<u32> {
        let kinds = self.kinds();
        if kinds.len() == 1 {
            return Vec::new();
        }
        let mut of_gpus = Vec::with_capacity(self.gpus as usize);
        for part in &self.parts {
            let alike = |kind: &Part| kind.node.computes_as(&part.node);
            let kind = kinds.iter().position(alike).unwrap_or(0) as u32;
            of_gpus.resize(of_gpus.len() + part.gpus as usize, kind);
        }
        of_gpus
    }

    /// The node of every part.
    pub fn nodes(&self) -> impl Iterator<Item = &Node> {
        std::iter::once(&self.node).chain(self.parts.iter().map(|part| &part.node))
    }

    /// Changes the nodes of every kind.
    pub fn for_each_node(&mut self, change: impl Fn(&mut Node)) {
        change(&mut self.node);
        self.parts
            .iter_mut()
            .for_each(|part| change(&mut part.node));
    }

    /// The least memory of any accelerator.
    pub fn least_memory(&self) -> Bytes {
        self.nodes()
            .map(|node| node.accelerator.capacity())
            .min()
            .unwrap_or_default()
    }
}

impl Node {
    /// Whether kernels and launches take as long on both.
    fn computes_as(&self, other: &Self) -> bool {
        self.accelerator == other.accelerator && self.host_slowdown == other.host_slowdown
    }

    /// Whether both look alike to the network.
    pub(crate) fn connects_as(&self, other: &Self) -> bool {
        self.gpus == other.gpus
            && self.scale_up == other.scale_up
            && self.nic == other.nic
            && self.rack.gpus == other.rack.gpus
    }
}
