//! Runs a plan: streams, overlap, memory and links, until the step is done.
//!
//! Every GPU-second is booked to exactly one cause while the events run.

mod booking;
pub mod collective;
mod compiled;
mod fabric;
mod fold;
mod islands;
mod jitter;
mod jobs;
mod ports;
mod race;
mod record;
pub mod replay;
mod run;
mod search;
pub mod serving;
mod state;
mod step;
mod trace;
mod traffic;

pub use jobs::{
    Job, JobOutcome, JobRecord, JobRows, JobTrace, JobWish, simulate_jobs, simulate_mixed,
    simulate_mixed_for, simulate_mixed_traced,
};
pub use race::GivenUp;
pub use record::{ClassRecord, EngineRecord, Record};
pub use run::{Replication, RunRecord, RunTime, simulate_run, young_daly};
pub use search::{
    Found, Outcome, Progress, Reordered, Simulator, Unproved, improve, planner, search,
};
pub use step::{
    simulate, simulate_executed_each, simulate_in_islands, simulate_on_links, simulate_traced,
    simulate_traced_each,
};
pub use trace::{Executed, Execution, Message, Span, Trace, TracedPass, TracedRank};
pub use traffic::{TierBytes, Traffic};
