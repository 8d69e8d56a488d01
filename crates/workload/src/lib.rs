//! Work as data: model shapes, operations, training plans, requests and software stacks.
//!
//! This crate does not know any hardware: it says what must be computed, read and sent, never how
//! long that takes.

pub mod chakra;
mod check;
mod counts;
mod model;
mod operation;
mod requests;
pub mod serving;
mod serving_engine;
mod stack;
pub mod trace;
mod training;
mod vision;

pub use check::ModelError;
pub use counts::{AttentionCount, FlopsPerToken, LayerParameters, ParameterCount};
pub use model::{
    Attention, FeedForward, GroupLimit, LayerKind, MoE, Model, MultiTokenPrediction, SparseIndex,
};
pub use operation::{Access, Direction, Operation};
pub use requests::{Arrivals, Length, Request, RequestPlan, Segment, Sessions, Shapes};
pub use serving_engine::{
    BatchWait, Decoder, EngineConfig, Eviction, KvTier, KvTransfer, Medium, Preemption, Role,
    Router, Scheduler, Slo, WritePolicy,
};
pub use stack::{
    ActivationOffload, AllocatorPolicy, AttentionKernel, CudaGraphs, ExpertDispatcher,
    OffloadedInput, Overlap, SoftwareStack,
};
pub use trace::{Trace, TraceError};
pub use training::{Activation, Parallelism, Recipe, Recompute, Routing, Schedule, Training, Zero};
pub use vision::{Frozen, Images, Projector, VisionEncoder, VisionParameters};
