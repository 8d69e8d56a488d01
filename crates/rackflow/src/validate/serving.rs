//! `rackflow validate serving`: published serving runs beside what the step cost says.
//!
//! Each row is one measurement of one or more figures (tokens per second, time to first token, time per
//! output token). Errors are logarithms of simulated over measured time; a rate counts inversely, so
//! that positive is always too slow. Every figure here is computed from rows that are shown; rows that
//! are left out are counted with their reasons.

mod predict;

use super::options::prose;
use super::summary::{Scored, Summary, groups_json, signed_percent, summary_json, summary_table};
use super::table::Columns;
use super::{Jobs, Options, ValidateError, Validation};
use clap::Args;
use predict::Predicted;
use rackflow_scenario::Catalogue;
use rackflow_scenario::published::serving::{self as published, ServingRun};
use rayon::prelude::*;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Options of `rackflow validate serving`.
#[derive(Debug, Clone, Default, Args)]
pub struct ServingArgs {
    /// What is compared, and how it is written
    #[command(flatten)]
    pub options: Options,
    /// On how many threads
    #[command(flatten)]
    pub jobs: Jobs,
}

/// Compares published serving runs with simulated ones and returns the text to print.
///
/// # Errors
/// When the data cannot be read, or when no row remains.
pub fn serving(args: &ServingArgs) -> Result<String, ValidateError> {
    let all = args
        .options
        .published(published::SHIPPED, published::read)?;
    let comparisons = Comparisons::of(all.runs, args)?;
    Ok(args.options.write(&comparisons))
}

/// One figure of one row.
#[derive(Debug, Clone, PartialEq)]
struct Figure {
    /// What it is, as the data call it.
    name: &'static str,
    measured: f64,
    simulated: f64,
    /// A rate: more is faster.
    rate: bool,
}

impl Figure {
    /// Logarithm of simulated over measured time.
    fn error(&self) -> f64 {
        let ratio = (self.simulated / self.measured).ln();
        if self.rate { -ratio } else { ratio }
    }
}

struct Row {
    run: ServingRun,
    group: String,
    accelerator: String,
    stack: String,
    family: &'static str,
    assumed: Vec<&'static str>,
    not_scored: Option<&'static str>,
    figures: Vec<Figure>,
}

/// From the request to its last token: follows from two published figures, is shown beside them and
/// does not count a third time.
const LATENCY: &str = "request_latency_ms";

impl Row {
    /// Whether this figure counts in the summaries: what the source published does.
    fn scores(&self, figure: &Figure) -> bool {
        self.not_scored.is_none() && figure.name != LATENCY
    }
}

struct LeftOut {
    id: String,
    kind: String,
    reason: String,
    detail: String,
}

struct Comparisons {
    rows: Vec<Row>,
    left_out: Vec<LeftOut>,
}

impl Comparisons {
    fn of(runs: Vec<ServingRun>, args: &ServingArgs) -> Result<Self, ValidateError> {
        let catalogue = Catalogue::builtin();
        let wanted = args.options.keep(runs, fields)?;
        // Collected in the order of the input: the answer does not depend on the threads.
        let outcomes: Vec<Result<Row, LeftOut>> = args.jobs.run(|| {
            wanted
                .into_par_iter()
                .map(|run| compare(run, catalogue))
                .collect()
        })?;
        let mut comparisons = Self {
            rows: Vec::new(),
            left_out: Vec::new(),
        };
        for outcome in outcomes {
            match outcome {
                Ok(row) => comparisons.rows.push(row),
                Err(left_out) => comparisons.left_out.push(left_out),
            }
        }
        Ok(comparisons)
    }

    /// Every figure of the rows that `keep` keeps.
    fn scored(&self, keep: impl Fn(&Row, &Figure) -> bool) -> Vec<Scored<'_>> {
        let mut scored = Vec::new();
        for row in &self.rows {
            for figure in row.figures.iter().filter(|figure| keep(row, figure)) {
                scored.push(Scored {
                    source: &row.group,
                    accelerator: &row.accelerator,
                    family: row.family,
                    error: figure.error(),
                });
            }
        }
        scored
    }

    fn by<'a>(&'a self, name: impl Fn(&'a Row) -> &'a str) -> BTreeMap<&'a str, Vec<Scored<'a>>> {
        let mut names: Vec<&str> = self.rows.iter().map(&name).collect();
        names.sort_unstable();
        names.dedup();
        names
            .into_iter()
            .map(|wanted| {
                (
                    wanted,
                    self.scored(|row, f| row.scores(f) && same(row, self, &name, wanted)),
                )
            })
            .collect()
    }

    fn kinds(&self) -> Vec<&str> {
        let mut kinds: Vec<&str> = self.rows.iter().map(|row| row.run.kind.as_str()).collect();
        kinds.sort_unstable();
        kinds.dedup();
        kinds
    }

    fn reasons(&self) -> BTreeMap<String, usize> {
        let mut reasons = BTreeMap::new();
        for row in &self.left_out {
            *reasons
                .entry(format!("{}: {}", row.kind, row.reason))
                .or_insert(0) += 1;
        }
        reasons
    }

    /// The summary of a kind, all its figures together, with each figure and each cut beside it.
    fn kind_json(&self, kind: &str) -> Value {
        let scored = self.scored(|row, f| row.run.kind == kind && row.scores(f));
        let mut summary = summary_json(&scored);
        let mut figures: Vec<&'static str> = Vec::new();
        for row in self.rows.iter().filter(|row| row.run.kind == kind) {
            for figure in &row.figures {
                if !figures.contains(&figure.name) {
                    figures.push(figure.name);
                }
            }
        }
        let by_figure: serde_json::Map<String, Value> = figures
            .into_iter()
            .filter_map(|name| {
                let rows = self.scored(|row, f| {
                    row.run.kind == kind && row.not_scored.is_none() && f.name == name
                });
                Some((name.to_owned(), Summary::of(&rows)?.to_json()))
            })
            .collect();
        summary["by_figure"] = by_figure.into();
        // Beside the score, not in it.
        let shown = self
            .scored(|row, f| row.run.kind == kind && row.not_scored.is_some() && f.name == LATENCY);
        summary["not_scored"] = Summary::of(&shown).map_or(Value::Null, Summary::to_json);
        summary
    }

    fn summary_table(&self) -> Columns {
        let mut more: Vec<(&str, String, Vec<Scored<'_>>)> = Vec::new();
        for (stack, rows) in self.by(|row| row.stack.as_str()) {
            more.push(("stack", stack.to_owned(), rows));
        }
        for kind in self.kinds() {
            let mut figures: Vec<&str> = Vec::new();
            for row in self.rows.iter().filter(|row| row.run.kind == kind) {
                for figure in &row.figures {
                    if !figures.contains(&figure.name) {
                        figures.push(figure.name);
                    }
                }
            }
            if figures.len() > 1 {
                for name in figures {
                    let rows = self.scored(|row, f| {
                        row.run.kind == kind && row.not_scored.is_none() && f.name == name
                    });
                    more.push(("kind", format!("{kind}, {name}"), rows));
                }
            }
            more.push((
                "kind",
                kind.to_owned(),
                self.scored(|row, f| row.run.kind == kind && row.scores(f)),
            ));
        }
        let named: Vec<(&str, &str, Vec<Scored<'_>>)> = more
            .iter()
            .map(|(what, name, rows)| (*what, name.as_str(), rows.clone()))
            .collect();
        summary_table(&self.scored(Row::scores), &named)
    }

    fn row_table(&self) -> Columns {
        let mut table = Columns::new(&[
            "row",
            "kind",
            "model",
            "hardware",
            "stack",
            "figure",
            "measured",
            "simulated",
            "error",
        ]);
        for row in &self.rows {
            for figure in &row.figures {
                table.push(vec![
                    row.run.id.clone(),
                    row.run.kind.clone(),
                    row.run.model.clone(),
                    format!("{} x {}", row.run.n_gpus, row.accelerator),
                    row.stack.clone(),
                    figure.name.to_owned(),
                    digits(figure.measured),
                    digits(figure.simulated),
                    signed_percent(figure.error()),
                ]);
            }
        }
        table.sparing(&["kind", "stack"])
    }

    fn footer(&self) -> String {
        let rows = self.rows.len();
        let figures: usize = self.rows.iter().map(|row| row.figures.len()).sum();
        let mut out = format!("{rows} rows with {figures} figures compared");
        let mut not_scored: BTreeMap<&str, usize> = BTreeMap::new();
        for reason in self.rows.iter().filter_map(|row| row.not_scored) {
            *not_scored.entry(reason).or_insert(0) += 1;
        }
        for (reason, rows) in not_scored {
            let _ = write!(out, "; {rows} shown and not scored: {reason}");
        }
        let reasons = self.reasons();
        if reasons.is_empty() {
            out.push_str(".\n");
        } else {
            out.push_str("; left out:\n");
            for (reason, rows) in reasons {
                let _ = writeln!(out, "  {rows:>4}  {reason}");
            }
        }
        let mut assumed: BTreeMap<&str, usize> = BTreeMap::new();
        for row in &self.rows {
            for text in &row.assumed {
                *assumed.entry(text).or_insert(0) += 1;
            }
        }
        if !assumed.is_empty() {
            out.push_str("Assumed where a source is silent:\n");
            for (text, rows) in assumed {
                let _ = writeln!(out, "  {rows:>4}  {text}");
            }
        }
        out
    }
}

impl Validation for Comparisons {
    fn to_json(&self) -> Value {
        let mut summary = summary_json(&self.scored(Row::scores));
        summary["by_kind"] = self
            .kinds()
            .into_iter()
            .map(|kind| (kind.to_owned(), self.kind_json(kind)))
            .collect::<serde_json::Map<_, _>>()
            .into();
        summary["by_stack"] = groups_json(&self.by(|row| row.stack.as_str()));
        json!({
            "schema_version": 1,
            "command": "validate serving",
            "summary": summary,
            "reasons_left_out": self.reasons(),
            "rows": self.rows.iter().map(row_json).collect::<Vec<_>>(),
            "left_out": self.left_out.iter().map(|row| json!({
                "id": row.id, "kind": row.kind, "reason": row.reason, "detail": row.detail,
            })).collect::<Vec<_>>(),
        })
    }

    fn to_table(&self, page: usize) -> String {
        let mut out = self.row_table().aligned(6, page);
        out.push('\n');
        out.push_str(&self.summary_table().aligned(1, page));
        out.push('\n');
        let about =
            "Error is the logarithm of simulated over measured time; positive is too slow.\n";
        out.push_str(&prose(&(self.footer() + about), page));
        out
    }

    fn to_markdown(&self) -> String {
        let mut out = String::from("### Error by accelerator, source, family, stack and kind\n\n");
        out.push_str(&self.summary_table().markdown(1));
        out.push_str("\n### Rows left out, and what is assumed\n\n```text\n");
        out.push_str(&self.footer());
        out.push_str("```\n");
        out
    }
}

fn same<'a>(
    row: &Row,
    all: &'a Comparisons,
    name: &impl Fn(&'a Row) -> &'a str,
    wanted: &str,
) -> bool {
    let position = all.rows.iter().position(|known| std::ptr::eq(known, row));
    position.is_some_and(|index| name(&all.rows[index]) == wanted)
}

fn row_json(row: &Row) -> Value {
    json!({
        "id": row.run.id,
        "kind": row.run.kind,
        "source": row.run.source,
        "model": row.run.model,
        "accelerator": row.accelerator,
        "family": row.family,
        "gpus": row.run.n_gpus,
        "parallelism": row.run.parallelism,
        "stack": row.stack,
        "assumed": row.assumed,
        "not_scored": row.not_scored,
        "figures": row.figures.iter().map(|figure| json!({
            "figure": figure.name,
            "measured": figure.measured,
            "simulated": figure.simulated,
            "error": figure.error(),
        })).collect::<Vec<_>>(),
    })
}

/// Four significant digits.
fn digits(value: f64) -> String {
    let decimals = (3 - value.abs().max(1e-3).log10().floor() as i32).clamp(0, 3);
    format!("{value:.*}", decimals as usize)
}

/// What a filter looks into.
fn fields(run: &ServingRun) -> Vec<&str> {
    let mut fields: Vec<&str> = run.engine.as_deref().into_iter().collect();
    fields.extend([&run.id, &run.kind, &run.source, &run.gpu, &run.model].map(String::as_str));
    fields
}

/// One row, or why not.
fn compare(run: ServingRun, catalogue: &Catalogue) -> Result<Row, LeftOut> {
    let leave_out = |run: &ServingRun, reason: &str, detail: String| LeftOut {
        id: run.id.clone(),
        kind: run.kind.clone(),
        reason: reason.to_owned(),
        detail,
    };
    let mut setup = match published::setup(&run, catalogue) {
        Ok(setup) => setup,
        Err(unusable) => return Err(leave_out(&run, unusable.reason, unusable.detail)),
    };
    // A fault of ours in one row must not hide the others; it is counted as what it is.
    let predicted = catch_unwind(AssertUnwindSafe(|| predict::predict(&run, &mut setup)));
    let predicted = match predicted {
        Ok(Ok(predicted)) => predicted,
        Ok(Err((reason, detail))) => return Err(leave_out(&run, reason, detail)),
        Err(_) => {
            return Err(leave_out(
                &run,
                "the simulator failed (please report)",
                String::new(),
            ));
        }
    };
    let figures = figures(&run, &predicted);
    if figures.is_empty() {
        return Err(leave_out(
            &run,
            "no figure that can be compared",
            String::new(),
        ));
    }
    Ok(Row {
        group: run.group().to_owned(),
        accelerator: setup.cluster.node.accelerator.name.clone(),
        stack: setup.decode.deployment.stack.name.clone(),
        family: run.family(catalogue),
        assumed: setup.assumed,
        not_scored: setup.not_scored,
        figures,
        run,
    })
}

/// What the source measured beside what was predicted.
fn figures(run: &ServingRun, predicted: &Predicted) -> Vec<Figure> {
    let m = &run.measured;
    // A rate at a given rate of requests below saturation says nothing of the machine.
    let saturated = run.kind != "online" || run.qps.as_deref() == Some("INF");
    let rates = [
        (
            "out_tok_s_per_gpu",
            m.out_tok_s_per_gpu,
            predicted.out_tok_s_per_gpu,
        ),
        (
            "out_tok_s",
            m.out_tok_s
                .filter(|_| m.out_tok_s_per_gpu.is_none() && saturated),
            predicted
                .out_tok_s_per_gpu
                .map(|rate| rate * f64::from(run.n_gpus)),
        ),
    ];
    let times = [
        ("ttft_ms", m.ttft_ms, predicted.ttft_s),
        ("mean_ttft_ms", m.mean_ttft_ms, predicted.ttft_s),
        ("prefill_ms", m.prefill_ms, predicted.ttft_s),
        ("tpot_ms", m.tpot_ms, predicted.tpot_s),
        ("mean_itl_ms", m.mean_itl_ms, predicted.tpot_s),
    ];
    // From the request to its last token.
    let rest = run.osl.saturating_sub(1) as f64;
    let whole = |first: Option<f64>, per_token: Option<f64>| Some(first? + per_token? * rest);
    let measured = match run.kind.as_str() {
        "online" => whole(m.mean_ttft_ms, m.mean_itl_ms),
        "e2e_agg" | "e2e_disagg" => whole(m.ttft_ms, m.tpot_ms),
        _ => None,
    };
    let times =
        times
            .into_iter()
            .chain([(LATENCY, measured, whole(predicted.ttft_s, predicted.tpot_s))]);
    let figure = |name, measured: Option<f64>, simulated: Option<f64>, rate| {
        let (measured, simulated) = (measured?, simulated?);
        (measured > 0.0 && simulated > 0.0).then_some(Figure {
            name,
            measured,
            simulated,
            rate,
        })
    };
    rates
        .into_iter()
        .filter_map(|(name, measured, simulated)| figure(name, measured, simulated, true))
        .chain(times.filter_map(|(name, measured, simulated)| {
            figure(name, measured, simulated.map(|s| s * 1e3), false)
        }))
        .collect()
}
