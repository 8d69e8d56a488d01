//! Kernels of training: most under continuous load, held against what MooreThreads/SimuMax (e691807,
//! `configs/system/b200_bf16_ceperm.json`) times on one B200 through Transformer Engine.

use rackflow_plan::kernel::{KernelOptions, Load, cost_with};
use rackflow_scenario::Catalogue;
use rackflow_topology::Accelerator;
use rackflow_units::{Bytes, Precision};
use rackflow_workload::{Access, AttentionKernel, Direction, Operation};

/// Peak that the source's efficiencies refer to [FLOP/s].
const PEAK: f64 = 2.25e15;

fn accelerator(name: &str) -> Accelerator {
    Catalogue::builtin()
        .accelerator(name)
        .expect("in the catalogue")
        .clone()
}

fn seconds(op: &Operation, accelerator: &Accelerator, load: Load) -> f64 {
    let options = KernelOptions {
        attention: AttentionKernel::Cudnn913,
        load,
    };
    cost_with(op, accelerator, accelerator.sms, options)
        .time
        .as_secs_f64()
}

fn grouped(
    groups: u64,
    rows: u64,
    (n, k): (u64, u64),
    added: Option<u64>,
    apart: bool,
) -> Operation {
    Operation::GroupedGemm {
        groups,
        m_total: groups * rows,
        n,
        k,
        precision: Precision::Bf16,
        output_bytes: added.map_or(2, |bytes| 2 * bytes),
        weight_gradient: added.is_some(),
        apart,
    }
}

fn attention(length: u64, heads: u64, widths: (u64, u64), direction: Direction) -> Operation {
    Operation::Attention {
        batch: 1,
        heads,
        kv_heads: heads,
        query_len: length,
        kv_len: length,
        head_dim_qk: widths.0,
        head_dim_v: widths.1,
        mask_fraction: 0.5,
        direction,
        precision: Precision::Bf16,
    }
}

/// Groups, rows of each, columns and reduced dimension, bytes of the buffer that a weight gradient is
/// added to, and the part of the peak that was measured.
type Grouped = (u64, u64, (u64, u64), Option<u64>, f64);

#[test]
fn grouped_products_of_one_kernel_each_take_what_was_measured() {
    let b200 = accelerator("b200-sxm");
    let rows: [Grouped; 12] = [
        (32, 1024, (4096, 7168), None, 0.457),
        (32, 1024, (7168, 4096), None, 0.435),
        (32, 1024, (7168, 2048), None, 0.393),
        (20, 1232, (5120, 3072), None, 0.405),
        (40, 2460, (3072, 5120), None, 0.487),
        (40, 9832, (5120, 1536), None, 0.445),
        (32, 1024, (4096, 7168), Some(4), 0.289),
        (32, 1024, (4096, 7168), Some(2), 0.347),
        (32, 1024, (7168, 2048), Some(4), 0.274),
        (20, 1232, (3072, 5120), Some(4), 0.328),
        (40, 2460, (3072, 5120), Some(4), 0.417),
        (40, 9832, (3072, 5120), Some(4), 0.419),
    ];
    for (groups, rows, shape, added, measured) in rows {
        let op = grouped(groups, rows, shape, added, true);
        let measured = op.tensor_flops() / (measured * PEAK);
        let error = seconds(&op, &b200, Load::Continuous) / measured - 1.0;
        assert!(
            error.abs() < 0.2,
            "{groups} x {rows} x {shape:?} {added:?}: {error:+.3}"
        );
    }
}

#[test]
fn kernels_apart_hide_less_than_one_for_all() {
    let b200 = accelerator("b200-sxm");
    for added in [None, Some(2), Some(4)] {
        let time = |apart| {
            let op = grouped(32, 512, (4096, 7168), added, apart);
            seconds(&op, &b200, Load::Continuous)
        };
        assert!(time(true) > 1.02 * time(false), "{added:?}");
    }
    // One expert is one kernel either way.
    let alone = |apart| {
        let op = grouped(1, 4096, (4096, 7168), None, apart);
        seconds(&op, &b200, Load::Continuous)
    };
    assert!((alone(true) / alone(false) - 1.0).abs() < 1e-9);
}

#[test]
fn attention_of_training_takes_what_was_measured() {
    let b200 = accelerator("b200-sxm");
    // Length, heads, widths, direction, part of the peak if the mask saved nothing.
    let rows = [
        (4096, 64, (128, 128), Direction::Forward, 0.872),
        (4096, 128, (128, 128), Direction::Forward, 0.997),
        (131_072, 16, (128, 128), Direction::Forward, 0.989),
        (4096, 64, (128, 128), Direction::Backward, 0.729),
        (4096, 128, (128, 128), Direction::Backward, 0.832),
        (131_072, 16, (128, 128), Direction::Backward, 0.827),
        (4096, 64, (192, 128), Direction::Forward, 0.885),
        (4096, 64, (192, 128), Direction::Backward, 0.609),
    ];
    for (length, heads, widths, direction, measured) in rows {
        let op = attention(length, heads, widths, direction);
        // The source counts two and five products of the mean width over the whole square.
        let products = match direction {
            Direction::Forward => 2.0,
            Direction::Backward => 5.0,
        };
        let square = (length * length * heads) as f64;
        let flops = products * square * (widths.0 + widths.1) as f64;
        let error = seconds(&op, &b200, Load::Continuous) / (flops / (measured * PEAK)) - 1.0;
        assert!(
            error.abs() < 0.25,
            "{length} {widths:?} {direction:?}: {error:+.3}"
        );
    }
}

#[test]
fn the_power_limit_slows_attention_less_than_products() {
    for name in ["a100-80", "h100-sxm", "b200-sxm", "gb200"] {
        let acc = accelerator(name);
        let slower =
            |op: &Operation| seconds(op, &acc, Load::Continuous) / seconds(op, &acc, Load::Burst);
        let product = slower(&Operation::Gemm {
            m: 8192,
            n: 8192,
            k: 8192,
            batch: 1,
            pieces: 1,
            sms_left: 0,
            precision: Precision::Bf16,
            output_bytes: 2,
        });
        for direction in [Direction::Forward, Direction::Backward] {
            let attention = slower(&attention(8192, 32, (128, 128), direction));
            assert!(
                attention >= 1.0 - 1e-9 && attention < product,
                "{name}: {attention} {product}"
            );
        }
    }
}

#[test]
fn narrow_products_keep_a_higher_clock_where_they_draw_less() {
    let acc = accelerator("gb200");
    let slower = |precision| {
        let op = Operation::Gemm {
            m: 8192,
            n: 8192,
            k: 8192,
            batch: 1,
            pieces: 1,
            sms_left: 0,
            precision,
            output_bytes: 2,
        };
        seconds(&op, &acc, Load::Continuous) / seconds(&op, &acc, Load::Burst)
    };
    assert!(slower(Precision::Bf16) > slower(Precision::Fp8));
    assert!(slower(Precision::Fp8) > slower(Precision::Fp4));
    assert!(slower(Precision::Fp4) >= 1.0);
}

#[test]
fn streams_wait_for_memory_on_hopper_and_for_their_sms_on_blackwell() {
    let time = |name, access| {
        let op = Operation::Stream {
            read: Bytes::new(1 << 30),
            write: Bytes::new(1 << 30),
            kernels: 1,
            flops: 0.0,
            access,
        };
        seconds(&op, &accelerator(name), Load::Continuous)
    };
    let same = |name, access| time(name, access) <= time(name, Access::Copy) * (1.0 + 1e-9);
    assert!(same("h100-sxm", Access::Elementwise) && same("a100-80", Access::Elementwise));
    assert!(!same("b200-sxm", Access::Elementwise));
    assert!(time("b200-sxm", Access::Softmax) < time("b200-sxm", Access::SoftmaxChain));
    // The more a kernel does for each byte, the less it asks for.
    let kinds = [
        Access::Elementwise,
        Access::Rows,
        Access::SoftmaxChain,
        Access::Strided,
        Access::ScatterAdd,
        Access::IndexAdd,
        Access::Maps,
    ];
    let times = kinds.map(|access| time("b200-sxm", access));
    assert!(times.is_sorted(), "{times:?}");
    assert!(!same("h200-sxm", Access::Mixed));
    assert!(time("h100-sxm", Access::Transposed) > 2.5 * time("h100-sxm", Access::Copy));
}

/// Rotary embedding by PyTorch's own kernels on B200, from 4,096 to 8,192 tokens of 36 heads of 128
/// (linkedin/Liger-Kernel 2f46792, benchmark/data/all_benchmark_data_rope_models.csv): products with repeated
/// angles, halves negated and exchanged. Backward also clears and adds what lies side by side.
#[test]
fn kernels_over_views_take_what_pytorch_takes_on_blackwell() {
    let acc = accelerator("b200-sxm");
    let time = |read: u64, write: u64, access| {
        let half = 4096 * 36 * 128; // half of a pass over bf16 values
        let op = Operation::Stream {
            read: Bytes::new(half * read),
            write: Bytes::new(half * write),
            kernels: 0,
            flops: 0.0,
            access,
        };
        seconds(&op, &acc, Load::Burst)
    };
    let forward = time(11, 9, Access::Strided);
    let backward = time(7, 7, Access::Strided) + time(8, 8, Access::Elementwise);
    for (model, measured) in [
        (forward, 0.543_808e-3 - 0.280_576e-3),
        (backward, 0.547_776e-3 - 0.280_608e-3),
    ] {
        let error = (model / measured).ln();
        assert!(error.abs() < 0.12, "{model} {measured}");
    }
}

/// SwiGLU of 8,192 tokens by 14,336 in bf16 on B200 (linkedin/Liger-Kernel b4d7611,
/// benchmark/data/all_benchmark_data_swiglu_tokens.csv): one kernel of Triton each way, and PyTorch's, which are
/// two forward and three backward.
#[test]
fn elementwise_kernels_take_what_swiglu_takes_on_blackwell() {
    let acc = accelerator("b200-sxm");
    let pass = 8192 * 14336 * 2;
    for (reads, writes, kernels, measured) in [
        (2, 1, 1, 0.1106e-3),
        (3, 2, 1, 0.1803e-3),
        (3, 2, 2, 0.2068e-3),
        (6, 3, 3, 0.3401e-3),
    ] {
        let op = Operation::Stream {
            read: Bytes::new(pass * reads),
            write: Bytes::new(pass * writes),
            kernels,
            flops: 0.0,
            access: Access::Elementwise,
        };
        let model = seconds(&op, &acc, Load::Burst);
        let error = (model / measured).ln();
        assert!(error.abs() < 0.1, "{model} {measured}");
    }
}
