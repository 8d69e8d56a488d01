//! `compare`: why two runs differ, cause by cause.

use crate::args::{CompareArgs, Format};
use crate::failure::Failure;
use crate::files;
use crate::input;
use crate::run;
use crate::serve;
use rackflow_report::ServingReport;
use rackflow_report::compare::{self, Side};

/// One side: a report that was read, or a scenario that was run.
enum Run {
    Training(Box<Side>),
    Serving(Box<ServingReport>),
}

/// Compares two reports, two scenarios, or one of each.
pub fn run(args: &CompareArgs) -> Result<(), Failure> {
    let (text, json) = match (side(&args.a)?, side(&args.b)?) {
        (Run::Training(a), Run::Training(b)) => {
            let found = compare::compare(&a, &b);
            (found.render_text(), found.to_json())
        }
        (Run::Serving(a), Run::Serving(b)) => {
            let found = compare::serving::compare(&a, &b);
            (found.render_text(), found.to_json())
        }
        _ => {
            return Err(Failure::input(format_args!(
                "one of {} and {} trains and the other serves: they have no figure in common",
                args.a, args.b
            )));
        }
    };
    files::print(match args.format {
        Format::Table => &text,
        Format::Json => &json,
    })
}

/// A report is read, a scenario is run.
fn side(name: &str) -> Result<Run, Failure> {
    if !name.ends_with(".json") {
        let input = input::read(name)?;
        if input::serves(&input) {
            return Ok(Run::Serving(Box::new(serve::report(&input)?)));
        }
        let resolved = input::resolve(&input, None, None)?;
        let plan = run::plan(&resolved)?;
        return trained(name, &run::simulate(&plan, resolved)?.to_json());
    }
    let json = std::fs::read_to_string(name)
        .map_err(|error| Failure::input(format_args!("{name} cannot be read: {error}")))?;
    match serde_json::from_str(&json) {
        Ok(report) => Ok(Run::Serving(Box::new(report))),
        Err(_) => trained(name, &json),
    }
}

fn trained(name: &str, json: &str) -> Result<Run, Failure> {
    serde_json::from_str(json)
        .map(|side| Run::Training(Box::new(side)))
        .map_err(|error| {
            Failure::Input(format!(
                "error: {name} is no report of a run: {error}\n  \
                 hint: `rackflow run SCENARIO --format json` writes one"
            ))
        })
}
