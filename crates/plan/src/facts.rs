//! What a report must say about a plan besides what the simulation measures.

use crate::allocator::pressure::Pressure;
use crate::memory::MemoryUse;
use crate::setup::Straggler;
use rackflow_topology::{Cluster, LinkFault};
use rackflow_units::{Bandwidth, Bytes, FlopRate, Precision, SimDuration};
use rackflow_workload::{AllocatorPolicy, Training};

/// Free memory under which a report says how little is left: memory is counted within 4 % in the middle, and
/// with less than some GB the allocator may slow a step.
const ALLOCATOR_MARGIN: Bytes = Bytes::new(4_000_000_000);

/// One pipeline stage.
#[derive(Debug, Clone, PartialEq)]
pub struct StageFacts {
    /// Layers that it holds.
    pub layers: u64,
    /// Peak memory of one of its ranks.
    pub memory: MemoryUse,
    /// Least memory of any accelerator that holds one of its ranks.
    pub capacity: Bytes,
    /// What the allocator does with what is left.
    pub pressure: Pressure,
}

impl StageFacts {
    /// Whether its ranks have the memory that they need.
    pub fn fits(&self) -> bool {
        self.memory.total() <= self.capacity
    }

    /// So close to its capacity that the allocator may thrash: less than 4 GB are left for pieces.
    pub fn is_crowded(&self) -> bool {
        self.free_for_pieces() < ALLOCATOR_MARGIN
    }

    /// Whether its passes wait for the allocator.
    pub fn is_stalled(&self) -> bool {
        self.pressure.time > SimDuration::ZERO
    }

    /// How long its passes would wait for the allocator with segments of the other kind.
    fn waits_otherwise(&self) -> SimDuration {
        self.pressure.otherwise.unwrap_or(self.pressure.time)
    }

    /// Memory that is left.
    pub fn free(&self) -> Bytes {
        self.capacity.saturating_sub(self.memory.total())
    }

    /// What of that is left beside what the allocator is known to hold beyond the tensors.
    pub fn free_for_pieces(&self) -> Bytes {
        self.free().saturating_sub(self.pressure.slack)
    }
}

impl Facts {
    /// What segments of the other kind would gain: place that those of now lack, or time. `None` where they
    /// would have no place, or those of now have it and wait no more than a hundredth longer.
    pub fn gain_of_other_segments(&self) -> Option<OtherSegments> {
        let allocator = self.training.stack.allocator.with_other_segments()?;
        let stages = || self.stages.iter();
        let now = stages().map(|stage| stage.pressure.time).max()?;
        let then = stages().map(StageFacts::waits_otherwise).max()?;
        let gains_place =
            stages().any(|s| s.pressure.lacks_place() && s.pressure.otherwise.is_some());
        (gains_place || then.scale(100, 99) < now).then_some(OtherSegments {
            allocator,
            gains_place,
            now,
            then,
        })
    }
}

/// What segments of the other kind, expandable or not, would gain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OtherSegments {
    /// The allocator that has them.
    pub allocator: AllocatorPolicy,
    /// Whether those of now leave no place on some stage.
    pub gains_place: bool,
    /// The longest that a stage waits for the allocator now.
    pub now: SimDuration,
    /// The longest that one would wait then.
    pub then: SimDuration,
}

/// What a kernel does, as far as pictures tell kernels apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum KernelKind {
    /// A matrix product; its shape is m, n, k.
    Product,
    /// Products of one launch, one for each expert; its shape is rows over all experts, n, k.
    ExpertProduct,
    /// Fused attention; its shape is query positions, key positions, heads.
    Attention,
    /// Whatever only streams memory; no shape.
    Stream,
}

/// All kernels of one name, format and shape in one step, over all GPUs.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct KernelFacts {
    /// The part of the step that they belong to ("attention forward").
    pub label: &'static str,
    /// What they do.
    pub kind: KernelKind,
    /// Format of the operands; none where nothing is multiplied.
    pub precision: Option<Precision>,
    /// Sizes, by kind.
    pub shape: [u64; 3],
    /// They compute what was computed before.
    pub again: bool,
    /// Launches.
    pub launches: f64,
    /// Tensor-core operations.
    pub flops: f64,
    /// Bytes read from and written to memory.
    pub bytes: f64,
    /// Time on the device, alone on all its SMs, in seconds.
    pub seconds: f64,
}

impl KernelFacts {
    /// What tells kernels apart.
    pub(crate) fn key(&self) -> (&'static str, KernelKind, Option<Precision>, [u64; 3], bool) {
        (
            self.label,
            self.kind,
            self.precision,
            self.shape,
            self.again,
        )
    }

    /// Counts `times` of these.
    pub(crate) fn add(&mut self, other: &Self, times: f64) {
        self.launches += other.launches * times;
        self.flops += other.flops * times;
        self.bytes += other.bytes * times;
        self.seconds += other.seconds * times;
    }
}

/// What one GPU may send over each tier of switches, one direction, if all send at once.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Uplinks {
    /// From its leaf to the spines; none where there is one leaf.
    pub leaf: Option<Bandwidth>,
    /// From its pod to the cores; none where there is one pod.
    pub pod: Option<Bandwidth>,
}

/// Constants of a plan that metrics are computed from. FLOPs are of the whole step, all GPUs.
#[derive(Debug, Clone, PartialEq)]
pub struct Facts {
    /// Name of the scenario.
    pub scenario: String,
    /// The hardware.
    pub cluster: Cluster,
    /// The work.
    pub training: Training,
    /// Dead, slow and flapping links.
    pub faults: Vec<LinkFault>,
    /// Slower devices.
    pub stragglers: Vec<Straggler>,
    /// Parameters, all.
    pub parameters: f64,
    /// Parameters that one token meets.
    pub active_parameters: f64,
    /// Model FLOPs of one step, attention over the full square.
    pub model_flops_noncausal: f64,
    /// Model FLOPs of one step, attention over what the mask leaves.
    pub model_flops_causal: f64,
    /// Tensor-core FLOPs executed, recomputation included, masked attention counted causally.
    pub hardware_flops_causal: f64,
    /// The same with attention over the full square.
    pub hardware_flops_noncausal: f64,
    /// Dense bf16 peak of one GPU; of several kinds the mean over all GPUs.
    pub peak_bf16: FlopRate,
    /// Dense peak of one GPU in the recipe's GEMM precision; of several kinds the mean.
    pub peak_native: FlopRate,
    /// The recipe's GEMM precision.
    pub native: Precision,
    /// Stages, first to last.
    pub stages: Vec<StageFacts>,
    /// Memory capacity of one GPU; of several kinds the least.
    pub memory_capacity: Bytes,
    /// Micro-batches per data-parallel rank.
    pub micro_batches: u64,
    /// Racks, each a range of GPU indices.
    pub racks: Vec<std::ops::Range<u32>>,
    /// Kernels of the step, by name, format and shape.
    pub kernels: Vec<KernelFacts>,
    /// Line rate of one GPU's share of its node's NICs, one direction.
    pub nic_share: Bandwidth,
    /// What a GPU may send beyond its leaf.
    pub uplinks: Uplinks,
}
