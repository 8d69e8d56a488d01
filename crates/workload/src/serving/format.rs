//! Number formats of weights, cache and arithmetic.

use rackflow_units::Precision;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How a weight matrix is stored, and what it is multiplied in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum WeightFormat {
    /// 16 bits, weights and activations.
    Bf16,
    /// 8-bit floats with one scale per matrix or row, weights and activations.
    Fp8,
    /// 8-bit floats with one scale per 128 x 128 weights and per 128 activations (DeepSeek-V3).
    Fp8Block,
    /// 4-bit floats with one 8-bit scale per 16, weights and activations (NVIDIA).
    Nvfp4,
    /// 4-bit floats with one 8-bit scale per 32; activations are kept wider (GPT-OSS).
    Mxfp4,
    /// 4-bit integers with one 16-bit scale per 32; activations are kept in 16 bits.
    Int4,
}

impl WeightFormat {
    /// Machine name.
    pub const fn key(self) -> &'static str {
        match self {
            Self::Bf16 => "bf16",
            Self::Fp8 => "fp8",
            Self::Fp8Block => "fp8_block",
            Self::Nvfp4 => "nvfp4",
            Self::Mxfp4 => "mxfp4",
            Self::Int4 => "int4",
        }
    }

    /// Bytes of one weight, with its share of scales.
    pub const fn bytes(self) -> f64 {
        match self {
            Self::Bf16 => 2.0,
            Self::Fp8 => 1.0,
            Self::Fp8Block => 1.0 + 4.0 / 16384.0,
            Self::Nvfp4 => 0.5 + 1.0 / 16.0,
            Self::Mxfp4 => 0.5 + 1.0 / 32.0,
            Self::Int4 => 0.5 + 2.0 / 32.0,
        }
    }

    /// The format that tensor cores multiply in where the hardware has it; else they multiply in 16
    /// bits and weights are widened on the way.
    pub const fn operands(self) -> Precision {
        match self {
            Self::Bf16 | Self::Int4 => Precision::Bf16,
            Self::Fp8 | Self::Fp8Block => Precision::Fp8,
            Self::Nvfp4 => Precision::Fp4,
            // 4-bit weights times 8-bit activations run at the 8-bit rate.
            Self::Mxfp4 => Precision::Fp8,
        }
    }
}

/// How keys and values are cached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum KvFormat {
    /// 16 bits.
    Bf16,
    /// 8-bit floats.
    Fp8,
    /// 4-bit floats with one 8-bit scale per 16.
    Fp4,
}

impl KvFormat {
    /// Width of one element, in bits, without scales.
    pub const fn bits(self) -> u64 {
        match self {
            Self::Bf16 => 16,
            Self::Fp8 => 8,
            Self::Fp4 => 4,
        }
    }

    /// Bytes of one element, with its share of scales.
    pub const fn bytes(self) -> f64 {
        match self {
            Self::Bf16 => 2.0,
            Self::Fp8 => 1.0,
            Self::Fp4 => 0.5 + 1.0 / 16.0,
        }
    }
}

/// Formats of one deployment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ServingPrecision {
    /// Projections of attention but the last.
    pub attention: WeightFormat,
    /// The output projection of attention.
    pub attention_output: WeightFormat,
    /// Dense feed-forward networks and shared experts.
    pub dense: WeightFormat,
    /// Routed experts.
    pub experts: WeightFormat,
    /// Output matrix and token table.
    pub head: WeightFormat,
    /// Keys and values in the cache.
    pub kv: KvFormat,
    /// Tokens on their way to the experts; on the way back they are 16 bits wide.
    pub dispatch: WeightFormat,
}

impl ServingPrecision {
    /// Every matrix but the output in one format, and a cache in 16 bits.
    pub const fn uniform(weights: WeightFormat) -> Self {
        Self {
            attention: weights,
            attention_output: weights,
            dense: weights,
            experts: weights,
            head: WeightFormat::Bf16,
            kv: KvFormat::Bf16,
            dispatch: match weights {
                WeightFormat::Fp8 | WeightFormat::Fp8Block => WeightFormat::Fp8,
                WeightFormat::Nvfp4 => WeightFormat::Nvfp4,
                _ => WeightFormat::Bf16,
            },
        }
    }

    /// The narrowest format that the matrix products of the deployment run in: the one that its
    /// peak is named by.
    pub fn native(&self) -> Precision {
        [
            self.attention,
            self.attention_output,
            self.dense,
            self.experts,
        ]
        .into_iter()
        .map(WeightFormat::operands)
        .min_by_key(|p| p.bits())
        .unwrap_or(Precision::Bf16)
    }
}
