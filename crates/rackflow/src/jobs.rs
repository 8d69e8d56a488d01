//! `run` and `check` of scenarios with several jobs.

use crate::args::{Format, RunArgs, TraceArgs};
use crate::failure::Failure;
use crate::files;
use crate::input::{self, Input};
use crate::run;
use crate::serve;
use crate::terminal;
use crate::trace;
use clap::ColorChoice;
use rackflow_plan::serving::{FleetPlan, FleetSetup, compile_fleet};
use rackflow_plan::{Plan, Setup};
use rackflow_report::{JobInput, JobRun, JobsReport, Style, WorkReport, plot, summarize_jobs};
use rackflow_scenario::{Job, JobWork};
use rackflow_simulator::serving::{Rows, ServeError};
use rackflow_simulator::{
    JobOutcome, JobTrace, JobWish, simulate_mixed, simulate_mixed_for, simulate_mixed_traced,
};
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Simulates the jobs beside each other, and each alone on its seats.
pub fn run(
    args: &RunArgs,
    traced: &TraceArgs,
    input: &Input,
    color: ColorChoice,
) -> Result<(), Failure> {
    let jobs = input::resolve_jobs(input, args.seed, run::fidelity(args))?;
    let plans = plans(input, &jobs)?;
    let watched = match &traced.trace {
        Some(path) => Some(watched(&jobs, &plans, path, traced)?),
        None => None,
    };
    let (report, seen) = simulate(input, &jobs, &plans, watched.as_ref())?;
    if let Some((path, seen)) = traced.trace.as_ref().zip(seen) {
        trace::write_job(&seen, path)?;
    }
    if let Some(folder) = &args.output {
        write(folder, &report)?;
    }
    files::print(&match args.format {
        Format::Table => report.to_text(&terminal::style(color)),
        Format::Json => report.to_json(),
    })
}

/// The job that the trace shows beside the others, and what of it.
fn watched(
    jobs: &[Job],
    plans: &[Compiled],
    path: &Path,
    args: &TraceArgs,
) -> Result<(usize, JobWish), Failure> {
    trace::check_name(path)?;
    let names: Vec<&str> = jobs.iter().map(|job| job.name.as_str()).collect();
    let wanted = args.trace_job.as_deref();
    let chosen = match (wanted, names.as_slice()) {
        (None, [_]) => Some(0),
        (wanted, names) => names.iter().position(|name| Some(*name) == wanted),
    };
    let Some(job) = chosen else {
        let wrong = wanted.map_or_else(
            || "a trace shows one of the jobs".to_owned(),
            |name| format!("there is no job {name:?} to trace"),
        );
        return Err(Failure::input(format_args!(
            "{wrong}\n  hint: --trace-job NAME, of {}",
            names.join(", ")
        )));
    };
    let wish = match &plans[job] {
        Compiled::Training(plan) => {
            trace::refuse_window(args)?;
            JobWish::Ranks(trace::chosen(plan, &args.trace_ranks)?)
        }
        Compiled::Serving(plan, _) => JobWish::Service(trace::wish(plan, path, args)?),
    };
    Ok((job, wish))
}

/// Says whether the jobs could be run.
pub fn check(input: &Input) -> Result<String, Failure> {
    let jobs = input::resolve_jobs(input, None, None)?;
    let plans = plans(input, &jobs)?;
    let each: Vec<String> = jobs
        .iter()
        .zip(&plans)
        .map(|(job, plan)| match plan {
            Compiled::Training(plan) => format!("{}: {}", job.name, run::in_short(plan)),
            Compiled::Serving(plan, _) => format!("{}: {}", job.name, serve::in_short(plan)),
        })
        .collect();
    Ok(each.join("; "))
}

/// A job whose work is compiled.
pub enum Compiled {
    Training(Box<Plan>),
    Serving(Box<FleetPlan>, Option<PathBuf>),
}

/// Compiles the work of every job.
pub fn plans(input: &Input, jobs: &[Job]) -> Result<Vec<Compiled>, Failure> {
    jobs.iter().map(|job| compiled(input, job)).collect()
}

fn compiled(input: &Input, job: &Job) -> Result<Compiled, Failure> {
    match &job.work {
        JobWork::Training(setup) => {
            let plan =
                rackflow_plan::compile(setup).and_then(|plan| plan.check_memory().map(|()| plan));
            plan.map(|plan| Compiled::Training(Box::new(plan)))
                .map_err(|error| Failure::Input(job.written.refusal(setup, &error).to_string()))
        }
        JobWork::Serving(setup) => {
            let trace = serve::trace_beside(setup, &input.folder);
            if let Some(path) = &trace {
                drop(serve::rows(path)?);
            }
            let plan = compile_fleet((**setup).clone());
            plan.map(|plan| Compiled::Serving(Box::new(plan), trace))
                .map_err(|error| {
                    Failure::Input(job.written.fleet_refusal(setup, &error).to_string())
                })
        }
    }
}

/// Simulates jobs beside each other.
fn beside(plans: &[&Compiled]) -> Result<Vec<JobOutcome>, Failure> {
    with_traces(plans, simulate_mixed)
}

/// The same until so many steps of each job that trains count.
pub fn beside_for(plans: &[&Compiled], counted: usize) -> Result<Vec<JobOutcome>, Failure> {
    with_traces(plans, |jobs| simulate_mixed_for(jobs, counted))
}

/// Simulates jobs with the traces that they name.
fn with_traces<T>(
    plans: &[&Compiled],
    simulate: impl FnOnce(&[rackflow_simulator::Job<'_>]) -> Result<T, ServeError>,
) -> Result<T, Failure> {
    let traces: Vec<Option<Box<dyn Fn() -> Rows<'static>>>> = plans
        .iter()
        .map(|plan| match plan {
            Compiled::Serving(_, Some(path)) => {
                let path = path.clone();
                // It could be read when the plans were made.
                let rows =
                    move || serve::rows(&path).unwrap_or_else(|_| Box::new(std::iter::empty()));
                Some(Box::new(rows) as Box<dyn Fn() -> Rows<'static>>)
            }
            _ => None,
        })
        .collect();
    let jobs: Vec<rackflow_simulator::Job<'_>> = plans
        .iter()
        .zip(&traces)
        .map(|(plan, trace)| match plan {
            Compiled::Training(plan) => rackflow_simulator::Job::Training(plan),
            Compiled::Serving(plan, _) => rackflow_simulator::Job::Serving(plan, trace.as_deref()),
        })
        .collect();
    simulate(&jobs).map_err(Failure::input)
}

#[allow(
    clippy::disallowed_methods,
    reason = "the command line is where the wall clock is read"
)]
fn simulate(
    input: &Input,
    jobs: &[Job],
    plans: &[Compiled],
    watched: Option<&(usize, JobWish)>,
) -> Result<(JobsReport, Option<JobTrace>), Failure> {
    let started = Instant::now();
    let all: Vec<&Compiled> = plans.iter().collect();
    let (together, seen) = match watched {
        Some((job, wish)) => {
            let seen = with_traces(&all, |jobs| simulate_mixed_traced(jobs, *job, wish))?;
            (seen.0, Some(seen.1))
        }
        None => (beside(&all)?, None),
    };
    let mut alone = Vec::new();
    for plan in plans {
        alone.extend(beside(&[plan])?);
    }
    let wall_s = started.elapsed().as_secs_f64();
    let inputs: Vec<JobInput<'_>> = jobs
        .iter()
        .zip(plans)
        .zip(together.iter().zip(&alone))
        .map(|((job, plan), outcomes)| JobInput {
            name: job.name.clone(),
            placement: job.placement,
            work: match (plan, outcomes) {
                (
                    Compiled::Training(plan),
                    (JobOutcome::Training(together), JobOutcome::Training(alone)),
                ) => JobRun::Training {
                    setup: &plan.setup,
                    together,
                    alone,
                },
                (
                    Compiled::Serving(plan, _),
                    (JobOutcome::Serving(together), JobOutcome::Serving(alone)),
                ) => JobRun::Serving {
                    plan,
                    together,
                    alone,
                },
                _ => unreachable!("what trains has trained, and what serves has served"),
            },
        })
        .collect();
    let mut report =
        summarize_jobs(&input::stem(&input.source), &inputs, wall_s).map_err(|error| {
            Failure::run(format_args!(
                "the simulation contradicts itself, which is a defect of Rackflow: {error}"
            ))
        })?;
    let whole: Option<Vec<Compiled>> = plans.iter().map(Compiled::undisturbed).collect();
    if report.is_disturbed()
        && let Some(whole) = whole
    {
        let times = beside(&whole.iter().collect::<Vec<_>>())?;
        report.compare_undisturbed(&times.iter().map(seconds).collect::<Vec<_>>());
    }
    Ok((report, seen))
}

/// Of a step, or of a request from end to end, in the mean.
fn seconds(outcome: &JobOutcome) -> f64 {
    match outcome {
        JobOutcome::Training(job) => job.step_time.as_secs_f64(),
        JobOutcome::Serving(record) => record.e2e.mean_s(),
    }
}

impl Compiled {
    /// Accelerators that it has.
    pub fn gpus(&self) -> u32 {
        match self {
            Self::Training(plan) => plan.setup.cluster.gpus,
            Self::Serving(plan, _) => plan.setup.clusters[0].gpus,
        }
    }

    /// The same job where everything works.
    fn undisturbed(&self) -> Option<Self> {
        match self {
            Self::Training(plan) => {
                let setup = Setup {
                    faults: Vec::new(),
                    stragglers: Vec::new(),
                    ..plan.setup.clone()
                };
                let plan = rackflow_plan::compile(&setup).ok()?;
                Some(Self::Training(Box::new(plan)))
            }
            Self::Serving(plan, trace) => {
                let setup = FleetSetup {
                    faults: Vec::new(),
                    stragglers: Vec::new(),
                    ..plan.setup.clone()
                };
                let plan = compile_fleet(setup).ok()?;
                Some(Self::Serving(Box::new(plan), trace.clone()))
            }
        }
    }
}

/// Writes the report in every form, with a picture for each job.
fn write(folder: &Path, report: &JobsReport) -> Result<(), Failure> {
    let text = report.to_text(&Style::default());
    let json = report.to_json();
    let pictures: Vec<(String, String)> = report
        .jobs
        .iter()
        .enumerate()
        .map(|(index, job)| {
            let picture = match &job.work {
                WorkReport::Training(work) => plot::waterfall(&work.report),
                WorkReport::Serving(work) => plot::serving_waterfall(&work.report),
            };
            (format!("waterfall-{}.svg", index + 1), picture.svg())
        })
        .collect();
    let mut all: Vec<(&str, &[u8])> = vec![
        ("report.txt", text.as_bytes()),
        ("report.json", json.as_bytes()),
    ];
    all.extend(
        pictures
            .iter()
            .map(|(name, svg)| (name.as_str(), svg.as_bytes())),
    );
    files::write_folder(folder, &all)
}
