//! What the simulator says about one published serving run.

use super::closed_loop::{self, Arrivals, Load, Served};
use rackflow_plan::serving::{Duty, Instance, PrefillChunk, StepBatch};
use rackflow_scenario::published::serving::{Pool, ServingRun, ServingSetup};
use rackflow_topology::{Cluster, ClusterMap};

/// What comes out; absent is not asked for.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Predicted {
    /// Output tokens per second and GPU.
    pub out_tok_s_per_gpu: Option<f64>,
    /// Time to first token [s].
    pub ttft_s: Option<f64>,
    /// Time per output token after the first [s].
    pub tpot_s: Option<f64>,
}

/// Why nothing comes out, and what it is in this row.
pub type Refused = (&'static str, String);

/// Most steps of one row: what takes more is not compared.
const MOST_STEPS: u64 = 4_000_000;

pub fn predict(run: &ServingRun, setup: &mut ServingSetup) -> Result<Predicted, Refused> {
    match run.kind.as_str() {
        "static_batch" | "phase_latency" | "ttft_bs1" => static_batch(run, setup),
        "serving" => maximum_load(run, setup),
        "online" => online(run, setup),
        "e2e_agg" => aggregated(run, setup),
        "e2e_disagg" => disaggregated(run, setup),
        other => Err(("kind not known", other.to_owned())),
    }
}

fn instance(pool: &Pool, cluster: &Cluster) -> Result<Instance, Refused> {
    let map =
        ClusterMap::new(cluster).map_err(|error| ("the cluster is refused", error.to_string()))?;
    let gpus: Vec<u32> = (0..pool.deployment.parallelism.gpus()).collect();
    Instance::new(&pool.deployment, cluster, &map, &gpus)
        .map_err(|error| ("the plan is refused", error.to_string()))
}

/// All prompts in one step, then steps of generation in lockstep.
fn static_batch(run: &ServingRun, setup: &mut ServingSetup) -> Result<Predicted, Refused> {
    let batch = run.batch.unwrap_or(1).max(1);
    if batch.saturating_mul(run.isl) > 100_000_000 || run.osl > 1_000_000 {
        return Err(("too large to be simulated", String::new()));
    }
    // A benchmark of seconds after a pause.
    setup.decode.deployment.duty = Duty::Burst;
    // The engine is built for this batch: its activations are those of these prompts, in pieces.
    setup.decode.deployment.max_batched_tokens = (batch * run.isl).clamp(1, 16_384);
    let instance = instance(&setup.decode, &setup.cluster)?;
    let stack = &setup.decode.deployment.stack;
    let prompts = vec![
        PrefillChunk {
            new_tokens: run.isl.max(1),
            cached_tokens: 0,
        };
        batch as usize
    ];
    let prefill = instance
        .step(&StepBatch::prefill(&prompts))
        .time
        .as_secs_f64();
    let steps = run.osl.saturating_sub(1);
    let mut generation = 0.0;
    let stride = (steps / 64).max(1);
    let mut done = 0;
    while done < steps {
        let span = stride.min(steps - done);
        let context = run.isl + done + span.div_ceil(2);
        let step = instance.step(&StepBatch::decode(batch, batch * context));
        generation += step.time.as_secs_f64() * span as f64;
        done += span;
    }
    let total = prefill + generation + stack.request_overhead.as_secs_f64();
    let gpus = f64::from(setup.decode.deployment.parallelism.gpus());
    Ok(Predicted {
        out_tok_s_per_gpu: Some((batch * run.osl) as f64 / total / gpus),
        ttft_s: Some(prefill + stack.request_overhead.as_secs_f64()),
        tpot_s: (steps > 0).then(|| generation / steps as f64),
    })
}

fn sized(run: &ServingRun, requests: u64) -> Result<(), Refused> {
    let steps = requests.saturating_mul(run.osl.max(1)) / 8;
    if run.isl == 0 || run.osl == 0 || steps > MOST_STEPS * 64 {
        return Err(("too large to be simulated", String::new()));
    }
    Ok(())
}

/// Every request waits from the start; the engine takes as many at a time as it can.
fn maximum_load(run: &ServingRun, setup: &mut ServingSetup) -> Result<Predicted, Refused> {
    setup
        .assumed
        .push("batch: as many sequences as the cache and the engine's limit hold");
    let requests = requests_of(run);
    sized(run, requests)?;
    let instance = instance(&setup.decode, &setup.cluster)?;
    let served = closed_loop::aggregated(
        &instance,
        &Load {
            requests,
            concurrency: u64::MAX,
            arrivals: Arrivals::AtOnce,
            isl: run.isl,
            osl: run.osl,
            spread: 1.0,
        },
    )?;
    Ok(predicted(run, &served))
}

/// Requests that the TensorRT-LLM overview sends for each pair of lengths (perf-overview.md, v0.14 to
/// v1.0); where it prints none, as many tokens as in the nearest pair.
fn requests_of(run: &ServingRun) -> u64 {
    match (run.isl, run.osl) {
        (128, 128) => 30_000,
        (128, 2048) | (2048, 128) | (500, 2000) | (1000, 1000) | (1024, 1024) => 3000,
        (128, 4096) | (1000, 2000) | (2048, 2048) | (5000, 500) | (8192, 1024) => 1500,
        (20_000, 2000) => 1000,
        _ => (3_000_000 / run.osl.max(1)).clamp(500, 30_000),
    }
}

/// Poisson arrivals at the published rate; `INF` is all at once. The source sends 500 requests.
fn online(run: &ServingRun, setup: &mut ServingSetup) -> Result<Predicted, Refused> {
    const REQUESTS: u64 = 500;
    sized(run, REQUESTS)?;
    let arrivals = match run.qps.as_deref() {
        Some("INF") => Arrivals::AtOnce,
        Some(text) => match text.parse::<f64>() {
            Ok(rate) if rate > 0.0 && rate.is_finite() => Arrivals::Poisson(rate),
            _ => return Err(("request rate not understood", text.to_owned())),
        },
        None => return Err(("no request rate", String::new())),
    };
    setup
        .assumed
        .push("lengths: as stated on average, uneven as a Poisson stream of prompts");
    let instance = instance(&setup.decode, &setup.cluster)?;
    let served = closed_loop::aggregated(
        &instance,
        &Load {
            requests: REQUESTS,
            concurrency: u64::MAX,
            arrivals,
            isl: run.isl,
            osl: run.osl,
            spread: 0.5,
        },
    )?;
    Ok(predicted(run, &served))
}

/// A closed loop at the published number of requests in flight, lengths from 0.8 of the stated ones up
/// as InferenceMAX draws them.
fn closed(run: &ServingRun) -> Result<Load, Refused> {
    let Some(concurrency) = run.concurrency.or(run.batch).filter(|c| *c > 0) else {
        return Err(("no number of requests in flight", String::new()));
    };
    // InferenceMAX sends ten times as many requests as are in flight.
    let requests = (concurrency.min(100_000) * 10).clamp(16, 60_000);
    sized(run, requests)?;
    Ok(Load {
        requests,
        concurrency,
        arrivals: Arrivals::AtOnce,
        isl: run.isl,
        osl: run.osl,
        spread: 0.8,
    })
}

fn aggregated(run: &ServingRun, setup: &mut ServingSetup) -> Result<Predicted, Refused> {
    let load = closed(run)?;
    setup
        .assumed
        .push("lengths: uniform from 0.8 of the stated ones; no speculation; no prefix in common");
    let instance = instance(&setup.decode, &setup.cluster)?;
    let served = closed_loop::aggregated(&instance, &load)?;
    Ok(predicted(run, &served))
}

fn disaggregated(run: &ServingRun, setup: &mut ServingSetup) -> Result<Predicted, Refused> {
    let load = closed(run)?;
    setup
        .assumed
        .push("lengths: uniform from 0.8 of the stated ones; no speculation; no prefix in common");
    let Some(prefill) = &setup.prefill else {
        return Err(("parallel plan not understood", run.parallelism.clone()));
    };
    let served = closed_loop::disaggregated(
        &instance(prefill, &setup.cluster)?,
        prefill.replicas,
        &instance(&setup.decode, &setup.cluster)?,
        setup.decode.replicas,
        &load,
        setup.cluster.node.nic.rate.as_f64(),
    )?;
    Ok(predicted(run, &served))
}

fn predicted(run: &ServingRun, served: &Served) -> Predicted {
    Predicted {
        out_tok_s_per_gpu: Some(served.out_tok_s / f64::from(run.n_gpus.max(1))),
        ttft_s: Some(served.mean_ttft_s),
        tpot_s: Some(served.mean_tpot_s),
    }
}
