//! `claims`: the two essays' figures, each simulated again.
//!
//! T. Dettmers ("Why AGI Will Not Happen") holds that computation is physical and rack-level gains run
//! out; D. Fu ("Yes, AGI Can Happen") that today's systems waste most of what they have. Every
//! quantitative claim of theirs is a scenario here, or a comparison of two; a verdict follows from
//! figures of this program by a rule that stands beside it.

mod hardware;
mod serving;
mod training;

use crate::failure::Failure;
use crate::input::Input;
use crate::{files, input, run, serve};
use clap::{Args, ValueEnum};
use rackflow_report::{Report, ServingReport};
use rackflow_scenario::Sweep;
use rackflow_units::SimDuration;
use rackflow_workload::{Arrivals, Shapes};
use serde::Serialize;
use std::collections::BTreeMap;

/// Which claims, and how they are written.
#[derive(Debug, Args)]
pub struct ClaimsArgs {
    /// Only claims whose name contains this text
    #[arg(long, value_name = "SUBSTRING")]
    pub filter: Option<String>,
    /// How the result is written
    #[arg(long, value_enum, default_value_t = Written::Table)]
    pub format: Written,
}

/// How claims are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Written {
    /// For people.
    Table,
    /// For programs: one JSON document.
    Json,
    /// The page docs/claims.md.
    Markdown,
}

/// Whether the simulation agrees.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// As claimed, within the slack that the finding names.
    Holds,
    /// Under a condition that the finding names.
    HoldsWhen,
    /// Not as claimed.
    DoesNot,
}

impl Verdict {
    fn words(self) -> &'static str {
        match self {
            Self::Holds => "holds",
            Self::HoldsWhen => "holds when",
            Self::DoesNot => "does not hold",
        }
    }
}

/// What the simulation gives for one claim.
pub struct Finding {
    /// Figures, in a sentence or two.
    simulated: String,
    verdict: Verdict,
    /// How to see it again.
    command: String,
}

/// A figure of an essay, and how it is tried.
struct Claim {
    id: &'static str,
    claim: &'static str,
    source: &'static str,
    try_it: fn(&mut Lab) -> Result<Finding, Failure>,
}

/// A claim with its finding.
#[derive(Debug, Serialize)]
struct Tried {
    id: &'static str,
    claim: &'static str,
    source: &'static str,
    simulated: String,
    verdict: Verdict,
    command: String,
}

const FU: &str = "D. Fu, Yes, AGI Can Happen";
const DETTMERS: &str = "T. Dettmers, Why AGI Will Not Happen";

/// Simulates each scenario once, however many claims ask for it.
#[derive(Default)]
struct Lab {
    reports: BTreeMap<&'static str, Report>,
    served: BTreeMap<&'static str, ServingReport>,
    sweeps: BTreeMap<&'static str, (Input, Sweep)>,
    cases: BTreeMap<String, Report>,
}

impl Lab {
    /// The report of a shipped training scenario.
    fn report(&mut self, scenario: &'static str) -> Result<&Report, Failure> {
        if !self.reports.contains_key(scenario) {
            let resolved = input::resolve(&input::read(scenario)?, None, None)?;
            let plan = run::plan(&resolved)?;
            let report = run::simulate(&plan, resolved)?;
            self.reports.insert(scenario, report);
        }
        Ok(&self.reports[scenario])
    }

    /// The report of the case of a shipped sweep with these choices.
    fn case(&mut self, sweep: &'static str, choices: &[(&str, &str)]) -> Result<&Report, Failure> {
        if !self.sweeps.contains_key(sweep) {
            let input = input::read(sweep)?;
            let expanded = input::expand(&input, None)?;
            self.sweeps.insert(sweep, (input, expanded));
        }
        let (input, expanded) = &self.sweeps[sweep];
        let chosen = |case: &&rackflow_scenario::Case| {
            choices.iter().all(|(name, value)| {
                let mut parameters = case.parameters.iter();
                parameters.any(|(known, chosen)| known == name && chosen == value)
            })
        };
        let case = expanded.cases.iter().find(chosen).ok_or_else(|| {
            Failure::run(format_args!("the sweep {sweep} has no case {choices:?}"))
        })?;
        let key = format!("{sweep} {}", case.name);
        if !self.cases.contains_key(&key) {
            let resolved = input::resolve_case(input, case)?;
            let plan = run::plan(&resolved)?;
            let report = run::simulate(&plan, resolved)?;
            self.cases.insert(key.clone(), report);
        }
        Ok(&self.cases[&key])
    }

    /// A shipped serving scenario with so many users who each wait for their answer.
    fn with_users(&self, scenario: &'static str, users: u32) -> Result<ServingReport, Failure> {
        let mut resolved = input::resolve_fleet(&input::read(scenario)?, None)?;
        let requests = &mut resolved.setup.requests;
        requests.arrivals = Some(Arrivals::ClosedLoop { concurrency: users });
        if let Shapes::Drawn { count, .. } = &mut requests.shapes {
            // Long enough for the batch to be full most of the time.
            *count = u64::from(3 * users).max(24);
        }
        requests.warm_up = SimDuration::ZERO;
        serve::report_of(resolved)
    }

    /// The report of a shipped serving scenario.
    fn serving(&mut self, scenario: &'static str) -> Result<&ServingReport, Failure> {
        if !self.served.contains_key(scenario) {
            let report = serve::report(&input::read(scenario)?)?;
            self.served.insert(scenario, report);
        }
        Ok(&self.served[scenario])
    }
}

fn all() -> Vec<Claim> {
    let mut claims = training::claims();
    claims.extend(serving::claims());
    claims.extend(hardware::claims());
    claims
}

/// Tries the claims and writes what became of them.
pub fn claims(args: &ClaimsArgs) -> Result<(), Failure> {
    let chosen: Vec<Claim> = all()
        .into_iter()
        .filter(|claim| {
            args.filter
                .as_ref()
                .is_none_or(|text| claim.id.contains(text))
        })
        .collect();
    if chosen.is_empty() {
        let names: Vec<&str> = all().iter().map(|claim| claim.id).collect();
        return Err(Failure::input(format_args!(
            "no claim has {:?} in its name\n  hint: the claims are {}",
            args.filter.as_deref().unwrap_or_default(),
            names.join(", ")
        )));
    }
    let mut lab = Lab::default();
    let mut tried = Vec::new();
    for claim in chosen {
        let finding = (claim.try_it)(&mut lab)?;
        tried.push(Tried {
            id: claim.id,
            claim: claim.claim,
            source: claim.source,
            simulated: finding.simulated,
            verdict: finding.verdict,
            command: finding.command,
        });
    }
    files::print(&match args.format {
        Written::Table => table(&tried),
        Written::Json => format!("{:#}\n", serde_json::json!({ "claims": tried })),
        Written::Markdown => markdown(&tried),
    })
}

fn table(tried: &[Tried]) -> String {
    let mut out = String::new();
    for claim in tried {
        out.push_str(&format!(
            "{}  [{}]\n  claim      {} ({})\n  simulated  {}\n  again      {}\n\n",
            claim.id,
            claim.verdict.words(),
            claim.claim,
            claim.source,
            claim.simulated,
            claim.command
        ));
    }
    out
}

fn markdown(tried: &[Tried]) -> String {
    let mut out = String::from(
        "# The argument, replayed\n\n\
         Two essays argue over what is left to gain. *Computation is physical: moving memory is the cost, and\n\
         rack-level gains run out* (T. Dettmers, \"Why AGI Will Not Happen\"). *Today's systems waste most of what\n\
         they have* (D. Fu, \"Yes, AGI Can Happen\"). Each figure that they name is simulated here. This page is what\n\
         `rackflow claims --format markdown` prints; a test holds it against the program. How far the program itself\n\
         is to be trusted is said in [validation](validation.md): a few per cent for training, more for serving.\n\n",
    );
    for claim in tried {
        out.push_str(&format!(
            "## {}\n\n**Claim.** {} ({})\n\n**Simulated.** {}\n\n**Verdict: {}.** Again: `{}`\n\n",
            claim.id,
            claim.claim,
            claim.source,
            claim.simulated,
            claim.verdict.words(),
            claim.command
        ));
    }
    out.truncate(out.trim_end().len());
    out.push('\n');
    out
}

/// A verdict by a range: what is inside holds.
fn within(value: f64, low: f64, high: f64) -> Verdict {
    if (low..=high).contains(&value) {
        Verdict::Holds
    } else {
        Verdict::DoesNot
    }
}

/// A share as people write it.
fn percent(share: f64) -> String {
    format!("{:.1} %", share * 100.0)
}
