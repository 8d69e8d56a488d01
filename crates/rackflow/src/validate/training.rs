//! `rackflow validate training`: published training steps beside simulated ones.
//!
//! Step times are compared and nothing else is scored: printed TFLOP/s and MFU follow at least six
//! conventions. Every figure here is computed from rows that are shown; rows that are left out are
//! counted with their reasons.

use super::cross_check::{AGREES_WITHIN, CrossCheck, Sample};
use super::drift::{Drift, Sized};
use super::options::prose;
use super::simulated::{NotSimulated, Simulated, simulate_all};
use super::summary::{
    Scored, Summary, groups_json, or_dash, percent, seconds, signed_percent, summary_json,
    summary_table,
};
use super::table::Columns;
use super::{Jobs, Options, ValidateError, Validation};
use clap::Args;
use rackflow_plan::Setup;
use rackflow_scenario::Catalogue;
use rackflow_scenario::published::{self, PublishedRun, Quality};
use rackflow_units::counted;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fmt::Write as _;

/// Options of `rackflow validate training`.
#[derive(Debug, Clone, Default, Args)]
pub struct TrainingArgs {
    /// What is compared, and how it is written
    #[command(flatten)]
    pub options: Options,
    /// On how many threads
    #[command(flatten)]
    pub jobs: Jobs,
    /// Also rows whose publication is incomplete or noisy, where they can be simulated
    #[arg(long)]
    pub all_qualities: bool,
}

/// Compares published training steps with simulated ones and returns the text to print.
///
/// # Errors
/// When the data cannot be read, or when no row remains.
pub fn training(args: &TrainingArgs) -> Result<String, ValidateError> {
    let runs = args
        .options
        .published(published::SHIPPED, published::read)?;
    let comparisons = Comparisons::of(runs, args)?;
    Ok(args.options.write(&comparisons))
}

/// One published run beside its simulation.
struct Row {
    run: PublishedRun,
    accelerator: String,
    /// The shipped `continuous_clock` of it.
    clock: f64,
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

struct Comparisons {
    rows: Vec<Row>,
    replays: Vec<Row>,
    left_out: Vec<LeftOut>,
}

impl Comparisons {
    fn of(runs: Vec<PublishedRun>, args: &TrainingArgs) -> Result<Self, ValidateError> {
        let catalogue = Catalogue::builtin();
        let prepared: Vec<Result<(PublishedRun, Setup), LeftOut>> = args
            .options
            .keep(runs, fields)?
            .into_iter()
            .map(|run| prepare(run, catalogue, args.all_qualities))
            .collect();
        let setups: Vec<Setup> = prepared
            .iter()
            .flatten()
            .map(|(_, setup)| setup.clone())
            .collect();
        let simulated = args.jobs.run(|| simulate_all(&setups, true))?;
        let mut simulated = simulated.into_iter();
        let outcomes = prepared.into_iter().map(|prepared| {
            let (run, setup) = prepared?;
            let simulated = simulated.next().expect("one outcome for each setup");
            compare(run, setup, simulated)
        });
        let mut comparisons = Self {
            rows: Vec::new(),
            replays: Vec::new(),
            left_out: Vec::new(),
        };
        for outcome in outcomes {
            match outcome {
                Ok(row) if row.run.replay => comparisons.replays.push(row),
                Ok(row) => comparisons.rows.push(row),
                Err(left_out) => comparisons.left_out.push(left_out),
            }
        }
        Ok(comparisons)
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

    /// Constants fitted on half of the sources and scored on the other half.
    fn cross_check(&self) -> Option<CrossCheck> {
        let samples: Vec<Sample<'_>> = self
            .rows
            .iter()
            .filter_map(|row| Sample::new(row.scored()?, row.clock, &row.simulated))
            .collect();
        CrossCheck::of(&samples)
    }

    /// How the error moves with the number of GPUs, where little else does.
    fn drift(&self) -> Option<Drift> {
        fn sized(row: &Row) -> Option<Sized<'_>> {
            let precision = row.run.precision.as_deref().unwrap_or_default();
            Some(Sized {
                source: &row.run.source,
                alike: format!(
                    "{} {} {precision} {}",
                    row.run.model.name, row.accelerator, row.stack
                ),
                gpus: row.run.gpus?,
                error: row.error()?,
            })
        }
        let rows: Vec<Sized<'_>> = self.rows.iter().filter_map(sized).collect();
        Drift::of(&rows)
    }

    /// The step times by the number of GPUs: an error that grows with it would show here.
    fn by_gpus(&self) -> Vec<(String, Vec<Scored<'_>>)> {
        let mut groups: Vec<(String, Vec<Scored<'_>>)> = Vec::new();
        let mut low = 1;
        for high in GPU_BUCKETS {
            let within = |row: &&Row| {
                row.run
                    .gpus
                    .is_some_and(|gpus| (low..=high).contains(&gpus))
            };
            let rows: Vec<Scored<'_>> = self
                .rows
                .iter()
                .filter(within)
                .filter_map(Row::scored)
                .collect();
            let name = if high == u32::MAX {
                format!("{low} and more")
            } else {
                format!("{low} to {high}")
            };
            if !rows.is_empty() {
                groups.push((name, rows));
            }
            low = high.saturating_add(1);
        }
        groups
    }
}

/// Upper ends of the groups of rows by number of GPUs.
const GPU_BUCKETS: [u32; 6] = [8, 32, 128, 512, 1_024, u32::MAX];

/// What a filter looks into.
fn fields(run: &PublishedRun) -> Vec<&str> {
    vec![
        &run.id,
        &run.source,
        &run.gpu,
        &run.model.name,
        &run.citation,
        &run.release,
    ]
}

fn leave_out(run: &PublishedRun, reason: &str, detail: String) -> LeftOut {
    LeftOut {
        id: run.id.clone(),
        source: run.source.clone(),
        reason: reason.to_owned(),
        detail,
    }
}

/// A row and what to simulate for it, or why not.
fn prepare(
    run: PublishedRun,
    catalogue: &Catalogue,
    all_qualities: bool,
) -> Result<(PublishedRun, Setup), LeftOut> {
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
    match published::setup(&run, catalogue) {
        Ok(setup) => Ok((run, setup)),
        Err(unusable) => Err(leave_out(&run, unusable.reason, unusable.detail)),
    }
}

/// The row beside its simulation, or why not.
fn compare(
    run: PublishedRun,
    setup: Setup,
    simulated: Result<Simulated, NotSimulated>,
) -> Result<Row, LeftOut> {
    let simulated = match simulated {
        Ok(simulated) => simulated,
        Err(NotSimulated::Refused(why)) => {
            return Err(leave_out(&run, "the plan is refused", why));
        }
        Err(NotSimulated::Failed) => {
            return Err(leave_out(
                &run,
                "the simulator failed (please report)",
                String::new(),
            ));
        }
    };
    let accelerator = setup.cluster.node.accelerator;
    Ok(Row {
        clock: accelerator.measured.continuous_clock,
        accelerator: accelerator.name,
        memory_reserved: setup.training.stack.reserved_memory.as_f64(),
        stack: setup.training.stack.name,
        assumed: setup.training.assumed,
        published_s: run.measured.step_time_s,
        simulated,
        run,
    })
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

impl Comparisons {
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
        table.sparing(&["source"])
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
        let by_gpus = self.by_gpus();
        let mut more: Vec<(&str, &str, Vec<Scored<'_>>)> = self
            .by_stack()
            .into_iter()
            .map(|(name, rows)| ("stack", name, rows))
            .collect();
        for (name, rows) in &by_gpus {
            more.push(("GPUs", name, rows.clone()));
        }
        summary_table(&self.scored(), &more)
    }

    /// How constants that were fitted on half of the sources do on the other half.
    fn cross_check_text(&self) -> String {
        let Some(check) = self.cross_check() else {
            return String::new();
        };
        let mut out = String::new();
        for (half, name) in check.halves.iter().zip(["first", "second"]) {
            let _ = writeln!(
                out,
                "Clocks fitted on the {name} half of the sources ({} rows): median |error| {}, p90 {}; \
                 on the other half ({} rows): {}, p90 {}, bias {}.",
                half.fitted.rows,
                percent(half.fitted.median),
                percent(half.fitted.p90),
                half.unseen.rows,
                percent(half.unseen.median),
                percent(half.unseen.p90),
                signed_percent(half.unseen.bias)
            );
        }
        let _ = writeln!(
            out,
            "Unseen over fitted, same sources: {:.2}; one unseen half over the other: {:.2}. They {} \
             within a factor of {AGREES_WITHIN}.",
            check.ratio(),
            check.between(),
            if check.agrees() {
                "agree"
            } else {
                "do not agree"
            }
        );
        out
    }

    /// One line on drift, one on memory, and one on what was left out.
    fn footer(&self) -> String {
        let mut out = self.drift().map_or_else(String::new, |drift| drift.text());
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
            "Compared: {}. Left out: {}.",
            counted(self.rows.len() as u64, "row"),
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
}

impl Validation for Comparisons {
    fn to_json(&self) -> Value {
        let of = |rows: &[Scored<'_>]| Summary::of(rows).map_or(Value::Null, Summary::to_json);
        json!({
            "schema_version": 1,
            "command": "validate training",
            "summary": summary_json(&self.scored()),
            "by_stack": groups_json(&self.by_stack()),
            "memory": of(&self.memory_scored()),
            "by_gpus": self.by_gpus().iter().map(|(name, rows)| (name.clone(), of(rows)))
                .collect::<serde_json::Map<_, _>>(),
            "drift": self.drift().map_or(Value::Null, |drift| drift.to_json()),
            "cross_check": self.cross_check().map_or(Value::Null, |check| check.to_json()),
            "reasons_left_out": self.reasons(),
            "rows": self.rows.iter().map(row_json).collect::<Vec<_>>(),
            "replays": self.replays.iter().map(row_json).collect::<Vec<_>>(),
            "left_out": self.left_out.iter().map(|row| json!({
                "id": row.id, "source": row.source, "reason": row.reason, "detail": row.detail,
            })).collect::<Vec<_>>(),
        })
    }

    fn to_table(&self, page: usize) -> String {
        let mut out = String::new();
        if !self.rows.is_empty() {
            out.push_str(&Self::row_table(&self.rows).aligned(3, page));
            out.push('\n');
        }
        out.push_str(&self.summary_table().aligned(1, page));
        if !self.replays.is_empty() {
            out.push_str("\nReplays, never tuned to:\n");
            out.push_str(&self.replay_table().aligned(1, page));
        }
        out.push('\n');
        let about = "Error is simulated over published step time, minus one. Guessing a constant MFU misses by 25 % \
             (median), the three nearest published rows by 13 %; the same configuration published twice differs \
             by 2 to 3 %.\n";
        let text = self.cross_check_text() + &self.footer() + about;
        out.push_str(&prose(&text, page));
        out
    }

    fn to_markdown(&self) -> String {
        let mut out = String::from("### Error by accelerator, source, family and stack\n\n");
        out.push_str(&self.summary_table().markdown(1));
        if !self.replays.is_empty() {
            out.push_str("\n### Replays\n\n");
            out.push_str(&self.replay_table().markdown(1));
        }
        out.push_str("\n### Cross-check, rows left out, and memory\n\n```text\n");
        out.push_str(&self.cross_check_text());
        out.push_str(&self.footer());
        out.push_str("```\n\n### Every row\n\n");
        out.push_str(&Self::row_table(&self.rows).markdown(3));
        out
    }
}
