//! How long pricing one kernel takes: a serving step prices some dozens, a search over plans thousands.

use criterion::{Criterion, criterion_group};
use rackflow_plan::kernel::{
    self, DecodeAttention, Experts, Format, Linear, PrefillAttention, ServingOptions,
};
use rackflow_scenario::Catalogue;
use rackflow_units::Precision;
use rackflow_workload::Operation;
use std::hint::black_box;

fn pricing(c: &mut Criterion) {
    let acc = Catalogue::builtin()
        .accelerator("b200-sxm")
        .expect("a B200");
    let options = ServingOptions::default();
    let mut group = c.benchmark_group("kernel");
    // Sizes vary, so that nothing can be remembered between calls.
    let mut tokens = 0;
    let mut next = move || {
        tokens = tokens % 512 + 1;
        black_box(tokens)
    };
    group.bench_function("linear", |b| {
        b.iter(|| {
            let op = Linear {
                m: next(),
                n: 8192,
                k: 4096,
                format: Format::Nvfp4,
            };
            kernel::linear(&op, acc, acc.sms, &options)
        });
    });
    group.bench_function("experts", |b| {
        b.iter(|| {
            let op = Experts {
                rows: 8.0 * next() as f64,
                touched: 128.0,
                hidden: 4096,
                inner: 1536,
                gated: true,
                format: Format::Fp8Block,
                sent: false,
            };
            kernel::experts(&op, acc, acc.sms, &options)
        });
    });
    group.bench_function("decode attention", |b| {
        b.iter(|| {
            let op = DecodeAttention {
                sequences: next(),
                context: 4000.0,
                queries: 1,
                heads: 64,
                kv_heads: 8,
                head_dim: 128,
                kv: Precision::Fp8,
                window: None,
            };
            kernel::decode_attention(&op, acc, acc.sms, &options)
        });
    });
    group.bench_function("prefill attention", |b| {
        b.iter(|| {
            let op = PrefillAttention {
                sequences: 1,
                new_tokens: 16 * next(),
                cached: 8192,
                heads: 64,
                kv_heads: 8,
                head_dim_qk: 128,
                head_dim_v: 128,
                compute: Precision::Bf16,
                kv: Precision::Bf16,
                window: None,
                latent: None,
            };
            kernel::prefill_attention(&op, acc, acc.sms, &options)
        });
    });
    group.bench_function("training product", |b| {
        b.iter(|| {
            let op = Operation::Gemm {
                m: 16 * next(),
                n: 8192,
                k: 8192,
                batch: 1,
                pieces: 1,
                sms_left: 0,
                precision: Precision::Bf16,
                output_bytes: 2,
            };
            kernel::cost(&op, acc, acc.sms)
        });
    });
    group.finish();
}

criterion_group!(benches, pricing);

fn main() {
    benches();
    Criterion::default().configure_from_args().final_summary();
}
