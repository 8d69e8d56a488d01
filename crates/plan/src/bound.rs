//! Lower bounds of the step time: one cheap enough for tens of thousands of plans, and a closer one
//! for those that the first cannot rule out.
//!
//! # Why they are lower bounds
//! Take the rank with the fullest experts in each stage; where all are alike, the first. Its kernels
//! run one after the other, none faster than on an idle GPU, and within a pass each waits for the
//! communication before it, which is no faster than on idle links ([`pieces`]). A pass begins no
//! earlier than its stage is done with the one before, than its input has arrived over an idle link,
//! and than the host has issued it. Where the allocator drains the device in a pass, nothing is computed, exchanged or
//! issued until the wait is over; where it holds up the host, nothing is issued. What a pass hands on is issued after all
//! of its waits. [`passes`] follows all passes of all stages by these rules, and by no others: whatever else a step
//! holds only adds to it.
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
//!
//! Where nodes of several kinds stand side by side, no rank stands for all. Then a few lines of ranks
//! are bounded, each sending to the next stage, with the kind of accelerator and the groups that each
//! rank of the line really has. Any of them is a lower bound, so that the largest is.

mod passes;
mod pieces;
mod strands;

pub(crate) use pieces::{LineTimes, PieceTimes};

use crate::allocator::pressure::Stalls;
use crate::compile::Compiler;
use crate::price::Prices;
use crate::program::{Stream, Work};
use crate::run::{Context, KnownKernels};
use crate::schedule::{self, Pass};
use crate::search::MEAN_LOAD;
use crate::setup::Setup;
use passes::{Line, StageEnd};
use pieces::{Gradients, Leg, PassTimes, QUEUES, least};
use rackflow_units::SimDuration;
use rackflow_workload::Schedule;
use std::borrow::Cow;
use std::cmp::Reverse;
use std::sync::Arc;
use strands::{Orders, Pair, Strand, Strands};

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
    lines: &[LineTimes],
    messages: Messages,
) -> SimDuration {
    let of_line = |times| line_time(compiler, setup, times, messages);
    lines.iter().map(of_line).max().unwrap_or(SimDuration::ZERO)
}

fn line_time(
    compiler: &Compiler<'_>,
    setup: &Setup,
    line: &LineTimes,
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
    let stages = compiler.stages();
    let round = |times: PassTimes| {
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
    };
    let rounds = places(compiler, line, round);
    let mut longest = 0;
    let (mut filled, mut drained) = (0, 0);
    let message = messages.next.as_picos();
    for stage in 0..stages {
        let per_stage = compiler.chunks_per_stage() as usize;
        let of_stage = &rounds[stage as usize * per_stage..][..per_stage];
        let (mut passes, mut queued) = (0, [0; QUEUES.len()]);
        for round in of_stage {
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
        let first = &of_stage[0];
        filled += first.fill + message;
        if returns_last {
            drained += first.drain + message;
        }
    }
    SimDuration::from_picos(longest)
}

/// What the ranks of a line take for each chunk, stage by stage.
fn places<T: Copy>(
    compiler: &Compiler<'_>,
    line: &LineTimes,
    found: impl Fn(PassTimes) -> T,
) -> Vec<T> {
    let per_stage = compiler.chunks_per_stage();
    // Some micro-batches may not; that they all do is the least.
    let defers = compiler.deferred_output_gradients() > 0;
    let mut known: Vec<((u32, u32), T)> = Vec::new();
    let mut places = Vec::with_capacity((compiler.stages() * per_stage) as usize);
    for stage in 0..compiler.stages() {
        let seat = line.seat(stage);
        for chunk in 0..per_stage {
            let same = compiler.same()[compiler.position(stage, chunk) as usize];
            let key = (same, seat);
            let of_key = known.iter().find(|(of, _)| *of == key).map(|(_, of)| *of);
            places.push(of_key.unwrap_or_else(|| {
                let chunk = &compiler.chunks()[same as usize];
                let of = found(line.seats[seat as usize].of(chunk, defers));
                known.push((key, of));
                of
            }));
        }
    }
    places
}

/// Where the ranks of a line sit, by what tells seats apart.
pub(crate) struct SeatedLine<'a> {
    /// The rank of the first stage, where it is not any of those with the fullest experts.
    pub rank: Option<u32>,
    /// The setup as each seat sees it, and the least of all its communicators.
    pub seats: Vec<(Cow<'a, Setup>, Prices)>,
    /// What they take.
    pub times: &'a LineTimes,
    /// The seat of each stage, which need not be that of `times`; empty where there is one.
    pub of_stage: Vec<u32>,
}

impl SeatedLine<'_> {
    /// Whether all is as the first rank of the cluster sees it.
    fn is_of_first_rank(&self) -> bool {
        matches!(self.seats[..], [(Cow::Borrowed(_), _)])
    }
}

/// Closer ones: every pass of every stage in its order.
pub struct Passes {
    /// Lines of ranks from stage to stage; the first is the one that bounds closest.
    lines: Vec<Woven>,
}

/// A line of ranks, and passes that are woven into one.
struct Woven {
    rank: Option<u32>,
    line: Line,
    /// In each order that there may be: one of them it is.
    pairs: Vec<Vec<(Pair, Strand)>>,
}

impl std::fmt::Debug for Passes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Passes")
    }
}

impl Passes {
    /// `lines` are at the least prices of all communicators of their ranks, whose experts have `load` of
    /// the mean. Before their passes the stages wait for the allocator as `stalls` say, or never where it is
    /// empty. Passes are woven in an order that depends on the prices of the first rank: if not on
    /// these, then on the `other` ones.
    pub(crate) fn new(
        compiler: &Compiler<'_>,
        setup: &Setup,
        lines: &[SeatedLine<'_>],
        stalls: &Arc<Vec<Stalls>>,
        messages: Messages,
        (prices, other): (&Prices, Option<&Prices>),
        load: u64,
    ) -> Self {
        let training = &setup.training;
        let orders = schedule::orders(training.schedule, compiler.shape());
        // Kernels of the first rank, which may be of another kind than those of a line.
        let known = match lines {
            [line] if line.is_of_first_rank() => line.times.seats[0].kernels.clone(),
            _ => Arc::default(),
        };
        let find = |line| {
            Woven::new(
                compiler,
                setup,
                line,
                (&orders, stalls),
                messages,
                (prices, other, &known),
                load,
            )
        };
        let mut lines: Vec<Woven> = lines.iter().map(find).collect();
        if lines.len() > 1 {
            lines.sort_by_cached_key(|line| Reverse(line.step_time(&[])));
        }
        Self { lines }
    }

    /// A time that no simulation is under in which the kernels of the first passes of each stage, on
    /// the rank that is watched and those that it sends to, are `ended` no earlier than that, in
    /// picoseconds and in the order of the passes. It is empty where nobody knows.
    pub fn step_time(&self, ended: &[Vec<u64>]) -> SimDuration {
        let closest = self.lines.first().map_or(0, |line| line.step_time(ended));
        SimDuration::from_picos(closest)
    }

    /// The rank of the first stage that is to be watched, where it is not any of those with the fullest
    /// experts.
    pub fn watched(&self) -> Option<u32> {
        self.lines.first().and_then(|line| line.rank)
    }

    /// Passes of each stage.
    pub fn counts(&self) -> impl Iterator<Item = usize> + '_ {
        let orders = self.lines.iter().take(1).flat_map(|line| &line.line.orders);
        orders.map(Vec::len)
    }
}

impl Woven {
    fn new(
        compiler: &Compiler<'_>,
        setup: &Setup,
        seated: &SeatedLine<'_>,
        (orders, stalls): (&[Vec<Pass>], &Arc<Vec<Stalls>>),
        messages: Messages,
        (prices, other, known): (&Prices, Option<&Prices>, &KnownKernels),
        load: u64,
    ) -> Self {
        let training = &setup.training;
        let per_stage = compiler.chunks_per_stage() as usize;
        let seat = |stage: u32| seated.of_stage.get(stage as usize).copied().unwrap_or(0);
        let pairs = passes::pairs(compiler, orders, seat);
        let order_at = |prices: &Prices| {
            let mut ctx = Context::of_times(setup, prices, known);
            strands::orders_of_pairs(&mut compiler.on(setup), &mut ctx, &pairs)
        };
        let others = |first: &Orders| {
            let other = other.filter(|_| !pairs.is_empty()).map(order_at);
            other.filter(|other| other != first)
        };
        // The only seat there is is that of the first rank.
        let alone = seated.is_of_first_rank();
        let mut woven_orders: Vec<Orders> = Vec::new();
        if !alone {
            woven_orders.push(order_at(prices));
            woven_orders.extend(others(&woven_orders[0]));
        }
        let mut woven: Vec<Vec<(Pair, Strand)>> = Vec::new();
        let mut strands = Vec::with_capacity(seated.seats.len());
        let mut ends = vec![StageEnd::default(); orders.len()];
        for (number, (setup, prices)) in (0..).zip(&seated.seats) {
            let stages = (0..orders.len() as u32).filter(|stage| seat(*stage) == number);
            let kernels = stages
                .clone()
                .next()
                .map_or(0, |stage| seated.times.seat(stage));
            let kernels = &seated.times.seats[kernels as usize].kernels;
            let mut ctx = Context::of_times(setup, prices, kernels);
            let mut compiler = compiler.on(setup);
            strands.push(Strands::of_chunks(&mut compiler, &mut ctx, load));
            stage_ends(&compiler, &mut ctx, stages, &mut ends);
            if alone {
                woven_orders.push(strands::orders_of_pairs(&mut compiler, &mut ctx, &pairs));
                woven_orders.extend(others(&woven_orders[0]));
            }
            woven.resize_with(woven_orders.len(), Vec::new);
            for (woven, order) in woven.iter_mut().zip(&woven_orders) {
                let order = order.iter().filter(|(pair, _)| pair.seat == number);
                let strands = strands::weave_pairs(&mut compiler, &mut ctx, order, load);
                woven.extend(strands);
            }
        }
        let line = Line {
            orders: orders.to_vec(),
            stalls: stalls.clone(),
            places: places(compiler, seated.times, |times| times),
            strands,
            seats: (0..orders.len() as u32).map(seat).collect(),
            same: compiler.same().to_vec(),
            per_stage,
            micro_batches: training.micro_batches() as u32,
            bidirectional: training.schedule == Schedule::Dualpipe,
            message: messages.next.as_picos(),
            message_around: messages.around.as_picos(),
            asynchronous: compiler.sends_asynchronously(),
            asks_early: compiler.asks_early(),
            ends,
        };
        Self {
            rank: seated.rank,
            line,
            pairs: woven,
        }
    }

    fn step_time(&self, ended: &[Vec<u64>]) -> u64 {
        let orders = self.pairs.iter();
        let least = orders.map(|woven| self.line.step_time(woven, ended)).min();
        least.unwrap_or(0)
    }
}

/// What these stages do after their last pass, at least.
fn stage_ends(
    compiler: &Compiler<'_>,
    ctx: &mut Context<'_>,
    stages: impl Iterator<Item = u32>,
    ends: &mut [StageEnd],
) {
    let mut known: Vec<(Vec<u32>, StageEnd)> = Vec::new();
    for stage in stages {
        let alike = compiler.alike(stage);
        let of_alike = known.iter().find(|(of, _)| *of == alike);
        ends[stage as usize] = match of_alike {
            Some((_, end)) => *end,
            None => {
                let end = stage_end(compiler, ctx, stage);
                known.push((alike, end));
                end
            }
        };
    }
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
    let left = compiler.output_gradients_left(ctx, &chunks);
    let nodes = left.iter().flat_map(|run| &run.nodes);
    let put_off = nodes.map(|node| match node.work {
        Work::Compute(id) => ctx.segments[id.0 as usize].time[0].as_picos(),
        _ => 0,
    });
    StageEnd {
        put_off: put_off.sum(),
        rest,
        queues,
    }
}
