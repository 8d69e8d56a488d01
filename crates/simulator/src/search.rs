//! The best plans for a scenario: every plan bounded, only those simulated that could be among them.

use crate::record::Record;
use crate::step::simulate;
use rackflow_plan::{Candidate, Expansion, Plan, PlanError, Search, Setup, compile};
use rackflow_units::SimDuration;
use rayon::prelude::*;

/// Plans that are simulated at a time. A constant, so that the same plans are simulated on any
/// number of threads.
const BATCH: usize = 16;

/// A plan that was simulated.
#[derive(Debug, Clone, PartialEq)]
pub struct Found {
    /// The plan; `None` for the scenario's own.
    pub candidate: Option<Candidate>,
    /// What happened.
    pub record: Record,
}

impl Found {
    /// Wall time of the step.
    pub fn step_time(&self) -> SimDuration {
        self.record.step_time
    }
}

/// What a search found, and what it left out.
#[derive(Debug, Clone, PartialEq)]
pub struct Outcome {
    /// The scenario's own plan.
    pub own: Found,
    /// The best plans, best first.
    pub best: Vec<Found>,
    /// Plans that fit into memory, each bounded from below.
    pub bounded: u64,
    /// Plans that do not fit into memory.
    pub too_large: u64,
    /// Plans that were simulated.
    pub simulated: u64,
    /// Plans that the simulator's own limits refuse.
    pub refused: u64,
}

/// How far a search is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// So many of so many branches are listed and bounded.
    Listed(usize, usize),
    /// So many plans are simulated; at most so many are left.
    Simulated(usize, usize),
}

/// Finds the `keep` best plans. Those that are left out are proved to be no better: their lower
/// bound is not under the step time of the last one kept.
///
/// # Errors
/// Those of [`compile`], for the scenario's own plan.
pub fn search(
    search: &Search,
    setup: &Setup,
    keep: usize,
    progress: impl Fn(Progress) + Sync,
) -> Result<Outcome, PlanError> {
    let own = Found {
        candidate: None,
        record: simulate(&compile(setup)?),
    };
    let (candidates, too_large) = list(search, &progress);
    let bounded = candidates.len() as u64;
    let mut best: Vec<(usize, Found)> = Vec::new();
    let (mut simulated, mut refused) = (0, 0);
    let mut next = 0;
    while next < candidates.len() {
        let worst = best
            .get(keep.saturating_sub(1))
            .map(|(_, found)| found.step_time());
        let could_win =
            |candidate: &Candidate| worst.is_none_or(|worst| candidate.at_least < worst);
        let batch = candidates[next..]
            .iter()
            .take(BATCH)
            .take_while(|(_, candidate)| could_win(candidate));
        let batch: Vec<&(usize, Candidate)> = batch.collect();
        if batch.is_empty() {
            break;
        }
        next += batch.len();
        let outcomes: Vec<Option<(usize, Found)>> = batch
            .par_iter()
            .map(|(index, candidate)| run(setup, candidate).map(|found| (*index, found)))
            .collect();
        for outcome in outcomes {
            match outcome {
                Some(found) => best.push(found),
                None => refused += 1,
            }
        }
        simulated = next as u64 - refused;
        // Equal times keep the order in which plans are listed.
        best.sort_by_key(|(index, found)| (found.step_time(), *index));
        best.truncate(keep);
        progress(Progress::Simulated(next, candidates.len()));
    }
    Ok(Outcome {
        own,
        best: best.into_iter().map(|(_, found)| found).collect(),
        bounded,
        too_large,
        simulated,
        refused,
    })
}

/// All plans that fit, the most promising first, with their places in the listing.
fn list(search: &Search, progress: &(impl Fn(Progress) + Sync)) -> (Vec<(usize, Candidate)>, u64) {
    let branches = search.branches();
    let done = std::sync::atomic::AtomicUsize::new(0);
    let expansions: Vec<Expansion> = branches
        .par_iter()
        .map(|branch| {
            let expansion = search.expand(branch);
            let done = done.fetch_add(1, std::sync::atomic::Ordering::Relaxed) + 1;
            progress(Progress::Listed(done, branches.len()));
            expansion
        })
        .collect();
    let too_large = expansions.iter().map(|expansion| expansion.too_large).sum();
    let listed = expansions
        .into_iter()
        .flat_map(|expansion| expansion.candidates);
    let mut candidates: Vec<(usize, Candidate)> = listed.enumerate().collect();
    candidates.sort_by_key(|(index, candidate)| (candidate.at_least, *index));
    (candidates, too_large)
}

fn run(setup: &Setup, candidate: &Candidate) -> Option<Found> {
    let plan: Plan = compile(&candidate.setup(setup)).ok()?;
    Some(Found {
        candidate: Some(candidate.clone()),
        record: simulate(&plan),
    })
}
