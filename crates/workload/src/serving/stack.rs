//! What a named, dated release of a serving engine does with the hardware.

use rackflow_units::{Bandwidth, Bytes, SimDuration};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// How the kernels of a step reach the GPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum GraphCapture {
    /// The host launches every kernel.
    None,
    /// Everything but attention is captured, layer by layer.
    Piecewise,
    /// One graph per step.
    Full,
    /// One kernel that stays on the device for the whole step (a megakernel): no kernel starts or
    /// drains between layers. Where `decode_graphs` says so, all steps of the engine run so.
    Persistent,
}

/// How tokens reach their experts and come back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum DispatchKernel {
    /// Every rank gathers all tokens, computes its experts' share, and the sums are scattered back.
    AllGather,
    /// DeepEP: low-latency kernels while decoding, relayed high-throughput ones in prefill.
    DeepEp,
    /// One-sided stores to peers of an NVLink domain (TensorRT-LLM), for any batch.
    OneSided,
}

/// All-reduce kernels of the engine's own for small messages inside an NVLink domain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CustomAllReduce {
    /// Largest message that they take; beyond it the library's collectives are called.
    pub up_to: Bytes,
    /// The residual is added and the sum normalised by the same kernel.
    pub fused_norm: bool,
}

/// Whose kernels an engine picks; their constants are in `docs/kernels.md`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum KernelLibrary {
    /// The fastest that the accelerator has, quantisation fused into the kernel before.
    Best,
    /// Those of vLLM.
    Vllm,
    /// Those of SGLang.
    Sglang,
    /// Those of TensorRT-LLM.
    TensorRtLlm,
    /// cuBLAS 11, as PyTorch 2.0 for CUDA 11.8 brought it, and attention written for Ampere.
    Cublas11,
}

/// Memory for activations is kept for steps of the size that was profiled at the start. A larger step
/// finds none, and the framework asks the driver for it, layer by layer, while the GPU waits.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Allocation {
    /// Tokens of the largest step whose memory is kept.
    pub kept_tokens: u64,
    /// Bytes of activations that the driver hands out and takes back per second.
    pub rate: Bandwidth,
}

/// What is fused into a neighbour among the small kernels of a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SmallKernels {
    /// The rotary embedding, into attention.
    pub fused_rope: bool,
    /// The append to the cache, into attention.
    #[serde(default)]
    pub fused_append: bool,
    /// The activation function, into the product before it.
    pub fused_activation: bool,
    /// Quantisation with scales that are known beforehand (a scale per matrix or per 16 values), into
    /// the norm, activation or attention before each product.
    #[serde(default)]
    pub fused_quantisation: bool,
    /// Kernels of a layer beyond norms, embedding, cache and activation: copies, reshapes, biases.
    pub more: u32,
}

/// What bounds a step where the user does not say.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SchedulerLimits {
    /// Tokens in one step.
    pub max_batched_tokens: u64,
    /// Sequences in one step, on one attention rank.
    pub max_sequences: u64,
    /// Prompts are cut to fill the step (chunked prefill); otherwise prompts run in steps of their
    /// own and generation waits.
    pub chunked_prefill: bool,
    /// Tokens of one block of the cache.
    pub block_tokens: u64,
    /// Steps of decoding from one look at the door to the next, while sequences run.
    #[serde(default = "one")]
    pub poll_interval: u64,
}

fn one() -> u64 {
    1
}

fn yes() -> bool {
    true
}

/// A named, dated profile of a serving engine.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ServingStack {
    /// Catalogue name, such as `vllm-0.10`. Filled from the key where it is left out.
    #[serde(default)]
    pub name: String,
    /// Release date or quarter.
    pub date: String,
    /// Time of the host to launch one kernel eagerly.
    pub launch: SimDuration,
    /// How steps that only generate are launched.
    pub decode_graphs: GraphCapture,
    /// How steps with prompt tokens are launched.
    pub prefill_graphs: GraphCapture,
    /// Most sequences that a captured step holds; larger ones are launched eagerly.
    pub graph_sequences: u64,
    /// Most tokens of a step with prompts that graphs of pieces hold; larger ones are launched
    /// eagerly. Left out: any.
    #[serde(default)]
    pub graph_tokens: Option<u64>,
    /// Host time of one mixture layer that no graph holds: routing, sorting tokens by expert,
    /// quantising them and calling the experts, each an operation of the framework.
    #[serde(default)]
    pub eager_mixture: SimDuration,
    /// The same where routing and experts are one operation: TensorRT-LLM's kernels for Blackwell,
    /// which the other engines call through FlashInfer.
    #[serde(default)]
    pub eager_fused_mixture: SimDuration,
    /// Host time of the projections, norms and copies around latent attention in one layer that no
    /// graph holds.
    #[serde(default)]
    pub eager_latent: SimDuration,
    /// Host time of a step: scheduling, building inputs, sampling, returning tokens.
    pub step_overhead: SimDuration,
    /// The same for each sequence of the step.
    pub sequence_overhead: SimDuration,
    /// Host time of a step with prompts beyond that of a step that generates.
    #[serde(default)]
    pub prompt_overhead: SimDuration,
    /// What steps cost for which the engine has kept no memory; `None`: nothing.
    #[serde(default)]
    pub allocation: Option<Allocation>,
    /// The host prepares the next step while the GPU runs this one, so that only what is longer
    /// than the GPU's time shows.
    pub overlapped_scheduling: bool,
    /// Time from a request's arrival to its first step and from its last kernel to the client:
    /// tokenising, queues between processes, streaming.
    pub request_overhead: SimDuration,
    /// Whose products, attention and experts run.
    pub library: KernelLibrary,
    /// Query heads per key-value head, 128 wide, for which decode attention has a kernel that loads a
    /// key once for all of them; other groups load it for each, from the last-level cache after the
    /// first time. 0: no group has one; left out: every group has.
    #[serde(default)]
    pub shared_group: Option<u64>,
    /// Own all-reduce kernels; `None`: the library's only.
    #[serde(default)]
    pub custom_all_reduce: Option<CustomAllReduce>,
    /// How tokens reach experts.
    pub dispatcher: DispatchKernel,
    /// SMs that a dispatch or combine of the throughput kind holds.
    pub dispatch_sms: u32,
    /// The shared expert runs beside the dispatch.
    pub shared_expert_overlap: bool,
    /// Small kernels of a layer.
    pub kernels: SmallKernels,
    /// Fraction of the memory that the engine may use.
    pub memory_fraction: f64,
    /// That fraction is of what weights, activations and the reserve leave, and goes to the cache;
    /// else it is of the whole memory.
    #[serde(default)]
    pub fraction_of_free: bool,
    /// Layers with a window keep the window alone (left out: true); else every token, as all layers do.
    #[serde(default = "yes")]
    pub windowed_cache: bool,
    /// Of that, what is neither weights, activations nor cache: context, graphs, workspaces.
    pub reserved_memory: Bytes,
    /// Limits of its scheduler.
    pub limits: SchedulerLimits,
    /// Source of each value, by field name; `"*"` covers the rest.
    #[serde(default)]
    pub sources: BTreeMap<String, String>,
}
