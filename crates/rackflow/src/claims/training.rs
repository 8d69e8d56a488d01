//! Claims about training: utilisation, racks, number formats, cluster size.

use super::{Claim, DETTMERS, FU, Finding, Lab, Verdict, percent, within};
use crate::failure::Failure;
use crate::{input, run};
use rackflow_report::Report;
use rackflow_workload::Recompute;

const DEEPSEEK: &str = "deepseek-v3-2048-h800";
const LLAMA4: &str = "llama4-32k-h100";
const BLOOM: &str = "bloom-176b-384-a100";
const GB200: &str = "deepseek-v3-2048-gb200-nvl72";
const GB200_FP4: &str = "deepseek-v3-2048-gb200-nvl72-nvfp4";
const HUNDRED_THOUSAND: &str = "deepseek-v3-100352-gb200-nvl72";
const DENSE: &str = "dense-33b-2048-h800";
const SWEEP: &str = "deepseek-v3-2k-to-100k";

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
            id: "experts-against-dense",
            claim: "At equal active FLOPs, mixtures of experts use the hardware worse than dense models",
            source: FU,
            try_it: dense,
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
            id: "what-failures-leave",
            claim: "50 times the cluster is 50 times the compute, and how much of it survives at 100,000 GPUs",
            source: FU,
            try_it: survives,
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

/// The case of the large sweep with the fewest GPUs on a platform, with or without overlap.
fn platform<'l>(lab: &'l mut Lab, name: &str, overlap: &str) -> Result<&'l Report, Failure> {
    let choices = [
        ("platform", name),
        ("scaling", "weak"),
        ("overlap", overlap),
        ("cluster.gpus", "2048"),
    ];
    lab.case(SWEEP, &choices)
}

/// From H800 nodes without overlap to FP4 racks with it, one change at a time.
const STEPS: [(&str, &str, &str); 5] = [
    (
        "H800 nodes of 8, FP8, nothing overlapped",
        "h800-nvl8-fp8",
        "no-overlap",
    ),
    ("overlap", "h800-nvl8-fp8", "overlap"),
    ("B200 in nodes of 8", "b200-nvl8-fp8", "overlap"),
    ("GB200 NVL72", "gb200-nvl72-fp8", "overlap"),
    ("FP4", "gb200-nvl72-fp4", "overlap"),
];

fn nine_times(lab: &mut Lab) -> Result<Finding, Failure> {
    let mut words = Vec::new();
    let (mut before, mut all) = (0.0, 1.0);
    let mut waits = 0.0;
    for (name, choice, overlap) in STEPS {
        let report = platform(lab, choice, overlap)?;
        let rate = report.training.tokens_per_s_per_gpu;
        if before > 0.0 {
            all *= rate / before;
            words.push(format!("{:.2} from {name}", rate / before));
        }
        before = rate;
        waits = share(
            report,
            &["exposed", "contention", "bubble", "imbalance", "launch"],
        );
    }
    let with_all = all / (1.0 - waits);
    Ok(Finding {
        simulated: format!(
            "tokens per second and GPU of DeepSeek-V3 on 2,048 GPUs, from {} on, each with all before it: {}; {all:.2} together. \
             If nothing at all were waited for, another {:.2}: {with_all:.1} in all, the most that more overlap could bring",
            STEPS[0].0,
            words.join(", "),
            1.0 / (1.0 - waits)
        ),
        verdict: if all >= 8.0 {
            Verdict::Holds
        } else if with_all >= 8.0 {
            Verdict::HoldsWhen
        } else {
            Verdict::DoesNot
        },
        command: format!("rackflow sweep {SWEEP} -o out --filter gpus=2048"),
    })
}

fn dense(lab: &mut Lab) -> Result<Finding, Failure> {
    let report = lab.report(DENSE)?;
    let (active, rate) = (
        report.model.active_parameters * 1e-9,
        report.training.model_tflops_per_gpu.causal,
    );
    let report = lab.report(DEEPSEEK)?;
    let (other, mixture) = (
        report.model.active_parameters * 1e-9,
        report.training.model_tflops_per_gpu.causal,
    );
    let experts = share(report, &["exposed_ep", "contention"]);
    Ok(Finding {
        simulated: format!(
            "on the same H800, batch, plan and software a dense model of {active:.1} B parameters turns {rate:.0} TFLOP/s per GPU and \
             DeepSeek-V3, of whose 671 B a token meets {other:.1} B, {mixture:.0}: {} of it. Waiting for experts and what their \
             exchange slows down take {} of its time; holds below nine tenths",
            percent(mixture / rate),
            percent(experts)
        ),
        verdict: if mixture < 0.9 * rate {
            Verdict::Holds
        } else {
            Verdict::DoesNot
        },
        command: format!("rackflow compare {DENSE} {DEEPSEEK}"),
    })
}

fn survives(lab: &mut Lab) -> Result<Finding, Failure> {
    let mut of_size = |gpus: &str| -> Result<(f64, f64, f64), Failure> {
        let choices = [
            ("platform", "gb200-nvl72-fp8"),
            ("scaling", "weak"),
            ("overlap", "overlap"),
            ("cluster.gpus", gpus),
        ];
        let report = lab.case(SWEEP, &choices)?;
        let goodput = report.run.as_ref().map_or(1.0, |run| run.goodput.mean);
        let gpus = report.cluster.gpus as f64;
        Ok((gpus, report.training.tokens_per_s, goodput))
    };
    let (few, slow, whole) = of_size("2048")?;
    let (many, fast, left) = of_size("131072")?;
    let (times, steps) = (many / few, fast / slow);
    let run = steps * left / whole;
    Ok(Finding {
        simulated: format!(
            "DeepSeek-V3 on GB200 NVL72 from {few:.0} to {many:.0} GPUs, the batch growing along: {times:.0} times the GPUs, {steps:.1} times \
             the tokens per second while steps run, {run:.1} times over a run that failures interrupt at the rate of Llama 3's cluster \
             (goodput {} and {}): {} of linear. Holds above 80 %",
            percent(whole),
            percent(left),
            percent(run / times)
        ),
        verdict: if run / times > 0.8 {
            Verdict::Holds
        } else if steps / times > 0.8 {
            Verdict::HoldsWhen
        } else {
            Verdict::DoesNot
        },
        command: format!("rackflow sweep {SWEEP} -o out --filter 'gb200-nvl72-fp8+weak+overlap*'"),
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

/// The best of a scenario's own plan and its neighbours: other numbers of stages, and no recomputation.
fn best_plan(scenario: &'static str) -> Result<Report, Failure> {
    let own = input::resolve(&input::read(scenario)?, None, None)?;
    let gpus = own.setup.cluster.gpus;
    let recomputes = [own.setup.training.recompute.clone(), Recompute::None];
    let mut best: Option<Report> = None;
    for pipeline in [4, 8, 16] {
        for recompute in &recomputes {
            let mut resolved = own.clone();
            let training = &mut resolved.setup.training;
            let parallelism = &mut training.parallelism;
            parallelism.pipeline = pipeline;
            parallelism.data = gpus / (pipeline * parallelism.tensor * parallelism.context);
            training.recompute = recompute.clone();
            training.layers_per_chunk = None;
            // What does not fit, or does not divide, is no plan.
            let Ok(plan) = run::plan(&resolved) else {
                continue;
            };
            let report = run::simulate(&plan, resolved)?;
            let better = |known: &Report| report.training.step_time_s < known.training.step_time_s;
            if best.as_ref().is_none_or(better) {
                best = Some(report);
            }
        }
    }
    best.ok_or_else(|| Failure::run(format_args!("no plan of {scenario} fits")))
}

fn rack_gains(lab: &mut Lab) -> Result<Finding, Failure> {
    let waits = ["exposed", "contention", "bubble", "imbalance"];
    let before = share(lab.report(DEEPSEEK)?, &waits);
    let report = lab.report(GB200)?;
    let (after, own) = (share(report, &waits), report.training.step_time_s);
    let report = best_plan(GB200)?;
    let (left, useful) = (share(&report, &waits), report.training.mfu.native_causal);
    Ok(Finding {
        simulated: format!(
            "GPUs wait for communication and each other {} of the time on H800 nodes and {} on GB200 NVL72. The best of six plans there \
             ({}, recomputing {}) is {:.2} times as fast and waits {}. Were all of that gone too, throughput would rise {:.2} times \
             more and reach {} of the fp8 peak; the rest is clocks, power, memory and tiles, which no rack changes. Holds where \
             less than 15 % is left to wait for after the best plan",
            percent(before),
            percent(after),
            report.plan.shorthand(),
            report.plan.recompute,
            own / report.training.step_time_s,
            percent(left),
            1.0 / (1.0 - left),
            percent(useful / (1.0 - left))
        ),
        verdict: if left < 0.15 {
            Verdict::Holds
        } else {
            Verdict::HoldsWhen
        },
        command: "rackflow claims --filter rack-gains".to_owned(),
    })
}
