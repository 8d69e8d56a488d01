//! The JSON Schema of a sweep: that of a scenario, in which every field may hold several values.

use crate::schema::scenario_schema;
use serde_json::{Map, Value, json};

/// The JSON Schema of the YAML that [`crate::expand`] reads.
///
/// It asks for no field, because an axis may give what the rest of the file leaves out.
pub fn sweep_schema() -> Value {
    let mut schema = scenario_schema();
    loosen(&mut schema);
    let mut definitions = Map::new();
    vary(&mut schema, &mut definitions);
    if let Some(properties) = schema["properties"].as_object_mut() {
        properties.insert("sweep".to_owned(), section());
    }
    if let Some(known) = schema["$defs"].as_object_mut() {
        known.extend(definitions);
        known.insert("SweepRange".to_owned(), range());
    }
    schema["title"] = "Rackflow sweep".into();
    schema["description"] =
        "A scenario in which any field may hold a list, or a range of values.".into();
    schema
}

/// Drops what a part of a scenario must have, and takes alternatives as such: a list may fit two.
fn loosen(schema: &mut Value) {
    match schema {
        Value::Object(object) => {
            let properties = object.get("properties").and_then(Value::as_object);
            // The only key of a mapping tells which kind it is.
            if properties.is_some_and(|properties| properties.len() > 1) {
                object.remove("required");
            }
            if let Some(Value::Array(alternatives)) = object.remove("oneOf") {
                let asks = |alternative: &Value| {
                    let keys = alternative.as_object();
                    keys.is_some_and(|keys| keys.len() == 1 && keys.contains_key("required"))
                };
                if !alternatives.iter().all(asks) {
                    object.insert("anyOf".to_owned(), Value::Array(alternatives));
                }
            }
            object.values_mut().for_each(loosen);
        }
        Value::Array(items) => items.iter_mut().for_each(loosen),
        _ => {}
    }
}

/// Lets every property hold several values, from the inside to the outside.
fn vary(schema: &mut Value, definitions: &mut Map<String, Value>) {
    match schema {
        Value::Object(object) => {
            for value in object.values_mut() {
                vary(value, definitions);
            }
            if let Some(Value::Object(properties)) = object.get_mut("properties") {
                for property in properties.values_mut() {
                    *property = several(property.take(), definitions);
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(|item| vary(item, definitions)),
        _ => {}
    }
}

/// A value, a list of values, or a range. What is asked of many fields is written once.
fn several(mut value: Value, definitions: &mut Map<String, Value>) -> Value {
    let mut schema = json!({});
    for words in ["description", "default"] {
        if let Some(own) = value.as_object_mut().and_then(|own| own.remove(words)) {
            schema[words] = own;
        }
    }
    let one = json!({ "$ref": defined("Value", value, definitions) });
    let list = json!({ "type": "array", "items": one, "minItems": 1 });
    let each = json!({
        "type": "object",
        "required": ["each"],
        "properties": { "each": list },
        "additionalProperties": false,
    });
    let choice = json!({ "anyOf": [one, list, { "$ref": "#/$defs/SweepRange" }, each] });
    schema["$ref"] = defined("Several", choice, definitions);
    schema
}

/// Where a schema is defined: under a name of its own, or the one that an equal schema has.
fn defined(name: &str, schema: Value, definitions: &mut Map<String, Value>) -> Value {
    if let (Some(target), Some(1)) = (schema.get("$ref"), schema.as_object().map(Map::len)) {
        return target.clone();
    }
    let known = definitions.iter().find(|(_, known)| **known == schema);
    let name = known.map_or_else(
        || format!("{name}{}", definitions.len() + 1),
        |(name, _)| name.clone(),
    );
    definitions.entry(name.clone()).or_insert(schema);
    format!("#/$defs/{name}").into()
}

fn range() -> Value {
    let number = json!({ "type": ["number", "string"] });
    let described = |words: &str| {
        let mut schema = number.clone();
        schema["description"] = words.into();
        schema
    };
    json!({
        "type": "object",
        "description": "Equal steps (`step`) or equal factors (`times`) from one value to another.",
        "required": ["from", "to"],
        "properties": {
            "from": described("The first value, with its unit."),
            "to": described("The last value, if a step meets it."),
            "step": described("What is added from one value to the next."),
            "times": described("What a value is multiplied with to get the next."),
        },
        "additionalProperties": false,
    })
}

/// The `sweep` section.
fn section() -> Value {
    let changes = json!({
        "type": ["object", "null"],
        "description": "Dotted paths of fields, and the values that they get in this case.",
    });
    let cases = json!({
        "type": "object",
        "minProperties": 1,
        "additionalProperties": changes,
        "description": "Named sets of changes, one case each.",
    });
    let paths = json!({ "type": "array", "items": { "type": "string" } });
    json!({
        "type": ["object", "null"],
        "description": "What belongs together where lists are not combined each with each.",
        "properties": {
            "zip": {
                "description": "Dotted paths of lists that advance together; or several such groups.",
                "type": "array",
                "items": { "anyOf": [{ "type": "string" }, paths] },
            },
            "axes": {
                "description": "Axes by name, each with its named cases; combined each with each.",
                "type": "object",
                "additionalProperties": cases,
            },
            "cases": cases,
            "seed": {
                "description": "Random numbers of a case: its own, or the same in all.",
                "enum": ["per_case", "shared"],
            },
        },
        "additionalProperties": false,
    })
}
