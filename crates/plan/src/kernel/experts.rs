//! Expert layers of a mixture-of-experts model: two grouped products over the experts that have
//! tokens.

use super::gemm::{Product, styled};
use super::library::ExpertRates;
use super::linear::style;
use super::{Device, Format, KernelCost, Launch, Parts, ServingOptions, device};
use rackflow_topology::Accelerator;

/// The routed experts of one rank.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Experts {
    /// Rows over all experts of the rank: tokens x experts per token that fall on it.
    pub rows: f64,
    /// Experts of the rank that have at least one row; see [`experts_touched`]. Their weights are
    /// read, those of the others are not.
    pub touched: f64,
    /// Width of the residual stream.
    pub hidden: u64,
    /// Width of an expert on this rank.
    pub inner: u64,
    /// Whether the first product has a gate beside it: twice the columns.
    pub gated: bool,
    /// How the weights are stored.
    pub format: Format,
    /// Tokens come from other ranks' attention, sorted by expert: engines may call other kernels then.
    pub sent: bool,
}

/// Expected number of experts, of `experts`, that `tokens` tokens touch when each picks `top_k`
/// different ones. Expert i is picked with a probability that falls with `(i + 1)^-skew`: 0 is
/// balanced routing; a trained router, without forced balance, is near 0.5 (assumed, unverified).
pub fn experts_touched(tokens: f64, top_k: u64, experts: u64, skew: f64) -> f64 {
    let weight = |i: u64| ((i + 1) as f64).powf(-skew);
    let total: f64 = (0..experts).map(weight).sum();
    (0..experts)
        .map(|i| {
            let picked = (top_k as f64 * weight(i) / total).min(1.0);
            1.0 - (1.0 - picked).powf(tokens)
        })
        .sum()
}

/// Cost of the experts of one rank: sorting by expert, both products with their activation, and the
/// weighted sum. The router and the exchange between ranks are not in it.
///
/// At few rows it streams the weights of the experts that are touched.
///
/// # Panics
/// When `sms` is zero or more than the accelerator has.
pub fn experts(
    op: &Experts,
    accelerator: &Accelerator,
    sms: u32,
    options: &ServingOptions,
) -> KernelCost {
    let generation = device(accelerator, sms, options).generation_kind();
    let rates = options
        .library
        .experts(op.format, generation, op.sent)
        .slower(options.latency);
    experts_by(op, accelerator, sms, options, &rates)
}

/// [`experts`] under another set of library constants, for calibration.
///
/// # Panics
/// When `sms` is zero or more than the accelerator has.
pub fn experts_by(
    op: &Experts,
    accelerator: &Accelerator,
    sms: u32,
    options: &ServingOptions,
    rates: &ExpertRates,
) -> KernelCost {
    let device = device(accelerator, sms, options);
    if op.rows <= 0.0 || op.touched <= 0.0 {
        return Parts::default().into_cost();
    }
    let columns = op.inner * if op.gated { 2 } else { 1 };
    let product = |n: u64, k: u64| {
        let product = Product {
            m: op.rows / op.touched,
            n: n as f64,
            k: k as f64,
            count: op.touched,
            ragged: op.touched > 1.0,
            output_bytes: 2.0,
            apart: false,
            pieces: 1.0,
        };
        styled(
            &product,
            &style(op.format, &rates.product, &device),
            &device,
        )
    };
    let mut parts = product(columns, op.hidden);
    parts.add(&product(op.hidden, op.inner));
    parts.add(&rearrange(op, rates, &device));
    if options.launch == Launch::Host {
        parts.at_least(rates.product.host * device.host_slowdown());
    }
    parts.into_cost()
}

/// Permutation, quantisation, activation and weighted sum around the products.
fn rearrange(op: &Experts, rates: &ExpertRates, device: &Device<'_>) -> Parts {
    let width = (op.hidden + op.inner) as f64;
    let bytes = op.rows * width * 2.0 * (1.0 + device.mechanism.write_cost) * rates.passes;
    let transfer = bytes / device.memory_rate();
    Parts {
        memory: transfer,
        floor: rates.fixed,
        memory_time: transfer,
        ..Parts::default()
    }
}
