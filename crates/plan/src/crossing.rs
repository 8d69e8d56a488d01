//! Who sends to whom over NICs: the flows of a communicator and of messages between stages.
//!
//! A collective is priced by what it asks of one rank ([`Demand`](rackflow_network::Demand)). Where links
//! above the leaves can hold it back, the simulator runs its flows over them; here stands which
//! flows these are, and whether the tiers of a cluster can hold a plan back at all.

use crate::compile::Plan;
use crate::program::{GroupSlot, Work};
use crate::setup::Setup;
use rackflow_network::{Algorithm, CollectiveOp, Demand, Program};
use rackflow_topology::{
    Cluster, ClusterMap, Fabric, FaultyLink, GroupSpan, Joined, Level, LinkFault, LinkId, Routing,
    Seats, Wires,
};
use rackflow_units::{Bytes, SimDuration};
use std::sync::Arc;

/// Which flows a collective has between NVLink domains.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Pattern {
    /// Rings that enter and leave every domain on each member's NIC in turn, domains by place.
    Ring,
    /// A double binary tree over the domains for each column of members.
    Tree,
    /// Every pair for itself.
    Pairs,
    /// To one member of each other domain, which forwards.
    Relayed,
    /// One stream up from each leaf and one down for each column of members, which the switches
    /// reduce: as a ring over the leaves asks of the links above them.
    InNetwork,
    /// From each member to the next, in the order of ranks.
    Neighbours,
}

impl Pattern {
    /// Number of patterns.
    pub const COUNT: usize = 6;
    /// All patterns.
    pub const ALL: [Self; Self::COUNT] = [
        Self::Ring,
        Self::Tree,
        Self::Pairs,
        Self::Relayed,
        Self::InNetwork,
        Self::Neighbours,
    ];

    /// The flows of a collective of this slot that runs by this algorithm; `None` where nothing
    /// leaves a domain.
    pub fn of(slot: GroupSlot, algorithm: Algorithm) -> Option<Self> {
        match algorithm {
            Algorithm::Local | Algorithm::InSwitch => None,
            // Keys and values go around.
            _ if slot == GroupSlot::Context => Some(Self::Neighbours),
            Algorithm::Ring | Algorithm::Hierarchical | Algorithm::RecursiveHalving => {
                Some(Self::Ring)
            }
            Algorithm::Tree | Algorithm::InSwitchTree => Some(Self::Tree),
            Algorithm::Direct | Algorithm::Pxn => Some(Self::Pairs),
            Algorithm::InNetwork => Some(Self::InNetwork),
            Algorithm::Relayed => Some(Self::Relayed),
        }
    }
}

/// Flows of one communication over NICs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Flows {
    /// Flows among which a rank that sends most divides its bytes; all flows carry alike.
    pub each: u32,
    /// Sender, receiver, and whether the message is handed to the sender's neighbour on the
    /// receiver's rail first (PXN).
    pub edges: Vec<(u32, u32, bool)>,
}

/// More pairs than this are laid out by rail: one flow to each domain, as if relayed.
const MOST_PAIRS: usize = 1 << 22;

impl Flows {
    /// The flows of `pattern` among the ranks on `gpus`, in the order of ranks.
    pub fn among(pattern: Pattern, gpus: &[u32], map: &ClusterMap) -> Self {
        if pattern == Pattern::Neighbours {
            return Self::around(gpus, map);
        }
        let mut sorted = gpus.to_vec();
        sorted.sort_unstable();
        let domains: Vec<&[u32]> = sorted
            .chunk_by(|a, b| map.place(*a).domain == map.place(*b).domain)
            .collect();
        if domains.len() < 2 {
            return Self::default();
        }
        match pattern {
            Pattern::Ring => Self::rings(&domains),
            Pattern::Tree => Self::trees(&domains),
            Pattern::Pairs if gpus.len() * gpus.len() <= MOST_PAIRS => Self::pairs(&domains),
            Pattern::Pairs | Pattern::Relayed => Self::relayed(&domains),
            Pattern::InNetwork => Self::in_network(&domains, map),
            Pattern::Neighbours => unreachable!("taken above"),
        }
    }

    /// One message.
    pub fn message(from: u32, to: u32, map: &ClusterMap) -> Self {
        let mut flows = Self {
            each: 1,
            edges: Vec::new(),
        };
        if map.level(from, to) > Level::NvLink {
            flows.edges.push((from, to, false));
        }
        flows
    }

    fn around(gpus: &[u32], map: &ClusterMap) -> Self {
        let next = gpus.iter().cycle().skip(1);
        let pairs = gpus.iter().zip(next).map(|(from, to)| (*from, *to, false));
        Self {
            each: 1,
            edges: pairs
                .filter(|(from, to, _)| map.level(*from, *to) > Level::NvLink)
                .collect(),
        }
    }

    /// As many rings as the emptiest domain has members.
    fn rings(domains: &[&[u32]]) -> Self {
        let columns = columns(domains);
        let mut edges = Vec::new();
        for (index, domain) in domains.iter().enumerate() {
            let next = domains[(index + 1) % domains.len()];
            edges.extend((0..columns).map(|column| (domain[column], next[column], false)));
        }
        Self { each: 1, edges }
    }

    fn in_network(domains: &[&[u32]], map: &ClusterMap) -> Self {
        let mut edges = Vec::new();
        for column in 0..columns(domains) {
            let mut leaves: Vec<u32> = domains.iter().map(|domain| domain[column]).collect();
            leaves.dedup_by_key(|gpu| map.place(*gpu).leaf);
            if leaves.len() > 1 {
                let next = leaves.iter().cycle().skip(1);
                edges.extend(
                    leaves
                        .iter()
                        .zip(next)
                        .map(|(from, to)| (*from, *to, false)),
                );
            }
        }
        Self { each: 1, edges }
    }

    fn trees(domains: &[&[u32]]) -> Self {
        let columns = columns(domains);
        let span = GroupSpan {
            ranks: (domains.len() * columns) as u32,
            domains: domains.len() as u32,
            ranks_per_domain_max: columns as u32,
            ranks_per_domain_min: columns as u32,
            leaves: 1,
            pods: 1,
            level: Level::Leaf,
            rail_aligned: true,
            ring_hops_over_leaf: 0,
            ring_hops_over_pod: 0,
            pairs_remote: 0,
            pairs_over_leaf: 0,
            pairs_over_pod: 0,
            pairs_over_leaf_by_own_nic: 0,
            rails: 1,
            scale_up_rings: 1_000_000,
            scale_up_pairs: 1_000_000,
        };
        // Divides by all that a tree divides by.
        const PARTS: u64 = 12;
        let demand = Demand {
            algorithm: Algorithm::Tree,
            nic: SimDuration::from_picos(PARTS),
            wire_bytes_nic: Bytes::new(PARTS),
            ..Demand::NONE
        };
        let seats = Seats::even(span.domains, columns as u32, Joined::PLAIN);
        let program = Program::pipelined(CollectiveOp::AllReduce, &span, &seats, &demand);
        let Some(Program::Pipelined { edges: all, .. }) = program else {
            return Self::rings(domains);
        };
        let gpu = |rank: u32| domains[rank as usize / columns][rank as usize % columns];
        let each = all
            .first()
            .map_or(1, |edge| PARTS / edge.bytes.get().max(1));
        Self {
            each: each as u32,
            edges: all
                .iter()
                .map(|edge| (gpu(edge.from), gpu(edge.to), false))
                .collect(),
        }
    }

    fn pairs(domains: &[&[u32]]) -> Self {
        let all: usize = domains.iter().map(|domain| domain.len()).sum();
        let mut edges = Vec::new();
        for (index, domain) in domains.iter().enumerate() {
            let others = || {
                domains
                    .iter()
                    .enumerate()
                    .filter(|(other, _)| *other != index)
            };
            for from in *domain {
                edges.extend(
                    others().flat_map(|(_, other)| other.iter().map(|to| (*from, *to, true))),
                );
            }
        }
        Self {
            each: (all - columns(domains)) as u32,
            edges,
        }
    }

    fn relayed(domains: &[&[u32]]) -> Self {
        let mut edges = Vec::new();
        for (index, domain) in domains.iter().enumerate() {
            let others = || {
                domains
                    .iter()
                    .enumerate()
                    .filter(|(other, _)| *other != index)
            };
            for (column, from) in domain.iter().enumerate() {
                edges
                    .extend(others().map(|(_, other)| (*from, other[column % other.len()], false)));
            }
        }
        Self {
            each: domains.len() as u32 - 1,
            edges,
        }
    }
}

fn columns(domains: &[&[u32]]) -> usize {
    domains.iter().map(|domain| domain.len()).min().unwrap_or(0)
}

/// Whose flows these are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sender {
    /// A communicator's.
    Group {
        /// Position of its slot in [`Plan::slots`].
        at: usize,
        /// Its number.
        group: u32,
        /// By which pattern.
        pattern: Pattern,
    },
    /// A rank's, to the next stage, or to the one before.
    Message {
        /// Which rank.
        rank: u32,
        /// To the next stage.
        forward: bool,
    },
}

impl Plan {
    /// Visits the flows of all communicators and messages that leave their NVLink domain, with the GPUs
    /// of [`Setup::host`], whose map this is, and the largest part of a NIC's rate that any such
    /// communication has on average.
    pub fn crossings(&self, map: &ClusterMap, visit: &mut dyn FnMut(Sender, &Flows, f64)) {
        let patterns = self.patterns();
        let mut members = Vec::new();
        for (at, slot) in self.slots.iter().enumerate() {
            for group in 0..self.placement.groups(*slot) {
                let Some(class) = self.spans.classes[*slot as usize].get(group as usize) else {
                    continue;
                };
                for (pattern, part) in &patterns[*slot as usize][*class as usize] {
                    let flows = self.flows_of_group(*slot, group, *pattern, map, &mut members);
                    if !flows.edges.is_empty() {
                        let pattern = *pattern;
                        visit(Sender::Group { at, group, pattern }, &flows, *part);
                    }
                }
            }
        }
        if self.spans.next_paths.is_empty() {
            return;
        }
        for rank in 0..self.placement.ranks() {
            for forward in [true, false] {
                let flows = self.flows_of_message(rank, forward, map);
                if !flows.edges.is_empty() {
                    visit(Sender::Message { rank, forward }, &flows, 1.0);
                }
            }
        }
    }

    /// The flows of one communicator. `members` is scratch.
    fn flows_of_group(
        &self,
        slot: GroupSlot,
        group: u32,
        pattern: Pattern,
        map: &ClusterMap,
        members: &mut Vec<u32>,
    ) -> Flows {
        members.clear();
        self.placement.members(slot, group, members);
        for member in &mut *members {
            *member = self.setup.gpu_of(*member);
        }
        Flows::among(pattern, members, map)
    }

    /// The flow of a rank's messages to the next stage, or to the one before.
    fn flows_of_message(&self, rank: u32, forward: bool, map: &ClusterMap) -> Flows {
        let stages = self.setup.training.parallelism.pipeline;
        let by = if forward { 1 } else { stages - 1 };
        let to = self.setup.gpu_of(self.placement.shifted(rank, by));
        Flows::message(self.setup.gpu_of(rank), to, map)
    }

    /// All that a source has on the links above the leaves.
    fn crowd(&self, source: Source, map: &ClusterMap, wires: &Wires) -> Crowd {
        let mut places = [Vec::new(), Vec::new()];
        let mut route = Vec::new();
        let mut add = |flows: &Flows| {
            for &edge in &flows.edges {
                route_of(wires, edge, 0, &mut route);
                let (from, to, _) = edge;
                for (places, rank) in places.iter_mut().zip([from, to]) {
                    places.extend(route.iter().map(|link| Place::of(*link, rank)));
                }
            }
        };
        match source {
            Source::Groups(slot, class, pattern) => {
                let mut members = Vec::new();
                for (group, of_group) in self.spans.classes[slot as usize].iter().enumerate() {
                    if *of_group == class {
                        let group = group as u32;
                        let flows = self.flows_of_group(slot, group, pattern, map, &mut members);
                        add(&flows);
                    }
                }
            }
            Source::Messages(forward) => {
                for rank in 0..self.placement.ranks() {
                    add(&self.flows_of_message(rank, forward, map));
                }
            }
        }
        Crowd::of(places)
    }

    /// The patterns by which the communicators of each of [`Plan::slots`] have flows, by class: with
    /// the communicators all that says where those flows run.
    pub fn flow_patterns(&self) -> Vec<(GroupSlot, usize, Pattern)> {
        let patterns = self.patterns();
        let mut found = Vec::new();
        for slot in &self.slots {
            for (class, used) in patterns[*slot as usize].iter().enumerate() {
                found.extend(used.iter().map(|(pattern, _)| (*slot, class, *pattern)));
            }
        }
        found
    }

    /// The patterns that collectives of each slot use, by span class, with the largest part of the time
    /// for which one keeps a NIC busy.
    fn patterns(&self) -> Vec<Vec<Vec<(Pattern, f64)>>> {
        let mut used = vec![Vec::new(); GroupSlot::COUNT];
        let mut seen = vec![false; self.transfers.len()];
        for task in self.programs.iter().flat_map(|program| &program.tasks) {
            let Work::Collective(slot, transfer) = task.work else {
                continue;
            };
            if std::mem::replace(&mut seen[transfer.0 as usize], true) {
                continue;
            }
            let classes: &mut Vec<Vec<(Pattern, f64)>> = &mut used[slot as usize];
            let demands = &self.demands[transfer.0 as usize];
            classes.resize(demands.len().max(classes.len()), Vec::new());
            for (class, demand) in classes.iter_mut().zip(demands) {
                if let Some(pattern) = Pattern::of(slot, demand.algorithm)
                    && demand.wire_bytes_nic > Bytes::ZERO
                {
                    let busy = demand.nic.as_secs_f64() / demand.duration().as_secs_f64();
                    match class.iter_mut().find(|(known, _)| *known == pattern) {
                        Some((_, most)) => *most = most.max(busy),
                        None => class.push((pattern, busy)),
                    }
                }
            }
        }
        for (slot, classes) in used.iter_mut().enumerate() {
            let known = self
                .spans
                .classes
                .get(slot)
                .map(|classes| classes.iter().max());
            let count = known.flatten().map_or(0, |last| *last as usize + 1);
            classes.resize(count.max(classes.len()), Vec::new());
        }
        used
    }
}

/// Whether links above the leaves of this cluster may be asked for more than they carry: where tiers
/// are narrower than what is below them, where hashes pick paths, where groups are joined directly,
/// and where a leaf is not whole.
pub fn may_block(host: &Cluster, faults: &[LinkFault], map: &ClusterMap) -> bool {
    // Wires are those of one kind of node; between kinds, what tiers cost is in the prices.
    if map.sections().len() > 1 {
        return false;
    }
    map.leaf_oversubscription() > 1.0
        || map.spine_oversubscription() > 1.0
        || host.fabric.routing() == Routing::Ecmp
        || matches!(host.fabric, Fabric::DragonflyPlus(_))
        || faults.iter().any(is_of_leaf)
}

fn is_of_leaf(fault: &LinkFault) -> bool {
    matches!(fault.link, FaultyLink::LeafUplinks(_))
}

/// The links above the leaves of a setup's cluster, as [`blocks`] asks for them; `None` where they
/// cannot be routed.
pub(crate) fn wires(setup: &Setup) -> Option<Wires> {
    Wires::routed(setup.host(), Routing::Adaptive, 0).ok()
}

/// Whether this plan asks a link above the leaves for more than it carries when every rank that
/// sends over it does so at its NIC's rate. What load balancing costs on average is left to the
/// prices.
pub(crate) fn blocks(plan: &Plan, map: &ClusterMap, wires: Option<&Wires>) -> bool {
    let setup = &plan.setup;
    if setup.faults.iter().any(is_of_leaf) {
        return true;
    }
    let Some(wires) = wires else {
        return false;
    };
    blocks_at(plan, map, wires, None)
}

/// Where each communication sends for this part of its time, or for its own.
fn blocks_at(plan: &Plan, map: &ClusterMap, wires: &Wires, part: Option<f64>) -> bool {
    let mut reach = Reach::default();
    let mut route = Vec::new();
    plan.crossings(map, &mut |_, flows, own| {
        reach.add(wires, flows, part.unwrap_or(own), 0, &mut route)
    });
    let narrow = Narrow::new(plan, map, wires);
    let links = reach.most();
    links
        .into_iter()
        .any(|(link, ranks)| narrow.for_ranks(link, ranks))
}

/// All communicators of one slot and class that have flows of one pattern, or all messages one way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Source {
    Groups(GroupSlot, u32, Pattern),
    Messages(bool),
}

/// How many ranks send and how many receive over each link above the leaves.
#[derive(Debug)]
pub(crate) struct Crowd(Vec<(LinkId, u32, u32)>);

impl Crowd {
    /// Counts senders and receivers, each once on a link.
    fn of(places: [Vec<Place>; 2]) -> Self {
        let [sent, received] = places.map(|mut places| {
            places.sort_unstable();
            places.dedup();
            let of_link = places.chunk_by(|a, b| a.link() == b.link());
            let counts = of_link.map(|run| (run[0].link(), run.len() as u32));
            counts.collect::<Vec<(LinkId, u32)>>()
        });
        // Both name the same links, in order.
        let both = sent.iter().zip(&received);
        Self(both.map(|(sent, got)| (sent.0, sent.1, got.1)).collect())
    }
}

/// [`blocks`], answered from what plans share where that is enough: on each link there are no more
/// ranks than those of all sources together, and no fewer than those of the busiest one. `crowd`
/// keeps what it is asked for, and so does `at_most`, which says of the same sources whether they
/// block when none of them ever pauses.
pub(crate) fn blocks_by(
    plan: &Plan,
    map: &ClusterMap,
    wires: Option<&Wires>,
    crowd: impl Fn(Source, &dyn Fn() -> Crowd) -> Arc<Crowd>,
    at_most: impl FnOnce(Vec<Source>, &dyn Fn() -> bool) -> bool,
) -> bool {
    let Some(wires) = wires else {
        return blocks(plan, map, None);
    };
    if plan.setup.faults.iter().any(is_of_leaf) {
        return true;
    }
    let mut sources = Vec::new();
    let patterns = plan.patterns();
    for slot in &plan.slots {
        for (class, used) in patterns[*slot as usize].iter().enumerate() {
            let groups = |pattern| Source::Groups(*slot, class as u32, pattern);
            sources.extend(used.iter().map(|(pattern, part)| (groups(*pattern), *part)));
        }
    }
    if !plan.spans.next_paths.is_empty() {
        sources.extend([true, false].map(|forward| (Source::Messages(forward), 1.0)));
    }
    let mut on: Vec<(LinkId, u64, u64)> = Vec::new();
    for (source, part) in sources.iter().copied() {
        let part = u64::from(millionths(part));
        let crowd = crowd(source, &|| plan.crowd(source, map, wires));
        let busy = |count: u32| u64::from(count) * part;
        let links = crowd.0.iter();
        on.extend(links.map(|(link, sent, got)| (*link, busy(*sent), busy(*got))));
    }
    on.sort_unstable();
    let narrow = Narrow::new(plan, map, wires);
    let mut unclear = false;
    for run in on.chunk_by(|a, b| a.0 == b.0) {
        let (mut all, mut busiest) = ((0, 0), (0, 0));
        for (_, sent, got) in run {
            all = (all.0 + sent, all.1 + got);
            busiest = (busiest.0.max(*sent), busiest.1.max(*got));
        }
        let ranks = |(sent, got): (u64, u64)| sent.min(got) as f64 / f64::from(WHOLE);
        if narrow.for_ranks(run[0].0, ranks(busiest)) {
            return true;
        }
        unclear |= narrow.for_ranks(run[0].0, ranks(all));
    }
    if !unclear {
        return false;
    }
    let sources = sources.into_iter().map(|(source, _)| source).collect();
    let never_pausing = || blocks_at(plan, map, wires, Some(1.0));
    at_most(sources, &never_pausing) && blocks(plan, map, Some(wires))
}

/// What makes a link too narrow.
struct Narrow<'a> {
    wires: &'a Wires,
    hashed: bool,
    /// Of one NIC [bytes/s].
    rate: f64,
    load_balance: f64,
}

impl<'a> Narrow<'a> {
    fn new(plan: &Plan, map: &ClusterMap, wires: &'a Wires) -> Self {
        Self {
            wires,
            hashed: plan.setup.host().fabric.routing() == Routing::Ecmp,
            rate: map.nic_share().as_f64(),
            load_balance: map.load_balance(),
        }
    }

    /// Whether a link is too narrow for so many ranks that send over it at once.
    fn for_ranks(&self, link: LinkId, ranks: f64) -> bool {
        let capacity = self.wires.bandwidth(link).as_f64() / self.load_balance;
        let asked = ranks * self.rate;
        (self.hashed && ranks > 1.0) || asked > capacity * (1.0 + 1e-9)
    }
}

/// Which ranks send and receive over each link above the leaves, and how busily.
#[derive(Debug, Clone, Default)]
pub struct Reach {
    /// Millionths of the rate of its NIC with which a rank sends.
    senders: Vec<(Place, u32)>,
    receivers: Vec<(Place, u32)>,
}

/// A rank on a link: in order of links, and one number, since hundreds of thousands of them are sorted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Place(u64);

impl Place {
    fn of(link: LinkId, rank: u32) -> Self {
        Self(u64::from(link.0) << 32 | u64::from(rank))
    }

    fn link(self) -> LinkId {
        LinkId((self.0 >> 32) as u32)
    }
}

/// All of a NIC's rate, in millionths.
const WHOLE: u32 = 1_000_000;

fn millionths(part: f64) -> u32 {
    (part * f64::from(WHOLE)).ceil().min(f64::from(WHOLE)) as u32
}

impl Reach {
    /// Adds the flows of one communication, whose connections are drawn by `choice`: each rank sends at
    /// this part of its NIC's rate. `route` is scratch.
    pub fn add(
        &mut self,
        wires: &Wires,
        flows: &Flows,
        part: f64,
        choice: u64,
        route: &mut Vec<LinkId>,
    ) {
        let part = millionths(part);
        let firsts = [self.senders.len(), self.receivers.len()];
        for &edge in &flows.edges {
            route_of(wires, edge, choice, route);
            let (from, to, _) = edge;
            let at = |rank| route.iter().map(move |link| (Place::of(*link, rank), part));
            self.senders.extend(at(from));
            self.receivers.extend(at(to));
        }
        // A rank with several flows of one communication on a link sends once.
        for (ranks, first) in [&mut self.senders, &mut self.receivers]
            .into_iter()
            .zip(firsts)
        {
            let mut added = ranks.split_off(first);
            added.sort_unstable_by_key(|(place, _)| *place);
            added.dedup();
            ranks.append(&mut added);
        }
    }

    /// At each link that is used, the most ranks that can keep it busy at once.
    pub fn most(self) -> Vec<(LinkId, f64)> {
        let (senders, receivers) = (ranks_on(self.senders), ranks_on(self.receivers));
        // Both name the same links, in order.
        senders
            .iter()
            .zip(&receivers)
            .map(|(sent, received)| (sent.0, sent.1.min(received.1)))
            .collect()
    }
}

/// Ranks' worth of traffic on each link: no rank has more than one NIC's.
fn ranks_on(mut ranks: Vec<(Place, u32)>) -> Vec<(LinkId, f64)> {
    ranks.sort_unstable_by_key(|(place, _)| *place);
    let of_rank: Vec<(LinkId, u64)> = ranks
        .chunk_by(|a, b| a.0 == b.0)
        .map(|run| {
            let parts: u64 = run.iter().map(|(_, part)| u64::from(*part)).sum();
            (run[0].0.link(), parts.min(u64::from(WHOLE)))
        })
        .collect();
    of_rank
        .chunk_by(|a, b| a.0 == b.0)
        .map(|run| {
            let parts: u64 = run.iter().map(|(_, part)| part).sum();
            (run[0].0, parts as f64 / f64::from(WHOLE))
        })
        .collect()
}

/// The links above the leaves that a flow goes over.
pub fn route_of(
    wires: &Wires,
    (from, to, by_rail): (u32, u32, bool),
    choice: u64,
    route: &mut Vec<LinkId>,
) {
    if by_rail {
        wires.route_by_rail(from, to, choice, route);
    } else {
        wires.route(from, to, choice, route);
    }
    route.retain(|link| wires.level(*link) > Level::Leaf);
}

#[cfg(test)]
mod tests {
    use super::*;
    use rackflow_topology::Cluster;

    fn cluster() -> Cluster {
        let text = "cluster: { node: dgx-h100, gpus: 64, fabric: ib-two-tier }\n\
                    workload: { training: { model: llama3-8b, stack: megatron-core-25.04, precision: bf16, sequence_length: 4096, \
                    global_batch: 64, parallelism: { tensor: 1 } } }";
        let files = |_: &str| Err(std::io::Error::other("no files"));
        let scenario = rackflow_scenario::parse("test", text).expect("it parses");
        scenario.resolve(&files).expect("it resolves").cluster
    }

    /// What leaves a rank is what arrives at one: in every pattern each rank of a regular group
    /// sends as much as it receives, and the busiest sends all of its bytes.
    #[test]
    fn what_is_sent_is_received_and_no_rank_sends_more_than_its_bytes() {
        let map = ClusterMap::new(&cluster()).expect("it nests");
        for members in [1_u32, 2, 8] {
            for domains in [2_u32, 3, 8] {
                let gpus: Vec<u32> = (0..domains)
                    .flat_map(|domain| (0..members).map(move |member| domain * 8 + member))
                    .collect();
                for pattern in Pattern::ALL {
                    let flows = Flows::among(pattern, &gpus, &map);
                    let sent = |gpu: u32| flows.edges.iter().filter(|edge| edge.0 == gpu).count();
                    let received =
                        |gpu: u32| flows.edges.iter().filter(|edge| edge.1 == gpu).count();
                    let busiest = gpus.iter().map(|gpu| sent(*gpu)).max();
                    // Four nodes on a leaf: its switch has nobody to send to.
                    let on_one_leaf = pattern == Pattern::InNetwork && domains < 8;
                    assert_eq!(
                        busiest,
                        Some(if on_one_leaf { 0 } else { flows.each as usize }),
                        "{pattern:?} {members} {domains}"
                    );
                    if pattern != Pattern::Neighbours {
                        for gpu in &gpus {
                            assert_eq!(sent(*gpu), received(*gpu), "{pattern:?} {gpu}");
                        }
                    }
                    let inside = |edge: &(u32, u32, bool)| {
                        map.place(edge.0).domain == map.place(edge.1).domain
                    };
                    assert!(!flows.edges.iter().any(inside), "{pattern:?} stays outside");
                }
            }
        }
    }

    /// Uneven groups: every flow of a ring or a tree is there once for each column.
    #[test]
    fn uneven_groups_have_as_many_columns_as_their_emptiest_domain() {
        let map = ClusterMap::new(&cluster()).expect("it nests");
        let gpus = [0, 1, 2, 8, 9, 16, 17, 18, 19];
        assert_eq!(Flows::among(Pattern::Ring, &gpus, &map).edges.len(), 6);
        let relayed = Flows::among(Pattern::Relayed, &gpus, &map);
        assert_eq!((relayed.each, relayed.edges.len()), (2, 18));
        let pairs = Flows::among(Pattern::Pairs, &gpus, &map);
        assert_eq!(pairs.edges.len(), 81 - 9 - 4 - 16);
        assert_eq!(pairs.each, 7);
        assert!(
            Flows::among(Pattern::Tree, &gpus[..3], &map)
                .edges
                .is_empty()
        );
    }
}
