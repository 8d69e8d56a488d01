//! The closer bound: every pass of every stage in its order, each as fast as it could be.

use super::pieces::{Leg, PassTimes};
use crate::schedule::Pass;

/// Not there yet.
const UNKNOWN: u64 = u64::MAX;

/// Streams on which a stage sends: activations and gradients, in both directions of a
/// bidirectional schedule.
const SENDERS: usize = 4;

/// What the passes of a plan are bounded by; times in picoseconds.
pub(crate) struct Line<'a> {
    /// Order of each stage.
    pub orders: &'a [Vec<Pass>],
    /// Times of the chunk at each position of the model.
    pub positions: &'a [PassTimes],
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
    pub ends: &'a [StageEnd],
}

/// What a stage does after its last pass.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct StageEnd {
    /// Reductions of gradients that begin no earlier than the first of the last backward passes.
    pub reductions: u64,
    /// From the last pass on: what is left to reduce, the norm of the gradients, the optimizer,
    /// weights on their way back.
    pub rest: u64,
    /// What of it follows those reductions.
    pub behind_reductions: u64,
}

struct Stage {
    /// Place in the order.
    at: usize,
    /// When the kernels before are done.
    computed: u64,
    /// When the host has issued what comes before.
    issued: u64,
    /// When the messages are through that the next pass waits for.
    sent: u64,
    /// When the last message of each stream is through.
    streams: [u64; SENDERS],
    /// Of two passes woven into one: when each that has begun could begin.
    woven: (Option<u64>, Option<u64>),
    /// When the first pass began that completes gradients.
    released: u64,
}

impl Line<'_> {
    /// A time that the step is not under.
    pub fn step_time(&self) -> u64 {
        let last = self.orders.iter().map(|order| completing(order)).collect();
        let cells = self.positions.len() * self.micro_batches as usize;
        let mut walk = Walk {
            line: self,
            last,
            stages: (0..self.orders.len())
                .map(|_| Stage {
                    at: 0,
                    computed: 0,
                    issued: 0,
                    sent: 0,
                    streams: [0; SENDERS],
                    woven: (None, None),
                    released: UNKNOWN,
                })
                .collect(),
            forward: vec![UNKNOWN; cells],
            backward: vec![UNKNOWN; cells],
            awake: Vec::with_capacity(self.orders.len()),
            is_awake: vec![false; self.orders.len()],
        };
        for stage in (0..self.orders.len()).rev() {
            walk.wake(stage);
        }
        while let Some(stage) = walk.awake.pop() {
            walk.is_awake[stage] = false;
            while walk.advance(stage) {}
        }
        let ends = walk.stages.iter().zip(self.ends);
        ends.map(|(stage, end)| {
            // Without any backward pass, which no schedule has, nothing is reduced.
            let reduced = match stage.released {
                UNKNOWN => 0,
                released => released + end.reductions + end.behind_reductions,
            };
            reduced.max(stage.computed + end.rest)
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
    line: &'a Line<'a>,
    /// Of each stage, the places that complete gradients.
    last: Vec<Vec<usize>>,
    stages: Vec<Stage>,
    /// When the input of a pass is there, by position and micro-batch.
    forward: Vec<u64>,
    backward: Vec<u64>,
    awake: Vec<usize>,
    is_awake: Vec<bool>,
}

impl Walk<'_> {
    fn wake(&mut self, stage: usize) {
        if !std::mem::replace(&mut self.is_awake[stage], true) {
            self.awake.push(stage);
        }
    }

    fn times(&self, stage: usize, chunk: u32) -> &PassTimes {
        &self.line.positions[self.line.position(stage, chunk)]
    }

    /// Takes the next pass of a stage; false where its input is not known yet.
    fn advance(&mut self, stage: usize) -> bool {
        let place = self.stages[stage].at;
        let Some(pass) = self.line.orders[stage].get(place) else {
            return false;
        };
        let began = match *pass {
            Pass::Forward { micro_batch, chunk } => {
                let leg = self.times(stage, chunk).forward;
                self.alone(stage, true, micro_batch, chunk, leg)
            }
            Pass::Backward { micro_batch, chunk } => {
                let leg = self.times(stage, chunk).backward;
                self.alone(stage, false, micro_batch, chunk, leg)
            }
            Pass::InputGradient { micro_batch, chunk } => {
                let leg = self.times(stage, chunk).input;
                self.alone(stage, false, micro_batch, chunk, leg)
            }
            Pass::WeightGradient { chunk, .. } => {
                let leg = self.times(stage, chunk).weight;
                let stage = &mut self.stages[stage];
                let start = stage.computed.max(std::mem::take(&mut stage.sent));
                stage.compute(start, leg);
                Some(start)
            }
            Pass::Overlapped { forward, backward } => self.woven(stage, forward, backward),
        };
        let Some(began) = began else {
            return false;
        };
        let completes = self.last[stage].contains(&place);
        let stage = &mut self.stages[stage];
        if completes {
            stage.released = stage.released.min(began);
        }
        stage.at += 1;
        true
    }

    /// One pass with an input and an output; when it began.
    fn alone(
        &mut self,
        stage: usize,
        forward: bool,
        micro_batch: u32,
        chunk: u32,
        leg: Leg,
    ) -> Option<u64> {
        let input = self.input(stage, forward, micro_batch, chunk)?;
        let of_stage = &mut self.stages[stage];
        let sent = std::mem::take(&mut of_stage.sent);
        let start = of_stage.computed.max(input).max(sent);
        let out = of_stage.compute(start, leg);
        self.send(stage, forward, micro_batch, chunk, out);
        Some(start)
    }

    /// A forward and a backward pass whose kernels take turns: each follows its own input, and both
    /// share the GPU.
    fn woven(&mut self, stage: usize, forward: (u32, u32), backward: (u32, u32)) -> Option<u64> {
        let (f, b) = (
            self.times(stage, forward.1).forward,
            self.times(stage, backward.1).backward,
        );
        if self.stages[stage].woven.0.is_none()
            && let Some(input) = self.input(stage, true, forward.0, forward.1)
        {
            // Sends that the stage waits for hold up the forward pass.
            let of_stage = &mut self.stages[stage];
            let sent = std::mem::take(&mut of_stage.sent);
            let start = of_stage.computed.max(input).max(sent);
            of_stage.woven.0 = Some(start);
            self.send(stage, true, forward.0, forward.1, start + f.out);
        }
        if self.stages[stage].woven.1.is_none()
            && let Some(input) = self.input(stage, false, backward.0, backward.1)
        {
            let start = self.stages[stage].computed.max(input);
            self.stages[stage].woven.1 = Some(start);
            self.send(stage, false, backward.0, backward.1, start + b.out);
        }
        let of_stage = &mut self.stages[stage];
        let (Some(f_start), Some(b_start)) = of_stage.woven else {
            return None;
        };
        of_stage.woven = (None, None);
        let start = f_start.min(b_start);
        of_stage.issued += f.launch + b.launch;
        let host = of_stage.issued - (f.launch + b.launch) + f.issue + b.issue;
        of_stage.computed = (f_start + f.end)
            .max(b_start + b.end)
            .max(start + f.kernels + b.kernels)
            .max(host);
        Some(start)
    }

    /// When the input of a pass is there; `None` where nobody knows yet.
    fn input(&self, stage: usize, forward: bool, micro_batch: u32, chunk: u32) -> Option<u64> {
        let line = self.line;
        let position = line.position(stage, chunk);
        let first = if forward {
            position == 0
        } else {
            position + 1 == line.positions.len()
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
            if position + 1 == line.positions.len() {
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

impl Stage {
    /// Runs a pass that begins at `start`; when what it hands on is there.
    fn compute(&mut self, start: u64, leg: Leg) -> u64 {
        let host = self.issued + leg.issue;
        self.issued += leg.launch;
        if leg.kernels == 0 {
            // Nothing holds what a pass without kernels hands on.
            return 0;
        }
        self.computed = (start + leg.end).max(host);
        (start + leg.out).max(self.computed)
    }
}
