//! The closer bound: every pass of every stage in its order, each as fast as it could be.

use super::pieces::{Leg, PassTimes};
use super::strands::{Followed, Pair, Strand, Strands};
use crate::allocator::pressure::Stalls;
use crate::compile::Compiler;
use crate::schedule::Pass;
use std::sync::Arc;

/// Not there yet.
const UNKNOWN: u64 = u64::MAX;

/// Streams on which a stage sends: activations and gradients, in both directions of a
/// bidirectional schedule.
const SENDERS: usize = 4;

/// What the passes of a plan are bounded by; times in picoseconds.
pub(crate) struct Line {
    /// Order of each stage.
    pub orders: Vec<Vec<Pass>>,
    /// What each stage waits for the allocator in its passes; empty where none waits.
    pub stalls: Arc<Vec<Stalls>>,
    /// Times of the chunks of each stage, one stage after the other.
    pub places: Vec<PassTimes>,
    /// Passes in which data-parallel ranks meet, by seat and by the first position of an equal chunk.
    pub strands: Vec<Vec<Strands>>,
    /// Where the rank of each stage sits.
    pub seats: Vec<u32>,
    /// Chunks of a stage.
    pub per_stage: usize,
    /// Of each position, the first one that holds an equal chunk.
    pub same: Vec<u32>,
    /// Micro-batches.
    pub micro_batches: u32,
    /// Each stage holds two chunks, and micro-batches enter from both ends.
    pub bidirectional: bool,
    /// A message to the next stage on idle links, and one from the last stage to the first.
    pub message: u64,
    pub message_around: u64,
    /// A stage goes on while it sends.
    pub asynchronous: bool,
    /// A stage is ready to receive before it is done with the work before.
    pub asks_early: bool,
    /// What each stage does after its last pass.
    pub ends: Vec<StageEnd>,
}

/// What a stage does after its last pass.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct StageEnd {
    /// Weight gradients that the passes put off, which need nothing but the kernels before.
    pub put_off: u64,
    /// From then on: what is left to reduce, the norm of the gradients, the optimizer,
    /// weights on their way back.
    pub rest: u64,
    /// It queues behind what data-parallel ranks said to each other in the passes.
    pub queues: bool,
}

struct Stage<'a> {
    /// Place in the order.
    at: usize,
    /// When the kernels of the first passes are done at the earliest, as far as somebody knows more.
    ended: &'a [u64],
    /// When the kernels before are done.
    computed: u64,
    /// When the host has issued what comes before.
    issued: u64,
    /// When the messages are through that the next pass waits for.
    sent: u64,
    /// When the last message of each stream is through.
    streams: [u64; SENDERS],
    /// When the stream of data-parallel ranks is free.
    data: u64,
    /// Chunks that a forward pass went through.
    seen: Vec<bool>,
}

/// One pass, or two woven into one, on the way.
#[derive(Clone, Copy)]
struct Motion {
    followed: Followed,
    kernels: u64,
    issue: u64,
    launch: u64,
}

impl Motion {
    fn of_leg(leg: Leg, start: u64, data: u64) -> Self {
        Self {
            followed: Followed {
                end: start + leg.end,
                out: [start + leg.out, 0],
                data,
            },
            kernels: leg.kernels,
            issue: leg.issue,
            launch: leg.launch,
        }
    }

    fn of_strand(strand: &Strand, followed: Followed) -> Self {
        Self {
            followed,
            kernels: strand.kernels,
            issue: strand.issue,
            launch: strand.launch,
        }
    }
}

/// The different pairs of passes that are woven into one.
pub(crate) fn pairs(
    compiler: &Compiler<'_>,
    orders: &[Vec<Pass>],
    seat: impl Fn(u32) -> u32,
) -> Vec<Pair> {
    let mut found: Vec<Pair> = Vec::new();
    for (stage, order) in orders.iter().enumerate() {
        let position = |chunk: u32| {
            let position = compiler.position(stage as u32, chunk);
            compiler.same()[position as usize]
        };
        let completing = completing(order);
        let mut seen = vec![false; compiler.chunks_per_stage() as usize];
        let mut before = None;
        for (place, pass) in order.iter().enumerate() {
            let (Pass::Forward { chunk, .. }
            | Pass::Overlapped {
                forward: (_, chunk),
                ..
            }) = *pass
            else {
                continue;
            };
            let first = !std::mem::replace(&mut seen[chunk as usize], true);
            let Pass::Overlapped { backward, .. } = *pass else {
                continue;
            };
            let pair = Pair {
                forward: position(chunk),
                first,
                backward: position(backward.1),
                last: completing.contains(&place),
                seat: seat(stage as u32),
            };
            if before.replace(pair) != Some(pair) && !found.contains(&pair) {
                found.push(pair);
            }
        }
    }
    found
}

impl Line {
    /// A time that the step is not under, where passes are `woven` into one like this. The kernels of
    /// the first passes of each stage are `ended` no earlier than that, in the order of the passes;
    /// it is empty where nobody knows.
    pub fn step_time(&self, woven: &[(Pair, Strand)], ended: &[Vec<u64>]) -> u64 {
        let last = self.orders.iter().map(|order| completing(order)).collect();
        let cells = self.same.len() * self.micro_batches as usize;
        let mut walk = Walk {
            line: self,
            woven,
            last,
            stages: (0..self.orders.len())
                .map(|stage| Stage {
                    at: 0,
                    ended: ended.get(stage).map_or(&[], Vec::as_slice),
                    computed: 0,
                    issued: 0,
                    sent: 0,
                    streams: [0; SENDERS],
                    data: 0,
                    seen: vec![false; self.per_stage],
                })
                .collect(),
            ends: Vec::new(),
            last_woven: vec![None; woven.len()],
            forward: vec![UNKNOWN; cells],
            backward: vec![UNKNOWN; cells],
            awake: Vec::with_capacity(self.orders.len()),
            is_awake: vec![false; self.orders.len()],
        };
        for stage in (0..self.orders.len()).rev() {
            walk.stall(stage);
            walk.wake(stage);
        }
        while let Some(stage) = walk.awake.pop() {
            walk.is_awake[stage] = false;
            while walk.advance(stage) {}
        }
        let ends = walk.stages.iter().zip(&self.ends);
        ends.map(|(stage, end)| {
            let queued = if end.queues { stage.data } else { 0 };
            let computed = stage.computed + end.put_off;
            stage.data.max(computed.max(queued) + end.rest)
        })
        .max()
        .unwrap_or(0)
    }

    /// Position in the model of a stage's chunk.
    fn position(&self, stage: usize, chunk: u32) -> usize {
        match (self.bidirectional, chunk) {
            (true, 0) => stage,
            (true, _) => self.orders.len() - 1 - stage,
            (false, _) => chunk as usize * self.orders.len() + stage,
        }
    }

    fn times(&self, stage: usize, chunk: u32) -> &PassTimes {
        &self.places[stage * self.per_stage + chunk as usize]
    }

    fn strands(&self, stage: usize, chunk: u32) -> &Strands {
        let same = self.same[self.position(stage, chunk)];
        &self.strands[self.seats[stage] as usize][same as usize]
    }

    fn cell(&self, position: usize, micro_batch: u32) -> usize {
        position * self.micro_batches as usize + micro_batch as usize
    }
}

/// The places in an order at which the gradients of a chunk are complete.
fn completing(order: &[Pass]) -> Vec<usize> {
    let mut chunks: Vec<u32> = Vec::new();
    let mut places = Vec::new();
    for (place, pass) in order.iter().enumerate().rev() {
        let chunk = match *pass {
            Pass::Backward { chunk, .. } | Pass::WeightGradient { chunk, .. } => chunk,
            Pass::Overlapped { backward, .. } => backward.1,
            Pass::Forward { .. } | Pass::InputGradient { .. } => continue,
        };
        if !chunks.contains(&chunk) {
            chunks.push(chunk);
            places.push(place);
        }
    }
    places
}

struct Walk<'a> {
    line: &'a Line,
    /// Passes that are woven into one.
    woven: &'a [(Pair, Strand)],
    /// Of each stage, the places that complete gradients.
    last: Vec<Vec<usize>>,
    stages: Vec<Stage<'a>>,
    /// When the input of a pass is there, by position and micro-batch.
    forward: Vec<u64>,
    backward: Vec<u64>,
    awake: Vec<usize>,
    is_awake: Vec<bool>,
    /// Scratch of [`Strand::follow`].
    ends: Vec<u64>,
    /// By pair: how it went the last time, from zero, and how much later which run began.
    last_woven: Vec<Option<([u64; 2], Followed)>>,
}

impl Walk<'_> {
    fn wake(&mut self, stage: usize) {
        if !std::mem::replace(&mut self.is_awake[stage], true) {
            self.awake.push(stage);
        }
    }

    /// Takes the next pass of a stage; false where its input is not known yet.
    fn advance(&mut self, stage: usize) -> bool {
        let place = self.stages[stage].at;
        let Some(pass) = self.line.orders[stage].get(place) else {
            return false;
        };
        let last = self.last[stage].contains(&place);
        let taken = match *pass {
            Pass::Forward { micro_batch, chunk } => {
                self.alone(stage, true, micro_batch, chunk, pass, last)
            }
            Pass::Backward { micro_batch, chunk } | Pass::InputGradient { micro_batch, chunk } => {
                self.alone(stage, false, micro_batch, chunk, pass, last)
            }
            Pass::WeightGradient { chunk, .. } => {
                let of_stage = &mut self.stages[stage];
                let start = of_stage.computed.max(std::mem::take(&mut of_stage.sent));
                let motion = self.backward(stage, chunk, pass, last, start);
                self.stages[stage].compute(motion);
                true
            }
            Pass::Overlapped { forward, backward } => self.woven(stage, forward, backward, last),
        };
        if taken {
            self.stages[stage].at += 1;
            self.stall(stage);
        }
        taken
    }

    /// Waits for the allocator in the next pass. Nothing is computed, exchanged or issued while the device drains, and
    /// nothing is issued while the host alone waits.
    fn stall(&mut self, stage: usize) {
        let Some(stalls) = self.line.stalls.get(stage) else {
            return;
        };
        let of_stage = &mut self.stages[stage];
        if of_stage.at < self.line.orders[stage].len() {
            let [drained, beside] = stalls.drained_and_beside(of_stage.at);
            of_stage.computed += drained.as_picos();
            of_stage.issued += (drained + beside).as_picos();
        }
    }

    /// A forward pass that begins at `start`.
    fn forward(&mut self, stage: usize, chunk: u32, start: u64) -> Motion {
        let line = self.line;
        let of_stage = &mut self.stages[stage];
        let first = !std::mem::replace(&mut of_stage.seen[chunk as usize], true);
        let from = of_stage.data;
        match line.strands(stage, chunk).of_forward(first) {
            Some(strand) => {
                let followed = strand.follow([start; 2], from, &mut self.ends);
                Motion::of_strand(strand, followed)
            }
            None => Motion::of_leg(line.times(stage, chunk).forward, start, from),
        }
    }

    /// The backward part of a pass that begins at `start`.
    fn backward(
        &mut self,
        stage: usize,
        chunk: u32,
        pass: &Pass,
        last: bool,
        start: u64,
    ) -> Motion {
        let line = self.line;
        let from = self.stages[stage].data;
        if let Some(strand) = line.strands(stage, chunk).of_backward(pass, last) {
            let followed = strand.follow([start; 2], from, &mut self.ends);
            return Motion::of_strand(strand, followed);
        }
        let times = line.times(stage, chunk);
        let leg = match pass {
            Pass::InputGradient { .. } => times.input,
            Pass::WeightGradient { .. } => times.weight,
            _ => times.backward,
        };
        Motion::of_leg(leg, start, from)
    }

    /// One pass with an input and an output; false where its input is not known yet.
    fn alone(
        &mut self,
        stage: usize,
        forward: bool,
        micro_batch: u32,
        chunk: u32,
        pass: &Pass,
        last: bool,
    ) -> bool {
        let Some(input) = self.input(stage, forward, micro_batch, chunk) else {
            return false;
        };
        let of_stage = &mut self.stages[stage];
        let sent = std::mem::take(&mut of_stage.sent);
        let start = of_stage.computed.max(input).max(sent);
        let motion = if forward {
            self.forward(stage, chunk, start)
        } else {
            self.backward(stage, chunk, pass, last, start)
        };
        let out = self.stages[stage].compute(motion);
        self.send(stage, forward, micro_batch, chunk, out);
        true
    }

    /// A forward and a backward pass woven into one: each follows its own input. False where an input
    /// is not known yet.
    fn woven(
        &mut self,
        stage: usize,
        forward: (u32, u32),
        backward: (u32, u32),
        last: bool,
    ) -> bool {
        let (Some(f_input), Some(b_input)) = (
            self.input(stage, true, forward.0, forward.1),
            self.input(stage, false, backward.0, backward.1),
        ) else {
            return false;
        };
        let line = self.line;
        let of_stage = &mut self.stages[stage];
        // Sends that the stage waits for hold up the forward pass.
        let sent = std::mem::take(&mut of_stage.sent);
        let starts = [
            of_stage.computed.max(f_input).max(sent),
            of_stage.computed.max(b_input),
        ];
        let first = !std::mem::replace(&mut of_stage.seen[forward.1 as usize], true);
        let data = of_stage.data;
        let same = |chunk: u32| line.same[line.position(stage, chunk)];
        let pair = Pair {
            forward: same(forward.1),
            first,
            backward: same(backward.1),
            last,
            seat: line.seats[stage],
        };
        let index = self.woven.iter().position(|(of, _)| *of == pair);
        let index = index.expect("every pair is woven");
        let motion = self.follow_pair(index, starts, data);
        self.stages[stage].compute(motion);
        let [f_out, b_out] = motion.followed.out;
        self.send(stage, true, forward.0, forward.1, f_out);
        self.send(stage, false, backward.0, backward.1, b_out);
        true
    }

    fn follow_pair(&mut self, index: usize, starts: [u64; 2], data: u64) -> Motion {
        let strand = &self.woven[index].1;
        if strand.meets {
            let followed = strand.follow(starts, data, &mut self.ends);
            return Motion::of_strand(strand, followed);
        }
        // It only matters how much later one begins than the other.
        let zero = starts[0].min(starts[1]);
        let later = starts.map(|start| start - zero);
        let known = self.last_woven[index].filter(|(of, _)| *of == later);
        let from_zero = match known {
            Some((_, followed)) => followed,
            None => strand.follow(later, 0, &mut self.ends),
        };
        self.last_woven[index] = Some((later, from_zero));
        let followed = Followed {
            end: from_zero.end + zero,
            out: from_zero
                .out
                .map(|out| if out > 0 { out + zero } else { 0 }),
            data,
        };
        Motion::of_strand(strand, followed)
    }

    /// When the input of a pass is there; `None` where nobody knows yet.
    fn input(&self, stage: usize, forward: bool, micro_batch: u32, chunk: u32) -> Option<u64> {
        let line = self.line;
        let position = line.position(stage, chunk);
        let first = if forward {
            position == 0
        } else {
            position + 1 == line.same.len()
        };
        if first {
            return Some(0);
        }
        let cells = if forward {
            &self.forward
        } else {
            &self.backward
        };
        let arrives = cells[line.cell(position, micro_batch)];
        if arrives == UNKNOWN {
            return None;
        }
        if line.asynchronous || line.asks_early {
            return Some(arrives);
        }
        // Both ends meet before the message starts.
        Some(arrives.max(self.stages[stage].computed + line.message.min(line.message_around)))
    }

    /// Sends what is there at `out` to the stage that holds the next position.
    fn send(&mut self, stage: usize, forward: bool, micro_batch: u32, chunk: u32, out: u64) {
        let line = self.line;
        let position = line.position(stage, chunk);
        let stages = line.orders.len();
        let reverse = line.bidirectional && chunk == 1;
        let (to_position, to_next) = if forward {
            if position + 1 == line.same.len() {
                return;
            }
            (position + 1, !reverse)
        } else {
            if position == 0 {
                return;
            }
            (position - 1, reverse)
        };
        let to = if to_next {
            (stage + 1) % stages
        } else {
            (stage + stages - 1) % stages
        };
        let message = if stage.abs_diff(to) == 1 {
            line.message
        } else {
            line.message_around
        };
        let of_stage = &mut self.stages[stage];
        let queue = &mut of_stage.streams[2 * usize::from(reverse) + usize::from(forward)];
        *queue = out.max(*queue) + message;
        let arrives = *queue;
        if !line.asynchronous {
            of_stage.sent = of_stage.sent.max(arrives);
        }
        let cell = line.cell(to_position, micro_batch);
        if forward {
            self.forward[cell] = arrives;
        } else {
            self.backward[cell] = arrives;
        }
        self.wake(to);
    }
}

impl Stage<'_> {
    /// Takes a pass to its end; when what it hands on is there.
    fn compute(&mut self, motion: Motion) -> u64 {
        let host = self.issued + motion.issue;
        self.issued += motion.launch;
        self.data = motion.followed.data;
        if motion.kernels == 0 {
            // Nothing holds what a pass without kernels hands on.
            return 0;
        }
        let known = self.ended.get(self.at).copied().unwrap_or(0);
        self.computed = motion.followed.end.max(host).max(known);
        motion.followed.out[0].max(self.computed)
    }
}
