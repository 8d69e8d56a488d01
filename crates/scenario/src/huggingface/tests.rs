use super::{HuggingFaceError, parse};
use indexmap::IndexMap;
use proptest::prelude::*;
use rackflow_workload::{AttentionCount, Model};
use serde_json::{Value, json};

/// Published configurations, cut to the keys that matter, by catalogue name. Those of BLOOM,
/// DeepSeek-V2, GLM-4.6 and Moonlight are put together from the published dimensions in the keys of
/// their family. GPT-3 was never published this way: its shape in the spelling of GPT-2.
const CONFIGS: [(&str, &str); 18] = [
    (
        "bloom-176b",
        include_str!("../../tests/huggingface/bloom-176b.json"),
    ),
    (
        "deepseek-v2",
        include_str!("../../tests/huggingface/deepseek-v2.json"),
    ),
    (
        "deepseek-v3",
        include_str!("../../tests/huggingface/deepseek-v3.json"),
    ),
    (
        "glm-4.6",
        include_str!("../../tests/huggingface/glm-4.6.json"),
    ),
    (
        "gpt-oss-120b",
        include_str!("../../tests/huggingface/gpt-oss-120b.json"),
    ),
    (
        "gpt3-175b",
        include_str!("../../tests/huggingface/gpt3-175b.json"),
    ),
    (
        "kimi-k2",
        include_str!("../../tests/huggingface/kimi-k2.json"),
    ),
    (
        "llama3-405b",
        include_str!("../../tests/huggingface/llama3-405b.json"),
    ),
    (
        "llama3-70b",
        include_str!("../../tests/huggingface/llama3-70b.json"),
    ),
    (
        "llama3-8b",
        include_str!("../../tests/huggingface/llama3-8b.json"),
    ),
    (
        "llama4-maverick",
        include_str!("../../tests/huggingface/llama4-maverick.json"),
    ),
    (
        "llama4-scout",
        include_str!("../../tests/huggingface/llama4-scout.json"),
    ),
    (
        "mixtral-8x7b",
        include_str!("../../tests/huggingface/mixtral-8x7b.json"),
    ),
    (
        "moonlight-16b",
        include_str!("../../tests/huggingface/moonlight-16b.json"),
    ),
    (
        "nemotron4-340b",
        include_str!("../../tests/huggingface/nemotron4-340b.json"),
    ),
    (
        "qwen3-235b-a22b",
        include_str!("../../tests/huggingface/qwen3-235b-a22b.json"),
    ),
    (
        "qwen3-30b-a3b",
        include_str!("../../tests/huggingface/qwen3-30b-a3b.json"),
    ),
    (
        "qwen3-8b",
        include_str!("../../tests/huggingface/qwen3-8b.json"),
    ),
];

fn config(name: &str) -> Value {
    let (_, text) = CONFIGS.iter().find(|(known, _)| *known == name).unwrap();
    serde_json::from_str(text).unwrap()
}

/// The configuration of a catalogue model with some keys replaced; `null` is as good as absent.
fn with(name: &str, changes: Value) -> String {
    let mut config = config(name);
    for (key, value) in changes.as_object().unwrap() {
        config[key] = value.clone();
    }
    config.to_string()
}

#[test]
fn configurations_are_the_catalogue_entries() {
    let catalogue: IndexMap<String, Model> =
        serde_saphyr::from_str(include_str!("../../catalogue/models.yaml")).unwrap();
    for (name, text) in CONFIGS {
        let mut model = parse(text).unwrap_or_else(|error| panic!("{name}: {error}"));
        model.name.clear();
        model.sources.clone_from(&catalogue[name].sources);
        assert_eq!(model, catalogue[name], "{name}");
    }
}

#[track_caller]
fn refuses(text: &str, expected: &str) {
    let error = parse(text).expect_err("is refused").to_string();
    assert_eq!(error, expected);
}

#[test]
fn refuses_what_is_no_configuration() {
    refuses(
        "{",
        "not JSON: EOF while parsing an object at line 1 column 1",
    );
    refuses("[]", "a configuration is a JSON object, and this is a list");
    refuses("{}", "key `model_type` is missing");
    refuses(
        r#"{"model_type": 3}"#,
        "key `model_type` must be a string, and is 3",
    );
    refuses(
        r#"{"text_config": []}"#,
        "key `text_config` must be an object, and is a list",
    );
}

#[test]
fn refuses_unknown_families_with_the_nearest() {
    let supported = "supported are `bloom`, `deepseek_v2`, `deepseek_v3`, `glm4_moe`, `gpt2`, \
        `gpt_oss`, `kimi_k2`, `llama`, `llama4`, `llama4_text`, `mistral`, `mixtral`, `nemotron`, \
        `qwen3`, `qwen3_moe`, `qwen3_moe_text`, `qwen3_vl_moe_text`, `qwen3_vl_text`";
    refuses(
        r#"{"model_type": "deepseek_v32"}"#,
        &format!(
            "model_type `deepseek_v32` is not supported (nearest: `deepseek_v3`); {supported}"
        ),
    );
    refuses(
        r#"{"model_type": "t5"}"#,
        &format!("model_type `t5` is not supported; {supported}"),
    );
}

#[test]
fn refuses_missing_and_mistyped_keys() {
    refuses(
        &with("llama3-8b", json!({"hidden_size": null})),
        "key `hidden_size` is missing",
    );
    refuses(
        &with("mixtral-8x7b", json!({"num_local_experts": null})),
        "key `n_routed_experts` is missing (also read as `num_local_experts`, `num_experts`)",
    );
    refuses(
        &with("llama3-8b", json!({"num_hidden_layers": -32})),
        "key `num_hidden_layers` must be a whole number, 0 or more, and is -32",
    );
    refuses(
        &with("llama3-8b", json!({"vocab_size": "128k"})),
        "key `vocab_size` must be a whole number, 0 or more, and is a string",
    );
}

#[test]
fn every_missing_key_is_named() {
    for (name, text) in CONFIGS {
        let whole: Value = serde_json::from_str(text).unwrap();
        let keys = whole
            .get("text_config")
            .unwrap_or(&whole)
            .as_object()
            .unwrap();
        for removed in keys.keys() {
            let mut config = whole.clone();
            let inner = match config.get_mut("text_config") {
                Some(inner) => inner,
                None => &mut config,
            };
            inner.as_object_mut().unwrap().remove(removed);
            if let Err(HuggingFaceError::MissingKey { key, also }) = parse(&config.to_string()) {
                let named = key == removed || also.contains(&removed.as_str());
                assert!(named, "{name} without {removed}: says {key} is missing");
            }
        }
    }
}

#[test]
fn refuses_what_a_shape_cannot_express() {
    refuses(
        &with("deepseek-v3", json!({"moe_layer_freq": 2})),
        "key `moe_layer_freq` describes a mixture in one layer of 2, which cannot be expressed here",
    );
    refuses(
        &with("qwen3-30b-a3b", json!({"mlp_only_layers": [0, 7]})),
        "key `mlp_only_layers` describes layer 7 as dense, after layers that are not, which cannot \
         be expressed here",
    );
    refuses(
        &with("qwen3-8b", json!({"layer_types": ["full_attention"]})),
        "key `layer_types` describes 1 layers of 36, which cannot be expressed here",
    );
    refuses(
        &with("qwen3-8b", json!({"layer_types": ["linear_attention"]})),
        "key `layer_types` describes layers of `linear_attention`, which cannot be expressed here",
    );
    refuses(
        &with(
            "qwen3-8b",
            json!({"use_sliding_window": true, "sliding_window": 4096, "max_window_layers": 18}),
        ),
        "key `max_window_layers` describes windows from layer 18 on, which cannot be expressed here",
    );
}

#[test]
fn refuses_what_does_not_go_together() {
    refuses(
        &with("llama3-8b", json!({"num_key_value_heads": 5})),
        "the configuration makes no model: `kv_heads` 5 does not divide `heads` 32",
    );
    refuses(
        &with("llama3-8b", json!({"num_hidden_layers": u64::MAX})),
        "the configuration makes no model: `layers` is 18446744073709551615, and no model has \
         more than 10000",
    );
}

#[test]
fn windows_follow_the_layer_types() {
    let types = |pattern: &[&str]| json!({"layer_types": pattern.repeat(9), "sliding_window": 512});
    let windows = |pattern: &[&str]| {
        let model = parse(&with("qwen3-8b", types(pattern))).unwrap();
        (0..4)
            .map(|layer| model.layer_kind(layer).window)
            .collect::<Vec<_>>()
    };
    let (sliding, full) = ("sliding_attention", "full_attention");
    let seen = Some(512);
    assert_eq!(
        windows(&[sliding, sliding, sliding, full]),
        [seen, seen, seen, None]
    );
    assert_eq!(windows(&[sliding; 4]), [seen; 4]);
    assert_eq!(windows(&[full; 4]), [None; 4]);
    let irregular = with("qwen3-8b", types(&[full, sliding, sliding, sliding]));
    assert!(matches!(
        parse(&irregular),
        Err(HuggingFaceError::Unsupported { .. })
    ));
}

#[test]
fn nested_language_models_are_found() {
    let mut inner = config("qwen3-30b-a3b");
    inner["model_type"] = json!("qwen3_vl_moe_text");
    inner.as_object_mut().unwrap().remove("tie_word_embeddings");
    let nested = json!({
        "model_type": "qwen3_vl_moe", "tie_word_embeddings": true, "text_config": inner,
    });
    let model = parse(&nested.to_string()).unwrap();
    assert_eq!(model.layers, 48);
    assert!(model.tied_embeddings);
    assert_eq!(model.vision, None);
}

/// The configuration of Qwen3-VL 30B-A3B, as far as it is read.
#[test]
fn vision_encoders_are_read() {
    let catalogue: IndexMap<String, Model> =
        serde_saphyr::from_str(include_str!("../../catalogue/models.yaml")).unwrap();
    let with_vision = |vision: Value| {
        let mut inner = config("qwen3-30b-a3b");
        inner["model_type"] = json!("qwen3_vl_moe_text");
        json!({ "model_type": "qwen3_vl_moe", "text_config": inner, "vision_config": vision })
            .to_string()
    };
    let mut vision = json!({
        "depth": 27, "hidden_size": 1152, "num_heads": 16, "intermediate_size": 4304,
        "patch_size": 16, "temporal_patch_size": 2, "spatial_merge_size": 2,
        "num_position_embeddings": 2304, "deepstack_visual_indexes": [8, 16, 24],
    });
    let model = parse(&with_vision(vision.clone())).unwrap();
    assert_eq!(model.vision, catalogue["qwen3-vl-30b-a3b"].vision);
    vision["patch_size"] = json!(0);
    refuses(
        &with_vision(vision.clone()),
        "the configuration makes no model: `vision.patch` must not be 0",
    );
    vision.as_object_mut().unwrap().remove("depth");
    refuses(
        &with_vision(vision),
        "key `depth` is missing (also read as `num_hidden_layers`)",
    );
    refuses(
        &with_vision(json!(3)),
        "key `vision_config` must be an object, and is 3",
    );
}

fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        (0u64..200).prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        ".{0,12}".prop_map(Value::from),
        Just(json!("full_attention")),
        Just(json!("sliding_attention")),
    ];
    leaf.prop_recursive(3, 24, 6, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
            prop::collection::btree_map(".{0,12}", inner, 0..6)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

/// Whatever is accepted can be counted.
fn survives(text: &str) {
    if let Ok(model) = parse(text) {
        model.check().unwrap();
        assert!(model.parameters_total() > 0);
        assert!(
            model
                .flops_per_token(4096, AttentionCount::Causal)
                .is_finite()
        );
        model.kv_bytes(1 << 20, 16);
    }
}

proptest! {
    #[test]
    fn any_bytes_survive(bytes in prop::collection::vec(any::<u8>(), 0..256)) {
        survives(&String::from_utf8_lossy(&bytes));
    }

    #[test]
    fn any_json_survives(value in any_json()) {
        survives(&value.to_string());
    }

    #[test]
    fn damaged_configurations_survive(
        which in 0..CONFIGS.len(),
        damage in prop::collection::vec((any::<prop::sample::Index>(), any_json()), 1..4),
    ) {
        let mut config: Value = serde_json::from_str(CONFIGS[which].1).unwrap();
        let inner = match config.get_mut("text_config") {
            Some(inner) => inner,
            None => &mut config,
        };
        let keys: Vec<String> = inner.as_object().unwrap().keys().cloned().collect();
        for (index, value) in damage {
            inner[&keys[index.index(keys.len())]] = value;
        }
        survives(&config.to_string());
    }

    #[test]
    fn truncated_configurations_survive(which in 0..CONFIGS.len(), cut in any::<prop::sample::Index>()) {
        let text = CONFIGS[which].1;
        survives(&text[..cut.index(text.len())]);
    }
}
