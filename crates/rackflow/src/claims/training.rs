//! Claims about training: utilisation, racks, number formats, cluster size.

use super::{Claim, DETTMERS, FU, Finding, Lab, Verdict, percent, within};
use crate::failure::Failure;
use rackflow_report::Report;

const DEEPSEEK: &str = "deepseek-v3-2048-h800";
const LLAMA4: &str = "llama4-32k-h100";
const BLOOM: &str = "bloom-176b-384-a100";
const GB200: &str = "deepseek-v3-2048-gb200-nvl72";
const GB200_FP4: &str = "deepseek-v3-2048-gb200-nvl72-nvfp4";
const HUNDRED_THOUSAND: &str = "deepseek-v3-100352-gb200-nvl72";

pub fn claims() -> Vec<Claim> {
    vec![
        Claim {
            id: "mfu-deepseek-v3",
            claim: "DeepSeek-V3 was trained at about 20 % MFU",
            source: FU,
            try_it: |lab| twenty_percent(lab, DEEPSEEK),
        },
        Claim {
            id: "mfu-llama4",
            claim: "Llama 4 was trained at about 20 % MFU",
            source: FU,
            try_it: |lab| twenty_percent(lab, LLAMA4),
        },
        Claim {
            id: "mfu-bloom",
            claim: "BLOOM reached 50 %: utilisation has fallen since",
            source: FU,
            try_it: bloom,
        },
        Claim {
            id: "where-the-peak-goes",
            claim: "Today's systems waste most of what they have",
            source: FU,
            try_it: waste,
        },
        Claim {
            id: "hopper-to-blackwell",
            claim: "2.2 times as much in FP8 from Hopper to Blackwell",
            source: FU,
            try_it: blackwell,
        },
        Claim {
            id: "fp4",
            claim: "Another factor of 2 from FP4",
            source: FU,
            try_it: fp4,
        },
        Claim {
            id: "nine-times",
            claim: "Up to 9 times together, with NVL72 racks and overlap",
            source: FU,
            try_it: nine_times,
        },
        Claim {
            id: "fifty-times-larger",
            claim: "Clusters 50 times larger than the 2,048 GPUs that trained DeepSeek-V3",
            source: FU,
            try_it: fifty_times,
        },
        Claim {
            id: "rack-gains-run-out",
            claim: "Rack-level optimisation will run out of gains",
            source: DETTMERS,
            try_it: rack_gains,
        },
    ]
}

/// Share of all GPU time under causes whose key begins so.
fn share(report: &Report, prefixes: &[&str]) -> f64 {
    let of = |cause: &str| prefixes.iter().any(|prefix| cause.starts_with(prefix));
    report
        .waterfall
        .iter()
        .filter(|loss| of(&loss.cause))
        .map(|loss| loss.fraction)
        .sum()
}

fn twenty_percent(lab: &mut Lab, scenario: &'static str) -> Result<Finding, Failure> {
    let report = lab.report(scenario)?;
    let mfu = &report.training.mfu;
    Ok(Finding {
        simulated: format!(
            "{} of the fp8 peak (causal), {} of the bf16 peak that the literature divides by; holds within a quarter of 20 %",
            percent(mfu.native_causal),
            percent(mfu.bf16_causal)
        ),
        verdict: within(mfu.native_causal, 0.15, 0.25),
        command: format!("rackflow run {scenario}"),
    })
}

fn bloom(lab: &mut Lab) -> Result<Finding, Failure> {
    let deepseek = lab.report(DEEPSEEK)?.training.mfu.bf16_causal;
    let report = lab.report(BLOOM)?;
    let (mfu, hfu) = (report.training.mfu.bf16_noncausal, report.training.hfu);
    Ok(Finding {
        simulated: format!(
            "{} with recomputation counted, {} without. On one footing (model FLOPs of the bf16 peak) DeepSeek-V3 is at {}: \
             no lower. What fell is the share of a peak that FP8 doubled",
            percent(hfu),
            percent(mfu),
            percent(deepseek)
        ),
        verdict: if hfu > 0.45 && deepseek < 0.9 * mfu {
            Verdict::Holds
        } else if hfu > 0.45 {
            Verdict::HoldsWhen
        } else {
            Verdict::DoesNot
        },
        command: format!("rackflow compare {BLOOM} {DEEPSEEK}"),
    })
}

fn waste(lab: &mut Lab) -> Result<Finding, Failure> {
    let report = lab.report(DEEPSEEK)?;
    let useful = report.training.mfu.native_causal;
    Ok(Finding {
        simulated: format!(
            "of the fp8 peak {} is useful; {} goes to clocks and power, {} to kernels that wait for memory, {} to tiles, waves \
             and wider formats, {} to communication, {} to the pipeline's bubble, {} to computing again",
            percent(useful),
            percent(share(report, &["sustained_rate"])),
            percent(share(report, &["memory_bound", "exponent_bound"])),
            percent(share(report, &["shape", "wider_precision"])),
            percent(share(report, &["exposed", "contention"])),
            percent(share(report, &["bubble"])),
            percent(share(report, &["recomputation"]))
        ),
        verdict: within(useful, 0.0, 0.5),
        command: format!("rackflow run {DEEPSEEK}"),
    })
}

/// How many times as many tokens per second and GPU the second scenario has.
fn gain(lab: &mut Lab, from: &'static str, to: &'static str) -> Result<f64, Failure> {
    let before = lab.report(from)?.training.tokens_per_s_per_gpu;
    Ok(lab.report(to)?.training.tokens_per_s_per_gpu / before)
}

fn blackwell(lab: &mut Lab) -> Result<Finding, Failure> {
    let gain = gain(lab, DEEPSEEK, GB200)?;
    let peaks = lab.report(GB200)?.cluster.peak_flops.native
        / lab.report(DEEPSEEK)?.cluster.peak_flops.native;
    Ok(Finding {
        simulated: format!(
            "{gain:.2} times the tokens per second and GPU for DeepSeek-V3 on GB200 NVL72 over H800, with peaks {peaks:.2} times \
             as high; holds within a fifth of 2.2, or above"
        ),
        verdict: if gain >= 0.8 * 2.2 {
            Verdict::Holds
        } else {
            Verdict::DoesNot
        },
        command: format!("rackflow compare {DEEPSEEK} {GB200}"),
    })
}

fn fp4(lab: &mut Lab) -> Result<Finding, Failure> {
    let gain = gain(lab, GB200, GB200_FP4)?;
    let report = lab.report(GB200_FP4)?;
    let other = 1.0 - share(report, &["useful_math", "sustained_rate", "shape"]);
    Ok(Finding {
        simulated: format!(
            "{gain:.2} times the tokens per second. FP4 doubles the peak of the linear layers alone: {} of the GPU time of the \
             FP4 step is not products at all. It would hold for products only",
            percent(other)
        ),
        verdict: if gain >= 1.8 {
            Verdict::Holds
        } else if gain >= 1.05 {
            Verdict::HoldsWhen
        } else {
            Verdict::DoesNot
        },
        command: format!("rackflow compare {GB200} {GB200_FP4}"),
    })
}

fn nine_times(lab: &mut Lab) -> Result<Finding, Failure> {
    let racks = gain(lab, DEEPSEEK, GB200)?;
    let formats = gain(lab, GB200, GB200_FP4)?;
    let all = racks * formats;
    let report = lab.report(GB200_FP4)?;
    let waits = share(
        report,
        &["exposed", "contention", "bubble", "imbalance", "launch"],
    );
    let with_all = all / (1.0 - waits);
    Ok(Finding {
        simulated: format!(
            "{racks:.2} from H800 to GB200 NVL72, {formats:.2} from FP4: {all:.2} together. If the FP4 step waited for nothing at \
             all, another {:.2}: {with_all:.1} in all, the most that overlap could bring",
            1.0 / (1.0 - waits)
        ),
        verdict: if all >= 8.0 {
            Verdict::Holds
        } else if with_all >= 8.0 {
            Verdict::HoldsWhen
        } else {
            Verdict::DoesNot
        },
        command: format!("rackflow compare {DEEPSEEK} {GB200_FP4}"),
    })
}

fn fifty_times(lab: &mut Lab) -> Result<Finding, Failure> {
    let small = lab.report(GB200)?;
    let gpus = small.cluster.gpus as f64;
    let rate = small.training.tokens_per_s;
    let batch = small.plan.global_batch as f64;
    let bubble = share(small, &["bubble"]);
    let large = lab.report(HUNDRED_THOUSAND)?;
    let gpus = large.cluster.gpus as f64 / gpus;
    let tokens = large.training.tokens_per_s / rate;
    let batch = large.plan.global_batch as f64 / batch;
    let wider = share(large, &["bubble"]);
    let linear = tokens / gpus;
    let without_bubble = linear * (1.0 - bubble) / (1.0 - wider);
    Ok(Finding {
        simulated: format!(
            "{gpus:.0} times the GPUs bring {tokens:.1} times the tokens per second of a step, {} of linear, before failures. The \
             batch grows {batch:.0} times only, so fewer micro-batches fill the pipeline and its bubble takes {} instead of {}; at an \
             equal bubble it would be {} of linear. Holds above 80 %, when the batch grows along",
            percent(linear),
            percent(wider),
            percent(bubble),
            percent(without_bubble)
        ),
        verdict: if linear > 0.8 {
            Verdict::Holds
        } else if without_bubble > 0.8 {
            Verdict::HoldsWhen
        } else {
            Verdict::DoesNot
        },
        command: format!("rackflow compare {GB200} {HUNDRED_THOUSAND}"),
    })
}

fn rack_gains(lab: &mut Lab) -> Result<Finding, Failure> {
    let waits = ["exposed", "contention", "bubble", "imbalance"];
    let before = share(lab.report(DEEPSEEK)?, &waits);
    let report = lab.report(GB200)?;
    let (after, useful) = (share(report, &waits), report.training.mfu.native_causal);
    Ok(Finding {
        simulated: format!(
            "GPUs wait for communication and each other {} of the time on H800 nodes and {} on GB200 NVL72. Were all of that gone \
             too, throughput would rise {:.2} times more and reach {} of the fp8 peak; the rest is clocks, power, memory and tiles, \
             which no rack changes",
            percent(before),
            percent(after),
            1.0 / (1.0 - after),
            percent(useful / (1.0 - after))
        ),
        verdict: if after < 0.15 {
            Verdict::Holds
        } else {
            Verdict::HoldsWhen
        },
        command: format!("rackflow compare {DEEPSEEK} {GB200}"),
    })
}
