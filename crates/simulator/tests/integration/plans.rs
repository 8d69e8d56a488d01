//! Random small plans, and a few named ones.

use proptest::prelude::*;
use rackflow_plan::{Fidelity, Jitter, RankOrder, Setup, Straggler, TokenDraws};
use rackflow_scenario::Catalogue;
use rackflow_topology::{Cluster, Fabric, FatTree, Routing as LinkRouting};
use rackflow_units::SimDuration;
use rackflow_workload::{
    ActivationOffload, Attention, CudaGraphs, ExpertDispatcher, Frozen, Images, MoE, Model,
    MultiTokenPrediction, OffloadedInput, Overlap, Parallelism, Projector, Recipe, Recompute,
    Routing, Schedule, SoftwareStack, Training, VisionEncoder, Zero,
};
use std::collections::BTreeMap;

/// A small transformer; with experts if asked.
pub fn model(layers: u64, moe: bool) -> Model {
    Model {
        name: "small".into(),
        layers,
        hidden: 1024,
        attention: Attention::Grouped {
            heads: 8,
            kv_heads: 8,
            head_dim: 128,
            sliding_window: None,
            full_every: None,
            chunked: false,
            qk_norm: false,
            sinks: false,
        },
        ffn: 4096,
        gated: true,
        moe: moe.then_some(MoE {
            experts: 16,
            top_k: 2,
            expert_ffn: 1024,
            shared_ffn: 1024,
            first_dense_layers: 1,
            every: 1,
            ..moe_defaults()
        }),
        vocab: 32_000,
        tied_embeddings: false,
        learned_positions: 0,
        biases: false,
        clamped: false,
        scaled_rope: false,
        mtp: None,
        vision: None,
        sources: BTreeMap::new(),
    }
}

/// A small encoder that eight tensor ranks can divide.
pub fn encoder(windowed: bool) -> VisionEncoder {
    VisionEncoder {
        layers: 4,
        hidden: 512,
        heads: 8,
        ffn: 2048,
        gated: windowed,
        biases: true,
        rotary: windowed,
        learned_positions: if windowed { 0 } else { 300 },
        patch: 14,
        frames: 1,
        patch_bias: false,
        class_token: !windowed,
        outer_norms: if windowed { 0 } else { 2 },
        window: windowed.then_some(4),
        full_every: windowed.then_some(2),
        image: None,
        merge: 2,
        projector: Projector {
            widths: if windowed {
                vec![1024]
            } else {
                vec![512, 1024]
            },
            biases: true,
            norm: windowed,
            deep: u64::from(windowed),
        },
    }
}

/// Small images among the tokens of each sequence.
pub fn images(per_sequence: u64, frozen: Frozen) -> Images {
    Images {
        per_sequence,
        height: 224,
        width: 112,
        frozen,
    }
}

/// Mostly none.
pub fn seen() -> impl Strategy<Value = Option<(VisionEncoder, Images)>> {
    let frozen = prop_oneof![
        2 => Just(Frozen::Nothing),
        1 => Just(Frozen::Encoder),
        1 => Just(Frozen::EncoderAndProjector),
    ];
    let some = (any::<bool>(), 1..5u64, frozen)
        .prop_map(|(windowed, count, frozen)| Some((encoder(windowed), images(count, frozen))));
    prop_oneof![2 => Just(None), 1 => some]
}

/// Whether the model makes its logits with the table of tokens, and how many prediction modules it has: mostly none.
pub fn ends() -> impl Strategy<Value = (bool, u64)> {
    prop_oneof![
        3 => Just((false, 0)),
        1 => Just((true, 0)),
        1 => Just((false, 1)),
        1 => Just((true, 2)),
    ]
}

/// With such ends of the model.
pub fn with_ends(setup: &mut Setup, (tied, modules): (bool, u64)) {
    setup.training.model.tied_embeddings = tied;
    setup.training.model.mtp = (modules > 0).then_some(MultiTokenPrediction { modules });
}

/// With these images, and the encoder that takes them.
pub fn with_images(setup: &mut Setup, seen: Option<(VisionEncoder, Images)>) {
    let (encoder, images) = seen.unzip();
    setup.training.model.vision = encoder;
    setup.training.images = images;
}

fn moe_defaults() -> MoE {
    Catalogue::builtin()
        .model("mixtral-8x7b")
        .and_then(|m| m.moe.clone())
        .expect("Mixtral has experts")
}

/// A three-tier tree of small switches, so that small clusters cross every level.
pub fn small_switches(oversubscription: f64, routing: LinkRouting) -> Fabric {
    match Catalogue::builtin()
        .fabric("ib-three-tier")
        .expect("in the catalogue")
        .clone()
    {
        Fabric::FatTree(tree) => Fabric::FatTree(FatTree {
            tiers: 3,
            radix: 16,
            leaf_oversubscription: oversubscription,
            routing,
            ..tree
        }),
        other => panic!("{other:?} is not a fat tree"),
    }
}

/// A fabric as it is written in a scenario.
pub fn fabric(text: &str) -> Fabric {
    let text = format!("node: dgx-h100\nfabric:\n  {text}\n");
    let changes = rackflow_scenario::ClusterChanges::default();
    rackflow_scenario::parse_cluster("fabric", &text, &changes, &|_| {
        Err(std::io::ErrorKind::NotFound.into())
    })
    .expect("the fabric is sound")
    .fabric
}

pub fn cluster(node: &str, gpus: u32) -> Cluster {
    let mut node = Catalogue::builtin().node(node).expect("in the catalogue");
    node.sources.clear();
    node.accelerator.sources.clear();
    Cluster {
        parts: Vec::new(),
        node,
        gpus,
        fabric: small_switches(1.0, LinkRouting::Adaptive),
    }
}

pub fn stack() -> SoftwareStack {
    let name = Catalogue::builtin()
        .names(rackflow_scenario::Section::Stacks)
        .next()
        .expect("the catalogue has stacks")
        .to_owned();
    let mut stack = Catalogue::builtin().stack(&name).expect("listed").clone();
    stack.launch = SimDuration::from_micros(3);
    // Keeps the report of a failing case short.
    stack.sources.clear();
    stack
}

/// One node, dense, nothing special.
pub fn plain(gpus: u32) -> Setup {
    Setup {
        name: "plain".into(),
        cluster: cluster("dgx-h100", gpus),
        training: Training {
            model: model(8, false),
            stack: stack(),
            recipe: Recipe::Bf16,
            sequence_length: 2048,
            global_batch: u64::from(gpus) * 4,
            micro_batch: 1,
            parallelism: Parallelism {
                tensor: 1,
                sequence_parallel: false,
                context: 1,
                pipeline: 1,
                virtual_pipeline: 1,
                data: gpus,
                expert: 1,
                expert_tensor: 1,
                zero: Zero::Stage1,
                zero_group: None,
            },
            schedule: Schedule::OneForwardOneBackward,
            recompute: Recompute::None,
            routing: Routing::Balanced,
            images: None,
            layers_per_chunk: None,
            assumed: Vec::new(),
        },
        rank_order: RankOrder::DataBeforePipeline,
        seats: None,
        stragglers: Vec::new(),
        jitter: Jitter::NONE,
        faults: Vec::new(),
        seeds: 1,
        fidelity: Fidelity::Folded,
        seed: 0,
        token_draws: TokenDraws::none(),
    }
}

prop_compose! {
    fn overlaps()(bits in any::<[bool; 10]>()) -> Overlap {
        Overlap {
            gradient_reduce: bits[0],
            parameter_gather: bits[1],
            tensor: bits[2],
            pipeline: bits[3],
            expert: bits[4],
            shared_expert: bits[5],
            align_gradient_reduce: bits[6],
            align_parameter_gather: bits[7],
            optimizer_step_gather: bits[8],
            pipeline_if_interleaved: bits[9],
        }
    }
}

/// Activations on the host: mostly none.
fn offloads() -> impl Strategy<Value = ActivationOffload> {
    use OffloadedInput::{AttentionNorm, CoreAttention, ExpertFc1, Layer, MoeActivation};
    let of = |inputs: Vec<OffloadedInput>, fraction| ActivationOffload { inputs, fraction };
    prop_oneof![
        4 => Just(ActivationOffload::default()),
        1 => Just(of(vec![AttentionNorm, CoreAttention, ExpertFc1, MoeActivation], 1.0)),
        1 => Just(of(vec![Layer], 0.5)),
    ]
}

fn dispatchers() -> impl Strategy<Value = ExpertDispatcher> {
    prop_oneof![
        Just(ExpertDispatcher::NcclAllToAll),
        Just(ExpertDispatcher::AllGather),
        Just(ExpertDispatcher::DeepEp),
        Just(ExpertDispatcher::HybridEp),
    ]
}

fn schedules() -> impl Strategy<Value = Schedule> {
    prop_oneof![
        Just(Schedule::Gpipe),
        Just(Schedule::OneForwardOneBackward),
        Just(Schedule::ZeroBubbleH1),
        Just(Schedule::ZeroBubbleH2),
        Just(Schedule::Dualpipe),
    ]
}

fn recomputes() -> impl Strategy<Value = Recompute> {
    use rackflow_workload::Activation::{MoeActivation, Norms, Swiglu};
    prop_oneof![
        Just(Recompute::None),
        Just(Recompute::Selective),
        Just(Recompute::Full),
        Just(Recompute::FullLayers(1)),
        Just(Recompute::Operators),
        Just(Recompute::Activations(vec![Norms, Swiglu, MoeActivation])),
    ]
}

fn routings() -> impl Strategy<Value = Routing> {
    prop_oneof![3 => Just(Routing::Balanced), 1 => (0.05..0.4).prop_map(|sigma| Routing::Lognormal { sigma })]
}

prop_compose! {
    /// Powers of two whose product is at most 64, and everything else that a plan may choose.
    pub fn setups()(
        split in proptest::collection::vec(0..4u32, 6),
        micro_per_stage in 1..4u64,
        (moe, order, zero, shard) in (any::<bool>(), any::<bool>(), 0..4u8, 0..3u32),
        overlap in overlaps(),
        (dispatcher, tokens) in (dispatchers(), any::<[bool; 3]>()),
        schedule in schedules(),
        recompute in recomputes(),
        load in routings(),
        (graphs, sequence_parallel, scatters) in (0..3u8, any::<bool>(), any::<bool>()),
        offload in offloads(),
        stragglers in proptest::collection::vec((0..64u32, 1.0..1.5f64), 0..3),
        (oversubscription, routing) in (
            prop_oneof![Just(1.0), Just(2.0)],
            prop_oneof![2 => Just(LinkRouting::Adaptive), 1 => Just(LinkRouting::Ecmp)],
        ),
        jitter in prop_oneof![
            4 => Just(Jitter::NONE),
            1 => Just(Jitter { gpu: 0.02, kernel: 0.0, slow_nodes: 0.0 }),
            1 => Just(Jitter { gpu: 0.01, kernel: 0.05, slow_nodes: 0.3 }),
        ],
        (seed, seen, ends) in (any::<u64>(), seen(), ends()),
    ) -> Setup {
        let (tensor, context, pipeline) = (1 << split[0].min(2), 1 << split[1].min(1), 1 << split[2].min(2));
        let mut data = 1u32 << split[3].min(3);
        while tensor * context * pipeline * data > 64 {
            data /= 2;
        }
        let stage = tensor * context * data;
        let expert = if moe { (1u32 << split[4]).min(stage) } else { 1 };
        let expert_tensor = if moe && sequence_parallel && stage / expert >= 2 && split[5] == 3 { 2 } else { 1 };
        // Dualpipe wants an even number of stages and twice as many micro-batches.
        let schedule = if schedule == Schedule::Dualpipe && pipeline < 2 { Schedule::Gpipe } else { schedule };
        let micro_batches = match schedule {
            Schedule::Dualpipe => 2 * u64::from(pipeline) * micro_per_stage,
            _ => u64::from(pipeline) * micro_per_stage,
        };
        let virtual_pipeline =
            if schedule == Schedule::OneForwardOneBackward && pipeline > 1 && split[5] >= 2 { 2 } else { 1 };
        let gpus = tensor * context * pipeline * data;
        let mut setup = plain(gpus);
        // A cluster is whole nodes, or part of one.
        setup.cluster = cluster(if gpus.is_multiple_of(8) || gpus < 8 { "dgx-h100" } else { "gb200-nvl72" }, gpus);
        setup.cluster.fabric = small_switches(oversubscription, routing);
        setup.rank_order = if order { RankOrder::DataBeforePipeline } else { RankOrder::PipelineBeforeData };
        setup.seed = seed;
        setup.jitter = jitter;
        setup.stragglers = stragglers
            .into_iter()
            .filter(|(gpu, _)| *gpu < gpus)
            .map(|(gpu, slowdown)| Straggler { gpu, slowdown })
            .collect();
        let ranks = data * context;
        let t = &mut setup.training;
        t.model = model(8, moe);
        (t.model.vision, t.images) = seen.unzip();
        t.stack.overlap = overlap;
        t.stack.activation_offload = offload;
        t.stack.scatters_messages = scatters;
        t.stack.framework_ring = scatters;
        t.stack.wide_parameters_last = scatters;
        t.stack.compares_scales = scatters;
        t.recipe = if scatters { Recipe::Fp8Delayed } else { Recipe::Bf16 };
        t.stack.dummy_gradients = seed.is_multiple_of(2);
        t.stack.fused_gradient_accumulation |= t.stack.dummy_gradients;
        t.stack.deferred_output_gradients = [0, 1, 3, 100][seed as usize % 4];
        t.stack.tensor_reduce_sms = [0, 0, 20][seed as usize % 3];
        t.stack.parameter_gather_bytes = if scatters { 1 } else { 2 };
        t.stack.dispatcher = dispatcher;
        t.stack.dispatch_overhead = SimDuration::from_micros(30);
        [
            t.stack.weighted_activation,
            t.stack.fused_permutation,
            t.stack.static_expert_shapes,
        ] = tokens;
        t.stack.cuda_graphs = [CudaGraphs::None, CudaGraphs::Partial, CudaGraphs::Full][usize::from(graphs)];
        t.sequence_length = 1024;
        t.global_batch = micro_batches * u64::from(data);
        t.schedule = schedule;
        t.recompute = recompute;
        t.routing = load;
        t.parallelism = Parallelism {
            tensor,
            sequence_parallel: sequence_parallel || moe,
            context,
            pipeline,
            virtual_pipeline,
            data,
            expert,
            expert_tensor,
            zero: Zero::try_from(zero).expect("0 to 3"),
            zero_group: (shard > 0 && ranks >= 1 << shard).then(|| ranks >> shard),
        };
        with_ends(&mut setup, ends);
        setup
    }
}
