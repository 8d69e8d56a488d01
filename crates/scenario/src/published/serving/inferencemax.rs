//! What InferenceMAX's scripts pass to the engines (SemiAnalysisAI/InferenceX, `benchmarks/*.sh` and
//! `benchmarks/single_node/*.sh`, at the end of 2025 and in the first half of 2026).

use super::ServingRun;
use rackflow_workload::serving::{Acceptance, Draft, ServingParallelism, Speculation};
use rackflow_workload::{BatchWait, EngineConfig};

/// What guesses tokens ahead. The image of a run names the script it was for: of TensorRT-LLM's on
/// Blackwell, `1.2.0rc6.post3` is that of `dsr1-*-b200-trt-mtp` ("MTP=3, or MTP=1 when DP_ATTN=true").
/// TensorRT-LLM's tech blog 1 has the tokens that a step gains: 1.92 with one guess, 2.82 with three.
pub(super) fn guesses(
    run: &ServingRun,
    model: &str,
    plan: &ServingParallelism,
) -> Option<Speculation> {
    let name = run.engine.as_deref().unwrap_or("");
    let release = run.engine_version.as_deref().unwrap_or("");
    let its = name.starts_with("trt") && model == "deepseek-v3" && release == "1.2.0rc6.post3";
    let (draft_tokens, acceptance) = if plan.data > 1 { (1, 0.92) } else { (3, 0.77) };
    its.then_some(Speculation {
        draft: Draft::Mtp,
        draft_tokens,
        acceptance: Acceptance::Each(acceptance),
    })
}

/// Sets what the script for this model, engine and accelerator sets. Returns the tokens of one step
/// where it says them.
pub(super) fn arguments(
    run: &ServingRun,
    model: &str,
    blackwell: bool,
    plan: &ServingParallelism,
    engine: &mut EngineConfig,
) -> Option<u64> {
    let gpus = plan.stage_gpus();
    let name = run.engine.as_deref().unwrap_or("");
    let tokens = if name.starts_with("sglang") {
        sglang(run, model, blackwell, engine)
    } else if name.starts_with("trt") {
        let queries = 1 + guesses(run, model, plan).map_or(0, |guess| guess.draft_tokens);
        tensorrt_llm(run, model, blackwell, (gpus, queries), engine)
    } else {
        return None;
    };
    // The engine counts them for each attention group, the simulator for all together.
    engine.max_num_batched_tokens = tokens.saturating_mul(plan.data.max(1));
    Some(u64::from(tokens))
}

/// `--chunked-prefill-size`, `--max-running-requests` and `--scheduler-recv-interval`.
fn sglang(run: &ServingRun, model: &str, blackwell: bool, engine: &mut EngineConfig) -> u32 {
    let fp4 = run.precision.contains("fp4");
    let poll = if run.concurrency.unwrap_or(0) < 16 {
        10
    } else {
        30
    };
    let (tokens, sequences, poll) = match (model, blackwell, fp4) {
        (m, true, true) if m.starts_with("deepseek") => (16_384, 256, poll),
        (m, true, false) if m.starts_with("deepseek") => (32_768, 128, poll),
        (m, false, _) if m.starts_with("deepseek") => (32_768, 256, 1),
        (m, true, true) if m.starts_with("glm") => (32_768, u32::MAX, 10),
        (m, _, _) if m.starts_with("glm") => (32_768, u32::MAX, 1),
        (_, true, _) => (32_768, 128, poll),
        (_, false, _) => (16_384, 128, 1),
    };
    engine.max_num_seqs = engine.max_num_seqs.min(sequences);
    engine.poll_interval = poll;
    tokens
}

/// `--max_num_tokens`, `batch_wait_timeout_iters` and `batch_wait_max_tokens_ratio`; prompts are whole,
/// since no script sets `enable_chunked_prefill`.
fn tensorrt_llm(
    run: &ServingRun,
    model: &str,
    blackwell: bool,
    (gpus, queries): (u32, u32),
    engine: &mut EngineConfig,
) -> u32 {
    engine.chunked_prefill = false;
    // A damaged row may hold any number.
    let sum = |parts: [u64; 3]| {
        let sum = parts.into_iter().fold(0, u64::saturating_add);
        sum.min(u64::from(u32::MAX) - 64)
    };
    let narrow = |tokens: u64| u32::try_from(tokens).unwrap_or(u32::MAX);
    let short = run.isl == 1024 && run.osl == 1024;
    let in_flight = run.concurrency.unwrap_or(0);
    if model.starts_with("gpt-oss") {
        return 20_000;
    }
    if model.starts_with("llama") {
        if short && gpus < 8 {
            engine.batch_wait = Some(BatchWait {
                steps: 20,
                budget: 0.9,
            });
        }
        let longest = narrow(sum([run.isl, run.osl, 200]));
        return if blackwell { 16_384 } else { longest };
    }
    if short && blackwell && in_flight >= 64 && !run.precision.contains("fp4") {
        engine.batch_wait = Some(BatchWait {
            steps: 40,
            budget: 0.8,
        });
    }
    let generated = in_flight.saturating_mul(u64::from(queries));
    let fitted = narrow(sum([generated, run.isl, 64]).next_multiple_of(64));
    let early = run
        .engine_version
        .as_deref()
        .is_some_and(|release| release.starts_with("1.0") || release.starts_with("1.1"));
    if early { fitted } else { fitted.max(8192) }
}
