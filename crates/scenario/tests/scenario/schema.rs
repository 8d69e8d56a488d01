//! The JSON Schema that editors use is the one in `docs`.

use rackflow_scenario::{scenario_schema, sweep_schema};
use serde_json::Value;
use std::fs;
use std::path::Path;

#[allow(
    clippy::disallowed_methods,
    reason = "a test may be told to write what it would compare"
)]
fn bless() -> bool {
    std::env::var("BLESS").is_ok_and(|value| !value.is_empty())
}

#[test]
fn the_schema_in_docs_is_current() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/scenario.schema.json");
    let schema = serde_json::to_string_pretty(&scenario_schema()).expect("a schema is JSON") + "\n";
    if bless() {
        fs::write(&path, &schema).expect("docs is writable");
    }
    let written = fs::read_to_string(&path).unwrap_or_default();
    assert!(
        written == schema,
        "docs/scenario.schema.json is not current: run the tests with BLESS=1"
    );
}

#[test]
fn the_schema_describes_every_key() {
    fn walk(value: &serde_json::Value, path: &str, bare: &mut Vec<String>) {
        match value {
            serde_json::Value::Object(object) => {
                if let Some(properties) = object
                    .get("properties")
                    .and_then(serde_json::Value::as_object)
                {
                    // A kind of an enum is described beside its only key.
                    let kind = properties.len() == 1 && object.contains_key("description");
                    for (key, schema) in properties {
                        let described = ["description", "$ref", "anyOf", "oneOf", "enum"]
                            .iter()
                            .any(|k| schema.get(k).is_some());
                        if !described && !kind {
                            bare.push(format!("{path}/{key}"));
                        }
                    }
                }
                for (key, inner) in object {
                    walk(inner, &format!("{path}/{key}"), bare);
                }
            }
            serde_json::Value::Array(items) => {
                for item in items {
                    walk(item, path, bare);
                }
            }
            _ => {}
        }
    }
    let mut bare = Vec::new();
    walk(&scenario_schema(), "", &mut bare);
    assert!(bare.is_empty(), "keys without a description: {bare:?}");
}

/// Whether a value is what a schema asks for, as far as our schemas ask: no patterns, no bounds.
fn fits(value: &Value, schema: &Value, root: &Value) -> bool {
    let Some(schema) = schema.as_object() else {
        return schema.as_bool().unwrap_or(true);
    };
    let all = |key: &str| schema.get(key).and_then(Value::as_array);
    let kind = |name: &Value| match name.as_str().unwrap_or_default() {
        "object" => value.is_object(),
        "array" => value.is_array(),
        "string" => value.is_string(),
        "boolean" => value.is_boolean(),
        "null" => value.is_null(),
        "integer" => value.as_f64().is_some_and(|number| number.fract() == 0.0),
        _ => value.is_number(),
    };
    let kinds = match schema.get("type") {
        Some(Value::Array(names)) => names.iter().any(kind),
        Some(name) => kind(name),
        None => true,
    };
    let referred = schema.get("$ref").and_then(Value::as_str).is_none_or(|to| {
        let target = root.pointer(to.trim_start_matches('#'));
        fits(value, target.expect("a reference leads somewhere"), root)
    });
    let properties = schema.get("properties").and_then(Value::as_object);
    let members = value.as_object().is_none_or(|members| {
        members.iter().all(|(key, member)| {
            match properties.and_then(|properties| properties.get(key)) {
                Some(schema) => fits(member, schema, root),
                None => schema
                    .get("additionalProperties")
                    .is_none_or(|other| fits(member, other, root)),
            }
        })
    });
    let items = value.as_array().is_none_or(|items| {
        items.len() as u64 >= schema.get("minItems").and_then(Value::as_u64).unwrap_or(0)
            && schema
                .get("items")
                .is_none_or(|schema| items.iter().all(|item| fits(item, schema, root)))
    });
    kinds
        && referred
        && members
        && items
        && all("enum").is_none_or(|values| values.contains(value))
        && schema.get("const").is_none_or(|only| only == value)
        && all("required").is_none_or(|keys| {
            keys.iter()
                .all(|key| value.get(key.as_str().unwrap_or_default()).is_some())
        })
        && all("anyOf").is_none_or(|some| some.iter().any(|schema| fits(value, schema, root)))
        && all("allOf").is_none_or(|every| every.iter().all(|schema| fits(value, schema, root)))
}

#[test]
fn editors_take_lists_in_a_sweep_and_nothing_misspelled() {
    let schema = sweep_schema();
    let takes = |text: &str| {
        let value: Value = serde_saphyr::from_str(text).expect("YAML");
        fits(&value, &schema, &schema)
    };
    for (name, text) in rackflow_scenario::shipped_sweeps() {
        assert!(takes(text), "{name}");
    }
    const SMALL: &str = "
cluster: { node: dgx-h100, gpus: [8, 16], fabric: rail-optimized }
workload:
  training:
    model: [llama3-8b, llama3-70b]
    stack: { like: megatron-core-25.04, communication_sms: { each: [8, 16] } }
    precision: [bf16, fp8]
    recompute: [none, [norms], full]
    sequence_length: { from: 2048, to: 8192, times: 2 }
    global_batch: 32
    parallelism: { tensor: [1, 2], zero: 1 }
sweep: { zip: [cluster.gpus, workload.training.model], seed: shared }
";
    assert!(takes(SMALL));
    for (right, wrong) in [
        ("bf16, fp8", "bf16, fp9"),
        ("gpus:", "gpu:"),
        ("times: 2", "timse: 2"),
        ("each:", "all:"),
        ("[1, 2]", "[]"),
        ("seed: shared", "seed: common"),
        ("zip:", "zipped:"),
        ("norms", "gnomes"),
    ] {
        assert!(!takes(&SMALL.replace(right, wrong)), "{wrong}");
    }
    // A scenario is a sweep of one case.
    for (name, text) in rackflow_scenario::shipped() {
        assert!(takes(text), "{name}");
    }
}
