//! Software stacks: what a named, dated release of a training framework does with the hardware.
//!
//! The same published configuration moves by 2-3 % between releases and host overhead alone is
//! worth up to 2x, so a stack is an input of every scenario and not a secret of the simulator.

use rackflow_units::{Bytes, SimDuration};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// How attention is computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum AttentionKernel {
    /// Scores and probabilities are written to memory (Megatron before 2023).
    Unfused,
    /// FlashAttention 1, or a Triton kernel of that age.
    Flash1,
    /// FlashAttention 2.
    Flash2,
    /// cuDNN before 9.4, measured as 9.1 (2024). As `best` where it was not measured.
    #[serde(rename = "cudnn_9_1")]
    Cudnn91,
    /// cuDNN 9.4 to 9.17, measured as 9.13 (2025). As `best` where it was not measured.
    #[serde(rename = "cudnn_9_13")]
    Cudnn913,
    /// cuDNN from 9.18 on, measured as 9.19 (2026). As `best` where it was not measured.
    #[serde(rename = "cudnn_9_19")]
    Cudnn919,
    /// The fastest that serving libraries have: FlashAttention 3/4, TensorRT-LLM.
    Best,
}

/// Which kernels are launched by graph instead of one by one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum CudaGraphs {
    /// None: the host launches every kernel.
    None,
    /// The static parts of a layer: attention, norms, router, dense feed-forward.
    Partial,
    /// The whole iteration.
    Full,
}

/// How tokens reach their experts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ExpertDispatcher {
    /// NCCL all-to-all around separate permutation kernels; the host waits for the token counts.
    NcclAllToAll,
    /// Every rank gathers all tokens and keeps those of its experts.
    AllGather,
    /// DeepEP: fused permutation, each token crosses the network once per node.
    DeepEp,
    /// DeepEP's successor that also knows NVLink domains beyond a node.
    HybridEp,
}

impl ExpertDispatcher {
    /// Whether a token crosses the network once per node and is handed on there.
    pub fn relays(self) -> bool {
        matches!(self, Self::DeepEp | Self::HybridEp)
    }
}

/// Who hands out the memory of a GPU.
#[derive(
    Debug,
    Clone,
    Copy,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Default,
    Serialize,
    Deserialize,
    JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum AllocatorPolicy {
    /// PyTorch's caching allocator as it comes: a segment of the driver for each large tensor.
    #[default]
    Native,
    /// The same with `expandable_segments:True`: one segment that grows and shrinks page by page.
    ExpandableSegments,
    /// All places are known before the first step (XLA), so nothing is asked for in one.
    Preallocated,
}

impl AllocatorPolicy {
    /// The same allocator with segments of the other kind, expandable or not.
    pub fn with_other_segments(self) -> Option<Self> {
        match self {
            Self::Native => Some(Self::ExpandableSegments),
            Self::ExpandableSegments => Some(Self::Native),
            Self::Preallocated => None,
        }
    }
}

/// What the stack issues beside computation. Whether it is hidden, the event loop decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Overlap {
    /// Gradient reduction starts while the backward pass of the last micro-batch still runs.
    pub gradient_reduce: bool,
    /// Parameter all-gather runs beside the next forward pass.
    pub parameter_gather: bool,
    /// Tensor-parallel collectives are cut in chunks and run beside the GEMM they belong to.
    pub tensor: bool,
    /// Pipeline sends and receives are asynchronous.
    pub pipeline: bool,
    /// Only those of interleaved schedules are: a plain 1F1B sends and receives in one call and waits.
    #[serde(default)]
    pub pipeline_if_interleaved: bool,
    /// Expert dispatch and combine run beside another micro-batch's computation.
    pub expert: bool,
    /// The shared expert runs beside the dispatch of the routed ones.
    pub shared_expert: bool,
    /// Under an interleaved schedule, the gradients of a model chunk are reduced all at once, and on all
    /// stages at one time: a stage waits as many passes as it is stages from the first. Without it, a
    /// stage reduces bucket by bucket as soon as it can.
    #[serde(default)]
    pub align_gradient_reduce: bool,
    /// Under an interleaved schedule, the parameters of the next model chunk are gathered all at once,
    /// on all stages at one time, while the chunk before begins. Without it, a stage gathers layer by
    /// layer when it needs them.
    #[serde(default)]
    pub align_parameter_gather: bool,
    /// Under an interleaved schedule, the parameters of a stage's first model chunk are updated first
    /// and gathered while the optimizer updates the others.
    #[serde(default)]
    pub optimizer_step_gather: bool,
}

/// What the modules of a layer keep for their backward pass and can lie in the host's memory until
/// then. Each names the input of a module.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum OffloadedInput {
    /// Of the norm before attention: the residual stream.
    AttentionNorm,
    /// Of the projection to queries, keys and values.
    QkvLinear,
    /// Of attention: queries, keys and values.
    CoreAttention,
    /// Of the projection after attention.
    AttentionProjection,
    /// Of the norm before the feed-forward network: the residual stream.
    MlpNorm,
    /// Of the experts' first product: the tokens that arrived.
    ExpertFc1,
    /// Of the experts' activation function.
    MoeActivation,
    /// Of all modules: everything that the layer keeps.
    Layer,
}

fn whole() -> f64 {
    1.0
}

/// Activations that lie in the host's memory between their forward and their backward pass.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ActivationOffload {
    /// Which.
    #[serde(default)]
    pub inputs: Vec<OffloadedInput>,
    /// Of how many of a model chunk's layers, as a fraction: the first ones.
    #[serde(default = "whole")]
    pub fraction: f64,
}

impl Default for ActivationOffload {
    fn default() -> Self {
        Self {
            inputs: Vec::new(),
            fraction: 1.0,
        }
    }
}

impl ActivationOffload {
    /// Layers of a chunk of so many that take part. The last layer of the model has its backward pass
    /// at once and keeps what it has.
    pub fn layers(&self, of_chunk: u64, last: bool) -> u64 {
        if self.inputs.is_empty() {
            return 0;
        }
        let able = of_chunk.saturating_sub(u64::from(last));
        (able as f64 * self.fraction.clamp(0.0, 1.0)).round() as u64
    }
}

fn half() -> f64 {
    0.5
}

/// vTrain (MICRO 2024) measures NCCL about 30 % slower inside training than alone.
fn inside_training() -> f64 {
    1.3
}

fn yes() -> bool {
    true
}

impl SoftwareStack {
    /// SMs that communications of two kinds hold at once: a collective beside an exchange of tokens, or, where
    /// there are no experts, beside another collective.
    pub fn most_held_sms(&self, has_experts: bool) -> u32 {
        let beside = if has_experts {
            self.dispatch_sms
        } else {
            self.communication_sms
        };
        self.communication_sms + beside
    }

    /// Host time of one product of a linear layer.
    pub fn product_launch(&self, quantized: bool) -> SimDuration {
        let wide = self.linear_launch.unwrap_or(self.launch);
        if quantized {
            self.quantized_linear_launch.unwrap_or(wide)
        } else {
            wide
        }
    }

    /// Of `parameters` whose optimizer states a rank keeps, those whose states lie in the host's memory.
    pub fn optimizer_on_host(&self, parameters: u64) -> u64 {
        let share = self.optimizer_offload.clamp(0.0, 1.0);
        ((parameters as f64 * share).round() as u64).min(parameters)
    }
}

/// A named, dated software profile.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SoftwareStack {
    /// Catalogue name, such as `megatron-core-25.04`. Filled from the key where it is left out.
    #[serde(default)]
    pub name: String,
    /// Release date or quarter, as published.
    pub date: String,
    /// Time of the host to launch one kernel eagerly, framework overhead included.
    pub launch: SimDuration,
    /// Every launch waits for its kernel (`CUDA_LAUNCH_BLOCKING=1`): what the host spends on a kernel
    /// comes before it instead of beside the one before.
    #[serde(default)]
    pub blocking_launches: bool,
    /// Time of the host for each product of a linear layer, attention included, where the
    /// framework's modules cost more than a plain kernel; `launch` where it is left out.
    #[serde(default)]
    pub linear_launch: Option<SimDuration>,
    /// The same for 8- and 4-bit operands, whose scaling factors are book-kept by the host;
    /// `linear_launch` where it is left out.
    #[serde(default)]
    pub quantized_linear_launch: Option<SimDuration>,
    /// Time of the host for one pass, forward or backward, through a mixture-of-experts layer
    /// besides its products: routing, bookkeeping of counts and maps, the modules around the
    /// experts.
    #[serde(default)]
    pub mixture_launch: SimDuration,
    /// Part of `mixture_launch` before the dispatch, with the router; the rest is the experts'. Only
    /// the former is replaced where the static parts of a layer are launched by graph.
    #[serde(default = "half")]
    pub mixture_launch_router: f64,
    /// Time of the host for each step besides launches: data, clipping, logging, clean-up.
    #[serde(default)]
    pub step_overhead: SimDuration,
    /// Time of the host for one region whose activations are recomputed, in the pass that keeps its
    /// input and in the pass that computes it again together: random states are saved and
    /// restored, a graph is built anew.
    #[serde(default)]
    pub checkpoint_launch: SimDuration,
    /// Time that the bytes of a collective take inside training over the time that they take
    /// alone, where a library's kernels move them: they share memory and SMs with computation and
    /// their ranks come one after the other. Not for copies that run beside their product, nor for
    /// the exchange of tokens between experts.
    #[serde(default = "inside_training")]
    pub collective_slowdown: f64,
    /// Time of a dispatch or combine across domains inside training beyond what its bytes take, whatever its size:
    /// preparing, copies between buffers, ranks that come late. Not of gathering all tokens, which is a collective.
    #[serde(default)]
    pub dispatch_overhead: SimDuration,
    /// What is launched by graph.
    pub cuda_graphs: CudaGraphs,
    /// How attention is computed.
    pub attention: AttentionKernel,
    /// Norm, bias, dropout and residual are one kernel each way instead of several.
    pub fused_norms: bool,
    /// The activation function is fused with its bias and gate.
    pub fused_activation: bool,
    /// Rotary embedding is one kernel.
    pub fused_rope: bool,
    /// The same of latent attention, whose kernel is another; left out: as `fused_rope`.
    #[serde(default)]
    pub fused_latent_rope: Option<bool>,
    /// Logits and cross-entropy are computed without keeping fp32 logits.
    pub fused_cross_entropy: bool,
    /// Quantisation to fp8/fp4 is fused into the kernel before.
    pub fused_quantization: bool,
    /// The router's top-k and scores are one kernel.
    pub fused_router: bool,
    /// Tokens are put in the order of their experts, and back, by kernels made for it; else by the
    /// framework's: rows taken by an index and added with atomic additions, chunks split and put together
    /// again. Not where DeepEP or HybridEP take them to other ranks, which do so themselves.
    #[serde(default = "yes")]
    pub fused_permutation: bool,
    /// Formats of 8 and fewer bits need each expert's rows in multiples of 16 or 32: a kernel of its own copies
    /// them there, and one back, each way. DeepEP and HybridEP pad as they take tokens to other ranks, and experts
    /// with a fixed number of rows need no padding.
    #[serde(default)]
    pub pads_experts: bool,
    /// Weight gradients are accumulated by the GEMM that computes them, not by a kernel after it.
    #[serde(default = "yes")]
    pub fused_gradient_accumulation: bool,
    /// What ZeRO 3 gathers and the gradients that it sums lie in buffers for two layers each, which are kept for good, so that
    /// the allocator is not asked for them (Megatron-FSDP, `fsdp_double_buffer`).
    #[serde(default)]
    pub keeps_gather_buffers: bool,
    /// For each weight whose gradient the GEMM accumulates, autograd is given a tensor of its shape in 16 bits that
    /// nobody reads. One of each shape is kept for good, and prediction modules and the logits add up those of the output layer.
    #[serde(default)]
    pub dummy_gradients: bool,
    /// Recomputing a layer stops where the backward pass has all that it needs: the last product of
    /// a dense layer is not computed again, since nothing keeps its result.
    #[serde(default)]
    pub recompute_stops_early: bool,
    /// ZeRO gives each rank whole tensors instead of an even part of all: gradients are reduced to
    /// their owner and parameters broadcast by it, one owner after the other.
    #[serde(default)]
    pub zero_whole_tensors: bool,
    /// A message between pipeline stages, which every tensor rank has whole where the sequence is not
    /// sharded, is cut over the tensor ranks and gathered on the other side (Megatron's scatter/gather
    /// optimisation, DeepSpeed's partitioned activations).
    #[serde(default)]
    pub scatters_messages: bool,
    /// Experts run in one grouped GEMM instead of one GEMM each.
    pub grouped_gemm: bool,
    /// That call is one kernel for all experts. Else it launches a kernel for each, as Transformer
    /// Engine's grouped linear layers do.
    #[serde(default)]
    pub grouped_in_one_kernel: bool,
    /// Routing weights are multiplied into the experts' activation, so that neither the tokens as sent nor
    /// the experts' outputs are kept for their gradient. DeepEP and HybridEP do in any case.
    #[serde(default)]
    pub weighted_activation: bool,
    /// What runs beside what.
    pub overlap: Overlap,
    /// How tokens reach experts.
    pub dispatcher: ExpertDispatcher,
    /// Experts take a fixed number of tokens (a capacity, with padding up to it or dropping beyond):
    /// shapes are known beforehand and the host never waits for counts.
    #[serde(default)]
    pub static_expert_shapes: bool,
    /// Activations have the batch before the sequence: what a tensor-parallel collective gathers along
    /// the sequence is put in order by a copy after it, and what it scatters by a copy before it
    /// (PyTorch's functional collectives along any dimension but the first). Not for collectives that
    /// are cut into pieces beside their product.
    #[serde(default)]
    pub copies_sequence_parts: bool,
    /// Steps of the context ring are written in the framework: keys and values are repeated for every query
    /// head and gathered from all ranks at once beside the first step, and parts are put together in fp32 by a
    /// kernel for each operation (PyTorch's `context_parallel`). Else keys and values go round as they are and
    /// fused kernels add up (Transformer Engine).
    #[serde(default)]
    pub framework_ring: bool,
    /// Queries, keys and values are made by products of their own, and so are both inputs of a gated
    /// activation. Else one product makes each of these groups.
    #[serde(default)]
    pub separate_projections: bool,
    /// A tensor-parallel collective that is launched beside a product gets its SMs before it: one hardware
    /// queue (`CUDA_DEVICE_MAX_CONNECTIONS=1`). Else the product, which fills the GPU, and the collective
    /// follow each other.
    #[serde(default = "yes")]
    pub collectives_first: bool,
    /// SMs that a collective's kernel holds while it runs.
    pub communication_sms: u32,
    /// SMs that an expert dispatch or combine holds while it runs. A model without experts has none.
    pub dispatch_sms: u32,
    /// Bytes per gradient element that are kept and reduced.
    pub gradient_bytes: u64,
    /// Bytes per parameter of optimizer state (master weight and moments).
    pub optimizer_bytes: u64,
    /// Fraction of the optimizer's states that lie in the host's memory and are updated there.
    #[serde(default)]
    pub optimizer_offload: f64,
    /// Activations that lie in the host's memory until their backward pass.
    #[serde(default)]
    pub activation_offload: ActivationOffload,
    /// Bytes per parameter that the parameter all-gather sends.
    pub parameter_gather_bytes: u64,
    /// SMs that a product leaves to the tensor-parallel reduction of its pieces beside it (Transformer Engine,
    /// `pipeline` with `set_sm_margin`: 16 where a configuration says nothing). 0: copy engines move the pieces
    /// (`ring_exchange`).
    #[serde(default)]
    pub tensor_reduce_sms: u32,
    /// Size of one gradient bucket.
    pub bucket: Bytes,
    /// Where weights are kept and gathered in 8 bits, what stays in 16 (tables of the vocabulary) shares the
    /// bucket of a chunk's first layers: it is reduced when all gradients of the chunk are there, and gathered
    /// before its first layer.
    #[serde(default)]
    pub wide_parameters_last: bool,
    /// Where scales are delayed, the largest values that a pass through a chunk has seen are compared over all tensor
    /// and data ranks before the next pass, which waits for them.
    #[serde(default)]
    pub compares_scales: bool,
    /// Micro-batches, the first of a step, whose weight gradient of the output layer waits for the last backward
    /// pass of the last stage, so that it is computed while the stages before still finish theirs (Megatron-Core,
    /// `defer_embedding_wgrad_compute` with `wgrad_deferral_limit`). 0: none; plans without stages, passes that are
    /// woven into one, zero-bubble schedules and ZeRO 3 compute it at once.
    #[serde(default)]
    pub deferred_output_gradients: u64,
    /// Passes through layers for which exchanged tokens stay in use after they are freed, where the exchange
    /// runs beside another micro-batch on a stream of its own: the host is ahead by as many.
    #[serde(default)]
    pub exchange_held: u64,
    /// Bytes that are held per logit while the loss and its gradient are computed; 10 where it is left out, and 4
    /// with `fused_cross_entropy`.
    #[serde(default)]
    pub loss_bytes: Option<u64>,
    /// Who hands out memory, and so what happens close to its limit.
    #[serde(default)]
    pub allocator: AllocatorPolicy,
    /// What the allocator holds beyond the pieces that are played close to the limit of memory (small tensors, workspaces,
    /// temporaries of the optimizer), over the tensors. 0: `reserved_memory` has it.
    #[serde(default)]
    pub allocator_slack: f64,
    /// Memory that the framework holds besides tensors: context, NCCL buffers, and fragmentation where `allocator_slack`
    /// does not say it.
    pub reserved_memory: Bytes,
    /// Source of each value, by field name; `"*"` covers the fields that are not named.
    #[serde(default)]
    pub sources: BTreeMap<String, String>,
}
