//! Memory of one GPU of each stage, by what it holds.

use super::bars::{Bar, Bars, Part};
use super::picture::Picture;
use super::scale::Axis;
use super::style;
use crate::format::number;
use crate::report::{Memory, Report};

/// Its name, and how much of a GPU's memory it takes.
type Category = (&'static str, fn(&Memory) -> u64);

const CATEGORIES: [Category; 6] = [
    ("weights", |memory| memory.weights),
    ("gradients", |memory| memory.gradients),
    ("optimizer", |memory| memory.optimizer),
    ("activations", |memory| memory.activations),
    ("buffers", |memory| memory.buffers),
    ("reserved", |memory| memory.reserved),
];

fn gigabytes(bytes: u64) -> f64 {
    bytes as f64 * 1e-9
}

/// Memory by category, stage by stage. A report without its stages shows the fullest.
pub fn memory(report: &Report) -> Picture {
    let fullest = report.training.memory_per_gpu_bytes;
    let stages = match report.memory_by_stage.as_slice() {
        [] => std::slice::from_ref(&fullest),
        stages => stages,
    };
    let (largest, bytes) = CATEGORIES
        .iter()
        .map(|(name, of)| (*name, of(&fullest)))
        .max_by_key(|(_, bytes)| *bytes)
        .unwrap_or(("", 0));
    let whose = if fullest.stages > 1 {
        format!(" on the fullest stage, {}", fullest.stage)
    } else {
        String::new()
    };
    let title = format!(
        "{}{} take most memory: {} of {} GB{whose}",
        largest[..1].to_uppercase(),
        &largest[1..],
        number(gigabytes(bytes), 1),
        number(gigabytes(fullest.total), 1),
    );
    let title = if largest == "optimizer" {
        title.replacen("Optimizer take", "The optimizer takes", 1)
    } else {
        title.replacen("Reserved take", "What is reserved takes", 1)
    };
    let bar = |memory: &Memory| Bar {
        name: format!("stage {}", memory.stage),
        parts: CATEGORIES
            .iter()
            .enumerate()
            .map(|(i, (_, of))| Part {
                value: gigabytes(of(memory)),
                ink: style::series(i),
            })
            .collect(),
        figure: format!("{} GB", number(gigabytes(memory.total), 1)),
    };
    Bars {
        title,
        subtitle: format!(
            "{}: peak memory of one {} of each pipeline stage. {}",
            report.scenario,
            report.cluster.accelerator,
            report.plan.shorthand()
        ),
        axis: Axis::linear("GB of one GPU at its peak"),
        bars: stages.iter().map(bar).collect(),
        limit: Some((
            gigabytes(fullest.capacity),
            format!("{} GB of the GPU", number(gigabytes(fullest.capacity), 0)),
        )),
        legend: CATEGORIES
            .iter()
            .enumerate()
            .map(|(i, (name, _))| (style::series(i), (*name).to_owned()))
            .collect(),
        note: String::new(),
    }
    .picture()
}
