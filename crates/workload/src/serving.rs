//! Serving as data: number formats, parallelism, speculation and the software of one model replica.

mod acceptance;
mod format;
mod stack;

pub use acceptance::{Acceptance, Depths, beta_shape};
pub use format::{KvFormat, ServingPrecision, WeightFormat};
pub use stack::{
    CustomAllReduce, DispatchKernel, GraphCapture, KernelLibrary, SchedulerLimits, ServingStack,
    SmallKernels,
};

use crate::model::Model;
use rackflow_units::Bytes;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How one replica of a model is spread over its GPUs.
///
/// Attention runs in `data` groups of `tensor` ranks, each with its own sequences; experts run on
/// `expert` groups of `expert_tensor` ranks of the same GPUs; both times `pipeline` stages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ServingParallelism {
    /// Ranks that share the heads and the dense feed-forward network of one sequence.
    pub tensor: u32,
    /// Stages of consecutive layers.
    pub pipeline: u32,
    /// Groups with sequences of their own in front of common experts (attention data parallelism).
    pub data: u32,
    /// Groups over which the experts are spread. 1: every expert is on every group.
    pub expert: u32,
}

impl Default for ServingParallelism {
    fn default() -> Self {
        Self {
            tensor: 1,
            pipeline: 1,
            data: 1,
            expert: 1,
        }
    }
}

impl ServingParallelism {
    /// GPUs of one pipeline stage.
    pub const fn stage_gpus(&self) -> u32 {
        self.tensor * self.data
    }

    /// GPUs of the replica.
    pub const fn gpus(&self) -> u32 {
        self.stage_gpus() * self.pipeline
    }

    /// Ranks that share one expert.
    pub const fn expert_tensor(&self) -> u32 {
        self.stage_gpus() / self.expert
    }
}

/// Guessing tokens ahead and checking them in one step.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Speculation {
    /// What guesses.
    pub draft: Draft,
    /// Tokens that are guessed before each step.
    pub draft_tokens: u32,
    /// Which guesses are accepted: a number is the probability of each, given that those before it
    /// were; `{ by_depth: [0.85, 0.6] }` is the share of steps that keep the first guess, the first
    /// two and so on, as engines log it; `{ beta: { mean: 0.8, sd: 0.1 } }` gives every request a
    /// probability of its own.
    pub acceptance: Acceptance,
}

impl Speculation {
    /// Tokens that a sequence gains in one step on average: one, and every guess up to the first
    /// that is refused.
    pub fn tokens_per_step(&self) -> f64 {
        (1..=self.draft_tokens).fold(1.0, |sum, guess| sum + self.acceptance.kept(guess))
    }
}

/// What guesses the next tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Draft {
    /// The model's own prediction module, applied once per guess (DeepSeek-V3's MTP, EAGLE): one
    /// layer, a projection of two hidden states to one, and the output matrix.
    Mtp,
    /// Look-up in the text so far: no work on the GPU.
    NGram,
}

/// What the GPUs did before a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Duty {
    /// Little: a lone request, a short benchmark. Clocks are near the top.
    Burst,
    /// Hours of the same: clocks settle where the power limit holds them.
    Continuous,
}

/// One replica of a model: what is loaded, in which formats, spread how, driven by what.
#[derive(Debug, Clone, PartialEq)]
pub struct Deployment {
    /// The model.
    pub model: Model,
    /// Number formats of weights, cache and arithmetic.
    pub precision: ServingPrecision,
    /// Spread over GPUs.
    pub parallelism: ServingParallelism,
    /// Guessing ahead.
    pub speculation: Option<Speculation>,
    /// Each step is cut into two halves, one of which communicates while the other computes.
    pub two_batch_overlap: bool,
    /// Copies of busy experts beyond one each, over the whole replica (EPLB).
    pub redundant_experts: u64,
    /// Tokens of the busiest expert group over the mean, at least 1.
    pub expert_imbalance: f64,
    /// Most tokens of one step: what activations are kept for.
    pub max_batched_tokens: u64,
    /// What the GPUs did before.
    pub duty: Duty,
    /// Latencies inside kernels over the measured ones, for what-ifs: 1 as measured.
    pub kernel_latency: f64,
    /// Named, dated software.
    pub stack: ServingStack,
}

impl Deployment {
    /// A deployment with everything optional off, at the stack's own limits.
    pub fn new(
        model: Model,
        precision: ServingPrecision,
        parallelism: ServingParallelism,
        stack: ServingStack,
    ) -> Self {
        Self {
            model,
            precision,
            parallelism,
            speculation: None,
            two_batch_overlap: false,
            redundant_experts: 0,
            expert_imbalance: 1.0,
            duty: Duty::Continuous,
            kernel_latency: 1.0,
            max_batched_tokens: stack.limits.max_batched_tokens,
            stack,
        }
    }

    /// Bytes that one token adds to the cache over all layers, where no layer is windowed.
    pub fn kv_bytes_per_token(&self) -> Bytes {
        self.model.kv_bytes_per_token(self.precision.kv.bits())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guesses_after_a_refused_one_are_lost() {
        let speculation = |draft_tokens, acceptance| Speculation {
            draft: Draft::Mtp,
            draft_tokens,
            acceptance: Acceptance::Each(acceptance),
        };
        assert_eq!(speculation(0, 0.9).tokens_per_step(), 1.0);
        // DeepSeek-V3: the second token is accepted in 85 to 90 % of the steps.
        assert_eq!(speculation(1, 0.85).tokens_per_step(), 1.85);
        assert_eq!(speculation(3, 0.5).tokens_per_step(), 1.875);
        assert_eq!(speculation(4, 1.0).tokens_per_step(), 5.0);
    }

    #[test]
    fn experts_share_the_gpus_of_attention() {
        let plan = ServingParallelism {
            tensor: 4,
            pipeline: 2,
            data: 8,
            expert: 32,
        };
        assert_eq!(
            (plan.stage_gpus(), plan.gpus(), plan.expert_tensor()),
            (32, 64, 1)
        );
    }
}
