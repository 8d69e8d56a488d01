//! What pictures show beyond the figures of a report: kernels, links, and who did what when.

use rackflow_plan::{CommKind, Facts, KernelFacts, KernelKind, PassKind};
use rackflow_simulator::{Record, TierBytes, Trace, TracedPass, TracedRank};
use rackflow_units::{Precision, SimTime};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Kernels of the step, and the ceilings that they run under.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Kernels {
    /// Bandwidth of one accelerator's memory by its data sheet, in bytes per second.
    pub memory_bytes_per_s: f64,
    /// Dense peaks of one accelerator by its data sheet, lowest first.
    pub peaks: Vec<FormatPeak>,
    /// Every kernel that differs in name, format or shape; the one that takes most time first.
    pub rows: Vec<Kernel>,
}

/// A dense peak.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct FormatPeak {
    /// Number format.
    pub format: String,
    /// FLOP/s of one accelerator.
    pub flops_per_s: f64,
}

/// All launches of one kernel in the step, over all GPUs. Times are those of the kernel alone on its
/// device, so they sum to less than the GPU-seconds of the step.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Kernel {
    /// The part of the step that it belongs to, such as "attention forward".
    pub name: String,
    /// `product`, `expert_product`, `attention` or `stream` (what only reads and writes memory).
    pub kind: String,
    /// Number format of its operands; null where nothing is multiplied.
    pub format: Option<String>,
    /// m x n x k of a product, queries x keys x heads of attention; empty for a stream.
    pub shape: String,
    /// It computes what was computed before.
    pub recomputation: bool,
    /// Launches.
    pub launches: f64,
    /// Tensor-core operations.
    pub flops: f64,
    /// Bytes read from and written to memory.
    pub bytes: f64,
    /// GPU-seconds.
    pub gpu_seconds: f64,
    /// The same as a fraction of all GPU-seconds of the step.
    pub fraction: f64,
}

/// How busy the links are, averaged over the step.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Links {
    /// Tiers that the cluster has, from the inside to the outside.
    pub tiers: Vec<LinkTier>,
    /// What is sent for which purpose, where anything is.
    pub traffic: Vec<TrafficOf>,
    /// The rack whose GPUs are drawn one by one: the one with the busiest GPU.
    pub rack: u64,
    /// GPUs that share a scale-up domain.
    pub gpus_per_domain: u64,
}

/// One tier of links. Shares are bytes sent over what the line rate could send in the step.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct LinkTier {
    /// `nvlink` (a GPU into its scale-up domain), `nic` (a GPU to its leaf), `leaf_up` (leaves to
    /// spines) or `pod_up` (pods to cores, or groups to each other).
    pub tier: String,
    /// Line rate of one GPU's share, one direction, in bytes per second.
    pub bytes_per_s: f64,
    /// Bytes that a GPU sends in the step, mean.
    pub bytes_per_gpu: f64,
    /// Share in use, mean over all GPUs.
    pub busy: f64,
    /// Share in use of the busiest rack.
    pub busy_most: f64,
    /// Share in use by rack.
    pub by_rack: Vec<f64>,
    /// Share in use by GPU of [`Links::rack`].
    pub by_gpu: Vec<f64>,
}

/// Bytes that a GPU sends in the step for one purpose, mean over all GPUs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct TrafficOf {
    /// `tp`, `cp`, `ep`, `pp` or `dp`.
    pub kind: String,
    /// Into the scale-up domain.
    pub nvlink: f64,
    /// Through the NICs.
    pub nic: f64,
    /// Of these, from leaves to spines.
    pub leaf_up: f64,
    /// Of these, from pods to cores.
    pub pod_up: f64,
}

/// What the first rank of each pipeline stage does when.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Timeline {
    /// Stages, first to last.
    pub stages: Vec<StageTimeline>,
}

/// Passes of one rank through its part of the model, in order. All lists are equally long.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct StageTimeline {
    /// Pipeline stage, counted from 0.
    pub stage: u64,
    /// The rank.
    pub rank: u64,
    /// One letter for each pass: F forward, B backward, I gradients of the inputs alone, W those of
    /// the weights, O a forward woven into a backward.
    pub passes: String,
    /// Micro-batch of each pass.
    pub micro_batch: Vec<u32>,
    /// Chunk of the stage of each pass.
    pub chunk: Vec<u32>,
    /// When each begins, in seconds.
    pub start_s: Vec<f64>,
    /// When each ends, in seconds.
    pub end_s: Vec<f64>,
}

/// More passes than this are not put into a report: nobody could tell them apart on a page.
const MOST_PASSES: usize = 20_000;

pub(crate) fn kernels(facts: &Facts, gpu_seconds: f64) -> Kernels {
    let accelerator = &facts.cluster.node.accelerator;
    let formats = [Precision::Bf16, Precision::Fp8, Precision::Fp4];
    let mut peaks: Vec<FormatPeak> = Vec::new();
    for format in formats {
        let flops_per_s = accelerator.peak.get(format).flops_per_sec();
        // A format that the accelerator lacks runs at the rate of the next wider one.
        if peaks
            .last()
            .is_none_or(|last| last.flops_per_s < flops_per_s)
        {
            peaks.push(FormatPeak {
                format: format.to_string(),
                flops_per_s,
            });
        }
    }
    let mut rows: Vec<Kernel> = facts
        .kernels
        .iter()
        .map(|kernel| row(kernel, gpu_seconds))
        .collect();
    rows.sort_by(|a, b| b.gpu_seconds.total_cmp(&a.gpu_seconds));
    Kernels {
        memory_bytes_per_s: accelerator.memory_bandwidth.as_f64(),
        peaks,
        rows,
    }
}

fn row(kernel: &KernelFacts, gpu_seconds: f64) -> Kernel {
    let [a, b, c] = kernel.shape;
    Kernel {
        name: kernel.label.to_owned(),
        kind: match kernel.kind {
            KernelKind::Product => "product",
            KernelKind::ExpertProduct => "expert_product",
            KernelKind::Attention => "attention",
            KernelKind::Stream => "stream",
        }
        .to_owned(),
        format: kernel.precision.map(|format| format.to_string()),
        shape: match kernel.kind {
            KernelKind::Stream => String::new(),
            _ => format!("{a} x {b} x {c}"),
        },
        recomputation: kernel.again,
        launches: kernel.launches,
        flops: kernel.flops,
        bytes: kernel.bytes,
        gpu_seconds: kernel.seconds,
        fraction: kernel.seconds / gpu_seconds,
    }
}

/// Four digits are more than a shade shows.
fn rounded(share: f64) -> f64 {
    (share * 1e4).round() / 1e4
}

/// A tier of links: its name, the line rate of a GPU's share where there is such a tier, and how much
/// of what a GPU sends enters it.
type Tier = (&'static str, Option<f64>, fn(&TierBytes) -> u64);

pub(crate) fn links(record: &Record) -> Links {
    let facts = &record.facts;
    let gpus = f64::from(facts.cluster.gpus);
    let step = record.step_time.as_secs_f64();
    let sent: Vec<TierBytes> = record.classes.iter().map(|c| c.traffic.total()).collect();
    let node = &facts.cluster.node;
    let outside = facts.cluster.gpus > node.gpus;
    let tiers: [Tier; 4] = [
        (
            "nvlink",
            (node.scale_up.domain > 1).then(|| node.scale_up.bandwidth.as_f64()),
            |bytes| bytes.nvlink,
        ),
        ("nic", outside.then(|| facts.nic_share.as_f64()), |bytes| {
            bytes.nic
        }),
        (
            "leaf_up",
            facts
                .uplinks
                .leaf
                .filter(|_| outside)
                .map(|rate| rate.as_f64()),
            |bytes| bytes.leaf_up,
        ),
        (
            "pod_up",
            facts.uplinks.pod.map(|rate| rate.as_f64()),
            |bytes| bytes.pod_up,
        ),
    ];
    let busiest = busiest_rack(record, &sent);
    let tier = |(name, rate, bytes): &Tier| {
        let rate = rate.filter(|rate| *rate > 0.0)?;
        let of_gpu = |gpu: u32| bytes(&sent[record.class_of_gpu[gpu as usize] as usize]);
        let share = |bytes: f64| rounded(bytes / (rate * step));
        let of_rack = |rack: &std::ops::Range<u32>| {
            let sum: u128 = rack.clone().map(|gpu| u128::from(of_gpu(gpu))).sum();
            share(sum as f64 / f64::from(rack.end - rack.start).max(1.0))
        };
        let classes = record.classes.iter().zip(&sent);
        let all: u128 = classes
            .map(|(class, sent)| u128::from(class.ranks) * u128::from(bytes(sent)))
            .sum();
        let by_rack: Vec<f64> = facts.racks.iter().map(of_rack).collect();
        let drawn = facts.racks.get(busiest).cloned().unwrap_or(0..0);
        Some(LinkTier {
            tier: (*name).to_owned(),
            bytes_per_s: rate,
            bytes_per_gpu: all as f64 / gpus,
            busy: share(all as f64 / gpus),
            busy_most: by_rack.iter().copied().fold(0.0, f64::max),
            by_rack,
            by_gpu: drawn.map(|gpu| share(of_gpu(gpu) as f64)).collect(),
        })
    };
    Links {
        tiers: tiers.iter().filter_map(tier).collect(),
        traffic: CommKind::ALL
            .into_iter()
            .filter_map(|kind| traffic_of(record, kind))
            .collect(),
        rack: busiest as u64,
        gpus_per_domain: u64::from(node.scale_up.domain),
    }
}

/// The first rack with the GPU that sends most through its NIC, or over NVLink where none does.
fn busiest_rack(record: &Record, sent: &[TierBytes]) -> usize {
    let weight = |rack: &std::ops::Range<u32>| {
        let classes = &record.class_of_gpu[rack.start as usize..rack.end as usize];
        let most = |pick: fn(&TierBytes) -> u64| {
            let bytes = classes.iter().map(|class| pick(&sent[*class as usize]));
            bytes.max().unwrap_or(0)
        };
        (most(|bytes| bytes.nic), most(|bytes| bytes.nvlink))
    };
    let racks = record.facts.racks.iter().enumerate().rev();
    racks
        .max_by_key(|(_, rack)| weight(rack))
        .map_or(0, |(id, _)| id)
}

fn traffic_of(record: &Record, kind: CommKind) -> Option<TrafficOf> {
    let gpus = f64::from(record.facts.cluster.gpus);
    let mean = |pick: fn(&TierBytes) -> u64| {
        let classes = record.classes.iter();
        let sum: u128 = classes
            .map(|class| {
                u128::from(class.ranks) * u128::from(pick(&class.traffic.0[kind as usize]))
            })
            .sum();
        sum as f64 / gpus
    };
    let found = TrafficOf {
        kind: kind.name().to_lowercase(),
        nvlink: mean(|bytes| bytes.nvlink),
        nic: mean(|bytes| bytes.nic),
        leaf_up: mean(|bytes| bytes.leaf_up),
        pod_up: mean(|bytes| bytes.pod_up),
    };
    (found.nvlink + found.nic > 0.0).then_some(found)
}

/// What a trace of one rank per stage shows; nothing where it is too much for a page.
pub(crate) fn timeline(trace: &Trace) -> Option<Timeline> {
    let passes: usize = trace.ranks.iter().map(|rank| rank.passes.len()).sum();
    if passes == 0 || passes > MOST_PASSES {
        return None;
    }
    Some(Timeline {
        stages: trace.ranks.iter().map(stage).collect(),
    })
}

fn stage(rank: &TracedRank) -> StageTimeline {
    let letter = |pass: &TracedPass| match pass.kind {
        PassKind::Forward => 'F',
        PassKind::Backward => 'B',
        PassKind::InputGradient => 'I',
        PassKind::WeightGradient => 'W',
        PassKind::Overlapped => 'O',
    };
    // Nanoseconds are enough for a page, and shorter to write.
    let seconds = |time: SimTime| (time.as_picos() / 1000) as f64 / 1e9;
    let all = || rank.passes.iter();
    StageTimeline {
        stage: u64::from(rank.stage),
        rank: u64::from(rank.rank),
        passes: all().map(letter).collect(),
        micro_batch: all().map(|pass| pass.micro_batch).collect(),
        chunk: all().map(|pass| pass.chunk).collect(),
        start_s: all().map(|pass| seconds(pass.start)).collect(),
        end_s: all().map(|pass| seconds(pass.end)).collect(),
    }
}
