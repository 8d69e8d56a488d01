//! A found plan, pasted into its scenario.

use rackflow_plan::{Candidate, Setup, Space, compile};
use rackflow_report::PlanSearch;
use rackflow_scenario::parse;
use rackflow_simulator::{Found, Outcome, planner, simulate};

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
            let outcome = Outcome {
                best: vec![
                    found(Some(candidate.clone()), &candidate.setup(&setup)),
                    own.clone(),
                ],
                own,
                own_fits: true,
                bounded: 1,
                closely: 0,
                simulated: 1,
                given_up: 0,
                unproved: None,
                refused: 0,
                left_out: Default::default(),
            };
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
