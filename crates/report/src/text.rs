//! The report for people: one screen of text.

mod outlook;
mod replay;
mod serving;

pub(crate) use replay::replay;
pub use serving::render_serving_text;

use crate::causes::{Family, family, purpose};
use crate::format::{count, number, percent, seconds, significant, wrap};
use crate::paint::{Ink, Style};
use crate::report::{Cluster, Loss, Model, Rack, Report, Vision};
use rackflow_plan::{Cause, CommKind};
use rackflow_topology::Level;
use rackflow_units::counted;

/// Losses below this share of the GPU-seconds are drawn together in one row.
const SMALLEST_ROW: f64 = 0.0005;

/// Width of the column of names at the left of every section.
const LABEL: usize = 27;

/// The report as text for a terminal.
pub fn render_text(report: &Report, style: &Style) -> String {
    let mut page = Page {
        style,
        width: style.width.clamp(80, 100),
        out: String::new(),
    };
    header(&mut page, report);
    memory(&mut page, report);
    results(&mut page, report);
    racks(&mut page, &report.racks);
    waterfall(&mut page, &report.cluster, &report.waterfall);
    exposed(&mut page, report);
    changes(&mut page, report);
    outlook::economics(&mut page, report);
    outlook::run(&mut page, report);
    published(&mut page, report);
    assumed(&mut page, &report.assumed);
    engine(&mut page, report);
    page.out
}

struct Page<'a> {
    style: &'a Style,
    width: usize,
    out: String,
}

impl Page<'_> {
    fn line(&mut self, text: &str) {
        self.out.push_str(text.trim_end());
        self.out.push('\n');
    }

    fn ink(&self, ink: Ink, text: &str) -> String {
        self.style.paint(ink, text)
    }

    /// A section title with a rule to the right edge, and what the columns below hold at its end.
    fn title(&mut self, title: &str, columns: &str) {
        let gaps = if columns.is_empty() { 1 } else { 2 };
        let used = title.chars().count() + columns.chars().count() + gaps;
        let rule = "─".repeat(self.width.saturating_sub(used));
        let line = format!(
            "{} {} {}",
            self.ink(Ink::Strong, title),
            self.ink(Ink::Faint, &rule),
            self.ink(Ink::Faint, columns)
        );
        self.line("");
        self.line(&line);
    }

    /// Figures side by side, each behind its name.
    fn figures(&mut self, figures: &[(&str, String)], gap: &str) {
        let cells: Vec<String> = figures
            .iter()
            .map(|(name, value)| {
                format!(
                    "{} {}",
                    self.ink(Ink::Faint, name),
                    self.ink(Ink::Strong, value)
                )
            })
            .collect();
        self.line(&format!("  {}", cells.join(gap)));
    }

    /// A name and a text that may take several lines.
    fn entry(&mut self, name: &str, text: &str) {
        for (i, part) in wrap(text, self.width - 2 - 11).iter().enumerate() {
            let name = if i == 0 { name } else { "" };
            let line = format!("  {} {part}", self.ink(Ink::Faint, &format!("{name:<10}")));
            self.line(&line);
        }
    }
}

fn header(page: &mut Page<'_>, report: &Report) {
    let name = page.ink(Ink::Strong, &report.scenario);
    page.line(&name);
    let (model, cluster, plan) = (&report.model, &report.cluster, &report.plan);
    let active = if model.active_parameters < 0.99 * model.parameters {
        format!(", {} active per token", count(model.active_parameters))
    } else {
        String::new()
    };
    page.entry(
        "model",
        &format!(
            "{}: {} parameters{active}",
            model.name,
            count(model.parameters)
        ),
    );
    page.entry(
        "cluster",
        &format!(
            "{} {} in {} of {} ({}), {}",
            number(cluster.gpus as f64, 0),
            cluster.accelerator,
            counted(cluster.racks, "rack"),
            cluster.gpus_per_rack,
            cluster.node,
            cluster.fabric
        ),
    );
    page.entry("plan", &report.plan.shorthand());
    page.entry(
        "batch",
        &format!(
            "{} of {}; {} of {} per data-parallel rank",
            counted(plan.global_batch, "sequence"),
            counted(plan.sequence_length, "token"),
            counted(plan.micro_batches, "micro-batch"),
            plan.micro_batch
        ),
    );
    if let Some(vision) = &model.vision {
        page.entry("images", &images(model, vision));
    }
    page.entry(
        "numbers",
        &format!("{}, recomputing {}", plan.precision, plan.recompute),
    );
    page.entry("software", &plan.stack);
    if let Some(disturbed) = &report.disturbed {
        page.entry("faults", &disturbed.sentence("a step"));
    }
}

/// The images of a sequence and the encoder that takes them, in words.
fn images(model: &Model, vision: &Vision) -> String {
    let [height, width] = vision.pixels;
    let share = 100.0 * vision.flops_per_step / model.flops_per_step_causal;
    let frozen = match vision.frozen.as_str() {
        "nothing" => "",
        "encoder" => ", frozen but for its projector",
        _ => ", frozen",
    };
    format!(
        "{} of {height} x {width} pixels per sequence, {} each; encoder of {}, {} % of the FLOPs{frozen}",
        number(vision.images_per_sequence as f64, 0),
        counted(vision.tokens_per_image, "token"),
        count(vision.parameters),
        number(share, 1),
    )
}

/// The plan as the field writes it: "TP 8 · PP 16 · DP 128, 1F1B".
fn memory(page: &mut Page<'_>, report: &Report) {
    let memory = &report.training.memory_per_gpu_bytes;
    let gb = |bytes: u64| number(bytes as f64 / 1e9, 1);
    let stage = if memory.stages > 1 {
        format!(
            " on stage {} of {}, the fullest",
            memory.stage + 1,
            memory.stages
        )
    } else {
        " per GPU".to_owned()
    };
    let parts = [
        ("weights", memory.weights),
        ("gradients", memory.gradients),
        ("optimizer", memory.optimizer),
        ("activations", memory.activations),
        ("buffers", memory.buffers),
        ("reserved", memory.reserved),
    ];
    let present = parts.iter().filter(|(_, bytes)| *bytes > 0);
    let parts: Vec<String> = present
        .map(|(name, bytes)| format!("{name} {}", gb(*bytes)))
        .collect();
    page.entry(
        "memory",
        &format!(
            "{} of {} GB{stage}: {}",
            gb(memory.total),
            gb(memory.capacity),
            parts.join(", ")
        ),
    );
    for warning in &report.warnings {
        page.entry("warning", warning);
    }
}

fn results(page: &mut Page<'_>, report: &Report) {
    let training = &report.training;
    page.title("Results", "");
    let figures = [
        ("step time", seconds(training.step_time_s)),
        ("tokens/s", number(training.tokens_per_s, 0)),
        ("tokens/s/GPU", significant(training.tokens_per_s_per_gpu)),
    ];
    page.figures(&figures, "     ");
    if let Some(over) = training.over_seeds {
        let spread = format!(
            "  over {} seeds: {} on average, {} standard deviation, {} to {}",
            over.seeds,
            seconds(over.mean_s),
            seconds(over.std_dev_s),
            seconds(over.least_s),
            seconds(over.most_s)
        );
        page.line(&page.ink(Ink::Faint, &spread));
    }
    page.line("");
    utilisation(page, report);
}

/// MFU and HFU under each convention in use.
fn utilisation(page: &mut Page<'_>, report: &Report) {
    const CELL: usize = 12;
    let native = &report.cluster.native_precision;
    let peak = &report.cluster.peak_flops;
    let two_peaks = peak.native != peak.bf16;
    let row = |cells: [String; 5]| -> String {
        let keep = |(i, _): &(usize, &String)| two_peaks || !matches!(i, 2 | 4);
        cells
            .iter()
            .enumerate()
            .filter(keep)
            .map(|(_, cell)| format!("{cell:>CELL$}"))
            .collect()
    };
    let of = |metric: &str, format: &str| format!("{metric}, {format}");
    let head = row([
        "TFLOP/s/GPU".into(),
        of("MFU", "bf16"),
        of("MFU", native),
        of("HFU", "bf16"),
        of("HFU", native),
    ]);
    let line = format!("  {:<17}{}", "", page.ink(Ink::Faint, &head));
    page.line(&line);
    let (tflops, mfu, hfu) = (
        &report.training.model_tflops_per_gpu,
        &report.training.mfu,
        &report.training.hfu_by_convention,
    );
    let share = |fraction: f64| format!("{} %", percent(fraction));
    for (name, tflops, fractions) in [
        (
            "causal attention",
            tflops.causal,
            [
                mfu.bf16_causal,
                mfu.native_causal,
                hfu.bf16_causal,
                hfu.native_causal,
            ],
        ),
        (
            "full-square",
            tflops.noncausal,
            [
                mfu.bf16_noncausal,
                mfu.native_noncausal,
                hfu.bf16_noncausal,
                hfu.native_noncausal,
            ],
        ),
    ] {
        let [a, b, c, d] = fractions.map(share);
        let line = format!("  {name:<17}{}", row([number(tflops, 1), a, b, c, d]));
        page.line(&line);
    }
}

fn racks(page: &mut Page<'_>, racks: &[Rack]) {
    let Some(first) = racks.first() else {
        return;
    };
    page.title("Racks", "effective of peak PFLOP/s");
    let pflops = |flops: f64| significant(flops / 1e15);
    let row = |page: &mut Page<'_>, name: &str, rack: &Rack| {
        let bar_width = page.width.saturating_sub(2 + LABEL + 1 + 30);
        let line = format!(
            "  {name:<LABEL$} {} {:>9} of {:>7} {:>6} %",
            bar(page, rack.fraction, bar_width),
            page.ink(Ink::Strong, &format!("{:>9}", pflops(rack.effective_flops))),
            pflops(rack.peak_flops),
            percent(rack.fraction)
        );
        page.line(&line);
    };
    let differ = racks
        .iter()
        .any(|rack| rack.gpus != first.gpus || rack.fraction != first.fraction);
    if !differ {
        let gpus = counted(first.gpus, "GPU");
        let name = if racks.len() == 1 {
            format!("the rack ({gpus})")
        } else {
            format!("each of {} ({gpus})", racks.len())
        };
        row(page, &name, first);
        return;
    }
    let by_fraction = |a: &&Rack, b: &&Rack| a.fraction.total_cmp(&b.fraction);
    let least = racks.iter().min_by(by_fraction).unwrap_or(first);
    let most = racks.iter().rev().max_by(by_fraction).unwrap_or(first);
    row(
        page,
        &format!("best: rack {} ({})", most.id, counted(most.gpus, "GPU")),
        most,
    );
    let n = racks.len() as f64;
    let effective: f64 = racks.iter().map(|rack| rack.effective_flops).sum();
    let peak: f64 = racks.iter().map(|rack| rack.peak_flops).sum();
    let mean = Rack {
        effective_flops: effective / n,
        peak_flops: peak / n,
        fraction: effective / peak,
        ..*first
    };
    row(page, &format!("mean of {} racks", racks.len()), &mean);
    row(
        page,
        &format!("worst: rack {} ({})", least.id, counted(least.gpus, "GPU")),
        least,
    );
}

/// A bar of `fraction` of `width` columns, in eighths of a column, on a faint track.
fn bar(page: &Page<'_>, fraction: f64, width: usize) -> String {
    const EIGHTHS: [&str; 8] = ["", "▏", "▎", "▍", "▌", "▋", "▊", "▉"];
    let eighths = ((fraction.clamp(0.0, 1.0) * width as f64 * 8.0).round() as usize).min(width * 8);
    let (full, rest) = (eighths / 8, eighths % 8);
    let filled = format!("{}{}", "█".repeat(full), EIGHTHS[rest]);
    let used = full + usize::from(rest > 0);
    format!(
        "{}{}",
        page.ink(Ink::Useful, &filled),
        page.ink(Ink::Faint, &"·".repeat(width - used))
    )
}

fn waterfall(page: &mut Page<'_>, cluster: &Cluster, waterfall: &[Loss]) {
    page.title("Where the peak goes", "share   PFLOP/s");
    let peak = cluster.peak_flops.native;
    let useful = waterfall.iter().find(|loss| loss.cause == "useful_math");
    let losses = waterfall.iter().filter(|loss| loss.cause != "useful_math");
    let (rows, small): (Vec<&Loss>, Vec<&Loss>) =
        losses.partition(|loss| loss.fraction >= SMALLEST_ROW);
    let name = format!("Dense {} peak", cluster.native_precision);
    step(page, &name, Ink::Strong, 0.0, 1.0, peak, "");
    let mut left = 1.0;
    for loss in rows {
        step(
            page,
            &loss.label,
            ink(&loss.cause),
            left - loss.fraction,
            left,
            peak,
            "-",
        );
        left -= loss.fraction;
    }
    if !small.is_empty() {
        let rest: f64 = small.iter().map(|loss| loss.fraction).sum();
        let name = match &small[..] {
            [one] => one.label.clone(),
            several => format!("{} smaller losses", several.len()),
        };
        step(page, &name, Ink::Faint, left - rest, left, peak, "-");
    }
    let kept = useful.map_or(0.0, |loss| loss.fraction);
    step(
        page,
        "Effective: useful math",
        Ink::Useful,
        0.0,
        kept,
        peak,
        "",
    );
}

/// One row of the waterfall: a bar from `from` to `to`, both fractions of the peak.
fn step(page: &mut Page<'_>, name: &str, ink: Ink, from: f64, to: f64, peak: f64, sign: &str) {
    let flops = (to - from) * peak;
    // One number of decimals for the whole column, so that it adds up by eye.
    let digits = if peak >= 99.95e15 { 1 } else { 3 };
    let width = page.width - 2 - LABEL - 1 - 22;
    let bar = span(from.max(0.0), to.min(1.0), width);
    let share = format!("{sign}{} %", percent(to - from));
    let rate = format!("{sign}{}", number(flops / 1e15, digits));
    let strong = sign.is_empty();
    let figures = format!("{share:>9} {rate:>11}");
    let line = format!(
        "  {} {} {}",
        if strong {
            page.ink(Ink::Strong, &format!("{name:<LABEL$}"))
        } else {
            format!("{name:<LABEL$}")
        },
        page.ink(ink, &bar),
        if strong {
            page.ink(Ink::Strong, &figures)
        } else {
            figures
        }
    );
    page.line(&line);
}

/// A bar from `from` to `to` over `width` columns, in half columns, padded to `width`. A bar that
/// is not empty shows.
fn span(from: f64, to: f64, width: usize) -> String {
    let halves = |at: f64| (at * width as f64 * 2.0).round() as usize;
    let (mut start, end) = (halves(from), halves(to));
    if start == end {
        start = start.saturating_sub(1);
    }
    let end = end.max(start + 1);
    (0..width)
        .map(|column| {
            let half = |at: usize| (start..end).contains(&at);
            match (half(2 * column), half(2 * column + 1)) {
                (true, true) => '█',
                (true, false) => '▌',
                (false, true) => '▐',
                (false, false) => ' ',
            }
        })
        .collect()
}

fn ink(cause: &str) -> Ink {
    match family(cause) {
        Family::Useful => Ink::Useful,
        Family::Math => Ink::Math,
        Family::Communication => Ink::Wait,
        Family::Waiting => Ink::Order,
    }
}

fn exposed(page: &mut Page<'_>, report: &Report) {
    let levels = [Level::NvLink, Level::Leaf, Level::Spine, Level::Core];
    let share = |kind: CommKind, level: Level| {
        let key = crate::causes::key(Cause::Exposed(kind, level));
        report
            .waterfall
            .iter()
            .find(|loss| loss.cause == key)
            .map_or(0.0, |loss| loss.fraction)
    };
    let kinds: Vec<CommKind> = CommKind::ALL
        .into_iter()
        .filter(|kind| {
            levels
                .iter()
                .any(|level| share(*kind, *level) >= SMALLEST_ROW)
        })
        .collect();
    if kinds.is_empty() {
        return;
    }
    page.title(
        "Waiting for communication",
        "% of GPU time, by slowest link",
    );
    let head: String = levels
        .iter()
        .map(|level| format!("{:>9}", level.to_string()))
        .collect();
    let line = format!("  {:<42}{}", "", page.ink(Ink::Faint, &head));
    page.line(&line);
    for kind in kinds {
        let cells: String = levels
            .iter()
            .map(|level| match share(kind, *level) {
                none if none < SMALLEST_ROW => format!("{:>9}", "·"),
                some => format!("{:>9}", percent(some)),
            })
            .collect();
        let line = format!(
            "  {} {}{cells}",
            kind.name(),
            page.ink(Ink::Faint, &format!("{:<39}", purpose(kind)))
        );
        page.line(&line);
    }
}

fn changes(page: &mut Page<'_>, report: &Report) {
    if report.what_to_change.is_empty() {
        return;
    }
    page.title("What would help most", "throughput, at most");
    for (i, change) in report.what_to_change.iter().enumerate() {
        let gain = format!("+{} %", percent(change.gain_at_most));
        let head = format!("{}. {}", i + 1, change.label);
        let gap = (page.width - 2).saturating_sub(head.chars().count() + gain.chars().count());
        let line = format!(
            "  {}{}{}",
            page.ink(Ink::Strong, &head),
            " ".repeat(gap),
            page.ink(Ink::Useful, &gain)
        );
        page.line(&line);
        for part in wrap(&change.change, page.width - 5) {
            page.line(&format!("     {part}"));
        }
    }
}

fn published(page: &mut Page<'_>, report: &Report) {
    let Some(comparison) = &report.published else {
        return;
    };
    page.title(
        "Beside what was published",
        "published   simulated      error",
    );
    for figure in &comparison.figures {
        let metric = figure.metric.as_str();
        let name = match metric {
            "step_time_s" => "step time".to_owned(),
            _ => {
                let what = match metric.split('_').next() {
                    Some("mfu") => "MFU of bf16 peak",
                    Some("hfu") => "HFU of bf16 peak",
                    Some("hardware") => "TFLOP/s/GPU with recomputation",
                    _ => "TFLOP/s/GPU",
                };
                let attention = if metric.ends_with("noncausal") {
                    "full-square"
                } else {
                    "causal"
                };
                format!("{what}, {attention}")
            }
        };
        let show = |value: f64| match metric {
            "step_time_s" => seconds(value),
            _ if metric.contains("tflops") => number(value, 1),
            _ => format!("{} %", percent(value)),
        };
        let sign = if figure.error >= 0.0 { "+" } else { "" };
        let error = format!("{:>10}", format!("{sign}{} %", percent(figure.error)));
        let ink = if figure.error.abs() < 0.1 {
            Ink::Useful
        } else {
            Ink::Alarm
        };
        let names = page.width - 2 - 33;
        let line = format!(
            "  {name:<names$}{:>10} {} {}",
            show(figure.published),
            page.ink(Ink::Strong, &format!("{:>11}", show(figure.simulated))),
            page.ink(
                if metric == "step_time_s" {
                    ink
                } else {
                    Ink::Faint
                },
                &error
            )
        );
        page.line(&line);
    }
    page.entry("source", &comparison.source);
}

fn assumed(page: &mut Page<'_>, assumed: &[String]) {
    if assumed.is_empty() {
        return;
    }
    page.title("Assumed, because no source says it", "");
    for assumption in assumed {
        for (i, part) in wrap(assumption, page.width - 4).iter().enumerate() {
            page.line(&format!("  {} {part}", if i == 0 { "-" } else { " " }));
        }
    }
}

fn engine(page: &mut Page<'_>, report: &Report) {
    let engine = &report.engine;
    let text = format!(
        "{} in {} · {} of {} simulated ({}) · seed {}",
        counted(engine.events, "event"),
        seconds(engine.wall_s),
        number(engine.ranks_simulated as f64, 0),
        counted(report.cluster.gpus, "rank"),
        engine.fidelity,
        engine.seed
    );
    let text = page.ink(Ink::Faint, &text);
    page.line("");
    page.line(&text);
}
