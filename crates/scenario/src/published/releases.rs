//! What the scripts of a release set for a model on an accelerator, where the row that was published with it
//! does not say so itself: read from the repository as it was then.

use super::{Declared, PublishedRun, survey};
use serde::Deserialize;
use std::sync::LazyLock;

/// One line each: which rows, what their scripts set, and where that is read. Models and accelerators of which no
/// run ships are there for the rows of others (`rackflow validate training --data`).
const SETTINGS: &str = include_str!("../../data/release_settings.jsonl");

/// What one script sets.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
struct Settings {
    /// As [`PublishedRun::source`], [`PublishedRun::release`] and the name of its model.
    source: String,
    release: String,
    model: String,
    /// What the name of the accelerator begins with.
    gpu: String,
    /// What the number formats begin with; left out: any. `FP8` is any format of 8 bits.
    #[serde(default)]
    precision: Option<String>,
    /// Whether tokens are dropped; left out: either way.
    #[serde(default)]
    token_drop: Option<bool>,
    /// Whether parameters are sharded (ZeRO 3); left out: either way.
    #[serde(default)]
    sharded: Option<bool>,
    declared: Declared,
    /// Layers of the chunks, in Megatron's spelling.
    #[serde(default)]
    layout: Option<String>,
    /// Files of the repository and the commit.
    from: String,
}

static READ: LazyLock<Vec<Settings>> = LazyLock::new(|| {
    let lines = SETTINGS.lines().filter(|line| !line.is_empty());
    // They ship, and a test reads them.
    lines
        .map(|line| serde_json::from_str(line).expect("the settings that ship are well formed"))
        .collect()
});

impl Settings {
    fn is_of(&self, run: &PublishedRun) -> bool {
        let precision = run.precision.as_deref().unwrap_or_default();
        let has_precision = match self.precision.as_deref() {
            None => true,
            Some("FP8") => precision.contains("FP8"),
            Some(other) => precision.starts_with(other),
        };
        self.source == run.source
            && self.release == run.release
            && self.model == run.model.name
            && run.gpu.starts_with(&self.gpu)
            && has_precision
            && self
                .token_drop
                .is_none_or(|dropped| dropped == run.declared.token_drop)
            && self
                .sharded
                .is_none_or(|sharded| sharded == (run.plan.zero == Some(3)))
    }
}

/// The run with what its release set where it does not say itself, and where that is read. Recomputation and a
/// dispatcher that only another plan of the same model declares give way.
pub(super) fn with_settings(run: &PublishedRun) -> (PublishedRun, Option<&'static str>) {
    let mut run = run.clone();
    let Some(settings) = READ.iter().find(|settings| settings.is_of(&run)) else {
        return (run, None);
    };
    let (ours, theirs) = (&mut run.declared, &settings.declared);
    if theirs.recompute.is_some() && (ours.recompute.is_none() || ours.recompute_is_assumed) {
        ours.recompute.clone_from(&theirs.recompute);
        ours.recompute_is_assumed = false;
    }
    for (ours, theirs) in [
        (&mut ours.gradient_reduce, theirs.gradient_reduce),
        (&mut ours.expert, theirs.expert),
        (&mut ours.shared_expert, theirs.shared_expert),
        (&mut ours.keeps_gather_buffers, theirs.keeps_gather_buffers),
        (
            &mut ours.fused_gradient_accumulation,
            theirs.fused_gradient_accumulation,
        ),
    ] {
        *ours = ours.or(theirs);
    }
    ours.layers_on_host = ours.layers_on_host.or(theirs.layers_on_host);
    ours.cuda_graphs = ours.cuda_graphs.or(theirs.cuda_graphs);
    if theirs.dispatcher.is_some() && (ours.dispatcher.is_none() || ours.dispatcher_is_assumed) {
        ours.dispatcher = theirs.dispatcher;
        ours.dispatcher_is_assumed = false;
    }
    if let Some(layout) = &settings.layout {
        let chunks = run.plan.pipeline.unwrap_or(1) * run.plan.virtual_pipeline.unwrap_or(1);
        let layers = survey::layers_of_layout(layout);
        let layers = layers.filter(|layers| layers.len() == chunks as usize);
        run.plan.layers_per_chunk = run.plan.layers_per_chunk.or(layers);
    }
    (run, Some(&settings.from))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::published::{SHIPPED, read};
    use rackflow_workload::{CudaGraphs, ExpertDispatcher, Recompute};

    /// The run that ships whose name begins so.
    fn shipped(name: &str) -> PublishedRun {
        let runs = read(SHIPPED).expect("the shipped runs are well formed");
        let run = runs.into_iter().find(|run| run.id.starts_with(name));
        run.expect("the run ships")
    }

    /// Each line is well formed, has a source, fills only what [`with_settings`] hands on, and is the only one
    /// for its rows.
    #[test]
    fn settings_are_facts_with_a_source() {
        for (i, settings) in READ.iter().enumerate() {
            assert!(
                settings.from.contains("scripts/performance"),
                "{settings:?}"
            );
            let declared = Declared {
                recompute: settings.declared.recompute.clone(),
                gradient_reduce: settings.declared.gradient_reduce,
                expert: settings.declared.expert,
                shared_expert: settings.declared.shared_expert,
                cuda_graphs: settings.declared.cuda_graphs,
                dispatcher: settings.declared.dispatcher,
                layers_on_host: settings.declared.layers_on_host,
                keeps_gather_buffers: settings.declared.keeps_gather_buffers,
                fused_gradient_accumulation: settings.declared.fused_gradient_accumulation,
                ..Declared::default()
            };
            assert_eq!(settings.declared, declared, "a setting is not handed on");
            if let Some(layout) = &settings.layout {
                let layers = survey::layers_of_layout(layout).expect("a layout");
                assert_eq!(layers.iter().sum::<u64>(), 61, "{layout}");
            }
            let same = |other: &&Settings| {
                let (a, b) = (settings, *other);
                (&a.source, &a.release, &a.model, &a.gpu)
                    == (&b.source, &b.release, &b.model, &b.gpu)
                    && (a.precision == b.precision
                        || a.precision.is_none()
                        || b.precision.is_none())
                    && (a.token_drop == b.token_drop
                        || a.token_drop.is_none()
                        || b.token_drop.is_none())
                    && (a.sharded == b.sharded || a.sharded.is_none() || b.sharded.is_none())
            };
            assert!(
                !READ[..i].iter().any(|other| same(&other)),
                "twice: {settings:?}"
            );
        }
    }

    #[test]
    fn a_run_keeps_what_it_says_itself() {
        let run = &shipped("mb-25.11-pretrain-DeepSeekV3-B200");
        assert!(run.declared.recompute_is_assumed);
        let (filled, from) = with_settings(run);
        assert!(from.is_some_and(|from| from.contains("d19cb73")));
        assert!(!filled.declared.recompute_is_assumed);
        assert_ne!(filled.declared.recompute, run.declared.recompute);
        assert_eq!(
            filled.declared.dispatcher,
            Some(ExpertDispatcher::NcclAllToAll)
        );
        let mut told = run.clone();
        told.declared.recompute = Some(Recompute::None);
        told.declared.recompute_is_assumed = false;
        told.declared.cuda_graphs = Some(CudaGraphs::Full);
        told.declared.dispatcher = Some(ExpertDispatcher::DeepEp);
        told.declared.expert = Some(true);
        let filled = with_settings(&told).0.declared;
        assert_eq!(filled.gradient_reduce, Some(true));
        let said = |of: &Declared| {
            (
                of.recompute.clone(),
                of.cuda_graphs,
                of.dispatcher,
                of.expert,
            )
        };
        assert_eq!(said(&filled), said(&told.declared));
        // Another release is another script.
        let mut other = run.clone();
        other.release = "26.08".to_owned();
        assert_eq!(with_settings(&other), (other, None));
    }

    #[test]
    fn a_dispatcher_of_another_plan_gives_way() {
        let mut run = shipped("mb-26.02-pretrain-Qwen3_30B_a3B-H100");
        assert_eq!(
            (run.declared.dispatcher, run.declared.dispatcher_is_assumed),
            (Some(ExpertDispatcher::HybridEp), true)
        );
        let filled = with_settings(&run).0.declared;
        assert_eq!(
            (filled.dispatcher, filled.dispatcher_is_assumed),
            (Some(ExpertDispatcher::NcclAllToAll), false)
        );
        run.declared.dispatcher_is_assumed = false;
        let kept = with_settings(&run).0.declared;
        assert_eq!(kept.dispatcher, Some(ExpertDispatcher::HybridEp));
    }

    /// Scripts differ by accelerator, number format, and what becomes of tokens.
    #[test]
    fn a_script_is_of_its_accelerator_format_and_tokens() {
        let run = shipped("mb-25.09-pretrain-DeepSeekV3-B200");
        let filled = |gpu: &str, precision: &str, token_drop: bool| {
            let mut run = run.clone();
            run.gpu = gpu.to_owned();
            run.precision = Some(precision.to_owned());
            run.declared.recompute_is_assumed = true;
            run.declared.token_drop = token_drop;
            let (filled, from) = with_settings(&run);
            (filled.declared, from)
        };
        let graphs = |gpu: &str, precision: &str| filled(gpu, precision, true).0.cuda_graphs;
        assert_eq!(graphs("B200-SXM-180GB", "FP8"), Some(CudaGraphs::Partial));
        assert_eq!(graphs("B200-SXM-180GB", "MXFP8"), Some(CudaGraphs::Partial));
        assert_eq!(graphs("B200-SXM-180GB", "BF16"), Some(CudaGraphs::None));
        assert_eq!(filled("B200-SXM-180GB", "NVFP4", true).1, None);
        assert_eq!(filled("H200-SXM", "FP8", true).1, None);
        let dropped = filled("GB200-NVL72", "BF16", true).0;
        let kept = filled("GB200-NVL72", "BF16", false).0;
        assert_eq!(dropped.cuda_graphs, Some(CudaGraphs::Partial), "not B200's");
        assert_ne!(dropped.recompute, kept.recompute);
    }

    /// What only sharded runs set is theirs alone.
    #[test]
    fn a_script_is_of_sharded_parameters_or_not() {
        let mut run = shipped("mb-25.11-pretrain-LLAMA3_70B-GB200-64-FP8");
        assert_eq!(run.plan.zero, Some(3));
        let filled = with_settings(&run).0.declared;
        assert_eq!(filled.layers_on_host, Some(40));
        assert_eq!(filled.keeps_gather_buffers, Some(true));
        assert_eq!(filled.fused_gradient_accumulation, Some(false));
        let mut told = run.clone();
        told.declared.layers_on_host = Some(20);
        assert_eq!(with_settings(&told).0.declared.layers_on_host, Some(20));
        run.precision = Some("BF16".to_owned());
        assert_eq!(with_settings(&run).0.declared.layers_on_host, Some(20));
        run.plan.zero = Some(1);
        assert_eq!(with_settings(&run), (run.clone(), None));
    }

    /// A layout is taken where the plan has as many chunks.
    #[test]
    fn a_layout_needs_its_chunks() {
        let mut run = shipped("mb-25.11-pretrain-DeepSeekV3-B200");
        run.gpu = "H100-SXM-80GB".to_owned();
        (run.plan.pipeline, run.plan.virtual_pipeline) = (Some(8), Some(4));
        let layers = with_settings(&run)
            .0
            .plan
            .layers_per_chunk
            .expect("32 chunks");
        assert_eq!(
            (layers.len(), layers[0], layers[1], layers[31]),
            (32, 1, 2, 0)
        );
        run.plan.virtual_pipeline = Some(2);
        assert_eq!(with_settings(&run).0.plan.layers_per_chunk, None);
    }
}
