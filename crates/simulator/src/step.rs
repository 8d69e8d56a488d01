//! The event loop of one training step.
//!
//! Every rank has streams. A task starts when it heads its stream, what it waits for has finished,
//! and the host has issued it. Computation runs at a speed that follows from the communication
//! beside it; communication runs at the rate that the shared ports allow. Nothing here knows
//! whether anything overlaps: it does, or it does not.

use crate::booking::{
    book_beyond, book_segment, book_wait, load_of, natural_end, scale_u64, scaled, stretched,
};
use crate::compiled::Compiled;
use crate::fabric::{self, Fabric, JobLinks, Keep, Site};
use crate::fold::{Entity, Folding, ONE};
use crate::islands::Islands;
use crate::jitter::KernelJitter;
use crate::ports::{self, Outages};
use crate::race::{GivenUp, Race};
use crate::record::{ClassRecord, EngineRecord, Record};
use crate::state::{Active, Blocker, Channel, Running, State, What};
use crate::trace::{Execution, Trace, Watch};
use crate::traffic::{Traffic, traffic};
use rackflow_engine::{EventClass, EventId, EventQueue};
use rackflow_network::{Crossing, Demand, FlowId, FlowNet};
use rackflow_plan::{
    Cause, CommKind, GroupSlot, Passes, Pattern, Peer, Plan, Segment, Stream, TransferId, Work,
};
use rackflow_units::{Bytes, SimDuration, SimTime};

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
    /// A flow has ended, or its lead has.
    Arrived(FlowId),
    /// The host has issued the head of a stream.
    Issued(u32, Stream),
    /// An entity has come to a collective that islands share, at the head of a stream.
    Joined(u32, Stream),
    /// Flapping links go down or come up.
    Flapped,
}

pub(crate) struct Step<'p> {
    plan: &'p Plan,
    /// When this step began, on the clock of the net.
    began: SimTime,
    /// Number of its first end point in the net.
    first_port: u32,
    links: &'p JobLinks,
    /// Of a step alone: jobs side by side have one clock for the links.
    outages: Outages,
    /// Flows of other jobs whose ends this step has moved.
    pub foreign: Vec<(FlowId, SimTime)>,
    /// Tasks that are not finished.
    unfinished: usize,
    programs: Vec<Compiled<'p>>,
    entities: Vec<Entity>,
    states: Vec<State>,
    /// Tasks that each task still waits for; entity `e` owns the range from `first_wait[e]`.
    waits: Vec<u16>,
    first_wait: Vec<usize>,
    groups: Groups,
    /// Members of each group that have come to its next collective, by stream: collectives of one group on two
    /// streams are those of two communicators.
    arrived: Vec<[u32; Stream::COUNT]>,
    channels: Vec<Channel>,
    pub net: FlowNet,
    active: Vec<Option<Active>>,
    changed: Vec<(FlowId, SimTime)>,
    islands: Islands,
    /// One queue for each island, and one for what islands share.
    queues: Vec<EventQueue<Event>>,
    /// Events that only say that an entity came to a shared collective.
    joins: u64,
    jitter: KernelJitter,
    /// The cause of waiting for a partner that is not there yet.
    waiting: Cause,
    /// What is written down of chosen ranks, where anybody asked.
    watch: Option<Box<Watch>>,
    /// Whether it can still be fast enough, where anybody asked.
    race: Option<Box<Race<'p>>>,
    /// What each entity sends.
    traffic: Vec<Traffic>,
    /// Bytes of all ranks that have arrived, over NVLink and over NICs.
    delivered: [u128; 2],
}

/// Who is in each communicator, in flat arrays.
struct Groups {
    start: Vec<u32>,
    members: Vec<u32>,
    /// Two ports for each member.
    ports: Vec<u32>,
    span_class: Vec<u32>,
    slot: Vec<GroupSlot>,
}

impl Groups {
    fn new(groups: &[crate::fold::Group], first_port: u32) -> Self {
        let mut start = vec![0];
        let mut members = Vec::new();
        for group in groups {
            members.extend_from_slice(&group.members);
            start.push(members.len() as u32);
        }
        Self {
            start,
            ports: members
                .iter()
                .flat_map(|e| [first_port + 2 * e, first_port + 2 * e + 1])
                .collect(),
            members,
            span_class: groups.iter().map(|group| group.span_class).collect(),
            slot: groups.iter().map(|group| group.slot).collect(),
        }
    }

    fn range(&self, group: u32) -> std::ops::Range<usize> {
        self.start[group as usize] as usize..self.start[group as usize + 1] as usize
    }

    fn members(&self, group: u32) -> &[u32] {
        &self.members[self.range(group)]
    }

    fn ports(&self, group: u32) -> &[u32] {
        let range = self.range(group);
        &self.ports[2 * range.start..2 * range.end]
    }
}

/// From so many ranks on, a run is done island by island: the memory of a smaller one fits the
/// cache anyway.
const LEAST_FOR_ISLANDS: usize = 4096;

/// Simulates one step of `plan`.
///
/// # Panics
/// When a program deadlocks or the accounts do not sum to the step time: both would be errors of
/// this crate or of `plan`, never of a scenario.
pub fn simulate(plan: &Plan) -> Record {
    simulate_from(plan, LEAST_FOR_ISLANDS)
}

/// The same, island by island however few ranks there are: for the test that this changes nothing.
pub fn simulate_in_islands(plan: &Plan) -> Record {
    simulate_from(plan, 0)
}

/// The same with every link of the fabric in the net, also those that are wide enough for all: for
/// the test that this changes nothing.
pub fn simulate_on_links(plan: &Plan) -> Record {
    run(plan, LEAST_FOR_ISLANDS, Keep::All, Watched::default()).0
}

fn simulate_from(plan: &Plan, least_for_islands: usize) -> Record {
    run(plan, least_for_islands, Keep::Narrow, Watched::default()).0
}

/// The same, and what the given ranks did when. Where ranks are folded, each is shown by the one
/// that stands for it.
pub fn simulate_traced(plan: &Plan, ranks: &[u32]) -> (Record, Trace) {
    let (record, [trace]) = simulate_traced_each(plan, [ranks]);
    (record, trace)
}

/// The same for several lists of ranks: of each what a run for it alone would show.
pub fn simulate_traced_each<const N: usize>(
    plan: &Plan,
    lists: [&[u32]; N],
) -> (Record, [Trace; N]) {
    let (record, traces, _) = simulate_seen(plan, lists, false);
    (record, traces)
}

/// The same, and what every rank did when.
pub fn simulate_executed_each<const N: usize>(
    plan: &Plan,
    lists: [&[u32]; N],
) -> (Record, [Trace; N], Execution) {
    let (record, traces, execution) = simulate_seen(plan, lists, true);
    (record, traces, execution.expect("all ranks are watched"))
}

fn simulate_seen<const N: usize>(
    plan: &Plan,
    lists: [&[u32]; N],
    all: bool,
) -> (Record, [Trace; N], Option<Execution>) {
    let watched = Watched { lists: &lists, all };
    let (record, mut seen) = run(plan, LEAST_FOR_ISLANDS, Keep::Narrow, watched);
    let traces = std::array::from_fn(|at| std::mem::take(&mut seen.traces[at]));
    (record, traces, seen.execution)
}

/// What is written down.
#[derive(Clone, Copy, Default)]
struct Watched<'r> {
    /// What these ranks do, list by list.
    lists: &'r [&'r [u32]],
    /// What all ranks do.
    all: bool,
}

/// What was written down.
struct Seen {
    /// Of each list of ranks.
    traces: Vec<Trace>,
    /// Of all ranks, where that was asked for.
    execution: Option<Execution>,
}

/// Where the ranks of a plan and its flows are: equal for plans whose communicators are equal and
/// have flows of the same patterns ([`Plan::flow_patterns`]).
pub(crate) struct LaidOut {
    folding: Folding,
    fabric: Fabric,
}

impl LaidOut {
    pub fn of(plan: &Plan) -> Self {
        Self::keeping(plan, Keep::Narrow)
    }

    fn keeping(plan: &Plan, keep: Keep) -> Self {
        let health = ports::health(plan);
        let (mut folded, fabric) = fabric::lay_out(Site::of(plan, keep), &[plan], &health);
        let folding = folded.pop().expect("one plan is folded");
        Self { folding, fabric }
    }
}

/// Simulates one step of `plan`, whose ranks and flows are laid out; it is given up where it cannot
/// take less than a time, as its passes prove.
pub(crate) fn simulate_laid_out(
    plan: &Plan,
    laid: &LaidOut,
    race: Option<(&Passes, SimDuration)>,
) -> Result<Record, GivenUp> {
    let mut step = step_laid_out(plan, laid, LEAST_FOR_ISLANDS);
    let race = race.map(|(passes, under)| {
        let entity_of = |rank: u32| laid.folding.class_of_rank[rank as usize];
        Race::new(passes, under, &step.entities, entity_of)
    });
    step.race = race.map(Box::new);
    step.run();
    match step.race.as_ref().and_then(|race| race.lost()) {
        Some(at) => Err(at),
        None => Ok(step.record(laid.folding.class_of_rank.clone())),
    }
}

fn run(plan: &Plan, least_for_islands: usize, keep: Keep, watched: Watched<'_>) -> (Record, Seen) {
    let laid = LaidOut::keeping(plan, keep);
    run_laid_out(plan, &laid, least_for_islands, watched)
}

/// A step that has not started.
fn step_laid_out<'p>(
    plan: &'p Plan,
    LaidOut { folding, fabric }: &'p LaidOut,
    least_for_islands: usize,
) -> Step<'p> {
    let health = ports::health(plan);
    let mut toggles = ports::toggles(&health);
    ports::flap_ranks(&mut toggles, plan, folding, &health, 0);
    ports::flap_uplinks(&mut toggles, fabric, &health);
    let outages = Outages::new(toggles);
    // What islands share beyond their collectives would reach them while they run ahead.
    let apart = fabric.capacities.is_empty() && outages.is_empty();
    let least = if apart { least_for_islands } else { usize::MAX };
    let islands = Islands::of(&folding.entities, &folding.groups, least);
    let mut net = FlowNet::with_links(2 * folding.entities.len(), &fabric.capacities);
    ports::degrade(plan, folding, &health, 0, &mut net);
    let mut step = Step::new(plan, folding, &fabric.jobs[0], islands, 0, SimTime::ZERO);
    step.net = net;
    step.outages = outages;
    step
}

fn run_laid_out(
    plan: &Plan,
    laid: &LaidOut,
    least_for_islands: usize,
    watched: Watched<'_>,
) -> (Record, Seen) {
    let folding = &laid.folding;
    let mut step = step_laid_out(plan, laid, least_for_islands);
    let count = folding.entities.len();
    if watched.all {
        step.watch = Some(Box::new(Watch::new(count, 0..count as u32)));
    } else {
        step.watch_ranks(&watched.lists.concat(), folding);
    }
    step.run();
    let classes = &folding.class_of_rank;
    let all = step.watch.as_deref().filter(|_| watched.all);
    let seen = Seen {
        execution: all.map(|watch| watch.execution(plan, &folding.entities, classes)),
        traces: step.seen_of(watched.lists, folding),
    };
    (step.record(folding.class_of_rank.clone()), seen)
}

impl<'p> Step<'p> {
    /// A step that has not started: its end points are those from `first_port` on in a net that is
    /// not there yet.
    fn new(
        plan: &'p Plan,
        folding: &Folding,
        links: &'p JobLinks,
        islands: Islands,
        first_port: u32,
        began: SimTime,
    ) -> Self {
        let entities = folding.entities.clone();
        let groups = folding.groups.as_slice();
        let programs: Vec<Compiled<'p>> = plan
            .programs
            .iter()
            .flat_map(|p| (0..plan.kinds() as u32).map(move |kind| Compiled::new(p, plan, kind)))
            .collect();
        let mut waits = Vec::new();
        let mut first_wait = Vec::with_capacity(entities.len());
        for entity in &entities {
            first_wait.push(waits.len());
            waits.extend_from_slice(&programs[entity.program as usize].waits);
        }
        let setup = &plan.setup;
        let alike = setup.stragglers.is_empty() && setup.jitter.is_none() && plan.kinds() == 1;
        let waiting = if alike {
            Cause::Imbalance
        } else {
            Cause::Straggler
        };
        let tasks = |e: &Entity| programs[e.program as usize].program.tasks.len();
        Self {
            watch: None,
            race: None,
            traffic: traffic(plan, &entities, groups),
            delivered: [0; 2],
            plan,
            began,
            first_port,
            links,
            outages: Outages::default(),
            foreign: Vec::new(),
            unfinished: entities.iter().map(tasks).sum(),
            programs,
            states: entities.iter().map(|_| State::default()).collect(),
            waits,
            first_wait,
            arrived: vec![[0; Stream::COUNT]; groups.len()],
            groups: Groups::new(groups, first_port),
            channels: vec![Channel::default(); entities.len() * RECEIVERS.len()],
            net: FlowNet::new(0),
            active: Vec::new(),
            changed: Vec::new(),
            queues: (0..islands.queues()).map(|_| EventQueue::new()).collect(),
            islands,
            joins: 0,
            jitter: KernelJitter::new(setup, entities.len()),
            entities,
            waiting,
        }
    }

    /// Writes down what these ranks do.
    pub fn watch_ranks(&mut self, ranks: &[u32], folding: &Folding) {
        let chosen = ranks
            .iter()
            .map(|rank| folding.class_of_rank[*rank as usize]);
        let count = folding.entities.len();
        self.watch = (!ranks.is_empty()).then(|| Box::new(Watch::new(count, chosen)));
    }

    /// What was written down of each of these lists of ranks, when the step is over.
    pub fn seen_of(&mut self, lists: &[&[u32]], folding: &Folding) -> Vec<Trace> {
        let watch = self.watch.take();
        let seen = |watch: &Watch, ranks: &[u32]| {
            watch.trace(self.plan, ranks, &folding.entities, &folding.class_of_rank)
        };
        let of = |ranks: &&[u32]| {
            watch
                .as_deref()
                .map_or_else(Trace::default, |w| seen(w, ranks))
        };
        lists.iter().map(of).collect()
    }

    /// One step of a job beside others, all of whose ranks run in the order of time.
    pub fn beside(
        plan: &'p Plan,
        folding: &Folding,
        links: &'p JobLinks,
        first_port: u32,
        began: SimTime,
    ) -> Self {
        let islands = Islands::of(&folding.entities, &folding.groups, usize::MAX);
        Self::new(plan, folding, links, islands, first_port, began)
    }

    fn run(&mut self) {
        self.start();
        if self.islands.count() == 1 {
            while self.advance() {}
        } else {
            self.run_islands();
        }
    }

    /// Starts everything that waits for nothing.
    pub fn start(&mut self) {
        self.await_outage();
        for entity in 0..self.entities.len() as u32 {
            self.islands.enter(self.islands.of_entity(entity));
            self.start_heads(SimTime::ZERO, entity);
        }
    }

    /// When something happens next, on the clock of the net; `None` when the step is over. For
    /// steps whose ranks run in the order of time.
    pub fn next_time(&mut self) -> Option<SimTime> {
        if self.unfinished == 0 {
            return None;
        }
        let next = self.queues[0].next_time()?;
        // Flows that stand still end never.
        Some(if next == SimTime::MAX {
            next
        } else {
            self.shared(next)
        })
    }

    /// Handles one event; false when the step is over.
    pub fn advance(&mut self) -> bool {
        if self.unfinished == 0 || self.race.as_ref().is_some_and(|race| race.lost().is_some()) {
            return false;
        }
        let Some((now, event)) = self.queues[0].pop() else {
            return false;
        };
        self.handle(now, event);
        true
    }

    fn await_outage(&mut self) {
        if let Some(next) = self.outages.next_time() {
            self.schedule(0, next, BEGINS, Event::Flapped);
        }
    }

    /// Flapping links go down or come up.
    fn flap(&mut self) {
        let mut changed = std::mem::take(&mut self.changed);
        self.outages.advance(&mut self.net, &mut changed);
        self.reschedule(&mut changed, None);
        self.changed = changed;
        self.await_outage();
    }

    /// The instant on the clock of the net.
    fn shared(&self, now: SimTime) -> SimTime {
        self.began + now.since(SimTime::ZERO)
    }

    /// The instant of the net on the clock of this step.
    fn own(&self, at: SimTime) -> SimTime {
        if at == SimTime::MAX {
            return at;
        }
        SimTime::ZERO + at.since(self.began)
    }

    /// Runs each island alone for as long as nothing that it shares with others can reach it, and
    /// in the order of time with the others while something can.
    fn run_islands(&mut self) {
        self.islands.begin();
        for queue in 0..self.islands.queues() {
            let next = self.queues[queue as usize].next_time();
            self.islands.wait(queue, next);
        }
        loop {
            while let Some(island) = self.islands.next_free() {
                while self.islands.is_free(island)
                    && let Some((now, event)) = self.queues[island as usize].pop()
                {
                    self.handle(now, event);
                }
                let next = self.queues[island as usize].next_time();
                self.islands.wait(island, next);
            }
            let Some((at, island)) = self.islands.next_bound() else {
                return;
            };
            if self.queues[island as usize].next_time() != Some(at) {
                // Something has moved since; where it moved to was noted then.
                continue;
            }
            let others = self.islands.next_time();
            loop {
                let (now, event) = self.queues[island as usize].pop().expect("an event waits");
                self.handle(now, event);
                let next = self.queues[island as usize].next_time();
                // What was shared may have reached others.
                let undisturbed = self.islands.undisturbed();
                if !undisturbed
                    || next.is_none()
                    || others.is_some_and(|others| next > Some(others))
                {
                    self.islands.wait(island, next);
                    break;
                }
            }
            while let Some(other) = self.islands.next_disturbed() {
                let next = self.queues[other as usize].next_time();
                self.islands.wait(other, next);
            }
        }
    }

    fn handle(&mut self, now: SimTime, event: Event) {
        match event {
            Event::Computed(entity) => self.computed(now, entity),
            Event::Arrived(flow) => self.flow_ended(now, flow),
            Event::Issued(entity, stream) => {
                self.states[entity as usize].waking.remove(stream as usize);
                self.start_head(now, entity, stream as usize);
            }
            Event::Flapped => self.flap(),
            Event::Joined(entity, stream) => {
                self.joins += 1;
                let state = &self.states[entity as usize];
                let compiled = self.program_of(entity);
                let s = stream as usize;
                let task = compiled.streams[s][state.position[s] as usize];
                let Work::Collective(slot, transfer) = compiled.program.tasks[task as usize].work
                else {
                    unreachable!("only collectives are joined")
                };
                let group = self.entities[entity as usize].groups[slot as usize];
                self.join_collective(now, group, transfer, stream);
            }
        }
    }

    /// Puts an event into a queue.
    fn schedule(&mut self, queue: u32, at: SimTime, class: EventClass, event: Event) -> EventId {
        self.islands.scheduled(queue);
        self.queues[queue as usize].schedule(at, class, event)
    }

    fn program_of(&self, entity: u32) -> &Compiled<'p> {
        &self.programs[self.entities[entity as usize].program as usize]
    }

    fn segment_of(&self, entity: u32, task: u32) -> &'p Segment {
        match self.program_of(entity).program.tasks[task as usize].work {
            Work::Compute(id) => {
                &self.plan.segments_on(self.entities[entity as usize].kind)[id.0 as usize]
            }
            other => unreachable!("{other:?} is not computation"),
        }
    }

    fn start_heads(&mut self, now: SimTime, entity: u32) {
        for stream in 0..Stream::COUNT {
            self.start_head(now, entity, stream);
        }
    }

    /// Starts the head of a stream if everything it needs is there.
    fn start_head(&mut self, now: SimTime, entity: u32, stream: usize) {
        let e = entity as usize;
        let compiled = &self.programs[self.entities[e].program as usize];
        let state = &mut self.states[e];
        if state.busy.contains(stream) || state.waking.contains(stream) {
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
                state.waking.insert(stream);
                let stream = compiled.program.tasks[task as usize].stream;
                let queue = self.islands.of_entity(entity);
                self.schedule(queue, issued, BEGINS, Event::Issued(entity, stream));
                return;
            }
        }
        state.busy.insert(stream);
        match compiled.program.tasks[task as usize].work {
            Work::Compute(_) => {
                let done = state.issued(compiled, task + 1);
                self.start_compute(now, entity, task, done);
            }
            Work::Collective(slot, transfer) => {
                state.ready[stream] = now;
                let stream = compiled.program.tasks[task as usize].stream;
                let group = self.entities[e].groups[slot as usize];
                if self.islands.is_shared(group) {
                    let island = self.islands.of_entity(entity);
                    self.islands.bind(island);
                    self.schedule(island, now, BEGINS, Event::Joined(entity, stream));
                } else {
                    self.join_collective(now, group, transfer, stream);
                }
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
            Work::Copy(transfer) => {
                state.ready[stream] = now;
                let stream = compiled.program.tasks[task as usize].stream;
                let demand = self.plan.demands[transfer.0 as usize][0];
                self.start_flow(now, transfer, &demand, What::Copy { entity, stream });
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
        let slowdown = match segment.waits_for_driver() {
            true => ONE,
            false => self.jitter.on(self.entities[e].slowdown, entity),
        };
        let scale = (load_of(&self.entities[e], segment), slowdown);
        let state = &mut self.states[e];
        // Whatever was not booked to a communication was the host's.
        if state.idle_from < now {
            state
                .accounts
                .book(Cause::Launch, now.since(state.idle_from));
        }
        state.last_wait = None;
        let nominal = scaled(segment.time[0], scale).as_picos();
        let most_held = self.plan.most_held_sms_on(self.entities[e].kind);
        let stretched = stretched(segment, scale, state, most_held);
        let natural = natural_end(now, nominal, nominal, stretched);
        let end = natural.max(issued);
        let queue = self.islands.of_entity(entity);
        let event = self.schedule(queue, end, ENDS, Event::Computed(entity));
        self.states[e].running = Some(Running {
            task,
            started: now,
            updated: now,
            slowdown,
            left: nominal,
            nominal,
            stretched,
            natural,
            issued,
            event,
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
        let scale = (load_of(&self.entities[e], segment), running.slowdown);
        let most_held = self.plan.most_held_sms_on(self.entities[e].kind);
        let new = stretched(segment, scale, state, most_held);
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
        running.natural = natural_end(now, running.left, running.nominal, running.stretched);
        let end = running.natural.max(running.issued);
        let queue = self.islands.of_entity(entity);
        self.queues[queue as usize].cancel(running.event);
        running.event = self.schedule(queue, end, ENDS, Event::Computed(entity));
        self.states[e].running = Some(running);
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
        // What the segment is made of is the same every time and booked at the end.
        let segment = &self.plan.segments_on(self.entities[e].kind)[id.0 as usize];
        let own = scaled(segment.time[0], (load_of(&self.entities[e], segment), ONE));
        let state = &mut self.states[e];
        book_beyond(&mut state.accounts, (own, segment.late), running, now);
        state.idle_from = now;
        if let Some(watch) = &mut self.watch {
            watch.computed(entity, running.task, running.started, now);
        }
        if let Some(race) = &mut self.race {
            let passes = &self.programs[self.entities[e].program as usize]
                .program
                .passes;
            race.computed(entity, running.task, passes, now);
        }
        self.finish_task(now, entity, running.task, None);
    }

    fn join_collective(&mut self, now: SimTime, group: u32, transfer: TransferId, stream: Stream) {
        let g = group as usize;
        let arrived = &mut self.arrived[g][stream as usize];
        *arrived += 1;
        if *arrived as usize == self.groups.members(group).len() {
            *arrived = 0;
            let mut demand =
                self.plan.demands[transfer.0 as usize][self.groups.span_class[g] as usize];
            if self.plan.transfers[transfer.0 as usize].kind == CommKind::Expert {
                // The rank with the most tokens is the last to have sent or received them.
                let load = |entity: &u32| self.entities[*entity as usize].load;
                let members = self.groups.members(group);
                let most = members.iter().map(load).max().unwrap_or(ONE);
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
        self.channels[channel].sender = Some((entity, transfer, path, peer));
        self.meet(now, channel);
    }

    fn meet(&mut self, now: SimTime, channel: usize) {
        let Channel {
            sender: Some((from, transfer, path, peer)),
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
                peer,
                sending,
                receiving,
            },
        );
    }

    fn start_flow(&mut self, now: SimTime, transfer: TransferId, demand: &Demand, what: What) {
        let mut changed = std::mem::take(&mut self.changed);
        let at = self.shared(now);
        let crossing = self.crossing(demand, what);
        let flow = match what {
            What::Collective { group, .. } => {
                let ports = self.groups.ports(group);
                self.net
                    .start_over(at, ports, demand, crossing, &mut changed)
            }
            // A message leaves through one port and enters through another.
            What::Message { from, to, .. } => {
                let ports = [self.first_port + 2 * from, self.first_port + 2 * to + 1];
                self.net
                    .start_over(at, &ports, demand, crossing, &mut changed)
            }
            What::Copy { entity, stream } => {
                let port = self.first_port + 2 * entity + u32::from(stream == Stream::Reload);
                self.net
                    .start_over(at, &[port], demand, crossing, &mut changed)
            }
        };
        if self.active.len() <= flow.slot() {
            self.active.resize(flow.slot() + 1, None);
        }
        let home = match what {
            What::Collective { group, .. } => self.islands.of_group(group),
            What::Message { from, .. } => self.islands.of_entity(from),
            What::Copy { entity, .. } => self.islands.of_entity(entity),
        };
        let ends = self.own(self.net.ends(flow));
        let event = self.schedule(home, ends, ENDS, Event::Arrived(flow));
        self.active[flow.slot()] = Some(Active {
            event,
            home,
            started: now,
            transfer,
            level: demand.level,
            bytes: [demand.wire_bytes_nvlink, demand.wire_bytes_nic].map(Bytes::get),
            what,
        });
        self.reschedule(&mut changed, Some(flow));
        self.changed = changed;
        self.hold(now, transfer, what, true);
    }

    /// The flows of a communication over links of the fabric.
    fn crossing(&self, demand: &Demand, what: What) -> Crossing<'p> {
        let links = self.links;
        let (links, each) = match what {
            What::Collective { group, .. } => {
                let slot = self.groups.slot[group as usize];
                match Pattern::of(slot, demand.algorithm) {
                    Some(pattern) => links.of_group(group, pattern),
                    None => return Crossing::NONE,
                }
            }
            What::Message { from, peer, .. } => links.of_message(from, peer == Peer::Next),
            What::Copy { .. } => return Crossing::NONE,
        };
        Crossing {
            bytes: demand.wire_bytes_nic.get() / u64::from(each),
            links,
        }
    }

    /// Moves the ends of flows whose rate has changed; those of other jobs are put aside.
    fn reschedule(&mut self, changed: &mut Vec<(FlowId, SimTime)>, except: Option<FlowId>) {
        for (flow, ends) in changed.drain(..) {
            if Some(flow) != except && !self.ends_at(flow, ends) {
                self.foreign.push((flow, ends));
            }
        }
    }

    /// A flow ends at this instant on the clock of the net; false where it is not of this step.
    pub fn ends_at(&mut self, flow: FlowId, ends: SimTime) -> bool {
        let ends = self.own(ends);
        let Some(Some(active)) = self.active.get_mut(flow.slot()) else {
            return false;
        };
        let queue = &mut self.queues[active.home as usize];
        queue.cancel(active.event);
        active.event = queue.schedule(ends, ENDS, Event::Arrived(flow));
        self.islands.scheduled(active.home);
        true
    }

    /// The kernel of a communication takes or returns SMs and memory bandwidth of its ranks.
    fn hold(&mut self, now: SimTime, transfer: TransferId, what: What, take: bool) {
        let spec = &self.plan.transfers[transfer.0 as usize];
        if spec.sms == 0 && (spec.memory_share * ONE as f64) as u64 == 0 {
            return;
        }
        let change = |step: &mut Self, entity: u32| {
            let kind = step.entities[entity as usize].kind;
            let share = (step.plan.memory_share_on(kind, transfer) * ONE as f64) as u64;
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
                for i in self.groups.range(group) {
                    change(self, self.groups.members[i]);
                }
            }
            What::Message { from, to, .. } => {
                change(self, from);
                change(self, to);
            }
            What::Copy { entity, .. } => change(self, entity),
        }
    }

    fn flow_ended(&mut self, now: SimTime, flow: FlowId) {
        let mut changed = std::mem::take(&mut self.changed);
        let at = self.shared(now);
        let over = self.net.arrive(at, flow, &mut changed);
        self.reschedule(&mut changed, None);
        self.changed = changed;
        if !over {
            return;
        }
        let active = self.active[flow.slot()]
            .take()
            .expect("a flow that ends is active");
        self.hold(now, active.transfer, active.what, false);
        self.count(&active);
        if let Some(watch) = &mut self.watch {
            let members = match active.what {
                What::Collective { group, .. } => self.groups.members(group),
                What::Message { .. } | What::Copy { .. } => &[],
            };
            watch.communicated(&active, members, now);
        }
        match active.what {
            What::Collective { group, stream } => {
                for i in self.groups.range(group) {
                    let entity = self.groups.members[i];
                    if self.islands.is_shared(group) {
                        self.islands.release(self.islands.of_entity(entity));
                    }
                    self.communicated(now, entity, stream, &active);
                }
            }
            What::Message {
                from,
                to,
                sending,
                receiving,
                ..
            } => {
                self.communicated(now, from, sending, &active);
                self.communicated(now, to, receiving, &active);
            }
            What::Copy { entity, stream } => self.communicated(now, entity, stream, &active),
        }
    }

    /// Books what a communication has moved.
    fn count(&mut self, active: &Active) {
        let ranks = |entity: u32| u128::from(self.entities[entity as usize].ranks);
        let senders: u128 = match active.what {
            What::Collective { group, .. } => {
                let members = self.groups.members(group);
                members.iter().map(|entity| ranks(*entity)).sum()
            }
            What::Message { from, .. } => ranks(from),
            What::Copy { .. } => return,
        };
        for (sum, bytes) in self.delivered.iter_mut().zip(active.bytes) {
            *sum += senders * u128::from(bytes);
        }
    }

    /// What was sent has arrived, and it is what the programs ask for.
    fn check_bytes(&self) {
        let mut asked = [0; 2];
        for (entity, traffic) in self.entities.iter().zip(&self.traffic) {
            let sent = traffic.total();
            for (sum, bytes) in asked.iter_mut().zip([sent.nvlink, sent.nic]) {
                *sum += u128::from(entity.ranks) * u128::from(bytes);
            }
        }
        assert_eq!(
            self.delivered, asked,
            "what arrives is what the programs send"
        );
    }

    /// The head of a communication stream has finished on this entity.
    fn communicated(&mut self, now: SimTime, entity: u32, stream: Stream, active: &Active) {
        let s = stream as usize;
        let state = &self.states[entity as usize];
        let task = self.program_of(entity).streams[s][state.position[s] as usize];
        let kind = self.plan.transfers[active.transfer.0 as usize].kind;
        let blocker = Blocker {
            ready: state.ready[s],
            started: active.started,
            exposed: match active.what {
                What::Copy { .. } => Cause::Offload,
                _ => Cause::Exposed(kind, active.level),
            },
            message: matches!(active.what, What::Message { .. }),
        };
        self.finish_task(now, entity, task, Some(blocker));
    }

    fn finish_task(&mut self, now: SimTime, entity: u32, task: u32, blocker: Option<Blocker>) {
        let e = entity as usize;
        let program = self.entities[e].program as usize;
        let compiled = &self.programs[program];
        let this = compiled.program.tasks[task as usize];
        let stream = this.stream as usize;
        let range = compiled.successors_of(task);
        let state = &mut self.states[e];
        self.unfinished -= 1;
        state.busy.remove(stream);
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
            let next = self.programs[program].successors[at];
            let left = &mut self.waits[self.first_wait[e] + next as usize];
            *left -= 1;
            if *left == 0 {
                let stream = self.programs[program].program.tasks[next as usize].stream as usize;
                self.start_head(now, entity, stream);
            }
        }
        if this.host_waits {
            self.start_heads(now, entity);
        } else {
            self.start_head(now, entity, stream);
        }
    }

    /// What happened, after the last event.
    pub fn record(self, class_of_gpu: Vec<u32>) -> Record {
        let end = self
            .states
            .iter()
            .map(|s| s.finished)
            .max()
            .unwrap_or(SimTime::ZERO);
        let step_time = end.since(SimTime::ZERO);
        self.check_bytes();
        let handled = self.queues.iter().map(EventQueue::events_handled);
        let events = handled.sum::<u64>() - self.joins;
        let pipelined = self.plan.setup.training.parallelism.pipeline > 1;
        let rest = if pipelined {
            Cause::Bubble
        } else {
            self.waiting
        };
        let mut classes = Vec::with_capacity(self.entities.len());
        let ranks = self.entities.iter().zip(self.states).zip(self.traffic);
        for ((entity, mut state), traffic) in ranks {
            let compiled = &self.programs[entity.program as usize];
            for (stream, tasks) in compiled.streams.iter().enumerate() {
                assert_eq!(
                    state.position[stream] as usize,
                    tasks.len(),
                    "stage {} is stuck on stream {stream}",
                    entity.stage
                );
            }
            state.accounts.book(rest, end.since(state.idle_from));
            let segments = self.plan.segments_on(entity.kind);
            for (segment, times) in segments.iter().zip(&compiled.executions) {
                let load = load_of(entity, segment);
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
                kind: entity.kind,
                accounts: state.accounts,
                traffic,
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
