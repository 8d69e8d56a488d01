//! What a simulated step must be, whatever the plan.

mod accounts;
mod extremes;
mod folding;
mod mechanisms;
mod plans;
