//! One accelerator: what it can compute, read and exponentiate per second.

use rackflow_units::{
    Bandwidth, Bytes, FlopRate, Frequency, Power, Precision, SimDuration, Usd, UsdPerHour,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// One value per number format of the tensor cores. Missing formats are not supported in hardware
/// and fall back to the next wider one.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ByPrecision<T> {
    /// bf16 and fp16, which share one rate on every accelerator in the catalogue.
    pub bf16: T,
    /// 8-bit floats.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fp8: Option<T>,
    /// 4-bit floats.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fp4: Option<T>,
}

impl<T: Copy> ByPrecision<T> {
    /// The value for `precision`, or for the nearest wider format that has one.
    pub fn get(&self, precision: Precision) -> T {
        match precision {
            Precision::Fp32 | Precision::Tf32 | Precision::Fp16 | Precision::Bf16 => self.bf16,
            Precision::Fp8 => self.fp8.unwrap_or(self.bf16),
            Precision::Fp4 => self.fp4.or(self.fp8).unwrap_or(self.bf16),
        }
    }
}

/// An accelerator: a GPU package or a TPU chip. Rates are dense and per package.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Accelerator {
    /// Catalogue name, such as `h100-sxm`. Filled from the key where it is left out.
    #[serde(default)]
    pub name: String,
    /// Streaming multiprocessors (compute units, tensor cores' hosts) enabled on the package.
    pub sms: u32,
    /// Clock at which `peak` is reached.
    pub clock: Frequency,
    /// Dense matrix rate by number format ("with sparsity" figures are halved before they enter).
    pub peak: ByPrecision<FlopRate>,
    /// Rate of fp32 arithmetic outside the tensor cores.
    pub vector: FlopRate,
    /// Exponentials per SM and clock (special-function units): 16 on Hopper, 32 on B300.
    pub exponentials_per_sm_clock: u32,
    /// Memory capacity.
    pub memory: Bytes,
    /// What the driver reports as its memory, over `memory`: 80 GB of an H100 are 79.1 GiB, 84.9e9 bytes.
    #[serde(default = "whole")]
    pub reported_memory: f64,
    /// Peak memory bandwidth.
    pub memory_bandwidth: Bandwidth,
    /// Last-level cache.
    pub l2: Bytes,
    /// Bandwidth to the host, one direction (PCIe or NVLink-C2C).
    pub host_bandwidth: Bandwidth,
    /// Board power limit.
    pub power: Power,
    /// Rent per hour, where a market price is known.
    #[serde(default)]
    pub price: Option<UsdPerHour>,
    /// What a buyer spends on one in all: with its share of server, network and storage, without the
    /// building.
    #[serde(default)]
    pub capital: Option<Usd>,
    /// What it draws of `power`, by what it does.
    #[serde(default)]
    pub draw: Draw,
    /// What measurement adds to the data sheet.
    pub measured: Measured,
    /// Source of each value, by field name; `"*"` covers the fields that are not named.
    #[serde(default)]
    pub sources: BTreeMap<String, String>,
}

/// Generation of the tensor cores, told by what an SM multiplies in a clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Generation {
    /// Up to 2048 bf16 operations per SM and clock: Ampere, AMD's units.
    Ampere,
    /// 4096: Hopper, also where its rate is held back (H20).
    Hopper,
    /// 8192 and more: Blackwell.
    Blackwell,
}

fn whole() -> f64 {
    1.0
}

impl Accelerator {
    /// Bytes that the driver has to give.
    pub fn capacity(&self) -> Bytes {
        Bytes::new((self.memory.as_f64() * self.reported_memory) as u64)
    }

    /// Generation of the tensor cores. Less than Ampere's, but in 8 bits too, is a Hopper held back for
    /// export (H20).
    pub fn generation(&self) -> Generation {
        let per_clock = self.peak.bf16.flops_per_sec() / (f64::from(self.sms) * self.clock.hertz());
        match per_clock {
            ..1500.0 if self.peak.fp8.is_some() => Generation::Hopper,
            ..3000.0 => Generation::Ampere,
            3000.0..6000.0 => Generation::Hopper,
            _ => Generation::Blackwell,
        }
    }
}

/// Power drawn as a fraction of the board's limit, by what runs. The defaults are typical of
/// data-centre GPUs (from memory, unverified), but for matrix products of 16- and 8-bit operands,
/// which run at the limit: that is what lowers their clock.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Draw {
    /// Nothing runs.
    pub idle: f64,
    /// Kernels of collectives wait for their partners.
    pub waiting: f64,
    /// Memory is the limit.
    pub memory: f64,
    /// Matrix products run, by the format of their operands.
    pub math: ByPrecision<f64>,
}

impl Default for Draw {
    fn default() -> Self {
        Self {
            idle: 0.1,
            waiting: 0.35,
            memory: 0.7,
            math: ByPrecision {
                bf16: 1.0,
                fp8: Some(1.0),
                fp4: Some(1.0),
            },
        }
    }
}

/// Efficiency constants of one accelerator. They serve every model alike.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Measured {
    /// Fraction of `peak` that the main loop of a large GEMM sustains (power and clocks under load,
    /// operand delivery), before tile and wave quantisation.
    pub gemm: ByPrecision<f64>,
    /// Fused attention, by the age of the kernel.
    pub attention: AttentionRates,
    /// Clock that hours of work leave over the clock of a short benchmark, at the power limit.
    pub continuous_clock: f64,
    /// Fraction of `memory_bandwidth` that a long stream reaches.
    pub memory: f64,
    /// Shortest time of any kernel on the device: scheduling, prologue and drain.
    pub kernel_floor: SimDuration,
}

/// Efficiency of fused attention by generation of the kernel. Exponentials come on top.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AttentionRates {
    /// FlashAttention 1, or a Triton kernel of that age.
    pub flash1: AttentionRate,
    /// FlashAttention 2.
    pub flash2: AttentionRate,
    /// cuDNN before 9.4 (2024). Left out, `best` stands for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cudnn_9_1: Option<AttentionRate>,
    /// cuDNN 9.4 to 9.17 (2025). Left out, `best` stands for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cudnn_9_13: Option<AttentionRate>,
    /// cuDNN from 9.18 on (2026). Left out, `best` stands for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cudnn_9_19: Option<AttentionRate>,
    /// The fastest of serving libraries: FlashAttention 3 or 4, TensorRT-LLM.
    pub best: AttentionRate,
}

/// Fraction of the dense peak that attention's matrix products sustain in a long inner loop.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AttentionRate {
    /// Forward, of the bf16 peak.
    pub forward: f64,
    /// Backward, of the bf16 peak.
    pub backward: f64,
    /// Forward in 8-bit floats, of the fp8 peak. Left out, 8-bit operands run at the bf16 rate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub forward_fp8: Option<f64>,
    /// Exponentials per second over those of the exponent unit, where the kernel computes a part of them
    /// as polynomials on the vector units. Left out, 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exponentials: Option<f64>,
    /// Scores per SM and clock that go through the softmax and its gradient in the backward pass. Left
    /// out, exponentials are its only bound.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backward_scores: Option<f64>,
}
