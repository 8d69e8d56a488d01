//! The event loop of an execution trace.
//!
//! A node starts when all that it waits for is over: a kernel also when its stream is free, host work
//! and transfers either way to its memory one after the other, a communication when all its ranks are there. Kernels
//! take the time that the plan gives them; what was recorded already includes whatever ran beside
//! them. Communications share the links as those of a training step do.
//!
//! Every picosecond of a rank is booked once. While a kernel runs, the time is the kernel's (of
//! several, that of the one that began first). While none runs, the time goes to what the next kernel
//! waited for, and to what that waited for, back to the end of the kernel before.

use rackflow_engine::{EventClass, EventQueue};
use rackflow_network::{FlowId, FlowNet};
use rackflow_plan::replay::{Action, CommunicationKind, ReplayPlan};
use rackflow_topology::Level;
use rackflow_units::{SimDuration, SimTime};
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use thiserror::Error;

/// Where the time of one rank went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ReplayCause {
    /// Operations of kernels, at the dense peak.
    Useful,
    /// Bytes of kernels, at the peak bandwidth, beyond the operations.
    MemoryBound,
    /// The rest of the kernels' time.
    Kernels,
    /// Waiting for the host.
    Host,
    /// Waiting for memory beyond the accelerator's own.
    Memory,
    /// Waiting for a communication of this kind, whose slowest level is this.
    Exposed(CommunicationKind, Level),
    /// Waiting for partners of a collective that are not there yet.
    Partners,
    /// Waiting for the other end of a message.
    Peer,
    /// Its own work is over, that of others is not.
    Idle,
}

const LEVELS: [Level; 4] = [Level::NvLink, Level::Leaf, Level::Spine, Level::Core];
const EXPOSED_AT: usize = 5;
const AFTER: usize = EXPOSED_AT + CommunicationKind::COUNT * LEVELS.len();

impl ReplayCause {
    /// Number of causes.
    pub const COUNT: usize = AFTER + 3;

    /// Position in a table of all causes.
    pub fn index(self) -> usize {
        match self {
            Self::Useful => 0,
            Self::MemoryBound => 1,
            Self::Kernels => 2,
            Self::Host => 3,
            Self::Memory => 4,
            Self::Exposed(kind, level) => {
                let level = LEVELS.iter().position(|known| *known == level).unwrap_or(0);
                EXPOSED_AT + kind.index() * LEVELS.len() + level
            }
            Self::Partners => AFTER,
            Self::Peer => AFTER + 1,
            Self::Idle => AFTER + 2,
        }
    }

    /// Every cause, in the order of [`ReplayCause::index`].
    pub fn all() -> impl Iterator<Item = Self> {
        let exposed = CommunicationKind::all().flat_map(|kind| {
            LEVELS
                .into_iter()
                .map(move |level| Self::Exposed(kind, level))
        });
        [
            Self::Useful,
            Self::MemoryBound,
            Self::Kernels,
            Self::Host,
            Self::Memory,
        ]
        .into_iter()
        .chain(exposed)
        .chain([Self::Partners, Self::Peer, Self::Idle])
    }
}

/// Picoseconds by cause.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReplayAccounts([u128; ReplayCause::COUNT]);

impl Default for ReplayAccounts {
    fn default() -> Self {
        Self([0; ReplayCause::COUNT])
    }
}

impl ReplayAccounts {
    fn book(&mut self, cause: ReplayCause, span: SimDuration) {
        self.0[cause.index()] += u128::from(span.as_picos());
    }

    /// Picoseconds booked to `cause`.
    pub fn picos(&self, cause: ReplayCause) -> u128 {
        self.0[cause.index()]
    }

    /// Picoseconds in all.
    pub fn total_picos(&self) -> u128 {
        self.0.iter().sum()
    }

    fn add(&mut self, other: &Self) {
        for (mine, theirs) in self.0.iter_mut().zip(other.0) {
            *mine += theirs;
        }
    }
}

/// What happened in a replay.
#[derive(Debug, Clone, PartialEq)]
pub struct ReplayRecord {
    /// From the first start to the last end.
    pub step_time: SimDuration,
    /// Where the time of each rank went, in the order of the plan's ranks; each sums to `step_time`.
    pub accounts: Vec<ReplayAccounts>,
    /// Events handled.
    pub events: u64,
}

impl ReplayRecord {
    /// Accounts of all ranks together.
    pub fn total(&self) -> ReplayAccounts {
        let mut total = ReplayAccounts::default();
        for accounts in &self.accounts {
            total.add(accounts);
        }
        total
    }
}

/// Ranks wait for each other without end: a fault of the trace.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error(
    "the replay is stuck at {at}: rank {rank} is at node {node}, a {what}, and its partners never \
     come to it"
)]
pub struct StuckReplay {
    /// When.
    pub at: SimDuration,
    /// One of the ranks that wait.
    pub rank: u32,
    /// Number of the node that it is at.
    pub node: u64,
    /// What that is.
    pub what: &'static str,
}

/// When a node of a replay did what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NodeTimes {
    /// All that it waits for is over; a rank has come to a communication.
    pub ready: SimTime,
    /// It begins: its stream is free, or all ranks of a communication are there.
    pub started: SimTime,
    /// It is over.
    pub ended: SimTime,
}

/// Replays a trace.
///
/// # Errors
/// When ranks wait for each other without end.
///
/// # Panics
/// When the accounts do not sum to the step time, which would be an error of this crate.
pub fn simulate_replay(plan: &ReplayPlan) -> Result<ReplayRecord, StuckReplay> {
    run(plan).map(|(record, _)| record)
}

/// The same, with the times of every node: of each of the plan's ranks, in the order of its nodes.
///
/// # Errors
/// When ranks wait for each other without end.
///
/// # Panics
/// As [`simulate_replay`].
pub fn simulate_replay_traced(
    plan: &ReplayPlan,
) -> Result<(ReplayRecord, Vec<Vec<NodeTimes>>), StuckReplay> {
    let (record, pasts) = run(plan)?;
    let times = |past: &Past| NodeTimes {
        ready: past.ready,
        started: past.started,
        ended: past.ended,
    };
    let times = pasts.iter().map(|past| past.iter().map(times).collect());
    Ok((record, times.collect()))
}

fn run(plan: &ReplayPlan) -> Result<(ReplayRecord, Vec<Vec<Past>>), StuckReplay> {
    let mut replay = Replay::new(plan);
    replay.start();
    while let Some((now, event)) = replay.queue.pop() {
        match event {
            Event::Over(rank, node) => replay.over(now, rank, node),
            Event::Arrived(flow) => replay.arrived(now, flow),
        }
    }
    replay.record()
}

const ENDS: EventClass = EventClass(0);

enum Event {
    /// A kernel, host work or a transfer to memory of a rank is over.
    Over(u32, u32),
    /// A flow has ended.
    Arrived(FlowId),
}

/// Something that one node at a time may use.
#[derive(Default)]
struct Server {
    busy: bool,
    /// Nodes that wait, the first of the file in front.
    ready: BinaryHeap<Reverse<u32>>,
}

/// What is remembered of a node, to say later what was waited for.
#[derive(Clone, Copy)]
struct Past {
    ready: SimTime,
    started: SimTime,
    /// The end of time, until it has ended.
    ended: SimTime,
    /// The node whose end made it ready.
    after: u32,
}

const NOTHING: u32 = u32::MAX;

struct RankState {
    /// Nodes that each node still waits for.
    waits: Vec<u32>,
    past: Vec<Past>,
    streams: Vec<Server>,
    host: Server,
    loads: Server,
    stores: Server,
    /// Kernels that run, in the order in which they began, and how much of their time is their own.
    running: Vec<(u32, SimDuration)>,
    /// Since when the kernel in front owns the time, or since when none runs.
    since: SimTime,
    last: u32,
    unfinished: usize,
    accounts: ReplayAccounts,
}

impl RankState {
    /// What does the work of the host, or one way of transfers to its memory.
    fn server(&mut self, action: Action) -> &mut Server {
        match action {
            Action::Host(_) => &mut self.host,
            Action::Load(_) => &mut self.loads,
            Action::Store(_) => &mut self.stores,
            other => unreachable!("{other:?} does not wait here"),
        }
    }
}

struct Replay<'p> {
    plan: &'p ReplayPlan,
    queue: EventQueue<Event>,
    net: FlowNet,
    ranks: Vec<RankState>,
    /// Ranks that have come to each communication, each with its node; in the order of `members`.
    came: Vec<u32>,
    waiting: Vec<u32>,
    /// By flow slot: the event of its end, and which communication it is.
    active: Vec<Option<(rackflow_engine::EventId, u32)>>,
    changed: Vec<(FlowId, SimTime)>,
}

impl<'p> Replay<'p> {
    fn new(plan: &'p ReplayPlan) -> Self {
        let ranks = plan
            .ranks
            .iter()
            .map(|rank| RankState {
                waits: rank.nodes.iter().map(|node| node.waits).collect(),
                past: vec![
                    Past {
                        ready: SimTime::ZERO,
                        started: SimTime::ZERO,
                        ended: SimTime::MAX,
                        after: NOTHING,
                    };
                    rank.nodes.len()
                ],
                streams: (0..rank.streams).map(|_| Server::default()).collect(),
                host: Server::default(),
                loads: Server::default(),
                stores: Server::default(),
                running: Vec::new(),
                since: SimTime::ZERO,
                last: NOTHING,
                unfinished: rank.nodes.len(),
                accounts: ReplayAccounts::default(),
            })
            .collect();
        Self {
            plan,
            queue: EventQueue::new(),
            net: FlowNet::new(2 * plan.ranks.len()),
            ranks,
            came: vec![0; plan.communications.len()],
            waiting: vec![NOTHING; plan.members.len()],
            active: Vec::new(),
            changed: Vec::new(),
        }
    }

    fn start(&mut self) {
        for rank in 0..self.plan.ranks.len() as u32 {
            for node in 0..self.plan.ranks[rank as usize].nodes.len() as u32 {
                if self.plan.ranks[rank as usize].nodes[node as usize].waits == 0 {
                    self.ready(SimTime::ZERO, rank, node, NOTHING);
                }
            }
        }
    }

    /// Nothing is left that a node waits for; `after` was the last.
    fn ready(&mut self, now: SimTime, rank: u32, node: u32, after: u32) {
        let state = &mut self.ranks[rank as usize];
        let past = &mut state.past[node as usize];
        past.ready = now;
        past.after = after;
        match self.plan.ranks[rank as usize].nodes[node as usize].action {
            Action::Kernel { stream, .. } => {
                state.streams[stream as usize].ready.push(Reverse(node));
                self.serve_kernel(now, rank, stream);
            }
            action @ (Action::Host(_) | Action::Load(_) | Action::Store(_)) => {
                state.server(action).ready.push(Reverse(node));
                self.serve(now, rank, action);
            }
            Action::Communicate(communication) => self.come(now, rank, node, communication),
            Action::Nothing => {
                past.started = now;
                // By way of the queue: a chain of such nodes may be long.
                self.queue.schedule(now, ENDS, Event::Over(rank, node));
            }
        }
    }

    fn serve_kernel(&mut self, now: SimTime, rank: u32, stream: u32) {
        let state = &mut self.ranks[rank as usize];
        let server = &mut state.streams[stream as usize];
        if server.busy {
            return;
        }
        let Some(Reverse(node)) = server.ready.pop() else {
            return;
        };
        server.busy = true;
        state.past[node as usize].started = now;
        self.take_time(now, rank, Some(node));
        let state = &mut self.ranks[rank as usize];
        state.running.push((node, SimDuration::ZERO));
        let Action::Kernel { kernel, .. } =
            self.plan.ranks[rank as usize].nodes[node as usize].action
        else {
            unreachable!("streams hold kernels")
        };
        let end = now + self.plan.kernels[kernel as usize].time;
        self.queue.schedule(end, ENDS, Event::Over(rank, node));
    }

    /// Starts the next node of the kind of `action`: of the host, or of one way to its memory.
    fn serve(&mut self, now: SimTime, rank: u32, action: Action) {
        let state = &mut self.ranks[rank as usize];
        let server = state.server(action);
        if server.busy {
            return;
        }
        let Some(Reverse(node)) = server.ready.pop() else {
            return;
        };
        server.busy = true;
        state.past[node as usize].started = now;
        let span = match self.plan.ranks[rank as usize].nodes[node as usize].action {
            Action::Host(span) | Action::Load(span) | Action::Store(span) => span,
            other => unreachable!("{other:?} does not wait here"),
        };
        self.queue
            .schedule(now + span, ENDS, Event::Over(rank, node));
    }

    /// Gives the time up to now to whoever owns it. Where nothing runs and `starts` is what starts
    /// now, that is what it waited for.
    fn take_time(&mut self, now: SimTime, rank: u32, starts: Option<u32>) {
        let state = &mut self.ranks[rank as usize];
        match (state.running.first_mut(), starts) {
            (Some((_, own)), _) => *own += now.since(state.since),
            (None, Some(node)) => {
                let after = state.past[node as usize].after;
                self.book_wait(now, rank, after);
            }
            (None, None) => {}
        }
        self.ranks[rank as usize].since = now;
    }

    /// Books the time from the end of the last kernel to `now` to the chain of nodes that ended with
    /// `node`.
    fn book_wait(&mut self, now: SimTime, rank: u32, mut node: u32) {
        let plan = self.plan;
        let state = &mut self.ranks[rank as usize];
        let from = state.since;
        let mut until = now;
        while until > from && node != NOTHING {
            let past = state.past[node as usize];
            let mut part = |start: SimTime, cause: ReplayCause, accounts: &mut ReplayAccounts| {
                let start = start.clamp(from, until);
                accounts.book(cause, until.since(start));
                until = start;
            };
            let accounts = &mut state.accounts;
            // A node may have ended before another thing held up what came after it.
            part(past.ended, ReplayCause::Idle, accounts);
            match plan.ranks[rank as usize].nodes[node as usize].action {
                Action::Kernel { .. } | Action::Nothing => {
                    part(past.ready, ReplayCause::Idle, accounts);
                }
                Action::Host(_) => part(past.ready, ReplayCause::Host, accounts),
                Action::Load(_) | Action::Store(_) => {
                    part(past.ready, ReplayCause::Memory, accounts);
                }
                Action::Communicate(communication) => {
                    let one = &plan.communications[communication as usize];
                    let level = plan.demands[one.demand as usize].level;
                    let exposed = ReplayCause::Exposed(one.kind, level);
                    part(past.started, exposed, accounts);
                    let absent = match one.kind {
                        CommunicationKind::Collective(_) => ReplayCause::Partners,
                        CommunicationKind::Message => ReplayCause::Peer,
                    };
                    part(past.ready, absent, accounts);
                }
            }
            node = past.after;
        }
        state.accounts.book(ReplayCause::Idle, until.since(from));
    }

    fn over(&mut self, now: SimTime, rank: u32, node: u32) {
        match self.plan.ranks[rank as usize].nodes[node as usize].action {
            Action::Kernel { kernel, stream } => {
                self.take_time(now, rank, None);
                let state = &mut self.ranks[rank as usize];
                let at = state
                    .running
                    .iter()
                    .position(|(running, _)| *running == node);
                let (_, own) = state
                    .running
                    .remove(at.expect("a kernel that ends was running"));
                state.streams[stream as usize].busy = false;
                self.book_kernel(rank, kernel, own);
                self.finished(now, rank, node);
                self.serve_kernel(now, rank, stream);
            }
            action @ (Action::Host(_) | Action::Load(_) | Action::Store(_)) => {
                self.ranks[rank as usize].server(action).busy = false;
                self.finished(now, rank, node);
                self.serve(now, rank, action);
            }
            Action::Nothing => self.finished(now, rank, node),
            Action::Communicate(_) => unreachable!("a communication ends with its flow"),
        }
    }

    /// Books the part of a kernel's time that is its own, in the kernel's proportions.
    fn book_kernel(&mut self, rank: u32, kernel: u32, own: SimDuration) {
        let kernel = &self.plan.kernels[kernel as usize];
        let accounts = &mut self.ranks[rank as usize].accounts;
        let whole = kernel.time.as_picos().max(1);
        let useful = kernel.useful.scale(own.as_picos(), whole).min(own);
        let memory = kernel.memory.scale(own.as_picos(), whole).min(own - useful);
        accounts.book(ReplayCause::Useful, useful);
        accounts.book(ReplayCause::MemoryBound, memory);
        accounts.book(ReplayCause::Kernels, own - useful - memory);
    }

    /// A rank has come to a communication.
    fn come(&mut self, now: SimTime, rank: u32, node: u32, communication: u32) {
        let one = self.plan.communications[communication as usize];
        let members = one.members.0 as usize..one.members.1 as usize;
        let at = members
            .clone()
            .find(|at| self.plan.members[*at] == rank)
            .expect("a rank that takes part is a member");
        self.waiting[at] = node;
        self.came[communication as usize] += 1;
        if self.came[communication as usize] as usize != members.len() {
            return;
        }
        for at in members.clone() {
            let (rank, node) = (self.plan.members[at], self.waiting[at]);
            self.ranks[rank as usize].past[node as usize].started = now;
        }
        let ranks = &self.plan.members[members];
        let ports: Vec<u32> = match (one.kind, ranks) {
            (CommunicationKind::Message, [from, to]) => vec![2 * from, 2 * to + 1],
            (CommunicationKind::Message, [alone]) => vec![2 * alone + u32::from(one.ends[1])],
            _ => ranks.iter().flat_map(|r| [2 * r, 2 * r + 1]).collect(),
        };
        let demand = &self.plan.demands[one.demand as usize];
        let mut changed = std::mem::take(&mut self.changed);
        let flow = self.net.start(now, &ports, demand, &mut changed);
        if self.active.len() <= flow.slot() {
            self.active.resize(flow.slot() + 1, None);
        }
        let event = self
            .queue
            .schedule(self.net.ends(flow), ENDS, Event::Arrived(flow));
        self.active[flow.slot()] = Some((event, communication));
        self.reschedule(&mut changed, Some(flow));
        self.changed = changed;
    }

    /// Moves the ends of flows whose rate has changed.
    fn reschedule(&mut self, changed: &mut Vec<(FlowId, SimTime)>, except: Option<FlowId>) {
        for (flow, ends) in changed.drain(..) {
            if Some(flow) == except {
                continue;
            }
            if let Some(Some((event, _))) = self.active.get_mut(flow.slot()) {
                self.queue.cancel(*event);
                *event = self.queue.schedule(ends, ENDS, Event::Arrived(flow));
            }
        }
    }

    fn arrived(&mut self, now: SimTime, flow: FlowId) {
        let mut changed = std::mem::take(&mut self.changed);
        let over = self.net.arrive(now, flow, &mut changed);
        self.reschedule(&mut changed, None);
        self.changed = changed;
        if !over {
            return;
        }
        let (_, communication) = self.active[flow.slot()]
            .take()
            .expect("a flow that ends is active");
        let (start, end) = self.plan.communications[communication as usize].members;
        for at in start as usize..end as usize {
            self.finished(now, self.plan.members[at], self.waiting[at]);
        }
    }

    fn finished(&mut self, now: SimTime, rank: u32, node: u32) {
        let state = &mut self.ranks[rank as usize];
        state.past[node as usize].ended = now;
        state.last = node;
        state.unfinished -= 1;
        let of_rank = &self.plan.ranks[rank as usize];
        let (start, end) = of_rank.nodes[node as usize].successors;
        for next in &of_rank.successors[start as usize..end as usize] {
            let left = &mut self.ranks[rank as usize].waits[*next as usize];
            *left -= 1;
            if *left == 0 {
                self.ready(now, rank, *next, node);
            }
        }
    }

    fn record(mut self) -> Result<(ReplayRecord, Vec<Vec<Past>>), StuckReplay> {
        let end = self.queue.now();
        for (rank, state) in self.plan.ranks.iter().zip(&self.ranks) {
            if state.unfinished == 0 {
                continue;
            }
            // Of what has come to a communication and not got through, the first.
            let stuck = rank.nodes.iter().enumerate().find(|(index, node)| {
                let waits = state.waits[*index] == 0;
                let over = state.past[*index].ended < SimTime::MAX;
                waits && !over && matches!(node.action, Action::Communicate(_))
            });
            if let Some((_, node)) = stuck {
                let Action::Communicate(communication) = node.action else {
                    continue;
                };
                return Err(StuckReplay {
                    at: end.since(SimTime::ZERO),
                    rank: rank.rank,
                    node: node.id,
                    what: self.plan.communications[communication as usize].kind.name(),
                });
            }
        }
        let step_time = end.since(SimTime::ZERO);
        for rank in 0..self.ranks.len() as u32 {
            let last = self.ranks[rank as usize].last;
            self.book_wait(end, rank, last);
        }
        let (accounts, pasts): (Vec<ReplayAccounts>, Vec<Vec<Past>>) = self
            .ranks
            .into_iter()
            .map(|state| (state.accounts, state.past))
            .unzip();
        for of_rank in &accounts {
            assert_eq!(
                of_rank.total_picos(),
                u128::from(step_time.as_picos()),
                "every picosecond of a rank is booked exactly once"
            );
        }
        let record = ReplayRecord {
            step_time,
            accounts,
            events: self.queue.events_handled(),
        };
        Ok((record, pasts))
    }
}
