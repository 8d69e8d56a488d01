//! A little more of one resource: what elasticities are measured with.
//!
//! [`Resource::more`] returns the same setup with one thing larger (or, where less is better, with
//! one thing smaller) by a small factor. Simulating both says how throughput answers.

use crate::setup::Setup;
use rackflow_topology::Cluster;
use rackflow_units::{Bandwidth, SimDuration};
use rackflow_workload::{CudaGraphs, SoftwareStack};

/// By how much a resource grows, where it can grow by any amount.
pub const STEP: f64 = 1.01;
/// The same of a service: more, since queues answer in jumps.
pub const SERVING_STEP: f64 = 1.05;

/// What there can be more of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Resource {
    /// Matrix FLOP/s of the tensor cores, in every number format.
    TensorFlops,
    /// FLOP/s outside the tensor cores.
    VectorFlops,
    /// Exponentials per second.
    Exponentials,
    /// Memory bandwidth.
    MemoryBandwidth,
    /// Memory capacity.
    MemoryCapacity,
    /// Bandwidth of a GPU into its NVLink domain.
    NvLink,
    /// Line rate of the NICs, and of the cables between switches with them.
    Nic,
    /// Latency of NVLink, NICs and switches, and times of a collective that depend on no size.
    Latency,
    /// SMs left to computation while communication runs.
    CommunicationSms,
    /// Time of the host to launch kernels and to keep its books.
    Launch,
    /// Sequences per step.
    Batch,
    /// Clock of the SMs beside the tensor cores, by which tiles begin and end and caches deliver.
    Clock,
    /// Of a replayed trace: kernels that take their recorded time, faster whatever held them.
    RecordedKernels,
    /// Of a service: times inside kernels that depend on no size.
    KernelLatency,
    /// Of a service: room for the KV cache.
    KvCapacity,
    /// Of a service: sequences that run at once, at most.
    Sequences,
    /// Of a service: tokens of one step, at most.
    StepTokens,
    /// Bandwidth between GPU and host: for activations and optimizer states in the host's memory, for caches that
    /// are swapped out, and what a trace loads from there.
    HostLink,
    /// Of a service: rates and latencies of the tiers of the KV store.
    Store,
    /// Of a service: time of the server in front of the engine.
    Server,
}

impl Resource {
    /// Those of a training run, in the order in which they are told.
    pub const OF_TRAINING: [Self; 13] = [
        Self::TensorFlops,
        Self::VectorFlops,
        Self::Exponentials,
        Self::MemoryBandwidth,
        Self::MemoryCapacity,
        Self::NvLink,
        Self::Nic,
        Self::Latency,
        Self::CommunicationSms,
        Self::Clock,
        Self::Launch,
        Self::HostLink,
        Self::Batch,
    ];

    /// Those of jobs that share a cluster, in the order in which they are told.
    pub const OF_JOBS: [Self; 19] = [
        Self::TensorFlops,
        Self::VectorFlops,
        Self::Exponentials,
        Self::MemoryBandwidth,
        Self::MemoryCapacity,
        Self::KvCapacity,
        Self::NvLink,
        Self::Nic,
        Self::Latency,
        Self::CommunicationSms,
        Self::Clock,
        Self::KernelLatency,
        Self::Launch,
        Self::Batch,
        Self::Sequences,
        Self::StepTokens,
        Self::HostLink,
        Self::Store,
        Self::Server,
    ];

    /// Those of a replayed trace, in the order in which they are told.
    pub const OF_REPLAY: [Self; 14] = [
        Self::RecordedKernels,
        Self::TensorFlops,
        Self::VectorFlops,
        Self::Exponentials,
        Self::MemoryBandwidth,
        Self::MemoryCapacity,
        Self::NvLink,
        Self::Nic,
        Self::Latency,
        Self::CommunicationSms,
        Self::Clock,
        Self::Launch,
        Self::HostLink,
        Self::Batch,
    ];

    /// Those of a service, in the order in which they are told.
    pub const OF_SERVING: [Self; 18] = [
        Self::TensorFlops,
        Self::VectorFlops,
        Self::Exponentials,
        Self::MemoryBandwidth,
        Self::MemoryCapacity,
        Self::KvCapacity,
        Self::NvLink,
        Self::Nic,
        Self::Latency,
        Self::CommunicationSms,
        Self::Clock,
        Self::KernelLatency,
        Self::Launch,
        Self::Sequences,
        Self::StepTokens,
        Self::HostLink,
        Self::Store,
        Self::Server,
    ];

    /// Its name in JSON documents.
    pub const fn key(self) -> &'static str {
        match self {
            Self::TensorFlops => "tensor_flops",
            Self::VectorFlops => "vector_flops",
            Self::Exponentials => "exponentials",
            Self::MemoryBandwidth => "memory_bandwidth",
            Self::MemoryCapacity => "memory_capacity",
            Self::NvLink => "nvlink",
            Self::Nic => "nic",
            Self::Latency => "latency",
            Self::CommunicationSms => "communication_sms",
            Self::Launch => "launch",
            Self::Batch => "batch",
            Self::Clock => "clock",
            Self::RecordedKernels => "recorded_kernels",
            Self::KernelLatency => "kernel_latency",
            Self::KvCapacity => "kv_capacity",
            Self::Sequences => "max_num_seqs",
            Self::StepTokens => "max_num_batched_tokens",
            Self::HostLink => "host_link",
            Self::Store => "kv_store",
            Self::Server => "request_overhead",
        }
    }

    /// What one per cent more of it means, in words.
    pub const fn label(self) -> &'static str {
        match self {
            Self::TensorFlops => "tensor FLOP/s",
            Self::VectorFlops => "vector FLOP/s",
            Self::Exponentials => "exponentials/s",
            Self::MemoryBandwidth => "memory bandwidth",
            Self::MemoryCapacity => "memory capacity",
            Self::NvLink => "NVLink bandwidth",
            Self::Nic => "NIC bandwidth",
            Self::Latency => "lower network latency",
            Self::CommunicationSms => "fewer SMs held by communication",
            Self::Launch => "shorter kernel launches",
            Self::Batch => "a larger batch",
            Self::Clock => "SM clock, FLOP/s apart",
            Self::RecordedKernels => "speed of kernels as recorded",
            Self::KernelLatency => "shorter latency in kernels",
            Self::KvCapacity => "room for the KV cache",
            Self::Sequences => "sequences at once (limit)",
            Self::StepTokens => "tokens per step (limit)",
            Self::HostLink => "bandwidth to the host",
            Self::Store => "a faster KV store",
            Self::Server => "a faster server in front",
        }
    }

    /// What a run is that this resource holds back.
    pub const fn bound_by(self) -> &'static str {
        match self {
            Self::TensorFlops => "the tensor cores",
            Self::VectorFlops => "arithmetic outside the tensor cores",
            Self::Exponentials => "the exponential unit",
            Self::MemoryBandwidth => "memory bandwidth",
            Self::MemoryCapacity => "memory capacity",
            Self::NvLink => "NVLink",
            Self::Nic => "the NICs",
            Self::Latency => "network latency",
            Self::CommunicationSms => "the SMs that communication holds",
            Self::Launch => "the host that launches kernels",
            Self::Batch => "the size of the batch",
            Self::Clock => "the clock of the SMs",
            Self::RecordedKernels => "kernels as recorded",
            Self::KernelLatency => "latencies inside kernels",
            Self::KvCapacity => "the room for the KV cache",
            Self::Sequences => "the limit on sequences at once",
            Self::StepTokens => "the limit on tokens per step",
            Self::HostLink => "the link to the host",
            Self::Store => "the KV store",
            Self::Server => "the server in front of the engine",
        }
    }

    /// The setup with a little more of this resource, and how many times as much that is. `None`
    /// where the setup has no such thing to give: one node has no NIC traffic, a stack that is
    /// launched by graph has no launches.
    pub fn more(self, setup: &Setup) -> Option<(Setup, f64)> {
        self.more_by(setup, STEP)
    }

    /// The same with `step` times as much, where the resource can grow by any amount. Of a job that
    /// shares a cluster the whole cluster grows: give every job of it as much more.
    pub fn more_by(self, setup: &Setup, step: f64) -> Option<(Setup, f64)> {
        let mut more = setup.clone();
        match self {
            Self::CommunicationSms => return fewer_sms(more),
            Self::Launch => {
                let stack = &mut more.training.stack;
                if stack.cuda_graphs == CudaGraphs::Full && stack.step_overhead == SimDuration::ZERO
                {
                    return None;
                }
                let times = [
                    Some(&mut stack.launch),
                    stack.linear_launch.as_mut(),
                    stack.quantized_linear_launch.as_mut(),
                    Some(&mut stack.mixture_launch),
                    Some(&mut stack.checkpoint_launch),
                    Some(&mut stack.step_overhead),
                ];
                for time in times.into_iter().flatten() {
                    shorter(time, step);
                }
            }
            // Only what lies in the host's memory passes it.
            Self::HostLink if !offloads(&more.training.stack) => return None,
            Self::Batch => {
                // One round of the pipeline more: every schedule takes whole rounds.
                let before = more.training.micro_batches();
                let training = &mut more.training;
                let round = u64::from(training.parallelism.pipeline);
                training.global_batch +=
                    round * u64::from(training.parallelism.data) * training.micro_batch;
                let factor = (before + round) as f64 / before.max(1) as f64;
                return Some((more, factor));
            }
            _ => {
                let seats = more.seats.as_mut().map(|seats| &mut seats.cluster);
                let clusters = std::iter::once(&mut more.cluster).chain(seats);
                let factor = self.of_clusters(clusters, step)?;
                return Some((more, factor));
            }
        }
        Some((more, step))
    }

    /// [`Resource::of_hardware`] of each of these: how many times as much the one that gets most then has.
    pub(crate) fn of_clusters<'c>(
        self,
        clusters: impl Iterator<Item = &'c mut Cluster>,
        step: f64,
    ) -> Option<f64> {
        clusters
            .filter_map(|cluster| self.of_hardware(cluster, step))
            .reduce(f64::max)
    }

    /// Gives a cluster `step` times as much of this, where it can be given by any amount: how many
    /// times as much it then has. `None` where the cluster has no such thing, or where this is no part
    /// of the hardware.
    pub(crate) fn of_hardware(self, cluster: &mut Cluster, step: f64) -> Option<f64> {
        match self {
            Self::TensorFlops => cluster.for_each_node(|node| {
                let peak = &mut node.accelerator.peak;
                peak.bf16 = peak.bf16 * step;
                peak.fp8 = peak.fp8.map(|rate| rate * step);
                peak.fp4 = peak.fp4.map(|rate| rate * step);
            }),
            Self::VectorFlops => cluster.for_each_node(|node| {
                node.accelerator.vector = node.accelerator.vector * step;
            }),
            Self::Exponentials => {
                // The unit grows by whole steps; of several kinds, by the sum over their GPUs.
                let rate = |cluster: &Cluster| -> u64 {
                    let kinds = cluster.kinds().into_iter();
                    kinds
                        .map(|kind| {
                            let each = kind.node.accelerator.exponentials_per_sm_clock;
                            u64::from(each) * u64::from(kind.gpus)
                        })
                        .sum()
                };
                let before = rate(cluster);
                cluster.for_each_node(|node| node.accelerator.exponentials_per_sm_clock += 1);
                return Some(rate(cluster) as f64 / before.max(1) as f64);
            }
            Self::HostLink => {
                cluster.for_each_node(|node| wider(&mut node.accelerator.host_bandwidth, step));
            }
            Self::Clock => cluster.for_each_node(|node| {
                node.accelerator.clock = node.accelerator.clock * step;
            }),
            Self::MemoryBandwidth => {
                cluster.for_each_node(|node| wider(&mut node.accelerator.memory_bandwidth, step));
            }
            Self::MemoryCapacity => cluster.for_each_node(|node| {
                let larger = (node.accelerator.memory.as_f64() * step) as u64;
                node.accelerator.memory = rackflow_units::Bytes::new(larger);
            }),
            Self::NvLink => {
                if cluster.nodes().all(|node| node.scale_up.domain < 2) {
                    return None;
                }
                cluster.for_each_node(|node| wider(&mut node.scale_up.bandwidth, step));
            }
            Self::Nic => {
                if cluster.gpus <= cluster.node.gpus {
                    return None;
                }
                cluster.for_each_node(|node| wider(&mut node.nic.rate, step));
                if let Some(link) = cluster.fabric.link_mut() {
                    wider(link, step);
                }
            }
            Self::Latency => {
                cluster.for_each_node(|node| {
                    shorter(&mut node.scale_up.latency, step);
                    shorter(&mut node.scale_up.collective_base, step);
                    shorter(&mut node.scale_up.in_switch_fill, step);
                    if let Some(hand_on) = &mut node.scale_up.hand_on {
                        shorter(hand_on, step);
                    }
                    shorter(&mut node.nic.latency, step);
                });
                shorter(cluster.fabric.hop_mut(), step);
            }
            _ => return None,
        }
        Some(step)
    }
}

/// Whether activations or optimizer states lie in the host's memory.
fn offloads(stack: &SoftwareStack) -> bool {
    !stack.activation_offload.inputs.is_empty() || stack.optimizer_offload > 0.0
}

/// One SM fewer for each kind of communication that holds any.
fn fewer_sms(mut setup: Setup) -> Option<(Setup, f64)> {
    let has_experts = setup.training.model.moe.is_some();
    let stack = &mut setup.training.stack;
    let before = stack.most_held_sms(has_experts);
    stack.communication_sms = stack.communication_sms.saturating_sub(1);
    stack.dispatch_sms = stack.dispatch_sms.saturating_sub(1);
    let after = stack.most_held_sms(has_experts);
    (after > 0 && after < before).then(|| (setup, f64::from(before) / f64::from(after)))
}

pub(crate) fn wider(rate: &mut Bandwidth, step: f64) {
    *rate = rate.scaled(step);
}

pub(crate) fn shorter(time: &mut SimDuration, step: f64) {
    *time = SimDuration::from_picos((time.as_picos() as f64 / step).round() as u64);
}
