//! The command line as a person uses it: the binary is run, and what it prints and leaves is read.
//!
//! Files that are made from output (the README's example, its picture, the schemas) are compared
//! with a fresh run; `UPDATE=1 cargo test -p rackflow --test cli` writes them anew.

mod common;

use common::{command, failed, fine, rackflow, root, scratch};
use serde_json::Value;
use std::fs;
use std::io::Write;
use std::process::{Command, Stdio};

const QUICK: &str = "quickstart-llama3-8b-8-h100";
const MAIN_JOB: &str = "scenarios/deepseek-v3-2048-h800.yaml";

fn json(text: &str) -> Value {
    serde_json::from_str(text).expect("one JSON document")
}

/// The report without the one value that differs between reruns.
fn without_wall_time(text: &str) -> Value {
    let mut report = json(text);
    report["engine"]["wall_s"] = Value::Null;
    report
}

#[allow(
    clippy::disallowed_methods,
    reason = "a switch for the person who runs the tests"
)]
fn updating() -> bool {
    std::env::var("UPDATE").is_ok_and(|value| value == "1")
}

/// Holds a file of the repository against what it must be, or writes it.
fn check_file(name: &str, expected: &str) {
    let path = root().join(name);
    if updating() {
        fs::write(&path, expected).expect("the file is written");
    }
    let found = fs::read_to_string(&path).unwrap_or_default();
    let up_to_date = found == expected;
    assert!(
        up_to_date,
        "{name} is out of date; UPDATE=1 cargo test -p rackflow --test cli writes it"
    );
}

// ---- run

#[test]
fn every_shipped_scenario_runs_and_its_report_holds_together() {
    let listed = json(&fine(&["list", "scenarios", "--format", "json"]));
    let scenarios = listed["scenarios"].as_array().expect("a list");
    assert!(scenarios.len() >= 7, "{scenarios:?}");
    for scenario in scenarios {
        let name = scenario["name"].as_str().expect("a name");
        assert!(
            !scenario["description"]
                .as_str()
                .unwrap_or_default()
                .is_empty(),
            "{name} says what it is"
        );
        let report = json(&fine(&["run", name, "--format", "json"]));
        if let Some(jobs) = report["jobs"].as_array() {
            assert!(jobs.len() > 1, "{name}");
            continue;
        }
        let sum: f64 = report["waterfall"]
            .as_array()
            .expect("a waterfall")
            .iter()
            .map(|loss| loss["fraction"].as_f64().expect("a fraction"))
            .sum();
        assert!(
            (sum - 1.0).abs() < 1e-9,
            "{name}: the waterfall sums to {sum}"
        );
        let racks = report["racks"].as_array().expect("racks");
        let gpus: u64 = racks
            .iter()
            .map(|rack| rack["gpus"].as_u64().expect("a count"))
            .sum();
        assert_eq!(Some(gpus), report["cluster"]["gpus"].as_u64(), "{name}");
        let effective: f64 = racks
            .iter()
            .map(|rack| rack["effective_flops"].as_f64().expect("a rate"))
            .sum();
        if let Some(replayed) = report["replay"]["tflops_per_gpu"].as_f64() {
            let whole = replayed * 1e12 * gpus as f64;
            assert!((effective / whole - 1.0).abs() < 1e-9, "{name}");
            continue;
        }
        let Some(model) = report["training"]["model_tflops_per_gpu"]["causal"].as_f64() else {
            let serving = &report["serving"];
            for key in [
                "output_tokens_per_s",
                "joules_per_output_token",
                "requests_per_s",
            ] {
                assert!(
                    serving[key].as_f64().expect("a rate") > 0.0,
                    "{name}: {key}"
                );
            }
            assert_eq!(serving["requests_refused"], 0, "{name}");
            continue;
        };
        let whole = model * 1e12 * gpus as f64;
        assert!(
            (effective / whole - 1.0).abs() < 2e-3,
            "{name}: racks {effective}, model {whole}"
        );
    }
}

#[test]
fn serving_writes_a_row_for_each_request_and_its_reports() {
    let folder = scratch("serving");
    let rows = folder.join("rows.csv");
    let name = rows.to_str().expect("a name");
    let output = rackflow(&[
        "run",
        "serve-qwen3-8b-diffusion",
        "--requests",
        name,
        "-o",
        folder.to_str().expect("a name"),
    ]);
    assert!(output.status.success());
    let text = fs::read_to_string(&rows).expect("rows");
    assert_eq!(text.lines().count(), 401, "a header and 400 requests");
    assert!(folder.join("waterfall.svg").exists() && folder.join("report.json").exists());
    let parquet = folder.join("rows.parquet");
    let name = parquet.to_str().expect("a name");
    rackflow(&["run", "serve-qwen3-8b-diffusion", "--requests", name]);
    assert!(fs::read(&parquet).expect("rows").starts_with(b"PAR1"));
    let told = failed(
        &["run", "serve-qwen3-8b-diffusion", "--requests", "rows.txt"],
        2,
    );
    assert!(told.contains(".csv or .parquet"), "{told}");
    let told = failed(&["run", QUICK, "--requests", "rows.csv"], 2);
    assert!(told.contains("this one trains"), "{told}");
}

#[test]
fn a_faulty_trace_is_refused_at_its_line() {
    let folder = scratch("trace");
    let scenario = fs::read_to_string(root().join("scenarios/serve-kv-store-trace.yaml"))
        .expect("the scenario ships")
        .replace("traces/documents-multi-turn.jsonl", "requests.csv");
    let file = folder.join("s.yaml");
    fs::write(&file, scenario).expect("a scratch folder");
    let file = file.to_str().expect("a name");
    let told = failed(&["run", file], 2);
    assert!(told.contains("requests.csv cannot be read"), "{told}");
    let trace = "TIMESTAMP,ContextTokens,GeneratedTokens\n0,10,5\n1,ten,5\n";
    fs::write(folder.join("requests.csv"), trace).expect("a scratch folder");
    let told = failed(&["run", file], 2);
    assert!(
        told.contains("`ContextTokens` is `ten`") && told.contains("requests.csv:3"),
        "{told}"
    );
}

#[test]
fn plan_searches_the_rate_of_a_serving_scenario() {
    let found = json(&fine(&[
        "plan",
        "serve-llama3-70b-8-h100",
        "--format",
        "json",
    ]));
    let ways = found["candidates"].as_array().expect("ways");
    assert!(ways.len() >= 3, "{ways:?}");
    // The best has prefill and decode apart; replicas that do both are among the others.
    let names: Vec<&str> = ways.iter().filter_map(|way| way["name"].as_str()).collect();
    assert!(
        names.iter().any(|name| name.starts_with("prefill ")),
        "{names:?}"
    );
    assert!(names.contains(&"2 x TP4"), "{names:?}");
    let best = ways[0]["goodput_requests_per_s_per_gpu"]
        .as_f64()
        .expect("a rate");
    for way in found["beaten"].as_array().expect("ways") {
        let below = way["below_requests_per_s_per_gpu"]
            .as_f64()
            .expect("a rate");
        assert!(below < best * 1.03, "{way}");
    }
    for way in ways {
        assert!(way["goodput_requests_per_s"].as_f64().expect("a rate") > 0.0);
        assert!(way["slo_attainment"].as_f64().expect("a share") >= 0.95);
    }
    assert!(!found["pareto"].as_array().expect("a front").is_empty());
    let told = failed(&["plan", "serve-kv-store-trace", "--attainment", "2"], 2);
    assert!(told.contains("between 0 and 1"), "{told}");
}

#[test]
fn a_report_has_the_keys_of_its_schema() {
    let report = json(&fine(&["run", QUICK, "--format", "json"]));
    let schema = json(&fine(&["schema", "report"]));
    let required = |schema: &Value, report: &Value, at: &str| {
        for key in schema["required"].as_array().expect("required keys") {
            let key = key.as_str().expect("a key");
            assert!(report.get(key).is_some(), "{at}{key} is missing");
        }
    };
    required(&schema, &report, "");
    for (part, definition) in [
        ("cluster", "Cluster"),
        ("training", "Training"),
        ("engine", "Engine"),
        ("plan", "Plan"),
    ] {
        required(
            &schema["$defs"][definition],
            &report[part],
            &format!("{part}."),
        );
    }
    required(&schema["$defs"]["Rack"], &report["racks"][0], "racks[0].");
    required(
        &schema["$defs"]["Loss"],
        &report["waterfall"][0],
        "waterfall[0].",
    );
}

#[test]
fn a_rerun_gives_the_same_bytes_but_for_the_wall_time() {
    let once = fine(&["run", QUICK, "--format", "json"]);
    let again = fine(&["run", QUICK, "--format", "json"]);
    assert_eq!(without_wall_time(&once), without_wall_time(&again));
    let strip = |text: &str| -> Vec<String> {
        text.lines()
            .filter(|line| !line.contains("\"wall_s\""))
            .map(str::to_owned)
            .collect()
    };
    assert_eq!(strip(&once), strip(&again));
}

#[test]
fn full_fidelity_gives_the_same_report_as_folded() {
    let mut folded = without_wall_time(&fine(&[
        "run",
        QUICK,
        "--format",
        "json",
        "--fidelity",
        "folded",
    ]));
    let mut full = without_wall_time(&fine(&[
        "run",
        QUICK,
        "--format",
        "json",
        "--fidelity",
        "full",
    ]));
    assert_eq!(full["engine"]["fidelity"], "full");
    folded["engine"] = Value::Null;
    full["engine"] = Value::Null;
    assert_eq!(folded, full);
}

#[test]
fn a_seed_on_the_command_line_replaces_the_scenarios() {
    let report = json(&fine(&["run", QUICK, "--seed", "7", "--format", "json"]));
    assert_eq!(report["engine"]["seed"], 7);
}

#[test]
fn a_folder_gets_the_report_in_every_form_and_nothing_else() {
    let folder = scratch("folder").join("deep/er");
    let output = rackflow(&[
        "run",
        QUICK,
        "--format",
        "json",
        "-o",
        folder.to_str().expect("a path of text"),
    ]);
    assert!(output.status.success());
    let mut names: Vec<String> = fs::read_dir(&folder)
        .expect("the folder was made")
        .map(|entry| {
            entry
                .expect("an entry")
                .file_name()
                .to_string_lossy()
                .into_owned()
        })
        .collect();
    names.sort();
    assert_eq!(names, ["report.json", "report.txt", "waterfall.svg"]);
    let written = fs::read_to_string(folder.join("report.json")).expect("the report");
    assert_eq!(
        written.as_bytes(),
        output.stdout,
        "the file is what was printed"
    );
    let text = fs::read_to_string(folder.join("report.txt")).expect("the report");
    assert!(
        text.contains("Where the peak goes") && !text.contains('\u{1b}'),
        "{text}"
    );
    assert_eq!(
        String::from_utf8_lossy(&output.stderr).lines().count(),
        3,
        "one line for each file"
    );
}

#[test]
fn a_folder_that_cannot_be_made_fails_the_run() {
    let folder = scratch("occupied");
    let file = folder.join("file");
    fs::write(&file, "in the way").expect("a file");
    let below = file.join("results");
    let message = failed(
        &["run", QUICK, "-o", below.to_str().expect("a path of text")],
        1,
    );
    assert!(message.starts_with("error: "), "{message}");
}

#[test]
fn a_scenario_is_read_from_standard_input() {
    let text = fine(&["show", QUICK]);
    let mut child = command(&["run", "-", "--format", "json"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("the binary starts");
    child
        .stdin
        .take()
        .expect("a pipe")
        .write_all(text.as_bytes())
        .expect("the scenario is written");
    let output = child.wait_with_output().expect("the binary ends");
    assert!(output.status.success());
    let piped = without_wall_time(&String::from_utf8_lossy(&output.stdout));
    let named = without_wall_time(&fine(&["run", QUICK, "--format", "json"]));
    assert_eq!(piped["training"], named["training"]);
}

#[test]
fn colour_is_for_terminals_and_for_those_who_ask() {
    assert!(!fine(&["run", QUICK]).contains('\u{1b}'));
    assert!(!fine(&["run", QUICK, "--color", "never"]).contains('\u{1b}'));
    assert!(fine(&["run", QUICK, "--color", "always"]).contains('\u{1b}'));
}

#[test]
fn a_reader_that_leaves_early_is_no_failure() {
    for args in [
        &["list"][..],
        &["schema", "scenario"],
        &["run", QUICK],
        &["completions", "bash"],
    ] {
        let mut child = command(args)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the binary starts");
        drop(child.stdout.take());
        let output = child.wait_with_output().expect("the binary ends");
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(
            output.status.success() && errors.is_empty(),
            "rackflow {args:?}: {errors}"
        );
    }
}

// ---- refusals

#[test]
fn a_faulty_scenario_is_refused_with_its_place() {
    let folder = scratch("faulty");
    let file = folder.join("faulty.yaml");
    let good = fine(&["show", QUICK]);
    fs::write(&file, good.replace("gpus: ", "gpsu: ")).expect("a file");
    let path = file.to_str().expect("a path of text");
    for verb in ["run", "check"] {
        let message = failed(&[verb, path], 2);
        assert!(message.starts_with("error: "), "{message}");
        assert!(
            message.contains(&format!("--> {path}:")) && message.contains("^^^^"),
            "{message}"
        );
        assert!(
            message.contains("gpus"),
            "it says what would be right: {message}"
        );
    }
}

#[test]
fn a_plan_that_does_not_fit_is_refused_with_the_arithmetic() {
    let folder = scratch("too-large");
    let file = folder.join("too-large.yaml");
    let good = fine(&["show", QUICK]);
    let model = "model: llama3-8b";
    assert!(good.contains(model), "the quick start trains Llama 3 8B");
    fs::write(&file, good.replace(model, "model: llama3-405b")).expect("a file");
    let message = failed(&["check", file.to_str().expect("a path of text")], 2);
    assert!(
        message.contains("weights") && message.contains("GB"),
        "{message}"
    );
}

#[test]
fn what_is_no_scenario_is_refused() {
    let folder = scratch("no-scenario");
    let binary = folder.join("binary.yaml");
    fs::write(&binary, [0xff, 0xfe, 0x00, 0x80]).expect("a file");
    let message = failed(&["check", binary.to_str().expect("a path of text")], 2);
    assert!(message.contains("binary.yaml:1:1"), "{message}");
    fs::write(&binary, b"# caf\xc3\xa9\nname: caf\xe9\n").expect("a file");
    let message = failed(&["check", binary.to_str().expect("a path of text")], 2);
    assert!(message.contains("byte 0xe9 is not UTF-8"), "{message}");
    assert!(message.contains("binary.yaml:2:10"), "{message}");
    let empty = folder.join("empty.yaml");
    fs::write(&empty, "").expect("a file");
    failed(&["run", empty.to_str().expect("a path of text")], 2);
    let message = failed(&["run", "deepseek-v3-2048-h80"], 2);
    assert!(
        message.contains("did you mean deepseek-v3-2048-h800?"),
        "{message}"
    );
    let folder = folder.to_str().expect("a path of text");
    let message = failed(&["run", folder], 2);
    assert!(message.contains("cannot be read"), "{message}");
    let message = failed(&["check", folder, "no\u{1b}[31msuch"], 2);
    assert!(message.contains("2 of 2 scenarios"), "{message}");
    assert!(!message.contains('\u{1b}'), "{message}");
}

#[test]
fn full_fidelity_is_refused_where_it_would_take_hours() {
    let scenario = "llama3-405b-16384-h100";
    let text = fine(&["show", scenario]).replace("global_batch: 2048", "global_batch: 20480");
    let file = scratch("too-full").join("full.yaml");
    fs::write(&file, text).expect("a file");
    let file = file.to_str().expect("a path of text");
    let message = failed(&["run", file, "--fidelity", "full"], 2);
    assert!(message.contains("use fidelity: folded"), "{message}");
}

#[test]
fn wrong_usage_is_refused() {
    for args in [
        &[][..],
        &["fly"],
        &["run"],
        &["run", QUICK, "--format", "xml"],
        &["check"],
        &["list", "cats"],
    ] {
        assert_eq!(rackflow(args).status.code(), Some(2), "rackflow {args:?}");
    }
}

#[test]
fn one_bad_file_among_good_ones_fails_the_check_and_the_good_are_named() {
    let output = rackflow(&["check", QUICK, "no-such-file.yaml", MAIN_JOB]);
    assert_eq!(output.status.code(), Some(2));
    let stdout = String::from_utf8_lossy(&output.stdout);
    let good: Vec<&str> = stdout
        .lines()
        .filter_map(|line| line.split_once(": ok, "))
        .map(|(name, _)| name)
        .collect();
    assert_eq!(good, [QUICK, MAIN_JOB]);
    assert!(String::from_utf8_lossy(&output.stderr).contains("1 of 3 scenarios cannot be run"));
}

// ---- list, show, schema

#[test]
fn every_listed_entry_can_be_shown_with_its_sources() {
    let listed = json(&fine(&["list", "--format", "json"]));
    for (kind, entries) in listed.as_object().expect("kinds") {
        for entry in entries.as_array().expect("a list") {
            let name = entry["name"].as_str().expect("a name");
            let shown = fine(&["show", name]);
            assert!(!shown.trim().is_empty(), "{kind} {name}");
            if ["models", "accelerators", "nodes", "stacks"].contains(&kind.as_str()) {
                assert!(shown.contains("sources:"), "{kind} {name} has no sources");
                json(&fine(&["show", name, "--format", "json"]));
            }
        }
    }
}

#[test]
fn an_entry_that_does_not_exist_brings_a_suggestion() {
    let message = failed(&["show", "h100-smx"], 2);
    assert!(message.contains("did you mean h100-sxm?"), "{message}");
}

#[test]
fn help_teaches_by_example() {
    for args in [&["--help"][..], &["run", "--help"], &["schema", "--help"]] {
        assert!(fine(args).contains("Examples:"), "rackflow {args:?}");
    }
    assert_eq!(
        fine(&["--version"]),
        format!("rackflow {}\n", env!("CARGO_PKG_VERSION"))
    );
}

#[test]
fn the_documented_schemas_are_those_of_the_program() {
    check_file("docs/sweep.schema.json", &fine(&["schema", "sweep"]));
    check_file("docs/report.schema.json", &fine(&["schema", "report"]));
    check_file(
        "docs/serving_report.schema.json",
        &fine(&["schema", "serving-report"]),
    );
    check_file(
        "docs/jobs_report.schema.json",
        &fine(&["schema", "jobs-report"]),
    );
    check_file(
        "docs/replay_report.schema.json",
        &fine(&["schema", "replay-report"]),
    );
    check_file("docs/scenario.schema.json", &fine(&["schema", "scenario"]));
    for document in ["elasticities", "serving-elasticities", "jobs-elasticities"] {
        let path = format!("docs/{}.schema.json", document.replace('-', "_"));
        check_file(&path, &fine(&["schema", document]));
    }
}

#[test]
fn elasticities_are_as_their_schemas_say() {
    for (document, scenario) in [
        ("elasticities", "quickstart-llama3-8b-8-h100"),
        ("elasticities", "replay-chakra-8-h100"),
        ("serving-elasticities", "serve-qwen3-8b-phones"),
        ("jobs-elasticities", "two-jobs-oversubscribed-roce"),
    ] {
        let schema = json(&fine(&["schema", document]));
        let ranked = json(&fine(&["elasticities", scenario, "--format", "json"]));
        let keys = obeys(&schema, &schema, &ranked, document);
        assert!(keys > 15, "{document}: {keys} keys");
    }
}

#[test]
fn reports_of_jobs_and_of_replays_are_as_their_schemas_say() {
    for (document, scenario) in [
        ("jobs-report", "two-jobs-oversubscribed-roce"),
        ("replay-report", "replay-chakra-8-h100"),
    ] {
        let schema = json(&fine(&["schema", document]));
        let report = json(&fine(&["run", scenario, "--format", "json"]));
        let keys = obeys(&schema, &schema, &report, document);
        assert!(keys > 20, "{document}: {keys} keys");
    }
}

/// Holds a document against its schema, key by key: what is required is there, and what is there is
/// known. Returns how many keys were looked at.
fn obeys(root: &Value, schema: &Value, document: &Value, at: &str) -> usize {
    if let Some(name) = schema["$ref"].as_str() {
        let name = name.rsplit('/').next().expect("a name");
        return obeys(root, &root["$defs"][name], document, at);
    }
    let all = |key: &str| schema[key].as_array().into_iter().flatten();
    if let Some(items) = document.as_array() {
        let of = |item: &Value| obeys(root, &schema["items"], item, at);
        return items.iter().map(of).sum();
    }
    let Some(fields) = document.as_object() else {
        return 0;
    };
    for key in all("required").filter_map(Value::as_str) {
        assert!(fields.contains_key(key), "{at}.{key} is required");
    }
    let mut keys = 0;
    for (key, value) in fields {
        let own = &schema["properties"][key];
        let choice = all("oneOf").chain(all("anyOf")).find_map(|one| {
            let known = &one["properties"][key];
            (!known.is_null()).then_some(known)
        });
        let values = &schema["additionalProperties"];
        let known = [own, choice.unwrap_or(&Value::Null), values]
            .into_iter()
            .find(|known| known.is_object());
        let whole = all("anyOf").find(|one| !one["$ref"].is_null());
        if let (None, Some(whole)) = (known, whole) {
            return keys + obeys(root, whole, document, at);
        }
        let known = known.unwrap_or_else(|| panic!("{at}.{key} is not in the schema"));
        keys += 1 + obeys(root, known, value, &format!("{at}.{key}"));
    }
    keys
}

// ---- reference

/// Names of the commands, in the order of `--help`.
fn commands() -> Vec<String> {
    let help = fine(&["--help"]);
    let (_, rest) = help.split_once("Commands:\n").expect("a list of commands");
    let (list, _) = rest.split_once("\n\n").expect("the list ends");
    list.lines()
        .filter_map(|line| line.strip_prefix("  "))
        .filter(|line| !line.starts_with(' '))
        .filter_map(|line| line.split_whitespace().next())
        .map(str::to_owned)
        .collect()
}

/// One command's help, and that of the commands inside it.
fn help_of(path: &[&str], page: &mut String) {
    let mut args = path.to_vec();
    args.push("--help");
    let help = fine(&args);
    let name = path.join(" ");
    let depth = "#".repeat(path.len() + 1);
    page.push_str(&format!(
        "\n{depth} `rackflow {name}`\n\n```help\n{}\n```\n",
        help.trim_end()
    ));
    if let Some((_, rest)) = help.split_once("Commands:\n") {
        let (list, _) = rest.split_once("\n\n").expect("the list ends");
        for line in list.lines().filter_map(|line| line.strip_prefix("  ")) {
            let inner = line.split_whitespace().next().unwrap_or(" ");
            if !line.starts_with(' ') && inner != "help" {
                help_of(&[path, &[inner]].concat(), page);
            }
        }
    }
}

#[test]
fn the_reference_of_commands_is_what_help_prints() {
    let mut page = "# Commands\n\n\
        What `rackflow --help` and each command's `--help` print; a test keeps this page so.\n\n\
        ```help\n"
        .to_owned();
    page.push_str(fine(&["--help"]).trim_end());
    page.push_str("\n```\n");
    for name in commands().iter().filter(|name| *name != "help") {
        help_of(&[name], &mut page);
    }
    check_file("docs/reference/commands.md", &page);
}

#[test]
fn the_reference_of_the_catalogue_is_what_list_prints() {
    let page = format!(
        "# The catalogue\n\nWhat `rackflow list` prints; a test keeps this page so. `rackflow show NAME` prints an entry \
         with the source of each value.\n\n```help\n{}\n```\n",
        fine(&["list"]).trim_end()
    );
    check_file("docs/reference/catalogue.md", &page);
}

// ---- README

fn readme() -> String {
    fs::read_to_string(root().join("README.md")).expect("README.md is there")
}

/// Lines of the README's shell blocks, one command each.
fn readme_commands() -> Vec<String> {
    let text = readme();
    let blocks = text
        .split("```sh\n")
        .skip(1)
        .map(|rest| rest.split("```").next().unwrap_or_default());
    let lines = blocks.flat_map(str::lines).map(str::trim);
    lines
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .map(str::to_owned)
        .collect()
}

/// Every command of the README is run as written, in a copy of the folder that a reader has. In
/// place of `cargo run --release --` stands the binary under test, and `cargo test` is this.
#[test]
#[cfg(unix)]
fn the_commands_of_the_readme_work() {
    use std::os::unix::fs::{PermissionsExt, symlink};
    let folder = scratch("readme");
    symlink(root().join("scenarios"), folder.join("scenarios")).expect("a link");
    let tools = folder.join("tools");
    fs::create_dir(&tools).expect("a folder");
    let binary = env!("CARGO_BIN_EXE_rackflow");
    let cargo = format!(
        "#!/bin/sh\ncase \"$1\" in\n  run) while [ \"$1\" != -- ]; do shift; done; shift; exec '{binary}' \"$@\";;\n  test) exit 0;;\n  *) exit 9;;\nesac\n"
    );
    fs::write(tools.join("cargo"), cargo).expect("a script");
    fs::set_permissions(tools.join("cargo"), fs::Permissions::from_mode(0o755)).expect("a script");
    symlink(binary, tools.join("rackflow")).expect("a link");
    let commands = readme_commands();
    assert!(
        commands
            .iter()
            .any(|line| line == &format!("cargo run --release -- run {MAIN_JOB}")),
        "{commands:?}"
    );
    for line in commands {
        let output = Command::new("sh")
            .args([
                "-c",
                &format!("PATH='{}':\"$PATH\"; {line}", tools.display()),
            ])
            .current_dir(&folder)
            .output()
            .expect("a shell");
        assert!(
            output.status.success(),
            "{line}\n{}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
}

#[test]
fn the_readme_shows_real_output() {
    let folder = scratch("readme-output");
    let into = folder.to_str().expect("a path of text");
    assert!(rackflow(&["run", MAIN_JOB, "-o", into]).status.success());
    let written = |name: &str| fs::read_to_string(folder.join(name)).expect("a report");
    check_file("docs/waterfall.svg", &written("waterfall.svg"));
    let text = readme();
    let (before, rest) = text.split_once("```text\n").expect("a block of output");
    let (shown, after) = rest.split_once("```").expect("the block ends");
    // The last line tells how long the simulation took, which is another time on each machine.
    let body = |text: &str| -> String {
        let lines: Vec<&str> = text.trim_end().lines().collect();
        lines[..lines.len().saturating_sub(1)].join("\n")
    };
    let real = written("report.txt");
    if body(shown) != body(&real) {
        check_file("README.md", &format!("{before}```text\n{real}```{after}"));
    }
}

#[test]
fn ci_runs_the_test_command_of_the_readme() {
    let script = fs::read_to_string(root().join(".ci/run")).expect(".ci/run is there");
    let last = script.trim_end().lines().last().expect("a last line");
    assert!(
        readme_commands().iter().any(|line| line == last),
        "{last} is not in README.md"
    );
}

// ---- clusters of several kinds of node

#[test]
fn networks_of_several_kinds_are_described_and_measured() {
    let name = "mixed-llama3-70b-h100-gb200";
    let folder = scratch("several-kinds");
    let path = folder.to_str().expect("a plain path");
    let text = fine(&["topology", name, "--output", path]);
    assert!(
        text.contains("GPUs 72 to 143, on leaves of their own"),
        "{text}"
    );
    let picture = fs::read_to_string(folder.join("topology.svg")).expect("a picture");
    assert!(picture.contains("144 GPUs of 2 kinds"));
    let route = fine(&["route", "0", "100", "--cluster", name]);
    assert!(route.contains("NIC 100 -> GPU 100"), "{route}");
    for fidelity in ["folded", "full"] {
        let sizes = ["--sizes", "1G", "--fidelity", fidelity, "--format", "json"];
        let args = [
            &["collective", "all-reduce", "--cluster", name][..],
            &sizes[..],
        ]
        .concat();
        let report = json(&fine(&args));
        let busbw = report
            .pointer("/rows/0/busbw_gb_per_s")
            .and_then(Value::as_f64);
        // The H100 have eight NICs of 400 Gbit/s.
        assert!(
            busbw.is_some_and(|busbw| (300.0..400.0).contains(&busbw)),
            "{report}"
        );
    }
    let dead = fine(&[
        "route",
        "3",
        "20",
        "--cluster",
        "dead-rail-llama3-8b-64-h100",
    ]);
    assert!(dead.contains("dead: 50 % of a neighbour's NIC"), "{dead}");
}

/// Three nodes of one kind and one of another, a job of one stage over both.
const KINDS: &str = "
cluster:
  nodes:
    - { node: dgx-h100, count: 3 }
    - { node: { like: dgx-h100, name: dear, accelerator: { like: h100-sxm, name: dear-gpu,
        power: 1400 W, price: 6 USD/h } }, count: 1 }
  fabric: rail-optimized
workload:
  training:
    model: llama3-8b
    stack: megatron-core-25.04
    precision: bf16
    sequence_length: 8192
    global_batch: 64
    parallelism: { tensor: 2, zero: 1 }
    run: { days: 30, failures: llama3-16k-h100, checkpoint: { write: 20 GB/s } }
";

#[test]
fn power_cost_and_runs_of_several_kinds_are_their_sums() {
    let folder = scratch("kinds");
    let report = |name: &str, text: &str| {
        let file = folder.join(name);
        fs::write(&file, text).expect("a scenario");
        let path = file.to_str().expect("a plain path");
        json(&fine(&["run", path, "--format", "json"]))
    };
    let both = report("both.yaml", KINDS);
    let plain = KINDS.replace("power: 1400 W, price: 6 USD/h", "power: 700 W");
    let plain = report("plain.yaml", &plain);
    let real = |report: &Value, path: &str| {
        let value = report.pointer(path).and_then(Value::as_f64);
        value.unwrap_or_else(|| panic!("{path} is a number"))
    };
    let economics = |report: &Value, key: &str| real(report, &format!("/economics/{key}"));
    // A quarter of the GPUs has twice the power and its own price.
    let of_plain = economics(&plain, "gpu_watts");
    assert!((economics(&both, "gpu_watts") / of_plain - 1.25).abs() < 0.01);
    let price = economics(&plain, "usd_per_gpu_hour");
    let expected = (price * 24.0 + 6.0 * 8.0) / 32.0;
    assert!((economics(&both, "usd_per_gpu_hour") - expected).abs() < 1e-9);
    assert!((real(&both, "/run/days/mean") - 30.0).abs() < 1e-6);
    let hours = 30.0 * 24.0;
    let (usd, mwh) = (real(&both, "/run/usd"), real(&both, "/run/mwh"));
    assert!(
        (usd / (expected * 32.0 * hours) - 1.0).abs() < 1e-9,
        "{usd}"
    );
    // Idle time draws less than steps do.
    let at_work = economics(&both, "facility_mw") * hours;
    assert!(mwh < at_work && mwh > 0.5 * at_work, "{mwh} of {at_work}");
    let path = folder.join("both.yaml");
    let path = path.to_str().expect("a plain path");
    let ranked = json(&fine(&["elasticities", path, "--format", "json"]));
    assert!(ranked["elasticities"].as_array().expect("a list").len() >= 8);
}

// ---- elasticities

#[test]
fn elasticities_of_all_rates_come_to_about_one() {
    let folder = scratch("elasticities");
    let out = folder.to_str().expect("a path of ours is text");
    let output = rackflow(&["elasticities", QUICK, "--format", "json", "-o", out]);
    assert!(output.status.success());
    let ranked = json(&String::from_utf8_lossy(&output.stdout));
    let answers = ranked["elasticities"].as_array().expect("a list");
    let sum = sum_of_rates(&ranked);
    assert!((0.9..1.05).contains(&sum), "{ranked:#}");
    let first = answers[0]["resource"].as_str().expect("a name");
    assert_eq!(first, "tensor_flops", "dense training on one node");
    assert!(
        ranked["bound_by"]
            .as_str()
            .expect("words")
            .contains("the tensor cores")
    );
    let unused = ranked["not_used"].as_array().expect("a list");
    assert!(
        unused.iter().any(|name| name == "NIC bandwidth"),
        "one node"
    );
    for name in [
        "elasticities.txt",
        "elasticities.json",
        "elasticities.svg",
        "elasticities.png",
    ] {
        assert!(folder.join(name).is_file(), "{name}");
    }
}

/// Where each rank hands on what it receives and switches reduce, those times are latency too.
/// Elasticities are of a step; of a run that failures interrupt, the output says so and what the run keeps.
#[test]
fn elasticities_of_a_run_say_what_its_interruptions_take() {
    let folder = scratch("elasticities-of-a-run");
    let file = folder.join("days.yaml");
    let path = file.to_str().expect("a path of text");
    let run = "    run: { days: 1000, failures: llama3-16k-h100, checkpoint: { write: 10 GB/s }, replications: 4 }\n";
    fs::write(&file, fine(&["show", QUICK]) + run).expect("a file");
    let ranked = json(&fine(&["elasticities", path, "--format", "json"]));
    let goodput = ranked["run"]["goodput"].as_f64().expect("a share");
    let lost = ranked["run"]["lost"].as_array().expect("a list");
    let taken: f64 = lost
        .iter()
        .filter_map(|part| part["fraction"].as_f64())
        .sum();
    assert!(
        goodput < 1.0 && (goodput + taken - 1.0).abs() < 1e-9,
        "{ranked:#}"
    );
    let table = fine(&["elasticities", path]);
    assert!(
        table.contains("These are of one step. The whole run keeps"),
        "{table}"
    );
    let of_a_step = json(&fine(&["elasticities", QUICK, "--format", "json"]));
    assert_eq!(of_a_step["elasticities"], ranked["elasticities"]);
    assert!(of_a_step.get("run").is_none());
}

#[test]
fn elasticities_come_to_about_one_where_tensor_parallelism_waits() {
    let scenario = scratch("latency").join("latency.yaml");
    let text = "cluster: { node: gb200-nvl72, gpus: 72 }
workload:
  training:
    model: { like: llama3-70b, layers: 4 }
    stack: megatron-core-25.04
    precision: bf16
    sequence_length: 8192
    global_batch: 36
    parallelism: { tensor: 8 }
";
    fs::write(&scenario, text).expect("a scratch folder");
    let path = scenario.to_str().expect("a path of ours is text");
    let ranked = json(&fine(&["elasticities", path, "--format", "json"]));
    let sum = sum_of_rates(&ranked);
    assert!((0.9..1.05).contains(&sum), "{ranked:#}");
    let words = ranked["bound_by"].as_str().expect("words");
    assert!(words.contains("network latency"), "{words}");
}

/// A machine that is faster in every respect is faster as a whole; a larger batch is no rate.
fn sum_of_rates(ranked: &serde_json::Value) -> f64 {
    let answers = ranked["elasticities"].as_array().expect("a list");
    let rates = answers
        .iter()
        .filter(|answer| answer["resource"] != "batch");
    rates
        .map(|answer| answer["elasticity"].as_f64().expect("a number"))
        .sum()
}

/// The command of the documentation: the columns of nccl-tests, and nothing faster than the wire.
#[test]
fn a_collective_is_measured_like_nccl_tests() {
    let args = [
        "collective",
        "all-reduce",
        "--cluster",
        "gb200-nvl72",
        "--gpus",
        "576",
    ];
    let table = fine(&[&args[..], &["--sizes", "8K..8G"]].concat());
    assert!(
        table.contains("algbw") && table.contains("busbw"),
        "{table}"
    );
    let document = json(&fine(
        &[&args[..], &["--sizes", "8K..8G", "--format", "json"]].concat(),
    ));
    let rows = document["rows"].as_array().expect("rows");
    assert_eq!(rows.len(), 21);
    for row in rows {
        let number = |key: &str| row[key].as_f64().expect("a number");
        assert!(number("time_us") >= number("bound_us"), "{row}");
        let algbw = number("bytes") / number("time_us") / 1e3;
        assert!(
            (number("algbw_gb_per_s") / algbw - 1.0).abs() < 1e-9,
            "{row}"
        );
        let factor = 2.0 * 575.0 / 576.0;
        assert!(
            (number("busbw_gb_per_s") / algbw / factor - 1.0).abs() < 1e-9,
            "{row}"
        );
        assert!(row["algorithm"].is_string());
    }
}

/// Every operation, on named clusters and on one in a file; a plot of several beside the tables.
#[test]
fn every_operation_on_any_cluster() {
    let folder = scratch("collective");
    let file = folder.join("my.yaml");
    let text = "cluster:\n  node: hgx-h100\n  gpus: 64\n  fabric: roce-oversubscribed\n";
    fs::write(&file, text).expect("a scratch file");
    let file = file.to_str().expect("a path of text");
    let out = folder.join("out");
    for operation in [
        "all-reduce",
        "all-gather",
        "reduce-scatter",
        "broadcast",
        "all-to-all",
        "send-recv",
        "dispatch",
        "combine",
    ] {
        let rows = json(&fine(&[
            "collective",
            operation,
            "--cluster",
            file,
            "--cluster",
            MAIN_JOB,
            "--gpus",
            "64",
            "--sizes",
            "1M,16M",
            "--format",
            "json",
        ]))["rows"]
            .as_array()
            .expect("rows")
            .clone();
        assert_eq!(rows.len(), 4, "{operation}");
        assert!(rows[0]["time_us"].as_f64() < rows[1]["time_us"].as_f64());
    }
    let output = rackflow(&[
        "collective",
        "all-reduce",
        "--cluster",
        "hgx-h100",
        "--cluster",
        "dgx-a100",
        "-o",
        out.to_str().expect("a path of text"),
    ]);
    assert!(output.status.success());
    let svg = fs::read_to_string(out.join("collective.svg")).expect("the plot");
    assert!(svg.contains("hgx-h100") && svg.contains("dgx-a100"));
}

/// Every flow on an idle rail-optimised fabric comes to the price; on hashed, narrow tiers to more.
#[test]
fn a_collective_as_flows() {
    let time = |cluster: &str, fidelity: &str| {
        let text = fine(&[
            "collective",
            "all-reduce",
            "--cluster",
            cluster,
            "--gpus",
            "256",
            "--sizes",
            "256M",
            "--fidelity",
            fidelity,
            "--format",
            "json",
        ]);
        json(&text)["rows"][0]["time_us"]
            .as_f64()
            .expect("a number")
    };
    let (priced, simulated) = (time("dgx-h100", "folded"), time("dgx-h100", "full"));
    assert!(
        (priced / simulated - 1.0).abs() < 0.03,
        "{priced} and {simulated} us"
    );
    let file = scratch("collective-flows").join("hashed.yaml");
    let text = "cluster:\n  node: dgx-h100\n  gpus: 256\n  fabric:\n    fat_tree: { tiers: 2, routing: ecmp, leaf_oversubscription: 2 }\n";
    fs::write(&file, text).expect("a scratch file");
    let hashed = time(file.to_str().expect("a path of text"), "full");
    assert!(hashed > 1.3 * simulated, "{hashed} and {simulated} us");
}

#[test]
fn a_collective_that_cannot_be_measured_is_refused() {
    let all_reduce = |more: &[&str]| {
        failed(
            &[&["collective", "all-reduce", "--cluster"], more].concat(),
            2,
        )
    };
    assert!(all_reduce(&["gb200-nv72"]).contains("did you mean gb200-nvl72"));
    assert!(all_reduce(&["hgx-h100", "--algorithm", "direct"]).contains("cannot run as direct"));
    assert!(all_reduce(&["hgx-h100", "--sizes", "8Q"]).contains("8Q"));
    assert!(all_reduce(&["no/such.yaml"]).contains("no/such.yaml"));
    assert!(all_reduce(&["hgx-h100", "--gpus", "9000000"]).contains("too small"));
}

/// Half of the published timings are met within 8 % from 1 MiB on and within 25 % below.
#[test]
fn published_collectives_are_met() {
    let document = json(&fine(&["validate", "collectives", "--format", "json"]));
    let median = |part: &str| {
        document["summary"][part]["unweighted_median_abs_error"]
            .as_f64()
            .expect("a number")
    };
    assert!(median("from_1_mib") <= 0.08, "{}", median("from_1_mib"));
    assert!(median("below_1_mib") <= 0.25, "{}", median("below_1_mib"));
    let summary = &document["summary"];
    assert!(summary["rows"].as_u64() > Some(450), "{}", summary["rows"]);
    assert!(summary["by_source"]["aic"]["median_abs_error"].is_number());
    assert!(
        document["left_out"]
            .as_array()
            .is_some_and(|rows| rows.len() < 30)
    );
    let folder = scratch("validate-collectives");
    let file = folder.join("broken.jsonl");
    fs::write(&file, "\n{\"id\": 1}\n").expect("a scratch file");
    let text = failed(
        &[
            "validate",
            "collectives",
            "--data",
            file.to_str().expect("text"),
        ],
        2,
    );
    assert!(text.contains("line 2"), "{text}");
}

// ---- plan

#[test]
fn tables_of_validations_fit_120_columns() {
    for command in [
        &["kernels", "--rows", "--filter", "prefill"][..],
        &["collectives", "--rows"],
        &["training", "--filter", "megatron-sc21"],
        &["mechanisms", "--filter", "recompute"],
        &["serving", "--filter", "splitwise"],
    ] {
        let text = fine(&[&["validate"], command].concat());
        let widest = text.lines().max_by_key(|line| line.chars().count());
        let widest = widest.expect("a table");
        assert!(widest.chars().count() <= 120, "{command:?}: {widest}");
        // Whole words, and nothing left out for room.
        assert!(!text.contains("No room for"), "{text}");
    }
}

#[test]
fn the_planner_finds_a_plan_at_least_as_good_as_the_scenarios_own() {
    let found = json(&fine(&["plan", QUICK, "--top", "3", "--format", "json"]));
    let best = found["best"].as_array().expect("a list");
    assert_eq!(best.len(), 3);
    let time = |row: &Value| row["step_time_s"].as_f64().expect("a number");
    assert!(time(&best[0]) <= time(&best[1]) && time(&best[1]) <= time(&best[2]));
    assert!(time(&best[0]) <= time(&found["own"]));
    let why = found["own"]["why"].as_array().expect("a list");
    assert_eq!(why[0]["cause"], "recomputation", "{found:#}");
    assert!(found["too_large"].as_u64().expect("a count") > 0);
    let table = fine(&["plan", QUICK, "--top", "2"]);
    assert!(table.contains("The scenario's own plan"), "{table}");
    assert!(
        table.contains("    parallelism:\n      data: 8\n"),
        "{table}"
    );
    let limited = json(&fine(&["plan", QUICK, "--limit", "1", "--format", "json"]));
    assert_eq!(limited["simulated"], 1);
    let left = &limited["unproved"];
    assert!(left["plans"].as_u64() > Some(0), "{left}");
    let most = left["at_most_better"].as_f64().expect("a fraction");
    let better = time(&limited["best"][0]) / time(&best[0]) - 1.0;
    assert!((-1e-12..=most).contains(&better), "{better} > {most}");
}

/// Who cannot make a plan fit asks the planner for one that does.
#[test]
fn the_planner_finds_plans_for_a_scenario_whose_own_does_not_fit() {
    let folder = scratch("own-does-not-fit");
    let file = folder.join("large.yaml");
    let path = file.to_str().expect("a path of text");
    let scenario = |gpus: u32| {
        format!(
            "cluster: {{ node: dgx-h100, gpus: {gpus} }}\nworkload:\n  training:\n    model: llama3-8b\n    \
             stack: torchtitan-2024\n    precision: bf16\n    sequence_length: 8192\n    global_batch: 16\n    \
             parallelism: {{ zero: 0 }}\n"
        )
    };
    fs::write(&file, scenario(8)).expect("a file");
    assert!(failed(&["run", path], 2).contains("does not fit into memory"));
    let found = json(&fine(&["plan", path, "--top", "1", "--format", "json"]));
    assert_eq!(found["own_fits"], false);
    let memory = |row: &Value| row["memory_bytes"].as_u64().expect("a number");
    assert!(memory(&found["best"][0]) < 85_000_000_000 && memory(&found["own"]) > 85_000_000_000);
    let table = fine(&["plan", path, "--top", "1"]);
    assert!(
        table.contains("own plan, which does not fit into memory"),
        "{table}"
    );
    // Where no plan fits either, the refusal says what is missing.
    fs::write(&file, scenario(1)).expect("a file");
    let refusal = failed(&["plan", path], 2);
    assert!(
        refusal.contains("does not fit into memory") && refusal.contains("GPUs"),
        "{refusal}"
    );
}

#[test]
fn the_planner_refuses_formats_that_the_accelerator_lacks() {
    for (format, why) in [("mxfp8", "block scales"), ("nvfp4", "4-bit")] {
        let refusal = failed(&["plan", QUICK, "--precision", format], 2);
        assert!(
            refusal.contains(why) && refusal.contains("fp8_rowwise"),
            "{refusal}"
        );
    }
    let found = json(&fine(&[
        "plan",
        QUICK,
        "--precision",
        "fp8_rowwise",
        "--top",
        "1",
        "--format",
        "json",
    ]));
    let precision = found["best"][0]["plan"]["precision"]
        .as_str()
        .expect("text");
    assert!(precision.contains("rowwise"), "{precision}");
}

/// Of several scenarios the best plan is never worse than their own, with any number formats.
#[test]
fn the_planner_sets_the_best_plan_of_each_scenario_beside_its_own() {
    let found = json(&fine(&[
        "plan",
        QUICK,
        QUICK,
        "--precision",
        "all",
        "--format",
        "json",
    ]));
    let rows = found["scenarios"].as_array().expect("a list");
    assert_eq!(rows.len(), 2);
    let time = |row: &Value| row["step_time_s"].as_f64().expect("a number");
    assert!(time(&rows[0]["best"]) < time(&rows[0]["own"]), "{found:#}");
    assert_ne!(
        rows[0]["best"]["plan"]["precision"], "bf16",
        "fp8 is faster"
    );
    let table = fine(&["plan", QUICK, "--format", "markdown"]);
    assert!(
        table.contains("| gain |") && table.contains(QUICK),
        "{table}"
    );
    let refusal = failed(&["plan", "serve-llama3-70b-8-h100", "--limit", "2"], 2);
    assert!(refusal.contains("--limit belongs to training"), "{refusal}");
    let refusal = failed(&["plan", QUICK, "serve-llama3-70b-8-h100"], 2);
    assert!(
        refusal.contains("serve-llama3-70b-8-h100 serves"),
        "{refusal}"
    );
}

// ---- traces

#[test]
fn a_trace_is_written_in_the_format_that_its_name_asks_for() {
    let folder = scratch("traces");
    let path = |name: &str| {
        folder
            .join(name)
            .to_str()
            .expect("a path of ours is text")
            .to_owned()
    };
    for name in ["step.pftrace", "step.json", "step.json.gz"] {
        let output = rackflow(&["run", QUICK, "--trace", &path(name)]);
        assert!(output.status.success(), "{name}");
    }
    let text = fs::read_to_string(folder.join("step.json")).expect("the trace is there");
    let trace = json(&text);
    let events = trace["traceEvents"].as_array().expect("a list");
    let named = |phase: &str, name: &str| {
        events
            .iter()
            .filter(|event| event["ph"] == phase && event["name"] == name)
            .count()
    };
    assert_eq!(named("M", "process_name"), 1, "one rank of the only stage");
    assert!(named("X", "forward") > 1 && named("X", "backward") > 1);
    assert!(named("C", "memory [GB]") > 2);
    // The first field of a Perfetto trace is a packet; a packed one begins as gzip does.
    assert_eq!(
        fs::read(folder.join("step.pftrace")).expect("written")[0],
        0x0a
    );
    assert_eq!(
        fs::read(folder.join("step.json.gz")).expect("written")[..2],
        [0x1f, 0x8b]
    );
    let wrong = failed(&["run", QUICK, "--trace", &path("step.txt")], 2);
    assert!(wrong.contains(".pftrace"), "{wrong}");
    let wrong = failed(
        &[
            "run",
            QUICK,
            "--trace",
            &path("t.json"),
            "--trace-ranks",
            "8",
        ],
        2,
    );
    assert!(
        wrong.contains("no rank 8") && wrong.contains("0 to 7"),
        "{wrong}"
    );
    let nowhere = path("nowhere/t.json");
    let wrong = failed(&["run", QUICK, "--trace", &nowhere], 1);
    assert!(wrong.contains("make the folder"), "{wrong}");
    let range = ["run", QUICK, "--trace", &nowhere, "--trace-ranks", "0-3"];
    let wrong = failed(&range, 2);
    assert!(wrong.contains("such as 0,8,16"), "{wrong}");
    for (scenario, option) in [
        ("two-jobs-oversubscribed-roce", "--trace"),
        ("two-jobs-oversubscribed-roce", "--chakra"),
        ("two-jobs-oversubscribed-roce", "--requests"),
        ("serve-llama3-70b-8-h100", "--chakra"),
    ] {
        let wrong = failed(&["run", scenario, option, &path("none.json")], 2);
        assert!(wrong.contains("hint: "), "{scenario}: {wrong}");
        assert!(!folder.join("none.json").exists(), "{scenario}");
    }
}

/// Names of the processes and of the events of a phase in a trace in JSON.
fn traced(args: &[&str], path: &str) -> (Vec<String>, serde_json::Value) {
    let mut all = vec!["run"];
    all.extend(args);
    all.extend(["--trace", path]);
    let output = rackflow(&all);
    let err = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{err}");
    let trace = json(&fs::read_to_string(path).expect("the trace is there"));
    let processes = trace["traceEvents"]
        .as_array()
        .expect("a list")
        .iter()
        .filter(|event| event["name"] == "process_name")
        .filter_map(|event| Some(event["args"]["name"].as_str()?.to_owned()))
        .collect();
    (processes, trace)
}

#[test]
fn a_service_is_traced_from_arrival_to_answer() {
    let folder = scratch("service-trace");
    let file = folder.join("service.json");
    let path = file.to_str().expect("a path of ours is text");
    let name = "serve-llama3-70b-8-h100-disaggregated";
    let (processes, trace) = traced(&[name, "--trace-window", "10s..12s"], path);
    assert_eq!(
        processes,
        [
            "arrivals",
            "replica 0, prefill, GPUs 0 to 3",
            "replica 1, decode, GPUs 4 to 7"
        ]
    );
    let events = trace["traceEvents"].as_array().expect("a list");
    let on = |phase: &str, id: &serde_json::Value| -> Vec<String> {
        let events = events.iter();
        let events = events.filter(|event| event["ph"] == phase && event["id"] == *id);
        // The slice that the arrow hangs on.
        let slice_of = |arrow: &serde_json::Value| {
            let on = |slice: &serde_json::Value| {
                let keys = ["pid", "tid", "ts"];
                slice["ph"] == "X" && keys.iter().all(|key| slice[key] == arrow[key])
            };
            let slice = trace["traceEvents"]
                .as_array()
                .expect("a list")
                .iter()
                .find(|event| on(event));
            slice.expect("an arrow hangs on a slice")["name"]
                .as_str()
                .expect("a name")
                .to_owned()
        };
        events.map(slice_of).collect()
    };
    let starts: Vec<_> = events.iter().filter(|event| event["ph"] == "s").collect();
    assert!(starts.len() > 1);
    let id = &starts[1]["id"];
    let number = id.as_u64().expect("a number") - 1;
    let cache = format!("cache of {number}");
    assert_eq!(on("s", id), [format!("request {number}")]);
    assert_eq!(
        on("t", id),
        [format!("prefill {number}"), cache.clone(), cache]
    );
    assert_eq!(on("f", id), [format!("decode {number}")]);
    for counter in ["KV cache [GB]", "running [requests]", "NVLink out [GB/s]"] {
        assert!(
            events
                .iter()
                .any(|event| event["ph"] == "C" && event["name"] == counter)
        );
    }
    // Nothing is far from the window.
    let steps = events
        .iter()
        .filter(|event| event["ph"] == "X" && event["tid"] == 1);
    let late = steps
        .filter(|event| event["ts"].as_f64() > Some(12e6))
        .count();
    assert_eq!(late, 0);
    for (options, says) in [
        (["--trace-window", "5s..3s"], "is empty"),
        (["--trace-window", "5"], "such as 10s..20s"),
        (
            ["--trace-window", "1000000s.."],
            "nothing happens in the window",
        ),
        (
            ["--trace-ranks", "2"],
            "the replicas of this service are 0 to 1",
        ),
        (["--trace-job", "chat"], "this scenario has one run"),
    ] {
        let mut args = vec!["run", name, "--trace", path];
        args.extend(options);
        let wrong = failed(&args, 2);
        assert!(wrong.contains(says), "{wrong}");
    }
    let wrong = failed(
        &["run", QUICK, "--trace", path, "--trace-window", "1s.."],
        2,
    );
    assert!(wrong.contains("a service's run"), "{wrong}");
}

#[test]
fn one_job_among_several_is_traced() {
    let folder = scratch("job-trace");
    let file = folder.join("job.json");
    let path = file.to_str().expect("a path of ours is text");
    let jobs = "two-jobs-oversubscribed-roce";
    let (processes, alone) = traced(
        &[jobs, "--trace-job", "small", "--trace-ranks", "0,2"],
        path,
    );
    assert_eq!(processes, ["rank 0, stage 1", "rank 2, stage 1"]);
    // The step is as long as beside the others.
    let report = json(&fine(&["run", jobs, "--format", "json"]));
    let step = report["jobs"][1]["training"]["report"]["training"]["step_time_s"].as_f64();
    let ends = alone["traceEvents"].as_array().expect("a list").iter();
    let ends = ends.filter_map(|event| Some(event["ts"].as_f64()? + event["dur"].as_f64()?));
    let last = ends.fold(0.0, f64::max) / 1e6;
    assert!(
        (last / step.expect("a time") - 1.0).abs() < 1e-3,
        "{last} {step:?}"
    );
    let mixed = "serving-beside-training-roce";
    let window = ["--trace-job", "chat", "--trace-window", "1s..2s"];
    let (processes, _) = traced(&[&[mixed][..], &window].concat(), path);
    assert_eq!(processes.len(), 9, "{processes:?}");
    let unknown = ["run", jobs, "--trace", path, "--trace-job", "medium"];
    assert!(failed(&unknown, 2).contains("of large, small"));
}

/// A trace is written down beside the run: nothing of the report depends on it.
#[test]
fn a_report_is_the_same_with_a_trace_and_without() {
    let folder = scratch("traced-reports");
    let trace = folder.join("t.json");
    let trace = trace.to_str().expect("UTF-8");
    let runs: [&[&str]; 4] = [
        &[QUICK, "--trace-ranks", "3,0"],
        &["serve-llama3-8b-laptops"],
        &["two-jobs-oversubscribed-roce", "--trace-job", "small"],
        &["replay-chakra-8-h100"],
    ];
    for run in runs {
        let report = |more: &[&str]| -> Vec<String> {
            let report = fine(&[&["run", run[0], "--format", "json"], more].concat());
            let lines = report.lines().filter(|line| !line.contains("wall_s"));
            lines.map(str::to_owned).collect()
        };
        let plain = report(&[]);
        let traced = report(&[&["--trace", trace], &run[1..]].concat());
        assert!(plain.len() > 10 && plain == traced, "{run:?}");
        fs::remove_file(trace).expect("the trace is there");
    }
}

// ---- claims

#[test]
fn the_argument_is_what_the_program_says() {
    check_file("docs/claims.md", &fine(&["claims", "--format", "markdown"]));
    let tried = json(&fine(&["claims", "--format", "json", "--filter", "mfu-"]));
    let claims = tried["claims"].as_array().expect("a list");
    assert_eq!(claims.len(), 3);
    for claim in claims {
        for key in ["id", "claim", "source", "simulated", "verdict", "command"] {
            assert!(
                claim[key].as_str().is_some_and(|text| !text.is_empty()),
                "{claim:#}"
            );
        }
    }
    let unknown = failed(&["claims", "--filter", "perpetual motion"], 2);
    assert!(unknown.contains("mfu-bloom"), "{unknown}");
}
