//! What to change first in a service: how latency and throughput answer to a little more of each
//! resource.

use crate::elasticity::{bar, bound_by, labels_beyond, sentence, shown};
use crate::format::{percent, seconds, significant};
use crate::paint::{Ink, Style};
use crate::plot::{Axis, Bars, Picture};
use rackflow_plan::Resource;
use rackflow_simulator::serving::ServingRecord;
use schemars::JsonSchema;
use serde::Serialize;

/// Answers below this are queues that fell differently, not the resource.
pub(crate) const NOTHING: f64 = 0.01;

/// A service simulated again with a little more of one resource.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ServingAnswer {
    /// Of what there was more.
    pub resource: Resource,
    /// How many times as much.
    pub factor: f64,
    /// What the run came to.
    pub outcome: ServingOutcome,
}

/// What a run of a service came to, in short.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, JsonSchema)]
pub struct ServingOutcome {
    /// Mean time to the first token.
    pub ttft_s: f64,
    /// Mean time per output token after the first.
    pub tpot_s: f64,
    /// Mean time of a request from arrival to last token.
    pub e2e_s: f64,
    /// Tokens of answers per second.
    pub output_tokens_per_s: f64,
    /// Fraction of requests inside the objective; of those turned away none is. Null without one.
    pub slo_attainment: Option<f64>,
}

impl ServingOutcome {
    /// That of a record; `limited`: the scenario has an objective.
    pub fn of(record: &ServingRecord, limited: bool) -> Self {
        let asked = record.measured + record.refused;
        Self {
            ttft_s: record.ttft.mean_s(),
            tpot_s: record.tpot.mean_s(),
            e2e_s: record.e2e.mean_s(),
            output_tokens_per_s: record.output_tokens as f64 / record.window.as_secs_f64(),
            slo_attainment: limited.then(|| record.inside_slo as f64 / asked.max(1) as f64),
        }
    }
}

/// What the elasticities of a service are of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Basis {
    /// The mean time of a request, shorter being better: where requests come whatever the fleet does,
    /// throughput is the rate at which they come.
    E2eS,
    /// Output tokens per second: where the next request waits for an answer, or all came at once.
    OutputTokensPerS,
}

/// How a service answers to one resource. Positive is better.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
pub struct ServingElasticity {
    /// Name of the resource.
    pub resource: String,
    /// In words.
    pub label: String,
    /// Of what `basis` says: per cent better for one per cent more. Measured by simulating again with
    /// the same requests.
    pub elasticity: f64,
    /// Per cent by which the mean time to the first token is shorter.
    pub ttft: f64,
    /// Per cent by which the mean time per output token is shorter.
    pub tpot: f64,
    /// Per cent by which a request is shorter.
    pub e2e: f64,
    /// Per cent more output tokens per second.
    pub output_tokens_per_s: f64,
}

/// All resources of a service, the one that matters most first.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
pub struct ServingElasticities {
    /// Name of the scenario.
    pub scenario: String,
    /// The service as it is.
    pub before: ServingOutcome,
    /// What the answers are of.
    pub basis: Basis,
    /// What holds the service back, in words.
    pub bound_by: String,
    /// The answers, largest first.
    pub elasticities: Vec<ServingElasticity>,
    /// Resources that this service has none of.
    pub not_used: Vec<String>,
}

impl ServingElasticities {
    /// Ranks the answers of one scenario.
    pub fn of(
        scenario: &str,
        basis: Basis,
        before: ServingOutcome,
        answers: &[ServingAnswer],
    ) -> Self {
        let mut ranked: Vec<(Resource, ServingElasticity)> = answers
            .iter()
            .map(|answer| (answer.resource, elasticity(basis, &before, answer)))
            .collect();
        ranked.sort_by(|a, b| b.1.elasticity.total_cmp(&a.1.elasticity));
        // More memory helps by the cache that it holds: one name is enough.
        let named = |resource: Resource| resource != Resource::MemoryCapacity;
        let words = bound_by(
            ranked
                .iter()
                .filter(|(resource, _)| named(*resource))
                .map(|(resource, answer)| (answer.elasticity, *resource)),
            NOTHING,
        );
        let used = answers.iter().map(|answer| answer.resource);
        let not_used = labels_beyond(Resource::OF_SERVING, used);
        Self {
            scenario: scenario.to_owned(),
            before,
            basis,
            bound_by: words,
            elasticities: ranked.into_iter().map(|(_, answer)| answer).collect(),
            not_used,
        }
    }

    /// The document for programs.
    pub fn to_json(&self) -> String {
        crate::json::pretty(self)
    }

    /// The JSON Schema of [`ServingElasticities::to_json`].
    pub fn schema() -> serde_json::Value {
        let mut schema = schemars::schema_for!(Self).to_value();
        schema["title"] = "Rackflow elasticities of a service".into();
        schema
    }

    /// The ranked table for people.
    pub fn render(&self, style: &Style) -> String {
        let faint = |text: &str| style.paint(Ink::Faint, text);
        let before = &self.before;
        let inside = before.slo_attainment.map_or_else(String::new, |share| {
            format!(", {} % inside the objective", percent(share))
        });
        let mut out = format!(
            "{}\n  {} per request: {} to the first token, {} per token after it; {} output tokens/s{inside}\n  {}\n\n{}\n",
            style.paint(Ink::Strong, &self.scenario),
            seconds(before.e2e_s),
            seconds(before.ttft_s),
            seconds(before.tpot_s),
            significant(before.output_tokens_per_s),
            self.bound_by,
            faint(&format!(
                "{:<30}{:>14}{:>14}{:>14}{:>14}",
                "One per cent more of", "first token", "per token", "request", "tokens/s"
            )),
        );
        let most = self
            .elasticities
            .first()
            .map_or(1.0, |first| first.elasticity.max(0.01));
        let cell = |value: f64| format!("{:>+12.3} %", shown(value));
        for answer in &self.elasticities {
            let length = (answer.elasticity.max(0.0) / most * 16.0).round() as usize;
            out.push_str(&format!(
                "  {:<28}{}{}{}{}  {}\n",
                answer.label,
                cell(answer.ttft),
                cell(answer.tpot),
                cell(answer.e2e),
                cell(answer.output_tokens_per_s),
                style.paint(Ink::Useful, &"\u{2588}".repeat(length)),
            ));
        }
        out.push_str(&faint(match self.basis {
            Basis::E2eS => "\nTimes: per cent shorter. Ranked by the time of a request.\n",
            Basis::OutputTokensPerS => {
                "\nTimes: per cent shorter. Ranked by output tokens per second.\n"
            }
        }));
        if !self.not_used.is_empty() {
            out.push_str(&faint(&format!(
                "Not used by this service: {}.\n",
                self.not_used.join(", ")
            )));
        }
        out
    }

    /// The ranked table as a picture.
    pub fn picture(&self) -> Picture {
        let what = match self.basis {
            Basis::E2eS => "by how much one per cent more of each resource shortens a request",
            Basis::OutputTokensPerS => {
                "output tokens/s that one per cent more of each resource brings"
            }
        };
        Bars {
            title: sentence(&self.bound_by),
            subtitle: format!("{}: {what}, each simulated again", self.scenario),
            axis: Axis::linear(match self.basis {
                Basis::E2eS => "per cent of the mean time of a request",
                Basis::OutputTokensPerS => "per cent of output tokens per second",
            }),
            bars: self
                .elasticities
                .iter()
                .map(|answer| bar(&answer.label, answer.elasticity))
                .collect(),
            ..Bars::default()
        }
        .picture()
    }
}

fn elasticity(basis: Basis, before: &ServingOutcome, answer: &ServingAnswer) -> ServingElasticity {
    let after = &answer.outcome;
    let more = |before: f64, after: f64| {
        if before > 0.0 && after > 0.0 {
            (after / before).ln() / answer.factor.ln()
        } else {
            0.0
        }
    };
    let e2e = more(after.e2e_s, before.e2e_s);
    let tokens = more(before.output_tokens_per_s, after.output_tokens_per_s);
    ServingElasticity {
        resource: answer.resource.key().to_owned(),
        label: answer.resource.label().to_owned(),
        elasticity: match basis {
            Basis::E2eS => e2e,
            Basis::OutputTokensPerS => tokens,
        },
        ttft: more(after.ttft_s, before.ttft_s),
        tpot: more(after.tpot_s, before.tpot_s),
        e2e,
        output_tokens_per_s: tokens,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(e2e_s: f64, output_tokens_per_s: f64) -> ServingOutcome {
        ServingOutcome {
            ttft_s: 0.1,
            tpot_s: 0.02,
            e2e_s,
            output_tokens_per_s,
            slo_attainment: None,
        }
    }

    #[test]
    fn the_basis_decides_what_comes_first() {
        let answer = |resource, e2e_s, tokens| ServingAnswer {
            resource,
            factor: 1.05,
            outcome: outcome(e2e_s, tokens),
        };
        let answers = [
            answer(Resource::TensorFlops, 9.9, 104.0),
            answer(Resource::MemoryBandwidth, 9.7, 101.0),
            answer(Resource::MemoryCapacity, 9.0, 110.0),
        ];
        let before = outcome(10.0, 100.0);
        let open = ServingElasticities::of("a service", Basis::E2eS, before, &answers);
        assert!(
            open.bound_by.starts_with("bound by memory bandwidth (0.6"),
            "{}",
            open.bound_by
        );
        assert_eq!(open.elasticities[0].resource, "memory_capacity");
        let closed =
            ServingElasticities::of("a service", Basis::OutputTokensPerS, before, &answers);
        assert!(
            closed
                .bound_by
                .starts_with("bound by the tensor cores (0.8"),
            "{}",
            closed.bound_by
        );
        assert_eq!(closed.elasticities[2].resource, "memory_bandwidth");
        assert!(closed.not_used.contains(&"a faster KV store".to_owned()));
    }
}
