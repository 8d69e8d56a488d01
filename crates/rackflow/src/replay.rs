//! `run` and `check` of a scenario that replays an execution trace: its files are read here.

use crate::args::{Format, RunArgs, TraceArgs};
use crate::failure::Failure;
use crate::files;
use crate::input::{self, Input, ResolvedReplay};
use crate::{terminal, trace};
use clap::ColorChoice;
use flate2::read::GzDecoder;
use rackflow_plan::replay::{ReplayPlan, ReplaySetup, compile_replay};
use rackflow_report::{ReplayReport, Style, plot, summarize_replay};
use rackflow_scenario::{ChakraReader, chakra_file};
use rackflow_simulator::replay::{NodeTimes, simulate_replay_traced};
use rackflow_units::counted;
use rackflow_workload::chakra::ExecutionTrace;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Read;
use std::path::Path;
use std::time::Instant;

/// One rank's trace is at most so large, unpacked; a training step of a large model has a tenth of it.
const LARGEST: u64 = 4 << 30;
/// The communicators of a trace, where they are not in it.
const COMMUNICATORS: &str = "comm_group.json";

/// Replays a trace and writes what it means.
pub fn run(
    args: &RunArgs,
    traced: &TraceArgs,
    input: &Input,
    color: ColorChoice,
) -> Result<(), Failure> {
    let plan = compile(input::resolve_replay(input)?)?;
    let shown = match &traced.trace {
        Some(path) => trace::shown_of_replay(&plan, path, traced)?,
        None => Vec::new(),
    };
    let (report, times) = simulate(&plan)?;
    if let Some(path) = &traced.trace {
        trace::write_replay(&plan, &times, &shown, path)?;
    }
    if let Some(folder) = &args.output {
        write(folder, &report)?;
    }
    files::print(&match args.format {
        Format::Table => report.to_text(&terminal::style(color)),
        Format::Json => report.to_json(),
    })
}

/// What a trace comes to, in short.
pub fn check(input: &Input) -> Result<String, Failure> {
    let plan = compile(input::resolve_replay(input)?)?;
    Ok(format!(
        "{} and {} on {}",
        counted(plan.ranks.len() as u64, "rank"),
        counted(plan.counts.nodes, "node"),
        counted(plan.cluster.gpus, "GPU")
    ))
}

fn compile(resolved: ResolvedReplay) -> Result<ReplayPlan, Failure> {
    compiled(resolved).map(|(_, plan)| plan)
}

/// Reads the trace and prices it: what was meant, and its plan.
pub fn compiled(resolved: ResolvedReplay) -> Result<(ReplaySetup, ReplayPlan), Failure> {
    let trace = read(&resolved)?;
    let written = resolved.written;
    let setup = resolved.scenario.with_trace(trace);
    let plan = compile_replay(&setup)
        .map_err(|error| Failure::Input(written.replay_refusal(&error).to_string()))?;
    Ok((setup, plan))
}

#[allow(
    clippy::disallowed_methods,
    reason = "the command line is where the wall clock is read"
)]
fn simulate(plan: &ReplayPlan) -> Result<(ReplayReport, Vec<Vec<NodeTimes>>), Failure> {
    let started = Instant::now();
    let (record, times) = simulate_replay_traced(plan).map_err(Failure::input)?;
    let wall_s = started.elapsed().as_secs_f64();
    let report = summarize_replay(plan, &record, wall_s)
        .map_err(|error| Failure::input(format_args!("the trace cannot be replayed: {error}")))?;
    Ok((report, times))
}

fn write(folder: &Path, report: &ReplayReport) -> Result<(), Failure> {
    let text = report.to_text(&Style::default());
    let picture = plot::replay_waterfall(report).svg();
    files::write_folder(
        folder,
        &[
            ("report.txt", text.as_bytes()),
            ("report.json", report.to_json().as_bytes()),
            ("waterfall.svg", picture.as_bytes()),
        ],
    )
}

fn read(resolved: &ResolvedReplay) -> Result<ExecutionTrace, Failure> {
    let folder = resolved.folder.join(&resolved.scenario.traces);
    if !folder.exists()
        && let Some(files) = rackflow_scenario::shipped_chakra(&resolved.scenario.traces)
    {
        return shipped(files);
    }
    let unreadable = |error: &std::io::Error| {
        let message = format!("the traces in {} cannot be read: {error}", folder.display());
        Failure::Input(resolved.written.trace_refusal(&message).to_string())
    };
    let mut traces: BTreeMap<String, Vec<(u32, String)>> = BTreeMap::new();
    for entry in fs::read_dir(&folder).map_err(|error| unreadable(&error))? {
        let name = entry.map_err(|error| unreadable(&error))?.file_name();
        let name = name.to_string_lossy().into_owned();
        if let Some((prefix, rank)) = chakra_file(&name) {
            let prefix = prefix.to_owned();
            traces.entry(prefix).or_default().push((rank, name));
        }
    }
    if traces.len() > 1 {
        let names: Vec<&str> = traces.keys().map(String::as_str).collect();
        return Err(Failure::input(format_args!(
            "{} holds the traces of several runs: {}\n  hint: give each a folder of its own",
            folder.display(),
            names.join(", ")
        )));
    }
    let mut reader = ChakraReader::new();
    let communicators = folder.join(COMMUNICATORS);
    if communicators.exists() {
        let shown = communicators.display().to_string();
        let text = bytes_of(&communicators)?;
        reader
            .communicators(&shown, &String::from_utf8_lossy(&text))
            .map_err(|error| Failure::Input(error.to_string()))?;
    }
    let mut files = traces.into_values().next().unwrap_or_default();
    files.sort();
    for (rank, name) in files {
        let path = folder.join(name);
        let bytes = bytes_of(&path)?;
        reader
            .rank(&path.display().to_string(), rank, &bytes)
            .map_err(|error| Failure::Input(error.to_string()))?;
    }
    reader
        .finish(&folder.display().to_string())
        .map_err(|error| Failure::Input(error.to_string()))
}

/// The bytes of a file, unpacked where it is packed.
fn bytes_of(path: &Path) -> Result<Vec<u8>, Failure> {
    let read = || -> std::io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        let mut file = File::open(path)?.take(LARGEST + 1);
        if path.extension().is_some_and(|ending| ending == "gz") {
            GzDecoder::new(file)
                .take(LARGEST + 1)
                .read_to_end(&mut bytes)?;
        } else {
            file.read_to_end(&mut bytes)?;
        }
        Ok(bytes)
    };
    let bytes = read().map_err(|error| {
        Failure::input(format_args!("{} cannot be read: {error}", path.display()))
    })?;
    if bytes.len() as u64 > LARGEST {
        return Err(Failure::input(format_args!(
            "{} is larger than 4 GiB, which no rank's trace is",
            path.display()
        )));
    }
    Ok(bytes)
}

/// The trace of a shipped scenario that was named without a folder.
fn shipped(files: &[(&str, &[u8])]) -> Result<ExecutionTrace, Failure> {
    let mut reader = ChakraReader::new();
    let wrong = |error: rackflow_scenario::ChakraError| Failure::Input(error.to_string());
    for (name, bytes) in files {
        match chakra_file(name) {
            Some((_, rank)) => reader.rank(name, rank, bytes).map_err(wrong)?,
            None => reader
                .communicators(name, &String::from_utf8_lossy(bytes))
                .map_err(wrong)?,
        }
    }
    reader.finish("the shipped trace").map_err(wrong)
}
