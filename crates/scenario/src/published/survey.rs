//! The survey spelling: nested objects, free text, numbers that may be words.
//!
//! A field that is missing or of an unexpected kind is absent, never an error: a survey of many
//! sources is uneven. Text that declares something is turned into a setting here, and text that
//! is not understood is kept as unread, so that the run can be set aside with a reason.

use super::{
    Declared, Latent, Measurement, PublishedBatch, PublishedModel, PublishedPlan, PublishedRun,
    Quality,
};
use crate::Catalogue;
use rackflow_workload::{
    Activation, CudaGraphs, ExpertDispatcher, MoE, MultiTokenPrediction, Recompute,
};
use serde_json::Value;

/// A path into nested objects; absent where any step of it is.
fn at<'a>(value: &'a Value, path: &[&str]) -> Option<&'a Value> {
    path.iter()
        .try_fold(value, |value, key| value.get(key))
        .filter(|value| !value.is_null())
}

/// A whole number, also when it is written as `64.0` or `"64"`.
fn whole(value: &Value, path: &[&str]) -> Option<u64> {
    let value = at(value, path)?;
    if let Some(n) = value.as_u64() {
        return Some(n);
    }
    let n = value
        .as_f64()
        .or_else(|| value.as_str()?.trim().parse().ok())?;
    ((0.0..=1e15).contains(&n) && n.fract() == 0.0).then_some(n as u64)
}

fn count(value: &Value, path: &[&str]) -> Option<u32> {
    whole(value, path).and_then(|n| u32::try_from(n).ok())
}

fn real(value: &Value, path: &[&str]) -> Option<f64> {
    let value = at(value, path)?;
    let n = value
        .as_f64()
        .or_else(|| value.as_str()?.trim().parse().ok())?;
    (n.is_finite() && n > 0.0).then_some(n)
}

fn text(value: &Value, path: &[&str]) -> Option<String> {
    at(value, path)?.as_str().map(str::to_owned)
}

/// A truth value, also as the words that shell settings and Python print.
fn truth(value: &Value, path: &[&str]) -> Option<bool> {
    let value = at(value, path)?;
    if let Some(flag) = value.as_bool() {
        return Some(flag);
    }
    if let Some(n) = value.as_u64() {
        return Some(n > 0);
    }
    match value
        .as_str()?
        .trim()
        .trim_matches('"')
        .to_ascii_lowercase()
        .as_str()
    {
        "true" | "1" | "on" | "yes" => Some(true),
        "false" | "0" | "off" | "no" => Some(false),
        _ => None,
    }
}

/// One row of the survey.
pub(super) fn read(row: &Value) -> Result<PublishedRun, String> {
    let id = text(row, &["id"]).ok_or("the row has no `id`")?;
    let source = text(row, &["group"]).ok_or("the row has no `group`")?;
    let title = text(row, &["source", "title"]).unwrap_or_default();
    let section = text(row, &["source", "section"]).unwrap_or_default();
    let epoch = text(row, &["software_epoch"]).unwrap_or_default();
    let quality = match text(row, &["quality"]).as_deref() {
        Some("A") => Quality::A,
        Some("B") => Quality::B,
        _ => Quality::C,
    };
    let gpu = text(row, &["hardware", "gpu"]).ok_or("the row has no `hardware.gpu`")?;
    let plan = plan(row);
    let release = [&epoch, &section, &title]
        .into_iter()
        .find_map(|text| release(text))
        .or_else(|| day_of_log(row, &source));
    Ok(PublishedRun {
        release: release.unwrap_or_default(),
        citation: if section.is_empty() {
            title
        } else {
            format!("{title}, {section}")
        },
        url: text(row, &["source", "url"]).unwrap_or_default(),
        year: count(row, &["year"]),
        kind: text(row, &["kind"]).unwrap_or_else(|| "step".to_owned()),
        replay: false,
        model: model(row),
        gpu,
        gpus: count(row, &["hardware", "gpus"]),
        interconnect: text(row, &["hardware", "interconnect"]).unwrap_or_default(),
        precision: text(row, &["precision"]),
        batch: PublishedBatch {
            sequence_length: whole(row, &["model", "seq_len"]),
            global: whole(row, &["batch", "gbs_seqs"]),
            micro: whole(row, &["batch", "mbs"]),
        },
        declared: declared(row, &plan),
        plan,
        measured: measured(row),
        id,
        source,
        quality,
    })
}

/// The day of a row of BigScience's tuning log, whose notes name it as `02-26`.
fn day_of_log(row: &Value, source: &str) -> Option<String> {
    let day_of = |word: &str| {
        let (month, day) = word.split_once('-')?;
        let number = |part: &str| part.len() == 2 && part.bytes().all(|b| b.is_ascii_digit());
        (number(month) && number(day)).then(|| word.to_owned())
    };
    let notes = (source == "bigscience").then(|| text(row, &["notes"]))??;
    let year: u32 = count(row, &["year"])?;
    let day = notes.split([' ', ';', ',']).find_map(day_of)?;
    Some(format!("{year}-{day}"))
}

/// The first `25.04` or `24.11.1` in `text`.
fn release(text: &str) -> Option<String> {
    text.split(|c: char| !(c.is_ascii_digit() || c == '.'))
        .map(|word| word.trim_matches('.'))
        .find_map(|word| {
            let parts: Vec<&str> = word.split('.').collect();
            let calendar =
                (2..=3).contains(&parts.len()) && parts[0].len() == 2 && parts[1].len() == 2;
            calendar.then(|| word.to_owned())
        })
}

fn model(row: &Value) -> PublishedModel {
    let field = |name: &str| whole(row, &["model", name]);
    let name = text(row, &["model", "name"]).unwrap_or_default();
    let experts = field("experts").filter(|experts| *experts > 0);
    let moe = match (experts, field("topk"), field("expert_ffn")) {
        (Some(experts), Some(top_k), Some(expert_ffn)) => Some(MoE {
            experts,
            top_k,
            expert_ffn,
            shared_ffn: field("shared_ffn").unwrap_or_else(|| {
                field("shared_experts")
                    .unwrap_or(0)
                    .saturating_mul(expert_ffn)
            }),
            first_dense_layers: field("first_dense_layers").unwrap_or(0),
            every: field("moe_every").unwrap_or(1).max(1),
            group_limit: None,
        }),
        _ => None,
    };
    let latent = match (
        whole(row, &["model", "mla", "kv_lora_rank"]),
        whole(row, &["model", "mla", "qk_nope_head_dim"]),
        whole(row, &["model", "mla", "qk_rope_head_dim"]),
        whole(row, &["model", "mla", "v_head_dim"]),
    ) {
        (Some(kv_lora_rank), Some(qk_nope_head_dim), Some(qk_rope_head_dim), Some(v_head_dim)) => {
            Some(Latent {
                q_lora_rank: whole(row, &["model", "mla", "q_lora_rank"]).filter(|rank| *rank > 0),
                kv_lora_rank,
                qk_nope_head_dim,
                qk_rope_head_dim,
                v_head_dim,
            })
        }
        _ => None,
    };
    PublishedModel {
        family: text(row, &["model", "family"])
            .unwrap_or_else(|| if experts.is_some() { "moe" } else { "dense" }.to_owned()),
        layers: field("layers"),
        hidden: field("hidden"),
        heads: field("heads"),
        kv_heads: field("kv_heads"),
        head_dim: field("head_dim"),
        latent,
        ffn: field("ffn"),
        gated: truth(row, &["model", "gated"]).unwrap_or(false),
        vocab: field("vocab"),
        window: field("sliding_window"),
        full_every: field("sliding_every"),
        moe,
        mtp: mtp(row, &name),
        name,
    }
}

/// Multi-token prediction is said in the notes or by the definition of the FLOPs; or the FLOPs of a token, which its rates
/// print, are nearer to those with a module than to those without, of a model that the catalogue knows with one.
fn mtp(row: &Value, name: &str) -> Option<MultiTokenPrediction> {
    let notes = text(row, &["notes"]).unwrap_or_default();
    let flops = text(row, &["flops_definition"]).unwrap_or_default();
    if notes.contains("w/o MTP") || notes.contains("without MTP") {
        return None;
    }
    let said = notes.contains("w/ MTP") || notes.contains("with MTP") || flops.contains("MTP");
    (said || counts_modules(row, name)).then_some(MultiTokenPrediction { modules: 1 })
}

/// Whether what a run computes for each token, in its own count, contains a prediction module: one layer, a projection of
/// two hidden states, and logits.
fn counts_modules(row: &Value, name: &str) -> bool {
    let printed = || {
        let flops = real(row, &["measured", "tflops_per_gpu"])? * 1e12;
        let tokens = real(row, &["measured", "tokens_per_s_per_gpu"])?;
        Some(flops / tokens)
    };
    let known = Catalogue::builtin()
        .model(name)
        .and_then(|model| model.mtp.as_ref());
    let (Some(printed), true) = (printed(), known.is_some()) else {
        return false;
    };
    let field = |name: &str| whole(row, &["model", name]).map(|n| n as f64);
    let (Some(layers), Some(hidden), Some(vocab)) =
        (field("layers"), field("hidden"), field("vocab"))
    else {
        return false;
    };
    let logits = 6.0 * hidden * vocab;
    // Causal attention, or the whole square.
    let counts = ["flops_per_token_causal", "flops_per_token_noncausal"];
    let counts = counts
        .into_iter()
        .filter_map(|count| real(row, &["derived", count]));
    let both = counts.flat_map(|without| {
        let module = (without - logits) / layers + 12.0 * hidden * hidden + logits;
        [(without, false), (without + module, true)]
    });
    let off = |count: f64| (count / printed).ln().abs();
    let nearest = both.min_by(|a, b| off(a.0).total_cmp(&off(b.0)));
    // Counts of the logits, router and mask differ by 0.5 %. What is further off counts something else: recomputation, say.
    nearest.is_some_and(|(count, module)| module && off(count) < 0.02)
}

fn plan(row: &Value) -> PublishedPlan {
    let field = |name: &str| count(row, &["parallel", name]).filter(|ranks| *ranks > 0);
    let mut zero = count(row, &["parallel", "zero"]).and_then(|stage| u8::try_from(stage).ok());
    let mut zero_group =
        text(row, &["parallel", "zero1_group"]).and_then(|group| group.parse().ok());
    // `fsdp` is a number of shards, a strategy's name, or a truth value.
    match at(row, &["parallel", "fsdp"]) {
        Some(Value::String(strategy)) => match strategy.as_str() {
            "FULL_SHARD" | "FSDP" => zero = Some(3),
            "SHARD_GRAD_OP" => zero = Some(2),
            "HSDP" | "HYBRID_SHARD" => {
                zero = Some(3);
                // PyTorch's hybrid sharding keeps the shards inside one node.
                zero_group = Some(8);
            }
            _ => {}
        },
        Some(Value::Bool(true)) => zero = Some(3),
        Some(_) => {
            if let Some(shards) = field("fsdp") {
                zero = Some(3);
                zero_group = Some(shards);
            }
        }
        None => {}
    }
    if text(row, &["overlap"]).is_some_and(|overlap| overlap.contains("no reshard after forward")) {
        // Weights gathered once per step are not sharded while the step runs.
        zero = zero.map(|stage| stage.min(2));
    }
    let recipe = recipe_applies(row);
    let layout = recipe
        .then(|| text(row, &["recipe", "model.pipeline_model_parallel_layout"]))
        .flatten()
        .and_then(|layout| layers_of_layout(&layout))
        .or_else(|| layout_in_notes(&text(row, &["notes"])?));
    PublishedPlan {
        tensor: field("tp"),
        pipeline: field("pp"),
        virtual_pipeline: field("vpp"),
        context: field("cp"),
        expert: field("ep"),
        expert_tensor: field("etp"),
        data: field("dp"),
        sequence_parallel: truth(row, &["parallel", "sp"]),
        zero,
        zero_group,
        schedule: text(row, &["parallel", "schedule"]),
        layers_per_chunk: layout,
        short_ends: text(row, &["model", "layers_note"])
            .is_some_and(|note| note.contains("first and last stage have one layer fewer"))
            || text(row, &["notes"])
                .is_some_and(|note| note.contains("one layer fewer on first and last stage")),
    }
}

/// A recipe read from a repository's head describes a row only where its plan is the row's plan.
fn recipe_applies(row: &Value) -> bool {
    let same = |ours: &str, theirs: &str| {
        let theirs = text(row, &["recipe", theirs])
            .and_then(|n| n.trim_matches('"').parse().ok())
            .unwrap_or(1);
        whole(row, &["parallel", ours]).unwrap_or(1) == theirs
    };
    at(row, &["recipe"]).is_some()
        && same("tp", "model.tensor_model_parallel_size")
        && same("pp", "model.pipeline_model_parallel_size")
        && same("vpp", "model.virtual_pipeline_model_parallel_size")
        && same("ep", "model.expert_model_parallel_size")
        && whole(row, &["batch", "mbs"]) == whole(row, &["recipe", "train.micro_batch_size"])
}

/// Transformer layers of each chunk in a layout such as `Et*2|(t*2|)*34,t*3|(t*2|)*3,tL`: `t` is a
/// layer, `|` ends a chunk, `E`, `m` and `L` are embedding, prediction module and loss.
pub(super) fn layers_of_layout(layout: &str) -> Option<Vec<u64>> {
    let expanded = expand(layout.trim_matches(['"', ' ']))?;
    let chunks: Vec<u64> = expanded
        .split('|')
        .map(|chunk| chunk.matches('t').count() as u64)
        .collect();
    (chunks.len() > 1 && chunks.iter().sum::<u64>() > 0).then_some(chunks)
}

/// Writes out `x*n` and `(..)*n`, without nesting, and refuses what is not a layout.
fn expand(layout: &str) -> Option<String> {
    const LIMIT: usize = 1 << 16;
    let mut out = String::new();
    let mut rest = layout;
    while let Some(first) = rest.chars().next() {
        let unit;
        if first == '(' {
            let end = rest.find(')')?;
            unit = &rest[1..end];
            rest = &rest[end + 1..];
        } else {
            unit = &rest[..first.len_utf8()];
            rest = &rest[first.len_utf8()..];
        }
        let unit = if unit.contains('*') {
            expand(unit)?
        } else {
            unit.to_owned()
        };
        if !unit
            .chars()
            .all(|c| matches!(c, 'E' | 't' | 'm' | 'L' | '|' | ',' | ' '))
        {
            return None;
        }
        let mut times = 1;
        if let Some(after) = rest.strip_prefix('*') {
            let digits = after.bytes().take_while(u8::is_ascii_digit).count();
            times = after[..digits].parse::<usize>().ok()?;
            rest = &after[digits..];
        }
        if times.saturating_mul(unit.len()).saturating_add(out.len()) > LIMIT {
            return None;
        }
        out.push_str(&unit.repeat(times));
    }
    Some(out)
}

/// A layout quoted in the notes, after the word `layout`.
fn layout_in_notes(notes: &str) -> Option<Vec<u64>> {
    let (_, after) = notes.split_once("layout ")?;
    let word = after.split([' ', ';']).next()?;
    layers_of_layout(word.trim_end_matches([',', '.']))
}

fn declared(row: &Value, plan: &PublishedPlan) -> Declared {
    let mut declared = Declared::default();
    if let Some(recompute) = text(row, &["recompute"]) {
        read_recompute(&recompute, plan, &mut declared);
    }
    match at(row, &["overlap"]) {
        Some(Value::String(overlap)) => read_overlap(overlap, &mut declared),
        Some(flags) => read_flags(flags, &mut declared),
        None => {}
    }
    if let Some(notes) = text(row, &["notes"]) {
        read_notes(&notes, &mut declared);
    }
    if at(row, &["recipe", "function"]).is_some() {
        read_recipe(row, &mut declared);
    }
    if let (Some(hfu), Some(mfu)) = (
        real(row, &["measured", "hfu_pct"]),
        real(row, &["measured", "mfu_pct"]),
    ) {
        declared.hardware_over_model_flops = (hfu >= mfu).then_some(hfu / mfu);
    }
    declared
}

/// What is recomputed, in the words of the sources.
fn read_recompute(words: &str, plan: &PublishedPlan, declared: &mut Declared) {
    let lower = words.trim().to_ascii_lowercase();
    let first = lower.split([',', ' ', '(', '+']).next().unwrap_or_default();
    match first {
        "none" | "no" | "off" => declared.recompute = Some(Recompute::None),
        "full" => declared.recompute = Some(Recompute::Full),
        "selective" => {
            let rest = lower.trim_start_matches("selective").trim();
            let sharded = plan.zero == Some(3);
            if rest.contains("per-op") || (rest.is_empty() && sharded) {
                declared.recompute_by_operator = true;
            } else if rest.is_empty() || rest.starts_with("+ sp") || rest.starts_with(", no sp") {
                declared.recompute = Some(Recompute::Selective);
            } else if let Some(list) = activations(rest) {
                declared.recompute = Some(list);
            } else {
                declared.unread.push(format!("recompute: {words}"));
            }
        }
        _ => match activations(&lower) {
            Some(list) => declared.recompute = Some(list),
            None => declared.unread.push(format!("recompute: {words}")),
        },
    }
}

/// A list of activations by the names that Megatron and the papers give them.
fn activations(words: &str) -> Option<Recompute> {
    let mut list = Vec::new();
    let words = words
        .split('(')
        .next()
        .unwrap_or_default()
        .replace(" and ", ",");
    for word in words
        .split([',', '[', ']', '"', '+', ';'])
        .map(str::trim)
        .filter(|word| !word.is_empty())
    {
        list.push(match word {
            "core_attn" | "core attention" => Activation::CoreAttention,
            "layernorm" | "norm" | "norms" | "rmsnorm" => Activation::Norms,
            "mla_up_proj" | "up_proj" | "mla up-projection" | "mla up-projections" => {
                Activation::MlaUpProjection
            }
            "swiglu" | "act" | "activation" => Activation::Swiglu,
            "mlp" => Activation::Mlp,
            "moe_act" => Activation::MoeActivation,
            "moe" => Activation::Moe,
            _ => return None,
        });
    }
    list.sort_unstable();
    list.dedup();
    Some(if list.is_empty() {
        Recompute::None
    } else {
        Recompute::Activations(list)
    })
}

/// Prose about overlap, graphs and dispatchers.
fn read_overlap(words: &str, declared: &mut Declared) {
    let lower = words.to_ascii_lowercase();
    let says = |needle: &str| lower.contains(needle);
    if lower.starts_with("none") {
        declared.expert = Some(false);
        if says("no tp/dp overlap") {
            declared.gradient_reduce = Some(false);
            declared.parameter_gather = Some(false);
            declared.tensor = Some(false);
        }
    }
    if says("no dp overlap") || says("no gradient bucketing") {
        declared.gradient_reduce = Some(false);
        declared.parameter_gather = Some(false);
    }
    if says("overlap-grad-reduce") || says("grad-reduce and param-gather overlap on") {
        declared.gradient_reduce = Some(true);
    }
    if says("overlap-param-gather") || says("grad-reduce and param-gather overlap on") {
        declared.parameter_gather = Some(true);
    }
    if says("tp-comm-overlap") || says("tp userbuffer overlap") {
        declared.tensor = Some(true);
    }
    if says("vanilla tp") {
        declared.tensor = Some(false);
    }
    if says("async tp") || says("asynctp") {
        declared.tensor = Some(true);
    }
    if says("ep overlap on")
        || says("ep a2a overlap")
        || says("+ ep overlap")
        || lower.starts_with("ep overlap +")
    {
        declared.expert = Some(true);
    }
    if says("ep overlap off") || says("no overlap") || says("no ep overlap") {
        declared.expert = Some(false);
    }
    if says("alltoall") {
        declared.dispatcher = Some(ExpertDispatcher::NcclAllToAll);
    }
    read_dispatcher_and_graphs(&lower, declared);
    if says("fsdp") {
        declared.compiled = Some(says("compile"));
    } else if says("compile") {
        declared.compiled = Some(true);
    }
    if says("fsdp prefetch") {
        // llm-foundry runs eagerly and says so by naming its kernels instead.
        declared.compiled = Some(false);
    }
    for framework in ["JAX/XLA", "Megatron-LM", "MegaScale"] {
        if words.contains(framework) && !says("overlap flags per repro guide") {
            declared.framework = Some(framework.to_owned());
        }
    }
}

fn read_dispatcher_and_graphs(lower: &str, declared: &mut Declared) {
    if lower.contains("hybridep") {
        declared.dispatcher = Some(ExpertDispatcher::HybridEp);
    } else if lower.contains("deepep") {
        declared.dispatcher = Some(ExpertDispatcher::DeepEp);
    }
    if lower.contains("no cuda graph") {
        declared.cuda_graphs = Some(CudaGraphs::None);
    } else if lower.contains("full-iteration cuda graph") {
        declared.cuda_graphs = Some(CudaGraphs::Full);
    } else if lower.contains("partial cuda graph") || lower.contains("te cuda graph") {
        declared.cuda_graphs = Some(CudaGraphs::Partial);
    }
}

/// Shell settings of MLPerf logs.
fn read_flags(flags: &Value, declared: &mut Declared) {
    declared.tensor = truth(flags, &["TP_COMM_OVERLAP"]);
    declared.gradient_reduce = truth(flags, &["OVERLAP_GRAD_REDUCE"]);
    declared.parameter_gather = truth(flags, &["OVERLAP_PARAM_GATHER"]);
    declared.fp8_parameter_gather = truth(flags, &["FP8_PARAM_GATHER"]);
    declared.cuda_graphs = match (
        truth(flags, &["FULL_CUDA_GRAPH"]),
        truth(flags, &["MCORE_CUDA_GRAPH"]),
    ) {
        (Some(true), _) => Some(CudaGraphs::Full),
        (_, Some(true)) => Some(CudaGraphs::Partial),
        (Some(false), Some(false)) => Some(CudaGraphs::None),
        _ => None,
    };
    declared.ends_count_as_layers = truth(flags, &["ASYM_PP_EMBED"]) == Some(true)
        && truth(flags, &["ASYM_PP_LOSS"]) == Some(true);
}

/// Settings of a Megatron-Bridge recipe, read at the repository's head. What depends on the plan is
/// taken only where the recipe's plan is the row's; token dropping is not the head's way at all.
fn read_recipe(row: &Value, declared: &mut Declared) {
    let setting = |name: &str| text(row, &["recipe", name]).filter(|value| value != "None");
    let applies = recipe_applies(row);
    let mixture = at(row, &["model", "experts"]).is_some();
    // The head's recipes say little about releases before 2026: `releases` has what those set.
    let older = text(row, &["software_epoch"])
        .and_then(|epoch| release(&epoch))
        .is_some_and(|r| r.as_str() < "26");
    if declared.recompute.is_none() {
        let granularity = setting("model.recompute_granularity").unwrap_or_default();
        if let Some(modules) = setting("model.recompute_modules") {
            declared.recompute_is_assumed = !applies;
            match activations(&modules) {
                Some(list) => declared.recompute = Some(list),
                None => declared
                    .unread
                    .push(format!("recompute modules: {modules}")),
            }
        } else if applies && granularity.contains("full") {
            let layers = whole(row, &["recipe", "model.recompute_num_layers"])
                .and_then(|n| u32::try_from(n).ok());
            declared.recompute = Some(layers.map_or(Recompute::Full, Recompute::FullLayers));
        } else if applies {
            declared.recompute = Some(Recompute::None);
        }
    }
    if declared.token_drop || (mixture && older) {
        return;
    }
    // The library that moves tokens is a habit of the model's recipe on that hardware, whatever the plan.
    let backend = setting("model.moe_flex_dispatcher_backend");
    if let Some(backend) = &backend {
        let told = declared.dispatcher.is_some();
        read_dispatcher_and_graphs(&backend.to_ascii_lowercase(), declared);
        declared.dispatcher_is_assumed = declared.dispatcher.is_some() && !applies && !told;
    }
    if !applies {
        return;
    }
    if backend.is_none() {
        // Megatron-Core's defaults.
        declared.dispatcher = Some(ExpertDispatcher::NcclAllToAll);
        declared.cuda_graphs = Some(CudaGraphs::None);
    }
    if let Some(scope) = setting("model.cuda_graph_scope") {
        let whole = scope.contains("full_iteration");
        declared.cuda_graphs = Some(if whole {
            CudaGraphs::Full
        } else {
            CudaGraphs::Partial
        });
    }
    if let Some(overlap) = setting("comm_overlap") {
        if overlap.contains("tp_comm_overlap=True") {
            declared.tensor = Some(true);
        } else if overlap.contains("tp_comm_overlap=False") {
            declared.tensor = Some(false);
        }
    }
    let expert = truth(
        row,
        &["recipe", "comm_overlap.overlap_moe_expert_parallel_comm"],
    )
    .or_else(|| truth(row, &["recipe", "model.moe_a2a_overlap"]));
    declared.expert = expert.or(declared.expert);
    let shared = truth(row, &["recipe", "model.moe_shared_expert_overlap"]);
    declared.shared_expert = shared.or(declared.shared_expert);
    let gradient = truth(row, &["recipe", "ddp.overlap_grad_reduce"])
        .or_else(|| truth(row, &["recipe", "comm_overlap.overlap_grad_reduce"]));
    declared.gradient_reduce = gradient.or(declared.gradient_reduce);
}

/// What stands in the notes.
fn read_notes(notes: &str, declared: &mut Declared) {
    let lower = notes.to_ascii_lowercase();
    if let Some((_, framework)) = notes.split_once("framework: ") {
        let name = framework.split([';', ',']).next().unwrap_or_default();
        declared.framework = Some(name.trim().to_owned());
    }
    if lower.contains("natural routing") {
        declared.natural_routing = true;
    }
    if lower.contains("variant: tokendrop") {
        declared.token_drop = true;
    }
    if declared.dispatcher.is_none() && lower.contains("alltoall dispatcher") {
        declared.dispatcher = Some(ExpertDispatcher::NcclAllToAll);
    }
    read_dispatcher_and_graphs(&lower, declared);
}

fn measured(row: &Value) -> Measurement {
    const GB: f64 = 1e9;
    const GIB: f64 = (1_u64 << 30) as f64;
    // Megatron's logs count so.
    const MB: f64 = (1_u64 << 20) as f64;
    let field = |name: &str| real(row, &["measured", name]);
    let allocated = field("peak_alloc_GiB")
        .map(|n| n * GIB)
        .or_else(|| field("mem_MB_max_allocated").map(|n| n * MB));
    let reserved = field("reserved_GiB")
        .or_else(|| field("mem_GiB"))
        .map(|n| n * GIB)
        .or_else(|| field("mem_GB").map(|n| n * GB));
    Measurement {
        step_time_s: real(row, &["derived", "step_time_s"]).or_else(|| field("step_time_s")),
        tflops_per_gpu: field("tflops_per_gpu"),
        // Tensors are what is counted best: the rest is what the allocator keeps and the driver takes.
        memory: allocated.or(reserved),
        memory_is_allocated: allocated.is_some(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A dispatcher of the head's recipe is that of the row where both have the same plan, or where the row
    /// names it too.
    #[test]
    fn a_dispatcher_of_another_plan_is_assumed() {
        let read = |expert: u64, notes: &str| {
            let row = serde_json::json!({
                "model": { "experts": 128 },
                "parallel": { "tp": 1, "pp": 2, "ep": expert },
                "batch": { "mbs": 1 },
                "notes": notes,
                "recipe": {
                    "function": "f",
                    "model.pipeline_model_parallel_size": "2",
                    "model.expert_model_parallel_size": "16",
                    "train.micro_batch_size": "1",
                    "model.moe_flex_dispatcher_backend": "hybridep",
                },
            });
            declared(&row, &PublishedPlan::default())
        };
        for (expert, notes, assumed) in [(16, "", false), (8, "", true), (8, "hybridep", false)] {
            let declared = read(expert, notes);
            assert_eq!(declared.dispatcher, Some(ExpertDispatcher::HybridEp));
            assert_eq!(declared.dispatcher_is_assumed, assumed, "{expert} {notes}");
        }
    }

    /// The rates of three releases of Megatron-Bridge on B200, of which two say whether a module was trained along.
    #[test]
    fn printed_rates_say_whether_prediction_modules_were_trained() {
        let read = |name: &str, tokens: f64, tflops: f64, notes: &str| {
            let row = serde_json::json!({
                "model": { "name": name, "layers": 61, "hidden": 7168, "vocab": 129_280 },
                "measured": { "tokens_per_s_per_gpu": tokens, "tflops_per_gpu": tflops },
                "derived": { "flops_per_token_causal": 250.45e9, "flops_per_token_noncausal": 281.15e9 },
                "notes": notes,
            });
            model(&row).mtp.is_some()
        };
        assert!(read("deepseek-v3", 2139.0, 557.0, "variant: w/ MTP"));
        assert!(!read("deepseek-v3", 3139.0, 782.0, "variant: w/o MTP"));
        // Neither says it, and both print which.
        assert!(read("deepseek-v3", 3328.0, 864.0, ""));
        assert!(!read("deepseek-v3", 3139.0, 782.0, ""));
        // The whole square is a tenth more, and no module.
        assert!(!read("deepseek-v3", 1000.0, 281.5, ""));
        assert!(read("deepseek-v3", 1000.0, 292.0, ""));
        // Far from both, something else is counted.
        assert!(!read("deepseek-v3", 1000.0, 325.0, ""));
        // A model without modules, and rates that are none.
        assert!(!read("llama3-405b", 3328.0, 864.0, ""));
        assert!(!read("deepseek-v3", 0.0, 0.0, ""));
    }

    #[test]
    fn layouts_are_counted() {
        let check = |layout: &str, expected: Option<(usize, u64)>| {
            let found = layers_of_layout(layout).map(|chunks| (chunks.len(), chunks.iter().sum()));
            assert_eq!(found, expected, "{layout}");
        };
        check("\"Et*2|(t*2|)*34,t*3|(t*2|)*3,tL\"", Some((40, 80)));
        check("Ett|(tt|)*6mL", Some((8, 14)));
        check("Et|(tt|)*30mL", Some((32, 61)));
        check("t*99999999999", None);
        check("(t", None);
        check("no layout", None);
    }

    #[test]
    fn recomputation_is_read_from_the_words_of_the_sources() {
        let check = |words: &str, expected: Option<Recompute>| {
            let mut declared = Declared::default();
            read_recompute(words, &PublishedPlan::default(), &mut declared);
            assert_eq!(declared.recompute, expected, "{words}");
            assert_eq!(
                declared.unread.is_empty(),
                declared.recompute.is_some() || declared.recompute_by_operator
            );
        };
        check("none", Some(Recompute::None));
        check("none at 8K", Some(Recompute::None));
        check("full (checkpoint-activations)", Some(Recompute::Full));
        check("full uniform 1", Some(Recompute::Full));
        check("selective", Some(Recompute::Selective));
        check("selective []", Some(Recompute::None));
        check("selective (per-op SAC)", None);
        check(
            "RMSNorm and MLA up-projection (V3 report)",
            Some(Recompute::Activations(vec![
                Activation::Norms,
                Activation::MlaUpProjection,
            ])),
        );
        check(
            "selective mla_up_proj,mlp",
            Some(Recompute::Activations(vec![
                Activation::MlaUpProjection,
                Activation::Mlp,
            ])),
        );
        check("something new", None);
    }

    #[test]
    fn releases_are_found() {
        let check =
            |text: &str, expected: Option<&str>| assert_eq!(release(text).as_deref(), expected);
        check("26.04.01 NeMo container, Pre-Training Pe", Some("26.04.01"));
        check("v24.11.1: llama3.1/README_8b.md", Some("24.11.1"));
        check("2024", None);
        check("arXiv 2205.05198", None);
        let day = |source, notes| {
            let row = serde_json::json!({"year": 2022, "notes": notes});
            day_of_log(&row, source)
        };
        assert_eq!(
            day("bigscience", "02-20 too close to OOM").as_deref(),
            Some("2022-02-20")
        );
        assert_eq!(
            day("bigscience", "GBS=512 and not 2048; 02-21").as_deref(),
            Some("2022-02-21")
        );
        assert_eq!(day("bigscience", "layers 10-12b, no day"), None);
        assert_eq!(day("mlperf", "02-20"), None);
    }
}
