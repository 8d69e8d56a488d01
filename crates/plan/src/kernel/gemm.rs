//! Matrix products: the fastest of a library's tiles.

use super::{Device, Parts, overlapped, overlapped_by};
use rackflow_units::Precision;
use rackflow_workload::Operation;

/// Output tiles that libraries offer, rows x columns. The narrow ones multiply with operands swapped.
const TILES: [(f64, f64); 11] = [
    (256.0, 128.0),
    (128.0, 256.0),
    (128.0, 192.0),
    (192.0, 128.0),
    (128.0, 128.0),
    (128.0, 64.0),
    (64.0, 128.0),
    (64.0, 256.0),
    (64.0, 64.0),
    (32.0, 128.0),
    (16.0, 128.0),
];

/// Exponent of the mean under which math and memory overlap within one kernel.
const WITHIN_ONE_KERNEL: f64 = 4.0;

/// The tile whose rate in a long loop the accelerator's efficiency describes.
const LARGEST: (f64, f64) = (128.0, 256.0);

/// Streams on which the pieces of a product run side by side (Transformer Engine, `NVTE_COMM_OVERLAP_MAX_STREAMS`):
/// small ones leave SMs idle all the same.
const COMPUTE_STREAMS: f64 = 3.0;

/// Parts into which libraries split the reduced dimension.
const SPLITS: [f64; 6] = [1.0, 2.0, 3.0, 4.0, 8.0, 16.0];

/// `count` products of m x k with k x n, as the kernel sees them.
pub(super) struct Product {
    pub m: f64,
    pub n: f64,
    pub k: f64,
    pub count: f64,
    /// Rows that are summed over all products without being a multiple of `count`.
    pub ragged: bool,
    pub output_bytes: f64,
    /// One kernel for each product.
    pub apart: bool,
    /// Products of the same size beside this one, itself included, whose tiles fill one another's last waves.
    pub pieces: f64,
}

impl Product {
    fn of(op: &Operation) -> (Self, Precision) {
        match *op {
            Operation::Gemm {
                m,
                n,
                k,
                batch,
                pieces,
                sms_left: _,
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
                    apart: false,
                    pieces: pieces as f64,
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
                apart,
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
                        apart: apart && groups > 1,
                        pieces: 1.0,
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

    /// Whether results are added to what lies in memory: read and written.
    fn accumulates(&self) -> bool {
        self.output_bytes > 2.0
    }

    /// Exponent of the mean under which its operands arrive beside its math. Of one kernel for each
    /// product, the first operands and the last results lie bare, more so where they are added to a
    /// buffer.
    fn overlap(&self, device: &Device<'_>) -> f64 {
        let [written, added] = device.mechanism.apart_overlap;
        match (self.apart, self.accumulates()) {
            (false, _) => WITHIN_ONE_KERNEL,
            (true, false) => written,
            (true, true) => added,
        }
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
pub(super) fn element_bytes(precision: Precision) -> f64 {
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

/// How one library writes its products in one format.
#[derive(Debug, Clone, Copy)]
pub(super) struct Style {
    /// Format in which the tensor cores multiply.
    pub precision: Precision,
    /// Fraction of that format's peak that a long main loop sustains.
    pub efficiency: f64,
    /// Bytes of an element of the left operand, with its share of scales.
    pub left: f64,
    /// Bytes of an element of the right operand (the weights), with its share of scales.
    pub right: f64,
    /// Most parts into which the reduction is split.
    pub max_split: f64,
    /// Fill and store of a tile over those of [`Mechanism`](super::Mechanism).
    pub tile_cycles: f64,
    /// Part of a stream's memory bandwidth at which operands arrive.
    pub memory: f64,
    /// Latency of the first operands and of the last store, which nothing hides [s].
    pub ramp: f64,
    /// Memory bandwidth that one SM can ask for over its even share: bytes in flight by latency.
    /// Few tiles of an unsplit product cannot use the memory.
    pub sm_share: f64,
}

impl Style {
    /// Both operands in `precision`, by the accelerator's own library.
    pub(super) fn own(precision: Precision, device: &Device<'_>) -> Self {
        let element = element_bytes(precision);
        Self {
            precision,
            efficiency: device.accelerator.measured.gemm.get(precision),
            left: element,
            right: element,
            max_split: 16.0,
            tile_cycles: 1.0,
            memory: device.mechanism.gemm_memory,
            ramp: device.ramp(),
            sm_share: f64::INFINITY,
        }
    }
}

pub(super) fn cost(op: &Operation, device: &Device<'_>) -> Parts {
    let (product, precision) = Product::of(op);
    styled(&product, &Style::own(precision, device), device)
}

/// A product as `style` writes it.
pub(super) fn styled(product: &Product, style: &Style, device: &Device<'_>) -> Parts {
    let flops = product.flops();
    if flops == 0.0 {
        return Parts::default();
    }
    let peak = peak(device, style.precision);
    let sustained = flops / (peak * style.efficiency) * device.slower();
    let memory_time = traffic(product, style, device) / (device.memory_rate() * style.memory);
    let element = f64::midpoint(style.left, style.right);
    let per_flop = sustained / flops;
    let (rows, columns) = LARGEST;
    let multiply = 2.0 * rows * columns * per_flop * f64::from(device.sms);
    let tiling = Tiling {
        product,
        style,
        per_flop,
        element,
        starved: starved(rows, columns, multiply, element, device),
        memory_time,
        overlap: product.overlap(device),
        device,
    };
    let mut fastest = (f64::INFINITY, 0.0);
    for tile in TILES {
        tiling.compare(tile, &mut fastest);
    }
    let (whole, math) = fastest;
    let useful = flops / peak;
    let math = math.max(sustained);
    // The end of a tile reads what it adds to, while its multiplier waits.
    let whole = if product.accumulates() && !product.apart {
        let buffer = product.m * product.n * product.count * product.output_bytes;
        whole + device.mechanism.accumulate_exposed * buffer / device.memory_rate()
    } else {
        whole
    };
    Parts {
        useful,
        sustained: sustained - useful,
        shape: math - sustained,
        memory: whole.max(math) - math,
        exponent: 0.0,
        floor: device.floor(),
        memory_time,
    }
}

/// What all tiles of one product share.
struct Tiling<'a> {
    product: &'a Product,
    style: &'a Style,
    /// Time of one operation when all SMs of the kernel work [s].
    per_flop: f64,
    /// Mean bytes of an element of the operands.
    element: f64,
    /// How far delivery slows the largest tile.
    starved: f64,
    memory_time: f64,
    /// As [`Product::overlap`].
    overlap: f64,
    device: &'a Device<'a>,
}

impl Tiling<'_> {
    /// Compares one size of tile, over all splits of the reduction, with the fastest so far: its
    /// time with and without the arrival of operands [s]. What cannot be faster is not computed.
    fn compare(&self, (rows, columns): (f64, f64), fastest: &mut (f64, f64)) {
        let Self {
            product,
            style,
            element,
            device,
            ..
        } = *self;
        let mechanism = device.mechanism;
        let sms = f64::from(device.sms);
        let own = product.tiles(rows, columns);
        // Of all pieces, each of which takes its part of their time.
        let tiles = own * product.pieces;
        let multiply = 2.0 * rows * columns * self.per_flop * sms;
        // No tile is delivered at less cost per operation than the largest.
        if tiles / sms * product.k * multiply / product.pieces >= fastest.0 {
            return;
        }
        let bands =
            (product.n / columns).max(product.m / rows).ceil() * product.count * product.pieces;
        // A pipeline step reads 128 bytes of each row.
        let step = (128.0 / element).floor();
        // The sustained rate is that of the largest tile, so delivery counts against that tile's.
        let per_k = multiply * starved(rows, columns, multiply, element, device) / self.starved;
        let overhead =
            device.cycles(mechanism.gemm_tile_cycles[device.generation()] * style.tile_cycles);
        for split in SPLITS {
            if split > style.max_split || (split > 1.0 && own >= 2.0 * sms) {
                break;
            }
            let k = (product.k / split / step).ceil() * step;
            let waves = tiles * split / sms;
            let waited = if waves <= 1.0 {
                1.0
            } else {
                waves + mechanism.wave_tail * (waves.ceil() - waves)
            }
            .max((product.pieces / COMPUTE_STREAMS).ceil());
            let mut time = waited * (k * per_k + overhead) / product.pieces;
            if split > 1.0 {
                // Partial sums leave in fp32 and are read again, through the cache.
                let partial = product.m * product.n * product.count * 8.0 * split;
                let cache = sms * mechanism.delivery_bytes_per_sm_clock;
                time += device.cycles(mechanism.split_cycles + partial / cache);
            }
            // Operands are asked for by one tile of each row and column; the others hit the cache.
            let asking = (bands * split / sms).min(1.0) * style.sm_share;
            let arrival = self.memory_time / asking.min(1.0) + style.ramp;
            if time.max(arrival) >= fastest.0 {
                continue;
            }
            let whole = overlapped_by(self.overlap, time, arrival);
            if whole < fastest.0 {
                *fastest = (whole, time);
            }
        }
    }
}

/// Factor by which fetching the operands of one k from the cache slows `multiply` seconds of math.
fn starved(rows: f64, columns: f64, multiply: f64, element: f64, device: &Device<'_>) -> f64 {
    let deliver =
        device.cycles((rows + columns) * element / device.mechanism.delivery_bytes_per_sm_clock);
    overlapped(multiply, deliver) / multiply
}

/// Bytes that cross the memory interface. Operands are read once if they stay in the cache; else
/// once per band of tiles that runs at a time.
fn traffic(product: &Product, style: &Style, device: &Device<'_>) -> f64 {
    let left = product.m * product.k * style.left;
    let right = product.n * product.k * style.right;
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
