//! What to change first: how throughput answers to a little more of each resource.

use crate::format::{number, percent, seconds, wrap};
use crate::paint::{Ink, Style};
use crate::plot::{Axis, Bar, Bars, Picture, style};
use rackflow_plan::Resource;
use rackflow_simulator::{RunRecord, RunTime};
use schemars::JsonSchema;
use serde::Serialize;

/// Answers below this are rounding of the plan, not of the resource.
pub(crate) const NOTHING: f64 = 0.005;

/// A step simulated again with a little more of one resource.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Answer {
    /// Of what there was more.
    pub resource: Resource,
    /// How many times as much.
    pub factor: f64,
    /// How many times as many tokens per second.
    pub throughput: f64,
}

/// How throughput answers to one resource.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
pub struct Elasticity {
    /// Name of the resource.
    pub resource: String,
    /// In words.
    pub label: String,
    /// Relative change of throughput over relative change of the resource: 1 where the run is
    /// bound by nothing else, 0 where it does not matter. Measured by simulating again.
    pub elasticity: f64,
    /// Per cent of throughput that one per cent more would bring.
    pub percent_per_percent: f64,
}

/// All resources of a run, the one that matters most first.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
pub struct Elasticities {
    /// Name of the scenario.
    pub scenario: String,
    /// Wall time of one step as it is, in seconds.
    pub step_time_s: f64,
    /// What holds the run back, in words.
    pub bound_by: String,
    /// The answers, largest first.
    pub elasticities: Vec<Elasticity>,
    /// Resources that this run has none of.
    pub not_used: Vec<String>,
    /// Of a replayed trace: resources of which more has no meaning for it, and why.
    pub without_meaning: Vec<WithoutMeaning>,
    /// Of a whole run (`run` in the scenario): what it makes of its steps. The elasticities are those of a step.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub run: Option<KeptOfRun>,
}

/// What a whole run makes of its steps, as it is.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
pub struct KeptOfRun {
    /// Share of its time in which steps run at full pace that are kept; mean over the replications.
    pub goodput: f64,
    /// What takes the rest, the most first.
    pub lost: Vec<LostOfRun>,
}

/// Time of a run in which no step is kept.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
pub struct LostOfRun {
    /// What takes it.
    pub label: String,
    /// As a fraction of the run's time.
    pub fraction: f64,
}

impl KeptOfRun {
    /// Sums up the replications of a run.
    pub fn of(record: &RunRecord) -> Self {
        let sum = |part: fn(&RunTime) -> u64| -> f64 {
            let parts = record.replications.iter();
            parts.map(|one| part(&one.time) as f64).sum()
        };
        let all = sum(RunTime::total).max(1.0);
        let parts = [
            ("slow hosts", sum(|time| time.slow)),
            ("missing replicas", sum(|time| time.shrunk)),
            ("checkpoints", sum(|time| time.checkpoint)),
            ("lost work", sum(|time| time.lost)),
            ("detection", sum(|time| time.detection)),
            ("restarts", sum(|time| time.restart)),
            ("waiting for hosts", sum(|time| time.waiting)),
        ];
        let parts = parts.into_iter().map(|(label, time)| LostOfRun {
            label: label.to_owned(),
            fraction: time / all,
        });
        let mut lost: Vec<LostOfRun> = parts.filter(|part| part.fraction > 0.0).collect();
        lost.sort_by(|a, b| b.fraction.total_cmp(&a.fraction));
        Self {
            goodput: sum(|time| time.useful) / all,
            lost,
        }
    }

    fn words(&self) -> String {
        let lost: Vec<String> = self
            .lost
            .iter()
            .filter(|part| part.fraction >= 0.000_5)
            .map(|part| format!("{} {} %", part.label, percent(part.fraction)))
            .collect();
        let kept = percent(self.goodput);
        let kept = format!("These are of one step. The whole run keeps {kept} % of its time");
        match lost.is_empty() {
            true => format!("{kept}."),
            false => format!(
                "{kept}; the rest goes to {}, which no resource above shortens.",
                lost.join(", ")
            ),
        }
    }
}

/// A resource to which a replayed trace cannot answer.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
pub struct WithoutMeaning {
    /// Name of the resource.
    pub resource: String,
    /// In words.
    pub label: String,
    /// Why.
    pub reason: String,
}

impl Answer {
    /// Relative change of throughput over relative change of the resource.
    fn elasticity(&self) -> f64 {
        self.throughput.ln() / self.factor.ln()
    }
}

/// The answers, largest first.
pub(crate) fn ranked(answers: &[Answer]) -> Vec<Elasticity> {
    let mut elasticities: Vec<Elasticity> = answers
        .iter()
        .map(|answer| {
            let elasticity = answer.elasticity();
            Elasticity {
                resource: answer.resource.key().to_owned(),
                label: answer.resource.label().to_owned(),
                elasticity,
                percent_per_percent: (1.01_f64.powf(elasticity) - 1.0) * 100.0,
            }
        })
        .collect();
    elasticities.sort_by(|a, b| b.elasticity.total_cmp(&a.elasticity));
    elasticities
}

/// What holds a run back, in words: of these answers those above `nothing`.
pub(crate) fn words(answers: &[Answer], nothing: f64) -> String {
    // A larger batch is no resource of the hardware: it only dilutes what is there.
    let hardware = answers
        .iter()
        .filter(|answer| answer.resource != Resource::Batch);
    bound_by(
        hardware.map(|answer| (answer.elasticity(), answer.resource)),
        nothing,
    )
}

impl Elasticities {
    /// Ranks the answers of one scenario.
    pub fn of(scenario: &str, step_time_s: f64, answers: &[Answer]) -> Self {
        let used = answers.iter().map(|answer| answer.resource);
        let not_used = labels_beyond(Resource::OF_TRAINING, used);
        Self {
            scenario: scenario.to_owned(),
            step_time_s,
            bound_by: words(answers, NOTHING),
            elasticities: ranked(answers),
            not_used,
            without_meaning: Vec::new(),
            run: None,
        }
    }

    /// With what the whole run makes of such steps.
    #[must_use]
    pub fn in_run(self, record: &RunRecord) -> Self {
        Self {
            run: Some(KeptOfRun::of(record)),
            ..self
        }
    }

    /// Ranks the answers of a replayed trace; `without_meaning` are resources to which it cannot answer,
    /// with the reason.
    pub fn of_replay(
        scenario: &str,
        step_time_s: f64,
        answers: &[Answer],
        without_meaning: &[(Resource, &str)],
    ) -> Self {
        let told = without_meaning
            .iter()
            .map(|(resource, reason)| WithoutMeaning {
                resource: resource.key().to_owned(),
                label: resource.label().to_owned(),
                reason: (*reason).to_owned(),
            });
        Self {
            not_used: Vec::new(),
            without_meaning: told.collect(),
            ..Self::of(scenario, step_time_s, answers)
        }
    }

    /// The document for programs.
    pub fn to_json(&self) -> String {
        crate::json::pretty(self)
    }

    /// The JSON Schema of [`Elasticities::to_json`].
    pub fn schema() -> serde_json::Value {
        let mut schema = schemars::schema_for!(Self).to_value();
        schema["title"] = "Rackflow elasticities".into();
        schema
    }

    /// The ranked table for people.
    pub fn render(&self, style: &Style) -> String {
        let strong = |text: &str| style.paint(Ink::Strong, text);
        let faint = |text: &str| style.paint(Ink::Faint, text);
        let mut out = format!(
            "{}\n  step time {}\n  {}\n\n{}\n",
            strong(&self.scenario),
            seconds(self.step_time_s),
            self.bound_by,
            faint("One per cent more of                throughput"),
        );
        let most = self
            .elasticities
            .first()
            .map_or(1.0, |first| first.elasticity.max(0.01));
        for answer in &self.elasticities {
            let length = (answer.elasticity.max(0.0) / most * 40.0).round() as usize;
            out.push_str(&format!(
                "  {:<32} {:>+8.3} %  {}\n",
                answer.label,
                shown(answer.percent_per_percent),
                style.paint(Ink::Useful, &"█".repeat(length)),
            ));
        }
        if !self.not_used.is_empty() {
            out.push_str(&faint(&format!(
                "\nNot used by this run: {}.\n",
                self.not_used.join(", ")
            )));
        }
        if let Some(run) = &self.run {
            out.push('\n');
            for line in wrap(&run.words(), 96) {
                out.push_str(&faint(&format!("{line}\n")));
            }
        }
        if !self.without_meaning.is_empty() {
            out.push_str(&faint("\nWithout meaning for this trace:\n"));
        }
        let mut reasons: Vec<&str> = Vec::new();
        for told in &self.without_meaning {
            if reasons.contains(&told.reason.as_str()) {
                continue;
            }
            reasons.push(&told.reason);
            let alike: Vec<&str> = self
                .without_meaning
                .iter()
                .filter(|other| other.reason == told.reason)
                .map(|other| other.label.as_str())
                .collect();
            let words = format!("{}: {}", alike.join("; "), told.reason);
            for (index, line) in wrap(&words, 96).iter().enumerate() {
                let indent = if index == 0 { "  " } else { "    " };
                out.push_str(&faint(&format!("{indent}{line}\n")));
            }
        }
        out
    }

    /// The ranked table as a picture.
    pub fn picture(&self) -> Picture {
        let bars = self
            .elasticities
            .iter()
            .map(|answer| bar(&answer.label, answer.percent_per_percent))
            .collect();
        Bars {
            title: sentence(&self.bound_by),
            subtitle: format!(
                "{}: throughput {}that one per cent more of each resource brings, each simulated again",
                self.scenario,
                if self.run.is_some() { "of a step " } else { "" },
            ),
            axis: Axis::linear("per cent of throughput"),
            bars,
            ..Bars::default()
        }
        .picture()
    }
}

/// Labels of those resources that are not among the used.
pub(crate) fn labels_beyond(
    all: impl IntoIterator<Item = Resource>,
    used: impl Iterator<Item = Resource> + Clone,
) -> Vec<String> {
    all.into_iter()
        .filter(|resource| used.clone().all(|other| other != *resource))
        .map(|resource| resource.label().to_owned())
        .collect()
}

/// What one per cent more of a resource brings, in per cent.
pub(crate) fn bar(label: &str, percent: f64) -> Bar {
    let value = shown(percent);
    let ink = if value > 0.0 {
        style::USEFUL
    } else {
        style::LOST
    };
    let sign = if value < 0.0 { "\u{2212}" } else { "+" };
    let figure = format!("{sign}{} %", number(value.abs(), 3));
    Bar::new(label, value, ink, &figure)
}

/// Noise of the last digit has no sign.
pub(crate) fn shown(percent: f64) -> f64 {
    if percent.abs() < 0.000_5 {
        0.0
    } else {
        percent
    }
}

/// What holds a run back, in words: of the resources with their elasticities those above `nothing`.
pub(crate) fn bound_by(answers: impl Iterator<Item = (f64, Resource)>, nothing: f64) -> String {
    let mut ranked: Vec<(f64, Resource)> = answers
        .filter(|(elasticity, _)| *elasticity > nothing)
        .collect();
    ranked.sort_by(|a, b| b.0.total_cmp(&a.0));
    let part = |(elasticity, resource): &(f64, Resource)| {
        format!("{} ({})", resource.bound_by(), number(*elasticity, 2))
    };
    match ranked.as_slice() {
        [] => "bound by none of these resources".to_owned(),
        [one] => format!("bound by {}", part(one)),
        [first, second, rest @ ..] => {
            let third = rest.first().filter(|(elasticity, _)| *elasticity > 0.05);
            let third = third.map_or_else(String::new, |third| format!(", then {}", part(third)));
            format!("bound by {}, then {}{third}", part(first), part(second))
        }
    }
}

pub(crate) fn sentence(words: &str) -> String {
    let mut letters = words.chars();
    letters.next().map_or_else(String::new, |first| {
        first.to_uppercase().chain(letters).collect()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(resource: Resource, throughput: f64) -> Answer {
        Answer {
            resource,
            factor: 1.01,
            throughput,
        }
    }

    #[test]
    fn the_largest_answer_comes_first_and_is_named() {
        let answers = [
            answer(Resource::Nic, 1.002),
            answer(Resource::TensorFlops, 1.006),
            answer(Resource::Latency, 1.0),
        ];
        let ranked = Elasticities::of("a run", 1.0, &answers);
        assert_eq!(ranked.elasticities[0].resource, "tensor_flops");
        assert!((ranked.elasticities[0].percent_per_percent - 0.6).abs() < 1e-9);
        assert_eq!(
            ranked.bound_by,
            "bound by the tensor cores (0.60), then the NICs (0.20)"
        );
        assert!(ranked.not_used.contains(&"a larger batch".to_owned()));
        let table = ranked.render(&Style::default());
        assert!(
            table.contains("tensor FLOP/s") && table.contains("+0.600 %"),
            "{table}"
        );
        assert!(ranked.picture().svg().contains("Bound by the tensor cores"));
    }

    #[test]
    fn a_run_says_what_it_keeps_of_its_time() {
        let part = |label: &str, fraction| LostOfRun {
            label: label.to_owned(),
            fraction,
        };
        let run = KeptOfRun {
            goodput: 0.95,
            lost: vec![part("restarts", 0.0499), part("detection", 0.0001)],
        };
        let words = run.words();
        assert!(
            words.contains("keeps 95.0 % of its time; the rest goes to restarts 5.0 %,"),
            "{words}"
        );
        let whole = KeptOfRun {
            goodput: 0.9999,
            lost: vec![part("restarts", 0.0001)],
        };
        assert!(whole.words().ends_with("keeps 100.0 % of its time."));
    }

    #[test]
    fn a_trace_says_what_it_cannot_answer() {
        let answers = [answer(Resource::RecordedKernels, 1.009)];
        let untold = [(Resource::Exponentials, "a trace does not count them")];
        let ranked = Elasticities::of_replay("a trace", 1.0, &answers, &untold);
        assert!(
            ranked
                .bound_by
                .starts_with("bound by kernels as recorded (0.9")
        );
        let table = ranked.render(&Style::default());
        assert!(
            table.contains("exponentials/s: a trace does not count them"),
            "{table}"
        );
        assert!(!table.contains("Not used"), "{table}");
        assert!(ranked.to_json().contains("without_meaning"));
    }

    #[test]
    fn a_run_that_answers_to_nothing_says_so() {
        let ranked = Elasticities::of("a run", 1.0, &[answer(Resource::NvLink, 1.0)]);
        assert_eq!(ranked.bound_by, "bound by none of these resources");
    }
}
