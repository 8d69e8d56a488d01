//! Other plans for a scenario: the best of them, and why each loses to the first.

use crate::advice::Target;
use crate::format::{number, percent, seconds, wrap};
use crate::paint::{Ink, Style};
use crate::planner_yaml::{rank_order_word, yaml};
use crate::report::Plan;
use crate::summarize::plan as plan_of;
use rackflow_plan::{Accounts, Cause, Facts, MemoryPart, Obstacle};
use rackflow_simulator::{Found, Outcome, Reordered};
use rackflow_units::{SimDuration, counted};
use schemars::JsonSchema;
use serde::Serialize;
use std::collections::BTreeMap;

/// Differences below this share of the best plan's GPU time are not told.
const SMALLEST: f64 = 0.003;
/// Characters of a line of text.
const WIDTH: usize = 90;
/// Reasons told for one plan.
const REASONS: usize = 3;

/// One plan, simulated.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
pub struct PlanRow {
    /// How the ranks divide the work.
    pub plan: Plan,
    /// Which ranks are neighbours in the hall, as a scenario writes it: those of a stage
    /// (`data_before_pipeline`), or those of a model replica (`pipeline_before_data`).
    pub rank_order: String,
    /// The keys of a scenario's `workload.training` that make it this plan, as YAML.
    pub yaml: String,
    /// Layers of each stage, where nodes of several kinds stand side by side and stages are as long as they
    /// are fast; else none.
    pub layers_of_stages: Vec<u64>,
    /// Wall time of one step.
    pub step_time_s: f64,
    /// Tokens per second and GPU.
    pub tokens_per_s_per_gpu: f64,
    /// Model FLOPs per second over the dense bf16 peak, attention as the mask leaves it.
    pub mfu_bf16_causal: f64,
    /// Memory of one GPU of the fullest stage, in bytes.
    pub memory_bytes: u64,
    /// Time that it takes longer than the best plan, as a fraction of the best plan's.
    pub slower: f64,
    /// The same plan in the other order of ranks, where there is one and a search has asked.
    pub other_rank_order: Option<OtherRankOrder>,
    /// Where it loses GPU time to the best plan, the most first.
    pub why: Vec<Reason>,
}

impl PlanRow {
    /// A plan in one line: dimensions, schedule, micro-batch, recomputation, formats, which ranks are
    /// neighbours where there are stages, and how long these are where they differ.
    pub fn shorthand(&self) -> String {
        let plan = &self.plan;
        let neighbours = match (plan.pipeline, &*self.rank_order) {
            (1, _) => String::new(),
            (_, "data_before_pipeline") => self.neighbours("stages", "replicas"),
            _ => self.neighbours("replicas", "stages"),
        };
        let layers = runs(&self.layers_of_stages);
        format!(
            "{}, micro-batch {}, {}, recomputing {}{neighbours}{layers}",
            plan.shorthand(),
            plan.micro_batch,
            plan.precision,
            plan.recompute
        )
    }

    /// What lies side by side, and how long it takes with the others there.
    fn neighbours(&self, these: &str, others: &str) -> String {
        let other = self.other_rank_order.map(|other| other.words());
        let other = other.map(|words| format!(" ({others}: {words})"));
        format!(", {these} side by side{}", other.unwrap_or_default())
    }
}

/// How long the same plan takes in the order of ranks that is not shown.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, JsonSchema)]
pub struct OtherRankOrder {
    /// Whether it was simulated. Where a limit left no simulation for it, `slower` is what is known without.
    pub simulated: bool,
    /// Time that it takes longer than the order that is shown, as a fraction; where it was not simulated, no
    /// less than this, which may be below zero.
    pub slower: f64,
}

impl OtherRankOrder {
    fn of(found: &Found) -> Option<Self> {
        let (simulated, time) = match found.reordered? {
            Reordered::Takes(time) => (true, time),
            Reordered::AtLeast(time) => (false, time),
        };
        let slower = time.as_secs_f64() / found.step_time().as_secs_f64() - 1.0;
        Some(Self { simulated, slower })
    }

    fn words(self) -> String {
        // Below what is printed of a time, and of a bound only what says something.
        let is_known = self.slower >= 0.0005;
        match (self.simulated, is_known) {
            (true, false) => "as long".to_owned(),
            (true, true) => format!("{} % longer", percent(self.slower)),
            (false, true) => format!("at least {} % longer", percent(self.slower)),
            (false, false) => "not simulated".to_owned(),
        }
    }
}

/// Layers of stages in words, equal neighbours as one: ", 3 x 9 + 2 x 15 layers".
fn runs(layers: &[u64]) -> String {
    let runs: Vec<String> = layers
        .chunk_by(|a, b| a == b)
        .map(|run| match run {
            [one] => one.to_string(),
            _ => format!("{} x {}", run.len(), run[0]),
        })
        .collect();
    match runs.is_empty() {
        true => String::new(),
        false => format!(", {} layers", runs.join(" + ")),
    }
}

/// How many plans share a reason.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Count {
    /// The reason in words.
    pub reason: String,
    /// How many.
    pub plans: u64,
}

/// Where one plan loses to another.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
pub struct Reason {
    /// Key of the loss, as in a report's `what_to_change`.
    pub cause: String,
    /// In words.
    pub label: String,
    /// GPU time lost more than by the best plan, as a fraction of the best plan's.
    pub fraction: f64,
}

/// Plans that a search with a limit has not ruled out.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, JsonSchema)]
pub struct Unproved {
    /// How many.
    pub plans: u64,
    /// None of them has more throughput than the best plan that was found, but for this fraction of it.
    pub at_most_better: f64,
}

impl Unproved {
    /// What `outcome` leaves beside a step that takes `best`.
    pub(crate) fn of(outcome: &Outcome, best: SimDuration) -> Option<Self> {
        outcome.unproved.map(|left| Self {
            plans: left.plans,
            at_most_better: (best.as_secs_f64() / left.at_least.as_secs_f64() - 1.0).max(0.0),
        })
    }

    /// How much better the best of them could be, in words.
    pub(crate) fn at_most(self) -> String {
        // Rounded up: nothing is better than what is said.
        let most = (self.at_most_better * 1000.0).ceil() / 1000.0;
        format!("at most {} %", percent(most))
    }

    fn words(self) -> String {
        let plans = match self.plans {
            1 => "1 other could be among these".to_owned(),
            plans => format!("{} others could be among these", number(plans as f64, 0)),
        };
        if self.at_most_better == 0.0 {
            return format!("{plans}, none of them better than the first");
        }
        format!("{plans}, {} better than the first", self.at_most())
    }
}

/// What a search found.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
pub struct PlanSearch {
    /// Name of the scenario.
    pub scenario: String,
    /// Plans that fit into memory, each bounded from below or simulated.
    pub fitting: u64,
    /// Plans that do not fit into memory.
    pub too_large: u64,
    /// The same, by what needs the most of it.
    pub too_large_by: Vec<Count>,
    /// Plans that cannot be made, by what stands against it.
    pub impossible: Vec<Count>,
    /// Of the plans that fit, those that a closer bound was needed for.
    pub bounded_closely: u64,
    /// Of the plans that fit, those that were left out since the allocator's segments leave no place for all tensors. It is known of
    /// those that could have been among the best.
    pub without_place: u64,
    /// Plans that were simulated, to the end or until it was known that they are no better; the rest of
    /// those that fit are proved to be no better, but for those in `unproved`.
    pub simulated: u64,
    /// Of those, the ones that were given up on the way.
    pub given_up: u64,
    /// Plans that could be among the best for all that is known of them, where a limit was set.
    pub unproved: Option<Unproved>,
    /// Plans that are too long for the simulator.
    pub refused: u64,
    /// The best plans, best first.
    pub best: Vec<PlanRow>,
    /// The scenario's own plan.
    pub own: PlanRow,
    /// Whether it fits into memory; its time is that of enough memory where it does not.
    pub own_fits: bool,
    /// Whether the allocator's segments leave its tensors their place; its time is that of just enough where they do not.
    pub own_has_place: bool,
}

impl PlanSearch {
    /// Compares what a search found.
    pub fn of(outcome: &Outcome) -> Self {
        let first = outcome.best.first().unwrap_or(&outcome.own);
        Self {
            scenario: outcome.own.record.facts.scenario.clone(),
            fitting: outcome.bounded,
            too_large: outcome.left_out.all_too_large(),
            too_large_by: counts(&outcome.left_out.too_large, |part| match part {
                MemoryPart::States => "weights, gradients and optimizer states",
                MemoryPart::Activations => "activations",
                MemoryPart::Buffers => "logits and communication buffers",
                MemoryPart::Reserved => "what the software stack reserves",
            }),
            impossible: counts(&outcome.left_out.impossible, |obstacle| match obstacle {
                Obstacle::Batch => "the batch does not divide into such micro-batches",
                Obstacle::Layers => "more stages than layers",
                Obstacle::Schedule => "the schedule needs other numbers of stages or micro-batches",
                Obstacle::Experts => "experts do not spread over the ranks of a stage",
            }),
            bounded_closely: outcome.closely,
            without_place: outcome.without_place,
            simulated: outcome.simulated,
            given_up: outcome.given_up,
            unproved: Unproved::of(outcome, first.step_time()),
            refused: outcome.refused,
            best: outcome.best.iter().map(|found| row(found, first)).collect(),
            own: row(&outcome.own, first),
            own_fits: outcome.own_fits,
            own_has_place: outcome.own_has_place,
        }
    }

    /// The document for programs.
    pub fn to_json(&self) -> String {
        // Finite numbers and strings, so that nothing can fail.
        serde_json::to_string_pretty(self).expect("plain data becomes JSON") + "\n"
    }

    /// The table for people.
    pub fn render(&self, style: &Style) -> String {
        let faint = |text: &str| style.paint(Ink::Faint, text);
        let whole = |count: u64| number(count as f64, 0);
        let mut out = format!(
            "{}\n  {} {} into memory: {} simulated, {}\n",
            style.paint(Ink::Strong, &self.scenario),
            counted(self.fitting, "plan"),
            if self.fitting == 1 { "fits" } else { "fit" },
            whole(self.simulated),
            match self.unproved {
                None if self.best.is_empty() && self.without_place > 0 => "none is left".to_owned(),
                None if self.without_place > 0 => {
                    "the others are left out or proved to be no better".to_owned()
                }
                None => "the others are proved to be no better".to_owned(),
                Some(left) => left.words(),
            },
        );
        for (what, counts) in [
            ("do not fit, most of it for", &self.too_large_by),
            ("cannot be made", &self.impossible),
        ] {
            let all: u64 = counts.iter().map(|count| count.plans).sum();
            if all == 0 {
                continue;
            }
            let parts: Vec<String> = counts
                .iter()
                .map(|count| format!("{} ({})", count.reason, whole(count.plans)))
                .collect();
            let text = format!("{} {what}: {}", whole(all), parts.join(", "));
            for (i, row) in wrap(&text, WIDTH).iter().enumerate() {
                let indent = if i == 0 { "  " } else { "      " };
                out.push_str(&format!("{indent}{row}\n"));
            }
        }
        if self.without_place > 0 {
            let leave = match self.without_place {
                1 => "1 of those that fit leaves".to_owned(),
                plans => format!("{} of those that fit leave", whole(plans)),
            };
            out.push_str(&format!(
                "  {leave} the allocator's segments no place and may run out of memory: left out\n"
            ));
        }
        if self.refused > 0 {
            let refused = whole(self.refused);
            out.push_str(&format!("  {refused} are too long for the simulator\n"));
        }
        out.push('\n');
        out.push_str(&faint(
            "      step time   MFU bf16    memory   plan, and what it loses to the first\n",
        ));
        for (i, row) in self.best.iter().enumerate() {
            out.push_str(&line(&format!("{:>3}.", i + 1), row, style));
        }
        out.push_str(&faint(match (self.own_fits, self.own_has_place) {
            (false, _) => "The scenario's own plan, which does not fit into memory: with enough it would take\n",
            (true, false) => {
                "The scenario's own plan, which the allocator's segments leave no place: with just enough it would take\n"
            }
            (true, true) => "The scenario's own plan\n",
        }));
        out.push_str(&line("", &self.own, style));
        if let Some(first) = self.best.first() {
            out.push_str(&faint(
                "\nThe first as YAML, in place of the same keys under workload.training\n",
            ));
            for row in first.yaml.lines() {
                out.push_str(&format!("    {row}\n"));
            }
        }
        out
    }
}

fn counts<K: Copy>(of: &BTreeMap<K, u64>, reason: impl Fn(K) -> &'static str) -> Vec<Count> {
    let mut counts: Vec<Count> = of
        .iter()
        .map(|(key, plans)| Count {
            reason: reason(*key).to_owned(),
            plans: *plans,
        })
        .collect();
    counts.sort_by_key(|count| std::cmp::Reverse(count.plans));
    counts
}

/// Columns of a row before the plan, and those that the plan has.
const FIGURES: usize = 39;
const PLAN: usize = 120 - FIGURES;

fn line(number_: &str, row: &PlanRow, style: &Style) -> String {
    let figures = format!(
        "{number_:>4}  {:>9}   {:>6} %   {:>4} GB",
        seconds(row.step_time_s),
        percent(row.mfu_bf16_causal),
        number(row.memory_bytes as f64 / 1e9, 0),
    );
    let reasons = row
        .why
        .iter()
        .map(|reason| format!("{} +{} %", reason.label, percent(reason.fraction)));
    let reasons: Vec<String> = reasons.collect();
    let reasons = match reasons.is_empty() {
        true => String::new(),
        false => format!("{}: {}", pace(row.slower), reasons.join(", ")),
    };
    let plan = wrap(&row.shorthand(), PLAN).into_iter();
    let plan = plan.map(|words| style.paint(Ink::Strong, &words));
    let reasons = wrap(&reasons, PLAN).into_iter();
    let reasons = reasons.map(|words| style.paint(Ink::Faint, &words));
    let mut out = String::new();
    for (i, words) in plan.chain(reasons).enumerate() {
        let before = if i == 0 { &*figures } else { "" };
        out.push_str(&format!("{before:FIGURES$}{words}\n"));
    }
    out
}

/// A difference to the first plan in words; a limit may leave a first one that the scenario's own beats.
fn pace(slower: f64) -> String {
    match slower < 0.0 {
        true => format!("{} % faster in spite of", percent(-slower)),
        false => format!("{} % slower", percent(slower)),
    }
}

fn row(found: &Found, first: &Found) -> PlanRow {
    let facts = &found.record.facts;
    let step_time_s = found.step_time().as_secs_f64();
    let gpus = f64::from(facts.cluster.gpus);
    let memory = facts
        .stages
        .iter()
        .map(|stage| stage.memory.total().get())
        .max();
    PlanRow {
        plan: plan_of(facts),
        rank_order: rank_order_word(found.rank_order).to_owned(),
        yaml: yaml(&facts.training, found.rank_order),
        layers_of_stages: match is_dealt_by_time(facts) && facts.stages.len() > 1 {
            true => facts.stages.iter().map(|stage| stage.layers).collect(),
            false => Vec::new(),
        },
        step_time_s,
        tokens_per_s_per_gpu: facts.training.tokens() as f64 / step_time_s / gpus,
        mfu_bf16_causal: facts.model_flops_causal
            / step_time_s
            / gpus
            / facts.peak_bf16.flops_per_sec(),
        memory_bytes: memory.unwrap_or(0),
        slower: step_time_s / first.step_time().as_secs_f64() - 1.0,
        other_rank_order: OtherRankOrder::of(found),
        why: reasons(&found.record.total(), &first.record.total()),
    }
}

/// Whether stages differ in how many layers they have.
fn is_dealt_by_time(facts: &Facts) -> bool {
    facts.cluster.is_mixed() || facts.training.vision().is_some()
}

fn reasons(mine: &Accounts, best: &Accounts) -> Vec<Reason> {
    let whole = best.total_picos() as f64;
    let mut reasons: Vec<Reason> = Target::all()
        .filter(|target| *target != Target::One(Cause::UsefulMath))
        .filter_map(|target| {
            let spent = |accounts: &Accounts| -> f64 {
                let picos = target
                    .causes()
                    .into_iter()
                    .map(|cause| accounts.picos(cause));
                picos.sum::<u128>() as f64
            };
            let fraction = (spent(mine) - spent(best)) / whole;
            (fraction > SMALLEST).then(|| Reason {
                cause: target.key(),
                label: target.label(),
                fraction,
            })
        })
        .collect();
    reasons.sort_by(|a, b| b.fraction.total_cmp(&a.fraction));
    reasons.truncate(REASONS);
    reasons
}
