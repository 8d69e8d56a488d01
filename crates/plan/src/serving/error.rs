//! Why a deployment cannot be placed.

use rackflow_topology::TopologyError;
use rackflow_units::{Bytes, counted};

/// Why an instance cannot be compiled.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum ServingError {
    /// A degree of parallelism is zero.
    #[error("{axis} parallelism is 0; 1 stands for none")]
    Zero {
        /// Which axis.
        axis: &'static str,
    },
    /// The GPUs given are not as many as the plan has ranks.
    #[error(
        "{} (tensor x data x pipeline) on {}: give as many GPUs as there are ranks",
        counted(*ranks, "rank"),
        counted(*gpus as u64, "GPU")
    )]
    Gpus {
        /// Ranks of the plan.
        ranks: u32,
        /// GPUs given.
        gpus: usize,
    },
    /// Experts are spread over a number of groups that does not divide the stage.
    #[error(
        "expert parallelism {expert} does not divide the {} (tensor x data) of a stage",
        counted(*stage, "GPU")
    )]
    ExpertGroups {
        /// Expert groups.
        expert: u32,
        /// GPUs of a stage.
        stage: u32,
    },
    /// More pipeline stages than layers.
    #[error(
        "{} for {}: at most one stage per layer",
        counted(*stages, "pipeline stage"),
        counted(*layers, "layer")
    )]
    Stages {
        /// Stages.
        stages: u32,
        /// Layers.
        layers: u64,
    },
    /// The weights do not fit.
    #[error(
        "the weights take {weights} of a GPU that leaves {available} to them and to the cache: \
         more tensor, expert or pipeline ranks, or a narrower format"
    )]
    Memory {
        /// Weights of one GPU.
        weights: Bytes,
        /// What is left for weights and cache.
        available: Bytes,
    },
    /// The cluster is faulty.
    #[error(transparent)]
    Topology(#[from] TopologyError),
}
