//! The planner against trying everything.

use crate::mixed::{node, slower};
use crate::plans::{
    cluster, encoder, ends, images, model, plain, seen, setups, with_ends, with_images,
};
use proptest::prelude::*;
use rackflow_plan::{Candidate, RankOrder, Search, Setup, Space, compile};
use rackflow_scenario::parse;
use rackflow_simulator::{Reordered, Simulator, improve, planner, search, simulate};
use rackflow_topology::{Cluster, Part};
use rackflow_units::{Bytes, SimDuration};
use rackflow_workload::{AllocatorPolicy, Frozen, Recompute, Routing};

/// Few enough plans to simulate all: one order of ranks, and no recomputation or the scenario's own.
fn small_space(setup: &Setup) -> Space {
    Space {
        recomputes: vec![Recompute::Selective, setup.training.recompute.clone()],
        rank_orders: vec![setup.rank_order],
        ..Space::of(setup)
    }
}

/// Every plan that fits, simulated; each is held against its bounds and its memory.
fn everything(setup: &Setup) -> Vec<(SimDuration, Candidate)> {
    everything_in(setup, small_space(setup))
}

fn everything_in(setup: &Setup, space: Space) -> Vec<(SimDuration, Candidate)> {
    let search = planner(setup, space).expect("the generator makes valid plans");
    let branches = search.branches();
    let candidates = branches
        .iter()
        .flat_map(|branch| search.expand(branch).candidates);
    candidates
        .map(|candidate| {
            let step_time = held_against_bounds(&search, setup, &candidate);
            (step_time, candidate)
        })
        .collect()
}

/// Simulates a candidate and holds it against its bounds and its memory.
fn held_against_bounds(search: &Search, setup: &Setup, candidate: &Candidate) -> SimDuration {
    let plan = compile(&candidate.setup(setup)).expect("a listed plan can be made");
    assert_eq!(plan.check_memory(), Ok(()), "{candidate:?}");
    let stages = plan.facts.stages.iter();
    let fullest = stages.map(|stage| stage.memory.total()).max();
    assert_eq!(fullest, Some(candidate.memory), "{candidate:?}");
    let step_time = simulate(&plan).step_time;
    let without = search.bound(candidate);
    let closer = search.bound_played(candidate);
    assert!(without >= candidate.at_least, "{candidate:?}");
    assert!(closer >= without, "{candidate:?}");
    assert!(search.may_stall(candidate) || closer == without);
    assert!(step_time >= closer, "{step_time} < {closer}: {candidate:?}");
    // On its way it is never given up by mistake.
    let passes = search.passes(candidate);
    let beyond = step_time + SimDuration::from_picos(1);
    let again = Simulator::default().simulate_under(&plan, &passes, beyond);
    let again = again.map(|record| record.step_time);
    assert_eq!(again, Ok(step_time), "{candidate:?}");
    step_time
}

/// Candidates of a scenario that are looked at.
const LOOKED_AT: usize = 12;

/// Some candidates of a setup, `apart` from each other so that they differ, from one of its branches on.
fn every_so_many_held_against_bounds(setup: &Setup, from: prop::sample::Index, apart: usize) {
    let search = planner(setup, Space::of(setup)).expect("the generator makes valid plans");
    let branches = search.branches();
    let from = from.index(branches.len());
    let around = branches[from..].iter().chain(&branches[..from]);
    let candidates = around.flat_map(|branch| search.expand(branch).candidates);
    for candidate in candidates.step_by(apart).take(LOOKED_AT) {
        held_against_bounds(&search, setup, &candidate);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: ProptestConfig::default().cases / 8, ..ProptestConfig::default() })]

    #[test]
    fn no_plan_of_any_setup_is_faster_than_its_bounds(setup in setups(), from in any::<prop::sample::Index>()) {
        every_so_many_held_against_bounds(&setup, from, 7);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: ProptestConfig::default().cases / 16, ..ProptestConfig::default() })]

    /// One of the plans leaves so many MB of the memory, and those beside it more or less.
    #[test]
    fn no_plan_near_the_limit_of_memory_is_faster_than_its_bounds(
        setup in setups(),
        from in any::<prop::sample::Index>(),
        left in 0..400_u64,
    ) {
        let mut near = setup;
        let search = planner(&near, Space::of(&near)).expect("the generator makes valid plans");
        let branches = search.branches();
        let from = from.index(branches.len());
        let around = || branches[from..].iter().chain(&branches[..from]);
        let mut candidates = around().flat_map(|branch| search.expand(branch).candidates);
        if let Some(first) = candidates.next() {
            let accelerator = &mut near.cluster.node.accelerator;
            accelerator.memory = first.memory + Bytes::new(left * 1_000_000);
            accelerator.reported_memory = 1.0;
            let search = planner(&near, Space::of(&near)).expect("the generator makes valid plans");
            let candidates = around().flat_map(|branch| search.expand(branch).candidates);
            let near_it = candidates.filter(|candidate| search.may_stall(candidate));
            for candidate in near_it.take(LOOKED_AT / 2) {
                held_against_bounds(&search, &near, &candidate);
            }
        }
    }
}

/// A small job on nodes of two or three kinds: some compute, some are connected differently, some hold
/// less.
fn mixed_setups() -> impl Strategy<Value = Setup> {
    let kinds = prop::sample::subsequence(vec![0, 1, 2, 3, 4], 2..=3).prop_shuffle();
    let parts = (kinds, any::<bool>());
    (
        parts,
        any::<bool>(),
        any::<bool>(),
        0..3_usize,
        (any::<u64>(), seen(), ends()),
    )
        .prop_map(
            |((kinds, twice), moe, stages_first, routing, (seed, seen, ends))| {
                let node_of = |kind: i32| match kind {
                    0 => node("dgx-h100"),
                    1 => slower(node("dgx-h100")),
                    2 => node("hgx-h200"),
                    3 => node("gb200-nvl72"),
                    _ => {
                        let mut small = node("dgx-b200");
                        small.accelerator.memory = Bytes::new(14_000_000_000);
                        small
                    }
                };
                let mut gpus = vec![8; kinds.len()];
                if twice {
                    gpus[0] = 16;
                }
                let parts = kinds.into_iter().zip(gpus);
                let parts = parts.map(|(kind, gpus)| Part {
                    node: node_of(kind),
                    gpus,
                });
                let fabric = cluster("dgx-h100", 32).fabric;
                let mut setup = plain(8);
                setup.cluster = Cluster::of_parts(parts.collect(), fabric);
                setup.seed = seed;
                if stages_first {
                    setup.rank_order = RankOrder::PipelineBeforeData;
                }
                setup.training.model = model(7, moe);
                with_images(&mut setup, seen);
                with_ends(&mut setup, ends);
                setup.training.parallelism.data = setup.cluster.gpus;
                setup.training.global_batch = u64::from(setup.cluster.gpus) * 2;
                if moe && routing > 0 {
                    setup.training.routing = Routing::Lognormal { sigma: 0.3 };
                    setup.training.stack.overlap.expert = routing == 2;
                }
                setup
            },
        )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: ProptestConfig::default().cases / 8, ..ProptestConfig::default() })]

    #[test]
    fn no_plan_of_a_mixed_cluster_is_faster_than_its_bounds(setup in mixed_setups(), from in any::<prop::sample::Index>()) {
        every_so_many_held_against_bounds(&setup, from, 17);
    }
}

/// Two slow GPUs beside two fast ones: few enough plans to try all.
fn two_kinds(moe: bool) -> Setup {
    let part = |node| Part { node, gpus: 2 };
    let parts = vec![part(slower(node("dgx-h100"))), part(node("hgx-h200"))];
    let mut setup = if moe { experts() } else { dense() };
    setup.cluster = Cluster::of_parts(parts, setup.cluster.fabric.clone());
    setup.rank_order = RankOrder::DataBeforePipeline;
    setup.training.parallelism.data = 4;
    setup.training.global_batch = 8;
    setup
}

#[test]
fn the_best_plan_of_a_mixed_cluster_is_that_of_trying_everything() {
    for moe in [false, true] {
        let mut setup = two_kinds(moe);
        if moe {
            setup.training.routing = Routing::Lognormal { sigma: 0.3 };
        }
        let mut all = everything(&setup);
        assert!(all.len() > 50, "{} plans", all.len());
        all.sort_by_key(|(step_time, _)| *step_time);
        let planner = planner(&setup, small_space(&setup)).expect("valid");
        let found = search(&planner, &setup, 5, None, |_| {}).expect("valid");
        let best: Vec<SimDuration> = found.best.iter().map(|found| found.step_time()).collect();
        let expected: Vec<SimDuration> = all.iter().take(5).map(|(time, _)| *time).collect();
        assert_eq!(best, expected);
        assert!(found.simulated < found.bounded, "nothing is pruned");
    }
}

#[test]
fn stages_of_a_mixed_cluster_are_as_long_as_they_are_fast() {
    let mut setup = two_kinds(false);
    // Layers whose time is that of their products, and too large for one GPU.
    let model = &mut setup.training.model;
    (model.layers, model.hidden, model.ffn) = (48, 4096, 16_384);
    let planner = planner(&setup, small_space(&setup)).expect("valid");
    let found = search(&planner, &setup, 1, None, |_| {}).expect("valid");
    let stages = &found.best[0].record.facts.stages;
    let (slow, fast) = (stages.first(), stages.last());
    let layers = slow
        .zip(fast)
        .map(|(slow, fast)| [slow.layers, fast.layers]);
    assert!(layers.is_some_and(|[slow, fast]| fast > slow), "{stages:?}");
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

fn variants() -> [Setup; 5] {
    let mut seeing = dense();
    let of = (encoder(true), images(8, Frozen::Nothing));
    with_images(&mut seeing, Some(of));
    let mut replicas_first = dense();
    replicas_first.rank_order = RankOrder::PipelineBeforeData;
    let mut uneven = experts();
    uneven.training.routing = Routing::Lognormal { sigma: 0.3 };
    uneven.training.recompute = Recompute::FullLayers(1);
    uneven.training.stack.overlap.expert = true;
    [dense(), experts(), replicas_first, seeing, uneven]
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
        let planner = planner(&setup, small_space(&setup)).expect("valid");
        let found = search(&planner, &setup, 5, None, |_| {}).expect("valid");
        let best: Vec<SimDuration> = found.best.iter().map(|found| found.step_time()).collect();
        let expected: Vec<SimDuration> = all.iter().take(5).map(|(time, _)| *time).collect();
        assert_eq!(best, expected);
        assert_eq!(found.bounded, all.len() as u64);
        assert!(found.simulated <= found.bounded);
        assert_eq!(found.refused, 0);
    }
}

/// Both orders of ranks, and the scenario's own recomputation.
fn space_of_both_orders(setup: &Setup) -> Space {
    Space {
        recomputes: vec![setup.training.recompute.clone()],
        ..Space::of(setup)
    }
}

/// Each plan once, in the better order of ranks, beside what the other one takes; where they tie, in that of
/// the setup. The best first.
fn each_once(
    setup: &Setup,
    all: &[(SimDuration, Candidate)],
) -> Vec<(SimDuration, RankOrder, Option<SimDuration>)> {
    let mut plans = Vec::new();
    for (time, candidate) in all {
        let mut others = all.iter();
        let other = others.find(|(_, other)| other.is_reordered(candidate));
        let other = other.map(|(time, _)| *time);
        let is_own = candidate.rank_order == setup.rank_order;
        if other.is_none_or(|other| *time < other || (*time == other && is_own)) {
            plans.push((*time, candidate.rank_order, other));
        }
    }
    plans.sort_by_key(|(time, ..)| *time);
    plans
}

/// Which ranks share a node matters there.
fn two_nodes(mut setup: Setup) -> Setup {
    setup.cluster = cluster("dgx-h100", 16);
    setup.training.parallelism.data = 16;
    setup.training.global_batch = 16;
    setup
}

#[test]
fn a_plan_in_both_orders_of_ranks_is_one_of_the_best() {
    let mut replicas_first = dense();
    replicas_first.rank_order = RankOrder::PipelineBeforeData;
    let (mut tie, mut differ) = (0, 0);
    for setup in [two_nodes(experts()), replicas_first] {
        let all = everything_in(&setup, space_of_both_orders(&setup));
        let expected = each_once(&setup, &all);
        assert!(expected.len() < all.len(), "{} plans", all.len());
        let planner = planner(&setup, space_of_both_orders(&setup)).expect("valid");
        let found = search(&planner, &setup, 40, None, |_| {}).expect("valid");
        assert_eq!(found.bounded, all.len() as u64);
        assert!(found.given_up < found.simulated && found.simulated <= found.bounded);
        assert_eq!(found.best.len(), 40);
        for (at, best) in found.best.iter().enumerate() {
            assert_eq!(best.step_time(), expected[at].0);
            let candidate = best.candidate.as_ref().expect("not the scenario's own");
            let is_reordered = |(_, other): &&(_, Candidate)| other.is_reordered(candidate);
            let Some((other, _)) = all.iter().find(is_reordered) else {
                assert_eq!(best.reordered, None);
                continue;
            };
            assert_eq!(best.reordered, Some(Reordered::Takes(*other)));
            assert!(best.step_time() <= *other);
            if best.step_time() == *other {
                assert_eq!(best.rank_order, setup.rank_order);
                tie += 1;
            } else {
                differ += 1;
            }
            let mut others = found
                .best
                .iter()
                .filter_map(|other| other.candidate.as_ref());
            assert!(others.all(|other| !other.is_reordered(candidate)));
        }
    }
    assert!(tie > 0 && differ > 0, "{tie} tie and {differ} differ");
}

/// Where no simulation is left for the other order, what is said of it holds.
#[test]
fn a_limit_bounds_the_other_order_of_ranks() {
    let setup = two_nodes(experts());
    let all = everything_in(&setup, space_of_both_orders(&setup));
    let planner = planner(&setup, space_of_both_orders(&setup)).expect("valid");
    let mut bounded = 0;
    for limit in (9..80).step_by(14) {
        let found = search(&planner, &setup, 40, Some(limit), |_| {}).expect("valid");
        assert!(found.simulated <= limit, "{} of {limit}", found.simulated);
        for best in &found.best {
            let candidate = best.candidate.as_ref().expect("not the scenario's own");
            let other = all.iter().find(|(_, other)| other.is_reordered(candidate));
            let other = other.map(|(time, _)| *time);
            match best.reordered {
                Some(Reordered::AtLeast(bound)) => {
                    bounded += 1;
                    assert!(other.is_some_and(|other| bound <= other));
                }
                Some(Reordered::Takes(time)) => assert_eq!(Some(time), other),
                None => assert_eq!(other, None),
            }
        }
    }
    assert!(bounded > 0, "all were simulated");
}

/// So close to the limit of memory that the allocator decides which plan is the best. Those whose tensors find no place beside what
/// it holds are counted and left out, and no others.
#[test]
fn near_the_limit_of_memory_none_better_is_left_out_either() {
    let (mut decided, mut left_out) = (0, 0);
    for (of, gigabytes) in [(experts(), 3.9), (experts(), 4.5), (dense(), 4.3)] {
        let mut setup = of;
        setup.cluster.node.accelerator.memory = Bytes::new((gigabytes * 1e9) as u64);
        let mut all = everything(&setup);
        assert!(all.len() > 50, "{} plans", all.len());
        let lists = planner(&setup, small_space(&setup)).expect("valid");
        let listed = all.len();
        all.retain(|(_, candidate)| !lists.lacks_place(candidate));
        let without_place = (listed - all.len()) as u64;
        all.sort_by_key(|(step_time, _)| *step_time);
        let expected: Vec<SimDuration> = all.iter().take(5).map(|(time, _)| *time).collect();
        let search_of = |setup: &Setup| {
            let planner = planner(setup, small_space(setup)).expect("valid");
            let found = search(&planner, setup, 5, None, |_| {}).expect("valid");
            let best = found.best.iter().map(|found| found.step_time());
            (best.collect::<Vec<SimDuration>>(), found)
        };
        let (best, found) = search_of(&setup);
        assert_eq!(best, expected);
        assert!(found.simulated < found.bounded, "nothing is pruned");
        assert!(found.without_place <= without_place);
        let stages = compile(&setup).expect("valid").facts.stages;
        let lacks_place = stages.iter().any(|stage| stage.pressure.lacks_place());
        assert_eq!(found.own_has_place, !lacks_place);
        left_out += found.without_place;
        setup.training.stack.allocator = AllocatorPolicy::Preallocated;
        decided += u32::from(search_of(&setup).0 != expected);
    }
    assert!(decided > 0, "nothing waits for the allocator");
    assert!(left_out > 0, "all have place");
}

/// Collectives of tensor parallelism that take as long as the products beside them: a bound has both them and the waits for the
/// allocator, so neither may hide behind the other.
#[test]
fn what_drains_the_device_waits_for_its_slow_collectives() {
    let mut waiting = 0;
    for (link, from) in [(20, 15.0), (60, 15.0)] {
        for step in 0..60 {
            let memory = from + 0.02 * f64::from(step);
            let text = format!(
                "cluster:
  node: {{ like: dgx-h100, accelerator: {{ like: h100-sxm, memory: {memory:.2} GB }}, scale_up: {{ bandwidth: {link} GB/s }} }}
  gpus: 16
  fabric: rail-optimized
workload:
  training:
    model: llama3-8b
    stack: {{ like: megatron-core-25.04, allocator: expandable_segments }}
    precision: bf16
    sequence_length: 32768
    global_batch: 2
    micro_batch: 1
    parallelism: {{ tensor: 8, zero: 3 }}
    recompute: full
"
            );
            let nothing = |_: &str| Err(std::io::Error::other("it reads no files"));
            let read = parse("slow.yaml", &text).and_then(|scenario| scenario.resolve(&nothing));
            let setup = read.unwrap_or_else(|error| panic!("{error:?}\n{text}"));
            let space = Space {
                recomputes: vec![setup.training.recompute.clone()],
                ..Space::of(&setup)
            };
            let lists = planner(&setup, space).expect("valid");
            let of = setup.training.parallelism.clone();
            let branches = lists.branches();
            let all = branches
                .iter()
                .flat_map(|branch| lists.expand(branch).candidates);
            for own in all.filter(|candidate| candidate.parallelism == of) {
                let step_time = held_against_bounds(&lists, &setup, &own);
                waiting += u32::from(step_time > lists.bound(&own));
            }
        }
    }
    assert!(waiting > 10, "{waiting}");
}

#[test]
fn the_bound_is_tight_enough_to_prune() {
    let setup = dense();
    let planner = Search::new(&setup, Space::of(&setup)).expect("valid");
    let found = search(&planner, &setup, 3, None, |_| {}).expect("valid");
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
fn a_plan_that_cannot_win_is_given_up_on_its_way() {
    let [.., setup] = variants();
    let planner = planner(&setup, Space::of(&setup)).expect("valid");
    let found = search(&planner, &setup, 3, None, |_| {}).expect("valid");
    assert!(found.given_up > 0, "{} simulated", found.simulated);
    assert!(found.given_up < found.simulated);
}

/// With a limit fewer plans are simulated, and what is said of the others holds.
#[test]
fn a_limit_says_what_it_leaves_unproved() {
    for setup in variants() {
        let planner = planner(&setup, small_space(&setup)).expect("valid");
        let proved = search(&planner, &setup, 2, None, |_| {}).expect("valid");
        assert_eq!(proved.unproved, None);
        let best = proved.best[0].step_time();
        let mut unproved = 0;
        for limit in (1..proved.simulated).step_by(3) {
            let found = search(&planner, &setup, 2, Some(limit), |_| {}).expect("valid");
            assert!((1..=limit).contains(&found.simulated));
            assert!(found.best.len() <= 2.min(limit as usize));
            let first = found.best.first().unwrap_or(&found.own).step_time();
            let Some(left) = found.unproved else {
                assert_eq!(first, best);
                continue;
            };
            unproved += 1;
            assert!(first.min(left.at_least) <= best, "{left:?} {best}");
            assert!(left.plans > 0 && left.plans < found.bounded);
        }
        assert!(unproved > 0, "one plan proves nothing");
        let better = improve(&planner, &setup, Some(1), |_| {}).expect("valid");
        assert!(better.simulated <= 1);
        let known = better.best.first().unwrap_or(&better.own).step_time();
        let left = better.unproved.map_or(known, |left| left.at_least);
        assert!(known.min(left) <= best.min(better.own.step_time()));
    }
}

#[test]
fn what_does_not_fit_is_counted() {
    let mut setup = dense();
    setup.cluster.node.accelerator.memory = rackflow_units::Bytes::new(8_000_000_000);
    let planner = Search::new(&setup, Space::of(&setup)).expect("valid");
    let found = search(&planner, &setup, 3, None, |_| {}).expect("valid");
    assert!(found.left_out.all_too_large() > 0);
    assert!(found.left_out.impossible.values().all(|count| *count > 0));
    assert!(!found.left_out.impossible.is_empty());
}
