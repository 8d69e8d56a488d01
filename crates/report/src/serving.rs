//! What a serving run means. Every metric is defined here, at its field, and nowhere else.

use crate::disturbed::Disturbed;
use crate::report::{Cluster, Engine, Loss, Peak, Rack, SCHEMA_VERSION};
use crate::serving_detail::{self, PoolLink, PoolMemory, PoolRoofline};
use crate::summarize::{self, ReportError};
use rackflow_plan::Accounts;
use rackflow_plan::serving::FleetPlan;
use rackflow_simulator::serving::{Phase, PoolRecord, ServingRecord, Spans, Work};
use rackflow_topology::Level;
use rackflow_workload::serving::Acceptance;
use rackflow_workload::{Decoder, Role};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// One simulated serving run, and what it means.
///
/// Rates are per second, sizes are in bytes, times are in seconds. Everything but
/// `engine.wall_s` is the same on every run of the same scenario with the same seed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ServingReport {
    /// Version of this document's layout.
    pub schema_version: u32,
    /// Name of the scenario.
    pub scenario: String,
    /// What is served.
    pub model: ServedModel,
    /// On what.
    pub cluster: Cluster,
    /// Pools of equal replicas: one, or prefill and decode.
    pub pools: Vec<PoolReport>,
    /// What the fleet delivers.
    pub serving: Serving,
    /// What each rack delivers.
    pub racks: Vec<Rack>,
    /// From peak to effective: where all GPU-seconds of the window went. The first entry is the
    /// useful work, the others are losses; the fractions sum to 1.
    pub waterfall: Vec<Loss>,
    /// Slow GPUs and faulty links, where there are any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disturbed: Option<Disturbed>,
    /// What the scenario's authors had to assume because no source says it.
    pub assumed: Vec<String>,
    /// How the simulation itself went. `ranks_simulated` counts replicas.
    pub engine: Engine,
}

/// The model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ServedModel {
    /// Catalogue name.
    pub name: String,
    /// All parameters, without prediction modules.
    pub parameters: f64,
    /// Bytes that one token adds to the cache, all layers.
    pub kv_bytes_per_token: f64,
}

/// Equal replicas.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct PoolReport {
    /// `both`, `prefill` or `decode`.
    pub role: String,
    /// Replicas.
    pub replicas: u32,
    /// GPUs of one replica.
    pub gpus_per_replica: u32,
    /// Catalogue name of the accelerator.
    pub accelerator: String,
    /// Tensor-parallel ranks of an attention group.
    pub tensor: u32,
    /// Attention groups with sequences of their own.
    pub data: u32,
    /// Groups over which experts are spread.
    pub expert: u32,
    /// Pipeline stages.
    pub pipeline: u32,
    /// Serving stack.
    pub stack: String,
    /// Whose scheduler.
    pub scheduler: String,
    /// How answers are produced.
    pub decoder: String,
    /// Number format of peak and MFU: the narrowest that the linear layers compute in.
    pub native_precision: String,
    /// Fraction of the GPU-time in which no step ran.
    pub idle: f64,
    /// Prompt tokens computed per second and GPU.
    pub prefill_tokens_per_s_per_gpu: f64,
    /// Tokens decoded per second and GPU.
    pub decode_tokens_per_s_per_gpu: f64,
    /// Sequences in a decode step of one replica, mean over steps.
    pub decode_batch: f64,
    /// Time of a step that only decodes, mean.
    pub decode_step_s: f64,
    /// Time of a step with prompt tokens, mean.
    pub prefill_step_s: f64,
    /// Tokens that the cache of one replica holds.
    pub kv_capacity_tokens: u64,
    /// Share of the cache in use, mean over steps.
    pub kv_occupancy_mean: f64,
    /// Share of the cache in use at most, of one replica.
    pub kv_occupancy_peak: f64,
    /// Requests whose blocks were taken away.
    pub preemptions: u64,
    /// What one GPU holds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<PoolMemory>,
    /// How its steps compute and read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub roofline: Option<PoolRoofline>,
    /// How busy the links of one GPU are.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub links: Vec<PoolLink>,
}

/// Mean and quantiles of times. Quantiles are exact to three digits.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Latency {
    /// Mean.
    pub mean: f64,
    /// Half are not above this.
    pub p50: f64,
    /// 90 % are not above this.
    pub p90: f64,
    /// 99 % are not above this.
    pub p99: f64,
}

/// One figure of each kind of step.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ByPhase {
    /// Steps with prompt tokens, whether or not others decode in them; null where there were none.
    pub prefill: Option<f64>,
    /// Steps that only decode; null where there were none.
    pub decode: Option<f64>,
}

/// What the fleet delivers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Serving {
    /// From the end of the warm-up to the last answer: what rates are over.
    pub window_s: f64,
    /// Requests that came after the warm-up and were answered: what latencies are over.
    pub requests_measured: u64,
    /// Requests answered, the warm-up's included.
    pub requests_answered: u64,
    /// Requests turned away: longer than the cache, or beyond the queue's limit.
    pub requests_refused: u64,
    /// From arrival to the first token; with prefill and decode apart, to the first token on the
    /// decode side.
    pub ttft_s: Latency,
    /// Time per output token after the first: (end to end - TTFT) / (tokens - 1), as benchmarks
    /// define TPOT (and mean ITL). Where tokens come in blocks, those of the first block are not
    /// counted; where all come at once, it is end to end over tokens.
    pub tpot_s: Latency,
    /// From arrival to the last token.
    pub e2e_s: Latency,
    /// Tokens of answers per second.
    pub output_tokens_per_s: f64,
    /// The same per GPU of the fleet.
    pub output_tokens_per_s_per_gpu: f64,
    /// The same per full rack.
    pub output_tokens_per_s_per_rack: f64,
    /// Tokens of prompts (cached ones included) and answers per second.
    pub total_tokens_per_s: f64,
    /// Requests answered per second.
    pub requests_per_s: f64,
    /// Requests per second and GPU.
    pub requests_per_s_per_gpu: f64,
    /// Tokens per second that one user sees: 1 over mean TPOT.
    pub tokens_per_s_per_user: f64,
    /// Fraction of measured requests inside every limit of `slo`; null where the scenario has none.
    pub slo_attainment: Option<f64>,
    /// Model FLOPs utilisation: what the batches need over the dense native peak, while such steps
    /// run.
    pub mfu: ByPhase,
    /// Memory-bandwidth utilisation: bytes of weights and cache that the batches must read, over
    /// the peak of the memories, while such steps run.
    pub mbu: ByPhase,
    /// KV cache.
    pub kv: Kv,
    /// Bytes that steps sent, by level of the fabric, in the window.
    pub step_traffic_bytes: ByLevel,
    /// Mean time of a request in each phase of its life; they sum to the mean of `e2e_s`.
    pub phases_s: Phases,
    /// Rent of all accelerators over the window per million output tokens; null where the
    /// catalogue has no price.
    pub usd_per_million_output_tokens: Option<f64>,
    /// Energy of the racks over the window per output token, at the racks' power under load: an
    /// upper bound.
    pub joules_per_output_token: f64,
}

/// Bytes by level of the fabric.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ByLevel {
    /// Inside an NVLink domain.
    pub nvlink: f64,
    /// Under one leaf switch.
    pub leaf: f64,
    /// Over spines.
    pub spine: f64,
    /// Over the core.
    pub core: f64,
}

/// Mean seconds of a request by what it was doing.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Phases {
    /// On its way in, or waiting for its first step.
    pub queued: f64,
    /// Its cache came up from a lower tier.
    pub loading: f64,
    /// From its first to its last step of prefill.
    pub prefill: f64,
    /// Its cache moved from prefill to decode, or waited for room there.
    pub transfer: f64,
    /// Decoding.
    pub decode: f64,
    /// Pushed out, waiting to run again.
    pub preempted: f64,
}

/// KV cache: what was found, kept and moved.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Kv {
    /// Fraction of prompt tokens that HBM held already.
    pub hit_rate: f64,
    /// Fraction of prompt tokens that came from lower tiers.
    pub loaded_rate: f64,
    /// Caches moved from prefill to decode.
    pub transfers: u64,
    /// From the last computed layer to the whole cache being on the decode side.
    pub exposed_transfer_s: Latency,
    /// Bytes moved from prefill to decode, by level.
    pub transfer_bytes: ByLevel,
    /// Bytes that need not move: decode replicas held them from requests before.
    #[serde(default)]
    pub spared_bytes: f64,
    /// Bytes read from each tier below HBM.
    pub tiers: Vec<TierReport>,
    /// Share of the cache in use, mean over all steps of all pools.
    pub occupancy_mean: f64,
    /// Share of the cache in use at most.
    pub occupancy_peak: f64,
    /// Requests whose blocks were taken away.
    pub preemptions: u64,
}

/// One tier of the KV store.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct TierReport {
    /// What it is made of.
    pub medium: String,
    /// Bytes read from it.
    pub read_bytes: f64,
    /// Bytes written to it.
    #[serde(default)]
    pub written_bytes: f64,
}

impl ServingReport {
    /// The report as one JSON document, indented, with a newline at the end.
    pub fn to_json(&self) -> String {
        crate::json::pretty(self)
    }

    /// The JSON Schema of [`ServingReport::to_json`].
    pub fn schema() -> serde_json::Value {
        let mut schema = schemars::schema_for!(Self).to_value();
        schema["title"] = "Rackflow serving report".into();
        schema
    }
}

/// What `record`, the run of `plan`, means.
///
/// # Errors
/// When the record contradicts itself: when the accounts do not sum to GPUs x window, to the
/// picosecond.
pub fn summarize_serving(
    plan: &FleetPlan,
    record: &ServingRecord,
    wall_s: f64,
) -> Result<ServingReport, ReportError> {
    check(record)?;
    let total = record.total();
    let first = &plan.instances[0];
    let model = &first.deployment().model;
    Ok(ServingReport {
        schema_version: SCHEMA_VERSION,
        scenario: plan.setup.name.clone(),
        model: ServedModel {
            name: model.name.clone(),
            parameters: model.parameters_total() as f64,
            kv_bytes_per_token: first.deployment().kv_bytes_per_token().as_f64(),
        },
        cluster: cluster(plan, record),
        pools: record
            .pools
            .iter()
            .enumerate()
            .map(|(index, pool)| pool_report(plan, record, index, pool))
            .collect(),
        serving: serving(plan, record),
        racks: racks(plan, record),
        waterfall: summarize::waterfall(&total),
        disturbed: Disturbed::of(
            &plan.setup.faults,
            &plan.setup.stragglers,
            record.e2e.mean_s(),
        ),
        assumed: plan.setup.assumed.clone(),
        engine: Engine {
            events: record.events,
            ranks_simulated: record
                .pools
                .iter()
                .map(|pool| u64::from(pool.replicas))
                .sum(),
            wall_s,
            fidelity: "folded".into(),
            seed: record.seed,
        },
    })
}

/// Every GPU-second is booked exactly once. Checked in every build, for every run.
fn check(record: &ServingRecord) -> Result<(), ReportError> {
    let window = record.window.as_picos();
    if window == 0 {
        return Err(ReportError::EmptyStep);
    }
    for (class, pool) in record.pools.iter().enumerate() {
        for accounts in &pool.accounts {
            let step = window * u64::from(pool.gpus);
            let booked = accounts.total_picos();
            if booked != u128::from(step) {
                return Err(ReportError::AccountsDoNotSum {
                    class,
                    booked,
                    step,
                });
            }
        }
    }
    Ok(())
}

fn gpus(pool: &PoolRecord) -> f64 {
    f64::from(pool.replicas) * f64::from(pool.gpus)
}

fn cluster(plan: &FleetPlan, record: &ServingRecord) -> Cluster {
    let mut names: Vec<(String, String)> = Vec::new();
    let mut peak = Peak {
        bf16: 0.0,
        native: 0.0,
    };
    for ((pool, setup), instance) in record
        .pools
        .iter()
        .zip(&plan.setup.pools)
        .zip(&plan.instances)
    {
        let node = &plan.setup.clusters[setup.cluster].node;
        let name = (node.name.clone(), node.accelerator.name.clone());
        if !names.contains(&name) {
            names.push(name);
        }
        peak.bf16 += node.accelerator.peak.bf16.flops_per_sec() * gpus(pool);
        peak.native += instance.native_peak() * gpus(pool);
    }
    let join = |pick: fn(&(String, String)) -> &String| {
        names
            .iter()
            .map(pick)
            .cloned()
            .collect::<Vec<_>>()
            .join(" + ")
    };
    let first = &plan.setup.clusters[0];
    Cluster {
        node: join(|name| &name.0),
        accelerator: join(|name| &name.1),
        fabric: if plan.setup.clusters.len() == 1 && first.gpus <= first.node.gpus {
            "one node".into()
        } else {
            summarize::fabric(&first.fabric)
        },
        gpus: record.gpus(),
        racks: rack_ranges(plan).len() as u64,
        gpus_per_rack: first.node.rack.gpus.into(),
        peak_flops: peak,
        native_precision: native(plan, 0),
    }
}

fn native(plan: &FleetPlan, pool: usize) -> String {
    plan.instances[pool]
        .deployment()
        .precision
        .native()
        .to_string()
}

fn pool_report(
    plan: &FleetPlan,
    record: &ServingRecord,
    index: usize,
    pool: &PoolRecord,
) -> PoolReport {
    let setup = &plan.setup.pools[index];
    let parallelism = &setup.deployment.parallelism;
    let window = record.window.as_secs_f64();
    let busy = (pool.prefill.time_ps + pool.decode.time_ps) as f64 * 1e-12;
    let steps = pool.prefill.steps + pool.decode.steps;
    let capacity = pool.kv_blocks * u64::from(pool.block_size);
    let mean_step = |work: &Work| {
        if work.steps == 0 {
            0.0
        } else {
            work.time_ps as f64 * 1e-12 / work.steps as f64
        }
    };
    PoolReport {
        role: pool.role.key().into(),
        replicas: pool.replicas,
        gpus_per_replica: pool.gpus,
        accelerator: plan.setup.clusters[setup.cluster]
            .node
            .accelerator
            .name
            .clone(),
        tensor: parallelism.tensor,
        data: parallelism.data,
        expert: parallelism.expert,
        pipeline: parallelism.pipeline,
        stack: setup.deployment.stack.name.clone(),
        scheduler: serde_json::to_value(setup.engine.scheduler)
            .ok()
            .and_then(|value| value.as_str().map(str::to_owned))
            .unwrap_or_default(),
        decoder: decoder(plan.setup.decoder),
        native_precision: native(plan, index),
        idle: 1.0 - busy / (window * f64::from(pool.replicas)),
        prefill_tokens_per_s_per_gpu: pool.prefill_tokens as f64 / window / gpus(pool),
        decode_tokens_per_s_per_gpu: pool.decode_tokens as f64 / window / gpus(pool),
        decode_batch: pool.decode_sequences as f64 / (pool.decode.steps.max(1)) as f64,
        decode_step_s: mean_step(&pool.decode),
        prefill_step_s: mean_step(&pool.prefill),
        kv_capacity_tokens: capacity,
        kv_occupancy_mean: pool.kv_token_steps as f64
            / (steps.max(1) as f64 * capacity.max(1) as f64),
        kv_occupancy_peak: pool.kv_peak_blocks as f64 / pool.kv_blocks.max(1) as f64,
        preemptions: pool.preemptions,
        memory: Some(serving_detail::memory(plan, index, pool)),
        roofline: Some(serving_detail::roofline(plan, record, index)),
        links: serving_detail::links(plan, record, index),
    }
}

fn latency(spans: &Spans) -> Latency {
    Latency {
        mean: spans.mean_s(),
        p50: spans.quantile_s(0.5),
        p90: spans.quantile_s(0.9),
        p99: spans.quantile_s(0.99),
    }
}

fn by_level(bytes: impl Fn(Level) -> f64) -> ByLevel {
    ByLevel {
        nvlink: bytes(Level::NvLink),
        leaf: bytes(Level::Leaf),
        spine: bytes(Level::Spine),
        core: bytes(Level::Core),
    }
}

/// `done` of all pools' steps of one kind, over what the GPUs could have done meanwhile.
fn utilisation(
    plan: &FleetPlan,
    record: &ServingRecord,
    work: fn(&PoolRecord) -> &Work,
    done: fn(&Work) -> u128,
    peak: &dyn Fn(usize) -> f64,
) -> Option<f64> {
    let _ = plan;
    let mut sum = 0.0;
    let mut possible = 0.0;
    for (index, pool) in record.pools.iter().enumerate() {
        let work = work(pool);
        sum += done(work) as f64;
        possible += work.time_ps as f64 * 1e-12 * f64::from(pool.gpus) * peak(index);
    }
    (possible > 0.0).then(|| sum / possible)
}

fn serving(plan: &FleetPlan, record: &ServingRecord) -> Serving {
    let window = record.window.as_secs_f64();
    let all = record.gpus() as f64;
    let output = record.output_tokens as f64;
    let flops = |index: usize| plan.instances[index].native_peak();
    let memory = |index: usize| {
        let cluster = plan.setup.pools[index].cluster;
        plan.setup.clusters[cluster]
            .node
            .accelerator
            .memory_bandwidth
            .as_f64()
    };
    let both = |done: fn(&Work) -> u128, peak: &dyn Fn(usize) -> f64| ByPhase {
        prefill: utilisation(plan, record, |pool| &pool.prefill, done, peak),
        decode: utilisation(plan, record, |pool| &pool.decode, done, peak),
    };
    let tpot = latency(&record.tpot);
    let slo = &plan.setup.slo;
    let limited = slo.ttft.is_some() || slo.tpot.is_some() || slo.e2e.is_some();
    let racks = all / f64::from(plan.setup.clusters[0].node.rack.gpus.max(1));
    let traffic = |level: Level| {
        let of = |work: &Work| work.wire[level as usize] as f64;
        record
            .pools
            .iter()
            .map(|pool| of(&pool.prefill) + of(&pool.decode))
            .sum()
    };
    let [queued, loading, prefill, transfer, decode, preempted] = Phase::ALL
        .map(|phase| record.phases[phase as usize] as f64 * 1e-12 / record.measured.max(1) as f64);
    Serving {
        window_s: window,
        requests_measured: record.measured,
        requests_answered: record.answered,
        requests_refused: record.refused,
        ttft_s: latency(&record.ttft),
        tpot_s: tpot,
        e2e_s: latency(&record.e2e),
        output_tokens_per_s: output / window,
        output_tokens_per_s_per_gpu: output / window / all,
        output_tokens_per_s_per_rack: output / window / racks,
        total_tokens_per_s: (output + record.input_tokens as f64) / window,
        requests_per_s: record.measured as f64 / window,
        requests_per_s_per_gpu: record.measured as f64 / window / all,
        tokens_per_s_per_user: if tpot.mean > 0.0 {
            1.0 / tpot.mean
        } else {
            0.0
        },
        slo_attainment: limited.then(|| record.inside_slo as f64 / record.measured.max(1) as f64),
        mfu: both(|work| work.flops, &flops),
        mbu: both(|work| work.bytes, &memory),
        kv: kv(record),
        step_traffic_bytes: by_level(traffic),
        phases_s: Phases {
            queued,
            loading,
            prefill,
            transfer,
            decode,
            preempted,
        },
        usd_per_million_output_tokens: usd(plan, record).map(|usd| usd / output * 1e6),
        joules_per_output_token: joules(plan, record) / output,
    }
}

/// Rent of all GPUs over the window.
fn usd(plan: &FleetPlan, record: &ServingRecord) -> Option<f64> {
    let hours = record.window.as_secs_f64() / 3600.0;
    let rent = record
        .pools
        .iter()
        .zip(&plan.setup.pools)
        .map(|(pool, setup)| {
            let accelerator = &plan.setup.clusters[setup.cluster].node.accelerator;
            accelerator
                .price
                .map(|price| price.get() * gpus(pool) * hours)
        });
    rent.sum()
}

/// Energy of the GPUs' share of their racks over the window.
fn joules(plan: &FleetPlan, record: &ServingRecord) -> f64 {
    let power = record
        .pools
        .iter()
        .zip(&plan.setup.pools)
        .map(|(pool, setup)| {
            let rack = &plan.setup.clusters[setup.cluster].node.rack;
            rack.power.watts() / f64::from(rack.gpus.max(1)) * gpus(pool)
        });
    power.sum::<f64>() * record.window.as_secs_f64()
}

fn kv(record: &ServingRecord) -> Kv {
    let kv = &record.kv;
    let asked = kv.prompt_tokens.max(1) as f64;
    let mut tokens = 0.0;
    let mut room = 0.0;
    for pool in &record.pools {
        let steps = (pool.prefill.steps + pool.decode.steps) as f64;
        tokens += pool.kv_token_steps as f64;
        room += steps * pool.kv_blocks as f64 * f64::from(pool.block_size);
    }
    let peak = record
        .pools
        .iter()
        .map(|pool| pool.kv_peak_blocks as f64 / pool.kv_blocks.max(1) as f64)
        .fold(0.0, f64::max);
    Kv {
        hit_rate: kv.hit_tokens as f64 / asked,
        loaded_rate: kv.loaded_tokens as f64 / asked,
        transfers: kv.transfers,
        exposed_transfer_s: latency(&kv.exposed),
        transfer_bytes: by_level(|level| kv.sent[level as usize] as f64),
        spared_bytes: kv.spared,
        tiers: kv
            .tiers
            .iter()
            .map(|tier| TierReport {
                medium: tier.medium.key().into(),
                read_bytes: tier.read as f64,
                written_bytes: tier.written as f64,
            })
            .collect(),
        occupancy_mean: if room > 0.0 { tokens / room } else { 0.0 },
        occupancy_peak: peak,
        preemptions: record.pools.iter().map(|pool| pool.preemptions).sum(),
    }
}

/// GPUs of each rack that serve, over all clusters: first GPU and its end.
fn rack_ranges(plan: &FleetPlan) -> Vec<std::ops::Range<u32>> {
    let used = plan
        .setup
        .pools
        .iter()
        .zip(&plan.instances)
        .map(|(pool, instance)| pool.first_gpu + pool.replicas * instance.gpus())
        .max()
        .unwrap_or(0);
    let mut first = 0;
    let mut ranges = Vec::new();
    for (cluster, map) in plan.setup.clusters.iter().zip(&plan.maps) {
        let racks = map.racks();
        ranges.extend(
            racks
                .iter()
                .map(|rack| rack.start + first..(rack.end + first).min(used))
                .filter(|rack| rack.start < rack.end),
        );
        first += cluster.gpus;
    }
    ranges
}

/// A GPU delivers what its replica does, spread evenly.
fn racks(plan: &FleetPlan, record: &ServingRecord) -> Vec<Rack> {
    let useful = |accounts: &Accounts, gpus: u32| {
        accounts.seconds(rackflow_plan::Cause::UsefulMath)
            / (record.window.as_secs_f64() * f64::from(gpus))
    };
    let rack = |(id, range): (usize, std::ops::Range<u32>)| {
        let mut rack = Rack {
            id: id as u64,
            gpus: 0,
            effective_flops: 0.0,
            peak_flops: 0.0,
            fraction: 0.0,
        };
        for (index, pool) in record.pools.iter().enumerate() {
            let peak = plan.instances[index].native_peak();
            for (replica, accounts) in pool.accounts.iter().enumerate() {
                let first = plan.setup.pools[index].first_gpu + replica as u32 * pool.gpus;
                let here = (first + pool.gpus)
                    .min(range.end)
                    .saturating_sub(first.max(range.start));
                rack.gpus += u64::from(here);
                rack.peak_flops += peak * f64::from(here);
                rack.effective_flops += peak * f64::from(here) * useful(accounts, pool.gpus);
            }
        }
        rack.fraction = if rack.peak_flops > 0.0 {
            rack.effective_flops / rack.peak_flops
        } else {
            0.0
        };
        rack
    };
    rack_ranges(plan)
        .into_iter()
        .enumerate()
        .map(rack)
        .collect()
}

/// How answers are produced, in a few words.
pub(crate) fn decoder(decoder: Decoder) -> String {
    match decoder {
        Decoder::Autoregressive => "one token per step".into(),
        Decoder::Speculative(guess) => {
            let which = match guess.acceptance {
                Acceptance::Each(each) => format!("each accepted with probability {each}"),
                Acceptance::ByDepth(depths) => {
                    let shares: Vec<String> = depths.shares().iter().map(f64::to_string).collect();
                    format!(
                        "accepted up to each depth in {} of the steps",
                        shares.join(", ")
                    )
                }
                Acceptance::Beta { mean, sd } => {
                    format!("each accepted with a probability of {mean} \u{b1} {sd} over requests")
                }
            };
            format!("{} guesses per step, {which}", guess.draft_tokens)
        }
        Decoder::BlockDiffusion { block, steps } => {
            format!("diffusion, blocks of {block} tokens in {steps} steps")
        }
        Decoder::FullDiffusion {
            tokens_per_step, ..
        } => format!("diffusion over the whole answer, {tokens_per_step} tokens per step"),
    }
}

/// Whether a pool computes prompts.
pub(crate) fn computes_prompts(role: &str) -> bool {
    role != Role::Decode.key()
}
