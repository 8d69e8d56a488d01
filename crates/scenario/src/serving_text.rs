//! A serving workload as its author typed it.

use crate::decode::Subtree;
use crate::schema;
use rackflow_units::SimDuration;
use rackflow_workload::serving::{KvFormat, ServingParallelism, WeightFormat};
use rackflow_workload::{
    Arrivals, BatchWait, Decoder, KvTier, KvTransfer, Length, Preemption, Router, Scheduler,
    Sessions, Slo,
};
use schemars::JsonSchema;
use serde::Deserialize;

/// A model that answers requests.
#[derive(Debug, Clone, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct ServingText {
    /// What is served: a catalogue name such as `llama3-70b`, the path of a Hugging Face
    /// `config.json` relative to the scenario, or a definition in place.
    #[schemars(schema_with = "schema::model")]
    pub model: Subtree,
    /// With what engine: a catalogue name such as `vllm-0.10`, or a definition in place.
    #[schemars(schema_with = "schema::serving_stack")]
    pub stack: Subtree,
    /// Number formats of weights and cache.
    pub precision: PrecisionText,
    /// How one replica is spread over its GPUs, where one pool does everything.
    #[serde(default)]
    pub parallelism: Option<ServingParallelism>,
    /// Replicas; as many as the GPUs hold, where it is left out.
    #[serde(default)]
    #[schemars(range(min = 1))]
    pub replicas: Option<u32>,
    /// Limits and habits of the engine; those of the stack where they are left out.
    #[serde(default)]
    pub engine: EngineText,
    /// How a replica spreads its experts and overlaps its communication.
    #[serde(default)]
    pub experts: ExpertsText,
    /// Prefill and decode on pools of their own.
    #[serde(default)]
    pub disaggregation: Option<DisaggregationText>,
    /// How answers are produced.
    #[serde(default)]
    pub decoder: Decoder,
    /// How a request finds its replica.
    #[serde(default)]
    pub router: Router,
    /// Tiers of KV cache below HBM, the nearest first.
    #[serde(default)]
    pub store: Vec<KvTier>,
    /// What is asked.
    pub requests: RequestsText,
    /// What requests should not exceed.
    #[serde(default)]
    pub slo: Slo,
    /// What the source did not publish and this scenario assumes; repeated in the report.
    #[serde(default)]
    pub assumed: Vec<String>,
}

/// Number formats of weights and cache.
#[derive(Debug, Clone, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct PrecisionText {
    /// Linear layers; the output matrix stays in 16 bits unless `head` says otherwise.
    pub weights: WeightFormat,
    /// Keys and values in the cache; 16 bits where it is left out.
    #[serde(default)]
    pub kv: Option<KvFormat>,
    /// Projections of attention, where they differ.
    #[serde(default)]
    pub attention: Option<WeightFormat>,
    /// The output projection of attention, where it differs from the others.
    #[serde(default)]
    pub attention_output: Option<WeightFormat>,
    /// Dense feed-forward networks and shared experts, where they differ.
    #[serde(default)]
    pub dense: Option<WeightFormat>,
    /// Routed experts, where they differ.
    #[serde(default)]
    pub experts: Option<WeightFormat>,
    /// Output matrix and token table; bf16 where it is left out.
    #[serde(default)]
    pub head: Option<WeightFormat>,
    /// Tokens on their way to the experts; the experts' format where it is left out.
    #[serde(default)]
    pub dispatch: Option<WeightFormat>,
}

/// Limits and habits of an engine. What is left out is the stack's own default.
#[derive(Debug, Clone, PartialEq, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct EngineText {
    /// Whose scheduler; that of the stack's engine where it is left out.
    pub scheduler: Option<Scheduler>,
    /// Tokens of one step of the replica, prefill and decode together (SGLang: of one prefill
    /// batch).
    #[schemars(range(min = 1))]
    pub max_num_batched_tokens: Option<u32>,
    /// Requests that run at once on one replica.
    #[schemars(range(min = 1))]
    pub max_num_seqs: Option<u32>,
    /// Long prompts are cut into chunks that fit the budget.
    pub chunked_prefill: Option<bool>,
    /// Tokens of one KV block.
    #[schemars(range(min = 1))]
    pub block_size: Option<u32>,
    /// Blocks of prompts are kept and shared; true where it is left out.
    pub prefix_caching: Option<bool>,
    /// What becomes of a request whose blocks are taken away; `recompute` where it is left out.
    pub preemption: Option<Preemption>,
    /// Requests beyond this many waiting are turned away.
    pub max_queue: Option<u32>,
    /// Steps of decoding from one look at the door to the next; the stack's where it is left out.
    #[schemars(range(min = 1))]
    pub poll_interval: Option<u32>,
    /// Prompts wait for company while others decode.
    pub batch_wait: Option<BatchWait>,
}

/// How a replica spreads its experts and overlaps its communication.
#[derive(Debug, Clone, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct ExpertsText {
    /// Copies of busy experts beyond one each, over the whole replica.
    pub redundant: u64,
    /// Tokens of the busiest expert group over the mean, at least 1.
    #[schemars(range(min = 1.0))]
    pub imbalance: f64,
    /// Each step is cut into two halves, one of which communicates while the other computes.
    pub two_batch_overlap: bool,
}

impl Default for ExpertsText {
    fn default() -> Self {
        Self {
            redundant: 0,
            imbalance: 1.0,
            two_batch_overlap: false,
        }
    }
}

/// Prefill and decode on pools of their own.
#[derive(Debug, Clone, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct DisaggregationText {
    /// Where prompts are computed.
    pub prefill: PoolText,
    /// Where answers are.
    pub decode: PoolText,
    /// How caches move from one to the other.
    #[serde(default)]
    pub transfer: KvTransfer,
}

/// One pool of equal replicas.
#[derive(Debug, Clone, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct PoolText {
    /// How many.
    #[serde(default = "one")]
    #[schemars(range(min = 1))]
    pub replicas: u32,
    /// How one replica is spread over its GPUs.
    pub parallelism: ServingParallelism,
    /// Limits and habits, where they differ from the workload's.
    #[serde(default)]
    pub engine: EngineText,
    /// Experts and overlap, where they differ from the workload's.
    #[serde(default)]
    pub experts: Option<ExpertsText>,
    /// Other hardware than the cluster's: a node of the catalogue, or a definition in place. The
    /// pool is then a cluster of its own, as large as its replicas need.
    #[serde(default)]
    #[schemars(schema_with = "schema::optional_node")]
    pub node: Option<Subtree>,
}

fn one() -> u32 {
    1
}

/// What is asked.
#[derive(Debug, Clone, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct RequestsText {
    /// When requests come; the trace's own times where it is left out.
    #[serde(default)]
    pub arrivals: Option<Arrivals>,
    /// Tokens of a prompt; in a conversation, of the new part of each turn.
    #[serde(default)]
    pub input: Option<Length>,
    /// Tokens of an answer.
    #[serde(default)]
    pub output: Option<Length>,
    /// Conversations, where requests belong to some.
    #[serde(default)]
    pub sessions: Option<Sessions>,
    /// A file with requests, relative to the scenario: Azure LLM CSV, Mooncake JSONL, ShareGPT JSON.
    #[serde(default)]
    pub trace: Option<String>,
    /// Requests in all; of a trace, at most.
    #[serde(default)]
    #[schemars(range(min = 1))]
    pub count: Option<u64>,
    /// The rate of arrivals is multiplied by this.
    #[serde(default = "unchanged")]
    #[schemars(range(min = 0.000_001, max = 1_000_000.0))]
    pub rate_scale: f64,
    /// What happens before this is simulated and not measured.
    #[serde(default)]
    pub warm_up: Option<SimDuration>,
    /// The measured window ends so long after the warm-up; with the last answer, where it is left
    /// out. Requests keep coming until all that came inside are answered.
    #[serde(default)]
    pub measure_for: Option<SimDuration>,
    /// Priority classes in equal shares; 1 for none.
    #[serde(default = "one")]
    #[schemars(range(min = 1, max = 1000))]
    pub priorities: u32,
}

fn unchanged() -> f64 {
    1.0
}
