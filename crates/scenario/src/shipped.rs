//! The scenarios that ship with the program.

macro_rules! shipped {
    ($($name:literal),* $(,)?) => {
        &[$(($name, include_str!(concat!("../../../scenarios/", $name, ".yaml")))),*]
    };
}

/// Name and text of each scenario that ships with the program, in the order of `list`.
pub fn shipped() -> &'static [(&'static str, &'static str)] {
    shipped![
        "quickstart-llama3-8b-8-h100",
        "deepseek-v3-2048-h800",
        "llama3-405b-8192-h100",
        "llama3-405b-16384-h100",
        "llama3-405b-16384-h100-54-days",
        "bloom-176b-384-a100",
        "llama4-32k-h100",
        "deepseek-v3-2048-gb200-nvl72",
        "deepseek-v3-2048-gb200-nvl72-nvfp4",
        "dense-33b-2048-h800",
        "llama3-70b-512-tpu-v5p",
        "dead-rail-llama3-8b-64-h100",
        "mixed-llama3-70b-h100-gb200",
        "mixed-llama3-70b-h100-h200-gb200",
        "qwen2.5-vl-72b-64-h100",
        "replay-chakra-8-h100",
        "flapping-nic-llama3-8b-64-h100",
        "slow-gpu-llama3-8b-64-h100",
        "serve-llama3-70b-8-h100",
        "deepseek-v3-100352-gb200-nvl72",
        "llama3-8b-64-h100",
        "serve-llama3-70b-8-h100-disaggregated",
        "serve-deepseek-v3-h800-disaggregated",
        "serve-deepseek-v3-h800-prefill",
        "serve-deepseek-v3-gb200-nvl72",
        "serve-glm-4.6-one-node",
        "serve-glm-4.6-pool",
        "serve-qwen3-8b-autoregressive",
        "serve-qwen3-8b-diffusion",
        "serve-qwen3-8b-megakernel",
        "serve-kv-store-trace",
        "serve-llama3-8b-laptops",
        "serve-qwen3-8b-phones",
    ]
}

/// Name and text of each scenario of several jobs that ships with the program.
pub fn shipped_jobs() -> &'static [(&'static str, &'static str)] {
    shipped![
        "two-jobs-oversubscribed-roce",
        "serving-beside-training-roce",
    ]
}

/// Name and text of each sweep that ships with the program.
pub fn shipped_sweeps() -> &'static [(&'static str, &'static str)] {
    &[
        (
            "deepseek-v3-2k-to-100k",
            include_str!("../../../scenarios/sweeps/deepseek-v3-2k-to-100k.yaml"),
        ),
        (
            "loss-against-cost",
            include_str!("../../../scenarios/sweeps/loss-against-cost.yaml"),
        ),
    ]
}

/// The text of a trace that ships with a scenario, by the path that the scenario gives.
pub fn shipped_trace(path: &str) -> Option<&'static str> {
    (path == "traces/documents-multi-turn.jsonl").then_some(include_str!(
        "../../../scenarios/traces/documents-multi-turn.jsonl"
    ))
}

/// The files of an execution trace that ships with a scenario, by the folder that the scenario gives.
pub fn shipped_chakra(folder: &str) -> Option<&'static [(&'static str, &'static [u8])]> {
    macro_rules! files {
        ($($name:literal),*) => {
            &[$((
                $name,
                include_bytes!(concat!("../../../scenarios/traces/chakra-data-parallel-8/", $name)),
            )),*]
        };
    }
    (folder.trim_end_matches('/') == "traces/chakra-data-parallel-8").then_some(files![
        "comm_group.json",
        "data-parallel.0.et",
        "data-parallel.1.et",
        "data-parallel.2.et",
        "data-parallel.3.et",
        "data-parallel.4.et",
        "data-parallel.5.et",
        "data-parallel.6.et",
        "data-parallel.7.et"
    ])
}
