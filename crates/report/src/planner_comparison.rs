//! The plans of several scenarios, each beside the best that a search found.

use crate::format::{number, percent, seconds, wrap};
use crate::paint::{Ink, Style};
use crate::planner::{PlanRow, PlanSearch, Unproved};
use rackflow_simulator::Outcome;
use rackflow_units::counted;
use schemars::JsonSchema;
use serde::Serialize;

/// Characters of a line of text.
const WIDTH: usize = 84;

/// One scenario's own plan and the best one.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
pub struct ComparedPlan {
    /// Name of the scenario.
    pub scenario: String,
    /// Plans that fit into memory.
    pub fitting: u64,
    /// Plans that do not.
    pub too_large: u64,
    /// Plans that were simulated; the rest of those that fit are proved to be no better, but for those
    /// in `unproved`.
    pub simulated: u64,
    /// Of the plans that fit, those that were left out since the allocator's segments leave no place for all tensors.
    pub without_place: u64,
    /// Plans that could be better for all that is known of them, where a limit was set.
    pub unproved: Option<Unproved>,
    /// The scenario's own plan; its `why` says what it loses to the best.
    pub own: PlanRow,
    /// Whether the allocator's segments leave its tensors their place; its time is that of just enough where they do not.
    pub own_has_place: bool,
    /// The best plan, where one is better than the scenario's own or that has no place.
    pub best: Option<PlanRow>,
}

impl ComparedPlan {
    /// Throughput of the best plan over the scenario's own, minus one.
    pub fn gain(&self) -> f64 {
        let best = self.best.as_ref().unwrap_or(&self.own);
        self.own.step_time_s / best.step_time_s - 1.0
    }

    /// What stands behind the row, in words.
    fn words(&self) -> String {
        let Some(left) = self.unproved else {
            return self.verdict();
        };
        let plans = counted(left.plans, "plan");
        let (verdict, most) = (self.verdict(), left.at_most());
        format!("{verdict}; {plans} not ruled out, {most} better")
    }

    fn verdict(&self) -> String {
        const NO_PLACE: &str = "the allocator's segments leave its own plan no place";
        let others = number(self.fitting as f64, 0);
        match (self.own_has_place, &self.best, self.unproved) {
            (true, Some(_), _) => {}
            (false, Some(_), _) => return NO_PLACE.to_owned(),
            (false, None, None) => {
                return format!("{NO_PLACE}, nor any of {others} others that fit");
            }
            (false, None, Some(_)) => {
                return format!("{NO_PLACE}, and none that has was found among {others} others");
            }
            (true, None, Some(_)) => {
                return format!("nothing faster found among {others} others that fit");
            }
            (true, None, None) => {
                let left_out = match self.without_place {
                    0 => String::new(),
                    some => format!(
                        " but for {} that the allocator's segments leave no place",
                        number(some as f64, 0)
                    ),
                };
                return format!(
                    "its own plan is the best: none of {others} others that fit is faster{left_out}"
                );
            }
        }
        let reasons = self.own.why.iter();
        let reasons: Vec<String> = reasons
            .map(|reason| format!("{} +{} %", reason.label, percent(reason.fraction)))
            .collect();
        match reasons.is_empty() {
            true => "a little of everything".to_owned(),
            false => format!("its own plan loses by {}", reasons.join(", ")),
        }
    }
}

/// Several of them.
#[derive(Debug, Clone, PartialEq, Default, Serialize, JsonSchema)]
pub struct PlanComparison {
    /// In the order in which they were asked for.
    pub scenarios: Vec<ComparedPlan>,
}

impl PlanComparison {
    /// Adds what a search found that looked for something better than the scenario's own plan.
    pub fn add(&mut self, outcome: &Outcome) {
        let found = PlanSearch::of(outcome);
        self.scenarios.push(ComparedPlan {
            scenario: found.scenario,
            fitting: found.fitting,
            too_large: found.too_large,
            simulated: found.simulated,
            without_place: found.without_place,
            unproved: found.unproved,
            own_has_place: found.own_has_place,
            own: found.own,
            best: found.best.into_iter().next(),
        });
    }

    /// The document for programs.
    pub fn to_json(&self) -> String {
        // Finite numbers and strings, so that nothing can fail.
        serde_json::to_string_pretty(self).expect("plain data becomes JSON") + "\n"
    }

    /// The table for people.
    pub fn render(&self, style: &Style) -> String {
        let mut out = String::new();
        for row in &self.scenarios {
            out.push_str(&format!("{}\n", style.paint(Ink::Strong, &row.scenario)));
            let line = |name: &str, plan: &PlanRow| {
                let text = format!(
                    "{name}  {:>9}   {:>4} GB   ",
                    seconds(plan.step_time_s),
                    number(plan.memory_bytes as f64 / 1e9, 0)
                );
                let indent = " ".repeat(text.chars().count() + 2);
                let words = wrap(&plan.shorthand(), WIDTH.saturating_sub(indent.len()));
                format!("  {text}{}\n", words.join(&format!("\n{indent}")))
            };
            out.push_str(&line("own ", &row.own));
            if let Some(best) = &row.best {
                out.push_str(&line("best", best));
                if row.own_has_place {
                    let gain = format!("{} % more throughput", percent(row.gain()));
                    out.push_str(&format!("  {gain}\n"));
                }
            }
            for words in wrap(&row.words(), WIDTH) {
                out.push_str(&format!("  {}\n", style.paint(Ink::Faint, &words)));
            }
            out.push('\n');
        }
        out
    }

    /// The same as a table of Markdown.
    pub fn to_markdown(&self) -> String {
        let mut out = String::from(
            "| scenario | own plan | | best plan | | gain | plans that fit, simulated | why |\n\
             | --- | --- | ---: | --- | ---: | ---: | ---: | --- |\n",
        );
        for row in &self.scenarios {
            let best = row.best.as_ref().unwrap_or(&row.own);
            let plan = |plan: &PlanRow| plan.shorthand();
            let gain = match row.own_has_place {
                true => format!("{} %", percent(row.gain())),
                false => "-".to_owned(),
            };
            out.push_str(&format!(
                "| {} | {} | {} | {} | {} | {gain} | {}, {} | {} |\n",
                row.scenario,
                plan(&row.own),
                seconds(row.own.step_time_s),
                if row.best.is_some() {
                    plan(best)
                } else {
                    "its own".to_owned()
                },
                seconds(best.step_time_s),
                number(row.fitting as f64, 0),
                number(row.simulated as f64, 0),
                row.words(),
            ));
        }
        out
    }
}
