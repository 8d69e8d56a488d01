//! Collectives as demands: the candidates at a size, and the one that takes the least time.

use crate::demand::{Algorithm, Demand, Protocol};
use crate::links::{Crossing, Links, Shape};
use rackflow_topology::{GroupSpan, Level, Path};
use rackflow_units::{Bandwidth, Bytes, SimDuration};
use std::fmt;

/// What a collective does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum CollectiveOp {
    /// Everyone ends with the sum.
    AllReduce,
    /// Everyone ends with everyone's part.
    AllGather,
    /// Everyone ends with its part of the sum.
    ReduceScatter,
    /// Everyone sends a part to everyone.
    AllToAll,
    /// Everyone ends with the root's data.
    Broadcast,
    /// One sends, one receives: the two farthest ranks of the group.
    SendRecv,
}

impl CollectiveOp {
    /// All operations.
    pub const ALL: [Self; 6] = [
        Self::AllReduce,
        Self::AllGather,
        Self::ReduceScatter,
        Self::AllToAll,
        Self::Broadcast,
        Self::SendRecv,
    ];

    /// Bus bandwidth over algorithm bandwidth, as nccl-tests defines them.
    pub fn bus_factor(self, ranks: u32) -> f64 {
        let others = f64::from(ranks.saturating_sub(1)) / f64::from(ranks.max(1));
        match self {
            Self::AllReduce => 2.0 * others,
            Self::AllGather | Self::ReduceScatter | Self::AllToAll => others,
            Self::Broadcast | Self::SendRecv => 1.0,
        }
    }
}

impl fmt::Display for CollectiveOp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::AllReduce => "all-reduce",
            Self::AllGather => "all-gather",
            Self::ReduceScatter => "reduce-scatter",
            Self::AllToAll => "all-to-all",
            Self::Broadcast => "broadcast",
            Self::SendRecv => "send/recv",
        })
    }
}

/// A fraction of the buffer, kept exact until it meets a rate.
#[derive(Debug, Clone, Copy)]
struct Share {
    numerator: u64,
    denominator: u64,
}

impl Share {
    const NONE: Self = Self {
        numerator: 0,
        denominator: 1,
    };
    const ALL: Self = Self {
        numerator: 1,
        denominator: 1,
    };

    fn of(numerator: u64, denominator: u64) -> Self {
        Self {
            numerator,
            denominator,
        }
    }

    fn bytes(self, of: Bytes) -> Bytes {
        let wire = u128::from(of.get()) * u128::from(self.numerator);
        Bytes::new(wire.div_ceil(u128::from(self.denominator)) as u64)
    }

    /// Time of this share of `size` at `rate`, rounded up once.
    fn time(self, size: Bytes, rate: Bandwidth) -> SimDuration {
        let work = u128::from(size.get()) * u128::from(self.numerator) * 1_000_000_000_000;
        let ps = work.div_ceil(u128::from(self.denominator) * u128::from(rate.bytes_per_sec()));
        SimDuration::from_picos(u64::try_from(ps).expect("a transfer ends within 213 days"))
    }
}

/// Stretches a busy time, rounded up; exact where nothing slows it.
pub(crate) fn stretched(time: SimDuration, factor: f64) -> SimDuration {
    if factor <= 1.0 {
        return time;
    }
    SimDuration::from_picos((time.as_picos() as f64 * factor).ceil() as u64)
}

/// One way to run a collective.
struct Candidate {
    algorithm: Algorithm,
    shape: Shape,
    nvlink: Share,
    nic: Share,
    nvlink_steps: u64,
    nic_steps: u64,
    crossing: Crossing,
    nvlink_rate: Option<Bandwidth>,
}

impl Candidate {
    fn demand(&self, bytes: Bytes, group: &GroupSpan, links: &Links, protocol: Protocol) -> Demand {
        let nvlink_rate = self
            .nvlink_rate
            .unwrap_or_else(|| links.nvlink_rate(protocol));
        let mut latency = links.base(self.algorithm, protocol);
        latency += links.nvlink_step_of(self.shape, protocol) * self.nvlink_steps;
        latency += links.nic_step_of(self.shape, group.level, protocol) * self.nic_steps;
        Demand {
            latency,
            nvlink: self.nvlink.time(bytes, nvlink_rate),
            nic: stretched(
                self.nic.time(bytes, links.nic_rate(protocol)),
                links.nic_slowdown(self.crossing),
            ),
            level: group.level,
            wire_bytes_nvlink: self.nvlink.bytes(bytes),
            wire_bytes_nic: self.nic.bytes(bytes),
            algorithm: self.algorithm,
            protocol,
        }
    }
}

/// The time that `bytes` take among the ranks of `group` on idle links, by the algorithm and the
/// protocol that take least. `bytes` follows nccl-tests: the whole buffer of one rank (received in
/// an all-gather, sent in a reduce-scatter and an all-to-all).
pub fn collective(op: CollectiveOp, bytes: Bytes, group: &GroupSpan, links: &Links) -> Demand {
    if group.ranks <= 1 {
        return Demand::NONE;
    }
    let mut best: Option<Demand> = None;
    let mut consider = |candidate: &Candidate, protocols: &[Protocol]| {
        for &protocol in protocols {
            let demand = candidate.demand(bytes, group, links, protocol);
            if best.is_none_or(|b| demand.duration() < b.duration()) {
                best = Some(demand);
            }
        }
    };
    match op {
        CollectiveOp::AllReduce => {
            consider(&ring(group, 2), &Protocol::ALL);
            if group.domains > 1 {
                consider(&hierarchical(group, 2), &[Protocol::Simple]);
                consider(&tree(group), &Protocol::ALL);
            }
            if let Some(rate) = links.in_switch.filter(|_| group.ranks_per_domain_min > 1) {
                consider(&in_switch(group, rate), &[Protocol::Simple]);
            }
        }
        CollectiveOp::AllGather | CollectiveOp::ReduceScatter => {
            consider(&ring(group, 1), &Protocol::ALL);
            if group.domains > 1 {
                consider(&hierarchical(group, 1), &[Protocol::Simple]);
            }
        }
        CollectiveOp::AllToAll => consider(&direct(group, links), &[Protocol::Simple]),
        CollectiveOp::Broadcast => consider(&chain(group), &Protocol::ALL),
        CollectiveOp::SendRecv => consider(&farthest(group, links), &Protocol::ALL),
    }
    best.expect("every operation has a candidate")
}

/// One message along `path` on idle links.
pub fn send_recv(bytes: Bytes, path: &Path, links: &Links) -> Demand {
    if path.level == Level::Local {
        return Demand::NONE;
    }
    let inside = path.level == Level::NvLink;
    let crossing = Crossing::of_level(path.level);
    let demands = Protocol::ALL.map(|protocol| {
        let time = |rate: Bandwidth| Share::ALL.time(bytes, rate);
        let nvlink = links.nvlink_rate(protocol);
        let nic = links.nic_rate(protocol);
        Demand {
            latency: links.base(Algorithm::Direct, protocol)
                + links.message_latency(path, protocol),
            nvlink: if inside {
                time(nvlink)
            } else {
                SimDuration::ZERO
            },
            nic: if inside {
                SimDuration::ZERO
            } else {
                stretched(time(nic), links.nic_slowdown(crossing))
            },
            level: path.level,
            wire_bytes_nvlink: if inside { bytes } else { Bytes::ZERO },
            wire_bytes_nic: if inside { Bytes::ZERO } else { bytes },
            algorithm: Algorithm::Direct,
            protocol,
        }
    });
    demands
        .into_iter()
        .min_by_key(Demand::duration)
        .expect("there are three protocols")
}

/// A ring through all ranks, `passes` times around: 2 for an all-reduce, 1 for its halves. Every
/// domain is entered on as many NICs as it has members, so each carries that part of the buffer.
fn ring(group: &GroupSpan, passes: u64) -> Candidate {
    let n = u64::from(group.ranks);
    let (largest, smallest) = columns(group);
    let moved = passes * (n - 1);
    let nic_steps = if group.domains > 1 {
        passes * u64::from(group.domains)
    } else {
        0
    };
    Candidate {
        algorithm: Algorithm::Ring,
        shape: Shape::Ring,
        nvlink: match (group.domains, largest) {
            (1, _) => Share::of(moved, n),
            _ => Share::of(moved * (largest - 1), n * largest),
        },
        nic: if group.domains > 1 {
            Share::of(moved, n * smallest)
        } else {
            Share::NONE
        },
        nvlink_steps: moved.saturating_sub(nic_steps),
        nic_steps: nic_steps.min(moved),
        crossing: Crossing::ring(group),
        nvlink_rate: None,
    }
}

/// Rings inside the domains and rings across by rail, one after the other in pipeline.
fn hierarchical(group: &GroupSpan, passes: u64) -> Candidate {
    let (largest, smallest) = columns(group);
    let k = u64::from(group.domains);
    Candidate {
        algorithm: Algorithm::Hierarchical,
        shape: Shape::Ring,
        nvlink: Share::of(passes * (largest - 1), largest),
        nic: Share::of(passes * (k - 1), k * smallest),
        nvlink_steps: passes * (largest - 1),
        nic_steps: passes * (k - 1),
        crossing: Crossing::ring(group),
        nvlink_rate: None,
    }
}

/// A chain up and down inside each domain, a double binary tree across.
fn tree(group: &GroupSpan) -> Candidate {
    let (largest, smallest) = columns(group);
    let k = u64::from(group.domains);
    Candidate {
        algorithm: Algorithm::Tree,
        shape: Shape::Tree,
        nvlink: Share::of(2 * (largest - 1), largest),
        nic: Share::of(2 * (k - 1), k * smallest),
        nvlink_steps: 2 * (largest - 1),
        nic_steps: 2 * depth(group.domains),
        crossing: Crossing::tree(group),
        nvlink_rate: None,
    }
}

/// The switch reads every member's buffer once and writes the sum once, sliced over the members;
/// across domains the slices go up and down a double binary tree.
fn in_switch(group: &GroupSpan, rate: Bandwidth) -> Candidate {
    let (_, smallest) = columns(group);
    let k = u64::from(group.domains);
    let across = k > 1;
    Candidate {
        algorithm: if across {
            Algorithm::InSwitchTree
        } else {
            Algorithm::InSwitch
        },
        shape: Shape::Tree,
        nvlink: Share::of(smallest + 1, smallest),
        nic: if across {
            Share::of(2 * (k - 1), k * smallest)
        } else {
            Share::NONE
        },
        nvlink_steps: 0,
        nic_steps: if across { 2 * depth(group.domains) } else { 0 },
        crossing: Crossing::tree(group),
        nvlink_rate: Some(rate),
    }
}

/// Every pair for itself: what stays in the domain over NVLink, the rest over the NIC.
fn direct(group: &GroupSpan, links: &Links) -> Candidate {
    let n = u64::from(group.ranks);
    let (largest, smallest) = columns(group);
    let across = group.domains > 1;
    Candidate {
        algorithm: Algorithm::Direct,
        shape: Shape::Ring,
        nvlink: Share::of(largest - 1, n),
        nic: if across {
            Share::of(n - smallest, n)
        } else {
            Share::NONE
        },
        nvlink_steps: u64::from(!across),
        nic_steps: u64::from(across),
        crossing: Crossing::pairs(group),
        nvlink_rate: Some(links.nvlink_copy),
    }
}

/// The whole buffer along a chain of all ranks, in pipeline.
fn chain(group: &GroupSpan) -> Candidate {
    let (largest, smallest) = columns(group);
    let across = group.domains > 1;
    let n = u64::from(group.ranks);
    let nic_steps = if across {
        u64::from(group.domains) - 1
    } else {
        0
    };
    Candidate {
        algorithm: Algorithm::Ring,
        shape: Shape::Ring,
        nvlink: if largest > 1 { Share::ALL } else { Share::NONE },
        nic: if across {
            Share::of(1, smallest)
        } else {
            Share::NONE
        },
        nvlink_steps: n - 1 - nic_steps,
        nic_steps,
        crossing: Crossing::ring(group),
        nvlink_rate: None,
    }
}

/// One message between the two farthest members.
fn farthest(group: &GroupSpan, links: &Links) -> Candidate {
    let across = group.domains > 1;
    Candidate {
        algorithm: Algorithm::Direct,
        shape: Shape::Ring,
        nvlink: if across { Share::NONE } else { Share::ALL },
        nic: if across { Share::ALL } else { Share::NONE },
        nvlink_steps: u64::from(!across),
        nic_steps: u64::from(across),
        crossing: Crossing::of_level(group.level),
        nvlink_rate: Some(links.nvlink_copy),
    }
}

fn columns(group: &GroupSpan) -> (u64, u64) {
    (
        u64::from(group.ranks_per_domain_max),
        u64::from(group.ranks_per_domain_min),
    )
}

/// Edges from the root of a binary tree over `domains` to its farthest leaf.
fn depth(domains: u32) -> u64 {
    u64::from(domains.next_power_of_two().trailing_zeros())
}
