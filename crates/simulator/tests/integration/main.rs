//! What a simulated step must be, whatever the plan.

mod accounts;
mod collectives;
mod executed;
mod extremes;
mod faults;
mod folding;
mod jobs;
mod mechanisms;
mod mixed;
mod plans;
mod replay;
mod run;
mod search;
mod sharing;
mod vision;
mod whole;
