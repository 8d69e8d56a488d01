//! A scenario as meant: every name looked up, every default filled in, no strings to parse.

use rackflow_topology::Cluster;
use rackflow_workload::Training;

/// Which ranks are simulated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fidelity {
    /// Ranks that cannot differ are simulated once. The report is identical.
    Folded,
    /// Every rank is simulated.
    Full,
}

/// Which ranks are neighbours in the hall. Tensor-parallel ranks always come first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RankOrder {
    /// Tensor, context, data, pipeline (Megatron's default): a stage is contiguous.
    DataBeforePipeline,
    /// Tensor, context, pipeline, data (Llama 3): a model replica is contiguous.
    PipelineBeforeData,
}

/// One GPU that computes more slowly than the others.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Straggler {
    /// Which GPU.
    pub gpu: u32,
    /// Its kernels take this many times as long (1.1 is 10 % slower).
    pub slowdown: f64,
}

/// How much longer kernels take than undisturbed ones, drawn at random: `exp(sigma |z|)` times as
/// long, z normal. These are the sigmas.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Jitter {
    /// Of each GPU, for the whole step: cooling, power, silicon.
    pub gpu: f64,
    /// Of each run of kernels on each GPU: clocks that move, interrupts, other traffic.
    pub kernel: f64,
}

/// No draw is slower than this.
pub const MOST_JITTER: f64 = 16.0;

impl Jitter {
    /// No jitter at all.
    pub const NONE: Self = Self {
        gpu: 0.0,
        kernel: 0.0,
    };

    /// Whether there is none.
    pub fn is_none(self) -> bool {
        self == Self::NONE
    }
}

/// Everything a run needs to know.
#[derive(Debug, Clone, PartialEq)]
pub struct Setup {
    /// Name of the scenario, for the report.
    pub name: String,
    /// The hardware.
    pub cluster: Cluster,
    /// The work.
    pub training: Training,
    /// How ranks are numbered over GPUs.
    pub rank_order: RankOrder,
    /// Slower devices.
    pub stragglers: Vec<Straggler>,
    /// How unevenly kernels run.
    pub jitter: Jitter,
    /// Which ranks are simulated.
    pub fidelity: Fidelity,
    /// Root of all random streams.
    pub seed: u64,
}
