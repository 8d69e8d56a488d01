//! A thousand days of 100,000 GPUs with failures and restarts.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use rackflow_plan::compile;
use rackflow_scenario::parse;
use rackflow_simulator::simulate_run;
use rackflow_units::SimDuration;
use std::hint::black_box;

const SCENARIO: &str = "
cluster: { node: dgx-h100, gpus: 100352, fabric: { like: rail-optimized-xdr } }
workload:
  training:
    model: llama3-8b
    stack: megatron-core-25.04
    precision: bf16
    sequence_length: 8192
    global_batch: 100352
    parallelism: { tensor: 8, zero: 1 }
    run:
      days: 1000
      failures: llama3-16k-h100
      checkpoint: { write: 1 TB/s }
      spares: 200
      elastic: true
      replications: 1
";

fn thousand_days(c: &mut Criterion) {
    let nothing = |_: &str| Err(std::io::Error::other("no files"));
    let scenario = parse("bench", SCENARIO).expect("a scenario");
    let setup = scenario.resolve(&nothing).expect("a setup");
    let run = scenario
        .outlook(&setup)
        .expect("an outlook")
        .run
        .expect("a run");
    let plan = compile(&setup).expect("a valid plan");
    let step = SimDuration::from_micros(10_000_000);
    let events = simulate_run(&plan, step, &run, 0).replications[0].events;
    let mut group = c.benchmark_group("1,000 days of 100,352 GPUs");
    group.sample_size(10);
    group.throughput(Throughput::Elements(events));
    group.bench_function("failures, restarts, checkpoints", |b| {
        b.iter(|| simulate_run(black_box(&plan), step, &run, 0));
    });
    group.finish();
}

criterion_group!(benches, thousand_days);
criterion_main!(benches);
