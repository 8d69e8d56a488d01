//! Published serving runs: facts with sources, read from JSON Lines and turned into deployments.
//!
//! What a source does not say is filled in by a rule about the source, its engine, the checkpoint
//! or the hardware, and noted in [`ServingSetup::assumed`]. No rule looks at a single run.

mod inferencemax;
mod recipes;

use super::{ReadError, json_lines};
use crate::Catalogue;
use rackflow_plan::serving::{FleetSetup, PoolSetup};
use rackflow_topology::Cluster;
use rackflow_workload::serving::{
    Deployment, KvFormat, ServingParallelism, ServingPrecision, WeightFormat,
};
use rackflow_workload::{Decoder, EngineConfig, KvTransfer, RequestPlan, Role, Router, Slo};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::OnceLock;

/// The published serving runs that ship with the catalogue.
pub const SHIPPED: &str = include_str!("../../data/serving.jsonl");

/// What a source measured; absent is not published.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ServingMeasurement {
    /// Output tokens per second of the whole replica.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub out_tok_s: Option<f64>,
    /// Output tokens per second and GPU.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub out_tok_s_per_gpu: Option<f64>,
    /// Time to first token [ms].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ttft_ms: Option<f64>,
    /// Time per output token after the first [ms].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tpot_ms: Option<f64>,
    /// Mean time to first token [ms].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mean_ttft_ms: Option<f64>,
    /// Mean time between tokens [ms].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mean_itl_ms: Option<f64>,
    /// Time of the prompt phase [ms].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prefill_ms: Option<f64>,
    /// From request to last token [ms].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub e2e_ms: Option<f64>,
}

/// One published serving run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ServingRun {
    /// Name of the row.
    pub id: String,
    /// Where it was read.
    pub source: String,
    /// What was measured how: `static_batch`, `phase_latency`, `ttft_bs1`, `serving`, `online`,
    /// `e2e_agg` or `e2e_disagg`.
    pub kind: String,
    /// The model, as the source calls it.
    pub model: String,
    /// The accelerator, as the source calls it.
    pub gpu: String,
    /// How many.
    pub n_gpus: u32,
    /// Number formats, as the source calls them.
    pub precision: String,
    /// The plan, as the source writes it.
    pub parallelism: String,
    /// Sequences at a time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub batch: Option<u64>,
    /// Requests in flight.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub concurrency: Option<u64>,
    /// Requests per second, or `INF`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub qps: Option<String>,
    /// Tokens of a prompt.
    pub isl: u64,
    /// Tokens of an answer.
    pub osl: u64,
    /// How the lengths of the requests lie around these two; left out: as the citation of the source says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lengths: Option<Spread>,
    /// The engine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub engine: Option<String>,
    /// Its release.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub engine_version: Option<String>,
    /// What came out.
    pub measured: ServingMeasurement,
}

/// How the lengths of a run's requests lie around those that its source states.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Spread {
    /// All alike: fixed, or a limit that every answer reaches.
    Fixed,
    /// As uneven as conversations.
    Conversations,
}

/// What is known of the lengths of a source's requests.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Lengths {
    /// Answers of these lengths are a limit that all reach.
    limits: Vec<u64>,
    /// All others.
    others: Spread,
    /// How that is known.
    because: String,
}

/// A citation that rows name by a short word.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Citation {
    source: String,
    citation: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    lengths: Option<Lengths>,
}

impl Citation {
    /// What it says of the lengths of a run, whose source may be named in full.
    fn spread(&self, run: &ServingRun) -> Option<Spread> {
        let lengths = self.lengths.as_ref()?;
        let its = run.source == self.source || run.source == self.citation;
        its.then(|| {
            if lengths.limits.contains(&run.osl) {
                Spread::Fixed
            } else {
                lengths.others
            }
        })
    }
}

/// The citations of the rows that ship.
fn shipped_citations() -> &'static [Citation] {
    static SHIPPED_CITATIONS: OnceLock<Vec<Citation>> = OnceLock::new();
    SHIPPED_CITATIONS.get_or_init(|| {
        let lines = SHIPPED.lines();
        lines
            .filter(|line| line.contains("\"citation\""))
            .map(|line| serde_json::from_str(line).expect("the shipped rows are well formed"))
            .collect()
    })
}

/// Serving runs and what their sources stand for.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct ServingRuns {
    /// The rows.
    pub runs: Vec<ServingRun>,
    /// Full citations by the short names that rows use.
    pub citations: BTreeMap<String, String>,
}

/// Reads JSON Lines of published serving runs; lines with a `citation` explain a `source`. Unknown
/// fields are passed over, empty lines too.
///
/// # Errors
/// When a line is not a JSON object, or an object without what every row must have.
pub fn read(text: &str) -> Result<ServingRuns, ReadError> {
    let mut all = ServingRuns::default();
    let mut citations: Vec<Citation> = Vec::new();
    json_lines(text, |value| {
        let refuse = |error: serde_json::Error| error.to_string();
        if value.get("citation").is_some() {
            citations.push(serde_json::from_value::<Citation>(value).map_err(refuse)?);
        } else {
            all.runs
                .push(serde_json::from_value(value).map_err(refuse)?);
        }
        Ok(())
    })?;
    for run in all.runs.iter_mut().filter(|run| run.lengths.is_none()) {
        let mut known = citations.iter().chain(shipped_citations());
        run.lengths = known.find_map(|citation| citation.spread(run));
    }
    all.citations = citations
        .into_iter()
        .map(|citation| (citation.source, citation.citation))
        .collect();
    Ok(all)
}

impl ServingRun {
    /// Who measured, without the name of the row or of the page: a repository at a commit is one source.
    pub fn group(&self) -> &str {
        let table = self.source.split(" id=").next().unwrap_or(&self.source);
        match table.split_once(' ') {
            Some((repository, _)) if repository.contains('@') => repository,
            _ => table,
        }
    }

    /// Whether InferenceMAX (now InferenceX) measured it: its end-to-end runs ask for 1,024 or 8,192
    /// tokens each way.
    pub fn by_inferencemax(&self) -> bool {
        let its = |tokens| tokens == 1024 || tokens == 8192;
        self.kind.starts_with("e2e") && its(self.isl) && its(self.osl)
    }

    /// Whether the model routes tokens to experts.
    pub fn family(&self, catalogue: &Catalogue) -> &'static str {
        match model(&self.model).and_then(|name| catalogue.model(name)) {
            Some(model) if model.moe.is_some() => "moe",
            _ => "dense",
        }
    }
}

/// Why a run cannot be simulated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unusable {
    /// The same for all rows with this fault.
    pub reason: &'static str,
    /// What it is in this row.
    pub detail: String,
}

/// One pool of equal replicas.
#[derive(Debug, Clone, PartialEq)]
pub struct Pool {
    /// What each replica runs.
    pub deployment: Deployment,
    /// How many there are.
    pub replicas: u32,
    /// With which limits and habits.
    pub engine: EngineConfig,
}

/// A run as deployments.
#[derive(Debug, Clone, PartialEq)]
pub struct ServingSetup {
    /// The hardware.
    pub cluster: Cluster,
    /// What generates, and where nothing is disaggregated, reads prompts too.
    pub decode: Pool,
    /// What reads prompts, where that is apart.
    pub prefill: Option<Pool>,
    /// What the source does not say.
    pub assumed: Vec<&'static str>,
    /// The source did not record what decides the answer, so that the row is simulated and shown but
    /// not scored: why.
    pub not_scored: Option<&'static str>,
}

impl ServingSetup {
    /// The fleet that answers `requests`: what a scenario with this plan means, each pool with the
    /// habits of its stack.
    pub fn fleet(&self, name: &str, requests: RequestPlan) -> FleetSetup {
        let mut cluster = self.cluster.clone();
        let mut pools = Vec::new();
        let mut end = 0;
        let sides = match &self.prefill {
            None => vec![(Role::Both, &self.decode)],
            Some(prefill) => vec![(Role::Prefill, prefill), (Role::Decode, &self.decode)],
        };
        for (role, pool) in sides {
            let gpus = pool.deployment.parallelism.gpus();
            // A replica begins a node where it does not share one.
            let first_gpu = u32::next_multiple_of(end, gpus.clamp(1, cluster.node.gpus));
            end = first_gpu.saturating_add(gpus.saturating_mul(pool.replicas));
            pools.push(PoolSetup {
                role,
                cluster: 0,
                first_gpu,
                replicas: pool.replicas,
                deployment: pool.deployment.clone(),
                engine: pool.engine,
            });
        }
        cluster.gpus = end
            .div_ceil(cluster.node.gpus)
            .saturating_mul(cluster.node.gpus);
        FleetSetup {
            seats: None,
            stragglers: Vec::new(),
            faults: Vec::new(),
            name: name.to_owned(),
            clusters: vec![cluster],
            pools,
            requests,
            decoder: match self.decode.deployment.speculation {
                Some(guess) => Decoder::Speculative(guess),
                None => Decoder::Autoregressive,
            },
            router: Router::LeastRequests,
            transfer: KvTransfer::default(),
            store: Vec::new(),
            slo: Slo::default(),
            assumed: self.assumed.iter().map(|&text| text.to_owned()).collect(),
            seed: 0,
        }
    }
}

/// The catalogue's name of a model.
fn model(name: &str) -> Option<&'static str> {
    let name = name.to_ascii_lowercase();
    let name = name.rsplit('/').next().unwrap_or(&name);
    let plain: String = name
        .chars()
        .filter(|c| !matches!(c, ' ' | '(' | ')' | '-' | '_' | '.'))
        .collect();
    const NAMES: [(&str, &str); 29] = [
        ("gptj6b", "gpt-j-6b"),
        ("mistral7b", "mistral-7b"),
        ("falcon180b", "falcon-180b"),
        ("llama7b", "llama2-7b"),
        ("llama27b", "llama2-7b"),
        ("llama70b", "llama2-70b"),
        ("llama270b", "llama2-70b"),
        ("llama38b", "llama3-8b"),
        ("llama370b", "llama3-70b"),
        ("llama3405b", "llama3-405b"),
        ("llama318b", "llama3-8b"),
        ("llama3170b", "llama3-70b"),
        ("llama31405b", "llama3-405b"),
        ("llama3370b", "llama3-70b"),
        ("llama4maverick", "llama4-maverick"),
        ("llama4scout", "llama4-scout"),
        ("bloom176b", "bloom-176b"),
        ("mixtral8x7b", "mixtral-8x7b"),
        ("mixtral8x22b", "mixtral-8x22b"),
        ("deepseekr1", "deepseek-v3"),
        ("deepseekv3", "deepseek-v3"),
        ("qwen3235ba22b", "qwen3-235b-a22b"),
        ("qwen330ba3b", "qwen3-30b-a3b"),
        ("qwen332b", "qwen3-32b"),
        ("qwen35397ba17b", "qwen3.5-397b-a17b"),
        ("gptoss120b", "gpt-oss-120b"),
        ("gptoss20b", "gpt-oss-20b"),
        ("minimaxm25", "minimax-m2.5"),
        ("glm5", "glm-5"),
    ];
    if plain.starts_with("kimik2") {
        return Some("kimi-k2");
    }
    NAMES
        .iter()
        .filter(|(known, _)| plain.starts_with(known))
        .max_by_key(|(known, _)| known.len())
        .map(|(_, name)| *name)
}

/// The catalogue's node for an accelerator as sources call it.
fn node(gpu: &str) -> Option<&'static str> {
    let gpu = gpu.to_ascii_lowercase();
    const NODES: [(&str, &str); 10] = [
        ("h100-80gb-pcap", "hgx-h100-350w"),
        ("gh200", "gh200-1"),
        ("gb200", "gb200-nvl72"),
        ("gb300", "gb300-nvl72"),
        ("b200", "dgx-b200"),
        ("b300", "dgx-b300"),
        ("h200", "hgx-h200"),
        ("h100", "dgx-h100"),
        ("a100", "dgx-a100"),
        ("l40s", "l40s-8"),
    ];
    NODES
        .iter()
        .find(|(known, _)| gpu.starts_with(known))
        .map(|(_, node)| *node)
}

/// The catalogue's stack for an engine and its release.
fn stack(run: &ServingRun) -> Option<&'static str> {
    let engine = run.engine.as_deref().unwrap_or("").to_ascii_lowercase();
    let release = run.engine_version.as_deref().unwrap_or("");
    if engine.starts_with("splitwise") {
        return Some("vllm-2023");
    }
    if engine.starts_with("vllm") {
        return Some("vllm-0.10");
    }
    if engine.starts_with("sglang") {
        return Some("sglang-0.5");
    }
    // Azure's guide runs TensorRT-LLM and does not repeat its name.
    if engine.starts_with("tensorrt") || engine.starts_with("trt") || engine.is_empty() {
        let is = |releases: &[&str]| releases.iter().any(|v| release.starts_with(v));
        // Dynamo's own releases stand in for the engine's at end-to-end points.
        return Some(if run.kind.starts_with("e2e") {
            "tensorrt-llm-1.0"
        } else if is(&["0.5", "0.6", "0.7"]) {
            "tensorrt-llm-0.7"
        } else if is(&["0.8", "0.9"]) || engine.is_empty() {
            "tensorrt-llm-0.9"
        } else if release.starts_with("0.") {
            "tensorrt-llm-0.17"
        } else {
            "tensorrt-llm-1.0"
        });
    }
    None
}

/// Formats of the checkpoints that sources run, by what they call the precision.
fn precision(
    run: &ServingRun,
    name: &str,
    has_fp8: bool,
    has_fp4: bool,
    assumed: &mut Vec<&'static str>,
) -> Option<ServingPrecision> {
    use WeightFormat::{Bf16, Fp8, Fp8Block, Int4, Mxfp4, Nvfp4};
    let word = run.precision.to_ascii_lowercase();
    // Checkpoints whose authors release them in 8 bits, with a scale per 128 x 128 weights.
    let blocks = ["deepseek", "kimi", "glm-5", "minimax", "qwen3"]
        .iter()
        .any(|family| name.starts_with(family))
        && name != "qwen3-30b-a3b"
        && name != "qwen3-32b";
    let routed_only = |experts: WeightFormat, dense: WeightFormat| ServingPrecision {
        attention: Bf16,
        attention_output: Bf16,
        dense,
        experts,
        dispatch: if experts == Nvfp4 { Nvfp4 } else { Bf16 },
        ..ServingPrecision::uniform(Bf16)
    };
    let mut formats = match word.as_str() {
        _ if name.starts_with("gpt-oss") => routed_only(Mxfp4, Bf16),
        "bf16" | "fp16" => ServingPrecision::uniform(Bf16),
        "unstated" => {
            assumed.push("precision: 16 bits, as the same guide states for A100");
            ServingPrecision::uniform(Bf16)
        }
        "fp8" if blocks => ServingPrecision::uniform(Fp8Block),
        "fp8" => ServingPrecision::uniform(Fp8),
        "int4" => routed_only(Int4, Bf16),
        // NVIDIA's 4-bit checkpoints of mixtures with latent or few heads keep attention wide.
        "fp4" | "nvfp4" if blocks => routed_only(Nvfp4, Nvfp4),
        "fp4" | "nvfp4" => ServingPrecision::uniform(Nvfp4),
        "mxfp4" => routed_only(Mxfp4, Bf16),
        _ => return None,
    };
    // nvidia/DeepSeek-R1-0528-NVFP4-v2, which the recipes and the overview run, "additionally quantizes
    // the wo module in attention layers".
    if name == "deepseek-v3" && formats.experts == Nvfp4 {
        formats.attention_output = Nvfp4;
    }
    let trt = stack(run).is_some_and(|stack| stack.starts_with("tensorrt"));
    // 8-bit checkpoints of these families come without scales for the cache.
    let unscaled = !has_fp4 && (name.starts_with("gpt-oss") || name.starts_with("llama4"));
    let wide = matches!(word.as_str(), "bf16" | "fp16" | "int4" | "unstated");
    let unscaled = unscaled && trt;
    let narrow = !(wide || unscaled);
    // SGLang's recipes set it on Blackwell only, where its attention kernels read it natively.
    let set = stack(run).is_some_and(|stack| !stack.starts_with("sglang") || has_fp4);
    if narrow && set && has_fp8 {
        assumed.push("cache: fp8, as the engines' recipes set it beside fp8 and fp4 weights");
        formats.kv = KvFormat::Fp8;
    }
    Some(formats)
}

/// Numbers after each of `names` in a plan such as `TP4 PP1 attnDP4`.
fn degree(plan: &str, name: &str) -> Option<u32> {
    plan.split(|c: char| !c.is_ascii_alphanumeric())
        .find_map(|word| word.strip_prefix(name)?.parse().ok())
        // No product of three of them overflows.
        .filter(|degree| *degree <= 1000)
}

/// The plan of one replica.
fn parallelism(text: &str, routed: bool) -> Option<ServingParallelism> {
    // Attention data parallelism with experts over the same GPUs.
    if let Some(n) = degree(text, "DEP") {
        return Some(ServingParallelism {
            tensor: 1,
            pipeline: 1,
            data: n,
            expert: n,
        });
    }
    // Tensor parallelism with experts over the same GPUs.
    if let Some(n) = degree(text, "TEP") {
        return Some(ServingParallelism {
            tensor: n,
            pipeline: 1,
            data: 1,
            expert: n,
        });
    }
    let tensor = degree(text, "TP")?.max(1);
    let pipeline = degree(text, "PP").unwrap_or(1).max(1);
    let data = degree(text, "attnDP")
        .or(degree(text, "DP"))
        .unwrap_or(1)
        .max(1);
    let expert = degree(text, "moeEP")
        .or(degree(text, "EP"))
        .unwrap_or(1)
        .max(1);
    if !routed {
        return Some(ServingParallelism {
            tensor,
            pipeline,
            data,
            expert: 1,
        });
    }
    Some(ServingParallelism {
        tensor,
        pipeline,
        data,
        expert,
    })
}

fn unusable<T>(reason: &'static str, detail: impl Into<String>) -> Result<T, Unusable> {
    Err(Unusable {
        reason,
        detail: detail.into(),
    })
}

/// What a run deployed, and on what.
///
/// # Errors
/// When the catalogue does not know its model, accelerator or engine, or its plan makes no sense.
pub fn setup(run: &ServingRun, catalogue: &Catalogue) -> Result<ServingSetup, Unusable> {
    let Some((name, model)) = model(&run.model).and_then(|n| Some((n, catalogue.model(n)?))) else {
        return unusable("model not in the catalogue", &run.model);
    };
    let Some(node) = node(&run.gpu).and_then(|n| catalogue.node(n)) else {
        return unusable("accelerator not in the catalogue", &run.gpu);
    };
    let Some(stack) = stack(run).and_then(|n| catalogue.serving_stack(n)) else {
        return unusable(
            "engine not in the catalogue",
            run.engine.clone().unwrap_or_default(),
        );
    };
    let mut assumed = Vec::new();
    let has_fp8 = node.accelerator.peak.fp8.is_some();
    let has_fp4 = node.accelerator.peak.fp4.is_some();
    let Some(formats) = precision(run, name, has_fp8, has_fp4, &mut assumed) else {
        return unusable("precision not known", &run.precision);
    };
    let routed = model.moe.is_some();
    let (rackflow_workload::Attention::Grouped { heads, .. }
    | rackflow_workload::Attention::Latent { heads, .. }) = model.attention;
    let pool = |text: &str, replicas: u32, assumed: &mut Vec<&'static str>| {
        let Some(mut plan) = parallelism(text, routed) else {
            return unusable("parallel plan not understood", text);
        };
        // The database multiplies tensor and expert ranks that share their GPUs.
        let expert_tensor = degree(text, "moeTP").unwrap_or(1);
        if expert_tensor > 1 && plan.expert > 1 && plan.tensor == expert_tensor * plan.expert {
            assumed.push("plan: tensor and expert ranks are the same GPUs");
            plan.tensor = expert_tensor.max(plan.expert);
        }
        if expert_tensor > 1 && plan.expert > 1 && plan.data == expert_tensor * plan.expert {
            assumed.push("plan: attention groups and expert ranks are the same GPUs");
            plan.data = expert_tensor.max(plan.expert);
        }
        if !heads.is_multiple_of(u64::from(plan.tensor)) {
            return unusable(
                "tensor ranks do not divide the heads",
                format!("{heads} heads, {text}"),
            );
        }
        if plan.expert > plan.stage_gpus() || !plan.stage_gpus().is_multiple_of(plan.expert) {
            return unusable("expert ranks do not divide the GPUs", text);
        }
        // "For MoE models: enable_attention_dp: true" (perf-overview.md at v1.0).
        if run.kind == "serving"
            && run.engine_version.as_deref() == Some("1.0")
            && routed
            && plan.data == 1
            && plan.tensor > 1
        {
            assumed.push("plan: attention data parallelism, as the overview sets it for mixtures");
            plan.data = plan.tensor;
            plan.expert = plan.tensor;
            plan.tensor = 1;
        }
        let mut deployment = Deployment::new(model.clone(), formats, plan, stack.clone());
        let mut engine = EngineConfig::of(stack, plan.data);
        if run.kind == "e2e_agg" && run.by_inferencemax() {
            assumed.push("server: as InferenceMAX's script for this model and engine starts it");
            let group = inferencemax::arguments(run, name, has_fp4, &plan, &mut engine);
            deployment.max_batched_tokens = group.unwrap_or(deployment.max_batched_tokens);
            deployment.speculation = inferencemax::guesses(run, name, &plan);
            if deployment.speculation.is_some() {
                assumed.push("guesses: multi-token prediction, as the image of the run is that of the script with it");
            }
        }
        Ok(Pool {
            deployment,
            replicas,
            engine,
        })
    };
    let mut not_scored = None;
    let (decode, prefill) = match split(&run.parallelism) {
        Some(stated) => {
            let recorded = workers_recorded(&stated);
            let recipe = match recipes::find(run, name, &sides(&stated), recorded) {
                recipes::Known::As(recipe) => Some(recipe),
                recipes::Known::Unclear => {
                    not_scored = Some("whether tokens were guessed ahead is not recorded");
                    None
                }
                recipes::Known::Nothing if recorded => None,
                recipes::Known::Nothing => {
                    not_scored = Some("the number of workers is not recorded");
                    None
                }
            };
            let [(p_count, p), (d_count, d)] = match recipe {
                // The table leaves out attention groups and their expert parallelism here and there.
                Some(recipe) => recipe.sides(),
                None => stated,
            };
            let mut decode = pool(d, d_count, &mut assumed)?;
            let mut prefill = pool(p, p_count, &mut assumed)?;
            if let Some(recipe) = recipe {
                assumed.push("server: as the recipe of InferenceMAX for this run starts it");
                limit(recipe, &mut prefill, &mut decode);
            }
            (decode, Some(prefill))
        }
        None if run.kind == "e2e_disagg" => {
            return unusable("parallel plan not understood", &run.parallelism);
        }
        None => (pool(&run.parallelism, 1, &mut assumed)?, None),
    };
    let gpus = [Some(&decode), prefill.as_ref()]
        .into_iter()
        .flatten()
        .map(|pool| pool.deployment.parallelism.gpus())
        .max()
        .unwrap_or(1);
    let fabric = catalogue
        .fabric("ib-two-tier")
        .expect("the catalogue has this fabric")
        .clone();
    Ok(ServingSetup {
        not_scored,
        cluster: Cluster {
            parts: Vec::new(),
            gpus: gpus.next_multiple_of(node.gpus),
            node,
            fabric,
        },
        decode,
        prefill,
        assumed,
    })
}

/// The same measurement stands in the table of end-to-end points twice, once with its numbers of workers
/// and once with one of each and no attention groups; where that is all that is said, they are not known.
fn workers_recorded(sides: &[(u32, &str); 2]) -> bool {
    let bare = |(count, plan): &(u32, &str)| {
        *count == 1 && degree(plan, "DP").or(degree(plan, "attnDP")).unwrap_or(1) <= 1
    };
    !sides.iter().all(bare)
}

/// Workers and GPUs of one.
fn sides(stated: &[(u32, &str); 2]) -> recipes::Sides {
    stated.map(|(count, plan)| (count, parallelism(plan, true).map_or(0, |plan| plan.gpus())))
}

/// The limits that a recipe sets; the engine counts them for each attention group, the simulator for all
/// together. TensorRT-LLM's prompts are whole, since no recipe of it sets `enable_chunked_prefill`.
fn limit(recipe: &recipes::Recipe, prefill: &mut Pool, decode: &mut Pool) {
    let groups = |pool: &Pool| pool.deployment.parallelism.data.max(1);
    let tokens = recipe.prefill_tokens;
    // Of SGLang's recipes some set a chunk.
    if prefill.deployment.stack.name.starts_with("tensorrt") {
        prefill.engine.chunked_prefill = false;
    }
    prefill.engine.max_num_batched_tokens = tokens.saturating_mul(groups(prefill));
    prefill.deployment.max_batched_tokens = u64::from(tokens);
    decode.engine.max_num_seqs = recipe.sequences.saturating_mul(groups(decode));
}

/// The two pools of `P:2x(TP8 ...) D:1x(TP16 ...)`: how many of what.
fn split(text: &str) -> Option<[(u32, &str); 2]> {
    let one = |letter: &str| {
        let rest = &text[text.find(letter)? + letter.len()..];
        let (count, rest) = rest.split_once("x(")?;
        let (plan, _) = rest.split_once(')')?;
        Some((count.trim().parse().ok()?, plan))
    };
    Some([one("P:")?, one("D:")?])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shipped_rows_are_cited_and_become_deployments() {
        let all = read(SHIPPED).expect("the shipped rows are well formed");
        assert!(all.runs.len() > 1000);
        assert!(
            SHIPPED.len() < 900_000,
            "the shipped rows are to stay small"
        );
        let catalogue = Catalogue::builtin();
        let mut unusable = BTreeMap::new();
        for run in &all.runs {
            assert!(all.citations.contains_key(run.group()), "{}", run.source);
            if let Err(error) = setup(run, catalogue) {
                *unusable.entry(error.reason).or_insert(0) += 1;
            }
        }
        let reasons: Vec<&str> = unusable.keys().copied().collect();
        assert!(
            reasons.iter().all(|reason| reason.contains("ranks")),
            "{unusable:?}"
        );
    }

    #[test]
    fn names_of_models_and_plans_are_understood() {
        assert_eq!(model("deepseek-ai/DeepSeek-R1"), Some("deepseek-v3"));
        assert_eq!(model("LLAMA 3 (70B)"), Some("llama3-70b"));
        assert_eq!(model("Llama-3.1-8B-Instruct"), Some("llama3-8b"));
        assert_eq!(model("Llama-3.3-70B"), Some("llama3-70b"));
        assert_eq!(model("nvidia/Qwen3-32B-NVFP4"), Some("qwen3-32b"));
        assert_eq!(model("an unknown one"), None);
        let [prefill, decode] = split("P:5x(TP1 PP1 DP8 EP8) D:1x(TP1 PP1 DP32 EP32)").unwrap();
        assert_eq!((prefill.0, decode.0), (5, 1));
        let plan = parallelism(decode.1, true).unwrap();
        assert_eq!((plan.tensor, plan.data, plan.expert), (1, 32, 32));
        let plan = parallelism("TP4 PP1 attnDP4 moeTP1 moeEP16", true).unwrap();
        assert_eq!((plan.tensor, plan.data, plan.expert), (4, 4, 16));
        assert!(split("TP8").is_none());
        assert!(parallelism("P2 Q3", true).is_none());
    }

    #[test]
    fn damaged_rows_are_refused_and_never_panic() {
        let catalogue = Catalogue::builtin();
        let line = SHIPPED.lines().last().expect("rows");
        for end in (0..line.len()).filter(|end| line.is_char_boundary(*end)) {
            assert!(read(&line[..end]).is_err() || line[..end].is_empty());
        }
        let damage = [
            serde_json::json!(null),
            serde_json::json!(-1),
            serde_json::json!(0),
            serde_json::json!(u64::MAX),
            serde_json::json!("TP0 PP0 DEP0 x( P:)D: 4294967296"),
            serde_json::json!("P:0x(TP0) D:9x(TP4294967295 EP4294967295)"),
            serde_json::json!({}),
        ];
        for line in SHIPPED.lines().step_by(37) {
            let whole: serde_json::Value = serde_json::from_str(line).expect("undamaged");
            let Some(keys) = whole
                .as_object()
                .map(|o| o.keys().cloned().collect::<Vec<_>>())
            else {
                continue;
            };
            for key in keys {
                for value in &damage {
                    let mut damaged = whole.clone();
                    damaged[&key] = value.clone();
                    for run in read(&damaged.to_string())
                        .into_iter()
                        .flat_map(|all| all.runs)
                    {
                        let _ = setup(&run, catalogue);
                    }
                }
            }
        }
    }
}
