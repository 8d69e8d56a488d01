//! `elasticities`: a scenario simulated again with a little more of each resource.

use crate::args::{Format, RunArgs};
use crate::failure::Failure;
use crate::{files, run, terminal};
use clap::ColorChoice;
use rackflow_plan::{Resource, Setup};
use rackflow_report::{Answer, Elasticities};
use rayon::prelude::*;

/// Simulates a scenario once for each resource and ranks what each would bring.
pub fn run(args: &RunArgs, color: ColorChoice) -> Result<(), Failure> {
    let resolved = run::resolve(args)?;
    let plan = run::plan(&resolved)?;
    let before = rackflow_simulator::simulate(&plan).step_time.as_secs_f64();
    let answers: Vec<Answer> = Resource::ALL
        .into_par_iter()
        .filter_map(|resource| answer(resource, &resolved.setup, before).transpose())
        .collect::<Result<_, _>>()?;
    let ranked = Elasticities::of(&resolved.setup.name, before, &answers);
    if let Some(folder) = &args.output {
        let picture = ranked.picture();
        files::write_folder(
            folder,
            &[
                ("elasticities.json", ranked.to_json().as_bytes()),
                ("elasticities.svg", picture.svg().as_bytes()),
                ("elasticities.png", &picture.png()),
            ],
        )?;
    }
    files::print(&match args.format {
        Format::Table => ranked.render(&terminal::style(color)),
        Format::Json => ranked.to_json(),
    })
}

/// How throughput answers to a little more of `resource`; nothing where the setup has none of it.
fn answer(resource: Resource, setup: &Setup, before: f64) -> Result<Option<Answer>, Failure> {
    let Some((more, factor)) = resource.more(setup) else {
        return Ok(None);
    };
    let plan = rackflow_plan::compile(&more).map_err(|error| {
        let what = resource.label();
        Failure::run(format_args!("the plan with {what} cannot be made: {error}"))
    })?;
    let after = rackflow_simulator::simulate(&plan).step_time.as_secs_f64();
    // Tokens per second, so that a larger batch counts.
    let tokens = more.training.tokens() as f64 / setup.training.tokens() as f64;
    Ok(Some(Answer {
        resource,
        factor,
        throughput: tokens * before / after,
    }))
}
