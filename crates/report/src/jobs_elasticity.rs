//! What to change first where several jobs share a cluster: how each, and all of them together, answer
//! to a little more of each resource.

use crate::elasticity::{Answer, Elasticity, NOTHING, labels_beyond, ranked, shown, words};
use crate::format::{number, seconds, significant};
use crate::paint::{Ink, Style};
use crate::plot::{Axis, Bar, Bars, Picture, style};
use crate::serving_elasticity::{self, Basis};
use rackflow_plan::{Resource, Setup};
use rackflow_simulator::JobRecord;
use rackflow_simulator::serving::ServingRecord;
use rackflow_units::counted;
use schemars::JsonSchema;
use serde::Serialize;

/// What the elasticities of a job are of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum JobBasis {
    /// Tokens per second of a job that trains.
    TokensPerS,
    /// The mean time of a request, shorter being better: of a service whose requests come whatever it
    /// does.
    E2eS,
    /// Output tokens per second of a service where the next request waits for an answer.
    OutputTokensPerS,
}

/// How fast a job runs beside the others.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct JobPace {
    /// In what it is measured.
    pub basis: JobBasis,
    /// The figure: tokens per second, or seconds.
    pub figure: f64,
}

impl JobPace {
    /// That of a job that trains.
    pub fn of_training(setup: &Setup, record: &JobRecord) -> Self {
        Self {
            basis: JobBasis::TokensPerS,
            figure: setup.training.tokens() as f64 / record.step_time.as_secs_f64(),
        }
    }

    /// That of a job that serves.
    pub fn of_serving(basis: Basis, record: &ServingRecord) -> Self {
        match basis {
            Basis::E2eS => Self {
                basis: JobBasis::E2eS,
                figure: record.e2e.mean_s(),
            },
            Basis::OutputTokensPerS => Self {
                basis: JobBasis::OutputTokensPerS,
                figure: record.output_tokens as f64 / record.window.as_secs_f64(),
            },
        }
    }

    /// How many times as fast this is as `before`; 1 where either is nothing.
    fn over(self, before: Self) -> f64 {
        if self.figure <= 0.0 || before.figure <= 0.0 {
            return 1.0;
        }
        match self.basis {
            JobBasis::E2eS => before.figure / self.figure,
            JobBasis::TokensPerS | JobBasis::OutputTokensPerS => self.figure / before.figure,
        }
    }

    fn words(self) -> String {
        match self.basis {
            JobBasis::TokensPerS => format!("{} tokens/s", significant(self.figure)),
            JobBasis::E2eS => format!("{} per request", seconds(self.figure)),
            JobBasis::OutputTokensPerS => format!("{} output tokens/s", significant(self.figure)),
        }
    }
}

/// Jobs simulated beside each other again with a little more of one resource.
#[derive(Debug, Clone, PartialEq)]
pub struct JobsAnswer {
    /// Of what there was more.
    pub resource: Resource,
    /// How many times as much each job has; nothing for a job that has none of it. One job has some.
    pub factors: Vec<Option<f64>>,
    /// How fast each then was.
    pub paces: Vec<JobPace>,
}

impl JobsAnswer {
    /// How many times as much there is, over the jobs that have any: their geometric mean.
    fn factor(&self) -> f64 {
        let logs: Vec<f64> = self.factors.iter().flatten().map(|f| f.ln()).collect();
        (logs.iter().sum::<f64>() / logs.len().max(1) as f64).exp()
    }
}

/// A job before anything changes, for [`JobsElasticities::of`].
#[derive(Debug, Clone, PartialEq)]
pub struct JobBefore {
    /// What the scenario calls it.
    pub name: String,
    /// Accelerators that it has.
    pub gpus: u32,
    /// How fast it runs beside the others.
    pub pace: JobPace,
}

/// All resources of a cluster with several jobs, the one that matters most first.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
pub struct JobsElasticities {
    /// Name of the scenario.
    pub scenario: String,
    /// Accelerators of all jobs.
    pub gpus: u32,
    /// What holds the jobs back together, in words.
    pub bound_by: String,
    /// The answers of all jobs together, largest first: of the mean over accelerators of how many times
    /// as fast their job runs.
    pub elasticities: Vec<Elasticity>,
    /// The jobs, as they are written.
    pub jobs: Vec<JobElasticities>,
    /// Resources that no job has.
    pub not_used: Vec<String>,
}

/// How one job of several answers.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
pub struct JobElasticities {
    /// What the scenario calls it.
    pub name: String,
    /// Accelerators that it has.
    pub gpus: u32,
    /// What the answers are of.
    pub basis: JobBasis,
    /// That figure beside the others as it is: tokens per second, or seconds.
    pub before: f64,
    /// What holds the job back beside the others, in words.
    pub bound_by: String,
    /// The answers, largest first. Below 0 the job loses what another gains.
    pub elasticities: Vec<Elasticity>,
    /// Resources that this job has none of; those of the others it may feel all the same.
    pub not_used: Vec<String>,
}

impl JobsElasticities {
    /// Ranks the answers of one scenario.
    pub fn of(scenario: &str, jobs: &[JobBefore], answers: &[JobsAnswer]) -> Self {
        let gpus: u32 = jobs.iter().map(|job| job.gpus).sum();
        let serves = jobs
            .iter()
            .any(|job| job.pace.basis != JobBasis::TokensPerS);
        let possible = Resource::OF_JOBS.into_iter().filter(|resource| {
            Resource::OF_TRAINING.contains(resource)
                || serves && Resource::OF_SERVING.contains(resource)
        });
        let together: Vec<Answer> = answers
            .iter()
            .map(|answer| {
                let weighed = jobs
                    .iter()
                    .zip(&answer.paces)
                    .map(|(job, pace)| f64::from(job.gpus) / f64::from(gpus) * pace.over(job.pace));
                Answer {
                    resource: answer.resource,
                    factor: answer.factor(),
                    throughput: weighed.sum(),
                }
            })
            .collect();
        let used = answers.iter().map(|answer| answer.resource);
        Self {
            scenario: scenario.to_owned(),
            gpus,
            bound_by: words(&together, nothing(serves)),
            elasticities: ranked(&together),
            jobs: (0..jobs.len())
                .map(|job| JobElasticities::new(job, &jobs[job], answers))
                .collect(),
            not_used: labels_beyond(possible, used),
        }
    }

    /// The document for programs.
    pub fn to_json(&self) -> String {
        crate::json::pretty(self)
    }

    /// The JSON Schema of [`JobsElasticities::to_json`].
    pub fn schema() -> serde_json::Value {
        let mut schema = schemars::schema_for!(Self).to_value();
        schema["title"] = "Rackflow elasticities of several jobs".into();
        schema
    }

    /// The ranked table for people: all jobs together, and a column for each.
    pub fn render(&self, style: &Style) -> String {
        let faint = |text: &str| style.paint(Ink::Faint, text);
        let mut out = format!(
            "{}\n  {} on {}, together {}\n",
            style.paint(Ink::Strong, &self.scenario),
            counted(self.jobs.len() as u64, "job"),
            counted(self.gpus, "GPU"),
            self.bound_by,
        );
        for job in &self.jobs {
            let pace = JobPace {
                basis: job.basis,
                figure: job.before,
            };
            out.push_str(&format!(
                "  {}: {}, {}\n",
                job.name,
                pace.words(),
                job.bound_by
            ));
        }
        for (block, jobs) in self.jobs.chunks(COLUMNS).enumerate() {
            out.push_str(&self.table(jobs, block == 0, style));
        }
        out.push_str(&faint(
            "\nAll jobs: by how much faster an accelerator's job is, in the mean over accelerators. \
             Below 0 a job loses\nwhat another gains.\n",
        ));
        if self.jobs.iter().any(|job| job.basis == JobBasis::E2eS) {
            out.push_str(&faint(
                "Of a service: per cent by which a request is shorter.\n",
            ));
        }
        if !self.not_used.is_empty() {
            out.push_str(&faint(&format!(
                "Not used by these jobs: {}.\n",
                self.not_used.join(", ")
            )));
        }
        out
    }

    /// The columns of some jobs, beside those of all together where this is the first table.
    fn table(&self, jobs: &[JobElasticities], first: bool, style: &Style) -> String {
        let all = if first { "all jobs" } else { "" };
        let mut head = format!("\n{:<34}{all:>12}", "One per cent more of");
        for job in jobs {
            head.push_str(&format!("  {:>10}", short(&job.name)));
        }
        let mut out = format!("{}\n", style.paint(Ink::Faint, &head));
        let most = self
            .elasticities
            .first()
            .map_or(1.0, |first| first.elasticity.max(0.01));
        for answer in &self.elasticities {
            let cell =
                |found: &Elasticity| format!("  {:>+8.3} %", shown(found.percent_per_percent));
            out.push_str(&format!("  {:<32}", answer.label));
            out.push_str(&if first { cell(answer) } else { " ".repeat(12) });
            for job in jobs {
                out.push_str(&job.find(&answer.resource).map_or_else(String::new, cell));
            }
            let length = (answer.elasticity.max(0.0) / most * 16.0).round() as usize;
            let bar = if first {
                "\u{2588}".repeat(length)
            } else {
                String::new()
            };
            out.push_str(&format!("  {}\n", style.paint(Ink::Useful, &bar)));
        }
        out
    }

    /// The ranked table as a picture: of each resource a bar for all jobs, and one for each below it.
    pub fn picture(&self) -> Picture {
        let mut bars = Vec::new();
        let drawn = &self.jobs[..self.jobs.len().min(style::SERIES.len() - 1)];
        for answer in &self.elasticities {
            bars.push(bar(&answer.label, answer, style::USEFUL));
            let found: Vec<&Elasticity> = drawn
                .iter()
                .filter_map(|job| job.find(&answer.resource))
                .collect();
            // What no job answers to is one row.
            if found.iter().all(|of| shown(of.percent_per_percent) == 0.0) {
                continue;
            }
            bars.extend((0..).zip(found).map(|(index, of)| bar("", of, ink(index))));
        }
        let names = drawn
            .iter()
            .enumerate()
            .map(|(index, job)| (ink(index), job.name.clone()));
        Bars {
            title: format!("Together {}", self.bound_by),
            subtitle: format!(
                "{}: throughput that one per cent more of each resource brings to jobs beside each other",
                self.scenario
            ),
            axis: Axis::linear("per cent of throughput; of a service, of the time of a request"),
            bars,
            legend: std::iter::once((style::USEFUL, "all jobs".to_owned()))
                .chain(names)
                .collect(),
            ..Bars::default()
        }
        .picture()
    }
}

/// Jobs side by side in one table.
const COLUMNS: usize = 5;

/// A name that fits over its column.
fn short(name: &str) -> String {
    if name.chars().count() <= 10 {
        return name.to_owned();
    }
    name.chars().take(9).chain(['\u{2026}']).collect()
}

/// Colours of jobs, without that of all together.
fn ink(index: usize) -> style::Ink {
    let others = style::SERIES.iter().filter(|ink| **ink != style::USEFUL);
    others.copied().nth(index).unwrap_or(style::PEAK)
}

fn bar(name: &str, answer: &Elasticity, ink: style::Ink) -> Bar {
    let value = shown(answer.percent_per_percent);
    let sign = if value < 0.0 { "\u{2212}" } else { "+" };
    Bar::new(
        name,
        value,
        ink,
        &format!("{sign}{} %", number(value.abs(), 3)),
    )
}

/// Answers below this are rounding, or queues that fell differently.
fn nothing(serves: bool) -> f64 {
    if serves {
        serving_elasticity::NOTHING
    } else {
        NOTHING
    }
}

impl JobElasticities {
    fn new(index: usize, before: &JobBefore, answers: &[JobsAnswer]) -> Self {
        let own: Vec<Answer> = answers
            .iter()
            .map(|answer| Answer {
                resource: answer.resource,
                factor: answer.factors[index].unwrap_or_else(|| answer.factor()),
                throughput: answer.paces[index].over(before.pace),
            })
            .collect();
        let serves = before.pace.basis != JobBasis::TokensPerS;
        // More memory helps a service by the cache that it holds: one name is enough.
        let named: Vec<Answer> = own
            .iter()
            .filter(|answer| !(serves && answer.resource == Resource::MemoryCapacity))
            .copied()
            .collect();
        let has = answers
            .iter()
            .filter(|answer| answer.factors[index].is_some());
        let possible: &[Resource] = if serves {
            &Resource::OF_SERVING
        } else {
            &Resource::OF_TRAINING
        };
        Self {
            name: before.name.clone(),
            gpus: before.gpus,
            basis: before.pace.basis,
            before: before.pace.figure,
            bound_by: words(&named, nothing(serves)),
            elasticities: ranked(&own),
            not_used: labels_beyond(possible.iter().copied(), has.map(|answer| answer.resource)),
        }
    }

    /// How it answers to the resource of this name.
    fn find(&self, resource: &str) -> Option<&Elasticity> {
        self.elasticities
            .iter()
            .find(|answer| answer.resource == resource)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn before(name: &str, gpus: u32, basis: JobBasis, figure: f64) -> JobBefore {
        JobBefore {
            name: name.to_owned(),
            gpus,
            pace: JobPace { basis, figure },
        }
    }

    fn answer(resource: Resource, factors: [Option<f64>; 2], figures: [f64; 2]) -> JobsAnswer {
        let bases = [JobBasis::TokensPerS, JobBasis::E2eS];
        let paces = bases.into_iter().zip(figures);
        JobsAnswer {
            resource,
            factors: factors.to_vec(),
            paces: paces
                .map(|(basis, figure)| JobPace { basis, figure })
                .collect(),
        }
    }

    /// Three quarters of the accelerators train, one serves.
    fn ranked_jobs() -> JobsElasticities {
        let jobs = [
            before("large", 192, JobBasis::TokensPerS, 1000.0),
            before("chat", 64, JobBasis::E2eS, 10.0),
        ];
        let answers = [
            answer(Resource::TensorFlops, [Some(1.01); 2], [1010.0, 10.2]),
            answer(Resource::Nic, [Some(1.01); 2], [1002.0, 10.0 / 1.008]),
            answer(Resource::Batch, [Some(1.02), None], [1020.0, 10.5]),
            answer(Resource::Store, [None, Some(1.05)], [1000.0, 9.5]),
        ];
        JobsElasticities::of("a file", &jobs, &answers)
    }

    #[test]
    fn all_jobs_are_the_mean_over_accelerators() {
        let ranked = ranked_jobs();
        let nic = &ranked.elasticities;
        let nic = nic
            .iter()
            .find(|answer| answer.resource == "nic")
            .expect("it is there");
        let expected = (0.75_f64 * 1.002 + 0.25 * 1.008).ln() / 1.01_f64.ln();
        assert!(
            (nic.elasticity - expected).abs() < 1e-12,
            "{}",
            nic.elasticity
        );
        assert!(
            ranked.bound_by.starts_with("bound by the NICs (0.35)"),
            "{}",
            ranked.bound_by
        );
        assert!(ranked.not_used.contains(&"NVLink bandwidth".to_owned()));
    }

    #[test]
    fn what_one_job_loses_by_the_gain_of_another_is_shown() {
        let ranked = ranked_jobs();
        let chat = &ranked.jobs[1];
        assert!(
            chat.find("tensor_flops")
                .is_some_and(|found| found.elasticity < -1.9)
        );
        assert!(
            chat.bound_by.starts_with("bound by the KV store"),
            "{}",
            chat.bound_by
        );
        // A larger batch is the other job's; this one feels it by as much more as that one has.
        let batch = chat.find("batch").map(|found| found.elasticity);
        assert!(
            (batch.expect("it feels it") - (10.0_f64 / 10.5).ln() / 1.02_f64.ln()).abs() < 1e-12
        );
        assert!(
            ranked.jobs[0].not_used.is_empty()
                || !ranked.jobs[0]
                    .not_used
                    .contains(&"a larger batch".to_owned())
        );
        let table = ranked.render(&Style::default());
        assert!(
            table.contains("-1.9") && table.contains("large") && table.contains("all jobs"),
            "{table}"
        );
        let svg = ranked.picture().svg();
        assert!(svg.contains("\u{2212}1.9") && svg.contains("chat"), "{svg}");
    }
}
