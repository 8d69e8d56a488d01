//! What a simulated step must be, whatever the plan.

mod accounts;
mod folding;
mod mechanisms;
mod plans;
