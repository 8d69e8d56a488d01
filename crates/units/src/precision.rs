//! Number formats of matrix operands.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::fmt;

/// Number format of a matrix operand; names a tensor-core rate and a width in memory.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum Precision {
    /// IEEE single precision.
    Fp32,
    /// 19-bit tensor-core input kept in 32 bits.
    Tf32,
    /// IEEE half precision; runs at the bf16 rate on every accelerator in the catalogue.
    Fp16,
    /// bfloat16.
    Bf16,
    /// 8-bit floats (E4M3 or E5M2), whatever the scaling recipe.
    Fp8,
    /// 4-bit floats (E2M1) with block scales.
    Fp4,
}

impl Precision {
    /// Width of one element in memory, in bits, without scales.
    pub const fn bits(self) -> u64 {
        match self {
            Self::Fp32 | Self::Tf32 => 32,
            Self::Fp16 | Self::Bf16 => 16,
            Self::Fp8 => 8,
            Self::Fp4 => 4,
        }
    }
}

impl fmt::Display for Precision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Fp32 => "fp32",
            Self::Tf32 => "tf32",
            Self::Fp16 => "fp16",
            Self::Bf16 => "bf16",
            Self::Fp8 => "fp8",
            Self::Fp4 => "fp4",
        })
    }
}
