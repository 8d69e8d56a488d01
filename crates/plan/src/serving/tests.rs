//! Promises of a step: accounts, monotony, closed forms.

use super::{Instance, PrefillChunk, ServingError, StepBatch, StepCost};
use crate::cause::{Cause, CommKind};
use rackflow_scenario::Catalogue;
use rackflow_topology::{Cluster, ClusterMap, Level};
use rackflow_workload::serving::{
    Acceptance, Deployment, Draft, ServingParallelism, ServingPrecision, Speculation, WeightFormat,
};

fn cluster(node: &str, gpus: u32) -> Cluster {
    let catalogue = Catalogue::builtin();
    let node = catalogue.node(node).expect("a node of the catalogue");
    Cluster {
        parts: Vec::new(),
        gpus: gpus.next_multiple_of(node.gpus),
        fabric: catalogue
            .fabric("ib-two-tier")
            .expect("a fabric of the catalogue")
            .clone(),
        node,
    }
}

fn deployment(
    model: &str,
    plan: ServingParallelism,
    format: WeightFormat,
    stack: &str,
) -> Deployment {
    let catalogue = Catalogue::builtin();
    Deployment::new(
        catalogue.model(model).expect("a model").clone(),
        ServingPrecision::uniform(format),
        plan,
        catalogue.serving_stack(stack).expect("a stack").clone(),
    )
}

fn instance(node: &str, deployment: &Deployment) -> Result<Instance, ServingError> {
    let gpus = deployment.parallelism.gpus();
    let cluster = cluster(node, gpus);
    let map = ClusterMap::new(&cluster).expect("the cluster nests");
    let gpus: Vec<u32> = (0..gpus).collect();
    Instance::new(deployment, &cluster, &map, &gpus)
}

fn tensor(tensor: u32) -> ServingParallelism {
    ServingParallelism {
        tensor,
        ..ServingParallelism::default()
    }
}

fn wide(data: u32) -> ServingParallelism {
    ServingParallelism {
        data,
        expert: data,
        ..ServingParallelism::default()
    }
}

/// Deployments that differ in every mechanism.
fn instances() -> Vec<(&'static str, Instance)> {
    let bf16 = WeightFormat::Bf16;
    let block = WeightFormat::Fp8Block;
    let mut all = vec![
        (
            "llama 8b",
            instance(
                "hgx-h100",
                &deployment("llama3-8b", tensor(1), bf16, "vllm-0.10"),
            ),
        ),
        (
            "llama 70b tp4 pp2",
            instance(
                "hgx-h100",
                &deployment(
                    "llama3-70b",
                    ServingParallelism {
                        pipeline: 2,
                        ..tensor(4)
                    },
                    bf16,
                    "vllm-2023",
                ),
            ),
        ),
        (
            "gpt-oss windows",
            instance(
                "dgx-b200",
                &deployment(
                    "gpt-oss-120b",
                    tensor(2),
                    WeightFormat::Mxfp4,
                    "tensorrt-llm-1.0",
                ),
            ),
        ),
        (
            "deepseek ep32",
            instance(
                "hgx-h800",
                &deployment("deepseek-v3", wide(32), block, "deepseek-2025"),
            ),
        ),
    ];
    let mut woven = deployment("deepseek-v3", wide(32), block, "deepseek-2025");
    woven.two_batch_overlap = true;
    woven.redundant_experts = 32;
    woven.expert_imbalance = 1.2;
    woven.speculation = Some(Speculation {
        draft: Draft::Mtp,
        draft_tokens: 1,
        acceptance: Acceptance::Each(0.85),
    });
    all.push((
        "deepseek ep32, two batches, guesses",
        instance("hgx-h800", &woven),
    ));
    all.into_iter()
        .map(|(name, instance)| (name, instance.unwrap_or_else(|e| panic!("{name}: {e}"))))
        .collect()
}

fn chunk(new_tokens: u64, cached_tokens: u64) -> PrefillChunk {
    PrefillChunk {
        new_tokens,
        cached_tokens,
    }
}

fn check_accounts(name: &str, instance: &Instance, cost: &StepCost) {
    let gpus = u128::from(instance.gpus());
    assert_eq!(
        cost.causes.total_picos(),
        u128::from(cost.time.as_picos()) * gpus,
        "{name}"
    );
    let useful = cost.causes.seconds(Cause::UsefulMath) + 0.0;
    let wide = cost.causes.seconds(Cause::WiderPrecision);
    assert!(useful + wide > 0.0, "{name}");
    // Useful math is the FLOPs at the native peak, wherever no product runs above that.
    let at_peak = cost.flops / instance.native_peak();
    assert!(
        (useful / at_peak - 1.0).abs() < 1e-3,
        "{name}: {useful} {at_peak}"
    );
    assert!(cost.bytes_read > 0.0 && cost.flops > 0.0);
}

#[test]
fn every_gpu_second_has_one_cause() {
    for (name, instance) in instances() {
        let prompts = [chunk(512, 0), chunk(100, 3000), chunk(8000, 0)];
        for batch in [
            StepBatch::decode(1, 100),
            StepBatch::decode(64, 64 * 2000),
            StepBatch::decode(1000, 1000 * 4000),
            StepBatch::prefill(&prompts[..1]),
            StepBatch::prefill(&prompts),
            StepBatch {
                prefill: &prompts[1..2],
                decode_sequences: 77,
                decode_context_tokens: 77 * 1234,
                tokens_per_sequence: 2,
            },
        ] {
            check_accounts(name, &instance, &instance.step(&batch));
        }
    }
}

#[test]
fn more_work_never_takes_less_time() {
    for (name, instance) in instances() {
        let mut before = 0.0;
        for sequences in [1, 2, 8, 32, 64, 128, 256] {
            let time = instance
                .step(&StepBatch::decode(sequences, sequences * 1000))
                .time
                .as_secs_f64();
            assert!(time >= before * 0.97, "{name} {sequences}: {time} {before}");
            before = time;
        }
        let short = instance.step(&StepBatch::decode(64, 64 * 100)).time;
        let long = instance.step(&StepBatch::decode(64, 64 * 8000)).time;
        // Equal where the host bounds both.
        assert!(long >= short, "{name}");
        let mut before = 0.0;
        for tokens in [16, 256, 1024, 2048, 4096, 8192] {
            let time = instance
                .step(&StepBatch::prefill(&[chunk(tokens, 0)]))
                .time
                .as_secs_f64();
            assert!(time >= before, "{name} {tokens}");
            before = time;
        }
    }
}

/// One sequence reads all weights once: no step is faster than the memory, and a good one is not far.
#[test]
fn a_lone_sequence_waits_for_the_weights() {
    let llama = deployment(
        "llama3-8b",
        tensor(1),
        WeightFormat::Bf16,
        "tensorrt-llm-1.0",
    );
    let instance = instance("hgx-h100", &llama).unwrap();
    let cost = instance.step(&StepBatch::decode(1, 128));
    let read = cost.bytes_read / cost.time.as_secs_f64() / 3.35e12;
    assert!((0.55..0.95).contains(&read), "{read}");
    // 8.03 B parameters without the token table, in 16 bits.
    let weights = (8.03e9 - 0.525e9) * 2.0;
    assert!(
        (cost.bytes_read / weights - 1.0).abs() < 0.02,
        "{}",
        cost.bytes_read
    );
}

#[test]
fn flops_of_a_prompt_are_two_per_weight_and_token() {
    let llama = deployment("llama3-8b", tensor(1), WeightFormat::Bf16, "vllm-0.10");
    let instance = instance("hgx-h100", &llama).unwrap();
    let cost = instance.step(&StepBatch::prefill(&[chunk(4096, 0)]));
    let layers = (8.03e9 - 2.0 * 0.5253e9) * 2.0 * 4096.0;
    let scores = 32.0 * 2.0 * 4096.0 * 4097.0 * 32.0 * 128.0;
    let logits = 2.0 * 0.5253e9;
    assert!(
        (cost.flops / (layers + scores + logits) - 1.0).abs() < 0.01,
        "{}",
        cost.flops
    );
}

#[test]
fn two_batches_hide_what_one_shows() {
    let plan = wide(32);
    let one = deployment("deepseek-v3", plan, WeightFormat::Fp8Block, "deepseek-2025");
    let mut two = one.clone();
    two.two_batch_overlap = true;
    let prompts: Vec<PrefillChunk> = (0..64).map(|_| chunk(4096, 0)).collect();
    let batch = StepBatch::prefill(&prompts);
    let (one, two) = (
        instance("hgx-h800", &one).unwrap().step(&batch),
        instance("hgx-h800", &two).unwrap().step(&batch),
    );
    let exposed = |cost: &StepCost| {
        Level::ALL
            .into_iter()
            .skip(1)
            .map(|level| cost.causes.seconds(Cause::Exposed(CommKind::Expert, level)))
            .sum::<f64>()
    };
    assert!(
        exposed(&two) < 0.5 * exposed(&one),
        "{} {}",
        exposed(&two),
        exposed(&one)
    );
    assert!(two.time < one.time);
    assert!(two.causes.seconds(Cause::Contention) > 0.0);
}

#[test]
fn chosen_keys_make_long_contexts_cheaper_and_short_ones_dearer() {
    let block = WeightFormat::Fp8Block;
    let dense = deployment("deepseek-v3", wide(32), block, "deepseek-2025");
    let sparse = deployment("deepseek-v3.2", wide(32), block, "deepseek-2025");
    let (dense, sparse) = (
        instance("hgx-h800", &dense).unwrap(),
        instance("hgx-h800", &sparse).unwrap(),
    );
    let decode = |instance: &Instance, context: u64| {
        instance
            .step(&StepBatch::decode(32 * 16, 32 * 16 * context))
            .time
            .as_secs_f64()
    };
    assert!(decode(&sparse, 1000) >= decode(&dense, 1000));
    assert!(decode(&sparse, 100_000) < 0.5 * decode(&dense, 100_000));
    let prompts = vec![chunk(2048, 126_976); 32];
    let batch = StepBatch::prefill(&prompts);
    assert!(sparse.step(&batch).time < dense.step(&batch).time);
    check_accounts("sparse", &sparse, &sparse.step(&batch));
    let generation = StepBatch::decode(512, 512 * 20_000);
    check_accounts("sparse", &sparse, &sparse.step(&generation));
    // The indexer's key: 128 bytes and a scale.
    let more = sparse.kv_bytes_per_token() - dense.kv_bytes_per_token();
    assert!((more - 61.0 * 132.0).abs() < 1.0, "{more}");
}

#[test]
fn grouped_latents_are_spread_where_one_is_copied() {
    let block = WeightFormat::Fp8Block;
    let one = deployment("deepseek-v3", tensor(16), block, "sglang-0.5");
    let mut two = one.clone();
    if let rackflow_workload::Attention::Latent {
        latents,
        kv_lora_rank,
        ..
    } = &mut two.model.attention
    {
        // As many cached elements in all, in two latents.
        (*latents, *kv_lora_rank) = (2, 256);
    }
    let (one, two) = (
        instance("hgx-h800", &one).unwrap(),
        instance("hgx-h800", &two).unwrap(),
    );
    assert_eq!(one.kv_bytes_per_token(), 16.0 * 61.0 * 576.0 * 2.0);
    assert_eq!(two.kv_bytes_per_token(), 16.0 * 61.0 * 320.0 * 2.0);
    let batch = StepBatch::decode(64, 64 * 30_000);
    assert!(two.step(&batch).time < one.step(&batch).time);
}

#[test]
fn a_plan_that_does_not_match_is_refused() {
    let refused = |plan: ServingParallelism, model: &str| {
        let d = deployment(model, plan, WeightFormat::Bf16, "vllm-0.10");
        instance("hgx-h100", &d).map(|_| ()).unwrap_err()
    };
    assert!(matches!(
        refused(tensor(1), "llama3-70b"),
        ServingError::Memory { .. }
    ));
    assert!(matches!(
        refused(
            ServingParallelism {
                expert: 3,
                ..tensor(8)
            },
            "qwen3-30b-a3b"
        ),
        ServingError::ExpertGroups { .. }
    ));
    assert!(matches!(
        refused(
            ServingParallelism {
                pipeline: 33,
                ..tensor(1)
            },
            "llama3-8b"
        ),
        ServingError::Stages { .. }
    ));
}

#[test]
fn the_cache_of_a_token_is_counted_where_it_lies() {
    let llama = deployment("llama3-70b", tensor(4), WeightFormat::Fp8, "vllm-0.10");
    let instance_70b = instance("hgx-h100", &llama).unwrap();
    assert_eq!(
        instance_70b.kv_bytes_per_token(),
        80.0 * 2.0 * 8.0 * 128.0 * 2.0
    );
    let deepseek = deployment(
        "deepseek-v3",
        wide(32),
        WeightFormat::Fp8Block,
        "deepseek-2025",
    );
    let wide = instance("hgx-h800", &deepseek).unwrap();
    assert_eq!(wide.kv_bytes_per_token(), 61.0 * 576.0 * 2.0);
    assert!(wide.kv_capacity_tokens() > 32 * wide.memory().cache.get() / 80_000);
}

/// DeepSeek's published day (open-infra-index, day 6): on nodes of eight H800, prefill units of EP32
/// (four nodes, 9 routed experts and a shared one per GPU: 32 copies) read 73.7k tokens per second and
/// node, of which 56.3 % were found in the cache: 32.2k computed. Decode units of EP144 (18 nodes, 2
/// routed experts per GPU: 32 copies) write 14.8k per node at 20 to 22 tokens per second and user, over
/// 4,989 cached tokens of context on average.
mod deepseek_day {
    use super::*;

    fn unit(groups: u32) -> Deployment {
        let mut unit = deployment(
            "deepseek-v3",
            wide(groups),
            WeightFormat::Fp8Block,
            "deepseek-2025",
        );
        unit.two_batch_overlap = true;
        unit.redundant_experts = 32;
        unit
    }

    /// Prompts of log-normal length, the longest first and each to the GPU with the fewest tokens so far,
    /// in the order in which an instance deals them out.
    fn balanced(gpus: usize, per_gpu: usize, mean: f64, sigma: f64, hit: f64) -> Vec<PrefillChunk> {
        let count = gpus * per_gpu;
        let mut dealt: Vec<Vec<f64>> = vec![Vec::new(); gpus];
        for i in (0..count).rev() {
            let share = (i as f64 + 0.5) / count as f64;
            let normal = quantile(share);
            let length = mean * (sigma * normal - sigma * sigma / 2.0).exp();
            let load = |rank: &Vec<f64>| rank.iter().sum::<f64>();
            let least = dealt
                .iter_mut()
                .min_by(|a, b| load(a).total_cmp(&load(b)))
                .expect("there is a GPU");
            least.push(length);
        }
        let most = dealt.iter().map(Vec::len).max().unwrap_or(0);
        (0..most)
            .flat_map(|k| {
                dealt
                    .iter()
                    .map(move |rank| rank.get(k).copied().unwrap_or(0.0))
            })
            .map(|length| chunk((length * (1.0 - hit)) as u64, (length * hit) as u64))
            .collect()
    }

    /// Quantile of the normal distribution (Abramowitz and Stegun 26.2.23).
    fn quantile(share: f64) -> f64 {
        let t = (-2.0 * share.min(1.0 - share).ln()).sqrt();
        let x = t
            - (2.515_517 + 0.802_853 * t + 0.010_328 * t * t)
                / (1.0 + 1.432_788 * t + 0.189_269 * t * t + 0.001_308 * t * t * t);
        if share < 0.5 { -x } else { x }
    }

    fn prefill(per_gpu: usize, mean: f64, spread: f64, hit: f64, imbalance: f64) -> f64 {
        let mut unit = unit(32);
        unit.expert_imbalance = imbalance;
        let instance = instance("hgx-h800", &unit).unwrap();
        let prompts = balanced(32, per_gpu, mean, spread, hit);
        let cost = instance.step(&StepBatch::prefill(&prompts));
        let computed: u64 = prompts.iter().map(|chunk| chunk.new_tokens).sum();
        computed as f64 / cost.time.as_secs_f64() / 4.0
    }

    /// Even prompts of 4,096 tokens, four per GPU, as in DeepSeek's own profile: 7,839 tokens per second
    /// and GPU (measured, as quoted by alibaba/InferSim).
    #[test]
    fn prefill_at_full_load_reaches_the_profile() {
        let per_node = prefill(4, 4096.0, 0.0, 0.0, 1.0);
        println!("prefill {per_node:.0} tokens/s per node");
        assert!((per_node / (8.0 * 7839.0) - 1.0).abs() < 0.15, "{per_node}");
    }

    /// The day's prompts: 56.3 % of their tokens in the cache, 4,700 tokens long on average (the context
    /// less half an answer), log-normal with a spread of 0.5 (that of Azure's conversations of 2023), dealt
    /// by length, 1.2 times the mean load on the busiest experts. How many a GPU takes into one step is not
    /// published: the day's 32.2k lie between two and four.
    #[test]
    fn prefill_of_the_day_lies_between_small_and_full_batches() {
        let [small, full] = [2, 4].map(|per_gpu| prefill(per_gpu, 4700.0, 0.5, 0.563, 1.2));
        println!("prefill {small:.0} to {full:.0} tokens/s per node");
        assert!((small..full).contains(&32_200.0), "{small} {full}");
    }

    #[test]
    fn decode_writes_15k_tokens_per_second_and_node() {
        let instance = instance("hgx-h800", &unit(144)).unwrap();
        // As many sequences as write 14.8k tokens per second and node at 21 each.
        let sequences = (14_800.0_f64 / 21.0 * 18.0) as u64;
        let cost = instance.step(&StepBatch::decode(sequences, sequences * 4989));
        let per_user = 1.0 / cost.time.as_secs_f64();
        let per_node = per_user * sequences as f64 / 18.0;
        println!("decode {per_node:.0} tokens/s per node at {per_user:.1} per user");
        assert!(
            (per_node / 14_800.0).ln().abs() < 0.15_f64.ln_1p(),
            "{per_node}"
        );
        assert!((20.0..22.0).contains(&per_user), "{per_user}");
    }
}
