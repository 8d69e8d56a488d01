//! `plot`: one picture from a report, a sweep, or a scenario that is run for it.

use crate::failure::Failure;
use crate::input::{self, Input};
use crate::{files, goodput, run, serve, sweep};
use clap::{Args, ValueEnum};
use rackflow_report::plot::{self, Picture};
use rackflow_report::sweep::{CaseFacts, NamedPicture, Outcome, Table, figures, row, table};
use rackflow_report::{Report, ServingPlan, ServingReport};
use serde::de::DeserializeOwned;
use std::path::{Path, PathBuf};

/// What to draw, of what, and where it goes.
#[derive(Debug, Args)]
pub struct PlotArgs {
    /// What to draw
    #[arg(value_name = "KIND")]
    pub kind: Kind,
    /// A report (.json), the folder of a run or of a sweep, a scenario file or the name of a shipped
    /// one, or `-`; several reports are several sizes of one picture
    #[arg(value_name = "SOURCE", required = true)]
    pub sources: Vec<String>,
    /// Write a file that ends in .svg or .png, or both into this folder [default: SVG to standard output]
    #[arg(short, long, value_name = "FILE|DIR")]
    pub output: Option<PathBuf>,
    /// Of a sweep that varies several things: only the part whose choices contain this text
    #[arg(long, value_name = "TEXT")]
    pub part: Option<String>,
}

/// Kinds of pictures.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Kind {
    /// From the dense peak to effective FLOP/s, loss by loss: a run that trains or serves
    Waterfall,
    /// Kernels, or steps of a service, under the ceilings of memory and tensor cores: one run
    Roofline,
    /// Passes of each pipeline stage over time: a training run
    Gantt,
    /// How busy the links are: of a training run on a drawing of the rack, or of a service
    Links,
    /// Memory of each stage or pool by category: one run
    Memory,
    /// Effective FLOP/s over GPUs, with the line of linear scaling: a sweep or several runs
    Scaling,
    /// Goodput over GPUs, as failures leave it: a sweep or several runs
    Goodput,
    /// Days against dollars, or of serving users against GPUs, and what nothing beats in both
    Pareto,
    /// Loss against dollars: a sweep or several runs
    Loss,
}

impl Kind {
    fn name(self) -> String {
        self.to_possible_value()
            .map_or_else(String::new, |value| value.get_name().to_owned())
    }

    /// Whether it shows many runs.
    fn of_many(self) -> bool {
        matches!(
            self,
            Self::Scaling | Self::Goodput | Self::Pareto | Self::Loss
        )
    }
}

/// What a picture is made from.
enum Source {
    Training(Box<Report>),
    Serving(Box<ServingReport>),
    ServingPlan(Box<ServingPlan>),
    Sweep(Table),
}

/// Draws.
pub fn plot(args: &PlotArgs) -> Result<(), Failure> {
    let pictures = pictures(args)?;
    let Some(path) = &args.output else {
        return files::print(&only(args, pictures)?.picture.svg());
    };
    match path.extension().and_then(|kind| kind.to_str()) {
        Some("svg") => {
            let picture = only(args, pictures)?.picture;
            files::write_atomically(path, picture.svg().as_bytes())?;
        }
        Some("png") => {
            let picture = only(args, pictures)?.picture;
            files::write_atomically(path, &picture.png())?;
        }
        Some(other) if !path.is_dir() => {
            return Err(Failure::input(format_args!(
                "pictures are not written as .{other}\n  hint: end the name in .svg or .png, or name a folder"
            )));
        }
        _ => {
            for named in &pictures {
                let (svg, png) = (named.picture.svg(), named.picture.png());
                let names = [format!("{}.svg", named.name), format!("{}.png", named.name)];
                files::write_folder(path, &[(&names[0], svg.as_bytes()), (&names[1], &png)])?;
            }
        }
    }
    files::tell(&format!("wrote {}", path.display()));
    Ok(())
}

/// The picture, where one place holds one.
fn only(args: &PlotArgs, pictures: Vec<NamedPicture>) -> Result<NamedPicture, Failure> {
    let facets: Vec<String> = pictures.iter().map(|p| format!("{:?}", p.facet)).collect();
    let count = pictures.len();
    let mut pictures = pictures.into_iter();
    match (pictures.next(), count) {
        (Some(picture), 1) => Ok(picture),
        _ => Err(Failure::input(format_args!(
            "{} comes in {count} parts: {}\n  hint: choose one with `--part TEXT`, or name a folder for all with `-o DIR`",
            args.kind.name(),
            facets.join(", ")
        ))),
    }
}

fn pictures(args: &PlotArgs) -> Result<Vec<NamedPicture>, Failure> {
    if args.sources.len() == 1 {
        let name = &args.sources[0];
        return match load(args.kind, name)? {
            Source::Sweep(results) if args.kind.of_many() => of_results(args, &results),
            Source::Sweep(_) => Err(Failure::input(format_args!(
                "{} shows one run, and {name} holds many\n  hint: name one of them, such as {name}/cases/NAME/report.json",
                args.kind.name()
            ))),
            Source::ServingPlan(plan) if args.kind == Kind::Pareto => {
                Ok(vec![single(args.kind, plan.picture())])
            }
            Source::ServingPlan(_) => Err(Failure::input(format_args!(
                "{name} is a search for a serving plan, of which `pareto` is the picture"
            ))),
            Source::Serving(report) => {
                of_service(args.kind, name, &report).map(|p| vec![single(args.kind, p)])
            }
            Source::Training(report) if args.kind.of_many() => {
                of_results(args, &together(&[*report]))
            }
            Source::Training(report) => {
                of_run(args.kind, name, &report).map(|p| vec![single(args.kind, p)])
            }
        };
    }
    if !args.kind.of_many() {
        return Err(Failure::input(format_args!(
            "{} shows one run, and {} are named",
            args.kind.name(),
            args.sources.len()
        )));
    }
    let mut reports = Vec::new();
    for name in &args.sources {
        match load(args.kind, name)? {
            Source::Training(report) => reports.push(*report),
            _ => {
                return Err(Failure::input(format_args!(
                    "{name} is no training run\n  hint: several sources are reports or scenarios of single training runs"
                )));
            }
        }
    }
    of_results(args, &together(&reports))
}

fn single(kind: Kind, picture: Picture) -> NamedPicture {
    NamedPicture {
        kind: "",
        name: kind.name(),
        subject: "",
        facet: String::new(),
        picture,
    }
}

/// Pictures of many runs, as sweeps draw them.
fn of_results(args: &PlotArgs, results: &Table) -> Result<Vec<NamedPicture>, Failure> {
    let kind = args.kind.name();
    let all: Vec<NamedPicture> = figures(results)
        .into_iter()
        // Of services, tokens/s per user against tokens/s per GPU.
        .filter(|figure| {
            figure.kind == kind || args.kind == Kind::Pareto && figure.kind == "services"
        })
        .collect();
    if all.is_empty() {
        return Err(Failure::input(format_args!(
            "{} is not in what these runs hold\n  hint: {}",
            kind,
            match args.kind {
                Kind::Goodput =>
                    "it needs two sizes at least that say under `run` what fails and how state is saved",
                Kind::Loss =>
                    "it needs two sizes at least with a `run` of given days, as in the shipped sweep loss-against-cost",
                Kind::Pareto => "it needs two sizes at least and a price of the accelerators",
                _ =>
                    "it needs two sizes at least: a scenario with `gpus: [64, 128]`, the folder of its sweep, or several reports",
            }
        )));
    }
    let Some(part) = &args.part else {
        return Ok(all);
    };
    let facets: Vec<String> = all.iter().map(|p| format!("{:?}", p.facet)).collect();
    let chosen: Vec<NamedPicture> = all
        .into_iter()
        .filter(|figure| figure.facet.contains(part.as_str()))
        .collect();
    if chosen.is_empty() {
        return Err(Failure::input(format_args!(
            "no part contains {part:?}\n  hint: the parts are {}",
            facets.join(", ")
        )));
    }
    Ok(chosen)
}

/// A picture of one training run.
fn of_run(kind: Kind, name: &str, report: &Report) -> Result<Picture, Failure> {
    let lacking = |what: &str| {
        Failure::input(format_args!(
            "{name} does not hold {what}\n  hint: reports of older versions lack it, and those of many thousand passes leave the timeline out; \
             `rackflow run SCENARIO --format json` writes one anew, and `rackflow run SCENARIO --trace FILE` a timeline of any length"
        ))
    };
    match kind {
        Kind::Roofline => plot::roofline(report).ok_or_else(|| lacking("its kernels")),
        Kind::Gantt => plot::pipeline(report).ok_or_else(|| lacking("its timeline")),
        Kind::Links => plot::links(report).ok_or_else(|| lacking("the use of its links")),
        Kind::Memory => Ok(plot::memory(report)),
        _ => Ok(plot::waterfall(report)),
    }
}

/// A picture of one serving run.
fn of_service(kind: Kind, name: &str, report: &ServingReport) -> Result<Picture, Failure> {
    let drawn = match kind {
        Kind::Waterfall => Some(plot::serving_waterfall(report)),
        Kind::Roofline => plot::serving_roofline(report),
        Kind::Links => plot::serving_links(report),
        Kind::Memory => plot::serving_memory(report),
        _ => {
            return Err(Failure::input(format_args!(
                "{} shows training runs, and {name} serves\n  hint: serving has `waterfall`, `roofline`, `memory` and `links`, and a `pareto` of a scenario with `slo` or of what `rackflow plan SCENARIO --format json` writes",
                kind.name()
            )));
        }
    };
    drawn.ok_or_else(|| {
        Failure::input(format_args!(
            "{name} does not hold what this picture shows\n  hint: reports of older versions lack it; `rackflow run SCENARIO --format json` writes one anew"
        ))
    })
}

/// Single runs as the results of a sweep: one row each, and a curve for each kind of hardware.
fn together(reports: &[Report]) -> Table {
    const CHOICE: &str = "hardware";
    let rows = reports
        .iter()
        .map(|report| {
            let hardware = format!("{} {}", report.cluster.accelerator, report.plan.precision);
            let chosen = [(CHOICE.to_owned(), hardware)];
            let facts = CaseFacts {
                name: &report.scenario,
                parameters: &chosen,
            };
            row(&facts, &Outcome::Done(report), &[CHOICE.to_owned()])
        })
        .collect();
    table(&[CHOICE.to_owned()], rows)
}

/// Reads a report or the folder of one; runs what is a scenario.
fn load(kind: Kind, name: &str) -> Result<Source, Failure> {
    let path = Path::new(name);
    if path.is_dir() {
        return of_folder(path);
    }
    if name.ends_with(".json") {
        let text = std::fs::read_to_string(path)
            .map_err(|error| Failure::input(format_args!("{name} cannot be read: {error}")))?;
        return of_json(name, &text);
    }
    simulated(kind, &input::read(name)?)
}

fn of_folder(path: &Path) -> Result<Source, Failure> {
    if let Some(results) = sweep::read_results(path)? {
        return Ok(Source::Sweep(results));
    }
    for file in ["report.json", "plan.json"] {
        let file = path.join(file);
        if let Ok(text) = std::fs::read_to_string(&file) {
            return of_json(&file.display().to_string(), &text);
        }
    }
    Err(Failure::input(format_args!(
        "{} holds neither a report.json nor a sweep\n  hint: `rackflow run SCENARIO -o DIR` and `rackflow sweep SCENARIO -o DIR` write such folders",
        path.display()
    )))
}

/// The document tells by its keys what it is.
fn of_json(name: &str, text: &str) -> Result<Source, Failure> {
    let faulty = |error: serde_json::Error| {
        Failure::Input(format!(
            "error: {name} is no report: {error}\n  hint: `rackflow run SCENARIO --format json` writes one"
        ))
    };
    fn read<T: DeserializeOwned>(text: &str) -> Result<Box<T>, serde_json::Error> {
        serde_json::from_str(text).map(Box::new)
    }
    let keys: serde_json::Map<String, serde_json::Value> =
        serde_json::from_str(text).map_err(faulty)?;
    if keys.contains_key("jobs") {
        return Err(Failure::input(format_args!(
            "{name} holds the reports of several jobs\n  hint: `jq '.jobs[0].report' {name} > one.json` takes one out"
        )));
    }
    if keys.contains_key("candidates") {
        read(text).map(Source::ServingPlan)
    } else if keys.contains_key("serving") {
        read(text).map(Source::Serving)
    } else {
        read(text).map(Source::Training)
    }
    .map_err(faulty)
}

/// Runs a scenario, or all cases of a sweep, or the search whose picture is asked for.
fn simulated(kind: Kind, input: &Input) -> Result<Source, Failure> {
    if input::is_sweep(input) {
        if !kind.of_many() {
            return Err(Failure::input(format_args!(
                "{} shows one run, and {} describes many\n  hint: `rackflow sweep` writes a scenario.yaml and a report.json for each",
                kind.name(),
                input.source
            )));
        }
        return Ok(Source::Sweep(sweep::results(input)?));
    }
    if input::has_jobs(input) {
        return Err(Failure::input(format_args!(
            "{} describes several jobs\n  hint: `rackflow run {} --format json | jq '.jobs[0].report' > one.json` takes one out",
            input.source, input.source
        )));
    }
    if input::replays(input) {
        return Err(Failure::input(format_args!(
            "{} replays a trace, of which no picture is made\n  hint: `rackflow run` prints what it finds",
            input.source
        )));
    }
    if input::serves(input) {
        if kind == Kind::Pareto {
            let plan = goodput::plan(input, ATTAINMENT)?;
            return Ok(Source::ServingPlan(Box::new(plan)));
        }
        return Ok(Source::Serving(Box::new(serve::report(input)?)));
    }
    let resolved = input::resolve(input, None, None)?;
    let plan = run::plan(&resolved)?;
    Ok(Source::Training(Box::new(run::simulate(&plan, resolved)?)))
}

/// Share of requests inside the objective, as `plan` asks for where nothing is said.
const ATTAINMENT: f64 = 0.95;
