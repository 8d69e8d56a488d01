//! "Did you mean": spelling, other words for the same thing, and numbers that would divide.

/// What practitioners call our fields and values elsewhere.
const SYNONYMS: &[(&str, &str)] = &[
    ("tp", "tensor"),
    ("tensor_parallel", "tensor"),
    ("tensor_model_parallel_size", "tensor"),
    ("pp", "pipeline"),
    ("pipeline_parallel", "pipeline"),
    ("pipeline_model_parallel_size", "pipeline"),
    ("vp", "virtual_pipeline"),
    ("vpp", "virtual_pipeline"),
    ("interleave", "virtual_pipeline"),
    ("dp", "data"),
    ("data_parallel", "data"),
    ("cp", "context"),
    ("context_parallel", "context"),
    ("ep", "expert"),
    ("expert_parallel", "expert"),
    ("etp", "expert_tensor"),
    ("sp", "sequence_parallel"),
    ("fsdp", "zero"),
    ("zero_stage", "zero"),
    ("distributed_optimizer", "zero"),
    ("hsdp", "zero_group"),
    ("gbs", "global_batch"),
    ("global_batch_size", "global_batch"),
    ("batch", "global_batch"),
    ("batch_size", "global_batch"),
    ("mbs", "micro_batch"),
    ("micro_batch_size", "micro_batch"),
    ("seq_len", "sequence_length"),
    ("seq_length", "sequence_length"),
    ("seqlen", "sequence_length"),
    ("context_length", "sequence_length"),
    ("dtype", "precision"),
    ("recipe", "precision"),
    ("activation_checkpointing", "recompute"),
    ("recomputation", "recompute"),
    ("checkpointing", "recompute"),
    ("framework", "stack"),
    ("software", "stack"),
    ("network", "fabric"),
    ("topology", "fabric"),
    // In a node, where it comes first, the one; in a cluster the other.
    ("gpu", "accelerator"),
    ("gpu", "gpus"),
    ("num_gpus", "gpus"),
    ("gpu_count", "gpus"),
    ("world_size", "gpus"),
    ("nodes", "gpus"),
    ("num_nodes", "gpus"),
    ("nvlink", "scale_up"),
    ("nvlink_domain", "domain"),
    ("plan", "parallelism"),
    ("parallel", "parallelism"),
    ("strategy", "parallelism"),
    ("train", "training"),
    ("job", "workload"),
    ("hardware", "cluster"),
    ("system", "cluster"),
    ("num_layers", "layers"),
    ("n_layers", "layers"),
    ("hidden_size", "hidden"),
    ("d_model", "hidden"),
    ("ffn_hidden_size", "ffn"),
    ("intermediate_size", "ffn"),
    ("vocab_size", "vocab"),
    ("num_experts", "experts"),
    ("topk", "top_k"),
    ("moe_router_topk", "top_k"),
    ("mha", "gqa"),
    ("mqa", "gqa"),
    ("fp4", "nvfp4"),
    ("e4m3", "fp8"),
    ("float16", "fp16"),
    ("half", "fp16"),
    ("bfloat16", "bf16"),
    ("fp8_block", "fp8_blockwise"),
    ("interleaved", "1f1b"),
    ("one_forward_one_backward", "1f1b"),
    ("zero_bubble", "zb-h1"),
    ("zb", "zb-h1"),
    ("zbh1", "zb-h1"),
    ("zbh2", "zb-h2"),
    ("dual_pipe", "dualpipe"),
    ("off", "none"),
    ("core_attn", "core_attention"),
    ("attention", "core_attention"),
    ("layernorm", "norms"),
    ("rmsnorm", "norms"),
    ("layer_norm", "norms"),
    ("moe_act", "moe_activation"),
    ("mla_up_proj", "mla_up_projection"),
    ("uniform", "balanced"),
    ("clos", "fat_tree"),
    ("rail", "rail_optimized"),
    ("rails", "rail_optimized"),
    ("mpft", "multi_plane_fat_tree"),
    ("multi_plane", "multi_plane_fat_tree"),
];

/// The word with case and separators taken out, which is how most misspellings agree.
fn bare(word: &str) -> String {
    word.chars()
        .filter(char::is_ascii_alphanumeric)
        .map(|c| c.to_ascii_lowercase())
        .collect()
}

/// Words longer than this are not misspellings of anything.
const LONGEST_WORD: usize = 64;

/// How far apart two words are; `None` where they are not alike.
fn distance(word: &str, candidate: &str) -> Option<usize> {
    let (a, b) = (bare(word), bare(candidate));
    if a.is_empty() || a.len() > LONGEST_WORD {
        return None;
    }
    if a == b {
        return Some(0);
    }
    let edits = strsim::damerau_levenshtein(&a, &b);
    let allowed = match a.len().min(b.len()) {
        0..=2 => 0,
        3..=5 => 1,
        6..=9 => 2,
        _ => 3,
    };
    (edits <= allowed).then_some(edits)
}

/// The candidate that `word` most likely stands for.
pub(crate) fn closest<'c>(
    word: &str,
    candidates: impl IntoIterator<Item = &'c str> + Clone,
) -> Option<&'c str> {
    let bare_word = bare(word);
    let same = |candidate: &&str| bare(candidate) == bare_word && !bare_word.is_empty();
    let meant = |candidate: &&str| {
        SYNONYMS
            .iter()
            .any(|(said, ours)| bare(said) == bare_word && ours == candidate)
    };
    // `domain_size` for `domain`.
    let longer = |candidate: &&str| {
        candidate.len() >= 4
            && word
                .strip_prefix(candidate)
                .is_some_and(|rest| rest.starts_with(['_', '-', ' ']))
    };
    candidates
        .clone()
        .into_iter()
        .find(same)
        .or_else(|| candidates.clone().into_iter().find(meant))
        .or_else(|| {
            let spelled = candidates.clone().into_iter();
            let ranked =
                spelled.filter_map(|candidate| Some((distance(word, candidate)?, candidate)));
            ranked
                .min_by_key(|(distance, _)| *distance)
                .map(|(_, candidate)| candidate)
        })
        .or_else(|| candidates.into_iter().find(longer))
}

/// Up to `most` candidates that resemble `word`: misspellings first, then those that share a part.
pub(crate) fn near<'c>(
    word: &str,
    candidates: impl IntoIterator<Item = &'c str>,
    most: usize,
) -> Vec<&'c str> {
    let sought = bare(word);
    if sought.is_empty() || sought.len() > LONGEST_WORD {
        return Vec::new();
    }
    let parts: Vec<String> = word
        .split(|c: char| !c.is_ascii_alphanumeric())
        .map(bare)
        .filter(|part| part.len() >= 2)
        .collect();
    let mut ranked: Vec<(usize, &str)> = candidates
        .into_iter()
        .filter_map(|candidate| {
            let name = bare(candidate);
            let rank = if let Some(edits) = distance(word, candidate) {
                edits
            } else if name.starts_with(&sought) || sought.starts_with(&name) {
                10
            } else if name.contains(&sought) || sought.contains(&name) {
                11
            } else {
                let shared = parts
                    .iter()
                    .filter(|part| name.contains(part.as_str()))
                    .count();
                if shared == 0 {
                    return None;
                }
                40 - shared.min(20)
            };
            Some((rank, candidate))
        })
        .collect();
    ranked.sort_by_key(|(rank, _)| *rank);
    ranked.truncate(most);
    ranked.into_iter().map(|(_, candidate)| candidate).collect()
}

/// "a", "a or b", "a, b or c".
pub(crate) fn either<T: std::fmt::Display>(items: &[T]) -> String {
    listed(items, "or")
}

/// "a", "a and b", "a, b and c".
pub(crate) fn listed<T: std::fmt::Display>(items: &[T], word: &str) -> String {
    let mut text = String::new();
    for (index, item) in items.iter().enumerate() {
        if index > 0 {
            text += &if index + 1 == items.len() {
                format!(" {word} ")
            } else {
                ", ".to_owned()
            };
        }
        text += &item.to_string();
    }
    text
}

/// The divisors of `n` nearest to `wanted`, below and above, at most two of each.
pub(crate) fn divisors_near(n: u64, wanted: u64) -> Vec<u64> {
    let mut all = Vec::new();
    let mut d = 1;
    while d * d <= n && d <= 10_000_000 {
        if n.is_multiple_of(d) {
            all.push(d);
            if d * d != n {
                all.push(n / d);
            }
        }
        d += 1;
    }
    all.sort_unstable();
    around(&all, wanted)
}

/// The entries of a sorted list nearest to `wanted`, at most two below and two above.
pub(crate) fn around(sorted: &[u64], wanted: u64) -> Vec<u64> {
    let split = sorted.partition_point(|d| *d < wanted);
    sorted[split.saturating_sub(2)..(split + 2).min(sorted.len())].to_vec()
}

/// The multiples of `step` on either side of `value`, zero left out.
pub(crate) fn multiples_near(step: u64, value: u64) -> Vec<u64> {
    let Some(below) = value.checked_div(step).map(|times| times * step) else {
        return Vec::new();
    };
    [Some(below), below.checked_add(step)]
        .into_iter()
        .flatten()
        .filter(|m| *m > 0)
        .collect()
}
