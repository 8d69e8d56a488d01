//! Several jobs on one fabric, as a user writes them.

mod common;

use common::{outcome, scratch, text as path, written};

const TWO_JOBS: &str = include_str!("../scenarios/two-jobs-oversubscribed-roce.yaml");

/// Runs a text from a file of its own.
fn run_text(name: &str, text: &str) -> (i32, String, String) {
    let file = written(&scratch(name), "jobs.yaml", text);
    outcome(&["run", path(&file), "--format", "json"])
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
    let seats = "gpus: 256\n    placement: scattered";
    let explicit = TWO_JOBS
        .replacen(
            seats,
            "gpus: 256\n    placement: { explicit: [0-127, 384-511] }",
            1,
        )
        .replacen(seats, "gpus: 256\n    placement: packed", 1);
    assert_eq!(slowdowns("explicit", &explicit), [1.0, 1.0]);
}

/// Leaves and slowdowns of both jobs, seated like this.
fn seated(name: &str, large: &str, small: &str) -> Vec<(u64, f64)> {
    let seats = "gpus: 256\n    placement: scattered";
    let mut text = TWO_JOBS.to_owned();
    for placement in [large, small] {
        text = text.replacen(seats, &format!("gpus: 256\n    placement: {placement}"), 1);
        if placement == "scattered" {
            // Leave it behind for the next replacement.
            text = text.replacen(seats, "gpus: 256 \n    placement: scattered", 1);
        }
    }
    let (status, out, err) = run_text(name, &text);
    assert_eq!((status, err.as_str()), (0, ""), "{name}");
    let report: serde_json::Value = serde_json::from_str(&out).expect("the output is JSON");
    let jobs = report["jobs"].as_array().expect("a list of jobs");
    let of = |job: &serde_json::Value| {
        let leaves = job["leaves"].as_u64().expect("a count");
        (leaves, job["slowdown"].as_f64().expect("a number"))
    };
    jobs.iter().map(of).collect()
}

/// The table of placements in `docs/topology.md`.
#[test]
fn placements_do_what_their_names_say() {
    let every_other = |from: u32| {
        let nodes: Vec<String> = (from..64)
            .step_by(2)
            .map(|node| format!("{}-{}", 8 * node, 8 * node + 7))
            .collect();
        format!("{{ explicit: [{}] }}", nodes.join(", "))
    };
    let packed = seated("packed-packed", "packed", "packed");
    assert_eq!(packed, [(8, 1.0), (8, 1.0)], "leaves of their own");
    assert_eq!(
        seated("packed-scattered", "packed", "scattered"),
        packed,
        "whole leaves are left"
    );
    let scattered = seated("scattered-packed", "scattered", "packed");
    assert!(
        scattered
            .iter()
            .all(|(leaves, slowdown)| *leaves > 8 && *slowdown > 1.1)
    );
    let striped = seated("striped", &every_other(0), &every_other(1));
    assert!(
        striped.iter().all(|(leaves, _)| *leaves == 16),
        "{striped:?}"
    );
    let sum = |jobs: &[(u64, f64)]| jobs.iter().map(|job| job.1).sum::<f64>();
    assert!(sum(&striped) > sum(&scattered), "{striped:?} {scattered:?}");
}

/// What a slow GPU, a dead rail, a degraded or a flapping uplink costs jobs beside each other.
#[test]
fn faults_cost_jobs_what_their_reports_say() {
    for (index, (fault, least)) in [
        // Rings over the uplinks take most of a step, and hide most of what a slow GPU loses.
        ("stragglers: [{ gpu: 3, slowdown: 1.5 }]", 1.01),
        // The uplinks hold the rings back more than half a NIC does.
        ("links: [{ link: { rail: 2 }, state: down }]", 1.0),
        ("links: [{ link: { leaf_uplinks: 0 }, state: { degraded: 0.3 } }]", 1.02),
        (
            "links: [{ link: { leaf_uplinks: 0 }, state: { flapping: { every: 100 ms, down: 30 ms } } }]",
            1.02,
        ),
    ]
    .into_iter()
    .enumerate()
    {
        let text = format!("{TWO_JOBS}\nsimulation:\n  {fault}\n");
        let (status, out, err) = run_text(&format!("faults-{index}"), &text);
        assert_eq!((status, err.as_str()), (0, ""), "{fault}");
        let report: serde_json::Value = serde_json::from_str(&out).expect("the output is JSON");
        let costs: Vec<f64> = report["jobs"]
            .as_array()
            .expect("a list of jobs")
            .iter()
            .map(|job| {
                let disturbed = &job["training"]["report"]["disturbed"];
                let time = |key: &str| disturbed[key].as_f64().expect("a time");
                assert_eq!(job["training"]["step_time_s"], disturbed["time_s"]);
                time("time_s") / time("undisturbed_time_s")
            })
            .collect();
        let most = costs.iter().copied().fold(0.0, f64::max);
        assert!(most >= least, "{fault}: {costs:?}");
    }
}

#[test]
fn a_summary_and_a_report_for_each_job() {
    let (status, text, _) = outcome(&["run", "two-jobs-oversubscribed-roce"]);
    assert_eq!(status, 0);
    assert!(text.starts_with("2 jobs on 512 of 512 GPUs"), "{text}");
    assert!(text.contains("suffers most"), "{text}");
    assert_eq!(text.matches("Where the peak goes").count(), 2);
    let (status, text, _) = outcome(&["check", "two-jobs-oversubscribed-roce"]);
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
    // The first job leaves two nodes half free.
    let seats = "gpus: 256\n    placement: scattered";
    let ragged = TWO_JOBS
        .replacen(
            seats,
            "gpus: 256\n    placement: { explicit: [0-251, 256-259] }",
            1,
        )
        .replacen(seats, "gpus: 256\n    placement: rail_aligned", 1);
    let (_, _, err) = run_text("ragged", &ragged);
    assert!(
        err.contains(
            "`rail_aligned` takes whole free nodes of 8 GPUs, and they hold 248 of the 256 GPUs"
        ),
        "{err}"
    );
    let overlapping = TWO_JOBS.replace("placement: scattered", "placement: { explicit: [0-255] }");
    let (_, _, err) = run_text("overlap", &overlapping);
    assert!(err.contains("GPU 0 is taken already"), "{err}");
}

const MIXED: &str = include_str!("../scenarios/serving-beside-training-roce.yaml");

/// The jobs of a report in JSON.
fn report_of(name: &str, text: &str) -> serde_json::Value {
    let (status, out, err) = run_text(name, text);
    assert_eq!((status, err.as_str()), (0, ""), "{name}");
    serde_json::from_str(&out).expect("the output is JSON")
}

#[test]
fn caches_on_the_move_and_gradients_slow_each_other_where_they_meet() {
    let apart = MIXED.replace("placement: scattered", "placement: packed");
    let (beside, apart) = (report_of("beside", MIXED), report_of("apart", &apart));
    let number = |value: &serde_json::Value| value.as_f64().expect("a number");
    let of = |report: &serde_json::Value, job: usize, kind: &str, key: &str| {
        number(&report["jobs"][job][kind][key])
    };
    // Both jobs feel it where they share leaves.
    let waits = |report| {
        [
            of(report, 0, "serving", "kv_wait_alone_s"),
            of(report, 0, "serving", "kv_wait_s"),
        ]
    };
    let [alone, together] = waits(&beside);
    assert!(together > 1.1 * alone, "{alone} {together}");
    assert!(number(&beside["jobs"][1]["slowdown"]) > 1.002);
    // On leaves of their own neither does.
    let [alone, together] = waits(&apart);
    assert_eq!(alone, together);
    for job in 0..2 {
        assert_eq!(number(&apart["jobs"][job]["slowdown"]), 1.0);
    }
    // All that was asked was answered, and moved once.
    let serving = &beside["jobs"][0]["serving"]["report"]["serving"];
    assert_eq!(
        serving["requests"]["answered"],
        apart["jobs"][0]["serving"]["report"]["serving"]["requests"]["answered"]
    );
}

#[test]
fn jobs_that_serve_only_share_a_fabric_too_and_order_does_not_matter() {
    let jobs = MIXED.find("jobs:").expect("it has jobs");
    let (head, list) = MIXED.split_at(jobs);
    let second = list.find("  - name: pretraining").expect("two jobs");
    let (first, rest) = list["jobs:\n".len()..].split_at(second - "jobs:\n".len());
    let swapped = format!("{head}jobs:\n{rest}{first}");
    let (_, out, _) = run_text("swapped", &swapped);
    assert!(out.contains("\"pretraining\""), "{out}");
    let other = first.replace("name: chat", "name: search");
    let both = format!("{head}jobs:\n{first}{other}");
    let report = report_of("both", &both);
    assert_eq!(report["jobs"].as_array().map(Vec::len), Some(2));
    for job in 0..2 {
        let slowdown = report["jobs"][job]["slowdown"].as_f64().expect("a number");
        assert!((1.0..2.0).contains(&slowdown), "{slowdown}");
    }
}

#[test]
fn a_serving_job_beside_others_is_refused_where_it_cannot_be() {
    for (name, from, to, says) in [
        (
            "node",
            "prefill: { replicas: 4,",
            "prefill: { node: dgx-a100, replicas: 4,",
            "beside other jobs both pools sit on the nodes of the cluster",
        ),
        (
            "large",
            "decode: { replicas: 4,",
            "decode: { replicas: 9,",
            "prefill and decode need 104 GPUs, but the cluster has 64",
        ),
        (
            "model",
            "model: llama3-70b",
            "model: llama3-70",
            "unknown model `llama3-70`",
        ),
    ] {
        let (status, out, err) = run_text(name, &MIXED.replace(from, to));
        assert_eq!((status, out.as_str()), (2, ""), "{name}");
        assert!(err.contains(says), "{name}: {err}");
        assert!(err.contains("jobs.yaml:"), "{name} names its place: {err}");
    }
}

/// What is slow or broken is named, and its cost stands beside it.
fn disturbed(name: &str, text: &str) -> (Vec<String>, f64, f64) {
    let report = report_of(name, text);
    let disturbed = &report["disturbed"];
    let number = |key: &str| disturbed[key].as_f64().expect("a number");
    let faults = disturbed["faults"].as_array().expect("a list");
    (
        faults
            .iter()
            .map(|fault| fault.as_str().expect("words").to_owned())
            .collect(),
        number("undisturbed_time_s"),
        number("time_s"),
    )
}

#[test]
fn slow_gpus_and_faulty_links_are_named_with_what_they_cost_a_step() {
    for (name, text, says) in [
        (
            "rail",
            include_str!("../scenarios/dead-rail-llama3-8b-64-h100.yaml"),
            "rail 3 is dead",
        ),
        (
            "flapping",
            include_str!("../scenarios/flapping-nic-llama3-8b-64-h100.yaml"),
            "the NIC of GPU 9 is down for 5.000 ms every 100.0 ms",
        ),
        (
            "slow",
            include_str!("../scenarios/slow-gpu-llama3-8b-64-h100.yaml"),
            "GPU 9 computes 1.1 times as long",
        ),
    ] {
        let (faults, without, with) = disturbed(name, text);
        assert_eq!(faults, [says]);
        assert!(with > without, "{name}: {with} {without}");
        assert!(with < 1.2 * without, "{name}: {with} {without}");
    }
    let (_, text, _) = outcome(&["run", "slow-gpu-llama3-8b-64-h100"]);
    assert!(
        text.contains("GPU 9 computes 1.1 times as long. A step takes"),
        "{text}"
    );
}

#[test]
fn faults_slow_serving_too() {
    let disaggregated = "cluster: { node: dgx-h100, gpus: 32, fabric: rail-optimized }\n\
        workload:\n  serving:\n    model: llama3-70b\n    stack: vllm-0.10\n    \
        precision: { weights: fp8, kv: bf16 }\n    disaggregation:\n      \
        prefill: { replicas: 2, parallelism: { tensor: 8 } }\n      \
        decode: { replicas: 2, parallelism: { tensor: 8 } }\n      \
        transfer: { layer_by_layer: false }\n    requests:\n      input: { fixed: 8192 }\n      \
        output: { fixed: 16 }\n      arrivals: { poisson: { rate: 3 requests/s } }\n      count: 40\n\
        simulation:\n";
    for (name, fault, says) in [
        (
            "dead",
            "  links: [{ link: { rail: 3 }, state: down }]\n",
            "rail 3 is dead",
        ),
        (
            "half",
            "  links: [{ link: { nic: 1 }, state: { degraded: 0.25 } }]\n",
            "the NIC of GPU 1 works at 25.0 % of the rate",
        ),
        (
            "flap",
            "  links: [{ link: { nic: 1 }, state: { flapping: { every: 20 ms, down: 10 ms } } }]\n",
            "the NIC of GPU 1 is down for 10.00 ms every 20.00 ms",
        ),
        (
            "hot",
            "  stragglers: [{ gpu: 17, slowdown: 1.5 }]\n",
            "GPU 17 computes 1.5 times as long",
        ),
    ] {
        let (faults, without, with) = disturbed(name, &format!("{disaggregated}{fault}"));
        assert_eq!(faults, [says]);
        assert!(with > 1.0005 * without, "{name}: {with} {without}");
    }
    for (name, fault, says) in [
        (
            "nobody",
            "  stragglers: [{ gpu: 32, slowdown: 1.5 }]\n",
            "there is no GPU 32",
        ),
        (
            "norail",
            "  links: [{ link: { rail: 8 }, state: down }]\n",
            "there is no rail 8",
        ),
    ] {
        let (status, _, err) = run_text(name, &format!("{disaggregated}{fault}"));
        assert_eq!(status, 2, "{name}");
        assert!(err.contains(says), "{name}: {err}");
    }
}

/// How jobs answer to more of each resource: of all together and of each job, by resource.
fn elasticities(name: &str, text: &str) -> serde_json::Value {
    let file = written(&scratch(name), "jobs.yaml", text);
    let (status, out, err) = outcome(&["elasticities", path(&file), "--format", "json"]);
    assert_eq!((status, err.as_str()), (0, ""), "{name}");
    serde_json::from_str(&out).expect("the output is JSON")
}

/// The answers of all jobs together or of one, but for the batch, which is no rate.
fn answers(of: &serde_json::Value) -> Vec<(String, f64)> {
    let list = of["elasticities"].as_array().expect("a list");
    let answers = list.iter().map(|answer| {
        let resource = answer["resource"].as_str().expect("a name");
        let elasticity = answer["elasticity"].as_f64().expect("a number");
        (resource.to_owned(), elasticity)
    });
    answers.filter(|(name, _)| name != "batch").collect()
}

#[test]
fn jobs_that_meet_are_bound_by_the_nics_and_jobs_apart_by_their_own_work() {
    let small = TWO_JOBS
        .replace("gpus: 512", "gpus: 128")
        .replace("gpus: 256", "gpus: 64")
        .replace("global_batch: 128", "global_batch: 32");
    let meet = elasticities("meet", &small);
    let packed = small
        .replace("placement: scattered", "placement: packed")
        .replace("global_batch: 32", "global_batch: 128")
        .replace("leaf_oversubscription: 4", "leaf_oversubscription: 1");
    let apart = elasticities("apart", &packed);
    for (ranked, bound_by) in [
        (&meet, "bound by the NICs"),
        (&apart, "bound by the tensor cores"),
    ] {
        let jobs = ranked["jobs"].as_array().expect("a list");
        assert_eq!(jobs.len(), 2);
        for of in jobs.iter().chain([ranked]) {
            let words = of["bound_by"].as_str().expect("words");
            assert!(words.starts_with(bound_by), "{words}");
            // Whatever is faster in every respect is faster as a whole, whoever else is there.
            let sum: f64 = answers(of).iter().map(|(_, elasticity)| elasticity).sum();
            assert!((0.9..1.1).contains(&sum), "{sum} of {of}");
        }
    }
}

#[test]
fn a_service_beside_training_answers_in_its_own_terms() {
    let short = MIXED.replace("count: 300", "count: 40");
    let ranked = elasticities("beside", &short);
    let [chat, training] = [&ranked["jobs"][0], &ranked["jobs"][1]];
    assert_eq!(chat["basis"], "e2e_s");
    assert_eq!(training["basis"], "tokens_per_s");
    let of = |job: &serde_json::Value, resource: &str| {
        let found = answers(job);
        let found = found.into_iter().find(|(name, _)| name == resource);
        found.unwrap_or_else(|| panic!("{resource} is there")).1
    };
    // What only serving kernels have moves the service, and training by the traffic that it meets at most.
    assert!(of(chat, "kernel_latency") > 0.05);
    assert!(of(training, "kernel_latency").abs() < 0.02);
    assert!(of(training, "nic") > 0.3, "{training}");
    // All together are the mean over GPUs.
    let mean = |resource: &str| {
        let gain = |job: &serde_json::Value| 1.05_f64.powf(of(job, resource));
        (0.25 * gain(chat) + 0.75 * gain(training)).ln() / 1.05_f64.ln()
    };
    for resource in ["nic", "tensor_flops", "memory_bandwidth"] {
        assert!((of(&ranked, resource) - mean(resource)).abs() < 1e-9);
    }
    let not_used = ranked["not_used"].to_string();
    assert!(not_used.contains("a faster KV store"), "{not_used}");
}

#[test]
fn elasticities_of_jobs_are_a_table_and_a_picture() {
    let folder = scratch("ranked");
    let name = "two-jobs-oversubscribed-roce";
    let (status, table, err) = outcome(&["elasticities", name, "-o", path(&folder)]);
    assert_eq!(status, 0, "{err}");
    assert!(
        table.contains("2 jobs on 512 GPUs, together bound by the NICs"),
        "{table}"
    );
    assert!(
        table.contains("all jobs       large       small"),
        "{table}"
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
