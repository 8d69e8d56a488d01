//! What happened to requests and replicas.

use super::cost::Work;
use hdrhistogram::Histogram;
use rackflow_plan::Accounts;
use rackflow_units::{SimDuration, SimTime};
use rackflow_workload::{Medium, Role, Slo};

/// What a request was doing, each moment one thing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// On its way in, or waiting for its first step.
    Queued,
    /// Its cache was on its way up from a lower tier.
    Loading,
    /// Between its first and last step of prefill.
    Prefill,
    /// Its cache was on its way from prefill to decode, or waited for room there.
    Transfer,
    /// Decoding.
    Decode,
    /// Pushed out, waiting to run again.
    Preempted,
}

impl Phase {
    /// Number of phases.
    pub const COUNT: usize = 6;
    /// All, in the order of a request's life.
    pub const ALL: [Self; Self::COUNT] = [
        Self::Queued,
        Self::Loading,
        Self::Prefill,
        Self::Transfer,
        Self::Decode,
        Self::Preempted,
    ];

    /// Machine name.
    pub const fn key(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Loading => "loading",
            Self::Prefill => "prefill",
            Self::Transfer => "transfer",
            Self::Decode => "decode",
            Self::Preempted => "preempted",
        }
    }
}

/// One answered request.
#[derive(Debug, Clone, PartialEq)]
pub struct RequestRecord {
    /// Position in the order of arrival, from 0.
    pub number: u64,
    /// When it came.
    pub arrival: SimTime,
    /// From arrival to the first token.
    pub ttft: SimDuration,
    /// From arrival to the last token.
    pub e2e: SimDuration,
    /// Tokens that came first together: 1, or a block.
    pub first_tokens: u32,
    /// Tokens of the prompt.
    pub input_tokens: u32,
    /// Tokens of the answer.
    pub output_tokens: u32,
    /// Tokens of the prompt that HBM held already.
    pub cached_tokens: u32,
    /// Tokens of the prompt that came from lower tiers.
    pub loaded_tokens: u32,
    /// Priority class.
    pub priority: u32,
    /// Replica that computed the prompt.
    pub prefill_replica: u32,
    /// Replica that decoded.
    pub decode_replica: u32,
    /// Times that it was pushed out.
    pub preemptions: u32,
    /// Time by phase, in the order of [`Phase::ALL`]; sums to `e2e`.
    pub phases: [SimDuration; Phase::COUNT],
    /// It came after the warm-up.
    pub measured: bool,
}

impl RequestRecord {
    /// Whether it is inside every limit.
    pub fn inside(&self, slo: &Slo) -> bool {
        slo.ttft.is_none_or(|most| self.ttft <= most)
            && slo.tpot.is_none_or(|most| self.tpot() <= most)
            && slo.e2e.is_none_or(|most| self.e2e <= most)
    }

    /// Mean time per token after those that came first; where all came at once, end to end per
    /// token.
    pub fn tpot(&self) -> SimDuration {
        let later = u64::from(self.output_tokens - self.first_tokens);
        if later == 0 {
            let tokens = u64::from(self.output_tokens.max(1));
            // A single token has no pace of its own.
            return if tokens == 1 {
                SimDuration::ZERO
            } else {
                SimDuration::from_picos(self.e2e.as_picos() / tokens)
            };
        }
        SimDuration::from_picos((self.e2e - self.ttft).as_picos() / later)
    }
}

/// Receives requests as they are answered.
pub trait RequestSink {
    /// One was answered.
    fn answered(&mut self, request: &RequestRecord);

    /// Nothing more is wanted: the run ends here.
    fn enough(&self) -> bool {
        false
    }
}

/// Keeps nothing.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoSink;

impl RequestSink for NoSink {
    fn answered(&mut self, _: &RequestRecord) {}
}

impl RequestSink for Vec<RequestRecord> {
    fn answered(&mut self, request: &RequestRecord) {
        self.push(request.clone());
    }
}

/// Spans of time: exact mean, and quantiles to three digits in fixed memory.
#[derive(Debug, Clone)]
pub struct Spans {
    histogram: Histogram<u64>,
    sum_ps: u128,
}

impl Spans {
    /// None yet.
    pub fn new() -> Self {
        Self {
            // Nanoseconds, up to 180 days.
            histogram: Histogram::new_with_bounds(1, 16_000_000_000_000_000, 3)
                .expect("the bounds are in order"),
            sum_ps: 0,
        }
    }

    /// One more.
    pub fn add(&mut self, span: SimDuration) {
        self.sum_ps += u128::from(span.as_picos());
        self.histogram.saturating_record(span.as_picos() / 1000);
    }

    /// How many.
    pub fn count(&self) -> u64 {
        self.histogram.len()
    }

    /// Mean, in seconds; 0 of none.
    pub fn mean_s(&self) -> f64 {
        if self.count() == 0 {
            return 0.0;
        }
        self.sum_ps as f64 * 1e-12 / self.count() as f64
    }

    /// The value that this fraction does not exceed, in seconds.
    pub fn quantile_s(&self, fraction: f64) -> f64 {
        self.histogram.value_at_quantile(fraction) as f64 * 1e-9
    }
}

impl Default for Spans {
    fn default() -> Self {
        Self::new()
    }
}

/// One pool after the run, inside the measured window.
#[derive(Debug, Clone)]
pub struct PoolRecord {
    /// What it does.
    pub role: Role,
    /// Replicas.
    pub replicas: u32,
    /// GPUs of one.
    pub gpus: u32,
    /// Steps that computed some prompt.
    pub prefill: Work,
    /// Steps that only decoded.
    pub decode: Work,
    /// GPU-time of each replica by cause; each sums to window x GPUs.
    pub accounts: Vec<Accounts>,
    /// Prompt tokens computed.
    pub prefill_tokens: u64,
    /// Tokens decoded.
    pub decode_tokens: u64,
    /// Sequences in decode steps, summed over steps.
    pub decode_sequences: u64,
    /// Tokens in the cache, summed over steps.
    pub kv_token_steps: u128,
    /// Most blocks in use at once, of one replica.
    pub kv_peak_blocks: u64,
    /// Blocks of one replica.
    pub kv_blocks: u64,
    /// Tokens of one block.
    pub block_size: u32,
    /// Requests pushed out.
    pub preemptions: u64,
}

/// KV cache on the move.
#[derive(Debug, Clone, Default)]
pub struct KvRecord {
    /// Bytes of prefill caches sent to decode, by level of the fabric.
    pub sent: [u64; rackflow_topology::Level::ALL.len()],
    /// Bytes that need not be sent: decode replicas held them already.
    pub spared: f64,
    /// Caches sent.
    pub transfers: u64,
    /// From the end of prefill to the cache being there.
    pub exposed: Spans,
    /// Prompt tokens asked for.
    pub prompt_tokens: u64,
    /// Of those, found in HBM.
    pub hit_tokens: u64,
    /// Of those, found in lower tiers.
    pub loaded_tokens: u64,
    /// Tiers below HBM, the nearest first.
    pub tiers: Vec<TierRecord>,
}

/// One tier of the KV store, of all replicas, over the whole run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TierRecord {
    /// What it is.
    pub medium: Medium,
    /// Bytes read from it.
    pub read: u64,
    /// Bytes written to it.
    pub written: u64,
}

/// A fleet's run.
#[derive(Debug, Clone)]
pub struct ServingRecord {
    /// From the end of the warm-up to the last answer.
    pub window: SimDuration,
    /// Pools, prefill first.
    pub pools: Vec<PoolRecord>,
    /// Requests that came after the warm-up and were answered.
    pub measured: u64,
    /// All requests answered.
    pub answered: u64,
    /// Requests turned away: too long for the cache, or the queue was full.
    pub refused: u64,
    /// Of the measured, inside the service-level objective.
    pub inside_slo: u64,
    /// Tokens of prompts of measured requests.
    pub input_tokens: u64,
    /// Tokens of answers produced inside the window.
    pub output_tokens: u64,
    /// Times to the first token.
    pub ttft: Spans,
    /// Times per output token.
    pub tpot: Spans,
    /// End-to-end times.
    pub e2e: Spans,
    /// Time by phase over all measured requests, in picoseconds.
    pub phases: [u128; Phase::COUNT],
    /// KV cache on the move.
    pub kv: KvRecord,
    /// Events handled.
    pub events: u64,
    /// Root of the random streams.
    pub seed: u64,
}

impl ServingRecord {
    /// GPUs of all pools.
    pub fn gpus(&self) -> u64 {
        self.pools
            .iter()
            .map(|pool| u64::from(pool.replicas) * u64::from(pool.gpus))
            .sum()
    }

    /// Accounts of all GPUs; they sum to GPUs x window.
    pub fn total(&self) -> Accounts {
        let mut total = Accounts::default();
        for accounts in self.pools.iter().flat_map(|pool| &pool.accounts) {
            total.add(accounts, 1);
        }
        total
    }
}
