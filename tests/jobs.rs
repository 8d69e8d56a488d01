//! Several jobs on one fabric, as a user writes them.

use std::process::Command;

fn rackflow(args: &[&str]) -> (i32, String, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_rackflow"))
        .args(args)
        .output()
        .expect("the binary runs");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("output is text");
    (
        output.status.code().expect("it exits"),
        text(output.stdout),
        text(output.stderr),
    )
}

const TWO_JOBS: &str = include_str!("../scenarios/two-jobs-oversubscribed-roce.yaml");

/// Runs a text from a file of its own.
fn run_text(name: &str, text: &str) -> (i32, String, String) {
    let folder = std::env::temp_dir().join(format!("rackflow-jobs-{name}-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("a scratch folder");
    let file = folder.join("jobs.yaml");
    std::fs::write(&file, text).expect("a scratch file");
    let path = file.to_str().expect("a plain path");
    let result = rackflow(&["run", path, "--format", "json"]);
    std::fs::remove_dir_all(&folder).expect("the scratch folder");
    result
}

fn slowdowns(name: &str, text: &str) -> Vec<f64> {
    let (status, out, err) = run_text(name, text);
    assert_eq!((status, err.as_str()), (0, ""), "{name}");
    let report: serde_json::Value = serde_json::from_str(&out).expect("the output is JSON");
    let jobs = report["jobs"].as_array().expect("a list of jobs");
    jobs.iter()
        .map(|job| job["slowdown"].as_f64().expect("a number"))
        .collect()
}

#[test]
fn scattered_jobs_slow_each_other_and_packed_ones_do_not() {
    let scattered = slowdowns("scattered", TWO_JOBS);
    assert!(
        scattered.iter().any(|slowdown| *slowdown > 1.02),
        "{scattered:?}"
    );
    for placement in ["packed", "rail_aligned"] {
        let apart = TWO_JOBS.replace("placement: scattered", &format!("placement: {placement}"));
        assert_eq!(slowdowns(placement, &apart), [1.0, 1.0]);
    }
    let explicit = TWO_JOBS
        .replacen(
            "placement: scattered",
            "placement: { explicit: [0-127, 384-511] }",
            1,
        )
        .replacen("placement: scattered", "placement: packed", 1);
    assert_eq!(slowdowns("explicit", &explicit), [1.0, 1.0]);
}

#[test]
fn a_summary_and_a_report_for_each_job() {
    let (status, text, _) = rackflow(&["run", "two-jobs-oversubscribed-roce"]);
    assert_eq!(status, 0);
    assert!(text.starts_with("2 jobs on 512 of 512 GPUs"), "{text}");
    assert!(text.contains("suffers most"), "{text}");
    assert_eq!(text.matches("Where the peak goes").count(), 2);
    let (status, text, _) = rackflow(&["check", "two-jobs-oversubscribed-roce"]);
    assert_eq!(status, 0);
    assert!(text.contains("large: 256 GPUs"), "{text}");
}

#[test]
fn jobs_that_cannot_be_are_refused_where_they_are_written() {
    for (name, from, to, says) in [
        (
            "many",
            "gpus: 256",
            "gpus: 264",
            "the jobs ask for 528 GPUs, and the cluster has 512",
        ),
        (
            "twice",
            "name: small",
            "name: large",
            "two jobs are named `large`",
        ),
        (
            "range",
            "placement: scattered",
            "placement: { explicit: [0-600] }",
            "there is no GPU 600",
        ),
        (
            "short",
            "placement: scattered",
            "placement: { explicit: [0-7] }",
            "8 GPUs are listed, and the job has 256",
        ),
        (
            "word",
            "placement: scattered",
            "placement: scatter",
            "did you mean `scattered`?",
        ),
        ("key", "name: small", "nam: small", "did you mean `name`?"),
        (
            "model",
            "model: llama3-8b",
            "model: llama3-8",
            "unknown model `llama3-8`",
        ),
    ] {
        let (status, out, err) = run_text(name, &TWO_JOBS.replace(from, to));
        assert_eq!((status, out.as_str()), (2, ""), "{name}");
        assert!(err.contains(says), "{name}: {err}");
        assert!(err.contains("jobs.yaml:"), "{name} names its place: {err}");
    }
    let overlapping = TWO_JOBS.replace("placement: scattered", "placement: { explicit: [0-255] }");
    let (_, _, err) = run_text("overlap", &overlapping);
    assert!(err.contains("GPU 0 is taken already"), "{err}");
}
