//! How long pricing one step of a serving engine takes, and compiling an instance.

use criterion::{Criterion, criterion_group};
use rackflow_plan::serving::{Instance, PrefillChunk, StepBatch};
use rackflow_scenario::Catalogue;
use rackflow_topology::{Cluster, ClusterMap};
use rackflow_workload::serving::{Deployment, ServingParallelism, ServingPrecision, WeightFormat};
use std::hint::black_box;

struct Setup {
    deployment: Deployment,
    cluster: Cluster,
    map: ClusterMap,
    gpus: Vec<u32>,
}

fn setup(
    node: &str,
    model: &str,
    stack: &str,
    format: WeightFormat,
    plan: ServingParallelism,
) -> Setup {
    let catalogue = Catalogue::builtin();
    let node = catalogue.node(node).expect("a node");
    let cluster = Cluster {
        parts: Vec::new(),
        gpus: plan.gpus().next_multiple_of(node.gpus),
        node,
        fabric: catalogue.fabric("ib-two-tier").expect("a fabric").clone(),
    };
    let deployment = Deployment::new(
        catalogue.model(model).expect("a model").clone(),
        ServingPrecision::uniform(format),
        plan,
        catalogue.serving_stack(stack).expect("a stack").clone(),
    );
    let map = ClusterMap::new(&cluster).expect("the cluster nests");
    Setup {
        deployment,
        gpus: (0..plan.gpus()).collect(),
        cluster,
        map,
    }
}

fn instance(s: &Setup) -> Instance {
    Instance::new(&s.deployment, &s.cluster, &s.map, &s.gpus).expect("a plan that fits")
}

fn steps(c: &mut Criterion) {
    let plan = |tensor, data, expert| ServingParallelism {
        tensor,
        data,
        expert,
        pipeline: 1,
    };
    let llama = setup(
        "dgx-h100",
        "llama3-70b",
        "vllm-0.10",
        WeightFormat::Fp8,
        plan(4, 1, 1),
    );
    let mut deepseek = setup(
        "hgx-h800",
        "deepseek-v3",
        "deepseek-2025",
        WeightFormat::Fp8Block,
        plan(1, 32, 32),
    );
    deepseek.deployment.two_batch_overlap = true;
    let mut group = c.benchmark_group("serving step");
    let chunk = [PrefillChunk {
        new_tokens: 480,
        cached_tokens: 900,
    }];
    for (name, setup) in [("llama3-70b tp4", &llama), ("deepseek-v3 ep32", &deepseek)] {
        let instance = instance(setup);
        group.bench_function(format!("{name}, decode"), |b| {
            b.iter(|| instance.step(black_box(&StepBatch::decode(64, 64 * 2000))));
        });
        group.bench_function(format!("{name}, mixed"), |b| {
            b.iter(|| {
                instance.step(black_box(&StepBatch {
                    prefill: &chunk,
                    decode_sequences: 32,
                    decode_context_tokens: 32 * 1500,
                    tokens_per_sequence: 1,
                }))
            });
        });
        group.bench_function(format!("{name}, compile"), |b| {
            b.iter(|| self::instance(black_box(setup)));
        });
    }
    group.finish();
}

criterion_group!(benches, steps);

fn main() {
    // `cargo test --benches` runs this with no arguments that matter.
    benches();
    Criterion::default().configure_from_args().final_summary();
}
