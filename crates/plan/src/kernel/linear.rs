//! Linear layers of a serving engine: products with stored weights, quantisation included.

use super::gemm::{Product, Style, styled};
use super::library::GemmRates;
use super::{Device, Format, KernelCost, Launch, Parts, ServingOptions, device};
use rackflow_topology::Accelerator;

/// `m` rows of activations times a `k` x `n` matrix of weights. At small `m` it streams the weights.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Linear {
    /// Tokens.
    pub m: u64,
    /// Columns of the weights on this rank.
    pub n: u64,
    /// Rows of the weights on this rank.
    pub k: u64,
    /// How the weights are stored.
    pub format: Format,
}

/// Cost of a linear layer: the quantisation of its activations, where the format and the library ask
/// for one, and the product. Activations come and go in 16 bits.
///
/// Under [`Launch::Host`] the call takes at least as long as the library's host code, which is
/// booked as `floor`.
///
/// # Panics
/// When `sms` is zero or more than the accelerator has.
pub fn linear(
    linear: &Linear,
    accelerator: &Accelerator,
    sms: u32,
    options: &ServingOptions,
) -> KernelCost {
    let generation = device(accelerator, sms, options).generation_kind();
    let mut rates = options
        .library
        .gemm(linear.format, generation)
        .slower(options.latency);
    if options.arrive_quantised && linear.format.has_static_scales() {
        // What a benchmark takes before its product is not part of it.
        let plain = options.library.gemm(Format::Bf16, generation);
        rates.ramp = rates.ramp.min(plain.ramp);
    }
    linear_by(linear, accelerator, sms, options, &rates)
}

/// [`linear`] under another set of library constants, for calibration.
///
/// # Panics
/// When `sms` is zero or more than the accelerator has.
pub fn linear_by(
    linear: &Linear,
    accelerator: &Accelerator,
    sms: u32,
    options: &ServingOptions,
    rates: &GemmRates,
) -> KernelCost {
    let device = device(accelerator, sms, options);
    let product = Product {
        m: linear.m as f64,
        n: linear.n as f64,
        k: linear.k as f64,
        count: 1.0,
        ragged: false,
        output_bytes: 2.0,
        apart: false,
        pieces: 1.0,
    };
    let style = style(linear.format, rates, &device);
    let mut parts = styled(&product, &style, &device);
    let arrives = options.arrive_quantised && linear.format.has_static_scales();
    if linear.format.quantises_activations() && !arrives && parts.floor > 0.0 {
        parts.add(&quantise(
            product.m,
            product.k,
            linear.format,
            rates,
            &device,
        ));
    }
    if options.launch == Launch::Host {
        parts.at_least(rates.host * device.host_slowdown());
    }
    parts.into_cost()
}

/// A library's product in `format`.
pub(super) fn style(format: Format, rates: &GemmRates, device: &Device<'_>) -> Style {
    let precision = format.math();
    Style {
        precision,
        efficiency: device.accelerator.measured.gemm.get(precision) * rates.efficiency,
        left: format.activation_bytes(),
        right: format.weight_bytes(),
        max_split: rates.max_split,
        tile_cycles: rates.tile_cycles,
        memory: rates.memory,
        ramp: rates.ramp,
        sm_share: rates.sm_share,
    }
}

/// Quantisation of `rows` x `width` activations from 16 bits.
pub(super) fn quantise(
    rows: f64,
    width: f64,
    format: Format,
    rates: &GemmRates,
    device: &Device<'_>,
) -> Parts {
    let how = &rates.quantise;
    let elements = rows * width;
    let bytes = elements * (2.0 + format.activation_bytes() * device.mechanism.write_cost);
    let transfer = bytes / (device.memory_rate() * how.memory);
    Parts {
        memory: transfer.max(rows * how.row * device.slower()) + device.ramp(),
        floor: device.floor() + how.fixed,
        memory_time: transfer,
        ..Parts::default()
    }
}
