//! `plan`: the search for better plans, with a bar that shows how far it is.

use crate::args::{PlanArgs, PlanFormat, Precision};
use crate::failure::Failure;
use crate::input::{self, Resolved};
use crate::{files, goodput, run, terminal};
use clap::ColorChoice;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use rackflow_plan::{PlanError, Search, Setup, Space};
use rackflow_report::{PlanComparison, PlanSearch};
use rackflow_simulator::{Outcome, Progress};
use rackflow_workload::Recipe;
use std::io::{IsTerminal, stderr};

/// Searches the plans of one scenario and prints the best; of several, sets the best beside their own.
pub fn run(args: &PlanArgs, color: ColorChoice) -> Result<(), Failure> {
    let [scenario] = &args.scenarios[..] else {
        return compare(args, color);
    };
    let input = input::read(scenario)?;
    if input::serves(&input) {
        return goodput::run(args, &input, color);
    }
    if args.output.is_some() {
        return Err(Failure::input(
            "--output belongs to serving scenarios, and this one trains\n  hint: --format json",
        ));
    }
    if args.format == PlanFormat::Markdown {
        return compare(args, color);
    }
    let bar = bar();
    let resolved = input::resolve(&input, None, None)?;
    let outcome = of_scenario(args, &resolved, |search, setup| {
        let limit = args.limit.map(u64::from);
        rackflow_simulator::search(search, setup, args.top as usize, limit, |progress| {
            show(&bar, "", progress);
        })
    })?;
    bar.finish_and_clear();
    if outcome.best.is_empty() && outcome.bounded == 0 {
        // Refused as `run` would refuse it: that says what it lacks and what would help.
        run::plan(&resolved)?;
    }
    let found = PlanSearch::of(&outcome);
    files::print(&match args.format {
        PlanFormat::Json => found.to_json(),
        _ => found.render(&terminal::style(color)),
    })
}

/// Each scenario's own plan beside the best.
fn compare(args: &PlanArgs, color: ColorChoice) -> Result<(), Failure> {
    let bar = bar();
    let mut found = PlanComparison::default();
    for scenario in &args.scenarios {
        let input = input::read(scenario)?;
        if input::serves(&input) {
            return Err(Failure::input(format_args!(
                "{scenario} serves, and several scenarios are compared by their training steps\n  hint: rackflow plan {scenario}"
            )));
        }
        let resolved = input::resolve(&input, None, None)?;
        // The scenario's own plan is refused as `run` would refuse it.
        run::plan(&resolved)?;
        let outcome = of_scenario(args, &resolved, |search, setup| {
            rackflow_simulator::improve(search, setup, args.limit.map(u64::from), |progress| {
                show(&bar, scenario, progress);
            })
        })?;
        found.add(&outcome);
    }
    bar.finish_and_clear();
    files::print(&match args.format {
        PlanFormat::Table => found.render(&terminal::style(color)),
        PlanFormat::Json => found.to_json(),
        PlanFormat::Markdown => found.to_markdown(),
    })
}

/// Searches the plans of a training scenario.
fn of_scenario(
    args: &PlanArgs,
    resolved: &Resolved,
    search: impl FnOnce(&Search, &Setup) -> Result<Outcome, PlanError>,
) -> Result<Outcome, Failure> {
    let setup = &resolved.setup;
    let mut space = Space::of(setup);
    if !args.precision.is_empty() {
        space.recipes = recipes(&args.precision, setup)?;
    }
    let refused = |error| Failure::Input(resolved.written.refusal(setup, &error).to_string());
    let planner = rackflow_simulator::planner(setup, space).map_err(refused)?;
    search(&planner, setup).map_err(refused)
}

pub fn bar() -> ProgressBar {
    if !stderr().is_terminal() {
        return ProgressBar::with_draw_target(None, ProgressDrawTarget::hidden());
    }
    let bar = ProgressBar::new(0);
    if let Ok(look) = ProgressStyle::with_template("{msg:<20} {bar:40} {pos} of at most {len}") {
        bar.set_style(look);
    }
    bar
}

fn show(bar: &ProgressBar, of: &str, progress: Progress) {
    let (words, done, all) = match progress {
        Progress::Listed(done, all) => ("listing plans".to_owned(), done, all),
        Progress::Judged {
            closely,
            simulated,
            left,
        } => (
            format!("{simulated} simulated"),
            closely + simulated,
            (closely + simulated + left).max(1),
        ),
    };
    bar.set_message(format!("{of} {words}").trim_start().to_owned());
    bar.set_length(all as u64);
    bar.set_position(done as u64);
}

/// The number formats that were asked for, each once.
///
/// # Errors
/// When an accelerator of the cluster cannot compute in one.
fn recipes(asked: &[Precision], setup: &Setup) -> Result<Vec<Recipe>, Failure> {
    let mut recipes = Vec::new();
    for precision in asked {
        let of_this = match precision {
            Precision::Fp16 => vec![Recipe::Fp16],
            Precision::Bf16 => vec![Recipe::Bf16],
            Precision::Fp8 => vec![Recipe::Fp8],
            Precision::Fp8Delayed => vec![Recipe::Fp8Delayed],
            Precision::Fp8Rowwise => vec![Recipe::Fp8Rowwise],
            Precision::Fp8Blockwise => vec![Recipe::Fp8Blockwise],
            Precision::Mxfp8 => vec![Recipe::Mxfp8],
            Precision::Nvfp4 => vec![Recipe::Nvfp4],
            Precision::All => with_rates(setup),
        };
        for recipe in of_this {
            if let Some(why) = unsupported(setup, recipe) {
                return Err(Failure::input(why));
            }
            if !recipes.contains(&recipe) {
                recipes.push(recipe);
            }
        }
    }
    Ok(recipes)
}

/// Why a cluster cannot compute in a number format, with the way out.
fn unsupported(setup: &Setup, recipe: Recipe) -> Option<String> {
    let mut kinds = setup.cluster.kinds().into_iter();
    kinds.find_map(|kind| rackflow_scenario::unsupported(recipe, &kind.node.accelerator))
}

/// The scenario's number formats, and those of the common recipes that all of its accelerators multiply at a
/// rate of their own. fp16 takes the time of bf16; delayed and rowwise scales are habits of single frameworks.
fn with_rates(setup: &Setup) -> Vec<Recipe> {
    let common = [
        Recipe::Bf16,
        Recipe::Fp8,
        Recipe::Fp8Blockwise,
        Recipe::Mxfp8,
        Recipe::Nvfp4,
    ];
    let mut recipes = vec![setup.training.recipe];
    let common = common.into_iter();
    recipes.extend(common.filter(|recipe| unsupported(setup, *recipe).is_none()));
    recipes
}
