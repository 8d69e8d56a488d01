//! What chosen ranks did, and when. A trace is for people: no figure of a report is made from it.

use crate::fold::{Entity, ONE};
use crate::state::{Active, What};
use rackflow_plan::{PassKind, Plan, Stream, TransferId, Work};
use rackflow_units::{Bytes, SimTime};

/// What chosen ranks did.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Trace {
    /// The ranks, in the order in which they were asked for.
    pub ranks: Vec<TracedRank>,
    /// Messages whose both ends are traced.
    pub messages: Vec<Message>,
}

/// One rank.
#[derive(Debug, Clone, PartialEq)]
pub struct TracedRank {
    /// Its number.
    pub rank: u32,
    /// Its pipeline stage.
    pub stage: u32,
    /// What it did, in the order in which it ended.
    pub spans: Vec<Span>,
    /// Its passes through the model, in the order in which they began.
    pub passes: Vec<TracedPass>,
    /// Bytes that it holds throughout: weights, gradients, optimizer state, buffers, reserve.
    pub resident: Bytes,
}

/// One task.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Span {
    /// On which stream.
    pub stream: Stream,
    /// What it is.
    pub label: &'static str,
    /// For which micro-batch.
    pub micro_batch: u32,
    /// When it began: of a communication, when all its ranks were there.
    pub start: SimTime,
    /// When it ended.
    pub end: SimTime,
    /// Bytes out of the rank's NVLink port.
    pub nvlink: Bytes,
    /// Bytes out of the rank's share of the NICs.
    pub nic: Bytes,
}

/// One pass through a chunk of the model.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TracedPass {
    /// Forward or backward.
    pub kind: PassKind,
    /// Micro-batch.
    pub micro_batch: u32,
    /// Chunk of the stage.
    pub chunk: u32,
    /// When its first computation began.
    pub start: SimTime,
    /// When its last computation ended.
    pub end: SimTime,
    /// Bytes of activations that it keeps from its start on.
    pub keeps: u64,
    /// Bytes of activations that it gives back at its end.
    pub frees: u64,
}

/// A message between two traced ranks: positions in [`Trace::ranks`] and in their spans.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Message {
    /// Who sent it, and as which span.
    pub from: (usize, usize),
    /// Who received it, and as which span.
    pub to: (usize, usize),
}

/// What every rank did when.
#[derive(Debug, Clone, PartialEq)]
pub struct Execution {
    /// Class of each rank.
    pub class_of_rank: Vec<u32>,
    /// Ranks that did the same at the same time.
    pub classes: Vec<Executed>,
    /// Some ranks have more tokens for their experts than others.
    pub uneven: bool,
}

/// What the ranks of one class did when.
#[derive(Debug, Clone, PartialEq)]
pub struct Executed {
    /// Their pipeline stage.
    pub stage: u32,
    /// Their kind of accelerator.
    pub kind: u32,
    /// Expert load over the mean, in 65,536ths.
    pub load: u64,
    /// Start and end of each task of the stage's program; of a communication, from when all its ranks
    /// were there.
    pub times: Vec<(SimTime, SimTime)>,
}

/// Writes down what watched entities do.
pub(crate) struct Watch {
    /// Position of each entity among the watched ones.
    position: Vec<Option<usize>>,
    watched: Vec<Watched>,
}

#[derive(Default)]
struct Watched {
    computed: Vec<(u32, SimTime, SimTime)>,
    communicated: Vec<Communicated>,
}

#[derive(Clone, Copy)]
struct Communicated {
    stream: Stream,
    transfer: TransferId,
    start: SimTime,
    end: SimTime,
    /// The other end of a message that arrived here.
    from: Option<(u32, usize)>,
}

impl Watch {
    pub fn new(entities: usize, chosen: impl Iterator<Item = u32>) -> Self {
        let mut position = vec![None; entities];
        let mut watched = Vec::new();
        for entity in chosen {
            let place = &mut position[entity as usize];
            if place.is_none() {
                *place = Some(watched.len());
                watched.push(Watched::default());
            }
        }
        Self { position, watched }
    }

    fn of(&mut self, entity: u32) -> Option<&mut Watched> {
        self.position[entity as usize].map(|position| &mut self.watched[position])
    }

    pub fn computed(&mut self, entity: u32, task: u32, start: SimTime, end: SimTime) {
        if let Some(watched) = self.of(entity) {
            watched.computed.push((task, start, end));
        }
    }

    pub fn communicated(&mut self, active: &Active, members: &[u32], end: SimTime) {
        let done = |stream| Communicated {
            stream,
            transfer: active.transfer,
            start: active.started,
            end,
            from: None,
        };
        match active.what {
            What::Collective { stream, .. } => {
                for member in members {
                    if let Some(watched) = self.of(*member) {
                        watched.communicated.push(done(stream));
                    }
                }
            }
            What::Copy { entity, stream } => {
                if let Some(watched) = self.of(entity) {
                    watched.communicated.push(done(stream));
                }
            }
            What::Message {
                from,
                to,
                sending,
                receiving,
                ..
            } => {
                let sent = self.of(from).map(|watched| {
                    watched.communicated.push(done(sending));
                    watched.communicated.len() - 1
                });
                if let Some(watched) = self.of(to) {
                    watched.communicated.push(Communicated {
                        from: sent.map(|at| (from, at)),
                        ..done(receiving)
                    });
                }
            }
        }
    }

    /// When each entity did what, where all are watched.
    pub fn execution(&self, plan: &Plan, entities: &[Entity], class_of_rank: &[u32]) -> Execution {
        let mut classes = Vec::with_capacity(entities.len());
        for (entity, position) in entities.iter().zip(&self.position) {
            let watched = position.map(|position| &self.watched[position]);
            classes.push(Executed {
                stage: entity.stage,
                kind: entity.kind,
                load: entity.load,
                times: watched.map_or_else(Vec::new, |watched| watched.times(plan, entity.stage)),
            });
        }
        Execution {
            class_of_rank: class_of_rank.to_vec(),
            uneven: entities.iter().any(|entity| entity.load != ONE),
            classes,
        }
    }

    /// What was seen, in the terms of the plan.
    pub fn trace(
        &self,
        plan: &Plan,
        ranks: &[u32],
        entities: &[Entity],
        class_of_rank: &[u32],
    ) -> Trace {
        let mut trace = Trace::default();
        // Two ranks that one entity stands for are shown alike; its messages, once.
        let mut shown: Vec<Option<usize>> = vec![None; self.watched.len()];
        let mut positions = Vec::new();
        for (at, rank) in ranks.iter().enumerate() {
            let entity = class_of_rank[*rank as usize];
            let Some(position) = self.position[entity as usize] else {
                continue;
            };
            let stage = entities[entity as usize].stage;
            if shown[position].is_none() {
                shown[position] = Some(at);
                positions.push(position);
            }
            trace
                .ranks
                .push(self.watched[position].rank(plan, *rank, stage));
        }
        for position in positions {
            let watched = &self.watched[position];
            for (i, done) in watched.communicated.iter().enumerate() {
                let Some((from, sent)) = done.from else {
                    continue;
                };
                let sender = self.position[from as usize];
                let ends = sender.and_then(|sender| shown[sender]).zip(shown[position]);
                if let (Some((a, b)), Some(sender)) = (ends, sender) {
                    // Communication comes after computation in a rank's spans.
                    let from = (a, self.watched[sender].computed.len() + sent);
                    let to = (b, watched.computed.len() + i);
                    trace.messages.push(Message { from, to });
                }
            }
        }
        trace
    }
}

impl Watched {
    /// Start and end of each task. Each stream works in the order of the program.
    fn times(&self, plan: &Plan, stage: u32) -> Vec<(SimTime, SimTime)> {
        let tasks = &plan.programs[stage as usize].tasks;
        let mut times = vec![(SimTime::ZERO, SimTime::ZERO); tasks.len()];
        for (task, start, end) in &self.computed {
            times[*task as usize] = (*start, *end);
        }
        let mut of_stream: Vec<Vec<usize>> = vec![Vec::new(); Stream::COUNT];
        for (index, task) in tasks.iter().enumerate() {
            of_stream[task.stream as usize].push(index);
        }
        let mut next = [0; Stream::COUNT];
        for done in &self.communicated {
            let stream = done.stream as usize;
            times[of_stream[stream][next[stream]]] = (done.start, done.end);
            next[stream] += 1;
        }
        times
    }

    fn rank(&self, plan: &Plan, rank: u32, stage: u32) -> TracedRank {
        let program = &plan.programs[stage as usize];
        // What the host waits for may take the device no time.
        let seen = self.computed.iter().filter(|(_, start, end)| start < end);
        let computed = seen.map(|(task, start, end)| {
            let task = &program.tasks[*task as usize];
            let label = match task.work {
                Work::Compute(id) => plan.segments[id.0 as usize].label,
                _ => "",
            };
            Span {
                stream: Stream::Compute,
                label,
                micro_batch: task.micro_batch,
                start: *start,
                end: *end,
                nvlink: Bytes::ZERO,
                nic: Bytes::ZERO,
            }
        });
        // Each stream works in the order of the program, so the n-th end is the n-th task.
        let mut queues: Vec<std::vec::IntoIter<u32>> = Vec::new();
        for stream in 0..Stream::COUNT {
            let tasks = program
                .tasks
                .iter()
                .filter(|task| task.stream as usize == stream);
            let micro_batches: Vec<u32> = tasks.map(|task| task.micro_batch).collect();
            queues.push(micro_batches.into_iter());
        }
        let communicated = self.communicated.iter().map(|done| {
            let transfer = done.transfer.0 as usize;
            // The class of the widest span; ranks of one slot move alike but for the links.
            let demand = plan.demands[transfer]
                .iter()
                .max_by_key(|demand| demand.duration());
            let receives = matches!(
                done.stream,
                Stream::ReceiveActivation
                    | Stream::ReceiveGradient
                    | Stream::ReceiveActivationReverse
                    | Stream::ReceiveGradientReverse
            );
            let sent = demand.filter(|_| !receives);
            Span {
                stream: done.stream,
                label: plan.transfers[transfer].label,
                micro_batch: queues[done.stream as usize].next().unwrap_or(0),
                start: done.start,
                end: done.end,
                nvlink: sent.map_or(Bytes::ZERO, |demand| demand.wire_bytes_nvlink),
                nic: sent.map_or(Bytes::ZERO, |demand| demand.wire_bytes_nic),
            }
        });
        let memory = plan.facts.stages[stage as usize].memory;
        TracedRank {
            rank,
            stage,
            spans: computed.chain(communicated).collect(),
            passes: self.passes(plan, stage),
            resident: memory.total() - memory.activations,
        }
    }

    fn passes(&self, plan: &Plan, stage: u32) -> Vec<TracedPass> {
        let program = &plan.programs[stage as usize];
        let mut times = vec![(SimTime::ZERO, SimTime::ZERO); program.tasks.len()];
        for (task, start, end) in &self.computed {
            times[*task as usize] = (*start, *end);
        }
        let pass = |mark: &rackflow_plan::PassMark| TracedPass {
            kind: mark.kind,
            micro_batch: mark.micro_batch,
            chunk: mark.chunk,
            start: times[mark.tasks.0 as usize].0,
            end: times[mark.tasks.1 as usize].1,
            keeps: mark.keeps,
            frees: mark.frees,
        };
        program.passes.iter().map(pass).collect()
    }
}
