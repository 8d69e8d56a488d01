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
mod gemm;
pub mod measured;
mod mechanism;
mod stream;
#[cfg(test)]
mod tests;

pub use mechanism::{MECHANISM, Mechanism};

use rackflow_topology::Accelerator;
use rackflow_units::SimDuration;
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
    assert!(
        (1..=accelerator.sms).contains(&sms),
        "{sms} SMs of the {} that {} has",
        accelerator.sms,
        accelerator.name
    );
    let device = Device {
        accelerator,
        sms,
        mechanism,
        clock_share: match options.load {
            Load::Burst => 1.0,
            Load::Continuous => accelerator.measured.continuous_clock,
        },
    };
    match op {
        Operation::Gemm { .. } | Operation::GroupedGemm { .. } => gemm::cost(op, &device),
        Operation::Attention { .. } => attention::cost(op, options.attention, &device),
        Operation::Stream { .. } => stream::cost(op, &device),
    }
    .into_cost()
}

/// The part of an accelerator that a kernel is given.
struct Device<'a> {
    accelerator: &'a Accelerator,
    sms: u32,
    mechanism: &'a Mechanism,
    /// Clock over the clock at which the efficiencies were measured.
    clock_share: f64,
}

impl Device<'_> {
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

    /// Time for `cycles` of the clock [s].
    fn cycles(&self, cycles: f64) -> f64 {
        cycles / (self.accelerator.clock.hertz() * self.clock_share)
    }

    /// Generation of the tensor cores, told by what an SM multiplies in a clock: 0 to 2048 bf16
    /// operations (Ampere), 1 to 4096 (Hopper), 2 to 8192 and more (Blackwell).
    fn generation(&self) -> usize {
        let accelerator = self.accelerator;
        let per_clock = accelerator.peak.bf16.flops_per_sec()
            / (f64::from(accelerator.sms) * accelerator.clock.hertz());
        match per_clock {
            ..3000.0 => 0,
            3000.0..6000.0 => 1,
            _ => 2,
        }
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
