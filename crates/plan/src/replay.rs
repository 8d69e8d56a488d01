//! Execution traces on a cluster: which kernel takes how long there, and which nodes of different
//! ranks are one communication.

mod connect;
mod kernel;
mod resource;

pub use kernel::ReplayKernel;

use rackflow_network::{Demand, ExchangeWay, Links};
use rackflow_topology::{Cluster, ClusterMap, GroupSpan, Path, TopologyError};
use rackflow_units::{Bytes, Precision, SimDuration, counted};
use rackflow_workload::GroupLimit;
use rackflow_workload::chakra::{
    Activity, ExecutionTrace, Payload, PayloadKind, RankTrace, TraceNode, TraceOp,
};
use std::collections::BTreeMap;
use std::sync::Arc;
use thiserror::Error;

use crate::price::{price_of, span_and_hop};
use crate::resource::shorter;
use crate::run::Spec;
use rackflow_network::CollectiveOp;

/// Where the durations of kernels come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum KernelTime {
    /// As recorded; from operations and bytes where nothing was recorded.
    #[default]
    Recorded,
    /// From operations and bytes, on the cluster's accelerator; as recorded where a node has none.
    Roofline,
}

/// A trace and where it is replayed.
#[derive(Debug, Clone, PartialEq)]
pub struct ReplaySetup {
    /// Name of the scenario, for the report.
    pub name: String,
    /// The hardware. Rank r sits on GPU r.
    pub cluster: Cluster,
    /// What is replayed. It may be large, and setups that differ in their hardware share it.
    pub trace: Arc<ExecutionTrace>,
    /// Where the durations of kernels come from.
    pub kernels: KernelTime,
    /// Number format of the matrix products, which a trace does not say.
    pub precision: Precision,
    /// How many times as fast what was recorded runs.
    pub speed: RecordedSpeed,
}

/// How many times as fast what was recorded runs.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RecordedSpeed {
    /// Kernels that take their recorded time.
    pub kernels: f64,
    /// Work of the host.
    pub host: f64,
}

impl Default for RecordedSpeed {
    fn default() -> Self {
        Self {
            kernels: 1.0,
            host: 1.0,
        }
    }
}

/// Why a trace cannot be replayed on a cluster.
#[derive(Debug, Clone, PartialEq, Error)]
pub enum ReplayError {
    /// The cluster cannot be built.
    #[error(transparent)]
    Topology(#[from] TopologyError),
    /// A rank has no GPU.
    #[error("the trace speaks of rank {rank} and the cluster has {}", counted(*gpus, "GPU"))]
    TooFewGpus {
        /// Which rank.
        rank: u32,
        /// GPUs of the cluster.
        gpus: u32,
    },
    /// Nodes wait for each other.
    #[error("node {node} of rank {rank} waits for itself, by way of its dependencies")]
    Cycle {
        /// Which rank.
        rank: u32,
        /// Number of one of the nodes.
        node: u64,
    },
    /// Ranks of a communicator do not agree on how many collectives it runs.
    #[error(
        "ranks {} and {} run {} and {} collectives of communicator {group:?}, and must run equally many", ranks[0], ranks[1], counts[0], counts[1]
    )]
    Collectives {
        /// The communicator.
        group: String,
        /// Two of its ranks.
        ranks: [u32; 2],
        /// Collectives of each.
        counts: [usize; 2],
    },
    /// Ranks of a communicator run different collectives at one place.
    #[error(
        "collective {index} of communicator {group:?} is {ops:?} on ranks {ranks:?}: it must be one"
    )]
    Mismatch {
        /// The communicator.
        group: String,
        /// Which of its collectives.
        index: usize,
        /// Two of its ranks.
        ranks: [u32; 2],
        /// What each runs.
        ops: [TraceOp; 2],
    },
    /// One end of messages has more of them than the other.
    #[error(
        "rank {from} sends {sent} messages to rank {to} with tag {tag}, which receives {received}"
    )]
    Messages {
        /// The sender.
        from: u32,
        /// The receiver.
        to: u32,
        /// The tag.
        tag: u32,
        /// How many are sent.
        sent: usize,
        /// How many are received.
        received: usize,
    },
    /// A replay that might not end while simulated time lasts.
    #[error("the replay could take {bound} or more, and simulated time ends after 213 days")]
    TooLong {
        /// An upper bound.
        bound: SimDuration,
    },
}

/// A trace, ready to be replayed.
#[derive(Debug, Clone)]
pub struct ReplayPlan {
    /// Name of the scenario.
    pub name: String,
    /// The hardware.
    pub cluster: Cluster,
    /// Number format of the peak that reports compare with.
    pub precision: Precision,
    /// Racks, each a range of GPU indices.
    pub racks: Vec<std::ops::Range<u32>>,
    /// The ranks that have a trace, ascending.
    pub ranks: Vec<ReplayRank>,
    /// Kernels that differ.
    pub kernels: Vec<ReplayKernel>,
    /// Communications: each is one flow, of collectives or of one message.
    pub communications: Vec<Communication>,
    /// Positions in `ranks`, of which each communication owns a range.
    pub members: Vec<u32>,
    /// What communications ask of the links.
    pub demands: Vec<Demand>,
    /// How many nodes there are of each sort.
    pub counts: ReplayCounts,
    /// Accelerators on which kernels took their recorded times, where the trace says so.
    pub recorded_on: Vec<String>,
}

/// How many nodes there are of each sort.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ReplayCounts {
    /// All nodes.
    pub nodes: u64,
    /// Kernels whose recorded duration is used.
    pub kernels_recorded: u64,
    /// Kernels whose duration follows from operations and bytes.
    pub kernels_priced: u64,
    /// Kernels of which the trace says nothing; they take no time.
    pub kernels_unknown: u64,
    /// Of those with their recorded duration, kernels that do more operations in it than the cluster's
    /// accelerator can.
    pub kernels_beyond_peak: u64,
    /// Collectives, each once for each rank.
    pub collectives: u64,
    /// Sends and receives.
    pub messages: u64,
    /// Ranks that communicators and messages speak of and that have no trace.
    pub ranks_missing: u64,
}

/// One rank of a replay.
#[derive(Debug, Clone)]
pub struct ReplayRank {
    /// Its number, and its GPU's.
    pub rank: u32,
    /// Its nodes, in the order of the file.
    pub nodes: Vec<ReplayNode>,
    /// Positions of nodes that wait, of which each node owns a range.
    pub successors: Vec<u32>,
    /// Streams of kernels.
    pub streams: u32,
}

/// One node of a replay.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ReplayNode {
    /// Its number in the file.
    pub id: u64,
    /// Range in [`ReplayRank::successors`].
    pub successors: (u32, u32),
    /// How many nodes it waits for.
    pub waits: u32,
    /// What it does.
    pub action: Action,
}

/// What a node of a replay does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Runs a kernel of [`ReplayPlan::kernels`] on a stream.
    Kernel {
        /// Which.
        kernel: u32,
        /// Where.
        stream: u32,
    },
    /// Keeps the host busy.
    Host(SimDuration),
    /// Moves data from memory beyond the accelerator's own.
    Load(SimDuration),
    /// Moves data to it; either way goes beside the other.
    Store(SimDuration),
    /// Takes part in one of [`ReplayPlan::communications`].
    Communicate(u32),
    /// Takes no time.
    Nothing,
}

/// Which communication it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum CommunicationKind {
    /// A collective.
    Collective(TraceOp),
    /// One message.
    Message,
}

impl CommunicationKind {
    /// How many there are.
    pub const COUNT: usize = TraceOp::ALL.len() + 1;

    /// Position in a table of all.
    pub fn index(self) -> usize {
        match self {
            Self::Collective(op) => TraceOp::ALL
                .iter()
                .position(|known| *known == op)
                .unwrap_or(0),
            Self::Message => TraceOp::ALL.len(),
        }
    }

    /// All of them, in the order of [`CommunicationKind::index`].
    pub fn all() -> impl Iterator<Item = Self> {
        TraceOp::ALL
            .into_iter()
            .map(Self::Collective)
            .chain([Self::Message])
    }

    /// Its name in words.
    pub fn name(self) -> &'static str {
        match self {
            Self::Collective(op) => op.name(),
            Self::Message => "send/receive",
        }
    }
}

/// A flow that several ranks take part in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Communication {
    /// What it is.
    pub kind: CommunicationKind,
    /// What it asks of the links: position in [`ReplayPlan::demands`].
    pub demand: u32,
    /// Range in [`ReplayPlan::members`]: of a message the sender, where it has a trace, then the
    /// receiver, where that has one.
    pub members: (u32, u32),
    /// Of a message: whether sender and receiver have a trace.
    pub ends: [bool; 2],
}

/// Prices a trace on its cluster.
///
/// # Errors
/// When ranks have no GPU, nodes wait for themselves, or ranks do not agree on what they exchange.
pub fn compile_replay(setup: &ReplaySetup) -> Result<ReplayPlan, ReplayError> {
    let map = ClusterMap::new(&setup.cluster)?;
    let trace = &setup.trace;
    let missing = ranks_without_trace(setup)?;
    let mut prices = Prices::new(&setup.cluster, &map);
    let connected = connect::connect(trace, &mut prices)?;
    let mut table = kernel::Table::new(setup);
    let mut counts = ReplayCounts {
        ranks_missing: missing,
        ..ReplayCounts::default()
    };
    let mut ranks = Vec::with_capacity(trace.ranks.len());
    for (rank, communications) in trace.ranks.iter().zip(&connected.of_node) {
        ranks.push(replay_rank(
            setup,
            rank,
            communications,
            &mut table,
            &mut counts,
        )?);
    }
    let plan = ReplayPlan {
        name: setup.name.clone(),
        cluster: setup.cluster.clone(),
        precision: setup.precision,
        racks: map.racks(),
        ranks,
        kernels: table.kernels,
        communications: connected.communications,
        members: connected.members,
        demands: prices.demands,
        counts,
        recorded_on: trace.recorded_on.clone(),
    };
    check_length(&plan)?;
    Ok(plan)
}

/// Counts the ranks that have no trace; all must have a GPU.
fn ranks_without_trace(setup: &ReplaySetup) -> Result<u64, ReplayError> {
    let trace = &setup.trace;
    let gpus = setup.cluster.gpus;
    let mut present = vec![false; gpus as usize];
    let mut spoken = vec![false; gpus as usize];
    let mut groups = vec![false; trace.groups.len()];
    let speak = |rank: u32, table: &mut Vec<bool>| match table.get_mut(rank as usize) {
        Some(entry) => {
            *entry = true;
            Ok(())
        }
        None => Err(ReplayError::TooFewGpus { rank, gpus }),
    };
    for rank in &trace.ranks {
        speak(rank.rank, &mut present)?;
        for node in &rank.nodes {
            match node.activity {
                Activity::Collective { group, .. } => {
                    if std::mem::replace(&mut groups[group as usize], true) {
                        continue;
                    }
                    for member in &trace.groups[group as usize].members {
                        speak(*member, &mut spoken)?;
                    }
                }
                Activity::Send { peer, .. } | Activity::Receive { peer, .. } => {
                    speak(peer, &mut spoken)?;
                }
                _ => {}
            }
        }
    }
    let missing = spoken.iter().zip(&present).filter(|(s, p)| **s && !**p);
    Ok(missing.count() as u64)
}

fn replay_rank(
    setup: &ReplaySetup,
    trace: &RankTrace,
    communications: &[u32],
    table: &mut kernel::Table<'_>,
    counts: &mut ReplayCounts,
) -> Result<ReplayRank, ReplayError> {
    let count = trace.nodes.len();
    let mut starts = vec![0u32; count + 1];
    for dep in &trace.deps {
        starts[*dep as usize + 1] += 1;
    }
    for i in 0..count {
        starts[i + 1] += starts[i];
    }
    let mut fill = starts.clone();
    let mut successors = vec![0u32; trace.deps.len()];
    for (index, node) in trace.nodes.iter().enumerate() {
        for dep in trace.deps_of(node) {
            let at = &mut fill[*dep as usize];
            successors[*at as usize] = index as u32;
            *at += 1;
        }
    }
    let mut streams = 0;
    let mut nodes = Vec::with_capacity(count);
    for (index, node) in trace.nodes.iter().enumerate() {
        counts.nodes += 1;
        let action = action(setup, node, communications[index], table, counts);
        if let Action::Kernel { stream, .. } = action {
            streams = streams.max(stream + 1);
        }
        nodes.push(ReplayNode {
            id: node.id,
            successors: (starts[index], starts[index + 1]),
            waits: node.deps.1 - node.deps.0,
            action,
        });
    }
    let rank = ReplayRank {
        rank: trace.rank,
        nodes,
        successors,
        streams,
    };
    check_order(&rank)?;
    Ok(rank)
}

fn action(
    setup: &ReplaySetup,
    node: &TraceNode,
    communication: u32,
    table: &mut kernel::Table<'_>,
    counts: &mut ReplayCounts,
) -> Action {
    let to_host = setup.cluster.node.accelerator.host_bandwidth;
    match node.activity {
        Activity::Kernel { ops, bytes } => Action::Kernel {
            kernel: table.kernel(node.recorded, ops, bytes, counts),
            stream: node.stream,
        },
        Activity::Host => {
            let recorded = node.recorded.unwrap_or_default();
            Action::Host(sped_up(recorded, setup.speed.host))
        }
        Activity::Load(bytes) => Action::Load(to_host.time_to_send(bytes)),
        Activity::Store(bytes) => Action::Store(to_host.time_to_send(bytes)),
        Activity::Collective { .. } => {
            counts.collectives += 1;
            Action::Communicate(communication)
        }
        Activity::Send { .. } | Activity::Receive { .. } => {
            counts.messages += 1;
            Action::Communicate(communication)
        }
        Activity::Nothing => Action::Nothing,
    }
}

/// What was recorded, so many times as fast.
fn sped_up(mut recorded: SimDuration, speed: f64) -> SimDuration {
    // As recorded to the picosecond, however long.
    if speed != 1.0 {
        shorter(&mut recorded, speed);
    }
    recorded
}

/// Every node can be reached by way of what it waits for.
fn check_order(rank: &ReplayRank) -> Result<(), ReplayError> {
    let mut waits: Vec<u32> = rank.nodes.iter().map(|node| node.waits).collect();
    let mut ready: Vec<u32> = (0..rank.nodes.len() as u32)
        .filter(|i| waits[*i as usize] == 0)
        .collect();
    let mut done = 0;
    while let Some(index) = ready.pop() {
        done += 1;
        let (start, end) = rank.nodes[index as usize].successors;
        for next in &rank.successors[start as usize..end as usize] {
            waits[*next as usize] -= 1;
            if waits[*next as usize] == 0 {
                ready.push(*next);
            }
        }
    }
    if done == rank.nodes.len() {
        return Ok(());
    }
    let stuck = waits.iter().position(|waits| *waits > 0).unwrap_or(0);
    Err(ReplayError::Cycle {
        rank: rank.rank,
        node: rank.nodes[stuck].id,
    })
}

/// Half of what simulated time can say.
const LIMIT: u64 = u64::MAX / 2;

/// Flows of a rank that are taken to share its ports at once.
const MOST_SHARING: u128 = 16;

/// What ends last waited for something that ended when it began, and so on: all nodes one after the
/// other take no less.
fn check_length(plan: &ReplayPlan) -> Result<(), ReplayError> {
    let picos = |span: SimDuration| u128::from(span.as_picos());
    let of_nodes = plan.ranks.iter().flat_map(|rank| &rank.nodes);
    let own: u128 = of_nodes
        .map(|node| match node.action {
            Action::Kernel { kernel, .. } => picos(plan.kernels[kernel as usize].time),
            Action::Host(span) | Action::Load(span) | Action::Store(span) => picos(span),
            Action::Communicate(_) | Action::Nothing => 0,
        })
        .sum();
    let flows: u128 = plan
        .communications
        .iter()
        .map(|one| picos(plan.demands[one.demand as usize].duration()))
        .sum();
    let total = own.saturating_add(flows.saturating_mul(MOST_SHARING));
    if total <= u128::from(LIMIT) {
        return Ok(());
    }
    Err(ReplayError::TooLong {
        bound: SimDuration::from_picos(u64::try_from(total).unwrap_or(u64::MAX)),
    })
}

/// Prices of what ranks send each other, each computed once.
struct Prices<'m> {
    map: &'m ClusterMap,
    links: Links,
    demands: Vec<Demand>,
    spans: Vec<(GroupSpan, Path)>,
    of_collective: BTreeMap<(u32, u32), u32>,
    paths: Vec<Path>,
    of_message: BTreeMap<(u32, u64), u32>,
}

impl<'m> Prices<'m> {
    fn new(cluster: &Cluster, map: &'m ClusterMap) -> Self {
        Self {
            map,
            links: Links::new(cluster, map),
            demands: Vec::new(),
            spans: Vec::new(),
            of_collective: BTreeMap::new(),
            paths: Vec::new(),
            of_message: BTreeMap::new(),
        }
    }

    /// The class of spans that these ranks are of.
    fn span(&mut self, members: &[u32]) -> u32 {
        let span = span_and_hop(self.map, members);
        let known = self.spans.iter().position(|known| *known == span);
        known.unwrap_or_else(|| {
            self.spans.push(span);
            self.spans.len() - 1
        }) as u32
    }

    fn collective(&mut self, index: u32, payload: &Payload, span: u32) -> u32 {
        let next = self.demands.len() as u32;
        let number = *self.of_collective.entry((index, span)).or_insert(next);
        if number == next {
            let (span, hop) = &self.spans[span as usize];
            self.demands.push(price(payload, span, hop, &self.links));
        }
        number
    }

    fn message(&mut self, from: u32, to: u32, bytes: Bytes) -> u32 {
        let path = self.map.path(from, to);
        let known = self.paths.iter().position(|known| *known == path);
        let path = known.unwrap_or_else(|| {
            self.paths.push(path);
            self.paths.len() - 1
        }) as u32;
        let next = self.demands.len() as u32;
        let number = *self.of_message.entry((path, bytes.get())).or_insert(next);
        if number == next {
            let path = &self.paths[path as usize];
            self.demands
                .push(rackflow_network::send_recv(bytes, path, &self.links));
        }
        number
    }
}

fn price(payload: &Payload, span: &GroupSpan, hop: &Path, links: &Links) -> Demand {
    if span.ranks <= 1 {
        return Demand::NONE;
    }
    let spec = match payload.kind {
        PayloadKind::Buffer(op, bytes) => {
            let (op, bytes) = match op {
                TraceOp::AllReduce => (CollectiveOp::AllReduce, bytes),
                TraceOp::Barrier => (CollectiveOp::AllReduce, Bytes::new(8)),
                // The root's port carries what every port of an all-gather carries.
                TraceOp::AllGather | TraceOp::Gather => (CollectiveOp::AllGather, bytes),
                TraceOp::ReduceScatter | TraceOp::Scatter => (CollectiveOp::ReduceScatter, bytes),
                TraceOp::Broadcast | TraceOp::Reduce => (CollectiveOp::Broadcast, bytes),
                TraceOp::AllToAll => (CollectiveOp::AllToAll, bytes),
            };
            Spec::Collective(op, bytes)
        }
        PayloadKind::Turns(bytes, turns) => Spec::OwnersInTurn(bytes, turns),
        PayloadKind::Exchange(e) => Spec::Exchange {
            tokens: e.tokens,
            bytes_per_token: e.bytes_per_token,
            top_k: e.top_k,
            experts: e.experts,
            dispatcher: e.dispatcher,
            limit: e
                .limit
                .map(|(chosen, groups)| GroupLimit { groups, chosen }),
            way: if e.back {
                ExchangeWay::Combine
            } else {
                ExchangeWay::Dispatch
            },
            sms: e.sms,
        },
        PayloadKind::RingStep(bytes) | PayloadKind::Message(bytes) => Spec::RingStep(bytes),
    };
    let mut demand = price_of(&spec, span, hop, links);
    demand.nvlink = demand.nvlink.scale(payload.slowdown, 1 << 10);
    demand.nic = demand.nic.scale(payload.slowdown, 1 << 10);
    if demand.nic > SimDuration::ZERO {
        demand.latency += payload.overhead;
    }
    demand.nvlink = demand.nvlink.scale(payload.load, 1 << 16);
    demand.nic = demand.nic.scale(payload.load, 1 << 16);
    demand
}
