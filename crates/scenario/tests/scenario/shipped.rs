use rackflow_scenario::{parse, shipped, shipped_chakra};
use std::io;

/// None of the shipped scenarios names a file.
fn no_files(_: &str) -> io::Result<String> {
    Err(io::Error::from(io::ErrorKind::NotFound))
}

#[test]
fn every_shipped_scenario_resolves() {
    for (name, text) in shipped() {
        let file = format!("{name}.yaml");
        let resolved = parse(&file, text).and_then(|scenario| {
            if scenario.serves() {
                scenario.resolve_serving(&no_files).map(|setup| setup.name)
            } else if scenario.replays() {
                let name = |folder: String| {
                    assert!(shipped_chakra(&folder).is_some(), "{folder} does not ship");
                    (*name).to_owned()
                };
                scenario
                    .resolve_replay(&no_files)
                    .map(|replay| name(replay.traces))
            } else {
                scenario.resolve(&no_files).map(|setup| setup.name)
            }
        });
        match resolved {
            Ok(resolved) => assert_eq!(resolved, *name),
            Err(diagnostics) => {
                let texts: Vec<String> = diagnostics.iter().map(ToString::to_string).collect();
                panic!("{}", texts.join("\n\n"));
            }
        }
    }
}

#[test]
fn every_shipped_scenario_has_a_plan_that_fits() {
    let mut without = Vec::new();
    for (name, text) in shipped() {
        let scenario = parse(name, text).expect("tested above");
        if scenario.serves() {
            let setup = scenario.resolve_serving(&no_files).expect("tested above");
            if let Err(error) = rackflow_plan::serving::compile_fleet(setup) {
                without.push(format!("{name}: {error} {error:?}"));
            }
            continue;
        }
        if scenario.replays() {
            continue;
        }
        let setup = scenario.resolve(&no_files).expect("tested above");
        let fits = rackflow_plan::compile(&setup).and_then(|plan| {
            let mut labels = plan.segments.iter().map(|segment| segment.label);
            assert!(
                labels.all(|label| !label.is_empty()),
                "{name}: a trace names all it shows"
            );
            plan.check_memory()
        });
        if let Err(error) = fits {
            without.push(format!("{name}: {error} {error:?}"));
        }
    }
    assert!(without.is_empty(), "{}", without.join("\n"));
}

#[test]
fn every_shipped_scenario_names_its_schema() {
    for (name, text) in shipped() {
        let first = text.lines().next().unwrap_or_default();
        assert_eq!(
            first, "# yaml-language-server: $schema=../docs/scenario.schema.json",
            "{name}"
        );
    }
}
