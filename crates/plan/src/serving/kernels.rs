//! Kernels of a serving engine on one GPU, as [`Parts`].

use super::parts::Parts;
use crate::kernel::{
    self, DecodeAttention, Experts, Format, Indexer, KernelCost, LatentDecode, Launch, Library,
    Linear, Load, MECHANISM, PrefillAttention, ServingOptions, SmallKernel, SparseAttention,
};
use rackflow_topology::Accelerator;
use rackflow_units::{Bytes, Precision, SimDuration};
use rackflow_workload::serving::{Deployment, Duty, KernelLibrary, KvFormat, WeightFormat};
use rackflow_workload::{Access, Operation, SparseIndex};

/// Cached elements that one SM loads, converts and multiplies with one query head per clock, outside the
/// tensor cores: some seven instructions each on 128 lanes. Set to TensorRT-LLM's static batches of Mistral 7B,
/// Falcon 180B and, before XQA, LLaMA 70B on A100 and H100, with caches of 16 and 8 bits.
const ELEMENTS_PER_SM_CLOCK: f64 = 17.0;

/// The kernels of one GPU.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Kernels {
    pub accelerator: Accelerator,
    options: ServingOptions,
    /// Dense peak of the deployment's narrowest format [FLOP/s].
    native_peak: f64,
    /// The group of queries that share a load of keys; `None`: all do.
    shared_group: Option<u64>,
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
    /// Width of the rotary part beside a latent; `None` where keys and values are cached.
    pub rope: Option<u64>,
    /// Latents on this rank, each shared by as many of the heads; 1 where there is none.
    pub latents: u64,
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
    pub fn new(accelerator: Accelerator, deployment: &Deployment, native: Precision) -> Self {
        let native_peak = accelerator.peak.get(native).flops_per_sec();
        Self {
            options: ServingOptions {
                library: match deployment.stack.library {
                    KernelLibrary::Best => Library::Best,
                    KernelLibrary::Vllm => Library::Vllm,
                    KernelLibrary::Sglang => Library::Sglang,
                    KernelLibrary::TensorRtLlm => Library::TensorRtLlm,
                    KernelLibrary::Cublas11 => Library::Cublas11,
                },
                load: match deployment.duty {
                    Duty::Burst => Load::Burst,
                    Duty::Continuous => Load::Continuous,
                },
                // What the host costs is the stack's, and added to a whole step.
                launch: Launch::Graph,
                warm_cache: false,
                arrive_quantised: deployment.stack.kernels.fused_quantisation,
                latency: deployment.kernel_latency,
            },
            accelerator,
            native_peak,
            shared_group: deployment.stack.shared_group,
        }
    }

    /// Dense peak of the deployment's narrowest format [FLOP/s].
    pub fn native_peak(&self) -> f64 {
        self.native_peak
    }

    /// Time of host code over that of an x86 host.
    pub fn host_slowdown(&self) -> f64 {
        kernel::host_slowdown(&self.accelerator)
    }

    /// What they run on.
    pub fn accelerator(&self) -> &Accelerator {
        &self.accelerator
    }

    /// Whether routing and experts are one call: of the products that TensorRT-LLM generates for
    /// Blackwell, in 8 and 4 bits, where tokens are not sorted beforehand.
    pub fn fused_experts(&self, deployment: &Deployment) -> bool {
        let format = stored(&self.accelerator, deployment.precision.experts);
        let generated = !matches!(
            format,
            Format::Bf16 | Format::Int4Weights | Format::Int8Weights
        );
        generated
            && is_blackwell(&self.accelerator)
            && !grouped_by_library(deployment, &self.accelerator)
    }

    /// Time of the shortest kernel.
    pub fn floor(&self) -> SimDuration {
        self.accelerator.measured.kernel_floor + SimDuration::from_secs_f64(MECHANISM.stream_ramp)
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

    /// `tokens` rows times a stored `k` x `n` matrix, quantised before where the format asks for it.
    pub fn product(&self, tokens: u64, n: u64, k: u64, format: WeightFormat) -> Parts {
        if tokens == 0 || n == 0 || k == 0 {
            return Parts::default();
        }
        let stored = stored(&self.accelerator, format);
        let op = Linear {
            m: tokens,
            n,
            k,
            format: stored,
        };
        let cost = kernel::linear(&op, &self.accelerator, self.accelerator.sms, &self.options);
        let flops = 2.0 * tokens as f64 * n as f64 * k as f64;
        let bytes = n as f64 * k as f64 * format.bytes();
        let arrives = self.options.arrive_quantised && stored.has_static_scales();
        let quantises = stored.quantises_activations() && !arrives;
        let kernels = 1.0 + f64::from(u8::from(quantises));
        self.parts(&cost, flops, flops, bytes, kernels)
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
            pieces: 1,
            sms_left: 0,
            precision: Precision::Bf16,
            output_bytes: 2,
        };
        let options = kernel::KernelOptions {
            load: self.options.load,
            ..kernel::KernelOptions::default()
        };
        let cost = kernel::cost_with(&op, &self.accelerator, self.accelerator.sms, options);
        let bytes = (n * k * count) as f64 * 2.0;
        let flops = op.tensor_flops();
        self.parts(&cost, flops, flops, bytes, 1.0)
    }

    /// The experts of a rank: `rows` tokens in all over `touched` of them.
    pub fn experts(
        &self,
        (rows, touched): (f64, f64),
        hidden: u64,
        inner: u64,
        gated: bool,
        format: WeightFormat,
        sent: bool,
    ) -> Parts {
        if rows <= 0.0 {
            return Parts::default();
        }
        let op = Experts {
            rows,
            touched,
            hidden,
            inner,
            gated,
            format: stored(&self.accelerator, format),
            sent,
        };
        let cost = kernel::experts(&op, &self.accelerator, self.accelerator.sms, &self.options);
        let weights = (hidden * inner * if gated { 3 } else { 2 }) as f64;
        let flops = 2.0 * rows * weights;
        self.parts(&cost, flops, flops, weights * touched * format.bytes(), 6.0)
    }

    /// A small kernel between products.
    pub fn small(&self, op: &SmallKernel) -> Parts {
        let cost = kernel::small_kernel(op, &self.accelerator, self.accelerator.sms, &self.options);
        self.parts(&cost, 0.0, 0.0, 0.0, 1.0)
    }

    /// Kernels that stream as many bytes.
    pub fn stream(&self, read: f64, write: f64, kernels: u32) -> Parts {
        if kernels == 0 {
            return Parts::default();
        }
        let op = Operation::Stream {
            read: Bytes::new(read as u64),
            write: Bytes::new(write as u64),
            kernels,
            flops: 0.0,
            access: Access::Copy,
        };
        let cost = kernel::cost(&op, &self.accelerator, self.accelerator.sms);
        self.parts(&cost, 0.0, 0.0, 0.0, f64::from(kernels))
    }

    /// Attention of `sequences` that generate, `queries` tokens each, over `context` cached tokens in
    /// all, in one layer.
    pub fn decode(&self, heads: &Heads, sequences: f64, queries: f64, context: f64) -> Parts {
        if sequences <= 0.0 {
            return Parts::default();
        }
        let whole = sequences.ceil();
        let mean = (context / whole).max(1.0);
        let (accelerator, sms) = (&self.accelerator, self.accelerator.sms);
        // The kernels know caches of 16 and 8 bits; narrower ones are widened on the way.
        let kv = match heads.kv {
            KvFormat::Bf16 => Precision::Bf16,
            KvFormat::Fp8 | KvFormat::Fp4 => Precision::Fp8,
        };
        let cost = match heads.rope {
            Some(rope) => kernel::latent_decode(
                &LatentDecode {
                    // Each latent is a cache of its own with its part of the heads.
                    sequences: whole as u64 * heads.latents,
                    context: mean,
                    queries: queries as u64,
                    heads: heads.heads.div_ceil(heads.latents),
                    latent: heads.width_v,
                    rope,
                    kv,
                },
                accelerator,
                sms,
                &self.options,
            ),
            None => kernel::decode_attention(
                &DecodeAttention {
                    sequences: whole as u64,
                    context: mean,
                    queries: queries as u64,
                    heads: heads.heads,
                    kv_heads: heads.kv_heads,
                    head_dim: heads.width_qk,
                    kv,
                    window: None,
                },
                accelerator,
                sms,
                &self.options,
            ),
        };
        let width = (heads.width_qk + heads.width_v) as f64;
        let per_row = 2.0 * heads.heads as f64 * queries * width;
        let flops = context * per_row;
        let bytes = context * heads.cached * heads.kv.bytes();
        // A second kernel sums the parts over which keys were split.
        let mut parts = self.parts(&cost, whole * mean * per_row, flops, bytes, 2.0);
        let whole = parts.time();
        parts.memory += kernel::overlapped(whole, self.alone(heads, context)) - whole;
        parts
    }

    /// Attention over keys that an indexer chose, in one layer: `queries` tokens of `sequences` sequences,
    /// each of which sees `visible` keys on average.
    pub fn sparse(
        &self,
        heads: &Heads,
        index: &SparseIndex,
        sequences: f64,
        queries: f64,
        visible: f64,
        prefill: bool,
    ) -> Parts {
        if queries <= 0.0 {
            return Parts::default();
        }
        let (accelerator, sms) = (&self.accelerator, self.accelerator.sms);
        let whole = queries.ceil().max(1.0);
        let choose = Indexer {
            queries: whole as u64,
            sequences: sequences.ceil().max(1.0) as u64,
            context: visible,
            heads: index.heads,
            head_dim: index.head_dim,
        };
        let chosen = visible.min(index.top_k as f64);
        let attend = SparseAttention {
            queries: whole as u64,
            top_k: chosen.ceil() as u64,
            heads: heads.heads,
            latent: heads.width_v,
            rope: heads.rope.unwrap_or(0),
            kv: match heads.kv {
                KvFormat::Bf16 => Precision::Bf16,
                KvFormat::Fp8 | KvFormat::Fp4 => Precision::Fp8,
            },
            prefill,
        };
        let scores = 2.0 * queries * visible * (index.heads * index.head_dim) as f64;
        let width = (heads.width_qk + heads.width_v) as f64;
        let products = 2.0 * queries * chosen * heads.heads as f64 * width;
        let keys = sequences * visible * (index.head_dim + 4) as f64;
        let latents = queries * chosen * (heads.width_qk as f64) * heads.kv.bytes();
        let ceiled = whole / queries;
        let index = kernel::indexer(&choose, accelerator, sms, &self.options);
        let attention = kernel::sparse_attention(&attend, accelerator, sms, &self.options);
        let executed = products * ceiled * attend.top_k as f64 / chosen.max(1e-9);
        self.parts(&index, scores * ceiled, scores, keys, 2.0)
            + self.parts(&attention, executed, products, latents, 1.0)
    }

    /// Time of attention that multiplies outside the tensor cores, each query head on its own, where the
    /// kernel does not share keys among the query heads of a group [s].
    fn alone(&self, heads: &Heads, context: f64) -> f64 {
        let group = heads.heads as f64 / heads.kv_heads as f64;
        let shares = self.shared_group.is_none_or(|shared| {
            group == shared as f64 && heads.width_qk == 128 || heads.rope.is_some()
        });
        if shares || group <= 1.0 {
            return 0.0;
        }
        let elements = heads.heads as f64 * context * (heads.width_qk + heads.width_v) as f64;
        let accelerator = &self.accelerator;
        let rate = f64::from(accelerator.sms) * accelerator.clock.hertz() * ELEMENTS_PER_SM_CLOCK;
        elements / rate
    }

    /// Attention of prompts in one layer. Chunks of unlike length stand for as many of their mean.
    pub fn prefill(&self, heads: &Heads, prompts: &Prompts, latent: bool) -> Parts {
        if prompts.new <= 0.0 {
            return Parts::default();
        }
        let chunks = prompts.chunks.max(1.0).round();
        let new = (prompts.new / chunks).ceil().max(1.0);
        // As many cached keys as leave the same scores.
        let cached = (prompts.pairs / (chunks * new) - (new + 1.0) / 2.0).max(0.0);
        let op = PrefillAttention {
            sequences: chunks as u64,
            new_tokens: new as u64,
            cached: cached.round() as u64,
            heads: heads.heads,
            kv_heads: heads.kv_heads,
            head_dim_qk: heads.width_qk,
            head_dim_v: heads.width_v,
            compute: Precision::Bf16,
            kv: if latent || heads.kv == KvFormat::Bf16 {
                Precision::Bf16
            } else {
                Precision::Fp8
            },
            window: None,
            // Engines expand keys and values for prompts.
            latent: None,
        };
        let cost =
            kernel::prefill_attention(&op, &self.accelerator, self.accelerator.sms, &self.options);
        let width = (heads.width_qk + heads.width_v) as f64;
        let per_score = 2.0 * heads.heads as f64 * width;
        let flops = prompts.pairs * per_score;
        let bytes = (prompts.keys - prompts.new).max(0.0) * heads.cached * heads.kv.bytes();
        let executed = op.scores() * chunks * per_score;
        self.parts(&cost, executed.max(flops), flops, bytes, 2.0)
    }
}

/// How `accelerator` treats weights stored in `format`: in their own arithmetic where it has it,
/// else widened to 16 bits on the way.
fn stored(accelerator: &Accelerator, format: WeightFormat) -> Format {
    let peak = &accelerator.peak;
    match format {
        WeightFormat::Bf16 => Format::Bf16,
        WeightFormat::Fp8 if peak.fp8.is_some() => Format::Fp8,
        WeightFormat::Fp8Block if peak.fp8.is_some() => Format::Fp8Block,
        WeightFormat::Fp8 | WeightFormat::Fp8Block => Format::Int8Weights,
        WeightFormat::Nvfp4 if peak.fp4.is_some() => Format::Nvfp4,
        // 4-bit weights with 8-bit activations came with the units for 4 bits.
        WeightFormat::Mxfp4 if peak.fp4.is_some() => Format::Mxfp4,
        WeightFormat::Nvfp4 | WeightFormat::Mxfp4 => Format::Mxfp4Weights,
        WeightFormat::Int4 => Format::Int4Weights,
    }
}

/// The format in which `accelerator` multiplies weights stored in `format`.
pub(super) fn operands(accelerator: &Accelerator, format: WeightFormat) -> Precision {
    stored(accelerator, format).math()
}

/// Tensor cores of Blackwell, told by their 4-bit floats.
pub(super) fn is_blackwell(accelerator: &Accelerator) -> bool {
    accelerator.peak.fp4.is_some()
}

/// Whether the experts are DeepGEMM's grouped products over tokens that an exchange has sorted.
pub(super) fn grouped_by_library(deployment: &Deployment, accelerator: &Accelerator) -> bool {
    let plan = &deployment.parallelism;
    plan.data > 1
        && plan.expert_tensor() == 1
        && is_blackwell(accelerator)
        && deployment.precision.experts == WeightFormat::Fp8Block
}
