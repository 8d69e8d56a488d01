//! Beyond one step: what it costs, and the weeks of steps that train a model.

use crate::compile::Plan;
use rackflow_topology::FailureProfile;
use rackflow_units::{Bandwidth, Bytes, SimDuration};
use rackflow_workload::Zero;

/// What a scenario says besides its step.
#[derive(Debug, Clone, PartialEq)]
pub struct Outlook {
    /// Power and money.
    pub economics: Economics,
    /// The whole training run, where the scenario has one.
    pub run: Option<TrainingRun>,
}

/// Power and money.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Economics {
    /// Power of the building over power of the racks.
    pub pue: f64,
    /// Price of energy in USD per kWh; an owner pays it, rent includes it.
    pub electricity: f64,
    /// What the accelerators cost, where that is known.
    pub cost: Option<Cost>,
}

/// How accelerators are paid for.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Cost {
    /// By the hour, all included.
    Rent {
        /// USD per accelerator and hour.
        per_gpu_hour: f64,
    },
    /// Bought, and written off over some years.
    Purchase {
        /// USD per accelerator, with its share of everything but the building and energy.
        per_gpu: f64,
        /// Years of use.
        years: f64,
        /// Yearly cost of operation besides energy, as a fraction of the purchase.
        operation: f64,
    },
}

/// A whole training run: days of steps with what interrupts them.
#[derive(Debug, Clone, PartialEq)]
pub struct TrainingRun {
    /// When it ends.
    pub length: Length,
    /// How its state is saved; nothing is saved where this is left out.
    pub checkpoint: Option<Checkpoint>,
    /// What interrupts it; nothing does where this is left out.
    pub failures: Option<FailureProfile>,
    /// Hosts that stand by.
    pub spares: u32,
    /// Without a spare, the run goes on with fewer data-parallel replicas.
    pub elastic: bool,
    /// How many times the run is simulated, each with its own random numbers.
    pub replications: u32,
}

/// When a training run ends.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Length {
    /// When so many tokens have been trained.
    Tokens(f64),
    /// After so many days.
    Days(f64),
}

/// How the state of a run is saved.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Checkpoint {
    /// Time between the starts of two checkpoints.
    pub interval: Interval,
    /// The run stands still until the checkpoint is written; else only until it is copied to host
    /// memory.
    pub synchronous: bool,
    /// Rate at which the whole cluster writes to storage.
    pub write: Bandwidth,
    /// Rate at which it reads.
    pub read: Bandwidth,
    /// Copies in the memory of other hosts.
    pub memory: Option<MemoryTier>,
}

/// Time between checkpoints.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Interval {
    /// The optimum for the rate of failures (Young 1974, Daly 2006).
    YoungDaly,
    /// Given.
    Time(SimDuration),
    /// Given in steps.
    Steps(u64),
}

/// Checkpoints in the memory of other hosts, as Gemini keeps them: lost only with several hosts.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct MemoryTier {
    /// Steps between two of them.
    pub steps: u64,
    /// Time for which each holds the step up.
    pub stall: SimDuration,
    /// Fraction of interruptions that it survives.
    pub survives: f64,
}

/// Bytes of one checkpoint: weights in 16 bits, and the optimizer's state.
pub fn checkpoint_bytes(plan: &Plan) -> Bytes {
    let per_parameter = plan.facts.training.stack.optimizer_bytes + 2;
    Bytes::new((plan.facts.parameters * per_parameter as f64) as u64)
}

/// GPUs that write a checkpoint, each its share: all where the optimizer's state is sharded over
/// data-parallel ranks, one replica's where it is not.
pub fn checkpoint_writers(plan: &Plan) -> u64 {
    let parallelism = &plan.facts.training.parallelism;
    let gpus = u64::from(plan.facts.cluster.gpus);
    match parallelism.zero {
        Zero::Stage0 => (gpus / u64::from(parallelism.data)).max(1),
        _ => gpus,
    }
}
