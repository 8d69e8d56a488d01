//! Where hardware and work meet: placement, kernel cost, pipeline schedules, collectives, memory.
//!
//! [`compile`] turns a [`Setup`] into a [`Plan`]: who does what in which order, with no times of
//! events yet. This crate sees neither YAML nor paths, so Rust code is a front end too.

mod allocator;
mod bound;
pub mod cause;
mod compile;
mod crossing;
mod error;
mod facts;
mod horizon;
pub mod kernel;
mod known;
mod layer;
mod memory;
mod outlook;
mod placement;
mod price;
mod program;
pub mod replay;
mod resource;
mod run;
pub mod schedule;
mod search;
pub mod serving;
mod setup;
mod split;
mod vision;

pub use allocator::pressure::Pressure;
pub use bound::Passes;
pub use cause::{Accounts, Cause, CommKind};
pub use compile::{KindPlan, Plan, compile};
pub use crossing::{Flows, Pattern, Reach, Sender, may_block, route_of};
pub use error::{Longest, MemoryPart, PlanError};
pub use facts::{Facts, KernelFacts, KernelKind, OtherSegments, StageFacts, Uplinks};
pub use memory::MemoryUse;
pub use outlook::{
    Checkpoint, Cost, Economics, Interval, Length, MemoryTier, Outlook, TrainingRun,
    checkpoint_bytes, checkpoint_writers,
};
pub use placement::{Coordinates, Placement};
pub use price::Spans;
pub use program::{
    GroupSlot, PassKind, PassMark, Peer, Program, SEGMENT_LEVELS, Segment, SegmentId, Stream, Task,
    Transfer, TransferId, Work,
};
pub use resource::{Resource, SERVING_STEP, STEP};
pub use search::{Branch, Candidate, Expansion, LeftOut, MEAN_LOAD, Obstacle, Search, Space};
pub use setup::{
    Fidelity, Jitter, MOST_JITTER, RankOrder, SLOW_NODE, Seats, Setup, Straggler, TokenDraws,
};
