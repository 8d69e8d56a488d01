//! Which changes would help most: the largest losses that somebody can do something about.
//!
//! Losses are grouped by what one change attacks, so that all levels of one kind of communication
//! stand together. A group is bounded by what it takes: were it gone altogether, throughput would
//! rise by f / (1 - f). That is an upper bound, since what is removed may uncover something else.

use crate::causes::{explain, key};
use crate::format::{count, number};
use crate::report::Change;
use crate::summarize::fraction;
use rackflow_plan::{Accounts, Cause, CommKind, Facts, OtherSegments};
use rackflow_topology::Level;
use rackflow_units::{SimDuration, counted};
use rackflow_workload::{
    AllocatorPolicy, AttentionKernel, CudaGraphs, Recompute, Routing, Schedule, Zero,
};

/// Changes offered at most.
const LIMIT: usize = 3;

/// Groups below this share of the GPU-seconds are not worth anybody's time.
const SMALLEST: f64 = 0.002;

/// What one change attacks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Target {
    One(Cause),
    Exposed(CommKind),
}

impl Target {
    pub fn all() -> impl Iterator<Item = Self> {
        let single = Cause::all()
            .filter(|cause| !matches!(cause, Cause::Exposed(..)))
            .map(Self::One);
        single.chain(CommKind::ALL.into_iter().map(Self::Exposed))
    }

    pub fn causes(self) -> Vec<Cause> {
        match self {
            Self::One(cause) => vec![cause],
            Self::Exposed(kind) => Cause::all()
                .filter(|cause| matches!(cause, Cause::Exposed(of, _) if *of == kind))
                .collect(),
        }
    }

    pub fn key(self) -> String {
        match self {
            Self::One(cause) => key(cause),
            Self::Exposed(kind) => format!("exposed_{}", kind.name().to_lowercase()),
        }
    }

    pub fn label(self) -> String {
        match self {
            Self::One(cause) => explain(cause).label,
            Self::Exposed(kind) => format!("{} wait", kind.name()),
        }
    }
}

/// The changes that would help most, best first.
pub(crate) fn changes(facts: &Facts, total: &Accounts) -> Vec<Change> {
    let mut found: Vec<Change> = Target::all()
        .filter_map(|target| {
            let fraction = fraction(total, target.causes());
            if fraction < SMALLEST {
                return None;
            }
            Some(Change {
                cause: target.key(),
                label: target.label(),
                fraction,
                gain_at_most: fraction / (1.0 - fraction),
                change: lever(target, facts, total)?,
            })
        })
        .collect();
    found.sort_by(|a, b| b.fraction.total_cmp(&a.fraction));
    found.truncate(LIMIT);
    found
}

/// What to do about `target` in this plan; nothing where the plan has no say.
fn lever(target: Target, facts: &Facts, total: &Accounts) -> Option<String> {
    match target {
        Target::Exposed(kind) => Some(communication(kind, facts, total)),
        Target::One(cause) => match cause {
            // Useful work is no loss, and clocks are not the plan's to change.
            Cause::UsefulMath | Cause::SustainedRate | Cause::Exposed(..) => None,
            Cause::WiderPrecision => wider(facts),
            Cause::Shape => Some(shape(facts)),
            Cause::MemoryBound => Some(memory_bound(facts)),
            Cause::ExponentBound => Some(exponent(facts)),
            Cause::Launch => Some(launch(facts)),
            Cause::Recomputation => Some(recomputation(facts)),
            Cause::Contention => Some(format!(
                "Let communication hold fewer SMs: collectives take {} and expert dispatch {} of {} here; copy \
                 engines or in-switch reduction take none.",
                facts.training.stack.communication_sms,
                facts.training.stack.dispatch_sms,
                facts.cluster.node.accelerator.sms
            )),
            Cause::Offload => Some(
                "Keep more activations on the GPU: offload fewer inputs or a smaller fraction of the layers, or recompute what is cheap."
                    .into(),
            ),
            Cause::Allocator => Some(allocator(facts)),
            Cause::Bubble => Some(bubble(facts)),
            Cause::Imbalance => Some(imbalance(facts)),
            Cause::Straggler if facts.cluster.is_mixed() => Some(
                "Give the slower kind pipeline stages of its own, with fewer layers, so that nobody waits for it at every collective."
                    .into(),
            ),
            Cause::Straggler => {
                Some("Find and replace the slow device: every other rank waits for it.".into())
            }
            Cause::Checkpoint => Some(
                "Write checkpoints asynchronously, to host memory first, or less often.".into(),
            ),
            Cause::LostWork => {
                Some("Checkpoint more often, and keep spares so that a restart is short.".into())
            }
            Cause::Idle => Some(
                "Give the idle GPUs work: the plan uses fewer ranks than the cluster has.".into(),
            ),
        },
    }
}

fn wider(facts: &Facts) -> Option<String> {
    (facts.peak_native.flops_per_sec() > facts.peak_bf16.flops_per_sec()).then(|| {
        format!(
            "Attention, logits and router stay in bf16 while the linear layers run in {}: an {} attention kernel \
             would halve the largest of them, if the training recipe bears it.",
            facts.native,
            if facts.native.bits() == 4 { "fp8 or fp4" } else { "fp8" }
        )
    })
}

fn shape(facts: &Facts) -> String {
    let training = &facts.training;
    let parallelism = &training.parallelism;
    if training.model.moe.is_some() && !training.stack.grouped_gemm {
        return "Run all experts of a rank in one grouped GEMM: one by one they are too small for the GPU.".into();
    }
    let mut ways = Vec::new();
    if parallelism.tensor > 1 {
        ways.push(format!(
            "less tensor parallelism than {} (it cuts every matrix)",
            parallelism.tensor
        ));
    }
    if training.model.moe.is_some() && parallelism.expert > 1 {
        ways.push(format!(
            "more tokens per expert (EP {} now)",
            parallelism.expert
        ));
    }
    ways.push(format!(
        "micro-batches of more than {}",
        counted(training.micro_batch, "sequence")
    ));
    format!("Make the matrices larger: {}.", ways.join(", or "))
}

fn memory_bound(facts: &Facts) -> String {
    let stack = &facts.training.stack;
    let unfused: Vec<&str> = [
        (stack.fused_norms, "norms"),
        (stack.fused_activation, "the activation function"),
        (stack.fused_rope, "rotary embedding"),
        (stack.fused_cross_entropy, "cross-entropy"),
        (
            stack.fused_quantization || facts.native.bits() > 8,
            "quantisation",
        ),
        (
            stack.fused_router || facts.training.model.moe.is_none(),
            "the router",
        ),
        (
            stack.fused_permutation
                || facts.training.model.moe.is_none()
                || facts.training.relays_tokens(),
            "the permutation of tokens",
        ),
        (stack.attention != AttentionKernel::Unfused, "attention"),
    ]
    .into_iter()
    .filter_map(|(fused, name)| (!fused).then_some(name))
    .collect();
    let tensor = &facts.training.parallelism;
    if !unfused.is_empty() {
        format!(
            "Fuse what {} runs as separate kernels: {}.",
            stack.name,
            unfused.join(", ")
        )
    } else if tensor.tensor > 1 && !tensor.sequence_parallel {
        "Turn on sequence parallelism: every tensor-parallel rank computes all norms and residuals now.".into()
    } else {
        "The stack fuses what it can; fewer bytes need narrower activations, or a GPU with more memory bandwidth."
            .into()
    }
}

fn exponent(facts: &Facts) -> String {
    match facts.training.stack.attention {
        AttentionKernel::Best | AttentionKernel::Cudnn919 => {
            "Attention is at the limit of the exponent units: a GPU with more of them (B300 has twice those of B200)."
                .into()
        }
        _ => "Use an attention kernel that hides exponentials behind matrix products (FlashAttention 3 or later)."
            .into(),
    }
}

fn launch(facts: &Facts) -> String {
    let stack = &facts.training.stack;
    match stack.cuda_graphs {
        CudaGraphs::None => {
            format!("Launch by CUDA graph: {} launches every kernel from the host, {} each.", stack.name, stack.launch)
        }
        CudaGraphs::Partial => {
            "Capture the whole iteration in a CUDA graph; expert layers are still launched by the host.".into()
        }
        CudaGraphs::Full => format!(
            "Kernels are too short even for a CUDA graph: micro-batches of more than {}, or more fusion.",
            counted(facts.training.micro_batch, "sequence")
        ),
    }
}

fn recomputation(facts: &Facts) -> String {
    let fullest = facts
        .stages
        .iter()
        .map(|stage| stage.memory.total())
        .max()
        .unwrap_or_default();
    let free = facts.memory_capacity.saturating_sub(fullest);
    let less = match &facts.training.recompute {
        Recompute::Full | Recompute::FullLayers(_) => {
            "Recompute named activations instead of whole layers"
        }
        _ => "Recompute less",
    };
    if free.as_f64() > 0.1 * facts.memory_capacity.as_f64() {
        return format!(
            "{less}: {free} of {} are free on the fullest GPU.",
            facts.memory_capacity
        );
    }
    let sharded = facts.training.parallelism.zero >= Zero::Stage2;
    let room = if sharded || facts.training.parallelism.data == 1 {
        "more pipeline stages or a GPU with more memory make"
    } else {
        "a higher ZeRO stage, more pipeline stages or a GPU with more memory make"
    };
    format!("{less}; only {free} are free on the fullest GPU, so {room} room first.")
}

/// "wait 500 ms in place of 2 s".
pub(crate) fn wait_less(gain: &OtherSegments) -> String {
    match (gain.gains_place, gain.then) {
        (true, SimDuration::ZERO) => "have place and not wait".to_owned(),
        (true, then) => format!("have place and wait {then}"),
        (false, SimDuration::ZERO) => "not wait".to_owned(),
        (false, then) => format!("wait {then} in place of {}", gain.now),
    }
}

/// The allocator as a stack names it.
pub(crate) fn name_of(allocator: AllocatorPolicy) -> &'static str {
    match allocator {
        AllocatorPolicy::Native => "native",
        AllocatorPolicy::ExpandableSegments => "expandable_segments",
        AllocatorPolicy::Preallocated => "preallocated",
    }
}

fn allocator(facts: &Facts) -> String {
    let other = match facts.gain_of_other_segments() {
        Some(gain) => {
            let set = match gain.allocator {
                AllocatorPolicy::ExpandableSegments => {
                    "Let segments grow (allocator: expandable_segments, which is \
                     PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True)"
                }
                _ => {
                    "Give tensors segments of their own (allocator: native, which is \
                     PYTORCH_CUDA_ALLOC_CONF=expandable_segments:False)"
                }
            };
            format!(
                "{set}: the fullest stage would {}. Or leave",
                wait_less(&gain)
            )
        }
        None => "Leave".to_owned(),
    };
    format!(
        "{other} more memory free: a smaller micro-batch, recomputation, or more ranks to shard over."
    )
}

fn bubble(facts: &Facts) -> String {
    let training = &facts.training;
    let parallelism = &training.parallelism;
    let batches = facts.micro_batches;
    let stages = parallelism.pipeline;
    let more = if parallelism.data > 1 {
        format!(
            "more micro-batches per rank ({batches} for {stages} stages): a larger batch, or less data parallelism \
             than {}",
            parallelism.data
        )
    } else {
        format!("more micro-batches per rank ({batches} for {stages} stages): a larger batch")
    };
    let layers_per_stage = training.model.layers / u64::from(stages);
    match training.schedule {
        Schedule::Gpipe => format!("Schedule 1F1B in place of GPipe leaves memory for {more}."),
        Schedule::OneForwardOneBackward
            if parallelism.virtual_pipeline == 1 && layers_per_stage > 1 =>
        {
            format!(
                "Interleave the pipeline (virtual_pipeline: 2 halves the bubble), use a zero-bubble schedule, or {more}."
            )
        }
        Schedule::OneForwardOneBackward => {
            format!("Use a zero-bubble schedule (zb-h1), or {more}.")
        }
        Schedule::ZeroBubbleH1 => format!("Spend memory on zb-h2, or {more}."),
        Schedule::ZeroBubbleH2 | Schedule::Dualpipe => {
            format!(
                "Level the layers of the stages (even ones leave this schedule next to no bubble), or {more}."
            )
        }
    }
}

fn imbalance(facts: &Facts) -> String {
    match facts.training.routing {
        Routing::Lognormal { sigma } => format!(
            "Balance the experts: loads spread with sigma {} over EP {}; replicate hot experts, or let fewer ranks \
             share more of them.",
            number(sigma, 2),
            facts.training.parallelism.expert
        ),
        Routing::Balanced => "Level the work of the ranks: their layers or experts differ.".into(),
    }
}

fn communication(kind: CommKind, facts: &Facts, total: &Accounts) -> String {
    let parallelism = &facts.training.parallelism;
    let overlap = &facts.training.stack.overlap;
    let stack = &facts.training.stack.name;
    let domain = facts.cluster.node.scale_up.domain;
    let in_domain = counted(domain, "GPU");
    let level = worst_level(kind, total);
    let outside = level > Level::NvLink;
    match kind {
        CommKind::Tensor if outside => {
            format!("Keep tensor parallelism ({}) inside one NVLink domain of {in_domain}.", parallelism.tensor)
        }
        CommKind::Tensor if !parallelism.sequence_parallel => {
            "Turn on sequence parallelism, and let tensor-parallel collectives run beside their GEMMs.".into()
        }
        CommKind::Tensor if !overlap.tensor => format!(
            "Cut tensor-parallel collectives in chunks that run beside their GEMMs ({stack} does not), or use less \
             than TP {}.",
            parallelism.tensor
        ),
        CommKind::Tensor => format!("Use less tensor parallelism than {}, if memory allows.", parallelism.tensor),
        CommKind::Context => format!(
            "Use less context parallelism than {}, or keep its ranks inside one NVLink domain of {in_domain}.",
            parallelism.context
        ),
        CommKind::Expert if outside && parallelism.expert > domain => format!(
            "EP {} reaches beyond an NVLink domain of {in_domain}: a rack-scale domain keeps dispatch off the {level} \
             switches{}.",
            parallelism.expert,
            if overlap.expert { "" } else { "; running it beside another micro-batch hides it" }
        ),
        CommKind::Expert if outside => format!(
            "Place the {} expert-parallel ranks inside one NVLink domain of {in_domain}.",
            parallelism.expert
        ),
        CommKind::Expert if !overlap.expert => {
            format!("Run dispatch and combine beside another micro-batch's computation ({stack} does not).")
        }
        CommKind::Expert => format!(
            "Dispatch runs beside computation already; larger micro-batches, fewer bytes per token or less expert \
             parallelism than {} leave less of it uncovered.",
            parallelism.expert
        ),
        CommKind::Pipeline if !overlap.pipeline => {
            format!("Send activations asynchronously between stages ({stack} does not).")
        }
        CommKind::Pipeline => {
            format!("Use fewer pipeline stages than {}, or fewer chunks per stage.", parallelism.pipeline)
        }
        CommKind::Data if !overlap.gradient_reduce => {
            format!("Reduce gradients while the backward pass still runs ({stack} does not).")
        }
        CommKind::Data if !overlap.parameter_gather && parallelism.zero != Zero::Stage0 => {
            format!("Gather parameters beside the forward pass ({stack} does not).")
        }
        CommKind::Data if parallelism.zero == Zero::Stage3 => format!(
            "Shard weights over fewer ranks (zero_group) or use ZeRO 1 or 2: {} data-parallel ranks gather them anew \
             for every micro-batch.",
            parallelism.data
        ),
        CommKind::Data => format!(
            "Take more tokens per step than {} to hide the gradients of {} data-parallel ranks, or keep gradients in \
             fewer bytes.",
            count(facts.training.tokens() as f64),
            parallelism.data
        ),
    }
}

/// The level at which most of the waiting for `kind` is booked.
fn worst_level(kind: CommKind, total: &Accounts) -> Level {
    let levels = [Level::NvLink, Level::Leaf, Level::Spine, Level::Core];
    levels
        .into_iter()
        .max_by_key(|level| total.picos(Cause::Exposed(kind, *level)))
        .unwrap_or(Level::NvLink)
}
