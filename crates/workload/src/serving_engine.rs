//! What a serving engine is told: its scheduler, its limits, its cache, how it decodes, and how
//! requests find a replica.

use crate::serving::{ServingStack, Speculation};
use rackflow_units::{Bandwidth, Bytes, SimDuration};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Which engine's scheduler is reproduced.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Scheduler {
    /// vLLM v1: running requests first, then waiting ones, one token budget for prefill and decode
    /// together; a request is admitted where its next chunk fits, and the last one is preempted
    /// where decoding needs its blocks.
    Vllm,
    /// SGLang: batches of prefill before batches of decode; a request is admitted where its prompt
    /// and a discounted part of all answers to come fit.
    Sglang,
    /// TensorRT-LLM in-flight batching, guaranteed completion: prefill and decode together, the
    /// whole answer's blocks are reserved at admission, so that nothing is ever preempted.
    TensorrtLlm,
    /// Orca (OSDI '22): iteration-level batching without chunks; the whole answer is reserved.
    Orca,
    /// A batch is filled, run until its last answer is complete, and only then replaced
    /// (FasterTransformer). Answers that are complete stay in the batch as padding.
    Static,
}

impl Scheduler {
    /// The scheduler of the engine that a stack is a release of, by the engine's name.
    pub fn of(stack: &str) -> Self {
        if stack.starts_with("sglang") || stack.starts_with("deepseek") {
            Self::Sglang
        } else if stack.starts_with("tensorrt") {
            Self::TensorrtLlm
        } else {
            Self::Vllm
        }
    }
}

/// What becomes of a request whose blocks are taken away.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Preemption {
    /// Its KV cache is dropped and computed again.
    Recompute,
    /// Its KV cache goes to host memory and comes back.
    Swap,
}

/// The limits and habits of one engine.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct EngineConfig {
    /// Whose scheduler.
    #[serde(default = "vllm")]
    pub scheduler: Scheduler,
    /// Tokens of one step, prefill and decode together (SGLang: of one prefill batch).
    #[serde(default = "default_batched_tokens")]
    #[schemars(range(min = 1))]
    pub max_num_batched_tokens: u32,
    /// Requests that run at once.
    #[serde(default = "default_seqs")]
    #[schemars(range(min = 1))]
    pub max_num_seqs: u32,
    /// Long prompts are cut into chunks that fit the budget. Without, a prompt longer than the
    /// budget is a step of its own.
    #[serde(default = "yes")]
    pub chunked_prefill: bool,
    /// Tokens of one KV block.
    #[serde(default = "default_block")]
    #[schemars(range(min = 1))]
    pub block_size: u32,
    /// Blocks of prompts are kept and shared (radix or hash of prefixes).
    #[serde(default = "yes")]
    pub prefix_caching: bool,
    /// What becomes of a request whose blocks are taken away.
    #[serde(default = "recompute")]
    pub preemption: Preemption,
    /// Requests beyond this many waiting are turned away at the door.
    #[serde(default)]
    pub max_queue: Option<u32>,
    /// Steps of decoding from one look at the door to the next, while somebody runs; 1 for before
    /// each step. A step with prompt tokens is followed by a look.
    #[serde(default = "one")]
    #[schemars(range(min = 1))]
    pub poll_interval: u32,
    /// Prompts are held back until enough of them wait; `None` for never.
    #[serde(default)]
    pub batch_wait: Option<BatchWait>,
}

/// Prompts that wait for company while others decode (TensorRT-LLM's `batch_wait_timeout_iters` and
/// `batch_wait_max_tokens_ratio`).
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct BatchWait {
    /// Steps that they wait at most.
    #[schemars(range(min = 1))]
    pub steps: u32,
    /// Part of the token budget that ends the wait when waiting prompts reach it.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub budget: f64,
}

impl EngineConfig {
    /// What a release does where nothing else is said, on a replica of `groups` attention groups:
    /// the limits of a stack count for one group.
    pub fn of(stack: &ServingStack, groups: u32) -> Self {
        let limits = &stack.limits;
        let narrow = |value: u64| u32::try_from(value).unwrap_or(u32::MAX);
        let all = |value: u64| narrow(value.saturating_mul(u64::from(groups.max(1))));
        Self {
            scheduler: Scheduler::of(&stack.name),
            max_num_batched_tokens: all(limits.max_batched_tokens),
            max_num_seqs: all(limits.max_sequences),
            chunked_prefill: limits.chunked_prefill,
            block_size: narrow(limits.block_tokens),
            poll_interval: narrow(limits.poll_interval),
            ..Self::default()
        }
    }
}

impl Default for EngineConfig {
    fn default() -> Self {
        Self {
            scheduler: vllm(),
            max_num_batched_tokens: default_batched_tokens(),
            max_num_seqs: default_seqs(),
            chunked_prefill: true,
            block_size: default_block(),
            prefix_caching: true,
            preemption: recompute(),
            max_queue: None,
            poll_interval: one(),
            batch_wait: None,
        }
    }
}

fn one() -> u32 {
    1
}

fn vllm() -> Scheduler {
    Scheduler::Vllm
}

/// vLLM's default for an API server on GPUs of 70 GB and more.
fn default_batched_tokens() -> u32 {
    8192
}

fn default_seqs() -> u32 {
    256
}

fn yes() -> bool {
    true
}

fn default_block() -> u32 {
    16
}

fn recompute() -> Preemption {
    Preemption::Recompute
}

/// How an answer is produced.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Decoder {
    /// One token per sequence and step.
    #[default]
    Autoregressive,
    /// Guessed tokens are checked together; each is kept with the same probability while all before
    /// it are.
    Speculative(Speculation),
    /// A diffusion language model that fills one block after another, each in so many steps; blocks
    /// before it are cached.
    BlockDiffusion {
        /// Tokens of a block.
        block: u32,
        /// Denoising steps per block.
        steps: u32,
    },
    /// A diffusion language model that computes the whole sequence in every step.
    FullDiffusion {
        /// Tokens that become final per step.
        tokens_per_step: u32,
        /// Steps between two refreshes of the cache of prompt and answer; 1 for no reuse. Between
        /// refreshes only the tokens of the step are computed.
        refresh_every: u32,
    },
}

/// How a request finds its replica.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Router {
    /// One after the other.
    #[default]
    RoundRobin,
    /// Any, equally likely.
    Random,
    /// The one with the fewest unfinished requests.
    LeastRequests,
    /// The one with the fewest tokens to compute and to keep.
    LeastTokens,
    /// The one where the fewest tokens have to be computed before the first answer: what is waiting
    /// there, and of the prompt what its cache does not hold.
    CacheAware,
}

/// Which block leaves a full tier.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Eviction {
    /// The one that was used longest ago.
    #[default]
    Lru,
    /// The one that came first.
    Fifo,
    /// The one that was used least often; of those, the one used longest ago.
    Lfu,
    /// The one that was used last (LMCache's `MRU`): keeps a part of a loop that does not fit.
    Mru,
    /// The one that was used least often; of those, the one furthest from the beginning of its prompt
    /// (Mooncake's `LengthAwareCache`).
    LengthAware,
}

/// When a block is written to a tier.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum WritePolicy {
    /// When it falls out of the tier above (SGLang's `write_back`): HBM and the tiers hold different
    /// blocks, and whoever needs the place in HBM waits for the copy.
    #[default]
    WriteBack,
    /// When it is computed (vLLM's offloading, LMCache, SGLang's `write_through`): the tier holds
    /// again what HBM holds, the copy runs beside the steps, and a place in HBM is free at once.
    WriteThrough,
}

/// What a tier of the KV store is made of.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum Medium {
    /// Host memory.
    HostDram,
    /// Memory behind CXL.
    Cxl,
    /// A disk of the node.
    LocalSsd,
    /// A pool behind the network, shared by all replicas.
    Remote,
}

impl Medium {
    /// Machine name.
    pub const fn key(self) -> &'static str {
        match self {
            Self::HostDram => "host_dram",
            Self::Cxl => "cxl",
            Self::LocalSsd => "local_ssd",
            Self::Remote => "remote",
        }
    }
}

/// One tier of the KV store below HBM. Local tiers belong to one replica, a remote one to all.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct KvTier {
    /// What it is.
    pub medium: Medium,
    /// What it holds: of each replica, or of all together where it is remote.
    pub capacity: Bytes,
    /// Rate at which it is read, by one replica; a remote tier is read over the NICs and at most at
    /// this rate.
    pub read: Bandwidth,
    /// Rate at which it is written; that of reading where it is left out. A disk reads and writes in
    /// turn, memory does both at once.
    #[serde(default)]
    pub write: Option<Bandwidth>,
    /// Time until the first byte.
    pub latency: SimDuration,
    /// When a block is written to it.
    #[serde(default)]
    pub write_policy: WritePolicy,
    /// Which block leaves when it is full.
    #[serde(default)]
    pub eviction: Eviction,
}

/// How KV caches move from prefill to decode.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct KvTransfer {
    /// A layer leaves as soon as it is computed; else the whole cache leaves after the prompt.
    #[serde(default = "yes")]
    pub layer_by_layer: bool,
    /// Host or NIC time of one message (descriptor).
    #[serde(default = "default_per_message")]
    pub per_message: SimDuration,
    /// Tokens of one layer that one message carries: one block, where blocks are not contiguous.
    #[serde(default = "default_block")]
    #[schemars(range(min = 1))]
    pub tokens_per_message: u32,
}

impl Default for KvTransfer {
    fn default() -> Self {
        Self {
            layer_by_layer: true,
            per_message: default_per_message(),
            tokens_per_message: default_block(),
        }
    }
}

/// About what one RDMA work request costs: several million messages a second and NIC.
fn default_per_message() -> SimDuration {
    SimDuration::from_nanos(200)
}

/// What a served request should not exceed. A request is inside where every limit given holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Slo {
    /// Time to the first token.
    pub ttft: Option<SimDuration>,
    /// Time per output token after the first, averaged over the request.
    pub tpot: Option<SimDuration>,
    /// From arrival to the last token.
    pub e2e: Option<SimDuration>,
}

/// What a pool of replicas does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Whole requests.
    Both,
    /// Prompts; the cache then moves.
    Prefill,
    /// Answers, from caches that arrive.
    Decode,
}

impl Role {
    /// Machine name.
    pub const fn key(self) -> &'static str {
        match self {
            Self::Both => "both",
            Self::Prefill => "prefill",
            Self::Decode => "decode",
        }
    }
}
