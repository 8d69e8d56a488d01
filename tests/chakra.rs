//! Execution traces of MLCommons Chakra, as a user meets them.

mod common;

use common::{json, outcome, root, scratch, text};
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};

/// A folder of one test, and files in it by path.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Self {
        Self(scratch(name))
    }

    fn file(&self, name: &str, bytes: impl AsRef<[u8]>) -> String {
        let path = self.0.join(name);
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).expect("a scratch folder");
        }
        fs::write(&path, bytes).expect("a scratch file");
        text(&path).to_owned()
    }
}

fn shipped() -> PathBuf {
    root().join("scenarios/traces/chakra-data-parallel-8")
}

/// A copy of the shipped trace, of so many ranks, beside a scenario that replays it.
fn copy(scratch: &Scratch, ranks: u32, workload: &str) -> String {
    for rank in 0..ranks {
        let name = format!("data-parallel.{rank}.et");
        let bytes = fs::read(shipped().join(&name)).expect("it ships");
        scratch.file(&format!("t/{name}"), bytes);
    }
    let groups = fs::read(shipped().join("comm_group.json")).expect("it ships");
    scratch.file("t/comm_group.json", groups);
    scratch.file(
        "replay.yaml",
        format!("cluster: {{ node: dgx-h100, gpus: 8 }}\nworkload:\n  chakra: {workload}\n"),
    )
}

fn number(value: &Value, path: &str) -> f64 {
    let found = value.pointer(path).and_then(Value::as_f64);
    found.unwrap_or_else(|| panic!("{path} is a number"))
}

#[test]
fn the_shipped_trace_is_as_slow_as_its_slowest_rank() {
    let report = json(&["run", "replay-chakra-8-h100", "--format", "json"]);
    let step = number(&report, "/replay/step_time_s");
    // Rank 5: (180 + 4 x 6,100 + 9,400 + 4 x 12,800 + 4,700 us) x 1.05, each rounded down.
    let slowest = 189e-6 + 4.0 * 6_405e-6 + 9_870e-6 + 4.0 * 13_440e-6 + 4_935e-6;
    // Only the last of its gradient all-reduces has no backward pass beside it: 436 MB, of which a
    // GPU sends and receives 7/4 over NVLink at 250 to 480 GB/s.
    let last = step - slowest;
    let sent = 436e6 * 1.75;
    assert!(sent / last > 250e9 && sent / last < 480e9, "{last} s");
    let fractions: f64 = report["waterfall"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|loss| number(loss, "/fraction"))
        .sum();
    assert!((fractions - 1.0).abs() < 1e-12, "{fractions}");
    let exposed = number(&report, "/replay/exposed_comm_fraction");
    assert!(
        (exposed - last / step).abs() < 1e-9,
        "every rank waits for it alike"
    );
}

#[test]
fn the_roofline_takes_a_trace_to_hardware_that_it_never_saw() {
    let scratch = Scratch::new("roofline");
    let step = |node: &str| {
        let text = format!(
            "cluster: {{ node: {node}, gpus: 8 }}\nworkload:\n  chakra: {{ traces: t, kernels: roofline }}\n"
        );
        copy(&scratch, 8, "t");
        let path = scratch.file("other.yaml", text);
        number(
            &json(&["run", &path, "--format", "json"]),
            "/replay/step_time_s",
        )
    };
    let (h100, gb200) = (step("dgx-h100"), step("gb200-nvl72"));
    let gain = h100 / gb200;
    // Between the gains of bandwidth and of dense bf16 FLOP/s: 8 / 3.35 TB/s and 2.5 / 0.99 PFLOP/s.
    assert!(gain > 1.5 && gain < 2.6, "{gain}");
}

#[test]
fn a_part_of_a_trace_is_replayed_and_says_so() {
    let scratch = Scratch::new("part");
    let path = copy(&scratch, 1, "t");
    let report = json(&["run", &path, "--format", "json"]);
    assert_eq!(number(&report, "/replay/ranks"), 1.0);
    assert_eq!(number(&report, "/replay/ranks_missing"), 7.0);
    let (_, text, _) = outcome(&["run", &path]);
    assert!(text.contains("taken to be always ready"), "{text}");
    let (status, text, _) = outcome(&["check", &path]);
    assert_eq!(status, 0);
    assert!(text.contains("1 rank and 15 nodes"), "{text}");
}

#[test]
fn what_is_wrong_with_a_trace_is_told_with_file_and_byte() {
    let scratch = Scratch::new("wrong");
    let refused = |path: &str, says: &str| {
        let (status, out, err) = outcome(&["run", path]);
        assert_eq!((status, out.as_str()), (2, ""), "{err}");
        assert!(err.contains(says), "{says:?} is not in {err}");
    };
    let path = copy(&scratch, 8, "t");
    let whole = fs::read(shipped().join("data-parallel.3.et")).expect("it ships");
    scratch.file("t/data-parallel.3.et", &whole[..700]);
    refused(&path, "data-parallel.3.et: byte 6");
    refused(&path, "cut off");
    scratch.file("t/data-parallel.3.et", &whole);
    for needed in ["comm_type", "comm_size"] {
        let name = whole
            .windows(9)
            .position(|bytes| bytes == needed.as_bytes())
            .expect("it has collectives");
        let mut damaged = whole.clone();
        damaged[name] = b'C';
        scratch.file("t/data-parallel.3.et", &damaged);
        refused(&path, &format!("needs the attribute `{needed}`"));
    }
    scratch.file("t/data-parallel.3.et", &whole);
    fs::remove_file(scratch.0.join("t/comm_group.json")).expect("it is there");
    refused(&path, "comm_group.json");
    refused(
        &copy(&scratch, 8, "nowhere"),
        "the folder is relative to the scenario",
    );
    scratch.file("t/other.0.et", &whole);
    refused(
        &copy(&scratch, 8, "t"),
        "several runs: data-parallel, other",
    );
    let small = "cluster: { node: dgx-h100, gpus: 4 }\nworkload:\n  chakra: t\n";
    fs::remove_file(scratch.0.join("t/other.0.et")).expect("it is there");
    refused(
        &scratch.file("small.yaml", small),
        "speaks of rank 4 and the cluster has 4 GPUs",
    );
    let jittery = "cluster: { node: dgx-h100, gpus: 8 }\nworkload:\n  chakra: t\nsimulation: { jitter: typical }\n";
    refused(
        &scratch.file("jittery.yaml", jittery),
        "`jitter` says nothing of a trace",
    );
}

/// Plans whose traces exercise every kind of task: collectives of each kind, stages, rings, experts
/// through a dispatch library and unevenly loaded, ranks that differ, a host that holds kernels up.
const ROUND_TRIPS: [(&str, &str, &str); 5] = [
    (
        "stages",
        "{ node: dgx-h100, gpus: 16, fabric: rail-optimized }",
        "
    model: { like: llama3-8b, layers: 8 }
    stack: megatron-core-25.04
    precision: bf16
    sequence_length: 8192
    global_batch: 16
    parallelism: { tensor: 2, pipeline: 2, virtual_pipeline: 2 }",
    ),
    (
        "shards",
        "{ node: dgx-h100, gpus: 16, fabric: rail-optimized }",
        "
    model: { like: llama3-8b, layers: 4 }
    stack: torchtitan-2024
    precision: bf16
    sequence_length: 16384
    global_batch: 8
    parallelism: { context: 2, zero: 3 }
    recompute: full
simulation: { jitter: typical, stragglers: [{ gpu: 3, slowdown: 1.2 }] }",
    ),
    (
        "experts",
        "{ node: hgx-h800, gpus: 32, fabric: rail-optimized }",
        "
    model: { like: deepseek-v3, layers: 6 }
    stack: deepseek-hai-llm
    precision: fp8_blockwise
    sequence_length: 4096
    global_batch: 64
    parallelism: { pipeline: 2, expert: 16, zero: 3 }
    schedule: dualpipe
    recompute: full
    routing: { lognormal: { sigma: 0.3 } }",
    ),
    (
        "host",
        "{ node: dgx-h100, gpus: 8 }",
        "
    model: { like: llama3-8b, layers: 4, hidden: 1024, ffn: 2048 }
    stack: torchtitan-eager-2024
    precision: bf16
    sequence_length: 1024
    global_batch: 8
    parallelism: { zero: 3 }",
    ),
    (
        "activations-on-the-host",
        "{ node: dgx-h100, gpus: 8 }",
        "
    model: { like: llama3-8b, layers: 8 }
    stack: { like: megatron-core-25.04, activation_offload: { inputs: [layer] } }
    precision: bf16
    sequence_length: 4096
    global_batch: 8
    parallelism: { tensor: 2, pipeline: 4 }",
    ),
];

#[test]
fn an_exported_plan_takes_as_long_when_it_is_replayed() {
    for (name, cluster, training) in ROUND_TRIPS {
        let scratch = Scratch::new(name);
        let text = format!("cluster: {cluster}\nworkload:\n  training:{training}\n");
        let plan = scratch.file(&format!("{name}.yaml"), text);
        let traces = scratch.0.join("traces");
        let folder = traces.to_str().expect("a plain path");
        let (status, out, err) = outcome(&["run", &plan, "--format", "json", "--chakra", folder]);
        assert_eq!(status, 0, "{name}: {err}");
        assert!(err.contains("comm_group.json"), "{err}");
        let ran: Value = serde_json::from_str(&out).expect("the output is JSON");
        let text = format!("cluster: {cluster}\nworkload: {{ chakra: traces }}\n");
        let replay = scratch.file("replay.yaml", text);
        let replayed = json(&["run", &replay, "--format", "json"]);
        let (before, after) = (
            number(&ran, "/training/step_time_s"),
            number(&replayed, "/replay/step_time_s"),
        );
        // To the picosecond: kernels as they ran, everything else simulated anew.
        let picos = |seconds: f64| (seconds * 1e12).round() as u64;
        assert_eq!(picos(before), picos(after), "{name}");
        assert_eq!(number(&replayed, "/replay/ranks_missing"), 0.0);
    }
}

/// One simulation is reported, drawn and exported; each file is what it is alone.
#[test]
fn what_is_exported_is_the_run_that_is_reported() {
    let scratch = Scratch::new("one-run");
    let path = |name: &str| scratch.0.join(name).to_str().expect("a path").to_owned();
    let run = |more: &[&str]| {
        let (status, out, err) = outcome(&[&["run", "quickstart-llama3-8b-8-h100"], more].concat());
        assert_eq!(status, 0, "{err}");
        // All but the wall time.
        out.lines().take(4).collect::<Vec<_>>().join("\n")
    };
    let (alone, both) = (path("alone"), path("both"));
    let (drawn, drawn_too) = (path("alone.json"), path("both.json"));
    let plain = run(&[]);
    assert_eq!(run(&["--chakra", &alone, "--chakra-ranks", "0,5"]), plain);
    assert_eq!(run(&["--trace", &drawn]), plain);
    let all = [
        "--trace",
        &drawn_too,
        "--chakra",
        &both,
        "--chakra-ranks",
        "0,5",
    ];
    assert_eq!(run(&all), plain);
    let read = |path: PathBuf| fs::read(path).expect("written");
    for rank in [0, 5] {
        let name = format!("quickstart-llama3-8b-8-h100.{rank}.et");
        let of = |folder: &str| read(Path::new(folder).join(&name));
        assert!(of(&alone) == of(&both), "{name}");
    }
    assert!(read(drawn.into()) == read(drawn_too.into()));
}

#[test]
fn chosen_ranks_are_written_and_others_refused() {
    let scratch = Scratch::new("chosen");
    let folder = scratch.0.to_str().expect("a plain path");
    let quickstart = "quickstart-llama3-8b-8-h100";
    let (status, _, err) = outcome(&[
        "run",
        quickstart,
        "--chakra",
        folder,
        "--chakra-ranks",
        "1,5",
    ]);
    assert_eq!(status, 0, "{err}");
    let mut names: Vec<String> = fs::read_dir(&scratch.0)
        .expect("the folder")
        .map(|entry| {
            entry
                .expect("an entry")
                .file_name()
                .to_string_lossy()
                .into_owned()
        })
        .collect();
    names.sort();
    let rank = |rank: u32| format!("{quickstart}.{rank}.et");
    assert_eq!(names, ["comm_group.json".to_owned(), rank(1), rank(5)]);
    let (status, _, err) = outcome(&["run", quickstart, "--chakra", folder, "--chakra-ranks", "8"]);
    assert_eq!(status, 2);
    assert!(err.contains("there is no rank 8"), "{err}");
    // What another run left there would be replayed with this one.
    let other = scratch.file("other.3.et", "");
    let again = ["run", quickstart, "--chakra", folder];
    let (status, _, err) = outcome(&again);
    assert_eq!(status, 2);
    assert!(err.contains("another run, such as other.3.et"), "{err}");
    fs::remove_file(other).expect("it is there");
    let (status, _, err) = outcome(&again);
    assert_eq!(status, 0, "over its own traces: {err}");
    let (status, _, err) = outcome(&["run", "replay-chakra-8-h100", "--chakra", folder]);
    assert_eq!(status, 2);
    assert!(err.contains("this one replays a trace"), "{err}");
}

/// The events of the timeline of a replay, by kind.
fn timeline(scenario: &str, path: &str, more: &[&str]) -> impl Fn(&str) -> Vec<Value> + use<> {
    let mut line = vec!["run", scenario, "--trace", path];
    line.extend(more);
    let (status, _, err) = outcome(&line);
    assert_eq!(status, 0, "{err}");
    let written = fs::read_to_string(path).expect("it was written");
    let json: Value = serde_json::from_str(&written).expect("JSON");
    let events = json["traceEvents"].as_array().expect("events").clone();
    move |kind| {
        let of_kind = events.iter().filter(|event| event["ph"] == kind);
        of_kind.cloned().collect()
    }
}

#[test]
fn a_replay_has_a_timeline() {
    let scratch = Scratch::new("timeline");
    let path = scratch.file("out.json", "");
    let events = timeline("replay-chakra-8-h100", &path, &["--trace-ranks", "5,0"]);
    let groups: Vec<Value> = events("M")
        .iter()
        .filter(|event| event["name"] == "process_name")
        .map(|event| event["args"]["name"].clone())
        .collect();
    assert_eq!(groups, ["rank 0", "rank 5"]);
    let slices = events("X");
    let ends = |slice: &Value| number(slice, "/ts") + number(slice, "/dur");
    let kernels = slices
        .iter()
        .filter(|slice| slice["pid"] == 2 && slice["name"] == "kernel");
    // The kernels of rank 5, in microseconds: those of the step's closed form above.
    let sum: f64 = kernels.map(|slice| number(slice, "/dur")).sum();
    assert!((sum - 94_374.0).abs() < 1e-3, "{sum}");
    let report = json(&["run", "replay-chakra-8-h100", "--format", "json"]);
    let step = number(&report, "/replay/step_time_s") * 1e6;
    let last = slices.iter().map(ends).fold(0.0, f64::max);
    assert!((last - step).abs() < 1e-3, "{last} and {step}");
    // Rank 0 waits for the slower one in collectives; that one waits for nobody.
    let waits = |rank: u64| {
        let mut of_rank = slices.iter().filter(|slice| slice["pid"] == rank);
        of_rank.any(|slice| slice["name"] == "wait")
    };
    assert!(waits(1) && !waits(2));
    let (status, _, err) = outcome(&[
        "run",
        "replay-chakra-8-h100",
        "--trace",
        &path,
        "--trace-ranks",
        "8",
    ]);
    assert_eq!(status, 2);
    assert!(err.contains("rank 8 has no trace"), "{err}");
}

#[test]
fn messages_of_a_replay_are_arrows_from_sender_to_receiver() {
    let pipelined = ROUND_TRIPS
        .iter()
        .find(|(_, _, training)| training.contains("pipeline: 2"));
    let (_, cluster, training) = pipelined.expect("one has stages");
    let scratch = Scratch::new("arrows");
    let text = format!("cluster: {cluster}\nworkload:\n  training:{training}\n");
    let plan = scratch.file("plan.yaml", text);
    let traces = scratch.0.join("traces");
    let folder = traces.to_str().expect("a plain path");
    let (status, _, err) = outcome(&["run", &plan, "--chakra", folder]);
    assert_eq!(status, 0, "{err}");
    let text = format!("cluster: {cluster}\nworkload: {{ chakra: traces }}\n");
    let replay = scratch.file("replay.yaml", text);
    let path = scratch.file("out.json", "");
    let ranks: Vec<String> = (0..16).map(|rank: u32| rank.to_string()).collect();
    let events = timeline(&replay, &path, &["--trace-ranks", &ranks.join(",")]);
    let (starts, ends) = (events("s"), events("f"));
    assert!(!starts.is_empty());
    assert_eq!(starts.len(), ends.len());
    for start in &starts {
        let end = ends.iter().find(|end| end["id"] == start["id"]);
        let end = end.expect("every arrow arrives");
        assert_ne!(start["pid"], end["pid"], "at another rank");
        assert_eq!(
            start["ts"], end["ts"],
            "both ends of a message begin as one"
        );
    }
}

/// How a replay answers to more of each resource, by name.
fn elasticities(scenario: &str) -> (Value, std::collections::BTreeMap<String, f64>) {
    let ranked = json(&["elasticities", scenario, "--format", "json"]);
    let list = ranked["elasticities"].as_array().expect("a list");
    let answers = list.iter().map(|answer| {
        let name = answer["resource"].as_str().expect("a name").to_owned();
        (name, number(answer, "/elasticity"))
    });
    let answers = answers.collect();
    (ranked, answers)
}

/// Why a resource has no meaning for a trace.
fn reason(ranked: &Value, resource: &str) -> String {
    let told = ranked["without_meaning"].as_array().expect("a list");
    let found = told.iter().find(|told| told["resource"] == resource);
    let found = found.unwrap_or_else(|| panic!("{resource} has no meaning: {ranked}"));
    found["reason"].as_str().expect("words").to_owned()
}

#[test]
fn a_recorded_trace_answers_by_its_kernels_and_says_what_it_cannot_tell() {
    let (ranked, answers) = elasticities("replay-chakra-8-h100");
    let report = json(&["run", "replay-chakra-8-h100", "--format", "json"]);
    // Kernels hold all of the step but the communication that nothing hides.
    let exposed = number(&report, "/replay/exposed_comm_fraction");
    assert!((answers["recorded_kernels"] - (1.0 - exposed)).abs() < 1e-3);
    assert!((answers["nvlink"] - exposed).abs() < 2e-3, "{answers:?}");
    assert_eq!(
        ranked["bound_by"].as_str().map(|words| &words[..29]),
        Some("bound by kernels as recorded ")
    );
    // What a trace cannot answer is no silent zero.
    for resource in ["tensor_flops", "memory_bandwidth", "clock"] {
        assert!(!answers.contains_key(resource));
        assert!(reason(&ranked, resource).contains("kernels: roofline"));
    }
    assert!(reason(&ranked, "nic").contains("nothing crosses"));
    assert!(reason(&ranked, "batch").contains("one batch"));
    let (_, table, _) = outcome(&["elasticities", "replay-chakra-8-h100"]);
    assert!(table.contains("Without meaning for this trace"), "{table}");
}

#[test]
fn a_priced_trace_answers_by_the_units_that_price_it() {
    let scratch = Scratch::new("priced");
    let path = copy(&scratch, 8, "{ traces: t, kernels: roofline }");
    let (ranked, answers) = elasticities(&path);
    assert!(answers["tensor_flops"] > 0.8, "{answers:?}");
    assert!(answers["memory_bandwidth"] > 0.0);
    let sum: f64 = answers.values().sum();
    assert!((0.97..1.03).contains(&sum), "{answers:?}");
    assert!(reason(&ranked, "recorded_kernels").contains("operations and bytes"));
}

#[test]
fn links_and_hosts_of_a_trace_answer_too() {
    for (name, cluster, training) in [ROUND_TRIPS[0], ROUND_TRIPS[3]] {
        let scratch = Scratch::new(&format!("answers-{name}"));
        let text = format!("cluster: {cluster}\nworkload:\n  training:{training}\n");
        let plan = scratch.file(&format!("{name}.yaml"), text);
        let traces = scratch.0.join("traces");
        let (status, _, err) = outcome(&["run", &plan, "--chakra", common::text(&traces)]);
        assert_eq!(status, 0, "{name}: {err}");
        let text = format!("cluster: {cluster}\nworkload: {{ chakra: traces }}\n");
        let (_, answers) = elasticities(&scratch.file("replay.yaml", text));
        let sum: f64 = answers.values().sum();
        assert!((0.95..1.03).contains(&sum), "{name}: {answers:?}");
        match name {
            "stages" => assert!(answers["nic"] > 0.01, "{answers:?}"),
            _ => assert!(answers.contains_key("launch"), "{answers:?}"),
        }
    }
}

#[test]
fn large_traces_are_refused_with_their_size_and_a_way_out() {
    let scratch = Scratch::new("large");
    let folder = scratch.0.join("traces");
    let folder = common::text(&folder);
    let quickstart = "quickstart-llama3-8b-8-h100";
    let limited = |limit: &str| {
        outcome(&[
            "run",
            quickstart,
            "--chakra",
            folder,
            "--chakra-limit",
            limit,
        ])
    };
    let (status, _, err) = limited("100 kB");
    assert_eq!(status, 2);
    assert!(
        err.contains("the traces of 8 ranks would take about"),
        "{err}"
    );
    assert!(
        err.contains("--chakra-ranks 0,1,2,3") && err.contains("--chakra-limit 1GB"),
        "{err}"
    );
    assert!(!scratch.0.join("traces").exists(), "nothing was written");
    let (status, _, err) = limited("1GB");
    assert_eq!(status, 0, "{err}");
    let (status, _, err) = limited("a lot");
    assert_eq!(status, 2, "{err}");
}

#[test]
fn kernels_of_another_accelerator_are_told_with_what_to_do() {
    let scratch = Scratch::new("elsewhere");
    let folder = scratch.0.join("traces");
    let quickstart = "quickstart-llama3-8b-8-h100";
    let (status, _, err) = outcome(&["run", quickstart, "--chakra", common::text(&folder)]);
    assert_eq!(status, 0, "{err}");
    let replayed = |node: &str, kernels: &str| {
        let text = format!(
            "cluster: {{ node: {node}, gpus: 8 }}\nworkload:\n  chakra: {{ traces: traces, kernels: {kernels} }}\n"
        );
        json(&[
            "run",
            &scratch.file("replay.yaml", text),
            "--format",
            "json",
        ])
    };
    let home = replayed("dgx-h100", "recorded");
    assert_eq!(
        home["replay"]["recorded_on"],
        serde_json::json!(["h100-sxm"])
    );
    assert_eq!(home["replay"]["suggestion"], Value::Null);
    let away = replayed("dgx-b200", "recorded");
    let told = away["replay"]["suggestion"].as_str().expect("words");
    assert!(
        told.contains("the times of h100-sxm on b200") && told.contains("kernels: roofline"),
        "{told}"
    );
    assert_eq!(
        replayed("dgx-b200", "roofline")["replay"]["suggestion"],
        Value::Null
    );
    // Without a word in the trace, what no A100 could do in the time tells it.
    copy(&scratch, 8, "t");
    let text = "cluster: { node: dgx-a100, gpus: 8 }\nworkload: { chakra: t }\n";
    let (_, table, _) = outcome(&["run", &scratch.file("other.yaml", text)]);
    assert!(
        table.contains("recorded kernels are faster than the bf16 peak of a100"),
        "{table}"
    );
}
