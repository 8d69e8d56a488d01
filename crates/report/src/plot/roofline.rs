//! The roofline with the kernels of a step on it.

use super::lines::{Kind, Lines, Series};
use super::picture::Picture;
use super::scale::Axis;
use super::style;
use crate::detail::{Kernel, Kernels};
use crate::format::{number, percent, significant};
use crate::report::Report;

/// Kernels that take a smaller share of the kernels' time are not drawn.
const SMALLEST: f64 = 0.001;
/// Kernels that are named.
const MOST_NAMED: usize = 9;

/// Kinds of kernels that multiply, and their names.
const KINDS: [(&str, &str); 3] = [
    ("product", "products"),
    ("expert_product", "expert products"),
    ("attention", "attention"),
];

/// The roofline of a training step; none where the report does not list its kernels.
pub fn roofline(report: &Report) -> Option<Picture> {
    let kernels = report.kernels.as_ref()?;
    let all: f64 = kernels.rows.iter().map(|row| row.gpu_seconds).sum();
    let drawn: Vec<&Kernel> = kernels
        .rows
        .iter()
        .filter(|row| row.flops > 0.0 && row.bytes > 0.0 && row.gpu_seconds > SMALLEST * all)
        .collect();
    // Of kernels of one name, the one that takes most time carries it.
    let mut named: Vec<&Kernel> = Vec::new();
    for row in &drawn {
        if named.len() < MOST_NAMED && named.iter().all(|known| words(known) != words(row)) {
            named.push(row);
        }
    }
    let intensities = || drawn.iter().map(|row| intensity(row));
    let least = intensities().fold(f64::INFINITY, f64::min);
    let most = intensities().fold(0.0, f64::max);
    let highest = kernels.peaks.last()?.flops_per_s;
    let ridge = highest / kernels.memory_bytes_per_s;
    let x = (least.min(ridge / 8.0) / 1.5, most.max(ridge * 4.0) * 2.0);
    let slowest = drawn
        .iter()
        .map(|row| rate(row))
        .fold(f64::INFINITY, f64::min);
    let low = slowest.min(kernels.memory_bytes_per_s * x.0 * 1e-12) / 1.5;
    let mut series: Vec<Series> = KINDS
        .iter()
        .enumerate()
        .filter_map(|(i, (kind, name))| points(&drawn, &named, kind, name, i, all))
        .collect();
    series.extend(roofs(kernels, x));
    let streams: f64 = kernels
        .rows
        .iter()
        .filter(|row| row.flops == 0.0)
        .map(|row| row.gpu_seconds)
        .sum();
    Some(
        Lines {
            title: title(kernels, all),
            subtitle: format!(
                "{}: kernels of one step of {}, each alone on one {}. A larger mark takes more of the time.",
                report.scenario, report.model.name, report.cluster.accelerator
            ),
            x: Axis::log("FLOP per byte of memory traffic").from_to(x.0, x.1),
            y: Axis::log("TFLOP/s of one GPU").from_to(low, highest * 1e-12 * 1.6),
            series,
            note: format!(
                "Not drawn: kernels that multiply nothing (norms, activations, optimizer), {} % of the kernels' time.",
                percent(streams / all)
            ),
        }
        .picture(),
    )
}

fn intensity(row: &Kernel) -> f64 {
    row.flops / row.bytes
}

/// TFLOP/s of one GPU.
fn rate(row: &Kernel) -> f64 {
    row.flops / row.gpu_seconds * 1e-12
}

fn points(
    drawn: &[&Kernel],
    named: &[&Kernel],
    kind: &str,
    name: &str,
    index: usize,
    all: f64,
) -> Option<Series> {
    let rows: Vec<&Kernel> = drawn
        .iter()
        .filter(|row| row.kind == kind)
        .copied()
        .collect();
    if rows.is_empty() {
        return None;
    }
    let label = |row: &&Kernel| {
        if named.iter().any(|known| std::ptr::eq(*known, *row)) {
            words(row)
        } else {
            String::new()
        }
    };
    Some(Series {
        name: name.to_owned(),
        points: rows.iter().map(|row| (intensity(row), rate(row))).collect(),
        kind: Kind::Points,
        labels: rows.iter().map(label).collect(),
        // The area of a mark is its share of the time.
        radii: rows
            .iter()
            .map(|row| 3.0 + 26.0 * (row.gpu_seconds / all).sqrt())
            .collect(),
        ink: Some(style::series(index)),
        ..Series::default()
    })
}

/// What a kernel is called beside its mark.
fn words(row: &Kernel) -> String {
    let core = if row.kind == "attention" { "core " } else { "" };
    let again = if row.recomputation { " again" } else { "" };
    let format = row.format.as_deref().unwrap_or("");
    format!("{core}{}{again}, {format}", row.name)
}

/// The slope of memory, and the ceiling of each format from where the slope reaches it.
fn roofs(kernels: &Kernels, (from, to): (f64, f64)) -> Vec<Series> {
    let slope = kernels.memory_bytes_per_s;
    let mut reached = from;
    let mut lines = Vec::new();
    for peak in &kernels.peaks {
        let ridge = peak.flops_per_s / slope;
        let ceiling = peak.flops_per_s * 1e-12;
        lines.push(Series {
            name: format!("{} {} TFLOP/s", peak.format, number(ceiling, 0)),
            points: vec![
                (reached, reached * slope * 1e-12),
                (ridge, ceiling),
                (to, ceiling),
            ],
            kind: Kind::Ideal,
            labels: if lines.is_empty() {
                vec![format!("memory, {} TB/s", significant(slope * 1e-12))]
            } else {
                Vec::new()
            },
            ..Series::default()
        });
        reached = ridge;
    }
    lines
}

/// How much of the kernels' time memory holds, and what the others reach of their peak.
fn title(kernels: &Kernels, all: f64) -> String {
    let peak = |row: &Kernel| {
        let format = row.format.as_deref()?;
        let found = kernels.peaks.iter().find(|peak| peak.format == format);
        // Formats without a peak of their own run at the rate of 16 bits.
        Some(found.or(kernels.peaks.first())?.flops_per_s)
    };
    let (mut bound, mut free, mut useful) = (0.0, 0.0, 0.0);
    for row in &kernels.rows {
        match peak(row) {
            Some(peak) if row.flops * kernels.memory_bytes_per_s > row.bytes * peak => {
                free += row.gpu_seconds;
                useful += row.flops / peak;
            }
            _ => bound += row.gpu_seconds,
        }
    }
    if free <= 0.0 {
        return "Memory bounds every kernel".to_owned();
    }
    format!(
        "Memory bounds {} % of the kernels' time; the other kernels reach {} % of their peak",
        percent(bound / all),
        percent(useful / free)
    )
}
