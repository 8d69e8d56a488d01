//! What is meant by what is typed: defaults, names, definitions.

use rackflow_plan::{Fidelity, RankOrder, Setup};
use rackflow_scenario::{Catalogue, parse};
use rackflow_topology::Fabric;
use rackflow_units::{Bandwidth, Bytes, SimDuration};
use rackflow_workload::{Activation, Recompute, Routing, Schedule, Zero};
use std::io;

const PLAIN: &str = "
cluster:
  node: dgx-h100
  gpus: 64
  fabric: rail-optimized
workload:
  training:
    model: llama3-8b
    stack: megatron-core-25.04
    precision: bf16
    sequence_length: 8192
    global_batch: 64
    parallelism: { tensor: 8 }
";

fn meant(text: &str) -> Setup {
    let no_files = |_: &str| Err(io::Error::from(io::ErrorKind::NotFound));
    match parse("dir/plain.yaml", text).and_then(|scenario| scenario.resolve(&no_files)) {
        Ok(setup) => setup,
        Err(found) => panic!("{}", found[0]),
    }
}

/// The plain scenario with one line in place of another.
fn with(line: &str, other: &str) -> Setup {
    assert!(PLAIN.contains(line));
    meant(&PLAIN.replace(line, other))
}

#[test]
fn what_is_left_out_has_its_documented_default() {
    let setup = meant(PLAIN);
    assert_eq!(setup.name, "plain");
    assert_eq!(
        (setup.seed, setup.fidelity, setup.rank_order),
        (0, Fidelity::Folded, RankOrder::DataBeforePipeline)
    );
    let t = &setup.training;
    assert_eq!(
        (t.micro_batch, t.schedule, t.routing),
        (1, Schedule::OneForwardOneBackward, Routing::Balanced)
    );
    assert_eq!(t.recompute, Recompute::None);
    let p = &t.parallelism;
    assert_eq!(
        (p.data, p.context, p.pipeline, p.virtual_pipeline),
        (8, 1, 1, 1)
    );
    assert_eq!(
        (p.expert, p.expert_tensor, p.zero, p.zero_group),
        (1, 1, Zero::Stage1, None)
    );
    assert!(
        p.sequence_parallel,
        "tensor parallelism shards the sequence too"
    );
}

#[test]
fn names_are_entries_of_the_catalogue() {
    let setup = meant(PLAIN);
    let catalogue = Catalogue::builtin();
    assert_eq!(Some(setup.cluster.node), catalogue.node("dgx-h100"));
    assert_eq!(
        Some(&setup.cluster.fabric),
        catalogue.fabric("rail-optimized")
    );
    assert_eq!(Some(&setup.training.model), catalogue.model("llama3-8b"));
    assert_eq!(
        Some(&setup.training.stack),
        catalogue.stack("megatron-core-25.04")
    );
}

#[test]
fn one_node_needs_no_fabric() {
    let setup = meant(
        &PLAIN
            .replace("  fabric: rail-optimized\n", "")
            .replace("gpus: 64", "gpus: 8"),
    );
    assert_eq!(setup.cluster.gpus, 8);
}

#[test]
fn like_changes_only_what_is_written() {
    let setup = with(
        "node: dgx-h100",
        "node: { like: dgx-h100, accelerator: { like: h100-sxm, memory: 141 GB }, nic: { rate: 200 Gbit/s } }",
    );
    let node = setup.cluster.node;
    let original = Catalogue::builtin()
        .node("dgx-h100")
        .expect("in the catalogue");
    assert_eq!(node.name, "dgx-h100 (changed)");
    assert_eq!(node.accelerator.name, "h100-sxm (changed)");
    assert_eq!(node.accelerator.memory, Bytes::new(141_000_000_000));
    assert_eq!(node.accelerator.peak, original.accelerator.peak);
    assert_eq!(node.nic.rate, Bandwidth::from_gigabits_per_sec(200));
    assert_eq!(node.nic.latency, original.nic.latency);
    assert_eq!(node.scale_up, original.scale_up);

    let setup = with(
        "stack: megatron-core-25.04",
        "stack: { like: megatron-core-25.04, name: mine, overlap: { tensor: false }, launch: 9 us }",
    );
    let original = Catalogue::builtin()
        .stack("megatron-core-25.04")
        .expect("in the catalogue");
    assert_eq!(setup.training.stack.name, "mine");
    assert_eq!(setup.training.stack.launch, SimDuration::from_micros(9));
    assert_eq!(
        setup.training.stack.overlap.pipeline,
        original.overlap.pipeline
    );
}

#[test]
fn a_definition_of_another_kind_replaces_the_whole() {
    let setup = with(
        "model: llama3-8b",
        "model: { like: llama3-8b, attention: { mla: { heads: 32, kv_lora_rank: 512, qk_nope_head_dim: 128, qk_rope_head_dim: 64, v_head_dim: 128 } } }",
    );
    assert!(matches!(
        setup.training.model.attention,
        rackflow_workload::Attention::Latent { heads: 32, .. }
    ));
}

#[test]
fn fabrics_are_defined_in_place_or_changed() {
    let setup = with(
        "fabric: rail-optimized",
        "fabric: { fat_tree: { tiers: 3, radix: 32 } }",
    );
    assert!(
        matches!(setup.cluster.fabric, Fabric::FatTree(tree) if tree.tiers == 3 && tree.radix == 32)
    );
    let setup = with(
        "fabric: rail-optimized",
        "fabric: { like: rail-optimized, rail_optimized: { radix: 32 } }",
    );
    assert!(
        matches!(setup.cluster.fabric, Fabric::RailOptimized(tree) if tree.tiers == 2 && tree.radix == 32)
    );
}

#[test]
fn recomputation_has_four_spellings() {
    for (written, meant) in [
        ("full", Recompute::Full),
        ("{ full_layers: 3 }", Recompute::FullLayers(3)),
        (
            "[norms, swiglu]",
            Recompute::Activations(vec![Activation::Norms, Activation::Swiglu]),
        ),
        (
            "{ activations: [norms] }",
            Recompute::Activations(vec![Activation::Norms]),
        ),
    ] {
        let setup = with(
            "precision: bf16",
            &format!("precision: bf16\n    recompute: {written}"),
        );
        assert_eq!(setup.training.recompute, meant, "{written}");
    }
}

#[test]
fn a_hugging_face_configuration_is_read_through_the_caller() {
    let config = include_str!("../huggingface/llama3-8b.json");
    let files = |path: &str| {
        if path == "models/mine/config.json" {
            Ok(config.to_owned())
        } else {
            Err(io::Error::from(io::ErrorKind::NotFound))
        }
    };
    let text = PLAIN.replace("model: llama3-8b", "model: models/mine/config.json");
    let setup = parse("plain.yaml", &text)
        .and_then(|scenario| scenario.resolve(&files))
        .expect("a model");
    let model = &setup.training.model;
    let original = Catalogue::builtin()
        .model("llama3-8b")
        .expect("in the catalogue");
    assert_eq!(
        (model.layers, model.hidden, &model.attention),
        (original.layers, original.hidden, &original.attention)
    );
}

#[test]
fn aliases_stand_for_what_they_name() {
    let text = PLAIN
        .replace("gpus: 64", "gpus: &n 64")
        .replace("global_batch: 64", "global_batch: *n");
    assert_eq!(meant(&text).training.global_batch, 64);
}

#[test]
fn published_figures_are_kept() {
    let text = format!("{PLAIN}published: {{ step_time: 19.926 s, mfu: 0.43, source: here }}\n");
    let scenario = parse("plain.yaml", &text).expect("well-formed");
    let published = scenario.published().expect("written above");
    assert_eq!(
        published.step_time,
        Some(SimDuration::from_secs_f64(19.926))
    );
    assert_eq!(
        (published.mfu, published.tflops_per_gpu),
        (Some(0.43), None)
    );
}
