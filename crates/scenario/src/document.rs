//! A scenario as its author typed it: names are still names, and what was left out is still absent
//! or at its documented default.

use crate::decode::Subtree;
use crate::schema;
use crate::serving_text::ServingText;
use rackflow_plan::Jitter;
use rackflow_topology::LinkFault;
use rackflow_units::{Bandwidth, Precision, SimDuration, Usd, UsdPerHour, UsdPerKilowattHour};
use rackflow_workload::{Activation, Frozen, Recipe, Recompute, Routing, Schedule, Zero};
use schemars::JsonSchema;
use serde::Deserialize;
use serde::de::{self, MapAccess, SeqAccess, Visitor};
use std::fmt;

/// One cluster and the work it does.
#[derive(Debug, Clone, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(title = "Rackflow scenario")]
pub(crate) struct Document {
    /// The hardware.
    pub cluster: ClusterText,
    /// What it does.
    pub workload: WorkloadText,
    /// How it is simulated.
    #[serde(default)]
    pub simulation: SimulationText,
    /// What power and hardware cost.
    #[serde(default)]
    pub economics: EconomicsText,
    /// What a source printed about the same run. Shown beside the result, never used by it.
    #[serde(default)]
    pub published: Option<Published>,
}

/// Several jobs beside each other on one cluster, in place of one `workload`.
#[derive(Debug, Clone, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct JobsDocument {
    /// The hardware that they share.
    pub cluster: ClusterText,
    /// Who does what, and where. Jobs take their seats in this order.
    pub jobs: Vec<JobText>,
    /// How they are simulated.
    #[serde(default)]
    pub simulation: SimulationText,
}

/// One job of several.
#[derive(Debug, Clone, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct JobText {
    /// What the report calls it.
    pub name: String,
    /// Accelerators that it gets.
    #[schemars(range(min = 1, max = 10_000_000))]
    pub gpus: u32,
    /// Which ones.
    #[serde(default)]
    pub placement: PlacementText,
    /// What it does.
    pub workload: WorkloadText,
}

/// Which of the free accelerators a job gets.
#[derive(Debug, Clone, PartialEq, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum PlacementText {
    /// The first free ones in order.
    #[default]
    Packed,
    /// The first free whole nodes in order, so that every rank keeps its rail.
    RailAligned,
    /// Free whole nodes drawn at random (from `simulation.seed`).
    Scattered,
    /// These, in this order: numbers and ranges such as `0-255`, both ends included.
    Explicit(Vec<String>),
}

/// Many equal nodes on one fabric.
#[derive(Debug, Clone, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct ClusterText {
    /// The unit that repeats: a catalogue name such as `hgx-h800`, or a definition in place.
    #[schemars(schema_with = "schema::node")]
    pub node: Subtree,
    /// Accelerators in all: a multiple of what one node holds, or fewer than that.
    #[schemars(range(min = 1, max = 10_000_000))]
    pub gpus: u32,
    /// In place of `node` and `gpus`, for a training job: nodes of several kinds side by side, in the
    /// order of their GPUs. Each kind has leaves of its own; the fabric's upper tiers join them.
    #[serde(default)]
    pub nodes: Option<Vec<PartText>>,
    /// What connects the nodes: a catalogue name such as `rail-optimized`, or a definition in
    /// place. May be left out where one node is enough.
    #[serde(default)]
    #[schemars(schema_with = "schema::fabric")]
    pub fabric: Option<Subtree>,
    /// In place of `node`: the path of a topology that NCCL dumped (XML) or of an InfraGraph (YAML
    /// or JSON), relative to the scenario. An InfraGraph gives `gpus` and `fabric` too.
    #[serde(default)]
    #[allow(dead_code, reason = "it is replaced by what it names")]
    pub import: Option<String>,
    /// Catalogue name of the accelerator of an imported cluster, where the file leaves it open.
    #[serde(default)]
    #[allow(dead_code, reason = "it is replaced by what it names")]
    pub accelerator: Option<String>,
}

/// Nodes of one kind in a cluster of several.
#[derive(Debug, Clone, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct PartText {
    /// A catalogue name such as `hgx-h100`, or a definition in place.
    #[schemars(schema_with = "schema::node")]
    #[allow(dead_code, reason = "it is decoded from the tree")]
    pub node: Subtree,
    /// How many of them.
    #[schemars(range(min = 1, max = 10_000_000))]
    pub count: u32,
}

/// What the cluster does.
#[derive(Debug, Clone, PartialEq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum WorkloadText {
    /// One step of pre-training.
    Training(Box<TrainingText>),
    /// A model that answers requests.
    Serving(Box<ServingText>),
    /// What somebody else's run did: its MLCommons Chakra execution traces are replayed.
    Chakra(ChakraText),
}

/// A folder of execution traces, or that folder with how it is replayed.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct ChakraText(pub ChakraFields);

/// Execution traces, and how they are replayed.
#[derive(Debug, Clone, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(title = "ChakraFields")]
pub(crate) struct ChakraFields {
    /// Folder of the files `NAME.<rank>.et`, relative to the scenario.
    pub traces: String,
    /// Where the durations of kernels come from.
    #[serde(default)]
    pub kernels: KernelsText,
    /// Number format of the matrix products: traces do not say it.
    #[serde(default = "bf16")]
    pub precision: Precision,
}

/// Where the durations of replayed kernels come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum KernelsText {
    /// As recorded; from operations and bytes where a kernel has no duration.
    #[default]
    Recorded,
    /// From operations and bytes, on the accelerator of the cluster; as recorded where a kernel has
    /// neither.
    Roofline,
}

fn bf16() -> Precision {
    Precision::Bf16
}

impl<'de> Deserialize<'de> for ChakraText {
    fn deserialize<D: de::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Shapes;

        impl<'de> Visitor<'de> for Shapes {
            type Value = ChakraText;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a folder of traces, or { traces: folder/, kernels: roofline }")
            }

            fn visit_str<E: de::Error>(self, folder: &str) -> Result<ChakraText, E> {
                Ok(ChakraText(ChakraFields {
                    traces: folder.to_owned(),
                    kernels: KernelsText::default(),
                    precision: bf16(),
                }))
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<ChakraText, A::Error> {
                ChakraFields::deserialize(de::value::MapAccessDeserializer::new(map))
                    .map(ChakraText)
            }
        }

        deserializer.deserialize_any(Shapes)
    }
}

impl JsonSchema for ChakraText {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Chakra".into()
    }

    fn json_schema(generator: &mut schemars::SchemaGenerator) -> schemars::Schema {
        let fields = generator.subschema_for::<ChakraFields>();
        schemars::json_schema!({
            "description": "A folder of MLCommons Chakra execution traces, or how it is replayed.",
            "anyOf": [
                { "type": "string", "description": "Folder of the files NAME.<rank>.et, relative to the scenario." },
                fields,
            ],
        })
    }
}

/// One training step as its authors would describe it.
#[derive(Debug, Clone, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct TrainingText {
    /// What is trained: a catalogue name such as `deepseek-v3`, the path of a Hugging Face
    /// `config.json` relative to the scenario, or a definition in place.
    #[schemars(schema_with = "schema::model")]
    pub model: Subtree,
    /// With what software: a catalogue name such as `megatron-core-25.04`, or a definition in place.
    #[schemars(schema_with = "schema::stack")]
    pub stack: Subtree,
    /// Number formats of the step.
    pub precision: Recipe,
    /// Tokens per sequence.
    #[schemars(range(min = 1))]
    pub sequence_length: u64,
    /// Sequences per step.
    #[schemars(range(min = 1))]
    pub global_batch: u64,
    /// Sequences per micro-batch and data-parallel rank.
    #[serde(default = "one")]
    #[schemars(range(min = 1))]
    pub micro_batch: u64,
    /// How the ranks divide the work; plain data parallelism where it is left out.
    #[serde(default)]
    pub parallelism: ParallelismText,
    /// The order in which a pipeline stage takes its micro-batches.
    #[serde(default = "one_forward_one_backward")]
    pub schedule: Schedule,
    /// What is computed twice to save memory.
    #[serde(default)]
    pub recompute: RecomputeText,
    /// How evenly tokens spread over experts.
    #[serde(default = "balanced")]
    pub routing: Routing,
    /// The images of each sequence, for a model with a vision encoder. Left out, the encoder takes no
    /// part.
    #[serde(default)]
    pub images: Option<ImagesText>,
    /// Layers of each model chunk in pipeline order (`pipeline` x `virtual_pipeline` entries), where
    /// they are not spread evenly; over several kinds of node and with images they are spread by time.
    #[serde(default)]
    pub layers_per_chunk: Option<Vec<u64>>,
    /// Which ranks are neighbours in the hall. Tensor-parallel ranks always are.
    #[serde(default)]
    pub rank_order: RankOrderText,
    /// The whole training run: days of such steps, and what interrupts them.
    #[serde(default)]
    pub run: Option<Box<RunText>>,
    /// What the source did not publish and this scenario assumes; repeated in the report.
    #[serde(default)]
    pub assumed: Vec<String>,
}

/// Images among the words of each sequence.
#[derive(Debug, Clone, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct ImagesText {
    /// Images, or tiles of larger ones, in each sequence. Their tokens are part of `sequence_length`.
    #[schemars(range(min = 1))]
    pub per_sequence: u64,
    /// Height and width of each in pixels; what the encoder is made for where it is left out.
    #[serde(default)]
    pub pixels: Option<[u64; 2]>,
    /// What of the encoder is not trained.
    #[serde(default)]
    pub frozen: Frozen,
}

/// A whole training run. It ends after `tokens` or after `days`.
#[derive(Debug, Clone, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct RunText {
    /// Tokens to train, such as 14.8e12.
    #[serde(default)]
    #[schemars(range(min = 1.0))]
    pub tokens: Option<f64>,
    /// Days to run.
    #[serde(default)]
    #[schemars(range(min = 0.0, max = 3650.0))]
    pub days: Option<f64>,
    /// What fails how often: a catalogue name such as `llama3-16k-h100`, or a definition in place.
    /// Nothing fails where it is left out.
    #[serde(default)]
    #[schemars(schema_with = "schema::failures")]
    pub failures: Option<Subtree>,
    /// How the state is saved. Needed where something fails.
    #[serde(default)]
    pub checkpoint: Option<CheckpointText>,
    /// Hosts that stand by and take the place of those that fail.
    #[serde(default)]
    pub spares: u32,
    /// Where no spare is left, go on with fewer data-parallel replicas instead of waiting.
    #[serde(default)]
    pub elastic: bool,
    /// How many times the run is simulated, for means and their confidence intervals.
    #[serde(default = "replications")]
    #[schemars(range(min = 1, max = 10000))]
    pub replications: u32,
}

/// How the state of a run is saved.
#[derive(Debug, Clone, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct CheckpointText {
    /// Time between the starts of two checkpoints; the optimum for the rate of failures where it is
    /// left out.
    #[serde(default)]
    pub interval: IntervalText,
    /// Whether the run waits until a checkpoint is on storage.
    #[serde(default)]
    pub mode: CheckpointMode,
    /// Rate at which the whole cluster writes to storage.
    pub write: Bandwidth,
    /// Rate at which it reads; that of writing where it is left out.
    #[serde(default)]
    pub read: Option<Bandwidth>,
    /// Copies in the memory of other hosts, besides those on storage.
    #[serde(default)]
    pub memory: Option<MemoryTierText>,
}

/// Time between two checkpoints.
#[derive(Debug, Clone, Copy, PartialEq, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum IntervalText {
    /// The optimum of Young and Daly for the rate of failures.
    #[default]
    YoungDaly,
    /// Given.
    Time(SimDuration),
    /// Given in steps.
    Steps(u64),
}

/// Whether a run waits for its checkpoints.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum CheckpointMode {
    /// The run waits until the checkpoint is on storage.
    Synchronous,
    /// The run waits only for the copy to host memory.
    #[default]
    Asynchronous,
}

/// Checkpoints in the memory of other hosts.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct MemoryTierText {
    /// Steps between two of them.
    #[serde(default = "one")]
    #[schemars(range(min = 1))]
    pub steps: u64,
    /// Time for which each holds the step up.
    pub stall: SimDuration,
    /// Fraction of interruptions that it survives.
    #[serde(default = "most")]
    #[schemars(range(min = 0.0, max = 1.0))]
    pub survives: f64,
}

/// What power and hardware cost.
#[derive(Debug, Clone, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct EconomicsText {
    /// Power of the building over power of the racks.
    #[schemars(range(min = 1.0, max = 3.0))]
    pub pue: f64,
    /// Price of energy. Rent includes energy, owners pay it.
    pub electricity: UsdPerKilowattHour,
    /// How the accelerators are paid for; by rent at the catalogue's price where it is left out.
    pub cost: Option<CostText>,
}

impl Default for EconomicsText {
    fn default() -> Self {
        Self {
            pue: 1.2,
            electricity: UsdPerKilowattHour::new(0.08),
            cost: None,
        }
    }
}

/// How accelerators are paid for.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum CostText {
    /// By the hour and accelerator.
    Rent(UsdPerHour),
    /// Bought.
    Purchase(PurchaseText),
}

/// A purchase, written off over some years.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct PurchaseText {
    /// Per accelerator, with its share of servers, network and storage; the catalogue's `capital`
    /// where it is left out.
    #[serde(default)]
    pub per_gpu: Option<Usd>,
    /// Years of use.
    #[serde(default = "four")]
    #[schemars(range(min = 0.5, max = 20.0))]
    pub years: f64,
    /// Yearly cost of operation besides energy, as a fraction of the purchase.
    #[serde(default = "a_twentieth")]
    #[schemars(range(min = 0.0, max = 1.0))]
    pub operation: f64,
}

/// How the ranks divide the work: `tensor` x `context` x `pipeline` x `data` GPUs. Experts are
/// spread over the tensor-context-data ranks of one pipeline stage.
#[derive(Debug, Clone, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct ParallelismText {
    /// Tensor-parallel ranks.
    #[schemars(range(min = 1))]
    pub tensor: u32,
    /// Activations between tensor-parallel regions are sharded over the sequence; true where it is
    /// left out and `tensor` exceeds 1.
    pub sequence_parallel: Option<bool>,
    /// Context-parallel ranks: each holds a part of every sequence.
    #[schemars(range(min = 1))]
    pub context: u32,
    /// Pipeline stages.
    #[schemars(range(min = 1))]
    pub pipeline: u32,
    /// Model chunks per pipeline stage (interleaving); 1 for none.
    #[schemars(range(min = 1))]
    pub virtual_pipeline: u32,
    /// Data-parallel ranks; all GPUs that the others leave, where it is left out.
    #[schemars(range(min = 1))]
    pub data: Option<u32>,
    /// Expert-parallel ranks.
    #[schemars(range(min = 1))]
    pub expert: u32,
    /// Tensor-parallel ranks inside an expert.
    #[schemars(range(min = 1))]
    pub expert_tensor: u32,
    /// What data-parallel ranks shard: 0 nothing, 1 optimizer states, 2 gradients too, 3 weights
    /// too.
    #[schemars(range(max = 3))]
    pub zero: Zero,
    /// Ranks over which ZeRO shards, where that is fewer than all data-parallel ranks (HSDP).
    #[schemars(range(min = 1))]
    pub zero_group: Option<u32>,
}

impl Default for ParallelismText {
    fn default() -> Self {
        Self {
            tensor: 1,
            sequence_parallel: None,
            context: 1,
            pipeline: 1,
            virtual_pipeline: 1,
            data: None,
            expert: 1,
            expert_tensor: 1,
            zero: Zero::Stage1,
            zero_group: None,
        }
    }
}

/// Which ranks are neighbours in the hall.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum RankOrderText {
    /// Tensor, context, data, pipeline (Megatron's default): a stage is contiguous.
    #[default]
    DataBeforePipeline,
    /// Tensor, context, pipeline, data (Llama 3): a model replica is contiguous.
    PipelineBeforeData,
}

/// Which ranks are simulated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum FidelityText {
    /// Ranks that cannot differ are simulated once. The report is identical.
    #[default]
    Folded,
    /// Every rank is simulated.
    Full,
}

/// How the scenario is simulated.
#[derive(Debug, Clone, PartialEq, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct SimulationText {
    /// Which ranks are simulated.
    pub fidelity: FidelityText,
    /// Root of all random streams: the same seed gives the same bytes.
    pub seed: u64,
    /// Steps to simulate, each under a seed of its own from `seed` on; the report then says how step
    /// times spread. 1 where it is left out.
    #[schemars(range(min = 1, max = 1000))]
    pub seeds: Option<u32>,
    /// GPUs that compute more slowly than the others.
    pub stragglers: Vec<StragglerText>,
    /// How unevenly kernels run.
    pub jitter: JitterText,
    /// Links that are dead, slow or flapping.
    pub links: Vec<LinkFault>,
}

/// `none`, `typical`, or the two sigmas.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct JitterText(pub Jitter);

impl Default for JitterText {
    fn default() -> Self {
        Self(Jitter::NONE)
    }
}

/// What published step times show: see docs/simulator.md.
pub(crate) const TYPICAL_JITTER: Jitter = Jitter {
    gpu: 0.01,
    kernel: 0.0,
    slow_nodes: 0.0,
};

/// What runs on thousands of GPUs show besides: MegaScale (arXiv 2402.15627, section 6.3) finds about
/// 0.5 % of its machines substantially slower.
pub(crate) const PRODUCTION_JITTER: Jitter = Jitter {
    slow_nodes: 0.005,
    ..TYPICAL_JITTER
};

/// The shapes of `jitter` that are one word.
#[derive(Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum JitterWord {
    /// Every kernel takes its time and no longer.
    None,
    /// GPUs as uneven as those of published runs: `{ gpu: 0.01 }`.
    Typical,
    /// The same, and some slow nodes, as large clusters have: `{ gpu: 0.01, slow_nodes: 0.005 }`.
    Production,
}

/// The shape of `jitter` that is a mapping: kernels take `exp(sigma |z|)` times as long, z normal.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[derive(Default)]
pub(crate) struct Sigmas {
    /// Sigma of each GPU, drawn once for the step: cooling, power limits, silicon.
    #[schemars(range(min = 0.0, max = 0.5))]
    gpu: f64,
    /// Sigma of each run of kernels on each GPU. Then no two ranks are alike, and nothing folds.
    #[schemars(range(min = 0.0, max = 0.5))]
    kernel: f64,
    /// Part of the nodes whose kernels take 6 % longer for the whole step.
    #[schemars(range(min = 0.0, max = 1.0))]
    slow_nodes: f64,
}

impl<'de> Deserialize<'de> for JitterText {
    fn deserialize<D: de::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Shapes;

        impl<'de> Visitor<'de> for Shapes {
            type Value = JitterText;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("none, typical, production or { gpu: 0.01, kernel: 0.005 }")
            }

            fn visit_str<E: de::Error>(self, word: &str) -> Result<JitterText, E> {
                let word: de::value::StrDeserializer<'_, E> =
                    de::IntoDeserializer::into_deserializer(word);
                JitterWord::deserialize(word).map(|word| {
                    JitterText(match word {
                        JitterWord::None => Jitter::NONE,
                        JitterWord::Typical => TYPICAL_JITTER,
                        JitterWord::Production => PRODUCTION_JITTER,
                    })
                })
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<JitterText, A::Error> {
                let Sigmas {
                    gpu,
                    kernel,
                    slow_nodes,
                } = Sigmas::deserialize(de::value::MapAccessDeserializer::new(map))?;
                Ok(JitterText(Jitter {
                    gpu,
                    kernel,
                    slow_nodes,
                }))
            }
        }

        deserializer.deserialize_any(Shapes)
    }
}

impl JsonSchema for JitterText {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Jitter".into()
    }

    fn json_schema(generator: &mut schemars::SchemaGenerator) -> schemars::Schema {
        let word = generator.subschema_for::<JitterWord>();
        let sigmas = generator.subschema_for::<Sigmas>();
        schemars::json_schema!({
            "description": "A word, or the sigmas of GPUs and of kernels.",
            "anyOf": [word, sigmas],
        })
    }
}

/// One GPU that computes more slowly than the others.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct StragglerText {
    /// Which GPU, counted from 0.
    pub gpu: u32,
    /// Its kernels take this many times as long: 1.1 is 10 % slower.
    #[schemars(range(min = 1.0, max = 1000.0))]
    pub slowdown: f64,
}

/// What a source printed about a run. Absent where it did not.
#[derive(Debug, Clone, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Published {
    /// Wall time of one step.
    #[serde(default)]
    pub step_time: Option<SimDuration>,
    /// TFLOP/s per GPU, in the source's own convention.
    #[serde(default)]
    #[schemars(range(min = 0.0))]
    pub tflops_per_gpu: Option<f64>,
    /// Model FLOPs utilisation as a fraction, in the source's own convention.
    #[serde(default)]
    #[schemars(range(min = 0.0, max = 1.0))]
    pub mfu: Option<f64>,
    /// Where it was printed, and by which convention.
    pub source: String,
}

/// `none`, `selective`, `full`, `{ full_layers: 4 }`, or a list of activations.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct RecomputeText(pub Recompute);

impl Default for RecomputeText {
    fn default() -> Self {
        Self(Recompute::None)
    }
}

impl<'de> Deserialize<'de> for RecomputeText {
    fn deserialize<D: de::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Shapes;

        impl<'de> Visitor<'de> for Shapes {
            type Value = RecomputeText;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("none, selective, full, { full_layers: 4 } or a list of activations")
            }

            fn visit_str<E: de::Error>(self, word: &str) -> Result<RecomputeText, E> {
                let word: de::value::StrDeserializer<'_, E> =
                    de::IntoDeserializer::into_deserializer(word);
                Word::deserialize(word).map(|word| {
                    RecomputeText(match word {
                        Word::None => Recompute::None,
                        Word::Selective => Recompute::Selective,
                        Word::Full => Recompute::Full,
                        Word::Operators => Recompute::Operators,
                    })
                })
            }

            fn visit_seq<A: SeqAccess<'de>>(self, list: A) -> Result<RecomputeText, A::Error> {
                let activations =
                    Vec::<Activation>::deserialize(de::value::SeqAccessDeserializer::new(list))?;
                Ok(RecomputeText(Recompute::Activations(activations)))
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<RecomputeText, A::Error> {
                let kind = Kind::deserialize(de::value::MapAccessDeserializer::new(map))?;
                match (kind.full_layers, kind.activations) {
                    (Some(layers), None) => Ok(RecomputeText(Recompute::FullLayers(layers))),
                    (None, Some(list)) => Ok(RecomputeText(Recompute::Activations(list))),
                    _ => Err(de::Error::custom(
                        "`recompute` takes either full_layers or activations",
                    )),
                }
            }
        }

        deserializer.deserialize_any(Shapes)
    }
}

/// The shapes of `recompute` that are one word.
#[derive(Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Word {
    /// Nothing.
    None,
    /// Core attention: scores and softmax.
    Selective,
    /// Whole layers: only the layer's input is kept.
    Full,
    /// All but attention and the first of every two matrix products.
    Operators,
}

/// The shapes of `recompute` that are a mapping.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Kind {
    /// Whole layers, but only this many of each model chunk.
    #[serde(default)]
    full_layers: Option<u32>,
    /// Named activations.
    #[serde(default)]
    activations: Option<Vec<Activation>>,
}

impl JsonSchema for RecomputeText {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Recompute".into()
    }

    fn json_schema(generator: &mut schemars::SchemaGenerator) -> schemars::Schema {
        let word = generator.subschema_for::<Word>();
        let kind = generator.subschema_for::<Kind>();
        let list = generator.subschema_for::<Vec<Activation>>();
        schemars::json_schema!({
            "description": "A word, a list of activations, or { full_layers: 4 }.",
            "anyOf": [word, list, kind],
        })
    }
}

fn replications() -> u32 {
    16
}

fn most() -> f64 {
    0.9
}

fn four() -> f64 {
    4.0
}

fn a_twentieth() -> f64 {
    0.05
}

fn one() -> u64 {
    1
}

fn one_forward_one_backward() -> Schedule {
    Schedule::OneForwardOneBackward
}

fn balanced() -> Routing {
    Routing::Balanced
}

fn as_fast() -> f64 {
    1.0
}

/// Fields of a node that is defined in place; the accelerator is looked up apart.
#[derive(Debug, Clone, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct NodeText {
    /// Name, for the report.
    #[serde(default)]
    pub name: Option<String>,
    /// One line for lists.
    #[serde(default)]
    #[allow(dead_code, reason = "the catalogue reads it from the tree")]
    pub description: Option<String>,
    /// What computes: a catalogue name such as `h100-sxm`, or a definition in place.
    #[schemars(schema_with = "schema::accelerator")]
    pub accelerator: Subtree,
    /// Accelerators per node.
    #[schemars(range(min = 1))]
    pub gpus: u32,
    /// Accelerators whose processes share a host (one operating system, one driver), such as the 4 of a
    /// compute tray; where it is left out all of a node, 8 at most.
    #[serde(default)]
    pub gpus_per_host: Option<std::num::NonZeroU32>,
    /// The network inside.
    pub scale_up: rackflow_topology::ScaleUp,
    /// The interfaces to the outside.
    pub nic: rackflow_topology::Nic,
    /// The rack it stands in.
    pub rack: rackflow_topology::Rack,
    /// Time of the host's processors for a launch over that of the x86 servers on which the host
    /// times of software stacks are measured; 1 where it is left out.
    #[serde(default = "as_fast")]
    #[schemars(range(min = 0.01, max = 100))]
    pub host_slowdown: f64,
    /// Sources of the values, by field name.
    #[serde(default)]
    pub sources: std::collections::BTreeMap<String, String>,
}

/// An entry of the fabrics section of the catalogue.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct FabricEntry {
    /// One line for lists.
    #[allow(dead_code, reason = "the catalogue reads it from the tree")]
    pub description: Option<String>,
    /// What it is.
    pub fabric: rackflow_topology::Fabric,
    /// Sources of the values, by field name.
    #[serde(default)]
    #[allow(dead_code, reason = "shown with the entry's text")]
    pub sources: std::collections::BTreeMap<String, String>,
}
