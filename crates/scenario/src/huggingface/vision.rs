//! The vision encoder of a `config.json`, under `vision_config`.

use super::{Config, HuggingFaceError, wrong};
use rackflow_workload::{Projector, VisionEncoder};
use serde_json::Value;

/// The encoder, where the file describes one of a family that is read.
pub(super) fn encoder(root: &Config<'_>) -> Result<Option<VisionEncoder>, HuggingFaceError> {
    let config = match root.value("vision_config") {
        None => return Ok(None),
        Some(Value::Object(inner)) => Config(inner),
        Some(other) => return Err(wrong("vision_config", "an object", other)),
    };
    match root.text("model_type")? {
        Some("llama4") => llama4(&config).map(Some),
        Some("qwen3_vl" | "qwen3_vl_moe") => qwen3(&config).map(Some),
        _ => Ok(None),
    }
}

fn llama4(config: &Config<'_>) -> Result<VisionEncoder, HuggingFaceError> {
    let (image, patch) = (config.number("image_size")?, config.number("patch_size")?);
    let side = image.checked_div(patch).unwrap_or(0);
    Ok(VisionEncoder {
        layers: config.number("num_hidden_layers")?,
        hidden: config.number("hidden_size")?,
        heads: config.number("num_attention_heads")?,
        ffn: config.number("intermediate_size")?,
        gated: false,
        biases: true,
        rotary: true,
        // One for each patch, and one for the class token.
        learned_positions: side.saturating_mul(side).saturating_add(1),
        patch,
        frames: 1,
        patch_bias: false,
        class_token: true,
        outer_norms: 2,
        window: None,
        full_every: None,
        image: Some(image),
        merge: merge(config)?,
        projector: Projector {
            widths: vec![
                config.number("projector_input_dim")?,
                config.number("projector_output_dim")?,
            ],
            biases: false,
            norm: false,
            deep: 0,
        },
    })
}

/// Patches along a side of what is merged: one over the ratio by which that side shrinks.
fn merge(config: &Config<'_>) -> Result<u64, HuggingFaceError> {
    let key = "pixel_shuffle_ratio";
    let Some(value) = config.value(key) else {
        return Err(HuggingFaceError::MissingKey { key, also: &[] });
    };
    let ratio = value.as_f64().filter(|ratio| (0.01..=1.0).contains(ratio));
    let Some(ratio) = ratio else {
        return Err(wrong(key, "a number between 0.01 and 1", value));
    };
    Ok((1.0 / ratio).round() as u64)
}

fn qwen3(config: &Config<'_>) -> Result<VisionEncoder, HuggingFaceError> {
    let (hidden, merge) = (
        config.number("hidden_size")?,
        config.number("spatial_merge_size")?,
    );
    let deep = config.array("deepstack_visual_indexes")?.unwrap_or(&[]);
    Ok(VisionEncoder {
        layers: config.number_as("depth", &["num_hidden_layers"])?,
        hidden,
        heads: config.number_as("num_heads", &["num_attention_heads"])?,
        ffn: config.number("intermediate_size")?,
        gated: false,
        biases: true,
        rotary: true,
        learned_positions: config.number("num_position_embeddings")?,
        patch: config.number("patch_size")?,
        frames: config.number("temporal_patch_size")?,
        patch_bias: true,
        class_token: false,
        outer_norms: 0,
        window: None,
        full_every: None,
        image: None,
        merge,
        projector: Projector {
            widths: vec![hidden.saturating_mul(merge).saturating_mul(merge)],
            biases: true,
            norm: true,
            deep: deep.len() as u64,
        },
    })
}
