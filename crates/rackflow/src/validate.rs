//! `rackflow validate`: how far the simulation is from what was published.
//!
//! Step times are compared and nothing else is scored: printed TFLOP/s and MFU follow at least six
//! conventions. Every figure here is computed from rows that are shown; rows that are left out are
//! counted with their reasons.

use clap::{Args, ValueEnum};
use rackflow_scenario::Catalogue;
use rackflow_scenario::published::{self, PublishedRun, Quality};
use rayon::prelude::*;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;

/// Options of `rackflow validate training`.
#[derive(Debug, Clone, Default, Args)]
pub struct TrainingArgs {
    /// Published runs to compare with, as JSON Lines [default: those that ship with Rackflow]
    #[arg(long, value_name = "FILE")]
    pub data: Option<PathBuf>,
    /// How the result is written
    #[arg(long, value_enum, default_value_t = Format::Table)]
    pub format: Format,
    /// Only rows whose name, source, accelerator, stack or model contains this text
    #[arg(long, value_name = "SUBSTRING")]
    pub filter: Option<String>,
    /// Rows simulated at the same time [default: one per core]
    #[arg(long, value_name = "N")]
    pub jobs: Option<usize>,
    /// Also rows whose publication is incomplete or noisy, where they can be simulated
    #[arg(long)]
    pub all_qualities: bool,
    /// Write the tables of docs/validation.md (the same as `--format markdown`)
    #[arg(long)]
    pub markdown: bool,
}

/// How a validation is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum Format {
    /// Columns for a terminal.
    #[default]
    Table,
    /// One JSON document.
    Json,
    /// The generated part of the documentation.
    Markdown,
}

/// Why a validation could not be done. What the user can do about it is in the text.
#[derive(Debug)]
pub enum ValidateError {
    /// The file cannot be read.
    File(PathBuf, std::io::Error),
    /// A line of the file is not a published run.
    Line(PathBuf, published::ReadError),
    /// Nothing is left to compare.
    NoRows(String),
    /// The threads cannot be started.
    Threads(String),
}

impl std::fmt::Display for ValidateError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::File(path, error) => write!(f, "cannot read {}: {error}", path.display()),
            Self::Line(path, error) => write!(f, "{}: {error}", path.display()),
            Self::NoRows(why) => write!(f, "no published run to compare with: {why}"),
            Self::Threads(why) => write!(f, "cannot start threads: {why}"),
        }
    }
}

impl std::error::Error for ValidateError {}

/// Compares published training steps with simulated ones and returns the text to print.
///
/// # Errors
/// When the data cannot be read, or when no row remains.
pub fn training(args: &TrainingArgs) -> Result<String, ValidateError> {
    let text = match &args.data {
        Some(path) => std::fs::read_to_string(path)
            .map_err(|error| ValidateError::File(path.clone(), error))?,
        None => published::SHIPPED.to_owned(),
    };
    let shown = args
        .data
        .clone()
        .unwrap_or_else(|| PathBuf::from("shipped runs"));
    let runs = published::read(&text).map_err(|error| ValidateError::Line(shown, error))?;
    let validation = Validation::of(runs, args)?;
    Ok(match (args.format, args.markdown) {
        (Format::Json, _) => format!("{:#}\n", validation.to_json()),
        (Format::Markdown, _) | (_, true) => validation.to_markdown(),
        (Format::Table, false) => validation.to_table(),
    })
}

/// What the simulation says about one run.
struct Simulated {
    step_time_s: f64,
    memory: f64,
}

/// Compiles and simulates one setup. Memory is reported, not enforced: a published run did run.
fn simulate(setup: &rackflow_plan::Setup) -> Result<Simulated, String> {
    let plan = rackflow_plan::compile(setup).map_err(|error| error.to_string())?;
    let record = rackflow_simulator::simulate(&plan);
    let memory = record
        .facts
        .stages
        .iter()
        .map(|stage| stage.memory.total().as_f64())
        .fold(0.0, f64::max);
    Ok(Simulated {
        step_time_s: record.step_time.as_secs_f64(),
        memory,
    })
}

/// One published run beside its simulation.
struct Row {
    run: PublishedRun,
    accelerator: String,
    stack: String,
    assumed: Vec<String>,
    published_s: Option<f64>,
    simulated: Simulated,
    memory_reserved: f64,
}

impl Row {
    /// Simulated over published, minus one: positive where the simulation is too slow.
    fn error(&self) -> Option<f64> {
        self.published_s
            .map(|published| self.simulated.step_time_s / published - 1.0)
    }

    /// The same for memory. What a source calls allocated is compared without the reserve.
    fn memory_error(&self) -> Option<f64> {
        let published = self.run.measured.memory?;
        let reserve = if self.run.measured.memory_is_allocated {
            self.memory_reserved
        } else {
            0.0
        };
        Some((self.simulated.memory - reserve) / published - 1.0)
    }
}

/// A run that could not be compared.
struct LeftOut {
    id: String,
    source: String,
    reason: String,
    detail: String,
}

struct Validation {
    rows: Vec<Row>,
    replays: Vec<Row>,
    left_out: Vec<LeftOut>,
}

impl Validation {
    fn of(runs: Vec<PublishedRun>, args: &TrainingArgs) -> Result<Self, ValidateError> {
        let catalogue = Catalogue::builtin();
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(args.jobs.unwrap_or(0))
            .build()
            .map_err(|error| ValidateError::Threads(error.to_string()))?;
        let wanted: Vec<PublishedRun> = runs
            .into_iter()
            .filter(|run| args.filter.as_deref().is_none_or(|text| matches(run, text)))
            .collect();
        if wanted.is_empty() {
            return Err(ValidateError::NoRows(match &args.filter {
                Some(text) => format!("no row contains \"{text}\""),
                None => "the file has no rows".to_owned(),
            }));
        }
        // Collected in the order of the input: the answer does not depend on the threads.
        let outcomes: Vec<Result<Row, LeftOut>> = pool.install(|| {
            wanted
                .into_par_iter()
                .map(|run| compare(run, catalogue, args.all_qualities))
                .collect()
        });
        let mut validation = Self {
            rows: Vec::new(),
            replays: Vec::new(),
            left_out: Vec::new(),
        };
        for outcome in outcomes {
            match outcome {
                Ok(row) if row.run.replay => validation.replays.push(row),
                Ok(row) => validation.rows.push(row),
                Err(left_out) => validation.left_out.push(left_out),
            }
        }
        Ok(validation)
    }

    fn group(&self, of: impl Fn(&Row) -> String) -> BTreeMap<String, Vec<&Row>> {
        let mut groups: BTreeMap<String, Vec<&Row>> = BTreeMap::new();
        for row in &self.rows {
            groups.entry(of(row)).or_default().push(row);
        }
        groups
    }

    fn by_source(&self) -> BTreeMap<String, Vec<&Row>> {
        self.group(|row| row.run.source.clone())
    }

    fn by_accelerator(&self) -> BTreeMap<String, Vec<&Row>> {
        self.group(|row| row.accelerator.clone())
    }

    fn by_family(&self) -> BTreeMap<String, Vec<&Row>> {
        self.group(|row| row.run.model.family.clone())
    }

    fn by_stack(&self) -> BTreeMap<String, Vec<&Row>> {
        self.group(|row| row.stack.clone())
    }

    fn reasons(&self) -> BTreeMap<&str, usize> {
        let mut reasons = BTreeMap::new();
        for left_out in &self.left_out {
            *reasons.entry(left_out.reason.as_str()).or_insert(0) += 1;
        }
        reasons
    }

    fn all(&self) -> Vec<&Row> {
        self.rows.iter().collect()
    }

    /// The sources in two halves, by the alphabet: errors that depend on who published would differ.
    fn halves(&self) -> [Vec<&Row>; 2] {
        let mut halves = [Vec::new(), Vec::new()];
        for (index, (_, rows)) in self.by_source().into_iter().enumerate() {
            halves[index % 2].extend(rows);
        }
        halves
    }
}

fn matches(run: &PublishedRun, text: &str) -> bool {
    let text = text.to_ascii_lowercase();
    [
        &run.id,
        &run.source,
        &run.gpu,
        &run.model.name,
        &run.citation,
        &run.release,
    ]
    .iter()
    .any(|field| field.to_ascii_lowercase().contains(&text))
}

/// One row, or why not.
fn compare(run: PublishedRun, catalogue: &Catalogue, all_qualities: bool) -> Result<Row, LeftOut> {
    let leave_out = |run: &PublishedRun, reason: &str, detail: String| LeftOut {
        id: run.id.clone(),
        source: run.source.clone(),
        reason: reason.to_owned(),
        detail,
    };
    if !run.replay {
        if run.quality != Quality::A && !all_qualities {
            return Err(leave_out(
                &run,
                "incomplete publication (quality B or C)",
                run.quality.to_string(),
            ));
        }
        if run.measured.step_time_s.is_none() {
            return Err(leave_out(&run, "no step time published", String::new()));
        }
    }
    let setup = match published::setup(&run, catalogue) {
        Ok(setup) => setup,
        Err(unusable) => return Err(leave_out(&run, unusable.reason, unusable.detail)),
    };
    // A fault of ours in one row must not hide the others; it is counted as what it is.
    let simulated = match catch_unwind(AssertUnwindSafe(|| simulate(&setup))) {
        Ok(Ok(simulated)) => simulated,
        Ok(Err(why)) => return Err(leave_out(&run, "the plan is refused", why)),
        Err(_) => {
            return Err(leave_out(
                &run,
                "the simulator failed (please report)",
                String::new(),
            ));
        }
    };
    Ok(Row {
        accelerator: setup.cluster.node.accelerator.name.clone(),
        memory_reserved: setup.training.stack.reserved_memory.as_f64(),
        stack: setup.training.stack.name,
        assumed: setup.training.assumed,
        published_s: run.measured.step_time_s,
        simulated,
        run,
    })
}

/// The error of a group of rows, sources weighing alike.
struct Summary {
    rows: usize,
    sources: usize,
    median: f64,
    p90: f64,
    bias: f64,
}

impl Summary {
    /// Each source has a total weight of one, spread evenly over its rows in the group.
    fn of(rows: &[&Row], error: impl Fn(&Row) -> Option<f64>) -> Option<Self> {
        let scored: Vec<(&str, f64)> = rows
            .iter()
            .filter_map(|row| Some((row.run.source.as_str(), error(row)?)))
            .collect();
        let mut per_source: BTreeMap<&str, usize> = BTreeMap::new();
        for (source, _) in &scored {
            *per_source.entry(source).or_insert(0) += 1;
        }
        if scored.is_empty() {
            return None;
        }
        let weigh = |source: &str| 1.0 / per_source[source] as f64;
        let signed: Vec<(f64, f64)> = scored
            .iter()
            .map(|(source, e)| (*e, weigh(source)))
            .collect();
        let absolute: Vec<(f64, f64)> = signed.iter().map(|(e, w)| (e.abs(), *w)).collect();
        Some(Self {
            rows: scored.len(),
            sources: per_source.len(),
            median: weighted_quantile(absolute.clone(), 0.5),
            p90: weighted_quantile(absolute, 0.9),
            bias: weighted_quantile(signed, 0.5),
        })
    }

    fn to_json(&self) -> Value {
        json!({
            "rows": self.rows,
            "sources": self.sources,
            "median_abs_error": self.median,
            "p90_abs_error": self.p90,
            "bias": self.bias,
        })
    }
}

/// The smallest value at which the weights of the values up to it reach `share` of all weights;
/// half way to the next value where they reach it exactly.
fn weighted_quantile(mut values: Vec<(f64, f64)>, share: f64) -> f64 {
    values.sort_by(|a, b| a.0.total_cmp(&b.0));
    let target = share * values.iter().map(|(_, weight)| weight).sum::<f64>();
    let mut reached = 0.0;
    for (index, (value, weight)) in values.iter().enumerate() {
        reached += weight;
        if (reached - target).abs() < 1e-9 * target
            && let Some((next, _)) = values.get(index + 1)
        {
            return f64::midpoint(*value, *next);
        }
        if reached >= target {
            return *value;
        }
    }
    values.last().map_or(0.0, |(value, _)| *value)
}

impl Validation {
    fn to_json(&self) -> Value {
        let map = |groups: BTreeMap<String, Vec<&Row>>| -> Value {
            groups
                .iter()
                .filter_map(|(name, rows)| {
                    Some((name.clone(), Summary::of(rows, Row::error)?.to_json()))
                })
                .collect::<serde_json::Map<_, _>>()
                .into()
        };
        let mut summary = Summary::of(&self.all(), Row::error).map_or_else(
            || json!({ "rows": 0, "median_abs_error": null, "p90_abs_error": null, "bias": null }),
            |summary| summary.to_json(),
        );
        summary["by_source"] = map(self.by_source());
        summary["by_accelerator"] = map(self.by_accelerator());
        summary["by_family"] = map(self.by_family());
        summary["by_stack"] = map(self.by_stack());
        summary["memory"] =
            Summary::of(&self.all(), Row::memory_error).map_or(Value::Null, |s| s.to_json());
        summary["halves"] = self
            .halves()
            .iter()
            .map(|rows| {
                Summary::of(rows, Row::error).map_or(Value::Null, |summary| summary.to_json())
            })
            .collect();
        summary["left_out"] = json!(self.reasons());
        json!({
            "schema_version": 1,
            "command": "validate training",
            "summary": summary,
            "rows": self.rows.iter().map(row_json).collect::<Vec<_>>(),
            "replays": self.replays.iter().map(row_json).collect::<Vec<_>>(),
            "left_out": self.left_out.iter().map(|row| json!({
                "id": row.id, "source": row.source, "reason": row.reason, "detail": row.detail,
            })).collect::<Vec<_>>(),
        })
    }
}

fn row_json(row: &Row) -> Value {
    json!({
        "id": row.run.id,
        "source": row.run.source,
        "accelerator": row.accelerator,
        "family": row.run.model.family,
        "model": row.run.model.name,
        "gpus": row.run.gpus,
        "stack": row.stack,
        "quality": row.run.quality,
        "published_s": row.published_s,
        "simulated_s": row.simulated.step_time_s,
        "error": row.error(),
        "memory_published_bytes": row.run.measured.memory,
        "memory_simulated_bytes": row.simulated.memory,
        "memory_error": row.memory_error(),
        "published_tflops_per_gpu": row.run.measured.tflops_per_gpu,
        "assumed": row.assumed,
        "citation": row.run.citation,
        "url": row.run.url,
    })
}

/// Columns as wide as their widest cell; the first is text, the others end on the right.
struct Columns {
    rows: Vec<Vec<String>>,
}

impl Columns {
    fn new(header: &[&str]) -> Self {
        Self {
            rows: vec![header.iter().map(|cell| (*cell).to_owned()).collect()],
        }
    }

    fn push(&mut self, cells: Vec<String>) {
        self.rows.push(cells);
    }

    fn aligned(&self, left: usize) -> String {
        let widths: Vec<usize> = (0..self.rows[0].len())
            .map(|column| {
                self.rows
                    .iter()
                    .map(|row| row[column].chars().count())
                    .max()
                    .unwrap_or(0)
            })
            .collect();
        let mut out = String::new();
        for row in &self.rows {
            let mut line = String::new();
            for (column, (cell, width)) in row.iter().zip(&widths).enumerate() {
                if column < left {
                    let _ = write!(line, "{cell:<width$}  ");
                } else {
                    let _ = write!(line, "{cell:>width$}  ");
                }
            }
            out.push_str(line.trim_end());
            out.push('\n');
        }
        out
    }

    fn markdown(&self, left: usize) -> String {
        let mut out = String::new();
        for (index, row) in self.rows.iter().enumerate() {
            let cells: Vec<String> = row.iter().map(|cell| cell.replace('|', "\\|")).collect();
            let _ = writeln!(out, "| {} |", cells.join(" | "));
            if index == 0 {
                let rule = (0..row.len()).map(|column| if column < left { "---" } else { "---:" });
                let _ = writeln!(out, "| {} |", rule.collect::<Vec<_>>().join(" | "));
            }
        }
        out
    }
}

fn percent(fraction: f64) -> String {
    format!("{:.1} %", 100.0 * fraction)
}

fn signed_percent(fraction: f64) -> String {
    format!("{:+.1} %", 100.0 * fraction)
}

fn seconds(value: f64) -> String {
    let digits = if value >= 100.0 {
        1
    } else if value >= 10.0 {
        2
    } else {
        3
    };
    format!("{value:.digits$}")
}

fn or_dash(text: Option<String>) -> String {
    text.unwrap_or_else(|| "-".to_owned())
}

impl Validation {
    fn row_table(rows: &[Row]) -> Columns {
        let mut table = Columns::new(&[
            "row",
            "source",
            "accelerator",
            "published s",
            "simulated s",
            "error",
        ]);
        for row in rows {
            table.push(vec![
                row.run.id.clone(),
                row.run.source.clone(),
                row.accelerator.clone(),
                or_dash(row.published_s.map(seconds)),
                seconds(row.simulated.step_time_s),
                or_dash(row.error().map(signed_percent)),
            ]);
        }
        table
    }

    fn replay_table(&self) -> Columns {
        let mut table = Columns::new(&[
            "replay",
            "GPUs",
            "published s",
            "simulated s",
            "error",
            "printed TFLOP/s",
        ]);
        for row in &self.replays {
            table.push(vec![
                row.run.id.clone(),
                or_dash(row.run.gpus.map(|gpus| gpus.to_string())),
                or_dash(row.published_s.map(seconds)),
                seconds(row.simulated.step_time_s),
                or_dash(row.error().map(signed_percent)),
                or_dash(
                    row.run
                        .measured
                        .tflops_per_gpu
                        .map(|rate| format!("{rate:.0}")),
                ),
            ]);
        }
        table
    }

    fn summary_table(&self) -> Columns {
        let mut table = Columns::new(&["", "rows", "median |error|", "p90 |error|", "bias"]);
        let mut push = |name: &str, rows: &[&Row]| {
            if let Some(summary) = Summary::of(rows, Row::error) {
                table.push(vec![
                    name.to_owned(),
                    summary.rows.to_string(),
                    percent(summary.median),
                    percent(summary.p90),
                    signed_percent(summary.bias),
                ]);
            }
        };
        let sections = [
            ("accelerator", self.by_accelerator()),
            ("source", self.by_source()),
            ("family", self.by_family()),
            ("stack", self.by_stack()),
        ];
        for (kind, groups) in &sections {
            for (name, rows) in groups {
                push(&format!("{kind} {name}"), rows);
            }
        }
        for (half, rows) in ["first", "second"].iter().zip(self.halves()) {
            push(&format!("{half} half of the sources"), &rows);
        }
        push("all, sources weighing alike", &self.all());
        table
    }

    /// One line on memory, and one on what was left out.
    fn footer(&self) -> String {
        let mut out = String::new();
        if let Some(memory) = Summary::of(&self.all(), Row::memory_error) {
            let _ = writeln!(
                out,
                "Memory per GPU, {} rows that publish it: median |error| {}, p90 {}, bias {}.",
                memory.rows,
                percent(memory.median),
                percent(memory.p90),
                signed_percent(memory.bias)
            );
        }
        let _ = writeln!(
            out,
            "Compared: {} rows. Left out: {}.",
            self.rows.len(),
            self.left_out.len()
        );
        for (reason, count) in self.reasons() {
            let example = self.left_out.iter().find(|row| row.reason == reason);
            let example = example.map_or(String::new(), |row| {
                let colon = if row.detail.is_empty() { "" } else { ": " };
                format!(" (such as {}{colon}{})", row.id, row.detail)
            });
            let _ = writeln!(out, "  {count:>4}  {reason}{example}");
        }
        out
    }

    fn to_table(&self) -> String {
        let mut out = String::new();
        if !self.rows.is_empty() {
            out.push_str(&Self::row_table(&self.rows).aligned(3));
            out.push('\n');
        }
        out.push_str(&self.summary_table().aligned(1));
        if !self.replays.is_empty() {
            out.push_str("\nReplays, never tuned to:\n");
            out.push_str(&self.replay_table().aligned(1));
        }
        out.push('\n');
        out.push_str(&self.footer());
        out.push_str(
            "Error is simulated over published step time, minus one. Guessing a constant MFU misses by 25 % \
             (median), the three\nnearest published rows by 13 %; the same configuration published twice differs \
             by 2 to 3 %.\n",
        );
        out
    }

    fn to_markdown(&self) -> String {
        let mut out = String::from("### Error by accelerator, source, family and stack\n\n");
        out.push_str(&self.summary_table().markdown(1));
        if !self.replays.is_empty() {
            out.push_str("\n### Replays\n\n");
            out.push_str(&self.replay_table().markdown(1));
        }
        out.push_str("\n### Rows left out, and memory\n\n```text\n");
        out.push_str(&self.footer());
        out.push_str("```\n\n### Every row\n\n");
        out.push_str(&Self::row_table(&self.rows).markdown(3));
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quantile_lies_half_way_where_the_weights_meet_it() {
        let check = |values: &[(f64, f64)], share, expected: f64| {
            let found = weighted_quantile(values.to_vec(), share);
            assert!(
                (found - expected).abs() < 1e-12,
                "{found} instead of {expected}"
            );
        };
        check(&[(1.0, 1.0), (2.0, 1.0), (3.0, 1.0)], 0.5, 2.0);
        check(&[(4.0, 1.0), (1.0, 1.0), (2.0, 1.0), (3.0, 1.0)], 0.5, 2.5);
        check(&[(7.0, 1.0)], 0.9, 7.0);
        // Ten rows of one source weigh as much as one row of another.
        let mut rows = vec![(0.0, 0.1); 10];
        rows.push((1.0, 1.0));
        rows.push((1.0, 1.0));
        check(&rows, 0.5, 1.0);
    }

    #[test]
    fn columns_align() {
        let mut table = Columns::new(&["a", "b"]);
        table.push(vec!["long".to_owned(), "1".to_owned()]);
        assert_eq!(table.aligned(1), "a     b\nlong  1\n");
        assert_eq!(
            table.markdown(1),
            "| a | b |\n| --- | ---: |\n| long | 1 |\n"
        );
    }
}
