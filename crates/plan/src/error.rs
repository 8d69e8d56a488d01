//! Why a setup has no plan.

use crate::setup::Setup;
use rackflow_topology::TopologyError;
use rackflow_units::{Bytes, SimDuration, counted};
use rackflow_workload::Schedule;

/// What holds most of a GPU's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum MemoryPart {
    /// Weights, gradients and optimizer state.
    States,
    /// What the backward pass still needs.
    Activations,
    /// Logits, gathered weights, communication.
    Buffers,
    /// What the software stack keeps back.
    Reserved,
}

/// What a step would spend most of its time on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Longest {
    /// Kernels.
    Computation,
    /// Collectives and messages.
    Communication,
    /// Launching both.
    Host,
}

/// Why a setup has no plan. The texts say what would be right.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum PlanError {
    /// The cluster cannot be built.
    #[error("the cluster cannot be built: {0}")]
    Topology(#[from] TopologyError),
    /// The ranks of the plan are not the GPUs of the cluster.
    #[error(
        "tensor {tensor} x context {context} x pipeline {pipeline} x data {data} is {}, but the cluster has {}", counted(*product, "rank"), counted(*gpus, "GPU")
    )]
    Ranks {
        /// Tensor-parallel ranks.
        tensor: u32,
        /// Context-parallel ranks.
        context: u32,
        /// Pipeline stages.
        pipeline: u32,
        /// Data-parallel ranks.
        data: u32,
        /// Their product.
        product: u64,
        /// GPUs of the cluster.
        gpus: u32,
    },
    /// A count does not divide another.
    #[error("{what} ({divisor}) does not divide {of} ({value})")]
    DoesNotDivide {
        /// The divisor's name.
        what: &'static str,
        /// The divisor.
        divisor: u64,
        /// The other's name.
        of: &'static str,
        /// The other.
        value: u64,
    },
    /// A schedule's own conditions are not met.
    #[error("{schedule} needs {needs}")]
    Schedule {
        /// The schedule's name.
        schedule: &'static str,
        /// What it needs.
        needs: String,
    },
    /// Experts would be computed once per tensor-parallel rank.
    #[error(
        "experts with tensor parallelism need sequence_parallel: true, or every tensor rank computes the same tokens"
    )]
    SequenceParallel,
    /// A count is zero or beyond any machine.
    #[error("{what} is {value}; it must be between 1 and {limit}")]
    OutOfRange {
        /// The count's name.
        what: &'static str,
        /// Its value.
        value: u64,
        /// The largest that is allowed.
        limit: u64,
    },
    /// More memory than a GPU has.
    #[error("stage {stage} needs {needed} of {capacity}: {arithmetic}")]
    DoesNotFit {
        /// The fullest stage.
        stage: usize,
        /// What it needs.
        needed: Bytes,
        /// What one GPU has.
        capacity: Bytes,
        /// The largest part of it.
        largest: MemoryPart,
        /// The parts of the sum.
        arithmetic: String,
        /// Changes that would make it fit, the smallest first.
        hints: Vec<String>,
    },
    /// A step that might not end while simulated time lasts.
    #[error("one step could take {bound} or more, and simulated time ends after 213 days")]
    TooLong {
        /// What it would spend most of its time on.
        longest: Longest,
        /// An upper bound of the step time, as far as a span can say it.
        bound: SimDuration,
    },
}

/// Tasks that one stage's program may have; beyond this a step would need tens of gigabytes.
const MOST_PASSES: u64 = 4_000_000;

/// Holds the setup against everything that [`crate::compile`] relies on.
pub(crate) fn check(setup: &Setup) -> Result<(), PlanError> {
    let t = &setup.training;
    let p = &t.parallelism;
    let counts = [
        ("tensor", u64::from(p.tensor), 1 << 20),
        ("context", u64::from(p.context), 1 << 20),
        ("pipeline", u64::from(p.pipeline), 1 << 16),
        ("virtual_pipeline", u64::from(p.virtual_pipeline), 1 << 16),
        ("data", u64::from(p.data), 1 << 24),
        ("expert", u64::from(p.expert), 1 << 20),
        ("expert_tensor", u64::from(p.expert_tensor), 1 << 20),
        ("zero_group", u64::from(p.zero_group.unwrap_or(1)), 1 << 24),
        ("sequence_length", t.sequence_length, 1 << 28),
        ("global_batch", t.global_batch, 1 << 32),
        ("micro_batch", t.micro_batch, 1 << 20),
        ("layers", t.model.layers, 1 << 14),
    ];
    for (what, value, limit) in counts {
        if value == 0 || value > limit {
            return Err(PlanError::OutOfRange { what, value, limit });
        }
    }
    let product =
        u64::from(p.tensor) * u64::from(p.context) * u64::from(p.pipeline) * u64::from(p.data);
    if product != u64::from(setup.cluster.gpus) {
        return Err(PlanError::Ranks {
            tensor: p.tensor,
            context: p.context,
            pipeline: p.pipeline,
            data: p.data,
            product,
            gpus: setup.cluster.gpus,
        });
    }
    divides(
        "data x micro_batch",
        u64::from(p.data) * t.micro_batch,
        "global_batch",
        t.global_batch,
    )?;
    divides(
        "context",
        u64::from(p.context),
        "sequence_length",
        t.sequence_length,
    )?;
    let stage_ranks = product / u64::from(p.pipeline);
    let expert_ranks = u64::from(p.expert) * u64::from(p.expert_tensor);
    divides(
        "expert x expert_tensor",
        expert_ranks,
        "the ranks of a pipeline stage",
        stage_ranks,
    )?;
    if let Some(moe) = &t.model.moe {
        if p.tensor > 1 && !p.sequence_parallel {
            return Err(PlanError::SequenceParallel);
        }
        divides(
            "expert",
            u64::from(p.expert),
            "the model's experts",
            moe.experts,
        )?;
    }
    if let Some((vision, _)) = t.vision() {
        let tensor = u64::from(p.tensor);
        divides("tensor", tensor, "the vision encoder's heads", vision.heads)?;
        divides("tensor", tensor, "the vision encoder's ffn", vision.ffn)?;
    }
    if let Some(group) = p.zero_group {
        divides(
            "zero_group",
            u64::from(group),
            "data x context",
            u64::from(p.data) * u64::from(p.context),
        )?;
    }
    check_schedule(setup)?;
    let passes = 2 * t.micro_batches() * t.model.layers.div_ceil(u64::from(p.pipeline));
    if passes > MOST_PASSES {
        return Err(PlanError::OutOfRange {
            what: "micro-batches x layers of a stage",
            value: passes,
            limit: MOST_PASSES,
        });
    }
    Ok(())
}

fn check_schedule(setup: &Setup) -> Result<(), PlanError> {
    let t = &setup.training;
    let p = &t.parallelism;
    let chunks = u64::from(p.pipeline) * u64::from(p.virtual_pipeline);
    // The first and the last chunk may hold only the embedding and only the output.
    if chunks > t.model.layers + 2 {
        return Err(PlanError::Schedule {
            schedule: "a pipeline",
            needs: format!(
                "a layer for each of its {chunks} chunks; the model has {}",
                t.model.layers
            ),
        });
    }
    if let Some(list) = &t.layers_per_chunk {
        let sum: u64 = list.iter().sum();
        if list.len() as u64 != chunks || sum != t.model.layers {
            return Err(PlanError::Schedule {
                schedule: "layers_per_chunk",
                needs: format!(
                    "{chunks} entries that sum to {}; it has {} that sum to {sum}",
                    t.model.layers,
                    list.len()
                ),
            });
        }
    }
    let m = t.micro_batches();
    match t.schedule {
        Schedule::Dualpipe
            if !p.pipeline.is_multiple_of(2)
                || !m.is_multiple_of(2)
                || m < 2 * u64::from(p.pipeline)
                || p.virtual_pipeline != 1 =>
        {
            return Err(PlanError::Schedule {
                schedule: "dualpipe",
                needs: format!(
                    "an even number of stages, no virtual stages, and an even number of micro-batches that is at least twice the stages; here: {} stages, {} virtual, {m} micro-batches",
                    p.pipeline, p.virtual_pipeline
                ),
            });
        }
        Schedule::ZeroBubbleH1 | Schedule::ZeroBubbleH2 if p.virtual_pipeline != 1 => {
            return Err(PlanError::Schedule {
                schedule: "a zero-bubble schedule",
                needs: "virtual_pipeline: 1".to_owned(),
            });
        }
        Schedule::OneForwardOneBackward
            if p.virtual_pipeline > 1 && !m.is_multiple_of(u64::from(p.pipeline)) =>
        {
            return Err(PlanError::Schedule {
                schedule: "an interleaved schedule",
                needs: format!(
                    "micro-batches in rounds of the {} stages; here: {m}",
                    p.pipeline
                ),
            });
        }
        _ => {}
    }
    Ok(())
}

fn divides(
    what: &'static str,
    divisor: u64,
    of: &'static str,
    value: u64,
) -> Result<(), PlanError> {
    if value.is_multiple_of(divisor) {
        Ok(())
    } else {
        Err(PlanError::DoesNotDivide {
            what,
            divisor,
            of,
            value,
        })
    }
}
