//! The serving report for people: one screen of text.

use super::{Page, assumed, racks, waterfall};
use crate::format::{count, number, percent, seconds, significant};
use crate::paint::{Ink, Style};
use crate::serving::{ByLevel, Latency, PoolReport, ServingReport, computes_prompts};
use rackflow_units::counted;

/// The report as text for a terminal.
pub fn render_serving_text(report: &ServingReport, style: &Style) -> String {
    let mut page = Page {
        style,
        width: style.width.clamp(80, 100),
        out: String::new(),
    };
    header(&mut page, report);
    results(&mut page, report);
    latencies(&mut page, report);
    phases(&mut page, report);
    pools(&mut page, report);
    cache(&mut page, report);
    racks(&mut page, &report.racks);
    waterfall(&mut page, &report.cluster, &report.waterfall);
    assumed(&mut page, &report.assumed);
    engine(&mut page, report);
    page.out
}

fn header(page: &mut Page<'_>, report: &ServingReport) {
    let name = page.ink(Ink::Strong, &report.scenario);
    page.line(&name);
    page.entry(
        "model",
        &format!(
            "{}: {} parameters, {} of cache per token",
            report.model.name,
            count(report.model.parameters),
            bytes(report.model.kv_bytes_per_token)
        ),
    );
    let cluster = &report.cluster;
    page.entry(
        "cluster",
        &format!(
            "{} {} in {} ({}), {}",
            number(cluster.gpus as f64, 0),
            cluster.accelerator,
            counted(cluster.racks, "rack"),
            cluster.node,
            cluster.fabric
        ),
    );
    for pool in &report.pools {
        let role = if pool.role == "both" {
            "replicas"
        } else {
            &pool.role
        };
        page.entry(role, &shorthand(pool));
    }
    if let Some(pool) = report.pools.first() {
        page.entry("decoder", &pool.decoder);
        page.entry(
            "software",
            &format!("{}, {} scheduler", pool.stack, pool.scheduler),
        );
    }
    if let Some(disturbed) = &report.disturbed {
        page.entry("faults", &disturbed.sentence("a request"));
    }
}

/// "8 x 4 GPUs: TP 4".
fn shorthand(pool: &PoolReport) -> String {
    let degrees = [
        ("TP", pool.tensor),
        ("PP", pool.pipeline),
        ("DP", pool.data),
        ("EP", pool.expert),
    ];
    let mut parts: Vec<String> = degrees
        .iter()
        .filter(|(_, degree)| *degree > 1)
        .map(|(name, degree)| format!("{name} {degree}"))
        .collect();
    if parts.is_empty() {
        parts.push("no parallelism".into());
    }
    format!(
        "{} x {}: {}; cache for {} each",
        number(pool.replicas.into(), 0),
        counted(pool.gpus_per_replica, "GPU"),
        parts.join(" · "),
        counted(pool.kv_capacity_tokens, "token")
    )
}

fn results(page: &mut Page<'_>, report: &ServingReport) {
    let serving = &report.serving;
    page.title("Results", "");
    let mut rows = vec![
        vec![
            ("output tokens/s", significant(serving.output_tokens_per_s)),
            ("per GPU", significant(serving.output_tokens_per_s_per_gpu)),
            (
                "per rack",
                significant(serving.output_tokens_per_s_per_rack),
            ),
            ("per user", significant(serving.tokens_per_s_per_user)),
        ],
        vec![
            ("requests/s", significant(serving.requests_per_s)),
            ("all tokens/s", significant(serving.total_tokens_per_s)),
            (
                "answered",
                format!(
                    "{} in {}",
                    number(serving.requests_measured as f64, 0),
                    seconds(serving.window_s)
                ),
            ),
        ],
    ];
    let mut money = Vec::new();
    if let Some(usd) = serving.usd_per_million_output_tokens {
        money.push(("USD/M output tokens", significant(usd)));
    }
    money.push((
        "J/output token",
        significant(serving.joules_per_output_token),
    ));
    if let Some(inside) = serving.slo_attainment {
        money.push(("inside SLO", format!("{} %", percent(inside))));
    }
    if serving.requests_refused > 0 {
        money.push(("refused", number(serving.requests_refused as f64, 0)));
    }
    rows.push(money);
    for row in rows {
        page.figures(&row, "    ");
    }
    let share = |value: Option<f64>| {
        value.map_or_else(|| "-".to_owned(), |value| format!("{} %", percent(value)))
    };
    page.line("");
    let head = page.ink(Ink::Faint, &format!("{:>12}{:>12}", "MFU", "MBU"));
    let line = format!("  {:<17}{head}", "");
    page.line(&line);
    for (name, mfu, mbu) in [
        ("prefill steps", serving.mfu.prefill, serving.mbu.prefill),
        ("decode steps", serving.mfu.decode, serving.mbu.decode),
    ] {
        page.line(&format!("  {name:<17}{:>12}{:>12}", share(mfu), share(mbu)));
    }
}

fn latencies(page: &mut Page<'_>, report: &ServingReport) {
    let serving = &report.serving;
    page.title("Latency", "mean         p50         p90         p99");
    let rows: [(&str, &Latency); 3] = [
        ("TTFT, time to first token", &serving.ttft_s),
        ("TPOT, per token after it", &serving.tpot_s),
        ("end to end", &serving.e2e_s),
    ];
    for (name, latency) in rows {
        row(page, name, latency);
    }
}

fn row(page: &mut Page<'_>, name: &str, latency: &Latency) {
    let cells: String = [latency.mean, latency.p50, latency.p90, latency.p99]
        .iter()
        .map(|value| format!("{:>12}", seconds(*value)))
        .collect();
    let names = page.width - 2 - 48;
    page.line(&format!("  {name:<names$}{cells}"));
}

fn phases(page: &mut Page<'_>, report: &ServingReport) {
    let phases = &report.serving.phases_s;
    let whole = report.serving.e2e_s.mean;
    if whole <= 0.0 {
        return;
    }
    page.title("Where a request's time goes", "mean      share");
    let rows = [
        ("waiting to start", phases.queued),
        ("cache from lower tiers", phases.loading),
        ("prefill", phases.prefill),
        ("cache to the decode side", phases.transfer),
        ("decode", phases.decode),
        ("pushed out", phases.preempted),
    ];
    let names = page.width - 2 - 24;
    for (name, value) in rows.iter().filter(|(_, value)| *value > 0.0) {
        let share = format!("{} %", percent(value / whole));
        page.line(&format!(
            "  {name:<names$}{:>12}{share:>12}",
            seconds(*value)
        ));
    }
}

fn pools(page: &mut Page<'_>, report: &ServingReport) {
    page.title(
        "Replicas",
        "idle      batch       step    tok/s/GPU   cache used",
    );
    for pool in &report.pools {
        let name = if pool.role == "both" {
            "decode steps"
        } else {
            &pool.role
        };
        let (batch, step, rate) = if pool.role == "prefill" {
            (
                "-".to_owned(),
                seconds(pool.prefill_step_s),
                pool.prefill_tokens_per_s_per_gpu,
            )
        } else {
            (
                number(pool.decode_batch, 1),
                seconds(pool.decode_step_s),
                pool.decode_tokens_per_s_per_gpu,
            )
        };
        let names = page.width - 2 - 58;
        page.line(&format!(
            "  {name:<names$}{:>9}{batch:>11}{step:>12}{:>13}{:>13}",
            format!("{} %", percent(pool.idle)),
            significant(rate),
            format!("{} %", percent(pool.kv_occupancy_mean)),
        ));
        if pool.role == "both" && computes_prompts(&pool.role) {
            page.line(&format!(
                "  {:<names$}{:>9}{:>11}{:>12}{:>13}",
                "steps with prompts",
                "",
                "",
                seconds(pool.prefill_step_s),
                significant(pool.prefill_tokens_per_s_per_gpu),
            ));
        }
    }
}

fn cache(page: &mut Page<'_>, report: &ServingReport) {
    let kv = &report.serving.kv;
    let moved = kv.transfers > 0;
    if kv.hit_rate == 0.0 && !moved && kv.preemptions == 0 && kv.tiers.is_empty() {
        return;
    }
    page.title("KV cache", "");
    if kv.hit_rate > 0.0 || !kv.tiers.is_empty() {
        let mut text = format!("{} % of prompt tokens in HBM", percent(kv.hit_rate));
        if !kv.tiers.is_empty() {
            text.push_str(&format!(", {} % in lower tiers", percent(kv.loaded_rate)));
            let tiers: Vec<String> = kv
                .tiers
                .iter()
                .map(|tier| {
                    format!(
                        "{} {} and {}",
                        tier.medium.replace('_', " "),
                        bytes(tier.read_bytes),
                        bytes(tier.written_bytes)
                    )
                })
                .collect();
            text.push_str(&format!("; read and written: {}", tiers.join(", ")));
        }
        page.entry("found", &text);
    }
    if moved {
        let spared = if kv.spared_bytes > 0.0 {
            format!(", {} were there already", bytes(kv.spared_bytes))
        } else {
            String::new()
        };
        page.entry(
            "moved",
            &format!(
                "{} caches, {}{spared}; waited for: {} mean, {} p99",
                number(kv.transfers as f64, 0),
                levels(&kv.transfer_bytes),
                seconds(kv.exposed_transfer_s.mean),
                seconds(kv.exposed_transfer_s.p99)
            ),
        );
    }
    page.entry(
        "in use",
        &format!(
            "{} % on average, {} % at most; {} pushed out",
            percent(kv.occupancy_mean),
            percent(kv.occupancy_peak),
            counted(kv.preemptions, "request")
        ),
    );
}

/// "1.2 TB over spines".
fn levels(by: &ByLevel) -> String {
    let parts = [
        ("over NVLink", by.nvlink),
        ("under leaves", by.leaf),
        ("over spines", by.spine),
        ("over the core", by.core),
    ];
    let parts: Vec<String> = parts
        .iter()
        .filter(|(_, sent)| *sent > 0.0)
        .map(|(name, sent)| format!("{} {name}", bytes(*sent)))
        .collect();
    parts.join(", ")
}

fn bytes(value: f64) -> String {
    let (scale, unit) = match value {
        v if v >= 0.9995e15 => (1e15, "PB"),
        v if v >= 0.9995e12 => (1e12, "TB"),
        v if v >= 0.9995e9 => (1e9, "GB"),
        v if v >= 0.9995e6 => (1e6, "MB"),
        v if v >= 0.9995e3 => (1e3, "kB"),
        _ => (1.0, "B"),
    };
    format!("{} {unit}", significant(value / scale))
}

fn engine(page: &mut Page<'_>, report: &ServingReport) {
    let engine = &report.engine;
    let text = format!(
        "{} in {} · {} · seed {}",
        counted(engine.events, "event"),
        seconds(engine.wall_s),
        counted(report.serving.requests_answered, "request"),
        engine.seed
    );
    let text = page.ink(Ink::Faint, &text);
    page.line("");
    page.line(&text);
}
