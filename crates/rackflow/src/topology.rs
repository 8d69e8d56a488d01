//! `topology` and `route`: what a cluster is made of, and how its GPUs reach each other.

use crate::args::{ClusterArgs, DrawnFormat, Format, RouteArgs, TopologyArgs};
use crate::failure::Failure;
use crate::{files, input, terminal};
use clap::ColorChoice;
use rackflow_report::{Style, plot, route_text, topology_text};
use rackflow_scenario::ClusterChanges;
use rackflow_topology::{Cluster, RouteTrace, Survey};
use rackflow_units::counted;
use std::path::Path;

/// Describes a cluster.
pub fn topology(args: &TopologyArgs, color: ColorChoice) -> Result<(), Failure> {
    let cluster = input::cluster(&args.cluster, &changes(&args.changes))?;
    if cluster.is_mixed() {
        return parts(args, &cluster, color);
    }
    let survey = Survey::new(&cluster).map_err(Failure::input)?;
    if let Some(folder) = &args.output {
        write(folder, &survey)?;
    }
    files::print(&match args.format {
        DrawnFormat::Table => topology_text(&survey, &terminal::style(color)),
        DrawnFormat::Json => json(&survey)?,
        DrawnFormat::Svg => plot::topology(&survey).svg(),
    })
}

/// Describes a cluster of several kinds of node, one part after the other.
fn parts(args: &TopologyArgs, cluster: &Cluster, color: ColorChoice) -> Result<(), Failure> {
    let surveys = Survey::parts(cluster).map_err(Failure::input)?;
    let mut text = String::new();
    let mut first = 0;
    for survey in &surveys {
        let last = first + survey.gpus - 1;
        text.push_str(&format!(
            "GPUs {first} to {last}, on leaves of their own\n\n"
        ));
        text.push_str(&topology_text(survey, &terminal::style(color)));
        text.push('\n');
        first += survey.gpus;
    }
    text.push_str("The upper tiers of the fabric join the parts; their switches are counted for each apart.\n");
    let picture = plot::topology_of_parts(&surveys);
    if let Some(folder) = &args.output {
        files::write_folder(
            folder,
            &[
                ("topology.txt", text.as_bytes()),
                ("topology.json", json(&surveys)?.as_bytes()),
                ("topology.svg", picture.svg().as_bytes()),
                ("topology.png", &picture.png()),
            ],
        )?;
    }
    files::print(&match args.format {
        DrawnFormat::Json => json(&surveys)?,
        DrawnFormat::Svg => picture.svg(),
        DrawnFormat::Table => text,
    })
}

/// Shows the paths between two GPUs.
pub fn route(args: &RouteArgs, color: ColorChoice) -> Result<(), Failure> {
    let cluster = input::cluster(&args.cluster, &changes(&args.changes))?;
    for gpu in [args.from, args.to] {
        if gpu >= cluster.gpus {
            return Err(Failure::Input(format!(
                "error: there is no GPU {gpu}: the cluster has {}, counted from 0\n  \
                 hint: `--gpus N` takes more of them",
                counted(cluster.gpus, "GPU")
            )));
        }
    }
    let trace = RouteTrace::new(&cluster, args.from, args.to, args.seed).map_err(Failure::input)?;
    let faults = input::faults(&args.cluster);
    let trace = trace
        .with_faults(&cluster, &faults)
        .map_err(|(_, error)| Failure::input(error))?;
    files::print(&match args.format {
        Format::Table => route_text(&trace, &terminal::style(color)),
        Format::Json => json(&trace)?,
    })
}

fn changes(args: &ClusterArgs) -> ClusterChanges {
    ClusterChanges {
        gpus: args.gpus,
        fabric: args.fabric.clone(),
        accelerator: args.accelerator.clone(),
        whole_nodes: false,
    }
}

fn json(value: &impl serde::Serialize) -> Result<String, Failure> {
    let text = serde_json::to_string_pretty(value).map_err(Failure::run)?;
    Ok(text + "\n")
}

fn write(folder: &Path, survey: &Survey) -> Result<(), Failure> {
    let picture = plot::topology(survey);
    files::write_folder(
        folder,
        &[
            (
                "topology.txt",
                topology_text(survey, &Style::default()).as_bytes(),
            ),
            ("topology.json", json(survey)?.as_bytes()),
            ("topology.svg", picture.svg().as_bytes()),
            ("topology.png", &picture.png()),
        ],
    )
}
