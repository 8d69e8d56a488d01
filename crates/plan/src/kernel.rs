//! What one kernel costs on one accelerator, and what its time goes to.
//!
//! A kernel is as slow as the slowest of what it must do: multiply on the tensor cores, take
//! exponentials, read and write memory. This module counts each from the shape of the work, adds
//! what tiles and waves waste, and books every picosecond to one reason. Constants that no shape
//! explains belong to the accelerator ([`Measured`](rackflow_topology::Measured)) or, where they
//! describe how such kernels are written, to [`Mechanism`]; none belongs to a model or a run.
//!
//! It does not know what runs beside the kernel. Communication that holds SMs is an argument;
//! sharing of memory bandwidth is for the caller, who gets [`KernelCost::memory_time`].
//! The equations, their constants and their errors are in `docs/kernels.md`.

mod attention;
mod constants;
mod decode;
mod experts;
mod format;
mod gemm;
mod library;
mod linear;
mod mechanism;
mod prefill;
#[cfg(test)]
mod serving_tests;
mod small;
mod sparse;
mod stream;
#[cfg(test)]
mod tests;

pub use decode::{DecodeAttention, LatentDecode, decode_attention, latent_decode};
pub use experts::{Experts, experts, experts_touched};
pub use format::Format;
pub use library::Library;
pub use linear::{Linear, linear};
pub use mechanism::{MECHANISM, Mechanism};
pub use prefill::{PrefillAttention, prefill_attention};
pub use small::{SmallKernel, cache_bandwidth, launch_floor, small_kernel};
pub use sparse::{Indexer, SparseAttention, indexer, sparse_attention};

/// Constants of libraries and the functions that take them as arguments, for calibration.
pub mod calibration {
    pub use super::decode::{decode_attention_by, latent_decode_by};
    pub use super::experts::experts_by;
    pub use super::library::{
        DecodeRates, ExpertRates, GemmRates, LatentRates, PrefillRates, Quantise,
    };
    pub use super::linear::linear_by;
    pub use super::prefill::prefill_attention_by;
}

use rackflow_topology::{Accelerator, Generation};
use rackflow_units::{Precision, SimDuration};
use rackflow_workload::{AttentionKernel, Operation};

/// Where the time of one kernel goes. The parts but [`memory_time`](Self::memory_time) sum to
/// `time` exactly.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct KernelCost {
    /// From the start of the kernel on the device to its end, without the host's launch.
    pub time: SimDuration,
    /// Tensor-core operations at the dense peak of the format that the kernel runs in.
    pub useful: SimDuration,
    /// Clocks, power and operand delivery below that peak in a long main loop, and the SMs that
    /// the kernel was not given.
    pub sustained: SimDuration,
    /// Tile and wave quantisation, filling and draining of tiles, ragged groups, masked blocks.
    pub shape: SimDuration,
    /// Waiting for memory beyond the math.
    pub memory: SimDuration,
    /// Waiting for the exponent unit beyond the math.
    pub exponent: SimDuration,
    /// Scheduling the kernel on the device, its first loads and its last stores.
    pub floor: SimDuration,
    /// Busy time of the memory, hidden or not: what contends with communication.
    pub memory_time: SimDuration,
}

/// What is chosen by the software stack and not by the shape.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KernelOptions {
    /// How attention is computed.
    pub attention: AttentionKernel,
    /// Whether the kernel runs cold or in hours of work.
    pub load: Load,
}

/// What the accelerator did before the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Load {
    /// Little: a benchmark of one kernel, at the clocks of a short burst.
    Burst,
    /// Hours of the same: clocks settle where the power limit holds them
    /// ([`Measured::continuous_clock`](rackflow_topology::Measured)).
    Continuous,
}

impl Default for KernelOptions {
    fn default() -> Self {
        Self {
            attention: AttentionKernel::Best,
            load: Load::Burst,
        }
    }
}

/// What a serving engine chose, and what its device did before.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ServingOptions {
    /// Whose kernels run.
    pub library: Library,
    /// Whether the kernel runs cold or in hours of work.
    pub load: Load,
    /// How kernels are launched.
    pub launch: Launch,
    /// Whether the kernel repeats on the same data, as benchmarks do: what fits the last-level
    /// cache is then read from it. In a model, the other layers have evicted it.
    pub warm_cache: bool,
    /// Activations whose scales are known beforehand arrive quantised. Benchmarks of a product quantise
    /// them first, with scales that they have to find.
    pub arrive_quantised: bool,
    /// Times inside kernels that depend on no size, over those of the library: 1 as measured.
    pub latency: f64,
}

impl Default for ServingOptions {
    /// The fastest kernels, in a CUDA graph, under continuous load, on cold data.
    fn default() -> Self {
        Self {
            library: Library::Best,
            load: Load::Continuous,
            launch: Launch::Graph,
            warm_cache: false,
            arrive_quantised: false,
            latency: 1.0,
        }
    }
}

/// Who launches kernels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Launch {
    /// The device, from a captured CUDA graph. No host code runs between kernels.
    Graph,
    /// The host, call by call. A call takes at least as long as the host needs to prepare it.
    Host,
}

/// Cost of `op` on `sms` of the accelerator's SMs, with the fastest attention that it has.
pub fn cost(op: &Operation, accelerator: &Accelerator, sms: u32) -> KernelCost {
    cost_with(op, accelerator, sms, KernelOptions::default())
}

/// Cost of `op` on `sms` of the accelerator's SMs. Nothing is allocated and nothing remembered.
///
/// # Panics
/// When `sms` is zero or more than the accelerator has.
pub fn cost_with(
    op: &Operation,
    accelerator: &Accelerator,
    sms: u32,
    options: KernelOptions,
) -> KernelCost {
    cost_by(op, accelerator, sms, options, &MECHANISM)
}

/// [`cost_with`] under another set of mechanism constants, for calibration.
///
/// # Panics
/// When `sms` is zero or more than the accelerator has.
pub fn cost_by(
    op: &Operation,
    accelerator: &Accelerator,
    sms: u32,
    options: KernelOptions,
    mechanism: &Mechanism,
) -> KernelCost {
    let device = Device::new(accelerator, sms, options.load, mechanism);
    match op {
        Operation::Gemm {
            precision,
            sms_left,
            ..
        } => gemm::cost(op, &device.without(*sms_left).at_clock_of(*precision)),
        Operation::GroupedGemm { precision, .. } => gemm::cost(op, &device.at_clock_of(*precision)),
        Operation::Attention { .. } => attention::cost(op, options.attention, &device),
        Operation::Stream { .. } => stream::cost(op, &device),
    }
    .into_cost()
}

/// The device that a serving kernel runs on.
fn device<'a>(accelerator: &'a Accelerator, sms: u32, options: &ServingOptions) -> Device<'a> {
    Device {
        latency: options.latency,
        ..Device::new(accelerator, sms, options.load, &MECHANISM)
    }
}

/// Time of host code over that of the x86 hosts that came with PCIe 5, told by the link to the host: a
/// coherent one leads to Grace, and behind PCIe 4 is a processor of 2019 to 2021. The same release of
/// vLLM launches decode steps of Llama 2 70B in 45 ms beside A100 and in 30 ms beside H100, whatever
/// the batch and the tensor parallelism (Splitwise, ISCA 2024).
pub(crate) fn host_slowdown(accelerator: &Accelerator) -> f64 {
    match accelerator.host_bandwidth.as_f64() {
        rate if rate > 200e9 => 1.65,
        rate if rate < 40e9 => 1.5,
        _ => 1.0,
    }
}

/// The part of an accelerator that a kernel is given.
#[derive(Clone, Copy)]
struct Device<'a> {
    accelerator: &'a Accelerator,
    sms: u32,
    mechanism: &'a Mechanism,
    /// Clock over the clock at which the efficiencies were measured.
    clock_share: f64,
    /// Latencies inside kernels over the measured ones.
    latency: f64,
}

impl<'a> Device<'a> {
    /// # Panics
    /// When `sms` is zero or more than the accelerator has.
    fn new(accelerator: &'a Accelerator, sms: u32, load: Load, mechanism: &'a Mechanism) -> Self {
        assert!(
            (1..=accelerator.sms).contains(&sms),
            "{sms} SMs of the {} that {} has",
            accelerator.sms,
            accelerator.name
        );
        Self {
            accelerator,
            sms,
            mechanism,
            clock_share: match load {
                Load::Burst => 1.0,
                Load::Continuous => accelerator.measured.continuous_clock,
            },
            latency: 1.0,
        }
    }

    /// Latency of the first and last bytes of a kernel, which no other byte hides [s].
    fn ramp(&self) -> f64 {
        self.mechanism.stream_ramp * self.latency
    }

    /// The same at the clock that the power limit leaves products in `precision`: narrow operands draw
    /// less power, so the clock falls less. [`Measured::continuous_clock`](rackflow_topology::Measured)
    /// is that of bf16.
    fn at_clock_of(&self, precision: Precision) -> Self {
        let draw = &self.accelerator.draw.math;
        let ratio = draw.bf16 / draw.get(precision);
        if self.clock_share >= 1.0 || ratio == 1.0 {
            return *self;
        }
        let lighter = ratio.powf(self.mechanism.clock_by_load);
        Self {
            clock_share: (self.clock_share * lighter).min(1.0),
            ..*self
        }
    }

    /// Memory bandwidth that a long stream reaches [bytes/s]. A few SMs cannot ask for all of it.
    fn memory_rate(&self) -> f64 {
        let whole = self.accelerator.memory_bandwidth.as_f64() * self.accelerator.measured.memory;
        let share = f64::from(self.sms) / f64::from(self.accelerator.sms);
        whole * (share * self.mechanism.sm_memory_surplus).min(1.0)
    }

    /// What the SMs would do in a burst over what those of the kernel do, at least 1: SMs that it
    /// was not given, and clocks that the power limit holds down.
    fn slower(&self) -> f64 {
        f64::from(self.accelerator.sms) / (f64::from(self.sms) * self.clock_share)
    }

    /// With so many SMs fewer, but one at least.
    fn without(&self, sms: u32) -> Self {
        Self {
            sms: self.sms.saturating_sub(sms).max(1),
            ..*self
        }
    }

    /// Time for `cycles` of the clock [s].
    fn cycles(&self, cycles: f64) -> f64 {
        cycles / (self.accelerator.clock.hertz() * self.clock_share)
    }

    /// Generation of the tensor cores, as an index.
    fn generation(&self) -> usize {
        self.accelerator.generation() as usize
    }

    fn generation_kind(&self) -> Generation {
        self.accelerator.generation()
    }

    /// Time of host code over that of an x86 host: a Grace core takes 1.65 times as long (vLLM's
    /// block-scaled products on GB200 and on B200).
    fn host_slowdown(&self) -> f64 {
        host_slowdown(self.accelerator)
    }

    /// Bandwidth of the last-level cache [bytes/s].
    fn cache_rate(&self) -> f64 {
        f64::from(self.sms) / self.cycles(1.0) * self.mechanism.cache_bytes_per_sm_clock
    }

    /// Time to read `bytes` that a kernel reads once, at `share` of a stream's rate [s]. On `warm`
    /// data, what the cache kept comes from the cache.
    fn read_time(&self, bytes: f64, share: f64, warm: bool) -> f64 {
        let kept = if warm {
            // A cyclic sweep over more than the cache evicts what it is about to need.
            let cache = self.accelerator.l2.as_f64() * self.mechanism.warm_share;
            bytes.min((cache - 3.0 * (bytes - cache)).max(0.0))
        } else {
            0.0
        };
        kept / self.cache_rate().max(self.memory_rate())
            + (bytes - kept) / (self.memory_rate() * share)
    }

    fn floor(&self) -> f64 {
        self.accelerator.measured.kernel_floor.as_secs_f64()
    }
}

/// A [`KernelCost`] in seconds, before it is rounded. No part is negative.
#[derive(Debug, Default)]
struct Parts {
    useful: f64,
    sustained: f64,
    shape: f64,
    memory: f64,
    exponent: f64,
    floor: f64,
    memory_time: f64,
}

impl Parts {
    /// Adds another kernel that runs after this one.
    fn add(&mut self, other: &Self) {
        self.useful += other.useful;
        self.sustained += other.sustained;
        self.shape += other.shape;
        self.memory += other.memory;
        self.exponent += other.exponent;
        self.floor += other.floor;
        self.memory_time += other.memory_time;
    }

    fn total(&self) -> f64 {
        self.useful + self.sustained + self.shape + self.memory + self.exponent + self.floor
    }

    /// Raises the floor until the whole takes `seconds`.
    fn at_least(&mut self, seconds: f64) {
        self.floor += (seconds - self.total()).max(0.0);
    }

    /// Rounds the running sum, not the parts, so that the parts sum to the whole.
    fn into_cost(self) -> KernelCost {
        let mut end = 0.0;
        let mut before = SimDuration::ZERO;
        let mut piece = |seconds: f64| {
            end += seconds.max(0.0);
            let now = SimDuration::from_secs_f64(end);
            let span = now - before;
            before = now;
            span
        };
        let useful = piece(self.useful);
        let sustained = piece(self.sustained);
        let shape = piece(self.shape);
        let memory = piece(self.memory);
        let exponent = piece(self.exponent);
        let floor = piece(self.floor);
        KernelCost {
            time: before,
            useful,
            sustained,
            shape,
            memory,
            exponent,
            floor,
            memory_time: SimDuration::from_secs_f64(self.memory_time),
        }
    }
}

/// Two resources that overlap as far as the exponent says: the sum of both at 1, the slower one at
/// infinity.
fn overlapped_by(exponent: f64, a: f64, b: f64) -> f64 {
    if exponent == 4.0 {
        return overlapped(a, b);
    }
    let longest = a.max(b);
    if longest <= 0.0 {
        return 0.0;
    }
    let ratio = a.min(b) / longest;
    longest * (1.0 + ratio.powf(exponent)).powf(1.0 / exponent)
}

/// Two resources that mostly overlap: the slower one, and near a tie a little more, at most 19 %.
pub(crate) fn overlapped(a: f64, b: f64) -> f64 {
    let longest = a.max(b);
    if longest <= 0.0 {
        return 0.0;
    }
    let ratio = a.min(b) / longest;
    let square = ratio * ratio;
    longest * (1.0 + square * square).sqrt().sqrt()
}
