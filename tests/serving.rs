//! Serving as a user writes it: every setting of a serving scenario by way of the command line, and
//! published runs beside it.

mod common;

use common::{outcome, scratch};
use serde_json::Value;
use std::fs;
use std::path::Path;

/// A small service with these lines in place of its own.
fn scenario(cluster: &str, model: &str, serving: &str, requests: &str) -> String {
    format!(
        "cluster: {cluster}\nworkload:\n  serving:\n    {model}\n    stack: vllm-0.10\n{serving}    requests:\n{requests}"
    )
}

const ONE: &str = "{ node: hgx-h100, gpus: 1 }";
const SMALL: &str = "model: llama3-8b\n    precision: { weights: bf16 }";
const FEW: &str = "      arrivals: { poisson: { rate: 20 requests/s } }\n      input: { fixed: 200 }\n      output: { fixed: 20 }\n      count: 60\n";

fn run_with(folder: &Path, text: &str, more: &[&str]) -> Value {
    let path = folder.join("serving.yaml");
    fs::write(&path, text).expect("a scratch file");
    let mut args = vec![
        "run",
        path.to_str().expect("a plain path"),
        "--format",
        "json",
    ];
    args.extend(more);
    let (status, out, err) = outcome(&args);
    assert_eq!(status, 0, "{err}\n{text}");
    serde_json::from_str(&out).expect("a report")
}

/// What holds for every run: whoever came was answered or refused, and the waterfall is whole.
fn holds(report: &Value, text: &str) {
    let serving = &report["serving"];
    let answered = serving["requests_answered"].as_u64().expect("a count");
    assert!(answered > 0, "{text}");
    let losses = report["waterfall"].as_array().expect("a waterfall");
    let sum: f64 = losses
        .iter()
        .filter_map(|loss| loss["fraction"].as_f64())
        .sum();
    assert!((sum - 1.0).abs() < 1e-9, "{text}: {sum}");
    for key in ["ttft_s", "tpot_s", "e2e_s"] {
        for quantile in ["mean", "p50", "p90", "p99"] {
            assert!(
                serving[key][quantile].as_f64().is_some(),
                "{key}.{quantile}"
            );
        }
    }
}

#[test]
fn requests_come_and_look_as_a_scenario_says() {
    let folder = scratch("requests");
    let lengths = "      input: { fixed: 200 }\n      output: { fixed: 20 }\n      count: 60\n";
    for arrivals in [
        "{ gamma: { rate: 20 requests/s, cv: 3 } }",
        "{ constant: { rate: 20 requests/s } }",
        "{ closed_loop: { concurrency: 4 } }",
        "{ burst: {} }",
    ] {
        let text = scenario(
            ONE,
            SMALL,
            "",
            &format!("      arrivals: {arrivals}\n{lengths}"),
        );
        let report = run_with(&folder, &text, &[]);
        holds(&report, &text);
        assert_eq!(report["serving"]["requests_answered"], 60);
    }
    let arrivals = "      arrivals: { poisson: { rate: 20 requests/s } }\n      count: 60\n";
    for shape in [
        "      input: { uniform: { min: 10, max: 400 } }\n      output: { log_normal: { median: 20, sigma: 1, max: 90 } }\n",
        "      input: { fixed: 50 }\n      output: { fixed: 20 }\n      sessions: { turns: { uniform: { min: 2, max: 4 } }, think_time: 100 ms, system_prompt: 300 }\n",
        "      input: { fixed: 50 }\n      output: { fixed: 20 }\n      priorities: 3\n      rate_scale: 2\n      warm_up: 500 ms\n      measure_for: 1 s\n",
    ] {
        let text = scenario(ONE, SMALL, "", &format!("{arrivals}{shape}"));
        holds(&run_with(&folder, &text, &[]), &text);
    }
}

#[test]
fn a_measured_window_ends_where_it_is_told() {
    let folder = scratch("window");
    let requests = "      arrivals: { poisson: { rate: 20 requests/s } }\n      input: { fixed: 200 }\n      output: { fixed: 20 }\n      count: 1000\n      warm_up: 2 s\n      measure_for: 10 s\n";
    let report = run_with(&folder, &scenario(ONE, SMALL, "", requests), &[]);
    let serving = &report["serving"];
    assert_eq!(serving["window_s"], 10.0);
    let measured = serving["requests_measured"].as_f64().expect("a count");
    assert!((150.0..250.0).contains(&measured), "{measured}");
    // In a steady state what goes out per second is what comes in.
    let rate = serving["output_tokens_per_s"].as_f64().expect("a rate");
    assert!((rate / (measured * 2.0) - 1.0).abs() < 0.1, "{rate}");
}

#[test]
fn traces_in_every_form_are_replayed() {
    let folder = scratch("traces");
    let share = r#"[{"id": "a", "conversations": [{"from": "human", "value": "What is a rack, and how many GPUs does it hold?"}, {"from": "gpt", "value": "A frame of steel with some seventy-two of them, and their switches."}]},
{"id": "b", "conversations": [{"from": "human", "value": "And a rail?"}, {"from": "gpt", "value": "The NICs of one rank of every node."}]}]"#;
    for (name, body, count) in [
        (
            "azure.csv",
            "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.6805900,374,44\n2023-11-16 18:15:50.9951690,396,109\n",
            2,
        ),
        (
            "mooncake.jsonl",
            "{\"timestamp\": 0, \"input_length\": 1600, \"output_length\": 20, \"hash_ids\": [1, 2, 3, 4]}\n{\"timestamp\": 900, \"input_length\": 1500, \"output_length\": 20, \"hash_ids\": [1, 2, 9]}\n",
            2,
        ),
        ("sharegpt.json", share, 2),
    ] {
        fs::write(folder.join(name), body).expect("a scratch file");
        let arrivals = if name == "sharegpt.json" {
            "      arrivals: { burst: {} }\n"
        } else {
            ""
        };
        let text = scenario(ONE, SMALL, "", &format!("      trace: {name}\n{arrivals}"));
        let report = run_with(&folder, &text, &[]);
        holds(&report, &text);
        assert_eq!(report["serving"]["requests_answered"], count, "{name}");
        if name == "mooncake.jsonl" {
            // Two shared blocks of 512 tokens.
            let hit = report["serving"]["kv"]["hit_rate"]
                .as_f64()
                .expect("a rate");
            assert!((hit - 1024.0 / 3100.0).abs() < 0.01, "{hit}");
        }
    }
    fs::write(
        folder.join("damaged.jsonl"),
        "{\"timestamp\": 0, \"input_length\": -3}\n",
    )
    .expect("a file");
    let path = folder.join("damaged.yaml");
    fs::write(
        &path,
        scenario(ONE, SMALL, "", "      trace: damaged.jsonl\n"),
    )
    .expect("a file");
    let (status, _, err) = outcome(&["run", path.to_str().expect("a plain path")]);
    assert_eq!(status, 2, "{err}");
    assert!(err.contains("damaged.jsonl:1"), "{err}");
}

#[test]
fn engines_do_what_their_users_know() {
    let folder = scratch("engines");
    for engine in [
        "{ scheduler: vllm, max_num_batched_tokens: 128 }",
        "{ scheduler: sglang, poll_interval: 10 }",
        "{ scheduler: tensorrt_llm, chunked_prefill: false, batch_wait: { steps: 20, budget: 0.9 } }",
        "{ scheduler: orca, max_num_seqs: 8 }",
        "{ scheduler: static, max_num_seqs: 8 }",
        "{ preemption: swap, block_size: 32, prefix_caching: false }",
        "{ max_queue: 2, max_num_seqs: 1 }",
    ] {
        let text = scenario(ONE, SMALL, &format!("    engine: {engine}\n"), FEW);
        let report = run_with(&folder, &text, &[]);
        holds(&report, &text);
        let serving = &report["serving"];
        let ended = serving["requests_answered"].as_u64().expect("a count")
            + serving["requests_refused"].as_u64().expect("a count");
        assert_eq!(ended, 60, "{engine}");
    }
    for decoder in [
        "{ speculative: { draft: n_gram, draft_tokens: 3, acceptance: 0.6 } }",
        "{ speculative: { draft: n_gram, draft_tokens: 3, acceptance: { by_depth: [0.8, 0.5] } } }",
        "{ speculative: { draft: n_gram, draft_tokens: 3, acceptance: { beta: { mean: 0.7, sd: 0.2 } } } }",
        "{ block_diffusion: { block: 8, steps: 4 } }",
        "{ full_diffusion: { tokens_per_step: 4, refresh_every: 2 } }",
    ] {
        let text = scenario(ONE, SMALL, &format!("    decoder: {decoder}\n"), FEW);
        holds(&run_with(&folder, &text, &[]), &text);
    }
}

#[test]
fn models_formats_and_tiers_are_served() {
    let folder = scratch("models");
    for (cluster, model, serving) in [
        // Grouped queries in 4 bits, a latent cache with sparse attention, a sliding window.
        (
            "{ node: dgx-b200, gpus: 1 }",
            "model: llama3-8b\n    precision: { weights: int4, kv: fp8 }",
            "",
        ),
        (
            "{ node: dgx-b200, gpus: 1 }",
            "model: llama3-8b\n    precision: { weights: nvfp4, kv: fp4 }",
            "",
        ),
        (
            "{ node: hgx-h200, gpus: 8 }",
            "model: deepseek-v3.2\n    precision: { weights: fp8_block, kv: fp8 }",
            "    parallelism: { data: 8, expert: 8 }\n    experts: { redundant: 32, imbalance: 1.2, two_batch_overlap: true }\n",
        ),
        (
            "{ node: hgx-h100, gpus: 1 }",
            "model: gpt-oss-20b\n    precision: { weights: bf16, experts: mxfp4 }",
            "",
        ),
        (
            "{ node: hgx-h100, gpus: 4 }",
            "model: llama3-8b\n    precision: { weights: bf16 }",
            "    parallelism: { tensor: 1, pipeline: 2 }\n    router: least_tokens\n",
        ),
        (
            "{ node: hgx-h100, gpus: 2 }",
            "model: llama3-8b\n    precision: { weights: bf16 }",
            "    disaggregation:\n      prefill: { parallelism: { tensor: 1 } }\n      decode: { parallelism: { tensor: 1 }, node: hgx-h200 }\n      transfer: { layer_by_layer: false, per_message: 1 us }\n",
        ),
        (
            ONE,
            "model: llama3-8b\n    precision: { weights: bf16 }",
            "    router: cache_aware\n    store:\n      - { medium: host_dram, capacity: 1 GB, read: 40 GB/s, latency: 20 us }\n      - { medium: cxl, capacity: 2 GB, read: 20 GB/s, latency: 40 us, eviction: lfu, write: 5 GB/s }\n      - { medium: local_ssd, capacity: 4 GB, read: 6 GB/s, latency: 100 us }\n      - { medium: remote, capacity: 1 TB, read: 10 GB/s, latency: 80 us, write_policy: write_through, eviction: length_aware }\n",
        ),
    ] {
        let text = scenario(cluster, model, serving, FEW);
        holds(&run_with(&folder, &text, &[]), &text);
    }
}

/// Grouped latents (GLA): each tensor rank keeps its own, so that a rank holds half of what one latent
/// for all heads takes on every rank.
#[test]
fn grouped_latents_share_the_cache_among_tensor_ranks() {
    let folder = scratch("latents");
    let room = |kv_lora_rank: u32, latents: u32| {
        let model = format!(
            "model: {{ layers: 27, hidden: 2048, attention: {{ mla: {{ heads: 16, kv_lora_rank: {kv_lora_rank}, latents: {latents}, qk_nope_head_dim: 128, qk_rope_head_dim: 64, v_head_dim: 128 }} }}, ffn: 11264, gated: true, vocab: 163840 }}\n    precision: {{ weights: bf16 }}"
        );
        let text = scenario(
            "{ node: hgx-h100, gpus: 2 }",
            &model,
            "    parallelism: { tensor: 2 }\n",
            FEW,
        );
        let report = run_with(&folder, &text, &[]);
        holds(&report, &text);
        report["pools"][0]["kv_capacity_tokens"]
            .as_f64()
            .expect("tokens")
    };
    // 512 and 64 elements on each rank against 256 and 64.
    let ratio = room(256, 2) / room(512, 1);
    assert!((ratio / (576.0 / 320.0) - 1.0).abs() < 0.03, "{ratio}");
}

#[test]
fn who_comes_first_is_served_first() {
    let folder = scratch("priorities");
    let requests = "      arrivals: { burst: {} }\n      input: { fixed: 400 }\n      output: { fixed: 50 }\n      count: 90\n      priorities: 3\n";
    let text = scenario(ONE, SMALL, "    engine: { max_num_seqs: 4 }\n", requests);
    let path = folder.join("requests.csv");
    run_with(
        &folder,
        &text,
        &["--requests", path.to_str().expect("a plain path")],
    );
    let rows = fs::read_to_string(&path).expect("it was written");
    let mut lines = rows.lines();
    let head: Vec<&str> = lines.next().expect("a head").split(',').collect();
    let column = |name: &str| {
        head.iter()
            .position(|other| *other == name)
            .expect("a column")
    };
    let (class, first) = (column("priority"), column("ttft_s"));
    let mut waits = [(0.0, 0.0); 3];
    for line in lines {
        let cells: Vec<&str> = line.split(',').collect();
        let class: usize = cells[class].parse().expect("a class");
        waits[class].0 += cells[first].parse::<f64>().expect("a time");
        waits[class].1 += 1.0;
    }
    let mean = waits.map(|(sum, count)| sum / count);
    assert!(
        mean[0] * 2.0 < mean[1] && mean[1] * 1.3 < mean[2],
        "{mean:?}"
    );
}

/// Every picture of a service that one run has, from its report and from its scenario.
#[test]
fn pictures_of_a_service() {
    let folder = scratch("pictures");
    let text = scenario(
        "{ node: hgx-h100, gpus: 2 }",
        SMALL,
        "    disaggregation:\n      prefill: { parallelism: { tensor: 1 } }\n      decode: { parallelism: { tensor: 1 } }\n",
        FEW,
    );
    let path = folder.join("serving.yaml");
    let report = run_with(&folder, &text, &[]);
    let json = folder.join("report.json");
    fs::write(&json, report.to_string()).expect("written");
    for (kind, says) in [
        ("waterfall", "Effective"),
        ("roofline", "memory 3.350 TB/s"),
        ("links", "caches from prefill to decode"),
        ("memory", "cache in use, mean"),
    ] {
        for source in [&path, &json] {
            let source = source.to_str().expect("a plain path");
            let (status, svg, err) = outcome(&["plot", kind, source]);
            assert_eq!(status, 0, "{kind}: {err}");
            assert!(svg.contains(says), "{kind} of {source} lacks {says:?}");
        }
    }
    let (status, out, err) = outcome(&["plot", "gantt", json.to_str().expect("a plain path")]);
    assert_eq!((status, out.as_str()), (2, ""));
    assert!(err.contains("serving has `waterfall`, `roofline`"), "{err}");
}

/// A setting that cannot be is refused at its place.
#[test]
fn settings_that_cannot_be_are_refused() {
    let folder = scratch("refused");
    for (serving, says) in [
        (
            "    decoder: { speculative: { draft: n_gram, draft_tokens: 3, acceptance: { by_depth: [0.5, 0.6] } } }\n",
            "shares fall with depth",
        ),
        (
            "    decoder: { speculative: { draft: n_gram, draft_tokens: 3, acceptance: { by_depth: [] } } }\n",
            "0 depths are given; 1 to 16 can be",
        ),
        (
            "    decoder: { speculative: { draft: n_gram, draft_tokens: 3, acceptance: { beta: { mean: 0.7, sd: 0.6 } } } }\n",
            "below 0.458",
        ),
        (
            "    decoder: { speculative: { draft: n_gram, draft_tokens: 3, acceptance: often } }\n",
            "often",
        ),
        (
            "    store:\n      - { medium: host_dram, capacity: 1 GB, read: 40 GB/s, latency: 20 us, eviction: oldest }\n",
            "length_aware",
        ),
        (
            "    parallelism: { tensor: 3 }\n",
            "cannot be shared by 3 tensor ranks",
        ),
        (
            "    parallelism: { data: 2, expert: 2 }\n",
            "has no experts to spread",
        ),
    ] {
        let path = folder.join("serving.yaml");
        fs::write(
            &path,
            scenario("{ node: hgx-h100, gpus: 8 }", SMALL, serving, FEW),
        )
        .expect("written");
        let (status, out, err) = outcome(&["check", path.to_str().expect("a plain path")]);
        assert_eq!((status, out.as_str()), (2, ""), "{err}");
        assert!(
            err.contains(says) && err.contains("serving.yaml:"),
            "{says}: {err}"
        );
    }
}

#[test]
fn a_service_says_what_it_is_bound_by() {
    let folder = scratch("elasticities");
    let out = folder.to_str().expect("a plain path");
    // Few users at once: every step reads all weights.
    let text = scenario(
        ONE,
        SMALL,
        "    slo: { ttft: 1 s }\n",
        "      arrivals: { closed_loop: { concurrency: 2 } }\n      input: { fixed: 64 }\n      output: { fixed: 200 }\n      count: 20\n",
    );
    let path = folder.join("serving.yaml");
    fs::write(&path, text).expect("written");
    let path = path.to_str().expect("a plain path");
    let (status, json, err) = outcome(&["elasticities", path, "--format", "json", "-o", out]);
    assert_eq!(status, 0, "{err}");
    let found: Value = serde_json::from_str(&json).expect("JSON");
    assert_eq!(found["basis"], "output_tokens_per_s");
    assert!(
        found["bound_by"]
            .as_str()
            .expect("words")
            .starts_with("bound by memory bandwidth"),
        "{json}"
    );
    let answers = found["elasticities"].as_array().expect("a list");
    let of = |resource: &str| {
        answers
            .iter()
            .find(|answer| answer["resource"] == resource)
            .and_then(|answer| answer["elasticity"].as_f64())
    };
    // Twice as fast in every respect is twice as fast: what has a rate or a latency sums to one.
    let rooms = [
        "memory_capacity",
        "kv_capacity",
        "max_num_seqs",
        "max_num_batched_tokens",
    ];
    let sum: f64 = answers
        .iter()
        .filter(|answer| !rooms.iter().any(|room| answer["resource"] == *room))
        .filter_map(|answer| answer["elasticity"].as_f64())
        .sum();
    assert!((0.9..1.05).contains(&sum), "{sum}: {json}");
    assert!(of("kernel_latency") > Some(0.05), "{json}");
    assert_eq!(of("max_num_seqs"), Some(0.0), "nobody waits for a place");
    assert!(of("nic").is_none() && of("kv_store").is_none(), "{json}");
    for name in [
        "elasticities.txt",
        "elasticities.json",
        "elasticities.svg",
        "elasticities.png",
    ] {
        assert!(folder.join(name).is_file(), "{name}");
    }
    let (status, table, err) = outcome(&["elasticities", path]);
    assert_eq!(status, 0, "{err}");
    assert!(
        table.contains("One per cent more of") && table.contains("memory bandwidth"),
        "{table}"
    );
}

#[test]
fn every_request_is_written_as_csv_and_parquet() {
    let folder = scratch("records");
    let text = scenario(ONE, SMALL, "", FEW);
    for kind in ["csv", "parquet"] {
        let path = folder.join(format!("requests.{kind}"));
        run_with(
            &folder,
            &text,
            &["--requests", path.to_str().expect("a plain path")],
        );
        let bytes = fs::read(&path).expect("it was written");
        if kind == "csv" {
            let lines = String::from_utf8(bytes).expect("text");
            assert_eq!(lines.lines().count(), 61);
            assert!(lines.starts_with("request,"), "{lines}");
        } else {
            assert_eq!(
                (&bytes[..4], &bytes[bytes.len() - 4..]),
                (&b"PAR1"[..], &b"PAR1"[..])
            );
        }
    }
}

#[test]
fn services_are_swept() {
    let folder = scratch("sweep");
    let path = folder.join("sweep.yaml");
    let text = scenario(
        "{ node: hgx-h100, gpus: 4 }",
        SMALL,
        "    parallelism: { tensor: [1, 2, 4] }\n",
        FEW,
    );
    fs::write(&path, &text).expect("a scratch file");
    let output = folder.join("out");
    let args = [
        "sweep",
        path.to_str().expect("a plain path"),
        "--output",
        output.to_str().expect("a plain path"),
        "--format",
        "json",
    ];
    let (status, out, err) = outcome(&args);
    assert_eq!(status, 0, "{err}");
    let cases = serde_json::from_str::<Value>(&out).expect("a table")["cases"].clone();
    let cases = cases.as_array().expect("cases");
    assert_eq!(cases.len(), 3);
    let tpot = |case: &Value| case["tpot_mean_s"].as_f64().expect("a time");
    assert!(tpot(&cases[0]) > tpot(&cases[1]) && tpot(&cases[1]) > tpot(&cases[2]));
    let name = cases[0]["case"].as_str().expect("a name");
    let alone = fs::read_to_string(output.join("cases").join(name).join("report.json"));
    let alone: Value = serde_json::from_str(&alone.expect("a report")).expect("JSON");
    assert_eq!(alone["serving"]["tpot_s"]["mean"], cases[0]["tpot_mean_s"]);
    for file in [
        "results.csv",
        "results.parquet",
        "report.html",
        "figures/services.svg",
    ] {
        assert!(output.join(file).exists(), "{file}");
    }
    // What is finished is not run again, and gives the same.
    let (_, again, told) = outcome(&args);
    assert_eq!(out, again);
    assert!(told.contains("3 of 3 cases are finished already"), "{told}");
}

#[test]
fn services_are_compared() {
    let folder = scratch("compare");
    let [a, b] = [1, 2].map(|tensor| {
        let path = folder.join(format!("tensor-{tensor}.yaml"));
        let plan = format!("    parallelism: {{ tensor: {tensor} }}\n    replicas: 1\n");
        let text = scenario("{ node: hgx-h100, gpus: 2 }", SMALL, &plan, FEW);
        fs::write(&path, text).expect("a scratch file");
        path.to_str().expect("a plain path").to_owned()
    });
    let (status, out, err) = outcome(&["compare", &a, &b, "--format", "json"]);
    assert_eq!(status, 0, "{err}");
    let found: Value = serde_json::from_str(&out).expect("a comparison");
    let causes = found["causes"].as_array().expect("causes");
    let sum: f64 = causes.iter().filter_map(|c| c["difference"].as_f64()).sum();
    let total = found["total"]["difference"].as_f64().expect("a number");
    assert!(
        (sum - total).abs() < 1e-9 * total.abs().max(1.0),
        "{sum} {total}"
    );
    let settings = found["settings"].as_array().expect("settings");
    assert!(
        settings.iter().any(|s| s["name"] == "both parallelism"),
        "{settings:?}"
    );
    let (_, text, _) = outcome(&["compare", &a, &b]);
    assert!(text.contains("GPU-milliseconds per token"), "{text}");
    let (status, _, err) = outcome(&["compare", &a, "quickstart-llama3-8b-8-h100"]);
    assert_eq!(status, 2);
    assert!(err.contains("trains and the other serves"), "{err}");
}

/// One day that DeepSeek published (open-infra-index, day 6): 32.2k tokens/s computed on a prefill node and
/// 14.8k written on a decode node, at 20 to 22 per user; a full prefill unit in its profile: 62.7k per node.
#[test]
fn deepseeks_day_comes_out_as_published() {
    let run = |name: &str| -> Value {
        let (status, out, err) = outcome(&["run", name, "--format", "json"]);
        assert_eq!(status, 0, "{err}");
        serde_json::from_str(&out).expect("a report")
    };
    let within = |value: f64, published: f64| {
        let error = (value / published).ln().abs();
        assert!(error < 0.15_f64.ln_1p(), "{value} for {published}");
    };
    let day = run("serve-deepseek-v3-h800-disaggregated");
    let node = |pool: usize, rate: &str| {
        let rate = &day["pools"][pool][rate];
        8.0 * rate.as_f64().expect("a rate per GPU")
    };
    within(node(0, "prefill_tokens_per_s_per_gpu"), 32_200.0);
    within(node(1, "decode_tokens_per_s_per_gpu"), 14_800.0);
    let user = day["serving"]["tokens_per_s_per_user"].as_f64();
    let user = user.expect("a pace");
    assert!((20.0..22.0).contains(&user), "{user}");
    let unit = run("serve-deepseek-v3-h800-prefill");
    let all = unit["serving"]["total_tokens_per_s"].as_f64();
    within(all.expect("a rate") / 4.0, 62_700.0);
}

#[test]
fn published_serving_runs_are_compared() {
    let (status, out, err) = outcome(&[
        "validate", "serving", "--filter", "GPT-J", "--format", "json",
    ]);
    assert_eq!((status, err.as_str()), (0, ""));
    let found: Value = serde_json::from_str(&out).expect("one document");
    let kinds = &found["summary"]["by_kind"];
    for kind in ["static_batch", "ttft_bs1"] {
        let error = kinds[kind]["median_abs_error"].as_f64().expect("an error");
        assert!(error > 0.0 && error < 0.25, "{kind}: {error}");
    }
    // Every error of a summary follows from the rows that are shown.
    let mut errors: Vec<f64> = found["rows"]
        .as_array()
        .expect("rows")
        .iter()
        .filter(|row| row["kind"] == "ttft_bs1")
        .flat_map(|row| row["figures"].as_array().expect("figures"))
        .map(|figure| {
            let (a, b) = (&figure["simulated"], &figure["measured"]);
            (a.as_f64().expect("a time") / b.as_f64().expect("a time"))
                .ln()
                .abs()
        })
        .collect();
    errors.sort_by(f64::total_cmp);
    let rows = kinds["ttft_bs1"]["rows"].as_u64().expect("a count") as usize;
    assert_eq!(errors.len(), rows);
    let median = kinds["ttft_bs1"]["median_abs_error"]
        .as_f64()
        .expect("an error");
    assert!(errors[0] <= median && median <= errors[rows - 1]);
    // The published first and later tokens are scored apart; what follows from both is only shown.
    let (_, out, _) = outcome(&[
        "validate",
        "serving",
        "--filter",
        "gpt_oss_120b_b200_sxm_vllm",
        "--format",
        "json",
    ]);
    let found: Value = serde_json::from_str(&out).expect("one document");
    let kind = &found["summary"]["by_kind"]["e2e_agg"];
    let rows = found["rows"].as_array().expect("rows").len();
    assert_eq!(kind["rows"], 2 * rows);
    assert_eq!(kind["by_figure"]["request_latency_ms"]["rows"], rows);
}

#[test]
fn faulty_published_runs_are_refused_at_their_line() {
    let folder = scratch("faulty");
    let path = folder.join("runs.jsonl");
    fs::write(&path, "\n{\"id\": \"a\"}\n").expect("a file");
    let name = path.to_str().expect("a plain path");
    let (status, out, err) = outcome(&["validate", "serving", "--data", name]);
    assert_eq!((status, out.as_str()), (2, ""));
    assert!(err.contains("2"), "{err}");
    let (status, _, _) = outcome(&["validate", "serving", "--filter", "no such row"]);
    assert_eq!(status, 2);
}
