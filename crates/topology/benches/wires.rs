//! How long it takes to compile clusters to links, and to look routes up.

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use rackflow_topology::{Cluster, ClusterGraph, ClusterMap, Fabric, Routing, Wires};
use std::hint::black_box;

#[path = "../tests/common/mod.rs"]
mod common;

fn hashed(gpus: u32) -> Cluster {
    let mut cluster = common::cluster("dgx-h100", gpus, "rail-optimized-xdr");
    if let Fabric::RailOptimized(rails) = &mut cluster.fabric {
        rails.routing = Routing::Ecmp;
    }
    cluster
}

fn build(c: &mut Criterion) {
    let mut group = c.benchmark_group("build");
    group.sample_size(10);
    for gpus in [8_192, 131_072] {
        let cluster = hashed(gpus);
        group.throughput(Throughput::Elements(gpus.into()));
        group.bench_function(BenchmarkId::new("wires", gpus), |b| {
            b.iter(|| Wires::new(black_box(&cluster), 0).expect("it fits").links());
        });
        group.bench_function(BenchmarkId::new("map", gpus), |b| {
            b.iter(|| {
                ClusterMap::new(black_box(&cluster))
                    .expect("it fits")
                    .gpus()
            });
        });
        group.bench_function(BenchmarkId::new("graph", gpus), |b| {
            b.iter(|| {
                ClusterGraph::build(black_box(&cluster))
                    .expect("it fits")
                    .graph()
                    .edge_count()
            });
        });
    }
    group.finish();
}

fn routes(c: &mut Criterion) {
    let wires = Wires::new(&hashed(131_072), 0).expect("it fits");
    let mut out = Vec::new();
    c.benchmark_group("route")
        .throughput(Throughput::Elements(1024))
        .bench_function("random pairs", |b| {
            b.iter(|| {
                for i in 0..1024_u32 {
                    let (from, to) = (i * 127 % 131_072, i.wrapping_mul(40_503) % 131_072);
                    wires.route(from, to, i.into(), &mut out);
                    black_box(&out);
                }
            });
        });
}

criterion_group!(benches, build, routes);
criterion_main!(benches);
