//! `list` and `show`: what the simulator believes, and on whose word.

use crate::args::{Format, Kind};
use crate::columns::lay_out;
use crate::failure::Failure;
use crate::input;
use rackflow_plan::Cause;
use rackflow_report::{Style, explain};
use rackflow_scenario::{Catalogue, Section};
use rackflow_topology::{Accelerator, Node};
use rackflow_units::{FlopRate, counted};
use serde_json::{Value, json};

/// The catalogue, or one part of it.
pub fn list(kind: Option<Kind>, format: Format, style: Style) -> String {
    let kinds: Vec<Kind> = kind.map_or_else(
        || {
            use Kind::{
                Accelerators, Causes, Fabrics, Failures, Models, Nodes, Racks, Scenarios,
                ServingStacks, Stacks,
            };
            vec![
                Scenarios,
                Models,
                Accelerators,
                Nodes,
                Racks,
                Fabrics,
                Stacks,
                ServingStacks,
                Failures,
                Causes,
            ]
        },
        |kind| vec![kind],
    );
    match format {
        Format::Json => {
            let parts = kinds
                .iter()
                .map(|kind| (title(*kind).to_owned(), entries(*kind)));
            format!("{:#}\n", Value::Object(parts.collect()))
        }
        Format::Table => {
            let parts: Vec<String> = kinds
                .iter()
                .map(|kind| {
                    let title = title(*kind);
                    let title = if style.color {
                        format!("\u{1b}[1m{title}\u{1b}[0m")
                    } else {
                        title.to_owned()
                    };
                    format!("{title}\n{}", table(*kind, style.width))
                })
                .collect();
            parts.join("\n")
        }
    }
}

fn title(kind: Kind) -> &'static str {
    match kind {
        Kind::Models => "models",
        Kind::Accelerators => "accelerators",
        Kind::Nodes => "nodes",
        Kind::Racks => "racks",
        Kind::Fabrics => "fabrics",
        Kind::Stacks => "stacks",
        Kind::ServingStacks => "serving-stacks",
        Kind::Failures => "failures",
        Kind::Scenarios => "scenarios",
        Kind::Causes => "causes",
    }
}

/// Name and description of every entry, for programs.
fn entries(kind: Kind) -> Value {
    let pairs: Vec<(String, String)> = match kind {
        Kind::Scenarios => scenarios(),
        Kind::Causes => causes(),
        Kind::Racks => nodes()
            .map(|node| (node.name.clone(), rack(&node)))
            .collect(),
        Kind::Models
        | Kind::Accelerators
        | Kind::Nodes
        | Kind::Fabrics
        | Kind::Stacks
        | Kind::ServingStacks
        | Kind::Failures => described(section(kind)),
    };
    pairs
        .into_iter()
        .map(|(name, description)| json!({ "name": name, "description": description }))
        .collect()
}

fn section(kind: Kind) -> Section {
    match kind {
        Kind::Models => Section::Models,
        Kind::Accelerators => Section::Accelerators,
        Kind::Fabrics => Section::Fabrics,
        Kind::Stacks => Section::Stacks,
        Kind::ServingStacks => Section::ServingStacks,
        Kind::Failures => Section::Failures,
        _ => Section::Nodes,
    }
}

fn table(kind: Kind, width: usize) -> String {
    let pairs = |pairs: Vec<(String, String)>| {
        let rows: Vec<Vec<String>> = pairs
            .into_iter()
            .map(|(name, text)| vec![name, text])
            .collect();
        lay_out(&["", ""], &rows, width)
    };
    match kind {
        Kind::Scenarios => pairs(scenarios()),
        Kind::Causes => pairs(causes()),
        Kind::Racks => pairs(
            nodes()
                .map(|node| (node.name.clone(), rack(&node)))
                .collect(),
        ),
        Kind::Accelerators => {
            let rows: Vec<Vec<String>> = Catalogue::builtin()
                .names(Section::Accelerators)
                .filter_map(|name| Catalogue::builtin().accelerator(name))
                .map(accelerator_row)
                .collect();
            lay_out(
                &["", ">memory", ">bandwidth", ">bf16 dense", ">fp8", ">fp4"],
                &rows,
                width,
            )
        }
        Kind::Models => {
            let rows: Vec<Vec<String>> = Catalogue::builtin()
                .names(Section::Models)
                .filter_map(|name| Catalogue::builtin().model(name))
                .map(|model| {
                    let billions = |count: u64| format!("{:.1} B", count as f64 / 1e9);
                    let layers = model.layers.to_string();
                    let experts = model.moe.as_ref().map_or_else(String::new, |moe| {
                        format!("{} of {}", moe.top_k, moe.experts)
                    });
                    let total = billions(model.parameters_total());
                    vec![
                        model.name.clone(),
                        total,
                        billions(model.parameters_active()),
                        layers,
                        experts,
                    ]
                })
                .collect();
            lay_out(
                &["", ">parameters", ">active", ">layers", ">experts"],
                &rows,
                width,
            )
        }
        Kind::Nodes | Kind::Fabrics | Kind::Stacks | Kind::ServingStacks | Kind::Failures => {
            pairs(described(section(kind)))
        }
    }
}

fn described(section: Section) -> Vec<(String, String)> {
    Catalogue::builtin()
        .list(section)
        .map(|(name, text)| (name.to_owned(), text.to_owned()))
        .collect()
}

fn nodes() -> impl Iterator<Item = Node> {
    Catalogue::builtin()
        .names(Section::Nodes)
        .filter_map(|name| Catalogue::builtin().node(name))
}

fn rack(node: &Node) -> String {
    format!(
        "{}, {}, NVLink domain of {}",
        counted(node.rack.gpus, "GPU"),
        node.rack.power,
        node.scale_up.domain
    )
}

fn accelerator_row(accelerator: &Accelerator) -> Vec<String> {
    let peak = accelerator.peak;
    let rate =
        |rate: Option<FlopRate>| rate.map_or_else(|| "-".to_owned(), |rate| rate.to_string());
    vec![
        accelerator.name.clone(),
        accelerator.memory.to_string(),
        accelerator.memory_bandwidth.to_string(),
        peak.bf16.to_string(),
        rate(peak.fp8),
        rate(peak.fp4),
    ]
}

/// Scenarios that ship with the program, those of several jobs last.
fn shipped() -> impl Iterator<Item = &'static (&'static str, &'static str)> {
    rackflow_scenario::shipped()
        .iter()
        .chain(rackflow_scenario::shipped_jobs())
}

/// Name of each shipped scenario, and the first sentence of the comment at its top.
fn scenarios() -> Vec<(String, String)> {
    let describe = |text: &str| {
        let comments = text
            .lines()
            .map_while(|line| line.strip_prefix('#'))
            .map(str::trim);
        let prose = comments
            .filter(|line| !line.contains("$schema"))
            .skip_while(|line| line.is_empty());
        let words = prose
            .take_while(|line| !line.is_empty())
            .collect::<Vec<_>>()
            .join(" ");
        match words.split_once(". ") {
            Some((first, _)) => format!("{first}."),
            None => words,
        }
    };
    shipped()
        .map(|(name, text)| ((*name).to_owned(), describe(text)))
        .collect()
}

/// Key and meaning of every loss that a report may name.
fn causes() -> Vec<(String, String)> {
    Cause::all()
        .map(|cause| (rackflow_report::key(cause), explain(cause).sentence))
        .collect()
}

/// One entry of the catalogue as it is written there, a shipped scenario, or a cause.
pub fn show(name: &str, format: Format) -> Result<String, Failure> {
    let catalogue = Catalogue::builtin();
    if let Some((_, text)) = shipped().find(|(shipped, _)| *shipped == name) {
        return Ok(match format {
            Format::Table => (*text).to_owned(),
            Format::Json => format!(
                "{:#}\n",
                json!({ "kind": "scenario", "name": name, "text": text })
            ),
        });
    }
    if let Some(cause) = Cause::all().find(|cause| rackflow_report::key(*cause) == name) {
        let words = explain(cause);
        return Ok(match format {
            Format::Table => format!("{}\n  {}\n", words.label, words.sentence),
            Format::Json => {
                let (label, sentence) = (words.label, words.sentence);
                format!(
                    "{:#}\n",
                    json!({ "kind": "cause", "name": name, "label": label, "explanation": sentence })
                )
            }
        });
    }
    let sections: Vec<Section> = catalogue.sections_of(name).collect();
    if sections.is_empty() {
        return Err(unknown(name));
    }
    let shown: Vec<Value> = sections
        .iter()
        .map(|section| entry(*section, name))
        .collect();
    Ok(match format {
        Format::Json => match &shown[..] {
            [one] => format!("{one:#}\n"),
            all => format!("{:#}\n", json!(all)),
        },
        Format::Table => {
            let texts = sections
                .iter()
                .filter_map(|section| catalogue.text(*section, name));
            texts
                .map(|text| format!("{text}\n"))
                .collect::<Vec<_>>()
                .join("\n")
        }
    })
}

fn entry(section: Section, name: &str) -> Value {
    let catalogue = Catalogue::builtin();
    let value = match section {
        Section::Accelerators => json!(catalogue.accelerator(name)),
        Section::Fabrics => json!(catalogue.fabric(name)),
        Section::Models => json!(catalogue.model(name)),
        Section::Stacks => json!(catalogue.stack(name)),
        Section::ServingStacks => json!(catalogue.serving_stack(name)),
        Section::Failures => json!(catalogue.failures(name)),
        Section::Nodes => json!(catalogue.node(name).map(|node| {
            json!({
                "accelerator": node.accelerator.name,
                "gpus": node.gpus,
                "scale_up": node.scale_up,
                "nic": node.nic,
                "rack": node.rack,
            })
        })),
    };
    json!({
        "kind": section.singular(),
        "name": name,
        "value": value,
        "sources": catalogue.sources(section, name),
    })
}

fn unknown(name: &str) -> Failure {
    let catalogue = Catalogue::builtin();
    let shipped = shipped().map(|(name, _)| *name);
    let names = Section::ALL
        .into_iter()
        .flat_map(|section| catalogue.names(section))
        .chain(shipped);
    let mut text = format!("error: the catalogue has no entry {name}");
    match input::nearest(name, names) {
        Some(near) => text.push_str(&format!("\n  hint: did you mean {near}?")),
        None => text.push_str("\n  hint: `rackflow list` names all"),
    }
    Failure::Input(text)
}
