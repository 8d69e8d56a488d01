//! `run` and `check`: from a scenario to its report, or to what is wrong with it.

use crate::args::{Fidelity, Format, RunArgs, TraceArgs};
use crate::chakra;
use crate::failure::Failure;
use crate::files;
use crate::input::{self, Input, Resolved};
use crate::jobs;
use crate::messages;
use crate::replay;
use crate::serve;
use crate::sweep;
use crate::terminal;
use crate::trace;
use clap::ColorChoice;
use rackflow_plan::{Plan, Setup, StageFacts};
use rackflow_report::{Options, Report, Style, plot, render_text, summarize};
use rackflow_simulator::{Execution, Trace};
use rackflow_units::counted;
use std::path::Path;
use std::time::Instant;

/// Simulates one scenario and writes what it means.
pub fn run(args: &RunArgs, traced: &TraceArgs, color: ColorChoice) -> Result<(), Failure> {
    let input = input::read(&args.scenario)?;
    if input::has_jobs(&input) {
        if traced.chakra.is_some() || args.requests.is_some() {
            return Err(Failure::input(
                "--chakra and --requests are of one run; this scenario has several jobs\n  \
                 hint: write one of them as a scenario of its own, with `cluster` and `workload`",
            ));
        }
        return jobs::run(args, traced, &input, color);
    }
    if input::serves(&input) {
        if traced.chakra.is_some() {
            return Err(Failure::input(
                "--chakra writes a training step; this scenario serves\n  \
                 hint: --trace out.pftrace shows it over time, --requests out.csv what became of each request",
            ));
        }
        return serve::run(args, traced, &input, color);
    }
    if input::replays(&input) {
        if traced.chakra.is_some() || args.requests.is_some() {
            return Err(Failure::input(
                "--chakra and --requests belong to other scenarios; this one replays a trace\n  \
                 hint: --trace out.pftrace shows it over time",
            ));
        }
        return replay::run(args, traced, &input, color);
    }
    if args.requests.is_some() {
        return Err(Failure::input(
            "--requests belongs to serving scenarios, and this one trains",
        ));
    }
    let resolved = resolve_input(args, &input)?;
    let plan = plan(&resolved)?;
    let shown = match &traced.trace {
        Some(path) => trace::shown(&plan, path, traced)?,
        None => Vec::new(),
    };
    let exported = match &traced.chakra {
        Some(folder) => Some((folder, chakra::chosen(&plan, traced)?)),
        None => None,
    };
    let (report, seen, execution) = simulate_seen(&plan, resolved, &shown, exported.is_some())?;
    if let Some(((folder, ranks), execution)) = exported.zip(execution) {
        chakra::write(&plan, &execution, folder, &ranks, traced.chakra_limit)?;
    }
    if let Some(path) = &traced.trace {
        trace::write_step(&seen, path)?;
    }
    if let Some(folder) = &args.output {
        write(folder, &report)?;
    }
    files::print(&match args.format {
        Format::Table => render_text(&report, &terminal::style(color)),
        Format::Json => report.to_json(),
    })
}

/// The scenario as meant, with what the command line replaces.
pub fn resolve(args: &RunArgs) -> Result<Resolved, Failure> {
    resolve_input(args, &input::read(&args.scenario)?)
}

fn resolve_input(args: &RunArgs, input: &Input) -> Result<Resolved, Failure> {
    input::resolve(input, args.seed, fidelity(args))
}

/// What the command line asks for.
pub fn fidelity(args: &RunArgs) -> Option<rackflow_plan::Fidelity> {
    args.fidelity.map(|fidelity| match fidelity {
        Fidelity::Folded => rackflow_plan::Fidelity::Folded,
        Fidelity::Full => rackflow_plan::Fidelity::Full,
    })
}

/// Says of each scenario whether it could be run. All are read, so that one call shows all errors.
pub fn check(scenarios: &[String], color: ColorChoice) -> Result<(), Failure> {
    let mut wrong = 0;
    for scenario in scenarios {
        let outcome = input::read(scenario).and_then(|text| {
            if input::is_sweep(&text) {
                return sweep::check(&text);
            }
            if input::has_jobs(&text) {
                return jobs::check(&text);
            }
            if input::serves(&text) {
                return serve::check(&text);
            }
            if input::replays(&text) {
                return replay::check(&text);
            }
            plan(&input::resolve(&text, None, None)?).map(|plan| in_short(&plan))
        });
        match outcome {
            Ok(verdict) => files::print(&format!("{scenario}: ok, {verdict}\n"))?,
            Err(Failure::Input(text)) => {
                let gap = if wrong > 0 { "\n" } else { "" };
                wrong += 1;
                let text = format!("{gap}{text}");
                files::tell(&messages::draw(&text, terminal::colored_messages(color)));
            }
            Err(other) => return Err(other),
        }
    }
    match (wrong, scenarios.len()) {
        (0, _) => Ok(()),
        (_, 1) => Err(Failure::Input(String::new())),
        (wrong, all) => Err(Failure::input(format_args!(
            "{wrong} of {all} scenarios cannot be run"
        ))),
    }
}

/// What a plan comes to: "2,048 GPUs, 61.2 GB of 80 GB on the fullest".
pub fn in_short(plan: &Plan) -> String {
    // Stages may lie on accelerators of different memory: the one with the least room.
    let room = |stage: &&StageFacts| stage.capacity.saturating_sub(stage.memory.total());
    let fullest = plan.facts.stages.iter().min_by_key(room);
    let (fullest, capacity) = fullest
        .map(|stage| (stage.memory.total(), stage.capacity))
        .unwrap_or_default();
    let gpus = plan.facts.cluster.gpus;
    let any = |is: fn(&StageFacts) -> bool| plan.facts.stages.iter().any(is);
    let warning = if any(|stage| stage.pressure.lacks_place()) {
        ", so near the limit that it may run out of memory"
    } else if any(StageFacts::is_stalled) {
        ", so near the limit that the allocator slows the step"
    } else if any(StageFacts::is_crowded) {
        ", so near the limit that the allocator may slow the step"
    } else {
        ""
    };
    let gpus = counted(gpus, "GPU");
    format!("{gpus}, {fullest} of {capacity} on the fullest{warning}")
}

/// Compiles the setup and holds it against the memory of one GPU.
pub fn plan(resolved: &Resolved) -> Result<Plan, Failure> {
    let setup = &resolved.setup;
    let plan = rackflow_plan::compile(setup).and_then(|plan| plan.check_memory().map(|()| plan));
    plan.map_err(|error| Failure::Input(resolved.written.refusal(setup, &error).to_string()))
}

/// Simulates a step, and the days of steps around it where the scenario has them.
pub fn simulate(plan: &Plan, resolved: Resolved) -> Result<Report, Failure> {
    simulate_seen(plan, resolved, &[], false).map(|(report, ..)| report)
}

/// The same, what the ranks `shown` did when, and, where it is to be exported, what all did.
#[allow(
    clippy::disallowed_methods,
    reason = "the command line is where the wall clock is read"
)]
fn simulate_seen(
    plan: &Plan,
    resolved: Resolved,
    shown: &[u32],
    exported: bool,
) -> Result<(Report, Trace, Option<Execution>), Failure> {
    let started = Instant::now();
    let stages = trace::first_of_each_stage(plan);
    let lists = [&stages, shown];
    let (record, [timeline, seen], execution) = if exported {
        let (record, traces, execution) = rackflow_simulator::simulate_executed_each(plan, lists);
        (record, traces, Some(execution))
    } else {
        let (record, traces) = rackflow_simulator::simulate_traced_each(plan, lists);
        (record, traces, None)
    };
    let run = resolved.outlook.run.as_ref().map(|run| {
        rackflow_simulator::simulate_run(plan, record.step_time, run, resolved.setup.seed)
    });
    let wall_s = started.elapsed().as_secs_f64();
    let mut over_seeds = vec![record.step_time.as_secs_f64()];
    let mut again = plan.clone();
    for _ in 1..plan.setup.seeds {
        again.setup.seed = again.setup.seed.wrapping_add(1);
        over_seeds.push(rackflow_simulator::simulate(&again).step_time.as_secs_f64());
    }
    let options = Options {
        wall_s,
        published: resolved.published,
        economics: Some(resolved.outlook.economics),
        run,
        over_seeds,
        timeline: Some(timeline),
    };
    let mut report = summarize(&record, options).map_err(|error| {
        Failure::run(format_args!(
            "the simulation contradicts itself, which is a defect of Rackflow: {error}"
        ))
    })?;
    if let Some(disturbed) = &mut report.disturbed {
        disturbed.undisturbed_time_s = undisturbed(&plan.setup);
    }
    Ok((report, seen, execution))
}

/// The step time where nothing is slow or broken, in seconds.
fn undisturbed(setup: &Setup) -> Option<f64> {
    let whole = Setup {
        stragglers: Vec::new(),
        faults: Vec::new(),
        ..setup.clone()
    };
    let plan = rackflow_plan::compile(&whole).ok()?;
    Some(rackflow_simulator::simulate(&plan).step_time.as_secs_f64())
}

/// Writes the report in every form.
fn write(folder: &Path, report: &Report) -> Result<(), Failure> {
    files::write_folder(
        folder,
        &[
            (
                "report.txt",
                render_text(report, &Style::default()).as_bytes(),
            ),
            ("report.json", report.to_json().as_bytes()),
            ("waterfall.svg", plot::waterfall(report).svg().as_bytes()),
        ],
    )
}
