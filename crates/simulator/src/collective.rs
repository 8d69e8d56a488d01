//! One communication on an otherwise idle cluster: what nccl-tests would print.

use rackflow_network::{
    Demand, ExchangeStyle, Links, collective, collective_with, expert_exchange, ranks_visited,
    tuned,
};
use rackflow_topology::{Cluster, ClusterMap, GroupSpan, TopologyError};
use rackflow_units::{Bytes, SimDuration};

pub use rackflow_network::{Algorithm, CollectiveOp, Protocol};

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

/// The first ranks of a cluster, and the links between them.
#[derive(Debug, Clone)]
pub struct Group {
    links: Links,
    span: GroupSpan,
    nvlink: rackflow_units::Bandwidth,
    nic: rackflow_units::Bandwidth,
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
        let map = ClusterMap::new(cluster)?;
        Ok(Self {
            links: Links::new(cluster, &map),
            span: map.span(&(0..ranks).collect::<Vec<_>>()),
            nvlink: cluster.node.scale_up.bandwidth,
            nic: map.nic_share(),
        })
    }

    /// Ranks.
    pub fn ranks(&self) -> u32 {
        self.span.ranks
    }

    /// NVLink domains with a rank.
    pub fn domains(&self) -> u32 {
        self.span.domains
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
            Operation::Dispatch(experts) | Operation::Combine(experts) => {
                self.exchange(experts, bytes, algorithm, protocol)?
            }
        };
        let time = demand.duration();
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
        let bound = self
            .nvlink
            .time_to_send(demand.wire_bytes_nvlink)
            .max(self.nic.time_to_send(demand.wire_bytes_nic));
        Some(Measurement {
            bytes,
            time,
            algorithm_bandwidth,
            bus_bandwidth: algorithm_bandwidth * factor,
            algorithm: demand.algorithm,
            protocol: demand.protocol,
            bound,
        })
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
        experts: Experts,
        bytes: Bytes,
        algorithm: Option<Algorithm>,
        protocol: Option<Protocol>,
    ) -> Option<Demand> {
        let style = match algorithm {
            None | Some(Algorithm::Relayed) => ExchangeStyle::Relayed {
                max_domains: experts.max_domains,
            },
            Some(Algorithm::Direct) => ExchangeStyle::AllToAll,
            Some(_) => return None,
        };
        if protocol.is_some_and(|protocol| protocol != Protocol::Simple) {
            return None;
        }
        Some(expert_exchange(
            bytes.get().div_ceil(experts.bytes_per_token.get().max(1)),
            experts.bytes_per_token,
            experts.top_k,
            experts.experts,
            style,
            &self.span,
            &self.links,
        ))
    }
}
