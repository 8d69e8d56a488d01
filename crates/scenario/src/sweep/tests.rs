use super::*;

const CLUSTER: &str = "cluster:
  node: dgx-h100
  gpus: 64
  fabric: rail-optimized
workload:
  training:
    model: llama3-8b
    stack: megatron-core-25.04
    precision: bf16
    sequence_length: 8192
    global_batch: 128
    recompute: [norms]
    parallelism: { tensor: 8 }
";

fn sweep(text: &str) -> Sweep {
    match expand("a.yaml", text, None) {
        Ok(sweep) => sweep,
        Err(found) => panic!("{}", found[0]),
    }
}

fn refused(text: &str) -> String {
    expand("a.yaml", text, None).expect_err("a faulty sweep")[0].to_string()
}

fn names(sweep: &Sweep) -> Vec<&str> {
    sweep.cases.iter().map(|case| case.name.as_str()).collect()
}

#[test]
fn a_file_without_lists_is_one_case() {
    let sweep = sweep(CLUSTER);
    assert_eq!(names(&sweep), ["case"]);
    assert!(!is_sweep("a.yaml", CLUSTER));
}

#[test]
fn lists_are_combined_each_with_each_and_the_last_varies_fastest() {
    let text = CLUSTER
        .replace("gpus: 64", "gpus: [64, 128]")
        .replace("precision: bf16", "precision: [bf16, fp8_blockwise]");
    let sweep = sweep(&text);
    assert_eq!(
        names(&sweep),
        [
            "gpus=64+precision=bf16",
            "gpus=64+precision=fp8_blockwise",
            "gpus=128+precision=bf16",
            "gpus=128+precision=fp8_blockwise",
        ]
    );
    assert_eq!(
        sweep.parameters,
        ["cluster.gpus", "workload.training.precision"]
    );
    for case in &sweep.cases {
        case.scenario().expect("every case is a scenario");
    }
}

#[test]
fn what_is_a_list_by_nature_is_no_sweep() {
    assert_eq!(sweep(CLUSTER).cases.len(), 1, "recompute: [norms]");
    let each = CLUSTER.replace(
        "recompute: [norms]",
        "recompute: { each: [none, [norms], full] }",
    );
    assert_eq!(
        names(&sweep(&each)),
        ["recompute=none", "recompute=norms", "recompute=full"]
    );
    let nested = CLUSTER.replace("recompute: [norms]", "recompute: [[norms], [swiglu]]");
    assert_eq!(sweep(&nested).cases.len(), 2);
}

#[test]
fn a_field_of_a_definition_in_place_varies_too() {
    let text = CLUSTER.replace(
        "node: dgx-h100",
        "node: { like: dgx-h100, nic: { rate: [200 Gbit/s, 400 Gbit/s] } }",
    );
    assert_eq!(names(&sweep(&text)), ["rate=200-Gbit-s", "rate=400-Gbit-s"]);
    let fabric = CLUSTER.replace(
        "fabric: rail-optimized",
        "fabric: { like: rail-optimized, rail_optimized: { tiers: [2, 3] } }",
    );
    assert_eq!(sweep(&fabric).cases.len(), 2);
    let models = CLUSTER.replace("model: llama3-8b", "model: [llama3-8b, llama3-70b]");
    assert_eq!(sweep(&models).cases.len(), 2);
}

#[test]
fn ranges_grow_by_factors_and_by_steps() {
    let text = CLUSTER.replace("gpus: 64", "gpus: { from: 64, to: 600, times: 2 }");
    assert_eq!(
        names(&sweep(&text)),
        ["gpus=64", "gpus=128", "gpus=256", "gpus=512"]
    );
    let text = CLUSTER.replace(
        "global_batch: 128",
        "global_batch: { from: 128, to: 384, step: 128 }",
    );
    assert_eq!(sweep(&text).cases.len(), 3);
    let node = |text: &str| {
        let source = Source {
            name: "r".into(),
            text: text.into(),
        };
        yaml::parse(&source).expect("YAML")
    };
    let texts = |text: &str| -> Vec<String> {
        let values = explicit(&node(text)).expect("a range").expect("a range");
        values.iter().map(Node::in_short).collect()
    };
    assert_eq!(
        texts("{ from: 100 Gbit/s, to: 400 Gbit/s, times: 2 }"),
        ["100 Gbit/s", "200 Gbit/s", "400 Gbit/s"]
    );
    assert_eq!(
        texts("{ from: 0.1, to: 0.3, step: 0.1 }"),
        ["0.1", "0.2", "0.3"]
    );
}

#[test]
fn zipped_lists_advance_together() {
    let text = CLUSTER
        .replace("gpus: 64", "gpus: [64, 128]")
        .replace("global_batch: 128", "global_batch: [128, 256]")
        + "sweep: { zip: [[cluster.gpus, workload.training.global_batch]] }\n";
    assert_eq!(
        names(&sweep(&text)),
        ["gpus=64+global_batch=128", "gpus=128+global_batch=256"]
    );
    let uneven = text.replace("[128, 256]", "[128, 256, 512]");
    let message = refused(&uneven);
    assert!(message.contains("has 3 values"), "{message}");
    let unused = CLUSTER.to_owned() + "sweep: { zip: [[cluster.gpus]] }\n";
    assert!(refused(&unused).contains("no case varies it"));
}

#[test]
fn named_cases_change_several_fields_at_once_and_may_hold_lists() {
    let text = CLUSTER.to_owned()
        + "sweep:
  axes:
    scale:
      small: {}
      large: { cluster.gpus: [128, 256], workload.training.global_batch: 512 }
    speed:
      bf16: { workload.training.precision: bf16 }
      fp8: { workload: { training: { precision: fp8_blockwise } } }
";
    let sweep = sweep(&text);
    assert_eq!(
        names(&sweep),
        [
            "small+bf16",
            "small+fp8",
            "large+bf16+gpus=128",
            "large+bf16+gpus=256",
            "large+fp8+gpus=128",
            "large+fp8+gpus=256",
        ]
    );
    assert_eq!(sweep.parameters, ["scale", "speed", "cluster.gpus"]);
    assert!(is_sweep("a.yaml", &text));
    assert!(
        crate::parse("a.yaml", &text).expect_err("many cases")[0]
            .message
            .contains("many")
    );
}

#[test]
fn a_faulty_entry_is_pointed_at_where_it_stands() {
    let text = CLUSTER.replace("gpus: 64", "gpus: [64, 65]");
    let sweep = sweep(&text);
    let files = |_: &str| Err(std::io::ErrorKind::NotFound.into());
    let resolve = |case: &Case| {
        case.scenario()
            .and_then(|scenario| scenario.resolve(&files))
    };
    resolve(&sweep.cases[0]).expect("64 GPUs are fine");
    let found = resolve(&sweep.cases[1]).expect_err("65 GPUs are no whole nodes");
    let text = &found[0].source_text[found[0].span.offset..][..found[0].span.len];
    assert_eq!(text, "65", "{}", found[0]);
}

#[test]
fn faulty_sections_are_refused_with_their_place() {
    for (section, message) in [
        ("sweep: { zipp: [] }", "unknown key `zipp`"),
        ("sweep: { seed: none }", "per_case or shared"),
        ("sweep: [a]", "must be a mapping"),
        ("sweep: { cases: { a: 3 } }", "from fields to their values"),
        (
            "sweep: { cases: { a: { cluster.gpus.x: 3 } } }",
            "has no keys",
        ),
    ] {
        let found = refused(&(CLUSTER.to_owned() + section));
        assert!(found.contains(message), "{section}: {found}");
    }
    for (list, message) in [
        ("[]", "empty list"),
        ("{ each: 3 }", "a list of values"),
        ("{ from: 1, to: 3, times: 1 }", "never gets"),
        ("{ from: 1, to: 3 GB, step: 1 }", "one unit"),
        ("{ from: 1, to: 30000, step: 1 }", "more than"),
    ] {
        let found = refused(&CLUSTER.replace("gpus: 64", &format!("gpus: {list}")));
        assert!(found.contains(message), "{list}: {found}");
    }
}

#[test]
fn each_case_has_a_seed_that_no_other_case_changes() {
    let seeds = |list: &str, section: &str| -> Vec<String> {
        let text = CLUSTER.replace("gpus: 64", &format!("gpus: {list}")) + section;
        let sweep = sweep(&text);
        let seed = |case: &Case| case.tree.at("simulation.seed").map(Node::in_short);
        sweep.cases.iter().filter_map(seed).collect()
    };
    let two = seeds("[64, 128]", "");
    assert_ne!(two[0], two[1]);
    assert_eq!(seeds("[64, 256, 128]", "")[0], two[0]);
    assert_eq!(seeds("[64, 256, 128]", "")[2], two[1]);
    assert_ne!(seeds("[64, 128]", "simulation: { seed: 7 }\n")[0], two[0]);
    let shared = "simulation: { seed: 7 }\nsweep: { seed: shared }\n";
    assert_eq!(seeds("[64, 128]", shared), ["7", "7"]);
}

#[test]
fn a_case_as_text_reads_back_as_the_same_scenario() {
    let text = CLUSTER.replace("gpus: 64", "gpus: [64, 128]").replace(
        "recompute: [norms]",
        "recompute: [norms]\n    assumed: [\"a: b # c\", 'it''s']",
    );
    for case in sweep(&text).cases {
        let again = crate::parse("case.yaml", &case.to_yaml()).expect("a scenario");
        let files = |_: &str| Err(std::io::ErrorKind::NotFound.into());
        let resolve = |scenario: Scenario| {
            let mut setup = scenario.resolve(&files).expect("a setup");
            setup.name.clear();
            setup
        };
        assert_eq!(
            resolve(again),
            resolve(case.scenario().expect("a scenario")),
            "{}",
            case.to_yaml()
        );
    }
}
