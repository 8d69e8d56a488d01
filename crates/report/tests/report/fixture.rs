//! Records built by hand: small enough to check on paper, whole enough to draw.

use rackflow_plan::{
    Accounts, Cause, CommKind, Facts, Fidelity, Jitter, MemoryUse, Pressure, RankOrder, Setup,
    StageFacts, TokenDraws, Uplinks,
};
use rackflow_scenario::Catalogue;
use rackflow_simulator::{ClassRecord, EngineRecord, Record, Traffic};
use rackflow_topology::{Cluster, Level};
use rackflow_units::{Bandwidth, Bytes, FlopRate, Precision, SimDuration};
use rackflow_workload::{
    Activation, Parallelism, Recipe, Recompute, Routing, Schedule, Training, Zero,
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
            kind: 0,
            accounts: accounts(EVEN),
            traffic: Traffic::default(),
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
        kind: 0,
        accounts: accounts(LATE),
        traffic: Traffic::default(),
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
        faults: Vec::new(),
        stragglers: Vec::new(),
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
                pressure: Pressure::default(),
                capacity: Bytes::new(80_000_000_000),
                memory: memory(26_200_000_000 - 1_000_000_000 * stage),
            })
            .collect(),
        memory_capacity: Bytes::new(80_000_000_000),
        micro_batches: 120,
        racks,
        kernels: Vec::new(),
        nic_share: Bandwidth::from_gigabits_per_sec(400),
        uplinks: Uplinks::default(),
    }
}

/// Hardware and work are those of the catalogue; what these tests rely on is set here.
fn cluster() -> Cluster {
    let mut node = Catalogue::builtin()
        .node("hgx-h800")
        .expect("a shipped node");
    node.rack.gpus = 32;
    let fabric = Catalogue::builtin()
        .fabric("deepseek-mpft")
        .expect("a shipped fabric")
        .clone();
    Cluster {
        parts: Vec::new(),
        node,
        gpus: 2048,
        fabric,
    }
}

fn training() -> Training {
    let catalogue = Catalogue::builtin();
    let mut stack = catalogue
        .stack("deepseek-hai-llm")
        .expect("a shipped stack")
        .clone();
    stack.fused_quantization = false;
    stack.overlap.expert = true;
    Training {
        model: catalogue.model("deepseek-v3").expect("a shipped model").clone(),
        stack,
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
        images: None,
        layers_per_chunk: None,
        assumed: vec!["micro-batch of 1 sequence; the report names 4,096 tokens per micro-batch only for its schedule figure".into()],
    }
}
