//! What must hold for every shape.

use super::{KernelCost, KernelOptions, cost, cost_with};
use rackflow_topology::{Accelerator, AttentionRate, AttentionRates, ByPrecision, Measured};
use rackflow_units::{Bytes, Precision, SimDuration};
use rackflow_workload::{Access, AttentionKernel, Direction, Operation};
use std::collections::BTreeMap;
use std::str::FromStr;

const CATALOGUE: &str = include_str!("../../../scenario/catalogue/accelerators.yaml");

/// Values of one catalogue entry by dotted path. This crate knows no YAML, so it reads the subset
/// that the file keeps to: two spaces a level, and maps of scalars in braces.
fn entry(name: &str) -> BTreeMap<String, String> {
    let mut values = BTreeMap::new();
    let mut path: Vec<String> = Vec::new();
    for line in CATALOGUE
        .lines()
        .filter(|line| !line.starts_with('#') && !line.is_empty())
    {
        let depth = (line.len() - line.trim_start().len()) / 2;
        let (key, value) = line.trim().split_once(':').expect("a key and a value");
        path.truncate(depth);
        path.push(key.trim_matches('"').to_owned());
        if path[0] != name {
            continue;
        }
        let here = path[1..].join(".");
        let value = value.trim().trim_matches('"');
        if let Some(map) = value
            .strip_prefix('{')
            .and_then(|map| map.strip_suffix('}'))
        {
            for field in map.split(',') {
                let (key, value) = field.split_once(':').expect("a key and a value");
                values.insert(format!("{here}.{}", key.trim()), value.trim().to_owned());
            }
        } else {
            values.insert(here, value.to_owned());
        }
    }
    values
}

fn parse<T: FromStr<Err: std::fmt::Debug>>(values: &BTreeMap<String, String>, path: &str) -> T {
    parse_if(values, path).unwrap_or_else(|| panic!("no {path}"))
}

fn parse_if<T: FromStr<Err: std::fmt::Debug>>(
    values: &BTreeMap<String, String>,
    path: &str,
) -> Option<T> {
    values
        .get(path)
        .map(|text| text.parse().expect("a value with its unit"))
}

fn by_precision<T: FromStr<Err: std::fmt::Debug>>(
    v: &BTreeMap<String, String>,
    path: &str,
) -> ByPrecision<T> {
    ByPrecision {
        bf16: parse(v, &format!("{path}.bf16")),
        fp8: parse_if(v, &format!("{path}.fp8")),
        fp4: parse_if(v, &format!("{path}.fp4")),
    }
}

pub(super) fn accelerator(name: &str) -> Accelerator {
    let v = entry(name);
    let rate_if = |age: &str| {
        let at = |field: &str| format!("measured.attention.{age}.{field}");
        Some(AttentionRate {
            forward: parse_if(&v, &at("forward"))?,
            backward: parse(&v, &at("backward")),
            forward_fp8: parse_if(&v, &at("forward_fp8")),
            exponentials: parse_if(&v, &at("exponentials")),
            backward_scores: parse_if(&v, &at("backward_scores")),
        })
    };
    let rate = |age: &str| rate_if(age).expect("every accelerator has it");
    Accelerator {
        name: name.to_owned(),
        sms: parse(&v, "sms"),
        clock: parse(&v, "clock"),
        peak: by_precision(&v, "peak"),
        vector: parse(&v, "vector"),
        exponentials_per_sm_clock: parse(&v, "exponentials_per_sm_clock"),
        memory: parse(&v, "memory"),
        reported_memory: 1.0,
        memory_bandwidth: parse(&v, "memory_bandwidth"),
        l2: parse(&v, "l2"),
        host_bandwidth: parse(&v, "host_bandwidth"),
        power: parse(&v, "power"),
        price: parse_if(&v, "price"),
        capital: None,
        draw: rackflow_topology::Draw::default(),
        measured: Measured {
            continuous_clock: 0.9,
            gemm: by_precision(&v, "measured.gemm"),
            attention: AttentionRates {
                flash1: rate("flash1"),
                flash2: rate("flash2"),
                cudnn_9_1: rate_if("cudnn_9_1"),
                cudnn_9_13: rate_if("cudnn_9_13"),
                cudnn_9_19: rate_if("cudnn_9_19"),
                best: rate("best"),
            },
            memory: parse(&v, "measured.memory"),
            kernel_floor: parse(&v, "measured.kernel_floor"),
        },
        sources: BTreeMap::new(),
    }
}

pub(super) const NAMES: [&str; 13] = [
    "a100-80",
    "a100-40",
    "h100-sxm",
    "h100-hbm2e-500w",
    "h800-sxm",
    "h200-sxm",
    "h20",
    "b200-sxm",
    "gb200",
    "b300-sxm",
    "gb300",
    "mi300x",
    "tpu-v5p",
];

fn gemm(m: u64, n: u64, k: u64, precision: Precision) -> Operation {
    Operation::Gemm {
        m,
        n,
        k,
        batch: 1,
        pieces: 1,
        sms_left: 0,
        precision,
        output_bytes: 2,
    }
}

fn attention(length: u64, direction: Direction) -> Operation {
    Operation::Attention {
        batch: 2,
        heads: 32,
        kv_heads: 8,
        query_len: length,
        kv_len: length,
        head_dim_qk: 128,
        head_dim_v: 128,
        mask_fraction: 0.5,
        direction,
        precision: Precision::Bf16,
    }
}

fn many_operations() -> Vec<Operation> {
    let sizes = [1, 129, 1024, 5120, 7168, 28672];
    let mut ops = vec![
        Operation::Stream {
            read: Bytes::new(1 << 28),
            write: Bytes::new(1 << 27),
            kernels: 3,
            flops: 1e9,
            access: Access::Elementwise,
        },
        Operation::Stream {
            read: Bytes::ZERO,
            write: Bytes::ZERO,
            kernels: 1,
            flops: 0.0,
            access: Access::Copy,
        },
        gemm(0, 1024, 1024, Precision::Bf16),
    ];
    for m in sizes {
        for n in sizes {
            for k in sizes {
                for precision in [
                    Precision::Fp32,
                    Precision::Bf16,
                    Precision::Fp8,
                    Precision::Fp4,
                ] {
                    let whole = gemm(m, n, k, precision);
                    ops.push(gemm_piece(&whole, 4));
                    ops.push(whole);
                }
            }
        }
    }
    for length in [1, 100, 512, 4096, 32768] {
        ops.push(attention(length, Direction::Forward));
        ops.push(attention(length, Direction::Backward));
    }
    for (groups, m_total) in [(1, 4096), (8, 3), (8, 4096), (64, 32768), (256, 8192)] {
        for (weight_gradient, apart) in [(false, false), (true, false), (false, true), (true, true)]
        {
            ops.push(Operation::GroupedGemm {
                groups,
                m_total,
                n: 4096,
                k: 7168,
                precision: Precision::Fp8,
                output_bytes: 2,
                weight_gradient,
                apart,
            });
        }
    }
    ops
}

fn sum(c: &KernelCost) -> SimDuration {
    c.useful + c.sustained + c.shape + c.memory + c.exponent + c.floor
}

#[test]
fn parts_sum_to_the_time_of_every_kernel() {
    for name in NAMES {
        let acc = accelerator(name);
        for op in many_operations() {
            for kernel in [
                AttentionKernel::Unfused,
                AttentionKernel::Flash1,
                AttentionKernel::Flash2,
                AttentionKernel::Cudnn91,
                AttentionKernel::Cudnn913,
                AttentionKernel::Cudnn919,
                AttentionKernel::Best,
            ] {
                let c = cost_with(
                    &op,
                    &acc,
                    acc.sms,
                    KernelOptions {
                        attention: kernel,
                        ..KernelOptions::default()
                    },
                );
                assert_eq!(sum(&c), c.time, "{name} {op:?}");
            }
        }
    }
}

#[test]
fn no_kernel_beats_its_roofline() {
    for name in NAMES {
        let acc = accelerator(name);
        for op in many_operations() {
            let c = cost(&op, &acc, acc.sms);
            let bytes = match op {
                Operation::Gemm {
                    m, n, k, precision, ..
                } => (m * k + n * k) as f64 * precision.bits() as f64 / 8.0 + (m * n * 2) as f64,
                Operation::Stream { read, write, .. } => read.as_f64() + write.as_f64(),
                _ => 0.0,
            };
            let read = if op.tensor_flops() > 0.0 || matches!(op, Operation::Stream { .. }) {
                bytes
            } else {
                0.0
            };
            assert!(
                c.time.as_secs_f64() >= read / acc.memory_bandwidth.as_f64(),
                "{name} {op:?}"
            );
            assert!(
                c.time >= c.memory_time && c.time >= c.useful,
                "{name} {op:?}"
            );
        }
    }
}

#[test]
fn fewer_sms_are_never_faster() {
    for name in NAMES {
        let acc = accelerator(name);
        for op in many_operations() {
            let mut before = SimDuration::ZERO;
            for sms in [acc.sms, acc.sms * 7 / 8, acc.sms / 2, acc.sms / 4, 1] {
                let time = cost(&op, &acc, sms).time;
                assert!(
                    time >= before,
                    "{name} {op:?} on {sms} SMs: {time} after {before}"
                );
                before = time;
            }
        }
    }
}

#[test]
fn larger_products_are_never_faster() {
    let sizes = [
        1, 63, 64, 65, 255, 256, 257, 1000, 1023, 1024, 1025, 4000, 4096, 8191, 8192, 20000, 65536,
    ];
    for name in NAMES {
        let acc = accelerator(name);
        for side in [128, 1024, 5000] {
            for axis in 0..3 {
                let mut before = SimDuration::ZERO;
                for size in sizes {
                    let mut dims = [side; 3];
                    dims[axis] = size;
                    let time = cost(
                        &gemm(dims[0], dims[1], dims[2], Precision::Bf16),
                        &acc,
                        acc.sms,
                    )
                    .time;
                    assert!(time >= before, "{name} {dims:?}: {time} after {before}");
                    before = time;
                }
            }
        }
    }
}

#[test]
fn a_batch_takes_its_number_of_products() {
    let acc = accelerator("h100-sxm");
    let time = |batch| {
        let op = Operation::Gemm {
            m: 4096,
            n: 4096,
            k: 4096,
            batch,
            pieces: 1,
            sms_left: 0,
            precision: Precision::Bf16,
            output_bytes: 2,
        };
        cost(&op, &acc, acc.sms).time.as_secs_f64()
    };
    let ratio = time(64) / time(1);
    assert!((58.0..64.5).contains(&ratio), "{ratio}");
}

/// Tiles of other pieces can only fill waves: a piece beside others takes no longer than alone, and less where its
/// last wave was half empty.
#[test]
fn pieces_of_a_product_fill_the_waves_of_one_another() {
    for name in NAMES {
        let acc = accelerator(name);
        for op in many_operations() {
            let time = |of: u64| cost(&gemm_piece(&op, of), &acc, acc.sms).time.as_secs_f64();
            let alone = time(1);
            for pieces in [2, 4, 8] {
                let beside = time(pieces);
                assert!(
                    beside <= alone * 1.001,
                    "{name}, {pieces} pieces of {op:?}: {beside} {alone}"
                );
            }
        }
    }
    let acc = accelerator("h100-sxm");
    let op = gemm(1024, 9216, 12288, Precision::Bf16);
    let time = |of: u64| cost(&gemm_piece(&op, of), &acc, acc.sms).time.as_secs_f64();
    assert!(time(4) < 0.99 * time(1), "{} {}", time(4), time(1));
}

/// The same product as one of so many pieces.
fn gemm_piece(op: &Operation, of: u64) -> Operation {
    let mut op = op.clone();
    if let Operation::Gemm { pieces, .. } = &mut op {
        *pieces = of;
    }
    op
}

#[test]
fn twice_the_exponentials_speed_attention_at_equal_tensor_peak() {
    let (b200, b300) = (accelerator("b200-sxm"), accelerator("b300-sxm"));
    assert_eq!(b200.peak.bf16, b300.peak.bf16);
    let op = attention(16384, Direction::Forward);
    let (slow, fast) = (cost(&op, &b200, b200.sms), cost(&op, &b300, b300.sms));
    let gain = slow.time.as_secs_f64() / fast.time.as_secs_f64();
    assert!((1.08..1.35).contains(&gain), "{gain}");
    assert!(slow.exponent.as_secs_f64() > 1.9 * fast.exponent.as_secs_f64());
}

#[test]
fn attention_generations_keep_their_order() {
    for name in NAMES {
        let acc = accelerator(name);
        for direction in [Direction::Forward, Direction::Backward] {
            let op = attention(4096, direction);
            let time = |attention| {
                cost_with(
                    &op,
                    &acc,
                    acc.sms,
                    KernelOptions {
                        attention,
                        ..KernelOptions::default()
                    },
                )
                .time
            };
            assert!(
                time(AttentionKernel::Best) <= time(AttentionKernel::Flash2),
                "{name}"
            );
            assert!(
                time(AttentionKernel::Flash2) < time(AttentionKernel::Flash1),
                "{name}"
            );
        }
    }
}

#[test]
fn weights_of_experts_cost_as_much_as_their_gradients() {
    let acc = accelerator("h800-sxm");
    let time = |weight_gradient| {
        let op = Operation::GroupedGemm {
            groups: 8,
            m_total: 32768,
            n: 4096,
            k: 7168,
            precision: Precision::Fp8,
            output_bytes: 2,
            weight_gradient,
            apart: false,
        };
        cost(&op, &acc, acc.sms).time.as_secs_f64()
    };
    let ratio = time(true) / time(false);
    assert!((0.9..1.15).contains(&ratio), "{ratio}");
}
