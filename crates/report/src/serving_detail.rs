//! What pictures of a serving run are made of: memory, steps under the roofline, links.

use rackflow_plan::serving::{FleetPlan, StepBatch};
use rackflow_simulator::serving::{PoolRecord, ServingRecord, Work};
use rackflow_topology::Level;
use rackflow_workload::{Decoder, Medium, Role};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What one GPU of a pool holds, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct PoolMemory {
    /// All of it.
    pub capacity: f64,
    /// Weights.
    pub weights: f64,
    /// Activations of the largest step.
    pub activations: f64,
    /// Graphs, workspaces, the context.
    pub reserved: f64,
    /// What the engine gives to the cache.
    pub cache: f64,
    /// Of that, in use: mean over steps.
    pub cache_used_mean: f64,
}

/// How the steps of a pool compute and read, for one GPU.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct PoolRoofline {
    /// Dense peak in the native format.
    pub peak_flops_per_s: f64,
    /// Peak of the memory.
    pub memory_bytes_per_s: f64,
    /// Steps with prompt tokens; null where there were none.
    pub prefill: Option<RooflinePoint>,
    /// Steps that only decode; null where there were none.
    pub decode: Option<RooflinePoint>,
    /// What decode steps of 1, 2, 4 and more sequences come to, as far as limits and cache allow, with
    /// the mean context of this run.
    pub decode_by_sequences: Vec<RooflinePoint>,
}

/// Steps of one kind.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct RooflinePoint {
    /// Sequences that decode in one, mean.
    pub sequences: f64,
    /// Operations per byte of weights and cache.
    pub flops_per_byte: f64,
    /// Operations per second and GPU while such steps run.
    pub flops_per_s: f64,
}

/// One kind of links of a pool: bytes that one GPU sends, or, where caches arrive, receives, per second
/// of the window.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct PoolLink {
    /// `nvlink` or `nic`.
    pub tier: String,
    /// What one GPU's links could carry, one way.
    pub line_rate: f64,
    /// Of steps: tensor, expert and pipeline parallelism.
    pub steps: f64,
    /// Of caches on their way from prefill to decode.
    pub caches: f64,
    /// Of blocks from and to the remote tier of the KV store.
    pub store: f64,
}

pub(crate) fn memory(plan: &FleetPlan, index: usize, pool: &PoolRecord) -> PoolMemory {
    let memory = plan.instances[index].memory();
    let cluster = plan.setup.pools[index].cluster;
    let capacity = plan.setup.clusters[cluster].node.accelerator.memory;
    let steps = (pool.prefill.steps + pool.decode.steps).max(1);
    let tokens = (pool.kv_blocks * u64::from(pool.block_size)).max(1);
    let used = pool.kv_token_steps as f64 / steps as f64 / tokens as f64;
    PoolMemory {
        capacity: capacity.as_f64(),
        weights: memory.weights.as_f64(),
        activations: memory.activations.as_f64(),
        reserved: memory.reserved.as_f64(),
        cache: memory.cache.as_f64(),
        cache_used_mean: memory.cache.as_f64() * used.min(1.0),
    }
}

pub(crate) fn roofline(plan: &FleetPlan, record: &ServingRecord, index: usize) -> PoolRoofline {
    let (pool, instance) = (&record.pools[index], &plan.instances[index]);
    let setup = &plan.setup.pools[index];
    let gpus = f64::from(pool.gpus);
    let point = |work: &Work, sequences: f64| {
        (work.time_ps > 0 && work.bytes > 0).then(|| RooflinePoint {
            sequences,
            flops_per_byte: work.flops as f64 / work.bytes as f64,
            flops_per_s: work.flops as f64 / (work.time_ps as f64 * 1e-12) / gpus,
        })
    };
    let steps = pool.decode.steps.max(1) as f64;
    let queries = match plan.setup.decoder {
        Decoder::Autoregressive => 1,
        Decoder::Speculative(guess) => 1 + u64::from(guess.draft_tokens),
        Decoder::BlockDiffusion { block, .. } => u64::from(block),
        // Its steps are prompts.
        Decoder::FullDiffusion { .. } => 0,
    };
    let requests = record.measured.max(1) as f64;
    let context = (record.input_tokens as f64 + record.output_tokens as f64 / 2.0) / requests;
    let room = instance.kv_capacity_tokens() as f64 / context.max(1.0);
    let most = f64::from(setup.engine.max_num_seqs).min(room);
    let decodes = pool.role != Role::Prefill && queries > 0;
    let of = |sequences: u64| {
        let batch = StepBatch {
            prefill: &[],
            decode_sequences: sequences,
            decode_context_tokens: (sequences as f64 * context) as u64,
            tokens_per_sequence: queries,
        };
        let cost = instance.step(&batch);
        RooflinePoint {
            sequences: sequences as f64,
            flops_per_byte: cost.flops / cost.bytes_read.max(1.0),
            flops_per_s: cost.flops / cost.time.as_secs_f64() / gpus,
        }
    };
    let accelerator = &plan.setup.clusters[setup.cluster].node.accelerator;
    PoolRoofline {
        peak_flops_per_s: instance.native_peak(),
        memory_bytes_per_s: accelerator.memory_bandwidth.as_f64(),
        prefill: point(&pool.prefill, 0.0),
        decode: point(&pool.decode, pool.decode_sequences as f64 / steps),
        decode_by_sequences: (0..24)
            .map(|power| 1_u64 << power)
            .take_while(|sequences| decodes && *sequences as f64 <= most.max(1.0))
            .map(of)
            .collect(),
    }
}

pub(crate) fn links(plan: &FleetPlan, record: &ServingRecord, index: usize) -> Vec<PoolLink> {
    let (pool, setup) = (&record.pools[index], &plan.setup.pools[index]);
    let cluster = &plan.setup.clusters[setup.cluster];
    let gpus = f64::from(pool.replicas) * f64::from(pool.gpus);
    let per_gpu = |bytes: f64| bytes / record.window.as_secs_f64() / gpus;
    let moves = record.pools.len() > 1;
    let remote: u64 = record
        .kv
        .tiers
        .iter()
        .filter(|tier| tier.medium == Medium::Remote && index == 0)
        .map(|tier| tier.read + tier.written)
        .sum();
    let inside = |level: Level| level <= Level::NvLink;
    let link = |tier: &str, line_rate: f64, of_tier: &dyn Fn(Level) -> bool, store: u64| {
        let levels = || Level::ALL.into_iter().filter(|level| of_tier(*level));
        let steps: u128 = levels()
            .map(|level| pool.prefill.wire[level as usize] + pool.decode.wire[level as usize])
            .sum();
        let caches: u64 = levels().map(|level| record.kv.sent[level as usize]).sum();
        PoolLink {
            tier: tier.to_owned(),
            line_rate,
            steps: per_gpu(steps as f64),
            caches: if moves { per_gpu(caches as f64) } else { 0.0 },
            store: per_gpu(store as f64),
        }
    };
    let mut all = Vec::new();
    if cluster.node.scale_up.domain > 1 {
        let rate = cluster.node.scale_up.bandwidth.as_f64();
        all.push(link("nvlink", rate, &inside, 0));
    }
    let rate = plan.maps[setup.cluster].nic_share().as_f64();
    if rate > 0.0 {
        all.push(link("nic", rate, &|level| !inside(level), remote));
    }
    all
}
