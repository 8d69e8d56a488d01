//! CPU time per request and per engine step.
//!
//! `lockstep`: Llama 3 70B, TP4 on H100, 1,024 in and 128 out, 16 in flight. `conversation`: lengths like
//! those of the Azure conversation trace of 2023 at 2 requests/s with a budget of 512 tokens.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use rackflow_plan::serving::{FleetPlan, compile_fleet};
use rackflow_scenario::parse;
use rackflow_simulator::serving::{Fleet, NoSink, serve};
use std::hint::black_box;
use std::io;

const REQUESTS: u64 = 2_000;

fn plan(requests: &str, budget: u32) -> FleetPlan {
    let text = format!(
        "cluster: {{ node: hgx-h100, gpus: 4 }}
workload:
  serving:
    model: llama3-70b
    stack: vllm-0.10
    precision: {{ weights: bf16 }}
    parallelism: {{ tensor: 4 }}
    engine: {{ max_num_batched_tokens: {budget} }}
    requests: {{ {requests}, count: {REQUESTS} }}
"
    );
    let setup = parse("bench.yaml", &text)
        .and_then(|scenario| {
            scenario.resolve_serving(&|_| Err(io::Error::from(io::ErrorKind::NotFound)))
        })
        .expect("the scenario is right");
    compile_fleet(setup).expect("it fits")
}

fn benches(c: &mut Criterion) {
    let mut group = c.benchmark_group("serve");
    group.throughput(Throughput::Elements(REQUESTS));
    for (name, requests, budget) in [
        (
            "lockstep",
            "arrivals: { closed_loop: { concurrency: 16 } }, input: { fixed: 1024 }, output: { fixed: 128 }",
            8192,
        ),
        (
            "conversation",
            "arrivals: { poisson: { rate: 2 requests/s } }, input: { log_normal: { median: 800, sigma: 0.9, max: 8000 } }, output: { log_normal: { median: 150, sigma: 0.8, max: 1000 } }",
            512,
        ),
    ] {
        let plan = plan(requests, budget);
        let fleet = Fleet::of(&plan);
        group.bench_function(name, |b| {
            b.iter(|| serve(black_box(&fleet), None, &mut NoSink).expect("the fleet runs"));
        });
    }
    // One step at a time, to see what a step costs.
    let plan = plan(
        "arrivals: { poisson: { rate: 2 requests/s } }, input: { log_normal: { median: 800, sigma: 0.9, max: 8000 } }, output: { log_normal: { median: 150, sigma: 0.8, max: 1000 } }",
        512,
    );
    let mut fleet = Fleet::of(&plan);
    fleet.together = false;
    let record = serve(&fleet, None, &mut NoSink).expect("the fleet runs");
    let steps = record
        .pools
        .iter()
        .map(|pool| pool.prefill.steps + pool.decode.steps)
        .sum();
    group.throughput(Throughput::Elements(steps));
    group.bench_function("steps", |b| {
        b.iter(|| serve(black_box(&fleet), None, &mut NoSink).expect("the fleet runs"));
    });
    group.finish();
}

criterion_group!(all, benches);
criterion_main!(all);
