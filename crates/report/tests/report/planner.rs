//! A found plan, pasted into its scenario.

use rackflow_plan::{Candidate, Setup, Space, compile};
use rackflow_report::{PlanComparison, PlanSearch, Style};
use rackflow_scenario::parse;
use rackflow_simulator::{Found, Outcome, Reordered, planner, simulate};
use rackflow_units::SimDuration;

/// A scenario whose training has these keys besides those of the plan.
fn scenario(model: &str, gpus: u32, plan: &str) -> Setup {
    let indented: String = plan.lines().map(|line| format!("    {line}\n")).collect();
    let text = format!(
        "cluster: {{ node: dgx-h100, gpus: {gpus}, fabric: rail-optimized }}\nworkload:\n  training:\n    model: {model}\n    \
         stack: megatron-core-25.04\n    sequence_length: 4096\n    global_batch: 64\n    \
         routing: {{ lognormal: {{ sigma: 0.1 }} }}\n{indented}"
    );
    let nothing = |_: &str| Err(std::io::Error::other("it reads no files"));
    let read = parse("pasted.yaml", &text).and_then(|scenario| scenario.resolve(&nothing));
    read.unwrap_or_else(|error| panic!("{error:?}\n{text}"))
}

fn found(candidate: Option<Candidate>, setup: &Setup) -> Found {
    Found {
        rank_order: setup.rank_order,
        candidate,
        record: simulate(&compile(setup).expect("a listed plan can be made")),
        reordered: None,
    }
}

/// A plan is one line, which says what its other order of ranks takes.
#[test]
fn a_plan_says_what_its_other_order_of_ranks_takes() {
    let setup = scenario(
        "llama3-8b",
        8,
        "precision: bf16\nrecompute: full\nparallelism: { tensor: 2, pipeline: 2 }\n",
    );
    let time = found(None, &setup).step_time();
    let of = |share: f64| SimDuration::from_picos((time.as_picos() as f64 * share) as u64);
    for (reordered, words) in [
        (None, "stages side by side"),
        (
            Some(Reordered::Takes(time)),
            "stages side by side (replicas: as long)",
        ),
        (
            Some(Reordered::Takes(of(1.012))),
            "stages side by side (replicas: 1.2 % longer)",
        ),
        (
            Some(Reordered::AtLeast(of(1.004))),
            "stages side by side (replicas: at least 0.4 % longer)",
        ),
        (
            Some(Reordered::AtLeast(of(0.97))),
            "stages side by side (replicas: not simulated)",
        ),
    ] {
        let mut own = found(None, &setup);
        own.reordered = reordered;
        let rows = PlanSearch::of(&outcome(vec![own.clone()], own));
        let line = rows.best[0].shorthand();
        assert!(line.ends_with(words), "{line}");
        assert_eq!(rows.best[0].other_rank_order.is_some(), reordered.is_some());
    }
}

fn outcome(best: Vec<Found>, own: Found) -> Outcome {
    Outcome {
        best,
        own,
        own_fits: true,
        own_has_place: true,
        bounded: 1,
        closely: 0,
        without_place: 0,
        simulated: 1,
        given_up: 0,
        unproved: None,
        refused: 0,
        left_out: Default::default(),
    }
}

/// What was left out is said, in words that agree in number.
#[test]
fn plans_that_the_allocator_leaves_no_place_are_counted() {
    let setup = scenario("llama3-8b", 8, "precision: bf16\n");
    let own = found(None, &setup);
    for (without_place, words) in [
        (0, None),
        (1, Some("  1 of those that fit leaves the allocator's")),
        (
            1_200,
            Some("  1,200 of those that fit leave the allocator's"),
        ),
    ] {
        let mut outcome = outcome(vec![own.clone()], own.clone());
        outcome.without_place = without_place;
        let found = PlanSearch::of(&outcome);
        assert_eq!(found.without_place, without_place);
        let text = found.render(&Style::default());
        match words {
            Some(words) => assert!(text.contains(words), "{text}"),
            None => assert!(!text.contains("no place"), "{text}"),
        }
    }
}

/// What is said of a scenario whose own plan does not fit, or leaves the allocator no place, alone and beside others.
#[test]
fn an_own_plan_without_place_is_nothing_to_beat() {
    let setup = scenario("llama3-8b", 8, "precision: bf16\n");
    let own = found(None, &setup);
    for (fits, has_place, best, words, beside) in [
        (true, true, true, "own plan\n", "a little of everything"),
        (
            true,
            true,
            false,
            "own plan\n",
            "its own plan is the best: none of 1 others that fit is faster but for 1 that",
        ),
        (false, true, true, "does not fit", "a little of everything"),
        (
            true,
            false,
            true,
            "leave no place: with just enough",
            "leave its own plan no place\n",
        ),
        (
            true,
            false,
            false,
            "leave no place: with just enough",
            "no place, nor any of 1 others",
        ),
    ] {
        let shown = if best { vec![own.clone()] } else { vec![] };
        let mut outcome = outcome(shown, own.clone());
        (outcome.own_fits, outcome.own_has_place) = (fits, has_place);
        outcome.without_place = u64::from(!best);
        let text = PlanSearch::of(&outcome).render(&Style::default());
        assert!(text.contains(words), "{text}");
        assert_eq!(text.contains("none is left"), !best, "{text}");
        let mut comparison = PlanComparison::default();
        comparison.add(&outcome);
        let text = comparison.render(&Style::default()).replace("\n  ", " ");
        assert!(text.contains(beside), "{text}");
        assert_eq!(
            text.contains("more throughput"),
            best && has_place,
            "{text}"
        );
        let markdown = comparison.to_markdown();
        assert_eq!(markdown.contains("| - |"), !has_place, "{markdown}");
    }
}

/// The YAML of any plan, put into the scenario, is that plan: it takes the same time.
#[test]
fn a_pasted_plan_is_the_plan() {
    let own = [
        (
            "minimax-m2.5",
            64,
            "precision: bf16\nrecompute: full\nparallelism: { tensor: 4, pipeline: 8, expert: 8 }\n",
        ),
        (
            "llama3-8b",
            8,
            "precision: bf16\nrecompute: { full_layers: 3 }\nparallelism: { tensor: 2, pipeline: 2 }\nlayers_per_chunk: [15, 17]\n",
        ),
    ];
    for (model, gpus, plan) in own {
        let setup = scenario(model, gpus, plan);
        let search = planner(&setup, Space::of(&setup)).expect("valid");
        let branches = search.branches();
        let all = branches
            .iter()
            .flat_map(|branch| search.expand(branch).candidates);
        let all: Vec<Candidate> = all.collect();
        let empty_ends = |candidate: &&Candidate| {
            let plan = &candidate.parallelism;
            u64::from(plan.pipeline * plan.virtual_pipeline) > setup.training.model.layers
        };
        let ends: Vec<&Candidate> = all.iter().filter(empty_ends).collect();
        assert!(gpus == 8 || !ends.is_empty(), "none of {} plans", all.len());
        let some = all.iter().step_by(all.len() / 8 + 1);
        for candidate in some.chain(ends.iter().copied().step_by(ends.len() / 3 + 1)) {
            let own = found(None, &setup);
            let step_time = own.step_time();
            let of_candidate = found(Some(candidate.clone()), &candidate.setup(&setup));
            let outcome = outcome(vec![of_candidate, own.clone()], own);
            let [best, _] = &outcome.best[..] else {
                unreachable!("two plans")
            };
            let rows = PlanSearch::of(&outcome);
            let pasted = scenario(model, gpus, &rows.best[0].yaml);
            assert_eq!(pasted, candidate.setup(&setup), "{}", rows.best[0].yaml);
            let again = simulate(&compile(&pasted).expect("valid"));
            assert_eq!(again.step_time, best.step_time(), "{}", rows.best[0].yaml);
            // The scenario's own plan as well.
            let pasted = scenario(model, gpus, &rows.own.yaml);
            let again = simulate(&compile(&pasted).expect("valid"));
            assert_eq!(again.step_time, step_time, "{}", rows.own.yaml);
        }
    }
}
