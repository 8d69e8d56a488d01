//! What the simulator says about one published serving run: the row becomes a fleet and its requests,
//! and the fleet is run as `rackflow run` runs one.

use rackflow_plan::serving::{Duty, FleetSetup, compile_fleet};
use rackflow_scenario::published::serving::{ServingRun, ServingSetup, Spread};
use rackflow_simulator::serving::{Fleet, NoSink, serve};
use rackflow_units::{RequestRate, SimDuration};
use rackflow_workload::{Arrivals, Length, RequestPlan, Scheduler, Shapes};

/// What comes out; absent is not asked for.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Predicted {
    /// Output tokens per second and GPU.
    pub out_tok_s_per_gpu: Option<f64>,
    /// Mean time to first token [s].
    pub ttft_s: Option<f64>,
    /// Mean time per output token after the first [s].
    pub tpot_s: Option<f64>,
}

/// Why nothing comes out, and what it is in this row.
pub type Refused = (&'static str, String);

/// Most output tokens of one row: what has more is not compared.
const MOST_TOKENS: u64 = 256_000_000;

pub fn predict(run: &ServingRun, setup: &mut ServingSetup) -> Result<Predicted, Refused> {
    let fleet = match run.kind.as_str() {
        "static_batch" | "phase_latency" | "ttft_bs1" => static_batch(run, setup)?,
        "serving" => maximum_load(run, setup)?,
        "online" => online(run, setup)?,
        "e2e_agg" => closed_loop(run, setup)?,
        "e2e_disagg" if setup.prefill.is_some() => closed_loop(run, setup)?,
        "e2e_disagg" => return Err(("parallel plan not understood", run.parallelism.clone())),
        other => return Err(("kind not known", other.to_owned())),
    };
    let batch = match run.kind.as_str() {
        // It ran, so the cache held it, whatever the engine kept free.
        "static_batch" | "phase_latency" | "ttft_bs1" => run.batch.unwrap_or(1).max(1),
        _ => 0,
    };
    simulate(run, fleet, batch)
}

/// The path of `rackflow run`, from the meaning of a scenario to its record. The cache holds `batch`
/// requests at least.
fn simulate(run: &ServingRun, setup: FleetSetup, batch: u64) -> Result<Predicted, Refused> {
    let plan = compile_fleet(setup).map_err(|error| ("the plan is refused", error.to_string()))?;
    let mut fleet = Fleet::of(&plan);
    let pool = &mut fleet.pools[0];
    let block = u64::from(pool.engine.block_size);
    let each = (run.isl + run.osl).next_multiple_of(block);
    pool.kv_tokens = pool.kv_tokens.max(batch.saturating_mul(each));
    let record = serve(&fleet, None, &mut NoSink)
        .map_err(|error| ("no request could be served", error.to_string()))?;
    if record.refused > 0 {
        return Err((
            "the cache does not hold one request",
            format!(
                "{} of {} tokens",
                run.isl + run.osl,
                plan.instances[0].kv_capacity_tokens()
            ),
        ));
    }
    let rate = record.output_tokens as f64 / record.window.as_secs_f64();
    Ok(Predicted {
        out_tok_s_per_gpu: Some(rate / f64::from(run.n_gpus.max(1))),
        ttft_s: Some(record.ttft.mean_s()),
        tpot_s: (record.tpot.count() > 0).then(|| record.tpot.mean_s()),
    })
}

/// So many requests, with lengths of `spread` of the stated ones and more.
fn requests(
    run: &ServingRun,
    arrivals: Arrivals,
    count: u64,
    spread: impl Fn(u32) -> Length,
) -> Result<RequestPlan, Refused> {
    let tokens = |stated: u64| u32::try_from(stated).ok().filter(|tokens| *tokens > 0);
    let too_large = count.saturating_mul(run.osl) > MOST_TOKENS || run.isl > 10_000_000;
    let (Some(input), Some(output), false) = (tokens(run.isl), tokens(run.osl), too_large) else {
        return Err(("too large to be simulated", String::new()));
    };
    Ok(RequestPlan {
        shapes: Shapes::Drawn {
            input: spread(input),
            output: spread(output),
            sessions: None,
            count,
        },
        arrivals: Some(arrivals),
        rate_scale: 1.0,
        warm_up: SimDuration::ZERO,
        measure_for: None,
        priorities: 1,
    })
}

/// All prompts in one step, then steps of generation in lockstep.
fn static_batch(run: &ServingRun, setup: &mut ServingSetup) -> Result<FleetSetup, Refused> {
    let batch = run.batch.unwrap_or(1).max(1);
    let prompts = batch.saturating_mul(run.isl);
    let (Ok(prompts), Ok(sequences)) = (u32::try_from(prompts), u32::try_from(batch)) else {
        return Err(("too large to be simulated", String::new()));
    };
    let deployment = &mut setup.decode.deployment;
    // A benchmark of seconds after a pause.
    deployment.duty = Duty::Burst;
    // The engine is built for this batch: its activations are those of these prompts, in pieces.
    deployment.max_batched_tokens = u64::from(prompts).clamp(1, 16_384);
    let requests = requests(run, Arrivals::Burst {}, batch, Length::Fixed)?;
    let mut fleet = setup.fleet(&run.id, requests);
    let engine = &mut fleet.pools[0].engine;
    engine.scheduler = Scheduler::Static;
    engine.max_num_batched_tokens = prompts;
    engine.max_num_seqs = sequences;
    Ok(fleet)
}

/// Every request waits from the start; the engine takes as many at a time as it can.
fn maximum_load(run: &ServingRun, setup: &mut ServingSetup) -> Result<FleetSetup, Refused> {
    setup
        .assumed
        .push("batch: as many sequences as the cache and the engine's limit hold");
    let requests = requests(run, Arrivals::Burst {}, requests_of(run), Length::Fixed)?;
    Ok(setup.fleet(&run.id, requests))
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
fn online(run: &ServingRun, setup: &mut ServingSetup) -> Result<FleetSetup, Refused> {
    const REQUESTS: u64 = 500;
    let arrivals = match run.qps.as_deref() {
        Some("INF") => Arrivals::Burst {},
        Some(text) => match text.parse::<f64>() {
            Ok(rate) if rate > 0.0 && rate.is_finite() => Arrivals::Poisson {
                rate: RequestRate::from_per_sec(rate),
            },
            _ => return Err(("request rate not understood", text.to_owned())),
        },
        None => return Err(("no request rate", String::new())),
    };
    let (spread, assumed): (fn(u32) -> Length, _) = match run.lengths {
        Some(Spread::Conversations) => (
            uneven,
            "lengths: as stated on average, as uneven as ShareGPT's conversations",
        ),
        Some(Spread::Fixed) => (Length::Fixed, "lengths: as stated, since all reach a limit"),
        None => (Length::Fixed, "lengths: as stated, all alike"),
    };
    setup.assumed.push(assumed);
    let requests = requests(run, arrivals, REQUESTS, spread)?;
    Ok(setup.fleet(&run.id, requests))
}

/// Log-normal lengths with this mean, cut at 1,024 tokens as vLLM's benchmark of ShareGPT cuts its
/// conversations. Their spread is assumed.
fn uneven(mean: u32) -> Length {
    const SIGMA: f64 = 0.8;
    // exp(-SIGMA^2 / 2)
    const MEDIAN_OVER_MEAN: f64 = 0.726;
    Length::LogNormal {
        median: ((f64::from(mean) * MEDIAN_OVER_MEAN).round() as u32).max(1),
        sigma: SIGMA,
        max: mean.max(1024),
    }
}

/// A closed loop at the published number of requests in flight, and ten times as many requests.
/// InferenceMAX draws lengths from 0.8 of the stated ones up; others ask for what they state.
fn closed_loop(run: &ServingRun, setup: &mut ServingSetup) -> Result<FleetSetup, Refused> {
    let Some(concurrency) = run.concurrency.or(run.batch).filter(|c| *c > 0) else {
        return Err(("no number of requests in flight", String::new()));
    };
    let drawn = run.by_inferencemax();
    setup.assumed.push(if drawn {
        "lengths: uniform from 0.8 of the stated ones; no prefix in common"
    } else {
        "lengths: as stated, all alike; no prefix in common"
    });
    let concurrency = u32::try_from(concurrency).unwrap_or(u32::MAX);
    let arrivals = Arrivals::ClosedLoop { concurrency };
    let count = (u64::from(concurrency.min(100_000)) * 10).clamp(16, 60_000);
    let requests = requests(run, arrivals, count, |stated| {
        if drawn {
            Length::Uniform {
                min: (f64::from(stated) * 0.8) as u32,
                max: stated,
            }
        } else {
            Length::Fixed(stated)
        }
    })?;
    Ok(setup.fleet(&run.id, requests))
}
