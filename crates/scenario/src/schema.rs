//! The JSON Schema of a scenario, from which editors complete YAML and check it while it is typed.

use crate::catalogue::{Catalogue, Section};
use crate::document::{Document, JobText, NodeText};
use rackflow_topology::{Accelerator, Fabric, FailureProfile};
use rackflow_workload::serving::ServingStack;
use rackflow_workload::{Model, SoftwareStack};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde_json::{Value, json};

/// The JSON Schema of the YAML that [`crate::parse`] reads.
pub fn scenario_schema() -> Value {
    let mut generator = SchemaGenerator::default();
    let jobs = generator.subschema_for::<Vec<JobText>>().to_value();
    let mut schema = generator.into_root_schema_for::<Document>().to_value();
    with_jobs(&mut schema, jobs);
    with_import(&mut schema["$defs"]["ClusterText"]);
    known_keys_only(&mut schema);
    schema
}

/// A scenario has `jobs` in place of one `workload`.
fn with_jobs(schema: &mut Value, mut jobs: Value) {
    jobs["description"] = json!("Several jobs beside each other, in place of one `workload`.");
    schema["properties"]["jobs"] = jobs;
    if let Some(required) = schema["required"].as_array_mut() {
        required.retain(|key| key != "workload");
    }
    schema["oneOf"] = json!([{ "required": ["workload"] }, { "required": ["jobs"] }]);
}

/// A cluster has `import` in place of `node`, and then perhaps of `gpus`; or `nodes` in place of both.
fn with_import(cluster: &mut Value) {
    if let Some(required) = cluster["required"].as_array_mut() {
        required.retain(|key| key != "node" && key != "gpus");
    }
    cluster["oneOf"] = json!([
        { "required": ["node", "gpus"] },
        { "required": ["import"] },
        { "required": ["nodes"] },
    ]);
}

/// Unknown keys are errors everywhere, also in types whose derive does not say so.
fn known_keys_only(schema: &mut Value) {
    match schema {
        Value::Object(object) => {
            if object.get("properties").is_some_and(Value::is_object) {
                object.entry("additionalProperties").or_insert(json!(false));
            }
            object.values_mut().for_each(known_keys_only);
        }
        Value::Array(items) => items.iter_mut().for_each(known_keys_only),
        _ => {}
    }
}

fn names(section: Section) -> Value {
    let names: Vec<&str> = Catalogue::builtin().names(section).collect();
    json!({ "type": "string", "enum": names, "description": format!("A {} of the catalogue.", section.singular()) })
}

/// A definition that takes an entry of the catalogue and changes some of its fields.
fn like<T: JsonSchema>(section: Section, generator: &mut SchemaGenerator) -> Value {
    let schema = T::json_schema(generator).to_value();
    let mut properties = schema
        .get("properties")
        .cloned()
        .unwrap_or_else(|| json!({}));
    if let Some(properties) = properties.as_object_mut() {
        // What is itself a mapping may be changed field by field.
        for property in properties.values_mut() {
            if ["$ref", "anyOf"]
                .iter()
                .any(|key| property.get(key).is_some())
            {
                *property = json!({ "anyOf": [property.take(), { "type": "object" }] });
            }
        }
        properties.insert("like".to_owned(), names(section));
    }
    json!({
        "type": "object",
        "description": format!("A {} of the catalogue with some fields changed.", section.singular()),
        "required": ["like"],
        "properties": properties,
        "additionalProperties": false,
    })
}

fn name_or_definition<T: JsonSchema>(section: Section, generator: &mut SchemaGenerator) -> Schema {
    let definition = generator.subschema_for::<T>();
    json_schema!({ "anyOf": [names(section), like::<T>(section, generator), definition] })
}

pub(crate) fn node(generator: &mut SchemaGenerator) -> Schema {
    name_or_definition::<NodeText>(Section::Nodes, generator)
}

pub(crate) fn accelerator(generator: &mut SchemaGenerator) -> Schema {
    name_or_definition::<Accelerator>(Section::Accelerators, generator)
}

pub(crate) fn fabric(generator: &mut SchemaGenerator) -> Schema {
    let definition = generator.subschema_for::<Fabric>();
    let changed = json!({
        "type": "object",
        "description": "A fabric of the catalogue with some fields changed.",
        "required": ["like"],
        "properties": { "like": names(Section::Fabrics) },
        "additionalProperties": { "type": "object" },
    });
    json_schema!({ "anyOf": [names(Section::Fabrics), changed, definition] })
}

pub(crate) fn model(generator: &mut SchemaGenerator) -> Schema {
    let definition = generator.subschema_for::<Model>();
    json_schema!({ "anyOf": [
        names(Section::Models),
        { "type": "string", "pattern": "\\.json$", "description": "Path of a Hugging Face config.json, relative to the scenario." },
        like::<Model>(Section::Models, generator),
        definition,
    ] })
}

pub(crate) fn stack(generator: &mut SchemaGenerator) -> Schema {
    name_or_definition::<SoftwareStack>(Section::Stacks, generator)
}

pub(crate) fn serving_stack(generator: &mut SchemaGenerator) -> Schema {
    name_or_definition::<ServingStack>(Section::ServingStacks, generator)
}

pub(crate) fn optional_node(generator: &mut SchemaGenerator) -> Schema {
    node(generator)
}

pub(crate) fn failures(generator: &mut SchemaGenerator) -> Schema {
    name_or_definition::<FailureProfile>(Section::Failures, generator)
}
