//! Attention of a chunk of new tokens over itself and what was cached before it.

use super::attention::{Shape, fused, rate};
use super::library::PrefillRates;
use super::{Device, KernelCost, Launch, Parts, ServingOptions, device};
use rackflow_topology::Accelerator;
use rackflow_units::Precision;
use rackflow_workload::{AttentionKernel, Direction};

/// Causal attention of new tokens. `cached` positions before them are seen by all of them: earlier
/// chunks of a chunked prefill, or a prefix that was found in the cache.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PrefillAttention {
    /// Sequences of this shape in the launch.
    pub sequences: u64,
    /// New tokens of each.
    pub new_tokens: u64,
    /// Positions before them.
    pub cached: u64,
    /// Query heads on this rank.
    pub heads: u64,
    /// Key-value heads on this rank.
    pub kv_heads: u64,
    /// Width of query and key (192 in DeepSeek-V3's prefill, which is not absorbed).
    pub head_dim_qk: u64,
    /// Width of value (128 there).
    pub head_dim_v: u64,
    /// Format in which the products run.
    pub compute: Precision,
    /// Format of the cache.
    pub kv: Precision,
    /// Most positions that a query sees (sliding window).
    pub window: Option<u64>,
    /// Width of the latent of a model that caches latents (MLA; 512 in DeepSeek-V3). Most libraries
    /// expand keys and values for a prompt, which is another product; some attend to the latents
    /// instead, with 3.4 times the work.
    pub latent: Option<u64>,
}

impl PrefillAttention {
    /// Scores of one head and sequence that the mask leaves.
    pub fn scores(&self) -> f64 {
        let (new, cached) = (self.new_tokens as f64, self.cached as f64);
        let window = self.window.map_or(f64::INFINITY, |window| window as f64);
        // Query i of `new` sees min(window, cached + i) positions.
        let growing = (window - cached).clamp(0.0, new);
        let whole = growing * cached + growing * (growing + 1.0) / 2.0;
        if growing < new {
            whole + (new - growing) * window
        } else {
            whole
        }
    }
}

/// Cost of prefill attention, and of the library's preparation of its operands. The copy of the new
/// keys and values to the cache is another kernel
/// ([`SmallKernel::AppendCache`](super::SmallKernel::AppendCache)).
///
/// # Panics
/// When `sms` is zero or more than the accelerator has.
pub fn prefill_attention(
    op: &PrefillAttention,
    accelerator: &Accelerator,
    sms: u32,
    options: &ServingOptions,
) -> KernelCost {
    let generation = device(accelerator, sms, options).generation_kind();
    let rates = options
        .library
        .prefill(op.compute, op.kv, op.latent.is_some(), generation)
        .slower(options.latency);
    prefill_attention_by(op, accelerator, sms, options, &rates)
}

/// [`prefill_attention`] under another set of library constants, for calibration.
///
/// # Panics
/// When `sms` is zero or more than the accelerator has.
pub fn prefill_attention_by(
    op: &PrefillAttention,
    accelerator: &Accelerator,
    sms: u32,
    options: &ServingOptions,
    rates: &PrefillRates,
) -> KernelCost {
    let device = device(accelerator, sms, options);
    let absorbed = match op.latent {
        Some(latent) if rates.absorbed => Some(PrefillAttention {
            kv_heads: 1,
            head_dim_qk: latent + op.head_dim_qk - op.head_dim_v,
            head_dim_v: latent,
            ..*op
        }),
        _ => None,
    };
    let op = absorbed.as_ref().unwrap_or(op);
    let scores = op.scores();
    if scores == 0.0 || op.sequences == 0 {
        return Parts::default().into_cost();
    }
    let reach = op.window.map_or(op.cached + op.new_tokens, |window| {
        window.min(op.cached + op.new_tokens)
    }) as f64;
    // Keys that any query sees.
    let kv = (op.cached + op.new_tokens) as f64;
    let kv = kv.min(reach + op.new_tokens as f64);
    let shape = Shape {
        batch: op.sequences as f64,
        heads: op.heads as f64,
        kv_heads: op.kv_heads as f64,
        query: op.new_tokens as f64,
        kv,
        width_qk: op.head_dim_qk as f64,
        width_v: op.head_dim_v as f64,
        mask: scores / (op.new_tokens as f64 * kv),
        reach,
        direction: Direction::Forward,
        element: 2.0,
        kv_element: op.kv.bits() as f64 / 8.0,
    };
    let mut rate = rate(
        AttentionKernel::Best,
        Direction::Forward,
        op.compute,
        &device,
    );
    let flops =
        2.0 * (op.sequences * op.heads) as f64 * scores * (op.head_dim_qk + op.head_dim_v) as f64;
    let useful = flops / rate.peak;
    rate.efficiency *= rates.efficiency;
    let mut parts = fused(&shape, useful, &rate, &device);
    parts.floor += rates.fixed;
    if rates.prepare > 0.0 {
        parts.add(&prepare(op, rates, &device));
    }
    if options.launch == Launch::Host {
        parts.at_least(rates.host * device.host_slowdown());
    }
    parts.into_cost()
}

/// Passes over queries, keys and values before the kernel.
fn prepare(op: &PrefillAttention, rates: &PrefillRates, device: &Device<'_>) -> Parts {
    let rows = (op.sequences * op.new_tokens) as f64;
    let width = (op.heads * op.head_dim_qk + op.kv_heads * (op.head_dim_qk + op.head_dim_v)) as f64;
    let bytes = rows * width * 2.0 * (1.0 + device.mechanism.write_cost) * rates.prepare;
    let transfer = bytes / device.memory_rate();
    Parts {
        memory: transfer,
        memory_time: transfer,
        ..Parts::default()
    }
}
