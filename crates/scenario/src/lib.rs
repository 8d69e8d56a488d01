//! Scenarios: the YAML schema, its checks and diagnostics, the built-in catalogue.
//!
//! [`parse`] reads what was typed into a [`Scenario`]; [`Scenario::resolve`] looks every name up,
//! fills the documented defaults in, holds the numbers against each other and returns the
//! [`Setup`](rackflow_plan::Setup) that was meant. Both refuse with [`Diagnostic`]s, which carry
//! the place in the text and what would be right. Syntax and types stop at the first error; errors
//! of meaning are all reported at once.
//!
//! This crate opens no file: a scenario that names a Hugging Face `config.json` or imports a cluster
//! gets the text from the caller.

mod catalogue;
mod chakra;
mod check;
mod cluster;
pub mod collectives;
mod decode;
mod diagnostic;
mod document;
mod draws;
pub mod huggingface;
mod import;
mod jobs;
pub mod kernels;
mod outlook;
pub mod published;
mod refusal;
mod resolve;
mod schema;
mod serving_text;
mod shipped;
mod suggest;
mod sweep;
mod yaml;

pub use catalogue::{Catalogue, Section};
pub use chakra::{ChakraError, ChakraReader, chakra_file};
pub use check::unsupported;
pub use cluster::{ClusterChanges, catalogue_cluster, parse_cluster};
pub use diagnostic::{Diagnostic, Severity, Span};
pub use document::Published;
pub use jobs::{Job, JobWork, JobsScenario, has_jobs, parse_jobs};
pub use refusal::Written;
pub use resolve::{ReplayScenario, Scenario, parse};
pub use schema::scenario_schema;
pub use shipped::{shipped, shipped_chakra, shipped_jobs, shipped_sweeps, shipped_trace};
pub use sweep::{Case, Sweep, expand, is_sweep, sweep_schema};
