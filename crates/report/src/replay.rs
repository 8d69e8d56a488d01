//! What a replayed execution trace means.

use crate::format::{number, percent, seconds};
use crate::paint::Style;
use crate::report::{Cluster, Loss, Peak, Rack, SCHEMA_VERSION};
use crate::summarize::{ReportError, fabric};
use crate::text;
use rackflow_plan::replay::{CommunicationKind, ReplayCounts, ReplayPlan};
use rackflow_simulator::replay::{ReplayCause, ReplayRecord};
use rackflow_topology::Level;
use rackflow_units::counted;
use schemars::JsonSchema;
use serde::Serialize;

/// A replayed execution trace. Times are in seconds, rates per second.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
pub struct ReplayReport {
    /// Version of this document's layout.
    pub schema_version: u32,
    /// Name of the scenario.
    pub scenario: String,
    /// On what.
    pub cluster: Cluster,
    /// What was replayed, and how long it took.
    pub replay: Replay,
    /// What each rack delivers; its GPUs are those that were replayed.
    pub racks: Vec<Rack>,
    /// From peak to useful operations: where the time of all replayed ranks went. The fractions sum
    /// to 1.
    pub waterfall: Vec<Loss>,
    /// Waiting for communication, by kind.
    pub exposed: Vec<Exposed>,
    /// How the simulation itself went.
    pub engine: ReplayEngine,
}

/// What was replayed, and how long it took.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
pub struct Replay {
    /// From the first start to the last end.
    pub step_time_s: f64,
    /// Ranks that have a trace.
    pub ranks: u64,
    /// Ranks that the trace speaks of and that have none; they are taken to be ready whenever
    /// somebody waits for them.
    pub ranks_missing: u64,
    /// Nodes of all ranks.
    pub nodes: u64,
    /// Kernels that took as long as was recorded.
    pub kernels_recorded: u64,
    /// Kernels whose time follows from their operations and bytes.
    pub kernels_priced: u64,
    /// Kernels of which the trace says nothing; they took no time.
    pub kernels_unknown: u64,
    /// Of the first, kernels that do more operations than the accelerator's dense peak allows.
    pub kernels_beyond_peak: u64,
    /// Accelerators on which kernels took their recorded times; empty where the trace does not say.
    pub recorded_on: Vec<String>,
    /// What would make the replay truer, in words, where its kernels are of another accelerator.
    pub suggestion: Option<String>,
    /// Collectives, counted once for each rank.
    pub collectives: u64,
    /// Sends and receives.
    pub messages: u64,
    /// Operations that the trace counts, per second and rank, in TFLOP/s.
    pub tflops_per_gpu: f64,
    /// The same over the dense peak.
    pub utilisation: f64,
    /// Fraction of the ranks' time spent waiting for communication that nothing hides.
    pub exposed_comm_fraction: f64,
}

/// Waiting for one kind of communication.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
pub struct Exposed {
    /// `all-reduce`, `send/receive` and so on.
    pub kind: String,
    /// As a fraction of the ranks' time, by slowest link: NVLink, leaf, spine, core.
    pub by_level: [f64; 4],
}

/// How the simulation itself went.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
pub struct ReplayEngine {
    /// Events handled.
    pub events: u64,
    /// Wall time of the simulation. The only value that differs between reruns.
    pub wall_s: f64,
}

const LEVELS: [Level; 4] = [Level::NvLink, Level::Leaf, Level::Spine, Level::Core];

/// What `record` of `plan` means. `wall_s` is the wall time of the simulation.
///
/// # Errors
/// When the record contradicts itself: when the accounts of a rank do not sum to the step time.
pub fn summarize_replay(
    plan: &ReplayPlan,
    record: &ReplayRecord,
    wall_s: f64,
) -> Result<ReplayReport, ReportError> {
    let step = record.step_time.as_picos();
    if step == 0 {
        return Err(ReportError::EmptyStep);
    }
    for (class, accounts) in record.accounts.iter().enumerate() {
        let booked = accounts.total_picos();
        if booked != u128::from(step) {
            return Err(ReportError::AccountsDoNotSum {
                class,
                booked,
                step,
            });
        }
    }
    let total = record.total();
    let all = (u128::from(step) * plan.ranks.len() as u128) as f64;
    let share = |cause: ReplayCause| total.picos(cause) as f64 / all;
    let exposed: Vec<Exposed> = CommunicationKind::all()
        .map(|kind| Exposed {
            kind: kind.name().into(),
            by_level: LEVELS.map(|level| share(ReplayCause::Exposed(kind, level))),
        })
        .filter(|exposed| exposed.by_level.iter().any(|share| *share > 0.0))
        .collect();
    let peak = peak(plan);
    let useful = share(ReplayCause::Useful);
    let ReplayCounts {
        nodes,
        kernels_recorded,
        kernels_priced,
        kernels_unknown,
        kernels_beyond_peak,
        collectives,
        messages,
        ranks_missing,
    } = plan.counts;
    Ok(ReplayReport {
        schema_version: SCHEMA_VERSION,
        scenario: plan.name.clone(),
        cluster: cluster(plan),
        replay: Replay {
            step_time_s: record.step_time.as_secs_f64(),
            ranks: plan.ranks.len() as u64,
            ranks_missing,
            nodes,
            kernels_recorded,
            kernels_priced,
            kernels_unknown,
            kernels_beyond_peak,
            recorded_on: plan.recorded_on.clone(),
            suggestion: suggestion(plan),
            collectives,
            messages,
            tflops_per_gpu: useful * peak / 1e12,
            utilisation: useful,
            exposed_comm_fraction: exposed.iter().flat_map(|e| e.by_level).sum(),
        },
        racks: racks(plan, record, peak),
        waterfall: waterfall(record, share),
        exposed,
        engine: ReplayEngine {
            events: record.events,
            wall_s,
        },
    })
}

/// What to change where kernels took their times on another accelerator than the cluster's.
fn suggestion(plan: &ReplayPlan) -> Option<String> {
    let counts = &plan.counts;
    if counts.kernels_recorded == 0 {
        return None;
    }
    let here = plan.cluster.kinds();
    let here: Vec<&str> = here
        .iter()
        .map(|kind| kind.node.accelerator.name.as_str())
        .collect();
    let elsewhere: Vec<&str> = plan
        .recorded_on
        .iter()
        .map(String::as_str)
        .filter(|name| !here.contains(name))
        .collect();
    if !elsewhere.is_empty() {
        return Some(format!(
            "kernels take the times of {} on {}: `kernels: roofline` takes them from operations and bytes here",
            elsewhere.join(", "),
            here.join(", ")
        ));
    }
    // A few may count more than they do.
    (counts.kernels_beyond_peak * 100 > counts.kernels_recorded).then(|| {
        format!(
            "{} of {} recorded kernels are faster than the {} peak of {} allows: they ran on another accelerator \
             (`kernels: roofline`) or in a narrower format (`precision`)",
            number(counts.kernels_beyond_peak as f64, 0),
            number(counts.kernels_recorded as f64, 0),
            plan.precision,
            here.join(", ")
        )
    })
}

/// Dense peak of one GPU in FLOP/s.
fn peak(plan: &ReplayPlan) -> f64 {
    let accelerator = &plan.cluster.node.accelerator;
    accelerator.peak.get(plan.precision).flops_per_sec()
}

fn cluster(plan: &ReplayPlan) -> Cluster {
    let hardware = &plan.cluster;
    let gpus = f64::from(hardware.gpus);
    let bf16 = hardware.node.accelerator.peak.bf16.flops_per_sec();
    let fullest = plan
        .racks
        .iter()
        .map(|rack| u64::from(rack.end - rack.start));
    Cluster {
        node: hardware.node.name.clone(),
        accelerator: hardware.node.accelerator.name.clone(),
        fabric: if hardware.gpus <= hardware.node.gpus {
            "one node".into()
        } else {
            fabric(&hardware.fabric)
        },
        gpus: hardware.gpus.into(),
        racks: plan.racks.len() as u64,
        gpus_per_rack: fullest.max().unwrap_or(0),
        peak_flops: Peak {
            bf16: bf16 * gpus,
            native: peak(plan) * gpus,
        },
        native_precision: plan.precision.to_string(),
    }
}

fn racks(plan: &ReplayPlan, record: &ReplayRecord, peak: f64) -> Vec<Rack> {
    let step = record.step_time.as_picos() as f64;
    plan.racks
        .iter()
        .enumerate()
        .map(|(id, gpus)| {
            let of_rack = plan.ranks.iter().zip(&record.accounts);
            let useful: Vec<f64> = of_rack
                .filter(|(rank, _)| gpus.contains(&rank.rank))
                .map(|(_, accounts)| accounts.picos(ReplayCause::Useful) as f64 / step)
                .collect();
            let gpus = useful.len() as f64;
            let sum: f64 = useful.iter().sum();
            Rack {
                id: id as u64,
                gpus: useful.len() as u64,
                effective_flops: sum * peak,
                peak_flops: gpus * peak,
                fraction: sum / gpus.max(1.0),
            }
        })
        .filter(|rack| rack.gpus > 0)
        .collect()
}

fn waterfall(record: &ReplayRecord, share: impl Fn(ReplayCause) -> f64) -> Vec<Loss> {
    let total = record.total();
    ReplayCause::all()
        .filter(|cause| total.picos(*cause) > 0 || *cause == ReplayCause::Useful)
        .map(|cause| {
            let (key, label, explanation) = words(cause);
            Loss {
                cause: key,
                label,
                explanation,
                gpu_seconds: total.picos(cause) as f64 * 1e-12,
                fraction: share(cause),
            }
        })
        .collect()
}

/// Machine name, name and sentence of a cause.
fn words(cause: ReplayCause) -> (String, String, String) {
    let fixed = |key: &str, label: &str, sentence: &str| {
        (key.to_owned(), label.to_owned(), sentence.to_owned())
    };
    match cause {
        ReplayCause::Useful => fixed(
            "useful_math",
            "Useful math",
            "The operations that the trace counts, as if every one ran at the dense peak.",
        ),
        ReplayCause::MemoryBound => fixed(
            "memory_bound",
            "Memory-bound kernels",
            "Kernels read and write their bytes at the peak bandwidth, beyond their operations.",
        ),
        ReplayCause::Kernels => fixed(
            "kernels",
            "Kernels below peak",
            "Kernels take longer than operations and bytes at peak; the trace does not say why.",
        ),
        ReplayCause::Host => fixed(
            "launch",
            "Waiting for the host",
            "Nothing runs because the host has not come to it.",
        ),
        ReplayCause::Memory => fixed(
            "host_memory",
            "Remote memory",
            "Nothing runs until data has come from memory beyond the accelerator's own.",
        ),
        ReplayCause::Exposed(kind, level) => (
            format!("exposed_{}_{level}", kind.name().replace(['-', '/'], "_")).to_lowercase(),
            format!("{}, {level}", kind.name()),
            format!(
                "GPUs wait for {} that nothing hides; its slowest link is of the {level} tier.",
                kind.name()
            ),
        ),
        ReplayCause::Partners => fixed(
            "imbalance",
            "Waiting for partners",
            "A collective waits for ranks that have not come to it.",
        ),
        ReplayCause::Peer => fixed(
            "bubble",
            "Waiting for a peer",
            "A message waits for its other end: the bubble of a pipeline, for instance.",
        ),
        ReplayCause::Idle => fixed(
            "idle",
            "Done before others",
            "The rank's own trace is over and that of another is not.",
        ),
    }
}

impl ReplayReport {
    /// The report as one JSON document, indented, with a newline at the end.
    pub fn to_json(&self) -> String {
        crate::json::pretty(self)
    }

    /// The JSON Schema of [`ReplayReport::to_json`].
    pub fn schema() -> serde_json::Value {
        let mut schema = schemars::schema_for!(Self).to_value();
        schema["title"] = "Rackflow replay report".into();
        schema
    }

    /// The report for people.
    pub fn to_text(&self, style: &Style) -> String {
        text::replay(self, style)
    }

    /// The part of the cluster that was replayed: what the waterfall starts from.
    pub(crate) fn replayed(&self) -> Cluster {
        let mut cluster = self.cluster.clone();
        let part = self.replay.ranks as f64 / cluster.gpus as f64;
        cluster.peak_flops.bf16 *= part;
        cluster.peak_flops.native *= part;
        cluster
    }

    /// What was replayed, in lines of a name and a text.
    pub(crate) fn header(&self) -> Vec<(&'static str, String)> {
        let (cluster, replay) = (&self.cluster, &self.replay);
        let whole = |n: u64| number(n as f64, 0);
        let mut lines = vec![
            (
                "trace",
                format!(
                    "{}, {}: {}, {} sends and receives",
                    counted(replay.ranks, "rank"),
                    counted(replay.nodes, "node"),
                    counted(replay.collectives, "collective"),
                    whole(replay.messages)
                ),
            ),
            (
                "cluster",
                format!(
                    "{} {} ({}), {}",
                    whole(cluster.gpus),
                    cluster.accelerator,
                    cluster.node,
                    cluster.fabric
                ),
            ),
            ("kernels", self.kernels()),
        ];
        if replay.ranks_missing > 0 {
            let missing = match replay.ranks_missing {
                1 => "1 rank has no trace and is".to_owned(),
                many => format!("{} ranks have no trace and are", whole(many)),
            };
            lines.push(("missing", format!("{missing} taken to be always ready")));
        }
        lines.extend(replay.suggestion.iter().map(|text| ("hint", text.clone())));
        lines
    }

    fn kernels(&self) -> String {
        let replay = &self.replay;
        let sorts = [
            (replay.kernels_recorded, "as recorded"),
            (replay.kernels_priced, "from operations and bytes"),
            (
                replay.kernels_unknown,
                "without duration, operations or bytes (0 s)",
            ),
        ];
        let some: Vec<String> = sorts
            .iter()
            .filter(|(count, _)| *count > 0)
            .map(|(count, sort)| format!("{} {sort}", number(*count as f64, 0)))
            .collect();
        if some.is_empty() {
            return "none".into();
        }
        some.join(", ")
    }

    /// The results in one line.
    pub(crate) fn results(&self) -> [(&'static str, String); 3] {
        let replay = &self.replay;
        [
            ("step time", seconds(replay.step_time_s)),
            ("TFLOP/s/GPU", number(replay.tflops_per_gpu, 1)),
            ("of peak", format!("{} %", percent(replay.utilisation))),
        ]
    }
}
