//! What one step of a serving engine costs.
//!
//! An [`Instance`] is one replica of a model, compiled once on its GPUs: everything that depends on a
//! number of tokens alone is tabled, attention is priced at each call. [`Instance::step`] then
//! answers for any batch, without allocation, in under two microseconds, and books every
//! GPU-second of the step to one cause.
//!
//! What a step is made of, its equations and its errors are in `docs/serving-cost.md`.

mod ceiling;
mod communication;
mod error;
mod fleet;
mod instance;
mod kernels;
mod layers;
mod memory;
mod overlap;
mod parts;
mod resource;
mod space;
mod table;
#[cfg(test)]
mod tests;

pub use ceiling::{Ceiling, Demand};
pub use error::ServingError;
pub use fleet::{FleetError, FleetPlan, FleetSetup, PoolSetup, compile_fleet};
pub use instance::Instance;
pub use memory::InstanceMemory;
pub use rackflow_workload::serving::Duty;
pub use space::{ServingSpace, Way, Ways, other_limits};

use crate::cause::Accounts;
use rackflow_topology::Level;
use rackflow_units::SimDuration;

/// A piece of one prompt in a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PrefillChunk {
    /// Tokens that are computed.
    pub new_tokens: u64,
    /// Tokens before them that are in the cache already.
    pub cached_tokens: u64,
}

/// What the sequences of one replica do in one step, over all its attention groups.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StepBatch<'a> {
    /// Prompts, whole or in pieces.
    pub prefill: &'a [PrefillChunk],
    /// Sequences that generate.
    pub decode_sequences: u64,
    /// Tokens in the cache that those sequences attend to, summed.
    pub decode_context_tokens: u64,
    /// Tokens that each of them computes: 1, or 1 and the guesses that are checked.
    pub tokens_per_sequence: u64,
}

impl StepBatch<'_> {
    /// `sequences` that generate one token each, with `context_tokens` in the cache in all.
    pub const fn decode(sequences: u64, context_tokens: u64) -> Self {
        Self {
            prefill: &[],
            decode_sequences: sequences,
            decode_context_tokens: context_tokens,
            tokens_per_sequence: 1,
        }
    }
}

impl<'a> StepBatch<'a> {
    /// Prompts alone.
    pub const fn prefill(chunks: &'a [PrefillChunk]) -> Self {
        Self {
            prefill: chunks,
            decode_sequences: 0,
            decode_context_tokens: 0,
            tokens_per_sequence: 1,
        }
    }
}

/// What one step costs.
#[derive(Debug, Clone, PartialEq)]
pub struct StepCost {
    /// From the end of the step before to the end of this one. With pipeline stages, the time in
    /// which every sequence of the batch passes all of them once.
    pub time: SimDuration,
    /// GPU-seconds by cause; they sum to `time` times the GPUs of the replica, exactly.
    pub causes: Accounts,
    /// Operations of the tensor cores that the batch needs, padding and copies not counted, over all
    /// GPUs.
    pub flops: f64,
    /// Bytes that the memories must deliver, over all GPUs: the weights that the tokens touch and the
    /// cache that they attend to, each once.
    pub bytes_read: f64,
    /// Bytes sent over each level, over all GPUs, in the order of [`Level::ALL`].
    pub wire_bytes: [f64; Level::ALL.len()],
}
