//! Work as data: model shapes, operations, training plans and software stacks.
//!
//! This crate does not know any hardware: it says what must be computed, read and sent, never how
//! long that takes.

mod check;
mod counts;
mod model;
mod operation;
pub mod serving;
mod stack;
mod training;

pub use check::ModelError;
pub use counts::{AttentionCount, FlopsPerToken, LayerParameters, ParameterCount};
pub use model::{Attention, FeedForward, GroupLimit, LayerKind, MoE, Model, MultiTokenPrediction};
pub use operation::{Direction, Operation};
pub use stack::{AttentionKernel, CudaGraphs, ExpertDispatcher, Overlap, SoftwareStack};
pub use training::{Activation, Parallelism, Recipe, Recompute, Routing, Schedule, Training, Zero};
