//! How layers are dealt out to the chunks of a pipeline.
//!
//! Where all chunks take alike, as evenly as possible. Where stages lie on different kinds of
//! accelerators, or the first one also encodes images, by time: what a layer takes on the slowest
//! accelerator of each stage, with the collectives inside it, and what the first and the last chunk
//! do besides. A stage that would not fit into its memory gives layers to the others.

use crate::bound::PieceTimes;
use crate::compile::{Chunk, ChunkLayout, Compiler, Hall, LayerKindKey};
use crate::memory::Held;
use crate::placement::Placement;
use crate::price::{Prices, Spans};
use crate::run::KnownKernels;
use crate::schedule::{self, InFlight, Shape};
use crate::search::MEAN_LOAD;
use crate::setup::Setup;
use rackflow_topology::ClusterMap;
use rackflow_units::Bytes;
use rackflow_workload::{Schedule, Training, Zero};
use std::sync::Arc;

/// Whether layers are dealt out by time where nobody says how many each chunk has.
pub(crate) fn is_by_time(setup: &Setup) -> bool {
    setup.cluster.is_mixed() || setup.training.vision().is_some()
}

/// The chunks of a setup in pipeline order.
pub(crate) fn chunks(setup: &Setup, placement: &Placement) -> Vec<Chunk> {
    let training = &setup.training;
    let count = count(training);
    let counts = training.layers_per_chunk.clone().unwrap_or_else(|| {
        if count == 1 || !is_by_time(setup) {
            return spread_layers(training.model.layers, u64::from(count));
        }
        let Ok(map) = ClusterMap::new(&setup.cluster) else {
            // Whoever compiles it hears why.
            return spread_layers(training.model.layers, u64::from(count));
        };
        let speeds = Speeds::of(setup, placement, &map);
        within_memory(setup, placement, &speeds)
    });
    dealt(training, &counts)
}

/// Chunks of a training, in pipeline order.
fn count(training: &Training) -> u32 {
    let plan = &training.parallelism;
    if training.schedule == Schedule::Dualpipe {
        plan.pipeline
    } else {
        plan.pipeline * plan.virtual_pipeline
    }
}

/// Chunks of so many layers each.
fn dealt(training: &Training, counts: &[u64]) -> Vec<Chunk> {
    let mut next = 0;
    let last = counts.len() - 1;
    let chunk = |(i, n): (usize, &u64)| {
        let mut layers: Vec<(LayerKindKey, u64)> = Vec::new();
        for index in next..next + n {
            let key = training.model.layer_kind(index).into();
            match layers.last_mut() {
                Some((known, count)) if *known == key => *count += 1,
                _ => layers.push((key, 1)),
            }
        }
        next += n;
        Chunk {
            layers,
            first: i == 0,
            last: i == last,
        }
    };
    counts.iter().enumerate().map(chunk).collect()
}

/// How fast stages are.
#[derive(Debug)]
pub(crate) struct Speeds {
    /// Layers per picosecond on the slowest accelerator of each stage.
    pub of_stages: Vec<f64>,
    /// What the first and the last chunk do besides their layers, in layers of their own stage.
    pub ends: [f64; 2],
    /// All stages are equally fast, and the first one has no images: the ends hardly count.
    pub alike: bool,
}

impl Speeds {
    /// Those of a setup on its own cluster.
    fn of(setup: &Setup, placement: &Placement, map: &ClusterMap) -> Self {
        let kinds = setup.cluster.kinds();
        let kernels: Vec<Arc<KnownKernels>> = kinds.iter().map(|_| Arc::default()).collect();
        let kind_of_rank = setup.cluster.kind_of_gpus();
        let all = setup.training.parallelism.zero == Zero::Stage3;
        let mut known: Vec<(u32, Arc<Spans>, Arc<PieceTimes>)> = Vec::new();
        let mut times = |kind: u32, rank: u32| {
            let spans = Arc::new(Spans::of_rank(map, placement, rank, all));
            let same =
                |(of, known, _): &&(u32, Arc<Spans>, _)| *of == kind && known.cost_alike(&spans);
            if let Some((.., times)) = known.iter().find(same) {
                return times.clone();
            }
            let mut alike = setup.clone();
            alike.cluster.node = kinds[kind as usize].node.clone();
            let memory = alike.cluster.node.accelerator.memory_bandwidth.as_f64();
            let prices = Prices::new(setup, map, spans.clone(), false).with_memory(memory);
            let kernels = &kernels[kind as usize];
            let times = Arc::new(PieceTimes::new(&alike, &prices, MEAN_LOAD, kernels));
            known.push((kind, spans, times.clone()));
            times
        };
        let mut of_stages: Vec<Vec<(u32, Arc<PieceTimes>)>> =
            vec![Vec::new(); setup.training.parallelism.pipeline as usize];
        for rank in 0..placement.ranks() {
            let kind = kind_of_rank.get(rank as usize).copied().unwrap_or(0);
            let stage = &mut of_stages[placement.coordinates(rank).stage as usize];
            if !stage.iter().any(|(of, _)| *of == kind) {
                stage.push((kind, times(kind, rank)));
            }
        }
        let seats = of_stages
            .iter()
            .map(|stage| stage.iter().map(|(_, times)| times.as_ref()));
        Self::of_seats(setup, seats)
    }

    /// From what the ranks of each stage take that differ.
    pub fn of_seats<'t>(
        setup: &Setup,
        stages: impl Iterator<Item = impl Iterator<Item = &'t PieceTimes>>,
    ) -> Self {
        let model = &setup.training.model;
        // The slowest of each stage: of a layer, before and behind all layers.
        let slowest: Vec<[f64; 3]> = stages
            .map(|stage| {
                stage.fold([1.0, 0.0, 0.0], |slowest, times| {
                    let [first, last] = times.of_ends();
                    let of = [times.of_layer(model), first, last];
                    std::array::from_fn(|i| f64::max(slowest[i], of[i]))
                })
            })
            .collect();
        let ends = [
            slowest
                .first()
                .map_or(0.0, |[layer, first, _]| first / layer),
            slowest.last().map_or(0.0, |[layer, _, last]| last / layer),
        ];
        let all_alike = slowest.windows(2).all(|pair| pair[0][0] == pair[1][0]);
        Self {
            of_stages: slowest.iter().map(|[layer, ..]| 1.0 / layer).collect(),
            ends,
            alike: all_alike && setup.training.vision().is_none(),
        }
    }

    /// The same by chunk, in pipeline order.
    pub fn of_chunks(&self, training: &Training) -> Vec<f64> {
        let stages = self.of_stages.len();
        let of_chunk = |chunk: usize| match training.schedule {
            // Each chunk runs on two stages, from either end.
            Schedule::Dualpipe => self.of_stages[chunk].min(self.of_stages[stages - 1 - chunk]),
            _ => self.of_stages[chunk % stages],
        };
        (0..count(training) as usize).map(of_chunk).collect()
    }
}

/// Layers per chunk by speed, but that no stage holds more than its accelerators can while others can
/// hold it. Where no split fits, as if memory had no end.
pub(crate) fn within_memory(setup: &Setup, placement: &Placement, speeds: &Speeds) -> Vec<u64> {
    let layers = setup.training.model.layers;
    let of_chunks = speeds.of_chunks(&setup.training);
    let mut most = vec![layers; of_chunks.len()];
    let fastest = if speeds.alike {
        spread_layers(layers, of_chunks.len() as u64)
    } else {
        spread_layers_by_speed(layers, &of_chunks, speeds.ends, &most)
    };
    if layers <= of_chunks.len() as u64 {
        return fastest;
    }
    let stages = StageRooms::new(setup, placement);
    let mut counts = fastest.clone();
    while let Some((chunks, room)) = stages.overfull(setup, placement, &counts) {
        // So many layers fit into this stage, dealt out over its chunks.
        let (each, more) = (room / chunks.len() as u64, room % chunks.len() as u64);
        for (i, chunk) in (0..).zip(chunks) {
            most[chunk] = most[chunk].min(each + u64::from(i < more));
        }
        if most.iter().sum::<u64>() < layers {
            return fastest;
        }
        counts = spread_layers_by_speed(layers, &of_chunks, speeds.ends, &most);
    }
    counts
}

/// What stages can hold, and what they have in flight.
struct StageRooms {
    capacity: Vec<Bytes>,
    in_flight: Vec<InFlight>,
}

impl StageRooms {
    fn new(setup: &Setup, placement: &Placement) -> Self {
        let training = &setup.training;
        let plan = &training.parallelism;
        let nowhere = Arc::new(ChunkLayout::of(Vec::new()));
        let compiler = Compiler::with_layout(setup, placement, nowhere);
        // A pipeline that is full stays as full as it is.
        let rounds = if plan.virtual_pipeline > 1 { 2 } else { 4 };
        let shape = Shape {
            micro_batches: (training.micro_batches() as u32).min(rounds * plan.pipeline),
            ..compiler.shape()
        };
        let chunks = compiler.chunks_per_stage() as usize;
        let hall = Hall::new(setup, placement);
        let orders = schedule::orders(training.schedule, shape);
        Self {
            capacity: (0..plan.pipeline)
                .map(|stage| hall.capacity(stage))
                .collect(),
            in_flight: orders
                .iter()
                .map(|order| InFlight::of(order, chunks, setup.training.schedule))
                .collect(),
        }
    }

    /// The chunks of a stage that holds more than it can, and how many layers it has room for: fewer than
    /// it has.
    fn overfull(
        &self,
        setup: &Setup,
        placement: &Placement,
        counts: &[u64],
    ) -> Option<(Vec<usize>, u64)> {
        let layout = Arc::new(ChunkLayout::of(dealt(&setup.training, counts)));
        let compiler = Compiler::with_layout(setup, placement, layout);
        let rooms = self.capacity.iter().zip(&self.in_flight);
        (0..).zip(rooms).find_map(|(stage, (capacity, in_flight))| {
            let chunks = compiler.stage_chunks(stage);
            let of = |chunks: &[Chunk]| {
                let held = Held::of(&compiler.sizes, chunks, in_flight);
                held.memory(&compiler.sizes, placement).total()
            };
            let held = of(&chunks);
            let excess = held.saturating_sub(*capacity);
            let layers: u64 = chunks.iter().map(Chunk::len).sum();
            if excess == Bytes::ZERO || layers == 0 {
                return None;
            }
            let empty: Vec<Chunk> = chunks
                .iter()
                .map(|chunk| Chunk {
                    layers: Vec::new(),
                    ..chunk.clone()
                })
                .collect();
            let of_layers = held.saturating_sub(of(&empty)).get();
            let over = u128::from(excess.get()) * u128::from(layers);
            let over = over.div_ceil(u128::from(of_layers.max(1)));
            let positions = (0..chunks.len() as u32).map(|chunk| compiler.position(stage, chunk));
            let positions = positions.map(|position| position as usize).collect();
            Some((positions, layers.saturating_sub(over.max(1) as u64)))
        })
    }
}

/// Layers per chunk so that none takes much longer than another on accelerators of these speeds, the
/// first and the last with `ends` layers' worth of work besides, and none with more than `most`. None is
/// without a layer where there are enough, but for the first where its other work is enough.
pub(crate) fn spread_layers_by_speed(
    layers: u64,
    speeds: &[f64],
    ends: [f64; 2],
    most: &[u64],
) -> Vec<u64> {
    let count = speeds.len() as u64;
    if layers <= count {
        return spread_layers(layers, count);
    }
    let last = speeds.len() - 1;
    let besides = |i: usize| {
        let of = |end: usize, work: f64| if i == end { work } else { 0.0 };
        of(0, ends[0]) + of(last, ends[1])
    };
    let mut counts: Vec<u64> = most.iter().map(|most| 1.min(*most)).collect();
    if ends[0] > layers as f64 / count as f64 {
        counts[0] = 0;
    }
    for _ in counts.iter().sum()..layers {
        // The next layer goes where it is done first.
        let done = |i: usize| ((counts[i] + 1) as f64 + besides(i)) / speeds[i];
        let next = (0..speeds.len())
            .filter(|i| counts[*i] < most[*i])
            .min_by(|a, b| done(*a).total_cmp(&done(*b)).then(a.cmp(b)))
            .unwrap_or(last);
        counts[next] += 1;
    }
    counts
}

/// Layers per chunk: as even as possible, with the shorter chunks at the ends, where the logits
/// and the embedding are.
pub(crate) fn spread_layers(layers: u64, chunks: u64) -> Vec<u64> {
    let full = layers.div_ceil(chunks);
    let mut counts = vec![full; chunks as usize];
    let missing = full * chunks - layers;
    for i in 0..missing as usize {
        // Last, first, last but one, second, ...
        let index = if i % 2 == 0 {
            chunks as usize - 1 - i / 2
        } else {
            i / 2
        };
        counts[index] -= 1;
    }
    counts
}

#[cfg(test)]
mod tests {
    use super::*;

    fn by_speed(layers: u64, speeds: &[f64], ends: [f64; 2]) -> Vec<u64> {
        spread_layers_by_speed(layers, speeds, ends, &vec![layers; speeds.len()])
    }

    #[test]
    fn layers_spread_by_speed() {
        assert_eq!(by_speed(8, &[1.0; 4], [0.0; 2]), [2, 2, 2, 2]);
        assert_eq!(by_speed(30, &[1.0, 2.0], [0.0, 0.0]), [10, 20]);
        assert_eq!(by_speed(30, &[1.0, 2.0], [0.0, 3.0]), [11, 19]);
        assert_eq!(by_speed(10, &[1.0, 100.0], [0.0; 2]), [1, 9]);
        assert_eq!(by_speed(3, &[1.0, 2.0, 9.0], [0.0; 2]), [1, 1, 1]);
        assert_eq!(by_speed(9, &[1.0; 3], [3.0, 0.0]), [1, 4, 4]);
        assert_eq!(by_speed(9, &[1.0; 3], [6.0, 0.0]), [0, 5, 4]);
    }

    #[test]
    fn a_chunk_that_is_full_leaves_layers_to_the_others() {
        let spread = |most: &[u64]| spread_layers_by_speed(30, &[1.0, 1.0, 2.0], [0.0; 2], most);
        assert_eq!(spread(&[30, 30, 30]), [8, 7, 15]);
        assert_eq!(spread(&[30, 30, 12]), [9, 9, 12]);
        assert_eq!(spread(&[0, 30, 12]), [0, 18, 12]);
    }

    #[test]
    fn layers_spread_evenly_with_the_short_chunks_at_the_ends() {
        assert_eq!(spread_layers(8, 4), [2, 2, 2, 2]);
        assert_eq!(spread_layers(61, 16).iter().sum::<u64>(), 61);
        assert_eq!(
            spread_layers(126, 16),
            [vec![7], vec![8; 14], vec![7]].concat()
        );
        assert_eq!(spread_layers(7, 4), [2, 2, 2, 1]);
    }
}
