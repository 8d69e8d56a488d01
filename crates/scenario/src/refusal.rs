//! What a plan that cannot be run has to do with what was typed.

use crate::diagnostic::{Diagnostic, Source};
use crate::yaml::Node as Tree;
use rackflow_plan::{Longest, MemoryPart, PlanError, Setup};
use rackflow_topology::Accelerator;
use rackflow_units::Precision;

const TRAINING: &str = "workload.training";

/// Where each part of a scenario is written.
#[derive(Debug, Clone, PartialEq)]
pub struct Written {
    pub(crate) source: Source,
    pub(crate) tree: Tree,
}

impl Written {
    /// Says why `setup`, which the scenario resolved to, has no plan, at the part that decides it.
    pub fn refusal(&self, setup: &Setup, error: &PlanError) -> Diagnostic {
        match error {
            PlanError::DoesNotFit {
                stage,
                needed,
                capacity,
                largest,
                arithmetic,
                hints,
            } => {
                let stage = stage + 1;
                let message = format!(
                    "the plan does not fit into memory: a GPU of stage {stage} needs {needed} and has {capacity}"
                );
                let hints = hints.iter().map(|hint| format!("it would fit with {hint}"));
                self.at(self.of_memory(*largest, setup), message)
                    .label(match largest {
                        MemoryPart::States => {
                            "weights, gradients and optimizer state are most of it"
                        }
                        MemoryPart::Activations => "activations are most of it",
                        MemoryPart::Buffers => "logits and buffers are most of it",
                        MemoryPart::Reserved => "the stack's reserve is most of it",
                    })
                    .needs(arithmetic.clone())
                    .hints(hints)
            }
            PlanError::TooLong { longest, .. } => {
                let (path, hint) = self.of_time(*longest, setup);
                let what = match longest {
                    Longest::Computation => "computation",
                    Longest::Communication => "communication",
                    Longest::Host => "launching",
                };
                self.at(path, format!("{error}: it would be {what} mostly"))
                    .label("the furthest from any hardware or step there is")
                    .hint(hint)
            }
            PlanError::Topology(_) => self.at("cluster.fabric", error.to_string()),
            PlanError::OutOfRange { what, .. } => {
                self.at(&format!("{TRAINING}.{what}"), error.to_string())
            }
            PlanError::Schedule { .. } => self.at("workload.training.schedule", error.to_string()),
            _ => self.at("workload.training.parallelism", error.to_string()),
        }
    }

    fn at(&self, path: &str, message: impl Into<String>) -> Diagnostic {
        Diagnostic::error(&self.source, self.tree.place(path), message)
    }

    fn first_written<'p>(&self, paths: &[&'p str]) -> Option<&'p str> {
        paths
            .iter()
            .copied()
            .find(|path| self.tree.at(path).is_some_and(|node| !node.is_null()))
    }

    /// The key that decides about this part of the memory.
    fn of_memory(&self, part: MemoryPart, setup: &Setup) -> &'static str {
        let micro_batch = "workload.training.micro_batch";
        let length = "workload.training.sequence_length";
        let decisive: &[&'static str] = match part {
            MemoryPart::States => &["workload.training.parallelism"],
            _ if setup.training.micro_batch > 1 => &[micro_batch],
            MemoryPart::Activations => &["workload.training.recompute", length],
            MemoryPart::Buffers => &[length],
            MemoryPart::Reserved => &["workload.training.stack.reserved_memory"],
        };
        self.first_written(decisive)
            .unwrap_or("workload.training.model")
    }

    /// Of what was typed, what is furthest from usual, and what to do about it.
    fn of_time(&self, longest: Longest, setup: &Setup) -> (&'static str, &'static str) {
        let usual = match longest {
            Longest::Computation => speeds(&setup.cluster.node.accelerator),
            Longest::Communication => links(setup),
            Longest::Host => vec![],
        };
        let mut far: Vec<(f64, &'static str)> = usual
            .into_iter()
            .map(|(path, value, usual)| (value / usual, path))
            .filter(|(share, path)| *share < UNUSUAL && self.first_written(&[path]).is_some())
            .collect();
        far.sort_by(|a, b| a.0.total_cmp(&b.0));
        if let Some((_, path)) = far.first() {
            return (
                path,
                "write what the hardware does; `rackflow show h100-sxm` has an example",
            );
        }
        if !setup.stragglers.is_empty() && longest == Longest::Computation {
            return (
                "simulation.stragglers",
                "name fewer or less slow stragglers",
            );
        }
        (
            "workload.training.global_batch",
            "use a smaller batch, shorter sequences, a smaller model or more GPUs",
        )
    }
}

/// Below this part of what an H100 has, a number is suspected.
const UNUSUAL: f64 = 0.01;

/// What an accelerator reaches, by where it is written, beside what an H100 does (data sheet and
/// catalogue, in round numbers).
fn speeds(a: &Accelerator) -> Vec<(&'static str, f64, f64)> {
    let measured = &a.measured;
    let attention = measured.attention.best;
    vec![
        ("cluster.node.accelerator.clock", a.clock.hertz(), 1.8e9),
        (
            "cluster.node.accelerator.vector",
            a.vector.flops_per_sec(),
            67e12,
        ),
        (
            "cluster.node.accelerator.memory_bandwidth",
            a.memory_bandwidth.as_f64(),
            3.35e12,
        ),
        (
            "cluster.node.accelerator.peak",
            a.peak.get(Precision::Bf16).flops_per_sec(),
            989e12,
        ),
        ("cluster.node.accelerator.sms", f64::from(a.sms), 132.0),
        (
            "cluster.node.accelerator.measured.continuous_clock",
            measured.continuous_clock,
            0.9,
        ),
        (
            "cluster.node.accelerator.measured.memory",
            measured.memory,
            0.9,
        ),
        (
            "cluster.node.accelerator.measured.gemm",
            measured.gemm.get(Precision::Bf16),
            0.8,
        ),
        (
            "cluster.node.accelerator.measured.attention",
            attention.forward.min(attention.backward),
            0.7,
        ),
    ]
}

/// What a node's links reach, beside those of a node of eight H100.
fn links(setup: &Setup) -> Vec<(&'static str, f64, f64)> {
    let node = &setup.cluster.node;
    let scale_up = &node.scale_up;
    vec![
        (
            "cluster.node.scale_up.bandwidth",
            scale_up.bandwidth.as_f64(),
            450e9,
        ),
        ("cluster.node.scale_up.efficiency", scale_up.efficiency, 0.8),
        ("cluster.node.nic.rate", node.nic.rate.as_f64(), 50e9),
        ("cluster.node.nic.efficiency", node.nic.efficiency, 0.9),
    ]
}
