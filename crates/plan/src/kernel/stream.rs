//! Kernels that only stream memory.

use super::{Device, Parts};
use rackflow_workload::Operation;

pub(super) fn cost(op: &Operation, device: &Device<'_>) -> Parts {
    let &Operation::Stream {
        read,
        write,
        kernels,
        flops,
    } = op
    else {
        unreachable!("only streams are streams")
    };
    let bytes = read.as_f64() + write.as_f64() * device.mechanism.write_cost;
    let kernels = f64::from(kernels);
    let transfer = bytes / device.memory_rate();
    let arithmetic = flops / device.accelerator.vector.flops_per_sec() * device.slower();
    let ramp = if bytes > 0.0 {
        device.mechanism.stream_ramp * kernels
    } else {
        0.0
    };
    Parts {
        memory: transfer.max(arithmetic) + ramp,
        floor: device.floor() * kernels,
        memory_time: transfer,
        ..Parts::default()
    }
}
