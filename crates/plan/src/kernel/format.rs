//! Number formats of weights in serving, as kernels see them.

use rackflow_units::Precision;

/// How a weight matrix is stored, and in which format the tensor cores multiply it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Format {
    /// 16-bit weights and activations.
    Bf16,
    /// 8-bit floats with one scale per tensor or row. Activations are quantised before the product.
    Fp8,
    /// 8-bit floats with an fp32 scale per 128 activations and per 128 x 128 weights (DeepSeek-V3).
    Fp8Block,
    /// 4-bit floats with an fp8 scale per 16 elements, on both sides.
    Nvfp4,
    /// 4-bit floats with a power-of-two scale per 32 weights; activations in 8-bit floats.
    Mxfp4,
    /// The same weights under 16-bit activations: unpacked to bf16 before they are multiplied.
    Mxfp4Weights,
    /// 8-bit integer weights under 16-bit activations.
    Int8Weights,
    /// 4-bit integer weights with a 16-bit scale per 128, under 16-bit activations (AWQ, GPTQ).
    Int4Weights,
}

impl Format {
    /// Every format, in the order of the enum.
    pub const ALL: [Self; 8] = [
        Self::Bf16,
        Self::Fp8,
        Self::Fp8Block,
        Self::Nvfp4,
        Self::Mxfp4,
        Self::Mxfp4Weights,
        Self::Int8Weights,
        Self::Int4Weights,
    ];

    /// Format in which the tensor cores multiply.
    pub fn math(self) -> Precision {
        match self {
            Self::Bf16 | Self::Mxfp4Weights | Self::Int8Weights | Self::Int4Weights => {
                Precision::Bf16
            }
            Self::Fp8 | Self::Fp8Block | Self::Mxfp4 => Precision::Fp8,
            Self::Nvfp4 => Precision::Fp4,
        }
    }

    /// Bytes of one weight in memory, with its share of the scales.
    pub fn weight_bytes(self) -> f64 {
        match self {
            Self::Bf16 => 2.0,
            Self::Fp8 => 1.0,
            Self::Fp8Block => 1.0 + 4.0 / (128.0 * 128.0),
            Self::Nvfp4 => 0.5 + 1.0 / 16.0,
            Self::Mxfp4 | Self::Mxfp4Weights => 0.5 + 1.0 / 32.0,
            Self::Int8Weights => 1.0 + 2.0 / 128.0,
            Self::Int4Weights => 0.5 + 2.0 / 128.0,
        }
    }

    /// Bytes of one activation as the product reads it, with its share of the scales.
    pub fn activation_bytes(self) -> f64 {
        match self {
            Self::Bf16 | Self::Mxfp4Weights | Self::Int8Weights | Self::Int4Weights => 2.0,
            Self::Fp8 => 1.0,
            Self::Fp8Block => 1.0 + 4.0 / 128.0,
            Self::Nvfp4 => 0.5 + 1.0 / 16.0,
            Self::Mxfp4 => 1.0 + 1.0 / 32.0,
        }
    }

    /// Whether the scales of activations are known before they are, so that whatever writes them can
    /// quantise them: one per tensor, or one per 16 elements that the same thread has.
    pub fn has_static_scales(self) -> bool {
        matches!(self, Self::Fp8 | Self::Nvfp4)
    }

    /// Whether activations arrive in 16 bits and are quantised before the product.
    pub fn quantises_activations(self) -> bool {
        self.activation_bytes() < 2.0
    }
}
