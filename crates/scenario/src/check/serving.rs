//! Requests, engines, pools and tiers of a serving workload.

use super::{count, hardware, within};
use crate::resolve::Findings;
use crate::serving_text::{EngineText, ServingText};
use rackflow_plan::serving::{FleetSetup, PoolSetup};
use rackflow_units::{Bandwidth, Bytes, RequestRate, SimDuration};
use rackflow_workload::serving::{Acceptance, Draft, ServingParallelism};
use rackflow_workload::{Arrivals, Attention, Decoder, Length, Medium, Role};

const SERVING: &str = "workload.serving";
const REQUESTS: &str = "workload.serving.requests";
/// Longer than any model's context.
const LONGEST: u64 = 100_000_000;
const MOST_REQUESTS: u64 = 100_000_000_000;

/// What can be judged before anything is resolved.
pub(crate) fn text(text: &ServingText, findings: &mut Findings<'_>) {
    requests(text, findings);
    decoder(text, findings);
    engine(&text.engine, &format!("{SERVING}.engine"), findings);
    if let Some(parallelism) = &text.parallelism {
        ranks(parallelism, &format!("{SERVING}.parallelism"), findings);
    }
    if let Some(replicas) = text.replicas {
        count(
            findings,
            &format!("{SERVING}.replicas"),
            replicas.into(),
            hardware::MOST_GPUS,
        );
    }
    if let Some(split) = &text.disaggregation {
        for (key, pool) in [("prefill", &split.prefill), ("decode", &split.decode)] {
            let path = format!("{SERVING}.disaggregation.{key}");
            ranks(&pool.parallelism, &format!("{path}.parallelism"), findings);
            engine(&pool.engine, &format!("{path}.engine"), findings);
            count(
                findings,
                &format!("{path}.replicas"),
                pool.replicas.into(),
                hardware::MOST_GPUS,
            );
            if let Some(experts) = &pool.experts {
                imbalance(
                    experts.imbalance,
                    &format!("{path}.experts.imbalance"),
                    findings,
                );
            }
        }
        count(
            findings,
            &format!("{SERVING}.disaggregation.transfer.tokens_per_message"),
            split.transfer.tokens_per_message.into(),
            LONGEST,
        );
    }
    imbalance(
        text.experts.imbalance,
        &format!("{SERVING}.experts.imbalance"),
        findings,
    );
    store(text, findings);
}

fn imbalance(value: f64, path: &str, findings: &mut Findings<'_>) {
    if !(1.0..=1000.0).contains(&value) {
        let found = findings.at(
            path,
            format!("`imbalance` is {value}: the busiest group has at least the mean, 1"),
        );
        findings.report(found);
    }
}

fn ranks(p: &ServingParallelism, path: &str, findings: &mut Findings<'_>) {
    for (field, value) in [
        ("tensor", p.tensor),
        ("pipeline", p.pipeline),
        ("data", p.data),
        ("expert", p.expert),
    ] {
        count(findings, &format!("{path}.{field}"), value.into(), 65_536);
    }
    let all = [p.tensor, p.pipeline, p.data]
        .map(u64::from)
        .iter()
        .product::<u64>();
    if all > hardware::MOST_GPUS {
        let found = findings.at(path, format!("a replica of {all} GPUs is absurdly large"));
        findings.report(found);
    }
}

fn engine(engine: &EngineText, path: &str, findings: &mut Findings<'_>) {
    let counts = [
        ("max_num_batched_tokens", engine.max_num_batched_tokens),
        ("max_num_seqs", engine.max_num_seqs),
        ("block_size", engine.block_size),
        ("max_queue", engine.max_queue),
    ];
    for (field, value) in counts {
        if let Some(value) = value {
            count(findings, &format!("{path}.{field}"), value.into(), LONGEST);
        }
    }
}

fn requests(text: &ServingText, findings: &mut Findings<'_>) {
    let requests = &text.requests;
    let at = |field: &str| format!("{REQUESTS}.{field}");
    if let Some(all) = requests.count {
        count(findings, &at("count"), all, MOST_REQUESTS);
    }
    count(
        findings,
        &at("priorities"),
        requests.priorities.into(),
        1000,
    );
    if !(1e-6..=1e6).contains(&requests.rate_scale) {
        let found = findings.at(
            &at("rate_scale"),
            format!(
                "`rate_scale` is {}; it must be above 0 and at most 1000000",
                requests.rate_scale
            ),
        );
        findings.report(found);
    }
    if let Some(warm_up) = requests.warm_up {
        within(
            findings,
            &at("warm_up"),
            warm_up,
            SimDuration::ZERO,
            SimDuration::from_secs_f64(90.0 * 86_400.0),
        );
    }
    match (&requests.trace, requests.input, requests.output) {
        (Some(_), None, None) => {
            if requests.sessions.is_some() {
                let found = findings.at(
                    &at("sessions"),
                    "`sessions` are drawn, but the requests come from a trace",
                );
                findings.report(found.hint("a trace names its sessions with session_id"));
            }
        }
        (Some(_), input, _) => {
            let field = if input.is_some() { "input" } else { "output" };
            let found = findings.at(
                &at(field),
                format!("`{field}` is drawn, but the requests come from a trace"),
            );
            findings.report(found.hint(format!("leave `{field}` or `trace` out")));
        }
        (None, Some(input), Some(output)) => {
            length(input, &at("input"), findings);
            length(output, &at("output"), findings);
            if requests.arrivals.is_none() {
                let found = findings.at(REQUESTS, "`arrivals` are missing: when do requests come?");
                findings.report(found.hint("arrivals: { poisson: { rate: 2 requests/s } }"));
            }
        }
        (None, input, _) => {
            let field = if input.is_none() { "input" } else { "output" };
            let found = findings.at(
                REQUESTS,
                format!("`{field}` is missing: how long are requests?"),
            );
            findings.report(
                found
                    .hint(format!("{field}: {{ fixed: 1024 }}"))
                    .hint("or trace: requests.csv"),
            );
        }
    }
    if let Some(sessions) = &requests.sessions {
        length(sessions.turns, &at("sessions.turns"), findings);
        count(
            findings,
            &at("sessions.system_prompts"),
            sessions.system_prompts.into(),
            1_000_000_000,
        );
    }
    match requests.arrivals {
        Some(Arrivals::ClosedLoop { concurrency }) => {
            count(
                findings,
                &at("arrivals.closed_loop.concurrency"),
                concurrency.into(),
                10_000_000,
            );
        }
        Some(Arrivals::Gamma { cv, rate: _ }) if !(0.01..=100.0).contains(&cv) => {
            let found = findings.at(
                &at("arrivals.gamma.cv"),
                format!("`cv` is {cv}; it must be between 0.01 and 100"),
            );
            findings.report(found.hint("1 is a Poisson process; higher is burstier"));
        }
        _ => {}
    }
    if let Some(rate) = requests.arrivals.and_then(Arrivals::rate) {
        let kind = match requests.arrivals {
            Some(Arrivals::Gamma { .. }) => "gamma",
            Some(Arrivals::Constant { .. }) => "constant",
            _ => "poisson",
        };
        within(
            findings,
            &at(&format!("arrivals.{kind}.rate")),
            rate,
            RequestRate::from_per_sec(1e-5),
            RequestRate::from_per_sec(1e9),
        );
    }
}

fn length(length: Length, path: &str, findings: &mut Findings<'_>) {
    match length {
        Length::Fixed(tokens) => {
            count(findings, &format!("{path}.fixed"), tokens.into(), LONGEST);
        }
        Length::Uniform { min, max } => {
            count(
                findings,
                &format!("{path}.uniform.max"),
                max.into(),
                LONGEST,
            );
            if min > max {
                let found = findings.at(
                    &format!("{path}.uniform"),
                    format!("`min` is {min}, which is more than `max`, {max}"),
                );
                findings.report(found);
            }
        }
        Length::LogNormal { median, sigma, max } => {
            count(
                findings,
                &format!("{path}.log_normal.median"),
                median.into(),
                LONGEST,
            );
            count(
                findings,
                &format!("{path}.log_normal.max"),
                max.into(),
                LONGEST,
            );
            if !(0.0..=10.0).contains(&sigma) {
                let found = findings.at(
                    &format!("{path}.log_normal.sigma"),
                    format!("`sigma` is {sigma}; it must be between 0 and 10"),
                );
                findings.report(found);
            }
        }
    }
}

fn decoder(text: &ServingText, findings: &mut Findings<'_>) {
    let at = |field: &str| format!("{SERVING}.decoder.{field}");
    match text.decoder {
        Decoder::Autoregressive => {}
        Decoder::Speculative(guess) => {
            count(
                findings,
                &at("speculative.draft_tokens"),
                guess.draft_tokens.into(),
                64,
            );
            if let Some(wrong) = wrong_acceptance(guess.acceptance) {
                let found = findings.at(&at("speculative.acceptance"), wrong);
                findings.report(found);
            }
            debug_assert!(matches!(guess.draft, Draft::Mtp | Draft::NGram));
        }
        Decoder::BlockDiffusion { block, steps } => {
            count(findings, &at("block_diffusion.block"), block.into(), 65_536);
            count(findings, &at("block_diffusion.steps"), steps.into(), 65_536);
        }
        Decoder::FullDiffusion {
            tokens_per_step,
            refresh_every,
        } => {
            count(
                findings,
                &at("full_diffusion.tokens_per_step"),
                tokens_per_step.into(),
                65_536,
            );
            count(
                findings,
                &at("full_diffusion.refresh_every"),
                refresh_every.into(),
                65_536,
            );
        }
    }
    let diffusion = matches!(
        text.decoder,
        Decoder::BlockDiffusion { .. } | Decoder::FullDiffusion { .. }
    );
    if diffusion && text.disaggregation.is_some() {
        let found = findings.at(
            &format!("{SERVING}.decoder"),
            "a diffusion decoder is not simulated with prefill and decode apart",
        );
        findings.report(found.hint("leave `disaggregation` out"));
    }
}

/// What no distribution of accepted guesses is like.
fn wrong_acceptance(acceptance: Acceptance) -> Option<String> {
    let share = 0.0..=1.0;
    match acceptance {
        Acceptance::Each(each) if !share.contains(&each) => Some(format!(
            "`acceptance` is {each}; it must be between 0 and 1"
        )),
        Acceptance::ByDepth(depths) => {
            let shares = depths.shares();
            let outside = shares.iter().find(|part| !share.contains(*part));
            let rises = shares.windows(2).find(|pair| pair[1] > pair[0]);
            match (outside, rises) {
                (Some(part), _) => Some(format!(
                    "a depth is reached in {part} of the steps; it must be between 0 and 1"
                )),
                (None, Some(pair)) => Some(format!(
                    "{} after {}: a guess is kept only where those before it are, so that shares fall with depth",
                    pair[1], pair[0]
                )),
                (None, None) => None,
            }
        }
        Acceptance::Beta { mean, .. } if !share.contains(&mean) => {
            Some(format!("`mean` is {mean}; it must be between 0 and 1"))
        }
        Acceptance::Beta { mean, sd } => {
            let most = (mean * (1.0 - mean)).sqrt();
            (!(0.0..=most).contains(&sd) || sd > 0.0 && sd == most).then(|| {
                format!(
                    "`sd` is {sd}; with a mean of {mean} it must be at least 0 and below {most:.3}"
                )
            })
        }
        Acceptance::Each(_) => None,
    }
}

fn store(text: &ServingText, findings: &mut Findings<'_>) {
    if text.store.len() > 8 {
        let found = findings.at(
            &format!("{SERVING}.store"),
            format!("{} tiers; at most 8 are simulated", text.store.len()),
        );
        findings.report(found);
    }
    for (index, tier) in text.store.iter().enumerate() {
        let at = |field: &str| format!("{SERVING}.store.{index}.{field}");
        within(
            findings,
            &at("capacity"),
            tier.capacity,
            Bytes::new(1),
            Bytes::new(1_000_000_000_000_000_000),
        );
        within(
            findings,
            &at("read"),
            tier.read,
            Bandwidth::from_bytes_per_sec(1_000),
            Bandwidth::from_gigabytes_per_sec(1_000_000),
        );
        if let Some(write) = tier.write {
            within(
                findings,
                &at("write"),
                write,
                Bandwidth::from_bytes_per_sec(1_000),
                Bandwidth::from_gigabytes_per_sec(1_000_000),
            );
        }
        within(
            findings,
            &at("latency"),
            tier.latency,
            SimDuration::ZERO,
            SimDuration::from_secs_f64(60.0),
        );
        let last = index + 1 == text.store.len();
        if tier.medium == Medium::Remote && !last {
            let found = findings.at(
                &at("medium"),
                "a remote tier is the last: nothing falls through it to a local one",
            );
            findings.report(found);
        }
    }
}

/// What can be judged of the fleet as a whole.
pub(crate) fn fleet(setup: &FleetSetup, findings: &mut Findings<'_>) {
    for cluster in &setup.clusters {
        hardware::cluster(cluster, findings);
    }
    let Some(pool) = setup.pools.first() else {
        return;
    };
    if let Err(error) = pool.deployment.model.check() {
        let path = format!("{SERVING}.model.{}", error.field());
        let found = findings.at(&path, error.to_string());
        findings.report(found);
    }
    for pool in &setup.pools {
        shares(pool, findings);
    }
    if let Decoder::Speculative(guess) = setup.decoder
        && guess.draft == Draft::Mtp
        && pool.deployment.model.mtp.is_none()
    {
        let found = findings.at(
            &format!("{SERVING}.decoder.speculative.draft"),
            format!("{} has no prediction module", pool.deployment.model.name),
        );
        findings.report(found.hint("draft: n_gram"));
    }
}

/// Whether a model can be shared out like this.
fn shares(pool: &PoolSetup, findings: &mut Findings<'_>) {
    let model = &pool.deployment.model;
    let p = &pool.deployment.parallelism;
    let path = match pool.role {
        Role::Both => format!("{SERVING}.parallelism"),
        Role::Prefill => format!("{SERVING}.disaggregation.prefill.parallelism"),
        Role::Decode => format!("{SERVING}.disaggregation.decode.parallelism"),
    };
    let heads = match model.attention {
        Attention::Grouped { heads, .. } | Attention::Latent { heads, .. } => heads,
    };
    if p.tensor > 0 && !heads.is_multiple_of(p.tensor.into()) {
        let found = findings.at(
            &format!("{path}.tensor"),
            format!(
                "the {heads} heads of {} cannot be shared by {} tensor ranks; engines refuse to start",
                model.name, p.tensor
            ),
        );
        let fit = (1..p.tensor)
            .rev()
            .find(|ranks| heads.is_multiple_of((*ranks).into()));
        findings.report(found.hint(format!("tensor: {}", fit.unwrap_or(1))));
    }
    if p.expert > 1 && model.moe.is_none() {
        let found = findings.at(
            &format!("{path}.expert"),
            format!("{} has no experts to spread over groups", model.name),
        );
        findings.report(found.hint("leave `expert` out"));
    }
}
