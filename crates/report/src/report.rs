//! The report as data. Every metric is defined here, at its field, and nowhere else.

use crate::detail::{Kernels, Links, Timeline};
use crate::disturbed::Disturbed;
use crate::outlook::{Economics, Run};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Version of the JSON document. It grows when a key is removed or changes its meaning; new keys
/// do not change it.
pub const SCHEMA_VERSION: u32 = 1;

/// One simulated training step, and what it means.
///
/// Rates are per second, sizes are in bytes, times are in seconds. Everything but
/// `engine.wall_s` is the same on every run of the same scenario with the same seed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Report {
    /// Version of this document's layout.
    pub schema_version: u32,
    /// Name of the scenario.
    pub scenario: String,
    /// What is trained.
    pub model: Model,
    /// On what.
    pub cluster: Cluster,
    /// How the ranks divide the work.
    pub plan: Plan,
    /// What the whole cluster delivers.
    pub training: Training,
    /// What each rack delivers.
    pub racks: Vec<Rack>,
    /// From peak to effective: where all GPU-seconds of the step went. The first entry is the
    /// useful work, the others are losses; the fractions sum to 1.
    pub waterfall: Vec<Loss>,
    /// The changes that would help most, best first; at most three.
    pub what_to_change: Vec<Change>,
    /// What the cluster draws and costs while it works.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub economics: Option<Economics>,
    /// What a whole training run comes to, where the scenario describes one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub run: Option<Run>,
    /// Beside what was published, where the scenario says what that is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub published: Option<Comparison>,
    /// Slow GPUs and faulty links, where there are any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disturbed: Option<Disturbed>,
    /// What the scenario's authors had to assume because no source says it.
    pub assumed: Vec<String>,
    /// What could make the real run worse than the simulated one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
    /// Peak memory of one GPU of each pipeline stage, first to last.
    #[serde(default)]
    pub memory_by_stage: Vec<Memory>,
    /// Kernels of the step: the points of a roofline.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kernels: Option<Kernels>,
    /// How busy the links are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub links: Option<Links>,
    /// What each pipeline stage does when; left out where it is too much for a page.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeline: Option<Timeline>,
    /// How the simulation itself went.
    pub engine: Engine,
}

/// The model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Model {
    /// Catalogue name.
    pub name: String,
    /// All parameters.
    pub parameters: f64,
    /// Parameters that one token meets.
    pub active_parameters: f64,
    /// Model FLOPs of one step (forward and backward, nothing recomputed), attention over what
    /// the causal mask leaves.
    pub flops_per_step_causal: f64,
    /// The same with attention over the full square.
    pub flops_per_step_noncausal: f64,
    /// The vision encoder, where there are images. Its parameters and FLOPs are part of those above.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vision: Option<Vision>,
}

/// A vision encoder at work.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Vision {
    /// Parameters, with those of the projector.
    pub parameters: f64,
    /// Images or tiles of each sequence.
    pub images_per_sequence: u64,
    /// Height and width of each, in pixels.
    pub pixels: [u64; 2],
    /// Tokens of the sequence that each takes.
    pub tokens_per_image: u64,
    /// What is not trained: `nothing`, `encoder` or `encoder_and_projector`.
    pub frozen: String,
    /// Model FLOPs of one step: forward, and backward as far as it is trained.
    pub flops_per_step: f64,
}

/// The hardware.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Cluster {
    /// Catalogue name of the node.
    pub node: String,
    /// Catalogue name of the accelerator.
    pub accelerator: String,
    /// What connects the nodes, in a few words.
    pub fabric: String,
    /// Accelerators.
    pub gpus: u64,
    /// Racks.
    pub racks: u64,
    /// Accelerators in a full rack.
    pub gpus_per_rack: u64,
    /// Dense peak of all accelerators together, in FLOP/s.
    pub peak_flops: Peak,
    /// Number format that `native` stands for: the one that the linear layers compute in.
    pub native_precision: String,
}

/// A dense peak in two number formats, in FLOP/s.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Peak {
    /// In bf16, the literature's habit.
    pub bf16: f64,
    /// In the format that the linear layers compute in.
    pub native: f64,
}

/// How the ranks divide the work.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Plan {
    /// Tensor-parallel ranks.
    pub tensor: u32,
    /// Activations are sharded over the sequence between tensor-parallel regions.
    pub sequence_parallel: bool,
    /// Context-parallel ranks.
    pub context: u32,
    /// Pipeline stages.
    pub pipeline: u32,
    /// Model chunks per pipeline stage.
    pub virtual_pipeline: u32,
    /// Data-parallel ranks.
    pub data: u32,
    /// Expert-parallel ranks.
    pub expert: u32,
    /// Tensor-parallel ranks inside an expert.
    pub expert_tensor: u32,
    /// ZeRO stage.
    pub zero: u8,
    /// Pipeline schedule.
    pub schedule: String,
    /// Number formats of the step.
    pub precision: String,
    /// What is computed twice to save memory.
    pub recompute: String,
    /// Software stack.
    pub stack: String,
    /// Tokens per sequence.
    pub sequence_length: u64,
    /// Sequences per step.
    pub global_batch: u64,
    /// Sequences per micro-batch.
    pub micro_batch: u64,
    /// Micro-batches per data-parallel rank and step.
    pub micro_batches: u64,
}

impl Plan {
    /// Dimensions and schedule in a few words: "TP 8 +SP · PP 16 · DP 128, 1F1B schedule".
    pub fn shorthand(&self) -> String {
        let mut parts = Vec::new();
        if self.tensor > 1 {
            parts.push(format!(
                "TP {}{}",
                self.tensor,
                if self.sequence_parallel { " +SP" } else { "" }
            ));
        }
        if self.context > 1 {
            parts.push(format!("CP {}", self.context));
        }
        if self.pipeline > 1 {
            parts.push(format!("PP {}", self.pipeline));
        }
        if self.virtual_pipeline > 1 {
            parts.push(format!("VPP {}", self.virtual_pipeline));
        }
        parts.push(format!("DP {}", self.data));
        if self.expert > 1 {
            parts.push(format!("EP {}", self.expert));
        }
        if self.expert_tensor > 1 {
            parts.push(format!("ETP {}", self.expert_tensor));
        }
        parts.push(format!("ZeRO {}", self.zero));
        let mut text = parts.join(" · ");
        if self.pipeline > 1 {
            text.push_str(&format!(", {} schedule", self.schedule));
        }
        text
    }
}

/// What the whole cluster delivers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Training {
    /// Wall time of one step.
    pub step_time_s: f64,
    /// Tokens per second.
    pub tokens_per_s: f64,
    /// Tokens per second and GPU.
    pub tokens_per_s_per_gpu: f64,
    /// Model FLOPs per second and GPU, in TFLOP/s.
    pub model_tflops_per_gpu: TflopsPerGpu,
    /// Model FLOPs utilisation: model FLOPs per second over the dense peak.
    pub mfu: ByConvention,
    /// Hardware FLOPs utilisation as the literature prints it: recomputation counted, attention
    /// over the full square, over the bf16 peak. Equal to `hfu_by_convention.bf16_noncausal`.
    pub hfu: f64,
    /// Hardware FLOPs utilisation by convention.
    pub hfu_by_convention: ByConvention,
    /// Fraction of all GPU-seconds spent waiting for another pipeline stage.
    pub bubble_fraction: f64,
    /// Fraction of all GPU-seconds spent waiting for communication that nothing hides.
    pub exposed_comm_fraction: f64,
    /// Peak memory of one GPU of the fullest pipeline stage.
    pub memory_per_gpu_bytes: Memory,
    /// The step under several seeds, where the scenario asks for them. All else is of the first seed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub over_seeds: Option<OverSeeds>,
}

/// Step times of the same step under seeds that follow each other, the report's own included.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct OverSeeds {
    /// How many seeds.
    pub seeds: u64,
    /// Their mean, in seconds.
    pub mean_s: f64,
    /// Their standard deviation (of a sample), in seconds.
    pub std_dev_s: f64,
    /// The shortest, in seconds.
    pub least_s: f64,
    /// The longest, in seconds.
    pub most_s: f64,
}

impl OverSeeds {
    /// Sums step times in seconds up; none where there is one at most.
    pub fn of(times: &[f64]) -> Option<Self> {
        if times.len() < 2 {
            return None;
        }
        let count = times.len() as f64;
        let mean = times.iter().sum::<f64>() / count;
        let squares = times.iter().map(|time| (time - mean).powi(2)).sum::<f64>();
        Some(Self {
            seeds: times.len() as u64,
            mean_s: mean,
            std_dev_s: (squares / (count - 1.0)).sqrt(),
            least_s: times.iter().copied().fold(f64::INFINITY, f64::min),
            most_s: times.iter().copied().fold(0.0, f64::max),
        })
    }
}

/// Model FLOPs per second and GPU, in TFLOP/s.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct TflopsPerGpu {
    /// Attention over what the causal mask leaves.
    pub causal: f64,
    /// Attention over the full square.
    pub noncausal: f64,
}

/// One utilisation under the four conventions in use: which peak, and how attention is counted.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ByConvention {
    /// Over the bf16 peak, attention over what the causal mask leaves.
    pub bf16_causal: f64,
    /// Over the bf16 peak, attention over the full square.
    pub bf16_noncausal: f64,
    /// Over the peak of the format that the linear layers compute in, causal attention.
    pub native_causal: f64,
    /// The same with attention over the full square.
    pub native_noncausal: f64,
}

/// Peak memory of one GPU of the fullest pipeline stage, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Memory {
    /// Weights in the precision they are kept in for compute.
    pub weights: u64,
    /// Gradients.
    pub gradients: u64,
    /// Master weights and moments.
    pub optimizer: u64,
    /// Activations of all micro-batches in flight.
    pub activations: u64,
    /// Logits, communication buffers, gathered shards.
    pub buffers: u64,
    /// Context and communication buffers, and fragmentation where the stack has no `allocator_slack`.
    pub reserved: u64,
    /// All of the above.
    pub total: u64,
    /// What the GPU has.
    pub capacity: u64,
    /// The fullest stage, counted from 0.
    pub stage: u64,
    /// Stages in all.
    pub stages: u64,
}

/// What one rack delivers.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Rack {
    /// Position in the hall, counted from 0.
    pub id: u64,
    /// Its GPUs.
    pub gpus: u64,
    /// Model FLOP/s that its ranks contribute, attention counted causally.
    pub effective_flops: f64,
    /// Its dense peak in the native format.
    pub peak_flops: f64,
    /// Effective over peak.
    pub fraction: f64,
}

/// One step of the waterfall.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Loss {
    /// Stable machine name, such as `exposed_ep_spine`; `useful_math` for what is left.
    pub cause: String,
    /// Name for people.
    pub label: String,
    /// What the cause means, in one sentence.
    pub explanation: String,
    /// GPU-seconds of the step booked to it, over all GPUs.
    pub gpu_seconds: f64,
    /// The same as a fraction of all GPU-seconds.
    pub fraction: f64,
}

/// One change that would make the step shorter.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Change {
    /// The losses it attacks, such as `bubble` or `exposed_ep`: causes of the waterfall, with the
    /// levels of one kind of communication taken together.
    pub cause: String,
    /// Name for people.
    pub label: String,
    /// Fraction of all GPU-seconds that these losses take.
    pub fraction: f64,
    /// Upper bound: throughput would rise by this fraction if the losses vanished altogether.
    pub gain_at_most: f64,
    /// What to try, for this plan.
    pub change: String,
}

/// The simulation beside what was published.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Comparison {
    /// Where the published figures are from, and what convention they follow.
    pub source: String,
    /// Each published figure beside the simulated ones that it may mean.
    pub figures: Vec<Figure>,
}

/// One published figure beside a simulated one.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Figure {
    /// What is compared: `step_time_s`, `model_tflops_per_gpu_causal`, `hfu_bf16_noncausal` and so on.
    pub metric: String,
    /// As published.
    pub published: f64,
    /// As simulated.
    pub simulated: f64,
    /// Simulated over published, minus one.
    pub error: f64,
}

/// How the simulation itself went.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Engine {
    /// Events handled.
    pub events: u64,
    /// Ranks that were simulated; the others are equal to one of them.
    pub ranks_simulated: u64,
    /// Wall time of the simulation. The only value that differs between reruns.
    pub wall_s: f64,
    /// `folded` or `full`.
    pub fidelity: String,
    /// Root of the random streams.
    pub seed: u64,
}

impl Report {
    /// The report as one JSON document, indented, with a newline at the end.
    pub fn to_json(&self) -> String {
        crate::json::pretty(self)
    }

    /// The JSON Schema of [`Report::to_json`].
    pub fn schema() -> serde_json::Value {
        let mut schema = schemars::schema_for!(Self).to_value();
        schema["title"] = "Rackflow report".into();
        schema
    }
}
