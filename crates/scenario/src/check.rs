//! Holds the numbers of a scenario against each other and says what would be right.
//!
//! Every rule that can be judged is judged, so that one run reports all errors; a rule whose inputs
//! are themselves wrong stays silent.

mod hardware;
mod serving;
mod stack;
mod vision;
mod work;

pub use hardware::unsupported;

use crate::document::TrainingText;
use crate::resolve::Findings;
use crate::serving_text::ServingText;
use rackflow_plan::Setup;
use rackflow_plan::serving::FleetSetup;
use rackflow_topology::{Cluster, LinkFault};
use std::fmt::Display;

/// Reports faults of links that cannot be.
pub(crate) fn links(cluster: &Cluster, faults: &[LinkFault], findings: &mut Findings<'_>) {
    work::links(cluster, faults, findings);
}

/// Reports everything that keeps `setup` from being simulated.
pub(crate) fn check(setup: &Setup, text: &TrainingText, findings: &mut Findings<'_>) {
    hardware::check(setup, findings);
    work::check(setup, text, findings);
}

/// Reports everything that keeps `cluster` from being built.
pub(crate) fn cluster(cluster: &Cluster, findings: &mut Findings<'_>) {
    hardware::cluster(cluster, findings);
}

/// Reports what is wrong with a serving workload as it was typed.
pub(crate) fn serving_text(text: &ServingText, findings: &mut Findings<'_>) {
    serving::text(text, findings);
}

/// Reports everything else that keeps `setup` from being simulated.
pub(crate) fn serving(setup: &FleetSetup, findings: &mut Findings<'_>) {
    serving::fleet(setup, findings);
    let gpus = setup.clusters.iter().map(|cluster| cluster.gpus).sum();
    work::stragglers(findings, gpus, &setup.stragglers);
    match setup.clusters.as_slice() {
        [cluster] => work::links(cluster, &setup.faults, findings),
        _ if !setup.faults.is_empty() => {
            let found = findings.at(
                "simulation.links",
                "links are those of one cluster, and the pools are on clusters of their own",
            );
            findings.report(found.hint("give both pools the cluster's node, or leave `links` out"));
        }
        _ => {}
    }
}

/// A whole number that must be at least 1 and at most `limit`; says so at `path` where it is not.
fn count(findings: &mut Findings<'_>, path: &str, value: u64, limit: u64) -> bool {
    let name = path.rsplit('.').next().unwrap_or(path);
    if value == 0 {
        let found = findings.at(path, format!("`{name}` is 0; it must be at least 1"));
        findings.report(found);
    } else if value > limit {
        let found = findings
            .at(
                path,
                format!("`{name}` is {value}, which is absurdly large"),
            )
            .label(format!("at most {limit}"));
        findings.report(found);
    }
    (1..=limit).contains(&value)
}

/// A quantity that must lie in a range. `low` and `high` are its ends, `value` is what it is and
/// each is shown as `T` prints it.
fn within<T: PartialOrd + Default + Display>(
    findings: &mut Findings<'_>,
    path: &str,
    value: T,
    low: T,
    high: T,
) -> bool {
    let right = value >= low && value <= high;
    if !right {
        let name = path.rsplit('.').next().unwrap_or(path);
        let (wrong, label) = if value > high {
            ("absurdly large", format!("at most {high}"))
        } else if value > T::default() {
            ("absurdly small", format!("at least {low}"))
        } else {
            ("not more than 0", String::new())
        };
        let found = findings.at(path, format!("`{name}` is {value}, which is {wrong}"));
        findings.report(found.label(label));
    }
    right
}

/// Below this, what hardware reaches of its peak is a slip of the pen, and steps take years.
const LEAST_FRACTION: f64 = 0.001;

/// A fraction above 0 and at most 1.
fn fraction(findings: &mut Findings<'_>, path: &str, value: f64) -> bool {
    let right = (LEAST_FRACTION..=1.0).contains(&value);
    if !right {
        let name = path.rsplit('.').next().unwrap_or(path);
        let mut found = if value > 0.0 && value < LEAST_FRACTION {
            findings
                .at(
                    path,
                    format!("`{name}` is {value:e}, which is absurdly small"),
                )
                .label(format!("at least {LEAST_FRACTION}"))
        } else {
            findings.at(
                path,
                format!("`{name}` is {value}; it must be above 0 and at most 1"),
            )
        };
        if (2.0..=100.0).contains(&value) {
            found = found.hint(format!("{value} % is written {}", value / 100.0));
        }
        findings.report(found);
    }
    right
}
