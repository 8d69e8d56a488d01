//! Numbers that pass every check, at the ends of what is allowed and all at once, are refused or
//! simulated. They never overflow.

use proptest::prelude::*;
use rackflow_plan::{PlanError, compile};
use rackflow_scenario::parse;
use rackflow_simulator::simulate;

/// More tasks than a case may take.
const MOST_TASKS: usize = 100_000;

/// Answers a scenario as the command line does. True when it was simulated.
fn answer(text: &str) -> bool {
    let nothing = |_: &str| Err(std::io::Error::other("no files here"));
    let Ok(scenario) = parse("extreme.yaml", text) else {
        return false;
    };
    let written = scenario.written();
    let Ok(setup) = scenario.resolve(&nothing) else {
        return false;
    };
    match compile(&setup) {
        Err(error) => {
            let refusal = written.refusal(&setup, &error);
            assert!(refusal.to_string().starts_with("error: "));
            assert!(refusal.line > 1, "{refusal}");
            false
        }
        Ok(plan) => {
            let ranks: usize = plan.programs.iter().map(|p| p.tasks.len()).sum();
            if let Err(error) = plan.check_memory() {
                let refusal = written.refusal(&setup, &error);
                assert!(refusal.to_string().contains("needs: weights"), "{refusal}");
            }
            if ranks <= MOST_TASKS {
                assert!(simulate(&plan).step_time.as_picos() > 0);
            }
            true
        }
    }
}

/// The ends of what is allowed, and something ordinary.
fn end(
    low: &'static str,
    usual: &'static str,
    high: &'static str,
) -> impl Strategy<Value = &'static str> {
    prop_oneof![2 => Just(low), 6 => Just(usual), 1 => Just(high)]
}

prop_compose! {
    fn accelerators()(
        clock in end("1 MHz", "1.7 GHz", "1 THz"),
        sms in end("1", "132", "1000000"),
        exponentials in end("1", "16", "1000000"),
        vector in end("1 GFLOP/s", "60 TFLOP/s", "1e9 TFLOP/s"),
        memory in end("1 GB", "80 GB", "10000 TB"),
        bandwidth in end("1 MB/s", "3 TB/s", "1000 TB/s"),
        peak in end("1 GFLOP/s", "900 TFLOP/s", "1e9 TFLOP/s"),
        continuous in end("0.001", "0.9", "1"),
        measured in end("0.001", "0.8", "1"),
        gemm in end("0.001", "0.8", "1"),
        floor in end("0 s", "2 us", "1 s"),
    ) -> String {
        format!(
            "{{ like: h100-sxm, clock: {clock}, sms: {sms}, exponentials_per_sm_clock: {exponentials}, vector: {vector}, \
             memory: {memory}, memory_bandwidth: {bandwidth}, peak: {{ bf16: {peak} }}, measured: {{ continuous_clock: {continuous}, \
             memory: {measured}, kernel_floor: {floor}, gemm: {{ bf16: {gemm} }} }} }}"
        )
    }
}

prop_compose! {
    fn scenarios()(
        accelerator in accelerators(),
        (link, efficiency, latency) in (end("1 MB/s", "400 GB/s", "1000 TB/s"), end("0.001", "0.8", "1"), end("0 s", "1 us", "1 s")),
        (nic, nic_latency) in (end("1 MB/s", "400 Gbit/s", "1000 TB/s"), end("0 s", "2 us", "1 s")),
        (layers, hidden, vocab) in (end("1", "8", "64"), end("128", "1024", "65536"), end("1", "32000", "1000000")),
        (sequence, batch, micro) in (end("8", "4096", "99999992"), end("16", "64", "999999984"), end("1", "2", "1000000")),
        (tensor, context, pipeline) in (end("1", "2", "8"), end("1", "2", "4"), end("1", "2", "4")),
        (slowdown, launch, overhead) in (end("1", "1.1", "1000"), end("0 s", "4 us", "1 s"), end("0 s", "1 ms", "1 h")),
        (model, routing) in prop_oneof![
            Just(("llama3-8b", "")),
            Just(("mixtral-8x7b", ", expert: 2 }\n    routing: { lognormal: { sigma: 3 } ")),
        ],
        (zero, recompute, gradient) in (0..4u8, prop::sample::select(&["none", "selective", "full"][..]), end("1", "4", "64")),
    ) -> String {
        format!(
            "cluster:
  node:
    like: dgx-h100
    accelerator: {accelerator}
    scale_up: {{ bandwidth: {link}, efficiency: {efficiency}, latency: {latency} }}
    nic: {{ rate: {nic}, efficiency: {efficiency}, latency: {nic_latency} }}
  gpus: 16
  fabric: rail-optimized
workload:
  training:
    model: {{ like: {model}, layers: {layers}, hidden: {hidden}, vocab: {vocab} }}
    stack: {{ like: torchtitan-2024, launch: {launch}, step_overhead: {overhead}, gradient_bytes: {gradient} }}
    precision: bf16
    sequence_length: {sequence}
    global_batch: {batch}
    micro_batch: {micro}
    recompute: {recompute}
    parallelism: {{ tensor: {tensor}, context: {context}, pipeline: {pipeline}, zero: {zero}{routing} }}
simulation:
  stragglers: [{{ gpu: 3, slowdown: {slowdown} }}]
"
        )
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: ProptestConfig::default().cases * 2, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn extremes_are_refused_or_simulated(text in scenarios()) {
        answer(&text);
    }
}

const SLOW: &str = "cluster:
  node:
    like: dgx-h100
    accelerator: { like: h100-sxm, clock: CLOCK, measured: { continuous_clock: 0.001, memory: 0.001, gemm: { bf16: 0.001 } } }
  gpus: 8
workload:
  training:
    model: llama3-405b
    stack: torchtitan-2024
    precision: bf16
    sequence_length: 8192
    global_batch: BATCH
    parallelism: { tensor: 8 }
";

#[test]
fn a_step_that_outlasts_simulated_time_is_refused_at_the_number_to_blame() {
    let text = SLOW.replace("CLOCK", "1 MHz").replace("BATCH", "1024");
    let nothing = |_: &str| Err(std::io::Error::other("no files here"));
    let scenario = parse("slow.yaml", &text).expect("well-formed");
    let written = scenario.written();
    let setup = scenario.resolve(&nothing).expect("every number is allowed");
    let error = compile(&setup).expect_err("the step cannot end");
    assert!(matches!(error, PlanError::TooLong { .. }), "{error}");
    let refusal = written.refusal(&setup, &error);
    assert_eq!((refusal.line, refusal.column), (4, 43), "{refusal}");
    assert!(
        refusal
            .to_string()
            .contains("simulated time ends after 213 days")
    );
}

#[test]
fn what_is_merely_slow_is_simulated() {
    let text = SLOW.replace("CLOCK", "1.7 GHz").replace("BATCH", "8");
    assert!(answer(&text.replace("0.001", "0.01")));
}
