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
    /// Which ranks are simulated.
    pub fidelity: Fidelity,
    /// Root of all random streams.
    pub seed: u64,
}
