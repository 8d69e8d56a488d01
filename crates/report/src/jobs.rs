//! Several jobs on one cluster: what each delivers, and what the others cost it.

use crate::disturbed::Disturbed;
use crate::format::{number, seconds};
use crate::paint::{Ink, Style};
use crate::render_serving_text;
use crate::report::Report;
use crate::serving::{ServingReport, summarize_serving};
use crate::summarize::{Options, ReportError, summarize};
use crate::text::render_text;
use rackflow_plan::Setup;
use rackflow_plan::serving::FleetPlan;
use rackflow_simulator::JobRecord;
use rackflow_simulator::serving::ServingRecord;
use rackflow_topology::{Cluster, ClusterMap, Place};
use rackflow_units::counted;
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
    /// What it did.
    pub work: JobRun<'r>,
}

/// What a job did, beside the others and on the same seats with nobody else there.
#[derive(Debug, Clone, Copy)]
pub enum JobRun<'r> {
    /// It trained.
    Training {
        /// What it ran.
        setup: &'r Setup,
        /// Beside the others.
        together: &'r JobRecord,
        /// With nobody else there.
        alone: &'r JobRecord,
    },
    /// It served.
    Serving {
        /// What it ran.
        plan: &'r FleetPlan,
        /// Beside the others.
        together: &'r ServingRecord,
        /// With nobody else there.
        alone: &'r ServingRecord,
    },
}

impl JobRun<'_> {
    fn host(&self) -> &Cluster {
        match self {
            Self::Training { setup, .. } => setup.host(),
            Self::Serving { plan, .. } => {
                let host = plan.setup.host();
                host.expect("a job sits in one cluster")
            }
        }
    }

    fn gpus(&self) -> u32 {
        match self {
            Self::Training { setup, .. } => setup.cluster.gpus,
            Self::Serving { plan, .. } => plan.setup.clusters[0].gpus,
        }
    }

    fn gpu_of(&self, gpu: u32) -> u32 {
        match self {
            Self::Training { setup, .. } => setup.gpu_of(gpu),
            Self::Serving { plan, .. } => plan.setup.gpu_of(gpu),
        }
    }
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
    /// Of a step, or of a request from end to end, beside the others over that alone: 1 is
    /// undisturbed.
    pub slowdown: f64,
    /// What it did.
    #[serde(flatten)]
    pub work: WorkReport,
}

/// What a job did, under `training` or `serving`.
#[derive(Debug, Clone, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum WorkReport {
    /// It trained.
    Training(Box<TrainingBeside>),
    /// It served.
    Serving(Box<ServingBeside>),
}

/// Steps of one job beside others.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub struct TrainingBeside {
    /// Mean step time beside the others, in seconds.
    pub step_time_s: f64,
    /// Shortest and longest step beside the others, in seconds.
    pub step_time_range_s: [f64; 2],
    /// Steps that count.
    pub steps: u64,
    /// Step time on the same accelerators with nobody else there, in seconds.
    pub step_time_alone_s: f64,
    /// The step nearest the mean, as a report of its own. Its racks are counted as if the job's
    /// accelerators stood side by side.
    pub report: Report,
}

/// Requests of one job beside others.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub struct ServingBeside {
    /// Mean latency of a request from end to end beside the others, in seconds.
    pub e2e_s: f64,
    /// The same with nobody else there.
    pub e2e_alone_s: f64,
    /// Mean time to the first token beside the others, in seconds.
    pub ttft_s: f64,
    /// The same with nobody else there.
    pub ttft_alone_s: f64,
    /// Mean time for which a request waits for its cache to reach the decode replica, beside the
    /// others, in seconds; 0 where none moves.
    pub kv_wait_s: f64,
    /// The same with nobody else there.
    pub kv_wait_alone_s: f64,
    /// The run beside the others, as a report of its own.
    pub report: ServingReport,
}

impl ServingBeside {
    fn new(
        plan: &FleetPlan,
        together: &ServingRecord,
        alone: &ServingRecord,
        wall_s: f64,
    ) -> Result<Self, ReportError> {
        Ok(Self {
            e2e_s: together.e2e.mean_s(),
            e2e_alone_s: alone.e2e.mean_s(),
            ttft_s: together.ttft.mean_s(),
            ttft_alone_s: alone.ttft.mean_s(),
            kv_wait_s: together.kv.exposed.mean_s(),
            kv_wait_alone_s: alone.kv.exposed.mean_s(),
            report: summarize_serving(plan, together, wall_s)?,
        })
    }
}

impl WorkReport {
    /// Of one step or one request, in seconds: alone, and beside the others.
    fn times(&self) -> [f64; 2] {
        match self {
            Self::Training(work) => [work.step_time_alone_s, work.step_time_s],
            Self::Serving(work) => [work.e2e_alone_s, work.e2e_s],
        }
    }
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
        let host = job.work.host();
        let map = ClusterMap::new(host).expect("the job was simulated on this cluster");
        let gpus = job.work.gpus();
        let distinct = |key: &dyn Fn(Place) -> u32| {
            let places = (0..gpus).map(|gpu| map.place(job.work.gpu_of(gpu)));
            places.map(key).collect::<BTreeSet<u32>>().len() as u32
        };
        let work = match job.work {
            JobRun::Training {
                together, alone, ..
            } => {
                let options = Options {
                    wall_s,
                    ..Options::default()
                };
                WorkReport::Training(Box::new(TrainingBeside {
                    step_time_s: together.step_time.as_secs_f64(),
                    step_time_range_s: together.step_time_range.map(|time| time.as_secs_f64()),
                    steps: together.steps,
                    step_time_alone_s: alone.step_time.as_secs_f64(),
                    report: summarize(&together.record, options)?,
                }))
            }
            JobRun::Serving {
                plan,
                together,
                alone,
            } => WorkReport::Serving(Box::new(ServingBeside::new(plan, together, alone, wall_s)?)),
        };
        let [alone, together] = work.times();
        reports.push(JobReport {
            name: job.name.clone(),
            gpus,
            placement: job.placement,
            nodes: distinct(&|place| place.node),
            leaves: distinct(&|place| place.leaf),
            slowdown: together / alone,
            work,
        });
    }
    Ok(JobsReport {
        scenario: scenario.to_owned(),
        gpus: jobs.first().map_or(0, |job| job.work.host().gpus),
        jobs: reports,
        wall_s,
    })
}

impl WorkReport {
    fn disturbed(&self) -> Option<&Disturbed> {
        match self {
            Self::Training(work) => work.report.disturbed.as_ref(),
            Self::Serving(work) => work.report.disturbed.as_ref(),
        }
    }
}

impl JobsReport {
    /// Whether GPUs are slow or links faulty.
    pub fn is_disturbed(&self) -> bool {
        self.jobs.iter().any(|job| job.work.disturbed().is_some())
    }

    /// Sets beside each job what its step or its request takes where everything works and the same jobs are
    /// there, in seconds, in the order of the jobs.
    pub fn compare_undisturbed(&mut self, times: &[f64]) {
        for (job, whole) in self.jobs.iter_mut().zip(times) {
            let [_, together] = job.work.times();
            let disturbed = match &mut job.work {
                WorkReport::Training(work) => &mut work.report.disturbed,
                WorkReport::Serving(work) => &mut work.report.disturbed,
            };
            if let Some(disturbed) = disturbed {
                disturbed.time_s = together;
                disturbed.undisturbed_time_s = Some(*whole);
            }
        }
    }

    /// The report as one JSON document, indented, with a newline at the end.
    pub fn to_json(&self) -> String {
        crate::json::pretty(self)
    }

    /// The JSON Schema of [`JobsReport::to_json`].
    pub fn schema() -> serde_json::Value {
        let mut schema = schemars::schema_for!(Self).to_value();
        schema["title"] = "Rackflow report of several jobs".into();
        schema
    }

    /// The summary, then the report of every job.
    pub fn to_text(&self, style: &Style) -> String {
        let mut out = self.summary(style);
        for job in &self.jobs {
            let rule = "═".repeat(style.width.clamp(80, 100));
            out.push_str(&format!("\n{}\n", style.paint(Ink::Faint, &rule)));
            out.push_str(&match &job.work {
                WorkReport::Training(work) => render_text(&work.report, style),
                WorkReport::Serving(work) => render_serving_text(&work.report, style),
            });
        }
        out
    }

    fn summary(&self, style: &Style) -> String {
        let used: u32 = self.jobs.iter().map(|job| job.gpus).sum();
        let title = format!(
            "{} on {} of {}",
            counted(self.jobs.len() as u64, "job"),
            number(used.into(), 0),
            counted(self.gpus, "GPU")
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
            "  {:<widest$}  {:>7}  {:<12}  {:>6}  {:>6}  {:<8}  {:>10}  {:>10}  {:>10}",
            "job", "GPUs", "placement", "nodes", "leaves", "of a", "alone", "together", "takes"
        );
        out.push_str(&format!("{}\n", style.paint(Ink::Faint, &head)));
        for job in &self.jobs {
            let [alone, together] = job.work.times();
            let what = match job.work {
                WorkReport::Training(_) => "step",
                WorkReport::Serving(_) => "request",
            };
            out.push_str(&format!(
                "  {:<widest$}  {:>7}  {:<12}  {:>6}  {:>6}  {what:<8}  {:>10}  {:>10}  {:>10}\n",
                job.name,
                number(job.gpus.into(), 0),
                job.placement,
                job.nodes,
                job.leaves,
                seconds(alone),
                seconds(together),
                taken(job.slowdown),
            ));
        }
        for job in &self.jobs {
            if let WorkReport::Serving(work) = &job.work {
                out.push_str(&format!("\n  {}\n", work.sentence(&job.name)));
            }
        }
        let worst = self
            .jobs
            .iter()
            .max_by(|a, b| a.slowdown.total_cmp(&b.slowdown));
        let finding = match worst {
            Some(job) if job.slowdown > 1.005 => format!(
                "{} suffers most: the others, whose traffic meets its own above the leaves, cost it {} % of its {}.",
                job.name,
                number((1.0 - 1.0 / job.slowdown) * 100.0, 1),
                match job.work {
                    WorkReport::Training(_) => "steps",
                    WorkReport::Serving(_) => "requests' time",
                }
            ),
            _ => "The jobs do not slow each other.".to_owned(),
        };
        out.push_str(&format!("\n  {finding}\n"));
        out
    }
}

impl ServingBeside {
    /// What the others do to a user.
    fn sentence(&self, name: &str) -> String {
        let mut out = format!(
            "{name}: first token after {} alone and {} beside the others",
            seconds(self.ttft_alone_s),
            seconds(self.ttft_s)
        );
        if self.kv_wait_s > 0.0 {
            out.push_str(&format!(
                "; a cache is waited for {} and {}",
                seconds(self.kv_wait_alone_s),
                seconds(self.kv_wait_s)
            ));
        }
        out.push('.');
        out
    }
}

/// How much longer a step or a request takes.
fn taken(slowdown: f64) -> String {
    if (slowdown - 1.0).abs() < 0.0005 {
        "as long".into()
    } else {
        format!("{:+.1} %", (slowdown - 1.0) * 100.0)
    }
}
