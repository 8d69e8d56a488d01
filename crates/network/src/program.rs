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
use rackflow_topology::{Axis, GroupSpan, Joined, Seats};
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
    /// Payload rate of a rank's link into its domain, and of its share of the NICs.
    pub rates: [Bandwidth; 2],
    /// What the protocol adds to the latency of the way at each step, inside a domain and across.
    pub added: [SimDuration; 2],
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

    /// For how long a message keeps the port of its sender busy at line rate, inside its domain or
    /// across.
    pub fn busy(&self, message: Message, across: bool) -> SimDuration {
        self.rates[usize::from(across)].time_to_send(message.bytes)
    }
}

/// A group as its programs see it.
#[derive(Debug, Clone, Copy)]
struct Grid<'a> {
    seats: &'a Seats,
    /// Members of the fullest domain and of the emptiest, which a price is of.
    most: u32,
    least: u32,
    rails: u32,
}

impl<'a> Grid<'a> {
    fn of(group: &GroupSpan, seats: &'a Seats) -> Self {
        Self {
            seats,
            most: group.ranks_per_domain_max,
            least: group.ranks_per_domain_min,
            rails: group.rails,
        }
    }

    fn ranks(self) -> u32 {
        self.seats.ranks()
    }

    fn domains(self) -> u32 {
        self.seats.domains()
    }

    fn across(self) -> bool {
        self.domains() > 1
    }

    fn rank(self, domain: u32, member: u32) -> u32 {
        self.seats.rank(domain, member)
    }

    fn next_domain(self, domain: u32) -> u32 {
        (domain + 1) % self.domains()
    }

    /// The part of a rank's load that stays in its domain, of an all-to-all that also hands on what
    /// goes to other rails.
    fn of_own_domain(self, load: Load) -> Load {
        let rails = u64::from(self.rails);
        let own = u64::from(self.most - 1) * rails;
        let handed = u64::from(self.ranks() - self.least) * (rails - 1);
        load.times(own, (own + handed).max(1))
    }
}

/// A rank in its domain.
#[derive(Debug, Clone, Copy)]
struct Seat<'a> {
    grid: Grid<'a>,
    rank: u32,
    domain: u32,
    member: u32,
    /// Members of its domain.
    members: u32,
}

impl<'a> Seat<'a> {
    fn at(grid: Grid<'a>, domain: u32, member: u32) -> Self {
        Self {
            grid,
            rank: grid.rank(domain, member),
            domain,
            member,
            members: grid.seats.members(domain),
        }
    }

    fn joined(self) -> &'a Joined {
        self.grid.seats.joined(self.domain)
    }

    fn mate(self, member: u32) -> u32 {
        self.grid.rank(self.domain, member % self.members)
    }

    fn mates(self) -> impl Iterator<Item = u32> {
        let first = self.grid.rank(self.domain, 0);
        (first..first + self.members).filter(move |rank| *rank != self.rank)
    }

    /// What the members of this domain send to those of another when each of the two sides shares the
    /// whole evenly: the receivers of this rank's part, and which part of the whole goes to each.
    fn lanes(self, to: u32) -> impl Iterator<Item = (u32, u64, u64)> {
        let (here, there) = (
            u64::from(self.members),
            u64::from(self.grid.seats.members(to)),
        );
        let (start, end) = (
            u64::from(self.member) * there,
            u64::from(self.member + 1) * there,
        );
        let first = self.grid.rank(to, 0);
        (start / here..end.div_ceil(here)).map(move |member| {
            let overlap = end.min((member + 1) * here) - start.max(member * here);
            (first + member as u32, overlap, here * there)
        })
    }
}

/// Bytes of a flow, and for how long it keeps a port busy.
#[derive(Debug, Clone, Copy)]
struct Load {
    bytes: u64,
    busy: u64,
}

impl Load {
    fn new(bytes: Bytes, busy: SimDuration) -> Self {
        Self {
            bytes: bytes.get(),
            busy: busy.as_picos(),
        }
    }

    /// A fraction of it, rounded up.
    fn times(self, numerator: u64, denominator: u64) -> Self {
        let share = |whole: u64| {
            let part = u128::from(whole) * u128::from(numerator);
            part.div_ceil(u128::from(denominator.max(1))) as u64
        };
        Self {
            bytes: share(self.bytes),
            busy: share(self.busy),
        }
    }
}

/// What a collective loads its edges with, from its price: loads there are those of the busiest rank.
struct Loads {
    /// On the scale-up port.
    near: Load,
    /// On the share of the NICs.
    far: Load,
    /// Part of a rank's scale-up bandwidth in the price, in millionths.
    part: u32,
}

impl Loads {
    /// What a member of a ring through its domain sends there: of a whole buffer all but the part of
    /// one in `members`.
    fn ring(&self, seat: Seat<'_>) -> Load {
        let (grid, m) = (seat.grid, u64::from(seat.members));
        if !grid.across() {
            return self.near;
        }
        let most = u64::from(grid.most);
        self.near.times((m - 1) * most, m * (most - 1).max(1))
    }

    /// What a member of a reduction in its domain's switches sends: a part for each member and one
    /// more.
    fn switched(&self, seat: Seat<'_>) -> Load {
        let (m, least) = (u64::from(seat.members), u64::from(seat.grid.least));
        self.near.times((m + 1) * least, m * (least + 1))
    }

    /// The time on one link of several, of bytes that the price has on a part of all links.
    fn on_link(&self, load: Load, joined: &Joined, used: u32) -> Load {
        let busy = u128::from(load.busy) * u128::from(self.part) * u128::from(joined.links());
        let of = u128::from(used.max(1)) * u128::from(WHOLE);
        Load {
            bytes: load.bytes.div_ceil(u64::from(used.max(1))),
            busy: busy.div_ceil(of) as u64,
        }
    }

    /// What one of several equal messages to the others of the domain is, of what they all are.
    fn pair(&self, all: Load, seat: Seat<'_>) -> Load {
        let others = seat.members - 1;
        match seat.joined() {
            Joined::Switched { .. } => all.times(1, others.into()),
            joined => self.on_link(all, joined, others),
        }
    }
}

/// Takes the edges of a program one by one.
struct Edges<'a>(&'a mut dyn FnMut(Edge));

impl Edges<'_> {
    fn push(&mut self, from: u32, to: u32, via: Via, load: Load) {
        if load.bytes > 0 {
            (self.0)(Edge {
                from,
                to,
                via,
                bytes: Bytes::new(load.bytes),
                busy: SimDuration::from_picos(load.busy),
            });
        }
    }
}

/// A collective whose edges are all busy at once, before they are written down: an exchange has too
/// many for a list.
pub struct Outline<'a> {
    op: CollectiveOp,
    algorithm: Algorithm,
    grid: Grid<'a>,
    loads: Loads,
    lead: SimDuration,
}

impl<'a> Outline<'a> {
    /// The collective that costs `demand` on idle links without tiers in its way, as flows that
    /// share links with whatever else there is. `None` where the algorithm has no such program: what
    /// pipelines nothing has a [stepped](Program::stepped) one.
    pub fn new(
        op: CollectiveOp,
        group: &GroupSpan,
        seats: &'a Seats,
        demand: &Demand,
    ) -> Option<Self> {
        if Program::is_stepped(demand.algorithm, op) {
            return None;
        }
        Some(Self {
            op,
            algorithm: demand.algorithm,
            grid: Grid::of(group, seats),
            loads: Loads {
                near: Load::new(demand.wire_bytes_nvlink, demand.nvlink),
                far: Load::new(demand.wire_bytes_nic, demand.nic),
                part: demand.scale_up_part,
            },
            lead: demand.latency,
        })
    }

    /// What passes before the edges are busy.
    pub fn lead(&self) -> SimDuration {
        self.lead
    }

    /// Whether every rank sends to every other, so that there are as many flows as pairs.
    pub fn is_exchange(&self) -> bool {
        matches!(
            (self.algorithm, self.op),
            (Algorithm::Direct | Algorithm::Pxn, CollectiveOp::AllToAll) | (Algorithm::Relayed, _)
        )
    }

    /// An upper bound of the number of edges.
    pub fn most_edges(&self) -> u64 {
        let (n, k) = (u64::from(self.grid.ranks()), u64::from(self.grid.domains()));
        let (most, least) = (u64::from(self.grid.most), u64::from(self.grid.least));
        match self.algorithm {
            Algorithm::Direct | Algorithm::Pxn if self.is_exchange() => n * n,
            Algorithm::Relayed => n * (most + k * most.div_ceil(least)),
            _ => n * (most + 16),
        }
    }

    /// Calls `each` with every edge, those of a rank after each other.
    pub fn each(&self, mut each: impl FnMut(Edge)) {
        let edges = &mut Edges(&mut each);
        for domain in 0..self.grid.domains() {
            for member in 0..self.grid.seats.members(domain) {
                self.of_rank(Seat::at(self.grid, domain, member), edges);
            }
        }
    }

    fn of_rank(&self, seat: Seat<'_>, edges: &mut Edges<'_>) {
        let (grid, loads) = (self.grid, &self.loads);
        match (self.algorithm, self.op) {
            (Algorithm::Ring, CollectiveOp::Broadcast) => chain(seat, loads, edges),
            (Algorithm::Ring | Algorithm::Hierarchical, _) => ring(seat, loads, edges),
            (Algorithm::Tree, _) => {
                up_and_down(seat, loads, edges);
                tree(seat, loads.far, edges);
            }
            (Algorithm::InSwitch | Algorithm::InSwitchTree, _) => {
                in_switch(seat, loads, edges);
                if grid.across() {
                    tree(seat, loads.far, edges);
                }
            }
            (Algorithm::InNetwork, _) => {
                if *seat.joined() == (Joined::Switched { reduces: true }) && grid.least > 1 {
                    in_switch(seat, loads, edges);
                } else {
                    pairs(seat, loads.pair(loads.ring(seat), seat), edges);
                }
                in_network(seat, loads.far, edges);
            }
            (Algorithm::Direct, CollectiveOp::SendRecv) => {
                if seat.rank == 0 {
                    let load = if grid.across() { loads.far } else { loads.near };
                    edges.push(0, grid.ranks() - 1, Via::Route, load);
                }
            }
            (Algorithm::Direct, _) => direct(seat, Via::Route, loads.near, loads, edges),
            // What is handed over is in the edges that leave the domain.
            (Algorithm::Pxn, _) => {
                direct(
                    seat,
                    Via::Rail,
                    grid.of_own_domain(loads.near),
                    loads,
                    edges,
                );
            }
            (Algorithm::Relayed, _) => relayed(seat, loads, edges),
            (Algorithm::Local | Algorithm::RecursiveHalving, _) => {}
        }
    }
}

impl Program {
    /// The flows of an [`Outline`]; `None` where there is none.
    pub fn pipelined(
        op: CollectiveOp,
        group: &GroupSpan,
        seats: &Seats,
        demand: &Demand,
    ) -> Option<Self> {
        let outline = Outline::new(op, group, seats, demand)?;
        let mut edges = Vec::new();
        outline.each(|edge| edges.push(edge));
        Some(Self::Pipelined {
            lead: outline.lead(),
            edges,
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

    /// A textbook collective over `bytes`, step after step, every message of a ring in `chunks`: a ring through all ranks,
    /// recursive halving and doubling, a hierarchy of rings, or an all-to-all by shifts. `None` where all but the ring meet
    /// domains with different numbers of ranks, or halving a number that is no power of two.
    pub fn stepped(
        algorithm: Algorithm,
        op: CollectiveOp,
        bytes: Bytes,
        group: &GroupSpan,
        links: &Links,
        protocol: Protocol,
        chunks: u32,
    ) -> Option<Self> {
        let (n, k, g) = (group.ranks, group.domains, group.ranks_per_domain_max);
        let even = g == group.ranks_per_domain_min;
        let inside = Teams { stride: 1, size: g };
        let across = Teams { stride: g, size: k };
        let near = if op == CollectiveOp::AllToAll {
            links.copy_rate(protocol)
        } else {
            links.nvlink_rate(protocol)
        };
        let phase = |pattern, teams: Teams, slice| Phase {
            pattern,
            teams,
            bytes: bytes.get(),
            slice,
            rates: [links.on_one_link(near, group), links.nic_rate(protocol)],
            added: [
                links.nvlink_added(protocol),
                links.nic_added(Shape::Ring, protocol),
            ],
            chunks: match pattern {
                Pattern::Ring => chunks.max(1),
                Pattern::Halving | Pattern::Doubling | Pattern::Shift => 1,
            },
        };
        let whole = (1, 1);
        let column = (1, g);
        let reduce: Vec<Phase> = match algorithm {
            Algorithm::Ring if op != CollectiveOp::AllToAll => {
                let all = Teams { stride: 1, size: n };
                vec![phase(Pattern::Ring, all, whole)]
            }
            _ if !even => return None,
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
            ranks: n,
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

/// Rings enter and leave every domain on each member's NIC in turn. The NVLink edges of all rings
/// out of one rank go to the same neighbour.
fn ring(seat: Seat<'_>, loads: &Loads, edges: &mut Edges<'_>) {
    around(seat, loads, edges);
    if seat.grid.across() {
        to_domain(seat, seat.grid.next_domain(seat.domain), loads.far, edges);
    }
}

/// A rank's part of what its domain sends to another. `far` is what a member of the emptiest domain
/// sends of it.
fn to_domain(seat: Seat<'_>, to: u32, far: Load, edges: &mut Edges<'_>) {
    let columns = u64::from(seat.grid.least);
    for (to, part, of) in seat.lanes(to) {
        edges.push(seat.rank, to, Via::Route, far.times(part * columns, of));
    }
}

/// A rank's edges to its neighbours on rings through its domain: one ring behind switches, one per
/// peer on a mesh, one per direction of every axis on a torus, one both ways through a part of one.
fn around(seat: Seat<'_>, loads: &Loads, edges: &mut Edges<'_>) {
    if seat.members == 1 {
        return;
    }
    let (load, member) = (loads.ring(seat), seat.member);
    let mut push = |to: u32, load: Load| edges.push(seat.rank, seat.mate(to), Via::Route, load);
    match seat.joined() {
        Joined::Switched { .. } => push(member + 1, load),
        joined @ Joined::Mesh { .. } => {
            let each = loads.on_link(load, joined, seat.members - 1);
            for to in (0..seat.members).filter(|to| *to != member) {
                push(to, each);
            }
        }
        joined @ Joined::Torus(axes) => {
            let used = || axes.iter().filter(|axis| axis.extent > 1);
            let rings = used().map(|axis| 1 + u32::from(axis.closed)).sum();
            let each = loads.on_link(load, joined, rings);
            let mut stride = 1;
            for &Axis { extent, closed } in axes {
                let at = member / stride % extent;
                let neighbour =
                    |at: u32, by: u32| member - at * stride + (at + by) % extent * stride;
                if extent > 1 {
                    push(neighbour(at, 1), each);
                }
                if extent > 1 && closed {
                    push(neighbour(at, extent - 1), each);
                }
                stride *= extent;
            }
        }
        joined @ Joined::Loop { order, .. } => {
            let each = loads.on_link(load, joined, 2);
            let place = order.iter().position(|other| *other == member);
            let place = place.unwrap_or(0) as u32;
            for by in [1, seat.members - 1] {
                push(order[((place + by) % seat.members) as usize], each);
            }
        }
    }
}

/// A chain of a tree: half of what a rank sends goes up it, half down.
fn up_and_down(seat: Seat<'_>, loads: &Loads, edges: &mut Edges<'_>) {
    if !seat.joined().is_switched() {
        around(seat, loads, edges);
    } else if seat.members > 1 {
        let half = loads.ring(seat).times(1, 2);
        for by in [1, seat.members - 1] {
            edges.push(seat.rank, seat.mate(seat.member + by), Via::Route, half);
        }
    }
}

/// A rank's edges to all others of its domain.
fn pairs(seat: Seat<'_>, each: Load, edges: &mut Edges<'_>) {
    for to in seat.mates() {
        edges.push(seat.rank, to, Via::Route, each);
    }
}

fn in_switch(seat: Seat<'_>, loads: &Loads, edges: &mut Edges<'_>) {
    if seat.members > 1 {
        let load = loads.switched(seat);
        edges.push(seat.rank, seat.rank, Via::SwitchUp, load);
        edges.push(seat.rank, seat.rank, Via::SwitchDown, load);
    }
}

/// As many trees of the fabric's switches as the emptiest domain has members; a fuller one has them on
/// members that are spread over it.
fn in_network(seat: Seat<'_>, far: Load, edges: &mut Edges<'_>) {
    let columns = seat.grid.least;
    for tree in 0..columns {
        if tree * seat.members / columns == seat.member {
            edges.push(seat.rank, tree, Via::Tree, far);
        }
    }
}

fn chain(seat: Seat<'_>, loads: &Loads, edges: &mut Edges<'_>) {
    let grid = seat.grid;
    if !seat.joined().is_switched() || grid.across() || seat.member + 1 < seat.members {
        around(seat, loads, edges);
    }
    if seat.domain + 1 < grid.domains() {
        to_domain(seat, seat.domain + 1, loads.far, edges);
    }
}

/// Every pair alike: a price has all pairs of the fullest domain on NVLink, and of the emptiest on its
/// NICs.
fn direct(seat: Seat<'_>, via: Via, near: Load, loads: &Loads, edges: &mut Edges<'_>) {
    let grid = seat.grid;
    let own = near.times(u64::from(seat.members - 1), u64::from(grid.most - 1));
    pairs(seat, loads.pair(own, seat), edges);
    let each = loads.far.times(1, u64::from(grid.ranks() - grid.least));
    let first = grid.rank(seat.domain, 0);
    let elsewhere = (0..first).chain(first + seat.members..grid.ranks());
    for to in elsewhere {
        edges.push(seat.rank, to, via, each);
    }
}

/// Once to each other domain, as much as it has ranks, and from there to its members.
fn relayed(seat: Seat<'_>, loads: &Loads, edges: &mut Edges<'_>) {
    let grid = seat.grid;
    let most = u64::from(grid.most);
    let m = u64::from(seat.members);
    let near = loads.near.times((m - 1) * most, m * (most - 1).max(1));
    pairs(seat, loads.pair(near, seat), edges);
    let remote = u64::from(grid.ranks() - grid.least);
    for to in (0..grid.domains()).filter(|to| *to != seat.domain) {
        let there = u64::from(grid.seats.members(to));
        for (to, part, of) in seat.lanes(to) {
            let load = loads.far.times(there * part * m, remote * of);
            edges.push(seat.rank, to, Via::Route, load);
        }
    }
}

/// A rank's edges in both trees over the domains.
fn tree(seat: Seat<'_>, far: Load, edges: &mut Edges<'_>) {
    let domains = seat.grid.domains();
    let half = far.times(1, tree_halves(domains).into());
    for neighbours in double_tree(seat.domain, domains) {
        for peer in neighbours.into_iter().flatten() {
            to_domain(seat, peer, half, edges);
        }
    }
}

/// How many halves of its slice the busiest NIC of a double binary tree sends: as a leaf of one
/// tree one, inside the other one up and two down.
pub(crate) fn tree_halves(domains: u32) -> u32 {
    const MOST: u32 = 4;
    let mut busiest = 0;
    for domain in 0..domains {
        let trees = double_tree(domain, domains);
        busiest = busiest.max(trees.iter().flatten().flatten().count() as u32);
        // In all but the smallest trees one of the first domains is as busy as any can be.
        if busiest == MOST {
            break;
        }
    }
    busiest
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
