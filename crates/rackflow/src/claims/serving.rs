//! Claims about serving: what decode leaves unused, and what would use it.

use super::{Claim, DETTMERS, FU, Finding, Lab, Verdict, percent};
use crate::failure::Failure;
use crate::{goodput, input};
use rackflow_report::{CandidateReport, ServingReport};

const LLAMA: &str = "serve-llama3-70b-8-h100";
const ONE_BY_ONE: &str = "serve-qwen3-8b-autoregressive";
const DIFFUSION: &str = "serve-qwen3-8b-diffusion";
const MEGAKERNEL: &str = "serve-qwen3-8b-megakernel";
const ONE_NODE: &str = "serve-glm-4.6-one-node";
const POOL: &str = "serve-glm-4.6-pool";
const PHONES: &str = "serve-qwen3-8b-phones";
const H800: &str = "serve-deepseek-v3-h800-disaggregated";
const NVL72: &str = "serve-deepseek-v3-gb200-nvl72";

pub fn claims() -> Vec<Claim> {
    vec![
        Claim {
            id: "decode-utilisation",
            claim: "Decode runs under 5 % MFU, while it keeps about 70 % of the memory bandwidth busy",
            source: FU,
            try_it: decode,
        },
        Claim {
            id: "larger-batches",
            claim: "Larger batches turn the FLOPs that decoding leaves idle into tokens",
            source: FU,
            try_it: batches,
        },
        Claim {
            id: "diffusion-decoding",
            claim: "Diffusion decoders use the FLOPs that decoding one token at a time leaves idle",
            source: FU,
            try_it: diffusion,
        },
        Claim {
            id: "megakernel",
            claim: "Megakernels win back the gaps between kernels",
            source: FU,
            try_it: megakernel,
        },
        Claim {
            id: "rack-scale-serving",
            claim: "NVL72 racks serve mixtures of experts far better than eight-GPU nodes",
            source: FU,
            try_it: rack_scale,
        },
        Claim {
            id: "one-node-or-many",
            claim: "Large deployments need very many users to be efficient; one node serves a 300B-class model almost as well",
            source: DETTMERS,
            try_it: one_node,
        },
        Claim {
            id: "users-to-be-efficient",
            claim: "A large deployment is efficient with very many users only, one node with few",
            source: DETTMERS,
            try_it: users,
        },
        Claim {
            id: "kv-cache-on-the-move",
            claim: "Moving KV caches from prefill to decode is what distributed serving must hide",
            source: DETTMERS,
            try_it: movement,
        },
        Claim {
            id: "one-near-optimal-layout",
            claim: "Of the ways to lay out replicas and their KV caches, one is near-optimal and the others are not",
            source: DETTMERS,
            try_it: layout,
        },
        Claim {
            id: "phones-as-a-cluster",
            claim: "Phones and laptops together could serve as a cluster",
            source: DETTMERS,
            try_it: phones,
        },
    ]
}

/// MFU and MBU of steps that only decode.
fn utilisation(report: &ServingReport) -> Result<(f64, f64), Failure> {
    let serving = &report.serving;
    serving.mfu.decode.zip(serving.mbu.decode).ok_or_else(|| {
        Failure::run(format_args!(
            "{} has no step that only decodes",
            report.scenario
        ))
    })
}

fn decode(lab: &mut Lab) -> Result<Finding, Failure> {
    let (mfu, mbu) = utilisation(lab.serving(LLAMA)?)?;
    Ok(Finding {
        simulated: format!(
            "Llama 3 70B on 8 H100 under the load of {LLAMA}: {} MFU and {} MBU in steps that only decode; the first holds below \
             5 %, the second between 55 and 85 %",
            percent(mfu),
            percent(mbu)
        ),
        verdict: match (mfu < 0.05, (0.55..=0.85).contains(&mbu)) {
            (true, true) => Verdict::Holds,
            (true, false) | (false, true) => Verdict::HoldsWhen,
            (false, false) => Verdict::DoesNot,
        },
        command: format!("rackflow run {LLAMA}"),
    })
}

fn diffusion(lab: &mut Lab) -> Result<Finding, Failure> {
    let one = lab.serving(ONE_BY_ONE)?;
    let ((mfu, _), user) = (utilisation(one)?, one.serving.tokens_per_s_per_user);
    let blocks = lab.serving(DIFFUSION)?;
    let ((more, _), faster) = (utilisation(blocks)?, blocks.serving.tokens_per_s_per_user);
    Ok(Finding {
        simulated: format!(
            "a block-diffusion model of the shape of Qwen3 8B decodes at {} MFU instead of {}, and a user sees {faster:.0} tokens/s \
             instead of {user:.0}; whether its answers are as good is not what a simulation of time can say",
            percent(more),
            percent(mfu)
        ),
        verdict: if more > 2.0 * mfu && faster > user {
            Verdict::Holds
        } else if more > mfu {
            Verdict::HoldsWhen
        } else {
            Verdict::DoesNot
        },
        command: format!("rackflow run {DIFFUSION}"),
    })
}

fn megakernel(lab: &mut Lab) -> Result<Finding, Failure> {
    let before = lab.serving(ONE_BY_ONE)?.serving.tokens_per_s_per_user;
    let after = lab.serving(MEGAKERNEL)?.serving.tokens_per_s_per_user;
    Ok(Finding {
        simulated: format!(
            "Qwen3 8B on one H100 from {before:.0} to {after:.0} tokens/s per user, {:+.0} %; holds from 10 % on",
            (after / before - 1.0) * 100.0
        ),
        verdict: if after > 1.1 * before {
            Verdict::Holds
        } else {
            Verdict::DoesNot
        },
        command: format!("rackflow run {MEGAKERNEL}"),
    })
}

fn rack_scale(lab: &mut Lab) -> Result<Finding, Failure> {
    let nodes = &lab.serving(H800)?.serving;
    let (before, slow) = (
        nodes.output_tokens_per_s_per_gpu,
        nodes.tokens_per_s_per_user,
    );
    let rack = &lab.serving(NVL72)?.serving;
    let (after, fast) = (rack.output_tokens_per_s_per_gpu, rack.tokens_per_s_per_user);
    Ok(Finding {
        simulated: format!(
            "DeepSeek-V3 at the loads of the two scenarios: {after:.0} output tokens/s per GPU on GB200 NVL72 and {before:.0} on H800 \
             nodes, {fast:.0} and {slow:.0} tokens/s per user; holds where both are more than twice as high"
        ),
        verdict: match (after > 2.0 * before, fast > 2.0 * slow) {
            (true, true) => Verdict::Holds,
            (true, false) | (false, true) => Verdict::HoldsWhen,
            (false, false) => Verdict::DoesNot,
        },
        command: format!("rackflow run {NVL72}"),
    })
}

fn one_node(lab: &mut Lab) -> Result<Finding, Failure> {
    let figures = |report: &ServingReport| {
        let serving = &report.serving;
        let price = serving.usd_per_million_output_tokens;
        (
            serving.output_tokens_per_s_per_gpu,
            serving.tokens_per_s_per_user,
            price,
        )
    };
    let (small, small_user, small_price) = figures(lab.serving(ONE_NODE)?);
    let (large, large_user, large_price) = figures(lab.serving(POOL)?);
    let dollars = |price: Option<f64>| {
        price.map_or("an unknown sum".to_owned(), |usd| {
            format!("{usd:.2} dollars")
        })
    };
    Ok(Finding {
        simulated: format!(
            "GLM-4.6 on one node of eight H100: {small:.0} output tokens/s per GPU, {small_user:.0} tokens/s per user, {} per million \
             tokens. On eight nodes with more users: {large:.0}, {large_user:.0} and {}. Almost as well is taken as two thirds",
            dollars(small_price),
            dollars(large_price)
        ),
        verdict: if small > 0.67 * large {
            Verdict::Holds
        } else if small > 0.3 * large {
            Verdict::HoldsWhen
        } else {
            Verdict::DoesNot
        },
        command: format!("rackflow run {ONE_NODE}"),
    })
}

fn batches(lab: &mut Lab) -> Result<Finding, Failure> {
    let mut words = Vec::new();
    let mut rates = Vec::new();
    for users in [1, 16, 64, 256] {
        let report = lab.with_users(LLAMA, users)?;
        let (mfu, _) = utilisation(&report)?;
        let serving = &report.serving;
        rates.push(serving.output_tokens_per_s_per_gpu);
        words.push(format!(
            "{users}: {:.0} tokens/s per GPU, {:.0} to each, MFU {} in decode",
            serving.output_tokens_per_s_per_gpu,
            serving.tokens_per_s_per_user,
            percent(mfu)
        ));
    }
    let gain = rates[rates.len() - 1] / rates[0];
    Ok(Finding {
        simulated: format!(
            "Llama 3 70B on 8 H100 by users at a time: {}. {gain:.0} times the tokens for the same GPUs; holds from 10 on",
            words.join("; ")
        ),
        verdict: if gain >= 10.0 {
            Verdict::Holds
        } else {
            Verdict::DoesNot
        },
        command: "rackflow claims --filter larger-batches".to_owned(),
    })
}

/// Users at a time that are tried.
const USERS: [u32; 7] = [2, 8, 32, 128, 512, 2048, 8192];
/// A price that is at most this many times the lowest counts as efficient.
const EFFICIENT: f64 = 1.5;

/// The fewest users of those tried with whom a deployment is efficient, and the price then.
fn fewest(lab: &Lab, scenario: &'static str, tried: &[u32]) -> Result<(u32, f64), Failure> {
    let mut prices = Vec::new();
    for users in tried {
        let report = lab.with_users(scenario, *users)?;
        let price = report.serving.usd_per_million_output_tokens;
        let price = price.ok_or_else(|| {
            Failure::run(format_args!("{scenario} has accelerators without a price"))
        })?;
        prices.push((*users, price));
    }
    let lowest = prices
        .iter()
        .map(|(_, price)| *price)
        .fold(f64::INFINITY, f64::min);
    let efficient = prices
        .into_iter()
        .find(|(_, price)| *price <= EFFICIENT * lowest);
    efficient.ok_or_else(|| Failure::run("nobody was tried"))
}

fn users(lab: &mut Lab) -> Result<Finding, Failure> {
    // More users than its cache holds wait outside a single node.
    let (few, price) = fewest(lab, ONE_NODE, &USERS[..5])?;
    let (many, low) = fewest(lab, POOL, &USERS)?;
    Ok(Finding {
        simulated: format!(
            "users at a time, of {USERS:?}, from which on a token costs at most {EFFICIENT} times its lowest price: {few} for GLM-4.6 on one \
             node of eight H100, at {price:.2} dollars per million tokens, and {many} for eight nodes with wide experts, at {low:.2}. \
             Holds where the pool needs more than eight times as many, as it has eight times the GPUs",
        ),
        verdict: if many > 8 * few {
            Verdict::Holds
        } else if many > few {
            Verdict::HoldsWhen
        } else {
            Verdict::DoesNot
        },
        command: "rackflow claims --filter users-to-be".to_owned(),
    })
}

fn movement(lab: &mut Lab) -> Result<Finding, Failure> {
    let report = lab.serving(H800)?;
    let serving = &report.serving;
    let moved = &serving.kv.transfer_bytes;
    let bytes = moved.nvlink + moved.leaf + moved.spine + moved.core;
    let each = bytes / serving.kv.transfers.max(1) as f64;
    let exposed = serving.kv.exposed_transfer_s;
    let share = exposed.mean / serving.ttft_s.mean;
    Ok(Finding {
        simulated: format!(
            "DeepSeek-V3 with prefill and decode apart on H800 nodes: {:.0} MB of cache move per request. Layer by layer behind the \
             prefill, {:.2} ms of it remain in a mean time to first token of {:.0} ms ({}; p99 {:.2} ms). Hidden is taken as less than \
             a tenth",
            each * 1e-6,
            exposed.mean * 1e3,
            serving.ttft_s.mean * 1e3,
            percent(share),
            exposed.p99 * 1e3
        ),
        verdict: if share < 0.1 {
            Verdict::HoldsWhen
        } else {
            Verdict::Holds
        },
        command: format!("rackflow run {H800}"),
    })
}

/// Share of the best that still counts as near-optimal.
const NEAR: f64 = 0.9;

fn layout(_: &mut Lab) -> Result<Finding, Failure> {
    // Replicas that do everything, and prefill and decode apart, under the same load.
    let plan = goodput::plan(&input::read(LLAMA)?, 0.95)?;
    // Other limits of the engine are no other layout.
    let limits = |way: &&CandidateReport| way.name.ends_with("/step");
    let ways: Vec<&CandidateReport> = plan.candidates.iter().filter(|way| !limits(way)).collect();
    let worse = plan
        .beaten
        .iter()
        .filter(|way| !way.name.ends_with("/step"))
        .count();
    let rate = |way: &CandidateReport| way.goodput_requests_per_s_per_gpu;
    let [best, second, ..] = ways.as_slice() else {
        return Err(Failure::run("there is one layout only"));
    };
    let near = ways.iter().filter(|way| rate(way) >= NEAR * rate(best));
    let near = near.count();
    Ok(Finding {
        simulated: format!(
            "Llama 3 70B on 8 H100 in {} layouts, by the requests per second that each bears inside the objective: {} bears {:.2} per \
             GPU, {} {} of it; {near} come within a tenth of the best",
            ways.len() + worse,
            best.name,
            rate(best),
            second.name,
            percent(rate(second) / rate(best)),
        ),
        verdict: match near {
            1 => Verdict::Holds,
            2 => Verdict::HoldsWhen,
            _ => Verdict::DoesNot,
        },
        command: format!("rackflow plan {LLAMA}"),
    })
}

fn phones(lab: &mut Lab) -> Result<Finding, Failure> {
    let phones = &lab.serving(PHONES)?.serving;
    let (each, user, joules) = (
        phones.output_tokens_per_s_per_gpu,
        phones.tokens_per_s_per_user,
        phones.joules_per_output_token,
    );
    let server = &lab.serving(ONE_BY_ONE)?.serving;
    let (one, energy) = (
        server.output_tokens_per_s_per_gpu,
        server.joules_per_output_token,
    );
    Ok(Finding {
        simulated: format!(
            "a phone gives {each:.1} tokens/s of Qwen3 8B in 4 bits, {user:.1} to its user; one H100 gives {one:.0}, as much as {:.0} \
             phones. A token takes {joules:.2} J on phones and {energy:.2} J on the H100. It holds for one user each, where \
             nothing crosses the uplinks",
            one / each
        ),
        verdict: if user >= 5.0 {
            Verdict::HoldsWhen
        } else {
            Verdict::DoesNot
        },
        command: format!("rackflow run {PHONES}"),
    })
}
