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
    let mut rate = rate(kernel, direction, precision, device);
    let useful = flops / rate.peak;
    if kernel == AttentionKernel::Unfused {
        return unfused(&shape, useful, rate.efficiency, device);
    }
    rate.efficiency *= wide_heads(&shape, device);
    let device = Device {
        clock_share: clock_share(&shape, useful, &rate, device),
        ..*device
    };
    fused(&shape, useful, &rate, &device)
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
fn clock_share(shape: &Shape, useful: f64, rate: &Rate, device: &Device<'_>) -> f64 {
    if !rate.native || device.clock_share >= 1.0 {
        return device.clock_share;
    }
    let burst = Device {
        clock_share: 1.0,
        ..*device
    };
    let cold = fused(shape, useful, rate, &burst);
    let busy = useful / (cold.useful + cold.sustained + cold.shape + cold.exponent + cold.memory);
    let products = device.accelerator.measured.gemm.bf16;
    let lighter = (products / busy).powf(device.mechanism.clock_by_load);
    (device.clock_share * lighter).clamp(device.clock_share, 1.0)
}

/// One fused kernel whose products take `useful` seconds at the peak. Going back, kernels of their own
/// stand before and after it.
pub(super) fn fused(shape: &Shape, useful: f64, rate: &Rate, device: &Device<'_>) -> Parts {
    let sustained = useful / rate.efficiency * device.slower();
    let scores = shape.batch * shape.heads * shape.query * shape.kv * shape.mask;
    let math = math(shape, sustained, scores, device);
    let score_rate = f64::from(device.sms) * device.accelerator.clock.hertz() * device.clock_share;
    // Exponentials are taken of whole tiles, like products.
    let exponentials =
        scores / (score_rate * scores_per_sm_clock(shape, rate, device)) * (math / sustained);
    let serial = device.mechanism.exponent_serial;
    let computed = math.max(exponentials) + serial * math.min(exponentials);
    let memory_time = shape.bytes() / device.memory_rate();
    let apart = shape.bytes_apart() / device.memory_rate();
    Parts {
        useful,
        sustained: sustained - useful,
        shape: math - sustained,
        memory: overlapped(computed, memory_time) - computed + apart,
        exponent: computed - math,
        floor: device.floor() * shape.launches(),
        memory_time: memory_time + apart,
    }
}

/// Scores that an SM takes through the softmax in a clock. Going back, the exponential is the least of
/// it: differences, products with the gradient, conversions and the accumulation of the queries' gradient
/// take as long with heads of 64 as with heads of 128.
fn scores_per_sm_clock(shape: &Shape, rate: &Rate, device: &Device<'_>) -> f64 {
    let unit = f64::from(device.accelerator.exponentials_per_sm_clock) * rate.exponentials;
    match shape.direction {
        Direction::Forward => unit,
        Direction::Backward => unit.min(rate.backward_scores),
    }
}

/// What a kernel sustains in a long inner loop.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rate {
    /// Dense peak of the format that the kernel runs in [FLOP/s].
    pub peak: f64,
    /// Fraction of it.
    pub efficiency: f64,
    /// Exponentials over those of the exponent unit.
    pub exponentials: f64,
    /// Scores per SM and clock through the softmax and its gradient, beside the exponent unit.
    pub backward_scores: f64,
    /// Whether the kernel is written for the accelerator's own instructions.
    pub native: bool,
}

/// Rate of a kernel.
/// Unfused products are GEMMs. Backward has no 8-bit kernel and runs in 16 bits.
pub(super) fn rate(
    kernel: AttentionKernel,
    direction: Direction,
    precision: Precision,
    device: &Device<'_>,
) -> Rate {
    let attention = &device.accelerator.measured.attention;
    let wide = gemm::peak(device, Precision::Bf16);
    let best = attention.best;
    let (rates, native) = match kernel {
        AttentionKernel::Unfused => {
            return Rate {
                peak: wide,
                efficiency: device.accelerator.measured.gemm.bf16,
                exponentials: 1.0,
                backward_scores: f64::INFINITY,
                native: false,
            };
        }
        AttentionKernel::Flash1 => (attention.flash1, false),
        AttentionKernel::Flash2 => (attention.flash2, false),
        AttentionKernel::Cudnn91 => (attention.cudnn_9_1.unwrap_or(best), true),
        AttentionKernel::Cudnn913 => (attention.cudnn_9_13.unwrap_or(best), true),
        AttentionKernel::Cudnn919 => (attention.cudnn_9_19.unwrap_or(best), true),
        AttentionKernel::Best => (best, true),
    };
    let (peak, efficiency) = match (direction, precision, rates.forward_fp8) {
        (Direction::Forward, Precision::Fp8 | Precision::Fp4, Some(forward)) => {
            (gemm::peak(device, Precision::Fp8), forward)
        }
        (Direction::Forward, ..) => (wide, rates.forward),
        (Direction::Backward, ..) => (wide, rates.backward),
    };
    Rate {
        peak,
        efficiency,
        exponentials: rates.exponentials.unwrap_or(1.0),
        backward_scores: rates.backward_scores.unwrap_or(f64::INFINITY),
        native: native || device.generation_kind() == Generation::Ampere,
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
    let (in_flight, cycles) = match shape.direction {
        Direction::Forward if device.generation() == 2 => (2.0, mechanism.attention_tile_cycles),
        Direction::Forward => (1.0, mechanism.attention_tile_cycles),
        Direction::Backward => (1.0, mechanism.backward_tile_cycles),
    };
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
    let overhead = device.cycles(cycles * in_flight);
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
            // Q, dO, K, V read; dK, dV written, for every query head; dQ summed in fp32.
            Direction::Backward => {
                let heads = if self.grouped() {
                    self.batch * self.heads * self.kv
                } else {
                    kv
                };
                let read = query * width + kv * width;
                (read + heads * width) * self.element.max(2.0) + query * self.width_qk * 4.0
            }
        }
    }

    /// Whether query heads share keys and values.
    fn grouped(&self) -> bool {
        self.kv_heads < self.heads
    }

    /// Bytes of the kernels beside the main one, which nothing hides. Going back: row sums of dO x O, zeros
    /// for dQ, its conversion from fp32, and the sums of dK and dV over the heads that share them.
    fn bytes_apart(&self) -> f64 {
        if self.direction == Direction::Forward {
            return 0.0;
        }
        let element = self.element.max(2.0);
        let query = self.batch * self.heads * self.query;
        let sums = query * self.width_v * 2.0 * element;
        let gradient = query * self.width_qk * (4.0 + 4.0 + element);
        let width = self.width_qk + self.width_v;
        let shared = if self.grouped() {
            self.batch * (self.heads + self.kv_heads) * self.kv * width * element
        } else {
            0.0
        };
        sums + gradient + shared
    }

    /// Backward prepares the row sums of dO x O, and converts dQ and sums dK and dV afterwards.
    fn launches(&self) -> f64 {
        match self.direction {
            Direction::Forward => 1.0,
            Direction::Backward if self.grouped() => 4.0,
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
