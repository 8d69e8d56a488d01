//! The waterfall as a picture. This module owns the style of all pictures.

use crate::format::{number, percent};
use crate::report::{Loss, Report};
use std::fmt::Write as _;

/// Losses below this share of the GPU-seconds are drawn together in one row.
const SMALLEST_ROW: f64 = 0.0005;

const WIDTH: f64 = 960.0;
const MARGIN: f64 = 32.0;
const ROW: f64 = 26.0;
const BAR: f64 = 18.0;
const NAMES: f64 = 230.0;
const FIGURES: f64 = 150.0;
const TOP: f64 = 104.0;

/// The looks of a picture, light on white so that it prints.
mod ink {
    pub const TEXT: &str = "#1f2328";
    pub const FAINT: &str = "#6b7280";
    pub const GRID: &str = "#e5e7eb";
    pub const PEAK: &str = "#9ca3af";
    pub const USEFUL: &str = "#2a9d5c";
    pub const MATH: &str = "#e0a030";
    pub const WAIT: &str = "#b5479d";
    pub const ORDER: &str = "#3f6fd1";
}

struct Row<'a> {
    name: &'a str,
    from: f64,
    to: f64,
    color: &'static str,
    loss: bool,
}

/// The waterfall from peak to effective FLOP/s, as one SVG document.
pub fn waterfall_svg(report: &Report) -> String {
    let rows = rows(report);
    let bottom = TOP + ROW * rows.len() as f64;
    let height = bottom + 64.0;
    let mut svg = String::new();
    open(&mut svg, WIDTH, height);
    let title = format!("Where the peak goes: {}", report.scenario);
    text(
        &mut svg,
        MARGIN,
        40.0,
        20.0,
        ink::TEXT,
        "start",
        "600",
        &title,
    );
    text(
        &mut svg,
        MARGIN,
        64.0,
        13.0,
        ink::FAINT,
        "start",
        "400",
        &subtitle(report),
    );
    let scale = WIDTH - 2.0 * MARGIN - NAMES - FIGURES;
    let x = |fraction: f64| MARGIN + NAMES + fraction.clamp(0.0, 1.0) * scale;
    for tick in [0.0, 0.25, 0.5, 0.75, 1.0] {
        line(&mut svg, x(tick), TOP - 8.0, x(tick), bottom, ink::GRID);
        let label = format!("{} %", number(tick * 100.0, 0));
        text(
            &mut svg,
            x(tick),
            TOP - 14.0,
            11.0,
            ink::FAINT,
            "middle",
            "400",
            &label,
        );
    }
    let peak = report.cluster.peak_flops.native / 1e15;
    for (i, row) in rows.iter().enumerate() {
        let y = TOP + ROW * i as f64;
        let middle = y + BAR / 2.0 + 4.5;
        let weight = if row.loss { "400" } else { "600" };
        let sign = if row.loss { "\u{2212}" } else { "" };
        let share = row.to - row.from;
        text(
            &mut svg,
            MARGIN + NAMES - 12.0,
            middle,
            13.0,
            ink::TEXT,
            "end",
            weight,
            row.name,
        );
        // A loss that is not zero is at least a visible hairline.
        rectangle(
            &mut svg,
            x(row.from),
            y,
            (x(row.to) - x(row.from)).max(1.0),
            BAR,
            row.color,
        );
        if row.loss {
            line(
                &mut svg,
                x(row.from),
                y,
                x(row.from),
                y + ROW + BAR,
                ink::PEAK,
            );
        }
        let percent = format!("{sign}{} %", percent(share));
        text(
            &mut svg,
            WIDTH - MARGIN - 74.0,
            middle,
            13.0,
            ink::TEXT,
            "end",
            weight,
            &percent,
        );
        let digits = usize::from(peak >= 99.95) + if peak >= 99.95 { 0 } else { 3 };
        let flops = format!("{sign}{}", number(share * peak, digits));
        text(
            &mut svg,
            WIDTH - MARGIN,
            middle,
            13.0,
            ink::TEXT,
            "end",
            weight,
            &flops,
        );
    }
    text(
        &mut svg,
        WIDTH - MARGIN,
        TOP - 14.0,
        11.0,
        ink::FAINT,
        "end",
        "400",
        "PFLOP/s",
    );
    legend(&mut svg, bottom + 32.0);
    svg.push_str("</svg>\n");
    svg
}

fn rows(report: &Report) -> Vec<Row<'_>> {
    let useful = |loss: &&Loss| loss.cause == "useful_math";
    let kept = report
        .waterfall
        .iter()
        .find(useful)
        .map_or(0.0, |loss| loss.fraction);
    let mut rows = vec![Row {
        name: "Dense peak",
        from: 0.0,
        to: 1.0,
        color: ink::PEAK,
        loss: false,
    }];
    let mut left = 1.0;
    let mut small = 0.0;
    for loss in report.waterfall.iter().filter(|loss| !useful(loss)) {
        if loss.fraction < SMALLEST_ROW {
            small += loss.fraction;
            continue;
        }
        let from = left - loss.fraction;
        rows.push(Row {
            name: &loss.label,
            from,
            to: left,
            color: color(&loss.cause),
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
            color: ink::PEAK,
            loss: true,
        });
    }
    rows.push(Row {
        name: "Effective",
        from: 0.0,
        to: kept,
        color: ink::USEFUL,
        loss: false,
    });
    rows
}

fn color(cause: &str) -> &'static str {
    match crate::causes::family(cause) {
        crate::causes::Family::Useful => ink::USEFUL,
        crate::causes::Family::Math => ink::MATH,
        crate::causes::Family::Communication => ink::WAIT,
        crate::causes::Family::Waiting => ink::ORDER,
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

fn legend(svg: &mut String, y: f64) {
    let mut x = MARGIN + NAMES;
    for (color, name) in [
        (ink::MATH, "math below peak"),
        (ink::WAIT, "waiting for communication"),
        (ink::ORDER, "waiting for each other"),
        (ink::USEFUL, "useful"),
    ] {
        rectangle(svg, x, y - 10.0, 12.0, 12.0, color);
        text(svg, x + 18.0, y, 12.0, ink::FAINT, "start", "400", name);
        x += 18.0 + 6.2 * name.len() as f64 + 24.0;
    }
}

fn open(svg: &mut String, width: f64, height: f64) {
    let _ = write!(
        svg,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" width=\"{width}\" \
         height=\"{height}\" font-family=\"Inter, 'Helvetica Neue', Arial, 'DejaVu Sans', sans-serif\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n"
    );
}

fn rectangle(svg: &mut String, x: f64, y: f64, width: f64, height: f64, color: &str) {
    let _ = writeln!(
        svg,
        "<rect x=\"{x:.2}\" y=\"{y:.2}\" width=\"{width:.2}\" height=\"{height:.2}\" fill=\"{color}\"/>"
    );
}

fn line(svg: &mut String, x1: f64, y1: f64, x2: f64, y2: f64, color: &str) {
    let _ = writeln!(
        svg,
        "<line x1=\"{x1:.2}\" y1=\"{y1:.2}\" x2=\"{x2:.2}\" y2=\"{y2:.2}\" stroke=\"{color}\" stroke-width=\"1\"/>"
    );
}

#[allow(
    clippy::too_many_arguments,
    reason = "the attributes of one SVG element, drawn in one place"
)]
fn text(
    svg: &mut String,
    x: f64,
    y: f64,
    size: f64,
    color: &str,
    anchor: &str,
    weight: &str,
    words: &str,
) {
    let words = words
        .replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;");
    let _ = writeln!(
        svg,
        "<text x=\"{x:.2}\" y=\"{y:.2}\" font-size=\"{size}\" fill=\"{color}\" text-anchor=\"{anchor}\" \
         font-weight=\"{weight}\">{words}</text>"
    );
}
