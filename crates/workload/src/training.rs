//! One training step as its authors would describe it: batch, plan, schedule, recomputation.

use crate::model::Model;
use crate::stack::SoftwareStack;
use crate::vision::{Images, VisionEncoder};
use rackflow_units::Precision;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Number formats of the step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Recipe {
    /// fp16 operands with loss scaling.
    Fp16,
    /// bf16 operands.
    Bf16,
    /// fp8 GEMMs with per-tensor scales found anew for each tensor (current scaling): a pass over it for its
    /// largest value comes first. Attention and logits in bf16.
    Fp8,
    /// The same with scales from the largest values of earlier steps (delayed scaling): no pass comes first.
    Fp8Delayed,
    /// fp8 GEMMs with a scale for each row of the left operand and each column of the right one, found
    /// anew (torchao's rowwise recipe): a tensor is converted once along rows and once along columns,
    /// and tensor ranks gather it before, in 16 bits.
    Fp8Rowwise,
    /// fp8 GEMMs with 1x128 and 128x128 block scales (DeepSeek-V3).
    Fp8Blockwise,
    /// fp8 GEMMs with 1x32 block scales in hardware (Blackwell).
    Mxfp8,
    /// fp4 GEMMs with 1x16 block scales; first and last layers and attention stay wider.
    Nvfp4,
}

impl Recipe {
    /// Format of the linear layers' operands.
    pub const fn gemm(self) -> Precision {
        match self {
            Self::Fp16 => Precision::Fp16,
            Self::Bf16 => Precision::Bf16,
            Self::Fp8 | Self::Fp8Delayed | Self::Fp8Rowwise | Self::Fp8Blockwise | Self::Mxfp8 => {
                Precision::Fp8
            }
            Self::Nvfp4 => Precision::Fp4,
        }
    }
}

/// What the data-parallel ranks shard among themselves (ZeRO stage).
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
#[serde(try_from = "u8", into = "u8")]
#[schemars(with = "u8")]
pub enum Zero {
    /// Nothing: plain data parallelism.
    Stage0,
    /// Optimizer states (Megatron's distributed optimizer).
    Stage1,
    /// Optimizer states and gradients.
    Stage2,
    /// Weights too (FSDP).
    Stage3,
}

impl Zero {
    /// All stages, from nothing to everything.
    pub const ALL: [Self; 4] = [Self::Stage0, Self::Stage1, Self::Stage2, Self::Stage3];
}

impl TryFrom<u8> for Zero {
    type Error = String;
    fn try_from(stage: u8) -> Result<Self, String> {
        match stage {
            0 => Ok(Self::Stage0),
            1 => Ok(Self::Stage1),
            2 => Ok(Self::Stage2),
            3 => Ok(Self::Stage3),
            other => Err(format!(
                "there is no ZeRO stage {other}; write 0, 1, 2 or 3"
            )),
        }
    }
}

impl From<Zero> for u8 {
    fn from(zero: Zero) -> u8 {
        zero as u8
    }
}

/// How the ranks divide the work. The product `tensor * context * pipeline * data` is the number
/// of GPUs; experts are spread over the tensor-context-data ranks of one pipeline stage.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parallelism {
    /// Tensor-parallel ranks.
    pub tensor: u32,
    /// Activations between tensor-parallel regions are sharded over the sequence.
    pub sequence_parallel: bool,
    /// Context-parallel ranks: each holds a part of every sequence.
    pub context: u32,
    /// Pipeline stages.
    pub pipeline: u32,
    /// Model chunks per pipeline stage (interleaving); 1 for none.
    pub virtual_pipeline: u32,
    /// Data-parallel ranks.
    pub data: u32,
    /// Expert-parallel ranks.
    pub expert: u32,
    /// Tensor parallelism inside an expert.
    pub expert_tensor: u32,
    /// What data-parallel ranks shard.
    pub zero: Zero,
    /// Ranks over which ZeRO shards, where that is fewer than all data-parallel ranks (HSDP).
    pub zero_group: Option<u32>,
}

/// The order in which a pipeline stage takes its micro-batches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Schedule {
    /// All forwards, then all backwards.
    Gpipe,
    /// One forward, one backward; interleaved when `virtual_pipeline` exceeds 1.
    #[serde(rename = "1f1b")]
    OneForwardOneBackward,
    /// Zero-bubble H1: weight gradients apart, memory of 1F1B.
    #[serde(rename = "zb-h1")]
    ZeroBubbleH1,
    /// Zero-bubble H2: weight gradients apart, twice the memory of 1F1B, no bubble.
    #[serde(rename = "zb-h2")]
    ZeroBubbleH2,
    /// DeepSeek's bidirectional schedule; forward and backward chunks overlap.
    Dualpipe,
}

/// An activation that can be recomputed in the backward pass instead of kept.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum Activation {
    /// Attention's scores and softmax. Fused attention keeps none, so that this frees nothing
    /// there, but a stack that is asked for it still computes the attention again.
    CoreAttention,
    /// Outputs of the norms.
    Norms,
    /// Keys, values and queries after MLA's up-projections.
    MlaUpProjection,
    /// The activation function's output (SwiGLU, GELU).
    Swiglu,
    /// The dense feed-forward network, whole.
    Mlp,
    /// The experts' activation function.
    MoeActivation,
    /// The mixture-of-experts layer, whole, with its dispatch.
    Moe,
}

/// What is recomputed in the backward pass.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Recompute {
    /// Nothing.
    None,
    /// Megatron's selective recomputation: core attention.
    Selective,
    /// Whole layers: only the layer's input is kept.
    Full,
    /// Whole layers, but only this many of each model chunk.
    FullLayers(u32),
    /// All but attention and the first of every two matrix products, in the order in which a layer runs them
    /// (torchtitan's `op`).
    Operators,
    /// Named activations.
    Activations(Vec<Activation>),
}

/// How evenly tokens spread over experts.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Routing {
    /// Every expert gets the same number of tokens (forced balance, as vendors publish).
    Balanced,
    /// The load of each expert-parallel rank is log-normal around the mean.
    Lognormal {
        /// Standard deviation of the logarithm of a rank's load.
        sigma: f64,
    },
}

/// A training step, as meant: nothing left to look up.
#[derive(Debug, Clone, PartialEq)]
pub struct Training {
    /// What is trained.
    pub model: Model,
    /// With what software.
    pub stack: SoftwareStack,
    /// In which number formats.
    pub recipe: Recipe,
    /// Tokens per sequence.
    pub sequence_length: u64,
    /// Sequences per step.
    pub global_batch: u64,
    /// Sequences per micro-batch and data-parallel rank.
    pub micro_batch: u64,
    /// How the ranks divide the work.
    pub parallelism: Parallelism,
    /// In which order a stage works.
    pub schedule: Schedule,
    /// What is computed twice to save memory.
    pub recompute: Recompute,
    /// How tokens spread over experts.
    pub routing: Routing,
    /// The images of each sequence, among whose tokens they count. Without them a vision encoder
    /// takes no part.
    pub images: Option<Images>,
    /// Layers of each model chunk in pipeline order (`pipeline * virtual_pipeline` entries), where
    /// they are not spread evenly.
    pub layers_per_chunk: Option<Vec<u64>>,
    /// Plan details that the source did not publish and we had to assume, for the report.
    pub assumed: Vec<String>,
}

impl Training {
    /// Whether a library takes tokens to experts on other ranks itself, without copies in the order of experts before.
    pub fn relays_tokens(&self) -> bool {
        self.parallelism.expert > 1 && self.stack.dispatcher.relays()
    }

    /// Micro-batches per data-parallel rank and step.
    pub fn micro_batches(&self) -> u64 {
        self.global_batch / (u64::from(self.parallelism.data) * self.micro_batch)
    }

    /// Tokens per step.
    pub fn tokens(&self) -> u64 {
        self.global_batch * self.sequence_length
    }

    /// The encoder that runs in each step, and its images.
    pub fn vision(&self) -> Option<(&VisionEncoder, &Images)> {
        self.model.vision.as_ref().zip(self.images.as_ref())
    }

    /// Parameters of the vision encoder, where it runs.
    pub fn parameters_of_vision(&self) -> u64 {
        self.vision().map_or(0, |(vision, _)| {
            vision.parameters(self.model.hidden).total()
        })
    }

    /// Model FLOPs of the vision encoder in one step; see [`VisionEncoder::flops_per_image`].
    pub fn vision_flops(&self) -> f64 {
        self.vision().map_or(0.0, |(vision, images)| {
            let count = self.global_batch as f64 * images.per_sequence as f64;
            vision.flops_per_image(images, self.model.hidden) * count
        })
    }
}
