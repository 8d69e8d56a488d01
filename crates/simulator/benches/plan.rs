//! How many plans a second the planner judges: listed and bounded, bounded pass by pass, simulated.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use rackflow_plan::{Candidate, Search, Setup, Space};
use rackflow_scenario::{parse, shipped};
use rackflow_simulator::{planner, simulate};
use std::hint::black_box;

/// Plans that are bounded pass by pass and simulated: spread over the most promising quarter, as
/// those are that a search looks at.
const SAMPLE: usize = 16;
/// One branch in so many is listed.
const BRANCHES: usize = 16;

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

fn sample(search: &Search) -> Vec<Candidate> {
    let branches = search.branches();
    let listed = branches.iter().step_by(BRANCHES);
    let mut all: Vec<Candidate> = listed
        .flat_map(|branch| search.expand(branch).candidates)
        .collect();
    all.sort_by_key(|candidate| candidate.at_least);
    let quarter = all.len() / 4;
    let step = (quarter / SAMPLE).max(1);
    all.into_iter()
        .take(quarter)
        .step_by(step)
        .take(SAMPLE)
        .collect()
}

fn plans(c: &mut Criterion, name: &str) {
    let setup = setup(name);
    let search = planner(&setup, Space::of(&setup)).expect("a valid scenario");
    let mut group = c.benchmark_group(format!("plans of {name}"));
    group.sample_size(10);

    let branches = search.branches();
    let list = || {
        let listed = branches.iter().step_by(BRANCHES);
        listed
            .map(|branch| {
                let expansion = search.expand(black_box(branch));
                expansion.candidates.len() as u64 + expansion.left_out.all_too_large()
            })
            .sum::<u64>()
    };
    group.throughput(Throughput::Elements(list()));
    group.bench_function("listed, held against memory, bounded", |b| b.iter(list));

    let candidates = sample(&search);
    group.throughput(Throughput::Elements(candidates.len() as u64));
    group.bench_function("bounded pass by pass", |b| {
        b.iter(|| {
            for candidate in &candidates {
                black_box(search.bound(candidate));
            }
        });
    });
    group.bench_function("compiled and simulated", |b| {
        b.iter(|| {
            for candidate in &candidates {
                let plan = search.plan(candidate).expect("a listed plan can be made");
                black_box(simulate(&plan));
            }
        });
    });
    group.finish();
}

fn dense(c: &mut Criterion) {
    plans(c, "llama3-405b-16384-h100");
}

fn experts(c: &mut Criterion) {
    plans(c, "deepseek-v3-2048-h800");
}

criterion_group!(benches, dense, experts);
criterion_main!(benches);
