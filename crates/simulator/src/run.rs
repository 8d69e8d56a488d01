//! A whole training run by events: failures, detection, restarts, spare hosts, checkpoints.
//!
//! A step is simulated elsewhere; here it is a pace. The clock counts nanoseconds instead of
//! picoseconds, because a run of years would not fit. Every nanosecond of wall time is booked once:
//! what a failure undoes is moved from useful time to lost work when it happens.

use rackflow_engine::{EventClass, EventQueue, Model, RandomStream};
use rackflow_plan::{
    Checkpoint, Interval, Length, Plan, TrainingRun, checkpoint_bytes, checkpoint_writers,
};
use rackflow_topology::{Component, FailureProfile};
use rackflow_units::{Bandwidth, SimDuration, SimTime};
use rayon::prelude::*;

/// Nanoseconds.
type Tick = u64;

const PER_SECOND: f64 = 1e9;
const PER_DAY: f64 = 86_400.0 * PER_SECOND;
/// A run that takes this many times as long as it would undisturbed is given up.
const PATIENCE: u64 = 20;

/// What the wall time of a run is spent on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RunTime {
    /// Steps at full pace that are kept.
    pub useful: Tick,
    /// What a slow host adds to steps.
    pub slow: Tick,
    /// What missing replicas add to steps.
    pub shrunk: Tick,
    /// Standing still for a checkpoint.
    pub checkpoint: Tick,
    /// Steps that a failure undid.
    pub lost: Tick,
    /// From a failure to the decision to restart.
    pub detection: Tick,
    /// From the decision to the first step.
    pub restart: Tick,
    /// Waiting for a host to be repaired.
    pub waiting: Tick,
}

impl RunTime {
    /// All of it.
    pub fn total(&self) -> Tick {
        self.useful
            + self.slow
            + self.shrunk
            + self.checkpoint
            + self.lost
            + self.detection
            + self.restart
            + self.waiting
    }
}

/// One simulated run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Replication {
    /// From start to end.
    pub wall: Tick,
    /// Where that went; sums to `wall`.
    pub time: RunTime,
    /// Interruptions by component, in the order of [`Component::ALL`].
    pub interruptions: [u64; Component::ALL.len()],
    /// Restarts that exchange a slow host or take a repaired one back.
    pub exchanges: u64,
    /// Checkpoints written to storage.
    pub checkpoints: u64,
    /// Whether all tokens were trained; a run of given days always is.
    pub finished: bool,
    /// Events handled.
    pub events: u64,
}

/// A run, simulated several times.
#[derive(Debug, Clone, PartialEq)]
pub struct RunRecord {
    /// What was asked for.
    pub run: TrainingRun,
    /// Time of one step at full pace.
    pub step: SimDuration,
    /// Tokens of one step.
    pub tokens_per_step: f64,
    /// Bytes of one checkpoint.
    pub checkpoint_bytes: u64,
    /// Between the starts of two checkpoints, in seconds.
    pub interval_s: f64,
    /// For which each holds the run up, in seconds.
    pub stall_s: f64,
    /// Until it is safe on storage, in seconds.
    pub write_s: f64,
    /// Reading it back, in seconds.
    pub read_s: f64,
    /// Mean time between unexpected interruptions, in seconds; infinite where nothing fails.
    pub mtbf_s: f64,
    /// Each with its own random numbers.
    pub replications: Vec<Replication>,
}

/// Simulates `run` on `plan`, whose step takes `step`. The same seed gives the same record on any
/// number of threads.
pub fn simulate_run(plan: &Plan, step: SimDuration, run: &TrainingRun, seed: u64) -> RunRecord {
    let training = &plan.facts.training;
    let tokens_per_step = (training.global_batch * training.sequence_length) as f64;
    let constants = Constants::new(plan, step, tokens_per_step, run);
    let root = RandomStream::root(seed).derive("run");
    let replications = (0..u64::from(run.replications.max(1)))
        .into_par_iter()
        .map(|index| replicate(&constants, &root.derive_index(index)))
        .collect();
    RunRecord {
        run: run.clone(),
        step,
        tokens_per_step,
        checkpoint_bytes: checkpoint_bytes(plan).get(),
        interval_s: constants.interval as f64 / PER_SECOND,
        stall_s: constants.stall as f64 / PER_SECOND,
        write_s: constants.write as f64 / PER_SECOND,
        read_s: constants.read as f64 / PER_SECOND,
        mtbf_s: constants.mtbf / PER_SECOND,
        replications,
    }
}

/// The interval between checkpoints that loses least (J. T. Daly, "A higher order estimate of the
/// optimum checkpoint interval for restart dumps", 2006; its first term is J. W. Young's of 1974):
/// `stall` is what a checkpoint costs and `mtbf` the mean time between failures, in one unit. From the
/// start of one checkpoint to that of the next.
pub fn young_daly(stall: f64, mtbf: f64) -> f64 {
    if !mtbf.is_finite() {
        return f64::INFINITY;
    }
    if stall >= 2.0 * mtbf {
        return mtbf + stall;
    }
    let ratio = stall / (2.0 * mtbf);
    // Daly counts from the end of a checkpoint to the start of the next one.
    let between = (2.0 * stall * mtbf).sqrt() * (1.0 + ratio.sqrt() / 3.0 + ratio / 9.0) - stall;
    between + stall
}

/// What does not change during a run.
struct Constants {
    /// Ends here, or when so much useful time has passed.
    end: Tick,
    target: Option<Tick>,
    /// Interruptions per nanosecond, by component.
    rates: [f64; Component::ALL.len()],
    rate: f64,
    mtbf: f64,
    profile: Option<FailureProfile>,
    slow_rate: f64,
    slowdown: f64,
    checkpoint: Option<Checkpoint>,
    interval: Tick,
    stall: Tick,
    write: Tick,
    read: Tick,
    /// Useful time between two copies in memory, and the share of time they take.
    memory: Option<(Tick, f64, f64)>,
    spares: u32,
    elastic: bool,
    replicas: u32,
}

fn ticks(span: SimDuration) -> Tick {
    span.as_picos().div_ceil(1000)
}

fn to_ticks(value: f64) -> Tick {
    // Far beyond any run, and far from overflow when a few are added.
    value.round().clamp(0.0, 1e18) as Tick
}

fn to_send(bytes: f64, rate: Bandwidth) -> f64 {
    bytes / rate.as_f64() * PER_SECOND
}

impl Constants {
    fn new(plan: &Plan, step: SimDuration, tokens_per_step: f64, run: &TrainingRun) -> Self {
        let cluster = &plan.facts.cluster;
        let gpus = f64::from(cluster.gpus);
        let profile = run.failures.clone();
        let per_tick = |component: Component| {
            let per_day = profile.as_ref().map_or(0.0, |p| p.per_gpu_day(component));
            per_day * gpus / PER_DAY
        };
        let rates = Component::ALL.map(per_tick);
        let unexpected = profile
            .as_ref()
            .map_or(0.0, FailureProfile::unexpected_per_gpu_day);
        let mtbf = PER_DAY / (unexpected * gpus);
        let slow_rate = profile.as_ref().map_or(0.0, |p| {
            p.slow_hosts / 1000.0 * gpus / f64::from(p.gpus_per_host) / PER_DAY
        });
        let step_ticks = step.as_secs_f64() * PER_SECOND;
        let (end, target) = match run.length {
            Length::Days(days) => (to_ticks(days * PER_DAY), None),
            Length::Tokens(tokens) => {
                let target = to_ticks(tokens / tokens_per_step * step_ticks);
                (target.saturating_mul(PATIENCE), Some(target))
            }
        };
        let bytes = checkpoint_bytes(plan).as_f64();
        let (mut stall, mut write, mut read, mut interval) = (0.0, 0.0, 0.0, f64::INFINITY);
        let mut memory = None;
        if let Some(checkpoint) = &run.checkpoint {
            write = to_send(bytes, checkpoint.write);
            read = to_send(bytes, checkpoint.read);
            let share = bytes / checkpoint_writers(plan) as f64;
            stall = if checkpoint.synchronous {
                write
            } else {
                // All wait for the slowest copy to the host.
                let hosts = cluster.nodes().map(|node| node.accelerator.host_bandwidth);
                to_send(
                    share,
                    hosts
                        .min()
                        .unwrap_or(cluster.node.accelerator.host_bandwidth),
                )
            };
            interval = match checkpoint.interval {
                Interval::YoungDaly => young_daly(stall, mtbf),
                Interval::Time(time) => ticks(time) as f64,
                Interval::Steps(steps) => steps as f64 * step_ticks,
            };
            // One checkpoint is written before the next begins, and each falls between two steps.
            interval = interval.max(stall.max(write) + 1.0).max(step_ticks);
            memory = checkpoint.memory.map(|tier| {
                let between = to_ticks(tier.steps as f64 * step_ticks).max(1);
                let stall = ticks(tier.stall) as f64;
                (between, stall / (stall + between as f64), tier.survives)
            });
        }
        Self {
            end,
            target,
            rate: rates.iter().sum(),
            rates,
            mtbf,
            slow_rate,
            slowdown: profile.as_ref().map_or(1.0, |p| p.slowdown),
            profile,
            checkpoint: run.checkpoint,
            interval: to_ticks(interval),
            stall: to_ticks(stall),
            write: to_ticks(write),
            read: to_ticks(read),
            memory,
            spares: run.spares,
            elastic: run.elastic,
            replicas: plan.facts.training.parallelism.data.max(1),
        }
    }
}

/// Something that happens. Numbers are generations: an event of an older one is void.
#[derive(Debug, Clone, Copy)]
enum Happening {
    /// A part fails.
    Failure,
    /// A host becomes slow.
    Slow,
    /// A slow host is found.
    SlowFound,
    /// A host comes back from repair.
    Repaired,
    /// It is time for a checkpoint.
    Due(u64),
    /// The run may go on while a checkpoint is written.
    Released(u64),
    /// A checkpoint is safe.
    Written(u64),
    /// The present part of a standstill is over.
    Next(u64),
    /// All tokens are trained.
    Finished(u64),
    /// The given days are over.
    End,
}

/// Simultaneous events happen in this order.
const ORDER: EventClass = EventClass(0);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Running,
    /// A checkpoint is copied or written.
    Stalled,
    /// Part of a standstill.
    Down(Part),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    Detection,
    /// Until enough hosts are there; ends with a repair.
    Waiting,
    /// Saving before an announced restart.
    Saving,
    Restart,
}

struct Run<'c> {
    constants: &'c Constants,
    phase: Phase,
    /// Until when time is booked.
    booked_to: Tick,
    time: RunTime,
    /// Parts of the standstill that follow the present one, the last first.
    ahead: Vec<(Part, Tick)>,
    generation: u64,
    /// Useful time that is safe on storage, and that of the checkpoint on its way there.
    stored: Tick,
    on_its_way: Option<Tick>,
    /// A checkpoint is due as soon as the one on its way has arrived.
    due: bool,
    spares: u32,
    missing: u32,
    slow: u32,
    /// Slow hosts that are known and wait for a spare.
    slow_known: u32,
    interruptions: [u64; Component::ALL.len()],
    exchanges: u64,
    checkpoints: u64,
    done: bool,
    finished: bool,
    failures: RandomStream,
    kinds: RandomStream,
    repairs: RandomStream,
    slowness: RandomStream,
}

fn replicate(constants: &Constants, root: &RandomStream) -> Replication {
    let mut run = Run {
        constants,
        phase: Phase::Running,
        booked_to: 0,
        time: RunTime::default(),
        ahead: Vec::new(),
        generation: 0,
        stored: 0,
        on_its_way: None,
        due: false,
        spares: constants.spares,
        missing: 0,
        slow: 0,
        slow_known: 0,
        interruptions: [0; Component::ALL.len()],
        exchanges: 0,
        checkpoints: 0,
        done: false,
        finished: constants.target.is_none(),
        failures: root.derive("failures"),
        kinds: root.derive("kinds"),
        repairs: root.derive("repairs"),
        slowness: root.derive("slowness"),
    };
    let mut queue = EventQueue::new();
    schedule(&mut queue, constants.end, Happening::End);
    run.next_failure(&mut queue);
    run.next_slow(&mut queue);
    run.go(&mut queue);
    while !run.done {
        // `End` is always ahead, and it ends the run.
        let Some((_, happening)) = queue.pop() else {
            break;
        };
        run.handle(happening, &mut queue);
    }
    Replication {
        wall: run.booked_to,
        time: run.time,
        interruptions: run.interruptions,
        exchanges: run.exchanges,
        checkpoints: run.checkpoints,
        finished: run.finished,
        events: queue.events_handled(),
    }
}

fn schedule(queue: &mut EventQueue<Happening>, at: Tick, happening: Happening) {
    queue.schedule(SimTime::from_picos(at), ORDER, happening);
}

fn after(queue: &mut EventQueue<Happening>, ticks: Tick, happening: Happening) {
    let at = queue.now().as_picos().saturating_add(ticks);
    schedule(queue, at, happening);
}

impl Model for Run<'_> {
    type Event = Happening;

    fn handle(&mut self, happening: Happening, queue: &mut EventQueue<Happening>) {
        self.book(queue.now().as_picos());
        match happening {
            Happening::Failure => {
                self.fail(queue);
                self.next_failure(queue);
            }
            Happening::Slow => {
                self.slow += 1;
                let found = self
                    .constants
                    .profile
                    .as_ref()
                    .map_or(0, |p| ticks(p.slow_detection));
                after(queue, found, Happening::SlowFound);
                self.next_slow(queue);
                self.replan_finish(queue);
            }
            Happening::SlowFound => {
                self.slow_known += 1;
                self.exchange_slow(queue);
            }
            Happening::Repaired => self.repaired(queue),
            Happening::Due(of) if of == self.generation => self.checkpoint(queue),
            Happening::Released(of) if of == self.generation => self.released(queue),
            Happening::Written(of) if of == self.generation => self.written(queue),
            Happening::Next(of) if of == self.generation => self.next_part(queue),
            Happening::Finished(of) if of == self.generation => {
                if self
                    .constants
                    .target
                    .is_some_and(|target| self.time.useful >= target)
                {
                    self.finished = true;
                    self.done = true;
                } else {
                    self.replan_finish(queue);
                }
            }
            Happening::End => self.done = true,
            Happening::Due(_)
            | Happening::Released(_)
            | Happening::Written(_)
            | Happening::Next(_)
            | Happening::Finished(_) => {}
        }
    }
}

impl Run<'_> {
    /// Fraction of the full pace that missing replicas leave.
    fn shrink(&self) -> f64 {
        let left = self.constants.replicas.saturating_sub(self.missing);
        f64::from(left) / f64::from(self.constants.replicas)
    }

    fn pace_beside_slow(&self) -> f64 {
        if self.slow > 0 {
            1.0 / self.constants.slowdown
        } else {
            1.0
        }
    }

    /// Books the time up to `now`.
    fn book(&mut self, now: Tick) {
        let span = now - self.booked_to;
        self.booked_to = now;
        match self.phase {
            Phase::Stalled | Phase::Down(Part::Saving) => self.time.checkpoint += span,
            Phase::Down(Part::Detection) => self.time.detection += span,
            Phase::Down(Part::Restart) => self.time.restart += span,
            Phase::Down(Part::Waiting) => self.time.waiting += span,
            Phase::Running => {
                let stalled = self
                    .constants
                    .memory
                    .map_or(0, |(_, share, _)| part(span, share));
                let steps = span - stalled;
                let shrunk = part(steps, 1.0 - self.shrink());
                let slow = part(steps - shrunk, 1.0 - self.pace_beside_slow());
                self.time.checkpoint += stalled;
                self.time.shrunk += shrunk;
                self.time.slow += slow;
                self.time.useful += steps - shrunk - slow;
            }
        }
    }

    /// Starts or goes on with steps.
    fn go(&mut self, queue: &mut EventQueue<Happening>) {
        self.phase = Phase::Running;
        self.generation += 1;
        self.on_its_way = None;
        self.due = false;
        if self.constants.checkpoint.is_some() {
            after(
                queue,
                self.constants.interval,
                Happening::Due(self.generation),
            );
        }
        self.replan_finish(queue);
    }

    /// When the tokens would be trained at the present pace. Earlier plans may fire too early, and
    /// then nothing follows but a new plan.
    fn replan_finish(&mut self, queue: &mut EventQueue<Happening>) {
        if let (Some(target), Phase::Running | Phase::Stalled) = (self.constants.target, self.phase)
        {
            let memory = self.constants.memory.map_or(0.0, |(_, share, _)| share);
            let pace = self.shrink() * self.pace_beside_slow() * (1.0 - memory);
            let left = target.saturating_sub(self.time.useful) as f64;
            let ahead = to_ticks((left / pace.max(1e-9)).ceil());
            after(queue, ahead.max(1), Happening::Finished(self.generation));
        }
    }

    fn next_failure(&mut self, queue: &mut EventQueue<Happening>) {
        if self.constants.rate > 0.0 {
            let gap = self.failures.exponential(1.0 / self.constants.rate);
            after(queue, to_ticks(gap), Happening::Failure);
        }
    }

    fn next_slow(&mut self, queue: &mut EventQueue<Happening>) {
        if self.constants.slow_rate > 0.0 && self.constants.slowdown > 1.0 {
            let gap = self.slowness.exponential(1.0 / self.constants.slow_rate);
            after(queue, to_ticks(gap), Happening::Slow);
        }
    }

    /// Which part failed.
    fn kind(&mut self) -> usize {
        let mut draw = self.kinds.uniform() * self.constants.rate;
        for (index, rate) in self.constants.rates.iter().enumerate() {
            if draw < *rate {
                return index;
            }
            draw -= rate;
        }
        0
    }

    fn fail(&mut self, queue: &mut EventQueue<Happening>) {
        let kind = self.kind();
        let component = Component::ALL[kind];
        let hangs = self.kinds.uniform();
        let survives = self.kinds.uniform();
        let Some(profile) = &self.constants.profile else {
            return;
        };
        let down = matches!(self.phase, Phase::Down(_));
        if down && !component.takes_host() {
            // Nothing runs that it could interrupt.
            return;
        }
        self.interruptions[kind] += 1;
        if component == Component::Planned {
            self.restart_announced(queue);
            return;
        }
        let detection = if hangs < profile.hang_fraction {
            profile.hang_detection
        } else {
            profile.detection
        };
        if component.takes_host() {
            self.take_host(queue);
        }
        let from_memory = self
            .constants
            .memory
            .filter(|(_, _, share)| survives < *share);
        if !down {
            let in_memory =
                from_memory.map_or(0, |(between, ..)| self.time.useful / between * between);
            let kept = self.stored.max(in_memory).min(self.time.useful);
            self.time.lost += self.time.useful - kept;
            self.time.useful = kept;
        }
        let read = if from_memory.is_some() {
            0
        } else {
            self.constants.read
        };
        self.stand_still(
            queue,
            &[
                (Part::Detection, ticks(detection)),
                (Part::Restart, ticks(profile.restart) + read),
            ],
        );
    }

    /// A restart that is announced: what has been computed is saved first.
    fn restart_announced(&mut self, queue: &mut EventQueue<Happening>) {
        let saving = self.constants.stall.max(self.constants.write);
        if self.constants.checkpoint.is_some() {
            self.stored = self.time.useful;
            self.checkpoints += 1;
        }
        let restart = self
            .constants
            .profile
            .as_ref()
            .map_or(0, |p| ticks(p.restart));
        let parts = [
            (Part::Saving, saving),
            (Part::Restart, restart + self.constants.read),
        ];
        self.stand_still(queue, &parts);
    }

    fn stand_still(&mut self, queue: &mut EventQueue<Happening>, parts: &[(Part, Tick)]) {
        self.generation += 1;
        self.on_its_way = None;
        self.ahead = parts.iter().rev().copied().collect();
        self.next_part(queue);
    }

    fn next_part(&mut self, queue: &mut EventQueue<Happening>) {
        let Some((part, length)) = self.ahead.pop() else {
            // Slow hosts are exchanged while nothing runs anyway.
            while self.slow_known > 0 && self.spares > 0 {
                self.swap_slow(queue);
            }
            self.go(queue);
            return;
        };
        if part == Part::Restart && !self.enough_hosts() {
            self.ahead.push((part, length));
            self.phase = Phase::Down(Part::Waiting);
            return;
        }
        self.phase = Phase::Down(part);
        after(queue, length, Happening::Next(self.generation));
    }

    fn enough_hosts(&self) -> bool {
        self.missing == 0 || (self.constants.elastic && self.missing < self.constants.replicas)
    }

    /// A host goes to repair; a spare takes its place where there is one.
    fn take_host(&mut self, queue: &mut EventQueue<Happening>) {
        if self.spares > 0 {
            self.spares -= 1;
        } else {
            self.missing += 1;
        }
        self.send_to_repair(queue);
    }

    fn send_to_repair(&mut self, queue: &mut EventQueue<Happening>) {
        let mean = self
            .constants
            .profile
            .as_ref()
            .map_or(0.0, |p| ticks(p.repair) as f64);
        let away = self.repairs.exponential(mean);
        after(queue, to_ticks(away), Happening::Repaired);
    }

    fn repaired(&mut self, queue: &mut EventQueue<Happening>) {
        if self.missing == 0 {
            self.spares += 1;
            self.exchange_slow(queue);
            return;
        }
        self.missing -= 1;
        match self.phase {
            Phase::Down(Part::Waiting) if self.enough_hosts() => self.next_part(queue),
            // The run takes the host back at once.
            Phase::Running | Phase::Stalled => {
                self.exchanges += 1;
                self.restart_announced(queue);
            }
            Phase::Down(_) => {}
        }
    }

    fn swap_slow(&mut self, queue: &mut EventQueue<Happening>) {
        self.slow_known -= 1;
        self.slow = self.slow.saturating_sub(1);
        self.spares -= 1;
        self.exchanges += 1;
        self.send_to_repair(queue);
    }

    fn exchange_slow(&mut self, queue: &mut EventQueue<Happening>) {
        let runs = matches!(self.phase, Phase::Running | Phase::Stalled);
        if self.slow_known > 0 && self.spares > 0 && runs {
            self.swap_slow(queue);
            self.restart_announced(queue);
        }
    }

    fn checkpoint(&mut self, queue: &mut EventQueue<Happening>) {
        if self.on_its_way.is_some() {
            self.due = true;
            return;
        }
        self.due = false;
        self.phase = Phase::Stalled;
        self.on_its_way = Some(self.time.useful);
        after(
            queue,
            self.constants.stall,
            Happening::Released(self.generation),
        );
        after(
            queue,
            self.constants.interval,
            Happening::Due(self.generation),
        );
    }

    fn released(&mut self, queue: &mut EventQueue<Happening>) {
        self.phase = Phase::Running;
        if self.constants.checkpoint.is_some_and(|c| c.synchronous) {
            self.written(queue);
        } else {
            after(
                queue,
                self.constants.write,
                Happening::Written(self.generation),
            );
        }
    }

    fn written(&mut self, queue: &mut EventQueue<Happening>) {
        if let Some(safe) = self.on_its_way.take() {
            self.stored = safe;
            self.checkpoints += 1;
        }
        if self.due && self.phase == Phase::Running {
            self.checkpoint(queue);
        }
    }
}

/// A share of a span, at most all of it.
fn part(span: Tick, share: f64) -> Tick {
    ((span as f64 * share).round() as Tick).min(span)
}
