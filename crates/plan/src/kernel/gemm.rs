//! Matrix products: the fastest of a library's tiles.

use super::{Device, Parts, overlapped};
use rackflow_units::Precision;
use rackflow_workload::Operation;

/// Output tiles that libraries offer, rows x columns.
const TILES: [(f64, f64); 9] = [
    (256.0, 128.0),
    (128.0, 256.0),
    (128.0, 192.0),
    (192.0, 128.0),
    (128.0, 128.0),
    (128.0, 64.0),
    (64.0, 128.0),
    (64.0, 256.0),
    (64.0, 64.0),
];

/// The tile whose rate in a long loop the accelerator's efficiency describes.
const LARGEST: (f64, f64) = (128.0, 256.0);

/// Parts into which libraries split the reduced dimension.
const SPLITS: [f64; 6] = [1.0, 2.0, 3.0, 4.0, 8.0, 16.0];

/// `count` products of m x k with k x n, as the kernel sees them.
struct Product {
    m: f64,
    n: f64,
    k: f64,
    count: f64,
    /// Rows that are summed over all products without being a multiple of `count`.
    ragged: bool,
    output_bytes: f64,
}

impl Product {
    fn of(op: &Operation) -> (Self, Precision) {
        match *op {
            Operation::Gemm {
                m,
                n,
                k,
                batch,
                precision,
                output_bytes,
            } => (
                Self {
                    m: m as f64,
                    n: n as f64,
                    k: k as f64,
                    count: batch as f64,
                    ragged: false,
                    output_bytes: output_bytes as f64,
                },
                precision,
            ),
            Operation::GroupedGemm {
                groups,
                m_total,
                n,
                k,
                precision,
                output_bytes,
                weight_gradient,
            } => {
                let rows = m_total as f64 / groups as f64;
                let (m, n, k) = if weight_gradient {
                    (n as f64, k as f64, rows)
                } else {
                    (rows, n as f64, k as f64)
                };
                let ragged = groups > 1 && !weight_gradient;
                let count = groups as f64;
                (
                    Self {
                        m,
                        n,
                        k,
                        count,
                        ragged,
                        output_bytes: output_bytes as f64,
                    },
                    precision,
                )
            }
            Operation::Attention { .. } | Operation::Stream { .. } => {
                unreachable!("only products are products")
            }
        }
    }

    fn flops(&self) -> f64 {
        2.0 * self.m * self.n * self.k * self.count
    }

    /// Tiles over all products. A ragged group ends in the middle of a tile: half a tile more.
    fn tiles(&self, rows: f64, columns: f64) -> f64 {
        let high = if self.ragged {
            (self.m / rows + 0.5).max(self.m.min(1.0))
        } else {
            (self.m / rows).ceil()
        };
        high * (self.n / columns).ceil() * self.count
    }
}

/// Bytes of one operand element, with its share of block scales: one fp32 scale per 128 elements
/// in fp8, one fp8 scale per 16 in fp4.
fn element_bytes(precision: Precision) -> f64 {
    match precision {
        Precision::Fp32 | Precision::Tf32 => 4.0,
        Precision::Fp16 | Precision::Bf16 => 2.0,
        Precision::Fp8 => 1.0 + 4.0 / 128.0,
        Precision::Fp4 => 0.5 + 1.0 / 16.0,
    }
}

/// Dense peak in `precision` [FLOP/s]; 32-bit operands run at half the 16-bit rate.
pub(super) fn peak(device: &Device<'_>, precision: Precision) -> f64 {
    let peak = device.accelerator.peak.get(precision).flops_per_sec();
    match precision {
        Precision::Fp32 | Precision::Tf32 => peak / 2.0,
        _ => peak,
    }
}

pub(super) fn cost(op: &Operation, device: &Device<'_>) -> Parts {
    let (product, precision) = Product::of(op);
    let flops = product.flops();
    if flops == 0.0 {
        return Parts::default();
    }
    let peak = peak(device, precision);
    let sustained =
        flops / (peak * device.accelerator.measured.gemm.get(precision)) * device.slower();
    let element = element_bytes(precision);
    let mut math = f64::INFINITY;
    for (rows, columns) in TILES {
        math = math.min(tiled(
            &product,
            rows,
            columns,
            sustained / flops,
            element,
            device,
        ));
    }
    let math = math.max(sustained);
    let memory_time =
        traffic(&product, element, device) / (device.memory_rate() * device.mechanism.gemm_memory);
    let arrival = memory_time + device.mechanism.stream_ramp;
    let useful = flops / peak;
    Parts {
        useful,
        sustained: sustained - useful,
        shape: math - sustained,
        memory: overlapped(math, arrival) - math,
        exponent: 0.0,
        floor: device.floor(),
        memory_time,
    }
}

/// Time of the math with one size of tile, over the best split of the reduction [s].
/// `per_flop` is the time that one operation takes when all SMs of the kernel work [s].
fn tiled(
    product: &Product,
    rows: f64,
    columns: f64,
    per_flop: f64,
    element: f64,
    device: &Device<'_>,
) -> f64 {
    let mechanism = device.mechanism;
    let sms = f64::from(device.sms);
    let tiles = product.tiles(rows, columns);
    // A pipeline step reads 128 bytes of each row.
    let step = (128.0 / element).floor();
    let multiply = 2.0 * rows * columns * per_flop * sms;
    // The sustained rate is that of the largest tile, so delivery counts against that tile's.
    let per_k = multiply * starved(rows, columns, multiply, element, device)
        / starved(
            LARGEST.0,
            LARGEST.1,
            multiply * LARGEST.0 * LARGEST.1 / (rows * columns),
            element,
            device,
        );
    let overhead = device.cycles(mechanism.gemm_tile_cycles[device.generation()]);
    let mut best = f64::INFINITY;
    for split in SPLITS {
        if split > 1.0 && tiles >= 2.0 * sms {
            break;
        }
        let k = (product.k / split / step).ceil() * step;
        let waves = tiles * split / sms;
        let waited = if waves <= 1.0 {
            1.0
        } else {
            waves + mechanism.wave_tail * (waves.ceil() - waves)
        };
        let mut time = waited * (k * per_k + overhead);
        if split > 1.0 {
            // Partial sums leave in fp32 and are read again, through the cache.
            let partial = product.m * product.n * product.count * 8.0 * split;
            let cache = sms * mechanism.delivery_bytes_per_sm_clock;
            time += device.cycles(mechanism.split_cycles + partial / cache);
        }
        best = best.min(time);
    }
    best
}

/// Factor by which fetching the operands of one k from the cache slows `multiply` seconds of math.
fn starved(rows: f64, columns: f64, multiply: f64, element: f64, device: &Device<'_>) -> f64 {
    let deliver =
        device.cycles((rows + columns) * element / device.mechanism.delivery_bytes_per_sm_clock);
    overlapped(multiply, deliver) / multiply
}

/// Bytes that cross the memory interface. Operands are read once if they stay in the cache; else
/// once per band of tiles that runs at a time.
fn traffic(product: &Product, element: f64, device: &Device<'_>) -> f64 {
    let left = product.m * product.k * element;
    let right = product.n * product.k * element;
    let output = product.m * product.n * product.output_bytes;
    let cache = device.accelerator.l2.as_f64() * device.mechanism.cache_share;
    // A wave is a square patch of the output.
    let side = (f64::from(device.sms) * 128.0 * 256.0).sqrt();
    let operands = if left.min(right) <= cache {
        left + right
    } else {
        left * (product.n / side).max(1.0) + right * (product.m / side).max(1.0)
    };
    (operands + output * device.mechanism.write_cost) * product.count
}
