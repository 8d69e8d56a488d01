//! Kernels of a serving engine on one GPU, as [`Parts`].

use super::parts::Parts;
use crate::kernel::{self, KernelCost, KernelOptions, Load, MECHANISM, overlapped};
use rackflow_topology::Accelerator;
use rackflow_units::{Bytes, Precision, SimDuration};
use rackflow_workload::serving::{KvFormat, WeightFormat};
use rackflow_workload::{AttentionKernel, Direction, Operation};

/// The kernels of one GPU.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Kernels {
    pub accelerator: Accelerator,
    options: KernelOptions,
    /// Dense peak of the deployment's narrowest format [FLOP/s].
    native_peak: f64,
}

/// Attention of one layer on one rank.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Heads {
    /// Query heads.
    pub heads: u64,
    /// Key-value heads; 1 where a latent is shared by all.
    pub kv_heads: u64,
    /// Width of query and key.
    pub width_qk: u64,
    /// Width of value.
    pub width_v: u64,
    /// Elements cached per token.
    pub cached: f64,
    /// Format of the cache.
    pub kv: KvFormat,
}

/// Prompt tokens of one step on one rank, summed over its chunks.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(super) struct Prompts {
    /// Chunks.
    pub chunks: f64,
    /// Tokens that are computed.
    pub new: f64,
    /// Keys: tokens computed and cached.
    pub keys: f64,
    /// Pairs of a query and a key that it sees.
    pub pairs: f64,
}

impl Kernels {
    pub fn new(accelerator: Accelerator, attention: AttentionKernel, native: Precision) -> Self {
        let native_peak = accelerator.peak.get(native).flops_per_sec();
        Self {
            accelerator,
            options: KernelOptions {
                attention,
                load: Load::Burst,
            },
            native_peak,
        }
    }

    /// Dense peak of the deployment's narrowest format [FLOP/s].
    pub fn native_peak(&self) -> f64 {
        self.native_peak
    }

    fn cost(&self, op: &Operation) -> KernelCost {
        kernel::cost_with(op, &self.accelerator, self.accelerator.sms, self.options)
    }

    fn memory_rate(&self) -> f64 {
        self.accelerator.memory_bandwidth.as_f64() * self.accelerator.measured.memory
    }

    /// Time of the shortest kernel.
    pub fn floor(&self) -> SimDuration {
        self.accelerator.measured.kernel_floor + SimDuration::from_secs_f64(MECHANISM.stream_ramp)
    }

    /// The format in which this accelerator multiplies weights stored in `format`.
    pub fn operands(&self, format: WeightFormat) -> Precision {
        operands(&self.accelerator, format)
    }

    /// `executed` operations of the kernel, of which `flops` are asked for.
    fn parts(
        &self,
        cost: &KernelCost,
        executed: f64,
        flops: f64,
        bytes: f64,
        kernels: f64,
    ) -> Parts {
        let native = flops / self.native_peak;
        let useful = cost.useful.as_secs_f64();
        // Rows that were only rounded up are no use.
        let exact = useful
            * if executed > 0.0 {
                flops / executed
            } else {
                1.0
            };
        Parts {
            useful: native.min(exact),
            wider: (exact - native).max(0.0),
            sustained: cost.sustained.as_secs_f64(),
            shape: cost.shape.as_secs_f64() + useful - exact,
            memory: cost.memory.as_secs_f64(),
            exponent: cost.exponent.as_secs_f64(),
            floor: cost.floor.as_secs_f64(),
            flops,
            bytes,
            kernels,
            ..Parts::default()
        }
    }

    /// `tokens` rows times a stored `k` x `n` matrix.
    pub fn product(&self, tokens: u64, n: u64, k: u64, format: WeightFormat) -> Parts {
        if tokens == 0 || n == 0 || k == 0 {
            return Parts::default();
        }
        let precision = self.operands(format);
        let op = Operation::Gemm {
            m: tokens,
            n,
            k,
            batch: 1,
            precision,
            output_bytes: 2,
        };
        let weights = n as f64 * k as f64;
        let cost = self.narrowed(self.cost(&op), weights, precision, format);
        let flops = op.tensor_flops();
        self.parts(&cost, flops, flops, weights * format.bytes(), 1.0)
    }

    /// Weights that are stored narrower than they are multiplied take less of the memory.
    fn narrowed(
        &self,
        mut cost: KernelCost,
        weights: f64,
        precision: Precision,
        format: WeightFormat,
    ) -> KernelCost {
        let saved = precision.bits() as f64 / 8.0 - format.bytes();
        if saved <= 0.0 {
            return cost;
        }
        let rate = self.memory_rate() * MECHANISM.gemm_memory;
        let arrival = (cost.memory_time.as_secs_f64() - weights * saved / rate).max(0.0)
            + MECHANISM.stream_ramp;
        let math = (cost.useful + cost.sustained + cost.shape).as_secs_f64();
        cost.memory = SimDuration::from_secs_f64((overlapped(math, arrival) - math).max(0.0));
        cost
    }

    /// `count` products of 16-bit activations with resident small matrices, such as the absorbed
    /// projections of latent attention.
    pub fn batched(&self, tokens: u64, n: u64, k: u64, count: u64) -> Parts {
        if tokens == 0 {
            return Parts::default();
        }
        let op = Operation::Gemm {
            m: tokens,
            n,
            k,
            batch: count,
            precision: Precision::Bf16,
            output_bytes: 2,
        };
        let bytes = (n * k * count) as f64 * 2.0;
        let flops = op.tensor_flops();
        self.parts(&self.cost(&op), flops, flops, bytes, 1.0)
    }

    /// One product of all experts of a rank: `rows` tokens in all over `touched` of them.
    pub fn experts(&self, rows: f64, touched: f64, n: u64, k: u64, format: WeightFormat) -> Parts {
        if rows <= 0.0 {
            return Parts::default();
        }
        let precision = self.operands(format);
        let groups = touched.round().max(1.0);
        let op = Operation::GroupedGemm {
            groups: groups as u64,
            m_total: rows.ceil() as u64,
            n,
            k,
            precision,
            output_bytes: 2,
            weight_gradient: false,
        };
        let weights = n as f64 * k as f64 * groups;
        let cost = self.narrowed(self.cost(&op), weights, precision, format);
        let flops = 2.0 * rows * n as f64 * k as f64;
        let bytes = n as f64 * k as f64 * touched * format.bytes();
        self.parts(&cost, op.tensor_flops(), flops, bytes, 1.0)
    }

    /// Kernels that only stream activations.
    pub fn small(&self, read: f64, write: f64, kernels: u32) -> Parts {
        let op = Operation::Stream {
            read: Bytes::new(read as u64),
            write: Bytes::new(write as u64),
            kernels,
            flops: 0.0,
        };
        self.parts(&self.cost(&op), 0.0, 0.0, 0.0, f64::from(kernels))
    }

    /// Attention of `sequences` that generate, `queries` tokens each, over `context` cached tokens in
    /// all, in one layer.
    pub fn decode(&self, heads: &Heads, sequences: f64, queries: f64, context: f64) -> Parts {
        if sequences <= 0.0 {
            return Parts::default();
        }
        let rows = heads.heads as f64 / heads.kv_heads as f64 * queries;
        // Keys are multiplied with as many rows as a tile has, filled or not.
        let padded = (rows / 16.0).ceil() * 16.0;
        let width = (heads.width_qk + heads.width_v) as f64;
        let flops = 2.0 * context * heads.heads as f64 * queries * width;
        let peak = self.accelerator.peak.bf16.flops_per_sec();
        let rate = peak * self.accelerator.measured.attention.best.forward;
        let math = flops * padded / rows / rate;
        let bytes = context * heads.cached * heads.kv.bytes();
        let share = match heads.kv {
            KvFormat::Bf16 => 0.9,
            KvFormat::Fp8 | KvFormat::Fp4 => 0.75,
        };
        let memory = bytes / (self.memory_rate() * share);
        let useful = flops / peak;
        let native = flops / self.native_peak;
        let math = math.max(useful);
        Parts {
            useful: native.min(useful),
            wider: (useful - native).max(0.0),
            sustained: useful / self.accelerator.measured.attention.best.forward - useful,
            shape: (math - useful / self.accelerator.measured.attention.best.forward).max(0.0),
            memory: overlapped(math, memory) - math,
            // A second kernel sums the parts over which keys were split.
            floor: self.floor().as_secs_f64() * 2.0,
            flops,
            bytes,
            kernels: 2.0,
            ..Parts::default()
        }
    }

    /// Attention of prompts in one layer.
    pub fn prefill(&self, heads: &Heads, prompts: &Prompts) -> Parts {
        if prompts.new <= 0.0 {
            return Parts::default();
        }
        let chunks = prompts.chunks.max(1.0);
        let (query, keys) = (prompts.new / chunks, prompts.keys / chunks);
        let op = Operation::Attention {
            batch: chunks.ceil() as u64,
            heads: heads.heads,
            kv_heads: heads.kv_heads,
            query_len: query.ceil() as u64,
            kv_len: keys.ceil() as u64,
            head_dim_qk: heads.width_qk,
            head_dim_v: heads.width_v,
            mask_fraction: (prompts.pairs / (prompts.new * keys)).clamp(1e-6, 1.0),
            direction: Direction::Forward,
            precision: Precision::Bf16,
        };
        let width = (heads.width_qk + heads.width_v) as f64;
        let flops = 2.0 * prompts.pairs * heads.heads as f64 * width;
        let bytes = (prompts.keys - prompts.new).max(0.0) * heads.cached * heads.kv.bytes();
        self.parts(&self.cost(&op), op.tensor_flops(), flops, bytes, 1.0)
    }
}

/// The format in which `accelerator` multiplies weights stored in `format`.
pub(super) fn operands(accelerator: &Accelerator, format: WeightFormat) -> Precision {
    let peak = &accelerator.peak;
    match format.operands() {
        // 4-bit weights with 8-bit activations came with the units for 4 bits.
        Precision::Fp8 if format == WeightFormat::Mxfp4 && peak.fp4.is_none() => Precision::Bf16,
        Precision::Fp4 if peak.fp4.is_none() => Precision::Bf16,
        Precision::Fp8 if peak.fp8.is_none() => Precision::Bf16,
        operands => operands,
    }
}
