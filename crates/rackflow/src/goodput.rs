//! `plan` of a serving scenario: which use of its GPUs bears the highest rate.

use crate::args::{Format, PlanArgs};
use crate::failure::Failure;
use crate::input::{self, Input};
use crate::{files, serve, terminal};
use clap::ColorChoice;
use rackflow_plan::serving::{Candidate, FleetPlan, candidates, compile_fleet};
use rackflow_report::{Impossible, ServingPlan, Tried, summarize_serving};
use rackflow_simulator::serving::{NoSink, highest_rate};
use rayon::prelude::*;
use std::path::Path;

/// The rate is known to within this.
const PRECISION: f64 = 0.02;

/// What the search made of one way.
enum Outcome {
    Tried(Tried),
    Impossible(Impossible),
}

/// Searches each way's highest rate.
pub fn run(args: &PlanArgs, input: &Input, color: ColorChoice) -> Result<(), Failure> {
    if !args.precision.is_empty() {
        return Err(Failure::input(
            "--precision belongs to training scenarios, and this one serves\n  hint: change `precision` in the scenario",
        ));
    }
    let plan = plan(input, args.attainment)?;
    if let Some(folder) = &args.output {
        let picture = plan.picture();
        files::write_folder(
            folder,
            &[
                ("plan.json", plan.to_json().as_bytes()),
                ("pareto.svg", picture.svg().as_bytes()),
                ("pareto.png", &picture.png()),
            ],
        )?;
    }
    files::print(&match args.format {
        Format::Table => plan.render(&terminal::style(color)),
        Format::Json => plan.to_json(),
    })
}

/// The highest rate of each way to use the GPUs at which a share of requests is inside the objective.
pub fn plan(input: &Input, attainment: f64) -> Result<ServingPlan, Failure> {
    if !(0.0..=1.0).contains(&attainment) {
        return Err(Failure::input(format_args!(
            "--attainment is {attainment}; it must be between 0 and 1"
        )));
    }
    let resolved = input::resolve_fleet(input, None)?;
    let slo = resolved.setup.slo;
    if slo.ttft.is_none() && slo.tpot.is_none() && slo.e2e.is_none() {
        return Err(Failure::input(
            "the scenario has no `slo`, so that any rate is inside it\n  hint: slo: { ttft: 1 s, tpot: 50 ms }",
        ));
    }
    let open = resolved
        .setup
        .requests
        .arrivals
        .is_none_or(|arrivals| arrivals.rate().is_some());
    if !open {
        return Err(Failure::input(
            "the rate of a closed loop or a burst cannot be searched\n  hint: arrivals: { poisson: { rate: 2 requests/s } }",
        ));
    }
    let trace = serve::trace_path(&resolved);
    let name = resolved.setup.name.clone();
    // The scenario's own way must work; its neighbours may not.
    let ways = candidates(&resolved.setup);
    serve::compile(resolved)?;
    let outcomes: Vec<Outcome> = ways
        .par_iter()
        .map(|way| search(way, trace.as_deref(), attainment))
        .collect::<Result<_, _>>()?;
    let mut tried = Vec::new();
    let mut impossible = Vec::new();
    for outcome in outcomes {
        match outcome {
            Outcome::Tried(way) => tried.push(way),
            Outcome::Impossible(way) => impossible.push(way),
        }
    }
    Ok(ServingPlan::of(&name, attainment, &tried, impossible))
}

fn search(way: &Candidate, trace: Option<&Path>, attainment: f64) -> Result<Outcome, Failure> {
    let plan = match compile_fleet(way.setup.clone()) {
        Ok(plan) => plan,
        Err(error) => {
            return Ok(Outcome::Impossible(Impossible {
                name: way.name.clone(),
                reason: error.to_string(),
            }));
        }
    };
    let own = way.setup.requests.rate_scale;
    let trials = highest_rate(PRECISION, |scale| {
        let mut faster: FleetPlan = plan.clone();
        faster.setup.requests.rate_scale = own * scale;
        let record = serve::record(&faster, trace, &mut NoSink)?;
        let report = summarize_serving(&faster, &record, 0.0).map_err(Failure::run)?;
        // Who is turned away is not inside.
        let asked = record.measured + record.refused;
        let inside = record.inside_slo as f64 / asked.max(1) as f64;
        let offered = faster
            .setup
            .requests
            .arrivals
            .and_then(|arrivals| arrivals.rate());
        let rate = offered.map_or(report.serving.requests_per_s, |rate| {
            rate.per_sec() * own * scale
        });
        Ok::<_, Failure>((inside >= attainment, (rate, report)))
    })?;
    Ok(Outcome::Tried(Tried {
        name: way.name.clone(),
        runs: trials
            .into_iter()
            .map(|trial| (trial.result.0, trial.passed, trial.result.1))
            .collect(),
    }))
}
