//! From a published run to a setup: what is known is taken, what is a habit is noted.

use super::habits::{Habits, Interleaving, Models, habits};
use super::releases::with_settings;
use super::{PublishedModel, PublishedRun};
use crate::{Catalogue, draws};
use rackflow_plan::{Fidelity, Jitter, Setup};
use rackflow_topology::{Cluster, Fabric, Node};
use rackflow_units::{Bandwidth, Bytes};
use rackflow_workload::{
    ActivationOffload, Attention, CudaGraphs, ExpertDispatcher, Model, OffloadedInput, Parallelism,
    Recipe, Recompute, Routing, Schedule, SoftwareStack, Training, Zero,
};
use std::collections::BTreeMap;

/// Spread of expert load under natural routing: the standard deviation of the logarithm of a
/// rank's load. A typical value of trained routers with an auxiliary loss, unverified.
pub const NATURAL_ROUTING_SIGMA: f64 = 0.1;

/// SMs of DeepEP's kernels where a run names it (deepseek-ai/DeepEP, `Buffer.num_sms`; Megatron-Core,
/// `moe_deepep_num_sms`).
pub const DEEP_EP_SMS: u32 = 20;

/// Why a published run cannot be simulated.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{reason}{}{detail}", if detail.is_empty() { "" } else { ": " })]
pub struct Unusable {
    /// The kind of reason, for counting.
    pub reason: &'static str,
    /// What exactly, for reading.
    pub detail: String,
}

fn unusable(reason: &'static str) -> Unusable {
    Unusable {
        reason,
        detail: String::new(),
    }
}

/// Turns a published run into a setup, looking hardware and software up in `catalogue`. The model
/// is built from the row's own dimensions.
///
/// # Errors
/// When the plan is not fully published, does not add up, or needs what the catalogue lacks.
pub fn setup(run: &PublishedRun, catalogue: &Catalogue) -> Result<Setup, Unusable> {
    if !matches!(run.kind.as_str(), "step" | "pretrain") {
        return Err(Unusable {
            reason: "not a pre-training step",
            detail: run.kind.clone(),
        });
    }
    if let Some(unread) = run.declared.unread.first() {
        return Err(Unusable {
            reason: "a setting is not understood",
            detail: unread.clone(),
        });
    }
    let (run, from) = with_settings(run);
    let run = &run;
    let mut assumed = Vec::new();
    if let Some(from) = from {
        assumed.push(format!(
            "dispatcher, graphs, overlap, recomputation and what lies with the host as scripts of the release set them: {from}"
        ));
    }
    let habits = habits(run);
    let model = model(run, &habits, &mut assumed)?;
    let gpus = run
        .gpus
        .filter(|gpus| *gpus > 0)
        .ok_or_else(|| unusable("number of GPUs not published"))?;
    let cluster = cluster(run, &habits, gpus, catalogue, &mut assumed)?;
    let recipe = recipe(run, &habits)?;
    let stack = stack(run, &habits, recipe, catalogue, &mut assumed)?;
    let parallelism = parallelism(run, &habits, &model, gpus, &mut assumed)?;
    let (global_batch, micro_batch) = batch(run, &parallelism, &mut assumed)?;
    let layers_per_chunk = layers_per_chunk(run, &model, &parallelism, &mut assumed);
    let training = Training {
        recompute: recompute(run, &habits, &model, &mut assumed),
        schedule: schedule(run)?,
        routing: routing(run, &model, &mut assumed),
        sequence_length: run
            .batch
            .sequence_length
            .filter(|length| *length > 0)
            .ok_or_else(|| unusable("sequence length not published"))?,
        model,
        stack,
        recipe,
        global_batch,
        micro_batch,
        parallelism,
        images: None,
        layers_per_chunk,
        assumed,
    };
    let token_draws = draws::tokens(&training.model, 0);
    Ok(Setup {
        name: run.id.clone(),
        cluster,
        training,
        rank_order: habits.rank_order,
        seats: None,
        stragglers: Vec::new(),
        jitter: Jitter::NONE,
        faults: Vec::new(),
        seeds: 1,
        fidelity: Fidelity::Folded,
        seed: 0,
        token_draws,
    })
}

/// The model, from the row's own dimensions.
fn model(
    run: &PublishedRun,
    habits: &Habits,
    assumed: &mut Vec<String>,
) -> Result<Model, Unusable> {
    let published = &run.model;
    let need = |value: Option<u64>| {
        value
            .filter(|n| *n > 0)
            .ok_or_else(|| unusable("dimensions not published"))
    };
    if dimensions(run).any(|n| n > LARGEST_DIMENSION) {
        return Err(unusable("dimensions beyond any model"));
    }
    if !matches!(published.family.as_str(), "dense" | "moe") {
        return Err(Unusable {
            reason: "not a plain transformer",
            detail: published.family.clone(),
        });
    }
    if published.family == "moe" && published.moe.is_none() {
        return Err(unusable("dimensions not published"));
    }
    let layers = need(published.layers)?;
    let hidden = need(published.hidden)?;
    let heads = need(published.heads)?;
    let ffn = published.ffn.unwrap_or(0);
    if ffn == 0 && published.moe.is_none() {
        return Err(unusable("dimensions not published"));
    }
    let vocab = published
        .vocab
        .filter(|vocab| *vocab > 0)
        .unwrap_or_else(|| {
            let (vocabulary, why) = habits.vocabulary;
            assumed.push(format!("vocabulary {vocabulary}: not published, {why}"));
            vocabulary
        });
    let family = Family::of(published);
    let attention = match published.latent {
        Some(latent) => Attention::Latent {
            heads,
            q_lora_rank: latent.q_lora_rank,
            kv_lora_rank: latent.kv_lora_rank,
            qk_nope_head_dim: latent.qk_nope_head_dim,
            qk_rope_head_dim: latent.qk_rope_head_dim,
            v_head_dim: latent.v_head_dim,
            latents: 1,
            sparse: None,
        },
        None => Attention::Grouped {
            heads,
            kv_heads: published
                .kv_heads
                .filter(|heads| *heads > 0)
                .unwrap_or(heads),
            head_dim: published
                .head_dim
                .filter(|dim| *dim > 0)
                .unwrap_or(hidden / heads)
                .max(1),
            sliding_window: published.window,
            full_every: published.full_every,
            chunked: false,
            qk_norm: family.qk_norm,
            sinks: family.sinks,
        },
    };
    Ok(Model {
        name: published.name.clone(),
        layers,
        hidden,
        attention,
        ffn,
        gated: published.gated,
        moe: published.moe.clone(),
        vocab,
        tied_embeddings: family.tied_embeddings,
        learned_positions: if family.learned_positions {
            run.batch.sequence_length.unwrap_or(0)
        } else {
            0
        },
        biases: family.biases,
        clamped: family.clamped,
        scaled_rope: family.clamped,
        vision: None,
        mtp: published.mtp.clone(),
        sources: BTreeMap::from([("*".to_owned(), format!("{} <{}>", run.citation, run.url))]),
    })
}

/// No published model has a width, a vocabulary or a sequence beyond this.
const LARGEST_DIMENSION: u64 = 1 << 24;

fn dimensions(run: &PublishedRun) -> impl Iterator<Item = u64> {
    let model = &run.model;
    let moe = model.moe.iter().flat_map(|moe| {
        [
            moe.experts,
            moe.top_k,
            moe.expert_ffn,
            moe.shared_ffn,
            moe.first_dense_layers,
            moe.every,
        ]
    });
    let latent = model.latent.iter().flat_map(|latent| {
        [
            latent.q_lora_rank.unwrap_or(0),
            latent.kv_lora_rank,
            latent.qk_nope_head_dim,
            latent.qk_rope_head_dim,
            latent.v_head_dim,
        ]
    });
    [
        model.layers,
        model.hidden,
        model.heads,
        model.kv_heads,
        model.head_dim,
        model.ffn,
        model.vocab,
        model.window,
        model.full_every,
        run.batch.sequence_length,
        run.batch.micro,
    ]
    .into_iter()
    .flatten()
    .chain(moe)
    .chain(latent)
}

/// What the name of a model family implies and sources do not repeat.
struct Family {
    tied_embeddings: bool,
    learned_positions: bool,
    biases: bool,
    qk_norm: bool,
    sinks: bool,
    clamped: bool,
}

impl Family {
    fn of(model: &PublishedModel) -> Self {
        let name = model.name.to_ascii_lowercase();
        let (tied_embeddings, learned_positions, biases) = if name.starts_with("bloom") {
            (true, false, true) // ALiBi
        } else if name.starts_with("mpt") {
            // What the printed numbers of parameters leave beside the products are biases.
            (true, true, true)
        } else if name.starts_with("gpt-oss") {
            (false, false, true)
        } else if name.starts_with("gpt") || name.starts_with("mt-nlg") || name.starts_with("opt") {
            (true, true, true)
        } else {
            // LLaMA and its heirs, Nemotron, DeepSeek, Qwen, Grok
            (false, false, false)
        };
        Self {
            tied_embeddings,
            learned_positions,
            biases,
            qk_norm: name.starts_with("qwen3"),
            sinks: name.starts_with("gpt-oss"),
            clamped: name.starts_with("gpt-oss"),
        }
    }
}

fn recipe(run: &PublishedRun, habits: &Habits) -> Result<Recipe, Unusable> {
    let Some(precision) = &run.precision else {
        return Err(unusable("precision not published"));
    };
    match precision.to_ascii_uppercase().as_str() {
        "FP16" | "FP16/BF16" => Ok(Recipe::Fp16),
        "BF16" => Ok(Recipe::Bf16),
        "FP8" => Ok(habits.fp8),
        "FP8-CS" | "FP8-TENSORWISE" => Ok(Recipe::Fp8),
        "FP8-ROWWISE" => Ok(Recipe::Fp8Rowwise),
        "FP8-DS" => Ok(Recipe::Fp8Delayed),
        "FP8-BLOCKWISE" | "FP8-SC" => Ok(Recipe::Fp8Blockwise),
        "MXFP8" | "FP8-MX" => Ok(Recipe::Mxfp8),
        "NVFP4" => Ok(Recipe::Nvfp4),
        _ => Err(Unusable {
            reason: "precision not understood",
            detail: precision.clone(),
        }),
    }
}

/// The profile of the source's software, with what the row declares about itself.
fn stack(
    run: &PublishedRun,
    habits: &Habits,
    recipe: Recipe,
    catalogue: &Catalogue,
    assumed: &mut Vec<String>,
) -> Result<SoftwareStack, Unusable> {
    let mut stack = catalogue
        .stack(habits.stack)
        .cloned()
        .ok_or_else(|| Unusable {
            reason: "software stack not in the catalogue",
            detail: habits.stack.to_owned(),
        })?;
    let declared = &run.declared;
    let overlap = &mut stack.overlap;
    for (setting, said) in [
        (&mut overlap.gradient_reduce, declared.gradient_reduce),
        (&mut overlap.parameter_gather, declared.parameter_gather),
        (&mut overlap.tensor, declared.tensor),
        (&mut overlap.pipeline, declared.pipeline),
        (&mut overlap.expert, declared.expert),
        (&mut overlap.shared_expert, declared.shared_expert),
    ] {
        *setting = said.unwrap_or(*setting);
    }
    if stack.tensor_reduce_sms > 0
        && stack.overlap.tensor
        && run.plan.tensor > Some(1)
        && run.gpu.trim_start_matches('G').starts_with('B')
    {
        stack.tensor_reduce_sms = 0;
        assumed.push(
            "copy engines move the pieces of tensor-parallel reductions: the source's \
             configurations of Blackwell"
                .to_owned(),
        );
    }
    stack.cuda_graphs = declared.cuda_graphs.unwrap_or(stack.cuda_graphs);
    if declared.dispatcher == Some(ExpertDispatcher::DeepEp)
        && stack.dispatcher != ExpertDispatcher::DeepEp
    {
        stack.dispatch_sms = DEEP_EP_SMS;
    }
    stack.dispatcher = declared.dispatcher.unwrap_or(stack.dispatcher);
    stack.deferred_output_gradients = declared
        .deferred_output_gradients
        .unwrap_or(stack.deferred_output_gradients);
    if declared.token_drop {
        stack.static_expert_shapes = true;
        if declared.cuda_graphs.is_none() && stack.cuda_graphs == CudaGraphs::None {
            stack.cuda_graphs = CudaGraphs::Partial;
        }
        assumed.push(
            "token dropping with a capacity of 1: shapes are static, all tokens are computed"
                .to_owned(),
        );
    }
    if habits.whole_graphs_overlap_experts
        && stack.cuda_graphs == CudaGraphs::Full
        && recipe == Recipe::Mxfp8
        && run.model.moe.is_some()
        && declared.expert.is_none()
    {
        stack.overlap.expert = true;
        assumed.push(
            "the exchange of tokens beside another micro-batch: the habit of recipes with whole \
             iterations in graphs and MXFP8"
                .to_owned(),
        );
    }
    if habits.plain_launches_of_fp8_mixtures
        && recipe == Recipe::Fp8
        && run.model.moe.is_some()
        && run.gpu.starts_with("H100")
        && stack.cuda_graphs == CudaGraphs::Partial
    {
        stack.cuda_graphs = CudaGraphs::None;
        assumed.push(
            "kernels are launched one by one: graphs entered the recipes of FP8 mixtures on H100 \
             after this release"
                .to_owned(),
        );
    }
    match habits.bf16_gradients {
        Some(Models::Named(family)) if run.model.name.starts_with(family) => {
            stack.gradient_bytes = 2;
            assumed.push(format!(
                "gradients in bf16: the source's configurations of {family} say so"
            ));
        }
        Some(Models::Mixtures) if run.model.moe.is_some() => {
            stack.gradient_bytes = 2;
            stack.optimizer_bytes = if run.model.latent.is_some() { 6 } else { 10 };
            assumed.push(
                "gradients in bf16 and a precision-aware optimizer: the source's configurations of \
                 mixtures say so"
                    .to_owned(),
            );
        }
        _ => {}
    }
    match declared.fp8_parameter_gather {
        Some(true) => stack.parameter_gather_bytes = 1,
        Some(false) => stack.parameter_gather_bytes = 2,
        None if habits.fp8_parameter_gather
            && matches!(recipe, Recipe::Fp8 | Recipe::Fp8Delayed) =>
        {
            stack.parameter_gather_bytes = 1;
            assumed.push("weights are gathered in fp8: the stack's habit".to_owned());
        }
        None => {}
    }
    for (setting, said) in [
        (
            &mut stack.keeps_gather_buffers,
            declared.keeps_gather_buffers,
        ),
        (
            &mut stack.fused_gradient_accumulation,
            declared.fused_gradient_accumulation,
        ),
    ] {
        *setting = said.unwrap_or(*setting);
    }
    if let (Some(layers), Some(of)) = (declared.layers_on_host, run.model.layers)
        && layers > 0
    {
        // The last layer of a model keeps what it has.
        let able = of.saturating_sub(1).max(1) as f64;
        stack.activation_offload = ActivationOffload {
            inputs: vec![OffloadedInput::Layer],
            fraction: (f64::from(layers) / able).min(1.0),
        };
    }
    if let Some(parameters) = declared.bucket_parameters {
        stack.bucket = Bytes::new(parameters.saturating_mul(stack.gradient_bytes));
    }
    Ok(stack)
}

fn parallelism(
    run: &PublishedRun,
    habits: &Habits,
    model: &Model,
    gpus: u32,
    assumed: &mut Vec<String>,
) -> Result<Parallelism, Unusable> {
    let plan = &run.plan;
    let (Some(tensor), Some(pipeline)) = (plan.tensor, plan.pipeline) else {
        return Err(unusable("parallelism not published"));
    };
    let context = plan.context.unwrap_or(1);
    let inner = u64::from(tensor)
        .saturating_mul(u64::from(pipeline))
        .saturating_mul(u64::from(context));
    let mismatch = |detail: String| Unusable {
        reason: "ranks do not multiply to the number of GPUs",
        detail,
    };
    if inner == 0 || u64::from(gpus) % inner != 0 {
        return Err(mismatch(format!("{gpus} GPUs in groups of {inner}")));
    }
    let data = u32::try_from(u64::from(gpus) / inner).expect("no more data ranks than GPUs");
    if plan.data.is_some_and(|published| published != data) {
        return Err(mismatch(format!(
            "{inner} x {} ranks on {gpus} GPUs",
            plan.data.unwrap_or_default()
        )));
    }
    let expert = if model.moe.is_some() {
        plan.expert.unwrap_or(1)
    } else {
        1
    };
    let zero = match plan.zero {
        Some(stage) => Zero::try_from(stage).map_err(|detail| Unusable {
            reason: "ZeRO stage",
            detail,
        })?,
        None => {
            if data > 1 {
                assumed.push(format!(
                    "ZeRO stage {}: the stack's habit",
                    u8::from(habits.zero)
                ));
            }
            habits.zero
        }
    };
    let sequence_parallel = tensor > 1
        && plan.sequence_parallel.unwrap_or_else(|| {
            if habits.sequence_parallel {
                assumed.push(
                    "sequence parallelism beside tensor parallelism: the stack's habit".to_owned(),
                );
            }
            habits.sequence_parallel
        });
    Ok(Parallelism {
        tensor,
        sequence_parallel,
        context,
        pipeline,
        virtual_pipeline: virtual_pipeline(run, habits, model, pipeline, assumed),
        data,
        expert,
        expert_tensor: plan
            .expert_tensor
            .unwrap_or_else(|| expert_tensor(habits, tensor, context, data, expert)),
        zero,
        zero_group: plan
            .zero_group
            .filter(|group| *group < data && data % group == 0),
    })
}

/// Before expert tensor parallelism had a setting of its own, Megatron cut each expert over the
/// tensor ranks and spread experts over the data ranks; NeMo's recipes kept that default.
fn expert_tensor(habits: &Habits, tensor: u32, context: u32, data: u32, expert: u32) -> u32 {
    let fits = expert <= data.saturating_mul(context);
    if habits.experts_cut_over_tensor && fits && expert > 1 {
        tensor
    } else {
        1
    }
}

fn virtual_pipeline(
    run: &PublishedRun,
    habits: &Habits,
    model: &Model,
    pipeline: u32,
    assumed: &mut Vec<String>,
) -> u32 {
    if pipeline == 1 {
        return 1;
    }
    if let Some(chunks) = run.plan.virtual_pipeline {
        return chunks;
    }
    let layers = model.layers + if run.plan.short_ends { 2 } else { 0 };
    let per_stage = layers / u64::from(pipeline);
    match habits.interleaving {
        Interleaving::OneLayerPerChunk if layers.is_multiple_of(u64::from(pipeline)) => {
            assumed.push(format!(
                "{per_stage} chunks per stage, one layer each: not published, the recipes' habit"
            ));
            u32::try_from(per_stage).unwrap_or(1)
        }
        _ => 1,
    }
}

fn batch(
    run: &PublishedRun,
    parallelism: &Parallelism,
    assumed: &mut Vec<String>,
) -> Result<(u64, u64), Unusable> {
    let global = run
        .batch
        .global
        .filter(|n| *n > 0)
        .ok_or_else(|| unusable("batch not published"))?;
    let micro = match run.batch.micro.filter(|n| *n > 0) {
        Some(micro) => micro,
        // The replays are shown whatever is missing, and are never scored or tuned to.
        None if run.replay => {
            assumed.push("micro-batches of one sequence: not published".to_owned());
            1
        }
        None => return Err(unusable("micro-batch not published")),
    };
    let together = u64::from(parallelism.data).saturating_mul(micro);
    if global % together != 0 {
        return Err(Unusable {
            reason: "the batch does not divide into micro-batches",
            detail: format!(
                "{global} sequences over {} ranks of {micro}",
                parallelism.data
            ),
        });
    }
    Ok((global, micro))
}

/// Layers of each chunk, where they are not spread evenly.
///
/// Megatron and DeepSpeed keep chunks equal and let the ends, which also hold the embedding and
/// the loss, hold fewer layers. One layer fewer at each end counts embedding and loss as a layer
/// each. Where more is missing, the last chunk gives first (it holds loss and prediction modules),
/// then the first chunk, then those before the last.
fn layers_per_chunk(
    run: &PublishedRun,
    model: &Model,
    parallelism: &Parallelism,
    assumed: &mut Vec<String>,
) -> Option<Vec<u64>> {
    let chunks = u64::from(parallelism.pipeline) * u64::from(parallelism.virtual_pipeline);
    if chunks == 1 {
        return None;
    }
    if let Some(layout) = &run.plan.layers_per_chunk
        && layout.len() as u64 == chunks
        && layout.iter().sum::<u64>() == model.layers
    {
        return Some(layout.clone());
    }
    if model.layers.is_multiple_of(chunks) || chunks > model.layers.saturating_add(2) {
        return None;
    }
    if !(run.plan.short_ends || run.declared.ends_count_as_layers) {
        assumed.push(format!(
            "layers over {chunks} chunks: the ends hold fewer, as the stack spreads them"
        ));
    }
    // Prediction modules and leading dense layers make the two ends unlike each other.
    let alike = model.mtp.is_none()
        && model
            .moe
            .as_ref()
            .is_none_or(|moe| moe.first_dense_layers == 0);
    Some(spread(model.layers, chunks, alike))
}

/// `layers` over `chunks` of equal size, with what is missing taken from the ends.
fn spread(layers: u64, chunks: u64, ends_alike: bool) -> Vec<u64> {
    let each = layers.div_ceil(chunks);
    let mut missing = each * chunks - layers;
    let mut spread = vec![each; usize::try_from(chunks).expect("no more chunks than layers")];
    let last = spread.len() - 1;
    if missing == 2 && ends_alike {
        spread[0] -= 1;
        spread[last] -= 1;
        return spread;
    }
    for index in [last, 0].into_iter().chain((1..last).rev()) {
        let gives = missing.min(spread[index]);
        spread[index] -= gives;
        missing -= gives;
    }
    spread
}

fn schedule(run: &PublishedRun) -> Result<Schedule, Unusable> {
    let Some(name) = &run.plan.schedule else {
        return Ok(Schedule::OneForwardOneBackward);
    };
    match name.to_ascii_uppercase().as_str() {
        "1F1B" | "1F1B-I" | "INTERLEAVED" | "INTERLEAVED 1F1B" => {
            Ok(Schedule::OneForwardOneBackward)
        }
        "GPIPE" => Ok(Schedule::Gpipe),
        "ZB-1P" | "ZB-H1" => Ok(Schedule::ZeroBubbleH1),
        "ZB-2P" | "ZB-H2" => Ok(Schedule::ZeroBubbleH2),
        "DUALPIPE" => Ok(Schedule::Dualpipe),
        _ => Err(Unusable {
            reason: "schedule not understood",
            detail: name.clone(),
        }),
    }
}

fn recompute(
    run: &PublishedRun,
    habits: &Habits,
    model: &Model,
    assumed: &mut Vec<String>,
) -> Recompute {
    if let Some(recompute) = &run.declared.recompute {
        if run.declared.recompute_is_assumed {
            assumed.push(
                "recomputation as in the recipe of another plan of the same model".to_owned(),
            );
        }
        return recompute.clone();
    }
    if run.declared.recompute_by_operator {
        // A forward pass is a third of the model FLOPs.
        let Some(ratio) = run.declared.hardware_over_model_flops else {
            return Recompute::Operators;
        };
        let share = ((ratio - 1.0) * 3.0).clamp(0.0, 1.0);
        let layers = (share * model.layers as f64).round() as u32;
        assumed.push(format!(
            "recomputation by operator stands as {layers} whole layers, which recompute as many FLOPs"
        ));
        return if layers == 0 {
            Recompute::None
        } else {
            Recompute::FullLayers(layers)
        };
    }
    if let Some(why) = habits.recomputes_layers {
        assumed.push(format!("whole layers are recomputed: {why}"));
        return Recompute::Full;
    }
    assumed.push("nothing is recomputed: not published".to_owned());
    Recompute::None
}

fn routing(run: &PublishedRun, model: &Model, assumed: &mut Vec<String>) -> Routing {
    if model.moe.is_none() {
        return Routing::Balanced;
    }
    // Production runs route real text; vendors' benchmarks force the balance.
    let production = matches!(
        run.source.as_str(),
        "deepseek-v3" | "megascale-moe" | "llama4"
    );
    if run.declared.natural_routing || production {
        assumed.push(format!(
            "natural routing: spread {NATURAL_ROUTING_SIGMA} of a rank's load"
        ));
        return Routing::Lognormal {
            sigma: NATURAL_ROUTING_SIGMA,
        };
    }
    Routing::Balanced
}

/// The machine: a catalogue node by accelerator, with the NICs that the source declares.
fn cluster(
    run: &PublishedRun,
    habits: &Habits,
    gpus: u32,
    catalogue: &Catalogue,
    assumed: &mut Vec<String>,
) -> Result<Cluster, Unusable> {
    let network = run.interconnect.to_ascii_lowercase();
    let name = node_name(&run.gpu, &network).ok_or_else(|| Unusable {
        reason: "accelerator not in the catalogue",
        detail: run.gpu.clone(),
    })?;
    let look_up = |name: &str| {
        catalogue.node(name).ok_or_else(|| Unusable {
            reason: "node not in the catalogue",
            detail: name.to_owned(),
        })
    };
    let mut node = look_up(name)?;
    if run.gpu == "A100-SXM-40GB" {
        node.accelerator = look_up("hgx-a100-40-4x100g")?.accelerator;
        node.name = format!("{name}-40");
    }
    if gpus > node.gpus && !gpus.is_multiple_of(node.gpus) && node.gpus == 72 {
        let part = format!("{name}-64of72");
        if let Ok(smaller) = look_up(&part)
            && gpus.is_multiple_of(smaller.gpus)
        {
            assumed.push(
                "64 of the 72 GPUs of each rack are used, as jobs of powers of two do".to_owned(),
            );
            node = smaller;
        }
    }
    if node.gpus <= 8
        && let Some(total) = node_gigabits(&network).filter(|total| (1..1_000_000).contains(total))
        && total != node.nic.rate.bytes_per_sec() * u64::from(node.nic.count) / 125_000_000
    {
        node.nic.rate =
            Bandwidth::from_bytes_per_sec(total * 125_000_000 / u64::from(node.nic.count.max(1)));
        node.name = format!("{} with {total} Gbit/s", node.name);
    }
    if let Some(gigabits) = habits.nic_gigabits
        && gpus > node.gpus
    {
        node.nic.rate = Bandwidth::from_bytes_per_sec(gigabits * 125_000_000);
        node.name = format!("{} at {gigabits} Gbit/s per NIC", node.name);
        assumed.push(format!(
            "NICs at {gigabits} Gbit/s: the source's nodes before they were tuned"
        ));
    }
    if gpus > node.gpus && !gpus.is_multiple_of(node.gpus) {
        shrink_domain(&mut node, gpus, assumed)?;
    }
    Ok(Cluster {
        parts: Vec::new(),
        fabric: fabric(&node, gpus, &network, catalogue, assumed)?,
        node,
        gpus,
    })
}

fn node_name(gpu: &str, network: &str) -> Option<&'static str> {
    Some(match gpu {
        "A100-SXM-80GB" if network.contains("jean zay") => "jean-zay-a100",
        "A100-SXM-80GB" if network.contains("4 x 100 gb/s") => "hgx-a100-4x100g",
        "A100-SXM-80GB" | "A100-SXM-40GB" if network.contains("roce") => "hgx-a100-roce",
        "A100-SXM-80GB" | "A100-SXM-40GB" => "dgx-a100",
        "H100-SXM-80GB" => "dgx-h100",
        "H100-SXM-96GB-HBM2e-500W" => "hgx-h100-hbm2e-500w",
        "H800-SXM-80GB" => "hgx-h800",
        "H200-SXM-141GB" => "hgx-h200",
        "B200-SXM-180GB" => "dgx-b200",
        "B300-SXM-270GB" => "dgx-b300",
        "GB200-NVL72" => "gb200-nvl72",
        "GB300-NVL72" => "gb300-nvl72",
        _ => return None,
    })
}

/// The whole number that `word` begins with, and what follows it.
fn number(word: &str) -> Option<(u64, &str)> {
    let digits = word.bytes().take_while(u8::is_ascii_digit).count();
    Some((word[..digits].parse().ok()?, &word[digits..]))
}

fn is_rate(unit: &str) -> bool {
    matches!(unit, "g" | "gb/s" | "gbps" | "gbit/s")
}

/// Gbit/s of all compute NICs of one node, where the text says: `8x200G`, `4 x 100 Gb/s`,
/// `Compute: 8x ConnectX-7 IB NDR 400Gb/s`, `800 Gb/s per 8-GPU node`, `800 Gbps`.
fn node_gigabits(network: &str) -> Option<u64> {
    let text = network
        .split_once("compute:")
        .map_or(network, |(_, after)| after);
    let text = text.split([',', '+', ';']).next()?;
    if text.contains("per gpu") || text.contains("section title") || text.contains("roce2") {
        return None;
    }
    let words: Vec<&str> = text
        .split([' ', '(', ')'])
        .filter(|word| !word.is_empty())
        .collect();
    let mut interfaces = None;
    for (index, word) in words.iter().enumerate() {
        let Some((n, unit)) = number(word) else {
            continue;
        };
        let next = words.get(index + 1).copied().unwrap_or_default();
        if let Some(rate) = unit.strip_prefix('x') {
            interfaces = Some(n);
            if let Some((rate, unit)) = number(rate)
                && is_rate(unit)
            {
                return n.checked_mul(rate);
            }
        } else if unit.is_empty() && next == "x" {
            interfaces = Some(n);
        } else if is_rate(unit) || (unit.is_empty() && is_rate(next)) {
            let whole_node = text.contains("per 8-gpu node") || words.len() <= 2;
            return match interfaces {
                Some(count) => count.checked_mul(n),
                None => whole_node.then_some(n),
            };
        }
    }
    None
}

/// Jobs of many racks take whole trays and the same number in each rack: 64 of 72 GPUs for a job
/// of 512.
fn shrink_domain(node: &mut Node, gpus: u32, assumed: &mut Vec<String>) -> Result<(), Unusable> {
    let full = node.gpus;
    let used = (1..=full)
        .rev()
        .filter(|n| full <= 8 || n % 4 == 0)
        .find(|n| gpus.is_multiple_of(*n) && n * 2 > full);
    let Some(used) = used.filter(|_| full > 8) else {
        return Err(Unusable {
            reason: "GPUs do not fill nodes evenly",
            detail: format!("{gpus} GPUs in nodes of {full}"),
        });
    };
    assumed.push(format!(
        "{used} of {full} GPUs of each NVLink domain are used"
    ));
    node.nic.count = (node.nic.count * used / full).max(1);
    node.gpus = used;
    node.scale_up.domain = node.scale_up.domain.min(used);
    node.rack.gpus = node.rack.gpus.min(used);
    Ok(())
}

/// Sources describe their network in a few words: rail-optimised trees are what NVIDIA's
/// reference design wires, and hashed Ethernet paths collide.
fn fabric(
    node: &Node,
    gpus: u32,
    network: &str,
    catalogue: &Catalogue,
    assumed: &mut Vec<String>,
) -> Result<Fabric, Unusable> {
    let nics = u64::from(gpus) * u64::from(node.nic.count) / u64::from(node.gpus.max(1));
    // Two tiers of 64-port switches end at 2,048 NICs.
    let small = nics <= 2_048;
    let name = if network.contains("multi-plane") {
        "deepseek-mpft"
    } else if network.contains("24k cluster") {
        "meta-roce-24k"
    } else if network.contains("omni-path") {
        "ib-two-tier"
    } else if small {
        "rail-optimized"
    } else {
        "rail-optimized-three-tier"
    };
    let mut fabric = catalogue.fabric(name).cloned().ok_or_else(|| Unusable {
        reason: "fabric not in the catalogue",
        detail: name.to_owned(),
    })?;
    if gpus > node.gpus && !matches!(name, "deepseek-mpft" | "meta-roce-24k") {
        assumed.push(format!(
            "fabric {name}: the source does not describe the switches"
        ));
    }
    let hashed = network.contains("roce") && !network.contains("roce/ib");
    if let Fabric::RailOptimized(tree) = &mut fabric
        && hashed
    {
        tree.load_balance = ETHERNET_LOAD_BALANCE;
    }
    Ok(fabric)
}

/// Fraction of the fair share that hashed paths leave between leaves; typical, unverified.
const ETHERNET_LOAD_BALANCE: f64 = 0.85;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_are_taken_from_the_ends() {
        let check = |layers, chunks, alike, ends: [u64; 3]| {
            let found = spread(layers, chunks, alike);
            assert_eq!(found.iter().sum::<u64>(), layers, "{found:?}");
            assert_eq!(
                [found[0], found[1], found[found.len() - 1]],
                ends,
                "{found:?}"
            );
        };
        // Llama 3.1 405B in 64 chunks: embedding and loss count as a layer each.
        check(126, 64, true, [1, 2, 1]);
        // DeepSeek-V3: `Et|(tt|)*30mL` in 32 chunks, four layers and a short last chunk in 16.
        check(61, 32, false, [1, 2, 0]);
        check(61, 16, false, [4, 4, 1]);
        // BLOOM's tuning runs: DeepSpeed fills stages from the front.
        check(78, 12, true, [7, 7, 1]);
    }

    #[test]
    fn nics_are_read_from_the_words_of_the_sources() {
        let check = |text: &str, expected| {
            assert_eq!(node_gigabits(&text.to_lowercase()), expected, "{text}")
        };
        check("DGX H100 NVLink4 + 8x400G IB NDR", None);
        check("DGX A100, NVSwitch, 8x200G HDR IB (Selene)", None);
        check("8x200G HDR IB", Some(1_600));
        check("4 x 100 Gb/s RoCE per node", Some(400));
        check("800 Gb/s per 8-GPU node (vTrain config)", Some(800));
        check("800 Gbps", Some(800));
        check("NVLink node + 400 Gb/s RDMA per GPU", None);
        check(
            "Storage: 2x IB 100Gb/s, Compute: 8x ConnectX-7 IB NDR 400Gb/s, Management: 1x",
            Some(3_200),
        );
        check("NVLink + 1600-3200 Gbps RoCE/IB (section title)", None);
        check("100GbE InfiniBand", None);
    }
}
