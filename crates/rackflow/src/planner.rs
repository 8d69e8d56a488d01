//! `plan`: the search for better plans, with a bar that shows how far it is.

use crate::args::{Format, PlanArgs, Precision};
use crate::failure::Failure;
use crate::{files, goodput, input, run, terminal};
use clap::ColorChoice;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use rackflow_plan::Space;
use rackflow_report::PlanSearch;
use rackflow_simulator::Progress;
use rackflow_workload::Recipe;
use std::io::{IsTerminal, stderr};

/// Searches the plans of one scenario and prints the best.
pub fn run(args: &PlanArgs, color: ColorChoice) -> Result<(), Failure> {
    let input = input::read(&args.scenario)?;
    if input::serves(&input) {
        return goodput::run(args, &input, color);
    }
    if args.output.is_some() {
        return Err(Failure::input(
            "--output belongs to serving scenarios, and this one trains\n  hint: --format json",
        ));
    }
    let resolved = input::resolve(&input, None, None)?;
    run::one_kind(&resolved, "the planner searches")?;
    // The scenario's own plan is refused as `run` would refuse it.
    run::plan(&resolved)?;
    let setup = &resolved.setup;
    let mut space = Space::of(setup);
    if !args.precision.is_empty() {
        space.recipes = args
            .precision
            .iter()
            .map(|precision| recipe(*precision))
            .collect();
    }
    let refused = |error| Failure::Input(resolved.written.refusal(setup, &error).to_string());
    let search = rackflow_simulator::planner(setup, space).map_err(refused)?;
    let bar = bar();
    let outcome = rackflow_simulator::search(&search, setup, args.top as usize, |progress| {
        show(&bar, progress);
    })
    .map_err(refused)?;
    bar.finish_and_clear();
    let found = PlanSearch::of(&outcome);
    files::print(&match args.format {
        Format::Table => found.render(&terminal::style(color)),
        Format::Json => found.to_json(),
    })
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

fn show(bar: &ProgressBar, progress: Progress) {
    let (words, done, all) = match progress {
        Progress::Listed(done, all) => ("listing plans".to_owned(), done, all),
        Progress::Judged {
            closely,
            simulated,
            left,
        } => (
            format!("{simulated} simulated"),
            closely,
            closely.max(1) + left,
        ),
    };
    bar.set_message(words);
    bar.set_length(all as u64);
    bar.set_position(done as u64);
}

fn recipe(precision: Precision) -> Recipe {
    match precision {
        Precision::Fp16 => Recipe::Fp16,
        Precision::Bf16 => Recipe::Bf16,
        Precision::Fp8 => Recipe::Fp8,
        Precision::Fp8Blockwise => Recipe::Fp8Blockwise,
        Precision::Mxfp8 => Recipe::Mxfp8,
        Precision::Nvfp4 => Recipe::Nvfp4,
    }
}
