//! One communication on an otherwise idle cluster: what nccl-tests would print.

mod flows;
mod tally;

pub use flows::{Outcome, Task, run_flows};

use rackflow_network::{
    DISPATCH_SMS, Demand, ExchangeStyle, ExchangeWay, Links, Outline, Program, TokenExchange,
    collective, collective_with, direct_exchange, expert_exchange, ranks_visited, tuned,
};
use rackflow_topology::{
    Cluster, ClusterMap, GroupSpan, LinkId, Seats, Section, TopologyError, Wires,
};
use rackflow_units::{Bandwidth, Bytes, SimDuration, SimTime};

pub use rackflow_network::{Algorithm, CollectiveOp, HOST_LAUNCH, Protocol, TIMED_LAUNCH};

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Operation {
    /// An operation of nccl-tests. Sizes are its whole buffer of one rank.
    Collective(CollectiveOp),
    /// Tokens go to their experts. Sizes are the tokens of one rank, before they are copied.
    Dispatch(Experts),
    /// Their results come back.
    Combine(Experts),
}

/// Who a token visits.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Experts {
    /// Experts, spread evenly over the ranks.
    pub experts: u64,
    /// Experts of one token.
    pub top_k: u64,
    /// Size of one token on the wire.
    pub bytes_per_token: Bytes,
    /// NVLink domains that one token may visit; `None`: any number.
    pub max_domains: Option<u32>,
    /// Which kernels move them.
    pub kernels: ExpertKernels,
}

/// Kernels that exchange tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExpertKernels {
    /// Once over the NIC to each domain and forwarded there, for throughput (DeepEP's normal ones).
    Normal,
    /// Straight to the rank of every expert, for latency (DeepEP's).
    LowLatency,
    /// Straight to every rank, once however many of its experts are chosen (TensorRT-LLM's
    /// one-sided ones).
    OneSided,
}

/// One line of the table.
#[derive(Debug, Clone, PartialEq)]
pub struct Measurement {
    /// Size as nccl-tests counts it.
    pub bytes: Bytes,
    /// From the call to the last byte.
    pub time: SimDuration,
    /// `bytes` over `time`, in bytes per second.
    pub algorithm_bandwidth: f64,
    /// The same times the operation's factor, so that it compares with a link.
    pub bus_bandwidth: f64,
    /// How it moved.
    pub algorithm: Algorithm,
    /// How arrival was marked.
    pub protocol: Protocol,
    /// The least time in which the busiest link could carry what it had to, at line rate.
    pub bound: SimDuration,
}

impl Measurement {
    /// The same where a call takes no less than `floor`.
    #[must_use]
    pub fn no_faster_than(self, floor: SimDuration) -> Self {
        let time = self.time.max(floor);
        self.taking(time)
    }

    /// The same where a call takes so much longer.
    #[must_use]
    pub fn after(self, launch: SimDuration) -> Self {
        let time = self.time + launch;
        self.taking(time)
    }

    fn taking(mut self, time: SimDuration) -> Self {
        if self.time < time {
            let slower = self.time.as_secs_f64() / time.as_secs_f64();
            self.algorithm_bandwidth *= slower;
            self.bus_bandwidth *= slower;
            self.time = time;
        }
        self
    }
}

/// Connections of two NICs where nothing is said: NCCL opens two channels to a peer behind a NIC
/// (NVIDIA/nccl issue 1424, `NCCL_NCHANNELS_PER_NET_PEER`; 16 rings over the 8 NICs of an H100 node,
/// issue 1453) with one queue pair each (`NCCL_IB_QPS_PER_CONNECTION`).
pub const CONNECTIONS: u32 = 2;

/// Ranks on some GPUs of a cluster, and the links between them.
#[derive(Debug, Clone)]
pub struct Group {
    links: Links,
    span: GroupSpan,
    /// The GPU of every rank, in order.
    gpus: Vec<u32>,
    seats: Seats,
    connections: u32,
    /// SMs that kernels hold; `None`: what the library takes.
    sms: Option<u32>,
    nvlink: Bandwidth,
    /// One of a rank's links into its domain.
    link: Bandwidth,
    nic: Bandwidth,
}

/// Why flows were not simulated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NoFlows {
    /// The algorithm or the protocol does not serve the operation or the group.
    #[error("the algorithm does not serve it")]
    NotServed,
    /// Domains hold different numbers of ranks.
    #[error(
        "NVLink domains hold different numbers of ranks, and message by message only a ring is laid out \
         over them; --algorithm ring does, --ranks picks as many of each"
    )]
    Irregular,
    /// More flows than a run should take.
    #[error("{flows} flows are more than {most}")]
    TooMany {
        /// Flows of the program.
        flows: u64,
        /// Most that are simulated.
        most: u64,
    },
}

/// Shortest combine of one-sided kernels, whatever its size: 31 us from 1 to 8 tokens on 8 and 16
/// GB200, where the dispatch takes 18 (NVIDIA/TensorRT-LLM tech blog 18).
const ONE_SIDED_COMBINE: SimDuration = SimDuration::from_micros(31);

/// More messages than this, one after the other, take minutes.
const MOST_MESSAGES: u64 = 100_000_000;

/// Of an exchange of more flows than this, links are counted in place of flows: they would take
/// minutes and gigabytes.
const MOST_FLOWS: u64 = 4_000_000;

/// Counting more pairs than this takes more than ten minutes.
const MOST_PAIRS: u64 = 5_000_000_000;

/// What is kept from one size to the next.
#[derive(Debug, Default)]
struct Kept {
    /// An exchange that was counted, and by which algorithm.
    tally: Option<tally::Tally>,
    algorithm: Option<Algorithm>,
}

impl Group {
    /// The first `ranks` GPUs of `cluster`.
    ///
    /// # Errors
    /// When the cluster cannot be built.
    ///
    /// # Panics
    /// When it has fewer GPUs.
    pub fn new(cluster: &Cluster, ranks: u32) -> Result<Self, TopologyError> {
        Self::on(cluster, (0..ranks).collect())
    }

    /// These GPUs of `cluster`; ranks are numbered in their order.
    ///
    /// # Errors
    /// When the cluster cannot be built.
    ///
    /// # Panics
    /// When it does not have them all, or there are none.
    pub fn on(cluster: &Cluster, mut gpus: Vec<u32>) -> Result<Self, TopologyError> {
        gpus.sort_unstable();
        gpus.dedup();
        let map = ClusterMap::new(cluster)?;
        // The slowest of the kinds that are in it sets the pace of all.
        let mut sections: Vec<u32> = gpus.iter().map(|gpu| map.section_of(*gpu) as u32).collect();
        sections.dedup();
        let links = if map.sections().len() > 1 {
            Links::among(cluster, &map, &sections)
        } else {
            Links::new(cluster, &map)
        };
        let slowest = |rate: fn(&Section) -> Bandwidth| {
            let rates = sections
                .iter()
                .map(|at| rate(&map.sections()[*at as usize]));
            rates.min().expect("a group sits in some section")
        };
        Ok(Self {
            links,
            span: map.span(&gpus),
            seats: map.seats(&gpus),
            connections: CONNECTIONS,
            sms: None,
            nvlink: slowest(|section| section.scale_up().bandwidth),
            link: slowest(Section::scale_up_link),
            nic: slowest(Section::nic_share),
            gpus,
        })
    }

    /// The same with so many connections between two NICs.
    #[must_use]
    pub fn with_connections(mut self, connections: u32) -> Self {
        self.connections = connections.max(1);
        self
    }

    /// The same where the kernels of a collective or an exchange hold so many SMs.
    #[must_use]
    pub fn with_sms(mut self, sms: Option<u32>) -> Self {
        self.sms = sms;
        self.links = self.links.with_channels(sms);
        self
    }

    /// Ranks.
    pub fn ranks(&self) -> u32 {
        self.span.ranks
    }

    /// NVLink domains with a rank.
    pub fn domains(&self) -> u32 {
        self.span.domains
    }

    /// Copies of a token as DeepEP counts them, the local one among them: one for each rank that it
    /// visits inside a domain, one for each domain across, one for each expert at low latency.
    pub fn copies(&self, experts: Experts) -> f64 {
        let Experts {
            experts: all,
            top_k,
            kernels,
            max_domains,
            ..
        } = experts;
        let within = |bins: u32| ranks_visited(all, bins, top_k);
        match kernels {
            ExpertKernels::LowLatency => top_k as f64,
            _ if self.span.domains == 1 => within(self.span.ranks),
            _ => within(self.span.domains.min(max_domains.unwrap_or(u32::MAX))),
        }
    }

    /// Runs `operation` once by the algorithm and protocol that the library would choose, or by
    /// those that are wanted; `None` where those do not serve the operation or the group.
    ///
    /// # Panics
    /// When more experts are chosen than there are.
    pub fn measure(
        &self,
        operation: Operation,
        bytes: Bytes,
        algorithm: Option<Algorithm>,
        protocol: Option<Protocol>,
    ) -> Option<Measurement> {
        let demand = match operation {
            Operation::Collective(op) => self.collective(op, bytes, algorithm, protocol)?,
            Operation::Dispatch(experts) | Operation::Combine(experts) => Self::awaited(
                operation,
                self.exchange(operation, experts, bytes, algorithm, protocol)?,
            ),
        };
        let bound = self
            .nvlink
            .scaled(f64::from(demand.scale_up_part) / 1e6)
            .time_to_send(demand.wire_bytes_nvlink)
            .max(self.nic.time_to_send(demand.wire_bytes_nic));
        Some(self.measurement(operation, bytes, &demand, demand.duration(), bound))
    }

    fn measurement(
        &self,
        operation: Operation,
        bytes: Bytes,
        demand: &Demand,
        time: SimDuration,
        bound: SimDuration,
    ) -> Measurement {
        let factor = match operation {
            Operation::Collective(op) => op.bus_factor(self.span.ranks),
            Operation::Dispatch(e) | Operation::Combine(e) => {
                ranks_visited(e.experts, self.span.ranks, e.top_k)
            }
        };
        let seconds = time.as_secs_f64();
        let algorithm_bandwidth = if seconds > 0.0 {
            bytes.as_f64() / seconds
        } else {
            0.0
        };
        Measurement {
            bytes,
            time,
            algorithm_bandwidth,
            bus_bandwidth: algorithm_bandwidth * factor,
            algorithm: demand.algorithm,
            protocol: demand.protocol,
            bound,
        }
    }

    /// The same with every message a flow on the links of the cluster, tiers, hashed paths and all.
    /// `wires` are those of the same cluster; links may be degraded. An exchange of more than four
    /// million flows is counted link by link, which comes to the same ([`tally`]).
    ///
    /// # Errors
    /// Any [`NoFlows`].
    pub fn simulate(
        &self,
        wires: &Wires,
        operation: Operation,
        bytes: Bytes,
        algorithm: Option<Algorithm>,
        protocol: Option<Protocol>,
    ) -> Result<Measurement, NoFlows> {
        let kept = &mut Kept::default();
        self.simulate_one(
            wires,
            operation,
            bytes,
            (algorithm, protocol),
            MOST_FLOWS,
            kept,
        )
    }

    /// The same at several sizes, with what they have in common computed once.
    ///
    /// # Errors
    /// Any [`NoFlows`].
    pub fn simulate_all(
        &self,
        wires: &Wires,
        operation: Operation,
        sizes: &[Bytes],
        algorithm: Option<Algorithm>,
        protocol: Option<Protocol>,
    ) -> Result<Vec<Measurement>, NoFlows> {
        let kept = &mut Kept::default();
        let wanted = (algorithm, protocol);
        let one =
            |bytes: &Bytes| self.simulate_one(wires, operation, *bytes, wanted, MOST_FLOWS, kept);
        sizes.iter().map(one).collect()
    }

    /// An exchange counted link by link, however few flows it has: what [`simulate`](Self::simulate)
    /// does with many.
    ///
    /// # Errors
    /// Any [`NoFlows`].
    pub fn simulate_counted(
        &self,
        wires: &Wires,
        operation: Operation,
        bytes: Bytes,
        algorithm: Option<Algorithm>,
    ) -> Result<Measurement, NoFlows> {
        let kept = &mut Kept::default();
        self.simulate_one(wires, operation, bytes, (algorithm, None), 0, kept)
    }

    fn simulate_one(
        &self,
        wires: &Wires,
        operation: Operation,
        bytes: Bytes,
        (algorithm, protocol): (Option<Algorithm>, Option<Protocol>),
        most_flows: u64,
        kept: &mut Kept,
    ) -> Result<Measurement, NoFlows> {
        let chosen = self
            .measure(operation, bytes, algorithm, protocol)
            .ok_or(NoFlows::NotServed)?;
        if self.span.ranks <= 1 {
            return Ok(chosen);
        }
        // What the tiers cost is up to their links.
        let open = Self {
            links: self.links.clone().without_tiers(),
            ..self.clone()
        };
        let (wanted, by) = (Some(chosen.algorithm), Some(chosen.protocol));
        let (demand, op) = match operation {
            Operation::Collective(op) => (open.collective(op, bytes, wanted, by), op),
            Operation::Dispatch(experts) | Operation::Combine(experts) => (
                open.exchange(operation, experts, bytes, wanted, by),
                CollectiveOp::AllToAll,
            ),
        };
        let demand = Self::awaited(operation, demand.ok_or(NoFlows::NotServed)?);
        if Program::is_stepped(demand.algorithm, op) {
            return self.step_by_step(wires, operation, bytes, &open, &demand, 1);
        }
        let outline = Outline::new(op, &self.span, &self.seats, &demand);
        let outline = outline.ok_or(NoFlows::NotServed)?;
        if outline.is_exchange() && outline.most_edges() > most_flows {
            return self.count(wires, operation, bytes, &demand, &outline, kept);
        }
        let program = Program::pipelined(op, &self.span, &self.seats, &demand);
        let program = program.ok_or(NoFlows::NotServed)?;
        Ok(self.run(wires, operation, bytes, &demand, &program))
    }

    /// An exchange with more flows than are kept one by one.
    fn count(
        &self,
        wires: &Wires,
        operation: Operation,
        bytes: Bytes,
        demand: &Demand,
        outline: &Outline<'_>,
        kept: &mut Kept,
    ) -> Result<Measurement, NoFlows> {
        let (flows, most) = (outline.most_edges(), MOST_PAIRS);
        if flows > most {
            return Err(NoFlows::TooMany { flows, most });
        }
        if kept.algorithm != Some(demand.algorithm) {
            *kept = Kept {
                tally: None,
                algorithm: Some(demand.algorithm),
            };
        }
        let lines = (self.link, self.nic);
        let counted = tally::counted(
            outline,
            wires,
            &self.gpus,
            lines,
            self.connections,
            &mut kept.tally,
        );
        let counted = counted.ok_or(NoFlows::Irregular)?;
        Ok(self.measurement(operation, bytes, demand, counted.time, counted.bound))
    }

    /// The textbook's algorithm, message by message, with every message of a ring in `chunks` that are
    /// handed on as they come: what a library's pipeline does in the small. A ring inside one domain and
    /// a hierarchy of rings over several, where no algorithm is wanted.
    ///
    /// # Errors
    /// Any [`NoFlows`].
    pub fn simulate_chunks(
        &self,
        wires: &Wires,
        op: CollectiveOp,
        bytes: Bytes,
        algorithm: Option<Algorithm>,
        protocol: Option<Protocol>,
        chunks: u32,
    ) -> Result<Measurement, NoFlows> {
        let uneven = self.seats.evenly().is_none();
        let textbook = match (op, self.span.domains) {
            (CollectiveOp::AllToAll, 1) => Algorithm::Direct,
            (_, 1) => Algorithm::Ring,
            _ if uneven => Algorithm::Ring,
            _ => Algorithm::Hierarchical,
        };
        let wanted = Some(algorithm.unwrap_or(textbook));
        let open = Self {
            links: self.links.clone().without_tiers(),
            ..self.clone()
        };
        let chosen = self.collective(op, bytes, wanted, protocol);
        let by = chosen.ok_or(NoFlows::NotServed)?.protocol;
        let demand = open.collective(op, bytes, wanted, Some(by));
        let demand = demand.ok_or(NoFlows::NotServed)?;
        let operation = Operation::Collective(op);
        self.step_by_step(wires, operation, bytes, &open, &demand, chunks)
    }

    /// Runs the stepped program of `demand` with the links of `open`.
    fn step_by_step(
        &self,
        wires: &Wires,
        operation: Operation,
        bytes: Bytes,
        open: &Self,
        demand: &Demand,
        chunks: u32,
    ) -> Result<Measurement, NoFlows> {
        let Operation::Collective(op) = operation else {
            return Err(NoFlows::NotServed);
        };
        let (algorithm, protocol) = (demand.algorithm, demand.protocol);
        let program = Program::stepped(
            algorithm,
            op,
            bytes,
            &self.span,
            &open.links,
            protocol,
            chunks,
        );
        let program = program.ok_or(match self.seats.evenly() {
            Some(_) => NoFlows::NotServed,
            None => NoFlows::Irregular,
        })?;
        if program.flows() > MOST_MESSAGES {
            return Err(NoFlows::TooMany {
                flows: program.flows(),
                most: MOST_MESSAGES,
            });
        }
        Ok(self.run(wires, operation, bytes, demand, &program))
    }

    fn run(
        &self,
        wires: &Wires,
        operation: Operation,
        bytes: Bytes,
        demand: &Demand,
        program: &Program,
    ) -> Measurement {
        let task = Task {
            program,
            gpus: &self.gpus,
            start: SimTime::ZERO,
            connections: self.connections,
        };
        let outcome = run_flows(wires, (self.link, self.nic), &[task]);
        let bound = (0..)
            .map(LinkId)
            .zip(&outcome.carried)
            .filter(|(_, carried)| **carried > Bytes::ZERO)
            .map(|(link, carried)| wires.bandwidth(link).time_to_send(*carried))
            .max()
            .unwrap_or(SimDuration::ZERO);
        let time = outcome.ends[0].since(SimTime::ZERO);
        self.measurement(operation, bytes, demand, time, bound)
    }

    /// A combine of one-sided kernels also waits for all that it asked for.
    fn awaited(operation: Operation, demand: Demand) -> Demand {
        match operation {
            Operation::Combine(experts) if experts.kernels == ExpertKernels::OneSided => {
                let missing = ONE_SIDED_COMBINE.saturating_sub(demand.duration());
                Demand {
                    latency: demand.latency + missing,
                    ..demand
                }
            }
            _ => demand,
        }
    }

    fn collective(
        &self,
        op: CollectiveOp,
        bytes: Bytes,
        algorithm: Option<Algorithm>,
        protocol: Option<Protocol>,
    ) -> Option<Demand> {
        let (span, links) = (&self.span, &self.links);
        if self.span.ranks <= 1 || (algorithm.is_none() && protocol.is_none()) {
            return Some(collective(op, bytes, span, links));
        }
        let candidates = match &algorithm {
            Some(algorithm) => std::slice::from_ref(algorithm),
            None => tuned(op),
        };
        candidates
            .iter()
            .filter_map(|algorithm| collective_with(*algorithm, protocol, op, bytes, span, links))
            .min_by_key(Demand::duration)
    }

    fn exchange(
        &self,
        operation: Operation,
        experts: Experts,
        bytes: Bytes,
        algorithm: Option<Algorithm>,
        protocol: Option<Protocol>,
    ) -> Option<Demand> {
        if experts.kernels != ExpertKernels::Normal {
            let served = algorithm.is_none_or(|wanted| wanted == Algorithm::Direct)
                && protocol.is_none_or(|wanted| wanted == Protocol::Simple);
            return served.then(|| {
                direct_exchange(
                    bytes.as_f64() / experts.bytes_per_token.as_f64(),
                    experts.bytes_per_token.as_f64(),
                    experts.top_k,
                    experts.experts,
                    experts.kernels == ExpertKernels::OneSided,
                    &self.span,
                    &self.links,
                )
            });
        }
        let style = match algorithm {
            None | Some(Algorithm::Relayed) => ExchangeStyle::Relayed {
                max_domains: experts.max_domains,
                hybrid: false,
            },
            Some(Algorithm::Direct | Algorithm::Pxn) => ExchangeStyle::AllToAll,
            Some(_) => return None,
        };
        if protocol.is_some_and(|protocol| protocol != Protocol::Simple) {
            return None;
        }
        let exchange = TokenExchange {
            tokens: bytes.get().div_ceil(experts.bytes_per_token.get().max(1)),
            bytes_per_token: experts.bytes_per_token,
            top_k: experts.top_k,
            experts: experts.experts,
            style,
            way: match operation {
                Operation::Combine(_) => ExchangeWay::Combine,
                Operation::Dispatch(_) | Operation::Collective(_) => ExchangeWay::Dispatch,
            },
            sms: self.sms.unwrap_or(DISPATCH_SMS),
        };
        Some(expert_exchange(exchange, &self.span, &self.links))
    }
}
