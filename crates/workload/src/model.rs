//! The shape of a transformer: enough to count its parameters, its FLOPs and its bytes.

use crate::vision::VisionEncoder;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// How a layer attends.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Attention {
    /// Multi-head, grouped-query or multi-query attention, by the number of key-value heads.
    #[serde(rename = "gqa")]
    Grouped {
        /// Query heads.
        heads: u64,
        /// Key-value heads; equal to `heads` for multi-head attention.
        kv_heads: u64,
        /// Width of one head.
        head_dim: u64,
        /// Keys that a query of a windowed layer sees.
        #[serde(default)]
        sliding_window: Option<u64>,
        /// One layer in this many attends to everything, the others through the window; 1 or
        /// absent with a window means that all layers are windowed.
        #[serde(default)]
        full_every: Option<u64>,
        /// The window does not slide: the sequence is cut into chunks that wide, and a query sees
        /// back to the start of its own (Llama 4).
        #[serde(default)]
        chunked: bool,
        /// Queries and keys are normalised per head with learned weights (Qwen3, GLM-4.6).
        #[serde(default)]
        qk_norm: bool,
        /// Every head has a learned logit that takes a part of the softmax (GPT-OSS).
        #[serde(default)]
        sinks: bool,
    },
    /// Multi-head latent attention (DeepSeek).
    #[serde(rename = "mla")]
    Latent {
        /// Query heads.
        heads: u64,
        /// Rank of the query down-projection; absent where queries are projected directly.
        #[serde(default)]
        q_lora_rank: Option<u64>,
        /// Rank of the shared key-value latent.
        kv_lora_rank: u64,
        /// Width per head without position.
        qk_nope_head_dim: u64,
        /// Width per head with rotary position, shared by the heads on the key side.
        qk_rope_head_dim: u64,
        /// Width per head of the value.
        v_head_dim: u64,
        /// Latents per token, each shared by an equal part of the heads (grouped latent attention);
        /// tensor ranks then keep their own instead of a copy of all.
        #[serde(default = "one")]
        latents: u64,
        /// Each query attends to a choice of keys only. Read by serving; training computes all keys.
        #[serde(default)]
        sparse: Option<SparseIndex>,
    },
}

/// An indexer that chooses, for each query, the keys that attention looks at (DeepSeek-V3.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SparseIndex {
    /// Heads of the indexer.
    pub heads: u64,
    /// Width of its queries and of its one key per token.
    pub head_dim: u64,
    /// Keys that are chosen for each query.
    pub top_k: u64,
}

/// A mixture of experts in place of the dense feed-forward network.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct MoE {
    /// Routed experts.
    pub experts: u64,
    /// Routed experts that each token visits.
    pub top_k: u64,
    /// Hidden width of one routed expert.
    pub expert_ffn: u64,
    /// Hidden width of all shared experts together; 0 for none.
    #[serde(default)]
    pub shared_ffn: u64,
    /// Leading layers that stay dense.
    #[serde(default)]
    pub first_dense_layers: u64,
    /// One layer in this many is a mixture (2 for Llama 4 Maverick); 1 where all are.
    #[serde(default = "one")]
    pub every: u64,
    /// Experts are in groups, of which a token may visit only some (node-limited routing).
    #[serde(default)]
    pub group_limit: Option<GroupLimit>,
}

fn one() -> u64 {
    1
}

/// Node-limited routing: all experts that a token visits are in few of the groups (DeepSeek-V2,
/// section 2.1.4).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct GroupLimit {
    /// Groups of experts.
    pub groups: u64,
    /// Groups that one token may visit.
    pub chosen: u64,
}

/// What one layer's feed-forward part is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FeedForward {
    /// Dense, `Model::ffn` wide.
    Dense,
    /// Routed.
    MoE,
}

/// What distinguishes one layer from another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct LayerKind {
    /// Dense or routed.
    pub feed_forward: FeedForward,
    /// Keys that a query sees at most, where the layer is windowed.
    pub window: Option<u64>,
    /// The window is a chunk of the sequence instead of the keys just before the query.
    pub chunked: bool,
}

impl LayerKind {
    /// Keys that a query sees under the causal mask, averaged over a sequence of this length.
    ///
    /// Half the sequence without a window (the literature drops the half key of the diagonal, and
    /// so do we).
    pub fn keys_seen(self, sequence_length: u64) -> f64 {
        let sequence = sequence_length as f64;
        match self.window {
            Some(window) if window < sequence_length && self.chunked => {
                let (chunk, last) = (window as f64, (sequence_length % window) as f64);
                let chunks = (sequence_length / window) as f64;
                (chunks * chunk * chunk + last * last) / (2.0 * sequence)
            }
            Some(window) if window < sequence_length => {
                let window = window as f64;
                window - window * window / (2.0 * sequence)
            }
            _ => sequence / 2.0,
        }
    }
}

/// Extra prediction modules after the last layer (DeepSeek-V3).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct MultiTokenPrediction {
    /// Modules, each one transformer layer with its projection and the shared output head.
    pub modules: u64,
}

/// A decoder-only transformer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Model {
    /// Catalogue name, such as `deepseek-v3`. Filled from the key where it is left out.
    #[serde(default)]
    pub name: String,
    /// Transformer layers.
    pub layers: u64,
    /// Width of the residual stream.
    pub hidden: u64,
    /// How layers attend.
    pub attention: Attention,
    /// Hidden width of the dense feed-forward network; 0 where every layer is a mixture.
    #[serde(default)]
    pub ffn: u64,
    /// The feed-forward network is gated (SwiGLU): three matrices instead of two.
    #[serde(default)]
    pub gated: bool,
    /// The mixture of experts, where there is one.
    #[serde(default)]
    pub moe: Option<MoE>,
    /// Vocabulary.
    pub vocab: u64,
    /// Input and output embeddings share their weights.
    #[serde(default)]
    pub tied_embeddings: bool,
    /// Learned absolute positions (GPT-3): rows of the table; 0 for none.
    #[serde(default)]
    pub learned_positions: u64,
    /// Linear layers have biases (GPT family).
    #[serde(default)]
    pub biases: bool,
    /// Gate and linear part of a gated network are clamped before the activation (GPT-OSS).
    #[serde(default)]
    pub clamped: bool,
    /// Rotary embedding carries a scale of attention (YaRN with an attention factor other than one).
    #[serde(default)]
    pub scaled_rope: bool,
    /// Multi-token prediction, where the model trains with it.
    #[serde(default)]
    pub mtp: Option<MultiTokenPrediction>,
    /// The vision encoder in front of it, where it has one. It takes part where images are given.
    #[serde(default)]
    pub vision: Option<VisionEncoder>,
    /// Published counts and configuration, with their sources, by field name.
    #[serde(default)]
    pub sources: BTreeMap<String, String>,
}

impl Model {
    /// What kind the layer with this index (0-based) is.
    pub fn layer_kind(&self, index: u64) -> LayerKind {
        let feed_forward = match &self.moe {
            Some(moe) if index >= moe.first_dense_layers && is_nth(index, moe.every) => {
                FeedForward::MoE
            }
            _ => FeedForward::Dense,
        };
        let (window, chunked) = match self.attention {
            Attention::Grouped {
                sliding_window: Some(window),
                full_every,
                chunked,
                ..
            } if !full_every.is_some_and(|every| every > 1 && is_nth(index, every)) => {
                (Some(window), chunked)
            }
            _ => (None, false),
        };
        LayerKind {
            feed_forward,
            window,
            chunked,
        }
    }

    /// The kinds of layer of this model with the number of layers of each, in the order in which
    /// they first occur.
    pub fn layer_kinds(&self) -> Vec<(LayerKind, u64)> {
        let mut kinds: Vec<(LayerKind, u64)> = Vec::new();
        for kind in (0..self.layers).map(|index| self.layer_kind(index)) {
            match kinds.iter_mut().find(|(known, _)| *known == kind) {
                Some((_, count)) => *count += 1,
                None => kinds.push((kind, 1)),
            }
        }
        kinds
    }

    /// The kind of the layer inside a prediction module: that of the last layer, without a window.
    pub fn mtp_layer_kind(&self) -> LayerKind {
        LayerKind {
            window: None,
            chunked: false,
            ..self.layer_kind(self.layers.saturating_sub(1))
        }
    }
}

/// Whether the layer with this 0-based index is the last of a run of `every`.
fn is_nth(index: u64, every: u64) -> bool {
    index.saturating_add(1).is_multiple_of(every.max(1))
}
