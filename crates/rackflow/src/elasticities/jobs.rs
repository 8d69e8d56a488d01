//! Of several jobs that share a cluster: all of them simulated beside each other again.

use super::{basis, cannot, show};
use crate::args::RunArgs;
use crate::failure::Failure;
use crate::input::{self, Input};
use crate::jobs::{self, Compiled};
use crate::run;
use clap::ColorChoice;
use rackflow_plan::serving::compile_fleet;
use rackflow_plan::{Resource, SERVING_STEP, STEP};
use rackflow_report::{JobBefore, JobPace, JobsAnswer, JobsElasticities};
use rackflow_simulator::JobOutcome;
use rayon::prelude::*;

/// Steps of each job that count, beside others. Jobs whose steps are not equally long meet in another
/// way at every step, and the mean of a few would answer to a resource by how they happen to meet.
const COUNTED: usize = 12;

/// Simulates the jobs once for each resource, of which the whole cluster has a little more, and ranks
/// what each brings to each job.
pub fn run(args: &RunArgs, input: &Input, color: ColorChoice) -> Result<(), Failure> {
    let named = input::resolve_jobs(input, args.seed, run::fidelity(args))?;
    let plans = jobs::plans(input, &named)?;
    let together = paces(&plans.iter().collect::<Vec<_>>())?;
    let step = step(&plans, &together)?;
    let before: Vec<JobBefore> = named
        .iter()
        .zip(&plans)
        .zip(together)
        .map(|((job, plan), pace)| JobBefore {
            name: job.name.clone(),
            gpus: plan.gpus(),
            pace,
        })
        .collect();
    let answers: Vec<JobsAnswer> = Resource::OF_JOBS
        .into_par_iter()
        .filter_map(|resource| answer(resource, &plans, step).transpose())
        .collect::<Result<_, _>>()?;
    let ranked = JobsElasticities::of(&input::stem(&input.source), &before, &answers);
    show(
        args,
        color,
        |style| ranked.render(style),
        &ranked.to_json(),
        &ranked.picture(),
    )
}

/// By how much resources grow: where jobs hold each other up, as much as those of a service, since
/// how they meet answers in jumps too.
fn step(plans: &[Compiled], together: &[JobPace]) -> Result<f64, Failure> {
    let serves = |plan: &Compiled| matches!(plan, Compiled::Serving(..));
    if plans.iter().any(serves) {
        return Ok(SERVING_STEP);
    }
    for (plan, pace) in plans.iter().zip(together) {
        if paces(&[plan])? != [*pace] {
            return Ok(SERVING_STEP);
        }
    }
    Ok(STEP)
}

/// How fast each job is beside the others.
fn paces(plans: &[&Compiled]) -> Result<Vec<JobPace>, Failure> {
    let outcomes = jobs::beside_for(plans, COUNTED)?;
    let paces = plans.iter().zip(&outcomes).map(|pair| match pair {
        (Compiled::Training(plan), JobOutcome::Training(record)) => {
            JobPace::of_training(&plan.setup, record)
        }
        (Compiled::Serving(plan, _), JobOutcome::Serving(record)) => {
            JobPace::of_serving(basis(&plan.setup), record)
        }
        _ => unreachable!("what trains has trained, and what serves has served"),
    });
    Ok(paces.collect())
}

/// The jobs where all that have any of `resource` have a little more; nothing where none has.
fn answer(
    resource: Resource,
    plans: &[Compiled],
    step: f64,
) -> Result<Option<JobsAnswer>, Failure> {
    let more = plans
        .iter()
        .map(|plan| with_more(resource, plan, step))
        .collect::<Result<Vec<_>, _>>()?;
    if more.iter().all(Option::is_none) {
        return Ok(None);
    }
    let beside: Vec<&Compiled> = plans
        .iter()
        .zip(&more)
        .map(|(plan, more)| more.as_ref().map_or(plan, |(more, _)| more))
        .collect();
    Ok(Some(JobsAnswer {
        resource,
        paces: paces(&beside)?,
        factors: more
            .iter()
            .map(|more| more.as_ref().map(|(_, factor)| *factor))
            .collect(),
    }))
}

/// A job with a little more of `resource`, and how many times as much that is.
fn with_more(
    resource: Resource,
    plan: &Compiled,
    step: f64,
) -> Result<Option<(Compiled, f64)>, Failure> {
    match plan {
        Compiled::Training(plan) => {
            let Some((more, factor)) = resource.more_by(&plan.setup, step) else {
                return Ok(None);
            };
            let plan =
                rackflow_plan::compile(&more).map_err(|error| cannot("plan", resource, &error))?;
            Ok(Some((Compiled::Training(Box::new(plan)), factor)))
        }
        Compiled::Serving(plan, trace) => {
            let Some((more, factor)) = resource.more_of_fleet_by(plan, step) else {
                return Ok(None);
            };
            let plan = compile_fleet(more).map_err(|error| cannot("fleet", resource, &error))?;
            Ok(Some((
                Compiled::Serving(Box::new(plan), trace.clone()),
                factor,
            )))
        }
    }
}
