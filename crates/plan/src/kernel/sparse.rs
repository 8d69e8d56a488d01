//! Sparse attention over a latent cache: an indexer scores all positions cheaply, and each query
//! attends to its best ones (DeepSeek Sparse Attention).

use super::{Generation, KernelCost, Parts, ServingOptions, device, gemm, overlapped};
use rackflow_topology::Accelerator;
use rackflow_units::Precision;

/// Attention of each query to `top_k` positions of its own.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SparseAttention {
    /// Queries: new tokens over all sequences.
    pub queries: u64,
    /// Positions that each attends to, at most; the context where that is shorter.
    pub top_k: u64,
    /// Query heads on this rank.
    pub heads: u64,
    /// Width of the latent (512 in DeepSeek-V3.2).
    pub latent: u64,
    /// Width of the rotary part (64).
    pub rope: u64,
    /// Format of the cache.
    pub kv: Precision,
    /// Whether queries are neighbours in a prompt, whose choices overlap, or alone in a decode step.
    pub prefill: bool,
}

/// Cost of sparse attention. Each query gathers its own latents. Products sustain .65 of the bf16
/// peak in prefill and .41 in decode, where an 8-bit cache is converted on the way
/// (deepseek-ai/FlashMLA 9241ae3: 640 and 410 TFLOP/s on H800, 1450 on B200 in prefill).
///
/// # Panics
/// When `sms` is zero or more than the accelerator has.
pub fn sparse_attention(
    op: &SparseAttention,
    accelerator: &Accelerator,
    sms: u32,
    options: &ServingOptions,
) -> KernelCost {
    let device = device(accelerator, sms, options);
    let width = (op.latent + op.rope) as f64;
    let pairs = (op.queries * op.top_k) as f64;
    if pairs == 0.0 {
        return Parts::default().into_cost();
    }
    let heads = op.heads as f64;
    let rows = (heads / 64.0).ceil() * 64.0;
    let per_head = 2.0 * pairs * (width + op.latent as f64);
    let peak = gemm::peak(&device, Precision::Bf16);
    let efficiency = if op.prefill { 0.65 } else { 0.41 };
    let useful = per_head * heads / peak;
    let sustained = useful / efficiency * device.slower();
    let math = (per_head * rows / (peak * efficiency) * device.slower()).max(sustained);
    let element = op.kv.bits() as f64 / 8.0;
    // Neighbours in a prompt choose largely the same positions, which stay in the cache.
    let gathers = if op.prefill { 0.1 } else { 1.0 };
    let bytes = pairs * width * element * gathers
        + op.queries as f64 * heads * (width + op.latent as f64) * 2.0;
    // Rows of 576 to 1152 bytes are gathered at less than a stream's rate.
    let read = bytes / (device.memory_rate() * GATHER);
    Parts {
        useful,
        sustained: sustained - useful,
        shape: math - sustained,
        memory: overlapped(math, read) - math + device.ramp(),
        exponent: 0.0,
        floor: device.floor() * 2.0,
        memory_time: read,
    }
    .into_cost()
}

/// Part of a stream's bandwidth that a gather of latents reaches (assumed, unverified).
const GATHER: f64 = 0.75;

/// Scores of all positions for each query, and the choice of the best.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Indexer {
    /// Queries: new tokens over all sequences.
    pub queries: u64,
    /// Sequences that they belong to: each has its own keys.
    pub sequences: u64,
    /// Positions that a query scores, mean over the queries.
    pub context: f64,
    /// Heads of the indexer (64 in DeepSeek-V3.2). Every rank holds all of them.
    pub heads: u64,
    /// Width of its key (128).
    pub head_dim: u64,
}

/// Cost of the indexer: products in 8 bits, one score per query and position written, and a
/// selection that reads the scores twice. Two kernels.
///
/// # Panics
/// When `sms` is zero or more than the accelerator has.
pub fn indexer(
    op: &Indexer,
    accelerator: &Accelerator,
    sms: u32,
    options: &ServingOptions,
) -> KernelCost {
    let device = device(accelerator, sms, options);
    let pairs = op.queries as f64 * op.context;
    if pairs == 0.0 {
        return Parts::default().into_cost();
    }
    let flops = 2.0 * pairs * (op.heads * op.head_dim) as f64;
    let peak = gemm::peak(&device, Precision::Fp8);
    // A ReLU and a weighted sum over heads follow each product on the SMs.
    let efficiency = match device.generation_kind() {
        Generation::Ampere | Generation::Hopper => 0.5,
        Generation::Blackwell => 0.4,
    };
    let useful = flops / peak;
    let sustained = useful / efficiency * device.slower();
    let keys = op.sequences as f64 * op.context * (op.head_dim as f64 + 4.0);
    let scores = pairs * 4.0;
    let write = device.mechanism.write_cost;
    let read = (keys + scores * write) / device.memory_rate();
    let select = scores * 2.0 / device.memory_rate();
    Parts {
        useful,
        sustained: sustained - useful,
        memory: overlapped(sustained, read) - sustained + select + 2.0 * device.ramp(),
        floor: device.floor() * 2.0,
        memory_time: read + select,
        ..Parts::default()
    }
    .into_cost()
}
