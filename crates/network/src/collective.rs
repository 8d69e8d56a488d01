//! Collectives as demands: the candidates at a size, and the one that takes the least time.

use crate::demand::{Algorithm, Demand, Protocol, WHOLE};
use crate::links::{Crossing, Links, Shape};
use crate::program::tree_halves;
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
        SimDuration::from_picos(u64::try_from(ps).unwrap_or(u64::MAX))
    }
}

/// Stretches a busy time, rounded up; exact where nothing slows it.
pub(crate) fn stretched(time: SimDuration, factor: f64) -> SimDuration {
    if factor <= 1.0 {
        return time;
    }
    SimDuration::from_picos((time.as_picos() as f64 * factor).ceil() as u64)
}

/// Which rate a candidate moves data at inside a domain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Engine {
    /// SMs that reduce.
    Reduce,
    /// SMs or copy engines that only move.
    Copy,
    /// The switches.
    Switch,
}

/// One way to run a collective.
#[derive(Debug, Clone, Copy)]
struct Candidate {
    algorithm: Algorithm,
    shape: Shape,
    engine: Engine,
    /// Sent on the NVLink port.
    nvlink: Share,
    /// Sent on the rank's share of the NICs.
    nic: Share,
    /// For which the NICs are taken; more than what is sent where the schedule leaves gaps.
    nic_taken: Share,
    nvlink_steps: u64,
    nic_steps: u64,
    /// NIC steps that the first chunk takes before the last NIC is busy.
    nic_fill_steps: u64,
    peers: u64,
    crossing: Crossing,
    /// Nothing is in flight on both ports at once: their times add up.
    serial: bool,
    /// Which part of a rank's scale-up links it uses.
    reach: Reach,
}

/// Which of a rank's scale-up links carry a candidate, where they are no switch's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reach {
    /// Those to its neighbours on rings.
    Rings,
    /// All that lead to members.
    Pairs,
    /// One.
    Link,
    /// One, in steps in which all of the domain send at once.
    Steps,
}

/// The rate on some of a rank's scale-up links, in millionths of all.
pub(crate) fn in_part(rate: Bandwidth, millionths: u32) -> Bandwidth {
    if millionths >= 1_000_000 {
        return rate;
    }
    rate.scaled(f64::from(millionths) / 1e6)
}

impl Candidate {
    /// The part of a rank's scale-up bandwidth that this way of moving data can use.
    fn scale_up_part(&self, group: &GroupSpan, links: &Links) -> u32 {
        match self.reach {
            Reach::Rings => group.scale_up_rings,
            Reach::Pairs => group.scale_up_pairs,
            Reach::Link => links.one_link_of(group),
            Reach::Steps => links.one_link.min(group.scale_up_pairs),
        }
    }

    /// Whether everyone hands on what comes around.
    fn is_ring(&self) -> bool {
        self.engine == Engine::Reduce
            && matches!(self.algorithm, Algorithm::Ring | Algorithm::Hierarchical)
    }

    /// Whether the tuner takes the protocol at this size.
    fn takes(&self, protocol: Protocol, bytes: Bytes, group: &GroupSpan, links: &Links) -> bool {
        let slice = Bytes::new(bytes.get() / u64::from(group.ranks));
        let around = group.domains == 1 && self.is_ring();
        links.takes(protocol) && (!around || links.takes_for_slices(protocol, slice))
    }

    fn demand(
        &self,
        bytes: Bytes,
        group: &GroupSpan,
        links: &Links,
        protocol: Protocol,
    ) -> Option<Demand> {
        let nvlink_rate = match self.engine {
            Engine::Reduce => links.nvlink_rate(protocol),
            Engine::Copy => links.copy_rate(protocol),
            Engine::Switch => links.in_switch_rate(group.domains > 1)?,
        };
        let scale_up_part = self.scale_up_part(group, links);
        let nvlink_rate = in_part(nvlink_rate, scale_up_part);
        let nic_rate = links.nic_rate(protocol);
        let (wire_nvlink, wire_nic) = (self.nvlink.bytes(bytes), self.nic.bytes(bytes));
        let nvlink = self.nvlink.time(bytes, nvlink_rate);
        let nic = self.nic_taken.time(bytes, nic_rate);
        let nic = stretched(nic, links.nic_slowdown(self.crossing));
        let standing_still = if group.domains > 1 {
            SimDuration::ZERO
        } else if self.is_ring() {
            links.ring_turns(nvlink, self.nvlink_steps, protocol)
        } else if self.algorithm == Algorithm::Direct {
            links.own_part(nvlink, self.peers, protocol)
        } else {
            SimDuration::ZERO
        };
        // What is not in flight on all edges at once has no pipeline to fill.
        let fill = if self.serial {
            SimDuration::ZERO
        } else {
            let near = if self.engine == Engine::Switch {
                links.in_switch_fill(wire_nvlink, nvlink_rate, group.ranks_per_domain_max)
            } else if self.is_ring() {
                let around = (self.nvlink_steps, nvlink.max(nic));
                links.ring_fill(wire_nvlink, nvlink_rate, around, protocol)
            } else {
                links.nvlink_fill(wire_nvlink, nvlink_rate, protocol)
            };
            let far = if self.algorithm == Algorithm::InSwitchTree {
                links.in_switch_nic_fill(wire_nic, nic_rate)
            } else {
                links.nic_fill(wire_nic, nic_rate)
            };
            near.max(far * self.nic_fill_steps)
        };
        let latency = links.base(self.algorithm, protocol)
            + links.peers(self.peers)
            + links.nvlink_step(protocol) * self.nvlink_steps
            + links.nic_step(group.level, self.shape, protocol) * self.nic_steps
            + fill
            + standing_still;
        let waited = if self.serial {
            nvlink.min(nic)
        } else {
            SimDuration::ZERO
        };
        let [over_leaf, over_pod] = self.crossing.millionths();
        Some(Demand {
            latency: latency + waited,
            nvlink,
            nic,
            level: group.level,
            wire_bytes_nvlink: wire_nvlink,
            wire_bytes_nic: wire_nic,
            scale_up_part,
            over_leaf,
            over_pod,
            algorithm: self.algorithm,
            protocol,
        })
    }
}

/// The time that `bytes` take among the ranks of `group` on idle links, by the algorithm and the
/// protocol that take least, of those that NCCL chooses from. `bytes` follows nccl-tests: the
/// whole buffer of one rank (received in an all-gather, sent in a reduce-scatter and an
/// all-to-all).
pub fn collective(op: CollectiveOp, bytes: Bytes, group: &GroupSpan, links: &Links) -> Demand {
    if group.ranks <= 1 {
        return Demand::NONE;
    }
    tuned(op)
        .iter()
        .filter_map(|algorithm| collective_by(*algorithm, op, bytes, group, links))
        .min_by_key(|demand| expected(demand, group, links))
        .expect("every operation has a candidate")
}

/// What the library's tuner expects of a candidate. It knows one bandwidth for trees over any number
/// of nodes, a little under half of the link (NVIDIA/nccl `src/graph/tuning.cc`), so that two and
/// three nodes run rings where a tree would send less.
fn expected(demand: &Demand, group: &GroupSpan, links: &Links) -> SimDuration {
    // Taken wherever NVLink does not hold it up, whatever its hop costs.
    if demand.algorithm == Algorithm::Pxn && demand.nvlink <= demand.nic {
        return SimDuration::ZERO;
    }
    let halves = tree_halves(group.domains);
    if demand.algorithm != Algorithm::Tree || halves == 4 || !links.is_library() {
        return demand.duration();
    }
    let nic = stretched(demand.nic, 4.0 / f64::from(halves.max(1)));
    demand.latency + demand.nvlink.max(stretched(nic, 1.0 / TREE_EXPECTED))
}

/// `treeCorrectionFactor` of large sizes in the same place.
const TREE_EXPECTED: f64 = 0.92;

/// The algorithms that NCCL chooses from.
pub fn tuned(op: CollectiveOp) -> &'static [Algorithm] {
    match op {
        CollectiveOp::AllReduce => &[
            Algorithm::Ring,
            Algorithm::Tree,
            Algorithm::InSwitch,
            Algorithm::InSwitchTree,
            Algorithm::InNetwork,
        ],
        CollectiveOp::AllGather | CollectiveOp::ReduceScatter | CollectiveOp::Broadcast => {
            &[Algorithm::Ring]
        }
        CollectiveOp::AllToAll => &[Algorithm::Pxn, Algorithm::Direct],
        CollectiveOp::SendRecv => &[Algorithm::Direct],
    }
}

/// The same by one algorithm, at its best protocol; `None` where the algorithm does not serve the
/// operation or the group.
pub fn collective_by(
    algorithm: Algorithm,
    op: CollectiveOp,
    bytes: Bytes,
    group: &GroupSpan,
    links: &Links,
) -> Option<Demand> {
    collective_with(algorithm, None, op, bytes, group, links)
}

/// The same with the protocol, where it is given; `None` also where the algorithm cannot use it.
pub fn collective_with(
    algorithm: Algorithm,
    wanted: Option<Protocol>,
    op: CollectiveOp,
    bytes: Bytes,
    group: &GroupSpan,
    links: &Links,
) -> Option<Demand> {
    if group.ranks <= 1 {
        return (algorithm == Algorithm::Local).then_some(Demand::NONE);
    }
    let passes = match op {
        CollectiveOp::AllReduce => 2,
        CollectiveOp::AllGather | CollectiveOp::ReduceScatter => 1,
        _ => 0,
    };
    let across = group.domains > 1;
    let (candidate, protocols): (Candidate, &[Protocol]) = match (algorithm, op) {
        (Algorithm::Ring, CollectiveOp::Broadcast) => (chain(group), &Protocol::ALL),
        (Algorithm::Ring, _) if passes > 0 => (ring(group, passes), &Protocol::ALL),
        (Algorithm::Hierarchical, _) if passes > 0 && across => {
            (hierarchical(group, passes), &Protocol::ALL)
        }
        (Algorithm::RecursiveHalving, _) if passes > 0 && halves(group) => {
            (recursive_halving(group, passes), &Protocol::ALL)
        }
        (Algorithm::Tree, CollectiveOp::AllReduce) if across => (tree(group), &Protocol::ALL),
        (Algorithm::InSwitch, CollectiveOp::AllReduce) if !across && group.ranks > 2 => {
            (in_switch(group), &[Protocol::Simple])
        }
        (Algorithm::InSwitchTree, CollectiveOp::AllReduce)
            if across && group.ranks_per_domain_min > 1 =>
        {
            (in_switch(group), &[Protocol::Simple])
        }
        (Algorithm::InNetwork, CollectiveOp::AllReduce)
            if across && links.in_network && group.rail_aligned =>
        {
            (in_network(group, links), &[Protocol::Simple])
        }
        (Algorithm::Direct, CollectiveOp::AllToAll) => {
            (direct(group, links), &[Protocol::Ll, Protocol::Simple])
        }
        (Algorithm::Pxn, CollectiveOp::AllToAll) if across && group.rails > 1 => {
            (by_rail(group, links), &[Protocol::Ll, Protocol::Simple])
        }
        (Algorithm::Hierarchical, CollectiveOp::AllToAll) if across && regular(group) => {
            (rail_aligned(group), &Protocol::ALL)
        }
        (Algorithm::Direct, CollectiveOp::SendRecv) => (farthest(group), &Protocol::ALL),
        _ => return None,
    };
    let bus = Bytes::new((bytes.as_f64() * op.bus_factor(group.ranks)) as u64);
    let on_sms = links.on_channels(bus, candidate.engine == Engine::Switch);
    protocols
        .iter()
        .filter(|protocol| match wanted {
            Some(wanted) => wanted == **protocol,
            None => candidate.takes(**protocol, bytes, group, links),
        })
        .filter_map(|protocol| candidate.demand(bytes, group, links, *protocol))
        .map(|demand| {
            // What the SMs take longer than the links keeps no link busy.
            let longer = on_sms.saturating_sub(demand.nvlink.max(demand.nic));
            Demand {
                latency: demand.latency + longer,
                ..demand
            }
        })
        .min_by_key(Demand::duration)
}

/// One message along `path` on idle links.
pub fn send_recv(bytes: Bytes, path: &Path, links: &Links) -> Demand {
    if path.level == Level::Local {
        return Demand::NONE;
    }
    let inside = path.level == Level::NvLink;
    let crossing = Crossing::of_level(path.level);
    let [over_leaf, over_pod] = crossing.millionths();
    let part = if inside { links.part_of(path) } else { 1.0 };
    let demands = Protocol::ALL.map(|protocol| {
        let copy_rate = links.copy_rate(protocol);
        let nvlink_rate = copy_rate.scaled(part);
        let nic_rate = links.nic_rate(protocol);
        let fill = if inside {
            links.nvlink_fill(bytes, nvlink_rate, protocol)
        } else {
            links.nic_fill(bytes, nic_rate)
        };
        let (nvlink, nic) = if inside {
            (bytes, Bytes::ZERO)
        } else {
            (Bytes::ZERO, bytes)
        };
        Demand {
            latency: links.base(Algorithm::Direct, protocol)
                + links.message_latency(path, protocol)
                + fill,
            nvlink: nvlink_rate.time_to_send(nvlink),
            nic: stretched(nic_rate.time_to_send(nic), links.nic_slowdown(crossing)),
            level: path.level,
            wire_bytes_nvlink: nvlink,
            wire_bytes_nic: nic,
            scale_up_part: links.one_link.min((part * f64::from(WHOLE)).ceil() as u32),
            over_leaf,
            over_pod,
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
    let across = group.domains > 1;
    let nic_steps = if across {
        passes * u64::from(group.domains)
    } else {
        0
    }
    .min(moved);
    let nic = if across {
        Share::of(moved, n * smallest)
    } else {
        Share::NONE
    };
    Candidate {
        algorithm: Algorithm::Ring,
        shape: Shape::Ring,
        engine: Engine::Reduce,
        nvlink: if across {
            Share::of(moved * (largest - 1), n * largest)
        } else {
            Share::of(moved, n)
        },
        nic,
        nic_taken: nic,
        nvlink_steps: moved - nic_steps,
        nic_steps,
        nic_fill_steps: 1,
        peers: 0,
        crossing: Crossing::ring(group),
        serial: false,
        reach: Reach::Rings,
    }
}

/// Rings inside the domains and rings across by rail, one after the other in pipeline. NCCL has no
/// such algorithm; frameworks build it from two communicators.
fn hierarchical(group: &GroupSpan, passes: u64) -> Candidate {
    let (largest, smallest) = columns(group);
    let k = u64::from(group.domains);
    let nic = Share::of(passes * (k - 1), k * smallest);
    Candidate {
        algorithm: Algorithm::Hierarchical,
        shape: Shape::Ring,
        engine: Engine::Reduce,
        nvlink: Share::of(passes * (largest - 1), largest),
        nic,
        nic_taken: nic,
        nvlink_steps: passes * (largest - 1),
        nic_steps: passes * (k - 1),
        nic_fill_steps: 1,
        peers: 0,
        crossing: Crossing::ring(group),
        serial: false,
        reach: Reach::Rings,
    }
}

/// Whether all domains have the same members on the same rails.
fn regular(group: &GroupSpan) -> bool {
    group.rail_aligned && group.ranks_per_domain_max == group.ranks_per_domain_min
}

/// Whether members can be halved down to one, inside the domains and across.
fn halves(group: &GroupSpan) -> bool {
    let (largest, smallest) = columns(group);
    largest == smallest && largest.is_power_of_two() && group.domains.is_power_of_two()
}

/// Halving inside the domains, then across on the slices, and doubling back.
fn recursive_halving(group: &GroupSpan, passes: u64) -> Candidate {
    let hierarchy = hierarchical(group, passes);
    Candidate {
        algorithm: Algorithm::RecursiveHalving,
        nvlink_steps: passes * u64::from(columns(group).0.trailing_zeros()),
        nic_steps: passes * depth(group.domains),
        serial: true,
        crossing: Crossing::pairs(group),
        reach: Reach::Steps,
        ..hierarchy
    }
}

/// What a NIC sends in a double binary tree: each half of the buffer goes up and down one tree. A
/// domain is a leaf of one tree (it sends one half up) and inside the other (one half up, two
/// down); two and three domains have fewer edges.
fn tree_nic(group: &GroupSpan) -> Share {
    let (_, smallest) = columns(group);
    Share::of(u64::from(tree_halves(group.domains)), 2 * smallest)
}

/// A chain up and down inside each domain, a double binary tree across.
fn tree(group: &GroupSpan) -> Candidate {
    let (largest, _) = columns(group);
    Candidate {
        algorithm: Algorithm::Tree,
        shape: Shape::Tree,
        engine: Engine::Reduce,
        nvlink: Share::of(2 * (largest - 1), largest),
        nic: tree_nic(group),
        nic_taken: tree_nic(group),
        nvlink_steps: 2 * (largest - 1),
        nic_steps: 2 * depth(group.domains),
        nic_fill_steps: 2 * depth(group.domains),
        peers: 0,
        crossing: Crossing::tree(group),
        serial: false,
        reach: Reach::Rings,
    }
}

/// The switch reads every member's buffer once and writes the sum once, sliced over the members;
/// across domains the slices go up and down a double binary tree.
fn in_switch(group: &GroupSpan) -> Candidate {
    let (_, smallest) = columns(group);
    let across = group.domains > 1;
    Candidate {
        algorithm: if across {
            Algorithm::InSwitchTree
        } else {
            Algorithm::InSwitch
        },
        shape: Shape::Tree,
        engine: Engine::Switch,
        nvlink: Share::of(smallest + 1, smallest),
        nic: tree_nic(group),
        nic_taken: tree_nic(group),
        nvlink_steps: 0,
        nic_steps: 2 * depth(group.domains),
        nic_fill_steps: 2 * depth(group.domains),
        peers: 0,
        crossing: Crossing::tree(group),
        serial: false,
        reach: Reach::Rings,
    }
}

/// The fabric's switches add up the slices of a column on their way to the top of their tree and
/// copy the sum on the way down: a NIC sends its slice once. Inside the domain the scale-up switches
/// reduce where they can, else every member sends its part of each slice to its owner.
fn in_network(group: &GroupSpan, links: &Links) -> Candidate {
    let (largest, smallest) = columns(group);
    let switched = smallest > 1 && links.in_switch_rate(true).is_some();
    Candidate {
        algorithm: Algorithm::InNetwork,
        engine: if switched {
            Engine::Switch
        } else {
            Engine::Reduce
        },
        nvlink: if switched {
            Share::of(smallest + 1, smallest)
        } else {
            Share::of(2 * (largest - 1), largest)
        },
        nic: Share::of(1, smallest),
        nic_taken: Share::of(1, smallest),
        nvlink_steps: if switched || largest == 1 { 0 } else { 2 },
        nic_steps: 1,
        nic_fill_steps: 1,
        crossing: Crossing::in_network(group),
        reach: Reach::Pairs,
        ..in_switch(group)
    }
}

/// Every pair for itself: what stays in the domain over NVLink, the rest over the NIC.
fn direct(group: &GroupSpan, links: &Links) -> Candidate {
    let n = u64::from(group.ranks);
    let (largest, smallest) = columns(group);
    let across = group.domains > 1;
    let nic = if across {
        Share::of(n - smallest, n)
    } else {
        Share::NONE
    };
    Candidate {
        algorithm: Algorithm::Direct,
        shape: Shape::Ring,
        engine: Engine::Copy,
        nvlink: Share::of(largest - 1, n),
        nic,
        nic_taken: if across && links.pairs_near_and_far() {
            Share::of(n - 1, n)
        } else {
            nic
        },
        nvlink_steps: u64::from(!across),
        nic_steps: u64::from(across),
        nic_fill_steps: 1,
        peers: n - 1,
        crossing: Crossing::pairs_by_own_nic(group),
        serial: false,
        reach: Reach::Pairs,
    }
}

/// The same with what goes to another rail handed over NVLink first.
fn by_rail(group: &GroupSpan, links: &Links) -> Candidate {
    let n = u64::from(group.ranks);
    let (largest, smallest) = columns(group);
    let rails = u64::from(group.rails);
    let plain = direct(group, links);
    Candidate {
        algorithm: Algorithm::Pxn,
        nvlink: Share::of(
            (largest - 1) * rails + (n - smallest) * (rails - 1),
            n * rails,
        ),
        nvlink_steps: 1,
        crossing: Crossing::pairs(group),
        ..plain
    }
}

/// First inside the domains, everything for one rail to its member there, then across by rail: few
/// and large messages over the NICs. Frameworks build it from two communicators.
fn rail_aligned(group: &GroupSpan) -> Candidate {
    let (members, _) = columns(group);
    let k = u64::from(group.domains);
    let nic = Share::of(k - 1, k);
    Candidate {
        algorithm: Algorithm::Hierarchical,
        engine: Engine::Copy,
        nvlink: Share::of(members - 1, members),
        nic,
        nic_taken: nic,
        nvlink_steps: members - 1,
        nic_steps: k - 1,
        peers: members + k - 2,
        crossing: Crossing::pairs(group),
        serial: true,
        reach: Reach::Steps,
        ..hierarchical(group, 1)
    }
}

/// The whole buffer along a chain of all ranks, in pipeline.
fn chain(group: &GroupSpan) -> Candidate {
    let (largest, smallest) = columns(group);
    let across = group.domains > 1;
    let nic_steps = u64::from(group.domains) - 1;
    let nic = if across {
        Share::of(1, smallest)
    } else {
        Share::NONE
    };
    Candidate {
        algorithm: Algorithm::Ring,
        shape: Shape::Ring,
        engine: Engine::Copy,
        nvlink: match (largest, across) {
            (1, _) => Share::NONE,
            (_, false) => Share::ALL,
            // As many chains as members, and each leaves the domain once.
            (_, true) => Share::of(largest - 1, largest),
        },
        nic,
        nic_taken: nic,
        nvlink_steps: u64::from(group.ranks) - 1 - nic_steps,
        nic_steps,
        nic_fill_steps: 1,
        peers: 0,
        crossing: Crossing::ring(group),
        serial: false,
        reach: Reach::Rings,
    }
}

/// One message between the two farthest members.
fn farthest(group: &GroupSpan) -> Candidate {
    let across = group.domains > 1;
    let nic = if across { Share::ALL } else { Share::NONE };
    Candidate {
        algorithm: Algorithm::Direct,
        shape: Shape::Ring,
        engine: Engine::Copy,
        nvlink: if across { Share::NONE } else { Share::ALL },
        nic,
        nic_taken: nic,
        nvlink_steps: u64::from(!across),
        nic_steps: u64::from(across),
        nic_fill_steps: 1,
        peers: 0,
        crossing: Crossing::of_level(group.level),
        serial: false,
        reach: Reach::Link,
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
