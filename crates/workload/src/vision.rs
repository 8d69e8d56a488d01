//! A vision encoder in front of a language model, and what images ask of it.
//!
//! An image is cut into square patches. Each patch becomes a token of a transformer in which every
//! token sees every other (no mask); squares of neighbouring tokens are merged, and a projector
//! brings them to the width of the language model, in whose sequence they take the place of words.

use crate::model::{Attention, Model};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Red, green and blue.
const CHANNELS: u64 = 3;

fn one() -> u64 {
    1
}

/// A vision transformer and its projector. Every layer is alike, but for windows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct VisionEncoder {
    /// Transformer layers.
    pub layers: u64,
    /// Width of a token.
    pub hidden: u64,
    /// Attention heads, of which each has keys and values of its own.
    pub heads: u64,
    /// Hidden width of the feed-forward network.
    pub ffn: u64,
    /// The feed-forward network is gated (SwiGLU): three matrices instead of two.
    #[serde(default)]
    pub gated: bool,
    /// Linear layers have biases. Without a gate this goes with LayerNorm, as in a language model.
    #[serde(default)]
    pub biases: bool,
    /// Positions are rotated into queries and keys of every layer.
    #[serde(default)]
    pub rotary: bool,
    /// Learned absolute positions: rows of the table; 0 for none.
    #[serde(default)]
    pub learned_positions: u64,
    /// Side of a patch [pixels].
    pub patch: u64,
    /// Frames that a patch is deep (2 for Qwen, which takes a still image twice).
    #[serde(default = "one")]
    pub frames: u64,
    /// The product that makes tokens of patches has a bias.
    #[serde(default)]
    pub patch_bias: bool,
    /// A token without a patch comes first, and is dropped behind the last layer.
    #[serde(default)]
    pub class_token: bool,
    /// Norms outside the layers: before the first, after the last.
    #[serde(default)]
    pub outer_norms: u64,
    /// Side of the square of patches within which a token sees others [patches]; all of the image
    /// where it is left out.
    #[serde(default)]
    pub window: Option<u64>,
    /// One layer in this many sees all of the image, where others are windowed.
    #[serde(default)]
    pub full_every: Option<u64>,
    /// Side of the images or tiles that the encoder takes [pixels]; any size where it is left out.
    #[serde(default)]
    pub image: Option<u64>,
    /// Side of the square of patches that become one token of the language model (pixel shuffle).
    #[serde(default = "one")]
    pub merge: u64,
    /// What brings tokens to the width of the language model.
    pub projector: Projector,
}

/// A chain of linear layers with activation functions between them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Projector {
    /// Widths of its layers, but for that of the last, which is the language model's.
    #[serde(default)]
    pub widths: Vec<u64>,
    /// Its layers have biases.
    #[serde(default)]
    pub biases: bool,
    /// Tokens are normalised before they are merged.
    #[serde(default)]
    pub norm: bool,
    /// Further projectors of this shape behind layers inside the encoder, whose results are added
    /// inside the language model (Qwen3-VL). Each normalises what is merged.
    #[serde(default)]
    pub deep: u64,
}

/// What of the encoder is trained. The language model always is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Frozen {
    /// All of it is trained.
    #[default]
    Nothing,
    /// The projector is trained, and the encoder runs forward only.
    Encoder,
    /// Both run forward only.
    EncoderAndProjector,
}

impl Frozen {
    /// Whether the encoder has a backward pass.
    pub fn trains_encoder(self) -> bool {
        self == Self::Nothing
    }

    /// Whether the projector has a backward pass.
    pub fn trains_projector(self) -> bool {
        self != Self::EncoderAndProjector
    }
}

/// The images of a training step: as many in each sequence, all of one size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Images {
    /// Images or tiles of each sequence.
    pub per_sequence: u64,
    /// Height of each [pixels].
    pub height: u64,
    /// Width of each [pixels].
    pub width: u64,
    /// What of the encoder is frozen.
    pub frozen: Frozen,
}

/// Parameters of an encoder, by part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VisionParameters {
    /// What makes tokens of patches: the product, the class token, positions.
    pub patches: u64,
    /// All transformer layers.
    pub layers: u64,
    /// Norms outside the layers.
    pub outer_norms: u64,
    /// The projector, with all further ones.
    pub projector: u64,
}

impl VisionParameters {
    /// Everything before the projector.
    pub fn encoder(&self) -> u64 {
        self.patches
            .saturating_add(self.layers)
            .saturating_add(self.outer_norms)
    }

    /// All of it.
    pub fn total(&self) -> u64 {
        self.encoder().saturating_add(self.projector)
    }
}

impl VisionEncoder {
    /// Elements of a patch.
    pub fn patch_elements(&self) -> u64 {
        [CHANNELS, self.frames, self.patch, self.patch]
            .into_iter()
            .fold(1, u64::saturating_mul)
    }

    /// Patches of an image.
    pub fn patches(&self, images: &Images) -> u64 {
        let side = |pixels: u64| pixels / self.patch.max(1);
        side(images.height).saturating_mul(side(images.width))
    }

    /// Tokens of the encoder for one image: its patches, and the class token.
    pub fn length(&self, images: &Images) -> u64 {
        self.patches(images).saturating_add(self.class_token.into())
    }

    /// Tokens of the language model's sequence that one image takes.
    pub fn tokens(&self, images: &Images) -> u64 {
        self.patches(images) / self.merge.saturating_mul(self.merge).max(1)
    }

    /// Pixels of which height and width of an image must be a multiple.
    pub fn step(&self) -> u64 {
        self.patch.saturating_mul(self.merge)
    }

    /// Tokens that a token of a windowed layer sees, over all windows of an image in the mean; `None`
    /// where it sees the whole image.
    pub fn window_tokens(&self, images: &Images) -> Option<u64> {
        let side = self.window?.max(1);
        let windows = |pixels: u64| (pixels / self.patch.max(1)).div_ceil(side).max(1);
        let windows = windows(images.height).saturating_mul(windows(images.width));
        (windows > 1).then(|| self.length(images).div_ceil(windows))
    }

    /// The transformer as a model whose sequences are images of this kind. It has no vocabulary.
    pub fn transformer(&self, images: &Images) -> Model {
        let window = self.window_tokens(images);
        Model {
            name: String::new(),
            layers: self.layers,
            hidden: self.hidden,
            attention: Attention::Grouped {
                heads: self.heads,
                kv_heads: self.heads,
                head_dim: self.hidden / self.heads.max(1),
                sliding_window: window,
                full_every: window.and(self.full_every),
                chunked: window.is_some(),
                qk_norm: false,
                sinks: false,
            },
            ffn: self.ffn,
            gated: self.gated,
            moe: None,
            vocab: 0,
            tied_embeddings: false,
            // A model with a table of positions rotates nothing.
            learned_positions: u64::from(!self.rotary),
            biases: self.biases,
            clamped: false,
            scaled_rope: false,
            mtp: None,
            vision: None,
            sources: BTreeMap::new(),
        }
    }

    /// The linear layers of one projector: columns and reduced dimension of each, in order, to a
    /// language model this wide.
    pub fn links(&self, hidden: u64) -> Vec<(u64, u64)> {
        let merged = self.merged();
        let widths = self.projector.widths.iter().copied();
        let inputs = std::iter::once(merged).chain(widths.clone());
        widths.chain(std::iter::once(hidden)).zip(inputs).collect()
    }

    /// Width of what is merged into one token.
    pub fn merged(&self) -> u64 {
        [self.merge, self.merge, self.hidden]
            .into_iter()
            .fold(1, u64::saturating_mul)
    }

    /// Projectors, with those behind layers inside the encoder.
    pub fn projectors(&self) -> u64 {
        self.projector.deep.saturating_add(1)
    }

    /// Scale, and a shift where norms are LayerNorm.
    fn norm_parameters(&self, width: u64) -> u64 {
        if self.biases && !self.gated {
            width.saturating_mul(2)
        } else {
            width
        }
    }

    /// Parameters, in front of a language model this wide.
    pub fn parameters(&self, hidden: u64) -> VisionParameters {
        let any = Images {
            per_sequence: 1,
            height: self.patch,
            width: self.patch,
            frozen: Frozen::Nothing,
        };
        let transformer = self.transformer(&any);
        let layer = transformer.layer_parameters(transformer.layer_kind(0));
        let rows = self
            .patch_elements()
            .saturating_add(self.learned_positions)
            .saturating_add(self.patch_bias.into())
            .saturating_add(self.class_token.into());
        let links = self.links(hidden).into_iter().fold(0u64, |sum, (n, k)| {
            let bias = if self.projector.biases { n } else { 0 };
            sum.saturating_add(n.saturating_mul(k).saturating_add(bias))
        });
        let norm = |width: u64| {
            if self.projector.norm {
                self.norm_parameters(width)
            } else {
                0
            }
        };
        let deep = self
            .projector
            .deep
            .saturating_mul(links.saturating_add(norm(self.merged())));
        VisionParameters {
            patches: rows.saturating_mul(self.hidden),
            layers: layer.total().saturating_mul(self.layers),
            outer_norms: self
                .outer_norms
                .saturating_mul(self.norm_parameters(self.hidden)),
            projector: links.saturating_add(norm(self.hidden)).saturating_add(deep),
        }
    }

    /// Model FLOPs of one image in a training step: two for each weight that a token is multiplied
    /// by, and for each pair of tokens that see each other, forward; the same again for each of the
    /// two gradients that are needed. Frozen layers need none, and nobody needs that of the pixels.
    /// A frozen encoder needs none from the projector's first layer either.
    pub fn flops_per_image(&self, images: &Images, hidden: u64) -> f64 {
        let frozen = images.frozen;
        let gradients = |input: bool, weight: bool| 1.0 + f64::from(input) + f64::from(weight);
        let length = self.length(images) as f64;
        let transformer = self.transformer(images);
        let mut layers = 0.0;
        for (kind, count) in transformer.layer_kinds() {
            let layer = transformer.layer_parameters(kind);
            let biases = if self.biases {
                // Of queries, keys, values and output, and of both products behind.
                5 * self.hidden + self.ffn * if self.gated { 2 } else { 1 }
            } else {
                0
            };
            let weights = (layer.attention + layer.dense_ffn).saturating_sub(biases);
            let keys = kind.window.map_or(length, |window| window as f64);
            let scores = 2.0 * self.hidden as f64 * keys;
            layers += count as f64 * (weights as f64 + scores);
        }
        let trained = frozen.trains_encoder();
        let layers = layers * length * gradients(trained, trained);
        let patches = (self.patches(images) as f64)
            * (self.patch_elements() * self.hidden) as f64
            * gradients(false, trained);
        let mut projector = 0.0;
        for (i, (n, k)) in self.links(hidden).into_iter().enumerate() {
            let weight = frozen.trains_projector();
            let input = weight && (i > 0 || trained);
            projector += (n * k) as f64 * gradients(input, weight);
        }
        projector *= self.tokens(images) as f64 * self.projectors() as f64;
        2.0 * (layers + patches + projector)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encoder() -> VisionEncoder {
        VisionEncoder {
            layers: 4,
            hidden: 8,
            heads: 2,
            ffn: 20,
            gated: true,
            biases: true,
            rotary: true,
            learned_positions: 0,
            patch: 2,
            frames: 1,
            patch_bias: false,
            class_token: false,
            outer_norms: 0,
            window: Some(4),
            full_every: Some(2),
            image: None,
            merge: 2,
            projector: Projector {
                widths: vec![30],
                biases: true,
                norm: true,
                deep: 0,
            },
        }
    }

    fn images(height: u64, width: u64, frozen: Frozen) -> Images {
        Images {
            per_sequence: 1,
            height,
            width,
            frozen,
        }
    }

    #[test]
    fn tokens_and_windows_by_hand() {
        let images = images(16, 24, Frozen::Nothing);
        let encoder = encoder();
        assert_eq!(encoder.patches(&images), 8 * 12);
        assert_eq!(encoder.tokens(&images), 4 * 6);
        assert_eq!(encoder.window_tokens(&images), Some(16));
        let with_class = VisionEncoder {
            class_token: true,
            window: None,
            ..encoder
        };
        assert_eq!(with_class.length(&images), 97);
        assert_eq!(with_class.tokens(&images), 24);
        assert_eq!(with_class.window_tokens(&images), None);
    }

    #[test]
    fn parameters_by_hand() {
        let counts = encoder().parameters(50);
        let attention = 4 * (8 * 8 + 8);
        let ffn = 2 * (8 * 20 + 20) + 20 * 8 + 8;
        assert_eq!(counts.layers, 4 * (attention + ffn + 2 * 8));
        assert_eq!(counts.patches, 3 * 4 * 8);
        assert_eq!(counts.projector, 8 + (32 * 30 + 30) + (30 * 50 + 50));
        // Without a gate norms have a shift; further projectors norm what is merged.
        let other = VisionEncoder {
            gated: false,
            class_token: true,
            patch_bias: true,
            learned_positions: 5,
            outer_norms: 2,
            projector: Projector {
                deep: 3,
                ..encoder().projector
            },
            ..encoder()
        };
        let counts = other.parameters(50);
        assert_eq!(counts.patches, (12 + 5 + 2) * 8);
        assert_eq!(counts.outer_norms, 2 * 16);
        let links = (32 * 30 + 30) + (30 * 50 + 50);
        assert_eq!(counts.projector, 16 + links + 3 * (64 + links));
    }

    /// What freezing takes away is the backward pass, and what only that needs.
    #[test]
    fn flops_by_hand() {
        let encoder = encoder();
        let flops = |frozen| encoder.flops_per_image(&images(16, 16, frozen), 50);
        let weights = 4 * 8 * 8 + 3 * 8 * 20;
        let layers = (4 * weights + 2 * 2 * 8 * 64 + 2 * 2 * 8 * 16) * 64;
        let (patches, first, second) = (64 * 12 * 8, 16 * 32 * 30, 16 * 30 * 50);
        let all = 3 * layers + 2 * patches + 3 * (first + second);
        assert_eq!(flops(Frozen::Nothing), 2.0 * all as f64);
        let projector = layers + patches + 2 * first + 3 * second;
        assert_eq!(flops(Frozen::Encoder), 2.0 * projector as f64);
        let forward = layers + patches + first + second;
        assert_eq!(flops(Frozen::EncoderAndProjector), 2.0 * forward as f64);
    }
}
