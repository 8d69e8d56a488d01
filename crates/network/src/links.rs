//! Rates and latencies of one rank's ports, and the constants of the library that drives them.

use crate::collective::in_part;
use crate::demand::{Algorithm, Protocol, WHOLE};
use crate::sms::{self, SmRates};
use rackflow_topology::{Cluster, ClusterMap, GroupSpan, Level, Path, Wiring};
use rackflow_units::{Bandwidth, Bytes, SimDuration};

/// Constants of the library per protocol. Times in nanoseconds.
///
/// The catalogue's `scale_up` and `nic` latencies stand for LL, the fastest; what the other
/// protocols add is listed here. NIC columns are those of NCCL's own tuner (NVIDIA/nccl
/// `src/graph/tuning.cc`, `hwLatencies`); NVLink columns are fitted to nccl-tests tables of A100,
/// H100, B200 and GB200 (see `docs/network.md`), because current releases are far below the
/// tuner's.
#[derive(Debug, Clone, Copy, PartialEq)]
struct ProtocolCost {
    /// Added to the node's fixed cost of a collective.
    base: u64,
    /// Added to every NVLink step.
    nvlink_step: u64,
    /// Added to every NIC step of a ring.
    ring_nic: u64,
    /// Added to every NIC step of a tree.
    tree_nic: u64,
    /// Payload per wire byte over NVLink, and what the SMs can move in this protocol.
    nvlink_payload: f64,
    /// Payload per wire byte over the NIC.
    nic_payload: f64,
    /// Data is handed on over NVLink in whole chunks, so that a pipeline takes time to fill.
    chunked: bool,
}

const IDEAL: ProtocolCost = ProtocolCost {
    base: 0,
    nvlink_step: 0,
    ring_nic: 0,
    tree_nic: 0,
    nvlink_payload: 1.0,
    nic_payload: 1.0,
    chunked: false,
};
const LL: ProtocolCost = ProtocolCost {
    tree_nic: 2_300,
    nvlink_payload: 0.4,
    nic_payload: 0.25,
    ..IDEAL
};
/// Half of every store is its flag, and over PCIe nothing else is in the way.
const LL_OVER_PCIE: ProtocolCost = ProtocolCost {
    nvlink_payload: 0.5,
    ..LL
};
const LL128: ProtocolCost = ProtocolCost {
    base: 5_000,
    nvlink_step: 10,
    ring_nic: 1_300,
    tree_nic: 5_800,
    nvlink_payload: 0.54,
    nic_payload: 0.6,
    chunked: false,
};
const SIMPLE: ProtocolCost = ProtocolCost {
    base: 8_300,
    nvlink_step: 200,
    ring_nic: 11_300,
    tree_nic: 11_300,
    chunked: true,
    ..IDEAL
};
/// Fixed cost of an in-switch reduction inside one domain, beyond the node's own.
const IN_SWITCH_BASE_NS: u64 = 36_000;
/// The same with a tree across domains, or with the reduction going on in the fabric.
const IN_SWITCH_TREE_BASE_NS: u64 = 50_000;
/// Rate of an in-switch reduction that feeds NICs, over that of one inside a domain.
const IN_SWITCH_TREE_PAYLOAD: f64 = 0.85;
/// Starting one more peer of an all-to-all.
const PEER_NS: u64 = 370;
/// A pipeline over scale-up links fills for this part of the data, and no longer than this [ns].
const NVLINK_FILL: (f64, u64) = (0.32, 30_000);
/// Slices of this size and more go around a ring in Simple, whatever would take least: on two, four and
/// eight B200 and on four GB200 all-reduce, all-gather and reduce-scatter slow down there at once
/// (AIConfigurator's tables of NCCL 2.29). Hopper and Ampere are past LL128 by then.
const LOW_LATENCY_SLICE: Bytes = Bytes::new(2 << 20);
/// An in-switch reduction fills for this part of the data, and no longer than the node says.
const IN_SWITCH_FILL: f64 = 0.6;
/// A pipeline over NICs fills for this part of the data, up to so many bytes, at each step.
const NIC_FILL: (f64, f64) = (0.125, 1.25e6);
/// The same under an in-switch reduction, whose chunks are larger: each step of a tree of 4 to 32 nodes of
/// H100 adds 5 us at 2 MiB, 20 us at 8 MiB and no more from 16 MiB on (NVIDIA GTC 2024 S62129).
const IN_SWITCH_NIC_FILL: (f64, f64) = (0.5, 1.25e6);
/// What telling other domains the token counts adds to an exchange, each time that their number doubles:
/// one token over 2, 4 and 8 nodes of H100 takes 31, 63 and 105 us longer than inside one (AIConfigurator,
/// DeepEP's normal kernels).
const EXCHANGE_ACROSS_NS: f64 = 32_000.0;
/// What combining adds for each byte of a token: a warp adds up one token, and the last one comes when
/// all else is done. Floors of dispatch and combine lie 6, 12, 18 and 22 us apart with tokens of 4, 8, 12
/// and 14 KiB, on one node of H100 and on four, and alike on B200 (the same tables).
const COMBINE_NS_PER_BYTE: f64 = 1.5;

/// Shortest time between two collectives that are launched from the host, one process per GPU and
/// outside CUDA graphs: small sizes take 42 us on A100 and H100 (Azure/AI-benchmarking-guide),
/// whatever their links.
pub const HOST_LAUNCH: SimDuration = SimDuration::from_micros(42);

/// What a call takes longer that PyTorch starts on an idle GPU and puts between two events: the first is
/// over before the kernel is there. On eight A100, H200 and B200 alike small sizes take 20 to 25 us more
/// than ahead of the GPU (stas00/ml-engineering beside AIConfigurator).
pub const TIMED_LAUNCH: SimDuration = SimDuration::from_micros(22);

/// What the ports of one rank carry, and how long a step takes. All ranks of a cluster are alike.
#[derive(Debug, Clone, PartialEq)]
pub struct Links {
    nvlink_line: Bandwidth,
    nvlink_copy: Bandwidth,
    nvlink_collective: Bandwidth,
    in_switch: Option<Bandwidth>,
    in_switch_fill: SimDuration,
    hand_on: Option<SimDuration>,
    ring_turn: f64,
    own_part: f64,
    /// Over PCIe and its host bridges.
    bridged: bool,
    pub(crate) nic: Bandwidth,
    /// The same under kernels that relay tokens to experts in other domains.
    nic_expert: Bandwidth,
    pub(crate) expert: Bandwidth,
    pub(crate) hybrid_expert: Bandwidth,
    collective_base: SimDuration,
    nvlink_latency: SimDuration,
    /// One link of a rank's scale-up network over all of them, in millionths.
    pub(crate) one_link: u32,
    /// Whether the switches of the fabric reduce.
    pub(crate) in_network: bool,
    nic_latency: SimDuration,
    tier_latency: [SimDuration; Level::ALL.len()],
    leaf_oversubscription: f64,
    spine_oversubscription: f64,
    load_balance: f64,
    library: bool,
    /// What SMs of these GPUs move.
    pub(crate) sms: SmRates,
    /// SMs that a collective holds, one for each channel; `None`: as many as it needs.
    channels: Option<u32>,
}

/// Which of the two NIC latency tables of the library an algorithm follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// Neighbours only.
    Ring,
    /// Parents and children.
    Tree,
}

/// Shares of the NIC traffic that cross the leaf tier and the pod tier.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Crossing {
    leaf: f64,
    pod: f64,
}

impl Crossing {
    /// The shares in millionths: over the leaf, over the pod.
    pub(crate) fn millionths(self) -> [u32; 2] {
        [self.leaf, self.pod].map(|share| (share * 1e6).round() as u32)
    }

    /// Neighbours on a ring that visits domains by place.
    pub(crate) fn ring(group: &GroupSpan) -> Self {
        let hops = f64::from(group.ranks);
        Self {
            leaf: f64::from(group.ring_hops_over_leaf) / hops,
            pod: f64::from(group.ring_hops_over_pod) / hops,
        }
    }

    /// Every pair alike, by the receiver's rail where there are rails.
    pub(crate) fn pairs(group: &GroupSpan) -> Self {
        let pairs = group.pairs_remote.max(1) as f64;
        Self {
            leaf: group.pairs_over_leaf as f64 / pairs,
            pod: group.pairs_over_pod as f64 / pairs,
        }
    }

    /// Every pair alike, each over its own NIC.
    pub(crate) fn pairs_by_own_nic(group: &GroupSpan) -> Self {
        Self {
            leaf: group.pairs_over_leaf_by_own_nic as f64 / group.pairs_remote.max(1) as f64,
            ..Self::pairs(group)
        }
    }

    /// What meets in a switch goes on as one stream: one for each leaf and one for each pod of the
    /// members of a column, which are one per domain.
    pub(crate) fn in_network(group: &GroupSpan) -> Self {
        let share = |switches: u32| match switches {
            0 | 1 => 0.0,
            _ => (f64::from(switches) / f64::from(group.domains)).min(1.0),
        };
        Self {
            leaf: share(group.leaves),
            pod: share(group.pods),
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
        let expert = scale_up.expert_efficiency.unwrap_or(scale_up.efficiency);
        let hybrid_expert = scale_up.hybrid_expert_efficiency.unwrap_or(expert);
        Self {
            nvlink_line: scale_up.bandwidth,
            nvlink_copy: scale_up.bandwidth.scaled(scale_up.efficiency),
            nvlink_collective: scale_up.bandwidth.scaled(scale_up.collective_efficiency),
            in_switch: scale_up
                .in_switch_reduction
                .then(|| scale_up.bandwidth.scaled(scale_up.in_switch_efficiency)),
            in_switch_fill: scale_up.in_switch_fill,
            hand_on: scale_up.hand_on,
            ring_turn: scale_up.ring_turn,
            own_part: scale_up.own_part,
            bridged: matches!(scale_up.wiring, Wiring::Bridged(_)),
            nic: map.nic_share().scaled(nic.efficiency),
            nic_expert: map
                .nic_share()
                .scaled(nic.expert_efficiency.unwrap_or(nic.efficiency)),
            expert: scale_up.bandwidth.scaled(expert),
            hybrid_expert: scale_up.bandwidth.scaled(hybrid_expert),
            collective_base: scale_up.collective_base,
            nvlink_latency: scale_up.latency,
            one_link: one_link(map.scale_up_link(), scale_up.bandwidth),
            in_network: map.reduces_in_network(),
            nic_latency: nic.latency,
            tier_latency: Level::ALL.map(|level| map.tier_latency(level)),
            leaf_oversubscription: map.leaf_oversubscription(),
            spine_oversubscription: map.spine_oversubscription(),
            load_balance: map.load_balance(),
            library: true,
            sms: SmRates::of(cluster.node.accelerator.generation()),
            channels: None,
        }
    }

    /// The links of a group whose members sit in these sections of the cluster: what is slowest there
    /// sets the pace of all.
    ///
    /// # Panics
    /// When there is no section, or none of a number.
    pub fn among(cluster: &Cluster, map: &ClusterMap, sections: &[u32]) -> Self {
        let of_section = |section: &u32| {
            let section = &map.sections()[*section as usize];
            let mut alone = cluster.clone();
            alone.node.scale_up = section.scale_up().clone();
            alone.node.nic = section.nic().clone();
            Self {
                nic: section.nic_share().scaled(section.nic().efficiency),
                one_link: one_link(section.scale_up_link(), section.scale_up().bandwidth),
                ..Self::new(&alone, map)
            }
        };
        let all = sections.iter().map(of_section);
        all.reduce(Self::slower)
            .expect("a group sits in some section")
    }

    fn slower(self, other: Self) -> Self {
        let less = |a: Bandwidth, b: Bandwidth| if b < a { b } else { a };
        Self {
            nvlink_line: less(self.nvlink_line, other.nvlink_line),
            nvlink_copy: less(self.nvlink_copy, other.nvlink_copy),
            nvlink_collective: less(self.nvlink_collective, other.nvlink_collective),
            in_switch: self.in_switch.zip(other.in_switch).map(|(a, b)| less(a, b)),
            in_switch_fill: self.in_switch_fill.max(other.in_switch_fill),
            hand_on: self.hand_on.max(other.hand_on),
            ring_turn: self.ring_turn.max(other.ring_turn),
            own_part: self.own_part.max(other.own_part),
            bridged: self.bridged || other.bridged,
            nic: less(self.nic, other.nic),
            expert: less(self.expert, other.expert),
            hybrid_expert: less(self.hybrid_expert, other.hybrid_expert),
            one_link: self.one_link.min(other.one_link),
            collective_base: self.collective_base.max(other.collective_base),
            nvlink_latency: self.nvlink_latency.max(other.nvlink_latency),
            nic_latency: self.nic_latency.max(other.nic_latency),
            ..self
        }
    }

    /// The same wires driven by an ideal library: no launch cost, no protocol overhead, so that a
    /// step costs one hop and closed forms hold exactly.
    pub fn without_library(mut self) -> Self {
        self.library = false;
        self
    }

    /// The same for collectives that hold so many SMs, one for each channel. An ideal library needs none.
    #[must_use]
    pub fn with_channels(mut self, channels: Option<u32>) -> Self {
        self.channels = channels;
        self
    }

    /// The least time in which the SMs of a collective move `bytes` of bus traffic.
    pub(crate) fn on_channels(&self, bytes: Bytes, switches_reduce: bool) -> SimDuration {
        let rate = if switches_reduce {
            self.sms.in_switch
        } else {
            self.sms.channel
        };
        let held = self.channels.filter(|_| self.library);
        sms::channels(bytes, rate, held)
    }

    /// What combining tokens of this size adds to the base of dispatching them.
    pub(crate) fn combine_base(&self, token: Bytes) -> SimDuration {
        self.overhead((token.as_f64() * COMBINE_NS_PER_BYTE) as u64)
    }

    /// Whether a library drives them, and not an ideal one.
    pub(crate) fn is_library(&self) -> bool {
        self.library
    }

    /// The same links on a fabric whose tiers are never in the way: for whoever runs flows over the
    /// links of those tiers and must not slow them twice.
    pub fn without_tiers(mut self) -> Self {
        self.leaf_oversubscription = 1.0;
        self.spine_oversubscription = 1.0;
        self.load_balance = 1.0;
        self
    }

    /// The same without what tiers above the leaf cost when all ranks send alike: for a network
    /// in which flows meet at those tiers and slow each other there.
    #[must_use]
    pub fn without_oversubscription(mut self) -> Self {
        self.leaf_oversubscription = 1.0;
        self.spine_oversubscription = 1.0;
        self
    }

    fn cost(&self, protocol: Protocol) -> ProtocolCost {
        match protocol {
            _ if !self.library => IDEAL,
            Protocol::Ll if self.bridged => LL_OVER_PCIE,
            Protocol::Ll => LL,
            Protocol::Ll128 => LL128,
            Protocol::Simple => SIMPLE,
        }
    }

    fn overhead(&self, ns: u64) -> SimDuration {
        if self.library {
            SimDuration::from_nanos(ns)
        } else {
            SimDuration::ZERO
        }
    }

    /// Fixed cost of a collective: launch and first meeting of the ranks.
    pub fn base(&self, algorithm: Algorithm, protocol: Protocol) -> SimDuration {
        let ns = match algorithm {
            Algorithm::Local => return SimDuration::ZERO,
            Algorithm::InSwitch => IN_SWITCH_BASE_NS,
            Algorithm::InSwitchTree | Algorithm::InNetwork => IN_SWITCH_TREE_BASE_NS,
            Algorithm::Relayed => self.sms.exchange_base,
            Algorithm::Ring
            | Algorithm::Hierarchical
            | Algorithm::RecursiveHalving
            | Algorithm::Tree
            | Algorithm::Direct
            | Algorithm::Pxn => self.cost(protocol).base,
        };
        self.overhead(ns)
            + if self.library {
                self.collective_base
            } else {
                SimDuration::ZERO
            }
    }

    /// What an exchange of tokens over so many domains adds to its base.
    pub(crate) fn exchange_across(&self, domains: u32) -> SimDuration {
        self.overhead((EXCHANGE_ACROSS_NS * f64::from(domains).log2()) as u64)
    }

    /// Starting the messages to `peers` peers.
    pub(crate) fn peers(&self, peers: u64) -> SimDuration {
        self.overhead(PEER_NS * peers)
    }

    /// One step between two ranks of a domain.
    pub fn nvlink_step(&self, protocol: Protocol) -> SimDuration {
        self.nvlink_latency + self.nvlink_added(protocol)
    }

    /// What the protocol adds to the latency of the wires at such a step.
    pub(crate) fn nvlink_added(&self, protocol: Protocol) -> SimDuration {
        SimDuration::from_nanos(self.cost(protocol).nvlink_step)
    }

    /// One step between two ranks that meet at `level` of the fabric.
    pub fn nic_step(&self, level: Level, shape: Shape, protocol: Protocol) -> SimDuration {
        self.nic_latency + self.tier_latency[level as usize] + self.nic_added(shape, protocol)
    }

    /// What the protocol adds to the latency of the wires at such a step.
    pub(crate) fn nic_added(&self, shape: Shape, protocol: Protocol) -> SimDuration {
        let cost = self.cost(protocol);
        SimDuration::from_nanos(if shape == Shape::Ring {
            cost.ring_nic
        } else {
            cost.tree_nic
        })
    }

    /// The latency of a path plus what the protocol adds to one step.
    pub(crate) fn message_latency(&self, path: &Path, protocol: Protocol) -> SimDuration {
        let added = if path.level <= Level::NvLink {
            self.nvlink_added(protocol)
        } else {
            self.nic_added(Shape::Ring, protocol)
        };
        path.latency + added
    }

    /// Time for which a pipeline over NVLink fills before its port is busy.
    pub(crate) fn nvlink_fill(
        &self,
        bytes: Bytes,
        rate: Bandwidth,
        protocol: Protocol,
    ) -> SimDuration {
        if self.cost(protocol).chunked {
            let (part, most) = NVLINK_FILL;
            part_of_time(part, bytes, rate).min(SimDuration::from_nanos(most))
        } else {
            SimDuration::ZERO
        }
    }

    /// What a ring of so many steps inside the domain waits for beyond its links. Where ranks hand chunks
    /// on in two slices, a step takes `max(body, body / 2 + hand-on)` of its part of the body: half of
    /// the transfer hides behind the hand-on. Else the pipeline fills once.
    pub(crate) fn ring_fill(
        &self,
        bytes: Bytes,
        rate: Bandwidth,
        (steps, body): (u64, SimDuration),
        protocol: Protocol,
    ) -> SimDuration {
        match self.hand_on {
            Some(hand_on) if self.cost(protocol).chunked => {
                let hidden = SimDuration::from_picos(body.as_picos() / 2);
                (hand_on * steps).saturating_sub(hidden)
            }
            _ => self.nvlink_fill(bytes, rate, protocol),
        }
    }

    /// Time for which the links of a ring stand still between its rounds, where all of them take `body`
    /// and `steps` steps.
    pub(crate) fn ring_turns(
        &self,
        body: SimDuration,
        steps: u64,
        protocol: Protocol,
    ) -> SimDuration {
        self.standing_still(self.ring_turn, body, steps, protocol)
    }

    /// Time in which a rank copies its own part of an all-to-all, where sending those of all `peers`
    /// takes `body`.
    pub(crate) fn own_part(
        &self,
        body: SimDuration,
        peers: u64,
        protocol: Protocol,
    ) -> SimDuration {
        self.standing_still(self.own_part, body, peers, protocol)
    }

    fn standing_still(
        &self,
        part: f64,
        body: SimDuration,
        of: u64,
        protocol: Protocol,
    ) -> SimDuration {
        if !self.cost(protocol).chunked {
            return SimDuration::ZERO;
        }
        SimDuration::from_picos((body.as_picos() as f64 * part / of.max(1) as f64) as u64)
    }

    /// Whether the library's tuner takes the protocol at all: LL128 needs 128 bytes that arrive as one,
    /// which PCIe does not promise (NVIDIA/nccl `src/graph/tuning.cc`).
    pub(crate) fn takes(&self, protocol: Protocol) -> bool {
        !self.library || !self.bridged || protocol != Protocol::Ll128
    }

    /// Whether it takes the protocol for slices of so many bytes that go around a ring inside a domain.
    pub(crate) fn takes_for_slices(&self, protocol: Protocol, slice: Bytes) -> bool {
        protocol == Protocol::Simple || !self.library || slice < LOW_LATENCY_SLICE
    }

    /// The same of an in-switch reduction over `members` of a domain.
    pub(crate) fn in_switch_fill(
        &self,
        bytes: Bytes,
        rate: Bandwidth,
        members: u32,
    ) -> SimDuration {
        if self.library {
            let most = self.in_switch_fill * u64::from(members);
            part_of_time(IN_SWITCH_FILL, bytes, rate).min(most)
        } else {
            SimDuration::ZERO
        }
    }

    /// The same over the NICs, where every protocol hands on whole chunks, for each of the steps
    /// that the first chunk takes.
    pub(crate) fn nic_fill(&self, bytes: Bytes, rate: Bandwidth) -> SimDuration {
        self.nic_fill_of(NIC_FILL, bytes, rate)
    }

    /// The same between domains whose switches reduce.
    pub(crate) fn in_switch_nic_fill(&self, bytes: Bytes, rate: Bandwidth) -> SimDuration {
        self.nic_fill_of(IN_SWITCH_NIC_FILL, bytes, rate)
    }

    fn nic_fill_of(&self, part: (f64, f64), bytes: Bytes, rate: Bandwidth) -> SimDuration {
        if self.library {
            fill(part, bytes, rate)
        } else {
            SimDuration::ZERO
        }
    }

    /// Payload rate of a rank's NVLink port in collectives that reduce on SMs.
    pub fn nvlink_rate(&self, protocol: Protocol) -> Bandwidth {
        self.nvlink_collective
            .scaled(self.cost(protocol).nvlink_payload)
    }

    /// Payload rate of a rank's NVLink port where nothing is reduced.
    pub fn copy_rate(&self, protocol: Protocol) -> Bandwidth {
        self.nvlink_copy.scaled(self.cost(protocol).nvlink_payload)
    }

    /// The part of a rank's scale-up bandwidth that a path inside a domain has: all of it through
    /// switches, one link of a mesh or a torus.
    pub(crate) fn part_of(&self, path: &Path) -> f64 {
        (path.bandwidth.as_f64() / self.nvlink_line.as_f64()).min(1.0)
    }

    /// What of a rank's scale-up rate a step to one other rank has: one link of a mesh or a torus, all
    /// of it behind switches, and over PCIe what the group's distance leaves.
    pub(crate) fn on_one_link(&self, rate: Bandwidth, group: &GroupSpan) -> Bandwidth {
        in_part(rate, self.one_link_of(group))
    }

    /// The same as a part of a rank's scale-up bandwidth, in millionths.
    pub(crate) fn one_link_of(&self, group: &GroupSpan) -> u32 {
        if self.one_link < WHOLE {
            self.one_link
        } else {
            group.scale_up_pairs
        }
    }

    /// Payload rate of a rank's share of the NICs.
    pub fn nic_rate(&self, protocol: Protocol) -> Bandwidth {
        self.nic.scaled(self.cost(protocol).nic_payload)
    }

    /// The same of kernels that relay tokens to experts in other domains.
    pub(crate) fn nic_relay_rate(&self, protocol: Protocol) -> Bandwidth {
        self.nic_expert.scaled(self.cost(protocol).nic_payload)
    }

    /// Payload rate of in-switch reduction; `None` where the switches cannot.
    pub(crate) fn in_switch_rate(&self, across: bool) -> Option<Bandwidth> {
        let payload = if across && self.library {
            IN_SWITCH_TREE_PAYLOAD
        } else {
            1.0
        };
        self.in_switch.map(|rate| rate.scaled(payload))
    }

    /// An all-to-all of the library: its schedule pairs near and far peers, so that the NICs take
    /// as long as if every byte crossed them.
    pub(crate) fn pairs_near_and_far(&self) -> bool {
        self.library
    }

    /// How many times longer NIC traffic takes because the tiers above the leaf are narrower than
    /// the NICs, when all ranks of the cluster send alike.
    pub(crate) fn nic_slowdown(&self, crossing: Crossing) -> f64 {
        let leaf = crossing.leaf * self.leaf_oversubscription;
        let pod = crossing.pod * self.leaf_oversubscription * self.spine_oversubscription;
        (leaf.max(pod) / self.load_balance).max(1.0)
    }
}

/// One link of a rank's over all of them, in millionths.
fn one_link(link: Bandwidth, all: Bandwidth) -> u32 {
    (link.as_f64() / all.as_f64() * 1e6).round() as u32
}

/// The time that a part of the bytes takes.
fn part_of_time(part: f64, bytes: Bytes, rate: Bandwidth) -> SimDuration {
    rate.time_to_send(Bytes::new((bytes.as_f64() * part) as u64))
}

fn fill((part, most): (f64, f64), bytes: Bytes, rate: Bandwidth) -> SimDuration {
    rate.time_to_send(Bytes::new((bytes.as_f64() * part).min(most) as u64))
}
