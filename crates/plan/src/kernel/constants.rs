//! The libraries' constants, by generation of the tensor cores. Fitted to the performance database of
//! ai-dynamo/aiconfigurator at 095f58a (Apache-2.0), all shapes of a group alike; the columns are
//! those of the functions below. How the fit was done, and what it misses, is in `docs/kernels.md`.

use super::library::{DecodeRates, ExpertRates, GemmRates, LatentRates, PrefillRates, Quantise};
use super::{Format, Generation, Library};

const US: f64 = 1e-6;
const NS: f64 = 1e-9;

fn product(product: [f64; 6], quantise: [f64; 3], host: f64) -> GemmRates {
    let [efficiency, max_split, tile_cycles, memory, ramp, sm_share] = product;
    let [fixed, row, stream] = quantise;
    GemmRates {
        efficiency,
        max_split,
        tile_cycles,
        memory,
        ramp: ramp * US,
        sm_share,
        quantise: Quantise {
            fixed: fixed * US,
            row: row * NS,
            memory: stream,
        },
        host: host * US,
    }
}

fn decode_rates(times: [f64; 4], memory: f64) -> DecodeRates {
    let [fixed, item, head, tail] = times;
    DecodeRates {
        fixed: fixed * US,
        item: item * US,
        head: head * US,
        tail: tail * US,
        memory,
    }
}

fn latent_rates(times: [f64; 4], rows: f64, parts: f64, rates: [f64; 2], host: f64) -> LatentRates {
    let [fixed, item, head, tail] = times;
    let [memory, efficiency] = rates;
    LatentRates {
        fixed: fixed * US,
        item: item * US,
        head: head * US,
        tail: tail * US,
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

fn expert_rates(rates: [f64; 5], fixed: f64, passes: f64) -> ExpertRates {
    let [efficiency, tile_cycles, memory, ramp, sm_share] = rates;
    ExpertRates {
        fixed: fixed * US,
        passes,
        product: product(
            [efficiency, 1.0, tile_cycles, memory, ramp, sm_share],
            [0.0, 0.0, 1.0],
            0.0,
        ),
    }
}

/// Dense products: [efficiency, split, tile, memory, ramp us, SM], [fixed us, row ns, memory], host us.
pub(super) fn gemm(library: Library, format: Format, generation: Generation) -> Option<GemmRates> {
    use Generation::{Ampere, Blackwell, Hopper};
    use Library::{Sglang, TensorRtLlm, Vllm};
    Some(match (generation, library, format) {
        (Ampere, Sglang, Format::Bf16) => product(
            [0.959, 16.0, 0.882, 0.829, 1.65, 3.08],
            [0.0, 0.0, 1.0],
            0.0,
        ),
        (Ampere, TensorRtLlm, Format::Bf16) => {
            product([1.01, 16.0, 0.733, 0.892, 2.22, 10.0], [0.0, 0.0, 1.0], 0.0)
        }
        (Ampere, TensorRtLlm, Format::Int4Weights) => {
            product([1.01, 1.0, 2.28, 0.795, 8.0, 2.6], [0.0, 0.0, 1.0], 0.0)
        }
        (Ampere, TensorRtLlm, Format::Int8Weights) => {
            product([1.04, 2.0, 1.46, 0.923, 8.0, 1.44], [0.0, 0.0, 1.0], 0.0)
        }
        (Ampere, Vllm, Format::Bf16) => {
            product([1.0, 16.0, 0.829, 0.833, 1.48, 10.0], [0.0, 0.0, 1.0], 0.0)
        }
        (Hopper, Sglang, Format::Bf16) => {
            product([0.987, 16.0, 0.955, 0.91, 1.95, 7.58], [0.0, 0.0, 1.0], 0.0)
        }
        (Hopper, Sglang, Format::Fp8) => {
            product([0.997, 1.0, 0.3, 0.892, 1.3, 8.58], [1.59, 1.4, 0.6], 0.0)
        }
        (Hopper, Sglang, Format::Fp8Block) => product(
            [1.01, 1.0, 0.415, 0.901, 0.948, 10.0],
            [0.849, 0.646, 1.01],
            0.0,
        ),
        (Hopper, TensorRtLlm, Format::Bf16) => {
            product([1.01, 16.0, 0.844, 0.879, 1.71, 7.11], [0.0, 0.0, 1.0], 0.0)
        }
        (Hopper, TensorRtLlm, Format::Fp8) => product(
            [1.13, 16.0, 1.76, 0.85, 4.57, 6.68],
            [4.5, 0.444, 0.412],
            0.0,
        ),
        (Hopper, TensorRtLlm, Format::Fp8Block) => product(
            [0.888, 1.0, 0.666, 0.85, 1.04, 10.0],
            [0.635, 2.7, 0.629],
            0.0,
        ),
        (Hopper, Vllm, Format::Bf16) => {
            product([1.03, 16.0, 0.897, 0.924, 1.66, 6.95], [0.0, 0.0, 1.0], 0.0)
        }
        (Hopper, Vllm, Format::Fp8) => product(
            [1.01, 2.0, 0.362, 0.85, 0.593, 2.83],
            [1.33, 6.56, 0.412],
            0.0,
        ),
        (Hopper, Vllm, Format::Fp8Block) => product(
            [1.06, 1.0, 0.592, 0.978, 1.71, 8.9],
            [5.0, 0.667, 0.536],
            90.0,
        ),
        (Blackwell, Sglang, Format::Bf16) => {
            product([0.982, 16.0, 1.01, 0.834, 0.482, 7.6], [0.0, 0.0, 1.0], 0.0)
        }
        (Blackwell, Sglang, Format::Fp8) => product(
            [0.846, 1.0, 1.34, 0.739, 0.914, 10.0],
            [0.617, 1.25, 0.78],
            0.0,
        ),
        (Blackwell, Sglang, Format::Fp8Block) => {
            product([1.04, 1.0, 0.3, 0.62, 1.1, 10.0], [10.1, 0.556, 1.03], 0.0)
        }
        (Blackwell, Sglang, Format::Nvfp4) => {
            product([1.03, 1.0, 0.3, 0.666, 0.2, 1.6], [0.001, 0.132, 1.01], 0.0)
        }
        (Blackwell, TensorRtLlm, Format::Bf16) => {
            product([0.973, 16.0, 0.682, 0.791, 0.2, 6.68], [0.0, 0.0, 1.0], 0.0)
        }
        (Blackwell, TensorRtLlm, Format::Fp8) => product(
            [0.928, 4.0, 0.3, 0.775, 5.31, 1.14],
            [4.5, 0.132, 0.401],
            0.0,
        ),
        (Blackwell, TensorRtLlm, Format::Fp8Block) => product(
            [0.982, 1.0, 1.15, 0.81, 0.609, 7.32],
            [0.889, 0.617, 0.968],
            0.0,
        ),
        (Blackwell, TensorRtLlm, Format::Nvfp4) => product(
            [0.993, 1.0, 0.3, 0.491, 1.86, 1.01],
            [0.47, 0.132, 1.11],
            0.0,
        ),
        (Blackwell, Vllm, Format::Bf16) => product(
            [1.05, 16.0, 0.919, 0.877, 0.727, 8.29],
            [0.0, 0.0, 1.0],
            0.0,
        ),
        (Blackwell, Vllm, Format::Fp8) => product(
            [0.982, 1.0, 0.3, 0.739, 0.278, 4.27],
            [1.03, 6.56, 0.222],
            0.0,
        ),
        (Blackwell, Vllm, Format::Fp8Block) => product(
            [0.926, 1.0, 0.731, 0.783, 3.42, 2.34],
            [5.0, 3.18, 0.579],
            187.0,
        ),
        (Blackwell, Vllm, Format::Nvfp4) => {
            product([1.09, 1.0, 2.26, 0.802, 0.2, 9.4], [2.0, 0.444, 1.15], 0.0)
        }
        _ => return None,
    })
}

/// Decode attention: [fixed us, item us, head us, tail us], memory. `kv` is the width of the cache in bits.
pub(super) fn decode(library: Library, kv: u64, generation: Generation) -> Option<DecodeRates> {
    use Generation::{Ampere, Blackwell, Hopper};
    use Library::{Sglang, TensorRtLlm, Vllm};
    Some(match (generation, library, kv) {
        (Ampere, Sglang, 16) => decode_rates([10.6, 2.76, 0.00774, 30.0], 0.627),
        (Ampere, Vllm, 16) => decode_rates([14.8, 2.53, 0.0482, 16.6], 0.938),
        (Hopper, Sglang, 16) => decode_rates([7.16, 2.12, 0.00705, 7.92], 0.995),
        (Hopper, Sglang, 8) => decode_rates([10.6, 1.97, 0.0171, 15.5], 0.704),
        (Hopper, TensorRtLlm, 16) => decode_rates([7.3, 1.42, 0.162, 30.0], 0.992),
        (Hopper, TensorRtLlm, 8) => decode_rates([5.17, 0.352, 0.0397, 10.6], 0.85),
        (Hopper, Vllm, 16) => decode_rates([9.49, 2.29, 0.0566, 10.7], 1.0),
        (Hopper, Vllm, 8) => decode_rates([11.2, 2.59, 0.0383, 12.9], 0.85),
        (Blackwell, Sglang, 16) => decode_rates([7.53, 0.708, 0.0579, 0.0132], 1.0),
        (Blackwell, Sglang, 8) => decode_rates([13.2, 0.653, 0.0482, 3.48], 0.984),
        (Blackwell, TensorRtLlm, 16) => decode_rates([8.34, 0.857, 0.063, 4.35], 1.0),
        (Blackwell, TensorRtLlm, 8) => decode_rates([8.34, 0.416, 0.0681, 6.32], 1.0),
        (Blackwell, Vllm, 16) => decode_rates([6.72, 0.417, 0.0969, 3.81], 1.0),
        (Blackwell, Vllm, 8) => decode_rates([7.44, 0.125, 0.0926, 5.06], 1.0),
        _ => return None,
    })
}

/// Decode over latents: [fixed us, item us, head us, tail us], rows, parts, [memory, efficiency], host us.
pub(super) fn latent(library: Library, kv: u64, generation: Generation) -> Option<LatentRates> {
    use Generation::{Ampere, Blackwell, Hopper};
    use Library::{Sglang, TensorRtLlm, Vllm};
    Some(match (generation, library, kv) {
        (Ampere, TensorRtLlm, 16) => {
            latent_rates([8.96, 11.4, 0.0473, 0.0196], 64.0, 1.0, [0.386, 0.443], 0.0)
        }
        (Ampere, TensorRtLlm, 8) => {
            latent_rates([8.86, 11.4, 0.0569, 0.001], 64.0, 1.0, [0.197, 0.433], 0.0)
        }
        (Ampere, Vllm, 16) => {
            latent_rates([60.0, 1.71, 3.0, 30.0], 64.0, 4.0, [0.55, 0.451], 342.0)
        }
        (Hopper, Sglang, 16) => latent_rates(
            [10.4, 2.98, 0.0218, 26.2],
            64.0,
            f64::INFINITY,
            [0.99, 0.516],
            0.0,
        ),
        (Hopper, Sglang, 8) => latent_rates(
            [15.1, 2.91, 0.0147, 4.15],
            64.0,
            f64::INFINITY,
            [0.581, 0.066],
            0.0,
        ),
        (Hopper, TensorRtLlm, 16) => latent_rates(
            [11.4, 2.33, 0.162, 11.7],
            64.0,
            f64::INFINITY,
            [0.996, 0.627],
            0.0,
        ),
        (Hopper, TensorRtLlm, 8) => latent_rates(
            [11.1, 1.49, 0.218, 10.7],
            64.0,
            f64::INFINITY,
            [1.04, 0.755],
            0.0,
        ),
        (Hopper, Vllm, 16) => latent_rates(
            [12.0, 2.0, 0.24, 10.0],
            64.0,
            f64::INFINITY,
            [0.95, 0.67],
            165.0,
        ),
        (Hopper, Vllm, 8) => latent_rates(
            [12.0, 2.0, 0.24, 10.0],
            64.0,
            f64::INFINITY,
            [0.9, 0.77],
            214.0,
        ),
        (Blackwell, Sglang, 16) => latent_rates(
            [9.46, 3.37, 0.059, 14.6],
            16.0,
            f64::INFINITY,
            [0.823, 0.532],
            0.0,
        ),
        (Blackwell, Sglang, 8) => latent_rates(
            [8.23, 2.29, 0.0643, 13.6],
            16.0,
            f64::INFINITY,
            [0.956, 0.979],
            0.0,
        ),
        (Blackwell, TensorRtLlm, 16) => latent_rates(
            [8.23, 3.46, 0.0271, 15.7],
            16.0,
            f64::INFINITY,
            [0.808, 0.596],
            0.0,
        ),
        (Blackwell, TensorRtLlm, 8) => latent_rates(
            [7.63, 2.21, 0.0926, 9.94],
            16.0,
            f64::INFINITY,
            [0.927, 1.02],
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

/// Expert layers: [efficiency, tile, memory, ramp us, SM], fixed us, passes.
pub(super) fn experts(
    library: Library,
    format: Format,
    generation: Generation,
) -> Option<ExpertRates> {
    use Generation::{Ampere, Blackwell, Hopper};
    use Library::{Sglang, TensorRtLlm, Vllm};
    Some(match (generation, library, format) {
        (Ampere, Sglang, Format::Bf16) => {
            expert_rates([0.396, 0.37, 0.984, 4.98, 1.43], 21.6, 1.24)
        }
        (Ampere, Sglang, Format::Int4Weights) => {
            expert_rates([0.636, 0.3, 1.0, 2.37, 3.92], 23.7, 1.09)
        }
        (Ampere, TensorRtLlm, Format::Bf16) => {
            expert_rates([0.612, 0.547, 0.772, 2.31, 1.02], 1.08, 1.89)
        }
        (Ampere, Vllm, Format::Bf16) => expert_rates([0.435, 0.3, 0.662, 0.2, 2.8], 0.1, 0.558),
        (Hopper, Sglang, Format::Bf16) => expert_rates([0.874, 1.16, 0.929, 1.92, 10.0], 14.3, 1.0),
        (Hopper, Sglang, Format::Fp8Block) => {
            expert_rates([0.55, 0.308, 0.942, 1.17, 10.0], 22.2, 1.12)
        }
        (Hopper, Sglang, Format::Int4Weights) => {
            expert_rates([0.411, 0.3, 0.871, 7.23, 10.0], 9.49, 2.01)
        }
        (Hopper, TensorRtLlm, Format::Bf16) => {
            expert_rates([1.12, 1.82, 0.917, 3.0, 2.13], 15.0, 2.14)
        }
        (Hopper, TensorRtLlm, Format::Fp8) => {
            expert_rates([1.13, 1.84, 0.905, 2.51, 7.96], 19.5, 1.96)
        }
        (Hopper, TensorRtLlm, Format::Fp8Block) => {
            expert_rates([0.805, 4.19, 0.96, 0.2, 1.11], 29.4, 5.52)
        }
        (Hopper, Vllm, Format::Bf16) => expert_rates([0.74, 2.62, 0.872, 2.42, 3.38], 13.4, 0.812),
        (Hopper, Vllm, Format::Fp8) => expert_rates([0.2, 8.0, 0.355, 1.1, 0.5], 19.3, 0.4),
        (Hopper, Vllm, Format::Fp8Block) => {
            expert_rates([0.49, 0.394, 0.872, 2.39, 1.02], 25.3, 1.74)
        }
        (Hopper, Vllm, Format::Int4Weights) => {
            expert_rates([0.365, 0.397, 0.9, 8.0, 10.0], 18.6, 2.43)
        }
        (Hopper, Vllm, Format::Mxfp4Weights) => {
            expert_rates([0.74, 1.0, 0.786, 2.42, 1.02], 25.3, 1.78)
        }
        (Blackwell, Sglang, Format::Bf16) => {
            expert_rates([0.842, 1.31, 0.975, 3.15, 10.0], 4.07, 1.27)
        }
        (Blackwell, Sglang, Format::Fp8Block) => {
            expert_rates([0.383, 2.23, 0.941, 1.79, 10.0], 14.3, 1.74)
        }
        (Blackwell, Sglang, Format::Int4Weights) => {
            expert_rates([0.478, 1.82, 0.6, 1.79, 3.29], 19.5, 0.203)
        }
        (Blackwell, Sglang, Format::Mxfp4) => {
            expert_rates([1.13, 4.74, 0.975, 2.25, 10.0], 6.75, 1.59)
        }
        (Blackwell, Sglang, Format::Mxfp4Weights) => {
            expert_rates([0.56, 3.84, 0.86, 1.6, 10.0], 8.01, 3.4)
        }
        (Blackwell, Sglang, Format::Nvfp4) => {
            expert_rates([1.13, 2.52, 1.0, 2.16, 1.14], 5.61, 0.831)
        }
        (Blackwell, Vllm, Format::Bf16) => {
            expert_rates([0.69, 0.3, 0.975, 3.07, 10.0], 5.87, 0.944)
        }
        (Blackwell, Vllm, Format::Fp8) => {
            expert_rates([0.741, 1.46, 0.914, 1.74, 10.0], 8.47, 1.03)
        }
        (Blackwell, Vllm, Format::Fp8Block) => {
            expert_rates([0.309, 0.404, 0.941, 0.892, 10.0], 22.9, 1.03)
        }
        (Blackwell, Vllm, Format::Int4Weights) => {
            expert_rates([0.25, 1.09, 0.6, 4.05, 5.03], 24.2, 5.07)
        }
        (Blackwell, Vllm, Format::Mxfp4Weights) => {
            expert_rates([0.587, 3.84, 0.872, 2.55, 10.0], 9.3, 3.94)
        }
        (Blackwell, Vllm, Format::Nvfp4) => {
            expert_rates([1.12, 1.76, 0.969, 1.26, 10.0], 10.2, 1.24)
        }
        _ => return None,
    })
}
