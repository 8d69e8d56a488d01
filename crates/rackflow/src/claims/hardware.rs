//! Claims about hardware: what is dear, what is cheap, and what more of it buys.

use super::{Claim, DETTMERS, FU, Finding, Verdict};
use crate::failure::Failure;
use rackflow_plan::kernel;
use rackflow_report::scaling_law::CHINCHILLA_REFIT;
use rackflow_scenario::Catalogue;
use rackflow_units::Precision;
use rackflow_workload::{Direction, Operation};

/// Training FLOPs of DeepSeek-V3: 6 x 37 B active parameters x 14.8 T tokens (arXiv 2412.19437).
const DEEPSEEK_FLOPS: f64 = 6.0 * 37e9 * 14.8e12;

pub fn claims() -> Vec<Claim> {
    vec![
        Claim {
            id: "exponent-bottleneck",
            claim: "Exponentials hold attention back on B200, and B300 doubles their rate",
            source: FU,
            try_it: |_| exponent(),
        },
        Claim {
            id: "memory-is-dear",
            claim: "Computing is cheap and moving memory is dear, the more so the farther away it is",
            source: DETTMERS,
            try_it: |_| distance(),
        },
        Claim {
            id: "exponential-resources",
            claim: "Linear progress needs exponential resources",
            source: DETTMERS,
            try_it: |_| resources(),
        },
    ]
}

fn exponent() -> Result<Finding, Failure> {
    let attention = Operation::Attention {
        batch: 1,
        heads: 64,
        kv_heads: 8,
        query_len: 16_384,
        kv_len: 16_384,
        head_dim_qk: 128,
        head_dim_v: 128,
        mask_fraction: 0.5,
        direction: Direction::Forward,
        precision: Precision::Bf16,
    };
    let rate = |name: &str| {
        let accelerator = Catalogue::builtin()
            .accelerator(name)
            .cloned()
            .ok_or_else(|| Failure::run(format_args!("the catalogue has no {name}")))?;
        let cost = kernel::cost(&attention, &accelerator, accelerator.sms);
        let seconds = cost.time.as_secs_f64();
        let share = cost.exponent.as_secs_f64() / seconds;
        Ok::<_, Failure>((attention.tensor_flops() / seconds / 1e12, share))
    };
    let ((b200, held_back), (b300, relieved)) = (rate("b200-sxm")?, rate("b300-sxm")?);
    Ok(Finding {
        simulated: format!(
            "causal prefill of 16,384 tokens, 64 heads of 128: {b200:.0} TFLOP/s on B200, where exponentials add {:.0} % of the time, \
             and {b300:.0} on B300 at the same tensor peak, where they add {:.0} %; holds from a tenth more on",
            held_back * 100.0,
            relieved * 100.0
        ),
        verdict: if b300 >= 1.1 * b200 {
            Verdict::Holds
        } else {
            Verdict::DoesNot
        },
        command: "rackflow validate kernels --filter B300".to_owned(),
    })
}

fn distance() -> Result<Finding, Failure> {
    let node = Catalogue::builtin()
        .node("gb200-nvl72")
        .ok_or_else(|| Failure::run("the catalogue has no gb200-nvl72"))?;
    let accelerator = &node.accelerator;
    let flops = accelerator.peak.get(Precision::Fp8).flops_per_sec();
    let nic = node.nic.rate.as_f64() * f64::from(node.nic.count) / f64::from(node.gpus);
    let per_byte = |rate: f64| flops / rate;
    let (hbm, nvlink, nic) = (
        per_byte(accelerator.memory_bandwidth.as_f64()),
        per_byte(node.scale_up.bandwidth.as_f64()),
        per_byte(nic),
    );
    Ok(Finding {
        simulated: format!(
            "in the time that one byte takes, a GB200 could do {hbm:.0} FP8 FLOPs if the byte comes from its own memory, \
             {nvlink:.0} if it comes over NVLink, {nic:.0} if it comes through its NIC"
        ),
        verdict: if hbm > 100.0 && nvlink > hbm && nic > nvlink {
            Verdict::Holds
        } else {
            Verdict::DoesNot
        },
        command: "rackflow show gb200-nvl72".to_owned(),
    })
}

fn resources() -> Result<Finding, Failure> {
    let law = CHINCHILLA_REFIT;
    let loss = |times: f64| law.optimal(DEEPSEEK_FLOPS * times).loss;
    let (now, fifty, further) = (loss(1.0), loss(50.0), loss(2500.0));
    let (first, second) = (now - fifty, fifty - further);
    Ok(Finding {
        simulated: format!(
            "by the Chinchilla law a dense model takes a loss of {now:.3} from the FLOPs of DeepSeek-V3, {fifty:.3} from 50 times as \
             many and {further:.3} from 2,500 times: {first:.3} for the first factor of 50 and {second:.3} for the second"
        ),
        // Equal factors bring steps that shrink, if slowly: a straight line at best.
        verdict: if second < first {
            Verdict::Holds
        } else {
            Verdict::DoesNot
        },
        command: "rackflow sweep loss-against-cost -o out".to_owned(),
    })
}
