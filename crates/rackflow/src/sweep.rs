//! `sweep`: every case of a file, run side by side, resumable, and what they come to together.

mod filter;
mod folder;
mod interrupt;

use crate::args::{Format, SweepArgs};
use crate::columns::lay_out;
use crate::failure::Failure;
use crate::files;
use crate::input::{self, Input};
use crate::run;
use crate::serve;
use crate::terminal;
use clap::ColorChoice;
use filter::Filter;
use folder::{CaseFile, Folder, Planned};
use indicatif::{ProgressBar, ProgressStyle};
use interrupt::Interrupt;
use rackflow_plan::serving::FleetPlan;
use rackflow_report::summarize_serving;
use rackflow_report::sweep::{CaseFacts, Cell, Outcome, Table, figures, page, row, table};
use rackflow_report::{Report, ServingReport, Style, render_serving_text, render_text};
use rackflow_scenario::{Case, Sweep};
use rackflow_simulator::serving::NoSink;
use rayon::prelude::*;
use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};

/// Runs a sweep and writes its folder.
pub fn sweep(args: &SweepArgs, color: ColorChoice) -> Result<(), Failure> {
    let input = input::read(&args.scenario)?;
    let sweep = input::expand(&input, args.seed)?;
    let filter = Filter::new(&args.filter);
    let selected: Vec<bool> = sweep.cases.iter().map(|case| filter.takes(case)).collect();
    if !selected.contains(&true) {
        return Err(nothing_selected(&sweep));
    }
    well_formed(&sweep)?;
    if args.list {
        return list(&sweep, &selected, args.format);
    }
    let Some(output) = &args.output else {
        return Err(Failure::input("`--output` is missing"));
    };
    let mut folder = Folder::open(output)?;
    let threads = rayon::ThreadPoolBuilder::new()
        .num_threads(args.jobs.map_or(0, std::num::NonZeroUsize::get))
        .build()
        .map_err(|error| Failure::run(format_args!("threads cannot be started: {error}")))?;
    let program = folder::program()?;
    let planned: Vec<Planned> = threads.install(|| {
        let cases = sweep.cases.par_iter();
        cases.map(|case| plan(&input, case, &program)).collect()
    });
    folder.plan(&args.scenario, &sweep, &planned)?;
    let left = threads.install(|| run_all(&folder, &sweep, &planned, &selected))?;
    let results = gather(&folder, &sweep, &planned)?;
    write(&mut folder, &args.scenario, &results)?;
    if left > 0 {
        return Err(Failure::Run(format!(
            "error: stopped with {left} {} to go; {} finished\n  hint: the same command goes on from here",
            if left == 1 { "case" } else { "cases" },
            results.rows.len()
        )));
    }
    files::print(&match args.format {
        Format::Table => summary(&folder, &sweep, &results, color),
        Format::Json => json(&results),
    })
}

/// Says of a sweep whether it could be run: how many of its cases can, and why others cannot.
pub fn check(input: &Input) -> Result<String, Failure> {
    let sweep = input::expand(input, None)?;
    well_formed(&sweep)?;
    let outcomes: Vec<Result<(), String>> = sweep
        .cases
        .par_iter()
        .map(|case| resolve(input, case).map(|_| ()))
        .collect();
    let wrong: Vec<(&Case, &String)> = sweep
        .cases
        .iter()
        .zip(&outcomes)
        .filter_map(|(case, outcome)| Some((case, outcome.as_ref().err()?)))
        .collect();
    let all = sweep.cases.len();
    if let (Some((_, reason)), true) = (wrong.first(), wrong.len() == all) {
        return Err(Failure::Input(reason.to_string()));
    }
    let mut verdict = format!("{} of {all} cases can be run", all - wrong.len());
    for (case, reason) in wrong {
        verdict.push_str(&format!("\n  {}: {}", case.name, one_line(reason)));
    }
    Ok(verdict)
}

/// Refuses a sweep of which a case is misspelled: that is no finding about the case.
fn well_formed(sweep: &Sweep) -> Result<(), Failure> {
    let mut found: Vec<String> = Vec::new();
    for case in &sweep.cases {
        for error in case.scenario().err().into_iter().flatten() {
            let error = error.to_string();
            if !found.contains(&error) {
                found.push(error);
            }
        }
    }
    if !found.is_empty() {
        return Err(Failure::Input(found.join("\n\n")));
    }
    let serves = |case: &Case| case.scenario().is_ok_and(|scenario| scenario.serves());
    let services = sweep.cases.iter().filter(|case| serves(case)).count();
    if services != 0 && services != sweep.cases.len() {
        return Err(Failure::input(
            "some cases train and others serve: they have no column in common",
        ));
    }
    Ok(())
}

/// What a case does.
#[derive(Clone)]
pub enum Work {
    /// It trains.
    Trains(Box<input::Resolved>),
    /// It serves; and the trace that it reads.
    Serves(Box<FleetPlan>, Option<PathBuf>),
}

/// What came of a case.
enum Ran {
    Trained(Box<Report>),
    Served(Box<ServingReport>),
}

impl Ran {
    fn outcome(&self) -> Outcome<'_> {
        match self {
            Self::Trained(report) => Outcome::Done(report),
            Self::Served(report) => Outcome::Served(report),
        }
    }

    /// As text and as JSON.
    fn written(&self) -> (String, String) {
        let style = Style::default();
        match self {
            Self::Trained(report) => (render_text(report, &style), report.to_json()),
            Self::Served(report) => (render_serving_text(report, &style), report.to_json()),
        }
    }
}

/// Why a case has no result, in the kind of row that its sweep has.
fn unable(case: &Case, reason: &str) -> Outcome<'static> {
    let reason = one_line(reason);
    if case.scenario().is_ok_and(|scenario| scenario.serves()) {
        Outcome::Unserved(reason)
    } else {
        Outcome::Infeasible(reason)
    }
}

/// A failure in the program's words.
fn said(failure: Failure) -> String {
    match failure {
        Failure::Run(text) | Failure::Input(text) => text,
        Failure::ReaderGone => String::new(),
    }
}

/// What a case means, or why it cannot be simulated.
fn resolve(input: &Input, case: &Case) -> Result<Work, String> {
    let work = || -> Result<Work, Failure> {
        if case.scenario().is_ok_and(|scenario| scenario.serves()) {
            let resolved = input::resolve_fleet_case(input, case)?;
            let trace = serve::trace_path(&resolved);
            return Ok(Work::Serves(Box::new(serve::compile(resolved)?), trace));
        }
        let resolved = input::resolve_case(input, case)?;
        run::plan(&resolved)?;
        Ok(Work::Trains(Box::new(resolved)))
    };
    work().map_err(said)
}

/// Resolves a case and names all that its result depends on.
fn plan(input: &Input, case: &Case, program: &str) -> Planned {
    match resolve(input, case) {
        Ok(work) => {
            let meant = match &work {
                Work::Trains(resolved) => format!(
                    "{:?}{:?}{:?}",
                    resolved.setup, resolved.published, resolved.outlook
                ),
                Work::Serves(plan, trace) => {
                    let text = trace.as_ref().and_then(|path| std::fs::read(path).ok());
                    format!("{:?}{}", plan.setup, content(text.as_deref()))
                }
            };
            let hash = folder::hash([program, &case.name, &meant]);
            Planned {
                hash,
                work: Ok(work),
            }
        }
        Err(reason) => Planned {
            hash: folder::hash([program, &case.name, &reason, &case.to_yaml()]),
            work: Err(reason),
        },
    }
}

/// What a trace holds, for the hash of a case that reads it.
fn content(text: Option<&[u8]>) -> String {
    text.map_or_else(String::new, |text| {
        folder::hash([&*String::from_utf8_lossy(text)])
    })
}

/// Runs what is selected and not finished, and returns how many cases an interrupt left.
fn run_all(
    folder: &Folder,
    sweep: &Sweep,
    planned: &[Planned],
    selected: &[bool],
) -> Result<usize, Failure> {
    let interrupt = Interrupt::listen()?;
    let open: Vec<(&Case, &Planned)> = sweep
        .cases
        .iter()
        .zip(planned)
        .zip(selected)
        .filter(|((case, planned), selected)| {
            **selected && !folder.holds(&case.name, &planned.hash)
        })
        .map(|(pair, _)| pair)
        .collect();
    let finished = selected.iter().filter(|selected| **selected).count() - open.len();
    if finished > 0 {
        files::tell(&format!(
            "{finished} of {} cases are finished already",
            finished + open.len()
        ));
    }
    let bar = progress(open.len());
    let left = open.into_par_iter().map(|(case, planned)| {
        if interrupt.asked() {
            return Ok(1);
        }
        run_case(folder, case, planned)?;
        bar.inc(1);
        Ok(0)
    });
    let left = left.try_reduce(|| 0, |a, b| Ok(a + b));
    bar.finish_and_clear();
    left
}

/// A bar with the time that is left, on a terminal only.
fn progress(cases: usize) -> ProgressBar {
    let style = ProgressStyle::with_template("{bar:40} {pos} of {len} cases, {eta} left")
        .expect("the template is written above");
    ProgressBar::new(cases as u64).with_style(style)
}

/// Simulates one case and leaves its files; the last of them says that it is finished.
fn run_case(folder: &Folder, case: &Case, planned: &Planned) -> Result<(), Failure> {
    let simulated = planned.work.clone().and_then(simulate);
    let facts = facts(&case.name);
    let finished = |status: &str, reason: Option<String>, metrics| CaseFile {
        hash: planned.hash.clone(),
        case: case.name.clone(),
        status: status.to_owned(),
        reason,
        parameters: case.parameters.clone(),
        metrics,
    };
    match &simulated {
        Ok(ran) => {
            let (text, json) = ran.written();
            folder.write_case(&case.name, "report.txt", &text)?;
            folder.write_case(&case.name, "report.json", &json)?;
            folder.write_case(&case.name, "scenario.yaml", &case.to_yaml())?;
            let metrics = row(&facts, &ran.outcome(), &[]);
            folder.finish(&finished("done", None, metrics))
        }
        Err(reason) => {
            folder.write_case(&case.name, "scenario.yaml", &case.to_yaml())?;
            let metrics = row(&facts, &unable(case, reason), &[]);
            folder.finish(&finished("infeasible", Some(reason.clone()), metrics))
        }
    }
}

/// Simulates what a case means, or says in the program's words why that failed.
fn simulate(work: Work) -> Result<Ran, String> {
    // A defect that one case meets must not take the others with it.
    std::panic::catch_unwind(AssertUnwindSafe(|| match work {
        Work::Trains(resolved) => {
            let plan = run::plan(&resolved)?;
            let mut report = run::simulate(&plan, *resolved)?;
            // The one value that differs between reruns.
            report.engine.wall_s = 0.0;
            Ok(Ran::Trained(Box::new(report)))
        }
        Work::Serves(plan, trace) => {
            let record = serve::record(&plan, trace.as_deref(), &mut NoSink)?;
            let report = summarize_serving(&plan, &record, 0.0).map_err(Failure::run)?;
            Ok(Ran::Served(Box::new(report)))
        }
    }))
    .unwrap_or_else(|_| Err(Failure::run("the simulation failed, a defect of Rackflow")))
    .map_err(said)
}

/// The results of a sweep, without a folder.
pub fn results(input: &Input) -> Result<Table, Failure> {
    let sweep = input::expand(input, None)?;
    well_formed(&sweep)?;
    let bar = progress(sweep.cases.len());
    let rows = sweep
        .cases
        .par_iter()
        .map(|case| {
            let ran = resolve(input, case).and_then(simulate);
            let outcome = match &ran {
                Ok(ran) => ran.outcome(),
                Err(reason) => unable(case, reason),
            };
            bar.inc(1);
            let facts = CaseFacts {
                name: &case.name,
                parameters: &case.parameters,
            };
            row(&facts, &outcome, &sweep.parameters)
        })
        .collect();
    bar.finish_and_clear();
    Ok(table(&sweep.parameters, rows))
}

/// The results in the folder of an earlier sweep; none where there is no such folder.
pub fn read_results(path: &Path) -> Result<Option<Table>, Failure> {
    folder::read_results(path, with_choices)
}

fn facts(name: &str) -> CaseFacts<'_> {
    CaseFacts {
        name,
        parameters: &[],
    }
}

/// A row of the results: the identity stands first, then what was chosen, then what was measured.
fn with_choices(parameters: &[String], chosen: &[(String, String)], metrics: &[Cell]) -> Vec<Cell> {
    let (identity, metrics) = metrics.split_at(3.min(metrics.len()));
    let chosen = parameters.iter().map(|name| {
        let value = chosen.iter().find(|(path, _)| path == name);
        value.map_or(Cell::Missing, |(_, value)| Cell::Text(value.clone()))
    });
    identity
        .iter()
        .cloned()
        .chain(chosen)
        .chain(metrics.iter().cloned())
        .collect()
}

/// A message without its frame: "error: it does not fit" and what follows, on one line.
fn one_line(reason: &str) -> String {
    let mut words = String::new();
    for line in reason.lines() {
        let line = line.trim();
        let framed = line.starts_with("-->")
            || line.starts_with('|')
            || line
                .split_once(" |")
                .is_some_and(|(n, _)| n.chars().all(|c| c.is_ascii_digit()));
        if framed || line.is_empty() || line.starts_with("hint:") {
            continue;
        }
        if !words.is_empty() {
            words.push_str("; ");
        }
        words.push_str(line.trim_start_matches("error: "));
    }
    words
}

/// The table of every finished case, selected now or not, in the order of the sweep. Values are read
/// back from the files, so that a resumed sweep gives the same bytes as one that ran through.
fn gather(folder: &Folder, sweep: &Sweep, planned: &[Planned]) -> Result<Table, Failure> {
    let mut rows = Vec::new();
    for (case, planned) in sweep.cases.iter().zip(planned) {
        let Some(finished) = folder.read(&case.name).filter(|f| f.hash == planned.hash) else {
            continue;
        };
        rows.push(with_choices(
            &sweep.parameters,
            &case.parameters,
            &finished.metrics,
        ));
    }
    Ok(table(&sweep.parameters, rows))
}

/// Writes what all cases come to together.
fn write(folder: &mut Folder, scenario: &str, results: &Table) -> Result<(), Failure> {
    let parquet = results
        .parquet()
        .map_err(|error| Failure::run(format_args!("results.parquet cannot be made: {error}")))?;
    folder.write("results.csv", results.csv())?;
    folder.write("results.parquet", parquet)?;
    let figures = figures(results);
    folder.write("report.html", page(&title(scenario), results, &figures))?;
    figures.par_iter().try_for_each(|figure| {
        folder.write(
            &format!("figures/{}.svg", figure.name),
            figure.picture.svg(),
        )?;
        folder.write(
            &format!("figures/{}.png", figure.name),
            figure.picture.png(),
        )
    })?;
    folder.finished(results)
}

fn title(scenario: &str) -> String {
    let file = scenario.rsplit(['/', '\\']).next().unwrap_or(scenario);
    file.trim_end_matches(".yaml")
        .trim_end_matches(".yml")
        .to_owned()
}

fn nothing_selected(sweep: &Sweep) -> Failure {
    let some: Vec<&str> = sweep
        .cases
        .iter()
        .take(5)
        .map(|case| case.name.as_str())
        .collect();
    Failure::Input(format!(
        "error: no case matches the filter\n  hint: cases are named {}{}; `--list` prints them",
        some.join(" "),
        if sweep.cases.len() > 5 {
            " and so on"
        } else {
            ""
        }
    ))
}

fn list(sweep: &Sweep, selected: &[bool], format: Format) -> Result<(), Failure> {
    let cases: Vec<&Case> = sweep
        .cases
        .iter()
        .zip(selected)
        .filter_map(|(case, selected)| selected.then_some(case))
        .collect();
    files::print(&match format {
        Format::Table => cases.iter().map(|case| case.name.clone() + "\n").collect(),
        Format::Json => {
            let chosen = |case: &&Case| {
                let parameters: serde_json::Map<String, serde_json::Value> = case
                    .parameters
                    .iter()
                    .map(|(path, value)| (path.clone(), value.clone().into()))
                    .collect();
                serde_json::json!({ "case": case.name, "parameters": parameters })
            };
            let all: Vec<serde_json::Value> = cases.iter().map(chosen).collect();
            format!("{:#}\n", serde_json::json!({ "cases": all }))
        }
    })
}

fn json(results: &Table) -> String {
    let object = |row: &Vec<Cell>| -> serde_json::Value {
        let fields = results.columns.iter().zip(row);
        fields
            .map(|(column, cell)| (column.name.clone(), serde_json::json!(cell)))
            .collect::<serde_json::Map<_, _>>()
            .into()
    };
    let rows: Vec<serde_json::Value> = results.rows.iter().map(object).collect();
    format!("{:#}\n", serde_json::json!({ "cases": rows }))
}

/// Rows of the summary on a terminal; the files hold all.
const MOST_ROWS: usize = 60;

fn summary(folder: &Folder, sweep: &Sweep, results: &Table, color: ColorChoice) -> String {
    let done = |row: &usize| results.text(*row, "status") == "done";
    let all = 0..results.rows.len();
    let served = results
        .columns
        .iter()
        .any(|column| column.name == "ttft_mean_s");
    let figures: &[(&str, &str, f64, usize)] = if served {
        &[
            (">tokens/s", "output_tokens_per_s", 1.0, 0),
            (">per GPU", "output_tokens_per_s_per_gpu", 1.0, 1),
            (">per user", "tokens_per_s_per_user", 1.0, 1),
            (">TTFT s", "ttft_mean_s", 1.0, 3),
            (">TPOT ms", "tpot_mean_s", 1e3, 1),
            (">USD/M", "usd_per_million_output_tokens", 1.0, 3),
        ]
    } else {
        &[
            (">step s", "step_time_s", 1.0, 3),
            (">EFLOP/s", "effective_flops", 1e-18, 4),
            (">PFLOP/s per rack", "effective_flops_per_rack", 1e-15, 2),
            (">MFU bf16 %", "mfu_bf16_noncausal", 100.0, 1),
            (">MFU native %", "mfu_native_causal", 100.0, 1),
        ]
    };
    let rows: Vec<Vec<String>> = all
        .clone()
        .filter(done)
        .take(MOST_ROWS)
        .map(|row| {
            let value = |(_, column, scale, digits): &(&str, &str, f64, usize)| {
                let value = results.real(row, column).unwrap_or_default() * scale;
                format!("{value:.digits$}")
            };
            let mut cells = vec![results.text(row, "case")];
            cells.extend(figures.iter().map(value));
            cells.push(results.text(row, "largest_loss"));
            cells
        })
        .collect();
    let mut head = vec!["case"];
    head.extend(figures.iter().map(|(title, ..)| *title));
    head.push("largest loss");
    let width = terminal::style(color).width;
    let mut out = lay_out(&head, &rows, width);
    let ran = all.clone().filter(done).count();
    if ran > MOST_ROWS {
        out.push_str(&format!("  ... and {} more\n", ran - MOST_ROWS));
    }
    let infeasible = all.clone().count() - ran;
    out.push_str(&format!("\n{ran} of {} cases ran", sweep.cases.len()));
    if infeasible > 0 {
        out.push_str(&format!(
            "; {infeasible} cannot, for reasons that the results name"
        ));
    }
    out.push_str(&format!(
        "\nopen {0}/report.html; data in {0}/results.parquet and {0}/results.csv\n",
        folder.shown()
    ));
    out
}
