//! `rackflow validate mechanisms`: experiments in which one setting changed, measured beside
//! simulated.
//!
//! A step time can be right for two wrong reasons. What one setting is worth cannot: each
//! experiment is a pair of setups, and its measured change must be met in sign and, within a third,
//! in size.

use super::options::prose;
use super::simulated::{Simulated, simulate_all};
use super::summary::{Scored, signed_percent, summary_json};
use super::table::Columns;
use super::{Jobs, Options, ValidateError, Validation};
use clap::Args;
use rackflow_plan::{MemoryUse, Setup};
use rackflow_scenario::Catalogue;
use rackflow_scenario::published::{self, PublishedRun};
use serde::Deserialize;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fmt::Write as _;

/// Options of `rackflow validate mechanisms`.
#[derive(Debug, Clone, Default, Args)]
pub struct MechanismArgs {
    /// What is compared, and how it is written
    #[command(flatten)]
    pub options: Options,
    /// On how many threads
    #[command(flatten)]
    pub jobs: Jobs,
}

/// Largest deviation from a measured change, as a part of it.
const WITHIN: f64 = 1.0 / 3.0;
/// A change under this is none; it is met by any other that is none.
const NONE: f64 = 0.03;

/// One experiment, as the data file spells it.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct Experiment {
    id: String,
    mechanism: String,
    source: String,
    citation: String,
    url: String,
    base: Arm,
    change: Arm,
    measured: Measured,
    #[serde(default)]
    note: String,
}

/// One of its two setups.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
struct Arm {
    /// A shipped published run,
    #[serde(default)]
    row: Option<String>,
    /// or one that is written out.
    #[serde(default)]
    run: Option<Value>,
    /// What differs from it, merged into the run.
    #[serde(default)]
    set: Option<Value>,
    /// What differs in its software stack, merged into the profile.
    #[serde(default)]
    stack: Option<Value>,
    /// Bytes that its tensors were seen to take on the fullest GPU: the setup gets as much free memory as
    /// there was. How well memory itself is counted is not this comparison's matter.
    #[serde(default)]
    memory: Option<f64>,
}

/// What was measured on the two setups.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct Measured {
    unit: Unit,
    base: f64,
    change: f64,
}

/// In what it was measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
enum Unit {
    /// A rate: the more the faster.
    #[serde(rename = "TFLOP/s")]
    Rate,
    /// Step time in seconds.
    #[serde(rename = "s")]
    Seconds,
    /// Step time in milliseconds.
    #[serde(rename = "ms")]
    Milliseconds,
    /// Step time over that of the first setup.
    #[serde(rename = "times")]
    Times,
    /// Memory of one GPU that tensors use, at its peak, in bytes: what is saved counts.
    #[serde(rename = "bytes")]
    Bytes,
}

impl Unit {
    /// What changes.
    fn of(self) -> &'static str {
        match self {
            Self::Rate => "rate",
            Self::Bytes => "memory",
            Self::Seconds | Self::Milliseconds | Self::Times => "step time",
        }
    }
}

/// One experiment beside its simulation. Changes are fractions of what was measured: of the rate
/// where a rate was, of the step time elsewhere.
struct Row {
    experiment: Experiment,
    accelerator: String,
    family: String,
    measured: f64,
    outcome: Result<Outcome, String>,
}

struct Outcome {
    base_s: f64,
    change_s: f64,
    simulated: f64,
    /// Memory of the second setup over what a GPU has.
    memory_share: f64,
}

impl Row {
    fn right_sign(&self) -> bool {
        let Ok(outcome) = &self.outcome else {
            return false;
        };
        let none = |change: f64| change.abs() < NONE;
        (none(self.measured) && none(outcome.simulated))
            || self.measured.signum() == outcome.simulated.signum()
    }

    fn within(&self) -> bool {
        let Ok(outcome) = &self.outcome else {
            return false;
        };
        let allowed = (self.measured.abs() * WITHIN).max(if self.measured.abs() < NONE {
            NONE
        } else {
            0.0
        });
        self.right_sign() && (outcome.simulated - self.measured).abs() <= allowed
    }

    /// How far the simulated ratio of both setups is from the measured one.
    fn scored(&self) -> Option<Scored<'_>> {
        let outcome = self.outcome.as_ref().ok()?;
        Some(Scored {
            source: &self.experiment.source,
            accelerator: &self.accelerator,
            family: &self.family,
            error: (1.0 + outcome.simulated) / (1.0 + self.measured) - 1.0,
        })
    }
}

/// Simulates both setups of every experiment and returns the text to print.
///
/// # Errors
/// When the data cannot be read, or when no experiment remains.
pub fn mechanisms(args: &MechanismArgs) -> Result<String, ValidateError> {
    let experiments = args.options.published(published::MECHANISMS, read)?;
    let experiments = args.options.keep(experiments, |experiment| {
        [&experiment.id, &experiment.mechanism, &experiment.source]
            .map(String::as_str)
            .to_vec()
    })?;
    let comparisons = args.jobs.run(|| Comparisons::of(experiments))?;
    Ok(args.options.write(&comparisons))
}

fn read(text: &str) -> Result<Vec<Experiment>, published::ReadError> {
    published::json_lines(text, |value| {
        serde_json::from_value(value).map_err(|error| format!("not an experiment: {error}"))
    })
}

struct Comparisons {
    rows: Vec<Row>,
}

impl Comparisons {
    fn of(experiments: Vec<Experiment>) -> Self {
        let runs = published::read(published::SHIPPED).expect("the shipped runs are well formed");
        let shipped: BTreeMap<&str, &PublishedRun> =
            runs.iter().map(|run| (run.id.as_str(), run)).collect();
        // Both arms of all experiments, then their simulations in the same order.
        let arms: Vec<Result<(Setup, String), String>> = experiments
            .iter()
            .flat_map(|experiment| [&experiment.base, &experiment.change])
            .map(|arm| setup(arm, &shipped))
            .collect();
        let setups: Vec<Setup> = arms
            .iter()
            .flatten()
            .map(|(setup, _)| setup.clone())
            .collect();
        let mut simulated = simulate_all(&setups, false).into_iter();
        let mut outcomes = arms.iter().map(|arm| {
            let (setup, _) = arm.as_ref().map_err(String::clone)?;
            let outcome = simulated.next().expect("one outcome for each setup");
            let simulated = outcome.map_err(|why| format!("{why:?}"))?;
            Ok((setup, simulated))
        });
        let mut rows = Vec::with_capacity(experiments.len());
        for (experiment, pair) in experiments.into_iter().zip(arms.chunks(2)) {
            let base = outcomes.next().expect("two arms each");
            let change = outcomes.next().expect("two arms each");
            let (accelerator, family) = pair[0].as_ref().map_or_else(
                |_| (String::new(), String::new()),
                |(setup, family)| (setup.cluster.node.accelerator.name.clone(), family.clone()),
            );
            rows.push(Row {
                measured: measured(&experiment.measured),
                outcome: outcome(&experiment.measured, base, change),
                accelerator,
                family,
                experiment,
            });
        }
        Self { rows }
    }
}

fn measured(measured: &Measured) -> f64 {
    measured.change / measured.base - 1.0
}

fn outcome(
    measured: &Measured,
    base: Result<(&Setup, Simulated), String>,
    change: Result<(&Setup, Simulated), String>,
) -> Result<Outcome, String> {
    let (first, base) = base?;
    let (setup, change) = change?;
    let unit = measured.unit;
    let longer = change.step_time_s / base.step_time_s;
    Ok(Outcome {
        base_s: base.step_time_s,
        change_s: change.step_time_s,
        simulated: match unit {
            Unit::Rate => 1.0 / longer - 1.0,
            // What the change saves; what else is kept is not its matter.
            Unit::Bytes => (allocated(setup, &change) - allocated(first, &base)) / measured.base,
            _ => longer - 1.0,
        },
        memory_share: change.memory / change.capacity,
    })
}

/// Memory that tensors use on the fullest rank [bytes].
fn allocated(setup: &Setup, simulated: &Simulated) -> f64 {
    simulated.memory - setup.training.stack.reserved_memory.as_f64()
}

/// What an arm means, and the family of its model.
fn setup(arm: &Arm, shipped: &BTreeMap<&str, &PublishedRun>) -> Result<(Setup, String), String> {
    let mut run = match (&arm.row, &arm.run) {
        (Some(id), _) => {
            let run = shipped.get(id.as_str()).ok_or(format!("no row {id}"))?;
            serde_json::to_value(run).expect("a run is plain data")
        }
        (None, Some(run)) => run.clone(),
        (None, None) => return Err("neither a row nor a run".to_owned()),
    };
    if let Some(set) = &arm.set {
        merge(&mut run, set);
    }
    let run: PublishedRun = serde_json::from_value(run).map_err(|error| error.to_string())?;
    let mut setup =
        published::setup(&run, Catalogue::builtin()).map_err(|error| error.to_string())?;
    if let Some(changes) = &arm.stack {
        let mut stack = serde_json::to_value(&setup.training.stack).expect("a stack is plain data");
        merge(&mut stack, changes);
        setup.training.stack = serde_json::from_value(stack).map_err(|error| error.to_string())?;
    }
    if let Some(seen) = arm.memory {
        leave_as_free(&mut setup, seen)?;
    }
    Ok((setup, run.model.family))
}

/// Gives the GPUs so much memory that what the plan is counted to need leaves as much of it as tensors of
/// `seen` bytes left.
fn leave_as_free(setup: &mut Setup, seen: f64) -> Result<(), String> {
    let plan = rackflow_plan::compile(setup).map_err(|error| error.to_string())?;
    let counted = plan.facts.stages.iter().map(|stage| stage.memory);
    let counted = counted.max_by_key(MemoryUse::total).unwrap_or_default();
    let more = (counted.total() - counted.reserved).as_f64() - seen;
    setup.cluster.for_each_node(|node| {
        let capacity = node.accelerator.capacity().as_f64();
        node.accelerator.reported_memory *= 1.0 + more / capacity;
    });
    Ok(())
}

/// Merges `changes` into `value`, objects key by key.
fn merge(value: &mut Value, changes: &Value) {
    match (value, changes) {
        (Value::Object(value), Value::Object(changes)) => {
            for (key, change) in changes {
                merge(value.entry(key.clone()).or_insert(Value::Null), change);
            }
        }
        (value, changes) => *value = changes.clone(),
    }
}

fn row_json(row: &Row) -> Value {
    let outcome = row.outcome.as_ref().ok();
    json!({
        "id": row.experiment.id,
        "mechanism": row.experiment.mechanism,
        "source": row.experiment.source,
        "accelerator": row.accelerator,
        "family": row.family,
        "change_of": row.experiment.measured.unit.of().replace(' ', "_"),
        "measured_change": row.measured,
        "simulated_change": outcome.map(|outcome| outcome.simulated),
        "simulated_base_s": outcome.map(|outcome| outcome.base_s),
        "simulated_change_s": outcome.map(|outcome| outcome.change_s),
        "memory_share": outcome.map(|outcome| outcome.memory_share),
        "right_sign": row.right_sign(),
        "within_a_third": row.within(),
        "not_simulated": row.outcome.as_ref().err(),
        "note": row.experiment.note,
        "citation": row.experiment.citation,
        "url": row.experiment.url,
    })
}

impl Comparisons {
    fn count(&self, good: impl Fn(&Row) -> bool) -> usize {
        self.rows.iter().filter(|row| good(row)).count()
    }

    fn table(&self) -> Columns {
        let mut table = Columns::new(&[
            "mechanism",
            "change of",
            "measured",
            "simulated",
            "sign",
            "within a third",
        ]);
        for row in &self.rows {
            let yes = |right: bool| if right { "yes" } else { "no" }.to_owned();
            let simulated = match &row.outcome {
                Ok(outcome) => signed_percent(outcome.simulated),
                Err(why) => why.clone(),
            };
            table.push(vec![
                format!("{} ({})", row.experiment.mechanism, row.experiment.id),
                row.experiment.measured.unit.of().to_owned(),
                signed_percent(row.measured),
                simulated,
                yes(row.right_sign()),
                yes(row.within()),
            ]);
        }
        table
    }
}

impl Validation for Comparisons {
    fn to_json(&self) -> Value {
        let scored: Vec<Scored<'_>> = self.rows.iter().filter_map(Row::scored).collect();
        json!({
            "schema_version": 1,
            "command": "validate mechanisms",
            "summary": summary_json(&scored),
            "experiments": self.rows.len(),
            "right_sign": self.count(Row::right_sign),
            "within_a_third": self.count(Row::within),
            "rows": self.rows.iter().map(row_json).collect::<Vec<_>>(),
        })
    }

    fn to_table(&self, page: usize) -> String {
        let mut about = String::new();
        let _ = writeln!(
            about,
            "\nOf {} experiments {} have the right sign and {} the right size, within a third of what was measured. \
             Changes under {:.0} % count as none. Sources: `--format json`.",
            self.rows.len(),
            self.count(Row::right_sign),
            self.count(Row::within),
            100.0 * NONE,
        );
        for row in self
            .rows
            .iter()
            .filter(|row| !row.experiment.note.is_empty())
        {
            let _ = writeln!(about, "{}: {}.", row.experiment.id, row.experiment.note);
        }
        self.table().aligned(2, page) + &prose(&about, page)
    }

    fn to_markdown(&self) -> String {
        self.table().markdown(2)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_experiment_is_simulated_and_most_signs_are_right() {
        let experiments = read(published::MECHANISMS).unwrap();
        let rows = Comparisons::of(experiments).rows;
        for row in &rows {
            assert!(row.outcome.is_ok(), "{}", row.experiment.id);
            assert!(row.experiment.url.starts_with("https://"));
        }
        let right = rows.iter().filter(|row| row.right_sign()).count();
        assert!(10 * right >= 8 * rows.len(), "{right} of {}", rows.len());
    }

    #[test]
    fn merging_goes_key_by_key() {
        let mut value = json!({"a": {"b": 1, "c": 2}, "d": 3});
        merge(&mut value, &json!({"a": {"b": 5}, "e": [1]}));
        assert_eq!(value, json!({"a": {"b": 5, "c": 2}, "d": 3, "e": [1]}));
    }
}
