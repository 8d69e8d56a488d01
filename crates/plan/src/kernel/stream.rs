//! Kernels that only stream memory.

use super::{Device, Parts};
use rackflow_workload::{Access, Operation};

pub(super) fn cost(op: &Operation, device: &Device<'_>) -> Parts {
    let &Operation::Stream {
        read,
        write,
        kernels,
        flops,
        access,
    } = op
    else {
        unreachable!("only streams are streams")
    };
    let bytes = read.as_f64() + write.as_f64() * device.mechanism.write_cost;
    let kernels = f64::from(kernels);
    let memory_time = bytes / device.memory_rate();
    let transfer = memory_time.max(bytes / asked(access, device));
    let arithmetic = flops / device.accelerator.vector.flops_per_sec() * device.slower();
    let ramp = if bytes > 0.0 {
        device.ramp() * kernels
    } else {
        0.0
    };
    Parts {
        memory: transfer.max(arithmetic) + ramp,
        floor: device.floor() * kernels,
        memory_time,
        ..Parts::default()
    }
}

/// Bytes that the SMs ask for per second, however fast the memory is.
fn asked(access: Access, device: &Device<'_>) -> f64 {
    let mechanism = device.mechanism;
    let per_clock = match access {
        Access::Copy => f64::INFINITY,
        Access::Elementwise => mechanism.elementwise_bytes_per_sm_clock,
        Access::Softmax => mechanism.softmax_bytes_per_sm_clock,
        Access::SoftmaxChain => mechanism.softmax_chain_bytes_per_sm_clock,
        Access::Mixed => mechanism.mixed_bytes_per_sm_clock,
        Access::Rows => mechanism.row_bytes_per_sm_clock,
        Access::ScatterAdd => mechanism.scatter_add_bytes_per_sm_clock,
        Access::IndexAdd => mechanism.index_add_bytes_per_sm_clock,
        Access::Maps => mechanism.map_bytes_per_sm_clock,
        Access::Strided => mechanism.strided_bytes_per_sm_clock,
        Access::Transposed => mechanism.transposed_bytes_per_sm_clock,
    };
    f64::from(device.sms) * device.accelerator.clock.hertz() * per_clock
}
