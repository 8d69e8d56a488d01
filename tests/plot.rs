//! `rackflow plot` as a person uses it: every kind, from reports, sweeps and scenarios, and what it
//! says where a picture cannot be made. What a picture is drawn from is held against physics.

mod common;

use common::{fine, json, refused, scratch, text, written};
use serde_json::Value;
use std::fs;
use std::path::PathBuf;

const SWEEP: &str = "\
cluster: { node: dgx-h100, gpus: [8, 16, 32], fabric: rail-optimized }
workload:
  training:
    model: llama3-8b
    stack: megatron-core-25.04
    precision: [bf16, fp8]
    sequence_length: 8192
    global_batch: 32
    parallelism: { tensor: 2, zero: 1 }
    run:
      days: 30
      failures: llama3-16k-h100
      checkpoint: { write: 10 GB/s }
      replications: 2
";

/// Four stages, so that there is a pipeline to see.
const PIPELINE: &str = "\
cluster: { node: dgx-h100, gpus: 32, fabric: rail-optimized }
workload:
  training:
    model: llama3-8b
    stack: megatron-core-25.04
    precision: bf16
    sequence_length: 8192
    global_batch: 16
    parallelism: { tensor: 2, pipeline: 4, zero: 1 }
";

const OF_ONE_RUN: [&str; 5] = ["waterfall", "roofline", "gantt", "links", "memory"];

fn list<'v>(value: &'v Value, path: &str) -> &'v Vec<Value> {
    value
        .pointer(path)
        .and_then(Value::as_array)
        .unwrap_or_else(|| panic!("a list at {path}"))
}

fn real(value: &Value, key: &str) -> f64 {
    value[key]
        .as_f64()
        .unwrap_or_else(|| panic!("{key} of {value}"))
}

#[test]
fn a_report_is_enough_for_every_picture_of_one_run() {
    let folder = scratch("plot-report");
    let scenario = written(&folder, "pipeline.yaml", PIPELINE);
    let out = folder.join("out");
    fine(&["run", text(&scenario), "-o", text(&out)]);
    let words = [
        ("waterfall", "PFLOP/s"),
        ("roofline", "FLOP per byte"),
        ("gantt", "time in the step"),
        ("links", "% of the line rate"),
        ("memory", "GB of one GPU"),
    ];
    for (kind, unit) in words {
        let svg = fine(&["plot", kind, text(&out.join("report.json"))]);
        assert!(
            svg.starts_with("<svg") && svg.contains(unit),
            "{kind}: {svg}"
        );
        // The folder of a run, and the scenario itself, say the same.
        assert_eq!(svg, fine(&["plot", kind, text(&out)]), "{kind}");
        assert_eq!(svg, fine(&["plot", kind, text(&scenario)]), "{kind}");
    }
    let gantt = fine(&["plot", "gantt", text(&out)]);
    assert!(gantt.contains("stage 3") && !gantt.contains("stage 4"));
    let png = folder.join("links.png");
    fine(&["plot", "links", text(&out), "-o", text(&png)]);
    assert_eq!(&fs::read(&png).expect("a picture")[1..4], b"PNG");
}

#[test]
fn pictures_of_many_runs_come_of_a_sweep_its_folder_or_reports() {
    let folder = scratch("plot-sweep");
    let scenario = written(&folder, "sweep.yaml", SWEEP);
    let out = folder.join("out");
    fine(&["sweep", text(&scenario), "-o", text(&out)]);
    for kind in ["scaling", "goodput", "pareto", "loss"] {
        let svg = fine(&["plot", kind, text(&out)]);
        assert!(svg.contains("bf16") && svg.contains("fp8"), "{kind}: {svg}");
        assert_eq!(svg, fine(&["plot", kind, text(&scenario)]), "{kind}");
        let figure = out.join(format!("figures/{kind}.svg"));
        assert_eq!(svg, fs::read_to_string(figure).expect("a figure"), "{kind}");
    }
    assert!(fine(&["plot", "scaling", text(&out)]).contains("linear"));
    assert!(fine(&["plot", "pareto", text(&out)]).contains("Pareto front"));
    let reports: Vec<PathBuf> = [8, 16, 32]
        .iter()
        .map(|gpus| out.join(format!("cases/gpus={gpus}+precision=fp8/report.json")))
        .collect();
    let mut args = vec!["plot", "scaling"];
    args.extend(reports.iter().map(|path| text(path)));
    let svg = fine(&args);
    assert!(
        svg.contains("h100-sxm fp8") && svg.contains("linear"),
        "{svg}"
    );
    let pictures = folder.join("pictures");
    fine(&["plot", "goodput", text(&out), "-o", text(&pictures)]);
    assert!(pictures.join("goodput.svg").exists() && pictures.join("goodput.png").exists());
}

#[test]
fn a_sweep_in_parts_is_drawn_part_by_part() {
    let folder = scratch("plot-parts");
    let parts = SWEEP.replace(
        "global_batch: 32",
        "global_batch: 32\n    micro_batch: [1, 2]",
    );
    let scenario = written(&folder, "sweep.yaml", &parts);
    let out = folder.join("out");
    fine(&["sweep", text(&scenario), "-o", text(&out)]);
    let message = refused(&["plot", "scaling", text(&out)]);
    assert!(
        message.contains("2 parts") && message.contains("--part"),
        "{message}"
    );
    let svg = fine(&["plot", "scaling", text(&out), "--part", "2"]);
    assert!(svg.contains("llama3-8b: 2"), "{svg}");
    let message = refused(&["plot", "scaling", text(&out), "--part", "seven"]);
    assert!(message.contains("no part contains"), "{message}");
}

#[test]
fn what_cannot_be_drawn_says_what_would() {
    let folder = scratch("plot-errors");
    let scenario = written(&folder, "sweep.yaml", SWEEP);
    let mut report = json(&["run", "quickstart-llama3-8b-8-h100", "--format", "json"]);
    for key in ["kernels", "links", "timeline", "memory_by_stage"] {
        report.as_object_mut().expect("a report").remove(key);
    }
    // A report of a version before these keys is still read.
    let old = written(&folder, "old.json", report.to_string());
    for kind in ["waterfall", "memory"] {
        fine(&["plot", kind, text(&old)]);
    }
    let other = written(&folder, "other.json", "{\"a\": 1}");
    let cases: [(&[&str], &str); 11] = [
        (
            &["roofline", text(&old)],
            "rackflow run SCENARIO --format json",
        ),
        (&["gantt", text(&old)], "timeline"),
        (&["links", text(&old)], "use of its links"),
        (&["scaling", text(&old)], "two sizes at least"),
        (&["gantt", text(&scenario)], "shows one run"),
        (&["memory", text(&old), text(&old)], "2 are named"),
        (&["waterfall", text(&other)], "is no report"),
        (
            &["waterfall", text(&folder)],
            "neither a report.json nor a sweep",
        ),
        (
            &["gantt", "serve-llama3-70b-8-h100"],
            "serving has `waterfall`, `roofline`",
        ),
        (&["memory", "deepseek-v3-2048-h80"], "did you mean"),
        (&["memory", text(&old), "-o", "memory.pdf"], ".svg or .png"),
    ];
    for (args, expected) in cases {
        let mut line = vec!["plot"];
        line.extend(args);
        let message = refused(&line);
        assert!(message.contains(expected), "{args:?}: {message}");
    }
    assert!(fine(&["plot", "waterfall", "serve-llama3-70b-8-h100"]).contains("MBU"));
}

#[test]
fn no_kernel_is_above_its_roof_and_all_fit_into_the_step() {
    for scenario in ["deepseek-v3-2048-h800", "llama3-405b-16384-h100"] {
        let report = json(&["run", scenario, "--format", "json"]);
        let kernels = &report["kernels"];
        let bandwidth = real(kernels, "memory_bytes_per_s");
        let peaks = list(kernels, "/peaks");
        let mut fractions = 0.0;
        let mut flops = 0.0;
        for row in list(kernels, "/rows") {
            let seconds = real(row, "gpu_seconds");
            let found = peaks.iter().find(|peak| peak["format"] == row["format"]);
            let peak = real(found.unwrap_or(&peaks[0]), "flops_per_s");
            assert!(real(row, "flops") <= peak * seconds * 1.000_001, "{row}");
            assert!(
                real(row, "bytes") <= bandwidth * seconds * 1.000_001,
                "{row}"
            );
            fractions += real(row, "fraction");
            flops += real(row, "flops");
        }
        assert!(
            fractions > 0.3 && fractions < 1.0,
            "{scenario}: {fractions}"
        );
        // The tensor-core operations of the kernels are those that the report's HFU counts.
        let gpus = real(&report["cluster"], "gpus");
        let step = real(&report["training"], "step_time_s");
        let hfu = real(&report["training"]["hfu_by_convention"], "bf16_causal");
        let counted = hfu * real(&report["cluster"]["peak_flops"], "bf16") * step;
        assert!(
            (flops / counted - 1.0).abs() < 1e-6,
            "{scenario}: {flops} of {counted}, {gpus}"
        );
    }
}

#[test]
fn links_carry_what_the_collectives_send() {
    // One node, data-parallel alone: gradients are reduced and parameters gathered, each by a ring or
    // through the switch, so every GPU sends 7/8 of a copy for each.
    let folder = scratch("plot-links");
    let scenario = written(
        &folder,
        "data.yaml",
        PIPELINE
            .replace("gpus: 32", "gpus: 8")
            .replace("{ tensor: 2, pipeline: 4, zero: 1 }", "{ zero: 1 }")
            .replace("sequence_length: 8192", "sequence_length: 2048"),
    );
    let report = json(&["run", text(&scenario), "--format", "json"]);
    let links = &report["links"];
    assert_eq!(
        list(links, "/tiers").len(),
        1,
        "one node has no NIC in use: {links}"
    );
    let traffic = list(links, "/traffic");
    assert_eq!(traffic.len(), 1, "{links}");
    assert_eq!(traffic[0]["kind"], "dp");
    let parameters = real(&report["model"], "parameters");
    let copies = real(&traffic[0], "nvlink") / (parameters * 7.0 / 8.0);
    // fp32 gradients and bf16 parameters: six bytes a parameter.
    assert!((copies - 6.0).abs() < 0.01, "{copies} bytes per parameter");
    let tier = &list(links, "/tiers")[0];
    let busy = real(tier, "bytes_per_gpu")
        / real(tier, "bytes_per_s")
        / real(&report["training"], "step_time_s");
    assert!((real(tier, "busy") - busy).abs() < 1e-4, "{tier}");
}

#[test]
fn folded_and_full_send_and_do_the_same() {
    let folder = scratch("plot-full");
    let scenario = written(&folder, "pipeline.yaml", PIPELINE);
    let run = |fidelity: &str| {
        let line = ["run", text(&scenario), "--format", "json", "--fidelity"];
        json(&[line.as_slice(), &[fidelity]].concat())
    };
    let (folded, full) = (run("folded"), run("full"));
    for key in ["kernels", "links", "timeline", "memory_by_stage"] {
        assert_eq!(folded[key], full[key], "{key}");
    }
    // No stage does two passes at once, and none is over before it begins.
    for stage in list(&folded, "/timeline/stages") {
        let times = |key: &str| -> Vec<f64> {
            let all = stage[key].as_array().expect("times");
            all.iter()
                .map(|time| time.as_f64().expect("a time"))
                .collect()
        };
        let (starts, ends) = (times("start_s"), times("end_s"));
        assert_eq!(
            starts.len(),
            stage["passes"].as_str().expect("letters").len()
        );
        assert!(starts.iter().zip(&ends).all(|(start, end)| start < end));
        assert!(
            ends.iter()
                .zip(&starts[1..])
                .all(|(end, start)| end <= start)
        );
    }
    for kind in OF_ONE_RUN {
        fine(&[
            "plot",
            kind,
            text(&scenario),
            "-o",
            text(&folder.join("x.svg")),
        ]);
    }
}
