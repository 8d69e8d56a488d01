//! `elasticities`: a scenario simulated again with a little more of each resource.

mod jobs;
mod replay;

use crate::args::{Format, RunArgs};
use crate::failure::Failure;
use crate::input::{self, Input};
use crate::{files, run, serve, terminal};
use clap::ColorChoice;
use rackflow_plan::serving::{FleetPlan, FleetSetup, compile_fleet};
use rackflow_plan::{Resource, Setup};
use rackflow_report::plot::Picture;
use rackflow_report::{
    Answer, Basis, Elasticities, ServingAnswer, ServingElasticities, ServingOutcome, Style,
};
use rackflow_simulator::serving::NoSink;
use rackflow_workload::Arrivals;
use rayon::prelude::*;

/// Simulates a scenario once for each resource and ranks what each would bring.
pub fn run(args: &RunArgs, color: ColorChoice) -> Result<(), Failure> {
    let input = input::read(&args.scenario)?;
    if args.requests.is_some() {
        return Err(Failure::input(
            "--requests writes the requests of one run, and elasticities are many\n  \
             hint: `rackflow run` takes it",
        ));
    }
    if input::has_jobs(&input) {
        return jobs::run(args, &input, color);
    }
    if input::replays(&input) {
        return replay::run(args, &input, color);
    }
    if input::serves(&input) {
        return of_service(args, &input, color);
    }
    let resolved = run::resolve(args)?;
    let plan = run::plan(&resolved)?;
    let before = rackflow_simulator::simulate(&plan).step_time;
    let answers: Vec<Answer> = Resource::OF_TRAINING
        .into_par_iter()
        .filter_map(|resource| answer(resource, &resolved.setup, before.as_secs_f64()).transpose())
        .collect::<Result<_, _>>()?;
    let mut ranked = Elasticities::of(&resolved.setup.name, before.as_secs_f64(), &answers);
    if let Some(run) = &resolved.outlook.run {
        let seed = resolved.setup.seed;
        ranked = ranked.in_run(&rackflow_simulator::simulate_run(&plan, before, run, seed));
    }
    show(
        args,
        color,
        |style| ranked.render(style),
        &ranked.to_json(),
        &ranked.picture(),
    )
}

/// Writes what was found.
fn show(
    args: &RunArgs,
    color: ColorChoice,
    table: impl Fn(&Style) -> String,
    json: &str,
    picture: &Picture,
) -> Result<(), Failure> {
    if let Some(folder) = &args.output {
        files::write_folder(
            folder,
            &[
                ("elasticities.txt", table(&Style::default()).as_bytes()),
                ("elasticities.json", json.as_bytes()),
                ("elasticities.svg", picture.svg().as_bytes()),
                ("elasticities.png", &picture.png()),
            ],
        )?;
    }
    match args.format {
        Format::Table => files::print(&table(&terminal::style(color))),
        Format::Json => files::print(json),
    }
}

/// The same of a service, with the same requests every time.
fn of_service(args: &RunArgs, input: &Input, color: ColorChoice) -> Result<(), Failure> {
    let resolved = input::resolve_fleet(input, args.seed)?;
    let trace = serve::trace_path(&resolved);
    let plan = serve::compile(resolved)?;
    let setup = &plan.setup;
    let slo = &setup.slo;
    let limited = slo.ttft.is_some() || slo.tpot.is_some() || slo.e2e.is_some();
    let basis = basis(setup);
    let outcome = |plan: &FleetPlan| {
        let record = serve::record(plan, trace.as_deref(), &mut NoSink)?;
        Ok(ServingOutcome::of(&record, limited))
    };
    let before = outcome(&plan)?;
    let answers: Vec<ServingAnswer> = Resource::OF_SERVING
        .into_par_iter()
        .filter_map(|resource| {
            let (more, factor) = resource.more_of_fleet(&plan)?;
            Some(served(resource, more, factor, &outcome))
        })
        .collect::<Result<_, _>>()?;
    let ranked = ServingElasticities::of(&setup.name, basis, before, &answers);
    show(
        args,
        color,
        |style| ranked.render(style),
        &ranked.to_json(),
        &ranked.picture(),
    )
}

/// What the elasticities of a service are of.
fn basis(setup: &FleetSetup) -> Basis {
    match setup.requests.arrivals {
        Some(Arrivals::ClosedLoop { .. } | Arrivals::Burst {}) => Basis::OutputTokensPerS,
        _ => Basis::E2eS,
    }
}

/// A plan of what has a little more of a resource cannot be made.
fn cannot(what: &str, resource: Resource, error: &impl std::fmt::Display) -> Failure {
    let more = resource.label();
    Failure::run(format_args!(
        "the {what} with {more} cannot be made: {error}"
    ))
}

/// A service with a little more of one resource, simulated.
fn served(
    resource: Resource,
    more: FleetSetup,
    factor: f64,
    outcome: &(impl Fn(&FleetPlan) -> Result<ServingOutcome, Failure> + Sync),
) -> Result<ServingAnswer, Failure> {
    let plan = compile_fleet(more).map_err(|error| cannot("fleet", resource, &error))?;
    Ok(ServingAnswer {
        resource,
        factor,
        outcome: outcome(&plan)?,
    })
}

/// How throughput answers to a little more of `resource`; nothing where the setup has none of it.
fn answer(resource: Resource, setup: &Setup, before: f64) -> Result<Option<Answer>, Failure> {
    let Some((more, factor)) = resource.more(setup) else {
        return Ok(None);
    };
    let plan = rackflow_plan::compile(&more).map_err(|error| cannot("plan", resource, &error))?;
    let after = rackflow_simulator::simulate(&plan).step_time.as_secs_f64();
    // Tokens per second, so that a larger batch counts.
    let tokens = more.training.tokens() as f64 / setup.training.tokens() as f64;
    Ok(Some(Answer {
        resource,
        factor,
        throughput: tokens * before / after,
    }))
}
