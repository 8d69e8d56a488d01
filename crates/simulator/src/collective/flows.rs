//! Programs of flows on the links of a cluster, run by the event loop.

use super::tally::choice;
use rackflow_engine::{EventClass, EventId, EventQueue, Model, run};
use rackflow_network::{Edge, FairNet, FlowId, Program, Via};
use rackflow_topology::{Level, LinkId, Routing, Wires};
use rackflow_units::{Bandwidth, Bytes, SimDuration, SimTime};

/// The order at one instant: what has left the wire, so that whoever begins a flow finds the net at
/// that instant, then what has arrived, then what begins.
const SENT: EventClass = EventClass(0);
const ARRIVED: EventClass = EventClass(1);
const BEGUN: EventClass = EventClass(2);

/// A program, who runs it and from when on.
#[derive(Debug, Clone, Copy)]
pub struct Task<'a> {
    /// What flows.
    pub program: &'a Program,
    /// The GPU of every rank.
    pub gpus: &'a [u32],
    /// When the program is called.
    pub start: SimTime,
    /// Connections of two NICs, each hashed to a path of its own on hashed fabrics.
    pub connections: u32,
}

/// What a run came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// When each task was done.
    pub ends: Vec<SimTime>,
    /// Flows that were simulated.
    pub flows: u64,
    /// Events that the loop handled.
    pub events: u64,
    /// Bytes that went over each link.
    pub carried: Vec<Bytes>,
}

/// Writes the links of a message into `route`.
pub(super) fn find_route(
    wires: &Wires,
    from: u32,
    to: u32,
    via: Via,
    connection: u64,
    route: &mut Vec<LinkId>,
) {
    let reached = match via {
        Via::Route => wires.route(from, to, connection, route),
        Via::Rail => wires.route_by_rail(from, to, connection, route),
        Via::Tree => unreachable!("trees are begun as a whole"),
        Via::SwitchUp | Via::SwitchDown => switch_link(wires, from, via == Via::SwitchUp, route),
    };
    assert!(reached, "GPU {from} cannot reach GPU {to}");
}

/// The link between a GPU and its switches: an end of its way to a neighbour in the domain.
fn switch_link(wires: &Wires, gpu: u32, up: bool, route: &mut Vec<LinkId>) -> bool {
    for other in [gpu.checked_sub(1), Some(gpu + 1)].into_iter().flatten() {
        if other >= wires.gpus() {
            continue;
        }
        let (a, b) = if up { (gpu, other) } else { (other, gpu) };
        wires.route(a, b, 0, route);
        let link = if up { route.first() } else { route.last() };
        if let Some(&link) = link
            && wires.level(link) == Level::NvLink
        {
            route.clear();
            route.push(link);
            return true;
        }
    }
    false
}

/// Whether a route leaves its domain.
pub(super) fn crosses(wires: &Wires, route: &[LinkId]) -> bool {
    route.iter().any(|link| wires.level(*link) > Level::NvLink)
}

#[derive(Debug, Clone, Copy)]
enum Event {
    /// Messages of this batch have reached their ranks.
    Arrived { batch: u32 },
    /// The next flow of the net ends.
    Sent,
    /// The lead of a task has passed.
    Begun { task: u32 },
}

/// A message on its way.
#[derive(Debug, Clone, Copy)]
struct Sending {
    /// Index of the state of the rank that sends; of the task, in a pipelined program.
    from: u32,
    /// Index of the state of the rank that receives, or [`NOBODY`].
    to: u32,
    /// The step of the program it belongs to.
    step: u32,
    latency: SimDuration,
}

impl Sending {
    /// A flow of a pipelined program: its task is done when all of them are.
    fn of_task(task: u32) -> Self {
        Self {
            from: task,
            to: NOBODY,
            step: 0,
            latency: SimDuration::ZERO,
        }
    }
}

/// Remembers what a flow is, and counts it.
fn keep(kept: &mut Vec<Sending>, flows: &mut u64, flow: FlowId, sending: Sending) {
    *flows += 1;
    if kept.len() <= flow.slot() {
        kept.resize(flow.slot() + 1, sending);
    }
    kept[flow.slot()] = sending;
}

/// The receiver of a flow whose arrival nobody waits for apart from its end.
const NOBODY: u32 = u32::MAX;

/// Where one rank is in a stepped program.
#[derive(Debug, Clone, Copy)]
struct RankState {
    task: u32,
    rank: u32,
    phase: u32,
    /// Messages of this phase that are sent or on the wire.
    sent: u32,
    /// Messages of earlier phases.
    before: u32,
    /// Messages that have come, without a gap.
    received: u32,
    /// First of the messages that came before their turn.
    early: u32,
    /// A message is leaving.
    sending: bool,
    /// All is sent and received.
    done: bool,
}

struct Early {
    step: u32,
    next: u32,
}

struct TaskState<'a> {
    task: Task<'a>,
    /// Index of the state of rank 0.
    first: u32,
    /// Ranks, or flows, that are not done.
    open: u32,
    end: SimTime,
}

struct Runner<'a> {
    wires: &'a Wires,
    /// Line rates of a GPU's link into its domain and of its share of the NICs.
    lines: (Bandwidth, Bandwidth),
    net: FairNet,
    tasks: Vec<TaskState<'a>>,
    states: Vec<RankState>,
    early: Vec<Early>,
    free_early: u32,
    /// By slot of the flow.
    sending: Vec<Sending>,
    batches: Vec<Vec<(u32, u32)>>,
    free_batches: Vec<u32>,
    /// The instants of batches that were opened since the last event.
    opened: Vec<(SimTime, u32)>,
    pending: Option<(SimTime, EventId)>,
    route: Vec<LinkId>,
    ended: Vec<FlowId>,
    done: Vec<Sending>,
    flows: u64,
}

/// Runs the tasks together on the links of a cluster. `lines` are the line rates of one of a GPU's
/// links into its domain and of its share of the NICs. Every message of every rank is a flow of its own.
///
/// # Panics
/// When a task names a GPU that the cluster does not have, or ranks cannot reach each other.
pub fn run_flows(wires: &Wires, lines: (Bandwidth, Bandwidth), tasks: &[Task<'_>]) -> Outcome {
    let links = 0..wires.links() as u32;
    let mut runner = Runner {
        wires,
        lines,
        net: FairNet::new(links.clone().map(|link| wires.bandwidth(LinkId(link)))),
        tasks: Vec::new(),
        states: Vec::new(),
        early: Vec::new(),
        free_early: NOBODY,
        sending: Vec::new(),
        batches: Vec::new(),
        free_batches: Vec::new(),
        opened: Vec::new(),
        pending: None,
        route: Vec::new(),
        ended: Vec::new(),
        done: Vec::new(),
        flows: 0,
    };
    let mut queue = EventQueue::new();
    for &task in tasks {
        let lead = match task.program {
            Program::Pipelined { lead, .. } | Program::Stepped { lead, .. } => *lead,
        };
        let index = runner.tasks.len() as u32;
        let begins = task.start + lead;
        runner.tasks.push(TaskState {
            task,
            first: 0,
            open: 0,
            end: begins,
        });
        queue.schedule(begins, BEGUN, Event::Begun { task: index });
    }
    let summary = run(&mut runner, &mut queue);
    assert!(
        runner.net.live() == 0,
        "every flow ends: no link of a route is cut"
    );
    Outcome {
        ends: runner.tasks.iter().map(|task| task.end).collect(),
        flows: runner.flows,
        events: summary.events_handled,
        carried: links.map(|link| runner.net.carried(LinkId(link))).collect(),
    }
}

impl Model for Runner<'_> {
    type Event = Event;

    fn handle(&mut self, event: Event, queue: &mut EventQueue<Event>) {
        let now = queue.now();
        match event {
            Event::Arrived { batch } => {
                let mut messages = std::mem::take(&mut self.batches[batch as usize]);
                for &(state, step) in &messages {
                    self.arrive(now, state, step);
                }
                messages.clear();
                self.batches[batch as usize] = messages;
                self.free_batches.push(batch);
            }
            Event::Sent => {
                self.pending = None;
                let mut ended = std::mem::take(&mut self.ended);
                let mut done = std::mem::take(&mut self.done);
                self.net.advance(now, &mut ended);
                // What begins below takes the slots of what has ended.
                done.extend(ended.drain(..).map(|flow| self.sending[flow.slot()]));
                self.ended = ended;
                for sending in done.drain(..) {
                    self.sent(now, sending, queue);
                }
                self.done = done;
                self.opened.clear();
            }
            Event::Begun { task } => self.begin(now, task),
        }
        self.watch(queue);
    }
}

impl Runner<'_> {
    /// Keeps one event at the next end of a flow.
    fn watch(&mut self, queue: &mut EventQueue<Event>) {
        // Ends of flows wait while other things happen at this instant.
        let next = self.net.next_completion();
        match (self.pending, next) {
            (Some((at, _)), Some(next)) if at == next => return,
            (Some((_, id)), _) => {
                queue.cancel(id);
            }
            (None, _) => {}
        }
        self.pending = next.map(|next| (next, queue.schedule(next, SENT, Event::Sent)));
    }

    fn begin(&mut self, now: SimTime, index: u32) {
        self.tell(now);
        let task = self.tasks[index as usize].task;
        match task.program {
            Program::Pipelined { edges, .. } => {
                self.begin_trees(index, task.gpus, edges);
                let along = |edge: &&Edge| edge.via != Via::Tree;
                for (number, edge) in edges.iter().filter(along).enumerate() {
                    self.begin_edge(index, task, edge, number as u64);
                }
            }
            Program::Stepped { ranks, phases, .. } => {
                let first = self.states.len() as u32;
                let state = &mut self.tasks[index as usize];
                (state.first, state.open) = (first, if phases.is_empty() { 0 } else { *ranks });
                self.states.extend((0..*ranks).map(|rank| RankState {
                    task: index,
                    rank,
                    phase: 0,
                    sent: 0,
                    before: 0,
                    received: 0,
                    early: NOBODY,
                    sending: false,
                    done: phases.is_empty(),
                }));
                for rank in 0..*ranks {
                    self.proceed(now, first + rank);
                }
            }
        }
    }

    /// Starts an edge: a flow for each connection that can take a path of its own.
    fn begin_edge(&mut self, index: u32, task: Task<'_>, edge: &Edge, number: u64) {
        let (from, to) = (task.gpus[edge.from as usize], task.gpus[edge.to as usize]);
        let choice = choice(edge, number);
        self.find_route(from, to, edge.via, choice);
        let connections = self.connections(task.connections);
        let part = |whole: u64| whole.div_ceil(connections);
        let bytes = Bytes::new(part(edge.bytes.get()));
        let busy = SimDuration::from_picos(part(edge.busy.as_picos()));
        for connection in 0..connections {
            if connection > 0 {
                self.find_route(from, to, edge.via, choice + (connection << 32));
            }
            let line = self.line();
            let flow = self.net.start_busy(&self.route, bytes, busy, line);
            self.keep(flow, Sending::of_task(index));
            self.tasks[index as usize].open += 1;
        }
    }

    /// How many of a pair's connections matter on the route that was found: those of NICs, where paths
    /// are hashed.
    fn connections(&self, connections: u32) -> u64 {
        let hashed = self.wires.routing() == Routing::Ecmp;
        let apart = hashed
            && self
                .route
                .iter()
                .any(|link| self.wires.level(*link) > Level::Leaf);
        if apart {
            u64::from(connections.max(1))
        } else {
            1
        }
    }

    /// Starts the flows of the trees of the fabric's switches that a task asks for. A tree has more
    /// flows than members: one more for each link between switches.
    fn begin_trees(&mut self, index: u32, gpus: &[u32], edges: &[Edge]) {
        let mut members: Vec<(u32, u32)> = edges
            .iter()
            .filter(|edge| edge.via == Via::Tree)
            .map(|edge| (edge.to, gpus[edge.from as usize]))
            .collect();
        let Some(first) = edges.iter().find(|edge| edge.via == Via::Tree) else {
            return;
        };
        members.sort_unstable();
        let mut started = 0;
        for tree in members.chunk_by(|a, b| a.0 == b.0) {
            let gpus: Vec<u32> = tree.iter().map(|(_, gpu)| *gpu).collect();
            let Self {
                wires,
                net,
                sending,
                flows,
                lines,
                ..
            } = self;
            let joined = wires.reduction_tree(&gpus, tree[0].0.into(), |route| {
                let flow = net.start_busy(route, first.bytes, first.busy, lines.1);
                keep(sending, flows, flow, Sending::of_task(index));
                started += 1;
            });
            assert!(joined, "the members of a tree have a switch in common");
        }
        self.tasks[index as usize].open += started;
    }

    fn tell(&mut self, now: SimTime) {
        if self.net.now() < now {
            let mut none = Vec::new();
            self.net.advance(now, &mut none);
            debug_assert!(none.is_empty(), "ends of flows have their own event");
        }
    }

    /// Finds the links of a message. Several flows of one pair count as connections of their own.
    fn find_route(&mut self, from: u32, to: u32, via: Via, connection: u64) {
        find_route(self.wires, from, to, via, connection, &mut self.route);
    }

    /// The line rate of the port that the route leaves by.
    fn line(&self) -> Bandwidth {
        if crosses(self.wires, &self.route) {
            self.lines.1
        } else {
            self.lines.0
        }
    }

    fn keep(&mut self, flow: FlowId, sending: Sending) {
        keep(&mut self.sending, &mut self.flows, flow, sending);
    }

    /// A rank sends its next message, if it has what it sends on and its port is free.
    fn proceed(&mut self, now: SimTime, index: u32) {
        let state = &mut self.states[index as usize];
        if state.sending || state.done {
            return;
        }
        let TaskState { task, first, .. } = &self.tasks[state.task as usize];
        let Program::Stepped { phases, .. } = task.program else {
            unreachable!("pipelined programs have no ranks")
        };
        if let Some(phase) = phases.get(state.phase as usize)
            && state.sent == phase.messages()
        {
            state.before += state.sent;
            state.sent = 0;
            state.phase += 1;
        }
        let Some(phase) = phases.get(state.phase as usize) else {
            if state.received == state.before {
                state.done = true;
                let task = &mut self.tasks[state.task as usize];
                task.open -= 1;
                task.end = now;
            }
            return;
        };
        let earlier = state.phase.checked_sub(1).map(|at| &phases[at as usize]);
        let goes_on = earlier.is_some_and(|earlier| phase.goes_on(earlier));
        if state.received < phase.needs(state.before, goes_on, state.sent) {
            return;
        }
        let (step, chunk) = (state.sent / phase.chunks, state.sent % phase.chunks);
        let message = phase.chunk(state.rank, step, chunk);
        let number = state.before + state.sent;
        state.sent += 1;
        state.sending = true;
        let (from, to) = (
            task.gpus[state.rank as usize],
            task.gpus[message.to as usize],
        );
        let to_state = first + message.to;
        // Messages take turns on the connections of their pair.
        let connection = u64::from(number % task.connections.max(1));
        self.tell(now);
        self.find_route(from, to, Via::Route, connection);
        let across = crosses(self.wires, &self.route);
        let added = phase.added[usize::from(across)];
        let latency: SimDuration = self
            .route
            .iter()
            .map(|link| self.wires.latency(*link))
            .fold(added, |sum, latency| sum + latency);
        let busy = phase.busy(message, across);
        let line = if across { self.lines.1 } else { self.lines.0 };
        let flow = self.net.start_busy(&self.route, message.bytes, busy, line);
        let sending = Sending {
            from: index,
            to: to_state,
            step: number,
            latency,
        };
        self.keep(flow, sending);
    }

    /// A flow has left the wire: its sender goes on, and its receiver gets it after the latency.
    fn sent(&mut self, now: SimTime, sending: Sending, queue: &mut EventQueue<Event>) {
        if sending.to == NOBODY {
            let task = &mut self.tasks[sending.from as usize];
            task.open -= 1;
            task.end = now;
            return;
        }
        let at = now + sending.latency;
        let batch = match self.opened.iter().find(|(time, _)| *time == at) {
            Some((_, batch)) => *batch,
            None => {
                let batch = self.free_batches.pop().unwrap_or_else(|| {
                    self.batches.push(Vec::new());
                    self.batches.len() as u32 - 1
                });
                self.opened.push((at, batch));
                queue.schedule(at, ARRIVED, Event::Arrived { batch });
                batch
            }
        };
        self.batches[batch as usize].push((sending.to, sending.step));
        self.states[sending.from as usize].sending = false;
        self.proceed(now, sending.from);
    }

    fn arrive(&mut self, now: SimTime, index: u32, step: u32) {
        let state = &mut self.states[index as usize];
        if state.received == step {
            state.received += 1;
            while let Some(next) = self.take_early(index) {
                self.states[index as usize].received = next + 1;
            }
            self.proceed(now, index);
            return;
        }
        let entry = Early {
            step,
            next: state.early,
        };
        let place = self.free_early;
        if place == NOBODY {
            state.early = self.early.len() as u32;
            self.early.push(entry);
        } else {
            state.early = place;
            self.free_early = self.early[place as usize].next;
            self.early[place as usize] = entry;
        }
    }

    /// Takes the next message of a rank off its list, if it came early.
    fn take_early(&mut self, index: u32) -> Option<u32> {
        let wanted = self.states[index as usize].received;
        let mut previous = NOBODY;
        let mut at = self.states[index as usize].early;
        while at != NOBODY {
            let next = self.early[at as usize].next;
            if self.early[at as usize].step == wanted {
                match previous {
                    NOBODY => self.states[index as usize].early = next,
                    previous => self.early[previous as usize].next = next,
                }
                self.early[at as usize].next = self.free_early;
                self.free_early = at;
                return Some(wanted);
            }
            (previous, at) = (at, next);
        }
        None
    }
}
