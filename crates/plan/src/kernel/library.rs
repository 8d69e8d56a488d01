//! Kernel libraries: who wrote the kernel, and the constants that go with it.

use super::{Format, Generation, constants};
use rackflow_units::Precision;

/// Whose kernels run. A serving engine picks one kernel per format; its name stands for its picks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub enum Library {
    /// The fastest kernel known for the accelerator, with a quantisation that streams at memory
    /// bandwidth (or is fused into the kernel before).
    #[default]
    Best,
    /// vLLM 0.24: cuBLAS (bf16), CUTLASS (fp8), DeepGEMM (blocks), FlashInfer (nvfp4), FlashAttention
    /// 3 on Hopper and TensorRT-LLM's attention by way of FlashInfer on Blackwell.
    Vllm,
    /// SGLang 0.5.14: cuBLAS, its own fp8 kernel, DeepGEMM, FlashInfer's CuTe DSL, FlashAttention 3
    /// and TensorRT-LLM's attention.
    Sglang,
    /// TensorRT-LLM 1.3: cuBLASLt, DeepGEMM, its own attention.
    TensorRtLlm,
    /// cuBLAS 11 and attention written for Ampere: the first software that ran on Hopper.
    Cublas11,
}

impl Library {
    /// Every library whose kernels were measured one by one, in the order of the enum.
    pub const ALL: [Self; 4] = [Self::Best, Self::Vllm, Self::Sglang, Self::TensorRtLlm];
}

/// How a library quantises the left operand of a product before it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Quantise {
    /// Kernels, launches between them and what else does not depend on the size [s].
    pub fixed: f64,
    /// Least time of one row: kernels with one block per row [s].
    pub row: f64,
    /// Part of a stream's memory bandwidth that the kernel reaches.
    pub memory: f64,
}

/// Constants of one library's product in one format on one generation of tensor cores.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct GemmRates {
    /// Long-loop efficiency over the accelerator's own
    /// ([`Measured::gemm`](rackflow_topology::Measured)).
    pub efficiency: f64,
    /// Most parts into which the reduction is split.
    pub max_split: f64,
    /// Fill and store of a tile over those of [`Mechanism`](super::Mechanism).
    pub tile_cycles: f64,
    /// Part of a stream's bandwidth at which weights arrive.
    pub memory: f64,
    /// Latency of the first operands and of the last store, which nothing hides [s].
    pub ramp: f64,
    /// Memory bandwidth that one SM can ask for over its even share.
    pub sm_share: f64,
    /// Quantisation of the activations, where the format asks for it.
    pub quantise: Quantise,
    /// Time in which the host prepares the call, when nothing is captured in a CUDA graph [s].
    pub host: f64,
}

const STREAM: Quantise = Quantise {
    fixed: 0.0,
    row: 0.0,
    memory: 1.0,
};

const OWN: GemmRates = GemmRates {
    efficiency: 1.0,
    max_split: 16.0,
    tile_cycles: 1.0,
    memory: 0.85,
    ramp: 1.1e-6,
    sm_share: f64::INFINITY,
    quantise: STREAM,
    host: 0.0,
};

/// Constants of one library's decode attention on one generation of tensor cores.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct DecodeRates {
    /// What one call takes beyond the attention itself: the step that merges split keys, small
    /// kernels that plan the work or quantise the queries [s].
    pub fixed: f64,
    /// SM-time of one sequence and key-value head beyond its keys: its queries and the page table
    /// are fetched, the result is normalised and stored [s].
    pub item: f64,
    /// SM-time of one query head of an item [s].
    pub head: f64,
    /// Most time between the ends of the first and of the last SM [s].
    pub tail: f64,
    /// Part of a stream's bandwidth at which keys and values arrive; less for 8-bit ones where SMs
    /// convert them first.
    pub memory: f64,
}

/// Constants of one library's decode attention over latents (MLA, absorbed).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LatentRates {
    /// As in [`DecodeRates`] [s].
    pub fixed: f64,
    /// SM-time of one sequence [s].
    pub item: f64,
    /// SM-time of one query head of a sequence [s].
    pub head: f64,
    /// Most time between the ends of the first and of the last SM [s].
    pub tail: f64,
    /// Fewest query heads in a tile: with fewer on a rank, tensor cores multiply padding.
    pub rows: f64,
    /// Most parts into which the keys of a sequence are split. Without a split a long sequence runs
    /// on one SM.
    pub parts: f64,
    /// Part of a stream's bandwidth at which latents arrive.
    pub memory: f64,
    /// Fraction of the bf16 peak that the products sustain: more where an 8-bit cache is multiplied
    /// in 8 bits.
    pub efficiency: f64,
    /// Time in which the host prepares the call, when nothing is captured in a CUDA graph [s].
    pub host: f64,
}

/// Constants of one library's prefill attention.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PrefillRates {
    /// Efficiency of the products over the accelerator's best attention in their format.
    pub efficiency: f64,
    /// What one call takes beyond the kernel: preparation of queries and keys [s].
    pub fixed: f64,
    /// Whether prompts of models with latent caches attend to latents instead of expanded keys.
    pub absorbed: bool,
    /// Passes over queries, keys and values (read and written, in 16 bits) before the kernel.
    pub prepare: f64,
    /// Time in which the host prepares the call, when nothing is captured in a CUDA graph [s].
    pub host: f64,
}

/// Constants of one library's expert layers.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ExpertRates {
    /// Sorting of tokens by expert, launches, the weighted sum: what does not depend on the size [s].
    pub fixed: f64,
    /// Passes over the routed rows (read and written, in 16 bits): permutation, quantisation, the
    /// activation, the weighted sum.
    pub passes: f64,
    /// The two grouped products.
    pub product: GemmRates,
}

impl GemmRates {
    /// With `factor` times the latencies.
    pub(super) fn slower(mut self, factor: f64) -> Self {
        self.ramp *= factor;
        self.quantise.fixed *= factor;
        self
    }
}

impl DecodeRates {
    /// With `factor` times the latencies.
    pub(super) fn slower(mut self, factor: f64) -> Self {
        self.fixed *= factor;
        self.item *= factor;
        self.head *= factor;
        self.tail *= factor;
        self
    }
}

impl LatentRates {
    /// With `factor` times the latencies.
    pub(super) fn slower(mut self, factor: f64) -> Self {
        self.fixed *= factor;
        self.item *= factor;
        self.head *= factor;
        self.tail *= factor;
        self
    }
}

impl PrefillRates {
    /// With `factor` times the latencies.
    pub(super) fn slower(mut self, factor: f64) -> Self {
        self.fixed *= factor;
        self
    }
}

impl ExpertRates {
    /// With `factor` times the latencies.
    pub(super) fn slower(mut self, factor: f64) -> Self {
        self.fixed *= factor;
        self.product = self.product.slower(factor);
        self
    }
}

impl Library {
    /// Constants of this library's dense products.
    pub fn gemm(self, format: Format, generation: Generation) -> GemmRates {
        match (self, generation) {
            // Prompts of Splitwise's Llama 2 70B and BLOOM on H100 (tensor parallelism 2 to 8, 512 to
            // 2,048 tokens) take 1.3 times as long as with cuBLAS 12, those on A100 the same.
            (Self::Cublas11, Generation::Hopper) => GemmRates {
                efficiency: 0.77,
                ..OWN
            },
            _ => constants::gemm(self, format, generation).unwrap_or(OWN),
        }
    }

    /// Constants of this library's decode attention.
    pub fn decode(self, kv: Precision, generation: Generation) -> DecodeRates {
        let bits = if kv.bits() <= 8 { 8 } else { 16 };
        let best = match (generation, bits) {
            (Generation::Ampere, _) | (_, 8) => Self::Vllm,
            _ => Self::Sglang,
        };
        constants::decode(self, bits, generation)
            .or_else(|| constants::decode(best, bits, generation))
            .or_else(|| constants::decode(best, 16, generation))
            .expect("every generation has 16-bit caches")
    }

    /// Constants of this library's decode attention over latents.
    pub fn latent(self, kv: Precision, generation: Generation) -> LatentRates {
        let bits = if kv.bits() <= 8 { 8 } else { 16 };
        let best = Self::TensorRtLlm;
        if let (Self::Best, Generation::Hopper, 16) = (self, generation, bits) {
            return flash_mla();
        }
        constants::latent(self, bits, generation)
            .or_else(|| constants::latent(best, bits, generation))
            .expect("TensorRT-LLM has both caches on every generation")
    }

    /// Constants of this library's prefill attention. `latent`: of a model that caches latents.
    pub fn prefill(
        self,
        compute: Precision,
        kv: Precision,
        latent: bool,
        generation: Generation,
    ) -> PrefillRates {
        let bits = |precision: Precision| if precision.bits() <= 8 { 8 } else { 16 };
        let key = (bits(compute), bits(kv));
        let known = if latent {
            constants::latent_prefill(self, key, generation)
        } else {
            constants::prefill(self, key, generation)
        };
        known.unwrap_or(PrefillRates {
            efficiency: 1.0,
            fixed: 0.0,
            absorbed: false,
            prepare: 0.0,
            host: 0.0,
        })
    }

    /// Constants of this library's expert layers; `sent`: over tokens that come from other ranks'
    /// attention, sorted by expert.
    pub fn experts(self, format: Format, generation: Generation, sent: bool) -> ExpertRates {
        match (self, generation, format) {
            (
                Self::Best | Self::Sglang | Self::TensorRtLlm,
                Generation::Blackwell,
                Format::Fp8Block,
            ) if sent => {
                return grouped_deep_gemm();
            }
            (Self::Best | Self::Sglang, Generation::Hopper, Format::Fp8Block) if sent => {
                return self.sorted_deep_gemm();
            }
            _ => {}
        }
        let best = match (generation, format) {
            (Generation::Hopper, Format::Bf16 | Format::Fp8) => Self::TensorRtLlm,
            (Generation::Ampere, Format::Bf16) => Self::TensorRtLlm,
            (Generation::Hopper, Format::Mxfp4Weights) | (Generation::Blackwell, Format::Fp8) => {
                Self::Vllm
            }
            _ => Self::Sglang,
        };
        constants::experts(self, format, generation)
            .or_else(|| constants::experts(best, format, generation))
            .unwrap_or(ExpertRates {
                fixed: 15e-6,
                passes: 2.0,
                product: GemmRates {
                    efficiency: 0.8,
                    max_split: 1.0,
                    ..OWN
                },
            })
    }

    /// DeepGEMM's grouped products on Hopper over tokens that DeepEP brought. Three kernels are around them:
    /// rows in 8 bits scattered to their experts, the activation with its quantisation, results in 16 bits
    /// gathered. They move 5.8 bytes per element of hidden and inner width.
    fn sorted_deep_gemm(self) -> ExpertRates {
        let dense = self.gemm(Format::Fp8Block, Generation::Hopper);
        ExpertRates {
            fixed: 6e-6,
            passes: 1.3,
            product: GemmRates {
                efficiency: dense.efficiency * GROUPED,
                max_split: 1.0,
                quantise: STREAM,
                host: 0.0,
                ..dense
            },
        }
    }
}

/// FlashMLA on Hopper in its first release, which served when DeepSeek published its day: 580 TFLOP/s on
/// H800 bound by products (its announcement of 2025-02-24; the README since names 660, 5 to 15 % more), under
/// the clock of 1,600 of 1,830 MHz that its authors measure under such load. What a call takes besides is that of TensorRT-LLM, which calls the same kernel.
fn flash_mla() -> LatentRates {
    let around = constants::latent(Library::TensorRtLlm, 16, Generation::Hopper);
    LatentRates {
        efficiency: 580.0 / 989.0 * 1830.0 / 1600.0,
        ..around.expect("TensorRT-LLM's latent attention was measured on Hopper")
    }
}

/// Long grouped products over dense ones (DeepGEMM's README, 2025-02-25).
const GROUPED: f64 = 0.93;

/// DeepGEMM's grouped products on Blackwell, which TensorRT-LLM and SGLang call behind an exchange
/// (TensorRT-LLM's deployment guide for DeepSeek-R1: "B200/GB200 EP<=8, FP8: DEEPGEMM"). The database
/// has its dense products only; grouped ones reach .93 of them on Hopper (DeepGEMM's README), and what
/// is around them is taken from TensorRT-LLM on Hopper.
fn grouped_deep_gemm() -> ExpertRates {
    let library = Library::TensorRtLlm;
    let around = constants::experts(library, Format::Fp8Block, Generation::Hopper);
    let dense = library.gemm(Format::Fp8Block, Generation::Blackwell);
    let around = around.expect("TensorRT-LLM's experts were measured on Hopper");
    ExpertRates {
        product: GemmRates {
            efficiency: dense.efficiency * GROUPED,
            quantise: STREAM,
            ..dense
        },
        ..around
    }
}
