//! Runs a plan: streams, overlap, memory and links, until the step is done.
//!
//! Every GPU-second is booked to exactly one cause while the events run.

mod record;

pub use record::{ClassRecord, EngineRecord, Record};
