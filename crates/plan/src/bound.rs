//! A lower bound of the step time, cheap enough for thousands of plans.
//!
//! # Why it is a lower bound
//! Take the first rank of a stage. Its kernels run one after the other, none faster than on an idle
//! GPU, and within a pass each waits for the communication before it, which is no faster than on
//! idle links. So the stage takes no less than all its passes ([`PieceTimes`]) one after the other.
//! Before the first of them a micro-batch came through all stages before this one, and after the
//! last backward pass its gradient goes back through them. Nor does it take less than all that
//! queues on one stream of communication. What else a step holds, such as the optimizer and waiting
//! for slower ranks, only adds to it.
//!
//! Where two passes are woven into one, one of them computes while the other waits; of chains there
//! only kernels count.
//!
//! Links are those of the first rank's groups, which lie at the start of the hall: no group of the
//! same size lies closer together. With uneven experts all this holds for the rank with the highest
//! load, which has no less to compute and to send than the mean.

use crate::compile::{Chunk, Compiler, Kind, LayerKindKey};
use crate::placement::Placement;
use crate::price::Prices;
use crate::program::{Stream, TransferId, Work};
use crate::run::{Context, Run};
use crate::setup::Setup;
use rackflow_topology::ClusterMap;
use rackflow_units::SimDuration;
use rackflow_workload::{Recompute, Schedule};
use std::collections::BTreeMap;

/// Least time of one pass through a piece of the model, in picoseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct PassTimes {
    forward: u64,
    /// Both gradients, together or one after the other.
    backward: u64,
    /// Only what the stage before waits for.
    input_gradient: u64,
    /// Both ways, what queues on each stream of communication.
    queued: [u64; QUEUES.len()],
}

/// Streams whose communication is summed.
const QUEUES: [Stream; 3] = [Stream::Tensor, Stream::Expert, Stream::Data];

impl PassTimes {
    fn times(self, count: u64) -> Self {
        Self {
            forward: self.forward * count,
            backward: self.backward * count,
            input_gradient: self.input_gradient * count,
            queued: self.queued.map(|time| time * count),
        }
    }
}

impl std::ops::AddAssign for PassTimes {
    fn add_assign(&mut self, other: Self) {
        self.forward += other.forward;
        self.backward += other.backward;
        self.input_gradient += other.input_gradient;
        for (mine, theirs) in self.queued.iter_mut().zip(other.queued) {
            *mine += theirs;
        }
    }
}

/// Least times of passes through each piece of a model. They hold for all plans that divide a layer
/// alike: equal tensor, context and expert parallelism, micro-batch, recomputation and formats.
pub(crate) struct PieceTimes {
    layers: BTreeMap<LayerKindKey, PassTimes>,
    embedding: PassTimes,
    head: PassTimes,
}

impl PieceTimes {
    /// Measures the pieces on the first rank of `setup`.
    pub fn new(setup: &Setup, map: &ClusterMap) -> Self {
        let mut setup = setup.clone();
        if let Recompute::FullLayers(_) = setup.training.recompute {
            // Some layers are computed again and some are not; none is less.
            setup.training.recompute = Recompute::None;
        }
        let placement = Placement::new(&setup.training.parallelism, setup.rank_order);
        let prices = Prices::of_first_rank(&setup, map, &placement);
        let mut ctx = Context::new(&setup, &prices);
        let mut compiler = Compiler::new(&setup, &placement);
        let mut times = |layers: Vec<(LayerKindKey, u64)>, first: bool, last: bool| {
            let chunk = Chunk {
                layers,
                first,
                last,
            };
            pass_times(&mut compiler, &mut ctx, &chunk)
        };
        let model = &setup.training.model;
        let mut layers = BTreeMap::new();
        for index in 0..model.layers {
            let key = LayerKindKey::from(model.layer_kind(index));
            layers
                .entry(key)
                .or_insert_with(|| times(vec![(key, 1)], false, false));
        }
        let embedding = times(Vec::new(), true, false);
        let head = times(Vec::new(), false, true);
        Self {
            layers,
            embedding,
            head,
        }
    }

    fn of(&self, chunk: &Chunk) -> PassTimes {
        let mut sum = PassTimes::default();
        for (key, count) in &chunk.layers {
            sum += self.layers[key].times(*count);
        }
        if chunk.first {
            sum += self.embedding;
        }
        if chunk.last {
            sum += self.head;
        }
        sum
    }
}

fn pass_times(compiler: &mut Compiler<'_>, ctx: &mut Context<'_>, chunk: &Chunk) -> PassTimes {
    let training = &ctx.setup.training;
    let split = matches!(
        training.schedule,
        Schedule::ZeroBubbleH1 | Schedule::ZeroBubbleH2
    );
    let alone = !woven(ctx.setup);
    let mut queued = [0; QUEUES.len()];
    let mut time = |kind, counts: bool| {
        let run = compiler.run(ctx, chunk, kind);
        for (sum, stream) in queued.iter_mut().zip(QUEUES) {
            *sum += if counts {
                on_stream(ctx, &run, stream)
            } else {
                0
            };
        }
        longest_chain(ctx, &run, alone)
    };
    let forward = time(Kind::Forward, true);
    let input_gradient = time(Kind::InputGradient, split);
    let backward = if split {
        input_gradient + time(Kind::WeightGradient, true)
    } else {
        time(Kind::Backward, true)
    };
    PassTimes {
        forward,
        backward,
        input_gradient: input_gradient.min(backward),
        queued,
    }
}

/// Least time of one communication, on idle links.
fn least(ctx: &Context<'_>, id: TransferId) -> u64 {
    let demands = ctx.demands[id.0 as usize].iter();
    demands
        .map(|demand| demand.duration().as_picos())
        .min()
        .unwrap_or(0)
}

/// Time of all communication of a run on one stream.
fn on_stream(ctx: &Context<'_>, run: &Run, stream: Stream) -> u64 {
    let queue = run.nodes.iter().filter(|node| node.stream == stream);
    queue
        .map(|node| match node.work {
            Work::Collective(_, id) => least(ctx, id),
            _ => 0,
        })
        .sum()
}

/// Whether two passes are woven into one, so that each computes while the other communicates.
fn woven(setup: &Setup) -> bool {
    let training = &setup.training;
    training.schedule == Schedule::Dualpipe
        || (training.stack.overlap.expert && training.parallelism.expert > 1)
}

/// From the start of the first kernel of a run to the end of its last: kernels one after the
/// other, and what they wait for in between where `communication` counts.
fn longest_chain(ctx: &Context<'_>, run: &Run, communication: bool) -> u64 {
    let mut ends: Vec<Option<u64>> = Vec::with_capacity(run.nodes.len());
    let mut computed: Option<u64> = None;
    for node in &run.nodes {
        let waited = node.deps.iter().filter_map(|dep| ends[*dep as usize]).max();
        ends.push(match node.work {
            Work::Compute(id) => {
                let start = if communication {
                    computed.max(waited).unwrap_or(0)
                } else {
                    computed.unwrap_or(0)
                };
                let end = start + ctx.segments[id.0 as usize].time[0].as_picos();
                computed = Some(end);
                computed
            }
            // What begins before the first kernel may have been there since long ago.
            Work::Collective(_, id) if node.stream != Stream::Data => {
                waited.map(|start| start + least(ctx, id))
            }
            _ => None,
        });
    }
    computed.unwrap_or(0)
}

/// A time that no simulation of `compiler`'s setup is under.
pub(crate) fn step_time(compiler: &Compiler<'_>, setup: &Setup, times: &PieceTimes) -> SimDuration {
    let training = &setup.training;
    let stages = training.parallelism.pipeline;
    let micro_batches = training.micro_batches();
    let of_stages: Vec<Vec<PassTimes>> = (0..stages)
        .map(|stage| {
            compiler
                .stage_chunks(stage)
                .iter()
                .map(|chunk| times.of(chunk))
                .collect()
        })
        .collect();
    let bidirectional = training.schedule == Schedule::Dualpipe;
    let returns_last = matches!(
        training.schedule,
        Schedule::Gpipe | Schedule::OneForwardOneBackward
    );
    let firsts: Vec<PassTimes> = of_stages
        .iter()
        .map(|chunks| chunks.first().copied().unwrap_or_default())
        .collect();
    let forward = |stages: &[PassTimes]| stages.iter().map(|first| first.forward).sum::<u64>();
    let mut longest = 0;
    for (stage, chunks) in of_stages.iter().enumerate() {
        let mut all = PassTimes::default();
        for chunk in chunks {
            all += chunk.times(micro_batches);
        }
        let (earlier, later) = (&firsts[..stage], &firsts[stage + 1..]);
        let around = if bidirectional {
            // The first micro-batch comes from the nearer end.
            forward(earlier).min(forward(later))
        } else if returns_last {
            forward(earlier)
                + earlier
                    .iter()
                    .map(|first| first.input_gradient)
                    .sum::<u64>()
        } else {
            forward(earlier)
        };
        let queued = all.queued.into_iter().max().unwrap_or(0);
        let passes = (all.forward + all.backward).max(queued);
        // Each direction of a bidirectional schedule takes half of the micro-batches.
        let passes = if bidirectional { passes / 2 } else { passes };
        longest = longest.max(passes + around);
    }
    SimDuration::from_picos(longest)
}
