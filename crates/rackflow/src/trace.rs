//! `run --trace`: what chosen ranks did when, in a format of timeline viewers.

use crate::failure::Failure;
use crate::files;
use flate2::Compression;
use flate2::write::GzEncoder;
use rackflow_plan::{Coordinates, Plan};
use rackflow_report::trace::{to_chrome_json, to_perfetto};
use rackflow_simulator::{Trace, simulate_traced};
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

/// Simulates `plan` and writes what `ranks` did, or the first rank of each stage.
pub fn write(plan: &Plan, path: &Path, ranks: &[u32]) -> Result<(), Failure> {
    let written = format_of(path)?;
    let trace = traced(plan, ranks)?;
    let bytes = match written {
        Written::Perfetto => to_perfetto(&trace),
        Written::Json => to_chrome_json(&trace).into_bytes(),
        Written::PackedJson => {
            let mut packed = GzEncoder::new(Vec::new(), Compression::default());
            let done = packed
                .write_all(to_chrome_json(&trace).as_bytes())
                .and_then(|()| packed.finish());
            done.map_err(|error| Failure::file("written", path, &error))?
        }
    };
    files::write_atomically(path, &bytes)?;
    files::tell(&format!("wrote {}", path.display()));
    Ok(())
}

/// Simulates `plan` and returns what `ranks` did, or the first rank of each stage.
pub fn traced(plan: &Plan, ranks: &[u32]) -> Result<Trace, Failure> {
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
    Ok(simulate_traced(plan, &chosen).1)
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
