//! Whether a shape makes sense, before anything is counted.

use crate::model::{Attention, FeedForward, Model};
use crate::vision::VisionEncoder;
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
    /// Heads of the vision encoder divide its width evenly.
    #[error("{heads} heads do not divide `hidden` {hidden} of the vision encoder")]
    VisionHeadsDoNotDivide {
        /// Attention heads.
        heads: u64,
        /// Width of a token.
        hidden: u64,
    },
    /// The encoder's own images do not cut into patches that can be merged.
    #[error(
        "images of {image} pixels are no multiple of {step}: patches of {patch}, {merge} merged along each side"
    )]
    ImageDoesNotCut {
        /// Side of an image.
        image: u64,
        /// Of which it must be a multiple.
        step: u64,
        /// Side of a patch.
        patch: u64,
        /// Patches along a side of what is merged.
        merge: u64,
    },
    /// `full_every` without a window.
    #[error("`{field}` says which layers see the whole image, but there is no `window`")]
    NoVisionWindow {
        /// The field.
        field: &'static str,
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
            Self::VisionHeadsDoNotDivide { .. } => "vision.heads",
            Self::ImageDoesNotCut { .. } => "vision.image",
            Self::NoVisionWindow { field } => field,
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
const MAX_PATCH: u64 = 1_000;
const MAX_MERGE: u64 = 16;
/// Side of an image.
const MAX_PIXELS: u64 = 100_000;
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
        if let Some(vision) = &self.vision {
            check_vision(vision)?;
        }
        let parameters = self.parameters();
        let all = parameters.total.saturating_add(parameters.mtp);
        if all.saturating_add(parameters.vision) > MAX_PARAMETERS {
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
                latents,
                sparse,
            } => {
                size("attention.mla.heads", heads, MAX_HEADS)?;
                size("attention.mla.latents", latents, MAX_HEADS)?;
                if let Some(index) = sparse {
                    size("attention.mla.sparse.heads", index.heads, MAX_HEADS)?;
                    size("attention.mla.sparse.head_dim", index.head_dim, MAX_WIDTH)?;
                    size("attention.mla.sparse.top_k", index.top_k, MAX_WINDOW)?;
                }
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

/// A vision encoder:
///
/// * every size is at least 1, where it is not optional, and none is absurd;
/// * heads divide its width;
/// * its own images, where it has a size for them, cut into patches that can be merged.
fn check_vision(vision: &VisionEncoder) -> Result<(), ModelError> {
    size("vision.layers", vision.layers, MAX_LAYERS)?;
    size("vision.hidden", vision.hidden, MAX_WIDTH)?;
    size("vision.heads", vision.heads, MAX_HEADS)?;
    size("vision.ffn", vision.ffn, MAX_FFN)?;
    size("vision.patch", vision.patch, MAX_PATCH)?;
    size("vision.frames", vision.frames, MAX_MODULES)?;
    size("vision.merge", vision.merge, MAX_MERGE)?;
    at_most(
        "vision.learned_positions",
        vision.learned_positions,
        MAX_POSITIONS,
    )?;
    at_most("vision.outer_norms", vision.outer_norms, MAX_MODULES)?;
    at_most(
        "vision.projector.deep",
        vision.projector.deep,
        vision.layers,
    )?;
    for width in &vision.projector.widths {
        size("vision.projector.widths", *width, MAX_FFN)?;
    }
    if !vision.hidden.is_multiple_of(vision.heads) {
        return Err(ModelError::VisionHeadsDoNotDivide {
            heads: vision.heads,
            hidden: vision.hidden,
        });
    }
    if let Some(window) = vision.window {
        size("vision.window", window, MAX_PIXELS)?;
    }
    if let Some(every) = vision.full_every {
        size("vision.full_every", every, MAX_LAYERS)?;
        if vision.window.is_none() {
            return Err(ModelError::NoVisionWindow {
                field: "vision.full_every",
            });
        }
    }
    let Some(image) = vision.image else {
        return Ok(());
    };
    size("vision.image", image, MAX_PIXELS)?;
    if !image.is_multiple_of(vision.step()) {
        return Err(ModelError::ImageDoesNotCut {
            image,
            step: vision.step(),
            patch: vision.patch,
            merge: vision.merge,
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{MoE, MultiTokenPrediction};
    use crate::vision::Projector;
    use std::collections::BTreeMap;

    fn dense() -> Model {
        Model {
            name: "small".to_owned(),
            layers: 4,
            hidden: 512,
            attention: grouped(8, 2, 64),
            ffn: 1024,
            gated: true,
            moe: None,
            vocab: 1000,
            tied_embeddings: false,
            learned_positions: 0,
            biases: false,
            clamped: false,
            scaled_rope: false,
            mtp: None,
            vision: None,
            sources: BTreeMap::new(),
        }
    }

    fn grouped(heads: u64, kv_heads: u64, head_dim: u64) -> Attention {
        Attention::Grouped {
            heads,
            kv_heads,
            head_dim,
            sliding_window: None,
            full_every: None,
            chunked: false,
            qk_norm: false,
            sinks: false,
        }
    }

    fn windowed(window: Option<u64>, every: Option<u64>, chunks: bool) -> Attention {
        let mut attention = grouped(8, 2, 64);
        if let Attention::Grouped {
            sliding_window,
            full_every,
            chunked,
            ..
        } = &mut attention
        {
            (*sliding_window, *full_every, *chunked) = (window, every, chunks);
        }
        attention
    }

    fn mixture() -> MoE {
        MoE {
            experts: 8,
            top_k: 2,
            expert_ffn: 256,
            shared_ffn: 0,
            first_dense_layers: 1,
            every: 1,
            group_limit: None,
        }
    }

    #[track_caller]
    fn refuses(model: Model, field: &str, text: &str) {
        let error = model.check().expect_err("is refused");
        assert_eq!((error.field(), error.to_string().as_str()), (field, text));
    }

    #[test]
    fn accepts_plain_shapes() {
        assert_eq!(dense().check(), Ok(()));
        assert_eq!(
            Model {
                moe: Some(mixture()),
                ..dense()
            }
            .check(),
            Ok(())
        );
        for (window, every, chunked) in [
            (Some(16), Some(2), false),
            (Some(16), None, false),
            (Some(16), Some(4), true),
        ] {
            let attention = windowed(window, every, chunked);
            assert_eq!(
                Model {
                    attention,
                    ..dense()
                }
                .check(),
                Ok(())
            );
        }
    }

    #[test]
    fn zero() {
        refuses(
            Model {
                layers: 0,
                ..dense()
            },
            "layers",
            "`layers` must not be 0",
        );
        refuses(
            Model {
                hidden: 0,
                ..dense()
            },
            "hidden",
            "`hidden` must not be 0",
        );
        refuses(
            Model {
                vocab: 0,
                ..dense()
            },
            "vocab",
            "`vocab` must not be 0",
        );
        let attention = grouped(8, 0, 64);
        let field = "attention.gqa.kv_heads";
        refuses(
            Model {
                attention,
                ..dense()
            },
            field,
            "`attention.gqa.kv_heads` must not be 0",
        );
        let mtp = Some(MultiTokenPrediction { modules: 0 });
        refuses(
            Model { mtp, ..dense() },
            "mtp.modules",
            "`mtp.modules` must not be 0",
        );
        let attention = Attention::Latent {
            heads: 8,
            q_lora_rank: None,
            kv_lora_rank: 0,
            qk_nope_head_dim: 32,
            qk_rope_head_dim: 16,
            v_head_dim: 32,
            latents: 1,
            sparse: None,
        };
        let field = "attention.mla.kv_lora_rank";
        refuses(
            Model {
                attention,
                ..dense()
            },
            field,
            "`attention.mla.kv_lora_rank` must not be 0",
        );
    }

    #[test]
    fn absurd() {
        refuses(
            Model {
                layers: 10_001,
                ..dense()
            },
            "layers",
            "`layers` is 10001, and no model has more than 10000",
        );
        refuses(
            Model {
                hidden: u64::MAX,
                ..dense()
            },
            "hidden",
            "`hidden` is 18446744073709551615, and no model has more than 1000000",
        );
    }

    #[test]
    fn kv_heads_do_not_divide() {
        let model = Model {
            attention: grouped(8, 3, 64),
            ..dense()
        };
        let text = "`kv_heads` 3 does not divide `heads` 8";
        refuses(model, "attention.gqa.kv_heads", text);
    }

    #[test]
    fn heads_do_not_fit() {
        let text =
            "8 heads of width 4096 are 32768 wide together, which does not go with `hidden` 512";
        refuses(
            Model {
                attention: grouped(8, 2, 4096),
                ..dense()
            },
            "attention.gqa.head_dim",
            text,
        );
    }

    #[test]
    fn no_window() {
        for (every, chunked, field) in [
            (Some(4), false, "attention.gqa.full_every"),
            (None, true, "attention.gqa.chunked"),
        ] {
            let model = Model {
                attention: windowed(None, every, chunked),
                ..dense()
            };
            let text =
                format!("`{field}` says how layers are windowed, but there is no `sliding_window`");
            refuses(model, field, &text);
        }
    }

    #[test]
    fn top_k_exceeds_experts() {
        let moe = Some(MoE {
            top_k: 9,
            ..mixture()
        });
        refuses(
            Model { moe, ..dense() },
            "moe.top_k",
            "`top_k` 9 is more than the 8 `experts`",
        );
    }

    #[test]
    fn no_routed_layer() {
        let moe = Some(MoE {
            first_dense_layers: 4,
            ..mixture()
        });
        let text = "`moe` leaves all 4 layers dense: `moe.first_dense_layers` is 4";
        refuses(Model { moe, ..dense() }, "moe.first_dense_layers", text);
        let moe = Some(MoE {
            every: 5,
            ..mixture()
        });
        let text = "`moe` leaves all 4 layers dense: `moe.every` is 5";
        refuses(Model { moe, ..dense() }, "moe.every", text);
    }

    #[test]
    fn no_dense_width() {
        refuses(
            Model { ffn: 0, ..dense() },
            "ffn",
            "layer 0 is dense, but `ffn` is 0",
        );
        let moe = Some(MoE {
            first_dense_layers: 0,
            every: 2,
            ..mixture()
        });
        let model = Model {
            ffn: 0,
            moe: moe.clone(),
            ..dense()
        };
        refuses(model, "ffn", "layer 0 is dense, but `ffn` is 0");
        let moe = Some(MoE {
            first_dense_layers: 0,
            ..mixture()
        });
        assert_eq!(
            Model {
                ffn: 0,
                moe,
                ..dense()
            }
            .check(),
            Ok(())
        );
    }

    #[test]
    fn vision_encoders() {
        let with = |change: fn(&mut VisionEncoder)| {
            let mut vision = encoder();
            change(&mut vision);
            Model {
                vision: Some(vision),
                ..dense()
            }
        };
        assert_eq!(with(|_| ()).check(), Ok(()));
        refuses(
            with(|vision| vision.heads = 3),
            "vision.heads",
            "3 heads do not divide `hidden` 64 of the vision encoder",
        );
        refuses(
            with(|vision| vision.patch = 0),
            "vision.patch",
            "`vision.patch` must not be 0",
        );
        refuses(
            with(|vision| vision.image = Some(30)),
            "vision.image",
            "images of 30 pixels are no multiple of 28: patches of 14, 2 merged along each side",
        );
        refuses(
            with(|vision| vision.full_every = Some(4)),
            "vision.full_every",
            "`vision.full_every` says which layers see the whole image, but there is no `window`",
        );
        refuses(
            with(|vision| vision.projector.widths = vec![8, 0]),
            "vision.projector.widths",
            "`vision.projector.widths` must not be 0",
        );
    }

    fn encoder() -> VisionEncoder {
        VisionEncoder {
            layers: 2,
            hidden: 64,
            heads: 4,
            ffn: 256,
            gated: false,
            biases: true,
            rotary: false,
            learned_positions: 4,
            patch: 14,
            frames: 1,
            patch_bias: false,
            class_token: false,
            outer_norms: 0,
            window: None,
            full_every: None,
            image: Some(28),
            merge: 2,
            projector: Projector {
                widths: vec![128],
                biases: true,
                norm: true,
                deep: 0,
            },
        }
    }

    #[test]
    fn too_many_parameters() {
        let model = Model {
            layers: 10_000,
            hidden: 1_000_000,
            ffn: 10_000_000,
            ..dense()
        };
        let model = Model {
            attention: grouped(8, 2, 100_000),
            ..model
        };
        let text = "these sizes make more than 10000000000000000 parameters";
        refuses(model, "layers", text);
    }
}
