//! Attention under its three ceilings: tensor cores, exponent unit, memory.

use super::{Device, Parts, gemm, overlapped};
use rackflow_topology::Generation;
use rackflow_units::Precision;
use rackflow_workload::{AttentionKernel, Direction, Operation};

/// Sizes of one launch.
pub(super) struct Shape {
    pub batch: f64,
    pub heads: f64,
    pub kv_heads: f64,
    pub query: f64,
    pub kv: f64,
    pub width_qk: f64,
    pub width_v: f64,
    pub mask: f64,
    /// Most keys that one query sees.
    pub reach: f64,
    pub direction: Direction,
    /// Bytes of an element of queries and results.
    pub element: f64,
    /// Bytes of an element of keys and values.
    pub kv_element: f64,
}

pub(super) fn cost(op: &Operation, kernel: AttentionKernel, device: &Device<'_>) -> Parts {
    let &Operation::Attention {
        batch,
        heads,
        kv_heads,
        query_len,
        kv_len,
        head_dim_qk,
        head_dim_v,
        mask_fraction,
        direction,
        precision,
    } = op
    else {
        unreachable!("only attention is attention")
    };
    let mut flops = op.tensor_flops();
    if kernel == AttentionKernel::Unfused && direction == Direction::Backward {
        // The scores were kept: nothing is multiplied again.
        flops *=
            (2 * head_dim_qk + 2 * head_dim_v) as f64 / (3 * head_dim_qk + 2 * head_dim_v) as f64;
    }
    if flops == 0.0 {
        return Parts::default();
    }
    let shape = Shape {
        batch: batch as f64,
        heads: heads as f64,
        kv_heads: kv_heads as f64,
        query: query_len as f64,
        kv: kv_len as f64,
        width_qk: head_dim_qk as f64,
        width_v: head_dim_v as f64,
        mask: mask_fraction,
        reach: kv_len as f64,
        direction,
        element: precision.bits() as f64 / 8.0,
        kv_element: precision.bits() as f64 / 8.0,
    };
    let (peak, efficiency) = rate(kernel, direction, precision, device);
    let useful = flops / peak;
    if kernel == AttentionKernel::Unfused {
        return unfused(&shape, useful, efficiency, device);
    }
    let efficiency = efficiency * wide_heads(&shape, device);
    let device = Device {
        clock_share: clock_share(kernel, &shape, useful, efficiency, device),
        ..*device
    };
    fused(&shape, useful, efficiency, &device)
}

/// Rate of heads wider than 128 over that of others: their results fill the tensor memory, and one
/// tile is in flight instead of two.
fn wide_heads(shape: &Shape, device: &Device<'_>) -> f64 {
    if shape.width_qk <= 128.0 || device.generation_kind() != Generation::Blackwell {
        return 1.0;
    }
    let [forward, backward] = device.mechanism.wide_heads;
    match shape.direction {
        Direction::Forward => forward,
        Direction::Backward => backward,
    }
}

/// The clock that the power limit leaves attention. Tensor cores draw most of the power, so a kernel
/// that keeps them busy for a smaller part of the time than a long product does runs at a higher
/// clock, at most that of a burst. Kernels written for Ampere's instructions feed later tensor cores
/// through registers, at more energy for each operation: they are held to the clock of products.
fn clock_share(
    kernel: AttentionKernel,
    shape: &Shape,
    useful: f64,
    efficiency: f64,
    device: &Device<'_>,
) -> f64 {
    let native = kernel == AttentionKernel::Best || device.generation_kind() == Generation::Ampere;
    if !native || device.clock_share >= 1.0 {
        return device.clock_share;
    }
    let burst = Device {
        clock_share: 1.0,
        ..*device
    };
    let cold = fused(shape, useful, efficiency, &burst);
    let busy = useful / (cold.useful + cold.sustained + cold.shape + cold.exponent + cold.memory);
    let products = device.accelerator.measured.gemm.bf16;
    let lighter = (products / busy).powf(device.mechanism.clock_by_load);
    (device.clock_share * lighter).clamp(device.clock_share, 1.0)
}

/// One fused kernel whose products take `useful` seconds at the peak and sustain `efficiency` of it.
pub(super) fn fused(shape: &Shape, useful: f64, efficiency: f64, device: &Device<'_>) -> Parts {
    let sustained = useful / efficiency * device.slower();
    let scores = shape.batch * shape.heads * shape.query * shape.kv * shape.mask;
    let math = math(shape, sustained, scores, device);
    let exponent_rate = f64::from(device.sms)
        * device.accelerator.clock.hertz()
        * device.clock_share
        * f64::from(device.accelerator.exponentials_per_sm_clock);
    // Exponentials are taken of whole tiles, like products.
    let exponentials = scores / exponent_rate * (math / sustained);
    let serial = device.mechanism.exponent_serial;
    let computed = math.max(exponentials) + serial * math.min(exponentials);
    let memory_time = shape.bytes() / device.memory_rate();
    Parts {
        useful,
        sustained: sustained - useful,
        shape: math - sustained,
        memory: overlapped(computed, memory_time) - computed,
        exponent: computed - math,
        floor: device.floor() * shape.launches(),
        memory_time,
    }
}

/// Dense peak of the format that the kernel runs in [FLOP/s], and the fraction that it sustains.
/// Unfused products are GEMMs. Backward has no 8-bit kernel and runs in 16 bits.
pub(super) fn rate(
    kernel: AttentionKernel,
    direction: Direction,
    precision: Precision,
    device: &Device<'_>,
) -> (f64, f64) {
    let measured = &device.accelerator.measured;
    let wide = gemm::peak(device, Precision::Bf16);
    let rates = match kernel {
        AttentionKernel::Unfused => return (wide, measured.gemm.bf16),
        AttentionKernel::Flash1 => measured.attention.flash1,
        AttentionKernel::Flash2 => measured.attention.flash2,
        AttentionKernel::Best => measured.attention.best,
    };
    match (direction, precision, rates.forward_fp8) {
        (Direction::Forward, Precision::Fp8 | Precision::Fp4, Some(forward)) => {
            (gemm::peak(device, Precision::Fp8), forward)
        }
        (Direction::Forward, ..) => (wide, rates.forward),
        (Direction::Backward, ..) => (wide, rates.backward),
    }
}

/// Matrix products in whole tiles, spread over the SMs [s].
fn math(shape: &Shape, sustained: f64, scores: f64, device: &Device<'_>) -> f64 {
    let mechanism = device.mechanism;
    let sms = f64::from(device.sms);
    // The inner loop runs over keys going forward and over queries going back.
    let (outer, inner) = match shape.direction {
        Direction::Forward => (shape.query, shape.kv),
        Direction::Backward => (shape.kv, shape.query),
    };
    let reach = inner.min(shape.reach);
    let in_flight = if device.generation() == 2 { 2.0 } else { 1.0 };
    let rows = mechanism.attention_rows * in_flight;
    let tiles = (outer / rows).ceil() * shape.batch * shape.heads;
    let steps = |length: f64| (length / mechanism.attention_keys).ceil() * mechanism.attention_keys;
    // A mask leaves half a tile's diagonal and half a step on every band of rows.
    let mean = if shape.mask < 1.0 {
        (inner * shape.mask + rows.min(outer) / 2.0 + mechanism.attention_keys / 2.0)
            .min(steps(inner))
    } else {
        steps(inner)
    };
    // Time of one row x key on one SM.
    let unit = sustained / scores * sms;
    let overhead = device.cycles(mechanism.attention_tile_cycles * in_flight);
    let mean_tile = rows * mean * unit + overhead;
    let longest_tile = rows * steps(reach) * unit + overhead;
    let even = tiles * mean_tile / sms;
    let waves = tiles / sms;
    let waited = if shape.mask < 1.0 {
        // Long tiles first: what is left uneven is a fraction of the mean tile.
        even + mechanism.attention_tail * mean_tile * 0.5 * (waves.ceil() - waves)
    } else {
        even + mechanism.attention_tail * mean_tile * (waves.ceil() - waves)
    };
    waited.max(longest_tile).max(sustained)
}

impl Shape {
    /// Bytes of queries, keys, values and results, each once.
    fn bytes(&self) -> f64 {
        let query = self.batch * self.heads * self.query;
        let kv = self.batch * self.kv_heads * self.kv;
        let width = self.width_qk + self.width_v;
        match self.direction {
            Direction::Forward => {
                query * width * self.element + kv * width * self.kv_element + query * 4.0
            }
            // Q, K, V, O, dO read; dK, dV written; dQ summed in fp32, then converted.
            Direction::Backward => {
                let read = query * (width + self.width_v) + kv * width;
                let written = kv * width + query * self.width_qk;
                (read + written) * self.element.max(2.0) + query * self.width_qk * 8.0
            }
        }
    }

    /// Backward prepares the row sums of dO x O, and converts dQ afterwards.
    fn launches(&self) -> f64 {
        match self.direction {
            Direction::Forward => 1.0,
            Direction::Backward => 3.0,
        }
    }
}

/// Bytes to multiples of which the rows of an operand must start for tensor cores to read it in 16 bits
/// (NVIDIA, "Matrix Multiplication Background": eight elements).
const ROW_ALIGNMENT: f64 = 16.0;

/// Part of the vector peak that a product in 16 bits sustains where tensor cores cannot read its operands.
/// BLOOM's tuning log: heads of 108 and of 150 cost 43 and 57 s of a step on top of what heads of 96 and
/// 144 do, 9 to 10 TFLOP/s of attention on an A100 (19.5 TFLOP/s in fp32).
const WITHOUT_TENSOR_CORES: f64 = 0.6;

/// Scores and probabilities pass through memory, over the whole square: no block is skipped.
fn unfused(shape: &Shape, useful: f64, efficiency: f64, device: &Device<'_>) -> Parts {
    // Heads lie side by side, so that their width is where rows start.
    let aligned = [shape.width_qk, shape.width_v]
        .iter()
        .all(|width| (width * shape.element) % ROW_ALIGNMENT == 0.0);
    let efficiency = if aligned {
        efficiency
    } else {
        let vector = device.accelerator.vector.flops_per_sec() * WITHOUT_TENSOR_CORES;
        efficiency.min(vector / gemm::peak(device, Precision::Bf16))
    };
    let sustained = useful / efficiency * device.slower();
    let math = sustained / shape.mask;
    let square = shape.batch * shape.heads * shape.query * shape.kv;
    // In passes of two bytes per score. Forward: scores written, read and normalised and written,
    // read, dropped and written with a byte of mask, read. Backward: their gradient written, read
    // with the mask and written, read with the probabilities and written, read twice, and the
    // dropped probabilities read.
    let (passes, launches) = match shape.direction {
        Direction::Forward => (6.5, 4.0),
        Direction::Backward => (9.5, 6.0),
    };
    let memory_time = (square * passes * 2.0 + shape.bytes()) / device.memory_rate();
    // The products read the scores while they multiply; the softmax between them only streams.
    let softmax = memory_time * 0.5;
    Parts {
        useful,
        sustained: sustained - useful,
        shape: math - sustained,
        memory: overlapped(math, memory_time - softmax) - math + softmax,
        exponent: 0.0,
        floor: device.floor() * launches,
        memory_time,
    }
}
