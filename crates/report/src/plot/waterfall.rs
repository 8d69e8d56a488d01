//! The waterfall as a picture.

use super::picture::{Anchor, Picture};
use super::style::{self, Ink, size};
use crate::format::{number, percent};
use crate::replay::ReplayReport;
use crate::report::{Cluster, Loss, Report};
use crate::serving::ServingReport;
use rackflow_units::counted;

/// Losses below this share of the GPU-seconds are drawn together in one row.
const SMALLEST_ROW: f64 = 0.0005;

const ROW: f64 = 26.0;
const BAR: f64 = 18.0;
const NAMES: f64 = 230.0;
const FIGURES: f64 = 150.0;

struct Row<'a> {
    name: &'a str,
    from: f64,
    to: f64,
    ink: Ink,
    loss: bool,
}

/// The waterfall from peak to effective FLOP/s.
pub fn waterfall(report: &Report) -> Picture {
    draw(
        &report.scenario,
        &subtitle(report),
        &report.cluster,
        &report.waterfall,
    )
}

/// The same of a serving run.
pub fn serving_waterfall(report: &ServingReport) -> Picture {
    let serving = &report.serving;
    let share = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), percent);
    let subtitle = format!(
        "{} {}, {} peak. {} output tokens/s per GPU; MFU {} % in prefill, MBU {} % in decode.",
        number(report.cluster.gpus as f64, 0),
        report.cluster.accelerator,
        report.cluster.native_precision,
        crate::format::significant(serving.output_tokens_per_s_per_gpu),
        share(serving.mfu.prefill),
        share(serving.mbu.decode),
    );
    draw(
        &report.scenario,
        &subtitle,
        &report.cluster,
        &report.waterfall,
    )
}

/// The same of a replayed trace.
pub fn replay_waterfall(report: &ReplayReport) -> Picture {
    let replay = &report.replay;
    let subtitle = format!(
        "{} on {}, {} peak. Step {} s, {} % of peak.",
        counted(replay.ranks, "rank"),
        report.cluster.accelerator,
        report.cluster.native_precision,
        crate::format::significant(replay.step_time_s),
        percent(replay.utilisation),
    );
    draw(
        &report.scenario,
        &subtitle,
        &report.replayed(),
        &report.waterfall,
    )
}

fn draw(scenario: &str, subtitle: &str, cluster: &Cluster, waterfall: &[Loss]) -> Picture {
    let rows = rows(waterfall);
    let title = finding(&rows, &cluster.native_precision.to_string());
    let subtitle = &format!("{scenario}: {subtitle}");
    let top = Picture::heading_height(&title, subtitle) + 34.0;
    let bottom = top + ROW * rows.len() as f64;
    let mut picture = Picture::new(bottom + 64.0, &title, subtitle);
    let scale = style::WIDTH - 2.0 * style::MARGIN - NAMES - FIGURES;
    let x = |fraction: f64| style::MARGIN + NAMES + fraction.clamp(0.0, 1.0) * scale;
    let right = style::WIDTH - style::MARGIN;
    for tick in [0.0, 0.25, 0.5, 0.75, 1.0] {
        picture.line((x(tick), top - 8.0), (x(tick), bottom), style::GRID);
        let words = format!("{} %", number(tick * 100.0, 0));
        let at = (x(tick), top - 18.0);
        picture.words(at, &words, size::SMALL, style::FAINT, Anchor::Middle, false);
    }
    let unit = (right, top - 18.0);
    picture.words(
        unit,
        "PFLOP/s",
        size::SMALL,
        style::FAINT,
        Anchor::End,
        false,
    );
    let peak = cluster.peak_flops.native / 1e15;
    let digits = if peak >= 99.95 { 1 } else { 3 };
    for (i, row) in rows.iter().enumerate() {
        let y = top + ROW * i as f64;
        let middle = y + BAR / 2.0;
        let sign = if row.loss { "\u{2212}" } else { "" };
        let share = row.to - row.from;
        let mut words = |x: f64, words: &str| {
            picture.words(
                (x, middle),
                words,
                size::BODY,
                style::TEXT,
                Anchor::End,
                !row.loss,
            );
        };
        words(style::MARGIN + NAMES - 12.0, row.name);
        words(right - 74.0, &format!("{sign}{} %", percent(share)));
        words(right, &format!("{sign}{}", number(share * peak, digits)));
        // A loss that is not zero is at least a visible hairline.
        let width = (x(row.to) - x(row.from)).max(1.0);
        picture.rectangle(x(row.from), y, width, BAR, row.ink);
        if row.loss {
            picture.line((x(row.from), y), (x(row.from), y + ROW + BAR), style::PEAK);
        }
    }
    let meaning = [
        (style::MATH, "math below peak"),
        (style::WAIT, "waiting for communication"),
        (style::ORDER, "waiting for each other"),
        (style::USEFUL, "useful"),
    ];
    picture.legend(style::MARGIN + NAMES, bottom + 30.0, &meaning);
    picture
}

/// What is left of the peak, and the two losses that take most of it.
fn finding(rows: &[Row<'_>], precision: &str) -> String {
    let mut losses: Vec<&Row<'_>> = rows.iter().filter(|row| row.loss).collect();
    losses.sort_by(|a, b| (b.to - b.from).total_cmp(&(a.to - a.from)));
    let losses: Vec<String> = losses
        .iter()
        .take(2)
        .map(|row| {
            format!(
                "{} {} %",
                in_a_sentence(row.name),
                percent(row.to - row.from)
            )
        })
        .collect();
    let useful = rows.last().map_or(0.0, |row| row.to - row.from);
    let useful = format!("{} % of the {precision} peak is useful", percent(useful));
    if losses.is_empty() {
        return useful;
    }
    format!("{useful}; lost: {}", losses.join(", "))
}

/// A name without its capital, unless it is an abbreviation.
fn in_a_sentence(name: &str) -> String {
    let mut letters = name.chars();
    match (letters.next(), letters.next()) {
        (Some(first), Some(second)) if second.is_lowercase() => {
            format!("{}{}", first.to_lowercase(), &name[first.len_utf8()..])
        }
        _ => name.to_owned(),
    }
}

fn rows(waterfall: &[Loss]) -> Vec<Row<'_>> {
    let useful = |loss: &&Loss| loss.cause == "useful_math";
    let kept = waterfall
        .iter()
        .find(useful)
        .map_or(0.0, |loss| loss.fraction);
    let mut rows = vec![Row {
        name: "Dense peak",
        from: 0.0,
        to: 1.0,
        ink: style::PEAK,
        loss: false,
    }];
    let mut left = 1.0;
    let mut small = 0.0;
    for loss in waterfall.iter().filter(|loss| !useful(loss)) {
        if loss.fraction < SMALLEST_ROW {
            small += loss.fraction;
            continue;
        }
        let from = left - loss.fraction;
        rows.push(Row {
            name: &loss.label,
            from,
            to: left,
            ink: color(&loss.cause),
            loss: true,
        });
        left = from;
    }
    if small > 0.0 {
        let from = left - small;
        rows.push(Row {
            name: "Smaller losses",
            from,
            to: left,
            ink: style::PEAK,
            loss: true,
        });
    }
    rows.push(Row {
        name: "Effective",
        from: 0.0,
        to: kept,
        ink: style::USEFUL,
        loss: false,
    });
    rows
}

fn color(cause: &str) -> Ink {
    match crate::causes::family(cause) {
        crate::causes::Family::Useful => style::USEFUL,
        crate::causes::Family::Math => style::MATH,
        crate::causes::Family::Communication => style::WAIT,
        crate::causes::Family::Waiting => style::ORDER,
    }
}

fn subtitle(report: &Report) -> String {
    let training = &report.training;
    let pflops = |flops: f64| number(flops / 1e15, 2);
    let rack = report
        .racks
        .iter()
        .map(|rack| rack.effective_flops)
        .sum::<f64>()
        / report.racks.len().max(1) as f64;
    format!(
        "{} {}, {} peak. Step {} s, MFU {} % of {} peak (causal). A rack delivers {} of {} PFLOP/s.",
        number(report.cluster.gpus as f64, 0),
        report.cluster.accelerator,
        report.cluster.native_precision,
        crate::format::significant(training.step_time_s),
        percent(training.mfu.native_causal),
        report.cluster.native_precision,
        pflops(rack),
        pflops(
            report.cluster.peak_flops.native / report.cluster.gpus as f64
                * report.cluster.gpus_per_rack as f64
        ),
    )
}
