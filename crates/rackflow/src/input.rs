//! From what the user named to a setup.

use crate::failure::Failure;
use rackflow_plan::serving::FleetSetup;
use rackflow_plan::{Fidelity, Setup};
use rackflow_report::Published;
use rackflow_scenario::{Catalogue, ClusterChanges, Section, Written};
use rackflow_topology::{Cluster, LinkFault};
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

/// A scenario is a page of text; beyond this something else was named by mistake.
const LARGEST: u64 = 16 << 20;

/// The text of a scenario, and where it is from.
pub struct Input {
    /// What messages call it.
    pub source: String,
    pub text: String,
    /// Files that the scenario names are relative to this folder.
    pub folder: PathBuf,
}

/// A scenario as meant.
#[derive(Clone)]
pub struct Resolved {
    /// Where it says what.
    pub written: Written,
    /// What to simulate.
    pub setup: Setup,
    /// What to compare it with.
    pub published: Option<Published>,
    /// Power, cost and the whole run.
    pub outlook: rackflow_plan::Outlook,
}

/// Reads standard input for `-`, else a file, else the shipped scenario of that name.
pub fn read(name: &str) -> Result<Input, Failure> {
    if name == "-" {
        let text = text_of(io::stdin().lock(), Path::new("standard input"))?;
        return Ok(Input {
            source: "standard input".into(),
            text,
            folder: PathBuf::from("."),
        });
    }
    let path = Path::new(name);
    match File::open(path) {
        Ok(file) => {
            let text = text_of(file, path)?;
            let folder = path.parent().unwrap_or(Path::new("")).to_owned();
            Ok(Input {
                source: printable(name),
                text,
                folder,
            })
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => shipped(name),
        Err(error) => Err(unreadable(path, &error)),
    }
}

fn text_of(reader: impl Read, path: &Path) -> Result<String, Failure> {
    let mut bytes = Vec::new();
    reader
        .take(LARGEST + 1)
        .read_to_end(&mut bytes)
        .map_err(|error| unreadable(path, &error))?;
    let shown = printable(&path.display().to_string());
    if bytes.len() as u64 > LARGEST {
        return Err(Failure::input(format_args!(
            "{shown} is larger than 16 MiB, which no scenario is"
        )));
    }
    String::from_utf8(bytes).map_err(|error| {
        let good = &error.as_bytes()[..error.utf8_error().valid_up_to()];
        let line = good.iter().filter(|byte| **byte == b'\n').count() + 1;
        let start = good.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        let column = String::from_utf8_lossy(&good[start..]).chars().count() + 1;
        let byte = error.as_bytes().get(good.len()).copied().unwrap_or_default();
        Failure::Input(format!(
            "error: this is not text: the byte 0x{byte:02x} is not UTF-8\n  --> {shown}:{line}:{column}\n  \
             hint: save the scenario as UTF-8"
        ))
    })
}

/// A scenario that cannot be read is a wrong input, as one that is not there.
fn unreadable(path: &Path, error: &io::Error) -> Failure {
    let shown = printable(&path.display().to_string());
    Failure::Input(format!("error: {shown} cannot be read: {error}"))
}

/// Names come from the shell: what they hold of control characters never reaches a terminal.
fn printable(name: &str) -> String {
    name.chars()
        .map(|c| if c.is_control() { '\u{fffd}' } else { c })
        .collect()
}

/// The shipped scenario of this name.
fn shipped(name: &str) -> Result<Input, Failure> {
    let scenarios: Vec<(&str, &str)> = rackflow_scenario::shipped()
        .iter()
        .chain(rackflow_scenario::shipped_jobs())
        .chain(rackflow_scenario::shipped_sweeps())
        .copied()
        .collect();
    if let Some((_, text)) = scenarios.iter().find(|(shipped, _)| *shipped == name) {
        return Ok(Input {
            source: printable(name),
            text: (*text).to_owned(),
            folder: PathBuf::from("."),
        });
    }
    let stem = Path::new(name)
        .file_stem()
        .and_then(|stem| stem.to_str())
        .unwrap_or(name);
    let names = scenarios.iter().map(|(name, _)| *name);
    let mut text = format!(
        "error: there is no file and no shipped scenario `{}`",
        printable(name)
    );
    match nearest(stem, names) {
        Some(near) => text.push_str(&format!("\n  hint: did you mean {near}?")),
        None => text.push_str("\n  hint: `rackflow list scenarios` names those that ship"),
    }
    Err(Failure::Input(text))
}

/// The cluster that a name stands for: a node of the catalogue, else a scenario or a cluster file,
/// else the scenario that ships under this name.
pub fn cluster(name: &str, changes: &ClusterChanges) -> Result<Cluster, Failure> {
    if !Path::new(name).exists() && Catalogue::builtin().node(name).is_some() {
        return rackflow_scenario::catalogue_cluster(name, changes).map_err(refusal);
    }
    let input = read(name).map_err(|failure| named_neither(name, failure))?;
    let files = |path: &str| read_beside(&input.folder, path);
    rackflow_scenario::parse_cluster(&input.source, &input.text, changes, &files).map_err(refusal)
}

/// Dead, slow and flapping links of a scenario; what is no sound scenario has none.
pub fn faults(name: &str) -> Vec<LinkFault> {
    if !Path::new(name).exists() && Catalogue::builtin().node(name).is_some() {
        return Vec::new();
    }
    let Ok(input) = read(name) else {
        return Vec::new();
    };
    if serves(&input) {
        return resolve_fleet(&input, None).map_or_else(|_| Vec::new(), |fleet| fleet.setup.faults);
    }
    resolve(&input, None, None).map_or_else(|_| Vec::new(), |resolved| resolved.setup.faults)
}

/// A name that is none of a node, a file and a shipped scenario.
fn named_neither(name: &str, failure: Failure) -> Failure {
    let text = match failure {
        Failure::Input(text) if text.contains("no shipped scenario") => text,
        other => return other,
    };
    let nodes = || Catalogue::builtin().names(Section::Nodes);
    let near = nearest(name, nodes()).map_or_else(
        || "`rackflow list nodes` names those of the catalogue".to_owned(),
        |near| format!("did you mean {near}?"),
    );
    // What ships is named last: a cluster is rather a node.
    let text = text.lines().next().unwrap_or_default();
    Failure::Input(format!(
        "{text}, and no node of the catalogue\n  hint: {near}"
    ))
}

/// The name that is spelled most like `typed`, if any is.
pub fn nearest<'n>(typed: &str, names: impl Iterator<Item = &'n str>) -> Option<&'n str> {
    names
        .map(|name| (strsim::jaro_winkler(typed, name), name))
        .filter(|(likeness, _)| *likeness > 0.8)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, name)| name)
}

/// A serving scenario as meant.
pub struct ResolvedFleet {
    /// Where it says what.
    pub written: Written,
    /// What to simulate.
    pub setup: FleetSetup,
    /// The trace that it names is relative to this folder.
    pub folder: PathBuf,
}

/// A scenario that replays an execution trace, before the trace is read.
pub struct ResolvedReplay {
    /// Where it says what.
    pub written: Written,
    /// What to replay, and where.
    pub scenario: rackflow_scenario::ReplayScenario,
    /// The trace that it names is relative to this folder.
    pub folder: PathBuf,
}

/// Whether the text replays a trace; a faulty text does not.
pub fn replays(input: &Input) -> bool {
    rackflow_scenario::parse(&input.source, &input.text).is_ok_and(|scenario| scenario.replays())
}

/// Says what a scenario means that replays a trace, or everything that is wrong with it.
pub fn resolve_replay(input: &Input) -> Result<ResolvedReplay, Failure> {
    let scenario = rackflow_scenario::parse(&input.source, &input.text).map_err(refusal)?;
    let written = scenario.written();
    let scenario = scenario
        .resolve_replay(&|path| read_beside(&input.folder, path))
        .map_err(refusal)?;
    Ok(ResolvedReplay {
        written,
        scenario,
        folder: input.folder.clone(),
    })
}

/// Whether the text is a serving scenario; a faulty text is none.
pub fn serves(input: &Input) -> bool {
    rackflow_scenario::parse(&input.source, &input.text).is_ok_and(|scenario| scenario.serves())
}

/// Says what a serving scenario means, or everything that is wrong with it.
pub fn resolve_fleet(input: &Input, seed: Option<u64>) -> Result<ResolvedFleet, Failure> {
    let scenario = rackflow_scenario::parse(&input.source, &input.text).map_err(refusal)?;
    let written = scenario.written();
    let setup = scenario
        .simulated_with(seed, None)
        .resolve_serving(&|path| read_beside(&input.folder, path))
        .map_err(refusal)?;
    Ok(ResolvedFleet {
        written,
        setup,
        folder: input.folder.clone(),
    })
}

/// The same for one case of a sweep.
pub fn resolve_fleet_case(
    input: &Input,
    case: &rackflow_scenario::Case,
) -> Result<ResolvedFleet, Failure> {
    let scenario = case.scenario().map_err(refusal)?;
    let written = scenario.written();
    let setup = scenario
        .resolve_serving(&|path| read_beside(&input.folder, path))
        .map_err(refusal)?;
    Ok(ResolvedFleet {
        written,
        setup,
        folder: input.folder.clone(),
    })
}

/// All that is wrong with a text.
pub fn refusal(found: Vec<rackflow_scenario::Diagnostic>) -> Failure {
    let texts: Vec<String> = found.iter().map(ToString::to_string).collect();
    Failure::Input(texts.join("\n\n"))
}

/// Whether the text describes several jobs.
pub fn has_jobs(input: &Input) -> bool {
    rackflow_scenario::has_jobs(&input.source, &input.text)
}

/// Says what the jobs of a scenario mean, or everything that is wrong with them.
pub fn resolve_jobs(
    input: &Input,
    seed: Option<u64>,
    fidelity: Option<Fidelity>,
) -> Result<Vec<rackflow_scenario::Job>, Failure> {
    rackflow_scenario::parse_jobs(&input.source, &input.text)
        .and_then(|jobs| {
            jobs.simulated_with(seed, fidelity)
                .resolve(&|path| read_beside(&input.folder, path))
        })
        .map_err(refusal)
}

/// The name of a file without directory and extension.
pub fn stem(name: &str) -> String {
    let stem = Path::new(name).file_stem().and_then(|stem| stem.to_str());
    stem.unwrap_or(name).to_owned()
}

/// Says what the scenario means, or everything that is wrong with it. `seed` and `fidelity` replace
/// the scenario's own.
pub fn resolve(
    input: &Input,
    seed: Option<u64>,
    fidelity: Option<Fidelity>,
) -> Result<Resolved, Failure> {
    let scenario = rackflow_scenario::parse(&input.source, &input.text).map_err(refusal)?;
    meant(input, scenario.simulated_with(seed, fidelity))
}

/// The same for one case of a sweep.
pub fn resolve_case(input: &Input, case: &rackflow_scenario::Case) -> Result<Resolved, Failure> {
    meant(input, case.scenario().map_err(refusal)?)
}

/// Every case of a sweep. `seed` replaces the scenario's own.
pub fn expand(input: &Input, seed: Option<u64>) -> Result<rackflow_scenario::Sweep, Failure> {
    rackflow_scenario::expand(&input.source, &input.text, seed).map_err(refusal)
}

/// Whether the text describes many cases.
pub fn is_sweep(input: &Input) -> bool {
    rackflow_scenario::is_sweep(&input.source, &input.text)
}

fn meant(input: &Input, scenario: rackflow_scenario::Scenario) -> Result<Resolved, Failure> {
    let published = scenario.published().map(|published| Published {
        source: published.source.clone(),
        step_time_s: published.step_time.map(|time| time.as_secs_f64()),
        tflops_per_gpu: published.tflops_per_gpu,
        mfu: published.mfu,
    });
    let written = scenario.written();
    let setup = scenario
        .resolve(&|path| read_beside(&input.folder, path))
        .map_err(refusal)?;
    let outlook = scenario.outlook(&setup).map_err(refusal)?;
    Ok(Resolved {
        outlook,
        written,
        setup,
        published,
    })
}

/// Reads a file that the scenario names, relative to the scenario's folder.
fn read_beside(folder: &Path, path: &str) -> io::Result<String> {
    let mut text = String::new();
    File::open(folder.join(path))?
        .take(LARGEST)
        .read_to_string(&mut text)?;
    Ok(text)
}
