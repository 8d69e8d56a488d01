//! The planner against trying everything.

use crate::plans::{model, plain};
use rackflow_plan::{Candidate, RankOrder, Search, Setup, Space, compile};
use rackflow_simulator::{search, simulate};
use rackflow_units::SimDuration;
use rackflow_workload::{Recompute, Routing};

fn everything(setup: &Setup) -> Vec<(SimDuration, Candidate)> {
    let search = Search::new(setup, Space::of(setup)).expect("the generator makes valid plans");
    let branches = search.branches();
    let candidates = branches
        .iter()
        .flat_map(|branch| search.expand(branch).candidates);
    candidates
        .map(|candidate| {
            let plan = compile(&candidate.setup(setup)).expect("a listed plan can be made");
            let stages = plan.facts.stages.iter();
            let fullest = stages.map(|stage| stage.memory.total()).max();
            assert_eq!(fullest, Some(candidate.memory), "{candidate:?}");
            (simulate(&plan).step_time, candidate)
        })
        .collect()
}

fn dense() -> Setup {
    let mut setup = plain(8);
    setup.training.model = model(6, false);
    setup.training.global_batch = 16;
    setup
}

fn experts() -> Setup {
    let mut setup = plain(8);
    setup.training.model = model(4, true);
    setup.training.global_batch = 8;
    setup
}

fn variants() -> [Setup; 4] {
    let mut replicas_first = dense();
    replicas_first.rank_order = RankOrder::PipelineBeforeData;
    let mut uneven = experts();
    uneven.training.routing = Routing::Lognormal { sigma: 0.3 };
    uneven.training.recompute = Recompute::FullLayers(1);
    uneven.training.stack.overlap.expert = true;
    [dense(), experts(), replicas_first, uneven]
}

#[test]
fn no_plan_is_faster_than_its_bound_and_none_better_is_left_out() {
    for setup in variants() {
        let mut all = everything(&setup);
        assert!(all.len() > 50, "{} plans", all.len());
        for (step_time, candidate) in &all {
            assert!(
                *step_time >= candidate.at_least,
                "{step_time} {candidate:?}"
            );
        }
        all.sort_by_key(|(step_time, _)| *step_time);
        let space = Space::of(&setup);
        let planner = Search::new(&setup, space).expect("valid");
        let found = search(&planner, &setup, 5, |_| {}).expect("valid");
        let best: Vec<SimDuration> = found.best.iter().map(|found| found.step_time()).collect();
        let expected: Vec<SimDuration> = all.iter().take(5).map(|(time, _)| *time).collect();
        assert_eq!(best, expected);
        assert_eq!(found.bounded, all.len() as u64);
        assert!(found.simulated <= found.bounded);
        assert_eq!(found.refused, 0);
    }
}

#[test]
fn the_bound_is_tight_enough_to_prune() {
    let setup = dense();
    let planner = Search::new(&setup, Space::of(&setup)).expect("valid");
    let found = search(&planner, &setup, 3, |_| {}).expect("valid");
    assert!(
        2 * found.simulated < found.bounded,
        "{} of {}",
        found.simulated,
        found.bounded
    );
    let best = &found.best[0];
    let bound = best
        .candidate
        .as_ref()
        .expect("not the scenario's own")
        .at_least;
    assert!(
        bound.as_secs_f64() > 0.6 * best.step_time().as_secs_f64(),
        "{bound}"
    );
}

#[test]
fn what_does_not_fit_is_counted() {
    let mut setup = dense();
    setup.cluster.node.accelerator.memory = rackflow_units::Bytes::new(8_000_000_000);
    let planner = Search::new(&setup, Space::of(&setup)).expect("valid");
    let found = search(&planner, &setup, 3, |_| {}).expect("valid");
    assert!(found.too_large > 0);
}
