//! Published timings of kernels, and the operations that each of them ran.

use super::{KernelOptions, cost_with};
use rackflow_topology::Accelerator;
use rackflow_units::{Bytes, Precision};
use rackflow_workload::{AttentionKernel, Direction, Operation};

/// What was timed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum MeasuredKind {
    /// A product of matrices alone.
    Gemm,
    /// A product after the quantisation of its left operand.
    QuantisedGemm,
    /// The best product of a search over shapes.
    BestGemm,
    /// One launch of several products.
    GroupedGemm,
    /// Causal attention, forward, after the copy of keys and values to a cache.
    Attention,
    /// Reading and writing of memory.
    Stream,
}

/// One published timing.
#[derive(Debug, Clone, PartialEq)]
pub struct MeasuredKernel {
    /// What was timed.
    pub kind: MeasuredKind,
    /// Catalogue name of the accelerator.
    pub accelerator: &'static str,
    /// Format of the operands; bf16 for streams.
    pub precision: Precision,
    /// Sizes as the table writes them, such as `4096x7168x2048`.
    pub shape: &'static str,
    /// What ran, one after the other.
    pub operations: Vec<Operation>,
    /// What the software chose.
    pub options: KernelOptions,
    /// How long it took.
    pub seconds: f64,
    /// Key of the source; the head of the table spells it out.
    pub source: &'static str,
    /// All of m, n and k are at least 1024, or the attention has 1024 positions and 8 heads.
    pub large: bool,
}

impl MeasuredKernel {
    /// The cost model's time over the measured time, as a natural logarithm.
    pub fn log_error(&self, accelerator: &Accelerator) -> f64 {
        let cost = |op| {
            cost_with(op, accelerator, accelerator.sms, self.options)
                .time
                .as_secs_f64()
        };
        (self.operations.iter().map(cost).sum::<f64>() / self.seconds).ln()
    }
}

const TABLE: &str = include_str!("../../data/kernels.csv");

/// All timings.
///
/// # Panics
/// Never, unless the table in this crate is broken.
pub fn measured_kernels() -> Vec<MeasuredKernel> {
    let lines = TABLE.lines().filter(|line| !line.starts_with('#'));
    lines
        .skip(1)
        .map(|line| row(line).unwrap_or_else(|| panic!("broken row: {line}")))
        .collect()
}

fn row(line: &'static str) -> Option<MeasuredKernel> {
    let mut fields = line.split(',');
    let kind = fields.next()?;
    let accelerator = fields.next()?;
    let precision = match fields.next()? {
        "fp8" => Precision::Fp8,
        "fp4" => Precision::Fp4,
        _ => Precision::Bf16,
    };
    let shape = fields.next()?;
    let seconds = fields.next()?.parse::<f64>().ok()? * 1e-6;
    let source = fields.next()?;
    let sizes = shape
        .split('x')
        .map(str::parse)
        .collect::<Result<Vec<u64>, _>>()
        .ok()?;
    let (kind, operations, large) = match (kind, &*sizes) {
        ("gemm", &[m, n, k]) => (
            MeasuredKind::Gemm,
            vec![gemm(m, n, k, precision)],
            m.min(n).min(k) >= 1024,
        ),
        ("gemm_best", &[m, n, k]) => (MeasuredKind::BestGemm, vec![gemm(m, n, k, precision)], true),
        ("gemm_quantise", &[m, n, k, passes, kernels]) => (
            MeasuredKind::QuantisedGemm,
            vec![
                quantise(m, k, precision, passes, u32::try_from(kernels).ok()?),
                gemm(m, n, k, precision),
            ],
            m.min(n).min(k) >= 1024,
        ),
        ("grouped_gemm", &[groups, m, n, k]) => {
            let product = Operation::GroupedGemm {
                groups,
                m_total: groups * m,
                n,
                k,
                precision,
                output_bytes: 2,
                weight_gradient: false,
            };
            (MeasuredKind::GroupedGemm, vec![product], m >= 1024)
        }
        ("attention_cache", &[batch, heads, kv_heads, length, width]) => {
            let cache = Bytes::of_elements(2 * batch * kv_heads * length * width, precision.bits());
            let copy = Operation::Stream {
                read: cache,
                write: cache,
                kernels: 1,
                flops: 0.0,
            };
            let attention = Operation::Attention {
                batch,
                heads,
                kv_heads,
                query_len: length,
                kv_len: length,
                head_dim_qk: width,
                head_dim_v: width,
                mask_fraction: 0.5,
                direction: Direction::Forward,
                precision,
            };
            (
                MeasuredKind::Attention,
                vec![copy, attention],
                length >= 1024 && batch * heads >= 8,
            )
        }
        ("stream", &[read, write]) => {
            let stream = Operation::Stream {
                read: Bytes::new(read),
                write: Bytes::new(write),
                kernels: 1,
                flops: 0.0,
            };
            (MeasuredKind::Stream, vec![stream], true)
        }
        _ => return None,
    };
    // vLLM still runs FlashAttention 2 on Ampere.
    let attention = match (accelerator, source) {
        ("a100-80", "aic-vllm") => AttentionKernel::Flash2,
        _ => AttentionKernel::Best,
    };
    let options = KernelOptions {
        attention,
        ..KernelOptions::default()
    };
    Some(MeasuredKernel {
        kind,
        accelerator,
        precision,
        shape,
        operations,
        options,
        seconds,
        source,
        large,
    })
}

fn gemm(m: u64, n: u64, k: u64, precision: Precision) -> Operation {
    Operation::Gemm {
        m,
        n,
        k,
        batch: 1,
        precision,
        output_bytes: 2,
    }
}

/// Quantisation of an m x k operand: one pass finds the scale of each block while it converts, two
/// find a scale of the whole first. Small kernels beside it arrange the scales.
fn quantise(m: u64, k: u64, precision: Precision, passes: u64, kernels: u32) -> Operation {
    Operation::Stream {
        read: Bytes::new(2 * m * k * passes),
        write: Bytes::of_elements(m * k, precision.bits()),
        kernels,
        flops: 0.0,
    }
}
