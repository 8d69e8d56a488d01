//! Sweeps as a person uses them: run, killed, resumed, filtered, opened.

mod common;

use common::{command, fine, refused, root, scratch, text, written};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, SystemTime};

const SMALL: &str = "\
cluster: { node: dgx-h100, gpus: [8, 16, 32], fabric: rail-optimized }
workload:
  training:
    model: llama3-8b
    stack: megatron-core-25.04
    precision: [bf16, fp8]
    sequence_length: 8192
    global_batch: 32
    parallelism: { tensor: 2, zero: 1 }
";

/// An empty folder, and a scenario in it.
fn prepared(test: &str, scenario: &str) -> (PathBuf, PathBuf) {
    let folder = scratch(test);
    let file = written(&folder, "sweep.yaml", scenario);
    (folder, file)
}

/// Every file below a folder with its bytes, but for the lock.
fn contents(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut open = vec![folder.to_owned()];
    while let Some(path) = open.pop() {
        for entry in fs::read_dir(&path).expect("a folder") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                open.push(path);
            } else if !path.ends_with(".lock") {
                let name = path.strip_prefix(folder).expect("inside").to_owned();
                found.insert(name, fs::read(&path).expect("a file"));
            }
        }
    }
    found
}

/// Lines of a CSV file as fields by name.
fn rows(folder: &Path) -> Vec<BTreeMap<String, String>> {
    let text = fs::read_to_string(folder.join("results.csv")).expect("results");
    let fields = |line: &str| -> Vec<String> {
        let (mut fields, mut quoted) = (vec![String::new()], false);
        for c in line.chars() {
            match c {
                '"' => quoted = !quoted,
                ',' if !quoted => fields.push(String::new()),
                c => fields.last_mut().expect("one field").push(c),
            }
        }
        fields
    };
    let mut lines = text.lines();
    let names = fields(lines.next().expect("a head"));
    lines
        .map(|line| names.iter().cloned().zip(fields(line)).collect())
        .collect()
}

#[test]
fn the_same_bytes_come_of_any_number_of_threads_and_of_a_second_call() {
    let (folder, file) = prepared("sweep-threads", SMALL);
    let out = |name: &str| folder.join(name);
    for (name, jobs) in [("one", "1"), ("four", "4")] {
        fine(&["sweep", text(&file), "-o", text(&out(name)), "--jobs", jobs]);
    }
    let one = contents(&out("one"));
    assert_eq!(one, contents(&out("four")));
    for name in [
        "results.csv",
        "results.parquet",
        "report.html",
        "manifest.json",
    ] {
        assert!(one.contains_key(Path::new(name)), "{name}");
    }
    assert_eq!(&one[Path::new("results.parquet")][..4], b"PAR1");
    fine(&["sweep", text(&file), "-o", text(&out("one"))]);
    assert_eq!(one, contents(&out("one")), "a second call changes nothing");
}

#[test]
fn a_case_is_what_run_says_of_it() {
    let (folder, file) = prepared("sweep-case", SMALL);
    let out = folder.join("out");
    fine(&["sweep", text(&file), "-o", text(&out)]);
    let rows = rows(&out);
    assert_eq!(rows.len(), 6);
    let case = &rows[3];
    assert_eq!(case["sweep.cluster.gpus"], "16");
    assert_eq!(case["sweep.workload.training.precision"], "fp8");
    let scenario = out.join("cases").join(&case["case"]).join("scenario.yaml");
    let alone: Value =
        serde_json::from_str(&fine(&["run", text(&scenario), "--format", "json"])).expect("JSON");
    let column = |name: &str| case[name].parse::<f64>().expect("a number");
    assert_eq!(
        alone["training"]["step_time_s"].as_f64(),
        Some(column("step_time_s"))
    );
    assert_eq!(alone["engine"]["seed"].as_f64(), Some(column("seed")));
}

#[test]
fn what_cannot_be_simulated_is_a_row_with_its_reason() {
    let scenario = SMALL.replace("gpus: [8, 16, 32]", "gpus: [8, 12]");
    let (folder, file) = prepared("sweep-infeasible", &scenario);
    let out = folder.join("out");
    let summary = fine(&["sweep", text(&file), "-o", text(&out)]);
    assert!(summary.contains("2 of 4 cases ran; 2 cannot"), "{summary}");
    let rows = rows(&out);
    assert_eq!(rows[2]["status"], "infeasible");
    assert!(rows[2]["reason"].contains("12"), "{:?}", rows[2]);
    assert!(rows[2]["step_time_s"].is_empty());
    let checked = fine(&["check", text(&file)]);
    assert!(checked.contains("2 of 4 cases can be run"), "{checked}");
}

#[test]
fn a_filter_runs_some_cases_and_keeps_the_others() {
    let (folder, file) = prepared("sweep-filter", SMALL);
    let out = folder.join("out");
    fine(&["sweep", text(&file), "-o", text(&out), "--filter", "gpus=8"]);
    assert_eq!(rows(&out).len(), 2);
    fine(&[
        "sweep",
        text(&file),
        "-o",
        text(&out),
        "-f",
        "fp8*",
        "-f",
        "gpus=16",
    ]);
    assert_eq!(
        rows(&out).len(),
        3,
        "what was finished stays in the results"
    );
    let listed = fine(&["sweep", text(&file), "--list", "--filter", "gpus=32"]);
    assert_eq!(listed.lines().count(), 2);
    let message = refused(&["sweep", text(&file), "--list", "--filter", "gpus=7"]);
    assert!(message.contains("no case matches"), "{message}");
}

#[test]
fn a_killed_sweep_goes_on_and_loses_nothing() {
    let many = SMALL
        .replace("gpus: [8, 16, 32]", "gpus: 8")
        .replace("precision: [bf16, fp8]", "precision: bf16")
        + "simulation: { seed: { from: 1, to: 12, step: 1 } }\n";
    let (folder, file) = prepared("sweep-killed", &many);
    let (out, whole) = (folder.join("out"), folder.join("whole"));
    let args = ["sweep", text(&file), "-o", text(&out), "--jobs", "1"];
    let mut child = command(&args)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("the binary starts");
    let finished = || -> BTreeMap<PathBuf, SystemTime> {
        let cases = fs::read_dir(out.join("cases"))
            .into_iter()
            .flatten()
            .flatten();
        cases
            .map(|case| case.path().join("case.json"))
            .filter_map(|path| Some((path.clone(), fs::metadata(&path).ok()?.modified().ok()?)))
            .collect()
    };
    while finished().len() < 3 && child.try_wait().expect("a child").is_none() {
        sleep(Duration::from_millis(1));
    }
    // SIGKILL: nothing of the program runs after it.
    child.kill().expect("the child is there");
    child.wait().expect("the child is gone");
    let before = finished();
    assert!(before.len() >= 3);
    for path in before.keys() {
        let record: Value = serde_json::from_slice(&fs::read(path).expect("a file"))
            .expect("a finished case is whole");
        assert_eq!(record["status"], "done");
        assert!(path.with_file_name("report.json").exists());
    }
    fine(&args);
    let after = finished();
    assert_eq!(after.len(), 12);
    for (path, written) in &before {
        assert_eq!(after[path], *written, "{} ran twice", path.display());
    }
    fine(&["sweep", text(&file), "-o", text(&whole)]);
    assert_eq!(contents(&out), contents(&whole));
}

#[cfg(unix)]
#[test]
fn an_interrupted_sweep_writes_up_what_is_finished_and_goes_on() {
    let many = SMALL
        .replace("gpus: [8, 16, 32]", "gpus: 8")
        .replace("precision: [bf16, fp8]", "precision: bf16")
        + "simulation: { seed: { from: 1, to: 40, step: 1 } }\n";
    let (folder, file) = prepared("sweep-interrupted", &many);
    let out = folder.join("out");
    let args = ["sweep", text(&file), "-o", text(&out), "--jobs", "1"];
    let child = command(&args)
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the binary starts");
    let cases = || fs::read_dir(out.join("cases")).map_or(0, Iterator::count);
    while cases() < 2 {
        sleep(Duration::from_millis(1));
    }
    let interrupt = Command::new("kill")
        .args(["-INT", &child.id().to_string()])
        .status();
    assert!(interrupt.expect("kill starts").success());
    let output = child.wait_with_output().expect("the child is gone");
    let message = String::from_utf8_lossy(&output.stderr);
    // A machine that is fast enough has nothing left to stop.
    if output.status.success() {
        assert_eq!(rows(&out).len(), 40);
        return;
    }
    assert_eq!(output.status.code(), Some(1), "{message}");
    assert!(message.contains("the same command goes on"), "{message}");
    let before = rows(&out).len();
    assert!((1..40).contains(&before), "{before}");
    assert!(out.join("report.html").exists());
    fine(&args);
    assert_eq!(rows(&out).len(), 40);
}

#[test]
fn a_changed_scenario_runs_again_what_it_changes() {
    let (folder, file) = prepared("sweep-changed", SMALL);
    let out = folder.join("out");
    fine(&["sweep", text(&file), "-o", text(&out)]);
    let written = |case: &str| {
        let path = out.join("cases").join(case).join("case.json");
        fs::metadata(path)
            .and_then(|meta| meta.modified())
            .expect("a finished case")
    };
    let case = "gpus=8+precision=bf16";
    let before = written(case);
    fs::write(&file, SMALL.replace("[8, 16, 32]", "[64, 8, 16]")).expect("a scenario");
    fine(&["sweep", text(&file), "-o", text(&out)]);
    assert_eq!(written(case), before, "the same case is not run again");
    assert_eq!(rows(&out).len(), 6);
    fs::write(&file, SMALL.replace("global_batch: 32", "global_batch: 64")).expect("a scenario");
    fine(&["sweep", text(&file), "-o", text(&out)]);
    assert!(written(case) > before, "another batch is another case");
}

#[test]
fn other_peoples_folders_are_left_alone() {
    let (folder, file) = prepared("sweep-foreign", SMALL);
    let message = refused(&["sweep", text(&file), "-o", text(&folder)]);
    assert!(message.contains("holds other files"), "{message}");
    let typo = folder.join("typo.yaml");
    fs::write(&typo, SMALL.replace("[bf16, ", "[bf17, ")).expect("a scenario");
    let message = refused(&["sweep", text(&typo), "-o", text(&folder.join("out"))]);
    assert!(message.contains("typo.yaml:6:17"), "{message}");
    assert!(!folder.join("out").exists());
    let message = refused(&["run", text(&file)]);
    assert!(message.contains("`rackflow sweep`"), "{message}");
}

#[test]
#[allow(
    clippy::disallowed_methods,
    reason = "a switch for the person who runs the tests"
)]
fn the_documented_columns_are_those_of_the_results() {
    let path = root().join("docs/sweeps.md");
    let page = fs::read_to_string(&path).expect("the page is there");
    let start = "cargo test -p rackflow --test sweep -->\n";
    let (before, rest) = page.split_once(start).expect("the table begins");
    let end = "<!-- end of columns -->";
    let (_, after) = rest.split_once(end).expect("the table ends");
    let table = rackflow_report::sweep::describe();
    let expected = format!("{before}{start}\n{table}\n{end}{after}");
    if std::env::var("UPDATE").is_ok_and(|value| value == "1") {
        fs::write(&path, &expected).expect("the page is written");
        return;
    }
    assert!(
        page == expected,
        "UPDATE=1 cargo test -p rackflow --test sweep writes the columns"
    );
}

/// The page, with a script that uses it as a person would and leaves what it saw.
const VISITOR: &str = r##"<script>
const table = document.querySelector("#cases");
const head = [...table.tHead.rows[0].cells].find((cell) => cell.textContent.startsWith("step time"));
const seen = () => [...table.tBodies[0].rows].map((row) => Number(row.cells[head.cellIndex].dataset.v));
const before = seen();
head.click();
const up = seen();
head.click();
const down = seen();
const shown = (svg) => svg.getBoundingClientRect().width > 300 && svg.querySelectorAll("*").length > 20;
const figures = [...document.querySelectorAll("figure svg")].filter(shown).length;
const fetched = performance.getEntriesByType("resource").length;
document.body.innerHTML = "<pre>" + JSON.stringify({ before, up, down, figures, fetched }) + "</pre>";
</script>"##;

#[test]
fn the_page_shows_its_figures_and_its_tables_sort_in_chromium() {
    let browser = ["chromium", "chromium-browser", "google-chrome"]
        .into_iter()
        .find(|name| Command::new(name).arg("--version").output().is_ok());
    let Some(browser) = browser else {
        eprintln!("skipped: there is no Chromium here (Debian: apt install chromium)");
        return;
    };
    let (folder, file) = prepared("sweep-page", SMALL);
    let out = folder.join("out");
    fine(&["sweep", text(&file), "-o", text(&out)]);
    let page = fs::read_to_string(out.join("report.html")).expect("the page");
    let visited = folder.join("visited.html");
    fs::write(
        &visited,
        page.replace("</body>", &format!("{VISITOR}</body>")),
    )
    .expect("a page");
    let profile = folder.join("profile");
    let output = Command::new(browser)
        .args([
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
        ])
        .arg(format!("--user-data-dir={}", profile.display()))
        .args(["--window-size=1280,1000", "--dump-dom"])
        .arg(format!("file://{}", visited.display()))
        .stderr(Stdio::null())
        .output()
        .expect("Chromium starts");
    let dom = String::from_utf8_lossy(&output.stdout);
    let seen = dom
        .split_once("<pre>")
        .and_then(|(_, rest)| rest.split_once("</pre>"))
        .map(|(seen, _)| seen)
        .unwrap_or_else(|| panic!("the script of the page ran: {dom}"));
    let seen: Value = serde_json::from_str(seen).expect("what the visitor saw");
    let numbers = |key: &str| -> Vec<f64> {
        let all = seen[key].as_array().expect("a list");
        all.iter()
            .map(|value| value.as_f64().expect("a number"))
            .collect()
    };
    let (before, up, down) = (numbers("before"), numbers("up"), numbers("down"));
    assert_eq!(before.len(), 6);
    assert_ne!(before, up, "the cases do not stand in order of step time");
    assert!(up.is_sorted(), "{up:?}");
    assert!(down.is_sorted_by(|a, b| a >= b), "{down:?}");
    assert!(seen["figures"].as_u64() >= Some(3), "{seen}");
    assert_eq!(seen["fetched"], 0, "the page fetches nothing");
}

#[test]
fn two_runs_are_compared_cause_by_cause() {
    let (folder, file) = prepared("compare", SMALL);
    let out = folder.join("out");
    fine(&["sweep", text(&file), "-o", text(&out)]);
    let case = |name: &str| out.join("cases").join(name);
    let (a, b) = (case("gpus=8+precision=bf16"), case("gpus=32+precision=fp8"));
    let report = a.join("report.json");
    let scenario = b.join("scenario.yaml");
    let found: Value = serde_json::from_str(&fine(&[
        "compare",
        text(&report),
        text(&scenario),
        "--format",
        "json",
    ]))
    .expect("JSON");
    let sum: f64 = found["causes"]
        .as_array()
        .expect("causes")
        .iter()
        .map(|cause| cause["difference"].as_f64().expect("a difference"))
        .sum();
    let total = found["total"]["difference"].as_f64().expect("a total");
    assert!(
        (sum - total).abs() < 1e-9 * total.abs().max(1.0),
        "{sum} {total}"
    );
    assert!(total < 0.0, "fp8 spends less GPU time");
    let words = fine(&["compare", text(&report), text(&b.join("report.json"))]);
    assert!(
        words.contains("effective FLOP/s per GPU") && words.contains("precision"),
        "{words}"
    );
    let message = refused(&["compare", text(&out.join("manifest.json")), text(&report)]);
    assert!(message.contains("is no report"), "{message}");
}
