//! What communications cost on this cluster, by who takes part.
//!
//! Communicators of one kind fall into few classes of equal span, and pairs of neighbouring stages
//! into few classes of equal path. A transfer has one price for each.

use crate::placement::Placement;
use crate::program::GroupSlot;
use crate::run::Spec;
use crate::setup::Setup;
use rackflow_network::{
    self as network, CollectiveOp, Demand, ExchangeStyle, Links, TokenExchange,
};
use rackflow_topology::{ClusterMap, GroupSpan, Path};
use rackflow_units::{Bandwidth, Bytes};
use rackflow_workload::ExpertDispatcher;
use std::sync::Arc;

/// Most of the memory bandwidth that communication can take. A guard against demands whose wire
/// time is next to nothing; NVLink at 900 GB/s both ways takes a quarter of 8 TB/s.
const MOST_MEMORY_SHARE: f64 = 0.5;

/// Who is how far apart: the classes of communicators and of paths between stages.
#[derive(Debug, Clone)]
pub struct Spans {
    /// Distinct spans of each slot's groups, with the slowest hop of a ring through the members.
    spans: Vec<Vec<(GroupSpan, Path, u32)>>,
    /// Span class of every group, by slot and group index; empty for slots of one rank.
    pub classes: Vec<Vec<u32>>,
    /// Distinct paths between neighbouring stages.
    paths: Vec<(Path, u32)>,
    /// Sets of sections that a group or a path meets; each has links of its own.
    joined: Vec<Vec<u32>>,
    /// Path class of every rank to the same position in the next stage.
    pub next_paths: Vec<u32>,
}

impl Spans {
    /// Those of a setup's ranks over the GPUs of `map`.
    pub(crate) fn new(setup: &Setup, map: &ClusterMap, placement: &Placement) -> Self {
        let mut spans: Vec<Vec<(GroupSpan, Path, u32)>> = vec![Vec::new(); GroupSlot::COUNT];
        let mut joined: Vec<Vec<u32>> = Vec::new();
        let mut classes: Vec<Vec<u32>> = vec![Vec::new(); GroupSlot::COUNT];
        let mut members = Vec::new();
        for slot in GroupSlot::ALL {
            if placement.group_size(slot) == 1 {
                continue;
            }
            let known = &mut spans[slot as usize];
            for group in 0..placement.groups(slot) {
                members.clear();
                placement.members(slot, group, &mut members);
                for member in &mut members {
                    *member = setup.gpu_of(*member);
                }
                let (span, hop) = span_and_hop(map, &members);
                let links = class_of(&mut joined, sections(map, &members));
                classes[slot as usize].push(class_of(known, (span, hop, links)));
            }
        }
        let mut paths = Vec::new();
        let mut next_paths = Vec::new();
        if setup.training.parallelism.pipeline > 1 {
            for rank in 0..placement.ranks() {
                let next = placement.shifted(rank, 1);
                let ends = [setup.gpu_of(rank), setup.gpu_of(next)];
                let links = class_of(&mut joined, sections(map, &ends));
                let path = map.path(ends[0], ends[1]);
                next_paths.push(class_of(&mut paths, (path, links)));
            }
        }
        Self {
            spans,
            classes,
            paths,
            joined,
            next_paths,
        }
    }

    /// The communicators that a rank on the GPU of its number is in, and no others, at a price that does
    /// not grow with the cluster: all of them, or those whose members meet in a layer to share its work.
    pub(crate) fn of_rank(map: &ClusterMap, placement: &Placement, rank: u32, all: bool) -> Self {
        let mut spans: Vec<Vec<(GroupSpan, Path, u32)>> = vec![Vec::new(); GroupSlot::COUNT];
        let mut joined = vec![sections(map, &[rank])];
        let mut members = Vec::new();
        for slot in GroupSlot::ALL {
            if placement.group_size(slot) > 1 && (all || is_inside(slot)) {
                members.clear();
                placement.members(slot, placement.group_of(slot, rank), &mut members);
                let (span, hop) = span_and_hop(map, &members);
                let links = class_of(&mut joined, sections(map, &members));
                spans[slot as usize].push((span, hop, links));
            }
        }
        Self {
            spans,
            classes: Vec::new(),
            paths: Vec::new(),
            joined,
            next_paths: Vec::new(),
        }
    }

    /// Whether communicators of these cost the same as of those.
    pub(crate) fn cost_alike(&self, other: &Self) -> bool {
        self.spans == other.spans && self.joined == other.joined
    }
}

#[derive(Clone)]
pub(crate) struct Prices {
    /// By set of sections, as in [`Spans`].
    links: Vec<Links>,
    pub spans: Arc<Spans>,
    memory_bandwidth: f64,
    host_bandwidth: Bandwidth,
}

/// From this rate on [bytes/s], a link between accelerator and host is one of its own, between chips
/// (NVLink-C2C: 450 GB/s each way). Below it is PCIe, over which the NICs read and write as well.
const CHIP_TO_CHIP: f64 = 150e9;

impl Prices {
    /// Prices on the cluster of `map`; without what its tiers cost where flows run over their links.
    pub fn new(setup: &Setup, map: &ClusterMap, spans: Arc<Spans>, on_fabric: bool) -> Self {
        Self {
            links: spans
                .joined
                .iter()
                .map(|sections| links_among(setup, map, sections, on_fabric))
                .collect(),
            spans,
            memory_bandwidth: setup.cluster.node.accelerator.memory_bandwidth.as_f64(),
            host_bandwidth: setup.cluster.node.accelerator.host_bandwidth,
        }
    }

    /// Prices on links that are known.
    pub fn over(links: &Links, spans: Arc<Spans>, setup: &Setup) -> Self {
        Self {
            links: vec![links.clone()],
            spans,
            memory_bandwidth: setup.cluster.node.accelerator.memory_bandwidth.as_f64(),
            host_bandwidth: setup.cluster.node.accelerator.host_bandwidth,
        }
    }

    /// The same seen from accelerators that read their memory at this rate [bytes/s].
    pub fn with_memory(&self, memory_bandwidth: f64) -> Self {
        Self {
            memory_bandwidth,
            ..self.clone()
        }
    }

    /// What a transfer asks of the links, for each class of its communicator or path.
    pub fn demands(&self, spec: &Spec, slot: Option<GroupSlot>) -> Vec<Demand> {
        if let Spec::HostCopy(bytes) = *spec {
            return vec![self.host_copy(bytes)];
        }
        let Some(slot) = slot else {
            let Spec::Message(bytes) = *spec else {
                unreachable!("{spec:?} has a communicator")
            };
            let price = |(path, links): &(Path, u32)| {
                network::send_recv(bytes, path, &self.links[*links as usize])
            };
            return self.spans.paths.iter().map(price).collect();
        };
        let price = |(span, hop, links): &(GroupSpan, Path, u32)| {
            price_of(spec, span, hop, &self.links[*links as usize])
        };
        self.spans.spans[slot as usize].iter().map(price).collect()
    }

    /// A copy to or from the host. Over PCIe it shares the accelerator's link with its NICs.
    fn host_copy(&self, bytes: Bytes) -> Demand {
        let time = self.host_bandwidth.time_to_send(bytes);
        if self.host_bandwidth.as_f64() >= CHIP_TO_CHIP {
            return Demand {
                latency: time,
                ..Demand::NONE
            };
        }
        Demand {
            nic: time,
            ..Demand::NONE
        }
    }

    /// Fraction of the memory bandwidth that a copy to or from the host takes: each byte is read or
    /// written once.
    pub fn host_copy_memory_share(&self) -> f64 {
        (self.host_bandwidth.as_f64() / self.memory_bandwidth).min(MOST_MEMORY_SHARE)
    }

    /// Fraction of the memory bandwidth that a transfer takes while it runs: data comes from memory
    /// and goes to memory, a read and a write of each byte.
    pub fn memory_share(&self, demands: &[Demand]) -> f64 {
        let share = |demand: &Demand| {
            let bytes = demand.wire_bytes_nvlink + demand.wire_bytes_nic;
            let seconds = demand.duration().as_secs_f64();
            if seconds > 0.0 {
                2.0 * bytes.as_f64() / seconds / self.memory_bandwidth
            } else {
                0.0
            }
        };
        demands
            .iter()
            .map(share)
            .fold(0.0, f64::max)
            .min(MOST_MEMORY_SHARE)
    }
}

/// The sections of the cluster that these GPUs sit in.
pub(crate) fn sections(map: &ClusterMap, gpus: &[u32]) -> Vec<u32> {
    if map.sections().len() == 1 {
        return vec![0];
    }
    let mut found: Vec<u32> = gpus.iter().map(|gpu| map.section_of(*gpu) as u32).collect();
    found.sort_unstable();
    found.dedup();
    found
}

/// What the links of these sections of a cluster cost; see [`links`].
pub(crate) fn links_among(
    setup: &Setup,
    map: &ClusterMap,
    sections: &[u32],
    on_fabric: bool,
) -> Links {
    if map.sections().len() == 1 {
        return links(setup, map, on_fabric);
    }
    let links = Links::among(setup.host(), map, sections);
    if on_fabric {
        links.without_tiers()
    } else {
        links
    }
}

/// What the links of the first section of a cluster cost; see [`links`].
pub(crate) fn first_links(setup: &Setup, map: &ClusterMap, on_fabric: bool) -> Links {
    links_among(setup, map, &[0], on_fabric)
}

/// What the links of a cluster cost; without what its tiers cost where flows run over their links.
pub(crate) fn links(setup: &Setup, map: &ClusterMap, on_fabric: bool) -> Links {
    let links = Links::new(setup.host(), map);
    if on_fabric {
        links.without_tiers()
    } else {
        links
    }
}

/// What a collective asks of the links of a group that spans `span`, a ring through whose members has
/// `hop` as its slowest hop.
pub(crate) fn price_of(spec: &Spec, span: &GroupSpan, hop: &Path, links: &Links) -> Demand {
    match *spec {
        Spec::Collective(op, bytes) | Spec::OnSmsLeft(op, bytes) => {
            network::collective(op, bytes, span, links)
        }
        Spec::OwnersInTurn(bytes, owners) => {
            let one = network::collective(CollectiveOp::Broadcast, bytes, span, links);
            Demand {
                latency: one.latency * owners,
                nvlink: one.nvlink * owners,
                nic: one.nic * owners,
                wire_bytes_nvlink: one.wire_bytes_nvlink * owners,
                wire_bytes_nic: one.wire_bytes_nic * owners,
                ..one
            }
        }
        Spec::RingStep(bytes) => network::send_recv(bytes, hop, links),
        Spec::Exchange {
            tokens,
            bytes_per_token,
            top_k,
            experts,
            dispatcher,
            limit,
            way,
            sms,
        } => {
            let style = if dispatcher.relays() {
                // Groups of experts are laid out over the domains in order.
                let max_domains = limit.map(|limit| {
                    (u64::from(span.domains) * limit.chosen).div_ceil(limit.groups) as u32
                });
                ExchangeStyle::Relayed {
                    max_domains,
                    hybrid: dispatcher == ExpertDispatcher::HybridEp,
                }
            } else {
                ExchangeStyle::AllToAll
            };
            let exchange = TokenExchange {
                tokens,
                bytes_per_token,
                top_k,
                experts,
                style,
                way,
                sms,
            };
            network::expert_exchange(exchange, span, links)
        }
        Spec::Message(_) | Spec::HostCopy(_) => unreachable!("{spec:?} has no communicator"),
    }
}

/// Whether the members of a communicator meet inside a layer.
fn is_inside(slot: GroupSlot) -> bool {
    matches!(
        slot,
        GroupSlot::Tensor | GroupSlot::Context | GroupSlot::Expert | GroupSlot::ExpertTensor
    )
}

/// What a group spans. A ring goes through all members in order; its slowest hop sets its pace.
pub(crate) fn span_and_hop(map: &ClusterMap, members: &[u32]) -> (GroupSpan, Path) {
    let hop = (0..members.len())
        .map(|i| map.path(members[i], members[(i + 1) % members.len()]))
        .max_by_key(|path| (path.level, path.latency))
        .expect("a group has members");
    (map.span(members), hop)
}

/// Position of `item` among the known ones; a new one is added.
fn class_of<T: PartialEq>(known: &mut Vec<T>, item: T) -> u32 {
    let class = known.iter().position(|k| *k == item).unwrap_or_else(|| {
        known.push(item);
        known.len() - 1
    });
    class as u32
}
