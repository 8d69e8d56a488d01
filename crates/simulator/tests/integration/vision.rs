//! Models with a vision encoder: what it costs, what freezing saves, and where layers go.

use crate::plans::{encoder, images, model, plain, with_images};
use rackflow_plan::{Plan, Setup, compile};
use rackflow_simulator::simulate;
use rackflow_units::SimDuration;
use rackflow_workload::{AttentionCount, AttentionKernel, Frozen, Images, Recompute};

/// A pipeline of four stages over eight GPUs, whose sequences hold images.
fn piped(per_sequence: u64, frozen: Frozen) -> Setup {
    let mut setup = plain(8);
    let plan = &mut setup.training.parallelism;
    (plan.pipeline, plan.data) = (4, 2);
    setup.training.model = model(16, false);
    setup.training.global_batch = 32;
    with_images(
        &mut setup,
        Some((encoder(true), images(per_sequence, frozen))),
    );
    setup
}

fn planned(setup: &Setup) -> Plan {
    compile(setup).expect("the plan is sound")
}

fn step(setup: &Setup) -> SimDuration {
    simulate(&planned(setup)).step_time
}

fn layers(setup: &Setup) -> Vec<u64> {
    let plan = planned(setup);
    plan.facts.stages.iter().map(|stage| stage.layers).collect()
}

const ALL: [Frozen; 3] = [
    Frozen::Nothing,
    Frozen::Encoder,
    Frozen::EncoderAndProjector,
];

/// FLOPs of the kernels that are the encoder's, by the names they have.
fn executed(plan: &Plan) -> f64 {
    let kernels = plan.facts.kernels.iter();
    let vision = kernels.filter(|kernel| kernel.label.starts_with("vision"));
    vision.map(|kernel| kernel.flops).sum()
}

/// What kernels do is what the definition counts, whatever is frozen. Scores that are kept are not
/// computed again.
#[test]
fn kernels_execute_the_model_flops_of_the_encoder() {
    for windowed in [false, true] {
        for frozen in ALL {
            let mut setup = plain(4);
            let of = (encoder(windowed), images(3, frozen));
            with_images(&mut setup, Some(of));
            setup.training.stack.attention = AttentionKernel::Unfused;
            let plan = planned(&setup);
            let counted = setup.training.vision_flops();
            let ratio = executed(&plan) / counted;
            assert!((ratio - 1.0).abs() < 1e-9, "{windowed} {frozen:?} {ratio}");
            let mut blind = setup.clone();
            with_images(&mut blind, None);
            let text = planned(&blind);
            for (with, without) in [
                (plan.facts.model_flops_causal, text.facts.model_flops_causal),
                (
                    plan.facts.model_flops_noncausal,
                    text.facts.model_flops_noncausal,
                ),
                (
                    plan.facts.hardware_flops_causal,
                    text.facts.hardware_flops_causal,
                ),
            ] {
                assert!(((with - without) / counted - 1.0).abs() < 1e-6);
            }
        }
    }
}

/// Tensor ranks divide the transformer and the projector; each makes tokens of all patches.
#[test]
fn tensor_ranks_divide_the_encoder() {
    let mut setup = plain(4);
    let of = (encoder(true), images(3, Frozen::Nothing));
    with_images(&mut setup, Some(of));
    setup.training.stack.attention = AttentionKernel::Unfused;
    let whole = executed(&planned(&setup));
    let plan = &mut setup.training.parallelism;
    (plan.tensor, plan.sequence_parallel, plan.data) = (4, true, 1);
    let divided = planned(&setup);
    let training = &setup.training;
    let (vision, images) = training.vision().expect("it sees");
    let count = training.global_batch * images.per_sequence * vision.patches(images);
    let of_patches = (4 * vision.hidden * vision.patch_elements() * count) as f64;
    assert!((executed(&divided) / (whole + 3.0 * of_patches) - 1.0).abs() < 1e-9);
}

#[test]
fn an_encoder_without_images_takes_no_part() {
    let mut blind = piped(1, Frozen::Nothing);
    blind.training.images = None;
    let mut text = blind.clone();
    text.training.model.vision = None;
    let (blind, text) = (planned(&blind), planned(&text));
    assert_eq!(blind.facts.stages, text.facts.stages);
    assert_eq!(simulate(&blind).step_time, simulate(&text).step_time);
    assert_eq!(blind.facts.parameters, text.facts.parameters);
    assert_eq!(
        blind.facts.model_flops_causal,
        text.facts.model_flops_causal
    );
    let tokens = blind.setup.training.tokens() as f64;
    let model = &blind.setup.training.model;
    let counted = model.flops_per_token(2048, AttentionCount::Causal) * tokens;
    assert_eq!(blind.facts.model_flops_causal, counted);
}

#[test]
fn what_is_frozen_costs_less_time_and_memory() {
    let even = |frozen| {
        let mut setup = piped(4, frozen);
        setup.training.layers_per_chunk = Some(vec![4; 4]);
        let plan = planned(&setup);
        let memory = plan.facts.stages[0].memory;
        (simulate(&plan).step_time, memory)
    };
    let [all, projector, none] = ALL.map(even);
    assert!(all.0 > projector.0 && projector.0 > none.0);
    for (more, less) in [(all.1, projector.1), (projector.1, none.1)] {
        assert_eq!(more.weights, less.weights);
        assert!(more.gradients > less.gradients);
        assert!(more.optimizer > less.optimizer);
        assert!(more.activations > less.activations);
    }
}

/// Weights of the first stage: two bytes for each parameter, trained or not.
#[test]
fn the_first_stage_holds_the_encoder() {
    for frozen in ALL {
        let mut setup = piped(1, frozen);
        setup.training.layers_per_chunk = Some(vec![4; 4]);
        let with = planned(&setup);
        let parameters = setup.training.parameters_of_vision();
        let mut blind = setup.clone();
        with_images(&mut blind, None);
        let without = planned(&blind);
        let weights = |plan: &Plan, stage: usize| plan.facts.stages[stage].memory.weights.get();
        assert_eq!(weights(&with, 0) - weights(&without, 0), 2 * parameters);
        for stage in 1..4 {
            let of = |plan: &Plan| plan.facts.stages[stage].memory;
            assert_eq!(of(&with), of(&without));
        }
        let all = with.facts.parameters - without.facts.parameters;
        assert_eq!(all, parameters as f64);
    }
}

/// The more images, the fewer layers are on the first stage; and that beats an even split.
#[test]
fn the_first_stage_gets_fewer_layers_for_its_images() {
    let of = |count| layers(&piped(count, Frozen::Nothing));
    let (few, many) = (of(2), of(16));
    assert_eq!(many.iter().sum::<u64>(), 16);
    assert!(many[0] < few[0] && many[0] < many[1], "{few:?} {many:?}");
    let by_time = piped(16, Frozen::Nothing);
    let mut even = by_time.clone();
    even.training.layers_per_chunk = Some(vec![4; 4]);
    let (by_time, even) = (step(&by_time), step(&even));
    assert!(
        by_time.as_secs_f64() < 0.95 * even.as_secs_f64(),
        "{by_time} {even}"
    );
}

/// A first stage without room for its share of layers leaves them to the others.
#[test]
fn layers_go_where_there_is_memory() {
    let mut setup = piped(4, Frozen::EncoderAndProjector);
    setup.training.recompute = Recompute::Full;
    let roomy = planned(&setup);
    let fullest = |plan: &Plan| {
        let stages = plan.facts.stages.iter();
        stages.map(|stage| stage.memory.total()).max()
    };
    let most = fullest(&roomy).expect("it has stages");
    let accelerator = &mut setup.cluster.node.accelerator;
    accelerator.memory = most.saturating_sub(rackflow_units::Bytes::new(1));
    accelerator.reported_memory = 1.0;
    let narrow = planned(&setup);
    assert_eq!(narrow.check_memory(), Ok(()));
    assert!(fullest(&narrow) < Some(most));
}

/// A taller image of windows costs in proportion; one that is seen whole costs more.
#[test]
fn a_window_keeps_attention_linear() {
    let of = |windowed: bool, height: u64| {
        let vision = encoder(windowed);
        let images = Images {
            height,
            ..images(1, Frozen::EncoderAndProjector)
        };
        vision.flops_per_image(&images, 1024)
    };
    let growth = |windowed| of(windowed, 2240) / of(windowed, 1120);
    assert!(growth(true) < growth(false), "{}", growth(false));
}
