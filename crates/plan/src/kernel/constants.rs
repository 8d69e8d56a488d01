//! The libraries' constants, by generation of the tensor cores. Fitted to the performance database of
//! ai-dynamo/aiconfigurator at 095f58a (Apache-2.0), all shapes of a group alike; the columns are
//! those of the functions below. How the fit was done, and what it misses, is in `docs/kernels.md`.

use super::library::{DecodeRates, ExpertRates, GemmRates, LatentRates, PrefillRates, Quantise};
use super::{Format, Generation, Library};

const US: f64 = 1e-6;
const NS: f64 = 1e-9;

fn product(product: [f64; 5], quantise: [f64; 3], host: f64) -> GemmRates {
    let [efficiency, max_split, tile_cycles, memory, sm_share] = product;
    let [fixed, row, stream] = quantise;
    GemmRates {
        efficiency,
        max_split,
        tile_cycles,
        memory,
        sm_share,
        quantise: Quantise {
            fixed: fixed * US,
            row: row * NS,
            memory: stream,
        },
        host: host * US,
    }
}

fn decode_rates(fixed: f64, item: f64, head: f64, memory: f64) -> DecodeRates {
    DecodeRates {
        fixed: fixed * US,
        item: item * US,
        head: head * US,
        memory,
    }
}

fn latent_rates(times: [f64; 3], rows: f64, parts: f64, rates: [f64; 2], host: f64) -> LatentRates {
    let [fixed, item, head] = times;
    let [memory, efficiency] = rates;
    LatentRates {
        fixed: fixed * US,
        item: item * US,
        head: head * US,
        rows,
        parts,
        memory,
        efficiency,
        host: host * US,
    }
}

fn prefill_rates(efficiency: f64, fixed: f64, prepare: f64, host: f64) -> PrefillRates {
    PrefillRates {
        efficiency,
        fixed: fixed * US,
        absorbed: false,
        prepare,
        host: host * US,
    }
}

fn absorbed_rates(efficiency: f64, fixed: f64, prepare: f64) -> PrefillRates {
    PrefillRates {
        absorbed: true,
        ..prefill_rates(efficiency, fixed, prepare, 0.0)
    }
}

fn expert_rates(rates: [f64; 4], fixed: f64, passes: f64) -> ExpertRates {
    let [efficiency, tile_cycles, memory, sm_share] = rates;
    ExpertRates {
        fixed: fixed * US,
        passes,
        product: product(
            [efficiency, 1.0, tile_cycles, memory, sm_share],
            [0.0, 0.0, 1.0],
            0.0,
        ),
    }
}

/// Dense products: [efficiency, split, tile, memory, SM], [fixed us, row ns, memory], host us.
pub(super) fn gemm(library: Library, format: Format, generation: Generation) -> Option<GemmRates> {
    use Generation::{Ampere, Blackwell, Hopper};
    use Library::{Sglang, TensorRtLlm, Vllm};
    Some(match (generation, library, format) {
        (Ampere, Sglang, Format::Bf16) => {
            product([0.96, 16.0, 0.964, 0.83, 8.07], [0.0, 0.0, 1.0], 0.0)
        }
        (Ampere, TensorRtLlm, Format::Bf16) => {
            product([1.01, 16.0, 0.788, 0.867, 8.07], [0.0, 0.0, 1.0], 0.0)
        }
        (Ampere, TensorRtLlm, Format::Int4Weights) => {
            product([1.02, 2.0, 2.43, 1.0, 8.07], [0.0, 0.0, 1.0], 0.0)
        }
        (Ampere, TensorRtLlm, Format::Int8Weights) => {
            product([1.07, 2.0, 2.45, 1.0, 1.01], [0.0, 0.0, 1.0], 0.0)
        }
        (Ampere, Vllm, Format::Bf16) => {
            product([1.0, 16.0, 0.81, 0.83, 8.07], [0.0, 0.0, 1.0], 0.0)
        }
        (Hopper, Sglang, Format::Bf16) => {
            product([1.0, 16.0, 1.32, 0.877, 10.0], [0.0, 0.0, 1.0], 0.0)
        }
        (Hopper, Sglang, Format::Fp8) => {
            product([1.01, 2.0, 0.327, 0.867, 10.0], [1.54, 1.44, 0.6], 0.0)
        }
        (Hopper, Sglang, Format::Fp8Block) => {
            product([1.03, 1.0, 0.512, 0.888, 10.0], [0.593, 0.646, 0.905], 0.0)
        }
        (Hopper, TensorRtLlm, Format::Bf16) => {
            product([1.02, 16.0, 1.06, 0.855, 10.0], [0.0, 0.0, 1.0], 0.0)
        }
        (Hopper, TensorRtLlm, Format::Fp8) => {
            product([1.13, 16.0, 2.97, 0.775, 10.0], [5.4, 0.444, 0.536], 0.0)
        }
        (Hopper, TensorRtLlm, Format::Fp8Block) => {
            product([0.896, 1.0, 0.938, 0.811, 10.0], [0.162, 2.5, 0.629], 0.0)
        }
        (Hopper, Vllm, Format::Bf16) => {
            product([1.04, 16.0, 1.12, 0.896, 10.0], [0.0, 0.0, 1.0], 0.0)
        }
        (Hopper, Vllm, Format::Fp8) => {
            product([1.05, 2.0, 0.435, 0.859, 10.0], [1.03, 7.03, 0.372], 0.0)
        }
        (Hopper, Vllm, Format::Fp8Block) => {
            product([1.09, 1.0, 0.617, 0.986, 1.01], [5.0, 0.667, 0.462], 87.2)
        }
        (Blackwell, Sglang, Format::Bf16) => {
            product([0.963, 4.0, 0.366, 0.88, 2.53], [0.0, 0.0, 1.0], 0.0)
        }
        (Blackwell, Sglang, Format::Fp8) => {
            product([0.854, 1.0, 2.0, 0.714, 10.0], [0.169, 1.25, 0.744], 0.0)
        }
        (Blackwell, Sglang, Format::Fp8Block) => {
            product([1.08, 4.0, 2.26, 0.723, 0.765], [8.1, 0.415, 0.967], 0.0)
        }
        (Blackwell, Sglang, Format::Nvfp4) => {
            product([1.05, 2.0, 1.15, 0.73, 10.0], [0.001, 0.274, 0.659], 0.0)
        }
        (Blackwell, TensorRtLlm, Format::Bf16) => {
            product([0.963, 16.0, 0.3, 0.847, 4.66], [0.0, 0.0, 1.0], 0.0)
        }
        (Blackwell, TensorRtLlm, Format::Fp8) => {
            product([0.996, 4.0, 4.0, 0.721, 1.01], [7.29, 0.556, 0.375], 0.0)
        }
        (Blackwell, TensorRtLlm, Format::Fp8Block) => {
            product([0.972, 1.0, 1.06, 0.83, 10.0], [0.741, 0.556, 1.01], 0.0)
        }
        (Blackwell, TensorRtLlm, Format::Nvfp4) => {
            product([1.05, 1.0, 1.25, 0.621, 0.765], [1.44, 0.296, 0.46], 0.0)
        }
        (Blackwell, Vllm, Format::Bf16) => {
            product([1.03, 16.0, 0.59, 0.896, 4.77], [0.0, 0.0, 1.0], 0.0)
        }
        (Blackwell, Vllm, Format::Fp8) => {
            product([1.08, 1.0, 1.6, 0.739, 9.61], [0.159, 6.33, 0.188], 0.0)
        }
        (Blackwell, Vllm, Format::Fp8Block) => {
            product([0.96, 16.0, 1.07, 0.814, 1.07], [5.0, 2.26, 0.629], 187.0)
        }
        (Blackwell, Vllm, Format::Nvfp4) => {
            product([1.09, 1.0, 1.73, 0.823, 1.64], [1.71, 0.583, 1.02], 0.0)
        }
        _ => return None,
    })
}

/// Decode attention: fixed us, item us, head us, memory. `kv` is the width of the cache in bits.
pub(super) fn decode(library: Library, kv: u64, generation: Generation) -> Option<DecodeRates> {
    use Generation::{Ampere, Blackwell, Hopper};
    use Library::{Sglang, TensorRtLlm, Vllm};
    Some(match (generation, library, kv) {
        (Ampere, Sglang, 16) => decode_rates(10.6, 3.87, 0.000304, 0.608),
        (Ampere, Vllm, 16) => decode_rates(14.9, 3.28, 0.0976, 0.922),
        (Hopper, Sglang, 16) => decode_rates(7.44, 2.37, 0.0263, 0.962),
        (Hopper, Sglang, 8) => decode_rates(10.8, 2.44, 0.036, 0.675),
        (Hopper, TensorRtLlm, 16) => decode_rates(6.83, 3.21, 0.117, 0.928),
        (Hopper, TensorRtLlm, 8) => decode_rates(5.17, 0.395, 0.0735, 0.874),
        (Hopper, Vllm, 16) => decode_rates(9.68, 3.13, 0.0472, 0.97),
        (Hopper, Vllm, 8) => decode_rates(11.2, 3.13, 0.0775, 0.854),
        (Blackwell, Sglang, 16) => decode_rates(7.3, 0.545, 0.0735, 1.0),
        (Blackwell, Sglang, 8) => decode_rates(13.8, 0.754, 0.0486, 0.96),
        (Blackwell, TensorRtLlm, 16) => decode_rates(8.34, 1.16, 0.0735, 0.978),
        (Blackwell, TensorRtLlm, 8) => decode_rates(8.57, 1.01, 0.0425, 0.967),
        (Blackwell, Vllm, 16) => decode_rates(7.1, 0.853, 0.0748, 0.982),
        (Blackwell, Vllm, 8) => decode_rates(7.8, 0.286, 0.0969, 0.961),
        _ => return None,
    })
}

/// Decode over latents: [fixed us, item us, head us], rows, parts, [memory, efficiency], host us.
pub(super) fn latent(library: Library, kv: u64, generation: Generation) -> Option<LatentRates> {
    use Generation::{Ampere, Blackwell, Hopper};
    use Library::{Sglang, TensorRtLlm, Vllm};
    Some(match (generation, library, kv) {
        (Ampere, TensorRtLlm, 16) => {
            latent_rates([8.96, 11.4, 0.0488], 64.0, 1.0, [0.385, 0.444], 0.0)
        }
        (Ampere, TensorRtLlm, 8) => {
            latent_rates([8.86, 11.4, 0.0569], 64.0, 1.0, [0.197, 0.433], 0.0)
        }
        (Ampere, Vllm, 16) => latent_rates([60.0, 6.77, 3.0], 64.0, 4.0, [0.52, 0.444], 342.0),
        (Hopper, Sglang, 16) => latent_rates(
            [10.4, 4.33, 0.0926],
            64.0,
            f64::INFINITY,
            [0.936, 0.444],
            0.0,
        ),
        (Hopper, Sglang, 8) => latent_rates(
            [15.7, 4.27, 0.000102],
            64.0,
            f64::INFINITY,
            [0.509, 0.066],
            0.0,
        ),
        (Hopper, TensorRtLlm, 16) => {
            latent_rates([11.7, 3.37, 0.18], 64.0, f64::INFINITY, [0.952, 0.599], 0.0)
        }
        (Hopper, TensorRtLlm, 8) => {
            latent_rates([11.4, 2.42, 0.24], 64.0, f64::INFINITY, [1.07, 0.704], 0.0)
        }
        (Hopper, Vllm, 16) => {
            latent_rates([12.0, 2.0, 0.24], 64.0, f64::INFINITY, [0.95, 0.67], 165.0)
        }
        (Hopper, Vllm, 8) => {
            latent_rates([12.0, 2.0, 0.24], 64.0, f64::INFINITY, [0.9, 0.77], 211.0)
        }
        (Blackwell, Sglang, 16) => latent_rates(
            [9.73, 4.55, 0.0708],
            16.0,
            f64::INFINITY,
            [0.773, 0.473],
            0.0,
        ),
        (Blackwell, Sglang, 8) => latent_rates(
            [8.39, 3.13, 0.0833],
            16.0,
            f64::INFINITY,
            [0.882, 0.898],
            0.0,
        ),
        (Blackwell, TensorRtLlm, 16) => latent_rates(
            [8.38, 4.61, 0.0377],
            16.0,
            f64::INFINITY,
            [0.761, 0.505],
            0.0,
        ),
        (Blackwell, TensorRtLlm, 8) => latent_rates(
            [7.85, 3.05, 0.108],
            16.0,
            f64::INFINITY,
            [0.876, 0.977],
            0.0,
        ),
        _ => return None,
    })
}

/// Prefill attention: efficiency, fixed us, preparing passes, host us. `kv` holds the bits of compute and cache.
pub(super) fn prefill(
    library: Library,
    kv: (u64, u64),
    generation: Generation,
) -> Option<PrefillRates> {
    use Generation::{Ampere, Blackwell, Hopper};
    use Library::{Sglang, TensorRtLlm, Vllm};
    Some(match (generation, library, kv) {
        (Ampere, Sglang, (16, 16)) => prefill_rates(0.996, 4.57, 0.0389, 0.0),
        (Ampere, TensorRtLlm, (16, 16)) => prefill_rates(0.698, 2.64, 0.717, 0.0),
        (Ampere, Vllm, (16, 16)) => prefill_rates(0.861, 0.776, 0.431, 0.0),
        (Hopper, Sglang, (16, 16)) => prefill_rates(0.996, 6.1, 0.189, 0.0),
        (Hopper, Sglang, (8, 8)) => prefill_rates(1.11, 6.57, 0.167, 0.0),
        (Hopper, TensorRtLlm, (16, 16)) => prefill_rates(0.86, 8.07, 0.98, 0.0),
        (Hopper, TensorRtLlm, (16, 8)) => prefill_rates(1.43, 12.0, 1.14, 0.0),
        (Hopper, TensorRtLlm, (8, 8)) => prefill_rates(1.1, 10.0, 0.966, 0.0),
        (Hopper, Vllm, (16, 16)) => prefill_rates(1.09, 7.93, 0.526, 0.0),
        (Hopper, Vllm, (16, 8)) => prefill_rates(1.08, 9.39, 1.18, 0.0),
        (Blackwell, Sglang, (16, 16)) => prefill_rates(0.949, 0.223, 0.01, 0.0),
        (Blackwell, Sglang, (8, 8)) => prefill_rates(1.1, 6.76, 0.617, 0.0),
        (Blackwell, TensorRtLlm, (16, 16)) => prefill_rates(0.844, 6.04, 1.5, 0.0),
        (Blackwell, TensorRtLlm, (16, 8)) => prefill_rates(1.06, 6.15, 1.11, 0.0),
        (Blackwell, TensorRtLlm, (8, 8)) => prefill_rates(1.14, 5.82, 0.899, 0.0),
        (Blackwell, Vllm, (16, 16)) => prefill_rates(0.903, 2.43, 0.01, 0.0),
        (Blackwell, Vllm, (16, 8)) => prefill_rates(1.04, 2.6, 0.47, 0.0),
        _ => return None,
    })
}

/// Prefill attention of models with latent caches: efficiency, fixed us, preparing passes, host us. `kv` holds the bits of compute and cache.
pub(super) fn latent_prefill(
    library: Library,
    kv: (u64, u64),
    generation: Generation,
) -> Option<PrefillRates> {
    use Generation::{Ampere, Blackwell, Hopper};
    use Library::{Sglang, TensorRtLlm, Vllm};
    Some(match (generation, library, kv) {
        (Ampere, TensorRtLlm, (16, 16)) => prefill_rates(0.744, 2.75, 0.144, 0.0),
        (Ampere, TensorRtLlm, (16, 8)) => prefill_rates(0.743, 2.75, 0.146, 0.0),
        (Ampere, Vllm, (16, 16)) => prefill_rates(0.755, 130.0, 2.38, 289.0),
        (Hopper, Sglang, (16, 16)) => absorbed_rates(0.908, 1.86, 0.442),
        (Hopper, Sglang, (16, 8)) => absorbed_rates(0.953, 7.85, 0.656),
        (Hopper, TensorRtLlm, (16, 16)) => prefill_rates(0.943, 10.5, 0.236, 0.0),
        (Hopper, TensorRtLlm, (16, 8)) => prefill_rates(1.11, 14.2, 0.864, 0.0),
        (Hopper, Vllm, (16, 16)) => prefill_rates(1.15, 117.0, 1.11, 165.0),
        (Hopper, Vllm, (16, 8)) => prefill_rates(1.33, 109.0, 1.26, 201.0),
        (Blackwell, Sglang, (16, 16)) => prefill_rates(0.977, 4.11, 0.165, 0.0),
        (Blackwell, Sglang, (16, 8)) => prefill_rates(1.24, 10.7, 0.649, 0.0),
        (Blackwell, TensorRtLlm, (16, 16)) => prefill_rates(0.913, 5.2, 0.19, 0.0),
        (Blackwell, TensorRtLlm, (16, 8)) => prefill_rates(1.44, 9.84, 0.899, 0.0),
        _ => return None,
    })
}

/// Expert layers: [efficiency, tile, memory, SM], fixed us, passes.
pub(super) fn experts(
    library: Library,
    format: Format,
    generation: Generation,
) -> Option<ExpertRates> {
    use Generation::{Ampere, Blackwell, Hopper};
    use Library::{Sglang, TensorRtLlm, Vllm};
    Some(match (generation, library, format) {
        (Ampere, Sglang, Format::Bf16) => expert_rates([0.506, 0.3, 1.0, 1.06], 17.2, 1.59),
        (Ampere, Sglang, Format::Int4Weights) => expert_rates([1.13, 0.3, 1.0, 1.02], 0.837, 4.31),
        (Ampere, TensorRtLlm, Format::Bf16) => expert_rates([0.607, 0.3, 0.801, 0.995], 3.7, 2.04),
        (Ampere, Vllm, Format::Bf16) => expert_rates([0.437, 0.3, 0.673, 7.68], 0.1, 0.474),
        (Hopper, Sglang, Format::Bf16) => expert_rates([0.867, 1.23, 0.917, 10.0], 14.3, 0.966),
        (Hopper, Sglang, Format::Fp8Block) => expert_rates([0.566, 0.3, 0.954, 10.0], 21.0, 1.24),
        (Hopper, Sglang, Format::Int4Weights) => {
            expert_rates([1.12, 0.348, 0.96, 10.0], 21.2, 3.19)
        }
        (Hopper, TensorRtLlm, Format::Bf16) => expert_rates([1.13, 1.83, 0.912, 2.18], 17.6, 2.14),
        (Hopper, TensorRtLlm, Format::Fp8) => expert_rates([1.13, 2.14, 0.883, 10.0], 20.4, 1.85),
        (Hopper, TensorRtLlm, Format::Fp8Block) => {
            expert_rates([0.852, 3.72, 0.956, 1.02], 28.4, 5.65)
        }
        (Hopper, Vllm, Format::Bf16) => expert_rates([0.752, 2.31, 0.872, 4.76], 15.5, 0.943),
        (Hopper, Vllm, Format::Fp8) => expert_rates([0.2, 8.0, 0.355, 0.5], 19.3, 0.4),
        (Hopper, Vllm, Format::Fp8Block) => expert_rates([0.498, 0.3, 0.9, 1.26], 30.0, 1.85),
        (Hopper, Vllm, Format::Int4Weights) => expert_rates([0.653, 0.3, 1.0, 1.72], 19.0, 3.85),
        (Hopper, Vllm, Format::Mxfp4Weights) => expert_rates([0.869, 1.36, 1.0, 0.995], 26.8, 1.99),
        (Blackwell, Sglang, Format::Bf16) => expert_rates([0.934, 5.0, 0.938, 2.24], 3.26, 0.831),
        (Blackwell, Sglang, Format::Fp8Block) => {
            expert_rates([0.404, 2.13, 0.972, 10.0], 14.3, 1.89)
        }
        (Blackwell, Sglang, Format::Int4Weights) => {
            expert_rates([0.579, 0.3, 0.984, 1.19], 20.1, 1.85)
        }
        (Blackwell, Sglang, Format::Mxfp4) => expert_rates([1.13, 4.46, 0.929, 1.68], 7.08, 1.78),
        (Blackwell, Sglang, Format::Mxfp4Weights) => {
            expert_rates([0.881, 3.69, 1.0, 10.0], 7.92, 5.07)
        }
        (Blackwell, Sglang, Format::Nvfp4) => expert_rates([1.13, 2.37, 1.0, 1.15], 7.29, 0.852),
        (Blackwell, Vllm, Format::Bf16) => expert_rates([0.68, 0.326, 0.962, 10.0], 8.08, 0.845),
        (Blackwell, Vllm, Format::Fp8) => expert_rates([0.76, 1.83, 0.914, 10.0], 9.3, 1.03),
        (Blackwell, Vllm, Format::Fp8Block) => expert_rates([0.336, 0.3, 1.0, 1.64], 20.1, 1.44),
        (Blackwell, Vllm, Format::Int4Weights) => {
            expert_rates([0.636, 1.24, 0.857, 2.49], 28.4, 7.55)
        }
        (Blackwell, Vllm, Format::Mxfp4Weights) => expert_rates([0.974, 5.0, 1.0, 1.6], 7.92, 4.87),
        (Blackwell, Vllm, Format::Nvfp4) => expert_rates([1.13, 1.76, 0.981, 10.0], 10.8, 1.27),
        _ => return None,
    })
}
