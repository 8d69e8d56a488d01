//! What a person should read for each cause.

use rackflow_plan::{Cause, CommKind};

/// A cause in words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Explanation {
    /// A short name, at most 30 characters.
    pub label: String,
    /// One sentence.
    pub sentence: String,
}

/// The words for `cause`.
pub fn explain(cause: Cause) -> Explanation {
    let fixed = |label: &str, sentence: &str| Explanation {
        label: label.into(),
        sentence: sentence.into(),
    };
    match cause {
        Cause::UsefulMath => fixed(
            "Useful math",
            "The model's own FLOPs, as if every one ran at the dense peak: what the cluster is for.",
        ),
        Cause::WiderPrecision => fixed(
            "Wider number formats",
            "Attention, logits or router compute in a wider and so slower format than the other matrix products.",
        ),
        Cause::SustainedRate => fixed(
            "Sustained clock and power",
            "Large matrix products run below the data-sheet peak: power limits, clocks, operand delivery.",
        ),
        Cause::Shape => fixed(
            "Tile and wave losses",
            "Matrix shapes do not fill the tiles and waves of the GPU, so that some of its units stand idle.",
        ),
        Cause::MemoryBound => fixed(
            "Memory-bound kernels",
            "Norms, activations, the optimizer and thin matrix products wait for HBM instead of computing.",
        ),
        Cause::ExponentBound => fixed(
            "Softmax exponentials",
            "Attention waits for the few units that compute exponentials.",
        ),
        Cause::Launch => fixed(
            "Kernel launches",
            "Gaps between kernels: the host launches too slowly, or the kernels are too short.",
        ),
        Cause::Recomputation => fixed(
            "Recomputation",
            "Activations are computed a second time in the backward pass to save memory.",
        ),
        Cause::Contention => fixed(
            "Communication on the SMs",
            "Kernels run slower because communication beside them holds SMs and memory bandwidth.",
        ),
        Cause::Exposed(kind, level) => Explanation {
            label: format!("{} wait, {level}", kind.name()),
            sentence: format!(
                "GPUs wait for {} that nothing hides; {}.",
                purpose(kind),
                whereabouts(level)
            ),
        },
        Cause::Offload => fixed(
            "Host memory wait",
            "GPUs wait for activations on their way to or from the host's memory.",
        ),
        Cause::Allocator => fixed(
            "Memory allocator",
            "Memory is so full that the allocator gives blocks back to the driver and asks for them again.",
        ),
        Cause::Bubble => fixed(
            "Pipeline bubble",
            "A pipeline stage has nothing to do until another stage delivers.",
        ),
        Cause::Imbalance => fixed(
            "Expert imbalance",
            "Some ranks get more tokens than others, and the others wait for them.",
        ),
        Cause::Straggler => fixed(
            "Slow devices",
            "A GPU computes more slowly than its peers, and they wait for it.",
        ),
        Cause::Checkpoint => fixed(
            "Checkpoints",
            "The step waits while a checkpoint is written.",
        ),
        Cause::LostWork => fixed(
            "Lost work",
            "Work that a failure undid and that was done again.",
        ),
        Cause::Idle => fixed("Idle", "GPUs that have no work in this plan."),
    }
}

/// What a kind of communication is for, to follow "wait for".
pub(crate) fn purpose(kind: CommKind) -> &'static str {
    match kind {
        CommKind::Tensor => "tensor-parallel collectives",
        CommKind::Context => "context-parallel exchanges",
        CommKind::Expert => "expert dispatch and combine",
        CommKind::Pipeline => "activations from another pipeline stage",
        CommKind::Data => "gradients and sharded parameters",
    }
}

fn whereabouts(level: impl std::fmt::Display) -> String {
    match level.to_string().as_str() {
        "NVLink" | "local" => "its slowest link is NVLink".into(),
        switch => format!("its slowest link crosses a {switch} switch"),
    }
}

/// What kind of loss a cause is; pictures and text give each kind one colour.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Family {
    /// No loss.
    Useful,
    /// Math below peak.
    Math,
    /// Waiting for communication.
    Communication,
    /// Waiting for each other, or for nothing.
    Waiting,
}

/// The family of the cause with this machine name.
pub(crate) fn family(key: &str) -> Family {
    match key {
        "useful_math" => Family::Useful,
        "offload" | "allocator" | "bubble" | "imbalance" | "straggler" | "checkpoint"
        | "lost_work" | "idle" => Family::Waiting,
        exposed if exposed.starts_with("exposed_") => Family::Communication,
        _ => Family::Math,
    }
}

/// Stable machine name of a cause.
pub fn key(cause: Cause) -> String {
    cause.key().to_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_useful_math_is_no_loss() {
        let useful: Vec<Cause> = Cause::all()
            .filter(|cause| family(&key(*cause)) == Family::Useful)
            .collect();
        assert_eq!(useful, [Cause::UsefulMath]);
    }

    #[test]
    fn labels_fit_their_column_and_differ() {
        let mut labels: Vec<String> = Cause::all().map(|cause| explain(cause).label).collect();
        for label in &labels {
            assert!(label.chars().count() <= 26, "{label}");
        }
        labels.sort();
        labels.dedup();
        assert_eq!(labels.len(), Cause::COUNT);
    }
}
