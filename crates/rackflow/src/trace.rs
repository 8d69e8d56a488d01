//! `run --trace`: what chosen ranks did when, in a format of timeline viewers.

use crate::args::{TraceArgs, Window};
use crate::failure::Failure;
use crate::files;
use flate2::Compression;
use flate2::write::GzEncoder;
use rackflow_plan::replay::ReplayPlan;
use rackflow_plan::serving::FleetPlan;
use rackflow_plan::{Coordinates, Plan};
use rackflow_report::trace::TraceFile;
use rackflow_simulator::replay::NodeTimes;
use rackflow_simulator::serving::{ServiceTrace, ServiceWish};
use rackflow_simulator::{JobTrace, Trace};
use rackflow_units::{SimDuration, SimTime};
use std::io::Write;
use std::path::Path;

/// Ranks that one trace can show; more than anybody can look at.
const MOST_RANKS: usize = 4096;

/// The formats that a file's name may ask for.
enum Written {
    Perfetto,
    Json,
    PackedJson,
}

/// Slices and points of counters that the trace of a service holds: some 30 MB, which viewers still
/// open at once.
const MOST_EVENTS: usize = 300_000;
/// Replicas of a pool that a trace shows where nobody chose.
const SHOWN: u32 = 8;

/// The ranks of a step that the trace shows: those that were asked for, or the first of each stage.
pub fn shown(plan: &Plan, path: &Path, args: &TraceArgs) -> Result<Vec<u32>, Failure> {
    format_of(path)?;
    refuse_job(args)?;
    refuse_window(args)?;
    chosen(plan, &args.trace_ranks)
}

/// Writes what ranks did in a step.
pub fn write_step(trace: &Trace, path: &Path) -> Result<(), Failure> {
    write_file(&TraceFile::of_step(trace), path)
}

/// Where the ranks of a replay are that the trace shows: those that were asked for, or the first eight.
pub fn shown_of_replay(
    plan: &ReplayPlan,
    path: &Path,
    args: &TraceArgs,
) -> Result<Vec<usize>, Failure> {
    format_of(path)?;
    refuse_job(args)?;
    refuse_window(args)?;
    positions(plan, &args.trace_ranks)
}

/// Writes what ranks of a replay did, whose nodes took place like this.
pub fn write_replay(
    plan: &ReplayPlan,
    times: &[Vec<NodeTimes>],
    shown: &[usize],
    path: &Path,
) -> Result<(), Failure> {
    write_file(&TraceFile::of_replay(plan, times, shown), path)
}

/// Where the ranks that a trace shows are in the plan.
fn positions(plan: &ReplayPlan, ranks: &[u32]) -> Result<Vec<usize>, Failure> {
    if ranks.is_empty() {
        return Ok((0..plan.ranks.len().min(SHOWN as usize)).collect());
    }
    let at = |rank: &u32| {
        plan.ranks
            .binary_search_by_key(rank, |known| known.rank)
            .map_err(|_| {
                Failure::input(format_args!(
                    "rank {rank} has no trace to show: those from {} to {} have, as far as there are files of them",
                    plan.ranks.first().map_or(0, |known| known.rank),
                    plan.ranks.last().map_or(0, |known| known.rank),
                ))
            })
    };
    let mut shown = ranks.iter().map(at).collect::<Result<Vec<usize>, _>>()?;
    shown.sort_unstable();
    shown.dedup();
    Ok(shown)
}

/// Writes what a job did beside others.
pub fn write_job(trace: &JobTrace, path: &Path) -> Result<(), Failure> {
    match trace {
        JobTrace::Training(trace) => write_step(trace, path),
        JobTrace::Serving(trace) => write_service(trace, path),
    }
}

/// Writes what replicas of a service did, and says where the trace ends before the run does.
pub fn write_service(trace: &ServiceTrace, path: &Path) -> Result<(), Failure> {
    if trace.requests.is_empty()
        && trace
            .replicas
            .iter()
            .all(|replica| replica.steps.is_empty())
    {
        return Err(Failure::input(
            "nothing happens in the window of the trace on these replicas\n  \
             hint: --trace-window FROM..UNTIL counts from the start of the run, warm-up included",
        ));
    }
    write_file(&TraceFile::of_service(trace), path)?;
    if let Some(full_at) = trace.full_at {
        files::tell(&format!(
            "the trace is full at {}: it holds {MOST_EVENTS} slices and values; \
             --trace-window FROM..UNTIL shows another part, and --trace-ranks fewer replicas",
            full_at.since(SimTime::ZERO)
        ));
    }
    Ok(())
}

/// What of a service is written down.
pub fn wish(plan: &FleetPlan, path: &Path, args: &TraceArgs) -> Result<ServiceWish, Failure> {
    format_of(path)?;
    let replicas: u32 = plan.setup.pools.iter().map(|pool| pool.replicas).sum();
    if let Some(wrong) = args
        .trace_ranks
        .iter()
        .find(|replica| **replica >= replicas)
    {
        return Err(Failure::input(format_args!(
            "there is no replica {wrong} to trace: the replicas of this service are 0 to {}",
            replicas - 1
        )));
    }
    let mut chosen = args.trace_ranks.clone();
    if chosen.is_empty() {
        let mut first = 0;
        for pool in &plan.setup.pools {
            chosen.extend(first..first + pool.replicas.min(SHOWN));
            first += pool.replicas;
        }
    }
    let window = args.trace_window.unwrap_or(Window {
        from: SimDuration::ZERO,
        until: SimDuration::MAX,
    });
    Ok(ServiceWish {
        replicas: chosen,
        from: SimTime::ZERO + window.from,
        until: SimTime::ZERO + window.until,
        most: MOST_EVENTS,
    })
}

/// Of one run there is no job to choose.
pub fn refuse_job(args: &TraceArgs) -> Result<(), Failure> {
    if args.trace_job.is_none() {
        return Ok(());
    }
    Err(Failure::input(
        "--trace-job chooses one of several `jobs`, and this scenario has one run\n  \
         hint: leave it out",
    ))
}

/// A step is shown whole.
pub fn refuse_window(args: &TraceArgs) -> Result<(), Failure> {
    if args.trace_window.is_none() {
        return Ok(());
    }
    Err(Failure::input(
        "--trace-window is a part of a service's run; of training one step is shown, and all of it\n  \
         hint: leave it out",
    ))
}

/// Writes a trace in the format that the file's name asks for.
fn write_file(trace: &TraceFile<'_>, path: &Path) -> Result<(), Failure> {
    let bytes = match format_of(path)? {
        Written::Perfetto => trace.to_perfetto(),
        Written::Json => trace.to_chrome_json().into_bytes(),
        Written::PackedJson => {
            let mut packed = GzEncoder::new(Vec::new(), Compression::default());
            let done = packed
                .write_all(trace.to_chrome_json().as_bytes())
                .and_then(|()| packed.finish());
            done.map_err(|error| Failure::file("written", path, &error))?
        }
    };
    files::write_atomically(path, &bytes)?;
    files::tell(&format!("wrote {}", path.display()));
    Ok(())
}

/// The ranks that a trace shows: these, or the first of each stage.
pub fn chosen(plan: &Plan, ranks: &[u32]) -> Result<Vec<u32>, Failure> {
    let all = plan.placement.ranks();
    if let Some(wrong) = ranks.iter().find(|rank| **rank >= all) {
        return Err(Failure::input(format_args!(
            "there is no rank {wrong} to trace: the ranks of this scenario are 0 to {}",
            all - 1
        )));
    }
    if ranks.len() > MOST_RANKS {
        return Err(Failure::input(format_args!(
            "{} ranks are too many for one trace: name at most {MOST_RANKS}",
            ranks.len()
        )));
    }
    let mut chosen = ranks.to_vec();
    if chosen.is_empty() {
        chosen = first_of_each_stage(plan);
    }
    Ok(chosen)
}

/// The first rank of each pipeline stage.
pub fn first_of_each_stage(plan: &Plan) -> Vec<u32> {
    let first = |stage| {
        plan.placement.rank(Coordinates {
            tensor: 0,
            context: 0,
            data: 0,
            stage,
        })
    };
    (0..plan.setup.training.parallelism.pipeline)
        .map(first)
        .collect()
}

/// The format that the name of a trace asks for; nothing is simulated for one that asks for none.
pub fn check_name(path: &Path) -> Result<(), Failure> {
    format_of(path).map(|_| ())
}

fn format_of(path: &Path) -> Result<Written, Failure> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    match &*name {
        name if name.ends_with(".pftrace") || name.ends_with(".perfetto-trace") => {
            Ok(Written::Perfetto)
        }
        name if name.ends_with(".json.gz") => Ok(Written::PackedJson),
        name if name.ends_with(".json") => Ok(Written::Json),
        _ => Err(Failure::input(format_args!(
            "the name of a trace says its format, and {name:?} does not\n  \
             hint: end it in .pftrace, .json or .json.gz"
        ))),
    }
}
