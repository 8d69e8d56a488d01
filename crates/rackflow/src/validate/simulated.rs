//! Many setups simulated, each different one once.

use rackflow_plan::Setup;
use rayon::prelude::*;
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Clock of the second simulation of each setup over that of the first: what tells how much of a
/// step the clock decides.
pub const SECOND_CLOCK: f64 = 0.95;

/// What the simulation says about one run.
#[derive(Debug, Clone, PartialEq)]
pub struct Simulated {
    /// Time of one step [s].
    pub step_time_s: f64,
    /// The same with [`SECOND_CLOCK`], where it was asked for [s].
    pub at_second_clock_s: Option<f64>,
    /// Peak memory of the fullest rank [bytes].
    pub memory: f64,
    /// Memory of one GPU [bytes].
    pub capacity: f64,
    /// Share of all GPU time by cause; causes without a share are left out.
    pub causes: BTreeMap<String, f64>,
}

/// Why a setup was not simulated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NotSimulated {
    /// The plan is refused, with its reason.
    Refused(String),
    /// A fault of ours. It must not hide the other rows.
    Failed,
}

/// Simulates all `setups`, in their order. Setups that differ in their names alone are simulated
/// once. `second_clock`: also under another clock.
pub fn simulate_all(setups: &[Setup], second_clock: bool) -> Vec<Result<Simulated, NotSimulated>> {
    let mut unique: Vec<&Setup> = Vec::new();
    let mut known: BTreeMap<String, usize> = BTreeMap::new();
    let places: Vec<usize> = setups
        .iter()
        .map(|setup| {
            *known.entry(identity(setup)).or_insert_with(|| {
                unique.push(setup);
                unique.len() - 1
            })
        })
        .collect();
    // Collected in the order of the input: the answer does not depend on the threads.
    let outcomes: Vec<Result<Simulated, NotSimulated>> = unique
        .into_par_iter()
        .map(|setup| {
            catch_unwind(AssertUnwindSafe(|| simulate(setup, second_clock)))
                .unwrap_or(Err(NotSimulated::Failed))
        })
        .collect();
    places
        .into_iter()
        .map(|place| outcomes[place].clone())
        .collect()
}

/// Everything that the simulation sees.
fn identity(setup: &Setup) -> String {
    let mut setup = setup.clone();
    setup.name.clear();
    setup.training.assumed.clear();
    setup.training.model.name.clear();
    setup.training.model.sources.clear();
    setup.training.stack.sources.clear();
    setup.cluster.node.sources.clear();
    setup.cluster.node.accelerator.sources.clear();
    format!("{setup:?}")
}

/// Compiles and simulates one setup. Memory is reported, not enforced: a published run did run.
fn simulate(setup: &Setup, second_clock: bool) -> Result<Simulated, NotSimulated> {
    let refused = |error: rackflow_plan::PlanError| NotSimulated::Refused(error.to_string());
    let plan = rackflow_plan::compile(setup).map_err(refused)?;
    let record = rackflow_simulator::simulate(&plan);
    let memory = record
        .facts
        .stages
        .iter()
        .map(|stage| stage.memory.total().as_f64())
        .fold(0.0, f64::max);
    let total = record.total();
    let all = (total.total_picos() as f64).max(1.0);
    let causes = rackflow_plan::Cause::all()
        .map(|cause| (cause.key(), total.picos(cause) as f64 / all))
        .filter(|(_, share)| *share > 0.0)
        .collect();
    let at_second_clock_s = second_clock
        .then(|| {
            let mut setup = setup.clone();
            setup.cluster.node.accelerator.measured.continuous_clock *= SECOND_CLOCK;
            let plan = rackflow_plan::compile(&setup).map_err(refused)?;
            Ok(rackflow_simulator::simulate(&plan).step_time.as_secs_f64())
        })
        .transpose()?;
    Ok(Simulated {
        step_time_s: record.step_time.as_secs_f64(),
        at_second_clock_s,
        memory,
        capacity: record.facts.memory_capacity.as_f64(),
        causes,
    })
}
