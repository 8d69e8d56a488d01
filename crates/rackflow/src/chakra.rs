//! `run --chakra`: the plan as execution traces, one file per rank, for other simulators.

use crate::args::TraceArgs;
use crate::failure::Failure;
use crate::files;
use rackflow_plan::Plan;
use rackflow_report::ChakraExport;
use rackflow_scenario::chakra_file;
use rackflow_simulator::Execution;
use rackflow_units::{Bytes, counted};
use std::fs;
use std::path::Path;

/// Traces of all ranks together are at most so large where nobody asked for more.
const LARGEST: Bytes = Bytes::new(1_000_000_000);

/// The ranks that the command line chooses, or all, in their order.
pub fn chosen(plan: &Plan, args: &TraceArgs) -> Result<Vec<u32>, Failure> {
    let ranks = &args.chakra_ranks;
    let all = plan.placement.ranks();
    if let Some(wrong) = ranks.iter().find(|rank| **rank >= all) {
        return Err(Failure::input(format_args!(
            "there is no rank {wrong} to write: the ranks of this scenario are 0 to {}",
            all - 1
        )));
    }
    let mut chosen: Vec<u32> = if ranks.is_empty() {
        (0..all).collect()
    } else {
        ranks.clone()
    };
    chosen.sort_unstable();
    chosen.dedup();
    Ok(chosen)
}

/// Writes the traces of the chosen ranks of a plan that was executed, at most so large together.
pub fn write(
    plan: &Plan,
    execution: &Execution,
    folder: &Path,
    chosen: &[u32],
    limit: Option<Bytes>,
) -> Result<(), Failure> {
    let export = ChakraExport::new(plan, execution);
    let size = Bytes::new(export.bytes_of(chosen));
    let most = limit.unwrap_or(LARGEST);
    if size > most {
        let all = chosen.len();
        let enough = size.get().div_ceil(1_000_000_000);
        return Err(Failure::input(format_args!(
            "the traces of {} would take about {size}, more than {most}\n  \
             hint: name some, such as --chakra-ranks 0,1,2,3, and the others are taken to be always ready; \
             or allow it: --chakra-limit {enough}GB",
            counted(all as u64, "rank"),
        )));
    }
    fs::create_dir_all(folder).map_err(|error| Failure::file("created", folder, &error))?;
    let name = &plan.setup.name;
    refuse_traces_of_another_run(folder, name, export.ranks())?;
    let mut bytes = 0;
    for rank in chosen {
        let file = export.rank(*rank);
        bytes += file.len();
        files::write_atomically(&folder.join(format!("{name}.{rank}.et")), &file)?;
    }
    let communicators = export.communicators();
    files::write_atomically(&folder.join("comm_group.json"), communicators.as_bytes())?;
    files::tell(&format!(
        "wrote {} ({:.1} MB) and comm_group.json into {}",
        counted(chosen.len() as u64, "trace"),
        bytes as f64 / 1e6,
        folder.display()
    ));
    Ok(())
}

/// A folder holds the traces of one run: what another run left there would be replayed with them.
fn refuse_traces_of_another_run(folder: &Path, name: &str, ranks: u32) -> Result<(), Failure> {
    let entries = fs::read_dir(folder).map_err(|error| Failure::file("read", folder, &error))?;
    let mut others: Vec<String> = entries
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .filter(|file| is_of_another_run(file, name, ranks))
        .collect();
    others.sort_unstable();
    match others.first() {
        None => Ok(()),
        Some(first) => Err(Failure::input(format_args!(
            "{} holds traces of another run, such as {first}\n  \
             hint: name a new folder, or remove them first",
            folder.display()
        ))),
    }
}

/// Whether this is the trace of a rank that a run called `name` with so many `ranks` does not write.
fn is_of_another_run(file: &str, name: &str, ranks: u32) -> bool {
    let packed = file.ends_with(".gz");
    chakra_file(file).is_some_and(|(run, rank)| packed || run != name || rank >= ranks)
}
