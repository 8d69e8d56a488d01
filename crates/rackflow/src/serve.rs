//! `run` and `check` of a serving scenario: the trace is opened here, and the reports are written.

use crate::args::{Format, RunArgs, TraceArgs};
use crate::failure::Failure;
use crate::files;
use crate::input::{self, Input, ResolvedFleet};
use crate::terminal;
use crate::trace;
use clap::ColorChoice;
use rackflow_plan::serving::{FleetPlan, FleetSetup, compile_fleet};
use rackflow_report::{
    RequestsCsv, RequestsParquet, ServingReport, Style, plot, render_serving_text,
    summarize_serving,
};
use rackflow_simulator::serving::{
    Fleet, NoSink, RequestSink, Rows, ServeError, ServiceTrace, ServiceWish, ServingRecord, serve,
    serve_traced,
};
use rackflow_units::counted;
use rackflow_workload::{Shapes, Trace};
use std::fs::File;
use std::io::{self, BufReader, BufWriter};
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Simulates a serving scenario and writes what it means.
pub fn run(
    args: &RunArgs,
    traced: &TraceArgs,
    input: &Input,
    color: ColorChoice,
) -> Result<(), Failure> {
    let resolved = input::resolve_fleet(input, args.seed)?;
    let trace = trace_path(&resolved);
    let plan = compile(resolved)?;
    let wish = match &traced.trace {
        Some(path) => {
            trace::refuse_job(traced)?;
            Some(trace::wish(&plan, path, traced)?)
        }
        None => None,
    };
    let work = Work {
        plan: &plan,
        trace: trace.as_deref(),
        wish: wish.as_ref(),
    };
    let (report, seen) = match &args.requests {
        None => work.simulate(&mut NoSink)?,
        Some(path) => with_requests(&work, path)?,
    };
    if let Some((path, seen)) = traced.trace.as_ref().zip(seen) {
        trace::write_service(&seen, path)?;
    }
    if let Some(folder) = &args.output {
        write(folder, &report)?;
    }
    files::print(&match args.format {
        Format::Table => render_serving_text(&report, &terminal::style(color)),
        Format::Json => report.to_json(),
    })
}

/// A fleet, where its requests come from, and what is to be seen of it.
struct Work<'w> {
    plan: &'w FleetPlan,
    trace: Option<&'w Path>,
    wish: Option<&'w ServiceWish>,
}

/// What a run means, and what was to be seen of it.
type Simulated = (ServingReport, Option<ServiceTrace>);

/// Simulates, and writes a row for each request while it runs.
fn with_requests(work: &Work<'_>, path: &Path) -> Result<Simulated, Failure> {
    let kind = path.extension().and_then(|kind| kind.to_str());
    if !matches!(kind, Some("csv" | "parquet")) {
        return Err(Failure::input(format_args!(
            "--requests {}: the name must end in .csv or .parquet",
            path.display()
        )));
    }
    let (file, unfinished) = files::begin(path)?;
    let out = BufWriter::new(file);
    let (report, written) = if kind == Some("csv") {
        match RequestsCsv::new(out) {
            Ok(mut sink) => (work.simulate(&mut sink), sink.finish().map(|_| ())),
            Err(error) => (Err(Failure::file("written", path, &error)), Ok(())),
        }
    } else {
        match RequestsParquet::new(out) {
            Ok(mut sink) => (
                work.simulate(&mut sink),
                sink.finish().map(|_| ()).map_err(io::Error::other),
            ),
            Err(error) => (
                Err(Failure::file("written", path, &io::Error::other(error))),
                Ok(()),
            ),
        }
    };
    let written = match &report {
        Ok(_) => written,
        Err(_) => Err(io::Error::other("the run failed")),
    };
    let named = files::finish(&unfinished, path, written);
    let report = report?;
    named?;
    files::tell(&format!("wrote {}", path.display()));
    Ok(report)
}

/// Simulates a serving scenario.
pub fn report(input: &Input) -> Result<ServingReport, Failure> {
    report_of(input::resolve_fleet(input, None)?)
}

/// Simulates what a serving scenario means.
pub fn report_of(resolved: ResolvedFleet) -> Result<ServingReport, Failure> {
    let trace = trace_path(&resolved);
    let work = Work {
        plan: &compile(resolved)?,
        trace: trace.as_deref(),
        wish: None,
    };
    work.simulate(&mut NoSink).map(|(report, _)| report)
}

/// What a serving scenario comes to, in short.
pub fn check(input: &Input) -> Result<String, Failure> {
    let resolved = input::resolve_fleet(input, None)?;
    let trace = trace_path(&resolved);
    if let Some(path) = &trace {
        drop(rows(path)?);
    }
    let plan = compile(resolved)?;
    Ok(in_short(&plan))
}

/// What a fleet comes to: its replicas and their caches.
pub fn in_short(plan: &FleetPlan) -> String {
    let parts: Vec<String> = plan
        .setup
        .pools
        .iter()
        .zip(&plan.instances)
        .map(|(pool, instance)| {
            format!(
                "{} x {} with {} of weights on each and a cache for {}",
                pool.replicas,
                counted(instance.gpus(), "GPU"),
                instance.weight_bytes_per_gpu(),
                counted(instance.kv_capacity_tokens(), "token")
            )
        })
        .collect();
    parts.join("; ")
}

/// The trace that the scenario names, relative to its folder.
pub fn trace_path(resolved: &ResolvedFleet) -> Option<PathBuf> {
    trace_beside(&resolved.setup, &resolved.folder)
}

/// The trace that a fleet's requests come from, relative to this folder.
pub fn trace_beside(setup: &FleetSetup, folder: &Path) -> Option<PathBuf> {
    match &setup.requests.shapes {
        Shapes::Trace { path, .. } => Some(folder.join(path)),
        Shapes::Drawn { .. } => None,
    }
}

/// Compiles the fleet, or says where the scenario asks for too much.
pub fn compile(resolved: ResolvedFleet) -> Result<FleetPlan, Failure> {
    let setup = resolved.setup;
    compile_fleet(setup.clone())
        .map_err(|error| Failure::Input(resolved.written.fleet_refusal(&setup, &error).to_string()))
}

/// The rows of a trace.
pub fn rows(path: &Path) -> Result<Rows<'static>, Failure> {
    match File::open(path) {
        Ok(file) => Ok(Box::new(Trace::new(BufReader::with_capacity(1 << 16, file)))),
        Err(error) => shipped(path).ok_or_else(|| {
            Failure::input(format_args!(
                "the trace {} cannot be read: {error}\n  hint: the path is relative to the scenario",
                path.display()
            ))
        }),
    }
}

/// The trace of a shipped scenario that was named without a folder.
fn shipped(path: &Path) -> Option<Rows<'static>> {
    let name = path.strip_prefix(".").unwrap_or(path).to_str()?;
    let text = rackflow_scenario::shipped_trace(name)?;
    Some(Box::new(Trace::new(text.as_bytes())))
}

/// Runs the fleet.
pub fn record(
    plan: &FleetPlan,
    trace: Option<&Path>,
    sink: &mut dyn RequestSink,
) -> Result<ServingRecord, Failure> {
    let rows = trace.map(rows).transpose()?;
    serve(&Fleet::of(plan), rows, sink).map_err(|error| refusal(error, trace))
}

/// Why a fleet cannot be run, with the line of its trace.
fn refusal(error: ServeError, trace: Option<&Path>) -> Failure {
    match (&error, trace) {
        (ServeError::Trace(wrong), Some(path)) => {
            let place = path.display().to_string();
            let (line, message) = match wrong {
                rackflow_workload::TraceError::Io { line, error } => (line, error.to_string()),
                rackflow_workload::TraceError::Format { line, message } => (line, message.clone()),
            };
            Failure::Input(format!("error: {message}\n  --> {place}:{line}"))
        }
        _ => Failure::input(error),
    }
}

impl Work<'_> {
    #[allow(
        clippy::disallowed_methods,
        reason = "the command line is where the wall clock is read"
    )]
    fn simulate(&self, sink: &mut dyn RequestSink) -> Result<Simulated, Failure> {
        let started = Instant::now();
        let (record, seen) = self.record(sink)?;
        let wall_s = started.elapsed().as_secs_f64();
        let mut report = summarize_serving(self.plan, &record, wall_s).map_err(|error| {
            Failure::run(format_args!(
                "the simulation contradicts itself, which is a defect of Rackflow: {error}"
            ))
        })?;
        if let Some(disturbed) = &mut report.disturbed {
            let mut whole = self.plan.clone();
            whole.setup.faults.clear();
            whole.setup.stragglers.clear();
            let record = self::record(&whole, self.trace, &mut NoSink)?;
            disturbed.undisturbed_time_s = Some(record.e2e.mean_s());
        }
        Ok((report, seen))
    }

    /// Runs the fleet, and looks at what is to be seen of it.
    fn record(
        &self,
        sink: &mut dyn RequestSink,
    ) -> Result<(ServingRecord, Option<ServiceTrace>), Failure> {
        let Some(wish) = self.wish else {
            return record(self.plan, self.trace, sink).map(|record| (record, None));
        };
        let rows = self.trace.map(rows).transpose()?;
        let run = serve_traced(&Fleet::of(self.plan), rows, sink, wish);
        run.map(|(record, seen)| (record, Some(seen)))
            .map_err(|error| refusal(error, self.trace))
    }
}

/// Writes the report in every form.
fn write(folder: &Path, report: &ServingReport) -> Result<(), Failure> {
    files::write_folder(
        folder,
        &[
            (
                "report.txt",
                render_serving_text(report, &Style::default()).as_bytes(),
            ),
            ("report.json", report.to_json().as_bytes()),
            (
                "waterfall.svg",
                plot::serving_waterfall(report).svg().as_bytes(),
            ),
        ],
    )
}
