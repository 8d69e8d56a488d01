//! How long one simulated step takes, folded and with every rank apart.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
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

criterion_group!(benches, deepseek);
criterion_main!(benches);
