//! Serving: requests that arrive, wait, run in batches on replicas, and move between them.
//!
//! [`serve`] runs a [`Fleet`] until every request is answered. What a step costs is a
//! [`StepModel`]'s to say; who is in it is decided here, as the named scheduler would. Steps of
//! plain decoding whose sequences stay the same are taken together, with exactly the results of
//! taking them one by one.

mod blocks;
mod cost;
mod fleet;
mod goodput;
mod ground;
mod live;
mod luck;
mod network;
mod record;
mod replica;
mod source;
mod store;
#[cfg(test)]
mod tests;
mod trace;

pub use cost::{StepModel, Work};
pub(crate) use fleet::ServingRun;
pub use fleet::{Fleet, FleetSite, Pool, ServeError, serve, serve_traced};
pub use goodput::{Trial, highest_rate};
pub(crate) use ground::{all_gpus, visitors};
pub(crate) use network::Ground;
pub use network::Wires;
pub use record::{
    KvRecord, NoSink, Phase, PoolRecord, RequestRecord, RequestSink, ServingRecord, Spans,
    TierRecord,
};
pub use source::Rows;
pub use trace::{
    ServiceTrace, ServiceWish, TracedLevel, TracedPart, TracedReplica, TracedRequest, TracedStep,
    TracedTransfer,
};
