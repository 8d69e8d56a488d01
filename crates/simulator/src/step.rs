//! The event loop of one training step.
//!
//! Every rank has streams. A task starts when it heads its stream, what it waits for has finished,
//! and the host has issued it. Computation runs at a speed that follows from the communication
//! beside it; communication runs at the rate that the shared ports allow. Nothing here knows
//! whether anything overlaps: it does, or it does not.

use crate::fold::{Entity, Folding, ONE, fold};
use crate::record::{ClassRecord, EngineRecord, Record};
use rackflow_engine::{EventClass, EventId, EventQueue};
use rackflow_network::{Demand, FlowId, FlowNet};
use rackflow_plan::{
    Accounts, Cause, CommKind, Peer, Plan, Program, SEGMENT_LEVELS, Segment, Stream, TransferId,
    Work,
};
use rackflow_topology::Level;
use rackflow_units::{SimDuration, SimTime};

const COMPUTE: usize = Stream::Compute as usize;
/// Streams that receive, in the order of their channels.
const RECEIVERS: [Stream; 4] = [
    Stream::ReceiveActivation,
    Stream::ReceiveGradient,
    Stream::ReceiveActivationReverse,
    Stream::ReceiveGradientReverse,
];

/// What ends at an instant comes before what begins at it.
const ENDS: EventClass = EventClass(0);
const BEGINS: EventClass = EventClass(1);

enum Event {
    /// The running computation of an entity has finished.
    Computed(u32),
    /// A flow has ended.
    Arrived(FlowId),
    /// The host has issued the head of a stream.
    Issued(u32, Stream),
}

/// A program with what the loop looks up in it.
struct Compiled<'p> {
    program: &'p Program,
    /// Tasks of each stream, in order.
    streams: [Vec<u32>; Stream::COUNT],
    /// Tasks that wait for a task, by range.
    successors: Vec<u32>,
    successor_start: Vec<u32>,
    waits: Vec<u16>,
    /// Host time before each task is issued, if nothing made the host wait.
    issue: Vec<SimDuration>,
    /// The first task from here on that the host waits for, or the last task.
    host_limit: Vec<u32>,
}

impl<'p> Compiled<'p> {
    fn new(program: &'p Program, plan: &Plan) -> Self {
        let count = program.tasks.len();
        let mut streams: [Vec<u32>; Stream::COUNT] = Default::default();
        let mut waits = vec![0u16; count];
        let mut successor_start = vec![0u32; count + 1];
        let mut issue = Vec::with_capacity(count + 1);
        let mut host = SimDuration::ZERO;
        for (index, task) in program.tasks.iter().enumerate() {
            streams[task.stream as usize].push(index as u32);
            issue.push(host);
            host += match task.work {
                Work::Compute(id) => plan.segments[id.0 as usize].launch,
                _ => plan.communication_launch,
            };
            let needed = program.waits_of(index as u32);
            waits[index] = u16::try_from(needed.len()).expect("a task waits for few others");
            for before in needed {
                successor_start[*before as usize + 1] += 1;
            }
        }
        issue.push(host);
        for i in 0..count {
            successor_start[i + 1] += successor_start[i];
        }
        let mut fill = successor_start.clone();
        let mut successors = vec![0u32; successor_start[count] as usize];
        for index in 0..count as u32 {
            for before in program.waits_of(index) {
                let at = &mut fill[*before as usize];
                successors[*at as usize] = index;
                *at += 1;
            }
        }
        let mut host_limit = vec![u32::MAX; count + 1];
        for index in (0..count).rev() {
            host_limit[index] = if program.tasks[index].host_waits {
                index as u32
            } else {
                host_limit[index + 1]
            };
        }
        Self {
            program,
            streams,
            successors,
            successor_start,
            waits,
            issue,
            host_limit,
        }
    }

    fn successors_of(&self, task: u32) -> std::ops::Range<usize> {
        self.successor_start[task as usize] as usize
            ..self.successor_start[task as usize + 1] as usize
    }
}

/// The computation that an entity runs.
#[derive(Clone, Copy)]
struct Running {
    task: u32,
    started: SimTime,
    updated: SimTime,
    /// Work left, in picoseconds of nominal time.
    left: u64,
    /// Nominal time of the whole, and its time under the present communication.
    nominal: u64,
    stretched: u64,
    /// When the device is through, if the host is in time.
    natural: SimTime,
    /// The host issues the last kernel no earlier.
    issued: SimTime,
    event: EventId,
}

struct State {
    host_time: SimTime,
    host_base: u32,
    position: [u32; Stream::COUNT],
    busy: [bool; Stream::COUNT],
    waking: [bool; Stream::COUNT],
    /// When the communication at the head of each stream was ready to start.
    ready: [SimTime; Stream::COUNT],
    running: Option<Running>,
    idle_from: SimTime,
    held_sms: u32,
    /// Memory bandwidth that communication takes, of `ONE`.
    memory_share: u64,
    accounts: Accounts,
    /// How often each segment was computed.
    executed: Vec<u32>,
    finished: SimTime,
}

impl State {
    /// When the host has issued everything before `task`. What it issued before it last waited was
    /// issued by then.
    fn issued(&self, compiled: &Compiled<'_>, task: u32) -> SimTime {
        let base = compiled.issue[self.host_base as usize];
        self.host_time + compiled.issue[task as usize].saturating_sub(base)
    }
}

/// A communication on its way.
#[derive(Clone, Copy)]
struct Active {
    event: EventId,
    started: SimTime,
    transfer: TransferId,
    level: Level,
    what: What,
}

#[derive(Clone, Copy)]
enum What {
    Collective {
        group: u32,
        stream: Stream,
    },
    Message {
        from: u32,
        to: u32,
        sending: Stream,
        receiving: Stream,
    },
}

/// Both ends of a message must be ready before it starts.
#[derive(Clone, Copy, Default)]
struct Channel {
    sender: Option<(u32, TransferId, u32)>,
    receiver: bool,
}

/// What ended an idle interval of the compute stream.
#[derive(Clone, Copy)]
struct Blocker {
    ready: SimTime,
    started: SimTime,
    kind: CommKind,
    level: Level,
    message: bool,
}

struct Step<'p> {
    plan: &'p Plan,
    programs: Vec<Compiled<'p>>,
    entities: Vec<Entity>,
    states: Vec<State>,
    /// Tasks that each task still waits for; entity `e` owns the range from `first_wait[e]`.
    waits: Vec<u16>,
    first_wait: Vec<usize>,
    groups: Vec<Vec<u32>>,
    /// Ports of each group's members.
    ports: Vec<Vec<u32>>,
    span_class: Vec<u32>,
    arrived: Vec<u32>,
    channels: Vec<Channel>,
    net: FlowNet,
    active: Vec<Option<Active>>,
    changed: Vec<(FlowId, SimTime)>,
    queue: EventQueue<Event>,
    /// The cause of waiting for a partner that is not there yet.
    waiting: Cause,
}

/// Simulates one step of `plan`.
///
/// # Panics
/// When a program deadlocks or the accounts do not sum to the step time: both would be errors of
/// this crate or of `plan`, never of a scenario.
pub fn simulate(plan: &Plan) -> Record {
    let Folding {
        entities,
        groups,
        class_of_rank,
    } = fold(plan);
    let mut step = Step::new(plan, entities, groups);
    step.run();
    step.record(class_of_rank)
}

impl<'p> Step<'p> {
    fn new(plan: &'p Plan, entities: Vec<Entity>, groups: Vec<crate::fold::Group>) -> Self {
        let programs: Vec<Compiled<'p>> = plan
            .programs
            .iter()
            .map(|p| Compiled::new(p, plan))
            .collect();
        let mut waits = Vec::new();
        let mut first_wait = Vec::with_capacity(entities.len());
        for entity in &entities {
            first_wait.push(waits.len());
            waits.extend_from_slice(&programs[entity.stage as usize].waits);
        }
        let states = entities
            .iter()
            .map(|_| State {
                host_time: SimTime::ZERO,
                host_base: 0,
                position: [0; Stream::COUNT],
                busy: [false; Stream::COUNT],
                waking: [false; Stream::COUNT],
                ready: [SimTime::ZERO; Stream::COUNT],
                running: None,
                idle_from: SimTime::ZERO,
                held_sms: 0,
                memory_share: 0,
                accounts: Accounts::default(),
                executed: vec![0; plan.segments.len()],
                finished: SimTime::ZERO,
            })
            .collect();
        let (members, span_class): (Vec<Vec<u32>>, Vec<u32>) = groups
            .into_iter()
            .map(|g| (g.members, g.span_class))
            .unzip();
        let ports = members
            .iter()
            .map(|m| m.iter().flat_map(|e| [2 * e, 2 * e + 1]).collect())
            .collect();
        let waiting = if plan.setup.stragglers.is_empty() {
            Cause::Imbalance
        } else {
            Cause::Straggler
        };
        Self {
            plan,
            programs,
            states,
            waits,
            first_wait,
            arrived: vec![0; members.len()],
            groups: members,
            ports,
            span_class,
            channels: vec![Channel::default(); entities.len() * RECEIVERS.len()],
            net: FlowNet::new(2 * entities.len()),
            entities,
            active: Vec::new(),
            changed: Vec::new(),
            queue: EventQueue::new(),
            waiting,
        }
    }

    fn run(&mut self) {
        for entity in 0..self.entities.len() as u32 {
            self.start_heads(entity);
        }
        while let Some((now, event)) = self.queue.pop() {
            match event {
                Event::Computed(entity) => self.computed(now, entity),
                Event::Arrived(flow) => self.flow_ended(now, flow),
                Event::Issued(entity, stream) => {
                    self.states[entity as usize].waking[stream as usize] = false;
                    self.start_head(entity, stream as usize);
                }
            }
        }
    }

    fn program_of(&self, entity: u32) -> &Compiled<'p> {
        &self.programs[self.entities[entity as usize].stage as usize]
    }

    fn segment_of(&self, entity: u32, task: u32) -> &'p Segment {
        match self.program_of(entity).program.tasks[task as usize].work {
            Work::Compute(id) => &self.plan.segments[id.0 as usize],
            other => unreachable!("{other:?} is not computation"),
        }
    }

    fn start_heads(&mut self, entity: u32) {
        for stream in 0..Stream::COUNT {
            self.start_head(entity, stream);
        }
    }

    /// Starts the head of a stream if everything it needs is there.
    fn start_head(&mut self, entity: u32, stream: usize) {
        let now = self.queue.now();
        let e = entity as usize;
        let compiled = &self.programs[self.entities[e].stage as usize];
        let state = &mut self.states[e];
        if state.busy[stream] || state.waking[stream] {
            return;
        }
        let Some(&task) = compiled.streams[stream].get(state.position[stream] as usize) else {
            return;
        };
        if self.waits[self.first_wait[e] + task as usize] > 0 {
            return;
        }
        // A receive is asked for together with earlier work and does not wait for the host.
        if !matches!(
            compiled.program.tasks[task as usize].work,
            Work::Receive(..)
        ) {
            if task > compiled.host_limit[state.host_base as usize] {
                return;
            }
            let issued = state.issued(compiled, task);
            if issued > now {
                state.waking[stream] = true;
                let stream = compiled.program.tasks[task as usize].stream;
                self.queue
                    .schedule(issued, BEGINS, Event::Issued(entity, stream));
                return;
            }
        }
        state.busy[stream] = true;
        match compiled.program.tasks[task as usize].work {
            Work::Compute(_) => {
                let done = state.issued(compiled, task + 1);
                self.start_compute(now, entity, task, done);
            }
            Work::Collective(slot, transfer) => {
                state.ready[stream] = now;
                let group = self.entities[e].groups[slot as usize];
                self.join_collective(
                    now,
                    group,
                    transfer,
                    compiled.program.tasks[task as usize].stream,
                );
            }
            Work::Send(peer, transfer) => {
                state.ready[stream] = now;
                self.send(
                    now,
                    entity,
                    compiled.program.tasks[task as usize].stream,
                    peer,
                    transfer,
                );
            }
            Work::Receive(..) => {
                state.ready[stream] = now;
                let channel = channel_of(entity, compiled.program.tasks[task as usize].stream);
                self.channels[channel].receiver = true;
                self.meet(now, channel);
            }
        }
    }

    fn start_compute(&mut self, now: SimTime, entity: u32, task: u32, issued: SimTime) {
        let segment = self.segment_of(entity, task);
        let e = entity as usize;
        let state = &mut self.states[e];
        // Whatever was not booked to a communication was the host's.
        if state.idle_from < now {
            state
                .accounts
                .book(Cause::Launch, now.since(state.idle_from));
        }
        let scale = scale_of(&self.entities[e], segment);
        let nominal = scaled(segment.time[0], scale).as_picos();
        let stretched = stretched(segment, scale, state, self.plan);
        let natural = natural_end(now, nominal, nominal, stretched);
        let end = natural.max(issued);
        state.running = Some(Running {
            task,
            started: now,
            updated: now,
            left: nominal,
            nominal,
            stretched,
            natural,
            issued,
            event: self.queue.schedule(end, ENDS, Event::Computed(entity)),
        });
    }

    /// Communication beside a computation began or ended: its speed changes.
    fn reprice(&mut self, now: SimTime, entity: u32) {
        let e = entity as usize;
        let Some(mut running) = self.states[e].running else {
            return;
        };
        let segment = self.segment_of(entity, running.task);
        let state = &mut self.states[e];
        let scale = scale_of(&self.entities[e], segment);
        let new = stretched(segment, scale, state, self.plan);
        if new == running.stretched {
            return;
        }
        let elapsed = now.since(running.updated).as_picos();
        running.left =
            running
                .left
                .saturating_sub(scale_u64(elapsed, running.nominal, running.stretched));
        running.updated = now;
        running.stretched = new;
        self.queue.cancel(running.event);
        running.natural = natural_end(now, running.left, running.nominal, running.stretched);
        let end = running.natural.max(running.issued);
        running.event = self.queue.schedule(end, ENDS, Event::Computed(entity));
        state.running = Some(running);
    }

    fn computed(&mut self, now: SimTime, entity: u32) {
        let e = entity as usize;
        let running = self.states[e]
            .running
            .take()
            .expect("a computation that ends was running");
        let Work::Compute(id) = self.program_of(entity).program.tasks[running.task as usize].work
        else {
            unreachable!("what computes is a computation")
        };
        let own = scaled(
            self.plan.segments[id.0 as usize].time[0],
            (
                scale_of(&self.entities[e], &self.plan.segments[id.0 as usize]).0,
                ONE,
            ),
        );
        let state = &mut self.states[e];
        // What the segment is made of is the same every time and booked at the end.
        state.executed[id.0 as usize] += 1;
        book_beyond(&mut state.accounts, own, running, now);
        state.idle_from = now;
        self.finish_task(now, entity, running.task, None);
    }

    fn join_collective(&mut self, now: SimTime, group: u32, transfer: TransferId, stream: Stream) {
        let g = group as usize;
        self.arrived[g] += 1;
        if self.arrived[g] as usize == self.groups[g].len() {
            self.arrived[g] = 0;
            let mut demand = self.plan.demands[transfer.0 as usize][self.span_class[g] as usize];
            if self.plan.transfers[transfer.0 as usize].kind == CommKind::Expert {
                // The rank with the most tokens is the last to have sent or received them.
                let load = |entity: &u32| self.entities[*entity as usize].load;
                let most = self.groups[g].iter().map(load).max().unwrap_or(ONE);
                demand.nvlink = demand.nvlink.scale(most, ONE);
                demand.nic = demand.nic.scale(most, ONE);
            }
            self.start_flow(now, transfer, &demand, What::Collective { group, stream });
        }
    }

    fn send(
        &mut self,
        now: SimTime,
        entity: u32,
        stream: Stream,
        peer: Peer,
        transfer: TransferId,
    ) {
        let from = &self.entities[entity as usize];
        let (to, path) = match peer {
            Peer::Next => (from.next, from.next_path),
            Peer::Previous => (from.previous, from.previous_path),
        };
        let channel = channel_of(to, counterpart(stream));
        self.channels[channel].sender = Some((entity, transfer, path));
        self.meet(now, channel);
    }

    fn meet(&mut self, now: SimTime, channel: usize) {
        let Channel {
            sender: Some((from, transfer, path)),
            receiver: true,
        } = self.channels[channel]
        else {
            return;
        };
        self.channels[channel] = Channel::default();
        let to = (channel / RECEIVERS.len()) as u32;
        let receiving = RECEIVERS[channel % RECEIVERS.len()];
        let sending = counterpart(receiving);
        let demand = self.plan.demands[transfer.0 as usize][path as usize];
        self.start_flow(
            now,
            transfer,
            &demand,
            What::Message {
                from,
                to,
                sending,
                receiving,
            },
        );
    }

    fn start_flow(&mut self, now: SimTime, transfer: TransferId, demand: &Demand, what: What) {
        let mut changed = std::mem::take(&mut self.changed);
        let flow = match what {
            What::Collective { group, .. } => {
                self.net
                    .start(now, &self.ports[group as usize], demand, &mut changed)
            }
            // A message leaves through one port and enters through another.
            What::Message { from, to, .. } => {
                self.net
                    .start(now, &[2 * from, 2 * to + 1], demand, &mut changed)
            }
        };
        if self.active.len() <= flow.slot() {
            self.active.resize(flow.slot() + 1, None);
        }
        let event = self
            .queue
            .schedule(self.net.ends(flow), ENDS, Event::Arrived(flow));
        self.active[flow.slot()] = Some(Active {
            event,
            started: now,
            transfer,
            level: demand.level,
            what,
        });
        self.reschedule(&mut changed, Some(flow));
        self.changed = changed;
        self.hold(now, transfer, what, true);
    }

    /// Moves the ends of flows whose rate has changed.
    fn reschedule(&mut self, changed: &mut Vec<(FlowId, SimTime)>, except: Option<FlowId>) {
        for (flow, ends) in changed.drain(..) {
            if Some(flow) == except {
                continue;
            }
            let active = self.active[flow.slot()]
                .as_mut()
                .expect("a flow that changes is active");
            self.queue.cancel(active.event);
            active.event = self.queue.schedule(ends, ENDS, Event::Arrived(flow));
        }
    }

    /// The kernel of a communication takes or returns SMs and memory bandwidth of its ranks.
    fn hold(&mut self, now: SimTime, transfer: TransferId, what: What, take: bool) {
        let spec = &self.plan.transfers[transfer.0 as usize];
        let share = (spec.memory_share * ONE as f64) as u64;
        if spec.sms == 0 && share == 0 {
            return;
        }
        let change = |step: &mut Self, entity: u32| {
            let state = &mut step.states[entity as usize];
            if take {
                state.held_sms += spec.sms;
                state.memory_share += share;
            } else {
                state.held_sms -= spec.sms;
                state.memory_share -= share;
            }
            step.reprice(now, entity);
        };
        match what {
            What::Collective { group, .. } => {
                for i in 0..self.groups[group as usize].len() {
                    change(self, self.groups[group as usize][i]);
                }
            }
            What::Message { from, to, .. } => {
                change(self, from);
                change(self, to);
            }
        }
    }

    fn flow_ended(&mut self, now: SimTime, flow: FlowId) {
        let active = self.active[flow.slot()]
            .take()
            .expect("a flow that ends is active");
        let mut changed = std::mem::take(&mut self.changed);
        self.net.finish(now, flow, &mut changed);
        self.reschedule(&mut changed, None);
        self.changed = changed;
        self.hold(now, active.transfer, active.what, false);
        match active.what {
            What::Collective { group, stream } => {
                for i in 0..self.groups[group as usize].len() {
                    self.communicated(now, self.groups[group as usize][i], stream, &active);
                }
            }
            What::Message {
                from,
                to,
                sending,
                receiving,
            } => {
                self.communicated(now, from, sending, &active);
                self.communicated(now, to, receiving, &active);
            }
        }
    }

    /// The head of a communication stream has finished on this entity.
    fn communicated(&mut self, now: SimTime, entity: u32, stream: Stream, active: &Active) {
        let s = stream as usize;
        let state = &self.states[entity as usize];
        let task = self.program_of(entity).streams[s][state.position[s] as usize];
        let blocker = Blocker {
            ready: state.ready[s],
            started: active.started,
            kind: self.plan.transfers[active.transfer.0 as usize].kind,
            level: active.level,
            message: matches!(active.what, What::Message { .. }),
        };
        self.finish_task(now, entity, task, Some(blocker));
    }

    fn finish_task(&mut self, now: SimTime, entity: u32, task: u32, blocker: Option<Blocker>) {
        let e = entity as usize;
        let stage = self.entities[e].stage as usize;
        let compiled = &self.programs[stage];
        let this = compiled.program.tasks[task as usize];
        let stream = this.stream as usize;
        let range = compiled.successors_of(task);
        let state = &mut self.states[e];
        state.busy[stream] = false;
        state.position[stream] += 1;
        state.finished = now;
        if let Some(blocker) = blocker {
            let head = compiled.streams[COMPUTE].get(state.position[COMPUTE] as usize);
            let waited_for = state.running.is_none()
                && match head {
                    // After the last computation every communication is waited for.
                    None => true,
                    // Or it waits for what queues behind this communication.
                    Some(head) => compiled.program.waits_of(*head).iter().any(|wait| {
                        *wait >= task
                            && compiled.program.tasks[*wait as usize].stream == this.stream
                    }),
                };
            if waited_for {
                book_wait(state, blocker, now, self.waiting);
            }
        }
        if this.host_waits {
            state.host_time = state.issued(compiled, task + 1).max(now);
            state.host_base = task + 1;
        }
        for at in range {
            let next = self.programs[stage].successors[at];
            let left = &mut self.waits[self.first_wait[e] + next as usize];
            *left -= 1;
            if *left == 0 {
                let stream = self.programs[stage].program.tasks[next as usize].stream as usize;
                self.start_head(entity, stream);
            }
        }
        if this.host_waits {
            self.start_heads(entity);
        } else {
            self.start_head(entity, stream);
        }
    }

    fn record(self, class_of_gpu: Vec<u32>) -> Record {
        let end = self
            .states
            .iter()
            .map(|s| s.finished)
            .max()
            .unwrap_or(SimTime::ZERO);
        let step_time = end.since(SimTime::ZERO);
        let events = self.queue.events_handled();
        let pipelined = self.plan.setup.training.parallelism.pipeline > 1;
        let rest = if pipelined {
            Cause::Bubble
        } else {
            self.waiting
        };
        let mut classes = Vec::with_capacity(self.entities.len());
        for (entity, mut state) in self.entities.iter().zip(self.states) {
            let compiled = &self.programs[entity.stage as usize];
            for (stream, tasks) in compiled.streams.iter().enumerate() {
                assert_eq!(
                    state.position[stream] as usize,
                    tasks.len(),
                    "stage {} is stuck on stream {stream}",
                    entity.stage
                );
            }
            state.accounts.book(rest, end.since(state.idle_from));
            for (segment, times) in self.plan.segments.iter().zip(&state.executed) {
                let (load, _) = scale_of(entity, segment);
                book_segment(&mut state.accounts, segment, load, u64::from(*times));
            }
            assert_eq!(
                state.accounts.total_picos(),
                u128::from(step_time.as_picos()),
                "every picosecond of a rank is booked exactly once"
            );
            classes.push(ClassRecord {
                ranks: entity.ranks,
                stage: entity.stage,
                accounts: state.accounts,
            });
        }
        Record {
            facts: self.plan.facts.clone(),
            step_time,
            engine: EngineRecord {
                events,
                entities: classes.len() as u64,
                fidelity: self.plan.setup.fidelity,
                seed: self.plan.setup.seed,
            },
            classes,
            class_of_gpu,
        }
    }
}

fn channel_of(receiver: u32, stream: Stream) -> usize {
    let index = RECEIVERS
        .iter()
        .position(|s| *s == stream)
        .expect("a stream that receives");
    receiver as usize * RECEIVERS.len() + index
}

/// The stream at the other end.
fn counterpart(stream: Stream) -> Stream {
    match stream {
        Stream::SendActivation => Stream::ReceiveActivation,
        Stream::SendGradient => Stream::ReceiveGradient,
        Stream::SendActivationReverse => Stream::ReceiveActivationReverse,
        Stream::SendGradientReverse => Stream::ReceiveGradientReverse,
        Stream::ReceiveActivation => Stream::SendActivation,
        Stream::ReceiveGradient => Stream::SendGradient,
        Stream::ReceiveActivationReverse => Stream::SendActivationReverse,
        Stream::ReceiveGradientReverse => Stream::SendGradientReverse,
        other => unreachable!("{other:?} has no other end"),
    }
}

/// Load and slowdown of an entity on a segment, fixed point squared.
fn scale_of(entity: &Entity, segment: &Segment) -> (u64, u64) {
    (
        if segment.routed { entity.load } else { ONE },
        entity.slowdown,
    )
}

fn scaled(span: SimDuration, (load, slowdown): (u64, u64)) -> SimDuration {
    if load == ONE && slowdown == ONE {
        span
    } else {
        span.scale(load, ONE).scale(slowdown, ONE)
    }
}

fn scale_u64(value: u64, numerator: u64, denominator: u64) -> u64 {
    if numerator == denominator {
        return value;
    }
    (u128::from(value) * u128::from(numerator) / u128::from(denominator)) as u64
}

/// Time of the whole segment if the present communication stayed beside it.
fn stretched(segment: &Segment, scale: (u64, u64), state: &State, plan: &Plan) -> u64 {
    let mut time = segment.time[0];
    if state.held_sms > 0 {
        let top = SEGMENT_LEVELS as u32 - 1;
        let level = (state.held_sms * top)
            .div_ceil(plan.most_held_sms.max(1))
            .min(top);
        time = segment.time[level as usize];
    }
    if state.memory_share > 0 {
        // What the communication takes of the memory bandwidth stretches the time at memory.
        let share = state.memory_share.min(ONE / 2);
        time += segment.memory_time.scale(share, ONE - share);
    }
    scaled(time, scale).as_picos().max(1)
}

/// When a computation is through if nothing changes and the host is in time.
fn natural_end(now: SimTime, left: u64, nominal: u64, stretched: u64) -> SimTime {
    let rest = if stretched == nominal {
        left
    } else {
        (u128::from(left) * u128::from(stretched)).div_ceil(u128::from(nominal.max(1))) as u64
    };
    now + SimDuration::from_picos(rest)
}

/// Books what a computation took beyond its own time `own`.
fn book_beyond(accounts: &mut Accounts, own: SimDuration, running: Running, now: SimTime) {
    let wall = now.since(running.started);
    if wall == own {
        return;
    }
    let nominal = SimDuration::from_picos(running.nominal);
    accounts.book(Cause::Straggler, nominal.saturating_sub(own));
    let beyond = wall.saturating_sub(nominal);
    // What the host was late with the last kernels; the rest is communication beside them.
    let late = now.saturating_since(running.natural).min(beyond);
    accounts.book(Cause::Launch, late);
    accounts.book(Cause::Contention, beyond - late);
}

/// Books `times` executions of a segment at this expert load; the parts sum to its own time.
fn book_segment(accounts: &mut Accounts, segment: &Segment, load: u64, times: u64) {
    let own = scaled(segment.time[0], (load, ONE));
    let mut left = own;
    let last = segment.causes.len().saturating_sub(1);
    for (i, (cause, span)) in segment.causes.iter().enumerate() {
        let part = if i == last {
            left
        } else {
            scaled(*span, (load, ONE)).min(left)
        };
        accounts.book_times(*cause, part, times);
        left -= part;
    }
    accounts.book_times(Cause::Launch, left, times);
}

/// Books the time for which the compute stream waited for a communication.
fn book_wait(state: &mut State, blocker: Blocker, now: SimTime, waiting: Cause) {
    let from = state.idle_from;
    let started = blocker.started.max(from);
    let exposed = Cause::Exposed(blocker.kind, blocker.level);
    if blocker.message {
        state.accounts.book(Cause::Bubble, started.since(from));
    } else {
        // First it queued behind other communication, then it waited for its partners.
        let ready = blocker.ready.max(from).min(started);
        state.accounts.book(exposed, ready.since(from));
        state.accounts.book(waiting, started.since(ready));
    }
    state.accounts.book(exposed, now.since(started));
    state.idle_from = now;
}
