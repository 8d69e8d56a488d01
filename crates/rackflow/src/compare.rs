//! `compare`: why two runs differ, cause by cause.

use crate::args::{CompareArgs, Format};
use crate::failure::Failure;
use crate::files;
use crate::input;
use crate::run;
use rackflow_report::compare::{Side, compare};

/// Compares two reports, two scenarios, or one of each.
pub fn run(args: &CompareArgs) -> Result<(), Failure> {
    let (a, b) = (side(&args.a)?, side(&args.b)?);
    let found = compare(&a, &b);
    files::print(&match args.format {
        Format::Table => found.render_text(),
        Format::Json => found.to_json(),
    })
}

/// A report is read, a scenario is run.
fn side(name: &str) -> Result<Side, Failure> {
    let json = if name.ends_with(".json") {
        std::fs::read_to_string(name)
            .map_err(|error| Failure::input(format_args!("{name} cannot be read: {error}")))?
    } else {
        let resolved = input::resolve(&input::read(name)?, None, None)?;
        let plan = run::plan(&resolved)?;
        run::simulate(&plan, resolved)?.to_json()
    };
    serde_json::from_str(&json).map_err(|error| {
        Failure::Input(format!(
            "error: {name} is no report of a training run: {error}\n  \
             hint: `rackflow run SCENARIO --format json` writes one"
        ))
    })
}
