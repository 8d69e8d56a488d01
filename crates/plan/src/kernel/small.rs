//! Kernels between the products: each streams a few megabytes and costs mostly its floor.

use super::{Format, KernelCost, Launch, Parts, ServingOptions, device};
use rackflow_topology::Accelerator;
use rackflow_units::{Bandwidth, SimDuration};

/// A small kernel of a serving engine. Activations are in 16 bits.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum SmallKernel {
    /// Sum with the residual and RMS norm, fused.
    Norm {
        /// Tokens.
        tokens: u64,
        /// Width of the residual stream.
        hidden: u64,
    },
    /// Rotary embedding of queries and keys, in place.
    Rope {
        /// Tokens.
        tokens: u64,
        /// Query and key heads on this rank.
        heads: u64,
        /// Width that is rotated.
        head_dim: u64,
    },
    /// Keys and values of new tokens to the paged cache.
    AppendCache {
        /// Tokens.
        tokens: u64,
        /// Values per token: 2 x key-value heads x width, or latent + rotary width.
        width: u64,
        /// Bytes of a value in the cache.
        bytes: f64,
    },
    /// Gate, activation and product of a gated feed-forward layer.
    Activation {
        /// Tokens.
        tokens: u64,
        /// Width of the result.
        inner: u64,
    },
    /// Quantisation of activations, where no kernel before it has done so.
    Quantise {
        /// Tokens.
        tokens: u64,
        /// Width.
        width: u64,
        /// Target.
        format: Format,
    },
    /// Scores of experts to the best `top_k`, with their softmax.
    Router {
        /// Tokens.
        tokens: u64,
        /// Experts.
        experts: u64,
    },
    /// Rows of the embedding table.
    Embedding {
        /// Tokens.
        tokens: u64,
        /// Width of the residual stream.
        hidden: u64,
    },
    /// Softmax over the vocabulary, penalties and a draw: some kernels over fp32 logits.
    Sample {
        /// Sequences.
        sequences: u64,
        /// Vocabulary.
        vocab: u64,
    },
}

impl SmallKernel {
    /// Bytes read, bytes written, kernels.
    fn traffic(&self) -> (f64, f64, f64) {
        match *self {
            Self::Norm { tokens, hidden } => {
                let values = (tokens * hidden) as f64;
                (4.0 * values + 2.0 * hidden as f64, 4.0 * values, 1.0)
            }
            Self::Rope {
                tokens,
                heads,
                head_dim,
            } => {
                let values = (tokens * heads * head_dim) as f64;
                (
                    2.0 * values + 4.0 * (tokens * head_dim) as f64,
                    2.0 * values,
                    1.0,
                )
            }
            Self::AppendCache {
                tokens,
                width,
                bytes,
            } => {
                let values = (tokens * width) as f64;
                (2.0 * values + 8.0 * tokens as f64, bytes * values, 1.0)
            }
            Self::Activation { tokens, inner } => {
                let values = (tokens * inner) as f64;
                (4.0 * values, 2.0 * values, 1.0)
            }
            Self::Quantise {
                tokens,
                width,
                format,
            } => {
                let values = (tokens * width) as f64;
                (2.0 * values, format.activation_bytes() * values, 1.0)
            }
            Self::Router { tokens, experts } => {
                let values = (tokens * experts) as f64;
                (4.0 * values, 0.25 * values, 1.0)
            }
            Self::Embedding { tokens, hidden } => {
                let values = (tokens * hidden) as f64;
                (2.0 * values, 2.0 * values, 1.0)
            }
            Self::Sample { sequences, vocab } => {
                // Penalties, softmax, selection and draw: logits are read three times and written
                // once.
                let values = (sequences * vocab) as f64;
                (12.0 * values, 4.0 * values, 4.0)
            }
        }
    }
}

/// Cost of a small kernel: its stream, the latency of first and last bytes and the floor, each once
/// per kernel launched.
///
/// # Panics
/// When `sms` is zero or more than the accelerator has.
pub fn small_kernel(
    op: &SmallKernel,
    accelerator: &Accelerator,
    sms: u32,
    options: &ServingOptions,
) -> KernelCost {
    let device = device(accelerator, sms, options);
    let (read, written, kernels) = op.traffic();
    let transfer = (read + written * device.mechanism.write_cost) / device.memory_rate();
    Parts {
        memory: transfer + device.ramp() * kernels,
        floor: device.floor() * kernels,
        memory_time: transfer,
        ..Parts::default()
    }
    .into_cost()
}

/// Time between the starts of two dependent kernels that do nothing: what each kernel of a step costs
/// beyond its work. In a CUDA graph the device goes from one to the next (1.3 us on H100,
/// hazyresearch.stanford.edu, 2025-05-27). Launched from the host, the host's own time comes instead
/// where it is longer; it belongs to the software stack and is the argument `host`.
pub fn launch_floor(accelerator: &Accelerator, launch: Launch, host: SimDuration) -> SimDuration {
    let device_side =
        accelerator.measured.kernel_floor + SimDuration::from_secs_f64(super::MECHANISM.graph_gap);
    match launch {
        Launch::Graph => device_side,
        Launch::Host => device_side.max(host),
    }
}

/// Bandwidth of the last-level cache over all SMs, for data that lie in it.
pub fn cache_bandwidth(accelerator: &Accelerator) -> Bandwidth {
    let options = ServingOptions {
        load: super::Load::Burst,
        ..ServingOptions::default()
    };
    let device = device(accelerator, accelerator.sms, &options);
    Bandwidth::from_bytes_per_sec(device.cache_rate() as u64)
}
