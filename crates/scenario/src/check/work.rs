//! Model, batch, parallelism, schedule, software.

use super::{count, stack, vision, within};
use crate::catalogue::{Catalogue, Section};
use crate::document::TrainingText;
use crate::resolve::Findings;
use crate::suggest::{divisors_near, either, multiples_near};
use rackflow_plan::{Fidelity, Setup, Straggler};
use rackflow_topology::{Cluster, FaultError, Health, LinkFault};
use rackflow_units::{SimDuration, counted};
use rackflow_workload::{
    Attention, ModelError, Parallelism, Recompute, Routing, Schedule, Training, Zero,
};

const TRAINING: &str = "workload.training";
const PARALLELISM: &str = "workload.training.parallelism";

/// Forward and backward passes of layers on one rank and step; beyond this a step would take
/// longer to simulate than to train.
const MOST_PASSES: u64 = 4_000_000;
/// A day, in microseconds: no step takes so long.
const LONGEST_STEP: u64 = 86_400_000_000;
/// The same over all ranks that are simulated: some minutes of simulation and a few gigabytes.
const MOST_PASSES_OF_ALL: u64 = 32_000_000;

fn at(field: &str) -> String {
    format!("{PARALLELISM}.{field}")
}

/// Checks the work, and how it sits on the cluster.
pub(super) fn check(setup: &Setup, text: &TrainingText, findings: &mut Findings<'_>) {
    let model_right = model(findings, &setup.training);
    stack::check(findings, setup, model_right);
    stragglers(findings, setup.cluster.gpus, &setup.stragglers);
    jitter(findings, setup);
    links(setup.host(), &setup.faults, findings);
    count(findings, "simulation.seeds", setup.seeds.into(), 1000);
    routing(findings, &setup.training);
    published(findings);
    let counts_right = counts(findings, setup);
    if !counts_right {
        return;
    }
    let t = &setup.training;
    let tensor_right = tensor(findings, setup);
    context(findings, t);
    let mut experts_right = true;
    if model_right {
        if tensor_right {
            heads(findings, t);
        }
        vision::check(findings, t, text);
        chunks(findings, t);
        recompute(findings, t);
        experts_right = experts_of_model(findings, t);
    }
    // Whoever has half a node too many GPUs needs to hear that only.
    let whole_nodes = setup.cluster.is_mixed()
        || setup.cluster.gpus <= setup.cluster.node.gpus
        || setup.cluster.gpus.is_multiple_of(setup.cluster.node.gpus);
    if !whole_nodes || !ranks(findings, setup, text) {
        return;
    }
    if experts_right {
        expert_ranks(findings, setup);
    }
    zero_group(findings, t);
    if batch(findings, t) {
        schedule(findings, t);
        if model_right {
            passes(findings, setup);
        }
    }
}

/// Every count is at least 1 and none is absurd.
fn counts(findings: &mut Findings<'_>, setup: &Setup) -> bool {
    let t = &setup.training;
    let p = &t.parallelism;
    let training = |field: &str| format!("{TRAINING}.{field}");
    let most = super::hardware::MOST_GPUS;
    let checks = [
        (1..=most).contains(&u64::from(setup.cluster.gpus)),
        count(
            findings,
            &training("sequence_length"),
            t.sequence_length,
            100_000_000,
        ),
        count(
            findings,
            &training("global_batch"),
            t.global_batch,
            1_000_000_000,
        ),
        count(findings, &training("micro_batch"), t.micro_batch, 1_000_000),
        count(findings, &at("tensor"), p.tensor.into(), most),
        count(findings, &at("context"), p.context.into(), most),
        count(findings, &at("pipeline"), p.pipeline.into(), 10_000),
        count(
            findings,
            &at("virtual_pipeline"),
            p.virtual_pipeline.into(),
            10_000,
        ),
        !findings.written(&at("data")) || count(findings, &at("data"), p.data.into(), most),
        count(findings, &at("expert"), p.expert.into(), 100_000),
        count(
            findings,
            &at("expert_tensor"),
            p.expert_tensor.into(),
            100_000,
        ),
        p.zero_group
            .is_none_or(|group| count(findings, &at("zero_group"), group.into(), most)),
    ];
    !checks.contains(&false)
}

fn model(findings: &mut Findings<'_>, t: &Training) -> bool {
    let Err(error) = t.model.check() else {
        return true;
    };
    let path = format!("{TRAINING}.model.{}", error.field());
    let found = findings.at(&path, error.to_string());
    let found = match error {
        ModelError::KvHeadsDoNotDivide { heads, kv_heads } => found.hint(format!(
            "divisors near it: {}",
            either(&divisors_near(heads, kv_heads))
        )),
        _ => found,
    };
    findings.report(found);
    false
}

/// Faults of links that are there, and that leave every GPU a way out.
pub(super) fn links(cluster: &Cluster, faults: &[LinkFault], findings: &mut Findings<'_>) {
    let Err((index, error)) = Health::new(cluster, faults) else {
        return;
    };
    // What keeps the cluster itself from being built is said elsewhere.
    let (part, hint) = match &error {
        FaultError::Topology(_) => return,
        FaultError::NoSuch { what: "rail", .. } => (
            "link",
            "rails are those of `rackflow topology`: one per NIC of a node where the fabric has none of its own",
        ),
        FaultError::NoSuch { .. } => ("link", "`rackflow topology` shows what there is"),
        FaultError::NoWayOut { .. } => (
            "link",
            "leave one NIC of its node alive, or degrade it: `state: { degraded: 0.1 }`",
        ),
        FaultError::NoOtherWay { .. } => (
            "state",
            "degrade them: `state: { degraded: 0.5 }`, or let them flap",
        ),
        FaultError::Fraction { .. } => (
            "state",
            "`state: { degraded: 0.5 }` is half of the rate; `state: down` is dead",
        ),
        FaultError::Rhythm { .. } => (
            "state",
            "`state: { flapping: { every: 2 s, down: 100 ms } }`",
        ),
    };
    let path = format!("simulation.links.{index}.{part}");
    let found = findings.at(&path, error.to_string()).hint(hint);
    findings.report(found);
}

/// Slow GPUs that are there, each once.
pub(super) fn stragglers(findings: &mut Findings<'_>, gpus: u32, stragglers: &[Straggler]) {
    let mut seen = std::collections::BTreeSet::new();
    for (index, straggler) in stragglers.iter().enumerate() {
        let at = |field: &str| format!("simulation.stragglers.{index}.{field}");
        if straggler.gpu >= gpus {
            let found = findings
                .at(&at("gpu"), format!("there is no GPU {}", straggler.gpu))
                .label(format!(
                    "the cluster has {}, counted from 0",
                    counted(gpus, "GPU")
                ));
            findings.report(found);
        } else if !seen.insert(straggler.gpu) {
            let found = findings.at(&at("gpu"), format!("GPU {} is named twice", straggler.gpu));
            findings.report(found);
        }
        if !(1.0..=1000.0).contains(&straggler.slowdown) {
            let found = findings
                .at(
                    &at("slowdown"),
                    format!(
                        "`slowdown` is {}; it must be between 1 and 1000",
                        straggler.slowdown
                    ),
                )
                .hint("its kernels take this many times as long: 1.1 is 10 % slower");
            findings.report(found);
        }
    }
}

fn jitter(findings: &mut Findings<'_>, setup: &Setup) {
    let jitter = setup.jitter;
    if !(0.0..=1.0).contains(&jitter.slow_nodes) {
        let found = findings.at(
            "simulation.jitter.slow_nodes",
            format!("`slow_nodes` is {}; it is a fraction", jitter.slow_nodes),
        );
        findings.report(found.label("0 to 1"));
    }
    for (field, sigma) in [("gpu", jitter.gpu), ("kernel", jitter.kernel)] {
        if !(0.0..=0.5).contains(&sigma) {
            let found = findings
                .at(
                    &format!("simulation.jitter.{field}"),
                    format!("`{field}` is {sigma}; it must be between 0 and 0.5"),
                )
                .hint("it is a standard deviation of the logarithm of kernel times: 0.01 is about 1 %");
            findings.report(found);
        }
    }
}

fn routing(findings: &mut Findings<'_>, t: &Training) {
    if let Routing::Lognormal { sigma } = t.routing
        && !(0.0..=3.0).contains(&sigma)
    {
        let found = findings
            .at(
                &format!("{TRAINING}.routing.lognormal.sigma"),
                format!("`sigma` is {sigma}; it must be between 0 and 3"),
            )
            .hint(
                "it is the standard deviation of the logarithm of a rank's load: 0.1 is about 10 %",
            );
        findings.report(found);
    }
}

fn published(findings: &mut Findings<'_>) {
    let Some((time, mfu, tflops)) = findings
        .published()
        .map(|p| (p.step_time, p.mfu, p.tflops_per_gpu))
    else {
        return;
    };
    if let Some(time) = time {
        let (least, most) = (
            SimDuration::from_micros(1),
            SimDuration::from_micros(LONGEST_STEP),
        );
        within(findings, "published.step_time", time, least, most);
    }
    if let Some(mfu) = mfu {
        super::fraction(findings, "published.mfu", mfu);
    }
    if let Some(tflops) = tflops {
        within(findings, "published.tflops_per_gpu", tflops, 0.001, 1e6);
    }
}

/// A tensor-parallel group stays inside one NVLink domain.
fn tensor(findings: &mut Findings<'_>, setup: &Setup) -> bool {
    let node = &setup.cluster.node;
    // Of several kinds the domain that divides all, so that no group straddles two kinds.
    let parts = setup.cluster.parts.iter();
    let domain = parts.fold(
        u64::from(node.scale_up.domain.min(setup.cluster.gpus)),
        |domain, part| {
            let own = part.node.scale_up.domain.min(part.gpus);
            greatest_common_divisor(domain, own.into())
        },
    );
    let tensor = u64::from(setup.training.parallelism.tensor);
    // More ranks than GPUs: the product of the dimensions says so.
    if domain == 0 || domain.is_multiple_of(tensor) || tensor > setup.cluster.gpus.into() {
        return true;
    }
    let (heads, ffn) = cut_by_tensor(&setup.training);
    let possible = divisors_near(
        greatest_common_divisor(domain, greatest_common_divisor(heads, ffn)),
        tensor,
    );
    let use_these = format!("use tensor: {}", either(&possible));
    if tensor < domain {
        let message = format!(
            "tensor parallelism {tensor} does not divide the NVLink domain of {}, so that groups straddle two domains",
            counted(domain, "GPU")
        );
        let found = findings.at(&at("tensor"), message).hint(use_these);
        findings.report(found);
        return false;
    }
    let message = format!(
        "tensor parallelism {tensor} does not fit one NVLink domain of {}",
        counted(domain, "GPU")
    );
    let found = findings.at(&at("tensor"), message).hint(use_these);
    let catalogue = Catalogue::builtin();
    let larger: Vec<&str> = catalogue
        .names(Section::Nodes)
        .filter(|name| {
            catalogue
                .node(name)
                .is_some_and(|n| u64::from(n.scale_up.domain).is_multiple_of(tensor))
        })
        .take(4)
        .collect();
    let found = if larger.is_empty() {
        found
    } else {
        found.hint(format!("nodes whose domain fits it: {}", larger.join(", ")))
    };
    findings.report(found);
    false
}

/// Attention heads and feed-forward columns, which tensor-parallel ranks share; 0 for none.
fn cut_by_tensor(t: &Training) -> (u64, u64) {
    let (Attention::Grouped { heads, .. } | Attention::Latent { heads, .. }) = t.model.attention;
    (heads, t.model.ffn)
}

fn context(findings: &mut Findings<'_>, t: &Training) {
    let context = u64::from(t.parallelism.context);
    if !t.sequence_length.is_multiple_of(context) {
        let lengths = multiples_near(context, t.sequence_length);
        let found = findings
            .at(
                &at("context"),
                format!(
                    "{context} context-parallel ranks do not divide a sequence of {} tokens",
                    t.sequence_length
                ),
            )
            .hint(format!(
                "use {} ranks, or a sequence_length of {}",
                either(&divisors_near(t.sequence_length, context)),
                either(&lengths)
            ));
        return findings.report(found);
    }
    let tensor = u64::from(t.parallelism.tensor);
    let tokens = t.sequence_length / context;
    let heads_divide = cut_by_tensor(t).0.is_multiple_of(tensor);
    if t.parallelism.sequence_parallel && heads_divide && !tokens.is_multiple_of(tensor) {
        let of_context = match context {
            1 => String::new(),
            ranks => format!(" of one of {ranks} context-parallel ranks"),
        };
        let lengths = multiples_near(tensor.saturating_mul(context), t.sequence_length);
        let found = findings
            .at(
                &at("tensor"),
                format!("tensor parallelism {tensor} shards the sequence too, and does not divide the {tokens} tokens{of_context}"),
            )
            .hint(format!(
                "use a sequence_length of {}, or sequence_parallel: false",
                either(&lengths)
            ));
        findings.report(found);
    }
}

/// Attention heads and feed-forward width are cut over the tensor-parallel ranks.
fn heads(findings: &mut Findings<'_>, t: &Training) {
    let tensor = u64::from(t.parallelism.tensor);
    let (heads, ffn) = cut_by_tensor(t);
    let widths = [
        (heads, "attention heads"),
        (ffn, "columns of the feed-forward network"),
    ];
    for (width, what) in widths {
        if width > 0 && !width.is_multiple_of(tensor) {
            let found = findings
                .at(
                    &at("tensor"),
                    format!(
                        "tensor parallelism {tensor} does not divide the {width} {what} of {}",
                        t.model.name
                    ),
                )
                .hint(format!(
                    "divisors near it: {}",
                    either(&divisors_near(width, tensor))
                ));
            return findings.report(found);
        }
    }
}

/// Layers over model chunks.
fn chunks(findings: &mut Findings<'_>, t: &Training) {
    let p = &t.parallelism;
    let chunks = u64::from(p.pipeline) * u64::from(p.virtual_pipeline);
    let layers = t.model.layers;
    let parts = match p.virtual_pipeline {
        1 => format!("{chunks} pipeline stages"),
        v => format!(
            "{} pipeline stages x {v} chunks = {chunks} chunks",
            p.pipeline
        ),
    };
    if let Some(list) = &t.layers_per_chunk {
        let path = format!("{TRAINING}.layers_per_chunk");
        if list.len() as u64 != chunks {
            let found = findings
                .at(
                    &path,
                    format!("`layers_per_chunk` has {} entries for {parts}", list.len()),
                )
                .hint(format!(
                    "write {chunks} numbers that sum to {layers}, in pipeline order"
                ));
            return findings.report(found);
        }
        let sum = list.iter().fold(0u64, |sum, n| sum.saturating_add(*n));
        if sum != layers {
            let found = findings.at(
                &path,
                format!(
                    "`layers_per_chunk` sums to {sum}, but {} has {layers} layers",
                    t.model.name
                ),
            );
            findings.report(found);
        }
    } else if chunks > layers {
        let path = if p.virtual_pipeline > 1 {
            at("virtual_pipeline")
        } else {
            at("pipeline")
        };
        let most = layers / u64::from(p.pipeline);
        let found = findings
            .at(
                &path,
                format!("{parts} for the {layers} layers of {}", t.model.name),
            )
            .label("some would be empty");
        let found = if p.virtual_pipeline > 1 && most > 0 {
            found.hint(format!(
                "use at most {most}, or say with layers_per_chunk which are empty"
            ))
        } else {
            found.hint(format!("use at most {layers} stages"))
        };
        findings.report(found);
    }
}

/// What is recomputed exists, and is named once.
fn recompute(findings: &mut Findings<'_>, t: &Training) {
    let p = &t.parallelism;
    let path = format!("{TRAINING}.recompute");
    match &t.recompute {
        Recompute::FullLayers(n) => {
            let chunks = u64::from(p.pipeline) * u64::from(p.virtual_pipeline);
            let longest = match &t.layers_per_chunk {
                Some(list) => list.iter().copied().max().unwrap_or(0),
                None => t.model.layers.div_ceil(chunks.max(1)),
            };
            let path = format!("{path}.full_layers");
            if u64::from(*n) > longest {
                let found = findings
                    .at(
                        &path,
                        format!("`full_layers` is {n}, but no model chunk has more than {longest}"),
                    )
                    .label(format!("at most {longest}"))
                    .hint("use recompute: full for all layers");
                findings.report(found);
            } else if *n == 0 {
                let found = findings
                    .at(&path, "`full_layers` is 0; it must be at least 1")
                    .hint("use recompute: none, or leave it out");
                findings.report(found);
            }
        }
        Recompute::Activations(list) => {
            for (index, activation) in list.iter().enumerate() {
                if list[..index].contains(activation) {
                    let inline = format!("{path}.{index}");
                    let path = if findings.written(&inline) {
                        inline
                    } else {
                        format!("{path}.activations.{index}")
                    };
                    let found = findings.at(
                        &path,
                        format!("entry {} of `recompute` was named before", index + 1),
                    );
                    findings.report(found.hint("name each activation once"));
                }
            }
        }
        Recompute::None | Recompute::Selective | Recompute::Full | Recompute::Operators => {}
    }
}

/// Experts over expert-parallel ranks.
fn experts_of_model(findings: &mut Findings<'_>, t: &Training) -> bool {
    let p = &t.parallelism;
    let Some(moe) = &t.model.moe else {
        for (field, value) in [("expert", p.expert), ("expert_tensor", p.expert_tensor)] {
            if value > 1 {
                let found = findings
                    .at(
                        &at(field),
                        format!("{} is dense: it has no experts to spread", t.model.name),
                    )
                    .hint(format!("leave `{field}` out"));
                findings.report(found);
            }
        }
        return false;
    };
    let expert = u64::from(p.expert);
    let divides = moe.experts.is_multiple_of(expert);
    if !divides {
        let found = findings
            .at(
                &at("expert"),
                format!(
                    "{expert} expert-parallel ranks do not divide the {} experts of {}",
                    moe.experts, t.model.name
                ),
            )
            .hint(format!(
                "divisors near it: {}",
                either(&divisors_near(moe.experts, expert))
            ));
        findings.report(found);
    }
    let cut = u64::from(p.expert_tensor);
    if !moe.expert_ffn.is_multiple_of(cut) {
        let found = findings
            .at(
                &at("expert_tensor"),
                format!(
                    "{cut} does not divide the {} columns of one expert",
                    moe.expert_ffn
                ),
            )
            .hint(format!(
                "divisors near it: {}",
                either(&divisors_near(moe.expert_ffn, cut))
            ));
        findings.report(found);
    }
    divides
}

/// The dimensions that are not 1, as a product.
fn product_of(parts: &[(&str, u32)]) -> (u64, String) {
    let product = parts.iter().fold(1u64, |product, (_, n)| {
        product.saturating_mul(u64::from(*n))
    });
    let named: Vec<String> = parts
        .iter()
        .filter(|(_, n)| *n > 1)
        .map(|(name, n)| format!("{name} {n}"))
        .collect();
    let text = if named.is_empty() {
        "one rank".to_owned()
    } else {
        named.join(" x ")
    };
    (product, text)
}

/// The product of the dimensions is the number of GPUs.
fn ranks(findings: &mut Findings<'_>, setup: &Setup, text: &TrainingText) -> bool {
    let p = &setup.training.parallelism;
    let gpus = u64::from(setup.cluster.gpus);
    let (others, named) = product_of(&[
        ("tensor", p.tensor),
        ("context", p.context),
        ("pipeline", p.pipeline),
    ]);
    let per_node = u64::from(setup.cluster.node.gpus);
    let Some(data) = text.parallelism.data else {
        if gpus.is_multiple_of(others) {
            return true;
        }
        let found = if others > gpus {
            findings
                .at(
                    widest(p),
                    format!(
                        "{named} is {}, but the cluster has {gpus}",
                        counted(others, "GPU")
                    ),
                )
                .hint(format!(
                    "make the cluster {others} GPUs or a multiple of it, or use fewer ranks"
                ))
        } else {
            let found = findings.at(
                widest(p),
                format!(
                    "{named} = {others} does not divide the {} of the cluster",
                    counted(gpus, "GPU")
                ),
            );
            fitting_gpus(gpus, others, per_node, found)
        };
        findings.report(found);
        return false;
    };
    let product = others.saturating_mul(u64::from(data));
    if product == gpus {
        return true;
    }
    let (_, all) = product_of(&[
        ("tensor", p.tensor),
        ("context", p.context),
        ("pipeline", p.pipeline),
        ("data", data),
    ]);
    let found = findings.at(
        &at("data"),
        format!(
            "{all} is {}, but the cluster has {}",
            counted(product, "rank"),
            counted(gpus, "GPU")
        ),
    );
    let found = if gpus.is_multiple_of(others) {
        found.hint(format!("use data: {}, or leave it out", gpus / others))
    } else if others > gpus {
        found.hint(format!(
            "without data it is {others} already: use fewer ranks or more GPUs"
        ))
    } else {
        fitting_gpus(gpus, others, per_node, found)
    };
    findings.report(found);
    false
}

/// The dimension to point at when the product is wrong.
fn widest(p: &Parallelism) -> &'static str {
    if p.pipeline > 1 && !p.pipeline.is_power_of_two() || p.pipeline >= p.tensor.max(p.context) {
        "workload.training.parallelism.pipeline"
    } else if p.tensor >= p.context {
        "workload.training.parallelism.tensor"
    } else {
        "workload.training.parallelism.context"
    }
}

/// Numbers of GPUs that are whole nodes and whole groups.
fn fitting_gpus(
    gpus: u64,
    group: u64,
    per_node: u64,
    found: crate::diagnostic::Diagnostic,
) -> crate::diagnostic::Diagnostic {
    let step = least_common_multiple(group, per_node.max(1));
    let near: Vec<u64> = multiples_near(step, gpus)
        .into_iter()
        .filter(|n| *n <= super::hardware::MOST_GPUS)
        .collect();
    let found = if near.is_empty() {
        found
    } else {
        found.hint(format!(
            "with these groups the cluster could have {} GPUs",
            either(&near)
        ))
    };
    let divisors = divisors_near(gpus, group);
    found.hint(format!(
        "or let tensor x context x pipeline be {}",
        either(&divisors)
    ))
}

fn greatest_common_divisor(a: u64, b: u64) -> u64 {
    let (mut x, mut y) = (a, b);
    while y != 0 {
        (x, y) = (y, x % y);
    }
    x
}

fn least_common_multiple(a: u64, b: u64) -> u64 {
    (a / greatest_common_divisor(a, b).max(1)).saturating_mul(b)
}

/// Experts are spread over the ranks of one pipeline stage.
fn expert_ranks(findings: &mut Findings<'_>, setup: &Setup) {
    let p = &setup.training.parallelism;
    if setup.training.model.moe.is_none() {
        return;
    }
    let stage = u64::from(setup.cluster.gpus) / u64::from(p.pipeline);
    let group = u64::from(p.expert) * u64::from(p.expert_tensor);
    if stage.is_multiple_of(group) {
        return;
    }
    let (_, named) = product_of(&[("expert", p.expert), ("expert_tensor", p.expert_tensor)]);
    let (field, limit) = if p.expert_tensor > 1 && stage.is_multiple_of(u64::from(p.expert)) {
        ("expert_tensor", stage / u64::from(p.expert))
    } else {
        ("expert", stage / u64::from(p.expert_tensor).max(1))
    };
    let value = if field == "expert" {
        p.expert
    } else {
        p.expert_tensor
    };
    let message = if group > stage {
        format!(
            "{named} needs {}, but a pipeline stage has only {stage}",
            counted(group, "rank")
        )
    } else {
        format!(
            "{named} does not divide the {} of a pipeline stage",
            counted(stage, "rank")
        )
    };
    let found = findings.at(&at(field), message).hint(format!(
        "{stage} = {} / {}; use {}",
        counted(setup.cluster.gpus, "GPU"),
        counted(p.pipeline, "stage"),
        either(&divisors_near(limit.max(1), value.into()))
    ));
    findings.report(found);
}

fn zero_group(findings: &mut Findings<'_>, t: &Training) {
    let p = &t.parallelism;
    let Some(group) = p.zero_group else { return };
    let ranks = u64::from(p.data) * u64::from(p.context);
    if !ranks.is_multiple_of(group.into()) {
        let found = findings
            .at(
                &at("zero_group"),
                format!("a ZeRO group of {group} does not divide the {ranks} data-parallel ranks"),
            )
            .hint(format!(
                "divisors near it: {}",
                either(&divisors_near(ranks, group.into()))
            ));
        findings.report(found);
    } else if p.zero == Zero::Stage0 {
        let found = findings
            .at(
                &at("zero_group"),
                "`zero_group` has nothing to shard: `zero` is 0",
            )
            .hint("use zero: 1, 2 or 3, or leave `zero_group` out");
        findings.report(found);
    }
}

/// The batch divides into micro-batches.
fn batch(findings: &mut Findings<'_>, t: &Training) -> bool {
    let data = u64::from(t.parallelism.data);
    let step = data.saturating_mul(t.micro_batch);
    let batch = t.global_batch;
    if batch.is_multiple_of(step) {
        return true;
    }
    let path = format!("{TRAINING}.global_batch");
    let per_micro = if t.micro_batch == 1 {
        String::new()
    } else {
        format!(" x micro_batch {}", t.micro_batch)
    };
    let found = findings
        .at(
            &path,
            format!(
                "a global batch of {batch} sequences does not divide by data {data}{per_micro}"
            ),
        )
        .label(format!("a multiple of {step}"))
        .hint(format!("nearest: {}", either(&multiples_near(step, batch))));
    let found = if t.micro_batch > 1 && batch.is_multiple_of(data) {
        let micro = divisors_near(batch / data, t.micro_batch);
        found.hint(format!("or a micro_batch of {}", either(&micro)))
    } else {
        found
    };
    findings.report(found);
    false
}

/// What a schedule needs of stages and micro-batches.
fn schedule(findings: &mut Findings<'_>, t: &Training) {
    let p = &t.parallelism;
    let stages = u64::from(p.pipeline);
    let micro_batches = t.micro_batches();
    let path = format!("{TRAINING}.schedule");
    let batch_path = format!("{TRAINING}.global_batch");
    let step = u64::from(p.data) * t.micro_batch;
    let name = match t.schedule {
        Schedule::Gpipe => "gpipe",
        Schedule::OneForwardOneBackward => "1f1b",
        Schedule::ZeroBubbleH1 => "zb-h1",
        Schedule::ZeroBubbleH2 => "zb-h2",
        Schedule::Dualpipe => "dualpipe",
    };
    let interleaves = matches!(t.schedule, Schedule::OneForwardOneBackward);
    if p.virtual_pipeline > 1 && !interleaves {
        let found = findings
            .at(
                &at("virtual_pipeline"),
                format!("{name} does not interleave model chunks"),
            )
            .hint("leave `virtual_pipeline` out, or use schedule: 1f1b");
        findings.report(found);
    } else if p.virtual_pipeline > 1 && stages == 1 {
        let found = findings
            .at(
                &at("virtual_pipeline"),
                "there is nothing to interleave: the pipeline has one stage",
            )
            .hint("leave `virtual_pipeline` out, or use more pipeline stages");
        findings.report(found);
    } else if p.virtual_pipeline > 1 && !micro_batches.is_multiple_of(stages) {
        let batches = multiples_near(step.saturating_mul(stages), t.global_batch);
        let found = findings
            .at(&batch_path, format!("{micro_batches} micro-batches do not divide into rounds of {stages}, which interleaving needs"))
            .label(format!("{} sequences / (data {} x micro_batch {}) = {micro_batches}", t.global_batch, p.data, t.micro_batch))
            .hint(format!("nearest global_batch that does: {}", either(&batches)));
        findings.report(found);
    }
    if t.schedule == Schedule::Dualpipe {
        if stages < 2 || !stages.is_multiple_of(2) {
            let found = findings
                .at(
                    &path,
                    format!(
                        "dualpipe folds the pipeline in two, which {stages} stage{} cannot",
                        if stages == 1 { "" } else { "s" }
                    ),
                )
                .hint("use an even number of pipeline stages, or schedule: 1f1b");
            findings.report(found);
        } else if micro_batches < 2 * stages || !micro_batches.is_multiple_of(2) {
            let unit = step.saturating_mul(2);
            let least = step.saturating_mul(2 * stages);
            let near: Vec<u64> = if t.global_batch < least {
                vec![least]
            } else {
                multiples_near(unit, t.global_batch)
            };
            let found = findings
                .at(&batch_path, format!("dualpipe needs an even number of micro-batches, at least {} for {stages} stages; these are {micro_batches}", 2 * stages))
                .label(format!("{} sequences / (data {} x micro_batch {})", t.global_batch, p.data, t.micro_batch))
                .hint(format!("nearest global_batch: {}", either(&near)));
            findings.report(found);
        }
    }
}

/// A step that can be simulated: not too much for one rank, and not for all of them together.
fn passes(findings: &mut Findings<'_>, setup: &Setup) {
    let t = &setup.training;
    let layers = t.model.layers.div_ceil(u64::from(t.parallelism.pipeline));
    let passes = t.micro_batches().saturating_mul(2).saturating_mul(layers);
    let smaller = "use a smaller global_batch, a larger micro_batch, or more data-parallel ranks";
    let batch = format!("{TRAINING}.global_batch");
    if passes > MOST_PASSES {
        let found = findings
            .at(
                &batch,
                format!("{} micro-batches through {layers} layers are {passes} passes for one rank to simulate", t.micro_batches()),
            )
            .label(format!("at most {MOST_PASSES}"))
            .hint(smaller);
        return findings.report(found);
    }
    let (path, ranks, why, hint) = simulated(setup);
    let rounds = u64::from(t.parallelism.context);
    let all = passes.saturating_mul(ranks).saturating_mul(rounds);
    if all <= MOST_PASSES_OF_ALL {
        return;
    }
    let exchanged = match rounds {
        1 => String::new(),
        rounds => format!(" x {rounds} parts of the context"),
    };
    let found = findings
        .at(
            &path,
            format!("{passes} passes of layers x {ranks} ranks{exchanged} are {all} to simulate"),
        )
        .label(format!("{why}; at most {MOST_PASSES_OF_ALL}"))
        .hint(hint.unwrap_or(smaller));
    findings.report(found);
}

/// Ranks that will be simulated, at most and in round numbers: where this is decided, how many, why,
/// and a better way than a smaller step.
fn simulated(setup: &Setup) -> (String, u64, &'static str, Option<&'static str>) {
    let gpus = u64::from(setup.cluster.gpus);
    if setup.fidelity == Fidelity::Full {
        return (
            "simulation.fidelity".to_owned(),
            gpus,
            "every rank is simulated",
            Some("use fidelity: folded, whose report is the same"),
        );
    }
    if !setup.jitter.is_none() {
        return (
            "simulation.jitter".to_owned(),
            gpus,
            "with jitter no rank is like another",
            None,
        );
    }
    let p = &setup.training.parallelism;
    let replica = [p.pipeline, p.tensor, p.context]
        .map(u64::from)
        .iter()
        .product::<u64>();
    let slow = setup.stragglers.len() as u64;
    let ranks = replica.saturating_mul(slow).min(gpus);
    if ranks > p.pipeline.into() {
        return (
            "simulation.stragglers".to_owned(),
            ranks,
            "each straggler sets its replica apart",
            Some("name fewer stragglers"),
        );
    }
    let batch = format!("{TRAINING}.global_batch");
    (batch, p.pipeline.into(), "each stage is simulated", None)
}
