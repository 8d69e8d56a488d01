//! Power, cost and the whole run, as text.

use super::{LABEL, Page};
use crate::format::{count, number, percent, significant};
use crate::outlook::{Estimate, Run};
use crate::paint::Ink;
use crate::report::Report;
use rackflow_units::counted;

/// What the cluster draws and costs while it works.
pub(super) fn economics(page: &mut Page<'_>, report: &Report) {
    let Some(economics) = &report.economics else {
        return;
    };
    page.title("Power and cost", "");
    page.entry(
        "power",
        &format!(
            "{} kW per rack ({} W per GPU), {} MW with cooling at PUE {}; {} J per token",
            significant(economics.kw_per_rack),
            number(economics.gpu_watts, 0),
            significant(economics.facility_mw),
            economics.pue,
            significant(economics.joules_per_token),
        ),
    );
    if let (Some(hour), Some(tokens), Some(how)) = (
        economics.usd_per_gpu_hour,
        economics.usd_per_million_tokens,
        &economics.paid_by,
    ) {
        page.entry(
            "cost",
            &format!(
                "{hour:.2} USD per GPU-hour by {how}; {} USD per million tokens",
                significant(tokens)
            ),
        );
    }
}

fn interval(estimate: &Estimate, write: impl Fn(f64) -> String) -> String {
    let (mean, low, high) = (
        write(estimate.mean),
        write(estimate.low),
        write(estimate.high),
    );
    if low == high {
        mean
    } else {
        format!("{mean} ({low} to {high})")
    }
}

/// What a whole run comes to.
pub(super) fn run(page: &mut Page<'_>, report: &Report) {
    let Some(run) = &report.run else { return };
    let simulated = if run.replications > 1 {
        format!("mean of {} runs (95 % confidence)", run.replications)
    } else {
        String::new()
    };
    page.title("The whole run", &simulated);
    let percent = |value: f64| percent(value) + " %";
    page.entry(
        "length",
        &format!(
            "{} days for {} tokens; {} if nothing interrupted it",
            interval(&run.days, significant),
            count(run.tokens.mean),
            significant(run.undisturbed_days),
        ),
    );
    if run.finished < run.replications {
        page.entry(
            "",
            &format!(
                "{} of {} given up: they would not have ended in twenty times that",
                run.replications - run.finished,
                match run.replications {
                    1 => "1 run was".to_owned(),
                    runs => counted(runs, "run") + " were",
                }
            ),
        );
    }
    page.entry(
        "goodput",
        &format!(
            "{} of the wall time is useful; steps that are kept run in {} of it (ETTR)",
            interval(&run.goodput, percent),
            interval(&run.ettr, percent),
        ),
    );
    interruptions(page, run);
    if let Some(checkpoint) = &run.checkpoint {
        page.entry(
            "saved",
            &format!(
                "{} GB every {} (stalls {}, written in {}, read in {})",
                number(checkpoint.bytes as f64 / 1e9, 0),
                span(checkpoint.interval_s),
                span(checkpoint.stall_s),
                span(checkpoint.write_s),
                span(checkpoint.read_s),
            ),
        );
    }
    let cost = run
        .usd
        .map_or_else(String::new, |usd| format!(", {} USD", count(usd)));
    page.entry("spent", &format!("{} MWh{cost}", significant(run.mwh)));
    let law = &run.scaling_law;
    let best = &law.compute_optimal;
    page.entry(
        "worth",
        &format!(
            "loss {:.3} by the Chinchilla law (refit of 2024, active parameters); the same FLOPs \
             bring a dense model of {} on {} tokens to {:.3}",
            law.loss,
            count(best.parameters),
            count(best.tokens),
            best.loss
        ),
    );
    page.line("");
    losses(page, run);
}

fn interruptions(page: &mut Page<'_>, run: &Run) {
    let (Some(mtbf), Some(profile)) = (run.mtbf_hours, &run.failures) else {
        return;
    };
    let parts: Vec<String> = run
        .by_component
        .iter()
        .map(|count| format!("{} {}", count.component, significant(count.interruptions)))
        .collect();
    page.entry(
        "failures",
        &format!(
            "{} unexpected, one in {} ({profile}): {}",
            interval(&run.interruptions, significant),
            span(mtbf * 3600.0),
            parts.join(", ")
        ),
    );
}

/// What the run loses besides its steps.
fn losses(page: &mut Page<'_>, run: &Run) {
    for loss in &run.waterfall {
        if !matches!(
            loss.cause.as_str(),
            "straggler" | "checkpoint" | "lost_work" | "idle"
        ) {
            continue;
        }
        let line = format!(
            "  {:<LABEL$} {}",
            loss.label,
            page.ink(Ink::Strong, &format!("{:>7} %", percent(loss.fraction)))
        );
        page.line(&line);
    }
}

/// A time as people say it.
fn span(seconds: f64) -> String {
    match seconds {
        s if s >= 2.0 * 86_400.0 => format!("{} d", significant(s / 86_400.0)),
        s if s >= 5400.0 => format!("{} h", significant(s / 3600.0)),
        s if s >= 100.0 => format!("{} min", significant(s / 60.0)),
        s if s >= 0.1 => format!("{} s", significant(s)),
        s => format!("{} ms", significant(s * 1e3)),
    }
}
