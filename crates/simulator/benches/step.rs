//! How long one simulated step takes, folded and with every rank apart.

use criterion::{Criterion, Throughput, criterion_group};
use rackflow_plan::{Fidelity, Setup, compile};
use rackflow_scenario::{parse, shipped};
use rackflow_simulator::simulate;
use std::hint::black_box;

fn setup(name: &str) -> Setup {
    let (name, text) = shipped()
        .iter()
        .find(|(n, _)| *n == name)
        .expect("a shipped scenario");
    let nothing = |_: &str| Err(std::io::Error::other("the shipped scenarios read no files"));
    parse(name, text)
        .and_then(|s| s.resolve(&nothing))
        .expect("shipped scenarios are valid")
}

fn deepseek(c: &mut Criterion) {
    let mut setup = setup("deepseek-v3-2048-h800");
    let mut group = c.benchmark_group("deepseek-v3 on 2,048 H800");
    group.sample_size(10);
    group.bench_function("compile and simulate, folded", |b| {
        b.iter(|| simulate(&compile(black_box(&setup)).expect("a valid plan")));
    });
    let plan = compile(&setup).expect("a valid plan");
    group.throughput(Throughput::Elements(simulate(&plan).engine.events));
    group.bench_function("events, folded", |b| b.iter(|| simulate(black_box(&plan))));
    setup.fidelity = Fidelity::Full;
    let plan = compile(&setup).expect("a valid plan");
    group.throughput(Throughput::Elements(simulate(&plan).engine.events));
    group.bench_function("events, every rank", |b| {
        b.iter(|| simulate(black_box(&plan)))
    });
    group.finish();
}

/// Every rank of a small cluster apart, and a hundred thousand GPUs folded.
fn small_and_large(c: &mut Criterion) {
    let small = setup("llama3-8b-64-h100");
    c.bench_function(
        "llama3-8b on 64 H100, compile and simulate every rank",
        |b| {
            b.iter(|| simulate(&compile(black_box(&small)).expect("a valid plan")));
        },
    );
    let large = setup("deepseek-v3-100352-gb200-nvl72");
    let mut group = c.benchmark_group("deepseek-v3 on 100,352 GB200");
    group.sample_size(10);
    group.bench_function("compile and simulate, folded", |b| {
        b.iter(|| simulate(&compile(black_box(&large)).expect("a valid plan")));
    });
    group.finish();
}

/// Every one of a hundred thousand GPUs apart, with jitter. Minutes a run, so it is asked for by
/// name: `cargo bench -p rackflow-simulator -- --full`.
#[allow(
    clippy::disallowed_methods,
    reason = "a bench looks at the clock on the wall"
)]
fn hundred_thousand() {
    let mut setup = setup("deepseek-v3-100352-gb200-nvl72");
    setup.fidelity = Fidelity::Full;
    for (name, gpu, kernel) in [
        ("without jitter", 0.0, 0.0),
        ("typical jitter", 0.01, 0.0),
        ("jitter of kernels too", 0.01, 0.005),
    ] {
        setup.jitter = rackflow_plan::Jitter {
            gpu,
            kernel,
            slow_nodes: 0.0,
        };
        let start = std::time::Instant::now();
        let record = simulate(&compile(&setup).expect("a valid plan"));
        println!(
            "100,352 GB200, every rank, {name}: {} events in {:.1} s, step {}",
            record.engine.events,
            start.elapsed().as_secs_f64(),
            record.step_time
        );
    }
}

criterion_group!(benches, deepseek, small_and_large);

fn main() {
    if std::env::args().any(|argument| argument == "--full") {
        return hundred_thousand();
    }
    benches();
    Criterion::default().configure_from_args().final_summary();
}
