//! Least times of a pass through each piece of a model: a layer of each kind, the embedding, the
//! output head.

use crate::cause::CommKind;
use crate::compile::{Chunk, ChunkLayout, Compiler, Kind, LayerKindKey};
use crate::placement::Placement;
use crate::price::Prices;
use crate::program::{Segment, Stream, TransferId, Work};
use crate::run::{Context, KnownKernels, Run};
use crate::search::MEAN_LOAD;
use crate::setup::Setup;
use rackflow_units::SimDuration;
use rackflow_workload::{ActivationOffload, Model, Recompute};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Least times of one run, in picoseconds from the instant at which it could begin: its stage is
/// done with the kernels before, and what the run waits for from outside is there.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Leg {
    /// To the end of the last kernel.
    pub end: u64,
    /// To when what the next piece waits for is there.
    pub out: u64,
    /// Kernels alone, one after the other.
    pub kernels: u64,
    /// Host time to issue the kernels alone.
    pub issue: u64,
    /// Host time to issue everything.
    pub launch: u64,
}

impl Leg {
    /// The same run so many times, each waiting for the one before.
    fn times(self, count: u64) -> Self {
        let Some(before) = count.checked_sub(1) else {
            return Self::default();
        };
        Self {
            end: self.out * before + self.end,
            out: self.out * count,
            kernels: self.kernels * count,
            issue: self.issue * count,
            launch: self.launch * count,
        }
    }

    /// This run and then `next`, which waits for what this one hands on.
    fn then(self, next: Self) -> Self {
        Self {
            end: if next.kernels > 0 {
                self.out + next.end
            } else {
                self.end
            },
            out: self.out + next.out,
            kernels: self.kernels + next.kernels,
            issue: self.issue + next.issue,
            launch: self.launch + next.launch,
        }
    }
}

/// Streams whose communication is summed.
pub(crate) const QUEUES: [Stream; 3] = [Stream::Tensor, Stream::Expert, Stream::Data];

/// Least times of all passes through one piece.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct PassTimes {
    pub forward: Leg,
    /// Both gradients in one.
    pub backward: Leg,
    /// Only what the stage before waits for.
    pub input: Leg,
    /// The rest of the backward pass.
    pub weight: Leg,
    /// What queues on each stream of communication, forward and backward in one.
    queued: [u64; QUEUES.len()],
    /// The same, with the gradients apart.
    queued_apart: [u64; QUEUES.len()],
}

impl PassTimes {
    fn times(self, count: u64) -> Self {
        Self {
            forward: self.forward.times(count),
            backward: self.backward.times(count),
            input: self.input.times(count),
            weight: self.weight.times(count),
            queued: self.queued.map(|time| time * count),
            queued_apart: self.queued_apart.map(|time| time * count),
        }
    }

    /// Without what queues for data-parallel ranks.
    fn without_data(mut self) -> Self {
        for queues in [&mut self.queued, &mut self.queued_apart] {
            for (stream, queue) in QUEUES.iter().zip(queues) {
                if *stream == Stream::Data {
                    *queue = 0;
                }
            }
        }
        self
    }

    /// A piece of the model and the one behind it.
    pub fn then(self, next: Self) -> Self {
        Self {
            forward: self.forward.then(next.forward),
            backward: next.backward.then(self.backward),
            input: next.input.then(self.input),
            weight: next.weight.then(self.weight),
            queued: std::array::from_fn(|i| self.queued[i] + next.queued[i]),
            queued_apart: std::array::from_fn(|i| self.queued_apart[i] + next.queued_apart[i]),
        }
    }

    /// What queues on each stream: with both gradients in one pass, with the gradients apart, or
    /// with whichever of the two has less.
    pub fn queued_by_stream(&self, gradients: Gradients) -> [u64; QUEUES.len()] {
        match gradients {
            Gradients::InOne => self.queued,
            Gradients::Apart => self.queued_apart,
            Gradients::Mixed => std::array::from_fn(|i| self.queued[i].min(self.queued_apart[i])),
        }
    }
}

/// How a schedule computes the two gradients of a pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Gradients {
    /// In one pass.
    InOne,
    /// In two.
    Apart,
    /// Either, by micro-batch.
    Mixed,
}

/// What the ranks of a line take at least, each sending to the next, one of each stage.
#[derive(Debug)]
pub(crate) struct LineTimes {
    /// Those that are priced apart.
    pub seats: Vec<Arc<PieceTimes>>,
    /// The one of each stage; empty where there is one.
    pub of_stage: Vec<u32>,
}

impl LineTimes {
    /// Which seat a stage has.
    pub fn seat(&self, stage: u32) -> u32 {
        self.of_stage.get(stage as usize).copied().unwrap_or(0)
    }
}

/// Least times of passes through each piece of a model. They hold for all plans that divide a layer
/// alike: equal tensor, context and expert parallelism, micro-batch, recomputation and formats.
pub(crate) struct PieceTimes {
    layers: BTreeMap<LayerKindKey, PassTimes>,
    embedding: PassTimes,
    head: PassTimes,
    /// The same where the weight gradient of the output layer is put off.
    head_deferring: PassTimes,
    /// Times of the kernels that they are made of.
    pub kernels: Arc<KnownKernels>,
}

impl std::fmt::Debug for PieceTimes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // What a reader of a candidate wants to see is its plan.
        f.write_str("PieceTimes")
    }
}

impl PieceTimes {
    /// Measures the pieces on the first rank of `setup`, whose experts have `load` of the mean, in
    /// parts of [`MEAN_LOAD`], at the prices of its communicators inside a layer.
    pub fn new(setup: &Setup, prices: &Prices, load: u64, kernels: &Arc<KnownKernels>) -> Self {
        let without;
        let training = &setup.training;
        // Some layers are computed again and some are not; none is less.
        let partly = matches!(
            training.recompute,
            Recompute::FullLayers(_) | Recompute::Operators
        );
        // What comes once in a chunk, or for some of its layers, is no part of a piece.
        let offloads = !training.stack.activation_offload.inputs.is_empty();
        let setup = if partly || offloads || training.stack.scatters_messages {
            let mut least = setup.clone();
            if partly {
                least.training.recompute = Recompute::None;
            }
            least.training.stack.scatters_messages = false;
            least.training.stack.activation_offload = ActivationOffload::default();
            without = least;
            &without
        } else {
            setup
        };
        let placement = Placement::new(&setup.training.parallelism, setup.rank_order);
        let mut ctx = Context::of_times(setup, prices, kernels);
        // Pieces are asked for, however layers are dealt out.
        let nowhere = Arc::new(ChunkLayout::of(Vec::new()));
        let mut compiler = Compiler::with_layout(setup, &placement, nowhere);
        let mut times = |layers: Vec<(LayerKindKey, u64)>, [first, last, defers]: [bool; 3]| {
            let chunk = Chunk {
                layers,
                first,
                last,
            };
            pass_times(&mut compiler, &mut ctx, &chunk, load, defers)
        };
        let model = &setup.training.model;
        let mut layers = BTreeMap::new();
        for index in 0..model.layers {
            let key = LayerKindKey::from(model.layer_kind(index));
            layers
                .entry(key)
                .or_insert_with(|| times(vec![(key, 1)], [false; 3]));
        }
        // The gradients of the ends are reduced together with those of a layer beside them.
        let mut end = |of| times(Vec::new(), of).without_data();
        Self {
            layers,
            embedding: end([true, false, false]),
            head: end([false, true, false]),
            head_deferring: end([false, true, true]),
            kernels: kernels.clone(),
        }
    }

    /// What a forward and a backward pass through a layer take on average [ps].
    pub fn of_layer(&self, model: &Model) -> f64 {
        let sum = (0..model.layers).map(|index| {
            let times = &self.layers[&LayerKindKey::from(model.layer_kind(index))];
            times.forward.end + times.backward.end
        });
        sum.sum::<u64>() as f64 / model.layers.max(1) as f64
    }

    /// What a forward and a backward pass take before the first layer and behind the last [ps].
    pub fn of_ends(&self) -> [f64; 2] {
        let both = |times: &PassTimes| (times.forward.end + times.backward.end) as f64;
        [both(&self.embedding), both(&self.head)]
    }

    /// Least times of passes through a chunk, which `defers` the weight gradient of the output layer if it has it.
    pub fn of(&self, chunk: &Chunk, defers: bool) -> PassTimes {
        let mut sum = PassTimes::default();
        if chunk.first {
            sum = sum.then(self.embedding);
        }
        for (key, count) in &chunk.layers {
            sum = sum.then(self.layers[key].times(*count));
        }
        if chunk.last {
            sum = sum.then(if defers {
                self.head_deferring
            } else {
                self.head
            });
        }
        sum
    }
}

impl Segment {
    /// Time on an idle GPU, where the experts' share of tokens is `load` [ps].
    pub(super) fn least(&self, load: u64) -> u64 {
        let time = self.time[0];
        let loaded = if self.routed {
            time.scale(load, MEAN_LOAD)
        } else {
            time
        };
        loaded.as_picos()
    }
}

fn pass_times(
    compiler: &mut Compiler<'_>,
    ctx: &mut Context<'_>,
    chunk: &Chunk,
    load: u64,
    defers: bool,
) -> PassTimes {
    let mut measured = |kind| {
        let run = compiler.run(ctx, chunk, kind);
        (leg(ctx, &run, load), queues(ctx, &run, load))
    };
    let (forward, forward_queue) = measured(Kind::Forward);
    let (backward, backward_queue) = measured(Kind::backward(false, defers));
    let (input, input_queue) = measured(Kind::InputGradient);
    let (weight, weight_queue) = measured(Kind::WeightGradient);
    PassTimes {
        forward,
        backward,
        input,
        weight,
        queued: std::array::from_fn(|i| forward_queue[i] + backward_queue[i]),
        queued_apart: std::array::from_fn(|i| forward_queue[i] + input_queue[i] + weight_queue[i]),
    }
}

/// Least time of one communication on idle links, where the fullest rank has `load` of the mean.
pub(crate) fn least(ctx: &Context<'_>, id: TransferId, load: u64) -> u64 {
    let routed = ctx.transfers[id.0 as usize].kind == CommKind::Expert && load != MEAN_LOAD;
    let demands = ctx.demands[id.0 as usize].iter();
    demands
        .map(|demand| {
            let span = if routed {
                let wire = |span: SimDuration| span.scale(load, MEAN_LOAD);
                demand.latency + wire(demand.nvlink).max(wire(demand.nic))
            } else {
                demand.duration()
            };
            span.as_picos()
        })
        .min()
        .unwrap_or(0)
}

/// Time of all communication of a run, by stream.
fn queues(ctx: &Context<'_>, run: &Run, load: u64) -> [u64; QUEUES.len()] {
    let mut sums = [0; QUEUES.len()];
    for node in &run.nodes {
        if let Work::Collective(_, id) = node.work
            && let Some(queue) = QUEUES.iter().position(|stream| *stream == node.stream)
        {
            sums[queue] += least(ctx, id, load);
        }
    }
    sums
}

/// Follows one run: kernels one after the other, each behind what it waits for; communications of
/// one stream one after the other.
fn leg(ctx: &Context<'_>, run: &Run, load: u64) -> Leg {
    let mut leg = Leg::default();
    let communication_launch = ctx.communication_launch().as_picos();
    let mut ends: Vec<Option<u64>> = Vec::with_capacity(run.nodes.len());
    let mut free = [0u64; Stream::COUNT];
    for node in &run.nodes {
        let waited = node.deps.iter().filter_map(|dep| ends[*dep as usize]).max();
        // What is at the head of a run waits for what the run as a whole waits for.
        let waited = waited.or(node.entry.then_some(0));
        ends.push(match node.work {
            Work::Compute(id) => {
                let segment = &ctx.segments[id.0 as usize];
                let time = segment.least(load);
                leg.kernels += time;
                leg.issue += segment.launch.as_picos();
                leg.launch += segment.launch.as_picos();
                leg.end = leg.end.max(waited.unwrap_or(0)) + time;
                Some(leg.end)
            }
            // What gathers weights may have begun long before the run.
            Work::Collective(_, id) if node.stream != Stream::Data => {
                leg.launch += communication_launch;
                waited.map(|start| {
                    let end = start.max(free[node.stream as usize]) + least(ctx, id, load);
                    free[node.stream as usize] = end;
                    end
                })
            }
            _ => {
                leg.launch += communication_launch;
                None
            }
        });
    }
    let handed_on = run.exits.iter().filter_map(|exit| ends[*exit as usize]);
    leg.out = handed_on.max().unwrap_or(0).max(leg.end);
    leg
}
