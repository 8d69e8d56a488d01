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
            id: "larger-caches-are-slower",
            claim: "The larger a memory, the slower and dearer each of its bytes; computing is cheap beside it",
            source: DETTMERS,
            try_it: |_| caches(),
        },
        Claim {
            id: "inference-aware-attention",
            claim: "Attention that was designed for inference reads a fraction of the cache and decodes the faster",
            source: FU,
            try_it: |_| attention_kinds(),
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

/// Energy of reading one byte, by what holds it, in picojoules, and of one 16-bit multiply-add.
///
/// SRAM: M. Horowitz, "Computing's energy problem", ISSCC 2014, figure 1.1.9, 45 nm, 64-bit accesses of 10, 20
/// and 100 pJ; multiply-add: the same, 1.1 pJ for the product and 0.4 pJ for the sum. HBM2: M. O'Connor et al.,
/// "Fine-grained DRAM", MICRO 2017, about 3.9 pJ per bit. Optics: a pluggable transceiver of 1.6 Tbit/s takes 30 W
/// (NVIDIA, GTC 2025), one at each end.
const PICOJOULES: [(&str, f64); 5] = [
    ("8 KB of SRAM", 10.0 / 8.0),
    ("32 KB", 20.0 / 8.0),
    ("1 MB", 100.0 / 8.0),
    ("HBM", 3.9 * 8.0),
    ("another rack over optics", 2.0 * 30.0 / 1.6e12 * 8.0 * 1e12),
];
const MULTIPLY_ADD_PICOJOULES: f64 = 1.1 + 0.4;

fn caches() -> Result<Finding, Failure> {
    let node = Catalogue::builtin()
        .node("gb200-nvl72")
        .ok_or_else(|| Failure::run("the catalogue has no gb200-nvl72"))?;
    let accelerator = &node.accelerator;
    let nic = node.nic.rate.as_f64() * f64::from(node.nic.count) / f64::from(node.gpus);
    // Picoseconds per byte of one GPU.
    let times = [
        ("L2", kernel::cache_bandwidth(accelerator).as_f64()),
        ("HBM", accelerator.memory_bandwidth.as_f64()),
        ("NVLink", node.scale_up.bandwidth.as_f64()),
        ("the NIC", nic),
    ]
    .map(|(name, rate)| (name, 1e12 / rate));
    let words = |rows: &[(&str, f64)], unit: &str| {
        let parts = rows
            .iter()
            .map(|(name, value)| format!("{name} {value:.2} {unit}"));
        parts.collect::<Vec<_>>().join(", ")
    };
    let rises = |rows: &[(&str, f64)]| rows.windows(2).all(|pair| pair[0].1 < pair[1].1);
    let dearest = PICOJOULES[PICOJOULES.len() - 1].1;
    Ok(Finding {
        simulated: format!(
            "time of a byte on a GB200: {}. Energy of a byte, by what is published: {}. A 16-bit multiply-add takes \
             {MULTIPLY_ADD_PICOJOULES:.1} pJ: a byte from another rack costs as much as {:.0} of them",
            words(&times, "ps"),
            words(&PICOJOULES, "pJ"),
            dearest / MULTIPLY_ADD_PICOJOULES
        ),
        verdict: if rises(&times) && rises(&PICOJOULES) {
            Verdict::Holds
        } else {
            Verdict::DoesNot
        },
        command: "rackflow claims --filter larger-caches".to_owned(),
    })
}

fn attention_kinds() -> Result<Finding, Failure> {
    const SEQUENCES: u64 = 32;
    const CONTEXT: f64 = 32_768.0;
    const HEADS: u64 = 128;
    let accelerator = Catalogue::builtin()
        .accelerator("h100-sxm")
        .ok_or_else(|| Failure::run("the catalogue has no h100-sxm"))?;
    let options = kernel::ServingOptions::default();
    let heads = |kv_heads: u64| {
        let op = kernel::DecodeAttention {
            sequences: SEQUENCES,
            context: CONTEXT,
            queries: 1,
            heads: HEADS,
            kv_heads,
            head_dim: 128,
            kv: Precision::Bf16,
            window: None,
        };
        let cost = kernel::decode_attention(&op, accelerator, accelerator.sms, &options);
        (4 * kv_heads * 128, cost.time.as_secs_f64() * 1e3)
    };
    let latent = kernel::LatentDecode {
        sequences: SEQUENCES,
        context: CONTEXT,
        queries: 1,
        heads: HEADS,
        latent: 512,
        rope: 64,
        kv: Precision::Bf16,
    };
    let cost = kernel::latent_decode(&latent, accelerator, accelerator.sms, &options);
    let (all, grouped) = (heads(HEADS), heads(8));
    let latent = (2 * (512 + 64), cost.time.as_secs_f64() * 1e3);
    let words = |(bytes, time): (u64, f64)| format!("{bytes} bytes of cache a token, {time:.2} ms");
    Ok(Finding {
        simulated: format!(
            "one layer of {HEADS} heads on one H100, {SEQUENCES} sequences of {CONTEXT:.0} tokens: {} with a key and value for each head, \
             {} with eight groups, {} with one latent; holds where each is more than four times as fast as the first",
            words(all),
            words(grouped),
            words(latent)
        ),
        verdict: if all.1 > 4.0 * grouped.1 && all.1 > 4.0 * latent.1 {
            Verdict::Holds
        } else {
            Verdict::DoesNot
        },
        command: "rackflow claims --filter inference-aware".to_owned(),
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
