//! The JSON Schema that editors use is the one in `docs`.

use rackflow_scenario::scenario_schema;
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
