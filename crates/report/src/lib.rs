//! What a simulated run means.
//!
//! A [`Record`](rackflow_simulator::Record) says what happened; [`summarize`] turns it into a
//! [`Report`] of metrics, per-rack figures, the waterfall from peak to effective FLOP/s, and the
//! changes that would help most. A report is data: [`Report::to_json`] writes it for programs and
//! [`render_text`] and the pictures of [`plot`] for people, all from the same numbers.
//!
//! This crate cannot ask the simulator anything: it sees records only. It does not touch files,
//! the terminal or the clock; whoever calls it passes the wall time in and writes the text out.
//!
//! Each metric is defined once, at its field in [`Report`].

mod advice;
mod causes;
mod chakra;
mod collective;
pub mod compare;
mod detail;
mod disturbed;
mod elasticity;
mod format;
mod jobs;
mod jobs_elasticity;
mod json;
mod outlook;
mod paint;
mod planner;
mod planner_comparison;
mod planner_yaml;
pub mod plot;
mod replay;
mod report;
mod requests;
pub mod scaling_law;
mod serving;
mod serving_detail;
mod serving_elasticity;
mod serving_plan;
mod summarize;
pub mod sweep;
mod text;
mod topology;
pub mod trace;

pub use causes::{Explanation, explain, key};
pub use chakra::ChakraExport;
pub use collective::{CollectiveReport, CollectiveTable};
pub use detail::{
    FormatPeak, Kernel, Kernels, LinkTier, Links, StageTimeline, Timeline, TrafficOf,
};
pub use disturbed::Disturbed;
pub use elasticity::{Answer, Elasticities, Elasticity, WithoutMeaning};
pub use jobs::{
    JobInput, JobReport, JobRun, JobsReport, ServingBeside, TrainingBeside, WorkReport,
    summarize_jobs,
};
pub use jobs_elasticity::{
    JobBasis, JobBefore, JobElasticities, JobPace, JobsAnswer, JobsElasticities,
};
pub use outlook::{CheckpointReport, ComponentCount, Economics, Estimate, Run, ScalingLawReport};
pub use paint::Style;
pub use planner::{OtherRankOrder, PlanRow, PlanSearch, Reason, Unproved};
pub use planner_comparison::{ComparedPlan, PlanComparison};
pub use replay::{Exposed, Replay, ReplayEngine, ReplayReport, summarize_replay};
pub use report::{
    ByConvention, Change, Cluster, Comparison, Engine, Figure, Loss, Memory, Model, OverSeeds,
    Peak, Plan, Rack, Report, SCHEMA_VERSION, TflopsPerGpu, Training, Vision,
};
pub use requests::{RequestsCsv, RequestsParquet};
pub use serving::{
    ByLevel, ByPhase, Kv, Latency, Phases, PoolReport, ServedModel, Serving, ServingReport,
    TierReport, summarize_serving,
};
pub use serving_detail::{PoolLink, PoolMemory, PoolRoofline, RooflinePoint};
pub use serving_elasticity::{
    Basis, ServingAnswer, ServingElasticities, ServingElasticity, ServingOutcome,
};
pub use serving_plan::{Beaten, CandidateReport, Impossible, Point, PointAt, ServingPlan, Tried};
pub use summarize::{Options, Published, ReportError, summarize};
pub use text::{render_serving_text, render_text};
pub use topology::{route_text, topology_text};
