//! The table of published plans in `docs/planner.md` is what the planner prints: the same plans, and times
//! within [`NEAR`].
//!
//! `UPDATE=1 cargo test -p rackflow --test planner` writes the rows that are searched in seconds anew, and
//! with `-- --include-ignored` all of them.

mod common;

use common::{fine, root};
use std::fs;
use std::sync::{Mutex, PoisonError};

/// Training scenarios that ship, each with the plan that its source published or that we chose.
const QUICK: [&str; 3] = [
    "quickstart-llama3-8b-8-h100",
    "llama3-8b-64-h100",
    "llama3-70b-512-tpu-v5p",
];
/// Those whose search takes from half a second to minutes in a release build.
const SLOW: [&str; 12] = [
    "bloom-176b-384-a100",
    "dense-33b-2048-h800",
    "llama3-405b-8192-h100",
    "llama3-405b-16384-h100",
    "llama4-32k-h100",
    "deepseek-v3-2048-h800",
    "deepseek-v3-2048-gb200-nvl72",
    "deepseek-v3-2048-gb200-nvl72-nvfp4",
    "deepseek-v3-100352-gb200-nvl72",
    "mixed-llama3-70b-h100-gb200",
    "mixed-llama3-70b-h100-h200-gb200",
    "qwen2.5-vl-72b-64-h100",
];

/// Changes of the simulator move times by so much before the page is written anew.
const NEAR: f64 = 0.02;

/// Whether two rows name the same plans at nearly the same times.
fn are_near(old: &str, new: &str) -> bool {
    let cells =
        |row: &str| -> Vec<String> { row.split('|').map(|cell| cell.trim().to_owned()).collect() };
    let (old, new) = (cells(old), cells(new));
    let seconds = |text: &str| {
        let (number, unit) = text.split_once(' ').expect("a number and its unit");
        let number: f64 = number.parse().expect("a number");
        let units = [("s", 1.0), ("ms", 1e-3)];
        let unit = units.iter().find(|(name, _)| *name == unit);
        number * unit.expect("seconds or milliseconds").1
    };
    let near = |cell: usize| (seconds(&old[cell]) / seconds(&new[cell]) - 1.0).abs() <= NEAR;
    // Scenario, own plan, its time, best plan, its time.
    [1, 2, 4].iter().all(|cell| old[*cell] == new[*cell]) && near(3) && near(5)
}

static PAGE: Mutex<()> = Mutex::new(());

/// The row of each scenario on the page is the one that a search of it prints.
fn holds(scenarios: &[&str]) {
    let path = root().join("docs/planner.md");
    let mut stale = Vec::new();
    for scenario in scenarios {
        let printed = fine(&["plan", scenario, "--format", "markdown"]);
        let begins = format!("| {scenario} |");
        // Two tests may write the page at once.
        let _alone = PAGE.lock().unwrap_or_else(PoisonError::into_inner);
        let text = fs::read_to_string(&path).expect("the page");
        let row_of = |text: &str| {
            let mut rows = text.lines().filter(|row| row.starts_with(&begins));
            rows.next().map(str::to_owned)
        };
        let new = row_of(&printed).expect("a row of the table");
        let old = row_of(&text).unwrap_or_else(|| panic!("no row of {scenario} on the page"));
        if std::env::var_os("UPDATE").is_some() {
            fs::write(&path, text.replace(&old, &new)).expect("the page is written");
        } else if !are_near(&old, &new) {
            stale.push(format!("is {new}\nbut on the page {old}"));
        }
    }
    assert!(stale.is_empty(), "{}", stale.join("\n"));
}

#[test]
fn the_table_of_published_plans_is_what_the_planner_prints() {
    holds(&QUICK);
}

#[test]
fn a_row_of_another_plan_or_time_is_stale() {
    let row = "| a | TP 2 | 4.70 s | TP 1 | 3.70 s | 27.0 % | 9, 8 | why |";
    assert!(are_near(row, &row.replace("3.70 s", "3701 ms")));
    assert!(!are_near(row, &row.replace("3.70 s", "3.90 s")));
    assert!(!are_near(row, &row.replace("TP 1", "TP 4")));
}

#[test]
#[ignore = "takes minutes; `cargo test --release -p rackflow --test planner -- --ignored`"]
fn the_slow_rows_of_the_table_are_too() {
    holds(&SLOW);
}

/// Every training scenario of one job is in the table, but for those that are another one disturbed.
#[test]
fn the_table_names_every_training_scenario() {
    let disturbed = [
        "dead-rail-",
        "flapping-nic-",
        "slow-gpu-",
        "llama3-405b-16384-h100-54-days",
    ];
    let others = ["serve-", "serving-", "replay-", "two-jobs-"];
    let mut missing = Vec::new();
    for entry in fs::read_dir(root().join("scenarios")).expect("the scenarios") {
        let name = entry.expect("a file").file_name();
        let name = name.to_str().expect("a name");
        let Some(name) = name.strip_suffix(".yaml") else {
            continue;
        };
        let left_out = disturbed.iter().chain(&others);
        if left_out.clone().any(|begins| name.starts_with(begins)) {
            continue;
        }
        if !QUICK.contains(&name) && !SLOW.contains(&name) {
            missing.push(name.to_owned());
        }
    }
    assert!(missing.is_empty(), "{missing:?}");
}
