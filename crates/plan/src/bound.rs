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

pub(crate) use pieces::PieceTimes;

use crate::compile::Compiler;
use crate::placement::Placement;
use crate::price::Prices;
use crate::program::{Stream, Work};
use crate::run::Context;
use crate::schedule;
use crate::search::MEAN_LOAD;
use crate::setup::Setup;
use passes::{Line, StageEnd};
use pieces::{Gradients, Leg, PassTimes, least};
use rackflow_topology::ClusterMap;
use rackflow_units::SimDuration;
use rackflow_workload::{Schedule, Zero};

/// A message from one stage to the next on idle links, and one from the last stage to the first.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Messages {
    pub next: SimDuration,
    pub around: SimDuration,
}

/// Whether two passes are woven into one, so that each computes while the other communicates.
fn woven(setup: &Setup) -> bool {
    setup.training.schedule == Schedule::Dualpipe || woven_by_experts(setup)
}

/// Whether the stack weaves passes of its own accord, so as to hide the exchange of experts.
pub(crate) fn woven_by_experts(setup: &Setup) -> bool {
    setup.training.stack.overlap.expert && setup.training.parallelism.expert > 1
}

fn gradients(schedule: Schedule) -> Gradients {
    match schedule {
        Schedule::ZeroBubbleH1 | Schedule::ZeroBubbleH2 => Gradients::Apart,
        Schedule::Dualpipe => Gradients::Mixed,
        Schedule::Gpipe | Schedule::OneForwardOneBackward => Gradients::InOne,
    }
}

/// All passes of a stage through one chunk for one micro-batch.
struct Round {
    passes: u64,
    queues: PassTimes,
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
    let positions: Vec<Round> = compiler
        .chunks()
        .iter()
        .map(|chunk| {
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
                queues: times,
            }
        })
        .collect();
    let stages = compiler.stages();
    let mut longest = 0;
    let (mut filled, mut drained) = (0, 0);
    let message = messages.next.as_picos();
    for stage in 0..stages {
        let chunks = (0..compiler.chunks_per_stage())
            .map(|chunk| &positions[compiler.position(stage, chunk) as usize]);
        let (mut passes, mut queues) = (0, PassTimes::default());
        for round in chunks {
            passes += round.passes;
            queues = queues.then(round.queues);
        }
        let queued = queues.queued(gradients);
        // What passes with their gradients apart send of the ends of the model is not the sum of what
        // its pieces send: they leave the embedding's gradient for the end of the step.
        let data = match gradients {
            Gradients::InOne => queued.data,
            Gradients::Apart | Gradients::Mixed => 0,
        };
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
            .max(before + all(queued.inside))
            // Weights may be gathered before the first micro-batch is there.
            .max(all(data));
        let first = &positions[compiler.position(stage, 0) as usize].queues;
        filled += first.forward.end + message;
        if returns_last {
            drained += first.backward.end + message;
        }
    }
    SimDuration::from_picos(longest)
}

/// A closer one: every pass of every stage in its order.
pub(crate) fn step_time_by_passes(
    compiler: &Compiler<'_>,
    setup: &Setup,
    times: &PieceTimes,
    messages: Messages,
    map: &ClusterMap,
    placement: &Placement,
) -> SimDuration {
    let training = &setup.training;
    let positions: Vec<PassTimes> = compiler
        .chunks()
        .iter()
        .map(|chunk| times.of(chunk))
        .collect();
    let bidirectional = training.schedule == Schedule::Dualpipe;
    let line = Line {
        orders: &schedule::orders(training.schedule, compiler.shape()),
        positions: &positions,
        micro_batches: training.micro_batches() as u32,
        bidirectional,
        message: messages.next.as_picos(),
        message_around: messages.around.as_picos(),
        asynchronous: compiler.sends_asynchronously(),
        asks_early: compiler.asks_early(),
        ends: &stage_ends(compiler, setup, map, placement),
    };
    SimDuration::from_picos(line.step_time())
}

/// What each stage does after its last pass, at least.
fn stage_ends(
    compiler: &Compiler<'_>,
    setup: &Setup,
    map: &ClusterMap,
    placement: &Placement,
) -> Vec<StageEnd> {
    let prices = Prices::between_layers(setup, map, placement);
    let mut ctx = Context::new(setup, &prices);
    let mut known: Vec<(Vec<u32>, StageEnd)> = Vec::new();
    (0..compiler.stages())
        .map(|stage| {
            let alike = compiler.alike(stage);
            if let Some((_, end)) = known.iter().find(|(of, _)| *of == alike) {
                return *end;
            }
            let end = stage_end(compiler, &mut ctx, stage);
            known.push((alike, end));
            end
        })
        .collect()
}

fn stage_end(compiler: &Compiler<'_>, ctx: &mut Context<'_>, stage: u32) -> StageEnd {
    let chunks = compiler.stage_chunks(stage);
    let run = compiler.step_end(ctx, &chunks);
    let (mut rest, mut host_waits) = (0, false);
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
            Work::Collective(_, id) if node.stream == Stream::Data => least(ctx, id, MEAN_LOAD),
            _ => 0,
        };
        host_waits |= node.host_waits;
    }
    let training = &ctx.setup.training;
    // Passes that leave their weight gradients for later are not asked for those of the embedding.
    let reduced_before = training.stack.overlap.gradient_reduce
        && compiler.zero() != Zero::Stage3
        && gradients(training.schedule) == Gradients::InOne;
    let reductions = if reduced_before {
        compiler.all_reductions(ctx, &chunks)
    } else {
        Vec::new()
    };
    // Buckets take no less than all of it at once, but for a picosecond of rounding each.
    let slack = 8 * (compiler.stage_layers(stage) + 2);
    let reductions: u64 = reductions
        .into_iter()
        .map(|id| least(ctx, id, MEAN_LOAD).saturating_sub(slack))
        .sum();
    // The norm queues behind the reductions; where there is none, nothing waits for them.
    let queues = run
        .nodes
        .first()
        .is_some_and(|node| node.stream == Stream::Data);
    StageEnd {
        reductions,
        rest,
        behind_reductions: if queues { rest } else { 0 },
    }
}
