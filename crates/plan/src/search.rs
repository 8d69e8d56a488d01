//! Other plans for the same work on the same cluster.
//!
//! [`Search`] lists every plan that divides the work without a remainder, in [`Branch`]es that
//! share the cost of a layer. [`Search::expand`] says of each plan of a branch whether it fits into
//! memory, and bounds its step time from below ([`crate::bound`]), so that a plan that cannot win
//! needs no simulation; [`Search::bound`] looks closer at one of them. What cannot be made or does
//! not fit is counted.

mod lines;

use crate::allocator::pressure::{KnownStalls, Stalls};
use crate::bound::{self, LineTimes, Messages, Passes};
use crate::compile::{self, Chunk, ChunkLayout, Compiler, Hall, Plan};
use crate::crossing::{self, Crowd, Source};
use crate::error::{self, MemoryPart, PlanError};
use crate::known::Known;
use crate::layer::Sizes;
use crate::memory::Held;
use crate::placement::Placement;
use crate::price::{self, Prices, Spans};
use crate::run::KnownKernels;
use crate::schedule::{self, InFlight, Shape};
use crate::setup::{RankOrder, Setup};
use crate::split;
use rackflow_network::{Links, send_recv};
use rackflow_topology::{ClusterMap, Node, Path, Wires};
use rackflow_units::{Bytes, SimDuration};
use rackflow_workload::{Activation, Attention, Parallelism, Recipe, Recompute, Schedule, Zero};
use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};

/// Most virtual stages that are tried.
const MOST_VIRTUAL: u32 = 12;
/// Most sequences in a micro-batch that are tried.
const MOST_MICRO_BATCH: u64 = 8;
/// Schedules that are tried. GPipe is left out: 1F1B takes the same time and less memory.
const SCHEDULES: [Schedule; 4] = [
    Schedule::OneForwardOneBackward,
    Schedule::ZeroBubbleH1,
    Schedule::ZeroBubbleH2,
    Schedule::Dualpipe,
];
/// The load of a rank whose experts have their mean share of the tokens; others are in proportion.
pub const MEAN_LOAD: u64 = 1 << 16;

/// How a plan may differ from the scenario's own.
#[derive(Debug, Clone, PartialEq)]
pub struct Space {
    /// Number formats that are tried.
    pub recipes: Vec<Recipe>,
    /// Recomputation that is tried.
    pub recomputes: Vec<Recompute>,
    /// Which ranks are neighbours, and so whether stages or data-parallel and expert-parallel ranks
    /// share a domain.
    pub rank_orders: Vec<RankOrder>,
}

impl Space {
    /// The scenario's number formats; no, selective, full and the scenario's own recomputation, and
    /// that of the cheap activations; both orders of ranks.
    pub fn of(setup: &Setup) -> Self {
        let own = &setup.training;
        let mut recomputes = vec![
            Recompute::None,
            Recompute::Activations(cheap_activations(setup)),
            Recompute::Full,
        ];
        if !recomputes.contains(&own.recompute) {
            recomputes.push(own.recompute.clone());
        }
        let other = match setup.rank_order {
            RankOrder::DataBeforePipeline => RankOrder::PipelineBeforeData,
            RankOrder::PipelineBeforeData => RankOrder::DataBeforePipeline,
        };
        Self {
            recipes: vec![own.recipe],
            recomputes,
            rank_orders: vec![setup.rank_order, other],
        }
    }
}

/// What is computed again for next to nothing: outputs of norms and activation functions, and keys
/// and values after their up-projection.
fn cheap_activations(setup: &Setup) -> Vec<Activation> {
    let model = &setup.training.model;
    let mut cheap = vec![Activation::Norms];
    if matches!(model.attention, Attention::Latent { .. }) {
        cheap.push(Activation::MlaUpProjection);
    }
    cheap.push(Activation::Swiglu);
    cheap
}

/// What divides a layer: all plans of a branch share the cost of one.
#[derive(Debug, Clone, PartialEq)]
pub struct Branch {
    parallelism: Parallelism,
    micro_batch: u64,
    recipe: Recipe,
    recompute: Recompute,
}

/// One plan that fits.
#[derive(Debug, Clone)]
pub struct Candidate {
    /// How the ranks divide the work.
    pub parallelism: Parallelism,
    /// Sequences per micro-batch.
    pub micro_batch: u64,
    /// Number formats.
    pub recipe: Recipe,
    /// What is computed twice.
    pub recompute: Recompute,
    /// Order of the passes.
    pub schedule: Schedule,
    /// Which ranks are neighbours.
    pub rank_order: RankOrder,
    /// Layers of each chunk, where a scenario must say so: where some are empty, and where the scenario's
    /// own plan has a list, which belongs to one number of stages.
    layers_per_chunk: Option<Vec<u64>>,
    /// No simulation of it takes less time.
    pub at_least: SimDuration,
    /// Memory of the fullest stage.
    pub memory: Bytes,
    /// What its passes take at least.
    times: Arc<Vec<LineTimes>>,
    /// How long its stages wait for the allocator, once somebody asked.
    stalls: OnceLock<Arc<Vec<Stalls>>>,
}

impl Candidate {
    /// The scenario with this plan in place of its own.
    pub fn setup(&self, of: &Setup) -> Setup {
        let mut setup = of.clone();
        self.write(&mut setup);
        setup
    }

    /// Whether two candidates divide the work alike over different neighbours: one plan in both orders of ranks.
    pub fn is_reordered(&self, other: &Self) -> bool {
        self.rank_order != other.rank_order
            && self.parallelism == other.parallelism
            && self.micro_batch == other.micro_batch
            && self.schedule == other.schedule
            && self.recipe == other.recipe
            && self.recompute == other.recompute
            && self.layers_per_chunk == other.layers_per_chunk
    }

    /// Whether two candidates are of the same branch and divide its ranks alike, however they are sharded,
    /// ordered and dealt out. Such candidates are listed one after the other.
    pub fn is_of_same_division(&self, other: &Self) -> bool {
        let zero = other.parallelism.zero;
        self.schedule == other.schedule
            && self.micro_batch == other.micro_batch
            && self.recipe == other.recipe
            && self.recompute == other.recompute
            && Parallelism {
                zero,
                ..self.parallelism.clone()
            } == other.parallelism
    }

    fn write(&self, setup: &mut Setup) {
        setup.rank_order = self.rank_order;
        let training = &mut setup.training;
        training.parallelism.clone_from(&self.parallelism);
        training.micro_batch = self.micro_batch;
        training.recipe = self.recipe;
        training.recompute.clone_from(&self.recompute);
        training.schedule = self.schedule;
        training.layers_per_chunk.clone_from(&self.layers_per_chunk);
    }
}

/// Why a plan cannot be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Obstacle {
    /// The batch does not divide into micro-batches over the data-parallel ranks.
    Batch,
    /// There are fewer layers than pipeline stages.
    Layers,
    /// The schedule's own conditions are not met.
    Schedule,
    /// Experts do not spread over the ranks of a stage.
    Experts,
}

/// How many plans are not among the candidates, and why.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LeftOut {
    /// Those that do not fit into memory, by what needs the most of it.
    pub too_large: BTreeMap<MemoryPart, u64>,
    /// Those that cannot be made.
    pub impossible: BTreeMap<Obstacle, u64>,
}

impl LeftOut {
    /// All that do not fit into memory.
    pub fn all_too_large(&self) -> u64 {
        self.too_large.values().sum()
    }

    /// Adds those of another branch.
    pub fn add(&mut self, other: &Self) {
        for (part, count) in &other.too_large {
            *self.too_large.entry(*part).or_default() += count;
        }
        for (obstacle, count) in &other.impossible {
            *self.impossible.entry(*obstacle).or_default() += count;
        }
    }
}

/// The plans of one branch.
#[derive(Debug, Clone, Default)]
pub struct Expansion {
    /// Those that fit, in a fixed order.
    pub candidates: Vec<Candidate>,
    /// The others.
    pub left_out: LeftOut,
}

/// How plans of a branch divide the ranks beyond a layer, but for ZeRO and the order of ranks.
struct Division {
    parallelism: Parallelism,
    schedule: Schedule,
}

/// A stage, and every other one that holds the same pieces and keeps no more of them.
#[derive(Debug)]
struct StageClass {
    chunks: Vec<Chunk>,
    in_flight: InFlight,
    /// Least memory of any of its accelerators.
    capacity: Bytes,
}

/// All plans for one scenario.
pub struct Search {
    setup: Setup,
    map: ClusterMap,
    links: Links,
    /// Those among the first GPUs.
    first_links: Links,
    /// The same with what tiers cost, where a plan may or may not have its flows run over them.
    dearer_links: Option<Links>,
    space: Space,
    /// Load of the rank with the fullest experts and its position, by number of expert-parallel ranks.
    loads: BTreeMap<u32, (u64, Option<u32>)>,
    /// A setup for each kind of accelerator, where there are several.
    kinds: Vec<Node>,
    kind_of_gpus: Vec<u32>,
    /// What the links of sections cost, where there are several kinds.
    links_of: Known<Vec<u32>, Links>,
    /// Distinct paths between ranks so far apart in number, and the sections that they meet, as they are
    /// asked for; so are all below.
    paths: Known<u32, Vec<(Path, Vec<u32>)>>,
    /// Communicators of plans that divide the ranks alike.
    spans: Known<SpansKey, Spans>,
    /// Those of a rank; all of them, or only those inside a layer.
    rank_spans: Known<(SpansKey, u32, bool), Spans>,
    /// Layers dealt out to so many chunks.
    layouts: Known<u64, ChunkLayout>,
    /// Stages by schedule, stages, virtual stages, micro-batches, and whether passes are woven.
    stages: Known<(u8, u32, u32, u32, bool), Vec<StageClass>>,
    /// Who is on the links above the leaves.
    crowds: Known<(SpansKey, Source), Crowd>,
    /// Whether all of these sources together could ask too much of one.
    blocks: Known<(SpansKey, Vec<Source>), bool>,
    /// Those links.
    wires: OnceLock<Option<Wires>>,
    /// Stages that were played through the allocator.
    known_stalls: KnownStalls,
}

/// What tells the communicators of two plans apart.
type SpansKey = ([u32; 7], bool);

impl Search {
    /// A search around `setup`, which must have a plan itself.
    ///
    /// # Errors
    /// Those of [`crate::compile`].
    pub fn new(setup: &Setup, space: Space) -> Result<Self, PlanError> {
        error::check(setup)?;
        let map = ClusterMap::new(&setup.cluster)?;
        // Flows that run over the links of the tiers may be faster than their average.
        let on_fabric = crossing::may_block(setup.host(), &setup.faults, &map);
        let kinds = setup.cluster.kinds().into_iter().map(|kind| kind.node);
        Ok(Self {
            setup: setup.clone(),
            links: price::links(setup, &map, on_fabric),
            first_links: price::first_links(setup, &map, on_fabric),
            dearer_links: on_fabric.then(|| price::first_links(setup, &map, false)),
            map,
            space,
            loads: BTreeMap::new(),
            kinds: kinds.collect(),
            kind_of_gpus: setup.cluster.kind_of_gpus(),
            links_of: Known::default(),
            paths: Known::default(),
            spans: Known::default(),
            rank_spans: Known::default(),
            layouts: Known::default(),
            stages: Known::default(),
            crowds: Known::default(),
            blocks: Known::default(),
            wires: OnceLock::new(),
            known_stalls: KnownStalls::default(),
        })
    }

    /// Bounds plans by the rank with the fullest experts: `load` says, for so many expert-parallel
    /// ranks, what that one gets, where the mean is [`MEAN_LOAD`], and its position among them; `None`
    /// where all are alike, as they are without this.
    #[must_use]
    pub fn with_loads(mut self, load: impl Fn(u32) -> (u64, Option<u32>)) -> Self {
        let moe = self.setup.training.model.moe.as_ref();
        let ways = moe.map_or_else(Vec::new, |moe| divisors(moe.experts as u32));
        self.loads = ways.into_iter().map(|ways| (ways, load(ways))).collect();
        self
    }

    /// Everything that can divide a layer, in a fixed order.
    pub fn branches(&self) -> Vec<Branch> {
        let training = &self.setup.training;
        let mut branches = Vec::new();
        for (tensor, sequence_parallel) in self.tensors() {
            for context in self.contexts(tensor) {
                for (expert, expert_tensor) in self.experts(tensor, context) {
                    let parallelism = Parallelism {
                        tensor,
                        sequence_parallel,
                        context,
                        pipeline: 1,
                        virtual_pipeline: 1,
                        data: 1,
                        expert,
                        expert_tensor,
                        zero: Zero::Stage1,
                        zero_group: None,
                    };
                    for micro_batch in powers_to(MOST_MICRO_BATCH.max(training.micro_batch)) {
                        for recipe in &self.space.recipes {
                            branches.extend(self.space.recomputes.iter().map(|recompute| Branch {
                                parallelism: parallelism.clone(),
                                micro_batch,
                                recipe: *recipe,
                                recompute: recompute.clone(),
                            }));
                        }
                    }
                }
            }
        }
        branches
    }

    /// The plans of one branch, each held against memory and bounded.
    pub fn expand(&self, branch: &Branch) -> Expansion {
        let mut expansion = Expansion::default();
        let mut branch = Open {
            search: self,
            branch,
            setup: self.setup.clone(),
            kernels: self.kinds.iter().map(|_| Arc::default()).collect(),
            times: Vec::new(),
            by_spans: Vec::new(),
            load: self.load(branch.parallelism.expert),
        };
        for division in self.divisions(branch.branch, &mut expansion.left_out) {
            branch.expand(&division, &mut expansion);
        }
        expansion
    }

    /// A closer bound of one candidate, never under its [`Candidate::at_least`]. The allocator is not played.
    pub fn bound(&self, candidate: &Candidate) -> SimDuration {
        let passes = self.passes_with(candidate, &Arc::default());
        passes.step_time(&[]).max(candidate.at_least)
    }

    /// Whether a candidate comes so close to the limit of memory that it may wait for the allocator.
    /// Where it does not, [`Self::bound_played`] is [`Self::bound`].
    pub fn may_stall(&self, candidate: &Candidate) -> bool {
        let least = self.setup.cluster.least_memory();
        Stalls::may_be(&self.setup.training.stack, candidate.memory, least)
    }

    /// Whether what the allocator holds beyond the tensors of a candidate leaves no place for all of them
    /// ([`Pressure::lacks_place`](crate::Pressure::lacks_place)), though the tensors alone fit. The allocator is played for it.
    pub fn lacks_place(&self, candidate: &Candidate) -> bool {
        let stalls = self.stalls(candidate);
        stalls.iter().any(|stage| stage.pressure.lacks_place())
    }

    /// The closest bound, never under [`Self::bound`]: with what the passes wait for the allocator, which is
    /// played for it.
    pub fn bound_played(&self, candidate: &Candidate) -> SimDuration {
        let passes = self.passes(candidate);
        passes.step_time(&[]).max(candidate.at_least)
    }

    /// Every pass of every stage of one candidate in its order and with what it waits for the allocator, for
    /// closer bounds.
    pub fn passes(&self, candidate: &Candidate) -> Passes {
        self.passes_with(candidate, &self.stalls(candidate))
    }

    /// How long the stages of a candidate wait for the allocator.
    fn stalls(&self, candidate: &Candidate) -> Arc<Vec<Stalls>> {
        let find = || {
            if !self.may_stall(candidate) {
                let stages = candidate.parallelism.pipeline as usize;
                return Arc::new(vec![Stalls::default(); stages]);
            }
            let setup = candidate.setup(&self.setup);
            let placement = Placement::new(&candidate.parallelism, candidate.rank_order);
            let layout = self.layout(&setup, &placement);
            let compiler = Compiler::with_layout(&setup, &placement, layout);
            Arc::new(compiler.stalls(&placement, &self.known_stalls))
        };
        candidate.stalls.get_or_init(find).clone()
    }

    fn passes_with(&self, candidate: &Candidate, stalls: &Arc<Vec<Stalls>>) -> Passes {
        let setup = candidate.setup(&self.setup);
        let placement = Placement::new(&candidate.parallelism, candidate.rank_order);
        let layout = self.layout(&setup, &placement);
        let compiler = Compiler::with_layout(&setup, &placement, layout);
        let messages = self.messages(&compiler, &candidate.parallelism, candidate.rank_order);
        let least = self.prices(&setup, &placement, 0, false);
        let links = self.dearer_links.as_ref();
        let dearer = links.map(|links| Prices::over(links, least.spans.clone(), &setup));
        let load = self.load(candidate.parallelism.expert);
        let lines = self.seated_lines(&setup, &placement, &candidate.times);
        let prices = (&least, dearer.as_ref());
        Passes::new(&compiler, &setup, &lines, stalls, messages, prices, load)
    }

    /// Compiles a candidate: what [`crate::compile`] makes of it, and cheaper where another plan
    /// divides the ranks alike.
    ///
    /// # Errors
    /// Those of [`crate::compile`].
    pub fn plan(&self, candidate: &Candidate) -> Result<Plan, PlanError> {
        let setup = candidate.setup(&self.setup);
        if setup.seats.is_some() {
            return compile::compile(&setup);
        }
        error::check(&setup)?;
        let placement = Placement::new(&candidate.parallelism, candidate.rank_order);
        let key = spans_key(&setup, &placement);
        let spans = self
            .spans
            .get(key, || Spans::new(&setup, &self.map, &placement));
        let stalls = self.stalls(candidate);
        compile::compile_over(&setup, &self.map, &spans, &stalls, |plan| {
            let wires = || crossing::wires(&self.setup);
            let wires = self.wires.get_or_init(wires).as_ref();
            crossing::blocks_by(
                plan,
                &self.map,
                wires,
                |source, find| self.crowds.get((key, source), find),
                |sources, find| *self.blocks.get((key, sources), find),
            )
        })
    }

    fn load(&self, expert: u32) -> u64 {
        let known = self.loads.get(&expert);
        known.map_or(MEAN_LOAD, |(load, _)| *load)
    }

    /// Layers dealt out to the chunks of a plan.
    fn layout(&self, setup: &Setup, placement: &Placement) -> Arc<ChunkLayout> {
        let plan = &setup.training.parallelism;
        if split::is_by_time(setup) {
            // Who gets how many depends on where the stages lie, and on what each takes.
            return Arc::new(ChunkLayout::new(setup, placement));
        }
        let chunks = u64::from(plan.pipeline) * u64::from(plan.virtual_pipeline);
        self.layouts
            .get(chunks, || ChunkLayout::new(setup, placement))
    }

    /// The stages of a plan, those left out that are no fuller than another. No schedule starts more
    /// than two rounds of micro-batches before the first comes back, and once a pipeline is full it
    /// stays as full as it is: four rounds stand for all, and two where each takes several chunks. Of
    /// stages that hold the same pieces the first has the most in flight, but for DualPipe, where
    /// micro-batches enter from both ends.
    fn stage_classes(&self, compiler: &Compiler<'_>, setup: &Setup) -> Arc<Vec<StageClass>> {
        let training = &setup.training;
        let plan = &training.parallelism;
        let rounds = if plan.virtual_pipeline > 1 { 2 } else { 4 };
        let micro_batches = (training.micro_batches() as u32).min(rounds * plan.pipeline);
        let shape = Shape {
            micro_batches,
            ..compiler.shape()
        };
        let find = || {
            let mixed = setup.cluster.is_mixed();
            let placement = || Placement::new(plan, setup.rank_order);
            let hall = mixed.then(|| Hall::new(setup, &placement()));
            let mut known: Vec<(Vec<u32>, u32)> = Vec::new();
            let mut classes: Vec<StageClass> = Vec::new();
            let orders = schedule::orders(training.schedule, shape);
            for (stage, order) in (0..plan.pipeline).zip(orders) {
                let alike = compiler.alike(stage);
                let capacity = match &hall {
                    Some(hall) => hall.capacity(stage),
                    None => setup.cluster.node.accelerator.capacity(),
                };
                // Of several kinds, a stage of less memory may be less full.
                let differs = training.schedule == Schedule::Dualpipe || mixed;
                let known_one = known.iter().any(|(of, _)| *of == alike);
                if known_one && !differs {
                    continue;
                }
                let chunks = compiler.stage_chunks(stage);
                let in_flight = InFlight::of(&order, chunks.len(), training.schedule);
                let same = |(of, at): &(Vec<u32>, u32)| {
                    let class = &classes[*at as usize];
                    *of == alike && class.in_flight == in_flight && class.capacity == capacity
                };
                if !known.iter().any(same) {
                    known.push((alike, classes.len() as u32));
                    classes.push(StageClass {
                        chunks,
                        in_flight,
                        capacity,
                    });
                }
            }
            classes
        };
        if split::is_by_time(setup) {
            return Arc::new(find());
        }
        let key = (
            training.schedule as u8,
            plan.pipeline,
            plan.virtual_pipeline,
            micro_batches,
            shape.overlap_passes,
        );
        self.stages.get(key, find)
    }

    /// Messages between the stages of a plan on the shortest paths there are.
    fn messages(
        &self,
        compiler: &Compiler<'_>,
        plan: &Parallelism,
        rank_order: RankOrder,
    ) -> Messages {
        let inner = plan.tensor * plan.context;
        let apart = match rank_order {
            RankOrder::DataBeforePipeline => inner * plan.data,
            RankOrder::PipelineBeforeData => inner,
        };
        let shortest = |apart: u32| {
            let paths = self.paths.get(apart, || self.paths_between(apart));
            let spans = paths.iter().map(|(path, sections)| {
                let over = |links| send_recv(compiler.message(), path, links).duration();
                match self.map.sections().len() {
                    1 => over(&self.links),
                    _ => over(&self.links_of(sections)),
                }
            });
            spans.min().unwrap_or(SimDuration::ZERO)
        };
        if plan.pipeline == 1 {
            return Messages {
                next: SimDuration::ZERO,
                around: SimDuration::ZERO,
            };
        }
        Messages {
            next: shortest(apart),
            around: if plan.virtual_pipeline > 1 {
                shortest(apart * (plan.pipeline - 1))
            } else {
                SimDuration::ZERO
            },
        }
    }

    /// Distinct paths between GPUs that are so far apart in number.
    fn paths_between(&self, apart: u32) -> Vec<(Path, Vec<u32>)> {
        let mut paths: Vec<(Path, Vec<u32>)> = Vec::new();
        for gpu in 0..self.setup.cluster.gpus.saturating_sub(apart) {
            let path = self.map.path(gpu, gpu + apart);
            let sections = price::sections(&self.map, &[gpu, gpu + apart]);
            let known = |(of, among): &(Path, Vec<u32>)| *of == path && *among == sections;
            if !paths.iter().any(known) {
                paths.push((path, sections));
            }
        }
        paths
    }

    fn tensors(&self) -> Vec<(u32, bool)> {
        let cluster = &self.setup.cluster;
        // Of several kinds the domain that divides all, so that no group straddles two.
        let domain = cluster.parts.iter().fold(
            cluster.node.scale_up.domain.min(cluster.gpus),
            |domain, part| common_divisor(domain, part.node.scale_up.domain.min(part.gpus)),
        );
        let model = &self.setup.training.model;
        let (Attention::Grouped { heads, .. } | Attention::Latent { heads, .. }) = model.attention;
        let vision = self.setup.training.vision();
        let cuts = |tensor: &u32| {
            let tensor = u64::from(*tensor);
            vision.is_none_or(|(vision, _)| {
                vision.heads.is_multiple_of(tensor) && vision.ffn.is_multiple_of(tensor)
            }) && heads.is_multiple_of(tensor)
                && model.ffn.is_multiple_of(tensor)
                && self.setup.training.sequence_length.is_multiple_of(tensor)
        };
        let mut tensors = Vec::new();
        for tensor in divisors(domain).into_iter().filter(cuts) {
            tensors.push((tensor, tensor > 1));
            // Experts need the sequence sharded.
            if tensor > 1 && model.moe.is_none() {
                tensors.push((tensor, false));
            }
        }
        tensors
    }

    fn contexts(&self, tensor: u32) -> Vec<u32> {
        let length = self.setup.training.sequence_length;
        let most = self.setup.cluster.gpus / tensor;
        // Below two thousand tokens a rank, context parallelism moves more than it computes.
        powers_to(length / 2048)
            .map(|context| context as u32)
            .filter(|context| {
                *context <= most && length.is_multiple_of(u64::from(context * tensor))
            })
            .collect()
    }

    fn experts(&self, tensor: u32, context: u32) -> Vec<(u32, u32)> {
        let Some(moe) = &self.setup.training.model.moe else {
            return vec![(1, 1)];
        };
        let most = self.setup.cluster.gpus / (tensor * context) * tensor * context;
        let within = |expert: &u32| *expert <= most;
        let ways = divisors(moe.experts as u32).into_iter().filter(within);
        let mut pairs: Vec<(u32, u32)> = ways.clone().map(|expert| (expert, 1)).collect();
        if tensor > 1 && moe.expert_ffn.is_multiple_of(u64::from(tensor)) {
            pairs.extend(ways.map(|expert| (expert, tensor)));
        }
        pairs
    }

    /// The pipeline, data parallelism and schedule that a branch leaves open.
    fn divisions(&self, branch: &Branch, left_out: &mut LeftOut) -> Vec<Division> {
        let training = &self.setup.training;
        let layer = &branch.parallelism;
        let gpus = self.setup.cluster.gpus;
        let mut found = Vec::new();
        let width = layer.tensor * layer.context;
        if !gpus.is_multiple_of(width) {
            return found;
        }
        for pipeline in divisors(gpus / width) {
            let data = gpus / width / pipeline;
            let step = u64::from(data) * branch.micro_batch;
            let obstacle = if u64::from(pipeline) > training.model.layers + 2 {
                Some(Obstacle::Layers)
            } else if !training.global_batch.is_multiple_of(step) {
                Some(Obstacle::Batch)
            } else {
                None
            };
            if let Some(obstacle) = obstacle {
                *left_out.impossible.entry(obstacle).or_default() += 1;
                continue;
            }
            for (schedule, virtual_pipeline) in self.schedules(pipeline) {
                found.push(Division {
                    parallelism: Parallelism {
                        pipeline,
                        virtual_pipeline,
                        data,
                        ..layer.clone()
                    },
                    schedule,
                });
            }
        }
        found
    }

    /// The orders of ranks that differ.
    fn rank_orders(&self, pipeline: u32) -> &[RankOrder] {
        // Without a pipeline both orders of ranks are one.
        if pipeline == 1 {
            &self.space.rank_orders[..1]
        } else {
            &self.space.rank_orders
        }
    }

    /// The schedules of so many stages, each with its virtual stages.
    fn schedules(&self, pipeline: u32) -> Vec<(Schedule, u32)> {
        // Without a pipeline all schedules are one.
        if pipeline == 1 {
            return vec![(Schedule::OneForwardOneBackward, 1)];
        }
        // The first and the last chunk may hold only the embedding and only the output.
        let layers = self.setup.training.model.layers + 2;
        let most = MOST_VIRTUAL.min((layers / u64::from(pipeline)) as u32);
        let mut schedules = Vec::new();
        for schedule in SCHEDULES {
            let interleaves = schedule == Schedule::OneForwardOneBackward;
            let most = if interleaves { most.max(1) } else { 1 };
            schedules.extend((1..=most).map(|chunks| (schedule, chunks)));
        }
        schedules
    }
}

/// What the times of pieces depend on beside the branch: where groups lie, which depends on the
/// stages where those come first in the hall and groups reach over data-parallel ranks; and
/// whether these gather weights in each layer.
type TimesKey = (bool, Option<(u32, RankOrder)>);

fn times_key(setup: &Setup) -> TimesKey {
    let plan = &setup.training.parallelism;
    let gathers = plan.zero == Zero::Stage3;
    let reaches = gathers || plan.expert * plan.expert_tensor > plan.tensor * plan.context;
    (
        gathers,
        reaches.then_some((plan.pipeline, setup.rank_order)),
    )
}

fn spans_key(setup: &Setup, placement: &Placement) -> SpansKey {
    let plan = &setup.training.parallelism;
    let counts = [
        plan.tensor,
        plan.context,
        plan.pipeline,
        plan.data,
        plan.expert,
        plan.expert_tensor,
        placement.shard_size(),
    ];
    (counts, setup.rank_order == RankOrder::PipelineBeforeData)
}

/// A branch whose plans are being listed.
struct Open<'a> {
    search: &'a Search,
    branch: &'a Branch,
    /// The scenario with the plan that is looked at.
    setup: Setup,
    /// By kind of accelerator.
    kernels: Vec<Arc<KnownKernels>>,
    times: Vec<(TimesKey, Arc<Vec<LineTimes>>)>,
    /// Those of one rank by what they cost: whether weights are gathered in each layer, which kind of
    /// accelerator it is, and where groups lie.
    by_spans: Vec<lines::KnownTimes>,
    load: u64,
}

impl Open<'_> {
    /// The plans of one division: all orders of ranks, each with all ways to shard.
    fn expand(&mut self, division: &Division, expansion: &mut Expansion) {
        let search = self.search;
        let orders = search.rank_orders(division.parallelism.pipeline);
        let plan = &division.parallelism;
        // One rank shards nothing.
        let ways = if plan.data * plan.context == 1 {
            &Zero::ALL[..1]
        } else {
            &Zero::ALL[..]
        };
        self.write(division);
        if self.is_full_recomputation() {
            return;
        }
        let left_out = &mut expansion.left_out;
        if let Err(error) = error::check(&self.setup) {
            let plans = (orders.len() * ways.len()) as u64;
            *left_out.impossible.entry(obstacle(&error)).or_default() += plans;
            return;
        }
        let by_time = split::is_by_time(&self.setup);
        let mut held = if by_time { Vec::new() } else { self.held() };
        for rank_order in orders {
            self.setup.rank_order = *rank_order;
            for layers_per_chunk in self.splits() {
                if by_time {
                    self.setup
                        .training
                        .layers_per_chunk
                        .clone_from(&layers_per_chunk);
                    held = self.held();
                }
                self.shard(division.schedule, &layers_per_chunk, ways, &held, expansion);
            }
        }
    }

    /// All ways to shard one division in one order of ranks, with the layers dealt out.
    fn shard(
        &mut self,
        schedule: Schedule,
        layers_per_chunk: &Option<Vec<u64>>,
        ways: &[Zero],
        held: &[(Held, Bytes)],
        expansion: &mut Expansion,
    ) {
        let mut bounds: Vec<(Arc<Vec<LineTimes>>, SimDuration)> = Vec::new();
        let mut first_stage_fits = false;
        for zero in ways {
            // ZeRO 2 takes the time of ZeRO 1 and less memory: it stands in where that does not fit.
            if *zero == Zero::Stage2 && first_stage_fits {
                continue;
            }
            self.setup.training.parallelism.zero = *zero;
            let (fullest, overfull) = self.fullest(held);
            first_stage_fits = *zero == Zero::Stage1 && overfull.is_none();
            if let Some(part) = overfull {
                *expansion.left_out.too_large.entry(part).or_default() += 1;
                continue;
            }
            let times = self.times();
            let same = |(of, _): &&(Arc<Vec<LineTimes>>, SimDuration)| Arc::ptr_eq(of, &times);
            let at_least = if let Some((_, known)) = bounds.iter().find(same) {
                *known
            } else {
                let found = self.bound(&times);
                bounds.push((times.clone(), found));
                found
            };
            expansion.candidates.push(Candidate {
                parallelism: self.setup.training.parallelism.clone(),
                micro_batch: self.branch.micro_batch,
                recipe: self.branch.recipe,
                recompute: self.branch.recompute.clone(),
                schedule,
                rank_order: self.setup.rank_order,
                layers_per_chunk: layers_per_chunk.clone(),
                at_least,
                memory: fullest,
                times,
                stalls: OnceLock::new(),
            });
        }
    }

    fn write(&mut self, division: &Division) {
        let training = &mut self.setup.training;
        training.parallelism.clone_from(&division.parallelism);
        training.micro_batch = self.branch.micro_batch;
        training.recipe = self.branch.recipe;
        training.recompute.clone_from(&self.branch.recompute);
        training.schedule = division.schedule;
        training.layers_per_chunk = None;
    }

    fn placement(&self) -> Placement {
        Placement::new(&self.setup.training.parallelism, self.setup.rank_order)
    }

    /// Whether more layers of each chunk are to be computed again than it has: a plan of another branch.
    fn is_full_recomputation(&self) -> bool {
        let plan = &self.setup.training.parallelism;
        let chunks = u64::from(plan.pipeline) * u64::from(plan.virtual_pipeline);
        let longest = self.setup.training.model.layers.div_ceil(chunks);
        // Dealt out by time, a chunk may be longer.
        !split::is_by_time(&self.setup)
            && matches!(self.branch.recompute, Recompute::FullLayers(layers) if u64::from(layers) > longest)
            && self.search.space.recomputes.contains(&Recompute::Full)
    }

    /// What the stages hold whatever ZeRO shards, and how much their accelerators can hold.
    fn held(&self) -> Vec<(Held, Bytes)> {
        let placement = self.placement();
        let layout = self.search.layout(&self.setup, &placement);
        let compiler = Compiler::with_layout(&self.setup, &placement, layout);
        let classes = self.search.stage_classes(&compiler, &self.setup);
        let held = |class: &StageClass| {
            let held = Held::of(&compiler.sizes, &class.chunks, &class.in_flight);
            (held, class.capacity)
        };
        classes.iter().map(held).collect()
    }

    /// Memory of the fullest stage, and what needs the most where a stage holds more than it can.
    fn fullest(&self, held: &[(Held, Bytes)]) -> (Bytes, Option<MemoryPart>) {
        let placement = self.placement();
        let sizes = Sizes::new(&self.setup.training);
        let (mut fullest, mut worst) = (Bytes::ZERO, None);
        for (held, capacity) in held {
            let memory = held.memory(&sizes, &placement);
            fullest = fullest.max(memory.total());
            let over = memory.total().saturating_sub(*capacity);
            if over > worst.map_or(Bytes::ZERO, |(most, _)| most) {
                worst = Some((over, memory.largest()));
            }
        }
        (fullest, worst.map(|(_, part)| part))
    }

    fn bound(&self, times: &[LineTimes]) -> SimDuration {
        let placement = self.placement();
        let layout = self.search.layout(&self.setup, &placement);
        let compiler = Compiler::with_layout(&self.setup, &placement, layout);
        let plan = &self.setup.training.parallelism;
        let messages = self.search.messages(&compiler, plan, self.setup.rank_order);
        bound::step_time(&compiler, &self.setup, times, messages)
    }
}

fn obstacle(error: &PlanError) -> Obstacle {
    match error {
        PlanError::DoesNotDivide { what, .. } if what.starts_with("expert") => Obstacle::Experts,
        PlanError::DoesNotDivide { .. } => Obstacle::Batch,
        _ => Obstacle::Schedule,
    }
}

fn common_divisor(a: u32, b: u32) -> u32 {
    if b == 0 { a } else { common_divisor(b, a % b) }
}

fn divisors(of: u32) -> Vec<u32> {
    (1..=of).filter(|n| of.is_multiple_of(*n)).collect()
}

fn powers_to(most: u64) -> impl Iterator<Item = u64> {
    (0..63)
        .map(|power| 1 << power)
        .take_while(move |n| *n <= most.max(1))
}
