//! The crate graph is the one that ARCHITECTURE.md draws.

mod common;

use common::root;
use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

type Graph = BTreeMap<String, BTreeSet<String>>;

/// Rows of the one table whose first cell is a crate: "| `units` | its job | `-` or names |".
fn documented() -> Graph {
    let text =
        std::fs::read_to_string(root().join("ARCHITECTURE.md")).expect("ARCHITECTURE.md is there");
    let mut graph = Graph::new();
    for line in text.lines().filter(|line| line.starts_with("| `")) {
        let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
        let [name, _, needs] = cells[..] else {
            panic!("a row of three cells: {line}")
        };
        let needs = needs
            .split(", ")
            .filter(|need| *need != "-")
            .map(str::to_owned)
            .collect();
        graph.insert(name.trim_matches('`').to_owned(), needs);
    }
    graph
}

/// Dependencies of our crates on each other, without those of tests and benches.
fn actual() -> Graph {
    let output = Command::new(env!("CARGO"))
        .args([
            "metadata",
            "--no-deps",
            "--offline",
            "--format-version",
            "1",
        ])
        .current_dir(root())
        .output()
        .expect("cargo runs");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let metadata: serde_json::Value =
        serde_json::from_slice(&output.stdout).expect("cargo writes JSON");
    let short = |name: &serde_json::Value| {
        let name = name.as_str().expect("a package has a name");
        name.strip_prefix("rackflow-").unwrap_or(name).to_owned()
    };
    let ours = |dependency: &&serde_json::Value| {
        !dependency["path"].is_null() && dependency["kind"].is_null()
    };
    let packages = metadata["packages"].as_array().expect("a list of packages");
    packages
        .iter()
        .map(|package| {
            let all = package["dependencies"]
                .as_array()
                .expect("a list of dependencies");
            (
                short(&package["name"]),
                all.iter()
                    .filter(ours)
                    .map(|needed| short(&needed["name"]))
                    .collect(),
            )
        })
        .collect()
}

#[test]
fn the_crate_graph_is_the_documented_one() {
    assert_eq!(
        actual(),
        documented(),
        "left: Cargo.toml files, right: ARCHITECTURE.md"
    );
}

#[test]
fn hardware_and_work_do_not_know_each_other() {
    let graph = actual();
    assert!(!graph["topology"].contains("workload") && !graph["workload"].contains("topology"));
}

#[test]
fn no_crate_needs_one_that_needs_it() {
    let graph = actual();
    fn reach<'a>(graph: &'a Graph, from: &'a str, seen: &mut BTreeSet<&'a str>) {
        for next in &graph[from] {
            if seen.insert(next) {
                reach(graph, next, seen);
            }
        }
    }
    for name in graph.keys() {
        let mut seen = BTreeSet::new();
        reach(&graph, name, &mut seen);
        assert!(!seen.contains(name.as_str()), "{name} needs itself");
    }
}
