//! Why two runs differ: step time and effective FLOP/s, cause by cause.
//!
//! The time of a step is spent on causes, so the difference between two steps is the sum of the
//! differences by cause. Runs of different work are put on one footing first: what is compared is GPU
//! time per model FLOP, whose inverse is the effective FLOP/s of one GPU.

pub mod serving;

use crate::causes::{Family, family};
use crate::format::{number, percent, seconds, significant, wrap};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What a comparison needs of a report; reads the JSON of [`crate::Report`].
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Side {
    scenario: String,
    model: SideModel,
    cluster: SideCluster,
    training: SideTraining,
    racks: Vec<SideRack>,
    waterfall: Vec<SideLoss>,
    plan: serde_json::Map<String, serde_json::Value>,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
struct SideModel {
    name: String,
    flops_per_step_causal: f64,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
struct SideCluster {
    node: String,
    accelerator: String,
    fabric: String,
    gpus: u64,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
struct SideTraining {
    step_time_s: f64,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
struct SideRack {
    effective_flops: f64,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
struct SideLoss {
    cause: String,
    label: String,
    gpu_seconds: f64,
}

impl Side {
    fn effective(&self) -> f64 {
        self.racks.iter().map(|rack| rack.effective_flops).sum()
    }

    /// GPU-seconds per 10^15 model FLOPs that go to a cause.
    fn cost(&self, cause: &str) -> f64 {
        let found = self.waterfall.iter().find(|loss| loss.cause == cause);
        found.map_or(0.0, |loss| loss.gpu_seconds) / self.model.flops_per_step_causal * 1e15
    }

    fn total(&self) -> f64 {
        self.waterfall
            .iter()
            .map(|loss| loss.gpu_seconds)
            .sum::<f64>()
            / self.model.flops_per_step_causal
            * 1e15
    }
}

/// Two runs, and what makes them differ.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
pub struct Difference {
    /// Version of this document's layout.
    pub schema_version: u32,
    /// Name of the first run.
    pub a: String,
    /// Name of the second run.
    pub b: String,
    /// Time of one step of each, in seconds.
    pub step_time_s: Pair,
    /// Model FLOP/s of each whole cluster.
    pub effective_flops: Pair,
    /// Model FLOP/s of one GPU of each.
    pub effective_flops_per_gpu: Pair,
    /// What the two scenarios say differently.
    pub settings: Vec<Setting>,
    /// The same work on the GPUs of each, cause by cause, largest difference first. The differences
    /// sum to that of the totals.
    pub causes: Vec<CauseDifference>,
    /// GPU time per model FLOP over all causes.
    pub total: CauseDifference,
    /// The finding, in sentences.
    pub words: Vec<String>,
}

/// A figure of both runs.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, JsonSchema)]
pub struct Pair {
    /// Of the first.
    pub a: f64,
    /// Of the second.
    pub b: f64,
    /// Second over first.
    pub ratio: f64,
}

/// A setting that differs.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
pub struct Setting {
    /// Its name, as in the report.
    pub name: String,
    /// In the first.
    pub a: String,
    /// In the second.
    pub b: String,
}

/// What a cause costs in both runs, in GPU-seconds per 10^15 model FLOPs; of serving, in
/// GPU-milliseconds per output token.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
pub struct CauseDifference {
    /// Machine name of the cause.
    pub cause: String,
    /// Name for people.
    pub label: String,
    /// In the first.
    pub a: f64,
    /// In the second.
    pub b: f64,
    /// Second minus first: above zero, the second spends more.
    pub difference: f64,
    /// The difference as a fraction of all that the first spends.
    pub of_a: f64,
}

/// A cause that costs `a` in the first run and `b` in the second, where the first spends `all`.
fn cause_of_both(cause: &str, label: &str, (a, b): (f64, f64), all: f64) -> CauseDifference {
    CauseDifference {
        cause: cause.to_owned(),
        label: label.to_owned(),
        a,
        b,
        difference: b - a,
        of_a: (b - a) / all,
    }
}

/// Every cause that either run names, once, largest difference first.
fn causes_of_both<'a>(
    named: impl Iterator<Item = (&'a str, &'a str)>,
    all: f64,
    costs: impl Fn(&str) -> (f64, f64),
) -> Vec<CauseDifference> {
    let mut causes: Vec<CauseDifference> = Vec::new();
    for (cause, label) in named {
        if causes.iter().all(|known| known.cause != cause) {
            causes.push(cause_of_both(cause, label, costs(cause), all));
        }
    }
    causes.sort_by(|x, y| y.difference.abs().total_cmp(&x.difference.abs()));
    causes
}

fn pair(a: f64, b: f64) -> Pair {
    Pair { a, b, ratio: b / a }
}

/// Why `b` differs from `a`.
pub fn compare(a: &Side, b: &Side) -> Difference {
    let per_gpu = |side: &Side| side.effective() / side.cluster.gpus as f64;
    let all = a.total();
    let losses = a.waterfall.iter().chain(&b.waterfall);
    let named = losses.map(|loss| (loss.cause.as_str(), loss.label.as_str()));
    let causes = causes_of_both(named, all, |cause| (a.cost(cause), b.cost(cause)));
    let mut found = Difference {
        schema_version: 1,
        a: a.scenario.clone(),
        b: b.scenario.clone(),
        step_time_s: pair(a.training.step_time_s, b.training.step_time_s),
        effective_flops: pair(a.effective(), b.effective()),
        effective_flops_per_gpu: pair(per_gpu(a), per_gpu(b)),
        settings: settings(a, b),
        total: cause_of_both("total", "All", (all, b.total()), all),
        causes,
        words: Vec::new(),
    };
    found.words = words(&found, a, b);
    found
}

fn settings(a: &Side, b: &Side) -> Vec<Setting> {
    let mut found = Vec::new();
    let mut note = |name: &str, x: String, y: String| {
        if x != y {
            found.push(Setting {
                name: name.to_owned(),
                a: x,
                b: y,
            });
        }
    };
    note("model", a.model.name.clone(), b.model.name.clone());
    note("node", a.cluster.node.clone(), b.cluster.node.clone());
    note(
        "accelerator",
        a.cluster.accelerator.clone(),
        b.cluster.accelerator.clone(),
    );
    note("fabric", a.cluster.fabric.clone(), b.cluster.fabric.clone());
    note(
        "gpus",
        a.cluster.gpus.to_string(),
        b.cluster.gpus.to_string(),
    );
    for (name, value) in &a.plan {
        let plain = |value: &serde_json::Value| match value {
            serde_json::Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        let other = b.plan.get(name).map_or_else(String::new, plain);
        note(name, plain(value), other);
    }
    found
}

/// Causes that the words name.
const MOST_NAMED: usize = 4;
/// Share of all GPU time below which a difference is not worth a sentence.
const SMALLEST_NAMED: f64 = 0.005;

fn words(found: &Difference, a: &Side, b: &Side) -> Vec<String> {
    let mut out = Vec::new();
    let times = |ratio: f64| {
        if ratio >= 1.0 {
            format!("{} times as much", significant(ratio))
        } else {
            format!("{} % as much", percent(ratio))
        }
    };
    let per_gpu = &found.effective_flops_per_gpu;
    out.push(format!(
        "{} delivers {} effective FLOP/s per GPU as {}: {} instead of {} TFLOP/s.",
        found.b,
        times(per_gpu.ratio),
        found.a,
        significant(per_gpu.b * 1e-12),
        significant(per_gpu.a * 1e-12)
    ));
    if a.cluster.gpus != b.cluster.gpus {
        out.push(format!(
            "With {} instead of {} GPUs that is {} over the whole cluster.",
            number(b.cluster.gpus as f64, 0),
            number(a.cluster.gpus as f64, 0),
            times(found.effective_flops.ratio)
        ));
    }
    let named: Vec<&CauseDifference> = found
        .causes
        .iter()
        .filter(|cause| cause.of_a.abs() >= SMALLEST_NAMED)
        .take(MOST_NAMED)
        .collect();
    if named.is_empty() {
        out.push("No cause differs by more than half a per cent of the GPU time.".to_owned());
        return out;
    }
    for cause in named {
        let verb = if cause.difference < 0.0 {
            "saves"
        } else {
            "costs"
        };
        let name = match family(&cause.cause) {
            Family::Useful => "Useful math at peak".to_owned(),
            _ => cause.label.clone(),
        };
        out.push(format!(
            "{name}: {} instead of {} GPU-seconds per PFLOP, which {verb} {} % of the GPU time of {}.",
            significant(cause.b),
            significant(cause.a),
            percent(cause.of_a.abs()),
            found.a,
        ));
    }
    out
}

impl Difference {
    /// The comparison as one JSON document, indented, with a newline at the end.
    pub fn to_json(&self) -> String {
        crate::json::pretty(self)
    }

    /// The comparison for a terminal.
    pub fn render_text(&self) -> String {
        let times = |pair: &Pair| format!("{} x", significant(pair.ratio));
        let results = vec![
            [
                "step time".into(),
                seconds(self.step_time_s.a),
                seconds(self.step_time_s.b),
                times(&self.step_time_s),
            ],
            [
                "effective PFLOP/s".into(),
                significant(self.effective_flops.a * 1e-15),
                significant(self.effective_flops.b * 1e-15),
                times(&self.effective_flops),
            ],
            [
                "effective TFLOP/s per GPU".into(),
                significant(self.effective_flops_per_gpu.a * 1e-12),
                significant(self.effective_flops_per_gpu.b * 1e-12),
                times(&self.effective_flops_per_gpu),
            ],
        ];
        let mut out = sentences(&self.words);
        table(&mut out, "Results", results);
        let rows = rows_of(&self.causes, &self.total);
        table(&mut out, "GPU-seconds per PFLOP of work", rows);
        list_settings(&mut out, &self.settings);
        out
    }
}

/// Width of a line of words.
const LINE: usize = 92;
/// Share of what the first run spends below which a cause is not listed.
const SMALLEST_LISTED: f64 = 0.0005;

fn sentences(words: &[String]) -> String {
    let lines = words.iter().flat_map(|sentence| wrap(sentence, LINE));
    lines.map(|line| line + "\n").collect()
}

/// Adds a table of both runs.
fn table(out: &mut String, title: &str, rows: Vec<[String; 4]>) {
    out.push_str(&format!(
        "\n{title:<32}{:>16}{:>16}{:>18}\n",
        "A", "B", "B against A"
    ));
    for [name, a, b, difference] in rows {
        out.push_str(&format!("  {name:<30}{a:>16}{b:>16}{difference:>18}\n"));
    }
}

/// The causes worth a line, and their sum.
fn rows_of(causes: &[CauseDifference], total: &CauseDifference) -> Vec<[String; 4]> {
    let listed = causes
        .iter()
        .filter(|cause| cause.of_a.abs() >= SMALLEST_LISTED);
    listed
        .chain([total])
        .map(|cause| {
            [
                cause.label.clone(),
                format!("{:.4}", cause.a),
                format!("{:.4}", cause.b),
                format!("{:+.1} % of A", cause.of_a * 100.0),
            ]
        })
        .collect()
}

/// Adds what the two scenarios say differently.
fn list_settings(out: &mut String, settings: &[Setting]) {
    if !settings.is_empty() {
        out.push_str("\nWhat the two say differently\n");
    }
    for Setting { name, a, b } in settings {
        out.push_str(&format!("  {name:<20} {a}  ->  {b}\n"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn side(name: &str, gpus: u64, losses: &[(&str, f64)]) -> Side {
        let waterfall: Vec<serde_json::Value> = losses
            .iter()
            .map(|(cause, seconds)| json!({ "cause": cause, "label": cause, "gpu_seconds": seconds }))
            .collect();
        let total: f64 = losses.iter().map(|(_, seconds)| seconds).sum();
        let step = total / gpus as f64;
        serde_json::from_value(json!({
            "scenario": name,
            "model": { "name": "m", "flops_per_step_causal": 1e15 },
            "cluster": { "node": "n", "accelerator": "x", "fabric": "f", "gpus": gpus },
            "training": { "step_time_s": step },
            "racks": [{ "effective_flops": 1e15 / step }],
            "waterfall": waterfall,
            "plan": { "pipeline": gpus },
        }))
        .expect("a side")
    }

    #[test]
    fn differences_by_cause_sum_to_the_difference() {
        let a = side(
            "a",
            8,
            &[("useful_math", 4.0), ("bubble", 2.0), ("launch", 1.0)],
        );
        let b = side(
            "b",
            16,
            &[
                ("useful_math", 4.0),
                ("bubble", 0.5),
                ("exposed_dp_leaf", 0.25),
            ],
        );
        let found = compare(&a, &b);
        let sum: f64 = found.causes.iter().map(|cause| cause.difference).sum();
        assert!((sum - found.total.difference).abs() < 1e-12);
        assert!((found.total.difference - (4.75 - 7.0)).abs() < 1e-12);
        assert!((found.effective_flops_per_gpu.ratio - 7.0 / 4.75).abs() < 1e-12);
        assert_eq!(found.causes[0].cause, "bubble");
        assert!(found.words[2].contains("saves 21.4 %"), "{:?}", found.words);
        assert_eq!(found.settings.len(), 2);
    }

    #[test]
    fn a_run_does_not_differ_from_itself() {
        let a = side("a", 8, &[("useful_math", 4.0), ("bubble", 2.0)]);
        let found = compare(&a, &a);
        assert!(found.causes.iter().all(|cause| cause.difference == 0.0));
        assert!(found.settings.is_empty() && found.words[1].starts_with("No cause"));
    }
}
