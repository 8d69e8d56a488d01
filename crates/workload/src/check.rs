//! Whether a shape makes sense, before anything is counted.

use crate::model::{Attention, FeedForward, Model};
use thiserror::Error;

/// What is wrong with the shape of a model. [`ModelError::field`] says where.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ModelError {
    /// A size that must be at least 1 is 0.
    #[error("`{field}` must not be 0")]
    Zero {
        /// The field.
        field: &'static str,
    },
    /// A size beyond anything that could be meant.
    #[error("`{field}` is {value}, and no model has more than {max}")]
    Absurd {
        /// The field.
        field: &'static str,
        /// What it says.
        value: u64,
        /// What it may say at most.
        max: u64,
    },
    /// Every group of query heads shares one key-value head.
    #[error("`kv_heads` {kv_heads} does not divide `heads` {heads}")]
    KvHeadsDoNotDivide {
        /// Query heads.
        heads: u64,
        /// Key-value heads.
        kv_heads: u64,
    },
    /// The heads together may be wider or narrower than the residual stream, but not by so much.
    #[error(
        "{heads} heads of width {head_dim} are {} wide together, which does not go with `hidden` {hidden}",
        heads * head_dim
    )]
    HeadsDoNotFit {
        /// Query heads.
        heads: u64,
        /// Width of one head.
        head_dim: u64,
        /// Width of the residual stream.
        hidden: u64,
    },
    /// `full_every` or `chunked` describe a window that is not there.
    #[error("`{field}` says how layers are windowed, but there is no `sliding_window`")]
    NoWindow {
        /// The field.
        field: &'static str,
    },
    /// A token cannot visit more experts than there are.
    #[error("`top_k` {top_k} is more than the {experts} `experts`")]
    TopKExceedsExperts {
        /// Experts that a token visits.
        top_k: u64,
        /// Experts that there are.
        experts: u64,
    },
    /// A mixture that no layer has.
    #[error("`moe` leaves all {layers} layers dense: `{field}` is {value}")]
    NoRoutedLayer {
        /// The field that keeps layers dense.
        field: &'static str,
        /// What it says.
        value: u64,
        /// Layers of the model.
        layers: u64,
    },
    /// Some layers are dense, and nothing says how wide they are.
    #[error("layer {layer} is dense, but `ffn` is 0")]
    NoDenseWidth {
        /// 0-based index of the first such layer.
        layer: u64,
    },
    /// Each size is possible, all of them together are not.
    #[error("these sizes make more than {max} parameters")]
    TooManyParameters {
        /// What a model may have at most.
        max: u64,
    },
}

impl ModelError {
    /// The field to look at, with dots where it is nested: `moe.top_k`.
    pub fn field(&self) -> &'static str {
        match self {
            Self::Zero { field }
            | Self::Absurd { field, .. }
            | Self::NoWindow { field }
            | Self::NoRoutedLayer { field, .. } => field,
            Self::KvHeadsDoNotDivide { .. } => "attention.gqa.kv_heads",
            Self::HeadsDoNotFit { .. } => "attention.gqa.head_dim",
            Self::TopKExceedsExperts { .. } => "moe.top_k",
            Self::NoDenseWidth { .. } => "ffn",
            Self::TooManyParameters { .. } => "layers",
        }
    }
}

const MAX_LAYERS: u64 = 10_000;
const MAX_WIDTH: u64 = 1_000_000;
const MAX_FFN: u64 = 10_000_000;
const MAX_HEADS: u64 = 100_000;
const MAX_EXPERTS: u64 = 100_000;
const MAX_VOCAB: u64 = 100_000_000;
const MAX_POSITIONS: u64 = 100_000_000;
const MAX_WINDOW: u64 = 1_000_000_000;
const MAX_MODULES: u64 = 64;
/// Ten quadrillion; bits of a cache and bytes of optimizer states still fit 64 bits.
const MAX_PARAMETERS: u64 = 10_000_000_000_000_000;
/// Heads together against the residual stream: DeepSeek-V3 has 2.3, Gemma and small Qwens 2.
const MAX_HEADS_TO_HIDDEN: u64 = 32;

/// At least 1 and at most `max`.
fn size(field: &'static str, value: u64, max: u64) -> Result<(), ModelError> {
    if value == 0 {
        return Err(ModelError::Zero { field });
    }
    at_most(field, value, max)
}

fn at_most(field: &'static str, value: u64, max: u64) -> Result<(), ModelError> {
    if value > max {
        Err(ModelError::Absurd { field, value, max })
    } else {
        Ok(())
    }
}

impl Model {
    /// Refuses a shape that cannot be meant, so that counting it neither overflows nor takes long:
    ///
    /// * every size is at least 1, where it is not optional, and none is absurd;
    /// * key-value heads divide query heads, and heads go with the width of the residual stream;
    /// * what describes a window has one;
    /// * a token visits no more experts than there are;
    /// * a mixture has at least one layer, and dense layers have a width;
    /// * the whole has fewer than 10^16 parameters.
    pub fn check(&self) -> Result<(), ModelError> {
        size("layers", self.layers, MAX_LAYERS)?;
        size("hidden", self.hidden, MAX_WIDTH)?;
        size("vocab", self.vocab, MAX_VOCAB)?;
        at_most("ffn", self.ffn, MAX_FFN)?;
        at_most("learned_positions", self.learned_positions, MAX_POSITIONS)?;
        if let Some(mtp) = &self.mtp {
            size("mtp.modules", mtp.modules, MAX_MODULES)?;
        }
        self.check_attention()?;
        self.check_feed_forward()?;
        let parameters = self.parameters();
        if parameters.total.saturating_add(parameters.mtp) > MAX_PARAMETERS {
            return Err(ModelError::TooManyParameters {
                max: MAX_PARAMETERS,
            });
        }
        Ok(())
    }

    fn check_attention(&self) -> Result<(), ModelError> {
        match self.attention {
            Attention::Grouped {
                heads,
                kv_heads,
                head_dim,
                sliding_window,
                full_every,
                chunked,
                ..
            } => {
                size("attention.gqa.heads", heads, MAX_HEADS)?;
                size("attention.gqa.kv_heads", kv_heads, MAX_HEADS)?;
                size("attention.gqa.head_dim", head_dim, MAX_WIDTH)?;
                if !heads.is_multiple_of(kv_heads) {
                    return Err(ModelError::KvHeadsDoNotDivide { heads, kv_heads });
                }
                let width = heads * head_dim;
                let fits = width <= self.hidden * MAX_HEADS_TO_HIDDEN
                    && self.hidden <= width * MAX_HEADS_TO_HIDDEN;
                if !fits {
                    return Err(ModelError::HeadsDoNotFit {
                        heads,
                        head_dim,
                        hidden: self.hidden,
                    });
                }
                if let Some(every) = full_every {
                    size("attention.gqa.full_every", every, MAX_LAYERS)?;
                }
                match sliding_window {
                    Some(window) => size("attention.gqa.sliding_window", window, MAX_WINDOW),
                    None if chunked => Err(ModelError::NoWindow {
                        field: "attention.gqa.chunked",
                    }),
                    None if full_every.is_some() => Err(ModelError::NoWindow {
                        field: "attention.gqa.full_every",
                    }),
                    None => Ok(()),
                }
            }
            Attention::Latent {
                heads,
                q_lora_rank,
                kv_lora_rank,
                qk_nope_head_dim,
                qk_rope_head_dim,
                v_head_dim,
            } => {
                size("attention.mla.heads", heads, MAX_HEADS)?;
                if let Some(rank) = q_lora_rank {
                    size("attention.mla.q_lora_rank", rank, MAX_WIDTH)?;
                }
                size("attention.mla.kv_lora_rank", kv_lora_rank, MAX_WIDTH)?;
                size(
                    "attention.mla.qk_nope_head_dim",
                    qk_nope_head_dim,
                    MAX_WIDTH,
                )?;
                size(
                    "attention.mla.qk_rope_head_dim",
                    qk_rope_head_dim,
                    MAX_WIDTH,
                )?;
                size("attention.mla.v_head_dim", v_head_dim, MAX_WIDTH)
            }
        }
    }

    fn check_feed_forward(&self) -> Result<(), ModelError> {
        let Some(moe) = &self.moe else {
            return if self.ffn == 0 {
                Err(ModelError::NoDenseWidth { layer: 0 })
            } else {
                Ok(())
            };
        };
        size("moe.experts", moe.experts, MAX_EXPERTS)?;
        size("moe.top_k", moe.top_k, MAX_EXPERTS)?;
        size("moe.expert_ffn", moe.expert_ffn, MAX_FFN)?;
        at_most("moe.shared_ffn", moe.shared_ffn, MAX_FFN)?;
        size("moe.every", moe.every, u64::MAX)?;
        if moe.top_k > moe.experts {
            return Err(ModelError::TopKExceedsExperts {
                top_k: moe.top_k,
                experts: moe.experts,
            });
        }
        let dense = |layer: &u64| self.layer_kind(*layer).feed_forward == FeedForward::Dense;
        if (0..self.layers).all(|layer| dense(&layer)) {
            let first = moe.first_dense_layers;
            let (field, value) = if first >= self.layers {
                ("moe.first_dense_layers", first)
            } else {
                ("moe.every", moe.every)
            };
            return Err(ModelError::NoRoutedLayer {
                field,
                value,
                layers: self.layers,
            });
        }
        match (0..self.layers).find(dense) {
            Some(layer) if self.ffn == 0 => Err(ModelError::NoDenseWidth { layer }),
            _ => Ok(()),
        }
    }
}
