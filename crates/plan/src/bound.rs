//! Lower bounds of the step time: one cheap enough for tens of thousands of plans, and a closer one
//! for those that the first cannot rule out.
//!
//! # Why they are lower bounds
//! Take the rank with the fullest experts in each stage; where all are alike, the first. Its kernels
//! run one after the other, none faster than on an idle GPU, and within a pass each waits for the
//! communication before it, which is no faster than on idle links ([`pieces`]). A pass begins no
//! earlier than its stage is done with the one before, than its input has arrived over an idle link,
//! and than the host has issued it. [`passes`] follows all passes of all stages by these rules, and
//! by no others: whatever else a step holds only adds to it.
//!
//! [`step_time`] leaves the order of passes out. A stage takes no less than all its passes one after
//! the other; before the first of them a micro-batch came through all stages before this one, and
//! after the last backward pass its gradient goes back through them. Nor does it take less than all
//! that queues on one stream of communication.
//!
//! Where two passes are woven into one, one of them computes while the other waits; of such a pair
//! the kernels of both count, and the communication of each alone.
//!
//! Links are those of the first rank's groups, which lie at the start of the hall: no group of the
//! same size lies closer together. Messages between stages take the shortest path of all pairs of
//! ranks that are as far apart in number. The rank with the fullest experts has a whole pipeline of
//! its like around it, since experts are dealt to the ranks of all stages alike.

mod passes;
mod pieces;
mod strands;

pub(crate) use pieces::PieceTimes;

use crate::compile::Compiler;
use crate::price::Prices;
use crate::program::{Stream, Work};
use crate::run::Context;
use crate::schedule;
use crate::search::MEAN_LOAD;
use crate::setup::Setup;
use passes::{Line, StageEnd};
use pieces::{Gradients, Leg, PassTimes, QUEUES, least};
use rackflow_units::SimDuration;
use rackflow_workload::Schedule;
use strands::{Pair, Strand, Strands};

/// A message from one stage to the next on idle links, and one from the last stage to the first.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Messages {
    pub next: SimDuration,
    pub around: SimDuration,
}

/// Whether two passes are woven into one, so that each computes while the other communicates.
fn woven(setup: &Setup) -> bool {
    let training = &setup.training;
    training.schedule == Schedule::Dualpipe
        || (training.stack.overlap.expert && training.parallelism.expert > 1)
}

fn gradients(schedule: Schedule) -> Gradients {
    match schedule {
        Schedule::ZeroBubbleH1 | Schedule::ZeroBubbleH2 => Gradients::Apart,
        Schedule::Dualpipe => Gradients::Mixed,
        Schedule::Gpipe | Schedule::OneForwardOneBackward => Gradients::InOne,
    }
}

/// All passes of a stage through one chunk for one micro-batch.
#[derive(Clone, Copy)]
struct Round {
    passes: u64,
    /// What queues on each stream of communication.
    queued: [u64; QUEUES.len()],
    fill: u64,
    drain: u64,
}

/// A time that no simulation of `compiler`'s setup is under, from sums alone.
pub(crate) fn step_time(
    compiler: &Compiler<'_>,
    setup: &Setup,
    times: &PieceTimes,
    messages: Messages,
) -> SimDuration {
    let training = &setup.training;
    let micro_batches = training.micro_batches();
    let bidirectional = training.schedule == Schedule::Dualpipe;
    let gradients = gradients(training.schedule);
    let returns_last = matches!(
        training.schedule,
        Schedule::Gpipe | Schedule::OneForwardOneBackward
    );
    let weaves = woven(setup);
    let spent = |leg: Leg| if weaves { leg.kernels } else { leg.end };
    let mut positions: Vec<Round> = Vec::with_capacity(compiler.chunks().len());
    for (chunk, same) in compiler.chunks().iter().zip(compiler.same()) {
        positions.push(if let Some(known) = positions.get(*same as usize) {
            *known
        } else {
            let times = times.of(chunk);
            let in_one = spent(times.backward);
            let apart = spent(times.input) + spent(times.weight);
            let backward = match gradients {
                Gradients::InOne => in_one,
                Gradients::Apart => apart,
                Gradients::Mixed => in_one.min(apart),
            };
            Round {
                passes: spent(times.forward) + backward,
                queued: times.queued_by_stream(gradients),
                fill: times.forward.end,
                drain: times.backward.end,
            }
        });
    }
    let stages = compiler.stages();
    let mut longest = 0;
    let (mut filled, mut drained) = (0, 0);
    let message = messages.next.as_picos();
    for stage in 0..stages {
        let chunks = (0..compiler.chunks_per_stage())
            .map(|chunk| &positions[compiler.position(stage, chunk) as usize]);
        let (mut passes, mut queued) = (0, [0; QUEUES.len()]);
        for round in chunks {
            passes += round.passes;
            for (sum, of_round) in queued.iter_mut().zip(round.queued) {
                *sum += of_round;
            }
        }
        let [tensor, expert, data] = queued;
        // Each direction of a bidirectional schedule takes half of the micro-batches, and the first
        // comes from the nearer end, which may be this one.
        let all = |of_one: u64| of_one * micro_batches / if bidirectional { 2 } else { 1 };
        let (before, after) = if bidirectional {
            (0, 0)
        } else {
            (filled, drained)
        };
        longest = longest
            .max(before + all(passes) + after)
            .max(before + all(tensor.max(expert)))
            // Weights may be gathered before the first micro-batch is there.
            .max(all(data));
        let first = &positions[compiler.position(stage, 0) as usize];
        filled += first.fill + message;
        if returns_last {
            drained += first.drain + message;
        }
    }
    SimDuration::from_picos(longest)
}

/// Closer ones: every pass of every stage in its order.
pub struct Passes {
    line: Line,
    /// Passes that are woven into one, in each order that there may be: one of them it is.
    woven: Vec<Vec<(Pair, Strand)>>,
}

impl std::fmt::Debug for Passes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Passes")
    }
}

impl Passes {
    /// `prices` are the least of all communicators of the first rank, whose experts have `load` of the
    /// mean. Passes are woven in an order that depends on prices: if not on these, then on the `other`
    /// ones.
    pub(crate) fn new(
        mut compiler: Compiler<'_>,
        setup: &Setup,
        times: &PieceTimes,
        messages: Messages,
        (prices, other): (&Prices, Option<&Prices>),
        load: u64,
    ) -> Self {
        let compiler = &mut compiler;
        let training = &setup.training;
        let mut positions: Vec<PassTimes> = Vec::with_capacity(compiler.chunks().len());
        for (chunk, same) in compiler.chunks().iter().zip(compiler.same()) {
            let known = positions.get(*same as usize).copied();
            positions.push(known.unwrap_or_else(|| times.of(chunk)));
        }
        let mut ctx = Context::of_times(setup, prices, &times.kernels);
        let strands = Strands::of_chunks(compiler, &mut ctx, load);
        let ends = stage_ends(compiler, &mut ctx);
        let orders = schedule::orders(training.schedule, compiler.shape());
        let pairs = passes::pairs(compiler, &orders);
        let order = strands::orders_of_pairs(compiler, &mut ctx, &pairs);
        let mut woven = vec![strands::weave_pairs(compiler, &mut ctx, &order, load)];
        if let Some(other) = other.filter(|_| !pairs.is_empty()) {
            let mut again = compiler.afresh();
            let mut dearer = Context::of_times(setup, other, &times.kernels);
            let otherwise = strands::orders_of_pairs(&mut again, &mut dearer, &pairs);
            if otherwise != order {
                let mut again = compiler.afresh();
                let mut ctx = Context::of_times(setup, prices, &times.kernels);
                woven.push(strands::weave_pairs(&mut again, &mut ctx, &otherwise, load));
            }
        }
        let line = Line {
            orders,
            positions,
            strands,
            same: compiler.same().to_vec(),
            micro_batches: training.micro_batches() as u32,
            bidirectional: training.schedule == Schedule::Dualpipe,
            message: messages.next.as_picos(),
            message_around: messages.around.as_picos(),
            asynchronous: compiler.sends_asynchronously(),
            asks_early: compiler.asks_early(),
            ends,
        };
        Self { line, woven }
    }

    /// A time that no simulation is under in which the kernels of the first passes of each stage, on a
    /// rank with the fullest experts and those that it sends to, are `ended` no earlier than that, in
    /// picoseconds and in the order of the passes. It is empty where nobody knows.
    pub fn step_time(&self, ended: &[Vec<u64>]) -> SimDuration {
        let orders = self.woven.iter();
        let least = orders.map(|woven| self.line.step_time(woven, ended)).min();
        SimDuration::from_picos(least.unwrap_or(0))
    }

    /// Passes of each stage.
    pub fn counts(&self) -> impl Iterator<Item = usize> + '_ {
        self.line.orders.iter().map(Vec::len)
    }
}

/// What each stage does after its last pass, at least.
fn stage_ends(compiler: &Compiler<'_>, ctx: &mut Context<'_>) -> Vec<StageEnd> {
    let mut known: Vec<(Vec<u32>, StageEnd)> = Vec::new();
    (0..compiler.stages())
        .map(|stage| {
            let alike = compiler.alike(stage);
            if let Some((_, end)) = known.iter().find(|(of, _)| *of == alike) {
                return *end;
            }
            let end = stage_end(compiler, ctx, stage);
            known.push((alike, end));
            end
        })
        .collect()
}

fn stage_end(compiler: &Compiler<'_>, ctx: &mut Context<'_>, stage: u32) -> StageEnd {
    let chunks = compiler.stage_chunks(stage);
    let run = compiler.step_end(ctx, &chunks);
    let (mut rest, mut host_waits) = (0, false);
    let beside = ctx.setup.training.stack.overlap.optimizer_step_gather;
    let mut computed = false;
    for node in &run.nodes {
        rest += match node.work {
            Work::Compute(id) => {
                let segment = &ctx.segments[id.0 as usize];
                // The host issues what follows once it has seen the norm.
                let launch = if host_waits {
                    segment.launch.as_picos()
                } else {
                    0
                };
                segment.time[0].as_picos().max(launch)
            }
            // What is gathered beside the optimizer may cost nothing.
            Work::Collective(_, id) if node.stream == Stream::Data && !(beside && computed) => {
                least(ctx, id, MEAN_LOAD)
            }
            _ => 0,
        };
        computed |= matches!(node.work, Work::Compute(_));
        host_waits |= node.host_waits;
    }
    // The norm queues behind the reductions; where there is none, nothing waits for them.
    let queues = run
        .nodes
        .first()
        .is_some_and(|node| node.stream == Stream::Data);
    StageEnd { rest, queues }
}
