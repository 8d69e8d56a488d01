//! Pipeline stages over time.

use super::gantt::{Gantt, Span};
use super::picture::Picture;
use super::scale::Axis;
use super::style::{self, Ink};
use crate::detail::StageTimeline;
use crate::format::{percent, seconds};
use crate::report::Report;
use rackflow_units::counted;

/// Letter of a pass, what it is, and its colour.
const PASSES: [(char, &str, Ink); 5] = [
    ('F', "forward", style::SERIES[0]),
    ('B', "backward", style::SERIES[1]),
    ('I', "gradients of inputs", style::SERIES[4]),
    ('W', "gradients of weights", style::SERIES[6]),
    ('O', "forward woven into backward", style::SERIES[3]),
];

/// The passes of each pipeline stage; none where the report does not hold them.
pub fn pipeline(report: &Report) -> Option<Picture> {
    let timeline = report.timeline.as_ref()?;
    let last = timeline.stages.iter().flat_map(|stage| &stage.end_s);
    let end = last.copied().fold(0.0, f64::max);
    let (factor, unit) = if end < 1.0 { (1e3, "ms") } else { (1.0, "s") };
    let spans: Vec<Span> = timeline
        .stages
        .iter()
        .enumerate()
        .flat_map(|(row, stage)| spans(row, stage, factor))
        .collect();
    let drawn = |letter: &char| timeline.stages.iter().any(|s| s.passes.contains(*letter));
    let plan = &report.plan;
    let stages = timeline.stages.len();
    let title = if stages > 1 {
        format!(
            "Pipeline stages wait for each other {} % of the step",
            percent(report.training.bubble_fraction)
        )
    } else {
        let busy: f64 = timeline.stages.iter().map(busy).sum();
        format!(
            "Passes through the model fill {} % of the step, with one stage and no bubble",
            percent(busy / report.training.step_time_s)
        )
    };
    Some(
        Gantt {
            title,
            subtitle: format!(
                "{}: the first rank of each stage, {}, {} schedule. Step {}; what is empty is waiting, optimizer and gradients.",
                report.scenario,
                counted(plan.micro_batches, "micro-batch"),
                plan.schedule,
                seconds(report.training.step_time_s)
            ),
            axis: Axis::linear(&format!("time in the step, {unit}"))
                .from_to(0.0, report.training.step_time_s.max(end) * factor),
            rows: timeline
                .stages
                .iter()
                .map(|stage| format!("stage {}", stage.stage))
                .collect(),
            spans,
            legend: PASSES
                .iter()
                .filter(|(letter, ..)| drawn(letter))
                .map(|(_, name, ink)| (*ink, (*name).to_owned()))
                .collect(),
        }
        .picture(),
    )
}

fn busy(stage: &StageTimeline) -> f64 {
    stage
        .end_s
        .iter()
        .zip(&stage.start_s)
        .map(|(end, start)| end - start)
        .sum()
}

fn spans(row: usize, stage: &StageTimeline, factor: f64) -> Vec<Span> {
    let times = stage.start_s.iter().zip(&stage.end_s);
    let passes = stage.passes.chars().zip(&stage.micro_batch).zip(times);
    passes
        .map(|((letter, micro_batch), (start, end))| Span {
            row,
            start: start * factor,
            end: end * factor,
            ink: PASSES
                .iter()
                .find(|(known, ..)| *known == letter)
                .map_or(style::PEAK, |(_, _, ink)| *ink),
            label: micro_batch.to_string(),
        })
        .collect()
}
