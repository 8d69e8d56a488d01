//! Published training runs: facts with sources, read from JSON Lines and turned into setups.
//!
//! Two spellings are read: our own compact one ([`PublishedRun`] as it serialises), which ships
//! with the catalogue, and the wider survey spelling with nested `hardware`, `parallel` and
//! `batch` objects. What a source does not say stays absent here. [`setup`] is where a habit of
//! the stack takes its place, and every such place is noted in `Training::assumed`.
//!
//! No rule looks at a single run: rules look at the source, its release, the hardware and what
//! the run declares about itself.

mod habits;
mod releases;
pub mod serving;
mod setup;
mod survey;

pub use setup::{Unusable, setup};

use rackflow_workload::{CudaGraphs, ExpertDispatcher, MoE, MultiTokenPrediction, Recompute};
use serde::{Deserialize, Serialize};
use std::fmt;

/// The published training runs that ship with the catalogue, in the compact spelling: complete
/// ones, and the replays.
pub const SHIPPED: &str = include_str!("../data/training.jsonl");

/// Experiments in which one setting changed, one a line: two setups and what was measured on each.
pub const MECHANISMS: &str = include_str!("../data/mechanisms.jsonl");

/// How complete a row is, as its collector graded it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Quality {
    /// Dimensions, plan, batch and time are all published.
    A,
    /// The micro-batch is missing.
    B,
    /// More is missing, the log is noisy, or the run is not a plain pre-training step.
    C,
}

impl fmt::Display for Quality {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::A => "A",
            Self::B => "B",
            Self::C => "C",
        })
    }
}

/// The shape of the model as the source gives it; absent where it does not.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PublishedModel {
    /// The model's name.
    pub name: String,
    /// `dense`, `moe` or `hybrid`.
    pub family: String,
    /// Transformer layers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub layers: Option<u64>,
    /// Width of the residual stream.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hidden: Option<u64>,
    /// Query heads.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub heads: Option<u64>,
    /// Key-value heads; the query heads where they are absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kv_heads: Option<u64>,
    /// Width of one head; hidden over heads where it is absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub head_dim: Option<u64>,
    /// Multi-head latent attention, where the model has it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub latent: Option<Latent>,
    /// Hidden width of the dense feed-forward network.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ffn: Option<u64>,
    /// The feed-forward network is gated.
    #[serde(skip_serializing_if = "is_false")]
    pub gated: bool,
    /// Vocabulary.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vocab: Option<u64>,
    /// Keys that a query of a windowed layer sees.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub window: Option<u64>,
    /// One layer in this many sees everything.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub full_every: Option<u64>,
    /// The mixture of experts, where there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub moe: Option<MoE>,
    /// Multi-token prediction, where the run trained with it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mtp: Option<MultiTokenPrediction>,
}

/// Widths of multi-head latent attention.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Latent {
    /// Rank of the query projection; absent where queries are projected directly.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub q_lora_rank: Option<u64>,
    /// Rank of the shared key-value latent.
    pub kv_lora_rank: u64,
    /// Width per head without position.
    pub qk_nope_head_dim: u64,
    /// Width per head with position.
    pub qk_rope_head_dim: u64,
    /// Width per head of the value.
    pub v_head_dim: u64,
}

/// The parallel plan as published; absent is not stated, which is not the same as one.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PublishedPlan {
    /// Tensor-parallel ranks.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tensor: Option<u32>,
    /// Pipeline stages.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pipeline: Option<u32>,
    /// Model chunks per stage.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub virtual_pipeline: Option<u32>,
    /// Context-parallel ranks.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub context: Option<u32>,
    /// Expert-parallel ranks.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expert: Option<u32>,
    /// Tensor-parallel ranks inside an expert.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expert_tensor: Option<u32>,
    /// Data-parallel ranks.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub data: Option<u32>,
    /// Activations are sharded over the sequence between tensor-parallel regions.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sequence_parallel: Option<bool>,
    /// ZeRO stage.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub zero: Option<u8>,
    /// Ranks over which ZeRO shards.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub zero_group: Option<u32>,
    /// Schedule of the pipeline, as named by the source.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub schedule: Option<String>,
    /// Layers of each chunk in pipeline order, where the source prints a layout.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub layers_per_chunk: Option<Vec<u64>>,
    /// The source says that the first and the last chunk hold one layer fewer than the others.
    #[serde(skip_serializing_if = "is_false")]
    pub short_ends: bool,
}

/// The batch as published.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PublishedBatch {
    /// Tokens per sequence.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sequence_length: Option<u64>,
    /// Sequences per step.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub global: Option<u64>,
    /// Sequences per micro-batch and data-parallel rank.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub micro: Option<u64>,
}

/// What the source says its software did; absent is not stated, which is not the same as off.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Declared {
    /// The framework, where the source names one that its group does not imply.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub framework: Option<String>,
    /// What was recomputed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub recompute: Option<Recompute>,
    /// That recomputation belongs to the same model and hardware under another plan.
    #[serde(skip_serializing_if = "is_false")]
    pub recompute_is_assumed: bool,
    /// The dispatcher belongs to the same model and hardware under another plan.
    #[serde(skip_serializing_if = "is_false")]
    pub dispatcher_is_assumed: bool,
    /// A recomputation that is selective by operator (PyTorch), without a list of operators.
    #[serde(skip_serializing_if = "is_false")]
    pub recompute_by_operator: bool,
    /// Hardware FLOPs over model FLOPs, where both utilisations are printed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hardware_over_model_flops: Option<f64>,
    /// Gradient reduction beside the backward pass.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gradient_reduce: Option<bool>,
    /// Parameter all-gather beside the forward pass.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub parameter_gather: Option<bool>,
    /// Tensor-parallel collectives beside their GEMM.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tensor: Option<bool>,
    /// Asynchronous pipeline sends.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pipeline: Option<bool>,
    /// Expert communication beside another micro-batch's computation.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expert: Option<bool>,
    /// The shared expert beside the dispatch.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shared_expert: Option<bool>,
    /// Which kernels were launched by graph.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cuda_graphs: Option<CudaGraphs>,
    /// How tokens reached experts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dispatcher: Option<ExpertDispatcher>,
    /// Layers whose activations lay with the host: as large a part of each chunk's, the first ones.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub layers_on_host: Option<u32>,
    /// Sharded parameters were gathered into buffers that are kept.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub keeps_gather_buffers: Option<bool>,
    /// Products added weight gradients up themselves.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fused_gradient_accumulation: Option<bool>,
    /// Parameters were gathered in fp8.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fp8_parameter_gather: Option<bool>,
    /// Parameters of one bucket of gradients.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bucket_parameters: Option<u64>,
    /// The model ran through a graph compiler.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub compiled: Option<bool>,
    /// Tokens took the way that the router chose, instead of a forced balance.
    #[serde(skip_serializing_if = "is_false")]
    pub natural_routing: bool,
    /// Tokens beyond an expert's capacity were dropped, so that shapes were static.
    #[serde(skip_serializing_if = "is_false")]
    pub token_drop: bool,
    /// Micro-batches whose weight gradient of the output layer waited for the pipeline's flush.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub deferred_output_gradients: Option<u64>,
    /// Embedding and loss count as a layer each when layers are spread over stages.
    #[serde(skip_serializing_if = "is_false")]
    pub ends_count_as_layers: bool,
    /// What the row says and this program does not understand.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub unread: Vec<String>,
}

/// What was measured.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Measurement {
    /// Wall time of one step in seconds: printed, or recounted from tokens/s or from a TFLOP/s
    /// whose convention is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub step_time_s: Option<f64>,
    /// TFLOP/s per GPU as printed, in whatever convention: shown beside a replay, never scored.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tflops_per_gpu: Option<f64>,
    /// Peak memory of one GPU in bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory: Option<f64>,
    /// That memory is what tensors used, without what the allocator held in reserve.
    #[serde(skip_serializing_if = "is_false")]
    pub memory_is_allocated: bool,
}

/// One published training run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PublishedRun {
    /// Name of the row.
    pub id: String,
    /// Who published it: rows of one source share their software and their habits.
    pub source: String,
    /// Title and section, for people.
    pub citation: String,
    /// Where it can be read.
    pub url: String,
    /// Year of the software.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub year: Option<u32>,
    /// Release of the software, such as `25.04`; empty where none is named.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub release: String,
    /// Completeness.
    pub quality: Quality,
    /// What was timed: `step` or `pretrain` for a training step.
    #[serde(default = "step", skip_serializing_if = "is_step")]
    pub kind: String,
    /// One of the runs that ship as scenarios: never tuned to.
    #[serde(default, skip_serializing_if = "is_false")]
    pub replay: bool,
    /// The model.
    pub model: PublishedModel,
    /// The accelerator, as the source calls it.
    pub gpu: String,
    /// How many.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gpus: Option<u32>,
    /// The network, as the source describes it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub interconnect: String,
    /// Number formats, as the source calls them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub precision: Option<String>,
    /// The plan.
    #[serde(default)]
    pub plan: PublishedPlan,
    /// The batch.
    #[serde(default)]
    pub batch: PublishedBatch,
    /// What the software did.
    #[serde(default)]
    pub declared: Declared,
    /// What came out.
    #[serde(default)]
    pub measured: Measurement,
}

fn step() -> String {
    "step".to_owned()
}

fn is_step(kind: &str) -> bool {
    kind == "step"
}

#[allow(
    clippy::trivially_copy_pass_by_ref,
    reason = "serde passes a reference"
)]
fn is_false(flag: &bool) -> bool {
    !flag
}

/// Why a line is not a published run.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {message}")]
pub struct ReadError {
    /// The line, counted from 1.
    pub line: usize,
    /// What is wrong with it.
    pub message: String,
}

/// Each line of `text` that is not empty, as JSON, through `row`.
///
/// # Errors
/// When a line is not JSON, or when `row` refuses it; the line is named.
pub fn json_lines<R>(
    text: &str,
    mut row: impl FnMut(serde_json::Value) -> Result<R, String>,
) -> Result<Vec<R>, ReadError> {
    let mut rows = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let line = line.trim_start_matches('\u{feff}').trim();
        if line.is_empty() {
            continue;
        }
        let read = serde_json::from_str(line)
            .map_err(|error| format!("not JSON: {error}"))
            .and_then(&mut row)
            .map_err(|message| ReadError {
                line: index + 1,
                message,
            })?;
        rows.push(read);
    }
    Ok(rows)
}

/// Reads JSON Lines of published runs in either spelling. Empty lines are skipped.
///
/// # Errors
/// When a line is not a JSON object, or an object without what every row must have.
pub fn read(text: &str) -> Result<Vec<PublishedRun>, ReadError> {
    json_lines(text, |value| {
        let Some(object) = value.as_object() else {
            return Err("a published run is a JSON object".to_owned());
        };
        // Only the survey spelling nests the source and the hardware.
        if object.contains_key("hardware") || object.contains_key("group") {
            survey::read(&value)
        } else {
            serde_json::from_value(value).map_err(|error| error.to_string())
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Catalogue;

    #[test]
    fn shipped_runs_are_read_back_as_they_were_written() {
        let runs = read(SHIPPED).expect("the shipped runs are well formed");
        for run in &runs {
            assert!(
                !run.citation.is_empty() && run.url.starts_with("https://"),
                "{} has no source",
                run.id
            );
            assert!(
                run.replay || run.quality == Quality::A,
                "{} is incomplete",
                run.id
            );
            let line = serde_json::to_string(run).expect("a run is plain data");
            assert_eq!(read(&line).as_deref(), Ok(std::slice::from_ref(run)));
        }
        assert!(
            SHIPPED.len() < 900_000,
            "the shipped runs are to stay small"
        );
    }

    /// Rows of one source are of the software of their day.
    #[test]
    fn a_release_names_the_profile() {
        let catalogue = Catalogue::builtin();
        let runs = read(SHIPPED).expect("the shipped runs are well formed");
        let of = |source: &str, release: &str| {
            let run = runs
                .iter()
                .find(|run| run.source == source && run.release == release)
                .unwrap_or_else(|| panic!("{source} of {release}"));
            let setup = setup(run, catalogue).expect("a whole row");
            let node = &setup.cluster.node;
            (
                setup.training.stack.name.clone(),
                node.nic.rate.bytes_per_sec() / 125_000_000,
            )
        };
        let stack = |source: &str, release: &str| of(source, release).0;
        assert_eq!(stack("llm-foundry", "2023-05"), "llm-foundry-2023");
        assert_eq!(stack("llm-foundry", "2023-10"), "llm-foundry-2023-10");
        assert_eq!(
            of("bigscience", "2022-02-23"),
            ("megatron-deepspeed-2022-02".into(), 40)
        );
        assert_eq!(
            of("bigscience", "2022-02-26"),
            ("megatron-deepspeed-2022-02".into(), 100)
        );
        assert_eq!(
            of("bigscience", "2022-02-28"),
            ("megatron-deepspeed-2022".into(), 100)
        );
    }

    #[test]
    fn shipped_runs_become_setups() {
        let catalogue = Catalogue::builtin();
        let runs = read(SHIPPED).expect("the shipped runs are well formed");
        let unusable: Vec<String> = runs
            .iter()
            .filter(|run| !run.replay)
            .filter_map(|run| Some(format!("{}: {}", run.id, setup(run, catalogue).err()?)))
            .collect();
        assert_eq!(
            unusable,
            [
                "bs-prequel-L648: ranks do not multiply to the number of GPUs: 80 x 8 ranks on 320 GPUs"
            ]
        );
    }

    #[test]
    fn a_survey_row_needs_little() {
        let run = |text: &str| read(text).map(|mut runs| runs.remove(0));
        let least = run(r#"{"id": "x", "group": "new", "hardware": {"gpu": "H100-SXM-80GB"}}"#)
            .expect("enough");
        assert_eq!(least.quality, Quality::C);
        assert_eq!(
            setup(&least, Catalogue::builtin()).unwrap_err().reason,
            "dimensions not published"
        );
        let check = |text: &str, expected: &str| {
            assert_eq!(read(text).unwrap_err().to_string(), expected);
        };
        check("\n\n[1]", "line 3: a published run is a JSON object");
        check(
            r#"{"group": "new", "hardware": {}}"#,
            "line 1: the row has no `id`",
        );
        check(
            r#"{"id": "x", "group": "new"}"#,
            "line 1: the row has no `hardware.gpu`",
        );
    }

    /// A small generator of damage: any JSON value of a row may become any of these.
    fn damaged(value: &mut serde_json::Value, state: &mut u64) {
        *state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        let choice = (*state >> 33) % 160;
        let replacements = [
            serde_json::json!(null),
            serde_json::json!(0),
            serde_json::json!(-1),
            serde_json::json!(3),
            serde_json::json!(1.5),
            serde_json::json!(4_294_967_295_u64),
            serde_json::json!(u64::MAX),
            serde_json::json!(1e300),
            serde_json::json!("full selective none (t*3|)*9 9999999x9999999Gb"),
            serde_json::json!("\u{e9}4 x 100 Gb/s"),
            serde_json::json!(true),
            serde_json::json!([]),
            serde_json::json!({}),
        ];
        if let Some(replacement) = usize::try_from(choice)
            .ok()
            .and_then(|choice| replacements.get(choice))
        {
            *value = replacement.clone();
            return;
        }
        match value {
            serde_json::Value::Object(map) => {
                map.values_mut().for_each(|value| damaged(value, state))
            }
            serde_json::Value::Array(list) => {
                list.iter_mut().for_each(|value| damaged(value, state))
            }
            _ => {}
        }
    }

    #[test]
    fn damaged_rows_are_refused_and_never_panic() {
        let survey = r#"{"id":"x","group":"megatron-bridge","kind":"step","year":2026,"source":{"title":"t","section":"26.04","url":"https://x"},"model":{"name":"qwen3","family":"moe","layers":48,"hidden":2048,"heads":32,"kv_heads":4,"head_dim":128,"ffn":0,"gated":true,"vocab":151936,"experts":128,"topk":8,"expert_ffn":768,"shared_experts":1,"first_dense_layers":1,"seq_len":4096,"sliding_window":128,"sliding_every":2,"mla":{"q_lora_rank":0,"kv_lora_rank":512,"qk_nope_head_dim":128,"qk_rope_head_dim":64,"v_head_dim":128}},"hardware":{"gpu":"GB200-NVL72","gpus":256,"interconnect":"4 x 100 Gb/s"},"precision":"MXFP8","parallel":{"tp":2,"pp":4,"vpp":3,"cp":1,"ep":8,"dp":32,"sp":true,"fsdp":8,"zero":1,"zero1_group":"8","schedule":"1F1B"},"batch":{"mbs":4,"gbs_seqs":512},"recompute":"selective","overlap":{"TP_COMM_OVERLAP":"True"},"notes":"layout Et|(tt|)*30mL","measured":{"mfu_pct":40,"hfu_pct":50,"mem_GB":30},"derived":{"step_time_s":6.5},"recipe":{"function":"f","model.recompute_granularity":"full","model.recompute_num_layers":"5"},"quality":"A","software_epoch":"26.08"}"#;
        let catalogue = Catalogue::builtin();
        let mut state = 1;
        let shipped = SHIPPED.lines().step_by(40);
        for line in std::iter::repeat_n(survey, 3_000)
            .chain(shipped.flat_map(|line| std::iter::repeat_n(line, 100)))
        {
            let mut value: serde_json::Value = serde_json::from_str(line).expect("undamaged");
            damaged(&mut value, &mut state);
            for run in read(&value.to_string()).into_iter().flatten() {
                let _ = setup(&run, catalogue);
            }
        }
        // Damage below the level of JSON: a line cut anywhere.
        for end in (0..survey.len()).filter(|end| survey.is_char_boundary(*end)) {
            assert!(read(&survey[..end]).is_err() || survey[..end].is_empty());
        }
    }
}
