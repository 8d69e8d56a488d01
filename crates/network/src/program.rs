//! Collectives as programs of flows: who sends how much to whom, and what waits for what.
//!
//! A [`Program`] is data. It is run by an event loop over the links of a cluster, and it does not
//! know which GPU a rank sits on, nor when anything happens.
//!
//! Two kinds cover what libraries do. A [`Pipelined`](Program::Pipelined) program is a collective
//! whose chunks are in flight on all edges at once, as NCCL's are: every edge carries its total,
//! and the steps of the first chunk have passed before. A [`Stepped`](Program::Stepped) one is the
//! textbook's: a rank begins a step when it has sent and received all of the step before.

use crate::collective::CollectiveOp;
use crate::demand::{Algorithm, Demand, Protocol, WHOLE};
use crate::links::{Links, Shape};
use rackflow_topology::{Axis, GroupSpan, Joined};
use rackflow_units::{Bandwidth, Bytes, SimDuration};

/// Where a message leaves the domain's NVLink switches or reaches them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Via {
    /// Along the route between two ranks.
    Route,
    /// The same, over NVLink to the neighbour on the receiver's rail first (PXN).
    Rail,
    /// Up to the scale-up switches, which reduce. The receiver is the sender.
    SwitchUp,
    /// Down from them. The receiver is the sender.
    SwitchDown,
    /// Up and down a tree of the fabric's switches, which add up what meets in them and copy the
    /// sum. The receiver names the tree: all edges to it share one, and have equal bytes.
    Tree,
}

/// One flow of a pipelined program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Edge {
    /// Rank that sends.
    pub from: u32,
    /// Rank that receives.
    pub to: u32,
    /// How it gets there.
    pub via: Via,
    /// Payload.
    pub bytes: Bytes,
    /// For how long it keeps the first link of its way busy at line rate, headers and flags
    /// included.
    pub busy: SimDuration,
}

/// Ranks in teams: member `i` of a team is rank `base + i * stride`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Teams {
    /// Distance of neighbours.
    pub stride: u32,
    /// Members of a team.
    pub size: u32,
}

impl Teams {
    fn position(self, rank: u32) -> u32 {
        rank / self.stride % self.size
    }

    fn member(self, rank: u32, position: u32) -> u32 {
        rank - self.position(rank) * self.stride + position % self.size * self.stride
    }
}

/// Who sends what at each step of a phase, inside a team.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pattern {
    /// A part of the slice to the next member; `size - 1` steps.
    Ring,
    /// To the member at distance `size/2`, then `size/4` and so on, half as much each time.
    Halving,
    /// To the member at distance 1, then 2 and so on, twice as much each time.
    Doubling,
    /// A part of the slice to the member at distance 1, then 2 and so on; `size - 1` steps.
    Shift,
}

/// Steps of one pattern.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Phase {
    /// Who sends what.
    pub pattern: Pattern,
    /// Among whom.
    pub teams: Teams,
    /// The whole buffer.
    pub bytes: u64,
    /// (stride, parts): a team works on the part of the buffer that belongs to place
    /// `rank / stride % parts` of `parts`.
    pub slice: (u32, u32),
    /// Payload rate of a rank's port.
    pub rate: Bandwidth,
    /// What the protocol adds to the latency of the way, at each step.
    pub added: SimDuration,
    /// Into how many chunks a message of a ring is cut: a rank hands on a chunk when it has it,
    /// while the others of the step are still on their way.
    pub chunks: u32,
}

/// One message of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Message {
    /// Rank that receives.
    pub to: u32,
    /// Payload.
    pub bytes: Bytes,
}

/// A collective as flows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Program {
    /// All edges at once.
    Pipelined {
        /// Passes before the edges are busy: launch, the steps of the first chunk, fill.
        lead: SimDuration,
        /// What flows.
        edges: Vec<Edge>,
    },
    /// Step after step.
    Stepped {
        /// Passes before the first step.
        lead: SimDuration,
        /// Ranks that take part.
        ranks: u32,
        /// One after the other; a rank goes on when it is done with its own part.
        phases: Vec<Phase>,
    },
}

/// The part of `total` that falls to `index` of `parts`: parts differ by a byte at most and sum to
/// the whole.
fn part(total: u64, parts: u32, index: u32) -> u64 {
    let upto = |i: u32| (u128::from(total) * u128::from(i) / u128::from(parts)) as u64;
    upto(index + 1) - upto(index)
}

impl Phase {
    /// Messages that a rank sends in the phase, and receives.
    pub fn messages(&self) -> u32 {
        self.steps() * self.chunks
    }

    /// How many messages of all phases a rank must have before it may send number `sent` of this
    /// phase, of which `before` came in earlier ones, the last by rings of the same teams and chunks
    /// if `goes_on`.
    pub fn needs(&self, before: u32, goes_on: bool, sent: u32) -> u32 {
        let chunks = self.chunks;
        if sent >= chunks {
            before + sent - chunks + 1
        } else if goes_on {
            before - chunks + sent + 1
        } else {
            before
        }
    }

    /// Whether the first chunks of this phase are the last of `earlier`: a ring that goes on.
    pub fn goes_on(&self, earlier: &Self) -> bool {
        let ring = |phase: &Self| phase.pattern == Pattern::Ring;
        ring(self) && ring(earlier) && (self.teams, self.chunks) == (earlier.teams, earlier.chunks)
    }

    /// One chunk of what `rank` sends at `step`.
    pub fn chunk(&self, rank: u32, step: u32, chunk: u32) -> Message {
        let whole = self.message(rank, step);
        Message {
            bytes: Bytes::new(part(whole.bytes.get(), self.chunks, chunk)),
            ..whole
        }
    }

    /// Steps of the phase.
    pub fn steps(&self) -> u32 {
        match self.pattern {
            Pattern::Ring | Pattern::Shift => self.teams.size - 1,
            Pattern::Halving | Pattern::Doubling => self.teams.size.trailing_zeros(),
        }
    }

    /// What `rank` sends at `step`. Every rank also receives one message at every step.
    pub fn message(&self, rank: u32, step: u32) -> Message {
        let Teams { size, .. } = self.teams;
        let (stride, parts) = self.slice;
        let slice = part(self.bytes, parts, rank / stride % parts);
        let position = self.teams.position(rank);
        let (to, bytes) = match self.pattern {
            Pattern::Ring => (
                position + 1,
                part(slice, size, (position + size - step) % size),
            ),
            Pattern::Shift => (
                position + step + 1,
                part(slice, size, (position + step + 1) % size),
            ),
            Pattern::Halving => {
                let distance = size >> (step + 1);
                (
                    position ^ distance,
                    slice.div_ceil(u64::from(size / distance)),
                )
            }
            Pattern::Doubling => {
                let distance = 1 << step;
                (
                    position ^ distance,
                    slice.div_ceil(u64::from(size / distance)),
                )
            }
        };
        Message {
            to: self.teams.member(rank, to),
            bytes: Bytes::new(bytes),
        }
    }

    /// For how long a message keeps the port of its sender busy at line rate.
    pub fn busy(&self, message: Message) -> SimDuration {
        self.rate.time_to_send(message.bytes)
    }
}

/// A group whose domains have equally many members: `domains` times `members`, in this order.
#[derive(Debug, Clone, Copy)]
struct Grid {
    domains: u32,
    members: u32,
}

impl Grid {
    fn of(group: &GroupSpan) -> Option<Self> {
        let members = group.ranks_per_domain_max;
        (members == group.ranks_per_domain_min).then_some(Self {
            domains: group.domains,
            members,
        })
    }

    fn ranks(self) -> u32 {
        self.domains * self.members
    }

    /// The part of a rank's load that stays in its domain, of an all-to-all that also hands on what
    /// goes to other rails.
    fn of_own_domain(self, rails: u32, (bytes, busy): Load) -> Load {
        let own = u128::from(self.members - 1) * u128::from(rails);
        let handed = u128::from(self.ranks() - self.members) * u128::from(rails - 1);
        let share = |whole: u64| (u128::from(whole) * own).div_ceil((own + handed).max(1)) as u64;
        (
            Bytes::new(share(bytes.get())),
            SimDuration::from_picos(share(busy.as_picos())),
        )
    }

    fn split(self, rank: u32) -> (u32, u32) {
        (rank / self.members, rank % self.members)
    }

    fn rank(self, domain: u32, member: u32) -> u32 {
        domain % self.domains * self.members + member % self.members
    }
}

/// What the edges inside a domain run on.
struct Near<'a> {
    joined: &'a Joined,
    load: Load,
    /// For how long what goes to one other member keeps its link busy.
    pair: Load,
}

impl<'a> Near<'a> {
    fn of(grid: Grid, joined: &'a Joined, load: Load, demand: &Demand) -> Self {
        let others = u64::from(grid.members - 1).max(1);
        let bytes = Bytes::new(load.0.get().div_ceil(others));
        let busy = match joined {
            Joined::Mesh => load.1,
            Joined::Switched { .. } => SimDuration::from_picos(load.1.as_picos().div_ceil(others)),
            // A link has its part of the port's rate, and the port no more than its own part.
            Joined::Torus(axes) => {
                let links = 2 * axes.len() as u128;
                let part = u128::from(load.1.as_picos()) * u128::from(demand.scale_up_part);
                let of = u128::from(others) * u128::from(WHOLE);
                SimDuration::from_picos((part * links).div_ceil(of) as u64)
            }
        };
        Self {
            joined,
            load,
            pair: (bytes, busy),
        }
    }
}

/// Collects the edges of a program.
struct Edges(Vec<Edge>);

impl Edges {
    /// `part` of `parts` equal parts of what a rank sends.
    fn push(
        &mut self,
        from: u32,
        to: u32,
        via: Via,
        (bytes, busy): (Bytes, SimDuration),
        parts: u32,
    ) {
        let share = |whole: u64| whole.div_ceil(u64::from(parts));
        if bytes > Bytes::ZERO {
            self.0.push(Edge {
                from,
                to,
                via,
                bytes: Bytes::new(share(bytes.get())),
                busy: SimDuration::from_picos(share(busy.as_picos())),
            });
        }
    }
}

impl Program {
    /// The collective that costs `demand` on idle links without tiers in its way, as flows that
    /// share links with whatever else there is, among members that are `joined` so. `None` where the
    /// group is irregular or the algorithm has no such program: what pipelines nothing has a
    /// [stepped](Self::stepped) one.
    pub fn pipelined(
        op: CollectiveOp,
        group: &GroupSpan,
        joined: &Joined,
        demand: &Demand,
    ) -> Option<Self> {
        let grid = Grid::of(group)?;
        if Self::is_stepped(demand.algorithm, op) {
            return None;
        }
        let near = (demand.wire_bytes_nvlink, demand.nvlink);
        // What PXN hands over is in the edges that leave the domain.
        let near = match demand.algorithm {
            Algorithm::Pxn => grid.of_own_domain(group.rails, near),
            _ => near,
        };
        let near = &Near::of(grid, joined, near, demand);
        let far = (demand.wire_bytes_nic, demand.nic);
        let mut edges = Edges(Vec::new());
        for rank in 0..grid.ranks() {
            match (demand.algorithm, op) {
                (Algorithm::Ring, CollectiveOp::Broadcast) => {
                    chain(grid, rank, near, far, &mut edges)
                }
                (Algorithm::Ring | Algorithm::Hierarchical, _) => {
                    ring(grid, rank, near, far, &mut edges)
                }
                (Algorithm::Tree, _) => {
                    up_and_down(grid, rank, near, &mut edges);
                    tree(grid, rank, far, &mut edges);
                }
                (Algorithm::InSwitch | Algorithm::InSwitchTree, _) => {
                    edges.push(rank, rank, Via::SwitchUp, near.load, 1);
                    edges.push(rank, rank, Via::SwitchDown, near.load, 1);
                    if grid.domains > 1 {
                        tree(grid, rank, far, &mut edges);
                    }
                }
                (Algorithm::InNetwork, _) => {
                    if *joined == (Joined::Switched { reduces: true }) && grid.members > 1 {
                        edges.push(rank, rank, Via::SwitchUp, near.load, 1);
                        edges.push(rank, rank, Via::SwitchDown, near.load, 1);
                    } else {
                        pairs(grid, rank, near, &mut edges);
                    }
                    edges.push(rank, grid.split(rank).1, Via::Tree, far, 1);
                }
                (Algorithm::Direct, CollectiveOp::SendRecv) => {
                    if rank == 0 {
                        let what = if grid.domains > 1 { far } else { near.load };
                        edges.push(0, grid.ranks() - 1, Via::Route, what, 1);
                    }
                }
                (Algorithm::Direct, _) => {
                    direct(grid, rank, Via::Route, near, far, &mut edges);
                }
                (Algorithm::Pxn, _) => direct(grid, rank, Via::Rail, near, far, &mut edges),
                (Algorithm::Relayed, _) => relayed(grid, rank, near, far, &mut edges),
                (Algorithm::Local | Algorithm::RecursiveHalving, _) => {}
            }
        }
        Some(Self::Pipelined {
            lead: demand.latency,
            edges: edges.0,
        })
    }

    /// Whether an algorithm works step after step, so that it has a [stepped](Self::stepped) program
    /// and no pipelined one.
    pub fn is_stepped(algorithm: Algorithm, op: CollectiveOp) -> bool {
        matches!(
            (algorithm, op),
            (Algorithm::RecursiveHalving, _) | (Algorithm::Hierarchical, CollectiveOp::AllToAll)
        )
    }

    /// A textbook collective over `bytes`, step after step, every message of a ring in `chunks`: a ring, recursive halving
    /// and doubling, a hierarchy of rings, or an all-to-all by shifts. `None` where the group is irregular, or where halving
    /// meets a number of ranks that is no power of two.
    pub fn stepped(
        algorithm: Algorithm,
        op: CollectiveOp,
        bytes: Bytes,
        group: &GroupSpan,
        links: &Links,
        protocol: Protocol,
        chunks: u32,
    ) -> Option<Self> {
        let grid = Grid::of(group)?;
        let (k, g) = (grid.domains, grid.members);
        let inside = Teams { stride: 1, size: g };
        let across = Teams { stride: g, size: k };
        let near = |teams: Teams| teams.stride == 1 && (k == 1 || teams.size == g);
        let phase = |pattern, teams: Teams, slice| Phase {
            pattern,
            teams,
            bytes: bytes.get(),
            slice,
            rate: if near(teams) && op == CollectiveOp::AllToAll {
                links.copy_rate(protocol)
            } else if near(teams) {
                links.nvlink_rate(protocol)
            } else {
                links.nic_rate(protocol)
            },
            added: if near(teams) {
                links.nvlink_added(protocol)
            } else {
                links.nic_added(Shape::Ring, protocol)
            },
            chunks: match pattern {
                Pattern::Ring => chunks.max(1),
                Pattern::Halving | Pattern::Doubling | Pattern::Shift => 1,
            },
        };
        let whole = (1, 1);
        let column = (1, g);
        let reduce: Vec<Phase> = match algorithm {
            Algorithm::Ring if k == 1 || g == 1 => {
                let all = Teams {
                    stride: 1,
                    size: grid.ranks(),
                };
                vec![phase(Pattern::Ring, all, whole)]
            }
            Algorithm::Hierarchical if op == CollectiveOp::AllToAll && k > 1 => vec![
                phase(Pattern::Shift, inside, whole),
                phase(Pattern::Shift, across, whole),
            ],
            Algorithm::Hierarchical if k > 1 && g > 1 => vec![
                phase(Pattern::Ring, inside, whole),
                phase(Pattern::Ring, across, column),
            ],
            Algorithm::RecursiveHalving if k.is_power_of_two() && g.is_power_of_two() => vec![
                phase(Pattern::Halving, inside, whole),
                phase(Pattern::Halving, across, column),
            ],
            Algorithm::Direct if op == CollectiveOp::AllToAll && k == 1 => {
                vec![phase(Pattern::Shift, inside, whole)]
            }
            _ => return None,
        };
        let gather = reduce.iter().rev().map(|phase| Phase {
            pattern: match phase.pattern {
                Pattern::Halving => Pattern::Doubling,
                other => other,
            },
            ..*phase
        });
        let phases: Vec<Phase> = match op {
            CollectiveOp::AllReduce => reduce.iter().copied().chain(gather).collect(),
            CollectiveOp::AllGather => gather.collect(),
            CollectiveOp::ReduceScatter | CollectiveOp::AllToAll => reduce,
            CollectiveOp::Broadcast | CollectiveOp::SendRecv => return None,
        };
        Some(Self::Stepped {
            lead: links.base(algorithm, protocol)
                + match op {
                    CollectiveOp::AllToAll => links.peers(u64::from(k + g - 2)),
                    _ => SimDuration::ZERO,
                },
            ranks: grid.ranks(),
            phases: phases
                .into_iter()
                .filter(|phase| phase.teams.size > 1)
                .collect(),
        })
    }

    /// Flows of the whole program.
    pub fn flows(&self) -> u64 {
        match self {
            Self::Pipelined { edges, .. } => edges.len() as u64,
            Self::Stepped { ranks, phases, .. } => {
                let sent: u64 = phases.iter().map(|phase| u64::from(phase.messages())).sum();
                u64::from(*ranks) * sent
            }
        }
    }
}

type Load = (Bytes, SimDuration);

/// Rings enter and leave every domain on each member's NIC in turn. The NVLink edges of all rings
/// out of one rank go to the same neighbour.
fn ring(grid: Grid, rank: u32, near: &Near<'_>, far: Load, edges: &mut Edges) {
    let (domain, member) = grid.split(rank);
    around(grid, rank, near, edges);
    if grid.domains > 1 {
        edges.push(rank, grid.rank(domain + 1, member), Via::Route, far, 1);
    }
}

/// A rank's edges to its neighbours on rings through its domain: one ring behind switches, one per
/// peer on a mesh, one per direction of every axis on a torus.
fn around(grid: Grid, rank: u32, near: &Near<'_>, edges: &mut Edges) {
    let (domain, member) = grid.split(rank);
    if grid.members == 1 {
        return;
    }
    let mut push = |to: u32, rings: u32| {
        let bytes = Bytes::new(near.load.0.get().div_ceil(u64::from(rings)));
        let to = grid.rank(domain, to);
        edges.push(rank, to, Via::Route, (bytes, near.load.1), 1);
    };
    match near.joined {
        Joined::Switched { .. } => push(member + 1, 1),
        Joined::Mesh => {
            for to in (0..grid.members).filter(|to| *to != member) {
                push(to, grid.members - 1);
            }
        }
        Joined::Torus(axes) => {
            let used = || axes.iter().filter(|axis| axis.extent > 1);
            let rings = used().map(|axis| 1 + u32::from(axis.closed)).sum();
            let mut stride = 1;
            for &Axis { extent, closed } in axes {
                let at = member / stride % extent;
                let neighbour =
                    |at: u32, by: u32| member - at * stride + (at + by) % extent * stride;
                if extent > 1 {
                    push(neighbour(at, 1), rings);
                }
                if extent > 1 && closed {
                    push(neighbour(at, extent - 1), rings);
                }
                stride *= extent;
            }
        }
    }
}

/// A chain of a tree: half of what a rank sends goes up it, half down.
fn up_and_down(grid: Grid, rank: u32, near: &Near<'_>, edges: &mut Edges) {
    let (domain, member) = grid.split(rank);
    if !near.joined.is_switched() {
        around(grid, rank, near, edges);
    } else if grid.members > 1 {
        let last = grid.members - 1;
        edges.push(
            rank,
            grid.rank(domain, member + 1),
            Via::Route,
            near.load,
            2,
        );
        edges.push(
            rank,
            grid.rank(domain, member + last),
            Via::Route,
            near.load,
            2,
        );
    }
}

/// A rank's edges to all others of its domain.
fn pairs(grid: Grid, rank: u32, near: &Near<'_>, edges: &mut Edges) {
    let (domain, member) = grid.split(rank);
    for to in (0..grid.members).filter(|to| *to != member) {
        edges.push(rank, grid.rank(domain, to), Via::Route, near.pair, 1);
    }
}

fn chain(grid: Grid, rank: u32, near: &Near<'_>, far: Load, edges: &mut Edges) {
    let (domain, member) = grid.split(rank);
    if !near.joined.is_switched() || grid.domains > 1 || member + 1 < grid.members {
        around(grid, rank, near, edges);
    }
    if domain + 1 < grid.domains {
        edges.push(rank, grid.rank(domain + 1, member), Via::Route, far, 1);
    }
}

fn direct(grid: Grid, rank: u32, via: Via, near: &Near<'_>, far: Load, edges: &mut Edges) {
    let (domain, _) = grid.split(rank);
    let remote = grid.ranks() - grid.members;
    pairs(grid, rank, near, edges);
    for to in (0..grid.ranks()).filter(|to| grid.split(*to).0 != domain) {
        edges.push(rank, to, via, far, remote);
    }
}

fn relayed(grid: Grid, rank: u32, near: &Near<'_>, far: Load, edges: &mut Edges) {
    let (domain, member) = grid.split(rank);
    pairs(grid, rank, near, edges);
    for to in (0..grid.domains).filter(|to| *to != domain) {
        edges.push(
            rank,
            grid.rank(to, member),
            Via::Route,
            far,
            grid.domains - 1,
        );
    }
}

/// A rank's edges in both trees over the domains of its column.
fn tree(grid: Grid, rank: u32, far: Load, edges: &mut Edges) {
    let (domain, member) = grid.split(rank);
    let parts = tree_halves(grid.domains);
    for neighbours in double_tree(domain, grid.domains) {
        for peer in neighbours.into_iter().flatten() {
            edges.push(rank, grid.rank(peer, member), Via::Route, far, parts);
        }
    }
}

/// How many halves of its slice the busiest NIC of a double binary tree sends: as a leaf of one
/// tree one, inside the other one up and two down.
pub(crate) fn tree_halves(domains: u32) -> u32 {
    (0..domains.min(64))
        .map(|domain| {
            let trees = double_tree(domain, domains);
            trees.iter().flatten().flatten().count() as u32
        })
        .max()
        .unwrap_or(0)
}

/// Parent and children of `rank` in the two trees of a double binary tree (Sanders, Speck and Träff
/// 2009): the inner ranks of one are the leaves of the other.
fn double_tree(rank: u32, ranks: u32) -> [[Option<u32>; 3]; 2] {
    let first = binary_tree(rank, ranks);
    let second = if ranks.is_multiple_of(2) {
        binary_tree(ranks - 1 - rank, ranks).map(|peer| peer.map(|peer| ranks - 1 - peer))
    } else {
        let shifted = (rank + ranks - 1) % ranks;
        binary_tree(shifted, ranks).map(|peer| peer.map(|peer| (peer + 1) % ranks))
    };
    [first, second]
}

/// Parent and children in a binary tree whose levels are the lowest set bits of its ranks.
fn binary_tree(rank: u32, ranks: u32) -> [Option<u32>; 3] {
    if rank == 0 {
        let top = ranks.next_power_of_two() >> 1;
        return [None, (ranks > 1).then_some(top), None];
    }
    let bit = rank & rank.wrapping_neg();
    let above = (rank ^ bit) | (bit << 1);
    let parent = if above < ranks { above } else { rank ^ bit };
    let low = bit >> 1;
    let left = (low > 0).then(|| rank - low);
    let right = std::iter::successors(Some(low), |low| Some(low >> 1))
        .take_while(|low| *low > 0)
        .map(|low| rank + low)
        .find(|peer| *peer < ranks);
    [Some(parent), left, right]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trees_span_all_ranks_and_no_rank_is_inside_both() {
        for ranks in 2..200 {
            for tree in 0..2 {
                let of = |rank| double_tree(rank, ranks)[tree];
                let edges: usize = (0..ranks)
                    .map(|rank| of(rank).iter().flatten().count())
                    .sum();
                assert_eq!(edges, 2 * (ranks as usize - 1), "{ranks} ranks have a tree");
                for rank in 0..ranks {
                    for peer in of(rank).into_iter().flatten() {
                        assert!(
                            of(peer).contains(&Some(rank)),
                            "{rank} and {peer} of {ranks} agree"
                        );
                    }
                    // Up to the root in few steps.
                    let mut at = rank;
                    for _ in 0..=ranks.ilog2() + 1 {
                        at = of(at)[0].unwrap_or(at);
                    }
                    assert_eq!(of(at)[0], None, "{rank} of {ranks} reaches the root");
                }
            }
            let most = (0..ranks)
                .map(|rank| double_tree(rank, ranks).iter().flatten().flatten().count() as u32)
                .max();
            assert_eq!(Some(tree_halves(ranks)), most);
            assert!(most <= Some(4));
        }
    }

    #[test]
    fn parts_sum_to_the_whole() {
        for (total, parts) in [(0, 3), (10, 3), (7, 8), (u64::from(u32::MAX) * 977, 72)] {
            let all: Vec<u64> = (0..parts).map(|index| part(total, parts, index)).collect();
            assert_eq!(all.iter().sum::<u64>(), total);
            assert!(all.iter().max().unwrap() - all.iter().min().unwrap() <= 1);
        }
    }
}
