//! Of a replayed execution trace: the same trace again on a cluster that has a little more.

use super::{cannot, show};
use crate::args::RunArgs;
use crate::failure::Failure;
use crate::input::{self, Input};
use crate::replay;
use clap::ColorChoice;
use rackflow_plan::Resource;
use rackflow_plan::replay::{ReplayPlan, ReplaySetup, compile_replay};
use rackflow_report::{Answer, Elasticities};
use rackflow_simulator::replay::simulate_replay;
use rayon::prelude::*;

/// Nodes beyond which one replay after the other is held in memory, and not one for each thread.
const MANY: u64 = 4_000_000;

/// Replays a trace once for each resource that has a meaning for it, and ranks what each would bring.
pub fn run(args: &RunArgs, input: &Input, color: ColorChoice) -> Result<(), Failure> {
    let (setup, plan) = replay::compiled(input::resolve_replay(input)?)?;
    let before = seconds(&plan)?;
    if before == 0.0 {
        return Err(Failure::input(
            "the trace takes no time: nothing in it has a duration, operations, bytes or a message",
        ));
    }
    let mut more = Vec::new();
    let mut without_meaning = Vec::new();
    for resource in Resource::OF_REPLAY {
        match resource.more_of_replay(&setup, &plan) {
            Ok((setup, factor)) => more.push((resource, setup, factor)),
            Err(why) => without_meaning.push((resource, why)),
        }
    }
    let nodes = plan.counts.nodes;
    drop(plan);
    let answer = |(resource, setup, factor): &(Resource, ReplaySetup, f64)| {
        let plan = compile_replay(setup).map_err(|error| cannot("replay", *resource, &error))?;
        Ok(Answer {
            resource: *resource,
            factor: *factor,
            throughput: before / seconds(&plan)?,
        })
    };
    let answers: Vec<Answer> = if nodes > MANY {
        more.iter().map(answer).collect::<Result<_, Failure>>()?
    } else {
        more.par_iter()
            .map(answer)
            .collect::<Result<_, Failure>>()?
    };
    let ranked = Elasticities::of_replay(&setup.name, before, &answers, &without_meaning);
    show(
        args,
        color,
        |style| ranked.render(style),
        &ranked.to_json(),
        &ranked.picture(),
    )
}

/// How long a replay takes.
fn seconds(plan: &ReplayPlan) -> Result<f64, Failure> {
    let record = simulate_replay(plan).map_err(Failure::input)?;
    Ok(record.step_time.as_secs_f64())
}
