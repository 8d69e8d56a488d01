//! How long a kernel of a trace takes, and what it is known to spend that on.

use super::{KernelTime, ReplayCounts, ReplaySetup, sped_up};
use crate::kernel::{self, KernelOptions, Load};
use rackflow_units::{Bytes, SimDuration};
use rackflow_workload::{Access, Operation};
use std::collections::BTreeMap;

/// A kernel. The parts sum to `time`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReplayKernel {
    /// How long it takes.
    pub time: SimDuration,
    /// Its operations at the dense peak.
    pub useful: SimDuration,
    /// Reading and writing its bytes at the peak bandwidth, beyond the operations.
    pub memory: SimDuration,
    /// The rest: below either peak.
    pub rest: SimDuration,
}

/// What a kernel is told by: picoseconds recorded (0 for none), operations as bits, bytes.
type Key = (u64, u64, u64);

pub(super) struct Table<'s> {
    setup: &'s ReplaySetup,
    pub kernels: Vec<ReplayKernel>,
    known: BTreeMap<Key, u32>,
}

impl<'s> Table<'s> {
    pub fn new(setup: &'s ReplaySetup) -> Self {
        Self {
            setup,
            kernels: Vec::new(),
            known: BTreeMap::new(),
        }
    }

    /// The number of a kernel.
    pub fn kernel(
        &mut self,
        recorded: Option<SimDuration>,
        ops: f64,
        bytes: Bytes,
        counts: &mut ReplayCounts,
    ) -> u32 {
        let described = ops > 0.0 || bytes > Bytes::ZERO;
        let time = match self.setup.kernels {
            KernelTime::Roofline if described => None,
            _ => recorded.map(|time| sped_up(time, self.setup.speed.kernels)),
        };
        match (time, described) {
            (Some(time), _) => {
                counts.kernels_recorded += 1;
                counts.kernels_beyond_peak += u64::from(self.at_peak(ops) > time);
            }
            (None, true) => counts.kernels_priced += 1,
            (None, false) => counts.kernels_unknown += 1,
        }
        let key = (
            time.map_or(0, SimDuration::as_picos),
            ops.to_bits(),
            bytes.get(),
        );
        let next = self.kernels.len() as u32;
        let number = *self.known.entry(key).or_insert(next);
        if number == next {
            let time = time.unwrap_or_else(|| self.priced(ops, bytes));
            self.kernels.push(self.split(time, ops, bytes));
        }
        number
    }

    /// From operations and bytes: what the accelerator sustains of a matrix product of so many
    /// operations, or of a stream of so many bytes, whichever takes longer. A trace does not tell
    /// shapes, so the product is a cube.
    fn priced(&self, ops: f64, bytes: Bytes) -> SimDuration {
        let accelerator = &self.setup.cluster.node.accelerator;
        let options = KernelOptions {
            load: Load::Continuous,
            ..KernelOptions::default()
        };
        let cost = |op: &Operation| kernel::cost_with(op, accelerator, accelerator.sms, options);
        let stream = cost(&Operation::Stream {
            read: bytes,
            write: Bytes::ZERO,
            kernels: 1,
            flops: 0.0,
            access: Access::Copy,
        });
        let edge = (ops / 2.0).cbrt().round() as u64;
        if edge == 0 {
            return stream.time;
        }
        let product = cost(&Operation::Gemm {
            m: edge,
            n: edge,
            k: edge,
            batch: 1,
            pieces: 1,
            sms_left: 0,
            precision: self.setup.precision,
            output_bytes: 2,
        });
        let math = product.useful + product.sustained + product.shape;
        math.max(stream.time.saturating_sub(stream.floor)) + product.floor.max(stream.floor)
    }

    /// So many operations at the dense peak.
    fn at_peak(&self, ops: f64) -> SimDuration {
        let accelerator = &self.setup.cluster.node.accelerator;
        let peak = accelerator.peak.get(self.setup.precision).flops_per_sec();
        seconds(ops / peak)
    }

    fn split(&self, time: SimDuration, ops: f64, bytes: Bytes) -> ReplayKernel {
        let accelerator = &self.setup.cluster.node.accelerator;
        let useful = self.at_peak(ops).min(time);
        let moving = seconds(bytes.as_f64() / accelerator.memory_bandwidth.as_f64());
        let memory = moving.saturating_sub(useful).min(time - useful);
        ReplayKernel {
            time,
            useful,
            memory,
            rest: time - useful - memory,
        }
    }
}

/// A time that absurd hardware cannot make too long.
fn seconds(seconds: f64) -> SimDuration {
    SimDuration::from_secs_f64(seconds.min(1e6))
}
