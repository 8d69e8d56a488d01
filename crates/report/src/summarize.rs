//! From what happened to what it means.

use crate::advice;
use crate::causes::{explain, key};
use crate::detail;
use crate::disturbed::Disturbed;
use crate::outlook;
use crate::report::{
    ByConvention, Cluster, Comparison, Engine, Figure, Loss, Memory, Model, OverSeeds, Peak, Plan,
    Rack, Report, SCHEMA_VERSION, TflopsPerGpu, Training, Vision,
};
use rackflow_plan::{Accounts, Cause, Facts, Fidelity, StageFacts};
use rackflow_simulator::{Record, RunRecord, Trace};
use rackflow_topology::{Fabric, Node, Part};
use rackflow_units::Bytes;
use rackflow_workload::{Activation, Frozen, Recipe, Recompute, Schedule};
use thiserror::Error;

/// What a report needs besides the record.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Options {
    /// Wall time of the simulation; measured by the caller, because this crate has no clock.
    pub wall_s: f64,
    /// What was published about the run that the scenario replays.
    pub published: Option<Published>,
    /// What power and hardware cost.
    pub economics: Option<rackflow_plan::Economics>,
    /// The whole training run of which the record is one step.
    pub run: Option<RunRecord>,
    /// Step times in seconds under all seeds, where there are several.
    pub over_seeds: Vec<f64>,
    /// What the first rank of each pipeline stage did.
    pub timeline: Option<Trace>,
}

/// What was published about a run. Absent where the source does not say it.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Published {
    /// Where it was printed, and by which convention.
    pub source: String,
    /// Wall time of one step, in seconds.
    pub step_time_s: Option<f64>,
    /// TFLOP/s per GPU, in the source's own convention.
    pub tflops_per_gpu: Option<f64>,
    /// Model FLOPs utilisation as a fraction, in the source's own convention.
    pub mfu: Option<f64>,
}

/// Why a record cannot be summarized: it contradicts itself, which is a defect of the simulator.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ReportError {
    /// A class of ranks has more or less time booked than the step took.
    #[error("the accounts of class {class} sum to {booked} ps and the step took {step} ps")]
    AccountsDoNotSum {
        /// Which class.
        class: usize,
        /// Picoseconds booked.
        booked: u128,
        /// Picoseconds of the step.
        step: u64,
    },
    /// The classes do not hold every GPU exactly once.
    #[error("class {class} says it has {ranks} ranks and {found} GPUs are of that class")]
    ClassSizes {
        /// Which class.
        class: usize,
        /// As recorded.
        ranks: u64,
        /// As counted.
        found: u64,
    },
    /// A GPU has no class, or the racks do not hold every GPU exactly once.
    #[error("{what} covers {found} of {gpus} GPUs")]
    Coverage {
        /// "the record" or "the list of racks".
        what: &'static str,
        /// GPUs covered.
        found: u64,
        /// GPUs of the cluster.
        gpus: u64,
    },
    /// A run has more or less time booked than it took.
    #[error("replication {replication} of the run books {booked} ns of {wall} ns")]
    RunDoesNotSum {
        /// Which replication.
        replication: usize,
        /// Nanoseconds booked.
        booked: u64,
        /// Nanoseconds of the run.
        wall: u64,
    },
    /// A step without time has no rates.
    #[error("the step took no time")]
    EmptyStep,
}

/// What `record` means.
///
/// # Errors
/// When the record contradicts itself: above all when the accounts do not sum to GPUs x step time,
/// to the picosecond.
pub fn summarize(record: &Record, options: Options) -> Result<Report, ReportError> {
    check(record)?;
    let facts = &record.facts;
    let total = record.total();
    let training = Training {
        over_seeds: OverSeeds::of(&options.over_seeds),
        ..training(record, &total)
    };
    let mut report = Report {
        schema_version: SCHEMA_VERSION,
        scenario: facts.scenario.clone(),
        model: model(facts),
        cluster: cluster(facts),
        plan: plan(facts),
        racks: racks(record),
        waterfall: waterfall(&weighted(record, &total)),
        what_to_change: advice::changes(facts, &total),
        economics: None,
        run: None,
        published: options
            .published
            .map(|published| compare(&training, published)),
        training,
        disturbed: Disturbed::of(
            &facts.faults,
            &facts.stragglers,
            record.step_time.as_secs_f64(),
        ),
        assumed: facts.training.assumed.clone(),
        warnings: warnings(facts),
        memory_by_stage: memory_by_stage(facts),
        kernels: Some(detail::kernels(facts, total.total_picos() as f64 * 1e-12)),
        links: Some(detail::links(record)),
        timeline: options.timeline.as_ref().and_then(detail::timeline),
        engine: Engine {
            events: record.engine.events,
            ranks_simulated: record.engine.entities,
            wall_s: options.wall_s,
            fidelity: match record.engine.fidelity {
                Fidelity::Folded => "folded".into(),
                Fidelity::Full => "full".into(),
            },
            seed: record.engine.seed,
        },
    };
    // Power is always known, whatever is paid for it.
    if let Some(prices) = &options.economics {
        let economics = outlook::economics(record, &report, prices);
        if let Some(run) = &options.run {
            check_run(run)?;
            report.run = Some(outlook::run(run, &report, &economics));
        }
        report.economics = Some(economics);
    }
    Ok(report)
}

/// Every GPU-second is booked exactly once. Checked in every build, for every run.
fn check(record: &Record) -> Result<(), ReportError> {
    let gpus = u64::from(record.facts.cluster.gpus);
    let step = record.step_time.as_picos();
    if step == 0 {
        return Err(ReportError::EmptyStep);
    }
    for (class, ranks) in record.classes.iter().enumerate() {
        let booked = ranks.accounts.total_picos();
        if booked != u128::from(step) {
            return Err(ReportError::AccountsDoNotSum {
                class,
                booked,
                step,
            });
        }
    }
    let mut found = vec![0_u64; record.classes.len()];
    let mut covered = 0;
    for class in &record.class_of_gpu {
        if let Some(count) = found.get_mut(*class as usize) {
            *count += 1;
            covered += 1;
        }
    }
    if covered != gpus || record.class_of_gpu.len() as u64 != gpus {
        return Err(ReportError::Coverage {
            what: "the record",
            found: covered,
            gpus,
        });
    }
    for (class, (ranks, found)) in record.classes.iter().zip(found).enumerate() {
        let ranks = u64::from(ranks.ranks);
        if ranks != found {
            return Err(ReportError::ClassSizes {
                class,
                ranks,
                found,
            });
        }
    }
    let mut next = 0;
    for rack in &record.facts.racks {
        if rack.start != next || rack.end < rack.start {
            break;
        }
        next = rack.end;
    }
    if u64::from(next) != gpus {
        return Err(ReportError::Coverage {
            what: "the list of racks",
            found: next.into(),
            gpus,
        });
    }
    Ok(())
}

fn model(facts: &Facts) -> Model {
    Model {
        name: facts.training.model.name.clone(),
        parameters: facts.parameters,
        active_parameters: facts.active_parameters,
        flops_per_step_causal: facts.model_flops_causal,
        flops_per_step_noncausal: facts.model_flops_noncausal,
        vision: vision(facts),
    }
}

fn vision(facts: &Facts) -> Option<Vision> {
    let training = &facts.training;
    let (vision, images) = training.vision()?;
    Some(Vision {
        parameters: training.parameters_of_vision() as f64,
        images_per_sequence: images.per_sequence,
        pixels: [images.height, images.width],
        tokens_per_image: vision.tokens(images),
        frozen: match images.frozen {
            Frozen::Nothing => "nothing",
            Frozen::Encoder => "encoder",
            Frozen::EncoderAndProjector => "encoder_and_projector",
        }
        .to_owned(),
        flops_per_step: training.vision_flops(),
    })
}

fn cluster(facts: &Facts) -> Cluster {
    let gpus = f64::from(facts.cluster.gpus);
    let fullest = facts
        .racks
        .iter()
        .map(|rack| u64::from(rack.end - rack.start))
        .max();
    Cluster {
        node: names(facts, |node| &node.name),
        accelerator: names(facts, |node| &node.accelerator.name),
        fabric: if facts.cluster.gpus <= facts.cluster.node.gpus {
            "one node".into()
        } else {
            fabric(&facts.cluster.fabric)
        },
        gpus: facts.cluster.gpus.into(),
        racks: facts.racks.len() as u64,
        gpus_per_rack: fullest.unwrap_or(0),
        peak_flops: Peak {
            bf16: facts.peak_bf16.flops_per_sec() * gpus,
            native: facts.peak_native.flops_per_sec() * gpus,
        },
        native_precision: facts.native.to_string(),
    }
}

/// The names of all kinds of nodes, side by side.
fn names(facts: &Facts, name: impl Fn(&Node) -> &String) -> String {
    if !facts.cluster.is_mixed() {
        return name(&facts.cluster.node).clone();
    }
    let parts = facts.cluster.parts.iter();
    let mut names: Vec<&str> = parts.map(|part| name(&part.node).as_str()).collect();
    names.dedup();
    names.join(" + ")
}

/// What each kind of accelerator has of the mean peak, in the format of the linear layers.
fn shares_of_peak(facts: &Facts) -> Vec<f64> {
    if !facts.cluster.is_mixed() {
        return vec![1.0];
    }
    let mean = facts.peak_native.flops_per_sec();
    let peak = |part: &Part| part.node.accelerator.peak.get(facts.native).flops_per_sec() / mean;
    facts.cluster.kinds().iter().map(peak).collect()
}

/// Accounts of all ranks in time of a GPU of the mean peak: a second of a fast one counts more. Where
/// all are of one kind, `total`.
fn weighted(record: &Record, total: &Accounts) -> Accounts {
    /// Fixed point of the weights.
    const ONE: u64 = 1 << 20;
    if !record.facts.cluster.is_mixed() {
        return total.clone();
    }
    let shares = shares_of_peak(&record.facts);
    let mut sum = Accounts::default();
    for class in &record.classes {
        let weight = (shares[class.kind as usize] * ONE as f64).round() as u64;
        sum.add(&class.accounts, u64::from(class.ranks) * weight);
    }
    sum.divided_by(ONE)
}

/// A fabric in a few words.
pub(crate) fn fabric(fabric: &Fabric) -> String {
    let shape = |name: &str, tiers: u32, leaf: f64, spine: f64| {
        let mut text = format!("{tiers}-tier {name}");
        for (at, ratio) in [("leaf", leaf), ("spine", spine)] {
            if ratio > 1.0 {
                text.push_str(&format!(", {ratio}:1 at the {at}"));
            }
        }
        text
    };
    match fabric {
        Fabric::FatTree(tree) => shape(
            "fat tree",
            tree.tiers,
            tree.leaf_oversubscription,
            tree.spine_oversubscription,
        ),
        Fabric::RailOptimized(tree) => shape(
            "rail-optimised tree",
            tree.tiers,
            tree.leaf_oversubscription,
            tree.spine_oversubscription,
        ),
        Fabric::MultiPlaneFatTree(tree) => format!("{}-plane two-tier fat tree", tree.planes),
        Fabric::RailOnly(tree) => shape(
            "rail-only tree",
            tree.tiers,
            tree.leaf_oversubscription,
            1.0,
        ),
        Fabric::DragonflyPlus(groups) => match groups.global_oversubscription {
            ratio if ratio > 1.0 => format!("Dragonfly+, {ratio}:1 between groups"),
            _ => "Dragonfly+".to_owned(),
        },
    }
}

pub(crate) fn plan(facts: &Facts) -> Plan {
    let training = &facts.training;
    let parallelism = &training.parallelism;
    Plan {
        tensor: parallelism.tensor,
        sequence_parallel: parallelism.sequence_parallel,
        context: parallelism.context,
        pipeline: parallelism.pipeline,
        virtual_pipeline: parallelism.virtual_pipeline,
        data: parallelism.data,
        expert: parallelism.expert,
        expert_tensor: parallelism.expert_tensor,
        zero: parallelism.zero.into(),
        schedule: schedule(training.schedule, parallelism.virtual_pipeline),
        precision: precision(training.recipe).into(),
        recompute: recompute(&training.recompute),
        stack: training.stack.name.clone(),
        sequence_length: training.sequence_length,
        global_batch: training.global_batch,
        micro_batch: training.micro_batch,
        micro_batches: facts.micro_batches,
    }
}

fn schedule(schedule: Schedule, chunks: u32) -> String {
    match schedule {
        Schedule::Gpipe => "GPipe".into(),
        Schedule::OneForwardOneBackward if chunks > 1 => "interleaved 1F1B".into(),
        Schedule::OneForwardOneBackward => "1F1B".into(),
        Schedule::ZeroBubbleH1 => "ZB-H1".into(),
        Schedule::ZeroBubbleH2 => "ZB-H2".into(),
        Schedule::Dualpipe => "DualPipe".into(),
    }
}

fn precision(recipe: Recipe) -> &'static str {
    match recipe {
        Recipe::Fp16 => "fp16",
        Recipe::Bf16 => "bf16",
        Recipe::Fp8 => "fp8",
        Recipe::Fp8Delayed => "fp8 (delayed)",
        Recipe::Fp8Rowwise => "fp8 (rowwise)",
        Recipe::Fp8Blockwise => "fp8 (blockwise)",
        Recipe::Mxfp8 => "mxfp8",
        Recipe::Nvfp4 => "nvfp4",
    }
}

fn recompute(recompute: &Recompute) -> String {
    let name = |activation: &Activation| match activation {
        Activation::CoreAttention => "core attention",
        Activation::Norms => "norms",
        Activation::MlaUpProjection => "MLA up-projection",
        Activation::Swiglu => "SwiGLU",
        Activation::Mlp => "MLP",
        Activation::MoeActivation => "MoE activation",
        Activation::Moe => "MoE",
    };
    match recompute {
        Recompute::None => "nothing".into(),
        Recompute::Selective => "core attention".into(),
        Recompute::Full => "whole layers".into(),
        Recompute::FullLayers(layers) => format!("{layers} whole layers per chunk"),
        Recompute::Operators => "all but attention and the first of every two products".into(),
        Recompute::Activations(some) if some.is_empty() => "nothing".into(),
        Recompute::Activations(some) => some.iter().map(name).collect::<Vec<_>>().join(", "),
    }
}

fn training(record: &Record, total: &Accounts) -> Training {
    let facts = &record.facts;
    let step = record.step_time.as_secs_f64();
    let gpus = f64::from(facts.cluster.gpus);
    let tokens_per_s = facts.training.tokens() as f64 / step;
    let by_convention = |causal: f64, noncausal: f64| ByConvention {
        bf16_causal: causal / step / gpus / facts.peak_bf16.flops_per_sec(),
        bf16_noncausal: noncausal / step / gpus / facts.peak_bf16.flops_per_sec(),
        native_causal: causal / step / gpus / facts.peak_native.flops_per_sec(),
        native_noncausal: noncausal / step / gpus / facts.peak_native.flops_per_sec(),
    };
    let hfu = by_convention(facts.hardware_flops_causal, facts.hardware_flops_noncausal);
    let exposed = Cause::all().filter(|cause| matches!(cause, Cause::Exposed(..)));
    Training {
        step_time_s: step,
        tokens_per_s,
        tokens_per_s_per_gpu: tokens_per_s / gpus,
        model_tflops_per_gpu: TflopsPerGpu {
            causal: facts.model_flops_causal / step / gpus / 1e12,
            noncausal: facts.model_flops_noncausal / step / gpus / 1e12,
        },
        mfu: by_convention(facts.model_flops_causal, facts.model_flops_noncausal),
        hfu: hfu.bf16_noncausal,
        hfu_by_convention: hfu,
        bubble_fraction: fraction(total, [Cause::Bubble]),
        exposed_comm_fraction: fraction(total, exposed),
        memory_per_gpu_bytes: fullest(&memory_by_stage(facts)),
        over_seeds: None,
    }
}

/// The share of all booked time that `causes` take.
pub(crate) fn fraction(total: &Accounts, causes: impl IntoIterator<Item = Cause>) -> f64 {
    let picos: u128 = causes.into_iter().map(|cause| total.picos(cause)).sum();
    picos as f64 / total.total_picos() as f64
}

/// What a user should know about the plan.
fn warnings(facts: &Facts) -> Vec<String> {
    let near = |stage: &StageFacts| {
        stage.is_crowded() || stage.is_stalled() || stage.pressure.lacks_place()
    };
    if !facts.stages.iter().any(near) {
        return Vec::new();
    }
    // Another stage may wait than the one with least free.
    let fullest = facts
        .stages
        .iter()
        .min_by_key(|s| (s.free_for_pieces(), s.free()));
    let slowest = facts.stages.iter().max_by_key(|stage| stage.pressure.time);
    let (Some(fullest), Some(slowest)) = (fullest, slowest) else {
        return Vec::new();
    };
    let lacking = facts
        .stages
        .iter()
        .map(|stage| stage.pressure.lacking)
        .max();
    let slack = fullest.pressure.slack;
    let cost = if let Some(lacking) = lacking.filter(|lacking| *lacking > Bytes::ZERO) {
        let why = if slack > fullest.free() {
            "with these there is"
        } else {
            "segments that are partly in use leave"
        };
        format!(
            "{why} no place for all tensors, so it may run out of memory; the step is that with {lacking} more"
        )
    } else if slowest.is_stalled() {
        let pressure = &slowest.pressure;
        format!(
            "the ranks of a stage each give the allocator's cache back {:.1} times a step and wait for each other, \
             which takes their hosts {}",
            pressure.flushes, pressure.time
        )
    } else {
        "with a little less the allocator would slow the step".to_owned()
    };
    let way_out = match facts.gain_of_other_segments() {
        Some(gain) => format!(
            "; with allocator: {} it would {}; a smaller micro-batch or recomputation leave more",
            advice::name_of(gain.allocator),
            advice::wait_less(&gain)
        ),
        None => "; a smaller micro-batch or recomputation leave more".to_owned(),
    };
    let of_it = if slack > Bytes::ZERO {
        format!(", while small tensors and workspaces take some {slack}")
    } else {
        String::new()
    };
    vec![format!(
        "{} free on the fullest GPU{of_it}: {cost}; memory is counted within some 4 %, so it may be nothing or several times as \
         much{way_out}",
        fullest.free()
    )]
}

fn memory_by_stage(facts: &Facts) -> Vec<Memory> {
    let stages = facts.stages.iter().enumerate();
    stages
        .map(
            |(
                stage,
                StageFacts {
                    memory: of,
                    capacity,
                    ..
                },
            )| Memory {
                weights: of.weights.get(),
                gradients: of.gradients.get(),
                optimizer: of.optimizer.get(),
                activations: of.activations.get(),
                buffers: of.buffers.get(),
                reserved: of.reserved.get(),
                total: of.total().get(),
                capacity: capacity.get(),
                stage: stage as u64,
                stages: facts.stages.len() as u64,
            },
        )
        .collect()
}

fn fullest(stages: &[Memory]) -> Memory {
    // The first of equally full stages, so that the report does not depend on their order.
    let full = |memory: &Memory| memory.total as f64 / memory.capacity.max(1) as f64;
    let fullest = stages
        .iter()
        .rev()
        .max_by(|a, b| full(a).total_cmp(&full(b)));
    fullest.copied().expect("a plan has a stage")
}

fn racks(record: &Record) -> Vec<Rack> {
    let mean = record.facts.peak_native.flops_per_sec();
    let shares = shares_of_peak(&record.facts);
    let useful: Vec<u128> = record
        .classes
        .iter()
        .map(|class| class.accounts.picos(Cause::UsefulMath))
        .collect();
    let step = u128::from(record.step_time.as_picos());
    let rack = |(id, gpus): (usize, &std::ops::Range<u32>)| {
        let classes = &record.class_of_gpu[gpus.start as usize..gpus.end as usize];
        let picos: u128 = classes.iter().map(|class| useful[*class as usize]).sum();
        // A rack holds nodes of one kind.
        let first = classes
            .first()
            .and_then(|class| record.classes.get(*class as usize));
        let share = first.map_or(1.0, |class| shares[class.kind as usize]);
        let peak_flops = mean * share * classes.len() as f64;
        let fraction = if classes.is_empty() {
            0.0
        } else {
            picos as f64 / (step * classes.len() as u128) as f64
        };
        Rack {
            id: id as u64,
            gpus: classes.len() as u64,
            effective_flops: fraction * peak_flops,
            peak_flops,
            fraction,
        }
    };
    record.facts.racks.iter().enumerate().map(rack).collect()
}

pub(crate) fn waterfall(total: &Accounts) -> Vec<Loss> {
    let nonzero = Cause::all().filter(|cause| total.picos(*cause) > 0);
    nonzero
        .map(|cause| {
            let words = explain(cause);
            Loss {
                cause: key(cause),
                label: words.label,
                explanation: words.sentence,
                gpu_seconds: total.seconds(cause),
                fraction: fraction(total, [cause]),
            }
        })
        .collect()
}

/// Sources count FLOPs in at least six ways and seldom say which, so a published rate stands beside
/// each convention of ours that it may follow; only the step time has one meaning.
fn compare(training: &Training, published: Published) -> Comparison {
    let mut figures = Vec::new();
    let mut row = |metric: &str, published: Option<f64>, simulated: f64| {
        if let Some(published) = published.filter(|value| *value > 0.0) {
            let error = simulated / published - 1.0;
            figures.push(Figure {
                metric: metric.into(),
                published,
                simulated,
                error,
            });
        }
    };
    let (tflops, mfu, hfu) = (
        &training.model_tflops_per_gpu,
        &training.mfu,
        &training.hfu_by_convention,
    );
    let recomputes = hfu.bf16_noncausal > 1.001 * mfu.bf16_noncausal;
    row("step_time_s", published.step_time_s, training.step_time_s);
    row(
        "model_tflops_per_gpu_causal",
        published.tflops_per_gpu,
        tflops.causal,
    );
    row(
        "model_tflops_per_gpu_noncausal",
        published.tflops_per_gpu,
        tflops.noncausal,
    );
    if recomputes {
        let hardware = tflops.noncausal * hfu.bf16_noncausal / mfu.bf16_noncausal;
        row(
            "hardware_tflops_per_gpu_noncausal",
            published.tflops_per_gpu,
            hardware,
        );
    }
    row("mfu_bf16_causal", published.mfu, mfu.bf16_causal);
    row("mfu_bf16_noncausal", published.mfu, mfu.bf16_noncausal);
    if recomputes {
        row("hfu_bf16_noncausal", published.mfu, hfu.bf16_noncausal);
    }
    Comparison {
        source: published.source,
        figures,
    }
}

/// Every nanosecond of a run is booked once.
fn check_run(run: &RunRecord) -> Result<(), ReportError> {
    for (replication, found) in run.replications.iter().enumerate() {
        let (booked, wall) = (found.time.total(), found.wall);
        if booked != wall {
            return Err(ReportError::RunDoesNotSum {
                replication,
                booked,
                wall,
            });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use rackflow_scenario::{Catalogue, published};
    use rackflow_units::SimDuration;

    /// The warning tells what is free where least is, though another stage may wait.
    #[test]
    fn a_stage_that_waits_is_not_called_the_fullest() {
        let runs = published::read(published::SHIPPED).expect("well formed");
        let run = runs
            .iter()
            .find(|run| run.id == "pr6429-dsv3-14L-nooverlap-rc")
            .expect("shipped");
        let setup = published::setup(run, Catalogue::builtin()).expect("a whole plan");
        let mut facts = rackflow_plan::compile(&setup).expect("sound").facts;
        assert!(warnings(&facts).is_empty());
        let gigabytes = |n: u64| Bytes::new(n * 1_000_000_000);
        for (stage, free) in facts.stages.iter_mut().zip([7, 5, 6, 8]) {
            stage.capacity = stage.memory.total() + gigabytes(free);
        }
        assert!(warnings(&facts).is_empty());
        facts.stages[2].pressure.time = SimDuration::from_micros(2_000_000);
        facts.stages[2].pressure.flushes = 3.0;
        let [warning] = &warnings(&facts)[..] else {
            panic!("one warning");
        };
        let free = gigabytes(5);
        assert!(
            warning.starts_with(&format!("{free} free on the fullest GPU")),
            "{warning}"
        );
        assert!(warning.contains("back 3.0 times a step"), "{warning}");
    }
}
