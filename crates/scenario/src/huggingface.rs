//! Reads the shape of a model from a Hugging Face `config.json`.
//!
//! Only what the shape needs is read; rope scaling, dropout, quantisation and the like are ignored.
//! A key that the family cannot do without is an error that names it, and so is a setting that a
//! [`Model`] cannot express: nothing is guessed beyond the defaults of the family's own
//! configuration class. The text is parsed, never a path: whoever has the file reads it.

mod vision;

use rackflow_workload::{
    Attention, FeedForward, GroupLimit, MoE, Model, ModelError, MultiTokenPrediction, SparseIndex,
};
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use thiserror::Error;

/// Why a `config.json` yields no model.
#[derive(Debug, Error)]
pub enum HuggingFaceError {
    /// Not JSON. The message has line and column.
    #[error("not JSON: {0}")]
    Json(#[from] serde_json::Error),
    /// JSON, but no object.
    #[error("a configuration is a JSON object, and this is {found}")]
    NotAnObject {
        /// What it is instead.
        found: &'static str,
    },
    /// A family that is not read.
    #[error(
        "model_type `{model_type}` is not supported{}; supported are {}",
        nearest.map(|name| format!(" (nearest: `{name}`)")).unwrap_or_default(),
        supported()
    )]
    UnknownFamily {
        /// What the file says.
        model_type: String,
        /// The supported one that looks most like it, where one does.
        nearest: Option<&'static str>,
    },
    /// The family cannot do without this key.
    #[error("key `{key}` is missing{}", spellings(also))]
    MissingKey {
        /// The usual spelling.
        key: &'static str,
        /// Other spellings that would have been read.
        also: &'static [&'static str],
    },
    /// The key is there with a value of another type.
    #[error("key `{key}` must be {expected}, and is {found}")]
    WrongType {
        /// The key.
        key: &'static str,
        /// What it should be.
        expected: &'static str,
        /// What it is.
        found: String,
    },
    /// The setting exists, but a model shape cannot express it.
    #[error("key `{key}` describes {what}, which cannot be expressed here")]
    Unsupported {
        /// The key.
        key: &'static str,
        /// The setting in words.
        what: String,
    },
    /// Everything was read, and does not go together.
    #[error("the configuration makes no model: {0}")]
    Inconsistent(#[from] ModelError),
}

fn spellings(also: &[&str]) -> String {
    if also.is_empty() {
        return String::new();
    }
    format!(" (also read as {})", list(also.iter().copied()))
}

fn list<'a>(names: impl Iterator<Item = &'a str>) -> String {
    names
        .map(|name| format!("`{name}`"))
        .collect::<Vec<_>>()
        .join(", ")
}

/// What distinguishes how configurations are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Family {
    Gpt2,
    Bloom,
    Llama,
    Llama4,
    Mixtral,
    Nemotron,
    DeepSeek,
    Qwen3,
    Qwen3Moe,
    Glm4Moe,
    GptOss,
}

/// Every `model_type` that is read.
const FAMILIES: [(&str, Family); 18] = [
    ("bloom", Family::Bloom),
    ("deepseek_v2", Family::DeepSeek),
    ("deepseek_v3", Family::DeepSeek),
    ("glm4_moe", Family::Glm4Moe),
    ("gpt2", Family::Gpt2),
    ("gpt_oss", Family::GptOss),
    ("kimi_k2", Family::DeepSeek),
    ("llama", Family::Llama),
    ("llama4", Family::Llama4),
    ("llama4_text", Family::Llama4),
    ("mistral", Family::Llama),
    ("mixtral", Family::Mixtral),
    ("nemotron", Family::Nemotron),
    ("qwen3", Family::Qwen3),
    ("qwen3_moe", Family::Qwen3Moe),
    ("qwen3_moe_text", Family::Qwen3Moe),
    ("qwen3_vl_moe_text", Family::Qwen3Moe),
    ("qwen3_vl_text", Family::Qwen3),
];

fn supported() -> String {
    list(FAMILIES.iter().map(|(name, _)| *name))
}

/// Names less alike than this are no suggestion.
const ALIKE: f64 = 0.8;

impl Family {
    fn of(model_type: &str) -> Result<Self, HuggingFaceError> {
        if let Some((_, family)) = FAMILIES.iter().find(|(name, _)| *name == model_type) {
            return Ok(*family);
        }
        let likeness = |name: &str| strsim::jaro_winkler(name, model_type);
        let nearest = FAMILIES
            .iter()
            .map(|(name, _)| *name)
            .max_by(|a, b| likeness(a).total_cmp(&likeness(b)))
            .filter(|name| likeness(name) >= ALIKE);
        Err(HuggingFaceError::UnknownFamily {
            model_type: model_type.to_owned(),
            nearest,
        })
    }

    /// Whether embeddings are tied where the file does not say.
    fn ties_embeddings(self) -> bool {
        matches!(self, Self::Gpt2 | Self::Bloom)
    }

    fn is_gated(self) -> bool {
        !matches!(self, Self::Gpt2 | Self::Bloom | Self::Nemotron)
    }
}

/// The object that describes the language model, with typed access.
struct Config<'a>(&'a Map<String, Value>);

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

fn wrong(key: &'static str, expected: &'static str, value: &Value) -> HuggingFaceError {
    let found = match value {
        Value::Number(number) => number.to_string(),
        other => kind(other).to_owned(),
    };
    HuggingFaceError::WrongType {
        key,
        expected,
        found,
    }
}

impl<'a> Config<'a> {
    /// The value; absent and `null` are the same.
    fn value(&self, key: &str) -> Option<&'a Value> {
        self.0.get(key).filter(|value| !value.is_null())
    }

    fn optional(&self, key: &'static str) -> Result<Option<u64>, HuggingFaceError> {
        let Some(value) = self.value(key) else {
            return Ok(None);
        };
        value
            .as_u64()
            .map(Some)
            .ok_or_else(|| wrong(key, "a whole number, 0 or more", value))
    }

    fn number(&self, key: &'static str) -> Result<u64, HuggingFaceError> {
        self.number_as(key, &[])
    }

    /// The number under `key` or the first of the other spellings that is there.
    fn number_as(
        &self,
        key: &'static str,
        also: &'static [&'static str],
    ) -> Result<u64, HuggingFaceError> {
        for spelling in std::iter::once(&key).chain(also) {
            if let Some(number) = self.optional(spelling)? {
                return Ok(number);
            }
        }
        Err(HuggingFaceError::MissingKey { key, also })
    }

    fn flag(&self, key: &'static str) -> Result<Option<bool>, HuggingFaceError> {
        let Some(value) = self.value(key) else {
            return Ok(None);
        };
        value
            .as_bool()
            .map(Some)
            .ok_or_else(|| wrong(key, "true or false", value))
    }

    fn text(&self, key: &'static str) -> Result<Option<&'a str>, HuggingFaceError> {
        let Some(value) = self.value(key) else {
            return Ok(None);
        };
        value
            .as_str()
            .map(Some)
            .ok_or_else(|| wrong(key, "a string", value))
    }

    fn array(&self, key: &'static str) -> Result<Option<&'a [Value]>, HuggingFaceError> {
        let Some(value) = self.value(key) else {
            return Ok(None);
        };
        value
            .as_array()
            .map(|list| Some(list.as_slice()))
            .ok_or_else(|| wrong(key, "a list", value))
    }
}

/// Reads a `config.json`.
///
/// A model with other modalities has its language model under `text_config`. Of the rest, the vision
/// encoders of Llama 4 and Qwen3-VL are read.
pub fn parse(text: &str) -> Result<Model, HuggingFaceError> {
    let root: Value = serde_json::from_str(text)?;
    let Value::Object(root) = &root else {
        return Err(HuggingFaceError::NotAnObject { found: kind(&root) });
    };
    let root = Config(root);
    let config = match root.value("text_config") {
        None => Config(root.0),
        Some(Value::Object(inner)) => Config(inner),
        Some(other) => return Err(wrong("text_config", "an object", other)),
    };
    let model_type = match config.text("model_type")? {
        Some(inner) => inner,
        None => root
            .text("model_type")?
            .ok_or(HuggingFaceError::MissingKey {
                key: "model_type",
                also: &[],
            })?,
    };
    let family = Family::of(model_type)?;
    let mut model = read(&config, family)?;
    model.tied_embeddings = match config.flag("tie_word_embeddings")? {
        Some(tied) => tied,
        None => root
            .flag("tie_word_embeddings")?
            .unwrap_or_else(|| family.ties_embeddings()),
    };
    model.vision = vision::encoder(&root)?;
    model.name = name(&root, model_type);
    model.sources.insert(
        "*".to_owned(),
        format!("Hugging Face config.json of a {model_type}"),
    );
    model.check()?;
    // Several families write down a dense width that no layer has.
    if model
        .layer_kinds()
        .iter()
        .all(|(kind, _)| kind.feed_forward == FeedForward::MoE)
    {
        model.ffn = 0;
    }
    Ok(model)
}

/// The last part of `_name_or_path`, which fine-tunes keep; else the family.
fn name(root: &Config<'_>, model_type: &str) -> String {
    let path = root
        .value("_name_or_path")
        .and_then(Value::as_str)
        .unwrap_or("");
    let last = path.trim_end_matches('/').rsplit('/').next().unwrap_or("");
    let usable = !last.is_empty() && last != "." && last != "..";
    if usable {
        last.to_lowercase()
    } else {
        model_type.to_owned()
    }
}

fn read(config: &Config<'_>, family: Family) -> Result<Model, HuggingFaceError> {
    let gpt_spelling = matches!(family, Family::Gpt2 | Family::Bloom);
    let (layers, hidden) = if gpt_spelling {
        (
            config.number_as("n_layer", &["num_hidden_layers"])?,
            config.number_as("n_embd", &["hidden_size", "n_embed"])?,
        )
    } else {
        (
            config.number("num_hidden_layers")?,
            config.number("hidden_size")?,
        )
    };
    let attention = match family {
        Family::DeepSeek => latent_attention(config)?,
        _ => grouped_attention(config, family, layers, hidden)?,
    };
    let both_biases =
        config.flag("attention_bias")? == Some(true) && config.flag("mlp_bias")? == Some(true);
    let positions = match family {
        Family::Gpt2 => config.number_as("n_positions", &["max_position_embeddings", "n_ctx"])?,
        _ => 0,
    };
    Ok(Model {
        name: String::new(),
        layers,
        hidden,
        attention,
        ffn: dense_width(config, family, hidden)?,
        gated: family.is_gated(),
        moe: mixture(config, family, layers)?,
        vocab: config.number("vocab_size")?,
        tied_embeddings: false,
        learned_positions: positions,
        biases: both_biases || gpt_spelling || family == Family::GptOss,
        clamped: family == Family::GptOss,
        scaled_rope: family == Family::GptOss,
        vision: None,
        mtp: prediction(config, family)?,
        sources: BTreeMap::new(),
    })
}

fn dense_width(config: &Config<'_>, family: Family, hidden: u64) -> Result<u64, HuggingFaceError> {
    match family {
        Family::Gpt2 | Family::Bloom => Ok(config
            .optional("n_inner")?
            .unwrap_or_else(|| hidden.saturating_mul(4))),
        // `intermediate_size` is the width of an expert.
        Family::Mixtral | Family::GptOss => Ok(0),
        Family::Llama4 => config.number("intermediate_size_mlp"),
        _ => config.number("intermediate_size"),
    }
}

fn prediction(
    config: &Config<'_>,
    family: Family,
) -> Result<Option<MultiTokenPrediction>, HuggingFaceError> {
    match family {
        Family::DeepSeek | Family::Glm4Moe => Ok(config
            .optional("num_nextn_predict_layers")?
            .filter(|modules| *modules > 0)
            .map(|modules| MultiTokenPrediction { modules })),
        _ => Ok(None),
    }
}

/// The indexer of DeepSeek-V3.2 and its kin, where the file describes one.
fn sparse_index(config: &Config<'_>) -> Result<Option<SparseIndex>, HuggingFaceError> {
    let Some(top_k) = config.optional("index_topk")? else {
        return Ok(None);
    };
    Ok(Some(SparseIndex {
        heads: config.number("index_n_heads")?,
        head_dim: config.number("index_head_dim")?,
        top_k,
    }))
}

fn latent_attention(config: &Config<'_>) -> Result<Attention, HuggingFaceError> {
    Ok(Attention::Latent {
        heads: config.number("num_attention_heads")?,
        q_lora_rank: config.optional("q_lora_rank")?.filter(|rank| *rank > 0),
        kv_lora_rank: config.number("kv_lora_rank")?,
        qk_nope_head_dim: config.number("qk_nope_head_dim")?,
        qk_rope_head_dim: config.number("qk_rope_head_dim")?,
        v_head_dim: config.number("v_head_dim")?,
        latents: 1,
        sparse: sparse_index(config)?,
    })
}

fn grouped_attention(
    config: &Config<'_>,
    family: Family,
    layers: u64,
    hidden: u64,
) -> Result<Attention, HuggingFaceError> {
    let heads = match family {
        Family::Gpt2 | Family::Bloom => config.number_as("n_head", &["num_attention_heads"])?,
        _ => config.number("num_attention_heads")?,
    };
    let kv_heads = match family {
        Family::Gpt2 | Family::Bloom => heads,
        Family::Llama | Family::Nemotron => {
            config.optional("num_key_value_heads")?.unwrap_or(heads)
        }
        _ => config.number("num_key_value_heads")?,
    };
    let head_dim = match (
        config.optional("head_dim")?,
        config.optional("kv_channels")?,
    ) {
        (Some(width), _) | (None, Some(width)) => width,
        _ if matches!(family, Family::Qwen3 | Family::Qwen3Moe) => 128,
        _ if family == Family::GptOss => 64,
        _ if heads == 0 => {
            return Err(ModelError::Zero {
                field: "attention.gqa.heads",
            }
            .into());
        }
        _ if !hidden.is_multiple_of(heads) => {
            return Err(HuggingFaceError::MissingKey {
                key: "head_dim",
                also: &["kv_channels"],
            });
        }
        _ => hidden / heads,
    };
    let qk_norm = match family {
        Family::Qwen3 | Family::Qwen3Moe => true,
        Family::Glm4Moe => config.flag("use_qk_norm")?.unwrap_or(false),
        // Llama 4 normalises without weights.
        _ => false,
    };
    let window = Windows::read(config, family, layers)?;
    Ok(Attention::Grouped {
        heads,
        kv_heads,
        head_dim,
        sliding_window: window.width,
        full_every: window.full_every,
        chunked: window.chunked,
        qk_norm,
        sinks: family == Family::GptOss,
    })
}

/// Which layers see how much.
#[derive(Default)]
struct Windows {
    width: Option<u64>,
    full_every: Option<u64>,
    chunked: bool,
}

impl Windows {
    fn read(config: &Config<'_>, family: Family, layers: u64) -> Result<Self, HuggingFaceError> {
        if let Some(types) = config.array("layer_types")? {
            return Self::from_layer_types(config, types, layers);
        }
        match family {
            Family::Llama4 => Self::chunks(config, layers),
            Family::GptOss => Self::sliding(config, Some(2)),
            Family::Qwen3 | Family::Qwen3Moe => {
                let used = config.flag("use_sliding_window")? == Some(true);
                let first = config.optional("max_window_layers")?.unwrap_or(u64::MAX);
                if used && config.value("sliding_window").is_some() && first < layers {
                    let what = format!("windows from layer {first} on");
                    return Err(HuggingFaceError::Unsupported {
                        key: "max_window_layers",
                        what,
                    });
                }
                Ok(Self::default())
            }
            Family::Llama | Family::Mixtral => Self::sliding(config, None),
            _ => Ok(Self::default()),
        }
    }

    fn sliding(config: &Config<'_>, full_every: Option<u64>) -> Result<Self, HuggingFaceError> {
        let width = config.optional("sliding_window")?;
        Ok(Self {
            width,
            full_every: full_every.filter(|_| width.is_some()),
            chunked: false,
        })
    }

    /// Llama 4: chunks in the layers with rotary positions, everything in those without.
    fn chunks(config: &Config<'_>, layers: u64) -> Result<Self, HuggingFaceError> {
        let Some(width) = config.optional("attention_chunk_size")? else {
            return Ok(Self::default());
        };
        let listed = config.array("no_rope_layers")?.unwrap_or_default();
        let full_every = if listed.is_empty() {
            Some(config.optional("no_rope_layer_interval")?.unwrap_or(4))
        } else {
            // Despite its name the list has 1 where a layer has rotary positions.
            let full: Vec<bool> = listed
                .iter()
                .map(|layer| layer.as_u64() == Some(0))
                .collect();
            match Pattern::of(&full, layers, "no_rope_layers")? {
                Pattern::AllFull => return Ok(Self::default()),
                Pattern::AllWindowed => None,
                Pattern::FullEvery(every) => Some(every),
            }
        };
        Ok(Self {
            width: Some(width),
            full_every,
            chunked: true,
        })
    }

    fn from_layer_types(
        config: &Config<'_>,
        types: &[Value],
        layers: u64,
    ) -> Result<Self, HuggingFaceError> {
        const KEY: &str = "layer_types";
        let mut full = Vec::with_capacity(types.len());
        let (mut sliding, mut chunked) = (false, false);
        for layer in types {
            full.push(match layer.as_str() {
                Some("full_attention") => true,
                Some("sliding_attention") => {
                    sliding = true;
                    false
                }
                Some("chunked_attention") => {
                    chunked = true;
                    false
                }
                Some(other) => {
                    let what = format!("layers of `{other}`");
                    return Err(HuggingFaceError::Unsupported { key: KEY, what });
                }
                None => return Err(wrong(KEY, "a list of strings", layer)),
            });
        }
        if sliding && chunked {
            let what = "sliding and chunked layers together".to_owned();
            return Err(HuggingFaceError::Unsupported { key: KEY, what });
        }
        let full_every = match Pattern::of(&full, layers, KEY)? {
            Pattern::AllFull => return Ok(Self::default()),
            Pattern::AllWindowed => None,
            Pattern::FullEvery(every) => Some(every),
        };
        let key = if chunked {
            "attention_chunk_size"
        } else {
            "sliding_window"
        };
        Ok(Self {
            width: Some(config.number(key)?),
            full_every,
            chunked,
        })
    }
}

/// Where the layers are that see everything.
enum Pattern {
    AllFull,
    AllWindowed,
    /// The last of every so many.
    FullEvery(u64),
}

impl Pattern {
    fn of(full: &[bool], layers: u64, key: &'static str) -> Result<Self, HuggingFaceError> {
        if full.len() as u64 != layers {
            let what = format!("{} layers of {layers}", full.len());
            return Err(HuggingFaceError::Unsupported { key, what });
        }
        if full.iter().all(|full| *full) {
            return Ok(Self::AllFull);
        }
        let Some(first) = full.iter().position(|full| *full) else {
            return Ok(Self::AllWindowed);
        };
        let every = first + 1;
        let regular = full
            .iter()
            .enumerate()
            .all(|(i, full)| *full == (i + 1).is_multiple_of(every));
        if !regular {
            let what = "an irregular order of full and windowed layers".to_owned();
            return Err(HuggingFaceError::Unsupported { key, what });
        }
        Ok(Self::FullEvery(every as u64))
    }
}

const EXPERTS: &[&str] = &["num_local_experts", "num_experts"];

fn mixture(
    config: &Config<'_>,
    family: Family,
    layers: u64,
) -> Result<Option<MoE>, HuggingFaceError> {
    let experts = || config.number_as("n_routed_experts", EXPERTS);
    let top_k = || config.number_as("num_experts_per_tok", &["experts_per_token"]);
    let moe = match family {
        Family::Gpt2 | Family::Bloom | Family::Llama | Family::Nemotron | Family::Qwen3 => {
            return Ok(None);
        }
        Family::Mixtral | Family::GptOss => MoE {
            experts: experts()?,
            top_k: top_k()?,
            expert_ffn: config.number("intermediate_size")?,
            shared_ffn: 0,
            first_dense_layers: 0,
            every: 1,
            group_limit: None,
        },
        Family::Llama4 => {
            let width = config.number("intermediate_size")?;
            MoE {
                experts: experts()?,
                top_k: top_k()?,
                expert_ffn: width,
                shared_ffn: width,
                first_dense_layers: 0,
                every: config.optional("interleave_moe_layer_step")?.unwrap_or(1),
                group_limit: None,
            }
        }
        Family::Qwen3Moe => MoE {
            experts: experts()?,
            top_k: top_k()?,
            expert_ffn: config.number("moe_intermediate_size")?,
            shared_ffn: 0,
            first_dense_layers: leading_dense_layers(config)?,
            every: config.optional("decoder_sparse_step")?.unwrap_or(1),
            group_limit: None,
        },
        Family::DeepSeek | Family::Glm4Moe => {
            // DeepSeek's class takes a missing number of experts for a dense model.
            let named = std::iter::once(&"n_routed_experts").chain(EXPERTS);
            if family == Family::DeepSeek && named.clone().all(|key| config.value(key).is_none()) {
                return Ok(None);
            }
            if let Some(every) = config
                .optional("moe_layer_freq")?
                .filter(|every| *every != 1)
            {
                let what = format!("a mixture in one layer of {every}");
                return Err(HuggingFaceError::Unsupported {
                    key: "moe_layer_freq",
                    what,
                });
            }
            let width = config.number("moe_intermediate_size")?;
            let shared = config.optional("n_shared_experts")?.unwrap_or(0);
            MoE {
                experts: experts()?,
                top_k: top_k()?,
                expert_ffn: width,
                shared_ffn: width.saturating_mul(shared),
                first_dense_layers: config.optional("first_k_dense_replace")?.unwrap_or(0),
                every: 1,
                group_limit: group_limit(config)?,
            }
        }
    };
    if family == Family::DeepSeek && moe.first_dense_layers >= layers {
        return Ok(None);
    }
    Ok(Some(moe))
}

/// DeepSeek's node-limited routing; one group of all experts limits nothing.
fn group_limit(config: &Config<'_>) -> Result<Option<GroupLimit>, HuggingFaceError> {
    let groups = config.optional("n_group")?.unwrap_or(1);
    let chosen = config.optional("topk_group")?.unwrap_or(groups);
    Ok((groups > 1 && chosen < groups).then_some(GroupLimit { groups, chosen }))
}

/// Qwen lists its dense layers one by one; only leading ones can be expressed.
fn leading_dense_layers(config: &Config<'_>) -> Result<u64, HuggingFaceError> {
    const KEY: &str = "mlp_only_layers";
    let listed = config.array(KEY)?.unwrap_or_default();
    for (position, layer) in listed.iter().enumerate() {
        let index = layer
            .as_u64()
            .ok_or_else(|| wrong(KEY, "a list of whole numbers", layer))?;
        if index != position as u64 {
            let what = format!("layer {index} as dense, after layers that are not");
            return Err(HuggingFaceError::Unsupported { key: KEY, what });
        }
    }
    Ok(listed.len() as u64)
}

#[cfg(test)]
mod tests;
