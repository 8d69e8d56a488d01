//! `rackflow validate training`: published training steps beside simulated ones.
//!
//! Step times are compared and nothing else is scored: printed TFLOP/s and MFU follow at least six
//! conventions. Every figure here is computed from rows that are shown; rows that are left out are
//! counted with their reasons.

use super::summary::{
    Columns, Scored, Summary, grouped, groups_json, or_dash, percent, seconds, signed_percent,
    summary_json, summary_table,
};
use super::{Format, ValidateError};
use clap::Args;
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
    /// Share of all GPU time by cause; causes without a share are left out.
    causes: BTreeMap<String, f64>,
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
    let total = record.total();
    let all = (total.total_picos() as f64).max(1.0);
    let causes = rackflow_plan::Cause::all()
        .map(|cause| (cause.key(), total.picos(cause) as f64 / all))
        .filter(|(_, share)| *share > 0.0)
        .collect();
    Ok(Simulated {
        step_time_s: record.step_time.as_secs_f64(),
        memory,
        causes,
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

    /// What the step time is scored by.
    fn scored(&self) -> Option<Scored<'_>> {
        Some(Scored {
            source: &self.run.source,
            accelerator: &self.accelerator,
            family: &self.run.model.family,
            error: self.error()?,
        })
    }

    /// The same error for memory. What a source calls allocated is compared without the reserve.
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

    /// The step times of the rows, as far as they are published.
    fn scored(&self) -> Vec<Scored<'_>> {
        self.rows.iter().filter_map(Row::scored).collect()
    }

    /// The same for memory.
    fn memory_scored(&self) -> Vec<Scored<'_>> {
        let memory = |row| {
            Some(Scored {
                error: Row::memory_error(row)?,
                ..Row::scored(row)?
            })
        };
        self.rows.iter().filter_map(memory).collect()
    }

    /// The step times of each stack.
    fn by_stack(&self) -> BTreeMap<&str, Vec<Scored<'_>>> {
        let mut groups: BTreeMap<&str, Vec<Scored<'_>>> = BTreeMap::new();
        for row in &self.rows {
            groups.entry(&row.stack).or_default().extend(row.scored());
        }
        groups
    }

    fn reasons(&self) -> BTreeMap<&str, usize> {
        let mut reasons = BTreeMap::new();
        for left_out in &self.left_out {
            *reasons.entry(left_out.reason.as_str()).or_insert(0) += 1;
        }
        reasons
    }

    /// The sources in two halves, by the alphabet: errors that depend on who published would differ.
    fn halves(&self) -> [Vec<Scored<'_>>; 2] {
        let scored = self.scored();
        let mut halves = [Vec::new(), Vec::new()];
        for (index, (_, rows)) in grouped(&scored, |row| row.source).into_iter().enumerate() {
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

impl Validation {
    fn to_json(&self) -> Value {
        let of = |rows: &[Scored<'_>]| Summary::of(rows).map_or(Value::Null, Summary::to_json);
        json!({
            "schema_version": 1,
            "command": "validate training",
            "summary": summary_json(&self.scored()),
            "by_stack": groups_json(&self.by_stack()),
            "memory": of(&self.memory_scored()),
            "halves": self.halves().iter().map(|rows| of(rows)).collect::<Vec<_>>(),
            "reasons_left_out": self.reasons(),
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
        "causes": row.simulated.causes,
        "memory_published_bytes": row.run.measured.memory,
        "memory_simulated_bytes": row.simulated.memory,
        "memory_error": row.memory_error(),
        "published_tflops_per_gpu": row.run.measured.tflops_per_gpu,
        "assumed": row.assumed,
        "citation": row.run.citation,
        "url": row.run.url,
    })
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
        let mut more: Vec<(&str, &str, Vec<Scored<'_>>)> = self
            .by_stack()
            .into_iter()
            .map(|(name, rows)| ("stack", name, rows))
            .collect();
        for (half, rows) in ["first", "second"].into_iter().zip(self.halves()) {
            more.push((half, "half of the sources", rows));
        }
        summary_table(&self.scored(), &more)
    }

    /// One line on memory, and one on what was left out.
    fn footer(&self) -> String {
        let mut out = String::new();
        if let Some(memory) = Summary::of(&self.memory_scored()) {
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
