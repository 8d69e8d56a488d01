//! Every file in `tests/bad` is refused with exactly the text beside it.
//!
//! `BLESS=1 cargo test -p rackflow-scenario` writes the texts anew; read them before you commit.

use rackflow_plan::compile;
use rackflow_scenario::{Diagnostic, parse};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/bad")
}

/// The only file that a scenario of the corpus can read.
fn files(path: &str) -> io::Result<String> {
    match path {
        "notes.json" => Ok("{ \"title\": \"shopping list\" }".to_owned()),
        _ => Err(io::Error::new(io::ErrorKind::NotFound, "no such file")),
    }
}

fn refused(name: &str, text: &str) -> Vec<Diagnostic> {
    let scenario = match parse(name, text) {
        Ok(scenario) => scenario,
        Err(diagnostics) => return diagnostics,
    };
    let written = scenario.written();
    if scenario.serves() {
        return match scenario.resolve_serving(&files) {
            Ok(setup) => match rackflow_plan::serving::compile_fleet(setup.clone()) {
                Ok(_) => panic!("{name} is not refused"),
                Err(error) => vec![written.fleet_refusal(&setup, &error)],
            },
            Err(diagnostics) => diagnostics,
        };
    }
    if scenario.replays() {
        return match scenario.resolve_replay(&files) {
            Ok(_) => panic!("{name} is not refused"),
            Err(diagnostics) => diagnostics,
        };
    }
    let setup = match scenario.resolve(&files) {
        Ok(setup) => setup,
        Err(diagnostics) => return diagnostics,
    };
    match compile(&setup).and_then(|plan| plan.check_memory()) {
        Ok(()) => panic!("{name} is not refused"),
        Err(error) => vec![written.refusal(&setup, &error)],
    }
}

#[allow(
    clippy::disallowed_methods,
    reason = "a test may be told to write what it would compare"
)]
fn bless() -> bool {
    std::env::var("BLESS").is_ok_and(|value| !value.is_empty())
}

fn corpus() -> Vec<PathBuf> {
    let entries = fs::read_dir(folder()).expect("the corpus is there");
    let mut paths: Vec<PathBuf> = entries
        .map(|entry| entry.expect("the corpus is readable").path())
        .filter(|path| {
            path.extension()
                .is_some_and(|extension| extension == "yaml")
        })
        .collect();
    paths.sort();
    paths
}

#[test]
fn every_bad_scenario_is_refused_with_its_text() {
    let paths = corpus();
    assert!(paths.len() >= 60, "the corpus has {} files", paths.len());
    let mut wrong = Vec::new();
    for path in paths {
        let name = path
            .file_name()
            .and_then(|name| name.to_str())
            .expect("names are ASCII");
        let text = fs::read_to_string(&path).expect("the corpus is readable");
        let found: Vec<String> = refused(name, &text)
            .iter()
            .map(ToString::to_string)
            .collect();
        let found = found.join("\n\n") + "\n";
        let beside = path.with_extension("txt");
        if bless() {
            fs::write(&beside, &found).expect("the corpus is writable");
            continue;
        }
        let expected = fs::read_to_string(&beside).unwrap_or_default();
        if found != expected {
            wrong.push(format!("{name}\nexpected\n{expected}\nfound\n{found}"));
        }
    }
    assert!(
        wrong.is_empty(),
        "{}\nBLESS=1 writes the texts anew",
        wrong.join("\n")
    );
}

#[test]
fn a_place_is_the_line_and_column_of_its_bytes() {
    for path in corpus() {
        let text = fs::read_to_string(&path).expect("the corpus is readable");
        for found in refused("bad.yaml", &text) {
            let before = &text[..found.span.offset];
            assert_eq!(
                found.line,
                before.matches('\n').count() + 1,
                "{}",
                path.display()
            );
            let column = before
                .rsplit('\n')
                .next()
                .unwrap_or_default()
                .chars()
                .count()
                + 1;
            assert_eq!(found.column, column, "{}", path.display());
            assert!(text.is_char_boundary(found.span.offset + found.span.len));
            assert!(!found.to_string().contains('\u{1b}'), "{}", path.display());
        }
    }
}
