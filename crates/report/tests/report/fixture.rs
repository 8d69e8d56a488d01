//! Records built by hand: small enough to check on paper, whole enough to draw.

use rackflow_plan::{
    Accounts, Cause, CommKind, Facts, Fidelity, MemoryUse, RankOrder, Setup, StageFacts,
};
use rackflow_simulator::{ClassRecord, EngineRecord, Record};
use rackflow_topology::{
    Accelerator, AttentionRate, AttentionRates, ByPrecision, Cluster, Fabric, Level, Measured,
    MultiPlaneFatTree, Nic, Node, Rack,
};
use rackflow_units::{Bandwidth, Bytes, FlopRate, Frequency, Power, Precision, SimDuration};
use rackflow_workload::{
    Activation, Attention, AttentionKernel, CudaGraphs, ExpertDispatcher, MoE, Model, Overlap,
    Parallelism, Recipe, Recompute, Routing, Schedule, SoftwareStack, Training, Zero,
};

const RATE: AttentionRate = AttentionRate {
    forward: 0.7,
    backward: 0.55,
    forward_fp8: None,
};

/// What one class of ranks did, as thousandths of the step by cause; the rest is useful math.
pub type Shares = &'static [(Cause, u64)];

/// Losses of an even pipeline.
pub const EVEN: Shares = &[
    (Cause::WiderPrecision, 61),
    (Cause::SustainedRate, 118),
    (Cause::Shape, 74),
    (Cause::MemoryBound, 168),
    (Cause::ExponentBound, 21),
    (Cause::Launch, 43),
    (Cause::Recomputation, 37),
    (Cause::Contention, 52),
    (Cause::Exposed(CommKind::Expert, Level::NvLink), 4),
    (Cause::Exposed(CommKind::Expert, Level::Spine), 106),
    (Cause::Exposed(CommKind::Pipeline, Level::Leaf), 9),
    (Cause::Exposed(CommKind::Data, Level::Spine), 18),
    (Cause::Bubble, 62),
    (Cause::Imbalance, 31),
];

/// Losses of a stage that waits more.
pub const LATE: Shares = &[
    (Cause::WiderPrecision, 61),
    (Cause::SustainedRate, 100),
    (Cause::MemoryBound, 168),
    (Cause::Exposed(CommKind::Expert, Level::Spine), 146),
    (Cause::Bubble, 362),
];

/// Step time of every fixture.
pub const STEP: SimDuration = SimDuration::from_picos(19_930_000_000_000);

fn accounts(shares: Shares) -> Accounts {
    let mut accounts = Accounts::default();
    let mut left = STEP;
    for (cause, thousandths) in shares {
        let span = STEP.scale(*thousandths, 1000);
        accounts.book(*cause, span);
        left -= span;
    }
    accounts.book(Cause::UsefulMath, left);
    accounts
}

/// A pipeline of 16 stages on 2,048 H800, all ranks alike.
pub fn even() -> Record {
    let facts = facts();
    let gpus = facts.cluster.gpus;
    Record {
        facts,
        step_time: STEP,
        classes: vec![ClassRecord {
            ranks: gpus,
            stage: 0,
            accounts: accounts(EVEN),
        }],
        class_of_gpu: vec![0; gpus as usize],
        engine: EngineRecord {
            events: 184_320,
            entities: 16,
            fidelity: Fidelity::Folded,
            seed: 0,
        },
    }
}

/// The same cluster, where the last 128 GPUs wait for the others.
pub fn uneven() -> Record {
    let mut record = even();
    let gpus = record.facts.cluster.gpus;
    record.classes[0].ranks -= 128;
    record.classes.push(ClassRecord {
        ranks: 128,
        stage: 15,
        accounts: accounts(LATE),
    });
    for class in &mut record.class_of_gpu[gpus as usize - 128..] {
        *class = 1;
    }
    record
}

/// A run of 64 GPUs of the same kind, to be compiled and simulated.
pub fn small_setup() -> Setup {
    let mut cluster = cluster();
    cluster.gpus = 64;
    let mut training = training();
    training.parallelism.pipeline = 4;
    training.parallelism.data = 16;
    training.parallelism.expert = 16;
    training.global_batch = 16 * 8;
    Setup {
        name: "DeepSeek-V3 on 64 H800".into(),
        cluster,
        training,
        rank_order: RankOrder::DataBeforePipeline,
        stragglers: Vec::new(),
        fidelity: Fidelity::Folded,
        seed: 0,
    }
}

fn facts() -> Facts {
    let racks = (0..64).map(|rack| 32 * rack..32 * (rack + 1)).collect();
    let memory = |activations| MemoryUse {
        weights: Bytes::new(5_200_000_000),
        gradients: Bytes::new(9_100_000_000),
        optimizer: Bytes::new(11_400_000_000),
        activations: Bytes::new(activations),
        buffers: Bytes::new(3_300_000_000),
        reserved: Bytes::new(6_000_000_000),
    };
    Facts {
        scenario: "DeepSeek-V3 pre-training on 2,048 H800".into(),
        cluster: cluster(),
        training: training(),
        parameters: 671.03e9,
        active_parameters: 37.55e9,
        // 0.196 of 2,048 GPUs' fp8 peak, for the 19.93 s of the step.
        model_flops_causal: 0.196 * 2048.0 * 1979e12 * 19.93,
        model_flops_noncausal: 0.2152 * 2048.0 * 1979e12 * 19.93,
        hardware_flops_causal: 0.206 * 2048.0 * 1979e12 * 19.93,
        hardware_flops_noncausal: 0.226 * 2048.0 * 1979e12 * 19.93,
        peak_bf16: FlopRate::from_flops_per_sec(989.5e12),
        peak_native: FlopRate::from_flops_per_sec(1979e12),
        native: Precision::Fp8,
        stages: (0..16)
            .map(|stage| StageFacts {
                layers: 4,
                memory: memory(26_200_000_000 - 1_000_000_000 * stage),
            })
            .collect(),
        memory_capacity: Bytes::new(80_000_000_000),
        micro_batches: 120,
        racks,
    }
}

fn cluster() -> Cluster {
    let accelerator = Accelerator {
        name: "h800-sxm".into(),
        sms: 132,
        clock: Frequency::from_hertz(1830e6),
        peak: ByPrecision {
            bf16: FlopRate::from_flops_per_sec(989.5e12),
            fp8: Some(FlopRate::from_flops_per_sec(1979e12)),
            fp4: None,
        },
        vector: FlopRate::from_flops_per_sec(67e12),
        exponentials_per_sm_clock: 16,
        memory: Bytes::new(80_000_000_000),
        memory_bandwidth: Bandwidth::from_gigabytes_per_sec(3350),
        l2: Bytes::new(50_000_000),
        host_bandwidth: Bandwidth::from_gigabytes_per_sec(64),
        power: Power::from_watts(700.0),
        price: None,
        measured: Measured {
            gemm: ByPrecision {
                bf16: 0.75,
                fp8: Some(0.7),
                fp4: None,
            },
            attention: AttentionRates {
                flash1: RATE,
                flash2: RATE,
                best: RATE,
            },
            memory: 0.9,
            kernel_floor: SimDuration::from_micros(2),
        },
        sources: Default::default(),
    };
    Cluster {
        node: Node {
            name: "hgx-h800".into(),
            accelerator,
            gpus: 8,
            scale_up: serde_json::from_value(serde_json::json!({
                "domain": 8, "bandwidth": "200 GB/s", "efficiency": 0.9, "collective_efficiency": 0.8,
                "latency": "1 us",
            }))
            .expect("the other fields have defaults"),
            nic: Nic {
                count: 8,
                rate: Bandwidth::from_gigabits_per_sec(400),
                efficiency: 0.95,
                latency: SimDuration::from_micros(3),
            },
            rack: Rack { gpus: 32, power: Power::from_watts(44_000.0) },
            sources: Default::default(),
        },
        gpus: 2048,
        fabric: Fabric::MultiPlaneFatTree(MultiPlaneFatTree {
            planes: 8,
            radix: 64,
            link: None,
            load_balance: 1.0,
            hop: SimDuration::from_nanos(300),
        }),
    }
}

fn training() -> Training {
    Training {
        model: Model {
            name: "deepseek-v3".into(),
            layers: 61,
            hidden: 7168,
            attention: Attention::Latent {
                heads: 128,
                q_lora_rank: Some(1536),
                kv_lora_rank: 512,
                qk_nope_head_dim: 128,
                qk_rope_head_dim: 64,
                v_head_dim: 128,
            },
            ffn: 18432,
            gated: true,
            moe: Some(MoE {
                experts: 256,
                top_k: 8,
                expert_ffn: 2048,
                shared_ffn: 2048,
                first_dense_layers: 3,
                every: 1,
            }),
            vocab: 129_280,
            tied_embeddings: false,
            learned_positions: 0,
            biases: false,
            mtp: None,
            sources: Default::default(),
        },
        stack: SoftwareStack {
            name: "deepseek-hai-llm".into(),
            date: "2024-12".into(),
            launch: SimDuration::from_micros(4),
            cuda_graphs: CudaGraphs::None,
            attention: AttentionKernel::Best,
            fused_norms: true,
            fused_activation: true,
            fused_rope: true,
            fused_cross_entropy: true,
            fused_quantization: false,
            fused_router: true,
            grouped_gemm: true,
            overlap: Overlap {
                gradient_reduce: true,
                parameter_gather: true,
                tensor: false,
                pipeline: true,
                expert: true,
                shared_expert: true,
            },
            dispatcher: ExpertDispatcher::DeepEp,
            communication_sms: 20,
            dispatch_sms: 20,
            gradient_bytes: 4,
            optimizer_bytes: 8,
            parameter_gather_bytes: 2,
            bucket: Bytes::new(100_000_000),
            reserved_memory: Bytes::new(6_000_000_000),
            sources: Default::default(),
        },
        recipe: Recipe::Fp8Blockwise,
        sequence_length: 4096,
        global_batch: 15360,
        micro_batch: 1,
        parallelism: Parallelism {
            tensor: 1,
            sequence_parallel: false,
            context: 1,
            pipeline: 16,
            virtual_pipeline: 1,
            data: 128,
            expert: 64,
            expert_tensor: 1,
            zero: Zero::Stage1,
            zero_group: None,
        },
        schedule: Schedule::Dualpipe,
        recompute: Recompute::Activations(vec![
            Activation::Norms,
            Activation::MlaUpProjection,
            Activation::Swiglu,
        ]),
        routing: Routing::Lognormal { sigma: 0.1 },
        layers_per_chunk: None,
        assumed: vec!["micro-batch of 1 sequence; the report names 4,096 tokens per micro-batch only for its schedule figure".into()],
    }
}
