//! Clusters of several kinds of node.

use crate::plans::{cluster, plain};
use rackflow_plan::{Fidelity, Plan, RankOrder, Resource, Setup, compile};
use rackflow_scenario::Catalogue;
use rackflow_simulator::{Record, simulate};
use rackflow_topology::{Cluster, Node, Part};
use rackflow_units::{FlopRate, SimDuration};

pub fn node(name: &str) -> Node {
    Catalogue::builtin().node(name).expect("in the catalogue")
}

fn halves(first: Node, second: Node, gpus: u32) -> Cluster {
    let part = |node| Part {
        node,
        gpus: gpus / 2,
    };
    let fabric = cluster("dgx-h100", gpus).fabric;
    Cluster::of_parts(vec![part(first), part(second)], fabric)
}

/// A job of 32 GPUs whose stages lie one after the other.
fn job(cluster: Cluster, pipeline: u32) -> Setup {
    let mut setup = plain(32);
    setup.cluster = cluster;
    setup.rank_order = RankOrder::DataBeforePipeline;
    let p = &mut setup.training.parallelism;
    p.pipeline = pipeline;
    p.data = 32 / (pipeline * p.tensor * p.context);
    setup
}

fn planned(setup: &Setup) -> Plan {
    compile(setup).expect("a valid plan")
}

fn ran(setup: &Setup) -> Record {
    simulate(&planned(setup))
}

fn step(setup: &Setup) -> SimDuration {
    ran(setup).step_time
}

/// The same node in all that matters, so that it is a part of its own.
fn twin(mut node: Node) -> Node {
    node.name.push_str("-twin");
    node
}

/// The same node with slower arithmetic.
pub fn slower(mut node: Node) -> Node {
    let half = |rate: FlopRate| FlopRate::from_flops_per_sec(rate.flops_per_sec() / 2.0);
    let accelerator = &mut node.accelerator;
    accelerator.name.push_str("-slow");
    accelerator.peak.bf16 = half(accelerator.peak.bf16);
    accelerator.peak.fp8 = accelerator.peak.fp8.map(half);
    accelerator.vector = half(accelerator.vector);
    node
}

#[test]
fn two_halves_of_one_kind_are_the_whole_to_the_picosecond() {
    let h100 = || node("dgx-h100");
    for pipeline in [1, 2] {
        let mut whole = cluster("dgx-h100", 32);
        whole.node = h100();
        let whole = ran(&job(whole, pipeline));
        let merged = halves(h100(), h100(), 32);
        assert!(!merged.is_mixed());
        let apart = halves(h100(), twin(h100()), 32);
        assert!(apart.is_mixed());
        for cluster in [merged, apart] {
            let half = ran(&job(cluster, pipeline));
            assert_eq!(half.step_time, whole.step_time);
            assert_eq!(half.total(), whole.total());
        }
    }
}

#[test]
fn more_of_a_resource_goes_to_every_kind() {
    let h100 = || node("dgx-h100");
    let mut whole = cluster("dgx-h100", 32);
    whole.node = h100();
    let (whole, apart) = (job(whole, 2), job(halves(h100(), twin(h100()), 32), 2));
    for resource in Resource::OF_TRAINING {
        let (of_whole, of_apart) = (resource.more(&whole), resource.more(&apart));
        assert_eq!(of_whole.is_some(), of_apart.is_some(), "{resource:?}");
        if let (Some((whole, factor)), Some((apart, of_parts))) = (of_whole, of_apart) {
            assert_eq!(of_parts, factor, "{resource:?}");
            assert_eq!(step(&apart), step(&whole), "{resource:?}");
        }
    }
}

#[test]
fn data_parallel_ranks_wait_for_the_slow_half() {
    let (fast, slow) = (node("dgx-h100"), slower(node("dgx-h100")));
    let of = |a: &Node, b: &Node| step(&job(halves(a.clone(), b.clone(), 32), 1));
    let (all_fast, all_slow) = (of(&fast, &fast), of(&slow, &slow));
    let mixed = of(&fast, &slow);
    assert!(mixed > all_fast);
    let behind = all_slow.as_secs_f64() / mixed.as_secs_f64() - 1.0;
    // As slow as its slowest; what slows kernels beside communication differs by a little.
    assert!(behind.abs() < 0.01, "{behind}");
    // And which half comes first does not matter.
    assert_eq!(of(&slow, &fast), mixed);
}

#[test]
fn layers_go_where_they_are_computed_faster() {
    let mixed = halves(slower(node("dgx-h100")), node("dgx-h100"), 32);
    let mut by_speed = job(mixed, 2);
    // Layers whose time is that of their products.
    let model = &mut by_speed.training.model;
    (model.layers, model.hidden, model.ffn) = (24, 4096, 16_384);
    by_speed.training.parallelism.data = 16;
    let plan = planned(&by_speed);
    let layers: Vec<u64> = plan.facts.stages.iter().map(|stage| stage.layers).collect();
    assert!(layers[1] > layers[0], "{layers:?}");
    let mut even = by_speed.clone();
    let all = even.training.model.layers;
    even.training.layers_per_chunk = Some(vec![all / 2, all - all / 2]);
    let (uneven, even) = (step(&by_speed), step(&even));
    assert!(
        uneven.as_secs_f64() < 0.9 * even.as_secs_f64(),
        "{uneven} {even}"
    );
}

#[test]
fn folding_changes_nothing_where_kinds_differ() {
    for order in [RankOrder::DataBeforePipeline, RankOrder::PipelineBeforeData] {
        for second in [slower(node("dgx-h100")), node("gb200-nvl72")] {
            let mut setup = job(halves(node("dgx-h100"), second, 32), 2);
            setup.rank_order = order;
            let folded = ran(&setup);
            setup.fidelity = Fidelity::Full;
            let full = ran(&setup);
            assert_eq!(folded.step_time, full.step_time);
            assert_eq!(folded.total(), full.total());
        }
    }
}

#[test]
fn memory_is_that_of_the_accelerator_that_holds_the_stage() {
    let mut small = node("dgx-h100");
    small.accelerator.memory = small
        .accelerator
        .memory
        .saturating_sub(rackflow_units::Bytes::new(70_000_000_000));
    let setup = job(halves(node("dgx-h100"), small, 32), 2);
    let plan = planned(&setup);
    let capacity: Vec<u64> = plan.facts.stages.iter().map(|s| s.capacity.get()).collect();
    assert!(capacity[0] > 4 * capacity[1], "{capacity:?}");
    let peak = plan.facts.peak_bf16.flops_per_sec();
    assert!((peak / node("dgx-h100").accelerator.peak.bf16.flops_per_sec() - 1.0).abs() < 1e-12);
}
