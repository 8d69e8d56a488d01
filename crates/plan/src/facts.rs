//! What a report must say about a plan besides what the simulation measures.

use crate::memory::MemoryUse;
use rackflow_topology::Cluster;
use rackflow_units::{Bytes, FlopRate, Precision};
use rackflow_workload::Training;

/// One pipeline stage.
#[derive(Debug, Clone, PartialEq)]
pub struct StageFacts {
    /// Layers that it holds.
    pub layers: u64,
    /// Peak memory of one of its ranks.
    pub memory: MemoryUse,
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
    /// Dense bf16 peak of one GPU.
    pub peak_bf16: FlopRate,
    /// Dense peak of one GPU in the recipe's GEMM precision.
    pub peak_native: FlopRate,
    /// The recipe's GEMM precision.
    pub native: Precision,
    /// Stages, first to last.
    pub stages: Vec<StageFacts>,
    /// Memory capacity of one GPU.
    pub memory_capacity: Bytes,
    /// Micro-batches per data-parallel rank.
    pub micro_batches: u64,
    /// Racks, each a range of GPU indices.
    pub racks: Vec<std::ops::Range<u32>>,
}
