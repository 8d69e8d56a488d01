//! A scenario that replays an execution trace, from what was typed to what was meant.

use super::{Files, Findings, Scenario};
use crate::check;
use crate::diagnostic::Diagnostic;
use crate::document::{KernelsText, WorkloadText};
use crate::refusal::Written;
use rackflow_plan::replay::{KernelTime, RecordedSpeed, ReplayError, ReplaySetup};
use rackflow_topology::Cluster;
use rackflow_units::Precision;
use rackflow_workload::chakra::ExecutionTrace;
use std::sync::Arc;

const CHAKRA: &str = "workload.chakra";

/// A scenario that replays a trace, before the trace is read.
#[derive(Debug, Clone, PartialEq)]
pub struct ReplayScenario {
    /// Folder of the trace, relative to the scenario.
    pub traces: String,
    name: String,
    cluster: Cluster,
    kernels: KernelTime,
    precision: Precision,
}

impl ReplayScenario {
    /// The same with the trace that was read.
    pub fn with_trace(self, trace: ExecutionTrace) -> ReplaySetup {
        ReplaySetup {
            name: self.name,
            cluster: self.cluster,
            trace: Arc::new(trace),
            kernels: self.kernels,
            precision: self.precision,
            speed: RecordedSpeed::default(),
        }
    }
}

impl Scenario {
    /// Whether the workload is an execution trace.
    pub fn replays(&self) -> bool {
        matches!(self.document.workload, WorkloadText::Chakra(_))
    }

    /// What a scenario means that replays a trace; as [`Scenario::resolve`] for training.
    ///
    /// # Errors
    /// With everything that keeps the scenario from being simulated.
    pub fn resolve_replay(&self, files: &Files<'_>) -> Result<ReplayScenario, Vec<Diagnostic>> {
        if let Some(scenario) = self.imported(files)? {
            return scenario.resolve_replay(files);
        }
        let mut findings = self.findings();
        let WorkloadText::Chakra(text) = &self.document.workload else {
            let found = findings.at("workload", self.not_this("one that replays a trace"));
            return Err(vec![found.hint("write workload: { chakra: folder/ }")]);
        };
        let cluster = self.hardware(&mut findings);
        refuse_what_a_trace_settles(&mut findings);
        let Some(cluster) = cluster else {
            return Err(findings.into_found());
        };
        let scenario = ReplayScenario {
            traces: text.0.traces.clone(),
            name: self.name().to_owned(),
            cluster,
            kernels: match text.0.kernels {
                KernelsText::Recorded => KernelTime::Recorded,
                KernelsText::Roofline => KernelTime::Roofline,
            },
            precision: text.0.precision,
        };
        findings.into_result(scenario)
    }

    fn hardware(&self, findings: &mut Findings<'_>) -> Option<Cluster> {
        let gpus = self.document.cluster.gpus;
        let node = findings.node();
        let fabric = findings.fabric(self.document.cluster.fabric.is_some());
        let (node, fabric) = (node?, fabric?);
        let fabric = match fabric {
            Some(fabric) => fabric,
            None => findings.default_fabric(&node, gpus)?,
        };
        let cluster = Cluster {
            node,
            gpus,
            fabric,
            parts: Vec::new(),
        };
        check::cluster(&cluster, findings);
        Some(cluster)
    }
}

/// A trace is what happened: nothing of it is drawn at random, and no source printed another result.
fn refuse_what_a_trace_settles(findings: &mut Findings<'_>) {
    for path in [
        "simulation.seeds",
        "simulation.stragglers",
        "simulation.jitter",
        "simulation.links",
        "economics",
        "published",
    ] {
        if findings.written(path) {
            let name = path.rsplit('.').next().unwrap_or(path);
            let message = format!("`{name}` says nothing of a trace that is replayed");
            let found = findings.at(path, message).hint("leave it out");
            findings.report(found);
        }
    }
}

impl Written {
    /// Says why the trace that the scenario names cannot be replayed on its cluster.
    pub fn replay_refusal(&self, error: &ReplayError) -> Diagnostic {
        let path = match error {
            ReplayError::Topology(_) | ReplayError::TooFewGpus { .. } => "cluster.gpus",
            _ => CHAKRA,
        };
        Diagnostic::error(&self.source, self.tree.place(path), error.to_string())
    }

    /// Says at the trace's name why it cannot be read.
    pub fn trace_refusal(&self, message: &str) -> Diagnostic {
        Diagnostic::error(&self.source, self.tree.place(CHAKRA), message)
            .hint("the folder is relative to the scenario")
    }
}
