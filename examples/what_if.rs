//! Rackflow from Rust: a shipped scenario, changed in code, simulated twice and compared.
//!
//! ```sh
//! cargo run --release --example what_if
//! ```

use rackflow_plan::{Setup, compile};
use rackflow_report::{Options, Report, summarize};
use rackflow_simulator::simulate;
use std::error::Error;

fn main() -> Result<(), Box<dyn Error>> {
    let (_, text) = rackflow_scenario::shipped()
        .iter()
        .find(|(name, _)| *name == "quickstart-llama3-8b-8-h100")
        .ok_or("the quickstart ships")?;
    // A scenario may name a Hugging Face config.json; this one does not, so nothing is read.
    let no_files = |_: &str| Err(std::io::Error::other("no files here"));
    let scenario =
        rackflow_scenario::parse("quickstart", text).map_err(|found| found[0].to_string())?;
    let before = scenario
        .resolve(&no_files)
        .map_err(|found| found[0].to_string())?;

    // What if nothing were computed twice?
    let mut after = before.clone();
    after.training.recompute = rackflow_workload::Recompute::None;

    let (before, after) = (report(&before)?, report(&after)?);
    for (name, report) in [("as it is", &before), ("recomputing nothing", &after)] {
        println!(
            "{name:<20} {:6.3} s per step, {:5.1} % MFU, {:4.1} GB on the fullest GPU",
            report.training.step_time_s,
            report.training.mfu.bf16_causal * 100.0,
            report.training.memory_per_gpu_bytes.total as f64 / 1e9,
        );
    }
    Ok(())
}

/// From a setup to what it means: the three arrows behind `rackflow run`.
fn report(setup: &Setup) -> Result<Report, Box<dyn Error>> {
    let plan = compile(setup)?;
    plan.check_memory()?;
    let record = simulate(&plan);
    Ok(summarize(&record, Options::default())?)
}
