//! Runs a plan: streams, overlap, memory and links, until the step is done.
//!
//! Every GPU-second is booked to exactly one cause while the events run.

pub mod collective;
mod fold;
mod record;
pub mod serving;
mod step;

pub use record::{ClassRecord, EngineRecord, Record};
pub use step::simulate;
