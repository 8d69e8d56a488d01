//! `run` and `check` of scenarios with several jobs.

use crate::args::{Format, RunArgs};
use crate::failure::Failure;
use crate::files;
use crate::input::{self, Input};
use crate::run;
use crate::terminal;
use clap::ColorChoice;
use rackflow_plan::Plan;
use rackflow_report::{JobInput, JobsReport, Style, plot, summarize_jobs};
use rackflow_scenario::Job;
use rackflow_simulator::{JobRecord, simulate_jobs};
use std::path::Path;
use std::time::Instant;

/// Simulates the jobs beside each other, and each alone on its seats.
pub fn run(args: &RunArgs, input: &Input, color: ColorChoice) -> Result<(), Failure> {
    let jobs = input::resolve_jobs(input, args.seed, run::fidelity(args))?;
    let plans = plans(&jobs)?;
    let report = simulate(input, &jobs, &plans)?;
    if let Some(folder) = &args.output {
        write(folder, &report)?;
    }
    files::print(&match args.format {
        Format::Table => report.to_text(&terminal::style(color)),
        Format::Json => report.to_json(),
    })
}

/// Says whether the jobs could be run.
pub fn check(input: &Input) -> Result<String, Failure> {
    let jobs = input::resolve_jobs(input, None, None)?;
    let plans = plans(&jobs)?;
    let each: Vec<String> = jobs
        .iter()
        .zip(&plans)
        .map(|(job, plan)| format!("{}: {}", job.name, run::in_short(plan)))
        .collect();
    Ok(each.join("; "))
}

fn plans(jobs: &[Job]) -> Result<Vec<Plan>, Failure> {
    jobs.iter()
        .map(|job| {
            let setup = &job.setup;
            let plan =
                rackflow_plan::compile(setup).and_then(|plan| plan.check_memory().map(|()| plan));
            plan.map_err(|error| Failure::Input(job.written.refusal(setup, &error).to_string()))
        })
        .collect()
}

#[allow(
    clippy::disallowed_methods,
    reason = "the command line is where the wall clock is read"
)]
fn simulate(input: &Input, jobs: &[Job], plans: &[Plan]) -> Result<JobsReport, Failure> {
    let started = Instant::now();
    let together = simulate_jobs(plans);
    let alone: Vec<JobRecord> = plans
        .iter()
        .flat_map(|plan| simulate_jobs(std::slice::from_ref(plan)))
        .collect();
    let wall_s = started.elapsed().as_secs_f64();
    let inputs: Vec<JobInput<'_>> = jobs
        .iter()
        .zip(together.iter().zip(&alone))
        .map(|(job, (together, alone))| JobInput {
            name: job.name.clone(),
            placement: job.placement,
            setup: &job.setup,
            together,
            alone,
        })
        .collect();
    summarize_jobs(&input::stem(&input.source), &inputs, wall_s).map_err(|error| {
        Failure::run(format_args!(
            "the simulation contradicts itself, which is a defect of Rackflow: {error}"
        ))
    })
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
            (
                format!("waterfall-{}.svg", index + 1),
                plot::waterfall(&job.report).svg(),
            )
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
