//! Several jobs on one cluster: what each delivers, and what the others cost it.

use crate::format::{number, seconds};
use crate::paint::{Ink, Style};
use crate::report::Report;
use crate::summarize::{Options, ReportError, summarize};
use crate::text::render_text;
use rackflow_plan::Setup;
use rackflow_simulator::JobRecord;
use rackflow_topology::ClusterMap;
use schemars::JsonSchema;
use serde::Serialize;
use std::collections::BTreeSet;

/// What happened to one job, for [`summarize_jobs`].
#[derive(Debug, Clone)]
pub struct JobInput<'r> {
    /// What the scenario calls it.
    pub name: String,
    /// How its seats were chosen.
    pub placement: &'static str,
    /// What it ran.
    pub setup: &'r Setup,
    /// Beside the others.
    pub together: &'r JobRecord,
    /// On the same seats with nobody else there.
    pub alone: &'r JobRecord,
}

/// Several jobs beside each other.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub struct JobsReport {
    /// Name of the scenario.
    pub scenario: String,
    /// Accelerators of the cluster.
    pub gpus: u32,
    /// The jobs, as they are written.
    pub jobs: Vec<JobReport>,
    /// Wall time of the simulation, in seconds.
    pub wall_s: f64,
}

/// One job beside others.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub struct JobReport {
    /// What the scenario calls it.
    pub name: String,
    /// Accelerators that it has.
    pub gpus: u32,
    /// `packed`, `rail_aligned`, `scattered` or `explicit`.
    pub placement: &'static str,
    /// Nodes that it sits on.
    pub nodes: u32,
    /// Leaf switches that its NICs are on.
    pub leaves: u32,
    /// Mean step time beside the others, in seconds.
    pub step_time_s: f64,
    /// Shortest and longest step beside the others, in seconds.
    pub step_time_range_s: [f64; 2],
    /// Steps that count.
    pub steps: u64,
    /// Step time on the same accelerators with nobody else there, in seconds.
    pub step_time_alone_s: f64,
    /// Step time beside the others over that alone: 1 is undisturbed.
    pub slowdown: f64,
    /// The step nearest the mean, as a report of its own. Its racks are counted as if the job's
    /// accelerators stood side by side.
    pub report: Report,
}

/// Turns the records of jobs into their report. `wall_s` is how long the simulation took.
///
/// # Errors
/// When a record contradicts itself.
///
/// # Panics
/// When a job's cluster cannot be built, of which a record is proof.
pub fn summarize_jobs(
    scenario: &str,
    jobs: &[JobInput<'_>],
    wall_s: f64,
) -> Result<JobsReport, ReportError> {
    let mut reports = Vec::new();
    for job in jobs {
        let options = Options {
            wall_s,
            ..Options::default()
        };
        let report = summarize(&job.together.record, options)?;
        let host = job.setup.host();
        let map = ClusterMap::new(host).expect("the job was simulated on this cluster");
        let ranks = job.setup.cluster.gpus;
        let places = || (0..ranks).map(|rank| map.place(job.setup.gpu_of(rank)));
        let distinct = |key: &dyn Fn(rackflow_topology::Place) -> u32| {
            places().map(key).collect::<BTreeSet<u32>>().len() as u32
        };
        let together = job.together.step_time.as_secs_f64();
        let alone = job.alone.step_time.as_secs_f64();
        reports.push(JobReport {
            name: job.name.clone(),
            gpus: ranks,
            placement: job.placement,
            nodes: distinct(&|place| place.node),
            leaves: distinct(&|place| place.leaf),
            step_time_s: together,
            step_time_range_s: job.together.step_time_range.map(|time| time.as_secs_f64()),
            steps: job.together.steps,
            step_time_alone_s: alone,
            slowdown: together / alone,
            report,
        });
    }
    Ok(JobsReport {
        scenario: scenario.to_owned(),
        gpus: jobs.first().map_or(0, |job| job.setup.host().gpus),
        jobs: reports,
        wall_s,
    })
}

impl JobsReport {
    /// The report as one JSON document, indented, with a newline at the end.
    pub fn to_json(&self) -> String {
        crate::json::pretty(self)
    }

    /// The summary, then the report of every job.
    pub fn to_text(&self, style: &Style) -> String {
        let mut out = self.summary(style);
        for job in &self.jobs {
            let rule = "═".repeat(style.width.clamp(80, 100));
            out.push_str(&format!("\n{}\n", style.paint(Ink::Faint, &rule)));
            out.push_str(&render_text(&job.report, style));
        }
        out
    }

    fn summary(&self, style: &Style) -> String {
        let used: u32 = self.jobs.iter().map(|job| job.gpus).sum();
        let title = format!(
            "{} jobs on {} of {} GPUs",
            self.jobs.len(),
            number(used.into(), 0),
            number(self.gpus.into(), 0)
        );
        let mut out = format!("{}\n\n", style.paint(Ink::Strong, &title));
        let widest = self
            .jobs
            .iter()
            .map(|job| job.name.chars().count())
            .max()
            .unwrap_or(0)
            .max(4);
        let head = format!(
            "  {:<widest$}  {:>7}  {:<12}  {:>6}  {:>6}  {:>10}  {:>10}  {:>10}",
            "job", "GPUs", "placement", "nodes", "leaves", "alone", "together", "takes"
        );
        out.push_str(&format!("{}\n", style.paint(Ink::Faint, &head)));
        for job in &self.jobs {
            out.push_str(&format!(
                "  {:<widest$}  {:>7}  {:<12}  {:>6}  {:>6}  {:>10}  {:>10}  {:>10}\n",
                job.name,
                number(job.gpus.into(), 0),
                job.placement,
                job.nodes,
                job.leaves,
                seconds(job.step_time_alone_s),
                seconds(job.step_time_s),
                taken(job.slowdown),
            ));
        }
        let worst = self
            .jobs
            .iter()
            .max_by(|a, b| a.slowdown.total_cmp(&b.slowdown));
        let finding = match worst {
            Some(job) if job.slowdown > 1.005 => format!(
                "{} suffers most: the others, whose traffic meets its own above the leaves, cost it {} % of its steps.",
                job.name,
                number((1.0 - 1.0 / job.slowdown) * 100.0, 1)
            ),
            _ => "The jobs do not slow each other.".to_owned(),
        };
        out.push_str(&format!("\n  {finding}\n"));
        out
    }
}

/// How much longer a step takes.
fn taken(slowdown: f64) -> String {
    if (slowdown - 1.0).abs() < 0.0005 {
        "as long".into()
    } else {
        format!("{:+.1} %", (slowdown - 1.0) * 100.0)
    }
}
