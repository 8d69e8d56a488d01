//! A plan as a scenario writes it.

use crate::format::wrap;
use rackflow_plan::RankOrder;
use rackflow_workload::{Recompute, Training};
use serde::Serialize;

/// Characters of a line of numbers.
const WIDTH: usize = 84;

/// The keys of `workload.training` that say how the work is divided.
pub(crate) fn yaml(training: &Training, rank_order: RankOrder) -> String {
    let plan = &training.parallelism;
    let recompute = match &training.recompute {
        Recompute::Activations(list) => word(list),
        Recompute::FullLayers(layers) => format!("{{ full_layers: {layers} }}"),
        other => word(other),
    };
    let mut out = format!(
        "precision: {}\nmicro_batch: {}\nschedule: {}\nrecompute: {recompute}\nrank_order: {}\nparallelism:\n",
        word(&training.recipe),
        training.micro_batch,
        word(&training.schedule),
        rank_order_word(rank_order),
    );
    let mut dimension = |name: &str, value: String, is_told: bool| {
        if is_told {
            out.push_str(&format!("  {name}: {value}\n"));
        }
    };
    for (name, ranks) in [
        ("tensor", plan.tensor),
        ("context", plan.context),
        ("pipeline", plan.pipeline),
        ("virtual_pipeline", plan.virtual_pipeline),
        ("expert", plan.expert),
        ("expert_tensor", plan.expert_tensor),
    ] {
        dimension(name, ranks.to_string(), ranks > 1);
    }
    let sequence_parallel = plan.sequence_parallel.to_string();
    dimension("sequence_parallel", sequence_parallel, plan.tensor > 1);
    dimension("data", plan.data.to_string(), true);
    dimension("zero", u8::from(plan.zero).to_string(), true);
    if let Some(group) = plan.zero_group {
        dimension("zero_group", group.to_string(), true);
    }
    if let Some(list) = &training.layers_per_chunk {
        let numbers: Vec<String> = list.iter().map(u64::to_string).collect();
        let rows = wrap(
            &format!("layers_per_chunk: [{}]", numbers.join(", ")),
            WIDTH,
        );
        out.push_str(&format!("{}\n", rows.join("\n  ")));
    }
    out
}

/// As a scenario writes it.
pub(crate) fn rank_order_word(order: RankOrder) -> &'static str {
    match order {
        RankOrder::DataBeforePipeline => "data_before_pipeline",
        RankOrder::PipelineBeforeData => "pipeline_before_data",
    }
}

/// A word or a list of words: JSON without its quotes is YAML then.
fn word(value: &impl Serialize) -> String {
    let text = serde_json::to_string(value);
    // Enums of plain words, so that nothing can fail.
    text.expect("words become JSON")
        .replace('"', "")
        .replace(',', ", ")
}
