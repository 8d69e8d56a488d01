//! From a setup to a plan: chunks of layers, their runs, and the program of every stage.

use crate::allocator::pressure::{KnownStalls, Pressure, Stall, Stalls};
use crate::cause::CommKind;
use crate::crossing;
use crate::error::PlanError;
use crate::facts::{Facts, KernelFacts, StageFacts, Uplinks};
use crate::layer::{self, Gradients, Sizes, copied};
use crate::memory;
use crate::placement::Placement;
use crate::price::{Prices, Spans};
use crate::program::{
    GroupSlot, PassKind, PassMark, Peer, Program, Segment, SegmentId, Stream, Task, Transfer,
    TransferId, Work,
};
use crate::run::{Builder, Context, Node, Run, SegmentFlops, Spec, on_host};
use crate::schedule::{self, Pass, Shape};
use crate::setup::Setup;
use crate::split;
use crate::vision::{self, Encoder};
use rackflow_network::{CollectiveOp, Demand};
use rackflow_topology::{ByPrecision, ClusterMap, Part};
use rackflow_units::{Bandwidth, Bytes, FlopRate, Precision, SimDuration};
use rackflow_workload::{
    Attention, AttentionCount, Direction, FeedForward, LayerKind, Model, Operation, Recipe,
    Recompute, Schedule, Zero,
};
use std::cell::OnceCell;
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;
use std::sync::Arc;

/// Who does what in one training step. No times of events yet: those are the simulator's.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The setup it was made from.
    pub setup: Setup,
    /// Constants for metrics.
    pub facts: Facts,
    /// One program per pipeline stage.
    pub programs: Vec<Program>,
    /// Runs of kernels that the programs refer to.
    pub segments: Vec<Segment>,
    /// Communications that the programs refer to.
    pub transfers: Vec<Transfer>,
    /// What each transfer asks of the links, by the span class of its communicator or, for
    /// messages, by path class. Classes that do not occur hold an empty demand.
    pub demands: Vec<Vec<Demand>>,
    /// Who is in which communicator.
    pub placement: Placement,
    /// Communicators that the programs use.
    pub slots: Vec<GroupSlot>,
    /// Classes of communicators and of paths between stages.
    pub spans: Arc<Spans>,
    /// Flows run over the links above the leaves one by one, because those can hold them back or
    /// others share them. Otherwise what those tiers cost is in the price of each communication.
    pub on_fabric: bool,
    /// SMs that communication holds at the highest level of [`Segment::time`].
    pub most_held_sms: u32,
    /// Host time to launch one communication.
    pub communication_launch: SimDuration,
    /// What takes another time on accelerators of further kinds, in the order of
    /// [`Cluster::kinds`](rackflow_topology::Cluster::kinds) from the second on.
    pub further_kinds: Vec<KindPlan>,
    /// Kind of every rank; empty where there is one.
    pub kind_of_rank: Vec<u32>,
}

/// What takes another time on accelerators of another kind. Programs are the same on all.
#[derive(Debug, Clone)]
pub struct KindPlan {
    /// As [`Plan::segments`].
    pub segments: Vec<Segment>,
    /// As [`Transfer::memory_share`], by transfer.
    pub memory_shares: Vec<f64>,
    /// As [`Plan::most_held_sms`].
    pub most_held_sms: u32,
    /// As [`Plan::communication_launch`].
    pub communication_launch: SimDuration,
}

impl Plan {
    /// Whether the fullest stage fits into the memory of one GPU.
    ///
    /// # Errors
    /// [`PlanError::DoesNotFit`] with the arithmetic, and a change that would make it fit.
    pub fn check_memory(&self) -> Result<(), PlanError> {
        memory::check(self)
    }

    /// Kinds of accelerators.
    pub fn kinds(&self) -> usize {
        1 + self.further_kinds.len()
    }

    /// The kind of accelerator that a rank sits on.
    pub fn kind_of(&self, rank: u32) -> u32 {
        self.kind_of_rank.get(rank as usize).copied().unwrap_or(0)
    }

    fn further(&self, kind: u32) -> Option<&KindPlan> {
        let index = (kind as usize).checked_sub(1)?;
        self.further_kinds.get(index)
    }

    /// Runs of kernels as accelerators of a kind execute them.
    pub fn segments_on(&self, kind: u32) -> &[Segment] {
        self.further(kind)
            .map_or(&self.segments, |further| &further.segments)
    }

    /// [`Transfer::memory_share`] on accelerators of a kind.
    pub fn memory_share_on(&self, kind: u32, transfer: TransferId) -> f64 {
        let index = transfer.0 as usize;
        self.further(kind).map_or_else(
            || self.transfers[index].memory_share,
            |further| further.memory_shares[index],
        )
    }

    /// [`Plan::most_held_sms`] on accelerators of a kind.
    pub fn most_held_sms_on(&self, kind: u32) -> u32 {
        self.further(kind)
            .map_or(self.most_held_sms, |further| further.most_held_sms)
    }

    /// [`Plan::communication_launch`] on hosts of a kind.
    pub fn communication_launch_on(&self, kind: u32) -> SimDuration {
        self.further(kind)
            .map_or(self.communication_launch, |further| {
                further.communication_launch
            })
    }
}

/// Compiles a setup.
///
/// # Errors
/// When counts do not divide, the fabric cannot be built, the schedule does not apply, or the step
/// could outlast simulated time. Whether
/// the plan fits into memory is asked apart: [`Plan::check_memory`].
pub fn compile(setup: &Setup) -> Result<Plan, PlanError> {
    crate::error::check(setup)?;
    let host = ClusterMap::new(setup.host())?;
    let placement = Placement::new(&setup.training.parallelism, setup.rank_order);
    let spans = Arc::new(Spans::new(setup, &host, &placement));
    let stalls = Compiler::new(setup, &placement).stalls(&placement, &KnownStalls::default());
    let mut plan = compile_over(setup, &host, &spans, &stalls, |plan| {
        crossing::blocks(plan, &host, crossing::wires(setup).as_ref())
    })?;
    if let Some(otherwise) = otherwise(setup, &placement, &stalls) {
        for (stage, of) in plan.facts.stages.iter_mut().zip(otherwise) {
            stage.pressure.otherwise = Some(of.pressure.time);
        }
    }
    Ok(plan)
}

/// What the stages would wait for an allocator with segments of the other kind, where some wait or have no
/// place now, and all have place for them.
fn otherwise(setup: &Setup, placement: &Placement, stalls: &[Stalls]) -> Option<Vec<Stalls>> {
    let other = setup.training.stack.allocator.with_other_segments()?;
    let lacks_place = |stalls: &Stalls| stalls.pressure.lacks_place();
    let waits = |stalls: &Stalls| stalls.pressure.time > SimDuration::ZERO;
    if !stalls.iter().any(|of| waits(of) || lacks_place(of)) {
        return None;
    }
    let mut setup = setup.clone();
    setup.training.stack.allocator = other;
    let other = Compiler::new(&setup, placement).stalls(placement, &KnownStalls::default());
    (!other.iter().any(lacks_place)).then_some(other)
}

/// Compiles a setup that is sound, on a map of the whole cluster, over communicators that are known and
/// with what its stages wait for the allocator. `blocks` is [`crossing::blocks`], which is asked where
/// links of the fabric may hold a plan back.
pub(crate) fn compile_over(
    setup: &Setup,
    host: &ClusterMap,
    spans: &Arc<Spans>,
    stalls: &[Stalls],
    blocks: impl FnOnce(&Plan) -> bool,
) -> Result<Plan, PlanError> {
    let may_block = crossing::may_block(setup.host(), &setup.faults, host);
    // Whoever shares the cluster may come to meet this job on any link.
    let shared = may_block && setup.seats.is_some();
    let plan = compile_on(setup, host, spans, stalls, shared)?;
    if may_block && !shared && blocks(&plan) {
        return compile_on(setup, host, spans, stalls, true);
    }
    Ok(plan)
}

fn compile_on(
    setup: &Setup,
    host: &ClusterMap,
    spans: &Arc<Spans>,
    stalls: &[Stalls],
    on_fabric: bool,
) -> Result<Plan, PlanError> {
    let own;
    let map = if setup.seats.is_some() {
        own = ClusterMap::new(&setup.cluster)?;
        &own
    } else {
        host
    };
    let placement = Placement::new(&setup.training.parallelism, setup.rank_order);
    let prices = Prices::new(setup, host, spans.clone(), on_fabric);
    let mut ctx = Context::new(setup, &prices);
    let mut compiler = Compiler::new(setup, &placement);
    let stages = setup.training.parallelism.pipeline;
    let hall = Hall::new(setup, &placement);
    let orders = compiler.orders();
    let stage_facts = compiler.stage_facts(&placement, &hall, &orders, stalls);
    let stages = (0..stages).zip(&orders).zip(stalls);
    let programs: Vec<Program> = stages
        .map(|((stage, order), stalls)| compiler.program(&mut ctx, stage, order, stalls))
        .collect();
    let (further_kinds, further_flops) = further_kinds(setup, &prices, &placement, stalls);
    let mut flops = vec![ctx.segment_flops.as_slice()];
    flops.extend(further_flops.iter().map(Vec::as_slice));
    let slots = GroupSlot::ALL
        .into_iter()
        .filter(|slot| ctx.specs.iter().any(|(_, used)| *used == Some(*slot)))
        .collect();
    let plan = Plan {
        facts: facts(setup, map, stage_facts, &programs, &flops, &hall),
        further_kinds,
        kind_of_rank: hall.kind_of_rank,
        setup: setup.clone(),
        programs,
        on_fabric,
        most_held_sms: ctx.most_held_sms(),
        communication_launch: ctx.communication_launch(),
        segments: ctx.segments,
        transfers: ctx.transfers,
        demands: ctx.demands,
        placement,
        slots,
        spans: prices.spans,
    };
    crate::horizon::check(&plan)?;
    Ok(plan)
}

/// What further kinds of accelerators take for the same programs, and what their segments do.
fn further_kinds(
    setup: &Setup,
    prices: &Prices,
    placement: &Placement,
    stalls: &[Stalls],
) -> (Vec<KindPlan>, Vec<Vec<SegmentFlops>>) {
    let further = setup.cluster.kinds().into_iter().skip(1);
    let of_kind = |kind: Part| {
        let mut alike = setup.clone();
        alike.cluster.node = kind.node;
        let memory = alike.cluster.node.accelerator.memory_bandwidth.as_f64();
        let prices = prices.with_memory(memory);
        let mut ctx = Context::new(&alike, &prices);
        let mut compiler = Compiler::new(&alike, placement);
        let stages = 0..setup.training.parallelism.pipeline;
        for ((stage, order), stalls) in stages.zip(compiler.orders()).zip(stalls) {
            // Runs are built in the order of the program, so they have the same numbers as there.
            compiler.program(&mut ctx, stage, &order, stalls);
        }
        let shares = ctx.transfers.iter().map(|transfer| transfer.memory_share);
        let plan = KindPlan {
            memory_shares: shares.collect(),
            most_held_sms: ctx.most_held_sms(),
            communication_launch: ctx.communication_launch(),
            segments: ctx.segments,
        };
        (plan, ctx.segment_flops)
    };
    further.map(of_kind).unzip()
}

/// Who sits on which kind of accelerator.
pub(crate) struct Hall {
    kinds: Vec<Part>,
    kind_of_rank: Vec<u32>,
    /// Ranks of each stage on each kind.
    ranks: Vec<Vec<u32>>,
}

impl Hall {
    pub fn new(setup: &Setup, placement: &Placement) -> Self {
        let kinds = setup.cluster.kinds();
        let kind_of_rank = setup.cluster.kind_of_gpus();
        let stages = setup.training.parallelism.pipeline as usize;
        let mut ranks = vec![vec![0; kinds.len()]; stages];
        if kind_of_rank.is_empty() {
            ranks
                .iter_mut()
                .for_each(|of| of[0] = placement.stage_ranks());
        }
        for (rank, kind) in kind_of_rank.iter().enumerate() {
            let stage = placement.coordinates(rank as u32).stage;
            ranks[stage as usize][*kind as usize] += 1;
        }
        Self {
            kinds,
            kind_of_rank,
            ranks,
        }
    }

    /// The kinds that hold ranks of a stage.
    fn on_stage(&self, stage: u32) -> impl Iterator<Item = &Part> {
        let ranks = self.kinds.iter().zip(&self.ranks[stage as usize]);
        ranks.filter(|(_, ranks)| **ranks > 0).map(|(kind, _)| kind)
    }

    /// Least memory of any accelerator of a stage.
    pub fn capacity(&self, stage: u32) -> Bytes {
        let memory = self
            .on_stage(stage)
            .map(|kind| kind.node.accelerator.capacity());
        memory.min().unwrap_or_default()
    }

    /// Mean over all accelerators of one of their rates.
    fn mean(&self, of: impl Fn(&ByPrecision<FlopRate>) -> FlopRate) -> FlopRate {
        let rate = |kind: &Part| of(&kind.node.accelerator.peak).flops_per_sec();
        if let [only] = &self.kinds[..] {
            return of(&only.node.accelerator.peak);
        }
        let sum: f64 = self
            .kinds
            .iter()
            .map(|kind| rate(kind) * f64::from(kind.gpus))
            .sum();
        let gpus: f64 = self.kinds.iter().map(|kind| f64::from(kind.gpus)).sum();
        FlopRate::from_flops_per_sec(sum / gpus)
    }
}

/// Peak memory of every stage, without building programs.
pub(crate) fn stage_memory(setup: &Setup) -> Result<Vec<memory::MemoryUse>, PlanError> {
    crate::error::check(setup)?;
    let placement = Placement::new(&setup.training.parallelism, setup.rank_order);
    let compiler = Compiler::new(setup, &placement);
    Ok((0..setup.training.parallelism.pipeline)
        .zip(compiler.orders())
        .map(|(stage, order)| {
            memory::of_stage(
                &compiler.sizes,
                &placement,
                &compiler.stage_chunks(stage),
                &order,
            )
        })
        .collect())
}

fn facts(
    setup: &Setup,
    map: &ClusterMap,
    stages: Vec<StageFacts>,
    programs: &[Program],
    segment_flops: &[&[SegmentFlops]],
    hall: &Hall,
) -> Facts {
    let training = &setup.training;
    let model = &training.model;
    let tokens = training.tokens() as f64;
    let seq = training.sequence_length;
    let mut executed = SegmentFlops::default();
    let mut executions = vec![vec![0_u64; segment_flops[0].len()]; segment_flops.len()];
    for (program, ranks) in programs.iter().zip(&hall.ranks) {
        for task in &program.tasks {
            if let Work::Compute(id) = task.work {
                let flops = &segment_flops[0][id.0 as usize];
                executed.model += flops.model;
                executed.again += flops.again;
                for (of_kind, ranks) in executions.iter_mut().zip(ranks) {
                    of_kind[id.0 as usize] += u64::from(*ranks);
                }
            }
        }
    }
    let ranks = hall.ranks.iter().flatten().sum::<u32>() / training.parallelism.pipeline;
    let ranks = f64::from(ranks);
    // A module that is trained along is part of the model, and so is an encoder that runs along.
    let flops = |count| {
        (model.flops_per_token(seq, count) + model.mtp_flops_per_token(seq, count)) * tokens
            + training.vision_flops()
    };
    let causal = flops(AttentionCount::Causal);
    let noncausal = flops(AttentionCount::NonCausal);
    let native = training.recipe.gemm();
    let of_vision = training.parameters_of_vision();
    Facts {
        scenario: setup.name.clone(),
        cluster: setup.cluster.clone(),
        training: training.clone(),
        faults: setup.faults.clone(),
        stragglers: setup.stragglers.clone(),
        parameters: (model.parameters_total() + of_vision) as f64,
        active_parameters: (model.parameters_active() + of_vision) as f64,
        model_flops_noncausal: noncausal,
        model_flops_causal: causal,
        hardware_flops_causal: (executed.model + executed.again) * ranks,
        hardware_flops_noncausal: (executed.model + executed.again) * ranks + (noncausal - causal),
        peak_bf16: hall.mean(|peak| peak.get(Precision::Bf16)),
        peak_native: hall.mean(|peak| peak.get(native)),
        native,
        stages,
        memory_capacity: setup.cluster.least_memory(),
        micro_batches: training.micro_batches(),
        racks: map.racks(),
        kernels: kernels(segment_flops, &executions),
        nic_share: map.nic_share(),
        uplinks: uplinks(map),
    }
}

/// What the segments' kernels of each kind of accelerator come to over a step.
fn kernels(segments: &[&[SegmentFlops]], executions: &[Vec<u64>]) -> Vec<KernelFacts> {
    let mut found = BTreeMap::new();
    let of_kinds = segments.iter().zip(executions);
    for (segment, times) in of_kinds.flat_map(|(segments, times)| segments.iter().zip(times)) {
        for kernel in segment.kernels.iter().filter(|_| *times > 0) {
            let sum = found.entry(kernel.key()).or_insert_with(|| KernelFacts {
                launches: 0.0,
                flops: 0.0,
                bytes: 0.0,
                seconds: 0.0,
                ..*kernel
            });
            sum.add(kernel, *times as f64);
        }
    }
    found.into_values().collect()
}

fn uplinks(map: &ClusterMap) -> Uplinks {
    let share = |capacity: f64, over: f64| {
        (capacity > 0.0)
            .then(|| Bandwidth::from_bytes_per_sec((map.nic_share().as_f64() / over) as u64))
    };
    let leaf = share(map.leaf_capacity(), map.leaf_oversubscription());
    let both = map.leaf_oversubscription() * map.spine_oversubscription();
    Uplinks {
        leaf,
        pod: share(map.pod_capacity(), both),
    }
}

/// A contiguous piece of the model on one stage.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Chunk {
    pub layers: Vec<(LayerKindKey, u64)>,
    pub first: bool,
    pub last: bool,
}

/// An ordered stand-in for [`LayerKind`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct LayerKindKey {
    routed: bool,
    window: Option<u64>,
    chunked: bool,
}

impl LayerKindKey {
    pub fn kind(self) -> LayerKind {
        LayerKind {
            feed_forward: if self.routed {
                FeedForward::MoE
            } else {
                FeedForward::Dense
            },
            window: self.window,
            chunked: self.chunked,
        }
    }
}

impl From<LayerKind> for LayerKindKey {
    fn from(kind: LayerKind) -> Self {
        Self {
            routed: kind.feed_forward == FeedForward::MoE,
            window: kind.window,
            chunked: kind.chunked,
        }
    }
}

impl Chunk {
    pub fn kinds(&self) -> impl DoubleEndedIterator<Item = LayerKind> + '_ {
        self.layers
            .iter()
            .flat_map(|(key, count)| (0..*count).map(move |_| key.kind()))
    }

    pub fn len(&self) -> u64 {
        self.layers.iter().map(|(_, count)| count).sum()
    }
}

/// What a run is for; runs of equal kind and chunk are built once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    Forward,
    /// The first micro-batch's forward, which waits for gathered parameters.
    ForwardFirst,
    Backward,
    /// The last micro-batch's backward, which releases gradients for reduction.
    BackwardLast,
    /// A backward pass that leaves the weight gradient of the output layer for later.
    BackwardDeferred,
    /// The same of the last micro-batch.
    BackwardDeferredLast,
    InputGradient,
    WeightGradient,
    WeightGradientLast,
}

impl Kind {
    const COUNT: usize = Self::WeightGradientLast as usize + 1;

    /// What a backward pass of this kind computes of each layer.
    fn gradients(self) -> Gradients {
        match self {
            Self::InputGradient => Gradients::Input,
            Self::WeightGradient | Self::WeightGradientLast => Gradients::Weight,
            _ => Gradients::Both,
        }
    }

    /// Whether it completes the gradients of its chunk, but for those that are left for later.
    fn completes(self) -> bool {
        matches!(
            self,
            Self::BackwardLast | Self::BackwardDeferredLast | Self::WeightGradientLast
        )
    }

    fn defers(self) -> bool {
        matches!(self, Self::BackwardDeferred | Self::BackwardDeferredLast)
    }

    /// A backward pass with all gradients.
    pub fn backward(completes: bool, defers: bool) -> Self {
        match (completes, defers) {
            (false, false) => Self::Backward,
            (true, false) => Self::BackwardLast,
            (false, true) => Self::BackwardDeferred,
            (true, true) => Self::BackwardDeferredLast,
        }
    }
}

/// Bytes of parameters that one rank holds of a layer, before ZeRO shards them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct RankParameters {
    /// Replicated over data-parallel ranks.
    pub dense: u64,
    /// Experts on this rank.
    pub expert: u64,
}

impl RankParameters {
    /// None of them experts'.
    pub fn dense(count: u64) -> Self {
        Self {
            dense: count,
            expert: 0,
        }
    }
}

impl std::ops::Add for RankParameters {
    type Output = Self;
    fn add(self, other: Self) -> Self {
        Self {
            dense: self.dense + other.dense,
            expert: self.expert + other.expert,
        }
    }
}

pub(crate) fn layer_parameters(s: &Sizes<'_>, kind: LayerKind) -> RankParameters {
    let layer = s.model.layer_parameters(kind);
    let tp = u64::from(s.plan.tensor);
    let ep = u64::from(s.plan.expert) * u64::from(s.plan.expert_tensor);
    RankParameters {
        dense: (layer.attention + layer.dense_ffn + layer.shared_expert) / tp
            + layer.router
            + layer.norms,
        expert: layer.routed_experts / ep,
    }
}

/// Parameters that one rank holds of the layers of a chunk, without the ends of the model.
fn layers_parameters(s: &Sizes<'_>, chunk: &Chunk) -> RankParameters {
    let layers = chunk.layers.iter().map(|(key, count)| {
        let one = layer_parameters(s, key.kind());
        RankParameters {
            dense: one.dense * count,
            expert: one.expert * count,
        }
    });
    layers.fold(RankParameters::default(), |a, b| a + b)
}

pub(crate) fn chunk_parameters(s: &Sizes<'_>, chunk: &Chunk) -> RankParameters {
    let tp = u64::from(s.plan.tensor);
    let mut sum = layers_parameters(s, chunk);
    if chunk.first {
        sum.dense += s.model.embedding_parameters() / tp;
        sum.dense += s.encoder.as_ref().map_or(0, |encoder| encoder.trained());
    }
    if chunk.last {
        sum.dense += last_tables(s, chunk);
        for _ in 0..s.model.prediction_modules() {
            sum = sum + mtp_parameters(s);
        }
    }
    sum
}

/// Bytes of a parameter that is not kept in 8 bits.
const WIDE_BYTES: u64 = 2;

/// One rank's part of the table of tokens.
fn embedding_parameters(s: &Sizes<'_>) -> u64 {
    s.model.embedding_parameters() / u64::from(s.plan.tensor)
}

/// One rank's part of the table that makes logits.
fn output_parameters(s: &Sizes<'_>) -> u64 {
    s.model.output_parameters() / u64::from(s.plan.tensor)
}

/// One rank's part of the table of tokens that the last stage keeps beside the first one's: tied embeddings make
/// the logits with it, and prediction modules look the next tokens up (Megatron-Core, `GPTModel`: there is an embedding
/// where `pre_process or mtp_process`). DualPipe has both ends of the model on one rank.
pub(crate) fn table_copy(s: &Sizes<'_>) -> u64 {
    let apart = s.plan.pipeline > 1 && s.training.schedule != Schedule::Dualpipe;
    if apart && (s.model.tied_embeddings || s.model.mtp.is_some()) {
        s.table()
    } else {
        0
    }
}

/// One rank's part of the table that makes logits on a stage of its own.
fn logits_table(s: &Sizes<'_>) -> u64 {
    if s.model.tied_embeddings {
        table_copy(s)
    } else {
        output_parameters(s)
    }
}

/// One rank's part of the tables behind the last layer.
fn last_tables(s: &Sizes<'_>, chunk: &Chunk) -> u64 {
    let copy = if chunk.first { 0 } else { table_copy(s) };
    output_parameters(s) + copy
}

/// One rank's part of the tables of the vocabulary that a chunk has.
fn table_parameters(s: &Sizes<'_>, chunk: &Chunk) -> u64 {
    let embedding = if chunk.first {
        embedding_parameters(s)
    } else {
        0
    };
    let last = if chunk.last { last_tables(s, chunk) } else { 0 };
    embedding + last
}

/// Micro-batches whose weight gradient of the output layer the last stage puts off to its end.
pub(crate) fn deferred_output_gradients(s: &Sizes<'_>) -> u64 {
    let in_one = matches!(
        s.training.schedule,
        Schedule::Gpipe | Schedule::OneForwardOneBackward
    );
    if s.plan.pipeline == 1 || !in_one || s.weaves_passes() || s.plan.zero == Zero::Stage3 {
        return 0;
    }
    let most = s.stack.deferred_output_gradients;
    most.min(s.training.micro_batches())
}

/// Parameters that one rank holds of all chunks of its stage.
pub(crate) fn stage_parameters(s: &Sizes<'_>, chunks: &[Chunk]) -> RankParameters {
    chunks
        .iter()
        .map(|chunk| chunk_parameters(s, chunk))
        .fold(RankParameters::default(), |a, b| a + b)
}

/// One prediction module: a layer and the projection in front of it.
fn mtp_parameters(s: &Sizes<'_>) -> RankParameters {
    let mut parameters = layer_parameters(s, s.model.mtp_layer_kind());
    let (n, k) = layer::mtp_weight(s);
    parameters.dense += n * k;
    parameters
}

/// The layers of a model, dealt out to chunks.
#[derive(Debug)]
pub(crate) struct ChunkLayout {
    /// In pipeline order.
    chunks: Vec<Chunk>,
    /// Of each chunk, the first that is equal to it.
    same: Vec<u32>,
}

impl ChunkLayout {
    pub fn new(setup: &Setup, placement: &Placement) -> Self {
        Self::of(split::chunks(setup, placement))
    }

    /// Layers that are dealt out like this.
    pub fn of(chunks: Vec<Chunk>) -> Self {
        let mut distinct: Vec<u32> = Vec::new();
        let mut same = Vec::with_capacity(chunks.len());
        for (position, chunk) in chunks.iter().enumerate() {
            let known = distinct
                .iter()
                .find(|known| chunks[**known as usize] == *chunk);
            same.push(known.copied().unwrap_or(position as u32));
            if known.is_none() {
                distinct.push(position as u32);
            }
        }
        Self { chunks, same }
    }
}

pub(crate) struct Compiler<'a> {
    pub sizes: Sizes<'a>,
    setup: &'a Setup,
    shard: u32,
    layout: Arc<ChunkLayout>,
    /// Runs that are built, by chunk.
    runs: BTreeMap<Chunk, [Option<Rc<Run>>; Kind::COUNT]>,
    /// Pairs of them that are woven into one, by where these lie.
    weaves: BTreeMap<[*const Run; 2], Rc<[bool]>>,
}

impl<'a> Compiler<'a> {
    pub fn new(setup: &'a Setup, placement: &Placement) -> Self {
        let layout = Arc::new(ChunkLayout::new(setup, placement));
        Self::with_layout(setup, placement, layout)
    }

    /// Where the layers of this plan are dealt out already.
    pub fn with_layout(setup: &'a Setup, placement: &Placement, layout: Arc<ChunkLayout>) -> Self {
        Self {
            sizes: Sizes::new(&setup.training),
            setup,
            shard: placement.shard_size(),
            layout,
            runs: BTreeMap::new(),
            weaves: BTreeMap::new(),
        }
    }

    /// A compiler that has built nothing, for the same work as another kind of accelerator may see it.
    pub fn on<'b>(&self, setup: &'b Setup) -> Compiler<'b> {
        Compiler {
            sizes: Sizes::new(&setup.training),
            setup,
            shard: self.shard,
            layout: self.layout.clone(),
            runs: BTreeMap::new(),
            weaves: BTreeMap::new(),
        }
    }

    pub fn stages(&self) -> u32 {
        self.sizes.plan.pipeline
    }

    /// What a report says of the stages, which wait for the allocator like this.
    fn stage_facts(
        &self,
        placement: &Placement,
        hall: &Hall,
        orders: &[Vec<Pass>],
        stalls: &[Stalls],
    ) -> Vec<StageFacts> {
        let stages = (0..self.stages()).zip(orders);
        let facts = stages
            .enumerate()
            .map(|(index, (stage, order))| StageFacts {
                capacity: hall.capacity(stage),
                layers: self.stage_layers(stage),
                memory: memory::of_stage(&self.sizes, placement, &self.stage_chunks(stage), order),
                pressure: stalls
                    .get(index)
                    .map_or(Pressure::default(), |of| of.pressure),
            });
        facts.collect()
    }

    /// How long the stages wait for the allocator; nothing is said of a plan that does not fit.
    pub fn stalls(&self, placement: &Placement, known: &KnownStalls) -> Vec<Stalls> {
        let orders = self.orders();
        let hall = Hall::new(self.setup, placement);
        let facts = self.stage_facts(placement, &hall, &orders, &[]);
        if !facts.iter().all(StageFacts::fits) {
            return vec![Stalls::default(); facts.len()];
        }
        let hosts = OnceCell::new();
        let host_of = |rank: u32| {
            let hosts: &Vec<u32> = hosts.get_or_init(|| self.setup.host().host_of_gpus());
            hosts[self.setup.gpu_of(rank) as usize]
        };
        let stages = (0..self.stages()).zip(&orders).zip(&facts);
        stages
            .map(|((stage, order), facts)| {
                let chunks = self.stage_chunks(stage);
                let draws = &self.setup.token_draws;
                let on_host = || placement.stage_ranks_on_host(stage, host_of);
                Stalls::of_stage(&self.sizes, draws, on_host, (&chunks, order), facts, known)
            })
            .collect()
    }

    /// Chunks in pipeline order.
    pub fn chunks(&self) -> &[Chunk] {
        &self.layout.chunks
    }

    /// Of each chunk, the first that is equal to it.
    pub fn same(&self) -> &[u32] {
        &self.layout.same
    }

    /// What tells the pieces of a stage from those of another: stages of equal keys hold the same.
    pub fn alike(&self, stage: u32) -> Vec<u32> {
        (0..self.chunks_per_stage())
            .map(|chunk| self.layout.same[self.position(stage, chunk) as usize])
            .collect()
    }

    /// Whether some passes compute only a part of the gradients.
    pub fn splits_gradients(&self) -> bool {
        matches!(
            self.setup.training.schedule,
            Schedule::ZeroBubbleH1 | Schedule::ZeroBubbleH2 | Schedule::Dualpipe
        )
    }

    fn dualpipe(&self) -> bool {
        self.setup.training.schedule == Schedule::Dualpipe
    }

    /// Model chunks on each stage.
    pub fn chunks_per_stage(&self) -> u32 {
        if self.dualpipe() {
            2
        } else {
            self.sizes.plan.virtual_pipeline
        }
    }

    /// Position in the model of a stage's chunk.
    pub fn position(&self, stage: u32, chunk: u32) -> u32 {
        match (self.dualpipe(), chunk) {
            (true, 0) => stage,
            (true, _) => self.stages() - 1 - stage,
            (false, _) => chunk * self.stages() + stage,
        }
    }

    pub fn stage_chunks(&self, stage: u32) -> Vec<Chunk> {
        (0..self.chunks_per_stage())
            .map(|c| self.layout.chunks[self.position(stage, c) as usize].clone())
            .collect()
    }

    pub fn stage_layers(&self, stage: u32) -> u64 {
        self.stage_chunks(stage).iter().map(Chunk::len).sum()
    }

    pub fn shape(&self) -> Shape {
        Shape {
            stages: self.stages(),
            chunks: self.chunks_per_stage(),
            micro_batches: self.setup.training.micro_batches() as u32,
            overlap_passes: self.sizes.weaves_passes(),
        }
    }

    fn orders(&self) -> Vec<Vec<Pass>> {
        schedule::orders(self.setup.training.schedule, self.shape())
    }

    /// Whether a stage goes on while it sends. A bidirectional schedule sends and receives both
    /// ways at once.
    pub fn sends_asynchronously(&self) -> bool {
        let overlap = &self.sizes.stack.overlap;
        let plain = self.sizes.plan.virtual_pipeline == 1
            && matches!(
                self.setup.training.schedule,
                Schedule::Gpipe | Schedule::OneForwardOneBackward
            );
        (overlap.pipeline && !(overlap.pipeline_if_interleaved && plain)) || self.dualpipe()
    }

    /// Whether a stage is ready to receive before it is done with the work before.
    pub fn asks_early(&self) -> bool {
        self.chunks_per_stage() > 1
            || !matches!(
                self.setup.training.schedule,
                Schedule::Gpipe | Schedule::OneForwardOneBackward
            )
    }

    pub fn run(&mut self, ctx: &mut Context<'_>, chunk: &Chunk, kind: Kind) -> Rc<Run> {
        let known = self.runs.get(chunk);
        if let Some(run) = known.and_then(|runs| runs[kind as usize].as_ref()) {
            return run.clone();
        }
        let run = match kind {
            Kind::Forward => self.forward(ctx, chunk, false),
            Kind::ForwardFirst => self.forward(ctx, chunk, true),
            _ => self.backward(ctx, chunk, kind),
        };
        let run = Rc::new(run);
        let runs = self.runs.entry(chunk.clone()).or_default();
        runs[kind as usize] = Some(run.clone());
        run
    }

    /// Whose node comes next where a forward and a backward run of this compiler are woven into one:
    /// true for the forward one's.
    pub fn weave(&mut self, ctx: &Context<'_>, f: &Rc<Run>, b: &Rc<Run>) -> Rc<[bool]> {
        let key = [Rc::as_ptr(f), Rc::as_ptr(b)];
        let known = self.weaves.entry(key);
        let duration = |node: &Node| alone(ctx, node);
        known
            .or_insert_with(|| weave(duration, f, b).into())
            .clone()
    }

    /// What one stage sends to the next of a micro-batch.
    pub fn message(&self) -> Bytes {
        let whole = self.sizes.own_tokens * self.sizes.model.hidden * 2;
        if self.scatters_messages() {
            return Bytes::new(whole.div_ceil(u64::from(self.sizes.plan.tensor)));
        }
        Bytes::new(whole)
    }

    /// Messages between stages are cut over the tensor ranks, which gather them on arrival.
    fn scatters_messages(&self) -> bool {
        let plan = self.sizes.plan;
        self.sizes.stack.scatters_messages
            && plan.tensor > 1
            && !plan.sequence_parallel
            && plan.pipeline > 1
    }

    pub fn zero(&self) -> Zero {
        self.sizes.plan.zero
    }

    /// Parameters are gathered before every use (FSDP).
    pub fn gathers_always(&self) -> bool {
        self.zero() == Zero::Stage3 && self.shard > 1
    }

    /// Parameters are gathered once, beside the first forward pass.
    fn gathers_first(&self) -> bool {
        matches!(self.zero(), Zero::Stage1 | Zero::Stage2)
            && self.sizes.stack.overlap.parameter_gather
            && self.has_replicas()
    }

    /// Tables of the vocabulary, in 16 bits beside weights in 8, move with the bucket of a chunk's first layers
    /// (Megatron-Core, `partition_buckets`: "merge all non-fp8 buckets into the last fp8 bucket group").
    fn wide_parameters_last(&self) -> bool {
        let stack = self.sizes.stack;
        stack.wide_parameters_last
            && stack.parameter_gather_bytes < WIDE_BYTES
            && !self.gathers_always()
    }

    /// Any parameter is on more than one rank: all of them, or the experts.
    fn has_replicas(&self) -> bool {
        let experts = self.sizes.model.moe.is_some() && self.expert_data_ranks() > 1;
        self.data_ranks() > 1 || experts
    }

    /// Chunks are interleaved, so that stages can be told to move parameters and gradients together.
    fn interleaves(&self) -> bool {
        self.stages() > 1
            && self.sizes.plan.virtual_pipeline > 1
            && self.setup.training.schedule == Schedule::OneForwardOneBackward
    }

    fn aligns_reductions(&self) -> bool {
        let overlap = &self.sizes.stack.overlap;
        self.interleaves()
            && overlap.align_gradient_reduce
            && overlap.gradient_reduce
            && !self.gathers_always()
    }

    fn aligns_gathers(&self) -> bool {
        self.interleaves()
            && self.sizes.stack.overlap.align_parameter_gather
            && self.gathers_first()
    }

    /// The first chunk's parameters are gathered beside the optimizer.
    fn gathers_beside_optimizer(&self) -> bool {
        self.interleaves() && self.sizes.stack.overlap.optimizer_step_gather && self.gathers_first()
    }

    fn data_ranks(&self) -> u32 {
        self.sizes.plan.data * self.sizes.plan.context
    }

    fn forward(&mut self, ctx: &mut Context<'_>, chunk: &Chunk, first: bool) -> Run {
        let s = self.sizes.clone();
        let kinds: Vec<LayerKind> = chunk.kinds().collect();
        let mut run = Run::default();
        let gathers = self.gathers_always() || (first && self.gathers_first());
        let gather =
            |ctx: &mut Context<'_>, run: &mut Run, parameters: RankParameters, deps: Vec<u32>| {
                if gathers {
                    self.gather_parameters(ctx, run, parameters, deps)
                } else {
                    vec![]
                }
            };
        // Tables of the vocabulary stay in 16 bits.
        let gather_table = |ctx: &mut Context<'_>, run: &mut Run, parameters: u64| {
            if gathers && parameters > 0 {
                let gathered = self.gather_wide(ctx, run, parameters);
                run.exits.extend(gathered);
            }
        };
        let wide_first = self.wide_parameters_last();
        let offloaded = s.stack.activation_offload.layers(chunk.len(), chunk.last);
        let recomputed = recomputed_layers(&s, chunk);
        let mut templates: BTreeMap<LayerKindKey, Run> = BTreeMap::new();
        if !chunk.first && self.scatters_messages() {
            run.append(&layer::gather_message(ctx, &s));
        }
        if wide_first {
            gather_table(ctx, &mut run, table_parameters(&s, chunk));
        }
        if chunk.first {
            if let Some(encoder) = &s.encoder {
                self.encode(ctx, &mut run, encoder, gathers);
            }
            if !wide_first {
                gather_table(ctx, &mut run, embedding_parameters(&s));
            }
            let embedding = layer::embedding(ctx, &s, Direction::Forward);
            run.append(&embedding);
        }
        // The parameters of the next layers are asked for when those before them begin.
        let mut groups = self
            .gathered_together(&kinds)
            .into_iter()
            .filter(|_| gathers)
            .peekable();
        let mut ready = groups
            .peek()
            .map(|(_, parameters)| gather(ctx, &mut run, *parameters, vec![]))
            .unwrap_or_default();
        for (i, kind) in kinds.iter().enumerate() {
            if groups.next_if(|(first, _)| *first == i).is_some() {
                let this = std::mem::take(&mut ready);
                if let Some((_, parameters)) = groups.peek() {
                    let deps = if self_limits(i) {
                        run.after_compute()
                    } else {
                        vec![]
                    };
                    ready = gather(ctx, &mut run, *parameters, deps);
                }
                run.exits.extend(this);
            }
            let template = templates
                .entry((*kind).into())
                .or_insert_with(|| layer::forward(ctx, &s, *kind, false));
            run.append(template);
            if (i as u64) < offloaded {
                let again = (i as u64) < recomputed;
                self.copy(ctx, &mut run, *kind, again, Stream::Offload);
            }
        }
        if chunk.last {
            if !wide_first {
                gather_table(ctx, &mut run, last_tables(&s, chunk));
            }
            let head = layer::head(ctx, &s, Direction::Forward, Gradients::Both, 0);
            run.append(&head);
            for _ in 0..s.model.prediction_modules() {
                let gathered = gather(ctx, &mut run, mtp_parameters(&s), vec![]);
                run.exits.extend(gathered);
                run.append(&layer::embedding(ctx, &s, Direction::Forward));
                run.append(&layer::mtp_projection(ctx, &s, false));
                run.append(&layer::forward(ctx, &s, s.model.mtp_layer_kind(), false));
                run.append(&head);
            }
        }
        run
    }

    /// Whether a pass waits for a comparison of what the one before it saw.
    fn compares_scales(&self) -> bool {
        let s = &self.sizes;
        s.stack.compares_scales && s.training.recipe == Recipe::Fp8Delayed
    }

    fn backward(&mut self, ctx: &mut Context<'_>, chunk: &Chunk, kind: Kind) -> Run {
        let (gradients, last) = (kind.gradients(), kind.completes());
        let s = self.sizes.clone();
        let kinds: Vec<LayerKind> = chunk.kinds().collect();
        let mut run = Run::default();
        let gathers = self.gathers_always() && gradients != Gradients::Weight;
        let reduces = gradients != Gradients::Input
            && (self.gathers_always() || (last && s.stack.overlap.gradient_reduce));
        let mut bucket = Bucket::default();
        if !chunk.last && gradients != Gradients::Weight && self.scatters_messages() {
            run.append(&layer::gather_message(ctx, &s));
        }
        if chunk.last {
            let modules = s.model.prediction_modules();
            for uses in 0..modules {
                let head = layer::head(ctx, &s, Direction::Backward, gradients, uses);
                run.append(&head);
                let again = s.recomputes_modules() && gradients != Gradients::Weight;
                if again {
                    run.append(&layer::mtp_projection(ctx, &s, true));
                }
                let kind = s.model.mtp_layer_kind();
                run.append(&layer::recomputed_backward(ctx, &s, kind, gradients, again));
                run.append(&layer::mtp_projection_backward(ctx, &s, gradients));
                if gradients != Gradients::Weight {
                    run.append(&layer::embedding(ctx, &s, Direction::Backward));
                }
                if reduces {
                    bucket.parameters = bucket.parameters + mtp_parameters(&s);
                }
            }
            if kind.defers() {
                let inputs = layer::head(ctx, &s, Direction::Backward, Gradients::Input, 0);
                run.append(&inputs);
            } else {
                let head = layer::head(ctx, &s, Direction::Backward, gradients, modules);
                run.append(&head);
            }
            if reduces && !self.wide_parameters_last() {
                bucket.parameters.dense +=
                    last_tables(&s, chunk) - self.output_parameters_put_off();
            }
        }
        let recomputed = recomputed_layers(&s, chunk);
        let reloaded = if gradients == Gradients::Weight {
            0
        } else {
            s.stack.activation_offload.layers(chunk.len(), chunk.last)
        };
        let reload = |ctx: &mut Context<'_>, run: &mut Run, i: usize| {
            ((i as u64) < reloaded).then(|| {
                let again = (i as u64) < recomputed;
                self.copy(ctx, run, kinds[i], again, Stream::Reload)
            })
        };
        // What a layer needs comes back while the layer after it runs.
        let mut back = match kinds.len() {
            0 => None,
            layers => reload(ctx, &mut run, layers - 1),
        };
        let mut templates: BTreeMap<(LayerKindKey, bool), Run> = BTreeMap::new();
        let mut ready = match kinds.last() {
            Some(kind) if gathers => {
                self.gather_parameters(ctx, &mut run, layer_parameters(&s, *kind), vec![])
            }
            _ => vec![],
        };
        for (i, kind) in kinds.iter().enumerate().rev() {
            let this = std::mem::take(&mut ready);
            if gathers && i > 0 {
                let deps = run.after_compute();
                ready =
                    self.gather_parameters(ctx, &mut run, layer_parameters(&s, kinds[i - 1]), deps);
            }
            run.exits.extend(this);
            run.exits.extend(back.take());
            if i > 0 {
                back = reload(ctx, &mut run, i - 1);
            }
            let again = (i as u64) < recomputed && gradients != Gradients::Weight;
            let template = templates
                .entry(((*kind).into(), again))
                .or_insert_with(|| layer::recomputed_backward(ctx, &s, *kind, gradients, again));
            run.append(template);
            if reduces {
                self.reduce_full_bucket(ctx, &mut run, &mut bucket, layer_parameters(&s, *kind));
            }
        }
        if chunk.first && gradients != Gradients::Weight {
            run.append(&layer::embedding(ctx, &s, Direction::Backward));
        }
        if chunk.first
            && let Some(encoder) = &s.encoder
        {
            let bucket = reduces.then_some(&mut bucket);
            self.encode_back(ctx, &mut run, encoder, gradients, gathers, bucket);
        }
        if reduces && self.wide_parameters_last() {
            bucket.parameters.dense += table_parameters(&s, chunk);
            if chunk.last {
                bucket.parameters.dense -= self.output_parameters_put_off();
            }
        } else if reduces && chunk.first {
            bucket.parameters.dense += embedding_parameters(&s);
        }
        if reduces {
            self.reduce_gradients(ctx, &mut run, bucket.parameters);
        }
        run
    }

    /// Adds gradients to those that are to be reduced, and reduces them where they fill a bucket.
    fn reduce_full_bucket(
        &self,
        ctx: &mut Context<'_>,
        run: &mut Run,
        bucket: &mut Bucket,
        parameters: RankParameters,
    ) {
        bucket.parameters = bucket.parameters + parameters;
        if self.fills_bucket(bucket.parameters) {
            self.reduce_gradients(ctx, run, std::mem::take(&mut bucket.parameters));
        }
    }

    /// Whether so many parameters are a bucket. Whoever gathers for each layer also reduces for each.
    fn fills_bucket(&self, parameters: RankParameters) -> bool {
        let stack = self.sizes.stack;
        let bytes = (parameters.dense + parameters.expert) * stack.gradient_bytes;
        self.gathers_always() || bytes >= stack.bucket.get()
    }

    /// Layers whose parameters are gathered together, in the order of use: the first of each group and the
    /// parameters of all. They are those of one bucket of gradients, which are filled from the last layer on
    /// (Megatron-Core, `_ParamAndGradBuffer` and `start_param_sync`).
    fn gathered_together(&self, kinds: &[LayerKind]) -> Vec<(usize, RankParameters)> {
        let mut groups = Vec::new();
        let mut bucket = RankParameters::default();
        for (i, kind) in kinds.iter().enumerate().rev() {
            bucket = bucket + layer_parameters(&self.sizes, *kind);
            if i == 0 || self.fills_bucket(bucket) {
                groups.push((i, std::mem::take(&mut bucket)));
            }
        }
        groups.reverse();
        groups
    }

    /// The vision encoder's forward pass. Whoever gathers for each layer does so for its layers too, one
    /// ahead; what is frozen is gathered only where it is sharded.
    fn encode(&self, ctx: &mut Context<'_>, run: &mut Run, encoder: &Encoder, gathers: bool) {
        let sizes = encoder.sizes();
        let gather = |ctx: &mut Context<'_>,
                      run: &mut Run,
                      parameters: RankParameters,
                      trained: bool,
                      deps: Vec<u32>| {
            if gathers && (trained || self.gathers_always()) {
                self.gather_parameters(ctx, run, parameters, deps)
            } else {
                vec![]
            }
        };
        let trains = encoder.trains();
        let [before, behind] = encoder.outside_layers();
        let gathered = gather(ctx, run, before, trains, vec![]);
        run.exits.extend(gathered);
        let patches = vision::patches(ctx, encoder, Direction::Forward, Gradients::Both);
        run.append(&patches);
        let kinds: Vec<LayerKind> = encoder.kinds().collect();
        let mut templates: BTreeMap<LayerKindKey, Run> = BTreeMap::new();
        let mut ready = match kinds.first() {
            Some(kind) => gather(ctx, run, encoder.layer(*kind), trains, vec![]),
            None => vec![],
        };
        for (i, kind) in kinds.iter().enumerate() {
            let this = std::mem::take(&mut ready);
            if let Some(next) = kinds.get(i + 1) {
                let deps = if self_limits(i) {
                    run.after_compute()
                } else {
                    vec![]
                };
                ready = gather(ctx, run, encoder.layer(*next), trains, deps);
            }
            run.exits.extend(this);
            let template = templates
                .entry((*kind).into())
                .or_insert_with(|| layer::forward(ctx, &sizes, *kind, false));
            run.append(template);
        }
        let gathered = gather(ctx, run, behind, encoder.trains_projector(), vec![]);
        run.exits.extend(gathered);
        let projector = vision::projector(ctx, encoder, Direction::Forward, Gradients::Both);
        run.append(&projector);
    }

    /// Its backward pass, as far as it is trained. `bucket`: its gradients are complete now.
    fn encode_back(
        &self,
        ctx: &mut Context<'_>,
        run: &mut Run,
        encoder: &Encoder,
        gradients: Gradients,
        gathers: bool,
        mut bucket: Option<&mut Bucket>,
    ) {
        if !encoder.trains_projector() {
            return;
        }
        let sizes = encoder.sizes();
        let [_, behind] = encoder.outside_layers();
        if gathers {
            let gathered = self.gather_parameters(ctx, run, behind, vec![]);
            run.exits.extend(gathered);
        }
        let projector = vision::projector(ctx, encoder, Direction::Backward, gradients);
        run.append(&projector);
        if let Some(bucket) = bucket.as_deref_mut() {
            self.reduce_full_bucket(ctx, run, bucket, encoder.behind());
        }
        if !encoder.trains() {
            return;
        }
        let kinds: Vec<LayerKind> = encoder.kinds().collect();
        let again = encoder.recomputes_layers() && gradients != Gradients::Weight;
        let mut templates: BTreeMap<LayerKindKey, Run> = BTreeMap::new();
        let mut ready = match kinds.last() {
            Some(kind) if gathers => self.gather_parameters(ctx, run, encoder.layer(*kind), vec![]),
            _ => vec![],
        };
        for (i, kind) in kinds.iter().enumerate().rev() {
            let this = std::mem::take(&mut ready);
            if gathers && i > 0 {
                let deps = run.after_compute();
                ready = self.gather_parameters(ctx, run, encoder.layer(kinds[i - 1]), deps);
            }
            run.exits.extend(this);
            let template = templates.entry((*kind).into()).or_insert_with(|| {
                layer::recomputed_backward(ctx, &sizes, *kind, gradients, again)
            });
            run.append(template);
            if let Some(bucket) = bucket.as_deref_mut() {
                self.reduce_full_bucket(ctx, run, bucket, encoder.layer(*kind));
            }
        }
        let patches = vision::patches(ctx, encoder, Direction::Backward, gradients);
        run.append(&patches);
        if let Some(bucket) = bucket {
            bucket.parameters = bucket.parameters + encoder.before();
        }
    }

    /// Adds the copy of what one layer keeps to the host's memory, or back, and returns its node.
    fn copy(
        &self,
        ctx: &mut Context<'_>,
        run: &mut Run,
        kind: LayerKind,
        again: bool,
        stream: Stream,
    ) -> u32 {
        let bytes = Bytes::new(memory::layer_offload(&self.sizes, kind, again));
        let label = if stream == Stream::Offload {
            "activation offload"
        } else {
            "activation reload"
        };
        let id = ctx.transfer(label, CommKind::Data, None, Spec::HostCopy(bytes), 0);
        let deps = run.after_compute();
        run.push_aside(Work::Copy(id), stream, deps)
    }

    /// Adds the all-gathers of one layer's parameters and returns their nodes.
    fn gather_parameters(
        &self,
        ctx: &mut Context<'_>,
        run: &mut Run,
        parameters: RankParameters,
        deps: Vec<u32>,
    ) -> Vec<u32> {
        self.gather_in(
            ctx,
            run,
            parameters,
            self.sizes.stack.parameter_gather_bytes,
            deps,
        )
    }

    /// The same of `count` dense parameters that are never kept in 8 bits.
    fn gather_wide(&self, ctx: &mut Context<'_>, run: &mut Run, count: u64) -> Vec<u32> {
        let parameters = RankParameters::dense(count);
        let bytes = self.sizes.stack.parameter_gather_bytes.max(WIDE_BYTES);
        self.gather_in(ctx, run, parameters, bytes, vec![])
    }

    /// The same at so many bytes for each.
    fn gather_in(
        &self,
        ctx: &mut Context<'_>,
        run: &mut Run,
        parameters: RankParameters,
        bytes: u64,
        deps: Vec<u32>,
    ) -> Vec<u32> {
        let mut nodes = Vec::new();
        for (slot, count, ranks) in [
            (GroupSlot::Shard, parameters.dense, self.shard),
            (
                GroupSlot::ExpertData,
                parameters.expert,
                self.expert_data_ranks(),
            ),
        ] {
            if count == 0 || ranks == 1 {
                continue;
            }
            let spec = if self.sizes.stack.zero_whole_tensors {
                self.owners_in_turn(count, bytes, ranks)
            } else {
                Spec::Collective(CollectiveOp::AllGather, Bytes::new(count * bytes))
            };
            let sms = self.sizes.stack.communication_sms;
            let id = ctx.transfer(
                "parameter all-gather",
                CommKind::Data,
                Some(slot),
                spec,
                sms,
            );
            nodes.push(run.push_aside(Work::Collective(slot, id), Stream::Data, deps.clone()));
        }
        nodes
    }

    fn expert_data_ranks(&self) -> u32 {
        let p = self.sizes.plan;
        p.tensor * p.context * p.data / (p.expert * p.expert_tensor)
    }

    /// Adds the reduction of gradients that are complete now.
    fn reduce_gradients(&self, ctx: &mut Context<'_>, run: &mut Run, parameters: RankParameters) {
        let deps = run.after_compute();
        for (slot, spec) in self.reductions(parameters) {
            let sms = self.sizes.stack.communication_sms;
            let id = ctx.transfer("gradient reduce", CommKind::Data, Some(slot), spec, sms);
            run.push_aside(Work::Collective(slot, id), Stream::Data, deps.clone());
        }
    }

    /// Owners of whole tensors take their turns: each with its part of `count` parameters, as many
    /// of the `ranks` as these are of all.
    fn owners_in_turn(&self, count: u64, bytes: u64, ranks: u32) -> Spec {
        let plan = self.sizes.plan;
        let shards = u64::from(plan.tensor) * u64::from(plan.pipeline);
        let all = (self.sizes.model.parameters_total() / shards).max(1);
        let owners = (u64::from(ranks) * count).div_ceil(all).max(1);
        let owners = owners.min(u64::from(ranks));
        Spec::OwnersInTurn(Bytes::new((count * bytes).div_ceil(owners)), owners)
    }

    /// Which collectives reduce the gradients of `parameters`, in order.
    fn reductions(&self, parameters: RankParameters) -> Vec<(GroupSlot, Spec)> {
        let each = self.sizes.stack.gradient_bytes;
        let whole = |op, count: u64| Spec::Collective(op, Bytes::new(count * each));
        let mut list = Vec::new();
        let sharded = self.zero() != Zero::Stage0;
        let data = self.data_ranks();
        let scattered = |count: u64, ranks: u32| {
            if self.sizes.stack.zero_whole_tensors {
                self.owners_in_turn(count, each, ranks)
            } else {
                whole(CollectiveOp::ReduceScatter, count)
            }
        };
        if parameters.dense > 0 && data > 1 {
            if sharded && self.shard > 1 {
                list.push((GroupSlot::Shard, scattered(parameters.dense, self.shard)));
                if self.shard < data {
                    let shard = parameters.dense.div_ceil(u64::from(self.shard));
                    list.push((GroupSlot::Replica, whole(CollectiveOp::AllReduce, shard)));
                }
            } else {
                let all = whole(CollectiveOp::AllReduce, parameters.dense);
                list.push((GroupSlot::Data, all));
            }
        }
        if parameters.expert > 0 && self.expert_data_ranks() > 1 {
            let spec = if sharded {
                scattered(parameters.expert, self.expert_data_ranks())
            } else {
                whole(CollectiveOp::AllReduce, parameters.expert)
            };
            list.push((GroupSlot::ExpertData, spec));
        }
        list
    }

    fn program(
        &mut self,
        ctx: &mut Context<'_>,
        stage: u32,
        order: &[Pass],
        stalls: &Stalls,
    ) -> Program {
        let chunks = self.stage_chunks(stage);
        let last_micro_batch: Vec<u32> = (0..self.chunks_per_stage())
            .map(|c| last_backward(order, c))
            .collect();
        let mut seen = vec![false; chunks.len()];
        let mut emit = Emitter {
            program: Program::default(),
            stages: self.stages(),
            positions: (0..self.chunks_per_stage())
                .map(|c| self.position(stage, c))
                .collect(),
            last_position: self.layout.chunks.len() as u32 - 1,
            dualpipe: self.dualpipe(),
            asynchronous: self.sends_asynchronously(),
            asks_early: self.asks_early(),
            message: TransferId(0),
            last_compute: None,
            pending: Vec::new(),
            waits: Vec::new(),
            ready: vec![Vec::new(); chunks.len()],
            offloaded: BTreeMap::new(),
            issued: [None; Stream::COUNT],
            stalls: Vec::new(),
        };
        let mut together = Together::new(self, stage, order);
        let first_apart = self.gathers_beside_optimizer();
        let others_apart = self.aligns_gathers();
        let reduced_apart = self.aligns_reductions();
        let deferred = self.deferred_output_gradients();
        if self.stages() > 1 {
            emit.message = ctx.transfer(
                "stage to stage",
                CommKind::Pipeline,
                None,
                Spec::Message(self.message()),
                MESSAGE_SMS,
            );
        }
        let kept: Vec<u64> = chunks
            .iter()
            .map(|chunk| memory::chunk_activations(&self.sizes, chunk))
            .collect();
        for (place, pass) in order.iter().enumerate() {
            for chunk in together.gathers_before(*pass) {
                let run = self.chunk_gather(ctx, &chunks[chunk as usize]);
                emit.ready[chunk as usize] = emit.aside(&run);
            }
            let waits = |stall: &Stall| stall.time > SimDuration::ZERO;
            let of_meeting = stalls.within(place).iter();
            emit.stalls = of_meeting
                .map(|stall| waits(stall).then(|| ctx.stall(*stall)))
                .collect();
            let start = emit.program.tasks.len();
            let gathered_apart = |c: u32| if c == 0 { first_apart } else { others_apart };
            let mut forward_kind = |c: u32| {
                if std::mem::replace(&mut seen[c as usize], true) || gathered_apart(c) {
                    Kind::Forward
                } else {
                    Kind::ForwardFirst
                }
            };
            let backward_kind = |last: bool, micro_batch: u32, chunk: u32| {
                let defers = chunks[chunk as usize].last && u64::from(micro_batch) < deferred;
                Kind::backward(last && !reduced_apart, defers)
            };
            match *pass {
                Pass::Forward { micro_batch, chunk } => {
                    let kind = forward_kind(chunk);
                    let run = self.run(ctx, &chunks[chunk as usize], kind);
                    emit.forward(&run, micro_batch, chunk);
                }
                Pass::Backward { micro_batch, chunk } => {
                    let last = last_micro_batch[chunk as usize] == micro_batch;
                    let kind = backward_kind(last, micro_batch, chunk);
                    let run = self.run(ctx, &chunks[chunk as usize], kind);
                    emit.backward(&run, micro_batch, chunk);
                }
                Pass::InputGradient { micro_batch, chunk } => {
                    let run = self.run(ctx, &chunks[chunk as usize], Kind::InputGradient);
                    emit.backward(&run, micro_batch, chunk);
                }
                Pass::WeightGradient { micro_batch, chunk } => {
                    let last = last_micro_batch[chunk as usize] == micro_batch;
                    let kind = if last {
                        Kind::WeightGradientLast
                    } else {
                        Kind::WeightGradient
                    };
                    let run = self.run(ctx, &chunks[chunk as usize], kind);
                    emit.plain(&run, micro_batch);
                }
                Pass::Overlapped { forward, backward } => {
                    let kind = forward_kind(forward.1);
                    let f = self.run(ctx, &chunks[forward.1 as usize], kind);
                    let last = last_micro_batch[backward.1 as usize] == backward.0;
                    let kind = backward_kind(last, backward.0, backward.1);
                    let b = self.run(ctx, &chunks[backward.1 as usize], kind);
                    let order = self.weave(ctx, &f, &b);
                    emit.overlapped(&order, (&f, forward), (&b, backward));
                }
            }
            emit.mark((place as u32, *pass), start, &kept);
            if self.compares_scales() && !matches!(pass, Pass::WeightGradient { .. }) {
                let told = emit.aside(&layer::compare_scales(ctx, &self.sizes, chunks[0].len()));
                emit.pending.extend(told);
            }
            for chunk in together.reduces_after(*pass) {
                let run = self.chunk_reduction(ctx, &chunks[chunk as usize]);
                emit.aside(&run);
            }
        }
        for chunk in together.rest() {
            let run = self.chunk_reduction(ctx, &chunks[chunk as usize]);
            emit.aside(&run);
        }
        if let Some(run) = self.output_gradients_left(ctx, &chunks) {
            emit.plain(&run, 0);
        }
        let end = self.step_end(ctx, &chunks);
        emit.plain(&end, 0);
        emit.program
    }

    /// The all-gathers of all of a chunk's parameters.
    fn chunk_gather(&self, ctx: &mut Context<'_>, chunk: &Chunk) -> Run {
        let mut run = Run::default();
        self.gather_parameters(ctx, &mut run, chunk_parameters(&self.sizes, chunk), vec![]);
        run
    }

    /// The reductions of all of a chunk's gradients.
    fn chunk_reduction(&self, ctx: &mut Context<'_>, chunk: &Chunk) -> Run {
        let mut run = Run::default();
        let mut parameters = chunk_parameters(&self.sizes, chunk);
        if chunk.last {
            parameters.dense -= self.output_parameters_put_off();
        }
        self.reduce_gradients(ctx, &mut run, parameters);
        run
    }

    /// Micro-batches whose weight gradient of the output layer waits for the end of the last stage's passes.
    pub fn deferred_output_gradients(&self) -> u64 {
        deferred_output_gradients(&self.sizes)
    }

    /// Whether that is all of them.
    pub fn defers_all_output_gradients(&self) -> bool {
        self.deferred_output_gradients() == self.setup.training.micro_batches()
    }

    /// Parameters of the output layer whose gradients are not there yet when the last backward pass is done.
    fn output_parameters_put_off(&self) -> u64 {
        match self.deferred_output_gradients() {
            0 => 0,
            _ => logits_table(&self.sizes),
        }
    }

    /// The weight gradients of the output layer that a stage with these chunks has put off, and their reduction.
    pub fn output_gradients_left(&self, ctx: &mut Context<'_>, chunks: &[Chunk]) -> Option<Run> {
        let count = self.deferred_output_gradients();
        if count == 0 || !chunks.iter().any(|chunk| chunk.last) {
            return None;
        }
        let s = &self.sizes;
        let one = layer::head(ctx, s, Direction::Backward, Gradients::Weight, 0);
        let mut run = Run::default();
        for _ in 0..count {
            run.append(&one);
        }
        if s.stack.overlap.gradient_reduce {
            let parameters = RankParameters::dense(logits_table(s));
            self.reduce_gradients(ctx, &mut run, parameters);
        }
        Some(run)
    }

    /// What follows the last backward pass: the rest of the gradient reduction, the gradient norm,
    /// the optimizer, and the parameters' way back.
    pub fn step_end(&self, ctx: &mut Context<'_>, chunks: &[Chunk]) -> Run {
        let s = &self.sizes;
        let parameters = stage_parameters(s, chunks);
        let reduced_already = s.stack.overlap.gradient_reduce || self.gathers_always();
        let mut b = Builder::new(ctx);
        let mut last = None;
        if !reduced_already {
            for (slot, spec) in self.reductions(parameters) {
                let sms = s.stack.communication_sms;
                last = Some(b.collective(
                    "gradient reduce",
                    CommKind::Data,
                    slot,
                    Stream::Data,
                    spec,
                    sms,
                ));
            }
        }
        if self.has_replicas() {
            // The norm over all gradients; the host looks at it before it steps. It follows all
            // reductions on its stream.
            let spec = Spec::Collective(CollectiveOp::AllReduce, Bytes::new(8));
            let slot = if self.data_ranks() == 1 {
                GroupSlot::ExpertData
            } else if self.shard > 1 {
                GroupSlot::Shard
            } else {
                GroupSlot::Data
            };
            let norm = b.collective("gradient norm", CommKind::Data, slot, Stream::Data, spec, 0);
            b.host_waits(norm);
            last = Some(norm);
        }
        if let Some(last) = last {
            b.wait(last);
        }
        self.sum_table_gradients(&mut b, chunks);
        b.label("optimizer");
        let mut run = match chunks {
            [first, others @ ..] if self.gathers_beside_optimizer() => {
                let first = chunk_parameters(s, first);
                b.extend(self.optimizer(first));
                let mut run = b.finish();
                let deps = run.after_compute();
                self.gather_parameters(ctx, &mut run, first, deps);
                let mut rest = Builder::new(ctx);
                rest.label("optimizer");
                rest.extend(self.optimizer(stage_parameters(s, others)));
                run.append(&rest.finish());
                run
            }
            _ => {
                b.extend(self.optimizer(parameters));
                b.finish()
            }
        };
        if let Some(optimizer) = ctx.segments.last_mut() {
            // What the host does besides launching comes once per step.
            optimizer.launch += on_host(s.stack.step_overhead, self.setup);
            optimizer.launch += self.host_update(parameters);
        }
        let gathers_now =
            matches!(self.zero(), Zero::Stage1 | Zero::Stage2) && !self.gathers_first();
        if gathers_now && self.has_replicas() {
            let deps = run.after_compute();
            self.gather_parameters(ctx, &mut run, parameters, deps);
        }
        run
    }

    /// The first and the last stage add up what they have of the gradient of a table that both keep: all of it on each
    /// rank (Megatron-Core, `_allreduce_word_embedding_grads`), or its shard where gradients are sharded. Between two, an
    /// all-reduce is a message each way. The norm comes after it there, so the host waits for it as well.
    fn sum_table_gradients(&self, b: &mut Builder<'_, '_>, chunks: &[Chunk]) {
        let s = &self.sizes;
        let copy = match self.zero() {
            Zero::Stage2 | Zero::Stage3 => table_copy(s).div_ceil(u64::from(self.shard)),
            _ => table_copy(s),
        };
        if copy == 0 {
            return;
        }
        let (peer, sends, receives) = if chunks.iter().any(|chunk| chunk.first) {
            // Around the pipeline: the last stage is the one before the first.
            (
                Peer::Previous,
                Stream::SendGradient,
                Stream::ReceiveActivation,
            )
        } else if chunks.iter().any(|chunk| chunk.last) {
            (Peer::Next, Stream::SendActivation, Stream::ReceiveGradient)
        } else {
            return;
        };
        let bytes = Bytes::new(copy * s.stack.gradient_bytes);
        let (label, sms) = ("table gradient reduce", s.stack.communication_sms);
        let message = Spec::Message(bytes);
        let sent = b.message(label, message, sms, sends, |id| Work::Send(peer, id));
        let received = b.message(label, message, sms, receives, |id| Work::Receive(peer, id));
        if self.has_replicas() {
            b.host_waits(received);
        }
        b.wait(sent);
        b.wait(received);
    }

    /// Time of the host's part of the update: gradients come down, states are read and written in
    /// the host's memory, weights go up, one after the other.
    fn host_update(&self, parameters: RankParameters) -> SimDuration {
        let stack = self.sizes.stack;
        let mine = sharded_parameters(
            self.zero(),
            parameters,
            self.shard,
            self.expert_data_ranks(),
        );
        let count = stack.optimizer_on_host(mine) as f64;
        let link = self.setup.cluster.node.accelerator.host_bandwidth.as_f64();
        let over = count * (stack.gradient_bytes + 2) as f64 / link;
        let states = count * (stack.gradient_bytes + 2 * stack.optimizer_bytes + 2) as f64;
        SimDuration::from_secs_f64(over + states / HOST_MEMORY)
    }

    fn optimizer(&self, parameters: RankParameters) -> Vec<Operation> {
        let stack = self.sizes.stack;
        let mine = sharded_parameters(
            self.zero(),
            parameters,
            self.shard,
            self.expert_data_ranks(),
        );
        let all = parameters.dense + parameters.expert;
        // What lies on the host is updated there.
        let here = mine - stack.optimizer_on_host(mine);
        // Norm over the gradients, the update, and clearing the gradient buffer for the next step.
        vec![
            copied(Bytes::new(mine * stack.gradient_bytes), Bytes::ZERO, 2),
            copied(
                Bytes::new(here * (stack.gradient_bytes + stack.optimizer_bytes)),
                Bytes::new(here * (stack.optimizer_bytes + 2)),
                4,
            ),
            copied(Bytes::ZERO, Bytes::new(all * stack.gradient_bytes), 1),
        ]
    }
}

/// Parameters whose optimizer state one rank keeps.
pub(crate) fn sharded_parameters(
    zero: Zero,
    parameters: RankParameters,
    shard: u32,
    expert_data_ranks: u32,
) -> u64 {
    if zero == Zero::Stage0 {
        parameters.dense + parameters.expert
    } else {
        parameters.dense.div_ceil(u64::from(shard))
            + parameters.expert.div_ceil(u64::from(expert_data_ranks))
    }
}

/// Rate at which the host reads and writes states for one of its eight GPUs while it updates them
/// [bytes/s]: half of two sockets' DDR5; from the slowdown of Qwen3-30B-A3B with its optimizer on the
/// host (Megatron-Bridge 067f987, skills/nemo-mbridge-perf-cpu-offloading), whose batch is not
/// published.
const HOST_MEMORY: f64 = 35e9;

/// SMs of a point-to-point kernel: NCCL gives a pair of ranks two channels per NIC (NVIDIA/nccl
/// src/graph/paths.cc, p2pnChannelsPerPeer; from memory, unverified).
const MESSAGE_SMS: u32 = 2;

/// Layers of a chunk whose forward pass is repeated in the backward pass: the first ones.
fn recomputed_layers(s: &Sizes<'_>, chunk: &Chunk) -> u64 {
    match s.training.recompute {
        Recompute::Full => chunk.len(),
        Recompute::FullLayers(n) => u64::from(n).min(chunk.len()),
        // Priced as so many whole layers, which repeat as many FLOPs.
        Recompute::Operators => (every_second_product(s.model) * chunk.len() as f64).round() as u64,
        _ => 0,
    }
}

/// Share of a layer's forward FLOPs that [`Recompute::Operators`] repeats: of the products q, k, v, o, gate, up,
/// down every second one.
fn every_second_product(model: &Model) -> f64 {
    let Attention::Grouped {
        heads,
        kv_heads,
        head_dim,
        ..
    } = model.attention
    else {
        return 0.5;
    };
    let q = (heads * head_dim) as f64;
    let kv = (kv_heads * head_dim) as f64;
    let ffn = model.ffn as f64;
    (kv + q + ffn) / (2.0 * q + 2.0 * kv + 3.0 * ffn)
}

/// From the second layer on, parameters are gathered one layer ahead and not earlier.
fn self_limits(layer: usize) -> bool {
    layer > 0
}

#[derive(Default)]
struct Bucket {
    parameters: RankParameters,
}

fn last_backward(order: &[Pass], chunk: u32) -> u32 {
    order
        .iter()
        .rev()
        .find_map(|pass| match *pass {
            Pass::Backward {
                micro_batch,
                chunk: c,
            }
            | Pass::WeightGradient {
                micro_batch,
                chunk: c,
            }
            | Pass::Overlapped {
                backward: (micro_batch, c),
                ..
            } if c == chunk => Some(micro_batch),
            _ => None,
        })
        .expect("every chunk has a backward pass")
}

/// Writes runs into a program, with the messages between stages around them.
struct Emitter {
    program: Program,
    stages: u32,
    /// Model position of each of the stage's chunks.
    positions: Vec<u32>,
    last_position: u32,
    dualpipe: bool,
    asynchronous: bool,
    asks_early: bool,
    message: TransferId,
    last_compute: Option<u32>,
    /// What the next pass must wait for besides its own input (synchronous sends).
    pending: Vec<u32>,
    /// What the task that is being written waits for.
    waits: Vec<u32>,
    /// Gathers that the next forward pass of each chunk waits for.
    ready: Vec<Vec<u32>>,
    /// The last copy to the host of each micro-batch and chunk.
    offloaded: BTreeMap<(u32, u32), u32>,
    /// The last task on each stream, but for messages.
    issued: [Option<u32>; Stream::COUNT],
    /// What the next pass waits for the allocator, before each meeting of the ranks.
    stalls: Vec<Option<Stalled>>,
}

/// When the stages of an interleaved pipeline move parameters and gradients together
/// (Megatron-Core, `forward_backward_pipelining_with_interleaving`). A stage counts its passes from
/// the first one, and is as many passes behind the first stage as it is stages away: it gathers for
/// a pass that is so much further on, and reduces after one that is so much longer ago.
struct Together {
    stage: u64,
    forwards: u64,
    backwards: u64,
    /// Pass in which the parameters of a chunk are asked for.
    gathers: Vec<(u64, u32)>,
    /// Pass after which the gradients of a chunk are reduced.
    reductions: Vec<(u64, u32)>,
}

impl Together {
    fn new(compiler: &Compiler<'_>, stage: u32, order: &[Pass]) -> Self {
        let of_order = |chunk_of: &dyn Fn(&Pass) -> Option<u32>| -> Vec<u32> {
            order.iter().filter_map(chunk_of).collect()
        };
        let forwards = of_order(&|pass| forward_of(*pass));
        let backwards = of_order(&|pass| backward_of(*pass));
        let stage = u64::from(stage);
        let chunks = compiler.chunks_per_stage();
        let mut gathers = Vec::new();
        if compiler.aligns_gathers() {
            // The first chunk gathers for itself, the second at once, each other when the one before
            // begins on the first stage.
            gathers.extend((chunks > 1).then_some((0, 1)));
            for chunk in 2..chunks {
                let before = forwards.iter().position(|c| *c == chunk - 1);
                let before = before.expect("every chunk has a forward pass") as u64;
                gathers.push((before.saturating_sub(stage), chunk));
            }
        }
        let mut reductions = Vec::new();
        if compiler.aligns_reductions() {
            for chunk in 0..chunks {
                let last = backwards.iter().rposition(|c| *c == chunk);
                let last = last.expect("every chunk has a backward pass") as u64;
                reductions.push((last + stage, chunk));
            }
            reductions.sort_unstable();
        }
        Self {
            stage,
            forwards: 0,
            backwards: 0,
            gathers,
            reductions,
        }
    }

    /// Chunks whose parameters are asked for before this pass.
    fn gathers_before(&mut self, pass: Pass) -> Vec<u32> {
        if forward_of(pass).is_none() {
            return Vec::new();
        }
        let now = self.forwards;
        self.forwards += 1;
        take_due(&mut self.gathers, now)
    }

    /// Chunks whose gradients are reduced after this pass.
    fn reduces_after(&mut self, pass: Pass) -> Vec<u32> {
        if backward_of(pass).is_none() {
            return Vec::new();
        }
        let now = self.backwards;
        self.backwards += 1;
        take_due(&mut self.reductions, now)
    }

    /// Chunks whose gradients are still to be reduced after the last pass.
    fn rest(&mut self) -> Vec<u32> {
        debug_assert!(self.reductions.len() as u64 <= self.stage.max(1) * 1024);
        take_due(&mut self.reductions, u64::MAX)
    }
}

/// Takes what is due by now out of a list.
fn take_due(list: &mut Vec<(u64, u32)>, now: u64) -> Vec<u32> {
    let due: Vec<u32> = list
        .iter()
        .filter(|(at, _)| *at <= now)
        .map(|(_, chunk)| *chunk)
        .collect();
    list.retain(|(at, _)| *at > now);
    due
}

/// The chunk that a pass runs forward.
fn forward_of(pass: Pass) -> Option<u32> {
    match pass {
        Pass::Forward { chunk, .. } => Some(chunk),
        Pass::Overlapped { forward, .. } => Some(forward.1),
        _ => None,
    }
}

/// The chunk that a pass runs backward.
fn backward_of(pass: Pass) -> Option<u32> {
    match pass {
        Pass::Backward { chunk, .. } => Some(chunk),
        Pass::Overlapped { backward, .. } => Some(backward.1),
        _ => None,
    }
}

/// A wait for the allocator: its segment, and whether the device is through with its work before.
pub(crate) type Stalled = (SegmentId, bool);

struct Cursor<'r> {
    run: &'r Run,
    /// Task of each node that has been written.
    tasks: Vec<u32>,
    entry: Vec<u32>,
    micro_batch: u32,
    /// The chunk that it passes through.
    chunk: u32,
    /// What is waited for the allocator before nodes that are not written yet.
    stalls: VecDeque<(u32, Stalled)>,
}

impl<'r> Cursor<'r> {
    fn new(run: &'r Run, entry: Vec<u32>, micro_batch: u32, chunk: u32) -> Self {
        Self {
            run,
            tasks: Vec::with_capacity(run.nodes.len()),
            entry,
            micro_batch,
            chunk,
            stalls: VecDeque::new(),
        }
    }

    fn done(&self) -> bool {
        self.tasks.len() == self.run.nodes.len()
    }
}

impl Emitter {
    fn write_node(&mut self, cursor: &mut Cursor<'_>) {
        self.stall_before(cursor, cursor.tasks.len() as u32);
        let node = &cursor.run.nodes[cursor.tasks.len()];
        let mut waits = std::mem::take(&mut self.waits);
        waits.clear();
        waits.extend(node.deps.iter().map(|dep| cursor.tasks[*dep as usize]));
        if node.entry {
            waits.extend_from_slice(&cursor.entry);
            if node.stream != Stream::Compute {
                waits.extend(self.last_compute);
            }
        }
        let pass = (cursor.micro_batch, cursor.chunk);
        if node.stream == Stream::Reload {
            // Nothing comes back before all of the pass has left.
            waits.extend(self.offloaded.get(&pass));
        }
        let task = self
            .program
            .push(node.work, node.stream, cursor.micro_batch, &waits);
        self.waits = waits;
        self.program.tasks[task as usize].host_waits = node.host_waits;
        if node.stream == Stream::Compute {
            self.last_compute = Some(task);
        }
        self.issued[node.stream as usize] = Some(task);
        if node.stream == Stream::Offload {
            self.offloaded.insert(pass, task);
        }
        cursor.tasks.push(task);
    }

    fn write_all(&mut self, cursor: &mut Cursor<'_>) {
        self.share_stalls(&mut [cursor]);
        while !cursor.done() {
            self.write_node(cursor);
        }
        self.stall_before(cursor, u32::MAX);
    }

    /// What a message sent after `cursor` must wait for.
    fn after(&self, cursor: &Cursor<'_>) -> Vec<u32> {
        let last = cursor.run.after_compute();
        last.iter()
            .chain(&cursor.run.exits)
            .map(|node| cursor.tasks[*node as usize])
            .collect()
    }

    fn reverse(&self, chunk: u32) -> bool {
        self.dualpipe && chunk == 1
    }

    fn receive(&mut self, stream: Stream, peer: Peer, micro_batch: u32) -> Vec<u32> {
        // A blocking stage asks for its input when it is done with the work before. Schedules
        // beyond 1F1B ask together with earlier sends, which comes to asking early.
        let early = self.asynchronous || self.asks_early;
        let waits: Vec<u32> = if early {
            vec![]
        } else {
            self.last_compute.into_iter().collect()
        };
        vec![self.program.push(
            Work::Receive(peer, self.message),
            stream,
            micro_batch,
            &waits,
        )]
    }

    fn send(&mut self, stream: Stream, peer: Peer, micro_batch: u32, waits: &[u32]) {
        let task = self
            .program
            .push(Work::Send(peer, self.message), stream, micro_batch, waits);
        if !self.asynchronous {
            self.pending.push(task);
        }
    }

    fn forward_input(&mut self, micro_batch: u32, chunk: u32) -> Vec<u32> {
        let mut entry = std::mem::take(&mut self.pending);
        entry.append(&mut self.ready[chunk as usize]);
        if self.stages > 1 && self.positions[chunk as usize] > 0 {
            let (stream, peer) = if self.reverse(chunk) {
                (Stream::ReceiveActivationReverse, Peer::Next)
            } else {
                (Stream::ReceiveActivation, Peer::Previous)
            };
            entry.extend(self.receive(stream, peer, micro_batch));
        }
        entry
    }

    fn forward_output(&mut self, micro_batch: u32, chunk: u32, waits: &[u32]) {
        if self.stages > 1 && self.positions[chunk as usize] < self.last_position {
            let (stream, peer) = if self.reverse(chunk) {
                (Stream::SendActivationReverse, Peer::Previous)
            } else {
                (Stream::SendActivation, Peer::Next)
            };
            self.send(stream, peer, micro_batch, waits);
        }
    }

    fn backward_input(&mut self, micro_batch: u32, chunk: u32) -> Vec<u32> {
        let mut entry = std::mem::take(&mut self.pending);
        if self.stages > 1 && self.positions[chunk as usize] < self.last_position {
            let (stream, peer) = if self.reverse(chunk) {
                (Stream::ReceiveGradientReverse, Peer::Previous)
            } else {
                (Stream::ReceiveGradient, Peer::Next)
            };
            entry.extend(self.receive(stream, peer, micro_batch));
        }
        entry
    }

    fn backward_output(&mut self, micro_batch: u32, chunk: u32, waits: &[u32]) {
        if self.stages > 1 && self.positions[chunk as usize] > 0 {
            let (stream, peer) = if self.reverse(chunk) {
                (Stream::SendGradientReverse, Peer::Next)
            } else {
                (Stream::SendGradient, Peer::Previous)
            };
            self.send(stream, peer, micro_batch, waits);
        }
    }

    /// Notes what the tasks from `start` on were: one pass, and the activations that it keeps or
    /// frees, of those of each chunk.
    fn mark(&mut self, (place, pass): (u32, Pass), start: usize, kept: &[u64]) {
        let of = |chunk: u32| kept[chunk as usize];
        let (kind, micro_batch, chunk, keeps, frees) = match pass {
            Pass::Forward { micro_batch, chunk } => {
                (PassKind::Forward, micro_batch, chunk, of(chunk), 0)
            }
            Pass::Backward { micro_batch, chunk } => {
                (PassKind::Backward, micro_batch, chunk, 0, of(chunk))
            }
            Pass::InputGradient { micro_batch, chunk } => (
                PassKind::InputGradient,
                micro_batch,
                chunk,
                0,
                of(chunk) / 2,
            ),
            Pass::WeightGradient { micro_batch, chunk } => {
                let rest = of(chunk) - of(chunk) / 2;
                (PassKind::WeightGradient, micro_batch, chunk, 0, rest)
            }
            Pass::Overlapped { forward, backward } => {
                let (keeps, frees) = (of(forward.1), of(backward.1));
                (PassKind::Overlapped, forward.0, forward.1, keeps, frees)
            }
        };
        let computes = |task: &Task| task.stream == Stream::Compute;
        let tasks = &self.program.tasks[start..];
        let (Some(first), Some(last)) = (
            tasks.iter().position(computes),
            tasks.iter().rposition(computes),
        ) else {
            return;
        };
        self.program.passes.push(PassMark {
            place,
            kind,
            micro_batch,
            chunk,
            tasks: ((start + first) as u32, (start + last) as u32),
            keeps,
            frees,
        });
    }

    fn forward(&mut self, run: &Run, micro_batch: u32, chunk: u32) {
        let entry = self.forward_input(micro_batch, chunk);
        let mut cursor = Cursor::new(run, entry, micro_batch, chunk);
        self.write_all(&mut cursor);
        let waits = self.after(&cursor);
        self.forward_output(micro_batch, chunk, &waits);
    }

    fn backward(&mut self, run: &Run, micro_batch: u32, chunk: u32) {
        let entry = self.backward_input(micro_batch, chunk);
        let mut cursor = Cursor::new(run, entry, micro_batch, chunk);
        self.write_all(&mut cursor);
        let waits = self.after(&cursor);
        self.backward_output(micro_batch, chunk, &waits);
    }

    /// The host waits for the driver; where memory goes back, after all that it launched. Messages are left out: their other ends may
    /// wait for what this rank has yet to do.
    fn stall(&mut self, (segment, drains): Stalled) {
        let before: Vec<u32> = match drains {
            true => self.issued.iter().flatten().copied().collect(),
            false => Vec::new(),
        };
        let task = self
            .program
            .push(Work::Compute(segment), Stream::Compute, 0, &before);
        self.program.tasks[task as usize].host_waits = drains;
        self.last_compute = Some(task);
    }

    /// Deals out what is waited for the allocator over the passes that are written next, which meet in turns. Where they meet more or
    /// less often than was played, in proportion.
    fn share_stalls(&mut self, cursors: &mut [&mut Cursor<'_>]) {
        let stalls = std::mem::take(&mut self.stalls);
        if stalls.iter().all(Option::is_none) {
            return;
        }
        let meetings = |cursor: &Cursor<'_>| cursor.run.meetings.len();
        let most = cursors.iter().map(|cursor| meetings(cursor)).max();
        let mut turns: Vec<(usize, u32)> = Vec::new();
        for turn in 0..most.unwrap_or(0) {
            for (who, cursor) in cursors.iter().enumerate() {
                let node = cursor.run.meetings.get(turn);
                turns.extend(node.map(|node| (who, *node)));
            }
        }
        for (i, stall) in stalls.iter().enumerate() {
            let Some(stall) = stall else { continue };
            match turns.get(i * turns.len() / stalls.len()) {
                Some((who, node)) => cursors[*who].stalls.push_back((*node, *stall)),
                None => self.stall(*stall),
            }
        }
    }

    /// Writes what is waited for the allocator before a node of a run.
    fn stall_before(&mut self, cursor: &mut Cursor<'_>, node: u32) {
        while let Some((before, stall)) = cursor.stalls.front().copied()
            && before <= node
        {
            self.stall(stall);
            cursor.stalls.pop_front();
        }
    }

    fn plain(&mut self, run: &Run, micro_batch: u32) {
        let entry = std::mem::take(&mut self.pending);
        let mut cursor = Cursor::new(run, entry, micro_batch, 0);
        self.write_all(&mut cursor);
    }

    /// Communication that is asked for between two passes, after what has been computed so far.
    /// Returns its tasks.
    fn aside(&mut self, run: &Run) -> Vec<u32> {
        let after: Vec<u32> = self.last_compute.into_iter().collect();
        let push = |node: &Node| {
            let task = self.program.push(node.work, node.stream, 0, &after);
            self.issued[node.stream as usize] = Some(task);
            task
        };
        run.nodes.iter().map(push).collect()
    }

    /// Forward and backward of different micro-batches, woven into one in the order of [`weave`].
    fn overlapped(
        &mut self,
        order: &[bool],
        (f, forward): (&Run, (u32, u32)),
        (b, backward): (&Run, (u32, u32)),
    ) {
        let f_entry = self.forward_input(forward.0, forward.1);
        let b_entry = self.backward_input(backward.0, backward.1);
        let mut f = Cursor::new(f, f_entry, forward.0, forward.1);
        let mut b = Cursor::new(b, b_entry, backward.0, backward.1);
        self.share_stalls(&mut [&mut f, &mut b]);
        for of_forward in order {
            self.write_node(if *of_forward { &mut f } else { &mut b });
        }
        for cursor in [&mut f, &mut b] {
            self.stall_before(cursor, u32::MAX);
        }
        let waits = self.after(&f);
        self.forward_output(forward.0, forward.1, &waits);
        let waits = self.after(&b);
        self.backward_output(backward.0, backward.1, &waits);
    }
}

/// Weaves two runs into one, so that the communication of one runs beside the computation of the
/// other: whichever can compute first goes first, as far as durations alone tell, and the one that is less far with its
/// communications where both can. Returns whose node comes next, true for the forward run's.
fn weave(duration: impl Fn(&Node) -> SimDuration, f: &Run, b: &Run) -> Vec<bool> {
    let mut threads = [Thread::new(f), Thread::new(b)];
    let mut order = Vec::with_capacity(f.nodes.len() + b.nodes.len());
    let mut clock = Clock::default();
    loop {
        let [f, b] = &threads;
        let forward_first = match (f.done(), b.done()) {
            (true, true) => return order,
            (true, _) => false,
            (_, true) => true,
            _ => {
                let (f_ready, b_ready) = (clock.ready(f), clock.ready(b));
                f_ready < b_ready || (f_ready == b_ready && f.is_not_ahead_of(b))
            }
        };
        let thread = &mut threads[usize::from(!forward_first)];
        let unit = thread.unit();
        order.extend(std::iter::repeat_n(forward_first, unit));
        clock.advance(&duration, thread, unit);
    }
}

/// A run that is woven into another.
struct Thread<'r> {
    run: &'r Run,
    /// When each node would end that is placed.
    ends: Vec<u64>,
    /// How many communications are placed, and are there.
    communications: [usize; 2],
}

impl<'r> Thread<'r> {
    fn new(run: &'r Run) -> Self {
        let communicates = |node: &&Node| node.stream != Stream::Compute;
        Self {
            run,
            ends: Vec::with_capacity(run.nodes.len()),
            communications: [0, run.nodes.iter().filter(communicates).count()],
        }
    }

    fn done(&self) -> bool {
        self.ends.len() == self.run.nodes.len()
    }

    /// Whether no larger part of its communications is placed than of the other's, so that both come to their exchanges in
    /// turns, however many kernels lie between them.
    fn is_not_ahead_of(&self, other: &Self) -> bool {
        let [placed, all] = self.communications;
        let [others_placed, others_all] = other.communications;
        placed * others_all <= others_placed * all
    }

    /// How many nodes are one computation with the communication that follows it.
    fn unit(&self) -> usize {
        let left = &self.run.nodes[self.ends.len()..];
        let mut computations = left
            .iter()
            .enumerate()
            .filter(|(_, node)| node.stream == Stream::Compute);
        computations.nth(1).map_or(left.len(), |(second, _)| second)
    }
}

/// When things would happen if only two runs were there and nothing slowed anything.
#[derive(Default)]
struct Clock {
    free: [u64; Stream::COUNT],
}

impl Clock {
    /// When the next computation of `thread` could start.
    fn ready(&self, thread: &Thread<'_>) -> u64 {
        let node = &thread.run.nodes[thread.ends.len()];
        let deps = node.deps.iter().map(|dep| thread.ends[*dep as usize]);
        deps.max()
            .unwrap_or(0)
            .max(self.free[Stream::Compute as usize])
    }

    /// Takes up the next nodes.
    fn advance(
        &mut self,
        duration: impl Fn(&Node) -> SimDuration,
        thread: &mut Thread<'_>,
        count: usize,
    ) {
        let placed = thread.ends.len();
        for node in &thread.run.nodes[placed..placed + count] {
            let deps = node.deps.iter().map(|dep| thread.ends[*dep as usize]);
            let ready = deps.max().unwrap_or(0);
            let free = &mut self.free[node.stream as usize];
            *free = ready.max(*free) + duration(node).as_picos();
            thread.ends.push(*free);
            thread.communications[0] += usize::from(node.stream != Stream::Compute);
        }
    }
}

/// What a node takes on an idle GPU and idle links; messages are taken as there.
fn alone(ctx: &Context<'_>, node: &Node) -> SimDuration {
    match node.work {
        Work::Compute(id) => ctx.segments[id.0 as usize].time[0],
        Work::Collective(_, id) | Work::Copy(id) => {
            let demands = &ctx.demands[id.0 as usize];
            demands.first().map_or(SimDuration::ZERO, Demand::duration)
        }
        Work::Send(..) | Work::Receive(..) => SimDuration::ZERO,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A pass of layers, each with experts between two exchanges; so many kernels of no length before each computation.
    fn pass(layers: u32, small: usize) -> Run {
        let mut run = Run::default();
        let node = |work, stream, deps| Node {
            work,
            stream,
            deps,
            entry: false,
            host_waits: false,
        };
        for part in 0..2 * layers {
            for _ in 0..small {
                let work = Work::Compute(SegmentId(0));
                run.nodes.push(node(work, Stream::Compute, vec![]));
            }
            let exchanged = run.nodes.iter().rposition(|n| n.stream == Stream::Expert);
            let deps = exchanged.map(|i| i as u32).into_iter().collect();
            let work = Work::Compute(SegmentId(1 + part % 2));
            run.nodes.push(node(work, Stream::Compute, deps));
            let computed = run.nodes.len() as u32 - 1;
            let work = Work::Collective(GroupSlot::Expert, TransferId(0));
            run.nodes.push(node(work, Stream::Expert, vec![computed]));
        }
        run
    }

    /// Whose computations and exchanges follow each other, but for small kernels.
    fn order(f: &Run, b: &Run) -> String {
        let micros = |node: &Node| match node.work {
            Work::Compute(id) => SimDuration::from_micros([0, 200, 300][id.0 as usize]),
            _ => SimDuration::from_micros(150),
        };
        let woven = weave(micros, f, b);
        let mut nodes = [f.nodes.iter(), b.nodes.iter()];
        let of = woven.iter().map(|forward| {
            let node = nodes[usize::from(!forward)].next();
            let node = node.expect("as many as there are");
            let small = matches!(node.work, Work::Compute(SegmentId(0)));
            let letter = if *forward { 'f' } else { 'b' };
            (!small).then_some(letter)
        });
        of.flatten().collect()
    }

    /// Two like passes take turns, and kernels of no length change nothing, in whichever pass they are.
    #[test]
    fn small_kernels_do_not_change_how_passes_are_woven() {
        for layers in 1..5 {
            let plain = order(&pass(layers, 0), &pass(layers, 0));
            assert_eq!(plain, "ffbb".repeat(2 * layers as usize));
            for (forward, backward) in [(1, 0), (0, 1), (3, 0), (0, 5), (2, 2)] {
                let other = order(&pass(layers, forward), &pass(layers, backward));
                assert_eq!(other, plain, "{forward} {backward}");
            }
        }
    }
}
